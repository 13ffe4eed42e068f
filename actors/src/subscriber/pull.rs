//! One life of a subscription's actor: from the stored checkpoint, to the head, and on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::lane::{
    self, Blocked, CHECKPOINT_EVERY, Failed, IDLE_CHECKPOINT_EVENTS, IDLE_CHECKPOINT_EVERY, Keyed,
    QUEUE_MAX, Stopping, attempts, bury, handled, hold, waits,
};
use super::redrive::{RedriveRequest, Requests, redrive};
use super::replay::{self, AGAIN_MAX};
use super::room::Room;
use super::{Cell, Kind, Ordered, Projection, lane_position};
use crate::event::StoredEvent;
use crate::faults::points;
use crate::journal::{Batch, Checkpoint, LetterFilter, LetterState};
use crate::planted::Bug;
use crate::retry::Backoff;
use crate::runtime::Runtime;
use crate::world::Timestamp;

/// Events read at a time.
const PAGE: usize = 256;
/// Events read at a time for all who are behind.
const REACH_BACK_PAGE: usize = 1_024;
/// Events that a projection takes in one transaction.
const PROJECTION_PAGE: usize = 1_024;
/// How long a projection waits after a page that was not full before it looks for the next: under
/// load one transaction takes what came meanwhile, instead of many taking a few events each. An
/// event that comes after a pause is projected at once.
const PROJECTION_PAUSE: Duration = Duration::from_millis(20);
/// A page of so many events is load. Then a pause is twice as long, because a transaction costs much
/// before it does anything; and each of several partitions leaves as many pauses at once, up to
/// [`PAUSES_MAX`]: together they make no more transactions than one would, almost.
const BUSY_PAGE: usize = 8;
const PAUSES_MIN: u32 = 2;
const PAUSES_MAX: u32 = 4;
/// How often a projection stores how far it is when there is nothing for it; not all at the same time.
const IDLE_PROJECTION_EVERY: Duration = Duration::from_secs(30);
const IDLE_PROJECTION_SPREAD_MS: u64 = 10_000;
/// How long it may take to store that.
const NOTE_WITHIN: Duration = Duration::from_secs(5);

/// How often this one does: always as often, and seldom at the same time as another.
fn idle_projection_every(projection: &str) -> Duration {
    let spread = xxh3_64(projection.as_bytes()) % IDLE_PROJECTION_SPREAD_MS;
    IDLE_PROJECTION_EVERY + Duration::from_millis(spread)
}

/// The milliseconds over which the instants of the projections are spread: the longest pause.
const PHASES: u64 = 80;

/// How long to wait after a page of so many events, in one of so many partitions.
fn pause_after(events: usize, partitions: u16) -> Option<Duration> {
    let pauses =
        if events < BUSY_PAGE { 1 } else { u32::from(partitions).clamp(PAUSES_MIN, PAUSES_MAX) };
    (events < PROJECTION_PAGE).then_some(PROJECTION_PAUSE * pauses)
}

/// How long to wait from `now` on for the next instant at which a projection goes on after such a
/// pause. These instants are the same in all partitions, and others for each projection: what the
/// partitions write then can be written together. It is a pause on average, and never less than half
/// of one.
fn until_the_next(pause: Duration, projection: &str, now: Timestamp) -> Duration {
    let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX).max(1);
    let first = xxh3_64(projection.as_bytes()) % PHASES;
    let first = i64::try_from(first).unwrap_or(0);
    let since = now.millis().saturating_sub(first).rem_euclid(pause);
    let mut wait = pause - since;
    if wait < pause / 2 {
        wait += pause;
    }
    Duration::from_millis(wait.unsigned_abs())
}

/// Runs a subscription until the service stops.
pub(crate) async fn run(cell: Arc<Cell>) -> Result<(), String> {
    let runtime = cell.runtime.get().and_then(crate::runtime::WeakRuntime::upgrade);
    let Some(runtime) = runtime else { return Ok(()) };
    match cell.subscription.kind.clone() {
        Kind::Handler(_) | Kind::Batches(..) => run_lanes(&cell, &runtime).await,
        Kind::Projection(projection) => run_projection(&cell, &runtime, &*projection).await,
    }
}

