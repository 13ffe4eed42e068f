//! MoMo, the wallet: its API v2 for one-time payments.
//!
//! A payment has one order at MoMo, whose id and whose request's id are the payment's own: however
//! often it is opened, MoMo opens it once. The buyer pays on a page of MoMo's, and MoMo tells us
//! ([`notice`]); when it does not, it is asked. What MoMo does not say for sure is neither paid nor
//! failed.
//!
//! MoMo cannot be told that an open payment is not wanted any more. So whoever gives one up hears
//! that it is still open ([`ChargeOutcome::Pending`]), and must be ready for the money to come.

pub mod client;
pub mod codes;
pub mod notice;
mod refunds;
pub mod signature;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::id::derived;
use souk_actors::world::World;

use super::payment::{
    Charge, ChargeAnswer, ChargeOutcome, GatewayError, PaymentGateway, Refund, RefundAnswer,
};
use crate::config::Credential;
use crate::domain::money::{Currency, Money};
use crate::domain::payment::Instructions;
use client::{Client, Create, RefundOrder, Reply, Second};
use codes::{Meaning, meaning};

/// The name of the provider and of its method.
pub const MOMO: &str = "momo";
/// What a wallet may pay at once, in dong, and the least that MoMo gives back.
pub const AMOUNT_MIN: i64 = 1_000;
/// See [`AMOUNT_MIN`].
pub const AMOUNT_MAX: i64 = 50_000_000;

/// In which language MoMo speaks to buyers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    /// Vietnamese.
    #[default]
    Vietnamese,
    /// English.
    English,
}

impl Language {
    /// As MoMo writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vietnamese => "vi",
            Self::English => "en",
        }
    }

    fn order_info(self, reference: &str) -> String {
        match self {
            Self::Vietnamese => format!("Thanh toán {reference}"),
            Self::English => format!("Payment {reference}"),
        }
    }

    fn instructions(self, reference: &str) -> String {
        match self {
            Self::Vietnamese => {
                format!("Mở trang này và xác nhận thanh toán {reference} với MoMo.")
            }
            Self::English => {
                format!("Open this page and confirm the payment {reference} with MoMo.")
            }
        }
    }
}

/// Who we are at MoMo, and where it is. The address and the keys belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `MOMO_ENDPOINT`: where its API is, without a path.
    pub endpoint: String,
    /// `MOMO_PARTNER_CODE`.
    pub partner_code: String,
    /// `MOMO_ACCESS_KEY`.
    pub access_key: Credential,
    /// `MOMO_SECRET_KEY`.
    pub secret_key: Credential,
    /// `MOMO_IPN_URL`: where MoMo tells us, as it reaches us.
    pub ipn_url: String,
    /// `MOMO_REDIRECT_URL`: the page that the buyer comes back to; may be empty.
    pub redirect_url: String,
    /// `MOMO_LANGUAGE`.
    pub language: Language,
    /// `MOMO_AUTO_CAPTURE`: whether MoMo takes the money as soon as the buyer agrees; otherwise it holds
    /// it until it is told to. For payments that begin from now on: each remembers how it was begun.
    pub auto_capture: bool,
    /// `MOMO_TIMEOUT`: how long a call may take.
    pub timeout: Duration,
}

/// MoMo as a payment provider.
pub struct MoMo {
    client: Client,
    world: Arc<dyn World>,
}

impl MoMo {
    /// MoMo with these settings.
    pub fn new(settings: Settings, world: Arc<dyn World>) -> Result<Self, url::ParseError> {
        Ok(Self { client: Client::new(settings)?, world })
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        self.client.settings()
    }

    fn new_request_id(&self) -> String {
        self.world.new_id().to_string()
    }

    /// Whether the money of a charge is held before it is taken.
    fn holds_first(&self, charge: &Charge) -> bool {
        charge.holds_first.unwrap_or(!self.settings().auto_capture)
    }

