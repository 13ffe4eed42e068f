//! The actor around an aggregate: it runs one command at a time on a speculative state, and goes
//! on while the journal makes durable what it decided.
//!
//! The life of a command, top to bottom: [`Live::run`] decides and applies; [`Live::accepted`]
//! encodes the events and queues them with the reply; the writer sends the reply once they are
//! durable. A rejection or a read is queued as an entry without rows when something is pending, so
//! that nobody is told of a state that a crash could undo; with nothing pending it is answered at
//! once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use uuid::Uuid;

use super::answer::Accepted;
use super::load::{self, fold, snapshot_record};
use super::registry::{Exit, Job, LookedUp, Registry, Shared, Slot, Work};
use super::timers::{KnownTimers, Standing};
use super::{Aggregate, Command, TimerChange};
use crate::command::{CommandContext, CommandError, ErrorId, Once, Origin, Unavailable};
use crate::event::{EventPayload, Given, Metadata};
use crate::faults::points;
use crate::hot::Done;
use crate::journal::codec;
use crate::journal::writer::{EncodedEvent, Entry, Incarnation, Settled, Target};
use crate::journal::{Batch, Outcome, Timer, TimerKey, TimerWrite};
use crate::planted::Bug;
use crate::trace::Committing;

/// Jobs taken from the mailbox at a time: enough to save locking, few enough to be put back.
const JOBS_AT_ONCE: usize = 32;
/// Rounds before other messages of the actor get a turn.
const ROUNDS_MAX: usize = 8;
/// Outcomes, and changes of timers, that an actor remembers for jobs that were looked up before they
/// were stored.
pub(super) const RECENT_MAX: usize = 4_096;
/// For how long: longer than any look-up can be ahead of its job.
pub(super) const RECENT_FOR: Duration = Duration::from_secs(60);

/// What an aggregate's actor is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message {
    /// There are jobs in the mailbox.
    Wake,
    /// End, if there is nothing to do.
    Passivate,
}

pub(crate) struct AggregateActor<A: Aggregate> {
    pub slot: Arc<Slot<A>>,
}

pub(crate) struct Live<A: Aggregate> {
    slot: Arc<Slot<A>>,
    state: A,
    version: u64,
    stream: Option<i64>,
    incarnation: Arc<Incarnation>,
    recent: Recent,
    snapshot_version: u64,
    timers: KnownTimers,
    correlation_id: Option<Arc<str>>,
    /// So many destroyed keys have had their effect on the state.
    destroyed: u64,
}

/// Outcomes decided in this life, by command id.
struct Recent {
    by_id: HashMap<Uuid, Outcome>,
    in_order: VecDeque<(Instant, Uuid)>,
    /// Everything decided since then is here.
    complete_since: Instant,
    /// The aggregate began in this life: nothing was decided before.
    is_whole: bool,
}

impl Recent {
    fn new(is_whole: bool) -> Self {
        let complete_since = Instant::now();
        Self { by_id: HashMap::new(), in_order: VecDeque::new(), complete_since, is_whole }
    }

    fn add(&mut self, outcome: Outcome) {
        let now = Instant::now();
        self.in_order.push_back((now, outcome.command_id));
        self.by_id.insert(outcome.command_id, outcome);
        while let Some((at, id)) = self.in_order.front().copied() {
            if self.in_order.len() <= RECENT_MAX && now.duration_since(at) <= RECENT_FOR {
                break;
            }
            self.in_order.pop_front();
            self.by_id.remove(&id);
            self.complete_since = at;
            self.is_whole = false;
        }
    }
}

/// The actor must end, and why.
struct Ends(Exit);

impl<A: Aggregate> Actor for AggregateActor<A> {
    type Msg = Message;
    type State = Option<Live<A>>;
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<Message>,
        _arguments: (),
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(None)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        live: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // What they need while they run is most of what an actor would hold on to while it is idle.
        let worked = match message {
            Message::Wake => Box::pin(self.work(&myself, live)).await,
            Message::Passivate => {
                Box::pin(self.passivate(&myself, live)).await;
                Ok(())
            }
        };
        worked.map_err(|Ends(exit)| {
            let why = format!("{exit:?}");
            self.slot.exiting(exit);
            why.into()
        })
    }
}

