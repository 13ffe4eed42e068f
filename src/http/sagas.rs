//! Sagas: which there are, how far they have come, and what they are made of.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use souk_actors::saga::{Asked, SagaCommand};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Reason, Valid};
use super::call::{Call, Staff};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::ids::OrderId;
use crate::projections::sagas::{STATES, UNDER_WAY};
use crate::projections::{SagaFilter, SagaRow};

/// The projection that lists rest on.
const VIEW: &str = "sagas-view";
/// How long a scrape waits for the read models.
const MEASURE_WITHIN: Duration = Duration::from_secs(1);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_sagas))
        .routes(routes!(list_definitions))
        .routes(routes!(get_saga))
        .routes(routes!(retry_saga))
        .routes(routes!(compensate_saga))
}

/// A saga in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct SagaSummary {
    /// The instance.
    pub saga_id: Uuid,
    /// The saga.
    #[schema(example = "order")]
    pub saga: String,
    /// Which of its definitions it follows, once it knows.
    #[schema(example = "reserve_first")]
    pub definition: Option<String>,
    /// What it is about: the order.
    pub key: Uuid,
    /// The same.
    pub order_id: Uuid,
    /// How it stands.
    pub status: String,
    /// The step it is at.
    pub step: String,
    /// When it began.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// When it last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

impl From<SagaRow> for SagaSummary {
    fn from(row: SagaRow) -> Self {
        Self {
            saga_id: row.saga_id,
            definition: row.definition,
            saga: row.saga,
            key: row.key,
            order_id: row.key,
            status: row.status,
            step: row.step,
            started_at: row.started_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

/// Sagas
#[utoipa::path(get, path = "/admin/sagas", tag = "admin",
    params(("order_id" = Option<String>, Query), ("saga" = Option<String>, Query),
        ("definition" = Option<String>, Query),
        ("state" = Option<String>, Query, description = "`COLLECTING`, `RUNNING`, `COMPENSATING`, \
            `COMPLETED` or `COMPENSATED`"),
        ("stuck_since" = Option<String>, Query,
            description = "Only those under way that have not changed since this time"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "Sagas, the newest first", body = Page<SagaSummary>)))]
async fn list_sagas(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<SagaSummary>>, ApiError> {
    app.includes(VIEW, &params).await?;
    let filter = SagaFilter {
        key: params.parsed::<OrderId>("order_id")?.map(OrderId::uuid),
        saga: params.text("saga").map(str::to_owned),
        definition: params.text("definition").map(str::to_owned),
        state: params.one_of("state", &STATES)?.map(str::to_owned),
        unchanged_since: params.time("stuck_since")?,
    };
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let rows = app.reads().sagas(&filter, before, limit + 1).await?;
    let cursor = |row: &SagaRow| (row.started_at.millis(), row.saga_id);
    Ok(params.rows(&app, rows, limit, cursor).projected(&app, VIEW))
}

/// An instance: its key, its status, its steps with their times, and what it knows.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct SagaBody(pub Value);

/// A saga with its history
#[utoipa::path(get, path = "/admin/sagas/{id}", tag = "admin", params(("id" = String, Path)),
    responses((status = 200, description = "The saga", body = SagaBody)))]
async fn get_saga(
    State(app): State<App>,
    _: Staff,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let id: Uuid = path_id(&id)?;
    let (version, body) = super::sagas_known::read(&app, id).await?;
    if version == 0 {
        return Err(ApiError::not_found("there is no such saga"));
    }
    Ok(Answer::ok(SagaBody(body)).at_version(version, &theirs))
}

/// Try a saga's current step again
///
/// For one that is stuck, forwards or backwards: the step's commands are sent once more, its time
/// begins anew, and the dead letters that hold the saga up are tried again. What has had effect has
/// none again; what was refused is decided anew. Needs `If-Match`. 409 `saga_over` when it has ended.
#[utoipa::path(post, path = "/admin/sagas/{id}/retry", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The saga, which goes on", body = SagaBody)))]
async fn retry_saga(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<SagaBody>, ApiError> {
    step_in(&app, &call, &id, ("sagas.retry", SagaCommand::Retry), valid).await
}

/// Make a saga turn back
///
/// What it has done is undone, in reverse order, as if its current step had failed. Needs `If-Match`.
/// 409 `saga_over` when it has ended, `saga_compensating` when it turns back already,
/// `saga_past_return` when money would go back for what is shipped.
#[utoipa::path(post, path = "/admin/sagas/{id}/compensate", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The saga, which turns back", body = SagaBody)))]
async fn compensate_saga(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<SagaBody>, ApiError> {
    step_in(&app, &call, &id, ("sagas.compensate", SagaCommand::Compensate), valid).await
}

async fn step_in(
    app: &App,
    call: &Call,
    id: &str,
    (operation, command): (&str, fn(Asked) -> SagaCommand),
    valid: Valid<Reason>,
) -> Result<Answer<SagaBody>, ApiError> {
    call.if_match.required()?;
    let id = super::sagas_known::named(app, path_id(id)?).await?;
    let by = call.caller().actor_id();
    let command = command(Asked { by, reason: valid.body.reason, now: app.now() });
    let context = call.change_context(app, operation, &id.to_string(), &valid.canonical);
    let (body, done) = split(super::sagas_known::tell(app, id, command, context).await?);
    Ok(Answer::ok(SagaBody(body)).after(&done))
}

/// Brings the gauges up to date that count sagas under way. They show what they did before when the
/// read models cannot be read in time.
#[expect(clippy::cast_precision_loss, reason = "gauges")]
pub(super) async fn measure(app: &App) {
    let counted = tokio::time::timeout(MEASURE_WITHIN, app.reads().sagas_under_way()).await;
    let Ok(Ok(counted)) = counted else { return };
    let saga = super::sagas_known::NAME;
    for state in UNDER_WAY {
        let found = counted.iter().find(|(of, status, _)| of == saga && status == state);
        let count = found.map_or(0, |(.., count)| *count);
        metrics::gauge!("souk_sagas_active", "saga" => saga, "state" => state).set(count as f64);
    }
}

/// What a saga is made of.
#[derive(Debug, Serialize, ToSchema)]
pub struct DefinitionBody {
    /// The saga's name.
    pub name: String,
    /// Its variant.
    pub variant: String,
    /// What it listens to.
    pub topics: Vec<String>,
    /// Its steps, in order.
    pub steps: Vec<StepBody>,
    /// The states that an instance can be in, in order, and those of the way back last.
    pub states: Vec<String>,
}

/// A step of a saga.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepBody {
    /// Its name.
    pub name: String,
    /// The state that the saga has once it is done.
    pub done_as: String,
    /// How long each try may take.
    pub time_limit_seconds: u64,
    /// How it is tried again.
    pub retry: StepRetryBody,
    /// Whether the saga goes on when it fails.
    pub optional: bool,
}

/// How a step is tried again.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepRetryBody {
    /// How often after the first try.
    pub max_retries: u32,
}

/// What sagas are made of
#[utoipa::path(get, path = "/admin/sagas/definitions", tag = "admin",
    responses((status = 200, description = "All definitions", body = Page<DefinitionBody>)))]
async fn list_definitions(_: Staff) -> Result<Answer<Page<DefinitionBody>>, ApiError> {
    Ok(Answer::ok(Page::whole(super::sagas_known::definitions())))
}
