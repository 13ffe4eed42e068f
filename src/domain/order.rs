//! Orders, also called transactions: what a buyer wants of one seller, and how far it has come.
//!
//! Placing an order records it; the order saga ([`crate::domain::order_saga`]) then moves it on.
//! The saga's commands may come twice or late: one that asks for what is already so changes
//! nothing, and one that reports a failure of an order that has already ended changes nothing
//! either.

pub mod after_sales;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;

use super::caller::{Caller, Role};
use super::ids::{
    CheckoutId, ListingId, OrderId, PaymentId, PromotionId, ReviewId, ShipmentId, UserId,
    order_number,
};
use super::listing::{ListingStatus, QUANTITY_MAX};
use super::money::{Currency, Money};
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};
use after_sales::{
    AfterSales, DisputeReason, OrderDisputeResolved, OrderDisputed, OrderReturnRefused,
    OrderReturnRequested, OrderReturned, OrderSettlementDue, OrderSettlementPostponed,
    ReturnDecision, ReturnRequest, ReturnStatus,
};

/// The reason of a cancellation by a person. Stored; never rename.
pub const CANCELLED: &str = "cancelled";
/// The most different listings in one order: each costs the saga two commands and two events.
pub const ITEMS_MAX: usize = 100;

/// How an order stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OrderStatus {
    /// Placed.
    Pending,
    /// Everything in it is reserved.
    Confirmed,
    /// The money is in escrow.
    Paid,
    /// There is a shipment.
    Shipped,
    /// The shipment arrived.
    Delivered,
    /// The seller has the money.
    Completed,
    /// The buyer wants to send goods back.
    ReturnRequested,
    /// Everything came back.
    Returned,
    /// All of the money went back, without the goods.
    Refunded,
    /// Something in it could not be reserved.
    Rejected,
    /// The buyer's money did not come.
    PaymentFailed,
    /// Called off.
    Cancelled,
    /// Something else went wrong and all of it was undone.
    Failed,
}

impl OrderStatus {
    /// Whether the order came to nothing.
    pub const fn is_off(self) -> bool {
        matches!(self, Self::Rejected | Self::PaymentFailed | Self::Cancelled | Self::Failed)
    }
}

/// A means of payment, by name: which ones there are is the gateways' business.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PaymentMethod(pub String);

impl PaymentMethod {
    /// Settles at once, inside the service.
    pub const SANDBOX: &'static str = "sandbox";
    /// The sandbox says no.
    pub const TEST_DECLINE: &'static str = "test_decline";
    /// The sandbox never answers.
    pub const TEST_TIMEOUT: &'static str = "test_timeout";
    /// The sandbox waits for the buyer.
    pub const TEST_PENDING: &'static str = "test_pending";
    /// The MoMo wallet.
    pub const MOMO: &'static str = "momo";

    /// The method of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Whether the buyer has to do something somewhere else first, which takes as long as it takes.
    pub fn waits_for_buyer(&self) -> bool {
        [Self::TEST_PENDING, Self::MOMO].contains(&self.0.as_str())
    }

    /// Whether its provider is outside, so that what it says may be lost on the way: such a payment
    /// is asked after by a timer until nothing about it is open.
    pub fn is_asked_after(&self) -> bool {
        self.0 == Self::MOMO
    }

    /// Whether it is one of the sandbox's that behave badly on purpose.
    pub fn is_test(&self) -> bool {
        self.0.starts_with("test_")
    }

    fn is_name(&self) -> bool {
        let name = self.0.as_bytes();
        name.first().is_some_and(u8::is_ascii_lowercase)
            && name.len() <= 32
            && name
                .iter()
                .all(|&byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    }
}

impl std::fmt::Display for PaymentMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// In which order the saga goes about it. Stored; never rename.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SagaDefinition {
    /// Reserve, then capture: nobody is charged for what is not there.
    #[default]
    ReserveFirst,
    /// Capture, then reserve.
    PaymentFirst,
}

impl SagaDefinition {
    /// The stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReserveFirst => "reserve_first",
            Self::PaymentFirst => "payment_first",
        }
    }
}

/// Where to deliver to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Address {
    /// Who takes it, when it is not the buyer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// House and street.
    pub line1: String,
    /// Flat, floor, building.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line2: Option<String>,
    /// The ward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ward: Option<String>,
    /// The district.
    pub district: String,
    /// The city.
    pub city: String,
    /// The postal code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postal_code: Option<String>,
    /// The country, as two upper-case letters (ISO 3166-1).
    pub country: String,
    /// Whom the carrier can call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
}

