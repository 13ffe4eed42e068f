//! What a measurement says: a table for people, JSON for programs. The page is made in
//! [`super::html`].

use std::collections::BTreeMap;

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

    /// The four percentiles.
    pub(super) fn all(&self) -> [f64; 4] {
        [self.p50_ms, self.p95_ms, self.p99_ms, self.p999_ms]
    }
}

/// How long something took, in milliseconds, as the server's own histograms tell it: true at the
/// bounds of their buckets, and in between as if all were spread evenly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimates {
    /// The median.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// Of a thousand the second longest.
    #[serde(default)]
    pub p999_ms: f64,
}

impl Estimates {
    /// The four percentiles.
    pub(super) fn all(&self) -> [f64; 4] {
        [self.p50_ms, self.p95_ms, self.p99_ms, self.p999_ms]
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

/// The commands of one type of aggregate that were accepted, whoever gave them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TypeRow {
    /// The type.
    pub aggregate_type: String,
    /// How many commands.
    pub commands: u64,
    /// How long they took until they were durable.
    #[serde(flatten)]
    pub times: Estimates,
}

/// How long a subscription took, from the decision that led to an event until it was handled. The
/// commit lies in between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscriber {
    /// Its name.
    pub name: String,
    /// How many events.
    pub events: u64,
    /// How long they took.
    #[serde(flatten)]
    pub times: Estimates,
}

/// What became of the deliveries of events to subscriptions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Deliveries {
    /// How many were handled.
    pub handled: u64,
    /// How many ended as dead letters, those that wait behind one included.
    pub letters: u64,
    /// The share that was handled; none: there were none.
    pub succeeded: Option<f64>,
    /// The letters by subscription.
    pub letters_of: BTreeMap<String, u64>,
}

impl Deliveries {
    pub(super) fn new(handled: u64, letters_of: BTreeMap<String, u64>) -> Self {
        let letters: u64 = letters_of.values().sum();
        let all = handled + letters;
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let succeeded = (all > 0).then(|| 1.0 - letters as f64 / all as f64);
        Self { handled, letters, succeeded, letters_of }
    }

    /// In a few words; none: there were no deliveries.
    pub(super) fn told(&self) -> Option<String> {
        let Self { handled, letters, succeeded, .. } = self;
        let percent = (*succeeded)? * 100.0;
        Some(format!(
            "{handled} deliveries handled, {letters} dead letters: {percent:.3} % succeeded"
        ))
    }
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
    /// What those requests are: one that publishes is a batch of events.
    #[serde(default = "requests")]
    pub asked: String,
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
    /// How many those were.
    #[serde(default)]
    pub shipped_orders: u64,
    /// How many batches the times are of, where they are of batches and not of answers.
    #[serde(default)]
    pub batches: Option<u64>,
    /// By kind of request.
    pub kinds: Vec<KindRow>,
    /// By aggregate.
    pub aggregates: Option<Aggregates>,
    /// What the journal has got, by type of aggregate.
    pub journal: Vec<JournalType>,
    /// The commands, by type of aggregate, those of sagas and subscribers included.
    #[serde(default)]
    pub types: Vec<TypeRow>,
    /// From decision to handled, by subscription.
    pub subscribers: Vec<Subscriber>,
    /// What became of the deliveries; none: nobody looked.
    #[serde(default)]
    pub deliveries: Option<Deliveries>,
    /// Over time.
    pub moments: Vec<Moment>,
    /// Share of answers and how long they took at most, in milliseconds.
    pub curve: Vec<(f64, f64)>,
    /// What else has to be known of these figures.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The options that this phase goes by, by their names.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// Whether it is what happened.
    pub checks: Vec<Check>,
}

fn requests() -> String {
    "requests".to_owned()
}

impl Row {
    /// What the answers themselves tell; the rest is to be added.
    pub(super) fn of(phase: &str, outcome: &Outcome, kinds: &[&str], names: &[String]) -> Self {
        let units = outcome.kinds.iter().map(|kind| kind.timed_units).sum();
        let moments = moments(outcome);
        let at = |share: f64| (share, millis(outcome.latencies.value_at_quantile(share)));
        Self {
            phase: phase.to_owned(),
            connections: None,
            rate: None,
            asked: requests(),
            unit: requests(),
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
            shipped_orders: 0,
            batches: None,
            kinds: kind_rows(outcome, kinds),
            aggregates: aggregates(outcome, names),
            journal: Vec::new(),
            types: Vec::new(),
            subscribers: Vec::new(),
            deliveries: None,
            moments,
            curve: CURVE.map(at).to_vec(),
            notes: Vec::new(),
            settings: BTreeMap::new(),
            checks: Vec::new(),
        }
    }

