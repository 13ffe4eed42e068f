//! Orders, also called transactions.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use souk_actors::command::Done;
use souk_actors::personal::Personal;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::address_book;
use super::after_sales::shown_comment;
use super::answer::{Answer, Page, composed, split};
use super::body::{Fields, FromFields, Reason, Unread, Valid};
use super::call::{Call, SignedIn};
use super::conditional::{IfNoneMatch, version_tag};
use super::listings::{Offer, listing_by_sku, offer};
use super::money::{MoneyBody, SeenPrice, seen_price};
use super::params::{Params, path_id};
use super::prefer::{self, Prefer};
use super::problem::ApiError;
use super::promotions;
use crate::domain::escrow::{Escrow, EscrowDetails, EscrowStatus};
use crate::domain::ids::{AddressId, EscrowId, ListingId, OrderId, PaymentId, ReservationId};
use crate::domain::listing::ListingStatus;
use crate::domain::money::Currency;
use crate::domain::order::{
    Address, ITEMS_MAX, Order, OrderCommand, OrderDetails, OrderPromotion, OrderStatus,
    PaymentMethod, Placement, SagaDefinition, Wanted,
};
use crate::domain::payment::{Instructions, Payment, PaymentDetails, PaymentStatus};
use crate::domain::user::UserStatus;
use crate::gateways::momo;
use crate::projections::{OrderFilter, OrderRow};

/// The projection that lists rest on.
pub(super) const VIEW: &str = "orders-view";
/// The means of payment there are.
const METHODS: &[&str] = &[
    "sandbox",
    "momo",
    "test_decline",
    "test_timeout",
    "test_late",
    "test_pending",
    "test_authorize",
    "test_hold_lost",
];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(place_order))
        .routes(routes!(create_transaction))
        .routes(routes!(get_order))
        .routes(routes!(get_transaction))
        .routes(routes!(get_history))
        .routes(routes!(get_payment))
        .routes(routes!(get_escrow))
        .routes(routes!(cancel_order))
        .routes(routes!(my_orders))
        .routes(routes!(my_sales))
}

/// What a buyer wants.
#[derive(ToSchema)]
pub struct NewOrder {
    /// What is wanted, all of one seller.
    #[schema(min_items = 1, max_items = 100)]
    pub items: Vec<NewItem>,
    /// Where to deliver to; or `address_id`.
    #[schema(value_type = Option<AddressBody>)]
    pub delivery_address: Option<AddressBody>,
    /// The same as an entry of the buyer's address book.
    pub address_id: Option<Uuid>,
    /// By which means it will be paid.
    #[schema(example = "sandbox")]
    pub payment_method: String,
    /// `reserve_first` (when absent) or `payment_first`.
    #[schema(example = "reserve_first")]
    pub payment_flow: Option<String>,
    /// A promotion code of the seller or of the market; one that does not count is 422 and says why.
    #[schema(max_length = 32)]
    pub promotion_code: Option<String>,
}

/// One line of it.
#[derive(Debug, ToSchema)]
pub struct NewItem {
    /// The listing, by its id (also as `product_id`) or by its seller's `sku`; one of them is
    /// required, and the id comes first.
    #[schema(value_type = Option<Uuid>)]
    pub listing_id: Option<ListingId>,
    /// The stock-keeping unit. Where several sellers offer one, 422 `sku_ambiguous`.
    pub sku: Option<String>,
    /// How many units.
    #[schema(minimum = 1)]
    pub quantity: u32,
    /// The price of one that the buyer saw; another one now is 409 `price_changed`, and so is another
    /// currency, if one is said.
    #[schema(value_type = Option<MoneyBody>)]
    pub(super) unit_price: Option<SeenPrice>,
}

/// Where to deliver to.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AddressBody {
    /// Who takes it, when it is not the buyer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// House and street; also as `street`.
    pub line1: String,
    /// Flat, floor, building.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line2: Option<String>,
    /// The ward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ward: Option<String>,
    /// The district.
    pub district: String,
    /// The city.
    pub city: String,
    /// The postal code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postal_code: Option<String>,
    /// The country, as two upper-case letters; `VN` when absent.
    pub country: Option<String>,
    /// Whom the carrier can call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
}

/// Where to deliver to, as it was said.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    Given(Address),
    Saved(AddressId),
}

impl Destination {
    /// The address itself; of an order that there is already any will do.
    pub(super) async fn find(
        self,
        app: &App,
        call: &Call,
        repeated: bool,
    ) -> Result<Address, ApiError> {
        match self {
            Self::Given(address) => Ok(address),
            Self::Saved(_) if repeated => Ok(Address::nowhere()),
            Self::Saved(id) => address_book::saved(app, call, id).await,
        }
    }
}

