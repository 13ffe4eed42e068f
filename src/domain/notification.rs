//! Notifications: one message to one person by one channel, because of one event.
//!
//! A mail is attempted before it is sent, so that a crash in between is known. What surely did not go
//! out is deferred; where nobody knows, that is recorded, and a second try may make the person get it
//! twice. A message inside the marketplace is sent by being stored.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::caller::Caller;
use super::ids::{NotificationId, OrderId, UserId};
use super::rejection::rejections;

/// Within this an administrator acknowledges a notice, or another one is told.
pub const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(15 * 60);
/// The timer that waits for that. Stored; never rename.
const ESCALATE: &str = "escalate";

/// By which way a message goes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// By mail.
    Email,
    /// By text message.
    Sms,
    /// Read inside the marketplace.
    InApp,
}

impl Channel {
    /// Its name, as it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Sms => "sms",
            Self::InApp => "in_app",
        }
    }
}

/// For whom a message is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// For the recipient alone.
    User,
    /// For whoever runs the marketplace.
    Admin,
}

impl Audience {
    /// Its name, as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// How a message stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NotificationStatus {
    /// To be sent.
    Requested,
    /// Being sent, or not known to be.
    Attempted,
    /// Sent.
    Sent,
    /// Given up.
    Failed,
    /// It may have gone out: the provider's answer was lost.
    Unknown,
    /// It went out, and the mailbox did not take it.
    Bounced,
    /// Its recipient does not want to be told.
    Muted,
}

impl NotificationStatus {
    /// Its name, as it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Attempted => "attempted",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Bounced => "bounced",
            Self::Muted => "muted",
        }
    }
}

/// What fills a template's gaps.
pub type Params = BTreeMap<String, String>;

