//! From an aggregate's id to its live actor: never two actors for one aggregate.
//!
//! Each aggregate that is live has a *slot*: its mailbox and the state of its actor. The mailbox
//! is in the slot and not in the actor, so that it is bounded, survives a crash of the actor, and
//! is handed to the next one in order. All decisions about an actor's life (start, restart,
//! passivation, quarantine) are taken under the slot's lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dashmap::DashMap;
use ractor::{ActorCell, ActorId, ActorRef, ActorRuntime};
use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::actor::{AggregateActor, Message};
use super::answer::{Answer, Asker};
use super::known::KnownStreams;
use super::{Aggregate, load};
use crate::admission::{Admission, COMMIT_WAIT_MAX};
use crate::command::{CommandContext, CommandError, Done, ErrorId, Origin, Unavailable};
use crate::crashes::{Crashed, Crashes};
use crate::dead_letter::DeadLetterHandle;
use crate::faults::{Faults, points};
use crate::hot::Heat;
use crate::journal::codec::{Keyring, Reveal};
use crate::journal::writer::{Incarnation, WriterHandle};
use crate::journal::{self, Crash, Outcome, Quarantine, Standing, Store, Timer};
use crate::planted::Bug;
use crate::supervisor::RestartPolicy;
use crate::world::World;

/// Limits of the aggregates of one partition.
#[derive(Debug, Clone)]
pub struct AggregateOptions {
    /// Commands queued or waiting for durability at one aggregate.
    pub mailbox_max: usize,
    /// An aggregate that has had nothing to do for this long is passivated.
    pub idle_timeout: Duration,
    /// Above this many live aggregates the longest idle are passivated early.
    pub live_max: usize,
    /// A snapshot is stored after this many events.
    pub snapshot_every: u64,
    /// What happens to an aggregate that crashes.
    pub restart: RestartPolicy,
    /// The program's version, for events' metadata.
    pub version: String,
}

