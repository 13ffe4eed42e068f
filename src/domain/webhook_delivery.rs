//! The deliveries of one aggregate's events to one webhook endpoint, in order: event n+1 is not sent
//! before n is delivered or given up.
//!
//! It holds no queue, only how far it is (`done`) and how far it is to go (`until`) in the
//! aggregate's own history, so that an endpoint that is down for days costs the same as one that is
//! not. Which events between the two the endpoint wants is looked up when they are sent.
//!
//! While it is *running* somebody is at work on it. The one durable timer is then a lease: whoever
//! died is replaced when it is over. While it waits the timer is the next attempt.

use std::collections::BTreeSet;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::id::derived;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::ids::WebhookEndpointId;
use super::rejection::rejections;

/// The waits before the attempts of one message. After the last it is given up.
pub const SCHEDULE: [Duration; 10] = [
    Duration::ZERO,
    Duration::from_secs(5),
    minutes(5),
    minutes(30),
    minutes(2 * 60),
    minutes(5 * 60),
    minutes(10 * 60),
    minutes(14 * 60),
    minutes(20 * 60),
    minutes(24 * 60),
];
/// How long whoever works on it may be silent before somebody else does. Longer than an attempt.
pub const LEASE: Duration = Duration::from_secs(60);
/// How many redeliveries may wait at one aggregate.
pub const REDELIVERIES_MAX: usize = 256;
/// The one timer.
const TIMER: &str = "attempt";

const fn minutes(number: u64) -> Duration {
    Duration::from_secs(60 * number)
}

/// The wait after so many failed attempts (from 1); none: that was the last.
pub fn wait_after(failed: u32) -> Option<Duration> {
    SCHEDULE.get(usize::try_from(failed).unwrap_or(usize::MAX)).copied()
}

/// The aggregate that keeps the order of `key`'s events towards an endpoint.
pub fn lane_of(endpoint: WebhookEndpointId, key: Uuid) -> Uuid {
    derived("webhook_delivery", &[endpoint.uuid().as_bytes(), key.as_bytes()])
}

/// The delivery of one event to an endpoint, however often it is tried.
pub fn delivery_id(endpoint: WebhookEndpointId, event_id: Uuid) -> Uuid {
    derived("webhook_message", &[endpoint.uuid().as_bytes(), event_id.as_bytes()])
}

/// A message to an endpoint: the event it carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// The delivery: it follows from endpoint and event.
    pub delivery_id: Uuid,
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Its aggregate.
    pub aggregate_id: Uuid,
    /// The place in the aggregate's history.
    pub aggregate_version: u64,
    /// Its partition.
    pub partition: u16,
    /// Its place there.
    pub position: u64,
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// The status of the answer; none: there was none.
    pub status_code: Option<u16>,
    /// How long it took.
    pub latency_ms: u64,
    /// What was wrong, as a stable code; none: it was taken.
    pub error: Option<String>,
    /// How far the wait that follows is moved at random, and by `Retry-After`, from the schedule:
    /// the earliest time of the next attempt. Unused when it was the last.
    pub next_attempt_at: Timestamp,
}

/// What to do with the deliveries.
#[derive(Debug, Clone, PartialEq)]
pub enum WebhookDeliveryCommand {
    /// There is another event.
    Offer {
        /// The message.
        message: Message,
        /// When.
        now: Timestamp,
    },
    /// The timer: the next attempt is due, or whoever was at work is gone.
    Start {
        /// When.
        now: Timestamp,
    },
    /// Do not wait for the timer (the endpoint was enabled again).
    Wake {
        /// When.
        now: Timestamp,
    },
    /// An attempt was made.
    Record {
        /// Of what.
        message: Message,
        /// What came of it.
        attempted: Attempted,
        /// When.
        now: Timestamp,
    },
    /// Nothing up to here is wanted.
    Skip {
        /// Up to which version of the aggregate.
        through: u64,
        /// When.
        now: Timestamp,
    },
    /// Not now: the endpoint is busy, slow or disabled.
    Defer {
        /// Why, as a stable code.
        reason: String,
        /// Until when.
        until: Timestamp,
        /// When.
        now: Timestamp,
    },
    /// Send this once more.
    Redeliver {
        /// The message.
        message: Message,
        /// When.
        now: Timestamp,
    },
    /// The endpoint is gone for good: nothing is owed any more.
    Abandon {
        /// When.
        now: Timestamp,
    },
}

