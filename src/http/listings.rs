//! Listings: what is for sale.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::command::Done;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, composed, split};
use super::body::{Fields, FromFields, Nothing, Unread, Valid};
use super::call::{Call, SignedIn};
use super::conditional::IfNoneMatch;
use super::money::{CURRENCY_DEFAULT, MoneyBody, SeenPrice, money, seen_price};
use super::params::{Params, path_id};
use super::problem::ApiError;
use super::users::missing as no_user;
use crate::domain::category::Category;
use crate::domain::ids::{CategoryId, ListingId, UserId};
use crate::domain::listing::{
    CategoryStanding, Listing, ListingCommand, ListingDetails, ListingRejection, ListingStatus,
    NewListing as Creation, SaidPrice,
};
use crate::domain::money::{Currency, Money};
use crate::domain::user::{User, VerificationStatus};
use crate::images::Images;
use crate::projections::{ListingFilter, ListingRow, SkuMatch};

/// The projection that lists rest on.
pub(super) const LISTINGS: &str = "listings-view";
/// The units of a listing that names no quantity.
const QUANTITY_DEFAULT: u32 = 1;
/// How listings may stand that are asked for; `ALL`: however they do.
pub(super) const STATUSES: [&str; 6] = ["ALL", "DRAFT", "ACTIVE", "RESERVED", "SOLD", "ARCHIVED"];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(browse, create_listing))
        .routes(routes!(get_listing, update_listing))
        .routes(routes!(archive_listing))
        .routes(routes!(publish_listing))
        .routes(routes!(reactivate_listing))
        .routes(routes!(restock_listing))
        .routes(routes!(listing_preferences))
        .routes(routes!(my_listings))
}

/// Something to sell.
#[derive(ToSchema)]
pub struct NewListing {
    /// What it is.
    #[schema(max_length = 200, example = "A blue bicycle")]
    pub title: String,
    /// What it is, at length.
    #[schema(max_length = 10000)]
    pub description: String,
    /// The price of one; also a whole number beside `currency`.
    #[schema(value_type = MoneyBody)]
    pub price: Money,
    /// Where it belongs.
    #[schema(value_type = Uuid)]
    pub category_id: CategoryId,
    /// The seller's stock-keeping unit; made up when absent.
    #[schema(max_length = 64)]
    pub sku: Option<String>,
    /// How many units; one when absent.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: Option<u32>,
    /// Where its images are: http or https addresses, at most `IMAGES_MAX` of them. Files are sent
    /// to the listing's `images` once it is there.
    #[schema(max_items = 10)]
    pub images: Vec<String>,
    /// Whether only its seller is to see it, until it is published.
    pub draft: Option<bool>,
}

impl FromFields for NewListing {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let title = fields.text(&["title"]);
        let description = fields.text(&["description"]);
        let price = money(fields, "price");
        let category_id = fields.parsed(&["category_id", "categoryId"]);
        let images = fields.optional_texts(&["images"]);
        let sku = fields.optional_text(&["sku"]);
        let quantity = fields.optional_count(&["quantity"]);
        let draft = fields.optional_bool(&["draft"]);
        Some(Self {
            title: title?,
            description: description?,
            price: price?,
            category_id: category_id?,
            sku,
            quantity,
            images,
            draft,
        })
    }
}

/// More units.
#[derive(ToSchema)]
pub struct Restock {
    /// How many more.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: u32,
}

impl FromFields for Restock {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { quantity: fields.count(&["quantity"])? })
    }
}

/// What changes; what is absent stays.
#[derive(ToSchema)]
pub struct UpdateListing {
    /// What it is.
    pub title: Option<String>,
    /// What it is, at length.
    pub description: Option<String>,
    /// The price of one, in the same currency: also when none is said.
    #[schema(value_type = Option<MoneyBody>)]
    pub(super) price: Option<SeenPrice>,
}

impl FromFields for UpdateListing {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            title: fields.optional_text(&["title"]),
            description: fields.optional_text(&["description"]),
            price: seen_price(fields, "price"),
        })
    }
}

