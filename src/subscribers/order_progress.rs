//! `order-progress`: what happens to a shipped order, behind its saga.
//!
//! | event | command |
//! | --- | --- |
//! | `shipment.dispatched` | each listing: what was sold to the order is picked |
//! | `shipment.delivered` | the order is delivered; said by the buyer, the escrow lets the money go, unless a decision about it is open |
//! | `escrow.released` | the order is complete |
//! | `order.settlement_due` and those of returns and disputes | what [`order_progress::follow`] says |
//! | `review.created` | the order is reviewed |
//!
//! An order that has gone another way by then keeps it: its refusal is the last word.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::{CommandContext, CommandError, Refused};
use souk_actors::event::{Metadata, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::saga::SagaRouter as _;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::saga_router::MarketRouter;
use super::{command_failed, decode_failed};
use crate::domain::escrow::{Escrow, EscrowEvent};
use crate::domain::ids::{EscrowId, ListingId, OrderId, ShipmentId};
use crate::domain::listing::ListingCommand;
use crate::domain::order::{Order, OrderCommand, OrderDetails, OrderEvent};
use crate::domain::order_progress::{self, Parts};
use crate::domain::order_saga::MarketCommand;
use crate::domain::review::ReviewEvent;
use crate::domain::shipment::{Shipment, ShipmentEvent};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "order-progress";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "shipment.dispatched",
    "shipment.delivered",
    "escrow.released",
    "order.settlement_due",
    "order.return_refused",
    "order.returned",
    "order.dispute_resolved",
    "review.created",
];

/// The handler.
pub struct OrderProgress;

/// A step that the order does not allow (any more, or again) is none of our business, nor is money
/// that has gone to one side already, nor a shipment that has gone on its way.
fn is_settled(command: &MarketCommand, refused: &Refused) -> bool {
    match command {
        MarketCommand::Order(..) => {
            ["invalid_transition", "dispute_decided", "return_open"].contains(&refused.code)
        }
        MarketCommand::Escrow(_, command) => {
            matches!(command, crate::domain::escrow::EscrowCommand::Release { .. })
                && ["escrow_closed", "escrow_not_funded"].contains(&refused.code)
        }
        MarketCommand::Shipment(..) => refused.code == "invalid_transition",
        _ => false,
    }
}

/// Whether the command was accepted, and not refused for good.
async fn send(
    runtime: &Runtime,
    event: &StoredEvent,
    command: MarketCommand,
) -> Result<bool, Failure> {
    let context = CommandContext::because_of(event, command.name(), command.target());
    match MarketRouter::default().route(runtime, command.clone(), context).await {
        Ok(_) => Ok(true),
        Err(CommandError::Rejected { rejection, .. }) if is_settled(&command, &rejection) => {
            Ok(false)
        }
        Err(error) => Err(command_failed(&error)),
    }
}

/// Whether the buyer says so, who thereby lets the money go.
async fn is_said_by_buyer(runtime: &Runtime, event: &StoredEvent) -> Result<bool, Failure> {
    let shipments = runtime.aggregate::<Shipment>();
    let read = shipments
        .read_inside(event.aggregate_id, |shipment| {
            shipment.details.as_ref().map(|details| details.buyer_id)
        })
        .await;
    let buyer = read.map_err(|error| command_failed(&error))?.value;
    Ok(buyer.is_some_and(|buyer| said_by(event, buyer.uuid())))
}

/// What an order says of itself: nothing before it is placed.
async fn of_order<T: Default + Send + 'static>(
    runtime: &Runtime,
    order: OrderId,
    says: impl FnOnce(&OrderDetails) -> T + Send + 'static,
) -> Result<T, Failure> {
    let says = |order: &Order| order.details.as_ref().map(says).unwrap_or_default();
    let read = runtime.aggregate::<Order>().read_inside(order.uuid(), says).await;
    Ok(read.map_err(|error| command_failed(&error))?.value)
}

/// The listings that an order is of.
fn listings(order: &OrderDetails) -> BTreeSet<ListingId> {
    order.items.iter().map(|item| item.listing_id).collect()
}

/// How the escrow and the shipment of an order stand, and what it is of.
async fn parts(runtime: &Runtime, order: OrderId) -> Result<Parts, Failure> {
    let status = |escrow: &Escrow| escrow.details.as_ref().map(|details| details.status);
    let escrows = runtime.aggregate::<Escrow>();
    let read = escrows.read_inside(EscrowId::of(order).uuid(), status).await;
    let escrow = read.map_err(|error| command_failed(&error))?.value;
    let sent =
        |shipment: &Shipment| shipment.details.as_ref().and_then(|details| details.dispatched_at);
    let shipments = runtime.aggregate::<Shipment>();
    let read = shipments.read_inside(ShipmentId::of(order).uuid(), sent).await;
    let sent_at = read.map_err(|error| command_failed(&error))?.value;
    let escrow = escrow.ok_or_else(|| Failure::permanent("the order has no escrow"))?;
    let says = |order: &OrderDetails| {
        (order.arrived_at(), order.after_sales.is_contested(), listings(order))
    };
    let (arrived_at, is_contested, listings) = of_order(runtime, order, says).await?;
    Ok(Parts { escrow, sent_at, arrived_at, is_contested, listings })
}

