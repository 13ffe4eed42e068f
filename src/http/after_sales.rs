//! Returns of what was delivered, and disputes about it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use souk_actors::personal::Personal;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, composed, shown, split};
use super::body::{Fields, FromFields, Unread, Valid};
use super::call::{Call, SignedIn, Staff};
use super::conditional::IfNoneMatch;
use super::money::MoneyBody;
use super::orders::{self, OrderSummary, named};
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::ids::{ListingId, OrderId, PaymentId, RefundId, ReturnId};
use crate::domain::money::Money;
use crate::domain::order::after_sales::{
    DecidedBy, DisputeDetails, DisputeReason, ReturnDecision, ReturnDetails, ReturnReason,
    ReturnRequest, ReturnStatus,
};
use crate::domain::order::{ITEMS_MAX, Order, OrderCommand, OrderDetails};
use crate::domain::payment::{Payment, RefundDetails};
use crate::projections::OrderFilter;

/// How a dispute stands that is not decided.
pub(super) const OPEN: &str = "OPEN";
const RESOLVED: &str = "RESOLVED";
/// How disputes may stand.
pub(super) const DISPUTES: [&str; 2] = [OPEN, RESOLVED];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(request_return, list_returns))
        .routes(routes!(get_return))
        .routes(routes!(accept_return))
        .routes(routes!(refuse_return))
        .routes(routes!(open_dispute, get_dispute))
        .routes(routes!(list_disputes))
        .routes(routes!(resolve_dispute))
}

/// What is to come back, and why.
#[derive(ToSchema)]
pub struct NewReturn {
    /// What comes back; everything that has not yet when absent.
    #[schema(min_items = 1, max_items = 100)]
    pub items: Option<Vec<ReturnedItem>>,
    /// `damaged`, `not_as_described`, `wrong_item`, `no_longer_wanted` or `other`.
    #[schema(value_type = String, example = "damaged")]
    pub reason: ReturnReason,
    /// Why, in the buyer's words.
    #[schema(max_length = 500)]
    pub comment: Option<String>,
}

/// One line of a return.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReturnedItem {
    /// The listing.
    pub listing_id: Uuid,
    /// How many units.
    #[schema(minimum = 1)]
    pub quantity: u32,
}

/// One of a few words.
fn word<T: DeserializeOwned + Serialize>(
    fields: &mut Fields<'_>,
    name: &'static str,
    all: &[T],
) -> Option<T> {
    let text = fields.text(&[name])?;
    let found = serde_json::from_value(serde_json::Value::from(text)).ok();
    if found.is_none() {
        let words: Vec<_> = all.iter().map(|word| serde_json::json!(word).to_string()).collect();
        fields.error(name, "unknown_value", format!("must be one of {}", words.join(", ")));
    }
    found
}

impl FromFields for NewReturn {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let items = fields.has(&["items"]).then(|| {
            fields.objects(&["items"], ITEMS_MAX, |fields| {
                let listing_id: Option<ListingId> =
                    fields.parsed(&["listing_id", "listingId", "product_id", "productId"]);
                let quantity = fields.count(&["quantity"]);
                Some(ReturnedItem { listing_id: listing_id?.uuid(), quantity: quantity? })
            })
        });
        let reason = word(fields, "reason", ReturnReason::ALL);
        let comment = fields.optional_text(&["comment"]);
        let items = match items {
            Some(given) => Some(given?),
            None => None,
        };
        Some(Self { items, reason: reason?, comment })
    }
}

/// A return.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReturnBody {
    /// The return.
    pub return_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// `REQUESTED`, `ACCEPTED` or `REFUSED`.
    #[schema(value_type = String, example = "REQUESTED")]
    pub status: ReturnStatus,
    /// What comes back.
    pub items: Vec<ReturnedItem>,
    /// How much money goes back for it.
    pub refund: RefundBody,
    /// Why.
    #[schema(value_type = String, example = "damaged")]
    pub reason: ReturnReason,
    /// Why, in the buyer's words; `[erased]` after an erasure.
    pub comment: Option<String>,
    /// Why it was refused, in the words of who refused; `[erased]` after an erasure.
    pub refused_because: Option<String>,
    /// Who decided: `seller`, `admin`, or `system` when nobody did in time.
    #[schema(value_type = Option<String>)]
    pub decided_by: Option<DecidedBy>,
    /// Until when the seller can answer; then it is accepted.
    #[schema(format = DateTime)]
    pub answer_by: String,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub requested_at: String,
    /// When it was decided.
    #[schema(format = DateTime)]
    pub decided_at: Option<String>,
}

