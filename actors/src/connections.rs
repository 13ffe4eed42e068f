//! Connections to a database that stay open and are lent out, each to one user at a time.
//!
//! What sqlx's own pool does is that and more: each connection that comes back is sent a round trip, in
//! a task of its own, before it is lent out again. For short queries that costs about as much as the
//! query (`docs/decisions/0052-connections-come-back-as-they-are.md`). Here a connection comes back at
//! once if its last answer was read to the end. Otherwise it is closed, and its place is free for another
//! one when the database has done with what it was asked.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult,
};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::{
    ConnectOptions, Connection, Database, Describe, Either, Error, Execute, Executor, SqlStr,
};

/// The first wait between two attempts to reach a database that does not let anybody in yet, and the
/// longest.
const AGAIN_AFTER: Duration = Duration::from_millis(10);
const AGAIN_AFTER_MAX: Duration = Duration::from_millis(500);
/// How long a connection may take to show that it is still there.
const TRY_WITHIN: Duration = Duration::from_secs(1);
/// How old a connection to a server becomes.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long a connection that was given up counts while its query goes on: longer than databases are
/// told to work on one.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(25);
/// How often to look whether the last connection has come back, and how many times.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS_MAX: u32 = 1_000;

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// How many connections there are, and how long to wait for one.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many are open at the same time.
    pub max: usize,
    /// How long who wants one waits in all, for others to give one back and for it to be opened:
    /// [`Error::PoolTimedOut`].
    pub wait: Duration,
    /// How far a connection that nobody uses is trusted; `None`: a file does not go away.
    pub trust: Option<Trust>,
}

/// How far a connection is trusted that answered when it was last used.
#[derive(Debug, Clone, Copy)]
pub struct Trust {
    /// One that was lent out so long ago is tried before it is lent out again.
    pub idle: Duration,
    /// One that is so old is closed: a server in another place, or one that has learned too much by heart,
    /// is not stayed with for ever.
    pub age: Duration,
}

impl Trust {
    /// Tried after so long, and given up after half an hour.
    pub const fn for_as_long_as(idle: Duration) -> Self {
        Self { idle, age: AGE_MAX }
    }
}

/// See the module. As an [`Executor`] it runs each query on a connection of its own, and holds all rows
/// of the answer in memory: bound what is asked for, or borrow a connection.
pub struct Connections<DB: Database> {
    pool: Pool<Opener<DB>>,
    wait: Duration,
}

impl<DB: Database> Clone for Connections<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), wait: self.wait }
    }
}

impl<DB: Database> fmt::Debug for Connections<DB> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Connections").field(&self.pool.status()).finish()
    }
}

impl<DB: Database> Connections<DB> {
    /// None is opened before it is asked for.
    pub fn new(options: Options<DB>, limits: Limits) -> Self {
        let Limits { max, wait, trust } = limits;
        // What is in use stays in its caches.
        let pool = Pool::builder(Opener::<DB> { options, trust })
            .max_size(max)
            .queue_mode(QueueMode::Lifo)
            .build();
        Self { pool: pool.expect("without times of its own it needs no runtime"), wait }
    }

    /// Borrows a connection. What it is at the end says [`Lent::keep`].
    pub async fn get(&self) -> Result<Lent<DB>, Error> {
        match tokio::time::timeout(self.wait, self.pool.get()).await {
            Ok(Ok(object)) => Ok(Lent { object: Some(object), is_sound: false }),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(PoolError::Closed)) => Err(Error::PoolClosed),
            Ok(Err(_)) => Err(Error::PoolTimedOut),
            Err(_) => {
                // Those that would be tried next are as likely to be gone: nobody waits for them too.
                if let Some(trust) = self.pool.manager().trust {
                    self.pool.retain(|_, metrics| metrics.last_used() <= trust.idle);
                }
                Err(Error::PoolTimedOut)
            }
        }
    }

    /// Closes all of them; those that are lent out when they come back, for which it waits a while.
    pub async fn close(&self) {
        for connection in self.pool.retain(|_, _| false).removed {
            goodbye(connection).await;
        }
        self.pool.close();
        for _ in 0..LOOKS_MAX {
            if self.pool.status().size == 0 {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Ends a connection that may still be at work, and lets it count until it is not.
async fn give_up<DB: Database>(mut object: Object<Opener<DB>>) {
    let answers = tokio::time::timeout(GIVEN_UP_WITHIN, object.ping()).await;
    let connection = Object::take(object);
    if matches!(answers, Ok(Ok(()))) {
        let _ = tokio::time::timeout(TRY_WITHIN, goodbye(connection)).await;
    }
}

/// An orderly end; if it is not heard nothing is lost.
async fn goodbye<C: Connection>(connection: C) {
    if let Err(error) = connection.close().await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection was not closed");
    }
}

/// Opens connections.
struct Opener<DB: Database> {
    options: Options<DB>,
    trust: Option<Trust>,
}

impl<DB: Database> Manager for Opener<DB> {
    type Type = DB::Connection;
    type Error = Error;

    async fn create(&self) -> Result<DB::Connection, Error> {
        let mut again_after = AGAIN_AFTER;
        loop {
            match self.options.connect().await {
                Err(error) if is_passing(&error) => tokio::time::sleep(again_after).await,
                opened => return opened,
            }
            again_after = (again_after * 2).min(AGAIN_AFTER_MAX);
        }
    }

    async fn recycle(
        &self,
        connection: &mut DB::Connection,
        metrics: &Metrics,
    ) -> RecycleResult<Error> {
        let Some(trust) = self.trust else { return Ok(()) };
        if metrics.age() > trust.age {
            return Err(RecycleError::message("it is old"));
        }
        if metrics.last_used() > trust.idle {
            let tried = tokio::time::timeout(TRY_WITHIN, connection.ping()).await;
            tried.map_err(|_| RecycleError::message("it does not answer"))??;
        }
        Ok(())
    }
}

/// Whether the server may let us in a moment later: it is being started, or has too many guests.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::ConnectionReset
        ),
        Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

/// A connection that is lent out. Dropped it is closed, unless it was said to be sound.
pub struct Lent<DB: Database> {
    object: Option<Object<Opener<DB>>>,
    is_sound: bool,
}

impl<DB: Database> Lent<DB> {
    /// Gives it back as it is: its last answer was read to the end, and no transaction is open.
    pub fn keep(mut self) {
        self.is_sound = true;
    }

    /// As [`Lent::keep`], if that is what came of the last query.
    fn keep_if<T>(self, answer: Result<T, Error>) -> Result<T, Error> {
        if answer.is_ok() {
            self.keep();
        }
        answer
    }
}

impl<DB: Database> Deref for Lent<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.object.as_ref().expect("it is there until it is dropped")
    }
}

