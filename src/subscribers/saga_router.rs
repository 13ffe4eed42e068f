//! Sends the order saga's commands to the aggregates that they are for.

use async_trait::async_trait;
use souk_actors::aggregate::Aggregate;
use souk_actors::command::{CommandContext, CommandError, Refused};
use souk_actors::runtime::Runtime;
use souk_actors::saga::{Routed, SagaRouter};
use uuid::Uuid;

use crate::domain::escrow::Escrow;
use crate::domain::listing::Listing;
use crate::domain::notification::Notification;
use crate::domain::order::{Order, PaymentMethod};
use crate::domain::order_saga::{MarketCommand, OrderSaga};
use crate::domain::payment::{Payment, PaymentCommand};
use crate::domain::promotion::Promotion;
use crate::domain::shipment::Shipment;

/// The router.
#[derive(Debug, Clone, Copy, Default)]
pub struct MarketRouter {
    /// Whether MoMo holds the money of payments that begin now before it takes it; none: it is not set
    /// up.
    pub momo_holds_first: Option<bool>,
}

impl MarketRouter {
    /// How a payment is taken is decided when it begins, and stored with it: what its provider says
    /// later means what it meant then.
    fn as_set_up(self, mut command: PaymentCommand) -> PaymentCommand {
        if let PaymentCommand::Initiate { method, holds_first, .. } = &mut command
            && method.0 == PaymentMethod::MOMO
        {
            *holds_first = self.momo_holds_first;
        }
        command
    }
}

async fn send<A: Aggregate>(
    runtime: &Runtime,
    id: Uuid,
    command: A::Command,
    context: CommandContext,
) -> Result<Routed, CommandError<Refused>> {
    let sent = runtime.aggregate::<A>().send(id, command, context, |_| ()).await;
    sent.map(|done| Routed { events: done.events }).map_err(CommandError::erased)
}

#[async_trait]
impl SagaRouter<OrderSaga> for MarketRouter {
    async fn route(
        &self,
        runtime: &Runtime,
        command: MarketCommand,
        context: CommandContext,
    ) -> Result<Routed, CommandError<Refused>> {
        let id = command.target();
        match command {
            MarketCommand::Order(_, command) => send::<Order>(runtime, id, command, context).await,
            MarketCommand::Listing(_, command) => {
                send::<Listing>(runtime, id, command, context).await
            }
            MarketCommand::Payment(_, command) => {
                send::<Payment>(runtime, id, self.as_set_up(command), context).await
            }
            MarketCommand::Escrow(_, command) => {
                send::<Escrow>(runtime, id, command, context).await
            }
            MarketCommand::Shipment(_, command) => {
                send::<Shipment>(runtime, id, command, context).await
            }
            MarketCommand::Promotion(_, command) => {
                send::<Promotion>(runtime, id, command, context).await
            }
            MarketCommand::Notification(_, command) => {
                send::<Notification>(runtime, id, command, context).await
            }
        }
    }
}
