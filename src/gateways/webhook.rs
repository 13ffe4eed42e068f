//! Webhooks: signing by Standard Webhooks 1.0.0, and sending to addresses that users gave.
//!
//! Such an address may lead anywhere, also to what only this machine can reach. So a name is
//! resolved once, every address it has must be allowed, and the connection is made to one of those
//! that were looked at. No redirect is followed, no proxy is used, and of an answer no more than
//! 64 kB are read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use url::{Host, Url};

use super::client::tls_connector;

/// How long one attempt may take, from the name to the answer's end.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What stands before a secret's text.
pub const SECRET_PREFIX: &str = "whsec_";
/// How many random bytes a secret has.
pub const SECRET_BYTES: usize = 32;

/// The signature of a message under a secret (its bytes, not its text): `v1,` and base64.
pub fn sign(secret: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret).expect("an HMAC takes a key of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// A message ready to go out.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub url: String,
    /// `webhook-id`: the same however often it is sent.
    pub id: String,
    /// `webhook-timestamp`: when it is sent, in seconds since 1970.
    pub timestamp: i64,
    /// `webhook-signature`: one for each secret that holds.
    pub signature: String,
    /// `traceparent`: the trace that the event belongs to, if it is known.
    pub traceparent: Option<String>,
    /// `tracestate`: what came with that trace.
    pub tracestate: Option<String>,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The bytes that were signed.
    pub body: Vec<u8>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The status of the answer; none: there was none.
    pub status: Option<u16>,
    /// `Retry-After`, as it came.
    pub retry_after: Option<String>,
    /// What was wrong, as a stable code; none: it was taken.
    pub error: Option<String>,
    /// How long it took.
    pub latency: Duration,
}

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    InvalidUrl,
    HttpNotAllowed,
    NameNotResolved,
    AddressNotAllowed,
    ConnectFailed,
    TlsFailed,
    ConnectionBroken,
    Timeout,
}

impl Problem {
    fn code(self) -> &'static str {
        match self {
            Self::InvalidUrl => "invalid_url",
            Self::HttpNotAllowed => "http_not_allowed",
            Self::NameNotResolved => "name_not_resolved",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::ConnectionBroken => "connection_broken",
            Self::Timeout => "timeout",
        }
    }
}

/// Which addresses may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Whether `http:` will do.
    pub allows_http: bool,
    /// Networks that may be reached although they are not public.
    pub networks: Vec<IpNet>,
}

impl Reach {
    /// Whether a message may go to this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.networks.iter().any(|network| network.contains(&address))
    }
}

/// Whether an address is one of the public internet, and nothing else in disguise.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let special = matches!(
        (first, second, third),
        (0 | 10 | 127 | 224..=255, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !special
}

/// Global unicast alone. Forms that stand for an IPv4 address (NAT64, 6to4, Teredo, compatible) lie
/// outside of it or are left out, so that nobody has to guess where they lead.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let special = matches!(
        (first, second),
        (0x2001, 0x0000..=0x01ff | 0x0db8) | (0x2002, _) | (0x3fff, 0x0000..=0x0fff)
    );
    first & 0xe000 == 0x2000 && !special
}

/// Sends messages.
#[derive(Clone)]
pub struct WebhookSender {
    reach: Reach,
    tls: TlsConnector,
}

impl WebhookSender {
    /// A sender that reaches so far. It trusts the certificates that the system trusts.
    pub fn new(reach: Reach) -> Self {
        Self { reach, tls: tls_connector() }
    }

    /// Sends a message once.
    pub async fn send(&self, message: &Outgoing) -> Sent {
        let started = Instant::now();
        let answer = tokio::time::timeout(ATTEMPT_TIMEOUT, self.exchange(message)).await;
        let latency = started.elapsed();
        match answer.unwrap_or(Err(Problem::Timeout)) {
            Ok((status, retry_after)) => {
                let taken = (200..300).contains(&status);
                let error = (!taken).then(|| format!("status_{status}"));
                Sent { status: Some(status), retry_after, error, latency }
            }
            Err(problem) => Sent {
                status: None,
                retry_after: None,
                error: Some(problem.code().to_owned()),
                latency,
            },
        }
    }

    async fn exchange(&self, message: &Outgoing) -> Result<(u16, Option<String>), Problem> {
        let url = Url::parse(&message.url).map_err(|_| Problem::InvalidUrl)?;
        let secure = match url.scheme() {
            "https" => true,
            "http" if self.reach.allows_http => false,
            "http" => return Err(Problem::HttpNotAllowed),
            _ => return Err(Problem::InvalidUrl),
        };
        let request = request(&url, message)?;
        let stream = self.connect(&url).await?;
        if !secure {
            return exchange(stream, request).await;
        }
        let host = url.host_str().unwrap_or_default();
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|_| Problem::InvalidUrl)?;
        let stream = self.tls.connect(name, stream).await.map_err(|_| Problem::TlsFailed)?;
        exchange(stream, request).await
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, Problem> {
        let port = url.port_or_known_default().ok_or(Problem::InvalidUrl)?;
        let addresses = resolve(url, port).await?;
        // One bad address among good ones is a trap, not an oversight.
        if !addresses.iter().all(|address| self.reach.allows(address.ip())) {
            return Err(Problem::AddressNotAllowed);
        }
        for address in addresses {
            if let Ok(stream) = TcpStream::connect(address).await {
                return Ok(stream);
            }
        }
        Err(Problem::ConnectFailed)
    }
}

