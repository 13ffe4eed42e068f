//! The outside world behind traits: payment providers, mail, text messages.
//!
//! Each trait says what its provider must promise (an idempotency key, what a lost answer means),
//! each has an adapter that needs nothing installed, and nobody but `src/subscribers/` calls them:
//! an effect outside follows from an event, never from a request.

mod client;
pub mod collector;
pub mod guarded;
pub mod mail;
pub mod momo;
pub mod payment;
pub mod retry_after;
pub mod sandbox;
pub mod sendgrid;
pub mod sms;
pub mod smtp;
pub mod twilio;
pub mod webhook;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use payment::PaymentGateway;

/// How many messages or calls the adapters for development remember.
pub const REMEMBERED_MAX: usize = 1_000;

/// Who takes the money, by the means of payment.
#[derive(Clone)]
pub struct PaymentGateways {
    /// The built-in one: whatever nobody else takes.
    pub sandbox: Arc<dyn PaymentGateway>,
    /// MoMo, where it is set up.
    pub momo: Option<Arc<dyn PaymentGateway>>,
}

impl PaymentGateways {
    /// Who takes money by this means; none: a provider that is not set up (any more).
    pub fn of(&self, method: &str) -> Option<&Arc<dyn PaymentGateway>> {
        match method {
            momo::MOMO => self.momo.as_ref(),
            _ => Some(&self.sandbox),
        }
    }
}

/// The latest things, the oldest dropped: what development mode shows of its stand-ins.
pub(crate) struct Recent<T>(Mutex<VecDeque<T>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }
}

impl<T: Clone> Recent<T> {
    /// Remembers it, unless something already there is the same. Returns whether it was new.
    pub(crate) fn add(&self, new: T, same: impl Fn(&T) -> bool) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().rev().any(same) {
            return false;
        }
        if all.len() == REMEMBERED_MAX {
            all.pop_front();
        }
        all.push_back(new);
        true
    }

    /// All of them, the newest first.
    pub(crate) fn all(&self) -> Vec<T> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().cloned().collect()
    }
}
