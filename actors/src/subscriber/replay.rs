//! Replays: events that a subscription has handled are delivered to it once more.
//!
//! ```text
//!   journal ──page──▶ reader, throttled ──a few at a time──▶ lanes ──▶ handler
//!                        ▲                    (what is new goes first)    │
//!                        └──────── Window: what is under way ◀────────────┘
//! ```
//!
//! They go through the subscription's own lanes, so that nothing of a key happens beside them and
//! dead letters are respected. A window keeps what was handed out and what came of it, so that how
//! far a replay is and what it has counted are always told of the same events: both are one control
//! row, and a restart goes on from it. What is asked for is a control row too, and an event on the
//! subscription's stream; each partition does its part, and whoever finds that all of them have
//! done theirs says so there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::lane::{
    Blocked, CHECKPOINT_EVERY, Outcome, Stopping, bury, deliver, hold, park, waiting_letter,
};
use super::{Cell, Ordered};
use crate::command::{CommandContext, ControlWrite};
use crate::event::StoredEvent;
use crate::filter::Filter;
use crate::journal::{self, Batch, Letter};
use crate::oversight::{
    Oversight, OversightCommand, ReplayCounts, ReplayEnded, ReplayRange, ReplayRequested,
    ReplayState,
};
use crate::retry::Backoff;
use crate::runtime::Runtime;
use crate::world::Timestamp;

/// Control rows with the running replays: the name of the subscription, and [`ReplayRequested`].
pub(crate) const REPLAY_SPACE: &str = "subscription.replay";
/// Control rows with how far they are: name and partition, and [`ReplayProgress`].
const PROGRESS_SPACE: &str = "subscription.replay_progress";
/// Events that wait in one lane to be delivered once more.
pub(super) const AGAIN_MAX: usize = 4;
/// Events read at a time.
const PAGE: usize = 256;
/// Events under way, or done before one that still is: what the window keeps.
const AHEAD_MAX: usize = 1_024;
/// So many commands in flight are people waiting.
const BUSY_COMMANDS: usize = 32;
/// How long an event waits at most for a quieter moment, and how often it is looked for one.
const YIELD_MAX: Duration = Duration::from_millis(250);
const YIELD_LOOK: Duration = Duration::from_millis(25);
/// What was not used of the pace for so long may be used at once.
const BURST: Duration = Duration::from_millis(100);
/// Between attempts after something that may pass.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// How far a replay is in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayProgress {
    /// The replay.
    pub replay_id: Uuid,
    /// Everything up to here is counted.
    pub position: u64,
    /// What it came to.
    pub counts: ReplayCounts,
    /// Whether this partition has done its part.
    pub is_done: bool,
}

impl ReplayProgress {
    fn new(replay_id: Uuid, range: ReplayRange) -> Self {
        Self {
            replay_id,
            position: range.after,
            counts: ReplayCounts::default(),
            is_done: range.positions() == 0,
        }
    }
}

/// Which events are meant, of a subscription's own.
#[derive(Debug, Clone, Default)]
pub struct ReplayScope {
    /// From this time on.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
    /// What an event must be like.
    pub filter: Option<Filter>,
}

impl ReplayScope {
    fn of(requested: &ReplayRequested) -> Result<Self, String> {
        let filter = requested.filter.as_deref().map(Filter::parse).transpose();
        let filter = filter.map_err(|error| error.to_string())?;
        Ok(Self { from: requested.from, to: requested.to, filter })
    }

    /// Whether an event is meant.
    pub fn includes(&self, event: &StoredEvent) -> bool {
        self.from.is_none_or(|from| event.timestamp >= from)
            && self.to.is_none_or(|to| event.timestamp < to)
            && self.filter.as_ref().is_none_or(|filter| filter.matches(event))
    }
}

/// An event that a lane is to deliver once more.
pub(super) struct Replayed {
    event: Arc<StoredEvent>,
    key: Uuid,
    window: Arc<Window>,
}