impl<A: Aggregate> AggregateActor<A> {
    async fn work(
        &self,
        myself: &ActorRef<Message>,
        live: &mut Option<Live<A>>,
    ) -> Result<(), Ends> {
        if live.is_none() {
            *live = Some(Box::pin(self.load()).await?);
        }
        let live = live.as_mut().expect("it was just loaded");
        let mut jobs = VecDeque::new();
        for _ in 0..ROUNDS_MAX {
            self.slot.take(JOBS_AT_ONCE, &mut jobs);
            if jobs.is_empty() {
                return Ok(());
            }
            let mut done = Done::default();
            let ran = self.run_all(live, &mut jobs, &mut done).await;
            self.slot.shared().heat.note(A::TYPE, self.slot.id, done);
            if ran.is_err() {
                self.slot.put_back(jobs);
                return ran;
            }
        }
        let _ = myself.cast(Message::Wake);
        Ok(())
    }

    /// Runs these jobs until one ends the actor.
    async fn run_all(
        &self,
        live: &mut Live<A>,
        jobs: &mut VecDeque<Job<A>>,
        done: &mut Done,
    ) -> Result<(), Ends> {
        while let Some(job) = jobs.pop_front() {
            if live.incarnation.failed() || !live.forget() {
                jobs.push_front(job);
                return Err(Ends(Exit::Lost));
            }
            let (queued, began) = (job.queued, Instant::now());
            let ran = live.run(job).await;
            done.one(began.duration_since(queued), began.elapsed());
            ran?;
        }
        Ok(())
    }

    /// Makes the state from the journal, once everything of the previous life is settled.
    async fn load(&self) -> Result<Live<A>, Ends> {
        let incarnation = Arc::new(Incarnation::default());
        let previous = self.slot.begin(incarnation.clone());
        if let Some(previous) = &previous
            && !self.slot.shared().faults.planted(Bug::RestartWithoutWaiting)
        {
            previous.settled().await;
        }
        let was_lost = previous.is_some_and(|previous| previous.failed());
        let destroyed = self.slot.shared().keys.destroyed_count();
        let folded = match fold::<A>(self.slot.shared(), self.slot.id, None).await {
            Ok(folded) => folded,
            Err(load::Error::Journal(error @ crate::journal::Error::Database(_))) => {
                tracing::warn!(aggregate_type = A::TYPE, aggregate_id = %self.slot.id, %error, "an aggregate cannot be loaded now");
                self.slot.refuse_queued(Unavailable::Journal);
                return Err(Ends(Exit::Lost));
            }
            Err(error) => return Err(self.unloadable(&error)),
        };
        // After a loss the journal is asked for everything: it may be why.
        let is_whole = folded.version == 0 && !was_lost;
        self.slot.ask_journal(!is_whole);
        Ok(Live {
            slot: self.slot.clone(),
            state: folded.state,
            version: folded.version,
            stream: folded.stream,
            incarnation,
            recent: Recent::new(is_whole),
            snapshot_version: folded.snapshot_version,
            timers: KnownTimers::new(),
            correlation_id: folded.correlation_id,
            destroyed,
        })
    }

    /// The history itself is the trouble: each try costs the first in line an error, until the
    /// aggregate is quarantined. Where stored rows are damaged another try would not help.
    fn unloadable(&self, error: &load::Error) -> Ends {
        let error_id = ErrorId(self.slot.shared().world.new_id());
        if let load::Error::Journal(crate::journal::Error::Damaged(_)) = error {
            tracing::error!(aggregate_type = A::TYPE, aggregate_id = %self.slot.id, %error_id, %error, "an aggregate's stored events are damaged; it is quarantined until they are mended and it is released");
            return Ends(Exit::Damaged { error_id });
        }
        tracing::error!(aggregate_type = A::TYPE, aggregate_id = %self.slot.id, %error_id, %error, "an aggregate cannot be rebuilt from its events");
        let mut crashed =
            Exit::Crashed { command_id: Uuid::nil(), command: "load".to_owned(), error_id };
        let mut first = VecDeque::new();
        self.slot.take(1, &mut first);
        if let Some(mut job) = first.pop_front() {
            crashed = Exit::Crashed {
                command_id: job.context.command_id,
                command: "load".to_owned(),
                error_id,
            };
            job.answer.refuse(CommandError::Internal(error_id));
        }
        Ends(crashed)
    }

