//! Promotion codes: their sellers' side, and what a code does to an order.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::{Call, SignedIn, Staff};
use super::conditional::IfNoneMatch;
use super::listings::seller_standing;
use super::money::{MoneyBody, optional_money};
use super::pages::{self, PAGE};
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::ids::{PromotionId, UserId};
use crate::domain::money::Money;
use crate::domain::order::{OrderPromotion, Wanted};
use crate::domain::promotion::{
    Discount, NewPromotion as Creation, Promotion, PromotionCommand, PromotionDetails,
    RedemptionFailure, USES_MAX, normal_code,
};
use crate::projections::{PROMOTIONS_VIEW, PromotionRow};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(create_promotion))
        .routes(routes!(get_promotion))
        .routes(routes!(end_promotion))
        .routes(routes!(my_promotions))
        .routes(routes!(all_promotions))
}

/// A new promotion code. It takes off either a percentage or an amount.
#[derive(ToSchema)]
pub struct NewPromotion {
    /// The word that buyers enter: 3 to 32 letters, digits and hyphens; lower case counts as upper.
    #[schema(example = "SPRING-10", max_length = 32)]
    pub code: String,
    /// Whose listings become cheaper; the caller's when absent.
    #[schema(value_type = Option<Uuid>)]
    pub seller_id: Option<UserId>,
    /// Whether it counts for every seller's listings and the market gives what it takes off; for
    /// administrators. Not together with `seller_id`.
    pub all_sellers: Option<bool>,
    /// How many percent are taken off.
    #[schema(minimum = 1, maximum = 99, example = 10)]
    pub percentage: Option<u32>,
    /// How much is taken off.
    #[schema(value_type = Option<MoneyBody>)]
    pub amount: Option<Money>,
    /// What an order must cost without the code, at least.
    #[schema(value_type = Option<MoneyBody>)]
    pub minimum: Option<Money>,
    /// From when the code counts; from now when absent.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub valid_from: Option<Timestamp>,
    /// Until when; until it is ended when absent.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub valid_until: Option<Timestamp>,
    /// For how many orders it counts; 100000 when absent.
    #[schema(minimum = 1, maximum = 100_000)]
    pub uses_max: Option<u32>,
    /// For how many orders of one buyer; one when absent.
    #[schema(minimum = 1, maximum = 100_000)]
    pub uses_per_buyer_max: Option<u32>,
}

fn optional_time(fields: &mut Fields<'_>, name: &'static str) -> Option<Timestamp> {
    let text = fields.optional_text(&[name])?;
    let time = Timestamp::parse(&text);
    if time.is_none() {
        fields.error(name, "invalid", "must be an RFC 3339 time");
    }
    time
}

impl FromFields for NewPromotion {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let code = fields.text(&["code"]);
        let percentage = fields.optional_count(&["percentage"]);
        let amount = optional_money(fields, "amount");
        match (fields.has(&["percentage"]), fields.has(&["amount"])) {
            (false, false) => {
                fields.error("percentage", "required", "send either this or amount");
            }
            (true, true) => fields.error("percentage", "ambiguous", "send either this or amount"),
            _ => {}
        }
        let all_sellers = fields.optional_bool(&["all_sellers", "allSellers"]);
        if all_sellers == Some(true) && fields.has(&["seller_id", "sellerId"]) {
            fields.error("all_sellers", "ambiguous", "send either this or seller_id");
        }
        Some(Self {
            seller_id: fields.optional_parsed(&["seller_id", "sellerId"]),
            all_sellers,
            percentage,
            amount,
            minimum: optional_money(fields, "minimum"),
            valid_from: optional_time(fields, "valid_from"),
            valid_until: optional_time(fields, "valid_until"),
            uses_max: fields.optional_count(&["uses_max"]),
            uses_per_buyer_max: fields.optional_count(&["uses_per_buyer_max"]),
            code: code?,
        })
    }
}

/// A promotion code, for its seller.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromotionBody {
    /// The promotion.
    pub id: Uuid,
    /// The same.
    pub promotion_id: Uuid,
    /// The word that buyers enter.
    #[schema(example = "SPRING-10")]
    pub code: String,
    /// Whose listings become cheaper; none: everybody's, and the market gives what it takes off.
    pub seller_id: Option<Uuid>,
    /// Whether it is everybody's.
    pub all_sellers: bool,
    /// How many percent are taken off, if it is a percentage.
    pub percentage: Option<u32>,
    /// How much is taken off, if it is an amount.
    pub amount: Option<MoneyBody>,
    /// What an order must cost without the code, at least.
    pub minimum: Option<MoneyBody>,
    /// From when the code counts.
    #[schema(format = DateTime)]
    pub valid_from: String,
    /// Until when.
    #[schema(format = DateTime)]
    pub valid_until: Option<String>,
    /// For how many orders it counts.
    pub uses_max: u32,
    /// For how many orders of one buyer.
    pub uses_per_buyer_max: u32,
    /// How many orders have it.
    pub uses: u32,
    /// When it was ended, if it was.
    #[schema(format = DateTime)]
    pub ended_at: Option<String>,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The version; also the `ETag`.
    pub version: u64,
}