impl Default for AggregateOptions {
    fn default() -> Self {
        Self {
            mailbox_max: 1_024,
            idle_timeout: Duration::from_secs(300),
            live_max: 50_000,
            snapshot_every: 100,
            restart: RestartPolicy::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What the aggregates of one partition share.
pub(crate) struct Shared {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    pub world: Arc<dyn World>,
    pub writer: WriterHandle,
    pub admission: Arc<Admission>,
    pub options: AggregateOptions,
    pub dead_letters: DeadLetterHandle,
    pub watched: Watched,
    pub faults: Arc<Faults>,
    pub supervisor: OnceLock<ActorCell>,
    /// An aggregate was quarantined.
    pub quarantined: Arc<Notify>,
    /// Which aggregates are busy.
    pub heat: Arc<Heat>,
    /// Which aggregates crashed.
    pub crashes: Arc<Crashes>,
    /// Which aggregates have events.
    pub known: Arc<KnownStreams>,
}

impl Shared {
    /// How far the partition's state in memory can be relied on.
    fn standing(&self) -> Standing {
        self.store.standing(self.writer.state().partition())
    }
}

/// Who is told when an aggregate's actor ends.
pub(crate) type Watched = DashMap<ActorId, Arc<dyn Supervised>>;

/// A slot as its supervisor sees it.
pub(crate) trait Supervised: Send + Sync {
    fn ended(self: Arc<Self>, failure: Option<String>);
}

/// What a job asks for.
pub(crate) enum Work<A: Aggregate> {
    Command(A::Command),
    Read,
    /// A timer that was due when it was read; the read began then.
    Timer(Timer, Instant),
}

/// When something was looked up in the journal, before the job was queued: a command's outcome, or
/// the timer that is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LookedUp {
    /// `None`: it was left to the aggregate's actor, which may know without looking.
    pub at: Option<Instant>,
}

impl LookedUp {
    /// Whether it was looked up after this.
    pub(crate) fn since(self, then: Instant) -> bool {
        self.at.is_some_and(|at| at > then)
    }
}

/// One thing for an aggregate to do.
pub(crate) struct Job<A: Aggregate> {
    pub work: Work<A>,
    pub context: CommandContext,
    pub answer: Box<dyn Answer<A>>,
    pub looked_up: LookedUp,
    pub queued: Instant,
}

/// Why an actor ended, as far as it could say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exit {
    Passivated,
    /// Its speculative state is void, or it could not be loaded: start again when needed.
    Lost,
    /// A panic.
    Crashed {
        command_id: Uuid,
        command: String,
        error_id: ErrorId,
    },
    /// Its stored events are not what was written.
    Damaged {
        error_id: ErrorId,
    },
}

enum Phase {
    Idle,
    Live {
        actor: ActorRef<Message>,
        woken: bool,
    },
    /// Waits before the next start.
    Backoff,
    Quarantined(ErrorId),
    /// Removed from the registry: look the aggregate up again.
    Closed,
}

pub(crate) struct Slot<A: Aggregate> {
    pub id: Uuid,
    registry: Arc<RegistryInner<A>>,
    in_flight: Arc<AtomicUsize>,
    /// The live actor has to look into the journal for outcomes of earlier lives. While it has not,
    /// commands from inside are not looked up before they are queued.
    asks_journal: AtomicBool,
    inner: Mutex<Inner<A>>,
}

struct Inner<A: Aggregate> {
    queue: VecDeque<Job<A>>,
    phase: Phase,
    incarnation: Option<Arc<Incarnation>>,
    exit: Option<Exit>,
    crashes: VecDeque<(Instant, Option<Crash>)>,
    last_used: Instant,
}

pub(crate) struct RegistryInner<A: Aggregate> {
    pub shared: Arc<Shared>,
    slots: DashMap<Uuid, Arc<Slot<A>>>,
    quarantined: DashMap<Uuid, Quarantine>,
    /// What led to the quarantines of this life.
    crashes: DashMap<Uuid, Vec<Crash>>,
    live: AtomicUsize,
}

/// The registry of one type of aggregate in one partition.
pub(crate) struct Registry<A: Aggregate>(Arc<RegistryInner<A>>);

impl<A: Aggregate> Clone for Registry<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Aggregate> Registry<A> {
    pub(crate) fn new(shared: Arc<Shared>, quarantined: &[Quarantine]) -> Self {
        let mine = quarantined.iter().filter(|record| &*record.aggregate_type == A::TYPE);
        Self(Arc::new(RegistryInner {
            shared,
            slots: DashMap::new(),
            quarantined: mine.map(|record| (record.aggregate_id, record.clone())).collect(),
            crashes: DashMap::new(),
            live: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Queues a job at its aggregate and sees to it that an actor runs it.
    pub(crate) fn dispatch(&self, id: Uuid, mut job: Job<A>) {
        loop {
            match self.slot(id).offer(job) {
                Ok(()) => return,
                // It was passivated between the look-up and now.
                Err(back) => {
                    job = back;
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn slot(&self, id: Uuid) -> Arc<Slot<A>> {
        if let Some(slot) = self.0.slots.get(&id) {
            return slot.clone();
        }
        let new = || {
            let quarantined = self.0.quarantined.get(&id).map(|record| ErrorId(record.error_id));
            Arc::new(Slot {
                id,
                registry: self.0.clone(),
                in_flight: Arc::default(),
                asks_journal: AtomicBool::new(false),
                inner: Mutex::new(Inner {
                    queue: VecDeque::new(),
                    phase: quarantined.map_or(Phase::Idle, Phase::Quarantined),
                    incarnation: None,
                    exit: None,
                    crashes: VecDeque::new(),
                    last_used: Instant::now(),
                }),
            })
        };
        self.0.slots.entry(id).or_insert_with(new).clone()
    }

    /// Runs a command or a read to its durable answer.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        id: Uuid,
        work: Work<A>,
        context: CommandContext,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        let shared = &self.0.shared;
        let changes = matches!(work, Work::Command(_));
        let standing = shared.standing();
        let journal = shared.writer.state();
        if !standing.may_read() || changes && !(standing.may_write() && journal.healthy()) {
            return Err(Unavailable::Journal.into());
        }
        let outside = context.origin == Origin::Outside;
        if changes && outside && journal.expected_wait() > COMMIT_WAIT_MAX {
            return Err(Unavailable::Overloaded.into());
        }
        let mut permit = shared.admission.enter(context.origin, context.deadline).await?;
        // An aggregate that began in this life knows every outcome there is, and one that is not live
        // looks for the first in line itself. Few from inside are repeats; clients' keys are looked up
        // wherever they were used.
        let left_to_actor = !outside && !self.asks_journal(id);
        let looked_up = match &work {
            Work::Timer(_, read_at) => LookedUp { at: Some(*read_at) },
            Work::Command(_) if left_to_actor => LookedUp { at: None },
            Work::Command(_) | Work::Read => LookedUp { at: Some(Instant::now()) },
        };
        if let Some(once) = context.once
            && looked_up.at.is_some()
        {
            let outcome = shared.store.outcome(context.command_id).await;
            let outcome = outcome.map_err(|error| load_failed(&*shared.world, &error.into()))?;
            if let Some(outcome) = outcome {
                return self.replay(id, &outcome, once.request_hash, view).await;
            }
        }
        // Behind the look-up: what happened before can still be asked for.
        if changes
            && outside
            && !A::STEERS
            && let Some(refusal) = shared.admission.refusal()
        {
            return Err(Unavailable::Refused(refusal).into());
        }
        let slot = self.slot(id);
        if !permit.at_aggregate(&slot.in_flight, shared.options.mailbox_max) {
            return Err(Unavailable::Overloaded.into());
        }
        let (reply, answer) = oneshot::channel();
        let deadline = context.deadline;
        let answer_to = Box::new(Asker::new(view, reply, Some(permit)));
        let job = Job { work, context, answer: answer_to, looked_up, queued: Instant::now() };
        self.dispatch(id, job);
        // Once it runs, its outcome is a matter of the commit alone: a little more patience.
        match tokio::time::timeout_at(deadline + ANSWER_GRACE, answer).await {
            // The process may have been stopped for a while since the first look, and what rests on
            // state in memory alone be out of date. What was appended is not: that was checked.
            Ok(Ok(answer)) if rests_on_memory(&answer) && !shared.standing().may_read() => {
                Err(Unavailable::Journal.into())
            }
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(CommandError::OutcomeUnknown),
        }
    }

    /// Whether an aggregate's live actor would have to look into the journal for an earlier outcome.
    fn asks_journal(&self, id: Uuid) -> bool {
        self.0.slots.get(&id).is_some_and(|slot| slot.asks_journal.load(Ordering::Relaxed))
    }

    /// Answers from the stored outcome of an earlier command with the same id.
    pub(crate) async fn replay<R>(
        &self,
        id: Uuid,
        outcome: &Outcome,
        request_hash: [u8; 32],
        view: impl FnOnce(&A) -> R,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        if outcome.request_hash != request_hash {
            return Err(CommandError::KeyReused);
        }
        let version = outcome.version;
        if let Some(rejection) = &outcome.rejection {
            let rejection = serde_json::from_str(rejection)
                .map_err(|_| CommandError::Internal(ErrorId(self.0.shared.world.new_id())))?;
            return Err(CommandError::Rejected { rejection, version, replayed: true });
        }
        let folded = load::fold::<A>(&self.0.shared, id, Some(version)).await;
        let folded = folded.and_then(|folded| match folded.version == version {
            true => Ok(folded),
            false => Err(load::missing::<A>(id, version)),
        });
        let folded = folded.map_err(|error| load_failed(&*self.0.shared.world, &error))?;
        let events = outcome.events as usize;
        let value = view(&folded.state);
        Ok(Done { value, version, events, position: None, replayed: true })
    }

    /// The state as of a version.
    pub(crate) async fn at_version(
        &self,
        id: Uuid,
        version: u64,
    ) -> Result<Option<A>, load::Error> {
        let folded = load::fold::<A>(&self.0.shared, id, Some(version)).await?;
        Ok((folded.version == version).then_some(folded.state))
    }
}

/// Whether nothing had to be stored for the answer.
fn rests_on_memory<R, J: std::error::Error>(answer: &Result<Done<R>, CommandError<J>>) -> bool {
    match answer {
        Ok(done) => done.events == 0,
        Err(error) => {
            matches!(error, CommandError::Rejected { .. } | CommandError::VersionMismatch { .. })
        }
    }
}

fn load_failed<R: std::error::Error>(world: &dyn World, error: &load::Error) -> CommandError<R> {
    let error_id = ErrorId(world.new_id());
    tracing::error!(%error, %error_id, "an aggregate could not be loaded");
    match error {
        load::Error::Journal(journal::Error::Damaged(_)) => {
            Unavailable::Quarantined(error_id).into()
        }
        _ => Unavailable::Journal.into(),
    }
}

/// How long an answer may take behind the deadline, once its job is running.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

impl<A: Aggregate> Slot<A> {
    fn lock(&self) -> MutexGuard<'_, Inner<A>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job; gives it back if this slot has been removed.
    #[expect(clippy::result_large_err, reason = "the job goes back where it came from")]
    fn offer(self: &Arc<Self>, mut job: Job<A>) -> Result<(), Job<A>> {
        let mut inner = self.lock();
        inner.last_used = Instant::now();
        match &mut inner.phase {
            Phase::Closed => return Err(job),
            Phase::Quarantined(error_id) => {
                job.answer.refuse(Unavailable::Quarantined(*error_id).into());
                return Ok(());
            }
            Phase::Live { .. } if self.shared().faults.planted(Bug::TwoActors) => {
                self.start(&mut inner);
            }
            Phase::Live { actor, woken } => {
                if !*woken {
                    *woken = true;
                    let _ = actor.cast(Message::Wake);
                }
            }
            Phase::Idle => {
                // Before its actor is started: if none can be, it is refused.
                inner.queue.push_back(job);
                self.start(&mut inner);
                return Ok(());
            }
            Phase::Backoff => {}
        }
        inner.queue.push_back(job);
        Ok(())
    }

    /// Starts an actor. The slot's lock is held, so that the actor cannot take a job, and so
    /// cannot end, before its supervisor knows whose it is.
    fn start(self: &Arc<Self>, inner: &mut Inner<A>) {
        points::reach_now("registry.activation");
        let shared = &self.registry.shared;
        let supervisor = shared.supervisor.get().expect("set before the first command");
        let actor = AggregateActor { slot: self.clone() };
        match ActorRuntime::spawn_linked_instant(None, actor, (), supervisor.clone()) {
            Ok((actor, _)) => {
                shared.watched.insert(actor.get_id(), self.clone());
                let _ = actor.cast(Message::Wake);
                inner.phase = Phase::Live { actor, woken: true };
                self.registry.live.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("souk_aggregate_activations_total", "aggregate_type" => A::TYPE)
                    .increment(1);
                metrics::gauge!("souk_aggregates_active", "aggregate_type" => A::TYPE)
                    .increment(1.0);
            }
            Err(error) => {
                tracing::error!(aggregate_type = A::TYPE, aggregate_id = %self.id, %error, "an actor could not be started");
                refuse_all(&mut inner.queue, Unavailable::Restarting);
            }
        }
    }

    /// Up to `max` jobs, into a queue that is empty; when there are none the actor has to be woken for
    /// the next, and what the mailbox had room for is given back.
    pub(crate) fn take(&self, max: usize, jobs: &mut VecDeque<Job<A>>) {
        let mut inner = self.lock();
        if inner.queue.is_empty() {
            inner.queue = VecDeque::new();
            if let Phase::Live { woken, .. } = &mut inner.phase {
                *woken = false;
            }
        } else if inner.queue.len() <= max {
            std::mem::swap(&mut inner.queue, jobs);
        } else {
            jobs.extend(inner.queue.drain(..max));
        }
    }

    /// Jobs that were taken and not begun go back to where they were.
    pub(crate) fn put_back(&self, jobs: VecDeque<Job<A>>) {
        let mut inner = self.lock();
        for job in jobs.into_iter().rev() {
            inner.queue.push_front(job);
        }
    }

    /// Everything queued is refused: the aggregate cannot be loaded now.
    pub(crate) fn refuse_queued(&self, why: Unavailable) {
        refuse_all(&mut self.lock().queue, why);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.registry.shared
    }

    pub(crate) fn registry(&self) -> Registry<A> {
        Registry(self.registry.clone())
    }

    /// The previous life's incarnation is handed out, and this one's noted.
    pub(crate) fn begin(&self, incarnation: Arc<Incarnation>) -> Option<Arc<Incarnation>> {
        self.lock().incarnation.replace(incarnation)
    }

    /// Says whether the live actor has to look into the journal for outcomes of earlier lives.
    pub(crate) fn ask_journal(&self, asks: bool) {
        self.asks_journal.store(asks, Ordering::Relaxed);
    }

    pub(crate) fn exiting(&self, exit: Exit) {
        self.lock().exit = Some(exit);
    }

    /// Removes the slot, if nothing is queued.
    pub(crate) fn close(&self) -> bool {
        let mut inner = self.lock();
        if !inner.queue.is_empty() || !inner.crashes.is_empty() && !self.calm(&inner) {
            return false;
        }
        inner.phase = Phase::Closed;
        inner.exit = Some(Exit::Passivated);
        // Never the map's lock under a slot's: whoever walks the map takes them the other way.
        drop(inner);
        self.registry.slots.remove(&self.id);
        true
    }

    /// Whether its crashes are so long ago that they need not be remembered.
    fn calm(&self, inner: &Inner<A>) -> bool {
        let window = self.registry.shared.options.restart.window;
        inner.crashes.back().is_none_or(|(last, _)| last.elapsed() > window)
    }

    fn crashed(self: &Arc<Self>, inner: &mut Inner<A>, exit: Option<Exit>) {
        let shared = &self.registry.shared;
        let policy = &shared.options.restart;
        let crash = match &exit {
            Some(Exit::Crashed { command_id, command, error_id }) => Some(Crash {
                at: shared.world.now(),
                error_id: error_id.0,
                command_id: *command_id,
                command: command.clone(),
            }),
            _ => None,
        };
        shared.crashes.note(Crashed {
            aggregate_type: A::TYPE,
            aggregate_id: self.id,
            error_id: crash.as_ref().map(|crash| crash.error_id),
        });
        inner.crashes.push_back((Instant::now(), crash));
        while inner.crashes.front().is_some_and(|(first, _)| first.elapsed() > policy.window) {
            inner.crashes.pop_front();
        }
        let count = inner.crashes.len();
        match policy.delay(count) {
            None => self.quarantine(inner, exit),
            Some(delay) if delay.is_zero() => self.start_if_needed(inner),
            Some(delay) => {
                inner.phase = Phase::Backoff;
                let slot = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let mut inner = slot.lock();
                    if matches!(inner.phase, Phase::Backoff) {
                        slot.start_if_needed(&mut inner);
                    }
                });
            }
        }
    }

    fn start_if_needed(self: &Arc<Self>, inner: &mut Inner<A>) {
        inner.phase = Phase::Idle;
        if !inner.queue.is_empty() {
            self.start(inner);
        }
    }

    fn quarantine(self: &Arc<Self>, inner: &mut Inner<A>, exit: Option<Exit>) {
        let shared = &self.registry.shared;
        let (command_id, command, error_id) = match exit {
            Some(Exit::Crashed { command_id, command, error_id }) => {
                (command_id, command, error_id.0)
            }
            Some(Exit::Damaged { error_id }) => (Uuid::nil(), "load".to_owned(), error_id.0),
            _ => (Uuid::nil(), String::new(), Uuid::nil()),
        };
        let record = Quarantine {
            aggregate_type: A::TYPE.into(),
            aggregate_id: self.id,
            command_id,
            command,
            error_id,
            since: shared.world.now(),
        };
        let error_id = ErrorId(error_id);
        tracing::error!(aggregate_type = A::TYPE, aggregate_id = %self.id, %error_id, command = record.command, "an aggregate is quarantined: it crashed again and again, or its stored events are damaged");
        inner.phase = Phase::Quarantined(error_id);
        // Listed before anybody is told of it.
        let crashes = inner.crashes.iter().filter_map(|(_, crash)| crash.clone()).collect();
        self.registry.crashes.insert(self.id, crashes);
        self.registry.quarantined.insert(self.id, record.clone());
        refuse_all(&mut inner.queue, Unavailable::Quarantined(error_id));
        shared.dead_letters.quarantined(record);
        shared.quarantined.notify_one();
    }
}

fn refuse_all<A: Aggregate>(queue: &mut VecDeque<Job<A>>, why: Unavailable) {
    metrics::counter!("souk_mailbox_lost_total", "aggregate_type" => A::TYPE)
        .increment(queue.len() as u64);
    for mut job in queue.drain(..) {
        job.answer.refuse(why.into());
    }
}

impl<A: Aggregate> Supervised for Slot<A> {
    fn ended(self: Arc<Self>, failure: Option<String>) {
        self.registry.live.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("souk_aggregates_active", "aggregate_type" => A::TYPE).decrement(1.0);
        let mut inner = self.lock();
        let exit = inner.exit.take();
        let reason = match (&exit, &failure) {
            (Some(Exit::Passivated), _) => return,
            (Some(Exit::Lost), _) => "append_lost",
            (Some(Exit::Damaged { .. }), _) => "damaged",
            _ => "panic",
        };
        metrics::counter!("souk_aggregate_restarts_total", "aggregate_type" => A::TYPE, "reason" => reason)
            .increment(1);
        match exit {
            Some(Exit::Lost) => self.start_if_needed(&mut inner),
            Some(Exit::Damaged { .. }) => self.quarantine(&mut inner, exit),
            _ => self.crashed(&mut inner, exit),
        }
    }
}

/// A registry whatever its aggregate's type.
#[async_trait]
pub(crate) trait AnyRegistry: Send + Sync {
    fn aggregate_type(&self) -> &'static str;
    /// Fires a due timer that a read gave which began at `read_at`, and returns once it is settled:
    /// whether it fired.
    async fn fire(&self, timer: Timer, read_at: Instant) -> bool;
    /// Passivates what is idle, and the longest idle above the bound. Returns how many are live.
    fn passivate(&self, now: Instant) -> usize;
    /// How many commands and reads are queued or wait for durability at each live aggregate.
    fn depths(&self) -> Vec<usize>;
    /// The state up to a version, or the latest, as people read it, with the version that it is at.
    async fn state(
        &self,
        id: Uuid,
        upto: Option<u64>,
        reveal: Reveal,
    ) -> Result<(u64, Value), load::Error>;
    /// Shows `visit` events after a version, at most so many, with the states around them.
    async fn replay(
        &self,
        id: Uuid,
        page: (u64, usize),
        reveal: Reveal,
        visit: load::Visit<'_>,
    ) -> Result<(), load::Error>;
    /// The quarantined aggregates.
    fn quarantined(&self) -> Vec<Quarantine>;
    /// The record of an aggregate, if it is quarantined.
    fn quarantine(&self, id: Uuid) -> Option<Quarantine>;
    /// What led to the quarantine of an aggregate, as far as this process saw it.
    fn crashes(&self, id: Uuid) -> Vec<Crash>;
    /// Lets a quarantined aggregate run again; the record is the caller's to remove.
    fn release(&self, id: Uuid) -> bool;
    /// Forgets every aggregate: the partition has ended.
    fn clear(&self);
}

#[async_trait]
impl<A: Aggregate> AnyRegistry for Registry<A> {
    fn aggregate_type(&self) -> &'static str {
        A::TYPE
    }

    async fn fire(&self, timer: Timer, read_at: Instant) -> bool {
        let world = &*self.0.shared.world;
        let mut context = CommandContext::outside(world, "", "");
        context.origin = Origin::Inside;
        context.actor_id = "system".into();
        let id = timer.key.aggregate_id;
        let name = timer.key.name.clone();
        let fired = self.ask(id, Work::Timer(timer, read_at), context, |_| ()).await;
        if let Err(error) = &fired {
            tracing::warn!(aggregate_type = A::TYPE, aggregate_id = %id, timer = name, %error, "a timer could not fire; it stays due");
        }
        fired.is_ok()
    }

    fn passivate(&self, now: Instant) -> usize {
        let options = &self.0.shared.options;
        let live = self.0.live.load(Ordering::Relaxed);
        let excess = live.saturating_sub(options.live_max);
        let mut idle: Vec<_> = self
            .0
            .slots
            .iter()
            .filter_map(|slot| {
                let inner = slot.lock();
                let Phase::Live { actor, .. } = &inner.phase else { return None };
                let long = now.duration_since(inner.last_used) >= options.idle_timeout;
                let goes = inner.queue.is_empty() && (excess > 0 || long);
                goes.then(|| (inner.last_used, slot.id, long, actor.clone()))
            })
            .collect();
        // The map's order is random: what is equally idle goes in the order of the ids.
        idle.sort_unstable_by_key(|(last_used, id, ..)| (*last_used, *id));
        for (index, (_, _, long, actor)) in idle.into_iter().enumerate() {
            if index < excess || long {
                let _ = actor.cast(Message::Passivate);
            }
        }
        live
    }

    fn depths(&self) -> Vec<usize> {
        self.0.slots.iter().map(|slot| slot.in_flight.load(Ordering::Relaxed)).collect()
    }

    async fn state(
        &self,
        id: Uuid,
        upto: Option<u64>,
        reveal: Reveal,
    ) -> Result<(u64, Value), load::Error> {
        let folded = load::fold::<A>(&self.0.shared, id, upto).await?;
        Ok((folded.version, load::as_read(&folded.state, reveal)))
    }

    async fn replay(
        &self,
        id: Uuid,
        page: (u64, usize),
        reveal: Reveal,
        visit: load::Visit<'_>,
    ) -> Result<(), load::Error> {
        load::replay::<A>(&self.0.shared, id, page, reveal, visit).await
    }

    fn quarantined(&self) -> Vec<Quarantine> {
        let mut all: Vec<_> = self.0.quarantined.iter().map(|record| record.clone()).collect();
        all.sort_by_key(|record| record.aggregate_id);
        all
    }

    fn quarantine(&self, id: Uuid) -> Option<Quarantine> {
        self.0.quarantined.get(&id).map(|record| record.clone())
    }

    fn crashes(&self, id: Uuid) -> Vec<Crash> {
        self.0.crashes.get(&id).map(|crashes| crashes.clone()).unwrap_or_default()
    }

    fn release(&self, id: Uuid) -> bool {
        self.0.crashes.remove(&id);
        let known = self.0.quarantined.remove(&id).is_some();
        if let Some(slot) = self.0.slots.get(&id) {
            let mut inner = slot.lock();
            if matches!(inner.phase, Phase::Quarantined(_)) {
                inner.phase = Phase::Idle;
                inner.crashes.clear();
            }
        }
        known
    }

    fn clear(&self) {
        self.0.slots.clear();
        self.0.shared.watched.clear();
    }
}

impl From<load::Error> for journal::Error {
    fn from(error: load::Error) -> Self {
        match error {
            load::Error::Journal(error) => error,
            other => Self::Damaged(other.to_string()),
        }
    }
}