impl Command for WebhookDeliveryCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Offer { .. } => "OfferWebhookMessage",
            Self::Start { .. } => "StartWebhookDelivery",
            Self::Wake { .. } => "WakeWebhookDelivery",
            Self::Record { .. } => "RecordWebhookAttempt",
            Self::Skip { .. } => "SkipWebhookMessages",
            Self::Defer { .. } => "DeferWebhookDelivery",
            Self::Redeliver { .. } => "RedeliverWebhookMessage",
            Self::Abandon { .. } => "AbandonWebhookDelivery",
        }
    }
}

souk_actors::events! {
    /// What happens to deliveries.
    pub enum WebhookDeliveryEvent in "webhooks" as "webhook-service" {
        /// Another message waits.
        Queued(DeliveryQueued) = "webhook.delivery.queued", "WebhookDeliveryQueued", 1.0, [];
        /// Somebody goes to work.
        Started(DeliveryStarted) = "webhook.delivery.started", "WebhookDeliveryStarted", 1.0, [];
        /// The endpoint took a message.
        Succeeded(DeliverySucceeded) = "webhook.delivery.succeeded", "WebhookDeliverySucceeded", 1.0, [];
        /// It did not, and will be asked again.
        Failed(DeliveryFailed) = "webhook.delivery.failed", "WebhookDeliveryFailed", 1.0, [];
        /// It did not, for the last time.
        Exhausted(DeliveryExhausted) = "webhook.delivery.exhausted", "WebhookDeliveryExhausted", 1.0, [];
        /// Work goes on later.
        Deferred(DeliveryDeferred) = "webhook.delivery.deferred", "WebhookDeliveryDeferred", 1.0, [];
        /// Some messages are not wanted any more.
        Skipped(DeliverySkipped) = "webhook.delivery.skipped", "WebhookDeliverySkipped", 1.0, [];
        /// Somebody wants a message sent once more.
        Requested(RedeliveryRequested) = "webhook.redelivery.requested", "WebhookRedeliveryRequested", 1.0, [];
    }
}

/// Another message waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryQueued {
    /// The message.
    pub message: Message,
    /// The end of the lease, when it is sent at once; none: others are before it.
    pub lease_until: Option<Timestamp>,
    /// When.
    pub queued_at: Timestamp,
}

/// Somebody goes to work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryStarted {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// The end of the lease.
    pub lease_until: Timestamp,
    /// When.
    pub started_at: Timestamp,
}

/// The endpoint took a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliverySucceeded {
    /// The message.
    pub message: Message,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// The status of the answer.
    pub status_code: u16,
    /// How long it took, in milliseconds.
    pub latency_ms: u64,
    /// The end of the lease, when there is more to send.
    pub lease_until: Option<Timestamp>,
    /// When.
    pub succeeded_at: Timestamp,
}

/// The endpoint did not take a message, and will be asked again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryFailed {
    /// The message.
    pub message: Message,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// The status of the answer; none: there was none.
    pub status_code: Option<u16>,
    /// How long it took, in milliseconds.
    pub latency_ms: u64,
    /// What was wrong, as a stable code.
    pub error: String,
    /// When it is asked again.
    pub next_attempt_at: Timestamp,
    /// When.
    pub failed_at: Timestamp,
}

/// The endpoint did not take a message, for the last time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryExhausted {
    /// The message.
    pub message: Message,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// The status of the answer; none: there was none.
    pub status_code: Option<u16>,
    /// How long it took, in milliseconds.
    pub latency_ms: u64,
    /// What was wrong, as a stable code.
    pub error: String,
    /// The end of the lease, when there is more to send.
    pub lease_until: Option<Timestamp>,
    /// When.
    pub exhausted_at: Timestamp,
}

