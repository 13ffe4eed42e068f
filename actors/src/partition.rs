//! A partition: a whole of its own. Journal writer, broker, aggregates, timers, dead letters and
//! subscriptions, under one supervisor. Nothing in it assumes that another partition is in the
//! same process.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use ractor::{Actor, ActorRef};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::admission::Admission;
use crate::aggregate::Aggregate;
use crate::aggregate::known::KnownStreams;
use crate::aggregate::registry::{AnyRegistry, Registry, Shared};
use crate::broker::{Broker, BrokerHandle};
use crate::crashes::Crashes;
use crate::dead_letter::DeadLetterActor;
use crate::event::StoredEvent;
use crate::faults::Faults;
use crate::flag::Flag;
use crate::hot::Heat;
use crate::journal::codec::Keyring;
use crate::journal::writer::{Committed, Stopped, Writer, WriterHandle, WriterParts};
use crate::journal::{self, Store};
use crate::planted::Bug;
use crate::runtime::changes::Watchers;
use crate::runtime::{Options, WeakRuntime, quarantine};
use crate::subscriber::{AtWork, Cell, CellParts, Steered, Subscription};
use crate::supervisor::{AggregateSupervisor, PartitionSupervisor, Supervise, Worker};
use crate::timer::{TimerWake, Timers};
use crate::world::{Timestamp, World};

/// Entries of the runtime itself (checkpoints, letters, snapshots) beside those that admission
/// control counts.
const OWN_ENTRIES_MAX: usize = 4_096;
/// How often idle aggregates are looked for.
const PASSIVATE_EVERY: Duration = Duration::from_secs(1);
/// How often expired control rows are dropped.
const PURGE_EVERY: Duration = Duration::from_secs(30);
/// How long a command's outcome is kept: the life of an idempotency key.
pub const OUTCOME_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What every partition gets from the runtime.
#[derive(Clone)]
pub(crate) struct PartitionParts {
    pub store: Arc<dyn Store>,
    pub keys: Arc<Keyring>,
    pub world: Arc<dyn World>,
    pub faults: Arc<Faults>,
    pub options: Options,
    pub stopping: Flag,
    /// Everything is flushed: the last workers end.
    pub ended: Flag,
    pub fatal: watch::Sender<Option<String>>,
}

/// Makes the registry of one type of aggregate in one partition.
pub(crate) type MakeRegistry =
    Arc<dyn Fn(&Arc<Shared>, &[journal::Quarantine]) -> Made + Send + Sync>;

/// A registry, for those who know its type and those who do not.
pub(crate) struct Made {
    pub type_id: TypeId,
    pub any: Arc<dyn AnyRegistry>,
    pub typed: Box<dyn Any + Send + Sync>,
}

pub(crate) fn make_registry<A: Aggregate>() -> MakeRegistry {
    Arc::new(|shared, quarantined| {
        let registry = Registry::<A>::new(shared.clone(), quarantined);
        Made {
            type_id: TypeId::of::<A>(),
            any: Arc::new(registry.clone()),
            typed: Box::new(registry),
        }
    })
}

pub(crate) struct Partition {
    pub index: u16,
    pub writer: WriterHandle,
    pub broker: BrokerHandle,
    pub admission: Arc<Admission>,
    pub registries: Arc<Vec<Arc<dyn AnyRegistry>>>,
    pub typed: Typed,
    pub cells: Vec<Arc<Cell>>,
    pub timer_wake: Arc<TimerWake>,
    /// An aggregate was quarantined.
    quarantined: Arc<Notify>,
    /// Which aggregates are busy.
    pub heat: Arc<Heat>,
    /// Which aggregates crashed.
    pub crashes: Arc<Crashes>,
    /// Which aggregates have events.
    known: Arc<KnownStreams>,
    /// Where the journal was at the start.
    began_at: u64,
    pub head: watch::Receiver<u64>,
    /// Who waits for events of single aggregates.
    pub watchers: Arc<Watchers>,
    pub running: Arc<DashMap<Arc<str>, ()>>,
    pub supervisor: ActorRef<Supervise>,
    timers: Arc<Timers>,
    parts: PartitionParts,
}

/// Hears of commits on behalf of the partition.
struct Hears {
    broker: BrokerHandle,
    timers: Arc<TimerWake>,
    head: watch::Sender<u64>,
    watchers: Arc<Watchers>,
    partition: u16,
}

