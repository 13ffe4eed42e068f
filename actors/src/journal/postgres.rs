//! A journal in a PostgreSQL database, in a schema of its own ([`SCHEMA`]).
//!
//! A batch is one statement in autocommit, which locks the partition's lease and checks its epoch,
//! so that a batch costs one round trip and a writer that was replaced stores nothing. What several
//! partitions have to store at the same time is one statement too, which checks all their leases:
//! eight small commits cost almost eight times what one does. Others read. `synchronous_commit` is
//! read back on every connection that writes, and one that would answer before the commit is on disk
//! is refused.
//!
//! One process at a time serves a journal: the module `lease` says how it is told from a second
//! one, and what happens when it loses its place. The database may go away and come back:
//! connections are made again when they are needed.
//!
//! A connection that breaks during an append leaves a session that may still be at work, and commit
//! after the head has been read. So [`Store::settle`] raises the partition's epoch first: that waits
//! for an append under way, and makes a later one fail. Only then is the head worth reading.

mod append;
mod backup;
mod columns;
mod lease;

use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow, Postgres};
use sqlx::{ConnectOptions, Row};
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use super::backup::Contents;
use super::copy::{self, COPYING};
use super::{
    AppendError, Batch, Checkpoint, Error, FORMAT, Head, Lease, Letter, LetterFilter, LetterState,
    Outcome, PersonKey, Quarantine, Snapshot, Standing, Store, StreamNumber, Timer, TimerKey,
    chain, rows,
};
use crate::connections::{Connections, Limits, Trust};
use crate::event::{Position, StoredEvent};
use crate::faults::points;
use crate::together::Together;
use crate::world::Timestamp;
use append::Statements;
use columns::Id;
use lease::{Holder, Tenure};
use rows::{Columns as _, POSITION_MASK, event_columns, event_of, limit_of, place_of, seq, to_i64};

/// The schema of all tables of the journal.
pub const SCHEMA: &str = "souk_journal";
/// How many partitions a new journal gets unless asked otherwise.
pub const PARTITIONS_DEFAULT: u16 = 8;
/// How long a lease holds without a renewal, unless asked otherwise.
pub const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(10);
/// Readers at the same time, unless asked otherwise.
pub const READERS_DEFAULT: u32 = 8;

/// How many batches of several partitions are on their way at the same time: while one is synced to
/// disk the next one is worked on. More would be smaller.
const TURNS: usize = 2;

/// How long making a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long the database works on a statement before it gives up.
const STATEMENT_WITHIN: Duration = Duration::from_secs(20);
/// How long an answer is waited for: longer, so that the database says first what became of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(25);
/// A connection that was lent out longer ago is tried before it is used.
const TRY_AFTER_IDLE: Duration = Duration::from_secs(1);
/// The lock under which a journal is created and brought up to date ("soukjrnl").
const SET_UP_LOCK: i64 = 0x736f_756b_6a72_6e6c;

/// Where a journal is, and how it is used.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    connect: PgConnectOptions,
    /// How long a lease holds without a renewal.
    pub lease_ttl: Duration,
    /// Readers at the same time.
    pub readers_max: u32,
}

