//! `loyalty`: tells the buyer's account of points how an order stands, once it has arrived and whenever
//! money for it goes back.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;

use super::command_failed;
use crate::domain::ids::LoyaltyAccountId;
use crate::domain::loyalty::{LoyaltyAccount, LoyaltyCommand, Rates};
use crate::domain::money::Money;
use crate::domain::order::Order;

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "loyalty";
/// What it listens to.
pub const TOPICS: &[&str] =
    &["order.delivered", "order.completed", "order.returned", "order.dispute_resolved"];

/// The handler.
pub struct Loyalty(pub Rates);

#[async_trait]
impl Handler for Loyalty {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        // The order knows more by now than the event does, and says so by its version.
        let standing = |order: &Order| {
            let details = order.details.as_ref()?;
            let kept = if details.arrived_at().is_some() { details.kept() } else { 0 };
            Some((details.buyer_id, details.order_id, Money::new(kept, details.total.currency)))
        };
        let read = runtime.aggregate::<Order>().read_inside(event.aggregate_id, standing).await;
        let read = read.map_err(|error| command_failed(&error))?;
        let Some((user_id, order_id, kept)) = read.value else { return Ok(()) };
        let Some(minor_units_per_point) = self.0.of(kept.currency) else { return Ok(()) };
        let learn = LoyaltyCommand::Learn {
            user_id,
            order_id,
            order_version: read.version,
            kept,
            minor_units_per_point,
            now: runtime.world().now(),
        };
        let account = LoyaltyAccountId::of(user_id).uuid();
        let context = CommandContext::because_of(event, "learn-loyalty-order", account);
        let accounts = runtime.aggregate::<LoyaltyAccount>();
        let sent = accounts.send(account, learn, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}
