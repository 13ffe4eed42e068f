//! What follows from what an order that has been shipped says: its escrow, its payment and its
//! listings are told. Behind the saga, which is done by then.
//!
//! | event | commands |
//! | --- | --- |
//! | `order.settlement_due` | the escrow lets the money go, if the goods were sent; else the order is disputed |
//! | `order.returned` | the escrow and the payment give the money back, the listings take the goods |
//! | `order.dispute_resolved` | the escrow and the payment give a part back, the rest is let go |
//! | the same, when all goes back for what was never sent | the shipment is called off, the listings offer the goods again |
//! | `order.return_refused`, `order.returned` | the order is complete, if the seller has the money |
//!
//! Every command bears being sent twice: refunds and returns are known by their ids. One that is refused
//! is the last: what comes behind it rests on it. So nothing is offered again that was sent meanwhile.

use std::collections::BTreeSet;

use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::escrow::{EscrowCommand, EscrowStatus};
use super::ids::{EscrowId, ListingId, OrderId, PaymentId, RefundId, ShipmentId};
use super::listing::ListingCommand;
use super::order::after_sales::{DisputeReason, OrderDisputeResolved, OrderReturned};
use super::order::{OrderCommand, OrderEvent, OrderStatus};
use super::order_saga::MarketCommand;
use super::payment::PaymentCommand;
use super::shipment::ShipmentCommand;

/// Why money goes back for goods that came back. Stored; never rename.
pub const RETURNED: &str = "returned";
/// Why money goes back after a dispute, and goods that were never sent. Stored; never rename.
pub const DISPUTE_RESOLVED: &str = "dispute_resolved";

/// How the other parts of an order stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Its escrow.
    pub escrow: EscrowStatus,
    /// Whether its seller has said that the goods are on their way.
    pub was_sent: bool,
    /// The listings that it is of.
    pub listings: BTreeSet<ListingId>,
}

/// The commands that follow from an event of an order whose other parts stand so.
pub fn follow(event: &OrderEvent, parts: &Parts, now: Timestamp) -> Vec<MarketCommand> {
    let escrow = parts.escrow;
    match event {
        OrderEvent::SettlementDue(event) if parts.was_sent => vec![let_go(event.order_id, now)],
        OrderEvent::SettlementDue(event) => vec![never_sent(event.order_id, now)],
        OrderEvent::ReturnRefused(event) => {
            caught_up(event.order_id, event.status, escrow, now).into_iter().collect()
        }
        OrderEvent::Returned(event) => {
            let mut commands = taken_back(event, now);
            commands.extend(caught_up(event.order_id, event.status, escrow, now));
            commands
        }
        OrderEvent::DisputeResolved(event) => resolved(event, parts, now),
        _ => Vec::new(),
    }
}

/// The seller gets the money.
pub fn let_go(order_id: OrderId, now: Timestamp) -> MarketCommand {
    let release = EscrowCommand::Release { caller: Caller::System, now };
    MarketCommand::Escrow(EscrowId::of(order_id), release)
}

/// Nobody is paid for what never left, and nobody has said so: an administrator decides.
fn never_sent(order_id: OrderId, now: Timestamp) -> MarketCommand {
    let (caller, reason) = (Caller::System, DisputeReason::NotReceived);
    MarketCommand::Order(order_id, OrderCommand::Dispute { caller, reason, comment: None, now })
}

/// The seller has got the money while a return was open: the order could not be told then.
fn caught_up(
    order_id: OrderId,
    status: OrderStatus,
    escrow: EscrowStatus,
    now: Timestamp,
) -> Option<MarketCommand> {
    let waits = status == OrderStatus::Delivered && escrow == EscrowStatus::Released;
    waits.then_some(MarketCommand::Order(order_id, OrderCommand::Complete { now }))
}

fn give_back(
    order_id: OrderId,
    refund_id: RefundId,
    amount: i64,
    reason: &str,
    now: Timestamp,
) -> [MarketCommand; 2] {
    let of_escrow = EscrowCommand::RefundPart { refund_id, amount, reason: reason.to_owned(), now };
    let of_payment = PaymentCommand::Refund { refund_id, amount, reason: reason.to_owned(), now };
    [
        MarketCommand::Escrow(EscrowId::of(order_id), of_escrow),
        MarketCommand::Payment(PaymentId::of(order_id), of_payment),
    ]
}

fn taken_back(event: &OrderReturned, now: Timestamp) -> Vec<MarketCommand> {
    let (order_id, return_id) = (event.order_id, event.return_id);
    let mut commands = Vec::from(give_back(order_id, event.refund_id, event.amount, RETURNED, now));
    let lines = event.items.iter().filter(|_| event.restock);
    commands.extend(lines.map(|line| {
        let quantity = line.quantity;
        let take_back = ListingCommand::TakeBack { order_id, return_id, quantity, now };
        MarketCommand::Listing(line.listing_id, take_back)
    }));
    commands
}

/// What was never sent is not sent any more, and can be sold again.
fn called_off(
    order_id: OrderId,
    listings: &BTreeSet<ListingId>,
    now: Timestamp,
) -> impl Iterator<Item = MarketCommand> + '_ {
    let (shipment_id, reason) = (ShipmentId::of(order_id), DISPUTE_RESOLVED.to_owned());
    let cancel = ShipmentCommand::Cancel { shipment_id, order_id, reason, now };
    let release = move |listing_id: &ListingId| {
        let (listing_id, reason) = (*listing_id, DISPUTE_RESOLVED.to_owned());
        let release = ListingCommand::Release { listing_id, order_id, reason, now };
        MarketCommand::Listing(listing_id, release)
    };
    std::iter::once(MarketCommand::Shipment(shipment_id, cancel))
        .chain(listings.iter().map(release))
}

fn resolved(event: &OrderDisputeResolved, parts: &Parts, now: Timestamp) -> Vec<MarketCommand> {
    let order_id = event.order_id;
    let mut commands: Vec<_> = event
        .refund_id
        .into_iter()
        .flat_map(|id| give_back(order_id, id, event.amount, DISPUTE_RESOLVED, now))
        .collect();
    if event.status != OrderStatus::Refunded {
        commands.push(let_go(order_id, now));
    } else if !parts.was_sent {
        commands.extend(called_off(order_id, &parts.listings, now));
    }
    commands
}
