//! What comes of more than can be done: how much is done all the same, and how soon the rest hears
//! that it is not.
//!
//! The store is slowed by a fault, so that its capacity is small enough to be asked for several times
//! over from the same machine. Changes are asked for at a growing rate, in an open loop, until no more
//! of them are done; then several times as many.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::json;

use super::in_folder;
use super::load::{self, Answer, Asked, Judged, Load, Outcome, Script, Until};
use super::market::Market;
use super::place::{Place, StoreKind, at_rest, each_behind, heads};
use super::progress::say;
use super::report::{Percentiles, number};
use super::scripts::{self, Change, Pick};
use super::server::Server;

/// The first rate, by how much the next one is higher, and how many there are at most.
const FIRST_RATE: f64 = 100.0;
const STEP: f64 = 1.5;
const STEPS_MAX: usize = 16;
/// How many appends a phase is long at least. A change waits for up to two of them, and the fifth of a
/// phase before the time that counts has to be over by then: else what is done in that time is less
/// than what is asked although all of it is kept up with.
pub const APPENDS_MIN: u32 = 10;
/// By how much more has to be done at a rate at which some is refused for a higher one to be tried.
const GROWN: f64 = 1.05;
/// The event of a change.
const CHANGED: &str = "listing.updated";

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How much longer each append of the journal takes.
    pub append: Duration,
    /// So many times the capacity is asked for in the end.
    pub times: f64,
    /// Connections at the same time.
    pub connections: usize,
    /// How many listings are changed in turn.
    pub listings: usize,
    /// How long each phase is timed.
    pub time: Duration,
    /// Which store.
    pub store: StoreKind,
    /// Where the files of the measurement go; a folder of its own is made in it and deleted.
    pub folder: PathBuf,
}

/// How a phase went.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// How many changes were due a second.
    pub asked_per_second: f64,
    /// How many were done a second.
    pub done_per_second: f64,
    /// How long those took, from when they were due; what was never sent is in it with its wait.
    pub done: Percentiles,
    /// How many were refused.
    pub refused: u64,
    /// How long until those were told so.
    pub refusals: Percentiles,
    /// How many were due and could not be sent.
    pub unsent: u64,
    /// Of how many refused ones it is not known whether they were done all the same (504).
    pub unknown: u64,
    /// The server's own memory afterwards, in KiB.
    pub memory_kib: Option<f64>,
}

impl Phase {
    fn of(rate: f64, outcome: &Outcome, unknown: u64, memory_kib: Option<f64>) -> Self {
        Self {
            asked_per_second: rate,
            done_per_second: outcome.per_second(),
            done: Percentiles::of(&outcome.latencies),
            refused: outcome.refused,
            refusals: Percentiles::of(&outcome.refusals),
            unsent: outcome.unsent,
            unknown,
            memory_kib,
        }
    }

    /// Whether a higher rate might lead to more: all of this was done, or more than ever before.
    fn leaves_room(&self, before: &[Self]) -> bool {
        (self.refused, self.unsent) == (0, 0) || self.done_per_second > GROWN * peak(before)
    }
}

/// A whole measurement.
#[derive(Debug, Clone, Serialize)]
pub struct OverloadReport {
    /// `sqlite` or `postgres`.
    pub store: &'static str,
    /// How much longer each append took, in milliseconds.
    pub append_ms: f64,
    /// How many listings were changed.
    pub listings: usize,
    /// The most that was done a second before the overload.
    pub peak_per_second: f64,
    /// What was done a second in the overload, as a share of that.
    pub share_of_peak: f64,
    /// At growing rates; the last is the overload.
    pub phases: Vec<Phase>,
}

impl OverloadReport {
    fn new(plan: &Plan, phases: Vec<Phase>) -> anyhow::Result<Self> {
        let (overload, before) = phases.split_last().context("there is an overload")?;
        let peak = peak(before);
        ensure!(peak > 0.0, "nothing was done");
        Ok(Self {
            store: plan.store.as_str(),
            append_ms: plan.append.as_secs_f64() * 1e3,
            listings: plan.listings,
            peak_per_second: peak,
            share_of_peak: overload.done_per_second / peak,
            phases,
        })
    }

