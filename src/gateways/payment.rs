//! What a payment provider must be able to do.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::money::Money;
use crate::domain::payment::Instructions;

/// How long a provider may take before its answer counts as unknown, unless it says otherwise.
/// Below the time that a saga gives its payment step.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A charge that a buyer agreed to. The same one, sent again, is the same charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// Under this key the provider makes one charge, however often it is asked.
    pub idempotency_key: String,
    /// How much.
    pub amount: Money,
    /// How the buyer pays (`sandbox`, `test_decline` …).
    pub method: String,
    /// The reference under which the buyer sees it.
    pub reference: String,
    /// Whether the money is held before it is taken, where that can be chosen; none: as the provider
    /// is set up.
    pub holds_first: Option<bool>,
}

/// Money to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refund {
    /// Under this key the provider makes one refund, however often it is asked.
    pub idempotency_key: String,
    /// The key of the charge that it is of.
    pub charge_key: String,
    /// The provider's name for the charge.
    pub provider_reference: String,
    /// How much of it.
    pub amount: Money,
    /// How the buyer paid.
    pub method: String,
    /// The keys of its attempts before this one, which have come to nothing.
    pub earlier_keys: Vec<String>,
    /// What else goes back of the same charge.
    pub others: Vec<OtherRefund>,
}

/// Another refund of the same charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherRefund {
    /// The keys of all its attempts.
    pub keys: Vec<String>,
    /// How much, in minor units.
    pub amount: i64,
    /// Whether it is known to be made.
    pub done: bool,
}

/// What became of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChargeOutcome {
    /// The money is held, and comes when [`PaymentGateway::capture`] takes it.
    Authorized,
    /// The money is there.
    Captured,
    /// It will not come, for this reason (a stable code).
    Declined(String),
    /// The buyer has to do something first; the provider tells us then.
    Pending,
    /// The provider does not know, or did not say in time: ask again.
    Unknown,
    /// The provider has never heard of it: it may be sent again under the same key.
    Absent,
}

/// The provider's answer to a charge or to the question after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargeAnswer {
    /// What became of it.
    pub outcome: ChargeOutcome,
    /// The provider's name for it.
    pub provider_reference: Option<String>,
    /// How much was captured, as the provider says.
    pub amount: Money,
    /// What the buyer has to do, if anything.
    pub instructions: Option<Instructions>,
}

/// What became of a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundAnswer {
    /// The money is on its way back, under this name.
    Refunded {
        /// The provider's name for the refund.
        provider_reference: String,
    },
    /// It is under way: ask for the same one again.
    Pending,
    /// Nobody can say: ask for the same one again, and if it stays so, somebody must look.
    Unclear,
    /// It came to nothing, for this reason (a stable code). Another one, under another key, may be
    /// asked for in a while.
    Failed(String),
    /// The provider will not, for this reason (a stable code): somebody must look.
    Refused(String),
}

/// The provider gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// Network, 5xx, too many requests: the same call again may work.
    #[error("the payment provider did not answer: {0}")]
    Transient(String),
    /// Our credentials are wrong or the account is closed: nothing will work until somebody acts.
    #[error("the payment provider does not let us in: {0}")]
    Locked(String),
    /// It does not understand the request: a repeat would not help.
    #[error("the payment provider refused the request: {0}")]
    Invalid(String),
}

/// A payment provider. Every call is idempotent under its key, also across our restarts, and may
/// be abandoned by the caller at any moment: what came of it is then asked with
/// [`PaymentGateway::query`].
#[async_trait]
pub trait PaymentGateway: Send + Sync + 'static {
    /// The provider's name, as payments record it.
    fn provider(&self) -> &'static str;

    /// How long one of these calls may take before its answer counts as unknown.
    fn answer_within(&self) -> Duration {
        ANSWER_WITHIN
    }

    /// Takes the buyer's money.
    async fn charge(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError>;

    /// What became of a charge that was sent before.
    async fn query(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError>;

    /// Takes the money that is held for a charge, of a provider that holds it first. Anything but
    /// captured or declined means ask again.
    async fn capture(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.query(charge).await
    }

    /// Gives a charge up that may still be under way: captured when it was too late, declined when
    /// no money will come; money that is only held is let go. Pending: the provider cannot close it, so the buyer may pay still.
    /// Anything else means ask again.
    async fn void(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError>;

    /// Gives it back.
    async fn refund(&self, refund: &Refund) -> Result<RefundAnswer, GatewayError>;
}
