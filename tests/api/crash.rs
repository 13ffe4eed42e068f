//! The server is killed with -9 at random moments, under load, again and again; its clients repeat
//! their requests with the same keys. Nothing that was acknowledged may be lost or doubled, and in
//! the end money, stock and every subscriber's view must agree with the journal.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::{Answer, Client, Server, Start, eventually, wish};

/// How often the server is killed.
const KILLS: usize = 25;
/// Clients at the same time.
const CLIENTS: u64 = 8;
/// Listings, each with this much stock.
const LISTINGS: usize = 4;
const STOCK: u32 = 100_000;

/// What the clients were promised.
#[derive(Default)]
struct Ledger {
    /// Key of a `POST /orders` to the id that was answered.
    orders: HashMap<String, String>,
    /// Orders whose cancellation was acknowledged.
    cancelled: BTreeSet<String>,
    /// Addresses whose registration was acknowledged, with the user's id.
    users: HashMap<String, String>,
}

#[derive(Default)]
struct Counts {
    attempts: AtomicU64,
    successes: AtomicU64,
}

struct World {
    buyer: Client,
    visitor: Client,
    listings: Vec<String>,
    ledger: Mutex<Ledger>,
    counts: Counts,
    stop: AtomicBool,
}

impl World {
    /// Sends a request with a key until it is answered for good.
    async fn insist(&self, client: &Client, path: &str, key: &str, body: &Value) -> Answer {
        let client = client.keyed(key);
        let mut wait = Duration::from_millis(50);
        loop {
            self.counts.attempts.fetch_add(1, Ordering::Relaxed);
            let sent = client.try_send(Method::POST, path, Some(body.to_string().into())).await;
            match sent {
                Ok(answer) if answer.status() < 500 => {
                    self.counts.successes.fetch_add(1, Ordering::Relaxed);
                    return answer;
                }
                // The server is down or has just started: what a client would wait.
                _ => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_millis(400));
                }
            }
        }
    }

    async fn order(&self, key: &str, random: &mut StdRng) {
        let listing = &self.listings[random.random_range(0..LISTINGS)];
        let method = if random.random_bool(0.2) { "test_decline" } else { "sandbox" };
        let body = wish(listing, random.random_range(1..=3), method);
        let answer = self.insist(&self.buyer, "/api/v1/orders", key, &body).await.expect(201);
        let id = answer.text("order_id");
        let before = self.ledger.lock().await.orders.insert(key.to_owned(), id.clone());
        assert!(before.is_none_or(|before| before == id), "one key, two orders");
        if random.random_bool(0.3) {
            let path = format!("/api/v1/orders/{id}/cancel");
            let cancel = json!({ "reason": "changed my mind" });
            let cancel_key = format!("{key}-cancel");
            let cancelled = self.insist(&self.buyer, &path, &cancel_key, &cancel).await;
            match cancelled.status() {
                200 => assert!(self.ledger.lock().await.cancelled.insert(id.clone())),
                409 => {}
                _ => panic!("{cancelled:?}"),
            }
        }
        if random.random_bool(0.2) {
            let again = self.insist(&self.buyer, "/api/v1/orders", key, &body).await.expect(201);
            assert_eq!(again.text("order_id"), id);
        }
    }

    async fn register(&self, key: &str) {
        let address = format!("crash-{key}@example.org");
        let body = json!({
            "email": address,
            "password": "correct horse battery staple",
            "first_name": "Kim",
            "last_name": "Crash",
        });
        let answer = self.insist(&self.visitor, "/api/v1/users/register", key, &body).await;
        let id = answer.expect(201).text("user_id");
        self.ledger.lock().await.users.insert(address, id);
    }
}

