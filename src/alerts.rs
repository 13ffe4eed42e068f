//! Alerts from inside, for those without Prometheus: figures of subscriptions that are past their limit
//! become events, which streams and webhooks can ask for.
//!
//! The limits are those at which `grafana/alerts/alerts.rules.yml` warns. What is to wake people
//! belongs there: whoever watches from inside says nothing when the process is gone.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use souk_actors::command::CommandContext;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{PartitionStatus, SubscriptionStatus};
use tokio::time::MissedTickBehavior;

use crate::domain::alert::{Alert, AlertCommand, AlertObserved};
use crate::domain::service::{Service, ServiceCommand, ServiceError, ServiceErrorKind};

/// A figure of a subscription, and what it may be at most.
struct Limit {
    metric: &'static str,
    threshold: u64,
    value: fn(&SubscriptionStatus) -> u64,
}

fn most(status: &SubscriptionStatus, value: fn(&PartitionStatus) -> u64) -> u64 {
    status.partitions.iter().map(value).max().unwrap_or(0)
}

fn lag_seconds(of: &PartitionStatus) -> u64 {
    let lag = Duration::try_from_secs_f64(of.lag_seconds.unwrap_or(0.0));
    lag.map_or(0, |lag| lag.as_secs())
}

/// What everything that is told here belongs to. Each look is a cause of its own: an alert may be
/// triggered again.
const ALERTS: &str = "alerts";
/// The metric of circuits.
const CIRCUIT: &str = "souk_circuit_state";
/// How many errors wait to be recorded; of more the oldest are forgotten.
const ERRORS_MAX: usize = 1_000;

static LIMITS: [Limit; 5] = [
    Limit {
        metric: "souk_dlq_dead_letters",
        threshold: 100,
        value: |status| status.partitions.iter().map(|of| of.dlq_dead_letters as u64).sum(),
    },
    Limit {
        metric: "souk_dlq_full",
        threshold: 0,
        value: |status| most(status, |of| u64::from(of.state == "dlq_full")),
    },
    Limit {
        metric: "souk_subscription_damaged",
        threshold: 0,
        value: |status| most(status, |of| u64::from(of.state == "damaged")),
    },
    Limit {
        metric: "souk_subscription_lag_seconds",
        threshold: 10,
        value: |status| most(status, lag_seconds),
    },
    Limit {
        metric: CIRCUIT,
        threshold: 1,
        // One that is being probed has not closed: it would be over, and triggered again, with each probe.
        value: |status| most(status, |of| if of.circuit == "closed" { 0 } else { 2 }),
    },
];

/// A limit, the subscription, and its figure now.
type Figure = (&'static Limit, &'static str, u64);

fn figure(limit: &'static Limit, status: &SubscriptionStatus) -> Figure {
    (limit, status.name, (limit.value)(status))
}

fn figures(all: &[SubscriptionStatus]) -> Vec<Figure> {
    let of = |status| LIMITS.iter().map(move |limit| figure(limit, status));
    all.iter().flat_map(of).collect()
}

/// The watch of one service.
pub struct Watch {
    runtime: Runtime,
    interval: Duration,
    /// What was past its limit when it was looked at last.
    firing: HashSet<(&'static str, &'static str)>,
    /// Whether it is known what an earlier process left firing.
    is_known: bool,
    /// What went wrong and is not recorded yet.
    errors: VecDeque<ServiceError>,
}

impl Watch {
    /// Looks so often; never, when that is nothing.
    pub fn new(runtime: Runtime, interval: Duration) -> Self {
        Self { runtime, interval, firing: HashSet::new(), is_known: false, errors: VecDeque::new() }
    }