    /// As a table in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}, {} listings, each append {:.0} ms longer: {:.0} changes a second at most, {:.2} of \
             that in the overload\n\n",
            self.store, self.listings, self.append_ms, self.peak_per_second, self.share_of_peak
        );
        text.push_str(
            "| asked a second | done a second | p50 ms | p99 ms | refused | after p50 ms | p99 ms \
             | max ms | unsent | unknown | memory MiB |\n",
        );
        text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
        for phase in &self.phases {
            let (done, refusals) = (&phase.done, &phase.refusals);
            text.push_str(&format!(
                "| {:.0} | {:.0} | {:.0} | {:.0} | {} | {:.2} | {:.2} | {:.2} | {} | {} | {} |\n",
                phase.asked_per_second,
                phase.done_per_second,
                done.p50_ms,
                done.p99_ms,
                phase.refused,
                refusals.p50_ms,
                refusals.p99_ms,
                refusals.max_ms,
                phase.unsent,
                phase.unknown,
                number(phase.memory_kib.map(|kib| kib / 1024.0), 1),
            ));
        }
        text
    }
}

/// The most that was done a second in any of these.
fn peak(phases: &[Phase]) -> f64 {
    phases.iter().map(|phase| phase.done_per_second).fold(0.0, f64::max)
}

/// Runs the whole plan.
pub async fn measure(plan: &Plan) -> anyhow::Result<OverloadReport> {
    in_folder(&plan.folder, |folder| async move { measure_in(plan, &folder).await }).await
}

async fn measure_in(plan: &Plan, folder: &Path) -> anyhow::Result<OverloadReport> {
    let place = Place::new(plan.store, folder).await;
    // The capacity is that of one writer.
    let server = Server::start_with(folder, place.url(), &[("PARTITIONS", "1")])?;
    let journal = place.journal().await?;
    let market = Market::open(server.admin()?, server.address(), plan.listings).await?;
    at_rest(&market.admin, Some(&*journal)).await?;
    let before = heads(&*journal).await?;
    let delay_ms = u64::try_from(plan.append.as_millis())?;
    let fault = json!({ "target": "journal", "mode": "delay", "delay_ms": delay_ms });
    let fault = market.admin.post("/api/v1/dev/faults", &fault).await?;
    let fault = fault["id"].as_u64().context("a fault has an id")?;

    let (mut phases, mut accepted, mut rate) = (Vec::new(), 0, FIRST_RATE);
    loop {
        let (phase, done) = asked(plan, &server, &market, rate).await?;
        accepted += done;
        let goes_on = phase.leaves_room(&phases);
        phases.push(phase);
        if !goes_on {
            break;
        }
        ensure!(
            phases.len() < STEPS_MAX,
            "at {rate:.0} changes a second the store keeps up: slow it more, with --append-ms"
        );
        rate *= STEP;
    }
    let (overload, done) = asked(plan, &server, &market, peak(&phases) * plan.times).await?;
    accepted += done;
    phases.push(overload);

    market.admin.delete(&format!("/api/v1/dev/faults/{fault}")).await?;
    at_rest(&market.admin, Some(&*journal)).await?;
    let mut journalled = 0_u64;
    each_behind(&*journal, &before, |event| {
        journalled += u64::from(*event.event_type == *CHANGED);
    })
    .await?;
    let unknown: u64 = phases.iter().map(|phase| phase.unknown).sum();
    ensure!(
        (accepted..=accepted + unknown).contains(&journalled),
        "{accepted} changes were accepted, of {unknown} it is not known, {journalled} journalled"
    );
    OverloadReport::new(plan, phases)
}

/// Asks for changes at this rate. Also how many of them were accepted, timed or not.
async fn asked(
    plan: &Plan,
    server: &Server,
    market: &Market,
    rate: f64,
) -> anyhow::Result<(Phase, u64)> {
    say(&format!("{rate:.0} changes a second"));
    let all = market.listings.len();
    let work = scripts::changes(market, Change::Title, all, Pick::InTurn(all as u64));
    let strict = Arc::new(Strict::new(work.script));
    let load = Load {
        connections: plan.connections,
        threads: 1,
        until: Until::Elapsed(plan.time),
        rate: Some(rate),
        name: Some("changes"),
    };
    let outcome = load::run(server.address(), load, strict.clone()).await?;
    let [wrong, last, unknown] = strict.seen();
    ensure!(wrong == 0, "{wrong} answers were none to an overload, the last of them {last}");
    ensure!(outcome.out_of_order == 0, "versions did not rise in the order of the answers");
    Ok((Phase::of(rate, &outcome, unknown, server.memory_kib()), outcome.accepted))
}

