//! Logins. A session's refresh token is replaced each time it is used: each generation of it works
//! once. A used one that comes again was stolen, by whoever came first or by whoever comes now, so
//! the whole session ends.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::{SessionId, UserId};
use super::rejection::rejections;

/// The reason with which a session ends whose used token came again.
pub const REUSED: &str = "refresh_token_reused";

/// What to do with a session.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionCommand {
    /// A user logged in.
    Start {
        /// The new session.
        session_id: SessionId,
        /// Whose.
        user_id: UserId,
        /// The user's epoch when the password was asked for.
        epoch: u32,
        /// When.
        now: Timestamp,
        /// When it ends, however often it is refreshed.
        expires_at: Timestamp,
    },
    /// Somebody presents the refresh token of a generation (the first is 1). Accepted with
    /// `session.refreshed` when it is the current one, with `session.revoked` when it is not.
    Rotate {
        /// The generation of the token.
        generation: u32,
        /// When.
        now: Timestamp,
    },
    /// The user logs out, or an administrator ends the session.
    Revoke {
        /// Who asks.
        caller: Caller,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
}

impl Command for SessionCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "StartSession",
            Self::Rotate { .. } => "RotateSession",
            Self::Revoke { .. } => "RevokeSession",
        }
    }
}

souk_actors::events! {
    /// What happens to sessions.
    pub enum SessionEvent in "users" as "user-service" {
        /// A user logged in.
        Started(SessionStarted) = "session.started", "SessionStarted", 1.1, [];
        /// The token was replaced.
        Refreshed(SessionRefreshed) = "session.refreshed", "SessionRefreshed", 1.0, [];
        /// The session ended before its time.
        Revoked(SessionRevoked) = "session.revoked", "SessionRevoked", 1.0, [];
    }
}

/// A user logged in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStarted {
    /// The session.
    pub session_id: SessionId,
    /// Whose.
    pub user_id: UserId,
    /// The user's epoch when the password was asked for.
    #[serde(default)]
    pub epoch: u32,
    /// When.
    pub started_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// The token was replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionRefreshed {
    /// The session.
    pub session_id: SessionId,
    /// Whose.
    pub user_id: UserId,
    /// The generation of the new token.
    pub generation: u32,
    /// When.
    pub refreshed_at: Timestamp,
}

/// The session ended before its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionRevoked {
    /// The session.
    pub session_id: SessionId,
    /// Whose.
    pub user_id: UserId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub revoked_at: Timestamp,
}

rejections! {
    /// Why a session refuses a command.
    pub enum SessionRejection {
        /// Never started.
        NotFound = "not_found", "there is no such session";
        /// Another login has this id.
        AlreadyStarted = "already_started", "this session has already started";
        /// Ended before its time.
        Revoked = "session_revoked", "this session has been revoked";
        /// Its time is over.
        Expired = "session_expired", "this session has expired";
        /// Not theirs to ask.
        Forbidden = "forbidden", "the caller may not end this session";
    }
}

/// A session, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Everything about it, once started.
    pub details: Option<SessionDetails>,
}

/// What is known of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionDetails {
    /// The session.
    pub session_id: SessionId,
    /// Whose.
    pub user_id: UserId,
    /// The user's epoch when the password was asked for.
    #[serde(default)]
    pub epoch: u32,
    /// The generation of the token that works.
    pub generation: u32,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Why it ended before its time.
    pub revoked: Option<String>,
}

impl SessionDetails {
    /// Whether it lets anybody in at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && now < self.expires_at
    }

    fn revoke(&self, reason: &str, now: Timestamp) -> SessionEvent {
        SessionEvent::Revoked(SessionRevoked {
            session_id: self.session_id,
            user_id: self.user_id,
            reason: reason.to_owned(),
            revoked_at: now,
        })
    }
}

type Decision = Result<Vec<SessionEvent>, SessionRejection>;

impl Aggregate for Session {
    const TYPE: &'static str = "session";
    /// Whoever is to steer has to be able to log in.
    const STEERS: bool = true;
    type Command = SessionCommand;
    type Event = SessionEvent;
    type Rejection = SessionRejection;

    fn decide(&self, command: &SessionCommand) -> Decision {
        match command {
            SessionCommand::Start { session_id, user_id, epoch, now, expires_at } => {
                if self.details.is_some() {
                    return Err(SessionRejection::AlreadyStarted);
                }
                Ok(vec![SessionEvent::Started(SessionStarted {
                    session_id: *session_id,
                    user_id: *user_id,
                    epoch: *epoch,
                    started_at: *now,
                    expires_at: *expires_at,
                })])
            }
            SessionCommand::Rotate { generation, now } => self.rotate(*generation, *now),
            SessionCommand::Revoke { caller, reason, now } => {
                let details = self.details.as_ref().ok_or(SessionRejection::NotFound)?;
                if !caller.may_act_for(details.user_id) {
                    return Err(SessionRejection::Forbidden);
                }
                if details.revoked.is_some() {
                    return Ok(Vec::new());
                }
                Ok(vec![details.revoke(reason, *now)])
            }
        }
    }

    fn apply(&mut self, event: &SessionEvent) {
        match (event, &mut self.details) {
            (SessionEvent::Started(event), details) => {
                *details = Some(SessionDetails {
                    session_id: event.session_id,
                    user_id: event.user_id,
                    epoch: event.epoch,
                    generation: 1,
                    expires_at: event.expires_at,
                    revoked: None,
                });
            }
            (SessionEvent::Refreshed(event), Some(details)) => {
                details.generation = event.generation;
            }
            (SessionEvent::Revoked(event), Some(details)) => {
                details.revoked = Some(event.reason.clone());
            }
            (SessionEvent::Refreshed(_) | SessionEvent::Revoked(_), None) => {}
        }
    }
}

impl Session {
    fn rotate(&self, generation: u32, now: Timestamp) -> Decision {
        let details = self.details.as_ref().ok_or(SessionRejection::NotFound)?;
        if details.revoked.is_some() {
            return Err(SessionRejection::Revoked);
        }
        if now >= details.expires_at {
            return Err(SessionRejection::Expired);
        }
        if generation != details.generation {
            return Ok(vec![details.revoke(REUSED, now)]);
        }
        Ok(vec![SessionEvent::Refreshed(SessionRefreshed {
            session_id: details.session_id,
            user_id: details.user_id,
            generation: generation.saturating_add(1),
            refreshed_at: now,
        })])
    }
}

#[cfg(test)]
mod tests;