fn said_by(event: &StoredEvent, user: Uuid) -> bool {
    serde_json::from_str::<Metadata>(&event.metadata)
        .is_ok_and(|metadata| metadata.actor_id == user.to_string())
}

async fn shipped(runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
    match runtime.journal().decode(event).await.map_err(decode_failed)? {
        ShipmentEvent::Dispatched(it) => pick(runtime, event, it.order_id).await,
        ShipmentEvent::Delivered(it) => delivered(runtime, event, it.order_id).await,
        _ => Ok(()),
    }
}

/// What leaves was taken from the shelf.
async fn pick(runtime: &Runtime, event: &StoredEvent, order_id: OrderId) -> Result<(), Failure> {
    for listing in of_order(runtime, order_id, listings).await? {
        let pick = ListingCommand::Pick { order_id, now: runtime.world().now() };
        send(runtime, event, MarketCommand::Listing(listing, pick)).await?;
    }
    Ok(())
}

async fn delivered(runtime: &Runtime, event: &StoredEvent, order: OrderId) -> Result<(), Failure> {
    let now = runtime.world().now();
    let record = OrderCommand::RecordDelivered { now };
    send(runtime, event, MarketCommand::Order(order, record)).await?;
    if is_said_by_buyer(runtime, event).await? {
        let contested = |order: &OrderDetails| order.after_sales.is_contested();
        let is_contested = of_order(runtime, order, contested).await?;
        if let Some(let_go) = order_progress::received(order, is_contested, now) {
            send(runtime, event, let_go).await?;
        }
    }
    Ok(())
}

async fn released(runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
    let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
    let EscrowEvent::Released(released) = change else { return Ok(()) };
    let complete = OrderCommand::Complete { now: runtime.world().now() };
    send(runtime, event, MarketCommand::Order(released.order_id, complete)).await.map(drop)
}

async fn reviewed(runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
    let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
    let ReviewEvent::Created(created) = change else { return Ok(()) };
    let (review_id, now) = (created.review_id, runtime.world().now());
    let record = OrderCommand::RecordReviewed { review_id, now };
    send(runtime, event, MarketCommand::Order(created.order_id, record)).await.map(drop)
}

async fn about_order(runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
    let change: OrderEvent = runtime.journal().decode(event).await.map_err(decode_failed)?;
    let parts = parts(runtime, OrderId(event.aggregate_id)).await?;
    for command in order_progress::follow(&change, &parts, runtime.world().now()) {
        if !send(runtime, event, command).await? {
            break;
        }
    }
    Ok(())
}

#[async_trait]
impl Handler for OrderProgress {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        match &*event.aggregate_type {
            "shipment" => shipped(runtime, event).await,
            "escrow" => released(runtime, event).await,
            "review" => reviewed(runtime, event).await,
            _ => about_order(runtime, event).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;

    use super::*;

    #[test]
    fn a_late_step_is_no_failure_but_a_missing_order_is() {
        let order = OrderId(Uuid::from_u128(1));
        let at = souk_actors::world::Timestamp::from_millis(0);
        let refused = |code| Refused { code, message: String::new() };
        let complete = MarketCommand::Order(order, OrderCommand::Complete { now: at });
        assert!(is_settled(&complete, &refused("invalid_transition")));
        assert!(!is_settled(&complete, &refused("not_found")));
        assert!(!is_settled(&complete, &refused("too_early")), "it is still to come");
        let let_go = order_progress::received(order, false, at).unwrap();
        assert!(is_settled(&let_go, &refused("escrow_closed")));
        assert!(!is_settled(&let_go, &refused("not_found")));
        let part = crate::domain::escrow::EscrowCommand::RefundPart {
            refund_id: crate::domain::ids::RefundId(Uuid::nil()),
            amount: 1,
            reason: "returned".to_owned(),
            now: at,
        };
        let part = MarketCommand::Escrow(EscrowId::of(order), part);
        assert!(!is_settled(&part, &refused("escrow_closed")));
        let shipment_id = ShipmentId::of(order);
        let cancel = crate::domain::shipment::ShipmentCommand::Cancel {
            shipment_id,
            order_id: order,
            reason: order_progress::DISPUTE_RESOLVED.to_owned(),
            now: at,
        };
        let cancel = MarketCommand::Shipment(shipment_id, cancel);
        assert!(is_settled(&cancel, &refused("invalid_transition")));
        assert!(!is_settled(&cancel, &refused("not_found")));
    }

    #[test]
    fn only_the_buyers_word_lets_the_money_go() {
        let (buyer, seller) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut event =
            stored_event("shipment.delivered", "shipment", buyer, &serde_json::json!({}));
        let metadata = Metadata {
            service: "shipment-service".to_owned(),
            version: "0.1.0".to_owned(),
            actor_id: buyer.to_string(),
            credential: None,
            tenant_id: "default".to_owned(),
            traceparent: None,
            tracestate: None,
            subscription: None,
            attributes: Default::default(),
        };
        event.metadata = serde_json::to_string(&metadata).unwrap().into();
        assert!(said_by(&event, buyer) && !said_by(&event, seller));
    }
}
