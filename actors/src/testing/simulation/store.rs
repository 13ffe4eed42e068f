//! A store that is slow, that fails, and that outlives the processes using it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use uuid::Uuid;

use super::plan::{Plan, Rng, Trouble};
use super::record::Record;
use crate::event::{Position, StoredEvent};
use crate::journal::memory::MemoryStore;
use crate::journal::{
    AppendError, Batch, Checkpoint, Error, Head, Lease, Letter, LetterFilter, Outcome, PersonKey,
    Quarantine, Snapshot, Store, StreamNumber, Timer, TimerKey,
};
use crate::planted::Bug;
use crate::world::Timestamp;

/// The disk, so to speak: see the module.
pub(super) struct SimulatedStore {
    pub disk: Arc<MemoryStore>,
    record: Arc<Record>,
    state: Mutex<State>,
    /// An append that the process is to die in.
    pub dying: Notify,
}

struct State {
    rng: Rng,
    troubles: VecDeque<Trouble>,
    unreadable_until: u64,
    sluggish_until: u64,
    /// An answer was lost: what is appended again may conflict with itself.
    lost: bool,
    /// By partition: the epoch that was to be settled, and the lease that it was settled with, of
    /// which its holder may not have heard.
    settling: BTreeMap<u16, (u64, Lease)>,
}

impl SimulatedStore {
    pub(super) fn new(plan: &Plan, planted: Option<Bug>, record: Arc<Record>) -> Self {
        let disk = MemoryStore::new(plan.partitions);
        let disk = match planted {
            Some(bug) => disk.planting(bug),
            None => disk,
        };
        let state = State {
            rng: Rng(plan.seed ^ 0x0d15_c0de),
            troubles: VecDeque::new(),
            unreadable_until: 0,
            sluggish_until: 0,
            lost: false,
            settling: BTreeMap::new(),
        };
        let dying = Notify::new();
        let disk = Arc::new(disk);
        Self { disk, record, state: Mutex::new(state), dying }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trouble(&self, trouble: Trouble, times: u32) {
        self.state().troubles.extend((0..times).map(|_| trouble));
    }

    pub(super) fn unreadable(&self, millis: u64) {
        self.state().unreadable_until = self.record.now() + millis;
    }

    pub(super) fn sluggish(&self, millis: u64) {
        self.state().sluggish_until = self.record.now() + millis;
    }

    /// From now on it works.
    pub(super) fn heal(&self) {
        let mut state = self.state();
        state.troubles.clear();
        state.unreadable_until = 0;
        state.sluggish_until = 0;
    }

    async fn delay(&self, most: u64) {
        let millis = {
            let mut state = self.state();
            let sluggish = self.record.now() < state.sluggish_until;
            let most = if sluggish { most * 40 } else { most };
            if state.rng.chance(40) { 0 } else { state.rng.below(most + 1) }
        };
        if millis > 0 {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }

    /// A read: it may take its time before the look and after it, so that the answer is old news.
    async fn read<T>(&self, look: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if self.state().rng.chance(25) {
            self.delay(2).await;
        }
        if self.record.now() < self.state().unreadable_until {
            return Err(Error::Database("it cannot be read, as planned".into()));
        }
        let answer = look.await;
        if self.state().rng.chance(25) {
            self.delay(2).await;
        }
        answer
    }

    /// What really becomes of a batch.
    async fn commit(&self, lease: Lease, batch: &Batch) -> Result<(), AppendError> {
        let stored = commit(&self.disk, &self.record, lease, batch).await;
        if let Err(AppendError::Conflict(what)) = &stored {
            let again = self.state().lost && what.contains("outcome");
            self.record.check(again, || {
                format!("store: an append was refused, so two wrote as one: {what}")
            });
        }
        stored
    }

    /// Stores a batch after a while, whether its writer still lives or not.
    fn commit_later(&self, lease: Lease, batch: Batch) {
        let wait = Duration::from_millis(1 + self.state().rng.below(120));
        let (disk, record) = (self.disk.clone(), self.record.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = commit(&disk, &record, lease, &batch).await;
        });
    }

    async fn die(&self) -> ! {
        self.dying.notify_one();
        std::future::pending().await
    }
}

async fn commit(
    disk: &MemoryStore,
    record: &Record,
    lease: Lease,
    batch: &Batch,
) -> Result<(), AppendError> {
    let stored = disk.append(lease, batch).await;
    let outcome = match &stored {
        Ok(()) => "stored",
        Err(AppendError::Fenced) => "fenced",
        Err(_) => "refused",
    };
    let (events, rows) = (batch.events.len(), batch.control_rows());
    record.trace(|| format!("append {lease:?}: {events} events, {rows} rows: {outcome}"));
    if stored.is_ok() {
        record.committed(batch);
    }
    stored
}

#[async_trait]
impl Store for SimulatedStore {
    fn partitions(&self) -> u16 {
        self.disk.partitions()
    }

