//! What was asked, answered, stored, seen and charged: the plain model that a run is checked
//! against, the world outside the process, and the trace whose digest names a run.
//!
//! Everything here is sequential code behind one lock. It outlives the simulated processes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::domain::Kind;
use super::plan::{Ask, Mishap, Rng, Target};
use crate::event::StoredEvent;
use crate::journal::Batch;
use crate::world::{Timestamp, World};

/// The time at which every run begins: 2026-01-01T00:00:00Z.
pub(super) const EPOCH: i64 = 1_767_225_600_000;

/// How an attempt ended, as its client heard it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        version: u64,
        events: usize,
        value: i64,
        replayed: bool,
    },
    Rejected {
        code: &'static str,
        replayed: bool,
    },
    /// Nothing happened, they say.
    Nothing(String),
    Unknown,
}

/// A command under way or over.
#[derive(Debug)]
pub(super) struct Op {
    pub ask: Ask,
    pub keyed: bool,
    /// Copies of it that have no answer that is final.
    pub open: u32,
    /// Attempts whose answer has not come.
    pub in_flight: u32,
    pub answers: Vec<Answer>,
    pub panics: Arc<AtomicU32>,
    pub sent_at: u64,
}

/// A charge, as the provider outside knows it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outside {
    pub charged: bool,
    pub voided: bool,
    pub charges: u32,
}

#[derive(Default)]
pub(super) struct Inner {
    base: u64,
    began: Option<Instant>,
    hasher: blake3::Hasher,
    log: Option<Vec<String>>,
    pub violations: Vec<String>,
    pub ops: BTreeMap<u32, Op>,
    /// Which versions of which aggregate each subscriber has handled.
    pub seen: BTreeMap<(Target, Uuid), BTreeSet<u64>>,
    pub dropped: BTreeSet<(Target, Uuid, u64)>,
    /// Up to where the view is, by partition: stored with its rows.
    pub view_at: BTreeMap<u16, u64>,
    mishaps: BTreeMap<(Target, u32), VecDeque<Mishap>>,
    pub outside: BTreeMap<Uuid, Outside>,
    /// The newest durable version of each aggregate.
    pub durable: BTreeMap<Uuid, u64>,
    /// The newest version of each aggregate that somebody was told of.
    told: BTreeMap<Uuid, u64>,
    /// The version of the last fresh answer, by process and aggregate.
    replied: BTreeMap<(u32, Uuid), u64>,
    pub open_sagas: BTreeSet<Uuid>,
    pub alarms: BTreeMap<Uuid, i64>,
    /// Somebody has begun to work letters.
    pub letters_worked: bool,
}

/// See the module.
pub(super) struct Record {
    inner: Mutex<Inner>,
    random: Mutex<Rng>,
}

impl Record {
    pub(super) fn new(seed: u64, verbose: bool) -> Self {
        let inner = Inner { log: verbose.then(Vec::new), ..Inner::default() };
        Self { inner: Mutex::new(inner), random: Mutex::new(Rng(seed ^ 0xc1ea_4a7e)) }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn random(&self) -> MutexGuard<'_, Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process begins to live: its clock goes on from where the last one's stood.
    pub(super) fn begin(&self) {
        self.inner().began = Some(Instant::now());
    }

    /// It ended, and nothing happens for a while.
    pub(super) fn end(&self, down: u64) {
        let now = self.now();
        let mut inner = self.inner();
        (inner.base, inner.began) = (now + down, None);
    }

    /// Milliseconds since the start of the run.
    pub(super) fn now(&self) -> u64 {
        let inner = self.inner();
        let lived = inner.began.map_or(0, |began| began.elapsed().as_millis());
        inner.base + u64::try_from(lived).unwrap_or(u64::MAX)
    }

    /// Notes something that a run of the same seed does in the same way.
    pub(super) fn trace(&self, line: impl FnOnce() -> String) {
        let line = format!("{:>8} {}\n", self.now(), line());
        let mut inner = self.inner();
        inner.hasher.update(line.as_bytes());
        if let Some(log) = &mut inner.log {
            log.push(line);
        }
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        *self.inner().hasher.finalize().as_bytes()
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.inner().log.take().unwrap_or_default()
    }

    /// Something that must hold.
    pub(super) fn check(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            let violation = format!("{} (at {} ms)", otherwise(), self.now());
            self.trace(|| format!("VIOLATION {violation}"));
            self.inner().violations.push(violation);
        }
    }

