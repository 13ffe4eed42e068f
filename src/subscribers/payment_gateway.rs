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
use souk_actors::retry::Failure;
use souk_actors::runtime::{Handler, Runtime};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::{command_failed, decode_failed, gateway_failed};
use crate::domain::money::Money;
use crate::domain::payment::{
    Outcome, Payment, PaymentCommand, PaymentDetails, PaymentEvent, PaymentRefundRequested,
};
use crate::gateways::payment::{
    Charge, ChargeAnswer, ChargeOutcome, PaymentGateway, Refund, RefundAnswer,
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
        PaymentEvent::RefundRequested(event) => Some(Call::Refund(refund(event, details))),
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
        call: Call,
        now: impl Fn() -> Timestamp,
    ) -> Result<Vec<(&'static str, PaymentCommand)>, Failure> {
        match call {
            Call::Charge(charge) => {
                let limit = tokio::time::timeout(self.answer_within, self.gateway.charge(&charge));
                let unknown = |now| PaymentCommand::Settle { outcome: Outcome::Unknown, now };
                match limit.await {
                    Err(_) => Ok(vec![("unknown", unknown(now()))]),
                    Ok(Ok(ChargeAnswer { outcome: ChargeOutcome::Unknown, .. })) => {
                        Ok(vec![("unknown", unknown(now()))])
                    }
                    Ok(answer) => report(answer.map_err(gateway_failed)?, false, now()),
                }
            }
            Call::Query(charge) => {
                let answer = self.within(self.gateway.query(&charge)).await?;
                report(answer, false, now())
            }
            Call::Void(charge) => {
                let answer = self.within(self.gateway.void(&charge)).await?;
                report(answer, true, now())
            }
            Call::Refund(refund) => match self.within(self.gateway.refund(&refund)).await? {
                RefundAnswer::Refunded { provider_reference } => Ok(vec![(
                    "refunded",
                    PaymentCommand::RecordRefunded { provider_reference, now: now() },
                )]),
                RefundAnswer::Refused(reason) => Err(Failure::permanent(format!(
                    "the payment provider will not give the money back: {reason}"
                ))),
            },
        }
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, crate::gateways::payment::GatewayError>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.answer_within, call).await {
            Ok(answer) => answer.map_err(gateway_failed),
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
        let state = payments.read(id, |payment| payment.details.clone()).await;
        let details = state.map_err(|error| command_failed(&error))?.value;
        let Some(call) = details.and_then(|details| call(&payment, &details)) else {
            return Ok(());
        };
        let reports = self.carry_out(call, || runtime.world().now()).await?;
        for (purpose, command) in reports {
            let context = CommandContext::because_of(event, purpose, id);
            let sent = payments.send(id, command, context, |_| ()).await;
            sent.map_err(|error| command_failed(&error))?;
        }
        Ok(())
    }
}