impl PostgresOptions {
    /// The journal in the database at this address (`postgres://user:password@host:port/database`).
    pub fn new(url: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::Mismatch(format!("not the address of a database: {why}"));
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(wrong("it does not begin with postgres://".to_owned()));
        }
        let connect = PgConnectOptions::from_str(url).map_err(|error| wrong(error.to_string()))?;
        let connect = connect
            .application_name("souk")
            .statement_cache_capacity(500)
            .options([("search_path", SCHEMA), ("jit", "off")])
            // Every query looks its rows up by an index. A plan is made while the tables are small
            // and kept while they grow: it must not be one that reads them whole.
            .options([("enable_seqscan", "off"), ("enable_hashjoin", "off")])
            .options([("enable_mergejoin", "off")])
            .disable_statement_logging();
        Ok(Self { connect, lease_ttl: LEASE_TTL_DEFAULT, readers_max: READERS_DEFAULT })
    }

    fn limited(&self) -> PgConnectOptions {
        let limit = STATEMENT_WITHIN.as_millis().to_string();
        self.connect.clone().options([("statement_timeout", limit)])
    }

    /// A connection without limits on its statements: leases and migrations have their own.
    async fn connect_for_lease(&self) -> Result<PgConnection, Error> {
        connect(&self.connect).await
    }

    /// A connection to append with.
    async fn connect_writer(&self) -> Result<PgConnection, Error> {
        // A plan for each set of values costs more than it gains: the arrays vary, nothing else.
        let options = self.limited().options([("plan_cache_mode", "force_generic_plan")]);
        let mut connection = connect(&options).await?;
        check_durability(&mut connection).await?;
        Ok(connection)
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    match tokio::time::timeout(CONNECT_WITHIN, options.connect()).await {
        Ok(connected) => connected.map_err(Error::database),
        Err(_) => {
            let what = format!("no connection within {CONNECT_WITHIN:?}; is the server up?");
            Err(Error::database(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, what))))
        }
    }
}

/// Refuses a server that answers before a commit is on its disk, and one that takes no writes.
async fn check_durability(connection: &mut PgConnection) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT current_setting('synchronous_commit') AS synchronous_commit,
         pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS read_only",
    )
    .fetch_one(connection)
    .await
    .map_err(Error::database)?;
    let synchronous: String = row.try_get("synchronous_commit").map_err(Error::database)?;
    if synchronous == "off" || synchronous == "local" {
        return Err(Error::Mismatch(format!(
            "the database would lose acknowledged commits: synchronous_commit is {synchronous}; \
             set it to on for this database or role"
        )));
    }
    if row.try_get("read_only").map_err(Error::database)? {
        return Err(Error::Mismatch("the database is read-only: connect to the primary".into()));
    }
    Ok(())
}

/// Says what only a crash of the database's whole machine would show.
async fn warn_of_settings(connection: &mut PgConnection) -> Result<(), Error> {
    let unsafe_ones: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting <> 'on'",
    )
    .fetch_all(connection)
    .await
    .map_err(Error::database)?;
    for setting in unsafe_ones {
        tracing::warn!(
            setting,
            "is not on: a crash of the database's machine can damage the journal"
        );
    }
    Ok(())
}

/// See the module.
#[derive(Debug)]
pub struct PostgresStore {
    options: PostgresOptions,
    partitions: u16,
    readers: Connections<Postgres>,
    appenders: Vec<Mutex<Appender>>,
    /// Batches of several partitions that are stored together.
    together: Together<(Lease, Batch), Result<(), AppendError>>,
    /// What stores them, while it is not at work.
    shared: std::sync::Mutex<Vec<Shared>>,
    /// None: open for reading only.
    tenure: Option<Arc<Tenure>>,
    keeper: Option<tokio::task::JoinHandle<()>>,
}

/// What became of an append, and whether its connection can be used again, within bounds.
async fn answered(
    appending: impl Future<Output = (Result<(), AppendError>, bool)>,
) -> (Result<(), AppendError>, bool) {
    let no_answer = || (Err(AppendError::Unknown(no_answer().with_source())), false);
    tokio::time::timeout(ANSWER_WITHIN, appending).await.unwrap_or_else(|_| no_answer())
}

/// What appends to one partition.
#[derive(Debug)]
struct Appender {
    connection: Option<PgConnection>,
    statements: Statements,
    /// The epoch handed out last.
    epoch: u64,
    /// The highest epoch that was ever asked for: an attempt whose answer was lost may still come
    /// true, and must not outrun a later one.
    tried: u64,
}

/// What appends to whatever partitions.
type Shared = (PgConnection, Statements);

impl Drop for PostgresStore {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

impl PostgresStore {
    /// Opens the journal, creates it where there is none, and takes its leases. `partitions` is
    /// what a new journal gets (none: [`PARTITIONS_DEFAULT`]); an old one must agree with it.
    ///
    /// When another process serves the journal, this waits until its lease expires, and fails with
    /// [`Error::Locked`] as soon as that process renews it; nothing has been changed then.
    pub async fn open(options: PostgresOptions, partitions: Option<u16>) -> Result<Self, Error> {
        Self::open_as(options, partitions, &FORMAT.to_string()).await
    }

