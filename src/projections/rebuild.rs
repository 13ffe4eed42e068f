//! Rebuilding a projection: a second version beside the one that serves.
//!
//! ```text
//!   journal ──pages, throttled──▶ version 2      filling
//!      │                             ┊ level: from here on in the same transactions
//!      └──subscription──▶ version 1 ─┴▶ readers  until somebody cuts over
//! ```
//!
//! A version is filled by a task of its own that knows the journal and the tables and nothing else:
//! there is no handler in it, so that no effect can happen twice. It takes small pages, waits between
//! them, and longer while people wait for the journal or the projection is behind. Where it has come
//! to is stored with the rows, and a start goes on from there. The last stretch is taken while the
//! projection holds still for a moment, and from then on every batch goes into both versions in one
//! transaction: they are the same at every checkpoint, whichever of them serves.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::broker::Pattern;
use souk_actors::event::StoredEvent;
use souk_actors::retry::{Failure, FailureKind};
use souk_actors::runtime::{JournalReader, Runtime};
use souk_actors::world::Timestamp;
use tokio::sync::{MutexGuard, Semaphore, watch};
use tokio::time::{Instant, sleep};

use super::ReadModels;
use super::db::{ReadDb, ReadError, ReadTx, table_of};
use super::versions::{self, Level, Version, VersionState};
use super::view::{Part, Projected, Shape, Table};

/// Events read, and taken in one transaction, while a version is filled: few enough that whoever
/// waits for the database does not notice.
const PAGE: usize = 32;
/// It rests so many times as long as a page took, so that whoever reads meanwhile has the processors
/// almost to themselves; not when somebody asked for more than the usual number of events a second.
const RESTS: u32 = 3;
/// The last stretch of a partition, taken while the projection holds still.
const JOIN_MAX: u64 = 1_024;
/// How many events a second a version is filled with when nobody says otherwise, and at most.
pub const ROWS_PER_SECOND_DEFAULT: u32 = 5_000;
/// See [`ROWS_PER_SECOND_DEFAULT`].
pub const ROWS_PER_SECOND_MAX: u32 = 100_000;
/// So many commands in flight are people waiting.
const BUSY_COMMANDS: usize = 32;
/// A projection so far behind needs the database more.
const BUSY_LAG: u64 = 2_048;
/// How long a page waits at most for a quieter moment, and how often it looks.
const YIELD_MAX: Duration = Duration::from_millis(250);
const YIELD_LOOK: Duration = Duration::from_millis(25);
/// Between attempts after something that may pass.
const PAUSE: Duration = Duration::from_millis(500);

/// A projection as whoever fills a version of it sees it.
#[async_trait]
pub(super) trait Versioned: Send + Sync {
    fn name(&self) -> &'static str;
    fn topics(&self) -> &'static [&'static str];
    fn shapes(&self) -> &'static [Shape];

    /// Takes events behind the version's own checkpoint, while it is being filled. Returns how it
    /// stands and where it has come to; none: it is no more.
    async fn fill(
        &self,
        version: u32,
        partition: u16,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<Option<(VersionState, u64)>, Failure>;

    /// Makes the version level, if little is missing: whether it is now.
    async fn join(
        &self,
        journal: &JournalReader,
        wanted: &[Pattern],
        version: u32,
        (partitions, now): (u16, Timestamp),
    ) -> Result<bool, Failure>;
}

