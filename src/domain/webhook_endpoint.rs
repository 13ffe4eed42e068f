//! A webhook endpoint: where events are sent to, which ones, and in which form.
//!
//! Its secret is no part of it: that stands in a control row, written in the transaction of the
//! event that says there is a new one. What happened to single messages is told by
//! [`super::webhook_delivery`].

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::filter::Filter;
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::WebhookEndpointId;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{FieldError, Fields};
use super::topics::Topics;

/// The longest description.
const DESCRIPTION_MAX: usize = 500;
/// The most patterns of one endpoint.
const PATTERNS_MAX: usize = 50;
/// The longest pattern.
const PATTERN_MAX: usize = 200;
/// An endpoint that takes nothing for this long is disabled.
pub const FAILING_MAX: Duration = Duration::from_secs(5 * 24 * 60 * 60);
/// How long the old secret signs beside the new one.
pub const SECRET_OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);
/// It was switched off by hand.
pub const BY_HAND: &str = "by_hand";
/// It answered 410.
pub const GONE: &str = "gone";
/// It took nothing for [`FAILING_MAX`].
pub const FAILING: &str = "failing";

/// The form of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayloadFormat {
    /// `type`, `timestamp` and `data`, as Standard Webhooks has it, with the envelope's other
    /// members beside them.
    Standard,
    /// A CloudEvent 1.0.
    Cloudevents,
}

impl std::str::FromStr for PayloadFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "standard" => Ok(Self::Standard),
            "cloudevents" => Ok(Self::Cloudevents),
            _ => Err("must be standard or cloudevents"),
        }
    }
}

/// What to do with an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum WebhookEndpointCommand {
    /// Open a new one.
    Create {
        /// Who asks.
        caller: Caller,
        /// The new endpoint.
        endpoint_id: WebhookEndpointId,
        /// What it is to be.
        wish: EndpointWish,
        /// Whether addresses that begin with `http:` will do.
        allows_http: bool,
        /// The position of each partition behind which its events begin.
        starts_behind: Vec<u64>,
        /// When.
        now: Timestamp,
    },
    /// Change some of it.
    Update {
        /// Who asks.
        caller: Caller,
        /// What it is to be; what is none stays.
        change: EndpointChange,
        /// Whether addresses that begin with `http:` will do.
        allows_http: bool,
        /// When.
        now: Timestamp,
    },
    /// Give it another secret.
    RotateSecret {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Send it a message that means nothing.
    Ping {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// It answered 410.
    RecordGone {
        /// When.
        now: Timestamp,
    },
    /// It did not take a message.
    RecordFailure {
        /// When.
        now: Timestamp,
    },
    /// It took one.
    RecordSuccess {
        /// When.
        now: Timestamp,
    },
    /// Close it for good.
    Delete {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
}

/// What a new endpoint is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointWish {
    /// Its address.
    pub url: String,
    /// The topics it wants.
    pub events: Vec<String>,
    /// Which events of these topics, by what is in them; none: all.
    pub filter: Option<String>,
    /// The form of what is sent.
    pub format: PayloadFormat,
    /// What it is for.
    pub description: Option<String>,
}

/// What an endpoint is to be from now on; what is none stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndpointChange {
    /// Its address.
    pub url: Option<String>,
    /// The topics it wants.
    pub events: Option<Vec<String>>,
    /// Which events of these topics; an empty one takes it away.
    pub filter: Option<String>,
    /// The form of what is sent.
    pub format: Option<PayloadFormat>,
    /// What it is for.
    pub description: Option<String>,
    /// Whether anything is sent.
    pub enabled: Option<bool>,
}

impl WebhookEndpointCommand {
    /// Who asks, where somebody does.
    fn caller(&self) -> &Caller {
        match self {
            Self::Create { caller, .. }
            | Self::Update { caller, .. }
            | Self::RotateSecret { caller, .. }
            | Self::Ping { caller, .. }
            | Self::Delete { caller, .. } => caller,
            Self::RecordGone { .. } | Self::RecordFailure { .. } | Self::RecordSuccess { .. } => {
                &Caller::System
            }
        }
    }
}

