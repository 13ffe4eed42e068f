//! A journal in one SQLite file: the embedded default.
//!
//! One connection writes, a small read-only pool reads. Write-ahead log, `synchronous=FULL`: an
//! append is on disk before it returns, and both settings are read back at the start and refused
//! if they are not what was asked for. A batch of events alone is one statement of exactly the
//! batch's size in autocommit, which saves most of the round trips to the connection's thread.
//!
//! A commit that the disk refused (to write or to sync) may still come back: its frames are in the
//! log file, and who reads the file after a crash takes them for committed. So such an append is
//! [`AppendError::Unsettled`] until a later commit has been written over it, on a new connection;
//! one connection stays open for as long as the store is, so that nobody reads the file anew
//! meanwhile. And since after a failed sync the page cache holds what the disk does not, the whole
//! log is written once more and synced when the journal is opened, before anybody relies on it.
//!
//! Checkpoints are kept off the commit path, in two phases: a second connection moves pages in the
//! background, and when the log has grown past 32 MiB all the same, the writer runs one
//! more itself after it has released its replies, so that the next commit starts the log over.

mod append;
mod backup;
mod check;
mod wal;

use std::fs::File;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row, Sqlite};
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use super::backup::Contents;
use super::copy::{self, Dump};
use super::{
    AppendError, Batch, Checkpoint, Error, Head, Lease, Letter, LetterFilter, LetterState, Outcome,
    PersonKey, Quarantine, Snapshot, Store, StreamNumber, Timer, TimerKey, chain, rows,
};
use crate::connections::{Connections, Limits};
use crate::event::{Position, StoredEvent};
use crate::faults::points;
use crate::world::Timestamp;
use append::Statements;
pub use backup::SqliteCopy;
use rows::{
    BoxError, Columns, POSITION_MASK, event_columns, event_of, limit_of, place_of, seq, to_i64,
    to_u64,
};

/// The write-ahead log is started over when it is longer than this: far above a burst, small
/// enough that a reader and a restart never notice.
const WAL_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Pages kept in memory by each connection, in KiB: the index of versions of the streams in use.
const CACHE_KIB: u32 = 8 * 1024;
/// How often pages are moved in the background.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);
/// SQLite's own size of a page, which a frame of the log holds.
const PAGE_BYTES: u64 = 4096;
/// Readers at the same time: each is a thread, and the machine's cores are the writer's. How long a
/// query waits for one.
const READERS: Limits = Limits { max: 4, wait: Duration::from_secs(30), trust: None };

/// See the module.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    durability: Durability,
    partitions: u16,
    writer: Mutex<Writer>,
    readers: Connections<Sqlite>,
    /// See the module.
    anchor: Option<Mutex<SqliteConnection>>,
    log: Arc<Log>,
    checkpointer: Option<tokio::task::JoinHandle<()>>,
    read_only: bool,
    _lock: Option<File>,
}

/// What is known of the write-ahead log.
#[derive(Debug, Default)]
struct Log {
    /// Something was written since its pages were moved the last time.
    dirty: AtomicBool,
    /// It is long enough to be started over. Its file does not say so: that keeps its length.
    long: AtomicBool,
}

#[derive(Debug)]
struct Writer {
    connection: Option<SqliteConnection>,
    statements: Statements,
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        if let Some(checkpointer) = &self.checkpointer {
            checkpointer.abort();
        }
    }
}

/// How durable a commit is: [`Durability::Full`] unless a test shows what the lack of it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Synced to disk before it returns.
    #[default]
    Full,
    /// Left to the operating system: lost with its cache.
    Normal,
}

fn options(path: &Path, durability: Durability) -> SqliteConnectOptions {
    let synchronous = match durability {
        Durability::Full => SqliteSynchronous::Full,
        Durability::Normal => SqliteSynchronous::Normal,
    };
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(false)
        .pragma("wal_autocheckpoint", "0")
        .pragma("cache_size", format!("-{CACHE_KIB}"))
        // What a statement may have to take back is kept in memory and not in a file for each.
        .pragma("temp_store", "MEMORY")
        .pragma("journal_size_limit", (2 * WAL_BYTES_MAX).to_string())
        .statement_cache_capacity(2_000)
        .disable_statement_logging()
}

