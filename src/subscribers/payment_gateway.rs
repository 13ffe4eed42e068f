//! `payment-gateway`: carries out what payments ask of their provider, and reports back.
//!
//! | event | call | report |
//! | --- | --- | --- |
//! | `payment.initiated` | charge | captured, failed, instructions; unknown when it takes too long |
//! | `payment.authorized` | capture | captured or failed |
//! | `payment.timed_out` | query, until the provider knows | captured or failed |
//! | `payment.void_requested` | void | captured (the payment then wants it back) or voided |
//! | `payment.refund_requested` | that refund | refunded, or failed |
//! | `payment.inquiry_requested` | whichever of these is open | the same |
//!
//! The payment's id is the key of the charge and the refund's id that of the refund, so that no
//! repeat costs the buyer anything. Events of one payment come in order.
//!
//! A provider outside that does not answer is no failure of this subscription: the payment's own
//! timer asks again ([`PaymentMethod::is_asked_after`]), and what else there is to do for it does not
//! wait behind a dead letter. Nor is one that is not set up (any more): other providers' payments go
//! on. A charge that the provider has not heard of, or whose instructions were
//! lost, is sent again under its key.
//!
//! [`PaymentMethod::is_asked_after`]: crate::domain::order::PaymentMethod::is_asked_after

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::faults::points;
use souk_actors::retry::{Failure, FailureKind};
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::{command_failed, decode_failed, gateway_failed};
use crate::domain::ids::RefundId;
use crate::domain::money::Money;
use crate::domain::payment::{
    Outcome, Payment, PaymentCommand, PaymentDetails, PaymentEvent, REFUND_UNCLEAR, RefundDetails,
};
use crate::gateways::PaymentGateways;
use crate::gateways::payment::{
    Charge, ChargeAnswer, ChargeOutcome, GatewayError, OtherRefund, PaymentGateway, Refund,
    RefundAnswer,
};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "payment-gateway";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "payment.initiated",
    "payment.authorized",
    "payment.timed_out",
    "payment.void_requested",
    "payment.refund_requested",
    "payment.inquiry_requested",
];
/// Why a payment that was given up is closed when nobody paid it for so long. Stored; never rename.
const NOT_PAID_IN_TIME: &str = "not_paid_in_time";
/// How long a provider may be unable to say what becomes of a refund; then somebody must look.
const UNCLEAR_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How long after a refund has come to nothing another one is asked for.
const REFUND_AGAIN_AFTER: Duration = Duration::from_secs(60 * 60);

/// The handler.
pub struct PaymentGatewayHandler {
    gateways: PaymentGateways,
}

/// What a payment asks of its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Charge(Charge),
    Query(Charge),
    Capture(Charge),
    Void(Charge),
    Refund(RefundId, Refund),
}

/// What the event asks for, as the payment stands by now. A settled payment asks for nothing more.
pub(super) fn call(event: &PaymentEvent, details: &PaymentDetails) -> Option<Call> {
    let charge = || Charge {
        idempotency_key: details.payment_id.to_string(),
        amount: details.money,
        method: details.method.to_string(),
        reference: details.reference.clone(),
        holds_first: details.holds_first,
    };
    match event {
        PaymentEvent::Initiated(_) if is_to_be_begun(details) => Some(Call::Charge(charge())),
        // What was given up meanwhile is asked after by the void that follows.
        PaymentEvent::TimedOut(_) if details.in_flight() && details.cancelled.is_none() => {
            Some(Call::Query(charge()))
        }
        PaymentEvent::Authorized(_) if details.is_to_be_captured() => Some(Call::Capture(charge())),
        PaymentEvent::VoidRequested(_) if details.in_flight() => Some(Call::Void(charge())),
        PaymentEvent::RefundRequested(event) => {
            details.refund_of(event.refund_id).and_then(|wanted| refund(details, wanted))
        }
        PaymentEvent::InquiryRequested(_) if details.cancelled.is_some() && details.in_flight() => {
            Some(Call::Void(charge()))
        }
        PaymentEvent::InquiryRequested(_) if details.is_to_be_captured() => {
            Some(Call::Capture(charge()))
        }
        PaymentEvent::InquiryRequested(_) if details.in_flight() => Some(Call::Query(charge())),
        PaymentEvent::InquiryRequested(_) if details.is_unwanted() => Some(Call::Query(charge())),
        // One that was refused since is asked for by whoever retries the letter of this event.
        PaymentEvent::InquiryRequested(event) => {
            let named = event.refund_id.and_then(|named| details.refund_of(named));
            named.and_then(|wanted| refund(details, wanted))
        }
        _ => None,
    }
}

