//! Admission control: the bound in front of every mailbox.
//!
//! ractor's mailboxes are unbounded, so work is bounded before it gets there: so much in flight in
//! a partition, so much at one aggregate, and from outside no more than the journal can take within
//! [`COMMIT_WAIT_MAX`]. What does not fit is refused at once. Commands that the system gives itself
//! have room of their own and wait for it: load from outside never starves a purchase under way.
//!
//! Whoever runs the service can have it take nothing new from outside for a while, with reasons of
//! its own; reads and the system's own work go on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::command::{Origin, Refusal, Unavailable};

/// While what is queued for the journal would have to wait longer than this, nothing more is taken
/// from outside. A quick journal never comes near it: there the number in flight is the bound. With
/// a slow one that number alone would make everybody wait until nobody wants the answer any more.
pub const COMMIT_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// The budgets of one partition.
#[derive(Debug)]
pub struct Admission {
    outside: Arc<Semaphore>,
    inside: Arc<Semaphore>,
    outside_max: usize,
    inside_max: usize,
    draining: AtomicBool,
    refusals: RwLock<Vec<Refusal>>,
}

/// Room for one command, until it is answered.
#[derive(Debug)]
pub struct Permit {
    _partition: OwnedSemaphorePermit,
    aggregate: Option<Arc<AtomicUsize>>,
}

impl Permit {
    /// Also counts the command at its aggregate.
    pub(crate) fn at_aggregate(&mut self, in_flight: &Arc<AtomicUsize>, max: usize) -> bool {
        if in_flight.fetch_add(1, Ordering::AcqRel) >= max {
            in_flight.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        self.aggregate = Some(in_flight.clone());
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.aggregate {
            in_flight.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Admission {
    /// Budgets of this size.
    pub fn new(outside_max: usize, inside_max: usize) -> Self {
        Self {
            outside: Arc::new(Semaphore::new(outside_max)),
            inside: Arc::new(Semaphore::new(inside_max)),
            outside_max,
            inside_max,
            draining: AtomicBool::new(false),
            refusals: RwLock::default(),
        }
    }

    /// Room for a command, or why there is none. From outside the answer comes at once; from
    /// inside it waits until the deadline.
    pub async fn enter(&self, origin: Origin, deadline: Instant) -> Result<Permit, Unavailable> {
        let partition = match origin {
            Origin::Outside if self.draining.load(Ordering::Acquire) => {
                return Err(Unavailable::Draining);
            }
            Origin::Outside => {
                self.outside.clone().try_acquire_owned().map_err(|_| Unavailable::Overloaded)?
            }
            Origin::Inside => {
                let room = self.inside.clone().acquire_owned();
                match tokio::time::timeout_at(deadline, room).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(Unavailable::Draining),
                    Err(_) => return Err(Unavailable::DeadlinePassed),
                }
            }
        };
        Ok(Permit { _partition: partition, aggregate: None })
    }

    /// From now on nothing comes in from outside.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether nothing comes in from outside any more.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Refuses everything new from outside for this reason, until the reason is gone.
    pub fn refuse_outside(&self, refusal: Refusal) {
        let mut refusals = self.refusals.write().unwrap_or_else(PoisonError::into_inner);
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    }

    /// This reason is gone. Everything is taken again where there is no other.
    pub fn accept_outside(&self, refusal: Refusal) {
        let mut refusals = self.refusals.write().unwrap_or_else(PoisonError::into_inner);
        refusals.retain(|known| *known != refusal);
    }

    /// Why nothing new is taken from outside, by the reason that came first.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusals.read().unwrap_or_else(PoisonError::into_inner).first().copied()
    }

    /// Whether this is a reason why nothing new is taken from outside.
    pub fn refuses(&self, refusal: Refusal) -> bool {
        self.refusals.read().unwrap_or_else(PoisonError::into_inner).contains(&refusal)
    }

    /// How many commands are in flight, from outside and from inside.
    pub fn in_flight(&self) -> (usize, usize) {
        let outside = self.outside_max - self.outside.available_permits();
        (outside, self.inside_max - self.inside.available_permits())
    }

    /// How much can be in flight in all.
    pub fn max(&self) -> usize {
        self.outside_max + self.inside_max
    }
}
