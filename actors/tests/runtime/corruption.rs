//! Stored rows that are not what was written.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use souk_actors::command::{CommandError, Unavailable};
use souk_actors::event::StoredEvent;
use souk_actors::journal::memory::MemoryStore;
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::journal::{
    Batch, Checkpoint, Error, Lease, Letter, LetterFilter, LetterState, LetterWrite, Store, Timer,
    TimerKey, TimerWrite, chain,
};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{Handler, Subscription};
use souk_actors::testing::EVENT_COLUMNS;
use souk_actors::world::Timestamp;
use sqlx::{AssertSqlSafe, Connection, Row as _, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::account::{AccountCommand, Rig, options};

const EVENTS: u64 = 12;
/// More than a start looks at.
const LATER: u64 = 120;

/// A journal of three accounts, and a way past the store to its file.
struct Tampered {
    rig: Rig,
    raw: SqliteConnection,
}

impl Tampered {
    async fn new() -> Self {
        let rig = Rig::on_sqlite().await;
        for n in 0..EVENTS {
            rig.change(u128::from(n % 3), 5).await.unwrap();
        }
        let raw = raw(rig.folder.as_ref().unwrap()).await;
        Self { rig, raw }
    }

    /// Flips one bit of a column of the event at a position, and says where that left it; the same
    /// again flips it back.
    async fn flip(&mut self, seq: i64, column: &str, bit: usize) -> Option<i64> {
        let read = format!(
            "SELECT typeof({column}), {column}, CAST({column} AS BLOB) FROM events WHERE seq = $1"
        );
        let row =
            sqlx::query(AssertSqlSafe(read)).bind(seq).fetch_one(&mut self.raw).await.unwrap();
        let update = |set: &str| {
            AssertSqlSafe(format!("UPDATE OR IGNORE events SET {column} = {set} WHERE seq = $2"))
        };
        let kind: String = row.get(0);
        let mut moved = seq;
        let changed = if kind == "integer" {
            let flipped = row.get::<i64, _>(1) ^ (1 << (bit % 63));
            if column == "seq" {
                moved = flipped;
            }
            sqlx::query(update("$1")).bind(flipped).bind(seq).execute(&mut self.raw).await
        } else {
            let mut bytes: Vec<u8> = row.get(2);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let set = if kind == "text" { "CAST($1 AS TEXT)" } else { "$1" };
            sqlx::query(update(set)).bind(bytes).bind(seq).execute(&mut self.raw).await
        };
        // Ignored: the bit cannot be flipped, since another event is there already.
        (changed.unwrap().rows_affected() == 1).then_some(moved)
    }
}

async fn raw(folder: &TempDir) -> SqliteConnection {
    let path = folder.path().join("journal.db");
    let url = format!("sqlite://{}", path.display());
    let mut raw = SqliteConnection::connect(&url).await.unwrap();
    for trigger in ["events_are_final", "events_are_kept"] {
        let drop = format!("DROP TRIGGER IF EXISTS {trigger}");
        sqlx::query(AssertSqlSafe(drop)).execute(&mut raw).await.unwrap();
    }
    raw
}

/// What reads of every kind give of a journal whose event at `position` was changed: never that
/// event, and never a shorter history of its account.
async fn is_noticed(
    store: &dyn Store,
    position: u64,
    whole: &[Arc<StoredEvent>],
) -> Result<(), String> {
    let original = &whole[usize::try_from(position).unwrap() - 1];
    let (before, behind) = whole.split_at(usize::try_from(position).unwrap() - 1);
    let prefix = store.read_from(0, 0, 100).await;
    match prefix {
        Ok(events) if events == before => {}
        Err(Error::Damaged(_)) if before.is_empty() => {}
        other => return Err(format!("read from the start: {other:?}")),
    }
    let here = store.read_from(0, position - 1, 100).await;
    if !matches!(here, Err(Error::Damaged(_))) && here.as_ref().is_ok_and(|page| !page.is_empty()) {
        return Err(format!("read from there: {here:?}"));
    }
    match store.event(original.event_id).await {
        Ok(Some(event)) => return Err(format!("found by its id: {event:?}")),
        Ok(None) | Err(Error::Damaged(_)) => {}
        Err(other) => return Err(other.to_string()),
    }
    let history = store.read_stream(original.stream, 0, 100).await;
    if let Ok(history) = &history
        && history.iter().any(|event| !whole.contains(event))
    {
        return Err(format!("in its stream: {history:?}"));
    }
    let verified = chain::verify(store, 0, |_| {}).await.map_err(|error| error.to_string())?;
    let first = verified.damage.as_ref().map(|damage| damage.position);
    if first != Some(position) || verified.events > behind.len() as u64 + before.len() as u64 {
        return Err(format!("verified: {verified:?}"));
    }
    Ok(())
}

#[test]
fn whatever_bit_of_whatever_column_is_flipped_it_is_noticed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let tampered = runtime.block_on(Tampered::new());
    let store = tampered.rig.store.clone();
    let whole = runtime.block_on(store.read_from(0, 0, 100)).unwrap();
    assert_eq!(whole.len() as u64, EVENTS);
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    // The last event may be hidden by its own number: then the log is shorter, and whole.
    let strategy = (1..EVENTS, 0..EVENT_COLUMNS.len(), 0_usize..4_096);
    let tampered = tokio::sync::Mutex::new(tampered);
    TestRunner::new(config)
        .run(&strategy, |(position, column, bit)| {
            let column = EVENT_COLUMNS[column];
            let seq = i64::try_from(position).unwrap();
            runtime.block_on(async {
                let mut tampered = tampered.lock().await;
                let Some(moved) = tampered.flip(seq, column, bit).await else { return Ok(()) };
                let noticed = is_noticed(&*store, position, &whole).await;
                tampered.flip(moved, column, bit).await.expect("it is flipped back");
                noticed
                    .map_err(|what| TestCaseError::fail(format!("{column} of {position}: {what}")))
            })
        })
        .unwrap();
    let verified = runtime.block_on(chain::verify(&*store, 0, |_| {})).unwrap();
    assert_eq!((verified.events, verified.damage), (EVENTS, None));
}

