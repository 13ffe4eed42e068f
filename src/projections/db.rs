//! The read database: derived data that can be deleted and is rebuilt from the journal.
//!
//! Everything above speaks to it through [`ReadDb`] and [`ReadTx`] in one dialect that both SQLite
//! and PostgreSQL understand: `$n` parameters, 64-bit integers and `TEXT`, ids as text, JSON as
//! text, texts in the order of their bytes. Only this module knows which database is behind it:
//! `sqlite` (a file, one connection that writes) or `postgres` (a schema of its own). Full text is asked
//! of each in its own words (`full_text`).

mod full_text;
mod postgres;
mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use souk_actors::faults::points;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Postgres, Row as _, SqlSafeStr, Sqlite};
use uuid::Uuid;

pub use full_text::Wanted;

use super::told::Told;

/// The file's name in the data folder.
pub const FILE_NAME: &str = "read.db";

/// Where the read models are kept.
#[derive(Clone)]
pub enum Place {
    /// In this SQLite file.
    File(PathBuf),
    /// In the schema `souk_read` of this PostgreSQL database.
    Postgres(Box<PgConnectOptions>),
}

/// Why the read database did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Someone else holds it for the moment.
    #[error("the read database is busy")]
    Busy(#[source] sqlx::Error),
    /// It does not work.
    #[error("the read database failed")]
    Failed(#[source] sqlx::Error),
    /// The file is not what was written.
    #[error(
        "the read database is damaged: stop the server and delete it; it is rebuilt at the start"
    )]
    Damaged(#[source] sqlx::Error),
    /// It will not have what it was given, and will not on a second try.
    #[error("the read database refused a value")]
    Refused(#[source] sqlx::Error),
    /// A stored value is not what its column holds. Names the column's number, never the value.
    #[error("column {0} of a read model holds an unreadable value")]
    Unreadable(usize),
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let chain = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match error {
            ReadError::Busy(_) => Self::transient(chain),
            ReadError::Failed(_) | ReadError::Damaged(_) => Self::system(chain),
            ReadError::Refused(_) | ReadError::Unreadable(_) => Self::permanent(chain),
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
    fn as_int(&self) -> Option<i64> {
        if let Self::Int(value) = self { *value } else { None }
    }

    fn as_text(&self) -> Option<&str> {
        if let Self::Text(value) = self { value.as_deref() } else { None }
    }

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

    /// Something of several parts, as JSON.
    pub fn json<T: Serialize>(value: &T) -> Self {
        let json = serde_json::to_string(value).unwrap_or_default();
        Self::text(Some(&json))
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
pub struct Row(RowOf);

enum RowOf {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    fn get<'r, T>(&'r self, column: usize) -> Result<T, ReadError>
    where
        T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
        T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
    {
        let value = match &self.0 {
            RowOf::Sqlite(row) => row.try_get(column),
            RowOf::Postgres(row) => row.try_get(column),
        };
        value.map_err(|_| ReadError::Unreadable(column))
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

    /// Something of several parts, as JSON.
    pub fn json<T: DeserializeOwned>(&self, column: usize) -> Result<T, ReadError> {
        let text = self.get::<&str>(column)?;
        serde_json::from_str(text).map_err(|_| ReadError::Unreadable(column))
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
    backend: Backend,
    serving: Serving,
    told: Arc<Told>,
}

/// Which version of each projection readers are given; one that is not named is at version 1.
type Serving = Arc<RwLock<BTreeMap<&'static str, u32>>>;

#[derive(Clone)]
enum Backend {
    Sqlite(sqlite::Database),
    Postgres(postgres::Database),
}

impl ReadDb {
    /// Opens the database, creates it where it does not exist, and brings its tables up to date.
    pub async fn open(place: &Place) -> anyhow::Result<Self> {
        let backend = match place {
            Place::File(path) => Backend::Sqlite(sqlite::Database::open(path).await?),
            Place::Postgres(options) => Backend::Postgres(postgres::Database::open(options).await?),
        };
        points::reach("migration.read").await;
        Ok(Self { backend, serving: Serving::default(), told: Arc::default() })
    }

    /// The version of a projection that readers are given.
    pub fn serving(&self, projection: &str) -> u32 {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.get(projection).copied().unwrap_or(1)
    }

    /// Gives another version to whoever reads from now on.
    pub(super) fn serve(&self, projection: &'static str, version: u32) {
        let mut serving = self.serving.write().unwrap_or_else(PoisonError::into_inner);
        serving.insert(projection, version);
    }

    /// What metrics are told of how far projections are.
    pub(super) fn told(&self) -> &Told {
        &self.told
    }

    /// The name that a table of a projection has in the version that serves.
    pub fn table(&self, projection: &str, table: &str) -> String {
        table_of(table, self.serving(projection))
    }

    /// Closes it without its rows, so that it is filled from the beginning when it is opened next.
    pub async fn erase(self, place: &Place) -> anyhow::Result<()> {
        if let Backend::Postgres(database) = &self.backend {
            database.erase().await?;
        }
        self.close().await;
        match place {
            Place::File(path) => sqlite::erase(path),
            Place::Postgres(_) => Ok(()),
        }
    }

    /// As [`ReadDb::erase`], of a database that need not be open, nor sound.
    pub async fn forget(place: &Place) -> anyhow::Result<()> {
        match place {
            Place::File(path) => sqlite::erase(path),
            Place::Postgres(_) => Self::open(place).await?.erase(place).await,
        }
    }

    /// Begins a transaction that writes. It waits for its turn; dropping it undoes it.
    pub async fn begin(&self) -> Result<ReadTx, ReadError> {
        Ok(ReadTx(match &self.backend {
            Backend::Sqlite(database) => TxOf::Sqlite(database.begin().await?),
            Backend::Postgres(database) => TxOf::Postgres(database.begin().await?),
        }))
    }

    /// Reads all rows of an answer; bound it with `LIMIT`.
    pub async fn fetch(&self, query: Query) -> Result<Vec<Row>, ReadError> {
        let Query { sql, params } = query;
        let sql = AssertSqlSafe(sql).into_sql_str();
        match &self.backend {
            Backend::Sqlite(database) => database.fetch(sql, params).await,
            Backend::Postgres(database) => database.fetch(sql, params).await,
        }
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
        match &self.backend {
            Backend::Sqlite(database) => database.close().await,
            Backend::Postgres(database) => database.close().await,
        }
    }
}

/// The name of a table in a version of its projection.
pub fn table_of(table: &str, version: u32) -> String {
    if version <= 1 { table.to_owned() } else { format!("{table}_r{version}") }
}

/// A transaction that writes. On SQLite it is the only one; on PostgreSQL others run beside it,
/// and [`ReadTx::fetch_locked`] is what keeps two from changing the same things.
pub struct ReadTx(TxOf);

enum TxOf {
    Sqlite(sqlite::Tx),
    Postgres(postgres::Tx),
}

impl ReadTx {
    /// Changes rows and says how many.
    pub async fn execute(
        &mut self,
        sql: impl SqlSafeStr,
        params: Vec<Param>,
    ) -> Result<u64, ReadError> {
        match &mut self.0 {
            TxOf::Sqlite(tx) => sqlite::execute(tx, sql.into_sql_str(), params).await,
            TxOf::Postgres(tx) => postgres::execute(tx, sql.into_sql_str(), params).await,
        }
    }

    /// Reads rows as this transaction sees them.
    pub async fn fetch(
        &mut self,
        sql: impl SqlSafeStr,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, ReadError> {
        match &mut self.0 {
            TxOf::Sqlite(tx) => sqlite::fetch(tx, sql.into_sql_str(), params).await,
            TxOf::Postgres(tx) => postgres::fetch(tx, sql.into_sql_str(), params).await,
        }
    }

    /// Reads rows that nobody else changes or locks until this transaction ends; waits for those
    /// who do. `sql` ends where `FOR UPDATE` may follow.
    pub async fn fetch_locked(
        &mut self,
        sql: &str,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, ReadError> {
        match &mut self.0 {
            TxOf::Sqlite(tx) => sqlite::fetch(tx, AssertSqlSafe(sql).into_sql_str(), params).await,
            TxOf::Postgres(tx) => {
                let sql = AssertSqlSafe(format!("{sql} FOR UPDATE"));
                postgres::fetch(tx, sql.into_sql_str(), params).await
            }
        }
    }

    /// Reads the rows whose key, the column that `sql` ends with, is one of these.
    pub async fn fetch_of(&mut self, sql: &str, keys: &[Uuid]) -> Result<Vec<Row>, ReadError> {
        match &mut self.0 {
            TxOf::Sqlite(tx) => sqlite::fetch_of(tx, sql, keys).await,
            TxOf::Postgres(tx) => postgres::fetch_of(tx, sql, keys).await,
        }
    }

    /// Makes an empty table like another one, with the same columns and indexes. A table of that name
    /// that is left over goes.
    pub async fn copy_shape(&mut self, from: &str, to: &str) -> Result<(), ReadError> {
        self.drop_table(to).await?;
        match &mut self.0 {
            TxOf::Sqlite(tx) => sqlite::copy_shape(tx, from, to).await,
            TxOf::Postgres(tx) => postgres::copy_shape(tx, from, to).await,
        }
    }

    /// Drops a table with its indexes, if it is there.
    pub async fn drop_table(&mut self, table: &str) -> Result<(), ReadError> {
        self.drop_text(table).await?;
        let sql = AssertSqlSafe(format!("DROP TABLE IF EXISTS {table}"));
        self.execute(sql, Vec::new()).await.map(drop)
    }

    /// Takes all rows out of a table, at once.
    pub async fn empty(&mut self, table: &str) -> Result<(), ReadError> {
        let verb = match &self.0 {
            // Without a condition it forgets whole pages.
            TxOf::Sqlite(_) => "DELETE FROM",
            TxOf::Postgres(_) => "TRUNCATE",
        };
        self.execute(AssertSqlSafe(format!("{verb} {table}")), Vec::new()).await.map(drop)
    }

    /// Makes everything of this transaction stand, together.
    pub async fn commit(self) -> Result<(), ReadError> {
        match self.0 {
            TxOf::Sqlite(tx) => sqlite::commit(tx).await,
            TxOf::Postgres(tx) => postgres::commit(tx).await,
        }
    }
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
    pub fn select(columns: &[&'static str], table: &str) -> Self {
        let sql = format!("SELECT {} FROM {table} WHERE 1 = 1", columns.join(", "));
        Self { sql, params: Vec::new() }
    }

    /// Goes on with the name of a table.
    #[must_use]
    pub fn table(mut self, table: &str) -> Self {
        self.sql.push_str(table);
        self
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

/// An `INSERT` of many rows at once. Its statements are made once and stay prepared.
pub struct Insert {
    head: String,
    columns: usize,
    tail: String,
    values: sqlite::Statements,
    arrays: OnceLock<Arc<str>>,
}

impl Insert {
    /// Rows for `columns` of `table`; `tail` follows the values (`ON CONFLICT …`).
    pub fn new(table: &str, columns: &[&'static str], tail: &str) -> Self {
        Self {
            head: format!("INSERT INTO {table} ({}) ", columns.join(", ")),
            columns: columns.len(),
            tail: tail.to_owned(),
            values: sqlite::Statements::default(),
            arrays: OnceLock::new(),
        }
    }

    /// Rows that replace those with the same first column. What is `fixed` never changes once a row
    /// is there and is not set again: the indexes that rest on it are left alone, and they are most
    /// of what a row costs. Where that is all of it, a row stays as it is.
    pub fn upsert(table: &str, columns: &[&'static str], fixed: &[&'static str]) -> Self {
        let (key, others) = columns.split_first().expect("a table has columns");
        let changing = others.iter().filter(|name| !fixed.contains(name));
        let sets: Vec<_> = changing.map(|name| format!("{name} = excluded.{name}")).collect();
        let update = match sets.is_empty() {
            true => "NOTHING".to_owned(),
            false => format!("UPDATE SET {}", sets.join(", ")),
        };
        let tail = format!(" ON CONFLICT ({key}) DO {update}");
        Self::new(table, columns, &tail)
    }

    /// Writes rows; `params` has the values of all of them, one row after the other. Rows with the
    /// same key must not be in one call.
    pub async fn run(&self, tx: &mut ReadTx, params: Vec<Param>) -> Result<(), ReadError> {
        debug_assert_eq!(params.len() % self.columns, 0, "whole rows");
        if params.is_empty() {
            return Ok(());
        }
        match &mut tx.0 {
            TxOf::Sqlite(tx) => self.values.run(self, tx, params).await,
            TxOf::Postgres(tx) => {
                let sql = self.arrays.get_or_init(|| postgres::statement(self, &params)).clone();
                postgres::insert(tx, sql, self.columns, &params).await
            }
        }
    }
}
