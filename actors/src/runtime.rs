//! The runtime: all partitions of a node, and the ways into them.
//!
//! A command goes down through the floors (runtime, partition, aggregate, journal) and its events
//! come up through them (journal, broker, subscriptions), each once.

pub(crate) mod changes;
mod dead_letters;
mod handle;
pub(crate) mod quarantine;
mod reader;
mod replays;
mod series;
mod states;

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

pub use changes::Changes;
pub use dead_letters::{DeadLetters, LetterGroup, LetterPlace, LetterQuery, LetterQueue};
pub use handle::Handle;
pub use quarantine::QuarantineReport;
pub use reader::{Control, JournalReader, Subscriptions};
pub use replays::{Preview, ReplayStatus, ReplayWish, Replayable, Replays};
pub use states::{AsOf, State, StateError, States, Step};

use crate::aggregate::registry::{AnyRegistry, Registry};
use crate::aggregate::{Aggregate, AggregateOptions};
use crate::command::Refusal;
use crate::crashes::Crashed;
use crate::custody::Custody;
use crate::faults::Faults;
use crate::flag::Flag;
use crate::hot::{HotKey, HotTotal, Measure};
use crate::journal::codec::Keyring;
use crate::journal::{self, Batch, Store, partition_of};
use crate::oversight::Oversight;
use crate::oversight::letters::DeadLetterLog;
use crate::partition::{MakeRegistry, Partition, PartitionParts, make_registry};
use crate::saga::{Saga, SagaInstance, SagaRouter, subscriptions};
use crate::subscriber::{
    Cell, PAUSED_SPACE, REPLAY_SPACE, RETRY_SPACE, Set, Steered, Subscription, TIMEOUT_SPACE,
};
use crate::supervisor::RestartPolicy;
use crate::world::World;

/// How long whoever looks how everything stands waits for the journal. Prometheus itself waits for ten
/// seconds, and takes a process that does not answer for one that is gone.
const MEASURE_WITHIN: Duration = Duration::from_secs(2);

/// Limits and policies of a runtime.
#[derive(Debug, Clone)]
pub struct Options {
    /// Commands in flight from outside, per partition. A thousand or two are enough to keep a
    /// journal busy; more only wait.
    pub outside_max: usize,
    /// Commands in flight from sagas, timers and subscribers, per partition.
    pub inside_max: usize,
    /// Limits of aggregates.
    pub aggregates: AggregateOptions,
    /// How infrastructure actors are restarted before the partition is given up.
    pub restart: RestartPolicy,
    /// A subscription looks at the head this often even if nobody wakes it.
    pub poll_interval: Duration,
    /// Letters of one subscription in one partition; when there are so many it stands still.
    pub letters_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            outside_max: 2_000,
            inside_max: 2_000,
            aggregates: AggregateOptions::default(),
            restart: RestartPolicy::default(),
            poll_interval: Duration::from_secs(1),
            letters_max: 10_000,
        }
    }
}

/// Why a runtime did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal could not be read or taken over.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// Two things have one name.
    #[error("two {0} are called {1}")]
    Duplicate(&'static str, String),
}

/// How a runtime feels.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// Every partition's journal takes appends.
    pub journal_writable: bool,
    /// Nothing comes in from outside any more.
    pub draining: bool,
    /// Every subscription is running in every partition.
    pub subscriptions_started: bool,
    /// Every infrastructure actor is running.
    pub supervisors_alive: bool,
    /// Why nothing new is taken from outside, where [`Runtime::refuse_outside`] said so, by the
    /// reason that came first.
    pub refusal: Option<Refusal>,
}

