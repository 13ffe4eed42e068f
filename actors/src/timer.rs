//! Durable timers: stored with the events that set them, fired by one actor per partition.
//!
//! A timer is removed in the transaction of the command that it led to, so that it fires once in
//! effect however often it is tried. It may fire late, never early.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::aggregate::registry::AnyRegistry;
use crate::faults::{Faults, points};
use crate::journal::{Store, Timer};
use crate::planted::Bug;
use crate::retry::Backoff;
use crate::world::{Timestamp, World};

/// Timers fired at the same time: inside commands have room for that many at any time.
const FIRED_AT_ONCE: usize = 64;
/// The clock is looked at this often at least: it may have been moved.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Wakes the timers of a partition.
#[derive(Debug)]
pub struct TimerWake {
    earliest: AtomicI64,
    news: Notify,
}

impl Default for TimerWake {
    fn default() -> Self {
        Self { earliest: AtomicI64::new(i64::MAX), news: Notify::new() }
    }
}

impl TimerWake {
    /// A timer was set that is due then.
    pub fn set(&self, due: Timestamp) {
        if due.millis() < self.earliest.load(Ordering::Acquire) {
            self.earliest.fetch_min(due.millis(), Ordering::AcqRel);
            self.news.notify_one();
        }
    }

    /// The next one is due then: whoever sets a later one wakes nobody.
    fn next_is(&self, due: Timestamp) {
        self.earliest.fetch_min(due.millis(), Ordering::AcqRel);
    }

    /// The clock was moved.
    pub fn look(&self) {
        self.news.notify_one();
    }
}

/// What the timers of one partition need.
pub(crate) struct Timers {
    pub partition: u16,
    pub store: Arc<dyn Store>,
    pub world: Arc<dyn World>,
    pub registries: Arc<Vec<Arc<dyn AnyRegistry>>>,
    pub wake: Arc<TimerWake>,
    pub started: Timestamp,
    pub faults: Arc<Faults>,
}

impl Timers {
    /// Fires what is due, for ever.
    pub(crate) async fn run(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        loop {
            let woken = self.wake.news.notified();
            self.wake.earliest.store(i64::MAX, Ordering::Release);
            let now = self.world.now();
            match self.fire_due(now).await {
                Ok(true) => {}
                Ok(false) => {
                    backoff.reset();
                    let wait = self.until_next(now).await;
                    let _ = tokio::time::timeout(wait, woken).await;
                }
                Err(error) => {
                    tracing::warn!(partition = self.partition, %error, "timers cannot be read now");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Fires some; whether there may be more.
    async fn fire_due(&self, now: Timestamp) -> Result<bool, crate::journal::Error> {
        let read_at = tokio::time::Instant::now();
        let mut due = self.store.timers_due(self.partition, now, FIRED_AT_ONCE).await?;
        if self.faults.planted(Bug::TimerLostOnRestart) {
            due.retain(|timer| timer.due >= self.started);
        }
        let many = due.len() == FIRED_AT_ONCE;
        let mut firing = tokio::task::JoinSet::new();
        for timer in due {
            match self.registry(&timer) {
                Some(registry) => {
                    points::reach("timer.before_fire").await;
                    firing.spawn(async move { registry.fire(timer, read_at).await });
                }
                None => {
                    tracing::error!(aggregate_type = %timer.key.aggregate_type, timer = timer.key.name, "a timer of an unknown type of aggregate stays due");
                }
            }
        }
        // Timers that stay due must not make this a busy loop.
        let mut any = false;
        while let Some(fired) = firing.join_next().await {
            match fired {
                Ok(fired) => any |= fired,
                Err(error) => tracing::error!(%error, "firing a timer panicked; it stays due"),
            }
        }
        if any {
            points::reach("timer.after_fire").await;
        }
        Ok(many && any)
    }

    fn registry(&self, timer: &Timer) -> Option<Arc<dyn AnyRegistry>> {
        let wanted = &*timer.key.aggregate_type;
        self.registries.iter().find(|registry| registry.aggregate_type() == wanted).cloned()
    }

    async fn until_next(&self, now: Timestamp) -> Duration {
        let Ok(Some(due)) = self.store.next_timer(self.partition).await else { return LOOK_EVERY };
        self.wake.next_is(due);
        match due > now {
            true => due.since(now).min(LOOK_EVERY),
            // Still due though it was tried: not at once again.
            false => Duration::from_millis(250),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_woken(wake: &TimerWake) -> bool {
        tokio::time::timeout(Duration::ZERO, wake.news.notified()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_due_before_the_next_one_wakes() {
        let (wake, at) = (TimerWake::default(), Timestamp::from_millis);
        wake.set(at(20));
        assert!(is_woken(&wake).await, "nothing was known of");
        wake.next_is(at(10));
        wake.set(at(11));
        wake.set(at(10));
        assert!(!is_woken(&wake).await);
        wake.set(at(9));
        assert!(is_woken(&wake).await);
        wake.look();
        assert!(is_woken(&wake).await, "the clock was moved");
    }
}
