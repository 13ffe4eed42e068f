//! What a person may ask for: all that is stored of them, and that it be forgotten.
//!
//! An erasure is an event of the user; what it leads to is done by subscribers (`erasures`,
//! `session-endings`, `email-claims`). The key is destroyed here too, before the answer, so that who is
//! told that it is done can rely on it.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::address_book::{self, SavedAddressBody};
use super::after_sales::{self, DisputeBody, ReturnBody};
use super::analytics::{self, ActionBody};
use super::answer::{Answer, nothing_after};
use super::api_keys;
use super::body::{Fields, FromFields, Reason, Unread};
use super::call::{Call, SignedIn};
use super::interests::{FavouriteBody, FollowedBody, with_covers};
use super::ledger::{self, PayoutBody};
use super::listings::{self, ListingBody};
use super::loyalty::{self, LoyaltyBody};
use super::notifications::{self, NotificationBody};
use super::orders::{self, OrderBody, OrderSummary};
use super::pages::{self, PAGE};
use super::params::path_id;
use super::passwords::confirmed;
use super::peer::Peer;
use super::preferences::{self, PreferencesBody};
use super::problem::{ApiError, FieldProblem};
use super::promotions::{self, PromotionBody};
use super::reviews::{self, ReviewBody};
use super::service_tokens::ServiceTokenBody;
use super::sessions::{self, SessionBody};
use super::standing::required;
use super::users::{UserBody, missing, view, with_score};
use crate::domain::ids::{ListingId, NotificationId, OrderId, UserId};
use crate::domain::interest::InterestKind;
use crate::domain::listing::Listing;
use crate::domain::review::Review;
use crate::domain::user::{User, UserCommand, UserRejection};
use crate::identity::password;
use crate::projections::{
    INTERESTS_VIEW, InterestRow, LEDGER, LISTINGS_VIEW, ListingFilter, NOTIFICATIONS_VIEW,
    ORDERS_VIEW, OrderFilter, OrderRow, PROMOTIONS_VIEW, REVIEWS_VIEW, ReviewFilter,
    SERVICE_TOKENS_VIEW, SESSIONS_VIEW,
};
use crate::subscribers::erasures::forget;

/// How many unfinished orders are named.
const NAMED_MAX: usize = 50;
/// How orders stand that are not finished, and what their buyer and their seller can do about it.
const UNFINISHED: [(&str, &str, &str); 6] = [
    ("PENDING", "cancel it", "wait until it is confirmed"),
    ("CONFIRMED", "pay for it or cancel it", "wait for the payment"),
    ("PAID", "wait until it is sent, or cancel it", "wait until it is sent"),
    ("SHIPPED", "confirm its delivery", "send it, and wait for its delivery"),
    ("DELIVERED", "wait until the money is released", "wait until the money is released"),
    ("RETURN_REQUESTED", "wait for the seller's answer", "answer the return"),
];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(erase_me))
        .routes(routes!(erase_user))
        .routes(routes!(export_user))
}

/// What an erasure takes.
#[derive(ToSchema)]
pub struct Erasure {
    /// The password of whoever wants to be forgotten.
    #[schema(format = Password)]
    pub password: Option<String>,
    /// Why somebody else is to be forgotten. It is recorded for good: name nobody in it.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl FromFields for Erasure {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let Reason { reason } = Reason::from_fields(fields)?;
        Some(Self { password: fields.optional_text(&["password"]), reason })
    }
}

fn unfinished(row: &OrderRow, how: &str) -> FieldProblem {
    let detail = format!("{} {how}", row.order_number);
    FieldProblem::new(format!("/orders/{}", row.order_id), "unfinished", detail)
}

/// The orders, bought or sold, about which an administrator has to decide, whatever their status.
async fn disputed(app: &App, user: UserId) -> Result<Vec<FieldProblem>, ApiError> {
    let mut open = Vec::new();
    let user = Some(user.uuid());
    for (buyer_id, seller_id) in [(user, None), (None, user)] {
        let dispute = Some(after_sales::OPEN.to_owned());
        let filter = OrderFilter { buyer_id, seller_id, dispute, ..OrderFilter::default() };
        let rows = app.reads().orders(&filter, None, PAGE).await?;
        let how = "has a dispute: wait until an administrator has decided it";
        open.extend(rows.iter().map(|row| unfinished(row, how)));
    }
    Ok(open)
}