/// A new message.
#[derive(Debug, Clone, PartialEq)]
pub struct NewNotification {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub recipient: UserId,
    /// For whom.
    pub audience: Audience,
    /// By which way.
    pub channel: Channel,
    /// Which text.
    pub template: String,
    /// The address, when it is known here; looked up by whoever sends when it is not.
    pub to: Option<Personal<String>>,
    /// What fills the text's gaps.
    pub params: Personal<Params>,
    /// The order it is about, if it is about one.
    pub order_id: Option<OrderId>,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// Whether the recipient does not want to be told.
    pub muted: bool,
    /// When.
    pub now: Timestamp,
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq)]
pub enum NotificationCommand {
    /// Send it.
    Request(Box<NewNotification>),
    /// The mail is about to be handed over.
    Attempt {
        /// When.
        now: Timestamp,
    },
    /// The mail was handed over.
    RecordSent {
        /// The provider's name for it.
        provider_message_id: String,
        /// Which adapter handed it over.
        adapter: String,
        /// A keyed hash of the address, made by whoever sent it.
        to_hash: String,
        /// When.
        now: Timestamp,
    },
    /// The mail was refused for good.
    RecordFailed {
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// The mail surely did not go out; it will be tried again.
    RecordDeferred {
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Nobody knows whether the mail went out.
    RecordUnknown {
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// The provider says that the mailbox did not take the mail.
    RecordBounced {
        /// Whether it never will.
        for_good: bool,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Somebody sees to it.
    Acknowledge {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Nobody has acknowledged it in time.
    Escalate {
        /// When.
        now: Timestamp,
    },
    /// The recipient has seen it.
    MarkRead {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
}

impl Command for NotificationCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "RequestNotification",
            Self::Attempt { .. } => "AttemptNotification",
            Self::RecordSent { .. } => "RecordNotificationSent",
            Self::RecordFailed { .. } => "RecordNotificationFailed",
            Self::RecordDeferred { .. } => "RecordNotificationDeferred",
            Self::RecordUnknown { .. } => "RecordNotificationUnknown",
            Self::RecordBounced { .. } => "RecordNotificationBounced",
            Self::Acknowledge { .. } => "AcknowledgeNotification",
            Self::Escalate { .. } => "EscalateNotification",
            Self::MarkRead { .. } => "MarkNotificationRead",
        }
    }
}

souk_actors::events! {
    /// What happens to messages.
    pub enum NotificationEvent in "notifications" as "notification-service" {
        /// A message is to be sent.
        Requested(NotificationRequested) = "notification.requested", "NotificationRequested",
            1.1, [];
        /// Its recipient does not want to be told.
        Muted(NotificationMuted) = "notification.muted", "NotificationMuted", 1.0, [];
        /// A mail is about to be handed over.
        Attempted(EmailAttempted) = "notification.email.attempted", "EmailAttempted", 1.0, [];
        /// A mail was handed over.
        EmailSent(EmailSent) = "notification.email.sent", "EmailSent", 1.1, ["NotificationSent"];
        /// A mail was refused for good.
        EmailFailed(EmailFailed) = "notification.email.failed", "EmailFailed", 1.0, [];
        /// A mail surely did not go out; it will be tried again.
        EmailDeferred(EmailUndelivered) = "notification.email.deferred", "EmailDeferred", 1.0, [];
        /// Nobody knows whether a mail went out.
        EmailUnknown(EmailUndelivered) = "notification.email.outcome_unknown",
            "EmailOutcomeUnknown", 1.0, [];
        /// A text message is about to be handed over.
        SmsAttempted(EmailAttempted) = "notification.sms.attempted", "SmsAttempted", 1.0, [];
        /// A text message was handed over.
        SmsSent(EmailSent) = "notification.sms.sent", "SmsSent", 1.1, [];
        /// A text message was refused for good.
        SmsFailed(EmailFailed) = "notification.sms.failed", "SmsFailed", 1.0, [];
        /// A text message surely did not go out; it will be tried again.
        SmsDeferred(EmailUndelivered) = "notification.sms.deferred", "SmsDeferred", 1.0, [];
        /// Nobody knows whether a text message went out.
        SmsUnknown(EmailUndelivered) = "notification.sms.outcome_unknown", "SmsOutcomeUnknown",
            1.0, [];
        /// A user can read it.
        UserSent(NotificationDelivered) = "notification.user.sent", "UserNotificationSent",
            1.0, [];
        /// Administrators can read it.
        AdminSent(NotificationDelivered) = "notification.admin.sent", "AdminNotificationSent",
            1.0, [];
        /// The mailbox did not take a mail that had gone out.
        EmailBounced(EmailBounced) = "notification.email.bounced", "EmailBounced", 1.0, [];
        /// Somebody sees to it.
        Acknowledged(NotificationAcknowledged) = "notification.acknowledged",
            "NotificationAcknowledged", 1.0, [];
        /// Nobody has acknowledged a notice for administrators in time.
        Escalated(NotificationEscalated) = "notification.admin.escalated",
            "AdminNotificationEscalated", 1.0, [];
        /// The recipient has seen it.
        Read(NotificationRead) = "notification.read", "NotificationRead", 1.0, [];
    }
}

/// A message is to be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationRequested {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// For whom.
    pub audience: Audience,
    /// By which way.
    pub channel: Channel,
    /// Which text.
    pub template: String,
    /// The address, when it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Personal<String>>,
    /// What fills the text's gaps.
    pub params: Personal<Params>,
    /// The order it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// When.
    pub requested_at: Timestamp,
}

/// A message is not told: its recipient does not want that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationMuted {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// When.
    pub muted_at: Timestamp,
}

/// A mail or a text message is about to be handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailAttempted {
    /// The message.
    pub notification_id: NotificationId,
    /// Which text.
    pub template: String,
    /// How often it has been tried, with this time.
    pub attempt: u32,
    /// When.
    pub attempted_at: Timestamp,
}

/// A mail or a text message was handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailSent {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// A keyed hash of the address or the number.
    pub to_hash: String,
    /// Which text.
    pub template: String,
    /// The order it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    /// The event that it tells of: what caused the message, where `causation_id` is the wish for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause_event_id: Option<Uuid>,
    /// The provider's name for it.
    pub provider_message_id: String,
    /// Which adapter handed it over.
    pub adapter: String,
    /// When.
    pub sent_at: Timestamp,
}

