//! Supervision: what is restarted, how often, and what happens when that does not help.
//!
//! | child | crashes within the window | then |
//! | --- | --- | --- |
//! | an aggregate's actor | restarted at once, then with doubling waits | quarantined, for an operator to release |
//! | a subscription's actor | restarted with doubling waits | restarted at the longest wait, for ever: one subscription never takes its partition along |
//! | writer, broker, timers, dead letters | restarted with doubling waits | the partition is given up: the root drains and the process ends with an error |

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::aggregate::registry::Shared;
use crate::flag::Flag;

/// How often something may crash within a window, and how long to wait before each restart.
#[derive(Debug, Clone)]
pub struct RestartPolicy {
    /// This many crashes within the window are answered by restarts; one more is too many.
    pub restarts_max: usize,
    /// Older crashes are forgotten.
    pub window: Duration,
    /// The wait before the second restart; the first is at once, later ones wait twice as long.
    pub backoff: Duration,
    /// No wait is longer.
    pub backoff_max: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            restarts_max: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl RestartPolicy {
    /// The wait before the restart that answers the `crashes`-th crash within the window; none:
    /// that was one too many.
    pub fn delay(&self, crashes: usize) -> Option<Duration> {
        if crashes > self.restarts_max {
            return None;
        }
        Some(self.wait(crashes))
    }

    fn wait(&self, crashes: usize) -> Duration {
        if crashes <= 1 {
            return Duration::ZERO;
        }
        let doublings = u32::try_from(crashes - 2).unwrap_or(u32::MAX);
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.backoff.saturating_mul(factor).min(self.backoff_max)
    }
}

/// The supervisor of a partition's aggregates: it hands each end of an actor to its slot, which
/// decides under its own lock.
pub(crate) struct AggregateSupervisor {
    pub shared: Arc<Shared>,
}

impl Actor for AggregateSupervisor {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<()>,
        _arguments: (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<()>,
        event: SupervisionEvent,
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let (who, failure) = match event {
            SupervisionEvent::ActorTerminated(who, _, _) => (who, None),
            SupervisionEvent::ActorFailed(who, error) => (who, Some(error.to_string())),
            _ => return Ok(()),
        };
        if let Some((_, slot)) = self.shared.watched.remove(&who.get_id()) {
            slot.ended(failure);
        }
        Ok(())
    }
}

type Life = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Something that runs until it is done, and can be started again: the writer's loop, a
/// subscription, the timers.
#[derive(Clone)]
pub(crate) struct Worker {
    pub name: Arc<str>,
    pub escalates: bool,
    pub run: Arc<dyn Fn() -> Life + Send + Sync>,
}

impl Worker {
    pub(crate) fn new<F, L>(name: &str, escalates: bool, run: F) -> Self
    where
        F: Fn() -> L + Send + Sync + 'static,
        L: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { name: name.into(), escalates, run: Arc::new(move || Box::pin(run())) }
    }
}

/// The actor that is one life of a worker.
struct WorkerActor(Worker);

impl Actor for WorkerActor {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        _arguments: (),
    ) -> Result<(), ActorProcessingErr> {
        myself.cast(()).map_err(Into::into)
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        _message: (),
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        (self.0.run)().await?;
        myself.stop(None);
        Ok(())
    }
}

/// The supervisor of one partition: one for one over its workers.
pub(crate) struct PartitionSupervisor {
    pub partition: u16,
    pub policy: RestartPolicy,
    /// Told when the partition cannot go on.
    pub fatal: watch::Sender<Option<String>>,
    pub stopping: Flag,
    /// How many of its workers are running.
    pub running: Arc<DashMap<Arc<str>, ()>>,
}

pub(crate) enum Supervise {
    Start(Worker),
}

#[derive(Default)]
pub(crate) struct Children {
    workers: Vec<(ActorId, Worker)>,
    crashes: Vec<(Arc<str>, VecDeque<Instant>)>,
}

impl Children {
    /// Notes a crash and says how many there were within the window.
    fn crashed(&mut self, name: &Arc<str>, window: Duration) -> usize {
        if !self.crashes.iter().any(|(known, _)| known == name) {
            self.crashes.push((name.clone(), VecDeque::new()));
        }
        let (_, crashes) =
            self.crashes.iter_mut().find(|(known, _)| known == name).expect("it was just added");
        crashes.push_back(Instant::now());
        while crashes.front().is_some_and(|first| first.elapsed() > window) {
            crashes.pop_front();
        }
        crashes.len()
    }
}

impl Actor for PartitionSupervisor {
    type Msg = Supervise;
    type State = Children;
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<Supervise>,
        _arguments: (),
    ) -> Result<Children, ActorProcessingErr> {
        Ok(Children::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<Supervise>,
        Supervise::Start(worker): Supervise,
        children: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        let started =
            Actor::spawn_linked(None, WorkerActor(worker.clone()), (), myself.get_cell()).await;
        let (actor, _) = started?;
        self.running.insert(worker.name.clone(), ());
        children.workers.push((actor.get_id(), worker));
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Supervise>,
        event: SupervisionEvent,
        children: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(who, _, _) => {
                if let Some(worker) = take(children, &who) {
                    self.running.remove(&worker.name);
                }
            }
            SupervisionEvent::ActorFailed(who, error) => {
                if let Some(worker) = take(children, &who) {
                    self.running.remove(&worker.name);
                    self.failed(&myself, worker, &error.to_string(), children);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn take(children: &mut Children, who: &ActorCell) -> Option<Worker> {
    let index = children.workers.iter().position(|(id, _)| *id == who.get_id())?;
    Some(children.workers.swap_remove(index).1)
}

impl PartitionSupervisor {
    fn failed(
        &self,
        myself: &ActorRef<Supervise>,
        worker: Worker,
        error: &str,
        children: &mut Children,
    ) {
        if self.stopping.get() {
            return;
        }
        let crashes = children.crashed(&worker.name, self.policy.window);
        tracing::error!(partition = self.partition, worker = %worker.name, error, crashes, "a worker failed");
        let delay = match self.policy.delay(crashes) {
            Some(delay) => delay,
            None if worker.escalates => {
                let why = format!(
                    "partition {}: {} failed {crashes} times: {error}",
                    self.partition, worker.name
                );
                tracing::error!(why, "escalating to the root");
                let _ = self.fatal.send(Some(why));
                return;
            }
            None => self.policy.backoff_max,
        };
        let myself = myself.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = myself.cast(Supervise::Start(worker));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_longer_and_longer_and_end() {
        let policy = RestartPolicy { restarts_max: 4, ..RestartPolicy::default() };
        let waits: Vec<_> = (1..=5).map(|n| policy.delay(n).map(|d| d.as_millis())).collect();
        assert_eq!(waits, [Some(0), Some(50), Some(100), Some(200), None]);
    }
}
