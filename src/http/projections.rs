//! Read models: which versions there are, and rebuilding one beside the one that serves.

use axum::extract::{Path, State};
use axum::http::header;
use serde::Serialize;
use souk_actors::command::Done;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Fields, FromFields, Reason, Valid};
use super::call::{Call, Staff};
use super::conditional::version_tag;
use super::params::{Params, wrong};
use super::problem::ApiError;
use crate::domain::projection_care::{ProjectionCare, ProjectionCommand, ProjectionSteered};
use crate::projections::diff::{Difference, Place};
use crate::projections::rebuild::{
    ROWS_PER_SECOND_DEFAULT, ROWS_PER_SECOND_MAX, SteerError, Steering,
};
use crate::projections::versions::{Version, VersionState};

/// Rows that one comparison reads when nobody says otherwise, and at most.
const ROWS_DEFAULT: u64 = 20_000;
const ROWS_MAX: u64 = 200_000;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_projections))
        .routes(routes!(get_projection))
        .routes(routes!(rebuild_projection))
        .routes(routes!(get_diff))
        .routes(routes!(cut_over))
        .routes(routes!(roll_back))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(discard))
}

/// A read model with its versions.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectionBody {
    /// Its name, which is that of its subscription too.
    #[schema(example = "orders-view")]
    pub name: &'static str,
    /// Its bounded context.
    pub context: &'static str,
    /// What it listens to.
    pub topics: Vec<&'static str>,
    /// The version that readers are given.
    pub serving_version: u32,
    /// All versions: one, or two while one was rebuilt.
    pub versions: Vec<ProjectionVersionBody>,
}

/// A version of a read model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectionVersionBody {
    /// Its number.
    pub version: u32,
    /// How it stands.
    pub state: VersionState,
    /// Whether readers are given it.
    pub serves: bool,
    /// How far it has come.
    pub partitions: Vec<PlaceBody>,
    /// How many events it is behind.
    pub lag_events: u64,
    /// How much of the journal it has seen, from 0 to 1.
    pub progress: f64,
    /// How many events a second it was filled with lately; 0 when it is not being filled.
    pub rate_per_second: u64,
    /// The most that it is filled with.
    pub rows_per_second_max: u32,
    /// How long filling it will take at this rate.
    pub estimated_seconds: Option<u64>,
    /// When it was begun; version 1 has been there from the beginning.
    #[schema(format = DateTime)]
    pub started_at: Option<String>,
    /// When it became level.
    #[schema(format = DateTime)]
    pub level_at: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How far a version has come in a partition.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlaceBody {
    /// The partition.
    pub partition: u16,
    /// Everything up to here is in it.
    pub position: u64,
    /// The newest committed position.
    pub head: u64,
}

/// What two versions differ in, as far as this call has compared them.
#[derive(Debug, Serialize, ToSchema)]
pub struct DiffBody {
    /// The version that serves.
    pub serving_version: u32,
    /// The one beside it.
    pub beside_version: u32,
    /// What was found.
    #[serde(flatten)]
    pub difference: Difference,
    /// Whether this was the last part.
    pub complete: bool,
    /// For the next part.
    pub next_cursor: Option<String>,
}

/// A rebuild that is asked for.
#[derive(Debug, ToSchema)]
pub struct RebuildRequest {
    /// Why. It is recorded.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
    /// How many events a second to take at most: 5000 when absent.
    #[schema(minimum = 1, maximum = 100_000)]
    pub rows_per_second: Option<u32>,
}

impl FromFields for RebuildRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let reason = Reason::from_fields(fields);
        let rows_per_second = fields.optional_count(&["rows_per_second", "rowsPerSecond"]);
        if rows_per_second.is_some_and(|rows| rows > ROWS_PER_SECOND_MAX) {
            let detail = format!("from 1 to {ROWS_PER_SECOND_MAX}");
            fields.error("rows_per_second", "out_of_range", detail);
        }
        Some(Self { reason: reason?.reason, rows_per_second })
    }
}

impl From<SteerError> for ApiError {
    fn from(error: SteerError) -> Self {
        let code = match error {
            SteerError::Read(error) => return error.into(),
            SteerError::Beside => "rebuild_exists",
            SteerError::NoVersion => "no_rebuild",
            SteerError::NotNow(_) => "rebuild_not_ready",
        };
        Self::conflict(code, error.to_string())
    }
}

fn known(name: &str) -> Result<&'static str, ApiError> {
    let missing = || ApiError::not_found("there is no such read model");
    crate::projections::PROJECTIONS.into_iter().find(|known| *known == name).ok_or_else(missing)
}

async fn body(app: &App, name: &'static str) -> Result<ProjectionBody, ApiError> {
    let topics = crate::projections::topics();
    let declared = topics.into_iter().find(|(_, known, _)| *known == name);
    let (context, _, topics) = declared.unwrap_or(("", name, &[]));
    let mut versions = Vec::new();
    for version in app.rebuilds().versions(name).await? {
        versions.push(version_body(app, name, version).await?);
    }
    let serving = versions.iter().find(|version| version.serves);
    let serving_version = serving.map_or(1, |version| version.version);
    Ok(ProjectionBody { name, context, topics: topics.to_vec(), serving_version, versions })
}