/// Checks that the connection is as durable as was asked for: a setting that the file system or
/// an earlier program overrode must not pass unseen.
async fn read_back(connection: &mut SqliteConnection, want: Durability) -> Result<(), Error> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::database)?;
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::database)?;
    let wanted = if want == Durability::Full { 2 } else { 1 };
    if mode == "wal" && synchronous == wanted {
        return Ok(());
    }
    Err(Error::Mismatch(format!(
        "the journal is not durable: journal_mode={mode} (want wal), synchronous={synchronous} (want {wanted})"
    )))
}

impl SqliteStore {
    /// Opens the journal at `path`, and creates it with `partitions` where there is none. Only one
    /// process can have it open.
    pub async fn open(path: &Path, partitions: u16) -> Result<Self, Error> {
        Self::open_with(path, partitions, Durability::Full).await
    }

    /// As [`SqliteStore::open`], with a durability of one's choice.
    pub async fn open_with(
        path: &Path,
        partitions: u16,
        durability: Durability,
    ) -> Result<Self, Error> {
        let lock = lock(path)?;
        wal::write_again(path).await?;
        let mut connection = options(path, durability).connect().await.map_err(Error::database)?;
        read_back(&mut connection, durability).await?;
        sqlx::migrate!("../migrations/journal/sqlite")
            .run(&mut connection)
            .await
            .map_err(Error::database)?;
        points::reach("migration.journal").await;
        let partitions = settle_settings(&mut connection, partitions).await?;
        let read_only = options(path, durability).read_only(true);
        let mut anchor = read_only.connect().await.map_err(Error::database)?;
        // It is only there once it has read something.
        sqlx::query("SELECT 1 FROM settings")
            .execute(&mut anchor)
            .await
            .map_err(Error::database)?;
        let readers = Connections::new(read_only, READERS);
        let log = Arc::new(Log::default());
        let checkpointer =
            tokio::spawn(checkpoint_in_background(options(path, durability), log.clone()));
        Ok(Self {
            path: path.to_owned(),
            durability,
            partitions,
            writer: Mutex::new(Writer {
                connection: Some(connection),
                statements: Statements::default(),
            }),
            readers,
            anchor: Some(Mutex::new(anchor)),
            log,
            checkpointer: Some(checkpointer),
            read_only: false,
            _lock: Some(lock),
        })
    }

    /// Opens an existing journal to look at it, beside a process that has it open: it takes no
    /// lease and no append.
    pub async fn open_read_only(path: &Path) -> Result<Self, Error> {
        let read_only = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        let readers = Connections::new(read_only, READERS);
        let stored: String =
            sqlx::query_scalar("SELECT value FROM settings WHERE name = 'partitions'")
                .fetch_one(&readers)
                .await
                .map_err(Error::database)?;
        let partitions =
            stored.parse().map_err(|_| Error::Damaged("the number of partitions".into()))?;
        Ok(Self {
            path: path.to_owned(),
            durability: Durability::Full,
            partitions,
            writer: Mutex::new(Writer { connection: None, statements: Statements::default() }),
            readers,
            anchor: None,
            log: Arc::default(),
            checkpointer: None,
            read_only: true,
            _lock: None,
        })
    }

    /// What SQLite itself finds wrong with the file: pages, indexes, rows that one has and the other
    /// has not. Nothing: it is sound.
    async fn check_file(&self) -> Result<Vec<String>, Error> {
        let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(100)")
            .fetch_all(&self.readers)
            .await
            .map_err(Error::database)?;
        let mut found: Vec<_> = found.into_iter().filter(|line| line != "ok").collect();
        self.check_rows(&mut found).await?;
        Ok(found)
    }

