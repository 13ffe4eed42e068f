//! Webhook endpoints: where events are sent to, and what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::command::{CommandContext, CommandError, Done};
use souk_actors::event::{Position, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::answer::{Answer, Page, nothing_after, split};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::{Call, Staff};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id};
use super::problem::ApiError;
use super::{App, IDEMPOTENT_REPLAYED};
use crate::domain::ids::WebhookEndpointId;
use crate::domain::webhook_delivery::{Message, WebhookDelivery, WebhookDeliveryCommand, lane_of};
use crate::domain::webhook_endpoint::{
    EndpointChange, EndpointDetails, EndpointWish, PayloadFormat, SECRET_OVERLAP, WebhookEndpoint,
    WebhookEndpointCommand, WebhookEndpointRejection,
};
use crate::projections::{DeliveryRow, EventFilter, WEBHOOK_DELIVERIES_VIEW as VIEW};
use crate::subscribers::webhooks::secrets::{Secrets, no_row};
use crate::subscribers::webhooks::{self, ENDPOINTS_MAX, Endpoint, FANOUT, message};

/// How many events one redelivery of a range looks at.
const SCANNED_MAX: usize = 10_000;
/// How many it sends again.
const REDELIVERED_MAX: usize = 1_000;
/// How many are looked at in one go.
const PAGE: u32 = 200;
/// The states of a delivery.
pub(super) const STATUSES: [&str; 5] = ["pending", "retrying", "delivered", "dead", "skipped"];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_webhooks, create_webhook))
        .routes(routes!(get_webhook, update_webhook, delete_webhook))
        .routes(routes!(rotate_secret))
        .routes(routes!(ping_webhook))
        .routes(routes!(list_deliveries))
        .routes(routes!(redeliver))
        .routes(routes!(redeliver_range))
}

/// A new endpoint.
#[derive(ToSchema)]
pub struct NewWebhook {
    /// Where events are sent to: an https address (in development http will do).
    #[schema(max_length = 2048, example = "https://shop.example/hooks/souk")]
    pub url: String,
    /// Which: event types by any of their names, and patterns (`order.*`, `#`, `~` and a regular
    /// expression).
    #[schema(min_items = 1, max_items = 50, example = json!(["order.*", "payment.captured"]))]
    pub events: Vec<String>,
    /// Which events of these topics, by what is in them; all of them when absent. As those of
    /// subscriptions, it looks at data as they are stored: personal fields cannot be compared.
    #[schema(max_length = 1024, example = "data.total.amount >= 1000000")]
    pub filter: Option<String>,
    /// `standard` (when absent) or `cloudevents`.
    #[schema(example = "standard")]
    pub format: Option<String>,
    /// What it is for.
    #[schema(max_length = 500)]
    pub description: Option<String>,
}

struct ReadWebhook(EndpointWish);

impl FromFields for ReadWebhook {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let url = fields.text(&["url"]);
        if !fields.has(&["events"]) {
            fields.error("events", "required", "is required");
        }
        let events = fields.optional_texts(&["events"]);
        let filter = fields.optional_text(&["filter"]);
        let format = fields.optional_parsed(&["format"]).unwrap_or(PayloadFormat::Standard);
        let description = fields.optional_text(&["description"]);
        Some(Self(EndpointWish { url: url?, events, filter, format, description }))
    }
}

/// A change to an endpoint; what is absent stays.
#[derive(ToSchema)]
pub struct WebhookChange {
    /// Where events are sent to.
    #[schema(max_length = 2048, example = "https://shop.example/hooks/souk")]
    pub url: Option<String>,
    /// Which.
    #[schema(min_items = 1, max_items = 50, example = json!(["order.*"]))]
    pub events: Option<Vec<String>>,
    /// Which events of these topics; an empty one takes the filter away.
    #[schema(max_length = 1024, example = "data.total.amount >= 1000000")]
    pub filter: Option<String>,
    /// `standard` or `cloudevents`.
    #[schema(example = "standard")]
    pub format: Option<String>,
    /// What it is for.
    #[schema(max_length = 500)]
    pub description: Option<String>,
    /// Whether anything is sent. What happens meanwhile waits, and is sent afterwards.
    pub enabled: Option<bool>,
}