/// The keys that have letters, with how many; makes the room for more of them known. Of a projection:
/// how far its rows are.
async fn load_blocked(cell: &Cell, rows_at: Option<u64>) -> Result<Blocked, String> {
    let mut blocked = Blocked::new();
    let mut all = 0;
    let mut filter = LetterFilter {
        subscription: Some(cell.subscription.name.to_owned()),
        ..LetterFilter::default()
    };
    loop {
        let letters = cell.store.letters(cell.partition, &filter, 1_000).await;
        let letters = letters.map_err(|error| error.to_string())?;
        let Some(last) = letters.last() else { break };
        filter.after = last.position;
        if cell.faults.planted(Bug::LettersForgotten) {
            continue;
        }
        all += letters.len();
        for letter in &letters {
            let held = blocked.entry(letter.key).or_default();
            let holds = letter.state != LetterState::Skipped;
            held.add(letter.position, holds);
            if rows_at.is_some_and(|rows_at| letter.position > rows_at) {
                held.again.insert(letter.position, holds);
            }
        }
    }
    let ordered = cell.subscription.ordering == Ordered::ByKey;
    let keys = blocked.values().filter(|held| ordered && held.letters > 0).count();
    let room = Room::new(cell.letters_max, all, keys);
    *cell.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    cell.measure_letters();
    Ok(blocked)
}

struct Puller<'a> {
    cell: &'a Arc<Cell>,
    cursor: u64,
    /// Between looks at a damaged event.
    damaged: Backoff,
    page: usize,
    /// Where no order is kept: the lane whose turn it is, and events that have letters since an
    /// earlier life; their lanes know of those.
    turn: usize,
    set_aside: HashSet<Uuid>,
    /// No events before then.
    not_before: Option<Instant>,
    /// Until when the next page gives way to what is more urgent.
    gives_way_until: Option<Instant>,
    /// It has given way long enough: what there was then, up to here, does not.
    turn_ends: u64,
}

/// What there is to do next.
enum Next {
    Events(Vec<Arc<StoredEvent>>),
    /// Nothing for this subscription up to there.
    SkipTo(u64),
    Redrive(RedriveRequest),
    Idle,
    Stop,
}

impl<'a> Puller<'a> {
    fn new(cell: &'a Arc<Cell>, cursor: u64, page: usize) -> Self {
        let damaged = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        Self {
            cell,
            cursor,
            damaged,
            page,
            turn: 0,
            set_aside: HashSet::new(),
            not_before: None,
            gives_way_until: None,
            turn_ends: 0,
        }
    }

