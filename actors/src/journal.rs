//! The journal: what happened, in order, for good.
//!
//! One [`Store`] holds, in one database, the events and the *control* rows that change in the same
//! transactions: stream numbers, command outcomes, wrapped keys, timers, checkpoints, dead letters
//! and the application's own control rows. Only the [`writer`] appends.
//!
//! ```text
//!   aggregate actors ──entries──▶ writer ──one transaction──▶ Store
//!                                   │ then: replies released, in order
//!                                   └─ then: the batch goes to the broker
//! ```

pub mod backup;
pub mod chain;
pub mod codec;
pub mod copy;
pub mod memory;
pub mod postgres;
mod rows;
pub mod sqlite;
pub mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::command::ControlWrite;
use crate::event::{Position, StoredEvent};
use crate::world::Timestamp;

/// The format of the stored rows. Stored; raise it only with a migration, once there is a release.
pub const FORMAT: u32 = 2;

/// A failed read or a failed start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not answer as it should.
    #[error("the journal's database failed")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The stored rows are damaged or from another version.
    #[error("the journal is damaged: {0}")]
    Damaged(String),
    /// The journal was created otherwise than it is opened now.
    #[error("{0}")]
    Mismatch(String),
    /// Another process has it open.
    #[error("another process uses this journal: {0}")]
    Locked(String),
}

impl Error {
    /// Wraps a database's error.
    pub fn database(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Database(Box::new(error))
    }

    /// The error and what caused it, in one line.
    pub(crate) fn with_source(&self) -> String {
        match self {
            Self::Database(cause) => format!("{self}: {cause}"),
            _ => self.to_string(),
        }
    }
}

/// Why an append did not (surely) commit.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// A constraint refused it (a version or position that is taken, a command id that has an
    /// outcome): nothing of the transaction is stored, and trying again would not help.
    #[error("the append conflicts with what is stored: {0}")]
    Conflict(String),
    /// Nothing of it is stored; it may work when tried again.
    #[error("the append did not commit: {0}")]
    NotCommitted(String),
    /// It may be stored or not: only reading the head back tells.
    #[error("the outcome of the append is unknown: {0}")]
    Unknown(String),
    /// Nobody sees it, but it was written in part and may come back with a restart: only a later
    /// append that commits makes sure that it does not. (The disk refused to write or to sync.)
    #[error("the append may come back: {0}")]
    Unsettled(String),
    /// This writer's lease on the partition is gone: it must never append again.
    #[error("the partition belongs to another writer now")]
    Fenced,
}

/// The newest event of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Its position; 0: there is none.
    pub position: u64,
    /// Its hash; zeros: there is none.
    pub hash: [u8; 32],
}

/// The right to append to a partition: held by one writer at a time, checked by every append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The partition.
    pub partition: u16,
    /// Raised each time the partition changes hands.
    pub epoch: u64,
}

/// How far what a process knows of a partition can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The partition is this process's, and the journal is within reach.
    Held,
    /// The journal cannot be reached. State in memory is as good as it was; nothing can be written.
    Unreachable,
    /// The lease ran out before it was renewed, as when the process was stopped for a while:
    /// another process may have the partition. Nothing may be answered until that is known.
    Unconfirmed,
    /// Another process has the partition.
    Lost,
}

impl Standing {
    /// Whether state in memory may be answered with.
    pub fn may_read(self) -> bool {
        matches!(self, Self::Held | Self::Unreachable)
    }

    /// Whether there is any use in deciding something.
    pub fn may_write(self) -> bool {
        self == Self::Held
    }
}

/// An aggregate's integer number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamNumber {
    /// The number.
    pub stream: i64,
    /// The aggregate's type.
    pub aggregate_type: Arc<str>,
    /// The aggregate.
    pub aggregate_id: Uuid,
}

/// What was decided on a command that must have effect once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The command.
    pub command_id: Uuid,
    /// The keyed hash of its request.
    pub request_hash: [u8; 32],
    /// The aggregate's stream number (0: it did not exist and was not created).
    pub stream: i64,
    /// The aggregate's version right after the command.
    pub version: u64,
    /// How many events it led to.
    pub events: u32,
    /// The rejection as JSON, or none: it was accepted.
    pub rejection: Option<Arc<str>>,
    /// When.
    pub at: Timestamp,
}

