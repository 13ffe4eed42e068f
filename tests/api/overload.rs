//! More work than can be done: what fits is done, the rest is refused at once, and when it is over
//! everything is as before (S1-53, S1-174).

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Answer, Client, Load, Outcome, PRICE, Person, Server, Start, percentile};

/// Listings whose prices the load changes.
const LISTINGS: usize = 16;
/// How long each append takes in the overload test: so long that two processors can ask for five
/// times what fits, also while they have other things to do.
const APPEND_MS: u64 = 2_000;
/// Events of a change: its own two, and later the word of the search that it found it.
const EVENTS: f64 = 3.0;
/// What one append of 500 rows can hold, as commands a second.
const CAPACITY: f64 = 500.0 / EVENTS * 1000.0 / APPEND_MS as f64;
/// The bound on what is in flight from outside in one partition.
const IN_FLIGHT_MAX: f64 = 2_000.0;

struct Market {
    server: Server,
    seller: Person,
    listings: Vec<String>,
}

async fn market(listings: usize) -> Market {
    // The capacity is that of one writer.
    let server = Start::default().partitions(1).start().await;
    let seller = server.seller("Sam").await;
    let mut ids = Vec::new();
    for _ in 0..listings {
        ids.push(server.listing(&seller, 100).await);
    }
    server.at_rest().await;
    Market { server, seller, listings: ids }
}

/// Gives a listing a price that it has not had.
async fn reprice(client: Client, listing: String, number: u64) -> Result<Answer, reqwest::Error> {
    let amount = PRICE + 1 + i64::try_from(number).unwrap();
    let body = json!({ "price": { "amount": amount, "currency": "VND" } }).to_string();
    let path = format!("/api/v1/listings/{listing}");
    client.if_match("*").try_send(Method::PATCH, &path, Some(body.into())).await
}

impl Market {
    /// How many events the journal's appends had on average while `work` went on. How many a second that are
    /// is also the machine's affair, which has to refuse the rest meanwhile.
    async fn events_per_append<T>(&self, work: impl Future<Output = T>) -> (T, f64) {
        let told = async |of: &str| {
            let name = format!("souk_journal_batch_events_{of}");
            self.server.metric_of(&name).await.unwrap()
        };
        let (events, appends) = (told("sum").await, told("count").await);
        let done = work.await;
        (done, (told("sum").await - events) / (told("count").await - appends))
    }

    async fn load(&self, times_capacity: f64, seconds: u64) -> Outcome {
        let load = Load { rate: CAPACITY * times_capacity, lasts: Duration::from_secs(seconds) };
        let offset = (times_capacity * 1e7) as u64;
        let ask = |number: u64| {
            let listing = self.listings[number as usize % LISTINGS].clone();
            reprice(self.seller.client.clone(), listing, offset + number)
        };
        load.run(ask).await
    }

    /// The most that was in flight from outside while `work` went on.
    async fn most_in_flight<T>(&self, work: impl Future<Output = T>) -> (T, f64) {
        let mut most: f64 = 0.0;
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return (done, most),
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    let now = self.server.metric("souk_commands_in_flight", "origin=\"outside\"").await;
                    most = most.max(now);
                }
            }
        }
    }
}

