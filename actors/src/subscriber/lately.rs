//! What a subscription is trying again, and what it did lately: for people who ask why something
//! takes so long. In memory, bounded, and gone with the process; nothing rests on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::event::StoredEvent;
use crate::retry::Failure;
use crate::world::Timestamp;

/// How many deliveries are remembered: enough to tell what is usual.
const REMEMBERED_MAX: usize = 1_024;

/// An event, or a page of them, that failed and will be tried again.
#[derive(Debug, Clone)]
pub(super) struct Retrying {
    last: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// The latest failure.
    pub failure: Failure,
    /// The first failure.
    pub first_failed_at: Timestamp,
    /// The latest failure.
    pub last_failed_at: Timestamp,
    /// When it is tried again; none: when the circuit lets it.
    pub next: Option<Instant>,
}

/// When something was handled, and after how many attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    /// When it was tried first.
    pub started_at: Timestamp,
    /// When it was done.
    pub ended_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
}

impl Handled {
    /// How long it took from the first try, waits between the tries included, in milliseconds.
    pub fn took_ms(&self) -> u64 {
        u64::try_from(self.ended_at.since(self.started_at).as_millis()).unwrap_or(u64::MAX)
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// By the first position. At most one a lane: a lane tries one thing at a time.
    retrying: BTreeMap<u64, Retrying>,
    handled: VecDeque<(u64, u64, Handled)>,
}

/// The memory of one subscription in one partition.
#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<Inner>);

/// The first and last position of these events; none: there are no events.
fn span(events: &[Arc<StoredEvent>]) -> Option<(u64, u64)> {
    Some((events.first()?.position, events.last()?.position))
}

impl Lately {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the attempts at some events. When the value goes they are no longer being tried.
    pub(super) fn trying<'a>(&'a self, events: &[Arc<StoredEvent>]) -> Trying<'a> {
        Trying { lately: self, span: span(events), noted: false }
    }

    /// What is being tried again at a position.
    pub(super) fn retrying(&self, position: u64) -> Option<Retrying> {
        let inner = self.lock();
        let (_, retrying) = inner.retrying.range(..=position).next_back()?;
        (position <= retrying.last).then(|| retrying.clone())
    }

    /// The positions of what is being tried again, each with the last one of its page.
    pub(super) fn retried(&self) -> Vec<(u64, u64)> {
        self.lock().retrying.iter().map(|(first, retrying)| (*first, retrying.last)).collect()
    }

    /// When the event at a position was handled, if that is remembered.
    pub(super) fn handled(&self, position: u64) -> Option<Handled> {
        let inner = self.lock();
        let here = |(first, last, _): &&(u64, u64, Handled)| (*first..=*last).contains(&position);
        inner.handled.iter().rev().find(here).map(|(_, _, handled)| *handled)
    }

    /// How long nineteen of twenty of the remembered deliveries took at most, in milliseconds.
    pub(super) fn usual_ms(&self) -> Option<u64> {
        let mut took: Vec<_> =
            self.lock().handled.iter().map(|(_, _, handled)| handled.took_ms()).collect();
        took.sort_unstable();
        let place = (took.len() * 95).div_ceil(100).checked_sub(1)?;
        took.get(place).copied()
    }
}

/// Some events in hand.
pub(super) struct Trying<'a> {
    lately: &'a Lately,
    span: Option<(u64, u64)>,
    noted: bool,
}

impl Trying<'_> {
    /// They failed, and will be tried again.
    pub(super) fn again(
        &mut self,
        attempts: u32,
        failure: &Failure,
        (first_failed_at, last_failed_at): (Timestamp, Timestamp),
        next: Option<Instant>,
    ) {
        let Some((first, last)) = self.span else { return };
        self.noted = true;
        let failure = failure.clone();
        let retrying = Retrying { last, attempts, failure, first_failed_at, last_failed_at, next };
        self.lately.lock().retrying.insert(first, retrying);
    }

    /// They are handled.
    pub(super) fn done(self, handled: Handled) {
        let Some((first, last)) = self.span else { return };
        let mut inner = self.lately.lock();
        inner.handled.push_back((first, last, handled));
        if inner.handled.len() > REMEMBERED_MAX {
            inner.handled.pop_front();
        }
    }
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if let Some((first, _)) = self.span.filter(|_| self.noted) {
            self.lately.lock().retrying.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::testing::stored_event;

    fn events(positions: std::ops::RangeInclusive<u64>) -> Vec<Arc<StoredEvent>> {
        let event = stored_event("order.placed", "order", Uuid::nil(), &json!({}));
        positions.map(|position| Arc::new(StoredEvent { position, ..event.clone() })).collect()
    }

    fn handled(took: i64) -> Handled {
        let started_at = Timestamp::from_millis(1_000);
        Handled { started_at, ended_at: Timestamp::from_millis(1_000 + took), attempts: 1 }
    }

    #[tokio::test]
    async fn what_is_tried_again_is_known_until_it_is_over() {
        let lately = Lately::default();
        let mut page = lately.trying(&events(5..=7));
        assert!(lately.retrying(5).is_none(), "nothing has failed yet");
        let times = (Timestamp::from_millis(1), Timestamp::from_millis(2));
        page.again(2, &Failure::transient("away"), times, None);
        for (position, known) in [(4, false), (5, true), (6, true), (7, true), (8, false)] {
            assert_eq!(lately.retrying(position).is_some(), known, "{position}");
        }
        assert_eq!(lately.retried(), [(5, 7)]);
        assert_eq!(lately.retrying(6).unwrap().attempts, 2);
        page.done(handled(3));
        assert!(lately.retried().is_empty());
        assert_eq!(lately.handled(6), Some(handled(3)));
        assert_eq!(lately.handled(8), None);
    }

    #[test]
    fn what_is_usual_is_told_from_a_bounded_memory() {
        let lately = Lately::default();
        assert_eq!(lately.usual_ms(), None);
        for took in 1..=100 {
            lately.trying(&events(1..=1)).done(handled(took));
        }
        assert_eq!(lately.usual_ms(), Some(95));
        for position in 1..=2_000 {
            lately.trying(&events(position..=position)).done(handled(7));
        }
        assert_eq!(lately.usual_ms(), Some(7));
        assert!(lately.handled(2_000 - REMEMBERED_MAX as u64).is_none(), "forgotten");
        assert!(lately.handled(2_000).is_some());
    }
}
