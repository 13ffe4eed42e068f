//! Aggregates of any type as their events made them: the state as of a version or a time, and what
//! each event changed. For administrators, who read events in clear too.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;
use souk_actors::runtime::{AsOf, StateError, Step};
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::call::Staff;
use super::conditional::{IfNoneMatch, content_tag};
use super::event_json::{Form, write};
use super::events::{self, EventBody};
use super::params::{Params, wrong};
use super::problem::ApiError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_aggregate)).routes(routes!(get_aggregate_history))
}

/// The state of an aggregate.
#[derive(Debug, Serialize, ToSchema)]
pub struct AggregateBody {
    /// What kind of thing it is.
    #[schema(example = "order")]
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: Uuid,
    /// How many events it had had by then.
    pub version: u64,
    /// When the last of them happened.
    #[schema(format = DateTime)]
    pub changed_at: String,
    /// The last of them.
    pub event_id: Uuid,
    /// Its type.
    #[schema(example = "order.paid")]
    pub event_type: String,
    /// Whether it is quarantined now.
    pub quarantined: bool,
    /// The state, in the form that the program has in memory; it may be another one in the next
    /// release. What was erased since reads `[erased]`.
    #[schema(value_type = Object)]
    pub state: Value,
}

/// What an event changed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeBody {
    /// The version that the event made.
    pub version: u64,
    /// The event.
    #[schema(value_type = EventBody)]
    pub event: Value,
    /// What it changed in the state, as a JSON Patch (RFC 6902) from the version before; none: no
    /// state can be made of the events up to here, and `unreadable` says why.
    #[schema(value_type = Option<Vec<Object>>)]
    pub changes: Option<Value>,
    /// Why there is no state here.
    pub unreadable: Option<String>,
}

/// What the path names.
struct Named {
    kind: String,
    id: Uuid,
}

impl Named {
    fn read((kind, id): (String, String)) -> Result<Self, ApiError> {
        let missing = || ApiError::not_found("there is nothing with this id");
        Ok(Self { kind: kind.to_lowercase(), id: events::bare_id(&id).ok_or_else(missing)? })
    }

    fn refusal(&self, app: &App, error: StateError) -> ApiError {
        let Self { kind, id } = self;
        match error {
            StateError::Journal(error) => error.into(),
            StateError::UnknownType => {
                let known = app.runtime().states().types().join(", ");
                ApiError::not_found(format!(
                    "there are no aggregates of this type; there are: {known}"
                ))
            }
            StateError::Unknown => ApiError::not_found(format!("there is no {kind} with this id")),
            StateError::Later(begun) => {
                ApiError::not_found(format!("this {kind} began at {begun}, after that time"))
            }
            StateError::Beyond(head) => {
                let detail = format!("this {kind} is at version {head}, there is no later one yet");
                ApiError::not_found(detail).with_version(head)
            }
            StateError::Unreadable(why) => {
                tracing::error!(aggregate_type = kind, aggregate_id = %id, why, "no state can be made of an aggregate's events");
                let detail = format!(
                    "no state can be made of the events of this {kind}: {why}. An earlier version can be seen, and its history"
                );
                ApiError::conflict("state_unreadable", detail)
            }
        }
    }
}

/// Which state is asked for.
fn as_of(params: &Params, now: Timestamp) -> Result<AsOf, ApiError> {
    let impossible = |name: &str, detail: &str| ApiError::invalid_field(name, "impossible", detail);
    match (version(params)?, params.time("at")?) {
        (None, None) => Ok(AsOf::Now),
        (Some(_), Some(_)) => Err(impossible("at", "give version or at, not both")),
        (Some(version), None) => u64::try_from(version)
            .ok()
            .filter(|version| *version > 0)
            .map(AsOf::Version)
            .ok_or_else(|| impossible("version", "versions count from 1")),
        (None, Some(at)) if at > now => {
            Err(impossible("at", &format!("this is in the future: it is {now}")))
        }
        (None, Some(at)) => Ok(AsOf::Time(at)),
    }
}

/// `version`, as far as it is a whole number; one that is too large for a version is later than
/// every other.
fn version(params: &Params) -> Result<Option<i64>, ApiError> {
    let Some(text) = params.text("version") else { return Ok(None) };
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong("version", "must be a whole number"));
    }
    let furthest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    Ok(Some(text.parse().unwrap_or(furthest)))
}

