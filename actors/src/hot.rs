//! Which single aggregates are busy, in fixed memory.
//!
//! Metrics stop at an aggregate's type: a label for each aggregate would know no bound. Here every
//! partition keeps three summaries of what its aggregates did lately: how many commands and reads they
//! took, how long those waited in the mailbox, and how long the aggregate worked on them. Each has
//! places for [`TRACKED_MAX`] aggregates; one that stands for more than that part of all there is to
//! do is among them for sure ([`space_saving`]).
//!
//! *Lately* counts less the longer ago it is: half as much after [`HALF_LIFE`]. Instead of making
//! everything lighter all the time, what is new is made heavier (forward decay), and now and then
//! all of it is brought down again.

pub mod space_saving;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use space_saving::{Counted, SpaceSaving};

/// Aggregates that each summary of a partition has places for.
pub const TRACKED_MAX: usize = 256;
/// After this long something counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(30);
/// Weights are brought down after so many half-lives: long before numbers lose their precision.
const HALF_LIVES_MAX: f64 = 40.0;

/// What aggregates are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// How many commands and reads they take.
    Commands,
    /// How long these wait in the mailbox.
    Waiting,
    /// How long the aggregate works on them.
    Busy,
}

/// A busy aggregate. What is not told of it is too little to be counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HotKey {
    /// Its type.
    pub aggregate_type: &'static str,
    /// Which one.
    pub aggregate_id: Uuid,
    /// Commands and reads a second.
    pub commands_per_second: Option<f64>,
    /// How many of them wait in its mailbox, on average.
    pub waiting: Option<f64>,
    /// The part of the time that it works: 1 is always.
    pub busy: Option<f64>,
    /// How much less the measure may be by which it was found: others had its place before.
    pub overestimate: f64,
}

/// All aggregates together, lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct HotTotal {
    /// Commands and reads a second.
    pub commands_per_second: f64,
    /// How many of them wait in mailboxes, on average.
    pub waiting: f64,
    /// How many aggregates work at the same time, on average.
    pub busy: f64,
}

impl std::iter::Sum for HotTotal {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, of| Self {
            commands_per_second: sum.commands_per_second + of.commands_per_second,
            waiting: sum.waiting + of.waiting,
            busy: sum.busy + of.busy,
        })
    }
}

/// What an aggregate has done in one go.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    commands: u32,
    waited: Duration,
    took: Duration,
}

impl Done {
    /// One more command or read: how long it waited, and how long it took.
    pub(crate) fn one(&mut self, waited: Duration, took: Duration) {
        self.commands += 1;
        self.waited += waited;
        self.took += took;
    }
}