/// What became of an event that was delivered once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Handled,
    Duplicate,
    Failed,
    Held,
}

/// What is under way of a replay, in one life of the subscription's actor.
#[derive(Debug)]
pub(super) struct Window {
    inner: Mutex<Inner>,
    changed: Notify,
    is_cancelled: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    progress: ReplayProgress,
    /// The range's beginning.
    after: u64,
    /// Everything up to here was looked at.
    looked_at: u64,
    /// What was handed out and is not counted, with what came of it.
    ahead: BTreeMap<u64, Option<Came>>,
}

impl Window {
    fn new(progress: ReplayProgress, range: ReplayRange) -> Arc<Self> {
        let inner = Inner {
            progress,
            after: range.after,
            looked_at: progress.position,
            ahead: BTreeMap::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            changed: Notify::new(),
            is_cancelled: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> ReplayProgress {
        self.lock().progress
    }

    fn is_full(&self) -> bool {
        self.lock().ahead.len() >= AHEAD_MAX
    }

    fn is_empty(&self) -> bool {
        self.lock().ahead.is_empty()
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    /// An event is handed out.
    fn begin(&self, position: u64) {
        let mut inner = self.lock();
        inner.ahead.insert(position, None);
        inner.looked_at = position;
    }

    /// There is nothing to hand out up to here.
    fn looked_at(&self, position: u64) {
        let mut inner = self.lock();
        inner.looked_at = position;
        inner.count();
    }

    fn came(&self, position: u64, came: Came) {
        let mut inner = self.lock();
        inner.ahead.insert(position, Some(came));
        inner.count();
        drop(inner);
        self.changed.notify_waiters();
    }
}

impl Inner {
    /// Counts what is done, up to the first event that is not.
    fn count(&mut self) {
        let counts = &mut self.progress.counts;
        while let Some(first) = self.ahead.first_entry()
            && let Some(came) = *first.get()
        {
            first.remove();
            counts.redelivered += u64::from(matches!(came, Came::Handled | Came::Duplicate));
            counts.duplicates += u64::from(came == Came::Duplicate);
            counts.failed += u64::from(came == Came::Failed);
            counts.held += u64::from(came == Came::Held);
        }
        let first = self.ahead.first_key_value().map(|(first, _)| first - 1);
        self.progress.position = first.unwrap_or(self.looked_at);
        counts.read = self.progress.position.saturating_sub(self.after);
    }
}

fn progress_key(name: &str, partition: u16) -> Vec<u8> {
    format!("{name}/{partition}").into_bytes()
}

fn row(space: &'static str, key: Vec<u8>, value: Option<Vec<u8>>) -> ControlWrite {
    ControlWrite { space, key, value, expires_at: None }
}

/// The row that a replay begins with.
pub(crate) fn begun(requested: &ReplayRequested) -> Vec<ControlWrite> {
    let value = serde_json::to_vec(requested).expect("texts and numbers can be written as JSON");
    vec![row(REPLAY_SPACE, requested.subscription.as_bytes().to_vec(), Some(value))]
}

/// The rows that go with it.
pub(crate) fn ended(name: &str, partitions: u16) -> Vec<ControlWrite> {
    let own = row(REPLAY_SPACE, name.as_bytes().to_vec(), None);
    let progress = (0..partitions).map(|of| row(PROGRESS_SPACE, progress_key(name, of), None));
    std::iter::once(own).chain(progress).collect()
}

impl Cell {
    /// Begins a replay.
    pub(crate) fn replay(&self, requested: Arc<ReplayRequested>) {
        self.replay.send_replace(Some(requested));
    }

    /// Ends a replay, if it is the one that is running.
    pub(crate) fn stop_replay(&self, replay_id: Uuid) {
        self.forget_replay(replay_id);
        let window = self.window();
        if let Some(window) = window.filter(|window| window.progress().replay_id == replay_id) {
            window.is_cancelled.store(true, Ordering::Release);
            window.changed.notify_waiters();
        }
    }

    fn forget_replay(&self, replay_id: Uuid) {
        self.replay.send_if_modified(|running| {
            running.take_if(|running| running.replay_id == replay_id).is_some()
        });
    }

    fn window(&self) -> Option<Arc<Window>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far a replay is here.
    pub(crate) async fn replay_progress(
        &self,
        replay_id: Uuid,
    ) -> Result<Option<ReplayProgress>, journal::Error> {
        let known = self.window().map(|window| window.progress());
        if let Some(known) = known.filter(|known| known.replay_id == replay_id) {
            return Ok(Some(known));
        }
        self.stored_progress(replay_id, self.partition).await
    }

    async fn stored_progress(
        &self,
        replay_id: Uuid,
        partition: u16,
    ) -> Result<Option<ReplayProgress>, journal::Error> {
        let key = progress_key(self.subscription.name, partition);
        let stored = self.store.control(PROGRESS_SPACE, &key, self.world.now()).await?;
        let read = stored.and_then(|row| serde_json::from_slice::<ReplayProgress>(&row).ok());
        Ok(read.filter(|progress| progress.replay_id == replay_id))
    }

    async fn store_progress(&self, progress: ReplayProgress) -> bool {
        let value = serde_json::to_vec(&progress).expect("numbers can be written as JSON");
        let key = progress_key(self.subscription.name, self.partition);
        let control = vec![row(PROGRESS_SPACE, key, Some(value))];
        match self.writer.store(Batch { control, ..Batch::default() }).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(subscription = self.subscription.name, %error, "the progress of a replay waits for the journal");
                false
            }
        }
    }
}

/// Stores how far a running replay is, once nothing is under way any more.
pub(super) async fn store_progress(cell: &Cell) {
    let Some(window) = cell.window() else { return };
    let progress = window.progress();
    let running = cell.replay.borrow().as_ref().map(|running| running.replay_id);
    if running == Some(progress.replay_id) && !window.is_cancelled() {
        cell.store_progress(progress).await;
    }
}

/// Why a replay does not go on here.
enum End {
    /// Everything of the partition is done.
    Done,
    /// Somebody ended it.
    Cancelled,
    /// It cannot go on.
    Failed(String),
    /// The service stops; the next one goes on.
    Stopping,
}

impl From<Stopping> for End {
    fn from(_: Stopping) -> Self {
        Self::Stopping
    }
}

/// Carries out replays of a subscription with lanes, until the service stops.
pub(super) async fn run(cell: &Arc<Cell>, runtime: &Runtime, lanes: &[mpsc::Sender<Replayed>]) {
    let mut wanted = cell.replay.subscribe();
    loop {
        let requested = wanted.borrow_and_update().clone();
        let Some(requested) = requested else {
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => return,
                // The sender is in the cell, and so is there as long as this.
                _ = wanted.changed() => {}
            }
            continue;
        };
        let end = carry_out(cell, runtime, lanes, &requested).await;
        let over = match end {
            Ok(()) | Err(End::Cancelled) => true,
            Err(End::Done) => finish(cell, runtime, &requested).await.is_ok(),
            Err(End::Failed(why)) => fail(cell, runtime, &requested, why).await.is_ok(),
            Err(End::Stopping) => false,
        };
        if !over {
            return;
        }
        cell.forget_replay(requested.replay_id);
    }
}

