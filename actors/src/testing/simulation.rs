//! The whole runtime under a seed: simulated time, a simulated store, processes that die, and a
//! plain model of what was promised.
//!
//! ```text
//!   seed ─▶ plan (steps with times) ─▶ run: processes, one after the other, on one store
//!                                        │ clients, a saga, a projection, handlers, timers
//!                                        ▼
//!                           record: asked, answered, stored, seen, charged ─▶ violations
//! ```
//!
//! A process is a tokio runtime of its own with a paused clock. It dies by being dropped, with
//! everything in it, at once; the store and the world outside (clients, what subscribers wrote,
//! the provider of charges) live on. One seed gives one run, to the last poll: nothing in a run
//! asks the operating system for time, randomness or threads, and [`Report::digest`] shows it.
//!
//! A plan that fails is shortened ([`shrink`]) and printed as Rust ([`Plan::literal`]).

mod actors;
mod check;
mod domain;
mod plan;
mod process;
mod record;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use plan::{Ask, Mishap, Plan, Step, Target, Trouble, What, shrink};
use process::{Ended, Process, World};
use record::Record;
use store::SimulatedStore;

use crate::planted::Bug;

/// A run that starts more processes than this is not getting anywhere.
const PROCESSES_MAX: u32 = 50;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// What did not hold, each with the kind of promise in front. Empty: all is well.
    pub violations: Vec<String>,
    /// Names the run: everything that happened in it, in order.
    pub digest: [u8; 32],
    /// Events in the journal at the end.
    pub events: u64,
    /// Runtimes that were started.
    pub runtimes: u32,
    /// How much time passed in it, in milliseconds.
    pub virtual_ms: u64,
    /// Everything that happened, if that was asked for.
    pub log: Vec<String>,
}

/// Runs a plan, with a bug planted or without, on the calling thread.
pub fn run(plan: &Plan, planted: Option<Bug>) -> Report {
    run_with(plan, planted, false)
}

/// As [`run`], and keeps a log of everything that happens.
pub fn run_verbosely(plan: &Plan, planted: Option<Bug>) -> Report {
    run_with(plan, planted, true)
}

fn run_with(plan: &Plan, planted: Option<Bug>, verbose: bool) -> Report {
    let record = Arc::new(Record::new(plan.seed, verbose));
    let store = SimulatedStore::new(plan, planted, record.clone());
    let world = Arc::new(World {
        plan: plan.clone(),
        planted,
        record: record.clone(),
        store: Arc::new(store),
        runtimes: AtomicU32::new(0),
    });
    let (mut next, mut events, mut over) = (0, 0, false);
    while !over {
        let waiting = record.hung_up();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without input and output needs nothing");
        runtime.block_on(async {
            let (ended, last) = Process::live(world.clone(), &mut next, waiting).await;
            let down = match ended {
                Ended::Crashed { down } => down,
                Ended::Restarted => 1,
                Ended::Over => {
                    events = check::check(&world, last.as_ref()).await;
                    over = true;
                    0
                }
            };
            record.end(down);
        });
        drop(runtime);
        over |= world.runtimes.load(Ordering::Relaxed) > PROCESSES_MAX;
    }
    let digest = record.digest();
    let virtual_ms = record.now();
    let violations = std::mem::take(&mut record.inner().violations);
    let runtimes = world.runtimes.load(Ordering::Relaxed);
    Report { violations, digest, events, runtimes, virtual_ms, log: record.log() }
}

/// The seed, run: a panic that gets out of the runtime is a violation, too.
pub fn run_seed(seed: u64, planted: Option<Bug>) -> Report {
    let plan = Plan::new(seed);
    let contained = std::panic::catch_unwind(|| run(&plan, planted));
    contained.unwrap_or_else(|panic| {
        let what = crate::aggregate::panic_message(&*panic).to_owned();
        Report {
            violations: vec![format!("panic: {what}")],
            digest: [0; 32],
            events: 0,
            runtimes: 0,
            virtual_ms: 0,
            log: Vec::new(),
        }
    })
}

/// Runs seeds on some threads until there are no more, or `each` has had enough. `each` is called
/// on the thread that ran the seed; runs share nothing.
pub fn run_seeds(
    seeds: impl Iterator<Item = u64> + Send,
    planted: Option<Bug>,
    threads: usize,
    each: impl Fn(u64, Report) -> std::ops::ControlFlow<()> + Sync,
) {
    let seeds = std::sync::Mutex::new(seeds);
    let enough = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let next = || seeds.lock().ok()?.next();
                    let Some(seed) = next() else { return };
                    if each(seed, run_seed(seed, planted)).is_break() {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// What a failing seed comes down to: its plan, shortened while it still breaks a promise of the
/// same kind, and what it then breaks.
pub fn explain(seed: u64, planted: Option<Bug>, tries: usize) -> (Plan, Vec<String>) {
    let plan = Plan::new(seed);
    let violations = run(&plan, planted).violations;
    let Some(kind) = violations.first().map(|first| kind_of(first).to_owned()) else {
        return (plan, violations);
    };
    let fails = |plan: &Plan| {
        run(plan, planted).violations.iter().any(|violation| kind_of(violation) == kind)
    };
    let shorter = shrink(&plan, tries, fails);
    let violations = run(&shorter, planted).violations;
    (shorter, violations)
}

/// The kind of promise that a violation is about: what stands before its first colon.
pub fn kind_of(violation: &str) -> &str {
    violation.split(':').next().unwrap_or(violation)
}

/// The command that repeats a seed.
pub fn repeat_command(seed: u64, planted: Option<Bug>) -> String {
    let planted = planted.map_or_else(String::new, |bug| format!(" --planted {}", bug.name()));
    format!(
        "cargo run --release -p souk-actors --features simulation --bin simulate -- --seed {seed}{planted}"
    )
}
