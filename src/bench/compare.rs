//! Two reports beside each other.

use std::collections::BTreeSet;

use anyhow::ensure;

use super::report::{Report, Row};

/// The percentiles that are told, and the share of all that is below each.
const PERCENTILES: [(&str, f64); 4] =
    [("p50 ms", 0.5), ("p95 ms", 0.95), ("p99 ms", 0.99), ("p99.9 ms", 0.999)];
/// How many have to be at or above a percentile for it to be more than chance.
const ABOVE_MIN: f64 = 1.0;

/// How much worse something may be: a share, as 0.1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance(pub f64);

impl std::str::FromStr for Tolerance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
        match percent {
            Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(Self(percent / 100.0)),
            _ => Err("must be a percentage, as 10%".to_owned()),
        }
    }
}

/// One figure of a phase in both reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The phase.
    pub phase: String,
    /// The figure.
    pub figure: String,
    /// In the first report.
    pub before: f64,
    /// In the second report.
    pub after: f64,
    /// By which share it is worse; negative: better. Infinite where there was nothing before.
    pub worse_by: f64,
}

impl Difference {
    /// How it differs, in a few words.
    pub fn told(&self) -> String {
        match self.worse_by {
            by if by.is_infinite() && by > 0.0 => "worse: 0 before".to_owned(),
            by if by.is_infinite() => "better: 0 before".to_owned(),
            by if by > 0.005 => format!("{:.0} % worse", by * 100.0),
            by if by < -0.005 => format!("{:.0} % better", -by * 100.0),
            _ => "the same".to_owned(),
        }
    }
}

/// What differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What the two were not measured alike in.
    pub unlike: Vec<String>,
    /// The figures of the phases that are in both.
    pub differences: Vec<Difference>,
    /// Phases that are in one only.
    pub alone: Vec<String>,
}

impl Comparison {
    /// Compares two reports, phase by phase. The share of the echo stands for the rate where both
    /// have it: it says more than a rate when the machine was faster or slower that day. Two stores
    /// are not compared unless `any_store` says so.
    pub fn of(before: &Report, after: &Report, any_store: bool) -> anyhow::Result<Self> {
        for (report, which) in [(before, "first"), (after, "second")] {
            ensure!(report.is_good, "the {which} report's checks failed: its figures mean nothing");
        }
        ensure!(
            any_store || before.store == after.store,
            "the first report is of {}, the second of {}: say --any-store to compare them all the \
             same",
            before.store,
            after.store
        );
        let is_same = |one: &Row, other: &Row| {
            (&one.phase, one.connections, one.rate) == (&other.phase, other.connections, other.rate)
        };
        let (mut differences, mut alone) = (Vec::new(), Vec::new());
        let mut settings = BTreeSet::new();
        for row in &before.rows {
            match after.rows.iter().find(|other| is_same(row, other)) {
                Some(other) => {
                    differences.extend(figures(row, other));
                    settings.extend(unlike_settings(row, other));
                }
                None => alone.push(format!("only in the first: {}", row.title())),
            }
        }
        for row in &after.rows {
            if !before.rows.iter().any(|other| is_same(row, other)) {
                alone.push(format!("only in the second: {}", row.title()));
            }
        }
        ensure!(!differences.is_empty(), "the two reports have no phase in common");
        let mut unlike = unlike(before, after);
        unlike.extend(settings);
        Ok(Self { unlike, differences, alone })
    }

    /// The figures that are worse by more than this.
    pub fn worse_than(&self, tolerance: Tolerance) -> Vec<&Difference> {
        self.differences.iter().filter(|difference| difference.worse_by > tolerance.0).collect()
    }

    /// As a table in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::new();
        self.unlike.iter().for_each(|line| text.push_str(&format!("not alike: {line}\n")));
        if !self.unlike.is_empty() {
            text.push('\n');
        }
        text.push_str("| phase | figure | before | after | ratio | |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- |\n");
        for difference in &self.differences {
            let Difference { phase, figure, before, after, .. } = difference;
            let ratio =
                if *before > 0.0 { format!("{:.2}", after / before) } else { "–".to_owned() };
            let word = difference.told();
            text.push_str(&format!(
                "| {phase} | {figure} | {before:.2} | {after:.2} | {ratio} | {word} |\n"
            ));
        }
        self.alone.iter().for_each(|line| text.push_str(&format!("\n{line}")));
        if !self.alone.is_empty() {
            text.push('\n');
        }
        text
    }
}

