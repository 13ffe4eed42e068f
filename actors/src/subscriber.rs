//! Subscriptions: who hears of which events, how, and what happens when that fails.
//!
//! One actor per subscription and partition pulls at its own pace from the broker's tail or, when
//! it is behind, from the journal. Handlers work in parallel lanes; events of one key always go
//! through one lane, one after the other; a subscription that keeps no order uses its lanes in turn.
//! A projection has one lane and takes batches, so that rows and checkpoint commit together.

mod lane;
mod lately;
mod priority;
mod pull;
mod redrive;
mod replay;
mod room;
mod settings;
mod status;
mod telling;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::broker::{BrokerHandle, Pattern, Route};
use crate::circuit::{Circuit, CircuitPolicy};
use crate::command::CommandContext;
pub use crate::command::DeliveryMetadata;
use crate::dead_letter::DeadLetterHandle;
use crate::event::StoredEvent;
use crate::faults::Faults;
use crate::filter::Filter;
use crate::flag::Flag;
use crate::journal::Store;
use crate::journal::writer::WriterHandle;
use crate::oversight::{LettersBound, Oversight, OversightCommand, ReplayRequested};
use crate::retry::{Backoff, Failure, RetryPolicy};
use crate::runtime::Runtime;
use crate::world::{Timestamp, World};
pub use lately::Handled;
use lately::Lately;
pub(crate) use priority::AtWork;
pub use priority::Priority;
pub(crate) use pull::run;
use redrive::Redrives;
pub use redrive::{Redrive, RedriveError, Redriven, Work};
use replay::Window;
pub(crate) use replay::{REPLAY_SPACE, begun as replay_begun, ended as replay_ended};
pub use replay::{ReplayProgress, ReplayScope};
use room::Room;
pub(crate) use settings::{RETRY_SPACE, Set, Settings, TIMEOUT_SPACE};
pub use status::{BatchStatus, PartitionStatus, PausedBy, RetryingStatus, SubscriptionStatus};

/// Handles one event at a time. At least once: it must bear a repeat.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Does what the event asks for.
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure>;
}

/// Handles several events at once. At least once: it must bear a repeat, of some of them too.
#[async_trait]
pub trait BatchHandler: Send + Sync + 'static {
    /// Does what the events ask for. They are in order, of one lane, and at least one. A failure
    /// says nothing of any single one: halves are tried, down to the one that fails alone.
    async fn handle_batch(
        &self,
        runtime: &Runtime,
        events: &[Arc<StoredEvent>],
    ) -> Result<(), Failure>;
}

/// Keeps rows that follow from events. Exactly once in effect: its checkpoint commits with them.
#[async_trait]
pub trait Projection: Send + Sync + 'static {
    /// The position up to which the partition is projected, as stored with the rows.
    async fn checkpoint(&self, partition: u16) -> Result<u64, Failure>;

    /// In one transaction: takes these events of a partition, which are all it wants of those
    /// behind `from` up to `to`, and moves the checkpoint to `to`. Positions up to the checkpoint
    /// are skipped.
    async fn project(
        &self,
        runtime: &Runtime,
        partition: u16,
        from: u64,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<(), Failure>;

    /// Tells metrics that it has come this far in a partition, for each version that it keeps so far.
    fn came_to(&self, name: &'static str, partition: u16, position: u64) {
        tell_position(name, 1, partition, Some(position));
    }

    /// Takes one event that was a dead letter; the checkpoint is past it and stays.
    async fn redeliver(
        &self,
        _runtime: &Runtime,
        _event: &Arc<StoredEvent>,
    ) -> Result<(), Failure> {
        Err(Failure::permanent("this projection takes no event twice: rebuild it"))
    }
}