/// Money that goes back.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RefundBody {
    /// The refund.
    pub refund_id: Uuid,
    /// How much.
    pub amount: MoneyBody,
    /// `NONE` while nothing is decided, then `REQUESTED` of the provider, `DONE`, or `REFUSED`, which
    /// an administrator has to see to.
    #[schema(example = "REQUESTED")]
    pub status: String,
}

impl RefundBody {
    fn new(refund_id: RefundId, amount: Money) -> Self {
        let status = "NONE".to_owned();
        Self { refund_id: refund_id.uuid(), amount: amount.into(), status }
    }

    fn stands(&mut self, refunds: &[RefundDetails]) {
        let id = RefundId(self.refund_id);
        if let Some(refund) = refunds.iter().find(|refund| refund.refund_id == id) {
            let status = match refund {
                RefundDetails { done: true, .. } => "DONE",
                RefundDetails { refused: true, .. } => "REFUSED",
                _ => "REQUESTED",
            };
            status.clone_into(&mut self.status);
        }
    }
}

pub(super) fn shown_comment(comment: Option<&Personal<String>>) -> Option<String> {
    comment.map(|words| shown(words, true))
}

impl ReturnBody {
    fn new(order: &OrderDetails, it: &ReturnDetails) -> Self {
        let amount = Money::new(it.amount, order.total.currency);
        let items = it.items.iter().map(|line| ReturnedItem {
            listing_id: line.listing_id.uuid(),
            quantity: line.quantity,
        });
        Self {
            return_id: it.return_id.uuid(),
            order_id: order.order_id.uuid(),
            status: it.status,
            items: items.collect(),
            refund: RefundBody::new(RefundId::of_return(it.return_id), amount),
            reason: it.reason,
            comment: shown_comment(it.comment.as_ref()),
            refused_because: shown_comment(it.refusal.as_ref()).or_else(|| it.note.clone()),
            decided_by: it.decided_by,
            answer_by: it.answer_by.to_string(),
            requested_at: it.requested_at.to_string(),
            decided_at: it.decided_at.map(|at| at.to_string()),
        }
    }
}

/// The return of an order, as the order knows it.
fn look(return_id: ReturnId) -> impl Fn(&Order) -> Option<ReturnBody> + Send + 'static {
    move |order| {
        let order = order.details.as_ref()?;
        let mut all = order.after_sales.returns.iter();
        Some(ReturnBody::new(order, all.find(|it| it.return_id == return_id)?))
    }
}

fn missing() -> ApiError {
    ApiError::not_found("this order has no such return")
}

/// How the provider stands to the refunds of an order.
async fn refunds(app: &App, order: OrderId) -> Result<Vec<RefundDetails>, ApiError> {
    let look = |payment: &Payment| {
        payment.details.as_ref().map(|details| details.refunds.clone()).unwrap_or_default()
    };
    let payments = app.runtime().aggregate::<Payment>();
    Ok(payments.read(PaymentId::of(order).uuid(), look).await?.value)
}

async fn seen(app: &App, call: &Call, id: &str) -> Result<OrderId, ApiError> {
    Ok(OrderId(named(app, call, id).await?.order_id))
}

/// Ask to send goods back
///
/// Within 14 days of their delivery, one return at a time. The seller accepts or refuses it; after
/// seven days without an answer it is accepted. The money goes back as soon as it is.
#[utoipa::path(post, path = "/orders/{id}/returns", tag = "after-sales",
    params(("id" = String, Path)), request_body = NewReturn,
    responses((status = 201, description = "The return", body = ReturnBody)))]