fn destination(fields: &mut Fields<'_>) -> Option<Destination> {
    const GIVEN: &[&str] = &["delivery_address", "deliveryAddress", "address"];
    const SAVED: &[&str] = &["address_id", "addressId"];
    if !fields.has(SAVED) {
        return address_in(fields, GIVEN).map(Destination::Given);
    }
    if fields.has(GIVEN) {
        fields.error("address_id", "ambiguous", "send either this or delivery_address");
    }
    fields.parsed(SAVED).map(Destination::Saved)
}

/// An address under one of these names.
pub(super) fn address_in(fields: &mut Fields<'_>, names: &[&'static str]) -> Option<Address> {
    fields.object(names, |fields| {
        let line1 = fields.text(&["line1", "street", "address_line1"]);
        let (district, city) = (fields.text(&["district"]), fields.text(&["city"]));
        Some(Address {
            recipient: fields.optional_text(&["recipient"]),
            line2: fields.optional_text(&["line2", "address_line2"]),
            ward: fields.optional_text(&["ward"]),
            postal_code: fields.optional_text(&["postal_code", "postalCode"]),
            country: fields.optional_text(&["country"]).unwrap_or_else(|| "VN".to_owned()),
            phone: fields.optional_text(&["phone"]),
            line1: line1?,
            district: district?,
            city: city?,
        })
    })
}

fn payment_method(fields: &mut Fields<'_>) -> Option<PaymentMethod> {
    let method = fields.text(&["payment_method", "paymentMethod"])?;
    if !METHODS.contains(&method.as_str()) {
        let detail = format!("must be one of {}", METHODS.join(", "));
        fields.error("payment_method", "unknown_payment_method", detail);
    }
    Some(PaymentMethod::new(method))
}

fn saga_definition(fields: &mut Fields<'_>) -> SagaDefinition {
    match fields.optional_text(&["payment_flow", "paymentFlow"]).as_deref() {
        None | Some("reserve_first") => SagaDefinition::ReserveFirst,
        Some("payment_first") => SagaDefinition::PaymentFirst,
        Some(_) => {
            let detail = "must be reserve_first or payment_first";
            fields.error("payment_flow", "unknown_payment_flow", detail);
            SagaDefinition::ReserveFirst
        }
    }
}

/// An order as it was asked for, whatever it was called.
pub(super) struct Wish {
    pub items: Vec<NewItem>,
    pub destination: Destination,
    pub payment_method: PaymentMethod,
    pub saga_definition: SagaDefinition,
    pub promotion_code: Option<String>,
}

fn promotion_code(fields: &mut Fields<'_>) -> Option<String> {
    fields.optional_text(&["promotion_code", "promotionCode"])
}

fn item(fields: &mut Fields<'_>) -> Option<NewItem> {
    let names = &["listing_id", "listingId", "product_id", "productId"];
    let sku = fields.optional_text(&["sku"]);
    let named = fields.has(names) || sku.is_none();
    let listing_id = if named { Some(fields.parsed(names)) } else { None };
    let quantity = fields.count(&["quantity"]);
    let unit_price = seen_price(fields, "unit_price");
    let listing_id = match listing_id {
        Some(given) => Some(given?),
        None => None,
    };
    Some(NewItem { listing_id, sku, quantity: quantity?, unit_price })
}

pub(super) struct OrderWish(pub Wish);

impl FromFields for OrderWish {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let items = fields.objects(&["items"], ITEMS_MAX, item);
        let (destination, payment_method) = (destination(fields), payment_method(fields));
        let (saga_definition, promotion_code) = (saga_definition(fields), promotion_code(fields));
        Some(Self(Wish {
            items: items?,
            destination: destination?,
            payment_method: payment_method?,
            saga_definition,
            promotion_code,
        }))
    }
}

/// One listing and how it is bought.
#[derive(ToSchema)]
pub struct NewTransaction {
    /// The listing.
    pub listing_id: Uuid,
    /// How many units; one when absent.
    #[schema(minimum = 1)]
    pub quantity: Option<u32>,
    /// Where to deliver to; or `address_id`.
    #[schema(value_type = Option<AddressBody>)]
    pub delivery_address: Option<AddressBody>,
    /// The same as an entry of the buyer's address book.
    pub address_id: Option<Uuid>,
    /// By which means it will be paid.
    #[schema(example = "sandbox")]
    pub payment_method: String,
    /// A promotion code of the seller or of the market; one that does not count is 422 and says why.
    #[schema(max_length = 32)]
    pub promotion_code: Option<String>,
}

pub(super) struct TransactionWish(Wish);

