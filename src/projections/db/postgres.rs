//! The read models in a schema of one PostgreSQL database, beside the journal.
//!
//! ```text
//!   projections of every partition ──▶ writers ─┐
//!                                               ├──▶ schema souk_read
//!   HTTP ────────────────────────────▶ readers ─┘
//! ```
//!
//! Projections of all partitions write at the same time. No two of them have a row in common: an
//! aggregate's row is written by its partition alone, and each transaction locks its checkpoint's
//! row before anything else, so that the same projection of the same partition in another process
//! waits for it. Nobody ever holds a lock and waits for one that is taken in another order.
//!
//! A transaction is durable when it is committed. To save that (the checkpoint would go with the
//! rows) is no gain here: a database that comes back from a crash with older checkpoints would
//! meet a process that goes on from newer ones.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use souk_actors::connections::{Connections, Lent, Limits, Trust};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection,
    Postgres, SqlSafeStr as _, SqlStr,
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Insert, Param, ReadError, Row, RowOf};

/// The schema of every table here.
const SCHEMA: &str = "souk_read";

/// Transactions of projections at once. More than processors gain nothing: they wait for the same
/// log. A projection waits longer than a request for a connection.
const WRITERS: Limits = Limits {
    max: 8,
    wait: Duration::from_secs(10),
    trust: Some(Trust::for_as_long_as(TRUSTED_FOR)),
};
/// Queries of requests at once.
const READERS: Limits = Limits {
    max: 8,
    wait: Duration::from_secs(2),
    trust: Some(Trust::for_as_long_as(TRUSTED_FOR)),
};

/// A connection that was lent out longer ago is tried before it is used: the server may have been
/// restarted.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// After a failed attempt to reach the server everybody else is told so at once, for so long.
const UNREACHABLE_FOR: Duration = Duration::from_millis(500);

/// How long one attempt to reach the server may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How long an answer may take: a little longer than the server lets a statement run.
const ANSWER_MAX: Duration = Duration::from_secs(25);

/// What the server is asked to do by itself. Above all a process that was stopped in the middle of
/// a transaction must not keep others waiting for its locks.
const SESSION: [(&str, &str); 4] = [
    ("search_path", SCHEMA),
    ("statement_timeout", "20s"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "5s"),
];

/// What writers are asked for beside that. They look rows up by key, up to a thousand at once, with plans that
/// are made when a table is nearly empty or new: nothing is known of it then, all of it would be read, and each
/// row compared with each key, until the table was looked at. And a plan with no other way than all of a table
/// costs so much on paper by this that it would be compiled.
const WRITING: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/read/postgres");

impl ReadError {
    fn postgres(error: sqlx::Error) -> Self {
        if matches!(error, sqlx::Error::PoolTimedOut) {
            return Self::Busy(error);
        }
        let code = error.as_database_error().and_then(|database| database.code());
        match code.as_deref() {
            // Serialization failure, deadlock, lock not available, query cancelled by its time
            // limit.
            Some("40001" | "40P01" | "55P03" | "57014") => Self::Busy(error),
            // Data exceptions and integrity constraint violations.
            Some(code) if code.starts_with("22") || code.starts_with("23") => Self::Refused(error),
            _ => Self::Failed(error),
        }
    }

    /// Whether the connection is gone: then another one may do.
    fn is_lost(&self) -> bool {
        let Self::Failed(error) = self else { return false };
        match error {
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
            // Shutting down, crashed, connection exceptions.
            sqlx::Error::Database(database) => database
                .code()
                .is_some_and(|code| code.starts_with("57P") || code.starts_with("08")),
            _ => false,
        }
    }
}

/// The schema, open.
#[derive(Clone)]
pub(super) struct Database {
    options: Arc<PgConnectOptions>,
    writers: Connections<Postgres>,
    readers: Connections<Postgres>,
    /// Until when the server is taken for unreachable.
    unreachable: Arc<Mutex<Option<Instant>>>,
}

/// A transaction. Dropped without a commit it takes its connection along, which undoes it whatever
/// state the connection is in.
pub(super) struct Tx {
    connection: Lent<Postgres>,
}