async fn request_return(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Response, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let valid = unread.read::<NewReturn>(&app).await?;
    let return_id = ReturnId(call.new_id(&app, "orders.return"));
    let items = valid.body.items.unwrap_or_default();
    let command = OrderCommand::RequestReturn(Box::new(ReturnRequest {
        caller: call.caller(),
        return_id,
        items: items.iter().map(|item| (ListingId(item.listing_id), item.quantity)).collect(),
        reason: valid.body.reason,
        comment: valid.body.comment,
        now: app.now(),
    }));
    let context = call.context(&app, "orders.return", &order.to_string(), &valid.canonical);
    let orders = app.runtime().aggregate::<Order>();
    let sent = orders.send(order.uuid(), command, context, look(return_id)).await?;
    let (body, done) = split(sent);
    let location = format!("/api/v1/orders/{order}/returns/{return_id}");
    Ok(Answer::created(&location, body.ok_or_else(missing)?).after(&done).into_response())
}

/// The returns of an order
#[utoipa::path(get, path = "/orders/{id}/returns", tag = "after-sales",
    params(("id" = String, Path)),
    responses((status = 200, description = "All of them, the first one first",
        body = Page<ReturnBody>)))]
async fn list_returns(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
) -> Result<Answer<Page<ReturnBody>>, ApiError> {
    let order = seen(&app, &call, &id).await?;
    Ok(Answer::ok(Page::whole(returns_of(&app, order).await?)))
}

/// The returns of an order, as they stand.
pub(super) async fn returns_of(app: &App, order: OrderId) -> Result<Vec<ReturnBody>, ApiError> {
    let all = |order: &Order| match &order.details {
        Some(order) => {
            order.after_sales.returns.iter().map(|it| ReturnBody::new(order, it)).collect()
        }
        None => Vec::new(),
    };
    let mut returns: Vec<ReturnBody> =
        app.runtime().aggregate::<Order>().read(order.uuid(), all).await?.value;
    if returns.is_empty() {
        return Ok(returns);
    }
    let known = refunds(app, order).await?;
    for it in &mut returns {
        it.refund.stands(&known);
    }
    Ok(returns)
}

/// A return
#[utoipa::path(get, path = "/orders/{id}/returns/{return_id}", tag = "after-sales",
    params(("id" = String, Path), ("return_id" = String, Path)),
    responses((status = 200, description = "The return", body = ReturnBody)))]
async fn get_return(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path((id, return_id)): Path<(String, String)>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let return_id: ReturnId = path_id(&return_id)?;
    let orders = app.runtime().aggregate::<Order>();
    let mut body = orders.read(order.uuid(), look(return_id)).await?.value.ok_or_else(missing)?;
    body.refund.stands(&refunds(&app, order).await?);
    Ok(composed(&body, &theirs))
}

/// How a return is accepted.
#[derive(ToSchema)]
pub struct Acceptance {
    /// Whether the goods can be sold again; `true` when absent.
    pub restock: Option<bool>,
}

impl FromFields for Acceptance {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { restock: fields.optional_bool(&["restock"]) })
    }
}

/// Why a return is refused.
#[derive(ToSchema)]
pub struct Refusal {
    /// Why, for the buyer.
    #[schema(min_length = 1, max_length = 500)]
    pub reason: String,
}

impl FromFields for Refusal {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { reason: fields.text(&["reason"])? })
    }
}

async fn decide(
    app: &App,
    call: &Call,
    order: OrderId,
    decision: ReturnDecision,
    (operation, canonical): (&str, &[u8]),
) -> Result<Answer<ReturnBody>, ApiError> {
    let return_id = decision.return_id;
    let target = format!("{order}/{return_id}");
    let context = call.change_context(app, operation, &target, canonical);
    let orders = app.runtime().aggregate::<Order>();
    let command = OrderCommand::DecideReturn(Box::new(decision));
    let sent = orders.send(order.uuid(), command, context, look(return_id)).await?;
    let (body, done) = split(sent);
    Ok(Answer::ok(body.ok_or_else(missing)?).after(&done))
}

/// Take goods back
///
/// By the seller or an administrator. The money for them goes back to the buyer, and they can be sold
/// again unless `restock` is false.
#[utoipa::path(post, path = "/orders/{id}/returns/{return_id}/accept", tag = "after-sales",
    params(("id" = String, Path), ("return_id" = String, Path)), request_body = Acceptance,
    responses((status = 200, description = "The return as it is now", body = ReturnBody)))]