impl Address {
    /// An address that says nothing: for the repeat of an order, which keeps the one it has.
    pub fn nowhere() -> Self {
        Self {
            recipient: None,
            line1: String::new(),
            line2: None,
            ward: None,
            district: String::new(),
            city: String::new(),
            postal_code: None,
            country: String::new(),
            phone: None,
        }
    }

    /// The address cleaned, its errors noted under `pointer`.
    pub fn checked(&self, fields: &mut Fields, pointer: &str) -> Self {
        let at = |name: &str| format!("{pointer}/{name}");
        let country = self.country.trim();
        let letters = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
        let detail = "must be two upper-case letters (ISO 3166-1)";
        fields.require(letters, &at("country"), "invalid_country", detail);
        let max = text::NAME_MAX;
        Self {
            recipient: fields.optional_line(&at("recipient"), self.recipient.as_deref(), max),
            line1: fields.line(&at("line1"), &self.line1, text::ADDRESS_MAX),
            line2: fields.optional_line(&at("line2"), self.line2.as_deref(), text::ADDRESS_MAX),
            ward: fields.optional_line(&at("ward"), self.ward.as_deref(), max),
            district: fields.line(&at("district"), &self.district, max),
            city: fields.line(&at("city"), &self.city, max),
            postal_code: fields.optional_line(&at("postal_code"), self.postal_code.as_deref(), 16),
            country: country.to_owned(),
            phone: self
                .phone
                .as_deref()
                .filter(|phone| !phone.trim().is_empty())
                .map(|phone| fields.phone(&at("phone"), phone)),
        }
    }
}

/// One thing that the buyer wants, with what the door found out about its listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells it.
    pub seller_id: UserId,
    /// How it stands.
    pub status: ListingStatus,
    /// Its stock-keeping unit.
    pub sku: String,
    /// The price of one, as the buyer saw it.
    pub unit_price: Money,
    /// How many units.
    pub quantity: u32,
}

/// What a promotion code takes off an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderPromotion {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// Its code.
    pub code: String,
    /// How much, in minor units.
    pub discount: i64,
    /// Whether the market gives it: the seller gets the full price.
    #[serde(default)]
    pub borne_by_market: bool,
}

/// A new order.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Who buys.
    pub caller: Caller,
    /// The new order.
    pub order_id: OrderId,
    /// What is wanted.
    pub items: Vec<Wanted>,
    /// Where to deliver to.
    pub delivery_address: Address,
    /// By which means it will be paid.
    pub payment_method: PaymentMethod,
    /// In which order the saga goes about it.
    pub saga_definition: SagaDefinition,
    /// The checkout across sellers that it belongs to, if it does.
    pub checkout_id: Option<CheckoutId>,
    /// What a promotion code takes off, as the door found out.
    pub promotion: Option<OrderPromotion>,
    /// Whether the buyer spoke of a transaction. It only names the command.
    pub as_transaction: bool,
    /// When.
    pub now: Timestamp,
}

