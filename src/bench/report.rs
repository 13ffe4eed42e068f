//! What a measurement says: a table for people, JSON for programs. The page is made in
//! [`super::html`].

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::check::Check;
use super::tally::{Outcome, per_second};

/// How many aggregates are told of by name.
const TOPS_TOLD: usize = 20;
/// The shares of the curve of latencies.
const CURVE: [f64; 12] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];

/// How long something took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// Of a thousand the second longest.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Percentiles {
    /// Of microseconds.
    pub fn of<C: Counter>(times: &Histogram<C>) -> Self {
        let at = |share: f64| millis(times.value_at_quantile(share));
        Self {
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: millis(times.max()),
        }
    }
}

/// Microseconds as milliseconds.
pub(super) fn millis(micros: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of at most a minute")]
    let micros = micros as f64;
    micros / 1_000.0
}

/// How something is spread over aggregates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many aggregates had any.
    pub aggregates: u64,
    /// The least of one aggregate, a second.
    pub min_per_second: f64,
    /// Half of them have less.
    pub median_per_second: f64,
    /// The most of one aggregate, a second.
    pub max_per_second: f64,
    /// Jain's index: 1 when all have as much, near 0 when one has all.
    pub fairness: f64,
}

impl Spread {
    /// Of counts, those of 0 left out.
    pub fn of(counts: Vec<u64>, seconds: f64) -> Self {
        let mut counts: Vec<_> = counts.into_iter().filter(|count| *count > 0).collect();
        counts.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let rate = |at: usize| counts.get(at).map_or(0.0, |count| *count as f64 / seconds);
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let (sum, squares, number) = (
            counts.iter().sum::<u64>() as f64,
            counts.iter().map(|count| (*count as f64).powi(2)).sum::<f64>(),
            counts.len() as f64,
        );
        Self {
            aggregates: counts.len() as u64,
            min_per_second: rate(0),
            median_per_second: rate(counts.len() / 2),
            max_per_second: rate(counts.len().saturating_sub(1)),
            fairness: if squares > 0.0 { sum * sum / (number * squares) } else { 1.0 },
        }
    }
}

/// One of the aggregates that were asked most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopAggregate {
    /// Which.
    pub aggregate: String,
    /// Answers a second.
    pub per_second: f64,
    /// How long they took.
    #[serde(flatten)]
    pub times: Percentiles,
}

/// The aggregates that were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Aggregates {
    /// How the answers are spread over them.
    pub spread: Spread,
    /// Those that were asked most.
    pub top: Vec<TopAggregate>,
}

/// A kind of request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRow {
    /// What it is.
    pub kind: String,
    /// Accepted answers a second.
    pub per_second: f64,
    /// Accepted, warming up included.
    pub accepted: u64,
    /// Others.
    pub refused: u64,
    /// How long the accepted ones took.
    #[serde(flatten)]
    pub times: Percentiles,
}

/// What the journal has got for one type of aggregate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalType {
    /// The type.
    pub aggregate_type: String,
    /// How many events.
    pub events: u64,
    /// How they are spread over its aggregates.
    pub per_aggregate: Spread,
}

/// How long a subscription took, from an event's commit until it was handled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscriber {
    /// Its name.
    pub name: String,
    /// How many events.
    pub events: u64,
    /// The median, in milliseconds.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

/// A stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Its end, in seconds since the time that counts began.
    pub second: f64,
    /// Units a second.
    pub per_second: f64,
    /// Answers that were refused.
    pub refused: u64,
    /// The median, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was done.
    pub phase: String,
    /// How many connections at the same time; none: not over HTTP.
    pub connections: Option<usize>,
    /// How many requests were due a second; none: a closed loop.
    pub rate: Option<f64>,
    /// What is counted.
    pub unit: String,
    /// Units a second: commands, purchases, events.
    pub per_second: f64,
    /// How long a request took.
    #[serde(flatten)]
    pub times: Percentiles,
    /// The rate of requests as a share of the echo with as many connections in this run.
    pub of_echo: Option<f64>,
    /// Events stored a second as a share of the raw inserts of this run.
    pub of_raw: Option<f64>,
    /// The server's processor time per request, in microseconds.
    pub cpu_us: Option<f64>,
    /// Accepted answers, warming up included.
    pub accepted: u64,
    /// Other answers.
    pub refused: u64,
    /// Requests that were due and never sent.
    pub unsent: u64,
    /// How late the latest request was sent, in milliseconds.
    pub late_max_ms: f64,
    /// Events of the types asked for that the journal has got, warming up included.
    pub journalled: u64,
    /// How long until every subscription had seen everything after the load, in seconds.
    pub settled_seconds: Option<f64>,
    /// From PENDING to SHIPPED, of the orders that were asked after.
    pub shipped: Option<Percentiles>,
    /// By kind of request.
    pub kinds: Vec<KindRow>,
    /// By aggregate.
    pub aggregates: Option<Aggregates>,
    /// What the journal has got, by type of aggregate.
    pub journal: Vec<JournalType>,
    /// Commit to handled, by subscription.
    pub subscribers: Vec<Subscriber>,
    /// Over time.
    pub moments: Vec<Moment>,
    /// Share of answers and how long they took at most, in milliseconds.
    pub curve: Vec<(f64, f64)>,
    /// Whether it is what happened.
    pub checks: Vec<Check>,
}

