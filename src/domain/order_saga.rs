//! The order saga: from a placed order to a shipped one, or back to where everything was.
//!
//! It is declared, not programmed: facts, steps, and how each step shows that it is done, has
//! failed or is undone. Two definitions go through the same steps in a different order, and the
//! order itself says which ([`SagaDefinition`]):
//!
//! ```text
//! reserve_first: reserve, confirm, capture, pay, ship, mark_shipped, confirmation
//! payment_first: capture, reserve, confirm, pay, ship, mark_shipped, confirmation
//! ```
//!
//! The state is made of flags that are only ever set, and of reasons of which the least counts. So
//! facts may come twice and in any order, and the state is the same.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::event::{DecodeError, EventPayload as _, StoredEvent};
use souk_actors::personal::Personal;
use souk_actors::saga::{BY_HAND, Progress, Saga, Step};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::caller::Caller;
use super::escrow::{Escrow, EscrowCommand, EscrowEvent};
use super::ids::{
    EscrowId, ListingId, NotificationId, OrderId, PaymentId, PromotionId, RefundId, ShipmentId,
    UserId,
};
use super::listing::{
    EXPIRED, HOLD_FOR, Listing, ListingCommand, ListingEvent, ReservationFailure,
};
use super::money::Money;
use super::notification::{
    Audience, Channel, NewNotification, Notification, NotificationCommand, NotificationEvent,
    Params,
};
use super::order::{
    Order, OrderCommand, OrderEvent, OrderItem, OrderPromotion, PaymentMethod, SagaDefinition,
};
use super::order_progress::DISPUTE_RESOLVED;
use super::payment::{Payment, PaymentCommand, PaymentEvent};
use super::promotion::{Promotion, PromotionCommand, PromotionEvent, RedemptionFailure};
use super::shipment::{Shipment, ShipmentCommand, ShipmentEvent};

/// How long a step may take, from the documents.
pub const STEP_LIMIT: Duration = Duration::from_secs(30);

/// How long a capture may take that waits for the buyer. Longer than stock is held
/// ([`HOLD_FOR`]), so that it is the end of the hold that calls the order off.
pub const BUYER_LIMIT: Duration = Duration::from_secs(45 * 60);

/// The template of the mail that ends the saga.
pub const CONFIRMATION_TEMPLATE: &str = "order_confirmation";

/// The reason for turning back when stock was held for too long. Stored; never rename.
pub const RESERVATION_EXPIRED: &str = "reservation_expired";

/// The reason for turning back when somebody called the order off. Stored; never rename.
pub const ORDER_CANCELLED: &str = "order_cancelled";

/// A command to one of the marketplace's aggregates.
#[derive(Debug, Clone, PartialEq)]
pub enum MarketCommand {
    /// To an order.
    Order(OrderId, OrderCommand),
    /// To a listing.
    Listing(ListingId, ListingCommand),
    /// To a payment.
    Payment(PaymentId, PaymentCommand),
    /// To an escrow.
    Escrow(EscrowId, EscrowCommand),
    /// To a shipment.
    Shipment(ShipmentId, ShipmentCommand),
    /// To a promotion.
    Promotion(PromotionId, PromotionCommand),
    /// To a notification.
    Notification(NotificationId, NotificationCommand),
}

impl MarketCommand {
    /// The aggregate that it is for.
    pub fn target(&self) -> Uuid {
        match self {
            Self::Order(id, _) => id.uuid(),
            Self::Listing(id, _) => id.uuid(),
            Self::Payment(id, _) => id.uuid(),
            Self::Escrow(id, _) => id.uuid(),
            Self::Shipment(id, _) => id.uuid(),
            Self::Promotion(id, _) => id.uuid(),
            Self::Notification(id, _) => id.uuid(),
        }
    }

    /// The type of that aggregate.
    pub fn aggregate_type(&self) -> &'static str {
        match self {
            Self::Order(..) => Order::TYPE,
            Self::Listing(..) => Listing::TYPE,
            Self::Payment(..) => Payment::TYPE,
            Self::Escrow(..) => Escrow::TYPE,
            Self::Shipment(..) => Shipment::TYPE,
            Self::Promotion(..) => Promotion::TYPE,
            Self::Notification(..) => Notification::TYPE,
        }
    }

    /// The command's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Order(_, command) => command.name(),
            Self::Listing(_, command) => command.name(),
            Self::Payment(_, command) => command.name(),
            Self::Escrow(_, command) => command.name(),
            Self::Shipment(_, command) => command.name(),
            Self::Promotion(_, command) => command.name(),
            Self::Notification(_, command) => command.name(),
        }
    }
}