/// What to do with an order.
#[derive(Debug, Clone, PartialEq)]
pub enum OrderCommand {
    /// Buy.
    Place(Box<Placement>),
    /// Everything is reserved.
    Confirm {
        /// When.
        now: Timestamp,
    },
    /// The money is in escrow.
    MarkPaid {
        /// The payment.
        payment_id: PaymentId,
        /// How much.
        money: Money,
        /// When.
        now: Timestamp,
    },
    /// The money did not come.
    MarkPaymentFailed {
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// There is a shipment.
    MarkShipped {
        /// The shipment.
        shipment_id: ShipmentId,
        /// When.
        now: Timestamp,
    },
    /// Something could not be reserved.
    Reject {
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Something else went wrong and was undone.
    Fail {
        /// Why, as a stable code.
        reason: String,
        /// The saga's step that failed.
        step: String,
        /// When.
        now: Timestamp,
    },
    /// Call it off.
    Cancel {
        /// Who asks.
        caller: Caller,
        /// Why: the marketplace's code, or a person's words.
        reason: Option<String>,
        /// When.
        now: Timestamp,
    },
    /// The shipment arrived.
    RecordDelivered {
        /// When.
        now: Timestamp,
    },
    /// The seller has the money.
    Complete {
        /// When.
        now: Timestamp,
    },
    /// The buyer wants to send goods back.
    RequestReturn(Box<ReturnRequest>),
    /// The seller takes them back, or does not.
    DecideReturn(Box<ReturnDecision>),
    /// The buyer disagrees.
    Dispute {
        /// Who asks.
        caller: Caller,
        /// Why.
        reason: DisputeReason,
        /// Why, in the buyer's words.
        comment: Option<String>,
        /// When.
        now: Timestamp,
    },
    /// An administrator decides.
    ResolveDispute {
        /// Who asks.
        caller: Caller,
        /// How much of the money goes back to the buyer, in minor units.
        refund: i64,
        /// Why.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Nobody has objected in time.
    SettleDue {
        /// When.
        now: Timestamp,
    },
    /// There is more time to object: the goods left later than the order knew.
    PostponeSettlement {
        /// Until when.
        until: Timestamp,
        /// When.
        now: Timestamp,
    },
    /// The buyer has reviewed it.
    RecordReviewed {
        /// The review.
        review_id: ReviewId,
        /// When.
        now: Timestamp,
    },
}

impl Command for OrderCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Place(placement) if placement.as_transaction => "CreateTransaction",
            Self::Place(_) => "PlaceOrder",
            Self::Confirm { .. } => "ConfirmOrder",
            Self::MarkPaid { .. } => "MarkOrderPaid",
            Self::MarkPaymentFailed { .. } => "MarkOrderPaymentFailed",
            Self::MarkShipped { .. } => "MarkOrderShipped",
            Self::Reject { .. } => "RejectOrder",
            Self::Fail { .. } => "FailOrder",
            Self::Cancel { .. } => "CancelOrder",
            Self::RecordDelivered { .. } => "RecordOrderDelivered",
            Self::Complete { .. } => "CompleteOrder",
            Self::RequestReturn(_) => "RequestReturn",
            Self::DecideReturn(decision) if decision.accepted => "AcceptReturn",
            Self::DecideReturn(_) => "RefuseReturn",
            Self::Dispute { .. } => "DisputeOrder",
            Self::ResolveDispute { .. } => "ResolveDispute",
            Self::SettleDue { .. } => "SettleOrder",
            Self::PostponeSettlement { .. } => "PostponeSettlement",
            Self::RecordReviewed { .. } => "RecordOrderReviewed",
        }
    }
}

souk_actors::events! {
    /// What happens to orders.
    pub enum OrderEvent in "orders" as "order-service" {
        /// A buyer wants something.
        Placed(OrderPlaced) = "order.placed", "OrderPlaced", 1.3,
            ["TransactionCreated", "order.created"];
        /// Everything in it is reserved.
        Confirmed(OrderConfirmed) = "order.confirmed", "OrderConfirmed", 1.0, [];
        /// The money is in escrow.
        Paid(OrderPaid) = "order.paid", "OrderPaid", 1.0, [];
        /// The money did not come.
        PaymentFailed(OrderPaymentFailed) = "order.payment_failed", "OrderPaymentFailed", 1.0, [];
        /// There is a shipment.
        Shipped(OrderShipped) = "order.shipped", "OrderShipped", 1.0, [];
        /// Something could not be reserved.
        Rejected(OrderRejected) = "order.rejected", "OrderRejected", 1.0, [];
        /// Called off.
        Cancelled(OrderCancelled) = "order.cancelled", "OrderCancelled", 1.1, [];
        /// Something else went wrong and was undone.
        Failed(OrderFailed) = "order.failed", "OrderFailed", 1.0, [];
        /// The shipment arrived.
        Delivered(OrderDelivered) = "order.delivered", "OrderDelivered", 1.0, [];
        /// The seller has the money.
        Completed(OrderCompleted) = "order.completed", "OrderCompleted", 1.0, [];
        /// The buyer wants to send goods back.
        ReturnRequested(OrderReturnRequested) = "order.return_requested", "OrderReturnRequested",
            1.0, [];
        /// They are not taken back.
        ReturnRefused(OrderReturnRefused) = "order.return_refused", "OrderReturnRefused", 1.1, [];
        /// They are.
        Returned(OrderReturned) = "order.returned", "OrderReturned", 1.0, [];
        /// The buyer disagrees.
        Disputed(OrderDisputed) = "order.disputed", "OrderDisputed", 1.0, [];
        /// An administrator has decided.
        DisputeResolved(OrderDisputeResolved) = "order.dispute_resolved", "OrderDisputeResolved",
            1.0, [];
        /// Nobody has objected in time.
        SettlementDue(OrderSettlementDue) = "order.settlement_due", "OrderSettlementDue", 1.0, [];
        /// There is more time to object.
        SettlementPostponed(OrderSettlementPostponed) = "order.settlement_postponed",
            "OrderSettlementPostponed", 1.0, [];
        /// The buyer has reviewed it.
        Reviewed(OrderReviewed) = "order.reviewed", "OrderReviewed", 1.0, [];
    }
}

