//! The contract of a journal store: one suite, handed every store, so that none can drift apart.

#![allow(clippy::unwrap_used, reason = "a suite of tests")]

use std::sync::Arc;

use uuid::Uuid;

use crate::command::ControlWrite;
use crate::event::StoredEvent;
use crate::journal::{
    AppendError, Batch, Checkpoint, Error, Head, Lease, Letter, LetterFilter, LetterState,
    LetterWrite, Outcome, PersonKey, Quarantine, Snapshot, Store, StreamNumber, Timer, TimerKey,
    TimerWrite, chain,
};
use crate::world::Timestamp;

/// Runs the whole suite. `fresh` gives an empty journal with two partitions.
///
/// # Panics
/// When the store breaks the contract.
pub async fn run<F>(fresh: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Store>>,
{
    events_are_read_back_as_written(&*fresh().await).await;
    a_batch_is_stored_whole_or_not_at_all(&*fresh().await).await;
    conflicts_are_refused(&*fresh().await).await;
    nothing_stays_of_events_before_a_conflict(&*fresh().await).await;
    partitions_do_not_mix(&*fresh().await).await;
    an_old_lease_writes_nothing(&*fresh().await).await;
    timers_are_kept(&*fresh().await).await;
    deliveries_are_kept(&*fresh().await).await;
    keys_are_kept_and_destroyed(&*fresh().await).await;
    control_rows_expire(&*fresh().await).await;
    snapshots_and_quarantines_are_kept(&*fresh().await).await;
    older_snapshots_are_thinned_out(&*fresh().await).await;
    large_batches_are_stored(&*fresh().await).await;
    what_is_damaged_is_given_to_nobody(&*fresh().await).await;
}

/// Builds batches that continue a partition's log.
struct Log {
    lease: Lease,
    head: Head,
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

impl Log {
    async fn of(store: &dyn Store, partition: u16) -> Self {
        let lease = store.acquire(partition).await.unwrap();
        Self { lease, head: store.head(partition).await.unwrap() }
    }

    fn event(&mut self, stream: i64, version: u64) -> Arc<StoredEvent> {
        let position = self.head.position + 1;
        let unique = (u128::from(self.lease.partition) << 64) | u128::from(position);
        let mut event = StoredEvent {
            partition: self.lease.partition,
            position,
            event_id: id(0xe000_0000 + unique),
            stream,
            aggregate_type: "thing".into(),
            aggregate_id: id(u128::try_from(stream).unwrap()),
            aggregate_version: version,
            event_type: "thing.changed".into(),
            major: 2,
            minor: 1,
            timestamp: Timestamp::from_millis(1_700_000_000_123),
            correlation_id: "corr \u{1F980} 'quoted'".into(),
            causation_id: "cause".into(),
            data: r#"{"a":"\u0000 \" ' ü"}"#.into(),
            metadata: r#"{"service":"s"}"#.into(),
            hash: [0; 32],
        };
        event.hash = chain::link(&self.head.hash, &event);
        self.head = Head { position, hash: event.hash };
        Arc::new(event)
    }

    fn stream(stream: i64) -> StreamNumber {
        StreamNumber {
            stream,
            aggregate_type: "thing".into(),
            aggregate_id: id(u128::try_from(stream).unwrap()),
        }
    }
}

fn of_events(events: Vec<Arc<StoredEvent>>, streams: Vec<StreamNumber>) -> Batch {
    Batch { events, streams, ..Batch::default() }
}

async fn events_are_read_back_as_written(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    assert_eq!(store.head(0).await.unwrap(), Head::default());
    let events = vec![log.event(1, 1), log.event(1, 2), log.event(2, 1)];
    let batch = of_events(events.clone(), vec![Log::stream(1), Log::stream(2)]);
    store.append(log.lease, &batch).await.unwrap();
    let more = log.event(1, 3);
    store.append(log.lease, &of_events(vec![more.clone()], Vec::new())).await.unwrap();

    assert_eq!(store.head(0).await.unwrap(), log.head);
    assert_eq!(store.read_from(0, 0, 3).await.unwrap(), events);
    assert_eq!(store.read_from(0, 3, 10).await.unwrap(), std::slice::from_ref(&more));
    assert_eq!(store.read_stream(1, 1, 10).await.unwrap(), [events[1].clone(), more.clone()]);
    assert_eq!(store.read_aggregate(id(1), 2, 10).await.unwrap(), std::slice::from_ref(&more));
    assert_eq!(store.event(more.event_id).await.unwrap(), Some(more.clone()));
    let asked = [more.event_id, id(99), events[2].event_id];
    let mut places = store.places(&asked).await.unwrap();
    places.sort_by_key(|(_, at)| at.position);
    assert_eq!(places, [(events[2].event_id, events[2].at()), (more.event_id, more.at())]);
    assert_eq!(store.places(&[]).await.unwrap(), []);
    assert_eq!(store.event(id(9)).await.unwrap(), None);
    assert_eq!(store.by_correlation(&more.correlation_id, 10).await.unwrap().len(), 4);
    assert_eq!(store.by_correlation("other", 10).await.unwrap(), []);
    assert_eq!(store.stream("thing", id(2)).await.unwrap(), Some(2));
    assert_eq!(store.stream("other", id(2)).await.unwrap(), None);
    assert_eq!(store.stream_max(0).await.unwrap(), 2);
    let streams = [Log::stream(1), Log::stream(2)];
    assert_eq!(store.streams(0, 0, 10).await.unwrap(), streams);
    assert_eq!(store.streams(0, 0, 1).await.unwrap(), streams[..1]);
    assert_eq!(store.streams(0, 1, 10).await.unwrap(), streams[1..]);
    assert_eq!(store.streams(1, 1 << 48, 10).await.unwrap(), []);
    assert_eq!(store.streams(1, 0, 10).await.unwrap(), [], "nor those of another partition");
    let verified = chain::verify(store, 0, |_| {}).await.unwrap();
    assert_eq!((verified.events, verified.damage), (4, None));
}

fn outcome(command: u128) -> Outcome {
    Outcome {
        command_id: id(command),
        request_hash: [7; 32],
        stream: 1,
        version: 1,
        events: 1,
        rejection: Some(r#"{"code":"no"}"#.into()),
        at: Timestamp::from_millis(1_000),
    }
}

async fn a_batch_is_stored_whole_or_not_at_all(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    let first = of_events(vec![log.event(1, 1)], vec![Log::stream(1)]);
    let first = Batch { outcomes: vec![outcome(5)], ..first };
    store.append(log.lease, &first).await.unwrap();
    assert_eq!(store.outcome(id(5)).await.unwrap(), Some(outcome(5)));
    assert_eq!(store.outcome(id(6)).await.unwrap(), None);

    let before = log.head;
    let broken = Batch {
        outcomes: vec![outcome(6), outcome(5)],
        control: vec![control("kept", Some(b"x"), None)],
        ..of_events(vec![log.event(1, 2)], Vec::new())
    };
    let refused = store.append(log.lease, &broken).await;
    assert!(matches!(refused, Err(AppendError::Conflict(_))), "{refused:?}");
    assert_eq!(store.head(0).await.unwrap(), before);
    assert_eq!(store.outcome(id(6)).await.unwrap(), None);
    let row = store.control("space", b"kept", Timestamp::from_millis(0)).await.unwrap();
    assert_eq!(row, None);
    log.head = before;
    let again = of_events(vec![log.event(1, 2)], Vec::new());
    store.append(log.lease, &again).await.unwrap();
}

async fn conflicts_are_refused(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    let first = of_events(vec![log.event(1, 1)], vec![Log::stream(1)]);
    store.append(log.lease, &first).await.unwrap();
    let head = log.head;
    let change = |change: &dyn Fn(&mut StoredEvent)| {
        let mut fresh = Log { lease: log.lease, head };
        let mut event = (*fresh.event(1, 2)).clone();
        change(&mut event);
        of_events(vec![Arc::new(event)], Vec::new())
    };
    let first_id = first.events[0].event_id;
    for (what, batch) in [
        ("position", change(&|event| event.position = 1)),
        ("version", change(&|event| event.aggregate_version = 1)),
        ("event id", change(&|event| event.event_id = first_id)),
        ("stream", Batch { streams: vec![Log::stream(1)], ..change(&|_| {}) }),
    ] {
        let refused = store.append(log.lease, &batch).await;
        assert!(matches!(refused, Err(AppendError::Conflict(_))), "{what}: {refused:?}");
        assert_eq!(store.head(0).await.unwrap(), head, "{what}");
    }
    store.append(log.lease, &change(&|_| {})).await.unwrap();
}

async fn nothing_stays_of_events_before_a_conflict(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    let first = of_events(vec![log.event(1, 1)], vec![Log::stream(1)]);
    store.append(log.lease, &first).await.unwrap();
    let head = log.head;
    let sound = log.event(1, 2);
    let mut twice = (*log.event(1, 3)).clone();
    twice.event_id = first.events[0].event_id;
    let alone = of_events(vec![sound.clone(), Arc::new(twice)], Vec::new());
    let among_others = Batch { outcomes: vec![outcome(8)], ..alone.clone() };
    for batch in [alone, among_others] {
        let refused = store.append(log.lease, &batch).await;
        assert!(matches!(refused, Err(AppendError::Conflict(_))), "{refused:?}");
        assert_eq!(store.head(0).await.unwrap(), head);
        assert_eq!(store.event(sound.event_id).await.unwrap(), None);
        assert_eq!(store.outcome(id(8)).await.unwrap(), None);
    }
    store.append(log.lease, &of_events(vec![sound.clone()], Vec::new())).await.unwrap();
    assert_eq!(store.event(sound.event_id).await.unwrap(), Some(sound));
}

async fn partitions_do_not_mix(store: &dyn Store) {
    assert_eq!(store.partitions(), 2);
    let mut zero = Log::of(store, 0).await;
    let mut one = Log::of(store, 1).await;
    let far = (1i64 << 48) | 5;
    let a = zero.event(1, 1);
    store.append(zero.lease, &of_events(vec![a.clone()], vec![Log::stream(1)])).await.unwrap();
    let b = one.event(far, 1);
    store.append(one.lease, &of_events(vec![b.clone()], vec![Log::stream(far)])).await.unwrap();
    assert_eq!(store.read_from(0, 0, 10).await.unwrap(), [a]);
    assert_eq!(store.read_from(1, 0, 10).await.unwrap(), [b]);
    assert_eq!(store.head(1).await.unwrap().position, 1);
}

async fn an_old_lease_writes_nothing(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    let new = store.acquire(0).await.unwrap();
    assert!(new.epoch > log.lease.epoch);
    let events = of_events(vec![log.event(1, 1)], vec![Log::stream(1)]);
    let only_events = of_events(events.events.clone(), Vec::new());
    let rows = Batch { outcomes: vec![outcome(1)], ..Batch::default() };
    for batch in [&events, &only_events, &rows] {
        let refused = store.append(log.lease, batch).await;
        assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
    }
    assert_eq!(store.head(0).await.unwrap(), Head::default());
    assert_eq!(store.outcome(id(1)).await.unwrap(), None);
    store.append(new, &events).await.unwrap();
}

fn timer(name: &str, due: i64) -> Timer {
    let key =
        TimerKey { aggregate_type: "thing".into(), aggregate_id: id(1), name: name.to_owned() };
    Timer { key, due: Timestamp::from_millis(due) }
}

async fn timers_are_kept(store: &dyn Store) {
    let log = Log::of(store, 0).await;
    let write = async |timers| {
        store.append(log.lease, &Batch { timers, ..Batch::default() }).await.unwrap();
    };
    let due = async |now| {
        let due = store.timers_due(0, Timestamp::from_millis(now), 10).await.unwrap();
        due.into_iter().map(|timer| timer.key.name).collect::<Vec<_>>()
    };
    write(vec![
        TimerWrite::Set(timer("b", 200)),
        TimerWrite::Set(timer("a", 100)),
        TimerWrite::Set(timer("c", 300)),
        TimerWrite::Clear(timer("c", 0).key),
    ])
    .await;
    assert_eq!(store.next_timer(0).await.unwrap(), Some(Timestamp::from_millis(100)));
    assert_eq!(store.next_timer(1).await.unwrap(), None);
    assert_eq!(due(99).await, Vec::<String>::new());
    assert_eq!(due(1_000).await, ["a", "b"]);
    assert_eq!(store.timer(&timer("b", 0).key).await.unwrap(), Some(Timestamp::from_millis(200)));
    assert_eq!(store.timer(&timer("c", 0).key).await.unwrap(), None, "it was cleared");
    // Set anew since it fired: it is another one.
    write(vec![TimerWrite::Set(timer("a", 400)), TimerWrite::Fired(timer("a", 100))]).await;
    assert_eq!(due(1_000).await, ["b", "a"]);
    write(vec![TimerWrite::Fired(timer("a", 400)), TimerWrite::Fired(timer("b", 200))]).await;
    assert_eq!(due(1_000).await, Vec::<String>::new());
}

fn letter(position: u64, key: u128, state: LetterState) -> Letter {
    Letter {
        subscription: "mail".into(),
        partition: 0,
        key: id(key),
        position,
        event_id: id(position.into()),
        event_type: "thing.changed".into(),
        aggregate_id: id(key),
        state,
        class: "permanent".into(),
        error: "no such \"thing\"".into(),
        attempts: 4,
        first_failed_at: Timestamp::from_millis(1),
        last_failed_at: Timestamp::from_millis(2),
    }
}

async fn deliveries_are_kept(store: &dyn Store) {
    let log = Log::of(store, 0).await;
    let checkpoint =
        |lane, lanes, position| Checkpoint { subscription: "mail".into(), lane, lanes, position };
    let checkpoints = vec![checkpoint(0, 2, 5), checkpoint(1, 2, 7)];
    let letters = vec![
        LetterWrite::Put(letter(6, 1, LetterState::Dead)),
        LetterWrite::Put(letter(8, 1, LetterState::Waiting)),
        LetterWrite::Put(letter(9, 2, LetterState::Dead)),
    ];
    let batch = Batch { checkpoints: checkpoints.clone(), letters, ..Batch::default() };
    store.append(log.lease, &batch).await.unwrap();
    assert_eq!(store.checkpoints("mail", 0).await.unwrap(), checkpoints);
    assert_eq!(store.checkpoints("mail", 1).await.unwrap(), []);
    let list = async |filter: LetterFilter| {
        let letters = store.letters(0, &filter, 10).await.unwrap();
        letters.into_iter().map(|letter| letter.position).collect::<Vec<_>>()
    };
    assert_eq!(list(LetterFilter::default()).await, [6, 8, 9]);
    let mine = LetterFilter { key: Some(id(1)), after: 6, ..LetterFilter::default() };
    assert_eq!(list(mine).await, [8]);
    let other = LetterFilter { subscription: Some("other".to_owned()), ..LetterFilter::default() };
    assert_eq!(list(other).await, Vec::<u64>::new());
    let dead = LetterFilter { state: Some(LetterState::Dead), ..LetterFilter::default() };
    assert_eq!(list(dead).await, [6, 9]);
    let transient = LetterFilter { class: Some("transient".into()), ..LetterFilter::default() };
    assert_eq!(list(transient).await, Vec::<u64>::new());
    let changed =
        LetterFilter { event_type: Some("thing.changed".into()), ..LetterFilter::default() };
    assert_eq!(list(changed).await, [6, 8, 9]);
    for (behind, rest) in
        [(("mail", 6), vec![8, 9]), (("mai", 99), vec![6, 8, 9]), (("mail-sender", 0), Vec::new())]
    {
        let behind = Some((behind.0.to_owned(), behind.1));
        assert_eq!(list(LetterFilter { behind, ..LetterFilter::default() }).await, rest);
    }
    let first = store.letters(0, &LetterFilter::default(), 1).await.unwrap();
    assert_eq!(first, [letter(6, 1, LetterState::Dead)]);
    let remove = LetterWrite::Remove { subscription: "mail".into(), position: 6 };
    let fewer = vec![checkpoint(0, 1, 6)];
    let batch = Batch { checkpoints: fewer.clone(), letters: vec![remove], ..Batch::default() };
    store.append(log.lease, &batch).await.unwrap();
    assert_eq!(store.checkpoints("mail", 0).await.unwrap(), fewer);
    assert_eq!(list(LetterFilter::default()).await, [8, 9]);
}

async fn keys_are_kept_and_destroyed(store: &dyn Store) {
    let log = Log::of(store, 0).await;
    let key = |wrapped: &[u8]| PersonKey { subject: id(1), wrapped: wrapped.to_vec() };
    let write = async |keys, destroyed_keys| {
        store.append(log.lease, &Batch { keys, destroyed_keys, ..Batch::default() }).await
    };
    write(vec![key(b"one")], Vec::new()).await.unwrap();
    write(vec![key(b"one")], Vec::new()).await.unwrap();
    let refused = write(vec![key(b"two")], Vec::new()).await;
    assert!(matches!(refused, Err(AppendError::Conflict(_))), "{refused:?}");
    assert_eq!(store.person_key(id(1)).await.unwrap(), Some(key(b"one")));
    assert_eq!(store.person_key(id(2)).await.unwrap(), None);
    write(Vec::new(), vec![id(1)]).await.unwrap();
    assert_eq!(store.person_key(id(1)).await.unwrap(), Some(key(b"")));
    let refused = write(vec![key(b"one")], Vec::new()).await;
    assert!(matches!(refused, Err(AppendError::Conflict(_))), "a destroyed key stays so");
}

fn control(key: &str, value: Option<&[u8]>, expires: Option<i64>) -> ControlWrite {
    ControlWrite {
        space: "space",
        key: key.as_bytes().to_vec(),
        value: value.map(<[u8]>::to_vec),
        expires_at: expires.map(Timestamp::from_millis),
    }
}

async fn control_rows_expire(store: &dyn Store) {
    let log = Log::of(store, 0).await;
    let rows = vec![
        control("a", Some(b"1"), None),
        control("b", Some(b"2"), Some(500)),
        control("c", Some(b"3"), None),
        control("c", None, None),
    ];
    let batch = Batch { control: rows, outcomes: vec![outcome(1)], ..Batch::default() };
    store.append(log.lease, &batch).await.unwrap();
    let get = async |key: &str, now| {
        store.control("space", key.as_bytes(), Timestamp::from_millis(now)).await.unwrap()
    };
    assert_eq!(get("a", 0).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(get("b", 499).await.as_deref(), Some(&b"2"[..]));
    assert_eq!(get("b", 500).await, None);
    assert_eq!(get("c", 0).await, None);
    let at = Timestamp::from_millis;
    assert_eq!(store.purge(at(1_000), at(499)).await.unwrap(), 0);
    assert_eq!(store.purge(at(1_001), at(500)).await.unwrap(), 2);
    assert_eq!(get("b", 0).await, None);
    assert_eq!(store.outcome(id(1)).await.unwrap(), None);
}

async fn snapshots_and_quarantines_are_kept(store: &dyn Store) {
    let log = Log::of(store, 0).await;
    let snapshot = |version| Snapshot { stream: 1, version, shape: 3, state: "{}".to_owned() };
    let record = Quarantine {
        aggregate_type: "thing".into(),
        aggregate_id: id(1),
        command_id: id(2),
        command: "ChangeThing".to_owned(),
        error_id: id(3),
        since: Timestamp::from_millis(4),
    };
    for version in [10, 20] {
        let batch = Batch {
            snapshots: vec![snapshot(version)],
            quarantines: vec![record.clone()],
            ..Batch::default()
        };
        store.append(log.lease, &batch).await.unwrap();
    }
    let newest = async |stream, upto| store.snapshot(stream, upto).await.unwrap();
    assert_eq!(newest(1, u64::MAX).await, Some(snapshot(20)));
    assert_eq!(newest(1, 19).await, Some(snapshot(10)));
    assert_eq!((newest(1, 9).await, newest(2, u64::MAX).await), (None, None));
    assert_eq!(store.quarantined(0).await.unwrap(), [record]);
    let released = vec![("thing".into(), id(1))];
    store.append(log.lease, &Batch { released, ..Batch::default() }).await.unwrap();
    assert_eq!(store.quarantined(0).await.unwrap(), []);
}

/// However long a stream is: few snapshots, and none is far from any version.
async fn older_snapshots_are_thinned_out(store: &dyn Store) {
    let log = Log::of(store, 0).await;
    let snapshot = |version| Snapshot { stream: 1, version, shape: 3, state: "{}".to_owned() };
    let last = 150 * 101;
    for version in (1..=150).map(|n| n * 101) {
        let batch = Batch { snapshots: vec![snapshot(version)], ..Batch::default() };
        store.append(log.lease, &batch).await.unwrap();
        let newest = store.snapshot(1, u64::MAX).await.unwrap();
        assert_eq!(newest, Some(snapshot(version)));
    }
    let (mut kept, mut upto) = (Vec::new(), u64::MAX);
    while let Some(snapshot) = store.snapshot(1, upto).await.unwrap() {
        kept.push(snapshot.version);
        upto = snapshot.version - 1;
    }
    assert!((64..=129).contains(&kept.len()), "{kept:?}");
    kept.push(0);
    let furthest = kept.windows(2).map(|pair| pair[0] - pair[1]).max();
    assert!(furthest <= Some(last / 64 + 101), "{kept:?}");
}

async fn large_batches_are_stored(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    let mut version = 0;
    for size in [1, 2, 7, 499, 500, 501, 1_200] {
        let events = (0..size)
            .map(|_| {
                version += 1;
                log.event(1, version)
            })
            .collect();
        let streams = if size == 1 { vec![Log::stream(1)] } else { Vec::new() };
        store.append(log.lease, &of_events(events, streams)).await.unwrap();
    }
    let verified = chain::verify(store, 0, |_| {}).await.unwrap();
    assert_eq!((verified.events, verified.damage), (2_710, None));
}

/// An event that was changed after it was hashed stands for one that was changed where it lies.
async fn what_is_damaged_is_given_to_nobody(store: &dyn Store) {
    let mut log = Log::of(store, 0).await;
    let mut events = vec![log.event(1, 1), log.event(2, 1), log.event(1, 2), log.event(1, 3)];
    events[1] = Arc::new(StoredEvent { data: r#"{"a":"b"}"#.into(), ..(*events[1]).clone() });
    let batch = of_events(events.clone(), vec![Log::stream(1), Log::stream(2)]);
    store.append(log.lease, &batch).await.unwrap();

    assert_eq!(store.read_from(0, 0, 10).await.unwrap(), events[..1]);
    let damaged =
        |read: Result<_, Error>| matches!(read, Err(Error::Damaged(what)) if what.contains("0:2"));
    assert!(damaged(store.read_from(0, 1, 10).await));
    assert_eq!(store.read_from(0, 2, 10).await.unwrap(), events[2..]);
    assert!(damaged(store.read_stream(2, 0, 10).await));
    assert!(damaged(store.read_aggregate(id(2), 0, 10).await));
    assert!(damaged(store.by_correlation(&events[0].correlation_id, 10).await));
    assert!(damaged(
        store.event(events[1].event_id).await.map(|event| event.into_iter().collect())
    ));
    assert_eq!(store.read_stream(1, 0, 10).await.unwrap().len(), 3);
    let verified = chain::verify(store, 0, |_| {}).await.unwrap();
    assert_eq!((verified.events, verified.further), (3, Vec::new()));
    assert_eq!(verified.damage.unwrap().position, 2);
    assert!(matches!(chain::verify_tail(store, 0, 4).await, Err(Error::Damaged(_))));
    chain::verify_tail(store, 0, 2).await.unwrap();
}
