//! One event to its handler: attempts, retries, letters.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::lately::Trying;
use super::redrive::{Requests, redrive};
use super::replay::{self, Replayed};
use super::room::Place;
use super::telling::tell;
use super::{Cell, Handled, Kind, Ordered, Settings, end_to_end};
use crate::aggregate::panic_message;
use crate::broker::TAIL_EVENTS_MAX;
use crate::command::{DeliveryMetadata, Effects, on_behalf_of};
use crate::event::StoredEvent;
use crate::faults::points;
use crate::journal::{Letter, LetterState};
use crate::planted::Bug;
use crate::retry::{Failure, Verdict, verdict};
use crate::runtime::Runtime;
use crate::trace::{Handling, within};
use crate::world::Timestamp;

/// An event with its key: what a lane is sent.
pub(super) type Keyed = (Arc<StoredEvent>, Uuid);

/// The lane must stop; what it had in hand is not done.
pub(super) struct Stopping;

/// A failed event: its last failure and how it came to that.
pub(super) struct Failed {
    pub failure: Failure,
    pub attempts: u32,
    pub first_failed_at: Timestamp,
}

/// What became of events that were delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// They are handled.
    Handled,
    /// All that they led to was done before.
    Duplicate,
}

impl Outcome {
    /// Of a delivery whose handler sent commands that came to this. What is delivered once more is a
    /// duplicate unless something is new; of anything else that is known only if a command says so.
    fn of(effects: &Effects, replay: Option<Uuid>) -> Self {
        let repeats = replay.is_some() || effects.any_repeated();
        if repeats && !effects.any_new() { Self::Duplicate } else { Self::Handled }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Handled => "handled",
            Self::Duplicate => "duplicate",
        }
    }
}

/// A key that has letters.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// How many hold it up: skipped ones do not.
    pub letters: usize,
    /// The position of the last of all.
    pub last: u64,
    /// Of a projection: those whose events come once more, because its rows are older than they are, and
    /// whether each holds the key up.
    pub again: BTreeMap<u64, bool>,
}

impl Held {
    /// Counts one letter more.
    pub(super) fn add(&mut self, position: u64, holds: bool) {
        self.letters += usize::from(holds);
        self.last = self.last.max(position);
    }

    /// How many letters hold up an event of a projection.
    fn before(&self, position: u64) -> usize {
        let behind = self.again.range(position..).filter(|(_, holds)| **holds).count();
        self.letters.saturating_sub(behind)
    }
}

/// The keys that have letters.
pub(super) type Blocked = HashMap<Uuid, Held>;

pub(super) async fn run(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    lane: usize,
    mut blocked: Blocked,
    (mut tasks, mut agains): (mpsc::Receiver<Keyed>, mpsc::Receiver<Replayed>),
) -> Result<(), String> {
    let mut requests = Requests::of_lane(cell, lane).await;
    loop {
        let task = tokio::select! {
            biased;
            request = requests.next() => {
                redrive(cell, runtime, &mut blocked, request).await;
                continue;
            }
            task = tasks.recv() => task,
            // What is delivered once more waits for what is new.
            Some(again) = agains.recv() => {
                let place = ready(cell, runtime, &mut blocked, &mut requests).await;
                let Some(_place) = place else { return Ok(()) };
                let Ok(()) = replay::deliver_again(cell, runtime, &mut blocked, again).await else {
                    return Ok(());
                };
                continue;
            }
        };
        let Some(first) = task else { return Ok(()) };
        let place = ready(cell, runtime, &mut blocked, &mut requests).await;
        let Some(place) = place else { return Ok(()) };
        let (batch, _places) = fill(cell, first, place, &mut tasks).await;
        let positions: Vec<_> = batch.iter().map(|(event, _)| event.position).collect();
        let done = || positions.iter().for_each(|at| cell.behind(lane, *at));
        let early = cell.faults.planted(Bug::CheckpointBeforeEffect);
        if early {
            done();
        }
        let Ok(()) = take(cell, runtime, &mut blocked, batch).await else {
            return Ok(());
        };
        if !early {
            done();
        }
        cell.moved();
    }
}