impl Row {
    /// What the answers themselves tell; the rest is to be added.
    pub(super) fn of(phase: &str, outcome: &Outcome, kinds: &[&str], names: &[Uuid]) -> Self {
        let units = outcome.kinds.iter().map(|kind| kind.timed_units).sum();
        let moments = moments(outcome);
        let at = |share: f64| (share, millis(outcome.latencies.value_at_quantile(share)));
        Self {
            phase: phase.to_owned(),
            connections: None,
            rate: None,
            unit: "requests".to_owned(),
            per_second: per_second(units, outcome.over),
            times: Percentiles::of(&outcome.latencies),
            of_echo: None,
            of_raw: None,
            cpu_us: None,
            accepted: outcome.accepted,
            refused: outcome.refused,
            unsent: outcome.unsent,
            late_max_ms: outcome.late_max.as_secs_f64() * 1e3,
            journalled: 0,
            settled_seconds: None,
            shipped: None,
            kinds: kind_rows(outcome, kinds),
            aggregates: aggregates(outcome, names),
            journal: Vec::new(),
            subscribers: Vec::new(),
            moments,
            curve: CURVE.map(at).to_vec(),
            checks: Vec::new(),
        }
    }

    /// What it is, in a few words.
    pub fn title(&self) -> String {
        let connections = self.connections.map(|count| format!(", {count} connections"));
        let rate = self.rate.map(|rate| format!(", {rate:.1} a second due"));
        format!("{}{}{}", self.phase, connections.unwrap_or_default(), rate.unwrap_or_default())
    }
}

fn kind_rows(outcome: &Outcome, kinds: &[&str]) -> Vec<KindRow> {
    let rows = kinds.iter().zip(&outcome.kinds).map(|(name, kind)| KindRow {
        kind: (*name).to_owned(),
        per_second: per_second(kind.timed, outcome.over),
        accepted: kind.accepted,
        refused: kind.refused,
        times: Percentiles::of(&kind.latencies),
    });
    rows.collect()
}

fn aggregates(outcome: &Outcome, names: &[Uuid]) -> Option<Aggregates> {
    let answers = |cell: &super::tally::Cell| u64::from(cell.answers);
    let counts: Vec<_> = outcome.cells.iter().map(answers).collect();
    if counts.is_empty() {
        return None;
    }
    let top = outcome.tops.iter().take(TOPS_TOLD).map(|top| {
        let at = usize::try_from(top.aggregate).unwrap_or(usize::MAX);
        let name = names.get(at).map_or_else(|| top.aggregate.to_string(), Uuid::to_string);
        TopAggregate {
            aggregate: name,
            per_second: per_second(counts.get(at).copied().unwrap_or(0), outcome.over),
            times: Percentiles::of(&top.latencies),
        }
    });
    let top = top.collect();
    Some(Aggregates { spread: Spread::of(counts, outcome.over.as_secs_f64()), top })
}

fn moments(outcome: &Outcome) -> Vec<Moment> {
    let moments = (1_u32..).zip(&outcome.slices).map(|(number, slice)| Moment {
        second: (outcome.slice * number).as_secs_f64(),
        per_second: per_second(slice.units, outcome.slice),
        refused: slice.refused,
        p50_ms: millis(slice.latencies.value_at_quantile(0.5)),
        p99_ms: millis(slice.latencies.value_at_quantile(0.99)),
    });
    moments.collect()
}

/// A whole measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program's version and revision.
    pub version: String,
    /// `sqlite` or `postgres`; or the address of a server that was there already.
    pub store: String,
    /// When it was measured.
    pub measured_at: String,
    /// How many processors it saw.
    pub processors: usize,
    /// How long each phase was, in seconds.
    pub seconds: f64,
    /// How many listings there were.
    pub listings: usize,
    /// Whether all checks of all phases passed.
    pub is_good: bool,
    /// The phases, in the order in which they ran.
    pub rows: Vec<Row>,
}

pub(super) fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

