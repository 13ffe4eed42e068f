//! Room for a subscription's letters in one partition. When it is used up the subscription stands
//! still, with nothing lost, until enough of them are worked: letters that nobody looks at must not
//! grow without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The room during one life of a subscription's actor.
#[derive(Debug, Default)]
pub(super) struct Room {
    max: usize,
    /// Letters, and events in hand that may become one.
    taken: AtomicUsize,
    letters: AtomicUsize,
    blocked_keys: AtomicUsize,
    full: AtomicBool,
    changed: Notify,
}

/// Room for one more letter, given back when the event in hand is done.
#[derive(Debug)]
pub(super) struct Place(Arc<Room>);

impl Drop for Place {
    fn drop(&mut self) {
        less(&self.0.taken);
        self.0.changed.notify_waiters();
    }
}

impl Room {
    /// Room for `max` letters, at least one, of which there are so many, in so many blocked keys.
    pub(super) fn new(max: usize, letters: usize, blocked_keys: usize) -> Arc<Self> {
        Arc::new(Self {
            max: max.max(1),
            taken: AtomicUsize::new(letters),
            letters: AtomicUsize::new(letters),
            blocked_keys: AtomicUsize::new(blocked_keys),
            full: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    /// Room for the letter that an event may become; none: everything is taken.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        if self.is_full() {
            return None;
        }
        let more = |taken| (taken < self.max).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.ok().map(|_| Place(self.clone()))
    }

    /// How many events may be taken in hand at once.
    pub(super) fn left(&self) -> usize {
        if self.is_full() { 0 } else { self.max.saturating_sub(self.letters()) }
    }

    /// Waits until something changes. Made before the look that it follows.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    pub(super) fn letters(&self) -> usize {
        self.letters.load(Ordering::Acquire)
    }

    pub(super) fn blocked_keys(&self) -> usize {
        self.blocked_keys.load(Ordering::Acquire)
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Whether the letters have used it up and not enough of them are gone since.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Whether it has become full just now: it is used up, and was not known to be.
    pub(super) fn fills(&self) -> bool {
        self.letters() >= self.max && !self.full.swap(true, Ordering::AcqRel)
    }

    /// A letter more.
    pub(super) fn add(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
        self.letters.fetch_add(1, Ordering::AcqRel);
    }

    /// A letter less. Whether there is room again: once a tenth of it is free, so that the
    /// subscription does not stop and go with every letter.
    pub(super) fn remove(&self) -> bool {
        less(&self.taken);
        let left = less(&self.letters);
        let goes_on = left <= self.max - self.max.div_ceil(10);
        let relieved = goes_on && self.full.swap(false, Ordering::AcqRel);
        self.changed.notify_waiters();
        relieved
    }

    /// A key more that waits behind a letter.
    pub(super) fn block(&self) {
        self.blocked_keys.fetch_add(1, Ordering::AcqRel);
    }

    /// A key less.
    pub(super) fn unblock(&self) {
        less(&self.blocked_keys);
    }
}

/// One less, and how many that leaves. A letter whose store had an unknown outcome when the actor
/// counted may not have been counted, so there is not always one to take away.
fn less(count: &AtomicUsize) -> usize {
    let one_less = |now: usize| Some(now.saturating_sub(1));
    let before = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
    before.unwrap_or_default().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_hand_count_as_letters_until_they_are_done() {
        let room = Room::new(2, 1, 0);
        let place = room.take().unwrap();
        assert!(room.take().is_none());
        assert!(!room.fills(), "an event in hand is no letter yet");
        drop(place);
        assert!(room.take().is_some());
    }

    #[test]
    fn a_letter_that_was_not_counted_can_go() {
        let room = Room::new(2, 0, 0);
        assert!(!room.remove());
        assert_eq!((room.letters(), room.left()), (0, 2));
        assert!(room.take().is_some());
    }

    #[test]
    fn it_goes_on_only_when_a_tenth_is_free() {
        let room = Room::new(20, 20, 0);
        assert!(room.take().is_none());
        assert!(room.fills());
        assert!(!room.fills(), "it is known");
        assert!(!room.remove());
        assert!(room.take().is_none(), "one is not enough");
        assert!(room.remove());
        assert!(room.take().is_some());
    }
}
