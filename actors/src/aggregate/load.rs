//! From stored rows to a state.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::Aggregate;
use super::registry::Shared;
use crate::event::{DecodeError, EventPayload, StoredEvent};
use crate::faults::points;
use crate::journal::codec::{self, Reveal};
use crate::journal::{self, Snapshot};
use crate::planted::Bug;

/// Events read at a time.
const PAGE: usize = 500;

/// Why a state could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The journal did not answer.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// A stored event cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// `apply` panicked.
    #[error("apply panicked on version {0}")]
    Panicked(u64),
}

impl Error {
    /// What this says, where trying again would not help.
    fn lasting(self) -> Result<String, Self> {
        match self {
            Self::Journal(journal::Error::Database(_) | journal::Error::Locked(_)) => Err(self),
            _ => Ok(self.to_string()),
        }
    }
}

/// A folded state.
pub(crate) struct Folded<A> {
    pub state: A,
    pub version: u64,
    pub stream: Option<i64>,
    pub snapshot_version: u64,
    /// The correlation id of the last event read, if any was.
    pub correlation_id: Option<Arc<str>>,
}

/// Folds an aggregate's events, up to and with version `upto`, from the
/// last snapshot before it.
pub(crate) async fn fold<A: Aggregate>(
    shared: &Shared,
    id: Uuid,
    upto: Option<u64>,
) -> Result<Folded<A>, Error> {
    // Only what it is now rests on that this process holds the partition; a look back does not.
    let is_new = upto.is_none() && shared.known.has_none(A::TYPE, id);
    let stream = if is_new { None } else { shared.store.stream(A::TYPE, id).await? };
    let mut folded = Folded {
        state: A::default(),
        version: 0,
        stream,
        snapshot_version: 0,
        correlation_id: None,
    };
    let Some(stream) = stream else { return Ok(folded) };
    let snapshot = match shared.store.snapshot(stream, upto.unwrap_or(u64::MAX)).await {
        // No loss: the events are all there.
        Err(error @ journal::Error::Damaged(_)) => {
            tracing::error!(aggregate_type = A::TYPE, aggregate_id = %id, %error, "a snapshot is ignored");
            None
        }
        snapshot => snapshot?,
    };
    if let Some(snapshot) = snapshot {
        let fits = snapshot.shape == A::SNAPSHOT_VERSION;
        if let Some(state) = if fits { open_snapshot(shared, &snapshot).await? } else { None } {
            folded.state = state;
            folded.version = snapshot.version;
            folded.snapshot_version = snapshot.version;
        }
    }
    if upto.is_none() && shared.faults.planted(Bug::RestartWithoutReplay) {
        return Ok(folded);
    }
    let upto = upto.unwrap_or(u64::MAX);
    // The last event that a snapshot rests on is read once more: it must be there.
    let mut next = folded.version.max(1);
    while next <= upto {
        let page = shared.store.read_stream(stream, next - 1, PAGE).await?;
        points::reach("aggregate.during_load").await;
        let full = page.len() == PAGE;
        for stored in page {
            if stored.aggregate_version != next {
                return Err(missing::<A>(id, next));
            }
            if next > upto {
                return Ok(folded);
            }
            next += 1;
            if stored.aggregate_version <= folded.version {
                folded.correlation_id = Some(stored.correlation_id.clone());
                continue;
            }
            apply(shared, &mut folded.state, &stored).await?;
            folded.version = stored.aggregate_version;
            folded.correlation_id = Some(stored.correlation_id.clone());
        }
        if !full {
            break;
        }
    }
    // What has a number has had an event, and a snapshot all those before it.
    if upto > 0 && next <= folded.version.max(1) {
        return Err(missing::<A>(id, next));
    }
    Ok(folded)
}

/// Applies a stored event.
async fn apply<A: Aggregate>(
    shared: &Shared,
    state: &mut A,
    stored: &StoredEvent,
) -> Result<(), Error> {
    let opened = shared.keys.open(&*shared.store, stored.event_id, &stored.data).await?;
    let data = opened.as_deref().unwrap_or(&stored.data);
    let event = A::Event::decode_stored(stored, data)?;
    catch_unwind(AssertUnwindSafe(|| state.apply(&event)))
        .map_err(|_| Error::Panicked(stored.aggregate_version))
}

/// One event of an aggregate, with the states around it as people read them.
pub struct Step<'a> {
    /// The event.
    pub event: &'a Arc<StoredEvent>,
    /// The state before and after; or why one of them cannot be made.
    pub states: Result<(&'a Value, &'a Value), &'a str>,
}