    /// Control rows that are not what was written.
    async fn check_rows(&self, found: &mut Vec<String>) -> Result<(), Error> {
        let mut behind = Vec::new();
        loop {
            let sql = "SELECT * FROM outcomes WHERE command_id > $1 ORDER BY command_id LIMIT 1000";
            let page = sqlx::query(sql).bind(&behind).fetch_all(&self.readers).await;
            let page = page.map_err(Error::database)?;
            let Some(last) = page.last() else { break };
            let last: Vec<u8> = last.try_get("command_id").map_err(Error::database)?;
            let outcome =
                |row: &SqliteRow| outcome_of(row.id("command_id").unwrap_or_default(), row);
            collect(found, page.iter().map(|row| outcome(row).map(drop)));
            behind = last;
        }
        for table in ["timers", "checkpoints", "letters"] {
            let sql = sqlx::AssertSqlSafe(format!("SELECT * FROM {table}"));
            let all = sqlx::query(sql).fetch_all(&self.readers).await.map_err(Error::database)?;
            collect(
                found,
                all.iter().map(|row| {
                    let partition =
                        u16::try_from(row.number("partition").unwrap_or(-1)).unwrap_or(u16::MAX);
                    match table {
                        "timers" => timer_of(partition, row).map(drop),
                        "checkpoints" => {
                            let name = row.text("subscription").unwrap_or_default().into();
                            checkpoint_of(partition, &name, row).map(drop)
                        }
                        _ => letter_of(row).map(drop),
                    }
                }),
            );
        }
        Ok(())
    }

    /// What went wrong, with the file that it went wrong with.
    fn about(&self, what: &dyn std::fmt::Display) -> String {
        format!("{}: {what}", self.path.display())
    }

    fn refuse_if_read_only(&self) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::Mismatch("the journal is open for reading only".into()));
        }
        Ok(())
    }
}

fn collect(found: &mut Vec<String>, rows: impl Iterator<Item = Result<(), Error>>) {
    found.extend(rows.filter_map(|row| row.err().map(|error| error.to_string())));
}

fn outcome_of(command_id: Uuid, row: &SqliteRow) -> Result<Outcome, Error> {
    let what = |_: &Outcome| format!("the outcome of command {command_id}");
    check::intact(row, rows::outcome_of(command_id, row), check::of_outcome, what)
}

fn timer_of(partition: u16, row: &SqliteRow) -> Result<Timer, Error> {
    let check = |timer: &Timer| check::of_timer(partition, &timer.key, timer.due.millis());
    let what = |Timer { key, .. }: &Timer| {
        format!("timer {} of {} {}", key.name, key.aggregate_type, key.aggregate_id)
    };
    check::intact(row, rows::timer_of(row), check, what)
}

fn checkpoint_of(partition: u16, name: &Arc<str>, row: &SqliteRow) -> Result<Checkpoint, Error> {
    let check = |checkpoint: &Checkpoint| check::of_checkpoint(partition, checkpoint);
    let what = |checkpoint: &Checkpoint| {
        format!("the checkpoint of {name} in partition {partition}, lane {}", checkpoint.lane)
    };
    check::intact(row, rows::checkpoint_of(name, row), check, what)
}

fn letter_of(row: &SqliteRow) -> Result<Letter, Error> {
    let what = |letter: &Letter| {
        format!("the letter of {} at {}:{}", letter.subscription, letter.partition, letter.position)
    };
    check::intact(row, rows::letter_of(row), check::of_letter, what)
}

/// The file beside a database whose name ends in this.
fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<File, Error> {
    let name = beside(path, ".lock");
    let failed = |error: std::io::Error| Error::Locked(format!("{}: {error}", name.display()));
    let file = File::create(&name).map_err(failed)?;
    file.try_lock().map_err(|_| {
        Error::Locked(format!("{} is held; stop the other process first", name.display()))
    })?;
    Ok(file)
}

/// Writes the format and the number of partitions into a new journal; refuses other ones.
async fn settle_settings(connection: &mut SqliteConnection, asked: u16) -> Result<u16, Error> {
    for (name, value) in rows::settings(asked) {
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
    Ok(asked)
}

async fn checkpoint_in_background(options: SqliteConnectOptions, log: Arc<Log>) {
    let mut connection = None;
    let mut failing = false;
    loop {
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        if !log.dirty.swap(false, Ordering::Relaxed) {
            continue;
        }
        if connection.is_none() {
            connection = options.clone().connect().await.ok();
        }
        let Some(open) = &mut connection else { continue };
        match passive_checkpoint(open).await {
            Ok(bytes) => {
                log.long.store(bytes >= WAL_BYTES_MAX, Ordering::Relaxed);
                if std::mem::take(&mut failing) {
                    tracing::info!("the journal is checkpointed again");
                }
            }
            Err(error) => {
                connection = None;
                log.dirty.store(true, Ordering::Relaxed);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the journal cannot be checkpointed: its log grows until it can; trying on");
                }
            }
        }
    }
}

