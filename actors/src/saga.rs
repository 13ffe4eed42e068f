//! Sagas: processes over several aggregates, with every step persisted and a way back.
//!
//! A [`Saga`] is declared, not programmed. It folds *facts* (what it understands of the events it
//! subscribes to) into a state, and lists its *steps*; each says which commands it takes, how the
//! state shows that it is done or has failed, and how to undo it. The runtime does the rest: it
//! persists every transition as an event on the saga's own stream, sends the commands with ids
//! that follow from saga and step (so that a repeat has no second effect), watches the time
//! limits, and when a step fails undoes, in reverse order, everything that is done or whose
//! outcome is unknown.
//!
//! Facts may arrive twice, late, or in any order across aggregates: a fold must not care.

mod instance;
mod intervention;
mod run;

use std::time::Duration;

pub use instance::{
    Advance, HistoryEntry, Input, STEP_TIMER, SagaCommand, SagaEnd, SagaEvent, SagaFailure,
    SagaInstance, SagaStatus, Transition,
};
pub use intervention::{Asked, Intervention, SagaRejection, SteppedIn};
pub(crate) use run::subscriptions;
pub use run::{Routed, SagaRouter};

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::event::{DecodeError, StoredEvent};
use crate::world::Timestamp;

/// The reason for turning back when somebody wants it so. Stored; never rename.
pub const BY_HAND: &str = "compensated_by_hand";

/// A process manager. All functions are pure.
pub trait Saga:
    Default + Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Names the saga in the journal. Stored; never rename. Lower snake case.
    const NAME: &'static str;

    /// The topic patterns it subscribes to.
    const TOPICS: &'static [&'static str];

    /// What the saga understands of an event. Stored in its own events: keep it small, and free of
    /// personal data.
    type Fact: Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// A command to some aggregate.
    type Command: Send + Sync + 'static;

    /// Which instance an event concerns (the business key, such as the order's id) and what it
    /// says. `None`: nothing. An event that says something and cannot be read is an error, and
    /// becomes a dead letter: a saga must not act on what it does not understand.
    fn fact(event: &StoredEvent) -> Result<Option<(Uuid, Self::Fact)>, DecodeError>;

    /// Whether this fact starts an instance. Facts about instances that were never started are
    /// kept too: they may have overtaken the start.
    fn starts(fact: &Self::Fact) -> bool;

    /// Folds a fact into the state. It must give the same state for a repeated fact, and whatever
    /// the order of facts from different aggregates.
    fn observe(&mut self, fact: &Self::Fact);

    /// The steps of this instance, in order. It must not change after the start.
    fn steps(&self) -> &'static [Step<Self>];

    /// A reason to stop going forward, though no step has failed (the buyer cancelled).
    fn aborted(&self) -> Option<String> {
        None
    }

    /// Why nobody may make it turn back any more, though it is still under way: for people to read.
    /// A step that fails turns it back all the same.
    fn too_late(&self) -> Option<String> {
        None
    }

    /// Commands sent, in order, before anything is undone, when `step` failed for `reason`
    /// (tell the order that its payment failed). `step` is the name of the failed step.
    fn announce(&self, _step: &str, _reason: &str, _now: Timestamp) -> Vec<Self::Command> {
        Vec::new()
    }

    /// Commands sent, in order, after everything is undone.
    fn conclude(&self, _step: &str, _reason: &str, _now: Timestamp) -> Vec<Self::Command> {
        Vec::new()
    }
}

/// How far a step is, as the folded facts show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Not known yet.
    Pending,
    /// Done.
    Done,
    /// Failed, for this reason (a stable code).
    Failed(String),
}

/// One step of a saga.
pub struct Step<S: Saga> {
    /// Names the step. Stored; never rename. Lower snake case.
    pub name: &'static str,
    /// Names the saga's state once the step is done (`INVENTORY_RESERVED`).
    pub done_as: &'static str,
    /// The commands to send when the step starts; sent again, with the same ids, on a retry.
    pub act: fn(&S, Timestamp) -> Vec<S::Command>,
    /// Whether the facts show it done or failed.
    pub progress: fn(&S) -> Progress,
    /// The commands that undo the step whether it was done, half done, or its outcome is unknown.
    /// Aggregates accept them with no events when there is nothing to undo.
    pub undo: fn(&S, Timestamp) -> Vec<S::Command>,
    /// Whether the facts show that nothing is left of the step. A step also counts as undone when
    /// every undo command was accepted without events.
    pub undone: fn(&S) -> bool,
    /// How long the step may stay pending after each try.
    pub time_limit: fn(&S) -> Duration,
    /// How many times it is tried again after its time limit, before it counts as failed with the
    /// reason `timeout`.
    pub retries_max: u32,
    /// Whether the saga goes on, as if the step were done, when it fails: a mail that cannot be
    /// sent must not undo a shipment.
    pub optional: bool,
}

impl<S: Saga> std::fmt::Debug for Step<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step").field("name", &self.name).finish_non_exhaustive()
    }
}