/// A listing with its stock.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ListingBody {
    /// The listing.
    pub id: Uuid,
    /// The same.
    pub listing_id: Uuid,
    /// The same, as a product.
    pub product_id: Uuid,
    /// Who sells.
    pub seller_id: Uuid,
    /// What it is.
    pub title: String,
    /// What it is, at length.
    pub description: String,
    /// Where it belongs.
    pub category_id: Uuid,
    /// The price of one.
    pub price: MoneyBody,
    /// The stock-keeping unit.
    pub sku: String,
    /// Where its images are, in order; those without a host are found on this service.
    pub images: Vec<String>,
    /// The same, small, where they were uploaded here.
    pub thumbnails: Vec<String>,
    /// `DRAFT`, `ACTIVE`, `RESERVED`, `SOLD` or `ARCHIVED`.
    #[schema(value_type = String, example = "ACTIVE")]
    pub status: ListingStatus,
    /// How many units there are in all.
    pub quantity: u64,
    /// How many can be bought.
    pub available_quantity: u32,
    /// How many are held for orders that are not paid.
    pub reserved_quantity: u32,
    /// How many are paid for.
    pub sold_quantity: u32,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The version; also the `ETag`.
    pub version: u64,
}

impl ListingBody {
    fn new(details: &ListingDetails) -> Self {
        let id = details.listing_id.uuid();
        let stock = details.stock;
        Self {
            id,
            listing_id: id,
            product_id: id,
            seller_id: details.seller_id.uuid(),
            title: details.title.clone(),
            description: details.description.clone(),
            category_id: details.category_id.uuid(),
            price: details.price.into(),
            sku: details.sku.clone(),
            images: details.images.clone(),
            thumbnails: details.images.iter().map(|image| Images::thumbnail(image)).collect(),
            status: details.status,
            quantity: u64::from(stock.available)
                + u64::from(stock.reserved)
                + u64::from(stock.sold),
            available_quantity: stock.available,
            reserved_quantity: stock.reserved,
            sold_quantity: stock.sold,
            created_at: details.created_at.to_string(),
            version: 0,
        }
    }
}

/// A listing in a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ListingSummary {
    /// The listing.
    pub listing_id: Uuid,
    /// Who sells.
    pub seller_id: Uuid,
    /// What it is.
    pub title: String,
    /// Where it belongs.
    pub category_id: Uuid,
    /// The stock-keeping unit.
    pub sku: String,
    /// The price of one.
    pub price: MoneyBody,
    /// How it stands.
    #[schema(example = "ACTIVE")]
    pub status: String,
    /// Where its first image is, small; none: it has none.
    #[schema(example = "/api/v1/images/0199c0de-0000-7000-8000-000000000001/6fd1….jpg?size=320")]
    pub cover: Option<String>,
    /// How many can be bought.
    pub available_quantity: i64,
    /// How many are held for orders that are not paid.
    pub reserved_quantity: i64,
    /// How many are paid for.
    pub sold_quantity: i64,
    /// The version the row was made from.
    pub version: i64,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When the row last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

