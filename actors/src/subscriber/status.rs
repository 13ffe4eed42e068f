//! A subscription as its operators see it.

use serde::Serialize;
use uuid::Uuid;

use crate::event::StoredEvent;
use crate::filter::Filter;
use crate::journal::Error;
use crate::retry::RetryPolicy;
use crate::world::Timestamp;

use super::Cell;
use super::lane::QUEUE_MAX;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Events looked through for the oldest one that is not handled.
const LOOKED_THROUGH_MAX: usize = 1_024;

/// Who paused a subscription, why and when, as its control row keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct PausedBy {
    /// Who: a user's id.
    pub by: String,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What is being tried again.
#[derive(Debug, Clone, Serialize)]
pub struct RetryingStatus {
    /// The position of the event, or of the first of a page or batch.
    pub position: u64,
    /// The event, or the first of a page or batch.
    pub event_id: Uuid,
    /// How often it was tried.
    pub attempts: u32,
    /// What kind of failure it was: `transient` or `system`.
    pub class: &'static str,
    /// The latest error.
    pub error: String,
    /// The first failure.
    pub first_failed_at: Timestamp,
    /// When it is tried again; none: another attempt is going on, or a probe decides.
    pub next_attempt_at: Option<Timestamp>,
}

/// A subscription in one partition, as its operators see it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: u16,
    /// `running`, `paused`, `dlq_full`, `circuit_open` or `damaged`.
    pub state: &'static str,
    /// Everything up to here is handled, or a letter.
    pub position: u64,
    /// The newest committed position.
    pub head: u64,
    /// How many positions it is behind.
    pub lag_events: u64,
    /// How old the oldest event is that it has not handled; none: there is no such event, or it
    /// was not looked for.
    pub lag_seconds: Option<f64>,
    /// Since when the event is in a handler's hand that is so the longest.
    pub oldest_unacked_seconds: Option<f64>,
    /// Events handled a second, over the last minute.
    pub rate: f64,
    /// How long nineteen of twenty attempts took lately at most, in milliseconds.
    pub p95_ms: Option<f64>,
    /// Lanes.
    pub lanes: u16,
    /// Events that each lane has handled since the start.
    pub handled_by_lane: Vec<u64>,
    /// Events handed out to lanes and not handled yet: bounded, however much there is to do.
    pub in_flight: usize,
    /// There are never more: what the lanes' queues hold, what each lane has in hand, and the one that
    /// waits for room.
    pub max_in_flight: usize,
    /// `closed`, `half_open` or `open`.
    pub circuit: &'static str,
    /// System failures since the last attempt that was none.
    pub circuit_failures: u32,
    /// The latest of them.
    pub circuit_error: Option<String>,
    /// When an open circuit is tried.
    pub next_probe_at: Option<Timestamp>,
    /// Events handled since the start.
    pub handled: u64,
    /// Attempts since the start, of single events, pages or batches.
    pub attempts: u64,
    /// How long they took together.
    pub attempts_seconds: f64,
    /// Failed attempts since the start.
    pub failed: u64,
    /// Retries since the start.
    pub retried: u64,
    /// Letters since the start.
    pub letters: u64,
    /// How often it gave way to more urgent subscriptions since the start.
    pub gave_way: u64,
    /// Letters there are now: dead, waiting and skipped.
    pub dlq_letters: usize,
    /// Those of them that are dead: neither waiting nor, where order is kept, skipped.
    pub dlq_dead_letters: usize,
    /// How many letters there may be; with so many it stands still.
    pub dlq_letters_max: usize,
    /// Keys that wait behind a dead letter now.
    pub dlq_blocked_keys: usize,
    /// What is being tried again: at most one entry a lane.
    pub retrying: Vec<RetryingStatus>,
}

/// A subscription, as its operators see it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SubscriptionStatus {
    /// Its name.
    pub name: &'static str,
    /// Its context.
    pub context: &'static str,
    /// `handler`, `batch_handler` or `projection`.
    pub kind: &'static str,
    /// Its topic patterns.
    pub patterns: Vec<String>,
    /// What an event must be like, beyond its type.
    pub filter: Option<Filter>,
    /// `key`: events of one key one after the other; `none`: in any order.
    pub ordering: &'static str,
    /// `critical`, `standard` or `batch`: who goes first when there is more to do than can be done.
    pub priority: &'static str,
    /// Events at once, and how long to wait for as many, where it takes batches.
    pub batch: Option<BatchStatus>,
    /// `running`, `paused`, `circuit_open`, `dlq_full`: there is no room for another letter, or
    /// `damaged`: it waits at an event that is not what was written.
    pub state: &'static str,
    /// Who paused it, as far as that is known.
    pub paused: Option<PausedBy>,
    /// The retry policy in force.
    pub retry: RetryPolicy,
    /// The time limit for an attempt in force, in milliseconds.
    pub handler_timeout_ms: u64,
    /// By partition.
    pub partitions: Vec<PartitionStatus>,
}

