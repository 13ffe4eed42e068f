//! Reviews: what a buyer thinks of an order, and what its seller says to that. The id follows from
//! the order, so an order has one.
//!
//! How the order stands is looked up first and travels in the command. Administrators can hide a
//! review, and show it again; the seller's rating follows ([`crate::domain::user::rating`]).

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::{ListingId, OrderId, ReviewId, UserId};
use super::order::OrderStatus;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};

/// The longest comment, and the longest reply.
pub const COMMENT_MAX: usize = 4_000;
/// How long after its arrival an order can be reviewed.
pub const REVIEWED_WITHIN: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long a reply can be changed.
pub const REPLY_EDITED_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// How a review stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReviewStatus {
    /// Everybody can read it, and it counts.
    Published,
    /// An administrator has hidden it, and it does not count.
    Hidden,
}

/// What the door found out about the order.
#[derive(Debug, Clone, PartialEq)]
pub struct ReviewedOrder {
    /// The order.
    pub order_id: OrderId,
    /// Who bought.
    pub buyer_id: UserId,
    /// Who sold.
    pub seller_id: UserId,
    /// What was bought.
    pub listing_ids: Vec<ListingId>,
    /// How it stands.
    pub status: OrderStatus,
    /// When it arrived, if it did.
    pub arrived_at: Option<Timestamp>,
}

/// A new review.
#[derive(Debug, Clone, PartialEq)]
pub struct NewReview {
    /// Who asks.
    pub caller: Caller,
    /// The new review: [`ReviewId::of`] the order.
    pub review_id: ReviewId,
    /// What it is about.
    pub order: ReviewedOrder,
    /// From 1 to 5.
    pub rating: u8,
    /// In the buyer's words.
    pub comment: String,
    /// When.
    pub now: Timestamp,
}

/// What to do with a review.
#[derive(Debug, Clone, PartialEq)]
pub enum ReviewCommand {
    /// Publish a new one.
    Create(Box<NewReview>),
    /// Answer it in public; once.
    Reply {
        /// Who asks: the seller.
        caller: Caller,
        /// In the seller's words.
        text: String,
        /// When.
        now: Timestamp,
    },
    /// Change that answer, for a day.
    EditReply {
        /// Who asks: the seller.
        caller: Caller,
        /// In the seller's words.
        text: String,
        /// When.
        now: Timestamp,
    },
    /// Show it to nobody but those it concerns.
    Hide {
        /// Who asks.
        caller: Caller,
        /// Why.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Show it to everybody again.
    Restore {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
}

impl Command for ReviewCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "CreateReview",
            Self::Reply { .. } => "ReplyToReview",
            Self::EditReply { .. } => "EditReviewReply",
            Self::Hide { .. } => "HideReview",
            Self::Restore { .. } => "RestoreReview",
        }
    }
}

souk_actors::events! {
    /// What happens to reviews.
    pub enum ReviewEvent in "reviews" as "review-service" {
        /// There is a new one.
        Created(ReviewCreated) = "review.created", "ReviewCreated", 1.0, [];
        /// The seller has answered.
        Replied(ReviewReplied) = "review.replied", "ReviewReplied", 1.0, [];
        /// The seller has changed the answer.
        ReplyEdited(ReviewReplied) = "review.reply_edited", "ReviewReplyEdited", 1.0, [];
        /// An administrator has hidden it.
        Hidden(ReviewHidden) = "review.hidden", "ReviewHidden", 1.0, [];
        /// An administrator has shown it again.
        Restored(ReviewRestored) = "review.restored", "ReviewRestored", 1.0, [];
    }
}

/// There is a new review.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReviewCreated {
    /// The review.
    pub review_id: ReviewId,
    /// The order, as a transaction.
    pub transaction_id: OrderId,
    /// The order.
    pub order_id: OrderId,
    /// Who wrote it: the buyer.
    pub reviewer_id: UserId,
    /// Whom it is about: the seller.
    pub reviewee_id: UserId,
    /// What was bought.
    pub listing_ids: Vec<ListingId>,
    /// From 1 to 5.
    #[schemars(range(min = 1, max = 5))]
    pub rating: u8,
    /// In the buyer's words.
    pub comment: Personal<String>,
    /// When.
    pub created_at: Timestamp,
}

/// The seller's answer to a review.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReviewReplied {
    /// The review.
    pub review_id: ReviewId,
    /// Who answers: the seller.
    pub reviewee_id: UserId,
    /// In the seller's words.
    pub reply: Personal<String>,
    /// When.
    pub replied_at: Timestamp,
}

/// A review was hidden.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReviewHidden {
    /// The review.
    pub review_id: ReviewId,
    /// Whom it is about: the seller.
    pub reviewee_id: UserId,
    /// What does not count any more, from 1 to 5.
    #[schemars(range(min = 1, max = 5))]
    pub rating: u8,
    /// Why.
    pub reason: String,
    /// When.
    pub hidden_at: Timestamp,
}