/// Whether a charge is sent at all. What was given up meanwhile is not: the void that follows finds
/// nothing. But the built-in provider, which remembers nothing, could not say so.
fn is_to_be_begun(details: &PaymentDetails) -> bool {
    let is_wanted = details.cancelled.is_none() || !details.method.is_asked_after();
    details.in_flight() && is_wanted
}

/// The call for a refund that is wanted, under the key of this attempt.
fn refund(details: &PaymentDetails, wanted: &RefundDetails) -> Option<Call> {
    let provider_reference = details.provider_reference.clone()?;
    let refund_id = wanted.refund_id;
    let keys = |of: &RefundDetails| of.keys().map(|key| key.to_string()).collect::<Vec<_>>();
    let others = details.refunds.iter().filter(|other| other.refund_id != refund_id);
    (!wanted.done).then(|| {
        let mut earlier_keys = keys(wanted);
        earlier_keys.pop();
        let refund = Refund {
            idempotency_key: refund_id.key(wanted.failed).to_string(),
            charge_key: details.payment_id.to_string(),
            provider_reference,
            amount: Money::new(wanted.amount, details.money.currency),
            method: details.method.to_string(),
            earlier_keys,
            others: others
                .map(|other| OtherRefund {
                    keys: keys(other),
                    amount: other.amount,
                    done: other.done,
                })
                .collect(),
        };
        Call::Refund(refund_id, refund)
    })
}

