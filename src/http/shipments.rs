//! Shipments of orders.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::aggregate::Rejection as _;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Nothing, Valid};
use super::call::{Call, SignedIn};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id, wrong};
use super::problem::ApiError;
use crate::domain::ids::{OrderId, ShipmentId};
use crate::domain::order::{Order, OrderRejection, OrderStatus};
use crate::domain::shipment::{Shipment, ShipmentCommand, ShipmentStatus};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_shipments))
        .routes(routes!(get_shipment))
        .routes(routes!(dispatch_shipment))
        .routes(routes!(deliver_shipment))
}

/// A shipment.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShipmentBody {
    /// The shipment.
    pub id: Uuid,
    /// The same.
    pub shipment_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// Who sends.
    pub seller_id: Uuid,
    /// Who receives.
    pub buyer_id: Uuid,
    /// `CREATED`, `DISPATCHED`, `DELIVERED` or `CANCELLED`.
    #[schema(value_type = String, example = "CREATED")]
    pub status: ShipmentStatus,
    /// The number under which it can be followed.
    pub tracking_number: String,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it left.
    #[schema(format = DateTime)]
    pub dispatched_at: Option<String>,
    /// When it arrived.
    #[schema(format = DateTime)]
    pub delivered_at: Option<String>,
    /// The version; also the `ETag`.
    pub version: u64,
}

fn view(shipment: &Shipment) -> Option<ShipmentBody> {
    let details = shipment.details.as_ref()?;
    Some(ShipmentBody {
        id: details.shipment_id.uuid(),
        shipment_id: details.shipment_id.uuid(),
        order_id: details.order_id.uuid(),
        seller_id: details.seller_id.uuid(),
        buyer_id: details.buyer_id.uuid(),
        status: details.status,
        tracking_number: details.tracking_number.clone(),
        created_at: details.created_at.to_string(),
        dispatched_at: details.dispatched_at.map(|at| at.to_string()),
        delivered_at: details.delivered_at.map(|at| at.to_string()),
        version: 0,
    })
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such shipment, or not for this caller")
}

/// The shipment, if there is one that the caller may see.
async fn visible(app: &App, call: &Call, id: ShipmentId) -> Result<Option<ShipmentBody>, ApiError> {
    let user = call.someone()?.uuid();
    let done = app.runtime().aggregate::<Shipment>().read(id.uuid(), view).await?;
    let version = done.version;
    let body = done.value.map(|body| ShipmentBody { version, ..body });
    let concerned =
        |body: &ShipmentBody| call.is_staff() || [body.seller_id, body.buyer_id].contains(&user);
    Ok(body.filter(concerned))
}

/// The shipments of an order
///
/// An order has at most one, whose id follows from the order's: this read is never stale.
#[utoipa::path(get, path = "/shipments", tag = "shipments", params(("order_id" = String, Query)),
    responses((status = 200, description = "The shipments", body = Page<ShipmentBody>)))]
async fn list_shipments(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<ShipmentBody>>, ApiError> {
    let order = params.parsed::<OrderId>("order_id")?;
    let order = order.ok_or_else(|| wrong("order_id", "is required"))?;
    let shipment = visible(&app, &call, ShipmentId::of(order)).await?;
    Ok(Answer::ok(Page::whole(shipment.into_iter().collect())))
}

/// A shipment
#[utoipa::path(get, path = "/shipments/{id}", tag = "shipments", params(("id" = String, Path)),
    responses((status = 200, description = "The shipment", body = ShipmentBody)))]
async fn get_shipment(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let body = visible(&app, &call, path_id(&id)?).await?.ok_or_else(missing)?;
    let version = body.version;
    Ok(Answer::ok(body).at_version(version, &theirs))
}

async fn change(
    app: &App,
    call: &Call,
    id: ShipmentId,
    operation: &str,
    command: ShipmentCommand,
) -> Result<Answer<ShipmentBody>, ApiError> {
    let context = call.change_context(app, operation, &id.to_string(), b"");
    let shipments = app.runtime().aggregate::<Shipment>();
    let (body, done) = split(shipments.send(id.uuid(), command, context, view).await?);
    let body = body.ok_or_else(missing)?;
    Ok(Answer::ok(ShipmentBody { version: done.version, ..body }).after(&done))
}

/// Nothing leaves before the order says that it is shipped: what is told of it then finds the order
/// ready.
async fn ready(app: &App, order: OrderId) -> Result<(), ApiError> {
    let status = |order: &Order| order.details.as_ref().map(|details| details.status);
    match app.runtime().aggregate::<Order>().read(order.uuid(), status).await?.value {
        Some(from) if from < OrderStatus::Shipped => {
            let refused = OrderRejection::TooEarly { from };
            Err(ApiError::conflict(refused.code(), refused.to_string()))
        }
        _ => Ok(()),
    }
}

/// Say that a shipment has left
///
/// Once the order is `SHIPPED`; before, 409 `too_early`.
#[utoipa::path(post, path = "/shipments/{id}/dispatch", tag = "shipments",
    params(("id" = String, Path)),
    responses((status = 200, description = "The shipment as it is now", body = ShipmentBody)))]
async fn dispatch_shipment(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<ShipmentBody>, ApiError> {
    let id = path_id(&id)?;
    let shipment = visible(&app, &call, id).await?.ok_or_else(missing)?;
    ready(&app, OrderId(shipment.order_id)).await?;
    let command = ShipmentCommand::Dispatch { caller: call.caller(), now: app.now() };
    change(&app, &call, id, "shipments.dispatch", command).await
}

/// Say that a shipment has arrived
#[utoipa::path(post, path = "/shipments/{id}/deliver", tag = "shipments",
    params(("id" = String, Path)),
    responses((status = 200, description = "The shipment as it is now", body = ShipmentBody)))]
async fn deliver_shipment(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<ShipmentBody>, ApiError> {
    let id = path_id(&id)?;
    visible(&app, &call, id).await?.ok_or_else(missing)?;
    let command = ShipmentCommand::Deliver { caller: call.caller(), now: app.now() };
    change(&app, &call, id, "shipments.deliver", command).await
}