/// A runtime to be.
pub struct Builder {
    store: Arc<dyn Store>,
    world: Arc<dyn World>,
    keys: Arc<Keyring>,
    options: Options,
    faults: Arc<Faults>,
    makers: Vec<(&'static str, TypeId, MakeRegistry)>,
    subscriptions: Vec<Subscription>,
}

struct Inner {
    store: Arc<dyn Store>,
    world: Arc<dyn World>,
    keys: Arc<Keyring>,
    faults: Arc<Faults>,
    partitions: Vec<Partition>,
    stopping: Flag,
    ended: Flag,
    fatal: watch::Receiver<Option<String>>,
}

/// All partitions of a node. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

/// A runtime that does not keep itself alive.
#[derive(Clone)]
pub(crate) struct WeakRuntime(Weak<Inner>);

impl WeakRuntime {
    pub(crate) fn upgrade(&self) -> Option<Runtime> {
        self.0.upgrade().map(Runtime)
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("partitions", &self.0.partitions.len()).finish()
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl Builder {
    /// Adds a type of aggregate.
    #[must_use]
    pub fn aggregate<A: Aggregate>(mut self) -> Self {
        self.makers.push((A::TYPE, TypeId::of::<A>(), make_registry::<A>()));
        self
    }

    /// Adds a saga, and how its commands get to their aggregates.
    #[must_use]
    pub fn saga<S: Saga>(mut self, router: Arc<dyn SagaRouter<S>>) -> Self {
        self = self.aggregate::<SagaInstance<S>>();
        series::of_saga(S::NAME);
        self.subscriptions.extend(subscriptions(router));
        self
    }

    /// Adds a subscription.
    #[must_use]
    pub fn subscribe(mut self, subscription: Subscription) -> Self {
        self.subscriptions.push(subscription);
        self
    }

    /// Plants a bug, to see that it is caught.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn planting(self, bug: crate::planted::Bug) -> Self {
        self.faults.plant(bug);
        self
    }

    /// Takes every partition over and starts everything.
    pub async fn start(self) -> Result<Runtime, StartError> {
        no_duplicates("aggregates", self.makers.iter().map(|(name, ..)| *name))?;
        no_duplicates("subscriptions", self.subscriptions.iter().map(|s| s.name))?;
        let mut steered = HashMap::new();
        for subscription in &self.subscriptions {
            steered.insert(subscription.name, self.steered(subscription.name).await?);
        }
        series::of_journal();
        self.makers.iter().for_each(|(name, ..)| series::of_aggregate(name));
        self.subscriptions.iter().for_each(|of| series::of_subscription(of.name));
        let (stopping, ended) = (Flag::default(), Flag::default());
        let (fatal_sender, fatal) = watch::channel(None);
        let faults = self.faults.clone();
        let parts = PartitionParts {
            store: self.store.clone(),
            keys: self.keys.clone(),
            world: self.world.clone(),
            faults: faults.clone(),
            options: self.options,
            stopping: stopping.clone(),
            ended: ended.clone(),
            fatal: fatal_sender,
        };
        let makers: Vec<_> = self.makers.into_iter().map(|(_, _, make)| make).collect();
        let mut partitions = Vec::new();
        for index in 0..self.store.partitions() {
            let started =
                Partition::start(index, parts.clone(), &makers, &self.subscriptions, &steered);
            partitions.push(started.await?);
        }
        let inner = Inner {
            store: self.store,
            world: self.world,
            keys: self.keys,
            faults,
            partitions,
            stopping,
            ended,
            fatal,
        };
        let runtime = Runtime(Arc::new(inner));
        for partition in &runtime.0.partitions {
            let weak = WeakRuntime(Arc::downgrade(&runtime.0));
            for cell in &partition.cells {
                let _ = cell.runtime.set(weak.clone());
            }
            partition.start_rest(&weak);
        }
        Ok(runtime)
    }

    /// How people have steered a subscription.
    async fn steered(&self, name: &'static str) -> Result<Steered, journal::Error> {
        let row = |space| self.store.control(space, name.as_bytes(), self.world.now());
        let paused = row(PAUSED_SPACE).await?;
        let (retry, timeout) = (row(RETRY_SPACE).await?, row(TIMEOUT_SPACE).await?);
        let replay = row(REPLAY_SPACE).await?.map(|row| serde_json::from_slice(&row));
        if let Some(Err(error)) = &replay {
            tracing::error!(subscription = name, %error, "a replay that was asked for cannot be read; it does not go on");
        }
        Ok(Steered {
            paused: paused.is_some(),
            // A row from before this was recorded says only that it is paused.
            paused_by: paused.and_then(|row| serde_json::from_slice(&row).ok()),
            set: Set::from_rows(name, retry.as_deref(), timeout.as_deref()),
            replay: replay.and_then(Result::ok).map(Arc::new),
        })
    }
}

fn measure_lag(cell: &Cell, lag: Option<Duration>) {
    let (name, index) = (cell.subscription.name, cell.partition.to_string());
    metrics::gauge!("souk_subscription_lag_seconds", "subscription" => name, "partition" => index)
        .set(lag.unwrap_or_default());
}

fn no_duplicates<'a>(
    what: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), StartError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(StartError::Duplicate(what, name.to_owned()));
        }
    }
    Ok(())
}

