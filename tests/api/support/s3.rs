//! S3, as its documentation describes it, in this process: it keeps objects, checks the signature of
//! every call (Signature Version 4) and the digest of every body, lists page by page, and fails when it
//! is told to.
//!
//! What is signed is made out with code of its own, so that nothing of the program under test vouches
//! for itself. Times are as some stores give them: exact in a list, to the second elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use souk::config::Credential;
use souk::images::{Bucket, Location};
use souk_actors::world::{SystemWorld, Timestamp, World as _};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::{TcpListener, TcpStream};

use super::Start;

/// The bucket, and what the names of the market's objects begin with.
pub const BUCKET: &str = "souk-images";
pub const PREFIX: &str = "market";
const REGION: &str = "eu-west-1";
/// Who the market is.
pub const ACCESS_KEY: &str = "access-key-of-tests";
/// What it signs with.
pub const SECRET_KEY: &str = "a-secret-key-that-no-log-may-show";

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What a call signs.
struct Signing<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    /// The heads that are signed, in order.
    heads: Vec<(&'a str, &'a str)>,
    /// When, as `x-amz-date` says it.
    at: &'a str,
    region: &'a str,
    /// Of the body.
    digest: &'a str,
}

impl Signing<'_> {
    fn signature(&self, secret: &str) -> String {
        let names: Vec<_> = self.heads.iter().map(|(name, _)| *name).collect();
        let line = |(name, value): &(&str, &str)| format!("{name}:{}\n", value.trim());
        let request = format!(
            "{}\n{}\n{}\n{}\n{}\n{}",
            self.method,
            self.path,
            canonical(self.query),
            self.heads.iter().map(line).collect::<String>(),
            names.join(";"),
            self.digest
        );
        let day = &self.at[..8];
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let text = format!("{ALGORITHM}\n{}\n{scope}\n{}", self.at, digest(request.as_bytes()));
        let mut key = format!("AWS4{secret}").into_bytes();
        for step in [day, self.region, "s3", "aws4_request", text.as_str()] {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(step.as_bytes());
            key = mac.finalize().into_bytes().to_vec();
        }
        hex(&key)
    }
}