    /// The same, of a journal in this format.
    async fn open_as(
        options: PostgresOptions,
        partitions: Option<u16>,
        format: &str,
    ) -> Result<Self, Error> {
        let mut connection = options.connect_for_lease().await?;
        check_durability(&mut connection).await?;
        warn_of_settings(&mut connection).await?;
        let holder = Holder::new();
        set_up_lock(&mut connection, "SELECT pg_advisory_lock($1)").await?;
        let stored = stored_partitions(&mut connection).await?;
        let partitions = partitions.or(stored).unwrap_or(PARTITIONS_DEFAULT);
        if let Some(stored) = stored {
            rows::check_setting("partitions", &stored.to_string(), &partitions.to_string())?;
            lease::take(&mut connection, &holder, options.lease_ttl).await?;
        }
        if format != COPYING {
            set_up(&mut connection, partitions).await?;
        }
        let taken = lease::take(&mut connection, &holder, options.lease_ttl).await?;
        set_up_lock(&mut connection, "SELECT pg_advisory_unlock($1)").await?;
        let tenure = Tenure::new(holder, options.lease_ttl, taken.asked);
        let appender = |epoch: &u64| {
            let (connection, statements) = (None, Statements::default());
            Mutex::new(Appender { connection, statements, epoch: *epoch, tried: *epoch })
        };
        let appenders: Vec<_> = taken.epochs.iter().map(appender).collect();
        let keeper = lease::keep(tenure.clone(), options.clone(), connection, appenders.len());
        Ok(Self {
            partitions,
            readers: readers(&options, &options.limited()),
            options,
            appenders,
            together: Together::new(TURNS),
            shared: std::sync::Mutex::default(),
            tenure: Some(tenure),
            keeper: Some(tokio::spawn(keeper)),
        })
    }

    /// Opens an existing journal to look at it, beside a process that serves it: it takes no lease
    /// and no append.
    pub async fn open_read_only(options: PostgresOptions) -> Result<Self, Error> {
        let read_only = options.limited().options([("default_transaction_read_only", "on")]);
        let mut connection = connect(&read_only).await?;
        let partitions = stored_partitions(&mut connection).await?.ok_or_else(|| {
            Error::Mismatch(format!("there is no journal in this database (schema {SCHEMA})"))
        })?;
        check_format(&mut connection).await?;
        let readers = readers(&options, &read_only);
        Ok(Self {
            partitions,
            readers,
            options,
            appenders: Vec::new(),
            together: Together::new(TURNS),
            shared: std::sync::Mutex::default(),
            tenure: None,
            keeper: None,
        })
    }

    fn appender(&self, partition: u16) -> Result<&Mutex<Appender>, Error> {
        if self.tenure.is_none() {
            return Err(Error::Mismatch("the journal is open for reading only".into()));
        }
        self.appenders
            .get(usize::from(partition))
            .ok_or_else(|| Error::Mismatch(format!("the journal has no partition {partition}")))
    }

    /// Raises a partition's epoch, if this process still holds its lease. It waits for an append
    /// under way, of whatever connection.
    async fn raise(&self, appender: &mut Appender, partition: u16) -> Result<Lease, Error> {
        let mut connection = self.connected(appender).await?;
        appender.tried += 1;
        let epoch = appender.tried;
        let raise = sqlx::query(
            "UPDATE leases SET epoch = $1 WHERE partition = $2 AND holder = $3 AND epoch < $1",
        )
        .bind(to_i64(epoch))
        .bind(i64::from(partition))
        .bind(Id(self.holder()))
        .execute(&mut connection);
        let raised = in_time(raise).await?;
        if raised.rows_affected() == 0 {
            self.doubt();
            return Err(Error::Locked(format!("it took partition {partition} over")));
        }
        appender.connection = Some(connection);
        Ok(Lease { partition, epoch })
    }