/// A buyer wants something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderPlaced {
    /// The order.
    pub order_id: OrderId,
    /// The number that people read out.
    pub order_number: String,
    /// The order, as a transaction.
    pub transaction_id: OrderId,
    /// The first listing in it.
    pub listing_id: ListingId,
    /// Who buys, as a customer.
    pub customer_id: UserId,
    /// Who buys.
    pub buyer_id: UserId,
    /// Who sells.
    pub seller_id: UserId,
    /// What is wanted.
    pub items: Vec<OrderItem>,
    /// The sum, in minor units, after what a promotion takes off.
    pub amount: i64,
    /// The sum by another name.
    pub total_amount: i64,
    /// The currency of all amounts.
    pub currency: Currency,
    /// Where to deliver to.
    pub delivery_address: Personal<Address>,
    /// By which means it will be paid.
    pub payment_method: PaymentMethod,
    /// The payment to be.
    pub payment_id: PaymentId,
    /// The reference that the buyer and the gateway see.
    pub payment_reference: String,
    /// In which order the saga goes about it.
    pub saga_definition: SagaDefinition,
    /// The checkout across sellers that it belongs to, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_id: Option<CheckoutId>,
    /// What a promotion code takes off, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<OrderPromotion>,
    /// When.
    pub placed_at: Timestamp,
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderItem {
    /// The listing.
    pub listing_id: ListingId,
    /// The listing, as a product.
    pub product_id: ListingId,
    /// Its stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
    /// The price of one, in minor units.
    pub unit_price: i64,
}

/// Everything in it is reserved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: OrderId,
    /// The sum, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// When.
    pub confirmed_at: Timestamp,
}

/// The money is in escrow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderPaid {
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// The sum, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// When.
    pub paid_at: Timestamp,
}

/// The money did not come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderPaymentFailed {
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub failed_at: Timestamp,
}

/// There is a shipment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderShipped {
    /// The order.
    pub order_id: OrderId,
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// When.
    pub shipped_at: Timestamp,
}

/// Something could not be reserved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderRejected {
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub rejected_at: Timestamp,
}

/// Who called an order off.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum CancelledBy {
    /// The buyer.
    Buyer,
    /// An administrator.
    Admin,
    /// The marketplace, when the time to pay was over.
    System,
}

/// Called off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderCancelled {
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code. In events of version 1.0 it can be the words of a person.
    pub reason: String,
    /// Why, in the words of who called it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Personal<String>>,
    /// By whom.
    pub cancelled_by: CancelledBy,
    /// When.
    pub cancelled_at: Timestamp,
}

/// Something else went wrong and was undone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderFailed {
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code.
    pub reason: String,
    /// The saga's step that failed.
    pub step: String,
    /// When.
    pub failed_at: Timestamp,
}

/// The shipment arrived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderDelivered {
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub delivered_at: Timestamp,
}

/// The seller has the money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderCompleted {
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub completed_at: Timestamp,
}

/// The buyer has reviewed an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderReviewed {
    /// The order.
    pub order_id: OrderId,
    /// The review.
    pub review_id: ReviewId,
    /// When.
    pub reviewed_at: Timestamp,
}