impl<DB: Database> DerefMut for Lent<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.object.as_mut().expect("it is there until it is dropped")
    }
}

impl<DB: Database> Drop for Lent<DB> {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        let is_closed = Object::pool(&object).is_none_or(|pool| pool.is_closed());
        if self.is_sound && !is_closed {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(handle) => drop(handle.spawn(give_up(object))),
            Err(_) => drop(Object::take(object)),
        }
    }
}

impl<'p, DB: Database> Executor<'p> for &'p Connections<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let all = async move {
            let mut lent = self.get().await?;
            let all = lent.fetch_many(query).try_collect::<Vec<_>>().await;
            lent.keep_if(all)
        };
        stream::once(all).map_ok(|all| stream::iter(all.into_iter().map(Ok))).try_flatten().boxed()
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(async move {
            let mut lent = self.get().await?;
            let all = lent.fetch_all(query).await;
            lent.keep_if(all)
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(async move {
            let mut lent = self.get().await?;
            let row = lent.fetch_optional(query).await;
            lent.keep_if(row)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut lent = self.get().await?;
            let statement = lent.prepare_with(sql, parameters).await;
            lent.keep_if(statement)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut lent = self.get().await?;
            let described = lent.describe(sql).await;
            lent.keep_if(described)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use sqlx::Sqlite;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    async fn one(wait: Duration) -> (tempfile::TempDir, Connections<Sqlite>) {
        opened(Limits { max: 1, wait, trust: None })
    }

    fn opened(limits: Limits) -> (tempfile::TempDir, Connections<Sqlite>) {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("one.db"))
            .create_if_missing(true);
        (folder, Connections::new(options, limits))
    }

    /// Asks the database for something that it does not answer, and nobody waits for.
    async fn begin(asked: impl Future<Output = Result<impl Sized, Error>>) {
        let mut asked = Box::pin(asked);
        // It is under way once it has been polled and waits for something else than its connection.
        let first = std::future::poll_fn(|context| Poll::Ready(asked.as_mut().poll(context)));
        assert!(first.await.is_pending());
    }

    /// Marks the connection: what is temporary is of that connection alone.
    async fn mark(connections: &Connections<Sqlite>) {
        sqlx::query("CREATE TEMP TABLE mark (of_it)").execute(connections).await.unwrap();
    }

    async fn is_marked(connections: &Connections<Sqlite>) -> bool {
        let found = sqlx::query("SELECT 1 FROM sqlite_temp_schema").fetch_optional(connections);
        found.await.unwrap().is_some()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_connection_that_answered_is_lent_out_again() {
        let (_folder, connections) = one(LONG).await;
        mark(&connections).await;
        let numbers = "VALUES (1), (2)";
        assert_eq!(sqlx::query(numbers).fetch_all(&connections).await.unwrap().len(), 2);
        let lent = connections.get().await.unwrap();
        lent.keep();
        assert!(is_marked(&connections).await);
    }

    #[tokio::test]
    async fn one_that_was_dropped_on_the_way_is_given_up() {
        let (_folder, connections) = one(LONG).await;
        mark(&connections).await;
        drop(connections.get().await.unwrap());
        assert!(!is_marked(&connections).await);
    }

    #[tokio::test]
    async fn so_is_one_whose_answer_nobody_waited_for() {
        let (_folder, connections) = one(LONG).await;
        mark(&connections).await;
        let numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 100000) \
            SELECT n FROM n";
        begin(sqlx::query(numbers).fetch_all(&connections)).await;
        assert!(!is_marked(&connections).await);
    }

    #[tokio::test]
    async fn one_that_was_given_up_counts_for_as_long_as_it_is_at_work() {
        let (folder, connections) = one(Duration::from_millis(10)).await;
        let options = SqliteConnectOptions::new().filename(folder.path().join("one.db"));
        sqlx::query("CREATE TABLE held (of_it)").execute(&connections).await.unwrap();
        let mut other = options.connect().await.unwrap();
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
        // It waits for the other one, in the database.
        begin(sqlx::query("INSERT INTO held VALUES (1)").execute(&connections)).await;
        let another = connections.get().await;
        assert!(matches!(another, Err(Error::PoolTimedOut)), "{:?}", another.err());
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        while connections.get().await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn so_is_one_that_failed() {
        let (_folder, connections) = one(LONG).await;
        mark(&connections).await;
        let failed = sqlx::query("SELECT * FROM nowhere").fetch_all(&connections).await;
        assert!(matches!(failed, Err(Error::Database(_))), "{:?}", failed.err());
        assert!(!is_marked(&connections).await);
    }

    #[tokio::test]
    async fn there_are_no_more_than_so_many() {
        let (_folder, connections) = one(Duration::from_millis(10)).await;
        let lent = connections.get().await.unwrap();
        let another = connections.get().await;
        assert!(matches!(another, Err(Error::PoolTimedOut)), "{:?}", another.err());
        lent.keep();
        assert!(connections.get().await.is_ok());
    }

    #[tokio::test]
    async fn closing_waits_for_what_is_lent_out() {
        let (_folder, connections) = one(LONG).await;
        let lent = connections.get().await.unwrap();
        let mut closing = Box::pin(connections.close());
        let first = std::future::poll_fn(|context| Poll::Ready(closing.as_mut().poll(context)));
        assert!(first.await.is_pending());
        let another = connections.get().await;
        assert!(matches!(another, Err(Error::PoolClosed)), "{:?}", another.err());
        lent.keep();
        closing.await;
        assert_eq!(connections.pool.status().size, 0);
    }

    #[tokio::test]
    async fn one_that_is_old_is_not_lent_out_again() {
        for (age, stays) in [(LONG, true), (Duration::ZERO, false)] {
            let trust = Trust { idle: LONG, age };
            let (_folder, connections) = opened(Limits { max: 1, wait: LONG, trust: Some(trust) });
            mark(&connections).await;
            assert_eq!(is_marked(&connections).await, stays, "{age:?}");
        }
    }

    #[tokio::test]
    async fn when_one_does_not_answer_others_as_old_are_given_up_with_it() {
        let trust = Trust { idle: Duration::ZERO, age: LONG };
        let wait = Duration::from_millis(100);
        let (folder, connections) = opened(Limits { max: 3, wait, trust: Some(trust) });
        sqlx::query("CREATE TABLE held (of_it)").execute(&connections).await.unwrap();
        let (one, two) = (connections.get().await.unwrap(), connections.get().await.unwrap());
        let mut silent = connections.get().await.unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path().join("one.db"));
        let mut other = options.connect().await.unwrap();
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
        begin(sqlx::query("INSERT INTO held VALUES (1)").execute(&mut *silent)).await;
        // It is the next to be lent out, and answers nothing while the other one is at work.
        [one, two, silent].into_iter().for_each(Lent::keep);
        assert_eq!(connections.pool.status().size, 3);
        let refused = connections.get().await;
        assert!(matches!(refused, Err(Error::PoolTimedOut)), "{:?}", refused.err());
        assert_eq!(connections.pool.status().size, 0);
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    }

    fn to_port(port: u16, wait: Duration) -> Connections<sqlx::Postgres> {
        let options = sqlx::postgres::PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username("nobody");
        Connections::new(options, Limits { max: 1, wait, trust: None })
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_others_and_for_the_database_takes_one_time_in_all() {
        // It lets everybody in, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connections = to_port(silent.local_addr().unwrap().port(), LONG);
        let first = tokio::spawn({
            let connections = connections.clone();
            async move { connections.get().await.map(drop) }
        });
        tokio::time::sleep(LONG / 2).await;
        // The first one holds the only place for as long again, and then this one waits for the database.
        let began = tokio::time::Instant::now();
        let refused = connections.get().await;
        assert!(matches!(refused, Err(Error::PoolTimedOut)), "{:?}", refused.err());
        assert!(first.await.unwrap().is_err());
        let waited = began.elapsed();
        assert!(waited < LONG + Duration::from_secs(1), "{waited:?}");
    }

    #[tokio::test]
    async fn a_database_that_lets_nobody_in_is_tried_until_the_time_is_over() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = gone.local_addr().unwrap().port();
        drop(gone);
        let connections = to_port(port, Duration::from_millis(50));
        let refused = connections.get().await;
        assert!(matches!(refused, Err(Error::PoolTimedOut)), "{:?}", refused.err());
    }
}
