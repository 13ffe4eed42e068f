//! The circuit breaker of a subscription: when something that everybody needs is down, delivery
//! pauses with nothing lost, and one probe at a time finds out when it is back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::retry::Backoff;

/// When a circuit opens, and how long it stays open.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitPolicy {
    /// So many system failures in a row open it.
    pub failures: u32,
    /// The first wait before a probe; each failed probe doubles it.
    pub cooldown: Duration,
    /// No wait is longer.
    pub cooldown_max: Duration,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self {
            failures: 1,
            cooldown: Duration::from_secs(1),
            cooldown_max: Duration::from_secs(30),
        }
    }
}

#[derive(Debug)]
pub(super) struct Circuit {
    target: &'static str,
    partition: u16,
    policy: CircuitPolicy,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    state: State,
    failures: u32,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One lane is trying.
    Probing,
}

impl Circuit {
    pub(super) fn new(target: &'static str, partition: u16, policy: CircuitPolicy) -> Self {
        let backoff = Backoff::new(policy.cooldown, policy.cooldown_max);
        let inner = Mutex::new(Inner { state: State::Closed, failures: 0, backoff });
        let circuit = Self { target, partition, policy, inner, changed: Notify::new() };
        circuit.report(0.0);
        circuit
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &'static str {
        match self.lock().state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::Probing => "half_open",
        }
    }

    /// When the next probe may go out, while the circuit is open.
    pub(super) fn opens_again(&self) -> Option<Instant> {
        match self.lock().state {
            State::Open { until } => Some(until),
            State::Closed | State::Probing => None,
        }
    }

    /// Waits until an attempt may be made: the circuit is closed, or this is the probe.
    pub(super) async fn admit(&self) {
        loop {
            let changed = self.changed.notified();
            let wait_until = {
                let mut inner = self.lock();
                match inner.state {
                    State::Closed => return,
                    State::Open { until } if until <= Instant::now() => {
                        inner.state = State::Probing;
                        self.report(1.0);
                        return;
                    }
                    State::Open { until } => Some(until),
                    State::Probing => None,
                }
            };
            match wait_until {
                Some(until) => {
                    let _ = tokio::time::timeout_at(until, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// An attempt did not fail because of the world: the circuit closes.
    pub(super) fn well(&self) {
        let mut inner = self.lock();
        inner.failures = 0;
        if !matches!(inner.state, State::Closed) {
            inner.state = State::Closed;
            inner.backoff.reset();
            self.report(0.0);
            self.changed.notify_waiters();
            tracing::info!(subscription = self.target, "the circuit is closed again");
        }
    }

    /// An attempt failed because of the world. Whether the circuit is open now.
    pub(super) fn unwell(&self, error: &str) {
        let mut inner = self.lock();
        inner.failures += 1;
        if inner.failures < self.policy.failures && matches!(inner.state, State::Closed) {
            return;
        }
        let wait = inner.backoff.next_delay();
        inner.state = State::Open { until: Instant::now() + wait };
        self.report(2.0);
        self.changed.notify_waiters();
        tracing::error!(
            subscription = self.target,
            error,
            wait_ms = wait.as_millis(),
            "the circuit is open; nothing is lost, a probe follows"
        );
    }

    fn report(&self, value: f64) {
        metrics::gauge!("souk_circuit_state", "target" => self.target, "partition" => self.partition.to_string())
            .set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_probe_at_a_time_until_it_is_well() {
        let circuit = Circuit::new("test", 0, CircuitPolicy::default());
        circuit.admit().await;
        assert_eq!(circuit.opens_again(), None);
        circuit.unwell("down");
        assert_eq!(circuit.name(), "open");
        let began = Instant::now();
        assert_eq!(circuit.opens_again(), Some(began + Duration::from_secs(1)));
        circuit.admit().await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        assert_eq!(circuit.name(), "half_open");
        let second = tokio::time::timeout(Duration::from_secs(60), circuit.admit()).await;
        assert!(second.is_err(), "the probe is still out");
        circuit.unwell("still down");
        let began = Instant::now();
        circuit.admit().await;
        assert_eq!(began.elapsed(), Duration::from_secs(2), "the wait doubles");
        circuit.well();
        circuit.admit().await;
        assert_eq!(circuit.name(), "closed");
    }
}
