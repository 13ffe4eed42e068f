//! Circuit breakers: when something that everybody needs is down, nobody asks it any more, and one
//! probe at a time finds out when it is back. Each subscription has one in each partition and waits
//! for it, with nothing lost; what calls a service outside may have one too and
//! does without it meanwhile ([`Circuit::enter`]).

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

/// How a circuit stands.
#[derive(Debug, Clone)]
pub struct CircuitState {
    /// `closed`, `half_open` or `open`.
    pub name: &'static str,
    /// Failures since it was well.
    pub failures: u32,
    /// When an open one is tried.
    pub probe: Option<Instant>,
    /// What failed last, since it was well.
    pub error: Option<String>,
}

/// A circuit breaker.
#[derive(Debug)]
pub struct Circuit {
    target: &'static str,
    partition: Option<u16>,
    policy: CircuitPolicy,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    state: State,
    failures: u32,
    error: Option<String>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One caller is trying.
    Probing,
}

impl Circuit {
    /// A closed one, before what is called so.
    pub fn new(target: &'static str, policy: CircuitPolicy) -> Self {
        Self::of(target, None, policy)
    }

    /// That of a subscription in a partition.
    pub(crate) fn of(
        target: &'static str,
        partition: impl Into<Option<u16>>,
        policy: CircuitPolicy,
    ) -> Self {
        let partition = partition.into();
        let backoff = Backoff::new(policy.cooldown, policy.cooldown_max);
        let inner = Inner { state: State::Closed, failures: 0, error: None, backoff };
        let inner = Mutex::new(inner);
        let circuit = Self { target, partition, policy, inner, changed: Notify::new() };
        circuit.report(0.0);
        circuit
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is behind it.
    pub fn target(&self) -> &'static str {
        self.target
    }

    /// How it stands.
    pub fn state(&self) -> CircuitState {
        let inner = self.lock();
        let (name, probe) = match inner.state {
            State::Closed => ("closed", None),
            State::Open { until } => ("open", Some(until)),
            State::Probing => ("half_open", None),
        };
        CircuitState { name, failures: inner.failures, probe, error: inner.error.clone() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.state().name
    }

    /// When the next probe may go out, while the circuit is open.
    pub(crate) fn opens_again(&self) -> Option<Instant> {
        self.state().probe
    }

    /// Leave for one attempt, if it may be made now: the circuit is closed, or this is the probe. What
    /// came of it is to be told; to drop it is to say that there was no answer.
    pub fn enter(&self) -> Option<Attempt<'_>> {
        self.leave().ok().map(|_| Attempt { circuit: self, told: false })
    }

    /// Leave: whether this is the probe. Or until when there is none; nobody knows when while a probe is
    /// out.
    fn leave(&self) -> Result<bool, Option<Instant>> {
        let mut inner = self.lock();
        match inner.state {
            State::Closed => Ok(false),
            State::Open { until } if until <= Instant::now() => {
                inner.state = State::Probing;
                self.report(1.0);
                Ok(true)
            }
            State::Open { until } => Err(Some(until)),
            State::Probing => Err(None),
        }
    }