/// A command to the payment, with the purpose that makes its id: another answer is another command.
pub(super) type Report = (Cow<'static, str>, PaymentCommand);

/// Whether a charge is to be sent again: nobody has it, or nobody knows how the buyer can pay it.
pub(super) fn must_be_sent_again(answer: &ChargeAnswer, details: &PaymentDetails) -> bool {
    details.in_flight()
        && details.cancelled.is_none()
        && match answer.outcome {
            ChargeOutcome::Absent => true,
            ChargeOutcome::Pending => {
                answer.instructions.is_none() && details.instructions.is_none()
            }
            _ => false,
        }
}

/// Whether money is held that nobody wants (any more).
pub(super) fn must_be_let_go(answer: &ChargeAnswer, details: &PaymentDetails) -> bool {
    details.is_unwanted() && answer.outcome == ChargeOutcome::Authorized
}

/// What to tell the payment. `Err`: the provider must be asked again.
pub(super) fn report(
    answer: ChargeAnswer,
    voiding: bool,
    now: Timestamp,
) -> Result<Vec<Report>, Failure> {
    let settle = |outcome| PaymentCommand::Settle { outcome, now };
    let voided = |purpose, still_open| {
        vec![(Cow::Borrowed(purpose), PaymentCommand::RecordVoided { still_open, now })]
    };
    Ok(match answer.outcome {
        // It is to be let go, and is not yet.
        ChargeOutcome::Authorized if voiding => return Err(ask_again()),
        ChargeOutcome::Authorized => {
            let provider_reference = answer.provider_reference.unwrap_or_default();
            let outcome = Outcome::Authorized { provider_reference, money: answer.amount };
            vec![("authorized".into(), settle(outcome))]
        }
        ChargeOutcome::Captured => {
            let provider_reference = answer.provider_reference.ok_or_else(|| {
                Failure::permanent("the payment provider captured without a reference")
            })?;
            let outcome = Outcome::Captured { provider_reference, money: answer.amount };
            vec![("captured".into(), settle(outcome))]
        }
        ChargeOutcome::Declined(_) if voiding => voided("voided", false),
        // It cannot be closed there. Nor is it certain that what was sent will not arrive yet.
        ChargeOutcome::Pending | ChargeOutcome::Absent if voiding => voided("given up", true),
        ChargeOutcome::Declined(reason) => {
            let provider_reference = answer.provider_reference;
            vec![("declined".into(), settle(Outcome::Declined { reason, provider_reference }))]
        }
        ChargeOutcome::Pending => answer
            .instructions
            .map(|instructions| {
                let told = PaymentCommand::RecordInstructions { instructions, now };
                ("instructions".into(), told)
            })
            .into_iter()
            .collect(),
        ChargeOutcome::Unknown | ChargeOutcome::Absent => return Err(ask_again()),
    })
}

/// What was given up long ago and has not been paid by now never will be.
pub(super) fn past(
    answer: &ChargeAnswer,
    details: &PaymentDetails,
    now: Timestamp,
) -> Option<Vec<Report>> {
    let unpaid = matches!(answer.outcome, ChargeOutcome::Pending | ChargeOutcome::Absent);
    (unpaid && details.is_past(now)).then(|| {
        let reason = NOT_PAID_IN_TIME.to_owned();
        let outcome = Outcome::Declined { reason, provider_reference: None };
        vec![("past".into(), PaymentCommand::Settle { outcome, now })]
    })
}

fn ask_again() -> Failure {
    Failure::transient("the payment provider does not know yet what became of the charge")
}

pub(super) fn unknown(now: Timestamp) -> Vec<Report> {
    vec![("unknown".into(), PaymentCommand::Settle { outcome: Outcome::Unknown, now })]
}

/// A refund that failed is another one's turn, later or when somebody has seen to it.
fn refund_failed(
    details: &PaymentDetails,
    refund_id: RefundId,
    reason: String,
    next_attempt_at: Option<Timestamp>,
    now: Timestamp,
) -> Report {
    let failed = details.refund_of(refund_id).map_or(0, |refund| refund.failed);
    // What an unclear attempt comes to in the end is another answer about the same attempt.
    let purpose = format!("refund {refund_id} failed {failed} {reason}");
    let command = PaymentCommand::RecordRefundFailed { refund_id, reason, next_attempt_at, now };
    (purpose.into(), command)
}

/// What came of a call: what the payment is told, and what is to be a dead letter nevertheless.
pub(super) struct Carried {
    pub(super) reports: Vec<Report>,
    letter: Option<Failure>,
}

impl From<Vec<Report>> for Carried {
    fn from(reports: Vec<Report>) -> Self {
        Self { reports, letter: None }
    }
}

impl PaymentGatewayHandler {
    /// Carries payments out through these providers.
    pub fn new(gateways: PaymentGateways) -> Self {
        Self { gateways }
    }

    /// Makes the call and gives what to report.
    async fn carry_out(
        &self,
        runtime: &Runtime,
        details: &PaymentDetails,
        call: Call,
    ) -> Result<Carried, Failure> {
        let gateway = self.gateways.of(&details.method.0).ok_or_else(|| {
            let method = &details.method;
            let message = format!(
                "the payment provider of {method} is not set up and payments by it are open: set \
                 MOMO_* again until none is, and retry the letters there are"
            );
            tracing::error!(payment_id = %details.payment_id, "{message}");
            Failure::transient(message)
        })?;
        match call {
            Call::Charge(charge) => self.first(runtime, &**gateway, &charge).await,
            Call::Query(charge) => {
                let query = gateway.query(&charge);
                let answer = within(runtime, &**gateway, "query", query).await?;
                if must_be_sent_again(&answer, details) {
                    return self.again(runtime, &**gateway, &charge).await;
                }
                let answer = match must_be_let_go(&answer, details) {
                    true => within(runtime, &**gateway, "void", gateway.void(&charge)).await?,
                    false => answer,
                };
                let now = runtime.world().now();
                match past(&answer, details, now) {
                    Some(reports) => Ok(reports.into()),
                    None => report(answer, false, now).map(Carried::from),
                }
            }
            Call::Capture(charge) => {
                let capture = gateway.capture(&charge);
                let answer = within(runtime, &**gateway, "capture", capture).await?;
                report(answer, false, runtime.world().now()).map(Carried::from)
            }
            Call::Void(charge) => {
                let answer = within(runtime, &**gateway, "void", gateway.void(&charge)).await?;
                report(answer, true, runtime.world().now()).map(Carried::from)
            }
            Call::Refund(refund_id, refund) => {
                let made = gateway.refund(&refund);
                let answer = within(runtime, &**gateway, "refund", made).await?;
                let failed = points::try_reach("gateway.after_refund").await;
                failed.map_err(|failed| Failure::transient(failed.to_string()))?;
                refunded(details, refund_id, answer, runtime.world().now())
            }
        }
    }

    /// The first time that a charge is sent: whatever comes of it, something is recorded.
    async fn first(
        &self,
        runtime: &Runtime,
        gateway: &dyn PaymentGateway,
        charge: &Charge,
    ) -> Result<Carried, Failure> {
        let now = || runtime.world().now();
        let limit = gateway.answer_within();
        let limit = tokio::time::timeout(limit, self.charge(runtime, gateway, charge));
        match limit.await {
            Err(_) => Ok(unknown(now()).into()),
            Ok(Ok(ChargeAnswer { outcome: ChargeOutcome::Unknown, .. })) => {
                Ok(unknown(now()).into())
            }
            Ok(answer) => report(answer?, false, now()).map(Carried::from),
        }
    }

    /// The same charge again, of which it is known already that nobody knew what became of it.
    async fn again(
        &self,
        runtime: &Runtime,
        gateway: &dyn PaymentGateway,
        charge: &Charge,
    ) -> Result<Carried, Failure> {
        let limit = gateway.answer_within();
        let limit = tokio::time::timeout(limit, self.charge(runtime, gateway, charge));
        let answer = limit.await.map_err(|_| ask_again())?;
        report(answer?, false, runtime.world().now()).map(Carried::from)
    }

    /// A charge whose answer nobody waits for may still happen: the caller decides what a time
    /// limit means.
    async fn charge(
        &self,
        runtime: &Runtime,
        gateway: &dyn PaymentGateway,
        charge: &Charge,
    ) -> Result<ChargeAnswer, Failure> {
        runtime.faults().before(gateway.provider(), &["charge", &charge.method]).await?;
        let answer = gateway.charge(charge).await.map_err(gateway_failed)?;
        let failed = points::try_reach("gateway.after_charge").await;
        failed.map_err(|failed| Failure::transient(failed.to_string()))?;
        Ok(answer)
    }
}

async fn within<T>(
    runtime: &Runtime,
    gateway: &dyn PaymentGateway,
    operation: &'static str,
    call: impl Future<Output = Result<T, GatewayError>>,
) -> Result<T, Failure> {
    let call = async {
        runtime.faults().before(gateway.provider(), &[operation]).await?;
        call.await.map_err(gateway_failed)
    };
    match tokio::time::timeout(gateway.answer_within(), call).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::transient("the payment provider did not answer in time")),
    }
}

