//! What a measurement says: a table for people, JSON for programs.

use serde::Serialize;

/// One phase.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was done.
    pub phase: &'static str,
    /// How many connections at the same time; none: not over HTTP.
    pub connections: Option<usize>,
    /// Commands (of the raw inserts: events) a second.
    pub per_second: f64,
    /// Median, 95th and 99th percentile, in milliseconds.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The rate as a share of the echo with as many connections in this run.
    pub of_echo: Option<f64>,
    /// Events stored a second as a share of the raw inserts of this run.
    pub of_raw: Option<f64>,
    /// The server's processor time per request, in microseconds.
    pub cpu_us: Option<f64>,
    /// Answers below 300, warming up included.
    pub accepted: u64,
    /// Other answers.
    pub refused: u64,
    /// Events that the journal has got, warming up included.
    pub journalled: u64,
}

/// A whole measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The program's version and revision.
    pub version: String,
    /// `sqlite` or `postgres`.
    pub store: &'static str,
    /// How many processors it saw.
    pub processors: usize,
    /// How long each phase was, in seconds.
    pub seconds: f64,
    /// How many listings the spread load was spread over.
    pub listings: usize,
    /// The phases, in the order in which they ran.
    pub rows: Vec<Row>,
}

impl Report {
    /// As a table in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} on {}, {} processors, {} s a phase, spread over {} listings\n\n",
            self.version, self.store, self.processors, self.seconds, self.listings
        );
        text.push_str("| phase | connections | per second | p50 ms | p95 ms | p99 ms | of echo | of raw | cpu µs |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
        for row in &self.rows {
            let number = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
            };
            text.push_str(&format!(
                "| {} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {} | {} | {} |\n",
                row.phase,
                row.connections.map_or_else(|| "–".to_owned(), |count| count.to_string()),
                row.per_second,
                row.p50_ms,
                row.p95_ms,
                row.p99_ms,
                number(row.of_echo, 2),
                number(row.of_raw, 2),
                number(row.cpu_us, 0),
            ));
        }
        text
    }
}
