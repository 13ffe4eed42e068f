//! Listings and the stock they own.
//!
//! One aggregate holds both, so that selling the last unit twice is impossible rather than
//! repaired. Stock is available, reserved or sold; each order that asks gets one *hold*, which goes
//! from held to allocated (paid) or released. The saga of an order listens for the answer, so a
//! reservation that cannot be met is an event and not a rejection.
//!
//! Memory is bounded: of the holds that have come to rest (allocated; released or refused) the
//! last [`HOLDS_AT_REST_MAX`] of each kind are remembered. An undo that comes after so many later
//! orders finds nothing to undo, and what is sent off so late is not noted as picked. Of the returns
//! as many are remembered, so that one is taken back once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::{self, CategoryId, ListingId, OrderId, ReservationId, ReturnId, UserId};
use super::money::{Currency, Money};
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};
use super::user::VerificationStatus;

/// How long stock is held for an order that is not paid.
pub const HOLD_FOR: Duration = Duration::from_secs(35 * 60);

/// The most units one listing may have: what a person could mean, and far from overflow.
pub const QUANTITY_MAX: u32 = 1_000_000;

/// How many holds at rest a listing remembers, of those allocated and of those given back.
pub const HOLDS_AT_REST_MAX: usize = 1_000;

/// The only warehouse there is.
pub const WAREHOUSE: &str = "WH-DEFAULT";

/// Before the order's id in the name of a hold's timer. Stored; never rename.
const HOLD_TIMER: &str = "reservation:";

/// The timer that ends a listing's hold for an order.
pub fn hold_timer(order: OrderId) -> String {
    format!("{HOLD_TIMER}{order}")
}

/// How a listing stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ListingStatus {
    /// Nobody but its seller sees it yet.
    Draft,
    /// Can be bought.
    Active,
    /// Nothing is left, but some is held for orders that are not paid.
    Reserved,
    /// Nothing is left and all is paid for.
    Sold,
    /// Withdrawn by the seller.
    Archived,
}

/// What the caller found out about a category.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CategoryStanding {
    /// There is no such category.
    Unknown,
    /// It takes no new listings.
    Inactive,
    /// It takes new listings.
    Active,
}

/// Why stock could not be reserved. The names are stored and public.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ReservationFailure {
    /// There is no such listing.
    NotFound,
    /// It has been withdrawn.
    NotActive,
    /// The buyer is the seller.
    SelfPurchase,
    /// The price is not the one the buyer saw.
    PriceChanged,
    /// Not enough is left.
    InsufficientStock,
    /// The order was given up before.
    OrderGivenUp,
}

impl ReservationFailure {
    /// The stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NotActive => "not_active",
            Self::SelfPurchase => "self_purchase",
            Self::PriceChanged => "price_changed",
            Self::InsufficientStock => "insufficient_stock",
            Self::OrderGivenUp => "order_given_up",
        }
    }
}

/// A price as its seller says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaidPrice {
    /// In minor units.
    pub amount: i64,
    /// The currency; none: the listing's own.
    pub currency: Option<Currency>,
}

impl From<Money> for SaidPrice {
    fn from(Money { amount, currency }: Money) -> Self {
        Self { amount, currency: Some(currency) }
    }
}

/// What to do with a listing.
#[derive(Debug, Clone, PartialEq)]
pub enum ListingCommand {
    /// Offer something for sale.
    Create(Box<NewListing>),
    /// Change the offer; what is `None` stays.
    Update {
        /// Who asks.
        caller: Caller,
        /// The new title.
        title: Option<String>,
        /// The new description.
        description: Option<String>,
        /// The new price, in the same currency.
        price: Option<SaidPrice>,
        /// When.
        now: Timestamp,
    },
    /// Withdraw the offer. What is held for orders stays held.
    Archive {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Show more images.
    AddImages {
        /// Who asks.
        caller: Caller,
        /// Where they are.
        images: Vec<String>,
        /// How many a listing may have.
        images_max: usize,
        /// When.
        now: Timestamp,
    },
    /// Show one image less.
    RemoveImage {
        /// Who asks.
        caller: Caller,
        /// Where it is.
        image: String,
        /// When.
        now: Timestamp,
    },
    /// Show the images in this order.
    OrderImages {
        /// Who asks.
        caller: Caller,
        /// Where they are: all that the listing has, each once.
        images: Vec<String>,
        /// When.
        now: Timestamp,
    },
    /// Show a draft to everybody.
    Publish {
        /// Who asks.
        caller: Caller,
        /// How the category stands, looked up by the caller.
        category_standing: CategoryStanding,
        /// When.
        now: Timestamp,
    },
    /// Offer again what was withdrawn.
    Reactivate {
        /// Who asks.
        caller: Caller,
        /// How the category stands, looked up by the caller.
        category_standing: CategoryStanding,
        /// When.
        now: Timestamp,
    },
    /// There are more units.
    Restock {
        /// Who asks.
        caller: Caller,
        /// How many more.
        quantity: u32,
        /// When.
        now: Timestamp,
    },
    /// What was sold to the order is taken from the shelf.
    Pick {
        /// The order.
        order_id: OrderId,
        /// When.
        now: Timestamp,
    },
    /// Hold stock for an order. Accepted with `inventory.reservation_failed` when it cannot be.
    Reserve {
        /// The listing.
        listing_id: ListingId,
        /// The order.
        order_id: OrderId,
        /// Who buys.
        customer_id: UserId,
        /// How many units.
        quantity: u32,
        /// The price of one that the buyer saw.
        unit_price: Money,
        /// When.
        now: Timestamp,
        /// When the hold ends unless it is paid for.
        expires_at: Timestamp,
    },
    /// The order is paid: what is held for it is sold.
    Allocate {
        /// The order.
        order_id: OrderId,
        /// When.
        now: Timestamp,
    },
    /// Give back what is held for, or was sold to, the order. When nothing was ever held, nothing
    /// will be.
    Release {
        /// The listing.
        listing_id: ListingId,
        /// The order.
        order_id: OrderId,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// The hold's time is over.
    ExpireReservation {
        /// The order.
        order_id: OrderId,
        /// When.
        now: Timestamp,
    },
    /// Goods that were sold came back and can be sold again.
    TakeBack {
        /// The order.
        order_id: OrderId,
        /// The return.
        return_id: ReturnId,
        /// How many units.
        quantity: u32,
        /// When.
        now: Timestamp,
    },
}

/// A new offer.
#[derive(Debug, Clone, PartialEq)]
pub struct NewListing {
    /// Who asks.
    pub caller: Caller,
    /// The new listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// How the seller stands, looked up by the caller; `None`: not a seller.
    pub seller_standing: Option<VerificationStatus>,
    /// What it is.
    pub title: String,
    /// What it is, at length.
    pub description: String,
    /// The price of one.
    pub price: Money,
    /// Where it belongs.
    pub category_id: CategoryId,
    /// How the category stands, looked up by the caller.
    pub category_standing: CategoryStanding,
    /// The seller's stock-keeping unit; made from the id when there is none.
    pub sku: Option<String>,
    /// How many units.
    pub quantity: u32,
    /// Where its images are on the web.
    pub images: Vec<String>,
    /// How many a listing may have.
    pub images_max: usize,
    /// Whether only the seller is to see it for now.
    pub draft: bool,
    /// When.
    pub now: Timestamp,
}

impl Command for ListingCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "CreateListing",
            Self::Update { .. } => "UpdateListing",
            Self::Archive { .. } => "ArchiveListing",
            Self::AddImages { .. } => "AddImages",
            Self::RemoveImage { .. } => "RemoveImage",
            Self::OrderImages { .. } => "OrderImages",
            Self::Publish { .. } => "PublishListing",
            Self::Reactivate { .. } => "ReactivateListing",
            Self::Restock { .. } => "RestockInventory",
            Self::Pick { .. } => "PickInventory",
            Self::Reserve { .. } => "ReserveInventory",
            Self::Allocate { .. } => "AllocateInventory",
            Self::Release { .. } => "ReleaseInventory",
            Self::ExpireReservation { .. } => "ExpireReservation",
            Self::TakeBack { .. } => "TakeBackInventory",
        }
    }
}