/// A query in the one spelling that is signed.
fn canonical(query: &str) -> String {
    let encoded = |text: &str| -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        let one = |byte: u8| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        };
        text.bytes().map(one).collect()
    };
    let mut pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes())
        .map(|(name, value)| (encoded(&name), encoded(&value)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// A call.
struct Asked {
    method: Method,
    uri: Uri,
    heads: HeaderMap,
    body: Bytes,
}

impl Asked {
    fn head(&self, name: &str) -> &str {
        self.heads.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn parameter(&self, name: &str) -> Option<String> {
        let query = self.uri.query().unwrap_or_default();
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(of, _)| of == name).map(|(_, value)| value.into_owned())
    }

    /// The code of what is wrong with who signed, and with what; none: all is well.
    fn refusal(&self, token: Option<&str>) -> Option<&'static str> {
        let Some((credential, names, signature)) = authorisation(self.head("authorization")) else {
            return Some("AccessDenied");
        };
        let (at, said) = (self.head("x-amz-date"), self.head("x-amz-content-sha256"));
        let Some((key, scope)) = credential.split_once('/') else { return Some("AccessDenied") };
        if key != ACCESS_KEY {
            return Some("InvalidAccessKeyId");
        }
        if self.head("x-amz-security-token") != token.unwrap_or_default() {
            return Some("InvalidToken");
        }
        let day = at.get(..8).unwrap_or_default();
        if day.len() != 8 || scope != format!("{day}/{REGION}/s3/aws4_request") {
            return Some("AuthorizationHeaderMalformed");
        }
        if said != digest(&self.body) {
            return Some("XAmzContentSHA256Mismatch");
        }
        let names: Vec<_> = names.split(';').collect();
        let must = |name: &str| name == "host" || name.starts_with("x-amz-");
        let mut all = self.heads.keys().map(|name| name.as_str()).filter(|name| must(name));
        if !names.is_sorted() || !all.all(|name| names.contains(&name)) {
            return Some("AccessDenied");
        }
        let signing = Signing {
            method: self.method.as_str(),
            path: self.uri.path(),
            query: self.uri.query().unwrap_or_default(),
            heads: names.iter().map(|name| (*name, self.head(name))).collect(),
            at,
            region: REGION,
            digest: said,
        };
        (signing.signature(SECRET_KEY) != signature).then_some("SignatureDoesNotMatch")
    }
}

/// Who signed and for what, which heads, and the signature.
fn authorisation(text: &str) -> Option<(&str, &str, &str)> {
    let mut parts = text.strip_prefix(ALGORITHM)?.trim().split(", ");
    let credential = parts.next()?.strip_prefix("Credential=")?;
    let names = parts.next()?.strip_prefix("SignedHeaders=")?;
    let signature = parts.next()?.strip_prefix("Signature=")?;
    parts.next().is_none().then_some((credential, names, signature))
}

struct Object {
    content: Bytes,
    media_type: String,
    written: Timestamp,
}

impl Object {
    fn tag(&self) -> String {
        digest(&self.content)[..32].to_owned()
    }

    fn answer(&self) -> Response {
        let format = format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        let written = OffsetDateTime::from_unix_timestamp(self.written.millis() / 1_000).unwrap();
        let heads = [
            (header::ETAG, format!("\"{}\"", self.tag())),
            (header::LAST_MODIFIED, written.format(&format).unwrap()),
            (header::CONTENT_TYPE, self.media_type.clone()),
        ];
        (heads, self.content.clone()).into_response()
    }
}

struct Desk {
    objects: BTreeMap<String, Object>,
    /// How many objects a page of a list has.
    page: usize,
    /// The session token that every call must have; none: none may have one.
    token: Option<&'static str>,
    fails: bool,
    /// The codes of what was refused.
    refusals: Vec<&'static str>,
    lists: usize,
}

/// The whole of it.
#[derive(Clone)]
pub struct S3 {
    url: String,
    desk: Arc<Mutex<Desk>>,
    away: Arc<AtomicBool>,
}

/// Takes nobody in while it is away.
struct Door {
    listener: TcpListener,
    away: Arc<AtomicBool>,
}

impl Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let taken = Listener::accept(&mut self.listener).await;
            if !self.away.load(Ordering::Relaxed) {
                return taken;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl S3 {
    /// Opens, with an empty bucket.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let desk = Desk {
            objects: BTreeMap::new(),
            page: 1_000,
            token: None,
            fails: false,
            refusals: Vec::new(),
            lists: 0,
        };
        let s3 = Self { url, desk: Arc::new(Mutex::new(desk)), away: Arc::default() };
        let door = Door { listener, away: s3.away.clone() };
        let router = Router::new().fallback(take).layer(DefaultBodyLimit::disable());
        let router = router.with_state(s3.clone());
        tokio::spawn(async move { axum::serve(door, router).await });
        s3
    }

    /// How to start a server that keeps its images here.
    pub fn market(&self) -> Start {
        Start::default()
            .with("IMAGES_URL", format!("s3://{BUCKET}/{PREFIX}"))
            .with("AWS_ENDPOINT_URL", &self.url)
            .with("AWS_REGION", REGION)
            .with("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .with("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    }

    /// The same place, for whoever opens it without a server.
    pub fn location(&self) -> Location {
        Location::S3(Box::new(Bucket {
            name: BUCKET.to_owned(),
            prefix: PREFIX.to_owned(),
            region: REGION.to_owned(),
            endpoint: Some(self.url.parse().unwrap()),
            access_key: Credential::new(ACCESS_KEY),
            secret_key: Credential::new(SECRET_KEY),
            session_token: None,
        }))
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a page of a list has so many objects.
    pub fn page(&self, objects: usize) {
        self.desk().page = objects;
    }

    /// From now on every call must have this session token.
    pub fn expect_token(&self, token: &'static str) {
        self.desk().token = Some(token);
    }

    /// From now on every call fails, or none does.
    pub fn fail(&self, fails: bool) {
        self.desk().fails = fails;
    }

    /// From now on nobody gets in, or everybody does.
    pub fn away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Puts an object there that is not the market's doing.
    pub fn put(&self, key: &str, content: &'static [u8]) {
        let content = Bytes::from_static(content);
        self.desk().put(key, content, String::new());
    }

    /// Loses everything.
    pub fn clear(&self) {
        self.desk().objects.clear();
    }

    /// Every object: its name and its content.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let desk = self.desk();
        desk.objects.iter().map(|(key, of)| (key.clone(), of.content.clone())).collect()
    }

    /// The media types of all objects, by their names.
    pub fn media_types(&self) -> BTreeMap<String, String> {
        let desk = self.desk();
        desk.objects.iter().map(|(key, of)| (key.clone(), of.media_type.clone())).collect()
    }

    /// The codes of what it refused.
    pub fn refusals(&self) -> Vec<&'static str> {
        self.desk().refusals.clone()
    }

    /// How many pages of lists it gave.
    pub fn lists(&self) -> usize {
        self.desk().lists
    }
}

