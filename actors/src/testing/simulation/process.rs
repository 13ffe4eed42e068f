//! A simulated process: a runtime on the simulated store, what befalls it, and how it ends.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::actors::{Audit, Gateway, Router, View, aggregate_of, send};
use super::domain::{Account, Alarm, Charge, Counter, Mover, Transfer};
use super::plan::{Plan, Target, What};
use super::record::{Record, SimulatedWorld};
use super::store::SimulatedStore;
use crate::aggregate::AggregateOptions;
use crate::command::CommandContext;
use crate::journal::codec::Keyring;
use crate::journal::{Letter, LetterFilter, LetterState, Store};
use crate::planted::Bug;
use crate::retry::RetryPolicy;
use crate::runtime::{Options, Runtime};
use crate::subscriber::{Redrive, Subscription};

/// Virtual time within which everything must have come to rest.
const REST_WITHIN: u64 = 4 * 3_600_000;
const AUDIT: &str = "audit";
const VIEW: &str = "view";

/// What outlives every process of a run.
pub(super) struct World {
    pub plan: Plan,
    pub planted: Option<Bug>,
    pub record: Arc<Record>,
    pub store: Arc<SimulatedStore>,
    /// Numbers the runtimes that were started.
    pub runtimes: AtomicU32,
}

/// How a process ended.
pub(super) enum Ended {
    Crashed {
        down: u64,
    },
    Restarted,
    /// Everything has come to rest, or never will.
    Over,
}

/// One process, or two in a takeover.
pub(super) struct Process {
    world: Arc<World>,
    current: Mutex<(Runtime, u32)>,
}

