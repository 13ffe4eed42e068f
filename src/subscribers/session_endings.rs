//! `session-endings`: whoever may not come in any more is told so, and the logins that are over end.
//!
//! | event | what follows |
//! | --- | --- |
//! | `user.password_reset`, `.password_changed`, `.sessions_ended` | the user's logins and keys of earlier epochs are revoked |
//! | `user.suspended`, `user.erased` | all of them |
//! | `session.revoked`, `user.reinstated`, `.upgraded_to_seller` | what is remembered of them is read again |
//!
//! That a login or a key is over is decided by the user's aggregate, in the transaction of the event. What
//! this adds is that each of them says so itself.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::caught_up::{Behind, FirstHeads};
use super::command_failed;
use crate::domain::caller::Caller;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::service_token::{ServiceToken, ServiceTokenCommand};
use crate::domain::session::{Session, SessionCommand};
use crate::domain::user::User;
use crate::identity::access::Access;
use crate::projections::{ReadModels, SERVICE_TOKENS_VIEW, SESSIONS_VIEW};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "session-endings";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "user.suspended",
    "user.reinstated",
    "user.upgraded_to_seller",
    "user.erased",
    "user.password_reset",
    "user.password_changed",
    "user.sessions_ended",
    "session.revoked",
];

/// Logins or keys looked at in one go.
const PAGE: u32 = 100;

/// The handler.
pub struct SessionEndings {
    access: Access,
    read_models: ReadModels,
    first_heads: FirstHeads,
}

/// Why a login ends, as its event says; none: it does not.
fn reason(event_type: &str) -> Option<&'static str> {
    Some(match event_type {
        "user.suspended" => "suspended",
        "user.erased" => "erased",
        "user.password_reset" => "password_reset",
        "user.password_changed" => "password_changed",
        "user.sessions_ended" => "logged_out_everywhere",
        _ => return None,
    })
}

impl SessionEndings {
    /// With what is remembered of who may come in.
    pub fn new(access: Access, read_models: ReadModels) -> Self {
        Self { access, read_models, first_heads: FirstHeads::default() }
    }

    async fn end(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        user: UserId,
        reason: &str,
    ) -> Result<(), Failure> {
        let view = |user: &User| user.details.clone();
        let read = runtime.aggregate::<User>().read_inside(user.uuid(), view).await;
        let Some(details) = read.map_err(|error| command_failed(&error))?.value else {
            return Ok(());
        };
        // What is remembered of others is read again meanwhile.
        let views = [SESSIONS_VIEW, SERVICE_TOKENS_VIEW];
        let caught_up = self.first_heads.caught_up(runtime, event, &views).await;
        caught_up.map_err(Behind::alone)?;
        let (now, mut before) = (runtime.world().now(), None::<(i64, Uuid)>);
        loop {
            let rows = self.read_models.sessions(user.uuid(), Some(now), before, PAGE).await?;
            for row in &rows {
                let session = SessionId(row.session_id);
                if !details.goes_on(session, row.epoch) {
                    self.revoke(runtime, event, session, reason).await?;
                }
            }
            match rows.last() {
                Some(last) => before = Some((last.started_at.millis(), last.session_id)),
                None => break,
            }
        }
        self.end_keys(runtime, event, user, details.epoch).await
    }

    /// Has the keys say that they are over that do not belong to this epoch.
    async fn end_keys(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        user: UserId,
        epoch: u32,
    ) -> Result<(), Failure> {
        let (tokens, now) = (runtime.aggregate::<ServiceToken>(), runtime.world().now());
        let mut before = None::<(i64, Uuid)>;
        loop {
            let rows = self.read_models.service_tokens(Some(user.uuid()), before, PAGE).await?;
            for row in &rows {
                let is_over = move |token: &ServiceToken| {
                    let of = token.details.as_ref().filter(|details| details.is_good(now));
                    of.and_then(|of| of.owner.as_ref()).is_some_and(|owner| owner.epoch != epoch)
                };
                let read = tokens.read_inside(row.token_id, is_over).await;
                if read.map_err(|error| command_failed(&error))?.value {
                    let context = CommandContext::because_of(event, "end-key", row.token_id);
                    let revoke = ServiceTokenCommand::Revoke { caller: Caller::System, now };
                    let sent = tokens.send(row.token_id, revoke, context, |_| ()).await;
                    sent.map_err(|error| command_failed(&error))?;
                }
            }
            match rows.last() {
                Some(last) => before = Some((last.issued_at.millis(), last.token_id)),
                None => return Ok(()),
            }
        }
    }

    async fn revoke(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        session: SessionId,
        reason: &str,
    ) -> Result<(), Failure> {
        let context = CommandContext::because_of(event, "end-session", session.uuid());
        let now = runtime.world().now();
        let revoke =
            SessionCommand::Revoke { caller: Caller::System, reason: reason.to_owned(), now };
        let sessions = runtime.aggregate::<Session>();
        let sent = sessions.send(session.uuid(), revoke, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}

#[async_trait]
impl Handler for SessionEndings {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        if &*event.aggregate_type == "session" {
            let session = SessionId(event.aggregate_id);
            let looked = self.access.login_changed(runtime, session).await;
            return looked.map_err(|error| command_failed(&error));
        }
        let user = UserId(event.aggregate_id);
        let looked = self.access.person_changed(runtime, user).await;
        looked.map_err(|error| command_failed(&error))?;
        match reason(&event.event_type) {
            Some(reason) => self.end(runtime, event, user, reason).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_takes_something_from_a_user_ends_logins() {
        let gives = ["user.reinstated", "user.upgraded_to_seller"];
        for topic in TOPICS {
            let ends = topic.starts_with("user.") && !gives.contains(topic);
            assert_eq!(reason(topic).is_some(), ends, "{topic}");
        }
    }
}