async fn take(
    State(s3): State<S3>,
    method: Method,
    uri: Uri,
    heads: HeaderMap,
    body: Bytes,
) -> Response {
    let mut answer = s3.desk().answer(&Asked { method, uri, heads, body });
    // So that nobody is in who came before it went away.
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

impl Desk {
    fn answer(&mut self, asked: &Asked) -> Response {
        if self.fails {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", asked);
        }
        if let Some(code) = asked.refusal(self.token) {
            self.refusals.push(code);
            return refused(StatusCode::FORBIDDEN, code, asked);
        }
        let path = asked.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return refused(StatusCode::NOT_FOUND, "NoSuchBucket", asked);
        }
        match (asked.method.as_str(), key) {
            ("GET", "") if asked.parameter("list-type").as_deref() == Some("2") => self.list(asked),
            ("PUT", key) if !key.is_empty() => {
                let media_type = asked.head("content-type").to_owned();
                let tag = self.put(key, asked.body.clone(), media_type);
                [(header::ETAG, format!("\"{tag}\""))].into_response()
            }
            ("GET" | "HEAD", key) if !key.is_empty() => match self.objects.get(key) {
                Some(object) => object.answer(),
                None => refused(StatusCode::NOT_FOUND, "NoSuchKey", asked),
            },
            ("DELETE", key) if !key.is_empty() => {
                self.objects.remove(key);
                StatusCode::NO_CONTENT.into_response()
            }
            _ => refused(StatusCode::NOT_IMPLEMENTED, "NotImplemented", asked),
        }
    }

    fn put(&mut self, key: &str, content: Bytes, media_type: String) -> String {
        let object = Object { content, media_type, written: SystemWorld::new().now() };
        let tag = object.tag();
        self.objects.insert(key.to_owned(), object);
        tag
    }

    fn list(&mut self, asked: &Asked) -> Response {
        self.lists += 1;
        let prefix = asked.parameter("prefix").unwrap_or_default();
        let after = asked.parameter("continuation-token").unwrap_or_default();
        let fits = |key: &String| key.starts_with(&prefix) && *key > after;
        let found: Vec<_> = self.objects.iter().filter(|(key, _)| fits(key)).collect();
        let page = &found[..found.len().min(self.page)];
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{}</KeyCount>\
             <MaxKeys>{}</MaxKeys><IsTruncated>{}</IsTruncated>",
            page.len(),
            self.page,
            page.len() < found.len()
        );
        if let Some((last, _)) = page.last().filter(|_| page.len() < found.len()) {
            xml.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
        }
        for (key, object) in page {
            xml.push_str(&format!(
                "<Contents><Key>{key}</Key><LastModified>{}</LastModified>\
                 <ETag>&quot;{}&quot;</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                object.written,
                object.tag(),
                object.content.len()
            ));
        }
        xml.push_str("</ListBucketResult>");
        ([(header::CONTENT_TYPE, "application/xml")], xml).into_response()
    }
}

/// A refusal, which repeats what was sent, as that of S3 does.
fn refused(status: StatusCode, code: &str, asked: &Asked) -> Response {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>No.</Message><Resource>{}</Resource>\
         <AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><Token-0>{}</Token-0></Error>",
        asked.uri.path(),
        asked.head("x-amz-security-token")
    );
    (status, [(header::CONTENT_TYPE, "application/xml")], xml).into_response()
}

/// The example in Amazon's description of Signature Version 4 for S3.
#[test]
fn it_signs_as_amazon_does() {
    let nothing = digest(b"");
    let signing = Signing {
        method: "GET",
        path: "/test.txt",
        query: "",
        heads: vec![
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", nothing.as_str()),
            ("x-amz-date", "20130524T000000Z"),
        ],
        at: "20130524T000000Z",
        region: "us-east-1",
        digest: &nothing,
    };
    assert_eq!(
        signing.signature("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
    assert_eq!(canonical("prefix=a/b+c&list-type=2"), "list-type=2&prefix=a%2Fb%20c");
}