async fn resolve(url: &Url, port: u16) -> Result<Vec<SocketAddr>, Problem> {
    let addresses: Vec<SocketAddr> = match url.host().ok_or(Problem::InvalidUrl)? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(address, port).into()],
        Host::Domain(name) => {
            let found = tokio::net::lookup_host((name, port)).await;
            found.map_err(|_| Problem::NameNotResolved)?.collect()
        }
    };
    if addresses.is_empty() { Err(Problem::NameNotResolved) } else { Ok(addresses) }
}

fn request(url: &Url, message: &Outgoing) -> Result<Request<Full<Bytes>>, Problem> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let mut request = Request::post(target);
    let trace = [("traceparent", &message.traceparent), ("tracestate", &message.tracestate)];
    for (name, value) in trace {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    request
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("souk/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_TYPE, message.content_type)
        .header(header::CONNECTION, "close")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", message.timestamp)
        .header("webhook-signature", &message.signature)
        .body(Full::new(Bytes::from(message.body.clone())))
        .map_err(|_| Problem::InvalidUrl)
}

async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<(u16, Option<String>), Problem>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |_: hyper::Error| Problem::ConnectionBroken;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
        read_some(response).await;
        Ok((status, retry_after))
    };
    tokio::pin!(answered);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // It may be over because the answer is complete.
        _ = &mut connection => answered.await,
    }
}

/// Reads what the other side says, so that it may finish, but not for ever. The status has decided.
async fn read_some(response: Response<Incoming>) {
    let (mut body, mut read) = (response.into_body(), 0);
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read >= ANSWER_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that the specification's libraries are tested with.
    #[test]
    fn a_signature_is_what_the_specification_says() {
        let table = [
            (
                "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                1_649_367_553,
                r#"{"email":"test@example.com","username":"test_user"}"#,
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
            (
                "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
        ];
        for (secret, id, timestamp, body, expected) in table {
            let secret = STANDARD.decode(secret).unwrap();
            assert_eq!(sign(&secret, id, timestamp, body.as_bytes()), expected);
            assert_ne!(sign(&secret, id, timestamp + 1, body.as_bytes()), expected);
            assert_ne!(sign(&secret, "msg_other", timestamp, body.as_bytes()), expected);
        }
    }

    #[test]
    fn only_public_addresses_are_reached() {
        let reach = Reach::default();
        let private = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1",
        ];
        for text in private {
            assert!(!reach.allows(text.parse().unwrap()), "{text}");
        }
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2606:4700:4700::1111",
            "2a00:1450:4001::200e",
            "2001:4860:4860::8888",
        ];
        for text in public {
            assert!(reach.allows(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_network_is_reached_when_it_is_named_and_in_any_form() {
        let networks = vec!["127.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let reach = Reach { networks, ..Reach::default() };
        for text in ["127.0.0.1", "::ffff:127.0.0.1", "fd12::1"] {
            assert!(reach.allows(text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1", "::1", "64:ff9b::7f00:1", "fe80::1"] {
            assert!(!reach.allows(text.parse().unwrap()), "{text}");
        }
    }

    #[tokio::test]
    async fn what_may_not_be_reached_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reach = Reach { allows_http: true, networks: Vec::new() };
        let sender = WebhookSender::new(reach);
        let hosts =
            ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1"];
        for host in hosts {
            let message = Outgoing {
                url: format!("http://{host}:{port}/"),
                id: "1".to_owned(),
                timestamp: 0,
                signature: "v1,".to_owned(),
                traceparent: None,
                tracestate: None,
                content_type: "application/json",
                body: Vec::new(),
            };
            let sent = sender.send(&message).await;
            assert_eq!(sent.error.as_deref(), Some("address_not_allowed"), "{host}");
        }
        let waiting = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await;
        assert!(waiting.is_err(), "somebody connected");
        let plain = WebhookSender::new(Reach::default());
        let message = Outgoing {
            url: "http://example.com/".to_owned(),
            id: "1".to_owned(),
            timestamp: 0,
            signature: "v1,".to_owned(),
            traceparent: None,
            tracestate: None,
            content_type: "application/json",
            body: Vec::new(),
        };
        assert_eq!(plain.send(&message).await.error.as_deref(), Some("http_not_allowed"));
    }
}
