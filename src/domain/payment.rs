//! Payments: one per order, captured at most once, and never more given back than was captured: in
//! full when the order is off, in parts when goods come back or a dispute is decided so.
//!
//! The attempt is an event before the call: whoever talks to the gateway listens for
//! `payment.initiated`, `payment.void_requested` and `payment.refund_requested` and reports back.
//! An undo is remembered: money that arrives after it goes back at once.
//!
//! What a provider outside says may be lost on the way. Its payments are asked after by a durable
//! timer, for as long as anything about them is open: 1, 5, 15 and 30 minutes after they began, and
//! then every hour.
//!
//! | open is | until |
//! | --- | --- |
//! | a payment that nobody knows the outcome of | there is one |
//! | one that was given up and that the provider cannot close | it says that nothing will come, or, when [`WATCHED_FOR`] is over, that nothing has |
//! | a refund | the money is back, or the provider will not |
//! | money that is held for a payment which is over | it is let go, or has come |
//!
//! A provider may hold the money first and take it when it is told to (`payment.authorized`, then
//! `payment.captured`). It is told so at once, unless the order is off by then: money that is held and
//! not taken is let go, and nothing has to go back.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::ids::{OrderId, PaymentId, RefundId, UserId};
use super::money::{Currency, Money};
use super::order::PaymentMethod;
use super::rejection::rejections;

/// The timer of a payment that is asked after. Stored; never rename.
pub const INQUIRY_TIMER: &str = "inquiry";

/// Why a refund is given up of which the gateway could not say for long what became of it. It may have
/// been made. Stored; never rename.
pub const REFUND_UNCLEAR: &str = "refund_unclear";

/// How long a payment that was given up may still be paid where its provider cannot close it: longer
/// than any page of a provider's is good for.
pub const WATCHED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after the last time a payment is asked after, for each time; then [`ASKED_EVERY`]. The
/// fourth is half an hour after it began, just before stock is no longer held for it.
const ASKED_AFTER: [Duration; 4] = [
    Duration::from_secs(60),
    Duration::from_secs(4 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(15 * 60),
];
const ASKED_EVERY: Duration = Duration::from_secs(60 * 60);

/// How long until a payment is asked after once more that was asked after so often.
fn wait_after(asked: u32) -> Duration {
    let asked = usize::try_from(asked).unwrap_or(usize::MAX);
    ASKED_AFTER.get(asked).copied().unwrap_or(ASKED_EVERY)
}

/// How a payment stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PaymentStatus {
    /// The gateway has been, or is about to be, asked.
    Initiated,
    /// The gateway's answer is not known: to be reconciled.
    Unknown,
    /// The money is held for us and is to be taken.
    Authorized,
    /// The money is here.
    Captured,
    /// The gateway said no.
    Failed,
    /// Given up before there was money.
    Voided,
    /// The money went back.
    Refunded,
}

/// What the gateway said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The money is held for us, and can be taken.
    Authorized {
        /// The gateway's name for it.
        provider_reference: String,
        /// How much it is.
        money: Money,
    },
    /// The money is here.
    Captured {
        /// The gateway's name for the capture.
        provider_reference: String,
        /// How much it was.
        money: Money,
    },
    /// No.
    Declined {
        /// Why, as a stable code.
        reason: String,
        /// The gateway's name for what came to nothing, where it says one.
        provider_reference: Option<String>,
    },
    /// Money that is not this payment's, for whatever reason the reporter found.
    Misfit {
        /// Why.
        reason: Misfit,
        /// The gateway's name for the capture.
        provider_reference: String,
        /// How much it was.
        money: Money,
    },
    /// Nothing that can be relied on.
    Unknown,
}

