//! Webhooks: events on their way to addresses outside.
//!
//! ```text
//!   event ──▶ webhook-fanout ──offer──▶ webhook_delivery (endpoint × aggregate), with its timer
//!                                              │ queued, started, requested
//!             webhook-sender ◀─────────────────┘
//!                  └─▶ Line (endpoint): a bounded number of lanes at work ──▶ the address
//!                         └── records what came of it; the next of the aggregate follows
//! ```
//!
//! Neither subscription waits for an address: the first makes sure that a message is owed, the
//! second that somebody is at work on it. What is at work is in memory only and bounded; who dies
//! over it is replaced when the lease of the delivery is over. What does not fit is put off, by the
//! durable timer of its own aggregate. A message is sent at least once, under one `webhook-id`.

mod directory;
mod line;
mod payload;
pub mod secrets;

use std::sync::Arc;

use async_trait::async_trait;
use dashmap::DashMap;
use serde::Deserialize;
use souk_actors::aggregate::Aggregate as _;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::command_failed;
use crate::domain::ids::WebhookEndpointId;
use crate::domain::webhook_delivery::{
    Message, WebhookDelivery, WebhookDeliveryCommand, delivery_id, lane_of,
};
use crate::domain::webhook_endpoint::WebhookEndpoint;
use crate::gateways::webhook::WebhookSender;
use crate::projections::{ReadModels, view::read_data};
pub use directory::{Directory, ENDPOINTS_MAX, Endpoint, Wish, ids, row};
use line::Line;
use secrets::SecretBox;

/// The subscription that turns events into messages. Stored; never rename.
pub const FANOUT: &str = "webhook-fanout";
/// What it listens to: whatever some endpoint wants.
pub const FANOUT_TOPICS: &[&str] = &["#"];
/// The subscription that sets to work. Stored; never rename.
pub const SENDER: &str = "webhook-sender";
/// What it listens to.
pub const SENDER_TOPICS: &[&str] =
    &["webhook.delivery.queued", "webhook.delivery.started", "webhook.redelivery.requested"];
/// How many messages are under way at once, to all endpoints together.
const SENT_AT_ONCE: usize = 64;

/// What webhooks need and know. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks(Arc<Inner>);

struct Inner {
    directory: Arc<Directory>,
    sender: WebhookSender,
    reads: ReadModels,
    event_type_prefix: String,
    lines: DashMap<WebhookEndpointId, Arc<Line>>,
    places: Semaphore,
}

impl Webhooks {
    /// Webhooks that are sent by this sender, with secrets sealed under the master key.
    pub fn new(
        sender: WebhookSender,
        master_key: &[u8; 32],
        reads: ReadModels,
        event_type_prefix: String,
    ) -> Self {
        Self(Arc::new(Inner {
            directory: Arc::new(Directory::new(SecretBox::new(master_key))),
            sender,
            reads,
            event_type_prefix,
            lines: DashMap::new(),
            places: Semaphore::new(SENT_AT_ONCE),
        }))
    }

    /// The endpoints that there are.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.0.directory
    }

    /// Whose order is kept: the aggregate's, of events that somebody wants.
    pub fn key(&self) -> impl Fn(&StoredEvent) -> Option<Uuid> + Send + Sync + 'static {
        let directory = self.0.directory.clone();
        move |event| directory.concerns(event).then_some(event.aggregate_id)
    }

    fn line(&self, endpoint: WebhookEndpointId) -> Arc<Line> {
        self.0.lines.entry(endpoint).or_default().clone()
    }
}

/// The message that an event is to an endpoint.
pub fn message(endpoint_id: WebhookEndpointId, event: &StoredEvent) -> Message {
    Message {
        delivery_id: delivery_id(endpoint_id, event.event_id),
        endpoint_id,
        event_id: event.event_id,
        event_type: event.event_type.to_string(),
        aggregate_id: event.aggregate_id,
        aggregate_version: event.aggregate_version,
        partition: event.partition,
        position: event.position,
    }
}

/// The context of a command that the machinery gives: it is harmless to repeat.
fn inside(runtime: &Runtime, correlation_id: &str, cause: &str) -> CommandContext {
    CommandContext::inside(&**runtime.world(), correlation_id, cause)
}

/// The handler of [`FANOUT`].
pub struct Fanout(pub Webhooks);

#[async_trait]
impl Handler for Fanout {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let directory = self.0.directory();
        directory.load(runtime).await?;
        if &*event.aggregate_type == WebhookEndpoint::TYPE {
            directory.refresh(runtime, event.aggregate_id.into()).await?;
        }
        if &*event.event_type == "webhook.endpoint_enabled" {
            self.0.wake(runtime, event.aggregate_id.into());
        }
        let deliveries = runtime.aggregate::<WebhookDelivery>();
        for endpoint in directory.that_want(event) {
            let endpoint_id = endpoint.details.endpoint_id;
            let message = message(endpoint_id, event);
            let offer = WebhookDeliveryCommand::Offer { message, now: runtime.world().now() };
            let context = inside(runtime, &event.correlation_id, &event.event_id.to_string());
            let lane = lane_of(endpoint_id, event.aggregate_id);
            let sent = deliveries.send(lane, offer, context, |_| ()).await;
            sent.map_err(|error| command_failed(&error))?;
        }
        Ok(())
    }
}

/// The handler of [`SENDER`].
pub struct Sender(pub Webhooks);

/// What it reads of each of its events.
#[derive(Deserialize)]
struct About {
    endpoint_id: Option<WebhookEndpointId>,
    message: Option<AboutMessage>,
    #[serde(default)]
    lease_until: Option<souk_actors::world::Timestamp>,
}

#[derive(Deserialize)]
struct AboutMessage {
    endpoint_id: WebhookEndpointId,
}

#[async_trait]
impl Handler for Sender {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        use crate::domain::webhook_delivery::WebhookDeliveryEvent;
        let about: About = read_data::<WebhookDeliveryEvent, _>(event)?;
        let endpoint = about.endpoint_id.or(about.message.map(|message| message.endpoint_id));
        // A message behind others is nobody's work yet.
        let (Some(endpoint), Some(_)) = (endpoint, about.lease_until) else { return Ok(()) };
        self.0.directory().load(runtime).await?;
        self.0.take_up(runtime, endpoint, event.aggregate_id).await
    }
}

impl Webhooks {
    /// Lets what waits for an endpoint go on without waiting for its timer. Whatever is missed here
    /// has its timer still.
    fn wake(&self, runtime: &Runtime, endpoint: WebhookEndpointId) {
        let (webhooks, runtime) = (self.clone(), runtime.clone());
        tokio::spawn(async move {
            let deliveries = runtime.aggregate::<WebhookDelivery>();
            let mut after = None;
            loop {
                let page = webhooks.0.reads.webhook_lanes_waiting(endpoint.uuid(), after).await;
                let Ok(lanes) = page else { return };
                let Some(last) = lanes.last().copied() else { return };
                for lane in lanes {
                    let wake = WebhookDeliveryCommand::Wake { now: runtime.world().now() };
                    let context = inside(&runtime, "webhook-enabled", "webhook-enabled");
                    if let Err(error) = deliveries.send(lane, wake, context, |_| ()).await {
                        tracing::debug!(%error, "a delivery waits for its timer");
                    }
                }
                after = Some(last);
            }
        });
    }
}
