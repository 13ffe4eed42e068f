//! `flow-times`: measures how long flows took ([`flows`](crate::telemetry::flows)).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;

use crate::telemetry::flows::Flows;

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "flow-times";
/// What it listens to: the ends of all flows.
pub const TOPICS: &[&str] = &[
    "listing.indexed",
    "notification.email.sent",
    "notification.email.failed",
    "order.completed",
    "payment.refunded",
    "saga.completed",
    "saga.failed",
    "seller.rating_updated",
];

/// The handler.
pub struct FlowTimes(pub Flows);

#[async_trait]
impl Handler for FlowTimes {
    async fn handle(&self, _: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        for (flow, began) in self.0.ended(&event.event_type, &event.correlation_id) {
            let millis = event.timestamp.millis().saturating_sub(began.millis());
            let took = Duration::from_millis(millis.try_into().unwrap_or(0));
            metrics::histogram!(
                "souk_flow_duration_seconds",
                "flow" => flow.name, "event_type" => event.event_type.to_string()
            )
            .record(took.as_secs_f64());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::flows::FLOWS;

    #[test]
    fn it_hears_of_every_end() {
        let ends: BTreeSet<_> = FLOWS.iter().flat_map(|flow| flow.ends).collect();
        assert_eq!(ends, TOPICS.iter().collect());
    }
}
