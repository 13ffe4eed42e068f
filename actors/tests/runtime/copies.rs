//! Journals that are moved from one store into another.

use std::time::Duration;

use souk_actors::command::ControlWrite;
use souk_actors::journal::copy::{Progress, copy};
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::{SqliteCopy, SqliteStore};
use souk_actors::journal::{
    Batch, Checkpoint, Error, Letter, LetterState, LetterWrite, Outcome, PersonKey, Quarantine,
    Snapshot, Store, Timer, TimerKey, TimerWrite,
};
use souk_actors::testing::postgres::Server;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use crate::account::{Rig, options};

const PARTITIONS: u16 = 2;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// One of everything that is kept beside events.
fn rows(partition: u16) -> Batch {
    let id = |number: u128| Uuid::from_u128(number + 100 * u128::from(partition));
    let key = TimerKey {
        aggregate_type: "account".into(),
        aggregate_id: id(1),
        name: "reminder".to_owned(),
    };
    let letter = Letter {
        subscription: "mail".into(),
        partition,
        key: id(1),
        position: 1,
        event_id: id(2),
        event_type: "account.changed".into(),
        aggregate_id: id(1),
        state: LetterState::Dead,
        class: "permanent".to_owned(),
        error: "no address".to_owned(),
        attempts: 4,
        first_failed_at: at(1),
        last_failed_at: at(2),
    };
    let outcome = |command: u128, rejection: Option<&str>| Outcome {
        command_id: id(command),
        request_hash: [7; 32],
        stream: 1,
        version: 1,
        events: 1,
        rejection: rejection.map(Into::into),
        at: at(5),
    };
    let control = |key: &[u8], expires: Option<i64>| ControlWrite {
        space: "space",
        key: [key, &[0, u8::try_from(partition).unwrap()]].concat(),
        value: Some(vec![0, 255, 1]),
        expires_at: expires.map(at),
    };
    let checkpoint = |lane| Checkpoint { subscription: "mail".into(), lane, lanes: 2, position: 1 };
    Batch {
        outcomes: vec![outcome(3, None), outcome(4, Some("{\"code\":\"no\"}"))],
        keys: vec![PersonKey { subject: id(5), wrapped: vec![1, 2, 3] }],
        destroyed_keys: vec![id(6)],
        timers: vec![TimerWrite::Set(Timer { key, due: at(9_000) })],
        checkpoints: vec![checkpoint(0), checkpoint(1)],
        letters: vec![LetterWrite::Put(letter)],
        snapshots: vec![Snapshot {
            stream: i64::from(partition) + 1,
            version: 1,
            shape: 1,
            state: "{}".to_owned(),
        }],
        control: vec![control(b"one", None), control(b"two", Some(4))],
        quarantines: vec![Quarantine {
            aggregate_type: "account".into(),
            aggregate_id: id(7),
            command_id: id(8),
            command: "change".to_owned(),
            error_id: id(9),
            since: at(3),
        }],
        ..Batch::default()
    }
}

/// A journal with events and one of everything else in each partition. Nobody serves it any more.
async fn filled() -> Rig {
    let rig = Rig::build(true, PARTITIONS, options(), |builder| builder).await;
    for account in 1..20 {
        for _ in 0..account {
            rig.change(account, 1).await.unwrap();
        }
    }
    assert!(rig.runtime.drain(Duration::from_secs(30)).await);
    for partition in 0..PARTITIONS {
        let lease = rig.store.acquire(partition).await.unwrap();
        rig.store.append(lease, &rows(partition)).await.unwrap();
    }
    rig
}

/// Everything in a journal, in an order that does not depend on the store.
async fn everything(store: &dyn Store) -> Vec<String> {
    let mut all = Vec::new();
    for partition in 0..store.partitions() {
        let events = store.read_from(partition, 0, 10_000).await.unwrap();
        assert!(!events.is_empty(), "partition {partition} has events");
        all.extend(events.iter().map(|event| format!("{event:?}")));
    }
    let (into, mut coming) = tokio::sync::mpsc::channel(1_000);
    store.dump(&into).await.unwrap();
    drop(into);
    while let Some((partition, batch)) = coming.recv().await {
        let mut add = |row: String| all.push(format!("{partition} {row}"));
        batch.outcomes.iter().for_each(|row| add(format!("{row:?}")));
        batch.keys.iter().for_each(|row| add(format!("{row:?}")));
        batch.destroyed_keys.iter().for_each(|row| add(format!("{row:?}")));
        batch.timers.iter().for_each(|row| add(format!("{row:?}")));
        batch.checkpoints.iter().for_each(|row| add(format!("{row:?}")));
        batch.letters.iter().for_each(|row| add(format!("{row:?}")));
        batch.snapshots.iter().for_each(|row| add(format!("{row:?}")));
        batch.control.iter().for_each(|row| add(format!("{row:?}")));
        batch.quarantines.iter().for_each(|row| add(format!("{row:?}")));
    }
    all.sort();
    all
}

