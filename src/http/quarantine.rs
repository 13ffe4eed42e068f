//! Aggregates that failed again and again: why, and letting them run again.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;
use souk_actors::command::ErrorId;
use souk_actors::custody::Custody;
use souk_actors::journal::Crash;
use souk_actors::runtime::QuarantineReport;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Reason, Valid};
use super::call::Staff;
use super::conditional::{IfNoneMatch, content_tag};
use super::problem::ApiError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_quarantined))
        .routes(routes!(get_quarantined))
        .routes(routes!(release))
}

/// A quarantined aggregate: which, since when, and what it failed at.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct QuarantineBody(pub Value);

/// Quarantined aggregates
///
/// Each failed again and again, or its stored events are damaged, and refuses commands until it is
/// released.
#[utoipa::path(get, path = "/admin/quarantine", tag = "dlq",
    responses((status = 200, description = "All of them", body = Page<QuarantineBody>)))]
async fn list_quarantined(
    State(app): State<App>,
    _: Staff,
) -> Result<Answer<Page<QuarantineBody>>, ApiError> {
    let all = app.runtime().quarantined();
    let shown = all.iter().filter_map(|record| serde_json::to_value(record).ok());
    Ok(Answer::ok(Page::whole(shown.map(QuarantineBody).collect())))
}

/// Why an aggregate is quarantined.
#[derive(Debug, Serialize, ToSchema)]
pub struct QuarantineDetailBody {
    /// What kind of thing it is.
    #[schema(example = "listing")]
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: Uuid,
    /// Since when.
    #[schema(format = DateTime)]
    pub since: String,
    /// How often it was quarantined so far, this time included.
    pub times: u64,
    /// The crashes that led to it, as far as they were remembered; the last one is the reason.
    pub crashes: Vec<CrashBody>,
    /// What to do.
    pub advice: String,
    /// Where its state is, and what made it so.
    pub history: String,
    /// Where the events are that tell of its quarantines and releases.
    pub events: String,
}

/// A crash of an aggregate.
#[derive(Debug, Serialize, ToSchema)]
pub struct CrashBody {
    /// When.
    #[schema(format = DateTime)]
    pub at: String,
    /// Names it in the log, which has its message.
    #[schema(example = "err_01998d6ff7a97d1cb1d5e6a3c2f3c0de")]
    pub error_id: String,
    /// The id of the command under way, if one was.
    pub command_id: Option<Uuid>,
    /// The command's name; `load`: the aggregate's events could not be folded.
    #[schema(example = "ReserveStock")]
    pub command: String,
}

impl From<Crash> for CrashBody {
    fn from(crash: Crash) -> Self {
        Self {
            at: crash.at.to_string(),
            error_id: ErrorId(crash.error_id).to_string(),
            command_id: Some(crash.command_id).filter(|id| !id.is_nil()),
            command: crash.command,
        }
    }
}

impl From<QuarantineReport> for QuarantineDetailBody {
    fn from(report: QuarantineReport) -> Self {
        let QuarantineReport { record, crashes, times } = report;
        let (kind, id) = (&record.aggregate_type, record.aggregate_id);
        let error_id = ErrorId(record.error_id);
        let history = format!("/api/v1/admin/aggregates/{kind}/{id}/history");
        let advice = if record.command == "load" {
            format!(
                "Its events cannot be folded. The log has the reason under {error_id}, the history shows how far they can. \
                 `souk journal verify` says whether they are damaged: mend them from a backup; else it takes a version \
                 of the program that can apply them. Then release it."
            )
        } else {
            format!(
                "{} crashed it. The log has the message under {error_id}. Release it when the cause is gone, \
                 with another version of the program or without that command; else it comes back here.",
                record.command
            )
        };
        Self {
            aggregate_type: kind.to_string(),
            aggregate_id: id,
            since: record.since.to_string(),
            times,
            crashes: crashes.into_iter().map(CrashBody::from).collect(),
            advice,
            history,
            events: format!(
                "/api/v1/events?aggregateType=quarantine&aggregateId={}",
                Custody::id_of(kind, id)
            ),
        }
    }
}

fn missing() -> ApiError {
    ApiError::not_found("this aggregate is not quarantined")
}

/// Why an aggregate is quarantined
///
/// Since when, the crashes that led to it with their commands (ids and names, never what is in them),
/// and what to do.
#[utoipa::path(get, path = "/admin/quarantine/{aggregate_type}/{id}", tag = "dlq",
    params(("aggregate_type" = String, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Why", body = QuarantineDetailBody)))]
async fn get_quarantined(
    State(app): State<App>,
    _: Staff,
    Path((aggregate_type, id)): Path<(String, Uuid)>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let report = app.runtime().quarantine_report(&aggregate_type, id).await?;
    let body = QuarantineDetailBody::from(report.ok_or_else(missing)?);
    let tag = content_tag(&serde_json::to_vec(&body).unwrap_or_default());
    Ok(theirs.answer(&tag, Answer::ok(body).into_response()))
}

/// Let a quarantined aggregate run again
///
/// Who did so and why is recorded as `aggregate.released`.
#[utoipa::path(post, path = "/admin/quarantine/{aggregate_type}/{id}/release", tag = "dlq",
    params(("aggregate_type" = String, Path), ("id" = Uuid, Path)), request_body = Reason,
    responses((status = 204, description = "It runs again")))]
async fn release(
    State(app): State<App>,
    Staff(call): Staff,
    Path((aggregate_type, id)): Path<(String, Uuid)>,
    valid: Valid<Reason>,
) -> Result<StatusCode, ApiError> {
    let (context, reason) = (call.plain_context(&app), valid.body.reason);
    if app.runtime().release(&aggregate_type, id, context, reason).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(missing())
}
