//! Letters worked by hand: a key's own, in its lane, so that nothing of the key happens beside it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use tokio::sync::{MutexGuard, mpsc, oneshot};
use uuid::Uuid;

use super::lane::{Blocked, Stopping, dead_letter, deliver};
use super::replay::{PAUSE, nap};
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
/// Said of a letter whose event is yet to come to the rows that it belongs into.
const AHEAD: &str =
    "the read model is being made anew and has not come to this letter yet: try again later";

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
    let mut in_doubt = None;
    match redrive_key(cell, runtime, key, work, &mut in_doubt).await {
        Ok((mut redriven, alone)) => {
            let before = blocked.get(&key).map_or(0, |held| held.letters);
            let done = redriven.handled + redriven.discarded + redriven.skipped;
            if alone {
                redriven.left = before;
            } else {
                if redriven.left > 0 {
                    redriven.left = before.max(redriven.left + done).saturating_sub(done);
                }
                holds_now(cell, blocked, key, redriven.left);
            }
            let _ = reply.send(Ok(redriven));
        }
        Err(error) => {
            let is_new = matches!(error, RedriveError::Failed(_));
            let _ = reply.send(Err(error));
            // Some may have been worked, and the last one's outcome may be unknown: nothing of the key goes on
            // until the journal has said what is left.
            if is_new && let Ok(left) = left_of(cell, key, in_doubt).await {
                holds_now(cell, blocked, key, left);
            }
        }
    }
    cell.measure_letters();
}

/// So many letters hold the key up from here on.
fn holds_now(cell: &Cell, blocked: &mut Blocked, key: Uuid, letters: usize) {
    let held = blocked.entry(key).or_default();
    let before = std::mem::replace(&mut held.letters, letters);
    if letters == 0 && held.again.is_empty() {
        blocked.remove(&key);
    }
    if cell.subscription.ordering == Ordered::ByKey {
        match (before, letters) {
            (1.., 0) => cell.room().unblock(),
            (0, 1..) => cell.room().block(),
            _ => {}
        }
    }
}

/// How many letters hold a key up, however long it takes to look. The one at `in_doubt` may be gone.
async fn left_of(cell: &Arc<Cell>, key: Uuid, in_doubt: Option<u64>) -> Result<usize, Stopping> {
    let mut is_gone = in_doubt.is_some();
    let (mut left, mut after) = (0, 0);
    loop {
        let filter = cell.of_key(key, after);
        let Ok(letters) = cell.store.letters(cell.partition, &filter, LETTERS_PAGE).await else {
            nap(cell, PAUSE).await?;
            continue;
        };
        let Some(last) = letters.last() else { break };
        after = last.position;
        left += letters.iter().filter(|letter| letter.state != LetterState::Skipped).count();
        is_gone &= letters.iter().all(|letter| Some(letter.position) != in_doubt);
    }
    if is_gone {
        cell.letter_gone();
    }
    Ok(left)
}

/// Works the letter that is meant, and unless it was a skipped one all that wait behind it, until
/// one fails again. Whether it was a skipped one. `in_doubt`: the letter whose end is being stored.
async fn redrive_key(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    key: Uuid,
    work: Work,
    in_doubt: &mut Option<u64>,
) -> Result<(Redriven, bool), RedriveError> {
    let mut redriven = Redriven::default();
    let first = cell.letter_meant(key, work).await?;
    if comes_again(cell, &first) {
        return Err(Failure::transient(AHEAD).into());
    }
    let alone = first.state == LetterState::Skipped;
    let mut filter = cell.of_key(key, first.position);
    let failed = !work_one(cell, runtime, &first, work.what, &mut redriven, in_doubt).await?;
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
            let retry = Redrive::Retry;
            if comes_again(cell, letter)
                || !work_one(cell, runtime, letter, retry, &mut redriven, in_doubt).await?
            {
                redriven.left = 1;
                return Ok((redriven, false));
            }
        }
    }
}

/// Whether a projection's rows are older than a letter: in them it has to come behind what is before it.
fn comes_again(cell: &Cell, letter: &Letter) -> bool {
    matches!(cell.subscription.kind, Kind::Projection(_))
        && letter.position > cell.dispatched.load(Ordering::Acquire)
}

/// Does it with one letter. Whether it is out of the way.
async fn work_one(
    cell: &Arc<Cell>,
    runtime: &Runtime,
    letter: &Letter,
    what: Redrive,
    redriven: &mut Redriven,
    in_doubt: &mut Option<u64>,
) -> Result<bool, RedriveError> {
    match what {
        Redrive::Discard => {
            resolve(cell, letter, "discard", in_doubt).await?;
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
            resolve(cell, letter, "retry", in_doubt).await?;
            redriven.handled += 1;
        }
    }
    Ok(true)
}

async fn resolve(
    cell: &Arc<Cell>,
    letter: &Letter,
    verb: &'static str,
    in_doubt: &mut Option<u64>,
) -> Result<(), Failure> {
    let subscription = letter.subscription.clone();
    *in_doubt = Some(letter.position);
    write(cell, LetterWrite::Remove { subscription, position: letter.position }).await?;
    *in_doubt = None;
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
