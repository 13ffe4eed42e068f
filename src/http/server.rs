//! The accept loop: every connection, request head and body has a limit in time and size.
//!
//! Built on hyper-util rather than `axum::serve`, which sets no timer and so keeps a half-sent
//! request head open for good.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use super::connection::{self, Activity, Impatient, Version};
use super::middleware::CameAs;
use super::peer::Peer;
use crate::config;
use crate::tls::ServerTls;

/// How many requests one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 256;
/// How many requests that a peer gave up at once may wait for this side to notice: whoever sends and
/// cancels faster than that is disconnected ("rapid reset").
const RESETS_WAITING_MAX: usize = 20;
/// How many streams that were ended for a peer's errors are remembered before it is disconnected.
const ERRORS_MAX: usize = 128;
/// The largest request head. What is longer is answered 431 and the connection closed.
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// How many header lines a request may have; more are 431 too.
const HEADERS_MAX: usize = 100;
/// How long to wait after an accept that failed (usually: out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long connections may be silent, and leave answers unread.
#[derive(Debug, Clone, Copy)]
struct Patience {
    silent: Duration,
    unread: Duration,
}

/// A server that is listening.
pub struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<watch::Sender<()>>,
}

impl Server {
    /// Serves `router` on `listener`.
    ///
    /// With `tls` nothing else is spoken there.
    pub fn start(
        listener: TcpListener,
        router: Router,
        settings: &config::Http,
        tls: Option<Arc<ServerTls>>,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let patience = Patience { silent: settings.header_timeout, unread: settings.write_timeout };
        let connections = Connections {
            places: Arc::new(Semaphore::new(settings.connections_max)),
            protocols: Arc::new(Protocols::new(settings.header_timeout)),
            patience,
            router,
            tls,
        };
        let accepting = tokio::spawn(accept(listener, connections, stopped));
        Ok(Self { address, stop, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets open requests finish, and says whether they did in time.
    pub async fn stop(self, timeout: Duration) -> bool {
        // The receiver is gone only when the loop has ended already.
        let _ = self.stop.send(());
        let Ok(open) = self.accepting.await else { return false };
        // Whoever has no connection any more does not listen.
        let _ = open.send(());
        tokio::time::timeout(timeout, open.closed()).await.is_ok()
    }
}

/// How each version of HTTP is spoken.
struct Protocols {
    one: auto::Builder<TokioExecutor>,
    two: auto::Builder<TokioExecutor>,
}

impl Protocols {
    fn new(header_timeout: Duration) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // The timer of the head starts as soon as a connection waits for one, so it ends idle
        // connections too.
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_WAITING_MAX)
            .max_local_error_reset_streams(ERRORS_MAX)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .keep_alive_interval(header_timeout)
            .keep_alive_timeout(header_timeout);
        Self { one: builder.clone().http1_only(), two: builder.http2_only() }
    }

    fn of(&self, version: Version) -> &auto::Builder<TokioExecutor> {
        match version {
            Version::One => &self.one,
            Version::Two => &self.two,
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Connections {
    places: Arc<Semaphore>,
    protocols: Arc<Protocols>,
    patience: Patience,
    router: Router,
    tls: Option<Arc<ServerTls>>,
}

/// Accepts until it is stopped; what it returns tells open connections to finish.
async fn accept(
    listener: TcpListener,
    connections: Connections,
    mut stopped: oneshot::Receiver<()>,
) -> watch::Sender<()> {
    let (ending, _) = watch::channel(());
    let open = metrics::gauge!("souk_http_connections");
    loop {
        // At the limit the kernel's queue is where clients wait.
        let place = tokio::select! {
            place = connections.places.clone().acquire_owned() => place,
            _ = &mut stopped => return ending,
        };
        let Ok(place) = place else { return ending };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return ending,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (open, ending) = (open.clone(), ending.subscribe());
        let connections = connections.clone();
        tokio::spawn(async move {
            open.increment(1.0);
            connections.serve(stream, ending).await;
            open.decrement(1.0);
            drop(place);
        });
    }
}

impl Connections {
    async fn serve(self, stream: TcpStream, mut ending: watch::Receiver<()>) {
        let peer = Peer(stream.peer_addr().ok().map(|address| address.ip()));
        let Some(tls) = &self.tls else {
            let silent = self.patience.silent;
            let spoken = connection::version(&stream, silent, &mut ending).await;
            let Some(version) = spoken else { return };
            let stream = self.patient_with(stream);
            return self.speak(version, stream, peer, ending).await;
        };
        let accepting = TlsAcceptor::from(tls.current()).accept(self.patient_with(stream));
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(self.patience.silent, accepting) => accepted,
            _ = ending.changed() => return,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let version = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Version::Two,
                    _ => Version::One,
                };
                self.speak(version, stream, peer, ending).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no TLS");
            }
            Err(_) => tracing::debug!("no TLS in time"),
        }
    }

    fn patient_with(&self, stream: TcpStream) -> Impatient {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = &error as &dyn std::error::Error, "no TCP_NODELAY");
        }
        Impatient::new(stream, self.patience.unread)
    }

    /// Answers requests until the connection ends.
    async fn speak(
        &self,
        version: Version,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        ending: watch::Receiver<()>,
    ) {
        let activity = Arc::new(Activity::default());
        let (requests, router) = (activity.clone(), self.router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let open = Arc::new(requests.request());
            request.extensions_mut().insert(open.clone());
            request.extensions_mut().insert(peer);
            let answer = call(router.clone(), request);
            async move {
                let answer = answer.await;
                drop(open);
                answer
            }
        });
        let builder = self.protocols.of(version);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let patience = self.patience;
        let idle = async {
            match version {
                // Its own timer ends it.
                Version::One => std::future::pending().await,
                Version::Two => connection::idle(&activity, patience.silent).await,
            }
        };
        let finish = |connection: Pin<&mut auto::Connection<'_, _, _, _>>| {
            connection.graceful_shutdown();
        };
        let ended = connection::drive(connection, finish, ending, idle, patience.unread).await;
        if let Some(Err(error)) = ended {
            tracing::debug!(error, "connection ended");
        }
    }
}

