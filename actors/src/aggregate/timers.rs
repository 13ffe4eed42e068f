//! What an actor knows of its aggregate's timers: what it changed itself, durable or not.
//!
//! A due timer is read from the journal before its job is queued. Meanwhile it may have been set
//! anew or cleared, so the actor looks again before it fires: a timer never fires before the time
//! that it was last set to.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::actor::RECENT_FOR;
use super::actor::RECENT_MAX;
use super::registry::LookedUp;
use crate::journal::Timer;
use crate::world::Timestamp;

/// Whether a timer that was read as due is still the one that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is.
    Set,
    /// It has fired, was cleared, or is due at another time.
    Gone,
    /// It may have been changed by an earlier life after it was read: the journal knows.
    AskJournal,
}

pub(super) struct KnownTimers {
    /// When each is due that was changed in this life; none: it is not set.
    changed: HashMap<String, (Instant, Option<Timestamp>)>,
    in_order: VecDeque<(Instant, String)>,
    /// Every change after this is here.
    complete_since: Instant,
}

impl KnownTimers {
    pub(super) fn new() -> Self {
        let complete_since = Instant::now();
        Self { changed: HashMap::new(), in_order: VecDeque::new(), complete_since }
    }

    /// Notes a change.
    pub(super) fn note(&mut self, name: &str, due: Option<Timestamp>) {
        let now = Instant::now();
        self.changed.insert(name.to_owned(), (now, due));
        self.in_order.push_back((now, name.to_owned()));
        while let Some((at, name)) = self.in_order.front() {
            if self.in_order.len() <= RECENT_MAX && now.duration_since(*at) <= RECENT_FOR {
                break;
            }
            if self.changed.get(name).is_some_and(|(changed, _)| changed == at) {
                self.changed.remove(name);
            }
            self.complete_since = *at;
            self.in_order.pop_front();
        }
    }

    /// How a timer stands that the journal gave as due to a look-up.
    pub(super) fn standing(&self, timer: &Timer, looked_up: LookedUp) -> Standing {
        match self.changed.get(&timer.key.name) {
            Some((_, due)) if *due == Some(timer.due) => Standing::Set,
            Some(_) => Standing::Gone,
            None if looked_up.since(self.complete_since) => Standing::Set,
            None => Standing::AskJournal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::journal::TimerKey;

    fn timer(due: i64) -> Timer {
        let key = TimerKey {
            aggregate_type: "test".into(),
            aggregate_id: uuid::Uuid::nil(),
            name: "ring".to_owned(),
        };
        Timer { key, due: Timestamp::from_millis(due) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_stands_as_it_was_last_set() {
        let mut known = KnownTimers::new();
        let before = LookedUp { at: Some(Instant::now()) };
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = LookedUp { at: Some(Instant::now()) };
        assert_eq!(known.standing(&timer(5), before), Standing::AskJournal);
        assert_eq!(known.standing(&timer(5), later), Standing::Set);
        known.note("ring", Some(Timestamp::from_millis(7)));
        assert_eq!(known.standing(&timer(5), before), Standing::Gone);
        assert_eq!(known.standing(&timer(7), before), Standing::Set);
        known.note("ring", None);
        assert_eq!(known.standing(&timer(7), later), Standing::Gone);
        tokio::time::advance(RECENT_FOR * 2).await;
        known.note("other", None);
        assert_eq!(known.standing(&timer(7), later), Standing::AskJournal, "it was forgotten");
    }
}
