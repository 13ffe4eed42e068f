//! `order-progress`: what happens to a shipped order, behind its saga.
//!
//! | event | command |
//! | --- | --- |
//! | `shipment.dispatched` | each listing: what was sold to the order is picked |
//! | `shipment.delivered` | the order is delivered; said by the buyer, the escrow lets the money go |
//! | `escrow.released` | the order is complete |
//!
//! An order that has gone another way by then keeps it: its refusal is the last word.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::{CommandContext, CommandError};
use souk_actors::event::{Metadata, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::{command_failed, decode_failed};
use crate::domain::caller::Caller;
use crate::domain::escrow::{Escrow, EscrowCommand, EscrowEvent};
use crate::domain::ids::{EscrowId, OrderId};
use crate::domain::listing::{Listing, ListingCommand};
use crate::domain::order::{Order, OrderCommand, OrderRejection};
use crate::domain::shipment::{Shipment, ShipmentEvent};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "order-progress";
/// What it listens to.
pub const TOPICS: &[&str] = &["shipment.dispatched", "shipment.delivered", "escrow.released"];

/// The handler.
pub struct OrderProgress;

/// A step that the order does not allow (any more, or again) is none of our business.
fn settled(error: &CommandError<OrderRejection>) -> Result<(), Failure> {
    match error {
        CommandError::Rejected { rejection: OrderRejection::InvalidTransition { .. }, .. } => {
            Ok(())
        }
        other => Err(command_failed(other)),
    }
}

async fn tell_order(
    runtime: &Runtime,
    event: &StoredEvent,
    order: OrderId,
    command: OrderCommand,
) -> Result<(), Failure> {
    let context = CommandContext::because_of(event, "order-progress", order.uuid());
    let sent = runtime.aggregate::<Order>().send(order.uuid(), command, context, |_| ()).await;
    sent.map(drop).or_else(|error| settled(&error))
}

/// The buyer who says that the goods are there lets the money go.
async fn release(runtime: &Runtime, event: &StoredEvent, order: OrderId) -> Result<(), Failure> {
    let shipments = runtime.aggregate::<Shipment>();
    let read = shipments
        .read_inside(event.aggregate_id, |shipment| {
            shipment.details.as_ref().map(|details| details.buyer_id)
        })
        .await;
    let buyer = read.map_err(|error| command_failed(&error))?.value;
    if !buyer.is_some_and(|buyer| said_by(event, buyer.uuid())) {
        return Ok(());
    }
    let escrow = EscrowId::of(order).uuid();
    let context = CommandContext::because_of(event, "release-escrow", escrow);
    let now = runtime.world().now();
    let command = EscrowCommand::Release { caller: Caller::System, now };
    match runtime.aggregate::<Escrow>().send(escrow, command, context, |_| ()).await {
        // Refunded meanwhile, or released by an administrator.
        Ok(_) | Err(CommandError::Rejected { .. }) => Ok(()),
        Err(error) => Err(command_failed(&error)),
    }
}

/// What leaves was taken from the shelf.
async fn pick(runtime: &Runtime, event: &StoredEvent, order_id: OrderId) -> Result<(), Failure> {
    let items = |order: &Order| {
        let items = order.details.iter().flat_map(|details| &details.items);
        items.map(|item| item.listing_id).collect::<BTreeSet<_>>()
    };
    let read = runtime.aggregate::<Order>().read_inside(order_id.uuid(), items).await;
    for listing in read.map_err(|error| command_failed(&error))?.value {
        let context = CommandContext::because_of(event, "pick", listing.uuid());
        let command = ListingCommand::Pick { order_id, now: runtime.world().now() };
        let listings = runtime.aggregate::<Listing>();
        let sent = listings.send(listing.uuid(), command, context, |_| ()).await;
        sent.map_err(|error| command_failed(&error))?;
    }
    Ok(())
}

fn said_by(event: &StoredEvent, user: Uuid) -> bool {
    serde_json::from_str::<Metadata>(&event.metadata)
        .is_ok_and(|metadata| metadata.actor_id == user.to_string())
}

#[async_trait]
impl Handler for OrderProgress {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let now = runtime.world().now();
        if &*event.aggregate_type == "shipment" {
            let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
            return match change {
                ShipmentEvent::Dispatched(dispatched) => {
                    pick(runtime, event, dispatched.order_id).await
                }
                ShipmentEvent::Delivered(delivered) => {
                    let order = delivered.order_id;
                    tell_order(runtime, event, order, OrderCommand::RecordDelivered { now })
                        .await?;
                    release(runtime, event, order).await
                }
                _ => Ok(()),
            };
        }
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let EscrowEvent::Released(released) = change else { return Ok(()) };
        tell_order(runtime, event, released.order_id, OrderCommand::Complete { now }).await
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;

    use super::*;
    use crate::domain::order::OrderStatus;

    #[test]
    fn a_late_step_is_no_failure_but_a_missing_order_is() {
        let rejected = |rejection| {
            settled(&CommandError::Rejected { rejection, version: 1, replayed: false }).is_ok()
        };
        assert!(rejected(OrderRejection::InvalidTransition { from: OrderStatus::Cancelled }));
        assert!(!rejected(OrderRejection::NotFound));
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
            tenant_id: "default".to_owned(),
            traceparent: None,
            subscription: None,
            attributes: Default::default(),
        };
        event.metadata = serde_json::to_string(&metadata).unwrap().into();
        assert!(said_by(&event, buyer) && !said_by(&event, seller));
    }
}