/// Waits, unless the service stops or somebody ends the replay.
async fn wait_for(cell: &Cell, window: &Window, what: impl Future<Output = ()>) -> Result<(), End> {
    let mut what = std::pin::pin!(what);
    loop {
        let changed = window.changed.notified();
        if window.is_cancelled() {
            return Err(End::Cancelled);
        }
        tokio::select! {
            biased;
            () = cell.stopping.wait(true) => return Err(End::Stopping),
            () = &mut what => return Ok(()),
            () = changed => {}
        }
    }
}

/// Does this partition's part. `Ok`: there is no such replay any more.
async fn carry_out(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    lanes: &[mpsc::Sender<Replayed>],
    requested: &Arc<ReplayRequested>,
) -> Result<(), End> {
    let replay_id = requested.replay_id;
    let range = requested.ranges.iter().find(|range| range.partition == cell.partition);
    let range =
        range.copied().unwrap_or(ReplayRange { partition: cell.partition, after: 0, last: 0 });
    let progress = loop {
        match resume(cell, runtime, replay_id).await {
            Ok(Some(progress)) => {
                break progress.unwrap_or_else(|| ReplayProgress::new(replay_id, range));
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(subscription = cell.subscription.name, %replay_id, error, "a replay waits");
                nap(cell, PAUSE).await?;
            }
        }
    };
    let window = Window::new(progress, range);
    *cell.window.lock().unwrap_or_else(PoisonError::into_inner) = Some(window.clone());
    // It may have been ended before there was anything to end.
    if cell.replay.borrow().as_ref().is_none_or(|now| now.replay_id != replay_id) {
        return Err(End::Cancelled);
    }
    if progress.is_done {
        store_done(cell, &window).await?;
        return Err(End::Done);
    }
    let scope = ReplayScope::of(requested).map_err(End::Failed)?;
    tracing::info!(subscription = cell.subscription.name, partition = cell.partition, %replay_id, after = progress.position, last = range.last, "events are delivered once more");
    let pace = Duration::from_secs(1) * u32::from(cell.store.partitions())
        / requested.events_per_second.max(1);
    let reader = Reader { cell, runtime, lanes, window: &window, scope, last: range.last, pace };
    tokio::select! {
        biased;
        end = reader.run() => end?,
        () = keep_progress(cell, &window) => {}
    }
    store_done(cell, &window).await?;
    Err(End::Done)
}