/// Refuses to forget somebody whom others still wait for.
async fn nothing_is_open(app: &App, user: UserId) -> Result<(), ApiError> {
    app.projected_all(ORDERS_VIEW).await?;
    let mut open = disputed(app, user).await?;
    for (status, by_buyer, by_seller) in UNFINISHED {
        let of = |buyer_id, seller_id| {
            let status = Some(status.to_owned());
            OrderFilter { buyer_id, seller_id, status, ..OrderFilter::default() }
        };
        let user = Some(user.uuid());
        for (filter, to_do) in [(of(user, None), by_buyer), (of(None, user), by_seller)] {
            let rows = app.reads().orders(&filter, None, PAGE).await?;
            let rows = rows.iter().filter(|row| row.dispute.as_deref() != Some(after_sales::OPEN));
            open.extend(rows.map(|row| unfinished(row, &format!("is {status}: {to_do}"))));
        }
    }
    if let Some(detail) = ledger::owed(app, user).await? {
        open.push(FieldProblem::new("/balance", "unfinished", detail));
    }
    if open.is_empty() {
        return Ok(());
    }
    let detail =
        format!("{} orders are not finished; see errors for what is to be done", open.len());
    open.truncate(NAMED_MAX);
    Err(ApiError::conflict("open_orders", detail).naming(open))
}

async fn erase(
    app: &App,
    call: &Call,
    user: UserId,
    peer: Peer,
    unread: Unread,
) -> Result<Response, ApiError> {
    if !call.caller().may_act_for(user) {
        return Err(ApiError::forbidden("forbidden", UserRejection::Forbidden.to_string()));
    }
    let Erasure { password, reason } = unread.read::<Erasure>(app).await?.body;
    let reason = if call.caller().is(user) {
        let password = password.ok_or_else(|| {
            ApiError::invalid(vec![FieldProblem::new("/password", "required", "is required")])
        })?;
        confirmed(app, user, peer, password).await?;
        None
    } else {
        Some(required(Reason { reason })?)
    };
    nothing_is_open(app, user).await?;
    let mut context = call.plain_context(app);
    context.attach = vec![password::no_row(user.uuid())];
    let command = UserCommand::Erase { caller: call.caller(), reason, now: app.now() };
    let users = app.runtime().aggregate::<User>();
    let done = users.send(user.uuid(), command, context, |_| ()).await?;
    app.person_changed(user).await;
    forget(app.runtime(), user.uuid()).await?;
    Ok(nothing_after(&done))
}

/// Be forgotten
///
/// Takes the password. What is personal cannot be read any more, anywhere: it shows as `[erased]`,
/// also in the orders of others, which stay as they are otherwise. Sessions end, listings are archived,
/// and the address can be registered anew. With orders, bought or sold, that are unfinished or have an
/// open dispute it is 409 `open_orders`, and `errors` names each with what is to be done.
#[utoipa::path(delete, path = "/users/me", tag = "users", request_body = Erasure,
    responses((status = 204, description = "Forgotten")))]
async fn erase_me(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    peer: Peer,
    unread: Unread,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    erase(&app, &call, user, peer, unread).await
}

/// Forget a user
///
/// As `DELETE /users/me`, which needs the password; administrators give a reason instead.
#[utoipa::path(delete, path = "/users/{id}", tag = "users", params(("id" = String, Path)),
    request_body = Erasure, responses((status = 204, description = "Forgotten")))]
async fn erase_user(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    peer: Peer,
    unread: Unread,
) -> Result<Response, ApiError> {
    erase(&app, &call, path_id(&id)?, peer, unread).await
}

