//! The sources of publishers outside whose numbered events are dealt with in a way of their own,
//! kept by administrators.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::Staff;
use super::conditional::IfNoneMatch;
use super::problem::ApiError;
use crate::domain::event_source::{
    ConfiguredSource, EventSourceCommand, EventSources, OnViolation, SequencePolicy,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list_event_sources)).routes(routes!(
        get_event_source,
        configure_event_source,
        reset_event_source
    ))
}

/// How the numbers of a source are dealt with; what is absent is as for every source.
#[derive(Debug, ToSchema)]
pub struct SourcePolicy {
    /// What becomes of an event that is ahead of its turn. `buffer` (when absent): it waits until all
    /// before it have come. `reject`: it is refused with 409 `sequence_gap`. `accept_latest`: it comes
    /// to pass at once, and the numbers before it are 409 `sequence_passed` from then on.
    #[schema(example = "reject")]
    pub on_violation: Option<String>,
    /// How long an event waits for those before it until it is a dead letter, in milliseconds;
    /// `SEQUENCE_GAP_TIMEOUT` when absent. What waits already keeps its time.
    #[schema(minimum = 1, maximum = 604_800_000, example = 60_000)]
    pub gap_timeout_ms: Option<u64>,
}

struct ReadPolicy(SequencePolicy);

impl FromFields for ReadPolicy {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let on_violation: Option<OnViolation> =
            fields.optional_parsed(&["on_violation", "onViolation"]);
        let gap_timeout_ms = fields.optional_count(&["gap_timeout_ms", "gapTimeoutMs"]);
        Some(Self(SequencePolicy {
            on_violation: on_violation.unwrap_or_default(),
            gap_timeout_ms: gap_timeout_ms.map(u64::from),
        }))
    }
}

/// A source whose numbers are dealt with in a way of their own.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EventSourceBody {
    /// The source, as its publishers name it.
    #[schema(example = "/erp/berlin")]
    pub source: String,
    /// What becomes of an event that is ahead of its turn.
    #[schema(example = "reject")]
    pub on_violation: &'static str,
    /// How long an event waits for those before it, in milliseconds.
    pub gap_timeout_ms: u64,
    /// Whether that is `SEQUENCE_GAP_TIMEOUT`.
    pub gap_timeout_is_default: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub configured_at: String,
}

fn body(app: &App, source: String, of: &ConfiguredSource) -> EventSourceBody {
    let ConfiguredSource { policy, configured_at } = of;
    let patience = policy.gap_timeout(app.settings().publishing.sequence_gap_timeout);
    EventSourceBody {
        source,
        on_violation: policy.on_violation.as_str(),
        gap_timeout_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        gap_timeout_is_default: policy.gap_timeout_ms.is_none(),
        configured_at: configured_at.to_string(),
    }
}

fn missing() -> ApiError {
    ApiError::not_found("this source has no policy of its own")
}

/// Sources with a policy of their own
///
/// Every other source is as if it were configured with `{}`.
#[utoipa::path(get, path = "/admin/event-sources", tag = "admin",
    responses((status = 200, description = "By name", body = Page<EventSourceBody>)))]
async fn list_event_sources(
    State(app): State<App>,
    _: Staff,
) -> Result<Answer<Page<EventSourceBody>>, ApiError> {
    let sources = app.runtime().aggregate::<EventSources>();
    let read = sources.read(EventSources::id(), |all| all.sources.clone()).await?;
    let all = read.value.into_iter().map(|(source, of)| body(&app, source, &of));
    Ok(Answer::ok(Page::whole(all.collect())))
}

/// A source with a policy of its own
///
/// The source is one part of the path: write `/` as `%2F`. The entity tag is that of all sources
/// together.
#[utoipa::path(get, path = "/admin/event-sources/{source}", tag = "admin",
    params(("source" = String, Path)),
    responses((status = 200, description = "The source", body = EventSourceBody)))]
async fn get_event_source(
    State(app): State<App>,
    _: Staff,
    Path(source): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let name = source.clone();
    let view = move |all: &EventSources| all.sources.get(&name).cloned();
    let read = app.runtime().aggregate::<EventSources>().read(EventSources::id(), view).await?;
    let of = read.value.ok_or_else(missing)?;
    Ok(Answer::ok(body(&app, source, &of)).at_version(read.version, &theirs))
}

/// Give a source a policy of its own
///
/// It holds for what is published from this answer on. What waits already goes on waiting: with
/// `accept_latest` it comes to pass before the next event that is ahead of it.
#[utoipa::path(put, path = "/admin/event-sources/{source}", tag = "admin",
    params(("source" = String, Path)), request_body = SourcePolicy,
    responses((status = 200, description = "The source", body = EventSourceBody)))]
async fn configure_event_source(
    State(app): State<App>,
    Staff(call): Staff,
    Path(source): Path<String>,
    valid: Valid<ReadPolicy>,
) -> Result<Answer<EventSourceBody>, ApiError> {
    let context = call.change_context(&app, "event_sources.configure", &source, &valid.canonical);
    let ReadPolicy(policy) = valid.body;
    let (caller, now, name) = (call.caller(), app.now(), source.clone());
    let view = move |all: &EventSources| all.sources.get(&name).cloned();
    let command = EventSourceCommand::Configure { caller, source: source.clone(), policy, now };
    let sources = app.runtime().aggregate::<EventSources>();
    let (of, done) = split(sources.send(EventSources::id(), command, context, view).await?);
    Ok(Answer::ok(body(&app, source, &of.ok_or_else(missing)?)).after(&done))
}

/// Treat a source like every other
#[utoipa::path(delete, path = "/admin/event-sources/{source}", tag = "admin",
    params(("source" = String, Path)),
    responses((status = 204, description = "It has no policy of its own any more")))]
async fn reset_event_source(
    State(app): State<App>,
    Staff(call): Staff,
    Path(source): Path<String>,
    _: Valid<Nothing>,
) -> Result<StatusCode, ApiError> {
    let mut context = call.plain_context(&app);
    context.expected_version = call.if_match.version();
    let command = EventSourceCommand::Reset { caller: call.caller(), source, now: app.now() };
    let sources = app.runtime().aggregate::<EventSources>();
    sources.send(EventSources::id(), command, context, |_| ()).await?;
    Ok(StatusCode::NO_CONTENT)
}
