//! Crashes of aggregates, kept until somebody takes note of them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

/// How many are kept: of more the oldest are forgotten, whose count stands in the metrics.
const KEPT_MAX: usize = 100;

/// An aggregate's actor panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crashed {
    /// The type of the aggregate.
    pub aggregate_type: &'static str,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// Under which id the log tells of it, where a command was being run.
    pub error_id: Option<Uuid>,
}

/// The crashes in a partition that nobody has taken note of.
#[derive(Debug, Default)]
pub(crate) struct Crashes(Mutex<VecDeque<Crashed>>);

impl Crashes {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Crashed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, crashed: Crashed) {
        let mut kept = self.lock();
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(crashed);
    }

    pub(crate) fn take(&self) -> Vec<Crashed> {
        self.lock().drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_each_is_taken_once() {
        let crashes = Crashes::default();
        let crashed = |id: u128| Crashed {
            aggregate_type: "one",
            aggregate_id: Uuid::from_u128(id),
            error_id: None,
        };
        (0..KEPT_MAX as u128 + 7).for_each(|id| crashes.note(crashed(id)));
        let taken = crashes.take();
        assert_eq!((taken.len(), &taken[0]), (KEPT_MAX, &crashed(7)));
        assert!(crashes.take().is_empty());
    }
}
