//! The read database: derived data that can be deleted and is rebuilt from the journal.
//!
//! Everything above speaks to it through [`ReadDb`] and [`ReadTx`] in one dialect that both SQLite
//! and PostgreSQL understand: `$n` parameters, `INTEGER` and `TEXT`, ids as text, JSON as text.
//! Only this file knows which database is behind it.
//!
//! SQLite has one writer per file, so there is one writing connection and a pool that only reads.
//! `synchronous=NORMAL` is enough: what a power cut takes from the end of this file is projected
//! again, because the checkpoint goes with it.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, Row as _, SqlSafeStr, Sqlite};
use uuid::Uuid;

/// The file's name in the data folder.
pub const FILE_NAME: &str = "read.db";

/// Readers do not block each other; more than this only queue for the processor.
const READERS_MAX: u32 = 4;

/// Rows in one `INSERT`: beyond this a longer statement gains nothing and only holds the writer.
const INSERT_ROWS_MAX: usize = 128;

/// Statements of every row count (powers of two up to [`INSERT_ROWS_MAX`]) for every table, and
/// the queries beside them.
const STATEMENTS_CACHED: usize = 256;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/read/sqlite");

/// Why the read database did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Someone else holds it for the moment.
    #[error("the read database is busy")]
    Busy(#[source] sqlx::Error),
    /// It does not work.
    #[error("the read database failed")]
    Failed(#[source] sqlx::Error),
    /// A stored value is not what its column holds. Names the column's number, never the value.
    #[error("column {0} of a read model holds an unreadable value")]
    Unreadable(usize),
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_BUSY and SQLITE_LOCKED, whose extended codes keep them in the low byte.
        let busy = error
            .as_database_error()
            .and_then(|database| database.code()?.parse::<u32>().ok())
            .is_some_and(|code| matches!(code & 0xff, 5 | 6));
        if busy || matches!(error, sqlx::Error::PoolTimedOut) {
            Self::Busy(error)
        } else {
            Self::Failed(error)
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let chain = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match error {
            ReadError::Busy(_) => Self::transient(chain),
            ReadError::Failed(_) => Self::system(chain),
            ReadError::Unreadable(_) => Self::permanent(chain),
        }
    }
}

/// A value bound to `$n`. Typed even when it is null, as PostgreSQL wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Param {
    /// An `INTEGER`.
    Int(Option<i64>),
    /// A `TEXT`.
    Text(Option<Arc<str>>),
}

impl From<Timestamp> for Param {
    fn from(value: Timestamp) -> Self {
        Self::Int(Some(value.millis()))
    }
}

impl From<i64> for Param {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<u64> for Param {
    /// Positions and versions count up from 1 and never come near the edge.
    fn from(value: u64) -> Self {
        Self::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<u32> for Param {
    fn from(value: u32) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<u16> for Param {
    fn from(value: u16) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<bool> for Param {
    fn from(value: bool) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<&str> for Param {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.into()))
    }
}

impl From<&String> for Param {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.as_str().into()))
    }
}

impl From<&Arc<str>> for Param {
    fn from(value: &Arc<str>) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl From<Uuid> for Param {
    fn from(value: Uuid) -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self::Text(Some((&*value.hyphenated().encode_lower(&mut buffer)).into()))
    }
}

impl Param {
    /// A text or null.
    pub fn text(value: Option<&str>) -> Self {
        Self::Text(value.map(Into::into))
    }

    /// The word of an enum without values, as serde writes it.
    pub fn word<T: Serialize>(value: &T) -> Self {
        let json = serde_json::to_value(value).unwrap_or_default();
        Self::text(json.as_str())
    }

    /// The word of an enum without values, or null.
    pub fn word_or_null<T: Serialize>(value: Option<&T>) -> Self {
        value.map_or(Self::Text(None), Self::word)
    }

    /// An id or null.
    pub fn id(value: Option<Uuid>) -> Self {
        value.map_or(Self::Text(None), Into::into)
    }

    /// A point in time or null.
    pub fn time(value: Option<Timestamp>) -> Self {
        Self::Int(value.map(Timestamp::millis))
    }
}

/// One row of an answer; columns by number, in the order of the `SELECT`.
pub struct Row(SqliteRow);