    async fn passivate(&self, myself: &ActorRef<Message>, live: &mut Option<Live<A>>) {
        if let Some(live) = live {
            if live.incarnation.pending() > 0 {
                return;
            }
            if !live.incarnation.failed() && live.version >= live.snapshot_version + 20 {
                live.snapshot().await;
            }
        }
        if self.slot.close() {
            myself.stop(None);
        }
    }
}

impl<A: Aggregate> Live<A> {
    fn shared(&self) -> &Arc<Shared> {
        self.slot.shared()
    }

    /// Takes out of the state what belongs to people whose keys have been destroyed since it was made:
    /// it reads then as it would from the journal. False: only the journal can tell.
    fn forget(&mut self) -> bool {
        let keys = &self.shared().keys;
        if keys.destroyed_count() == self.destroyed {
            return true;
        }
        let Some((count, people)) = keys.destroyed_since(self.destroyed) else { return false };
        match codec::without(&self.state, &people) {
            Ok(Some(state)) => self.state = state,
            Ok(None) => {}
            Err(_) => return false,
        }
        self.destroyed = count;
        true
    }

    /// Runs one job. An error ends the actor; the job has been answered.
    async fn run(&mut self, mut job: Job<A>) -> Result<(), Ends> {
        let wait = job.queued.elapsed();
        metrics::histogram!("souk_mailbox_wait_seconds", "aggregate_type" => A::TYPE).record(wait);
        if Instant::now() > job.context.deadline {
            job.answer.refuse(Unavailable::DeadlinePassed.into());
            return Ok(());
        }
        if let Some(once) = job.context.once {
            match self.earlier_outcome(&job.context, job.looked_up).await {
                Err(()) => {
                    job.answer.refuse(Unavailable::Journal.into());
                    return Ok(());
                }
                Ok(Some(outcome)) => {
                    self.repeat(job, &outcome, once);
                    return Ok(());
                }
                Ok(None) => {}
            }
        }
        if let Some(expected) = job.context.expected_version
            && expected != self.version
        {
            let release =
                job.answer.reject(CommandError::VersionMismatch { current: self.version });
            self.barrier(release);
            return Ok(());
        }
        self.decide(job).await
    }

    /// The outcome of an earlier command with the same id, if there is one that the look-up before
    /// the mailbox could not see.
    async fn earlier_outcome(
        &self,
        context: &CommandContext,
        looked_up: LookedUp,
    ) -> Result<Option<Outcome>, ()> {
        if let Some(outcome) = self.recent.by_id.get(&context.command_id) {
            return Ok(Some(outcome.clone()));
        }
        // What a client's key was used for elsewhere only the look-up before can tell.
        if self.recent.is_whole && context.origin == Origin::Inside {
            return Ok(None);
        }
        // At the same instant it may have been before the last outcome of an earlier life was stored.
        if looked_up.since(self.recent.complete_since) {
            return Ok(None);
        }
        self.shared().store.outcome(context.command_id).await.map_err(|_| ())
    }

    /// Answers a repeat from the stored outcome, after it is durable.
    fn repeat(&mut self, mut job: Job<A>, outcome: &Outcome, once: Once) {
        if outcome.request_hash != once.request_hash {
            let release = job.answer.reject(CommandError::KeyReused);
            return self.barrier(release);
        }
        let version = outcome.version;
        if let Some(rejection) = &outcome.rejection {
            let error = match serde_json::from_str(rejection) {
                Ok(rejection) => CommandError::Rejected { rejection, version, replayed: true },
                Err(_) => CommandError::Internal(ErrorId(self.shared().world.new_id())),
            };
            let release = job.answer.reject(error);
            return self.barrier(release);
        }
        let accepted = Accepted { version, events: outcome.events as usize, replayed: true };
        if version == self.version {
            let release = job.answer.accept(&self.state, accepted);
            return self.barrier(release);
        }
        // The state of that version has to be folded anew, and only once it is durable.
        let registry = self.slot.registry();
        let id = self.slot.id;
        self.barrier(Box::new(move |settled| {
            tokio::spawn(replay_later(registry, id, job, accepted, settled));
        }));
    }