    fn doubt(&self) {
        if let Some(tenure) = &self.tenure {
            tenure.doubt();
        }
    }

    fn holder(&self) -> Uuid {
        self.tenure.as_ref().map_or_else(Uuid::nil, |tenure| tenure.holder.id())
    }

    /// The appender's connection, taken out of it: whoever is interrupted half-way leaves none.
    async fn connected(&self, appender: &mut Appender) -> Result<PgConnection, Error> {
        match appender.connection.take() {
            Some(connection) => Ok(connection),
            None => self.options.connect_writer().await,
        }
    }

    async fn append_alone(
        &self,
        appender: &mut Appender,
        lease: Lease,
        batch: &Batch,
    ) -> Result<(), AppendError> {
        let connected = self.connected(appender).await;
        let mut connection =
            connected.map_err(|error| AppendError::NotCommitted(error.with_source()))?;
        let one = [(lease, batch)];
        let appending = append::append(&mut connection, &mut appender.statements, &one);
        let (appended, sound) = answered(appending).await;
        // What became of a connection that failed is not worth finding out.
        appender.connection = sound.then_some(connection);
        appended
    }

    /// Stores batches of several partitions in one statement. One that is refused, or whose lease
    /// does not hold, leaves all of them out: then each goes by itself.
    async fn append_all(&self, all: Vec<(Lease, Batch)>) -> Vec<Result<(), AppendError>> {
        let there = self.shared().pop();
        let made = match there {
            Some(shared) => Ok(shared),
            None => self.options.connect_writer().await.map(|of| (of, Statements::default())),
        };
        let (mut connection, mut statements) = match made {
            Ok(made) => made,
            Err(error) => {
                return vec![Err(AppendError::NotCommitted(error.with_source())); all.len()];
            }
        };
        let all: Vec<_> = all.iter().map(|(lease, batch)| (*lease, batch)).collect();
        let appending = append::append(&mut connection, &mut statements, &all);
        let (appended, mut sound) = answered(appending).await;
        let is_about_one = matches!(appended, Err(AppendError::Conflict(_) | AppendError::Fenced));
        let mut said = Vec::with_capacity(all.len());
        if all.len() == 1 || !is_about_one {
            said.resize(all.len(), appended);
        }
        // What is left goes one by one.
        for one in &all[said.len()..] {
            if !sound {
                // Nothing was sent.
                said.push(Err(AppendError::NotCommitted("the connection ended".into())));
                continue;
            }
            let one = std::slice::from_ref(one);
            let appending = append::append(&mut connection, &mut statements, one);
            let (appended, is_sound) = answered(appending).await;
            said.push(appended);
            sound = is_sound;
        }
        if sound {
            self.shared().push((connection, statements));
        }
        said
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Vec<Shared>> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All rows of a query. It is asked again when a connection turns out to have ended.
    async fn fetch(&self, query: impl Fn() -> Query) -> Result<Vec<PgRow>, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let asked = query().fetch_all(&self.readers);
            match tokio::time::timeout(ANSWER_WITHIN, asked).await {
                Ok(Err(error)) if tries <= self.options.readers_max && is_broken(&error) => {}
                Ok(answer) => return answer.map_err(Error::database),
                Err(_) => return Err(no_answer()),
            }
        }
    }

    async fn fetch_one(&self, query: impl Fn() -> Query) -> Result<Option<PgRow>, Error> {
        Ok(self.fetch(query).await?.into_iter().next())
    }

    async fn events(&self, query: impl Fn() -> Query) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.fetch(query).await?;
        rows.iter().map(|row| chain::intact(Arc::new(event_of(row)?))).collect()
    }
}

type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

fn readers(options: &PostgresOptions, connect: &PgConnectOptions) -> Connections<Postgres> {
    let limits = Limits {
        max: options.readers_max as usize,
        wait: CONNECT_WITHIN,
        trust: Some(Trust::for_as_long_as(TRY_AFTER_IDLE)),
    };
    Connections::new(connect.clone(), limits)
}

