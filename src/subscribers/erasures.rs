//! `erasures`: what an erasure leads to. The person's key is destroyed, so that nothing personal can
//! be read any more; the password goes; what the person sold is withdrawn.
//!
//! `email-claims` gives the address back, and `session-endings` ends the logins.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::{CommandContext, CommandError, Unavailable};
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::caught_up::{Behind, FirstHeads};
use super::command_failed;
use crate::domain::caller::Caller;
use crate::domain::listing::{Listing, ListingCommand, ListingRejection};
use crate::identity::password;
use crate::projections::{LISTINGS_VIEW, ListingFilter, ReadModels};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "erasures";
/// What it listens to.
pub const TOPICS: &[&str] = &["user.erased"];

/// Listings looked at in one go.
const PAGE: u32 = 100;

/// The handler.
pub struct Erasures {
    reads: ReadModels,
    first_heads: FirstHeads,
}

/// Destroys a person's key and password. Twice is once.
pub async fn forget(runtime: &Runtime, person: Uuid) -> Result<(), Unavailable> {
    runtime.control().forget(person).await?;
    runtime.control().put(vec![password::no_row(person)]).await
}

impl Erasures {
    /// Finds what somebody sold in these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self { reads, first_heads: FirstHeads::default() }
    }

    async fn withdraw(&self, runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
        // The next person's key does not wait for it.
        let caught_up = self.first_heads.caught_up(runtime, event, &[LISTINGS_VIEW]).await;
        caught_up.map_err(Behind::alone)?;
        let seller_id = Some(event.aggregate_id);
        let filter = ListingFilter { seller_id, drafts: true, ..ListingFilter::default() };
        let mut before = None::<(i64, Uuid)>;
        loop {
            let rows = self.reads.listings(&filter, before, PAGE).await?;
            for row in &rows {
                archive(runtime, event, row.listing_id).await?;
            }
            match rows.last() {
                Some(last) => before = Some((last.created_at.millis(), last.listing_id)),
                None => return Ok(()),
            }
        }
    }
}

async fn archive(runtime: &Runtime, event: &StoredEvent, listing: Uuid) -> Result<(), Failure> {
    let context = CommandContext::because_of(event, "withdraw-listing", listing);
    let now = runtime.world().now();
    let command = ListingCommand::Archive { caller: Caller::System, now };
    match runtime.aggregate::<Listing>().send(listing, command, context, |_| ()).await {
        Ok(_) | Err(CommandError::Rejected { rejection: ListingRejection::Archived, .. }) => Ok(()),
        Err(error) => Err(command_failed(&error)),
    }
}

#[async_trait]
impl Handler for Erasures {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let forgotten = forget(runtime, event.aggregate_id).await;
        forgotten.map_err(|error| Failure::system(error.to_string()))?;
        self.withdraw(runtime, event).await
    }
}
