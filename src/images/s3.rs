//! Images in a bucket of S3, or of what speaks as S3 does.
//!
//! Calls are made by this program's own client, which trusts whom the system trusts. They go to the bucket
//! alone, by no proxy and no redirect, and have an end. What S3 says of a call that it refuses repeats
//! what it was sent, so no more of it than its code goes on, into errors and logs.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use http_body_util::{BodyExt as _, Limited};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use reqwest::redirect::Policy;
use url::Url;

use crate::config::Credential;
use crate::tls::http_client;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a call may take, from the connection to the answer's end. What fails later than this after
/// the first try began is not tried again.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a call is tried again that S3 could not answer.
const RETRIES_MAX: usize = 2;
/// The waits before that.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How much is read of what is said of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// A bucket, and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What stands before the names of all files, without slashes around it; may be empty.
    pub prefix: String,
    /// `AWS_REGION`.
    pub region: String,
    /// `AWS_ENDPOINT_URL`: where it is, if not at Amazon.
    pub endpoint: Option<Url>,
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key: Credential,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: Credential,
    /// `AWS_SESSION_TOKEN`, of keys that hold for some time only.
    pub session_token: Option<Credential>,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.name, self.prefix)
    }
}

impl Bucket {
    /// The store in it. Nothing is asked of it yet.
    pub(super) fn open(&self) -> anyhow::Result<PrefixStore<AmazonS3>> {
        let builder = AmazonS3Builder::new()
            .with_bucket_name(self.name.as_str())
            .with_region(self.region.as_str())
            .with_access_key_id(self.access_key.expose())
            .with_secret_access_key(self.secret_key.expose())
            .with_client_options(options())
            .with_retry(retries())
            // Files are deleted one by one, which everything knows that speaks as S3 does.
            .with_disable_bulk_delete(true)
            .with_http_connector(Connector);
        let builder = match &self.session_token {
            Some(token) => builder.with_token(token.expose()),
            None => builder,
        };
        let builder = match &self.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.as_str()),
            // No certificate of Amazon's is for a host with more dots.
            None => builder.with_virtual_hosted_style_request(!self.name.contains('.')),
        };
        let store = builder.build().with_context(|| format!("cannot set up {self}"))?;
        Ok(PrefixStore::new(store, Path::from(self.prefix.as_str())))
    }
}

/// Whoever looks into the bucket sees what the files are.
fn options() -> ClientOptions {
    ClientOptions::new()
        .with_content_type_for_suffix("jpg", super::media_type(".jpg"))
        .with_content_type_for_suffix("png", super::media_type(".png"))
}

fn retries() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: BACKOFF_FIRST, max_backoff: BACKOFF_MAX, base: 2.0 };
    RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: CALL_TIMEOUT }
}

/// Connects with this program's own client.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = http_client()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build();
        let client = client.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(error),
        })?;
        Ok(HttpClient::new(Calls(client)))
    }
}

/// The bucket itself is not there. As an answer to one file it would say that the file is not.
#[derive(Debug, thiserror::Error)]
#[error("there is no such bucket")]
struct NoSuchBucket;

/// Makes calls, and takes out of refusals what must not go on.
#[derive(Debug)]
struct Calls(reqwest::Client);

#[async_trait]
impl HttpService for Calls {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = HttpService::call(&self.0, request).await?.into_parts();
        if !(head.status.is_client_error() || head.status.is_server_error()) {
            return Ok(HttpResponse::from_parts(head, body));
        }
        let body = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
        let code = body.map(|body| code_in(&body.to_bytes())).unwrap_or_default();
        if code == "NoSuchBucket" {
            return Err(HttpError::new(HttpErrorKind::Unknown, NoSuchBucket));
        }
        Ok(HttpResponse::from_parts(head, HttpResponseBody::from(code)))
    }
}

/// The code in what is said of a refusal; empty where there is none.
fn code_in(refusal: &[u8]) -> String {
    let text = String::from_utf8_lossy(refusal);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map_or("", |(code, _)| code);
    let is_word = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_word { code.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(name: &str, endpoint: Option<&str>) -> Bucket {
        Bucket {
            name: name.to_owned(),
            prefix: "market".to_owned(),
            region: "eu-west-1".to_owned(),
            endpoint: endpoint.map(|url| url.parse().unwrap()),
            access_key: Credential::new("access-key"),
            secret_key: Credential::new("hunter2"),
            session_token: Some(Credential::new("hunter3")),
        }
    }

    #[test]
    fn a_bucket_shows_none_of_its_keys() {
        let bucket = bucket("souk-images", Some("http://127.0.0.1:9000"));
        assert_eq!(bucket.to_string(), "s3://souk-images/market");
        let store = bucket.open().unwrap();
        for shown in [format!("{bucket:?}"), format!("{store}")] {
            assert!(!shown.contains("hunter") && !shown.contains("access-key"), "{shown}");
        }
    }

    #[test]
    fn a_bucket_is_opened_with_and_without_an_endpoint() {
        for name in ["souk-images", "images.souk.example"] {
            bucket(name, None).open().unwrap();
            bucket(name, Some("https://minio.example")).open().unwrap();
        }
    }

    #[test]
    fn of_a_refusal_the_code_is_kept() {
        let refusal =
            b"<?xml version=\"1.0\"?><Error><Code>InvalidToken</Code><Message>No.</Message>\
            <Token-0>hunter3</Token-0></Error>";
        assert_eq!(code_in(refusal), "InvalidToken");
        for other in [&b""[..], b"<html>Bad gateway</html>", b"<Code>a b</Code>", b"<Code>\xff"] {
            assert_eq!(code_in(other), "");
        }
    }
}
