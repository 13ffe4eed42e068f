//! Subscribers: what follows from events, beyond the aggregate that they happened to.
//!
//! ```text
//!   event ──▶ handler ──command──▶ another aggregate      email-claims, engagement, erasures,
//!                    │                                     notifications, search-indexer, session-endings
//!                    └──call────▶ the outside, then a     payment-gateway, notification-email
//!                                 command that reports it             webhooks
//! ```
//!
//! Delivery is at least once, so a handler must bear a repeat: the ids of its commands follow from
//! the event, the purpose and the target, and the outside is called under a key that follows from
//! the aggregate. What to do is decided by pure functions of the event and the state; the handlers
//! around them only carry it out.

pub mod announcements;
pub mod bounces;
mod caught_up;
pub mod email_claims;
pub mod engagement;
pub mod erasures;
pub mod flow_times;
#[cfg(test)]
mod interleavings;
pub mod loyalty;
pub mod mail_sender;
pub mod messages;
pub mod notifications;
pub mod order_progress;
pub mod outbox;
pub mod payment_gateway;
pub mod reports;
pub mod saga_router;
pub mod search_indexer;
pub mod seller_ratings;
pub mod sequence_gaps;
pub mod session_endings;
pub mod sms_sender;
pub mod templates;
pub mod webhooks;

use souk_actors::command::{CommandError, Unavailable};
use souk_actors::event::DecodeError;
use souk_actors::retry::Failure;
use souk_actors::subscriber::Priority;

use crate::gateways::payment::GatewayError;
use crate::projections::ANALYTICS_VIEW;
use crate::projections::view::undecodable;

/// Who goes first when there is more to do than can be done. What a buyer waits for is critical, as
/// the sagas are by themselves; what nobody misses for a minute is for whenever there is time.
pub fn priority_of(subscription: &str) -> Priority {
    match subscription {
        payment_gateway::NAME | order_progress::NAME => Priority::Critical,
        announcements::NAME
        | engagement::NAME
        | flow_times::NAME
        | reports::NAME
        | search_indexer::NAME
        | ANALYTICS_VIEW => Priority::Batch,
        _ => Priority::Standard,
    }
}

/// What a failed command means to the handler that sent it.
pub(crate) fn command_failed<R: std::error::Error>(error: &CommandError<R>) -> Failure {
    match error {
        // The aggregate's answer will not change by asking again.
        CommandError::Rejected { .. }
        | CommandError::VersionMismatch { .. }
        | CommandError::KeyReused
        | CommandError::Unavailable(Unavailable::Quarantined(_)) => {
            Failure::permanent(error.to_string())
        }
        CommandError::Unavailable(
            Unavailable::Journal
            | Unavailable::Draining
            | Unavailable::Overloaded
            | Unavailable::Refused(_),
        ) => Failure::system(error.to_string()),
        CommandError::Unavailable(Unavailable::Restarting | Unavailable::DeadlinePassed)
        | CommandError::OutcomeUnknown
        | CommandError::Internal(_) => Failure::transient(error.to_string()),
    }
}

pub(crate) fn decode_failed(error: DecodeError) -> Failure {
    undecodable(&error)
}

pub(crate) fn gateway_failed(error: GatewayError) -> Failure {
    match error {
        GatewayError::Transient(_) => Failure::transient(error.to_string()),
        GatewayError::Locked(_) => Failure::system(error.to_string()),
        GatewayError::Invalid(_) => Failure::permanent(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::command::{ErrorId, Refused};
    use souk_actors::retry::FailureKind;

    use super::*;

    #[test]
    fn nothing_is_lost_while_the_journal_is_away_and_no_refusal_is_repeated() {
        let kind = |error| command_failed::<Refused>(&error).kind;
        let unavailable = |why| kind(CommandError::Unavailable(why));
        assert_eq!(unavailable(Unavailable::Journal), FailureKind::System);
        assert_eq!(unavailable(Unavailable::Draining), FailureKind::System);
        assert_eq!(unavailable(Unavailable::Restarting), FailureKind::Transient);
        let quarantined = Unavailable::Quarantined(ErrorId(uuid::Uuid::nil()));
        assert_eq!(unavailable(quarantined), FailureKind::Permanent);
        assert_eq!(kind(CommandError::OutcomeUnknown), FailureKind::Transient);
        let rejection = Refused { code: "not_found", message: String::new() };
        let rejected = CommandError::Rejected { rejection, version: 0, replayed: false };
        assert_eq!(kind(rejected), FailureKind::Permanent);
    }
}