#[expect(clippy::cast_precision_loss, reason = "a share for people to see")]
async fn version_body(
    app: &App,
    name: &'static str,
    version: Version,
) -> Result<ProjectionVersionBody, ApiError> {
    let stored = app.rebuilds().positions(&version).await?;
    let heads = app.runtime().journal().heads();
    let place = |head: &souk_actors::event::Position| {
        let partition = head.partition;
        let position = stored.get(&partition).copied().unwrap_or(0);
        // What a level version need not store it has come past all the same.
        let live = app.runtime().subscriptions().position(name, partition).unwrap_or(0);
        let position = match version.state {
            VersionState::Level => position.max(live),
            _ => position,
        };
        PlaceBody { partition, position, head: head.position.max(position) }
    };
    let partitions: Vec<_> = heads.iter().map(place).collect();
    let head: u64 = partitions.iter().map(|place| place.head).sum();
    let done: u64 = partitions.iter().map(|place| place.position).sum();
    let (lag_events, rate) = (head - done, app.rebuilds().rate(&version));
    let is_filling = version.state == VersionState::Filling;
    let time = |at: souk_actors::world::Timestamp| at.to_string();
    Ok(ProjectionVersionBody {
        version: version.number,
        state: version.state,
        serves: version.serves,
        partitions,
        lag_events,
        progress: if head == 0 { 1.0 } else { done as f64 / head as f64 },
        rate_per_second: rate,
        rows_per_second_max: version.rows_per_second,
        estimated_seconds: (is_filling && rate > 0).then(|| lag_events.div_ceil(rate)),
        started_at: (version.number > 1).then(|| time(version.started_at)),
        level_at: version.level_at.map(time),
        error: version.error,
    })
}

/// Read models
///
/// Each with its versions: the one that serves, and one beside it while it is rebuilt or kept for
/// the way back.
#[utoipa::path(get, path = "/admin/projections", tag = "admin",
    responses((status = 200, description = "All of them", body = Page<ProjectionBody>)))]
async fn list_projections(
    State(app): State<App>,
    _: Staff,
) -> Result<Answer<Page<ProjectionBody>>, ApiError> {
    let mut all = Vec::new();
    for name in crate::projections::PROJECTIONS {
        all.push(body(&app, name).await?);
    }
    Ok(Answer::ok(Page::whole(all)))
}

/// A read model
///
/// Its `ETag` changes whenever somebody does something with it: send it as `If-Match` with a
/// cut-over, a roll-back or a discard.
#[utoipa::path(get, path = "/admin/projections/{projection}", tag = "admin",
    params(("projection" = String, Path)),
    responses((status = 200, description = "The read model", body = ProjectionBody)))]
async fn get_projection(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    let name = known(&name)?;
    let care = app.runtime().aggregate::<ProjectionCare>();
    let version = care.read(ProjectionCare::id_of(name), |_| ()).await?.version;
    Ok(Answer::ok(body(&app, name).await?).with(header::ETAG, &version_tag(version)))
}

/// Rebuild a read model
///
/// Fills a second version from the journal beside the one that serves, slowly enough that nobody
/// notices. Nothing but its rows is written: no handler runs. It survives a restart. Once it is
/// `level` it stays so, and can be compared (`diff`) and cut over to.
#[utoipa::path(post, path = "/admin/projections/{projection}/rebuilds", tag = "admin",
    params(("projection" = String, Path)), request_body = RebuildRequest,
    responses((status = 202, description = "The read model; look there for progress",
        body = ProjectionBody)))]
async fn rebuild_projection(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<RebuildRequest>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    let name = known(&name)?;
    let rebuilds = app.rebuilds();
    let _alone = rebuilds.steering().await;
    rebuilds.may_begin(name).await?;
    let RebuildRequest { reason, rows_per_second } = valid.body;
    let rebuild = |steered| ProjectionCommand::Rebuild(steered);
    let done = record(&app, &call, (name, 0), reason, rebuild).await?;
    let rate = rows_per_second.unwrap_or(ROWS_PER_SECOND_DEFAULT);
    rebuilds.begin(name, done.value, rate, app.now()).await?;
    let location = format!("/api/v1/admin/projections/{name}");
    Ok(Answer::accepted(&location, body(&app, name).await?).after(&done))
}