/// A mail or a text message was refused for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailFailed {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// Which text.
    pub template: String,
    /// The order it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub failed_at: Timestamp,
}

/// A try that did not surely deliver a mail or a text message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailUndelivered {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// Which text.
    pub template: String,
    /// Which try.
    pub attempt: u32,
    /// What happened, as a stable code.
    pub reason: String,
    /// When.
    pub recorded_at: Timestamp,
}

/// A message can be read inside the marketplace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationDelivered {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// Which text.
    pub template: String,
    /// The order it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    /// When.
    pub sent_at: Timestamp,
}

/// The mailbox did not take a mail that had gone out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmailBounced {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// Which text.
    pub template: String,
    /// Whether it never will.
    pub for_good: bool,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub bounced_at: Timestamp,
}

/// Somebody sees to a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationAcknowledged {
    /// The message.
    pub notification_id: NotificationId,
    /// Who.
    pub user_id: UserId,
    /// When.
    pub acknowledged_at: Timestamp,
}

/// Nobody has acknowledged a notice for administrators in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationEscalated {
    /// The message.
    pub notification_id: NotificationId,
    /// Which text.
    pub template: String,
    /// When.
    pub escalated_at: Timestamp,
}

/// The recipient has seen a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationRead {
    /// The message.
    pub notification_id: NotificationId,
    /// Who has seen it.
    pub user_id: UserId,
    /// When.
    pub read_at: Timestamp,
}

rejections! {
    /// Why a message refuses a command.
    pub enum NotificationRejection {
        /// Never requested.
        NotFound = "not_found", "there is no such notification";
        /// There is nothing left to do.
        AlreadySent = "already_sent", "this notification has been sent";
        /// Not theirs to ask.
        Forbidden = "forbidden", "the caller may not read this notification";
    }
}

/// A message, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// Everything about it, once requested.
    pub details: Option<NotificationDetails>,
}

/// What is known of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotificationDetails {
    /// The message.
    pub notification_id: NotificationId,
    /// To whom.
    pub recipient: UserId,
    /// For whom.
    pub audience: Audience,
    /// By which way.
    pub channel: Channel,
    /// Which text.
    pub template: String,
    /// The address, when it was known.
    pub to: Option<Personal<String>>,
    /// What fills the text's gaps.
    pub params: Personal<Params>,
    /// The order it is about, if it is about one.
    pub order_id: Option<OrderId>,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// How it stands.
    pub status: NotificationStatus,
    /// How often it has been tried.
    pub attempts: u32,
    /// After how many of these tries nobody knew whether it went out.
    #[serde(default)]
    pub unknown: u32,
    /// The provider's name for it.
    pub provider_message_id: Option<String>,
    /// Which adapter handed it over.
    pub adapter: Option<String>,
    /// Why it was given up, or came back.
    pub failure: Option<String>,
    /// Whether it came back and always will.
    #[serde(default)]
    pub bounced_for_good: bool,
    /// When it was requested.
    pub requested_at: Timestamp,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// When the recipient saw it.
    pub read_at: Option<Timestamp>,
    /// When somebody acknowledged it.
    #[serde(default)]
    pub acknowledged_at: Option<Timestamp>,
    /// When another administrator was to be told, because nobody had.
    #[serde(default)]
    pub escalated_at: Option<Timestamp>,
}

type Decision = Result<Vec<NotificationEvent>, NotificationRejection>;

impl Aggregate for Notification {
    const TYPE: &'static str = "notification";
    type Command = NotificationCommand;
    type Event = NotificationEvent;
    type Rejection = NotificationRejection;