/// What the saga needs to know of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// The event that says so: the cause of the confirmation.
    pub event_id: Uuid,
    /// The order.
    pub order_id: OrderId,
    /// The number that people read out.
    pub order_number: String,
    /// Who buys.
    pub buyer_id: UserId,
    /// Who sells.
    pub seller_id: UserId,
    /// What is wanted.
    pub items: Vec<OrderItem>,
    /// The sum, after what a promotion takes off.
    pub total: Money,
    /// What a promotion code takes off, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<OrderPromotion>,
    /// By which means it will be paid.
    pub payment_method: PaymentMethod,
    /// The reference that the buyer and the gateway see.
    pub payment_reference: String,
    /// In which order to go about it.
    pub definition: SagaDefinition,
}

/// What the saga understands of an event. Stored in the saga's own events; never rename.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The order was placed.
    Placed(Box<Placed>),
    /// Everything in it is reserved, and the order knows.
    Confirmed,
    /// It is paid, and the order knows.
    Paid,
    /// There is a shipment, and the order knows.
    Shipped,
    /// Somebody called it off.
    Cancelled,
    /// A listing holds stock for it.
    Reserved(ListingId),
    /// A listing could not.
    NotReserved(ListingId, ReservationFailure),
    /// A listing shall not.
    Barred(ListingId),
    /// A listing sold it.
    Allocated(ListingId),
    /// A listing took its stock back.
    Released(ListingId),
    /// A listing took its stock back because the time was over.
    Expired(ListingId),
    /// The promotion holds a use for it.
    Redeemed,
    /// The promotion has none.
    NotRedeemed(RedemptionFailure),
    /// The promotion shall hold none.
    RedemptionBarred,
    /// The promotion took its use back.
    RedemptionReleased,
    /// The escrow waits for the money.
    EscrowOpened,
    /// The escrow has the money.
    EscrowFunded,
    /// The escrow has no money and will get none.
    EscrowClosed,
    /// The money came.
    Captured,
    /// The money will not come.
    NotCaptured(String),
    /// No money was wanted, and none will come.
    Voided,
    /// The money went back.
    Refunded,
    /// There is a shipment.
    ShipmentCreated,
    /// There is none any more, and there will be none.
    ShipmentCancelled,
    /// The buyer has been told.
    Told,
    /// The buyer cannot be told.
    NotTold(String),
}

/// How far one order has come, as far as its facts are known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderSaga {
    /// What was ordered, once known.
    pub placed: Option<Placed>,
    /// What the order itself knows.
    pub order: OrderFlags,
    /// What each listing has said.
    pub listings: BTreeMap<ListingId, ListingFlags>,
    /// What the promotion has said, if there is one.
    #[serde(default)]
    pub promotion: PromotionFlags,
    /// What the escrow has said.
    pub escrow: EscrowFlags,
    /// What the payment has said.
    pub payment: PaymentFlags,
    /// What the shipment has said.
    pub shipment: ShipmentFlags,
    /// What the confirmation has said.
    pub confirmation: ConfirmationFlags,
}

/// What an order has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderFlags {
    /// It is confirmed.
    pub confirmed: bool,
    /// It is paid.
    pub paid: bool,
    /// It is shipped.
    pub shipped: bool,
    /// Somebody called it off.
    pub cancelled: bool,
}

/// What a listing has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ListingFlags {
    /// It holds stock, or did.
    pub reserved: bool,
    /// It has none to hold.
    pub failed: Option<ReservationFailure>,
    /// It shall hold none.
    pub barred: bool,
    /// It sold the stock.
    pub allocated: bool,
    /// It took the stock back.
    pub released: bool,
    /// It took the stock back because the time was over.
    pub expired: bool,
}

/// What a promotion has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PromotionFlags {
    /// It holds a use, or did.
    pub redeemed: bool,
    /// It has none to hold.
    pub failed: Option<RedemptionFailure>,
    /// It shall hold none.
    pub barred: bool,
    /// It took the use back.
    pub released: bool,
}

/// What an escrow has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EscrowFlags {
    /// It is open, or was.
    pub opened: bool,
    /// It has the money, or had.
    pub funded: bool,
    /// It has no money and will get none.
    pub closed: bool,
}