    /// Waits for something to do; `Idle` comes round often enough to store checkpoints.
    async fn next(&mut self, wait_max: Duration) -> Next {
        let cell = self.cell;
        if cell.stopping.get() {
            return Next::Stop;
        }
        let mut redrives = Requests::of_puller(cell).await;
        if let Some(request) = redrives.waiting() {
            return Next::Redrive(request);
        }
        if cell.paused.get() {
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => {}
                () = cell.paused.wait(false) => {}
                request = redrives.next() => return Next::Redrive(request),
                () = tokio::time::sleep(wait_max) => {}
            }
            return Next::Idle;
        }
        if self.page == 0 {
            let room = cell.room();
            let changed = room.changed();
            cell.look_whether_full();
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => {}
                request = redrives.next() => return Next::Redrive(request),
                () = changed => {}
                () = tokio::time::sleep(wait_max) => {}
            }
            return Next::Idle;
        }
        let (scanned, matched) = cell.route.news();
        if self.cursor >= scanned {
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => {}
                () = cell.route.changed() => {}
                request = redrives.next() => return Next::Redrive(request),
                () = tokio::time::sleep(wait_max) => self.poll(),
            }
            return Next::Idle;
        }
        if matched <= self.cursor {
            return Next::SkipTo(scanned);
        }
        if let Some(until) = self.not_before.take_if(|until| Instant::now() < *until) {
            return self.wait_until(until, &mut redrives).await;
        }
        if let Some(until) = self.gives_way(scanned) {
            return self.give_way(until, &mut redrives).await;
        }
        let read = self.read().await;
        if let Err(error @ crate::journal::Error::Damaged(_)) = read {
            return self.wait_at_damage(&error, &mut redrives).await;
        }
        cell.waits_at_damage(false);
        self.damaged.reset();
        match read {
            Ok(events) if events.is_empty() => Next::SkipTo(scanned),
            Ok(events) => Next::Events(events),
            Err(error) => {
                tracing::warn!(subscription = cell.subscription.name, %error, "the journal cannot be read now");
                tokio::time::sleep(Duration::from_millis(500)).await;
                Next::Idle
            }
        }
    }

    /// Until when the page that is next gives way, if it has to. `head` is how far there are events.
    fn gives_way(&mut self, head: u64) -> Option<Instant> {
        let priority = self.cell.subscription.priority;
        let at_most = priority.gives_way_for()?;
        if self.cursor < self.turn_ends || !self.cell.at_work.is_crowded(priority) {
            self.gives_way_until = None;
            return None;
        }
        let now = Instant::now();
        if self.gives_way_until.is_none() {
            self.cell.counts.gave_way.fetch_add(1, Ordering::Relaxed);
        }
        let until = *self.gives_way_until.get_or_insert(now + at_most);
        if until <= now {
            // Its turn is all that there is by now, however long that takes: only so is it no later
            // than that behind what comes, at any rate.
            (self.gives_way_until, self.turn_ends) = (None, head);
            return None;
        }
        Some(until)
    }

    /// Lets what is more urgent go first.
    async fn give_way(&self, until: Instant, redrives: &mut Requests<'_>) -> Next {
        let cell = self.cell;
        tokio::select! {
            biased;
            () = cell.stopping.wait(true) => {}
            request = redrives.next() => return Next::Redrive(request),
            () = cell.at_work.eased(cell.subscription.priority) => {}
            () = tokio::time::sleep_until(until) => {}
        }
        Next::Idle
    }

    /// Not a step past a damaged event: nobody knows whose it was or what it said.
    async fn wait_at_damage(
        &mut self,
        error: &crate::journal::Error,
        redrives: &mut Requests<'_>,
    ) -> Next {
        let cell = self.cell;
        cell.waits_at_damage(true);
        let wait = self.damaged.next_delay();
        tracing::error!(subscription = cell.subscription.name, partition = cell.partition, after = self.cursor, %error, wait_ms = wait.as_millis(), "a subscription waits at a damaged event; it goes on once that is mended");
        self.wait_until(Instant::now() + wait, redrives).await
    }

    /// Nothing but redrives until then.
    async fn wait_until(&self, until: Instant, redrives: &mut Requests<'_>) -> Next {
        tokio::select! {
            biased;
            () = self.cell.stopping.wait(true) => {}
            request = redrives.next() => return Next::Redrive(request),
            () = tokio::time::sleep_until(until) => {}
        }
        Next::Idle
    }

    /// The fallback for a wake-up that was lost with a broker: look at the head.
    fn poll(&self) {
        let head = self.cell.writer.state().head();
        if head > self.cell.broker.head() {
            self.cell.broker.moved_to(head);
        }
    }

    async fn read(&self) -> Result<Vec<Arc<StoredEvent>>, crate::journal::Error> {
        if let Some(events) = self.in_tail() {
            return Ok(events);
        }
        // Many who are about as far behind need the same events: after a start, after a pause, or when
        // the broker could not keep up. One reads them for all.
        let cell = self.cell;
        if cell.broker.may_reach_back_to(self.cursor) {
            let _alone = cell.broker.reaching_back().await;
            if let Some(events) = self.in_tail() {
                return Ok(events);
            }
            self.reach_back().await?;
            if let Some(events) = self.in_tail() {
                return Ok(events);
            }
        }
        cell.store.read_from(cell.partition, self.cursor, self.page).await
    }

    fn in_tail(&self) -> Option<Vec<Arc<StoredEvent>>> {
        let events = self.cell.broker.tail().read(self.cursor, self.page);
        events.filter(|events| !events.is_empty())
    }

    /// Reads what is between here and the tail into the tail. What cannot be read is met again by
    /// whoever comes to it.
    async fn reach_back(&self) -> Result<(), crate::journal::Error> {
        let cell = self.cell;
        let tail = cell.broker.tail();
        let last = tail.first().map_or_else(|| cell.broker.head(), |first| first.saturating_sub(1));
        let (mut at, mut all) = (self.cursor, Vec::new());
        while at < last && !cell.stopping.get() {
            let wanted = usize::try_from(last - at).unwrap_or(REACH_BACK_PAGE);
            let page = cell.store.read_from(cell.partition, at, wanted.min(REACH_BACK_PAGE)).await;
            let page = match page {
                Ok(page) => page,
                Err(crate::journal::Error::Damaged(_)) => {
                    cell.broker.damaged_behind(at);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let Some(end) = page.last() else { return Ok(()) };
            at = end.position;
            all.extend(page);
        }
        tail.reach_back(&all);
        Ok(())
    }
}

impl Puller<'_> {
    /// The lane whose turn it is, or the next behind it that has room: a slow event holds up none
    /// but those behind it in its own lane.
    async fn next_lane(&mut self, lanes: &[mpsc::Sender<Keyed>]) -> Result<usize, Stopping> {
        let cell = self.cell;
        loop {
            let moved = cell.progress.notified();
            let mut turns = (0..lanes.len()).map(|step| (self.turn + step) % lanes.len());
            if let Some(lane) = turns.find(|lane| lanes[*lane].capacity() > 0) {
                self.turn = (lane + 1) % lanes.len();
                return Ok(lane);
            }
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => return Err(Stopping),
                () = moved => tokio::task::yield_now().await,
                () = tokio::time::sleep(cell.poll_interval) => {}
            }
        }
    }
}