    fn decide(&self, command: &NotificationCommand) -> Decision {
        use NotificationCommand as C;
        match command {
            C::Request(_) if self.details.is_some() => Ok(Vec::new()),
            C::Request(new) => Ok(request(new)),
            C::Attempt { now } => self.details()?.attempt(*now),
            C::RecordSent { provider_message_id, adapter, to_hash, now } => {
                Ok(self.details()?.sent(provider_message_id, adapter, to_hash, *now))
            }
            C::RecordFailed { reason, now } => self.details()?.failed(reason, *now),
            C::RecordDeferred { reason, now } => {
                let details = self.details()?;
                let by_way = details
                    .by_way(NotificationEvent::EmailDeferred, NotificationEvent::SmsDeferred);
                Ok(details.after_try(reason, *now, by_way))
            }
            C::RecordUnknown { reason, now } => {
                let details = self.details()?;
                let by_way =
                    details.by_way(NotificationEvent::EmailUnknown, NotificationEvent::SmsUnknown);
                Ok(details.after_try(reason, *now, by_way))
            }
            C::RecordBounced { for_good, reason, now } => {
                Ok(self.details()?.bounced(*for_good, reason, *now))
            }
            C::Acknowledge { caller, now } => self.details()?.acknowledge(caller, *now),
            C::Escalate { now } => Ok(self.details()?.escalate(*now)),
            C::MarkRead { caller, now } => self.details()?.mark_read(caller, *now),
        }
    }

    fn timers(&self, event: &NotificationEvent) -> Vec<TimerChange> {
        let name = ESCALATE.to_owned();
        match event {
            NotificationEvent::AdminSent(event) => {
                vec![TimerChange::Set { name, at: event.sent_at.plus(ACKNOWLEDGED_WITHIN) }]
            }
            NotificationEvent::Acknowledged(_) => vec![TimerChange::Clear { name }],
            _ => Vec::new(),
        }
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<NotificationCommand> {
        let waits = self.details.as_ref().is_some_and(NotificationDetails::waits_for_somebody);
        (name == ESCALATE && waits).then_some(NotificationCommand::Escalate { now })
    }

    fn apply(&mut self, event: &NotificationEvent) {
        match (event, &mut self.details) {
            (NotificationEvent::Requested(event), details) => {
                *details = Some(NotificationDetails::new(event));
            }
            (event, Some(details)) => details.apply(event),
            (_, None) => {}
        }
    }
}

fn request(new: &NewNotification) -> Vec<NotificationEvent> {
    let mut events = vec![NotificationEvent::Requested(NotificationRequested {
        notification_id: new.notification_id,
        user_id: new.recipient,
        audience: new.audience,
        channel: new.channel,
        template: new.template.clone(),
        to: new.to.clone(),
        params: new.params.clone(),
        order_id: new.order_id,
        cause_event_id: new.cause_event_id,
        requested_at: new.now,
    })];
    if new.muted {
        events.push(NotificationEvent::Muted(NotificationMuted {
            notification_id: new.notification_id,
            user_id: new.recipient,
            muted_at: new.now,
        }));
    } else if new.channel == Channel::InApp {
        let delivered = NotificationDelivered {
            notification_id: new.notification_id,
            user_id: new.recipient,
            template: new.template.clone(),
            order_id: new.order_id,
            sent_at: new.now,
        };
        events.push(match new.audience {
            Audience::User => NotificationEvent::UserSent(delivered),
            Audience::Admin => NotificationEvent::AdminSent(delivered),
        });
    }
    events
}

impl Notification {
    fn details(&self) -> Result<&NotificationDetails, NotificationRejection> {
        self.details.as_ref().ok_or(NotificationRejection::NotFound)
    }
}

impl NotificationDetails {
    fn new(event: &NotificationRequested) -> Self {
        Self {
            notification_id: event.notification_id,
            recipient: event.user_id,
            audience: event.audience,
            channel: event.channel,
            template: event.template.clone(),
            to: event.to.clone(),
            params: event.params.clone(),
            order_id: event.order_id,
            cause_event_id: event.cause_event_id,
            status: NotificationStatus::Requested,
            attempts: 0,
            unknown: 0,
            provider_message_id: None,
            adapter: None,
            failure: None,
            bounced_for_good: false,
            requested_at: event.requested_at,
            sent_at: None,
            read_at: None,
            acknowledged_at: None,
            escalated_at: None,
        }
    }

