//! Purchases across sellers: one order each, placed together.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use souk_actors::aggregate::Aggregate as _;
use souk_actors::command::CommandError;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, composed};
use super::body::Valid;
use super::call::{Call, SignedIn};
use super::conditional::IfNoneMatch;
use super::listings::Offer;
use super::orders::{
    NewItem, NewOrder, OrderBody, OrderWish, VIEW, Wish, current, for_buyer, line, offered,
    payable, shown, usable, view,
};
use super::params::path_id;
use super::problem::ApiError;
use super::promotions;
use crate::domain::ids::{CheckoutId, ListingId, OrderId, UserId};
use crate::domain::order::{Address, Order, OrderCommand, OrderRejection, Placement, Wanted};
use crate::projections::OrderFilter;

/// How many sellers one checkout may have.
const SELLERS_MAX: usize = 20;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(check_out)).routes(routes!(get_checkout))
}

/// A purchase across sellers.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckoutBody {
    /// The checkout.
    pub checkout_id: Uuid,
    /// Its orders, one a seller. Each is paid, shipped and cancelled by itself.
    pub orders: Vec<OrderBody>,
}

/// What goes to one seller.
struct Part<'a> {
    order_id: OrderId,
    lines: Vec<(&'a NewItem, ListingId, Offer)>,
    /// Whether an earlier try of the same request has placed it.
    placed: bool,
    /// Whether the promotion code is for this seller's order.
    promoted: bool,
}

impl Part<'_> {
    fn costs(&self) -> i64 {
        let line = |(item, _, offer): &(&NewItem, ListingId, Offer)| {
            offer.price.checked_mul(item.quantity).map_or(i64::MAX, |line| line.amount)
        };
        self.lines.iter().map(line).fold(0, i64::saturating_add)
    }
}

async fn parts<'a>(
    app: &App,
    checkout: CheckoutId,
    wish: &'a Wish,
) -> Result<BTreeMap<UserId, Part<'a>>, ApiError> {
    let mut parts = BTreeMap::new();
    let orders = app.runtime().aggregate::<Order>();
    for (index, item) in wish.items.iter().enumerate() {
        let (listing, offer) = offered(app, index, item).await?;
        let seller = offer.seller_id;
        if let Entry::Vacant(place) = parts.entry(seller) {
            let order_id = OrderId::of_checkout(checkout, seller);
            let known = |order: &Order| order.details.is_some();
            let placed = orders.read(order_id.uuid(), known).await?.value;
            place.insert(Part { order_id, lines: Vec::new(), placed, promoted: false });
        }
        if let Some(part) = parts.get_mut(&seller) {
            part.lines.push((item, listing, offer));
        }
    }
    if parts.len() > SELLERS_MAX {
        let detail = format!("at most {SELLERS_MAX} sellers in one checkout");
        return Err(ApiError::invalid_field("/items", "too_many_sellers", &detail));
    }
    Ok(parts)
}

/// The command of one part. What is not placed yet must be possible as far as the door knows.
async fn placement(
    app: &App,
    call: &Call,
    checkout: CheckoutId,
    (wish, delivery_address): (&Wish, &Address),
    part: Part<'_>,
) -> Result<(OrderId, OrderCommand), ApiError> {
    let Part { order_id, lines, placed, promoted } = part;
    let mut items: Vec<Wanted> = Vec::with_capacity(lines.len());
    for (item, listing, offer) in lines {
        items.push(match placed {
            true => line(item, listing, offer),
            false => for_buyer(app, call, item, listing, offer).await?,
        });
    }
    let mut promotion = None;
    if !placed {
        if let Some(code) = wish.promotion_code.as_ref().filter(|_| promoted) {
            promotion = Some(promotions::applied(app, call, code, &items).await?);
        }
        payable(&wish.payment_method, &items, promotion.as_ref())?;
    }
    let command = OrderCommand::Place(Box::new(Placement {
        caller: call.caller(),
        order_id,
        items,
        delivery_address: delivery_address.clone(),
        payment_method: wish.payment_method.clone(),
        saga_definition: wish.saga_definition,
        checkout_id: Some(checkout),
        promotion,
        as_transaction: false,
        now: app.now(),
    }));
    // What the order itself would refuse is refused before anything is placed.
    if !placed && let Err(rejection) = Order::default().decide(&command) {
        let refused =
            CommandError::<OrderRejection>::Rejected { rejection, version: 0, replayed: false };
        return Err(refused.into());
    }
    Ok((order_id, command))
}