#[async_trait]
impl<T: Table> Versioned for Projected<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn topics(&self) -> &'static [&'static str] {
        T::TOPICS
    }

    fn shapes(&self) -> &'static [Shape] {
        T::SHAPES
    }

    async fn fill(
        &self,
        version: u32,
        partition: u16,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<Option<(VersionState, u64)>, Failure> {
        let mut tx = self.db().begin().await?;
        versions::lock(&mut tx, T::NAME, &[partition]).await?;
        let all = versions::in_partition(&mut tx, T::NAME, partition).await?;
        let serving = all.iter().find(|of| of.serves).map_or(0, |of| of.position);
        let Some(at) = all.into_iter().find(|of| of.version == version) else { return Ok(None) };
        if at.state != VersionState::Filling {
            return Ok(Some((at.state, at.position)));
        }
        // Nothing that the one that serves has not taken: two that are level have the same rows.
        let (events, later) =
            events.split_at(events.partition_point(|event| event.position <= serving));
        let to = later.first().map_or(to, |event| to.min(event.position - 1));
        let position = self.take_one(&mut tx, Part { at: &at, events, to }).await?;
        tx.commit().await?;
        Ok(Some((at.state, position)))
    }

    async fn join(
        &self,
        journal: &JournalReader,
        wanted: &[Pattern],
        version: u32,
        (partitions, now): (u16, Timestamp),
    ) -> Result<bool, Failure> {
        let mut tx = self.db().begin().await?;
        lock_all(&mut tx, T::NAME, partitions).await?;
        let mut joined = BTreeMap::new();
        for partition in 0..partitions {
            let all = versions::in_partition(&mut tx, T::NAME, partition).await?;
            let serving = all.iter().find(|of| of.serves).map_or(0, |of| of.position);
            let filled = all.into_iter().find(|of| of.version == version);
            let Some(mut at) = filled.filter(|of| of.state == VersionState::Filling) else {
                return Ok(false);
            };
            if serving.saturating_sub(at.position) > JOIN_MAX {
                return Ok(false);
            }
            while at.position < serving {
                let page = next_page(journal, wanted, &at, serving).await?;
                let Some((events, to)) = page else { return Ok(false) };
                let part = Part { at: &at, events: &events, to };
                at.position = self.take_one(&mut tx, part).await?;
            }
            joined.insert(partition, at.position);
        }
        versions::set_level(&mut tx, (T::NAME, version), &joined, now).await?;
        tx.commit().await?;
        Ok(true)
    }
}

async fn lock_all(tx: &mut ReadTx, projection: &str, partitions: u16) -> Result<(), ReadError> {
    let all: Vec<_> = (0..partitions).collect();
    versions::lock(tx, projection, &all).await
}

/// The events behind a version's checkpoint up to `last` that concern it, and where they end.
async fn next_page(
    journal: &JournalReader,
    wanted: &[Pattern],
    at: &Level,
    last: u64,
) -> Result<Option<(Vec<Arc<StoredEvent>>, u64)>, Failure> {
    let read = journal.read_from(at.partition, at.position, PAGE).await;
    let mut events = read.map_err(unreadable)?;
    events.retain(|event| event.position <= last);
    let Some(to) = events.last().map(|event| event.position) else { return Ok(None) };
    events.retain(|event| wanted.iter().any(|pattern| pattern.matches(&event.event_type)));
    Ok(Some((events, to)))
}

fn unreadable(error: souk_actors::journal::Error) -> Failure {
    match error {
        souk_actors::journal::Error::Damaged(_) => Failure::permanent(error.to_string()),
        _ => Failure::system(error.to_string()),
    }
}

/// Why a version cannot be steered so.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// There is another one already.
    #[error("there is a version beside the one that serves: discard it first")]
    Beside,
    /// There is none to do it to.
    #[error("there is no version beside the one that serves")]
    NoVersion,
    /// It does not stand so that this could be done.
    #[error("{0}")]
    NotNow(&'static str),
    /// The read database did not do it.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What is done to the version beside the one that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// Stop filling it for a while.
    Pause,
    /// Go on filling it.
    Resume,
    /// Let it serve: it is newer than the one that does.
    CutOver,
    /// Let it serve again: it is older than the one that does.
    RollBack,
    /// Drop it.
    Discard,
}

