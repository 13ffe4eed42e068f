//! The read models in one SQLite file.
//!
//! SQLite has one writer per file, so there is one writing connection, which a transaction takes for
//! itself, and some that only read.
//! `synchronous=NORMAL` is enough: what a power cut takes from the end of this file is projected
//! again, because the checkpoint goes with it.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use souk_actors::connections::{Connections, Limits};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions as _, Connection as _, SqlSafeStr as _, SqlStr,
    Sqlite, SqliteConnection,
};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Insert, Param, ReadError, Row, RowOf};

/// How long a transaction waits for the one before it.
const WRITER_WAIT: Duration = Duration::from_secs(30);

/// Readers do not block each other; more than this only queue for the processor.
const READERS: Limits = Limits { max: 4, wait: Duration::from_secs(5), trust: None };

/// Rows in one `INSERT`: beyond this a longer statement gains nothing and only holds the writer.
const INSERT_ROWS_MAX: usize = 128;

/// Ids in one `IN (…)`.
const KEYS_MAX: usize = 512;

/// Pages kept in memory by the writer, in KiB: the inner pages of every index, and the leaves that
/// a minute's events touch.
const WRITER_CACHE_KIB: u32 = 16 * 1024;

/// Pages in the write-ahead log before a commit moves them into the file: 16 MiB, so that a page
/// that changes again and again is moved once.
const WAL_PAGES: u32 = 4_000;

/// Statements of every row count (powers of two up to [`INSERT_ROWS_MAX`]) for every table, and
/// the queries beside them.
const STATEMENTS_CACHED: usize = 256;

/// Rows that a connection may be ahead of who reads them: what a projection looks up at once.
const ROWS_BUFFERED: usize = 1_024;

/// SQLITE_CORRUPT and SQLITE_NOTADB.
const DAMAGED: [u32; 2] = [11, 26];

/// A file up to this size is looked through at the start, which takes a fraction of a second.
const CHECKED_BYTES_MAX: u64 = 64 * 1024 * 1024;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/read/sqlite");

impl ReadError {
    fn sqlite(error: sqlx::Error) -> Self {
        // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_CONSTRAINT.
        match code_of(&error) {
            Some(5 | 6) => Self::Busy(error),
            Some(19) => Self::Refused(error),
            Some(code) if DAMAGED.contains(&code) => Self::Damaged(error),
            _ if matches!(error, sqlx::Error::PoolTimedOut) => Self::Busy(error),
            _ => Self::Failed(error),
        }
    }
}

/// The connection that writes.
struct Writer {
    /// How to open it anew; `None`: it is closed for good.
    options: Option<SqliteConnectOptions>,
    connection: Option<SqliteConnection>,
}

impl Writer {
    async fn connected(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if self.connection.is_none() {
            let options = self.options.as_ref().ok_or(sqlx::Error::PoolClosed)?;
            self.connection = Some(options.connect().await?);
        }
        Ok(self.connection.as_mut().expect("it was just opened"))
    }

    /// Begins a transaction. A connection that cannot is given up: the next one is opened anew.
    async fn begin(&mut self) -> Result<(), ReadError> {
        let connection = self.connected().await.map_err(ReadError::sqlite)?;
        let begun = sqlx::query("BEGIN IMMEDIATE").execute(connection).await;
        let begun = begun.map(drop).map_err(ReadError::sqlite);
        if begun.as_ref().is_err_and(|error| !matches!(error, ReadError::Busy(_))) {
            self.connection = None;
        }
        begun
    }

    /// Undoes what a transaction left. SQLite may have undone it by itself (a full disk), and refuses
    /// to undo it once more: either way the next transaction finds nothing of it.
    async fn undo(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if sqlx::query("ROLLBACK").execute(connection).await.is_err() {
            self.connection = None;
        }
    }
}

/// A transaction that writes, the only one. Dropping it undoes it.
pub(super) struct Tx {
    /// `None` once it is committed.
    writer: Option<OwnedMutexGuard<Writer>>,
}

