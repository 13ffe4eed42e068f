//! The event store, for administrators, and for services within the topics of their tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;
use souk_actors::broker::Pattern;
use souk_actors::event::{Position, StoredEvent};
use souk_actors::journal::codec::Reveal;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::answer::{Answer, Page};
use super::call::{EventReader, LogReader, Staff};
use super::event_json::{EventName, Form, event_name, write};
use super::params::{Params, wrong};
use super::problem::ApiError;
use super::{App, catalogue, events_await, events_stream};
use crate::cloudevents::{CLOUDEVENT, CLOUDEVENTS};
use crate::projections::{DeliveryRow, EventFilter};

/// The projection that filters rest on.
pub(super) const VIEW: &str = "events-index";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_events))
        .routes(routes!(events_await::await_event))
        .merge(events_stream::routes())
        .routes(routes!(get_event))
        .routes(routes!(get_deliveries))
}

/// An event in its native form.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventBody {
    /// The event's id.
    pub event_id: Uuid,
    /// Its number in the log: `position * 1024 + partition`.
    #[schema(example = "evt_ord_831488")]
    pub event_ref: String,
    /// The canonical type.
    #[schema(example = "order.placed")]
    pub event_type: String,
    /// The same in Pascal case.
    #[schema(example = "OrderPlaced")]
    pub name: String,
    /// The major version of the schema of `data`.
    pub version: u16,
    /// The same with its minor version.
    #[schema(example = "1.0")]
    pub schema_version: String,
    /// What kind of thing it happened to.
    #[schema(example = "order")]
    pub aggregate_type: String,
    /// What it happened to.
    pub aggregate_id: Uuid,
    /// Its place in that thing's history, from 1, gapless.
    pub aggregate_version: u64,
    /// The partition of the log.
    pub partition: u16,
    /// The place in it, gapless, in commit order.
    pub position: u64,
    /// When it was decided; informative, positions are the order.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// What one request led to has the same one.
    pub correlation_id: String,
    /// What caused it.
    pub causation_id: String,
    /// What happened; see `/schemas/{event_type}/{version}`.
    #[schema(value_type = Object)]
    pub data: Value,
    /// Who and what.
    #[schema(value_type = Object)]
    pub metadata: Value,
}

/// In which form events are asked for.
pub(super) fn form(params: &Params, headers: &HeaderMap) -> Form {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accept.contains(CLOUDEVENT) || accept.contains(CLOUDEVENTS) {
        Form::Cloud
    } else if params.text("case") == Some("camel") {
        Form::Camel
    } else {
        Form::Native
    }
}

/// One event as an answer.
pub(super) async fn one(
    app: &App,
    event: &StoredEvent,
    form: Form,
    reveal: Reveal,
) -> Result<Response, ApiError> {
    let answer = Answer::ok(write(app, event, form, reveal).await?);
    Ok(match form {
        Form::Cloud => answer.with(header::CONTENT_TYPE, CLOUDEVENT).into_response(),
        Form::Native | Form::Camel => answer.into_response(),
    })
}

/// The filter of a query. Parameters come in either case.
pub(super) fn filter(params: &Params) -> Result<EventFilter, ApiError> {
    let mut filter = about(params)?;
    for named in params.text("event_type").into_iter().flat_map(|named| named.split(',')) {
        let (types, major) = catalogue::resolve(named.trim());
        for event_type in types {
            filter.include(event_type, major);
        }
    }
    Ok(filter)
}

/// The filter of a query, within what its reader may read: to name anything else is 403, and to name
/// nothing is to ask for all that may be read.
pub(super) async fn allowed(
    app: &App,
    reader: &EventReader,
    params: &Params,
) -> Result<EventFilter, ApiError> {
    let mut filter = filter(params)?;
    let Some(topics) = reader.topics() else { return Ok(filter) };
    if let Some(not) = filter.event_types.iter().find(|named| !reader.may_read_type(named)) {
        return Err(reader.out_of_scope(not));
    }
    let is_all = |pattern: &Pattern| pattern.as_str() == "#";
    if filter.event_types.is_empty() && !topics.iter().any(is_all) {
        filter.event_types = readable_types(app, reader).await?;
    }
    Ok(filter)
}

/// Every type that may be read, of the marketplace's and of those that were registered. Never empty: an
/// empty choice would be all of them.
async fn readable_types(app: &App, reader: &EventReader) -> Result<Vec<String>, ApiError> {
    const PAGE: u32 = 200;
    let own = catalogue::all().iter().map(|descriptor| descriptor.event_type);
    let mut types: Vec<_> =
        own.filter(|own| reader.may_read_type(own)).map(str::to_owned).collect();
    let mut after = String::new();
    loop {
        let rows = app.reads().event_types(&after, PAGE).await?;
        let Some(last) = rows.last() else { break };
        after.clone_from(&last.name);
        types
            .extend(rows.into_iter().map(|row| row.name).filter(|name| reader.may_read_type(name)));
    }
    if types.is_empty() {
        types.push(String::new());
    }
    Ok(types)
}