/// Waits until the subscription may go on and there is room for the letter that the next event may
/// become. Letters are worked meanwhile: that is what makes room. None: the service stops.
async fn ready(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    blocked: &mut Blocked,
    requests: &mut Requests<'_>,
) -> Option<Place> {
    let room = cell.room();
    loop {
        let changed = room.changed();
        if cell.stopping.get() {
            return None;
        }
        let paused = cell.paused.get();
        if !paused {
            let place = room.take();
            if place.is_some() {
                return place;
            }
            cell.look_whether_full();
        }
        tokio::select! {
            biased;
            () = cell.stopping.wait(true) => {}
            request = requests.next() => redrive(cell, runtime, blocked, request).await,
            () = cell.paused.wait(false), if paused => {}
            () = changed, if !paused => {}
        }
    }
}

/// What is handled together with an event: what comes within the time that it waits, as much as the
/// subscription takes at once and as there is room for letters. With the room that it takes.
async fn fill(
    cell: &Cell,
    first: Keyed,
    place: Place,
    tasks: &mut mpsc::Receiver<Keyed>,
) -> (Vec<Keyed>, Vec<Place>) {
    let (mut batch, mut places) = (vec![first], vec![place]);
    let Some(policy) = cell.subscription.batch() else { return (batch, places) };
    let (room, until) = (cell.room(), Instant::now() + policy.max_wait);
    while batch.len() < cell.subscription.batch_max() {
        let Some(place) = room.take() else { break };
        let next = tokio::select! {
            biased;
            () = cell.stopping.wait(true) => break,
            next = tokio::time::timeout_at(until, tasks.recv()) => next,
        };
        let Ok(Some(next)) = next else { break };
        batch.push(next);
        places.push(place);
    }
    (batch, places)
}

/// Handles events, or makes them letters. What fails together goes again in halves, so that one bad
/// event becomes a letter and stops its own key only.
async fn take(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    blocked: &mut Blocked,
    batch: Vec<Keyed>,
) -> Result<(), Stopping> {
    let mut parts = vec![batch];
    while let Some(part) = parts.pop() {
        let mut left = Vec::with_capacity(part.len());
        for (event, key) in part {
            if !waits(cell, blocked, &event, key).await? {
                left.push((event, key));
            }
        }
        let events: Vec<_> = left.iter().map(|(event, _)| event.clone()).collect();
        if events.is_empty() {
            continue;
        }
        let Err(failed) = deliver(cell, runtime, &events, None).await? else { continue };
        if let [(event, key)] = left.as_slice() {
            bury(cell, event, *key, &failed).await?;
            if !cell.faults.planted(Bug::FollowersPass) {
                hold(cell, blocked, *key, event.position);
            }
        } else {
            let second = left.split_off(left.len().div_ceil(2));
            parts.extend([second, left]);
        }
    }
    Ok(())
}

/// One letter more of this key, which may have some: from here on its later events wait.
pub(super) fn hold(cell: &Cell, blocked: &mut Blocked, key: Uuid, position: u64) {
    if cell.subscription.ordering != Ordered::ByKey {
        return;
    }
    let held = blocked.entry(key).or_default();
    if held.letters == 0 {
        cell.room().block();
    }
    held.add(position, true);
    cell.measure_letters();
}

/// Makes an event a letter if an earlier one of its key is one. Whether it did.
pub(super) async fn waits(
    cell: &Cell,
    blocked: &mut Blocked,
    event: &StoredEvent,
    key: Uuid,
) -> Result<bool, Stopping> {
    let Some(held) = blocked.get_mut(&key) else { return Ok(false) };
    let holding = match cell.subscription.kind {
        // What comes to a projection is not in its rows, and these may have been lost and be made anew: what
        // was before the first letter belongs into them.
        Kind::Projection(_) if held.again.contains_key(&event.position) => return Ok(true),
        Kind::Projection(_) => held.before(event.position),
        // It comes again after a restart: it is a letter already, or was handled before the first was
        // made. As a letter that waits it would hide why the key is held.
        Kind::Handler(_) | Kind::Batches(..) if event.position <= held.last => return Ok(true),
        Kind::Handler(_) | Kind::Batches(..) => held.letters,
    };
    if holding == 0 {
        return Ok(false);
    }
    park(cell, event, waiting_letter(cell, event, key)).await?;
    held.add(event.position, true);
    Ok(true)
}