    async fn decide(&mut self, mut job: Job<A>) -> Result<(), Ends> {
        if let Work::Timer(timer, _) = &job.work {
            match self.still_set(timer, job.looked_up).await {
                Ok(true) => {}
                Ok(false) => {
                    let accepted = Accepted { version: self.version, events: 0, replayed: true };
                    let release = job.answer.accept(&self.state, accepted);
                    self.barrier(release);
                    return Ok(());
                }
                Err(_) => {
                    job.answer.refuse(Unavailable::Journal.into());
                    return Ok(());
                }
            }
        }
        let now = self.shared().world.now();
        let (state, version) = (&mut self.state, self.version);
        let decided =
            catch_unwind(AssertUnwindSafe(|| decide_and_apply(state, version, &mut job, now)));
        match decided {
            Ok(Ok(decided)) => self.accepted(job.work, job.context, decided).await,
            Ok(Err(rejection)) => {
                self.rejected(job, rejection);
                Ok(())
            }
            Err(panic) => Err(self.crashed(job, &*panic)),
        }
    }

    /// Queues what was decided, with the reply, for the journal.
    async fn accepted(
        &mut self,
        work: Work<A>,
        context: CommandContext,
        decided: Decided<A>,
    ) -> Result<(), Ends> {
        let Decided { events, timers, mut release } = decided;
        points::reach("aggregate.after_decide").await;
        // Of an aggregate that is not there yet nothing stays behind where nothing was decided: it may
        // come to be in this life, and then knows of nothing before it.
        let is_nothing = events.is_empty() && self.version == 0 && context.origin == Origin::Inside;
        let writes = matches!(work, Work::Command(_)) && context.once.is_some() && !is_nothing;
        let fired = if let Work::Timer(timer, _) = work { Some(timer) } else { None };
        if events.is_empty() && fired.is_none() && !writes {
            self.barrier(release);
            return Ok(());
        }
        let mut entry = Entry::of(&self.incarnation);
        if let Some(timer) = fired {
            entry.rows().timers.push(TimerWrite::Fired(timer.clone()));
            self.timers.note(&timer.key.name, None);
        }
        entry.rows().timers.extend(timers.into_iter().map(|change| self.timer_write(change)));
        let count = events.len();
        if count > 0 {
            entry.rows().control.extend(context.attach.iter().cloned());
            match self.encode(&context, &events, &mut entry).await {
                Ok(committing) => release = traced(committing, release),
                Err(error) => {
                    tracing::error!(aggregate_type = A::TYPE, aggregate_id = %self.slot.id, %error, "events could not be sealed; they are undone");
                    release(Settled::Lost(Unavailable::Journal));
                    return Err(Ends(Exit::Lost));
                }
            }
        }
        self.version += count as u64;
        if let Some(once) = context.once {
            let outcome = self.outcome(&context, once, count, None);
            if self.shared().faults.planted(Bug::DeduplicateAfterCommit) {
                let outcomes = vec![outcome];
                let after = Entry::control(Batch { outcomes, ..Batch::default() });
                let writer = self.shared().writer.clone();
                entry.on_settled(Box::new(move |settled| {
                    release(settled);
                    writer.enqueue(after);
                }));
                self.shared().writer.enqueue(entry);
                return Ok(());
            }
            entry.outcome(outcome);
        }
        entry.on_settled(release);
        self.shared().writer.enqueue(entry);
        if self.version >= self.snapshot_version + self.shared().options.snapshot_every {
            self.snapshot().await;
        }
        Ok(())
    }