impl FromFields for TransactionWish {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let names = &["listing_id", "listingId", "product_id", "productId"];
        let listing_id = fields.parsed(names);
        let quantity = fields.optional_count(&["quantity"]).unwrap_or(1);
        let (destination, payment_method) = (destination(fields), payment_method(fields));
        let (saga_definition, promotion_code) = (saga_definition(fields), promotion_code(fields));
        let items =
            vec![NewItem { listing_id: Some(listing_id?), sku: None, quantity, unit_price: None }];
        Some(Self(Wish {
            items,
            destination: destination?,
            payment_method: payment_method?,
            saga_definition,
            promotion_code,
        }))
    }
}

/// An order, also called a transaction.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OrderBody {
    /// The order.
    pub id: Uuid,
    /// The same.
    pub order_id: Uuid,
    /// The same, as a transaction.
    pub transaction_id: Uuid,
    /// The number that people read out.
    #[schema(example = "ORD-20261120-7ZQ4K2M9XW1B")]
    pub order_number: String,
    /// How it stands.
    #[schema(value_type = String, example = "PENDING")]
    pub status: OrderStatus,
    /// Who buys.
    pub buyer_id: Uuid,
    /// Who buys, as a customer.
    pub customer_id: Uuid,
    /// Who sells.
    pub seller_id: Uuid,
    /// What is wanted.
    pub items: Vec<ItemBody>,
    /// The sum, in minor units, after the discount.
    pub amount: i64,
    /// The same.
    pub total_amount: i64,
    /// The sum before the discount, in minor units.
    pub subtotal_amount: i64,
    /// What the promotion code takes off, in minor units.
    pub discount_amount: i64,
    /// The promotion code, if one was given.
    pub promotion_code: Option<String>,
    /// The currency of all amounts.
    pub currency: String,
    /// Where to deliver to; `[erased]` after an erasure.
    #[schema(value_type = Object)]
    pub delivery_address: serde_json::Value,
    /// How it is paid.
    pub payment: OrderPaymentBody,
    /// What is or was held for it, once everything is.
    pub reservations: Vec<ReservationBody>,
    /// The shipment, once there is one.
    pub shipment_id: Option<Uuid>,
    /// The checkout across sellers that it belongs to, if it does.
    pub checkout_id: Option<Uuid>,
    /// Whether the buyer has reviewed it.
    pub reviewed: bool,
    /// The review, once there is one.
    pub review_id: Option<Uuid>,
    /// In which order the saga goes about it.
    #[schema(value_type = String, example = "reserve_first")]
    pub saga_definition: SagaDefinition,
    /// Why it came to nothing, if it did.
    pub failure: Option<FailureBody>,
    /// How much of the money goes back or did, after returns and disputes, in minor units.
    pub refunded_amount: i64,
    /// When it was placed.
    #[schema(format = DateTime)]
    pub placed_at: String,
    /// The same.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The order's version.
    pub version: u64,
}

/// One line of an order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ItemBody {
    /// The listing.
    pub listing_id: Uuid,
    /// The listing, as a product.
    pub product_id: Uuid,
    /// Its stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
    /// The price of one, in minor units.
    pub unit_price: i64,
}

/// Stock that is or was held.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReservationBody {
    /// The hold.
    pub reservation_id: Uuid,
    /// The listing.
    pub listing_id: Uuid,
    /// Its stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
}

/// How an order is paid.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OrderPaymentBody {
    /// The payment.
    pub payment_id: Uuid,
    /// The reference that the buyer and the gateway see.
    pub reference: String,
    /// Who takes the money.
    #[schema(example = "sandbox")]
    pub provider: String,
    /// By which means.
    pub method: String,
    /// How the payment stands; none before it has begun.
    #[schema(value_type = Option<String>)]
    pub status: Option<PaymentStatus>,
    /// How the buyer can pay, once the gateway has told.
    pub instructions: Option<InstructionsBody>,
}

/// How to pay.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InstructionsBody {
    /// A page to go to.
    pub url: Option<String>,
    /// What to do, in words.
    pub text: Option<String>,
}

impl From<&Instructions> for InstructionsBody {
    fn from(instructions: &Instructions) -> Self {
        Self { url: instructions.url.clone(), text: instructions.text.clone() }
    }
}

/// Why an order came to nothing.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FailureBody {
    /// A stable code, or the words of who cancelled; `[erased]` after an erasure.
    pub reason: String,
    /// The saga's step that failed.
    pub step: Option<String>,
    /// Who cancelled: `buyer`, `admin`, `system`.
    pub cancelled_by: Option<String>,
}

/// The test methods are the sandbox's.
fn provider(method: &PaymentMethod) -> String {
    if method.is_test() { PaymentMethod::SANDBOX.to_owned() } else { method.0.clone() }
}

