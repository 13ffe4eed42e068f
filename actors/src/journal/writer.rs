//! The journal writer: one per partition, and the only thing that appends.
//!
//! It takes everything that is queued, up to a bound in rows and bytes, commits it in one
//! transaction, releases the replies in order, and passes the batch on to the broker in commit
//! order. It never waits for more to come: batches grow by themselves under load.
//!
//! What can go wrong with an append, and what becomes of it:
//!
//! | the store says | the writer |
//! | --- | --- |
//! | not committed | tries again, within bounds; then the whole batch is lost (503) and appends stop until a probe succeeds |
//! | conflict | finds the entries that conflict by appending each alone: those are lost, the others go again with positions and chain recomputed |
//! | unsettled | as not committed; but when that was the last word, nobody can say that it is lost, so the callers are told that the outcome is unknown (504) |
//! | unknown | settles it: makes sure that the append can no longer happen, and reads the head back: committed or not. Where that fails too, the callers are told so (504), and nothing is appended until it is settled |
//! | fenced | stops for good: the partition belongs to somebody else |
//!
//! When an entry is lost, everything that the same incarnation of its aggregate decided afterwards
//! is lost with it: those entries rest on a state that never was.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::codec::Keyring;
use super::{
    AppendError, Batch, Head, Lease, Outcome, PersonKey, Store, StreamNumber, TimerWrite, chain,
};
use crate::command::{ControlWrite, Unavailable};
use crate::event::{Position, StoredEvent};
use crate::faults::points;
use crate::planted::Bug;
use crate::retry::Backoff;
use crate::world::{Timestamp, World};

/// Rows in one transaction: beyond this, throughput gains little and the unlucky wait longer.
pub const BATCH_ROWS_MAX: usize = 500;
/// Bytes of event data in one transaction.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How often an append that surely did not commit is tried again before the batch is given up.
const APPEND_RETRIES_MAX: u32 = 4;
/// How long an unknown outcome may stay so before the callers are told.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);
/// How often settling it is tried meanwhile.
const SETTLE_EVERY: Duration = Duration::from_millis(50);
/// How often a journal that failed is probed.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How much a probe writes: about what a busy moment does, so that a disk with room for a line more
/// is not taken for well.
const PROBE_BYTES: usize = 64 * 1024;
/// How often the log is told of the same trouble.
const PROBE_TOLD_EVERY: Duration = Duration::from_secs(10);
/// So many events before the head are verified at the start: what was written last is what a crash
/// or a bad disk damages first, and everything new will rest on it.
const VERIFIED_AT_START: u64 = 100;

/// One life of an aggregate's actor, from rehydration to its end. Entries carry it, so that what
/// rests on a lost entry is lost too, and so that the next life begins only after this one's
/// entries are settled.
#[derive(Debug, Default)]
pub struct Incarnation {
    failed: AtomicBool,
    pending: AtomicUsize,
    settled: Notify,
}

impl Incarnation {
    /// Whether an entry of this life was lost: nothing decided since then holds.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// How many of its entries are not settled.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// Waits until every entry is settled.
    pub async fn settled(&self) {
        loop {
            let woken = self.settled.notified();
            if self.pending() == 0 {
                return;
            }
            woken.await;
        }
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

/// Counts an entry of an incarnation from queueing to settling.
#[derive(Debug)]
struct Pending(Arc<Incarnation>);

impl Pending {
    fn new(incarnation: Arc<Incarnation>) -> Self {
        incarnation.pending.fetch_add(1, Ordering::AcqRel);
        Self(incarnation)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.0.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.settled.notify_waiters();
        }
    }
}

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Durable. The place of its last event, if it had any.
    Committed(Option<Position>),
    /// Nothing of it is stored.
    Lost(Unavailable),
    /// It may be stored or not.
    Unknown,
}

/// How an append failed.
enum Failed {
    /// As the store says, or as was found out since.
    Append(AppendError),
    /// Its outcome was unknown, and before it could be found out another writer took over.
    Replaced,
}