/// Moves the pages of the log that nobody reads any more; returns how long the log is. When all are
/// moved, the next commit starts the log over.
async fn passive_checkpoint(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let row = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
    let frames: i64 = row.try_get("log")?;
    Ok(u64::try_from(frames).unwrap_or(0) * PAGE_BYTES)
}

#[async_trait]
impl Store for SqliteStore {
    fn partitions(&self) -> u16 {
        self.partitions
    }

    async fn acquire(&self, partition: u16) -> Result<Lease, Error> {
        self.refuse_if_read_only()?;
        let mut writer = self.writer.lock().await;
        let connection =
            writer.connected(&self.path, self.durability).await.map_err(Error::database)?;
        let epoch: i64 = sqlx::query_scalar(
            "INSERT INTO leases (partition, epoch) VALUES ($1, 1)
             ON CONFLICT (partition) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
        )
        .bind(i64::from(partition))
        .fetch_one(connection)
        .await
        .map_err(Error::database)?;
        Ok(Lease { partition, epoch: to_u64(epoch) })
    }

    async fn head(&self, partition: u16) -> Result<Head, Error> {
        let row = sqlx::query(
            "SELECT seq, hash FROM events WHERE seq >= $1 AND seq <= $2 ORDER BY seq DESC LIMIT 1",
        )
        .bind(seq(partition, 0))
        .bind(seq(partition, POSITION_MASK))
        .fetch_optional(&self.readers)
        .await
        .map_err(Error::database)?;
        row.map_or_else(|| Ok(Head::default()), |row| rows::head_of(&row))
    }

    async fn stream_max(&self, partition: u16) -> Result<i64, Error> {
        let max: Option<i64> = sqlx::query_scalar(
            "SELECT max(stream) FROM streams WHERE stream >= $1 AND stream <= $2",
        )
        .bind(seq(partition, 0))
        .bind(seq(partition, POSITION_MASK))
        .fetch_one(&self.readers)
        .await
        .map_err(Error::database)?;
        Ok(max.unwrap_or(0))
    }

    async fn append(&self, lease: Lease, batch: &Batch) -> Result<(), AppendError> {
        self.refuse_if_read_only().map_err(|_| AppendError::Fenced)?;
        let mut writer = self.writer.lock().await;
        let opened = writer.connected(&self.path, self.durability).await;
        opened.map_err(|error| AppendError::NotCommitted(self.about(&error)))?;
        let Writer { connection, statements } = &mut *writer;
        let open = connection.as_mut().expect("it was just opened");
        let appended = append::append(open, statements, lease, batch).await;
        let appended = appended.map_err(|error| match error {
            AppendError::NotCommitted(what) => AppendError::NotCommitted(self.about(&what)),
            AppendError::Unsettled(what) => AppendError::Unsettled(self.about(&what)),
            other => other,
        });
        if !matches!(appended, Ok(()) | Err(AppendError::Conflict(_) | AppendError::Fenced)) {
            // Whatever state it is in, the next append must not inherit it.
            *connection = None;
        }
        self.log.dirty.store(true, Ordering::Relaxed);
        appended
    }

    async fn dump(&self, into: &mpsc::Sender<copy::Rows>) -> Result<(), Error> {
        let mut dump = Dump::new(into);
        let mut connection = self.readers.get().await.map_err(Error::database)?;
        for (table, sql) in copy::TABLES {
            let mut rows = sqlx::query(sql).fetch(&mut *connection);
            while let Some(row) = poll_fn(|context| rows.as_mut().poll_next(context)).await {
                let full = dump.take(table, &row.map_err(Error::database)?)?;
                if let Some(full) = full {
                    dump.send(full).await?;
                }
            }
            dump.flush().await?;
        }
        Ok(())
    }