/// How a subscription takes batches.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BatchStatus {
    /// Events at once, at most.
    pub batch_size: usize,
    /// How long one waits for more, in milliseconds.
    pub max_wait_ms: u64,
}

impl Cell {
    pub(crate) fn status(&self) -> PartitionStatus {
        let (head, position) = (self.broker.head(), self.position());
        let by_lane = |lane: &super::LaneState| lane.handled.load(Ordering::Relaxed);
        let seconds = |took: Duration| took.as_secs_f64();
        let (counts, circuit) = (&self.counts, self.circuit.state());
        let took = Duration::from_micros(counts.attempts_us.load(Ordering::Relaxed));
        PartitionStatus {
            partition: self.partition,
            state: self.held().unwrap_or("running"),
            position,
            head,
            lag_events: head.saturating_sub(position),
            lag_seconds: None,
            oldest_unacked_seconds: self.longest_in_hand().map(seconds),
            rate: self.lately.rate(),
            p95_ms: self.lately.attempts_p95().map(|took| seconds(took) * 1_000.0),
            lanes: self.subscription.lanes,
            handled_by_lane: self.lanes.iter().map(by_lane).collect(),
            in_flight: self.lanes.iter().map(|lane| lane.queued.load(Ordering::Acquire)).sum(),
            max_in_flight: self.lanes.len() * (QUEUE_MAX + self.subscription.batch_max()) + 1,
            circuit: circuit.name,
            circuit_failures: circuit.failures,
            circuit_error: circuit.error,
            next_probe_at: circuit.probe.map(|at| self.time_of(at)),
            handled: counts.handled.load(Ordering::Relaxed),
            attempts: counts.attempts.load(Ordering::Relaxed),
            attempts_seconds: seconds(took),
            failed: counts.failed.load(Ordering::Relaxed),
            retried: counts.retried.load(Ordering::Relaxed),
            letters: counts.letters.load(Ordering::Relaxed),
            gave_way: counts.gave_way.load(Ordering::Relaxed),
            dlq_letters: self.room().letters(),
            dlq_dead_letters: self.dead(),
            dlq_letters_max: self.letters_max,
            dlq_blocked_keys: self.room().blocked_keys(),
            retrying: self.all_retrying(),
        }
    }

    fn all_retrying(&self) -> Vec<RetryingStatus> {
        let shown = |(position, retrying): (u64, super::lately::Retrying)| RetryingStatus {
            position,
            event_id: retrying.event_id,
            attempts: retrying.attempts,
            class: retrying.failure.kind.as_str(),
            error: retrying.failure.message,
            first_failed_at: retrying.first_failed_at,
            next_attempt_at: retrying
                .next
                .or_else(|| self.circuit.opens_again())
                .map(|at| self.time_of(at)),
        };
        self.lately.all_retrying().into_iter().map(shown).collect()
    }

    /// The time at an instant to come.
    pub(super) fn time_of(&self, at: Instant) -> Timestamp {
        self.world.now().plus(at.saturating_duration_since(Instant::now()))
    }

    /// How long the event has been in a handler's hand that has been there the longest.
    pub(crate) fn longest_in_hand(&self) -> Option<Duration> {
        self.lately.longest_in_hand()
    }

    /// How many positions it is behind the head.
    pub(crate) fn lag_events(&self) -> u64 {
        self.broker.head().saturating_sub(self.position())
    }

    /// How old the oldest event is that it has not handled; none: there is no such event. Looks in
    /// memory where that reaches back, else at one page of the journal; where that has only events
    /// that do not concern it, the last of those is told.
    pub(crate) async fn lag(&self) -> Result<Option<Duration>, Error> {
        let (position, head) = (self.position(), self.broker.head());
        if let Some(lag) = self.lag_in_memory() {
            return Ok(lag);
        }
        let page = self.store.read_from(self.partition, position, LOOKED_THROUGH_MAX).await?;
        Ok(self.lag_of(&page, head))
    }

    /// As [`Cell::lag`], without the journal; none: memory does not reach back far enough.
    pub(crate) fn lag_in_memory(&self) -> Option<Option<Duration>> {
        let (position, head) = (self.position(), self.broker.head());
        if position >= head {
            return Some(None);
        }
        let events = self.broker.tail().read(position, LOOKED_THROUGH_MAX)?;
        (!events.is_empty()).then(|| self.lag_of(&events, head))
    }

    fn lag_of(&self, events: &[Arc<StoredEvent>], head: u64) -> Option<Duration> {
        let left = |event: &&Arc<StoredEvent>| {
            self.key_of(event).is_some_and(|key| !self.is_done(event, key))
        };
        let oldest = events.iter().find(left);
        let oldest = oldest.or_else(|| events.last().filter(|last| last.position < head));
        oldest.map(|oldest| self.world.now().since(oldest.timestamp))
    }
}
