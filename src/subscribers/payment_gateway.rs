//! `payment-gateway`: carries out what payments ask of their provider, and reports back.
//!
//! | event | call | report |
//! | --- | --- | --- |
//! | `payment.initiated` | charge | captured, failed, instructions; unknown when it takes too long |
//! | `payment.timed_out` | query, until the provider knows | captured or failed |
//! | `payment.void_requested` | void | captured (the payment then wants it back) or voided |
//! | `payment.refund_requested` | refund | refunded |
//!
//! The payment's id is the key of the charge and the refund's id that of the refund, so that no
//! repeat costs the buyer anything. Events of one payment come in order.

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

use super::{command_failed, decode_failed, gateway_failed};
use crate::domain::money::Money;
use crate::domain::payment::{
    Outcome, Payment, PaymentCommand, PaymentDetails, PaymentEvent, PaymentRefundRequested,
    PaymentStatus,
};
use crate::gateways::payment::{
    Charge, ChargeAnswer, ChargeOutcome, GatewayError, PaymentGateway, Refund, RefundAnswer,
};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "payment-gateway";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "payment.initiated",
    "payment.timed_out",
    "payment.void_requested",
    "payment.refund_requested",
];
/// How long a provider may take before its answer counts as unknown. Below the time that a saga
/// gives its payment step.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The handler.
pub struct PaymentGatewayHandler {
    gateway: Arc<dyn PaymentGateway>,
    answer_within: Duration,
}

/// What a payment asks of its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Charge(Charge),
    Query(Charge),
    Void(Charge),
    Refund(Refund),
}

/// What the event asks for, as the payment stands by now. A settled payment asks for nothing more.
fn call(event: &PaymentEvent, details: &PaymentDetails) -> Option<Call> {
    let charge = || Charge {
        idempotency_key: details.payment_id.to_string(),
        amount: details.money,
        method: details.method.to_string(),
        reference: details.reference.clone(),
    };
    match event {
        PaymentEvent::Initiated(_) if details.in_flight() => Some(Call::Charge(charge())),
        PaymentEvent::TimedOut(_) if details.in_flight() => Some(Call::Query(charge())),
        PaymentEvent::VoidRequested(_) if details.in_flight() => Some(Call::Void(charge())),
        PaymentEvent::RefundRequested(event) if details.status != PaymentStatus::Refunded => {
            Some(Call::Refund(refund(event, details)))
        }
        _ => None,
    }
}

fn refund(event: &PaymentRefundRequested, details: &PaymentDetails) -> Refund {
    Refund {
        idempotency_key: event.refund_id.to_string(),
        provider_reference: event.provider_reference.clone(),
        amount: Money::new(event.amount, event.currency),
        method: details.method.to_string(),
    }
}

/// What to tell the payment, each with the purpose that makes its command id: another answer is
/// another command. `Err`: the provider must be asked again.
fn report(
    answer: ChargeAnswer,
    voiding: bool,
    now: Timestamp,
) -> Result<Vec<(&'static str, PaymentCommand)>, Failure> {
    let settle = |outcome| PaymentCommand::Settle { outcome, now };
    Ok(match answer.outcome {
        ChargeOutcome::Captured => {
            let provider_reference = answer.provider_reference.ok_or_else(|| {
                Failure::permanent("the payment provider captured without a reference")
            })?;
            let outcome = Outcome::Captured { provider_reference, money: answer.amount };
            vec![("captured", settle(outcome))]
        }
        ChargeOutcome::Declined(_) if voiding => {
            vec![("voided", PaymentCommand::RecordVoided { now })]
        }
        ChargeOutcome::Declined(reason) => vec![("declined", settle(Outcome::Declined { reason }))],
        ChargeOutcome::Pending if voiding => return Err(ask_again()),
        ChargeOutcome::Pending => answer
            .instructions
            .map(|instructions| {
                ("instructions", PaymentCommand::RecordInstructions { instructions, now })
            })
            .into_iter()
            .collect(),
        ChargeOutcome::Unknown => return Err(ask_again()),
    })
}

fn ask_again() -> Failure {
    Failure::transient("the payment provider does not know yet what became of the charge")
}

impl PaymentGatewayHandler {
    /// Carries payments out through this provider.
    pub fn new(gateway: Arc<dyn PaymentGateway>) -> Self {
        Self { gateway, answer_within: ANSWER_WITHIN }
    }

    /// Makes the call and gives what to report.
    async fn carry_out(
        &self,
        runtime: &Runtime,
        call: Call,
    ) -> Result<Vec<(&'static str, PaymentCommand)>, Failure> {
        let now = || runtime.world().now();
        match call {
            Call::Charge(charge) => {
                let limit = tokio::time::timeout(self.answer_within, self.charge(runtime, &charge));
                let unknown = |now| PaymentCommand::Settle { outcome: Outcome::Unknown, now };
                match limit.await {
                    Err(_) => Ok(vec![("unknown", unknown(now()))]),
                    Ok(Ok(ChargeAnswer { outcome: ChargeOutcome::Unknown, .. })) => {
                        Ok(vec![("unknown", unknown(now()))])
                    }
                    Ok(answer) => report(answer?, false, now()),
                }
            }
            Call::Query(charge) => {
                let answer = self.within(runtime, "query", self.gateway.query(&charge)).await?;
                report(answer, false, now())
            }
            Call::Void(charge) => {
                let answer = self.within(runtime, "void", self.gateway.void(&charge)).await?;
                report(answer, true, now())
            }
            Call::Refund(refund) => {
                let answer = self.within(runtime, "refund", self.gateway.refund(&refund)).await?;
                let failed = points::try_reach("gateway.after_refund").await;
                failed.map_err(|failed| Failure::transient(failed.to_string()))?;
                match answer {
                    RefundAnswer::Refunded { provider_reference } => Ok(vec![(
                        "refunded",
                        PaymentCommand::RecordRefunded { provider_reference, now: now() },
                    )]),
                    RefundAnswer::Refused(reason) => Err(Failure::permanent(format!(
                        "the payment provider will not give the money back: {reason}"
                    ))),
                }
            }
        }
    }