impl Committed for Hears {
    fn committed(&self, events: Vec<Arc<StoredEvent>>) {
        let last = events.last().map(|event| event.position);
        self.watchers.committed(&events);
        self.broker.committed(events);
        if let Some(last) = last {
            self.at(last);
        }
    }

    fn moved_to(&self, head: u64) {
        self.broker.moved_to(head);
        self.watchers.moved();
        self.at(head);
    }

    fn timers_set(&self, earliest: Timestamp) {
        self.timers.set(earliest);
    }
}

impl Hears {
    fn new(partition: u16, broker: BrokerHandle) -> Self {
        let head = watch::Sender::new(0);
        Self { broker, timers: Arc::default(), head, watchers: Arc::default(), partition }
    }

    fn at(&self, head: u64) {
        self.head.send_replace(head);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("souk_journal_position", "partition" => self.partition.to_string())
            .set(head as f64);
    }
}

impl Partition {
    /// Takes the partition over and starts everything but its subscriptions and timers.
    pub(crate) async fn start(
        index: u16,
        parts: PartitionParts,
        makers: &[MakeRegistry],
        subscriptions: &[Subscription],
        steered: &HashMap<&'static str, Steered>,
    ) -> Result<Self, journal::Error> {
        let options = &parts.options;
        let (broker_actor, broker) = Broker::new();
        let (dead_letter_actor, dead_letters) = DeadLetterActor::new();
        let hears = Hears::new(index, broker.clone());
        let (timer_wake, watchers) = (hears.timers.clone(), hears.watchers.clone());
        let head = hears.head.subscribe();
        let admission = Arc::new(Admission::new(options.outside_max, options.inside_max));
        let writer_parts = WriterParts {
            store: parts.store.clone(),
            keys: parts.keys.clone(),
            world: parts.world.clone(),
            committed: Arc::new(hears),
            faults: parts.faults.clone(),
        };
        let queue_max = admission.max() + OWN_ENTRIES_MAX;
        let (writer_actor, writer) = Writer::open(writer_parts, index, queue_max).await?;
        broker.moved_to(writer.state().head());
        let shared = Arc::new(Shared {
            store: parts.store.clone(),
            keys: parts.keys.clone(),
            world: parts.world.clone(),
            writer: writer.clone(),
            admission: admission.clone(),
            options: options.aggregates.clone(),
            dead_letters: dead_letters.clone(),
            watched: DashMap::new(),
            faults: parts.faults.clone(),
            supervisor: OnceLock::new(),
            quarantined: Arc::default(),
            heat: Arc::default(),
            crashes: Arc::default(),
            known: Arc::default(),
        });
        let (registries, typed) = make_registries(index, &shared, makers).await?;
        let cells = make_cells(index, &parts, &shared, &broker, subscriptions, steered);
        let (supervisor, running) = start_supervisors(index, &parts, &shared).await;
        let timers = Arc::new(Timers {
            partition: index,
            store: parts.store.clone(),
            world: parts.world.clone(),
            registries: registries.clone(),
            wake: timer_wake.clone(),
            started: parts.world.now(),
            faults: parts.faults.clone(),
        });
        let partition = Self {
            index,
            began_at: writer.state().head(),
            writer,
            broker,
            admission,
            registries,
            typed,
            cells,
            timer_wake,
            quarantined: shared.quarantined.clone(),
            heat: shared.heat.clone(),
            crashes: shared.crashes.clone(),
            known: shared.known.clone(),
            head,
            watchers,
            running,
            supervisor,
            timers,
            parts,
        };
        partition.start_core(writer_actor, broker_actor, dead_letter_actor);
        Ok(partition)
    }

    /// How many events have been committed since the start.
    pub(crate) fn published(&self) -> u64 {
        self.writer.state().head().saturating_sub(self.began_at)
    }

    /// Whether the actor of this subscription is running.
    pub(crate) fn runs(&self, cell: &Cell) -> bool {
        self.running.contains_key(&*format!("subscription {}", cell.subscription.name))
    }

    fn spawn(&self, worker: Worker) {
        let _ = self.supervisor.cast(Supervise::Start(worker));
    }