    /// Whether something did not hold.
    pub(super) fn broken(&self) -> bool {
        !self.inner().violations.is_empty()
    }

    // ------------------------------------------------------------------------------ commands

    pub(super) fn asked(&self, number: u32, keyed: bool, copies: u32, ask: Ask) {
        let panics = if let Ask::Count { panics, .. } = ask { panics } else { 0 };
        let op = Op {
            ask,
            keyed,
            open: copies,
            in_flight: 0,
            answers: Vec::new(),
            panics: Arc::new(AtomicU32::new(panics)),
            sent_at: self.now(),
        };
        self.inner().ops.insert(number, op);
    }

    /// An attempt begins; what was already told of its aggregate.
    pub(super) fn attempt(&self, number: u32, aggregate: Uuid) -> u64 {
        let mut inner = self.inner();
        if let Some(op) = inner.ops.get_mut(&number) {
            op.in_flight += 1;
        }
        inner.told.get(&aggregate).copied().unwrap_or(0)
    }

    /// An attempt ended. Whether its client is content.
    pub(super) fn answered(
        &self,
        number: u32,
        process: u32,
        aggregate: Uuid,
        told_before: u64,
        answer: Answer,
    ) -> bool {
        self.trace(|| format!("answer to {number} from {process}: {answer:?}"));
        if let Answer::Accepted { version, replayed, .. } = answer {
            self.accepted(number, process, aggregate, told_before, (version, replayed));
        }
        self.same_answer(number, &answer);
        let mut inner = self.inner();
        let Some(op) = inner.ops.get_mut(&number) else { return true };
        op.in_flight -= 1;
        let last = !op.keyed || matches!(answer, Answer::Accepted { .. } | Answer::Rejected { .. });
        op.answers.push(answer);
        if last {
            op.open -= 1;
        }
        last
    }

    fn accepted(
        &self,
        number: u32,
        process: u32,
        aggregate: Uuid,
        told_before: u64,
        (version, replayed): (u64, bool),
    ) {
        let (durable, before) = {
            let inner = self.inner();
            let durable = inner.durable.get(&aggregate).copied().unwrap_or(0);
            (durable, inner.replied.get(&(process, aggregate)).copied().unwrap_or(0))
        };
        self.check(version <= durable, || {
            format!("durability: {number} was told of version {version}, stored is {durable}")
        });
        if !replayed {
            self.check(version >= told_before, || {
                format!("staleness: {number} was told of version {version} after {told_before}")
            });
            self.check(version >= before, || {
                format!("order: the answer at version {version} came after that at {before}")
            });
        }
        let mut inner = self.inner();
        let told = inner.told.entry(aggregate).or_default();
        *told = (*told).max(version);
        if !replayed {
            inner.replied.insert((process, aggregate), version);
        }
    }

    /// The same id gets the same answer.
    fn same_answer(&self, number: u32, answer: &Answer) {
        let first = {
            let inner = self.inner();
            let Some(op) = inner.ops.get(&number).filter(|op| op.keyed) else { return };
            let last = |answer: &&Answer| {
                matches!(answer, Answer::Accepted { .. } | Answer::Rejected { .. })
            };
            op.answers.iter().find(last).cloned()
        };
        let same = match (&first, answer) {
            (
                Some(Answer::Accepted { version: a, events: b, value: c, .. }),
                Answer::Accepted { version, events, value, .. },
            ) => (a, b, c) == (version, events, value),
            (Some(Answer::Rejected { code: a, .. }), Answer::Rejected { code, .. }) => a == code,
            (Some(_), Answer::Accepted { .. } | Answer::Rejected { .. }) => false,
            _ => true,
        };
        self.check(same, || {
            format!("idempotency: {number} was answered {first:?}, and then {answer:?}")
        });
    }

    /// A process ended: who waited for it does not know what became of the command. Returns who
    /// asks again.
    pub(super) fn hung_up(&self) -> Vec<u32> {
        let mut inner = self.inner();
        let mut again = Vec::new();
        for (number, op) in &mut inner.ops {
            if op.in_flight > 0 {
                op.answers.push(Answer::Unknown);
                op.in_flight = 0;
                if !op.keyed {
                    op.open = 0;
                }
            }
            again.extend((0..op.open).map(|_| *number));
        }
        again
    }

    // ------------------------------------------------------------------------------ the journal