/// What to do with a payment.
#[derive(Debug, Clone, PartialEq)]
pub enum PaymentCommand {
    /// Ask the gateway for the money.
    Initiate {
        /// The payment.
        payment_id: PaymentId,
        /// The order.
        order_id: OrderId,
        /// Who pays.
        payer_id: UserId,
        /// How much.
        money: Money,
        /// By which means.
        method: PaymentMethod,
        /// The reference that the buyer and the gateway see.
        reference: String,
        /// Whether the gateway holds the money before it takes it, where that can be chosen.
        holds_first: Option<bool>,
        /// When.
        now: Timestamp,
    },
    /// The gateway told how the buyer can pay.
    RecordInstructions {
        /// What it told.
        instructions: Instructions,
        /// When.
        now: Timestamp,
    },
    /// The gateway answered.
    Settle {
        /// What.
        outcome: Outcome,
        /// When.
        now: Timestamp,
    },
    /// The gateway confirmed that no money will come, or that it cannot close what was given up.
    RecordVoided {
        /// Whether the buyer can pay still.
        still_open: bool,
        /// When.
        now: Timestamp,
    },
    /// Ask the gateway how it stands.
    Inquire {
        /// When.
        now: Timestamp,
    },
    /// The order is off: no money, or the money back, whatever the payment stands at and even if
    /// it has not begun.
    Cancel {
        /// The payment.
        payment_id: PaymentId,
        /// The order.
        order_id: OrderId,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Give a part of the money back, once per refund.
    Refund {
        /// The refund.
        refund_id: RefundId,
        /// How much, in minor units.
        amount: i64,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// The gateway gave money back.
    RecordRefunded {
        /// The refund.
        refund_id: RefundId,
        /// The gateway's name for it.
        provider_reference: String,
        /// When.
        now: Timestamp,
    },
    /// The gateway did not give the money back, and the same refund will not be made any more.
    RecordRefundFailed {
        /// The refund.
        refund_id: RefundId,
        /// Why, as a stable code.
        reason: String,
        /// When another one is asked for; none: when somebody says so.
        next_attempt_at: Option<Timestamp>,
        /// When.
        now: Timestamp,
    },
}

impl Command for PaymentCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Initiate { .. } => "InitiatePayment",
            Self::RecordInstructions { .. } => "RecordPaymentInstructions",
            Self::Settle { .. } => "ProcessPayment",
            Self::RecordVoided { .. } => "RecordPaymentVoided",
            Self::Cancel { .. } => "CancelPayment",
            Self::Refund { .. } => "RefundPayment",
            Self::RecordRefunded { .. } => "RecordPaymentRefunded",
            Self::Inquire { .. } => "InquirePayment",
            Self::RecordRefundFailed { .. } => "RecordRefundFailed",
        }
    }
}

souk_actors::events! {
    /// What happens to payments.
    pub enum PaymentEvent in "payments" as "payment-service" {
        /// The gateway is to be asked.
        Initiated(PaymentInitiated) = "payment.initiated", "PaymentInitiated", 1.1, [];
        /// The buyer can pay so.
        Instructed(PaymentInstructed) = "payment.instructed", "PaymentInstructed", 1.0, [];
        /// The gateway's answer is not known.
        TimedOut(PaymentTimedOut) = "payment.timed_out", "PaymentTimedOut", 1.0, [];
        /// The money is held for us: the gateway is to take it.
        Authorized(PaymentAuthorized) = "payment.authorized", "PaymentAuthorized", 1.0, [];
        /// The money is here.
        Captured(PaymentCaptured) = "payment.captured", "PaymentCaptured", 1.0,
            ["PaymentCompleted", "PaymentProcessed", "payment.received"];
        /// The gateway said no.
        Failed(PaymentFailed) = "payment.failed", "PaymentFailed", 1.0, [];
        /// The gateway reported money that does not fit.
        Rejected(PaymentRejected) = "payment.rejected", "PaymentRejected", 1.2, [];
        /// The gateway is to be told that no money is wanted.
        VoidRequested(PaymentVoidRequested) = "payment.void_requested", "PaymentVoidRequested",
            1.0, [];
        /// No money will come.
        Voided(PaymentVoided) = "payment.voided", "PaymentVoided", 1.1, [];
        /// The gateway is to give the money back.
        RefundRequested(PaymentRefundRequested) = "payment.refund_requested",
            "PaymentRefundRequested", 1.0, [];
        /// The money went back.
        Refunded(PaymentRefunded) = "payment.refunded", "PaymentRefunded", 1.0, [];
        /// The gateway is to be asked how it stands.
        InquiryRequested(PaymentInquiryRequested) = "payment.inquiry_requested",
            "PaymentInquiryRequested", 1.1, [];
        /// What was given up cannot be paid any more.
        Closed(PaymentClosed) = "payment.closed", "PaymentClosed", 1.0, [];
        /// The gateway did not give the money back.
        RefundFailed(PaymentRefundFailed) = "payment.refund_failed", "PaymentRefundFailed", 1.0, [];
    }
}

/// How the buyer can pay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instructions {
    /// A page to go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What to do, in words (a USSD code, for example).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// The gateway is to be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentInitiated {
    /// The payment.
    pub payment_id: PaymentId,
    /// The order.
    pub order_id: OrderId,
    /// Who pays.
    pub payer_id: UserId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// By which means.
    pub method: PaymentMethod,
    /// The reference that the buyer and the gateway see.
    pub reference: String,
    /// Whether the gateway holds the money before it takes it; none: as it is set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_first: Option<bool>,
    /// When.
    pub initiated_at: Timestamp,
}

/// The buyer can pay so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentInstructed {
    /// The payment.
    pub payment_id: PaymentId,
    /// The order.
    pub order_id: OrderId,
    /// How.
    pub instructions: Instructions,
    /// When.
    pub instructed_at: Timestamp,
}