/// What a payment has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PaymentFlags {
    /// The money came.
    pub captured: bool,
    /// The money will not come.
    pub failed: Option<String>,
    /// No money was wanted, and none will come.
    pub voided: bool,
    /// The money went back.
    pub refunded: bool,
}

/// What a shipment has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShipmentFlags {
    /// There is one, or was.
    pub created: bool,
    /// There is none any more, and there will be none.
    pub cancelled: bool,
}

/// What the confirmation has said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfirmationFlags {
    /// It was sent.
    pub sent: bool,
    /// It cannot be sent.
    pub failed: Option<String>,
}

impl Saga for OrderSaga {
    const NAME: &'static str = "order_saga";

    const TOPICS: &'static [&'static str] = &[
        "order.*",
        "inventory.*",
        "promotion.*",
        "escrow.*",
        "payment.*",
        "shipment.*",
        "notification.email.*",
    ];

    type Fact = Fact;
    type Command = MarketCommand;

    fn fact(event: &StoredEvent) -> Result<Option<(Uuid, Fact)>, DecodeError> {
        if owner(&event.event_type) != Some(&*event.aggregate_type) {
            return Ok(None);
        }
        // Only what says something is read: of the rest no version matters.
        let Some(understand) = meaning(&event.event_type) else { return Ok(None) };
        let data = Data::read(event)?;
        let Some(fact) = understand(&data)? else { return Ok(None) };
        Ok(Some((data.get::<OrderId>("order_id")?.uuid(), fact)))
    }

    fn starts(fact: &Fact) -> bool {
        matches!(fact, Fact::Placed(_))
    }

    fn observe(&mut self, fact: &Fact) {
        match fact {
            Fact::Placed(placed) => self.placed = Some((**placed).clone()),
            Fact::Confirmed => self.order.confirmed = true,
            Fact::Paid => self.order.paid = true,
            Fact::Shipped => self.order.shipped = true,
            Fact::Cancelled => self.order.cancelled = true,
            Fact::Reserved(listing) => self.listing_mut(*listing).reserved = true,
            Fact::NotReserved(listing, reason) => {
                least(&mut self.listing_mut(*listing).failed, reason);
            }
            Fact::Barred(listing) => self.listing_mut(*listing).barred = true,
            Fact::Allocated(listing) => self.listing_mut(*listing).allocated = true,
            Fact::Released(listing) => self.listing_mut(*listing).released = true,
            Fact::Expired(listing) => {
                let listing = self.listing_mut(*listing);
                listing.released = true;
                listing.expired = true;
            }
            Fact::Redeemed => self.promotion.redeemed = true,
            Fact::NotRedeemed(reason) => least(&mut self.promotion.failed, reason),
            Fact::RedemptionBarred => self.promotion.barred = true,
            Fact::RedemptionReleased => self.promotion.released = true,
            Fact::EscrowOpened => self.escrow.opened = true,
            Fact::EscrowFunded => self.escrow.funded = true,
            Fact::EscrowClosed => self.escrow.closed = true,
            Fact::Captured => self.payment.captured = true,
            Fact::NotCaptured(reason) => least(&mut self.payment.failed, reason),
            Fact::Voided => self.payment.voided = true,
            Fact::Refunded => self.payment.refunded = true,
            Fact::ShipmentCreated => self.shipment.created = true,
            Fact::ShipmentCancelled => self.shipment.cancelled = true,
            Fact::Told => self.confirmation.sent = true,
            Fact::NotTold(reason) => least(&mut self.confirmation.failed, reason),
        }
    }

    fn steps(&self) -> &'static [Step<Self>] {
        match self.placed.as_ref().map(|placed| placed.definition) {
            Some(SagaDefinition::PaymentFirst) => PAYMENT_FIRST,
            Some(SagaDefinition::ReserveFirst) | None => RESERVE_FIRST,
        }
    }

    fn aborted(&self) -> Option<String> {
        if self.listings.values().any(|listing| listing.expired) {
            Some(RESERVATION_EXPIRED.to_owned())
        } else if self.order.cancelled {
            Some(ORDER_CANCELLED.to_owned())
        } else {
            None
        }
    }

    fn too_late(&self) -> Option<String> {
        let is_on_its_way = self.shipment.created && !self.shipment.cancelled;
        (is_on_its_way || self.order.shipped).then(|| {
            "there is a shipment, and the money would go back for what is shipped".to_owned()
        })
    }

    fn announce(&self, step: &str, reason: &str, now: Timestamp) -> Vec<MarketCommand> {
        let reason = reason.to_owned();
        match (turn(step, &reason), &self.placed) {
            (Turn::Expired, Some(placed)) => {
                let (caller, reason) = (Caller::System, Some(reason));
                vec![placed.order(OrderCommand::Cancel { caller, reason, now })]
            }
            (Turn::NotReserved, Some(placed)) => {
                vec![placed.order(OrderCommand::Reject { reason, now })]
            }
            (Turn::NotPaid, Some(placed)) => {
                vec![placed.order(OrderCommand::MarkPaymentFailed { reason, now })]
            }
            (Turn::Cancelled | Turn::Failed, _) | (_, None) => Vec::new(),
        }
    }

    fn conclude(&self, step: &str, reason: &str, now: Timestamp) -> Vec<MarketCommand> {
        match (turn(step, reason), &self.placed) {
            (Turn::Failed, Some(placed)) => {
                let (reason, step) = (reason.to_owned(), step.to_owned());
                vec![placed.order(OrderCommand::Fail { reason, step, now })]
            }
            _ => Vec::new(),
        }
    }
}