/// Whatever the load was answered: done, or refused with a time to come again. Or, where the machine
/// had no time left for what was taken in, that it is not known.
fn only_done_or_refused(outcome: &Outcome) {
    let statuses: BTreeSet<u16> = outcome.samples.iter().map(|sample| sample.status).collect();
    let errors = &outcome.errors;
    assert!(statuses.is_subset(&BTreeSet::from([200, 503, 504])), "{statuses:?} {errors:?}");
    let refused = outcome.with(|status| status == 503);
    assert!(refused.iter().all(|sample| sample.retry_after), "a refusal says when to come again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_five_times_the_capacity_as_much_is_done_as_at_once_the_capacity() {
    let market = market(LISTINGS).await;
    let server = &market.server;
    let buyer = server.buyer("Bea").await;
    let bought = server.listing(&market.seller, 5).await;
    server.at_rest().await;
    let fault = server.fault("journal", "delay", json!({ "delay_ms": APPEND_MS })).await;
    // What an append takes is learned from appends: until then more is taken in than fits.
    let learning = market.load(1.5, 6).await;
    let (once, once_events) = market.events_per_append(market.load(1.0, 12)).await;
    // A purchase that is under way while the load comes.
    let order = server.place_order(&buyer.client, &bought, 1, "sandbox").await;
    let (twice, twice_events) = market.events_per_append(market.load(2.0, 12)).await;
    let before = server.memory();
    let work = market.most_in_flight(market.load(5.0, 12));
    let ((five, in_flight), five_events) = market.events_per_append(work).await;
    let after = server.memory();
    let [once_done, twice_done, _] = [&once, &twice, &five].map(|outcome| {
        only_done_or_refused(outcome);
        let done = outcome.goodput_by_batches(Duration::from_millis(APPEND_MS / 2));
        eprintln!("{}; {done:.0}/s done by batches", outcome.summary());
        done
    });
    eprintln!("in flight at most {in_flight}; memory {before} KiB, then {after} KiB");
    eprintln!("{once_events:.0}, {twice_events:.0} and {five_events:.0} events an append");
    let peak = once_done.max(twice_done);
    assert!(peak > 0.5 * CAPACITY, "the load was none: {}", once.summary());
    let most = once_events.max(twice_events);
    assert!(five_events >= 0.8 * most, "{five_events} and not {most}: {}", five.summary());
    assert!(in_flight <= IN_FLIGHT_MAX, "{in_flight}");
    assert!(after < before + 96 * 1024, "memory grew from {before} to {after} KiB");

    // Afterwards: everything is as it should be.
    server.mend(fault).await;
    reprice(market.seller.client.clone(), bought, 0).await.unwrap().expect(200);
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let loads = [&learning, &once, &twice, &five];
    let answered = |with: u16| -> usize {
        loads.iter().map(|of| of.with(|status| status == with).len()).sum()
    };
    let (done, unknown) = (answered(200), answered(504));
    let changes = server.events_counted("catalog.price.changed").await;
    assert!((done + 1..=done + 1 + unknown).contains(&changes), "what was refused did not happen");
    market.server.finish().await;
}

/// S1-174, on one aggregate that everybody wants, while the store stands still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_do_not_wait_for_a_journal_that_stands_still() {
    let market = market(2).await;
    let server = &market.server;
    let (hot, cool) = (market.listings[0].clone(), &market.listings[1]);
    server.fault("journal", "delay", json!({ "delay_ms": 6_000, "times": 1 })).await;
    let start = Instant::now();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut running = JoinSet::new();
    for number in 0..1_300 {
        let (client, hot) = (market.seller.client.clone(), hot.clone());
        let answered = answered.clone();
        running.spawn(async move {
            let answer = reprice(client, hot, number).await.unwrap();
            (answer, answered.fetch_add(1, Ordering::SeqCst), start.elapsed())
        });
    }
    // Nobody else is troubled: a read of another aggregate answers while the journal stands still.
    let other = server.listing_now(cool).await;
    let before_it = answered.load(Ordering::SeqCst);
    assert_eq!(other["listing_id"], cool.as_str());
    let mut refused = Vec::new();
    let mut done = Vec::new();
    while let Some(ended) = running.join_next().await {
        let (answer, place, took) = ended.unwrap();
        match answer.status() {
            200 => done.push(place),
            503 => {
                let answer = answer.problem(503, "overloaded");
                assert!(!answer.header("retry-after").is_empty());
                refused.push((place, took));
            }
            _ => panic!("{answer:?}"),
        }
    }
    assert!(before_it <= refused.len(), "the read waited for the journal");
    assert!(!refused.is_empty() && !done.is_empty(), "{} {}", refused.len(), done.len());
    let last_refusal = refused.iter().map(|(place, _)| *place).max().unwrap();
    let first_done = done.iter().copied().min().unwrap();
    assert!(last_refusal < first_done, "a refusal waited: {last_refusal} {first_done}");
    let counted = server.metric("souk_commands_refused_total", "reason=\"overloaded\"").await;
    assert_eq!(counted as usize, refused.len(), "every refusal is counted");
    eprintln!("{} refused, all within {:?}", refused.len(), refused.iter().map(|of| of.1).max());
    server.at_rest().await;
    let depth = server.metric("souk_mailbox_depth", "aggregate_type=\"listing\"").await;
    assert_eq!(depth, 0.0, "nothing is left in a mailbox");
    market.server.finish().await;
}

