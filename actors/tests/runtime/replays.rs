//! Replays: what was handled is delivered once more, with its effects once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::{Position, StoredEvent};
use souk_actors::filter::Filter;
use souk_actors::journal::LetterState;
use souk_actors::oversight::{Oversight, Replay, ReplayCounts, ReplayRequested, ReplayState};
use souk_actors::retry::{Failure, RetryPolicy};
use souk_actors::runtime::{Builder, ReplayWish, Replayable, Runtime};
use souk_actors::subscriber::{
    DeliveryMetadata, Handler, Projection, Redrive, ReplayScope, Subscription,
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::account::{Account, AccountCommand, Rig, options};

/// Mirrors every change of an account in another one, and notes what it is given.
struct Mirror {
    seen: Mutex<Vec<(Arc<StoredEvent>, DeliveryMetadata)>>,
    fails_on: Mutex<Option<(u128, u64)>>,
    /// What is delivered once more needs one of these.
    room: Semaphore,
}

impl Default for Mirror {
    fn default() -> Self {
        let room = Semaphore::new(Semaphore::MAX_PERMITS);
        Self { seen: Mutex::default(), fails_on: Mutex::default(), room }
    }
}

const MIRRORED: u128 = 1_000;

struct Shared(Arc<Mirror>);

#[async_trait]
impl Handler for Shared {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let metadata = DeliveryMetadata::current().expect("a handler is at work");
        let account = event.aggregate_id.as_u128();
        if metadata.replay.is_some() {
            self.0.room.acquire().await.unwrap().forget();
        }
        if *self.0.fails_on.lock().unwrap() == Some((account, event.aggregate_version)) {
            return Err(Failure::permanent("as told"));
        }
        let mirror = Uuid::from_u128(account + MIRRORED);
        let context = CommandContext::because_of(event, "mirror", mirror);
        let sent = runtime.aggregate::<Account>();
        let sent = sent.send(mirror, AccountCommand::Change(1), context, |_| ()).await;
        sent.map_err(|error| error.to_failure())?;
        self.0.seen.lock().unwrap().push((event.clone(), metadata));
        Ok(())
    }
}

impl Mirror {
    /// The versions of an account that were delivered by a replay, or else by none.
    fn of(&self, account: u128, replay: Option<Uuid>) -> Vec<u64> {
        let seen = self.seen.lock().unwrap();
        let mine = seen.iter().filter(|(event, metadata)| {
            event.aggregate_id == Uuid::from_u128(account) && metadata.replay == replay
        });
        mine.map(|(event, _)| event.aggregate_version).collect()
    }
}

fn subscribe(mirror: &Arc<Mirror>) -> impl FnOnce(Builder) -> Builder + use<> {
    let handler = Arc::new(Shared(mirror.clone()));
    let subscription = Subscription::handler("mirror", "tests", &["account.*"], handler)
        .keyed_by(|event| (event.aggregate_id.as_u128() < MIRRORED).then_some(event.aggregate_id))
        .retrying(RetryPolicy { retry_delay: Duration::from_millis(5), ..RetryPolicy::default() });
    move |builder| builder.subscribe(subscription)
}

async fn rig(mirror: &Arc<Mirror>, partitions: u16) -> Rig {
    Rig::build(true, partitions, options(), subscribe(mirror)).await
}

async fn quiet(rig: &Rig) {
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
}

/// Changes accounts 0 to `accounts`, so many times each.
async fn changes(rig: &Rig, accounts: u128, times: usize) {
    for _ in 0..times {
        for account in 0..accounts {
            rig.change(account, 1).await.unwrap();
        }
    }
    quiet(rig).await;
}

fn wanted(rig: &Rig, id: u128, wish: &ReplayWish) -> ReplayRequested {
    let ReplayScope { from, to, filter } = wish.scope.clone();
    ReplayRequested {
        subscription: "mirror".to_owned(),
        replay_id: Uuid::from_u128(id),
        by: "ann".to_owned(),
        ranges: rig.runtime.replays().ranges("mirror", wish),
        from,
        to,
        filter: filter.map(|filter| filter.as_str().to_owned()),
        events_per_second: 10_000,
        reason: Some("a test".to_owned()),
        at: rig.world.now(),
    }
}

async fn start(rig: &Rig, id: u128, wish: &ReplayWish) -> Replay {
    let requested = wanted(rig, id, wish);
    let done = rig.runtime.replays().start(requested, rig.context()).await.unwrap();
    done.value.unwrap()
}

