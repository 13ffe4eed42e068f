//! Flows: how long it takes from a request to the last event that it leads to.
//!
//! What the last event of a flow is stands in [`FLOWS`], the one place that says so. A request of a flow
//! is noted when it comes, and found again by its correlation id when one of the flow's last events is
//! handled; the time between the request and that event's decision is measured. What is noted is bounded
//! and in memory: what was under way at a restart is not measured. Where several requests of a flow have
//! the same correlation id, the first of them is measured until the first end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use souk_actors::world::Timestamp;

/// How many requests are remembered; with more, the oldest are forgotten. Some 3 MB at worst.
const REMEMBERED_MAX: usize = 10_000;

/// One kind of flow.
#[derive(Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its name, as the metric has it.
    pub name: &'static str,
    /// The routes that begin it, by `POST`.
    pub routes: &'static [&'static str],
    /// The event types with one of which it is over.
    pub ends: &'static [&'static str],
}

/// Every flow that is measured.
pub static FLOWS: [Flow; 8] = [
    Flow {
        name: "registration",
        routes: &["/api/v1/users/register"],
        ends: &["notification.email.sent", "notification.email.failed"],
    },
    Flow {
        name: "verification",
        routes: &["/api/v1/users/verify-email"],
        ends: &["notification.email.sent", "notification.email.failed"],
    },
    Flow { name: "listing", routes: &["/api/v1/listings"], ends: &["listing.indexed"] },
    Flow {
        name: "purchase",
        routes: &["/api/v1/orders", "/api/v1/transactions"],
        ends: &["saga.completed", "saga.failed"],
    },
    Flow { name: "cancellation", routes: &["/api/v1/orders/{id}/cancel"], ends: &["saga.failed"] },
    Flow {
        name: "delivery",
        routes: &["/api/v1/shipments/{id}/deliver"],
        ends: &["order.completed"],
    },
    Flow {
        name: "return",
        routes: &["/api/v1/orders/{id}/returns/{return_id}/accept"],
        ends: &["payment.refunded"],
    },
    Flow { name: "review", routes: &["/api/v1/reviews"], ends: &["seller.rating_updated"] },
];

/// The flow that a request begins.
pub fn begun_by(method: &str, route: &str) -> Option<&'static Flow> {
    if method != "POST" {
        return None;
    }
    FLOWS.iter().find(|flow| flow.routes.contains(&route))
}

/// The requests whose flows are under way. Cheap to clone.
#[derive(Clone)]
pub struct Flows(Arc<Mutex<Noted>>);

type Key = (&'static str, Arc<str>);

struct Noted {
    requests: HashMap<Key, (u64, Timestamp)>,
    by_age: BTreeMap<u64, Key>,
    next: u64,
    max: usize,
}

impl Noted {
    fn forget(&mut self, key: &Key) -> Option<Timestamp> {
        let (age, at) = self.requests.remove(key)?;
        self.by_age.remove(&age);
        Some(at)
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self::of_size(REMEMBERED_MAX)
    }
}

impl Flows {
    fn of_size(max: usize) -> Self {
        let (requests, by_age) = (HashMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Noted { requests, by_age, next: 0, max })))
    }

    fn with<R>(&self, change: impl FnOnce(&mut Noted) -> R) -> R {
        // Nothing in here panics half-way.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request has come. Returns whether it was noted: not where one is with its correlation id.
    pub fn begun(&self, flow: &'static Flow, correlation_id: &str, now: Timestamp) -> bool {
        let key: Key = (flow.name, Arc::from(correlation_id));
        self.with(|noted| {
            if noted.requests.contains_key(&key) {
                return false;
            }
            noted.requests.insert(key.clone(), (noted.next, now));
            noted.by_age.insert(noted.next, key);
            noted.next += 1;
            if noted.requests.len() > noted.max
                && let Some((_, oldest)) = noted.by_age.pop_first()
            {
                noted.requests.remove(&oldest);
            }
            true
        })
    }

    /// A request that was noted leads to nothing.
    pub fn came_to_nothing(&self, flow: &'static Flow, correlation_id: &str) {
        self.with(|noted| noted.forget(&(flow.name, Arc::from(correlation_id))));
    }

    /// An event was decided: those of the flows that it ends whose request is known.
    pub fn ended(
        &self,
        event_type: &str,
        correlation_id: &Arc<str>,
    ) -> Vec<(&'static Flow, Timestamp)> {
        let ends = FLOWS.iter().filter(|flow| flow.ends.contains(&event_type));
        self.with(|noted| {
            let begun = |flow: &'static Flow| {
                Some((flow, noted.forget(&(flow.name, correlation_id.clone()))?))
            };
            ends.filter_map(begun).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::registry;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn flow(name: &str) -> &'static Flow {
        FLOWS.iter().find(|flow| flow.name == name).unwrap()
    }

    #[test]
    fn flows_end_with_events_that_there_are() {
        let known: Vec<_> = registry::all_descriptors().map(|of| of.event_type).collect();
        for flow in &FLOWS {
            assert!(flow.ends.iter().all(|end| known.contains(end)), "{flow:?}");
        }
    }

    #[test]
    fn a_flow_is_measured_from_its_first_request_to_its_first_end() {
        let flows = Flows::default();
        let id: Arc<str> = "one".into();
        assert!(flows.begun(flow("purchase"), &id, at(1)));
        assert!(!flows.begun(flow("purchase"), &id, at(5)));
        assert_eq!(flows.ended("listing.indexed", &id), []);
        assert_eq!(flows.ended("saga.completed", &"two".into()), []);
        assert_eq!(flows.ended("saga.completed", &id), [(flow("purchase"), at(1))]);
        assert_eq!(flows.ended("saga.completed", &id), [], "once");
        flows.begun(flow("review"), &id, at(7));
        flows.came_to_nothing(flow("review"), &id);
        assert_eq!(flows.ended("seller.rating_updated", &id), []);
        assert_eq!(begun_by("GET", "/api/v1/orders"), None);
        assert_eq!(begun_by("POST", "/api/v1/orders"), Some(flow("purchase")));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let flows = Flows::of_size(2);
        let ids: [Arc<str>; 4] = ["a".into(), "b".into(), "c".into(), "d".into()];
        for (id, millis) in ids[..3].iter().zip(1..) {
            flows.begun(flow("review"), id, at(millis));
        }
        assert_eq!(flows.ended("seller.rating_updated", &ids[0]), []);
        assert_eq!(flows.ended("seller.rating_updated", &ids[2]).len(), 1);
        flows.begun(flow("review"), &ids[3], at(4));
        assert_eq!(flows.ended("seller.rating_updated", &ids[1]).len(), 1, "there was room");
        assert_eq!(flows.with(|noted| (noted.requests.len(), noted.by_age.len())), (1, 1));
    }
}