/// The same but for the types of the events.
pub(super) fn about(params: &Params) -> Result<EventFilter, ApiError> {
    Ok(EventFilter {
        aggregate_id: params.text("aggregate_id").map(aggregate_id).transpose()?,
        aggregate_type: params.text("aggregate_type").map(str::to_lowercase),
        correlation_id: params.text("correlation_id").map(str::to_owned),
        causation_id: params.text("causation_id").map(str::to_owned),
        from: params.time("from")?,
        to: params.time("to")?,
        ..EventFilter::default()
    })
}

fn aggregate_id(text: &str) -> Result<Uuid, ApiError> {
    bare_id(text).ok_or_else(|| wrong("aggregateId", "must be a UUID, or <kind>-<uuid>"))
}

/// `<uuid>`, or with its kind before it: `order-<uuid>`, `user_<uuid>`.
pub(super) fn bare_id(text: &str) -> Option<Uuid> {
    let bare = text.len().checked_sub(36).and_then(|at| text.get(at..)).unwrap_or(text);
    Uuid::try_parse(bare).ok()
}

/// Where to go on: the cursor, or `after` as a position or several.
fn after(app: &App, params: &Params) -> Result<BTreeMap<u16, u64>, ApiError> {
    if let Some(cursor) = params.cursor::<BTreeMap<u16, u64>>(app.cursors())? {
        return Ok(cursor);
    }
    params.text("after").map_or_else(|| Ok(BTreeMap::new()), positions)
}

/// Positions or references of events, with commas between.
pub(super) fn positions(text: &str) -> Result<BTreeMap<u16, u64>, ApiError> {
    let positions = text.split(',').map(|part| match event_name(part.trim()) {
        Some(EventName::At(at)) => Ok(at),
        _ => part.trim().parse::<Position>(),
    });
    let positions: Result<Vec<_>, _> = positions.collect();
    let positions = positions.map_err(|error| wrong("after", error))?;
    Ok(positions.into_iter().map(|at| (at.partition, at.position)).collect())
}

/// Events
///
/// In the order of the log. `eventType` takes a canonical type, a name, an alias, or any of them
/// with `.v<major>` behind it, and several with commas between, each with its own. Times are half open:
/// from, not to.
/// `Accept: application/cloudevents-batch+json` gives CloudEvents; `case=camel` gives `eventId`,
/// `eventType`, `aggregateId`, `aggregateType`, `occurredAt`, `payload` and `version`. A service token
/// reads the types of its scopes (`events:read:order.*`); another type is 403 `insufficient_scope`. To it
/// and to an API key personal fields are `[redacted]` without the scope `pii:read`.
#[utoipa::path(get, path = "/events", tag = "events",
    params(("eventType" = Option<String>, Query), ("aggregateId" = Option<String>, Query),
        ("aggregateType" = Option<String>, Query), ("correlationId" = Option<String>, Query),
        ("causationId" = Option<String>, Query), ("from" = Option<String>, Query),
        ("to" = Option<String>, Query), ("after" = Option<String>, Query),
        ("case" = Option<String>, Query), ("limit" = Option<u32>, Query),
        ("cursor" = Option<String>, Query), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of events", body = Page<EventBody>)))]
async fn list_events(
    State(app): State<App>,
    LogReader(reader): LogReader,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let filter = allowed(&app, &reader, &params).await?;
    app.includes(VIEW, &params).await?;
    let (limit, mut at) = (params.limit()?, after(&app, &params)?);
    let mut positions = app.reads().events(&filter, &at, limit + 1).await?;
    let has_more = positions.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    positions.truncate(usize::try_from(limit).unwrap_or(usize::MAX));

    let form = form(&params, &headers);
    let mut data = Vec::with_capacity(positions.len());
    for position in positions.into_iter().map(|found| found.at) {
        if let Some(event) = app.runtime().journal().event_at(position).await? {
            data.push(write(&app, &event, form, reader.reveal()).await?);
        }
        at.insert(position.partition, position.position);
    }
    let next_cursor = has_more.then(|| app.cursors().seal(&params.list(), &at));
    let answer = params.with_next(Page { data, has_more, next_cursor });
    let answer = answer.projected(&app, VIEW);
    Ok(match form {
        Form::Cloud => {
            answer.map(|page| page.data).with(header::CONTENT_TYPE, CLOUDEVENTS).into_response()
        }
        Form::Native | Form::Camel => answer.into_response(),
    })
}

/// The event of this name.
pub(super) async fn find(app: &App, name: &str) -> Result<Arc<StoredEvent>, ApiError> {
    let journal = app.runtime().journal();
    let event = match event_name(name) {
        Some(EventName::Id(id)) => journal.event(id).await?,
        Some(EventName::At(at)) if at.partition < app.runtime().partitions() => {
            journal.event_at(at).await?
        }
        Some(EventName::At(_)) | None => None,
    };
    event.ok_or_else(no_event)
}

fn no_event() -> ApiError {
    ApiError::not_found("there is no such event")
}

/// An event
///
/// By its id (a UUID), or by its number: `evt_<context>_<n>`, `evt_<n>`, `evt-<n>`. For
/// administrators; a service token reads the events that were published with it, once they have come
/// to pass, and the types of its scopes (`events:read:order.*`). Without any such scope the others are not
/// there for it, with one they are 403.
#[utoipa::path(get, path = "/events/{id}", tag = "events",
    params(("id" = String, Path), ("case" = Option<String>, Query)),
    responses((status = 200, description = "The event", body = EventBody)))]