    async fn back_up(&self, folder: &Path) -> Result<Contents, Error> {
        self.copy_into(folder).await
    }

    async fn check_storage(&self) -> Result<Vec<String>, Error> {
        self.check_file().await
    }

    async fn maintain(&self) {
        if !self.log.long.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut writer = self.writer.lock().await;
        if let Some(connection) = &mut writer.connection
            && let Err(error) = passive_checkpoint(connection).await
        {
            tracing::debug!(%error, "the writer's checkpoint failed; a later one tries again");
        }
    }

    async fn streams(
        &self,
        partition: u16,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StreamNumber>, Error> {
        let rows = sqlx::query(
            "SELECT stream, aggregate_type, aggregate_id FROM streams
             WHERE stream > $1 AND stream <= $2 ORDER BY stream LIMIT $3",
        )
        .bind(after.max(seq(partition, 0)))
        .bind(seq(partition, POSITION_MASK))
        .bind(limit_of(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(Error::database)?;
        rows.iter().map(rows::whole_stream_of).collect()
    }

    async fn stream(&self, aggregate_type: &str, id: Uuid) -> Result<Option<i64>, Error> {
        sqlx::query_scalar(
            "SELECT stream FROM streams WHERE aggregate_id = $1 AND aggregate_type = $2",
        )
        .bind(&id.as_bytes()[..])
        .bind(aggregate_type)
        .fetch_optional(&self.readers)
        .await
        .map_err(Error::database)
    }

    async fn read_stream(
        &self,
        stream: i64,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        self.events(
            "WHERE stream = $1 AND aggregate_version > $2 ORDER BY aggregate_version LIMIT $3",
            |query| query.bind(stream).bind(to_i64(after_version)).bind(limit_of(limit)),
        )
        .await
    }

    async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.rows("WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3", |query| {
            query
                .bind(seq(partition, after))
                .bind(seq(partition, POSITION_MASK))
                .bind(limit_of(limit))
        });
        let rows = rows.await?;
        chain::whole_page(partition, after, rows.iter().map(|row| event_of(row).map(Arc::new)))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, Error> {
        let found =
            self.events("WHERE event_id = $1", |query| query.bind(id.as_bytes().to_vec())).await?;
        Ok(found.into_iter().next())
    }

    async fn places(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Position)>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // Few different statements, so that each stays prepared: the last id fills the places up. And
        // SQLite takes `$n` for a name, to be looked for among all others for each value.
        let count = ids.len().next_power_of_two();
        let marks = vec!["?"; count].join(", ");
        let text = format!("SELECT event_id, seq FROM events WHERE event_id IN ({marks})");
        let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
        let last = ids.last().into_iter().cycle();
        for id in ids.iter().chain(last).take(count) {
            query = query.bind(id.as_bytes().to_vec());
        }
        let rows = query.fetch_all(&self.readers).await.map_err(Error::database)?;
        let read = |row: &SqliteRow| {
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
        self.events(
            "WHERE stream IN (SELECT stream FROM streams WHERE aggregate_id = $1)
             AND aggregate_version > $2 ORDER BY stream, aggregate_version LIMIT $3",
            |query| {
                query.bind(id.as_bytes().to_vec()).bind(to_i64(after_version)).bind(limit_of(limit))
            },
        )
        .await
    }

    async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let correlation_id = correlation_id.to_owned();
        self.events("WHERE correlation_id = $1 ORDER BY seq LIMIT $2", |query| {
            query.bind(correlation_id).bind(limit_of(limit))
        })
        .await
    }

    async fn snapshot(&self, stream: i64, upto: u64) -> Result<Option<Snapshot>, Error> {
        let row = sqlx::query(
            "SELECT version, shape, state FROM snapshots WHERE stream = $1 AND version <= $2
             ORDER BY version DESC LIMIT 1",
        )
        .bind(stream)
        .bind(to_i64(upto))
        .fetch_optional(&self.readers)
        .await
        .map_err(Error::database)?;
        row.map(|row| rows::snapshot_of(stream, &row)).transpose()
    }

    async fn outcome(&self, command_id: Uuid) -> Result<Option<Outcome>, Error> {
        let row = sqlx::query(
            "SELECT request_hash, stream, version, events, rejection, at, row_check FROM outcomes WHERE command_id = $1",
        )
        .bind(&command_id.as_bytes()[..])
        .fetch_optional(&self.readers)
        .await
        .map_err(Error::database)?;
        row.map(|row| outcome_of(command_id, &row)).transpose()
    }

    async fn person_key(&self, subject: Uuid) -> Result<Option<PersonKey>, Error> {
        let row: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT wrapped FROM person_keys WHERE subject = $1")
                .bind(&subject.as_bytes()[..])
                .fetch_optional(&self.readers)
                .await
                .map_err(Error::database)?;
        Ok(row.map(|wrapped| PersonKey { subject, wrapped: wrapped.unwrap_or_default() }))
    }

    async fn timers_due(
        &self,
        partition: u16,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, Error> {
        let (mut due, mut passed) = (Vec::new(), 0);
        loop {
            let rows = sqlx::query(
                "SELECT aggregate_type, aggregate_id, name, due, row_check FROM timers
                 WHERE partition = $1 AND due <= $2 ORDER BY due LIMIT $3 OFFSET $4",
            )
            .bind(i64::from(partition))
            .bind(now.millis())
            .bind(limit_of(limit))
            .bind(limit_of(passed))
            .fetch_all(&self.readers)
            .await
            .map_err(Error::database)?;
            passed += rows.len();
            for row in &rows {
                match timer_of(partition, row) {
                    // One that is damaged keeps no other from firing, not even many of them.
                    Err(error @ Error::Damaged(_)) => {
                        tracing::error!(partition, %error, "a timer stays due and does not fire until it is mended");
                    }
                    timer => due.push(timer?),
                }
            }
            if rows.len() < limit || due.len() >= limit {
                due.truncate(limit);
                return Ok(due);
            }
        }
    }

    async fn timer(&self, key: &TimerKey) -> Result<Option<Timestamp>, Error> {
        let due: Option<i64> = sqlx::query_scalar(
            "SELECT due FROM timers WHERE aggregate_id = $1 AND aggregate_type = $2 AND name = $3",
        )
        .bind(key.aggregate_id.as_bytes().as_slice())
        .bind(&*key.aggregate_type)
        .bind(&key.name)
        .fetch_optional(&self.readers)
        .await
        .map_err(Error::database)?;
        Ok(due.map(Timestamp::from_millis))
    }

    async fn next_timer(&self, partition: u16) -> Result<Option<Timestamp>, Error> {
        let due: Option<i64> =
            sqlx::query_scalar("SELECT min(due) FROM timers WHERE partition = $1")
                .bind(i64::from(partition))
                .fetch_one(&self.readers)
                .await
                .map_err(Error::database)?;
        Ok(due.map(Timestamp::from_millis))
    }

    async fn checkpoints(
        &self,
        subscription: &str,
        partition: u16,
    ) -> Result<Vec<Checkpoint>, Error> {
        let rows = sqlx::query(
            "SELECT lane, lanes, position, row_check FROM checkpoints
             WHERE subscription = $1 AND partition = $2 ORDER BY lane",
        )
        .bind(subscription)
        .bind(i64::from(partition))
        .fetch_all(&self.readers)
        .await
        .map_err(Error::database)?;
        let name: Arc<str> = subscription.into();
        rows.iter().map(|row| checkpoint_of(partition, &name, row)).collect()
    }

    async fn letters(
        &self,
        partition: u16,
        filter: &LetterFilter,
        limit: usize,
    ) -> Result<Vec<Letter>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM letters WHERE partition = $1 AND ($2 IS NULL OR subscription = $2)
             AND ($3 IS NULL OR key = $3) AND position > $4
             AND ($5 IS NULL OR state = $5) AND ($6 IS NULL OR class = $6)
             AND ($7 IS NULL OR event_type = $7)
             AND ($8 IS NULL OR (subscription, position) > ($8, $9))
             ORDER BY subscription, position LIMIT $10",
        )
        .bind(i64::from(partition))
        .bind(filter.subscription.as_deref())
        .bind(filter.key.map(|key| key.as_bytes().to_vec()))
        .bind(to_i64(filter.after))
        .bind(filter.state.map(LetterState::as_str))
        .bind(filter.class.as_deref())
        .bind(filter.event_type.as_deref())
        .bind(filter.behind.as_ref().map(|(subscription, _)| subscription.as_str()))
        .bind(filter.behind.as_ref().map(|(_, position)| to_i64(*position)))
        .bind(limit_of(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(Error::database)?;
        rows.iter().map(letter_of).collect()
    }

    async fn control(
        &self,
        space: &str,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, Error> {
        sqlx::query_scalar(
            "SELECT value FROM control WHERE space = $1 AND key = $2
             AND (expires_at IS NULL OR expires_at > $3)",
        )
        .bind(space)
        .bind(key)
        .bind(now.millis())
        .fetch_optional(&self.readers)
        .await
        .map_err(Error::database)
    }

    async fn quarantined(&self, partition: u16) -> Result<Vec<Quarantine>, Error> {
        let rows = sqlx::query("SELECT * FROM quarantined WHERE partition = $1 ORDER BY since")
            .bind(i64::from(partition))
            .fetch_all(&self.readers)
            .await
            .map_err(Error::database)?;
        rows.iter().map(rows::quarantine_of).collect()
    }

    async fn purge(&self, outcomes_before: Timestamp, now: Timestamp) -> Result<u64, Error> {
        self.refuse_if_read_only()?;
        let mut writer = self.writer.lock().await;
        let connection =
            writer.connected(&self.path, self.durability).await.map_err(Error::database)?;
        let outcomes = sqlx::query(
            "DELETE FROM outcomes WHERE command_id IN
             (SELECT command_id FROM outcomes WHERE at < $1 ORDER BY at LIMIT 500)",
        )
        .bind(outcomes_before.millis())
        .execute(&mut *connection)
        .await
        .map_err(Error::database)?;
        let control = sqlx::query(
            "DELETE FROM control WHERE (space, key) IN
             (SELECT space, key FROM control WHERE expires_at <= $1 LIMIT 500)",
        )
        .bind(now.millis())
        .execute(&mut *connection)
        .await
        .map_err(Error::database)?;
        Ok(outcomes.rows_affected() + control.rows_affected())
    }
}

type EventQuery<'q> = sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments>;

impl SqliteStore {
    /// Events, each of them what was written.
    async fn events(
        &self,
        rest: &'static str,
        bind: impl for<'q> FnOnce(EventQuery<'q>) -> EventQuery<'q>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.rows(rest, bind).await?;
        rows.iter().map(|row| chain::intact(Arc::new(event_of(row)?))).collect()
    }

    async fn rows(
        &self,
        rest: &'static str,
        bind: impl for<'q> FnOnce(EventQuery<'q>) -> EventQuery<'q>,
    ) -> Result<Vec<SqliteRow>, Error> {
        let sql = sqlx::AssertSqlSafe(format!(
            concat!("SELECT ", event_columns!(), " FROM events {}"),
            rest
        ));
        bind(sqlx::query(sql)).fetch_all(&self.readers).await.map_err(Error::database)
    }
}

impl Writer {
    async fn connected(
        &mut self,
        path: &Path,
        durability: Durability,
    ) -> Result<&mut SqliteConnection, sqlx::Error> {
        if self.connection.is_none() {
            self.connection = Some(options(path, durability).connect().await?);
        }
        Ok(self.connection.as_mut().expect("it was just opened"))
    }
}

impl Columns for SqliteRow {
    fn id(&self, column: &str) -> Result<Uuid, BoxError> {
        Ok(Uuid::from_slice(self.bytes(column)?)?)
    }

    fn number(&self, column: &str) -> Result<i64, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn text(&self, column: &str) -> Result<&str, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn text_or_none(&self, column: &str) -> Result<Option<&str>, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn bytes(&self, column: &str) -> Result<&[u8], BoxError> {
        Ok(self.try_get(column)?)
    }

    fn bytes_or_none(&self, column: &str) -> Result<Option<&[u8]>, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn number_or_none(&self, column: &str) -> Result<Option<i64>, BoxError> {
        Ok(self.try_get(column)?)
    }
}