/// Why the saga turned back.
enum Turn {
    /// Stock was held for too long.
    Expired,
    /// Somebody called the order off: it knows already.
    Cancelled,
    /// Something could not be reserved.
    NotReserved,
    /// The money did not come.
    NotPaid,
    /// Anything else.
    Failed,
}

fn turn(step: &str, reason: &str) -> Turn {
    match (step, reason) {
        (_, RESERVATION_EXPIRED) => Turn::Expired,
        (_, ORDER_CANCELLED) => Turn::Cancelled,
        // Nothing is wrong with the stock or the money.
        (_, BY_HAND) => Turn::Failed,
        ("reserve", _) => Turn::NotReserved,
        ("capture", _) => Turn::NotPaid,
        _ => Turn::Failed,
    }
}

/// The type of the aggregate whose word counts for events of this type: nobody else's does.
fn owner(event_type: &str) -> Option<&'static str> {
    Some(match event_type.split_once('.')?.0 {
        "order" => Order::TYPE,
        "inventory" => Listing::TYPE,
        "promotion" => Promotion::TYPE,
        "payment" => Payment::TYPE,
        "escrow" => Escrow::TYPE,
        "shipment" => Shipment::TYPE,
        "notification" => Notification::TYPE,
        _ => return None,
    })
}

/// An event and its data, as the newest version of its type says it.
struct Data<'a> {
    event: &'a StoredEvent,
    members: Value,
}

impl<'a> Data<'a> {
    fn read(event: &'a StoredEvent) -> Result<Self, DecodeError> {
        let members = match &*event.aggregate_type {
            Order::TYPE => OrderEvent::read(event),
            Listing::TYPE => ListingEvent::read(event),
            Promotion::TYPE => PromotionEvent::read(event),
            Payment::TYPE => PaymentEvent::read(event),
            Escrow::TYPE => EscrowEvent::read(event),
            Shipment::TYPE => ShipmentEvent::read(event),
            Notification::TYPE => NotificationEvent::read(event),
            _ => Err(DecodeError::UnknownType(event.event_type.to_string())),
        };
        Ok(Self { event, members: members? })
    }

    /// A member; null where it is missing.
    fn get<T: DeserializeOwned>(&self, name: &'static str) -> Result<T, DecodeError> {
        T::deserialize(&self.members[name]).map_err(|_| DecodeError::Member {
            event_type: self.event.event_type.to_string(),
            name,
        })
    }

    fn placed(&self) -> Result<Placed, DecodeError> {
        Ok(Placed {
            event_id: self.event.event_id,
            order_id: self.get("order_id")?,
            order_number: self.get("order_number")?,
            buyer_id: self.get("buyer_id")?,
            seller_id: self.get("seller_id")?,
            items: self.get("items")?,
            total: Money::new(self.get("amount")?, self.get("currency")?),
            promotion: self.get("promotion")?,
            payment_method: self.get("payment_method")?,
            payment_reference: self.get("payment_reference")?,
            definition: self.get("saga_definition")?,
        })
    }

    fn is_confirmation(&self) -> bool {
        self.members["template"] == CONFIRMATION_TEMPLATE
    }
}

