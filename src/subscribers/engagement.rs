//! `engagement`: counts what people do towards their scores.
//!
//! | event | whose score | doing |
//! | --- | --- | --- |
//! | `user.email_verified` | the user's | `email_verified` |
//! | `user.contact_updated` with a number | the user's | `phone_added` |
//! | `seller.verified` | the seller's | `seller_verified` |
//! | `listing.created` unless it is a draft, `listing.published` | the seller's | `listing_published` |
//! | `order.delivered` | the buyer's | `order_received` |
//! | `review.created` | the reviewer's | `review_written` |
//!
//! It listens to nothing of a purchase before the goods have arrived: a busy market places orders by the
//! thousand a second, and what came to nothing counts for nothing.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::aggregate::Aggregate as _;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;

use super::{command_failed, decode_failed};
use crate::domain::engagement::{Doing, Engagement, EngagementCommand};
use crate::domain::ids::{EngagementId, UserId};
use crate::domain::listing::{Listing, ListingEvent};
use crate::domain::order::Order;
use crate::domain::review::{Review, ReviewEvent};
use crate::domain::user::{User, UserEvent, UserStatus};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "engagement";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "user.email_verified",
    "user.contact_updated",
    "seller.verified",
    "listing.created",
    "listing.published",
    "order.delivered",
    "review.created",
];

/// The handler.
pub struct Engagements;

/// What somebody did with their own account.
fn by_user(event: UserEvent) -> Option<(UserId, Doing)> {
    match event {
        UserEvent::EmailVerified(event) => Some((event.user_id, Doing::EmailVerified)),
        UserEvent::ContactUpdated(event) if event.phone.is_some() => {
            Some((event.user_id, Doing::PhoneAdded))
        }
        UserEvent::SellerVerified(event) => Some((event.user_id, Doing::SellerVerified)),
        _ => None,
    }
}

fn by_seller(event: ListingEvent) -> Option<(UserId, Doing)> {
    match event {
        ListingEvent::Created(event) if !event.draft => {
            Some((event.seller_id, Doing::ListingPublished))
        }
        ListingEvent::Published(event) => Some((event.seller_id, Doing::ListingPublished)),
        _ => None,
    }
}

/// Whose score an event counts towards, and as what.
async fn counts(
    runtime: &Runtime,
    event: &StoredEvent,
) -> Result<Option<(UserId, Doing)>, Failure> {
    let journal = runtime.journal();
    Ok(match &*event.aggregate_type {
        User::TYPE => by_user(journal.decode(event).await.map_err(decode_failed)?),
        Listing::TYPE => by_seller(journal.decode(event).await.map_err(decode_failed)?),
        Review::TYPE => match journal.decode(event).await.map_err(decode_failed)? {
            ReviewEvent::Created(event) => Some((event.reviewer_id, Doing::ReviewWritten)),
            _ => None,
        },
        Order::TYPE => {
            let buyer = |order: &Order| order.details.as_ref().map(|details| details.buyer_id);
            let read = runtime.aggregate::<Order>().read_inside(event.aggregate_id, buyer).await;
            let buyer = read.map_err(|error| command_failed(&error))?.value;
            buyer.map(|buyer| (buyer, Doing::OrderReceived))
        }
        _ => None,
    })
}

/// Whether somebody is there whose score is worth keeping.
async fn is_here(runtime: &Runtime, user: UserId) -> Result<bool, Failure> {
    let is_here = |user: &User| {
        user.details.as_ref().is_some_and(|details| details.status != UserStatus::Erased)
    };
    let read = runtime.aggregate::<User>().read_inside(user.uuid(), is_here).await;
    Ok(read.map_err(|error| command_failed(&error))?.value)
}

#[async_trait]
impl Handler for Engagements {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let Some((user_id, doing)) = counts(runtime, event).await? else { return Ok(()) };
        if !is_here(runtime, user_id).await? {
            return Ok(());
        }
        let (subject_id, now) = (event.aggregate_id, runtime.world().now());
        let record = EngagementCommand::Record { user_id, doing, subject_id, now };
        let score = EngagementId::of(user_id).uuid();
        let context = CommandContext::because_of(event, "record-engagement", score);
        let sent = runtime.aggregate::<Engagement>().send(score, record, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}
