//! `notifications`: who is told what.
//!
//! | event | to | template |
//! | --- | --- | --- |
//! | `user.registered` | the user, by mail | `welcome_verification` |
//! | `user.email_verified` | the user, by mail | `email_verified` |
//! | `user.upgraded_to_seller` | the user, by mail and in the marketplace | `seller_welcome`, `seller_onboarding` |
//! | | administrators | `seller_pending` |
//! | `user.verification_requested` | the user, by mail | `welcome_verification` |
//! | `user.password_reset_requested` | the user, by mail | `password_reset` |
//! | `user.password_reset`, `user.password_changed` | the user, by mail | `password_changed` |
//! | `user.suspended`, `user.reinstated` | the user, by mail | `account_suspended`, `account_reinstated` |
//! | `seller.verified`, `seller.rejected` | the seller, also by mail | `seller_verified`, `seller_rejected` |
//! | `order.placed` | the buyer, by mail and text message | `order_placed` |
//! | `order.confirmed` | the seller | `new_order` |
//! | `order.paid` | the buyer, also by text message, and by mail | `payment_received`, `receipt` |
//! | | the seller, and by mail | `order_paid`, `sale_receipt` |
//! | `order.shipped` | the buyer, also by text message | `order_shipped` |
//! | `order.delivered` | both | `order_delivered` |
//! | `order.completed` | the seller | `order_completed` |
//! | `order.rejected`, `.payment_failed`, `.failed` | the buyer, also by mail | the same with `_` |
//! | `order.cancelled` | both, the buyer also by mail | `order_cancelled` |
//! | `order.return_requested` | the seller, also by mail | `return_requested` |
//! | `order.return_refused` | the buyer, also by mail | `return_refused` |
//! | `order.returned` | both, the buyer also by mail | `return_accepted` |
//! | `order.disputed` | the seller | `order_disputed` |
//! | | administrators | `dispute_opened` |
//! | `order.dispute_resolved` | both, also by mail | `dispute_resolved` |
//! | `payment.rejected` | administrators | `payment_rejected` |
//! | `payment.refund_failed`, for good | administrators | `refund_refused` |
//! | `review.created` | the seller, also by mail | `new_review` |
//!
//! Text messages go to those who had agreed to them when the event happened.
//!
//! [`letters`] tells administrators of dead letters, [`escalations`] one of them of what nobody has
//! acknowledged, [`reports`] mails reports to those of them who want some.
//!
//! The saga of an order asks for its `order_confirmation` itself: it waits for the outcome. A
//! message's id follows from the event, the template and the recipient, so that a repeat finds it
//! there already.

pub mod escalations;
pub mod letters;
pub mod reports;

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::{Metadata, StoredEvent};
use souk_actors::personal::Personal;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::{command_failed, decode_failed};
use crate::domain::ids::{NotificationId, OrderId, UserId};
use crate::domain::money::Money;
use crate::domain::notification::{
    Audience, Channel, NewNotification, Notification, NotificationCommand, Params,
};
use crate::domain::order::{Order, OrderDetails, OrderEvent};
use crate::domain::payment::{Payment, PaymentDetails, PaymentEvent, PaymentRejected};
use crate::domain::preferences::{Muted, NotificationKind};
use crate::domain::review::{ReviewCreated, ReviewEvent};
use crate::domain::user::{User, UserEvent};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "notifications";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "user.registered",
    "user.email_verified",
    "user.upgraded_to_seller",
    "user.verification_requested",
    "user.password_reset_requested",
    "user.password_reset",
    "user.password_changed",
    "user.suspended",
    "user.reinstated",
    "seller.*",
    "order.*",
    "payment.rejected",
    "payment.refund_failed",
    "review.created",
];

/// Parameter of `welcome_verification`: what the token is made from, together with a secret. The
/// token itself is in no event.
pub const NONCE: &str = "verification_token_nonce";
/// Parameter of `password_reset`, likewise.
pub const RESET_NONCE: &str = "reset_token_nonce";

/// The handler.
pub struct Notifications;

/// A message to be.
#[derive(Debug, Clone, PartialEq)]
struct Message {
    recipient: UserId,
    audience: Audience,
    channel: Channel,
    template: &'static str,
    to: Option<Personal<String>>,
    params: Params,
    order_id: Option<OrderId>,
    /// What makes two of these the same message; none: the event.
    occasion: Option<Uuid>,
    /// Whether somebody is told the same by another way, too.
    is_copy: bool,
}

