//! What a request led to, and how long that took, for administrators.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use souk_actors::event::StoredEvent;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page};
use super::call::Staff;
use super::events;
use super::graph::{self, GraphBody, Observed, Wanted};
use super::params::{Params, wrong};
use super::problem::ApiError;
use crate::projections::{EventFilter, EventMatch};

/// How many events one graph has at most, and how many nodes.
const EVENTS_MAX: usize = 500;
const NODES_MAX: usize = 2_000;
/// How many events a search looks at together, and how often before it gives what it has found.
const PAGE: u32 = 256;
const PAGES_MAX: usize = 16;
/// How many dead letters a search takes into account.
const LETTERS_MAX: usize = 2_000;
/// How many correlation ids of one W3C trace a search looks at.
const OF_TRACE_MAX: u32 = 2_000;
/// What traces may be looked for by: whether something in them went wrong.
pub(super) const STATUSES: [&str; 2] = ["error", "ok"];
/// The media type of a Mermaid diagram.
const MERMAID: &str = "text/vnd.mermaid; charset=utf-8";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(get_graph))
        .routes(routes!(list_traces))
        .routes(routes!(get_trace))
}

/// What one request led to, in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct TraceSummary {
    /// What ties it together.
    pub correlation_id: String,
    /// `error`: something of it failed and is a dead letter or tried again; else `ok`.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// The type of its first event.
    #[schema(example = "order.placed")]
    pub event_type: String,
    /// How many events it has.
    pub events: u64,
    /// When the first one happened.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// From the first one to the last, in milliseconds.
    pub duration_ms: u64,
}

/// The events of a correlation id, as many as a graph has, and whether there are more.
pub(super) async fn correlated(
    app: &App,
    correlation_id: &str,
) -> Result<(Vec<Arc<StoredEvent>>, bool), ApiError> {
    let journal = app.runtime().journal();
    let mut events = journal.by_correlation(correlation_id, EVENTS_MAX + 1).await?;
    let truncated = events.len() > EVENTS_MAX;
    events.truncate(EVENTS_MAX);
    Ok((events, truncated))
}

/// Events with what became of them.
pub(super) async fn observed(
    app: &App,
    events: Vec<Arc<StoredEvent>>,
) -> Result<Vec<Observed>, ApiError> {
    let deliveries = app.runtime().subscriptions().deliveries(&events).await?;
    let both = events.into_iter().zip(deliveries);
    Ok(both.map(|(event, deliveries)| Observed { event, deliveries }).collect())
}

/// Draws the graph of these events in the form that is asked for.
async fn drawn(
    app: &App,
    params: &Params,
    correlation_id: &str,
    (events, truncated): (Vec<Arc<StoredEvent>>, bool),
) -> Result<Response, ApiError> {
    let mermaid = match params.text("format") {
        None | Some("json") => false,
        Some("mermaid") => true,
        Some(_) => return Err(wrong("format", "must be json or mermaid")),
    };
    let wanted = Wanted {
        projections: params.flag("projections"),
        nodes_max: NODES_MAX,
        truncated,
        now: app.now(),
    };
    let graph = graph::draw(correlation_id, &observed(app, events).await?, &wanted);
    if mermaid {
        return Ok(([(header::CONTENT_TYPE, MERMAID)], graph::mermaid(&graph)).into_response());
    }
    Ok(Answer::ok(graph).into_response())
}

/// How an event came about and what it led to
///
/// From the request on: events, the handlers of each, and what those caused. `projections=true` also
/// shows the subscriptions that keep rows, which otherwise show only while they owe something.
/// `format=mermaid` gives a Mermaid flow chart.
#[utoipa::path(get, path = "/events/{id}/graph", tag = "events",
    params(("id" = String, Path), ("format" = Option<String>, Query),
        ("projections" = Option<bool>, Query)),
    responses((status = 200, description = "The graph",
        content((GraphBody = "application/json"), (String = "text/vnd.mermaid")))))]
