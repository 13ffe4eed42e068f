//! Connections that break (S1-170): in the middle of the request, in the middle of the answer. Who
//! repeats the request with its key gets the first answer, and there is one effect.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use souk::tls::http_client;

use crate::support::{Client, Server, wish};

/// How often each test breaks a connection.
const TIMES: usize = 40;

/// Stands between a client and the server, and breaks each connection after so many bytes.
struct Breaker {
    url: String,
    /// Bytes of the request that get through; then the connection is reset.
    request_bytes: Arc<AtomicUsize>,
    /// Bytes of the answer that get through; then the connection is reset.
    answer_bytes: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Breaker {
    async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let target = server.trim_start_matches("http://").to_owned();
        let limits = [usize::MAX; 2].map(|limit| Arc::new(AtomicUsize::new(limit)));
        let [request_bytes, answer_bytes] = limits;
        let (request, answer) = (request_bytes.clone(), answer_bytes.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                let request = request.load(Ordering::SeqCst);
                let answer = answer.load(Ordering::SeqCst);
                tokio::spawn(pass(client, server, request, answer));
            }
        });
        Self { url, request_bytes, answer_bytes, task }
    }

    fn breaks_after(&self, request_bytes: usize, answer_bytes: usize) {
        self.request_bytes.store(request_bytes, Ordering::SeqCst);
        self.answer_bytes.store(answer_bytes, Ordering::SeqCst);
    }

    /// A client whose connections go through here. It opens one for each request.
    fn client(&self, token: &str) -> Client {
        Client::new(http_client().build().unwrap(), Arc::new(RwLock::new(self.url.clone())))
            .with_token(token)
            .with("connection", "close")
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on both ways until one of the limits is reached; dropping both ends breaks both.
async fn pass(client: TcpStream, server: TcpStream, request: usize, answer: usize) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        copy_some(&mut from_client, &mut to_server, request).await;
        if request == usize::MAX {
            // The client has said all that it will; the answer is still to come.
            std::future::pending::<()>().await;
        }
    };
    let down = copy_some(&mut from_server, &mut to_client, answer);
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn copy_some(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut limit: usize,
) {
    let mut buffer = [0; 4096];
    while limit > 0 {
        let most = limit.min(buffer.len());
        match from.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                limit -= read;
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn an_order_whose_connection_broke_is_placed_once_and_answered_on_repeat() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1_000).await;
    let breaker = Breaker::before(&server.url()).await;
    let fragile = breaker.client(&bea.access_token);
    let body = wish(&listing, 1, "sandbox");
    let (mut broken, mut had_effect) = (0, 0);
    for number in 0..2 * TIMES {
        // Every other one breaks in the request, at another byte each time, the rest in the answer.
        if number % 2 == 0 {
            breaker.breaks_after(number * 25, usize::MAX);
        } else {
            breaker.breaks_after(usize::MAX, number * 20);
        }
        let key = format!("order {number}");
        let sent = fragile
            .keyed(&key)
            .try_send(Method::POST, "/api/v1/orders", Some(body.to_string().into()))
            .await;
        let keyed = bea.client.keyed(&key);
        let repeated = keyed.post("/api/v1/orders", &body).await.expect(201);
        let order = repeated.text("order_id");
        match sent {
            Ok(answer) => assert_eq!(answer.expect(201).text("order_id"), order),
            Err(_) => {
                broken += 1;
                had_effect += usize::from(repeated.header("idempotent-replayed") == "true");
            }
        }
        let again = keyed.post("/api/v1/orders", &body).await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.text("order_id"), order);
    }
    assert!(broken > TIMES, "only {broken} connections broke");
    assert!(had_effect > 0 && had_effect < broken, "{had_effect} of {broken}");
    server.at_rest().await;
    let placed = server.events("eventType=order.placed").await;
    assert_eq!(placed.len(), 2 * TIMES, "one order for each key");
    let (available, reserved, sold) = server.stock(&listing).await;
    let bought = i64::try_from(2 * TIMES).unwrap();
    assert_eq!((available, reserved, sold), (1_000 - bought, 0, bought));
    eprintln!(
        "{broken} connections broke; {had_effect} requests had had their effect all the same"
    );
    server.finish().await;
}

/// Without a key there is nothing to repeat by, but nothing is done by halves either: a request that
/// did not arrive whole has no effect, one that did has all of it.
#[tokio::test]
async fn a_request_that_did_not_arrive_whole_has_no_effect() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let breaker = Breaker::before(&server.url()).await;
    let fragile = breaker.client(&sam.access_token);
    let offer = server.offer(3).await.to_string();
    for number in 0..TIMES {
        // In the head at first, then in the body.
        breaker.breaks_after(200 + number * 8, usize::MAX);
        let body = Some(offer.clone().into_bytes());
        let sent = fragile.try_send(Method::POST, "/api/v1/listings", body).await;
        assert!(sent.is_err(), "{sent:?}");
    }
    server.at_rest().await;
    assert_eq!(server.events("eventType=listing.created").await.len(), 0);
    server.visitor().get("/readyz").await.expect(200);
    server.finish().await;
}