souk_actors::events! {
    /// What happens to listings and their stock.
    pub enum ListingEvent in "listings" as "listing-service" {
        /// Something is for sale.
        Created(ListingCreated) = "listing.created", "ListingCreated", 1.1,
            ["catalog.product.created"];
        /// The offer changed.
        Updated(ListingUpdated) = "listing.updated", "ListingUpdated", 1.0,
            ["catalog.product.updated"];
        /// The price changed.
        PriceChanged(PriceChanged) = "catalog.price.changed", "PriceChanged", 1.0, [];
        /// The offer was withdrawn.
        Archived(ListingArchived) = "listing.archived", "ListingArchived", 1.0, [];
        /// One image more is shown, after the others.
        ImageAdded(ListingImageAdded) = "listing.image_added", "ListingImageAdded", 1.0, [];
        /// An image is not shown any more.
        ImageRemoved(ListingImageRemoved) = "listing.image_removed", "ListingImageRemoved", 1.0, [];
        /// The same images are shown in another order.
        ImagesReordered(ListingImagesReordered) = "listing.images_reordered",
            "ListingImagesReordered", 1.0, [];
        /// A draft is for sale.
        Published(ListingPublished) = "listing.published", "ListingPublished", 1.0, [];
        /// What was withdrawn is offered again.
        Reactivated(ListingReactivated) = "listing.reactivated", "ListingReactivated", 1.0, [];
        /// Nothing is left, but some is not paid for.
        Reserved(ListingReserved) = "listing.reserved", "ListingReserved", 1.0, [];
        /// Nothing is left and all is paid for.
        Sold(ListingSold) = "listing.sold", "ListingSold", 1.0, [];
        /// Something is left again.
        Relisted(ListingRelisted) = "listing.relisted", "ListingRelisted", 1.0, [];
        /// Stock is held for an order.
        InventoryReserved(InventoryReserved) = "inventory.reserved", "InventoryReserved", 1.0, []
            in "inventory" as "warehouse-service";
        /// Stock could not be held for an order.
        ReservationFailed(InventoryReservationFailed) = "inventory.reservation_failed",
            "InventoryReservationFailed", 1.0, []
            in "inventory" as "warehouse-service";
        /// The order was given up before it asked for stock: it will get none.
        ReservationBarred(InventoryReservationBarred) = "inventory.reservation_barred",
            "InventoryReservationBarred", 1.0, []
            in "inventory" as "warehouse-service";
        /// What was held is paid for.
        Allocated(InventoryAllocated) = "inventory.allocated", "InventoryAllocated", 1.0, []
            in "inventory" as "warehouse-service";
        /// What was held or sold can be bought again.
        Released(InventoryReleased) = "inventory.released", "InventoryReleased", 1.0, []
            in "inventory" as "warehouse-service";
        /// What was sold came back.
        Returned(InventoryReturned) = "inventory.returned", "InventoryReturned", 1.0, []
            in "inventory" as "warehouse-service";
        /// What was sold is taken from the shelf.
        Picked(InventoryPicked) = "inventory.picked", "InventoryPicked", 1.0, []
            in "inventory" as "warehouse-service";
        /// There are more units.
        Restocked(InventoryRestocked) = "inventory.restocked", "InventoryRestocked", 1.0, []
            in "inventory" as "warehouse-service";
    }
}

/// Something is for sale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingCreated {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// What it is.
    pub title: String,
    /// What it is, at length.
    pub description: String,
    /// Where it belongs.
    pub category_id: CategoryId,
    /// The price of one, in minor units.
    pub price: i64,
    /// The price's currency.
    pub currency: Currency,
    /// The stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
    /// Where its images are.
    pub images: Vec<String>,
    /// Whether only the seller sees it for now.
    #[serde(default)]
    pub draft: bool,
    /// When.
    pub created_at: Timestamp,
}

