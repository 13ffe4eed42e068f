//! `notification-email`: writes the mails that notifications ask for and hands them over.
//!
//! The attempt is an event before the call, so that a crash in between is known. The mail goes out
//! under the notification's id as its key: a provider that knows keys sends it once. With one that
//! does not, an answer that was lost, or a crash before it came, leaves open whether the mail went
//! out. That is recorded. The mail is sent once more, and after a second time without an answer it
//! is a dead letter, for somebody to decide; what is needed to get in at all is tried as often as
//! anything else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::faults::points;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::command_failed;
use super::messages::{ComposeError, Composer, look_up};
use super::templates::Rendered;
use crate::domain::notification::{
    Channel, Notification, NotificationCommand, NotificationDetails, NotificationStatus,
};
use crate::gateways::mail::{Accepted, Mail, Mailer, SendError};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "notification-email";
/// What it listens to.
pub const TOPICS: &[&str] = &["notification.requested"];
/// The longest that a provider which takes no more for now is left alone; then it is asked again,
/// whatever it said.
const LEFT_ALONE_MAX: Duration = Duration::from_secs(60 * 60);
/// How long a provider may take.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(15);

/// Makes the keyed hash of an address, which may stand in events.
pub type AddressHash = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// The handler.
pub struct MailSender {
    mailer: Arc<dyn Mailer>,
    composer: Composer,
    address_hash: AddressHash,
}

/// After how many lost answers a mail is not sent again by itself.
const UNKNOWN_MAX: u32 = 2;
/// Mails that may come twice: their tokens work once.
const MAY_REPEAT: &[&str] = &["welcome_verification", "password_reset"];

/// What an answer means: what to record, and what to tell the runtime.
fn verdict(
    answer: Result<Accepted, SendError>,
    adapter: &str,
    to_hash: String,
    again: bool,
    now: Timestamp,
) -> (NotificationCommand, Result<(), Failure>) {
    match answer {
        Ok(Accepted { provider_message_id }) => {
            let adapter = adapter.to_owned();
            let sent =
                NotificationCommand::RecordSent { provider_message_id, adapter, to_hash, now };
            (sent, Ok(()))
        }
        Err(SendError::Refused(reason)) => {
            let message = format!("the message provider refused the message: {reason}");
            let failed = NotificationCommand::RecordFailed { reason, now };
            (failed, Err(Failure::permanent(message)))
        }
        Err(error @ SendError::Transient(_)) => {
            let message = error.to_string();
            (deferred(error, now), Err(Failure::transient(message)))
        }
        Err(SendError::Limited { reason, again }) => {
            let wait = again.wait(now, LEFT_ALONE_MAX);
            let error = SendError::Limited { reason, again };
            let failure = Failure::transient(error.to_string()).not_before(wait);
            (deferred(error, now), Err(failure))
        }
        Err(error @ SendError::Locked(_)) => {
            let message = error.to_string();
            (deferred(error, now), Err(Failure::system(message)))
        }
        Err(SendError::Unknown(reason)) => {
            let message = format!("whether the message went out is unknown: {reason}");
            let unknown = NotificationCommand::RecordUnknown { reason, now };
            let failure =
                if again { Failure::transient(message) } else { Failure::permanent(message) };
            (unknown, Err(failure))
        }
    }
}

fn deferred(error: SendError, now: Timestamp) -> NotificationCommand {
    let (SendError::Transient(reason)
    | SendError::Limited { reason, .. }
    | SendError::Locked(reason)
    | SendError::Refused(reason)
    | SendError::Unknown(reason)) = error;
    NotificationCommand::RecordDeferred { reason, now }
}

/// Whether a mail is sent again by itself after so many lost answers.
fn is_sent_again(template: &str, unknown: u32) -> bool {
    unknown < UNKNOWN_MAX || MAY_REPEAT.contains(&template)
}

impl MailSender {
    /// Sends through this provider.
    pub fn new(mailer: Arc<dyn Mailer>, composer: Composer, address_hash: AddressHash) -> Self {
        Self { mailer, composer, address_hash }
    }

