//! Subscriptions: order, repeats, retries, letters, circuits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::event::StoredEvent;
use souk_actors::faults::{Fault, Mode};
use souk_actors::journal::LetterState;
use souk_actors::oversight::letters::{DeadLetterEvent, DeadLetterLog};
use souk_actors::retry::{Failure, FailureKind, RetryPolicy};
use souk_actors::runtime::{LetterQuery, Options, Runtime};
use souk_actors::subscriber::{
    Handler, Projection, Redrive, RedriveError, Redriven, Subscription, Work,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::account::{Account, AccountCommand, AccountEvent, Opened, Rig, options};

/// Notes what it is given; fails where it is told to.
#[derive(Default)]
struct Notes {
    seen: Mutex<Vec<Arc<StoredEvent>>>,
    tries: Mutex<Vec<(Uuid, u64)>>,
    fails_on: Mutex<Option<(Uuid, u64, FailureKind)>>,
    panics_on: Mutex<Option<(Uuid, u64, u32)>>,
    hangs_on: Mutex<Option<(Uuid, u64)>>,
}

impl Notes {
    fn of(&self, id: u128) -> Vec<u64> {
        let seen = self.seen.lock().unwrap();
        let mine = seen.iter().filter(|event| event.aggregate_id == Uuid::from_u128(id));
        mine.map(|event| event.aggregate_version).collect()
    }

    fn tries_of(&self, id: u128, version: u64) -> usize {
        let wanted = (Uuid::from_u128(id), version);
        self.tries.lock().unwrap().iter().filter(|tried| **tried == wanted).count()
    }

    fn fail_on(&self, id: u128, version: u64, kind: FailureKind) {
        *self.fails_on.lock().unwrap() = Some((Uuid::from_u128(id), version, kind));
    }
}

struct Shared(Arc<Notes>);

#[async_trait]
impl Handler for Shared {
    async fn handle(&self, _runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let this = (event.aggregate_id, event.aggregate_version);
        self.0.tries.lock().unwrap().push(this);
        let fails_on = *self.0.fails_on.lock().unwrap();
        if let Some((id, version, kind)) = fails_on
            && (id, version) == this
        {
            return Err(Failure::new(kind, "as told"));
        }
        let panics = {
            let mut panics_on = self.0.panics_on.lock().unwrap();
            match &mut *panics_on {
                Some((id, version, times)) if (*id, *version) == this && *times > 0 => {
                    *times -= 1;
                    true
                }
                _ => false,
            }
        };
        assert!(!panics, "as told");
        let hangs = self.0.hangs_on.lock().unwrap().take_if(|hang| *hang == this).is_some();
        if hangs {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
        self.0.seen.lock().unwrap().push(event.clone());
        Ok(())
    }
}

fn quick() -> RetryPolicy {
    RetryPolicy { retry_delay: Duration::from_millis(5), ..RetryPolicy::default() }
}

async fn rig(notes: &Arc<Notes>, durable: bool) -> Rig {
    let handler = Arc::new(Shared(notes.clone()));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler)
        .retrying(quick())
        .within(Duration::from_millis(200));
    Rig::build(durable, 1, options(), |builder| builder.subscribe(subscription)).await
}

/// An operator works a key's letters.
async fn redrive(rig: &Rig, name: &str, key: Uuid, what: Redrive) -> Option<Redriven> {
    let letters = rig.runtime.dead_letters();
    let why = Some("the cause is mended".to_owned());
    letters.redrive(name, 0, key, what, rig.context(), why).await.unwrap()
}

async fn quiet(rig: &Rig) {
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_arrives_once_and_in_order_per_aggregate() {
    let notes = Arc::<Notes>::default();
    let rig = Arc::new(rig(&notes, true).await);
    let mut running = JoinSet::new();
    for n in 0..1_000 {
        let rig = rig.clone();
        running.spawn(async move { rig.change(n % 20, 1).await.unwrap() });
    }
    running.join_all().await;
    quiet(&rig).await;
    for account in 0..20 {
        assert_eq!(notes.of(account), (1..=50).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_goes_on_where_it_was_after_a_restart() {
    let notes = Arc::<Notes>::default();
    let first = rig(&notes, true).await;
    for _ in 0..20 {
        first.change(1, 1).await.unwrap();
    }
    quiet(&first).await;
    assert!(first.runtime.drain(Duration::from_secs(5)).await);
    let Rig { store, folder, .. } = first;
    let handler = Arc::new(Shared(notes.clone()));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler);
    let again = Rig::on(store, folder, options(), |b| b.subscribe(subscription)).await;
    again.change(1, 1).await.unwrap();
    quiet(&again).await;
    assert_eq!(notes.of(1), (1..=21).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_stops_its_own_key_only_and_goes_on_in_order() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, true).await;
    notes.fail_on(1, 2, FailureKind::Permanent);
    for _ in 0..5 {
        for account in 0..10 {
            rig.change(account, 1).await.unwrap();
        }
    }
    quiet(&rig).await;
    for account in (0..10).filter(|account| *account != 1) {
        assert_eq!(notes.of(account), [1, 2, 3, 4, 5]);
    }
    assert_eq!(notes.of(1), [1]);
    assert_eq!(notes.tries_of(1, 2), 1, "a permanent failure is not retried");
    let letters = rig.runtime.dead_letters();
    let list = letters.list(Some("notes"), 10).await.unwrap();
    let states: Vec<_> = list.iter().map(|letter| (letter.state, letter.attempts)).collect();
    let waiting = (LetterState::Waiting, 0);
    assert_eq!(states, [(LetterState::Dead, 1), waiting, waiting, waiting]);
    let key = Uuid::from_u128(1);
    let redrive = async |what| redrive(&rig, "notes", key, what).await.unwrap();
    let still = redrive(Redrive::Retry).await;
    assert_eq!((still.handled, still.left), (0, 4));
    *notes.fails_on.lock().unwrap() = None;
    let done = redrive(Redrive::Retry).await;
    assert_eq!((done.handled, done.left), (4, 0));
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!(notes.of(1), [1, 2, 3, 4, 5, 6]);
    assert_eq!(letters.list(None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_letter_lets_those_behind_it_go() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, true).await;
    notes.fail_on(1, 1, FailureKind::Permanent);
    for _ in 0..3 {
        rig.change(1, 1).await.unwrap();
    }
    quiet(&rig).await;
    let key = Uuid::from_u128(1);
    let done = redrive(&rig, "notes", key, Redrive::Discard).await.unwrap();
    assert_eq!((done.discarded, done.handled, done.left), (1, 2, 0));
    assert_eq!(notes.of(1), [2, 3]);
    assert_eq!(redrive(&rig, "unknown", key, Redrive::Retry).await, None);
    assert_eq!(redrive(&rig, "notes", key, Redrive::Retry).await, None, "nothing is left");
    let stream = souk_actors::oversight::Oversight::id_of("notes");
    let record = rig.runtime.journal().read_aggregate(stream, 0, 10).await.unwrap();
    let types: Vec<_> = record.iter().map(|event| &*event.event_type).collect();
    assert_eq!(types, ["subscription.discard_requested"]);
}

/// What was told of a subscription's letters: the versions of account 1 that became some.
async fn told_of(rig: &Rig, subscription: &str) -> Vec<u64> {
    let log = DeadLetterLog::id_of(subscription);
    let told = rig.runtime.journal().read_aggregate(log, 0, 100).await.unwrap();
    let mut versions = Vec::new();
    for event in &told {
        let DeadLetterEvent::Lettered(told) = rig.runtime.journal().decode(event).await.unwrap();
        assert_eq!(
            (&*told.subscription, &*event.causation_id),
            (subscription, &*told.event_id.to_string())
        );
        let events = rig.runtime.journal().read_aggregate(told.aggregate_id, 0, 100).await.unwrap();
        let about = events.iter().find(|event| event.event_id == told.event_id).unwrap();
        assert_eq!(about.correlation_id, event.correlation_id);
        versions.push(about.aggregate_version);
    }
    versions
}

/// S1-48: and whoever fails on that is no reason to tell more.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_told_of_once_and_what_is_told_is_not() {
    let (notes, watch) = (Arc::<Notes>::default(), Arc::<Notes>::default());
    let subscription = |name, pattern: &str, notes: &Arc<Notes>| {
        Subscription::handler(name, "tests", &[pattern], Arc::new(Shared(notes.clone())))
            .retrying(quick())
    };
    let (a, b) =
        (subscription("notes", "account.*", &notes), subscription("watch", "system.*", &watch));
    let rig = Rig::build(true, 1, options(), |builder| builder.subscribe(a).subscribe(b)).await;
    notes.fail_on(1, 1, FailureKind::Permanent);
    let log = DeadLetterLog::id_of("notes");
    watch.fail_on(log.as_u128(), 1, FailureKind::Permanent);
    for _ in 0..3 {
        rig.change(1, 1).await.unwrap();
    }
    quiet(&rig).await;
    let letters = rig.runtime.dead_letters().list(None, 10).await.unwrap();
    assert_eq!(letters.len(), 4, "{letters:?}");
    assert_eq!((told_of(&rig, "notes").await, told_of(&rig, "watch").await), (vec![1], vec![]));
    // It fails again: that is no news. The next of its key is, once it is its turn.
    let key = Uuid::from_u128(1);
    redrive(&rig, "notes", key, Redrive::Retry).await.unwrap();
    assert_eq!(told_of(&rig, "notes").await, [1]);
    notes.fail_on(1, 2, FailureKind::Permanent);
    redrive(&rig, "notes", key, Redrive::Retry).await.unwrap();
    quiet(&rig).await;
    assert_eq!((told_of(&rig, "notes").await, told_of(&rig, "watch").await), (vec![1, 2], vec![]));
}

/// The positions and states of a subscription's letters.
async fn states(rig: &Rig) -> Vec<(u64, LetterState)> {
    let letters = rig.runtime.dead_letters().list(Some("notes"), 100).await.unwrap();
    letters.into_iter().map(|letter| (letter.position, letter.state)).collect()
}

/// How many letters the first subscription has, and how many of them are dead.
fn letters_of(rig: &Rig) -> (usize, usize) {
    let status = &rig.runtime.subscriptions().list()[0].partitions[0];
    (status.dlq_letters, status.dlq_dead_letters)
}

/// S1-27, S1-47: what the whole is for, among many.
#[tokio::test(flavor = "multi_thread")]
async fn one_faulty_aggregate_of_a_thousand_waits_alone_and_goes_on_in_order() {
    let notes = Arc::<Notes>::default();
    let rig = Arc::new(rig(&notes, false).await);
    notes.fail_on(7, 2, FailureKind::Transient);
    let mut running = JoinSet::new();
    for account in 0..1_000 {
        let rig = rig.clone();
        running.spawn(async move {
            for _ in 0..5 {
                rig.change(account, 1).await.unwrap();
            }
        });
    }
    running.join_all().await;
    quiet(&rig).await;
    for account in (0..1_000).filter(|account| *account != 7) {
        assert_eq!(notes.of(account), [1, 2, 3, 4, 5], "account {account}");
    }
    assert_eq!(notes.of(7), [1]);
    let letters = rig.runtime.dead_letters();
    let key = Uuid::from_u128(7);
    let queue = letters.queue("notes", 0, key).await.unwrap().unwrap();
    let head = queue.head.unwrap();
    assert_eq!((head.state, head.attempts, queue.waiting), (LetterState::Dead, 4, 3));
    let status = &rig.runtime.subscriptions().list()[0].partitions[0];
    assert_eq!((status.dlq_letters, status.dlq_blocked_keys), (4, 1));
    assert_eq!(status.dlq_dead_letters, 1, "the others wait behind it");
    *notes.fails_on.lock().unwrap() = None;
    let done = redrive(&rig, "notes", key, Redrive::Retry).await.unwrap();
    assert_eq!((done.handled, done.left), (4, 0));
    assert_eq!(notes.of(7), [1, 2, 3, 4, 5], "in order, each once");
    assert_eq!(letters.queue("notes", 0, key).await.unwrap(), None);
    let status = &rig.runtime.subscriptions().list()[0].partitions[0];
    assert_eq!((status.dlq_letters, status.dlq_blocked_keys), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_letter_stays_and_is_worked_by_its_position() {
    let notes = Arc::<Notes>::default();
    let first = rig(&notes, true).await;
    notes.fail_on(1, 1, FailureKind::Permanent);
    for _ in 0..3 {
        first.change(1, 1).await.unwrap();
    }
    quiet(&first).await;
    let key = Uuid::from_u128(1);
    let letters = first.runtime.dead_letters();
    // What was told of the first one may stand between the two.
    let mut all = letters.list(Some("notes"), 10).await.unwrap();
    let (second, head) = (all.remove(1), all.remove(0));
    let work = |what, position| Work { what, position, expected: Some(head.revision()) };
    let wrong = Work { expected: Some(1), ..Work::from(Redrive::Skip) };
    let refused = letters.redrive("notes", 0, key, wrong, first.context(), None).await;
    assert_eq!(refused, Err(RedriveError::Changed { current: head.revision() }));
    let behind = Work { position: Some(second.position), ..Work::from(Redrive::Discard) };
    let refused = letters.redrive("notes", 0, key, behind, first.context(), None).await;
    assert_eq!(refused, Err(RedriveError::Waits { head: head.position }));
    let skip = work(Redrive::Skip, None);
    let done = letters.redrive("notes", 0, key, skip, first.context(), None).await;
    let done = done.unwrap().unwrap();
    assert_eq!((done.skipped, done.handled, done.left), (1, 2, 0));
    assert_eq!(notes.of(1), [2, 3]);
    assert_eq!(states(&first).await, [(head.position, LetterState::Skipped)]);
    assert_eq!(letters_of(&first), (1, 0), "one that was skipped is not dead");
    // Whoever looked before does not skip another one now.
    let refused = letters.redrive("notes", 0, key, skip, first.context(), None).await;
    assert_eq!(refused, Ok(None));
    first.change(1, 1).await.unwrap();
    quiet(&first).await;
    assert_eq!(notes.of(1), [2, 3, 4], "the key is not held up any more");
    assert!(first.runtime.drain(Duration::from_secs(5)).await);

    let Rig { store, folder, .. } = first;
    let handler = Arc::new(Shared(notes.clone()));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler);
    let again = Rig::on(store, folder, options(), |b| b.subscribe(subscription)).await;
    again.change(1, 1).await.unwrap();
    quiet(&again).await;
    assert_eq!(notes.of(1), [2, 3, 4, 5], "nor after a restart");
    assert_eq!(letters_of(&again), (1, 0));
    let alone = Work { position: Some(head.position), ..Work::from(Redrive::Retry) };
    let letters = again.runtime.dead_letters();
    let failed = letters.redrive("notes", 0, key, alone, again.context(), None).await;
    assert_eq!(failed.unwrap().unwrap().handled, 0);
    assert_eq!(states(&again).await, [(head.position, LetterState::Skipped)]);
    *notes.fails_on.lock().unwrap() = None;
    let done = letters.redrive("notes", 0, key, alone, again.context(), None).await;
    assert_eq!(done.unwrap().unwrap().handled, 1);
    assert_eq!(notes.of(1), [2, 3, 4, 5, 1]);
    assert_eq!(states(&again).await, []);
}

/// Notes the owners of accounts, as they can be read then; fails while it is told to.
#[derive(Default)]
struct Owners {
    fails: AtomicBool,
    seen: Mutex<Vec<Option<String>>>,
}

struct SharedOwners(Arc<Owners>);

#[async_trait]
impl Handler for SharedOwners {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(Failure::permanent("as told"));
        }
        let decoded = runtime.journal().decode::<AccountEvent>(event).await;
        if let AccountEvent::Opened(Opened { owner }) = decoded.unwrap() {
            self.0.seen.lock().unwrap().push(owner.get().cloned());
        }
        Ok(())
    }
}

/// A letter points at its event: what is erased meanwhile is not there when it is retried.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_retried_after_an_erasure_sees_the_erased_field() {
    let owners = Arc::<Owners>::default();
    let handler = Arc::new(SharedOwners(owners.clone()));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler);
    let rig = Rig::build(true, 1, options(), |builder| builder.subscribe(subscription)).await;
    owners.fails.store(true, Ordering::SeqCst);
    for account in [1, 2] {
        let subject = Uuid::from_u128(account + 100);
        let open = AccountCommand::Open { subject, owner: "Ann".to_owned() };
        let handle = rig.runtime.aggregate::<Account>();
        handle.send(Uuid::from_u128(account), open, rig.context(), |_| ()).await.unwrap();
    }
    quiet(&rig).await;
    rig.runtime.control().forget(Uuid::from_u128(101)).await.unwrap();
    owners.fails.store(false, Ordering::SeqCst);
    for account in [1, 2] {
        let done = redrive(&rig, "notes", Uuid::from_u128(account), Redrive::Retry).await;
        assert_eq!(done.unwrap().handled, 1);
    }
    assert_eq!(*owners.seen.lock().unwrap(), [None, Some("Ann".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_one_cause_are_one_group() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, false).await;
    for (account, kind) in [(1, FailureKind::Permanent), (2, FailureKind::Permanent)] {
        notes.fail_on(account, 1, kind);
        rig.change(account, 1).await.unwrap();
        rig.change(account, 1).await.unwrap();
        quiet(&rig).await;
    }
    let letters = rig.runtime.dead_letters();
    let groups = letters.groups(&LetterQuery::default()).await.unwrap();
    assert_eq!((groups.len(), groups[0].count, &*groups[0].message), (1, 2, "as told"));
    assert!(groups[0].first_seen <= groups[0].last_seen);
    let fingerprint = Some(groups[0].fingerprint.clone());
    let of_group = LetterQuery { fingerprint, ..LetterQuery::default() };
    let first = letters.page(&of_group, None, 1).await.unwrap();
    let place = (0, first[0].subscription.to_string(), first[0].position);
    let rest = letters.page(&of_group, Some(&place), 10).await.unwrap();
    let keys: Vec<_> = first.iter().chain(&rest).map(|letter| letter.key.as_u128()).collect();
    assert_eq!(keys, [1, 2], "those that only wait are not of the group");
    let other = LetterQuery { class: Some("transient".to_owned()), ..LetterQuery::default() };
    assert_eq!(letters.page(&other, None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_stops_its_subscription_until_letters_are_worked() {
    let (full, other) = (Arc::<Notes>::default(), Arc::<Notes>::default());
    let make = |name, notes: &Arc<Notes>| {
        Subscription::handler(name, "tests", &["account.*"], Arc::new(Shared(notes.clone())))
            .retrying(quick())
    };
    let bound = Options { letters_max: 3, ..options() };
    let (a, b) = (make("notes", &full), make("other", &other));
    let rig = Rig::build(true, 1, bound, |builder| builder.subscribe(a).subscribe(b)).await;
    full.fail_on(1, 1, FailureKind::Permanent);
    for _ in 0..6 {
        rig.change(1, 1).await.unwrap();
    }
    for account in 2..9 {
        rig.change(account, 1).await.unwrap();
    }
    let status = || rig.runtime.subscriptions().list().swap_remove(0);
    while status().state != "dlq_full" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    quiet(&rig).await;
    assert_eq!((other.of(1).len(), other.of(8).len()), (6, 1), "others are not disturbed");
    assert_eq!(status().partitions[0].dlq_letters, 3, "never more than there may be");
    // Working letters makes room, and what waited outside goes on by itself.
    *full.fails_on.lock().unwrap() = None;
    let key = Uuid::from_u128(1);
    let done = redrive(&rig, "notes", key, Redrive::Retry).await.unwrap();
    assert_eq!((done.handled, done.left), (3, 0));
    quiet(&rig).await;
    assert_eq!(status().state, "running");
    assert_eq!(full.of(1), [1, 2, 3, 4, 5, 6]);
    assert!((2..9).all(|account| full.of(account) == [1]), "nothing is lost");
    let stream = souk_actors::oversight::Oversight::id_of("notes");
    let recorded = async || {
        let record = rig.runtime.journal().read_aggregate(stream, 0, 10).await.unwrap();
        record.iter().map(|event| event.event_type.to_string()).collect::<Vec<_>>()
    };
    while recorded().await.len() < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut types = recorded().await;
    types.sort();
    assert_eq!(
        types,
        ["subscription.dlq_filled", "subscription.dlq_relieved", "subscription.retry_requested"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_still_block_their_key_after_a_restart() {
    let notes = Arc::<Notes>::default();
    let first = rig(&notes, true).await;
    notes.fail_on(1, 1, FailureKind::Permanent);
    first.change(1, 1).await.unwrap();
    quiet(&first).await;
    assert!(first.runtime.drain(Duration::from_secs(5)).await);
    *notes.fails_on.lock().unwrap() = None;
    let Rig { store, folder, .. } = first;
    let handler = Arc::new(Shared(notes.clone()));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler);
    let again = Rig::on(store, folder, options(), |b| b.subscribe(subscription)).await;
    again.change(1, 1).await.unwrap();
    quiet(&again).await;
    assert_eq!(notes.of(1), Vec::<u64>::new());
    let key = Uuid::from_u128(1);
    let done = redrive(&again, "notes", key, Redrive::Retry).await.unwrap();
    assert_eq!(done.handled, 2);
    assert_eq!(notes.of(1), [1, 2]);
}

/// Handles a letter, and then the journal's next answer is lost.
struct ThenLost(Arc<Notes>, AtomicBool);

#[async_trait]
impl Handler for ThenLost {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        Shared(self.0.clone()).handle(runtime, event).await?;
        if self.1.swap(false, Ordering::SeqCst) {
            let lost = Fault {
                target: "journal".to_owned(),
                mode: Mode::LoseAnswer,
                kind: FailureKind::Transient,
                times: Some(1),
                key: None,
                delay_ms: 0,
            };
            runtime.faults().add(lost);
        }
        Ok(())
    }
}

/// Nothing is left that holds the key up, whether or not anybody was told so.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_free_when_its_letter_went_with_an_unknown_outcome() {
    let notes = Arc::<Notes>::default();
    let handler = Arc::new(ThenLost(notes.clone(), AtomicBool::new(false)));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler.clone());
    let rig = Rig::build(true, 1, options(), |b| b.subscribe(subscription.retrying(quick()))).await;
    notes.fail_on(1, 1, FailureKind::Permanent);
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    *notes.fails_on.lock().unwrap() = None;
    handler.1.store(true, Ordering::SeqCst);
    let letters = rig.runtime.dead_letters();
    let key = Uuid::from_u128(1);
    // The first may hear that it is not known what became of it.
    while !letters.list(None, 10).await.unwrap().is_empty() {
        let _ = letters.redrive("notes", 0, key, Redrive::Retry, rig.context(), None).await;
    }
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!(letters.list(None, 10).await.unwrap(), []);
    assert_eq!(notes.of(1).last(), Some(&2));
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_are_retried_three_times_then_a_letter() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, false).await;
    notes.fail_on(1, 1, FailureKind::Transient);
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!(notes.tries_of(1, 1), 4);
    let letters = rig.runtime.dead_letters().list(None, 10).await.unwrap();
    assert_eq!((letters[0].attempts, &*letters[0].class), (4, "transient"));
    assert_eq!(letters[0].error, "as told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_once_is_retried_and_one_that_goes_on_is_a_letter() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, false).await;
    *notes.panics_on.lock().unwrap() = Some((Uuid::from_u128(1), 1, 1));
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!(notes.of(1), [1]);
    *notes.panics_on.lock().unwrap() = Some((Uuid::from_u128(2), 1, 99));
    rig.change(2, 1).await.unwrap();
    quiet(&rig).await;
    let letters = rig.runtime.dead_letters().list(None, 10).await.unwrap();
    assert_eq!((letters[0].attempts, &*letters[0].class), (2, "permanent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_has_a_time_limit() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, false).await;
    *notes.hangs_on.lock().unwrap() = Some((Uuid::from_u128(1), 1));
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!((notes.of(1), notes.tries_of(1, 1)), (vec![1], 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_world_is_unwell_delivery_pauses_and_nothing_is_lost() {
    let notes = Arc::<Notes>::default();
    let rig = rig(&notes, false).await;
    let fault = rig.runtime.faults().add(Fault {
        target: "notes".to_owned(),
        mode: Mode::Fail,
        kind: FailureKind::System,
        times: None,
        key: None,
        delay_ms: 0,
    });
    for _ in 0..10 {
        rig.change(1, 1).await.unwrap();
    }
    let state = || rig.runtime.subscriptions().list()[0].state;
    while state() != "circuit_open" {
        tokio::task::yield_now().await;
    }
    assert_eq!(notes.of(1), Vec::<u64>::new());
    rig.runtime.faults().remove(fault);
    quiet(&rig).await;
    assert_eq!(notes.of(1), (1..=10).collect::<Vec<_>>());
    assert_eq!(rig.runtime.dead_letters().list(None, 10).await.unwrap(), []);
    assert_eq!(state(), "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_subscription_stands_still_and_the_others_go_on() {
    let (one, two) = (Arc::<Notes>::default(), Arc::<Notes>::default());
    let make = |name, notes: &Arc<Notes>| {
        Subscription::handler(name, "tests", &["account.*"], Arc::new(Shared(notes.clone())))
    };
    let (a, b) = (make("one", &one), make("two", &two));
    let rig = Rig::build(true, 1, options(), |builder| builder.subscribe(a).subscribe(b)).await;
    let subscriptions = rig.runtime.subscriptions();
    assert!(subscriptions.pause("one", rig.context(), None).await.unwrap().is_some());
    assert!(subscriptions.pause("three", rig.context(), None).await.unwrap().is_none());
    let done = rig.change(1, 1).await.unwrap();
    let at = done.position.unwrap();
    assert!(subscriptions.wait_for("two", at, Duration::from_secs(10)).await);
    assert!(!subscriptions.wait_for("one", at, Duration::from_millis(50)).await);
    assert!(subscriptions.resume("one", rig.context(), None).await.unwrap().is_some());
    assert!(subscriptions.wait_for("one", at, Duration::from_secs(10)).await);
    assert_eq!((one.of(1), two.of(1)), (vec![1], vec![1]));
}

/// Rows in memory, committed with their checkpoint.
#[derive(Default)]
struct Totals {
    rows: Mutex<(HashMap<Uuid, u64>, u64)>,
    refuses: Mutex<Option<(Uuid, u64)>>,
}

struct SharedTotals(Arc<Totals>);

#[async_trait]
impl Projection for SharedTotals {
    async fn checkpoint(&self, _partition: u16) -> Result<u64, Failure> {
        Ok(self.0.rows.lock().unwrap().1)
    }

    async fn project(
        &self,
        _runtime: &Runtime,
        _partition: u16,
        from: u64,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<(), Failure> {
        let mut rows = self.0.rows.lock().unwrap();
        assert!(from >= rows.1);
        let refuses = *self.0.refuses.lock().unwrap();
        let mut next = rows.0.clone();
        for event in events {
            if Some((event.aggregate_id, event.aggregate_version)) == refuses {
                return Err(Failure::permanent("as told"));
            }
            *next.entry(event.aggregate_id).or_default() += event.aggregate_version;
        }
        *rows = (next, to);
        Ok(())
    }

    async fn redeliver(&self, _: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let mut rows = self.0.rows.lock().unwrap();
        *rows.0.entry(event.aggregate_id).or_default() += event.aggregate_version;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_a_projection_cannot_take_stops_its_own_key_only() {
    let totals = Arc::<Totals>::default();
    let projection = Arc::new(SharedTotals(totals.clone()));
    let subscription = Subscription::projection("totals", "tests", &["#"], projection);
    let rig = Rig::build(true, 1, options(), |b| b.subscribe(subscription)).await;
    *totals.refuses.lock().unwrap() = Some((Uuid::from_u128(1), 2));
    for _ in 0..3 {
        for account in 0..5 {
            rig.change(account, 1).await.unwrap();
        }
    }
    quiet(&rig).await;
    let total = |account| totals.rows.lock().unwrap().0[&Uuid::from_u128(account)];
    assert_eq!((total(0), total(1), total(4)), (6, 1, 6));
    *totals.refuses.lock().unwrap() = None;
    let key = Uuid::from_u128(1);
    let done = redrive(&rig, "totals", key, Redrive::Retry).await.unwrap();
    assert_eq!((done.handled, done.left), (2, 0));
    assert_eq!(total(1), 6);
}

fn totals_into(totals: &Arc<Totals>) -> Subscription {
    let projection = Arc::new(SharedTotals(totals.clone()));
    Subscription::projection("totals", "tests", &["account.*"], projection)
}

/// As when the read models' files are gone, while the letters are in the journal.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_made_anew_have_what_came_before_a_letter() {
    let totals = Arc::<Totals>::default();
    let rig = Rig::build(true, 1, options(), |b| b.subscribe(totals_into(&totals))).await;
    let [held, skipped] = [1, 2].map(Uuid::from_u128);
    for key in [skipped, held] {
        *totals.refuses.lock().unwrap() = Some((key, 2));
        for _ in 0..3 {
            rig.change(key.as_u128(), 1).await.unwrap();
        }
        quiet(&rig).await;
        if key == skipped {
            let done = redrive(&rig, "totals", key, Redrive::Skip).await.unwrap();
            assert_eq!((done.skipped, done.handled, done.left), (1, 1, 0));
        }
    }
    let total = |key| totals.rows.lock().unwrap().0.get(&key).copied();
    assert_eq!((total(held), total(skipped)), (Some(1), Some(1 + 3)));
    rig.runtime.subscriptions().pause("totals", rig.context(), None).await.unwrap();
    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    *totals.rows.lock().unwrap() = (HashMap::new(), 0);

    let Rig { store, folder, .. } = rig;
    let rig = Rig::on(store, folder, options(), |b| b.subscribe(totals_into(&totals))).await;
    let letters = rig.runtime.dead_letters();
    let early = letters.redrive("totals", 0, held, Redrive::Retry, rig.context(), None).await;
    let Err(RedriveError::Failed(failure)) = early else {
        panic!("the letter is ahead of the rows: {early:?}");
    };
    assert!(failure.message.contains("try again later"), "{failure}");
    rig.runtime.subscriptions().resume("totals", rig.context(), None).await.unwrap();
    rig.change(held.as_u128(), 1).await.unwrap();
    quiet(&rig).await;
    assert_eq!((total(held), total(skipped)), (Some(1), Some(1 + 3)));
    *totals.refuses.lock().unwrap() = None;
    let done = redrive(&rig, "totals", held, Redrive::Retry).await.unwrap();
    assert_eq!((done.handled, done.left), (3, 0));
    assert_eq!(total(held), Some(1 + 2 + 3 + 4));
    let left = letters.list(None, 10).await.unwrap();
    let left: Vec<_> = left.iter().map(|letter| (letter.key, letter.state)).collect();
    assert_eq!(left, [(skipped, LetterState::Skipped)]);
}

/// A start looks through all that is behind a projection's checkpoint: of a projection that has nothing
/// to do too, that must not be the whole journal.
#[tokio::test(start_paused = true)]
async fn a_projection_that_has_nothing_to_do_stores_how_far_it_is() {
    let totals = Arc::<Totals>::default();
    let projection = Arc::new(SharedTotals(totals.clone()));
    let subscription = Subscription::projection("totals", "tests", &["other.*"], projection);
    let rig = Rig::build(false, 1, options(), |b| b.subscribe(subscription)).await;
    let stored = || totals.rows.lock().unwrap().1;
    let changed = async || {
        let done = rig.change(1, 1).await.unwrap();
        quiet(&rig).await;
        done.position.unwrap().position
    };
    let first = changed().await;
    assert_eq!(stored(), 0, "not at once");
    tokio::time::sleep(Duration::from_secs(41)).await;
    assert_eq!(stored(), first);
    let second = changed().await;
    assert_eq!(stored(), first);
    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    assert_eq!(stored(), second, "whoever ends in order says how far it was");
}