/// A person's data key, wrapped by the master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonKey {
    /// The person.
    pub subject: Uuid,
    /// The key, sealed under the master key; empty once destroyed.
    pub wrapped: Vec<u8>,
}

/// Names a timer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TimerKey {
    /// The aggregate's type.
    pub aggregate_type: Arc<str>,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// The timer within it.
    pub name: String,
}

/// A durable timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Which one.
    pub key: TimerKey,
    /// When it is due.
    pub due: Timestamp,
}

/// A change to the timers, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimerWrite {
    /// Set it, replacing one of the same key.
    Set(Timer),
    /// Forget it.
    Clear(TimerKey),
    /// Forget it if it is still the one that fired.
    Fired(Timer),
}

/// How far a lane of a subscription is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The subscription.
    pub subscription: Arc<str>,
    /// Which lane, from 0.
    pub lane: u16,
    /// Of how many.
    pub lanes: u16,
    /// Everything of the lane up to here is handled or a letter.
    pub position: u64,
}

/// Whether a letter failed itself or waits behind one that did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterState {
    /// It failed.
    Dead,
    /// An earlier event of the same key failed, and order is kept.
    Waiting,
    /// It failed and was set aside by hand: nothing waits behind it any more.
    Skipped,
}

impl LetterState {
    /// The state's name, as it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Waiting => "waiting",
            Self::Skipped => "skipped",
        }
    }
}

impl std::str::FromStr for LetterState {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Dead, Self::Waiting, Self::Skipped];
        let found = all.into_iter().find(|state| state.as_str() == text);
        found.ok_or("must be dead, waiting or skipped")
    }
}

/// A dead letter: a pointer to an event that a subscription could not handle, or that waits behind
/// such a one. Never a copy: a fixed handler, an upcaster or an erasure applies on retry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Letter {
    /// The subscription.
    pub subscription: Arc<str>,
    /// The partition.
    pub partition: u16,
    /// The key whose order is kept: the aggregate id unless the subscription declares another.
    pub key: Uuid,
    /// The event's position.
    pub position: u64,
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: Arc<str>,
    /// Its aggregate.
    pub aggregate_id: Uuid,
    /// Failed or waiting.
    pub state: LetterState,
    /// `transient` (retries spent), `permanent`; empty while waiting.
    pub class: String,
    /// What went wrong, without personal data.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The first failure, or when it began to wait.
    pub first_failed_at: Timestamp,
    /// The latest failure.
    pub last_failed_at: Timestamp,
}

impl Letter {
    /// Names what is known of it: another letter has another revision, and so has the same one
    /// after it failed again or was set aside.
    pub fn revision(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(&self.position.to_le_bytes());
        hasher.update(self.state.as_str().as_bytes());
        hasher.update(&self.attempts.to_le_bytes());
        hasher.update(&self.last_failed_at.millis().to_le_bytes());
        // The greatest number is never a revision: it stands for a tag that cannot be one.
        hasher.digest() >> 1
    }
}

/// A change to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterWrite {
    /// Add it, or replace the letter of the same subscription and position.
    Put(Letter),
    /// It has been handled or discarded.
    Remove {
        /// The subscription.
        subscription: Arc<str>,
        /// The event's position.
        position: u64,
    },
}

/// A state to start folding from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The aggregate's stream number.
    pub stream: i64,
    /// The version that the state is at.
    pub version: u64,
    /// The shape of the state ([`crate::aggregate::Aggregate::SNAPSHOT_VERSION`]).
    pub shape: u32,
    /// The state as JSON, personal fields sealed.
    pub state: String,
}

/// An aggregate that failed again and again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Quarantine {
    /// Its type.
    pub aggregate_type: Arc<str>,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// The command that crashed it last: its id, never its body.
    pub command_id: Uuid,
    /// The command's name.
    pub command: String,
    /// Names the crash in the logs.
    pub error_id: Uuid,
    /// Since when.
    pub since: Timestamp,
}

/// A crash of an aggregate.
#[derive(
    Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Crash {
    /// When.
    pub at: Timestamp,
    /// Names it in the logs.
    pub error_id: Uuid,
    /// The command under way: its id, never its body; nil: there was none.
    pub command_id: Uuid,
    /// The command's name; `load`: its events could not be folded.
    pub command: String,
}