/// Work goes on later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryDeferred {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Why: `busy`, `slowed_down`, `disabled`.
    pub reason: String,
    /// Until when.
    pub deferred_until: Timestamp,
    /// When.
    pub deferred_at: Timestamp,
}

/// Some messages are not wanted any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliverySkipped {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// Up to which version of the aggregate.
    pub through: u64,
    /// The end of the lease, when there is more to send.
    pub lease_until: Option<Timestamp>,
    /// When.
    pub skipped_at: Timestamp,
}

/// Somebody wants a message sent once more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RedeliveryRequested {
    /// The message.
    pub message: Message,
    /// The end of the lease.
    pub lease_until: Timestamp,
    /// When.
    pub requested_at: Timestamp,
}

rejections! {
    /// Why deliveries refuse a command.
    pub enum WebhookDeliveryRejection {
        /// There is nothing to be done.
        NotFound = "not_found", "there is no such delivery";
        /// Too many redeliveries wait.
        TooMany = "too_many_redeliveries", "too many redeliveries of this aggregate wait already: come back when they are through";
    }
}

/// The deliveries of one aggregate's events to one endpoint, or the absence of any.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WebhookDelivery {
    /// How far they are, once there was one.
    pub lane: Option<Lane>,
}

/// How far the deliveries are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// The aggregate whose events are sent.
    pub aggregate_id: Uuid,
    /// Its events up to this version are delivered, given up or not wanted.
    pub done: u64,
    /// Its events up to this version are to be.
    pub until: u64,
    /// Versions to send once more, before all others.
    pub again: BTreeSet<u64>,
    /// How many attempts of the first message have failed.
    pub failed: u32,
    /// Whether somebody is at work.
    pub running: bool,
    /// When the timer is due; none: nothing is owed.
    pub due: Option<Timestamp>,
}

impl Lane {
    /// Whether something is owed and no timer is set: nobody would ever send it.
    pub fn is_stuck(&self) -> bool {
        self.due.is_none() && (self.until > self.done || !self.again.is_empty())
    }

    /// Whether it owes anything beyond the first message, which is at `version`.
    fn owes_more_than(&self, version: u64) -> bool {
        let again = self.again.iter().any(|other| *other != version);
        again || self.until > self.done.max(version)
    }

    /// What is left once everything up to here is done with.
    fn lease_past(&self, version: u64, now: Timestamp) -> Option<Timestamp> {
        self.owes_more_than(version).then(|| now.plus(LEASE))
    }

    fn finish(&mut self, version: u64, lease_until: Option<Timestamp>) {
        // What is sent once more does not move the place.
        if !self.again.remove(&version) {
            self.done = self.done.max(version);
        }
        self.failed = 0;
        self.running = lease_until.is_some();
        self.due = lease_until;
    }
}

type Decision = Result<Vec<WebhookDeliveryEvent>, WebhookDeliveryRejection>;

impl Aggregate for WebhookDelivery {
    const TYPE: &'static str = "webhook_delivery";
    type Command = WebhookDeliveryCommand;
    type Event = WebhookDeliveryEvent;
    type Rejection = WebhookDeliveryRejection;

    fn decide(&self, command: &WebhookDeliveryCommand) -> Decision {
        match (command, &self.lane) {
            (WebhookDeliveryCommand::Offer { message, now }, lane) => {
                Ok(offer(lane.as_ref(), message, *now))
            }
            (WebhookDeliveryCommand::Redeliver { message, now }, lane) => {
                redeliver(lane.as_ref(), message, *now)
            }
            (_, None) => Err(WebhookDeliveryRejection::NotFound),
            (command, Some(lane)) => Ok(lane.decide(command)),
        }
    }