impl OrderBody {
    fn new(details: &OrderDetails) -> Self {
        let id = details.order_id.uuid();
        let confirmed =
            |change: &crate::domain::order::StatusChange| change.status == OrderStatus::Confirmed;
        let held = details.history.iter().any(confirmed);
        let reservations = details.items.iter().filter(|_| held).map(|item| ReservationBody {
            reservation_id: ReservationId::of(item.listing_id, details.order_id).uuid(),
            listing_id: item.listing_id.uuid(),
            sku: item.sku.clone(),
            quantity: item.quantity,
        });
        let items = details.items.iter().map(|item| ItemBody {
            listing_id: item.listing_id.uuid(),
            product_id: item.product_id.uuid(),
            sku: item.sku.clone(),
            quantity: item.quantity,
            unit_price: item.unit_price,
        });
        Self {
            id,
            order_id: id,
            transaction_id: id,
            order_number: details.order_number.clone(),
            status: details.status,
            buyer_id: details.buyer_id.uuid(),
            customer_id: details.buyer_id.uuid(),
            seller_id: details.seller_id.uuid(),
            items: items.collect(),
            amount: details.total.amount,
            total_amount: details.total.amount,
            subtotal_amount: details.total.amount.saturating_add(details.discount()),
            discount_amount: details.discount(),
            promotion_code: details.promotion.as_ref().map(|promotion| promotion.code.clone()),
            currency: details.total.currency.code().to_owned(),
            delivery_address: shown_address(&details.delivery_address),
            payment: OrderPaymentBody {
                payment_id: details.payment_id.uuid(),
                reference: details.payment_reference.clone(),
                provider: provider(&details.payment_method),
                method: details.payment_method.0.clone(),
                status: None,
                instructions: None,
            },
            reservations: reservations.collect(),
            shipment_id: details.shipment_id.map(Into::into),
            checkout_id: details.checkout_id.map(Into::into),
            reviewed: details.review_id.is_some(),
            review_id: details.review_id.map(Into::into),
            saga_definition: details.saga_definition,
            failure: details.failure.as_ref().map(|failure| FailureBody {
                reason: shown_comment(failure.comment.as_ref())
                    .unwrap_or_else(|| failure.reason.clone()),
                step: failure.step.clone(),
                cancelled_by: failure.cancelled_by.map(|by| format!("{by:?}").to_lowercase()),
            }),
            refunded_amount: details.after_sales.refunded,
            placed_at: details.placed_at.to_string(),
            created_at: details.placed_at.to_string(),
            version: 0,
        }
    }

    pub(super) fn may_be_seen_by(&self, call: &Call) -> bool {
        call.is_staff()
            || call
                .caller()
                .user_id()
                .is_some_and(|user| [self.buyer_id, self.seller_id].contains(&user.uuid()))
    }

    /// Whether nothing more happens to the order of itself.
    fn has_come_to_rest(&self) -> bool {
        !matches!(self.status, OrderStatus::Pending | OrderStatus::Confirmed | OrderStatus::Paid)
    }
}

pub(super) fn shown_address(address: &Personal<Address>) -> serde_json::Value {
    match address.get() {
        Some(address) => serde_json::to_value(address).unwrap_or_default(),
        None => serde_json::Value::from("[erased]"),
    }
}

pub(super) fn view(order: &Order) -> Option<OrderBody> {
    order.details.as_ref().map(OrderBody::new)
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such order, or not for this caller")
}

pub(super) fn shown(done: Done<Option<OrderBody>>) -> Result<(OrderBody, Done<()>), ApiError> {
    let (body, done) = split(done);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    Ok((body, done))
}

/// The order as it is now, with how its payment stands.
pub(super) async fn current(app: &App, order: OrderId) -> Result<OrderBody, ApiError> {
    let (mut body, _) = shown(app.runtime().aggregate::<Order>().read(order.uuid(), view).await?)?;
    let payment = PaymentId(body.payment.payment_id);
    let look = |payment: &Payment| {
        let details = payment.details.as_ref()?;
        Some((details.status, details.instructions.as_ref().map(InstructionsBody::from)))
    };
    let payment = app.runtime().aggregate::<Payment>().read(payment.uuid(), look).await?.value;
    if let Some((status, instructions)) = payment {
        body.payment.status = Some(status);
        body.payment.instructions = instructions;
    }
    Ok(body)
}

/// The order that a path names, by id or by number, if the caller may see it.
pub(super) async fn named(app: &App, call: &Call, name: &str) -> Result<OrderBody, ApiError> {
    call.someone()?;
    let order = if name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("ord-"))
        && name.parse::<OrderId>().is_err()
    {
        let number = name.to_ascii_uppercase();
        let mut found = app.reads().order_by_number(&number).await?;
        if found.is_none() {
            // It may have been placed a moment ago.
            app.projected_all(VIEW).await?;
            found = app.reads().order_by_number(&number).await?;
        }
        OrderId(found.ok_or_else(missing)?)
    } else {
        path_id(name)?
    };
    let body = current(app, order).await?;
    if body.may_be_seen_by(call) { Ok(body) } else { Err(missing()) }
}

