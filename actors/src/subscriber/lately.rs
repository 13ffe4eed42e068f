//! What a subscription is trying again, and what it did lately: for people who ask why something
//! takes so long. In memory, bounded, and gone with the process; nothing rests on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::event::StoredEvent;
use crate::retry::Failure;
use crate::world::Timestamp;

/// How many deliveries are remembered: enough to tell what is usual.
const REMEMBERED_MAX: usize = 1_024;
/// The window of the rate, in seconds.
const RATE_WINDOW: u64 = 60;

/// An event, or a page of them, that failed and will be tried again.
#[derive(Debug, Clone)]
pub(super) struct Retrying {
    last: u64,
    /// The first event.
    pub event_id: Uuid,
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
    /// Whether all that it led to was done before.
    pub duplicate: bool,
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
    /// Since when events are in hand, by the first position. At most one entry a lane.
    in_hand: BTreeMap<u64, Instant>,
    /// How long attempts took.
    attempts: VecDeque<Duration>,
    /// Seconds since the start, each with how many events were handled in it.
    seconds: VecDeque<(u64, u64)>,
}

/// The memory of one subscription in one partition.
#[derive(Debug)]
pub(super) struct Lately(Mutex<Inner>, Instant);

impl Default for Lately {
    fn default() -> Self {
        Self(Mutex::default(), Instant::now())
    }
}

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
        let span = span(events);
        if let Some((first, _)) = span {
            self.lock().in_hand.insert(first, Instant::now());
        }
        Trying { lately: self, span, first: events.first().map(|event| event.event_id) }
    }

    /// An attempt took so long.
    pub(super) fn attempted(&self, took: Duration) {
        let mut inner = self.lock();
        inner.attempts.push_back(took);
        if inner.attempts.len() > REMEMBERED_MAX {
            inner.attempts.pop_front();
        }
    }

    /// So many events were handled now.
    pub(super) fn count(&self, events: usize) {
        let (mut inner, second) = (self.lock(), self.1.elapsed().as_secs());
        match inner.seconds.back_mut() {
            Some((last, count)) if *last == second => *count += events as u64,
            _ => inner.seconds.push_back((second, events as u64)),
        }
        while inner.seconds.front().is_some_and(|(of, _)| of + RATE_WINDOW < second) {
            inner.seconds.pop_front();
        }
    }

    /// Events handled a second, over the last minute, or since the start if that is not so long ago.
    pub(super) fn rate(&self) -> f64 {
        let running = self.1.elapsed().as_secs();
        let from = running.saturating_sub(RATE_WINDOW);
        let inner = self.lock();
        // The second that is not over would say too little.
        let over = inner.seconds.iter().filter(|(of, _)| (from..running).contains(of));
        let events: u64 = over.map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = events as f64 / running.clamp(1, RATE_WINDOW) as f64;
        rate
    }

    /// How long nineteen of twenty of the remembered attempts took at most.
    pub(super) fn attempts_p95(&self) -> Option<Duration> {
        let mut took: Vec<_> = self.lock().attempts.iter().copied().collect();
        took.sort_unstable();
        nineteen_of_twenty(&took)
    }

    /// How long the event that is longest in a handler's hand, waits between attempts included, has
    /// been there.
    pub(super) fn longest_in_hand(&self) -> Option<Duration> {
        self.lock().in_hand.values().min().map(Instant::elapsed)
    }

    /// Everything that is being tried again, by position.
    pub(super) fn all_retrying(&self) -> Vec<(u64, Retrying)> {
        self.lock().retrying.iter().map(|(first, retrying)| (*first, retrying.clone())).collect()
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
        nineteen_of_twenty(&took)
    }
}

/// The value that nineteen of twenty are not above, of sorted ones.
fn nineteen_of_twenty<T: Copy>(sorted: &[T]) -> Option<T> {
    let place = (sorted.len() * 95).div_ceil(100).checked_sub(1)?;
    sorted.get(place).copied()
}

/// Some events in hand.
pub(super) struct Trying<'a> {
    lately: &'a Lately,
    span: Option<(u64, u64)>,
    first: Option<Uuid>,
}

impl Trying<'_> {
    /// They failed, and will be tried again.
    pub(super) fn again(
        &self,
        attempts: u32,
        failure: &Failure,
        (first_failed_at, last_failed_at): (Timestamp, Timestamp),
        next: Option<Instant>,
    ) {
        let (Some((first, last)), Some(event_id)) = (self.span, self.first) else { return };
        let failure = failure.clone();
        let retrying =
            Retrying { last, event_id, attempts, failure, first_failed_at, last_failed_at, next };
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
        let Some((first, _)) = self.span else { return };
        let mut inner = self.lately.lock();
        inner.in_hand.remove(&first);
        inner.retrying.remove(&first);
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
        Handled {
            started_at,
            ended_at: Timestamp::from_millis(1_000 + took),
            attempts: 1,
            duplicate: false,
        }
    }

    #[tokio::test]
    async fn what_is_tried_again_is_known_until_it_is_over() {
        let lately = Lately::default();
        let page = lately.trying(&events(5..=7));
        assert!(lately.longest_in_hand().is_some());
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
        assert_eq!(lately.longest_in_hand(), None);
        assert_eq!(lately.handled(6), Some(handled(3)));
        assert_eq!(lately.handled(8), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_of_the_last_minute() {
        let lately = Lately::default();
        for _ in 0..10 {
            lately.count(30);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((lately.rate() - 30.0).abs() < f64::EPSILON, "since the start: {}", lately.rate());
        tokio::time::advance(Duration::from_secs(50)).await;
        assert!((lately.rate() - 5.0).abs() < f64::EPSILON, "{}", lately.rate());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(lately.rate().abs() < f64::EPSILON, "{}", lately.rate());
        lately.count(1);
        assert_eq!(lately.lock().seconds.len(), 1, "what is over is forgotten");
        for took in 1..=100 {
            lately.attempted(Duration::from_millis(took));
        }
        assert_eq!(lately.attempts_p95(), Some(Duration::from_millis(95)));
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