/// Makes an event that failed for good a letter, and tells of it.
pub(super) async fn bury(
    cell: &Arc<Cell>,
    event: &StoredEvent,
    key: Uuid,
    failed: &Failed,
) -> Result<(), Stopping> {
    let letter = dead_letter(cell, event, key, failed);
    tell(cell, event, &letter).await?;
    park(cell, event, letter).await
}

pub(super) async fn park(cell: &Cell, event: &StoredEvent, letter: Letter) -> Result<(), Stopping> {
    cell.counts.letters.fetch_add(1, Ordering::Relaxed);
    if !cell.dead_letters.park(letter, event.correlation_id.clone()).await {
        return Err(Stopping);
    }
    cell.room().add();
    cell.measure_letters();
    Ok(())
}

pub(super) fn dead_letter(cell: &Cell, event: &StoredEvent, key: Uuid, failed: &Failed) -> Letter {
    Letter {
        state: LetterState::Dead,
        class: failed.failure.kind.as_str().to_owned(),
        error: failed.failure.message.clone(),
        attempts: failed.attempts,
        first_failed_at: failed.first_failed_at,
        ..waiting_letter(cell, event, key)
    }
}

pub(super) fn waiting_letter(cell: &Cell, event: &StoredEvent, key: Uuid) -> Letter {
    let now = cell.world.now();
    Letter {
        subscription: cell.subscription.name.into(),
        partition: cell.partition,
        key,
        position: event.position,
        event_id: event.event_id,
        event_type: event.event_type.clone(),
        aggregate_id: event.aggregate_id,
        state: LetterState::Waiting,
        class: String::new(),
        error: String::new(),
        attempts: 0,
        first_failed_at: now,
        last_failed_at: now,
    }
}

/// Tries events, which are at least one, until they are handled or have failed for good. Several at
/// once only where the handler takes batches. `replay` delivers them once more, if one does.
pub(super) async fn deliver(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    events: &[Arc<StoredEvent>],
    replay: Option<Uuid>,
) -> Result<Result<Outcome, Failed>, Stopping> {
    let outcome = match &cell.subscription.kind {
        Kind::Handler(handler) => {
            attempts(cell, events, replay, || handler.handle(runtime, &events[0])).await?
        }
        Kind::Batches(handler, _) => {
            attempts(cell, events, replay, || handler.handle_batch(runtime, events)).await?
        }
        Kind::Projection(projection) => {
            let work = || projection.redeliver(runtime, &events[0]);
            return attempts(cell, events, replay, work).await;
        }
    };
    if let Ok(outcome) = outcome {
        handled(cell, events, outcome, replay);
    }
    Ok(outcome)
}

/// What an injected fault may name of these events.
fn fault_keys(events: &[Arc<StoredEvent>]) -> Vec<String> {
    let keys = |event: &Arc<StoredEvent>| {
        let (aggregate_id, event_id) = (event.aggregate_id.to_string(), event.event_id.to_string());
        [aggregate_id, event.event_type.to_string(), event_id]
    };
    events.iter().flat_map(keys).collect()
}

pub(super) fn handled(
    cell: &Cell,
    events: &[Arc<StoredEvent>],
    outcome: Outcome,
    replay: Option<Uuid>,
) {
    let now = cell.world.now();
    cell.counts.handled.fetch_add(events.len() as u64, Ordering::Relaxed);
    cell.lately.count(events.len());
    let name = cell.subscription.name;
    metrics::counter!("souk_events_consumed_total", "subscription" => name, "outcome" => outcome.as_str())
        .increment(events.len() as u64);
    if replay.is_some() {
        // How long ago it happened says nothing about how long it took.
        return;
    }
    let histogram = metrics::histogram!("souk_event_end_to_end_seconds", "subscription" => name, "priority" => cell.subscription.priority.as_str());
    for event in events {
        histogram.record(end_to_end(event, now));
    }
}

