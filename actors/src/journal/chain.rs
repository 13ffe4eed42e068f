//! The hash chain: each event's hash covers the hash before it and every stored column, so that
//! nothing can be changed, removed or reordered unseen.
//!
//! `hash(n) = BLAKE3(hash(n-1) ‖ columns)`, the first from 32 zero bytes. Integers are 8 bytes
//! little-endian. First partition and position, just so; then, each preceded by its length in
//! bytes (an integer too): event id, stream, aggregate type, aggregate id, aggregate version,
//! event type, major, minor, timestamp in milliseconds, correlation id, causation id, data,
//! metadata. Never change.
//! Personal fields are hashed sealed, so that an erasure leaves the chain whole.

use crate::event::StoredEvent;
use crate::journal::{Error, Store};

/// The hash of `event` behind an event with hash `previous`. The event's own `hash` is ignored.
pub fn link(previous: &[u8; 32], event: &StoredEvent) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    let mut number = |value: u64| {
        hasher.update(&value.to_le_bytes());
    };
    number(u64::from(event.partition));
    number(event.position);
    let mut bytes = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    bytes(event.event_id.as_bytes());
    bytes(&event.stream.to_le_bytes());
    bytes(event.aggregate_type.as_bytes());
    bytes(event.aggregate_id.as_bytes());
    bytes(&event.aggregate_version.to_le_bytes());
    bytes(event.event_type.as_bytes());
    bytes(&u64::from(event.major).to_le_bytes());
    bytes(&u64::from(event.minor).to_le_bytes());
    bytes(&event.timestamp.millis().to_le_bytes());
    bytes(event.correlation_id.as_bytes());
    bytes(event.causation_id.as_bytes());
    bytes(event.data.as_bytes());
    bytes(event.metadata.as_bytes());
    *hasher.finalize().as_bytes()
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// How many events were read.
    pub events: u64,
    /// The first damage, if any: where, and what is wrong there.
    pub damage: Option<Damage>,
}

/// The first place where a partition's log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The position where it shows.
    pub position: u64,
    /// What is wrong.
    pub what: &'static str,
}

/// Reads a partition's whole log and checks positions, versions and the chain. `progress` is told
/// how many events have been checked.
pub async fn verify(
    store: &dyn Store,
    partition: u16,
    mut progress: impl FnMut(u64),
) -> Result<Verified, Error> {
    let mut verified = Verified::default();
    let mut previous = [0; 32];
    let mut versions = std::collections::HashMap::new();
    loop {
        let page = store.read_from(partition, verified.events, 1_000).await?;
        if page.is_empty() {
            break;
        }
        for event in &page {
            let what = fault_of(event, verified.events, &previous, &mut versions);
            if let Some(what) = what {
                verified.damage = Some(Damage { position: verified.events + 1, what });
                return Ok(verified);
            }
            previous = event.hash;
            verified.events += 1;
        }
        progress(verified.events);
    }
    let head = store.head(partition).await?;
    if head.position != verified.events {
        verified.damage =
            Some(Damage { position: verified.events + 1, what: "the log ends before its head" });
    }
    Ok(verified)
}

fn fault_of(
    event: &StoredEvent,
    before: u64,
    previous: &[u8; 32],
    versions: &mut std::collections::HashMap<i64, u64>,
) -> Option<&'static str> {
    if event.position != before + 1 {
        return Some("a position is missing");
    }
    if link(previous, event) != event.hash {
        return Some("the hash does not fit the event and what is before it");
    }
    let version = versions.entry(event.stream).or_default();
    *version += 1;
    (event.aggregate_version != *version).then_some("an aggregate's version is missing")
}
