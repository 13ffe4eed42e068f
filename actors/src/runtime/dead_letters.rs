//! The way to the letters of all partitions: seen, grouped, worked.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::Runtime;
use crate::command::CommandContext;
use crate::dead_letter::fingerprint::normalised;
use crate::journal::{self, Letter, LetterFilter, LetterState};
use crate::oversight::{LettersWorked, Oversight, OversightCommand};
use crate::subscriber::{Cell, Redrive, RedriveError, Redriven, Work};
use crate::world::Timestamp;

/// Letters read at a time.
const PAGE: usize = 1_000;

/// Which letters are meant. Nothing set: all of them.
#[derive(Debug, Clone, Default)]
pub struct LetterQuery {
    /// One subscription only.
    pub subscription: Option<String>,
    /// One partition only.
    pub partition: Option<u16>,
    /// One key only.
    pub key: Option<Uuid>,
    /// One state only.
    pub state: Option<LetterState>,
    /// One class of failure only.
    pub class: Option<String>,
    /// One type of event only.
    pub event_type: Option<String>,
    /// One kind of failure only ([`Letter::fingerprint`]).
    pub fingerprint: Option<String>,
}

/// Where a letter stands in the list: partition, subscription, position.
pub type LetterPlace = (u16, String, u64);

/// A key's letters, as whoever works them needs to see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterQueue {
    /// The first, which everything else of the key waits behind; none: the key is not held up, and
    /// has skipped letters only.
    pub head: Option<Letter>,
    /// How many wait behind it.
    pub waiting: usize,
    /// Those that were set aside, by position; the first thousand.
    pub skipped: Vec<Letter>,
}

/// Letters that failed in the same way.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LetterGroup {
    /// Names the kind of failure.
    pub fingerprint: String,
    /// The subscription.
    pub subscription: Arc<str>,
    /// `transient` or `permanent`.
    pub class: String,
    /// The message, without what differs from letter to letter.
    pub message: String,
    /// How many letters failed so; those that wait behind them are not counted.
    pub count: usize,
    /// The first failure of them all.
    pub first_seen: Timestamp,
    /// The latest.
    pub last_seen: Timestamp,
    /// One of them: the one that failed last.
    pub example: Letter,
}

/// The dead letters of all partitions.
#[derive(Clone, Debug)]
pub struct DeadLetters(pub(super) Runtime);