/// The offer changed; everything stands as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingUpdated {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// What it is.
    pub title: String,
    /// What it is, at length.
    pub description: String,
    /// The price of one, in minor units.
    pub price: i64,
    /// The price's currency.
    pub currency: Currency,
    /// When.
    pub updated_at: Timestamp,
}

/// The price changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PriceChanged {
    /// The listing.
    pub listing_id: ListingId,
    /// The listing, as a product.
    pub product_id: ListingId,
    /// The price until now, in minor units.
    pub old_price: i64,
    /// The price from now on, in minor units.
    pub new_price: i64,
    /// The currency of both.
    pub currency: Currency,
    /// When.
    pub changed_at: Timestamp,
}

/// The offer was withdrawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingArchived {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// When.
    pub archived_at: Timestamp,
}

/// One image more is shown, after the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingImageAdded {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// Where the image is.
    pub image: String,
    /// When.
    pub added_at: Timestamp,
}

/// An image is not shown any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingImageRemoved {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// Where the image was.
    pub image: String,
    /// When.
    pub removed_at: Timestamp,
}

/// The same images are shown in another order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingImagesReordered {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// Where all of its images are, in order.
    pub images: Vec<String>,
    /// When.
    pub reordered_at: Timestamp,
}

/// A draft is for sale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingPublished {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// When.
    pub published_at: Timestamp,
}

/// What was withdrawn is offered again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingReactivated {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// How it stands now.
    pub status: ListingStatus,
    /// When.
    pub reactivated_at: Timestamp,
}

/// Nothing is left, but some is not paid for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingReserved {
    /// The listing.
    pub listing_id: ListingId,
    /// The order that took the last.
    pub transaction_id: OrderId,
    /// When that order's hold ends.
    pub expires_at: Timestamp,
}

/// Nothing is left and all is paid for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingSold {
    /// The listing.
    pub listing_id: ListingId,
    /// The order that paid for the last.
    pub transaction_id: OrderId,
    /// When.
    pub sold_at: Timestamp,
}

/// Something is left again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListingRelisted {
    /// The listing.
    pub listing_id: ListingId,
    /// How many units are left.
    pub available: u32,
    /// When.
    pub relisted_at: Timestamp,
}

/// Stock is held for an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryReserved {
    /// The order.
    pub order_id: OrderId,
    /// The order, as a transaction.
    pub transaction_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// The listing, as a product.
    pub product_id: ListingId,
    /// The stock-keeping unit.
    pub sku: String,
    /// Where the stock is.
    pub warehouse_id: String,
    /// How many units.
    pub quantity: u32,
    /// How many units, by another name.
    pub quantity_reserved: u32,
    /// The hold.
    pub reservation_id: ReservationId,
    /// Who buys.
    pub customer_id: UserId,
    /// When.
    pub reserved_at: Timestamp,
    /// When the hold ends unless it is paid for.
    pub expires_at: Timestamp,
    /// The hold again, in a list of one: an event is about one listing.
    pub reservations: Vec<ReservationEntry>,
}

/// One hold in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReservationEntry {
    /// The hold.
    pub reservation_id: ReservationId,
    /// The stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
}

/// Stock could not be held for an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryReservationFailed {
    /// The order.
    pub order_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// How many units it wanted.
    pub quantity: u32,
    /// How many units were left.
    pub available: u32,
    /// Why.
    pub reason: ReservationFailure,
    /// When.
    pub failed_at: Timestamp,
}

/// The order was given up before it asked for stock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryReservationBarred {
    /// The order.
    pub order_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub barred_at: Timestamp,
}

/// What was held is paid for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryAllocated {
    /// The order.
    pub order_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// The stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
    /// The hold.
    pub reservation_id: ReservationId,
    /// When.
    pub allocated_at: Timestamp,
}

/// What was held or sold can be bought again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryReleased {
    /// The order.
    pub order_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// The stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
    /// Whether they were paid for: then they were sold, and not just held.
    pub allocated: bool,
    /// The hold.
    pub reservation_id: ReservationId,
    /// Why, as a stable code: `expired` when its time was over.
    pub reason: String,
    /// When.
    pub released_at: Timestamp,
}

/// What was sold is taken from the shelf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryPicked {
    /// The order.
    pub order_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// The stock-keeping unit.
    pub sku: String,
    /// Where it was taken from.
    pub warehouse_id: String,
    /// How many units.
    pub quantity: u32,
    /// The hold.
    pub reservation_id: ReservationId,
    /// When.
    pub picked_at: Timestamp,
}

/// There are more units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryRestocked {
    /// The listing.
    pub listing_id: ListingId,
    /// The listing, as a product.
    pub product_id: ListingId,
    /// The stock-keeping unit.
    pub sku: String,
    /// Where they are.
    pub warehouse_id: String,
    /// How many more.
    pub quantity: u32,
    /// How many can be bought now.
    pub available: u32,
    /// When.
    pub restocked_at: Timestamp,
}

/// What was sold came back and can be sold again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryReturned {
    /// The order.
    pub order_id: OrderId,
    /// The listing.
    pub listing_id: ListingId,
    /// The return.
    pub return_id: ReturnId,
    /// The stock-keeping unit.
    pub sku: String,
    /// How many units.
    pub quantity: u32,
    /// When.
    pub returned_at: Timestamp,
}

/// The reason of a release whose hold's time was over. Stored; never rename.
pub const EXPIRED: &str = "expired";