/// Tells metrics how far a version of a projection is in a partition; none: there is no such version any
/// more.
pub fn tell_position(projection: &'static str, version: u32, partition: u16, at: Option<u64>) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    let at = at.map_or(f64::NAN, |at| at as f64);
    metrics::gauge!("souk_projection_position", "projection" => projection, "version" => version.to_string(), "partition" => partition.to_string())
        .set(at);
}

/// The key whose order a subscription keeps; none: the event does not concern it after all.
pub type KeyOf = Arc<dyn Fn(&StoredEvent) -> Option<Uuid> + Send + Sync>;

/// How many events a handler takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// At most; at least one.
    pub batch_size: usize,
    /// How long the first of them waits for more.
    pub max_wait: Duration,
}

/// In which order a subscription handles events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordered {
    /// Those of one key one after the other, always through the same lane.
    #[default]
    ByKey,
    /// In none: the lanes take them in turn, and a dead letter holds up no other event.
    Not,
}

impl Ordered {
    /// The name that operators see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByKey => "key",
            Self::Not => "none",
        }
    }
}

/// What a subscription is.
#[derive(Clone)]
pub enum Kind {
    /// Effects, one event at a time.
    Handler(Arc<dyn Handler>),
    /// Effects, several events at a time.
    Batches(Arc<dyn BatchHandler>, BatchPolicy),
    /// Rows, in batches.
    Projection(Arc<dyn Projection>),
}