rejections! {
    /// Why an order refuses a command.
    pub enum OrderRejection {
        /// Never placed.
        NotFound = "not_found", "there is no such order";
        /// The id is taken.
        AlreadyPlaced = "already_placed", "there is already an order with this id";
        /// Not theirs to ask.
        Forbidden = "forbidden", "the caller may not do this to this order";
        /// The buyer sells it.
        SelfPurchase = "self_purchase", "nobody can buy their own listing";
        /// More than one seller.
        MixedSellers = "mixed_sellers", "an order has one seller";
        /// More than one currency.
        MixedCurrencies = "mixed_currencies", "an order has one currency";
        /// Too much money.
        AmountOverflow = "amount_overflow", "the sum of this order is too large";
        /// Known to be gone before anybody asks for it.
        ListingUnavailable {
            /// Which.
            listing_id: ListingId,
        } = "listing_unavailable", "the listing {listing_id} cannot be bought now";
        /// Not from here.
        InvalidTransition {
            /// Where the order stands.
            from: OrderStatus,
        } = "invalid_transition", "the order does not allow this any more";
        /// Not yet.
        TooEarly {
            /// Where the order stands.
            from: OrderStatus,
        } = "too_early", "the order has not come so far yet: try again in a moment";
        /// One return at a time.
        ReturnOpen = "return_open", "a return of this order waits for the seller's answer";
        /// No such return.
        ReturnNotFound = "return_not_found", "this order has no such return";
        /// It was decided the other way.
        ReturnDecided {
            /// How.
            status: ReturnStatus,
        } = "return_decided", "this return has been decided already";
        /// Too late.
        ReturnWindowClosed = "return_window_closed",
            "goods can be sent back within 14 days of their delivery";
        /// Enough.
        TooManyReturns = "too_many_returns", "an order has at most 20 returns";
        /// Everything came back, or all of the money did.
        NothingToReturn = "nothing_to_return", "nothing of this order is left to be returned";
        /// An administrator is to decide first.
        DisputeOpen = "dispute_open", "a dispute about this order waits for its decision";
        /// There is no other word after the last one.
        DisputeDecided = "dispute_decided", "the dispute about this order has been decided";
        /// Nobody disagrees.
        Undisputed = "order_undisputed", "there is no dispute about this order";
        /// Too late.
        DisputeWindowClosed = "dispute_window_closed",
            "an order can be disputed within 30 days of its delivery";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(OrderRejection);

/// An order, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Everything about it, once placed.
    pub details: Option<OrderDetails>,
}

/// What is known of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrderDetails {
    /// The order.
    pub order_id: OrderId,
    /// The number that people read out.
    pub order_number: String,
    /// How it stands.
    pub status: OrderStatus,
    /// How it stood, and since when: every status it has had, the first one first.
    pub history: Vec<StatusChange>,
    /// Who buys.
    pub buyer_id: UserId,
    /// Who sells.
    pub seller_id: UserId,
    /// What is wanted.
    pub items: Vec<OrderItem>,
    /// The sum, after what a promotion takes off.
    pub total: Money,
    /// What a promotion code takes off, if one was given.
    #[serde(default)]
    pub promotion: Option<OrderPromotion>,
    /// Where to deliver to.
    pub delivery_address: Personal<Address>,
    /// By which means it is paid.
    pub payment_method: PaymentMethod,
    /// The payment.
    pub payment_id: PaymentId,
    /// The reference that the buyer and the gateway see.
    pub payment_reference: String,
    /// In which order the saga goes about it.
    pub saga_definition: SagaDefinition,
    /// The checkout across sellers that it belongs to, if it does.
    pub checkout_id: Option<CheckoutId>,
    /// The shipment, once there is one.
    pub shipment_id: Option<ShipmentId>,
    /// The review, once there is one.
    #[serde(default)]
    pub review_id: Option<ReviewId>,
    /// Why it came to nothing, if it did.
    pub failure: Option<Failure>,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// What has happened since it was shipped.
    pub after_sales: AfterSales,
}

/// An order's status and since when it had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatusChange {
    /// The status.
    pub status: OrderStatus,
    /// Since when.
    pub at: Timestamp,
}

/// Why an order came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Why, as a stable code; of old events it can be the words of who cancelled.
    pub reason: String,
    /// Why, in the words of who cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Personal<String>>,
    /// The saga's step that failed, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Who called it off, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<CancelledBy>,
}

type Decision = Result<Vec<OrderEvent>, OrderRejection>;

impl Aggregate for Order {
    const TYPE: &'static str = "order";
    const SNAPSHOT_VERSION: u32 = 2;
    type Command = OrderCommand;
    type Event = OrderEvent;
    type Rejection = OrderRejection;

    fn decide(&self, command: &OrderCommand) -> Decision {
        if let OrderCommand::Place(placement) = command {
            if self.details.is_some() {
                return Err(OrderRejection::AlreadyPlaced);
            }
            return place(placement).map(|event| vec![event]);
        }
        self.details.as_ref().ok_or(OrderRejection::NotFound)?.decide(command)
    }

    fn apply(&mut self, event: &OrderEvent) {
        match (event, &mut self.details) {
            (OrderEvent::Placed(event), details) => *details = Some(OrderDetails::new(event)),
            (event, Some(details)) => details.apply(event),
            (_, None) => {}
        }
    }