// ---------------------------------------------------------------------------------- handlers

async fn run_lanes(cell: &Arc<Cell>, runtime: &Runtime) -> Result<(), String> {
    let blocked = load_blocked(cell, None).await?;
    let mut stored = load_checkpoints(cell).await?;
    let starts = stored.positions.clone();
    let cursor = starts.iter().copied().min().unwrap_or(0);
    cell.dispatched.store(cursor, Ordering::Release);
    if let Some(mut unfinished) = cell.unfinished() {
        unfinished.clear();
    }
    let set_aside = blocked.keys().copied().collect();
    let mut by_lane: Vec<Blocked> = vec![HashMap::new(); cell.lanes.len()];
    for (key, count) in blocked {
        by_lane[cell.lane_of(key)].insert(key, count);
    }
    let mut running = JoinSet::new();
    let (mut lanes, mut agains) = (Vec::new(), Vec::new());
    for (lane, blocked) in by_lane.into_iter().enumerate() {
        let (send, receive) = mpsc::channel(QUEUE_MAX);
        let (send_again, again) = mpsc::channel(AGAIN_MAX);
        lanes.push(send);
        agains.push(send_again);
        cell.lanes[lane].done.store(starts[lane], Ordering::Release);
        cell.lanes[lane].queued.store(0, Ordering::Release);
        let (cell, runtime) = (cell.clone(), runtime.clone());
        let tasks = (receive, again);
        running.spawn(async move { lane::run(&cell, &runtime, lane, blocked, tasks).await });
    }
    let pulled = async {
        let mut puller = Puller { set_aside, ..Puller::new(cell, cursor, PAGE) };
        let pull = pull_into_lanes(&mut puller, &lanes, &starts, &mut stored);
        tokio::join!(pull, replay::run(cell, runtime, &agains));
    };
    tokio::select! {
        biased;
        () = pulled => {}
        Some(ended) = running.join_next() => {
            let stopping = cell.stopping.get();
            match ended {
                Ok(Ok(())) if stopping => {}
                Ok(Ok(())) => return Err("a lane ended".into()),
                Ok(Err(error)) => return Err(error),
                Err(error) => return Err(format!("a lane crashed: {error}")),
            }
        }
    }
    drop((lanes, agains));
    while running.join_next().await.is_some() {}
    store_checkpoints(cell, &mut stored, Which::All).await;
    replay::store_progress(cell).await;
    Ok(())
}

/// The checkpoints as the journal has them.
struct Stored {
    /// By lane.
    positions: Vec<u64>,
    /// Whether there is a row for each lane of this many. Where there is none for a lane nobody knows
    /// how far it was, so the first time all are stored.
    whole: bool,
}

/// Which checkpoints are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// All that have moved.
    All,
    /// Those of lanes that did something.
    Due,
}

impl Stored {
    /// Whether a lane's checkpoint should be stored, now that the lane is at `now`.
    fn is_due(&self, cell: &Cell, lane: usize, now: u64) -> bool {
        let stored = self.positions[lane];
        let is_one_of_many =
            self.whole && self.positions.len() > 1 && cell.subscription.ordering == Ordered::ByKey;
        now > stored && (!is_one_of_many || cell.lanes[lane].done.load(Ordering::Acquire) > stored)
    }