rejections! {
    /// Why a listing refuses a command.
    pub enum ListingRejection {
        /// Never created.
        NotFound = "not_found", "there is no such listing";
        /// The id is taken.
        AlreadyExists = "listing_exists", "there is already a listing with this id";
        /// Not theirs to ask, or not a seller.
        Forbidden = "forbidden", "the caller may not do this to this listing";
        /// The seller has yet to be verified.
        SellerNotVerified = "seller_not_verified", "the seller must be verified first";
        /// The category does not exist.
        CategoryUnknown = "category_unknown", "there is no such category";
        /// The category takes no new listings.
        CategoryInactive = "category_inactive", "this category takes no new listings";
        /// Withdrawn.
        Archived = "listing_archived", "this listing has been withdrawn";
        /// Nothing is held for the order any more.
        ReservationGone = "reservation_gone", "nothing is held for this order any more";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(ListingRejection);

/// A listing, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// Everything about it, once created.
    pub details: Option<ListingDetails>,
    /// What each order got, of those that are remembered.
    pub holds: Holds,
    /// The last returns, the oldest first.
    pub returns: VecDeque<ReturnId>,
}

/// What is known of a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListingDetails {
    /// The listing.
    pub listing_id: ListingId,
    /// Who sells.
    pub seller_id: UserId,
    /// How it stands.
    pub status: ListingStatus,
    /// What it is.
    pub title: String,
    /// What it is, at length.
    pub description: String,
    /// Where it belongs.
    pub category_id: CategoryId,
    /// The price of one.
    pub price: Money,
    /// The stock-keeping unit.
    pub sku: String,
    /// Where its images are.
    pub images: Vec<String>,
    /// How many units there are, and for whom.
    pub stock: Stock,
    /// Whether it was never published.
    #[serde(default)]
    pub unpublished: bool,
    /// When it was created.
    pub created_at: Timestamp,
}

/// How many units there are. The sum changes only when there are more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stock {
    /// Can be bought.
    pub available: u32,
    /// Held for orders that are not paid.
    pub reserved: u32,
    /// Paid for.
    pub sold: u32,
}

/// What one order got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// How many units.
    pub quantity: u32,
    /// What became of them.
    pub state: HoldState,
    /// When the hold ends unless it is paid for.
    pub expires_at: Timestamp,
    /// Whether the units were taken from the shelf.
    #[serde(default)]
    pub picked: bool,
}

/// What became of a hold.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HoldState {
    /// Waits to be paid for.
    Held,
    /// Paid for.
    Allocated,
    /// Given back.
    Released,
    /// There was nothing to hold, or nothing may be held.
    Refused,
}

/// The holds of a listing: all that wait, and the last of those at rest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Holds {
    by_order: BTreeMap<OrderId, Hold>,
    /// In the order of payment, oldest first.
    allocated: VecDeque<OrderId>,
    /// Given back or refused, oldest first.
    closed: VecDeque<OrderId>,
}

impl Holds {
    /// What `order` got, as far as it is remembered.
    pub fn get(&self, order: OrderId) -> Option<&Hold> {
        self.by_order.get(&order)
    }

    /// All that are remembered.
    pub fn iter(&self) -> impl Iterator<Item = (OrderId, &Hold)> {
        self.by_order.iter().map(|(order, hold)| (*order, hold))
    }

    fn pick(&mut self, order: OrderId) {
        if let Some(hold) = self.by_order.get_mut(&order) {
            hold.picked = true;
        }
    }

    fn set(&mut self, order: OrderId, hold: Hold) {
        match hold.state {
            HoldState::Held => {}
            HoldState::Allocated => self.allocated.push_back(order),
            HoldState::Released | HoldState::Refused => self.closed.push_back(order),
        }
        self.by_order.insert(order, hold);
        Self::forget(&mut self.by_order, &mut self.allocated, |state| {
            state == HoldState::Allocated
        });
        Self::forget(&mut self.by_order, &mut self.closed, |state| {
            matches!(state, HoldState::Released | HoldState::Refused)
        });
    }

    /// Forgets the oldest beyond the limit. An order that has moved on since it was queued belongs
    /// to another queue by now and is left alone.
    fn forget(
        by_order: &mut BTreeMap<OrderId, Hold>,
        queue: &mut VecDeque<OrderId>,
        belongs: impl Fn(HoldState) -> bool,
    ) {
        while queue.len() > HOLDS_AT_REST_MAX {
            let Some(oldest) = queue.pop_front() else { return };
            if by_order.get(&oldest).is_some_and(|hold| belongs(hold.state)) {
                by_order.remove(&oldest);
            }
        }
    }
}

impl ListingDetails {
    /// Why `customer` cannot buy `quantity` at `unit_price` now, if so. The door asks too, to
    /// answer early; the decision is the reservation's.
    pub fn refuses(
        &self,
        customer: UserId,
        quantity: u32,
        unit_price: Money,
    ) -> Option<ReservationFailure> {
        if self.seller_id == customer {
            Some(ReservationFailure::SelfPurchase)
        } else if matches!(self.status, ListingStatus::Archived | ListingStatus::Draft) {
            Some(ReservationFailure::NotActive)
        } else if self.price != unit_price {
            Some(ReservationFailure::PriceChanged)
        } else if quantity == 0 || quantity > self.stock.available {
            Some(ReservationFailure::InsufficientStock)
        } else {
            None
        }
    }
}

type Decision = Result<Vec<ListingEvent>, ListingRejection>;

impl Aggregate for Listing {
    const TYPE: &'static str = "listing";
    const SNAPSHOT_VERSION: u32 = 2;
    type Command = ListingCommand;
    type Event = ListingEvent;
    type Rejection = ListingRejection;