    /// Whether there is nothing (more) to hand over.
    pub fn is_over(&self) -> bool {
        matches!(
            self.status,
            NotificationStatus::Sent | NotificationStatus::Bounced | NotificationStatus::Muted
        )
    }

    /// What becomes of it is told by the name of its way.
    fn by_way<T>(
        &self,
        by_mail: fn(T) -> NotificationEvent,
        by_sms: fn(T) -> NotificationEvent,
    ) -> fn(T) -> NotificationEvent {
        if self.channel == Channel::Sms { by_sms } else { by_mail }
    }

    /// A failed one may be tried again: somebody has mended what was wrong.
    fn attempt(&self, now: Timestamp) -> Decision {
        if self.is_over() {
            return Err(NotificationRejection::AlreadySent);
        }
        let by_way = self.by_way(NotificationEvent::Attempted, NotificationEvent::SmsAttempted);
        Ok(vec![by_way(EmailAttempted {
            notification_id: self.notification_id,
            template: self.template.clone(),
            attempt: self.attempts.saturating_add(1),
            attempted_at: now,
        })])
    }

    fn sent(
        &self,
        provider_message_id: &str,
        adapter: &str,
        to_hash: &str,
        now: Timestamp,
    ) -> Vec<NotificationEvent> {
        if self.is_over() {
            return Vec::new();
        }
        let by_way = self.by_way(NotificationEvent::EmailSent, NotificationEvent::SmsSent);
        vec![by_way(EmailSent {
            notification_id: self.notification_id,
            user_id: self.recipient,
            to_hash: to_hash.to_owned(),
            template: self.template.clone(),
            order_id: self.order_id,
            cause_event_id: Some(self.cause_event_id),
            provider_message_id: provider_message_id.to_owned(),
            adapter: adapter.to_owned(),
            sent_at: now,
        })]
    }

    fn failed(&self, reason: &str, now: Timestamp) -> Decision {
        match self.status {
            NotificationStatus::Sent | NotificationStatus::Bounced | NotificationStatus::Muted => {
                Err(NotificationRejection::AlreadySent)
            }
            NotificationStatus::Failed => Ok(Vec::new()),
            NotificationStatus::Requested
            | NotificationStatus::Attempted
            | NotificationStatus::Unknown => {
                let by_way =
                    self.by_way(NotificationEvent::EmailFailed, NotificationEvent::SmsFailed);
                Ok(vec![by_way(EmailFailed {
                    notification_id: self.notification_id,
                    user_id: self.recipient,
                    template: self.template.clone(),
                    order_id: self.order_id,
                    reason: reason.to_owned(),
                    failed_at: now,
                })])
            }
        }
    }

    /// What a try led to, as long as nothing else is known of it.
    fn after_try(
        &self,
        reason: &str,
        now: Timestamp,
        event: fn(EmailUndelivered) -> NotificationEvent,
    ) -> Vec<NotificationEvent> {
        if self.status != NotificationStatus::Attempted {
            return Vec::new();
        }
        vec![event(EmailUndelivered {
            notification_id: self.notification_id,
            user_id: self.recipient,
            template: self.template.clone(),
            attempt: self.attempts,
            reason: reason.to_owned(),
            recorded_at: now,
        })]
    }

    /// A mail that had gone out came back. The first word counts, but for good outweighs for now.
    fn bounced(&self, for_good: bool, reason: &str, now: Timestamp) -> Vec<NotificationEvent> {
        let is_news = match self.status {
            NotificationStatus::Sent
            | NotificationStatus::Attempted
            | NotificationStatus::Unknown => true,
            NotificationStatus::Bounced => for_good && !self.bounced_for_good,
            NotificationStatus::Requested
            | NotificationStatus::Failed
            | NotificationStatus::Muted => false,
        };
        if self.channel != Channel::Email || !is_news {
            return Vec::new();
        }
        vec![NotificationEvent::EmailBounced(EmailBounced {
            notification_id: self.notification_id,
            user_id: self.recipient,
            template: self.template.clone(),
            for_good,
            reason: reason.to_owned(),
            bounced_at: now,
        })]
    }

