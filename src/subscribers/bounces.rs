//! `mail-bounces`: nobody writes to an address again that does not exist.
//!
//! | event | command |
//! | --- | --- |
//! | `notification.email.bounced`, for good | the user's address cannot be reached |

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;

use super::{command_failed, decode_failed};
use crate::domain::caller::Caller;
use crate::domain::notification::NotificationEvent;
use crate::domain::user::{User, UserCommand};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "mail-bounces";
/// What it listens to.
pub const TOPICS: &[&str] = &["notification.email.bounced"];

/// The handler.
pub struct MailBounces;

#[async_trait]
impl Handler for MailBounces {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let NotificationEvent::EmailBounced(bounced) = change else { return Ok(()) };
        if !bounced.for_good {
            return Ok(());
        }
        let user = bounced.user_id.uuid();
        let context = CommandContext::because_of(event, "record-bounce", user);
        let (caller, now) = (Caller::System, runtime.world().now());
        let command = UserCommand::RecordBounce { caller, reason: bounced.reason, now };
        let sent = runtime.aggregate::<User>().send(user, command, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}