    /// Asks after a payment; what is answered about something else counts as no answer.
    async fn ask(&self, order_id: &str) -> Result<Reply, GatewayError> {
        let request_id = self.new_request_id();
        let reply = self.client.query(order_id, &request_id).await?;
        self.about(reply, order_id, &request_id)
    }

    /// The reply, if it answers what was asked.
    fn about(&self, reply: Reply, order_id: &str, request_id: &str) -> Result<Reply, GatewayError> {
        let expected = [
            ("partnerCode", self.settings().partner_code.as_str()),
            ("orderId", order_id),
            ("requestId", request_id),
        ];
        // A refusal may be too short to say what it is about.
        let is_refusal = !matches!(meaning(reply.code()), Meaning::Success | Meaning::Authorised);
        let fits = expected.iter().all(|(name, value)| {
            let found = reply.text(name);
            found == *value || (is_refusal && found.is_empty())
        });
        if fits {
            return Ok(reply);
        }
        tracing::error!(order_id, "MoMo answered about something else than was asked");
        Err(GatewayError::Transient("it answered about something else".to_owned()))
    }

    /// What became of a payment, from the answer to a question after it.
    fn outcome(&self, charge: &Charge, reply: &Reply) -> Result<ChargeAnswer, GatewayError> {
        let answer = |outcome| ChargeAnswer {
            outcome,
            provider_reference: None,
            amount: charge.amount,
            instructions: None,
        };
        Ok(match meaning(reply.code()) {
            said @ (Meaning::Success | Meaning::Authorised) => {
                let known = (reply.integer("transId"), reply.integer("amount"));
                let (Some(trans_id), Some(amount)) = known else {
                    tracing::error!("MoMo says that money came, but not which or how much");
                    return Ok(answer(ChargeOutcome::Unknown));
                };
                let is_held = said == Meaning::Authorised && self.holds_first(charge);
                ChargeAnswer {
                    outcome: match is_held {
                        true => ChargeOutcome::Authorized,
                        false => ChargeOutcome::Captured,
                    },
                    provider_reference: Some(trans_id.to_string()),
                    amount: Money::new(amount, Currency::Vnd),
                    instructions: None,
                }
            }
            Meaning::Failed(reason) => ChargeAnswer {
                provider_reference: reply.integer("transId").map(|number| number.to_string()),
                ..answer(ChargeOutcome::Declined(reason.to_owned()))
            },
            Meaning::Waiting => answer(ChargeOutcome::Pending),
            Meaning::Absent => answer(ChargeOutcome::Absent),
            Meaning::Locked => return Err(locked(reply)),
            other => {
                unclear(reply, other);
                answer(ChargeOutcome::Unknown)
            }
        })
    }

    /// The second step of a payment whose money is held, under a key that follows from the payment and
    /// the step. Whether it came in time is known by asking, as is whether it was made before.
    async fn second(&self, charge: &Charge, step: Second) -> Result<ChargeAnswer, GatewayError> {
        let key = &charge.idempotency_key;
        let reply = self.ask(key).await?;
        // Of a payment that was begun to be taken at once the money has come: it is not held.
        let has_come = step == Second::Cancel && charge.holds_first == Some(false);
        if has_come || meaning(reply.code()) != Meaning::Authorised {
            return self.outcome(charge, &reply);
        }
        let parts = [key.as_bytes(), step.as_str().as_bytes()];
        let request_id = derived("momo second step", &parts).to_string();
        self.client.confirm(step, key, &request_id, charge.amount.amount).await?;
        let reply = self.ask(key).await?;
        match meaning(reply.code()) {
            Meaning::Authorised => Ok(ChargeAnswer {
                outcome: ChargeOutcome::Unknown,
                provider_reference: None,
                amount: charge.amount,
                instructions: None,
            }),
            _ => self.outcome(charge, &reply),
        }
    }