/// All that is stored of a person.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExportBody {
    /// When this was put together.
    #[schema(format = DateTime)]
    pub exported_at: String,
    /// Who it is.
    pub profile: UserBody,
    /// The address book.
    pub addresses: Vec<SavedAddressBody>,
    /// What was bought.
    pub orders: Vec<OrderBody>,
    /// What was sold. Where it went is the buyer's.
    pub sales: Vec<OrderSummary>,
    /// What is or was for sale.
    pub listings: Vec<ListingBody>,
    /// What was bought and is to come back, or did.
    pub returns: Vec<ReturnBody>,
    /// The disputes about what was bought.
    pub disputes: Vec<DisputeBody>,
    /// What the user wrote about orders, hidden or not.
    pub reviews_written: Vec<ReviewBody>,
    /// What is shown of others' words about the user as a seller.
    pub reviews_received: Vec<ReviewBody>,
    /// The promotion codes of the user as a seller.
    pub promotions: Vec<PromotionBody>,
    /// What was paid out, or is to be.
    pub payouts: Vec<PayoutBody>,
    /// Points for what was bought.
    pub loyalty: LoyaltyBody,
    /// Whom the user follows.
    pub following: Vec<FollowedBody>,
    /// The user's favourites.
    pub favourites: Vec<FavouriteBody>,
    /// What the user is told, and by which way.
    pub preferences: Option<PreferencesBody>,
    /// Where the user is logged in.
    pub sessions: Vec<SessionBody>,
    /// The keys of the user's own programs, without what they are.
    pub api_keys: Vec<ServiceTokenBody>,
    /// What the user was told. A mail's words are in the mailbox only.
    pub notifications: Vec<NotificationBody>,
    /// What pages and apps told of what the user did.
    pub actions: Vec<ActionBody>,
}

/// All orders that match, the newest first.
async fn all_orders(app: &App, filter: &OrderFilter) -> Result<Vec<OrderRow>, ApiError> {
    let page = |before| app.reads().orders(filter, before, PAGE);
    Ok(pages::all(page, |row| (row.placed_at.millis(), row.order_id)).await?)
}

async fn all_listings(app: &App, user: UserId) -> Result<Vec<ListingBody>, ApiError> {
    let seller_id = Some(user.uuid());
    let filter = &ListingFilter { seller_id, drafts: true, ..ListingFilter::default() };
    let page = |before| app.reads().listings(filter, before, PAGE);
    let mut all = Vec::new();
    for row in pages::all(page, |row| (row.created_at.millis(), row.listing_id)).await? {
        let listing = ListingId(row.listing_id).uuid();
        let read = app.runtime().aggregate::<Listing>().read(listing, listings::view).await?;
        all.extend(read.value.map(|body| ListingBody { version: read.version, ..body }));
    }
    Ok(all)
}

async fn all_notifications(
    app: &App,
    call: &Call,
    user: UserId,
) -> Result<Vec<NotificationBody>, ApiError> {
    let user = Some(user.uuid());
    let page = |before| app.reads().notifications(user, false, false, before, PAGE);
    let mut all = Vec::new();
    for row in pages::all(page, |row| (row.created_at.millis(), row.notification_id)).await? {
        let id = NotificationId(row.notification_id);
        all.extend(notifications::visible(app, call, id).await?);
    }
    Ok(all)
}

/// Everything that somebody takes an interest in of a kind.
async fn all_interests<T: From<InterestRow>>(
    app: &App,
    user: UserId,
    kind: InterestKind,
) -> Result<Vec<T>, ApiError> {
    let page = |before| app.reads().interests_of(user.uuid(), kind, before, PAGE);
    let rows = pages::all(page, |row| (row.since.millis(), row.interest_id)).await?;
    Ok(rows.into_iter().map(T::from).collect())
}

/// A review, whether it is shown or not.
async fn review(app: &App, id: Uuid) -> Result<Option<ReviewBody>, ApiError> {
    let read = app.runtime().aggregate::<Review>().read(id, reviews::view).await?;
    Ok(read.value.map(|body| ReviewBody { version: read.version, ..body }))
}