async fn client(world: Arc<World>, number: u64) {
    let mut random = StdRng::seed_from_u64(number);
    let mut count = 0;
    while !world.stop.load(Ordering::Relaxed) {
        count += 1;
        let key = format!("client-{number}-{count}");
        if random.random_bool(0.05) {
            world.register(&key).await;
        } else {
            world.order(&key, &mut random).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_doubled_by_kill_9() {
    kill_again_and_again(1, KILLS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_with_several_partitions() {
    kill_again_and_again(3, KILLS / 3).await;
}

async fn kill_again_and_again(partitions: u16, kills: usize) {
    let mut server = Start::default().partitions(partitions).start().await;
    let (seller, buyer) = (server.seller("Sam").await, server.buyer("Bea").await);
    let mut listings = Vec::new();
    for _ in 0..LISTINGS {
        listings.push(server.listing(&seller, STOCK).await);
    }
    let world = Arc::new(World {
        buyer: buyer.client.clone(),
        visitor: server.visitor(),
        listings,
        ledger: Mutex::default(),
        counts: Counts::default(),
        stop: AtomicBool::new(false),
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(world.clone(), number));
    }
    let mut random = StdRng::seed_from_u64(u64::from(partitions));
    for _ in 0..kills {
        // In the middle of things: after so many answers more, and then at any moment.
        let answered = || world.counts.successes.load(Ordering::Relaxed);
        let enough = answered() + random.random_range(50..150);
        eventually("progress", || async { (answered() >= enough).then_some(()) }).await;
        tokio::time::sleep(Duration::from_micros(random.random_range(0..50_000))).await;
        server.kill_9_and_start_again().await;
    }
    world.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let ledger = std::mem::take(&mut *world.ledger.lock().await);
    settle(&server, &ledger).await;
    check_answers(&server, &world, &ledger).await;
    let verified = {
        assert!(server.terminate().await.success());
        server.command(&["journal", "verify"]).run()
    };
    assert_eq!(verified.code, 0, "{}{}", verified.output, verified.errors);
    check_journal(&server, &world.listings, &ledger).await;
    let attempts = world.counts.attempts.load(Ordering::Relaxed);
    let successes = world.counts.successes.load(Ordering::Relaxed);
    println!(
        "{kills} kills, {partitions} partitions: {} orders, {} cancelled, {} users acknowledged; {successes} of {attempts} attempts answered",
        ledger.orders.len(),
        ledger.cancelled.len(),
        ledger.users.len(),
    );
    assert!(successes * 2 >= attempts, "half of the attempts failed: the run says little");
    assert!(ledger.orders.len() > 100, "too little happened: {}", ledger.orders.len());
}

const FINAL: [&str; 5] = ["SHIPPED", "REJECTED", "PAYMENT_FAILED", "CANCELLED", "FAILED"];

/// Waits until every order has come to its end and every subscription is current.
async fn settle(server: &Server, ledger: &Ledger) {
    for id in ledger.orders.values() {
        ended(server, id).await;
    }
    server.at_rest().await;
    let letters = server.letters(None).await;
    assert!(letters.is_empty(), "nothing should have become a dead letter: {letters:#?}");
}

/// Waits until an order has come to its end, and says which.
async fn ended(server: &Server, id: &str) -> String {
    eventually(&format!("the end of order {id}"), || async {
        let status = server.order_now(id).await.text("status");
        FINAL.contains(&status.as_str()).then_some(status)
    })
    .await
}

/// Whatever was acknowledged is still so.
async fn check_answers(server: &Server, world: &World, ledger: &Ledger) {
    let distinct: BTreeSet<_> = ledger.orders.values().collect();
    assert_eq!(distinct.len(), ledger.orders.len(), "two keys, one order");
    for id in &ledger.cancelled {
        assert_eq!(server.order_now(id).await["status"], "CANCELLED");
    }
    for (address, id) in &ledger.users {
        let user = server.admin().get(&format!("/api/v1/users/{id}")).await.expect(200);
        assert_eq!(user.text("email"), *address);
    }
    for listing in &world.listings {
        let (available, reserved, sold) = server.stock(listing).await;
        assert_eq!((available + reserved + sold, reserved), (i64::from(STOCK), 0));
    }
}

/// An event as it is in the journal's file.
struct Stored {
    event_type: String,
    aggregate_id: String,
    version: i64,
    data: Value,
}

async fn open(folder: &Path, file: &str) -> SqliteConnection {
    let url = format!("sqlite://{}", folder.join(file).display());
    SqliteConnection::connect(&url).await.unwrap()
}

async fn events_in(folder: &Path) -> Vec<Stored> {
    let rows = sqlx::query(
        "SELECT event_type, aggregate_id, aggregate_version, data FROM events ORDER BY seq",
    )
    .fetch_all(&mut open(folder, "journal.db").await)
    .await
    .unwrap();
    let event = |row: &sqlx::sqlite::SqliteRow| Stored {
        event_type: row.get("event_type"),
        aggregate_id: Uuid::from_slice(row.get("aggregate_id")).unwrap().to_string(),
        version: row.get("aggregate_version"),
        data: serde_json::from_str(row.get("data")).unwrap(),
    };
    rows.iter().map(event).collect()
}

/// One order as its events tell it.
#[derive(Default)]
struct Told {
    placed: usize,
    captured: usize,
    refunded: usize,
    funded: i64,
    given_back: i64,
    amount: i64,
    quantity: i64,
    held: BTreeMap<String, i64>,
    last: String,
    confirmations: usize,
}

/// Reads the journal's file, past the service: versions, money, stock, views.
async fn check_journal(server: &Server, listings: &[String], ledger: &Ledger) {
    let events = events_in(server.folder()).await;
    let mut versions: HashMap<&str, i64> = HashMap::new();
    let mut orders: HashMap<String, Told> = HashMap::new();
    let mut registered: HashMap<&str, usize> = HashMap::new();
    let mut welcomed: HashMap<&str, usize> = HashMap::new();
    for event in &events {
        let version = versions.entry(&event.aggregate_id).or_default();
        *version += 1;
        assert_eq!(event.version, *version, "the versions of {} have a gap", event.aggregate_id);
        match event.event_type.as_str() {
            "user.registered" => *registered.entry(&event.aggregate_id).or_default() += 1,
            "notification.requested" if event.data["template"] == "welcome_verification" => {
                let user = event.data["user_id"].as_str().unwrap();
                *welcomed.entry(user).or_default() += 1;
            }
            _ => {}
        }
        if let Some(order) = event.data["order_id"].as_str() {
            tell(orders.entry(order.to_owned()).or_default(), event);
        }
    }
    for (key, id) in &ledger.orders {
        assert_eq!(orders.get(id).map(|told| told.placed), Some(1), "{key} {id}");
    }
    // A key that was never answered may have its order all the same, but only one.
    assert!(orders.values().all(|told| told.placed <= 1), "an order was placed twice");
    let mut sold = 0;
    for (id, told) in &orders {
        check_order(id, told);
        if told.last == "order.shipped" {
            sold += told.quantity;
        }
    }
    for (address, id) in &ledger.users {
        assert_eq!(registered.get(id.as_str()), Some(&1), "{address} is registered once");
        assert_eq!(welcomed.get(id.as_str()), Some(&1), "{address} is welcomed once");
    }
    check_views(server.folder(), listings, &orders, events.len(), sold).await;
}

/// The read models have seen every event.
async fn check_views(
    folder: &Path,
    listings: &[String],
    orders: &HashMap<String, Told>,
    events: usize,
    sold: i64,
) {
    let mut views = open(folder, "read.db").await;
    let indexed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM events_v1").fetch_one(&mut views).await.unwrap();
    assert_eq!(usize::try_from(indexed).unwrap(), events, "the index has every event once");
    let rows = sqlx::query("SELECT order_id, status FROM orders_v1").fetch_all(&mut views).await;
    let statuses: HashMap<String, String> =
        rows.unwrap().iter().map(|row| (row.get("order_id"), row.get("status"))).collect();
    assert_eq!(statuses.len(), orders.len());
    for (id, told) in orders {
        assert_eq!(statuses[id], status_of(&told.last), "the view of {id}");
    }
    let mut sold_in_view = 0;
    for listing in listings {
        let row =
            sqlx::query("SELECT available, reserved, sold FROM listings_v2 WHERE listing_id = $1")
                .bind(listing)
                .fetch_one(&mut views)
                .await
                .unwrap();
        let (available, reserved): (i64, i64) = (row.get("available"), row.get("reserved"));
        assert!(available >= 0 && reserved == 0, "{available} {reserved}");
        sold_in_view += row.get::<i64, _>("sold");
    }
    assert_eq!(sold_in_view, sold, "what is sold is what was shipped");
}

fn tell(told: &mut Told, event: &Stored) {
    let number = |name: &str| event.data[name].as_i64().unwrap_or(0);
    match event.event_type.as_str() {
        "order.placed" => {
            told.placed += 1;
            told.amount = number("amount");
            let items = event.data["items"].as_array().expect("items");
            told.quantity = items.iter().filter_map(|item| item["quantity"].as_i64()).sum();
        }
        "payment.captured" => told.captured += 1,
        "payment.refunded" => told.refunded += 1,
        "escrow.funded" => told.funded += number("amount"),
        "escrow.refunded" => told.given_back += number("amount"),
        "inventory.reserved" => {
            *told.held.entry(event.aggregate_id.clone()).or_default() += number("quantity");
        }
        "inventory.released" => {
            *told.held.entry(event.aggregate_id.clone()).or_default() -= number("quantity");
        }
        "notification.requested" if event.data["template"] == "order_confirmation" => {
            told.confirmations += 1;
        }
        _ => {}
    }
    if event.event_type.starts_with("order.") {
        told.last.clone_from(&event.event_type);
    }
}

fn check_order(id: &str, told: &Told) {
    let held: i64 = told.held.values().sum();
    assert!(told.captured <= 1, "{id} was charged twice");
    assert!(told.refunded <= told.captured, "{id} was refunded more than was taken");
    if told.last == "order.shipped" {
        assert_eq!((told.captured, told.refunded), (1, 0), "{id} shipped");
        assert_eq!((told.funded, told.given_back), (told.amount, 0), "{id} shipped");
        assert_eq!(held, told.quantity, "{id} shipped");
        assert_eq!(told.confirmations, 1, "{id} is confirmed by mail once");
    } else {
        assert_eq!(told.captured, told.refunded, "{id} {}: money was kept", told.last);
        assert_eq!(told.funded, told.given_back, "{id} {}: the escrow is not empty", told.last);
        assert_eq!(held, 0, "{id} {}: stock is held", told.last);
    }
}

fn status_of(event_type: &str) -> &'static str {
    match event_type {
        "order.shipped" => "SHIPPED",
        "order.rejected" => "REJECTED",
        "order.payment_failed" => "PAYMENT_FAILED",
        "order.cancelled" => "CANCELLED",
        "order.failed" => "FAILED",
        other => panic!("{other} is not an end"),
    }
}

/// A hundred buyers of the last unit at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_buyers_of_the_last_unit_one_gets_it() {
    for partitions in [1, 3] {
        let server = Start::default().partitions(partitions).start().await;
        let (seller, buyer) = (server.seller("Sam").await, server.buyer("Bea").await);
        let listing = server.listing(&seller, 1).await;
        let mut buyers = JoinSet::new();
        for _ in 0..100 {
            let (client, body) = (buyer.client.clone(), wish(&listing, 1, "sandbox"));
            buyers.spawn(async move { client.post("/api/v1/orders", &body).await });
        }
        let mut ends = BTreeMap::<String, usize>::new();
        for answer in buyers.join_all().await {
            match answer.status() {
                201 => {
                    *ends.entry(ended(&server, &answer.text("order_id")).await).or_default() += 1
                }
                _ => drop(answer.problem(409, "listing_unavailable")),
            }
        }
        assert_eq!(ends.remove("SHIPPED"), Some(1), "{ends:?}");
        assert!(ends.keys().all(|end| end == "REJECTED"), "{ends:?}");
        assert_eq!(server.stock(&listing).await, (0, 0, 1));
        server.finish().await;
    }
}