    fn is_any_due(&self, cell: &Cell) -> bool {
        (0..self.positions.len()).any(|lane| self.is_due(cell, lane, current(cell, lane)))
    }
}

async fn load_checkpoints(cell: &Cell) -> Result<Stored, String> {
    let rows = cell.store.checkpoints(cell.subscription.name, cell.partition).await;
    let rows = rows.map_err(|error| error.to_string())?;
    let lanes = cell.lanes.len();
    let whole = rows.len() == lanes && rows.iter().all(|row| usize::from(row.lanes) == lanes);
    if cell.faults.planted(Bug::LanesResumeAhead) {
        let furthest = rows.iter().map(|row| row.position).max().unwrap_or(0);
        return Ok(Stored { positions: vec![furthest; lanes], whole });
    }
    if whole && cell.subscription.ordering == Ordered::ByKey {
        return Ok(Stored { positions: rows.iter().map(|row| row.position).collect(), whole });
    }
    // Keys move between lanes when their number changes, events wherever no order is kept: all
    // start where the slowest was.
    let slowest = rows.iter().map(|row| row.position).min().unwrap_or(0);
    Ok(Stored { positions: vec![slowest; lanes], whole })
}

async fn pull_into_lanes(
    puller: &mut Puller<'_>,
    lanes: &[mpsc::Sender<Keyed>],
    starts: &[u64],
    stored: &mut Stored,
) {
    let cell = puller.cell;
    let (mut last_store, mut last_of_all) = (Instant::now(), Instant::now());
    let mut all_at = puller.cursor;
    loop {
        let wait = match stored.is_any_due(cell) {
            true => CHECKPOINT_EVERY,
            false => cell.poll_interval,
        };
        match puller.next(wait).await {
            Next::Stop => return,
            Next::Idle => {}
            Next::SkipTo(position) => {
                puller.cursor = position;
                cell.dispatched.store(position, Ordering::Release);
                cell.moved();
            }
            // The lanes take theirs themselves.
            Next::Redrive(_) => {}
            Next::Events(events) => {
                for event in events {
                    if hand_out(puller, lanes, starts, event).await.is_err() {
                        return;
                    }
                }
                cell.moved();
            }
        }
        let is_far = puller.cursor - all_at >= IDLE_CHECKPOINT_EVENTS;
        if is_far || last_of_all.elapsed() >= IDLE_CHECKPOINT_EVERY {
            store_checkpoints(cell, stored, Which::All).await;
            (last_store, last_of_all) = (Instant::now(), Instant::now());
            all_at = puller.cursor;
        } else if last_store.elapsed() >= CHECKPOINT_EVERY {
            store_checkpoints(cell, stored, Which::Due).await;
            last_store = Instant::now();
        }
    }
}

async fn hand_out(
    puller: &mut Puller<'_>,
    lanes: &[mpsc::Sender<Keyed>],
    starts: &[u64],
    event: Arc<StoredEvent>,
) -> Result<(), Stopping> {
    let cell = puller.cell;
    let position = event.position;
    if let Some(key) = cell.key_of(&event) {
        let lane = match cell.subscription.ordering {
            Ordered::ByKey => cell.lane_of(key),
            Ordered::Not if puller.set_aside.contains(&key) => cell.lane_of(key),
            Ordered::Not => puller.next_lane(lanes).await?,
        };
        if position > starts[lane] {
            cell.ahead(lane, position);
            tokio::select! {
                biased;
                () = cell.stopping.wait(true) => return Err(Stopping),
                sent = lanes[lane].send((event, key)) => sent.map_err(|_| Stopping)?,
            }
        }
    }
    puller.cursor = position;
    cell.dispatched.store(position, Ordering::Release);
    Ok(())
}

/// How far a lane is; where no order is kept they are all as far as everything is.
fn current(cell: &Cell, lane: usize) -> u64 {
    if cell.subscription.ordering == Ordered::Not {
        return cell.position();
    }
    let dispatched = cell.dispatched.load(Ordering::Acquire);
    lane_position(&cell.lanes[lane], dispatched)
}