async fn reviews_received(app: &App, user: UserId) -> Result<Vec<ReviewBody>, ApiError> {
    let filter = &ReviewFilter { seller_id: Some(user.uuid()), ..ReviewFilter::default() };
    let page = |before| app.reads().reviews(filter, before, PAGE);
    let mut all = Vec::new();
    for row in pages::all(page, |row| (row.created_at.millis(), row.review_id)).await? {
        all.extend(review(app, row.review_id).await?);
    }
    Ok(all)
}

/// What the user bought, with what came of it.
#[derive(Default)]
struct Bought {
    orders: Vec<OrderBody>,
    returns: Vec<ReturnBody>,
    disputes: Vec<DisputeBody>,
    reviews: Vec<ReviewBody>,
}

async fn bought(app: &App, user: UserId) -> Result<Bought, ApiError> {
    let buys = OrderFilter { buyer_id: Some(user.uuid()), ..OrderFilter::default() };
    let mut bought = Bought::default();
    for row in all_orders(app, &buys).await? {
        let order = OrderId(row.order_id);
        let body = orders::current(app, order).await?;
        bought.returns.extend(after_sales::returns_of(app, order).await?);
        bought.disputes.extend(after_sales::dispute_of(app, order).await?);
        if let Some(id) = body.review_id {
            bought.reviews.extend(review(app, id).await?);
        }
        bought.orders.push(body);
    }
    Ok(bought)
}

/// The views that an export reads.
const VIEWS: [&str; 9] = [
    ORDERS_VIEW,
    LISTINGS_VIEW,
    SESSIONS_VIEW,
    SERVICE_TOKENS_VIEW,
    NOTIFICATIONS_VIEW,
    REVIEWS_VIEW,
    PROMOTIONS_VIEW,
    INTERESTS_VIEW,
    LEDGER,
];

/// All that is stored of a person
///
/// For the person, and for administrators; `me` stands for the caller. It includes everything that had
/// happened when it was asked for.
#[utoipa::path(get, path = "/users/{id}/export", tag = "users", params(("id" = String, Path)),
    responses((status = 200, description = "Everything", body = ExportBody)))]
async fn export_user(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
) -> Result<Answer<ExportBody>, ApiError> {
    let user = match id.as_str() {
        "me" => call.someone()?,
        id => path_id(id)?,
    };
    if !call.caller().may_act_for(user) {
        return Err(ApiError::forbidden("forbidden", UserRejection::Forbidden.to_string()));
    }
    let look = |user: &User| {
        let addresses = address_book::all(user.details.as_ref()?);
        view(true)(user).map(|profile| (profile, addresses, preferences::view(user)))
    };
    let done = app.runtime().aggregate::<User>().read(user.uuid(), look).await?;
    let (profile, addresses, preferences) = done.value.ok_or_else(missing)?;
    let profile = UserBody { version: done.version, ..profile };
    let (profile, _) = with_score(&app, profile, true).await?;
    for view in VIEWS {
        app.projected_all(view).await?;
    }
    let Bought { orders, returns, disputes, reviews } = bought(&app, user).await?;
    let sells = OrderFilter { seller_id: Some(user.uuid()), ..OrderFilter::default() };
    let sales = all_orders(&app, &sells).await?.into_iter().map(OrderSummary::from).collect();
    let favourites = all_interests(&app, user, InterestKind::Listing).await?;
    Ok(Answer::ok(ExportBody {
        exported_at: app.now().to_string(),
        profile,
        addresses,
        orders,
        sales,
        listings: all_listings(&app, user).await?,
        returns,
        disputes,
        reviews_written: reviews,
        reviews_received: reviews_received(&app, user).await?,
        promotions: promotions::all_of(&app, &call, user).await?,
        payouts: ledger::all_payouts_of(&app, user).await?,
        loyalty: loyalty::points(&app, user).await?,
        following: all_interests(&app, user, InterestKind::Seller).await?,
        favourites: with_covers(&app, favourites).await?,
        preferences,
        sessions: sessions::all_of(&app, &call, user).await?,
        api_keys: api_keys::all_of(&app, user).await?,
        notifications: all_notifications(&app, &call, user).await?,
        actions: analytics::all_actions_of(&app, user).await?,
    }))
}
