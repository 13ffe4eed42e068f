//! Waiting for read models: who decides by their rows has to know that nothing is on its way any more.
//!
//! An event that is a dead letter of a view counts as seen: whoever waited for those would stand still for as long as
//! nobody works them, and that there are some is told by itself.
//!
//! How long a view is behind is nobody's choice. Who is tried again waits for what there was the first time and
//! no more, and so gets there however much is written meanwhile.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use souk_actors::event::{Position, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use uuid::Uuid;

/// How long an attempt waits.
const WITHIN: Duration = Duration::from_secs(10);

/// Events of which it is kept where the journal was: more than a handler ever has in its hands at once.
const KEPT_MAX: usize = 256;

/// A view that was still behind when an attempt had waited long enough.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Behind {
    view: &'static str,
    at: Position,
}

/// For who can do nothing for any event until the view is there: the subscription waits with all of them.
impl From<Behind> for Failure {
    fn from(behind: Behind) -> Self {
        Self::system(behind.said())
    }
}

impl Behind {
    /// For who has urgent things to do for the next event whatever becomes of this one, which is tried again
    /// and is a letter in the end.
    pub(super) fn alone(self) -> Failure {
        Failure::transient(self.said())
    }

    fn said(&self) -> String {
        format!("{} has not come to {} yet", self.view, self.at)
    }
}

/// Waits until each of these views has everything up to each of these positions.
pub(super) async fn caught_up(
    runtime: &Runtime,
    views: &[&'static str],
    positions: &[Position],
) -> Result<(), Behind> {
    for &at in positions {
        for &view in views {
            if !runtime.subscriptions().wait_for(view, at, WITHIN).await {
                return Err(Behind { view, at });
            }
        }
    }
    Ok(())
}

/// Where the journal was when a handler looked at an event for the first time since the start.
#[derive(Debug, Default)]
pub(super) struct FirstHeads(Mutex<VecDeque<(Uuid, Vec<Position>)>>);

impl FirstHeads {
    /// Waits until each of these views has everything that had happened when this was first called for the event.
    pub(super) async fn caught_up(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        views: &[&'static str],
    ) -> Result<(), Behind> {
        let heads = self.of(event.event_id, || runtime.journal().heads());
        caught_up(runtime, views, &heads).await
    }

    fn of(&self, event_id: Uuid, now: impl FnOnce() -> Vec<Position>) -> Vec<Position> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, heads)) = kept.iter().rev().find(|(of, _)| *of == event_id) {
            return heads.clone();
        }
        // Whose were kept longest ago takes new ones if it comes again after all.
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        let heads = now();
        kept.push_back((event_id, heads.clone()));
        heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_tried_again_waits_for_what_there_was_at_first() {
        let heads = FirstHeads::default();
        let at = |position| move || vec![Position { partition: 0, position }];
        let event = Uuid::from_u128(1);
        assert_eq!(heads.of(event, at(7)), at(7)());
        assert_eq!(heads.of(event, at(9)), at(7)(), "what came since is not waited for");
        assert_eq!(heads.of(Uuid::from_u128(2), at(9)), at(9)());
        (10..10 + KEPT_MAX as u128 - 2).for_each(|id| drop(heads.of(Uuid::from_u128(id), at(1))));
        assert_eq!(heads.of(event, at(11)), at(7)());
        drop(heads.of(Uuid::from_u128(3), at(1)));
        assert_eq!(heads.of(event, at(11)), at(11)(), "one more than are kept");
        assert_eq!(heads.0.lock().unwrap().len(), KEPT_MAX);
    }
}