/// The gateway's answer is not known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentTimedOut {
    /// The payment.
    pub payment_id: PaymentId,
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub timed_out_at: Timestamp,
}

/// The money is held for us: the gateway is to take it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentAuthorized {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// The gateway's name for what is held.
    pub provider_reference: String,
    /// When.
    pub authorized_at: Timestamp,
}

/// The money is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentCaptured {
    /// The order, as a transaction.
    pub transaction_id: OrderId,
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// The gateway's name for the capture.
    pub provider_reference: String,
    /// When.
    pub captured_at: Timestamp,
}

/// The gateway said no.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentFailed {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub failed_at: Timestamp,
}

/// Why reported money does not fit. The names are stored and public.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Misfit {
    /// Not the sum that was asked for.
    AmountMismatch,
    /// Not the currency that was asked for.
    CurrencyMismatch,
    /// A second capture beside the first.
    DuplicateCapture,
    /// Under this payment's name, but not begun by it.
    RequestMismatch,
    /// The capture is said to have come to nothing after all.
    FailedAfterCapture,
}

/// The gateway reported money that does not fit: somebody has to look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentRejected {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// Why.
    pub reason: Misfit,
    /// The sum that was asked for, in minor units.
    pub expected_amount: i64,
    /// The currency that was asked for.
    pub expected_currency: Currency,
    /// The sum that was reported, in minor units.
    pub amount: i64,
    /// The currency that was reported.
    pub currency: Currency,
    /// The gateway's name for the capture.
    pub provider_reference: String,
    /// When.
    pub rejected_at: Timestamp,
}

/// The gateway is to be told that no money is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentVoidRequested {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub requested_at: Timestamp,
}

/// No money will come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentVoided {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// Why, as a stable code.
    pub reason: String,
    /// Whether the gateway cannot close it, so that the buyer may pay still; the money would go back.
    #[serde(default)]
    pub still_open: bool,
    /// When.
    pub voided_at: Timestamp,
}

/// The gateway is to give the money back. The refund's id is the key that makes it happen once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentRefundRequested {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// The refund.
    pub refund_id: RefundId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// The gateway's name for the capture.
    pub provider_reference: String,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub requested_at: Timestamp,
}

/// The money went back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentRefunded {
    /// The order, as a transaction.
    pub transaction_id: OrderId,
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// The refund.
    pub refund_id: RefundId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// The gateway's name for the refund.
    pub provider_reference: String,
    /// When.
    pub refunded_at: Timestamp,
}

/// The gateway is to be asked how it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentInquiryRequested {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// Which time it is since the payment was begun, given up or wanted back, from 1.
    pub attempt: u32,
    /// Whether money is held for the payment, which is over, and is to be let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_be_let_go: Option<bool>,
    /// The refund that is asked after, of those that the gateway has not refused each in its turn; none:
    /// there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_id: Option<RefundId>,
    /// When.
    pub requested_at: Timestamp,
}

/// What was given up cannot be paid any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentClosed {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// Why, as a stable code of the gateway's.
    pub reason: String,
    /// When.
    pub closed_at: Timestamp,
}

/// The gateway did not give the money back, and this attempt is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentRefundFailed {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// The refund.
    pub refund_id: RefundId,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// Why, as a stable code.
    pub reason: String,
    /// When the next one is made; none: when somebody has seen to it.
    pub next_attempt_at: Option<Timestamp>,
    /// When.
    pub failed_at: Timestamp,
}

rejections! {
    /// Why a payment refuses a command.
    pub enum PaymentRejection {
        /// Never initiated.
        NotFound = "not_found", "there is no such payment";
        /// Given up before it began.
        Voided = "payment_voided", "this payment was given up before it began";
        /// Not from here.
        InvalidTransition {
            /// Where the payment stands.
            from: PaymentStatus,
        } = "invalid_transition", "the payment does not allow this any more";
        /// More than there is.
        RefundTooLarge {
            /// What is left, in minor units.
            left: i64,
        } = "refund_too_large", "no more can be given back than is left of the payment";
    }
}

/// A payment, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    /// Everything about it, once initiated.
    pub details: Option<PaymentDetails>,
    /// Whether it was given up before it began and never may.
    pub barred: bool,
}