async fn get_graph(
    State(app): State<App>,
    _: Staff,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let event = events::find(&app, &id).await?;
    let (mut all, truncated) = correlated(&app, &event.correlation_id).await?;
    if !all.iter().any(|of| of.event_id == event.event_id) {
        all.push(event.clone());
    }
    let kept = graph::around(&all, event.event_id);
    all.retain(|of| kept.contains(&of.event_id));
    drawn(&app, &params, &event.correlation_id, (all, truncated)).await
}

/// The correlation ids of what has failed and is a dead letter, or is being tried again: of the
/// first [`LETTERS_MAX`] letters.
async fn failed(app: &App) -> Result<BTreeSet<String>, ApiError> {
    let mut spans: Vec<_> = app
        .runtime()
        .dead_letters()
        .list(None, LETTERS_MAX)
        .await?
        .into_iter()
        .map(|letter| (letter.partition, letter.position, letter.position))
        .collect();
    let retried = app.runtime().subscriptions().retried();
    spans.extend(retried.into_iter().map(|(at, last)| (at.partition, at.position, last)));
    spans.sort_unstable();
    spans.dedup();
    let mut failed = BTreeSet::new();
    for (partition, first, last) in spans {
        failed.extend(app.reads().correlations(partition, first, last).await?);
    }
    Ok(failed)
}

/// The correlation ids of the W3C trace that is asked for; none: no trace is.
async fn of_trace(app: &App, params: &Params) -> Result<Option<BTreeSet<String>>, ApiError> {
    let Some(trace_id) = params.text("trace_id") else { return Ok(None) };
    if trace_id.len() != 32 || !trace_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong("trace_id", "must be 32 hexadecimal digits"));
    }
    let trace_id = trace_id.to_ascii_lowercase();
    let found = app.reads().correlations_of_trace(&trace_id, OF_TRACE_MAX).await?;
    Ok(Some(found.into_iter().collect()))
}

/// The first event of a trace that matches.
async fn first_match(
    app: &App,
    filter: &EventFilter,
    correlation_id: &str,
) -> Result<Option<EventMatch>, ApiError> {
    if filter.correlation_id.as_ref().is_some_and(|wanted| wanted != correlation_id) {
        return Ok(None);
    }
    let filter = EventFilter { correlation_id: Some(correlation_id.to_owned()), ..filter.clone() };
    Ok(app.reads().events(&filter, &BTreeMap::new(), 1).await?.into_iter().next())
}

/// Where a search goes on: in each partition, behind this position.
type Searched = BTreeMap<u16, u64>;

/// The next traces that match, each at the first of its events that does, and where to go on; none:
/// that was all.
async fn search(
    app: &App,
    filter: &EventFilter,
    fits: impl Fn(&str) -> bool,
    mut at: Searched,
    limit: usize,
) -> Result<(Vec<String>, Option<Searched>), ApiError> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..PAGES_MAX {
        let page = app.reads().events(filter, &at, PAGE).await?;
        let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        for EventMatch { at: place, correlation_id } in page {
            if found.len() == limit {
                return Ok((found, Some(at)));
            }
            at.insert(place.partition, place.position);
            if !fits(&correlation_id) || !seen.insert(correlation_id.clone()) {
                continue;
            }
            // One that begins before this page was on an earlier one.
            let first = first_match(app, filter, &correlation_id).await?;
            if first.is_some_and(|first| first.at == place) {
                found.push(correlation_id);
            }
        }
        if is_last {
            return Ok((found, None));
        }
    }
    Ok((found, Some(at)))
}

/// The traces out of a few, in the order of the first of their events that match.
async fn search_among(
    app: &App,
    filter: &EventFilter,
    few: BTreeSet<String>,
    at: Searched,
    limit: usize,
) -> Result<(Vec<String>, Option<Searched>), ApiError> {
    let mut found = Vec::new();
    for correlation_id in few {
        let first = first_match(app, filter, &correlation_id).await?;
        let behind =
            |of: &EventMatch| at.get(&of.at.partition).is_none_or(|last| of.at.position > *last);
        found.extend(first.filter(behind));
    }
    found.sort_unstable_by_key(|of| (of.at.position, of.at.partition));
    let more = found.len() > limit;
    found.truncate(limit);
    let mut next = at;
    for of in &found {
        next.insert(of.at.partition, of.at.position);
    }
    let found = found.into_iter().map(|of| of.correlation_id).collect();
    Ok((found, more.then_some(next)))
}

