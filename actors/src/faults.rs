//! Failures injected on purpose, in development and in tests: into subscriptions, gateways and the
//! journal. Without any, asking costs one atomic load.

pub mod points;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::journal::AppendError;
use crate::planted::{Bug, Planted};
use crate::retry::{Failure, FailureKind};

/// What an injected fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Fails.
    Fail,
    /// Panics.
    Panic,
    /// Waits, then goes on.
    Delay,
    /// Waits for longer than anybody does.
    Timeout,
    /// Does its work, then loses the answer (journal only): the outcome is unknown.
    LoseAnswer,
}

/// A fault: where, what, how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// A subscription, a gateway, or `journal`.
    pub target: String,
    /// What it does.
    pub mode: Mode,
    /// For [`Mode::Fail`]: the kind of failure.
    #[serde(default = "transient")]
    pub kind: FailureKind,
    /// How often; none: until it is taken away.
    #[serde(default)]
    pub times: Option<u64>,
    /// Only for this aggregate, event type or other key; none: for all.
    #[serde(default)]
    pub key: Option<String>,
    /// For [`Mode::Delay`]: how long, in milliseconds.
    #[serde(default)]
    pub delay_ms: u64,
}

fn transient() -> FailureKind {
    FailureKind::Transient
}

/// All faults in force.
#[derive(Debug, Default)]
pub struct Faults {
    any: AtomicBool,
    next_id: AtomicU64,
    faults: Mutex<Vec<(u64, Fault)>>,
    planted: Planted,
}

/// How long [`Mode::Timeout`] waits: longer than every time limit.
const FOREVER: Duration = Duration::from_secs(3600);

impl Faults {
    /// Adds a fault; the id takes it away again.
    pub fn add(&self, fault: Fault) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().push((id, fault));
        self.any.store(true, Ordering::Release);
        id
    }

    /// Takes a fault away. Returns whether it was there.
    pub fn remove(&self, id: u64) -> bool {
        let mut faults = self.lock();
        let before = faults.len();
        faults.retain(|(known, _)| *known != id);
        self.any.store(!faults.is_empty(), Ordering::Release);
        faults.len() < before
    }

    /// Every fault in force with its id.
    pub fn list(&self) -> Vec<(u64, Fault)> {
        self.lock().clone()
    }

    /// Plants a bug in the runtime that these faults are of.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&self, bug: Bug) {
        self.planted.plant(bug);
    }

    /// Whether this bug is planted here.
    #[inline]
    pub(crate) fn planted(&self, bug: Bug) -> bool {
        self.planted.is(bug)
    }

    /// Whether there is any: without one nobody needs to say what it is about to do.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Fault)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, target: &str, keys: &[&str]) -> Option<Fault> {
        if !self.any() {
            return None;
        }
        let mut faults = self.lock();
        let index = faults.iter().position(|(_, fault)| {
            fault.target == target
                && fault.key.as_deref().is_none_or(|key| keys.contains(&key))
                && fault.times != Some(0)
        })?;
        let fault = faults[index].1.clone();
        if let Some(times) = &mut faults[index].1.times {
            *times -= 1;
        }
        faults.retain(|(_, fault)| fault.times != Some(0));
        self.any.store(!faults.is_empty(), Ordering::Release);
        Some(fault)
    }

    /// Called before the work of `target` for something known under `keys`.
    ///
    /// # Panics
    /// When a fault says so.
    pub async fn before(&self, target: &str, keys: &[&str]) -> Result<(), Failure> {
        match self.take(target, keys) {
            Some(fault) => strike(&fault).await,
            None => Ok(()),
        }
    }

    /// Called before an append. Whether its answer is to be lost.
    pub(crate) async fn on_append(&self) -> Result<bool, AppendError> {
        let Some(fault) = self.take("journal", &[]) else { return Ok(false) };
        if fault.mode == Mode::LoseAnswer {
            return Ok(true);
        }
        match strike(&fault).await {
            Ok(()) => Ok(false),
            Err(failure) => Err(AppendError::NotCommitted(failure.message)),
        }
    }
}

async fn strike(fault: &Fault) -> Result<(), Failure> {
    match fault.mode {
        Mode::Panic => panic!("injected panic in {}", fault.target),
        Mode::Delay => tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await,
        Mode::Timeout => tokio::time::sleep(FOREVER).await,
        Mode::Fail | Mode::LoseAnswer => {
            let message = format!("injected {} failure", fault.kind.as_str());
            return Err(Failure::new(fault.kind, message));
        }
    }
    Ok(())
}