    fn timers(&self, event: &OrderEvent) -> Vec<TimerChange> {
        self.details.as_ref().map_or_else(Vec::new, |details| details.timers(event))
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<OrderCommand> {
        self.due(name, now)
    }
}

fn place(new: &Placement) -> Result<OrderEvent, OrderRejection> {
    let buyer_id = new.caller.user_id().ok_or(OrderRejection::Forbidden)?;
    let mut fields = Fields::default();
    let address = new.delivery_address.checked(&mut fields, "/delivery_address");
    let items = merged(&mut fields, &new.items);
    let named = new.payment_method.is_name();
    let detail = "must be the name of a payment method";
    fields.require(named, "/payment_method", "invalid_payment_method", detail);
    fields.finish()?;
    let Some(first) = items.first() else {
        return Err(vec![FieldError::new("/items", "required", "must not be empty")].into());
    };
    let (listing_id, seller_id) = (first.listing_id, first.seller_id);
    let subtotal = check_items(buyer_id, &items)?;
    let discount = new.promotion.as_ref().map_or(0, |promotion| promotion.discount);
    let total = subtotal.checked_sub(Money::new(discount, subtotal.currency));
    let total = total.filter(|total| total.is_price()).ok_or(OrderRejection::AmountOverflow)?;
    let payment_id = PaymentId::of(new.order_id);
    let line = |wanted: &Wanted| OrderItem {
        listing_id: wanted.listing_id,
        product_id: wanted.listing_id,
        sku: wanted.sku.clone(),
        quantity: wanted.quantity,
        unit_price: wanted.unit_price.amount,
    };
    Ok(OrderEvent::Placed(OrderPlaced {
        order_id: new.order_id,
        order_number: order_number(new.order_id, new.now),
        transaction_id: new.order_id,
        listing_id,
        customer_id: buyer_id,
        buyer_id,
        seller_id,
        items: items.iter().map(line).collect(),
        amount: total.amount,
        total_amount: total.amount,
        currency: total.currency,
        delivery_address: Personal::new(buyer_id.uuid(), address),
        payment_method: new.payment_method.clone(),
        payment_id,
        payment_reference: payment_id.reference(),
        saga_definition: new.saga_definition,
        checkout_id: new.checkout_id,
        promotion: new.promotion.clone(),
        placed_at: new.now,
    }))
}

/// One line per listing: stock is held once for an order, so two lines of one listing are one.
fn merged(fields: &mut Fields, items: &[Wanted]) -> Vec<Wanted> {
    fields.require(!items.is_empty(), "/items", "required", "must not be empty");
    let detail = "must be at most 100 items";
    fields.require(items.len() <= ITEMS_MAX, "/items", "too_many", detail);
    let mut lines: Vec<Wanted> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let known = lines.iter_mut().find(|line| line.listing_id == item.listing_id);
        let before = known.as_ref().map_or(0, |line| line.quantity);
        let quantity = before.saturating_add(item.quantity);
        if item.quantity == 0 || quantity > QUANTITY_MAX {
            let pointer = format!("/items/{index}/quantity");
            fields.error(pointer, "out_of_range", "must be from 1 to 1000000 of one listing");
        }
        match known {
            Some(line) => line.quantity = quantity,
            None => lines.push(item.clone()),
        }
    }
    lines
}

/// The rules about who buys what of whom; gives the sum.
fn check_items(buyer_id: UserId, items: &[Wanted]) -> Result<Money, OrderRejection> {
    let mut total: Option<Money> = None;
    for item in items {
        if item.seller_id == buyer_id {
            return Err(OrderRejection::SelfPurchase);
        }
        if Some(item.seller_id) != items.first().map(|first| first.seller_id) {
            return Err(OrderRejection::MixedSellers);
        }
        if item.status != ListingStatus::Active {
            return Err(OrderRejection::ListingUnavailable { listing_id: item.listing_id });
        }
        let line = item.unit_price.checked_mul(item.quantity);
        let line = line.ok_or(OrderRejection::AmountOverflow)?;
        total = Some(match total {
            None => line,
            Some(total) if total.currency != line.currency => {
                return Err(OrderRejection::MixedCurrencies);
            }
            Some(total) => total.checked_add(line).ok_or(OrderRejection::AmountOverflow)?,
        });
    }
    total.filter(|total| total.is_price()).ok_or(OrderRejection::AmountOverflow)
}

impl OrderDetails {
    fn new(event: &OrderPlaced) -> Self {
        Self {
            order_id: event.order_id,
            order_number: event.order_number.clone(),
            status: OrderStatus::Pending,
            history: vec![StatusChange { status: OrderStatus::Pending, at: event.placed_at }],
            buyer_id: event.buyer_id,
            seller_id: event.seller_id,
            items: event.items.clone(),
            total: Money::new(event.amount, event.currency),
            promotion: event.promotion.clone(),
            delivery_address: event.delivery_address.clone(),
            payment_method: event.payment_method.clone(),
            payment_id: event.payment_id,
            payment_reference: event.payment_reference.clone(),
            saga_definition: event.saga_definition,
            checkout_id: event.checkout_id,
            shipment_id: None,
            review_id: None,
            failure: None,
            placed_at: event.placed_at,
            after_sales: AfterSales::default(),
        }
    }