fn at_database(url: &str) -> PostgresOptions {
    PostgresOptions::new(url).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_is_the_same_in_the_other_store_and_back() {
    let rig = filled().await;
    let (source, folder) = (&*rig.store, rig.folder.as_ref().unwrap());
    let before = everything(source).await;
    let url = Server::shared().create_database().await;

    let target = PostgresStore::open_for_copy(at_database(&url), PARTITIONS).await.unwrap();
    let (mut copied, mut verified) = (0, 0);
    let done = copy(source, &target, |progress| match progress {
        Progress::Copied(events) => copied = events,
        Progress::Verified(events) => verified = events,
    });
    let done = done.await.unwrap();
    assert!(done.events >= (1..20).sum(), "{done:?}");
    assert!(done.rows >= 2 * 11, "{done:?}");
    assert_eq!((copied, verified), (done.events, done.events));
    target.finish_copy().await.unwrap();

    let moved = PostgresStore::open(at_database(&url), None).await.unwrap();
    assert_eq!(everything(&moved).await, before);
    let refused = PostgresStore::open_for_copy(at_database(&url), PARTITIONS).await.unwrap_err();
    assert!(refused.to_string().contains("journal"), "{refused}");

    let path = folder.path().join("back.db");
    let back = SqliteCopy::begin(&path, PARTITIONS).await.unwrap();
    copy(&moved, back.store(), |_| ()).await.unwrap();
    back.finish().await.unwrap();
    let refused = SqliteCopy::begin(&path, PARTITIONS).await.unwrap_err();
    assert!(refused.to_string().contains("already"), "{refused}");
    let back = SqliteStore::open(&path, PARTITIONS).await.unwrap();
    assert_eq!(everything(&back).await, before);
    assert_eq!(back.check_storage().await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_copy_is_no_journal_and_is_begun_anew() {
    let rig = filled().await;
    let (source, folder) = (&*rig.store, rig.folder.as_ref().unwrap());
    let url = Server::shared().create_database().await;
    let target = PostgresStore::open_for_copy(at_database(&url), PARTITIONS).await.unwrap();
    copy(source, &target, |_| ()).await.unwrap();
    // All is there, but nobody has said that it is.
    target.close().await;
    drop(target);
    for refused in [
        PostgresStore::open(at_database(&url), None).await.map(drop),
        PostgresStore::open_read_only(at_database(&url)).await.map(drop),
    ] {
        let Err(Error::Mismatch(what)) = refused else { panic!("{refused:?}") };
        assert!(what.contains("not finished"), "{what}");
    }
    let target = PostgresStore::open_for_copy(at_database(&url), PARTITIONS).await.unwrap();
    copy(source, &target, |_| ()).await.unwrap();
    target.finish_copy().await.unwrap();
    let moved = PostgresStore::open(at_database(&url), None).await.unwrap();
    assert_eq!(everything(&moved).await, everything(source).await);

    let path = folder.path().join("half.db");
    let half = SqliteCopy::begin(&path, PARTITIONS).await.unwrap();
    copy(source, half.store(), |_| ()).await.unwrap();
    drop(half);
    assert!(!path.exists(), "it is not where a journal is looked for");
    let whole = SqliteCopy::begin(&path, PARTITIONS).await.unwrap();
    copy(source, whole.store(), |_| ()).await.unwrap();
    whole.finish().await.unwrap();
    let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("copying")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_not_copied() {
    let rig = filled().await;
    let (source, folder) = (&*rig.store, rig.folder.as_ref().unwrap());
    let other = SqliteStore::open(&folder.path().join("other.db"), 3).await.unwrap();
    let refused = copy(source, &other, |_| ()).await.unwrap_err();
    assert!(refused.to_string().contains("2 partitions"), "{refused}");
    let refused = copy(source, source, |_| ()).await.unwrap_err();
    assert!(refused.to_string().contains("has events already"), "{refused}");
}