/// Runs some work under the subscription's policies: time limit, panics contained, retries with
/// back-off, the circuit. Returns how it ended; stops when the service does.
pub(super) async fn attempts<F>(
    cell: &Arc<Cell>,
    events: &[Arc<StoredEvent>],
    replay: Option<Uuid>,
    work: impl Fn() -> F,
) -> Result<Result<Outcome, Failed>, Stopping>
where
    F: Future<Output = Result<(), Failure>>,
{
    let name = cell.subscription.name;
    let mut attempt = 0;
    let mut panics = 0;
    let mut first_failed_at = None;
    let trying = cell.lately.trying(events);
    let mut settings = cell.settings.subscribe();
    let mut started_at = None;
    let effects = Arc::<Effects>::default();
    loop {
        let leave = tokio::select! {
            biased;
            () = cell.stopping.wait(true) => return Err(Stopping),
            leave = cell.circuit.admit() => leave,
        };
        attempt += 1;
        let started_at = *started_at.get_or_insert_with(|| cell.world.now());
        let started = Instant::now();
        let metadata = DeliveryMetadata { subscription: name, attempt, replay };
        let working = cell.at_work.begin(cell.subscription.priority);
        let result = one_attempt(cell, events, (metadata, &effects), &work).await;
        leave.ended();
        drop(working);
        metrics::histogram!("souk_event_handler_duration_seconds", "subscription" => name)
            .record(started.elapsed());
        cell.lately.attempted(started.elapsed());
        cell.counts.attempted(started.elapsed());
        let mut failure = match result {
            Ok(()) => {
                cell.circuit.well();
                let ended_at = cell.world.now();
                let outcome = Outcome::of(&effects, replay);
                note_success(name, events, attempt, started.elapsed());
                let duplicate = outcome == Outcome::Duplicate;
                trying.done(Handled { started_at, ended_at, attempts: attempt, duplicate });
                return Ok(Ok(outcome));
            }
            Err(Attempt::Failed(failure)) => failure,
            Err(Attempt::Panicked(message)) => {
                panics += 1;
                let message = format!("the handler panicked: {message}");
                // Once may be bad luck; twice is the event.
                if panics == 1 { Failure::transient(message) } else { Failure::permanent(message) }
            }
        };
        failure.message.truncate(floor_char(&failure.message, 2_000));
        let failed_at = cell.world.now();
        let since = (*first_failed_at.get_or_insert(failed_at), failed_at);
        note_failure(cell, events, attempt, &failure);
        let again = Again { cell, trying: &trying, attempt, failure: &failure, since };
        match again.wait(&mut settings).await? {
            Verdict::Pause => attempt -= 1,
            Verdict::Retry { .. } => {}
            Verdict::DeadLetter => {
                let (first_failed_at, _) = since;
                return Ok(Err(Failed { failure, attempts: attempt, first_failed_at }));
            }
        }
    }
}

/// A failed attempt, and what becomes of it.
struct Again<'a> {
    cell: &'a Cell,
    trying: &'a Trying<'a>,
    attempt: u32,
    failure: &'a Failure,
    since: (Timestamp, Timestamp),
}

impl Again<'_> {
    /// Waits as long as the policy says that is in force meanwhile: one that is changed counts for
    /// what waits already, from its failure on.
    async fn wait(&self, settings: &mut watch::Receiver<Settings>) -> Result<Verdict, Stopping> {
        let Self { cell, attempt, failure, .. } = *self;
        let failed = Instant::now();
        let mut is_first = true;
        loop {
            let policy = settings.borrow_and_update().retry.clone();
            let verdict = verdict(failure.kind, attempt, &policy);
            let after = match verdict {
                Verdict::Pause => {
                    cell.circuit.unwell(&failure.message);
                    self.trying.again(attempt, failure, self.since, None);
                    return Ok(verdict);
                }
                Verdict::DeadLetter => {
                    cell.circuit.well();
                    return Ok(verdict);
                }
                Verdict::Retry { after } => after,
            };
            if std::mem::take(&mut is_first) {
                cell.circuit.well();
                cell.counts.retried.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("souk_deliveries_retried_total", "subscription" => cell.subscription.name)
                    .increment(1);
            }
            let asked = failure.retry_after.unwrap_or_default();
            let until = failed + policy.jittered(after, &*cell.world).max(asked);
            self.trying.again(attempt, failure, self.since, Some(until));
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => return Err(Stopping),
                () = tokio::time::sleep_until(until) => return Ok(verdict),
                // The sender is in the cell, and so is there as long as this.
                _ = settings.changed() => {}
            }
        }
    }
}