struct ReadChange(EndpointChange);

fn flag(fields: &mut Fields<'_>, name: &'static str) -> Option<bool> {
    let value = fields.value(name)?;
    let flag = value.as_bool();
    if flag.is_none() {
        fields.error(name, "wrong_type", "must be true or false");
    }
    flag
}

impl FromFields for ReadChange {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let events = fields.has(&["events"]).then(|| fields.optional_texts(&["events"]));
        Some(Self(EndpointChange {
            url: fields.optional_text(&["url"]),
            events,
            filter: fields.optional_text(&["filter"]),
            format: fields.optional_parsed(&["format"]),
            description: fields.optional_text(&["description"]),
            enabled: flag(fields, "enabled"),
        }))
    }
}

/// An endpoint.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WebhookBody {
    /// The endpoint.
    pub id: Uuid,
    /// Where events are sent to.
    pub url: String,
    /// Which.
    pub events: Vec<String>,
    /// Which events of these topics, by what is in them.
    pub filter: Option<String>,
    /// `standard` or `cloudevents`.
    pub format: String,
    /// What it is for.
    pub description: Option<String>,
    /// Whether anything is sent.
    pub enabled: bool,
    /// Why not: `by_hand`, `gone` (it answered 410), `failing` (it took nothing for five days).
    pub disabled_reason: Option<String>,
    /// Since when it has taken nothing, if it failed last.
    #[schema(format = DateTime)]
    pub failing_since: Option<String>,
    /// What signs, in the answer to creation and rotation alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")]
    pub secret: Option<String>,
    /// Since when.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When somebody changed it last.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

fn body(details: &EndpointDetails) -> WebhookBody {
    let format = match details.format {
        PayloadFormat::Standard => "standard",
        PayloadFormat::Cloudevents => "cloudevents",
    };
    WebhookBody {
        id: details.endpoint_id.uuid(),
        url: details.url.clone(),
        events: details.events.clone(),
        filter: details.filter.clone(),
        format: format.to_owned(),
        description: details.description.clone(),
        enabled: details.disabled.is_none(),
        disabled_reason: details.disabled.clone(),
        failing_since: details.failing_since.map(|at| at.to_string()),
        secret: None,
        created_at: details.created_at.to_string(),
        updated_at: details.updated_at.to_string(),
    }
}

fn view(endpoint: &WebhookEndpoint) -> Option<EndpointDetails> {
    endpoint.details.clone()
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such webhook endpoint")
}

fn failed(failure: Failure) -> ApiError {
    tracing::warn!(error = failure.message, "a webhook endpoint could not be looked up");
    let detail = "webhook endpoints cannot be looked up at the moment";
    ApiError::unavailable("webhooks_unavailable", detail, Duration::from_secs(2))
}

async fn details(app: &App, id: WebhookEndpointId) -> Result<Done<EndpointDetails>, ApiError> {
    let done = app.runtime().aggregate::<WebhookEndpoint>().read(id.uuid(), view).await?;
    let (found, done) = split(done);
    let Done { value: (), version, events, position, replayed } = done;
    Ok(Done { value: found.ok_or_else(missing)?, version, events, position, replayed })
}

async fn send(
    app: &App,
    id: WebhookEndpointId,
    command: WebhookEndpointCommand,
    context: CommandContext,
) -> Result<(Option<EndpointDetails>, Done<()>), ApiError> {
    let endpoints = app.runtime().aggregate::<WebhookEndpoint>();
    let done = endpoints.send(id.uuid(), command, context, view).await?;
    // It is done, so the answer says so: the subscriber that hears of the change looks too.
    if let Err(failure) = app.webhooks().directory().refresh(app.runtime(), id).await {
        tracing::warn!(endpoint_id = %id, error = failure.message, "a webhook endpoint that was changed could not be looked at again");
    }
    Ok(split(done))
}

