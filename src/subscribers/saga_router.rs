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
use crate::domain::order::Order;
use crate::domain::order_saga::{MarketCommand, OrderSaga};
use crate::domain::payment::Payment;
use crate::domain::promotion::Promotion;
use crate::domain::shipment::Shipment;

/// The router.
pub struct MarketRouter;

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
                send::<Payment>(runtime, id, command, context).await
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
