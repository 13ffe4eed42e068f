//! Replays: events that a subscription has handled, delivered to it once more.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;
use souk_actors::event::{Position, StoredEvent};
use souk_actors::filter::Filter;
use souk_actors::oversight::{Replay, ReplayRequested, ReplayState};
use souk_actors::runtime::{Preview, ReplayStatus, ReplayWish, Replayable};
use souk_actors::subscriber::ReplayScope;
use souk_actors::world::Timestamp;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Fields, FromFields, Reason, Valid};
use super::call::Staff;
use super::params::{Params, path_id};
use super::prefer::{self, Prefer};
use super::problem::ApiError;

/// How many events a second are delivered once more when nobody says otherwise, and at most.
const EVENTS_PER_SECOND_DEFAULT: u32 = 500;
const EVENTS_PER_SECOND_MAX: u32 = 10_000;
/// How long a dry run looks.
const LOOK_WITHIN: Duration = Duration::from_secs(8);
/// How often somebody who waits for the end of a replay looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How replays may stand.
pub(super) const STATES: [&str; 4] = ["running", "completed", "cancelled", "failed"];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_replays, start_replay))
        .routes(routes!(get_replay))
        .routes(routes!(cancel_replay))
}

/// Which events are to be delivered once more, and to whom.
#[derive(ToSchema)]
pub struct ReplayRequest {
    /// The subscription.
    #[schema(example = "notifications")]
    pub subscription: String,
    /// From a time on, or from a position (`<partition>:<position>`) of a partition on.
    #[schema(example = "0:1")]
    pub from: Option<String>,
    /// Before a time, or up to a position of the same partition.
    #[schema(example = "0:812")]
    pub to: Option<String>,
    /// What an event must be like, as for subscriptions: `event_type = "order.placed"`.
    #[schema(max_length = 1024, example = "aggregate_version >= 1")]
    pub filter: Option<String>,
    /// How many events a second at most: 500 when absent.
    #[schema(minimum = 1, maximum = 10_000)]
    pub events_per_second: Option<u32>,
    /// Only say what would be delivered.
    pub dry_run: Option<bool>,
    /// Why. It is recorded.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

/// One end of what is to be replayed.
#[derive(Clone, Copy)]
enum Limit {
    Time(Timestamp),
    Position(Position),
}

struct ReadRequest {
    subscription: String,
    wish: ReplayWish,
    events_per_second: u32,
    dry_run: bool,
    reason: Option<String>,
}

fn limit(fields: &mut Fields<'_>, names: &[&'static str]) -> Option<Limit> {
    let text = fields.optional_text(names)?;
    let position = || text.parse().ok().map(Limit::Position);
    let limit = Timestamp::parse(&text).map(Limit::Time).or_else(position);
    if limit.is_none() {
        fields.error(names[0], "invalid", "must be an RFC 3339 time, or <partition>:<position>");
    }
    limit
}

impl FromFields for ReadRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let subscription = fields.text(&["subscription"]);
        let from = limit(fields, &["from", "from_position"]);
        let to = limit(fields, &["to", "to_position"]);
        let filter: Option<Filter> = fields.optional_parsed(&["filter"]);
        if !fields.has(&["from", "from_position", "to", "to_position", "filter"]) {
            let detail =
                "say which events: from, to or filter (\"from\": \"1970-01-01T00:00:00Z\" are all)";
            fields.error("from", "required", detail);
        }
        let rate = fields.optional_count(&["events_per_second", "eventsPerSecond"]);
        if rate.is_some_and(|rate| rate > EVENTS_PER_SECOND_MAX) {
            let detail = format!("from 1 to {EVENTS_PER_SECOND_MAX}");
            fields.error("events_per_second", "out_of_range", detail);
        }
        let dry_run = match fields.value("dry_run") {
            None => false,
            Some(Value::Bool(dry_run)) => *dry_run,
            Some(_) => {
                fields.error("dry_run", "wrong_type", "must be true or false");
                false
            }
        };
        let Reason { reason } = Reason::from_fields(fields)?;
        let mut wish = ReplayWish {
            scope: ReplayScope { filter, ..ReplayScope::default() },
            ..ReplayWish::default()
        };
        match from {
            Some(Limit::Time(time)) => wish.scope.from = Some(time),
            Some(Limit::Position(first)) => wish.first = Some(first),
            None => {}
        }
        match to {
            Some(Limit::Time(time)) => wish.scope.to = Some(time),
            Some(Limit::Position(last)) => wish.last = Some(last),
            None => {}
        }
        let partitions = (wish.first.map(|of| of.partition), wish.last.map(|of| of.partition));
        if let (Some(first), Some(last)) = partitions
            && first != last
        {
            fields.error("to", "invalid", "must be in the same partition as from");
        }
        let events_per_second = rate.unwrap_or(EVENTS_PER_SECOND_DEFAULT);
        Some(Self { subscription: subscription?, wish, events_per_second, dry_run, reason })
    }
}