impl Row {
    fn get<'r, T>(&'r self, column: usize) -> Result<T, ReadError>
    where
        T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
    {
        self.0.try_get(column).map_err(|_| ReadError::Unreadable(column))
    }

    /// A number.
    pub fn int(&self, column: usize) -> Result<i64, ReadError> {
        self.get(column)
    }

    /// A number or null.
    pub fn int_or_null(&self, column: usize) -> Result<Option<i64>, ReadError> {
        self.get(column)
    }

    /// A number that is never negative.
    pub fn count(&self, column: usize) -> Result<u64, ReadError> {
        u64::try_from(self.int(column)?).map_err(|_| ReadError::Unreadable(column))
    }

    /// A truth value, stored as 0 or 1.
    pub fn flag(&self, column: usize) -> Result<bool, ReadError> {
        Ok(self.int(column)? != 0)
    }

    /// A point in time, stored in milliseconds.
    pub fn time(&self, column: usize) -> Result<Timestamp, ReadError> {
        self.int(column).map(Timestamp::from_millis)
    }

    /// A point in time, or null.
    pub fn time_or_null(&self, column: usize) -> Result<Option<Timestamp>, ReadError> {
        Ok(self.int_or_null(column)?.map(Timestamp::from_millis))
    }

    /// A text.
    pub fn text(&self, column: usize) -> Result<String, ReadError> {
        self.get(column)
    }

    /// A text or null.
    pub fn text_or_null(&self, column: usize) -> Result<Option<String>, ReadError> {
        self.get(column)
    }

    /// A word of an enum, as serde writes it.
    pub fn word<T: DeserializeOwned>(&self, column: usize) -> Result<T, ReadError> {
        from_word(self.get(column)?).ok_or(ReadError::Unreadable(column))
    }

    /// A word of an enum, or null.
    pub fn word_or_null<T: DeserializeOwned>(&self, column: usize) -> Result<Option<T>, ReadError> {
        self.get::<Option<&str>>(column)?
            .map(|text| from_word(text).ok_or(ReadError::Unreadable(column)))
            .transpose()
    }

    /// Words of an enum with commas between.
    pub fn words<T: DeserializeOwned>(&self, column: usize) -> Result<Vec<T>, ReadError> {
        self.get::<&str>(column)?
            .split(',')
            .filter(|word| !word.is_empty())
            .map(|word| from_word(word).ok_or(ReadError::Unreadable(column)))
            .collect()
    }

    /// An id.
    pub fn id(&self, column: usize) -> Result<Uuid, ReadError> {
        self.get::<&str>(column)?.parse().map_err(|_| ReadError::Unreadable(column))
    }

    /// An id or null.
    pub fn id_or_null(&self, column: usize) -> Result<Option<Uuid>, ReadError> {
        self.get::<Option<&str>>(column)?
            .map(|text| text.parse().map_err(|_| ReadError::Unreadable(column)))
            .transpose()
    }
}

fn from_word<T: DeserializeOwned>(word: &str) -> Option<T> {
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(word)).ok()
}

/// A handle on the read database; cheap to clone.
#[derive(Clone)]
pub struct ReadDb {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl ReadDb {
    /// Opens the database in this file, creates it where it does not exist, and brings its tables
    /// up to date.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(STATEMENTS_CACHED);
        let describe = || format!("cannot open the read database {}", path.display());
        let writer = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .with_context(describe)?;
        MIGRATIONS.run(&writer).await.context("cannot bring the read database up to date")?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options.read_only(true))
            .await
            .with_context(describe)?;
        Ok(Self { writer, readers })
    }

    /// Begins a transaction that writes. It waits for its turn; dropping it undoes it.
    pub async fn begin(&self) -> Result<ReadTx, ReadError> {
        Ok(ReadTx(self.writer.begin_with("BEGIN IMMEDIATE").await?))
    }

    /// Reads all rows of an answer; bound it with `LIMIT`.
    pub async fn fetch(&self, query: Query) -> Result<Vec<Row>, ReadError> {
        let Query { sql, params } = query;
        let rows = sqlx::query_with(AssertSqlSafe(sql), arguments(params)?)
            .fetch_all(&self.readers)
            .await?;
        Ok(rows.into_iter().map(Row).collect())
    }

    /// Reads all rows and turns each into a value.
    pub async fn fetch_as<T>(
        &self,
        query: Query,
        read: impl Fn(&Row) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        self.fetch(query).await?.iter().map(read).collect()
    }

    /// Closes all connections. What is written after this fails.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// A transaction on the one writing connection.
