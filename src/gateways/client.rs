//! What adapters of message providers have in common: an HTTP client for one address, and what an
//! answer or the lack of one means.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use url::Url;

use super::mail::SendError;
use super::retry_after::RetryAfter;
use crate::tls::client_config;

/// How long it may take to be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take from there.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Connects under TLS with whom the system trusts.
pub(super) fn tls_connector() -> TlsConnector {
    TlsConnector::from(Arc::new(client_config()))
}

/// A provider's answer.
pub(super) struct Answer {
    /// Its status.
    pub status: u16,
    headers: HeaderMap,
    /// What it says.
    pub body: Bytes,
}

impl Answer {
    /// Whether it takes what it was sent.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().filter(|value| !value.is_empty())
    }

    /// When it says that it may be asked again.
    fn retry_after(&self) -> Option<RetryAfter> {
        let after = self.header("retry-after").and_then(RetryAfter::read);
        after.or_else(|| self.header("x-ratelimit-reset").and_then(RetryAfter::read_reset))
    }
}

/// A client of one provider. It follows no redirect.
pub(super) struct Client {
    url: Url,
    tls: TlsConnector,
}

impl Client {
    /// Of the provider at this address, whose path does not matter.
    pub fn new(url: Url) -> Self {
        Self { url, tls: tls_connector() }
    }

    /// Sends a request, whose target is a path, once.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, SendError> {
        let refused = |_| SendError::Refused("invalid_request".to_owned());
        let host = match (self.url.host_str().unwrap_or_default(), self.url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::try_from(host).map_err(refused)?);
        let agent = HeaderValue::from_static(concat!("souk/", env!("CARGO_PKG_VERSION")));
        headers.insert(header::USER_AGENT, agent);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let not_reached = || SendError::Transient("not_reached".to_owned());
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await;
        let stream = stream.map_err(|_| not_reached())?.map_err(|_| not_reached())?;
        if self.url.scheme() != "https" {
            return exchange(stream, request).await;
        }
        let name = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name);
        let name = name.map_err(|_| SendError::Locked("invalid_url".to_owned()))?;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.tls.connect(name, stream)).await;
        let stream = stream.map_err(|_| not_reached())?;
        let stream = stream.map_err(|_| SendError::Locked("tls_failed".to_owned()))?;
        exchange(stream, request).await
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        TcpStream::connect((host, self.url.port_or_known_default().unwrap_or_default())).await
    }
}

/// From here on nobody knows what became of a message that has no answer.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answered = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        let answer = match answer {
            Ok(answer) => Ok(read(answer).await),
            Err(error) => Err(error),
        };
        connection.abort();
        answer
    };
    match tokio::time::timeout(CALL_TIMEOUT, answered).await {
        Err(_) => Err(SendError::Unknown("timeout".to_owned())),
        Ok(Err(_)) => Err(SendError::Unknown("connection_broken".to_owned())),
        Ok(Ok(answer)) => Ok(answer),
    }
}

/// The status has decided: a body that breaks off is none.
async fn read(answer: Response<Incoming>) -> Answer {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// What an answer means that does not take the message. `code`: the provider's own name for it.
pub(super) fn refused(answer: &Answer, code: Option<&str>) -> SendError {
    let status = answer.status;
    let reason = || code.map_or_else(|| format!("status_{status}"), str::to_owned);
    match status {
        // Credentials, the wrong address of the provider, or the wrong account.
        300..=399 | 401 | 403 | 404 | 405 => SendError::Locked(reason()),
        408 | 425 | 429 => match answer.retry_after() {
            Some(again) => SendError::Limited { reason: reason(), again },
            None => SendError::Transient(reason()),
        },
        400..=499 => SendError::Refused(reason()),
        _ => SendError::Unknown(reason()),
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::world::Timestamp;

    use super::*;

    fn answer(status: u16, fields: &[(&'static str, &'static str)]) -> Answer {
        let field = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        Answer { status, headers: fields.iter().map(field).collect(), body: Bytes::new() }
    }

    #[test]
    fn what_a_status_means() {
        let told = |status| refused(&answer(status, &[]), None);
        for status in [400, 413, 422] {
            assert_eq!(told(status), SendError::Refused(format!("status_{status}")));
        }
        for status in [301, 401, 403, 404] {
            assert_eq!(told(status), SendError::Locked(format!("status_{status}")));
        }
        assert_eq!(told(429), SendError::Transient("status_429".to_owned()));
        for status in [500, 502, 503] {
            assert_eq!(told(status), SendError::Unknown(format!("status_{status}")));
        }
        let named = refused(&answer(400, &[]), Some("21211"));
        assert_eq!(named, SendError::Refused("21211".to_owned()));
    }

    #[test]
    fn whoever_takes_no_more_may_say_until_when() {
        let told = |fields| refused(&answer(429, fields), None);
        let limited = |again| SendError::Limited { reason: "status_429".to_owned(), again };
        let minute = limited(RetryAfter::For(Duration::from_secs(60)));
        let reset = limited(RetryAfter::Until(Timestamp::from_millis(1_800_000_000_000)));
        assert_eq!(told(&[("retry-after", "60")]), minute);
        assert_eq!(told(&[("x-ratelimit-reset", "1800000000")]), reset);
        let both = [("x-ratelimit-reset", "1800000000"), ("retry-after", "60")];
        assert_eq!(told(&both), minute);
        let nonsense = [("x-ratelimit-reset", "1800000000"), ("retry-after", "soon")];
        assert_eq!(told(&nonsense), reset);
        assert_eq!(told(&[("retry-after", "")]), SendError::Transient("status_429".to_owned()));
    }

    #[tokio::test]
    async fn whether_a_message_went_out_depends_on_where_it_broke_off() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let call = async || {
            let request = Request::post("/").body(Full::new(Bytes::from_static(b"words"))).unwrap();
            Client::new(url.clone()).send(request).await.err().unwrap()
        };
        let hang_up = async { drop(listener.accept().await.unwrap()) };
        let (error, ()) = tokio::join!(call(), hang_up);
        assert_eq!(error, SendError::Unknown("connection_broken".to_owned()));
        drop(listener);
        assert_eq!(call().await, SendError::Transient("not_reached".to_owned()));
    }
}