/// How it ended.
async fn ended(rig: &Rig, id: u128) -> (ReplayState, ReplayCounts) {
    let waited = async {
        loop {
            let status = rig.runtime.replays().get(Uuid::from_u128(id)).await.unwrap().unwrap();
            if status.replay.state != ReplayState::Running {
                return (status.replay.state, status.counts);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited).await.expect("the replay ends")
}

/// Waits until so many events of a replay are counted in the row that a restart goes on from.
async fn stored(rig: &Rig, redelivered: u64) {
    let waited = async {
        loop {
            let row = rig.runtime.control().get("subscription.replay_progress", b"mirror/0").await;
            let row: serde_json::Value =
                serde_json::from_slice(&row.unwrap().unwrap_or_default()).unwrap_or_default();
            if row["counts"]["redelivered"] == redelivered {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited).await.expect("progress is stored")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_once_more_in_order_and_has_no_second_effect() {
    for partitions in [1, 3] {
        let mirror = Arc::<Mirror>::default();
        let rig = rig(&mirror, partitions).await;
        changes(&rig, 10, 30).await;
        start(&rig, 1, &ReplayWish::default()).await;
        // What is new goes on meanwhile.
        changes(&rig, 10, 1).await;
        let (state, counts) = ended(&rig, 1).await;
        assert_eq!(state, ReplayState::Completed);
        let done = ReplayCounts { redelivered: 300, duplicates: 300, ..counts };
        assert_eq!(counts, done);
        assert!(counts.read >= 600, "mirrored changes are looked at: {counts:?}");
        for account in 0..10 {
            let replay = Some(Uuid::from_u128(1));
            assert_eq!(mirror.of(account, replay), (1..=30).collect::<Vec<_>>());
            assert_eq!(mirror.of(account, None), (1..=31).collect::<Vec<_>>());
            assert_eq!(rig.balance(account + MIRRORED).await, 31, "no effect is doubled");
        }
        let stream = Oversight::id_of("mirror");
        let record = rig.runtime.journal().read_aggregate(stream, 0, 10).await.unwrap();
        let types: Vec<_> = record.iter().map(|event| &*event.event_type).collect();
        assert_eq!(types, ["subscription.replay_requested", "subscription.replay_completed"]);
        assert!(record[0].data.contains("\"ann\"") && record[0].data.contains("a test"));
        // What was delivered once more says so.
        let event = mirror.seen.lock().unwrap()[0].0.clone();
        let deliveries = rig.runtime.subscriptions().deliveries(&[event]).await.unwrap();
        let delivery = &deliveries[0][0];
        assert_eq!((delivery.state, delivery.handled.unwrap().duplicate), ("acked", true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_or_a_filter_chooses_and_a_look_says_what() {
    let mirror = Arc::<Mirror>::default();
    let rig = rig(&mirror, 1).await;
    changes(&rig, 3, 4).await;
    let replays = rig.runtime.replays();
    let one = Uuid::from_u128(1);
    let filter = format!("aggregate_id = \"{one}\" and aggregate_version >= 3");
    let scope =
        ReplayScope { filter: Some(Filter::parse(&filter).unwrap()), ..ReplayScope::default() };
    let by_filter = ReplayWish { scope, ..ReplayWish::default() };
    let soon = || tokio::time::Instant::now() + Duration::from_secs(30);
    let preview = replays.preview("mirror", &by_filter, soon()).await.unwrap();
    assert!(preview.is_complete);
    assert_eq!(preview.count, 2);
    assert_eq!(preview.by_type, BTreeMap::from([("account.changed".to_owned(), 2)]));
    let (first, last) = preview.ends.unwrap();
    assert_eq!((first.aggregate_version, last.aggregate_version), (3, 4));
    start(&rig, 1, &by_filter).await;
    let (_, counts) = ended(&rig, 1).await;
    assert_eq!((counts.redelivered, counts.duplicates), (2, 2));
    assert_eq!(mirror.of(1, Some(one)), [3, 4]);
    // From the position of the one up to the position of the other, both included.
    let at = |position| Some(Position { partition: 0, position });
    let range =
        ReplayWish { first: at(first.position), last: at(last.position), ..ReplayWish::default() };
    start(&rig, 2, &range).await;
    let (_, counts) = ended(&rig, 2).await;
    assert_eq!(counts.read, last.position - first.position + 1);
    assert_eq!(counts.redelivered, replays.preview("mirror", &range, soon()).await.unwrap().count);
    assert_eq!(mirror.of(1, Some(Uuid::from_u128(2))), [3, 4]);
    // Nothing is in no time at all.
    let scope =
        ReplayScope { to: Some(first.timestamp), from: Some(first.timestamp), filter: None };
    start(&rig, 3, &ReplayWish { scope, ..ReplayWish::default() }).await;
    assert_eq!(ended(&rig, 3).await.1.redelivered, 0);
    // No time to look.
    let now = tokio::time::Instant::now();
    assert!(!replays.preview("mirror", &range, now).await.unwrap().is_complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_once_more_is_a_letter_and_keeps_the_order() {
    let mirror = Arc::<Mirror>::default();
    let rig = rig(&mirror, 1).await;
    changes(&rig, 2, 4).await;
    *mirror.fails_on.lock().unwrap() = Some((1, 2));
    start(&rig, 1, &ReplayWish::default()).await;
    let (state, counts) = ended(&rig, 1).await;
    assert_eq!(state, ReplayState::Completed);
    assert_eq!((counts.redelivered, counts.failed, counts.held), (5, 1, 2));
    let replay = Some(Uuid::from_u128(1));
    assert_eq!(mirror.of(0, replay), [1, 2, 3, 4]);
    assert_eq!(mirror.of(1, replay), [1]);
    // What is new waits too.
    rig.change(1, 1).await.unwrap();
    quiet(&rig).await;
    let letters = rig.runtime.dead_letters();
    let states = async || -> Vec<_> {
        letters.list(Some("mirror"), 10).await.unwrap().iter().map(|of| of.state).collect()
    };
    let (dead, waiting) = (LetterState::Dead, LetterState::Waiting);
    assert_eq!(states().await, [dead, waiting, waiting, waiting]);
    // Another replay leaves the letters to whoever works them, and what was before them is done.
    start(&rig, 2, &ReplayWish::default()).await;
    let (_, counts) = ended(&rig, 2).await;
    assert_eq!((counts.redelivered, counts.failed, counts.held), (5, 0, 4));
    assert_eq!(states().await.len(), 4);
    *mirror.fails_on.lock().unwrap() = None;
    let key = Uuid::from_u128(1);
    let redriven = letters.redrive("mirror", 0, key, Redrive::Retry, rig.context(), None).await;
    let redriven = redriven.unwrap().unwrap();
    assert_eq!((redriven.handled, redriven.left), (4, 0));
    assert_eq!(mirror.of(1, None), [1, 2, 3, 4, 2, 3, 4, 5]);
    assert_eq!(rig.balance(1 + MIRRORED).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_letter_stays_what_it_is() {
    let mirror = Arc::<Mirror>::default();
    let rig = rig(&mirror, 1).await;
    *mirror.fails_on.lock().unwrap() = Some((1, 2));
    changes(&rig, 2, 3).await;
    let (letters, key) = (rig.runtime.dead_letters(), Uuid::from_u128(1));
    letters.redrive("mirror", 0, key, Redrive::Skip, rig.context(), None).await.unwrap().unwrap();
    assert_eq!(mirror.of(1, None), [1, 3]);
    *mirror.fails_on.lock().unwrap() = None;
    start(&rig, 1, &ReplayWish::default()).await;
    let (_, counts) = ended(&rig, 1).await;
    assert_eq!((counts.redelivered, counts.held), (5, 1));
    assert_eq!(mirror.of(1, Some(Uuid::from_u128(1))), [1, 3]);
    let left = letters.list(Some("mirror"), 10).await.unwrap();
    assert_eq!(left.iter().map(|of| of.state).collect::<Vec<_>>(), [LetterState::Skipped]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_where_it_was_after_a_restart() {
    let mirror = Arc::new(Mirror { room: Semaphore::new(25), ..Mirror::default() });
    let first = rig(&mirror, 1).await;
    changes(&first, 1, 60).await;
    start(&first, 1, &ReplayWish::default()).await;
    stored(&first, 25).await;
    first.runtime.drain(Duration::from_millis(500)).await;
    let Rig { store, folder, .. } = first;
    let done = mirror.of(0, Some(Uuid::from_u128(1))).len();
    assert_eq!(done, 25);
    mirror.room.add_permits(1_000);
    let again = Rig::on(store, folder, options(), subscribe(&mirror)).await;
    let (state, counts) = ended(&again, 1).await;
    assert_eq!((state, counts.redelivered), (ReplayState::Completed, 60));
    let all = mirror.of(0, Some(Uuid::from_u128(1)));
    assert!(all.len() < 60 + 10, "it did not begin anew: {all:?}");
    assert_eq!(again.balance(MIRRORED).await, 60);
    // It is over, also for the next start.
    assert!(again.runtime.drain(Duration::from_secs(5)).await);
    let Rig { store, folder, .. } = again;
    let last = Rig::on(store, folder, options(), subscribe(&mirror)).await;
    changes(&last, 1, 1).await;
    assert_eq!(mirror.of(0, Some(Uuid::from_u128(1))), all);
    assert_eq!(ended(&last, 1).await.1.redelivered, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_runs_at_a_time_and_can_be_cancelled() {
    let mirror = Arc::new(Mirror { room: Semaphore::new(3), ..Mirror::default() });
    let rig = rig(&mirror, 2).await;
    changes(&rig, 10, 20).await;
    let replays = rig.runtime.replays();
    let everything = ReplayWish::default();
    assert_eq!(start(&rig, 1, &everything).await.requested.replay_id, Uuid::from_u128(1));
    // Somebody else hears which one is running; a repeat is the same.
    assert_eq!(start(&rig, 2, &everything).await.requested.replay_id, Uuid::from_u128(1));
    assert_eq!(start(&rig, 1, &everything).await.requested.replay_id, Uuid::from_u128(1));
    // What is new does not wait for what is old, unless it has the lane in hand.
    let reason = Some("enough".to_owned());
    let cancelled = replays.cancel(Uuid::from_u128(1), rig.context(), reason).await.unwrap();
    let cancelled = cancelled.unwrap();
    assert_eq!((cancelled.events, cancelled.value.unwrap().state), (1, ReplayState::Cancelled));
    let again = replays.cancel(Uuid::from_u128(1), rig.context(), None).await.unwrap().unwrap();
    assert_eq!(again.events, 0, "it is over");
    assert!(replays.cancel(Uuid::from_u128(9), rig.context(), None).await.unwrap().is_none());
    mirror.room.add_permits(10_000);
    // The next one is not in the way of the one that was cancelled, and the other way round.
    start(&rig, 3, &everything).await;
    let (state, counts) = ended(&rig, 3).await;
    assert_eq!((state, counts.redelivered), (ReplayState::Completed, 200));
    assert!(mirror.of(0, Some(Uuid::from_u128(1))).len() < 20);
    assert_eq!(replays.list(Some("mirror")).await.unwrap().len(), 2);
    assert_eq!(replays.list(Some("nobody")).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_subscription_is_replayed_to_once_it_goes_on() {
    let mirror = Arc::<Mirror>::default();
    let rig = rig(&mirror, 1).await;
    changes(&rig, 2, 2).await;
    let subscriptions = rig.runtime.subscriptions();
    subscriptions.pause("mirror", rig.context(), None).await.unwrap();
    // What it has not handled is none of the replay's business.
    rig.change(0, 1).await.unwrap();
    start(&rig, 1, &ReplayWish::default()).await;
    let status = rig.runtime.replays().get(Uuid::from_u128(1)).await.unwrap().unwrap();
    assert_eq!((status.replay.state, status.held), (ReplayState::Running, Some("paused")));
    subscriptions.resume("mirror", rig.context(), None).await.unwrap();
    let (_, counts) = ended(&rig, 1).await;
    assert_eq!((counts.redelivered, counts.duplicates), (4, 4));
    quiet(&rig).await;
    assert_eq!(mirror.of(0, None), [1, 2, 3]);
    assert_eq!(mirror.of(0, Some(Uuid::from_u128(1))), [1, 2]);
}

/// Keeps nothing.
struct Rows;

#[async_trait]
impl Projection for Rows {
    async fn checkpoint(&self, _: u16) -> Result<u64, Failure> {
        Ok(0)
    }

    async fn project(
        &self,
        _: &Runtime,
        _: u16,
        _: u64,
        _: &[Arc<StoredEvent>],
        _: u64,
    ) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projections_are_not_replayed_to() {
    let mirror = Arc::<Mirror>::default();
    let rows = Subscription::projection("rows", "tests", &["#"], Arc::new(Rows));
    let more = |builder: Builder| subscribe(&mirror)(builder).subscribe(rows);
    let rig = Rig::build(false, 1, options(), more).await;
    let replays = rig.runtime.replays();
    assert_eq!(replays.replayable("mirror"), Replayable::Yes);
    assert_eq!(replays.replayable("rows"), Replayable::Projection);
    assert_eq!(replays.replayable("nobody"), Replayable::Unknown);
}
