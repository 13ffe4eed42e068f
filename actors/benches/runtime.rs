//! Commands through actors and journal, one hot aggregate and ten thousand, against the raw batched
//! inserts of the same store in the same run; and what a command is made of.
//!
//! ```text
//! cargo bench -p souk-actors --features testing
//! ```
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use souk_actors::aggregate::{Aggregate, Command, Rejection};
use souk_actors::broker::Broker;
use souk_actors::command::CommandContext;
use souk_actors::event::{EventPayload, StoredEvent};
use souk_actors::journal::Store;
use souk_actors::journal::chain;
use souk_actors::journal::codec::Keyring;
use souk_actors::journal::memory::MemoryStore;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::personal::Personal;
use souk_actors::runtime::{Options, Runtime};
use souk_actors::testing::{postgres, raw::RawInserts, stored_event};
use souk_actors::world::{SystemWorld, World};
use tempfile::TempDir;
use tokio::runtime::Runtime as Tokio;
use uuid::Uuid;

/// Commands under way at the same time: enough to fill the journal's batches.
const IN_FLIGHT: u64 = 1_000;
const AGGREGATES: [(&str, u64); 2] = [("hot", 1), ("spread", 10_000)];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Counted {
    by: u64,
    note: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Named {
    name: Personal<String>,
}

souk_actors::events! {
    /// What happens to counters.
    pub enum CounterEvent in "counters" as "counter-service" {
        /// It went up.
        Counted(Counted) = "counter.counted", "CounterCounted", 1.0, [];
        /// It belongs to somebody.
        Named(Named) = "counter.named", "CounterNamed", 1.0, [];
    }
}

#[derive(Debug)]
struct Count;

impl Command for Count {
    fn name(&self) -> &'static str {
        "Count"
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("never")]
struct Never;

impl Rejection for Never {
    fn code(&self) -> &'static str {
        "never"
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Counter {
    count: u64,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = Count;
    type Event = CounterEvent;
    type Rejection = Never;

    fn decide(&self, _: &Count) -> Result<Vec<CounterEvent>, Never> {
        // About as long as what a listing's change says.
        let note = "Ridden only on Sundays, and only when it does not rain. ".repeat(4);
        Ok(vec![CounterEvent::Counted(Counted { by: 1, note })])
    }

    fn apply(&mut self, event: &CounterEvent) {
        if let CounterEvent::Counted(Counted { by, .. }) = event {
            self.count += by;
        }
    }
}

/// A store in a place of its own.
struct Place {
    store: Arc<dyn Store>,
    _folder: Option<TempDir>,
}

const STORES: [&str; 3] = ["memory", "sqlite", "postgres"];

async fn open(kind: &str) -> Place {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let store: Arc<dyn Store> = match kind {
        "memory" => Arc::new(MemoryStore::new(1)),
        "sqlite" => {
            let path = folder.path().join("journal.db");
            Arc::new(SqliteStore::open(&path, 1).await.expect("a journal"))
        }
        _ => {
            let url = synced().create_database().await;
            let options = PostgresOptions::new(&url).expect("an address");
            Arc::new(PostgresStore::open(options, Some(1)).await.expect("a journal"))
        }
    };
    Place { store, _folder: Some(folder) }
}

/// A PostgreSQL as it is by default: commits are on disk.
fn synced() -> &'static postgres::Server {
    static SERVER: std::sync::OnceLock<postgres::Server> = std::sync::OnceLock::new();
    SERVER.get_or_init(|| postgres::Server::start(postgres::Options::default()))
}

async fn runtime(place: &Place) -> Runtime {
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let keys = Arc::new(Keyring::new(&[7; 32], world.clone()));
    let builder = Runtime::builder(place.store.clone(), world, keys, Options::default());
    builder.aggregate::<Counter>().start().await.expect("a runtime")
}

fn id(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number) + (1 << 100))
}

/// Runs `commands` commands, at most [`IN_FLIGHT`] at a time.
async fn run(runtime: &Runtime, commands: u64, aggregates: u64) -> Duration {
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..IN_FLIGHT.min(commands) {
        let (counters, next) = (runtime.aggregate::<Counter>(), next.clone());
        let world = runtime.world().clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= commands {
                    return;
                }
                let context = CommandContext::outside(&*world, "bench", "bench");
                let done = counters.send(id(number % aggregates), Count, context, |_| ()).await;
                done.expect("a count is never refused");
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task of the load ends well");
    }
    began.elapsed()
}