    /// Waits until an attempt may be made: the circuit is closed, or this is the probe. A probe that is
    /// dropped had no answer; of other attempts that says nothing.
    pub(crate) async fn admit(&self) -> Attempt<'_> {
        loop {
            let changed = self.changed.notified();
            let wait_until = match self.leave() {
                Ok(is_probe) => return Attempt { circuit: self, told: !is_probe },
                Err(wait_until) => wait_until,
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
    pub(crate) fn well(&self) {
        let mut inner = self.lock();
        inner.failures = 0;
        inner.error = None;
        if !matches!(inner.state, State::Closed) {
            inner.state = State::Closed;
            inner.backoff.reset();
            self.report(0.0);
            self.changed.notify_waiters();
            tracing::info!(target = self.target, "the circuit is closed again");
        }
    }

    /// An attempt failed because of the world.
    pub(crate) fn unwell(&self, error: &str) {
        let mut inner = self.lock();
        inner.failures = inner.failures.saturating_add(1);
        inner.error = Some(error.to_owned());
        if inner.failures < self.policy.failures && matches!(inner.state, State::Closed) {
            return;
        }
        let wait = inner.backoff.next_delay();
        inner.state = State::Open { until: Instant::now() + wait };
        self.report(2.0);
        self.changed.notify_waiters();
        tracing::error!(
            target = self.target,
            error,
            wait_ms = wait.as_millis(),
            "the circuit is open; nothing is lost, a probe follows"
        );
    }

    fn report(&self, value: f64) {
        match self.partition {
            Some(partition) => metrics::gauge!("souk_circuit_state", "target" => self.target, "partition" => partition.to_string()),
            None => metrics::gauge!("souk_circuit_state", "target" => self.target),
        }
        .set(value);
    }
}

/// An attempt that a circuit let through.
#[derive(Debug)]
#[must_use = "to drop it is to say that there was no answer"]
pub struct Attempt<'a> {
    circuit: &'a Circuit,
    told: bool,
}

impl Attempt<'_> {
    /// It has ended; what came of it is told next, by [`Circuit::well`] or [`Circuit::unwell`].
    pub(crate) fn ended(mut self) {
        self.told = true;
    }

    /// There was an answer.
    pub fn well(mut self) {
        self.told = true;
        self.circuit.well();
    }

    /// There was none, because of this.
    pub fn unwell(mut self, error: &str) {
        self.told = true;
        self.circuit.unwell(error);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.circuit.unwell("no answer in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_probe_at_a_time_until_it_is_well() {
        let circuit = Circuit::of("test", 0, CircuitPolicy::default());
        circuit.admit().await.ended();
        assert_eq!(circuit.opens_again(), None);
        circuit.unwell("down");
        assert_eq!(circuit.name(), "open");
        let began = Instant::now();
        assert_eq!(circuit.opens_again(), Some(began + Duration::from_secs(1)));
        circuit.admit().await.ended();
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        assert_eq!(circuit.name(), "half_open");
        let second = tokio::time::timeout(Duration::from_secs(60), circuit.admit()).await;
        assert!(second.is_err(), "the probe is still out");
        circuit.unwell("still down");
        let began = Instant::now();
        circuit.admit().await.ended();
        assert_eq!(began.elapsed(), Duration::from_secs(2), "the wait doubles");
        circuit.well();
        circuit.admit().await.ended();
        assert_eq!(circuit.name(), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_can_do_without_is_told_so_at_once() {
        let policy = CircuitPolicy { failures: 3, ..CircuitPolicy::default() };
        let circuit = Circuit::new("test", policy);
        circuit.enter().unwrap().unwell("down");
        circuit.enter().unwrap().well();
        assert_eq!(circuit.state().failures, 0, "only what follows one another counts");
        for _ in 0..2 {
            circuit.enter().unwrap().unwell("down");
            assert_eq!(circuit.name(), "closed");
        }
        // Given up before there was an answer.
        drop(circuit.enter());
        let state = circuit.state();
        assert_eq!((state.name, state.failures), ("open", 3));
        assert_eq!(state.error.as_deref(), Some("no answer in time"));
        assert!(circuit.enter().is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        let probe = circuit.enter().unwrap();
        assert_eq!(circuit.name(), "half_open");
        assert!(circuit.enter().is_none(), "one probe at a time");
        drop(probe);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(circuit.enter().is_none(), "the wait doubles");
        tokio::time::advance(Duration::from_secs(1)).await;
        circuit.enter().unwrap().well();
        assert_eq!((circuit.name(), circuit.state().error), ("closed", None));
    }

    /// As when the lane that tries ends on the way.
    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_had_no_answer() {
        let circuit = Circuit::of("test", 0, CircuitPolicy::default());
        drop(circuit.admit().await);
        assert_eq!((circuit.name(), circuit.state().failures), ("closed", 0));
        circuit.unwell("down");
        drop(circuit.admit().await);
        assert_eq!(circuit.name(), "open", "the next one is the probe");
        let began = Instant::now();
        circuit.admit().await.ended();
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        circuit.well();
        assert_eq!(circuit.name(), "closed");
    }
}