/// Stores checkpoints. A lane without work of its own may stay behind for a while: nothing in
/// between was for it, so all that it costs is that a restart reads those events once more. Its row
/// in every batch would take the place of a command's.
async fn store_checkpoints(cell: &Cell, stored: &mut Stored, which: Which) {
    let now: Vec<_> = (0..stored.positions.len()).map(|lane| current(cell, lane)).collect();
    let is_due = |lane: usize| match which {
        Which::All => now[lane] > stored.positions[lane],
        Which::Due => stored.is_due(cell, lane, now[lane]),
    };
    let mut due: Vec<_> = (0..now.len()).filter(|lane| is_due(*lane)).collect();
    if due.is_empty() {
        return;
    }
    if !stored.whole {
        due = (0..now.len()).collect();
    }
    let checkpoint = |lane: &usize| Checkpoint {
        subscription: cell.subscription.name.into(),
        lane: u16::try_from(*lane).expect("lanes are counted in 16 bits"),
        lanes: cell.subscription.lanes,
        position: now[*lane],
    };
    let checkpoints = due.iter().map(checkpoint).collect();
    points::reach("subscriber.before_checkpoint").await;
    match cell.writer.store(Batch { checkpoints, ..Batch::default() }).await {
        Ok(()) => {
            points::reach("subscriber.after_checkpoint").await;
            due.iter().for_each(|lane| stored.positions[*lane] = now[*lane]);
            stored.whole = true;
        }
        Err(error) => {
            tracing::debug!(subscription = cell.subscription.name, %error, "checkpoints wait for the journal");
        }
    }
}

// -------------------------------------------------------------------------------- projections

async fn run_projection(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    projection: &dyn Projection,
) -> Result<(), String> {
    let start = projection.checkpoint(cell.partition).await.map_err(|error| error.to_string())?;
    let mut blocked = load_blocked(cell, Some(start)).await?;
    cell.lanes[0].done.store(start, Ordering::Release);
    cell.lanes[0].queued.store(0, Ordering::Release);
    cell.dispatched.store(start, Ordering::Release);
    projection.came_to(cell.subscription.name, cell.partition, start);
    let mut puller = Puller::new(cell, start, PROJECTION_PAGE);
    let mut mirrored = Stored { positions: vec![start], whole: false };
    let (mut last_store, mut last_noted) = (Instant::now(), Instant::now());
    // What is stored with the rows, and how often it is stored without any.
    let mut noted = start;
    let idle_every = idle_projection_every(cell.subscription.name);
    loop {
        let is_behind = mirrored.positions[0] < puller.cursor;
        let wait = if is_behind { CHECKPOINT_EVERY } else { cell.poll_interval };
        // Each event of a page may become a letter.
        puller.page = PROJECTION_PAGE.min(cell.room().left());
        match puller.next(wait).await {
            Next::Stop => {
                note(&puller, runtime, projection, noted).await;
                return Ok(());
            }
            Next::Idle => {}
            // Its own checkpoint may stay behind for a while: nothing in between concerns it.
            Next::SkipTo(position) => advance(&mut puller, position),
            Next::Redrive(request) => {
                redrive(cell, runtime, &mut blocked, request).await;
            }
            Next::Events(events) => {
                let partitions = cell.store.partitions();
                let pause = pause_after(events.len(), partitions);
                let to = events.last().map_or(puller.cursor, |event| event.position);
                let projected =
                    project(&puller, runtime, projection, &mut blocked, events, to).await;
                if projected.is_err() {
                    let stopping = cell.stopping.get();
                    return if stopping { Ok(()) } else { Err("it could not go on".into()) };
                }
                advance(&mut puller, to);
                (noted, last_noted) = (to, Instant::now());
                let wait = pause.map(|pause| match partitions {
                    1 => pause,
                    _ => until_the_next(pause, cell.subscription.name, runtime.world().now()),
                });
                puller.not_before = wait.map(|wait| Instant::now() + wait);
            }
        }
        // But not for ever: a start would look through all of it.
        let is_far = puller.cursor.saturating_sub(noted) >= IDLE_CHECKPOINT_EVENTS;
        if is_far || last_noted.elapsed() >= idle_every {
            noted = note(&puller, runtime, projection, noted).await;
            last_noted = Instant::now();
        }
        if last_store.elapsed() >= CHECKPOINT_EVERY {
            store_checkpoints(cell, &mut mirrored, Which::Due).await;
            last_store = Instant::now();
        }
    }
}

