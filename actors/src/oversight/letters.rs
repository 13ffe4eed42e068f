//! What became of events that could not be handled: an aggregate per subscription, whose stream says
//! of every dead letter that it was made.
//!
//! An event is told of before its letter is stored, under an id that follows from both, so that a
//! crash in between has it told once. That it is told must not lead to more and more to tell: a letter
//! of such an event is not told of, and all of a subscription are on one stream, so that whoever fails
//! on the first is not given the second.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::aggregate::{Aggregate, Command, NoRejection};
use crate::event::EventPayload as _;
use crate::journal::Letter;
use crate::world::Timestamp;

/// A subscription could not handle an event, and keeps it as a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventDeadLettered {
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Its aggregate.
    pub aggregate_id: Uuid,
    /// Its partition, and that of the letter.
    pub partition: u16,
    /// Its position.
    pub position: u64,
    /// The subscription.
    pub subscription: String,
    /// The key whose later events wait behind it.
    pub key: Uuid,
    /// What kind of failure it was: `transient` or `permanent`.
    pub class: String,
    /// Names failures that are alike; none: the failure said nothing.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// When.
    pub dead_lettered_at: Timestamp,
}

impl From<&Letter> for EventDeadLettered {
    fn from(letter: &Letter) -> Self {
        Self {
            event_id: letter.event_id,
            event_type: letter.event_type.to_string(),
            aggregate_id: letter.aggregate_id,
            partition: letter.partition,
            position: letter.position,
            subscription: letter.subscription.to_string(),
            key: letter.key,
            class: letter.class.clone(),
            fingerprint: letter.fingerprint(),
            attempts: letter.attempts,
            dead_lettered_at: letter.last_failed_at,
        }
    }
}

crate::events! {
    /// What becomes of events that a subscription cannot handle.
    pub enum DeadLetterEvent in "system" as "system-service" {
        /// One is a dead letter from here on.
        Lettered(EventDeadLettered) = "system.event_dead_lettered", "EventDeadLettered", 1.0, [];
    }
}

/// What is recorded.
#[derive(Debug, Clone)]
pub enum DeadLetterCommand {
    /// An event becomes a dead letter.
    Tell(EventDeadLettered),
}

impl Command for DeadLetterCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Tell(_) => "TellOfDeadLetter",
        }
    }
}

/// The dead letters of a subscription, as they were told of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DeadLetterLog {
    /// How many there have been.
    pub told: u64,
}

impl DeadLetterLog {
    /// The id of a subscription's log.
    pub fn id_of(subscription: &str) -> Uuid {
        crate::id::derived("dead letters", &[subscription.as_bytes()])
    }
}

impl Aggregate for DeadLetterLog {
    const TYPE: &'static str = "dead_letter_log";

    type Command = DeadLetterCommand;
    type Event = DeadLetterEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &DeadLetterCommand) -> Result<Vec<DeadLetterEvent>, NoRejection> {
        let DeadLetterCommand::Tell(lettered) = command;
        Ok(vec![DeadLetterEvent::Lettered(lettered.clone())])
    }

    fn apply(&mut self, event: &DeadLetterEvent) {
        let DeadLetterEvent::Lettered(_) = event;
        self.told += 1;
    }
}

/// Whether a letter of an event of this type is told of.
pub(crate) fn is_told_of(event_type: &str) -> bool {
    DeadLetterEvent::descriptors().iter().all(|of| of.event_type != event_type)
}