impl From<ListingRow> for ListingSummary {
    fn from(row: ListingRow) -> Self {
        Self {
            listing_id: row.listing_id,
            seller_id: row.seller_id,
            title: row.title,
            category_id: row.category_id,
            sku: row.sku,
            price: MoneyBody { amount: row.price_amount, currency: row.currency },
            status: row.status,
            cover: row.images.first().map(|image| Images::thumbnail(image)),
            available_quantity: row.available,
            reserved_quantity: row.reserved,
            sold_quantity: row.sold,
            version: row.version,
            created_at: row.created_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

pub(super) fn view(listing: &Listing) -> Option<ListingBody> {
    listing.details.as_ref().map(ListingBody::new)
}

pub(super) fn missing() -> ApiError {
    ApiError::not_found("there is no such listing")
}

/// What the aggregate would say too, were it asked before the body is looked at.
pub(super) fn forbidden() -> ApiError {
    ApiError::forbidden("forbidden", ListingRejection::Forbidden.to_string())
}

fn shown(done: Done<Option<ListingBody>>) -> Result<(ListingBody, Done<()>), ApiError> {
    let (body, done) = split(done);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    Ok((body, done))
}

pub(super) async fn seller_standing(
    app: &App,
    seller: UserId,
) -> Result<Option<VerificationStatus>, ApiError> {
    let view = |user: &User| {
        let seller = user.details.as_ref()?.seller.as_ref()?;
        Some(seller.verification_status)
    };
    Ok(app.runtime().aggregate::<User>().read(seller.uuid(), view).await?.value)
}

async fn category_standing(app: &App, category: CategoryId) -> Result<CategoryStanding, ApiError> {
    let view = |category: &Category| match &category.details {
        None => CategoryStanding::Unknown,
        Some(details) if details.active => CategoryStanding::Active,
        Some(_) => CategoryStanding::Inactive,
    };
    Ok(app.runtime().aggregate::<Category>().read(category.uuid(), view).await?.value)
}

/// Offer something for sale
///
/// For verified sellers, in an active category.
#[utoipa::path(post, path = "/listings", tag = "listings", request_body = NewListing,
    responses((status = 201, description = "The listing", body = ListingBody)))]
async fn create_listing(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    unread: Unread,
) -> Result<Answer<ListingBody>, ApiError> {
    let seller_id = call.someone()?;
    let seller_standing = seller_standing(&app, seller_id).await?;
    if seller_standing.is_none() {
        return Err(forbidden());
    }
    let valid = unread.read::<NewListing>(&app).await?;
    let body = valid.body;
    let listing_id = ListingId(call.new_id(&app, "listings.create"));
    let create = ListingCommand::Create(Box::new(Creation {
        caller: call.caller(),
        listing_id,
        seller_id,
        seller_standing,
        title: body.title,
        description: body.description,
        price: body.price,
        category_id: body.category_id,
        category_standing: category_standing(&app, body.category_id).await?,
        sku: body.sku,
        quantity: body.quantity.unwrap_or(QUANTITY_DEFAULT),
        images: body.images,
        images_max: app.settings().images.images_max,
        draft: body.draft.unwrap_or_default(),
        now: app.now(),
    }));
    let context = call.context(&app, "listings.create", "", &valid.canonical);
    let listings = app.runtime().aggregate::<Listing>();
    let (body, done) = shown(listings.send(listing_id.uuid(), create, context, view).await?)?;
    if !done.replayed {
        tracing::info!(%listing_id, "listing created");
    }
    Ok(Answer::created(&format!("/api/v1/listings/{listing_id}"), body).after(&done))
}

/// A listing
///
/// A draft is there for its seller and for administrators only.
#[utoipa::path(get, path = "/listings/{id}", tag = "listings", params(("id" = String, Path)),
    responses((status = 200, description = "The listing", body = ListingBody)))]
async fn get_listing(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let id: ListingId = path_id(&id)?;
    let (body, done) = shown(app.runtime().aggregate::<Listing>().read(id.uuid(), view).await?)?;
    let is_theirs = || call.caller().may_act_for(UserId(body.seller_id));
    if body.status == ListingStatus::Draft && !is_theirs() {
        return Err(missing());
    }
    Ok(Answer::ok(body).at_version(done.version, &theirs))
}

pub(super) async fn change(
    app: &App,
    call: &Call,
    id: &str,
    operation: &str,
    canonical: &[u8],
    command: ListingCommand,
) -> Result<Answer<ListingBody>, ApiError> {
    let id: ListingId = path_id(id)?;
    let context = call.change_context(app, operation, &id.to_string(), canonical);
    let listings = app.runtime().aggregate::<Listing>();
    let (body, done) = shown(listings.send(id.uuid(), command, context, view).await?)?;
    Ok(Answer::ok(body).after(&done))
}

