//! `search-indexer`: says that the search finds a listing as it is now.
//!
//! The index itself is a projection, which tells nobody anything. This handler looks whether the
//! index has what an event brought, and records it with the listing's entry, which knows the versions
//! that were recorded before: an event that comes twice, and an index that is rebuilt, lead to nothing
//! new. Of the changes of one listing in a batch only the last is told of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{BatchHandler, BatchPolicy, Subscription};
use uuid::Uuid;

use super::command_failed;
use crate::domain::ids::{ListingId, SearchEntryId};
use crate::domain::search_entry::{SearchEntry, SearchEntryCommand};
use crate::projections::{ReadModels, SEARCH_VIEW};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "search-indexer";
/// What it listens to: whatever changes what is found.
pub const TOPICS: &[&str] = crate::projections::search::TOPICS;

/// Events at a time.
const BATCH: BatchPolicy = BatchPolicy { batch_size: 64, max_wait: Duration::ZERO };
/// How long the index may take to have an event, before it is taken to be out of order.
const INDEXED_WITHIN: Duration = Duration::from_secs(10);

/// The handler.
pub struct SearchIndexer {
    reads: ReadModels,
}

impl SearchIndexer {
    /// One that looks into these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self { reads }
    }

    async fn record(&self, runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
        let listing_id = ListingId(event.aggregate_id);
        let indexed = self.reads.in_search(listing_id.uuid()).await?;
        let Some(indexed) = indexed.filter(|of| of.version >= event.aggregate_version) else {
            let detail =
                "the index has passed this event and does not have it: look at its letters";
            return Err(Failure::transient(detail));
        };
        if indexed.is_draft {
            return Ok(());
        }
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
        // An index that somebody has paused is no event's fault.
        if !runtime.subscriptions().wait_for(SEARCH_VIEW, last.at(), INDEXED_WITHIN).await {
            return Err(Failure::system("the index of the search does not keep up"));
        }
        for event in newest.into_values() {
            self.record(runtime, event).await?;
        }
        Ok(())
    }
}

/// The subscription.
pub fn subscription(indexer: SearchIndexer) -> Subscription {
    Subscription::batches(NAME, "listings", TOPICS, BATCH, Arc::new(indexer))
}
