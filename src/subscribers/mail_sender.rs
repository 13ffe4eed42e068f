//! `mail-sender`: writes the mails that notifications ask for and hands them over.
//!
//! The attempt is an event before the call, so that a crash in between is known. The mail goes out
//! under the notification's id as its key: a provider that knows keys sends it once.
//!
//! Nothing clear is stored. The words are made from the template, the notification's sealed
//! parameters and the user; the verification token from a nonce and a secret. [`Outbox`] makes them
//! again for development, long after the mail went out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::faults::points;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::command_failed;
use super::notifications::NONCE;
use super::templates::{self, RenderError, Rendered};
use crate::domain::notification::{
    Channel, Notification, NotificationCommand, NotificationDetails, NotificationStatus,
};
use crate::domain::user::{User, UserDetails};
use crate::gateways::mail::{Accepted, Mail, Mailer, SendError};
use crate::projections::{ReadError, ReadModels};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "mail-sender";
/// What it listens to.
pub const TOPICS: &[&str] = &["notification.requested"];
/// How long a provider may take.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(15);

/// Makes the verification token of a user from its nonce.
pub type TokenOf = Arc<dyn Fn(Uuid, &str) -> String + Send + Sync>;
/// Makes the keyed hash of an address, which may stand in events.
pub type AddressHash = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// The handler.
pub struct MailSender {
    mailer: Arc<dyn Mailer>,
    token_of: TokenOf,
    address_hash: AddressHash,
}

/// Why a mail cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ComposeError {
    /// There is nobody to write to any more.
    #[error("the recipient has been erased")]
    Erased,
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// The address and the words of a notification's mail.
fn compose(
    details: &NotificationDetails,
    user: Option<&UserDetails>,
    token_of: &TokenOf,
) -> Result<(String, Rendered), ComposeError> {
    let to = match &details.to {
        Some(address) => address.get(),
        None => user.and_then(|user| user.email.get()),
    };
    let to = to.cloned().ok_or(ComposeError::Erased)?;
    let mut values: BTreeMap<String, String> =
        details.params.get().cloned().ok_or(ComposeError::Erased)?;
    if !values.contains_key("first_name") {
        let first_name = user.and_then(|user| user.first_name.get());
        values.insert("first_name".to_owned(), first_name.ok_or(ComposeError::Erased)?.clone());
    }
    if let Some(nonce) = values.remove(NONCE) {
        let token = token_of(details.recipient.uuid(), &nonce);
        values.insert("verification_token".to_owned(), token);
    }
    Ok((to, templates::render(&details.template, &values)?))
}

async fn look_up(
    runtime: &Runtime,
    id: Uuid,
) -> Result<Option<(NotificationDetails, Option<UserDetails>)>, Failure> {
    let notifications = runtime.aggregate::<Notification>();
    let read = notifications.read_inside(id, |notification| notification.details.clone()).await;
    let Some(details) = read.map_err(|error| command_failed(&error))?.value else {
        return Ok(None);
    };
    let users = runtime.aggregate::<User>();
    let read = users.read_inside(details.recipient.uuid(), |user| user.details.clone()).await;
    let user = read.map_err(|error| command_failed(&error))?.value;
    Ok(Some((details, user)))
}

/// What an answer means: what to record, under which purpose, and what to tell the runtime.
fn verdict(
    answer: Result<Accepted, SendError>,
    adapter: &str,
    to_hash: String,
    now: Timestamp,
) -> (Option<(&'static str, NotificationCommand)>, Result<(), Failure>) {
    match answer {
        Ok(Accepted { provider_message_id }) => {
            let adapter = adapter.to_owned();
            let sent =
                NotificationCommand::RecordSent { provider_message_id, adapter, to_hash, now };
            (Some(("sent", sent)), Ok(()))
        }
        Err(SendError::Refused(reason)) => {
            let message = format!("the message provider refused the message: {reason}");
            let failed = NotificationCommand::RecordFailed { reason, now };
            (Some(("refused", failed)), Err(Failure::permanent(message)))
        }
        Err(error @ (SendError::Transient(_) | SendError::Unknown(_))) => {
            (None, Err(Failure::transient(error.to_string())))
        }
        Err(error @ SendError::Locked(_)) => (None, Err(Failure::system(error.to_string()))),
    }
}

impl MailSender {
    /// Sends through this provider.
    pub fn new(mailer: Arc<dyn Mailer>, token_of: TokenOf, address_hash: AddressHash) -> Self {
        Self { mailer, token_of, address_hash }
    }

    async fn hand_over(&self, mail: &Mail) -> Result<Accepted, SendError> {
        match tokio::time::timeout(HANDED_OVER_WITHIN, self.mailer.send(mail)).await {
            Ok(answer) => answer,
            Err(_) => Err(SendError::Unknown("it took too long".to_owned())),
        }
    }

    async fn send(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        to: String,
        words: Rendered,
    ) -> Result<(), Failure> {
        let id = event.aggregate_id;
        let now = || runtime.world().now();
        // Every try counts, so it has an id of its own.
        let attempt = CommandContext {
            command_id: runtime.world().new_id(),
            once: None,
            ..CommandContext::because_of(event, "attempt", id)
        };
        tell(runtime, id, NotificationCommand::Attempt { now: now() }, attempt).await?;
        let to_hash = (self.address_hash)(&to);
        let Rendered { subject, text, html } = words;
        let mail = Mail { idempotency_key: id, to, subject, text, html };
        runtime.faults().before("mailer", &[self.mailer.name()]).await?;
        let answer = self.hand_over(&mail).await;
        let failed = points::try_reach("mail.after_send").await;
        failed.map_err(|failed| Failure::transient(failed.to_string()))?;
        let (record, outcome) = verdict(answer, self.mailer.name(), to_hash, now());
        if let Some((purpose, command)) = record {
            tell(runtime, id, command, CommandContext::because_of(event, purpose, id)).await?;
        }
        outcome
    }
}

async fn tell(
    runtime: &Runtime,
    id: Uuid,
    command: NotificationCommand,
    context: CommandContext,
) -> Result<(), Failure> {
    let sent = runtime.aggregate::<Notification>().send(id, command, context, |_| ()).await;
    sent.map(drop).map_err(|error| command_failed(&error))
}

#[async_trait]
impl Handler for MailSender {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let id = event.aggregate_id;
        let Some((details, user)) = look_up(runtime, id).await? else { return Ok(()) };
        if details.channel != Channel::Email || details.status == NotificationStatus::Sent {
            return Ok(());
        }
        match compose(&details, user.as_ref(), &self.token_of) {
            Ok((to, words)) => self.send(runtime, event, to, words).await,
            Err(error) => {
                let now = runtime.world().now();
                let reason = match error {
                    ComposeError::Erased => "recipient_erased".to_owned(),
                    ComposeError::Render(_) => "template_unusable".to_owned(),
                };
                let context = CommandContext::because_of(event, "unwritable", id);
                tell(runtime, id, NotificationCommand::RecordFailed { reason, now }, context)
                    .await?;
                match error {
                    ComposeError::Erased => Ok(()),
                    ComposeError::Render(error) => Err(Failure::permanent(error.to_string())),
                }
            }
        }
    }
}

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
    token_of: TokenOf,
}