/// What is known of a payment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PaymentDetails {
    /// The payment.
    pub payment_id: PaymentId,
    /// The order.
    pub order_id: OrderId,
    /// Who pays.
    pub payer_id: UserId,
    /// How it stands.
    pub status: PaymentStatus,
    /// How much.
    pub money: Money,
    /// By which means.
    pub method: PaymentMethod,
    /// The reference that the buyer and the gateway see.
    pub reference: String,
    /// Whether the gateway holds the money before it takes it; none: as it is set up.
    pub holds_first: Option<bool>,
    /// How the buyer can pay, once the gateway has told.
    pub instructions: Option<Instructions>,
    /// The gateway's name for the capture.
    pub provider_reference: Option<String>,
    /// Why the gateway said no.
    pub failure: Option<String>,
    /// Why no money is wanted any more.
    pub cancelled: Option<String>,
    /// What is to go back, or did.
    pub refunds: Vec<RefundDetails>,
    /// The last capture that did not fit, so that a repeated report is not recorded again.
    pub misfit_reference: Option<String>,
    /// When it began.
    pub initiated_at: Timestamp,
    /// How often it was asked after since it began, was given up or was wanted back.
    pub asked: u32,
    /// Whether it was given up and can be paid still.
    pub still_open: bool,
    /// Since when it is given up.
    pub given_up_at: Option<Timestamp>,
    /// Whether it is over, and money is held for it that is to be let go.
    pub to_be_let_go: bool,
}

/// Money that is to go back, or did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefundDetails {
    /// The refund.
    pub refund_id: RefundId,
    /// How much, in minor units.
    pub amount: i64,
    /// Why, as a stable code.
    pub reason: String,
    /// Whether it is done.
    pub done: bool,
    /// How many attempts have come to nothing for good.
    pub failed: u32,
    /// Whether the gateway will not, so that somebody has to see to it.
    pub refused: bool,
    /// Since when this attempt is asked for.
    pub since: Timestamp,
}

impl RefundDetails {
    fn fail(&mut self, event: &PaymentRefundFailed) {
        // Of an attempt that may yet have been made only the same one again is safe.
        if event.reason != REFUND_UNCLEAR {
            self.failed = event.attempt;
        }
        self.refused = event.next_attempt_at.is_none();
        self.since = event.next_attempt_at.unwrap_or(event.failed_at);
    }

    /// The keys of all its attempts, the latest last.
    pub fn keys(&self) -> impl Iterator<Item = Uuid> {
        (0..=self.failed).map(|failed| self.refund_id.key(failed))
    }
}

type Decision = Result<Vec<PaymentEvent>, PaymentRejection>;

impl Aggregate for Payment {
    const TYPE: &'static str = "payment";
    const SNAPSHOT_VERSION: u32 = 4;
    type Command = PaymentCommand;
    type Event = PaymentEvent;
    type Rejection = PaymentRejection;

    fn decide(&self, command: &PaymentCommand) -> Decision {
        use PaymentCommand as C;
        match command {
            C::Initiate { .. } => self.initiate(command),
            C::RecordInstructions { instructions, now } => {
                Ok(self.details()?.instruct(instructions, *now))
            }
            C::Settle { outcome, now } => {
                let details = self.details()?;
                Ok(match outcome {
                    Outcome::Authorized { provider_reference, money } => {
                        details.authorize(provider_reference, *money, *now)
                    }
                    Outcome::Captured { provider_reference, money } => {
                        details.capture(provider_reference, *money, *now)
                    }
                    Outcome::Misfit { reason, provider_reference, money } => {
                        details.misfit(*reason, provider_reference, *money, *now)
                    }
                    Outcome::Declined { reason, provider_reference } => {
                        details.decline(reason, provider_reference.as_deref(), *now)
                    }
                    Outcome::Unknown => details.time_out(*now),
                })
            }
            C::RecordVoided { still_open, now } => self.details()?.void(*still_open, *now),
            C::Inquire { now } => Ok(self.details()?.inquire(*now)),
            C::Cancel { payment_id, order_id, reason, now } => {
                Ok(self.cancel(*payment_id, *order_id, reason, *now))
            }
            C::Refund { refund_id, amount, reason, now } => {
                self.details()?.refund_part(*refund_id, *amount, reason, *now)
            }
            C::RecordRefunded { refund_id, provider_reference, now } => {
                self.details()?.refunded(*refund_id, provider_reference, *now)
            }
            C::RecordRefundFailed { refund_id, reason, next_attempt_at, now } => {
                self.details()?.refund_failed(*refund_id, reason, *next_attempt_at, *now)
            }
        }
    }

    fn apply(&mut self, event: &PaymentEvent) {
        match (event, &mut self.details) {
            (PaymentEvent::Initiated(event), details) => {
                *details = Some(PaymentDetails::new(event));
            }
            (PaymentEvent::Voided(_), None) => self.barred = true,
            (event, Some(details)) => details.apply(event),
            (_, None) => {}
        }
    }