/// What the door already knows to be impossible is refused here; the rest is decided by the
/// listings, when the saga asks them.
async fn wanted(app: &App, call: &Call, index: usize, item: &NewItem) -> Result<Wanted, ApiError> {
    let (listing, offer) = offered(app, index, item).await?;
    for_buyer(app, call, item, listing, offer).await
}

/// The listing of a line, and what it offers.
pub(super) async fn offered(
    app: &App,
    index: usize,
    item: &NewItem,
) -> Result<(ListingId, Offer), ApiError> {
    let listing = match (item.listing_id, &item.sku) {
        (Some(listing), _) => listing,
        (None, Some(sku)) => listing_by_sku(app, sku, &format!("/items/{index}/sku")).await?,
        (None, None) => ListingId::default(),
    };
    let offer = offer(app, listing).await?.ok_or_else(|| {
        let status = StatusCode::NOT_FOUND;
        ApiError::new(status, "listing_not_found", "there is no such listing")
    })?;
    Ok((listing, offer))
}

/// The line, if this buyer can buy what is offered.
pub(super) async fn for_buyer(
    app: &App,
    call: &Call,
    item: &NewItem,
    listing: ListingId,
    offer: Offer,
) -> Result<Wanted, ApiError> {
    let buyer = call.someone()?;
    if offer.seller_id == buyer {
        return Err(ApiError::conflict("self_purchase", "nobody can buy their own listing"));
    }
    let seller = app.access().person(app.runtime(), offer.seller_id).await?;
    if seller
        .is_some_and(|seller| matches!(seller.status, UserStatus::Suspended | UserStatus::Erased))
    {
        let detail = format!("the seller of the listing {listing} cannot sell now");
        return Err(ApiError::conflict("listing_unavailable", detail));
    }
    if offer.status != ListingStatus::Active {
        let detail = format!("the listing {listing} cannot be bought now");
        return Err(ApiError::conflict("listing_unavailable", detail));
    }
    if item.unit_price.is_some_and(|seen| !seen.is(offer.price)) {
        let detail = format!("the listing {listing} has another price now");
        return Err(ApiError::conflict("price_changed", detail));
    }
    Ok(line(item, listing, offer))
}

pub(super) fn line(item: &NewItem, listing_id: ListingId, offer: Offer) -> Wanted {
    Wanted {
        listing_id,
        seller_id: offer.seller_id,
        status: offer.status,
        sku: offer.sku,
        unit_price: offer.price,
        quantity: item.quantity,
    }
}

/// What the wallet would not pay is refused before stock is held for it.
pub(super) fn payable(
    method: &PaymentMethod,
    items: &[Wanted],
    promotion: Option<&OrderPromotion>,
) -> Result<(), ApiError> {
    if method.0 != PaymentMethod::MOMO {
        return Ok(());
    }
    let price = |item: &Wanted| item.unit_price.amount.saturating_mul(i64::from(item.quantity));
    let sum = items.iter().map(price).fold(0, i64::saturating_add);
    let sum = sum.saturating_sub(promotion.map_or(0, |promotion| promotion.discount));
    let is_dong = items.iter().all(|item| item.unit_price.currency == Currency::Vnd);
    if is_dong && (momo::AMOUNT_MIN..=momo::AMOUNT_MAX).contains(&sum) {
        return Ok(());
    }
    let detail = format!(
        "momo pays {} to {} VND at once; choose another method or buy another amount",
        momo::AMOUNT_MIN,
        momo::AMOUNT_MAX
    );
    Err(ApiError::invalid_field("/payment_method", "amount_not_payable", &detail))
}

/// Whether a means of payment can be used here.
pub(super) fn usable(app: &App, method: &PaymentMethod) -> Result<(), ApiError> {
    // With a method that never settles anybody could hold stock and pay nothing.
    if method.is_test() && !app.settings().mode.is_development() {
        let detail = "test methods exist in development mode only";
        return Err(ApiError::invalid_field("/payment_method", "unknown_payment_method", detail));
    }
    if method.0 == PaymentMethod::SANDBOX && !app.settings().sandbox_payments {
        let detail =
            "the sandbox moves no money and is off here; SANDBOX_PAYMENTS=true turns it on";
        return Err(ApiError::invalid_field("/payment_method", "unknown_payment_method", detail));
    }
    if method.0 == PaymentMethod::MOMO && app.settings().momo.is_none() {
        let detail = "momo is not set up here";
        return Err(ApiError::invalid_field("/payment_method", "unknown_payment_method", detail));
    }
    Ok(())
}