    /// Looks until it is dropped.
    pub async fn run(mut self) {
        if self.interval.is_zero() {
            return;
        }
        let mut every = tokio::time::interval(self.interval);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.look().await;
        }
    }

    /// Looks once. What cannot be recorded now is recorded with one of the next looks.
    async fn look(&mut self) {
        let figures = figures(&self.runtime.subscriptions().inspect().await);
        if !self.is_known {
            self.is_known = self.remember(&figures).await;
        }
        for (limit, subject, value) in figures {
            let (is_past, key) = (value > limit.threshold, (limit.metric, subject));
            let is_news = is_past != self.firing.contains(&key);
            if is_news && self.record(limit, subject, value).await {
                if is_past {
                    self.firing.insert(key);
                } else {
                    self.firing.remove(&key);
                }
            }
        }
        self.report().await;
    }

    /// Reads what an earlier process left firing; whether all of it could be read.
    async fn remember(&mut self, figures: &[Figure]) -> bool {
        let alerts = self.runtime.aggregate::<Alert>();
        for (limit, subject, _) in figures {
            let id = Alert::id_of(limit.metric, subject);
            match alerts.read_inside(id, |alert| alert.is_firing).await {
                Ok(done) if done.value => {
                    self.firing.insert((limit.metric, subject));
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Records what went wrong since the last look, and what could not be recorded then.
    async fn report(&mut self) {
        let world = self.runtime.world().clone();
        let crashes = self.runtime.take_crashes().into_iter();
        self.errors.extend(crashes.map(|crashed| ServiceError {
            kind: ServiceErrorKind::Panic,
            subject: crashed.aggregate_type.to_owned(),
            aggregate_id: Some(crashed.aggregate_id),
            error_id: crashed.error_id,
            at: world.now(),
        }));
        let behind = self.errors.len().saturating_sub(ERRORS_MAX);
        self.errors.drain(..behind);
        let services = self.runtime.aggregate::<Service>();
        while let Some(error) = self.errors.front().cloned() {
            let context = CommandContext::inside(&*world, ALERTS, "");
            let command = ServiceCommand::Report(error);
            if services.send(Service::id(), command, context, |_| ()).await.is_err() {
                return;
            }
            self.errors.pop_front();
        }
    }

    async fn record(&mut self, limit: &Limit, subject: &'static str, value: u64) -> bool {
        let (metric, threshold) = (limit.metric, limit.threshold);
        let world = self.runtime.world();
        let observed = AlertObserved {
            metric: metric.to_owned(),
            subject: subject.to_owned(),
            value,
            threshold,
            at: world.now(),
        };
        let context = CommandContext::inside(&**world, ALERTS, "");
        let alerts = self.runtime.aggregate::<Alert>();
        let id = Alert::id_of(metric, subject);
        let at = observed.at;
        let sent = alerts.send(id, AlertCommand::Observe(observed), context, |_| ()).await;
        if sent.is_ok() && metric == CIRCUIT && value > threshold {
            let (kind, subject) = (ServiceErrorKind::CircuitOpen, subject.to_owned());
            let error = ServiceError { kind, subject, aggregate_id: None, error_id: None, at };
            self.errors.push_back(error);
        }
        if sent.is_ok() && value > threshold {
            tracing::warn!(metric, subscription = subject, value, threshold, "an alert");
        } else if sent.is_ok() {
            tracing::info!(metric, subscription = subject, value, threshold, "an alert is over");
        }
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters_of(dlq_letters: usize, dlq_dead_letters: usize) -> SubscriptionStatus {
        let partition = PartitionStatus {
            dlq_letters,
            dlq_dead_letters,
            circuit: "closed",
            ..PartitionStatus::default()
        };
        let partitions = vec![partition.clone(), partition];
        SubscriptionStatus { partitions, ..SubscriptionStatus::default() }
    }

    /// An alert of letters that were skipped would be over only when they are discarded.
    #[test]
    fn letters_are_past_their_limit_by_those_that_are_dead() {
        let past = |status: SubscriptionStatus| {
            let figures = figures(&[status]).into_iter();
            let past = figures.filter(|(limit, _, value)| *value > limit.threshold);
            past.map(|(limit, _, value)| (limit.metric, value)).collect::<Vec<_>>()
        };
        assert_eq!(past(letters_of(500, 51)), [("souk_dlq_dead_letters", 102)]);
        assert!(past(letters_of(500, 50)).is_empty());
    }
}