impl Report {
    /// As tables in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} on {}, {} processors, {} s a phase, {} listings\n\n",
            self.version, self.store, self.processors, self.seconds, self.listings
        );
        text.push_str("| phase | connections | per second | p50 ms | p95 ms | p99 ms | p99.9 ms | of echo | of raw | cpu µs |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
        for row in &self.rows {
            let rate = row.rate.map(|rate| format!(" at {rate:.1}/s")).unwrap_or_default();
            let Percentiles { p50_ms, p95_ms, p99_ms, p999_ms, .. } = row.times;
            text.push_str(&format!(
                "| {}{rate} | {} | {:.0} | {p50_ms:.2} | {p95_ms:.2} | {p99_ms:.2} | {p999_ms:.2} | {} | {} | {} |\n",
                row.phase,
                row.connections.map_or_else(|| "–".to_owned(), |count| count.to_string()),
                row.per_second,
                number(row.of_echo, 2),
                number(row.of_raw, 2),
                number(row.cpu_us, 0),
            ));
        }
        self.rows.iter().for_each(|row| details(row, &mut text));
        text
    }

    /// The checks that failed, with their phases.
    pub fn failures(&self) -> Vec<String> {
        let failed = |row: &Row| {
            let bad = row.checks.iter().filter(|check| !check.is_good);
            let title = row.title();
            bad.map(|check| format!("{title}: not so: {}: {}", check.name, check.found))
                .collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(failed).collect()
    }
}

/// What is beyond one line of a phase: kinds, aggregates, subscriptions.
fn details(row: &Row, text: &mut String) {
    let Some(spread) = row.aggregates.as_ref().map(|of| of.spread) else {
        if row.kinds.len() > 1 {
            kinds(row, text);
        }
        subscribers(row, text);
        return;
    };
    let Spread { aggregates, min_per_second, median_per_second, max_per_second, fairness } = spread;
    text.push_str(&format!(
        "\n{}: {aggregates} aggregates, each {min_per_second:.1} to {max_per_second:.1} a second \
         (median {median_per_second:.1}), fairness {fairness:.3}\n",
        row.title()
    ));
    for top in row.aggregates.iter().flat_map(|of| of.top.iter().take(3)) {
        let Percentiles { p50_ms, p95_ms, p99_ms, p999_ms, .. } = top.times;
        text.push_str(&format!(
            "  {} {:.1}/s, p50 {p50_ms:.2}, p95 {p95_ms:.2}, p99 {p99_ms:.2}, p99.9 {p999_ms:.2} ms\n",
            top.aggregate, top.per_second
        ));
    }
    kinds(row, text);
    subscribers(row, text);
}

fn kinds(row: &Row, text: &mut String) {
    if row.kinds.len() > 1 {
        text.push_str(&format!("\n| {}: kind | per second | p50 ms | p95 ms | p99 ms | p99.9 ms |\n| --- | --- | --- | --- | --- | --- |\n", row.phase));
        for kind in &row.kinds {
            let Percentiles { p50_ms, p95_ms, p99_ms, p999_ms, .. } = kind.times;
            text.push_str(&format!(
                "| {} | {:.1} | {p50_ms:.2} | {p95_ms:.2} | {p99_ms:.2} | {p999_ms:.2} |\n",
                kind.kind, kind.per_second
            ));
        }
    }
    if let Some(Percentiles { p50_ms, p95_ms, p99_ms, .. }) = row.shipped {
        text.push_str(&format!(
            "\nPENDING to SHIPPED: p50 {p50_ms:.0}, p95 {p95_ms:.0}, p99 {p99_ms:.0} ms\n"
        ));
    }
    if row.unsent > 0 {
        text.push_str(&format!(
            "\n{} requests were due and never sent: the server does not keep up with this rate\n",
            row.unsent
        ));
    }
}

fn subscribers(row: &Row, text: &mut String) {
    if row.subscribers.is_empty() {
        return;
    }
    text.push_str(&format!(
        "\n| {}: commit to handled | events | p50 ms | p95 ms | p99 ms |\n| --- | --- | --- | --- | --- |\n",
        row.phase
    ));
    for Subscriber { name, events, p50_ms, p95_ms, p99_ms } in &row.subscribers {
        text.push_str(&format!(
            "| {name} | {events} | {p50_ms:.2} | {p95_ms:.2} | {p99_ms:.2} |\n"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_spread_is_fair_and_a_single_one_is_not() {
        let even = Spread::of(vec![10, 10, 10, 10], 2.0);
        assert_eq!((even.aggregates, even.min_per_second, even.max_per_second), (4, 5.0, 5.0));
        assert!((even.fairness - 1.0).abs() < 1e-9);
        let skew = Spread::of(vec![0, 1, 1, 98], 1.0);
        assert_eq!((skew.aggregates, skew.median_per_second), (3, 1.0));
        assert!(skew.fairness < 0.4);
        assert_eq!(Spread::of(Vec::new(), 1.0).aggregates, 0);
    }
}