    fn decide(&self, command: &ListingCommand) -> Decision {
        use ListingCommand as C;
        match command {
            C::Create(new) => self.create(new),
            C::Update { caller, title, description, price, now } => {
                self.update(caller, title.as_deref(), description.as_deref(), *price, *now)
            }
            C::Archive { caller, now } => self.archive(caller, *now),
            C::AddImages { caller, images, images_max, now } => {
                self.add_images(caller, images, *images_max, *now)
            }
            C::RemoveImage { caller, image, now } => self.remove_image(caller, image, *now),
            C::OrderImages { caller, images, now } => self.order_images(caller, images, *now),
            C::Publish { caller, category_standing, now } => {
                self.publish(caller, *category_standing, *now)
            }
            C::Reactivate { caller, category_standing, now } => {
                self.reactivate(caller, *category_standing, *now)
            }
            C::Restock { caller, quantity, now } => self.restock(caller, *quantity, *now),
            C::Pick { order_id, now } => Ok(self.pick(*order_id, *now)),
            C::Reserve { .. } => Ok(self.reserve(command)),
            C::Allocate { order_id, now } => self.allocate(*order_id, *now),
            C::Release { listing_id, order_id, reason, now } => {
                Ok(self.release(*listing_id, *order_id, reason, *now))
            }
            C::ExpireReservation { order_id, now } => Ok(self.expire(*order_id, *now)),
            C::TakeBack { order_id, return_id, quantity, now } => {
                self.take_back(*order_id, *return_id, *quantity, *now)
            }
        }
    }

    fn apply(&mut self, event: &ListingEvent) {
        use ListingEvent as E;
        match event {
            E::Created(event) => self.details = Some(ListingDetails::new(event)),
            E::InventoryReserved(event) => {
                self.shift(event.quantity, HoldState::Held);
                self.hold(event.order_id, event.quantity, HoldState::Held, event.expires_at);
            }
            E::ReservationFailed(event) => {
                // A hold that came to rest before keeps its mark.
                if self.holds.get(event.order_id).is_none() {
                    self.hold(event.order_id, 0, HoldState::Refused, event.failed_at);
                }
            }
            E::ReservationBarred(event) => {
                self.hold(event.order_id, 0, HoldState::Refused, event.barred_at);
            }
            E::Allocated(event) => {
                self.shift(event.quantity, HoldState::Allocated);
                self.hold(event.order_id, event.quantity, HoldState::Allocated, event.allocated_at);
            }
            E::Released(event) => {
                self.give_back(event.order_id, event.quantity);
                self.hold(event.order_id, event.quantity, HoldState::Released, event.released_at);
            }
            E::Returned(event) => {
                self.returns.push_back(event.return_id);
                if self.returns.len() > HOLDS_AT_REST_MAX {
                    self.returns.pop_front();
                }
                if let Some(ListingDetails { stock, .. }) = &mut self.details {
                    stock.sold = stock.sold.saturating_sub(event.quantity);
                    stock.available = stock.available.saturating_add(event.quantity);
                }
            }
            E::Picked(event) => self.holds.pick(event.order_id),
            E::Updated(_)
            | E::PriceChanged(_)
            | E::Archived(_)
            | E::ImageAdded(_)
            | E::ImageRemoved(_)
            | E::ImagesReordered(_)
            | E::Published(_)
            | E::Reactivated(_)
            | E::Restocked(_)
            | E::Reserved(_)
            | E::Sold(_)
            | E::Relisted(_) => {
                if let Some(details) = &mut self.details {
                    details.apply(event);
                }
            }
        }
    }

    fn timers(&self, event: &ListingEvent) -> Vec<TimerChange> {
        let name = hold_timer;
        match event {
            ListingEvent::InventoryReserved(event) => {
                vec![TimerChange::Set { name: name(event.order_id), at: event.expires_at }]
            }
            ListingEvent::Allocated(event) => {
                vec![TimerChange::Clear { name: name(event.order_id) }]
            }
            ListingEvent::Released(event) => {
                vec![TimerChange::Clear { name: name(event.order_id) }]
            }
            _ => Vec::new(),
        }
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<ListingCommand> {
        let order_id: OrderId = name.strip_prefix(HOLD_TIMER)?.parse().ok()?;
        let hold = self.holds.get(order_id)?;
        (hold.state == HoldState::Held)
            .then_some(ListingCommand::ExpireReservation { order_id, now })
    }
}

impl Listing {
    fn details(&self) -> Result<&ListingDetails, ListingRejection> {
        self.details.as_ref().ok_or(ListingRejection::NotFound)
    }

    /// The listing, for somebody who may change it.
    fn for_seller(&self, caller: &Caller) -> Result<&ListingDetails, ListingRejection> {
        let details = self.details()?;
        if caller.may_act_for(details.seller_id) {
            Ok(details)
        } else {
            Err(ListingRejection::Forbidden)
        }
    }

    fn create(&self, new: &NewListing) -> Decision {
        if self.details.is_some() {
            return Err(ListingRejection::AlreadyExists);
        }
        if !new.caller.may_act_for(new.seller_id) {
            return Err(ListingRejection::Forbidden);
        }
        match new.seller_standing {
            Some(VerificationStatus::Verified) => {}
            Some(_) => return Err(ListingRejection::SellerNotVerified),
            None => return Err(ListingRejection::Forbidden),
        }
        let mut fields = Fields::default();
        let title = fields.line("/title", &new.title, text::TITLE_MAX);
        let description = fields.lines("/description", &new.description, text::DESCRIPTION_MAX);
        let sku = fields.optional_line("/sku", new.sku.as_deref(), 64);
        check_price(&mut fields, new.price);
        let some = (1..=QUANTITY_MAX).contains(&new.quantity);
        fields.require(some, "/quantity", "out_of_range", "must be from 1 to 1000000");
        let images = checked_images(&mut fields, &new.images, new.images_max);
        fields.finish()?;
        check_category(new.category_standing)?;
        Ok(vec![ListingEvent::Created(ListingCreated {
            listing_id: new.listing_id,
            seller_id: new.seller_id,
            title,
            description,
            category_id: new.category_id,
            price: new.price.amount,
            currency: new.price.currency,
            sku: sku.unwrap_or_else(|| format!("SKU-{}", ids::crockford(new.listing_id.uuid()))),
            quantity: new.quantity,
            images,
            draft: new.draft,
            created_at: new.now,
        })])
    }