impl Steering {
    /// Whether it can be done to this version now, beside the version that serves.
    fn check(self, beside: &Version, serving: u32) -> Result<(), SteerError> {
        use VersionState::{Failed, Filling, Level, Paused};
        let newer = beside.number > serving;
        let refused = match (self, beside.state) {
            (Self::Pause, Filling) | (Self::Resume, Paused | Failed) | (Self::Discard, _) => None,
            (Self::Pause, _) => Some("only a version that is being filled can be paused"),
            (Self::Resume, _) => Some("only a version that is paused or failed can go on"),
            (Self::CutOver, Level) if newer => None,
            (Self::RollBack, Level) if !newer => None,
            (Self::CutOver, _) if newer => Some("the new version is not level yet"),
            (Self::CutOver, _) => Some("there is no newer version than the one that serves"),
            (Self::RollBack, _) if newer => Some("there is no older version to go back to"),
            (Self::RollBack, _) => Some("the older version is not level any more"),
        };
        refused.map_or(Ok(()), |why| Err(SteerError::NotNow(why)))
    }
}

/// How fast a version is being filled, for all to see.
#[derive(Debug, Default)]
struct Pace {
    window: Option<(Instant, u64)>,
    rate: u64,
}

impl Pace {
    /// Takes note of some events.
    fn count(&mut self, events: u64) {
        let now = Instant::now();
        let (since, before) = *self.window.get_or_insert((now, 0));
        let (sum, span) = (before + events, now.duration_since(since));
        if span < Duration::from_secs(1) {
            self.window = Some((since, sum));
            return;
        }
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
        self.rate = sum.saturating_mul(1_000) / millis;
        self.window = Some((now, 0));
    }
}

