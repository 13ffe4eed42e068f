//! Letters worked by hand: a key's own, in its lane, so that nothing of the key happens beside it.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{MutexGuard, mpsc, oneshot};
use uuid::Uuid;

use super::lane::{Blocked, Stopping, dead_letter, deliver};
use super::telling::tell;
use super::{Cell, Kind, Ordered};
use crate::event::Position;
use crate::journal::{Batch, Letter, LetterFilter, LetterState, LetterWrite};
use crate::retry::Failure;
use crate::runtime::Runtime;

/// Letters read at a time.
const LETTERS_PAGE: usize = 256;
/// Requests that may wait in one lane.
const REQUESTS_MAX: usize = 16;

/// What an operator can do with letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redrive {
    /// Try the key's letters again, in order, from the first.
    Retry,
    /// Set the key's first letter aside, where it stays visible, then go on with those behind it.
    Skip,
    /// Drop the key's first letter, then go on with those behind it.
    Discard,
}

/// What to do, with which letter of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// What.
    pub what: Redrive,
    /// The position of the letter: the key's first, or one that was skipped, which is then worked
    /// alone. None: the key's first.
    pub position: Option<u64>,
    /// Nothing is done unless the letter has this revision ([`Letter::revision`]).
    pub expected: Option<u64>,
}

impl From<Redrive> for Work {
    fn from(what: Redrive) -> Self {
        Self { what, position: None, expected: None }
    }
}

/// How a redrive ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Redriven {
    /// Letters handled now.
    pub handled: usize,
    /// Letters dropped.
    pub discarded: usize,
    /// Letters set aside.
    pub skipped: usize,
    /// Letters that still hold the key up: none unless one failed again.
    pub left: usize,
    /// Where it is recorded who asked for it.
    #[serde(skip)]
    pub recorded: Option<Position>,
}

/// Why letters were not worked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedriveError {
    /// There is no such letter.
    #[error("there is no such letter")]
    Gone,
    /// It is not the letter that was expected, or it failed again since; nothing was done.
    #[error("the letter is not what was expected")]
    Changed {
        /// The revision of the letter that is there.
        current: u64,
    },
    /// It waits behind another one of its key: order is kept.
    #[error("the letter waits behind the one at position {head}")]
    Waits {
        /// The position of the key's first letter.
        head: u64,
    },
    /// It could not be done now.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<crate::journal::Error> for RedriveError {
    fn from(error: crate::journal::Error) -> Self {
        Self::Failed(Failure::system(error.to_string()))
    }
}

impl From<RedriveError> for Failure {
    fn from(error: RedriveError) -> Self {
        match error {
            RedriveError::Failed(failure) => failure,
            other => Self::permanent(other.to_string()),
        }
    }
}

impl From<Stopping> for RedriveError {
    fn from(_: Stopping) -> Self {
        Self::Failed(Failure::system("the service is stopping"))
    }
}

pub(super) struct RedriveRequest {
    key: Uuid,
    work: Work,
    reply: oneshot::Sender<Result<Redriven, RedriveError>>,
}

/// The requests of one lane; they survive a crash of it.
pub(super) struct Redrives {
    sender: mpsc::Sender<RedriveRequest>,
    receiver: tokio::sync::Mutex<mpsc::Receiver<RedriveRequest>>,
}

impl Default for Redrives {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
        Self { sender, receiver: tokio::sync::Mutex::new(receiver) }
    }
}

/// The receiving end, for whoever does the work of the lane.
pub(super) struct Requests<'a>(Option<MutexGuard<'a, mpsc::Receiver<RedriveRequest>>>);

impl<'a> Requests<'a> {
    /// Those of a lane.
    pub(super) async fn of_lane(cell: &'a Cell, lane: usize) -> Self {
        Self(Some(cell.redrives[lane].receiver.lock().await))
    }

    /// Those that whoever pulls the events takes care of: all, if there are no lanes.
    pub(super) async fn of_puller(cell: &'a Cell) -> Self {
        match cell.subscription.kind {
            Kind::Projection(_) => Self::of_lane(cell, 0).await,
            Kind::Handler(_) | Kind::Batches(..) => Self(None),
        }
    }

    /// The next one, if there is one.
    pub(super) fn waiting(&mut self) -> Option<RedriveRequest> {
        self.0.as_mut().and_then(|requests| requests.try_recv().ok())
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> RedriveRequest {
        if let Some(requests) = &mut self.0
            && let Some(request) = requests.recv().await
        {
            return request;
        }
        std::future::pending().await
    }
}

impl Cell {
    /// Works a key's letters, as soon as its lane has done what it has in hand.
    pub(crate) async fn redrive(&self, key: Uuid, work: Work) -> Result<Redriven, RedriveError> {
        let (reply, answer) = oneshot::channel();
        let gone = || Failure::system("the subscription is not running");
        let request = RedriveRequest { key, work, reply };
        let lane = &self.redrives[self.lane_of(key)];
        lane.sender.send(request).await.map_err(|_| gone())?;
        self.route.wake();
        answer.await.map_err(|_| gone())?
    }

    fn of_key(&self, key: Uuid, after: u64) -> LetterFilter {
        let subscription = Some(self.subscription.name.to_owned());
        LetterFilter { subscription, key: Some(key), after, ..LetterFilter::default() }
    }

    /// The first letter that holds a key up.
    pub(super) async fn letter_ahead(&self, key: Uuid) -> Result<Option<Letter>, RedriveError> {
        let mut filter = self.of_key(key, 0);
        loop {
            let letters = self.store.letters(self.partition, &filter, LETTERS_PAGE).await?;
            let Some(last) = letters.last() else { return Ok(None) };
            filter.after = last.position;
            let ahead = letters.into_iter().find(|letter| letter.state != LetterState::Skipped);
            if ahead.is_some() {
                return Ok(ahead);
            }
        }
    }