/// What has to be known to make sense of the differences.
fn unlike(before: &Report, after: &Report) -> Vec<String> {
    let settings = |report: &Report| {
        [
            ("version", report.version.clone()),
            ("store", report.store.clone()),
            ("processors", report.processors.to_string()),
            ("seconds a phase", report.seconds.to_string()),
            ("listings", report.listings.to_string()),
            ("threads of the load", noted(report.threads.as_ref())),
        ]
    };
    let pairs = settings(before).into_iter().zip(settings(after));
    let differing = pairs.filter(|((_, one), (_, other))| one != other);
    differing.map(|((name, one), (_, other))| format!("{name}: {one}, then {other}")).collect()
}

/// What the phase was not measured alike in.
fn unlike_settings(before: &Row, after: &Row) -> Vec<String> {
    let names: BTreeSet<_> = before.settings.keys().chain(after.settings.keys()).collect();
    let told = names.into_iter().filter_map(|name| {
        let [one, other] = [before, after].map(|row| noted(row.settings.get(name)));
        (one != other).then(|| format!("{name} of {}: {one}, then {other}", before.phase))
    });
    told.collect()
}

/// A setting; reports of earlier versions do not have all.
fn noted(setting: Option<&impl ToString>) -> String {
    setting.map_or_else(|| "not noted".to_owned(), ToString::to_string)
}

fn figures(before: &Row, after: &Row) -> Vec<Difference> {
    let phase = before.title();
    let rate = match before.of_echo.zip(after.of_echo) {
        Some((one, other)) => difference(&phase, "share of the echo".into(), one, other, true),
        None => {
            let (one, other) = (before.per_second, after.per_second);
            difference(&phase, "per second".into(), one, other, true)
        }
    };
    let mut figures = vec![rate];
    let mut add = |what: &str, counts: [u64; 2], times: [[f64; 4]; 2]| {
        figures.extend(percentiles(&phase, what, counts, times));
    };
    let timed = |row: &Row| row.batches.unwrap_or(row.accepted);
    add("", [timed(before), timed(after)], [before.times.all(), after.times.all()]);
    if let Some((one, other)) = before.shipped.zip(after.shipped) {
        let counts = [before.shipped_orders, after.shipped_orders];
        add("SHIPPED ", counts, [one.all(), other.all()]);
    }
    // The only kind there is says nothing that the phase has not said.
    if before.kinds.len() > 1 {
        for (one, other) in pairs(&before.kinds, &after.kinds, |kind| &kind.kind) {
            let counts = [one.accepted, other.accepted];
            add(&format!("{}: ", one.kind), counts, [one.times.all(), other.times.all()]);
        }
    }
    for (one, other) in pairs(&before.types, &after.types, |of| &of.aggregate_type) {
        let what = format!("commands of {}: ", one.aggregate_type);
        add(&what, [one.commands, other.commands], [one.times.all(), other.times.all()]);
    }
    for (one, other) in pairs(&before.subscribers, &after.subscribers, |of| &of.name) {
        let what = format!("handled by {}: ", one.name);
        add(&what, [one.events, other.events], [one.times.all(), other.times.all()]);
    }
    figures
}

/// What is in both under the same name.
fn pairs<'a, T>(
    before: &'a [T],
    after: &'a [T],
    name: impl Fn(&T) -> &str,
) -> impl Iterator<Item = (&'a T, &'a T)> {
    before.iter().filter_map(move |one| {
        let other = after.iter().find(|other| name(other) == name(one))?;
        Some((one, other))
    })
}

/// Those percentiles that there are enough of in both.
fn percentiles(
    phase: &str,
    what: &str,
    counts: [u64; 2],
    [before, after]: [[f64; 4]; 2],
) -> Vec<Difference> {
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let count = counts[0].min(counts[1]) as f64;
    let told = PERCENTILES.iter().zip(before.into_iter().zip(after));
    // A little less than one is one: shares are no whole numbers of binary digits.
    told.filter(|((_, share), _)| count * (1.0 - share) >= ABOVE_MIN - 1e-6)
        .map(|((name, _), (one, other))| {
            difference(phase, format!("{what}{name}"), one, other, false)
        })
        .collect()
}

