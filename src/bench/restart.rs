//! What a long journal costs: how soon a server is ready that starts on it, how soon aggregates answer
//! that are not in memory, and what a command costs, at one size after another.
//!
//! The journal grows over HTTP, like any other: by changes of the listings, or sooner by batches of
//! published events. At each size the server is killed and started again on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::Client;
use super::in_folder;
use super::load::{self, Asked, Load, Outcome, Script, Until};
use super::market::Market;
use super::place::{Place, StoreKind, at_rest, heads};
use super::progress::say;
use super::report::Percentiles;
use super::scripts::{self, Change, Pick, shown};
use super::server::Server;
use super::tally;

/// How many connections write the journal's events beforehand.
const WRITERS: usize = 256;
/// How many changes are made with one login.
const STRETCH: u64 = 1_000_000;
/// How many connections publish batches, and under how many keys.
const PUBLISHERS: usize = 8;
const KEYS: u64 = 10_000;
/// How many listings that are not in memory are read one after the other, at most.
const COLD_MAX: usize = 500;
/// How many connections read others of them at the same time, and how many listings at most: as many as
/// are kept in memory.
const COLD_AT_ONCE: usize = 64;
const COLD_AT_ONCE_MAX: usize = 40_000;
/// How many listings the log is searched for.
const SEARCHED: usize = 50;
/// How many connections the load has whose cost is measured.
const CONNECTIONS: usize = 16;
/// How often to look whether the server is ready, and for how long.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const READY_WITHIN: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many events the journal has, from the fewest on.
    pub sizes: Vec<u64>,
    /// How many listings they are about.
    pub listings: usize,
    /// By batches of how many published events the journal grows; none: by changes of the listings.
    pub batch: Option<u64>,
    /// How long the load is timed.
    pub time: Duration,
    /// Which store.
    pub store: StoreKind,
    /// Where the files of the measurement go; a folder of its own is made in it and deleted.
    pub folder: PathBuf,
}

/// What a journal of one size costs.
#[derive(Debug, Clone, Serialize)]
pub struct Size {
    /// How many events it has.
    pub events: u64,
    /// From the start of the process until it is ready, in milliseconds.
    pub ready_ms: f64,
    /// Listings that are not in memory, read one after the other.
    pub cold: Percentiles,
    /// The same, 64 at a time.
    pub cold_at_once: Percentiles,
    /// By how much the server's memory grew with each of the second half of these, in KiB: what an
    /// aggregate costs that is in memory and idle. The first half filled the stores' caches.
    pub live_kib: Option<f64>,
    /// Searches of the log, one after the other.
    pub lookups: Lookups,
    /// Changes of all listings in turn: how long they take.
    pub change: Percentiles,
    /// How many there are a second.
    pub changes_per_second: f64,
    /// The server's processor time for one, in microseconds.
    pub cpu_us: Option<f64>,
}

/// How long searches of the log take; each finds a page.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Lookups {
    /// Events of one listing.
    pub aggregate_id: Percentiles,
    /// Events of one request.
    pub correlation_id: Percentiles,
    /// Requests of one trace of the W3C's.
    pub trace_id: Percentiles,
    /// Events of the type that most have, from some time on.
    pub event_type: Percentiles,
    /// Events of a type that none has.
    pub rare_event_type: Percentiles,
}