/// A declared subscription.
#[derive(Clone)]
pub struct Subscription {
    /// Names it. Stored with its checkpoints: a renamed one starts over. Never rename.
    pub name: &'static str,
    /// The bounded context that it belongs to.
    pub context: &'static str,
    /// The topics.
    pub patterns: Vec<Pattern>,
    /// What an event must be like, beyond its type.
    pub filter: Option<Filter>,
    /// In which order.
    pub ordering: Ordered,
    /// Who goes first when there is more to do than can be done.
    pub priority: Priority,
    /// How many lanes; stored with the checkpoints.
    pub lanes: u16,
    /// The key of an event.
    pub key: KeyOf,
    /// What to do after a transient failure.
    pub retry: RetryPolicy,
    /// When the circuit opens and how long it stays open.
    pub circuit: CircuitPolicy,
    /// How long one attempt may take.
    pub handler_timeout: Duration,
    /// Who does the work.
    pub kind: Kind,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Subscription {
    /// A subscription for effects: four lanes, keyed by aggregate.
    ///
    /// # Panics
    /// If a pattern is not one: patterns are part of the program.
    pub fn handler(
        name: &'static str,
        context: &'static str,
        patterns: &[&str],
        handler: Arc<dyn Handler>,
    ) -> Self {
        Self::new(name, context, patterns, 4, Kind::Handler(handler))
    }

    /// A subscription for effects that takes several events at once: four lanes, keyed by aggregate.
    ///
    /// # Panics
    /// If a pattern is not one: patterns are part of the program.
    pub fn batches(
        name: &'static str,
        context: &'static str,
        patterns: &[&str],
        policy: BatchPolicy,
        handler: Arc<dyn BatchHandler>,
    ) -> Self {
        Self::new(name, context, patterns, 4, Kind::Batches(handler, policy))
    }

    /// A subscription for rows: one lane.
    ///
    /// # Panics
    /// If a pattern is not one: patterns are part of the program.
    pub fn projection(
        name: &'static str,
        context: &'static str,
        patterns: &[&str],
        projection: Arc<dyn Projection>,
    ) -> Self {
        Self::new(name, context, patterns, 1, Kind::Projection(projection))
    }

    fn new(
        name: &'static str,
        context: &'static str,
        patterns: &[&str],
        lanes: u16,
        kind: Kind,
    ) -> Self {
        let parse = |text: &&str| Pattern::parse(text).expect("patterns in the program are valid");
        Self {
            name,
            context,
            patterns: patterns.iter().map(parse).collect(),
            filter: None,
            ordering: Ordered::ByKey,
            priority: Priority::Standard,
            lanes,
            key: Arc::new(|event| Some(event.aggregate_id)),
            retry: RetryPolicy::default(),
            circuit: CircuitPolicy::default(),
            handler_timeout: Duration::from_secs(30),
            kind,
        }
    }

    /// With another key.
    #[must_use]
    pub fn keyed_by(
        mut self,
        key: impl Fn(&StoredEvent) -> Option<Uuid> + Send + Sync + 'static,
    ) -> Self {
        self.key = Arc::new(key);
        self
    }

    /// With another retry policy.
    #[must_use]
    pub fn retrying(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// With another time limit for an attempt.
    #[must_use]
    pub fn within(mut self, handler_timeout: Duration) -> Self {
        self.handler_timeout = handler_timeout;
        self
    }

    /// With another priority.
    #[must_use]
    pub fn at_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Only events that pass. What does not never reaches the handler, and is no letter.
    #[must_use]
    pub fn filtered(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// In no order: lanes in turn, letters by event.
    #[must_use]
    pub fn unordered(mut self) -> Self {
        if !matches!(self.kind, Kind::Projection(_)) {
            self.ordering = Ordered::Not;
        }
        self
    }

    /// Events at once, at most.
    fn batch_max(&self) -> usize {
        self.batch().map_or(1, |policy| policy.batch_size.max(1))
    }

    /// How it takes batches, if it does.
    pub fn batch(&self) -> Option<BatchPolicy> {
        match &self.kind {
            Kind::Batches(_, policy) => Some(*policy),
            Kind::Handler(_) | Kind::Projection(_) => None,
        }
    }

    /// With another number of lanes.
    #[must_use]
    pub fn in_lanes(mut self, lanes: u16) -> Self {
        if !matches!(self.kind, Kind::Projection(_)) {
            self.lanes = lanes.max(1);
        }
        self
    }
}

/// How far a lane is, for all to see.
#[derive(Debug, Default)]
struct LaneState {
    done: AtomicU64,
    queued: AtomicUsize,
    handled: AtomicU64,
}

impl LaneState {
    /// The event at this position, the first that is queued, is handled or a letter.
    fn behind(&self, position: u64) {
        self.done.store(position, Ordering::Release);
        self.handled.fetch_add(1, Ordering::Relaxed);
        self.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One subscription in one partition: everything that outlives a crash of its actor.
pub(crate) struct Cell {
    pub subscription: Subscription,
    pub partition: u16,
    pub store: Arc<dyn Store>,
    pub writer: WriterHandle,
    pub broker: BrokerHandle,
    pub dead_letters: DeadLetterHandle,
    pub faults: Arc<Faults>,
    pub world: Arc<dyn World>,
    pub route: Arc<Route>,
    pub paused: Flag,
    pub stopping: Flag,
    pub poll_interval: Duration,
    pub letters_max: usize,
    /// What all subscriptions of the partition have under way.
    at_work: Arc<AtWork>,
    pub runtime: OnceLock<crate::runtime::WeakRuntime>,
    circuit: Circuit,
    lanes: Vec<LaneState>,
    /// Where no order is kept: the positions that were handed out and are not done. Bounded by what
    /// fits into the lanes.
    unfinished: Option<Mutex<BTreeSet<u64>>>,
    /// What is in force of what people can set.
    settings: watch::Sender<Settings>,
    paused_by: Mutex<Option<PausedBy>>,
    /// The replay that is running, and what is under way of it.
    replay: watch::Sender<Option<Arc<ReplayRequested>>>,
    window: Mutex<Option<Arc<Window>>>,
    dispatched: AtomicU64,
    damaged: AtomicBool,
    lately: Lately,
    progress: Notify,
    room: Mutex<Arc<Room>>,
    redrives: Vec<Redrives>,
    pub counts: Counts,
}

/// What has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub handled: AtomicU64,
    pub failed: AtomicU64,
    pub retried: AtomicU64,
    pub letters: AtomicU64,
    pub attempts: AtomicU64,
    pub attempts_us: AtomicU64,
    /// How often it gave way to what is more urgent.
    pub gave_way: AtomicU64,
}

impl Counts {
    /// An attempt took so long.
    fn attempted(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.attempts_us.fetch_add(took, Ordering::Relaxed);
    }
}

/// How people have steered a subscription, as stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steered {
    pub paused: bool,
    pub paused_by: Option<PausedBy>,
    pub set: Set,
    pub replay: Option<Arc<ReplayRequested>>,
}

/// What a cell is made of.
pub(crate) struct CellParts {
    pub store: Arc<dyn Store>,
    pub writer: WriterHandle,
    pub broker: BrokerHandle,
    pub dead_letters: DeadLetterHandle,
    pub faults: Arc<Faults>,
    pub world: Arc<dyn World>,
    pub stopping: Flag,
    pub poll_interval: Duration,
    pub letters_max: usize,
    pub at_work: Arc<AtWork>,
}

fn measure_damage(subscription: &'static str, partition: u16, waits: bool) {
    metrics::gauge!("souk_subscription_damaged", "subscription" => subscription, "partition" => partition.to_string())
        .set(f64::from(u8::from(waits)));
}

impl Cell {
    pub(crate) fn new(
        subscription: Subscription,
        partition: u16,
        parts: CellParts,
        steered: &Steered,
    ) -> Arc<Self> {
        let route = Arc::new(Route::new(subscription.patterns.clone()));
        measure_damage(subscription.name, partition, false);
        Arc::new(Self {
            partition,
            route,
            paused: Flag::new(steered.paused),
            paused_by: Mutex::new(steered.paused_by.clone()),
            replay: watch::Sender::new(steered.replay.clone()),
            window: Mutex::default(),
            settings: watch::Sender::new(Settings::new(&subscription, &steered.set, 0)),
            unfinished: (subscription.ordering == Ordered::Not).then(Mutex::default),
            runtime: OnceLock::new(),
            circuit: Circuit::of(subscription.name, partition, subscription.circuit.clone()),
            lanes: (0..subscription.lanes).map(|_| LaneState::default()).collect(),
            dispatched: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
            lately: Lately::default(),
            progress: Notify::new(),
            room: Mutex::default(),
            redrives: (0..subscription.lanes).map(|_| Redrives::default()).collect(),
            counts: Counts::default(),
            subscription,
            store: parts.store,
            writer: parts.writer,
            broker: parts.broker,
            dead_letters: parts.dead_letters,
            faults: parts.faults,
            world: parts.world,
            stopping: parts.stopping,
            poll_interval: parts.poll_interval,
            letters_max: parts.letters_max,
            at_work: parts.at_work,
        })
    }

    /// Everything up to here is handled, or a letter.
    pub(crate) fn position(&self) -> u64 {
        let dispatched = self.dispatched.load(Ordering::Acquire);
        if let Some(unfinished) = self.unfinished() {
            return unfinished.first().map_or(dispatched, |first| first - 1);
        }
        let lanes = self.lanes.iter().map(|lane| lane_position(lane, dispatched));
        lanes.min().unwrap_or(dispatched)
    }

    /// Look at `dispatched` first: an event is unfinished before that moves past it.
    fn unfinished(&self) -> Option<std::sync::MutexGuard<'_, BTreeSet<u64>>> {
        let unfinished = self.unfinished.as_ref()?;
        Some(unfinished.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An event is handed to a lane. What came before it and was handed out is done there, if the
    /// lane has nothing to do.
    fn ahead(&self, lane: usize, position: u64) {
        let state = &self.lanes[lane];
        if let Some(mut unfinished) = self.unfinished() {
            unfinished.insert(position);
        } else if state.queued.load(Ordering::Acquire) == 0 {
            state.done.fetch_max(self.dispatched.load(Ordering::Acquire), Ordering::AcqRel);
        }
        state.queued.fetch_add(1, Ordering::AcqRel);
    }

    /// The event at this position, the first that is queued in a lane, is handled or a letter.
    fn behind(&self, lane: usize, position: u64) {
        self.lanes[lane].behind(position);
        if let Some(mut unfinished) = self.unfinished() {
            unfinished.remove(&position);
        }
    }

    /// The key of an event that concerns the subscription. Where no order is kept each event is a
    /// key of its own.
    pub(crate) fn key_of(&self, event: &StoredEvent) -> Option<Uuid> {
        let subscription = &self.subscription;
        if !self.route.wants(&event.event_type) {
            return None;
        }
        let key = (subscription.key)(event)?;
        if subscription.filter.as_ref().is_some_and(|filter| !filter.matches(event)) {
            return None;
        }
        Some(match subscription.ordering {
            Ordered::ByKey => key,
            Ordered::Not => event.event_id,
        })
    }

    /// What is in force of what people can set.
    pub(crate) fn settings(&self) -> Settings {
        self.settings.borrow().clone()
    }

    /// Puts into force what was set, unless something later is.
    pub(crate) fn set(&self, set: &Set, version: u64) {
        let new = Settings::new(&self.subscription, set, version);
        self.settings.send_if_modified(|settings| {
            let is_news = version >= settings.version && new != *settings;
            if is_news {
                *settings = new;
            }
            is_news
        });
    }

    /// Notes who paused it, or that it goes on.
    pub(crate) fn switch(&self, paused: bool, paused_by: Option<PausedBy>) {
        *self.paused_by.lock().unwrap_or_else(PoisonError::into_inner) = paused_by;
        self.paused.set(paused);
    }

    /// Who paused it, as far as that is known.
    pub(crate) fn paused_by(&self) -> Option<PausedBy> {
        let paused_by = self.paused_by.lock().unwrap_or_else(PoisonError::into_inner);
        paused_by.clone().filter(|_| self.paused.get())
    }

    /// Waits until everything up to `position` is handled, or a letter.
    pub(crate) async fn reached(&self, position: u64) {
        loop {
            let moved = self.progress.notified();
            if self.position() >= position {
                return;
            }
            // The broker is in no hurry to tell it that there was nothing for it.
            self.route.wake();
            moved.await;
        }
    }

    /// Whether an event, of this key, is handled or a letter.
    fn is_done(&self, event: &StoredEvent, key: Uuid) -> bool {
        let dispatched = self.dispatched.load(Ordering::Acquire);
        match self.unfinished() {
            Some(unfinished) => {
                event.position <= dispatched && !unfinished.contains(&event.position)
            }
            None => lane_position(&self.lanes[self.lane_of(key)], dispatched) >= event.position,
        }
    }

    /// Where an event of its key stands, as far as no letter tells. `usual_ms` is what
    /// [`Cell::usual_ms`] says: it is dear, and the same for all events.
    pub(crate) fn delivery(
        &self,
        event: &StoredEvent,
        key: Uuid,
        usual_ms: Option<u64>,
    ) -> Delivery {
        let subscription = &self.subscription;
        let mut delivery = Delivery {
            subscription: subscription.name,
            is_projection: matches!(subscription.kind, Kind::Projection(_)),
            partition: self.partition,
            key,
            state: "acked",
            attempts: 0,
            attempts_max: self.settings.borrow().retry.max_retries.saturating_add(1),
            last_error: None,
            class: None,
            first_failed_at: None,
            last_failed_at: None,
            next_attempt_at: None,
            held: None,
            handled: None,
            usual_ms,
        };
        let retrying = self.lately.retrying(event.position);
        if retrying.is_none() && self.is_done(event, key) {
            delivery.handled = self.lately.handled(event.position);
            delivery.attempts = delivery.handled.map_or(0, |handled| handled.attempts);
            return delivery;
        }
        delivery.state = "pending";
        delivery.held = self.held();
        if let Some(retrying) = retrying {
            let next = retrying.next.or_else(|| self.circuit.opens_again());
            delivery.state = "retrying";
            delivery.attempts = retrying.attempts;
            delivery.class = Some(retrying.failure.kind.as_str().to_owned());
            delivery.last_error = Some(retrying.failure.message);
            delivery.first_failed_at = Some(retrying.first_failed_at);
            delivery.last_failed_at = Some(retrying.last_failed_at);
            delivery.next_attempt_at = next.map(|next| self.time_of(next));
        }
        delivery
    }

    /// How long nineteen of twenty deliveries took lately at most, in milliseconds.
    pub(crate) fn usual_ms(&self) -> Option<u64> {
        self.lately.usual_ms()
    }

    /// The positions of events that failed and are being tried again.
    pub(crate) fn retried(&self) -> Vec<(u64, u64)> {
        self.lately.retried()
    }

    /// Why it does not go on, if it does not.
    pub(crate) fn held(&self) -> Option<&'static str> {
        if self.paused.get() {
            Some("paused")
        } else if self.is_full() {
            Some("dlq_full")
        } else if self.is_at_damage() {
            Some("damaged")
        } else {
            (self.circuit.name() != "closed").then_some("circuit_open")
        }
    }

    /// Whether the next event cannot be read because it is damaged.
    pub(crate) fn is_at_damage(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    fn waits_at_damage(&self, waits: bool) {
        if self.damaged.swap(waits, Ordering::AcqRel) != waits {
            let (name, partition) = (self.subscription.name, self.partition);
            measure_damage(name, partition, waits);
            if !waits {
                tracing::info!(
                    subscription = name,
                    partition,
                    "the event can be read again; the subscription goes on"
                );
            }
        }
    }

    /// The room for letters during this life of its actor.
    fn room(&self) -> Arc<Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it stands still because its letters have used up their room.
    pub(crate) fn is_full(&self) -> bool {
        self.room().is_full()
    }

    /// Whether nobody paused it and it has room for letters.
    pub(crate) fn runs(&self) -> bool {
        !self.paused.get() && !self.is_full()
    }

    /// Letters that are dead, without those that wait behind them: of each key that waits the first,
    /// where order is kept; else every letter.
    pub(crate) fn dead(&self) -> usize {
        let room = self.room();
        match self.subscription.ordering {
            Ordered::ByKey => room.blocked_keys(),
            Ordered::Not => room.letters(),
        }
    }

    /// Brings the metrics of its letters up to date.
    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    fn measure_letters(&self) {
        let (name, room) = (self.subscription.name, self.room());
        let partition = self.partition.to_string();
        metrics::gauge!("souk_dlq_letters", "subscription" => name, "partition" => partition.clone())
            .set(room.letters() as f64);
        metrics::gauge!("souk_dlq_dead_letters", "subscription" => name, "partition" => partition.clone())
            .set(self.dead() as f64);
        metrics::gauge!("souk_dlq_blocked_keys", "subscription" => name, "partition" => partition.clone())
            .set(room.blocked_keys() as f64);
        metrics::gauge!("souk_dlq_full", "subscription" => name, "partition" => partition)
            .set(f64::from(u8::from(room.is_full())));
    }

    /// Says so, once, when the room for letters is used up: the subscription stands still.
    fn look_whether_full(self: &Arc<Self>) {
        let room = self.room();
        if room.fills() {
            let (subscription, partition) = (self.subscription.name, self.partition);
            tracing::error!(
                subscription,
                partition,
                letters = room.letters(),
                letters_max = room.max(),
                "the dead-letter queue is full; the subscription stands still until letters are worked"
            );
            self.record_bound(OversightCommand::Fill);
        }
    }

    /// A letter is gone.
    fn letter_gone(self: &Arc<Self>) {
        if self.room().remove() {
            let (subscription, partition) = (self.subscription.name, self.partition);
            tracing::info!(
                subscription,
                partition,
                "there is room for letters again; the subscription goes on"
            );
            self.record_bound(OversightCommand::Relieve);
        }
        self.measure_letters();
    }

    /// Records that the subscription stands still or goes on, beside its work.
    fn record_bound(self: &Arc<Self>, command: fn(LettersBound) -> OversightCommand) {
        self.measure_letters();
        let (cell, room) = (self.clone(), self.room());
        let bound = LettersBound {
            subscription: self.subscription.name.to_owned(),
            partition: self.partition,
            letters: room.letters() as u64,
            letters_max: room.max() as u64,
            at: self.world.now(),
        };
        let id = self.world.new_id().to_string();
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            while let Some(runtime) =
                cell.runtime.get().and_then(crate::runtime::WeakRuntime::upgrade)
                && !cell.stopping.get()
            {
                let context = CommandContext::inside(&*cell.world, &id, &id);
                let stream = Oversight::id_of(cell.subscription.name);
                let oversight = runtime.aggregate::<Oversight>();
                let sent = oversight.send(stream, command(bound.clone()), context, |_| ()).await;
                drop(runtime);
                match sent {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(backoff.next_delay()).await,
                }
            }
        });
    }

    fn moved(&self) {
        self.progress.notify_waiters();
    }

    fn lane_of(&self, key: Uuid) -> usize {
        let hash = xxhash_rust::xxh3::xxh3_64(key.as_bytes());
        usize::try_from(hash % self.lanes.len() as u64).expect("less than the number of lanes")
    }
}

/// A lane with nothing queued is as far as the events have been handed out. The order of the two
/// looks matters: an event is queued before `dispatched` moves past it.
fn lane_position(lane: &LaneState, dispatched: u64) -> u64 {
    if lane.queued.load(Ordering::Acquire) == 0 {
        dispatched.max(lane.done.load(Ordering::Acquire))
    } else {
        lane.done.load(Ordering::Acquire)
    }
}

/// Where an event stands with one subscription.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The subscription.
    pub subscription: &'static str,
    /// Whether it keeps rows rather than having effects.
    pub is_projection: bool,
    /// The partition of the event.
    pub partition: u16,
    /// The key whose order is kept.
    pub key: Uuid,
    /// `acked`, `pending`, `retrying`, `dead`, `waiting` behind a dead one of its key, or
    /// `skipped`.
    pub state: &'static str,
    /// Attempts, as far as that is known: from a letter, or because it was lately; 0: unknown, or
    /// none.
    pub attempts: u32,
    /// After how many attempts it becomes a letter, when each failure is one that may pass.
    pub attempts_max: u32,
    /// The latest error, of a letter or of what is being tried again.
    pub last_error: Option<String>,
    /// What kind of failure it was: `transient`, `permanent` or `system`.
    pub class: Option<String>,
    /// The first failure.
    pub first_failed_at: Option<Timestamp>,
    /// The latest failure.
    pub last_failed_at: Option<Timestamp>,
    /// When it is tried again, if it is of itself.
    pub next_attempt_at: Option<Timestamp>,
    /// Why the subscription does not go on: `paused`, `circuit_open`, `dlq_full` or `damaged`.
    pub held: Option<&'static str>,
    /// When it was handled, as long as that is remembered.
    pub handled: Option<Handled>,
    /// How long nineteen of twenty deliveries of this subscription took lately, in milliseconds.
    pub usual_ms: Option<u64>,
}

/// The paused subscriptions, as a control row knows them.
pub(crate) const PAUSED_SPACE: &str = "subscription.paused";

pub(crate) fn end_to_end(event: &StoredEvent, now: Timestamp) -> Duration {
    now.since(event.timestamp)
}
