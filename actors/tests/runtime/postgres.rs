//! The journal on PostgreSQL: leases, and what becomes of commands when connections break and the
//! database goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::command::{CommandError, Unavailable};
use souk_actors::event::StoredEvent;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::{AppendError, Batch, Error, Lease, PersonKey, Standing, Store, chain};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{Handler, Subscription};
use souk_actors::testing::postgres::{Options as ServerOptions, Server};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::account::{AccountCommand, Rig, options, postgres};
use crate::proxy::{Cut, Proxy};

async fn rig(url: &str, partitions: Option<u16>) -> Rig {
    rig_on(postgres(url, partitions).await.unwrap()).await
}

async fn rig_on(store: PostgresStore) -> Rig {
    Rig::on(Arc::new(store), None, options(), |builder| builder).await
}

/// A session of the test's own in the journal's schema.
async fn session(url: &str) -> PgConnection {
    let mut session = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("SET search_path = souk_journal").execute(&mut session).await.unwrap();
    session
}

async fn run(session: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(session).await.unwrap();
}

async fn ask<T>(session: &mut PgConnection, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(session).await.unwrap()
}

/// Waits until it is so, for as long as anybody would.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waited)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

/// Waits until so many statements about leases wait for somebody's lock.
async fn held_up(url: &str, statements: i64) {
    let mut session = session(url).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND wait_event_type = 'Lock' AND query LIKE '%leases%'";
    until("they wait", async || ask::<i64>(&mut session, waiting).await >= statements).await;
}