    /// A charge whose answer nobody waits for may still happen: the caller decides what a time
    /// limit means.
    async fn charge(&self, runtime: &Runtime, charge: &Charge) -> Result<ChargeAnswer, Failure> {
        runtime.faults().before(self.gateway.provider(), &["charge", &charge.method]).await?;
        let answer = self.gateway.charge(charge).await.map_err(gateway_failed)?;
        let failed = points::try_reach("gateway.after_charge").await;
        failed.map_err(|failed| Failure::transient(failed.to_string()))?;
        Ok(answer)
    }

    async fn within<T>(
        &self,
        runtime: &Runtime,
        operation: &'static str,
        call: impl Future<Output = Result<T, GatewayError>>,
    ) -> Result<T, Failure> {
        let call = async {
            runtime.faults().before(self.gateway.provider(), &[operation]).await?;
            call.await.map_err(gateway_failed)
        };
        match tokio::time::timeout(self.answer_within, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::transient("the payment provider did not answer in time")),
        }
    }
}

#[async_trait]
impl Handler for PaymentGatewayHandler {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let payment: PaymentEvent = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let payments = runtime.aggregate::<Payment>();
        let id: Uuid = event.aggregate_id;
        let state = payments.read_inside(id, |payment| payment.details.clone()).await;
        let details = state.map_err(|error| command_failed(&error))?.value;
        let Some(call) = details.and_then(|details| call(&payment, &details)) else {
            return Ok(());
        };
        let reports = self.carry_out(runtime, call).await?;
        for (purpose, command) in reports {
            let context = CommandContext::because_of(event, purpose, id);
            let sent = payments.send(id, command, context, |_| ()).await;
            sent.map_err(|error| command_failed(&error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::retry::FailureKind;

    use super::*;
    use crate::domain::ids::{OrderId, PaymentId, RefundId, UserId};
    use crate::domain::money::Currency;
    use crate::domain::order::PaymentMethod;
    use crate::domain::payment::{PaymentInitiated, PaymentTimedOut, PaymentVoidRequested};

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
            instructions: None,
            provider_reference: None,
            failure: None,
            cancelled: None,
            refund_requested: false,
            misfit_reference: None,
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
        for status in [PaymentStatus::Captured, PaymentStatus::Failed, PaymentStatus::Voided] {
            for event in events() {
                assert_eq!(call(&event, &details(status)), None, "{event:?} of {status:?}");
            }
        }
    }

    #[test]
    fn a_refund_has_a_key_of_its_own_and_is_asked_for_until_it_is_made() {
        let event = PaymentEvent::RefundRequested(PaymentRefundRequested {
            order_id: order(),
            payment_id: PaymentId::of(order()),
            refund_id: RefundId::of(PaymentId::of(order())),
            amount: 1_500,
            currency: Currency::Vnd,
            provider_reference: "SBX-1".to_owned(),
            reason: "order_cancelled".to_owned(),
            requested_at: AT,
        });
        let asked = call(&event, &details(PaymentStatus::Captured));
        let Some(Call::Refund(refund)) = asked else { panic!("a refund") };
        assert_eq!(refund.idempotency_key, RefundId::of(PaymentId::of(order())).to_string());
        assert_eq!(refund.provider_reference, "SBX-1");
        assert_eq!(call(&event, &details(PaymentStatus::Refunded)), None);
    }

    #[test]
    fn every_answer_is_reported_or_asked_for_again() {
        let told = |outcome, voiding| {
            report(answer(outcome), voiding, AT)
                .map(|reports| reports.into_iter().map(|(purpose, _)| purpose).collect::<Vec<_>>())
                .map_err(|failure| failure.kind)
        };
        let declined = || ChargeOutcome::Declined("insufficient_funds".to_owned());
        assert_eq!(told(ChargeOutcome::Captured, false), Ok(vec!["captured"]));
        assert_eq!(told(ChargeOutcome::Captured, true), Ok(vec!["captured"]));
        assert_eq!(told(declined(), false), Ok(vec!["declined"]));
        assert_eq!(told(declined(), true), Ok(vec!["voided"]));
        assert_eq!(told(ChargeOutcome::Pending, false), Ok(vec![]));
        assert_eq!(told(ChargeOutcome::Pending, true), Err(FailureKind::Transient));
        assert_eq!(told(ChargeOutcome::Unknown, false), Err(FailureKind::Transient));
        let nameless = ChargeAnswer { provider_reference: None, ..answer(ChargeOutcome::Captured) };
        assert_eq!(report(nameless, false, AT).unwrap_err().kind, FailureKind::Permanent);
    }
}
