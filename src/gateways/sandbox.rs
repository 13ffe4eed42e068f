//! The payment provider that is built in: it settles at once, with nothing else installed.
//!
//! It keeps no state that matters: every answer follows from the key and the method, so that it is
//! idempotent across restarts too. Methods whose names begin with `test_` behave badly on purpose:
//!
//! | method | a charge | a later query | a void |
//! | --- | --- | --- | --- |
//! | `sandbox` (and any other) | captured | captured | too late |
//! | `test_decline` | declined: `insufficient_funds` | the same | the same |
//! | `test_timeout` | no answer within anybody's patience | captured | too late |
//! | `test_late` | captured, but only after [`LATE_BY`] | captured | too late |
//! | `test_authorize` | held; a capture takes it | held | too late |
//! | `test_hold_lost` | held; a capture is declined: `hold_expired` | held | voided |
//! | `test_pending` | waits for the buyer, and for ever | the same | voided |

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use souk_actors::id::derived;

use super::Recent;
use super::payment::{
    Charge, ChargeAnswer, ChargeOutcome, GatewayError, PaymentGateway, Refund, RefundAnswer,
};
use crate::domain::money::Money;
use crate::domain::payment::Instructions;

/// The name of the provider and of its plain method.
pub const SANDBOX: &str = "sandbox";
/// The reason of a `test_decline`.
pub const INSUFFICIENT_FUNDS: &str = "insufficient_funds";
/// The reason of a charge that was given up.
pub const VOIDED: &str = "voided";
/// The reason of a `test_hold_lost`.
pub const HOLD_EXPIRED: &str = "hold_expired";
/// How long `test_late` takes: longer than people like to wait, shorter than the caller's limit.
pub const LATE_BY: Duration = Duration::from_secs(2);
/// Methods whose money is held first.
const AUTHORIZE: &str = "test_authorize";
const HOLD_LOST: &str = "test_hold_lost";
/// How long `test_timeout` takes: longer than any caller's limit.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A charge or a refund that the sandbox was asked for, once per key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SandboxCall {
    /// `charge`, `capture` or `refund`.
    pub operation: &'static str,
    /// Under which key.
    pub idempotency_key: String,
    /// Of which charge (a refund only) or with which reference.
    pub reference: String,
    /// How.
    pub method: String,
    /// How much.
    pub amount: Money,
}

/// The built-in provider.
#[derive(Default)]
pub struct Sandbox {
    /// For whoever wants to see in development that nothing was charged twice.
    calls: Recent<SandboxCall>,
}

impl Sandbox {
    /// What it was asked for since the start, the newest first; a repeat under the same key is not
    /// listed again.
    pub fn calls(&self) -> Vec<SandboxCall> {
        self.calls.all()
    }

    fn remember(&self, call: SandboxCall) {
        #[cfg(feature = "chaos")]
        record::write(&call);
        let (operation, key) = (call.operation, call.idempotency_key.clone());
        self.calls.add(call, |old| old.operation == operation && old.idempotency_key == key);
    }
}

/// What a provider outside the service would know, whatever became of the service: every call, one
/// a line, in a file of its own.
#[cfg(feature = "chaos")]
mod record {
    use std::fs::File;
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::OnceLock;

    use super::SandboxCall;

    static RECORD: OnceLock<File> = OnceLock::new();

    pub(super) fn open(path: &Path) -> std::io::Result<()> {
        let file = File::options().create(true).append(true).open(path)?;
        RECORD.get_or_init(|| file);
        Ok(())
    }

    pub(super) fn write(call: &SandboxCall) {
        let Some(mut file) = RECORD.get() else { return };
        if let Ok(line) = serde_json::to_string(call)
            && let Err(error) = file.write_all(format!("{line}\n").as_bytes())
        {
            tracing::error!(%error, "the sandbox cannot keep its record");
        }
    }
}

/// From now on the sandbox keeps its own record of every call in this file.
#[cfg(feature = "chaos")]
pub fn keep_record(path: &std::path::Path) -> std::io::Result<()> {
    record::open(path)
}