pub(super) fn refunded(
    details: &PaymentDetails,
    refund_id: RefundId,
    answer: RefundAnswer,
    now: Timestamp,
) -> Result<Carried, Failure> {
    match answer {
        RefundAnswer::Refunded { provider_reference } => {
            let command = PaymentCommand::RecordRefunded { refund_id, provider_reference, now };
            Ok(vec![(format!("refunded {refund_id}").into(), command)].into())
        }
        RefundAnswer::Unclear if is_unclear_for_long(details, refund_id, now) => {
            Ok(refused(details, refund_id, REFUND_UNCLEAR.to_owned(), now))
        }
        RefundAnswer::Pending | RefundAnswer::Unclear => {
            Err(Failure::transient("the payment provider has not given the money back yet"))
        }
        RefundAnswer::Failed(reason) => {
            let again = Some(now.plus(REFUND_AGAIN_AFTER));
            Ok(vec![refund_failed(details, refund_id, reason, again, now)].into())
        }
        RefundAnswer::Refused(reason) => Ok(refused(details, refund_id, reason, now)),
    }
}

/// A refund that somebody must see to.
fn refused(
    details: &PaymentDetails,
    refund_id: RefundId,
    reason: String,
    now: Timestamp,
) -> Carried {
    Carried {
        letter: Some(Failure::permanent(format!(
            "the payment provider does not give the money back: {reason}"
        ))),
        reports: vec![refund_failed(details, refund_id, reason, None, now)],
    }
}

/// Whether nobody has been able to say for too long what becomes of this attempt.
fn is_unclear_for_long(details: &PaymentDetails, refund_id: RefundId, now: Timestamp) -> bool {
    let refund = details.refund_of(refund_id);
    refund.is_some_and(|refund| now.since(refund.since) >= UNCLEAR_FOR)
}

/// Whether the payment's own timer makes a call again that had no answer. A refund that was refused is
/// made by whoever retries its letter, and by nobody else.
fn is_made_again(call: &Call, details: &PaymentDetails) -> bool {
    let is_refused = |id| details.refund_of(id).is_some_and(|refund| refund.refused);
    let is_left = matches!(call, Call::Refund(id, _) if is_refused(*id));
    details.method.is_asked_after() && !is_left
}

/// What a payment that its own timer asks after needs when its provider did not answer: nothing, but
/// for the word that nobody knows what became of its charge.
fn unanswered(event: &PaymentEvent, failure: &Failure, now: Timestamp) -> Vec<Report> {
    tracing::warn!(
        error = failure.message,
        "a payment provider did not say how a payment stands; it is asked again"
    );
    if matches!(event, PaymentEvent::Initiated(_)) { unknown(now) } else { Vec::new() }
}

