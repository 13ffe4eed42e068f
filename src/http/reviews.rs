//! Reviews of orders, and what sellers say to them.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::command::Done;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, shown, split};
use super::body::{Fields, FromFields, Nothing, Reason, Valid};
use super::call::{Call, SignedIn, Staff};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id};
use super::problem::ApiError;
use super::users::{RatingBody, checked, missing as no_user};
use crate::domain::ids::{ListingId, OrderId, ReviewId, UserId};
use crate::domain::order::{Order, OrderDetails};
use crate::domain::review::{
    COMMENT_MAX, NewReview as Creation, Reply, Review, ReviewCommand, ReviewDetails, ReviewStatus,
    ReviewedOrder,
};
use crate::domain::user::User;
use crate::projections::{ReviewFilter, ReviewRow};

/// The projection that lists rest on.
const VIEW: &str = "reviews-view";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_reviews, create_review))
        .routes(routes!(get_review))
        .routes(routes!(reply_to_review, edit_reply))
        .routes(routes!(hide_review))
        .routes(routes!(restore_review))
        .routes(routes!(get_summary))
}

/// What a buyer thinks of an order.
#[derive(ToSchema)]
pub struct NewReview {
    /// The order; also as `order_id`.
    #[schema(value_type = Uuid)]
    pub transaction_id: OrderId,
    /// How many stars.
    #[schema(minimum = 1, maximum = 5)]
    pub rating: u8,
    /// In words.
    #[schema(min_length = 1, max_length = 4000, example = "Rides as new. One scratch.")]
    pub comment: String,
}

impl FromFields for NewReview {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let names = &["transaction_id", "transactionId", "order_id", "orderId"];
        let transaction_id = fields.parsed(names);
        let rating = fields.integer(&["rating"]).and_then(|rating| {
            let rating = u8::try_from(rating).ok().filter(|rating| (1..=5).contains(rating));
            if rating.is_none() {
                fields.error("rating", "out_of_range", "must be a whole number from 1 to 5");
            }
            rating
        });
        let comment =
            checked(fields, &["comment"], |check, text| check.lines("", text, COMMENT_MAX));
        Some(Self { transaction_id: transaction_id?, rating: rating?, comment: comment? })
    }
}

/// What a seller says to a review.
#[derive(ToSchema)]
pub struct NewReply {
    /// In words.
    #[schema(min_length = 1, max_length = 4000, example = "Thank you, and sorry for the scratch.")]
    pub reply: String,
}

impl FromFields for NewReply {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let words = |check: &mut crate::domain::text::Fields, text: &str| {
            check.lines("", text, COMMENT_MAX)
        };
        Some(Self { reply: checked(fields, &["reply"], words)? })
    }
}

/// A review.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReviewBody {
    /// The review.
    pub id: Uuid,
    /// The same.
    pub review_id: Uuid,
    /// The order, as a transaction.
    pub transaction_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// Who wrote it: the buyer.
    pub reviewer_id: Uuid,
    /// Whom it is about: the seller.
    pub reviewee_id: Uuid,
    /// The same.
    pub seller_id: Uuid,
    /// What was bought.
    pub listing_ids: Vec<Uuid>,
    /// How many stars.
    #[schema(minimum = 1, maximum = 5)]
    pub rating: u8,
    /// In the buyer's words; `[erased]` once the buyer is.
    pub comment: String,
    /// `PUBLISHED` or `HIDDEN`.
    #[schema(value_type = String, example = "PUBLISHED")]
    pub status: ReviewStatus,
    /// Why it is hidden, if it is: for those whom it concerns.
    pub hidden_reason: Option<String>,
    /// What the seller says to it.
    pub reply: Option<ReviewReplyBody>,
    /// When it was written.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The version; also the `ETag`.
    pub version: u64,
}

/// What a seller says to a review.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReviewReplyBody {
    /// In the seller's words; `[erased]` once the seller is.
    pub text: String,
    /// When it was written.
    #[schema(format = DateTime)]
    pub replied_at: String,
    /// When it was changed last.
    #[schema(format = DateTime)]
    pub edited_at: Option<String>,
}

impl From<&Reply> for ReviewReplyBody {
    fn from(reply: &Reply) -> Self {
        Self {
            text: shown(&reply.text, true),
            replied_at: reply.replied_at.to_string(),
            edited_at: reply.edited_at.map(|at| at.to_string()),
        }
    }
}