type Key = (&'static str, u32);

/// Makes, fills and switches versions. Cheap to clone.
#[derive(Clone)]
pub struct Rebuilder(Arc<Inner>);

struct Inner {
    models: ReadModels,
    runtime: Runtime,
    /// One version is filled at a time; the others wait.
    turn: Semaphore,
    steering: tokio::sync::Mutex<()>,
    paces: Mutex<HashMap<Key, Pace>>,
    stopping: watch::Sender<bool>,
}

impl Rebuilder {
    /// Goes on with what was being filled when the process ended.
    pub async fn start(models: ReadModels, runtime: Runtime) -> Result<Self, ReadError> {
        let rebuilder = Self(Arc::new(Inner {
            models,
            runtime,
            turn: Semaphore::new(1),
            steering: tokio::sync::Mutex::default(),
            paces: Mutex::default(),
            stopping: watch::Sender::new(false),
        }));
        for version in versions::list(rebuilder.db(), None).await? {
            if version.state == VersionState::Filling {
                rebuilder.spawn(&version.projection, version.number);
            }
        }
        Ok(rebuilder)
    }

    /// Fills nothing any more.
    pub fn stop(&self) {
        self.0.stopping.send_replace(true);
    }

    fn db(&self) -> &ReadDb {
        &self.0.models.db
    }

    fn projection(&self, name: &str) -> Option<&Arc<dyn Versioned>> {
        self.0.models.projections.iter().find(|of| of.name() == name)
    }

    /// Nobody else steers while this is held.
    pub async fn steering(&self) -> MutexGuard<'_, ()> {
        self.0.steering.lock().await
    }

    /// The versions of a projection, the oldest first.
    pub async fn versions(&self, projection: &str) -> Result<Vec<Version>, ReadError> {
        versions::list(self.db(), Some(projection)).await
    }

    /// How far a version has come in each partition.
    pub async fn positions(&self, version: &Version) -> Result<BTreeMap<u16, u64>, ReadError> {
        versions::positions(self.db(), version).await
    }

    /// How many events a second a version was filled with lately.
    pub fn rate(&self, version: &Version) -> u64 {
        let paces = self.0.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.projection(&version.projection).map(|of| (of.name(), version.number));
        key.and_then(|key| paces.get(&key)).map_or(0, |pace| pace.rate)
    }

    /// Whether a second version can be begun.
    pub async fn may_begin(&self, projection: &str) -> Result<(), SteerError> {
        let all = self.versions(projection).await?;
        if all.len() > 1 { Err(SteerError::Beside) } else { Ok(()) }
    }

    /// Begins a version and fills it.
    pub async fn begin(
        &self,
        projection: &str,
        number: u32,
        rows_per_second: u32,
        now: Timestamp,
    ) -> Result<(), SteerError> {
        let found = self.projection(projection).ok_or(SteerError::NoVersion)?;
        let mut tx = self.db().begin().await?;
        lock_all(&mut tx, projection, self.0.runtime.partitions()).await?;
        if versions::list_in(&mut tx, projection).await?.len() > 1 {
            return Err(SteerError::Beside);
        }
        for shape in found.shapes() {
            tx.copy_shape(shape.table, &table_of(shape.table, number)).await?;
        }
        let shape = shape_of(found.shapes());
        versions::add(&mut tx, (projection, number, &shape), rows_per_second, now).await?;
        tx.commit().await?;
        self.spawn(projection, number);
        Ok(())
    }

    /// The version beside the one that serves, if this can be done to it now.
    pub async fn may_steer(&self, projection: &str, what: Steering) -> Result<u32, SteerError> {
        let all = self.versions(projection).await?;
        checked(&all, what).map(|version| version.number)
    }

    /// Does it, in one transaction; readers see the one version or the other.
    pub async fn steer(&self, projection: &str, what: Steering) -> Result<(), SteerError> {
        let found = self.projection(projection).ok_or(SteerError::NoVersion)?;
        let (name, db) = (found.name(), self.db());
        let mut tx = db.begin().await?;
        // Nobody writes any version of it meanwhile: what is level now is level when it serves.
        lock_all(&mut tx, name, self.0.runtime.partitions()).await?;
        let all = versions::list_in(&mut tx, name).await?;
        let beside = checked(&all, what)?;
        let number = beside.number;
        match what {
            Steering::Pause => {
                versions::set_state(&mut tx, (name, number), VersionState::Paused).await?;
            }
            Steering::Resume => {
                versions::set_state(&mut tx, (name, number), VersionState::Filling).await?;
            }
            Steering::CutOver | Steering::RollBack => {
                return self.switch(tx, name, number).await;
            }
            Steering::Discard => drop_version(&mut tx, found.shapes(), beside).await?,
        }
        tx.commit().await?;
        match what {
            Steering::Resume => self.spawn(name, number),
            Steering::Discard => {
                db.told().discarded((name, number), self.0.runtime.partitions());
            }
            Steering::Pause | Steering::CutOver | Steering::RollBack => {}
        }
        Ok(())
    }

    /// Readers are given the other version before the writers of both go on.
    async fn switch(
        &self,
        mut tx: ReadTx,
        name: &'static str,
        number: u32,
    ) -> Result<(), SteerError> {
        versions::set_serving(&mut tx, name, number).await?;
        let before = self.db().serving(name);
        self.db().serve(name, number);
        let Err(error) = tx.commit().await else { return Ok(()) };
        // Whether it was stored is not known: what is there counts.
        let stored = versions::list(self.db(), Some(name)).await.unwrap_or_default();
        let serving = stored.iter().find(|of| of.serves).map_or(before, |of| of.number);
        self.db().serve(name, serving);
        if serving == number { Ok(()) } else { Err(error.into()) }
    }

    fn spawn(&self, projection: &str, number: u32) {
        let Some(found) = self.projection(projection).cloned() else { return };
        let rebuilder = self.clone();
        tokio::spawn(async move {
            let mut stopping = rebuilder.0.stopping.subscribe();
            let filled = rebuilder.fill(&*found, number);
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => {}
                () = filled => {}
            }
            let mut paces = rebuilder.0.paces.lock().unwrap_or_else(PoisonError::into_inner);
            paces.remove(&(found.name(), number));
        });
    }

    /// Fills a version until it is level, or is not to be filled any more.
    async fn fill(&self, found: &dyn Versioned, number: u32) {
        let Ok(_turn) = self.0.turn.acquire().await else { return };
        let name = found.name();
        tracing::info!(projection = name, version = number, "a version is being filled");
        loop {
            match self.fill_pages(found, number).await {
                Ok(true) => {
                    tracing::info!(projection = name, version = number, "the version is level");
                    return;
                }
                Ok(false) => return,
                Err(failure) if failure.kind == FailureKind::Permanent => {
                    tracing::error!(
                        projection = name,
                        version = number,
                        error = failure.message,
                        "the version cannot be filled"
                    );
                    if self.fail(name, number, &failure.message).await.is_ok() {
                        return;
                    }
                }
                Err(failure) => {
                    tracing::warn!(
                        projection = name,
                        version = number,
                        error = failure.message,
                        "filling the version waits"
                    );
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn fail(&self, name: &str, number: u32, error: &str) -> Result<(), ReadError> {
        let mut tx = self.db().begin().await?;
        lock_all(&mut tx, name, self.0.runtime.partitions()).await?;
        versions::set_failed(&mut tx, name, number, error).await?;
        tx.commit().await
    }

    /// Whether it is level; if not, somebody paused or dropped it.
    async fn fill_pages(&self, found: &dyn Versioned, number: u32) -> Result<bool, Failure> {
        let (name, journal) = (found.name(), self.0.runtime.journal());
        let parse = |topic: &&str| Pattern::parse(topic).ok();
        let wanted: Vec<_> = found.topics().iter().filter_map(parse).collect();
        let versions = self.versions(name).await?;
        let Some(version) = versions.iter().find(|of| of.number == number) else {
            return Ok(false);
        };
        let mut places = self.positions(version).await?;
        // A slow one takes small steps rather than long rests.
        let slow = usize::try_from(version.rows_per_second / 4).unwrap_or(PAGE);
        let page = PAGE.min(slow.max(1));
        let mut next = Instant::now();
        loop {
            let mut is_near = true;
            for head in journal.heads() {
                let partition = head.partition;
                let position = places.get(&partition).copied().unwrap_or(0);
                if head.position <= position {
                    continue;
                }
                sleep_until_quiet(&self.0.runtime, name, next).await;
                let began = Instant::now();
                let read = journal.read_from(partition, position, page).await;
                let events = read.map_err(unreadable)?;
                let filled = fill_page(found, &wanted, number, partition, &events).await?;
                let Some((VersionState::Filling, position)) = filled else { return Ok(false) };
                places.insert(partition, position);
                is_near &= head.position.saturating_sub(position) <= page as u64;
                let taken = u32::try_from(events.len()).unwrap_or(u32::MAX);
                next = Instant::now() + rest(taken, began.elapsed(), version.rows_per_second);
                let mut paces = self.0.paces.lock().unwrap_or_else(PoisonError::into_inner);
                paces.entry((name, number)).or_default().count(taken.into());
                self.db().told().filled_to((name, number), partition, position);
            }
            let now = self.0.runtime.world().now();
            let partitions = self.0.runtime.partitions();
            if is_near && found.join(&journal, &wanted, number, (partitions, now)).await? {
                return Ok(true);
            }
            if is_near {
                sleep(YIELD_LOOK).await;
                // Paused or dropped while there was nothing to fill?
                let all = self.versions(name).await?;
                let state = all.iter().find(|of| of.number == number).map(|of| of.state);
                if state != Some(VersionState::Filling) {
                    return Ok(false);
                }
            }
        }
    }
}

/// How long the next page waits after one of so many events that took so long.
fn rest(events: u32, took: Duration, rows_per_second: u32) -> Duration {
    let rests = if rows_per_second > ROWS_PER_SECOND_DEFAULT { 0 } else { RESTS };
    let page = Duration::from_secs(1) * events / rows_per_second.max(1);
    page.saturating_sub(took).max(took * rests)
}

/// Takes a page. One that fails goes again event by event, so that the failure names its event.
async fn fill_page(
    found: &dyn Versioned,
    wanted: &[Pattern],
    number: u32,
    partition: u16,
    events: &[Arc<StoredEvent>],
) -> Result<Option<(VersionState, u64)>, Failure> {
    let to = events.last().map_or(0, |event| event.position);
    let wants =
        |event: &&Arc<StoredEvent>| wanted.iter().any(|pattern| pattern.matches(&event.event_type));
    let events: Vec<_> = events.iter().filter(wants).cloned().collect();
    match found.fill(number, partition, &events, to).await {
        Err(failure) if failure.kind == FailureKind::Permanent => {}
        filled => return filled,
    }
    for event in &events {
        let one = std::slice::from_ref(event);
        match found.fill(number, partition, one, event.position).await {
            Err(failure) => {
                let message = format!("{} at {}: {failure}", event.event_type, event.at());
                return Err(Failure { message, ..failure });
            }
            // It is not its turn yet.
            Ok(Some((state, at))) if at < event.position => return Ok(Some((state, at))),
            Ok(_) => {}
        }
    }
    found.fill(number, partition, &[], to).await
}

/// Waits for the next turn of work that is in no hurry, and a little longer while others need the
/// database more.
pub(crate) async fn sleep_until_quiet(runtime: &Runtime, projection: &str, next: Instant) {
    tokio::time::sleep_until(next).await;
    let until = Instant::now() + YIELD_MAX;
    while is_busy(runtime, projection) && Instant::now() < until {
        sleep(YIELD_LOOK).await;
    }
}

fn is_busy(runtime: &Runtime, projection: &str) -> bool {
    let subscriptions = runtime.subscriptions();
    let is_behind = |head: &souk_actors::event::Position| {
        let position = subscriptions.position(projection, head.partition).unwrap_or(0);
        head.position.saturating_sub(position) > BUSY_LAG
    };
    runtime.in_flight().0 > BUSY_COMMANDS || runtime.journal().heads().iter().any(is_behind)
}

/// The version beside the one that serves, if this can be done to it.
fn checked(all: &[Version], what: Steering) -> Result<&Version, SteerError> {
    let serving = all.iter().find(|of| of.serves).map_or(1, |of| of.number);
    let beside = all.iter().find(|of| !of.serves).ok_or(SteerError::NoVersion)?;
    what.check(beside, serving)?;
    Ok(beside)
}

/// Names the tables of a projection as migrations make them.
pub(super) fn shape_of(shapes: &[Shape]) -> String {
    shapes.iter().map(|shape| shape.table).collect::<Vec<_>>().join(",")
}

/// Drops the tables of a version; those of version 1 are emptied, since later ones are made like
/// them.
pub(super) async fn drop_version(
    tx: &mut ReadTx,
    shapes: &[Shape],
    version: &Version,
) -> Result<(), ReadError> {
    for shape in shapes {
        if version.number == 1 {
            tx.empty(shape.table).await?;
        } else {
            tx.drop_table(&table_of(shape.table, version.number)).await?;
        }
    }
    versions::remove(tx, version).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_rests_longer_than_it_works_unless_it_is_in_haste() {
        let millis = Duration::from_millis;
        // A slow page is followed by rests, a quick one keeps to the rate.
        assert_eq!(rest(32, millis(10), ROWS_PER_SECOND_DEFAULT), millis(30));
        assert_eq!(rest(32, millis(1), 1_000), millis(31));
        assert_eq!(rest(32, millis(10), ROWS_PER_SECOND_DEFAULT + 1), Duration::ZERO);
        assert_eq!(rest(100, millis(1), 10_000), millis(9));
    }
}