/// Where a replay goes on; none: it is over. Inside none: at its beginning.
async fn resume(
    cell: &Cell,
    runtime: &Runtime,
    replay_id: Uuid,
) -> Result<Option<Option<ReplayProgress>>, String> {
    let stream = Oversight::id_of(cell.subscription.name);
    let is_running = move |oversight: &Oversight| {
        oversight.running_replay().is_some_and(|of| of.requested.replay_id == replay_id)
    };
    let read = runtime.aggregate::<Oversight>().read_inside(stream, is_running).await;
    if !read.map_err(|error| error.to_string())?.value {
        return Ok(None);
    }
    let stored = cell.stored_progress(replay_id, cell.partition).await;
    stored.map(Some).map_err(|error| error.to_string())
}

pub(super) async fn nap(cell: &Cell, how_long: Duration) -> Result<(), Stopping> {
    tokio::select! {
        biased;
        () = cell.stopping.wait(true) => Err(Stopping),
        () = tokio::time::sleep(how_long) => Ok(()),
    }
}

async fn keep_progress(cell: &Cell, window: &Window) {
    let mut stored = window.progress();
    loop {
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        let now = window.progress();
        if now != stored && !window.is_cancelled() && cell.store_progress(now).await {
            stored = now;
        }
    }
}

async fn store_done(cell: &Cell, window: &Window) -> Result<(), End> {
    let done = {
        let mut inner = window.lock();
        inner.progress.is_done = true;
        inner.progress
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while !cell.store_progress(done).await {
        wait_for(cell, window, tokio::time::sleep(backoff.next_delay())).await?;
    }
    Ok(())
}

struct Reader<'a> {
    cell: &'a Arc<Cell>,
    runtime: &'a Runtime,
    lanes: &'a [mpsc::Sender<Replayed>],
    window: &'a Arc<Window>,
    scope: ReplayScope,
    last: u64,
    pace: Duration,
}