    fn waits_for_somebody(&self) -> bool {
        self.audience == Audience::Admin
            && self.acknowledged_at.is_none()
            && self.escalated_at.is_none()
    }

    fn escalate(&self, now: Timestamp) -> Vec<NotificationEvent> {
        if !self.waits_for_somebody() {
            return Vec::new();
        }
        vec![NotificationEvent::Escalated(NotificationEscalated {
            notification_id: self.notification_id,
            template: self.template.clone(),
            escalated_at: now,
        })]
    }

    fn must_be_for(&self, caller: &Caller) -> Result<UserId, NotificationRejection> {
        let allowed = match self.audience {
            Audience::User => caller.may_act_for(self.recipient),
            Audience::Admin => caller.is_staff(),
        };
        if !allowed {
            return Err(NotificationRejection::Forbidden);
        }
        Ok(caller.user_id().unwrap_or(self.recipient))
    }

    /// Who sees to it has read it.
    fn acknowledge(&self, caller: &Caller, now: Timestamp) -> Decision {
        let user_id = self.must_be_for(caller)?;
        if self.acknowledged_at.is_some() {
            return Ok(Vec::new());
        }
        let mut events = self.mark_read(caller, now)?;
        events.push(NotificationEvent::Acknowledged(NotificationAcknowledged {
            notification_id: self.notification_id,
            user_id,
            acknowledged_at: now,
        }));
        Ok(events)
    }

    fn mark_read(&self, caller: &Caller, now: Timestamp) -> Decision {
        let user_id = self.must_be_for(caller)?;
        if self.read_at.is_some() {
            return Ok(Vec::new());
        }
        Ok(vec![NotificationEvent::Read(NotificationRead {
            notification_id: self.notification_id,
            user_id,
            read_at: now,
        })])
    }

    fn apply(&mut self, event: &NotificationEvent) {
        match event {
            NotificationEvent::Requested(_) => {}
            NotificationEvent::Muted(_) => self.status = NotificationStatus::Muted,
            NotificationEvent::Attempted(event) | NotificationEvent::SmsAttempted(event) => {
                self.status = NotificationStatus::Attempted;
                self.attempts = event.attempt;
                self.failure = None;
            }
            NotificationEvent::EmailSent(event) | NotificationEvent::SmsSent(event) => {
                self.status = NotificationStatus::Sent;
                self.provider_message_id = Some(event.provider_message_id.clone());
                self.adapter = Some(event.adapter.clone());
                self.sent_at = Some(event.sent_at);
            }
            NotificationEvent::EmailFailed(event) | NotificationEvent::SmsFailed(event) => {
                self.status = NotificationStatus::Failed;
                self.failure = Some(event.reason.clone());
            }
            NotificationEvent::EmailDeferred(event) | NotificationEvent::SmsDeferred(event) => {
                self.status = NotificationStatus::Requested;
                self.failure = Some(event.reason.clone());
            }
            NotificationEvent::EmailUnknown(event) | NotificationEvent::SmsUnknown(event) => {
                self.status = NotificationStatus::Unknown;
                self.unknown += 1;
                self.failure = Some(event.reason.clone());
            }
            NotificationEvent::UserSent(event) | NotificationEvent::AdminSent(event) => {
                self.status = NotificationStatus::Sent;
                self.sent_at = Some(event.sent_at);
            }
            NotificationEvent::EmailBounced(event) => {
                self.status = NotificationStatus::Bounced;
                self.bounced_for_good = event.for_good;
                self.failure = Some(event.reason.clone());
            }
            NotificationEvent::Acknowledged(event) => {
                self.acknowledged_at = Some(event.acknowledged_at);
            }
            NotificationEvent::Escalated(event) => self.escalated_at = Some(event.escalated_at),
            NotificationEvent::Read(event) => self.read_at = Some(event.read_at),
        }
    }
}

#[cfg(test)]
mod tests;
