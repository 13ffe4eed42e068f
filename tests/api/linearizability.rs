//! What clients see of one listing can have happened one after the other, also while its journal
//! fails, loses answers and dawdles, and its subscribers panic: no stale read, no lost update.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::json;
use souk::chaos::linearizability::{
    Answer as Seen, Call, Held, Operation, Recorder, Register, Verdict, check,
};
use tokio::task::JoinSet;

use crate::support::{Answer, Client, PRICE, Server, Start, eventually};

/// Clients of one listing at the same time.
const CLIENTS: u64 = 10;
/// A new price is two events.
const EVENTS_PER_WRITE: u64 = 2;

type History = Recorder<Call, Seen>;

struct Shopper {
    number: u64,
    client: Client,
    path: String,
    history: Arc<History>,
    next_price: Arc<AtomicI64>,
    /// Writes that were answered, of all together.
    written: Arc<AtomicUsize>,
    /// And those that were refused because the journal took nothing.
    refused: Arc<AtomicUsize>,
    random: StdRng,
    /// The newest version that this one has seen.
    version: u64,
}

fn version_of(answer: &Answer) -> u64 {
    answer.header("etag").trim_matches('"').parse().unwrap()
}

fn held(answer: &Answer) -> Held {
    Held { value: answer["price"]["amount"].as_i64().unwrap(), version: version_of(answer) }
}

impl Shopper {
    async fn act(&mut self) {
        let call = match self.random.random_range(0..10) {
            0..4 => Call::Read,
            pick => Call::Write {
                value: self.next_price.fetch_add(1, Ordering::SeqCst),
                expected: (pick < 8).then_some(self.version),
            },
        };
        let started = self.history.invoked(self.number, call);
        let answer = match call {
            Call::Read => self.client.try_send(Method::GET, &self.path, None).await,
            Call::Write { value, expected } => {
                let body = json!({ "price": { "amount": value, "currency": "VND" } }).to_string();
                let tag = expected.map_or("*".to_owned(), |version| format!("\"{version}\""));
                let client = self.client.if_match(&tag);
                client.try_send(Method::PATCH, &self.path, Some(body.into())).await
            }
        };
        let Ok(answer) = answer else { return };
        let seen = match (answer.status(), call) {
            (200, Call::Read) => Seen::Found(held(&answer)),
            (200, Call::Write { value, .. }) => {
                let now = held(&answer);
                assert_eq!(now.value, value, "the answer to a write is of the write");
                self.written.fetch_add(1, Ordering::SeqCst);
                Seen::Written { version: now.version }
            }
            (412, _) => Seen::Mismatch { current: answer["current_version"].as_u64() },
            (503, _) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Seen::NotDone
            }
            // Nobody knows.
            (500 | 504, _) => return,
            _ => panic!("{answer:?}"),
        };
        if let Seen::Found(Held { version, .. })
        | Seen::Written { version }
        | Seen::Mismatch { current: Some(version) } = seen
        {
            self.version = self.version.max(version);
        }
        self.history.answered(&started, seen);
    }
}

