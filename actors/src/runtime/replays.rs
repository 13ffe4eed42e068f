//! The way to replays: what would be delivered once more, and having it done.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use super::Runtime;
use crate::aggregate::NoRejection;
use crate::command::{CommandContext, CommandError, Done};
use crate::event::{Position, StoredEvent};
use crate::journal;
use crate::oversight::{
    Oversight, OversightCommand, Replay, ReplayCounts, ReplayEnded, ReplayRange, ReplayRequested,
    ReplayState,
};
use crate::subscriber::{Cell, Kind, ReplayScope, replay_begun, replay_ended};

/// Events read at a time.
const PAGE: usize = 256;

/// What somebody wants delivered to a subscription once more.
#[derive(Debug, Clone, Default)]
pub struct ReplayWish {
    /// From this position of a partition on: of that partition only.
    pub first: Option<Position>,
    /// Up to this one.
    pub last: Option<Position>,
    /// Of those, which.
    pub scope: ReplayScope,
}

impl ReplayWish {
    fn range(&self, partition: u16, handled: u64) -> ReplayRange {
        let named = self.first.or(self.last);
        if named.is_some_and(|named| named.partition != partition) {
            return ReplayRange { partition, after: 0, last: 0 };
        }
        let after = self.first.map_or(0, |first| first.position.saturating_sub(1));
        let last = self.last.map_or(handled, |last| last.position.min(handled));
        ReplayRange { partition, after, last: last.max(after) }
    }
}

/// Whether a subscription can be replayed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayable {
    /// It can.
    Yes,
    /// It keeps rows, and skips what they have already: it is rebuilt instead.
    Projection,
    /// There is no such subscription.
    Unknown,
}

/// What a replay would deliver.
#[derive(Debug, Clone, Default)]
pub struct Preview {
    /// How many events.
    pub count: u64,
    /// The first, and the last, by partition and position.
    pub ends: Option<(Arc<StoredEvent>, Arc<StoredEvent>)>,
    /// How many of each type.
    pub by_type: BTreeMap<String, u64>,
    /// Positions looked at.
    pub read: u64,
    /// Whether those are all; if not, the time was over.
    pub is_complete: bool,
}

impl Preview {
    fn add(&mut self, event: Arc<StoredEvent>) {
        self.count += 1;
        *self.by_type.entry(event.event_type.to_string()).or_default() += 1;
        self.ends = match self.ends.take() {
            None => Some((event.clone(), event)),
            Some((first, _)) => Some((first, event)),
        };
    }
}

/// A replay, and how far it is.
#[derive(Debug, Clone)]
pub struct ReplayStatus {
    /// What was asked for, and how it stands.
    pub replay: Replay,
    /// What it has come to.
    pub counts: ReplayCounts,
    /// Why it does not go on, in a partition that has not done its part: `paused`, `circuit_open` or
    /// `dlq_full`.
    pub held: Option<&'static str>,
}

impl ReplayStatus {
    /// How many positions there are to look at.
    pub fn total(&self) -> u64 {
        self.replay.requested.ranges.iter().map(ReplayRange::positions).sum()
    }
}

/// The replays of all subscriptions.
#[derive(Clone, Debug)]
pub struct Replays(pub(super) Runtime);

impl Replays {
    fn cells(&self, name: &str) -> Vec<&Arc<Cell>> {
        let partitions = self.0.0.partitions.iter();
        let cells = partitions.flat_map(|partition| partition.cells.iter());
        cells.filter(|cell| cell.subscription.name == name).collect()
    }

    /// Whether a subscription can be replayed to.
    pub fn replayable(&self, name: &str) -> Replayable {
        match self.cells(name).first().map(|cell| &cell.subscription.kind) {
            None => Replayable::Unknown,
            Some(Kind::Projection(_)) => Replayable::Projection,
            Some(Kind::Handler(_) | Kind::Batches(..)) => Replayable::Yes,
        }
    }

    /// The positions that are meant: no further than the subscription has come, since the rest is
    /// delivered to it anyway.
    pub fn ranges(&self, name: &str, wish: &ReplayWish) -> Vec<ReplayRange> {
        let cells = self.cells(name);
        cells.iter().map(|cell| wish.range(cell.partition, cell.position())).collect()
    }

    /// What a replay would deliver, as far as it can be looked through by then.
    pub async fn preview(
        &self,
        name: &str,
        wish: &ReplayWish,
        until: Instant,
    ) -> Result<Preview, journal::Error> {
        let mut preview = Preview::default();
        for (cell, range) in self.cells(name).iter().zip(self.ranges(name, wish)) {
            let mut cursor = range.after;
            while cursor < range.last {
                if Instant::now() >= until {
                    return Ok(preview);
                }
                let page = self.0.journal().read_from(cell.partition, cursor, PAGE).await?;
                let Some(last) = page.last() else { break };
                let reached = last.position.min(range.last);
                preview.read += reached - cursor;
                cursor = reached;
                let within = page.into_iter().filter(|event| event.position <= reached);
                for event in within {
                    if cell.key_of(&event).is_some() && wish.scope.includes(&event) {
                        preview.add(event);
                    }
                }
            }
        }
        preview.is_complete = true;
        Ok(preview)
    }