impl Outbox {
    /// Lists from these read models.
    pub fn new(runtime: Runtime, read_models: ReadModels, token_of: TokenOf) -> Self {
        Self { runtime, read_models, token_of }
    }

    /// The messages that went out by a channel (`email`, `in_app`), the newest first.
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
            let words = found
                .and_then(|(details, user)| compose(&details, user.as_ref(), &self.token_of).ok());
            let (to, words) = words.unwrap_or_else(|| {
                let gone = if row.channel == "email" { "[erased]" } else { "" };
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

#[cfg(test)]
mod tests {
    use souk_actors::personal::Personal;
    use souk_actors::retry::FailureKind;

    use super::*;
    use crate::domain::ids::{NotificationId, UserId};
    use crate::domain::notification::{Audience, Params};

    fn details(params: Personal<Params>, to: Option<Personal<String>>) -> NotificationDetails {
        NotificationDetails {
            notification_id: NotificationId(Uuid::from_u128(1)),
            recipient: UserId(Uuid::from_u128(7)),
            audience: Audience::User,
            channel: Channel::Email,
            template: "welcome_verification".to_owned(),
            to,
            params,
            order_id: None,
            cause_event_id: Uuid::nil(),
            status: NotificationStatus::Requested,
            attempts: 0,
            provider_message_id: None,
            adapter: None,
            failure: None,
            requested_at: Timestamp::from_millis(0),
            sent_at: None,
            read_at: None,
        }
    }

    fn token_of() -> TokenOf {
        Arc::new(|user, nonce| format!("token-{}-{nonce}", user.as_u128()))
    }

    #[test]
    fn the_token_is_made_from_the_nonce_and_only_the_mail_has_it() {
        let subject = Uuid::from_u128(7);
        let params = Params::from([
            (NONCE.to_owned(), "abc".to_owned()),
            ("first_name".to_owned(), "Ada".to_owned()),
        ]);
        let to = Some(Personal::new(subject, "ada@example.com".to_owned()));
        let stored = details(Personal::new(subject, params), to);
        let (to, words) = compose(&stored, None, &token_of()).unwrap();
        assert_eq!(to, "ada@example.com");
        assert!(words.text.contains("token-7-abc") && words.html.contains("token-7-abc"));
        assert!(!words.text.contains(NONCE));
    }

    #[test]
    fn nobody_writes_to_somebody_who_was_forgotten() {
        let subject = Uuid::from_u128(7);
        let params = || Personal::new(subject, Params::new());
        let erased_address = details(params(), Some(Personal::Erased { subject }));
        assert_eq!(compose(&erased_address, None, &token_of()), Err(ComposeError::Erased));
        assert_eq!(compose(&details(params(), None), None, &token_of()), Err(ComposeError::Erased));
    }

    #[test]
    fn each_answer_has_its_record_and_its_verdict() {
        let told = |answer| {
            let (record, outcome) = verdict(answer, "log", "h".into(), Timestamp::from_millis(0));
            (record.map(|(purpose, _)| purpose), outcome.map_err(|failure| failure.kind))
        };
        assert_eq!(told(Ok(Accepted { provider_message_id: "1".into() })), (Some("sent"), Ok(())));
        let refused = told(Err(SendError::Refused("bad_address".into())));
        assert_eq!(refused, (Some("refused"), Err(FailureKind::Permanent)));
        let lost = told(Err(SendError::Unknown("lost".into())));
        assert_eq!(lost, (None, Err(FailureKind::Transient)));
        let locked = told(Err(SendError::Locked("key".into())));
        assert_eq!(locked, (None, Err(FailureKind::System)));
    }
}