    /// Encodes events and adds them to the entry.
    async fn encode(
        &mut self,
        context: &CommandContext,
        events: &[A::Event],
        entry: &mut Entry,
    ) -> Result<Option<Committing>, crate::journal::Error> {
        let shared = self.slot.shared().clone();
        let mut keys = Vec::new();
        let mut encoded = Vec::with_capacity(events.len());
        let mut metadata_of: Option<(&str, Arc<str>)> = None;
        for event in events {
            let label = event.label();
            let Given { event_id, correlation_id, causation_id, actor_id, attributes } =
                event.given();
            let event_id = event_id.unwrap_or_else(|| shared.world.new_id());
            let data =
                shared.keys.seal(&*shared.store, event_id, event.encode(), &mut keys).await?;
            let service = label.service;
            let metadata = match &metadata_of {
                _ if actor_id.is_some() || !attributes.is_empty() => {
                    let version = &shared.options.version;
                    metadata(context, service, version, actor_id, attributes)
                }
                Some((of, metadata)) if *of == service => metadata.clone(),
                _ => {
                    let version = &shared.options.version;
                    let made = metadata(context, service, version, None, BTreeMap::new());
                    metadata_of = Some((service, made.clone()));
                    made
                }
            };
            encoded.push(EncodedEvent {
                event_id,
                event_type: label.event_type,
                major: label.major,
                minor: label.minor,
                timestamp: shared.world.now(),
                data: data.into(),
                metadata,
                correlation_id,
                causation_id,
            });
        }
        let stream = *self.stream.get_or_insert_with(|| {
            shared.known.add(A::TYPE, self.slot.id);
            shared.writer.state().next_stream()
        });
        let correlation_id = self.correlation(context);
        let causation_id = match &*context.causation_id {
            "" => context.command_id.to_string().into(),
            _ => context.causation_id.clone(),
        };
        let target = Target {
            stream,
            aggregate_type: A::TYPE.into(),
            aggregate_id: self.slot.id,
            version: self.version,
            correlation_id,
            causation_id,
        };
        let committing = self.committing(context, &encoded);
        entry.keys(keys);
        entry.events(target, encoded);
        Ok(committing)
    }

    /// What is told of a traced command's way into the journal.
    fn committing(&self, context: &CommandContext, events: &[EncodedEvent]) -> Option<Committing> {
        let shared = self.shared();
        let here = context.here?;
        let events = events.iter().map(|event| (event.event_id, event.event_type.clone()));
        let place = (A::TYPE, shared.writer.state().partition());
        Some(Committing::below(here, &*shared.world, place, events.collect()))
    }

    /// A timer's command goes on under the correlation id of what set it.
    fn correlation(&mut self, context: &CommandContext) -> Arc<str> {
        if !context.correlation_id.is_empty() {
            self.correlation_id = Some(context.correlation_id.clone());
        }
        let world = &self.slot.shared().world;
        self.correlation_id.get_or_insert_with(|| world.new_id().to_string().into()).clone()
    }

    /// Whether a timer that was due when it was looked up is what is set now.
    async fn still_set(
        &self,
        timer: &Timer,
        looked_up: LookedUp,
    ) -> Result<bool, crate::journal::Error> {
        match self.timers.standing(timer, looked_up) {
            Standing::Set => Ok(true),
            Standing::Gone => Ok(false),
            // What earlier lives changed is settled, and this one changed nothing.
            Standing::AskJournal => {
                Ok(self.shared().store.timer(&timer.key).await? == Some(timer.due))
            }
        }
    }

    fn timer_write(&mut self, change: TimerChange) -> TimerWrite {
        let aggregate_id = self.slot.id;
        let key = |name| TimerKey { aggregate_type: A::TYPE.into(), aggregate_id, name };
        match change {
            TimerChange::Set { name, at } => {
                self.timers.note(&name, Some(at));
                TimerWrite::Set(Timer { key: key(name), due: at })
            }
            TimerChange::Clear { name } => {
                self.timers.note(&name, None);
                TimerWrite::Clear(key(name))
            }
        }
    }