    /// What it is, in a few words.
    pub fn title(&self) -> String {
        let connections = self.connections.map(|count| format!(", {count} connections"));
        let rate = self.rate.map(|rate| format!(", {rate:.1} {} a second due", self.asked));
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

fn aggregates(outcome: &Outcome, names: &[String]) -> Option<Aggregates> {
    let answers = |cell: &super::tally::Cell| u64::from(cell.answers);
    let counts: Vec<_> = outcome.cells.iter().map(answers).collect();
    if counts.is_empty() {
        return None;
    }
    let top = outcome.tops.iter().take(TOPS_TOLD).map(|top| {
        let at = usize::try_from(top.aggregate).unwrap_or(usize::MAX);
        TopAggregate {
            aggregate: names.get(at).cloned().unwrap_or_else(|| top.aggregate.to_string()),
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
    /// How many threads made the load; none: it was not made over HTTP, or nobody noted it.
    #[serde(default)]
    pub threads: Option<usize>,
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
            let rate = row.rate.map(|rate| format!(" at {rate:.1} {}/s", row.asked));
            let rate = rate.unwrap_or_default();
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
    row.notes.iter().for_each(|note| text.push_str(&format!("\n{}: {note}\n", row.title())));
    if let Some(of) = &row.aggregates {
        aggregates_told(row, of, text);
    }
    let kinds = row.kinds.iter().filter(|_| row.kinds.len() > 1);
    let kinds = kinds.map(|of| (of.kind.as_str(), format!("{:.1}", of.per_second), of.times.all()));
    times(&format!("{}: kind | per second", row.phase), kinds, text);
    if let Some(Percentiles { p50_ms, p95_ms, p99_ms, p999_ms, .. }) = row.shipped {
        text.push_str(&format!(
            "\nPENDING to SHIPPED: p50 {p50_ms:.0}, p95 {p95_ms:.0}, p99 {p99_ms:.0}, p99.9 {p999_ms:.0} ms\n"
        ));
    }
    if row.unsent > 0 {
        text.push_str(&format!(
            "\n{} {} were due and never sent: the server does not keep up with this rate\n",
            row.unsent, row.asked
        ));
    }
    let types = row.types.iter();
    let types =
        types.map(|of| (of.aggregate_type.as_str(), of.commands.to_string(), of.times.all()));
    times(&format!("{}: type of aggregate | commands", row.phase), types, text);
    let subscribers = row.subscribers.iter();
    let subscribers =
        subscribers.map(|of| (of.name.as_str(), of.events.to_string(), of.times.all()));
    times(&format!("{}: decision to handled | events", row.phase), subscribers, text);
    if let Some(told) = row.deliveries.as_ref().and_then(Deliveries::told) {
        text.push_str(&format!("\n{}: {told}\n", row.title()));
    }
}

fn aggregates_told(row: &Row, of: &Aggregates, text: &mut String) {
    let Spread { aggregates, min_per_second, median_per_second, max_per_second, fairness } =
        of.spread;
    text.push_str(&format!(
        "\n{}: {aggregates} aggregates, each {min_per_second:.1} to {max_per_second:.1} a second \
         (median {median_per_second:.1}), fairness {fairness:.3}\n",
        row.title()
    ));
    for top in of.top.iter().take(3) {
        let Percentiles { p50_ms, p95_ms, p99_ms, p999_ms, .. } = top.times;
        text.push_str(&format!(
            "  {} {:.1}/s, p50 {p50_ms:.2}, p95 {p95_ms:.2}, p99 {p99_ms:.2}, p99.9 {p999_ms:.2} ms\n",
            top.aggregate, top.per_second
        ));
    }
}

/// A table of names, how many there were of each and how long they took; none of nothing.
fn times<'a>(
    headings: &str,
    rows: impl Iterator<Item = (&'a str, String, [f64; 4])>,
    text: &mut String,
) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    text.push_str(&format!("\n| {headings} | p50 ms | p95 ms | p99 ms | p99.9 ms |\n"));
    text.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for (name, count, [p50, p95, p99, p999]) in rows {
        text.push_str(&format!(
            "| {name} | {count} | {p50:.2} | {p95:.2} | {p99:.2} | {p999:.2} |\n"
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

    #[test]
    fn the_text_says_what_a_rate_counts_and_all_four_percentiles_of_everything() {
        let mut report = super::super::compare::tests::report(1_000.0, 4.0);
        let row = &mut report.rows[0];
        (row.rate, row.asked, row.unsent) = (Some(50.0), "batches".into(), 3);
        row.notes.push("a batch has 10 keys".into());
        let times = Estimates { p50_ms: 1.0, p95_ms: 2.0, p99_ms: 3.0, p999_ms: 4.5 };
        row.types.push(TypeRow { aggregate_type: "order".into(), commands: 7, times });
        row.subscribers.push(Subscriber { name: "index".into(), events: 9, times });
        row.deliveries = Some(Deliveries::new(999, BTreeMap::from([("mails".into(), 1)])));
        let table = report.table();
        for part in [
            "| hot at 50.0 batches/s |",
            "50.0 batches a second due: a batch has 10 keys\n",
            "3 batches were due and never sent",
            "type of aggregate | commands | p50 ms",
            "| order | 7 | 1.00 | 2.00 | 3.00 | 4.50 |",
            "decision to handled | events | p50 ms",
            "| index | 9 | 1.00 | 2.00 | 3.00 | 4.50 |",
            "999 deliveries handled, 1 dead letters: 99.900 % succeeded",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }

    #[test]
    fn a_report_of_an_earlier_version_is_still_read() {
        let report = super::super::compare::tests::report(1_000.0, 4.0);
        let mut json = serde_json::to_value(&report).unwrap();
        let row = json["rows"][0].as_object_mut().unwrap();
        let new = ["asked", "types", "deliveries", "notes", "settings"];
        assert_eq!(new.map(|name| row.remove(name).is_some()), [true; 5]);
        assert!(json.as_object_mut().unwrap().remove("threads").is_some());
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
}