#[async_trait]
impl Handler for PaymentGatewayHandler {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let payment: PaymentEvent = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let payments = runtime.aggregate::<Payment>();
        let id: Uuid = event.aggregate_id;
        let state = payments.read_inside(id, |payment| payment.details.clone()).await;
        let details = state.map_err(|error| command_failed(&error))?.value;
        let Some(details) = details else { return Ok(()) };
        let Some(call) = call(&payment, &details) else { return Ok(()) };
        let is_made_again = is_made_again(&call, &details);
        let carried = match self.carry_out(runtime, &details, call).await {
            Err(failure) if failure.kind == FailureKind::Transient && is_made_again => {
                unanswered(&payment, &failure, runtime.world().now()).into()
            }
            carried => carried?,
        };
        for (purpose, command) in carried.reports {
            let context = CommandContext::because_of(event, &purpose, id);
            let sent = payments.send(id, command, context, |_| ()).await;
            sent.map_err(|error| command_failed(&error))?;
        }
        carried.letter.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::retry::FailureKind;

    use super::*;
    use crate::domain::ids::{OrderId, PaymentId, RefundId, UserId};
    use crate::domain::money::{Currency, Money};
    use crate::domain::order::PaymentMethod;
    use crate::domain::payment::{
        Instructions, PaymentAuthorized, PaymentInitiated, PaymentInquiryRequested,
        PaymentRefundRequested, PaymentStatus, PaymentTimedOut, PaymentVoidRequested,
    };

    const AT: Timestamp = Timestamp::from_millis(0);

    fn order() -> OrderId {
        OrderId(Uuid::from_u128(1))
    }

    fn details(status: PaymentStatus) -> PaymentDetails {
        PaymentDetails {
            payment_id: PaymentId::of(order()),
            order_id: order(),
            payer_id: UserId(Uuid::from_u128(2)),
            status,
            money: Money::new(1_500, Currency::Vnd),
            method: PaymentMethod::new("sandbox"),
            reference: "PAY-1".to_owned(),
            holds_first: None,
            instructions: None,
            provider_reference: None,
            failure: None,
            cancelled: None,
            refunds: Vec::new(),
            misfit_reference: None,
            initiated_at: AT,
            asked: 0,
            still_open: false,
            given_up_at: None,
            to_be_let_go: false,
        }
    }

    fn inquiry() -> PaymentEvent {
        PaymentEvent::InquiryRequested(PaymentInquiryRequested {
            order_id: order(),
            payment_id: PaymentId::of(order()),
            attempt: 1,
            to_be_let_go: None,
            refund_id: Some(whole()),
            requested_at: AT,
        })
    }

    fn whole() -> RefundId {
        RefundId::of(PaymentId::of(order()))
    }

    fn wanted(refund_id: RefundId, amount: i64) -> RefundDetails {
        let reason = "order_cancelled".to_owned();
        RefundDetails {
            refund_id,
            amount,
            reason,
            done: false,
            failed: 0,
            refused: false,
            since: AT,
        }
    }

    fn wanted_back() -> PaymentDetails {
        PaymentDetails {
            refunds: vec![wanted(whole(), 1_500)],
            provider_reference: Some("SBX-1".to_owned()),
            ..details(PaymentStatus::Captured)
        }
    }

    fn answer(outcome: ChargeOutcome) -> ChargeAnswer {
        ChargeAnswer {
            outcome,
            provider_reference: Some("SBX-1".to_owned()),
            amount: Money::new(1_500, Currency::Vnd),
            instructions: None,
        }
    }

    fn events() -> [PaymentEvent; 3] {
        let (payment_id, order_id) = (PaymentId::of(order()), order());
        [
            PaymentEvent::Initiated(PaymentInitiated {
                payment_id,
                order_id,
                payer_id: UserId(Uuid::from_u128(2)),
                amount: 1_500,
                currency: Currency::Vnd,
                method: PaymentMethod::new("sandbox"),
                reference: "PAY-1".to_owned(),
                holds_first: None,
                initiated_at: AT,
            }),
            PaymentEvent::TimedOut(PaymentTimedOut { payment_id, order_id, timed_out_at: AT }),
            PaymentEvent::VoidRequested(PaymentVoidRequested {
                payment_id,
                order_id,
                reason: "order_cancelled".to_owned(),
                requested_at: AT,
            }),
        ]
    }

