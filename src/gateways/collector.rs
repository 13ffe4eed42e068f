//! The way to a collector of traces, under TLS where its address says so.

use async_trait::async_trait;
use http_body_util::Full;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use url::Url;

use super::client::Client;

/// Sends what OpenTelemetry's exporter makes.
pub struct CollectorClient(Client);

impl CollectorClient {
    /// To whoever listens at this address.
    pub fn new(url: Url) -> Self {
        Self(Client::new(url))
    }
}

impl std::fmt::Debug for CollectorClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CollectorClient").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        parts.uri = target.parse()?;
        let answer = self.0.send(Request::from_parts(parts, Full::new(body))).await?;
        Ok(Response::builder().status(answer.status).body(answer.body)?)
    }
}