    fn timers(&self, event: &PaymentEvent) -> Vec<TimerChange> {
        let details = self.details.as_ref().filter(|details| details.is_asked_after());
        details.and_then(|details| details.timer(event)).into_iter().collect()
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<PaymentCommand> {
        let details = self.details.as_ref()?;
        (name == INQUIRY_TIMER && details.is_open()).then_some(PaymentCommand::Inquire { now })
    }
}

impl Payment {
    fn details(&self) -> Result<&PaymentDetails, PaymentRejection> {
        self.details.as_ref().ok_or(PaymentRejection::NotFound)
    }

    fn initiate(&self, command: &PaymentCommand) -> Decision {
        let PaymentCommand::Initiate {
            payment_id,
            order_id,
            payer_id,
            money,
            method,
            reference,
            holds_first,
            now,
        } = command
        else {
            return Ok(Vec::new());
        };
        if self.barred {
            return Err(PaymentRejection::Voided);
        }
        if self.details.is_some() {
            return Ok(Vec::new());
        }
        Ok(vec![PaymentEvent::Initiated(PaymentInitiated {
            payment_id: *payment_id,
            order_id: *order_id,
            payer_id: *payer_id,
            amount: money.amount,
            currency: money.currency,
            method: method.clone(),
            reference: reference.clone(),
            holds_first: *holds_first,
            initiated_at: *now,
        })])
    }

    fn cancel(
        &self,
        payment_id: PaymentId,
        order_id: OrderId,
        reason: &str,
        now: Timestamp,
    ) -> Vec<PaymentEvent> {
        match &self.details {
            Some(details) => details.cancel(reason, now),
            None if self.barred => Vec::new(),
            None => vec![PaymentEvent::Voided(PaymentVoided {
                order_id,
                payment_id,
                reason: reason.to_owned(),
                still_open: false,
                voided_at: now,
            })],
        }
    }
}

impl PaymentDetails {
    fn new(event: &PaymentInitiated) -> Self {
        Self {
            payment_id: event.payment_id,
            order_id: event.order_id,
            payer_id: event.payer_id,
            status: PaymentStatus::Initiated,
            money: Money::new(event.amount, event.currency),
            method: event.method.clone(),
            reference: event.reference.clone(),
            holds_first: event.holds_first,
            instructions: None,
            provider_reference: None,
            failure: None,
            cancelled: None,
            refunds: Vec::new(),
            misfit_reference: None,
            initiated_at: event.initiated_at,
            asked: 0,
            still_open: false,
            given_up_at: None,
            to_be_let_go: false,
        }
    }

    /// Whether the gateway has yet to say what becomes of it for good.
    pub fn in_flight(&self) -> bool {
        use PaymentStatus as S;
        matches!(self.status, S::Initiated | S::Unknown | S::Authorized)
    }

    /// Whether money is held that is to be taken.
    pub fn is_to_be_captured(&self) -> bool {
        self.status == PaymentStatus::Authorized && self.cancelled.is_none()
    }

    /// What is to go back and has not. Those that the gateway will not make are somebody's to see.
    pub fn wanted_back(&self) -> impl Iterator<Item = &RefundDetails> {
        self.refunds.iter().filter(|refund| !refund.done)
    }

    /// The refund of this id.
    pub fn refund_of(&self, refund_id: RefundId) -> Option<&RefundDetails> {
        self.refunds.iter().find(|refund| refund.refund_id == refund_id)
    }

    /// How much has gone back, in minor units.
    pub fn refunded_amount(&self) -> i64 {
        self.refunds.iter().filter(|refund| refund.done).map(|refund| refund.amount).sum()
    }

    /// How much has not gone back and is not to, in minor units.
    fn left(&self) -> i64 {
        let gone: i64 = self.refunds.iter().map(|refund| refund.amount).sum();
        self.money.amount.saturating_sub(gone)
    }

    /// Whether the gateway is asked again by and by: one outside always, any other for a refund that
    /// has come to nothing.
    fn is_asked_after(&self) -> bool {
        self.method.is_asked_after() || self.wanted_back().any(|refund| refund.failed > 0)
    }

    /// Whether the gateway is to be asked for a refund again.
    fn refund_is_open(&self) -> bool {
        self.wanted_back().any(|refund| !refund.refused)
    }

    /// Whether it was given up so long ago that nobody can pay it any more, whatever its provider
    /// says of its state.
    pub fn is_past(&self, now: Timestamp) -> bool {
        let is_over = |since: Timestamp| now.since(since) >= WATCHED_FOR;
        self.still_open && self.given_up_at.is_some_and(is_over)
    }

    /// Whether there is something to ask the gateway.
    fn is_open(&self) -> bool {
        self.in_flight() || self.refund_is_open() || self.still_open || self.to_be_let_go
    }

    fn inquire(&self, now: Timestamp) -> Vec<PaymentEvent> {
        if self.is_open() { vec![self.inquiry(None, now)] } else { Vec::new() }
    }