    fn update(
        &self,
        caller: &Caller,
        title: Option<&str>,
        description: Option<&str>,
        price: Option<SaidPrice>,
        now: Timestamp,
    ) -> Decision {
        let details = self.for_seller(caller)?;
        if details.status == ListingStatus::Archived {
            return Err(ListingRejection::Archived);
        }
        let mut fields = Fields::default();
        let title = title.map_or_else(
            || details.title.clone(),
            |title| fields.line("/title", title, text::TITLE_MAX),
        );
        let description = description.map_or_else(
            || details.description.clone(),
            |description| fields.lines("/description", description, text::DESCRIPTION_MAX),
        );
        let price = price.map_or(details.price, |said| {
            Money::new(said.amount, said.currency.unwrap_or(details.price.currency))
        });
        check_price(&mut fields, price);
        let same = price.currency == details.price.currency;
        fields.require(same, "/currency", "currency_fixed", "a listing keeps its currency");
        fields.finish()?;
        let repriced = price != details.price;
        if !repriced && title == details.title && description == details.description {
            return Ok(Vec::new());
        }
        let mut events = vec![ListingEvent::Updated(ListingUpdated {
            listing_id: details.listing_id,
            seller_id: details.seller_id,
            title,
            description,
            price: price.amount,
            currency: price.currency,
            updated_at: now,
        })];
        if repriced {
            events.push(ListingEvent::PriceChanged(PriceChanged {
                listing_id: details.listing_id,
                product_id: details.listing_id,
                old_price: details.price.amount,
                new_price: price.amount,
                currency: price.currency,
                changed_at: now,
            }));
        }
        Ok(events)
    }

    fn archive(&self, caller: &Caller, now: Timestamp) -> Decision {
        let details = self.for_seller(caller)?;
        if details.status == ListingStatus::Archived {
            return Ok(Vec::new());
        }
        Ok(vec![ListingEvent::Archived(ListingArchived {
            listing_id: details.listing_id,
            seller_id: details.seller_id,
            archived_at: now,
        })])
    }

    /// The listing, for its seller while it is not withdrawn.
    fn for_images(&self, caller: &Caller) -> Result<&ListingDetails, ListingRejection> {
        let details = self.for_seller(caller)?;
        match details.status {
            ListingStatus::Archived => Err(ListingRejection::Archived),
            _ => Ok(details),
        }
    }

    /// What is shown already is not added again.
    fn add_images(
        &self,
        caller: &Caller,
        images: &[String],
        images_max: usize,
        now: Timestamp,
    ) -> Decision {
        let details = self.for_images(caller)?;
        let mut added: Vec<&String> = Vec::new();
        for image in images {
            if !details.images.contains(image) && !added.contains(&image) {
                added.push(image);
            }
        }
        let mut fields = Fields::default();
        let fits = added.is_empty() || details.images.len() + added.len() <= images_max;
        fields.require(fits, "/image", "too_many", "the listing has no room for so many images");
        fields.finish()?;
        let event = |image: &String| {
            ListingEvent::ImageAdded(ListingImageAdded {
                listing_id: details.listing_id,
                seller_id: details.seller_id,
                image: image.clone(),
                added_at: now,
            })
        };
        Ok(added.into_iter().map(event).collect())
    }

    fn remove_image(&self, caller: &Caller, image: &str, now: Timestamp) -> Decision {
        let details = self.for_images(caller)?;
        if !details.images.iter().any(|shown| shown == image) {
            return Ok(Vec::new());
        }
        Ok(vec![ListingEvent::ImageRemoved(ListingImageRemoved {
            listing_id: details.listing_id,
            seller_id: details.seller_id,
            image: image.to_owned(),
            removed_at: now,
        })])
    }

    fn order_images(&self, caller: &Caller, images: &[String], now: Timestamp) -> Decision {
        let details = self.for_images(caller)?;
        let (mut asked, mut shown) = (images.to_vec(), details.images.clone());
        asked.sort_unstable();
        shown.sort_unstable();
        let mut fields = Fields::default();
        let detail = "must be all images of the listing, each once";
        fields.require(asked == shown, "/images", "other_images", detail);
        fields.finish()?;
        if images == details.images {
            return Ok(Vec::new());
        }
        Ok(vec![ListingEvent::ImagesReordered(ListingImagesReordered {
            listing_id: details.listing_id,
            seller_id: details.seller_id,
            images: images.to_vec(),
            reordered_at: now,
        })])
    }

    fn publish(
        &self,
        caller: &Caller,
        category_standing: CategoryStanding,
        now: Timestamp,
    ) -> Decision {
        let details = self.for_seller(caller)?;
        match details.status {
            ListingStatus::Draft => {}
            ListingStatus::Archived => return Err(ListingRejection::Archived),
            _ => return Ok(Vec::new()),
        }
        check_category(category_standing)?;
        Ok(vec![ListingEvent::Published(ListingPublished {
            listing_id: details.listing_id,
            seller_id: details.seller_id,
            published_at: now,
        })])
    }

    fn reactivate(
        &self,
        caller: &Caller,
        category_standing: CategoryStanding,
        now: Timestamp,
    ) -> Decision {
        let details = self.for_seller(caller)?;
        if details.status != ListingStatus::Archived {
            return Ok(Vec::new());
        }
        check_category(category_standing)?;
        Ok(vec![ListingEvent::Reactivated(ListingReactivated {
            listing_id: details.listing_id,
            seller_id: details.seller_id,
            status: details.status_by_stock(),
            reactivated_at: now,
        })])
    }