    #[test]
    fn only_a_payment_in_flight_is_charged_asked_after_or_voided() {
        let [initiated, timed_out, void] = events();
        let open = details(PaymentStatus::Initiated);
        let Some(Call::Charge(charge)) = call(&initiated, &open) else { panic!("a charge") };
        assert_eq!(charge.idempotency_key, PaymentId::of(order()).to_string());
        assert!(matches!(call(&timed_out, &open), Some(Call::Query(same)) if same == charge));
        assert!(matches!(call(&void, &open), Some(Call::Void(same)) if same == charge));
        let given_up = PaymentDetails { cancelled: Some("late".to_owned()), ..open };
        assert_eq!(call(&timed_out, &given_up), None);
        assert!(matches!(call(&void, &given_up), Some(Call::Void(_))));
        for status in [PaymentStatus::Captured, PaymentStatus::Failed, PaymentStatus::Voided] {
            for event in events() {
                assert_eq!(call(&event, &details(status)), None, "{event:?} of {status:?}");
            }
        }
    }

    #[test]
    fn what_was_given_up_before_it_was_sent_is_not_sent_where_a_void_finds_nothing() {
        let [initiated, ..] = events();
        let begun = |method: &str| PaymentDetails {
            method: PaymentMethod::new(method),
            cancelled: Some("order_cancelled".to_owned()),
            ..details(PaymentStatus::Initiated)
        };
        assert_eq!(call(&initiated, &begun(PaymentMethod::MOMO)), None);
        let sandbox = call(&initiated, &begun(PaymentMethod::SANDBOX));
        assert!(matches!(sandbox, Some(Call::Charge(_))));
    }

    #[test]
    fn a_charge_is_made_as_it_was_begun() {
        let [initiated, timed_out, _] = events();
        for holds_first in [None, Some(false), Some(true)] {
            let open = PaymentDetails { holds_first, ..details(PaymentStatus::Initiated) };
            for event in [&initiated, &timed_out] {
                let Some(Call::Charge(charge) | Call::Query(charge)) = call(event, &open) else {
                    panic!("it is in flight")
                };
                assert_eq!(charge.holds_first, holds_first);
            }
        }
    }

    #[test]
    fn an_inquiry_asks_for_whatever_is_open() {
        let open = details(PaymentStatus::Unknown);
        assert!(matches!(call(&inquiry(), &open), Some(Call::Query(_))));
        let given_up = PaymentDetails { cancelled: Some("order_cancelled".to_owned()), ..open };
        assert!(matches!(call(&inquiry(), &given_up), Some(Call::Void(_))));
        let watched = PaymentDetails { still_open: true, ..details(PaymentStatus::Voided) };
        assert!(matches!(call(&inquiry(), &watched), Some(Call::Query(_))));
        assert_eq!(call(&inquiry(), &details(PaymentStatus::Captured)), None);
        // Something may be held for what is over.
        for over in [PaymentStatus::Failed, PaymentStatus::Voided] {
            assert!(matches!(call(&inquiry(), &details(over)), Some(Call::Query(_))), "{over:?}");
            assert!(must_be_let_go(&answer(ChargeOutcome::Authorized), &details(over)));
            assert!(!must_be_let_go(&answer(ChargeOutcome::Pending), &details(over)));
        }
    }

    #[test]
    fn what_is_held_is_taken_unless_the_order_is_off() {
        let held = details(PaymentStatus::Authorized);
        let event = PaymentEvent::Authorized(PaymentAuthorized {
            order_id: order(),
            payment_id: PaymentId::of(order()),
            amount: 1_500,
            currency: Currency::Vnd,
            provider_reference: "SBX-1".to_owned(),
            authorized_at: AT,
        });
        for asked in [&event, &inquiry()] {
            assert!(matches!(call(asked, &held), Some(Call::Capture(_))));
        }
        let given_up = PaymentDetails { cancelled: Some("order_cancelled".to_owned()), ..held };
        assert_eq!(call(&event, &given_up), None);
        assert!(matches!(call(&inquiry(), &given_up), Some(Call::Void(_))));
    }

    #[test]
    fn a_charge_is_sent_again_where_the_buyer_could_not_pay_it() {
        let open = details(PaymentStatus::Unknown);
        let told = Some(Instructions { url: Some("https://pay.invalid/".to_owned()), text: None });
        let instructed = PaymentDetails { instructions: told, ..open.clone() };
        let given_up = PaymentDetails { cancelled: Some("late".to_owned()), ..open.clone() };
        let watched = PaymentDetails { still_open: true, ..details(PaymentStatus::Voided) };
        let again = |outcome, details| must_be_sent_again(&answer(outcome), details);
        assert!(again(ChargeOutcome::Absent, &open) && again(ChargeOutcome::Pending, &open));
        assert!(again(ChargeOutcome::Absent, &instructed));
        assert!(!again(ChargeOutcome::Pending, &instructed));
        for outcome in [ChargeOutcome::Captured, ChargeOutcome::Unknown] {
            assert!(!again(outcome, &open));
        }
        for unwanted in [&given_up, &watched] {
            assert!(!again(ChargeOutcome::Absent, unwanted));
        }
    }