impl Message {
    fn new(recipient: UserId, channel: Channel, template: &'static str) -> Self {
        Self {
            recipient,
            audience: Audience::User,
            channel,
            template,
            to: None,
            params: Params::new(),
            order_id: None,
            occasion: None,
            is_copy: false,
        }
    }

    fn mail(recipient: UserId, template: &'static str) -> Self {
        Self::new(recipient, Channel::Email, template)
    }

    fn in_app(recipient: UserId, template: &'static str) -> Self {
        Self::new(recipient, Channel::InApp, template)
    }

    /// For administrators, about somebody.
    fn admin(about: UserId, template: &'static str) -> Self {
        Self { audience: Audience::Admin, ..Self::in_app(about, template) }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.params.insert(name.to_owned(), value.into());
        self
    }

    /// This, and the same by mail.
    fn and_by_mail(self) -> [Self; 2] {
        let copy = Self { channel: Channel::Email, is_copy: true, ..self.clone() };
        [self, copy]
    }

    fn id(&self, cause: Uuid) -> NotificationId {
        let cause = self.occasion.unwrap_or(cause);
        if self.is_copy {
            return NotificationId::of_copy(cause, self.template, self.channel, self.recipient);
        }
        NotificationId::of(cause, self.template, self.recipient)
    }

    fn request(self, event: &StoredEvent, now: Timestamp) -> NewNotification {
        let cause = event.event_id;
        NewNotification {
            notification_id: self.id(cause),
            recipient: self.recipient,
            audience: self.audience,
            channel: self.channel,
            template: self.template.to_owned(),
            to: self.to,
            params: Personal::new(self.recipient.uuid(), self.params),
            order_id: self.order_id,
            cause_event_id: cause,
            muted: false,
            now,
        }
    }
}

/// `by_operator`: the user was made at the console, verified from the start, and knows.
fn about_user(event: &UserEvent, by_operator: bool) -> Vec<Message> {
    match event {
        UserEvent::Registered(_) | UserEvent::EmailVerified(_) if by_operator => Vec::new(),
        UserEvent::Registered(user) => {
            let mail = Message::mail(user.user_id, "welcome_verification")
                .with(NONCE, &user.verification_token_nonce);
            vec![Message { to: Some(user.email.clone()), ..mail }]
        }
        UserEvent::EmailVerified(user) => {
            let mail = Message::mail(user.user_id, "email_verified");
            vec![Message { to: Some(user.email.clone()), ..mail }]
        }
        UserEvent::UpgradedToSeller(seller) => {
            let (user_id, name) = (seller.user_id, &seller.business_name);
            vec![
                Message::mail(user_id, "seller_welcome").with("business_name", name),
                Message::in_app(user_id, "seller_onboarding").with("business_name", name),
                Message::admin(user_id, "seller_pending").with("business_name", name),
            ]
        }
        UserEvent::VerificationRequested(token) => {
            let mail = Message::mail(token.user_id, "welcome_verification");
            vec![mail.with(NONCE, &token.token_nonce)]
        }
        UserEvent::PasswordResetRequested(token) => {
            let mail = Message::mail(token.user_id, "password_reset");
            vec![mail.with(RESET_NONCE, &token.token_nonce)]
        }
        UserEvent::PasswordReset(ended) | UserEvent::PasswordChanged(ended) => {
            vec![Message::mail(ended.user_id, "password_changed")]
        }
        UserEvent::Suspended(suspended) => {
            let mail = Message::mail(suspended.user_id, "account_suspended");
            vec![mail.with("reason", &suspended.reason)]
        }
        UserEvent::Reinstated(user) => vec![Message::mail(user.user_id, "account_reinstated")],
        UserEvent::SellerVerified(seller) => {
            Message::in_app(seller.user_id, "seller_verified").and_by_mail().into()
        }
        UserEvent::SellerRejected(seller) => {
            let message = Message::in_app(seller.user_id, "seller_rejected");
            message.with("reason", &seller.reason).and_by_mail().into()
        }
        _ => Vec::new(),
    }
}

