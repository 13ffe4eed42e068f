//! A journal in memory: for the simulation and for tests. It promises what every store promises,
//! but for the process's life only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    AppendError, Batch, Checkpoint, Error, Head, Lease, Letter, LetterFilter, LetterWrite, Outcome,
    PersonKey, Quarantine, Snapshot, Store, StreamNumber, Timer, TimerKey, TimerWrite, chain,
    snapshot_stride,
};
use crate::event::{Position, StoredEvent};
use crate::planted::{Bug, Planted};
use crate::world::Timestamp;

/// See the module.
#[derive(Debug)]
pub struct MemoryStore {
    partitions: u16,
    rows: Mutex<Rows>,
    planted: Planted,
}

type ControlKey = (String, Vec<u8>);
type ControlRow = (Vec<u8>, Option<Timestamp>);

#[derive(Debug, Default)]
struct Rows {
    epochs: HashMap<u16, u64>,
    logs: BTreeMap<u16, Vec<Arc<StoredEvent>>>,
    streams: BTreeMap<(Arc<str>, Uuid), i64>,
    streams_asked: u64,
    by_stream: HashMap<i64, Vec<Arc<StoredEvent>>>,
    by_id: HashMap<Uuid, Arc<StoredEvent>>,
    outcomes: HashMap<Uuid, Outcome>,
    keys: HashMap<Uuid, PersonKey>,
    timers: BTreeMap<TimerKey, (u16, Timestamp)>,
    checkpoints: BTreeMap<(Arc<str>, u16, u16), Checkpoint>,
    letters: BTreeMap<(u16, Arc<str>, u64), Letter>,
    snapshots: HashMap<i64, BTreeMap<u64, Snapshot>>,
    control: HashMap<ControlKey, ControlRow>,
    quarantined: BTreeMap<(Arc<str>, Uuid), (u16, Quarantine)>,
}

impl MemoryStore {
    /// An empty journal with this many partitions.
    pub fn new(partitions: u16) -> Self {
        Self { partitions, rows: Mutex::default(), planted: Planted::default() }
    }

    /// Plants a bug in this store.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn planting(self, bug: Bug) -> Self {
        self.planted.plant(bug);
        self
    }

    /// How often an aggregate's stream was asked for.
    pub fn streams_asked(&self) -> u64 {
        self.rows().streams_asked
    }

    /// The letters of a partition that pass the filter.
    pub(crate) fn letters_now(&self, partition: u16, filter: &LetterFilter) -> Vec<Letter> {
        let rows = self.rows();
        let matching = rows.letters.iter().filter(|((part, subscription, position), letter)| {
            *part == partition
                && *position > filter.after
                && filter.subscription.as_deref().is_none_or(|name| name == &**subscription)
                && filter.key.is_none_or(|key| key == letter.key)
                && filter.state.is_none_or(|state| state == letter.state)
                && filter.class.as_ref().is_none_or(|class| *class == letter.class)
                && filter.event_type.as_deref().is_none_or(|of| of == &*letter.event_type)
                && filter
                    .behind
                    .as_ref()
                    .is_none_or(|(name, at)| (&**subscription, *position) > (name.as_str(), *at))
        });
        matching.map(|(_, letter)| letter.clone()).collect()
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    /// Whether the whole batch fits: a refused batch leaves no trace.
    fn check(&self, partition: u16, batch: &Batch) -> Result<(), AppendError> {
        let conflict = |what: &str| Err(AppendError::Conflict(what.to_owned()));
        let mut fresh = HashSet::new();
        for new in &batch.streams {
            let key = (new.aggregate_type.clone(), new.aggregate_id);
            if self.streams.contains_key(&key) || !fresh.insert(new.aggregate_id) {
                return conflict("the aggregate has a stream already");
            }
        }
        let mut position = self.logs.get(&partition).map_or(0, Vec::len) as u64;
        let mut versions = HashMap::new();
        for event in &batch.events {
            position += 1;
            let version = versions
                .entry(event.stream)
                .or_insert_with(|| self.by_stream.get(&event.stream).map_or(0, Vec::len) as u64);
            *version += 1;
            if event.position != position {
                return conflict("the position is taken");
            }
            if event.aggregate_version != *version {
                return conflict("the version is taken");
            }
            if self.by_id.contains_key(&event.event_id) || !fresh.insert(event.event_id) {
                return conflict("the event id is taken");
            }
        }
        for outcome in &batch.outcomes {
            let id = outcome.command_id;
            if self.outcomes.contains_key(&id) || !fresh.insert(id) {
                return conflict("the command has an outcome already");
            }
        }
        if batch.keys.iter().any(|key| self.keys.get(&key.subject).is_some_and(|old| old != key)) {
            return conflict("the person has another key");
        }
        Ok(())
    }

    fn store(&mut self, partition: u16, batch: &Batch) {
        for new in &batch.streams {
            let key = (new.aggregate_type.clone(), new.aggregate_id);
            self.streams.insert(key, new.stream);
        }
        for event in &batch.events {
            self.logs.entry(partition).or_default().push(event.clone());
            self.by_stream.entry(event.stream).or_default().push(event.clone());
            self.by_id.insert(event.event_id, event.clone());
        }
        for outcome in &batch.outcomes {
            self.outcomes.insert(outcome.command_id, outcome.clone());
        }
        for key in &batch.keys {
            self.keys.insert(key.subject, key.clone());
        }
        self.store_control(partition, batch);
    }

    fn store_control(&mut self, partition: u16, batch: &Batch) {
        for subject in &batch.destroyed_keys {
            let gone = PersonKey { subject: *subject, wrapped: Vec::new() };
            self.keys.insert(*subject, gone);
        }
        for write in &batch.timers {
            match write {
                TimerWrite::Set(timer) => {
                    self.timers.insert(timer.key.clone(), (partition, timer.due));
                }
                TimerWrite::Clear(key) => {
                    self.timers.remove(key);
                }
                TimerWrite::Fired(timer) => {
                    if self.timers.get(&timer.key).is_some_and(|(_, due)| *due == timer.due) {
                        self.timers.remove(&timer.key);
                    }
                }
            }
        }
        for checkpoint in &batch.checkpoints {
            let subscription = checkpoint.subscription.clone();
            self.checkpoints.retain(|(name, part, lane), _| {
                *name != subscription || *part != partition || *lane < checkpoint.lanes
            });
            self.checkpoints.insert((subscription, partition, checkpoint.lane), checkpoint.clone());
        }
        for write in &batch.letters {
            match write {
                LetterWrite::Put(letter) => {
                    let key = (partition, letter.subscription.clone(), letter.position);
                    self.letters.insert(key, letter.clone());
                }
                LetterWrite::Remove { subscription, position } => {
                    self.letters.remove(&(partition, subscription.clone(), *position));
                }
            }
        }
        for snapshot in &batch.snapshots {
            let kept = self.snapshots.entry(snapshot.stream).or_default();
            kept.insert(snapshot.version, snapshot.clone());
            let stride = snapshot_stride(snapshot.version);
            let mut before = None;
            kept.retain(|version, _| {
                let bucket = Some(version / stride);
                *version >= snapshot.version || std::mem::replace(&mut before, bucket) != bucket
            });
        }
        for write in &batch.control {
            let key = (write.space.to_owned(), write.key.clone());
            match &write.value {
                Some(value) => self.control.insert(key, (value.clone(), write.expires_at)),
                None => self.control.remove(&key),
            };
        }
        for quarantine in &batch.quarantines {
            let key = (quarantine.aggregate_type.clone(), quarantine.aggregate_id);
            self.quarantined.insert(key, (partition, quarantine.clone()));
        }
        for released in &batch.released {
            self.quarantined.remove(released);
        }
    }
}