/// The same for the store in memory, whose rows nobody can get at: they are changed on their way in.
#[test]
fn and_so_it_is_in_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let whole = runtime.block_on(async {
        let rig = Rig::build(false, 1, options(), |builder| builder).await;
        for n in 0..EVENTS {
            rig.change(u128::from(n % 3), 5).await.unwrap();
        }
        rig.store.read_from(0, 0, 100).await.unwrap()
    });
    let strategy = (0..whole.len(), 0..10_usize, 0..8_usize);
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&strategy, |(index, column, bit)| {
            let mut events = whole.clone();
            events[index] = Arc::new(flipped(&events[index], column, bit));
            runtime.block_on(async {
                let store = MemoryStore::new(1);
                let lease = store.acquire(0).await.unwrap();
                let batch = Batch { events, ..Batch::default() };
                store.append(lease, &batch).await.unwrap();
                let noticed = is_noticed(&store, index as u64 + 1, &whole).await;
                noticed.map_err(TestCaseError::fail)
            })
        })
        .unwrap();
}

/// With one bit changed in what a store does not look at when it is given an event.
fn flipped(event: &StoredEvent, column: usize, bit: usize) -> StoredEvent {
    let mut event = event.clone();
    let text = |text: &Arc<str>| {
        let mut bytes = text.as_bytes().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Arc::from(String::from_utf8(bytes).unwrap())
    };
    match column {
        0 => event.aggregate_type = text(&event.aggregate_type),
        1 => event.aggregate_id = Uuid::from_u128(event.aggregate_id.as_u128() ^ (1 << bit)),
        2 => event.event_type = text(&event.event_type),
        3 => event.major ^= 1 << bit,
        4 => event.minor ^= 1 << bit,
        5 => event.correlation_id = text(&event.correlation_id),
        6 => event.causation_id = text(&event.causation_id),
        7 => event.data = text(&event.data),
        8 => event.metadata = text(&event.metadata),
        _ => event.hash[bit * 4] ^= 1,
    }
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_aggregate_is_quarantined_at_once_and_alone_until_it_is_mended() {
    let Tampered { rig, mut raw } = Tampered::new().await;
    let rig = restarted(rig).await;
    let victim = "UPDATE events SET data = replace(data, '5', $1) WHERE seq = 4";
    sqlx::query(victim).bind("6").execute(&mut raw).await.unwrap();
    let refused = rig.change(0, 1).await.unwrap_err();
    let record = rig.runtime.quarantined().remove(0);
    let error_id = souk_actors::command::ErrorId(record.error_id);
    assert_eq!(refused, CommandError::Unavailable(Unavailable::Quarantined(error_id)));
    assert_eq!(rig.balance(1).await, 20, "others notice nothing");
    sqlx::query("UPDATE events SET data = replace(data, '6', $1) WHERE seq = 4")
        .bind("5")
        .execute(&mut raw)
        .await
        .unwrap();
    assert!(rig.change(0, 1).await.is_err(), "until it is released");
    assert!(rig.release(record.aggregate_id).await);
    assert_eq!(rig.change(0, 1).await.unwrap().value, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_with_a_hole_is_not_folded() {
    let Tampered { rig, mut raw } = Tampered::new().await;
    let rig = restarted(rig).await;
    let all = "stream IN (SELECT stream FROM events WHERE seq = 3)";
    for (account, delete) in [(0, "seq = 4"), (1, "seq = 2"), (2, all)] {
        let delete = format!("DELETE FROM events WHERE {delete}");
        sqlx::query(AssertSqlSafe(delete)).execute(&mut raw).await.unwrap();
        let refused = rig.change(account, 1).await;
        let quarantined =
            matches!(refused, Err(CommandError::Unavailable(Unavailable::Quarantined(_))));
        assert!(quarantined, "{account}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_ignored_and_one_without_its_events_is_not_believed() {
    let rig = Rig::on_sqlite().await;
    for _ in 0..110 {
        rig.change(1, 5).await.unwrap();
    }
    let mut raw = raw(rig.folder.as_ref().unwrap()).await;
    let changed = sqlx::query(
        "UPDATE snapshots SET state = replace(state, '\"balance\":500', '\"balance\":900')",
    );
    assert_eq!(changed.execute(&mut raw).await.unwrap().rows_affected(), 1);
    let state: String =
        sqlx::query_scalar("SELECT state FROM snapshots").fetch_one(&mut raw).await.unwrap();
    assert!(state.contains("900"), "{state}");
    let rig = restarted(rig).await;
    assert_eq!(rig.balance(1).await, 550);

    let rig = restarted(rig).await;
    let events = "DELETE FROM events WHERE aggregate_version >= 100";
    sqlx::query(events).execute(&mut raw).await.unwrap();
    sqlx::query(
        "UPDATE snapshots SET state = replace(state, '\"balance\":900', '\"balance\":500')",
    )
    .execute(&mut raw)
    .await
    .unwrap();
    let refused = rig.change(1, 1).await;
    assert!(matches!(refused, Err(CommandError::Unavailable(Unavailable::Quarantined(_)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_end_is_refused_at_the_start() {
    let Tampered { rig, mut raw } = Tampered::new().await;
    sqlx::query("UPDATE events SET timestamp = timestamp + 1 WHERE seq = 12")
        .execute(&mut raw)
        .await
        .unwrap();
    let refused = chain::verify_tail(&*rig.store, 0, 100).await.unwrap_err();
    assert!(refused.to_string().contains("0:12"), "{refused}");
}

/// Notes the positions of what it is given.
struct Positions(Arc<Mutex<Vec<u64>>>);

#[async_trait]
impl Handler for Positions {
    async fn handle(&self, _: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        self.0.lock().unwrap().push(event.position);
        Ok(())
    }
}

/// S1-51: what a subscription cannot read it does not pass: it says so, makes no letter of it, and
/// goes on by itself once the row is mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_waits_in_front_of_a_damaged_row() {
    let mut tampered = Tampered::new().await;
    // A start looks at the last hundred.
    for n in 0..LATER {
        tampered.rig.change(u128::from(n % 3), 5).await.unwrap();
    }
    tampered.flip(7, "data", 3).await.unwrap();
    let Tampered { rig, raw } = tampered;
    assert!(rig.runtime.drain(Duration::from_secs(5)).await);
    let Rig { store, folder, .. } = rig;
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let handler = Arc::new(Positions(seen.clone()));
    let subscription = Subscription::handler("notes", "tests", &["account.*"], handler);
    let rig = Rig::on(store, folder, options(), |builder| builder.subscribe(subscription)).await;
    let mut tampered = Tampered { rig, raw };
    let all = tampered.rig.runtime.subscriptions();
    let waited = async {
        while all.list()[0].state != "damaged" || seen.lock().unwrap().len() < 6 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited).await.expect("it says so");
    let sorted = || {
        let mut seen = seen.lock().unwrap().clone();
        seen.sort_unstable();
        seen
    };
    assert_eq!(sorted(), (1..=6).collect::<Vec<_>>());
    assert_eq!(tampered.rig.runtime.dead_letters().list(None, 10).await.unwrap(), []);
    tampered.flip(7, "data", 3).await.unwrap();
    assert!(tampered.rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
    assert_eq!(sorted(), (1..=EVENTS + LATER).collect::<Vec<_>>());
    assert_eq!(tampered.rig.runtime.subscriptions().list()[0].state, "running");
}

/// The same journal with nothing in memory.
async fn restarted(rig: Rig) -> Rig {
    rig.runtime.drain(Duration::from_secs(5)).await;
    let Rig { runtime, store, folder, .. } = rig;
    drop((runtime, store));
    let folder = folder.unwrap();
    let path = folder.path().join("journal.db");
    let store = loop {
        // The old store's lock goes with its last actor.
        if let Ok(store) = SqliteStore::open(&path, 1).await {
            break store;
        }
        tokio::task::yield_now().await;
    };
    Rig::on(Arc::new(store), Some(folder), options(), |builder| builder).await
}

/// Every row that something rests on: damaged, it is named, and not acted on.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_control_rows_are_noticed_and_not_acted_on() {
    let rig = Rig::on_sqlite().await;
    let folder = rig.folder.as_ref().unwrap();
    let store = SqliteStore::open_read_only(&folder.path().join("journal.db")).await.unwrap();
    let mut raw = raw(folder).await;
    seed_control_rows(&rig).await;
    assert_eq!(store.check_storage().await.unwrap(), [""; 0]);
    let flips = [
        ("outcomes", "version", "the outcome of command"),
        ("outcomes", "at", "the outcome of command"),
        ("timers", "due", "timer late of account"),
        ("checkpoints", "position", "the checkpoint of some"),
        ("checkpoints", "lane", "the checkpoint of some"),
        ("letters", "attempts", "the letter of some"),
        ("letters", "first_failed_at", "the letter of some"),
    ];
    for (table, column, what) in flips {
        let flip = format!("UPDATE {table} SET {column} = ({column} | 4) - ({column} & 4)");
        let changed = sqlx::query(AssertSqlSafe(flip.clone())).execute(&mut raw).await.unwrap();
        assert_eq!(changed.rows_affected(), 1, "{table}");
        let found = store.check_storage().await.unwrap();
        assert!(found.len() == 1 && found[0].contains(what), "{table}.{column}: {found:?}");
        let never = Timestamp::from_millis(i64::MAX);
        let damaged = match table {
            "outcomes" => matches!(
                rig.accounts().send(id(1), AccountCommand::Change(5), rig.keyed(77), |_| ()).await,
                Err(CommandError::Unavailable(Unavailable::Quarantined(_)))
            ),
            "timers" => store.timers_due(0, never, 9).await.unwrap().is_empty(),
            "checkpoints" => matches!(store.checkpoints("some", 0).await, Err(Error::Damaged(_))),
            _ => matches!(
                store.letters(0, &LetterFilter::default(), 9).await,
                Err(Error::Damaged(_))
            ),
        };
        assert!(damaged, "{table}.{column}");
        sqlx::query(AssertSqlSafe(flip)).execute(&mut raw).await.unwrap();
    }
    assert_eq!(store.check_storage().await.unwrap(), [""; 0]);
    let again = rig.accounts().send(id(1), AccountCommand::Change(5), rig.keyed(77), |_| ()).await;
    assert!(again.unwrap().replayed);
}

/// One row each of outcomes, timers, checkpoints and letters.
async fn seed_control_rows(rig: &Rig) {
    let once = rig.accounts().send(id(1), AccountCommand::Change(5), rig.keyed(77), |_| ()).await;
    once.unwrap();
    let key =
        TimerKey { aggregate_type: "account".into(), aggregate_id: id(1), name: "late".to_owned() };
    let due = Timestamp::from_millis(4_000_000_000_000);
    let at = Timestamp::from_millis(1_000);
    let letter = Letter {
        subscription: "some".into(),
        partition: 0,
        key: id(1),
        position: 1,
        event_id: id(2),
        event_type: "account.changed".into(),
        aggregate_id: id(1),
        state: LetterState::Dead,
        class: "permanent".to_owned(),
        error: "it cannot".to_owned(),
        attempts: 1,
        first_failed_at: at,
        last_failed_at: at,
    };
    let checkpoint = Checkpoint { subscription: "some".into(), lane: 0, lanes: 1, position: 1 };
    let rows = Batch {
        timers: vec![TimerWrite::Set(Timer { key, due })],
        checkpoints: vec![checkpoint],
        letters: vec![LetterWrite::Put(letter)],
        ..Batch::default()
    };
    // Past the writer, but on its lease: nothing else is under way.
    let epoch = {
        let mut raw = raw(rig.folder.as_ref().unwrap()).await;
        let epoch = sqlx::query_scalar("SELECT epoch FROM leases WHERE partition = 0");
        let epoch: i64 = epoch.fetch_one(&mut raw).await.unwrap();
        u64::try_from(epoch).unwrap()
    };
    rig.store.append(Lease { partition: 0, epoch }, &rows).await.unwrap();
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}