    /// A batch is on the disk.
    pub(super) fn committed(&self, batch: &Batch) {
        for event in &batch.events {
            self.trace(|| {
                let StoredEvent { aggregate_type, aggregate_version, position, .. } = &**event;
                let hash = &event.hash[..4];
                format!("{position}: {aggregate_type} {aggregate_version} {hash:x?} {}", event.data)
            });
            let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
            self.inner().durable.insert(event.aggregate_id, event.aggregate_version);
            self.note(event, &data);
        }
    }

    fn note(&self, event: &StoredEvent, data: &Value) {
        let time = |name: &str| {
            data[name].as_str().and_then(Timestamp::parse).map_or(0, Timestamp::millis)
        };
        let saga = || data["key"].as_str().and_then(|key| key.parse::<Uuid>().ok());
        match &*event.event_type {
            "transfer.requested" => {
                self.inner().open_sagas.insert(event.aggregate_id);
            }
            "saga.completed" | "saga.failed" => {
                if let Some(key) = saga() {
                    self.inner().open_sagas.remove(&key);
                }
            }
            "alarm.set" => {
                self.inner().alarms.insert(event.aggregate_id, time("due"));
            }
            "alarm.rung" => {
                let due = self.inner().alarms.remove(&event.aggregate_id);
                self.rang(event.aggregate_id, due, time("at"));
            }
            "account.moved" if data["kind"] == serde_json::json!(Kind::Expired) => {
                self.rang(event.aggregate_id, Some(time("due")), time("at"));
            }
            _ => {}
        }
    }

    fn rang(&self, aggregate: Uuid, due: Option<i64>, at: i64) {
        self.check(due.is_some_and(|due| at >= due), || {
            let due = due.map(|due| due - EPOCH);
            format!("timers: {aggregate} rang at {}, due is {due:?}", at - EPOCH)
        });
    }

    // --------------------------------------------------------------------------- subscribers

    pub(super) fn plan_mishap(&self, target: Target, op: u32, mishap: Mishap, times: u32) {
        let mut inner = self.inner();
        let queue = inner.mishaps.entry((target, op)).or_default();
        queue.extend((0..times).map(|_| mishap));
    }

    pub(super) fn mishap(&self, target: Target, event: &StoredEvent) -> Option<Mishap> {
        let data: Value = serde_json::from_str(&event.data).ok()?;
        let op = u32::try_from(data["op"].as_u64()?).ok()?;
        self.inner().mishaps.get_mut(&(target, op))?.pop_front()
    }

    pub(super) fn heal(&self) {
        self.inner().mishaps.clear();
    }

    /// A subscriber has an event in hand: every earlier one of the aggregate must be behind it.
    pub(super) fn in_hand(&self, target: Target, event: &StoredEvent) {
        let (id, version) = (event.aggregate_id, event.aggregate_version);
        let missing = {
            let inner = self.inner();
            let seen = inner.seen.get(&(target, id));
            let behind = |earlier: &u64| {
                seen.is_some_and(|seen| seen.contains(earlier))
                    || inner.dropped.contains(&(target, id, *earlier))
            };
            (1..version).find(|earlier| !behind(earlier))
        };
        self.check(missing.is_none(), || {
            format!("delivery: {target:?} has version {version} of {id} before {missing:?}")
        });
    }

    /// A subscriber did its work. Whether for the first time.
    pub(super) fn handled(&self, target: Target, event: &StoredEvent) -> bool {
        self.trace(|| format!("{target:?} did {} at {}", event.position, event.partition));
        let mut inner = self.inner();
        let seen = inner.seen.entry((target, event.aggregate_id)).or_default();
        seen.insert(event.aggregate_version)
    }

    /// The view's transaction: rows and checkpoint.
    pub(super) fn project(&self, partition: u16, events: &[Arc<StoredEvent>], to: u64) {
        let at = self.inner().view_at.get(&partition).copied().unwrap_or(0);
        for event in events.iter().filter(|event| event.position > at) {
            self.in_hand(Target::View, event);
            let first = self.handled(Target::View, event);
            self.check(first, || format!("projection: {} was projected twice", event.position));
        }
        self.inner().view_at.insert(partition, at.max(to));
    }
}

/// The clock and the dice of a simulated process.
pub(super) struct SimulatedWorld(pub Arc<Record>);

impl World for SimulatedWorld {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(EPOCH + i64::try_from(self.0.now()).unwrap_or(i64::MAX))
    }

    fn fill(&self, bytes: &mut [u8]) {
        let mut random = self.0.random();
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