    /// Has events delivered to a subscription once more, which must be one that can be replayed to.
    /// One replay of a subscription runs at a time: what is told is that of the request, or else the
    /// one that is running. A repeat with the same id is the same replay.
    pub async fn start(
        &self,
        requested: ReplayRequested,
        mut context: CommandContext,
    ) -> Result<Done<Option<Replay>>, CommandError<NoRejection>> {
        let replays = self.clone();
        context.attach = replay_begun(&requested);
        // Whoever asked may go meanwhile: what is recorded is also begun.
        let begun = tokio::spawn(async move {
            let stream = Oversight::id_of(&requested.subscription);
            let (id, command) = (requested.replay_id, OversightCommand::Replay(requested.clone()));
            let view = move |oversight: &Oversight| {
                oversight.replay(id).or(oversight.running_replay()).cloned()
            };
            let oversight = replays.0.aggregate::<Oversight>();
            let done = oversight.send(stream, command, context, view).await?;
            if done.events > 0 && !done.replayed {
                let requested = Arc::new(requested);
                for cell in replays.cells(&requested.subscription) {
                    cell.replay(requested.clone());
                }
            }
            Ok(done)
        });
        begun.await.unwrap_or(Err(CommandError::OutcomeUnknown))
    }

    /// Ends a replay. `None`: there is no such replay. No events: it was over already.
    pub async fn cancel(
        &self,
        id: Uuid,
        mut context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Done<Option<Replay>>>, CommandError<NoRejection>> {
        let Some(status) = self.get(id).await? else { return Ok(None) };
        let subscription = status.replay.requested.subscription;
        let ended = ReplayEnded {
            subscription: subscription.clone(),
            replay_id: id,
            by: context.actor_id.to_string(),
            counts: status.counts,
            reason,
            at: self.0.world().now(),
        };
        context.attach = replay_ended(&subscription, self.0.partitions());
        let replays = self.clone();
        let done = tokio::spawn(async move {
            let stream = Oversight::id_of(&subscription);
            let command = OversightCommand::EndReplay(ReplayState::Cancelled, ended);
            let view = move |oversight: &Oversight| oversight.replay(id).cloned();
            let oversight = replays.0.aggregate::<Oversight>();
            let done = oversight.send(stream, command, context, view).await?;
            replays.stop(&subscription, id);
            Ok(Some(done))
        });
        done.await.unwrap_or(Err(CommandError::OutcomeUnknown))
    }

    /// Nothing more of a replay is delivered.
    pub(crate) fn stop(&self, name: &str, id: Uuid) {
        for cell in self.cells(name) {
            cell.stop_replay(id);
        }
    }

    /// Every replay that is remembered, of one subscription or of all: the newest first.
    pub async fn list(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<ReplayStatus>, CommandError<NoRejection>> {
        let mut all = Vec::new();
        for status in self.0.subscriptions().list() {
            let is_meant = name.is_none_or(|name| name == status.name);
            if !is_meant || self.replayable(status.name) != Replayable::Yes {
                continue;
            }
            let oversight = self.0.aggregate::<Oversight>();
            let stream = Oversight::id_of(status.name);
            let known = oversight.read(stream, |oversight| oversight.replays.clone()).await?;
            for replay in known.value {
                all.push(self.status(replay).await);
            }
        }
        all.sort_by_key(|status| std::cmp::Reverse(status.replay.requested.at));
        Ok(all)
    }

    /// A replay. `None`: there is no such one, or it is long over.
    pub async fn get(&self, id: Uuid) -> Result<Option<ReplayStatus>, CommandError<NoRejection>> {
        let all = self.list(None).await?;
        Ok(all.into_iter().find(|status| status.replay.requested.replay_id == id))
    }

    /// How far a replay is.
    pub async fn status(&self, replay: Replay) -> ReplayStatus {
        if let Some(ended) = &replay.ended {
            return ReplayStatus { counts: ended.counts, held: None, replay };
        }
        let counts = self.counts(&replay.requested).await.unwrap_or_default();
        let cells = self.cells(&replay.requested.subscription);
        let held = cells.iter().find_map(|cell| cell.held());
        ReplayStatus { replay, counts, held }
    }

    /// What a running replay has come to.
    pub(crate) async fn counts(
        &self,
        requested: &ReplayRequested,
    ) -> Result<ReplayCounts, journal::Error> {
        let mut counts = ReplayCounts::default();
        for cell in self.cells(&requested.subscription) {
            if let Some(progress) = cell.replay_progress(requested.replay_id).await? {
                counts += progress.counts;
            }
        }
        Ok(counts)
    }
}