/// A hidden review is shown again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReviewRestored {
    /// The review.
    pub review_id: ReviewId,
    /// Whom it is about: the seller.
    pub reviewee_id: UserId,
    /// What counts again, from 1 to 5.
    #[schemars(range(min = 1, max = 5))]
    pub rating: u8,
    /// When.
    pub restored_at: Timestamp,
}

rejections! {
    /// Why a review refuses a command.
    pub enum ReviewRejection {
        /// Never written.
        NotFound = "not_found", "there is no such review";
        /// Not theirs to ask.
        Forbidden = "forbidden",
            "only the buyer reviews an order, only its seller replies, and administrators hide";
        /// A second review of one order.
        AlreadyReviewed = "already_reviewed", "this order has been reviewed";
        /// Too early, or never to be.
        OrderNotCompleted = "order_not_completed",
            "an order can be reviewed once it has been delivered";
        /// Too late.
        WindowClosed = "review_window_closed",
            "an order can be reviewed for 30 days after its delivery";
        /// A second reply.
        AlreadyReplied = "already_replied",
            "this review has a reply; change that with PUT, for 24 hours";
        /// Nothing to change.
        NotReplied = "not_replied", "this review has no reply yet; write one with POST";
        /// Too late to change it.
        ReplyClosed = "reply_window_closed", "a reply can be changed for 24 hours";
        /// Nobody would read the reply.
        Hidden = "review_hidden", "this review is hidden";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(ReviewRejection);

/// A review, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Review {
    /// Everything about it, once written.
    pub details: Option<ReviewDetails>,
}

/// What is known of a review.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReviewDetails {
    /// The review.
    pub review_id: ReviewId,
    /// The order.
    pub order_id: OrderId,
    /// Who wrote it.
    pub reviewer_id: UserId,
    /// Whom it is about.
    pub reviewee_id: UserId,
    /// What was bought.
    pub listing_ids: Vec<ListingId>,
    /// From 1 to 5.
    pub rating: u8,
    /// In the buyer's words.
    pub comment: Personal<String>,
    /// How it stands.
    pub status: ReviewStatus,
    /// Why it is hidden, if it is.
    pub hidden_reason: Option<String>,
    /// The seller's answer.
    pub reply: Option<Reply>,
    /// When it was written.
    pub created_at: Timestamp,
}

/// A seller's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// In the seller's words.
    pub text: Personal<String>,
    /// When it was written.
    pub replied_at: Timestamp,
    /// When it was changed last.
    pub edited_at: Option<Timestamp>,
}

type Decision = Result<Vec<ReviewEvent>, ReviewRejection>;

impl Aggregate for Review {
    const TYPE: &'static str = "review";
    type Command = ReviewCommand;
    type Event = ReviewEvent;
    type Rejection = ReviewRejection;

    fn decide(&self, command: &ReviewCommand) -> Decision {
        if let ReviewCommand::Create(new) = command {
            return self.create(new);
        }
        let details = self.details.as_ref().ok_or(ReviewRejection::NotFound)?;
        match command {
            ReviewCommand::Create(_) => Err(ReviewRejection::AlreadyReviewed),
            ReviewCommand::Reply { caller, text, now } => details.reply(caller, text, *now),
            ReviewCommand::EditReply { caller, text, now } => {
                details.edit_reply(caller, text, *now)
            }
            ReviewCommand::Hide { caller, reason, now } => details.hide(caller, reason, *now),
            ReviewCommand::Restore { caller, now } => details.restore(caller, *now),
        }
    }

    fn apply(&mut self, event: &ReviewEvent) {
        match (event, &mut self.details) {
            (ReviewEvent::Created(event), details) => *details = Some(ReviewDetails::new(event)),
            (event, Some(details)) => details.apply(event),
            (_, None) => {}
        }
    }
}

impl Review {
    fn create(&self, new: &NewReview) -> Decision {
        let order = &new.order;
        if !new.caller.is(order.buyer_id) {
            return Err(ReviewRejection::Forbidden);
        }
        if self.details.is_some() {
            return Err(ReviewRejection::AlreadyReviewed);
        }
        let arrived_at = match (order.status, order.arrived_at) {
            (OrderStatus::Delivered | OrderStatus::Completed, Some(at)) => at,
            _ => return Err(ReviewRejection::OrderNotCompleted),
        };
        if new.now > arrived_at.plus(REVIEWED_WITHIN) {
            return Err(ReviewRejection::WindowClosed);
        }
        let mut fields = Fields::default();
        let in_range = (1..=5).contains(&new.rating);
        fields.require(in_range, "/rating", "out_of_range", "must be from 1 to 5");
        let comment = fields.lines("/comment", &new.comment, COMMENT_MAX);
        fields.finish()?;
        Ok(vec![ReviewEvent::Created(ReviewCreated {
            review_id: new.review_id,
            transaction_id: order.order_id,
            order_id: order.order_id,
            reviewer_id: order.buyer_id,
            reviewee_id: order.seller_id,
            listing_ids: order.listing_ids.clone(),
            rating: new.rating,
            comment: Personal::new(order.buyer_id.uuid(), comment),
            created_at: new.now,
        })])
    }
}