    async fn acquire(&self, partition: u16) -> Result<Lease, Error> {
        self.read(self.disk.acquire(partition)).await
    }

    async fn append(&self, lease: Lease, batch: &Batch) -> Result<(), AppendError> {
        self.delay(4).await;
        let trouble = self.state().troubles.pop_front();
        match trouble {
            None => {
                self.commit(lease, batch).await?;
                self.delay(3).await;
                Ok(())
            }
            Some(Trouble::NotCommitted) => Err(AppendError::NotCommitted("as planned".into())),
            Some(Trouble::Conflict) => Err(AppendError::Conflict("as planned".into())),
            Some(Trouble::UnknownNotStored) => Err(AppendError::Unknown("as planned".into())),
            Some(Trouble::UnknownStored) => {
                self.state().lost = true;
                self.commit(lease, batch).await?;
                Err(AppendError::Unknown("as planned".into()))
            }
            Some(Trouble::UnknownLate) => {
                self.state().lost = true;
                self.commit_later(lease, batch.clone());
                Err(AppendError::Unknown("as planned".into()))
            }
            Some(Trouble::CrashBefore) => self.die().await,
            Some(Trouble::CrashAfter) => {
                let _ = self.commit(lease, batch).await;
                self.die().await
            }
        }
    }

    async fn head(&self, partition: u16) -> Result<Head, Error> {
        self.read(self.disk.head(partition)).await
    }

    async fn settle(&self, lease: Lease) -> Result<(Lease, Head), Error> {
        self.read(async {
            let before = self.state().settling.get(&lease.partition).copied();
            let held = before.filter(|(asked, _)| *asked == lease.epoch).map_or(lease, |of| of.1);
            if self.disk.append(held, &Batch::default()).await.is_err() {
                return Err(Error::Locked("another process has it".to_owned()));
            }
            let settled = self.disk.acquire(lease.partition).await?;
            self.state().settling.insert(lease.partition, (lease.epoch, settled));
            Ok((settled, self.disk.head(lease.partition).await?))
        })
        .await
    }

    async fn stream_max(&self, partition: u16) -> Result<i64, Error> {
        self.read(self.disk.stream_max(partition)).await
    }

    async fn streams(
        &self,
        partition: u16,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StreamNumber>, Error> {
        self.read(self.disk.streams(partition, after, limit)).await
    }

    async fn stream(&self, aggregate_type: &str, id: Uuid) -> Result<Option<i64>, Error> {
        self.read(self.disk.stream(aggregate_type, id)).await
    }

    async fn read_stream(
        &self,
        stream: i64,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        self.read(self.disk.read_stream(stream, after_version, limit)).await
    }

    async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        self.read(self.disk.read_from(partition, after, limit)).await
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, Error> {
        self.read(self.disk.event(id)).await
    }

    async fn places(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Position)>, Error> {
        self.read(self.disk.places(ids)).await
    }

    async fn read_aggregate(
        &self,
        id: Uuid,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        self.read(self.disk.read_aggregate(id, after_version, limit)).await
    }

    async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        self.read(self.disk.by_correlation(correlation_id, limit)).await
    }

    async fn snapshot(&self, stream: i64, upto: u64) -> Result<Option<Snapshot>, Error> {
        self.read(self.disk.snapshot(stream, upto)).await
    }

    async fn outcome(&self, command_id: Uuid) -> Result<Option<Outcome>, Error> {
        self.read(self.disk.outcome(command_id)).await
    }

    async fn person_key(&self, subject: Uuid) -> Result<Option<PersonKey>, Error> {
        self.read(self.disk.person_key(subject)).await
    }

    async fn timers_due(
        &self,
        partition: u16,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, Error> {
        self.read(self.disk.timers_due(partition, now, limit)).await
    }

    async fn timer(&self, key: &TimerKey) -> Result<Option<Timestamp>, Error> {
        self.read(self.disk.timer(key)).await
    }

    async fn next_timer(&self, partition: u16) -> Result<Option<Timestamp>, Error> {
        self.read(self.disk.next_timer(partition)).await
    }

    async fn checkpoints(
        &self,
        subscription: &str,
        partition: u16,
    ) -> Result<Vec<Checkpoint>, Error> {
        self.read(self.disk.checkpoints(subscription, partition)).await
    }

    async fn letters(
        &self,
        partition: u16,
        filter: &LetterFilter,
        limit: usize,
    ) -> Result<Vec<Letter>, Error> {
        self.read(self.disk.letters(partition, filter, limit)).await
    }

    async fn control(
        &self,
        space: &str,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, Error> {
        self.read(self.disk.control(space, key, now)).await
    }

    async fn quarantined(&self, partition: u16) -> Result<Vec<Quarantine>, Error> {
        self.read(self.disk.quarantined(partition)).await
    }

    async fn purge(&self, outcomes_before: Timestamp, now: Timestamp) -> Result<u64, Error> {
        self.read(self.disk.purge(outcomes_before, now)).await
    }
}