/// Everything that one transaction stores.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The events, with their positions and hashes.
    pub events: Vec<Arc<StoredEvent>>,
    /// Aggregates whose first events these are.
    pub streams: Vec<StreamNumber>,
    /// Outcomes of commands.
    pub outcomes: Vec<Outcome>,
    /// New keys of persons: added unless the same row is there; another row there is a conflict.
    pub keys: Vec<PersonKey>,
    /// Keys to destroy.
    pub destroyed_keys: Vec<Uuid>,
    /// Timers, in order.
    pub timers: Vec<TimerWrite>,
    /// Checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Letters, in order.
    pub letters: Vec<LetterWrite>,
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Control rows of the application.
    pub control: Vec<ControlWrite>,
    /// Quarantine records to add.
    pub quarantines: Vec<Quarantine>,
    /// Quarantines to lift: type and id.
    pub released: Vec<(Arc<str>, Uuid)>,
}

impl Batch {
    /// Whether events are all there is, so that one statement stores it.
    pub fn only_events(&self) -> bool {
        self.streams.is_empty() && self.control_rows() == 0
    }

    /// How many rows beside events it has.
    pub fn control_rows(&self) -> usize {
        self.outcomes.len()
            + self.keys.len()
            + self.destroyed_keys.len()
            + self.timers.len()
            + self.checkpoints.len()
            + self.letters.len()
            + self.snapshots.len()
            + self.control.len()
            + self.quarantines.len()
            + self.released.len()
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.streams.is_empty() && self.control_rows() == 0
    }
}

/// Which letters of a partition are meant.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    /// One subscription only.
    pub subscription: Option<String>,
    /// One key only.
    pub key: Option<Uuid>,
    /// One state only.
    pub state: Option<LetterState>,
    /// One class of failure only.
    pub class: Option<String>,
    /// One type of event only.
    pub event_type: Option<String>,
    /// Behind this position only, of whichever subscription.
    pub after: u64,
    /// Behind this subscription and position in the list only.
    pub behind: Option<(String, u64)>,
}