fn page(
    events: Option<&Vec<Arc<StoredEvent>>>,
    after: u64,
    limit: usize,
) -> impl Iterator<Item = Arc<StoredEvent>> {
    let after = usize::try_from(after).unwrap_or(usize::MAX);
    events.into_iter().flatten().skip(after).take(limit).cloned()
}

#[async_trait]
impl Store for MemoryStore {
    fn partitions(&self) -> u16 {
        self.partitions
    }

    async fn acquire(&self, partition: u16) -> Result<Lease, Error> {
        let mut rows = self.rows();
        let epoch = rows.epochs.entry(partition).or_default();
        *epoch += 1;
        Ok(Lease { partition, epoch: *epoch })
    }

    async fn head(&self, partition: u16) -> Result<Head, Error> {
        let rows = self.rows();
        let newest = rows.logs.get(&partition).and_then(|log| log.last());
        Ok(newest.map_or_else(Head::default, |event| Head {
            position: event.position,
            hash: event.hash,
        }))
    }

    async fn stream_max(&self, partition: u16) -> Result<i64, Error> {
        let rows = self.rows();
        let mine = rows.streams.values().filter(|stream| **stream >> 48 == i64::from(partition));
        Ok(mine.copied().max().unwrap_or(0))
    }

    async fn append(&self, lease: Lease, batch: &Batch) -> Result<(), AppendError> {
        let mut rows = self.rows();
        let held = rows.epochs.get(&lease.partition) == Some(&lease.epoch);
        if !held && !self.planted.is(Bug::EpochUnchecked) {
            return Err(AppendError::Fenced);
        }
        rows.check(lease.partition, batch)?;
        rows.store(lease.partition, batch);
        Ok(())
    }