/// Whether the connection has ended, so that another one may do better.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(database) => {
            matches!(database.code().as_deref(), Some("57P01" | "57P02"))
        }
        _ => false,
    }
}

fn no_answer() -> Error {
    Error::Database(format!("no answer within {ANSWER_WITHIN:?}").into())
}

async fn in_time<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(answer) => answer.map_err(Error::database),
        Err(_) => Err(no_answer()),
    }
}

async fn set_up_lock(connection: &mut PgConnection, how: &'static str) -> Result<(), Error> {
    sqlx::query(how)
        .bind(SET_UP_LOCK)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(Error::database)
}

/// With how many partitions the journal was made; none: there is no journal.
async fn stored_partitions(connection: &mut PgConnection) -> Result<Option<u16>, Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("{SCHEMA}.settings"))
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::database)?;
    if !exists {
        return Ok(None);
    }
    let stored: Option<String> =
        sqlx::query_scalar("SELECT value FROM settings WHERE name = 'partitions'")
            .fetch_optional(connection)
            .await
            .map_err(Error::database)?;
    stored
        .map(|stored| stored.parse())
        .transpose()
        .map_err(|_| Error::Damaged("the number of partitions".into()))
}

/// Refuses a journal of another format, and one that is being copied into.
async fn check_format(connection: &mut PgConnection) -> Result<(), Error> {
    let format = stored_format(connection).await?.unwrap_or_default();
    rows::check_setting("format", &format, &FORMAT.to_string())
}

async fn stored_format(connection: &mut PgConnection) -> Result<Option<String>, Error> {
    sqlx::query_scalar("SELECT value FROM settings WHERE name = 'format'")
        .fetch_optional(connection)
        .await
        .map_err(Error::database)
}

/// Brings the tables up to date, and settles what cannot be changed later.
async fn set_up(connection: &mut PgConnection, partitions: u16) -> Result<(), Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
        .bind(SCHEMA)
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::database)?;
    if !exists {
        // Only where it is missing: a role may own the schema and not be allowed to make one.
        let create = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {SCHEMA}"));
        sqlx::raw_sql(create).execute(&mut *connection).await.map_err(Error::database)?;
    }
    sqlx::migrate!("../migrations/journal/postgres")
        .run(&mut *connection)
        .await
        .map_err(Error::database)?;
    points::reach("migration.journal").await;
    for (name, value) in rows::settings(partitions) {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(&value)
            .execute(&mut *connection)
            .await
            .map_err(Error::database)?;
        let stored: String = sqlx::query_scalar("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::database)?;
        rows::check_setting(name, &stored, &value)?;
    }
    sqlx::query(
        "INSERT INTO leases (partition, epoch) SELECT partition, 0
         FROM generate_series(0, $1 - 1) AS partition ON CONFLICT DO NOTHING",
    )
    .bind(i64::from(partitions))
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(Error::database)
}

const HEAD: &str =
    "SELECT seq, hash FROM events WHERE seq >= $1 AND seq <= $2 ORDER BY seq DESC LIMIT 1";

/// A query whose first two values bound a partition's numbers, from this one on.
fn of_partition(sql: &'static str, partition: u16, from: u64) -> Query {
    sqlx::query(sql).bind(seq(partition, from)).bind(seq(partition, POSITION_MASK))
}

#[async_trait]
impl Store for PostgresStore {
    fn partitions(&self) -> u16 {
        self.partitions
    }

    async fn acquire(&self, partition: u16) -> Result<Lease, Error> {
        let mut appender = self.appender(partition)?.lock().await;
        let lease = self.raise(&mut appender, partition).await?;
        appender.epoch = lease.epoch;
        Ok(lease)
    }

    async fn settle(&self, lease: Lease) -> Result<(Lease, Head), Error> {
        let mut appender = self.appender(lease.partition)?.lock().await;
        if appender.epoch != lease.epoch {
            return Err(Error::Locked("this lease was replaced by a newer one".into()));
        }
        let lease = self.raise(&mut appender, lease.partition).await?;
        let mut connection = self.connected(&mut appender).await?;
        let head = of_partition(HEAD, lease.partition, 0).fetch_optional(&mut connection);
        let head = in_time(head).await?;
        appender.connection = Some(connection);
        let head = head.map_or_else(|| Ok(Head::default()), |row| rows::head_of(&row))?;
        // Only now: whoever has not heard of the new lease settles again with the one it has.
        appender.epoch = lease.epoch;
        Ok((lease, head))
    }