/// Is shown steps.
pub type Visit<'a> = &'a mut (dyn for<'s> FnMut(Step<'s>) + Send);

/// Shows `visit` an aggregate's events after a version, at most `limit`, with the states around
/// them. Behind an event that cannot be applied there are no states, and the events all the same.
pub(crate) async fn replay<A: Aggregate>(
    shared: &Shared,
    id: Uuid,
    (after, limit): (u64, usize),
    reveal: Reveal,
    visit: Visit<'_>,
) -> Result<(), Error> {
    let Some(stream) = shared.store.stream(A::TYPE, id).await? else { return Ok(()) };
    let page = shared.store.read_stream(stream, after, limit).await?;
    if page.is_empty() {
        return Ok(());
    }
    let mut state = match after {
        0 => Ok(A::default()),
        _ => match fold::<A>(shared, id, Some(after)).await {
            Ok(folded) => Ok(folded.state),
            Err(error) => Err(error.lasting()?),
        },
    };
    let mut before = state.as_ref().map(|state| as_read(state, reveal)).unwrap_or_default();
    for event in &page {
        if let Ok(reached) = &mut state
            && let Err(error) = apply(shared, reached, event).await
        {
            state = Err(error.lasting()?);
        }
        let after = state.as_ref().map(|state| as_read(state, reveal));
        let states = after.as_ref().map(|after| (&before, after)).map_err(|why| why.as_str());
        visit(Step { event, states });
        before = after.unwrap_or_default();
    }
    Ok(())
}

/// A state as people read it.
pub(crate) fn as_read<A: Aggregate>(state: &A, reveal: Reveal) -> Value {
    let mut value = serde_json::to_value(state).unwrap_or_default();
    codec::show(&mut value, reveal);
    value
}

pub(super) fn missing<A: Aggregate>(id: Uuid, version: u64) -> Error {
    let what = format!("version {version} of {} {id} is missing", A::TYPE);
    Error::Journal(journal::Error::Damaged(what))
}

/// A snapshot whose text begins with a check of all of it: a state that was changed where it lies
/// must not be taken for the aggregate's.
pub(crate) fn checked_snapshot(stream: i64, version: u64, shape: u32, state: &str) -> Snapshot {
    let state = format!("{}{state}", snapshot_check(stream, version, shape, state));
    Snapshot { stream, version, shape, state }
}

fn snapshot_check(stream: i64, version: u64, shape: u32, state: &str) -> String {
    let (stream, version, shape) =
        (stream.to_le_bytes(), version.to_le_bytes(), shape.to_le_bytes());
    let parts: [&[u8]; 4] = [&stream, &version, &shape, state.as_bytes()];
    crate::id::derived("snapshot check", &parts).simple().to_string()
}

/// The state as it was stored, or none if the snapshot is not what was written.
fn checked_state(snapshot: &Snapshot) -> Option<&str> {
    let (check, state) = snapshot.state.split_at_checked(SNAPSHOT_CHECK)?;
    let Snapshot { stream, version, shape, .. } = *snapshot;
    (snapshot_check(stream, version, shape, state) == check).then_some(state)
}

/// Characters of a snapshot's check.
const SNAPSHOT_CHECK: usize = 32;

/// Stands for a snapshot where an event's id would be, so that what is sealed in one cannot be
/// moved into another.
pub(crate) fn snapshot_record(stream: i64, version: u64) -> Uuid {
    crate::id::derived("snapshot", &[&stream.to_le_bytes(), &version.to_le_bytes()])
}

/// A snapshot that cannot be read is no loss: the events are all there.
async fn open_snapshot<A: Aggregate>(
    shared: &Shared,
    snapshot: &Snapshot,
) -> Result<Option<A>, journal::Error> {
    let Some(stored) = checked_state(snapshot) else {
        tracing::error!(
            aggregate_type = A::TYPE,
            stream = snapshot.stream,
            "a snapshot is damaged and ignored: the events are read instead"
        );
        return Ok(None);
    };
    let record = snapshot_record(snapshot.stream, snapshot.version);
    let opened = match shared.keys.open(&*shared.store, record, stored).await {
        Ok(opened) => opened,
        Err(error @ journal::Error::Database(_)) => return Err(error),
        Err(error) => {
            tracing::warn!(aggregate_type = A::TYPE, %error, "a snapshot is ignored");
            return Ok(None);
        }
    };
    let text = opened.as_deref().unwrap_or(stored);
    let state = serde_json::from_str(text);
    if let Err(error) = &state {
        tracing::warn!(
            aggregate_type = A::TYPE,
            line = error.line(),
            "a snapshot is ignored: it does not fit the state's shape"
        );
    }
    Ok(state.ok())
}
