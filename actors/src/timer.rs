//! Durable timers: stored with the events that set them, fired by one actor per partition.
//!
//! A timer is removed in the transaction of the command that it led to, so that it fires once in
//! effect however often it is tried. It may fire late, never early.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

use crate::aggregate::registry::AnyRegistry;
use crate::faults::{Faults, points};
use crate::journal::{Store, Timer, TimerKey};
use crate::planted::Bug;
use crate::retry::Backoff;
use crate::world::{Timestamp, World};

/// Timers fired at the same time: inside commands have room for that many at any time.
const FIRED_AT_ONCE: usize = 64;
/// The clock is looked at this often at least: it may have been moved.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a timer that could not fire is left alone, at first and in the end.
const REST_MIN: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(5);
/// How long to wait for others to end before more are read, when all room was taken.
const TOGETHER: Duration = Duration::from_millis(5);

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

/// What is being fired, and what could not be.
#[derive(Default)]
struct Firing {
    tasks: JoinSet<bool>,
    under_way: HashMap<task::Id, TimerKey>,
    /// What stays due, and until when it is left alone: it stands in nobody's way.
    resting: HashMap<TimerKey, (Instant, Backoff)>,
}

impl Firing {
    fn room(&self) -> usize {
        FIRED_AT_ONCE.saturating_sub(self.under_way.len())
    }

    fn is_left_alone(&self, key: &TimerKey) -> bool {
        let rests = self.resting.get(key).is_some_and(|(until, _)| *until > Instant::now());
        rests || self.under_way.values().any(|other| other == key)
    }

    fn fire(&mut self, key: TimerKey, fire: impl Future<Output = bool> + Send + 'static) {
        let id = self.tasks.spawn(fire).id();
        self.under_way.insert(id, key);
    }

    /// Waits until one has ended; whether it fired. Where none is under way it waits for ever.
    async fn ended(&mut self) -> bool {
        let (id, fired) = match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok(ended)) => ended,
            Some(Err(error)) => {
                tracing::error!(%error, "firing a timer panicked; it stays due");
                (error.id(), false)
            }
        };
        match self.under_way.remove(&id) {
            Some(key) if fired => {
                self.resting.remove(&key);
            }
            Some(key) => self.rest(key),
            None => {}
        }
        fired
    }

    fn rest(&mut self, key: TimerKey) {
        let first = || (Instant::now(), Backoff::new(REST_MIN, REST_MAX));
        let (until, backoff) = self.resting.entry(key).or_insert_with(first);
        *until = Instant::now() + backoff.next_delay();
    }
}

impl Timers {
    /// Fires what is due, for ever.
    pub(crate) async fn run(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        let mut firing = Firing::default();
        loop {
            let woken = self.wake.news.notified();
            self.wake.earliest.store(i64::MAX, Ordering::Release);
            let now = self.world.now();
            match self.fire_due(now, &mut firing).await {
                Ok(()) => {
                    backoff.reset();
                    let wait = self.until_next(now).await;
                    self.wait(&mut firing, wait, woken).await;
                }
                Err(error) => {
                    tracing::warn!(partition = self.partition, %error, "timers cannot be read now");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Begins to fire what is due and not left alone, as much as there is room for.
    async fn fire_due(
        &self,
        now: Timestamp,
        firing: &mut Firing,
    ) -> Result<(), crate::journal::Error> {
        let room = firing.room();
        if room == 0 {
            return Ok(());
        }
        let read_at = Instant::now();
        // What is left alone is due too, and may be all that is due first.
        let most = room + firing.under_way.len() + firing.resting.len();
        let mut due = self.store.timers_due(self.partition, now, most).await?;
        if due.len() < most && !firing.resting.is_empty() {
            let all: HashSet<_> = due.iter().map(|timer| &timer.key).collect();
            firing.resting.retain(|key, _| all.contains(key));
        }
        if self.faults.planted(Bug::TimerLostOnRestart) {
            due.retain(|timer| timer.due >= self.started);
        }
        due.retain(|timer| !firing.is_left_alone(&timer.key));
        for timer in due.into_iter().take(room) {
            let key = timer.key.clone();
            match self.registry(&timer) {
                Some(registry) => {
                    points::reach("timer.before_fire").await;
                    firing.fire(key, async move { registry.fire(timer, read_at).await });
                }
                None => {
                    tracing::error!(aggregate_type = %key.aggregate_type, timer = key.name, "a timer of an unknown type of aggregate stays due");
                    firing.rest(key);
                }
            }
        }
        Ok(())
    }

    /// Waits until there may be something to fire, and room for it.
    async fn wait(&self, firing: &mut Firing, wait: Duration, woken: impl Future<Output = ()>) {
        let until = Instant::now() + wait;
        tokio::pin!(woken);
        loop {
            let has_room = firing.room() > 0;
            tokio::select! {
                biased;
                fired = firing.ended() => {
                    if fired {
                        points::reach("timer.after_fire").await;
                    }
                    if !has_room {
                        // The others of the same read are about as far.
                        let _ = tokio::time::timeout(TOGETHER, async {
                            while !firing.under_way.is_empty() {
                                firing.ended().await;
                            }
                        })
                        .await;
                        return;
                    }
                }
                () = &mut woken, if has_room => return,
                () = tokio::time::sleep_until(until), if has_room => return,
            }
        }
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
            false => REST_MIN,
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
