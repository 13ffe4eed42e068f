//! Aggregates: the pure functions of the domain, and the actors that run them.
//!
//! An [`Aggregate`] is two synchronous functions without side effects. Everything that waits, fails
//! or touches the world is in the actor around it.

mod actor;
mod answer;
pub(crate) mod known;
pub(crate) mod load;
pub(crate) mod registry;
mod timers;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use actor::panic_message;
pub use registry::AggregateOptions;

use crate::event::EventPayload;
use crate::world::Timestamp;

/// A consistency boundary: one state, changed by one command at a time, described by its events.
///
/// Both functions are pure. Times, new ids and looked-up facts arrive in the command; who asks
/// arrives there too, so that ownership is checked here and nowhere else.
pub trait Aggregate:
    Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Names the type in the journal. Stored; never rename.
    const TYPE: &'static str;

    /// The shape of the serialised state. Raise it when the state changes shape: older snapshots
    /// are then ignored and the state is folded from its events.
    const SNAPSHOT_VERSION: u32 = 1;

    /// Whether its commands steer the runtime itself, or let in whoever does. They are taken while nothing else from outside
    /// is ([`crate::runtime::Runtime::refuse_outside`]): that may be what ends it.
    const STEERS: bool = false;

    /// An order to do something.
    type Command: Command;
    /// A fact.
    type Event: EventPayload;
    /// A refusal, by name.
    type Rejection: Rejection;

    /// All the rules and no side effects. No events: the command is accepted and changes nothing
    /// (it was already so).
    fn decide(&self, command: &Self::Command) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// Bookkeeping only. It cannot fail: the event has already happened.
    fn apply(&mut self, event: &Self::Event);

    /// Which durable timers this event sets or clears. They are stored in the transaction of the
    /// event and fire, once in effect, through [`Aggregate::on_timer`].
    fn timers(&self, _event: &Self::Event) -> Vec<TimerChange> {
        Vec::new()
    }

    /// The command that a due timer stands for, or none when it no longer matters.
    fn on_timer(&self, _name: &str, _now: Timestamp) -> Option<Self::Command> {
        None
    }
}

/// A command has a name for metrics, traces and quarantine records (`PlaceOrder`).
pub trait Command: Send + Sync + 'static {
    /// The name; no values in it.
    fn name(&self) -> &'static str;
}

/// A named refusal. Stored (as JSON) with the command's outcome so that a repeat gets the same
/// answer; it must hold no personal data.
pub trait Rejection:
    std::error::Error + Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// A stable code in lower snake case (`email_taken`). Stored; never rename.
    fn code(&self) -> &'static str;
}

/// The rejection of an aggregate that refuses nothing: what does not concern it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub enum NoRejection {}

impl std::fmt::Display for NoRejection {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

impl std::error::Error for NoRejection {}

impl Rejection for NoRejection {
    fn code(&self) -> &'static str {
        match *self {}
    }
}

/// A change to an aggregate's durable timers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimerChange {
    /// Fire at `at`; replaces a timer of the same name.
    Set {
        /// The timer's name, unique within the aggregate.
        name: String,
        /// When it is due.
        at: Timestamp,
    },
    /// Forget the timer of this name, if there is one.
    Clear {
        /// The timer's name.
        name: String,
    },
}