impl Reader<'_> {
    /// Hands everything out and waits until it is done.
    async fn run(&self) -> Result<(), End> {
        let (cell, window) = (self.cell, self.window);
        let (mut cursor, mut next) = (window.progress().position, Instant::now());
        while cursor < self.last {
            // After a crash what was handled may be handled again: that comes first.
            let reached = cell.position().min(self.last);
            if cursor >= reached {
                wait_for(cell, window, tokio::time::sleep(YIELD_LOOK)).await?;
                continue;
            }
            let read = match cell.broker.tail().read(cursor, PAGE) {
                Some(events) if !events.is_empty() => Ok(events),
                _ => cell.store.read_from(cell.partition, cursor, PAGE).await,
            };
            let events = match read {
                Ok(events) => events,
                Err(error @ journal::Error::Damaged(_)) => {
                    return Err(End::Failed(error.to_string()));
                }
                Err(error) => {
                    tracing::warn!(subscription = cell.subscription.name, %error, "a replay waits for the journal");
                    wait_for(cell, window, tokio::time::sleep(PAUSE)).await?;
                    continue;
                }
            };
            for event in events.into_iter().filter(|event| event.position <= reached) {
                cursor = event.position;
                match cell.key_of(&event).filter(|_| self.scope.includes(&event)) {
                    None => window.looked_at(cursor),
                    Some(key) => next = self.hand_out(event, key, next).await?,
                }
            }
            tokio::task::yield_now().await;
        }
        loop {
            let changed = window.changed.notified();
            if window.is_empty() {
                return Ok(());
            }
            wait_for(cell, window, changed).await?;
        }
    }

    /// Hands an event out when it is its turn. Returns when the next one's is.
    async fn hand_out(
        &self,
        event: Arc<StoredEvent>,
        key: Uuid,
        turn: Instant,
    ) -> Result<Instant, End> {
        let (cell, window) = (self.cell, self.window);
        wait_for(cell, window, tokio::time::sleep_until(turn)).await?;
        let until = Instant::now() + YIELD_MAX;
        while self.runtime.in_flight().0 > BUSY_COMMANDS && Instant::now() < until {
            wait_for(cell, window, tokio::time::sleep(YIELD_LOOK)).await?;
        }
        loop {
            let changed = window.changed.notified();
            if !window.is_full() {
                break;
            }
            wait_for(cell, window, changed).await?;
        }
        window.begin(event.position);
        let lane = &self.lanes[cell.lane_of(key)];
        let again = Replayed { event, key, window: window.clone() };
        let send = async {
            // A lane that is gone takes this with it.
            let _ = lane.send(again).await;
        };
        wait_for(cell, window, send).await?;
        let now = Instant::now();
        Ok(turn.max(now.checked_sub(BURST).unwrap_or(now)) + self.pace)
    }
}

/// Says that the replay is complete, if every partition has done its part.
async fn finish(
    cell: &Cell,
    runtime: &Runtime,
    requested: &ReplayRequested,
) -> Result<(), Stopping> {
    let mut counts = ReplayCounts::default();
    for partition in 0..cell.store.partitions() {
        let done = loop {
            match cell.stored_progress(requested.replay_id, partition).await {
                Ok(progress) => break progress.filter(|progress| progress.is_done),
                Err(_) => nap(cell, PAUSE).await?,
            }
        };
        // Whoever is last says it.
        let Some(done) = done else { return Ok(()) };
        counts += done.counts;
    }
    end(cell, runtime, requested, (ReplayState::Completed, counts, None)).await
}

async fn fail(
    cell: &Cell,
    runtime: &Runtime,
    requested: &ReplayRequested,
    why: String,
) -> Result<(), Stopping> {
    tracing::error!(subscription = cell.subscription.name, replay_id = %requested.replay_id, why, "a replay cannot go on");
    let counts = runtime.replays().counts(requested).await.unwrap_or_default();
    end(cell, runtime, requested, (ReplayState::Failed, counts, Some(why))).await?;
    runtime.replays().stop(&requested.subscription, requested.replay_id);
    Ok(())
}