/// What is understood of an event; nothing where it says nothing to the saga after all.
type Understand = fn(&Data<'_>) -> Result<Option<Fact>, DecodeError>;

/// How events of a type are understood; none: they say nothing to the saga.
fn meaning(event_type: &str) -> Option<Understand> {
    Some(match event_type {
        "order.placed" => |data| Ok(Some(Fact::Placed(Box::new(data.placed()?)))),
        "order.confirmed" => |_| Ok(Some(Fact::Confirmed)),
        "order.paid" => |_| Ok(Some(Fact::Paid)),
        "order.shipped" => |_| Ok(Some(Fact::Shipped)),
        "order.cancelled" => |_| Ok(Some(Fact::Cancelled)),
        "inventory.reserved" => |data| Ok(Some(Fact::Reserved(data.get("listing_id")?))),
        "inventory.reservation_failed" => {
            |data| Ok(Some(Fact::NotReserved(data.get("listing_id")?, data.get("reason")?)))
        }
        "inventory.reservation_barred" => |data| Ok(Some(Fact::Barred(data.get("listing_id")?))),
        "inventory.allocated" => |data| Ok(Some(Fact::Allocated(data.get("listing_id")?))),
        "inventory.released" => |data| {
            let listing_id = data.get("listing_id")?;
            Ok(Some(match data.members["reason"] == EXPIRED {
                true => Fact::Expired(listing_id),
                false => Fact::Released(listing_id),
            }))
        },
        "promotion.redeemed" => |_| Ok(Some(Fact::Redeemed)),
        "promotion.redemption_refused" => |data| Ok(Some(Fact::NotRedeemed(data.get("reason")?))),
        "promotion.redemption_barred" => |_| Ok(Some(Fact::RedemptionBarred)),
        "promotion.redemption_released" => |_| Ok(Some(Fact::RedemptionReleased)),
        "escrow.created" => |_| Ok(Some(Fact::EscrowOpened)),
        "escrow.funded" => |_| Ok(Some(Fact::EscrowFunded)),
        // A part goes back when the saga is done with the order.
        "escrow.refunded" => {
            |data| Ok(data.members["refund_id"].is_null().then_some(Fact::EscrowClosed))
        }
        "escrow.barred" => |_| Ok(Some(Fact::EscrowClosed)),
        "payment.captured" => |_| Ok(Some(Fact::Captured)),
        "payment.failed" => |data| Ok(Some(Fact::NotCaptured(data.get("reason")?))),
        "payment.voided" => |_| Ok(Some(Fact::Voided)),
        "payment.refunded" => |data| {
            let whole = RefundId::of(data.get("payment_id")?);
            Ok((data.get::<RefundId>("refund_id")? == whole).then_some(Fact::Refunded))
        },
        "shipment.created" => |_| Ok(Some(Fact::ShipmentCreated)),
        // So is a shipment called off when a dispute is over.
        "shipment.cancelled" => |data| {
            let is_ours = data.members["reason"] != DISPUTE_RESOLVED;
            Ok(is_ours.then_some(Fact::ShipmentCancelled))
        },
        "notification.email.sent" => |data| Ok(data.is_confirmation().then_some(Fact::Told)),
        "notification.email.failed" => |data| match data.is_confirmation() {
            true => Ok(Some(Fact::NotTold(data.get("reason")?))),
            false => Ok(None),
        },
        _ => return None,
    })
}

/// Of several reasons the least counts, so that their order does not.
fn least<T: Ord + Clone>(known: &mut Option<T>, new: &T) {
    match known {
        Some(known) if &*known <= new => {}
        _ => *known = Some(new.clone()),
    }
}

impl Placed {
    fn order(&self, command: OrderCommand) -> MarketCommand {
        MarketCommand::Order(self.order_id, command)
    }
}

impl OrderSaga {
    fn listing_mut(&mut self, listing: ListingId) -> &mut ListingFlags {
        self.listings.entry(listing).or_default()
    }

    /// Whether `holds` for what every listing of the order has said.
    fn every_listing(&self, holds: impl Fn(&ListingFlags) -> bool) -> bool {
        self.placed.as_ref().is_some_and(|placed| {
            placed.items.iter().all(|item| self.listings.get(&item.listing_id).is_some_and(&holds))
        })
    }

    /// Whether the promotion of the order has a use for it; no promotion has.
    fn is_redeemed(&self) -> bool {
        let is_promoted = self.placed.as_ref().is_some_and(|placed| placed.promotion.is_some());
        self.promotion.redeemed || !is_promoted
    }

    /// Whether no promotion holds a use for the order, nor ever will.
    fn is_not_redeemed(&self) -> bool {
        let is_promoted = self.placed.as_ref().is_some_and(|placed| placed.promotion.is_some());
        let PromotionFlags { failed, barred, released, .. } = &self.promotion;
        !is_promoted || *released || *barred || failed.is_some()
    }

    /// The commands that `make` makes of the order, once it is known.
    fn make(&self, make: impl FnOnce(&Placed) -> Vec<MarketCommand>) -> Vec<MarketCommand> {
        self.placed.as_ref().map(make).unwrap_or_default()
    }

    /// Why the saga turns back, for those who are told to undo something.
    fn why(&self) -> String {
        let failed = self.listings.values().filter_map(|listing| listing.failed).min();
        self.aborted()
            .or_else(|| failed.map(|reason| reason.as_str().to_owned()))
            .or_else(|| self.promotion.failed.map(|reason| reason.as_str().to_owned()))
            .or_else(|| self.payment.failed.clone().map(|_| "payment_failed".to_owned()))
            .unwrap_or_else(|| "order_failed".to_owned())
    }
}

static RESERVE_FIRST: &[Step<OrderSaga>] =
    &[RESERVE, CONFIRM, CAPTURE, PAY, SHIP, MARK_SHIPPED, CONFIRMATION];

static PAYMENT_FIRST: &[Step<OrderSaga>] =
    &[CAPTURE, RESERVE, CONFIRM, PAY, SHIP, MARK_SHIPPED, CONFIRMATION];

/// How often an order is told that it is shipped: until it is. The goods are on their way by then,
/// and an order that has heard it may be unable to say so before a time limit passes: turning back
/// would give the money back for what is shipped.
const SHIPPED_RETRIES_MAX: u32 = 10_000;

/// What most steps share. No step but `mark_shipped` is tried again: what it asked for is stored,
/// commands wait until their aggregate can take them, and the documents want the way back to begin
/// after one time limit.
const PLAIN: Step<OrderSaga> = Step {
    name: "",
    done_as: "",
    act: |_, _| Vec::new(),
    progress: |_| Progress::Pending,
    undo: |_, _| Vec::new(),
    undone: |_| true,
    time_limit: |_| STEP_LIMIT,
    retries_max: 0,
    optional: false,
};

const RESERVE: Step<OrderSaga> = Step {
    name: "reserve",
    done_as: "INVENTORY_RESERVED",
    act: |saga, now| saga.make(|placed| reserve(placed, now)),
    progress: |saga| {
        let failed = saga.listings.values().filter_map(|listing| listing.failed).min();
        match (failed, saga.promotion.failed) {
            (Some(reason), _) => Progress::Failed(reason.as_str().to_owned()),
            (None, Some(reason)) => Progress::Failed(reason.as_str().to_owned()),
            (None, None) => {
                let held = saga.every_listing(|listing| listing.reserved);
                done_when(saga.escrow.opened && held && saga.is_redeemed())
            }
        }
    },
    undo: |saga, now| {
        saga.make(|placed| {
            let mut commands = release(placed, &saga.why(), now);
            commands.push(refund_escrow(placed, &saga.why(), now));
            commands
        })
    },
    undone: |saga| {
        let free =
            |listing: &ListingFlags| listing.released || listing.barred || listing.failed.is_some();
        saga.escrow.closed && saga.every_listing(free) && saga.is_not_redeemed()
    },
    ..PLAIN
};

const CONFIRM: Step<OrderSaga> = Step {
    name: "confirm",
    done_as: "ORDER_CONFIRMED",
    act: |saga, now| saga.make(|placed| vec![placed.order(OrderCommand::Confirm { now })]),
    progress: |saga| done_when(saga.order.confirmed),
    ..PLAIN
};

const CAPTURE: Step<OrderSaga> = Step {
    name: "capture",
    done_as: "PAYMENT_COMPLETED",
    act: |saga, now| saga.make(|placed| vec![initiate(placed, now)]),
    // A capture after a failure goes back by itself, so the failure counts. A report that does
    // not fit (`payment.rejected`) decides nothing: the right money may still come.
    progress: |saga| match &saga.payment {
        PaymentFlags { failed: Some(reason), .. } => Progress::Failed(reason.clone()),
        PaymentFlags { voided: true, .. } => Progress::Failed("payment_voided".to_owned()),
        payment => done_when(payment.captured),
    },
    undo: |saga, now| saga.make(|placed| vec![cancel_payment(placed, &saga.why(), now)]),
    undone: |saga| {
        let payment = &saga.payment;
        payment.refunded || (!payment.captured && (payment.voided || payment.failed.is_some()))
    },
    time_limit: |saga| {
        let waits =
            saga.placed.as_ref().is_some_and(|placed| placed.payment_method.waits_for_buyer());
        if waits { BUYER_LIMIT } else { STEP_LIMIT }
    },
    ..PLAIN
};

const PAY: Step<OrderSaga> = Step {
    name: "pay",
    done_as: "ORDER_PAID",
    act: |saga, now| saga.make(|placed| pay(placed, now)),
    progress: |saga| {
        let sold = saga.every_listing(|listing| listing.allocated);
        done_when(saga.escrow.funded && sold && saga.order.paid)
    },
    // The stock is given back where it was reserved; the money leaves the escrow before it leaves
    // the marketplace.
    undo: |saga, now| saga.make(|placed| vec![refund_escrow(placed, &saga.why(), now)]),
    undone: |saga| saga.escrow.closed,
    ..PLAIN
};

const SHIP: Step<OrderSaga> = Step {
    name: "ship",
    done_as: "FULFILLMENT_CREATED",
    act: |saga, now| saga.make(|placed| vec![create_shipment(placed, now)]),
    progress: |saga| {
        if saga.shipment.cancelled {
            Progress::Failed("shipment_cancelled".to_owned())
        } else {
            done_when(saga.shipment.created)
        }
    },
    undo: |saga, now| saga.make(|placed| vec![cancel_shipment(placed, &saga.why(), now)]),
    undone: |saga| saga.shipment.cancelled,
    ..PLAIN
};

const MARK_SHIPPED: Step<OrderSaga> = Step {
    name: "mark_shipped",
    done_as: "ORDER_SHIPPED",
    act: |saga, now| {
        saga.make(|placed| {
            let shipment_id = ShipmentId::of(placed.order_id);
            vec![placed.order(OrderCommand::MarkShipped { shipment_id, now })]
        })
    },
    progress: |saga| done_when(saga.order.shipped),
    retries_max: SHIPPED_RETRIES_MAX,
    ..PLAIN
};

const CONFIRMATION: Step<OrderSaga> = Step {
    name: "confirmation",
    done_as: "COMPLETED",
    act: |saga, now| saga.make(|placed| vec![confirmation(placed, now)]),
    progress: |saga| match &saga.confirmation {
        ConfirmationFlags { sent: false, failed: Some(reason) } => Progress::Failed(reason.clone()),
        confirmation => done_when(confirmation.sent),
    },
    optional: true,
    ..PLAIN
};

fn done_when(done: bool) -> Progress {
    if done { Progress::Done } else { Progress::Pending }
}

fn reserve(placed: &Placed, now: Timestamp) -> Vec<MarketCommand> {
    let reserve = |item: &OrderItem| {
        let command = ListingCommand::Reserve {
            listing_id: item.listing_id,
            order_id: placed.order_id,
            customer_id: placed.buyer_id,
            quantity: item.quantity,
            unit_price: Money::new(item.unit_price, placed.total.currency),
            now,
            expires_at: now.plus(HOLD_FOR),
        };
        MarketCommand::Listing(item.listing_id, command)
    };
    let mut commands: Vec<_> = placed.items.iter().map(reserve).collect();
    let escrow_id = EscrowId::of(placed.order_id);
    let given = placed.promotion.as_ref().filter(|promotion| promotion.borne_by_market);
    let open = EscrowCommand::Open {
        escrow_id,
        order_id: placed.order_id,
        buyer_id: placed.buyer_id,
        seller_id: placed.seller_id,
        money: placed.total,
        subsidy: given.map_or(0, |promotion| promotion.discount),
        method: placed.payment_method.clone(),
        now,
    };
    commands.push(MarketCommand::Escrow(escrow_id, open));
    commands.extend(placed.promotion.as_ref().map(|promotion| redeem(placed, promotion, now)));
    commands
}

fn redeem(placed: &Placed, promotion: &OrderPromotion, now: Timestamp) -> MarketCommand {
    let OrderPromotion { promotion_id, discount, .. } = *promotion;
    let Money { amount, currency } = placed.total;
    let command = PromotionCommand::Redeem {
        promotion_id,
        order_id: placed.order_id,
        buyer_id: placed.buyer_id,
        seller_id: placed.seller_id,
        subtotal: Money::new(amount.saturating_add(discount), currency),
        discount,
        now,
    };
    MarketCommand::Promotion(promotion_id, command)
}

fn release(placed: &Placed, reason: &str, now: Timestamp) -> Vec<MarketCommand> {
    let release = |item: &OrderItem| {
        let command = ListingCommand::Release {
            listing_id: item.listing_id,
            order_id: placed.order_id,
            reason: reason.to_owned(),
            now,
        };
        MarketCommand::Listing(item.listing_id, command)
    };
    let give_back = placed.promotion.as_ref().map(|promotion| {
        let command = PromotionCommand::Release {
            promotion_id: promotion.promotion_id,
            order_id: placed.order_id,
            reason: reason.to_owned(),
            now,
        };
        MarketCommand::Promotion(promotion.promotion_id, command)
    });
    placed.items.iter().map(release).chain(give_back).collect()
}

fn refund_escrow(placed: &Placed, reason: &str, now: Timestamp) -> MarketCommand {
    let escrow_id = EscrowId::of(placed.order_id);
    let (order_id, reason) = (placed.order_id, reason.to_owned());
    MarketCommand::Escrow(escrow_id, EscrowCommand::Refund { escrow_id, order_id, reason, now })
}

fn initiate(placed: &Placed, now: Timestamp) -> MarketCommand {
    let payment_id = PaymentId::of(placed.order_id);
    let command = PaymentCommand::Initiate {
        payment_id,
        order_id: placed.order_id,
        payer_id: placed.buyer_id,
        money: placed.total,
        method: placed.payment_method.clone(),
        reference: placed.payment_reference.clone(),
        // Whoever sends it knows how the gateway is set up.
        holds_first: None,
        now,
    };
    MarketCommand::Payment(payment_id, command)
}

fn cancel_payment(placed: &Placed, reason: &str, now: Timestamp) -> MarketCommand {
    let payment_id = PaymentId::of(placed.order_id);
    let (order_id, reason) = (placed.order_id, reason.to_owned());
    MarketCommand::Payment(payment_id, PaymentCommand::Cancel { payment_id, order_id, reason, now })
}

fn pay(placed: &Placed, now: Timestamp) -> Vec<MarketCommand> {
    let order_id = placed.order_id;
    let mut commands =
        vec![MarketCommand::Escrow(EscrowId::of(order_id), EscrowCommand::Fund { now })];
    commands.extend(placed.items.iter().map(|item| {
        MarketCommand::Listing(item.listing_id, ListingCommand::Allocate { order_id, now })
    }));
    let (payment_id, money) = (PaymentId::of(order_id), placed.total);
    commands.push(placed.order(OrderCommand::MarkPaid { payment_id, money, now }));
    commands
}

fn create_shipment(placed: &Placed, now: Timestamp) -> MarketCommand {
    let shipment_id = ShipmentId::of(placed.order_id);
    let command = ShipmentCommand::Create {
        shipment_id,
        order_id: placed.order_id,
        seller_id: placed.seller_id,
        buyer_id: placed.buyer_id,
        tracking_number: shipment_id.tracking_number(),
        now,
    };
    MarketCommand::Shipment(shipment_id, command)
}

fn cancel_shipment(placed: &Placed, reason: &str, now: Timestamp) -> MarketCommand {
    let shipment_id = ShipmentId::of(placed.order_id);
    let (order_id, reason) = (placed.order_id, reason.to_owned());
    let command = ShipmentCommand::Cancel { shipment_id, order_id, reason, now };
    MarketCommand::Shipment(shipment_id, command)
}

fn confirmation(placed: &Placed, now: Timestamp) -> MarketCommand {
    let buyer = placed.buyer_id;
    let notification_id = NotificationId::of(placed.event_id, CONFIRMATION_TEMPLATE, buyer);
    let params = Params::from([
        ("order_id".to_owned(), placed.order_id.to_string()),
        ("order_number".to_owned(), placed.order_number.clone()),
        ("total".to_owned(), placed.total.to_string()),
        ("tracking_number".to_owned(), ShipmentId::of(placed.order_id).tracking_number()),
    ]);
    let new = NewNotification {
        notification_id,
        recipient: buyer,
        audience: Audience::User,
        channel: Channel::Email,
        template: CONFIRMATION_TEMPLATE.to_owned(),
        to: None,
        params: Personal::new(buyer.uuid(), params),
        order_id: Some(placed.order_id),
        cause_event_id: placed.event_id,
        muted: false,
        now,
    };
    MarketCommand::Notification(notification_id, NotificationCommand::Request(Box::new(new)))
}

#[cfg(test)]
mod tests;
