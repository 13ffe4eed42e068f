//! Subscriptions that are looked at and steered: filters, order, batches, policies that change, and
//! what becomes of each kind of fault. Time stands still and jumps to what is due.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::command::{CommandContext, CommandError};
use souk_actors::event::StoredEvent;
use souk_actors::faults::{Fault, Mode};
use souk_actors::filter::Filter;
use souk_actors::journal::LetterState;
use souk_actors::oversight::{Oversight, RetrySettings};
use souk_actors::retry::{Failure, FailureKind, RetryPolicy};
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{
    BatchHandler, BatchPolicy, Handler, PartitionStatus, Priority, Redrive, Subscription,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use crate::account::{Account, AccountCommand, Rig, options};

/// Notes what it is given, in order; fails for good where an amount is told to.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<Vec<i64>>>,
    tries: Mutex<Vec<Instant>>,
    fails_on: Mutex<Option<(i64, FailureKind)>>,
    retry_after: Mutex<Option<Duration>>,
    hangs: AtomicUsize,
    room: Option<Semaphore>,
}

fn amount(event: &StoredEvent) -> i64 {
    let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
    data["amount"].as_i64().unwrap()
}

impl Notes {
    /// One that hands each event on only when there is room.
    fn slow() -> Arc<Self> {
        Arc::new(Self { room: Some(Semaphore::new(0)), ..Self::default() })
    }

    fn seen(&self) -> Vec<i64> {
        self.calls.lock().unwrap().concat()
    }

    async fn take(&self, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        self.tries.lock().unwrap().push(Instant::now());
        if self.hangs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
        let amounts: Vec<_> = events.iter().map(|event| amount(event)).collect();
        let fails_on = *self.fails_on.lock().unwrap();
        if let Some((bad, kind)) = fails_on
            && amounts.contains(&bad)
        {
            let failure = Failure::new(kind, "as told");
            let asked = *self.retry_after.lock().unwrap();
            return Err(asked.map_or(failure.clone(), |wait| failure.not_before(wait)));
        }
        if let Some(room) = &self.room {
            room.acquire().await.unwrap().forget();
        }
        self.calls.lock().unwrap().push(amounts);
        Ok(())
    }
}

struct Shared(Arc<Notes>);

#[async_trait]
impl Handler for Shared {
    async fn handle(&self, _: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        self.0.take(std::slice::from_ref(event)).await
    }
}

#[async_trait]
impl BatchHandler for Shared {
    async fn handle_batch(&self, _: &Runtime, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        self.0.take(events).await
    }
}

fn notes_of(notes: &Arc<Notes>) -> Subscription {
    Subscription::handler("notes", "tests", &["account.*"], Arc::new(Shared(notes.clone())))
}

async fn rig(subscription: Subscription) -> Rig {
    Rig::build(false, 1, options(), |builder| builder.subscribe(subscription)).await
}

async fn quiet(rig: &Rig) {
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(3_600)).await);
}

fn status(rig: &Rig) -> PartitionStatus {
    rig.runtime.subscriptions().list().remove(0).partitions.remove(0)
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(7_200), waited).await;
    assert!(waited.is_ok(), "waited for {what}");
}

async fn pause(rig: &Rig, paused: bool) {
    let subscriptions = rig.runtime.subscriptions();
    let why = Some("a test".to_owned());
    let done = if paused {
        subscriptions.pause("notes", rig.context(), why).await
    } else {
        subscriptions.resume("notes", rig.context(), why).await
    };
    assert!(done.unwrap().is_some());
}