/// Puts what somebody does into the journal; returns the latest version's number.
async fn record(
    app: &App,
    call: &Call,
    (name, version): (&'static str, u32),
    reason: Option<String>,
    command: impl FnOnce(ProjectionSteered) -> ProjectionCommand,
) -> Result<Done<u32>, ApiError> {
    let projection = name.to_owned();
    let command = command(ProjectionSteered { projection, version, reason, at: app.now() });
    let mut context = call.plain_context(app);
    context.expected_version = call.if_match.version();
    let care = app.runtime().aggregate::<ProjectionCare>();
    let id = ProjectionCare::id_of(name);
    Ok(care.send(id, command, context, |care| care.version_last).await?)
}

/// Does something with the versions of a read model. What changes which of them there are, or what
/// readers are given, must rest on what was looked at.
async fn steer(
    app: &App,
    call: &Call,
    name: &str,
    what: Steering,
    reason: Option<String>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    match what {
        Steering::CutOver | Steering::RollBack | Steering::Discard => call.if_match.required()?,
        Steering::Pause | Steering::Resume => {}
    }
    let name = known(name)?;
    let rebuilds = app.rebuilds();
    let _alone = rebuilds.steering().await;
    let version = rebuilds.may_steer(name, what).await?;
    let command = match what {
        Steering::Pause => ProjectionCommand::Pause,
        Steering::Resume => ProjectionCommand::Resume,
        Steering::CutOver => ProjectionCommand::CutOver,
        Steering::RollBack => ProjectionCommand::RollBack,
        Steering::Discard => ProjectionCommand::Discard,
    };
    let done = record(app, call, (name, version), reason, command).await?;
    rebuilds.steer(name, what).await?;
    Ok(Answer::ok(body(app, name).await?).after(&done))
}

/// What a new version of a read model changes
///
/// Compares the version that serves with the one beside it, row by row and both at one checkpoint:
/// how many differ, and the first hundred by table and key. A call reads about `limit` rows; go on
/// with `next_cursor` until `complete`. A version that is still being filled lacks what it has not
/// come to.
#[utoipa::path(get, path = "/admin/projections/{projection}/diff", tag = "admin",
    params(("projection" = String, Path),
        ("limit" = Option<u64>, Query,
            description = "How many rows to read: 20000 when absent, at most 200000"),
        ("cursor" = Option<String>, Query, description = "Where an earlier call stopped")),
    responses((status = 200, description = "What differs", body = DiffBody)))]
async fn get_diff(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
    params: Params,
) -> Result<Answer<DiffBody>, ApiError> {
    let name = known(&name)?;
    let limit = params.parsed::<u64>("limit")?.unwrap_or(ROWS_DEFAULT);
    if !(1..=ROWS_MAX).contains(&limit) {
        return Err(wrong("limit", &format!("must be from 1 to {ROWS_MAX}")));
    }
    let from: Option<Place> = params.cursor(app.cursors())?;
    let rebuilds = app.rebuilds();
    // Nothing is dropped or switched meanwhile.
    let _alone = rebuilds.steering().await;
    let versions = rebuilds.versions(name).await?;
    let beside = versions.iter().find(|version| !version.serves).map(|version| version.number);
    let beside_version = beside.ok_or(SteerError::NoVersion)?;
    let (difference, next) = app.reads().diff(name, beside_version, from, limit).await?;
    let serving_version = versions.iter().find(|of| of.serves).map_or(1, |of| of.number);
    let next_cursor = next.map(|next| app.cursors().seal(&params.list(), &next));
    let complete = next_cursor.is_none();
    Ok(Answer::ok(DiffBody { serving_version, beside_version, difference, complete, next_cursor }))
}

/// Let the new version of a read model serve
///
/// At once and for everybody: a reader gets the one version or the other, and `min_position` holds
/// across it. The old version is kept level for the way back until it is discarded.
#[utoipa::path(post, path = "/admin/projections/{projection}/cut-over", tag = "admin",
    params(("projection" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The read model", body = ProjectionBody)))]
async fn cut_over(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    steer(&app, &call, &name, Steering::CutOver, valid.body.reason).await
}

/// Let the older version of a read model serve again
#[utoipa::path(post, path = "/admin/projections/{projection}/roll-back", tag = "admin",
    params(("projection" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The read model", body = ProjectionBody)))]
async fn roll_back(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    steer(&app, &call, &name, Steering::RollBack, valid.body.reason).await
}

/// Stop filling the new version of a read model for a while
#[utoipa::path(post, path = "/admin/projections/{projection}/pause", tag = "admin",
    params(("projection" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The read model", body = ProjectionBody)))]
async fn pause(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    steer(&app, &call, &name, Steering::Pause, valid.body.reason).await
}

/// Go on filling the new version of a read model
///
/// It goes on where it stopped, after a pause or a failure.
#[utoipa::path(post, path = "/admin/projections/{projection}/resume", tag = "admin",
    params(("projection" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The read model", body = ProjectionBody)))]
async fn resume(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    steer(&app, &call, &name, Steering::Resume, valid.body.reason).await
}

/// Drop the version of a read model that does not serve
#[utoipa::path(post, path = "/admin/projections/{projection}/discard", tag = "admin",
    params(("projection" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The read model", body = ProjectionBody)))]
async fn discard(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<ProjectionBody>, ApiError> {
    steer(&app, &call, &name, Steering::Discard, valid.body.reason).await
}