type Key = (&'static str, Uuid);

/// The summaries of one partition.
pub(crate) struct Heat(Mutex<Inner>);

struct Inner {
    began: Instant,
    /// What happens now weighs as much as it is.
    even_at: Instant,
    commands: SpaceSaving<Key>,
    waited: SpaceSaving<Key>,
    took: SpaceSaving<Key>,
}

impl Default for Heat {
    fn default() -> Self {
        let now = Instant::now();
        let summary = || SpaceSaving::new(TRACKED_MAX);
        Self(Mutex::new(Inner {
            began: now,
            even_at: now,
            commands: summary(),
            waited: summary(),
            took: summary(),
        }))
    }
}

/// So many half-lives.
fn half_lives(time: Duration) -> f64 {
    time.as_secs_f64() / HALF_LIFE.as_secs_f64()
}

impl Inner {
    /// How much heavier than it is something weighs that happens now.
    fn growth(&self, now: Instant) -> f64 {
        half_lives(now.duration_since(self.even_at)).exp2()
    }

    /// What a weight is a second, had it always been so.
    fn per_second(&self, now: Instant) -> f64 {
        let lived = now.duration_since(self.began).max(Duration::from_secs(1));
        let seen =
            HALF_LIFE.as_secs_f64() / std::f64::consts::LN_2 * (1.0 - (-half_lives(lived)).exp2());
        1.0 / (seen * self.growth(now))
    }

    fn of(&self, measure: Measure) -> &SpaceSaving<Key> {
        match measure {
            Measure::Commands => &self.commands,
            Measure::Waiting => &self.waited,
            Measure::Busy => &self.took,
        }
    }
}

impl Heat {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An aggregate has done something.
    pub(crate) fn note(&self, aggregate_type: &'static str, id: Uuid, done: Done) {
        if done.commands == 0 {
            return;
        }
        let (now, key) = (Instant::now(), (aggregate_type, id));
        let mut inner = self.lock();
        let mut growth = inner.growth(now);
        if growth > HALF_LIVES_MAX.exp2() {
            let Inner { commands, waited, took, .. } = &mut *inner;
            [commands, waited, took].into_iter().for_each(|summary| summary.scale(1.0 / growth));
            inner.even_at = now;
            growth = 1.0;
        }
        inner.commands.add(&key, f64::from(done.commands) * growth);
        inner.waited.add(&key, done.waited.as_secs_f64() * growth);
        inner.took.add(&key, done.took.as_secs_f64() * growth);
    }

    /// The busiest, the busiest first.
    pub(crate) fn busiest(&self, measure: Measure, limit: usize) -> Vec<HotKey> {
        let now = Instant::now();
        let inner = self.lock();
        let per_second = inner.per_second(now);
        // What may be half of others' is no figure of it; of the measure that was asked for the error is told.
        let of = |key: &Key, by| {
            let counted = inner.of(by).get(key)?;
            let is_its_own = by == measure || counted.error * 2.0 <= counted.weight;
            is_its_own.then_some(counted.weight * per_second)
        };
        let told = |Counted { key, error, .. }: Counted<Key>| HotKey {
            aggregate_type: key.0,
            aggregate_id: key.1,
            commands_per_second: of(&key, Measure::Commands),
            waiting: of(&key, Measure::Waiting),
            busy: of(&key, Measure::Busy),
            overestimate: error * per_second,
        };
        inner.of(measure).heaviest(limit).into_iter().map(told).collect()
    }

    /// All together.
    pub(crate) fn total(&self) -> HotTotal {
        let now = Instant::now();
        let inner = self.lock();
        let total = |measure| inner.of(measure).total() * inner.per_second(now);
        HotTotal {
            commands_per_second: total(Measure::Commands),
            waiting: total(Measure::Waiting),
            busy: total(Measure::Busy),
        }
    }
}

impl HotKey {
    /// What it is compared by.
    pub(crate) fn measured(&self, measure: Measure) -> f64 {
        let value = match measure {
            Measure::Commands => self.commands_per_second,
            Measure::Waiting => self.waiting,
            Measure::Busy => self.busy,
        };
        value.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ten(took: u64) -> Done {
        let (waited, took) = (Duration::from_millis(20), Duration::from_millis(took));
        let mut done = Done::default();
        (0..10).for_each(|_| done.one(waited, took));
        done
    }

    fn about(value: Option<f64>, expected: f64) {
        let value = value.unwrap();
        assert!((value - expected).abs() < expected * 0.02, "{value}, and not {expected}");
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_what_they_are_from_the_start_and_hours_later() {
        let (heat, often, slow) = (Heat::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        for second in 1..=7_200_u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
            heat.note("one", often, ten(1));
            if second % 10 == 0 {
                heat.note("two", slow, ten(500));
            }
            if [10, 60, 7_200].contains(&second) {
                let busiest = heat.busiest(Measure::Commands, 1);
                assert_eq!(busiest[0].aggregate_id, often);
                let value = busiest[0].commands_per_second.unwrap();
                assert!((value - 10.0).abs() < 1.3, "{value} after {second} s");
            }
        }
        let busiest = heat.busiest(Measure::Commands, 9);
        about(busiest[0].commands_per_second, 10.1);
        about(busiest[0].waiting, 0.2);
        about(busiest[0].busy, 0.01);
        assert_eq!((busiest.len(), busiest[0].overestimate), (2, 0.0));
        let busiest = heat.busiest(Measure::Busy, 1);
        assert_eq!((busiest[0].aggregate_type, busiest[0].aggregate_id), ("two", slow));
        assert!(heat.total().commands_per_second > 10.0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_long_ago_counts_for_little() {
        let (heat, before, now) = (Heat::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        (0..100).for_each(|_| heat.note("one", before, ten(1)));
        tokio::time::advance(HALF_LIFE * 10).await;
        heat.note("one", now, ten(1));
        assert_eq!(heat.busiest(Measure::Commands, 1)[0].aggregate_id, now);
        // So long that weights are brought down in between.
        tokio::time::advance(HALF_LIFE * 2_000).await;
        heat.note("one", before, ten(1));
        let busiest = heat.busiest(Measure::Commands, 2);
        assert_eq!(busiest[0].aggregate_id, before);
        about(busiest[0].commands_per_second, 10.0 * std::f64::consts::LN_2 / 30.0);
        assert!(busiest[1].commands_per_second.unwrap() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_others_is_no_figure() {
        let (heat, slow) = (Heat::default(), Uuid::from_u128(7));
        tokio::time::advance(Duration::from_secs(1)).await;
        (0..10_000_u128).for_each(|id| heat.note("one", Uuid::from_u128(1_000 + id), ten(1)));
        heat.note("two", slow, ten(60_000));
        let busiest = heat.busiest(Measure::Busy, 1);
        assert_eq!(busiest[0].aggregate_id, slow);
        // It has the place of those who had about 400 commands together before it had ten.
        assert_eq!((busiest[0].commands_per_second, busiest[0].waiting), (None, None));
        assert!(busiest[0].busy.is_some_and(|busy| busy > 1.0), "{busiest:?}");
        let by_rate = heat.busiest(Measure::Commands, 1);
        assert!(by_rate[0].commands_per_second.is_some() && by_rate[0].overestimate > 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_has_a_bound() {
        let heat = Heat::default();
        let hot = Uuid::from_u128(7);
        tokio::time::advance(Duration::from_secs(1)).await;
        for id in 0..100_000_u128 {
            heat.note("one", Uuid::from_u128(1_000 + id), ten(1));
            if id % 50 == 0 {
                heat.note("one", hot, ten(1));
            }
        }
        let busiest = heat.busiest(Measure::Commands, usize::MAX);
        assert_eq!(busiest.len(), TRACKED_MAX);
        assert_eq!(busiest[0].aggregate_id, hot);
    }
}