    fn way(&self, id: Uuid, to: String, words: Rendered) -> ByMail<'_> {
        let to_hash = (self.address_hash)(&to);
        let Rendered { subject, text, html } = words;
        let mail = Mail { idempotency_key: id, to, subject, text, html };
        ByMail { mailer: &*self.mailer, mail, to_hash }
    }
}

/// One message on its way to a provider.
#[async_trait]
pub(super) trait Way: Send + Sync {
    /// The adapter's name.
    fn adapter(&self) -> &'static str;

    /// What faults of development are aimed at.
    fn fault_target(&self) -> &'static str;

    /// Whether the provider sends one message under one key, however often it is asked.
    fn knows_keys(&self) -> bool;

    /// A keyed hash of where it goes.
    fn to_hash(&self) -> String;

    /// The message, if the provider has taken it after all and can say so.
    async fn find(&self) -> Result<Option<Accepted>, SendError> {
        Ok(None)
    }

    /// Hands it over.
    async fn hand_over(&self) -> Result<Accepted, SendError>;
}

/// A mail on its way.
struct ByMail<'a> {
    mailer: &'a dyn Mailer,
    mail: Mail,
    to_hash: String,
}

#[async_trait]
impl Way for ByMail<'_> {
    fn adapter(&self) -> &'static str {
        self.mailer.name()
    }

    fn fault_target(&self) -> &'static str {
        "mailer"
    }

    fn knows_keys(&self) -> bool {
        self.mailer.knows_keys()
    }

    fn to_hash(&self) -> String {
        self.to_hash.clone()
    }

    async fn hand_over(&self) -> Result<Accepted, SendError> {
        self.mailer.send(&self.mail).await
    }
}

/// Within the time that a provider may take.
async fn in_time<T>(answer: impl Future<Output = Result<T, SendError>>) -> Result<T, SendError> {
    match tokio::time::timeout(HANDED_OVER_WITHIN, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(SendError::Unknown("timeout".to_owned())),
    }
}

/// What came of the try before this one, where nobody knew: the provider is asked for it.
async fn found(
    way: &dyn Way,
    details: &NotificationDetails,
) -> Result<Option<Accepted>, SendError> {
    let is_open =
        matches!(details.status, NotificationStatus::Attempted | NotificationStatus::Unknown);
    if !is_open || way.knows_keys() {
        return Ok(None);
    }
    in_time(way.find()).await.map_err(|error| match error {
        // Nothing was sent by asking.
        SendError::Unknown(reason) => SendError::Transient(reason),
        other => other,
    })
}

/// Hands a message over: the attempt is recorded before, and what came of it after the call.
pub(super) async fn deliver(
    runtime: &Runtime,
    event: &StoredEvent,
    details: &NotificationDetails,
    way: &dyn Way,
) -> Result<(), Failure> {
    let id = event.aggregate_id;
    let now = || runtime.world().now();
    let mut unknown = details.unknown;
    if details.status == NotificationStatus::Attempted && !way.knows_keys() {
        unknown += 1;
        let reason = "interrupted".to_owned();
        let interrupted = NotificationCommand::RecordUnknown { reason, now: now() };
        tell(runtime, id, interrupted, of_this_try(runtime, event)).await?;
    }
    let answer = match found(way, details).await {
        Ok(None) => {
            if unknown > details.unknown && !is_sent_again(&details.template, unknown) {
                let message = "whether the message went out is unknown: interrupted";
                return Err(Failure::permanent(message));
            }
            let attempt = NotificationCommand::Attempt { now: now() };
            tell(runtime, id, attempt, of_this_try(runtime, event)).await?;
            runtime.faults().before(way.fault_target(), &[way.adapter()]).await?;
            in_time(way.hand_over()).await
        }
        Ok(Some(accepted)) => Ok(accepted),
        Err(error) => Err(error),
    };
    let failed = points::try_reach("mail.after_send").await;
    failed.map_err(|failed| Failure::transient(failed.to_string()))?;
    let again = is_sent_again(&details.template, unknown + 1);
    let (record, outcome) = verdict(answer, way.adapter(), way.to_hash(), again, now());
    tell(runtime, id, record, of_this_try(runtime, event)).await?;
    if outcome.is_ok() {
        let (template, correlation_id) = (&details.template, &*event.correlation_id);
        let event_type = if details.channel == Channel::Sms { "SmsSent" } else { "EmailSent" };
        tracing::info!(event_type, notification_id = %id, template, correlation_id, "a message was handed over");
    }
    outcome
}

