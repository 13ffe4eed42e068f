//! The states of aggregates of any type, as of now, of a version or of a time, folded from what is
//! durable. No actor is asked, so that an aggregate which is quarantined can be looked at too.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::Runtime;
use crate::aggregate::load;
use crate::aggregate::registry::AnyRegistry;
use crate::event::StoredEvent;
use crate::journal::codec::Reveal;
use crate::journal::{self, Store};
use crate::world::Timestamp;

/// Looks at the states of aggregates.
#[derive(Clone, Debug)]
pub struct States(pub(super) Runtime);

/// Which of an aggregate's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsOf {
    /// The latest.
    Now,
    /// The one that this event made.
    Version(u64),
    /// The one before the first event that came after this time.
    Time(Timestamp),
}

/// A state of an aggregate.
#[derive(Debug, Clone)]
pub struct State {
    /// The event that made it.
    pub event: Arc<StoredEvent>,
    /// The state, as people read it.
    pub state: Value,
}

/// What an event changed.
pub type Step<'a> = load::Step<'a>;

/// Why there is no state to be seen.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No aggregates are called so.
    #[error("there is no such type of aggregate")]
    UnknownType,
    /// There is no such aggregate.
    #[error("there is no such aggregate")]
    Unknown,
    /// It began after that time.
    #[error("it began at {0}, after that time")]
    Later(Timestamp),
    /// It is not at that version yet.
    #[error("it is at version {0}: there is no later one")]
    Beyond(u64),
    /// Its events are there, and do not make a state.
    #[error("no state can be made of its events: {0}")]
    Unreadable(String),
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] journal::Error),
}

impl From<load::Error> for StateError {
    fn from(error: load::Error) -> Self {
        match error {
            load::Error::Journal(error) => Self::Journal(error),
            other => Self::Unreadable(other.to_string()),
        }
    }
}

impl States {
    /// The types of aggregates.
    pub fn types(&self) -> Vec<&'static str> {
        let partition = self.0.0.partitions.first();
        let registries = partition.map(|partition| &*partition.registries);
        let mut types: Vec<_> =
            registries.into_iter().flatten().map(|registry| registry.aggregate_type()).collect();
        types.sort_unstable();
        types
    }

    fn registry(&self, kind: &str, id: Uuid) -> Result<&Arc<dyn AnyRegistry>, StateError> {
        self.0.registry_for(kind, id).ok_or(StateError::UnknownType)
    }

    fn store(&self) -> &dyn Store {
        &*self.0.0.store
    }

    /// The state of an aggregate.
    pub async fn at(
        &self,
        aggregate_type: &str,
        id: Uuid,
        as_of: AsOf,
        reveal: Reveal,
    ) -> Result<State, StateError> {
        let registry = self.registry(aggregate_type, id)?;
        let stream = self.store().stream(aggregate_type, id).await?;
        let stream = stream.ok_or(StateError::Unknown)?;
        let wanted = match as_of {
            AsOf::Now => None,
            AsOf::Version(version) => Some(version),
            AsOf::Time(time) => Some(self.version_at(stream, time).await?),
        };
        let (version, state) = registry.state(id, wanted, reveal).await?;
        if wanted.is_some_and(|wanted| wanted > version) {
            return Err(StateError::Beyond(version));
        }
        let event = self.event(stream, version).await?.ok_or(StateError::Unknown)?;
        Ok(State { event, state })
    }

    /// Shows `visit` an aggregate's events after a version, at most `limit`, each with what it
    /// changed.
    pub async fn steps(
        &self,
        aggregate_type: &str,
        id: Uuid,
        (after, limit): (u64, usize),
        reveal: Reveal,
        visit: load::Visit<'_>,
    ) -> Result<(), StateError> {
        let registry = self.registry(aggregate_type, id)?;
        if self.store().stream(aggregate_type, id).await?.is_none() {
            return Err(StateError::Unknown);
        }
        Ok(registry.replay(id, (after, limit), reveal, visit).await?)
    }

    async fn event(
        &self,
        stream: i64,
        version: u64,
    ) -> Result<Option<Arc<StoredEvent>>, StateError> {
        let Some(before) = version.checked_sub(1) else { return Ok(None) };
        Ok(self.store().read_stream(stream, before, 1).await?.into_iter().next())
    }

    /// The version that an aggregate was at. A few events are looked at however many it has, since
    /// times grow with versions; where the clock was set back meanwhile it is a version between one
    /// of that time or earlier and a later one.
    async fn version_at(&self, stream: i64, time: Timestamp) -> Result<u64, StateError> {
        let begun = self.event(stream, 1).await?.ok_or(StateError::Unknown)?.timestamp;
        if begun > time {
            return Err(StateError::Later(begun));
        }
        let (mut reached, mut passed) = (1_u64, 2_u64);
        while self.was_reached(stream, passed, time).await? {
            (reached, passed) = (passed, passed.saturating_mul(2));
        }
        while passed - reached > 1 {
            let middle = reached + (passed - reached) / 2;
            if self.was_reached(stream, middle, time).await? {
                reached = middle;
            } else {
                passed = middle;
            }
        }
        Ok(reached)
    }

    /// Whether an aggregate had come to a version by a time.
    async fn was_reached(
        &self,
        stream: i64,
        version: u64,
        time: Timestamp,
    ) -> Result<bool, StateError> {
        Ok(self.event(stream, version).await?.is_some_and(|event| event.timestamp <= time))
    }
}