impl PromotionBody {
    fn new(details: &PromotionDetails) -> Self {
        let (percentage, amount) = match details.discount {
            Discount::Percentage { percentage } => (Some(percentage), None),
            Discount::Amount { money } => (None, Some(money.into())),
        };
        Self {
            id: details.promotion_id.uuid(),
            promotion_id: details.promotion_id.uuid(),
            code: details.code.clone(),
            seller_id: (!details.is_the_markets()).then_some(details.seller_id.uuid()),
            all_sellers: details.is_the_markets(),
            percentage,
            amount,
            minimum: details.minimum.map(Into::into),
            valid_from: details.valid_from.to_string(),
            valid_until: details.valid_until.map(|at| at.to_string()),
            uses_max: details.uses_max,
            uses_per_buyer_max: details.uses_per_buyer_max,
            uses: details.uses,
            ended_at: details.ended_at.map(|at| at.to_string()),
            created_at: details.created_at.to_string(),
            version: 0,
        }
    }
}

fn view(promotion: &Promotion) -> Option<PromotionBody> {
    promotion.details.as_ref().map(PromotionBody::new)
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such promotion, or not for this caller")
}

/// A promotion, if the caller keeps it.
async fn theirs(app: &App, call: &Call, id: PromotionId) -> Result<PromotionBody, ApiError> {
    let done = app.runtime().aggregate::<Promotion>().read(id.uuid(), view).await?;
    let (body, done) = split(done);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    let keeper = body.seller_id.map_or(UserId::ADMINISTRATORS, UserId);
    let may_see = call.caller().may_act_for(keeper);
    if may_see { Ok(body) } else { Err(missing()) }
}

/// Offer a promotion code
///
/// For verified sellers, and for administrators in a seller's name. The seller gives the discount: the
/// order costs less, and so the seller gets less. With `all_sellers` an administrator makes a code that
/// counts for every seller: then the market gives the discount, and the seller gets the full price.
#[utoipa::path(post, path = "/promotions", tag = "promotions", request_body = NewPromotion,
    responses((status = 201, description = "The promotion", body = PromotionBody)))]
async fn create_promotion(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewPromotion>,
) -> Result<Answer<PromotionBody>, ApiError> {
    let body = valid.body;
    let seller_id = match (body.all_sellers, body.seller_id) {
        (Some(true), _) => UserId::ADMINISTRATORS,
        (_, Some(seller_id)) => seller_id,
        (_, None) => call.someone()?,
    };
    let discount = match (body.percentage, body.amount) {
        (_, Some(money)) => Discount::Amount { money },
        (percentage, None) => Discount::Percentage { percentage: percentage.unwrap_or_default() },
    };
    let promotion_id = PromotionId::of_code(&normal_code(&body.code));
    let uses_max = body.uses_max.unwrap_or(USES_MAX);
    let create = PromotionCommand::Create(Box::new(Creation {
        caller: call.caller(),
        promotion_id,
        code: body.code,
        seller_id,
        seller_standing: seller_standing(&app, seller_id).await?,
        discount,
        minimum: body.minimum,
        valid_from: body.valid_from,
        valid_until: body.valid_until,
        uses_max,
        uses_per_buyer_max: body.uses_per_buyer_max.unwrap_or(1),
        now: app.now(),
    }));
    let context = call.context(&app, "promotions.create", "", &valid.canonical);
    let promotions = app.runtime().aggregate::<Promotion>();
    let (body, done) = split(promotions.send(promotion_id.uuid(), create, context, view).await?);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    Ok(Answer::created(&format!("/api/v1/promotions/{promotion_id}"), body).after(&done))
}

/// A promotion code
///
/// For its seller and administrators.
#[utoipa::path(get, path = "/promotions/{id}", tag = "promotions", params(("id" = String, Path)),
    responses((status = 200, description = "The promotion", body = PromotionBody)))]
async fn get_promotion(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let body = theirs(&app, &call, path_id(&id)?).await?;
    let version = body.version;
    Ok(Answer::ok(body).at_version(version, &if_none_match))
}

/// End a promotion
///
/// The code counts for no more orders. Orders that have it keep it.
#[utoipa::path(post, path = "/promotions/{id}/end", tag = "promotions",
    params(("id" = String, Path)),
    responses((status = 200, description = "The promotion as it is now", body = PromotionBody)))]
