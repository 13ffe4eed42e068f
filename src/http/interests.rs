//! Whom people follow, and their favourites.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::command::Done;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, nothing_after};
use super::body::{Nothing, Valid};
use super::call::{Call, SignedIn};
use super::listings::missing as no_listing;
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::ids::{InterestId, ListingId, UserId};
use crate::domain::interest::{Interest, InterestCommand, InterestKind, InterestOf};
use crate::domain::listing::{Listing, ListingStatus};
use crate::domain::user::User;
use crate::images::Images;
use crate::projections::{INTERESTS_VIEW, InterestRow, LISTINGS_VIEW};

/// How many covers are looked up together.
const COVERS_AT_ONCE: usize = 200;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(follow, unfollow))
        .routes(routes!(count_followers))
        .routes(routes!(following))
        .routes(routes!(add_favourite, remove_favourite))
        .routes(routes!(favourites))
}

/// A seller who is followed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FollowedBody {
    /// The seller.
    pub seller_id: Uuid,
    /// Since when.
    #[schema(format = DateTime)]
    pub since: Option<String>,
}

/// A favourite.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FavouriteBody {
    /// The listing.
    pub listing_id: Uuid,
    /// Where its first image is, small; none: it has none.
    pub cover: Option<String>,
    /// Since when.
    #[schema(format = DateTime)]
    pub since: Option<String>,
}

/// How many follow a seller.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FollowersBody {
    /// The seller.
    pub seller_id: Uuid,
    /// How many.
    pub count: u64,
}

impl From<InterestRow> for FollowedBody {
    fn from(row: InterestRow) -> Self {
        Self { seller_id: row.target_id, since: Some(row.since.to_string()) }
    }
}

impl From<InterestRow> for FavouriteBody {
    fn from(row: InterestRow) -> Self {
        Self { listing_id: row.target_id, cover: None, since: Some(row.since.to_string()) }
    }
}

/// Favourites with the covers of their listings.
pub(super) async fn with_covers(
    app: &App,
    mut favourites: Vec<FavouriteBody>,
) -> Result<Vec<FavouriteBody>, ApiError> {
    for some in favourites.chunks_mut(COVERS_AT_ONCE) {
        let listings: Vec<_> = some.iter().map(|favourite| favourite.listing_id).collect();
        let covers = app.reads().covers(&listings).await?;
        for favourite in some {
            let cover = covers.get(&favourite.listing_id);
            favourite.cover = cover.map(|image| Images::thumbnail(image));
        }
    }
    Ok(favourites)
}

fn since(interest: &Interest) -> Option<String> {
    interest.since.map(|at| at.to_string())
}

async fn change(
    app: &App,
    call: &Call,
    of: InterestOf,
    takes: bool,
) -> Result<Done<Option<String>>, ApiError> {
    let (caller, user_id, now) = (call.caller(), call.someone()?, app.now());
    let id = InterestId::of(user_id, of);
    let (operation, command) = match takes {
        true => ("interests.take", InterestCommand::Take { caller, user_id, of, now }),
        false => ("interests.lose", InterestCommand::Lose { caller, user_id, of, now }),
    };
    let context = call.change_context(app, operation, &id.to_string(), b"");
    let interests = app.runtime().aggregate::<Interest>();
    Ok(interests.send(id.uuid(), command, context, since).await?)
}

/// Follow a seller
///
/// Their new listings are told of (notification `new_listing`). Following twice is following once.
#[utoipa::path(post, path = "/users/{id}/follow", tag = "users", params(("id" = String, Path)),
    responses((status = 200, description = "The seller is followed", body = FollowedBody)))]
async fn follow(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<FollowedBody>, ApiError> {
    let seller: UserId = path_id(&id)?;
    let sells = |user: &User| user.details.as_ref().is_some_and(|of| of.seller.is_some());
    if !app.runtime().aggregate::<User>().read(seller.uuid(), sells).await?.value {
        return Err(ApiError::not_found("there is no such seller"));
    }
    let done = change(&app, &call, InterestOf::Seller(seller), true).await?;
    let body = FollowedBody { seller_id: seller.uuid(), since: done.value.clone() };
    Ok(Answer::ok(body).after(&done))
}

/// Follow a seller no more
#[utoipa::path(delete, path = "/users/{id}/follow", tag = "users", params(("id" = String, Path)),
    responses((status = 204, description = "The seller is not followed")))]