impl ReviewBody {
    fn new(details: &ReviewDetails) -> Self {
        let (id, order, seller) = (details.review_id, details.order_id, details.reviewee_id);
        Self {
            id: id.uuid(),
            review_id: id.uuid(),
            transaction_id: order.uuid(),
            order_id: order.uuid(),
            reviewer_id: details.reviewer_id.uuid(),
            reviewee_id: seller.uuid(),
            seller_id: seller.uuid(),
            listing_ids: details.listing_ids.iter().map(|listing| listing.uuid()).collect(),
            rating: details.rating,
            comment: shown(&details.comment, true),
            status: details.status,
            hidden_reason: details.hidden_reason.clone(),
            reply: details.reply.as_ref().map(ReviewReplyBody::from),
            created_at: details.created_at.to_string(),
            version: 0,
        }
    }
}

pub(super) fn view(review: &Review) -> Option<ReviewBody> {
    review.details.as_ref().map(ReviewBody::new)
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such review, or not for this caller")
}

fn finished(done: Done<Option<ReviewBody>>) -> Result<(ReviewBody, Done<()>), ApiError> {
    let (body, done) = split(done);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    Ok((body, done))
}

/// What the review must know of its order.
fn reviewed(details: &OrderDetails) -> ReviewedOrder {
    ReviewedOrder {
        order_id: details.order_id,
        buyer_id: details.buyer_id,
        seller_id: details.seller_id,
        listing_ids: details.items.iter().map(|item| item.listing_id).collect(),
        status: details.status,
        arrived_at: details.arrived_at(),
    }
}

/// Review an order
///
/// For its buyer, once, within 30 days of its delivery.
#[utoipa::path(post, path = "/reviews", tag = "reviews", request_body = NewReview,
    responses((status = 201, description = "The review", body = ReviewBody)))]
async fn create_review(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewReview>,
) -> Result<Answer<ReviewBody>, ApiError> {
    let NewReview { transaction_id, rating, comment } = valid.body;
    let orders = app.runtime().aggregate::<Order>();
    let look = |order: &Order| order.details.as_ref().map(reviewed);
    let order = orders.read(transaction_id.uuid(), look).await?.value;
    let order = order.ok_or_else(|| ApiError::not_found("there is no such order"))?;
    let review_id = ReviewId::of(order.order_id);
    let (caller, now) = (call.caller(), app.now());
    let new = Creation { caller, review_id, order, rating, comment, now };
    let context = call.context(&app, "reviews.create", "", &valid.canonical);
    let reviews = app.runtime().aggregate::<Review>();
    let create = ReviewCommand::Create(Box::new(new));
    let (body, done) = finished(reviews.send(review_id.uuid(), create, context, view).await?)?;
    Ok(Answer::created(&format!("/api/v1/reviews/{review_id}"), body).after(&done))
}

/// A review, if there is one that the caller may see.
async fn visible(app: &App, call: &Call, id: ReviewId) -> Result<ReviewBody, ApiError> {
    let caller = call.caller();
    let look = move |review: &Review| {
        let details = review.details.as_ref().filter(|details| details.may_be_seen_by(&caller))?;
        Some(ReviewBody::new(details))
    };
    let (body, _) = finished(app.runtime().aggregate::<Review>().read(id.uuid(), look).await?)?;
    Ok(body)
}

/// A review
///
/// One that is hidden is there for its writer, its seller and administrators.
#[utoipa::path(get, path = "/reviews/{id}", tag = "reviews", params(("id" = String, Path)),
    responses((status = 200, description = "The review", body = ReviewBody)))]
async fn get_review(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let body = visible(&app, &call, path_id(&id)?).await?;
    let version = body.version;
    Ok(Answer::ok(body).at_version(version, &theirs))
}