impl Command for WebhookEndpointCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CreateWebhookEndpoint",
            Self::Update { .. } => "UpdateWebhookEndpoint",
            Self::RotateSecret { .. } => "RotateWebhookSecret",
            Self::Ping { .. } => "PingWebhookEndpoint",
            Self::RecordGone { .. } => "RecordWebhookGone",
            Self::RecordFailure { .. } => "RecordWebhookFailure",
            Self::RecordSuccess { .. } => "RecordWebhookSuccess",
            Self::Delete { .. } => "DeleteWebhookEndpoint",
        }
    }
}

souk_actors::events! {
    /// What happens to webhook endpoints.
    pub enum WebhookEndpointEvent in "webhooks" as "webhook-service" {
        /// There is a new one.
        Created(EndpointCreated) = "webhook.endpoint_created", "WebhookEndpointCreated", 1.1, [];
        /// It is something else now.
        Updated(EndpointUpdated) = "webhook.endpoint_updated", "WebhookEndpointUpdated", 1.1, [];
        /// It has another secret.
        SecretRotated(EndpointSecretRotated) = "webhook.secret_rotated", "WebhookSecretRotated", 1.0, [];
        /// Somebody wants to see a message arrive.
        Pinged(EndpointPinged) = "webhook.endpoint_pinged", "WebhookEndpointPinged", 1.0, [];
        /// It did not take a message, for the first time since it took one.
        Failed(EndpointFailed) = "webhook.endpoint_failed", "WebhookEndpointFailed", 1.0, [];
        /// It took one again.
        Recovered(EndpointRecovered) = "webhook.endpoint_recovered", "WebhookEndpointRecovered", 1.0, [];
        /// Nothing is sent any more.
        Disabled(EndpointDisabled) = "webhook.endpoint_disabled", "WebhookEndpointDisabled", 1.0, [];
        /// What waited is sent.
        Enabled(EndpointEnabled) = "webhook.endpoint_enabled", "WebhookEndpointEnabled", 1.0, [];
        /// It is closed for good.
        Deleted(EndpointDeleted) = "webhook.endpoint_deleted", "WebhookEndpointDeleted", 1.0, [];
    }
}

/// There is a new endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointCreated {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Its address.
    pub url: String,
    /// The topics it wants.
    pub events: Vec<String>,
    /// Which events of these topics, by what is in them; none: all.
    #[serde(default)]
    pub filter: Option<String>,
    /// The form of what is sent.
    pub format: PayloadFormat,
    /// What it is for.
    pub description: Option<String>,
    /// The position of each partition behind which its events begin.
    pub starts_behind: Vec<u64>,
    /// When.
    pub created_at: Timestamp,
}

/// The endpoint is something else now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointUpdated {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Its address.
    pub url: String,
    /// The topics it wants.
    pub events: Vec<String>,
    /// Which events of these topics, by what is in them; none: all.
    #[serde(default)]
    pub filter: Option<String>,
    /// The form of what is sent.
    pub format: PayloadFormat,
    /// What it is for.
    pub description: Option<String>,
    /// When.
    pub updated_at: Timestamp,
}

/// The endpoint has another secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointSecretRotated {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Which secret it has, from 1.
    pub secret_number: u32,
    /// Until when the old one signs too.
    pub old_until: Timestamp,
    /// When.
    pub rotated_at: Timestamp,
}

/// Somebody wants to see a message arrive at the endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointPinged {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// When.
    pub pinged_at: Timestamp,
}

/// The endpoint did not take a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointFailed {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Since when.
    pub failing_since: Timestamp,
}

/// The endpoint took a message again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointRecovered {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Since when it had taken none.
    pub failing_since: Timestamp,
    /// When.
    pub recovered_at: Timestamp,
}