    /// Starts what must run until everything is flushed, and cannot be done without.
    fn spawn_core<F, L>(&self, name: &str, run: F)
    where
        F: Fn() -> L + Send + Sync + 'static,
        L: Future<Output = Result<(), String>> + Send + 'static,
    {
        let ended = self.parts.ended.clone();
        self.spawn(Worker::new(name, true, move || {
            let (life, ended) = (run(), ended.clone());
            async move {
                tokio::select! {
                    biased;
                    end = life => end,
                    () = ended.wait(true) => Ok(()),
                }
            }
        }));
    }

    /// Lets go of everything, once it is flushed.
    pub(crate) fn end(&self) {
        self.supervisor.stop(None);
        self.forget_aggregates();
    }

    /// An aggregate's slot and its registry hold each other: whoever lets go of both says so.
    fn forget_aggregates(&self) {
        self.registries.iter().for_each(|registry| registry.clear());
    }

    fn start_core(
        &self,
        writer: Arc<Writer>,
        broker: Arc<Broker>,
        dead_letters: Arc<DeadLetterActor>,
    ) {
        let (index, fatal) = (self.index, self.parts.fatal.clone());
        self.spawn_core("writer", move || {
            let (writer, fatal) = (writer.clone(), fatal.clone());
            async move {
                match writer.run().await {
                    Ok(()) => Ok(()),
                    Err(why @ Stopped::Fenced) => {
                        // Starting again would not help.
                        fatal.send_replace(Some(format!("partition {index}: {why}")));
                        writer.refuse().await;
                        Ok(())
                    }
                    Err(why) => Err(why.to_string()),
                }
            }
        });
        self.watch_lease();
        self.spawn_core("broker", move || {
            let broker = broker.clone();
            async move {
                broker.run().await;
                Ok(())
            }
        });
        let handle = self.writer.clone();
        self.spawn_core("dead-letters", move || {
            let (dead_letters, handle) = (dead_letters.clone(), handle.clone());
            async move {
                dead_letters.run(&handle).await;
                Ok(())
            }
        });
    }

    /// Ends everything when another process has the partition, also where nothing is appended.
    fn watch_lease(&self) {
        let (index, store, fatal) =
            (self.index, self.parts.store.clone(), self.parts.fatal.clone());
        self.spawn_core("lease", move || {
            let (store, fatal) = (store.clone(), fatal.clone());
            async move {
                let why = store.lost(index).await;
                fatal.send_replace(Some(format!("partition {index}: {why}")));
                Ok(())
            }
        });
    }

    /// Reads which aggregates there are, while everything runs already.
    fn get_to_know_streams(&self) {
        let (known, store) = (self.known.clone(), self.parts.store.clone());
        let (index, stopping) = (self.index, self.parts.stopping.clone());
        if self.parts.faults.planted(Bug::StreamsForgotten) {
            known.set_whole();
        }
        self.spawn(Worker::new("known-streams", false, move || {
            let (known, store, stopping) = (known.clone(), store.clone(), stopping.clone());
            async move {
                let read = tokio::select! {
                    biased;
                    () = stopping.wait(true) => return Ok(()),
                    read = known.read(&*store, index) => read,
                };
                match read {
                    Err(error @ journal::Error::Damaged(_)) => {
                        tracing::error!(partition = index, %error, "the journal is asked for each new aggregate");
                        Ok(())
                    }
                    read => read.map_err(|error| error.to_string()),
                }
            }
        }));
    }

    /// Starts the subscriptions, the timers, the housekeeping, and whoever tells of quarantines.
    pub(crate) fn start_rest(&self, runtime: &WeakRuntime) {
        for cell in &self.cells {
            let cell = cell.clone();
            let name = format!("subscription {}", cell.subscription.name);
            self.spawn(Worker::new(&name, false, move || crate::subscriber::run(cell.clone())));
        }
        let (timers, stopping) = (self.timers.clone(), self.parts.stopping.clone());
        self.spawn(Worker::new("timers", true, move || {
            let (timers, stopping) = (timers.clone(), stopping.clone());
            async move {
                tokio::select! {
                    biased;
                    () = stopping.wait(true) => {}
                    () = timers.run() => {}
                }
                Ok(())
            }
        }));
        let (index, runtime) = (self.index, runtime.clone());
        let (changed, stopping) = (self.quarantined.clone(), self.parts.stopping.clone());
        self.spawn(Worker::new("quarantine", false, move || {
            let (runtime, changed) = (runtime.clone(), changed.clone());
            let stopping = stopping.clone();
            async move {
                tokio::select! {
                    biased;
                    () = stopping.wait(true) => {}
                    () = quarantine::tell(runtime, index, changed) => {}
                }
                Ok(())
            }
        }));
        self.get_to_know_streams();
        let registries = self.registries.clone();
        let (index, parts) = (self.index, self.parts.clone());
        self.spawn(Worker::new("housekeeping", false, move || {
            keep_house(index, registries.clone(), parts.clone())
        }));
    }
}