    fn restock(&self, caller: &Caller, quantity: u32, now: Timestamp) -> Decision {
        let details = self.for_seller(caller)?;
        if details.status == ListingStatus::Archived {
            return Err(ListingRejection::Archived);
        }
        let mut fields = Fields::default();
        let available = details.stock.available.saturating_add(quantity);
        let fits = quantity > 0 && available <= QUANTITY_MAX;
        let detail = "must be more than 0, and at most 1000000 may be there to be bought";
        fields.require(fits, "/quantity", "out_of_range", detail);
        fields.finish()?;
        let listing_id = details.listing_id;
        let mut events = vec![ListingEvent::Restocked(InventoryRestocked {
            listing_id,
            product_id: listing_id,
            sku: details.sku.clone(),
            warehouse_id: WAREHOUSE.to_owned(),
            quantity,
            available,
            restocked_at: now,
        })];
        if matches!(details.status, ListingStatus::Reserved | ListingStatus::Sold) {
            let relisted = ListingRelisted { listing_id, available, relisted_at: now };
            events.push(ListingEvent::Relisted(relisted));
        }
        Ok(events)
    }

    /// What is not sold to the order, any more or yet, or was picked before, is not picked.
    fn pick(&self, order_id: OrderId, now: Timestamp) -> Vec<ListingEvent> {
        let hold = self.holds.get(order_id);
        let hold = hold.filter(|hold| hold.state == HoldState::Allocated && !hold.picked);
        let (Some(details), Some(hold)) = (&self.details, hold) else { return Vec::new() };
        vec![ListingEvent::Picked(InventoryPicked {
            order_id,
            listing_id: details.listing_id,
            sku: details.sku.clone(),
            warehouse_id: WAREHOUSE.to_owned(),
            quantity: hold.quantity,
            reservation_id: ReservationId::of(details.listing_id, order_id),
            picked_at: now,
        })]
    }

    fn reserve(&self, command: &ListingCommand) -> Vec<ListingEvent> {
        let ListingCommand::Reserve {
            listing_id,
            order_id,
            customer_id,
            quantity,
            unit_price,
            now,
            expires_at,
        } = command
        else {
            return Vec::new();
        };
        let given_up = match self.holds.get(*order_id).map(|hold| hold.state) {
            Some(HoldState::Held | HoldState::Allocated) => return Vec::new(),
            Some(HoldState::Released | HoldState::Refused) => {
                Some(ReservationFailure::OrderGivenUp)
            }
            None => None,
        };
        let details = match (&self.details, given_up) {
            (Some(details), None) => {
                details.refuses(*customer_id, *quantity, *unit_price).map_or(Ok(details), Err)
            }
            (None, None) => Err(ReservationFailure::NotFound),
            (_, Some(reason)) => Err(reason),
        };
        match details {
            Ok(details) => details.reserved(*order_id, *customer_id, *quantity, *now, *expires_at),
            Err(reason) => {
                let available = self.details.as_ref().map_or(0, |details| details.stock.available);
                vec![ListingEvent::ReservationFailed(InventoryReservationFailed {
                    order_id: *order_id,
                    listing_id: *listing_id,
                    quantity: *quantity,
                    available,
                    reason,
                    failed_at: *now,
                })]
            }
        }
    }

    fn allocate(&self, order_id: OrderId, now: Timestamp) -> Decision {
        let details = self.details()?;
        let hold = self.holds.get(order_id).ok_or(ListingRejection::ReservationGone)?;
        match hold.state {
            HoldState::Allocated => return Ok(Vec::new()),
            HoldState::Released | HoldState::Refused => {
                return Err(ListingRejection::ReservationGone);
            }
            HoldState::Held => {}
        }
        let listing_id = details.listing_id;
        let mut events = vec![ListingEvent::Allocated(InventoryAllocated {
            order_id,
            listing_id,
            sku: details.sku.clone(),
            quantity: hold.quantity,
            reservation_id: ReservationId::of(listing_id, order_id),
            allocated_at: now,
        })];
        if details.status == ListingStatus::Reserved && details.stock.reserved == hold.quantity {
            events.push(ListingEvent::Sold(ListingSold {
                listing_id,
                transaction_id: order_id,
                sold_at: now,
            }));
        }
        Ok(events)
    }

    fn release(
        &self,
        listing_id: ListingId,
        order_id: OrderId,
        reason: &str,
        now: Timestamp,
    ) -> Vec<ListingEvent> {
        match self.holds.get(order_id) {
            None => vec![ListingEvent::ReservationBarred(InventoryReservationBarred {
                order_id,
                listing_id,
                reason: reason.to_owned(),
                barred_at: now,
            })],
            Some(hold) if matches!(hold.state, HoldState::Held | HoldState::Allocated) => {
                self.released(order_id, hold, reason, now)
            }
            Some(_) => Vec::new(),
        }
    }

    fn expire(&self, order_id: OrderId, now: Timestamp) -> Vec<ListingEvent> {
        match self.holds.get(order_id) {
            Some(hold) if hold.state == HoldState::Held => {
                self.released(order_id, hold, EXPIRED, now)
            }
            _ => Vec::new(),
        }
    }

    fn released(
        &self,
        order_id: OrderId,
        hold: &Hold,
        reason: &str,
        now: Timestamp,
    ) -> Vec<ListingEvent> {
        let Some(details) = &self.details else { return Vec::new() };
        let listing_id = details.listing_id;
        let mut events = vec![ListingEvent::Released(InventoryReleased {
            order_id,
            listing_id,
            sku: details.sku.clone(),
            quantity: hold.quantity,
            allocated: hold.state == HoldState::Allocated,
            reservation_id: ReservationId::of(listing_id, order_id),
            reason: reason.to_owned(),
            released_at: now,
        })];
        events.extend(details.relisted(hold.quantity, now));
        events
    }

    fn take_back(
        &self,
        order_id: OrderId,
        return_id: ReturnId,
        quantity: u32,
        now: Timestamp,
    ) -> Decision {
        let details = self.details()?;
        if self.returns.contains(&return_id) || quantity == 0 {
            return Ok(Vec::new());
        }
        let mut events = vec![ListingEvent::Returned(InventoryReturned {
            order_id,
            listing_id: details.listing_id,
            return_id,
            sku: details.sku.clone(),
            quantity,
            returned_at: now,
        })];
        events.extend(details.relisted(quantity, now));
        Ok(events)
    }