    #[test]
    fn a_refund_that_failed_is_tried_again_and_a_refused_one_is_somebodys_to_see() {
        let of = |answer| refunded(&wanted_back(), whole(), answer, AT);
        let failed = of(RefundAnswer::Failed("refund_failed".to_owned())).unwrap();
        let [(_, PaymentCommand::RecordRefundFailed { next_attempt_at, .. })] = &failed.reports[..]
        else {
            panic!("it failed")
        };
        assert_eq!(*next_attempt_at, Some(AT.plus(REFUND_AGAIN_AFTER)));
        assert!(failed.letter.is_none());
        let refused = of(RefundAnswer::Refused("not_refundable".to_owned())).unwrap();
        assert_eq!(refused.letter.map(|letter| letter.kind), Some(FailureKind::Permanent));
        assert_eq!(refused.reports.len(), 1);
        for answer in [RefundAnswer::Pending, RefundAnswer::Unclear] {
            let asked_again = of(answer).err().map(|failure| failure.kind);
            assert_eq!(asked_again, Some(FailureKind::Transient));
        }
    }

    #[test]
    fn what_nobody_can_say_of_a_refund_is_somebodys_to_see_after_a_day() {
        let of = |answer, now| refunded(&wanted_back(), whole(), answer, now);
        let day = AT.plus(UNCLEAR_FOR);
        assert!(of(RefundAnswer::Unclear, AT.plus(UNCLEAR_FOR / 2)).is_err());
        assert!(of(RefundAnswer::Pending, day).is_err(), "it is under way");
        let given_up = of(RefundAnswer::Unclear, day).unwrap();
        let letter = given_up.letter.unwrap();
        assert_eq!(letter.kind, FailureKind::Permanent);
        assert!(letter.message.contains(REFUND_UNCLEAR), "{letter}");
        let [(_, PaymentCommand::RecordRefundFailed { next_attempt_at, .. })] =
            &given_up.reports[..]
        else {
            panic!("it is given up")
        };
        assert_eq!(*next_attempt_at, None);
    }

    #[test]
    fn only_what_the_timer_asks_after_may_go_unanswered() {
        let momo =
            |details| PaymentDetails { method: PaymentMethod::new(PaymentMethod::MOMO), ..details };
        let asked = |details: &PaymentDetails| {
            is_made_again(&call(&inquiry(), details).expect("there is something to ask"), details)
        };
        assert!(asked(&momo(wanted_back())));
        assert!(!asked(&wanted_back()), "the built-in provider is not asked after");
        let refused = RefundDetails { failed: 1, refused: true, ..wanted(whole(), 1_500) };
        assert!(!asked(&momo(PaymentDetails { refunds: vec![refused], ..wanted_back() })));
        // One that was closed while the question was on its way.
        assert!(asked(&momo(details(PaymentStatus::Voided))));
    }

    #[test]
    fn a_refund_has_a_key_of_its_own_and_is_asked_for_until_it_is_made() {
        let event = PaymentEvent::RefundRequested(PaymentRefundRequested {
            order_id: order(),
            payment_id: PaymentId::of(order()),
            refund_id: whole(),
            amount: 1_500,
            currency: Currency::Vnd,
            provider_reference: "SBX-1".to_owned(),
            reason: "order_cancelled".to_owned(),
            requested_at: AT,
        });
        let asked = call(&event, &wanted_back());
        let Some(Call::Refund(_, refund)) = asked else { panic!("a refund") };
        assert_eq!(call(&inquiry(), &wanted_back()), Some(Call::Refund(whole(), refund.clone())));
        assert_eq!(refund.charge_key, PaymentId::of(order()).to_string());
        let failed = RefundDetails { failed: 1, ..wanted(whole(), 1_500) };
        let again = PaymentDetails { refunds: vec![failed], ..wanted_back() };
        let Some(Call::Refund(_, another)) = call(&event, &again) else { panic!("a refund") };
        assert_ne!(another.idempotency_key, refund.idempotency_key);
        assert_eq!(another.earlier_keys, std::slice::from_ref(&refund.idempotency_key));
        assert_eq!((refund.earlier_keys.len(), refund.others.len()), (0, 0));
        assert_eq!(refund.idempotency_key, whole().to_string());
        assert_eq!(refund.provider_reference, "SBX-1");
        assert_eq!(call(&event, &details(PaymentStatus::Refunded)), None);
    }