impl From<AppendError> for Failed {
    fn from(error: AppendError) -> Self {
        Self::Append(error)
    }
}

/// What happens when an entry is settled: the reply that it carries is sent. Called in commit
/// order; must not block.
pub type Release = Box<dyn FnOnce(Settled) + Send>;

/// An event as its aggregate's actor encoded it: all that the writer does not assign.
#[derive(Debug)]
pub struct EncodedEvent {
    /// Its id.
    pub event_id: Uuid,
    /// Its canonical type.
    pub event_type: Arc<str>,
    /// The data's major version.
    pub major: u16,
    /// The data's minor version.
    pub minor: u16,
    /// When it was decided.
    pub timestamp: Timestamp,
    /// The data, personal fields sealed.
    pub data: Arc<str>,
    /// The metadata.
    pub metadata: Arc<str>,
    /// Its own correlation id, where it is not its target's.
    pub correlation_id: Option<Arc<str>>,
    /// Its own causation id, where it is not its target's.
    pub causation_id: Option<Arc<str>>,
}

/// Which aggregate an entry's events belong to, and where they continue.
#[derive(Debug, Clone)]
pub struct Target {
    /// The aggregate's stream number.
    pub stream: i64,
    /// Its type.
    pub aggregate_type: Arc<str>,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// Its version before the events; 0: the stream is new.
    pub version: u64,
    /// The correlation id of the events.
    pub correlation_id: Arc<str>,
    /// What caused them.
    pub causation_id: Arc<str>,
}

/// What an aggregate's actor, or another part of the runtime, queues for the writer. It is stored
/// whole or not at all, and whatever becomes of it, its release is called exactly once.
#[derive(Default)]
pub struct Entry {
    incarnation: Option<Pending>,
    target: Option<Target>,
    events: Vec<EncodedEvent>,
    rows: Batch,
    release: Option<Release>,
    queued: Option<Queued>,
}

/// Counts an entry's rows from queueing to settling.
struct Queued {
    state: Arc<WriterState>,
    rows: usize,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.state.queued_rows.fetch_sub(self.rows, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("events", &self.events.len()).finish_non_exhaustive()
    }
}

impl Entry {
    /// An entry of one life of an aggregate.
    pub fn of(incarnation: &Arc<Incarnation>) -> Self {
        let mut entry = Self::default();
        entry.incarnation = Some(Pending::new(incarnation.clone()));
        entry
    }

    /// An entry of the runtime itself: control rows only.
    pub fn control(rows: Batch) -> Self {
        let mut entry = Self::default();
        entry.rows = rows;
        entry
    }

    /// Adds events.
    pub fn events(&mut self, target: Target, events: Vec<EncodedEvent>) {
        self.target = Some(target);
        self.events = events;
    }

    /// Rows stored with the events.
    pub fn rows(&mut self) -> &mut Batch {
        &mut self.rows
    }

    /// What to do when it is settled.
    pub fn on_settled(&mut self, release: Release) {
        self.release = Some(release);
    }

    /// Adds a command's outcome.
    pub fn outcome(&mut self, outcome: Outcome) {
        self.rows.outcomes.push(outcome);
    }

    /// Adds keys that its sealed fields need.
    pub fn keys(&mut self, keys: Vec<PersonKey>) {
        self.rows.keys.extend(keys);
    }

    fn doomed(&self) -> bool {
        self.incarnation.as_ref().is_some_and(|pending| pending.0.failed())
    }

    fn size(&self) -> (usize, usize) {
        let bytes = self.events.iter().map(|event| event.data.len() + event.metadata.len()).sum();
        (self.events.len() + self.rows.control_rows(), bytes)
    }

    fn settle(mut self, settled: Settled) -> Option<Pending> {
        self.settle_in_place(settled);
        self.incarnation.take()
    }

