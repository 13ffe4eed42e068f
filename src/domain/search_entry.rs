//! What the search has of a listing: an aggregate beside the listing, so that to be found is an event
//! of its own and does not change the version that the listing's seller works on.
//!
//! It remembers the last version that was indexed. Whoever tells it of that version again, because an
//! event came twice or the index was rebuilt, tells it nothing new.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;

use super::ids::ListingId;

/// What to do with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SearchEntryCommand {
    /// The search finds the listing as it was at this version.
    Record {
        /// The listing.
        listing_id: ListingId,
        /// Its version.
        listing_version: u64,
        /// When.
        now: Timestamp,
    },
}

impl Command for SearchEntryCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Record { .. } => "RecordIndexed",
        }
    }
}

souk_actors::events! {
    /// What happens to entries of the search.
    pub enum SearchEntryEvent in "listings" as "search-service" {
        /// The search finds a listing as it is now.
        Indexed(ListingIndexed) = "listing.indexed", "ListingIndexed", 1.0,
            ["search.index.updated"];
    }
}

/// The search finds a listing as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListingIndexed {
    /// The listing.
    pub listing_id: ListingId,
    /// Its version that is found; changes in between were overtaken.
    pub listing_version: u64,
    /// When.
    pub indexed_at: Timestamp,
}

/// What the search has of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchEntry {
    /// The last version of the listing that was indexed; 0: none was.
    pub listing_version: u64,
}

impl Aggregate for SearchEntry {
    const TYPE: &'static str = "search_entry";
    type Command = SearchEntryCommand;
    type Event = SearchEntryEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &SearchEntryCommand) -> Result<Vec<SearchEntryEvent>, NoRejection> {
        let SearchEntryCommand::Record { listing_id, listing_version, now } = command;
        if *listing_version <= self.listing_version {
            return Ok(Vec::new());
        }
        Ok(vec![SearchEntryEvent::Indexed(ListingIndexed {
            listing_id: *listing_id,
            listing_version: *listing_version,
            indexed_at: *now,
        })])
    }

    fn apply(&mut self, event: &SearchEntryEvent) {
        let SearchEntryEvent::Indexed(event) = event;
        self.listing_version = event.listing_version;
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{at, listing};

    fn record(listing_version: u64) -> SearchEntryCommand {
        SearchEntryCommand::Record { listing_id: listing(1), listing_version, now: at(0) }
    }

    #[test]
    fn a_version_is_indexed_once_and_never_an_older_one() {
        Scenario::<SearchEntry>::new()
            .when(record(1))
            .then_types(&["listing.indexed"])
            .when(record(1))
            .then([])
            .when(record(4))
            .then_types(&["listing.indexed"])
            .when(record(3))
            .then([]);
    }
}