impl Runtime {
    /// Begins to build a runtime on this journal.
    pub fn builder(
        store: Arc<dyn Store>,
        world: Arc<dyn World>,
        keys: Arc<Keyring>,
        options: Options,
    ) -> Builder {
        let faults = Arc::default();
        let builder = Builder {
            store,
            world,
            keys,
            options,
            faults,
            makers: Vec::new(),
            subscriptions: Vec::new(),
        };
        builder.aggregate::<Oversight>().aggregate::<DeadLetterLog>().aggregate::<Custody>()
    }

    /// Time, randomness and ids.
    pub fn world(&self) -> &Arc<dyn World> {
        &self.0.world
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        self.0.store.partitions()
    }

    /// The way to all aggregates of a type.
    ///
    /// # Panics
    /// If the type was not added to the builder: that is a mistake in the program.
    pub fn aggregate<A: Aggregate>(&self) -> Handle<A> {
        let registry = |partition: &Partition| {
            partition
                .typed
                .get(&TypeId::of::<A>())
                .and_then(|typed| typed.downcast_ref::<Registry<A>>())
                .unwrap_or_else(|| panic!("the aggregate {} was not added", A::TYPE))
                .clone()
        };
        Handle::new(self.0.partitions.iter().map(registry).collect())
    }

    /// The way to all instances of a saga.
    pub fn saga<S: Saga>(&self) -> Handle<SagaInstance<S>> {
        self.aggregate()
    }

    /// What the journal holds.
    pub fn journal(&self) -> JournalReader {
        JournalReader(self.clone())
    }

    /// The states of aggregates, as of now and earlier.
    pub fn states(&self) -> States {
        States(self.clone())
    }

    /// The application's control rows.
    pub fn control(&self) -> Control {
        Control(self.clone())
    }

    /// The subscriptions.
    pub fn subscriptions(&self) -> Subscriptions {
        Subscriptions(self.clone())
    }