async fn end_promotion(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<PromotionBody>, ApiError> {
    let id: PromotionId = path_id(&id)?;
    theirs(&app, &call, id).await?;
    let command = PromotionCommand::End { caller: call.caller(), now: app.now() };
    let context = call.change_context(&app, "promotions.end", &id.to_string(), &valid.canonical);
    let promotions = app.runtime().aggregate::<Promotion>();
    let (body, done) = split(promotions.send(id.uuid(), command, context, view).await?);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    Ok(Answer::ok(body).after(&done))
}

/// My promotion codes
#[utoipa::path(get, path = "/me/promotions", tag = "promotions",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first", body = Page<PromotionBody>)))]
async fn my_promotions(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<PromotionBody>>, ApiError> {
    let seller = call.someone()?;
    list(&app, &call, &params, Some(seller)).await
}

/// All promotion codes
///
/// Of all sellers and of the market; with `all_sellers=true` only the market's.
#[utoipa::path(get, path = "/admin/promotions", tag = "admin",
    params(("all_sellers" = Option<bool>, Query), ("limit" = Option<u32>, Query),
        ("cursor" = Option<String>, Query), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first", body = Page<PromotionBody>)))]
async fn all_promotions(
    State(app): State<App>,
    Staff(call): Staff,
    params: Params,
) -> Result<Answer<Page<PromotionBody>>, ApiError> {
    let whose = params.truth("all_sellers")?.unwrap_or_default();
    list(&app, &call, &params, whose.then_some(UserId::ADMINISTRATORS)).await
}

async fn list(
    app: &App,
    call: &Call,
    params: &Params,
    seller: Option<UserId>,
) -> Result<Answer<Page<PromotionBody>>, ApiError> {
    app.includes(PROMOTIONS_VIEW, params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let seller = seller.map(UserId::uuid);
    let rows = app.reads().promotions(seller, before, limit + 1).await?;
    let mut bodies = Vec::with_capacity(rows.len());
    for row in &rows {
        bodies.push(theirs(app, call, PromotionId(row.promotion_id)).await?);
    }
    let keyed: Vec<_> = rows.into_iter().zip(bodies).map(Listed).collect();
    let cursor = |Listed((row, _)): &Listed| (row.created_at.millis(), row.promotion_id);
    Ok(params.rows(app, keyed, limit, cursor).projected(app, PROMOTIONS_VIEW))
}

/// Every promotion of a seller, the newest first.
pub(super) async fn all_of(
    app: &App,
    call: &Call,
    seller: UserId,
) -> Result<Vec<PromotionBody>, ApiError> {
    let page = |before| app.reads().promotions(Some(seller.uuid()), before, PAGE);
    let mut all = Vec::new();
    for row in pages::all(page, |row| (row.created_at.millis(), row.promotion_id)).await? {
        all.push(theirs(app, call, PromotionId(row.promotion_id)).await?);
    }
    Ok(all)
}

/// A promotion with the row that it was found by.
struct Listed((PromotionRow, PromotionBody));

impl From<Listed> for PromotionBody {
    fn from(Listed((_, body)): Listed) -> Self {
        body
    }
}

fn refused(reason: RedemptionFailure) -> ApiError {
    ApiError::unprocessable(reason.as_str(), "/promotion_code", reason.in_words())
}

/// There is no such code for what is bought.
pub(super) fn unknown() -> ApiError {
    refused(RedemptionFailure::PromotionUnknown)
}

/// Whose code it is ([`UserId::ADMINISTRATORS`]: everybody's); none: there is no such code.
pub(super) async fn seller_of(app: &App, code: &str) -> Result<Option<UserId>, ApiError> {
    let id = PromotionId::of_code(&normal_code(code));
    let look = |promotion: &Promotion| promotion.details.as_ref().map(|it| it.seller_id);
    Ok(app.runtime().aggregate::<Promotion>().read(id.uuid(), look).await?.value)
}

/// What a code takes off an order, as far as the door knows; the promotion itself has the last word,
/// when the saga asks it to hold a use.
pub(super) async fn applied(
    app: &App,
    call: &Call,
    code: &str,
    items: &[Wanted],
) -> Result<OrderPromotion, ApiError> {
    let code = normal_code(code);
    let promotion_id = PromotionId::of_code(&code);
    let first = items.first().ok_or_else(unknown)?;
    let (seller, buyer, now) = (first.seller_id, call.someone()?, app.now());
    let mut subtotal = Money::zero(first.unit_price.currency);
    for item in items {
        let line = item.unit_price.checked_mul(item.quantity);
        let sum = line.and_then(|line| subtotal.checked_add(line));
        subtotal = sum.ok_or_else(|| refused(RedemptionFailure::PromotionNotApplicable))?;
    }
    let quote = move |promotion: &Promotion| {
        let discount = promotion.quote((seller, buyer), subtotal, now)?;
        let details = promotion.details.as_ref();
        Ok((discount, details.is_some_and(PromotionDetails::is_the_markets)))
    };
    let promotions = app.runtime().aggregate::<Promotion>();
    let quote = promotions.read(promotion_id.uuid(), quote).await?.value;
    let (discount, borne_by_market) = quote.map_err(refused)?;
    Ok(OrderPromotion { promotion_id, code, discount, borne_by_market })
}