    /// One refund at a time, each in its turn: what the gateway says to one may not hold up the others.
    fn inquiry(&self, to_be_let_go: Option<bool>, now: Timestamp) -> PaymentEvent {
        let attempt = self.asked.saturating_add(1);
        let open: Vec<_> = self.wanted_back().filter(|refund| !refund.refused).collect();
        let turn = open.get(attempt as usize % open.len().max(1));
        PaymentEvent::InquiryRequested(PaymentInquiryRequested {
            order_id: self.order_id,
            payment_id: self.payment_id,
            attempt,
            to_be_let_go,
            refund_id: turn.map(|refund| refund.refund_id),
            requested_at: now,
        })
    }

    /// Whether there is no money and none is wanted (any more).
    pub fn is_unwanted(&self) -> bool {
        matches!(self.status, PaymentStatus::Voided | PaymentStatus::Failed)
    }

    /// When it is asked after next, if an event changes that.
    fn timer(&self, event: &PaymentEvent) -> Option<TimerChange> {
        let set = |at| Some(TimerChange::Set { name: INQUIRY_TIMER.to_owned(), at });
        let clear = || Some(TimerChange::Clear { name: INQUIRY_TIMER.to_owned() });
        match event {
            PaymentEvent::Initiated(event) => set(event.initiated_at.plus(wait_after(0))),
            PaymentEvent::Authorized(event) => set(event.authorized_at.plus(wait_after(0))),
            PaymentEvent::VoidRequested(event) => set(event.requested_at.plus(wait_after(0))),
            PaymentEvent::RefundRequested(event) => set(event.requested_at.plus(wait_after(0))),
            PaymentEvent::InquiryRequested(event) => {
                set(event.requested_at.plus(wait_after(event.attempt)))
            }
            PaymentEvent::RefundFailed(event) => match event.next_attempt_at {
                Some(at) => set(at),
                None if self.refund_is_open() => None,
                None => clear(),
            },
            // It goes on being asked after.
            PaymentEvent::Voided(event) if event.still_open => None,
            // The money goes back at once, which says itself when to ask.
            PaymentEvent::Captured(_) if self.cancelled.is_some() || self.failure.is_some() => None,
            PaymentEvent::Refunded(_) if self.refund_is_open() => None,
            PaymentEvent::Captured(_)
            | PaymentEvent::Failed(_)
            | PaymentEvent::Voided(_)
            | PaymentEvent::Closed(_)
            | PaymentEvent::Refunded(_) => clear(),
            PaymentEvent::Instructed(_) | PaymentEvent::TimedOut(_) | PaymentEvent::Rejected(_) => {
                None
            }
        }
    }

    fn instruct(&self, instructions: &Instructions, now: Timestamp) -> Vec<PaymentEvent> {
        let is_awaited = self.in_flight() && self.status != PaymentStatus::Authorized;
        if !is_awaited || self.instructions.as_ref() == Some(instructions) {
            return Vec::new();
        }
        vec![PaymentEvent::Instructed(PaymentInstructed {
            payment_id: self.payment_id,
            order_id: self.order_id,
            instructions: instructions.clone(),
            instructed_at: now,
        })]
    }

    /// Why a sum is not this payment's, if it is not.
    fn mismatch(&self, money: Money) -> Option<Misfit> {
        if money.currency != self.money.currency {
            Some(Misfit::CurrencyMismatch)
        } else if money.amount != self.money.amount {
            Some(Misfit::AmountMismatch)
        } else {
            None
        }
    }

    /// What is held of a payment that is over is let go when it is asked after, which is at once and
    /// until it is gone; and what is being given up is let go by that.
    fn authorize(&self, reference: &str, money: Money, now: Timestamp) -> Vec<PaymentEvent> {
        match self.status {
            PaymentStatus::Initiated | PaymentStatus::Unknown if self.cancelled.is_none() => {}
            PaymentStatus::Voided | PaymentStatus::Failed => {
                return vec![self.inquiry(Some(true), now)];
            }
            _ => return Vec::new(),
        }
        if let Some(reason) = self.mismatch(money) {
            return self.misfit(reason, reference, money, now);
        }
        vec![PaymentEvent::Authorized(PaymentAuthorized {
            order_id: self.order_id,
            payment_id: self.payment_id,
            amount: money.amount,
            currency: money.currency,
            provider_reference: reference.to_owned(),
            authorized_at: now,
        })]
    }

