//! More than can be done: slow journals, slow subscribers (S1-53, S1-174).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::broker::TAIL_EVENTS_MAX;
use souk_actors::command::{CommandContext, CommandError, Once, Origin, Refusal, Unavailable};
use souk_actors::event::StoredEvent;
use souk_actors::faults::{Fault, Mode};
use souk_actors::retry::{Failure, FailureKind};
use souk_actors::runtime::{Options, Runtime};
use souk_actors::subscriber::{Handler, Subscription};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::account::{AccountCommand, Rig, options};

fn slow_journal(delay: Duration) -> Fault {
    Fault {
        target: "journal".to_owned(),
        mode: Mode::Delay,
        kind: FailureKind::Transient,
        times: None,
        key: None,
        delay_ms: u64::try_from(delay.as_millis()).unwrap(),
    }
}

/// A command that the system gives itself.
async fn change_inside(
    rig: &Rig,
    account: u128,
) -> Result<(), CommandError<impl std::error::Error>> {
    let context = CommandContext { origin: Origin::Inside, ..rig.context() };
    let id = Uuid::from_u128(account);
    rig.accounts().send(id, AccountCommand::Change(1), context, |_| ()).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_journal_cannot_take_soon_is_refused_and_the_rest_is_done_in_time() {
    let rig = Arc::new(Rig::build(false, 1, options(), |b| b).await);
    let fault = rig.runtime.faults().add(slow_journal(Duration::from_secs(3)));
    // At 3 s for 500 rows all that may be in flight would wait for 12 s, longer than anybody does.
    let mut running = JoinSet::new();
    for n in 0..60_000_u128 {
        let one = rig.clone();
        running.spawn(async move { one.change(n % 100, 1).await.map(drop) });
        if n % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if n == 31_000 {
            assert_eq!(rig.change(1, 1).await.unwrap_err(), Unavailable::Overloaded.into());
            change_inside(&rig, 2).await.unwrap();
        }
    }
    let answers = running.join_all().await;
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    let refused = Unavailable::Overloaded.into();
    assert!(answers.iter().all(|answer| answer.as_ref().err().is_none_or(|e| *e == refused)));
    // A minute of it: 20 appends of 500. Nothing was given up, so no append was in vain.
    assert!((8_000..=11_500).contains(&done), "{done}");
    rig.runtime.faults().remove(fault);
    rig.change(1, 1).await.unwrap();
    let balances = sum_of_balances(&rig).await;
    assert_eq!(usize::try_from(balances).unwrap(), done + 2, "what was refused did not happen");
    assert_eq!(rig.runtime.in_flight(), (0, 0));
}

async fn sum_of_balances(rig: &Rig) -> i64 {
    let mut sum = 0;
    for account in 0..100 {
        sum += rig.balance(account).await;
    }
    sum
}

#[tokio::test(start_paused = true)]
async fn load_from_outside_does_not_keep_the_system_from_its_own_work() {
    let limits = Options { outside_max: 10, ..options() };
    let rig = Arc::new(Rig::build(false, 1, limits, |b| b).await);
    rig.runtime.faults().add(slow_journal(Duration::from_secs(1)));
    let mut running = JoinSet::new();
    for n in 0..100 {
        let rig = rig.clone();
        running.spawn(async move { rig.change(n, 1).await.map(drop) });
    }
    // They are all on their way.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.runtime.in_flight(), (10, 0));
    assert_eq!(rig.change(200, 1).await.unwrap_err(), Unavailable::Overloaded.into());
    change_inside(&rig, 200).await.unwrap();
    assert_eq!(rig.balance(200).await, 1);
    let done = running.join_all().await.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(done, 10);
}

/// Works for `takes` at every event, and notes what it saw.
#[derive(Default)]
struct Slow {
    takes: Mutex<Duration>,
    at_work: AtomicUsize,
    most_at_work: AtomicUsize,
    seen: Mutex<Vec<(Uuid, u64)>>,
}

struct Shared(Arc<Slow>);

#[async_trait]
impl Handler for Shared {
    async fn handle(&self, _runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let at_work = self.0.at_work.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_work.fetch_max(at_work, Ordering::SeqCst);
        let takes = *self.0.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        self.0.seen.lock().unwrap().push((event.aggregate_id, event.aggregate_version));
        self.0.at_work.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

/// S1-53: ten a second are handled, a thousand a second happen.
#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_falls_behind_and_catches_up_in_order() {
    let slow = Arc::new(Slow { takes: Mutex::new(Duration::from_millis(100)), ..Slow::default() });
    let subscription =
        Subscription::handler("slow", "tests", &["account.*"], Arc::new(Shared(slow.clone())))
            .in_lanes(1);
    let rig = Rig::build(false, 1, options(), |builder| builder.subscribe(subscription)).await;
    let events = TAIL_EVENTS_MAX + 2_000;
    let status = || rig.runtime.subscriptions().list().remove(0).partitions.remove(0);
    for n in 0..events {
        // Whoever publishes notices nothing.
        rig.change(n as u128 % 20, 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        if n % 100 == 0 {
            let shown = status();
            assert!(shown.in_flight <= shown.max_in_flight, "{shown:?}");
        }
    }
    let behind = status().lag_events;
    assert!(behind > TAIL_EVENTS_MAX as u64, "it is behind what is kept in memory: {behind}");
    *slow.takes.lock().unwrap() = Duration::ZERO;
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(600)).await);
    assert_eq!(status().lag_events, 0);
    assert_eq!(slow.most_at_work.load(Ordering::SeqCst), 1, "a lane does one thing at a time");
    let mut versions: HashMap<Uuid, u64> = HashMap::new();
    for (account, version) in slow.seen.lock().unwrap().iter() {
        let last = versions.entry(*account).or_default();
        assert_eq!(*version, *last + 1, "{account}");
        *last = *version;
    }
    assert_eq!(versions.values().sum::<u64>(), events as u64, "nothing is lost");
}

/// S1-173: out of time is a failure that may pass; when it does not, it is a letter, and other keys
/// go on.
#[tokio::test(start_paused = true)]
async fn a_handler_that_never_ends_is_tried_again_and_then_a_letter() {
    let slow = Arc::new(Slow { takes: Mutex::new(Duration::from_secs(3_600)), ..Slow::default() });
    let subscription =
        Subscription::handler("slow", "tests", &["account.*"], Arc::new(Shared(slow.clone())))
            .in_lanes(1)
            .within(Duration::from_secs(30));
    let rig = Rig::build(false, 1, options(), |builder| builder.subscribe(subscription)).await;
    rig.change(1, 1).await.unwrap();
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(600)).await);
    *slow.takes.lock().unwrap() = Duration::ZERO;
    rig.change(2, 1).await.unwrap();
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(600)).await);
    let letters = rig.runtime.dead_letters().list(None, 10).await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((&*letters[0].class, letters[0].attempts), ("transient", 4));
    assert_eq!(letters[0].key, Uuid::from_u128(1));
    assert_eq!(*slow.seen.lock().unwrap(), [(Uuid::from_u128(2), 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_from_outside_is_new_and_from_outside() {
    let rig = Rig::build(false, 2, options(), |b| b).await;
    let id = Uuid::from_u128(1);
    let once = Some(Once { request_hash: [1; 32] });
    let context = CommandContext { once, ..rig.context() };
    let change = async |context: CommandContext| {
        rig.accounts().send(id, AccountCommand::Change(1), context, |account| account.balance).await
    };
    change(context.clone()).await.unwrap();
    let refusal = Refusal {
        code: "closed",
        message: "closed for lunch",
        retry_after: Duration::from_secs(7),
    };
    rig.runtime.refuse_outside(refusal);
    for account in 0..10 {
        let refused = rig.change(account, 1).await.unwrap_err();
        assert_eq!(refused, Unavailable::Refused(refusal).into());
        change_inside(&rig, account).await.unwrap();
    }
    assert_eq!(rig.balance(1).await, 2, "reads go on, and so does the system");
    assert!(change(context).await.unwrap().replayed, "what happened is still told");
    assert_eq!(rig.runtime.health().refusal, Some(refusal));
    assert_eq!(rig.runtime.in_flight(), (0, 0));
    // With two reasons it is over when both are gone.
    let other = Refusal { code: "full", ..refusal };
    rig.runtime.refuse_outside(other);
    rig.runtime.accept_outside(refusal);
    assert_eq!(rig.change(1, 1).await.unwrap_err(), Unavailable::Refused(other).into());
    assert!(rig.runtime.refuses_outside(other) && !rig.runtime.refuses_outside(refusal));
    rig.runtime.accept_outside(other);
    rig.change(1, 1).await.unwrap();
    assert_eq!(rig.runtime.health().refusal, None);
}