    /// What became of opening a payment.
    fn opened(&self, charge: &Charge, reply: &Reply) -> Result<Opened, GatewayError> {
        Ok(match meaning(reply.code()) {
            Meaning::Success => {
                let url = reply.text("payUrl");
                let is_ours = reply.integer("amount") == Some(charge.amount.amount);
                if url.is_empty() || !is_ours {
                    tracing::error!("MoMo opened a payment that is not what was asked for");
                    return Ok(Opened::Ask);
                }
                let text = self.settings().language.instructions(&charge.reference);
                Opened::Open(Instructions { url: Some(url.to_owned()), text: Some(text) })
            }
            Meaning::Failed(reason) => Opened::Refused(reason),
            Meaning::Invalid(reason) => {
                tracing::error!(result_code = reply.code(), reason, "MoMo takes no such payment");
                Opened::Refused(reason)
            }
            Meaning::Locked => return Err(locked(reply)),
            other => {
                unclear(reply, other);
                Opened::Ask
            }
        })
    }
}

/// What became of opening a payment.
enum Opened {
    /// The buyer can pay so.
    Open(Instructions),
    /// There is none, and will be none.
    Refused(&'static str),
    /// It must be asked after.
    Ask,
}

fn locked(reply: &Reply) -> GatewayError {
    GatewayError::Locked(format!("result code {}: look at the settings MOMO_*", reply.code()))
}

/// A code that decides nothing is worth a look, unless it is one of the usual ones.
fn unclear(reply: &Reply, meaning: Meaning) {
    let result_code = reply.code();
    if matches!(result_code, 10 | 43) || meaning == Meaning::Used {
        tracing::info!(result_code, "MoMo cannot say yet what becomes of a payment");
    } else {
        tracing::error!(result_code, "MoMo gave a code that says neither paid nor failed");
    }
}

/// Why MoMo need not be asked at all.
fn unpayable(amount: Money) -> Option<&'static str> {
    if amount.currency != Currency::Vnd {
        Some("currency_not_supported")
    } else if !(AMOUNT_MIN..=AMOUNT_MAX).contains(&amount.amount) {
        Some("amount_out_of_range")
    } else {
        None
    }
}

