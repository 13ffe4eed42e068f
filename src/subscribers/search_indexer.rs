//! `search-indexer`: says that the search finds a listing as it is now.
//!
//! The index itself is a projection, which tells nobody anything. This handler looks whether the
//! index has what an event brought, and records it with the listing's entry, which knows the versions
//! that were recorded before: an event that comes twice, and an index that is rebuilt, lead to nothing
//! new. Of the changes of one listing in a batch only the last is told of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{BatchHandler, BatchPolicy, Subscription};
use tokio::time::Instant;
use uuid::Uuid;

use super::caught_up::caught_up;
use super::command_failed;
use crate::domain::ids::{ListingId, SearchEntryId};
use crate::domain::search_entry::{SearchEntry, SearchEntryCommand};
use crate::projections::search::Indexed;
use crate::projections::{LISTINGS_VIEW, ReadModels, SEARCH_VIEW};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "search-indexer";
/// What it listens to: whatever changes what is found.
pub const TOPICS: &[&str] = crate::projections::search::TOPICS;

/// Events at a time.
const BATCH: BatchPolicy = BatchPolicy { batch_size: 256, max_wait: Duration::ZERO };
/// How much time a record takes of all the indexer's, and for how long it may run ahead of that: a
/// thousand records at once are told of at once, and then a thousand a second. What changes again
/// before its turn is told of once.
const RECORD_TIME: Duration = Duration::from_millis(1);
const AHEAD_MAX: Duration = Duration::from_secs(1);

/// The handler.
pub struct SearchIndexer {
    reads: ReadModels,
    pace: Pace,
}

/// Keeps what is told of, in all lanes together, from taking more than a share of what the service can
/// do: the search finds things without it.
struct Pace {
    /// Up to when the records so far have taken their time.
    until: Mutex<Instant>,
}

impl Pace {
    fn new() -> Self {
        Self { until: Mutex::new(Instant::now()) }
    }

    /// Takes the time of so many records, and says how long whoever made them has to wait.
    fn take(&self, records: usize) -> Duration {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = now.max(*until) + RECORD_TIME * u32::try_from(records).unwrap_or(u32::MAX);
        until.duration_since(now).saturating_sub(AHEAD_MAX)
    }
}

impl SearchIndexer {
    /// One that looks into these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self { reads, pace: Pace::new() }
    }

    async fn record(&self, runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
        let listing_id = ListingId(event.aggregate_id);
        let id = SearchEntryId::of(listing_id).uuid();
        let context = CommandContext::because_of(event, NAME, id);
        let command = SearchEntryCommand::Record {
            listing_id,
            listing_version: event.aggregate_version,
            now: runtime.world().now(),
        };
        let sent = runtime.aggregate::<SearchEntry>().send(id, command, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}

/// Whether the index has just what an event brought, for everybody to find. Not: it is past it, or
/// nobody is to find it yet.
fn has_just(event: &StoredEvent, indexed: Option<&Indexed>) -> Result<bool, Failure> {
    match indexed {
        Some(indexed) if indexed.version >= event.aggregate_version => {
            Ok(indexed.version == event.aggregate_version && !indexed.is_draft)
        }
        _ => {
            let detail =
                "the index has passed this event and does not have it: look at its letters";
            Err(Failure::transient(detail))
        }
    }
}

#[async_trait]
impl BatchHandler for SearchIndexer {
    async fn handle_batch(
        &self,
        runtime: &Runtime,
        events: &[Arc<StoredEvent>],
    ) -> Result<(), Failure> {
        let mut newest: BTreeMap<Uuid, &StoredEvent> = BTreeMap::new();
        for event in events {
            newest.insert(event.aggregate_id, event);
        }
        let Some(last) = events.last() else { return Ok(()) };
        // What is found is in both. One that somebody has paused is no event's fault.
        let views = [SEARCH_VIEW, LISTINGS_VIEW];
        caught_up(runtime, &views, &[last.at()]).await?;
        let listings: Vec<_> = newest.keys().copied().collect();
        let indexed = self.reads.in_search(&listings).await?;
        let mut wanted = Vec::with_capacity(newest.len());
        for (listing, event) in newest {
            if has_just(event, indexed.get(&listing))? {
                wanted.push(self.record(runtime, event));
            }
        }
        // All at once, so that they share the journal's commits.
        let recorded = join_all(wanted).await;
        tokio::time::sleep(self.pace.take(recorded.len())).await;
        recorded.into_iter().collect()
    }
}

/// The subscription.
pub fn subscription(indexer: SearchIndexer) -> Subscription {
    Subscription::batches(NAME, "listings", TOPICS, BATCH, Arc::new(indexer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thousand_at_once_and_then_a_thousand_a_second() {
        let pace = Pace::new();
        assert_eq!(pace.take(1_000), Duration::ZERO);
        assert_eq!(pace.take(250), Duration::from_millis(250));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(pace.take(1), Duration::from_millis(1));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(pace.take(1_001), Duration::from_millis(1), "what was not used is not saved up");
        assert_eq!(pace.take(0), Duration::from_millis(1));
    }
}