    fn outcome(
        &mut self,
        context: &CommandContext,
        once: Once,
        events: usize,
        rejection: Option<Arc<str>>,
    ) -> Outcome {
        let outcome = Outcome {
            command_id: context.command_id,
            request_hash: once.request_hash,
            stream: self.stream.unwrap_or(0),
            version: self.version,
            events: u32::try_from(events).unwrap_or(u32::MAX),
            rejection,
            at: self.shared().world.now(),
        };
        self.recent.add(outcome.clone());
        if !self.recent.is_whole {
            self.slot.ask_journal(true);
        }
        outcome
    }

    fn rejected(&mut self, mut job: Job<A>, rejection: A::Rejection) {
        if let Work::Timer(timer, _) = &job.work {
            // What the timer was for no longer makes sense: it has fired all the same.
            let mut entry = Entry::of(&self.incarnation);
            entry.rows().timers.push(TimerWrite::Fired(timer.clone()));
            self.timers.note(&timer.key.name, None);
            let accepted = Accepted { version: self.version, events: 0, replayed: false };
            entry.on_settled(job.answer.accept(&self.state, accepted));
            return self.shared().writer.enqueue(entry);
        }
        let stored = serde_json::to_string(&rejection).ok();
        let version = self.version;
        let error = CommandError::Rejected { rejection, version, replayed: false };
        let release = job.answer.reject(error);
        // A client gets the same no again. The system's own commands are decided anew: whoever mends
        // the cause of a refusal must be able to try again.
        let once = job.context.once.filter(|_| job.context.origin == Origin::Outside);
        match once.zip(stored) {
            None => self.barrier(release),
            Some((once, stored)) => {
                let mut entry = Entry::of(&self.incarnation);
                let outcome = self.outcome(&job.context, once, 0, Some(stored.into()));
                entry.outcome(outcome);
                entry.on_settled(release);
                self.shared().writer.enqueue(entry);
            }
        }
    }

    /// Sends a reply that rests on this state once the state is durable; at once if it is.
    fn barrier(&self, release: crate::journal::writer::Release) {
        if self.incarnation.failed() {
            release(Settled::Lost(Unavailable::Restarting));
        } else if self.incarnation.pending() == 0
            || self.shared().faults.planted(Bug::ReadBeforeDurable)
        {
            release(Settled::Committed(None));
        } else {
            let mut entry = Entry::of(&self.incarnation);
            entry.on_settled(release);
            self.shared().writer.enqueue(entry);
        }
    }

    fn crashed(&self, mut job: Job<A>, panic: &(dyn std::any::Any + Send)) -> Ends {
        let error_id = ErrorId(self.shared().world.new_id());
        let command = match &job.work {
            Work::Command(command) => command.name().to_owned(),
            Work::Read => "read".to_owned(),
            Work::Timer(timer, _) => format!("timer {}", timer.key.name),
        };
        let panic = panic_message(panic);
        tracing::error!(aggregate_type = A::TYPE, aggregate_id = %self.slot.id, %error_id, command, command_id = %job.context.command_id, panic, "an aggregate panicked; it starts again from the journal");
        job.answer.refuse(CommandError::Internal(error_id));
        Ends(Exit::Crashed { command_id: job.context.command_id, command, error_id })
    }

    /// Stores the state as it will be once everything queued is durable: if anything before it is
    /// lost, so is the snapshot.
    async fn snapshot(&mut self) {
        let Some(stream) = self.stream else { return };
        self.snapshot_version = self.version;
        let shared = self.shared().clone();
        let Ok(state) = serde_json::to_string(&self.state) else { return };
        let mut keys = Vec::new();
        let off = shared.faults.planted(Bug::SnapshotVersionOff);
        let version = self.version + u64::from(off);
        let record = snapshot_record(stream, version);
        match shared.keys.seal(&*shared.store, record, state, &mut keys).await {
            Ok(state) => {
                points::reach("snapshot.during").await;
                let mut entry = Entry::of(&self.incarnation);
                entry.keys(keys);
                let shape = A::SNAPSHOT_VERSION;
                let snapshot = load::checked_snapshot(stream, version, shape, &state);
                entry.rows().snapshots.push(snapshot);
                shared.writer.enqueue(entry);
            }
            Err(error) => tracing::warn!(aggregate_type = A::TYPE, %error, "no snapshot was made"),
        }
    }
}

