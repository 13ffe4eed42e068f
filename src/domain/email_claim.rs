//! Claims on e-mail addresses: one aggregate per address, so that an address has one user.
//!
//! The id follows from a keyed hash of the address, and no event holds the address. Registering
//! claims it, then makes the user, then confirms the claim. Whoever stops between these leaves a
//! claim that is not confirmed: its timer then says so (`email_claim.lapsed`), again and again, and
//! somebody asks the user aggregate and confirms or releases.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::world::Timestamp;

use super::ids::UserId;
use super::rejection::rejections;

/// How long a claim may wait for its user before it lapses.
pub const CLAIM_FOR: Duration = Duration::from_secs(60);
/// How long after a lapse the next one comes, while nobody has confirmed or released the claim.
pub const LAPSE_AGAIN_AFTER: Duration = Duration::from_secs(5 * 60);

/// The timer of an unconfirmed claim. Stored; never rename.
const LAPSE: &str = "lapse";

/// What to do with a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum EmailClaimCommand {
    /// Take the address for a user who is about to register.
    Claim {
        /// The user to be.
        user_id: UserId,
        /// When.
        now: Timestamp,
        /// When to ask whether the user came.
        expires_at: Timestamp,
    },
    /// The user came.
    Confirm {
        /// The user.
        user_id: UserId,
        /// When.
        now: Timestamp,
    },
    /// The timer is due.
    Lapse {
        /// When.
        now: Timestamp,
    },
    /// Give the address up.
    Release {
        /// The user who had it; nothing happens when another has it by now.
        user_id: UserId,
        /// When.
        now: Timestamp,
    },
}

impl Command for EmailClaimCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Claim { .. } => "ClaimEmail",
            Self::Confirm { .. } => "ConfirmEmailClaim",
            Self::Lapse { .. } => "LapseEmailClaim",
            Self::Release { .. } => "ReleaseEmailClaim",
        }
    }
}

souk_actors::events! {
    /// What happens to claims.
    pub enum EmailClaimEvent in "users" as "user-service" {
        /// The address is taken.
        Claimed(EmailClaimed) = "email_claim.claimed", "EmailClaimed", 1.0, [];
        /// The user came.
        Confirmed(EmailClaimConfirmed) = "email_claim.confirmed", "EmailClaimConfirmed", 1.0, [];
        /// The user has not come yet: ask.
        Lapsed(EmailClaimLapsed) = "email_claim.lapsed", "EmailClaimLapsed", 1.0, [];
        /// The address is free.
        Released(EmailClaimReleased) = "email_claim.released", "EmailClaimReleased", 1.0, [];
    }
}

/// The address is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailClaimed {
    /// For whom.
    pub user_id: UserId,
    /// When.
    pub claimed_at: Timestamp,
    /// When to ask whether the user came.
    pub expires_at: Timestamp,
}

/// The user came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailClaimConfirmed {
    /// Who.
    pub user_id: UserId,
    /// When.
    pub confirmed_at: Timestamp,
}

/// The user has not come yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailClaimLapsed {
    /// Who was to come.
    pub user_id: UserId,
    /// When.
    pub lapsed_at: Timestamp,
    /// When to ask again.
    pub next_at: Timestamp,
}

/// The address is free.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailClaimReleased {
    /// Who had it.
    pub user_id: UserId,
    /// When.
    pub released_at: Timestamp,
}

rejections! {
    /// Why a claim refuses a command.
    pub enum EmailClaimRejection {
        /// Another user has it.
        EmailTaken = "email_taken", "this e-mail address is already registered";
        /// The claim was released before, or is another user's.
        NotTheHolder = "not_the_holder", "this user does not hold the claim";
    }
}

/// The claim on one address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EmailClaim {
    /// Who holds the address; nobody when it is free.
    pub holder: Option<Holder>,
}

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// The user.
    pub user_id: UserId,
    /// Whether the user has come.
    pub confirmed: bool,
}

type Decision = Result<Vec<EmailClaimEvent>, EmailClaimRejection>;

impl Aggregate for EmailClaim {
    const TYPE: &'static str = "email_claim";
    type Command = EmailClaimCommand;
    type Event = EmailClaimEvent;
    type Rejection = EmailClaimRejection;

    fn decide(&self, command: &EmailClaimCommand) -> Decision {
        match *command {
            EmailClaimCommand::Claim { user_id, now, expires_at } => match &self.holder {
                Some(holder) if holder.user_id != user_id => Err(EmailClaimRejection::EmailTaken),
                Some(_) => Ok(Vec::new()),
                None => Ok(vec![EmailClaimEvent::Claimed(EmailClaimed {
                    user_id,
                    claimed_at: now,
                    expires_at,
                })]),
            },
            EmailClaimCommand::Confirm { user_id, now } => match &self.holder {
                Some(holder) if holder.user_id == user_id && holder.confirmed => Ok(Vec::new()),
                Some(holder) if holder.user_id == user_id => {
                    let event = EmailClaimConfirmed { user_id, confirmed_at: now };
                    Ok(vec![EmailClaimEvent::Confirmed(event)])
                }
                _ => Err(EmailClaimRejection::NotTheHolder),
            },
            EmailClaimCommand::Lapse { now } => Ok(self.lapse(now)),
            EmailClaimCommand::Release { user_id, now } => match &self.holder {
                Some(holder) if holder.user_id == user_id => {
                    let event = EmailClaimReleased { user_id, released_at: now };
                    Ok(vec![EmailClaimEvent::Released(event)])
                }
                _ => Ok(Vec::new()),
            },
        }
    }

    fn apply(&mut self, event: &EmailClaimEvent) {
        match event {
            EmailClaimEvent::Claimed(event) => {
                self.holder = Some(Holder { user_id: event.user_id, confirmed: false });
            }
            EmailClaimEvent::Confirmed(event) => {
                self.holder = Some(Holder { user_id: event.user_id, confirmed: true });
            }
            EmailClaimEvent::Lapsed(_) => {}
            EmailClaimEvent::Released(_) => self.holder = None,
        }
    }

    fn timers(&self, event: &EmailClaimEvent) -> Vec<TimerChange> {
        let name = LAPSE.to_owned();
        vec![match event {
            EmailClaimEvent::Claimed(event) => TimerChange::Set { name, at: event.expires_at },
            EmailClaimEvent::Lapsed(event) => TimerChange::Set { name, at: event.next_at },
            EmailClaimEvent::Confirmed(_) | EmailClaimEvent::Released(_) => {
                TimerChange::Clear { name }
            }
        }]
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<EmailClaimCommand> {
        let waiting = self.holder.as_ref().is_some_and(|holder| !holder.confirmed);
        (name == LAPSE && waiting).then_some(EmailClaimCommand::Lapse { now })
    }
}

impl EmailClaim {
    fn lapse(&self, now: Timestamp) -> Vec<EmailClaimEvent> {
        let Some(holder) = self.holder.as_ref().filter(|holder| !holder.confirmed) else {
            return Vec::new();
        };
        vec![EmailClaimEvent::Lapsed(EmailClaimLapsed {
            user_id: holder.user_id,
            lapsed_at: now,
            next_at: now.plus(LAPSE_AGAIN_AFTER),
        })]
    }
}

#[cfg(test)]
mod tests;
