//! Waiting for an event, one that has already been stored included.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use souk_actors::event::StoredEvent;
use tokio::time::Instant;

use super::App;
use super::call::LogReader;
use super::events::{self, EventBody};
use super::events_stream;
use super::params::{Params, wrong};
use super::prefer::{self, Prefer};
use super::problem::ApiError;
use crate::projections::EventFilter;

/// How long a caller waits when nobody says otherwise, and at most.
const TIMEOUT_DEFAULT_SECONDS: u64 = 5;
const TIMEOUT_MAX_SECONDS: u64 = 30;
/// How many events are read from the log at once.
const BATCH: usize = 256;

/// Wait for an event
///
/// Answers with the first event that matches, already stored or yet to come; 204 when none has come
/// within `timeout` seconds (5 when absent, at most 30; or `Prefer: wait`, at most 10). Name what it
/// belongs to: `correlationId`, `causedBy` (the id of an event or a request), or `aggregateId`. Nothing
/// is missed between a command and this: send its `Souk-Position` as `after` (only what comes behind
/// it) or as `min_position` (that included). Partitions that it does not name are looked at from the
/// beginning.
#[utoipa::path(get, path = "/events/await", tag = "events",
    params(("eventType" = Option<String>, Query), ("correlationId" = Option<String>, Query),
        ("causedBy" = Option<String>, Query), ("aggregateId" = Option<String>, Query),
        ("after" = Option<String>, Query), ("min_position" = Option<String>, Query),
        ("timeout" = Option<u64>, Query), ("case" = Option<String>, Query)),
    responses((status = 200, description = "The event", body = EventBody),
        (status = 204, description = "None has come in time")))]
pub(super) async fn await_event(
    State(app): State<App>,
    LogReader(reader): LogReader,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut filter = events::allowed(&app, &reader, &params).await?;
    if let Some(cause) = params.text("caused_by") {
        filter.causation_id = Some(cause.to_owned());
    }
    let belongs = filter.correlation_id.is_some()
        || filter.causation_id.is_some()
        || filter.aggregate_id.is_some();
    if !belongs {
        let problem = "or causedBy, or aggregateId, is required";
        return Err(wrong("correlationId", problem));
    }
    let after = start(&app, &params)?;
    let preferred = params.wait().filter(|_| params.text("timeout").is_none());
    let seconds = params.parsed::<u64>("timeout")?.unwrap_or(TIMEOUT_DEFAULT_SECONDS);
    let timeout = Duration::from_secs(seconds.min(TIMEOUT_MAX_SECONDS));
    let until = Instant::now() + preferred.unwrap_or(timeout);
    let mut response = match first(&app, &filter, after, until).await? {
        Some(event) => {
            let form = events::form(&params, &headers);
            events::one(&app, &event, form, reader.reveal()).await?
        }
        None => StatusCode::NO_CONTENT.into_response(),
    };
    let applied = Prefer { wait: preferred, respond_async: false }.applied();
    if let Some(applied) = applied.and_then(|applied| HeaderValue::from_str(&applied).ok()) {
        response.headers_mut().insert(prefer::APPLIED, applied);
    }
    Ok(response)
}

/// Behind which position of each partition to look.
fn start(app: &App, params: &Params) -> Result<BTreeMap<u16, u64>, ApiError> {
    let behind = events_stream::behind(app, params)?;
    let mut least = params.min_position()?;
    if least.is_empty() {
        return events_stream::everywhere(app, "after", &behind.unwrap_or_default());
    }
    if behind.is_some() {
        return Err(wrong("min_position", "or after, not both"));
    }
    // They must be there themselves.
    events_stream::everywhere(app, "min_position", &least)?;
    for position in least.values_mut() {
        *position = position.saturating_sub(1);
    }
    events_stream::everywhere(app, "min_position", &least)
}

/// The index answers for the past up to where it has come; from there on the log itself is read.
async fn first(
    app: &App,
    filter: &EventFilter,
    mut after: BTreeMap<u16, u64>,
    until: Instant,
) -> Result<Option<Arc<StoredEvent>>, ApiError> {
    let subscriptions = app.runtime().subscriptions();
    let start = after.clone();
    for (of, position) in &mut after {
        *position = subscriptions.position(events::VIEW, *of).unwrap_or(0).max(*position);
    }
    let indexed = app.reads().events(filter, &start, 1).await?;
    if let Some(found) = indexed.first()
        && let Some(event) = app.runtime().journal().event_at(found.at).await?
    {
        return Ok(Some(event));
    }
    loop {
        for (&partition, position) in &mut after {
            if let Some(event) = next_in(app, filter, partition, position).await? {
                return Ok(Some(event));
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        app.runtime().journal().wait_past_any(&after, left).await;
    }
}

/// The first match behind `position`, which moves on over what does not match.
async fn next_in(
    app: &App,
    filter: &EventFilter,
    partition: u16,
    position: &mut u64,
) -> Result<Option<Arc<StoredEvent>>, ApiError> {
    loop {
        let batch = app.runtime().journal().read_from(partition, *position, BATCH).await?;
        let Some(last) = batch.last() else { return Ok(None) };
        *position = last.position;
        if let Some(event) = batch.iter().find(|event| matches(filter, event)) {
            return Ok(Some(event.clone()));
        }
    }
}

/// The index's filter, on an event in hand.
pub(super) fn matches(filter: &EventFilter, event: &StoredEvent) -> bool {
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|of| of == is);
    filter.includes(&event.event_type, event.major)
        && filter.aggregate_id.is_none_or(|id| id == event.aggregate_id)
        && fits(&filter.aggregate_type, &event.aggregate_type)
        && fits(&filter.correlation_id, &event.correlation_id)
        && fits(&filter.causation_id, &event.causation_id)
        && filter.from.is_none_or(|from| event.timestamp >= from)
        && filter.to.is_none_or(|to| event.timestamp < to)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use souk_actors::testing::stored_event;
    use souk_actors::world::Timestamp;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_filter_is_all_of_its_parts() {
        let event = stored_event("order.placed", "order", Uuid::from_u128(1), &json!({}));
        assert!(matches(&EventFilter::default(), &event));
        let types = |types: &[&str]| EventFilter {
            event_types: types.iter().map(|of| (*of).to_owned()).collect(),
            ..EventFilter::default()
        };
        assert!(matches(&types(&["order.paid", "order.placed"]), &event));
        assert!(!matches(&types(&["order.paid"]), &event));
        let mut majors = EventFilter::default();
        majors.include("order.placed".to_owned(), Some(event.major + 1));
        majors.include("order.paid".to_owned(), Some(event.major));
        assert!(!matches(&majors, &event));
        majors.include("order.placed".to_owned(), Some(event.major));
        assert!(matches(&majors, &event));
        let other =
            EventFilter { correlation_id: Some("other".into()), ..types(&["order.placed"]) };
        assert!(!matches(&other, &event));
        let at = Timestamp::from_millis(0);
        assert!(matches(&EventFilter { from: Some(at), ..EventFilter::default() }, &event));
        assert!(!matches(&EventFilter { to: Some(at), ..EventFilter::default() }, &event));
    }
}
