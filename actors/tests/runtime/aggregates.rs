//! Commands, durability, failure.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use souk_actors::aggregate::AggregateOptions;
use souk_actors::command::{CommandContext, CommandError, Origin, Unavailable};
use souk_actors::crashes::Crashed;
use souk_actors::custody::{Custody, Quarantined, Released};
use souk_actors::event::EventPayload;
use souk_actors::faults::{Fault, Mode};
use souk_actors::journal::chain;
use souk_actors::journal::codec::Reveal;
use souk_actors::journal::memory::MemoryStore;
use souk_actors::journal::{Batch, Store, Timer, TimerKey, TimerWrite};
use souk_actors::retry::FailureKind;
use souk_actors::runtime::Options;
use souk_actors::supervisor::RestartPolicy;
use souk_actors::world::Timestamp;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::account::{
    AccountCommand, AccountEvent, AccountRejection, Rig, TIMER_PANICS, TIMER_PANICS_AT, options,
    sqlite,
};

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn journal_fault(mode: Mode, times: u64) -> Fault {
    Fault {
        target: "journal".to_owned(),
        mode,
        kind: FailureKind::Transient,
        times: Some(times),
        key: None,
        delay_ms: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_durable_and_read_back() {
    let rig = Rig::on_sqlite().await;
    let done = rig.change(1, 10).await.unwrap();
    assert_eq!((done.value, done.version, done.replayed), (10, 1, false));
    assert_eq!(done.position.unwrap().position, 1);
    let rejected = rig.change(1, -11).await.unwrap_err();
    let rejection = AccountRejection::Overdrawn(-1);
    assert_eq!(rejected, CommandError::Rejected { rejection, version: 1, replayed: false });
    let nothing = rig.change(1, 0).await.unwrap();
    assert_eq!((nothing.events, nothing.version), (0, 1));
    assert_eq!(rig.balance(1).await, 10);
    assert_eq!(rig.accounts().read(id(2), |_| ()).await.unwrap().version, 0);
}

/// The state is a function of the journal alone, whatever was in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything_that_was_acknowledged() {
    let rig = Rig::on_sqlite().await;
    let mut total = 0;
    for n in 1..=250 {
        total = rig.change(1, n).await.unwrap().value;
    }
    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    let snapshot =
        rig.store.snapshot(rig.store.stream("account", id(1)).await.unwrap().unwrap(), u64::MAX);
    assert!(snapshot.await.unwrap().unwrap().version >= 200);
    let Rig { runtime, store, folder, .. } = rig;
    drop((runtime, store));
    let folder = folder.unwrap();
    let again = loop {
        // The old store's lock goes with its last actor.
        let path = folder.path().join("journal.db");
        if let Ok(store) = souk_actors::journal::sqlite::SqliteStore::open(&path, 1).await {
            break store;
        }
        tokio::task::yield_now().await;
    };
    let rig = Rig::on(Arc::new(again), Some(folder), options(), |builder| builder).await;
    assert_eq!(rig.balance(1).await, total);
    assert_eq!(rig.change(1, 1).await.unwrap().version, 251);
}

/// Changes new accounts until one was not asked for: from then on it is known which there are.
async fn knows_its_streams(rig: &Rig, store: &MemoryStore, first: u128) {
    for new in first.. {
        let asked = store.streams_asked();
        rig.change(new, 1).await.unwrap();
        if store.streams_asked() == asked {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_asked_for_aggregates_that_it_may_have_and_for_no_others() {
    let store = Arc::new(MemoryStore::new(1));
    let rig = Rig::on(store.clone(), None, options(), |builder| builder).await;
    knows_its_streams(&rig, &store, 1_000_000).await;
    let asked = store.streams_asked();
    for new in 1..=50 {
        assert_eq!(rig.change(new, 1).await.unwrap().version, 1);
    }
    assert_eq!(store.streams_asked(), asked, "none of them can be there");
    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    drop(rig);
    let rig = Rig::on(store.clone(), None, options(), |builder| builder).await;
    knows_its_streams(&rig, &store, 2_000_000).await;
    let asked = store.streams_asked();
    for old in 1..=50 {
        assert_eq!(rig.change(old, 1).await.unwrap().version, 2);
    }
    assert_eq!(store.streams_asked(), asked + 50, "each of them is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hot_aggregate_takes_commands_in_order_without_gaps() {
    let rig = Arc::new(Rig::on_sqlite().await);
    let mut running = JoinSet::new();
    for _ in 0..500 {
        let rig = rig.clone();
        running.spawn(async move { rig.change(1, 1).await.unwrap() });
    }
    let mut seen: Vec<_> =
        running.join_all().await.into_iter().map(|done| (done.version, done.value)).collect();
    seen.sort_unstable();
    let expected: Vec<_> = (1..=500).map(|n| (n, i64::try_from(n).unwrap())).collect();
    assert_eq!(seen, expected);
    let verified = chain::verify(&*rig.store, 0, |_| {}).await.unwrap();
    assert_eq!((verified.events, verified.damage), (500, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_with_the_same_id_has_one_effect_and_the_first_answer() {
    let rig = Rig::on_sqlite().await;
    let accounts = rig.accounts();
    let send = |key, amount| {
        let context = rig.keyed(key);
        accounts.send(id(1), AccountCommand::Change(amount), context, |a| a.balance)
    };
    let first = send(1, 5).await.unwrap();
    rig.change(1, 100).await.unwrap();
    let repeat = send(1, 5).await.unwrap();
    assert_eq!((repeat.value, repeat.version, repeat.replayed), (5, 1, true), "as it was then");
    assert_eq!(repeat.events, first.events);
    let refused = send(2, -1_000).await.unwrap_err();
    assert!(matches!(refused, CommandError::Rejected { replayed: false, .. }));
    let refused = send(2, -1_000).await.unwrap_err();
    assert!(matches!(refused, CommandError::Rejected { replayed: true, .. }));
    let mut other = rig.keyed(1);
    other.once = Some(souk_actors::command::Once { request_hash: [2; 32] });
    let reused = rig.accounts().send(id(1), AccountCommand::Change(6), other, |_| ()).await;
    assert_eq!(reused.unwrap_err(), CommandError::KeyReused);
    assert_eq!(rig.balance(1).await, 105);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_repeats_have_one_effect() {
    let rig = Arc::new(Rig::on_sqlite().await);
    let mut running = JoinSet::new();
    for n in 0..200u128 {
        let rig = rig.clone();
        running.spawn(async move {
            let context = rig.keyed(n % 10);
            let command = AccountCommand::Change(1);
            rig.accounts().send(id(1), command, context, |account| account.balance).await.unwrap()
        });
    }
    let done = running.join_all().await;
    assert_eq!(done.iter().filter(|done| !done.replayed).count(), 10);
    assert_eq!(rig.balance(1).await, 10);
    for done in &done {
        assert_eq!(done.value, i64::try_from(done.version).unwrap(), "the view is of its version");
    }
}

/// Of commands from inside, the journal is asked only where it may know more than the aggregate does.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_from_inside_has_one_effect_in_this_life_and_in_the_next() {
    async fn send(rig: &Rig, key: u128) -> (i64, bool) {
        let context = CommandContext { origin: Origin::Inside, ..rig.keyed(key) };
        let command = AccountCommand::Change(1);
        let done = rig.accounts().send(id(1), command, context, |account| account.balance).await;
        let done = done.unwrap();
        (done.value, done.replayed)
    }

    let rig = Arc::new(Rig::on_sqlite().await);
    assert_eq!(send(&rig, 1).await, (1, false));
    assert_eq!(send(&rig, 1).await, (1, true));
    // More than it remembers.
    for from in (2..=4_200).step_by(500) {
        let mut running = JoinSet::new();
        for key in from..(from + 500).min(4_201) {
            let rig = rig.clone();
            running.spawn(async move { send(&rig, key).await });
        }
        assert!(running.join_all().await.iter().all(|(_, replayed)| !replayed));
    }
    assert_eq!(send(&rig, 1).await, (1, true), "it was forgotten, and asked for");
    assert_eq!(send(&rig, 4_201).await, (4_201, false));

    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    let Rig { store, folder, .. } = Arc::into_inner(rig).unwrap();
    let rig = Rig::on(store, folder, options(), |builder| builder).await;
    assert_eq!(send(&rig, 1).await, (1, true), "not live, and looked up by its actor");
    assert_eq!(send(&rig, 4_201).await, (4_201, true));
    assert_eq!(send(&rig, 4_202).await, (4_202, false));
    assert_eq!(send(&rig, 4_202).await, (4_202, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_the_expected_one_is_refused() {
    let rig = Rig::on_sqlite().await;
    rig.change(1, 5).await.unwrap();
    let mut context = rig.context();
    context.expected_version = Some(0);
    let refused = rig.accounts().send(id(1), AccountCommand::Change(1), context, |_| ()).await;
    assert_eq!(refused.unwrap_err(), CommandError::VersionMismatch { current: 1 });
    let mut context = rig.context();
    context.expected_version = Some(1);
    rig.accounts().send(id(1), AccountCommand::Change(1), context, |_| ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_error_and_nothing_else() {
    let rig = Arc::new(Rig::on_sqlite().await);
    rig.change(1, 5).await.unwrap();
    for command in [AccountCommand::PanicInDecide, AccountCommand::PanicInApply] {
        let mut running = JoinSet::new();
        for n in 0..60 {
            let rig = rig.clone();
            let command = if n == 30 { command.clone() } else { AccountCommand::Change(1) };
            running.spawn(async move {
                let context = rig.context();
                rig.accounts().send(id(1), command, context, |_| ()).await
            });
        }
        let answers = running.join_all().await;
        let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert!(matches!(failed[..], [CommandError::Internal(_)]), "{failed:?}");
    }
    assert_eq!(rig.balance(1).await, 5 + 2 * 59);
    // A view that panics is the caller's bug, and undoes the command.
    let command = AccountCommand::Change(1);
    let accounts = rig.accounts();
    let answer = accounts.send(id(1), command, rig.context(), |_| panic!("a view panics")).await;
    assert!(matches!(answer.unwrap_err(), CommandError::Internal(_)));
    assert_eq!(rig.balance(1).await, 5 + 2 * 59);
    // Somebody can take note of them, once.
    let crashed = rig.runtime.take_crashes();
    assert!(crashed.len() >= 2, "{crashed:?}");
    let known = |of: &Crashed| of.aggregate_id == id(1) && of.error_id.is_some();
    assert!(crashed.iter().all(known), "{crashed:?}");
    assert!(rig.runtime.take_crashes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_that_crashes_again_and_again_is_quarantined_alone() {
    let restart = RestartPolicy { restarts_max: 2, ..RestartPolicy::default() };
    let aggregates = AggregateOptions { restart, ..AggregateOptions::default() };
    let rig = Rig::build(true, 1, Options { aggregates, ..options() }, |b| b).await;
    rig.change(1, 5).await.unwrap();
    let mut refused = None;
    for _ in 0..20 {
        let command = AccountCommand::PanicInDecide;
        match rig.accounts().send(id(1), command, rig.context(), |_| ()).await.unwrap_err() {
            CommandError::Internal(_) => {}
            other => {
                refused = Some(other);
                break;
            }
        }
    }
    rig.change(2, 1).await.unwrap();
    let records = rig.runtime.quarantined();
    assert_eq!(records.len(), 1);
    let error_id = souk_actors::command::ErrorId(records[0].error_id);
    let quarantined = Unavailable::Quarantined(error_id);
    assert_eq!(refused, Some(CommandError::Unavailable(quarantined)));
    assert_eq!((records[0].aggregate_id, &*records[0].command), (id(1), "AccountCommand"));
    while rig.store.quarantined(0).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // It is told with every crash that led to it.
    let stream = Custody::id_of("account", id(1));
    let told = async |number: usize| loop {
        let told = rig.runtime.journal().read_aggregate(stream, 0, 9).await.unwrap();
        if told.len() == number {
            return told;
        }
        tokio::task::yield_now().await;
    };
    let quarantined = told(1).await.remove(0);
    assert_eq!(&*quarantined.event_type, "aggregate.quarantined");
    let data: Quarantined = serde_json::from_str(&quarantined.data).unwrap();
    assert_eq!((data.crashes.len(), data.aggregate_id), (3, id(1)));
    assert_eq!(data.crashes[2].error_id, records[0].error_id);
    assert!(data.crashes.iter().all(|crash| crash.command == "AccountCommand"));
    let report = rig.runtime.quarantine_report("account", id(1)).await.unwrap().unwrap();
    assert_eq!((report.crashes, report.times), (data.crashes, 1));

    assert!(rig.release(id(1)).await);
    assert_eq!(rig.balance(1).await, 5);
    assert_eq!(rig.store.quarantined(0).await.unwrap(), []);
    let released = told(2).await.remove(1);
    assert_eq!(&*released.event_type, "aggregate.released");
    let data: Released = serde_json::from_str(&released.data).unwrap();
    assert_eq!((data.error_id, data.reason), (records[0].error_id, Some("mended".to_owned())));
    assert!(!rig.release(id(1)).await, "it is not quarantined any more");
    assert!(rig.runtime.quarantine_report("account", id(1)).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_journal_error_is_retried_unseen() {
    let rig = Rig::on_sqlite().await;
    rig.change(1, 5).await.unwrap();
    rig.runtime.faults().add(journal_fault(Mode::Fail, 2));
    assert_eq!(rig.change(1, 5).await.unwrap().version, 2);
    assert_eq!(rig.runtime.faults().list(), []);
}

/// The append committed, and nobody heard: the head tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_settled_by_reading_the_head() {
    let rig = Rig::on_sqlite().await;
    rig.change(1, 5).await.unwrap();
    rig.runtime.faults().add(journal_fault(Mode::LoseAnswer, 1));
    let done = rig.change(1, 5).await.unwrap();
    assert_eq!((done.value, done.version), (10, 2));
    assert_eq!(rig.change(1, 1).await.unwrap().version, 3);
    assert_eq!(chain::verify(&*rig.store, 0, |_| {}).await.unwrap().events, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_append_takes_everything_that_rests_on_it_along() {
    let rig = Arc::new(Rig::on_sqlite().await);
    rig.change(1, 5).await.unwrap();
    let fault = rig.runtime.faults().add(Fault { times: None, ..journal_fault(Mode::Fail, 0) });
    let mut running = JoinSet::new();
    for _ in 0..20 {
        let rig = rig.clone();
        running.spawn(async move { rig.change(1, 1).await.map(|_| ()) });
    }
    for answer in running.join_all().await {
        let error = answer.unwrap_err();
        assert!(matches!(error, CommandError::Unavailable(_)), "{error:?}");
    }
    assert!(!rig.runtime.health().journal_writable);
    let refused = rig.change(2, 1).await.unwrap_err();
    assert_eq!(refused, CommandError::Unavailable(Unavailable::Journal), "refused at once");
    assert_eq!(rig.balance(1).await, 5, "reads go on, and show nothing that was undone");
    rig.runtime.faults().remove(fault);
    while !rig.runtime.health().journal_writable {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.change(1, 1).await.unwrap().version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_bounded_and_what_does_not_fit_is_refused_at_once() {
    let aggregates = AggregateOptions { mailbox_max: 10, ..AggregateOptions::default() };
    let limits = Options { outside_max: 50, aggregates, ..options() };
    let rig = Arc::new(Rig::build(true, 1, limits, |b| b).await);
    let slow = Fault { delay_ms: 300, ..journal_fault(Mode::Delay, 1) };
    rig.runtime.faults().add(slow);
    let mut running = JoinSet::new();
    for n in 0..200 {
        let rig = rig.clone();
        running.spawn(async move { rig.change(n % 2, 1).await.map(|_| ()) });
    }
    let answers = running.join_all().await;
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((10..=30).contains(&accepted), "{accepted}");
    let overloaded = CommandError::Unavailable(Unavailable::Overloaded);
    assert!(answers.iter().all(|answer| answer.as_ref().err().is_none_or(|e| *e == overloaded)));
    assert_eq!(rig.runtime.in_flight(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_aggregates_are_passivated_and_come_back() {
    let aggregates =
        AggregateOptions { idle_timeout: Duration::from_millis(1), ..AggregateOptions::default() };
    let rig = Rig::build(true, 1, Options { aggregates, ..options() }, |b| b).await;
    for n in 0..300 {
        rig.change(n % 30, 1).await.unwrap();
        if n % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }
    for n in 0..30 {
        assert_eq!(rig.balance(n).await, 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_fires_once_in_effect_and_survives_a_restart() {
    let rig = Rig::on_sqlite().await;
    let at = Timestamp::from_millis(rig.world.now().millis() + 3_600_000);
    let remind = AccountCommand::Remind { at };
    rig.accounts().send(id(1), remind, rig.context(), |_| ()).await.unwrap();
    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    let Rig { store, folder, .. } = rig;
    let rig = Rig::on(store, folder, options(), |builder| builder).await;
    assert_eq!(rig.store.next_timer(0).await.unwrap(), Some(at));
    assert!(rig.runtime.advance_clock(Duration::from_secs(3_601)));
    while rig.store.next_timer(0).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    let reminded = rig.accounts().read(id(1), |account| account.reminded).await.unwrap();
    assert_eq!((reminded.value, reminded.version), (1, 2));
}

/// As when many aggregates are quarantined: what is due first is all of what cannot fire.
#[tokio::test(flavor = "multi_thread")]
async fn timers_that_cannot_fire_stand_in_no_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(&folder, 1).await;
    let lease = store.acquire(0).await.unwrap();
    let old = |n: u32| {
        let (aggregate_type, aggregate_id) = ("gone".into(), id(n.into()));
        let key = TimerKey { aggregate_type, aggregate_id, name: "old".to_owned() };
        TimerWrite::Set(Timer { key, due: Timestamp::from_millis(n.into()) })
    };
    let timers = (0..200).map(old).collect();
    store.append(lease, &Batch { timers, ..Batch::default() }).await.unwrap();
    let rig = Rig::on(store, Some(folder), options(), |builder| builder).await;
    for account in 0..100 {
        let remind = AccountCommand::Remind { at: rig.world.now() };
        rig.accounts().send(id(account), remind, rig.context(), |_| ()).await.unwrap();
    }
    let due = async || rig.store.timers_due(0, rig.world.now(), 1_000).await.unwrap();
    while due().await.len() > 200 {
        tokio::task::yield_now().await;
    }
    for account in 0..100 {
        let reminded = rig.accounts().read(id(account), |account| account.reminded).await;
        assert_eq!(reminded.unwrap().value, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_panics_fires_all_the_same() {
    let rig = Rig::on_sqlite().await;
    TIMER_PANICS.store(2, Ordering::SeqCst);
    rig.change(1, TIMER_PANICS_AT).await.unwrap();
    let remind = AccountCommand::Remind { at: rig.world.now() };
    rig.accounts().send(id(1), remind, rig.context(), |_| ()).await.unwrap();
    while rig.store.next_timer(0).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    let reminded = rig.accounts().read(id(1), |account| account.reminded).await.unwrap();
    assert_eq!((reminded.value, reminded.version), (1, 3));
    assert_eq!(TIMER_PANICS.load(Ordering::SeqCst), 0);
}

/// Whatever was in the writer's hands when it crashed has an unknown outcome; a repeat with the
/// same id finds out.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_crashes_is_restarted_and_answers_everybody() {
    let rig = Arc::new(Rig::on_sqlite().await);
    rig.change(1, 5).await.unwrap();
    rig.runtime.faults().add(journal_fault(Mode::Panic, 1));
    let mut running = JoinSet::new();
    for key in 0..20 {
        let rig = rig.clone();
        running.spawn(async move {
            let mut unknown = 0;
            loop {
                let context = rig.keyed(key);
                let command = AccountCommand::Change(1);
                match rig.accounts().send(id(key % 3), command, context, |_| ()).await {
                    Ok(_) => return unknown,
                    Err(CommandError::OutcomeUnknown) => unknown += 1,
                    Err(CommandError::Unavailable(_)) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other:?}"),
                }
            }
        });
    }
    let unknown: u32 = running.join_all().await.into_iter().sum();
    assert!(unknown > 0, "somebody was in the writer's hands");
    let total: i64 = rig.balance(0).await + rig.balance(1).await + rig.balance(2).await;
    assert_eq!(total, 5 + 20);
    assert_eq!(chain::verify(&*rig.store, 0, |_| {}).await.unwrap().damage, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_cannot_be_restarted_is_escalated_to_the_root() {
    let restart = RestartPolicy {
        restarts_max: 2,
        backoff: Duration::from_millis(1),
        ..RestartPolicy::default()
    };
    let rig = Rig::build(true, 1, Options { restart, ..options() }, |b| b).await;
    rig.change(1, 5).await.unwrap();
    rig.runtime.faults().add(journal_fault(Mode::Panic, 100));
    let answer = rig.change(1, 1).await.unwrap_err();
    assert_eq!(answer, CommandError::OutcomeUnknown);
    let why = tokio::time::timeout(Duration::from_secs(20), rig.runtime.fatal()).await.unwrap();
    assert!(why.contains("writer"), "{why}");
    assert!(!rig.runtime.health().supervisors_alive);
}

/// The whole runtime on one thread, a paused clock and a seeded world: the same seed gives the same
/// journal, to the last bit.
#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async move {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new(1));
            let rig = Rig::seeded(store, seed).await;
            let at = rig.world.now().plus(Duration::from_secs(86_400));
            let remind = AccountCommand::Remind { at };
            rig.accounts().send(id(7), remind, rig.context(), |_| ()).await.unwrap();
            for n in 0..50 {
                rig.change(n % 5, 1).await.unwrap();
                tokio::time::sleep(Duration::from_secs(n as u64)).await;
            }
            tokio::time::sleep(Duration::from_secs(2 * 86_400)).await;
            let reminded = rig.accounts().read(id(7), |account| account.reminded).await.unwrap();
            assert_eq!(reminded.value, 1, "a day passed in no time");
            rig.store.head(0).await.unwrap()
        })
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn personal_fields_are_sealed_in_the_file_and_erased_with_their_key() {
    let rig = Rig::on_sqlite().await;
    let secret = "jane.doe@example.org";
    let open = AccountCommand::Open { subject: id(77), owner: secret.to_owned() };
    let done = rig.accounts().send(id(1), open, rig.context(), |_| ()).await.unwrap();
    let event = rig.runtime.journal().event_at(done.position.unwrap()).await.unwrap().unwrap();
    assert!(!event.data.contains("jane"));
    let journal = rig.runtime.journal();
    let shown = async |how| journal.reveal(&event, how).await.unwrap()["owner"].clone();
    assert_eq!(shown(Reveal::Clear).await, secret);
    assert_eq!(shown(Reveal::Redacted).await, "[redacted]");
    let decoded = journal.decode::<AccountEvent>(&event).await.unwrap();
    assert_eq!(decoded.descriptor().event_type, "account.opened");
    rig.runtime.control().forget(id(77)).await.unwrap();
    assert_eq!(shown(Reveal::Clear).await, "[erased]");
    let erased = rig.accounts().at_version(id(1), 1, |account| account.owner.clone()).await;
    let owner = erased.unwrap().unwrap().unwrap();
    assert_eq!((owner.get(), owner.subject()), (None, id(77)));
    // Nor does the actor know it any more, which has been in memory all the time.
    let live = rig.accounts().read(id(1), |account| account.owner.clone()).await.unwrap();
    assert_eq!((live.version, live.value.unwrap().get()), (1, None));
    let verified = chain::verify(&*rig.store, 0, |_| {}).await.unwrap();
    assert_eq!(verified.damage, None, "an erasure leaves the chain whole");
    for entry in std::fs::read_dir(rig.folder.as_ref().unwrap().path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let found = bytes.windows(8).any(|window| window == b"jane.doe");
        assert!(!found, "the address is in the file in clear");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_partitions_are_wholes_of_their_own() {
    let rig = Arc::new(Rig::build(true, 3, options(), |b| b).await);
    let mut running = JoinSet::new();
    for n in 0..300 {
        let rig = rig.clone();
        running.spawn(async move { rig.change(n % 60, 1).await.unwrap() });
    }
    let done = running.join_all().await;
    let used: std::collections::BTreeSet<_> =
        done.iter().map(|done| done.position.unwrap().partition).collect();
    assert_eq!(used.len(), 3);
    let mut events = 0;
    for partition in 0..3 {
        let verified = chain::verify(&*rig.store, partition, |_| {}).await.unwrap();
        assert_eq!(verified.damage, None);
        events += verified.events;
    }
    assert_eq!(events, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_is_one_process_s_and_keeps_its_number_of_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(&folder, 2).await;
    let path = folder.path().join("journal.db");
    let second = souk_actors::journal::sqlite::SqliteStore::open(&path, 2).await;
    assert!(matches!(second, Err(souk_actors::journal::Error::Locked(_))));
    drop(store);
    let other = souk_actors::journal::sqlite::SqliteStore::open(&path, 3).await;
    assert!(matches!(other, Err(souk_actors::journal::Error::Mismatch(_))));
}
