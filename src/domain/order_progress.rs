//! What follows from what an order that has been shipped says: its escrow, its payment and its
//! listings are told. Behind the saga, which is done by then.
//!
//! | event | commands |
//! | --- | --- |
//! | `order.settlement_due` | the escrow lets the money go, if the goods were sent long enough ago; if they left of late, the order waits on; if they never did, it is disputed |
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
use super::order::after_sales::{
    DisputeReason, OrderDisputeResolved, OrderReturned, OrderSettlementDue, SETTLED_AFTER_DELIVERY,
    SETTLED_AFTER_SHIPPING,
};
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
    /// Since when, as its seller has said, the goods are on their way.
    pub sent_at: Option<Timestamp>,
    /// Since when, as the order knows, they are there.
    pub arrived_at: Option<Timestamp>,
    /// Whether a dispute or a return waits for its decision.
    pub is_contested: bool,
    /// The listings that it is of.
    pub listings: BTreeSet<ListingId>,
}

/// The commands that follow from an event of an order whose other parts stand so.
pub fn follow(event: &OrderEvent, parts: &Parts, now: Timestamp) -> Vec<MarketCommand> {
    let escrow = parts.escrow;
    match event {
        OrderEvent::SettlementDue(_) if parts.is_contested => Vec::new(),
        OrderEvent::SettlementDue(event) => settled(event, parts, now).into_iter().collect(),
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

/// What left late may still be lost on its way: its buyer has the whole time to say so. Of what
/// arrived while this was on its way, the order has counted anew by itself.
fn settled(event: &OrderSettlementDue, parts: &Parts, now: Timestamp) -> Option<MarketCommand> {
    let OrderSettlementDue { order_id, due_at } = *event;
    let counted_anew = |at: Timestamp| at.plus(SETTLED_AFTER_DELIVERY) > due_at;
    if let Some(arrived_at) = parts.arrived_at {
        return (!counted_anew(arrived_at)).then(|| let_go(order_id, now));
    }
    Some(match parts.sent_at.map(|at| at.plus(SETTLED_AFTER_SHIPPING)) {
        Some(until) if until > now => {
            MarketCommand::Order(order_id, OrderCommand::PostponeSettlement { until, now })
        }
        Some(_) => let_go(order_id, now),
        None => never_sent(order_id, now),
    })
}

/// The seller gets the money, because the buyer has the goods and wants nothing decided.
pub fn received(order_id: OrderId, is_contested: bool, now: Timestamp) -> Option<MarketCommand> {
    (!is_contested).then(|| let_go(order_id, now))
}

/// The seller gets the money.
fn let_go(order_id: OrderId, now: Timestamp) -> MarketCommand {
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
    } else if parts.sent_at.is_none() {
        commands.extend(called_off(order_id, &parts.listings, now));
    }
    commands
}

#[cfg(test)]
mod tests;