    async fn streams(
        &self,
        partition: u16,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StreamNumber>, Error> {
        let rows = self.rows();
        let of = |((aggregate_type, id), stream): (&(Arc<str>, Uuid), &i64)| StreamNumber {
            stream: *stream,
            aggregate_type: aggregate_type.clone(),
            aggregate_id: *id,
        };
        let is_mine =
            |of: &StreamNumber| of.stream >> 48 == i64::from(partition) && of.stream > after;
        let mut streams: Vec<_> = rows.streams.iter().map(of).filter(is_mine).collect();
        streams.sort_unstable_by_key(|of| of.stream);
        streams.truncate(limit);
        Ok(streams)
    }

    async fn stream(&self, aggregate_type: &str, id: Uuid) -> Result<Option<i64>, Error> {
        let mut rows = self.rows();
        rows.streams_asked += 1;
        Ok(rows.streams.get(&(Arc::from(aggregate_type), id)).copied())
    }

    async fn read_stream(
        &self,
        stream: i64,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        page(self.rows().by_stream.get(&stream), after_version, limit).map(chain::intact).collect()
    }

    async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.rows();
        chain::whole_page(partition, after, page(rows.logs.get(&partition), after, limit).map(Ok))
    }

    async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, Error> {
        self.rows().by_id.get(&id).cloned().map(chain::intact).transpose()
    }

    async fn places(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Position)>, Error> {
        let rows = self.rows();
        let found = ids.iter().filter_map(|id| Some((*id, rows.by_id.get(id)?.at())));
        Ok(found.collect())
    }

    async fn read_aggregate(
        &self,
        id: Uuid,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.rows();
        let stream = rows.streams.iter().find(|((_, known), _)| *known == id).map(|(_, s)| *s);
        let events = stream.and_then(|stream| rows.by_stream.get(&stream));
        page(events, after_version, limit).map(chain::intact).collect()
    }

    async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.rows();
        let all = rows.logs.values().flatten();
        all.filter(|event| &*event.correlation_id == correlation_id)
            .take(limit)
            .cloned()
            .map(chain::intact)
            .collect()
    }

    async fn snapshot(&self, stream: i64, upto: u64) -> Result<Option<Snapshot>, Error> {
        let rows = self.rows();
        let kept = rows.snapshots.get(&stream);
        let newest = kept.and_then(|kept| kept.range(..=upto).next_back());
        Ok(newest.map(|(_, snapshot)| snapshot.clone()))
    }

    async fn outcome(&self, command_id: Uuid) -> Result<Option<Outcome>, Error> {
        Ok(self.rows().outcomes.get(&command_id).cloned())
    }

    async fn person_key(&self, subject: Uuid) -> Result<Option<PersonKey>, Error> {
        Ok(self.rows().keys.get(&subject).cloned())
    }

    async fn timers_due(
        &self,
        partition: u16,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, Error> {
        let rows = self.rows();
        let mine = rows.timers.iter().filter(|(_, (part, due))| *part == partition && *due <= now);
        let mut due: Vec<_> =
            mine.map(|(key, (_, due))| Timer { key: key.clone(), due: *due }).collect();
        due.sort_by_key(|timer| timer.due);
        due.truncate(limit);
        Ok(due)
    }

    async fn timer(&self, key: &TimerKey) -> Result<Option<Timestamp>, Error> {
        Ok(self.rows().timers.get(key).map(|(_, due)| *due))
    }

    async fn next_timer(&self, partition: u16) -> Result<Option<Timestamp>, Error> {
        let rows = self.rows();
        Ok(rows.timers.values().filter(|(part, _)| *part == partition).map(|(_, due)| *due).min())
    }

    async fn checkpoints(
        &self,
        subscription: &str,
        partition: u16,
    ) -> Result<Vec<Checkpoint>, Error> {
        let rows = self.rows();
        let mine = rows
            .checkpoints
            .iter()
            .filter(|((name, part, _), _)| &**name == subscription && *part == partition);
        Ok(mine.map(|(_, checkpoint)| checkpoint.clone()).collect())
    }

    async fn letters(
        &self,
        partition: u16,
        filter: &LetterFilter,
        limit: usize,
    ) -> Result<Vec<Letter>, Error> {
        let mut letters = self.letters_now(partition, filter);
        letters.truncate(limit);
        Ok(letters)
    }

    async fn control(
        &self,
        space: &str,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Option<Vec<u8>>, Error> {
        let rows = self.rows();
        let row = rows.control.get(&(space.to_owned(), key.to_owned()));
        let live = row.filter(|(_, expires)| expires.is_none_or(|at| at > now));
        Ok(live.map(|(value, _)| value.clone()))
    }

    async fn quarantined(&self, partition: u16) -> Result<Vec<Quarantine>, Error> {
        let rows = self.rows();
        let mine = rows.quarantined.values().filter(|(part, _)| *part == partition);
        Ok(mine.map(|(_, quarantine)| quarantine.clone()).collect())
    }

    async fn purge(&self, outcomes_before: Timestamp, now: Timestamp) -> Result<u64, Error> {
        let mut rows = self.rows();
        let before = rows.outcomes.len() + rows.control.len();
        rows.outcomes.retain(|_, outcome| outcome.at >= outcomes_before);
        rows.control.retain(|_, (_, expires)| expires.is_none_or(|at| at > now));
        Ok((before - rows.outcomes.len() - rows.control.len()) as u64)
    }
}