impl Tx {
    fn connection(&mut self) -> Result<&mut SqliteConnection, ReadError> {
        let connection = self.writer.as_mut().and_then(|writer| writer.connection.as_mut());
        connection.ok_or(ReadError::Failed(sqlx::Error::PoolClosed))
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(handle) => drop(handle.spawn(async move { writer.undo().await })),
            // Closing it undoes it too.
            Err(_) => writer.connection = None,
        }
    }
}

/// The file, open.
#[derive(Clone)]
pub(super) struct Database {
    writer: Arc<Mutex<Writer>>,
    readers: Connections<Sqlite>,
}

impl Database {
    /// Opens the file; one that is damaged is deleted first, to be filled from the journal.
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        let error = match Self::open_file(path).await {
            Err(error) if is_damaged(&error) => error,
            opened => return opened,
        };
        let error = format!("{error:#}");
        tracing::warn!(error, "the read models are damaged: rebuilding them from the journal");
        erase(path)?;
        Self::open_file(path).await
    }

    async fn open_file(path: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5))
            .pragma("wal_autocheckpoint", WAL_PAGES.to_string())
            // What a statement may have to take back is kept in memory and not in a file for each.
            .pragma("temp_store", "MEMORY")
            .disable_statement_logging()
            // A page of rows is handed over in one go, and not fifty at a time.
            .row_buffer_size(ROWS_BUFFERED)
            .statement_cache_capacity(STATEMENTS_CACHED);
        let describe = || {
            let path = path.display();
            format!(
                "cannot open the read database {path} (is its disk full, or its folder read-only?)"
            )
        };
        let writes = options.clone().pragma("cache_size", format!("-{WRITER_CACHE_KIB}"));
        let mut connection = writes.connect().await.with_context(describe)?;
        if std::fs::metadata(path).is_ok_and(|file| file.len() <= CHECKED_BYTES_MAX) {
            quick_check(&mut connection).await?;
        }
        let migrated = MIGRATIONS.run(&mut connection).await;
        migrated.context("cannot bring the read database up to date")?;
        let writer = Writer { options: Some(writes), connection: Some(connection) };
        let readers = Connections::new(options.read_only(true), READERS);
        Ok(Self { writer: Arc::new(Mutex::new(writer)), readers })
    }

    pub(super) async fn begin(&self) -> Result<Tx, ReadError> {
        let waiting = timeout(WRITER_WAIT, self.writer.clone().lock_owned());
        let mut writer = waiting.await.map_err(|_| ReadError::Busy(sqlx::Error::PoolTimedOut))?;
        writer.begin().await?;
        Ok(Tx { writer: Some(writer) })
    }

    pub(super) async fn fetch(
        &self,
        sql: SqlStr,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, ReadError> {
        let query = sqlx::query_with(sql, arguments(params)?);
        query.fetch_all(&self.readers).await.map(rows).map_err(ReadError::sqlite)
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        let mut writer = self.writer.lock().await;
        writer.options = None;
        if let Some(connection) = writer.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the read database was closed"
            );
        }
    }
}

/// What SQLite finds wrong with the file.
#[derive(Debug, thiserror::Error)]
#[error("the read database is damaged: {0}")]
struct Damaged(String);

async fn quick_check(connection: &mut SqliteConnection) -> anyhow::Result<()> {
    let found: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(connection).await?;
    if found == "ok" { Ok(()) } else { Err(Damaged(found).into()) }
}

fn is_damaged(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let code = cause.downcast_ref::<sqlx::Error>().and_then(code_of);
        cause.is::<Damaged>() || code.is_some_and(|code| DAMAGED.contains(&code))
    })
}

/// Extended codes keep the code in the low byte.
fn code_of(error: &sqlx::Error) -> Option<u32> {
    Some(error.as_database_error()?.code()?.parse::<u32>().ok()? & 0xff)
}

/// Deletes the file and what SQLite keeps beside it.
pub(super) fn erase(path: &Path) -> anyhow::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("cannot delete the read database");
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) async fn execute(
    tx: &mut Tx,
    sql: SqlStr,
    params: Vec<Param>,
) -> Result<u64, ReadError> {
    let done = sqlx::query_with(sql, arguments(params)?).execute(tx.connection()?).await;
    Ok(done.map_err(ReadError::sqlite)?.rows_affected())
}