fn about_order(event: &OrderEvent, order: &OrderDetails) -> Vec<Message> {
    let of_order = |recipient, template| Message {
        order_id: Some(order.order_id),
        ..Message::in_app(recipient, template)
            .with("order_number", &order.order_number)
            .with("amount", order.total.to_string())
    };
    let receipt = |recipient, template| {
        let message = Message { channel: Channel::Email, ..of_order(recipient, template) };
        message.with("payment_reference", &order.payment_reference).with("items", items(order))
    };
    let ended = |template, reason: &str| -> Vec<Message> {
        of_order(order.buyer_id, template).with("reason", reason).and_by_mail().into()
    };
    let (buyer, seller) = (order.buyer_id, order.seller_id);
    match event {
        OrderEvent::Placed(_) => {
            vec![Message { channel: Channel::Email, ..of_order(buyer, "order_placed") }]
        }
        OrderEvent::Confirmed(_) => vec![of_order(seller, "new_order")],
        OrderEvent::Paid(_) => vec![
            of_order(buyer, "payment_received"),
            receipt(buyer, "receipt"),
            of_order(seller, "order_paid"),
            receipt(seller, "sale_receipt"),
        ],
        // The saga mails the confirmation.
        OrderEvent::Shipped(_) => vec![of_order(buyer, "order_shipped")],
        OrderEvent::Delivered(_) => {
            [buyer, seller].map(|who| of_order(who, "order_delivered")).into()
        }
        OrderEvent::Completed(_) => vec![of_order(seller, "order_completed")],
        // The seller hears of the review itself.
        OrderEvent::Reviewed(_) => Vec::new(),
        OrderEvent::Rejected(event) => ended("order_rejected", &event.reason),
        OrderEvent::PaymentFailed(event) => ended("order_payment_failed", &event.reason),
        OrderEvent::Failed(event) => ended("order_failed", &event.reason),
        OrderEvent::Cancelled(_) => {
            let mut messages = vec![of_order(seller, "order_cancelled")];
            messages.extend(of_order(buyer, "order_cancelled").and_by_mail());
            messages
        }
        _ => about_after_sales(event, order),
    }
}