impl Database {
    pub(super) async fn open(options: &PgConnectOptions) -> anyhow::Result<Self> {
        let options = options
            .clone()
            .options(SESSION)
            .application_name("souk read models")
            .disable_statement_logging();
        let mut connection = options.connect().await.context("cannot reach the read models")?;
        make_schema(&mut connection).await?;
        MIGRATIONS.run(&mut connection).await.with_context(|| {
            format!(
                "cannot bring the schema {SCHEMA} up to date; it is derived data: drop it, and it is \
                 rebuilt from the journal"
            )
        })?;
        // An orderly goodbye; if it is not heard nothing is lost.
        let _: Result<(), sqlx::Error> = connection.close().await;
        let writers = Connections::new(options.clone().options(WRITING), WRITERS);
        let read_only = options.clone().options([("default_transaction_read_only", "on")]);
        let readers = Connections::new(read_only, READERS);
        Ok(Self { options: Arc::new(options), writers, readers, unreachable: Arc::default() })
    }

    /// Empties every table but the list of migrations; tables of later versions go.
    pub(super) async fn erase(&self) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let later = "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables \
            WHERE schemaname = current_schema() AND tablename ~ '_r[0-9]+$'";
        let found = fetch(&mut tx, later.into_sql_str(), Vec::new()).await?;
        if let Some(tables) = found.first().map(|row| row.text_or_null(0)).transpose()?.flatten() {
            let drop = AssertSqlSafe(format!("DROP TABLE {tables}"));
            execute(&mut tx, drop.into_sql_str(), Vec::new()).await?;
        }
        let tables = "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables \
            WHERE schemaname = current_schema() AND tablename <> '_sqlx_migrations'";
        let found = fetch(&mut tx, tables.into_sql_str(), Vec::new()).await?;
        if let Some(tables) = found.first().map(|row| row.text_or_null(0)).transpose()?.flatten() {
            let truncate = AssertSqlSafe(format!("TRUNCATE {tables}"));
            execute(&mut tx, truncate.into_sql_str(), Vec::new()).await?;
        }
        Ok(commit(tx).await?)
    }

    pub(super) async fn begin(&self) -> Result<Tx, ReadError> {
        let connection = self.connection(&self.writers).await?;
        let mut tx = Tx { connection };
        within(tx.connection.execute("BEGIN")).await?;
        Ok(tx)
    }

    pub(super) async fn fetch(
        &self,
        sql: SqlStr,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, ReadError> {
        match self.fetch_once(sql.clone(), params.clone()).await {
            Err(error) if error.is_lost() => self.fetch_once(sql, params).await,
            outcome => outcome,
        }
    }

    async fn fetch_once(&self, sql: SqlStr, params: Vec<Param>) -> Result<Vec<Row>, ReadError> {
        let mut connection = self.connection(&self.readers).await?;
        let query = sqlx::query_with(sql, arguments(params)?);
        let fetched = within(query.fetch_all(&mut *connection)).await?;
        connection.keep();
        Ok(rows(fetched))
    }

    /// A connection, or why there is none: all are in use, or the server cannot be reached.
    async fn connection(
        &self,
        connections: &Connections<Postgres>,
    ) -> Result<Lent<Postgres>, ReadError> {
        // It would go on trying for as long as it may wait.
        let unreachable = *self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = unreachable {
            if Instant::now() < until {
                return Err(ReadError::Failed(sqlx::Error::PoolTimedOut));
            }
            self.reach().await?;
        }
        match connections.get().await {
            Ok(connection) => Ok(connection),
            // It says the same of a server that is not there and of one that is busy.
            Err(error @ sqlx::Error::PoolTimedOut) => {
                self.reach().await?;
                Err(ReadError::Busy(error))
            }
            Err(error) => Err(ReadError::postgres(error)),
        }
    }

    /// Whether the server can be reached; who comes soon after is told the same.
    async fn reach(&self) -> Result<(), ReadError> {
        let reached = self.try_to_reach().await;
        let until = reached.is_err().then(|| Instant::now() + UNREACHABLE_FOR);
        *self.unreachable.lock().unwrap_or_else(PoisonError::into_inner) = until;
        reached.map_err(ReadError::Failed)
    }

    async fn try_to_reach(&self) -> Result<(), sqlx::Error> {
        let connected = timeout(CONNECT_MAX, self.options.connect()).await;
        connected.map_err(|_| sqlx::Error::PoolTimedOut)??.close().await
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

/// Makes the schema where it is missing. One that an administrator made may be used by a role that
/// could not make it.
async fn make_schema(connection: &mut PgConnection) -> anyhow::Result<()> {
    let exists = "SELECT to_regnamespace($1) IS NOT NULL";
    let exists: bool = sqlx::query_scalar(exists)
        .bind(SCHEMA)
        .fetch_one(&mut *connection)
        .await
        .context("cannot look for the schema of the read models")?;
    if exists {
        return Ok(());
    }
    let create = AssertSqlSafe(format!("CREATE SCHEMA {SCHEMA}"));
    let Err(error) = connection.execute(create).await else { return Ok(()) };
    let code = error.as_database_error().and_then(|database| database.code());
    match code.as_deref() {
        // Somebody else was quicker.
        Some("42P06" | "23505") => Ok(()),
        Some("42501") => bail!(
            "the role may not make the schema {SCHEMA}: GRANT CREATE ON DATABASE to it, or \
             CREATE SCHEMA {SCHEMA} AUTHORIZATION it"
        ),
        _ => Err(error).with_context(|| format!("cannot make the schema {SCHEMA}")),
    }
}

/// An answer, or that there was none in time: the server's own limits do not help against a
/// network that swallows everything.
async fn within<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, ReadError> {
    match timeout(ANSWER_MAX, answer).await {
        Ok(answer) => answer.map_err(ReadError::postgres),
        Err(_) => {
            let limit = format!("no answer within {} s", ANSWER_MAX.as_secs());
            let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, limit);
            Err(ReadError::Failed(sqlx::Error::Io(silent)))
        }
    }
}

pub(super) async fn execute(
    tx: &mut Tx,
    sql: SqlStr,
    params: Vec<Param>,
) -> Result<u64, ReadError> {
    let query = sqlx::query_with(sql, arguments(params)?);
    Ok(within(query.execute(&mut *tx.connection)).await?.rows_affected())
}

pub(super) async fn fetch(
    tx: &mut Tx,
    sql: SqlStr,
    params: Vec<Param>,
) -> Result<Vec<Row>, ReadError> {
    let query = sqlx::query_with(sql, arguments(params)?);
    within(query.fetch_all(&mut *tx.connection)).await.map(rows)
}

pub(super) async fn fetch_of(tx: &mut Tx, sql: &str, keys: &[Uuid]) -> Result<Vec<Row>, ReadError> {
    let keys: Vec<_> = keys.iter().map(|key| key.hyphenated().to_string()).collect();
    let sql = AssertSqlSafe(format!("{sql} = ANY($1)"));
    let query = sqlx::query(sql).bind(keys);
    within(query.fetch_all(&mut *tx.connection)).await.map(rows)
}

pub(super) async fn copy_shape(tx: &mut Tx, from: &str, to: &str) -> Result<(), ReadError> {
    const OPTIONS: &str =
        "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = to_regclass($1)";
    let like = AssertSqlSafe(format!("CREATE TABLE {to} (LIKE {from} INCLUDING ALL)"));
    execute(tx, like.into_sql_str(), Vec::new()).await?;
    let options = fetch(tx, OPTIONS.into_sql_str(), vec![from.into()]).await?;
    if let Some(options) = options.first().map(|row| row.text_or_null(0)).transpose()?.flatten() {
        let set = AssertSqlSafe(format!("ALTER TABLE {to} SET ({options})"));
        execute(tx, set.into_sql_str(), Vec::new()).await?;
    }
    Ok(())
}

pub(super) async fn commit(mut tx: Tx) -> Result<(), ReadError> {
    within(tx.connection.execute("COMMIT")).await?;
    tx.connection.keep();
    Ok(())
}

fn rows(rows: Vec<PgRow>) -> Vec<Row> {
    rows.into_iter().map(|row| Row(RowOf::Postgres(row))).collect()
}

fn arguments(params: Vec<Param>) -> Result<PgArguments, ReadError> {
    let mut arguments = PgArguments::default();
    Arguments::reserve(&mut arguments, params.len(), 0);
    for param in params {
        let added = match param {
            Param::Int(value) => arguments.add(value),
            Param::Text(value) => arguments.add(value.as_deref()),
        };
        added.map_err(|error| ReadError::Refused(sqlx::Error::Encode(error)))?;
    }
    Ok(arguments)
}

/// The statement of an [`Insert`]: one array a column, so that it is the same for any number of
/// rows. The types are those of the first row's values.
pub(super) fn statement(insert: &Insert, params: &[Param]) -> Arc<str> {
    let arrays = params[..insert.columns].iter().zip(1..).map(|(param, number)| match param {
        Param::Int(_) => format!("${number}::BIGINT[]"),
        Param::Text(_) => format!("${number}::TEXT[]"),
    });
    let arrays = arrays.collect::<Vec<_>>().join(", ");
    format!("{}SELECT * FROM UNNEST({arrays}){}", insert.head, insert.tail).into()
}

pub(super) async fn insert(
    tx: &mut Tx,
    sql: Arc<str>,
    columns: usize,
    params: &[Param],
) -> Result<(), ReadError> {
    let mut arguments = PgArguments::default();
    for column in 0..columns {
        let values = params.iter().skip(column).step_by(columns);
        let added = match &params[column] {
            Param::Int(_) => arguments.add(values.map(Param::as_int).collect::<Vec<_>>()),
            Param::Text(_) => arguments.add(values.map(Param::as_text).collect::<Vec<_>>()),
        };
        added.map_err(|error| ReadError::Refused(sqlx::Error::Encode(error)))?;
    }
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
    within(query.execute(&mut *tx.connection)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use souk_actors::retry::{Failure, FailureKind};
    use souk_actors::testing::postgres::{Options, Server};

    use crate::projections::db::{Insert, Param, Place, Query, ReadDb, ReadError, ReadTx, Row};

    const ALL: &str = "SELECT COUNT(*) FROM projection_checkpoints";

    async fn open(url: &str) -> anyhow::Result<ReadDb> {
        ReadDb::open(&Place::Postgres(Box::new(url.parse().unwrap()))).await
    }

    async fn fresh() -> ReadDb {
        open(&Server::shared().create_database().await).await.unwrap()
    }

    async fn add(tx: &mut ReadTx, partitions: std::ops::Range<u16>) -> Result<(), ReadError> {
        let columns = ["projection", "partition", "position"];
        let rows = partitions
            .flat_map(|partition| vec!["test".into(), partition.into(), Param::from(7_u64)])
            .collect();
        Insert::new("projection_checkpoints", &columns, "").run(tx, rows).await
    }

    async fn count(db: &ReadDb) -> Result<i64, ReadError> {
        db.fetch(Query::new(ALL)).await?[0].int(0)
    }

    fn kind<T>(outcome: Result<T, ReadError>) -> FailureKind {
        Failure::from(outcome.err().expect("it fails")).kind
    }

    #[tokio::test]
    async fn it_is_opened_again_with_its_rows_in_a_schema_of_its_own() {
        let url = Server::shared().create_database().await;
        let db = open(&url).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        add(&mut tx, 0..300).await.unwrap();
        tx.commit().await.unwrap();
        db.close().await;

        let db = open(&url).await.unwrap();
        assert_eq!(count(&db).await.unwrap(), 300);
        let elsewhere = "SELECT COUNT(*) FROM pg_tables WHERE schemaname NOT IN \
            ('souk_read', 'pg_catalog', 'information_schema')";
        let elsewhere = db.fetch(Query::new(elsewhere)).await.unwrap();
        assert_eq!(elsewhere[0].int(0).unwrap(), 0);
        let refused = db.fetch(Query::new("DELETE FROM projection_checkpoints RETURNING 1")).await;
        assert_eq!(kind(refused), FailureKind::System, "a reader cannot write");
    }

    #[tokio::test]
    async fn what_is_not_committed_is_undone() {
        let db = fresh().await;
        let mut tx = db.begin().await.unwrap();
        add(&mut tx, 0..3).await.unwrap();
        drop(tx);
        let mut tx = db.begin().await.unwrap();
        assert_eq!(tx.fetch(ALL, vec![]).await.unwrap()[0].int(0).unwrap(), 0);
    }

    /// A plan is kept for as long as nothing is known of the table. For rows as wide as these, of which few would
    /// be on its pages, all of them would be compared with each key.
    #[tokio::test]
    async fn rows_of_a_new_table_are_looked_up_by_key() {
        let db = fresh().await;
        let mut tx = db.begin().await.unwrap();
        for sql in [
            "CREATE TABLE of_today (id TEXT PRIMARY KEY, name VARCHAR(2000), text VARCHAR(2000))",
            "PREPARE look_up (TEXT[]) AS SELECT id, name FROM of_today WHERE id = ANY($1)",
            "SET LOCAL plan_cache_mode = force_generic_plan",
        ] {
            tx.execute(sql, vec![]).await.unwrap();
        }
        let plan = tx.fetch("EXPLAIN EXECUTE look_up (ARRAY['one', 'two'])", vec![]).await.unwrap();
        let text = |plan: &[Row]| {
            plan.iter().map(|line| line.text(0).unwrap()).collect::<Vec<_>>().join("\n")
        };
        let plan = text(&plan);
        assert!(plan.contains("of_today_pkey") && !plan.contains("Seq Scan"), "{plan}");
        // Where there is no other way it is not compiled for what it costs on paper.
        let all = "EXPLAIN SELECT name FROM of_today WHERE text = 'it'";
        let plan = text(&tx.fetch(all, vec![]).await.unwrap());
        assert!(plan.contains("Seq Scan") && !plan.contains("JIT"), "{plan}");
    }

    /// S1-172.
    #[tokio::test]
    async fn what_no_retry_would_change_is_permanent() {
        let db = fresh().await;
        let mut tx = db.begin().await.unwrap();
        add(&mut tx, 0..3).await.unwrap();
        assert_eq!(kind(add(&mut tx, 2..3).await), FailureKind::Permanent, "it is there already");
        let mut tx = db.begin().await.unwrap();
        let nul = tx.fetch("SELECT $1::TEXT", vec!["a\0b".into()]).await;
        assert_eq!(kind(nul), FailureKind::Permanent);
    }

    #[tokio::test]
    async fn who_locks_in_another_order_is_tried_again() {
        const LOCK: &str = "SELECT position FROM projection_checkpoints WHERE partition = $1";
        let db = fresh().await;
        let mut tx = db.begin().await.unwrap();
        add(&mut tx, 0..2).await.unwrap();
        tx.commit().await.unwrap();
        let (mut one, mut other) = (db.begin().await.unwrap(), db.begin().await.unwrap());
        one.fetch_locked(LOCK, vec![0_u16.into()]).await.unwrap();
        other.fetch_locked(LOCK, vec![1_u16.into()]).await.unwrap();
        let first = async {
            let locked = one.fetch_locked(LOCK, vec![1_u16.into()]).await.map(drop);
            drop(one);
            locked
        };
        let second = async {
            let locked = other.fetch_locked(LOCK, vec![0_u16.into()]).await.map(drop);
            drop(other);
            locked
        };
        let outcomes = tokio::join!(first, second);
        let failed = [outcomes.0, outcomes.1].into_iter().filter(Result::is_err);
        let kinds: Vec<_> = failed.map(kind).collect();
        assert_eq!(kinds, [FailureKind::Transient]);
    }

    /// S1-172.
    #[tokio::test]
    async fn a_server_that_is_gone_is_found_again() {
        let server = Server::start(Options::fast());
        let db = open(&server.create_database().await).await.unwrap();
        for stop in [Server::stop, Server::kill] {
            assert!(count(&db).await.is_ok());
            let mut under_way = db.begin().await.unwrap();
            add(&mut under_way, 0..1).await.unwrap();
            stop(&server);
            assert_eq!(kind(under_way.commit().await), FailureKind::System);
            assert_eq!(kind(count(&db).await), FailureKind::System);
            assert_eq!(kind(db.begin().await.map(drop)), FailureKind::System);
            server.start_again();
            while let Err(error) = count(&db).await {
                assert_eq!(Failure::from(error).kind, FailureKind::System);
                tokio::time::sleep(super::UNREACHABLE_FOR / 10).await;
            }
            let mut tx = db.begin().await.unwrap();
            assert_eq!(tx.fetch(ALL, vec![]).await.unwrap()[0].int(0).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn who_may_not_make_the_schema_may_use_one_that_is_there() {
        let server = Server::shared();
        let url = server.create_database().await;
        let name = url.rsplit('/').next().unwrap();
        let role = format!("guest_{name}");
        server.execute(name, &format!("CREATE ROLE {role} LOGIN")).await;
        let as_guest = url.replace("postgres@", &format!("{role}@"));
        let refused = open(&as_guest).await.err().expect("it may not").to_string();
        assert!(refused.contains("GRANT CREATE ON DATABASE"), "{refused}");
        server.execute(name, &format!("CREATE SCHEMA souk_read AUTHORIZATION {role}")).await;
        assert_eq!(count(&open(&as_guest).await.unwrap()).await.unwrap(), 0);
    }
}