/// The secret that a command brought; none when it is another's by now.
async fn secret(
    app: &App,
    details: &EndpointDetails,
    (brought, done): (&Secrets, &Done<()>),
) -> Result<Option<String>, ApiError> {
    // The only answer that has it must not be lost for want of a look at what was just stored.
    if done.events > 0 && !done.replayed {
        return Ok(Some(brought.shown()));
    }
    let directory = app.webhooks().directory();
    let stored = directory.stored(app.runtime(), details.endpoint_id).await.map_err(failed)?;
    let stored = stored.filter(|stored| stored.number == details.secret_number);
    Ok(stored.as_ref().map(Secrets::shown))
}

/// Webhook endpoints
#[utoipa::path(get, path = "/webhooks", tag = "webhooks",
    responses((status = 200, description = "All endpoints", body = Page<WebhookBody>)))]
async fn list_webhooks(
    State(app): State<App>,
    _: Staff,
) -> Result<Answer<Page<WebhookBody>>, ApiError> {
    let endpoints = app.runtime().aggregate::<WebhookEndpoint>();
    let mut all = Vec::new();
    for id in webhooks::ids(app.runtime()).await.map_err(failed)? {
        all.extend(endpoints.read(id.uuid(), view).await?.value.as_ref().map(body));
    }
    Ok(Answer::ok(Page::whole(all)))
}

/// Open a webhook endpoint
///
/// The answer has the secret that signs what is sent, and no other does. Events are sent that
/// happen from now on.
#[utoipa::path(post, path = "/webhooks", tag = "webhooks", request_body = NewWebhook,
    responses((status = 201, description = "The endpoint with its secret", body = WebhookBody)))]
async fn create_webhook(
    State(app): State<App>,
    Staff(call): Staff,
    valid: Valid<ReadWebhook>,
) -> Result<Answer<WebhookBody>, ApiError> {
    let endpoint_id = WebhookEndpointId(call.new_id(&app, "webhooks.create"));
    let directory = app.webhooks().directory();
    let _changing = directory.change().await;
    let mut ids = webhooks::ids(app.runtime()).await.map_err(failed)?;
    if ids.insert(endpoint_id) && ids.len() > ENDPOINTS_MAX {
        let detail = format!("there are {ENDPOINTS_MAX} webhook endpoints: delete one first");
        return Err(ApiError::conflict("too_many_webhooks", detail));
    }
    let world = app.runtime().world();
    let secrets = Secrets::new(&**world);
    let sealed = directory.secrets().row(&**world, endpoint_id, &secrets);
    let mut context = call.context(&app, "webhooks.create", "", &valid.canonical);
    context.attach = vec![webhooks::row(&ids), sealed];
    let heads = app.runtime().journal().heads();
    let create = WebhookEndpointCommand::Create {
        caller: call.caller(),
        endpoint_id,
        wish: valid.body.0,
        allows_http: app.settings().webhooks.allows_http,
        starts_behind: heads.into_iter().map(|head| head.position).collect(),
        now: app.now(),
    };
    let (details, done) = send(&app, endpoint_id, create, context).await?;
    let details = details.ok_or_else(missing)?;
    let secret = secret(&app, &details, (&secrets, &done)).await?;
    let body = WebhookBody { secret, ..body(&details) };
    Ok(Answer::created(&format!("/api/v1/webhooks/{endpoint_id}"), body).after(&done))
}

/// A webhook endpoint
#[utoipa::path(get, path = "/webhooks/{id}", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, description = "The endpoint", body = WebhookBody)))]
async fn get_webhook(
    State(app): State<App>,
    _: Staff,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let done = details(&app, path_id(&id)?).await?;
    Ok(Answer::ok(body(&done.value)).at_version(done.version, &theirs))
}

/// Change a webhook endpoint
#[utoipa::path(patch, path = "/webhooks/{id}", tag = "webhooks", params(("id" = String, Path)),
    request_body = WebhookChange,
    responses((status = 200, description = "The endpoint", body = WebhookBody)))]
async fn update_webhook(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<ReadChange>,
) -> Result<Answer<WebhookBody>, ApiError> {
    let id: WebhookEndpointId = path_id(&id)?;
    call.if_match.required()?;
    let context = call.change_context(&app, "webhooks.update", &id.to_string(), &valid.canonical);
    let update = WebhookEndpointCommand::Update {
        caller: call.caller(),
        change: valid.body.0,
        allows_http: app.settings().webhooks.allows_http,
        now: app.now(),
    };
    let (details, done) = send(&app, id, update, context).await?;
    Ok(Answer::ok(body(&details.ok_or_else(missing)?)).after(&done))
}