impl DeadLetters {
    /// Letters, by partition, subscription and position.
    pub async fn list(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Letter>, journal::Error> {
        let subscription = subscription.map(str::to_owned);
        self.page(&LetterQuery { subscription, ..LetterQuery::default() }, None, limit).await
    }

    /// Up to `limit` of the letters that are meant, behind a place in the list.
    pub async fn page(
        &self,
        query: &LetterQuery,
        behind: Option<&LetterPlace>,
        limit: usize,
    ) -> Result<Vec<Letter>, journal::Error> {
        let mut found = Vec::new();
        let first = behind.map_or(0, |(partition, ..)| *partition);
        for partition in first..self.0.partitions() {
            if query.partition.is_some_and(|only| only != partition) {
                continue;
            }
            let here = behind.filter(|(of, ..)| *of == partition);
            let mut filter = LetterFilter {
                subscription: query.subscription.clone(),
                key: query.key,
                state: query.state,
                class: query.class.clone(),
                event_type: query.event_type.clone(),
                after: 0,
                behind: here.map(|(_, subscription, position)| (subscription.clone(), *position)),
            };
            loop {
                // Whose fingerprint fits is only known once it is read.
                let room = limit - found.len();
                let wanted = if query.fingerprint.is_some() { PAGE } else { room };
                let letters = self.0.0.store.letters(partition, &filter, wanted).await?;
                let more = letters.len() == wanted && query.fingerprint.is_some();
                let last = letters.last().map(|of| (of.subscription.to_string(), of.position));
                let fits = |letter: &Letter| {
                    query.fingerprint.is_none() || letter.fingerprint() == query.fingerprint
                };
                found.extend(letters.into_iter().filter(fits).take(room));
                if found.len() >= limit {
                    return Ok(found);
                }
                if !more {
                    break;
                }
                filter.behind = last;
            }
        }
        Ok(found)
    }

    /// A key's letters; none: it has none.
    pub async fn queue(
        &self,
        subscription: &str,
        partition: u16,
        key: Uuid,
    ) -> Result<Option<LetterQueue>, journal::Error> {
        let mut queue = LetterQueue { head: None, waiting: 0, skipped: Vec::new() };
        let subscription = Some(subscription.to_owned());
        let mut filter = LetterFilter { subscription, key: Some(key), ..LetterFilter::default() };
        loop {
            let letters = self.0.0.store.letters(partition, &filter, PAGE).await?;
            let Some(last) = letters.last() else { break };
            filter.after = last.position;
            for letter in letters {
                if letter.state == LetterState::Skipped {
                    queue.skipped.push(letter);
                } else if queue.head.is_none() {
                    queue.head = Some(letter);
                } else {
                    queue.waiting += 1;
                }
            }
        }
        queue.skipped.truncate(PAGE);
        Ok((queue.head.is_some() || !queue.skipped.is_empty()).then_some(queue))
    }

    /// The letters that failed, by kind of failure: the most frequent first.
    pub async fn groups(&self, query: &LetterQuery) -> Result<Vec<LetterGroup>, journal::Error> {
        let mut groups: BTreeMap<String, LetterGroup> = BTreeMap::new();
        let mut behind = None;
        loop {
            let letters = self.page(query, behind.as_ref(), PAGE).await?;
            let Some(last) = letters.last() else { break };
            behind = Some((last.partition, last.subscription.to_string(), last.position));
            for letter in letters {
                let Some(fingerprint) = letter.fingerprint() else { continue };
                match groups.get_mut(&fingerprint) {
                    Some(group) => group.add(letter),
                    None => {
                        groups.insert(fingerprint.clone(), LetterGroup::of(fingerprint, letter));
                    }
                }
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        Ok(groups)
    }

    /// The letters of events of a partition behind `after` up to `last`.
    pub async fn between(
        &self,
        partition: u16,
        after: u64,
        last: u64,
    ) -> Result<Vec<Letter>, journal::Error> {
        let mut found = Vec::new();
        for status in self.0.subscriptions().list() {
            let subscription = Some(status.name.to_owned());
            let limit = usize::try_from(last - after).unwrap_or(usize::MAX);
            let filter = LetterFilter { subscription, after, ..LetterFilter::default() };
            let letters = self.0.0.store.letters(partition, &filter, limit).await?;
            found.extend(letters.into_iter().filter(|letter| letter.position <= last));
        }
        Ok(found)
    }

    /// Whether a key of a subscription has letters.
    pub async fn of_key(
        &self,
        subscription: &str,
        partition: u16,
        key: Uuid,
    ) -> Result<bool, journal::Error> {
        let subscription = Some(subscription.to_owned());
        let filter = LetterFilter { subscription, key: Some(key), ..LetterFilter::default() };
        Ok(!self.0.0.store.letters(partition, &filter, 1).await?.is_empty())
    }

    fn cell(&self, subscription: &str, partition: u16) -> Option<Arc<Cell>> {
        let partition = self.0.0.partitions.get(usize::from(partition))?;
        partition.cells.iter().find(|cell| cell.subscription.name == subscription).cloned()
    }

    /// Works a key's letters after it is recorded who asked for it and why. `None`: there are no
    /// such letters. A request that does not fit the letters as they are changes nothing, and is
    /// recorded only if they changed in between.
    pub async fn redrive(
        &self,
        subscription: &str,
        partition: u16,
        key: Uuid,
        work: impl Into<Work>,
        context: CommandContext,
        reason: Option<String>,
    ) -> Result<Option<Redriven>, RedriveError> {
        let work = work.into();
        let Some(cell) = self.cell(subscription, partition) else { return Ok(None) };
        let position = match cell.letter_meant(key, work).await {
            Ok(letter) => letter.position,
            Err(RedriveError::Gone) => return Ok(None),
            Err(error) => return Err(error),
        };
        let at = self.0.world().now();
        let subscription = subscription.to_owned();
        let stream = Oversight::id_of(&subscription);
        let position = Some(position);
        let worked = LettersWorked { subscription, partition, key, position, reason, at };
        let command = match work.what {
            Redrive::Retry => OversightCommand::Retry(worked),
            Redrive::Skip => OversightCommand::Skip(worked),
            Redrive::Discard => OversightCommand::Discard(worked),
        };
        let oversight = self.0.aggregate::<Oversight>();
        let recorded = oversight.send(stream, command, context, |_| ()).await;
        let recorded = recorded.map_err(|error| error.to_failure())?.position;
        match cell.redrive(key, work).await {
            Ok(redriven) => Ok(Some(Redriven { recorded, ..redriven })),
            Err(RedriveError::Gone) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl LetterGroup {
    fn of(fingerprint: String, letter: Letter) -> Self {
        Self {
            fingerprint,
            subscription: letter.subscription.clone(),
            class: letter.class.clone(),
            message: normalised(&letter.error),
            count: 1,
            first_seen: letter.first_failed_at,
            last_seen: letter.last_failed_at,
            example: letter,
        }
    }

    fn add(&mut self, letter: Letter) {
        self.count += 1;
        self.first_seen = self.first_seen.min(letter.first_failed_at);
        if letter.last_failed_at >= self.last_seen {
            self.last_seen = letter.last_failed_at;
            self.example = letter;
        }
    }
}