#[async_trait]
impl PaymentGateway for Sandbox {
    fn provider(&self) -> &'static str {
        SANDBOX
    }

    async fn charge(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.remember(SandboxCall {
            operation: "charge",
            idempotency_key: charge.idempotency_key.clone(),
            reference: charge.reference.clone(),
            method: charge.method.clone(),
            amount: charge.amount,
        });
        match charge.method.as_str() {
            "test_timeout" => tokio::time::sleep(NEVER).await,
            "test_late" => tokio::time::sleep(LATE_BY).await,
            _ => {}
        }
        Ok(answer(charge))
    }

    async fn query(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        Ok(answer(charge))
    }

    async fn capture(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.remember(SandboxCall {
            operation: "capture",
            idempotency_key: charge.idempotency_key.clone(),
            reference: charge.reference.clone(),
            method: charge.method.clone(),
            amount: charge.amount,
        });
        let outcome = match charge.method.as_str() {
            HOLD_LOST => ChargeOutcome::Declined(HOLD_EXPIRED.to_owned()),
            _ => ChargeOutcome::Captured,
        };
        Ok(ChargeAnswer { outcome, ..answer(charge) })
    }

    /// It cannot remember whether it has taken what was held, so that counts as taken.
    async fn void(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        let answer = answer(charge);
        let outcome = match answer.outcome {
            ChargeOutcome::Authorized if charge.method == AUTHORIZE => ChargeOutcome::Captured,
            ChargeOutcome::Pending | ChargeOutcome::Authorized => {
                ChargeOutcome::Declined(VOIDED.to_owned())
            }
            outcome => outcome,
        };
        Ok(ChargeAnswer { outcome, instructions: None, ..answer })
    }

    async fn refund(&self, refund: &Refund) -> Result<RefundAnswer, GatewayError> {
        self.remember(SandboxCall {
            operation: "refund",
            idempotency_key: refund.idempotency_key.clone(),
            reference: refund.provider_reference.clone(),
            method: refund.method.clone(),
            amount: refund.amount,
        });
        let id = derived("sandbox refund", &[refund.idempotency_key.as_bytes()]);
        Ok(RefundAnswer::Refunded { provider_reference: format!("SBXR-{}", id.simple()) })
    }
}

/// What the sandbox thinks of a charge, whenever it is asked.
fn answer(charge: &Charge) -> ChargeAnswer {
    let outcome = match charge.method.as_str() {
        "test_decline" => ChargeOutcome::Declined(INSUFFICIENT_FUNDS.to_owned()),
        "test_pending" => ChargeOutcome::Pending,
        AUTHORIZE | HOLD_LOST => ChargeOutcome::Authorized,
        _ => ChargeOutcome::Captured,
    };
    let id = derived("sandbox charge", &[charge.idempotency_key.as_bytes()]);
    let instructions = (outcome == ChargeOutcome::Pending).then(|| Instructions {
        url: None,
        text: Some(format!("Confirm the payment {} in the sandbox.", charge.reference)),
    });
    ChargeAnswer {
        outcome,
        provider_reference: Some(format!("SBX-{}", id.simple())),
        amount: charge.amount,
        instructions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::money::Currency;

    fn charge(method: &str) -> Charge {
        Charge {
            idempotency_key: "payment-1".to_owned(),
            amount: Money::new(1_500, Currency::Vnd),
            method: method.to_owned(),
            reference: "PAY-1".to_owned(),
            holds_first: None,
        }
    }

    #[tokio::test]
    async fn the_same_key_gets_the_same_answer_from_another_process() {
        let first = Sandbox::default();
        for method in ["sandbox", "test_decline", "test_pending", "card"] {
            let answer = first.charge(&charge(method)).await.unwrap();
            assert_eq!(Sandbox::default().charge(&charge(method)).await.unwrap(), answer);
            assert_eq!(Sandbox::default().query(&charge(method)).await.unwrap(), answer);
        }
        let refund = Refund {
            idempotency_key: "payment-1:refund".to_owned(),
            charge_key: "payment-1".to_owned(),
            provider_reference: "SBX-1".to_owned(),
            amount: Money::new(1_500, Currency::Vnd),
            method: "sandbox".to_owned(),
            earlier_keys: Vec::new(),
            others: Vec::new(),
        };
        let answer = first.refund(&refund).await.unwrap();
        assert_eq!(Sandbox::default().refund(&refund).await.unwrap(), answer);
        first.refund(&refund).await.unwrap();
        let refunds = first.calls().into_iter().filter(|call| call.operation == "refund");
        assert_eq!(refunds.count(), 1);
    }

    #[tokio::test]
    async fn test_methods_behave_badly_as_documented() {
        let sandbox = Sandbox::default();
        let outcome = async |method| sandbox.query(&charge(method)).await.unwrap().outcome;
        assert_eq!(
            outcome("test_decline").await,
            ChargeOutcome::Declined("insufficient_funds".into())
        );
        assert_eq!(outcome("test_timeout").await, ChargeOutcome::Captured);
        assert_eq!(outcome("test_pending").await, ChargeOutcome::Pending);
        let asked = charge("test_timeout");
        let within = tokio::time::timeout(Duration::from_millis(1), sandbox.charge(&asked));
        assert!(within.await.is_err());
        let key = |call: &SandboxCall| call.idempotency_key.clone();
        assert_eq!(sandbox.calls().first().map(key), Some("payment-1".to_owned()));
    }
}