/// Every try counts, and so does what comes of it: their commands have ids of their own.
fn of_this_try(runtime: &Runtime, event: &StoredEvent) -> CommandContext {
    CommandContext {
        command_id: runtime.world().new_id(),
        once: None,
        ..CommandContext::because_of(event, "try", event.aggregate_id)
    }
}

/// A message that cannot be written: what its recipient is the reason of is no failure of ours.
pub(super) async fn unwritable(
    runtime: &Runtime,
    event: &StoredEvent,
    error: ComposeError,
) -> Result<(), Failure> {
    let (now, reason) = (runtime.world().now(), error.code().to_owned());
    let id = event.aggregate_id;
    let context = CommandContext::because_of(event, "unwritable", id);
    tell(runtime, id, NotificationCommand::RecordFailed { reason, now }, context).await?;
    match error {
        ComposeError::Erased | ComposeError::NotWanted => Ok(()),
        ComposeError::Render(error) => Err(Failure::permanent(error.to_string())),
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
        if details.channel != Channel::Email || details.is_over() {
            return Ok(());
        }
        if user.as_ref().is_some_and(|user| user.email_unreachable_since.is_some()) {
            let (now, reason) = (runtime.world().now(), "address_unreachable".to_owned());
            let context = CommandContext::because_of(event, "unreachable", id);
            let failed = NotificationCommand::RecordFailed { reason, now };
            return tell(runtime, id, failed, context).await;
        }
        match self.composer.mail(&details, user.as_ref()) {
            Ok((to, words)) => deliver(runtime, event, &details, &self.way(id, to, words)).await,
            Err(error) => unwritable(runtime, event, error).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::aggregate::Command as _;
    use souk_actors::retry::FailureKind;

    use super::*;
    use crate::gateways::retry_after::RetryAfter;

    #[test]
    fn each_answer_has_its_record_and_its_verdict() {
        let told = |answer, again| {
            let (record, outcome) =
                verdict(answer, "log", "h".into(), again, Timestamp::from_millis(0));
            (record.name(), outcome.map_err(|failure| failure.kind))
        };
        let accepted = Accepted { provider_message_id: "1".into() };
        assert_eq!(told(Ok(accepted), true), ("RecordNotificationSent", Ok(())));
        let refused = told(Err(SendError::Refused("bad_address".into())), true);
        assert_eq!(refused, ("RecordNotificationFailed", Err(FailureKind::Permanent)));
        let lost = || Err(SendError::Unknown("lost".into()));
        let unknown = "RecordNotificationUnknown";
        assert_eq!(told(lost(), true), (unknown, Err(FailureKind::Transient)));
        assert_eq!(told(lost(), false), (unknown, Err(FailureKind::Permanent)));
        let busy = told(Err(SendError::Transient("busy".into())), true);
        assert_eq!(busy, ("RecordNotificationDeferred", Err(FailureKind::Transient)));
        let limit = |secs| {
            let again = RetryAfter::For(Duration::from_secs(secs));
            SendError::Limited { reason: "status_429".into(), again }
        };
        let limited = told(Err(limit(60)), true);
        assert_eq!(limited, ("RecordNotificationDeferred", Err(FailureKind::Transient)));
        for (asked, waits) in [(60, 60), (99_999_999, 3_600)] {
            let now = Timestamp::from_millis(0);
            let (_, outcome) = verdict(Err(limit(asked)), "log", "h".into(), true, now);
            assert_eq!(outcome.unwrap_err().retry_after, Some(Duration::from_secs(waits)));
        }
        let locked = told(Err(SendError::Locked("key".into())), true);
        assert_eq!(locked, ("RecordNotificationDeferred", Err(FailureKind::System)));
    }

    #[test]
    fn an_ordinary_mail_is_repeated_once_by_itself() {
        assert!(is_sent_again("receipt", 1) && !is_sent_again("receipt", 2));
        assert!(is_sent_again("welcome_verification", 9));
    }
}