    async fn dump(&self, into: &mpsc::Sender<copy::Rows>) -> Result<(), Error> {
        self.dump_into(into).await
    }

    async fn back_up(&self, folder: &Path) -> Result<Contents, Error> {
        self.copy_into(folder).await
    }

    fn standing(&self, _partition: u16) -> Standing {
        self.tenure.as_ref().map_or(Standing::Held, |tenure| tenure.standing())
    }

    async fn lost(&self, _partition: u16) -> String {
        match &self.tenure {
            Some(tenure) => tenure.lost().await,
            None => std::future::pending().await,
        }
    }

    async fn close(&self) {
        let (Some(tenure), Some(keeper)) = (&self.tenure, &self.keeper) else { return };
        keeper.abort();
        let release = async {
            let mut connection = self.options.connect_for_lease().await?;
            lease::release(&mut connection, &tenure.holder).await.map_err(Error::database)
        };
        if let Err(error) = release.await {
            tracing::warn!(%error, "the lease could not be given back; it expires by itself");
        }
    }

    async fn head(&self, partition: u16) -> Result<Head, Error> {
        let row = self.fetch_one(|| of_partition(HEAD, partition, 0)).await?;
        row.map_or_else(|| Ok(Head::default()), |row| rows::head_of(&row))
    }

    async fn stream_max(&self, partition: u16) -> Result<i64, Error> {
        let sql =
            "SELECT coalesce(max(stream), 0) FROM streams WHERE stream >= $1 AND stream <= $2";
        self.number(|| of_partition(sql, partition, 0)).await.map(Option::unwrap_or_default)
    }

    async fn append(&self, lease: Lease, batch: &Batch) -> Result<(), AppendError> {
        let appender = self.appender(lease.partition).map_err(|_| AppendError::Fenced)?;
        let mut appender = appender.lock().await;
        let appended = if self.partitions > 1 {
            let work = (lease, batch.clone());
            let said = self.together.hand_in(lease.partition, work, |all| self.append_all(all));
            let lost = || Err(AppendError::Unknown("whoever stored it ended in the middle".into()));
            said.await.unwrap_or_else(lost)
        } else {
            self.append_alone(&mut appender, lease, batch).await
        };
        if matches!(appended, Err(AppendError::Fenced)) {
            self.doubt();
        }
        appended
    }

    async fn streams(
        &self,
        partition: u16,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StreamNumber>, Error> {
        let sql = "SELECT stream, aggregate_type, aggregate_id FROM streams
                   WHERE stream > $1 AND stream <= $2 ORDER BY stream LIMIT $3";
        let query = || {
            let first = after.max(seq(partition, 0));
            let query = sqlx::query(sql).bind(first).bind(seq(partition, POSITION_MASK));
            query.bind(limit_of(limit))
        };
        self.fetch(query).await?.iter().map(rows::whole_stream_of).collect()
    }

    async fn stream(&self, aggregate_type: &str, id: Uuid) -> Result<Option<i64>, Error> {
        let sql = "SELECT stream FROM streams WHERE aggregate_id = $1 AND aggregate_type = $2";
        self.number(|| sqlx::query(sql).bind(Id(id)).bind(aggregate_type)).await
    }

    async fn read_stream(
        &self,
        stream: i64,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let sql = concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE stream = $1 AND aggregate_version > $2
             ORDER BY aggregate_version LIMIT $3"
        );
        self.events(|| {
            sqlx::query(sql).bind(stream).bind(to_i64(after_version)).bind(limit_of(limit))
        })
        .await
    }