async fn place(
    app: &App,
    call: &Call,
    prefer: Prefer,
    operation: &'static str,
    valid: Valid<Wish>,
) -> Result<Response, ApiError> {
    call.someone()?;
    let wish = valid.body;
    usable(app, &wish.payment_method)?;
    let order_id = OrderId(call.new_id(app, operation));
    let orders = app.runtime().aggregate::<Order>();
    // A repeat gets its first answer even when the listings have been sold meanwhile.
    let repeated = call.is_repeatable()
        && orders.read(order_id.uuid(), |order| order.details.is_some()).await?.value;
    let mut items = Vec::with_capacity(wish.items.len());
    for (index, item) in wish.items.iter().enumerate() {
        items.push(match repeated {
            true => line(item, item.listing_id.unwrap_or_default(), Offer::unknown()),
            false => wanted(app, call, index, item).await?,
        });
    }
    let mut promotion = None;
    if !repeated {
        if let Some(code) = &wish.promotion_code {
            promotion = Some(promotions::applied(app, call, code, &items).await?);
        }
        payable(&wish.payment_method, &items, promotion.as_ref())?;
    }
    let delivery_address = wish.destination.find(app, call, repeated).await?;
    let placement = OrderCommand::Place(Box::new(Placement {
        caller: call.caller(),
        order_id,
        items,
        delivery_address,
        payment_method: wish.payment_method,
        saga_definition: wish.saga_definition,
        checkout_id: None,
        promotion,
        as_transaction: operation == "transactions.create",
        now: app.now(),
    }));
    let context = call.context(app, operation, "", &valid.canonical);
    let (mut body, done) = shown(orders.send(order_id.uuid(), placement, context, view).await?)?;
    let location = format!("/api/v1/orders/{order_id}");
    if prefer.respond_async {
        let answer = Answer::accepted(&location, body).after(&done);
        return Ok(answer.with(prefer::APPLIED, "respond-async").into_response());
    }
    if let Some(wait) = prefer.wait {
        body = at_rest(app, order_id, body, wait).await;
    }
    let tag = version_tag(body.version);
    let answer = Answer::created(&location, body).after(&done).with(header::ETAG, &tag);
    Ok(match prefer.applied() {
        Some(applied) => answer.with(prefer::APPLIED, &applied).into_response(),
        None => answer.into_response(),
    })
}

/// The order once it has come to rest, or its buyer must act, or the time is over. It has been placed:
/// when it cannot be looked at any more, the answer is what was known of it last.
async fn at_rest(app: &App, order: OrderId, mut known: OrderBody, wait: Duration) -> OrderBody {
    let until = Instant::now() + wait;
    let of_order = [order.uuid(), PaymentId::of(order).uuid()];
    let mut changes = app.runtime().journal().changes_of(&of_order);
    loop {
        known = match current(app, order).await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%order, code = error.code(), "an order that was placed could not be looked at again");
                return known;
            }
        };
        let left = until.saturating_duration_since(Instant::now());
        if known.has_come_to_rest() || known.payment.instructions.is_some() || left.is_zero() {
            return known;
        }
        // Whether there was one or the time is over, the next look tells.
        let _ = tokio::time::timeout(left, changes.next()).await;
    }
}

/// Buy
///
/// The order is recorded and answered as `PENDING`; what follows is asynchronous. With
/// `Prefer: wait=<seconds>` (at most ten) the answer waits until the order is `SHIPPED`, has come to
/// nothing, or its payment waits for the buyer. Once the order is recorded the answer is 201 in any case:
/// when it cannot be looked at meanwhile, the answer is how it was last.
#[utoipa::path(post, path = "/orders", tag = "orders", request_body = NewOrder,
    params(("Prefer" = Option<String>, Header, description = "`wait=5` or `respond-async`")),
    responses((status = 201, description = "The order", body = OrderBody),
        (status = 202, description = "The order, with `Prefer: respond-async`", body = OrderBody)))]
async fn place_order(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    prefer: Prefer,
    valid: Valid<OrderWish>,
) -> Result<Response, ApiError> {
    let valid = Valid { body: valid.body.0, canonical: valid.canonical };
    place(&app, &call, prefer, "orders.place", valid).await
}

/// Buy one listing
///
/// An order of one line, by its other name.
#[utoipa::path(post, path = "/transactions", tag = "orders", request_body = NewTransaction,
    params(("Prefer" = Option<String>, Header, description = "`wait=5` or `respond-async`")),
    responses((status = 201, description = "The order", body = OrderBody)))]
async fn create_transaction(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    prefer: Prefer,
    valid: Valid<TransactionWish>,
) -> Result<Response, ApiError> {
    let valid = Valid { body: valid.body.0, canonical: valid.canonical };
    place(&app, &call, prefer, "transactions.create", valid).await
}

