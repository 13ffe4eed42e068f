//! Test kits: given/when/then for aggregates and sagas, the contract of the stores, a PostgreSQL,
//! the simulation, and how fast a store is by itself.

pub mod contract;
pub mod postgres;
pub mod raw;
#[cfg(feature = "simulation")]
pub mod simulation;

use std::fmt::Debug;

use uuid::Uuid;

use crate::aggregate::{Aggregate, TimerChange};
use crate::event::EventPayload;
use crate::saga::Saga;

/// Every column of an event in a SQL journal.
pub const EVENT_COLUMNS: [&str; 15] = [
    "seq",
    "event_id",
    "stream",
    "aggregate_version",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "major",
    "minor",
    "timestamp",
    "correlation_id",
    "causation_id",
    "data",
    "metadata",
    "hash",
];

/// Given a history, when a command comes, then these events or that rejection.
///
/// `Scenario::<Order>::given([placed, shipped]).when(cancel).then_rejected("invalid_transition")`
///
/// Every event passes through its stored form on the way, and so does the state: what a test sees
/// is what a restart would see.
pub struct Scenario<A: Aggregate> {
    state: A,
}

impl<A: Aggregate> Scenario<A> {
    /// An aggregate with this history.
    #[track_caller]
    pub fn given(history: impl IntoIterator<Item = A::Event>) -> Self {
        let mut state = A::default();
        for event in history {
            state.apply(&stored(&event));
        }
        Self { state }
    }

    /// An aggregate of which nothing is known yet.
    pub fn new() -> Self {
        Self { state: A::default() }
    }

    /// Decides a command; accepted events are applied.
    #[track_caller]
    pub fn when(mut self, command: A::Command) -> Decided<A> {
        let outcome = self.state.decide(&command);
        let mut timers = Vec::new();
        for event in outcome.as_deref().unwrap_or_default() {
            let event = stored(event);
            self.state.apply(&event);
            timers.extend(self.state.timers(&event));
        }
        let json = serde_json::to_string(&self.state).expect("the state can be written");
        self.state = serde_json::from_str(&json).expect("the state can be read back");
        Decided { state: self.state, outcome, timers }
    }
}

impl<A: Aggregate> Default for Scenario<A> {
    fn default() -> Self {
        Self::new()
    }
}

#[track_caller]
fn stored<E: EventPayload>(event: &E) -> E {
    let descriptor = event.descriptor();
    E::decode(descriptor.event_type, descriptor.major, &event.encode())
        .expect("an event can be read back from its stored form")
}

/// What a command led to.
pub struct Decided<A: Aggregate> {
    /// The state afterwards.
    pub state: A,
    /// The events or the rejection.
    pub outcome: Result<Vec<A::Event>, A::Rejection>,
    /// The timers that the events set and cleared.
    pub timers: Vec<TimerChange>,
}

impl<A: Aggregate> Decided<A>
where
    A::Event: PartialEq + Debug,
{
    /// Exactly these events.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) -> Scenario<A> {
        let events = self.outcome.unwrap_or_else(|rejection| panic!("rejected: {rejection}"));
        assert_eq!(events, expected.into_iter().collect::<Vec<_>>());
        Scenario { state: self.state }
    }

    /// Events of exactly these types.
    #[track_caller]
    pub fn then_types(self, expected: &[&str]) -> Scenario<A> {
        let events = self.outcome.unwrap_or_else(|rejection| panic!("rejected: {rejection}"));
        let types: Vec<_> = events.iter().map(|event| event.descriptor().event_type).collect();
        assert_eq!(types, expected);
        Scenario { state: self.state }
    }

    /// A rejection with this code.
    #[track_caller]
    pub fn then_rejected(self, code: &str) -> Scenario<A> {
        use crate::aggregate::Rejection;
        match self.outcome {
            Ok(events) => panic!("accepted: {events:?}"),
            Err(rejection) => assert_eq!(rejection.code(), code),
        }
        Scenario { state: self.state }
    }

    /// Looks at the state, then goes on.
    #[track_caller]
    pub fn and_state(self, check: impl FnOnce(&A)) -> Self {
        check(&self.state);
        self
    }
}

/// A saga's facts folded in the order given.
pub fn folded<S: Saga>(facts: impl IntoIterator<Item = S::Fact>) -> S {
    let mut state = S::default();
    for fact in facts {
        state.observe(&fact);
    }
    state
}

/// A stored event with the given content, for tests of subscribers and of [`Saga::fact`].
pub fn stored_event(
    event_type: &str,
    aggregate_type: &str,
    id: Uuid,
    data: &serde_json::Value,
) -> crate::event::StoredEvent {
    crate::event::StoredEvent {
        partition: 0,
        position: 1,
        event_id: Uuid::from_u128(1),
        stream: 1,
        aggregate_type: aggregate_type.into(),
        aggregate_id: id,
        aggregate_version: 1,
        event_type: event_type.into(),
        major: 1,
        minor: 0,
        timestamp: crate::world::Timestamp::from_millis(0),
        correlation_id: "test".into(),
        causation_id: "test".into(),
        data: data.to_string().into(),
        metadata: "{}".into(),
        hash: [0; 32],
    }
}