/// S1-29.
#[tokio::test(start_paused = true)]
async fn only_what_passes_the_filter_reaches_the_handler() {
    let notes = Arc::<Notes>::default();
    let filter = Filter::parse("data.amount >= 1000").unwrap();
    let rig = rig(notes_of(&notes).filtered(filter)).await;
    for amount in [999, 1_000, 5, 2_000, -1] {
        rig.change(1, amount).await.unwrap();
    }
    quiet(&rig).await;
    assert_eq!(notes.seen(), [1_000, 2_000]);
    assert_eq!(rig.runtime.dead_letters().list(None, 10).await.unwrap(), []);
    let shown = rig.runtime.subscriptions().list().remove(0);
    assert_eq!(shown.filter.unwrap().as_str(), "data.amount >= 1000");
    let all = rig.runtime.journal().read_aggregate(Uuid::from_u128(1), 0, 10).await.unwrap();
    let deliveries = rig.runtime.subscriptions().deliveries(&all).await.unwrap();
    let counts: Vec<_> = deliveries.iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 1, 0, 1, 0], "what does not pass is no delivery");
}

/// S1-37.
#[tokio::test(start_paused = true)]
async fn without_an_order_lanes_take_events_in_turn() {
    let notes = Arc::<Notes>::default();
    let rig = rig(notes_of(&notes).unordered().in_lanes(4)).await;
    for amount in 1..=400 {
        rig.change(1, amount).await.unwrap();
    }
    quiet(&rig).await;
    let shown = status(&rig);
    assert_eq!(shown.handled_by_lane.iter().sum::<u64>(), 400);
    assert!(shown.handled_by_lane.iter().all(|n| (90..=110).contains(n)), "{shown:?}");
    let mut seen = notes.seen();
    seen.sort_unstable();
    assert_eq!(seen, (1..=400).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn with_an_order_one_key_is_one_lane_s() {
    let notes = Arc::<Notes>::default();
    let rig = rig(notes_of(&notes).in_lanes(4)).await;
    for amount in 1..=40 {
        rig.change(1, amount).await.unwrap();
    }
    quiet(&rig).await;
    assert_eq!(status(&rig).handled_by_lane.iter().filter(|n| **n > 0).count(), 1);
    assert_eq!(notes.seen(), (1..=40).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn without_an_order_the_position_is_before_the_first_unfinished_event() {
    let notes = Arc::<Notes>::default();
    notes.hangs.store(1, Ordering::SeqCst);
    let subscription = notes_of(&notes).unordered().within(Duration::from_secs(7_200));
    let first = rig(subscription).await;
    for amount in 1..=20 {
        first.change(1, amount).await.unwrap();
    }
    eventually("the others to be handled", || status(&first).handled == 15).await;
    let shown = status(&first);
    assert_eq!((shown.position, shown.in_flight), (0, 5), "{shown:?}");
    let all = first.runtime.journal().read_aggregate(Uuid::from_u128(1), 0, 20).await.unwrap();
    let deliveries = first.runtime.subscriptions().deliveries(&all).await.unwrap();
    // Only what stands behind it in its own lane waits.
    for (index, of) in deliveries.iter().enumerate() {
        assert_eq!(of[0].state == "pending", index % 4 == 0, "{index}: {of:?}");
    }
    assert!(shown.oldest_unacked_seconds.is_some());
    // What was not finished comes again.
    first.runtime.drain(Duration::from_secs(1)).await;
    let Rig { store, folder, .. } = first;
    let again = Rig::on(store, folder, options(), |b| b.subscribe(notes_of(&notes).unordered()));
    let again = again.await;
    quiet(&again).await;
    assert!(notes.seen().contains(&1));
}

#[tokio::test(start_paused = true)]
async fn without_an_order_a_letter_holds_up_no_other_event() {
    let notes = Arc::<Notes>::default();
    *notes.fails_on.lock().unwrap() = Some((2, FailureKind::Permanent));
    let first = rig(notes_of(&notes).unordered()).await;
    for amount in 1..=3 {
        first.change(1, amount).await.unwrap();
    }
    quiet(&first).await;
    let mut seen = notes.seen();
    seen.sort_unstable();
    assert_eq!(seen, [1, 3]);
    let letters = first.runtime.dead_letters().list(None, 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].key), (1, letters[0].event_id));
    assert_eq!((status(&first).dlq_dead_letters, status(&first).dlq_blocked_keys), (1, 0));
    // Also after a restart it is a letter, and can be worked.
    first.runtime.drain(Duration::from_secs(1)).await;
    *notes.fails_on.lock().unwrap() = None;
    let Rig { store, folder, .. } = first;
    let again = Rig::on(store, folder, options(), |b| b.subscribe(notes_of(&notes).unordered()));
    let again = again.await;
    quiet(&again).await;
    let dead = again.runtime.dead_letters();
    let context = again.context();
    let done = dead.redrive("notes", 0, letters[0].key, Redrive::Retry, context, None).await;
    assert_eq!(done.unwrap().unwrap().handled, 1);
    assert!(notes.seen().contains(&2));
}

fn batches_of(notes: &Arc<Notes>, max_wait: Duration) -> Subscription {
    let policy = BatchPolicy { batch_size: 8, max_wait };
    let handler = Arc::new(Shared(notes.clone()));
    Subscription::batches("notes", "tests", &["account.*"], policy, handler).in_lanes(1)
}

/// S0-107.
#[tokio::test(start_paused = true)]
async fn a_batch_is_as_much_as_comes_within_the_wait() {
    let notes = Arc::<Notes>::default();
    let rig = rig(batches_of(&notes, Duration::from_millis(200))).await;
    pause(&rig, true).await;
    for amount in 1..=20 {
        rig.change(1, amount).await.unwrap();
    }
    pause(&rig, false).await;
    quiet(&rig).await;
    let sizes: Vec<_> = notes.calls.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [8, 8, 4]);
    assert_eq!(notes.seen(), (1..=20).collect::<Vec<_>>(), "in order");
    // A single one waits no longer than it may.
    rig.change(1, 21).await.unwrap();
    quiet(&rig).await;
    assert_eq!(notes.calls.lock().unwrap().last().unwrap(), &[21]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_is_split_down_to_the_one_bad_event() {
    for kind in [FailureKind::Permanent, FailureKind::Transient] {
        let notes = Arc::<Notes>::default();
        *notes.fails_on.lock().unwrap() = Some((103, kind));
        let rig = rig(batches_of(&notes, Duration::from_millis(200))).await;
        pause(&rig, true).await;
        // Two keys in turn; the third of the first key is bad.
        for amount in 1..=4 {
            rig.change(1, 100 + amount).await.unwrap();
            rig.change(2, 200 + amount).await.unwrap();
        }
        pause(&rig, false).await;
        quiet(&rig).await;
        assert_eq!(notes.seen(), [101, 201, 102, 202, 203, 204], "{kind:?}");
        let letters = rig.runtime.dead_letters();
        let list = letters.list(None, 10).await.unwrap();
        let attempts = if kind == FailureKind::Transient { 4 } else { 1 };
        let states: Vec<_> = list.iter().map(|letter| (letter.state, letter.attempts)).collect();
        assert_eq!(states, [(LetterState::Dead, attempts), (LetterState::Waiting, 0)]);
        *notes.fails_on.lock().unwrap() = None;
        let key = Uuid::from_u128(1);
        let done = letters.redrive("notes", 0, key, Redrive::Retry, rig.context(), None).await;
        assert_eq!(done.unwrap().unwrap().handled, 2);
        assert_eq!(notes.seen()[6..], [103, 104], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_a_time_limit() {
    let notes = Arc::<Notes>::default();
    notes.hangs.store(1, Ordering::SeqCst);
    let rig = rig(batches_of(&notes, Duration::ZERO).within(Duration::from_secs(2))).await;
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!((notes.seen(), notes.tries.lock().unwrap().len()), (vec![1], 2));
}

fn patient() -> RetryPolicy {
    RetryPolicy { jitter: 0.0, ..RetryPolicy::default() }
}

fn gaps(notes: &Notes) -> Vec<Duration> {
    let tries = notes.tries.lock().unwrap();
    tries.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// S4-46 to S4-49.
#[tokio::test(start_paused = true)]
async fn waits_are_what_the_policy_says() {
    let whole = |gaps: Vec<Duration>| -> Vec<u64> {
        gaps.iter().map(|gap| (gap.as_secs_f64()).round() as u64).collect()
    };
    let constant = RetryPolicy { exponential_backoff: false, ..patient() };
    let many = RetryPolicy { max_retries: 10, ..patient() };
    let table = [
        (patient(), vec![1, 2, 4]),
        (constant, vec![1, 1, 1]),
        (many, vec![1, 2, 4, 8, 16, 30, 30, 30, 30, 30]),
    ];
    for (policy, expected) in table {
        let notes = Arc::<Notes>::default();
        *notes.fails_on.lock().unwrap() = Some((1, FailureKind::Transient));
        let rig = rig(notes_of(&notes).retrying(policy)).await;
        rig.change(1, 1).await.unwrap();
        quiet(&rig).await;
        assert_eq!(whole(gaps(&notes)), expected);
    }
}

/// Whoever is asked may say when it is of use to ask again.
#[tokio::test(start_paused = true)]
async fn no_retry_comes_sooner_than_was_asked_for() {
    let secs = Duration::from_secs;
    for (asked, expected) in [(3, vec![3, 3, 4]), (60, vec![60, 60, 60])] {
        let notes = Arc::<Notes>::default();
        *notes.fails_on.lock().unwrap() = Some((1, FailureKind::Transient));
        *notes.retry_after.lock().unwrap() = Some(secs(asked));
        let rig = rig(notes_of(&notes).retrying(patient())).await;
        rig.change(1, 1).await.unwrap();
        quiet(&rig).await;
        let expected: Vec<_> = expected.into_iter().map(secs).collect();
        let gaps = gaps(&notes);
        assert_eq!(gaps.len(), expected.len());
        assert!(gaps.iter().zip(&expected).all(|(gap, least)| gap >= least), "{gaps:?}");
    }
}

/// S3-81: what waits for an hour is tried as soon as the policy says so.
#[tokio::test(start_paused = true)]
async fn a_policy_is_changed_while_it_waits_and_outlives_a_restart() {
    let notes = Arc::<Notes>::default();
    *notes.fails_on.lock().unwrap() = Some((1, FailureKind::Transient));
    let hour = Duration::from_secs(3_600);
    let slow = RetryPolicy { retry_delay: hour * 24, max_retry_delay: hour * 24, ..patient() };
    let first = rig(notes_of(&notes).retrying(slow.clone())).await;
    first.change(1, 1).await.unwrap();
    eventually("the first failure", || status(&first).retrying.len() == 1).await;
    let shown = status(&first).retrying.remove(0);
    assert_eq!((shown.position, shown.attempts, shown.class), (1, 1, "transient"));
    assert!(shown.next_attempt_at.unwrap() > first.world.now().plus(hour * 23));
    let all = first.runtime.subscriptions();
    let set = |max_retries, delay_ms| RetrySettings {
        max_retries,
        delay_ms,
        exponential_backoff: false,
        max_delay_ms: delay_ms,
    };
    let done = all.set_retry_policy("notes", Some(set(2, 100)), first.context(), None).await;
    assert_eq!(done.unwrap().unwrap().version, 1);
    let began = Instant::now();
    quiet(&first).await;
    assert!(began.elapsed() < hour, "nobody waits for a day any more");
    assert_eq!(notes.tries.lock().unwrap().len(), 3);
    let again = all.set_retry_policy("notes", Some(set(2, 100)), first.context(), None).await;
    assert_eq!(again.unwrap().unwrap().events, 0, "nothing new is no event");
    assert!(all.set_retry_policy("nobody", None, first.context(), None).await.unwrap().is_none());
    let done = all.set_handler_timeout("notes", Some(1_234), first.context(), None).await;
    assert_eq!(done.unwrap().unwrap().version, 2);
    first.runtime.drain(Duration::from_secs(1)).await;
    let Rig { store, folder, .. } = first;
    let again =
        Rig::on(store, folder, options(), |b| b.subscribe(notes_of(&notes).retrying(slow.clone())));
    let again = again.await;
    let all = again.runtime.subscriptions();
    let shown = all.list().remove(0);
    assert_eq!((RetrySettings::from(&shown.retry), shown.handler_timeout_ms), (set(2, 100), 1_234));
    all.set_retry_policy("notes", None, again.context(), Some("over".into())).await.unwrap();
    assert_eq!(all.list()[0].retry, slow);
    let stream = Oversight::id_of("notes");
    let record = again.runtime.journal().read_aggregate(stream, 0, 10).await.unwrap();
    let last: serde_json::Value = serde_json::from_str(&record.last().unwrap().data).unwrap();
    assert_eq!((&last["old"]["max_retries"], &last["new"]), (&2.into(), &().into()));
    assert_eq!(last["reason"], "over");
}

/// S1-142.
#[tokio::test(start_paused = true)]
async fn a_time_limit_is_changed_while_it_runs() {
    let notes = Arc::<Notes>::default();
    let rig = rig(notes_of(&notes).within(Duration::from_secs(7_200))).await;
    let all = rig.runtime.subscriptions();
    all.set_handler_timeout("notes", Some(2_000), rig.context(), None).await.unwrap();
    rig.runtime.faults().add(fault(Mode::Delay, FailureKind::Transient, 1));
    rig.change(1, 1).await.unwrap();
    eventually("the failure", || !status(&rig).retrying.is_empty()).await;
    let shown = status(&rig).retrying.remove(0);
    assert!(shown.error.starts_with("timeout"), "{shown:?}");
    quiet(&rig).await;
    assert_eq!(notes.seen(), [1]);
}

fn fault(mode: Mode, kind: FailureKind, times: u64) -> Fault {
    let target = "notes".to_owned();
    Fault { target, mode, kind, times: Some(times), key: None, delay_ms: 5_000 }
}

/// What becomes of an event: how often it was tried and handled, and its letter.
#[derive(Debug, PartialEq)]
struct Outcome {
    handled: usize,
    failed: u64,
    letter: Option<(&'static str, u32)>,
}

/// S1-51: every kind of fault of a handler has its outcome, and other keys never notice.
#[tokio::test(start_paused = true)]
async fn every_fault_has_its_outcome() {
    use FailureKind::{Permanent, System, Transient};
    let lives = |failed| Outcome { handled: 1, failed, letter: None };
    let dies = |class, attempts: u32| {
        let failed = u64::from(attempts);
        Outcome { handled: 0, failed, letter: Some((class, attempts)) }
    };
    let table = [
        ("none", vec![], lives(0)),
        ("transient once", vec![fault(Mode::Fail, Transient, 1)], lives(1)),
        ("transient to the last retry", vec![fault(Mode::Fail, Transient, 3)], lives(3)),
        ("transient beyond", vec![fault(Mode::Fail, Transient, 4)], dies("transient", 4)),
        ("permanent", vec![fault(Mode::Fail, Permanent, 1)], dies("permanent", 1)),
        ("panics once", vec![fault(Mode::Panic, Transient, 1)], lives(1)),
        ("panics twice", vec![fault(Mode::Panic, Transient, 2)], dies("permanent", 2)),
        ("too slow once", vec![fault(Mode::Timeout, Transient, 1)], lives(1)),
        ("too slow always", vec![fault(Mode::Timeout, Transient, 4)], dies("transient", 4)),
        ("slow, but in time", vec![fault(Mode::Delay, Transient, 1)], lives(0)),
        ("the world is down for long", vec![fault(Mode::Fail, System, 9)], lives(9)),
        (
            "down, then transient to the last",
            vec![fault(Mode::Fail, System, 2), fault(Mode::Fail, Transient, 3)],
            lives(5),
        ),
        (
            "transient, then permanent",
            vec![fault(Mode::Fail, Transient, 2), fault(Mode::Fail, Permanent, 1)],
            dies("permanent", 3),
        ),
    ];
    for (name, faults, expected) in table {
        let notes = Arc::<Notes>::default();
        let rig = rig(notes_of(&notes).retrying(patient())).await;
        let key = Uuid::from_u128(1);
        for fault in faults {
            rig.runtime.faults().add(Fault { key: Some(key.to_string()), ..fault });
        }
        rig.change(1, 1).await.unwrap();
        rig.change(2, 2).await.unwrap();
        quiet(&rig).await;
        let letters = rig.runtime.dead_letters().list(None, 10).await.unwrap();
        let letter = letters.first().map(|letter| (letter.class.as_str(), letter.attempts));
        let seen = notes.seen();
        let handled = seen.iter().filter(|amount| **amount == 1).count();
        let failed = status(&rig).failed;
        assert_eq!((handled, failed), (expected.handled, expected.failed), "{name}");
        assert_eq!(letter, expected.letter, "{name}");
        assert!(seen.contains(&2), "{name}: the other key");
    }
}

/// Asks another account to change, whose actor crashes as often as it is told to.
struct Asks {
    crashes: AtomicUsize,
    asked: AtomicUsize,
}

#[async_trait]
impl Handler for Asks {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        if amount(event) != 1 {
            return Ok(());
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let crash = |left: usize| left.checked_sub(1);
        let crashes = self.crashes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, crash).is_ok();
        let command = match crashes {
            true => AccountCommand::PanicInDecide,
            false => AccountCommand::Change(10),
        };
        let context = CommandContext::because_of(event, "ask", event.event_id);
        let accounts = runtime.aggregate::<Account>();
        match accounts.send(Uuid::from_u128(9), command, context, |_| ()).await {
            Ok(_) => Ok(()),
            Err(CommandError::Internal(error)) => Err(Failure::transient(error.to_string())),
            Err(error) => Err(Failure::permanent(error.to_string())),
        }
    }
}

/// S1-51: an actor that crashes over what a handler asks of it is started again, and the event is
/// tried again; it becomes a letter when that does not help. Other keys never notice.
#[tokio::test(start_paused = true)]
async fn a_crash_of_the_actor_that_a_handler_asks_is_a_failure_that_may_pass() {
    for (crashes, asked, balance, letters) in [(1, 2, 10, 0), (3, 4, 10, 0), (4, 4, 0, 1)] {
        let handler =
            Arc::new(Asks { crashes: AtomicUsize::new(crashes), asked: AtomicUsize::new(0) });
        let subscription = Subscription::handler("asks", "tests", &["account.*"], handler.clone())
            .retrying(patient());
        let rig = rig(subscription).await;
        rig.change(1, 1).await.unwrap();
        rig.change(2, 2).await.unwrap();
        quiet(&rig).await;
        assert_eq!(handler.asked.load(Ordering::SeqCst), asked, "{crashes} crashes");
        assert_eq!(rig.balance(9).await, balance, "{crashes} crashes: once in effect");
        assert_eq!((rig.balance(1).await, rig.balance(2).await), (1, 2));
        let list = rig.runtime.dead_letters().list(None, 10).await.unwrap();
        assert_eq!(list.len(), letters, "{crashes} crashes: {list:?}");
        assert_eq!(status(&rig).lag_events, 0);
    }
}

/// S1-51: while the journal takes no checkpoint nothing is lost, and what was done is stored later.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_cannot_be_stored_is_stored_later() {
    let notes = Arc::<Notes>::default();
    let first = rig(notes_of(&notes)).await;
    first.change(1, 1).await.unwrap();
    let journal = |times| Fault {
        target: "journal".to_owned(),
        ..fault(Mode::Fail, FailureKind::Transient, times)
    };
    first.runtime.faults().add(journal(3));
    quiet(&first).await;
    let stored = async || first.store.checkpoints("notes", 0).await.unwrap();
    let mut waited = 0;
    while stored().await.iter().map(|row| row.position).min() != Some(1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waited += 1;
        assert!(waited < 10_000, "{:?}", stored().await);
    }
    assert_eq!(notes.seen(), [1]);
}

/// S1-53: much comes and little is handled: so much is in hand and no more, the others are current,
/// commands are answered, and nothing is lost.
#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_costs_nobody_anything() {
    let (slow, quick) = (Notes::slow(), Arc::<Notes>::default());
    let named = |name, notes: &Arc<Notes>| {
        Subscription::handler(name, "tests", &["account.*"], Arc::new(Shared(notes.clone())))
    };
    let hour = Duration::from_secs(360_000);
    let slow_one = named("slow", &slow).within(hour).in_lanes(2);
    let quick_one = named("quick", &quick);
    let rig = Rig::build(false, 1, options(), |b| b.subscribe(slow_one).subscribe(quick_one)).await;
    let all = rig.runtime.subscriptions();
    for amount in 10_001..=12_000 {
        let done = rig.change(u128::try_from(amount % 50).unwrap(), amount).await.unwrap();
        if amount % 100 == 0 {
            assert!(all.wait_for("quick", done.position.unwrap(), hour).await);
            // Two lanes, each with what it has in hand, its queue, and the one that waits for room.
            let shown = &all.list()[0].partitions[0];
            assert_eq!(shown.max_in_flight, 2 * 65 + 1);
            assert!(shown.in_flight <= shown.max_in_flight, "{shown:?}");
            slow.room.as_ref().unwrap().add_permits(1);
        }
    }
    let shown = all.inspect().await;
    assert!(shown[0].partitions[0].lag_events > 1_800, "{:?}", shown[0]);
    assert!(shown[0].partitions[0].lag_seconds.is_some(), "{:?}", shown[0]);
    assert_eq!((shown[1].partitions[0].lag_events, shown[1].partitions[0].lag_seconds), (0, None));
    slow.room.as_ref().unwrap().add_permits(5_000);
    quiet(&rig).await;
    for notes in [slow, quick] {
        let mut seen = notes.seen();
        seen.sort_unstable();
        assert_eq!(seen, (10_001..=12_000).collect::<Vec<_>>());
    }
}

/// Named as its priority, for what passes the filter.
fn of_priority(priority: Priority, notes: &Arc<Notes>, filter: &str) -> Subscription {
    let handler = Arc::new(Shared(notes.clone()));
    Subscription::handler(priority.as_str(), "tests", &["account.*"], handler)
        .filtered(Filter::parse(filter).unwrap())
        .at_priority(priority)
}

/// Who is less urgent lets a crowd of more urgent work go first, for a while, and nobody else.
#[tokio::test(start_paused = true)]
async fn who_is_less_urgent_gives_way_for_a_while() {
    let (urgent, standard, batch) = (Notes::slow(), Arc::<Notes>::default(), Arc::default());
    let hour = Duration::from_secs(3_600);
    let urgent_one = of_priority(Priority::Critical, &urgent, "data.amount >= 1000");
    let urgent_one = urgent_one.unordered().in_lanes(8).within(hour * 1_000);
    let standard_one = of_priority(Priority::Standard, &standard, "data.amount < 1000");
    let batch_one = of_priority(Priority::Batch, &batch, "data.amount < 1000");
    let rig = Rig::build(false, 1, options(), |builder| {
        builder.subscribe(urgent_one).subscribe(standard_one).subscribe(batch_one)
    })
    .await;
    let all = rig.runtime.subscriptions();
    let both = async |position| {
        for name in ["standard", "batch"] {
            assert!(all.wait_for(name, position, hour).await);
        }
    };
    // How long a change takes to the less urgent, in milliseconds.
    let took = async || {
        let began = Instant::now();
        let done = rig.change(1, 1).await.unwrap();
        both(done.position.unwrap()).await;
        [&standard, &batch].map(|notes| {
            let tried = *notes.tries.lock().unwrap().last().unwrap();
            tried.duration_since(began).as_millis()
        })
    };
    let gave_way = || {
        let list = all.list();
        list.iter().map(|of| (of.priority, of.partitions[0].gave_way)).collect::<Vec<_>>()
    };
    let crowd = async || {
        let tried = urgent.tries.lock().unwrap().len();
        let mut last = None;
        for amount in 1_000..1_008 {
            last = rig.change(2, amount).await.unwrap().position;
        }
        eventually("a crowd", || urgent.tries.lock().unwrap().len() == tried + 8).await;
        both(last.unwrap()).await;
    };
    let [at_standard, at_batch] = took().await;
    assert!(at_standard < 5 && at_batch < 5, "there is nothing to give way to");
    crowd().await;
    let [at_standard, at_batch] = took().await;
    assert!(
        (25..50).contains(&at_standard) && (250..300).contains(&at_batch),
        "{at_standard} {at_batch}"
    );
    let [(_, 0), (_, 1..), (_, 1..)] = gave_way()[..] else { panic!("{:?}", gave_way()) };
    // Then it takes all that there is, which is more than it reads at once.
    for _ in 0..600 {
        rig.change(1, 1).await.unwrap();
    }
    let [at_standard, at_batch] = took().await;
    assert!(at_standard < 50 && at_batch < 300, "{at_standard} and {at_batch} ms");
    // Three are no crowd.
    urgent.room.as_ref().unwrap().add_permits(5);
    eventually("five are done", || urgent.seen().len() == 5).await;
    let [at_standard, at_batch] = took().await;
    assert!(at_standard < 5 && at_batch < 5, "{at_standard} and {at_batch} ms");
    // Nobody waits longer than the crowd is there.
    urgent.room.as_ref().unwrap().add_permits(3);
    eventually("all are done", || urgent.seen().len() == 8).await;
    crowd().await;
    let room = urgent.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        room.room.as_ref().unwrap().add_permits(8);
    });
    let [at_standard, at_batch] = took().await;
    assert!(
        (25..50).contains(&at_standard) && (100..120).contains(&at_batch),
        "{at_standard} {at_batch}"
    );
    quiet(&rig).await;
}

/// S1-30, S1-31, S1-33: what fails at one subscription is no other's business.
#[tokio::test(start_paused = true)]
async fn an_open_circuit_calls_nobody_until_its_probe_and_others_go_on() {
    let (sick, well) = (Arc::<Notes>::default(), Arc::<Notes>::default());
    let policy = souk_actors::circuit::CircuitPolicy {
        failures: 5,
        cooldown: Duration::from_secs(60),
        cooldown_max: Duration::from_secs(60),
    };
    let mut subscription = notes_of(&sick).in_lanes(1);
    subscription.circuit = policy;
    let other =
        Subscription::handler("well", "tests", &["account.*"], Arc::new(Shared(well.clone())));
    let rig = Rig::build(false, 1, options(), |b| b.subscribe(subscription).subscribe(other)).await;
    *sick.fails_on.lock().unwrap() = Some((1, FailureKind::System));
    rig.change(1, 1).await.unwrap();
    rig.change(2, 2).await.unwrap();
    eventually("the circuit to open", || status(&rig).circuit == "open").await;
    let tried = sick.tries.lock().unwrap().len();
    assert_eq!((tried, status(&rig).state), (5, "circuit_open"));
    let probe = status(&rig).next_probe_at.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(sick.tries.lock().unwrap().len(), tried, "nobody is called while it is open");
    assert!(probe > rig.world.now());
    eventually("the other to be done", || well.seen().len() == 2).await;
    assert_eq!(well.tries.lock().unwrap().len(), 2, "exactly one call each");
    *sick.fails_on.lock().unwrap() = None;
    quiet(&rig).await;
    assert_eq!((sick.seen(), status(&rig).circuit), (vec![1, 2], "closed"));
}