/// An order
///
/// By its id or its number. The body is made of the order and its payment, so its `ETag` is a weak
/// one; `version` is the order's own.
#[utoipa::path(get, path = "/orders/{id}", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "The order", body = OrderBody)))]
async fn get_order(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    Ok(composed(&named(&app, &call, &id).await?, &theirs))
}

/// A transaction
#[utoipa::path(get, path = "/transactions/{id}", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "The order", body = OrderBody)))]
async fn get_transaction(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    Ok(composed(&named(&app, &call, &id).await?, &theirs))
}

/// How an order has stood.
#[derive(Debug, Serialize, ToSchema)]
pub struct HistoryBody {
    /// The order.
    pub order_id: Uuid,
    /// Every status it has had, the first one first.
    #[schema(value_type = Vec<String>)]
    pub statuses: Vec<OrderStatus>,
    /// The same with times.
    pub data: Vec<StatusBody>,
}

/// A status and since when.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusBody {
    /// The status.
    #[schema(value_type = String)]
    pub status: OrderStatus,
    /// Since when.
    #[schema(format = DateTime)]
    pub at: String,
}

/// How an order has stood
#[utoipa::path(get, path = "/orders/{id}/history", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "Every status and since when", body = HistoryBody)))]
async fn get_history(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let order_id = named(&app, &call, &id).await?.order_id;
    let look = |order: &Order| {
        let history = &order.details.as_ref()?.history;
        Some(
            history.iter().map(|change| (change.status, change.at.to_string())).collect::<Vec<_>>(),
        )
    };
    let done = app.runtime().aggregate::<Order>().read(order_id, look).await?;
    let history = done.value.ok_or_else(missing)?;
    let body = HistoryBody {
        order_id,
        statuses: history.iter().map(|(status, _)| *status).collect(),
        data: history.into_iter().map(|(status, at)| StatusBody { status, at }).collect(),
    };
    Ok(Answer::ok(body).at_version(done.version, &theirs))
}

/// A payment.
#[derive(Debug, Serialize, ToSchema)]
pub struct PaymentBody {
    /// The payment.
    pub payment_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// How it stands.
    #[schema(value_type = String, example = "CAPTURED")]
    pub status: PaymentStatus,
    /// How much.
    pub amount: MoneyBody,
    /// Who takes the money.
    pub provider: String,
    /// By which means.
    pub method: String,
    /// The reference that the buyer and the gateway see.
    pub reference: String,
    /// The gateway's name for the capture.
    pub provider_reference: Option<String>,
    /// How the buyer can pay, once the gateway has told.
    pub instructions: Option<InstructionsBody>,
    /// Why the gateway said no.
    pub failure: Option<String>,
    /// How much of it has gone back, in minor units.
    pub refunded_amount: i64,
}

impl PaymentBody {
    fn new(details: &PaymentDetails) -> Self {
        Self {
            payment_id: details.payment_id.uuid(),
            order_id: details.order_id.uuid(),
            status: details.status,
            amount: details.money.into(),
            provider: provider(&details.method),
            method: details.method.0.clone(),
            reference: details.reference.clone(),
            provider_reference: details.provider_reference.clone(),
            instructions: details.instructions.as_ref().map(InstructionsBody::from),
            failure: details.failure.clone(),
            refunded_amount: details.refunded_amount(),
        }
    }
}

/// The payment of an order
#[utoipa::path(get, path = "/orders/{id}/payment", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "The payment", body = PaymentBody)))]
async fn get_payment(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let payment = named(&app, &call, &id).await?.payment.payment_id;
    let look = |payment: &Payment| payment.details.as_ref().map(PaymentBody::new);
    let done = app.runtime().aggregate::<Payment>().read(payment, look).await?;
    let body = done.value.ok_or_else(|| ApiError::not_found("the payment has not begun yet"))?;
    Ok(Answer::ok(body).at_version(done.version, &theirs))
}

/// An escrow.
#[derive(Debug, Serialize, ToSchema)]
pub struct EscrowBody {
    /// The escrow.
    pub escrow_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// How it stands.
    #[schema(value_type = String, example = "FUNDED")]
    pub status: EscrowStatus,
    /// How much the buyer pays or would have paid, in minor units.
    pub amount: i64,
    /// How much the market adds to that, in minor units.
    pub subsidy: i64,
    /// How much is in it now, in minor units.
    pub balance: i64,
    /// The currency of all three.
    pub currency: String,
    /// Everything that was booked; the amounts add up to nothing.
    pub entries: Vec<EntryBody>,
}

/// One line of a double entry.
#[derive(Debug, Serialize, ToSchema)]
pub struct EntryBody {
    /// The account.
    pub account: String,
    /// How much came (or, negative, went), in minor units.
    pub amount: i64,
}