    fn settle_in_place(&mut self, settled: Settled) {
        if !matches!(settled, Settled::Committed(_))
            && let Some(pending) = &self.incarnation
        {
            pending.0.fail();
        }
        if let Some(release) = self.release.take() {
            release(settled);
        }
    }
}

/// An entry that is dropped unsettled (a writer that crashed) may be stored or not.
impl Drop for Entry {
    fn drop(&mut self) {
        if self.release.is_some() {
            self.settle_in_place(Settled::Unknown);
        }
    }
}

/// What the writer tells others about itself.
#[derive(Debug)]
pub struct WriterState {
    healthy: AtomicBool,
    head: AtomicU64,
    streams: AtomicU64,
    partition: u16,
    /// Rows queued or being appended.
    queued_rows: AtomicUsize,
    /// How long an append takes, smoothed, in microseconds.
    append_micros: AtomicU64,
    /// When the append under way began, in microseconds since `since`; 0: none is.
    appending_since: AtomicU64,
    since: Instant,
}

impl WriterState {
    /// How long what is queued now has to wait, by how long appends took lately and by how long the
    /// one under way has been taking. Nothing as long as that one and the next take all of it: a
    /// store, however slow, must find a whole batch whenever it is done with one.
    pub fn expected_wait(&self) -> Duration {
        let batches = self.queued_rows.load(Ordering::Relaxed) / BATCH_ROWS_MAX;
        if batches < 2 {
            return Duration::ZERO;
        }
        let current = match self.appending_since.load(Ordering::Relaxed) {
            0 => 0,
            began => self.micros().saturating_sub(began),
        };
        let one = self.append_micros.load(Ordering::Relaxed).max(current);
        Duration::from_micros(one.saturating_mul(batches as u64))
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn append_begins(&self) {
        self.appending_since.store(self.micros().max(1), Ordering::Relaxed);
    }

    fn append_ended(&self) {
        let began = self.appending_since.swap(0, Ordering::Relaxed);
        let took = self.micros().saturating_sub(began);
        let before = self.append_micros.load(Ordering::Relaxed);
        self.append_micros.store(before - before / 4 + took / 4, Ordering::Relaxed);
    }

    /// Whether appends are being taken.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// The partition that it writes.
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// The position of the newest event known to be committed.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// A stream number for a new aggregate. One that is never used leaves a harmless gap.
    pub fn next_stream(&self) -> i64 {
        let count = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        (i64::from(self.partition) << 48) | i64::try_from(count).unwrap_or(i64::MAX)
    }
}

/// What the writer hands on after a commit.
pub trait Committed: Send + Sync + 'static {
    /// A batch is durable; batches come in commit order, without gaps.
    fn committed(&self, events: Vec<Arc<StoredEvent>>);
    /// The head was read back and may be ahead of the batches handed on: the journal has the rest.
    fn moved_to(&self, head: u64);
    /// Timers were set, the earliest of them due then.
    fn timers_set(&self, earliest: Timestamp);
}

/// The sending side: how entries get to the writer.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    queue: mpsc::Sender<Entry>,
    state: Arc<WriterState>,
}

impl WriterHandle {
    /// Queues an entry. Admission control keeps the queue from filling; if it is full all the
    /// same, or the writer is gone, the entry is lost and says so.
    pub fn enqueue(&self, mut entry: Entry) {
        self.count(&mut entry);
        match self.queue.try_send(entry) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(entry)) => {
                entry.settle(Settled::Lost(Unavailable::Overloaded));
            }
            Err(mpsc::error::TrySendError::Closed(entry)) => {
                entry.settle(Settled::Lost(Unavailable::Draining));
            }
        }
    }

    fn count(&self, entry: &mut Entry) {
        let (rows, _) = entry.size();
        self.state.queued_rows.fetch_add(rows, Ordering::Relaxed);
        entry.queued = Some(Queued { state: self.state.clone(), rows });
    }

    /// Stores control rows and waits until they are durable.
    pub async fn store(&self, rows: Batch) -> Result<(), Unavailable> {
        let (settled, wait) = tokio::sync::oneshot::channel();
        let mut entry = Entry::control(rows);
        entry.on_settled(Box::new(move |how| {
            let _ = settled.send(how);
        }));
        self.count(&mut entry);
        if self.queue.send(entry).await.is_err() {
            return Err(Unavailable::Draining);
        }
        match wait.await {
            Ok(Settled::Committed(_)) => Ok(()),
            Ok(Settled::Lost(why)) => Err(why),
            Ok(Settled::Unknown) | Err(_) => Err(Unavailable::Journal),
        }
    }

    /// The writer's state.
    pub fn state(&self) -> &Arc<WriterState> {
        &self.state
    }
}