impl Lookups {
    fn named(&self) -> [(&'static str, Percentiles); 5] {
        [
            ("aggregate_id", self.aggregate_id),
            ("correlation_id", self.correlation_id),
            ("trace_id", self.trace_id),
            ("event_type", self.event_type),
            ("event_type without events", self.rare_event_type),
        ]
    }
}

/// A whole measurement.
#[derive(Debug, Clone, Serialize)]
pub struct RestartReport {
    /// `sqlite` or `postgres`.
    pub store: &'static str,
    /// How many listings the events are about.
    pub listings: usize,
    /// By batches of how many published events the journal grew; none: by changes of the listings.
    pub batch: Option<u64>,
    /// Size after size.
    pub sizes: Vec<Size>,
}

impl RestartReport {
    /// As tables in Markdown. The last column of the first is what a command costs, as a share of the
    /// first size.
    pub fn table(&self) -> String {
        let grown = match self.batch {
            Some(batch) => format!("batches of {batch} published events"),
            None => "changes of them".to_owned(),
        };
        let mut text = format!("{}, {} listings, grown by {grown}\n\n", self.store, self.listings);
        text.push_str("| events | ready ms | cold p50 ms | cold p99 ms | cold, 64 at once, p99 ms | KiB each | changes a second | p50 ms | p99 ms | cpu µs | cost |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
        let first = self.sizes.first();
        for size in &self.sizes {
            let cost = match first.and_then(|first| first.cpu_us).zip(size.cpu_us) {
                Some((first, now)) if first > 0.0 => format!("{:.2}", now / first),
                _ => "–".to_owned(),
            };
            text.push_str(&format!(
                "| {} | {:.0} | {:.2} | {:.2} | {:.2} | {} | {:.0} | {:.2} | {:.2} | {} | {cost} |\n",
                size.events,
                size.ready_ms,
                size.cold.p50_ms,
                size.cold.p99_ms,
                size.cold_at_once.p99_ms,
                super::report::number(size.live_kib, 1),
                size.changes_per_second,
                size.change.p50_ms,
                size.change.p99_ms,
                super::report::number(size.cpu_us, 0),
            ));
        }
        text.push_str("\n| events | search by | p50 ms | p95 ms | max ms |\n");
        text.push_str("| --- | --- | --- | --- | --- |\n");
        for size in &self.sizes {
            for (name, times) in size.lookups.named() {
                let (p50, p95, max) = (times.p50_ms, times.p95_ms, times.max_ms);
                text.push_str(&format!(
                    "| {} | {name} | {p50:.2} | {p95:.2} | {max:.2} |\n",
                    size.events
                ));
            }
        }
        text
    }
}

/// Runs the whole plan.
pub async fn measure(plan: &Plan) -> anyhow::Result<RestartReport> {
    let is_sorted = plan.sizes.is_sorted() && !plan.sizes.is_empty();
    ensure!(is_sorted, "--sizes go from the fewest events to the most");
    in_folder(&plan.folder, |folder| async move { measure_in(plan, &folder).await }).await
}

async fn measure_in(plan: &Plan, folder: &Path) -> anyhow::Result<RestartReport> {
    let place = Place::new(plan.store, folder).await;
    let server = Server::start(folder, place.url())?;
    let market = Market::open(server.admin()?, server.address(), plan.listings).await?;
    let (mut server, mut market) = (Some(server), market);
    let mut sizes = Vec::new();
    for wanted in &plan.sizes {
        if let Some(server) = server.take() {
            grow(plan, &place, &server, &market, *wanted).await?;
        }
        say(&format!("a start on {wanted} events"));
        let began = Instant::now();
        let started = Server::start(folder, place.url())?;
        ready(&started.admin()?).await?;
        let ready_ms = began.elapsed().as_secs_f64() * 1e3;
        market = market.at(started.admin()?).await?;
        sizes.push(size(plan, &place, &started, &market, ready_ms).await?);
        server = Some(started);
    }
    let (store, listings, batch) = (plan.store.as_str(), plan.listings, plan.batch);
    Ok(RestartReport { store, listings, batch, sizes })
}

/// Writes until the journal has so many events.
async fn grow(
    plan: &Plan,
    place: &Place,
    server: &Server,
    market: &Market,
    wanted: u64,
) -> anyhow::Result<()> {
    let journal = place.journal().await?;
    at_rest(&market.admin, Some(&*journal)).await?;
    let written: u64 = heads(&*journal).await?.iter().sum();
    let missing = wanted.saturating_sub(written);
    match plan.batch {
        Some(batch) => publish(server, market, batch, missing).await?,
        None => change(server, market, missing).await?,
    }
    at_rest(&market.admin, Some(&*journal)).await
}

/// Publishes at least so many events.
async fn publish(server: &Server, market: &Market, batch: u64, missing: u64) -> anyhow::Result<()> {
    let batches = missing.div_ceil(batch);
    if batches == 0 {
        return Ok(());
    }
    let load = Load {
        connections: PUBLISHERS,
        threads: 1,
        until: Until::Answered(batches),
        rate: None,
        name: Some("publishing events"),
    };
    let work = scripts::publishes(market, batch, KEYS, None).await?;
    let wrote = load::run(server.address(), load, work.script).await?;
    all_accepted(&wrote, batches)
}

/// Changes listings until that is at least so many events.
async fn change(server: &Server, market: &Market, missing: u64) -> anyhow::Result<()> {
    let mut missing = missing.div_ceil(Change::Price.events());
    while missing > 0 {
        // Logins end after a while, and this may take longer.
        let market = market.at(market.admin.clone()).await?;
        let stretch = missing.min(STRETCH);
        let load = Load {
            connections: WRITERS,
            threads: 1,
            until: Until::Answered(stretch),
            rate: None,
            name: Some("writing events"),
        };
        all_accepted(&changed(server, &market, load).await?, stretch)?;
        missing -= stretch;
    }
    Ok(())
}

fn all_accepted(wrote: &Outcome, asked: u64) -> anyhow::Result<()> {
    let (accepted, refused) = (wrote.accepted, &wrote.refused_with);
    ensure!(accepted == asked, "of {asked} requests {accepted} were accepted, others {refused:?}");
    Ok(())
}

async fn changed(server: &Server, market: &Market, load: Load) -> anyhow::Result<Outcome> {
    let all = market.listings.len();
    let work = scripts::changes(market, Change::Price, all, Pick::InTurn(all as u64));
    load::run(server.address(), load, work.script).await
}

async fn ready(admin: &Client) -> anyhow::Result<()> {
    let began = Instant::now();
    while admin.plain("/readyz").await.is_err() {
        if began.elapsed() > READY_WITHIN {
            bail!("the server is not ready after {READY_WITHIN:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn size(
    plan: &Plan,
    place: &Place,
    server: &Server,
    market: &Market,
    ready_ms: f64,
) -> anyhow::Result<Size> {
    // Spread over the listings, and each read once: none of them is in memory.
    let all = shown(market);
    let cold = (all.len() / 2).clamp(1, COLD_MAX);
    let more = (all.len() - cold).min(COLD_AT_ONCE_MAX);
    let mut order = all;
    order.sort_by_key(|request| scripts::scattered(request.len() as u64 ^ sum(request)));
    let (first, rest) = order.split_at(cold);
    let one_by_one = Percentiles::of(&read(server, first.to_vec(), 1).await?);
    let (mut at_once, mut live_kib) = (Percentiles::default(), None);
    if more > 0 {
        let (some, others) = rest[..more].split_at(more / 2);
        let mut times = read(server, some.to_vec(), COLD_AT_ONCE).await?;
        let memory = server.memory_kib();
        times.add(read(server, others.to_vec(), COLD_AT_ONCE).await?)?;
        #[expect(clippy::cast_precision_loss, reason = "counts of listings")]
        let live = others.len() as f64;
        let grown = server.memory_kib().zip(memory).map(|(after, before)| after - before);
        live_kib = grown.map(|kib| kib / live);
        at_once = Percentiles::of(&times);
    }
    let journal = place.journal().await?;
    at_rest(&market.admin, Some(&*journal)).await?;
    let events: u64 = heads(&*journal).await?.iter().sum();
    let lookups = lookups(market).await?;
    let before = server.cpu_seconds();
    let until = Until::Elapsed(plan.time);
    let load =
        Load { connections: CONNECTIONS, threads: 1, until, rate: None, name: Some("changes") };
    let outcome = changed(server, market, load).await?;
    ensure!(outcome.refused == 0, "changes were refused with {:?}", outcome.refused_with);
    ensure!(outcome.out_of_order == 0, "versions did not rise in the order of the answers");
    let cpu = server.cpu_seconds().zip(before).map(|(after, before)| after - before);
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let cpu_us = cpu.map(|seconds| seconds * 1e6 / outcome.accepted.max(1) as f64);
    let found: u64 = heads(&*journal).await?.iter().sum();
    let least = events + outcome.accepted * Change::Price.events();
    ensure!(found >= least, "{least} events were to be in the journal, {found} are");
    Ok(Size {
        events,
        ready_ms,
        cold: one_by_one,
        cold_at_once: at_once,
        live_kib,
        lookups,
        change: Percentiles::of(&outcome.latencies),
        changes_per_second: outcome.per_second(),
        cpu_us,
    })
}

/// Searches the log for some of the listings.
async fn lookups(market: &Market) -> anyhow::Result<Lookups> {
    let admin = &market.admin;
    let mut times =
        [(); 5].map(|()| tally::histogram::<u64>(3)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let step = (market.listings.len() / SEARCHED).max(1);
    for listing in market.listings.iter().step_by(step).take(SEARCHED) {
        let event =
            searched(admin, &format!("/events?aggregateId={listing}"), &mut times[0]).await?;
        let event = &event["data"][0];
        let (Some(request), Some(at)) =
            (event["correlation_id"].as_str(), event["timestamp"].as_str())
        else {
            bail!("the log has no event of listing {listing}: {event}");
        };
        let by_request = format!("/events?correlationId={request}");
        let found = searched(admin, &by_request, &mut times[1]).await?;
        ensure!(found["data"][0].is_object(), "the log has no event of request {request}: {found}");
        let trace = request.trim_start_matches("req_");
        searched(admin, &format!("/traces?trace_id={trace}"), &mut times[2]).await?;
        let by_type = format!("/events?eventType=catalog.price.changed&from={at}");
        searched(admin, &by_type, &mut times[3]).await?;
        searched(admin, "/events?eventType=user.suspended", &mut times[4]).await?;
    }
    let [aggregate_id, correlation_id, trace_id, event_type, rare_event_type] =
        std::array::from_fn(|at| Percentiles::of(&times[at]));
    Ok(Lookups { aggregate_id, correlation_id, trace_id, event_type, rare_event_type })
}

/// One search, timed.
async fn searched(
    admin: &Client,
    path: &str,
    times: &mut Histogram<u64>,
) -> anyhow::Result<serde_json::Value> {
    let began = Instant::now();
    let found = admin.get(&format!("/api/v1{path}")).await?;
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    times.saturating_record(micros.max(1));
    Ok(found)
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// Reads each of these once, over so many connections at most, and says how long each took.
async fn read(
    server: &Server,
    requests: Vec<Vec<u8>>,
    connections: usize,
) -> anyhow::Result<Histogram<u64>> {
    let count = requests.len() as u64;
    if count == 0 {
        return tally::histogram(3);
    }
    let until = Until::Answered(count);
    let connections = connections.min(requests.len());
    let load = Load { connections, threads: 1, until, rate: None, name: None };
    let outcome = load::run(server.address(), load, std::sync::Arc::new(Once(requests))).await?;
    ensure!(outcome.accepted == count, "reads were refused with {:?}", outcome.refused_with);
    Ok(outcome.latencies)
}

/// Each request once.
struct Once(Vec<Vec<u8>>);

impl Script for Once {
    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        let index = usize::try_from(number).unwrap_or(0);
        out.extend_from_slice(&self.0[index.min(self.0.len() - 1)]);
        Asked::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_told_as_shares_of_the_first_size() {
        let size = |events: u64, cpu: f64| Size {
            events,
            ready_ms: 100.0,
            cold: Percentiles::default(),
            cold_at_once: Percentiles::default(),
            live_kib: Some(7.5),
            lookups: Lookups::default(),
            change: Percentiles::default(),
            changes_per_second: 1_000.0,
            cpu_us: Some(cpu),
        };
        let sizes = vec![size(10_000, 100.0), size(100_000, 105.0)];
        let table = RestartReport { store: "sqlite", listings: 10, batch: Some(100), sizes };
        let table = table.table();
        assert!(table.contains("grown by batches of 100 published events"), "{table}");
        assert!(table.contains("| 10000 | 100 |") && table.contains("| 1.05 |"), "{table}");
        assert!(table.contains("| 0.00 | 7.5 | 1000 |"), "{table}");
        assert!(table.contains("| 100000 | trace_id | 0.00 |"), "{table}");
    }
}
