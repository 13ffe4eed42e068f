//! `seller-ratings`: tells sellers' ratings of reviews.
//!
//! | event | command |
//! | --- | --- |
//! | `review.created`, `review.restored` | the seller's rating has so many stars more |
//! | `review.hidden` | it has them no more |
//!
//! Keyed by the seller: the rating knows what it has been told by the last position of each partition,
//! so the events of one seller must come in their order.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use souk_actors::command::CommandContext;
use souk_actors::event::{Position, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::{command_failed, decode_failed};
use crate::domain::caller::Caller;
use crate::domain::ids::{ReviewId, UserId};
use crate::domain::review::ReviewEvent;
use crate::domain::user::rating::{LearntReview, RatingChange};
use crate::domain::user::{User, UserCommand};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "seller-ratings";
/// What it listens to.
pub const TOPICS: &[&str] = &["review.created", "review.hidden", "review.restored"];

/// The handler.
pub struct SellerRatings;

/// The seller.
pub fn key(event: &StoredEvent) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct About {
        reviewee_id: Uuid,
    }
    let about: Result<About, _> = serde_json::from_str(&event.data);
    Some(about.map_or(event.aggregate_id, |about| about.reviewee_id))
}

fn position(event: &StoredEvent) -> Position {
    Position { partition: event.partition, position: event.position }
}

/// The seller, and what there is to know.
fn news(change: &ReviewEvent, at: Position) -> Option<(UserId, LearntReview)> {
    let told = |seller: UserId, review_id: ReviewId, rating: u8, change: RatingChange| {
        Some((seller, LearntReview { review_id, change, rating, at }))
    };
    match change {
        ReviewEvent::Created(of) => {
            told(of.reviewee_id, of.review_id, of.rating, RatingChange::Added)
        }
        ReviewEvent::Restored(of) => {
            told(of.reviewee_id, of.review_id, of.rating, RatingChange::Added)
        }
        ReviewEvent::Hidden(of) => {
            told(of.reviewee_id, of.review_id, of.rating, RatingChange::Removed)
        }
        ReviewEvent::Replied(_) | ReviewEvent::ReplyEdited(_) => None,
    }
}

/// Whether the seller's rating has been told of an event, for whoever audits that it was.
pub async fn is_told(runtime: &Runtime, event: &StoredEvent) -> Result<bool, Failure> {
    let Some(seller) = key(event) else { return Ok(true) };
    let at = position(event);
    let knows = move |user: &User| {
        user.details.as_ref().is_some_and(|details| details.rating.has_learnt(at))
    };
    let read = runtime.aggregate::<User>().read_inside(seller, knows).await;
    Ok(read.map_err(|error| command_failed(&error))?.value)
}

#[async_trait]
impl Handler for SellerRatings {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let Some((seller, news)) = news(&change, position(event)) else { return Ok(()) };
        let context = CommandContext::because_of(event, "learn-review", seller.uuid());
        let command =
            UserCommand::LearnReview { caller: Caller::System, news, now: runtime.world().now() };
        let sent = runtime.aggregate::<User>().send(seller.uuid(), command, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;

    use super::*;

    #[test]
    fn what_happens_to_a_sellers_reviews_goes_through_one_lane() {
        let (review, seller) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let data = serde_json::json!({ "reviewee_id": seller });
        let event = stored_event("review.hidden", "review", review, &data);
        assert_eq!(key(&event), Some(seller));
        let unreadable = stored_event("review.hidden", "review", review, &serde_json::json!({}));
        assert_eq!(key(&unreadable), Some(review));
    }
}