/// Search for traces
///
/// In the order of the log: those with an event that fits all of `from`, `to` (half open),
/// `event_type` (as for `/events`) and `aggregate_id`, and that stand as `status` says. `trace_id` is
/// the W3C's (the second part of `traceparent`): all requests that came under it, of 2,000 at most. A
/// page may be short, or empty, although there are more: `has_more` tells.
#[utoipa::path(get, path = "/traces", tag = "events",
    params(("from" = Option<String>, Query), ("to" = Option<String>, Query),
        ("status" = Option<String>, Query, description = "`error` or `ok`; any when absent"),
        ("event_type" = Option<String>, Query), ("aggregate_id" = Option<String>, Query),
        ("aggregate_type" = Option<String>, Query), ("correlation_id" = Option<String>, Query),
        ("trace_id" = Option<String>, Query),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of traces", body = Page<TraceSummary>)))]
async fn list_traces(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<TraceSummary>>, ApiError> {
    let filter = events::filter(&params)?;
    let wanted = params.one_of("status", &STATUSES)?;
    app.includes(events::VIEW, &params).await?;
    let limit = usize::try_from(params.limit()?).unwrap_or(usize::MAX);
    let at = params.cursor::<Searched>(app.cursors())?.unwrap_or_default();
    let failed = failed(&app).await?;
    let (found, next) = match (wanted, of_trace(&app, &params).await?) {
        (Some("error"), of_trace) => {
            let few =
                failed.iter().filter(|id| of_trace.as_ref().is_none_or(|of| of.contains(*id)));
            search_among(&app, &filter, few.cloned().collect(), at, limit).await?
        }
        (_, Some(mut of_trace)) => {
            of_trace.retain(|id| wanted.is_none() || !failed.contains(id));
            search_among(&app, &filter, of_trace, at, limit).await?
        }
        (Some(_), None) => search(&app, &filter, |id| !failed.contains(id), at, limit).await?,
        (None, None) => search(&app, &filter, |_| true, at, limit).await?,
    };
    let mut data = Vec::with_capacity(found.len());
    for correlation_id in found {
        let Some(trace) = app.reads().trace(&correlation_id).await? else { continue };
        let took = trace.last.since(trace.first).as_millis();
        data.push(TraceSummary {
            status: if failed.contains(&correlation_id) { "error" } else { "ok" },
            event_type: trace.event_type,
            events: trace.events,
            started_at: trace.first.to_string(),
            duration_ms: u64::try_from(took).unwrap_or(u64::MAX),
            correlation_id,
        });
    }
    let next_cursor = next.map(|next| app.cursors().seal(&params.list(), &next));
    let page = Page { data, has_more: next_cursor.is_some(), next_cursor };
    Ok(params.with_next(page).projected(&app, events::VIEW))
}

/// What a request led to
///
/// Everything with one correlation id, as a graph; see `/events/{id}/graph`.
#[utoipa::path(get, path = "/traces/{correlation_id}", tag = "events",
    params(("correlation_id" = String, Path), ("format" = Option<String>, Query),
        ("projections" = Option<bool>, Query)),
    responses((status = 200, description = "The graph",
        content((GraphBody = "application/json"), (String = "text/vnd.mermaid")))))]
async fn get_trace(
    State(app): State<App>,
    _: Staff,
    Path(correlation_id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let (all, truncated) = correlated(&app, &correlation_id).await?;
    if all.is_empty() {
        return Err(ApiError::not_found("nothing has happened under this correlation id"));
    }
    drawn(&app, &params, &correlation_id, (all, truncated)).await
}
