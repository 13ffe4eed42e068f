//! What went out, for development and tests.

use serde::Serialize;
use souk_actors::runtime::Runtime;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::messages::{Composer, look_up};
use super::templates::Rendered;
use crate::projections::{ReadError, ReadModels};

/// A message that went out, as development mode shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutboxMessage {
    /// The notification.
    pub notification_id: Uuid,
    /// To whom.
    pub user_id: Option<Uuid>,
    /// By which way.
    pub channel: String,
    /// Which text.
    pub template: String,
    /// The address; `[erased]` once it is.
    pub to: String,
    /// The subject line.
    pub subject: String,
    /// The words.
    pub text: String,
    /// The same.
    pub body: String,
    /// The page.
    pub html: String,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// The provider's name for it.
    pub provider_message_id: Option<String>,
    /// When it went out.
    pub sent_at: Option<Timestamp>,
}

/// What went out, for development and tests: written again from what is stored, so that it
/// survives a restart and is forgotten with the person.
#[derive(Clone)]
pub struct Outbox {
    runtime: Runtime,
    read_models: ReadModels,
    composer: Composer,
}

impl Outbox {
    /// Lists from these read models.
    pub fn new(runtime: Runtime, read_models: ReadModels, composer: Composer) -> Self {
        Self { runtime, read_models, composer }
    }

    /// The messages that went out by a channel (`email`, `sms`, `in_app`), the newest first.
    pub async fn list(&self, channel: &str, limit: u32) -> Result<Vec<OutboxMessage>, ReadError> {
        let mut messages = Vec::new();
        for row in self.read_models.sent_by(channel, None, limit).await? {
            let found = match look_up(&self.runtime, row.notification_id).await {
                Ok(found) => found,
                // One person's trouble must not hide everybody's mail.
                Err(failure) => {
                    tracing::warn!(notification_id = %row.notification_id, error = failure.message, "a message cannot be shown");
                    continue;
                }
            };
            let by_address = row.channel != "in_app";
            let words = found.and_then(|(details, user)| {
                if row.channel == "email" {
                    return self.composer.mail(&details, user.as_ref()).ok();
                }
                if row.channel == "sms" {
                    let (to, text) = self.composer.sms(&details, user.as_ref()).ok()?;
                    return Some((
                        to,
                        Rendered { subject: String::new(), text, html: String::new() },
                    ));
                }
                Some((String::new(), self.composer.words(&details, user.as_ref()).ok()?))
            });
            let (to, words) = words.unwrap_or_else(|| {
                let gone = if by_address { "[erased]" } else { "" };
                let (subject, gone) = (row.template.clone(), gone.to_owned());
                (gone.clone(), Rendered { subject, text: gone.clone(), html: gone })
            });
            messages.push(OutboxMessage {
                notification_id: row.notification_id,
                user_id: row.user_id,
                channel: row.channel,
                template: row.template,
                to,
                subject: words.subject,
                body: words.text.clone(),
                text: words.text,
                html: words.html,
                cause_event_id: row.cause_event_id,
                provider_message_id: row.provider_message_id,
                sent_at: row.sent_at,
            });
        }
        Ok(messages)
    }
}