    fn apply(&mut self, event: &WebhookDeliveryEvent) {
        match (event, &mut self.lane) {
            (WebhookDeliveryEvent::Queued(event), lane) => {
                let lane = lane.get_or_insert_with(|| first(&event.message));
                lane.until = lane.until.max(event.message.aggregate_version);
                if event.lease_until.is_some() {
                    lane.running = true;
                    lane.due = event.lease_until;
                }
            }
            (WebhookDeliveryEvent::Requested(event), lane) => {
                let lane = lane.get_or_insert_with(|| done_with(&event.message));
                let version = event.message.aggregate_version;
                // What is still owed is tried at once; what was sent is sent again.
                if version <= lane.done {
                    lane.again.insert(version);
                }
                lane.until = lane.until.max(version);
                lane.failed = 0;
                lane.running = true;
                lane.due = Some(event.lease_until);
            }
            (event, Some(lane)) => lane.apply(event),
            (_, None) => {}
        }
    }

    fn timers(&self, event: &WebhookDeliveryEvent) -> Vec<TimerChange> {
        let due = match event {
            WebhookDeliveryEvent::Queued(event) => match event.lease_until {
                Some(until) => Some(until),
                None => return Vec::new(),
            },
            WebhookDeliveryEvent::Requested(event) => Some(event.lease_until),
            WebhookDeliveryEvent::Started(event) => Some(event.lease_until),
            WebhookDeliveryEvent::Succeeded(event) => event.lease_until,
            WebhookDeliveryEvent::Failed(event) => Some(event.next_attempt_at),
            WebhookDeliveryEvent::Exhausted(event) => event.lease_until,
            WebhookDeliveryEvent::Deferred(event) => Some(event.deferred_until),
            WebhookDeliveryEvent::Skipped(event) => event.lease_until,
        };
        let name = TIMER.to_owned();
        vec![match due {
            Some(at) => TimerChange::Set { name, at },
            None => TimerChange::Clear { name },
        }]
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<WebhookDeliveryCommand> {
        let due = self.lane.as_ref()?.due?;
        (name == TIMER && due <= now).then_some(WebhookDeliveryCommand::Start { now })
    }
}

/// A lane whose first message this is.
fn first(message: &Message) -> Lane {
    let version = message.aggregate_version;
    Lane { done: version.saturating_sub(1), ..done_with(message) }
}

/// A lane that owes nothing up to this message.
fn done_with(message: &Message) -> Lane {
    Lane {
        endpoint_id: message.endpoint_id,
        aggregate_id: message.aggregate_id,
        done: message.aggregate_version,
        until: message.aggregate_version,
        again: BTreeSet::new(),
        failed: 0,
        running: false,
        due: None,
    }
}

fn offer(lane: Option<&Lane>, message: &Message, now: Timestamp) -> Vec<WebhookDeliveryEvent> {
    // It comes at least once.
    if lane.is_some_and(|lane| message.aggregate_version <= lane.until) {
        return Vec::new();
    }
    let idle = lane.is_none_or(|lane| lane.due.is_none());
    vec![WebhookDeliveryEvent::Queued(DeliveryQueued {
        message: message.clone(),
        lease_until: idle.then(|| now.plus(LEASE)),
        queued_at: now,
    })]
}

fn redeliver(lane: Option<&Lane>, message: &Message, now: Timestamp) -> Decision {
    if lane.is_some_and(|lane| lane.again.len() >= REDELIVERIES_MAX) {
        return Err(WebhookDeliveryRejection::TooMany);
    }
    Ok(vec![WebhookDeliveryEvent::Requested(RedeliveryRequested {
        message: message.clone(),
        lease_until: now.plus(LEASE),
        requested_at: now,
    })])
}

impl Lane {
    fn decide(&self, command: &WebhookDeliveryCommand) -> Vec<WebhookDeliveryEvent> {
        use WebhookDeliveryCommand as Order;
        let endpoint_id = self.endpoint_id;
        match command {
            Order::Start { now } if self.due.is_some_and(|due| due <= *now) => self.start(*now),
            Order::Wake { now } if self.due.is_some() && !self.running => self.start(*now),
            Order::Record { message, attempted, now } if self.running => {
                vec![self.record(message, attempted, *now)]
            }
            Order::Skip { through, now } if self.running && *through > self.done => {
                vec![self.skip(*through, *now)]
            }
            Order::Defer { reason, until, now } if self.running => {
                vec![WebhookDeliveryEvent::Deferred(DeliveryDeferred {
                    endpoint_id,
                    reason: reason.clone(),
                    deferred_until: *until,
                    deferred_at: *now,
                })]
            }
            Order::Abandon { now } if self.due.is_some() => {
                vec![WebhookDeliveryEvent::Skipped(DeliverySkipped {
                    endpoint_id,
                    aggregate_id: self.aggregate_id,
                    through: self.until,
                    lease_until: None,
                    skipped_at: *now,
                })]
            }
            _ => Vec::new(),
        }
    }

