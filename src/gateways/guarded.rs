//! A payment provider behind a circuit breaker: one that does not answer is not asked any more, but
//! for a probe at a time, until it does. Meanwhile every call fails at once as one that had no answer
//! would after its time limit, so that nobody waits for what is down; payments are asked after later,
//! as after any other call that came to nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::circuit::{Circuit, CircuitPolicy};

use super::payment::{Charge, ChargeAnswer, GatewayError, PaymentGateway, Refund, RefundAnswer};

/// So many calls in a row without an answer open the circuit.
const FAILURES: u32 = 5;

/// No wait for the next probe is longer: people are waiting to pay.
const COOLDOWN_MAX: Duration = Duration::from_secs(10);

/// A provider, and its circuit.
pub struct Guarded<G> {
    gateway: G,
    circuit: Arc<Circuit>,
}

impl<G: PaymentGateway> Guarded<G> {
    /// A provider that answers as far as anybody knows.
    pub fn new(gateway: G) -> Self {
        let policy = CircuitPolicy {
            failures: FAILURES,
            cooldown_max: COOLDOWN_MAX,
            ..CircuitPolicy::default()
        };
        let circuit = Arc::new(Circuit::new(gateway.provider(), policy));
        Self { gateway, circuit }
    }

    /// How it stands.
    pub fn circuit(&self) -> Arc<Circuit> {
        self.circuit.clone()
    }

    /// Makes a call if the circuit lets it. Only what had no answer counts against the provider: a
    /// refusal is one. So does a call that is given up, by the time limit or its caller.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, GatewayError>>,
    ) -> Result<T, GatewayError> {
        let provider = self.gateway.provider();
        let Some(attempt) = self.circuit.enter() else {
            return Err(GatewayError::Transient(format!("the circuit of {provider} is open")));
        };
        let limit = self.gateway.answer_within();
        let Ok(answer) = tokio::time::timeout(limit, call).await else {
            let late = format!("{provider} did not answer in time");
            attempt.unwell(&late);
            return Err(GatewayError::Transient(late));
        };
        match &answer {
            Err(GatewayError::Transient(error)) => attempt.unwell(error),
            Ok(_) | Err(GatewayError::Locked(_) | GatewayError::Invalid(_)) => attempt.well(),
        }
        answer
    }
}

#[async_trait]
impl<G: PaymentGateway> PaymentGateway for Guarded<G> {
    fn provider(&self) -> &'static str {
        self.gateway.provider()
    }

    fn answer_within(&self) -> Duration {
        self.gateway.answer_within()
    }

    async fn charge(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.call(self.gateway.charge(charge)).await
    }

    async fn query(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.call(self.gateway.query(charge)).await
    }

    async fn capture(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.call(self.gateway.capture(charge)).await
    }

    async fn void(&self, charge: &Charge) -> Result<ChargeAnswer, GatewayError> {
        self.call(self.gateway.void(charge)).await
    }

    async fn refund(&self, refund: &Refund) -> Result<RefundAnswer, GatewayError> {
        self.call(self.gateway.refund(refund)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::domain::money::{Currency, Money};
    use crate::gateways::payment::ChargeOutcome;

    /// What it does next: answer, refuse, fail, or keep silent.
    #[derive(Clone, Copy)]
    enum Mood {
        Well,
        Locked,
        Failing,
        Silent,
    }

    struct Moody(Mutex<(Mood, u32)>);

    impl Moody {
        async fn answer(&self) -> Result<ChargeAnswer, GatewayError> {
            let mood = {
                let mut inner = self.0.lock().unwrap();
                inner.1 += 1;
                inner.0
            };
            match mood {
                Mood::Well => Ok(ChargeAnswer {
                    outcome: ChargeOutcome::Pending,
                    provider_reference: None,
                    amount: Money::new(1, Currency::Vnd),
                    instructions: None,
                }),
                Mood::Locked => Err(GatewayError::Locked("401".to_owned())),
                Mood::Failing => Err(GatewayError::Transient("503".to_owned())),
                Mood::Silent => std::future::pending().await,
            }
        }
    }

    #[async_trait]
    impl PaymentGateway for Arc<Moody> {
        fn provider(&self) -> &'static str {
            "moody"
        }
        async fn charge(&self, _: &Charge) -> Result<ChargeAnswer, GatewayError> {
            self.answer().await
        }
        async fn query(&self, _: &Charge) -> Result<ChargeAnswer, GatewayError> {
            self.answer().await
        }
        async fn void(&self, _: &Charge) -> Result<ChargeAnswer, GatewayError> {
            self.answer().await
        }
        async fn refund(&self, _: &Refund) -> Result<RefundAnswer, GatewayError> {
            unreachable!("nobody asks")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_does_not_answer_is_left_alone_but_for_probes() {
        let moody = Arc::new(Moody(Mutex::new((Mood::Locked, 0))));
        let guarded = Guarded::new(moody.clone());
        let charge = Charge {
            idempotency_key: "key".to_owned(),
            amount: Money::new(1, Currency::Vnd),
            method: "moody".to_owned(),
            reference: "PAY-1".to_owned(),
            holds_first: None,
        };
        let turns = |mood| moody.0.lock().unwrap().0 = mood;
        let asked = || moody.0.lock().unwrap().1;
        for _ in 0..10 {
            assert!(matches!(guarded.charge(&charge).await, Err(GatewayError::Locked(_))));
        }
        assert_eq!(guarded.circuit().state().name, "closed", "a refusal is an answer");
        turns(Mood::Failing);
        for _ in 0..4 {
            assert!(guarded.charge(&charge).await.is_err());
        }
        turns(Mood::Silent);
        // Whoever waits no longer than this has had no answer either.
        let limit = Duration::from_secs(1);
        assert!(tokio::time::timeout(limit, guarded.query(&charge)).await.is_err());
        let before = asked();
        for _ in 0..100 {
            let refused = guarded.void(&charge).await.unwrap_err();
            assert!(refused.to_string().contains("the circuit of moody is open"));
        }
        assert_eq!((asked(), guarded.circuit().state().name), (before, "open"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(guarded.query(&charge).await.unwrap_err().to_string().contains("in time"));
        assert_eq!(asked(), before + 1, "one probe");
        turns(Mood::Well);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(guarded.query(&charge).await.is_ok());
        assert_eq!(guarded.circuit().state().name, "closed");
    }
}