fn about_after_sales(event: &OrderEvent, order: &OrderDetails) -> Vec<Message> {
    let of_order = |recipient, template| Message {
        order_id: Some(order.order_id),
        ..Message::in_app(recipient, template).with("order_number", &order.order_number)
    };
    let money = |amount| Money::new(amount, order.total.currency).to_string();
    let (buyer, seller) = (order.buyer_id, order.seller_id);
    match event {
        OrderEvent::ReturnRequested(event) => of_order(seller, "return_requested")
            .with("refund", money(event.amount))
            .with("reason", words(event.reason))
            .with("answer_by", event.answer_by.to_string())
            .and_by_mail()
            .into(),
        OrderEvent::ReturnRefused(event) => {
            let comment = event.comment.as_ref();
            let words = comment.map(|words| words.get().map_or("[erased]", String::as_str));
            let reason = words.unwrap_or(&event.reason);
            of_order(buyer, "return_refused").with("reason", reason).and_by_mail().into()
        }
        OrderEvent::Returned(event) => {
            let accepted =
                |who| of_order(who, "return_accepted").with("refund", money(event.amount));
            let mut messages = vec![accepted(seller)];
            messages.extend(accepted(buyer).and_by_mail());
            messages
        }
        OrderEvent::Disputed(event) => {
            let admins = Message {
                audience: Audience::Admin,
                ..of_order(buyer, "dispute_opened").with("amount", order.total.to_string())
            };
            let reason = words(event.reason);
            vec![
                of_order(seller, "order_disputed").with("reason", &reason),
                admins.with("reason", reason),
            ]
        }
        OrderEvent::DisputeResolved(event) => [buyer, seller]
            .into_iter()
            .flat_map(|who| {
                let message = of_order(who, "dispute_resolved");
                message
                    .with("refund", money(event.amount))
                    .with("reason", &event.reason)
                    .and_by_mail()
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// A reason as people read it.
fn words(reason: impl serde::Serialize) -> String {
    let code = serde_json::to_value(reason).unwrap_or_default();
    code.as_str().unwrap_or_default().replace('_', " ")
}

/// What the buyer hears of by text message, too.
fn by_sms(event: &OrderEvent) -> Option<&'static str> {
    match event {
        OrderEvent::Placed(_) => Some("order_placed"),
        OrderEvent::Paid(_) => Some("payment_received"),
        OrderEvent::Shipped(_) => Some("order_shipped"),
        _ => None,
    }
}

/// The buyer's text message, if there is one and the buyer had agreed to it.
async fn sms(
    runtime: &Runtime,
    event: &StoredEvent,
    change: &OrderEvent,
    order: &OrderDetails,
) -> Result<Option<Message>, Failure> {
    let Some(template) = by_sms(change) else { return Ok(None) };
    let at = event.timestamp;
    let agreed = move |user: &User| {
        user.details.as_ref().is_some_and(|details| details.sms_number(at).is_some())
    };
    let read = runtime.aggregate::<User>().read_inside(order.buyer_id.uuid(), agreed).await;
    if !read.map_err(|error| command_failed(&error))?.value {
        return Ok(None);
    }
    let message = Message::new(order.buyer_id, Channel::Sms, template)
        .with("order_number", &order.order_number)
        .with("amount", order.total.to_string());
    Ok(Some(Message { order_id: Some(order.order_id), is_copy: true, ..message }))
}

/// What was bought, a line each.
fn items(order: &OrderDetails) -> String {
    let lines = order.items.iter().map(|item| {
        let price = Money::new(item.unit_price, order.total.currency);
        format!("    {} x {} at {price}", item.quantity, item.sku)
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn about_payment(event: &PaymentEvent, payment: &PaymentDetails) -> Vec<Message> {
    match event {
        PaymentEvent::Rejected(event) => about_misfit(event, payment.payer_id),
        PaymentEvent::RefundFailed(event) if event.next_attempt_at.is_none() => {
            let amount = payment.refund_of(event.refund_id).map_or(0, |refund| refund.amount);
            vec![Message {
                order_id: Some(event.order_id),
                ..Message::admin(payment.payer_id, "refund_refused")
                    .with("payment_reference", &payment.reference)
                    .with("refund", Money::new(amount, payment.money.currency).to_string())
                    .with("reason", words(&event.reason))
            }]
        }
        _ => Vec::new(),
    }
}

fn about_misfit(event: &PaymentRejected, payer: UserId) -> Vec<Message> {
    let expected = Money::new(event.expected_amount, event.expected_currency);
    let reported = Money::new(event.amount, event.currency);
    vec![Message {
        order_id: Some(event.order_id),
        ..Message::admin(payer, "payment_rejected")
            .with("expected", expected.to_string())
            .with("reported", format!("{reported} ({})", words(event.reason)))
    }]
}

/// What the buyer says is sealed for the buyer, and not copied into what is sealed for the seller.
fn about_review(review: &ReviewCreated, order: &OrderDetails) -> Vec<Message> {
    let message = Message::in_app(review.reviewee_id, "new_review")
        .with("order_number", &order.order_number)
        .with("rating", review.rating.to_string())
        .with("review_id", review.review_id.to_string());
    Message { order_id: Some(review.order_id), ..message }.and_by_mail().into()
}

async fn order(runtime: &Runtime, id: Uuid) -> Result<Option<OrderDetails>, Failure> {
    let orders = runtime.aggregate::<Order>();
    let order = orders.read_inside(id, |order| order.details.clone()).await;
    Ok(order.map_err(|error| command_failed(&error))?.value)
}

async fn messages(runtime: &Runtime, event: &StoredEvent) -> Result<Vec<Message>, Failure> {
    let journal = runtime.journal();
    match &*event.aggregate_type {
        "user" => {
            let user = journal.decode(event).await.map_err(decode_failed)?;
            Ok(about_user(&user, by_operator(event)))
        }
        "order" => {
            let change = journal.decode(event).await.map_err(decode_failed)?;
            let Some(order) = order(runtime, event.aggregate_id).await? else {
                return Ok(Vec::new());
            };
            let mut messages = about_order(&change, &order);
            messages.extend(sms(runtime, event, &change, &order).await?);
            Ok(messages)
        }
        "review" => {
            let change = journal.decode(event).await.map_err(decode_failed)?;
            let ReviewEvent::Created(review) = change else { return Ok(Vec::new()) };
            let details = order(runtime, review.order_id.uuid()).await?;
            Ok(details.map_or_else(Vec::new, |order| about_review(&review, &order)))
        }
        "payment" => {
            let change = journal.decode(event).await.map_err(decode_failed)?;
            let payments = runtime.aggregate::<Payment>();
            let look = |payment: &Payment| payment.details.clone();
            let payment = payments.read_inside(event.aggregate_id, look).await;
            let details = payment.map_err(|error| command_failed(&error))?.value;
            Ok(details.map_or_else(Vec::new, |payment| about_payment(&change, &payment)))
        }
        _ => Ok(Vec::new()),
    }
}

/// The notifications that must follow from an event, for whoever audits that they did.
pub async fn expected(runtime: &Runtime, event: &StoredEvent) -> Result<Vec<Uuid>, Failure> {
    let messages = messages(runtime, event).await?;
    // Whether somebody had agreed to text messages cannot be told for sure afterwards.
    let messages = messages.iter().filter(|message| message.channel != Channel::Sms);
    Ok(messages.map(|message| message.id(event.event_id).uuid()).collect())
}

fn by_operator(event: &StoredEvent) -> bool {
    serde_json::from_str::<Metadata>(&event.metadata)
        .is_ok_and(|metadata| metadata.actor_id == "system")
}

#[async_trait]
impl Handler for Notifications {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        for message in messages(runtime, event).await? {
            request(runtime, event, message).await?;
        }
        Ok(())
    }
}

/// Whether somebody does not want to be told so by this way.
pub(super) async fn is_muted(
    runtime: &Runtime,
    recipient: UserId,
    channel: Channel,
    template: &str,
) -> Result<bool, Failure> {
    let muted = Muted::of(channel, template);
    if muted.kind == NotificationKind::Account {
        return Ok(false);
    }
    let look = move |user: &User| {
        user.details.as_ref().is_some_and(|details| details.muted.contains(&muted))
    };
    let read = runtime.aggregate::<User>().read_inside(recipient.uuid(), look).await;
    Ok(read.map_err(|error| command_failed(&error))?.value)
}

/// What somebody does not want to be told is recorded all the same: it says why they were not, and
/// stands however often the event comes again.
async fn request(runtime: &Runtime, event: &StoredEvent, message: Message) -> Result<(), Failure> {
    let muted = message.audience == Audience::User
        && is_muted(runtime, message.recipient, message.channel, message.template).await?;
    let new = NewNotification { muted, ..message.request(event, runtime.world().now()) };
    let id = new.notification_id.uuid();
    let context = CommandContext::because_of(event, "request-notification", id);
    let command = NotificationCommand::Request(Box::new(new));
    let sent = runtime.aggregate::<Notification>().send(id, command, context, |_| ()).await;
    sent.map_err(|error| command_failed(&error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::EmailClaimId;
    use crate::domain::user::{UserRegistered, UserUpgradedToSeller, VerificationStatus};

    fn user() -> UserId {
        UserId(Uuid::from_u128(7))
    }

    fn personal(text: &str) -> Personal<String> {
        Personal::new(user().uuid(), text.to_owned())
    }

    fn registered() -> UserEvent {
        let at = Timestamp::from_millis(0);
        UserEvent::Registered(UserRegistered {
            user_id: user(),
            email: personal("ada@example.com"),
            first_name: personal("Ada"),
            last_name: personal("Lovelace"),
            email_claim_id: EmailClaimId(Uuid::nil()),
            verification_token_hash: "hash".to_owned(),
            verification_token_nonce: "nonce".to_owned(),
            verification_expires_at: at,
            registered_at: at,
        })
    }

    #[test]
    fn a_new_user_gets_one_mail_with_the_nonce_and_not_the_token() {
        let messages = about_user(&registered(), false);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].template, "welcome_verification");
        assert_eq!(messages[0].channel, Channel::Email);
        assert_eq!(messages[0].to, Some(personal("ada@example.com")));
        assert_eq!(messages[0].params, Params::from([(NONCE.to_owned(), "nonce".to_owned())]));
        assert!(about_user(&registered(), true).is_empty());
    }

    #[test]
    fn a_repeat_makes_the_same_message() {
        let event = stored_event("user.registered", "user", user().uuid(), &serde_json::json!({}));
        let request = |millis| {
            let message = about_user(&registered(), false).remove(0);
            message.request(&event, Timestamp::from_millis(millis)).notification_id
        };
        assert_eq!(request(1), request(2));
    }

    #[test]
    fn administrators_hear_of_a_seller_who_waits() {
        let event = UserEvent::UpgradedToSeller(UserUpgradedToSeller {
            user_id: user(),
            business_name: "Looms".to_owned(),
            business_address: personal("1 Street"),
            business_phone: personal("+84901234567"),
            verification_status: VerificationStatus::Pending,
            upgraded_at: Timestamp::from_millis(0),
        });
        let messages = about_user(&event, false);
        let told: Vec<_> = messages
            .iter()
            .map(|message| (message.template, message.audience, message.channel))
            .collect();
        assert_eq!(
            told,
            [
                ("seller_welcome", Audience::User, Channel::Email),
                ("seller_onboarding", Audience::User, Channel::InApp),
                ("seller_pending", Audience::Admin, Channel::InApp),
            ]
        );
        let ids: std::collections::BTreeSet<_> = messages
            .into_iter()
            .map(|message| {
                let cause = stored_event("e", "user", user().uuid(), &serde_json::json!({}));
                message.request(&cause, Timestamp::from_millis(0)).notification_id
            })
            .collect();
        assert_eq!(ids.len(), 3);
    }
}