    #[test]
    fn of_several_refunds_each_is_asked_for_by_the_events_that_name_it() {
        let other = RefundId(Uuid::from_u128(77));
        let both = PaymentDetails {
            refunds: vec![wanted(whole(), 500), wanted(other, 300)],
            ..wanted_back()
        };
        let asked = |event: &PaymentEvent| match call(event, &both) {
            Some(Call::Refund(refund_id, refund)) => (refund_id, refund.amount.amount),
            asked => panic!("{asked:?}"),
        };
        let failed = RefundDetails { failed: 1, ..wanted(other, 300) };
        let beside =
            PaymentDetails { refunds: vec![wanted(whole(), 500), failed], ..wanted_back() };
        let Some(Call::Refund(_, refund)) = refund(&beside, &beside.refunds[0]) else {
            panic!("a refund")
        };
        let keys = [other.key(0).to_string(), other.key(1).to_string()];
        assert_eq!(refund.others, [OtherRefund { keys: keys.to_vec(), amount: 300, done: false }]);
        let about = |refund_id| {
            let PaymentEvent::InquiryRequested(inquiry) = inquiry() else { panic!("an inquiry") };
            PaymentEvent::InquiryRequested(PaymentInquiryRequested { refund_id, ..inquiry })
        };
        let turns = [asked(&about(Some(other))), asked(&about(Some(whole())))];
        assert_eq!(turns, [(other, 300), (whole(), 500)]);
        assert_eq!(call(&about(None), &both), None, "what is nobody's is not asked for");
        let report = refunded(&both, other, RefundAnswer::Failed("refund_failed".to_owned()), AT);
        let reports = report.unwrap().reports;
        let [(_, PaymentCommand::RecordRefundFailed { refund_id, .. })] = &reports[..] else {
            panic!("it failed")
        };
        assert_eq!(*refund_id, other);
    }

    /// A letter is retried with its event: what comes of it must not count as told because that nobody
    /// knew had been told.
    #[test]
    fn what_comes_of_an_unclear_refund_is_told_apart_from_its_being_unclear() {
        let purpose = |answer, now| {
            let reports = refunded(&wanted_back(), whole(), answer, now).unwrap().reports;
            reports[0].0.clone().into_owned()
        };
        let unclear = purpose(RefundAnswer::Unclear, AT.plus(UNCLEAR_FOR));
        let failed = purpose(RefundAnswer::Failed("refund_failed".to_owned()), AT);
        assert_ne!(unclear, failed);
    }

    #[test]
    fn every_answer_is_reported_or_asked_for_again() {
        let told = |outcome, voiding| {
            report(answer(outcome), voiding, AT)
                .map(|reports| reports.into_iter().map(|(purpose, _)| purpose).collect::<Vec<_>>())
                .map_err(|failure| failure.kind)
        };
        let declined = || ChargeOutcome::Declined("insufficient_funds".to_owned());
        assert_eq!(told(ChargeOutcome::Captured, false), Ok(vec!["captured".into()]));
        assert_eq!(told(ChargeOutcome::Captured, true), Ok(vec!["captured".into()]));
        assert_eq!(told(declined(), false), Ok(vec!["declined".into()]));
        assert_eq!(told(declined(), true), Ok(vec!["voided".into()]));
        assert_eq!(told(ChargeOutcome::Authorized, false), Ok(vec!["authorized".into()]));
        assert_eq!(told(ChargeOutcome::Authorized, true), Err(FailureKind::Transient));
        assert_eq!(told(ChargeOutcome::Pending, false), Ok(vec![]));
        assert_eq!(told(ChargeOutcome::Pending, true), Ok(vec!["given up".into()]));
        assert_eq!(told(ChargeOutcome::Absent, true), Ok(vec!["given up".into()]));
        for outcome in [ChargeOutcome::Unknown, ChargeOutcome::Absent] {
            assert_eq!(told(outcome, false), Err(FailureKind::Transient));
        }
        assert_eq!(told(ChargeOutcome::Unknown, true), Err(FailureKind::Transient));
        let nameless = ChargeAnswer { provider_reference: None, ..answer(ChargeOutcome::Captured) };
        assert_eq!(report(nameless, false, AT).unwrap_err().kind, FailureKind::Permanent);
    }
}