/// What a writer is made of.
pub struct WriterParts {
    /// Where it writes.
    pub store: Arc<dyn Store>,
    /// Whose keys it marks as stored.
    pub keys: Arc<Keyring>,
    /// Randomness and time, for waits.
    pub world: Arc<dyn World>,
    /// Who hears of commits.
    pub committed: Arc<dyn Committed>,
    /// Injected failures.
    pub faults: Arc<crate::faults::Faults>,
}

/// The writer of one partition. [`Writer::run`] is its life; the queue survives a crash of it.
pub struct Writer {
    parts: WriterParts,
    partition: u16,
    /// The lease's epoch; settling an unknown outcome may raise it.
    epoch: AtomicU64,
    queue: tokio::sync::Mutex<mpsc::Receiver<Entry>>,
    state: Arc<WriterState>,
}

/// Why a writer stopped.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Another writer has the partition.
    #[error("the partition belongs to another writer now")]
    Fenced,
    /// The journal could not be read at the start.
    #[error("the journal cannot be read")]
    Unreadable(#[source] super::Error),
}

enum Written {
    Upto(Head),
    /// The journal takes no appends, or its head is not known.
    Sick(Vec<Option<Pending>>),
}

enum Probe {
    Later(String),
    Stop(Stopped),
}

struct Prepared {
    batch: Batch,
    head: Head,
    /// Where each entry's last event stands.
    lasts: Vec<Option<Position>>,
}

impl Writer {
    /// Takes the partition over and makes its writer. `queue_max` bounds what can be queued.
    pub async fn open(
        parts: WriterParts,
        partition: u16,
        queue_max: usize,
    ) -> Result<(Arc<Self>, WriterHandle), super::Error> {
        let lease = parts.store.acquire(partition).await?;
        points::reach("lease.acquired").await;
        chain::verify_tail(&*parts.store, partition, VERIFIED_AT_START).await?;
        let head = parts.store.head(partition).await?;
        let streams = parts.store.stream_max(partition).await? & ((1 << 48) - 1);
        let state = Arc::new(WriterState {
            healthy: AtomicBool::new(true),
            head: AtomicU64::new(head.position),
            streams: AtomicU64::new(u64::try_from(streams).unwrap_or(0)),
            partition,
            queued_rows: AtomicUsize::new(0),
            append_micros: AtomicU64::new(0),
            appending_since: AtomicU64::new(0),
            since: Instant::now(),
        });
        let (send, receive) = mpsc::channel(queue_max);
        let handle = WriterHandle { queue: send, state: state.clone() };
        let queue = tokio::sync::Mutex::new(receive);
        let epoch = AtomicU64::new(lease.epoch);
        Ok((Arc::new(Self { parts, partition, epoch, queue, state }), handle))
    }