pub(super) async fn fetch(
    tx: &mut Tx,
    sql: SqlStr,
    params: Vec<Param>,
) -> Result<Vec<Row>, ReadError> {
    let query = sqlx::query_with(sql, arguments(params)?);
    query.fetch_all(tx.connection()?).await.map(rows).map_err(ReadError::sqlite)
}

pub(super) async fn fetch_of(tx: &mut Tx, sql: &str, keys: &[Uuid]) -> Result<Vec<Row>, ReadError> {
    let mut found = Vec::with_capacity(keys.len());
    for keys in keys.chunks(KEYS_MAX) {
        // Few different statements, so that each stays prepared: the last key fills the places up.
        let count = keys.len().next_power_of_two();
        let places = vec![PLACE; count].join(", ");
        let sql = AssertSqlSafe(format!("{sql} IN ({places})")).into_sql_str();
        let mut params: Vec<_> = keys.iter().map(|key| Param::from(*key)).collect();
        let last = params.last().cloned();
        params.resize(count, last.unwrap_or(Param::Text(None)));
        found.extend(fetch(tx, sql, params).await?);
    }
    Ok(found)
}

pub(super) async fn copy_shape(tx: &mut Tx, from: &str, to: &str) -> Result<(), ReadError> {
    // The table before its full text and its indexes, and those before the triggers.
    const MADE_BY: &str = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL \
        AND tbl_name IN ($1, $1 || '_text', $1 || '_text_words') \
        ORDER BY type = 'trigger', type DESC, name";
    // What the planner is told of the one is as true of the other.
    const STATISTICS: &str = "INSERT INTO sqlite_stat1 (tbl, idx, stat) \
        SELECT $2, replace(idx, $1, $2), stat FROM sqlite_stat1 WHERE tbl = $1";
    for made_by in fetch(tx, MADE_BY.into_sql_str(), vec![from.into()]).await? {
        let sql = AssertSqlSafe(made_by.text(0)?.replace(from, to));
        execute(tx, sql.into_sql_str(), Vec::new()).await?;
    }
    execute(tx, STATISTICS.into_sql_str(), vec![from.into(), to.into()]).await.map(drop)
}

pub(super) async fn commit(mut tx: Tx) -> Result<(), ReadError> {
    let committed = sqlx::query("COMMIT").execute(tx.connection()?).await;
    committed.map_err(ReadError::sqlite)?;
    tx.writer = None;
    Ok(())
}

fn rows(rows: Vec<SqliteRow>) -> Vec<Row> {
    rows.into_iter().map(|row| Row(RowOf::Sqlite(row))).collect()
}

fn arguments(params: Vec<Param>) -> Result<SqliteArguments, ReadError> {
    let mut arguments = SqliteArguments::default();
    Arguments::reserve(&mut arguments, params.len(), 0);
    for param in params {
        let added = match param {
            Param::Int(value) => Arguments::add(&mut arguments, value),
            Param::Text(value) => Arguments::add(&mut arguments, value),
        };
        added.map_err(|error| ReadError::Refused(sqlx::Error::Encode(error)))?;
    }
    Ok(arguments)
}

/// A value's place in a statement that this file puts together. SQLite takes `$n` for a name, and
/// looks through all names of the statement for each value: with a thousand values that alone is
/// as dear as the insert.
const PLACE: &str = "?";

/// The statements of an [`Insert`] for the row counts 1, 2, 4 …, made once; any number of rows is
/// put together from them.
pub(super) struct Statements([OnceLock<Arc<str>>; INSERT_ROWS_MAX.ilog2() as usize + 1]);

impl Default for Statements {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }
}

impl Statements {
    pub(super) async fn run(
        &self,
        insert: &Insert,
        tx: &mut Tx,
        mut params: Vec<Param>,
    ) -> Result<(), ReadError> {
        while !params.is_empty() {
            let rows = (params.len() / insert.columns).min(INSERT_ROWS_MAX);
            let exponent = rows.ilog2() as usize;
            let rest = params.split_off((1 << exponent) * insert.columns);
            let statement = AssertSqlSafe(self.statement(insert, exponent)).into_sql_str();
            execute(tx, statement, params).await?;
            params = rest;
        }
        Ok(())
    }

