//! What the clients were told, and what they saw that must not be.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use uuid::Uuid;

use super::linearizability::{self, Answer, Call};

/// An operation on a hot listing, and what it was sent to last.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    /// The listing.
    pub object: Uuid,
    /// Which life of the server it was sent to, from 0.
    pub life: usize,
    /// The operation.
    pub operation: linearizability::Operation<Call, Answer>,
}

/// Something that was acknowledged: the journal must have it for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    /// A listing was made.
    Listed { listing: Uuid, price: i64 },
    /// A listing has had this price since this version.
    Priced { listing: Uuid, version: u64, price: i64 },
    /// Somebody saw an aggregate at this version.
    Seen { aggregate: Uuid, version: u64 },
    /// An order was placed.
    Placed { order: Uuid, quantity: i64 },
    /// It was cancelled.
    Cancelled { order: Uuid },
    /// Its buyer has it.
    Delivered { order: Uuid },
    /// Somebody registered.
    Registered { user: Uuid },
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which promise is broken.
    pub what: &'static str,
    /// Where, and how it shows.
    pub detail: String,
    /// In which cycle it was seen.
    pub cycle: usize,
    /// The seed of the run.
    pub seed: u64,
}

/// What all clients share.
#[derive(Default)]
pub(super) struct Ledger {
    acknowledged: Mutex<Vec<Ack>>,
    history: Mutex<Vec<Recorded>>,
    violations: Mutex<Vec<Violation>>,
    /// Changes that were acknowledged.
    pub commands: AtomicU64,
    /// Reads that were answered.
    pub reads: AtomicU64,
    /// Repeats of old keys that got the first answer again.
    pub repeats: AtomicU64,
    /// Answers that never came and were not asked for again.
    pub unknown: AtomicU64,
    /// Requests that were refused for good.
    pub refused: AtomicU64,
    /// Prices are never used twice.
    prices: AtomicI64,
    /// The clients are to end.
    pub stop: AtomicBool,
    pub cycle: AtomicU64,
    pub seed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Above what listings are offered for.
const FIRST_PRICE: i64 = 1_000_000;
/// One mistake shows again and again: more of the same says nothing new.
const VIOLATIONS_MAX: usize = 200;

impl Ledger {
    pub fn new(seed: u64) -> Self {
        Self { seed, prices: AtomicI64::new(FIRST_PRICE), ..Self::default() }
    }

    /// A price that no listing has had.
    pub fn new_price(&self) -> i64 {
        self.prices.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes a change that was acknowledged.
    pub fn note(&self, ack: Ack) {
        if matches!(ack, Ack::Seen { .. }) {
            self.reads.fetch_add(1, Ordering::Relaxed);
        } else {
            self.commands.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.acknowledged).push(ack);
    }

    /// Notes an operation on a hot listing.
    pub fn record(&self, operation: Recorded) {
        lock(&self.history).push(operation);
    }

    /// Notes a broken promise.
    pub fn broken(&self, what: &'static str, detail: impl Into<String>) {
        let mut violations = lock(&self.violations);
        if violations.len() < VIOLATIONS_MAX {
            let cycle = usize::try_from(self.cycle.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
            let (detail, seed) = (detail.into(), self.seed);
            violations.push(Violation { what, detail, cycle, seed });
        }
    }

    /// What has been acknowledged since this was asked last.
    pub fn take_acknowledged(&self) -> Vec<Ack> {
        std::mem::take(&mut lock(&self.acknowledged))
    }

    /// Every operation on hot listings so far.
    pub fn history(&self) -> Vec<Recorded> {
        lock(&self.history).clone()
    }

    /// Every broken promise so far.
    pub fn violations(&self) -> Vec<Violation> {
        lock(&self.violations).clone()
    }

    pub fn any_violation(&self) -> bool {
        !lock(&self.violations).is_empty()
    }
}