fn sample(aggregate: u64) -> Arc<StoredEvent> {
    let note = "Ridden only on Sundays, and only when it does not rain. ".repeat(4);
    let data = json!({ "by": 1, "note": note });
    let mut event = stored_event("counter.counted", "counter", id(aggregate), &data);
    event.stream = i64::try_from(aggregate + 1).expect("a small number");
    event.metadata = r#"{"service":"counter-service","version":"0.1.0","actor_id":"anonymous","tenant_id":"default"}"#.into();
    Arc::new(event)
}

fn commands(criterion: &mut Criterion) {
    let tokio = Tokio::new().expect("a runtime");
    for kind in STORES {
        let mut group = criterion.benchmark_group(kind);
        group.throughput(Throughput::Elements(1)).sample_size(10);
        group.measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_secs(1));
        for (name, aggregates) in AGGREGATES {
            let place = tokio.block_on(open(kind));
            let runtime = tokio.block_on(runtime(&place));
            // Every aggregate is live before the first sample.
            tokio.block_on(run(&runtime, aggregates, aggregates));
            group.bench_function(BenchmarkId::new("commands", name), |bencher| {
                bencher.iter_custom(|commands| tokio.block_on(run(&runtime, commands, aggregates)));
            });
            tokio.block_on(runtime.drain(Duration::from_secs(10)));
            let place = tokio.block_on(open(kind));
            let samples = (0..aggregates).map(sample).collect();
            let mut raw = tokio.block_on(RawInserts::new(place.store.clone(), samples));
            group.bench_function(BenchmarkId::new("raw inserts", name), |bencher| {
                bencher.iter_custom(|events| {
                    tokio.block_on(async {
                        let (mut left, mut used) =
                            (usize::try_from(events).unwrap_or(1), Duration::ZERO);
                        while left > 0 {
                            let (stored, time) = raw.append(left).await;
                            left -= stored;
                            used += time;
                        }
                        used
                    })
                });
            });
        }
        group.finish();
    }
}

fn parts(criterion: &mut Criterion) {
    let tokio = Tokio::new().expect("a runtime");
    let mut group = criterion.benchmark_group("parts");
    group.bench_function("decide, apply, encode", |bencher| {
        let mut counter = Counter::default();
        bencher.iter(|| {
            let events = counter.decide(&Count).expect("never refused");
            counter.apply(&events[0]);
            events[0].encode()
        });
    });
    let event = sample(1);
    group.bench_function("chain", |bencher| bencher.iter(|| chain::link(&[3; 32], &event)));
    let store = MemoryStore::new(1);
    let keys = Keyring::new(&[7; 32], Arc::new(SystemWorld::new()));
    let named = CounterEvent::Named(Named { name: Personal::new(id(1), "Ann".to_owned()) });
    for (name, json) in [("plain", event.data.to_string()), ("personal", named.encode())] {
        group.bench_function(BenchmarkId::new("seal", name), |bencher| {
            bencher.iter(|| {
                let mut new = Vec::new();
                tokio.block_on(keys.seal(&store, id(2), json.clone(), &mut new)).expect("a key")
            });
        });
    }
    group.finish();
    fan_out(criterion, &tokio);
}

/// From the broker to sixteen routes, none of which wants the events: what every batch costs.
fn fan_out(criterion: &mut Criterion, tokio: &Tokio) {
    use souk_actors::broker::{Pattern, Route};
    let (broker, handle) = Broker::new();
    let routes: Vec<_> = (0..16)
        .map(|_| Arc::new(Route::new(vec![Pattern::parse("order.*").expect("a pattern")])))
        .collect();
    routes.iter().for_each(|route| handle.add(route.clone()));
    tokio.spawn(async move { broker.run().await });
    let mut position = 0;
    let mut group = criterion.benchmark_group("broker");
    group.throughput(Throughput::Elements(100));
    group.bench_function("a batch of 100 past 16 routes", |bencher| {
        bencher.iter_custom(|batches| {
            let mut used = Duration::ZERO;
            for _ in 0..batches {
                let batch = batch(&mut position);
                let began = Instant::now();
                handle.committed(batch);
                tokio.block_on(async {
                    while routes[15].news().0 < position {
                        tokio::task::yield_now().await;
                    }
                });
                used += began.elapsed();
            }
            used
        });
    });
    group.finish();
}

fn batch(position: &mut u64) -> Vec<Arc<StoredEvent>> {
    let event = sample(1);
    let events = (0..100).map(|_| {
        *position += 1;
        Arc::new(StoredEvent { position: *position, ..StoredEvent::clone(&event) })
    });
    events.collect()
}

criterion_group!(benches, parts, commands);
criterion_main!(benches);
