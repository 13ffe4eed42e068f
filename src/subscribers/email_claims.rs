//! `email-claims`: settles the claim on an address once it is known whether its user came.
//!
//! Registering claims the address, then makes the user. A crash in between leaves a claim whose
//! timer says `email_claim.lapsed`; the user aggregate is then asked never to come. Whichever was
//! first there, the user or the refusal, decides: confirm or release.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::{CommandContext, CommandError};
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::{command_failed, decode_failed};
use crate::domain::email_claim::{EmailClaim, EmailClaimCommand, EmailClaimEvent};
use crate::domain::ids::{EmailClaimId, UserId};
use crate::domain::user::{User, UserCommand, UserDetails, UserEvent, UserRejection, UserStatus};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "email-claims";
/// What it listens to.
pub const TOPICS: &[&str] = &["user.registered", "user.erased", "email_claim.lapsed"];

/// The handler.
pub struct EmailClaims;

/// What to tell the claim, once the user was asked never to come: nothing while that is not known.
/// `held` is the claim that the user has if there is one; not every claim that was made for a user
/// became the user's own.
fn after_abandoning(
    answer: Result<(), &CommandError<UserRejection>>,
    claim: EmailClaimId,
    held: Option<EmailClaimId>,
    user_id: UserId,
    now: Timestamp,
) -> Option<EmailClaimCommand> {
    match answer {
        Ok(()) => Some(EmailClaimCommand::Release { user_id, now }),
        Err(CommandError::Rejected { rejection: UserRejection::AlreadyRegistered, .. }) => {
            Some(match held == Some(claim) {
                true => EmailClaimCommand::Confirm { user_id, now },
                false => EmailClaimCommand::Release { user_id, now },
            })
        }
        Err(_) => None,
    }
}

async fn lapsed(
    runtime: &Runtime,
    event: &StoredEvent,
    user_id: UserId,
) -> Result<EmailClaimCommand, Failure> {
    let now = runtime.world().now();
    let claim = EmailClaimId(event.aggregate_id);
    let context = CommandContext::because_of(event, "abandon-registration", user_id.uuid());
    let command = UserCommand::AbandonRegistration { user_id, now };
    let users = runtime.aggregate::<User>();
    let answer = users.send(user_id.uuid(), command, context, |_| ()).await.map(drop);
    // Asked afterwards: whoever is there now stays there, with the claim that they came with.
    let held = |user: &User| user.details.as_ref().and_then(held_claim);
    let held = users.read_inside(user_id.uuid(), held).await;
    let held = held.map_err(|error| command_failed(&error))?.value;
    after_abandoning(answer.as_ref().copied(), claim, held, user_id, now).ok_or_else(|| {
        match &answer {
            Ok(()) => Failure::permanent("an abandoned registration keeps its claim"),
            Err(error) => command_failed(error),
        }
    })
}

/// The claim on a user's address; none: the address is the user's no more.
fn held_claim(user: &UserDetails) -> Option<EmailClaimId> {
    (user.status != UserStatus::Erased).then_some(user.email_claim_id)
}

#[async_trait]
impl Handler for EmailClaims {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let now = runtime.world().now();
        let (claim, command): (Uuid, _) = if &*event.aggregate_type == "email_claim" {
            let decoded = runtime.journal().decode(event).await.map_err(decode_failed)?;
            let EmailClaimEvent::Lapsed(lapse) = decoded else { return Ok(()) };
            (event.aggregate_id, lapsed(runtime, event, lapse.user_id).await?)
        } else {
            match runtime.journal().decode(event).await.map_err(decode_failed)? {
                UserEvent::Registered(user) => {
                    let command = EmailClaimCommand::Confirm { user_id: user.user_id, now };
                    (user.email_claim_id.uuid(), command)
                }
                UserEvent::Erased(user) => {
                    let command = EmailClaimCommand::Release { user_id: user.user_id, now };
                    (user.email_claim_id.uuid(), command)
                }
                _ => return Ok(()),
            }
        };
        let context = CommandContext::because_of(event, "settle-claim", claim);
        let sent = runtime.aggregate::<EmailClaim>().send(claim, command, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::command::Unavailable;

    use super::*;

    #[test]
    fn whoever_came_first_decides() {
        let (user_id, now) = (UserId(Uuid::from_u128(1)), Timestamp::from_millis(0));
        let claim = EmailClaimId(Uuid::from_u128(2));
        let settled = |answer: Result<(), &CommandError<UserRejection>>, held| {
            after_abandoning(answer, claim, held, user_id, now)
        };
        let failed = |error| settled(Err(&error), Some(claim));
        let rejected =
            |rejection| failed(CommandError::Rejected { rejection, version: 1, replayed: false });
        let release = EmailClaimCommand::Release { user_id, now };
        assert_eq!(settled(Ok(()), None), Some(release.clone()));
        assert_eq!(
            rejected(UserRejection::AlreadyRegistered),
            Some(EmailClaimCommand::Confirm { user_id, now })
        );
        let there = || CommandError::Rejected {
            rejection: UserRejection::AlreadyRegistered,
            version: 1,
            replayed: false,
        };
        let another = Some(EmailClaimId(Uuid::from_u128(3)));
        assert_eq!(settled(Err(&there()), another), Some(release.clone()), "not the user's own");
        assert_eq!(settled(Err(&there()), None), Some(release), "the user has been erased");
        assert_eq!(rejected(UserRejection::Erased), None);
        assert_eq!(failed(CommandError::Unavailable(Unavailable::Journal)), None);
        assert_eq!(failed(CommandError::OutcomeUnknown), None);
    }
}