/// Every partition's log is whole: positions, versions and hashes without a gap.
async fn assert_whole(store: &dyn Store) -> u64 {
    let mut events = 0;
    for partition in 0..store.partitions() {
        let verified = chain::verify(store, partition, |_| {}).await.unwrap();
        assert_eq!(verified.damage, None, "partition {partition}");
        events += verified.events;
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_is_opened_again_as_it_was_made() {
    let url = Server::shared().create_database().await;
    let first = rig(&url, None).await;
    assert_eq!(first.runtime.partitions(), 8);
    for account in 1..=20 {
        first.change(account, 5).await.unwrap();
    }
    assert!(first.runtime.drain(Duration::from_secs(30)).await);
    let other = postgres(&url, Some(3)).await.unwrap_err();
    assert!(other.to_string().contains("created with partitions 8, not 3"), "{other}");

    let again = rig(&url, None).await;
    for account in 1..=20 {
        assert_eq!(again.balance(account).await, 5);
        again.change(account, 1).await.unwrap();
    }
    assert_eq!(assert_whole(&*again.store).await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_refuses_to_change_or_remove_events() {
    let url = Server::shared().create_database().await;
    let rig = rig(&url, Some(1)).await;
    rig.change(1, 5).await.unwrap();
    let mut session = session(&url).await;
    for statement in ["UPDATE events SET data = '{}'", "DELETE FROM events", "TRUNCATE events"] {
        let refused = sqlx::query(statement).execute(&mut session).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
    run(&mut session, "ALTER TABLE events DISABLE TRIGGER events_are_final").await;
    run(&mut session, "UPDATE events SET data = '{\"amount\":6}'").await;
    let verified = chain::verify(&*rig.store, 0, |_| {}).await.unwrap();
    assert_eq!(verified.damage.unwrap().position, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_a_view_as_on_sqlite() {
    let url = Server::shared().create_database().await;
    let rig = rig(&url, Some(1)).await;
    rig.change(1, 5).await.unwrap();
    let mut session = session(&url).await;
    let columns: String = ask(
        &mut session,
        "SELECT string_agg(column_name, ',' ORDER BY ordinal_position)
         FROM information_schema.columns WHERE table_name = 'outbox_events'",
    )
    .await;
    let expected = "id,aggregate_type,aggregate_id,event_type,payload,created_at,published_at,retry_count,last_error";
    assert_eq!(columns, expected);
    let created: String = ask(&mut session, "SELECT created_at FROM outbox_events").await;
    let stored = rig.store.read_from(0, 0, 1).await.unwrap();
    let created = souk_actors::world::Timestamp::parse(&created);
    assert_eq!(created, Some(stored[0].timestamp));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_in_use_can_be_looked_at_and_not_written() {
    let url = Server::shared().create_database().await;
    let nothing = PostgresStore::open_read_only(PostgresOptions::new(&url).unwrap()).await;
    assert!(nothing.unwrap_err().to_string().contains("no journal"), "and none was made");
    let rig = rig(&url, Some(1)).await;
    rig.change(1, 5).await.unwrap();
    let reader = PostgresStore::open_read_only(PostgresOptions::new(&url).unwrap()).await.unwrap();
    assert_eq!(assert_whole(&reader).await, 1);
    assert!(reader.acquire(0).await.is_err());
    let lease = Lease { partition: 0, epoch: 2 };
    assert!(matches!(reader.append(lease, &Batch::default()).await, Err(AppendError::Fenced)));
    rig.change(1, 5).await.unwrap();
    assert_eq!(assert_whole(&reader).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_forgets_commits_is_refused() {
    for setting in ["off", "local"] {
        let url = Server::shared().create_database().await;
        let name = url.rsplit('/').next().unwrap();
        let change = format!("ALTER DATABASE {name} SET synchronous_commit = {setting}");
        Server::shared().execute("postgres", &change).await;
        let refused = postgres(&url, None).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("synchronous_commit is {setting}")), "{refused}");
    }
    let wrong = PostgresOptions::new("mysql://somewhere/else").unwrap_err().to_string();
    assert!(wrong.contains("postgres://"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_stored_fails_its_own_command_alone() {
    let url = Server::shared().create_database().await;
    let rig = Arc::new(rig(&url, Some(1)).await);
    let commands = (1..=50u128).map(|account| {
        let rig = rig.clone();
        tokio::spawn(async move {
            let mut context = rig.context();
            if account % 10 == 0 {
                // PostgreSQL's text holds no zero bytes.
                context.correlation_id = "a\0b".into();
            }
            let command = AccountCommand::Change(1);
            rig.accounts().send(Uuid::from_u128(account), command, context, |_| ()).await
        })
    });
    for (account, sent) in (1..=50u128).zip(commands.collect::<Vec<_>>()) {
        let done = sent.await.unwrap();
        assert_eq!(done.is_ok(), account % 10 != 0, "{account}: {done:?}");
        let balance = i64::from(account % 10 != 0);
        assert_eq!(rig.balance(account).await, balance, "{account}");
    }
    assert_eq!(assert_whole(&*rig.store).await, 45);
}

/// What partitions store at the same time is one statement; what is wrong with one of them is not
/// the others' business. On one thread, where what is begun first comes first.
#[tokio::test(flavor = "current_thread")]
async fn what_partitions_store_at_once_has_each_its_own_outcome() {
    let url = Server::shared().create_database().await;
    let store = Arc::new(postgres(&url, Some(8)).await.unwrap());
    let mut leases = Vec::new();
    for partition in 0..8 {
        leases.push(store.acquire(partition).await.unwrap());
    }
    let key = |number: u128, wrapped: u8| PersonKey {
        subject: Uuid::from_u128(number),
        wrapped: vec![wrapped],
    };
    let append = |lease: Lease, key: PersonKey| {
        let store = store.clone();
        tokio::spawn(async move {
            store.append(lease, &Batch { keys: vec![key], ..Batch::default() }).await
        })
    };
    append(leases[0], key(99, 1)).await.unwrap().unwrap();
    // As many as can be on their way are held up, and the others come together behind them.
    let mut session = session(&url).await;
    run(&mut session, "BEGIN; SELECT FROM leases FOR UPDATE").await;
    let mut running = Vec::new();
    for (partition, lease) in (0..).zip(&leases) {
        let lease = match partition {
            6 => Lease { epoch: lease.epoch - 1, ..*lease },
            _ => *lease,
        };
        running.push(append(lease, if partition == 5 { key(99, 2) } else { key(partition, 1) }));
    }
    held_up(&url, 2).await;
    run(&mut session, "COMMIT").await;
    let mut outcomes = Vec::new();
    for one in running {
        outcomes.push(one.await.unwrap());
    }
    for (partition, outcome) in outcomes.iter().enumerate() {
        match partition {
            5 => assert!(matches!(outcome, Err(AppendError::Conflict(_))), "{outcome:?}"),
            6 => assert!(matches!(outcome, Err(AppendError::Fenced)), "{outcome:?}"),
            _ => assert!(outcome.is_ok(), "{partition}: {outcome:?}"),
        }
    }
    let keys: i64 = ask(&mut session, "SELECT count(*) FROM person_keys").await;
    assert_eq!(keys, 7);
    let transactions: i64 =
        ask(&mut session, "SELECT count(DISTINCT xmin::text) FROM person_keys").await;
    assert_eq!(transactions, 7, "each went by itself in the end");
    // With nothing wrong they are fewer transactions than batches.
    run(&mut session, "BEGIN; SELECT FROM leases FOR UPDATE").await;
    let mut running = Vec::new();
    for (number, lease) in (200..).zip(&leases) {
        running.push(append(*lease, key(number, 1)));
    }
    held_up(&url, 2).await;
    run(&mut session, "COMMIT").await;
    for one in running {
        one.await.unwrap().unwrap();
    }
    let again = "SELECT count(DISTINCT xmin::text) FROM person_keys \
        WHERE subject >= '00000000-0000-0000-0000-0000000000c8'";
    let transactions: i64 = ask(&mut session, again).await;
    assert!(transactions < 8, "{transactions}");
}

/// Whoever waits for the first lease holds none of the others: an append of several partitions that
/// has the first one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn leases_are_locked_in_the_order_of_their_partitions() {
    let url = Server::shared().create_database().await;
    let mut options = PostgresOptions::new(&url).unwrap();
    options.lease_ttl = Duration::from_secs(3);
    let store = PostgresStore::open(options, Some(8)).await.unwrap();
    let mut holding = session(&url).await;
    // The row of the first partition is not the first in the table, where any other way begins.
    loop {
        run(&mut holding, "UPDATE leases SET holder_name = holder_name WHERE partition = 0").await;
        run(&mut holding, "BEGIN; SELECT FROM leases WHERE partition = 0 FOR UPDATE").await;
        let first: i64 =
            ask(&mut holding, "SELECT partition FROM leases ORDER BY ctid LIMIT 1").await;
        if first != 0 {
            break;
        }
        run(&mut holding, "ROLLBACK").await;
    }
    held_up(&url, 1).await;
    let free = "SELECT count(*) FROM (SELECT FROM leases FOR UPDATE SKIP LOCKED) AS free";
    assert_eq!(ask::<i64>(&mut session(&url).await, free).await, 7);
    run(&mut holding, "COMMIT").await;
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_and_changes_nothing() {
    let url = Server::shared().create_database().await;
    let mut options = PostgresOptions::new(&url).unwrap();
    options.lease_ttl = Duration::from_secs(4);
    let first = PostgresStore::open(options.clone(), Some(2)).await.unwrap();
    let lease = first.acquire(0).await.unwrap();
    let refused = PostgresStore::open(options, Some(2)).await.unwrap_err();
    assert!(matches!(refused, Error::Locked(_)), "{refused}");
    let text = refused.to_string();
    let me = format!("process {}", std::process::id());
    assert!(text.contains(&me) && text.contains("stop it first"), "{text}");
    first.append(lease, &Batch::default()).await.unwrap();
    assert_eq!(first.standing(0), Standing::Held);
}

/// What a former holder can still do, once another process has opened the journal.
async fn assert_replaced(former: &PostgresStore, leases: &[Lease]) {
    for lease in leases {
        for batch in
            [Batch::default(), Batch { destroyed_keys: vec![Uuid::nil()], ..Batch::default() }]
        {
            let refused = former.append(*lease, &batch).await;
            assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
        }
        let refused = former.settle(*lease).await;
        assert!(matches!(refused, Err(Error::Locked(_))), "{refused:?}");
    }
    let why = former.lost(0).await;
    assert!(why.contains("has taken over"), "{why}");
    assert_eq!(former.standing(0), Standing::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_gone_or_late_is_replaced_and_stores_nothing_more() {
    let url = Server::shared().create_database().await;
    let mut session = session_of_new(&url).await;
    // What another process sees of a holder that crashed, and of one that sleeps.
    for how in [
        "SELECT pg_terminate_backend(backend_pid) FROM leases WHERE partition = 0",
        "UPDATE leases SET expires_at = clock_timestamp() - interval '1 second'",
    ] {
        let first = postgres(&url, None).await.unwrap();
        let leases = [first.acquire(0).await.unwrap(), first.acquire(1).await.unwrap()];
        let second = loop {
            // The holder may have renewed it in between: then the other one is refused, rightly.
            sqlx::query(how).execute(&mut session).await.unwrap();
            match postgres(&url, None).await {
                Ok(second) => break second,
                Err(Error::Locked(_)) => {}
                Err(other) => panic!("{other}"),
            }
        };
        assert_replaced(&first, &leases).await;
        let lease = second.acquire(0).await.unwrap();
        assert!(lease.epoch > leases[0].epoch);
        second.append(lease, &Batch::default()).await.unwrap();
        second.close().await;
    }
}

/// A session beside a new journal of two partitions, which nobody holds any more.
async fn session_of_new(url: &str) -> PgConnection {
    let store = postgres(url, Some(2)).await.unwrap();
    store.close().await;
    session(url).await
}

#[test]
fn starts_after_crashes_do_not_wait_for_the_lease() {
    // Everything of a process but its memory goes with its runtime: tasks, sessions.
    let process = || tokio::runtime::Runtime::new().unwrap();
    let url = process().block_on(Server::shared().create_database());
    for round in 1..=10 {
        let started = process();
        started.block_on(async {
            let mut options = PostgresOptions::new(&url).unwrap();
            options.lease_ttl = Duration::from_secs(3_600);
            let rig = rig_on(PostgresStore::open(options, Some(2)).await.unwrap()).await;
            assert_eq!(rig.change(1, 1).await.unwrap().value, round);
            let epoch: i64 = ask(&mut session(&url).await, "SELECT max(epoch) FROM leases").await;
            assert!(epoch >= round);
        });
        started.shutdown_background();
    }
}

/// Whoever replaces a process does not wait for it to notice; the process must notice by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_replaced_answers_nothing_and_says_so() {
    let url = Server::shared().create_database().await;
    let mut session = session_of_new(&url).await;
    let first = rig(&url, None).await;
    first.change(1, 5).await.unwrap();
    let end = "SELECT pg_terminate_backend(backend_pid) FROM leases WHERE partition = 0";
    let second = loop {
        sqlx::query(end).execute(&mut session).await.unwrap();
        if let Ok(second) = postgres(&url, None).await {
            break rig_on(second).await;
        }
    };
    second.change(1, 1).await.unwrap();
    let why = first.runtime.fatal().await;
    assert!(why.contains("partition"), "{why}");
    until("its reads are refused", async || {
        let id = Uuid::from_u128(1);
        let read = first.accounts().read(id, |account| account.balance).await;
        matches!(read, Err(CommandError::Unavailable(Unavailable::Journal)))
    })
    .await;
    let refused = first.change(1, 1).await.unwrap_err();
    assert!(matches!(refused, CommandError::Unavailable(Unavailable::Journal)), "{refused:?}");
    assert!(!first.runtime.health().journal_writable);
    // Nobody waits for a writer that may not write: the process can end.
    first.runtime.drain(Duration::from_secs(600)).await;
    assert_eq!(first.runtime.in_flight(), (0, 0));
    assert_eq!(second.balance(1).await, 6);
    assert_eq!(assert_whole(&*second.store).await, 2);
}

/// The whole process is stopped for longer than its lease holds: on this runtime nothing runs
/// meanwhile, the renewals included.
#[tokio::test(flavor = "current_thread")]
async fn after_a_sleep_nothing_is_answered_until_the_lease_is_confirmed() {
    let url = Server::shared().create_database().await;
    let mut options = PostgresOptions::new(&url).unwrap();
    options.lease_ttl = Duration::from_secs(3);
    let rig = rig_on(PostgresStore::open(options, Some(1)).await.unwrap()).await;
    rig.change(1, 5).await.unwrap();
    until("the lease is held", async || rig.store.standing(0) == Standing::Held).await;
    std::thread::sleep(Duration::from_millis(3_100));
    assert_eq!(rig.store.standing(0), Standing::Unconfirmed);
    let id = Uuid::from_u128(1);
    let read = rig.accounts().read(id, |account| account.balance).await;
    assert!(matches!(read, Err(CommandError::Unavailable(Unavailable::Journal))), "{read:?}");
    let changed = rig.change(1, 1).await;
    assert!(matches!(changed, Err(CommandError::Unavailable(Unavailable::Journal))), "{changed:?}");
    until("the lease is confirmed", async || rig.store.standing(0) == Standing::Held).await;
    assert_eq!(rig.balance(1).await, 5);
    assert_eq!(rig.change(1, 1).await.unwrap().value, 6);
}

/// Clients that change accounts by one until they are stopped, and what they were told.
struct Clients {
    rig: Arc<Rig>,
    stop: Arc<AtomicBool>,
    told: Arc<Vec<Told>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Told {
    accepted: AtomicI64,
    unknown: AtomicI64,
    refused: AtomicI64,
}

const ACCOUNTS: usize = 12;

impl Clients {
    fn start(rig: &Arc<Rig>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told: Arc<Vec<Told>> = Arc::new((0..ACCOUNTS).map(|_| Told::default()).collect());
        let client = |account: usize| {
            let (rig, stop, told) = (rig.clone(), stop.clone(), told.clone());
            tokio::spawn(async move {
                let told = &told[account];
                while !stop.load(Ordering::Relaxed) {
                    let counter = match rig.change(account as u128 + 1, 1).await {
                        Ok(_) => &told.accepted,
                        Err(CommandError::OutcomeUnknown) => &told.unknown,
                        Err(CommandError::Unavailable(_)) => &told.refused,
                        Err(other) => panic!("{other:?}"),
                    };
                    if counter.fetch_add(1, Ordering::Relaxed) % 16 == 0 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            })
        };
        let tasks = (0..ACCOUNTS * 2).map(|n| client(n % ACCOUNTS)).collect();
        Self { rig: rig.clone(), stop, told, tasks }
    }

    fn sum(&self, counter: impl Fn(&Told) -> &AtomicI64) -> i64 {
        self.told.iter().map(|told| counter(told).load(Ordering::Relaxed)).sum()
    }

    /// Waits until that many more have been accepted.
    async fn accepted_more(&self, more: i64) {
        let goal = self.sum(|told| &told.accepted) + more;
        until("commands are accepted", async || self.sum(|told| &told.accepted) >= goal).await;
    }

    /// Stops them and compares what they were told with what is stored: what was accepted is there
    /// once, what was refused is not, and of the rest any number may be.
    async fn settle(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        for (account, told) in self.told.iter().enumerate() {
            let balance = self.rig.balance(account as u128 + 1).await;
            let accepted = told.accepted.load(Ordering::Relaxed);
            let at_most = accepted + told.unknown.load(Ordering::Relaxed);
            assert!(
                (accepted..=at_most).contains(&balance),
                "account {account}: {balance} stored, {accepted} accepted, at most {at_most}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_ended_during_appends_lose_and_double_nothing() {
    let url = Server::shared().create_database().await;
    let rig = Arc::new(rig(&url, Some(3)).await);
    let clients = Clients::start(&rig);
    let mut session = session(&url).await;
    for _ in 0..30 {
        clients.accepted_more(20).await;
        run(
            &mut session,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'WITH lease%'",
        )
        .await;
    }
    clients.accepted_more(20).await;
    clients.settle().await;
    assert_whole(&*rig.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_on_the_way_lose_and_double_nothing() {
    let url = Server::shared().create_database().await;
    let proxy = Proxy::start(Server::shared().port());
    let rig = Arc::new(rig(&proxy.url(&url), Some(3)).await);
    let clients = Clients::start(&rig);
    for round in 0..40 {
        clients.accepted_more(5).await;
        // The bytes of an event are on their way: cut before the answer, or let it be sent first.
        proxy.cut_next("account.changed", if round % 2 == 0 { Cut::Request } else { Cut::Answer });
        until("it is cut", async || proxy.idle()).await;
    }
    clients.accepted_more(20).await;
    clients.settle().await;
    assert_whole(&*rig.store).await;
}

/// The session of a broken connection is still at work when its outcome is to be settled. `block`
/// holds it up; `waiting` says when the writer has met it.
async fn an_append_outlives_its_connection(block: &'static str, waiting: &'static str) {
    let url = Server::shared().create_database().await;
    let proxy = Proxy::start(Server::shared().port());
    let rig = Arc::new(rig(&proxy.url(&url), Some(1)).await);
    // The second one is stored by the same statement as the third, which is prepared by then.
    rig.change(1, 1).await.unwrap();
    rig.change(1, 1).await.unwrap();
    let (mut blocker, mut observer) = (session(&url).await, session(&url).await);
    run(&mut blocker, block).await;
    proxy.cut_next("account.changed", Cut::Request);
    let changed = {
        let rig = rig.clone();
        tokio::spawn(async move { rig.change(1, 1).await })
    };
    until("the writer meets it", async || ask::<bool>(&mut observer, waiting).await).await;
    run(&mut blocker, "ROLLBACK").await;
    // Settled in time, or the patience of the one who asked is over: stored once in any case.
    let changed = changed.await.unwrap();
    assert!(matches!(changed, Ok(_) | Err(CommandError::OutcomeUnknown)), "{changed:?}");
    until("appends are taken again", async || rig.change(2, 1).await.is_ok()).await;
    assert_eq!(rig.balance(1).await, 3);
    assert_eq!(rig.store.read_stream(1, 0, 10).await.unwrap().len(), 3);
    assert_eq!(assert_whole(&*rig.store).await, 4);
}

/// It holds the lease and commits later: the head is not read before that.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_outlives_its_connection_is_waited_for() {
    an_append_outlives_its_connection(
        "BEGIN; INSERT INTO events SELECT 3, gen_random_uuid(), 99, 1, '', gen_random_uuid(), '',
                1, 0, 0, '', '', '', '', ''",
        "SELECT count(*) FILTER (WHERE query LIKE 'WITH lease%') > 0
                AND count(*) FILTER (WHERE query LIKE 'UPDATE leases SET epoch%') > 0
         FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .await;
}

/// It has not come to the lease yet: when it does, it finds a newer epoch and stores nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_begins_after_it_was_settled_stores_nothing() {
    an_append_outlives_its_connection(
        "BEGIN; LOCK TABLE events IN SHARE MODE",
        "SELECT count(*) > 1 FROM pg_stat_activity WHERE datname = current_database()
                AND wait_event_type = 'Lock' AND query LIKE 'WITH lease%'",
    )
    .await;
}

/// A writer that has not heard how its partition was settled is not taken for somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_settled_without_an_answer_is_settled_again() {
    let url = Server::shared().create_database().await;
    let store = PostgresStore::open(PostgresOptions::new(&url).unwrap(), Some(1)).await.unwrap();
    let lease = store.acquire(0).await.unwrap();
    let (mut blocker, mut observer) = (session(&url).await, session(&url).await);
    run(&mut blocker, "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").await;
    let mut settling = Box::pin(store.settle(lease));
    let head_is_waited_for = "SELECT count(*) > 0 FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("the epoch is raised, and the head cannot be read", async || {
        tokio::select! {
            settled = &mut settling => panic!("{settled:?}"),
            waits = ask::<bool>(&mut observer, head_is_waited_for) => waits,
        }
    })
    .await;
    drop(settling);
    run(&mut blocker, "ROLLBACK").await;
    let (settled, _) = store.settle(lease).await.unwrap();
    assert!(settled.epoch > lease.epoch);
    let stale = store.append(lease, &Batch::default()).await;
    assert!(matches!(stale, Err(AppendError::Fenced)), "{stale:?}");
    store.append(settled, &Batch::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_outlives_its_database_and_loses_nothing() {
    let server = Server::start(ServerOptions::default());
    let url = server.create_database().await;
    let rig = Arc::new(rig(&url, Some(3)).await);
    rig.change(100, 7).await.unwrap();
    let clients = Clients::start(&rig);
    for end in [Server::stop, Server::kill, Server::stop] {
        clients.accepted_more(100).await;
        end(&server);
        until("writes are refused at once", async || !rig.runtime.health().journal_writable).await;
        let refused = rig.change(1, 1).await;
        assert!(
            matches!(refused, Err(CommandError::Unavailable(Unavailable::Journal))),
            "{refused:?}"
        );
        assert_eq!(rig.balance(100).await, 7, "a live aggregate is read");
        assert!(clients.sum(|told| &told.refused) > 0);
        server.start_again();
        until("it is writable again", async || rig.runtime.health().journal_writable).await;
        clients.accepted_more(100).await;
    }
    clients.settle().await;
    assert_whole(&*rig.store).await;
    // What is stored is what the database has after one more crash of it.
    let before = assert_whole(&*rig.store).await;
    server.kill();
    server.start_again();
    assert_eq!(assert_whole(&*rig.store).await, before);
}

/// Connections stay open and nobody answers: that is found out too.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_is_borne() {
    let server = Server::start(ServerOptions::fast());
    let url = server.create_database().await;
    let rig = Arc::new(rig(&url, Some(2)).await);
    rig.change(100, 7).await.unwrap();
    let clients = Clients::start(&rig);
    clients.accepted_more(100).await;
    server.pause();
    until("writes are refused at once", async || !rig.runtime.health().journal_writable).await;
    let refused = rig.change(1, 1).await;
    assert!(matches!(refused, Err(CommandError::Unavailable(Unavailable::Journal))), "{refused:?}");
    assert_eq!(rig.balance(100).await, 7, "a live aggregate is read");
    tokio::time::sleep(Duration::from_secs(
        std::env::var("ADHOC").map_or(0, |s| s.parse().unwrap()),
    ))
    .await;
    server.resume();
    until("it is writable again", async || rig.runtime.health().journal_writable).await;
    clients.accepted_more(100).await;
    clients.settle().await;
    assert_whole(&*rig.store).await;
}

/// Takes everything.
struct Taken;

#[async_trait]
impl Handler for Taken {
    async fn handle(&self, _: &Runtime, _: &Arc<StoredEvent>) -> Result<(), Failure> {
        Ok(())
    }
}

async fn with_a_subscriber(url: &str) -> Rig {
    let subscription = Subscription::handler("taken", "tests", &["account.*"], Arc::new(Taken));
    let store = Arc::new(postgres(url, Some(1)).await.unwrap());
    Rig::on(store, None, options(), |builder| builder.subscribe(subscription)).await
}

/// Else whoever scrapes takes the process for gone, and hears nothing of the database.
#[tokio::test(flavor = "multi_thread")]
async fn figures_are_there_in_time_while_the_database_does_not_answer() {
    let url = Server::shared().create_database().await;
    let first = with_a_subscriber(&url).await;
    let paused = first.runtime.subscriptions().pause("taken", first.context(), None).await;
    assert!(paused.unwrap().is_some());
    first.change(1, 1).await.unwrap();
    assert!(first.runtime.drain(Duration::from_secs(30)).await);

    // Only the journal has what came before this process.
    let again = with_a_subscriber(&url).await;
    let subscriptions = again.runtime.subscriptions();
    until("it is behind", async || subscriptions.list()[0].partitions[0].lag_events > 0).await;
    let mut blocker = session(&url).await;
    run(&mut blocker, "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").await;
    // Prometheus waits for ten seconds.
    let within = Duration::from_secs(9);
    let measured = tokio::time::timeout(within, again.runtime.measure()).await;
    assert!(measured.is_ok(), "it waits for the database");
    let seen = tokio::time::timeout(within, subscriptions.inspect()).await.expect("it waits too");
    assert_eq!(seen[0].partitions[0].lag_seconds, None);
    run(&mut blocker, "ROLLBACK").await;
    let lag = subscriptions.inspect().await[0].partitions[0].lag_seconds;
    assert!(lag.is_some(), "what was given up holds up nobody");
    again.change(1, 1).await.unwrap();
}
