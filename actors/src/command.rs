//! What goes into an aggregate and what comes back: contexts, answers and errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::event::Position;
use crate::trace::Here;
use crate::world::{Timestamp, World};

/// How long a command may take when nobody says otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// Which admission budget a command draws on. Load from outside never starves a purchase under way:
/// sagas, timers and subscribers have room of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From a client.
    Outside,
    /// From a saga, a timer or a subscriber.
    Inside,
}

/// Makes a command have effect once: its outcome is stored under [`CommandContext::command_id`] in
/// the transaction of its events, and a repeat gets that outcome again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once {
    /// A keyed hash of the request: the same id with another hash is [`CommandError::KeyReused`].
    pub request_hash: [u8; 32],
}

/// A row of a control table that the application keeps beside the journal (credentials, refresh
/// tokens). It is written in the transaction of the events it goes with, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlWrite {
    /// The table, so to speak. Stored; never rename.
    pub space: &'static str,
    /// The row.
    pub key: Vec<u8>,
    /// The content, or none to delete the row.
    pub value: Option<Vec<u8>>,
    /// When the row may be dropped.
    pub expires_at: Option<Timestamp>,
}

tokio::task_local! {
    /// The delivery whose handler is at work in this task.
    static HANDLER: (DeliveryMetadata, Arc<Effects>);
}

/// What a handler can know of the delivery in its hand, beyond the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryMetadata {
    /// The subscription.
    pub subscription: &'static str,
    /// How often it is tried with this attempt, from 1.
    pub attempt: u32,
    /// The replay that delivers the event once more; none: nobody asked for that. Whatever the handler
    /// does it has done before, as a rule.
    pub replay: Option<Uuid>,
}

impl DeliveryMetadata {
    /// Of the delivery whose handler is at work in this task; none: no handler is.
    pub fn current() -> Option<Self> {
        HANDLER.try_with(|(metadata, _)| *metadata).ok()
    }
}

/// What the commands came to that a handler sent.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    new: AtomicU64,
    repeated: AtomicU64,
}

impl Effects {
    /// Whether a command changed something.
    pub(crate) fn any_new(&self) -> bool {
        self.new.load(Ordering::Relaxed) > 0
    }

    /// Whether a command was the repeat of one that is done.
    pub(crate) fn any_repeated(&self) -> bool {
        self.repeated.load(Ordering::Relaxed) > 0
    }