/// Close a webhook endpoint for good
///
/// Nothing is sent any more, also nothing that waits.
#[utoipa::path(delete, path = "/webhooks/{id}", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 204, description = "It is closed")))]
async fn delete_webhook(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: WebhookEndpointId = path_id(&id)?;
    let _changing = app.webhooks().directory().change().await;
    let mut ids = webhooks::ids(app.runtime()).await.map_err(failed)?;
    ids.remove(&id);
    let mut context = call.plain_context(&app);
    context.expected_version = call.if_match.version();
    context.attach = vec![webhooks::row(&ids), no_row(id)];
    let delete = WebhookEndpointCommand::Delete { caller: call.caller(), now: app.now() };
    let (_, done) = send(&app, id, delete, context).await?;
    Ok(nothing_after(&done))
}

/// Give a webhook endpoint another secret
///
/// The answer has it, and no other does. For a day what is sent is signed with both.
#[utoipa::path(post, path = "/webhooks/{id}/secret/rotate", tag = "webhooks",
    params(("id" = String, Path)),
    responses((status = 200, description = "The endpoint with its secret", body = WebhookBody)))]
async fn rotate_secret(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<WebhookBody>, ApiError> {
    let id: WebhookEndpointId = path_id(&id)?;
    let directory = app.webhooks().directory();
    let _changing = directory.change().await;
    details(&app, id).await?;
    let (world, now) = (app.runtime().world(), app.now());
    let stored = directory.stored(app.runtime(), id).await.map_err(failed)?;
    let secrets = stored.map_or_else(
        || Secrets::new(&**world),
        |stored| stored.rotated(&**world, now.plus(SECRET_OVERLAP)),
    );
    let mut context = call.change_context(&app, "webhooks.rotate", &id.to_string(), b"");
    context.attach = vec![directory.secrets().row(&**world, id, &secrets)];
    let rotate = WebhookEndpointCommand::RotateSecret { caller: call.caller(), now };
    let (details, done) = send(&app, id, rotate, context).await?;
    let details = details.ok_or_else(missing)?;
    let secret = secret(&app, &details, (&secrets, &done)).await?;
    let body = WebhookBody { secret, ..body(&details) };
    Ok(Answer::ok(body).after(&done))
}

/// A message on its way.
#[derive(Debug, Serialize, ToSchema)]
pub struct OnItsWay {
    /// The delivery: see `/webhooks/{id}/deliveries`.
    pub delivery_id: Uuid,
    /// The event that it carries, and its `webhook-id`.
    pub event_id: Uuid,
}

/// Send a test message
///
/// An event of the type `webhook.endpoint_pinged`, whatever the endpoint wants, once.
#[utoipa::path(post, path = "/webhooks/{id}/ping", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 202, description = "It is on its way", body = OnItsWay)))]
async fn ping_webhook(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<OnItsWay>, ApiError> {
    let id: WebhookEndpointId = path_id(&id)?;
    let context = call.change_context(&app, "webhooks.ping", &id.to_string(), b"");
    let ping = WebhookEndpointCommand::Ping { caller: call.caller(), now: app.now() };
    let (_, done) = send(&app, id, ping, context).await?;
    let behind = done.version.saturating_sub(1);
    let pinged = app.runtime().journal().read_aggregate(id.uuid(), behind, 1).await;
    // It is on its way all the same: a repeat with the same key finds it.
    let pinged = pinged.map_err(|error| {
        tracing::warn!(%error, "the event of a ping could not be read");
        CommandError::<WebhookEndpointRejection>::OutcomeUnknown
    })?;
    let pinged = pinged.first().ok_or_else(missing)?;
    let message = message(id, pinged);
    let body = OnItsWay { delivery_id: message.delivery_id, event_id: message.event_id };
    Ok(Answer::accepted(&format!("/api/v1/webhooks/{id}/deliveries"), body).after(&done))
}

/// A delivery to an endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookDeliveryBody {
    /// The delivery.
    pub id: Uuid,
    /// The event, and the `webhook-id` of every attempt.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Its aggregate: deliveries of one come in order.
    pub aggregate_id: Uuid,
    /// Its place in the aggregate's history.
    pub aggregate_version: u64,
    /// Where it stands in the log.
    #[schema(example = "0:812")]
    pub position: String,
    /// `pending`, `retrying`, `delivered`, `dead` or `skipped`.
    pub status: String,
    /// How often it was tried since it was last asked for.
    pub attempts: u64,
    /// The status of the last answer; none: there was none.
    pub status_code: Option<i64>,
    /// How long the last attempt took, in milliseconds.
    pub latency_ms: Option<i64>,
    /// What was wrong with it, as a code.
    pub error: Option<String>,
    /// When it is tried again.
    #[schema(format = DateTime)]
    pub next_attempt_at: Option<String>,
    /// Since when it is owed.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When something happened to it last.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

impl From<DeliveryRow> for WebhookDeliveryBody {
    fn from(row: DeliveryRow) -> Self {
        let Message { partition, position, .. } = row.message;
        Self {
            id: row.message.delivery_id,
            event_id: row.message.event_id,
            event_type: row.message.event_type,
            aggregate_id: row.message.aggregate_id,
            aggregate_version: row.message.aggregate_version,
            position: Position { partition, position }.to_string(),
            status: row.status,
            attempts: row.attempts,
            status_code: row.status_code,
            latency_ms: row.latency_ms,
            error: row.error,
            next_attempt_at: row.next_attempt_at.map(|at| at.to_string()),
            created_at: row.created_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

/// What was sent to a webhook endpoint, and what waits
///
/// What is over is shown for thirty days.
#[utoipa::path(get, path = "/webhooks/{id}/deliveries", tag = "webhooks",
    params(("id" = String, Path), ("status" = Option<String>, Query),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first",
        body = Page<WebhookDeliveryBody>)))]
async fn list_deliveries(
    State(app): State<App>,
    _: Staff,
    Path(id): Path<String>,
    params: Params,
) -> Result<Answer<Page<WebhookDeliveryBody>>, ApiError> {
    let id: WebhookEndpointId = path_id(&id)?;
    details(&app, id).await?;
    let status = params.one_of("status", &STATUSES)?;
    app.includes(VIEW, &params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let rows = app.reads().webhook_deliveries(id.uuid(), status, before, limit + 1).await?;
    let cursor = |row: &DeliveryRow| (row.created_at.millis(), row.message.delivery_id);
    Ok(params.rows(&app, rows, limit, cursor).projected(&app, VIEW))
}

/// The endpoint, which must take messages.
async fn enabled(app: &App, id: WebhookEndpointId) -> Result<EndpointDetails, ApiError> {
    let details = details(app, id).await?.value;
    if details.disabled.is_some() {
        let disabled = WebhookEndpointRejection::Disabled;
        return Err(ApiError::conflict("webhook_disabled", disabled.to_string()));
    }
    Ok(details)
}

async fn send_again(
    app: &App,
    message: Message,
    context: CommandContext,
) -> Result<Done<()>, ApiError> {
    let lane = lane_of(message.endpoint_id, message.aggregate_id);
    let again = WebhookDeliveryCommand::Redeliver { message, now: app.now() };
    Ok(app.runtime().aggregate::<WebhookDelivery>().send(lane, again, context, |_| ()).await?)
}

/// Send a message once more
///
/// Under its own `webhook-id`, at once, and from there on the schedule begins anew.
#[utoipa::path(post, path = "/webhooks/{id}/deliveries/{delivery_id}/redeliver", tag = "webhooks",
    params(("id" = String, Path), ("delivery_id" = String, Path)),
    responses((status = 202, description = "It is on its way", body = OnItsWay)))]
async fn redeliver(
    State(app): State<App>,
    Staff(call): Staff,
    Path((id, delivery)): Path<(String, String)>,
    _: Valid<Nothing>,
) -> Result<Answer<OnItsWay>, ApiError> {
    let (id, delivery): (WebhookEndpointId, Uuid) = (path_id(&id)?, path_id(&delivery)?);
    enabled(&app, id).await?;
    let row = app.reads().webhook_delivery(delivery).await?;
    let row = row.filter(|row| row.message.endpoint_id == id);
    let row = row.ok_or_else(|| ApiError::not_found("there is no such delivery"))?;
    let event_id = row.message.event_id;
    let context = call.context(&app, "webhooks.redeliver", &delivery.to_string(), b"");
    let done = send_again(&app, row.message, context).await?;
    let body = OnItsWay { delivery_id: delivery, event_id };
    Ok(Answer::accepted(&format!("/api/v1/webhooks/{id}/deliveries"), body).after(&done))
}

/// Which messages to send once more.
#[derive(ToSchema)]
pub struct Range {
    /// Events from this time on.
    #[schema(format = DateTime)]
    pub from: Option<String>,
    /// Events before this time.
    #[schema(format = DateTime)]
    pub to: Option<String>,
    /// Or events from this position of a partition on.
    #[schema(pattern = "^[0-9]{1,3}:[0-9]{1,18}$", example = "0:1")]
    pub from_position: Option<String>,
    /// Up to this one.
    #[schema(pattern = "^[0-9]{1,3}:[0-9]{1,18}$", example = "0:812")]
    pub to_position: Option<String>,
    /// Only tell how many there are.
    pub dry_run: Option<bool>,
}

struct ReadRange {
    times: (Option<Timestamp>, Option<Timestamp>),
    positions: Option<(Position, u64)>,
    dry_run: bool,
}

fn time(fields: &mut Fields<'_>, name: &'static str) -> Option<Timestamp> {
    let text = fields.optional_text(&[name])?;
    let time = Timestamp::parse(&text);
    if time.is_none() {
        fields.error(name, "invalid", "must be an RFC 3339 time");
    }
    time
}

impl FromFields for ReadRange {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let times = (time(fields, "from"), time(fields, "to"));
        let first: Option<Position> = fields.optional_parsed(&["from_position"]);
        let last: Option<Position> = fields.optional_parsed(&["to_position"]);
        let dry_run = flag(fields, "dry_run").unwrap_or(false);
        let positions = match (first, last) {
            (Some(first), Some(last)) if first.partition == last.partition => {
                Some((first, last.position))
            }
            (Some(first), None) => Some((first, u64::MAX)),
            (None, None) => None,
            _ => {
                let detail = "must be in the same partition as from_position, which must be there";
                fields.error("to_position", "invalid", detail);
                None
            }
        };
        let has_times = times.0.is_some() || times.1.is_some();
        if has_times == positions.is_some() {
            fields.error("from", "required", "give either times or positions");
        }
        Some(Self { times, positions, dry_run })
    }
}