/// Records how it ended, however long that takes.
async fn end(
    cell: &Cell,
    runtime: &Runtime,
    requested: &ReplayRequested,
    (state, counts, reason): (ReplayState, ReplayCounts, Option<String>),
) -> Result<(), Stopping> {
    let (subscription, replay_id) = (requested.subscription.clone(), requested.replay_id);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let id = replay_id.to_string();
        let context = CommandContext {
            attach: ended(&subscription, cell.store.partitions()),
            ..CommandContext::inside(&*cell.world, &id, &id)
        };
        let ended = ReplayEnded {
            subscription: subscription.clone(),
            replay_id,
            by: "system".to_owned(),
            counts,
            reason: reason.clone(),
            at: cell.world.now(),
        };
        let command = OversightCommand::EndReplay(state, ended);
        let oversight = runtime.aggregate::<Oversight>();
        let sent = oversight.send(Oversight::id_of(&subscription), command, context, |_| ()).await;
        match sent {
            Ok(_) => return Ok(()),
            Err(_) => nap(cell, backoff.next_delay()).await?,
        }
    }
}

/// Delivers an event once more, in its lane, unless it is the dead letters' business.
pub(super) async fn deliver_again(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    blocked: &mut Blocked,
    again: Replayed,
) -> Result<(), Stopping> {
    let Replayed { event, key, window } = again;
    if window.is_cancelled() {
        return Ok(());
    }
    let came = if is_held(cell, blocked, &event, key).await? {
        Came::Held
    } else {
        let replay = Some(window.progress().replay_id);
        match deliver(cell, runtime, std::slice::from_ref(&event), replay).await? {
            Ok(Outcome::Handled) => Came::Handled,
            Ok(Outcome::Duplicate) => Came::Duplicate,
            Err(failed) => {
                bury(cell, &event, key, &failed).await?;
                hold(cell, blocked, key, event.position);
                Came::Failed
            }
        }
    };
    window.came(event.position, came);
    Ok(())
}

/// Whether an event is a letter, or waits behind one of its key; then it is a letter from now on.
async fn is_held(
    cell: &Arc<Cell>,
    blocked: &mut Blocked,
    event: &StoredEvent,
    key: Uuid,
) -> Result<bool, Stopping> {
    let is_ordered = cell.subscription.ordering == Ordered::ByKey;
    let holding = blocked.get(&key).map_or(0, |held| held.letters);
    // A key whose letters were all skipped is not held.
    if cell.room().letters() == 0 {
        return Ok(false);
    }
    if letter(cell, || cell.letter_at(key, event.position)).await?.is_some() {
        return Ok(true);
    }
    if !is_ordered || holding == 0 {
        return Ok(false);
    }
    let head = letter(cell, || cell.letter_ahead(key)).await?;
    if head.is_none_or(|head| head.position > event.position) {
        return Ok(false);
    }
    park(cell, event, waiting_letter(cell, event, key)).await?;
    hold(cell, blocked, key, event.position);
    Ok(true)
}

/// A letter, however long it takes to look.
async fn letter<F>(cell: &Cell, look: impl Fn() -> F) -> Result<Option<Letter>, Stopping>
where
    F: Future<Output = Result<Option<Letter>, super::RedriveError>>,
{
    loop {
        match look().await {
            Ok(letter) => return Ok(letter),
            Err(_) => nap(cell, PAUSE).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_up_to_the_position() {
        let range = ReplayRange { partition: 0, after: 10, last: 20 };
        let window = Window::new(ReplayProgress::new(Uuid::nil(), range), range);
        window.looked_at(11);
        for position in [12, 14, 15] {
            window.begin(position);
        }
        window.looked_at(20);
        let seen = || (window.progress().position, window.progress().counts);
        assert_eq!(seen(), (11, ReplayCounts { read: 1, ..ReplayCounts::default() }));
        window.came(14, Came::Duplicate);
        window.came(15, Came::Failed);
        assert_eq!(seen(), (11, ReplayCounts { read: 1, ..ReplayCounts::default() }));
        window.came(12, Came::Handled);
        let all = ReplayCounts { read: 10, redelivered: 2, duplicates: 1, failed: 1, held: 0 };
        assert_eq!(seen(), (20, all));
    }
}