impl EscrowBody {
    fn new(details: &EscrowDetails) -> Self {
        let entries = details.entries.iter();
        let entries =
            entries.map(|entry| EntryBody { account: entry.account.clone(), amount: entry.amount });
        Self {
            escrow_id: details.escrow_id.uuid(),
            order_id: details.order_id.uuid(),
            status: details.status,
            amount: details.money.amount,
            subsidy: details.subsidy,
            balance: details.balance,
            currency: details.money.currency.code().to_owned(),
            entries: entries.collect(),
        }
    }
}

/// The escrow of an order
#[utoipa::path(get, path = "/orders/{id}/escrow", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "The escrow", body = EscrowBody)))]
async fn get_escrow(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let order = OrderId(named(&app, &call, &id).await?.order_id);
    let look = |escrow: &Escrow| escrow.details.as_ref().map(EscrowBody::new);
    let escrows = app.runtime().aggregate::<Escrow>();
    let done = escrows.read(EscrowId::of(order).uuid(), look).await?;
    let body = done.value.ok_or_else(|| ApiError::not_found("the escrow is not open yet"))?;
    Ok(Answer::ok(body).at_version(done.version, &theirs))
}

/// Cancel an order
///
/// While it is `PENDING`, `CONFIRMED` or `PAID`. Stock is given back and money returned.
#[utoipa::path(post, path = "/orders/{id}/cancel", tag = "orders", params(("id" = String, Path)),
    request_body = Reason,
    responses((status = 200, description = "The order as it is now", body = OrderBody)))]
async fn cancel_order(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<OrderBody>, ApiError> {
    let order = OrderId(named(&app, &call, &id).await?.order_id);
    let valid = unread.read::<Reason>(&app).await?;
    let cancel =
        OrderCommand::Cancel { caller: call.caller(), reason: valid.body.reason, now: app.now() };
    let target = order.to_string();
    let context = call.change_context(&app, "orders.cancel", &target, &valid.canonical);
    let orders = app.runtime().aggregate::<Order>();
    let (body, done) = shown(orders.send(order.uuid(), cancel, context, view).await?)?;
    Ok(Answer::ok(body).after(&done))
}

/// An order in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrderSummary {
    /// The order.
    pub order_id: Uuid,
    /// The number that people read out.
    pub order_number: String,
    /// Who buys.
    pub buyer_id: Uuid,
    /// Who sells.
    pub seller_id: Uuid,
    /// How it stands.
    #[schema(example = "SHIPPED")]
    pub status: String,
    /// The sum.
    pub total: MoneyBody,
    /// How many lines it has.
    pub item_count: i64,
    /// The checkout across sellers that it belongs to, if it does.
    pub checkout_id: Option<Uuid>,
    /// `OPEN` or `RESOLVED`, if there is or was a dispute.
    pub dispute: Option<String>,
    /// The version the row was made from.
    pub version: i64,
    /// When it was placed.
    #[schema(format = DateTime)]
    pub placed_at: String,
    /// When the row last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

impl From<OrderRow> for OrderSummary {
    fn from(row: OrderRow) -> Self {
        Self {
            order_id: row.order_id,
            order_number: row.order_number,
            buyer_id: row.buyer_id,
            seller_id: row.seller_id,
            status: row.status,
            total: MoneyBody { amount: row.amount, currency: row.currency },
            item_count: row.item_count,
            checkout_id: row.checkout_id,
            dispute: row.dispute,
            version: row.version,
            placed_at: row.placed_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

pub(super) async fn list(
    app: &App,
    params: &Params,
    filter: OrderFilter,
) -> Result<Answer<Page<OrderSummary>>, ApiError> {
    app.includes(VIEW, params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let rows = app.reads().orders(&filter, before, limit + 1).await?;
    let cursor = |row: &OrderRow| (row.placed_at.millis(), row.order_id);
    Ok(params.rows(app, rows, limit, cursor).projected(app, VIEW))
}

/// What I buy
#[utoipa::path(get, path = "/me/orders", tag = "orders",
    params(("status" = Option<String>, Query, description = "Any status of an order"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of orders", body = Page<OrderSummary>)))]
async fn my_orders(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<OrderSummary>>, ApiError> {
    let buyer_id = Some(call.someone()?.uuid());
    let status = params.word_as_text::<OrderStatus>("status")?;
    list(&app, &params, OrderFilter { buyer_id, status, ..OrderFilter::default() }).await
}

/// What I sell
#[utoipa::path(get, path = "/me/sales", tag = "orders",
    params(("status" = Option<String>, Query, description = "Any status of an order"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of orders", body = Page<OrderSummary>)))]
async fn my_sales(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<OrderSummary>>, ApiError> {
    let seller_id = Some(call.someone()?.uuid());
    let status = params.word_as_text::<OrderStatus>("status")?;
    list(&app, &params, OrderFilter { seller_id, status, ..OrderFilter::default() }).await
}
