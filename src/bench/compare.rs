//! Two reports beside each other.

use anyhow::ensure;

use super::report::{Report, Row};

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
    pub figure: &'static str,
    /// In the first report.
    pub before: f64,
    /// In the second report.
    pub after: f64,
    /// By which share it is worse; negative: better.
    pub worse_by: f64,
}

/// What differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The figures of the phases that are in both.
    pub differences: Vec<Difference>,
    /// Phases that are in one only.
    pub alone: Vec<String>,
}

impl Comparison {
    /// Compares two reports, phase by phase. The share of the echo stands for the rate where both
    /// have it: it says more than a rate when the machine was faster or slower that day.
    pub fn of(before: &Report, after: &Report) -> anyhow::Result<Self> {
        for (report, which) in [(before, "first"), (after, "second")] {
            ensure!(report.is_good, "the {which} report's checks failed: its figures mean nothing");
        }
        let is_same = |one: &Row, other: &Row| {
            (&one.phase, one.connections, one.rate) == (&other.phase, other.connections, other.rate)
        };
        let (mut differences, mut alone) = (Vec::new(), Vec::new());
        for row in &before.rows {
            match after.rows.iter().find(|other| is_same(row, other)) {
                Some(other) => differences.extend(figures(row, other)),
                None => alone.push(format!("only in the first: {}", row.title())),
            }
        }
        for row in &after.rows {
            if !before.rows.iter().any(|other| is_same(row, other)) {
                alone.push(format!("only in the second: {}", row.title()));
            }
        }
        ensure!(!differences.is_empty(), "the two reports have no phase in common");
        Ok(Self { differences, alone })
    }

    /// The figures that are worse by more than this.
    pub fn worse_than(&self, tolerance: Tolerance) -> Vec<&Difference> {
        self.differences.iter().filter(|difference| difference.worse_by > tolerance.0).collect()
    }

    /// As a table in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| phase | figure | before | after | ratio | |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        for Difference { phase, figure, before, after, worse_by } in &self.differences {
            let ratio =
                if *before > 0.0 { format!("{:.2}", after / before) } else { "–".to_owned() };
            let word = match worse_by {
                by if *by > 0.005 => format!("{:.0} % worse", by * 100.0),
                by if *by < -0.005 => format!("{:.0} % better", -by * 100.0),
                _ => "the same".to_owned(),
            };
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

fn figures(before: &Row, after: &Row) -> Vec<Difference> {
    let difference = |figure, before_value: f64, after_value: f64, more_is_better: bool| {
        let change = if before_value > 0.0 { after_value / before_value - 1.0 } else { 0.0 };
        let worse_by = if more_is_better { -change } else { change };
        let phase = before.title();
        Difference { phase, figure, before: before_value, after: after_value, worse_by }
    };
    let rate = match before.of_echo.zip(after.of_echo) {
        Some((one, other)) => difference("share of the echo", one, other, true),
        None => difference("per second", before.per_second, after.per_second, true),
    };
    let (one, other) = (before.times, after.times);
    let mut figures = vec![
        rate,
        difference("p50 ms", one.p50_ms, other.p50_ms, false),
        difference("p95 ms", one.p95_ms, other.p95_ms, false),
        difference("p99 ms", one.p99_ms, other.p99_ms, false),
    ];
    if let Some((one, other)) = before.shipped.zip(after.shipped) {
        figures.push(difference("SHIPPED p95 ms", one.p95_ms, other.p95_ms, false));
    }
    figures
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::report::{Percentiles, Report, Row};
    use super::super::tally::Outcome;
    use super::*;

    pub(in super::super) fn report(per_second: f64, p99_ms: f64) -> Report {
        let outcome = Outcome::new(1, 0).unwrap();
        let row = Row {
            per_second,
            connections: Some(64),
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
            is_good: true,
            rows: vec![row],
        }
    }

    #[test]
    fn what_is_worse_by_more_than_allowed_is_found() {
        let (before, slower) = (report(1_000.0, 4.0), report(880.0, 4.2));
        let same = Comparison::of(&before, &before).unwrap();
        assert!(same.worse_than(Tolerance(0.0)).is_empty());
        let comparison = Comparison::of(&before, &slower).unwrap();
        let worse = comparison.worse_than("10%".parse().unwrap());
        assert_eq!(worse.len(), 1);
        assert_eq!(worse[0].figure, "per second");
        assert!(comparison.worse_than(Tolerance(0.2)).is_empty());
        assert!(Comparison::of(&slower, &before).unwrap().worse_than(Tolerance(0.05)).is_empty());
        assert!(comparison.table().contains("| 0.88 | 12 % worse |"), "{}", comparison.table());
    }

    #[test]
    fn shares_of_the_echo_stand_for_rates() {
        let (mut before, mut after) = (report(1_000.0, 4.0), report(500.0, 4.0));
        (before.rows[0].of_echo, after.rows[0].of_echo) = (Some(0.4), Some(0.41));
        let comparison = Comparison::of(&before, &after).unwrap();
        assert!(comparison.worse_than(Tolerance(0.01)).is_empty(), "the machine was slower");
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let before = report(1_000.0, 4.0);
        let mut other = before.clone();
        other.rows[0].connections = Some(256);
        assert!(Comparison::of(&before, &other).is_err());
        other.rows.push(before.rows[0].clone());
        let comparison = Comparison::of(&before, &other).unwrap();
        assert_eq!(comparison.alone, ["only in the second: hot, 256 connections"]);
        let bad = Report { is_good: false, ..before.clone() };
        assert!(Comparison::of(&before, &bad).unwrap_err().to_string().contains("second"));
        assert!("ten".parse::<Tolerance>().is_err() && "-1".parse::<Tolerance>().is_err());
    }
}