impl ReviewDetails {
    fn new(event: &ReviewCreated) -> Self {
        Self {
            review_id: event.review_id,
            order_id: event.order_id,
            reviewer_id: event.reviewer_id,
            reviewee_id: event.reviewee_id,
            listing_ids: event.listing_ids.clone(),
            rating: event.rating,
            comment: event.comment.clone(),
            status: ReviewStatus::Published,
            hidden_reason: None,
            reply: None,
            created_at: event.created_at,
        }
    }

    /// Whether somebody may read it.
    pub fn may_be_seen_by(&self, caller: &Caller) -> bool {
        self.status == ReviewStatus::Published
            || caller.is_staff()
            || caller.is(self.reviewer_id)
            || caller.is(self.reviewee_id)
    }

    fn reply(&self, caller: &Caller, text: &str, now: Timestamp) -> Decision {
        let replied = self.words(caller, text, now)?;
        match self.reply {
            Some(_) => Err(ReviewRejection::AlreadyReplied),
            None => Ok(vec![ReviewEvent::Replied(replied)]),
        }
    }

    fn edit_reply(&self, caller: &Caller, text: &str, now: Timestamp) -> Decision {
        let edited = self.words(caller, text, now)?;
        let reply = self.reply.as_ref().ok_or(ReviewRejection::NotReplied)?;
        if now > reply.replied_at.plus(REPLY_EDITED_WITHIN) {
            return Err(ReviewRejection::ReplyClosed);
        }
        if reply.text == edited.reply {
            return Ok(Vec::new());
        }
        Ok(vec![ReviewEvent::ReplyEdited(edited)])
    }

    /// The seller's words, if the caller is the seller and there is anybody to read them.
    fn words(
        &self,
        caller: &Caller,
        text: &str,
        now: Timestamp,
    ) -> Result<ReviewReplied, ReviewRejection> {
        if !caller.is(self.reviewee_id) {
            return Err(ReviewRejection::Forbidden);
        }
        if self.status == ReviewStatus::Hidden {
            return Err(ReviewRejection::Hidden);
        }
        let mut fields = Fields::default();
        let text = fields.lines("/reply", text, COMMENT_MAX);
        fields.finish()?;
        Ok(ReviewReplied {
            review_id: self.review_id,
            reviewee_id: self.reviewee_id,
            reply: Personal::new(self.reviewee_id.uuid(), text),
            replied_at: now,
        })
    }

    fn hide(&self, caller: &Caller, reason: &str, now: Timestamp) -> Decision {
        if !caller.is_staff() {
            return Err(ReviewRejection::Forbidden);
        }
        if self.status == ReviewStatus::Hidden {
            return Ok(Vec::new());
        }
        let mut fields = Fields::default();
        let reason = fields.line("/reason", reason, text::REASON_MAX);
        fields.finish()?;
        Ok(vec![ReviewEvent::Hidden(ReviewHidden {
            review_id: self.review_id,
            reviewee_id: self.reviewee_id,
            rating: self.rating,
            reason,
            hidden_at: now,
        })])
    }

    fn restore(&self, caller: &Caller, now: Timestamp) -> Decision {
        if !caller.is_staff() {
            return Err(ReviewRejection::Forbidden);
        }
        if self.status == ReviewStatus::Published {
            return Ok(Vec::new());
        }
        Ok(vec![ReviewEvent::Restored(ReviewRestored {
            review_id: self.review_id,
            reviewee_id: self.reviewee_id,
            rating: self.rating,
            restored_at: now,
        })])
    }

    fn apply(&mut self, event: &ReviewEvent) {
        match event {
            ReviewEvent::Created(_) => {}
            ReviewEvent::Replied(event) => {
                let (text, replied_at) = (event.reply.clone(), event.replied_at);
                self.reply = Some(Reply { text, replied_at, edited_at: None });
            }
            ReviewEvent::ReplyEdited(event) => {
                if let Some(reply) = &mut self.reply {
                    reply.text = event.reply.clone();
                    reply.edited_at = Some(event.replied_at);
                }
            }
            ReviewEvent::Hidden(event) => {
                self.status = ReviewStatus::Hidden;
                self.hidden_reason = Some(event.reason.clone());
            }
            ReviewEvent::Restored(_) => {
                self.status = ReviewStatus::Published;
                self.hidden_reason = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