    fn statement(&self, insert: &Insert, exponent: usize) -> Arc<str> {
        let build = || {
            let row = format!("({})", vec![PLACE; insert.columns].join(", "));
            let rows = vec![row; 1 << exponent].join(", ");
            // Whatever fails undoes the whole transaction. To be able to undo the statement alone, SQLite
            // would copy each page before it changes it, and have the full text written out.
            let head = insert.head.replacen("INSERT", "INSERT OR FAIL", 1);
            format!("{head}VALUES {rows}{}", insert.tail).into()
        };
        self.0[exponent].get_or_init(build).clone()
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::retry::{Failure, FailureKind};

    use super::*;
    use crate::projections::db::{FILE_NAME, Place, Query, ReadDb};

    async fn open(dir: &tempfile::TempDir) -> ReadDb {
        ReadDb::open(&Place::File(dir.path().join(FILE_NAME))).await.unwrap()
    }

    #[tokio::test]
    async fn it_is_opened_again_with_its_rows_and_in_wal_mode() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).await;
        let mut tx = db.begin().await.unwrap();
        let insert =
            Insert::new("projection_checkpoints", &["projection", "partition", "position"], "");
        let rows = (0..300_u16)
            .flat_map(|partition| vec!["test".into(), partition.into(), Param::from(7_u64)])
            .collect();
        insert.run(&mut tx, rows).await.unwrap();
        tx.commit().await.unwrap();
        db.close().await;

        let db = open(&dir).await;
        let count = db.fetch(Query::new("SELECT COUNT(*) FROM projection_checkpoints")).await;
        assert_eq!(count.unwrap()[0].int(0).unwrap(), 300);
        let mode = db.fetch(Query::new("PRAGMA journal_mode")).await.unwrap();
        assert_eq!(mode[0].text(0).unwrap(), "wal");
    }

    #[tokio::test]
    async fn what_is_not_committed_is_undone_and_the_next_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).await;
        let insert =
            Insert::new("projection_checkpoints", &["projection", "partition", "position"], "");
        let row = |name: &str| vec![name.into(), 0_u16.into(), Param::from(7_u64)];
        let mut dropped = db.begin().await.unwrap();
        insert.run(&mut dropped, row("dropped")).await.unwrap();
        drop(dropped);
        let mut refused = db.begin().await.unwrap();
        insert.run(&mut refused, row("once")).await.unwrap();
        // What stands before the row that is refused in the same statement is undone with it.
        let both = [row("new"), row("once")].concat();
        let again = insert.run(&mut refused, both).await;
        assert!(matches!(again, Err(ReadError::Refused(_))), "{again:?}");
        drop(refused);
        let mut kept = db.begin().await.unwrap();
        insert.run(&mut kept, row("kept")).await.unwrap();
        kept.commit().await.unwrap();
        let names = Query::new("SELECT projection FROM projection_checkpoints");
        let names = db.fetch_as(names, |row| row.text(0)).await.unwrap();
        assert_eq!(names, ["kept"]);
        db.close().await;
        assert!(matches!(db.begin().await.err(), Some(ReadError::Failed(_))));
    }

    #[tokio::test]
    async fn a_reader_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).await;
        let outcome = db.fetch(Query::new("DELETE FROM projection_checkpoints RETURNING 1")).await;
        assert_eq!(Failure::from(outcome.err().unwrap()).kind, FailureKind::System);
    }

    #[test]
    fn an_upsert_replaces_what_may_change() {
        let insert = Insert::upsert("t_v1", &["id", "made", "a", "b"], &["made"]);
        assert_eq!(
            &*insert.values.statement(&insert, 1),
            "INSERT OR FAIL INTO t_v1 (id, made, a, b) VALUES (?, ?, ?, ?), (?, ?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = excluded.b"
        );
    }
}
