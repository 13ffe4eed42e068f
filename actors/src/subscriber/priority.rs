//! Which subscriptions go first when there is more to do than can be done.
//!
//! What is next gives way while much of what is more urgent is under way in its partition, for a
//! bounded time, and then takes all that there is: an order among those who compete for processors, the
//! writer and the store, and never a reason to fall behind.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// How urgent a subscription's work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Somebody waits for the outcome: gives way to nobody.
    Critical,
    /// Gives way to critical work, 25 ms at most before it takes what there is.
    #[default]
    Standard,
    /// May come a minute late: gives way to all other, 250 ms at most before it takes what there is.
    Batch,
}

/// So many attempts under way at once are much: with fewer there is nothing to compete for.
const CROWD: usize = 4;

impl Priority {
    /// The name that operators and metrics know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }

    /// How long it gives way at most before it takes what there is, if it does.
    pub(super) fn gives_way_for(self) -> Option<Duration> {
        match self {
            Self::Critical => None,
            Self::Standard => Some(Duration::from_millis(25)),
            Self::Batch => Some(Duration::from_millis(250)),
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// The attempts that are under way in one partition.
#[derive(Debug, Default)]
pub(crate) struct AtWork {
    counts: [AtomicUsize; 3],
    /// For those of each priority who give way.
    eased: [Notify; 3],
}

/// One attempt is under way as long as this is there.
pub(super) struct Working<'a>(&'a AtWork, Priority);

impl AtWork {
    /// An attempt of this priority begins.
    pub(super) fn begin(&self, priority: Priority) -> Working<'_> {
        self.counts[priority.index()].fetch_add(1, Ordering::AcqRel);
        Working(self, priority)
    }

    /// Whether so much is under way that is more urgent that this has to give way.
    pub(super) fn is_crowded(&self, priority: Priority) -> bool {
        self.more_urgent(priority) >= CROWD
    }

    fn more_urgent(&self, priority: Priority) -> usize {
        self.counts[..priority.index()].iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// Waits until it is not crowded for this priority.
    pub(super) async fn eased(&self, priority: Priority) {
        loop {
            let eased = self.eased[priority.index()].notified();
            if !self.is_crowded(priority) {
                return;
            }
            eased.await;
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let Self(at_work, priority) = self;
        at_work.counts[priority.index()].fetch_sub(1, Ordering::AcqRel);
        for waiting in [Priority::Standard, Priority::Batch] {
            if *priority < waiting && !at_work.is_crowded(waiting) {
                at_work.eased[waiting.index()].notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_urgent_gives_way_to_a_crowd_and_the_most_urgent_to_none() {
        let at_work = AtWork::default();
        let crowded = || {
            [Priority::Critical, Priority::Standard, Priority::Batch]
                .map(|priority| at_work.is_crowded(priority))
        };
        let begin = |priority| (0..CROWD).map(|_| at_work.begin(priority)).collect::<Vec<_>>();
        assert_eq!(crowded(), [false; 3]);
        let batches = begin(Priority::Batch);
        assert_eq!(crowded(), [false; 3], "nobody gives way to batches");
        let standard = begin(Priority::Standard);
        assert_eq!(crowded(), [false, false, true]);
        drop((batches, standard));
        let mut critical = begin(Priority::Critical);
        assert_eq!(crowded(), [false, true, true]);
        critical.pop();
        assert_eq!(crowded(), [false; 3], "a few are no crowd");
        let _standard = at_work.begin(Priority::Standard);
        assert_eq!(crowded(), [false, false, true], "together they are one");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_way_is_told_when_it_is_over() {
        let at_work = AtWork::default();
        let mut critical: Vec<_> = (0..CROWD).map(|_| at_work.begin(Priority::Critical)).collect();
        let eased = at_work.eased(Priority::Standard);
        tokio::pin!(eased);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut eased).await.is_err());
        critical.pop();
        tokio::time::timeout(Duration::from_secs(1), eased).await.expect("it is told");
        at_work.eased(Priority::Batch).await;
    }
}