    /// The dead letters.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters(self.clone())
    }

    /// The replays.
    pub fn replays(&self) -> Replays {
        Replays(self.clone())
    }

    /// Injected failures (development and tests).
    pub fn faults(&self) -> &Arc<Faults> {
        &self.0.faults
    }

    /// Moves the clock, where it can be moved, and wakes the timers.
    pub fn advance_clock(&self, by: Duration) -> bool {
        let moved = self.0.world.advance(by);
        self.0.partitions.iter().for_each(|partition| partition.timer_wake.look());
        moved
    }

    /// How it feels.
    pub fn health(&self) -> Health {
        let all = |check: &dyn Fn(&Partition) -> bool| self.0.partitions.iter().all(check);
        Health {
            journal_writable: all(&|partition| {
                partition.writer.state().healthy()
                    && self.0.store.standing(partition.index).may_write()
            }),
            draining: !all(&|partition| !partition.admission.draining()),
            subscriptions_started: all(&|partition| {
                partition.cells.iter().all(|cell| partition.runs(cell))
            }),
            supervisors_alive: all(&|partition| {
                ["writer", "broker", "timers", "dead-letters"]
                    .iter()
                    .all(|name| partition.running.contains_key(*name))
            }),
            refusal: self.0.partitions.iter().find_map(|partition| partition.admission.refusal()),
        }
    }

    /// From now on every new command from outside is refused for this reason, besides others that
    /// there may be. Repeats of commands that happened are answered, reads are, people steer the
    /// runtime, and sagas, timers and subscribers go on.
    pub fn refuse_outside(&self, refusal: Refusal) {
        self.0.partitions.iter().for_each(|of| of.admission.refuse_outside(refusal));
    }

    /// This reason is gone: commands from outside are taken again where there is no other.
    pub fn accept_outside(&self, refusal: Refusal) {
        self.0.partitions.iter().for_each(|of| of.admission.accept_outside(refusal));
    }

    /// Whether new commands from outside are refused for this reason.
    pub fn refuses_outside(&self, refusal: Refusal) -> bool {
        self.0.partitions.iter().any(|of| of.admission.refuses(refusal))
    }

    /// Has refusals for this reason counted from 0 on, so that the first of them shows as an increase.
    pub fn may_refuse(&self, refusal: Refusal) {
        for registry in self.0.partitions.iter().flat_map(|partition| partition.registries.iter()) {
            series::of_refusal(registry.aggregate_type(), refusal.code);
        }
    }

    /// Commands in flight, from outside and from inside.
    pub fn in_flight(&self) -> (usize, usize) {
        let sum = |(a, b): (usize, usize), (c, d): (usize, usize)| (a + c, b + d);
        self.0.partitions.iter().map(|partition| partition.admission.in_flight()).fold((0, 0), sum)
    }

    /// The busiest aggregates, the busiest first.
    pub fn busiest(&self, measure: Measure, limit: usize) -> Vec<HotKey> {
        let partitions = self.0.partitions.iter();
        let mut all: Vec<_> =
            partitions.flat_map(|partition| partition.heat.busiest(measure, limit)).collect();
        all.sort_by(|a, b| b.measured(measure).total_cmp(&a.measured(measure)));
        all.truncate(limit);
        all
    }

    /// What all aggregates do together.
    pub fn heat(&self) -> HotTotal {
        self.0.partitions.iter().map(|partition| partition.heat.total()).sum()
    }

    /// What part of all commands and reads the aggregate takes lately that takes most of them, or at least takes
    /// so many: 0 to 1.
    pub fn hottest_share(&self) -> f64 {
        let all = self.heat().commands_per_second;
        let of = self.busiest(Measure::Commands, 1);
        let most = of
            .first()
            .map_or(0.0, |hottest| hottest.measured(Measure::Commands) - hottest.overestimate);
        if all > 0.0 { (most / all).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// The aggregates that crashed since this was asked last, of many the latest of each partition.
    pub fn take_crashes(&self) -> Vec<Crashed> {
        self.0.partitions.iter().flat_map(|partition| partition.crashes.take()).collect()
    }

    /// How many events have been committed since the start.
    pub fn published(&self) -> u64 {
        self.0.partitions.iter().map(Partition::published).sum()
    }

    /// Brings the gauges up to date that show a moment: what is in flight, and how much of it at
    /// single aggregates; how much of everything is one aggregate's; whether the journal can be
    /// written; whether subscriptions run, and how far behind they are. Called when somebody looks; it
    /// visits every live aggregate, and reads a page of the journal for each subscription that is far
    /// behind, two seconds long at most: what was not read by then stays as it was.
    pub async fn measure(&self) {
        self.measure_commands();
        let gauge = |is_so: bool| f64::from(u8::from(is_so));
        metrics::gauge!("souk_journal_writable").set(gauge(self.health().journal_writable));
        metrics::gauge!("souk_hottest_aggregate_share").set(self.hottest_share());
        let mut far_behind = Vec::new();
        for partition in &self.0.partitions {
            for cell in &partition.cells {
                let (name, index) = (cell.subscription.name, cell.partition.to_string());
                let is_up = partition.runs(cell) && !cell.is_full() && !cell.is_at_damage();
                metrics::gauge!("souk_subscription_up", "subscription" => name, "partition" => index.clone())
                    .set(gauge(is_up));
                #[expect(clippy::cast_precision_loss, reason = "a gauge")]
                metrics::gauge!("souk_subscription_lag_events", "subscription" => name, "partition" => index.clone())
                    .set(cell.lag_events() as f64);
                match cell.lag_in_memory() {
                    Some(lag) => measure_lag(cell, lag),
                    None => far_behind.push(cell),
                }
                let unacked = cell.longest_in_hand().unwrap_or_default();
                metrics::gauge!("souk_subscription_oldest_unacked_seconds", "subscription" => name, "partition" => index)
                    .set(unacked);
            }
        }
        let reads = async {
            for cell in far_behind {
                // What cannot be read now leaves it as it was: it is no less behind for that.
                if let Ok(lag) = cell.lag().await {
                    measure_lag(cell, lag);
                }
            }
        };
        let _ = tokio::time::timeout(MEASURE_WITHIN, reads).await;
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    fn measure_commands(&self) {
        let (outside, inside) = self.in_flight();
        for (origin, count) in [("outside", outside), ("inside", inside)] {
            metrics::gauge!("souk_commands_in_flight", "origin" => origin).set(count as f64);
        }
        let mut depths: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
        for registry in self.0.partitions.iter().flat_map(|partition| partition.registries.iter()) {
            depths.entry(registry.aggregate_type()).or_default().extend(registry.depths());
        }
        for (aggregate_type, mut depths) in depths {
            depths.sort_unstable();
            for (quantile, rank) in [("0.5", 50), ("0.99", 99), ("1", 100)] {
                let place = (depths.len() * rank).div_ceil(100).saturating_sub(1);
                let depth = depths.get(place).copied().unwrap_or(0);
                metrics::gauge!("souk_mailbox_depth", "aggregate_type" => aggregate_type, "quantile" => quantile)
                    .set(depth as f64);
            }
        }
    }

    /// The registry of a type, in the partition of an id; none: there is no such type.
    fn registry_for(&self, aggregate_type: &str, id: Uuid) -> Option<&Arc<dyn AnyRegistry>> {
        let registries = &self.partition_for(id).registries;
        registries.iter().find(|known| known.aggregate_type() == aggregate_type)
    }

    fn partition_for(&self, id: Uuid) -> &Partition {
        &self.0.partitions[usize::from(partition_of(id, self.partitions()))]
    }

    /// Resolves when an infrastructure actor failed for good: the process should drain and exit
    /// with an error.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.0.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Refuses what comes from outside, lets what is under way finish, stops the subscriptions and
    /// timers, and makes everything durable. Whether all of it was done in time.
    pub async fn drain(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        for partition in &self.0.partitions {
            partition.admission.drain();
        }
        let outside_done = self.wait_until(until, |runtime| runtime.in_flight().0 == 0).await;
        self.0.stopping.set(true);
        let stopped = self
            .wait_until(until, |runtime| {
                runtime.0.partitions.iter().all(|partition| {
                    partition.running.iter().all(|name| {
                        !name.key().starts_with("subscription ") && &**name.key() != "timers"
                    })
                })
            })
            .await;
        let inside_done = self.wait_until(until, |runtime| runtime.in_flight().1 == 0).await;
        let mut written = true;
        for partition in &self.0.partitions {
            let flushed = partition.writer.store(Batch::default());
            written &= matches!(tokio::time::timeout_at(until, flushed).await, Ok(Ok(())));
        }
        self.0.ended.set(true);
        let over = |runtime: &Self| runtime.0.partitions.iter().all(|p| p.running.is_empty());
        self.wait_until(until, over).await;
        self.0.partitions.iter().for_each(Partition::end);
        self.0.store.close().await;
        outside_done && stopped && inside_done && written
    }

    async fn wait_until(&self, until: Instant, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}