/// Reviews
///
/// Of a seller, of a listing, or all there are.
#[utoipa::path(get, path = "/reviews", tag = "reviews",
    params(("seller_id" = Option<String>, Query), ("listing_id" = Option<String>, Query),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first", body = Page<ReviewBody>)))]
async fn list_reviews(
    State(app): State<App>,
    _: Call,
    params: Params,
) -> Result<Answer<Page<ReviewBody>>, ApiError> {
    let filter = ReviewFilter {
        seller_id: params.parsed::<UserId>("seller_id")?.map(UserId::uuid),
        listing_id: params.parsed::<ListingId>("listing_id")?.map(ListingId::uuid),
    };
    app.includes(VIEW, &params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let mut rows = app.reads().reviews(&filter, before, limit + 1).await?;
    let cursor = |row: &ReviewRow| (row.created_at.millis(), row.review_id);
    let next_cursor = params.cut(&app, &mut rows, limit, cursor);
    let mut data = Vec::with_capacity(rows.len());
    for row in rows {
        // The words are sealed: only the review itself has them. It may be hidden by now.
        let read = app.runtime().aggregate::<Review>().read(row.review_id, view).await?;
        let body = read.value.filter(|body| body.status == ReviewStatus::Published);
        data.extend(body.map(|body| ReviewBody { version: read.version, ..body }));
    }
    let page = Page { data, has_more: next_cursor.is_some(), next_cursor };
    Ok(params.with_next(page).projected(&app, VIEW))
}

async fn change(
    app: &App,
    call: &Call,
    id: &str,
    operation: &str,
    canonical: &[u8],
    command: ReviewCommand,
) -> Result<Answer<ReviewBody>, ApiError> {
    let id: ReviewId = path_id(id)?;
    let context = call.change_context(app, operation, &id.to_string(), canonical);
    let reviews = app.runtime().aggregate::<Review>();
    let (body, done) = finished(reviews.send(id.uuid(), command, context, view).await?)?;
    Ok(Answer::ok(body).after(&done))
}

/// Reply to a review
///
/// For the seller, once; within 24 hours the reply can be changed.
#[utoipa::path(post, path = "/reviews/{id}/reply", tag = "reviews", params(("id" = String, Path)),
    request_body = NewReply,
    responses((status = 200, description = "The review as it is now", body = ReviewBody)))]
async fn reply_to_review(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<NewReply>,
) -> Result<Answer<ReviewBody>, ApiError> {
    let (caller, now) = (call.caller(), app.now());
    let command = ReviewCommand::Reply { caller, text: valid.body.reply, now };
    change(&app, &call, &id, "reviews.reply", &valid.canonical, command).await
}

/// Change a reply
///
/// For the seller, within 24 hours of the reply.
#[utoipa::path(put, path = "/reviews/{id}/reply", tag = "reviews", params(("id" = String, Path)),
    request_body = NewReply,
    responses((status = 200, description = "The review as it is now", body = ReviewBody)))]
async fn edit_reply(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<NewReply>,
) -> Result<Answer<ReviewBody>, ApiError> {
    let (caller, now) = (call.caller(), app.now());
    let command = ReviewCommand::EditReply { caller, text: valid.body.reply, now };
    change(&app, &call, &id, "reviews.edit_reply", &valid.canonical, command).await
}

/// Hide a review
///
/// It does not count in the seller's rating then.
#[utoipa::path(post, path = "/admin/reviews/{id}/hide", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The review as it is now", body = ReviewBody)))]
async fn hide_review(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ReviewBody>, ApiError> {
    let reason = valid.body.reason.unwrap_or_default();
    let command = ReviewCommand::Hide { caller: call.caller(), reason, now: app.now() };
    change(&app, &call, &id, "reviews.hide", &valid.canonical, command).await
}

/// Show a hidden review again
#[utoipa::path(post, path = "/admin/reviews/{id}/restore", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The review as it is now", body = ReviewBody)))]
async fn restore_review(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<ReviewBody>, ApiError> {
    let command = ReviewCommand::Restore { caller: call.caller(), now: app.now() };
    change(&app, &call, &id, "reviews.restore", &valid.canonical, command).await
}

/// A seller's rating
///
/// How many reviews count, their average to two decimals, and how many gave how many stars.
#[utoipa::path(get, path = "/users/{id}/reviews/summary", tag = "reviews",
    params(("id" = String, Path)),
    responses((status = 200, description = "The rating", body = RatingBody)))]
async fn get_summary(
    State(app): State<App>,
    _: Call,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user: UserId = path_id(&id)?;
    let look = |user: &User| user.details.as_ref().map(|details| RatingBody::new(&details.rating));
    let read = app.runtime().aggregate::<User>().read(user.uuid(), look).await?;
    let body = read.value.ok_or_else(no_user)?;
    Ok(Answer::ok(body).at_version(read.version, &theirs))
}