    /// Writes until every handle is gone and the queue is empty.
    pub async fn run(&self) -> Result<(), Stopped> {
        let mut queue = self.queue.lock().await;
        let mut received = Vec::with_capacity(BATCH_ROWS_MAX);
        let mut waiting = VecDeque::new();
        let mut head = self.recover(&mut queue, &mut waiting, Vec::new()).await?;
        loop {
            if waiting.is_empty() {
                if queue.recv_many(&mut received, BATCH_ROWS_MAX).await == 0 {
                    return Ok(());
                }
                waiting.extend(received.drain(..));
            } else if !queue.is_empty() && waiting.len() < BATCH_ROWS_MAX {
                let room = BATCH_ROWS_MAX - waiting.len();
                queue.recv_many(&mut received, room).await;
                waiting.extend(received.drain(..));
            }
            let entries = take_batch(&mut waiting);
            self.state.append_begins();
            let written = self.write(head, entries).await;
            self.state.append_ended();
            head = match written? {
                Written::Upto(head) => head,
                Written::Sick(unsettled) => {
                    self.recover(&mut queue, &mut waiting, unsettled).await?
                }
            };
            self.parts.store.maintain().await;
        }
    }

    /// Refuses everything until every handle is gone: what is left to do for a writer whose
    /// partition belongs to somebody else, so that nobody waits for it.
    pub async fn refuse(&self) {
        let mut queue = self.queue.lock().await;
        while let Some(entry) = queue.recv().await {
            lose(vec![entry], Unavailable::Journal);
        }
    }