/// Nothing is sent to the endpoint any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointDisabled {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Why: `by_hand`, `gone` (it answered 410), `failing` (it took nothing for five days).
    pub reason: String,
    /// When.
    pub disabled_at: Timestamp,
}

/// What waited for the endpoint is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointEnabled {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// When.
    pub enabled_at: Timestamp,
}

/// The endpoint is closed for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointDeleted {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// When.
    pub deleted_at: Timestamp,
}

rejections! {
    /// Why an endpoint refuses a command.
    pub enum WebhookEndpointRejection {
        /// Administrators only.
        Forbidden = "forbidden", "only administrators keep webhook endpoints";
        /// The id is taken.
        AlreadyExists = "webhook_exists", "there is already a webhook endpoint with this id";
        /// Never created, or deleted.
        NotFound = "not_found", "there is no such webhook endpoint";
        /// Nothing is sent to it.
        Disabled = "webhook_disabled", "the endpoint is disabled: enable it first";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(WebhookEndpointRejection);

/// An endpoint, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WebhookEndpoint {
    /// Everything about it, once created.
    pub details: Option<EndpointDetails>,
    /// Whether it was closed for good.
    pub deleted: bool,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointDetails {
    /// The endpoint.
    pub endpoint_id: WebhookEndpointId,
    /// Its address.
    pub url: String,
    /// The topics it wants.
    pub events: Vec<String>,
    /// Which events of these topics, by what is in them; none: all.
    #[serde(default)]
    pub filter: Option<String>,
    /// The form of what is sent.
    pub format: PayloadFormat,
    /// What it is for.
    pub description: Option<String>,
    /// Why nothing is sent; none: it is enabled.
    pub disabled: Option<String>,
    /// Since when it has taken nothing.
    pub failing_since: Option<Timestamp>,
    /// Which secret it has, from 1.
    pub secret_number: u32,
    /// The position of each partition behind which its events begin.
    pub starts_behind: Vec<u64>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed by somebody.
    pub updated_at: Timestamp,
}

impl EndpointDetails {
    /// Whether an event that stands there comes after the endpoint.
    pub fn starts_before(&self, partition: u16, position: u64) -> bool {
        self.starts_behind.get(usize::from(partition)).is_none_or(|start| position > *start)
    }
}

type Decision = Result<Vec<WebhookEndpointEvent>, WebhookEndpointRejection>;

fn checked_events(fields: &mut Fields, events: &[String]) -> Vec<String> {
    let many = !events.is_empty() && events.len() <= PATTERNS_MAX;
    fields.require(many, "/events", "out_of_range", "must be one to 50 topics (# is all of them)");
    for (index, pattern) in events.iter().take(PATTERNS_MAX).enumerate() {
        let valid = pattern.len() <= PATTERN_MAX
            && !pattern.contains(char::is_control)
            && Topics::parse([pattern.as_str()]).is_ok();
        let pointer = format!("/events/{index}");
        let detail =
            "must be an event type, a pattern such as order.* or ~ and a regular expression";
        fields.require(valid, &pointer, "invalid_topic", detail);
    }
    events.to_vec()
}

/// A filter that can be read; an empty one is none.
fn checked_filter(fields: &mut Fields, filter: Option<&str>) -> Option<String> {
    let filter = filter.map(str::trim).filter(|filter| !filter.is_empty())?;
    if let Err(error) = Filter::parse(filter) {
        fields.error("/filter", "invalid_filter", error.to_string());
    }
    Some(filter.to_owned())
}

fn checked(
    wish: &EndpointWish,
    allows_http: bool,
) -> Result<EndpointWish, WebhookEndpointRejection> {
    let mut fields = Fields::default();
    let url = fields.url("/url", &wish.url, allows_http);
    let events = checked_events(&mut fields, &wish.events);
    let filter = checked_filter(&mut fields, wish.filter.as_deref());
    let description = wish.description.as_deref();
    let description = fields.optional_line("/description", description, DESCRIPTION_MAX);
    fields.finish()?;
    Ok(EndpointWish { url, events, filter, format: wish.format, description })
}

impl Aggregate for WebhookEndpoint {
    const TYPE: &'static str = "webhook_endpoint";
    type Command = WebhookEndpointCommand;
    type Event = WebhookEndpointEvent;
    type Rejection = WebhookEndpointRejection;

    fn decide(&self, command: &WebhookEndpointCommand) -> Decision {
        if !command.caller().is_staff() {
            return Err(WebhookEndpointRejection::Forbidden);
        }
        match (command, &self.details) {
            (WebhookEndpointCommand::Create { .. }, None) if !self.deleted => create(command),
            (WebhookEndpointCommand::Create { .. }, _) => {
                Err(WebhookEndpointRejection::AlreadyExists)
            }
            (_, None) => Err(WebhookEndpointRejection::NotFound),
            (command, Some(details)) => details.decide(command),
        }
    }

    fn apply(&mut self, event: &WebhookEndpointEvent) {
        match (event, &mut self.details) {
            (WebhookEndpointEvent::Created(event), details) => *details = Some(created(event)),
            (WebhookEndpointEvent::Deleted(_), details) => {
                *details = None;
                self.deleted = true;
            }
            (event, Some(details)) => details.apply(event),
            (_, None) => {}
        }
    }
}

fn create(command: &WebhookEndpointCommand) -> Decision {
    let WebhookEndpointCommand::Create {
        endpoint_id, wish, allows_http, starts_behind, now, ..
    } = command
    else {
        return Ok(Vec::new());
    };
    let wish = checked(wish, *allows_http)?;
    Ok(vec![WebhookEndpointEvent::Created(EndpointCreated {
        endpoint_id: *endpoint_id,
        url: wish.url,
        events: wish.events,
        filter: wish.filter,
        format: wish.format,
        description: wish.description,
        starts_behind: starts_behind.clone(),
        created_at: *now,
    })])
}

fn created(event: &EndpointCreated) -> EndpointDetails {
    EndpointDetails {
        endpoint_id: event.endpoint_id,
        url: event.url.clone(),
        events: event.events.clone(),
        filter: event.filter.clone(),
        format: event.format,
        description: event.description.clone(),
        disabled: None,
        failing_since: None,
        secret_number: 1,
        starts_behind: event.starts_behind.clone(),
        created_at: event.created_at,
        updated_at: event.created_at,
    }
}

impl EndpointDetails {
    fn decide(&self, command: &WebhookEndpointCommand) -> Decision {
        use WebhookEndpointCommand as Order;
        let endpoint_id = self.endpoint_id;
        Ok(match command {
            Order::Update { change, allows_http, now, .. } => {
                return self.update(change, *allows_http, *now);
            }
            Order::RotateSecret { now, .. } => {
                vec![WebhookEndpointEvent::SecretRotated(EndpointSecretRotated {
                    endpoint_id,
                    secret_number: self.secret_number.saturating_add(1),
                    old_until: now.plus(SECRET_OVERLAP),
                    rotated_at: *now,
                })]
            }
            Order::Ping { .. } if self.disabled.is_some() => {
                return Err(WebhookEndpointRejection::Disabled);
            }
            Order::Ping { now, .. } => {
                let event = EndpointPinged { endpoint_id, pinged_at: *now };
                vec![WebhookEndpointEvent::Pinged(event)]
            }
            Order::RecordGone { now } => self.disable(GONE, *now),
            Order::RecordFailure { now } => self.failure(*now),
            Order::RecordSuccess { now } => self.success(*now),
            Order::Delete { now, .. } => {
                let event = EndpointDeleted { endpoint_id, deleted_at: *now };
                vec![WebhookEndpointEvent::Deleted(event)]
            }
            Order::Create { .. } => Vec::new(),
        })
    }

    fn update(&self, change: &EndpointChange, allows_http: bool, now: Timestamp) -> Decision {
        let kept = EndpointWish {
            url: self.url.clone(),
            events: self.events.clone(),
            filter: self.filter.clone(),
            format: self.format,
            description: self.description.clone(),
        };
        let wish = EndpointWish {
            url: change.url.clone().unwrap_or_else(|| kept.url.clone()),
            events: change.events.clone().unwrap_or_else(|| kept.events.clone()),
            filter: change.filter.clone().or_else(|| kept.filter.clone()),
            format: change.format.unwrap_or(kept.format),
            description: change.description.clone().or_else(|| kept.description.clone()),
        };
        // What was allowed when it was made may stay while something else changes.
        let allows_http = allows_http || change.url.is_none();
        let wish = checked(&wish, allows_http)?;
        let mut events = Vec::new();
        if wish != kept {
            events.push(WebhookEndpointEvent::Updated(EndpointUpdated {
                endpoint_id: self.endpoint_id,
                url: wish.url,
                events: wish.events,
                filter: wish.filter,
                format: wish.format,
                description: wish.description,
                updated_at: now,
            }));
        }
        match change.enabled {
            Some(false) => events.extend(self.disable(BY_HAND, now)),
            Some(true) if self.disabled.is_some() => {
                let event = EndpointEnabled { endpoint_id: self.endpoint_id, enabled_at: now };
                events.push(WebhookEndpointEvent::Enabled(event));
            }
            _ => {}
        }
        Ok(events)
    }

    fn disable(&self, reason: &str, now: Timestamp) -> Vec<WebhookEndpointEvent> {
        if self.disabled.is_some() {
            return Vec::new();
        }
        vec![WebhookEndpointEvent::Disabled(EndpointDisabled {
            endpoint_id: self.endpoint_id,
            reason: reason.to_owned(),
            disabled_at: now,
        })]
    }

    fn failure(&self, now: Timestamp) -> Vec<WebhookEndpointEvent> {
        let endpoint_id = self.endpoint_id;
        match self.failing_since {
            None => {
                let event = EndpointFailed { endpoint_id, failing_since: now };
                vec![WebhookEndpointEvent::Failed(event)]
            }
            Some(since) if now.since(since) >= FAILING_MAX => self.disable(FAILING, now),
            Some(_) => Vec::new(),
        }
    }

    fn success(&self, now: Timestamp) -> Vec<WebhookEndpointEvent> {
        let recovered = self.failing_since.map(|failing_since| {
            let endpoint_id = self.endpoint_id;
            let event = EndpointRecovered { endpoint_id, failing_since, recovered_at: now };
            WebhookEndpointEvent::Recovered(event)
        });
        recovered.into_iter().collect()
    }

    fn apply(&mut self, event: &WebhookEndpointEvent) {
        match event {
            WebhookEndpointEvent::Updated(event) => {
                self.url.clone_from(&event.url);
                self.events.clone_from(&event.events);
                self.filter.clone_from(&event.filter);
                self.format = event.format;
                self.description.clone_from(&event.description);
                self.updated_at = event.updated_at;
            }
            WebhookEndpointEvent::SecretRotated(event) => {
                self.secret_number = event.secret_number;
                self.updated_at = event.rotated_at;
            }
            WebhookEndpointEvent::Failed(event) => self.failing_since = Some(event.failing_since),
            WebhookEndpointEvent::Recovered(_) => self.failing_since = None,
            WebhookEndpointEvent::Disabled(event) => {
                self.disabled = Some(event.reason.clone());
            }
            WebhookEndpointEvent::Enabled(event) => {
                self.disabled = None;
                // It has five days again.
                self.failing_since = None;
                self.updated_at = event.enabled_at;
            }
            WebhookEndpointEvent::Created(_)
            | WebhookEndpointEvent::Pinged(_)
            | WebhookEndpointEvent::Deleted(_) => {}
        }
    }
}

/// The type of the event that a ping is.
pub const PING: &str = "webhook.endpoint_pinged";

#[cfg(test)]
mod tests;