/// Where a journal is kept. One contract suite (`testing::contract`) runs against every
/// store; whatever it promises here is tested there.
///
/// * [`Store::append`] stores all of a batch or nothing, durably before it returns, and only if
///   the lease is still good.
/// * Positions, versions, event ids and command ids are unique: the store refuses a second one.
/// * Stored events never change: the store refuses updates and deletes.
/// * An event that is not what was written is never given out: every read of it is
///   [`Error::Damaged`], but for [`Store::read_from`], which gives what is whole before it first.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// How many partitions the journal was created with.
    fn partitions(&self) -> u16;

    /// Takes a partition over: raises its epoch, so that an earlier holder's appends are refused.
    async fn acquire(&self, partition: u16) -> Result<Lease, Error>;

    /// The partition's newest event.
    async fn head(&self, partition: u16) -> Result<Head, Error>;

    /// The partition's newest event, for a writer that does not know what became of its last append
    /// (its answer was lost, or the writer crashed). When this returns, that append can no longer be
    /// stored if it is not yet, and the lease to go on with is the one returned. Whoever gets no answer,
    /// or an error, asks again with the lease it has. [`Error::Locked`]: another process has the
    /// partition.
    async fn settle(&self, lease: Lease) -> Result<(Lease, Head), Error> {
        Ok((lease, self.head(lease.partition).await?))
    }

    /// How far this process may rely on what it knows of the partition. Asked on every command.
    fn standing(&self, _partition: u16) -> Standing {
        Standing::Held
    }

    /// Resolves, with the reason, when another process has taken the partition over.
    async fn lost(&self, _partition: u16) -> String {
        std::future::pending().await
    }

    /// Gives back what another process would have to wait for. Nothing is appended afterwards.
    async fn close(&self) {}

    /// The highest stream number in use by the partition; 0: none.
    async fn stream_max(&self, partition: u16) -> Result<i64, Error>;

    /// Stores a batch in one transaction.
    async fn append(&self, lease: Lease, batch: &Batch) -> Result<(), AppendError>;

    /// What the database itself finds wrong with what it stores, beside the events: its pages and
    /// indexes, control rows that are not what was written. Nothing: it is sound, as far as it can
    /// tell.
    async fn check_storage(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Copies everything, as of one instant, into files of an empty folder, while the journal is in
    /// use. The files are synced when this returns; [`backup::check_chain`] says whether they are
    /// whole.
    async fn back_up(&self, _folder: &Path) -> Result<backup::Contents, Error> {
        Err(backup::not_here())
    }

    /// Everything beside the events, in batches to be appended to another store. Nobody appends
    /// meanwhile.
    async fn dump(&self, _into: &mpsc::Sender<copy::Rows>) -> Result<(), Error> {
        Err(Error::Mismatch("a journal that is kept in memory is not copied".into()))
    }

    /// Called by the writer when nobody waits for it: a chance for housekeeping (checkpointing).
    async fn maintain(&self) {}

    /// The streams of a partition behind this number (0: from the first), in order, at most `limit`.
    async fn streams(
        &self,
        partition: u16,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StreamNumber>, Error>;

    /// The stream number of an aggregate, if it has events.
    async fn stream(&self, aggregate_type: &str, id: Uuid) -> Result<Option<i64>, Error>;

    /// Events of a stream after a version, in order, at most `limit`.
    async fn read_stream(
        &self,
        stream: i64,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error>;

    /// Events of a partition after a position, in order, at most `limit`.
    async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error>;

    /// One event by its id.
    async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, Error>;

    /// Where those of these events stand that there are, in any order: at most
    /// [`LOOKED_UP_MAX`] at a time.
    async fn places(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Position)>, Error>;

    /// Events of an aggregate of any type, after a version.
    async fn read_aggregate(
        &self,
        id: Uuid,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error>;

    /// Events with a correlation id, by partition and position.
    async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error>;

    /// The newest snapshot of a stream, of those up to version `upto`.
    async fn snapshot(&self, stream: i64, upto: u64) -> Result<Option<Snapshot>, Error>;

    /// The outcome of a command, if it has one.
    async fn outcome(&self, command_id: Uuid) -> Result<Option<Outcome>, Error>;

    /// A person's key; `Some` with an empty `wrapped` once destroyed.
    async fn person_key(&self, subject: Uuid) -> Result<Option<PersonKey>, Error>;

    /// Timers of a partition that are due by `now`, the earliest first.
    async fn timers_due(
        &self,
        partition: u16,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, Error>;

    /// When a timer is due, if it is set.
    async fn timer(&self, key: &TimerKey) -> Result<Option<Timestamp>, Error>;

    /// When the partition's next timer is due.
    async fn next_timer(&self, partition: u16) -> Result<Option<Timestamp>, Error>;

    /// The checkpoints of a subscription in a partition.
    async fn checkpoints(
        &self,
        subscription: &str,
        partition: u16,
    ) -> Result<Vec<Checkpoint>, Error>;

    /// Letters of a partition, by subscription and position.
    async fn letters(
        &self,
        partition: u16,
        filter: &LetterFilter,
        limit: usize,
    ) -> Result<Vec<Letter>, Error>;

    /// A control row of the application, unless it has expired by `now`.
    async fn control(
        &self,
        space: &str,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, Error>;

    /// The quarantined aggregates of a partition.
    async fn quarantined(&self, partition: u16) -> Result<Vec<Quarantine>, Error>;

    /// Drops outcomes decided before `outcomes_before`, and control rows expired by `now`, a
    /// bounded number at a time. Returns how many went.
    async fn purge(&self, outcomes_before: Timestamp, now: Timestamp) -> Result<u64, Error>;
}

/// How many events [`Store::places`] looks up at a time.
pub const LOOKED_UP_MAX: usize = 1_000;

/// So many older snapshots of a stream are kept at most, and half as many at least once there were.
pub const SNAPSHOTS_KEPT: u64 = 128;

/// Which of a stream's snapshots are kept once there is one of this version: the first of each so
/// many versions. The answer to a repeat is rendered from the state of then, so a state must never be
/// further away than a small part of the stream; and a stream has few snapshots however long it is.
pub(crate) fn snapshot_stride(version: u64) -> u64 {
    (version / SNAPSHOTS_KEPT).max(1).next_power_of_two()
}

/// Which partition an aggregate belongs to, for good.
pub fn partition_of(aggregate_id: Uuid, partitions: u16) -> u16 {
    let hash = xxhash_rust::xxh3::xxh3_64(aggregate_id.as_bytes());
    u16::try_from(hash % u64::from(partitions)).expect("less than the number of partitions")
}