pub struct ReadTx(sqlx::Transaction<'static, Sqlite>);

impl ReadTx {
    /// Changes rows and says how many.
    pub async fn execute(
        &mut self,
        sql: impl SqlSafeStr,
        params: Vec<Param>,
    ) -> Result<u64, ReadError> {
        let done = sqlx::query_with(sql, arguments(params)?).execute(&mut *self.0).await?;
        Ok(done.rows_affected())
    }

    /// Reads rows as this transaction sees them.
    pub async fn fetch(
        &mut self,
        sql: impl SqlSafeStr,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, ReadError> {
        let rows = sqlx::query_with(sql, arguments(params)?).fetch_all(&mut *self.0).await?;
        Ok(rows.into_iter().map(Row).collect())
    }

    /// Makes everything of this transaction stand, together.
    pub async fn commit(self) -> Result<(), ReadError> {
        Ok(self.0.commit().await?)
    }
}

fn arguments(params: Vec<Param>) -> Result<SqliteArguments, ReadError> {
    let mut arguments = SqliteArguments::default();
    Arguments::reserve(&mut arguments, params.len(), 0);
    for param in params {
        let added = match param {
            Param::Int(value) => Arguments::add(&mut arguments, value),
            Param::Text(value) => Arguments::add(&mut arguments, value),
        };
        added.map_err(|error| ReadError::Failed(sqlx::Error::Encode(error)))?;
    }
    Ok(arguments)
}

/// A query put together from parts that this program wrote, and values that are only ever bound.
#[derive(Debug, Clone)]
pub struct Query {
    sql: String,
    params: Vec<Param>,
}

impl Query {
    /// A query that begins like this.
    pub fn new(sql: &'static str) -> Self {
        Self { sql: sql.to_owned(), params: Vec::new() }
    }

    /// The same query behind a word such as `EXPLAIN`.
    #[cfg(test)]
    pub fn prefix_for_tests(&mut self, prefix: &str) {
        self.sql.insert_str(0, prefix);
    }

    /// All rows of a table so far; go on with ` AND …`.
    pub fn select(columns: &[&'static str], table: &'static str) -> Self {
        let sql = format!("SELECT {} FROM {table} WHERE 1 = 1", columns.join(", "));
        Self { sql, params: Vec::new() }
    }

    /// Goes on with this text.
    #[must_use]
    pub fn then(mut self, sql: &'static str) -> Self {
        self.sql.push_str(sql);
        self
    }

    /// Goes on with a bound value.
    #[must_use]
    pub fn value(mut self, param: impl Into<Param>) -> Self {
        self.params.push(param.into());
        self.sql.push('$');
        self.sql.push_str(&self.params.len().to_string());
        self
    }

    /// Goes on with this text and a bound value, if there is one.
    #[must_use]
    pub fn when<P: Into<Param>>(self, sql: &'static str, param: Option<P>) -> Self {
        match param {
            Some(param) => self.then(sql).value(param),
            None => self,
        }
    }

    /// Goes on with the page before `(time, id)` in descending order.
    #[must_use]
    pub fn before(self, columns: &'static str, before: Option<(i64, Uuid)>) -> Self {
        match before {
            Some((millis, id)) => self
                .then(" AND (")
                .then(columns)
                .then(") < (")
                .value(millis)
                .then(", ")
                .value(id)
                .then(")"),
            None => self,
        }
    }
}

/// A value's place in a statement that this file puts together. SQLite takes `$n` for a name, and
/// looks through all names of the statement for each value: with a thousand values that alone is
/// as dear as the insert. (PostgreSQL will want its numbers here.)
const PLACE: &str = "?";

/// An `INSERT` of many rows at once. The statements for the row counts 1, 2, 4 … are made once and
/// stay prepared; any number of rows is put together from them.
pub struct Insert {
    head: String,
    columns: usize,
    tail: String,
    statements: [OnceLock<Arc<str>>; INSERT_ROWS_MAX.ilog2() as usize + 1],
}

impl Insert {
    /// Rows for `columns` of `table`; `tail` follows the values (`ON CONFLICT …`).
    pub fn new(table: &'static str, columns: &[&'static str], tail: &str) -> Self {
        Self {
            head: format!("INSERT INTO {table} ({}) VALUES ", columns.join(", ")),
            columns: columns.len(),
            tail: tail.to_owned(),
            statements: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    /// Rows that replace those with the same first column.
    pub fn upsert(table: &'static str, columns: &[&'static str]) -> Self {
        let (key, others) = columns.split_first().expect("a table has columns");
        let sets: Vec<_> = others.iter().map(|name| format!("{name} = excluded.{name}")).collect();
        let tail = format!(" ON CONFLICT ({key}) DO UPDATE SET {}", sets.join(", "));
        Self::new(table, columns, &tail)
    }

    /// Writes rows; `params` has the values of all of them, one row after the other.
    pub async fn run(&self, tx: &mut ReadTx, mut params: Vec<Param>) -> Result<(), ReadError> {
        debug_assert_eq!(params.len() % self.columns, 0, "whole rows");
        while !params.is_empty() {
            let rows = (params.len() / self.columns).min(INSERT_ROWS_MAX);
            let exponent = rows.ilog2() as usize;
            let rest = params.split_off((1 << exponent) * self.columns);
            tx.execute(AssertSqlSafe(self.statement(exponent)), params).await?;
            params = rest;
        }
        Ok(())
    }

    fn statement(&self, exponent: usize) -> Arc<str> {
        let build = || {
            let rows: Vec<_> = (0..1_usize << exponent)
                .map(|_| format!("({})", vec![PLACE; self.columns].join(", ")))
                .collect();
            format!("{}{}{}", self.head, rows.join(", "), self.tail).into()
        };
        self.statements[exponent].get_or_init(build).clone()
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::retry::FailureKind;

    use super::*;

    async fn open(dir: &tempfile::TempDir) -> ReadDb {
        ReadDb::open(&dir.path().join(FILE_NAME)).await.unwrap()
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
    async fn a_reader_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).await;
        let outcome = db.fetch(Query::new("DELETE FROM projection_checkpoints RETURNING 1")).await;
        assert_eq!(Failure::from(outcome.err().unwrap()).kind, FailureKind::System);
    }

    #[test]
    fn an_upsert_replaces_everything_but_the_key() {
        let insert = Insert::upsert("t_v1", &["id", "a", "b"]);
        assert_eq!(
            &*insert.statement(1),
            "INSERT INTO t_v1 (id, a, b) VALUES (?, ?, ?), (?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = excluded.b"
        );
    }
}
