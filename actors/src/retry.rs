//! What becomes of work that failed: the kinds of failure, and the schedule of retries.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::world::World;

/// The three kinds of failure; the kind alone decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It may work next time (network, lock, time limit): retried, then a dead letter.
    Transient,
    /// It never will (invalid data, a broken rule, an unknown version): a dead letter at once.
    Permanent,
    /// Something everybody needs is down (database, credentials): the subscription pauses with
    /// nothing lost, and probes until it is back.
    System,
}

impl FailureKind {
    /// The kind's name in metrics and letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::System => "system",
        }
    }
}

/// A failure of a handler: its kind and a message for the people who run the service. The message
/// must hold no personal data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// What happened.
    pub message: String,
    /// How long it is of no use to try again, where whoever was asked said so: no retry comes sooner.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// It may work next time.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Transient, message)
    }

    /// It never will work.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Permanent, message)
    }

    /// Something everybody needs is down.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(FailureKind::System, message)
    }

    /// The same, and no sooner than after this wait. The caller bounds it: the lane waits as long.
    pub fn not_before(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }
}

/// When to try again after a transient failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How many times after the first try.
    pub max_retries: u32,
    /// The first wait.
    #[serde(rename = "retry_delay_ms", with = "millis")]
    pub retry_delay: Duration,
    /// Whether each wait is twice the one before.
    pub exponential_backoff: bool,
    /// No wait is longer.
    #[serde(rename = "max_retry_delay_ms", with = "millis")]
    pub max_retry_delay: Duration,
    /// Each wait is moved by up to this part of itself, up or down.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 3,
            retry_delay: Duration::from_secs(1),
            exponential_backoff: true,
            max_retry_delay: Duration::from_secs(30),
            jitter: 0.1,
        }
    }
}

impl RetryPolicy {
    /// The wait before retry number `retry` (from 1), without jitter; none when they are used up.
    pub fn delay(&self, retry: u32) -> Option<Duration> {
        if retry == 0 || retry > self.max_retries {
            return None;
        }
        let factor = if self.exponential_backoff {
            1u32.checked_shl(retry - 1).unwrap_or(u32::MAX)
        } else {
            1
        };
        Some(self.retry_delay.saturating_mul(factor).min(self.max_retry_delay))
    }

    /// `delay` moved by the policy's jitter.
    pub fn jittered(&self, delay: Duration, world: &dyn World) -> Duration {
        delay.mul_f64(1.0 + self.jitter * (2.0 * world.unit() - 1.0))
    }
}

/// What becomes of an event that its subscriber could not handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same event again, after this wait (before jitter); the order is kept.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// Set aside, visible, and worked by hand.
    DeadLetter,
    /// The world is unwell: the circuit opens and nothing is lost.
    Pause,
}

/// The verdict on a failed attempt (from 1).
pub fn verdict(kind: FailureKind, attempt: u32, policy: &RetryPolicy) -> Verdict {
    match (kind, policy.delay(attempt)) {
        (FailureKind::System, _) => Verdict::Pause,
        (FailureKind::Permanent, _) | (FailureKind::Transient, None) => Verdict::DeadLetter,
        (FailureKind::Transient, Some(after)) => Verdict::Retry { after },
    }
}

/// Doubling waits with a cap, for the runtime's own restarts and probes.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of `first`, twice that, and so on, up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The next wait.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        self.first.saturating_mul(factor).min(self.max)
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(delay: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_verdict() {
        let policy = RetryPolicy::default();
        let retry = |secs| Verdict::Retry { after: Duration::from_secs(secs) };
        let table = [
            (FailureKind::Transient, 1, retry(1)),
            (FailureKind::Transient, 2, retry(2)),
            (FailureKind::Transient, 3, retry(4)),
            (FailureKind::Transient, 4, Verdict::DeadLetter),
            (FailureKind::Permanent, 1, Verdict::DeadLetter),
            (FailureKind::System, 1, Verdict::Pause),
            (FailureKind::System, 9, Verdict::Pause),
        ];
        for (kind, attempt, expected) in table {
            assert_eq!(verdict(kind, attempt, &policy), expected, "{kind:?} {attempt}");
        }
    }

    #[test]
    fn no_wait_is_longer_than_the_cap_and_constant_waits_stay_constant() {
        let long = RetryPolicy { max_retries: 40, ..RetryPolicy::default() };
        assert!((1..=40).all(|n| long.delay(n).unwrap() <= Duration::from_secs(30)));
        let constant = RetryPolicy { exponential_backoff: false, ..RetryPolicy::default() };
        assert_eq!(constant.delay(3), Some(Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn jitter_stays_within_its_part() {
        let world = crate::world::SeededWorld::new(1);
        let policy = RetryPolicy::default();
        for _ in 0..1000 {
            let wait = policy.jittered(Duration::from_secs(10), &world).as_secs_f64();
            assert!((9.0..=11.0).contains(&wait), "{wait}");
        }
    }
}