fn difference(
    phase: &str,
    figure: String,
    before: f64,
    after: f64,
    more_is_better: bool,
) -> Difference {
    let change = match before > 0.0 {
        true => after / before - 1.0,
        // It is no share of nothing, and not the same either.
        false if after > 0.0 => f64::INFINITY,
        false => 0.0,
    };
    let worse_by = if more_is_better { -change } else { change };
    Difference { phase: phase.to_owned(), figure, before, after, worse_by }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::report::{Estimates, KindRow, Percentiles, Report, Row, Subscriber, TypeRow};
    use super::super::tally::Outcome;
    use super::*;

    pub(in super::super) fn report(per_second: f64, p99_ms: f64) -> Report {
        let outcome = Outcome::new(1, 0).unwrap();
        let row = Row {
            per_second,
            connections: Some(64),
            accepted: 10_000,
            times: Percentiles { p50_ms: 1.0, p95_ms: 2.0, p99_ms, p999_ms: 9.0, max_ms: 10.0 },
            ..Row::of("hot", &outcome, &["change the title"], &[])
        };
        Report {
            version: "souk".into(),
            store: "sqlite".into(),
            measured_at: "2026-01-01T00:00:00.000Z".into(),
            processors: 2,
            seconds: 1.0,
            listings: 1,
            threads: None,
            is_good: true,
            rows: vec![row],
        }
    }

    #[test]
    fn what_is_worse_by_more_than_allowed_is_found() {
        let (before, slower) = (report(1_000.0, 4.0), report(880.0, 4.2));
        let same = Comparison::of(&before, &before, false).unwrap();
        assert!(same.worse_than(Tolerance(0.0)).is_empty());
        let comparison = Comparison::of(&before, &slower, false).unwrap();
        let worse = comparison.worse_than("10%".parse().unwrap());
        assert_eq!(worse.len(), 1);
        assert_eq!(worse[0].figure, "per second");
        assert!(comparison.worse_than(Tolerance(0.2)).is_empty());
        assert!(
            Comparison::of(&slower, &before, false).unwrap().worse_than(Tolerance(0.05)).is_empty()
        );
        assert!(comparison.table().contains("| 0.88 | 12 % worse |"), "{}", comparison.table());
    }

    #[test]
    fn shares_of_the_echo_stand_for_rates() {
        let (mut before, mut after) = (report(1_000.0, 4.0), report(500.0, 4.0));
        (before.rows[0].of_echo, after.rows[0].of_echo) = (Some(0.4), Some(0.41));
        let comparison = Comparison::of(&before, &after, false).unwrap();
        assert!(comparison.worse_than(Tolerance(0.01)).is_empty(), "the machine was slower");
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let before = report(1_000.0, 4.0);
        let mut other = before.clone();
        other.rows[0].connections = Some(256);
        assert!(Comparison::of(&before, &other, false).is_err());
        other.rows.push(before.rows[0].clone());
        let comparison = Comparison::of(&before, &other, false).unwrap();
        assert_eq!(comparison.alone, ["only in the second: hot, 256 connections"]);
        let bad = Report { is_good: false, ..before.clone() };
        let refused = Comparison::of(&before, &bad, false).unwrap_err();
        assert!(refused.to_string().contains("second"));
        assert!("ten".parse::<Tolerance>().is_err() && "-1".parse::<Tolerance>().is_err());
    }

    #[test]
    fn phases_that_went_by_other_options_are_told_of_once() {
        let with = |batch: u64| {
            let mut report = report(1_000.0, 4.0);
            report.rows[0].settings = BTreeMap::from([
                ("batch".to_owned(), json!(batch)),
                ("keys".to_owned(), json!(1_000)),
            ]);
            let more = Row { connections: Some(256), ..report.rows[0].clone() };
            report.rows.push(more);
            report
        };
        let (before, after) = (with(500), with(100));
        assert!(Comparison::of(&before, &before, false).unwrap().unlike.is_empty());
        let comparison = Comparison::of(&before, &after, false).unwrap();
        assert_eq!(comparison.unlike, ["batch of hot: 500, then 100"]);
        let mut earlier = with(500);
        earlier.rows.iter_mut().for_each(|row| row.settings.clear());
        let comparison = Comparison::of(&earlier, &after, false).unwrap();
        let expected = ["batch of hot: not noted, then 100", "keys of hot: not noted, then 1000"];
        assert_eq!(comparison.unlike, expected);
    }

    #[test]
    fn what_was_nothing_and_is_something_is_not_the_same() {
        let (none, some) = (report(0.0, 0.0), report(1_000.0, 4.0));
        let comparison = Comparison::of(&none, &some, false).unwrap();
        let worse = comparison.worse_than(Tolerance(100.0));
        assert_eq!(worse.iter().map(|of| of.figure.as_str()).collect::<Vec<_>>(), ["p99 ms"]);
        let table = comparison.table();
        assert!(table.contains("| p99 ms | 0.00 | 4.00 | – | worse: 0 before |"), "{table}");
        assert!(table.contains("| per second | 0.00 | 1000.00 | – | better: 0 before"), "{table}");
        let same = Comparison::of(&none, &none, false).unwrap();
        assert!(same.worse_than(Tolerance(0.0)).is_empty());
        assert!(!same.table().contains("0 before"), "{}", same.table());
    }

    #[test]
    fn tails_and_parts_are_compared_where_there_is_enough_of_them() {
        let times = Estimates { p50_ms: 1.0, p95_ms: 1.0, p99_ms: 1.0, p999_ms: 1.0 };
        let slow = Estimates { p95_ms: 2.0, p99_ms: 2.0, ..times };
        let with = |times: Estimates, p999_ms: f64| {
            let mut report = report(1_000.0, 4.0);
            let row = &mut report.rows[0];
            row.times.p999_ms = p999_ms;
            row.types.push(TypeRow { aggregate_type: "order".into(), commands: 50, times });
            row.subscribers.push(Subscriber { name: "index".into(), events: 100, times });
            row.kinds = ["buy", "search"].map(|kind| kind_row(kind, times)).to_vec();
            report
        };
        let (before, after) = (with(times, 9.0), with(slow, 27.0));
        let comparison = Comparison::of(&before, &after, false).unwrap();
        let worse = comparison.worse_than(Tolerance(0.5));
        let worse: Vec<_> = worse.iter().map(|of| of.figure.as_str()).collect();
        // 50 commands have no 99th percentile, and nobody has one of a thousand but the phase.
        let expected = [
            "p99.9 ms",
            "buy: p95 ms",
            "search: p95 ms",
            "commands of order: p95 ms",
            "handled by index: p95 ms",
            "handled by index: p99 ms",
        ];
        assert_eq!(worse, expected);
    }

    fn kind_row(kind: &str, times: Estimates) -> KindRow {
        let Estimates { p50_ms, p95_ms, p99_ms, p999_ms } = times;
        KindRow {
            kind: kind.into(),
            per_second: 1.0,
            accepted: 20,
            refused: 0,
            times: Percentiles { p50_ms, p95_ms, p99_ms, p999_ms, max_ms: 0.0 },
        }
    }

    #[test]
    fn what_was_not_measured_alike_is_said_and_two_stores_are_asked_for() {
        let before = report(1_000.0, 4.0);
        assert!(Comparison::of(&before, &before, false).unwrap().unlike.is_empty());
        let version = "souk 2".to_owned();
        let threads = Some(2);
        let after =
            Report { version, processors: 8, listings: 5, seconds: 2.0, threads, ..before.clone() };
        let comparison = Comparison::of(&before, &after, false).unwrap();
        let expected = [
            "version: souk, then souk 2",
            "processors: 2, then 8",
            "seconds a phase: 1, then 2",
            "listings: 1, then 5",
            "threads of the load: not noted, then 2",
        ];
        assert_eq!(comparison.unlike, expected);
        let table = comparison.table();
        assert!(table.starts_with("not alike: version: souk, then souk 2\n"), "{table}");
        let other = Report { store: "postgres".into(), ..before.clone() };
        let refused = Comparison::of(&before, &other, false).unwrap_err().to_string();
        assert!(refused.contains("--any-store"), "{refused}");
        let comparison = Comparison::of(&before, &other, true).unwrap();
        assert_eq!(comparison.unlike, ["store: sqlite, then postgres"]);
    }
}
