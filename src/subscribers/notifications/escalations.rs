//! `escalations`: tells a second administrator of a notice that nobody has acknowledged in time.
//!
//! A notice is for all administrators, in the order in which they registered: the first is expected to
//! see to it, and the second is told in person, inside the marketplace and by mail, when nobody has. A
//! marketplace with one administrator tells that one.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::{Message, request};
use crate::domain::ids::UserId;
use crate::domain::notification::NotificationEvent;
use crate::projections::{ReadModels, USERS_VIEW};
use crate::subscribers::caught_up::FirstHeads;
use crate::subscribers::decode_failed;

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "escalations";
/// What it listens to.
pub const TOPICS: &[&str] = &["notification.admin.escalated"];
/// The template of what it tells.
pub const TEMPLATE: &str = "notice_escalated";

/// The handler.
pub struct Escalations {
    reads: ReadModels,
    first_heads: FirstHeads,
}

impl Escalations {
    /// Finds administrators in these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self { reads, first_heads: FirstHeads::default() }
    }

    async fn second(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
    ) -> Result<Option<Uuid>, Failure> {
        self.first_heads.caught_up(runtime, event, &[USERS_VIEW]).await?;
        let administrators = self.reads.administrators(2).await?;
        Ok(administrators.last().copied())
    }
}

#[async_trait]
impl Handler for Escalations {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let NotificationEvent::Escalated(escalated) = change else { return Ok(()) };
        let Some(administrator) = self.second(runtime, event).await? else {
            tracing::warn!(notification_id = %escalated.notification_id, "nobody is there to escalate a notice to");
            return Ok(());
        };
        let message = Message::in_app(UserId(administrator), TEMPLATE)
            .with("notice", &escalated.template)
            .with("notification_id", escalated.notification_id.to_string());
        for message in message.and_by_mail() {
            request(runtime, event, message).await?;
        }
        Ok(())
    }
}