/// A replay, and how far it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayBody {
    /// The replay.
    pub replay_id: Uuid,
    /// The subscription.
    pub subscription: String,
    /// `running`, `completed`, `cancelled` or `failed`.
    #[schema(example = "running")]
    pub state: &'static str,
    /// Why a running one does not go on: its subscription is `paused`, its circuit is open
    /// (`circuit_open`), it has no room for another dead letter (`dlq_full`), or waits at a damaged
    /// event (`damaged`).
    pub held_by: Option<&'static str>,
    /// The positions that are meant, by partition.
    pub ranges: Vec<ReplayRangeBody>,
    /// Events from this time on.
    #[schema(format = DateTime)]
    pub from: Option<String>,
    /// Events before this time.
    #[schema(format = DateTime)]
    pub to: Option<String>,
    /// What an event must be like.
    pub filter: Option<String>,
    /// How many events a second at most.
    pub events_per_second: u32,
    /// How many positions there are to look at.
    pub total: u64,
    /// How many were looked at.
    pub read: u64,
    /// Events that the handler took once more.
    pub redelivered: u64,
    /// How many of those led to nothing new: all of it was done before.
    pub duplicates: u64,
    /// Events that the handler could not take: they are dead letters.
    pub failed: u64,
    /// Events that were left to the dead letters: they are letters, or wait behind one of their key.
    pub held: u64,
    /// How much is done, from 0 to 1.
    pub progress: f64,
    /// Who asked for it.
    pub started_by: String,
    /// When.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// Why.
    pub reason: Option<String>,
    /// Who ended it.
    pub ended_by: Option<String>,
    /// When.
    #[schema(format = DateTime)]
    pub ended_at: Option<String>,
    /// Why it was cancelled, or has failed.
    pub end_reason: Option<String>,
}

/// A stretch of a partition.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayRangeBody {
    /// The partition.
    pub partition: u16,
    /// From this position on.
    pub from: u64,
    /// Up to this one; nothing, if it is before `from`.
    pub to: u64,
}

impl From<ReplayStatus> for ReplayBody {
    #[expect(clippy::cast_precision_loss, reason = "a share for people to see")]
    fn from(status: ReplayStatus) -> Self {
        let total = status.total();
        let ReplayStatus { replay: Replay { requested, state, ended }, counts, held } = status;
        let time = |at: Timestamp| at.to_string();
        let ranges = requested.ranges.iter().map(|of| ReplayRangeBody {
            partition: of.partition,
            from: of.after + 1,
            to: of.last,
        });
        let share = if total == 0 { 1.0 } else { counts.read as f64 / total as f64 };
        Self {
            replay_id: requested.replay_id,
            state: match state {
                ReplayState::Running => "running",
                ReplayState::Completed => "completed",
                ReplayState::Cancelled => "cancelled",
                ReplayState::Failed => "failed",
            },
            held_by: held,
            ranges: ranges.collect(),
            from: requested.from.map(time),
            to: requested.to.map(time),
            filter: requested.filter,
            events_per_second: requested.events_per_second,
            total,
            read: counts.read,
            redelivered: counts.redelivered,
            duplicates: counts.duplicates,
            failed: counts.failed,
            held: counts.held,
            progress: share.min(1.0),
            started_by: requested.by,
            started_at: time(requested.at),
            reason: requested.reason,
            ended_by: ended.as_ref().map(|ended| ended.by.clone()),
            ended_at: ended.as_ref().map(|ended| time(ended.at)),
            end_reason: ended.and_then(|ended| ended.reason),
            subscription: requested.subscription,
        }
    }
}