/// Also where nothing was flushed: its tokio runtime was dropped under it.
impl Drop for Partition {
    fn drop(&mut self) {
        self.forget_aggregates();
    }
}

type Typed = HashMap<TypeId, Box<dyn Any + Send + Sync>>;

async fn make_registries(
    index: u16,
    shared: &Arc<Shared>,
    makers: &[MakeRegistry],
) -> Result<(Arc<Vec<Arc<dyn AnyRegistry>>>, Typed), journal::Error> {
    let quarantined = shared.store.quarantined(index).await?;
    let mut registries = Vec::new();
    let mut typed = HashMap::new();
    for make in makers {
        let made = make(shared, &quarantined);
        registries.push(made.any);
        typed.insert(made.type_id, made.typed);
    }
    Ok((Arc::new(registries), typed))
}

fn make_cells(
    index: u16,
    parts: &PartitionParts,
    shared: &Shared,
    broker: &BrokerHandle,
    subscriptions: &[Subscription],
    steered: &HashMap<&'static str, Steered>,
) -> Vec<Arc<Cell>> {
    let at_work = Arc::<AtWork>::default();
    let cell = |subscription: &Subscription| {
        let cell_parts = CellParts {
            store: parts.store.clone(),
            writer: shared.writer.clone(),
            broker: broker.clone(),
            dead_letters: shared.dead_letters.clone(),
            faults: parts.faults.clone(),
            world: parts.world.clone(),
            stopping: parts.stopping.clone(),
            poll_interval: parts.options.poll_interval,
            letters_max: parts.options.letters_max,
            at_work: at_work.clone(),
        };
        let cell = Cell::new(subscription.clone(), index, cell_parts, &steered[subscription.name]);
        broker.add(cell.route.clone());
        cell
    };
    subscriptions.iter().map(cell).collect()
}

async fn start_supervisors(
    index: u16,
    parts: &PartitionParts,
    shared: &Arc<Shared>,
) -> (ActorRef<Supervise>, Arc<DashMap<Arc<str>, ()>>) {
    let running = Arc::new(DashMap::new());
    let supervisor = PartitionSupervisor {
        partition: index,
        policy: parts.options.restart.clone(),
        fatal: parts.fatal.clone(),
        stopping: parts.stopping.clone(),
        running: running.clone(),
    };
    let (supervisor, _) = Actor::spawn(None, supervisor, ())
        .await
        .expect("a supervisor's start does nothing that can fail");
    let aggregates = AggregateSupervisor { shared: shared.clone() };
    let (aggregates, _) = Actor::spawn_linked(None, aggregates, (), supervisor.get_cell())
        .await
        .expect("a supervisor's start does nothing that can fail");
    let first = shared.supervisor.set(aggregates.get_cell()).is_ok();
    debug_assert!(first, "a partition is started once");
    (supervisor, running)
}

async fn keep_house(
    index: u16,
    registries: Arc<Vec<Arc<dyn AnyRegistry>>>,
    parts: PartitionParts,
) -> Result<(), String> {
    let stopping = parts.stopping.clone();
    let mut purged = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stopping.wait(true) => return Ok(()),
            () = tokio::time::sleep(PASSIVATE_EVERY) => {}
        }
        let now = Instant::now();
        for registry in registries.iter() {
            registry.passivate(now);
        }
        // Control rows are not kept by partition: one of them does it.
        if index == 0 && purged.elapsed() >= PURGE_EVERY {
            purged = now;
            let now = parts.world.now();
            let kept = i64::try_from(OUTCOME_KEPT.as_millis()).unwrap_or(i64::MAX);
            let before = Timestamp::from_millis(now.millis() - kept);
            while parts.store.purge(before, now).await.map_err(|error| error.to_string())? > 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}