/// What a redelivery of a range came to.
#[derive(Debug, Serialize, ToSchema)]
pub struct RangeBody {
    /// Whether nothing was sent.
    pub dry_run: bool,
    /// How many events were looked at, at most 10,000.
    pub scanned: usize,
    /// How many of them the endpoint wants.
    pub matched: usize,
    /// How many are sent again, at most 1,000.
    pub requested: usize,
    /// How many were refused: too many of the same aggregate wait already.
    pub refused: usize,
    /// Whether that is all of the range; if not, go on behind `reached`.
    pub complete: bool,
    /// The last position that was looked at in each partition.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub reached: BTreeMap<u16, u64>,
    /// How many of the requests had been made with the same key before.
    #[serde(skip)]
    repeated: usize,
    /// Where the requests stand.
    #[serde(skip)]
    recorded: Vec<Position>,
}

/// Send a range of messages once more
///
/// Those that the endpoint wants now, of those that happened since it was opened, each under its
/// own `webhook-id`. At most 1,000 at a time. With an `Idempotency-Key` a repeat sends no message that it
/// has sent already.
#[utoipa::path(post, path = "/webhooks/{id}/redeliver", tag = "webhooks",
    params(("id" = String, Path)), request_body = Range,
    responses((status = 200, description = "How many", body = RangeBody)))]