    fn capture(&self, reference: &str, money: Money, now: Timestamp) -> Vec<PaymentEvent> {
        if self.provider_reference.as_deref() == Some(reference) {
            return Vec::new();
        }
        let misfit = match self.provider_reference {
            Some(_) => Some(Misfit::DuplicateCapture),
            None => self.mismatch(money),
        };
        if let Some(reason) = misfit {
            return self.misfit(reason, reference, money, now);
        }
        let mut events = vec![PaymentEvent::Captured(PaymentCaptured {
            transaction_id: self.order_id,
            order_id: self.order_id,
            payment_id: self.payment_id,
            amount: money.amount,
            currency: money.currency,
            provider_reference: reference.to_owned(),
            captured_at: now,
        })];
        let late = match self.status {
            PaymentStatus::Failed => Some("captured_after_failure"),
            _ => self.cancelled.as_deref(),
        };
        if let Some(reason) = late {
            events.push(self.refund(reference, reason, now));
        }
        events
    }

    fn misfit(
        &self,
        reason: Misfit,
        reference: &str,
        money: Money,
        now: Timestamp,
    ) -> Vec<PaymentEvent> {
        if self.misfit_reference.as_deref() == Some(reference) {
            return Vec::new();
        }
        vec![PaymentEvent::Rejected(PaymentRejected {
            order_id: self.order_id,
            payment_id: self.payment_id,
            reason,
            expected_amount: self.money.amount,
            expected_currency: self.money.currency,
            amount: money.amount,
            currency: money.currency,
            provider_reference: reference.to_owned(),
            rejected_at: now,
        })]
    }

    /// A no that comes after a final answer changes nothing, but about the very money that has come
    /// somebody has to look; after it was given up, it is the end.
    fn decline(&self, reason: &str, reference: Option<&str>, now: Timestamp) -> Vec<PaymentEvent> {
        if let Some(reference) = reference
            && self.provider_reference.as_deref() == Some(reference)
        {
            return self.misfit(Misfit::FailedAfterCapture, reference, self.money, now);
        }
        if self.still_open || self.to_be_let_go {
            return vec![PaymentEvent::Closed(PaymentClosed {
                order_id: self.order_id,
                payment_id: self.payment_id,
                reason: reason.to_owned(),
                closed_at: now,
            })];
        }
        if !self.in_flight() {
            return Vec::new();
        }
        vec![PaymentEvent::Failed(PaymentFailed {
            order_id: self.order_id,
            payment_id: self.payment_id,
            reason: reason.to_owned(),
            failed_at: now,
        })]
    }

    fn time_out(&self, now: Timestamp) -> Vec<PaymentEvent> {
        if self.status != PaymentStatus::Initiated {
            return Vec::new();
        }
        vec![PaymentEvent::TimedOut(PaymentTimedOut {
            payment_id: self.payment_id,
            order_id: self.order_id,
            timed_out_at: now,
        })]
    }

    fn void(&self, still_open: bool, now: Timestamp) -> Decision {
        match self.status {
            PaymentStatus::Initiated | PaymentStatus::Unknown | PaymentStatus::Authorized => {
                let reason = self.cancelled.clone().unwrap_or_else(|| "voided_by_gateway".into());
                Ok(vec![PaymentEvent::Voided(PaymentVoided {
                    order_id: self.order_id,
                    payment_id: self.payment_id,
                    reason,
                    still_open,
                    voided_at: now,
                })])
            }
            PaymentStatus::Voided | PaymentStatus::Failed => Ok(Vec::new()),
            // The money was reported first, by another way; it goes back by itself.
            PaymentStatus::Captured | PaymentStatus::Refunded => Ok(Vec::new()),
        }
    }

    fn cancel(&self, reason: &str, now: Timestamp) -> Vec<PaymentEvent> {
        match (self.status, &self.provider_reference) {
            _ if self.in_flight() && self.cancelled.is_none() => {
                vec![PaymentEvent::VoidRequested(PaymentVoidRequested {
                    order_id: self.order_id,
                    payment_id: self.payment_id,
                    reason: reason.to_owned(),
                    requested_at: now,
                })]
            }
            (PaymentStatus::Captured, Some(reference)) if self.left() > 0 => {
                vec![self.refund(reference, reason, now)]
            }
            _ => Vec::new(),
        }
    }

    /// All that is left goes back.
    fn refund(&self, reference: &str, reason: &str, now: Timestamp) -> PaymentEvent {
        self.refund_request(RefundId::of(self.payment_id), self.left(), reference, reason, now)
    }

    fn refund_request(
        &self,
        refund_id: RefundId,
        amount: i64,
        reference: &str,
        reason: &str,
        now: Timestamp,
    ) -> PaymentEvent {
        PaymentEvent::RefundRequested(PaymentRefundRequested {
            order_id: self.order_id,
            payment_id: self.payment_id,
            refund_id,
            amount,
            currency: self.money.currency,
            provider_reference: reference.to_owned(),
            reason: reason.to_owned(),
            requested_at: now,
        })
    }