/// The state of an aggregate
///
/// The latest, or as of a `version`, or as of a time (`at`): what it was then, folded from its events
/// up to there. Times inform and versions are the order: where the clock was set back, `at` gives one
/// of the versions around that time. `aggregate_type` is that of its events. The `ETag` is the
/// version that is shown.
#[utoipa::path(get, path = "/admin/aggregates/{aggregate_type}/{id}", tag = "admin",
    params(("aggregate_type" = String, Path), ("id" = String, Path),
        ("version" = Option<u64>, Query), ("at" = Option<String>, Query)),
    responses((status = 200, description = "The state", body = AggregateBody)))]
async fn get_aggregate(
    State(app): State<App>,
    Staff(call): Staff,
    Path(path): Path<(String, String)>,
    params: Params,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let as_of = as_of(&params, app.now())?;
    let named = Named::read(path)?;
    let states = app.runtime().states();
    let found = states.at(&named.kind, named.id, as_of, call.reveal()).await;
    let found = found.map_err(|error| named.refusal(&app, error))?;
    let event = found.event;
    let quarantined = app.runtime().quarantine(&named.kind, named.id).is_some();
    let body = AggregateBody {
        aggregate_type: event.aggregate_type.to_string(),
        aggregate_id: event.aggregate_id,
        version: event.aggregate_version,
        changed_at: event.timestamp.to_string(),
        event_id: event.event_id,
        event_type: event.event_type.to_string(),
        quarantined,
        state: found.state,
    };
    Ok(Answer::ok(body).at_version(event.aggregate_version, &theirs))
}

/// What happened to an aggregate
///
/// Its events from the first on (or behind version `after`), each with what it changed in the state.
#[utoipa::path(get, path = "/admin/aggregates/{aggregate_type}/{id}/history", tag = "admin",
    params(("aggregate_type" = String, Path), ("id" = String, Path), ("after" = Option<u64>, Query),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "A page of its events", body = Page<ChangeBody>)))]
async fn get_aggregate_history(
    State(app): State<App>,
    Staff(call): Staff,
    Path(path): Path<(String, String)>,
    params: Params,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let limit = usize::try_from(params.limit()?).unwrap_or(usize::MAX);
    let after = match params.cursor::<u64>(app.cursors())? {
        Some(after) => after,
        None => after(&params)?,
    };
    let named = Named::read(path)?;
    let mut steps = Vec::new();
    let states = app.runtime().states();
    let page = (after, limit + 1);
    let mut visit = |step: Step<'_>| {
        let changes = step.states.map(|(before, after)| json_patch::diff(before, after));
        steps.push((step.event.clone(), changes.map_err(str::to_owned)));
    };
    let shown = states.steps(&named.kind, named.id, page, call.reveal(), &mut visit).await;
    shown.map_err(|error| named.refusal(&app, error))?;
    let has_more = steps.len() > limit;
    steps.truncate(limit);
    let last = steps.last().map(|(event, _)| event.aggregate_version);
    let mut data = Vec::with_capacity(steps.len());
    for (event, changes) in steps {
        let (changes, unreadable) = match changes {
            Ok(patch) => (serde_json::to_value(patch).ok(), None),
            Err(why) => (None, Some(why)),
        };
        let version = event.aggregate_version;
        let event = write(&app, &event, Form::Native, call.reveal()).await?;
        data.push(ChangeBody { version, event, changes, unreadable });
    }
    let next_cursor =
        last.filter(|_| has_more).map(|last| app.cursors().seal(&params.list(), &last));
    let page = Page { data, has_more: next_cursor.is_some(), next_cursor };
    let tag = content_tag(&serde_json::to_vec(&page).unwrap_or_default());
    Ok(theirs.answer(&tag, params.with_next(page).into_response()))
}

/// `after`: the version behind which the history begins.
fn after(params: &Params) -> Result<u64, ApiError> {
    let after = params.parsed::<u64>("after")?.unwrap_or(0);
    if i64::try_from(after).is_ok() {
        return Ok(after);
    }
    Err(wrong("after", "must be a version"))
}
