//! Shipments: one per order.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::{OrderId, ShipmentId, UserId};
use super::rejection::rejections;

/// How a shipment stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ShipmentStatus {
    /// Waits for the seller.
    Created,
    /// On its way.
    Dispatched,
    /// Arrived.
    Delivered,
    /// Called off.
    Cancelled,
}

/// What to do with a shipment.
#[derive(Debug, Clone, PartialEq)]
pub enum ShipmentCommand {
    /// Have the seller send an order.
    Create {
        /// The shipment.
        shipment_id: ShipmentId,
        /// The order.
        order_id: OrderId,
        /// Who sends.
        seller_id: UserId,
        /// Who receives.
        buyer_id: UserId,
        /// The number under which the carrier and the buyer follow it.
        tracking_number: String,
        /// When.
        now: Timestamp,
    },
    /// It is on its way.
    Dispatch {
        /// Who says so: the seller, an administrator or the marketplace.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// It arrived.
    Deliver {
        /// Who says so: the buyer, the seller, an administrator or the marketplace.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// The order is off, even if the shipment has not been created yet.
    Cancel {
        /// The shipment.
        shipment_id: ShipmentId,
        /// The order.
        order_id: OrderId,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
}

impl Command for ShipmentCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CreateShipment",
            Self::Dispatch { .. } => "DispatchShipment",
            Self::Deliver { .. } => "DeliverShipment",
            Self::Cancel { .. } => "CancelShipment",
        }
    }
}

souk_actors::events! {
    /// What happens to shipments.
    pub enum ShipmentEvent in "shipments" as "shipment-service" {
        /// The seller is to send an order.
        Created(ShipmentCreated) = "shipment.created", "ShipmentCreated", 1.0,
            ["FulfillmentCreated"];
        /// It is on its way.
        Dispatched(ShipmentDispatched) = "shipment.dispatched", "ShipmentDispatched", 1.0, [];
        /// It arrived.
        Delivered(ShipmentDelivered) = "shipment.delivered", "ShipmentDelivered", 1.0, [];
        /// It was called off.
        Cancelled(ShipmentCancelled) = "shipment.cancelled", "ShipmentCancelled", 1.0,
            ["FulfillmentCancelled"];
    }
}

/// The seller is to send an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShipmentCreated {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The shipment, as a fulfilment.
    pub fulfillment_id: ShipmentId,
    /// The order.
    pub order_id: OrderId,
    /// Who sends.
    pub seller_id: UserId,
    /// Who receives.
    pub buyer_id: UserId,
    /// The number under which the carrier and the buyer follow it.
    pub tracking_number: String,
    /// When.
    pub created_at: Timestamp,
}

/// It is on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShipmentDispatched {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub dispatched_at: Timestamp,
}

/// It arrived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShipmentDelivered {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub delivered_at: Timestamp,
}

/// It was called off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShipmentCancelled {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub cancelled_at: Timestamp,
}

rejections! {
    /// Why a shipment refuses a command.
    pub enum ShipmentRejection {
        /// Never created.
        NotFound = "not_found", "there is no such shipment";
        /// Called off, perhaps before it was created.
        Cancelled = "shipment_cancelled", "this shipment has been called off";
        /// Not theirs to ask.
        Forbidden = "forbidden", "the caller may not do this to this shipment";
        /// Not from here.
        InvalidTransition {
            /// Where the shipment stands.
            from: ShipmentStatus,
        } = "invalid_transition", "the shipment does not allow this now";
    }
}

/// A shipment, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shipment {
    /// Everything about it, once created.
    pub details: Option<ShipmentDetails>,
    /// Whether it never may be created.
    pub barred: bool,
}

/// What is known of a shipment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShipmentDetails {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The order.
    pub order_id: OrderId,
    /// Who sends.
    pub seller_id: UserId,
    /// Who receives.
    pub buyer_id: UserId,
    /// How it stands.
    pub status: ShipmentStatus,
    /// The number under which the carrier and the buyer follow it.
    pub tracking_number: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it went on its way.
    pub dispatched_at: Option<Timestamp>,
    /// When it arrived.
    pub delivered_at: Option<Timestamp>,
}

type Decision = Result<Vec<ShipmentEvent>, ShipmentRejection>;

impl Aggregate for Shipment {
    const TYPE: &'static str = "shipment";
    type Command = ShipmentCommand;
    type Event = ShipmentEvent;
    type Rejection = ShipmentRejection;