/// S1-156. No memory is filled for it: whatever the service uses is more than this limit.
#[tokio::test]
async fn a_service_that_has_used_up_its_memory_takes_nothing_new_and_goes_on() {
    let server = Start::default().with("MEMORY_LIMIT_BYTES", 1 << 20).start().await;
    assert_eq!(server.metric_of("souk_memory_limit_bytes").await, Some(f64::from(1 << 20)));
    assert_eq!(server.metric_of("souk_memory_high").await, Some(1.0));
    server.logged(&["ERROR", "memory is almost used up", "MEMORY_LIMIT_BYTES"]).await;
    let refused = server.register("Ann").await.problem(503, "overloaded");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert!(refused.text("detail").contains("memory"), "{refused:?}");
    assert!(server.metric("souk_commands_refused_total", "reason=\"overloaded\"").await >= 1.0);
    // Whoever reads is answered, and so are probes and those who look after the service.
    for path in ["/api/v1/categories", "/api/v1/listings", "/livez", "/readyz"] {
        server.visitor().get(path).await.expect(200);
    }
    server.pause("notifications").await;
    server.resume("notifications").await;
    server.finish().await;

    let server = Start::default().with("MEMORY_LIMIT_BYTES", 0).start().await;
    server.register("Ann").await.expect(201);
    assert_eq!(server.metric_of("souk_memory_limit_bytes").await, None);
    assert_eq!(server.metric_of("souk_memory_high").await, Some(0.0));
    server.at_rest().await;
    server.finish().await;
}

/// As many as make the view fall behind by more than it has in hand.
const CHANGES: u64 = 2_400;

/// S1-53, seen from outside: a consumer that is far too slow costs neither memory nor events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_costs_nothing_but_its_own_lag() {
    let market = market(LISTINGS).await;
    let server = &market.server;
    let fault = server.fault("listings-view", "delay", json!({ "delay_ms": 8_000 })).await;
    let before = server.memory();
    // Each has one change under way: as many as the machine can do, and no more than are taken in.
    let next = Arc::new(AtomicU64::new(0));
    let mut askers = JoinSet::new();
    for _ in 0..32 {
        let (client, listings) = (market.seller.client.clone(), market.listings.clone());
        let next = next.clone();
        askers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= CHANGES {
                    break;
                }
                let listing = listings[number as usize % LISTINGS].clone();
                reprice(client.clone(), listing, number).await.unwrap().expect(200);
            }
        });
    }
    while let Some(ended) = askers.join_next().await {
        ended.unwrap();
    }
    let shown = server.subscription("listings-view").await["partitions"][0].clone();
    assert!(shown["in_flight"].as_u64() <= shown["max_in_flight"].as_u64(), "{shown}");
    let lag = shown["lag_events"].clone();
    assert!(lag.as_u64() > Some(1_000), "it is behind: {lag}");
    let after = server.memory();
    assert!(after < before + 64 * 1024, "memory grew from {before} to {after} KiB");
    eprintln!("lag {lag}; memory {before} KiB, then {after} KiB");
    server.mend(fault).await;
    server.at_rest().await;
    let page = server.visitor().get("/api/v1/listings?limit=200").await.expect(200);
    let shown: Vec<&Value> = page.items().iter().collect();
    for listing in &market.listings {
        let row = shown.iter().find(|row| row["listing_id"] == listing.as_str()).unwrap();
        let now = server.listing_now(listing).await;
        assert_eq!(row["price"], now["price"], "the view of {listing}");
    }
    market.server.finish().await;
}

/// Percentiles are of what was asked for, counted from when it was due.
#[tokio::test(start_paused = true)]
async fn a_stall_shows_in_every_request_that_was_due_meanwhile() {
    let server_is_free = Arc::new(tokio::sync::Mutex::new(()));
    let start = Instant::now();
    let load = Load { rate: 100.0, lasts: Duration::from_secs(1) };
    let outcome = load
        .run(|number| {
            let free = server_is_free.clone();
            async move {
                let _turn = free.lock().await;
                let stall = if number == 10 { 500 } else { 1 };
                tokio::time::sleep(Duration::from_millis(stall)).await;
                Ok(Answer::for_testing(200))
            }
        })
        .await;
    assert!(start.elapsed() >= Duration::from_millis(990));
    assert_eq!(outcome.samples.len(), 100);
    // Half of them were due while the one was stalling: they waited, on average, half of that.
    assert!(percentile(&outcome.samples, 75) > Duration::from_millis(200));
    assert!(percentile(&outcome.samples, 25) < Duration::from_millis(20));
}
