//! What people do to a saga that cannot go on by itself: they have its current step tried again, or
//! make it turn back. Both are events on the saga's own stream, with who asked and why, so that they
//! stand in one order with everything else that happened to it, and outlive a crash like it.

use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::instance::{SagaEvent, SagaInstance, SagaStatus, Transition};
use super::{BY_HAND, Saga};
use crate::aggregate::Rejection;
use crate::command::CommandContext;
use crate::event::{EventPayload, StoredEvent};
use crate::retry::Failure;
use crate::runtime::Runtime;
use crate::subscriber::{Handler, Redrive};
use crate::world::Timestamp;

/// Somebody stepped in, and what followed from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Intervention {
    /// The saga's definition.
    pub saga: String,
    /// The business key.
    pub key: Uuid,
    /// Who: a user's id.
    pub by: String,
    /// Why, in the words of who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What followed, in order.
    pub transitions: Vec<Transition>,
    /// When.
    pub at: Timestamp,
}

/// What somebody wants a saga to do.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who.
    pub by: String,
    /// Why, in the words of who asks.
    pub reason: Option<String>,
    /// When.
    pub now: Timestamp,
}

/// An intervention, as an instance remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteppedIn {
    /// `retry` or `compensate`.
    pub verb: String,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Why a saga does not do what somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "code")]
pub enum SagaRejection {
    /// There is none with this id.
    #[error("there is no such saga")]
    NotFound,
    /// It only collects facts so far.
    #[error("the saga has not begun: it waits for the event that starts it")]
    SagaNotStarted,
    /// It has ended.
    #[error("the saga has ended; what its end could not tell others is among the dead letters")]
    SagaOver,
    /// It turns back already.
    #[error("the saga is turning back already; retry it if it is stuck on the way")]
    SagaCompensating,
    /// It has come too far.
    #[error("the saga cannot turn back any more: {why}")]
    SagaPastReturn {
        /// What turning back would do.
        why: String,
    },
}

impl Rejection for SagaRejection {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::SagaNotStarted => "saga_not_started",
            Self::SagaOver => "saga_over",
            Self::SagaCompensating => "saga_compensating",
            Self::SagaPastReturn { .. } => "saga_past_return",
        }
    }
}

impl<S: Saga> SagaInstance<S> {
    /// The current step's commands once more, forwards or backwards, with a new time limit. It
    /// counts as a try.
    pub(super) fn retried(&self, asked: &Asked) -> Result<Vec<SagaEvent>, SagaRejection> {
        let again = self.under_way()?.another_try().ok_or(SagaRejection::SagaOver)?;
        Ok(vec![SagaEvent::RetryRequested(self.intervention(asked, vec![again]))])
    }

    /// Turns back from wherever it is, as if the current step had failed.
    pub(super) fn turned_back(&self, asked: &Asked) -> Result<Vec<SagaEvent>, SagaRejection> {
        let current = self.under_way()?.current().ok_or(SagaRejection::SagaOver)?;
        if self.status == SagaStatus::Compensating {
            return Err(SagaRejection::SagaCompensating);
        }
        if let Some(why) = self.state.too_late() {
            return Err(SagaRejection::SagaPastReturn { why });
        }
        let (step, reason) = (current.name.to_owned(), BY_HAND.to_owned());
        let mut next = self.clone();
        let mut transitions = vec![Transition::CompensationStarted { step, reason }];
        next.transit(&transitions[0], asked.now);
        next.go_on(asked.now, None, &mut transitions);
        let event = SagaEvent::CompensationRequested(self.intervention(asked, transitions));
        Ok(std::iter::once(event).chain(next.end(asked.now)).collect())
    }

    fn under_way(&self) -> Result<&Self, SagaRejection> {
        match self.status {
            _ if self.key.is_none() => Err(SagaRejection::NotFound),
            SagaStatus::Collecting => Err(SagaRejection::SagaNotStarted),
            SagaStatus::Completed | SagaStatus::Compensated => Err(SagaRejection::SagaOver),
            SagaStatus::Running | SagaStatus::Compensating => Ok(self),
        }
    }

    fn intervention(&self, asked: &Asked, transitions: Vec<Transition>) -> Intervention {
        Intervention {
            saga: S::NAME.to_owned(),
            key: self.key.unwrap_or_default(),
            by: asked.by.clone(),
            reason: asked.reason.clone(),
            transitions,
            at: asked.now,
        }
    }
}

/// Has the letters worked that hold a saga up, when somebody wants it tried again: its commands', and
/// those of facts that it has not heard of. What was asked for is in the journal by then, so that it
/// is done after a crash too.
pub(super) struct Retries<S> {
    /// The subscription of its facts, and that of its commands.
    pub(super) names: [&'static str; 2],
    pub(super) saga: std::marker::PhantomData<fn() -> S>,
}

#[async_trait]
impl<S: Saga> Handler for Retries<S> {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let decoded = SagaEvent::decode(&event.event_type, event.major, &event.data)
            .map_err(|error| Failure::permanent(error.to_string()))?;
        let SagaEvent::RetryRequested(asked) = decoded else { return Ok(()) };
        let [facts, commands] = self.names;
        // A fact waits where its own aggregate is.
        for partition in 0..runtime.partitions() {
            work(runtime, event, &asked, (facts, partition, asked.key)).await?;
        }
        work(runtime, event, &asked, (commands, event.partition, event.aggregate_id)).await
    }
}

/// Works the letters of a key, if it has any. That one of them fails again is no failure of this.
async fn work(
    runtime: &Runtime,
    event: &StoredEvent,
    asked: &Intervention,
    (subscription, partition, key): (&str, u16, Uuid),
) -> Result<(), Failure> {
    let place = [subscription.as_bytes(), &partition.to_le_bytes()];
    let mut context =
        CommandContext::because_of(event, "retry", crate::id::derived("letters", &place));
    context.actor_id = asked.by.as_str().into();
    let letters = runtime.dead_letters();
    let reason = asked.reason.clone();
    let worked = letters.redrive(subscription, partition, key, Redrive::Retry, context, reason);
    worked.await.map(drop).map_err(Failure::from)
}