impl World {
    /// Starts a runtime, however often that takes.
    async fn start(&self) -> (Runtime, u32) {
        let number = self.runtimes.fetch_add(1, Ordering::Relaxed);
        loop {
            match self.builder().start().await {
                Ok(runtime) => {
                    self.record.trace(|| format!("runtime {number} starts"));
                    return (runtime, number);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    fn builder(&self) -> crate::runtime::Builder {
        let world: Arc<dyn crate::world::World> = Arc::new(SimulatedWorld(self.record.clone()));
        let keys = Arc::new(Keyring::new(&[7; 32], world.clone()));
        let store: Arc<dyn Store> = self.store.clone();
        let gateway = Gateway { record: self.record.clone(), seed: self.plan.seed };
        let patient = RetryPolicy { max_retries: 8, ..RetryPolicy::default() };
        let audited = ["account.*", "counter.*", "alarm.*"];
        let audit = Arc::new(Audit(self.record.clone()));
        let builder = Runtime::builder(store, world, keys, options())
            .aggregate::<Account>()
            .aggregate::<Transfer>()
            .aggregate::<Charge>()
            .aggregate::<Counter>()
            .aggregate::<Alarm>()
            .saga::<Mover>(Arc::new(Router))
            .subscribe(
                Subscription::handler(AUDIT, "simulation", &audited, audit)
                    .in_lanes(3)
                    .within(Duration::from_secs(5)),
            )
            .subscribe(
                Subscription::handler("gateway", "simulation", &["charge.*"], Arc::new(gateway))
                    .retrying(patient),
            )
            .subscribe(Subscription::projection(
                VIEW,
                "simulation",
                &["#"],
                Arc::new(View(self.record.clone())),
            ));
        match self.planted {
            Some(bug) => builder.planting(bug),
            None => builder,
        }
    }
}

fn options() -> Options {
    let aggregates = AggregateOptions {
        idle_timeout: Duration::from_secs(3),
        live_max: 6,
        snapshot_every: 6,
        ..AggregateOptions::default()
    };
    Options { aggregates, ..Options::default() }
}

impl Process {
    /// Lives from the step at `next` on. The clients in `waiting` ask again.
    pub(super) async fn live(
        world: Arc<World>,
        next: &mut usize,
        waiting: Vec<u32>,
    ) -> (Ended, Option<Runtime>) {
        world.record.begin();
        let dying = world.store.clone();
        let life = Self::until_the_end(world, next, waiting);
        tokio::select! {
            biased;
            () = dying.dying.notified() => (Ended::Crashed { down: 5 }, None),
            (ended, runtime) = life => (ended, Some(runtime)),
        }
    }

    async fn until_the_end(
        world: Arc<World>,
        next: &mut usize,
        waiting: Vec<u32>,
    ) -> (Ended, Runtime) {
        let current = Mutex::new(world.start().await);
        let process = Arc::new(Self { world: world.clone(), current });
        for number in waiting {
            tokio::spawn(process.clone().client(number, true));
        }
        while let Some(step) = world.plan.steps.get(*next) {
            let wait = step.at.saturating_sub(world.record.now());
            tokio::time::sleep(Duration::from_millis(wait)).await;
            *next += 1;
            if world.record.broken() {
                break;
            }
            world.record.trace(|| format!("step {:?}", step.what));
            if let Some(ended) = process.befall(step.what).await {
                return (ended, process.runtime());
            }
        }
        process.come_to_rest().await;
        (Ended::Over, process.runtime())
    }

    fn current(&self) -> MutexGuard<'_, (Runtime, u32)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> Runtime {
        self.current().0.clone()
    }

    /// One copy of a command, until its client is content.
    async fn client(self: Arc<Self>, number: u32, again: bool) {
        let record = &self.world.record;
        let Some(ask) = record.inner().ops.get(&number).map(|op| op.ask) else { return };
        let to = aggregate_of(number, ask);
        let mut again = again;
        loop {
            if again {
                let wait = 10 + record.random().below(700);
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            again = true;
            let (runtime, process) = self.current().clone();
            let told_before = record.attempt(number, to);
            let answer = send(&runtime, record, number).await;
            if record.answered(number, process, to, told_before, answer) {
                return;
            }
        }
    }

    /// What a step does. The process ends if it says so.
    async fn befall(self: &Arc<Self>, what: What) -> Option<Ended> {
        let World { record, store, .. } = &*self.world;
        match what {
            What::Send { op, keyed, copies, ask } => {
                record.asked(op, keyed, copies, ask);
                for _ in 0..copies {
                    tokio::spawn(self.clone().client(op, false));
                }
            }
            What::Store { trouble, times } => store.trouble(trouble, times),
            What::Unreadable { millis } => store.unreadable(millis),
            What::Sluggish { millis } => store.sluggish(millis),
            What::Handler { target, op, mishap, times } => {
                record.plan_mishap(target, op, mishap, times);
            }
            What::Redrive => self.redrive_all(),
            What::Discard => self.discard_one().await,
            What::Crash { down, polls } => {
                for _ in 0..polls {
                    tokio::task::yield_now().await;
                }
                return Some(Ended::Crashed { down });
            }
            What::Restart => {
                let drained = self.runtime().drain(Duration::from_secs(60)).await;
                record.trace(|| format!("drained: {drained}"));
                // The last answers reach their clients.
                tokio::time::sleep(Duration::from_millis(1)).await;
                return Some(Ended::Restarted);
            }
            What::Takeover => {
                let new = self.world.start().await;
                let (old, _) = std::mem::replace(&mut *self.current(), new);
                tokio::spawn(async move { old.drain(Duration::from_secs(2)).await });
            }
        }
        None
    }

    // ----------------------------------------------------------------------------- operators

    fn letters(&self) -> Vec<Letter> {
        let mut letters = Vec::new();
        for partition in 0..self.world.plan.partitions {
            letters.extend(self.world.store.disk.letters_now(partition, &LetterFilter::default()));
        }
        letters
    }

    /// Before anybody works letters, the first of each key is the one that failed.
    fn check_letters(&self) {
        let record = &self.world.record;
        let worked = std::mem::replace(&mut record.inner().letters_worked, true);
        let mut keys = BTreeSet::new();
        for letter in self.letters() {
            let first = keys.insert((letter.subscription.clone(), letter.partition, letter.key));
            if first && !worked {
                record.check(letter.state == LetterState::Dead, || {
                    format!("letters: the first of a key only waits: {letter:?}")
                });
            }
        }
    }

    fn redrive_all(self: &Arc<Self>) {
        self.check_letters();
        let mut keys = BTreeSet::new();
        for letter in self.letters() {
            if keys.insert((letter.subscription.clone(), letter.partition, letter.key)) {
                self.world.record.trace(|| format!("letter {letter:?}"));
                tokio::spawn(self.clone().redrive(letter, Redrive::Retry));
            }
        }
    }

    async fn redrive(self: Arc<Self>, letter: Letter, what: Redrive) {
        let runtime = self.runtime();
        let context = CommandContext::outside(&**runtime.world(), "simulated", "");
        let Letter { subscription, partition, key, .. } = letter;
        let letters = runtime.dead_letters();
        let worked = letters.redrive(&subscription, partition, key, what, context, None).await;
        self.world.record.trace(|| format!("{what:?} {subscription} {key}: {worked:?}"));
    }

    /// Drops the first letter of one key of the handler that records.
    async fn discard_one(self: &Arc<Self>) {
        self.check_letters();
        let letter = self.letters().into_iter().find(|letter| &*letter.subscription == AUDIT);
        let Some(letter) = letter else { return };
        // Whichever is the first by the time it is done: any of the key's may be dropped.
        for other in self.letters() {
            if other.key == letter.key && &*other.subscription == AUDIT {
                let event = self.world.store.disk.event(other.event_id).await;
                let version = event.ok().flatten().map_or(0, |event| event.aggregate_version);
                let gone = (Target::Audit, other.aggregate_id, version);
                self.world.record.inner().dropped.insert(gone);
            }
        }
        tokio::spawn(self.clone().redrive(letter, Redrive::Discard));
    }

    // ---------------------------------------------------------------------------------- rest

    /// Everything is mended; now all that was begun must end.
    async fn come_to_rest(self: &Arc<Self>) {
        let World { record, store, .. } = &*self.world;
        store.heal();
        record.heal();
        record.trace(|| "everything is mended".to_owned());
        let until = record.now() + REST_WITHIN;
        let mut wait = 300;
        loop {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            wait = (wait * 2).min(30_000);
            let runtime = self.runtime();
            for record in runtime.quarantined() {
                let context = CommandContext::outside(&**runtime.world(), "simulated", "");
                let (kind, id) = (&record.aggregate_type, record.aggregate_id);
                let released = runtime.release(kind, id, context, None).await;
                self.world.record.trace(|| format!("released: {released:?}"));
            }
            self.redrive_all();
            let unrest = self.unrest(&runtime).await;
            let Some(unrest) = unrest else { return };
            // What is broken needs no rest.
            if record.broken() {
                return;
            }
            if record.now() > until {
                record.check(false, || format!("liveness: it never comes to rest: {unrest}"));
                return;
            }
        }
    }

    /// What is not at rest yet.
    async fn unrest(&self, runtime: &Runtime) -> Option<String> {
        let inner = |what: &dyn Fn(&super::record::Inner) -> Option<String>| {
            what(&self.world.record.inner())
        };
        let open = inner(&|inner| {
            let open: Vec<_> =
                inner.ops.iter().filter(|(_, op)| op.open > 0).map(|(op, _)| *op).collect();
            (!open.is_empty()).then(|| format!("commands {open:?} have no answer"))
        });
        if open.is_some() {
            return open;
        }
        if let Some(letter) = self.letters().first() {
            return Some(format!("{} has a letter: {}", letter.subscription, letter.error));
        }
        let waits = || {
            inner(&|inner| {
                let saga = inner.open_sagas.first().map(|saga| format!("saga {saga} is not over"));
                saga.or_else(|| {
                    inner.alarms.keys().next().map(|id| format!("alarm {id} never rang"))
                })
            })
        };
        // Before: what rings while subscriptions are waited for may be behind those that have been
        // seen to be done.
        if let Some(waits) = waits() {
            return Some(waits);
        }
        if !runtime.subscriptions().quiesce(Duration::from_secs(20)).await {
            return Some("a subscription does not catch up".to_owned());
        }
        waits().or_else(|| {
            self.letters().first().map(|letter| format!("a new letter: {}", letter.error))
        })
    }
}

/// Everything that is live or can be loaded: the ids of each type that were used.
pub(super) async fn states(
    runtime: &Runtime,
    ids: &[(Arc<str>, Uuid)],
) -> Vec<(Arc<str>, Uuid, u64, String)> {
    let mut states = Vec::new();
    for (aggregate_type, id) in ids {
        let (id, name) = (*id, aggregate_type.clone());
        let read = match &**aggregate_type {
            "account" => read_as::<Account>(runtime, id).await,
            "transfer" => read_as::<Transfer>(runtime, id).await,
            "charge" => read_as::<Charge>(runtime, id).await,
            "counter" => read_as::<Counter>(runtime, id).await,
            "alarm" => read_as::<Alarm>(runtime, id).await,
            _ => continue,
        };
        let (version, state) = read.unwrap_or_else(|error| (0, error));
        states.push((name, id, version, state));
    }
    states
}

async fn read_as<A: crate::aggregate::Aggregate>(
    runtime: &Runtime,
    id: Uuid,
) -> Result<(u64, String), String> {
    let view = |state: &A| serde_json::to_string(state).unwrap_or_default();
    let read = runtime.aggregate::<A>().read(id, view).await;
    read.map(|done| (done.version, done.value)).map_err(|error| error.to_string())
}
