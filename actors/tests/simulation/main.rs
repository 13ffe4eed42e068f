//! The runtime under seeds, and whether the simulation sees what it is there to see.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Mutex;

use souk_actors::planted::Bug;
use souk_actors::testing::simulation::{
    self, Ask, Mishap, Plan, Step, Target, What, explain, kind_of, repeat_command, run, run_seed,
    run_seeds,
};

const SEEDS: u64 = 1_000;
const THREADS: usize = 2;
/// Within so many seeds a planted bug must be caught.
const CAUGHT_WITHIN: u64 = 300;

/// Seeds that failed once.
fn known_seeds() -> Vec<u64> {
    let lines = include_str!("seeds.txt").lines();
    let seed = |line: &str| line.split_whitespace().next().map(|seed| seed.parse().unwrap());
    lines.filter(|line| !line.starts_with('#')).filter_map(seed).collect()
}

/// What the runtime promises, for every seed: that is what it is for. Covers S1-53 and the rest of
/// what `docs/reliability.md` lists.
#[test]
fn every_promise_is_kept_under_a_thousand_seeds() {
    let failed = Mutex::new(BTreeSet::new());
    let seeds = known_seeds().into_iter().chain(0..SEEDS);
    run_seeds(seeds, None, THREADS, |seed, report| {
        if report.violations.is_empty() {
            return ControlFlow::Continue(());
        }
        failed.lock().unwrap().insert(seed);
        ControlFlow::Break(())
    });
    let failed = failed.into_inner().unwrap();
    let Some(seed) = failed.first().copied() else { return };
    let (plan, violations) = explain(seed, None, 400);
    panic!(
        "seed {seed} breaks a promise: {violations:#?}\nto repeat it: {}\nshortened:\n{}",
        repeat_command(seed, None),
        plan.literal()
    );
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_last_event() {
    let digests = |seeds: std::ops::Range<u64>| {
        let digests = Mutex::new(Vec::new());
        run_seeds(seeds, None, THREADS, |seed, report| {
            digests.lock().unwrap().push((seed, report.digest));
            ControlFlow::Continue(())
        });
        let mut digests = digests.into_inner().unwrap();
        digests.sort_unstable();
        digests
    };
    let first = digests(100..130);
    assert_eq!(first, digests(100..130));
    let different: BTreeSet<_> = first.iter().map(|(_, digest)| digest).collect();
    assert_eq!(different.len(), first.len(), "another seed is another run");
}

/// The process dies between a letter and its lane's checkpoint, so that the event comes again: it
/// stays the letter that it is, with what went wrong, and does not become one that waits.
#[test]
fn a_letter_stays_what_it_is_when_its_event_comes_again() {
    for target in [Target::Audit, Target::View] {
        let ask = Ask::Count { counter: 0, by: 1, panics: 0 };
        let send = |op| What::Send { op, keyed: true, copies: 1, ask };
        let mishap = Mishap::Permanent;
        // The projection fails once with its page, and once with the event alone.
        let fails = What::Handler { target, op: 1, mishap, times: 2 };
        let plan = Plan {
            seed: 1,
            partitions: 1,
            steps: vec![
                Step { at: 0, what: fails },
                Step { at: 1, what: send(1) },
                Step { at: 60, what: send(2) },
                Step { at: 120, what: What::Crash { down: 1_000, polls: 0 } },
                Step { at: 3_000, what: What::Redrive },
            ],
        };
        assert_eq!(run(&plan, None).violations, Vec::<String>::new(), "{target:?}");
    }
}

/// The first seed that shows a bug, and what it shows.
fn caught(bug: Bug) -> Option<(u64, Vec<String>)> {
    let found = Mutex::new(None);
    run_seeds(0..CAUGHT_WITHIN, Some(bug), THREADS, |seed, report| {
        if report.violations.is_empty() {
            return ControlFlow::Continue(());
        }
        found.lock().unwrap().get_or_insert((seed, report.violations));
        ControlFlow::Break(())
    });
    found.into_inner().unwrap()
}

/// A net that catches nothing would be clean as well: every bug that is planted shows, as a breach
/// of the promise that it breaks, on seeds that are clean without it.
#[test]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        let Some((seed, violations)) = caught(bug) else {
            missed.push(format!("{bug:?} is not caught"));
            continue;
        };
        let kinds: BTreeSet<_> = violations.iter().map(|violation| kind_of(violation)).collect();
        println!("{bug:?}: seed {seed}: {}", violations[0]);
        if !promises_broken_by(bug).iter().any(|kind| kinds.contains(kind)) {
            missed.push(format!("{bug:?} shows on seed {seed} as {violations:?}"));
        }
        assert_eq!(run_seed(seed, None).violations, Vec::<String>::new(), "without {bug:?}");
    }
    assert_eq!(missed, Vec::<String>::new());
}

/// The kinds of promise as which a bug may show.
fn promises_broken_by(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::AcknowledgeBeforeCommit => &["durability"],
        Bug::CheckpointBeforeEffect | Bug::LanesResumeAhead | Bug::PageSkipped => {
            &["delivery", "liveness"]
        }
        Bug::ForgetLastOfBatch => &["durability", "effect", "store", "liveness"],
        Bug::DeduplicateAfterCommit => &["durability", "effect", "idempotency"],
        Bug::ReplyOutOfOrder => &["order"],
        Bug::TwoActors | Bug::RestartWithoutReplay => &["store"],
        Bug::StreamsForgotten => &["store", "durability", "reads", "state"],
        Bug::RestartWithoutWaiting => &["store", "order"],
        Bug::FollowersPass | Bug::LettersForgotten => &["delivery"],
        Bug::TimerLostOnRestart => &["liveness"],
        Bug::UnknownNotUndone => &["money"],
        Bug::UnknownIsFailed | Bug::EpochUnchecked => &["store"],
        // A repeat is answered from a snapshot, too.
        Bug::SnapshotVersionOff => &["store", "state", "idempotency", "effect"],
        Bug::ReadBeforeDurable => &["durability", "reads"],
    }
}

#[test]
fn a_failing_plan_is_shortened_and_printed() {
    let bug = Bug::AcknowledgeBeforeCommit;
    let (seed, _) = caught(bug).unwrap();
    let (plan, violations) = explain(seed, Some(bug), 300);
    assert_eq!(kind_of(&violations[0]), "durability");
    assert!(plan.steps.len() < Plan::new(seed).steps.len() / 2, "{}", plan.literal());
    assert_eq!(run(&plan, None).violations, Vec::<String>::new());
    assert!(plan.literal().contains("What::Send { op: "), "{}", plan.literal());
}

#[test]
fn a_plan_follows_from_its_seed() {
    assert_eq!(Plan::new(7), Plan::new(7));
    assert_ne!(Plan::new(7), Plan::new(8));
    let long = Plan::new(7);
    let shortest = simulation::shrink(&long, 1_000, |plan| plan.steps.contains(&long.steps[9]));
    assert_eq!(shortest.steps, [long.steps[9]]);
}