/// What a replay would deliver.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayPreviewBody {
    /// The subscription.
    pub subscription: String,
    /// Always: nothing was done.
    pub dry_run: bool,
    /// How many events.
    pub count: u64,
    /// The first of them, by partition and position.
    pub first: Option<ReplayedEvent>,
    /// The last.
    pub last: Option<ReplayedEvent>,
    /// How many of each type.
    pub by_type: BTreeMap<String, u64>,
    /// How many positions were looked at.
    pub read: u64,
    /// Whether those are all; if not, there was no time to look at more, and there may be more.
    pub complete: bool,
}

/// An event that would be delivered.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayedEvent {
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Where it stands.
    #[schema(example = "0:812")]
    pub position: String,
    /// When it happened.
    #[schema(format = DateTime)]
    pub timestamp: String,
}

impl From<&StoredEvent> for ReplayedEvent {
    fn from(event: &StoredEvent) -> Self {
        Self {
            event_id: event.event_id,
            event_type: event.event_type.to_string(),
            position: event.at().to_string(),
            timestamp: event.timestamp.to_string(),
        }
    }
}

impl ReplayPreviewBody {
    fn new(subscription: String, preview: Preview) -> Self {
        let (first, last) = preview.ends.as_ref().map(|(first, last)| (&**first, &**last)).unzip();
        Self {
            subscription,
            dry_run: true,
            count: preview.count,
            first: first.map(ReplayedEvent::from),
            last: last.map(ReplayedEvent::from),
            by_type: preview.by_type,
            read: preview.read,
            complete: preview.is_complete,
        }
    }
}

/// Refuses what cannot be replayed.
fn check(app: &App, request: &ReadRequest) -> Result<(), ApiError> {
    let name = &request.subscription;
    match app.runtime().replays().replayable(name) {
        Replayable::Yes => {}
        Replayable::Projection => {
            let detail = format!(
                "a read model skips what it has: rebuild it, with POST \
                 /api/v1/admin/projections/{name}/rebuilds or souk rebuild start {name}"
            );
            return Err(ApiError::unprocessable("replay_of_projection", "/subscription", &detail));
        }
        Replayable::Unknown => {
            let detail = "there is no such subscription: see /api/v1/admin/subscriptions";
            return Err(ApiError::unprocessable("subscription_unknown", "/subscription", detail));
        }
    }
    let heads = app.runtime().journal().heads();
    for (pointer, at) in [("/from", request.wish.first), ("/to", request.wish.last)] {
        let is_there = |at: &Position| {
            let mut heads = heads.iter();
            heads.any(|head| head.partition == at.partition && at.position <= head.position)
        };
        if at.is_some_and(|at| !is_there(&at)) {
            let detail = "the journal has not come to this position";
            return Err(ApiError::invalid_field(pointer, "out_of_range", detail));
        }
    }
    Ok(())
}

/// Replay events to a subscription
///
/// What it has handled of a range (`from`, `to`) or a filter is delivered to it once more, in order per
/// key, behind what is new, and no faster than `events_per_second`. Handlers bear a repeat: what they
/// find done is counted under `duplicates` and has no second effect. Dead letters stay what they are.
/// It survives a restart. With `dry_run` the answer (200) says what would be delivered. One runs at a
/// time for each subscription (409 `replay_exists`). A read model is rebuilt instead (422
/// `replay_of_projection`).
#[utoipa::path(post, path = "/admin/replays", tag = "admin", request_body = ReplayRequest,
    params(("Prefer" = Option<String>, Header, description = "`wait=5`: until it is over")),
    responses((status = 202, description = "The replay; look there for progress", body = ReplayBody),
        (status = 200, description = "What it would deliver", body = ReplayPreviewBody)))]