/// Tells of a commit before its reply is sent.
fn traced(
    committing: Option<Committing>,
    release: crate::journal::writer::Release,
) -> crate::journal::writer::Release {
    let Some(committing) = committing else { return release };
    Box::new(move |settled| {
        committing.ended(match &settled {
            Settled::Committed(_) => None,
            Settled::Lost(why) => Some(why.code()),
            Settled::Unknown => Some("unknown"),
        });
        release(settled);
    })
}

struct Decided<A: Aggregate> {
    events: Vec<A::Event>,
    timers: Vec<TimerChange>,
    release: crate::journal::writer::Release,
}

/// The pure part: the command is decided, its events applied, the caller's view computed.
fn decide_and_apply<A: Aggregate>(
    state: &mut A,
    version: u64,
    job: &mut Job<A>,
    now: crate::world::Timestamp,
) -> Result<Decided<A>, A::Rejection> {
    let timed;
    let command = match &job.work {
        Work::Command(command) => Some(command),
        Work::Read => None,
        Work::Timer(timer, _) => {
            timed = state.on_timer(&timer.key.name, now);
            timed.as_ref()
        }
    };
    let events = command.map_or_else(|| Ok(Vec::new()), |command| state.decide(command))?;
    let mut timers = Vec::new();
    for event in &events {
        state.apply(event);
        timers.extend(state.timers(event));
    }
    let accepted =
        Accepted { version: version + events.len() as u64, events: events.len(), replayed: false };
    let release = job.answer.accept(state, accepted);
    Ok(Decided { events, timers, release })
}

fn metadata(
    context: &CommandContext,
    service: &str,
    version: &str,
    actor_id: Option<String>,
    attributes: BTreeMap<String, String>,
) -> Arc<str> {
    let metadata = Metadata {
        service: service.to_owned(),
        version: version.to_owned(),
        actor_id: actor_id.unwrap_or_else(|| context.actor_id.to_string()),
        credential: context.credential.as_deref().map(str::to_owned),
        tenant_id: context.tenant_id.to_string(),
        traceparent: context.traceparent.as_deref().map(str::to_owned),
        tracestate: context.tracestate.as_deref().map(str::to_owned),
        subscription: context.subscription.map(str::to_owned),
        attributes,
    };
    serde_json::to_string(&metadata).expect("plain text members").into()
}

/// What a panic said, as far as it is text.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Answers a repeat whose version is not the current one any more.
async fn replay_later<A: Aggregate>(
    registry: Registry<A>,
    id: Uuid,
    mut job: Job<A>,
    accepted: Accepted,
    settled: Settled,
) {
    if let Settled::Committed(_) = settled {
        match registry.at_version(id, accepted.version).await {
            Ok(Some(state)) => job.answer.accept(&state, accepted)(settled),
            Ok(None) | Err(_) => job.answer.refuse(Unavailable::Journal.into()),
        }
    } else {
        job.answer.refuse(Unavailable::Restarting.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custody::Custody;

    /// How much memory what this makes takes for as long as it is there.
    fn size_of_what<'a, A: Aggregate, Made>(
        _makes: impl FnOnce(
            &'a AggregateActor<A>,
            ActorRef<Message>,
            Message,
            &'a mut Option<Live<A>>,
        ) -> Made,
    ) -> usize {
        size_of::<Made>()
    }

    /// What an actor does with a message is a part of the actor from its start to its end: there are
    /// tens of thousands of them, and few at work.
    #[test]
    fn an_idle_actor_holds_nothing_of_what_it_needs_for_its_work() {
        let handling = size_of_what(<AggregateActor<Custody> as Actor>::handle);
        assert!(handling <= 256, "{handling} bytes");
        let live = size_of::<Option<Live<Custody>>>();
        assert!(live <= 768, "{live} bytes");
    }
}