    /// Takes note of what became of a command, if a handler of this task sent it.
    pub(crate) fn note<R, J: std::error::Error>(done: &Result<Done<R>, CommandError<J>>) {
        // Whoever is no handler is none of our business.
        let _ = HANDLER.try_with(|(_, effects)| match done {
            Ok(Done { replayed: true, .. })
            | Err(CommandError::Rejected { replayed: true, .. }) => {
                effects.repeated.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Done { events: 0, .. }) | Err(_) => {}
            Ok(_) => {
                effects.new.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

/// Does a handler's work: the commands that it sends because of an event say whose they are, and what
/// they come to is noted.
pub(crate) async fn on_behalf_of<F: Future>(
    metadata: DeliveryMetadata,
    effects: &Arc<Effects>,
    work: F,
) -> F::Output {
    HANDLER.scope((metadata, effects.clone()), work).await
}

/// Who asks, why, on whose budget and until when.
#[derive(Debug, Clone)]
pub struct CommandContext {
    /// The command's id. Random, unless it must be repeatable ([`Once`]).
    pub command_id: Uuid,
    /// Set when a repeat of this command must have no second effect.
    pub once: Option<Once>,
    /// Ties together everything that one request leads to.
    pub correlation_id: Arc<str>,
    /// The id of the request or event that caused the command.
    pub causation_id: Arc<str>,
    /// The subscription whose handler sends it; none: no handler does.
    pub subscription: Option<&'static str>,
    /// Who asked: a user's id, or `system`.
    pub actor_id: Arc<str>,
    /// The credential that it was asked with, where that says more than who asked.
    pub credential: Option<Arc<str>>,
    /// The tenant.
    pub tenant_id: Arc<str>,
    /// W3C trace context to record.
    pub traceparent: Option<Arc<str>>,
    /// W3C trace state to record with it.
    pub tracestate: Option<Arc<str>>,
    /// The command's own span, where it is traced. Set by whoever sends it.
    pub here: Option<Here>,
    /// After this nobody waits any more: the command is refused rather than run.
    pub deadline: Instant,
    /// The admission budget.
    pub origin: Origin,
    /// Refuse unless the aggregate is at exactly this version (`If-Match`).
    pub expected_version: Option<u64>,
    /// Rows stored with the command's events; dropped when it is rejected.
    pub attach: Vec<ControlWrite>,
}

impl CommandContext {
    /// A command from a client: random id, default deadline.
    pub fn outside(world: &dyn World, correlation_id: &str, causation_id: &str) -> Self {
        Self {
            command_id: world.new_id(),
            once: None,
            correlation_id: correlation_id.into(),
            causation_id: causation_id.into(),
            subscription: None,
            actor_id: "anonymous".into(),
            credential: None,
            tenant_id: "default".into(),
            traceparent: None,
            tracestate: None,
            here: None,
            deadline: Instant::now() + DEADLINE_DEFAULT,
            origin: Origin::Outside,
            expected_version: None,
            attach: Vec::new(),
        }
    }

    /// A command that the system gives itself, and that is harmless to repeat.
    pub fn inside(world: &dyn World, correlation_id: &str, causation_id: &str) -> Self {
        Self {
            actor_id: "system".into(),
            origin: Origin::Inside,
            ..Self::outside(world, correlation_id, causation_id)
        }
    }

    /// A command that the system gives itself because of an event, with an id that follows from
    /// that event, the purpose and the target, so that a redelivery has no second effect.
    pub fn because_of(event: &crate::event::StoredEvent, purpose: &str, target: Uuid) -> Self {
        let id = crate::id::derived(
            "command",
            &[event.event_id.as_bytes(), purpose.as_bytes(), target.as_bytes()],
        );
        Self {
            command_id: id,
            once: Some(Once { request_hash: [0; 32] }),
            correlation_id: event.correlation_id.clone(),
            causation_id: event.event_id.to_string().into(),
            subscription: DeliveryMetadata::current().map(|metadata| metadata.subscription),
            actor_id: "system".into(),
            credential: None,
            tenant_id: "default".into(),
            traceparent: None,
            tracestate: None,
            here: None,
            deadline: Instant::now() + DEADLINE_DEFAULT,
            origin: Origin::Inside,
            expected_version: None,
            attach: Vec::new(),
        }
    }
}

/// A command that was accepted and is durable, or a read of durable state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<R> {
    /// What the caller's view made of the state right after the command.
    pub value: R,
    /// The aggregate's version after the command; 0: it does not exist.
    pub version: u64,
    /// How many events the command led to.
    pub events: usize,
    /// Where the last of them stands (none: no events; for a replay, not looked up again).
    pub position: Option<Position>,
    /// Whether this is the stored outcome of an earlier command with the same id.
    pub replayed: bool,
}

/// Why a command was refused for now. All of them: nothing happened, come back later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much is in flight.
    #[error("too many commands are in flight")]
    Overloaded,
    /// The service is stopping.
    #[error("the service is stopping")]
    Draining,
    /// The journal does not take appends at the moment.
    #[error("the journal cannot be written at the moment")]
    Journal,
    /// The aggregate is starting again; what it had not made durable is undone.
    #[error("the aggregate is restarting")]
    Restarting,
    /// The aggregate failed again and again, or its stored events are damaged, and it waits for an
    /// operator. The logs have the cause under this id.
    #[error("the aggregate is quarantined: see {0} in the log")]
    Quarantined(ErrorId),
    /// The command's deadline passed before it was run.
    #[error("the deadline passed before the command could run")]
    DeadlinePassed,
    /// Whoever runs the service has it take nothing new from outside.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// Why nothing new is taken from outside, as whoever refuses it says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// A stable code for metrics and problem documents.
    pub code: &'static str,
    /// For people: what is wrong and what to do. Everybody outside reads it.
    pub message: &'static str,
    /// When trying again makes sense.
    pub retry_after: Duration,
}

impl Unavailable {
    /// When trying again makes sense.
    pub fn retry_after(self) -> Duration {
        match self {
            Self::Overloaded | Self::Restarting | Self::DeadlinePassed => Duration::from_secs(1),
            Self::Journal => Duration::from_secs(2),
            Self::Draining => Duration::from_secs(5),
            Self::Quarantined(_) => Duration::from_secs(60),
            Self::Refused(refusal) => refusal.retry_after,
        }
    }

    /// A stable code for metrics and problem documents.
    pub fn code(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Journal => "journal_unavailable",
            Self::Restarting => "restarting",
            Self::Quarantined(_) => "quarantined",
            Self::DeadlinePassed => "deadline_passed",
            Self::Refused(refusal) => refusal.code,
        }
    }
}

/// Names one failure in the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorId(pub Uuid);

impl std::fmt::Display for ErrorId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "err_{}", self.0.simple())
    }
}