async fn redeliver_range(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<ReadRange>,
) -> Result<Answer<RangeBody>, ApiError> {
    let id: WebhookEndpointId = path_id(&id)?;
    enabled(&app, id).await?;
    let endpoint = app.webhooks().directory().get(id).ok_or_else(missing)?;
    let Valid { body: range, canonical } = valid;
    let mut body = RangeBody {
        dry_run: range.dry_run,
        scanned: 0,
        matched: 0,
        requested: 0,
        refused: 0,
        complete: false,
        reached: BTreeMap::new(),
        repeated: 0,
        recorded: Vec::new(),
    };
    let sent = send_range(&app, (&call, &canonical), &endpoint, &range, &mut body).await;
    // What was sent until then is told: whoever goes on behind `reached` sends nothing twice.
    if let Err(error) = sent
        && (body.requested == 0 || error.status().is_client_error())
    {
        return Err(error);
    }
    let recorded = std::mem::take(&mut body.recorded);
    let is_repeat = body.requested > 0 && body.repeated == body.requested;
    let answer = Answer::ok(body).after_all(recorded);
    Ok(if is_repeat { answer.with(IDEMPOTENT_REPLAYED, "true") } else { answer })
}

/// Sends what the endpoint wants of a range, as far as one request goes.
async fn send_range(
    app: &App,
    call: (&Call, &[u8]),
    endpoint: &Endpoint,
    range: &ReadRange,
    body: &mut RangeBody,
) -> Result<(), ApiError> {
    while !body.complete && body.scanned < SCANNED_MAX && body.matched < REDELIVERED_MAX {
        let page = page(app, range, &body.reached).await?;
        body.complete = page.is_empty();
        for event in page {
            if body.matched >= REDELIVERED_MAX {
                break;
            }
            take(app, call, endpoint, &event, body).await?;
            body.scanned += 1;
            body.reached.insert(event.partition, event.position);
        }
    }
    Ok(())
}

