//! The hash chain: each event's hash covers the hash before it and every stored column, so that
//! nothing can be changed, removed or reordered unseen. The last bytes of it check the row alone,
//! so that every reader knows at once, and without the row before, whether it reads what was
//! written.
//!
//! `digest(n) = BLAKE3(columns)`, `chain(n) = BLAKE3(hash(n-1) ‖ digest(n))`, 24 bytes of it;
//! `check(n) = BLAKE3(chain(n) ‖ digest(n))`, 8 bytes of it; `hash(n) = chain(n) ‖ check(n)`. The
//! first follows 32 zero bytes.
//!
//! The columns: integers are 8 bytes little-endian. First partition and position, just so; then,
//! each preceded by its length in bytes (an integer too): event id, stream, aggregate type,
//! aggregate id, aggregate version, event type, major, minor, timestamp in milliseconds,
//! correlation id, causation id, data, metadata. Never change.
//! Personal fields are hashed sealed, so that an erasure leaves the chain whole.

use std::collections::HashMap;
use std::sync::Arc;

use crate::event::StoredEvent;
use crate::journal::{Error, Store};

/// How much of a hash continues the chain; the rest checks the row.
const CHAIN_BYTES: usize = 24;

type Hash = [u8; 32];

fn digest(event: &StoredEvent) -> Hash {
    let mut hasher = blake3::Hasher::new();
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

fn of_both(first: &[u8], second: &Hash) -> Hash {
    *blake3::Hasher::new().update(first).update(second).finalize().as_bytes()
}

fn chained(previous: &Hash, digest: &Hash) -> Hash {
    let mut hash = of_both(previous, digest);
    let check = of_both(&hash[..CHAIN_BYTES], digest);
    hash[CHAIN_BYTES..].copy_from_slice(&check[..32 - CHAIN_BYTES]);
    hash
}

/// The hash of `event` behind an event with hash `previous`. The event's own `hash` is ignored.
pub fn link(previous: &Hash, event: &StoredEvent) -> Hash {
    chained(previous, &digest(event))
}

/// The digest of a row that is what was written, by its own check. That says nothing of the rows
/// before it.
fn checked(event: &StoredEvent) -> Result<Hash, Error> {
    let digest = digest(event);
    let check = of_both(&event.hash[..CHAIN_BYTES], &digest);
    if check[..32 - CHAIN_BYTES] == event.hash[CHAIN_BYTES..] {
        return Ok(digest);
    }
    Err(Error::Damaged(format!(
        "the event at {} is not what was written (as far as it can be read it is version {} of {} {})",
        event.at(),
        event.aggregate_version,
        event.aggregate_type,
        event.aggregate_id
    )))
}

/// The row, or what is wrong with it: every store passes every event that it reads through this.
pub fn intact(event: Arc<StoredEvent>) -> Result<Arc<StoredEvent>, Error> {
    checked(&event).map(|_| event)
}

/// A page of a partition's log behind `after` as far as it is whole: every row intact, no position
/// left out, each chained to the one before. An error says what is wrong with the first row; what
/// is wrong further on shows when it is read from there.
pub fn whole_page(
    partition: u16,
    after: u64,
    rows: impl IntoIterator<Item = Result<Arc<StoredEvent>, Error>>,
) -> Result<Vec<Arc<StoredEvent>>, Error> {
    let mut page: Vec<Arc<StoredEvent>> = Vec::new();
    for row in rows {
        let last = page.last();
        let position = last.map_or(after, |last| last.position) + 1;
        let checked = row.and_then(|event| {
            let digest = checked(&event)?;
            if event.position != position {
                return Err(missing(partition, position));
            }
            if last.is_some_and(|last| chained(&last.hash, &digest) != event.hash) {
                return Err(unchained(&event));
            }
            Ok(event)
        });
        match checked {
            Ok(event) => page.push(event),
            Err(error) if page.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(page)
}

fn missing(partition: u16, position: u64) -> Error {
    Error::Damaged(format!("the event at {partition}:{position} is missing"))
}

fn unchained(event: &StoredEvent) -> Error {
    Error::Damaged(format!("the event at {} does not follow from the one before it", event.at()))
}

/// Reads the end of a partition's log, up to `events` of it, and refuses one that is not whole: on
/// it everything new would rest.
pub async fn verify_tail(store: &dyn Store, partition: u16, events: u64) -> Result<(), Error> {
    let head = store.head(partition).await?;
    let mut after = head.position.saturating_sub(events);
    let mut last: Option<Arc<StoredEvent>> = None;
    while after < head.position {
        let page = store.read_from(partition, after, PAGE).await?;
        let Some(first) = page.first() else { return Err(missing(partition, after + 1)) };
        if last.is_some_and(|last| link(&last.hash, first) != first.hash) {
            return Err(unchained(first));
        }
        after = page.last().map_or(after, |event| event.position);
        last = page.last().cloned();
    }
    Ok(())
}

/// Events read at a time.
const PAGE: usize = 1_000;
/// So many damages are told of at most: with that many nobody mends row by row.
const DAMAGES_MAX: usize = 100;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// How many events are what was written.
    pub events: u64,
    /// The first damage, if any: where, and what is wrong there.
    pub damage: Option<Damage>,
    /// The damages behind it, in order; after a hundred the rest is not looked at.
    pub further: Vec<Damage>,
}

impl Verified {
    fn damaged(&mut self, position: u64, what: String) {
        let damage = Damage { position, what };
        match self.damage {
            None => self.damage = Some(damage),
            Some(_) => self.further.push(damage),
        }
    }
}

/// A place where a partition's log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The position where it shows.
    pub position: u64,
    /// What is wrong.
    pub what: String,
}

/// Reads a partition's whole log and checks positions, versions, rows and the chain. `progress` is
/// told how far it is.
pub async fn verify(
    store: &dyn Store,
    partition: u16,
    mut progress: impl FnMut(u64),
) -> Result<Verified, Error> {
    let head = store.head(partition).await?.position;
    let mut verified = Verified::default();
    let mut previous = Some([0; 32]);
    let mut versions = HashMap::new();
    let mut at = 0;
    while at < head && verified.further.len() < DAMAGES_MAX {
        let page = match store.read_from(partition, at, PAGE).await {
            Ok(page) if page.is_empty() => Err(missing(partition, at + 1)),
            Err(error @ Error::Database(_)) => return Err(error),
            page => page,
        };
        match page {
            Ok(page) => {
                at += page.len() as u64;
                verify_page(&mut verified, previous, &mut versions, &page);
                previous = page.last().map(|event| event.hash);
            }
            Err(error) => {
                at += 1;
                verified.damaged(at, error.to_string());
                previous = None;
            }
        }
        progress(at);
    }
    Ok(verified)
}

/// Within a page that was read everything is chained; its first event is not, to the one before.
fn verify_page(
    verified: &mut Verified,
    previous: Option<Hash>,
    versions: &mut HashMap<i64, u64>,
    page: &[Arc<StoredEvent>],
) {
    for (index, event) in page.iter().enumerate() {
        let before = versions.insert(event.stream, event.aggregate_version).unwrap_or_default();
        if index == 0 && previous.is_some_and(|previous| link(&previous, event) != event.hash) {
            verified.damaged(event.position, unchained(event).to_string());
        } else if event.aggregate_version != before + 1 && verified.damage.is_none() {
            // Behind another damage it would only say that once more.
            let what = "an aggregate's version is missing before it".to_owned();
            verified.damaged(event.position, what);
        }
        verified.events += 1;
    }
}