#[async_trait]
impl PaymentGateway for MoMo {
    fn provider(&self) -> &'static str {
        MOMO
    }

    /// Every call has its own limit, a refund takes two calls, and a second step three.
    fn answer_within(&self) -> Duration {
        self.settings().timeout.saturating_mul(3).saturating_add(Duration::from_secs(1))
    }

    async fn charge(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        let answer = |outcome, instructions| ChargeAnswer {
            outcome,
            provider_reference: None,
            amount: charge.amount,
            instructions,
        };
        if let Some(reason) = unpayable(charge.amount) {
            return Ok(answer(ChargeOutcome::Declined(reason.to_owned()), None));
        }
        let key = charge.idempotency_key.as_str();
        let create = Create {
            order_id: key,
            request_id: key,
            amount: charge.amount.amount,
            order_info: &self.settings().language.order_info(&charge.reference),
            auto_capture: !self.holds_first(charge),
        };
        let reply = self.client.create(&create).await?;
        let reply = self.about(reply, key, key)?;
        match self.opened(charge, &reply)? {
            Opened::Open(instructions) => Ok(answer(ChargeOutcome::Pending, Some(instructions))),
            Opened::Refused(reason) => Ok(answer(ChargeOutcome::Declined(reason.to_owned()), None)),
            Opened::Ask => Ok(answer(ChargeOutcome::Unknown, None)),
        }
    }

    async fn query(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        let reply = self.ask(&charge.idempotency_key).await?;
        self.outcome(charge, &reply)
    }

    async fn capture(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.second(charge, Second::Capture).await
    }

    /// What is held is let go rather than taken and given back.
    async fn void(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.second(charge, Second::Cancel).await
    }

    async fn refund(&self, refund: &Refund) -> Result<RefundAnswer, GatewayError> {
        let Ok(trans_id) = refund.provider_reference.parse() else {
            return Err(GatewayError::Invalid("the payment has no number of MoMo's".to_owned()));
        };
        // What was asked for before, by whatever means, is not asked for again.
        let payment = self.ask(&refund.charge_key).await?;
        match meaning(payment.code()) {
            Meaning::Success | Meaning::Authorised => {}
            Meaning::Locked => return Err(locked(&payment)),
            other => {
                unclear(&payment, other);
                return Ok(RefundAnswer::Unclear);
            }
        }
        if let Some(answer) = refunds::listed(refund, &payment) {
            return Ok(answer);
        }
        if refund.amount.amount < AMOUNT_MIN {
            return Ok(RefundAnswer::Refused("amount_below_minimum".to_owned()));
        }
        let key = refund.idempotency_key.as_str();
        let order =
            RefundOrder { order_id: key, request_id: key, amount: refund.amount.amount, trans_id };
        let reply = self.client.refund(&order).await?;
        let reply = self.about(reply, key, key)?;
        Ok(match meaning(reply.code()) {
            Meaning::Success => refunds::made(refund, &reply),
            Meaning::Waiting => RefundAnswer::Pending,
            Meaning::RefundFailed => RefundAnswer::Failed("refund_failed".to_owned()),
            Meaning::RefundRejected => RefundAnswer::Refused("refund_rejected".to_owned()),
            Meaning::NotRefundable => RefundAnswer::Refused("not_refundable".to_owned()),
            Meaning::Invalid(reason) => RefundAnswer::Refused(reason.to_owned()),
            Meaning::Locked => return Err(locked(&reply)),
            other => {
                unclear(&reply, other);
                RefundAnswer::Unclear
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use souk_actors::world::SystemWorld;

    use super::*;

    /// The settings that go with the first set of keys that MoMo prints in its samples.
    pub(super) fn settings() -> Settings {
        Settings {
            endpoint: "https://momo.invalid".to_owned(),
            partner_code: "MOMO".to_owned(),
            access_key: Credential::new("F8BBA842ECF85"),
            secret_key: Credential::new("K951B6PE1waDMi640xX08PD3vg6EkVlz"),
            ipn_url: "https://shop.example/api/v1/payments/webhook/momo".to_owned(),
            redirect_url: String::new(),
            language: Language::default(),
            auto_capture: true,
            timeout: Duration::from_secs(30),
        }
    }

    fn momo() -> MoMo {
        MoMo::new(settings(), Arc::new(SystemWorld::new())).unwrap()
    }

    fn charge() -> Charge {
        Charge {
            idempotency_key: "payment-1".to_owned(),
            amount: Money::new(50_000, Currency::Vnd),
            method: MOMO.to_owned(),
            reference: "PAY-1".to_owned(),
            holds_first: None,
        }
    }

    pub(super) fn refund() -> Refund {
        Refund {
            idempotency_key: "refund-1".to_owned(),
            charge_key: "payment-1".to_owned(),
            provider_reference: "4088878653".to_owned(),
            amount: Money::new(50_000, Currency::Vnd),
            method: MOMO.to_owned(),
            earlier_keys: Vec::new(),
            others: Vec::new(),
        }
    }

    pub(super) fn reply(value: &Value) -> Reply {
        Reply::read(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn only_a_clear_answer_is_paid_or_failed() {
        let outcome = |value: Value| momo().outcome(&charge(), &reply(&value));
        let paid = json!({ "resultCode": 0, "transId": 7, "amount": 49_000 });
        let answer = outcome(paid).unwrap();
        assert_eq!(answer.outcome, ChargeOutcome::Captured);
        assert_eq!(answer.provider_reference.as_deref(), Some("7"));
        assert_eq!(answer.amount.amount, 49_000, "what was paid, not what was asked for");
        let said = |code: i64| outcome(json!({ "resultCode": code })).unwrap().outcome;
        assert_eq!(said(0), ChargeOutcome::Unknown, "paid, but nobody says what");
        assert_eq!(said(1001), ChargeOutcome::Declined("insufficient_funds".to_owned()));
        for code in [1000, 7000, 7002] {
            assert_eq!(said(code), ChargeOutcome::Pending);
        }
        for code in [10, 43, 99, 20, 40, 41, 1080, 123_456] {
            assert_eq!(said(code), ChargeOutcome::Unknown, "{code}");
        }
        assert_eq!(said(42), ChargeOutcome::Absent);
        let held = json!({ "resultCode": 9000, "transId": 7, "amount": 50_000 });
        assert_eq!(outcome(held.clone()).unwrap().outcome, ChargeOutcome::Captured);
        let two_steps = Settings { auto_capture: false, ..settings() };
        let two_steps = MoMo::new(two_steps, Arc::new(SystemWorld::new())).unwrap();
        let answer = two_steps.outcome(&charge(), &reply(&held)).unwrap();
        assert_eq!(answer.outcome, ChargeOutcome::Authorized);
        // What counts is how the payment was begun.
        let begun = |holds_first| Charge { holds_first: Some(holds_first), ..charge() };
        let said = |momo: &MoMo, charge: &Charge| momo.outcome(charge, &reply(&held)).unwrap();
        assert_eq!(said(&two_steps, &begun(false)).outcome, ChargeOutcome::Captured);
        assert_eq!(said(&momo(), &begun(true)).outcome, ChargeOutcome::Authorized);
        let failed = json!({ "resultCode": 1001, "transId": 7 });
        assert_eq!(outcome(failed).unwrap().provider_reference.as_deref(), Some("7"));
        for code in [11, 12, 13] {
            let locked = outcome(json!({ "resultCode": code }));
            assert!(matches!(locked, Err(GatewayError::Locked(_))), "{code}");
        }
    }

    #[test]
    fn a_payment_is_open_when_the_buyer_has_somewhere_to_go() {
        let opened = |value: Value| momo().opened(&charge(), &reply(&value)).unwrap();
        let open = json!({ "resultCode": 0, "amount": 50_000, "payUrl": "https://pay.invalid/1" });
        let Opened::Open(told) = opened(open) else { panic!("it is open") };
        assert_eq!(told.url.as_deref(), Some("https://pay.invalid/1"));
        assert!(told.text.unwrap().contains("PAY-1"));
        for strange in [
            json!({ "resultCode": 0, "amount": 50_000 }),
            json!({ "resultCode": 0, "amount": 5, "payUrl": "https://pay.invalid/1" }),
            json!({ "resultCode": 41 }),
            json!({ "resultCode": 99 }),
        ] {
            assert!(matches!(opened(strange), Opened::Ask));
        }
        assert!(matches!(opened(json!({ "resultCode": 22 })), Opened::Refused(_)));
        assert!(matches!(opened(json!({ "resultCode": 1007 })), Opened::Refused(_)));
    }

    #[test]
    fn what_is_answered_about_something_else_is_no_answer() {
        let about = |value: Value| momo().about(reply(&value), "o", "r");
        let ours =
            json!({ "resultCode": 0, "partnerCode": "MOMO", "orderId": "o", "requestId": "r" });
        assert!(about(ours.clone()).is_ok());
        for name in ["partnerCode", "orderId", "requestId"] {
            let mut other = ours.clone();
            other[name] = json!("x");
            assert!(about(other).is_err(), "{name}");
            let mut short = ours.clone();
            short.as_object_mut().unwrap().remove(name);
            assert!(about(short.clone()).is_err(), "{name}");
            short["resultCode"] = json!(42);
            assert!(about(short).is_ok(), "{name}");
        }
    }

    #[tokio::test]
    async fn what_momo_would_not_take_is_not_sent() {
        for amount in [
            Money::new(50_000, Currency::Usd),
            Money::new(AMOUNT_MIN - 1, Currency::Vnd),
            Money::new(AMOUNT_MAX + 1, Currency::Vnd),
        ] {
            let answer = momo().charge(&Charge { amount, ..charge() }).await.unwrap();
            assert!(matches!(answer.outcome, ChargeOutcome::Declined(_)), "{amount:?}");
        }
    }

    #[test]
    fn keys_are_never_shown() {
        let shown = format!("{:?}", settings());
        assert!(!shown.contains("K951B6PE") && !shown.contains("F8BBA842"), "{shown}");
    }
}