async fn call(
    mut router: Router,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    // A router is always ready.
    router.call(canonical(request.map(Body::new))).await
}

/// Leads the unprefixed paths (`/orders`, `/api/events`) to the canonical ones.
pub(super) fn canonical(mut request: Request<Body>) -> Request<Body> {
    let path = request.uri().path();
    let below = |prefix: &str| {
        path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let rest = match (below("/orders"), below("/api/events")) {
        (Some(rest), _) => format!("/api/v1/orders{rest}"),
        (None, Some(rest)) => format!("/api/v1/events{rest}"),
        (None, None) => return request,
    };
    let came_as = path.to_owned();
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest,
    };
    if let Ok(uri) = target.parse::<Uri>() {
        *request.uri_mut() = uri;
        request.extensions_mut().insert(CameAs(came_as));
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::http_client;

    #[test]
    fn unprefixed_paths_lead_to_the_canonical_ones() {
        let lead = |from: &str| {
            let request = Request::builder().uri(from).body(Body::empty()).unwrap();
            canonical(request).uri().to_string()
        };
        assert_eq!(lead("/orders"), "/api/v1/orders");
        assert_eq!(lead("/orders/7/cancel?x=1"), "/api/v1/orders/7/cancel?x=1");
        assert_eq!(
            lead("/api/events?eventType=OrderPlaced"),
            "/api/v1/events?eventType=OrderPlaced"
        );
        assert_eq!(lead("/ordersome"), "/ordersome");
        assert_eq!(lead("/api/v1/orders"), "/api/v1/orders");
    }

    async fn start(router: Router, header_timeout: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut settings = config::Config::for_testing(folder.path()).http;
        settings.header_timeout = header_timeout;
        Server::start(listener, router, &settings, None).unwrap()
    }

    #[tokio::test]
    async fn a_half_sent_head_is_cut_off() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let server = start(Router::new(), Duration::from_millis(100)).await;
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    }

    #[tokio::test]
    async fn an_open_request_may_finish_when_the_server_stops() {
        let started = Arc::new(tokio::sync::Notify::new());
        let go_on = Arc::new(tokio::sync::Notify::new());
        let (inside, released) = (started.clone(), go_on.clone());
        let handler = move || async move {
            inside.notify_one();
            released.notified().await;
            "done"
        };
        let router = Router::new().fallback(handler);
        let server = start(router, Duration::from_secs(5)).await;
        let url = format!("http://{}/", server.address());
        let request =
            tokio::spawn(async move { http_client().build()?.get(url).send().await?.text().await });
        started.notified().await;
        let stopping = tokio::spawn(server.stop(Duration::from_secs(10)));
        go_on.notify_one();
        assert_eq!(request.await.unwrap().unwrap(), "done");
        assert!(stopping.await.unwrap());
    }
}