    async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let sql = concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3"
        );
        let rows = self.fetch(|| of_partition(sql, partition, after).bind(limit_of(limit))).await?;
        chain::whole_page(partition, after, rows.iter().map(|row| event_of(row).map(Arc::new)))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, Error> {
        let sql = concat!("SELECT ", event_columns!(), " FROM events WHERE event_id = $1");
        let found = self.events(|| sqlx::query(sql).bind(Id(id))).await?;
        Ok(found.into_iter().next())
    }

    async fn places(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Position)>, Error> {
        let ids: Vec<Id> = ids.iter().copied().map(Id).collect();
        let sql = "SELECT event_id, seq FROM events WHERE event_id = ANY($1)";
        let rows = self.fetch(|| sqlx::query(sql).bind(ids.clone())).await?;
        let read = |row: &PgRow| {
            let id = row.id("event_id").map_err(Error::Database)?;
            Ok(place_of(id, row.number("seq").map_err(Error::Database)?))
        };
        rows.iter().map(read).collect()
    }

    async fn read_aggregate(
        &self,
        id: Uuid,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let sql = concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE stream IN (SELECT stream FROM streams WHERE aggregate_id = $1)
             AND aggregate_version > $2 ORDER BY stream, aggregate_version LIMIT $3"
        );
        self.events(|| {
            sqlx::query(sql).bind(Id(id)).bind(to_i64(after_version)).bind(limit_of(limit))
        })
        .await
    }

    async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let sql = concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE correlation_id = $1 ORDER BY seq LIMIT $2"
        );
        self.events(|| sqlx::query(sql).bind(correlation_id).bind(limit_of(limit))).await
    }

    async fn snapshot(&self, stream: i64, upto: u64) -> Result<Option<Snapshot>, Error> {
        let sql = "SELECT version, shape, state FROM snapshots WHERE stream = $1 AND version <= $2
                   ORDER BY version DESC LIMIT 1";
        let row = self.fetch_one(|| sqlx::query(sql).bind(stream).bind(to_i64(upto))).await?;
        row.map(|row| rows::snapshot_of(stream, &row)).transpose()
    }

    async fn outcome(&self, command_id: Uuid) -> Result<Option<Outcome>, Error> {
        let sql = "SELECT request_hash, stream, version, events, rejection, at
                   FROM outcomes WHERE command_id = $1";
        let row = self.fetch_one(|| sqlx::query(sql).bind(Id(command_id))).await?;
        row.map(|row| rows::outcome_of(command_id, &row)).transpose()
    }

    async fn person_key(&self, subject: Uuid) -> Result<Option<PersonKey>, Error> {
        let sql = "SELECT wrapped FROM person_keys WHERE subject = $1";
        let row = self.fetch_one(|| sqlx::query(sql).bind(Id(subject))).await?;
        let wrapped = row.map(|row| row.try_get::<Option<Vec<u8>>, _>(0)).transpose();
        let wrapped = wrapped.map_err(Error::database)?;
        Ok(wrapped.map(|wrapped| PersonKey { subject, wrapped: wrapped.unwrap_or_default() }))
    }

    async fn timers_due(
        &self,
        partition: u16,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, Error> {
        let sql = "SELECT aggregate_type, aggregate_id, name, due FROM timers
                   WHERE partition = $1 AND due <= $2 ORDER BY due LIMIT $3";
        let query = || {
            let query = sqlx::query(sql).bind(i64::from(partition));
            query.bind(now.millis()).bind(limit_of(limit))
        };
        self.fetch(query).await?.iter().map(rows::timer_of).collect()
    }

    async fn timer(&self, key: &TimerKey) -> Result<Option<Timestamp>, Error> {
        let sql = "SELECT due FROM timers
                   WHERE aggregate_id = $1 AND aggregate_type = $2 AND name = $3";
        let query = || {
            let query = sqlx::query(sql).bind(Id(key.aggregate_id));
            query.bind(&*key.aggregate_type).bind(&key.name)
        };
        Ok(self.number(query).await?.map(Timestamp::from_millis))
    }

    async fn next_timer(&self, partition: u16) -> Result<Option<Timestamp>, Error> {
        let sql = "SELECT due FROM timers WHERE partition = $1 ORDER BY due LIMIT 1";
        let due = self.number(|| sqlx::query(sql).bind(i64::from(partition))).await?;
        Ok(due.map(Timestamp::from_millis))
    }

    async fn checkpoints(
        &self,
        subscription: &str,
        partition: u16,
    ) -> Result<Vec<Checkpoint>, Error> {
        let sql = "SELECT lane, lanes, position FROM checkpoints
                   WHERE subscription = $1 AND partition = $2 ORDER BY lane";
        let query = || sqlx::query(sql).bind(subscription).bind(i64::from(partition));
        let name: Arc<str> = subscription.into();
        let found = self.fetch(query).await?;
        found.iter().map(|row| rows::checkpoint_of(&name, row)).collect()
    }

    async fn letters(
        &self,
        partition: u16,
        filter: &LetterFilter,
        limit: usize,
    ) -> Result<Vec<Letter>, Error> {
        let sql = "SELECT * FROM letters
                   WHERE partition = $1 AND ($2::text IS NULL OR subscription = $2)
                   AND ($3::uuid IS NULL OR key = $3) AND position > $4
                   AND ($5::text IS NULL OR state = $5) AND ($6::text IS NULL OR class = $6)
                   AND ($7::text IS NULL OR event_type = $7)
                   AND ($8::text IS NULL
                        OR (subscription COLLATE \"C\", position) > ($8 COLLATE \"C\", $9::bigint))
                   ORDER BY subscription COLLATE \"C\", position LIMIT $10";
        let query = || {
            sqlx::query(sql)
                .bind(i64::from(partition))
                .bind(filter.subscription.as_deref())
                .bind(filter.key.map(Id))
                .bind(to_i64(filter.after))
                .bind(filter.state.map(LetterState::as_str))
                .bind(filter.class.as_deref())
                .bind(filter.event_type.as_deref())
                .bind(filter.behind.as_ref().map(|(subscription, _)| subscription.as_str()))
                .bind(filter.behind.as_ref().map(|(_, position)| to_i64(*position)))
                .bind(limit_of(limit))
        };
        self.fetch(query).await?.iter().map(rows::letter_of).collect()
    }

    async fn control(
        &self,
        space: &str,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, Error> {
        let sql = "SELECT value FROM control WHERE space = $1 AND key = $2
                   AND (expires_at IS NULL OR expires_at > $3)";
        let query = || sqlx::query(sql).bind(space).bind(key).bind(now.millis());
        let row = self.fetch_one(query).await?;
        row.map(|row| row.try_get(0)).transpose().map_err(Error::database)
    }

    async fn quarantined(&self, partition: u16) -> Result<Vec<Quarantine>, Error> {
        let sql = "SELECT * FROM quarantined WHERE partition = $1 ORDER BY since";
        let rows = self.fetch(|| sqlx::query(sql).bind(i64::from(partition))).await?;
        rows.iter().map(rows::quarantine_of).collect()
    }

    async fn purge(&self, outcomes_before: Timestamp, now: Timestamp) -> Result<u64, Error> {
        self.appender(0)?;
        let outcomes = "DELETE FROM outcomes WHERE command_id IN
                        (SELECT command_id FROM outcomes WHERE at < $1 ORDER BY at LIMIT 500)";
        let outcomes = sqlx::query(outcomes).bind(outcomes_before.millis()).execute(&self.readers);
        let outcomes = in_time(outcomes).await?;
        let control = "DELETE FROM control WHERE (space, key) IN
                       (SELECT space, key FROM control WHERE expires_at <= $1 LIMIT 500)";
        let control = sqlx::query(control).bind(now.millis()).execute(&self.readers);
        Ok(outcomes.rows_affected() + in_time(control).await?.rows_affected())
    }
}

impl PostgresStore {
    /// The first column of the first row.
    async fn number(&self, query: impl Fn() -> Query) -> Result<Option<i64>, Error> {
        let row = self.fetch_one(query).await?;
        row.map(|row| row.try_get(0)).transpose().map_err(Error::database)
    }
}