    /// Waits until the head can be read and the journal takes appends again. Meanwhile whatever is
    /// queued is refused at once. `unsettled` keeps the incarnations whose entries have an unknown
    /// outcome from being succeeded before the head is known.
    async fn recover(
        &self,
        queue: &mut mpsc::Receiver<Entry>,
        waiting: &mut VecDeque<Entry>,
        unsettled: Vec<Option<Pending>>,
    ) -> Result<Head, Stopped> {
        let partition = self.partition;
        let mut told: Option<(String, Instant)> = None;
        loop {
            match self.probe().await {
                Ok(head) => {
                    if told.is_some() {
                        tracing::info!(partition, "the journal takes appends again");
                    }
                    drop(unsettled);
                    self.state.head.store(head.position, Ordering::Release);
                    self.state.healthy.store(true, Ordering::Release);
                    self.parts.committed.moved_to(head.position);
                    return Ok(head);
                }
                Err(Probe::Stop(stopped)) => {
                    self.state.healthy.store(false, Ordering::Release);
                    lose(waiting.drain(..).collect(), Unavailable::Journal);
                    return Err(stopped);
                }
                Err(Probe::Later(what)) => {
                    self.state.healthy.store(false, Ordering::Release);
                    // Four times a second would tell nobody more.
                    let old = told.as_ref().is_none_or(|(said, when)| {
                        *said != what || when.elapsed() >= PROBE_TOLD_EVERY
                    });
                    if old {
                        tracing::error!(partition, %what, "the journal is unwell; probing");
                        told = Some((what, Instant::now()));
                    }
                }
            }
            lose(waiting.drain(..).collect(), Unavailable::Journal);
            let until = Instant::now() + PROBE_EVERY;
            while let Ok(Some(entry)) = tokio::time::timeout_at(until, queue.recv()).await {
                lose(vec![entry], Unavailable::Journal);
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn lease(&self) -> Lease {
        Lease { partition: self.partition, epoch: self.epoch.load(Ordering::Acquire) }
    }

    /// The head, once no append of which nothing is known can move it any more.
    async fn settle(&self) -> Result<Head, super::Error> {
        let (lease, head) = self.parts.store.settle(self.lease()).await?;
        self.epoch.store(lease.epoch, Ordering::Release);
        Ok(head)
    }

    /// Settles the head, and writes a row to see that writing works.
    async fn probe(&self) -> Result<Head, Probe> {
        let head = match self.settle().await {
            Ok(head) => head,
            Err(super::Error::Locked(_)) => return Err(Probe::Stop(Stopped::Fenced)),
            Err(error @ super::Error::Damaged(_)) => {
                return Err(Probe::Stop(Stopped::Unreadable(error)));
            }
            Err(error) => return Err(Probe::Later(error.with_source())),
        };
        let probe = Batch {
            control: vec![ControlWrite {
                space: "probe",
                key: self.partition.to_le_bytes().to_vec(),
                value: Some(vec![0; PROBE_BYTES]),
                expires_at: None,
            }],
            ..Batch::default()
        };
        let written = match self.parts.faults.on_append().await {
            Ok(_) => self.parts.store.append(self.lease(), &probe).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => Ok(head),
            Err(AppendError::Fenced) => Err(Probe::Stop(Stopped::Fenced)),
            Err(error) => Err(Probe::Later(error.to_string())),
        }
    }

    /// Commits entries and settles them all.
    async fn write(&self, head: Head, mut entries: Vec<Entry>) -> Result<Written, Stopped> {
        let mut retries = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        let (mut tries, mut may_come_back) = (0, false);
        loop {
            entries = lose_doomed(entries);
            let forgotten = entries.len() > 1 && self.parts.faults.planted(Bug::ForgetLastOfBatch);
            let stored = &entries[..entries.len() - usize::from(forgotten)];
            let mut prepared = prepare(self.partition, head, stored);
            prepared.lasts.resize(entries.len(), None);
            if self.parts.faults.planted(Bug::AcknowledgeBeforeCommit) {
                entries
                    .iter_mut()
                    .for_each(|entry| entry.settle_in_place(Settled::Committed(None)));
            }
            if prepared.batch.is_empty() {
                settle_committed(entries, prepared.lasts);
                return Ok(Written::Upto(head));
            }
            let started = Instant::now();
            tries += 1;
            match self.append(&prepared, head).await {
                Ok(()) => {
                    observe_commit(&prepared.batch, started);
                    return Ok(Written::Upto(self.commit(entries, prepared).await));
                }
                Err(Failed::Append(
                    ref error @ (AppendError::NotCommitted(ref what)
                    | AppendError::Unsettled(ref what)),
                )) if tries <= APPEND_RETRIES_MAX => {
                    may_come_back |= matches!(error, AppendError::Unsettled(_));
                    metrics::counter!("souk_journal_append_retries_total").increment(1);
                    tracing::warn!(partition = self.partition, %what, tries, "an append did not commit; trying again");
                    tokio::time::sleep(retries.next_delay()).await;
                }
                Err(Failed::Replaced) => return self.replaced(entries),
                Err(Failed::Append(AppendError::Fenced)) if may_come_back => {
                    return self.replaced(entries);
                }
                Err(Failed::Append(error)) if may_come_back => {
                    let unknown = AppendError::Unknown(error.to_string());
                    return self.give_up(unknown, head, entries).await;
                }
                Err(Failed::Append(error)) => return self.give_up(error, head, entries).await,
            }
        }
    }

    /// Another writer has the partition now, and may have found these entries stored or not.
    fn replaced(&self, entries: Vec<Entry>) -> Result<Written, Stopped> {
        self.state.healthy.store(false, Ordering::Release);
        for entry in entries {
            entry.settle(Settled::Unknown);
        }
        Err(Stopped::Fenced)
    }

    /// What becomes of entries whose append did not succeed.
    async fn give_up(
        &self,
        error: AppendError,
        mut head: Head,
        entries: Vec<Entry>,
    ) -> Result<Written, Stopped> {
        let partition = self.partition;
        match error {
            AppendError::Conflict(what) if entries.len() == 1 => {
                tracing::warn!(partition, %what, "an append conflicts and is lost");
                lose(entries, Unavailable::Restarting);
                Ok(Written::Upto(head))
            }
            AppendError::Conflict(_) => {
                let mut rest = entries.into_iter();
                while let Some(entry) = rest.next() {
                    match Box::pin(self.write(head, vec![entry])).await? {
                        Written::Upto(next) => head = next,
                        sick @ Written::Sick(_) => {
                            lose(rest.collect(), Unavailable::Journal);
                            return Ok(sick);
                        }
                    }
                }
                Ok(Written::Upto(head))
            }
            AppendError::NotCommitted(what) => {
                tracing::error!(partition, %what, entries = entries.len(), "an append was given up");
                self.state.healthy.store(false, Ordering::Release);
                lose(entries, Unavailable::Journal);
                Ok(Written::Sick(Vec::new()))
            }
            AppendError::Unknown(what) | AppendError::Unsettled(what) => {
                tracing::error!(partition, %what, "the outcome of an append stayed unknown");
                self.state.healthy.store(false, Ordering::Release);
                let unknown = entries.into_iter().map(|entry| entry.settle(Settled::Unknown));
                Ok(Written::Sick(unknown.collect()))
            }
            AppendError::Fenced => {
                self.state.healthy.store(false, Ordering::Release);
                lose(entries, Unavailable::Journal);
                Err(Stopped::Fenced)
            }
        }
    }

    /// Appends, and settles an unknown outcome by reading the head back.
    async fn append(&self, prepared: &Prepared, before: Head) -> Result<(), Failed> {
        let answer_lost = self.parts.faults.on_append().await?;
        let failed = points::try_reach("journal.before_insert").await;
        failed.map_err(|failed| AppendError::NotCommitted(failed.to_string()))?;
        let mut appended = self.parts.store.append(self.lease(), &prepared.batch).await;
        if appended.is_ok() {
            points::reach("journal.after_commit").await;
        }
        if answer_lost && appended.is_ok() {
            appended = Err(AppendError::Unknown("the answer was lost, as injected".into()));
        }
        let Err(AppendError::Unknown(what)) = appended else {
            return appended.map_err(Failed::from);
        };
        if self.parts.faults.planted(Bug::UnknownIsFailed) {
            return Err(AppendError::NotCommitted(what).into());
        }
        let until = Instant::now() + SETTLE_WITHIN;
        while let Ok(settled) = tokio::time::timeout_at(until, self.settle()).await {
            match settled {
                // Control rows are written so that writing them again changes nothing, but for new
                // outcomes and streams, which come with a conflict that says so.
                Ok(_) if prepared.batch.events.is_empty() => {
                    return Err(AppendError::NotCommitted(what).into());
                }
                Ok(head) if head == prepared.head => return Ok(()),
                Ok(head) if head == before => return Err(AppendError::NotCommitted(what).into()),
                Ok(_) | Err(super::Error::Locked(_)) => return Err(Failed::Replaced),
                Err(_) => tokio::time::sleep(SETTLE_EVERY).await,
            }
        }
        Err(AppendError::Unknown(what).into())
    }

    async fn commit(&self, entries: Vec<Entry>, prepared: Prepared) -> Head {
        let Prepared { batch, head, lasts } = prepared;
        self.parts.keys.stored(&batch.keys);
        for subject in &batch.destroyed_keys {
            self.parts.keys.destroyed(*subject);
        }
        self.state.head.store(head.position, Ordering::Release);
        points::reach("writer.before_reply").await;
        if self.parts.faults.planted(Bug::ReplyOutOfOrder) {
            let reversed = entries.into_iter().rev().zip(lasts.into_iter().rev());
            reversed.for_each(|(entry, last)| drop(entry.settle(Settled::Committed(last))));
        } else {
            settle_committed(entries, lasts);
        }
        points::reach("writer.before_broker").await;
        let earliest = batch.timers.iter().filter_map(|write| match write {
            TimerWrite::Set(timer) => Some(timer.due),
            TimerWrite::Clear(_) | TimerWrite::Fired(_) => None,
        });
        if let Some(earliest) = earliest.min() {
            self.parts.committed.timers_set(earliest);
        }
        if !batch.events.is_empty() {
            self.parts.committed.committed(batch.events);
        }
        head
    }
}

fn settle_committed(entries: Vec<Entry>, lasts: Vec<Option<Position>>) {
    for (entry, last) in entries.into_iter().zip(lasts) {
        entry.settle(Settled::Committed(last));
    }
}

fn observe_commit(batch: &Batch, started: Instant) {
    metrics::counter!("souk_journal_appends_total").increment(1);
    metrics::histogram!("souk_journal_append_duration_seconds").record(started.elapsed());
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most hundreds of events")]
    metrics::histogram!("souk_journal_batch_events").record(batch.events.len() as f64);
}

/// Takes entries up to the bounds, at least one.
fn take_batch(waiting: &mut VecDeque<Entry>) -> Vec<Entry> {
    let (mut rows, mut bytes) = (0, 0);
    let mut taken = Vec::new();
    while let Some(entry) = waiting.front() {
        let (entry_rows, entry_bytes) = entry.size();
        rows += entry_rows;
        bytes += entry_bytes;
        if !taken.is_empty() && (rows > BATCH_ROWS_MAX || bytes > BATCH_BYTES_MAX) {
            break;
        }
        taken.extend(waiting.pop_front());
    }
    taken
}

/// Settles the entries whose incarnation has failed, in order, and returns the others.
fn lose_doomed(entries: Vec<Entry>) -> Vec<Entry> {
    if !entries.iter().any(Entry::doomed) {
        return entries;
    }
    let (doomed, sound): (Vec<_>, Vec<_>) = entries.into_iter().partition(Entry::doomed);
    lose(doomed, Unavailable::Restarting);
    sound
}

fn lose(entries: Vec<Entry>, why: Unavailable) {
    for entry in entries {
        entry.settle(Settled::Lost(why));
    }
}

/// Assigns positions and the chain, and collects all rows.
fn prepare(partition: u16, mut head: Head, entries: &[Entry]) -> Prepared {
    let mut batch = Batch::default();
    let mut lasts = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(target) = &entry.target {
            if target.version == 0 && !entry.events.is_empty() {
                batch.streams.push(StreamNumber {
                    stream: target.stream,
                    aggregate_type: target.aggregate_type.clone(),
                    aggregate_id: target.aggregate_id,
                });
            }
            for (index, event) in entry.events.iter().enumerate() {
                let stored = chained(partition, &mut head, target, index, event);
                batch.events.push(Arc::new(stored));
            }
        }
        let last =
            (!entry.events.is_empty()).then_some(Position { partition, position: head.position });
        lasts.push(last);
        extend(&mut batch, &entry.rows);
    }
    Prepared { batch, head, lasts }
}

fn chained(
    partition: u16,
    head: &mut Head,
    target: &Target,
    index: usize,
    event: &EncodedEvent,
) -> StoredEvent {
    let mut stored = StoredEvent {
        partition,
        position: head.position + 1,
        event_id: event.event_id,
        stream: target.stream,
        aggregate_type: target.aggregate_type.clone(),
        aggregate_id: target.aggregate_id,
        aggregate_version: target.version + 1 + index as u64,
        event_type: event.event_type.clone(),
        major: event.major,
        minor: event.minor,
        timestamp: event.timestamp,
        correlation_id: event.correlation_id.as_ref().unwrap_or(&target.correlation_id).clone(),
        causation_id: event.causation_id.as_ref().unwrap_or(&target.causation_id).clone(),
        data: event.data.clone(),
        metadata: event.metadata.clone(),
        hash: [0; 32],
    };
    stored.hash = chain::link(&head.hash, &stored);
    *head = Head { position: stored.position, hash: stored.hash };
    stored
}

fn extend(batch: &mut Batch, rows: &Batch) {
    batch.outcomes.extend(rows.outcomes.iter().cloned());
    for key in &rows.keys {
        if !batch.keys.contains(key) {
            batch.keys.push(key.clone());
        }
    }
    batch.destroyed_keys.extend(&rows.destroyed_keys);
    batch.timers.extend(rows.timers.iter().cloned());
    batch.checkpoints.extend(rows.checkpoints.iter().cloned());
    batch.letters.extend(rows.letters.iter().cloned());
    batch.snapshots.extend(rows.snapshots.iter().cloned());
    batch.control.extend(rows.control.iter().cloned());
    batch.quarantines.extend(rows.quarantines.iter().cloned());
    batch.released.extend(rows.released.iter().cloned());
}