    fn hold(&mut self, order: OrderId, quantity: u32, state: HoldState, expires_at: Timestamp) {
        self.holds.set(order, Hold { quantity, state, expires_at, picked: false });
    }

    /// Moves units on: from available to reserved, or from reserved to sold.
    fn shift(&mut self, quantity: u32, to: HoldState) {
        let Some(ListingDetails { stock, .. }) = &mut self.details else { return };
        let (from, to) = match to {
            HoldState::Held => (&mut stock.available, &mut stock.reserved),
            _ => (&mut stock.reserved, &mut stock.sold),
        };
        *from = from.saturating_sub(quantity);
        *to = to.saturating_add(quantity);
    }

    fn give_back(&mut self, order: OrderId, quantity: u32) {
        let sold = self.holds.get(order).is_some_and(|hold| hold.state == HoldState::Allocated);
        let Some(ListingDetails { stock, .. }) = &mut self.details else { return };
        let from = if sold { &mut stock.sold } else { &mut stock.reserved };
        *from = from.saturating_sub(quantity);
        stock.available = stock.available.saturating_add(quantity);
    }
}

impl ListingDetails {
    fn new(event: &ListingCreated) -> Self {
        Self {
            listing_id: event.listing_id,
            seller_id: event.seller_id,
            status: if event.draft { ListingStatus::Draft } else { ListingStatus::Active },
            title: event.title.clone(),
            description: event.description.clone(),
            category_id: event.category_id,
            price: Money::new(event.price, event.currency),
            sku: event.sku.clone(),
            images: event.images.clone(),
            stock: Stock { available: event.quantity, reserved: 0, sold: 0 },
            unpublished: event.draft,
            created_at: event.created_at,
        }
    }

    /// Something is left again when so many units come back.
    fn relisted(&self, quantity: u32, now: Timestamp) -> Option<ListingEvent> {
        matches!(self.status, ListingStatus::Reserved | ListingStatus::Sold).then(|| {
            ListingEvent::Relisted(ListingRelisted {
                listing_id: self.listing_id,
                available: self.stock.available.saturating_add(quantity),
                relisted_at: now,
            })
        })
    }

    /// How it stands when it is not withdrawn.
    fn status_by_stock(&self) -> ListingStatus {
        match self.stock {
            _ if self.unpublished => ListingStatus::Draft,
            Stock { available: 1.., .. } => ListingStatus::Active,
            Stock { reserved: 1.., .. } => ListingStatus::Reserved,
            Stock { .. } => ListingStatus::Sold,
        }
    }

    fn reserved(
        &self,
        order_id: OrderId,
        customer_id: UserId,
        quantity: u32,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Vec<ListingEvent> {
        let reservation_id = ReservationId::of(self.listing_id, order_id);
        let entry = ReservationEntry { reservation_id, sku: self.sku.clone(), quantity };
        let mut events = vec![ListingEvent::InventoryReserved(InventoryReserved {
            order_id,
            transaction_id: order_id,
            listing_id: self.listing_id,
            product_id: self.listing_id,
            sku: self.sku.clone(),
            warehouse_id: WAREHOUSE.to_owned(),
            quantity,
            quantity_reserved: quantity,
            reservation_id,
            customer_id,
            reserved_at: now,
            expires_at,
            reservations: vec![entry],
        })];
        if quantity == self.stock.available {
            events.push(ListingEvent::Reserved(ListingReserved {
                listing_id: self.listing_id,
                transaction_id: order_id,
                expires_at,
            }));
        }
        events
    }

    fn apply(&mut self, event: &ListingEvent) {
        match event {
            ListingEvent::Updated(event) => {
                self.title.clone_from(&event.title);
                self.description.clone_from(&event.description);
                self.price = Money::new(event.price, event.currency);
            }
            ListingEvent::Archived(_) => self.status = ListingStatus::Archived,
            ListingEvent::ImageAdded(event) => self.images.push(event.image.clone()),
            ListingEvent::ImageRemoved(event) => self.images.retain(|image| *image != event.image),
            ListingEvent::ImagesReordered(event) => self.images.clone_from(&event.images),
            ListingEvent::Published(_) => {
                self.status = ListingStatus::Active;
                self.unpublished = false;
            }
            ListingEvent::Reactivated(event) => self.status = event.status,
            ListingEvent::Restocked(event) => {
                self.stock.available = self.stock.available.saturating_add(event.quantity);
            }
            ListingEvent::Reserved(_) => self.status = ListingStatus::Reserved,
            ListingEvent::Sold(_) => self.status = ListingStatus::Sold,
            ListingEvent::Relisted(_) => self.status = ListingStatus::Active,
            _ => {}
        }
    }
}

fn check_category(standing: CategoryStanding) -> Result<(), ListingRejection> {
    match standing {
        CategoryStanding::Active => Ok(()),
        CategoryStanding::Inactive => Err(ListingRejection::CategoryInactive),
        CategoryStanding::Unknown => Err(ListingRejection::CategoryUnknown),
    }
}

/// Addresses of images that are somewhere on the web. Those that are kept here come in another way.
fn checked_images(fields: &mut Fields, images: &[String], images_max: usize) -> Vec<String> {
    if images.len() > images_max {
        fields.error("/images", "too_many", format!("must be at most {images_max} images"));
    }
    let each = images.iter().take(images_max).enumerate();
    each.map(|(index, image)| fields.url(&format!("/images/{index}"), image, true)).collect()
}

fn check_price(fields: &mut Fields, price: Money) {
    let detail = "must be a whole number of minor units, more than 0";
    fields.require(price.is_price(), "/price", "out_of_range", detail);
}

#[cfg(test)]
mod tests;