async fn accept_return(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path((id, return_id)): Path<(String, String)>,
    unread: Unread,
) -> Result<Answer<ReturnBody>, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let return_id = path_id(&return_id)?;
    let valid = unread.read::<Acceptance>(&app).await?;
    let decision = ReturnDecision {
        caller: call.caller(),
        return_id,
        accepted: true,
        restock: valid.body.restock.unwrap_or(true),
        note: None,
        now: app.now(),
    };
    decide(&app, &call, order, decision, ("returns.accept", &valid.canonical)).await
}

/// Do not take goods back
///
/// By the seller or an administrator. The buyer may open a dispute.
#[utoipa::path(post, path = "/orders/{id}/returns/{return_id}/refuse", tag = "after-sales",
    params(("id" = String, Path), ("return_id" = String, Path)), request_body = Refusal,
    responses((status = 200, description = "The return as it is now", body = ReturnBody)))]
async fn refuse_return(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path((id, return_id)): Path<(String, String)>,
    unread: Unread,
) -> Result<Answer<ReturnBody>, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let return_id = path_id(&return_id)?;
    let valid = unread.read::<Refusal>(&app).await?;
    let decision = ReturnDecision {
        caller: call.caller(),
        return_id,
        accepted: false,
        restock: false,
        note: Some(valid.body.reason),
        now: app.now(),
    };
    decide(&app, &call, order, decision, ("returns.refuse", &valid.canonical)).await
}

/// Why a buyer disagrees.
#[derive(ToSchema)]
pub struct NewDispute {
    /// `not_received`, `damaged`, `not_as_described`, `return_refused` or `other`.
    #[schema(value_type = String, example = "not_received")]
    pub reason: DisputeReason,
    /// Why, in the buyer's words.
    #[schema(max_length = 500)]
    pub comment: Option<String>,
}

impl FromFields for NewDispute {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let reason = word(fields, "reason", DisputeReason::ALL);
        let comment = fields.optional_text(&["comment"]);
        Some(Self { reason: reason?, comment })
    }
}

/// A dispute.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DisputeBody {
    /// The order.
    pub order_id: Uuid,
    /// `OPEN` or `RESOLVED`.
    #[schema(example = "OPEN")]
    pub status: String,
    /// Why.
    #[schema(value_type = String, example = "not_received")]
    pub reason: DisputeReason,
    /// Why, in the buyer's words; `[erased]` after an erasure.
    pub comment: Option<String>,
    /// How much money goes back, once it is decided that some does.
    pub refund: Option<RefundBody>,
    /// Why it was decided so.
    pub resolution: Option<String>,
    /// When it was opened.
    #[schema(format = DateTime)]
    pub disputed_at: String,
    /// When it was decided.
    #[schema(format = DateTime)]
    pub resolved_at: Option<String>,
}

impl DisputeBody {
    fn new(order: &OrderDetails, dispute: &DisputeDetails) -> Self {
        let resolution = dispute.resolution.as_ref();
        let refund = resolution.filter(|it| it.amount > 0).map(|it| {
            let amount = Money::new(it.amount, order.total.currency);
            RefundBody::new(RefundId::of_dispute(order.order_id), amount)
        });
        Self {
            order_id: order.order_id.uuid(),
            status: if resolution.is_some() { RESOLVED } else { OPEN }.to_owned(),
            reason: dispute.reason,
            comment: shown_comment(dispute.comment.as_ref()),
            refund,
            resolution: resolution.map(|it| it.reason.clone()),
            disputed_at: dispute.disputed_at.to_string(),
            resolved_at: resolution.map(|it| it.resolved_at.to_string()),
        }
    }
}

fn dispute(order: &Order) -> Option<DisputeBody> {
    let order = order.details.as_ref()?;
    Some(DisputeBody::new(order, order.after_sales.dispute.as_ref()?))
}

fn undisputed() -> ApiError {
    let detail = "there is no dispute about this order";
    ApiError::new(StatusCode::NOT_FOUND, "no_dispute", detail)
}

/// Disagree
///
/// By the buyer, once the order is shipped and until 30 days after its delivery. The money waits in
/// escrow until an administrator has decided. Whoever asks once more while the dispute is open gets it as
/// it is.
#[utoipa::path(post, path = "/orders/{id}/dispute", tag = "after-sales",
    params(("id" = String, Path)), request_body = NewDispute,
    responses((status = 201, description = "The dispute", body = DisputeBody),
        (status = 200, description = "The dispute, which was open already", body = DisputeBody)))]