/// Stores how far a projection is that has had nothing to do since `noted`. Returns what is stored then:
/// it is no failure if it cannot be now, a start looks through more than it had to.
async fn note(
    puller: &Puller<'_>,
    runtime: &Runtime,
    projection: &dyn Projection,
    noted: u64,
) -> u64 {
    let (cell, to) = (puller.cell, puller.cursor);
    if to <= noted || cell.circuit.name() != "closed" {
        return noted;
    }
    let done = projection.project(runtime, cell.partition, noted, &[], to);
    match tokio::time::timeout(NOTE_WITHIN, done).await {
        Ok(Ok(())) => to,
        Ok(Err(failure)) => {
            let error = failure.message;
            tracing::debug!(
                subscription = cell.subscription.name,
                error,
                "how far a projection is cannot be stored now"
            );
            noted
        }
        Err(_) => noted,
    }
}

fn advance(puller: &mut Puller<'_>, position: u64) {
    puller.cursor = position;
    puller.cell.dispatched.store(position, Ordering::Release);
    puller.cell.moved();
    if let Kind::Projection(projection) = &puller.cell.subscription.kind {
        projection.came_to(puller.cell.subscription.name, puller.cell.partition, position);
    }
}

/// Projects a page. A page that fails goes again event by event, so that one bad event becomes a
/// letter and stops its own key only.
async fn project(
    puller: &Puller<'_>,
    runtime: &Runtime,
    projection: &dyn Projection,
    blocked: &mut Blocked,
    events: Vec<Arc<StoredEvent>>,
    to: u64,
) -> Result<(), Stopping> {
    let (cell, from) = (puller.cell, puller.cursor);
    let mut wanted = Vec::new();
    for event in events {
        let Some(key) = cell.key_of(&event) else { continue };
        if !waits(cell, blocked, &event, key).await? {
            wanted.push((event, key));
        }
    }
    let batch: Vec<_> = wanted.iter().map(|(event, _)| event.clone()).collect();
    if try_project(cell, runtime, projection, from, &batch, to).await?.is_ok() {
        return Ok(());
    }
    let mut from = from;
    if cell.faults.planted(Bug::PageSkipped) {
        wanted.clear();
    }
    for (event, key) in wanted {
        let position = event.position;
        if waits(cell, blocked, &event, key).await? {
            continue;
        }
        let one = std::slice::from_ref(&event);
        match try_project(cell, runtime, projection, from, one, position).await? {
            Ok(()) => from = position,
            Err(failed) => {
                bury(cell, &event, key, &failed).await?;
                hold(cell, blocked, key, position);
            }
        }
    }
    match try_project(cell, runtime, projection, from, &[], to).await? {
        Ok(()) => Ok(()),
        // The checkpoint alone cannot be stored: what is projected is skipped when it comes again.
        Err(_) => Err(Stopping),
    }
}

async fn try_project(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    projection: &dyn Projection,
    from: u64,
    events: &[Arc<StoredEvent>],
    to: u64,
) -> Result<Result<(), Failed>, Stopping> {
    let work = || projection.project(runtime, cell.partition, from, events, to);
    let outcome = attempts(cell, events, None, work).await?;
    if let Ok(outcome) = outcome {
        handled(cell, events, outcome, None);
    }
    Ok(outcome.map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Partitions that finish at different times go on at the same one; two projections do not.
    #[test]
    fn partitions_go_on_together_and_projections_apart() {
        let pause = Duration::from_millis(80);
        let goes_on = |projection: &str, at: i64| {
            let wait = until_the_next(pause, projection, Timestamp::from_millis(at));
            assert!(wait >= pause / 2 && wait < pause + pause / 2, "{wait:?}");
            at + i64::try_from(wait.as_millis()).unwrap()
        };
        let all = |projection: &str| -> HashSet<i64> {
            (1_000_000..1_000_080).map(|at| goes_on(projection, at)).collect()
        };
        let (one, other) = (all("listings-view"), all("search"));
        assert_eq!(one.len(), 2, "the next instant, or the one behind it: {one:?}");
        assert!(one.is_disjoint(&other), "{one:?} {other:?}");
        // A short pause ends at one of the instants of the long ones, or between them.
        let short = until_the_next(pause / 4, "search", Timestamp::from_millis(1_000_000));
        let long = until_the_next(pause, "search", Timestamp::from_millis(1_000_000));
        assert_eq!((long - short).as_millis() % 20, 0);
    }
}