/// Why a command has no accepted outcome.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError<R: std::error::Error> {
    /// The aggregate said no. Durable like everything it rests on.
    #[error("{rejection}")]
    Rejected {
        /// Why.
        rejection: R,
        /// The aggregate's version that the decision rests on.
        version: u64,
        /// Whether this is a stored outcome.
        replayed: bool,
    },
    /// The aggregate is not at the expected version; nothing happened.
    #[error("the aggregate is at version {current}, not at the expected one")]
    VersionMismatch {
        /// The version it is at.
        current: u64,
    },
    /// The command's id was used for another request; nothing happened.
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// Nothing happened; come back later.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The journal did not say whether the command's events were stored. A retry with the same id
    /// finds out.
    #[error("the outcome is unknown: repeat the command with the same key to find out")]
    OutcomeUnknown,
    /// A bug. Nothing happened. The logs have the cause under this id.
    #[error("internal error {0}")]
    Internal(ErrorId),
}

impl<R: std::error::Error> CommandError<R> {
    /// The same error without the rejection's type.
    pub fn erased(self) -> CommandError<Refused>
    where
        R: crate::aggregate::Rejection,
    {
        match self {
            Self::Rejected { rejection, version, replayed } => CommandError::Rejected {
                rejection: Refused { code: rejection.code(), message: rejection.to_string() },
                version,
                replayed,
            },
            Self::VersionMismatch { current } => CommandError::VersionMismatch { current },
            Self::KeyReused => CommandError::KeyReused,
            Self::Unavailable(unavailable) => CommandError::Unavailable(unavailable),
            Self::OutcomeUnknown => CommandError::OutcomeUnknown,
            Self::Internal(id) => CommandError::Internal(id),
        }
    }
}

impl<R: std::error::Error> CommandError<R> {
    /// What a handler makes of this error: a rejection is permanent, the journal's trouble is the
    /// system's, everything else may work next time.
    pub fn to_failure(&self) -> crate::retry::Failure {
        use crate::retry::Failure;
        match self {
            Self::Rejected { .. } | Self::VersionMismatch { .. } | Self::KeyReused => {
                Failure::permanent(self.to_string())
            }
            Self::Unavailable(Unavailable::Journal) => Failure::system(self.to_string()),
            Self::Unavailable(_) | Self::OutcomeUnknown | Self::Internal(_) => {
                Failure::transient(self.to_string())
            }
        }
    }
}

/// A rejection without its type: its code and its sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The stable code.
    pub code: &'static str,
    /// The sentence.
    pub message: String,
}