async fn open_dispute(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Response, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let Valid { body, canonical } = unread.read::<NewDispute>(&app).await?;
    let NewDispute { reason, comment } = body;
    let command = OrderCommand::Dispute { caller: call.caller(), reason, comment, now: app.now() };
    let context = call.context(&app, "orders.dispute", &order.to_string(), &canonical);
    let orders = app.runtime().aggregate::<Order>();
    let (body, done) = split(orders.send(order.uuid(), command, context, dispute).await?);
    let body = body.ok_or_else(undisputed)?;
    let location = format!("/api/v1/orders/{order}/dispute");
    // Another one finds the first.
    let is_new = done.events > 0;
    let answer = if is_new { Answer::created(&location, body) } else { Answer::ok(body) };
    Ok(answer.after(&done).into_response())
}

/// The dispute about an order
#[utoipa::path(get, path = "/orders/{id}/dispute", tag = "after-sales",
    params(("id" = String, Path)),
    responses((status = 200, description = "The dispute", body = DisputeBody)))]
async fn get_dispute(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let body = dispute_of(&app, order).await?.ok_or_else(undisputed)?;
    Ok(composed(&body, &theirs))
}

/// The dispute about an order, as it stands, if there is or was one.
pub(super) async fn dispute_of(app: &App, order: OrderId) -> Result<Option<DisputeBody>, ApiError> {
    let orders = app.runtime().aggregate::<Order>();
    let mut found = orders.read(order.uuid(), dispute).await?.value;
    if let Some(refund) = found.as_mut().and_then(|body| body.refund.as_mut()) {
        refund.stands(&refunds(app, order).await?);
    }
    Ok(found)
}

/// The orders that are disputed
#[utoipa::path(get, path = "/admin/disputes", tag = "admin",
    params(("status" = Option<String>, Query, description = "`OPEN`, as when absent, or `RESOLVED`"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest order first",
        body = Page<OrderSummary>)))]
async fn list_disputes(
    State(app): State<App>,
    Staff(_): Staff,
    params: Params,
) -> Result<Answer<Page<OrderSummary>>, ApiError> {
    let status = params.one_of("status", &DISPUTES)?.unwrap_or(OPEN);
    let filter = OrderFilter { dispute: Some(status.to_owned()), ..OrderFilter::default() };
    orders::list(&app, &params, filter).await
}

/// What is decided.
#[derive(ToSchema)]
pub struct DisputeDecision {
    /// How much of the money goes back to the buyer, in minor units; the rest is the seller's.
    #[schema(minimum = 0)]
    pub refund_amount: i64,
    /// Why, for both.
    #[schema(min_length = 1, max_length = 500)]
    pub reason: String,
}

impl FromFields for DisputeDecision {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let refund_amount = fields.integer(&["refund_amount", "refundAmount"]);
        let reason = fields.text(&["reason"]);
        Some(Self { refund_amount: refund_amount?, reason: reason? })
    }
}

/// Decide a dispute
///
/// A part of the money or all of it goes back to the buyer, and what is left is released to the
/// seller at once. There is no second decision. When all goes back for what was never sent, the
/// shipment is called off and the goods can be bought again.
#[utoipa::path(post, path = "/admin/orders/{id}/dispute/resolve", tag = "admin",
    params(("id" = String, Path)), request_body = DisputeDecision,
    responses((status = 200, description = "The dispute as it is now", body = DisputeBody)))]
async fn resolve_dispute(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<DisputeBody>, ApiError> {
    let order = seen(&app, &call, &id).await?;
    let Valid { body, canonical } = unread.read::<DisputeDecision>(&app).await?;
    let command = OrderCommand::ResolveDispute {
        caller: call.caller(),
        refund: body.refund_amount,
        reason: body.reason,
        now: app.now(),
    };
    let context = call.change_context(&app, "disputes.resolve", &order.to_string(), &canonical);
    let orders = app.runtime().aggregate::<Order>();
    let (body, done) = split(orders.send(order.uuid(), command, context, dispute).await?);
    Ok(Answer::ok(body.ok_or_else(undisputed)?).after(&done))
}