    fn refund_part(
        &self,
        refund_id: RefundId,
        amount: i64,
        reason: &str,
        now: Timestamp,
    ) -> Decision {
        if self.refund_of(refund_id).is_some() {
            return Ok(Vec::new());
        }
        let (PaymentStatus::Captured, Some(reference)) = (self.status, &self.provider_reference)
        else {
            return Err(PaymentRejection::InvalidTransition { from: self.status });
        };
        let left = self.left();
        if amount <= 0 || amount > left {
            return Err(PaymentRejection::RefundTooLarge { left });
        }
        Ok(vec![self.refund_request(refund_id, amount, reference, reason, now)])
    }

    /// The refund that a report is about, if it is still awaited.
    fn outstanding(&self, refund_id: RefundId) -> Result<Option<&RefundDetails>, PaymentRejection> {
        match self.refund_of(refund_id) {
            Some(refund) if refund.done => Ok(None),
            Some(refund) => Ok(Some(refund)),
            None => Err(PaymentRejection::InvalidTransition { from: self.status }),
        }
    }

    fn refunded(&self, refund_id: RefundId, reference: &str, now: Timestamp) -> Decision {
        let Some(refund) = self.outstanding(refund_id)? else { return Ok(Vec::new()) };
        Ok(vec![PaymentEvent::Refunded(PaymentRefunded {
            transaction_id: self.order_id,
            order_id: self.order_id,
            payment_id: self.payment_id,
            refund_id,
            amount: refund.amount,
            currency: self.money.currency,
            provider_reference: reference.to_owned(),
            refunded_at: now,
        })])
    }

    fn refund_failed(
        &self,
        refund_id: RefundId,
        reason: &str,
        next_attempt_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Decision {
        let Some(refund) = self.outstanding(refund_id)? else { return Ok(Vec::new()) };
        Ok(vec![PaymentEvent::RefundFailed(PaymentRefundFailed {
            order_id: self.order_id,
            payment_id: self.payment_id,
            refund_id,
            attempt: refund.failed.saturating_add(1),
            reason: reason.to_owned(),
            next_attempt_at,
            failed_at: now,
        })])
    }

    fn refund_mut(&mut self, refund_id: RefundId) -> Option<&mut RefundDetails> {
        self.refunds.iter_mut().find(|refund| refund.refund_id == refund_id)
    }

    fn apply(&mut self, event: &PaymentEvent) {
        match event {
            PaymentEvent::Initiated(_) => {}
            PaymentEvent::Instructed(event) => {
                self.instructions = Some(event.instructions.clone());
            }
            PaymentEvent::TimedOut(_) => self.status = PaymentStatus::Unknown,
            PaymentEvent::Authorized(_) => {
                self.status = PaymentStatus::Authorized;
                self.asked = 0;
            }
            PaymentEvent::Captured(event) => {
                self.status = PaymentStatus::Captured;
                self.provider_reference = Some(event.provider_reference.clone());
                self.still_open = false;
                self.to_be_let_go = false;
            }
            PaymentEvent::Failed(event) => {
                self.status = PaymentStatus::Failed;
                self.failure = Some(event.reason.clone());
            }
            PaymentEvent::Rejected(event) => {
                self.misfit_reference = Some(event.provider_reference.clone());
            }
            PaymentEvent::VoidRequested(event) => {
                self.cancelled = Some(event.reason.clone());
                self.asked = 0;
            }
            PaymentEvent::Voided(event) => {
                self.status = PaymentStatus::Voided;
                self.cancelled = Some(event.reason.clone());
                self.still_open = event.still_open;
                self.given_up_at = Some(event.voided_at);
            }
            PaymentEvent::RefundRequested(event) => {
                self.refunds.push(RefundDetails {
                    refund_id: event.refund_id,
                    amount: event.amount,
                    reason: event.reason.clone(),
                    done: false,
                    failed: 0,
                    refused: false,
                    since: event.requested_at,
                });
                self.asked = 0;
            }
            PaymentEvent::Refunded(event) => {
                if let Some(refund) = self.refund_mut(event.refund_id) {
                    refund.done = true;
                }
                if self.refunded_amount() >= self.money.amount {
                    self.status = PaymentStatus::Refunded;
                }
            }
            PaymentEvent::InquiryRequested(event) => {
                self.asked = event.attempt;
                self.to_be_let_go |= event.to_be_let_go.unwrap_or_default();
            }
            PaymentEvent::Closed(_) => {
                self.still_open = false;
                self.to_be_let_go = false;
            }
            PaymentEvent::RefundFailed(event) => {
                if let Some(refund) = self.refund_mut(event.refund_id) {
                    refund.fail(event);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