/// Change a listing
///
/// Needs `If-Match`: an order confirms the price that its buyer saw, so a change must rest on what
/// its seller saw.
#[utoipa::path(patch, path = "/listings/{id}", tag = "listings", params(("id" = String, Path)),
    request_body = UpdateListing,
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn update_listing(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<ListingBody>, ApiError> {
    match update(&app, &call, &id, unread).await {
        Err(error) => Err(seen_by_its_seller(&app, &call, &id, error).await?),
        done => done,
    }
}

/// Whose listing it is counts before what is wrong with a request. Nobody asks first: that would wait
/// for everything that is on its way to the journal, and then wait again.
async fn seen_by_its_seller(
    app: &App,
    call: &Call,
    id: &str,
    error: ApiError,
) -> Result<ApiError, ApiError> {
    if !error.status().is_client_error() {
        return Ok(error);
    }
    let offer = offer(app, path_id(id)?).await?.ok_or_else(missing)?;
    let theirs = call.caller().may_act_for(offer.seller_id);
    Ok(if theirs { error } else { forbidden() })
}

async fn update(
    app: &App,
    call: &Call,
    id: &str,
    unread: Unread,
) -> Result<Answer<ListingBody>, ApiError> {
    call.if_match.required()?;
    let valid = unread.read::<UpdateListing>(app).await?;
    let UpdateListing { title, description, price } = valid.body;
    let (caller, price, now) = (call.caller(), price.map(SaidPrice::from), app.now());
    let command = ListingCommand::Update { caller, title, description, price, now };
    change(app, call, id, "listings.update", &valid.canonical, command).await
}

/// Withdraw a listing
#[utoipa::path(post, path = "/listings/{id}/archive", tag = "listings",
    params(("id" = String, Path)),
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn archive_listing(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<ListingBody>, ApiError> {
    let command = ListingCommand::Archive { caller: call.caller(), now: app.now() };
    change(&app, &call, &id, "listings.archive", &valid.canonical, command).await
}

/// Show a draft to everybody
#[utoipa::path(post, path = "/listings/{id}/publish", tag = "listings",
    params(("id" = String, Path)),
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn publish_listing(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<ListingBody>, ApiError> {
    let (caller, now) = (call.caller(), app.now());
    let category_standing = category_standing_of(&app, &id).await?;
    let command = ListingCommand::Publish { caller, category_standing, now };
    change(&app, &call, &id, "listings.publish", &valid.canonical, command).await
}

/// Offer a withdrawn listing again
#[utoipa::path(post, path = "/listings/{id}/reactivate", tag = "listings",
    params(("id" = String, Path)),
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn reactivate_listing(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<ListingBody>, ApiError> {
    let (caller, now) = (call.caller(), app.now());
    let category_standing = category_standing_of(&app, &id).await?;
    let command = ListingCommand::Reactivate { caller, category_standing, now };
    change(&app, &call, &id, "listings.reactivate", &valid.canonical, command).await
}

/// How the category of a listing stands, if there is one.
async fn category_standing_of(app: &App, id: &str) -> Result<CategoryStanding, ApiError> {
    let id: ListingId = path_id(id)?;
    let view = |listing: &Listing| listing.details.as_ref().map(|details| details.category_id);
    let category = app.runtime().aggregate::<Listing>().read(id.uuid(), view).await?.value;
    category_standing(app, category.ok_or_else(missing)?).await
}

/// Add units
///
/// Twice is twice: send an `Idempotency-Key` where the request may have to be repeated.
#[utoipa::path(post, path = "/listings/{id}/restock", tag = "listings",
    params(("id" = String, Path)), request_body = Restock,
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn restock_listing(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<ListingBody>, ApiError> {
    let stocked = async {
        let valid = unread.read::<Restock>(&app).await?;
        let (caller, quantity, now) = (call.caller(), valid.body.quantity, app.now());
        let command = ListingCommand::Restock { caller, quantity, now };
        change(&app, &call, &id, "listings.restock", &valid.canonical, command).await
    };
    match stocked.await {
        Err(error) => Err(seen_by_its_seller(&app, &call, &id, error).await?),
        done => done,
    }
}

/// What a seller may do with listings, and what is taken where a new one does not say.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListingPreferences {
    /// The seller.
    pub user_id: Uuid,
    /// Whether listings of theirs are accepted now.
    pub may_list: bool,
    /// The currency of a price that names none.
    #[schema(example = "VND")]
    pub default_currency: String,
    /// The units of a listing that names no quantity.
    pub default_quantity: u32,
    /// The most images of one listing.
    pub images_max: usize,
    /// The most bytes of an image that is uploaded.
    pub image_bytes_max: usize,
}

/// What a seller's listings begin with
///
/// For the seller and for administrators.
#[utoipa::path(get, path = "/users/{id}/listing-preferences", tag = "sellers",
    params(("id" = String, Path)),
    responses((status = 200, description = "The preferences", body = ListingPreferences)))]
async fn listing_preferences(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user: UserId = path_id(&id)?;
    if !call.caller().may_act_for(user) {
        return Err(ApiError::forbidden("forbidden", "these are somebody else's preferences"));
    }
    let view = |user: &User| {
        let seller = user.details.as_ref()?.seller.as_ref();
        Some(
            seller.is_some_and(|seller| seller.verification_status == VerificationStatus::Verified),
        )
    };
    let may_list = app.runtime().aggregate::<User>().read(user.uuid(), view).await?.value;
    let preferences = ListingPreferences {
        user_id: user.uuid(),
        may_list: may_list.ok_or_else(no_user)?,
        default_currency: CURRENCY_DEFAULT.code().to_owned(),
        default_quantity: QUANTITY_DEFAULT,
        images_max: app.settings().images.images_max,
        image_bytes_max: app.settings().images.bytes_max,
    };
    Ok(composed(&preferences, &theirs))
}

async fn list(
    app: &App,
    params: &Params,
    filter: ListingFilter,
) -> Result<Answer<Page<ListingSummary>>, ApiError> {
    app.includes(LISTINGS, params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let rows = app.reads().listings(&filter, before, limit + 1).await?;
    let cursor = |row: &ListingRow| (row.created_at.millis(), row.listing_id);
    Ok(params.rows(app, rows, limit, cursor).projected(app, LISTINGS))
}

/// The status that is asked for; none: any.
fn status_of(params: &Params, unsaid: &str) -> Result<Option<String>, ApiError> {
    let status = params.one_of("status", &STATUSES)?.unwrap_or(unsaid);
    Ok((status != "ALL").then(|| status.to_owned()))
}

/// Browse listings
#[utoipa::path(get, path = "/listings", tag = "listings",
    params(("seller_id" = Option<String>, Query), ("category_id" = Option<String>, Query),
        ("status" = Option<String>, Query,
            description = "`ACTIVE` when absent, `RESERVED`, `SOLD`, `ARCHIVED`, or `DRAFT`, which is \
                shown to its seller; `ALL` for all"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of listings", body = Page<ListingSummary>)))]
async fn browse(
    State(app): State<App>,
    call: Call,
    params: Params,
) -> Result<Answer<Page<ListingSummary>>, ApiError> {
    let seller_id = params.parsed::<UserId>("seller_id")?;
    let caller = call.caller();
    let filter = ListingFilter {
        seller_id: seller_id.map(UserId::uuid),
        drafts: caller.is_staff() || seller_id.is_some_and(|seller| caller.is(seller)),
        category_id: params.parsed::<CategoryId>("category_id")?.map(CategoryId::uuid),
        status: status_of(&params, "ACTIVE")?,
    };
    list(&app, &params, filter).await
}

/// My listings
#[utoipa::path(get, path = "/me/listings", tag = "listings",
    params(("status" = Option<String>, Query,
            description = "`DRAFT`, `ACTIVE`, `RESERVED`, `SOLD` or `ARCHIVED`; `ALL`, as when absent"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of listings", body = Page<ListingSummary>)))]
async fn my_listings(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<ListingSummary>>, ApiError> {
    let filter = ListingFilter {
        seller_id: Some(call.someone()?.uuid()),
        category_id: None,
        drafts: true,
        status: status_of(&params, "ALL")?,
    };
    list(&app, &params, filter).await
}

/// The listing of a stock-keeping unit, which `pointer` names in the body.
pub(super) async fn listing_by_sku(
    app: &App,
    sku: &str,
    pointer: &str,
) -> Result<ListingId, ApiError> {
    let mut found = app.reads().listing_by_sku(sku).await?;
    if found == SkuMatch::Unknown {
        // It may be too new for the view.
        app.projected_all(LISTINGS).await?;
        found = app.reads().listing_by_sku(sku).await?;
    }
    match found {
        SkuMatch::One(listing) => Ok(ListingId(listing)),
        SkuMatch::Ambiguous => {
            let detail = "several sellers offer this sku; name the listing_id";
            Err(ApiError::unprocessable("sku_ambiguous", pointer, detail))
        }
        SkuMatch::Unknown => Err(ApiError::unprocessable(
            "sku_unknown",
            pointer,
            "nothing is offered under this sku",
        )),
    }
}

/// What the door needs to know of a listing.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) seller_id: UserId,
    pub(super) status: ListingStatus,
    pub(super) sku: String,
    pub(super) price: Money,
}

impl Offer {
    /// An offer of nothing, where a repeat no longer needs to know.
    pub(super) fn unknown() -> Self {
        Self {
            seller_id: UserId::default(),
            status: ListingStatus::Active,
            sku: String::new(),
            price: Money::new(1, Currency::Vnd),
        }
    }
}

/// Looks a listing up.
pub(super) async fn offer(app: &App, listing: ListingId) -> Result<Option<Offer>, ApiError> {
    let view = |listing: &Listing| {
        let details = listing.details.as_ref()?;
        Some(Offer {
            seller_id: details.seller_id,
            status: details.status,
            sku: details.sku.clone(),
            price: details.price,
        })
    };
    Ok(app.runtime().aggregate::<Listing>().read(listing.uuid(), view).await?.value)
}