async fn start_replay(
    State(app): State<App>,
    Staff(call): Staff,
    prefer: Prefer,
    valid: Valid<ReadRequest>,
) -> Result<Response, ApiError> {
    check(&app, &valid.body)?;
    let (replays, request) = (app.runtime().replays(), valid.body);
    if request.dry_run {
        let until = Instant::now() + LOOK_WITHIN;
        let preview = replays.preview(&request.subscription, &request.wish, until).await?;
        let body = ReplayPreviewBody::new(request.subscription, preview);
        return Ok(Answer::ok(body).into_response());
    }
    let replay_id = call.new_id(&app, "replays.start");
    let context = call.context(&app, "replays.start", "", &valid.canonical);
    let ReplayScope { from, to, filter } = request.wish.scope.clone();
    let requested = ReplayRequested {
        replay_id,
        by: call.caller().actor_id(),
        ranges: replays.ranges(&request.subscription, &request.wish),
        subscription: request.subscription,
        from,
        to,
        filter: filter.map(|filter| filter.as_str().to_owned()),
        events_per_second: request.events_per_second,
        reason: request.reason,
        at: app.now(),
    };
    let done = replays.start(requested, context).await?;
    let begun = done.value.clone().filter(|replay| replay.requested.replay_id == replay_id);
    let Some(begun) = begun else {
        let running = done.value.map(|replay| replay.requested.replay_id);
        let id = running.map(|id| format!(": see /api/v1/admin/replays/{id}")).unwrap_or_default();
        let detail = format!("a replay of this subscription is running{id}");
        return Err(ApiError::conflict("replay_exists", detail));
    };
    let mut body = ReplayBody::from(replays.status(begun).await);
    if let Some(wait) = prefer.wait {
        let until = Instant::now() + wait;
        while body.state == "running" && Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
            // It has begun: when it cannot be looked at, the answer is how it was.
            let Ok(now) = shown(&app, replay_id).await else { break };
            body = now;
        }
    }
    let answer = Answer::accepted(&location(replay_id), body).after(&done);
    let honoured = Prefer { respond_async: false, ..prefer };
    Ok(match honoured.applied() {
        Some(applied) => answer.with(prefer::APPLIED, &applied).into_response(),
        None => answer.into_response(),
    })
}

fn location(replay_id: Uuid) -> String {
    format!("/api/v1/admin/replays/{replay_id}")
}

async fn shown(app: &App, replay_id: Uuid) -> Result<ReplayBody, ApiError> {
    let status = app.runtime().replays().get(replay_id).await?;
    status.map(ReplayBody::from).ok_or_else(missing)
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such replay; a subscription remembers its latest twenty")
}

/// Replays
///
/// The newest first: those that run, and the latest twenty of each subscription.
#[utoipa::path(get, path = "/admin/replays", tag = "admin",
    params(("subscription" = Option<String>, Query), ("state" = Option<String>, Query)),
    responses((status = 200, description = "All of them", body = Page<ReplayBody>)))]
async fn list_replays(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<ReplayBody>>, ApiError> {
    let state = params.one_of("state", &STATES)?;
    let all = app.runtime().replays().list(params.text("subscription")).await?;
    let all = all.into_iter().map(ReplayBody::from);
    let data = all.filter(|body| state.is_none_or(|state| state == body.state)).collect();
    Ok(Answer::ok(Page::whole(data)))
}

/// A replay
#[utoipa::path(get, path = "/admin/replays/{id}", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The replay and how far it is", body = ReplayBody)))]
async fn get_replay(
    State(app): State<App>,
    _: Staff,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let answer = Answer::ok(shown(&app, path_id(&id)?).await?);
    // It is another one a moment later.
    Ok(answer.with(header::CACHE_CONTROL, "no-store").into_response())
}

/// Cancel a replay
///
/// No more events are delivered; what was delivered stays. 409 `replay_over` when it has ended.
#[utoipa::path(post, path = "/admin/replays/{id}/cancel", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The replay", body = ReplayBody)))]
async fn cancel_replay(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ReplayBody>, ApiError> {
    let id = path_id(&id)?;
    let context = call.plain_context(&app);
    let done = app.runtime().replays().cancel(id, context, valid.body.reason).await?;
    let done = done.ok_or_else(missing)?;
    if done.events == 0 {
        return Err(ApiError::conflict("replay_over", "this replay is over"));
    }
    Ok(Answer::ok(shown(&app, id).await?).after(&done))
}