async fn take(
    app: &App,
    (call, canonical): (&Call, &[u8]),
    endpoint: &Endpoint,
    event: &StoredEvent,
    body: &mut RangeBody,
) -> Result<(), ApiError> {
    // What is not fanned out yet will be sent anyway.
    let fanned_out = app.runtime().subscriptions().position(FANOUT, event.partition);
    if !endpoint.wants(event) || fanned_out.unwrap_or(0) < event.position {
        return Ok(());
    }
    if body.dry_run {
        body.matched += 1;
        return Ok(());
    }
    let id = endpoint.details.endpoint_id;
    let message = message(id, event);
    // Each message has a command of its own: a repeat with the same key finds those that were sent.
    let operation = format!("webhooks.redeliver_range {}", message.delivery_id);
    let context = call.context(app, &operation, &id.to_string(), canonical);
    match send_again(app, message, context).await {
        Ok(done) => {
            body.requested += 1;
            body.repeated += usize::from(done.replayed);
            body.recorded.extend(done.position);
        }
        Err(error) if error.code() == "too_many_redeliveries" => body.refused += 1,
        Err(error) => return Err(error),
    }
    body.matched += 1;
    Ok(())
}

/// The next events of the range, behind what was reached.
async fn page(
    app: &App,
    range: &ReadRange,
    reached: &BTreeMap<u16, u64>,
) -> Result<Vec<Arc<StoredEvent>>, ApiError> {
    let journal = app.runtime().journal();
    let size = usize::try_from(PAGE).unwrap_or(usize::MAX);
    if let Some((first, last)) = range.positions {
        if first.partition >= app.runtime().partitions() {
            return Ok(Vec::new());
        }
        let after = reached.get(&first.partition).copied();
        let after = after.unwrap_or(first.position.saturating_sub(1));
        let mut events = journal.read_from(first.partition, after, size).await?;
        events.retain(|event| event.position <= last);
        return Ok(events);
    }
    let (from, to) = range.times;
    let filter = EventFilter { from, to, ..EventFilter::default() };
    let mut events = Vec::new();
    for found in app.reads().events(&filter, reached, PAGE).await? {
        events.extend(journal.event_at(found.at).await?);
    }
    Ok(events)
}