/// Buy of several sellers
///
/// One order for each of them, under one `checkout_id`. Nothing is placed when the door knows of
/// anything that cannot be bought. What comes after that is decided for each order by itself. The
/// `Idempotency-Key` is required: whoever gets no answer repeats the request with the same one, and
/// what has been placed is not placed again. A promotion code counts for what is bought of its seller; one
/// of the market for the order that costs most.
#[utoipa::path(post, path = "/checkouts", tag = "orders", request_body = NewOrder,
    responses((status = 201, description = "The orders", body = CheckoutBody)))]
async fn check_out(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<OrderWish>,
) -> Result<Response, ApiError> {
    if !call.is_repeatable() {
        let detail = "send an Idempotency-Key: a repeat must not buy a second time";
        return Err(ApiError::bad_request("idempotency_key_required", detail));
    }
    let Valid { body: OrderWish(wish), canonical } = valid;
    usable(&app, &wish.payment_method)?;
    let checkout = CheckoutId(call.new_id(&app, "checkouts.create"));
    let mut commands = Vec::new();
    let mut parts = parts(&app, checkout, &wish).await?;
    let repeated = parts.values().all(|part| part.placed);
    if let Some(code) = wish.promotion_code.as_ref().filter(|_| !repeated) {
        let seller = promotions::seller_of(&app, code).await?;
        let part = seller.and_then(|seller| match seller {
            // One order has it: the one that costs most.
            UserId::ADMINISTRATORS => parts.values_mut().max_by_key(|part| part.costs()),
            seller => parts.get_mut(&seller),
        });
        part.ok_or_else(promotions::unknown)?.promoted = true;
    }
    let destination = wish.destination.clone();
    let address = destination.find(&app, &call, repeated).await?;
    for part in parts.into_values() {
        commands.push(placement(&app, &call, checkout, (&wish, &address), part).await?);
    }
    let orders = app.runtime().aggregate::<Order>();
    let (mut bodies, mut positions) = (Vec::new(), Vec::new());
    for (order_id, command) in commands {
        let operation = format!("checkouts.create {order_id}");
        let context = call.context(&app, &operation, "", &canonical);
        let (body, done) = shown(orders.send(order_id.uuid(), command, context, view).await?)?;
        bodies.push(body);
        positions.extend(done.position);
    }
    let body = CheckoutBody { checkout_id: checkout.uuid(), orders: bodies };
    let location = format!("/api/v1/checkouts/{checkout}");
    Ok(Answer::created(&location, body).after_all(positions).into_response())
}

/// A checkout
#[utoipa::path(get, path = "/checkouts/{id}", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "Its orders as they are now", body = CheckoutBody)))]
async fn get_checkout(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let checkout: CheckoutId = path_id(&id)?;
    // It may have been made a moment ago.
    app.projected_all(VIEW).await?;
    let filter = OrderFilter { checkout_id: Some(checkout.uuid()), ..OrderFilter::default() };
    let limit = u32::try_from(SELLERS_MAX).unwrap_or(u32::MAX);
    let mut orders = Vec::new();
    for row in app.reads().orders(&filter, None, limit).await? {
        let body = current(&app, OrderId(row.order_id)).await?;
        if body.may_be_seen_by(&call) {
            orders.push(body);
        }
    }
    if orders.is_empty() {
        return Err(ApiError::not_found("there is no such checkout, or not for this caller"));
    }
    Ok(composed(&CheckoutBody { checkout_id: checkout.uuid(), orders }, &theirs))
}
