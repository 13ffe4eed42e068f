//! What people did with a subscription: an aggregate with a stream of its own, so that every pause
//! and every letter that was worked is in the journal, with who asked for it and why.
//!
//! Whether a subscription is paused is a control row, written in the transaction of the event. A
//! request to work letters is recorded before it is carried out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::aggregate::{Aggregate, Command, NoRejection};
use crate::world::Timestamp;

/// A subscription was paused or went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Switched {
    /// The subscription.
    pub subscription: String,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Somebody asked for a key's letters to be worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LettersWorked {
    /// The subscription.
    pub subscription: String,
    /// The partition of the letters.
    pub partition: u16,
    /// Their key.
    pub key: Uuid,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

crate::events! {
    /// What people did with subscriptions. Who is in the metadata.
    pub enum SubscriptionEvent in "system" as "system-service" {
        /// It stands still from here on.
        Paused(Switched) = "subscription.paused", "SubscriptionPaused", 1.0, [];
        /// It goes on.
        Resumed(Switched) = "subscription.resumed", "SubscriptionResumed", 1.0, [];
        /// A key's letters are to be tried again.
        RetryRequested(LettersWorked) = "subscription.retry_requested", "SubscriptionRetryRequested", 1.0, [];
        /// A key's first letter is to be dropped.
        DiscardRequested(LettersWorked) = "subscription.discard_requested", "SubscriptionDiscardRequested", 1.0, [];
    }
}

/// What somebody does.
#[derive(Debug, Clone)]
pub enum OversightCommand {
    /// Pause it.
    Pause(Switched),
    /// Let it go on.
    Resume(Switched),
    /// Try letters again.
    Retry(LettersWorked),
    /// Drop a letter.
    Discard(LettersWorked),
}

impl Command for OversightCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Pause(_) => "PauseSubscription",
            Self::Resume(_) => "ResumeSubscription",
            Self::Retry(_) => "RetryLetters",
            Self::Discard(_) => "DiscardLetter",
        }
    }
}

/// A subscription, as far as people steer it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Oversight {
    /// Whether it is paused.
    pub paused: bool,
}

impl Oversight {
    /// The id of a subscription's stream.
    pub fn id_of(subscription: &str) -> Uuid {
        crate::id::derived("subscription", &[subscription.as_bytes()])
    }
}

impl Aggregate for Oversight {
    const TYPE: &'static str = "subscription";

    type Command = OversightCommand;
    type Event = SubscriptionEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &OversightCommand) -> Result<Vec<SubscriptionEvent>, NoRejection> {
        Ok(match command {
            OversightCommand::Pause(_) if self.paused => Vec::new(),
            OversightCommand::Resume(_) if !self.paused => Vec::new(),
            OversightCommand::Pause(switched) => vec![SubscriptionEvent::Paused(switched.clone())],
            OversightCommand::Resume(switched) => {
                vec![SubscriptionEvent::Resumed(switched.clone())]
            }
            OversightCommand::Retry(worked) => {
                vec![SubscriptionEvent::RetryRequested(worked.clone())]
            }
            OversightCommand::Discard(worked) => {
                vec![SubscriptionEvent::DiscardRequested(worked.clone())]
            }
        })
    }

    fn apply(&mut self, event: &SubscriptionEvent) {
        match event {
            SubscriptionEvent::Paused(_) => self.paused = true,
            SubscriptionEvent::Resumed(_) => self.paused = false,
            SubscriptionEvent::RetryRequested(_) | SubscriptionEvent::DiscardRequested(_) => {}
        }
    }
}