async fn get_event(
    State(app): State<App>,
    reader: EventReader,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let event = find(&app, &id).await?;
    let may_read = reader.may_read_type(&event.event_type) || reader.has_published(&event);
    if !may_read && reader.topics().is_some_and(<[_]>::is_empty) {
        return Err(no_event());
    }
    if !may_read {
        return Err(reader.out_of_scope(&event.event_type));
    }
    one(&app, &event, form(&params, &headers), reader.reveal()).await
}

/// What became of an event at one subscription.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryBody {
    /// The subscription; `webhook:` and its id for a webhook endpoint.
    pub subscription: String,
    /// `acked`, `pending`, `retrying`, `dead` or `waiting` (behind a dead one of its key).
    #[schema(example = "acked")]
    pub state: &'static str,
    /// How often it was tried, where that is known: only exceptions are stored, and what was lately
    /// is remembered until the next start.
    pub attempts: Option<u32>,
    /// Why it failed.
    pub last_error: Option<String>,
    /// When it is tried again, if it is of itself.
    #[schema(format = DateTime)]
    pub next_attempt_at: Option<String>,
    /// When it was handled, as long as that is remembered.
    #[schema(format = DateTime)]
    pub acked_at: Option<String>,
    /// Whether it was handled once more then, and all that it leads to was done before.
    pub duplicate: bool,
}

/// What became of an event everywhere.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveriesBody {
    /// The event.
    pub event_id: Uuid,
    /// When it was stored, and so published: the journal is the outbox.
    #[schema(format = DateTime)]
    pub stored_at: String,
    /// The same.
    #[schema(format = DateTime)]
    pub published_at: String,
    /// Each subscription that gets events of this type.
    pub data: Vec<DeliveryBody>,
}

/// What became of an event
///
/// Derived from checkpoints, dead letters, and what the subscriptions have in hand.
#[utoipa::path(get, path = "/events/{id}/deliveries", tag = "events",
    params(("id" = String, Path)),
    responses((status = 200, description = "Its deliveries", body = DeliveriesBody)))]
async fn get_deliveries(
    State(app): State<App>,
    _: Staff,
    Path(id): Path<String>,
) -> Result<Answer<DeliveriesBody>, ApiError> {
    let event = find(&app, &id).await?;
    let events = std::slice::from_ref(&event);
    let deliveries = app.runtime().subscriptions().deliveries(events).await?;
    let data = deliveries.into_iter().flatten().map(|delivery| DeliveryBody {
        subscription: delivery.subscription.to_owned(),
        state: delivery.state,
        attempts: (delivery.attempts > 0).then_some(delivery.attempts),
        last_error: delivery.last_error,
        next_attempt_at: delivery.next_attempt_at.map(|at| at.to_string()),
        acked_at: delivery.handled.map(|handled| handled.ended_at.to_string()),
        duplicate: delivery.handled.is_some_and(|handled| handled.duplicate),
    });
    let mut data: Vec<_> = data.collect();
    let sent = app.reads().webhook_deliveries_of(event.event_id).await?;
    data.extend(sent.into_iter().map(webhook));
    let stored_at = event.timestamp.to_string();
    let published_at = stored_at.clone();
    let body = DeliveriesBody { event_id: event.event_id, stored_at, published_at, data };
    Ok(Answer::ok(body))
}

/// The delivery to a webhook endpoint, under `webhook:` and its id.
fn webhook(row: DeliveryRow) -> DeliveryBody {
    let is_over = row.status == "delivered";
    DeliveryBody {
        subscription: format!("webhook:{}", row.message.endpoint_id),
        state: match row.status.as_str() {
            "delivered" | "skipped" => "acked",
            "retrying" => "retrying",
            "dead" => "dead",
            _ => "pending",
        },
        attempts: u32::try_from(row.attempts).ok().filter(|attempts| *attempts > 0),
        last_error: row.error,
        next_attempt_at: row.next_attempt_at.map(|at| at.to_string()),
        acked_at: is_over.then(|| row.updated_at.to_string()),
        duplicate: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregate_is_named_with_or_without_its_kind() {
        let id = Uuid::from_u128(7);
        for text in [id.to_string(), format!("order-{id}"), format!("user_{id}")] {
            assert_eq!(aggregate_id(&text).unwrap(), id);
        }
        assert_eq!(aggregate_id("order-123").unwrap_err().code(), "invalid_parameter");
    }
}