    fn decide(&self, command: &ShipmentCommand) -> Decision {
        match command {
            ShipmentCommand::Create { .. } => self.create(command),
            ShipmentCommand::Dispatch { caller, now } => self.details()?.dispatch(caller, *now),
            ShipmentCommand::Deliver { caller, now } => self.details()?.deliver(caller, *now),
            ShipmentCommand::Cancel { shipment_id, order_id, reason, now } => {
                match self.details.as_ref().map(|details| details.status) {
                    Some(ShipmentStatus::Cancelled) => return Ok(Vec::new()),
                    None if self.barred => return Ok(Vec::new()),
                    Some(from @ (ShipmentStatus::Dispatched | ShipmentStatus::Delivered)) => {
                        return Err(ShipmentRejection::InvalidTransition { from });
                    }
                    Some(ShipmentStatus::Created) | None => {}
                }
                Ok(vec![ShipmentEvent::Cancelled(ShipmentCancelled {
                    shipment_id: *shipment_id,
                    order_id: *order_id,
                    reason: reason.clone(),
                    cancelled_at: *now,
                })])
            }
        }
    }

    fn apply(&mut self, event: &ShipmentEvent) {
        match (event, &mut self.details) {
            (ShipmentEvent::Created(event), details) => {
                *details = Some(ShipmentDetails {
                    shipment_id: event.shipment_id,
                    order_id: event.order_id,
                    seller_id: event.seller_id,
                    buyer_id: event.buyer_id,
                    status: ShipmentStatus::Created,
                    tracking_number: event.tracking_number.clone(),
                    created_at: event.created_at,
                    dispatched_at: None,
                    delivered_at: None,
                });
            }
            (ShipmentEvent::Cancelled(_), None) => self.barred = true,
            (ShipmentEvent::Cancelled(_), Some(details)) => {
                details.status = ShipmentStatus::Cancelled;
            }
            (ShipmentEvent::Dispatched(event), Some(details)) => {
                details.status = ShipmentStatus::Dispatched;
                details.dispatched_at = Some(event.dispatched_at);
            }
            (ShipmentEvent::Delivered(event), Some(details)) => {
                details.status = ShipmentStatus::Delivered;
                details.delivered_at = Some(event.delivered_at);
            }
            (ShipmentEvent::Dispatched(_) | ShipmentEvent::Delivered(_), None) => {}
        }
    }
}

impl Shipment {
    fn details(&self) -> Result<&ShipmentDetails, ShipmentRejection> {
        match &self.details {
            Some(details) => Ok(details),
            None if self.barred => Err(ShipmentRejection::Cancelled),
            None => Err(ShipmentRejection::NotFound),
        }
    }

    fn create(&self, command: &ShipmentCommand) -> Decision {
        let ShipmentCommand::Create {
            shipment_id,
            order_id,
            seller_id,
            buyer_id,
            tracking_number,
            now,
        } = command
        else {
            return Ok(Vec::new());
        };
        match &self.details {
            Some(details) if details.status == ShipmentStatus::Cancelled => {
                return Err(ShipmentRejection::Cancelled);
            }
            Some(_) => return Ok(Vec::new()),
            None if self.barred => return Err(ShipmentRejection::Cancelled),
            None => {}
        }
        Ok(vec![ShipmentEvent::Created(ShipmentCreated {
            shipment_id: *shipment_id,
            fulfillment_id: *shipment_id,
            order_id: *order_id,
            seller_id: *seller_id,
            buyer_id: *buyer_id,
            tracking_number: tracking_number.clone(),
            created_at: *now,
        })])
    }
}

impl ShipmentDetails {
    fn dispatch(&self, caller: &Caller, now: Timestamp) -> Decision {
        if !caller.may_act_for(self.seller_id) {
            return Err(ShipmentRejection::Forbidden);
        }
        match self.status {
            ShipmentStatus::Created => Ok(vec![ShipmentEvent::Dispatched(ShipmentDispatched {
                shipment_id: self.shipment_id,
                order_id: self.order_id,
                dispatched_at: now,
            })]),
            ShipmentStatus::Dispatched | ShipmentStatus::Delivered => Ok(Vec::new()),
            ShipmentStatus::Cancelled => Err(ShipmentRejection::Cancelled),
        }
    }

    fn deliver(&self, caller: &Caller, now: Timestamp) -> Decision {
        if !caller.may_act_for(self.seller_id) && !caller.is(self.buyer_id) {
            return Err(ShipmentRejection::Forbidden);
        }
        match self.status {
            ShipmentStatus::Dispatched => Ok(vec![ShipmentEvent::Delivered(ShipmentDelivered {
                shipment_id: self.shipment_id,
                order_id: self.order_id,
                delivered_at: now,
            })]),
            ShipmentStatus::Delivered => Ok(Vec::new()),
            ShipmentStatus::Cancelled => Err(ShipmentRejection::Cancelled),
            from @ ShipmentStatus::Created => Err(ShipmentRejection::InvalidTransition { from }),
        }
    }
}

#[cfg(test)]
mod tests;