    /// The letter of a key at a position.
    pub(super) async fn letter_at(
        &self,
        key: Uuid,
        position: u64,
    ) -> Result<Option<Letter>, RedriveError> {
        let filter = self.of_key(key, position.saturating_sub(1));
        let found = self.store.letters(self.partition, &filter, 1).await?;
        Ok(found.into_iter().find(|letter| letter.position == position))
    }

    /// The letter that some work is about.
    pub(crate) async fn letter_meant(&self, key: Uuid, work: Work) -> Result<Letter, RedriveError> {
        let letter = match work.position {
            None => self.letter_ahead(key).await?,
            Some(position) => self.letter_at(key, position).await?,
        };
        let letter = letter.ok_or(RedriveError::Gone)?;
        let current = letter.revision();
        if work.expected.is_some_and(|expected| expected != current) {
            return Err(RedriveError::Changed { current });
        }
        if letter.state != LetterState::Skipped
            && let Some(head) = self.letter_ahead(key).await?
            && head.position != letter.position
        {
            return Err(RedriveError::Waits { head: head.position });
        }
        Ok(letter)
    }
}

/// Does what was asked for with a key's letters, and answers.
pub(super) async fn redrive(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    blocked: &mut Blocked,
    request: RedriveRequest,
) {
    let RedriveRequest { key, work, reply } = request;
    let mut outcome = redrive_key(cell, runtime, key, work).await;
    if let Ok((redriven, alone)) = &mut outcome {
        let before = blocked.get(&key).map_or(0, |held| held.letters);
        let done = redriven.handled + redriven.discarded + redriven.skipped;
        if *alone {
            redriven.left = before;
        } else if redriven.left > 0 {
            redriven.left = before.max(redriven.left + done).saturating_sub(done);
            blocked.entry(key).or_default().letters = redriven.left;
        } else if blocked.remove(&key).is_some_and(|held| held.letters > 0)
            && cell.subscription.ordering == Ordered::ByKey
        {
            cell.room().unblock();
        }
    }
    cell.measure_letters();
    let _ = reply.send(outcome.map(|(redriven, _)| redriven));
}

/// Works the letter that is meant, and unless it was a skipped one all that wait behind it, until
/// one fails again. Whether it was a skipped one.
async fn redrive_key(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    key: Uuid,
    work: Work,
) -> Result<(Redriven, bool), RedriveError> {
    let mut redriven = Redriven::default();
    let first = cell.letter_meant(key, work).await?;
    let alone = first.state == LetterState::Skipped;
    let mut filter = cell.of_key(key, first.position);
    let failed = !work_one(cell, runtime, &first, work.what, &mut redriven).await?;
    if failed && !alone {
        redriven.left = 1;
    }
    if failed || alone {
        return Ok((redriven, alone));
    }
    loop {
        let letters = cell.store.letters(cell.partition, &filter, LETTERS_PAGE).await?;
        let Some(last) = letters.last() else { return Ok((redriven, false)) };
        filter.after = last.position;
        for letter in letters.iter().filter(|letter| letter.state != LetterState::Skipped) {
            if !work_one(cell, runtime, letter, Redrive::Retry, &mut redriven).await? {
                redriven.left = 1;
                return Ok((redriven, false));
            }
        }
    }
}

/// Does it with one letter. Whether it is out of the way.
async fn work_one(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    letter: &Letter,
    what: Redrive,
    redriven: &mut Redriven,
) -> Result<bool, RedriveError> {
    match what {
        Redrive::Discard => {
            resolve(cell, letter, "discard").await?;
            redriven.discarded += 1;
        }
        Redrive::Skip if letter.state == LetterState::Skipped => {}
        Redrive::Skip => {
            let aside = Letter { state: LetterState::Skipped, ..letter.clone() };
            write(cell, LetterWrite::Put(aside)).await?;
            resolved(cell, "skip");
            redriven.skipped += 1;
        }
        Redrive::Retry => {
            let event = cell.store.event(letter.event_id).await?;
            let event = event.ok_or_else(|| Failure::permanent("the letter's event is gone"))?;
            if let Err(failed) = deliver(cell, runtime, std::slice::from_ref(&event), None).await? {
                let was_tried = letter.attempts > 0;
                let new = dead_letter(cell, &event, letter.key, &failed);
                let again = Letter {
                    attempts: letter.attempts + failed.attempts,
                    first_failed_at: if was_tried {
                        letter.first_failed_at
                    } else {
                        new.first_failed_at
                    },
                    state: if letter.state == LetterState::Skipped {
                        letter.state
                    } else {
                        new.state
                    },
                    ..new
                };
                if !was_tried {
                    tell(cell, &event, &again).await?;
                }
                write(cell, LetterWrite::Put(again)).await?;
                return Ok(false);
            }
            resolve(cell, letter, "retry").await?;
            redriven.handled += 1;
        }
    }
    Ok(true)
}

async fn resolve(cell: &Arc<Cell>, letter: &Letter, verb: &'static str) -> Result<(), Failure> {
    let subscription = letter.subscription.clone();
    write(cell, LetterWrite::Remove { subscription, position: letter.position }).await?;
    resolved(cell, verb);
    cell.letter_gone();
    Ok(())
}

fn resolved(cell: &Cell, verb: &'static str) {
    let name = cell.subscription.name;
    metrics::counter!("souk_dlq_resolved_total", "subscription" => name, "verb" => verb)
        .increment(1);
}

async fn write(cell: &Cell, write: LetterWrite) -> Result<(), Failure> {
    let batch = Batch { letters: vec![write], ..Batch::default() };
    cell.writer.store(batch).await.map_err(|error| Failure::system(error.to_string()))
}