    fn start(&self, now: Timestamp) -> Vec<WebhookDeliveryEvent> {
        vec![WebhookDeliveryEvent::Started(DeliveryStarted {
            endpoint_id: self.endpoint_id,
            lease_until: now.plus(LEASE),
            started_at: now,
        })]
    }

    fn skip(&self, through: u64, now: Timestamp) -> WebhookDeliveryEvent {
        let more = !self.again.is_empty() || self.until > through;
        WebhookDeliveryEvent::Skipped(DeliverySkipped {
            endpoint_id: self.endpoint_id,
            aggregate_id: self.aggregate_id,
            through: through.min(self.until),
            lease_until: more.then(|| now.plus(LEASE)),
            skipped_at: now,
        })
    }

    fn record(&self, message: &Message, made: &Attempted, now: Timestamp) -> WebhookDeliveryEvent {
        let (message, attempt) = (message.clone(), self.failed.saturating_add(1));
        let lease_until = self.lease_past(message.aggregate_version, now);
        let (latency_ms, status_code) = (made.latency_ms, made.status_code);
        let once = message.event_type == super::webhook_endpoint::PING;
        match &made.error {
            None => WebhookDeliveryEvent::Succeeded(DeliverySucceeded {
                message,
                attempt,
                status_code: status_code.unwrap_or_default(),
                latency_ms,
                lease_until,
                succeeded_at: now,
            }),
            // Whoever pings wants to know now.
            Some(error) if !once && wait_after(attempt).is_some() => {
                WebhookDeliveryEvent::Failed(DeliveryFailed {
                    message,
                    attempt,
                    status_code,
                    latency_ms,
                    error: error.clone(),
                    next_attempt_at: made.next_attempt_at,
                    failed_at: now,
                })
            }
            Some(error) => WebhookDeliveryEvent::Exhausted(DeliveryExhausted {
                message,
                attempt,
                status_code,
                latency_ms,
                error: error.clone(),
                lease_until,
                exhausted_at: now,
            }),
        }
    }

    fn apply(&mut self, event: &WebhookDeliveryEvent) {
        match event {
            WebhookDeliveryEvent::Started(event) => {
                self.running = true;
                self.due = Some(event.lease_until);
            }
            WebhookDeliveryEvent::Succeeded(event) => {
                self.finish(event.message.aggregate_version, event.lease_until);
            }
            WebhookDeliveryEvent::Exhausted(event) => {
                self.finish(event.message.aggregate_version, event.lease_until);
            }
            WebhookDeliveryEvent::Failed(event) => {
                self.failed = event.attempt;
                self.running = false;
                self.due = Some(event.next_attempt_at);
            }
            WebhookDeliveryEvent::Deferred(event) => {
                self.running = false;
                self.due = Some(event.deferred_until);
            }
            WebhookDeliveryEvent::Skipped(event) => {
                self.done = self.done.max(event.through);
                if event.lease_until.is_none() {
                    self.again.clear();
                }
                self.failed = 0;
                self.running = event.lease_until.is_some();
                self.due = event.lease_until;
            }
            WebhookDeliveryEvent::Queued(_) | WebhookDeliveryEvent::Requested(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