/// A listing and what its clients saw of it.
struct Scene {
    seller: Client,
    listing: String,
    start: Held,
    history: Arc<History>,
    next_price: Arc<AtomicI64>,
    written: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Scene {
    async fn open(server: &Server) -> Self {
        let seller = server.seller("Sam").await;
        let listing = server.listing(&seller, 10).await;
        let start = held(&server.listing_now(&listing).await);
        let next_price = Arc::new(AtomicI64::new(PRICE + 1));
        let (history, written, refused) = (Arc::default(), Arc::default(), Arc::default());
        let seller = seller.client.clone();
        Self { seller, listing, start, history, next_price, written, refused }
    }

    /// One who has seen the listing at a version.
    fn shopper(&self, number: u64, seed: u64, version: u64) -> Shopper {
        Shopper {
            number,
            client: self.seller.clone(),
            path: format!("/api/v1/listings/{}", self.listing),
            history: self.history.clone(),
            next_price: self.next_price.clone(),
            written: self.written.clone(),
            refused: self.refused.clone(),
            random: StdRng::seed_from_u64(seed),
            version,
        }
    }

    async fn now(&self, server: &Server) -> Held {
        held(&server.listing_now(&self.listing).await)
    }

    /// A last look, and all that was seen.
    async fn end(self, server: &Server) -> (Register, Vec<Operation<Call, Seen>>) {
        let last = self.history.invoked(CLIENTS, Call::Read);
        self.history.answered(&last, Seen::Found(self.now(server).await));
        let start = self.start;
        let model = Register { start, events_per_write: EVENTS_PER_WRITE, others_write: false };
        (model, self.history.history())
    }
}

/// Ten clients at one listing while `meanwhile` goes on, and until so many writes are answered; what
/// they saw.
async fn crowd(
    server: &Server,
    meanwhile: impl AsyncFnOnce(&Scene),
    writes: usize,
) -> (Register, Vec<Operation<Call, Seen>>) {
    let scene = Scene::open(server).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = JoinSet::new();
    for number in 0..CLIENTS {
        let mut shopper = scene.shopper(number, number, scene.start.version);
        let stop = stop.clone();
        running.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                shopper.act().await;
            }
        });
    }
    meanwhile(&scene).await;
    eventually("enough to be checked", || async {
        (scene.written.load(Ordering::SeqCst) >= writes).then_some(())
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    running.join_all().await;
    server.at_rest().await;
    scene.history.settled();
    scene.end(server).await
}

/// All is well, and there was something to be checked.
fn all_is_well(model: &Register, history: &[Operation<Call, Seen>], at_least: usize) {
    let of = |wanted: fn(&Seen) -> bool| {
        let answered =
            |of: &&Operation<Call, Seen>| of.answered.is_some_and(|(_, seen)| wanted(&seen));
        history.iter().filter(answered).count()
    };
    let written = of(|seen| matches!(seen, Seen::Written { .. }));
    let found = of(|seen| matches!(seen, Seen::Found(_)));
    let mismatched = of(|seen| matches!(seen, Seen::Mismatch { .. }));
    eprintln!(
        "{} operations: {written} written, {found} found, {mismatched} refused",
        history.len()
    );
    assert!(written >= at_least && found >= at_least, "{written} {found}");
    assert!(mismatched > 0, "two never wanted the same");
    match check(model, history) {
        Verdict::Linearizable => {}
        Verdict::Violated(violation) => panic!("{}", violation.explain(history)),
        Verdict::Undecided { operation } => panic!("too much was unknown at {operation}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ten_clients_see_of_a_listing_is_linearizable() {
    let server = Server::start().await;
    let pause = async |_: &Scene| tokio::time::sleep(Duration::from_secs(2)).await;
    let (model, history) = crowd(&server, pause, 50).await;
    all_is_well(&model, &history, 50);
    // The checker would have noticed: one read is made to be an older one.
    let mut planted = history.clone();
    let reads = |of: &&mut Operation<Call, Seen>| matches!(of.answered, Some((_, Seen::Found(_))));
    let stale = planted.iter_mut().rfind(reads).unwrap();
    stale.answered = stale.answered.map(|(at, _)| (at, Seen::Found(model.start)));
    assert!(!check(&model, &planted).is_linearizable());
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_so_it_is_while_the_journal_fails() {
    let server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let faults = async |scene: &Scene| {
        for _ in 0..3 {
            for (mode, more) in [
                ("delay", json!({ "delay_ms": 60, "times": 2 })),
                ("fail", json!({ "times": 2 })),
                ("lose_answer", json!({ "times": 3 })),
            ] {
                server.fault("journal", mode, more).await;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            // Until the writer has given up: what it held then is refused.
            let refused = scene.refused.load(Ordering::SeqCst);
            let lasting = server.fault("journal", "fail", json!({})).await;
            eventually("a write is refused", || async {
                (scene.refused.load(Ordering::SeqCst) > refused).then_some(())
            })
            .await;
            server.mend(lasting).await;
        }
    };
    let (model, history) = crowd(&server, faults, 50).await;
    all_is_well(&model, &history, 50);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_so_it_is_when_the_server_is_killed() {
    let mut server = Server::start().await;
    let scene = Scene::open(&server).await;
    for round in 0..4 {
        let version = scene.now(&server).await.version;
        let mut running = JoinSet::new();
        for number in 0..CLIENTS {
            let mut shopper = scene.shopper(number, round * CLIENTS + number, version);
            running.spawn(async move {
                // Until the server is gone.
                loop {
                    shopper.act().await;
                    let gone = shopper.client.try_send(Method::GET, "/livez", None).await.is_err();
                    if gone {
                        return;
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill_9();
        running.join_all().await;
        scene.history.settled();
        server.start_again().await;
    }
    let (model, history) = scene.end(&server).await;
    all_is_well(&model, &history, 30);
    assert!(history.iter().any(|of| of.answered.is_none()), "nobody was interrupted");
    server.finish().await;
}