/// A line about a delivery. Of several events the log names the first.
macro_rules! delivery {
    ($level:ident, $name:expr, $events:expr, $attempt:expr, $text:literal, $($more:tt)*) => {{
        let first = $events.first();
        tracing::$level!(
            subscription = $name,
            attempt = $attempt,
            $($more)*
            events = $events.len(),
            event_id = first.map(|event| tracing::field::display(event.event_id)),
            correlation_id = first.map(|event| &*event.correlation_id),
            key = first.map(|event| tracing::field::display(event.aggregate_id)),
            $text
        );
    }};
}

fn note_success(name: &'static str, events: &[Arc<StoredEvent>], attempt: u32, took: Duration) {
    delivery!(debug, name, events, attempt, "a delivery", seconds = took.as_secs_f64(),);
}

/// Those that failed together and fail alone again are named then.
fn note_failure(cell: &Cell, events: &[Arc<StoredEvent>], attempt: u32, failure: &Failure) {
    let (name, class) = (cell.subscription.name, failure.kind.as_str());
    cell.counts.failed.fetch_add(1, Ordering::Relaxed);
    metrics::counter!("souk_event_handler_failures_total", "subscription" => name, "class" => class)
        .increment(1);
    let error = &failure.message;
    delivery!(warn, name, events, attempt, "a delivery failed", class, error,);
}

/// The greatest place not behind `max` where the text can be cut.
fn floor_char(text: &str, max: usize) -> usize {
    (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

enum Attempt {
    Failed(Failure),
    Panicked(String),
}

impl Attempt {
    /// What went wrong, by a stable name.
    fn name(&self) -> &'static str {
        match self {
            Self::Failed(failure) => failure.kind.as_str(),
            Self::Panicked(_) => "panic",
        }
    }
}

async fn one_attempt<F>(
    cell: &Cell,
    events: &[Arc<StoredEvent>],
    (metadata, effects): (DeliveryMetadata, &Arc<Effects>),
    work: impl Fn() -> F,
) -> Result<(), Attempt>
where
    F: Future<Output = Result<(), Failure>>,
{
    let limit = cell.settings.borrow().handler_timeout;
    let handling = match cell.subscription.kind {
        Kind::Projection(_) => None,
        _ => Handling::begin(metadata.subscription, metadata.attempt, events, &*cell.world),
    };
    let attempt = async {
        if cell.faults.any() {
            let keys = fault_keys(events);
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            cell.faults.before(cell.subscription.name, &keys).await?;
        }
        on_behalf_of(metadata, effects, work()).await?;
        let failed = points::try_reach("subscriber.after_effect").await;
        failed.map_err(|failed| Failure::transient(failed.to_string()))
    };
    let contained = CatchUnwind(Box::pin(within(handling.as_ref(), attempt)));
    let result = match tokio::time::timeout(limit, contained).await {
        Ok(Ok(result)) => result.map_err(Attempt::Failed),
        Ok(Err(panic)) => Err(Attempt::Panicked(panic_message(&*panic).to_owned())),
        Err(_) => {
            let message = format!("timeout: the handler took longer than {limit:?}");
            Err(Attempt::Failed(Failure::transient(message)))
        }
    };
    if let Some(handling) = handling {
        handling.ended(result.as_ref().err().map(Attempt::name));
    }
    result
}

/// A future whose panic is a value.
struct CatchUnwind<F>(std::pin::Pin<Box<F>>);

impl<F: Future> Future for CatchUnwind<F> {
    type Output = Result<F::Output, Box<dyn std::any::Any + Send>>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context)));
        match polled {
            Ok(std::task::Poll::Pending) => std::task::Poll::Pending,
            Ok(std::task::Poll::Ready(output)) => std::task::Poll::Ready(Ok(output)),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    }
}

/// How long a lane's queue is: enough to keep it busy while the next page is read.
pub(super) const QUEUE_MAX: usize = 64;
/// How often checkpoints are stored while there is something to store.
pub(super) const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);
/// How often those of lanes are stored that had nothing to do.
pub(super) const IDLE_CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// And after how many events at the latest: a start looks through what comes behind a checkpoint, and so
/// many are found in memory by all but the first who looks.
pub(super) const IDLE_CHECKPOINT_EVENTS: u64 = TAIL_EVENTS_MAX as u64 / 2;
