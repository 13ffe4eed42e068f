//! The ways to what is stored: events, control rows, subscriptions, dead letters.

use std::collections::{BTreeMap, HashMap};
use std::future::{Future as _, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::changes::Changes;
use super::{MEASURE_WITHIN, Runtime};
use crate::aggregate::NoRejection;
use crate::command::{CommandContext, CommandError, ControlWrite, Done, Unavailable};
use crate::event::{DecodeError, EventPayload, Position, StoredEvent};
use crate::journal::codec::Reveal;
use crate::journal::{self, Batch, Letter, LetterFilter, TimerKey};
use crate::oversight::{
    HandlerTimeoutChanged, Oversight, OversightCommand, RetryPolicyChanged, RetrySettings, Switched,
};
use crate::subscriber::{
    BatchStatus, Cell, Delivery, Kind, PAUSED_SPACE, PausedBy, RETRY_SPACE, Set,
    SubscriptionStatus, TIMEOUT_SPACE,
};
use crate::world::Timestamp;

/// Reads the journal's events.
#[derive(Clone, Debug)]
pub struct JournalReader(pub(super) Runtime);

impl JournalReader {
    /// One event by its id.
    pub async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, journal::Error> {
        self.0.0.store.event(id).await
    }

    /// Where those of these events stand that are durable, however long ago they happened.
    pub async fn places(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Position>, journal::Error> {
        let mut found = HashMap::with_capacity(ids.len().min(journal::LOOKED_UP_MAX));
        for ids in ids.chunks(journal::LOOKED_UP_MAX) {
            found.extend(self.0.0.store.places(ids).await?);
        }
        Ok(found)
    }

    /// The event at a position.
    pub async fn event_at(&self, at: Position) -> Result<Option<Arc<StoredEvent>>, journal::Error> {
        if at.position == 0 || at.partition >= self.0.partitions() {
            return Ok(None);
        }
        let found = self.read_from(at.partition, at.position - 1, 1).await?;
        Ok(found.into_iter().next().filter(|event| event.position == at.position))
    }

    /// Events of a partition after a position, in order: from memory where it reaches back.
    pub async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, journal::Error> {
        let known = self.0.0.partitions.get(usize::from(partition));
        match known.and_then(|known| known.broker.tail().read(after, limit)) {
            Some(events) if !events.is_empty() => Ok(events),
            _ => self.0.0.store.read_from(partition, after, limit).await,
        }
    }

    /// Events of an aggregate after a version, in order.
    pub async fn read_aggregate(
        &self,
        id: Uuid,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, journal::Error> {
        self.0.0.store.read_aggregate(id, after_version, limit).await
    }

    /// Events with a correlation id, by partition and position.
    pub async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, journal::Error> {
        self.0.0.store.by_correlation(correlation_id, limit).await
    }

    /// When a timer of an aggregate is due, if it is set.
    pub async fn timer(
        &self,
        aggregate_type: &str,
        id: Uuid,
        name: &str,
    ) -> Result<Option<Timestamp>, journal::Error> {
        let key = TimerKey {
            aggregate_type: aggregate_type.into(),
            aggregate_id: id,
            name: name.to_owned(),
        };
        self.0.0.store.timer(&key).await
    }

    /// The newest committed position of each partition.
    pub fn heads(&self) -> Vec<Position> {
        let head = |partition: &crate::partition::Partition| Position {
            partition: partition.index,
            position: partition.writer.state().head(),
        };
        self.0.0.partitions.iter().map(head).collect()
    }

    /// Watches for new events of these aggregates, from now on.
    pub fn changes_of(&self, ids: &[Uuid]) -> Changes {
        let watchers = |id: &Uuid| (self.0.partition_for(*id).watchers.clone(), *id);
        Changes::new(ids.iter().map(watchers).collect())
    }

    /// Waits until the head of some partition is behind what `after` has of it (nothing, where it
    /// is not named); whether one is.
    pub async fn wait_past_any(&self, after: &BTreeMap<u16, u64>, timeout: Duration) -> bool {
        let mut heads: Vec<_> = self
            .0
            .0
            .partitions
            .iter()
            .map(|partition| {
                let after = after.get(&partition.index).copied().unwrap_or(0);
                let mut head = partition.head.clone();
                Box::pin(async move { head.wait_for(|head| *head > after).await.is_ok() })
            })
            .collect();
        let any = poll_fn(|context| {
            let moved = heads.iter_mut().map(|head| head.as_mut().poll(context));
            moved.fold(Poll::Pending, |found, head| if found.is_ready() { found } else { head })
        });
        tokio::time::timeout(timeout, any).await.unwrap_or(false)
    }

    /// An event's data for people to read.
    pub async fn reveal(
        &self,
        event: &StoredEvent,
        personal: Reveal,
    ) -> Result<Value, journal::Error> {
        let inner = &self.0.0;
        inner.keys.reveal(&*inner.store, event, personal).await
    }

    /// An event as its type, personal fields opened, old versions upcast.
    pub async fn decode<E: EventPayload>(&self, event: &StoredEvent) -> Result<E, DecodeError> {
        let inner = &self.0.0;
        let opened = inner.keys.open(&*inner.store, event.event_id, &event.data).await;
        let opened = opened.map_err(|_| DecodeError::Unsealable(event.event_type.to_string()))?;
        let data = opened.as_deref().unwrap_or(&event.data);
        E::decode_stored(event, data)
    }
}

/// The application's control rows: kept beside the journal and backed up with it.
#[derive(Clone, Debug)]
pub struct Control(pub(super) Runtime);

impl Control {
    /// A row, unless it has expired.
    pub async fn get(&self, space: &str, key: &[u8]) -> Result<Option<Vec<u8>>, journal::Error> {
        let now = self.0.world().now();
        self.0.0.store.control(space, key, now).await
    }

    /// Stores rows, all or none, and waits until they are durable.
    pub async fn put(&self, control: Vec<ControlWrite>) -> Result<(), Unavailable> {
        let writer = &self.0.0.partitions[0].writer;
        writer.store(Batch { control, ..Batch::default() }).await
    }
}

impl Control {
    /// Destroys a person's key: everything sealed with it is erased. No event changes. A backup
    /// that was made before has the key still: restoring one must destroy it again.
    pub async fn forget(&self, subject: Uuid) -> Result<(), Unavailable> {
        let writer = &self.0.0.partitions[0].writer;
        let destroyed_keys = vec![subject];
        writer.store(Batch { destroyed_keys, ..Batch::default() }).await
    }
}

/// The subscriptions of all partitions.
#[derive(Clone, Debug)]
pub struct Subscriptions(pub(super) Runtime);

impl Subscriptions {
    fn cells(&self, name: &str) -> Vec<&Arc<Cell>> {
        let partitions = self.0.0.partitions.iter();
        partitions
            .flat_map(|partition| partition.cells.iter())
            .filter(|cell| cell.subscription.name == name)
            .collect()
    }

    /// Every subscription.
    pub fn list(&self) -> Vec<SubscriptionStatus> {
        let Some(first) = self.0.0.partitions.first() else { return Vec::new() };
        first.cells.iter().map(|cell| self.status(cell)).collect()
    }

    /// Every subscription, with how old the oldest event is that each has not handled; without it where the
    /// journal does not say in time.
    pub async fn inspect(&self) -> Vec<SubscriptionStatus> {
        let mut all = self.list();
        let until = Instant::now() + MEASURE_WITHIN;
        for status in &mut all {
            for (cell, partition) in self.cells(status.name).iter().zip(&mut status.partitions) {
                let lag = tokio::time::timeout_at(until, cell.lag()).await;
                let lag = lag.ok().and_then(Result::ok).flatten();
                partition.lag_seconds = lag.map(|lag| lag.as_secs_f64());
            }
        }
        all
    }

    fn status(&self, first: &Cell) -> SubscriptionStatus {
        let (subscription, settings) = (&first.subscription, first.settings());
        let partitions: Vec<_> =
            self.cells(subscription.name).iter().map(|cell| cell.status()).collect();
        let any = |state: &str| partitions.iter().any(|partition| partition.state == state);
        let state = if first.paused.get() {
            "paused"
        } else if any("dlq_full") {
            "dlq_full"
        } else if any("damaged") {
            "damaged"
        } else if partitions.iter().any(|partition| partition.circuit != "closed") {
            "circuit_open"
        } else {
            "running"
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        SubscriptionStatus {
            name: subscription.name,
            context: subscription.context,
            kind: match subscription.kind {
                Kind::Handler(_) => "handler",
                Kind::Batches(..) => "batch_handler",
                Kind::Projection(_) => "projection",
            },
            patterns: subscription.patterns.iter().map(|p| p.as_str().to_owned()).collect(),
            filter: subscription.filter.clone(),
            ordering: subscription.ordering.as_str(),
            priority: subscription.priority.as_str(),
            batch: subscription.batch().map(|policy| BatchStatus {
                batch_size: policy.batch_size,
                max_wait_ms: millis(policy.max_wait),
            }),
            state,
            paused: first.paused_by(),
            retry: settings.retry,
            handler_timeout_ms: millis(settings.handler_timeout),
            partitions,
        }
    }

    /// What people have set for a subscription, with the version of its stream. `None`: there is no
    /// such subscription.
    pub async fn oversight(
        &self,
        name: &str,
    ) -> Result<Option<Done<Oversight>>, CommandError<NoRejection>> {
        if self.cells(name).is_empty() {
            return Ok(None);
        }
        let stream = Oversight::id_of(name);
        self.0.aggregate::<Oversight>().read(stream, Oversight::clone).await.map(Some)
    }

    /// Sets a subscription's retry policy, or with none gives it the one that it was declared with.
    /// It counts at once, also for what waits to be tried again, and across restarts. `None`: there
    /// is no such subscription.
    pub async fn set_retry_policy(
        &self,
        name: &str,
        new: Option<RetrySettings>,
        context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Done<Oversight>>, CommandError<NoRejection>> {
        let (subscription, at) = (name.to_owned(), self.0.world().now());
        let row = new.as_ref().map(serde_json::to_vec);
        let change = RetryPolicyChanged { subscription, old: None, new, reason, at };
        let command = OversightCommand::SetRetryPolicy(change);
        self.set(name, command, (RETRY_SPACE, row), context).await
    }

    /// The same for the time limit of an attempt, in milliseconds. Attempts under way keep the one
    /// that they began with.
    pub async fn set_handler_timeout(
        &self,
        name: &str,
        new_ms: Option<u64>,
        context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Done<Oversight>>, CommandError<NoRejection>> {
        let (subscription, at) = (name.to_owned(), self.0.world().now());
        let row = new_ms.as_ref().map(serde_json::to_vec);
        let change = HandlerTimeoutChanged { subscription, old_ms: None, new_ms, reason, at };
        let command = OversightCommand::SetHandlerTimeout(change);
        self.set(name, command, (TIMEOUT_SPACE, row), context).await
    }

    async fn set(
        &self,
        name: &str,
        command: OversightCommand,
        (space, row): (&'static str, Option<serde_json::Result<Vec<u8>>>),
        mut context: CommandContext,
    ) -> Result<Option<Done<Oversight>>, CommandError<NoRejection>> {
        let cells = self.cells(name);
        if cells.is_empty() {
            return Ok(None);
        }
        let value = row.map(|row| row.expect("numbers and flags can be written as JSON"));
        let key = name.as_bytes().to_vec();
        context.attach = vec![ControlWrite { space, key, value, expires_at: None }];
        let stream = Oversight::id_of(name);
        let oversight = self.0.aggregate::<Oversight>();
        let done = oversight.send(stream, command, context, Oversight::clone).await?;
        let set = Set::from(&done.value);
        cells.iter().for_each(|cell| cell.set(&set, done.version));
        Ok(Some(done))
    }

    /// Pauses a subscription: nothing is lost, its lag grows. It stays paused across restarts.
    /// `None`: there is no such one.
    pub async fn pause(
        &self,
        name: &str,
        context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Done<()>>, CommandError<NoRejection>> {
        self.switch(name, true, context, reason).await
    }

    /// Lets a paused subscription go on. `None`: there is no such one.
    pub async fn resume(
        &self,
        name: &str,
        context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Done<()>>, CommandError<NoRejection>> {
        self.switch(name, false, context, reason).await
    }

    async fn switch(
        &self,
        name: &str,
        paused: bool,
        mut context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Done<()>>, CommandError<NoRejection>> {
        let cells = self.cells(name);
        if cells.is_empty() {
            return Ok(None);
        }
        let at = self.0.world().now();
        let by = context.actor_id.to_string();
        let paused_by = paused.then(|| PausedBy { by, reason: reason.clone(), at });
        let row = serde_json::to_vec(&paused_by).expect("texts can be written as JSON");
        let switched = Switched { subscription: name.to_owned(), reason, at };
        let command = if paused {
            OversightCommand::Pause(switched)
        } else {
            OversightCommand::Resume(switched)
        };
        context.attach = vec![ControlWrite {
            space: PAUSED_SPACE,
            key: name.as_bytes().to_vec(),
            value: paused.then_some(row),
            expires_at: None,
        }];
        let stream = Oversight::id_of(name);
        let oversight = self.0.aggregate::<Oversight>();
        let done = oversight.send(stream, command, context, |_| ()).await?;
        for cell in cells {
            cell.switch(paused, paused_by.clone());
        }
        Ok(Some(done))
    }

    /// Waits until a subscription has handled everything up to `at`; whether it has.
    pub async fn wait_for(&self, name: &str, at: Position, timeout: Duration) -> bool {
        let cells = self.cells(name);
        let Some(cell) = cells.iter().find(|cell| cell.partition == at.partition) else {
            return false;
        };
        tokio::time::timeout(timeout, cell.reached(at.position)).await.is_ok()
    }

    /// How far a subscription is in a partition.
    pub fn position(&self, name: &str, partition: u16) -> Option<u64> {
        let cells = self.cells(name);
        cells.iter().find(|cell| cell.partition == partition).map(|cell| cell.position())
    }

    /// Where events stand with every subscription that wants them: for each event, in the order
    /// given, its deliveries.
    pub async fn deliveries(
        &self,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Vec<Delivery>>, journal::Error> {
        let mut deliveries = vec![Vec::new(); events.len()];
        let mut in_order: Vec<_> = events.iter().enumerate().collect();
        in_order.sort_unstable_by_key(|(_, event)| event.at());
        for partition in &self.0.0.partitions {
            for cell in &partition.cells {
                let (mut letters, usual_ms) = (LettersAhead::new(cell), cell.usual_ms());
                for (index, event) in &in_order {
                    let here = event.partition == partition.index;
                    let Some(key) = cell.key_of(event).filter(|_| here) else { continue };
                    let delivery = cell.delivery(event, key, usual_ms);
                    let letter = letters.at(event.position).await?;
                    deliveries[*index].push(match letter {
                        Some(letter) => dead(delivery, letter),
                        None => delivery,
                    });
                }
            }
        }
        Ok(deliveries)
    }

    /// The positions of events whose handler failed and is being tried again, each with the last
    /// one of its page.
    pub fn retried(&self) -> Vec<(Position, u64)> {
        let of = |cell: &Arc<Cell>| {
            let partition = cell.partition;
            let at = move |(position, last)| (Position { partition, position }, last);
            cell.retried().into_iter().map(at)
        };
        let partitions = self.0.0.partitions.iter();
        partitions.flat_map(|partition| partition.cells.iter().flat_map(of)).collect()
    }

    /// Waits until every subscription has handled everything that is committed, including what
    /// that led to; whether it came to that in time. For tests and for a clean stop.
    pub async fn quiesce(&self, timeout: Duration) -> bool {
        let quiet = async {
            let mut calm = 0;
            while calm < 3 {
                let behind = self.0.0.partitions.iter().any(|partition| {
                    let head = partition.writer.state().head();
                    partition.cells.iter().any(|cell| cell.runs() && cell.position() < head)
                });
                let busy = self.0.in_flight() != (0, 0);
                calm = if behind || busy { 0 } else { calm + 1 };
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(timeout, quiet).await.is_ok()
    }
}

/// A delivery that has become a letter.
fn dead(delivery: Delivery, letter: Letter) -> Delivery {
    let is_dead = letter.state != journal::LetterState::Waiting;
    Delivery {
        state: letter.state.as_str(),
        attempts: letter.attempts,
        last_error: is_dead.then_some(letter.error),
        class: is_dead.then_some(letter.class),
        first_failed_at: is_dead.then_some(letter.first_failed_at),
        last_failed_at: is_dead.then_some(letter.last_failed_at),
        next_attempt_at: None,
        handled: None,
        ..delivery
    }
}

/// A subscription's letters, asked for by positions that only grow: where there are none, one look
/// is enough for all of them.
struct LettersAhead<'a> {
    cell: &'a Cell,
    next: Option<Letter>,
    /// Whether `next` is known to be the first letter from the latest position on; none: there is
    /// none.
    known: bool,
}

impl<'a> LettersAhead<'a> {
    fn new(cell: &'a Cell) -> Self {
        Self { cell, next: None, known: false }
    }

    /// The letter of the event at a position.
    async fn at(&mut self, position: u64) -> Result<Option<Letter>, journal::Error> {
        let passed = self.next.as_ref().is_some_and(|letter| letter.position < position);
        if !self.known || passed {
            let filter = LetterFilter {
                subscription: Some(self.cell.subscription.name.to_owned()),
                after: position - 1,
                ..LetterFilter::default()
            };
            let letters = self.cell.store.letters(self.cell.partition, &filter, 1).await?;
            (self.next, self.known) = (letters.into_iter().next(), true);
        }
        Ok(self.next.take_if(|letter| letter.position == position).inspect(|_| self.known = false))
    }
}
