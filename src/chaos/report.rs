//! What a run says in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::clients::World;
use super::{Mode, Options, Violation};

/// Times in milliseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// The median.
    pub p50: f64,
    /// Of a hundred, 95 are no longer than this.
    pub p95: f64,
    /// The longest.
    pub max: f64,
}

/// How a run went.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Where the journal was kept.
    pub store: String,
    /// In how many partitions.
    pub partitions: u16,
    /// Clients at the same time.
    pub clients: usize,
    /// Cycles that were done.
    pub cycles: usize,
    /// How often what was done.
    pub modes: BTreeMap<Mode, usize>,
    /// How often a server ended at which fault point.
    pub hits: BTreeMap<String, usize>,
    /// How often a server did not pass its fault point in time.
    pub missed: usize,
    /// Requests sent.
    pub attempts: u64,
    /// Requests answered by anything but a server error.
    pub successes: u64,
    /// Changes that were acknowledged.
    pub acknowledged: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Repeats of old keys that got the first answer again.
    pub repeats: u64,
    /// Requests that were refused for good.
    pub refused: u64,
    /// Changes without an answer that were not asked for again.
    pub unknown: u64,
    /// Orders.
    pub orders: usize,
    /// Webhooks that were taken, each once.
    pub webhooks: usize,
    /// Events in the journal.
    pub events: u64,
    /// From the start of a process to its first answer.
    pub first_answer_ms: Times,
    /// The share of requests that succeeded, from 10 s after each restart of the database on.
    pub recoveries: Vec<f64>,
    /// How often the clock had to be moved for everything to come to an end.
    pub clock_helped: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Fewer than half of the requests were answered: the run says little.
    pub void: bool,
    /// Every promise that was broken.
    pub violations: Vec<Violation>,
    /// The run's files, where they were kept.
    pub folder: Option<PathBuf>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            seed: options.seed,
            store: options.store.to_string(),
            partitions: options.partitions,
            clients: options.clients,
            ..Self::default()
        }
    }

    pub(super) fn count(&mut self, mode: Mode) {
        *self.modes.entry(mode).or_default() += 1;
    }

    pub(super) fn hit(&mut self, point: &str) {
        *self.hits.entry(point.to_owned()).or_default() += 1;
    }

    pub(super) fn conclude(&mut self, world: &World, starts: &Histogram<u64>, took: Duration) {
        let (ledger, door) = (&world.ledger, &world.door);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.attempts = read(&door.attempts);
        self.successes = read(&door.successes);
        self.acknowledged = read(&ledger.commands);
        self.reads = read(&ledger.reads);
        self.repeats = read(&ledger.repeats);
        self.refused = read(&ledger.refused);
        self.unknown = read(&ledger.unknown);
        self.violations = ledger.violations();
        self.void = self.successes * 2 < self.attempts;
        #[expect(clippy::cast_precision_loss, reason = "microseconds of minutes at most")]
        let millis = |micros: u64| micros as f64 / 1_000.0;
        self.first_answer_ms = Times {
            p50: millis(starts.value_at_quantile(0.5)),
            p95: millis(starts.value_at_quantile(0.95)),
            max: millis(starts.max()),
        };
        self.seconds = took.as_secs_f64();
    }

    /// Whether nothing is wrong and the run says something.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && !self.void
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, cycles, store, partitions, clients, seconds, .. } = self;
        writeln!(
            f,
            "{cycles} cycles in {seconds:.0} s (seed {seed}, {store}, {partitions} partitions, {clients} clients)"
        )?;
        for (mode, count) in &self.modes {
            writeln!(f, "  {count:>8} {mode:?}")?;
        }
        for (point, count) in &self.hits {
            writeln!(f, "  {count:>8} ended at {point}")?;
        }
        writeln!(f, "{} of {} requests answered", self.successes, self.attempts)?;
        writeln!(
            f,
            "{} changes acknowledged, {} reads, {} repeats checked, {} refused, {} unknown; {} orders, {} webhooks, {} events",
            self.acknowledged,
            self.reads,
            self.repeats,
            self.refused,
            self.unknown,
            self.orders,
            self.webhooks,
            self.events
        )?;
        let Times { p50, p95, max } = self.first_answer_ms;
        writeln!(f, "first answer after {p50:.0} ms (p50), {p95:.0} ms (p95), {max:.0} ms (max)")?;
        if let Some(least) = self.recoveries.iter().copied().reduce(f64::min) {
            let count = self.recoveries.len();
            writeln!(
                f,
                "{count} restarts of the database; afterwards at least {least:.3} succeed"
            )?;
        }
        for violation in &self.violations {
            let Violation { what, detail, cycle, .. } = violation;
            writeln!(f, "BROKEN in cycle {cycle}: {what}: {detail}")?;
        }
        if self.void {
            writeln!(f, "VOID: fewer than half of the requests were answered")?;
        }
        if let Some(folder) = &self.folder {
            writeln!(f, "its files are in {}", folder.display())?;
        }
        let count = self.violations.len();
        write!(f, "{count} violations")
    }
}