/// Counts answers that are no answers to an overload: what is not done has to be refused as one, and
/// to say when to come again. Where the machine itself has no time left for what was taken in, it may
/// be told that its outcome is not known (504).
struct Strict {
    inner: Arc<dyn Script>,
    wrong: AtomicU64,
    last_wrong: AtomicU64,
    unknown: AtomicU64,
}

impl Strict {
    fn new(inner: Arc<dyn Script>) -> Self {
        let [wrong, last_wrong, unknown] = Default::default();
        Self { inner, wrong, last_wrong, unknown }
    }

    /// How many were wrong, the status of the last of them, and how many outcomes are not known.
    fn seen(&self) -> [u64; 3] {
        [&self.wrong, &self.last_wrong, &self.unknown].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Script for Strict {
    fn kinds(&self) -> Vec<&'static str> {
        self.inner.kinds()
    }

    fn aggregates(&self) -> usize {
        self.inner.aggregates()
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        self.inner.request(number, out)
    }

    fn answer(&self, asked: &Asked, answer: &Answer<'_>) -> Judged {
        let judged = self.inner.answer(asked, answer);
        let is_refusal = answer.status == 503 && answer.field("retry-after").is_some();
        if !judged.accepted && answer.status == 504 {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        } else if !judged.accepted && !is_refusal {
            self.wrong.fetch_add(1, Ordering::Relaxed);
            self.last_wrong.store(u64::from(answer.status), Ordering::Relaxed);
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(asked: f64, done: f64) -> Phase {
        Phase {
            asked_per_second: asked,
            done_per_second: done,
            done: Percentiles::default(),
            refused: 0,
            refusals: Percentiles::default(),
            unsent: 0,
            unknown: 0,
            memory_kib: Some(2048.0),
        }
    }

    #[test]
    fn what_is_done_in_an_overload_is_told_as_a_share_of_the_most_before() {
        let plan = Plan {
            append: Duration::from_millis(250),
            times: 5.0,
            connections: 1,
            listings: 3,
            time: Duration::from_secs(1),
            store: StoreKind::Sqlite,
            folder: PathBuf::new(),
        };
        let phases = vec![phase(100.0, 99.0), phase(150.0, 120.0), phase(600.0, 90.0)];
        let report = OverloadReport::new(&plan, phases).unwrap();
        assert!((report.share_of_peak - 0.75).abs() < 1e-9);
        let table = report.table();
        assert!(table.contains("250 ms longer: 120 changes a second at most, 0.75 of"), "{table}");
        assert!(table.contains("| 600 | 90 |") && table.contains("| 2.0 |"), "{table}");
        assert!(OverloadReport::new(&plan, vec![phase(1.0, 1.0)]).is_err());
    }

    #[test]
    fn rates_grow_until_no_more_is_done() {
        let before = [phase(100.0, 99.0), phase(150.0, 140.0)];
        assert!(phase(225.0, 130.0).leaves_room(&before), "what is late is not too much");
        let refusing = |done| Phase { refused: 7, ..phase(225.0, done) };
        assert!(refusing(180.0).leaves_room(&before), "more than before");
        assert!(!refusing(145.0).leaves_room(&before));
    }

    struct Fixed;

    impl Script for Fixed {
        fn request(&self, _number: u64, _out: &mut Vec<u8>) -> Asked {
            Asked::default()
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_again() {
        let strict = Strict::new(Arc::new(Fixed));
        let answers: [(u16, &[u8]); 5] = [
            (200, b"HTTP/1.1 200 OK\r\n\r\n"),
            (503, b"HTTP/1.1 503 -\r\nRetry-After: 1\r\n\r\n"),
            (503, b"HTTP/1.1 503 -\r\n\r\n"),
            (429, b"HTTP/1.1 429 -\r\nRetry-After: 1\r\n\r\n"),
            (504, b"HTTP/1.1 504 -\r\n\r\n"),
        ];
        let seen = answers.map(|(status, head)| {
            strict.answer(&Asked::default(), &Answer { status, head, body: b"" });
            strict.seen()
        });
        assert_eq!(seen, [[0, 0, 0], [0, 0, 0], [1, 503, 0], [2, 429, 0], [2, 429, 1]]);
    }
}