async fn unfollow(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let of = InterestOf::Seller(path_id(&id)?);
    Ok(nothing_after(&change(&app, &call, of, false).await?))
}

/// How many follow a seller
#[utoipa::path(get, path = "/users/{id}/followers/count", tag = "users",
    params(("id" = String, Path), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "How many", body = FollowersBody)))]
async fn count_followers(
    State(app): State<App>,
    _: Call,
    Path(id): Path<String>,
    params: Params,
) -> Result<Answer<FollowersBody>, ApiError> {
    let seller: UserId = path_id(&id)?;
    app.includes(INTERESTS_VIEW, &params).await?;
    let count = app.reads().interests_count(InterestKind::Seller, seller.uuid()).await?;
    let body = FollowersBody { seller_id: seller.uuid(), count };
    Ok(Answer::ok(body).projected(&app, INTERESTS_VIEW))
}

/// A page of somebody's interests, and where the next begins.
async fn list<T: From<InterestRow>>(
    app: &App,
    call: &Call,
    params: &Params,
    kind: InterestKind,
) -> Result<Page<T>, ApiError> {
    let user = call.someone()?.uuid();
    app.includes(INTERESTS_VIEW, params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let mut rows = app.reads().interests_of(user, kind, before, limit + 1).await?;
    let cursor = |row: &InterestRow| (row.since.millis(), row.interest_id);
    let next_cursor = params.cut(app, &mut rows, limit, cursor);
    let data = rows.into_iter().map(T::from).collect();
    Ok(Page { data, has_more: next_cursor.is_some(), next_cursor })
}

/// Whom I follow
#[utoipa::path(get, path = "/users/me/following", tag = "users",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the latest first", body = Page<FollowedBody>)))]
async fn following(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<FollowedBody>>, ApiError> {
    let page = list::<FollowedBody>(&app, &call, &params, InterestKind::Seller).await?;
    Ok(params.with_next(page).projected(&app, INTERESTS_VIEW))
}

/// Remember a listing
///
/// When its price goes down it is told of (notification `price_drop`).
#[utoipa::path(put, path = "/users/me/favourites/{listing_id}", tag = "users",
    params(("listing_id" = String, Path)),
    responses((status = 200, description = "It is a favourite", body = FavouriteBody)))]
async fn add_favourite(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(listing_id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<FavouriteBody>, ApiError> {
    let listing: ListingId = path_id(&listing_id)?;
    // What is not published is not there for anybody else.
    let look = |listing: &Listing| {
        let offered = listing.details.as_ref().filter(|of| of.status != ListingStatus::Draft);
        offered.map(|details| details.images.first().map(|image| Images::thumbnail(image)))
    };
    let read = app.runtime().aggregate::<Listing>().read(listing.uuid(), look).await?;
    let cover = read.value.ok_or_else(no_listing)?;
    let done = change(&app, &call, InterestOf::Listing(listing), true).await?;
    let body = FavouriteBody { listing_id: listing.uuid(), cover, since: done.value.clone() };
    Ok(Answer::ok(body).after(&done))
}

/// Forget a favourite
#[utoipa::path(delete, path = "/users/me/favourites/{listing_id}", tag = "users",
    params(("listing_id" = String, Path)),
    responses((status = 204, description = "It is no favourite")))]
async fn remove_favourite(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(listing_id): Path<String>,
) -> Result<Response, ApiError> {
    let of = InterestOf::Listing(path_id(&listing_id)?);
    Ok(nothing_after(&change(&app, &call, of, false).await?))
}

/// My favourites
#[utoipa::path(get, path = "/users/me/favourites", tag = "users",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the latest first", body = Page<FavouriteBody>)))]
async fn favourites(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<FavouriteBody>>, ApiError> {
    app.includes(LISTINGS_VIEW, &params).await?;
    let page = list::<FavouriteBody>(&app, &call, &params, InterestKind::Listing).await?;
    let page = Page { data: with_covers(&app, page.data).await?, ..page };
    Ok(params.with_next(page).projected(&app, INTERESTS_VIEW))
}