    fn decide(&self, command: &OrderCommand) -> Decision {
        let event = match command {
            OrderCommand::Place(_) => return Err(OrderRejection::AlreadyPlaced),
            OrderCommand::Confirm { .. }
            | OrderCommand::MarkPaid { .. }
            | OrderCommand::MarkShipped { .. }
            | OrderCommand::RecordDelivered { .. }
            | OrderCommand::Complete { .. } => self.go_on(command)?,
            OrderCommand::Cancel { caller, reason, now } => {
                self.cancel(caller, reason.as_deref(), *now)?
            }
            OrderCommand::Reject { .. }
            | OrderCommand::MarkPaymentFailed { .. }
            | OrderCommand::Fail { .. } => self.give_up(command)?,
            OrderCommand::RequestReturn(_)
            | OrderCommand::DecideReturn(_)
            | OrderCommand::Dispute { .. }
            | OrderCommand::ResolveDispute { .. }
            | OrderCommand::SettleDue { .. }
            | OrderCommand::PostponeSettlement { .. } => self.care(command)?,
            OrderCommand::RecordReviewed { review_id, now } => self.reviewed(*review_id, *now),
        };
        Ok(event.into_iter().collect())
    }

    /// What a promotion takes off, in minor units.
    pub fn discount(&self) -> i64 {
        self.promotion.as_ref().map_or(0, |promotion| promotion.discount)
    }

    /// When the goods arrived, as far as the order knows.
    pub fn arrived_at(&self) -> Option<Timestamp> {
        let since = |status| self.history.iter().find(|change| change.status == status);
        let arrived = since(OrderStatus::Delivered).or_else(|| since(OrderStatus::Completed));
        arrived.map(|change| change.at)
    }

    /// Whether it may be reviewed is the review's business.
    fn reviewed(&self, review_id: ReviewId, now: Timestamp) -> Option<OrderEvent> {
        let event = OrderReviewed { order_id: self.order_id, review_id, reviewed_at: now };
        self.review_id.is_none().then_some(OrderEvent::Reviewed(event))
    }

    /// The word that the order has come further.
    fn go_on(&self, command: &OrderCommand) -> Result<Option<OrderEvent>, OrderRejection> {
        use OrderStatus as S;
        let order_id = self.order_id;
        let (from, to, event): (&[S], S, _) = match command {
            OrderCommand::Confirm { now } => {
                let Money { amount, currency } = self.total;
                let event = OrderConfirmed { order_id, amount, currency, confirmed_at: *now };
                (&[S::Pending], S::Confirmed, OrderEvent::Confirmed(event))
            }
            OrderCommand::MarkPaid { payment_id, money, now } => {
                let (payment_id, Money { amount, currency }) = (*payment_id, *money);
                let event = OrderPaid { order_id, payment_id, amount, currency, paid_at: *now };
                (&[S::Confirmed], S::Paid, OrderEvent::Paid(event))
            }
            OrderCommand::MarkShipped { shipment_id, now } => {
                let event = OrderShipped { order_id, shipment_id: *shipment_id, shipped_at: *now };
                (&[S::Paid], S::Shipped, OrderEvent::Shipped(event))
            }
            OrderCommand::RecordDelivered { now } => {
                let event = OrderDelivered { order_id, delivered_at: *now };
                (&[S::Shipped], S::Delivered, OrderEvent::Delivered(event))
            }
            OrderCommand::Complete { now } => {
                let event = OrderCompleted { order_id, completed_at: *now };
                (&[S::Shipped, S::Delivered], S::Completed, OrderEvent::Completed(event))
            }
            _ => return Ok(None),
        };
        Ok(self.forward(from, to)?.then_some(event))
    }

    /// Whether the order takes a step forward, or has taken it before.
    fn forward(&self, from: &[OrderStatus], to: OrderStatus) -> Result<bool, OrderRejection> {
        if from.contains(&self.status) {
            Ok(true)
        } else if self.status >= to && !self.status.is_off() {
            Ok(false)
        } else if self.status < to {
            Err(OrderRejection::TooEarly { from: self.status })
        } else {
            Err(OrderRejection::InvalidTransition { from: self.status })
        }
    }

    /// The saga's word that the order came to nothing; the first word counts.
    fn give_up(&self, command: &OrderCommand) -> Result<Option<OrderEvent>, OrderRejection> {
        use OrderStatus as S;
        if self.status.is_off() {
            return Ok(None);
        }
        let order_id = self.order_id;
        let event = match (command, self.status) {
            (OrderCommand::Reject { reason, now }, S::Pending) => {
                let reason = reason.clone();
                OrderEvent::Rejected(OrderRejected { order_id, reason, rejected_at: *now })
            }
            (OrderCommand::MarkPaymentFailed { reason, now }, S::Pending | S::Confirmed) => {
                let reason = reason.clone();
                OrderEvent::PaymentFailed(OrderPaymentFailed { order_id, reason, failed_at: *now })
            }
            (OrderCommand::Fail { reason, step, now }, S::Pending | S::Confirmed | S::Paid) => {
                OrderEvent::Failed(OrderFailed {
                    order_id,
                    reason: reason.clone(),
                    step: step.clone(),
                    failed_at: *now,
                })
            }
            (_, from) => return Err(OrderRejection::InvalidTransition { from }),
        };
        Ok(Some(event))
    }

    fn cancel(
        &self,
        caller: &Caller,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<OrderEvent>, OrderRejection> {
        let cancelled_by = if caller.is_system() {
            CancelledBy::System
        } else if caller.is(self.buyer_id) {
            CancelledBy::Buyer
        } else if caller.has(Role::Admin) {
            CancelledBy::Admin
        } else {
            return Err(OrderRejection::Forbidden);
        };
        match self.status {
            OrderStatus::Pending | OrderStatus::Confirmed | OrderStatus::Paid => {}
            from if from.is_off() && caller.is_system() => return Ok(None),
            from => return Err(OrderRejection::InvalidTransition { from }),
        }
        let mut fields = Fields::default();
        let said = fields.optional_line("/reason", reason, text::REASON_MAX);
        fields.finish()?;
        // The marketplace gives a code; what people write is theirs.
        let (code, comment) = match (caller.user_id(), said) {
            (Some(who), Some(words)) => (None, Some(Personal::new(who.uuid(), words))),
            (_, code) => (code, None),
        };
        Ok(Some(OrderEvent::Cancelled(OrderCancelled {
            order_id: self.order_id,
            reason: code.unwrap_or_else(|| CANCELLED.to_owned()),
            comment,
            cancelled_by,
            cancelled_at: now,
        })))
    }

    fn enter(&mut self, status: OrderStatus, at: Timestamp) {
        self.status = status;
        self.history.push(StatusChange { status, at });
    }

    fn fail(&mut self, reason: &str, step: Option<&str>) {
        let (reason, step) = (reason.to_owned(), step.map(str::to_owned));
        self.failure = Some(Failure { reason, comment: None, step, cancelled_by: None });
    }

    fn apply(&mut self, event: &OrderEvent) {
        use OrderStatus as S;
        match event {
            OrderEvent::Placed(_) => {}
            OrderEvent::Confirmed(event) => self.enter(S::Confirmed, event.confirmed_at),
            OrderEvent::Paid(event) => self.enter(S::Paid, event.paid_at),
            OrderEvent::Shipped(event) => {
                self.enter(S::Shipped, event.shipped_at);
                self.shipment_id = Some(event.shipment_id);
            }
            OrderEvent::Delivered(event) => self.enter(S::Delivered, event.delivered_at),
            OrderEvent::Completed(event) => self.enter(S::Completed, event.completed_at),
            OrderEvent::Reviewed(event) => self.review_id = Some(event.review_id),
            OrderEvent::PaymentFailed(event) => {
                self.enter(S::PaymentFailed, event.failed_at);
                self.fail(&event.reason, None);
            }
            OrderEvent::Rejected(event) => {
                self.enter(S::Rejected, event.rejected_at);
                self.fail(&event.reason, None);
            }
            OrderEvent::Cancelled(event) => {
                self.enter(S::Cancelled, event.cancelled_at);
                self.failure = Some(Failure {
                    reason: event.reason.clone(),
                    comment: event.comment.clone(),
                    step: None,
                    cancelled_by: Some(event.cancelled_by),
                });
            }
            OrderEvent::Failed(event) => {
                self.enter(S::Failed, event.failed_at);
                self.fail(&event.reason, Some(&event.step));
            }
            OrderEvent::ReturnRequested(_)
            | OrderEvent::ReturnRefused(_)
            | OrderEvent::Returned(_)
            | OrderEvent::Disputed(_)
            | OrderEvent::DisputeResolved(_)
            | OrderEvent::SettlementDue(_)
            | OrderEvent::SettlementPostponed(_) => self.apply_care(event),
        }
    }
}

#[cfg(test)]
mod tests;
