//! The audit of deliveries.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::Answer;
use super::call::Staff;
use super::params::{Params, wrong};
use super::problem::ApiError;
use crate::audit::watch::{Standing, measure};
use crate::audit::{AuditError, Progress, Report, audit};

/// Events and rows that one call looks at when nobody says otherwise.
const LIMIT_DEFAULT: u64 = 20_000;
/// The most that one call looks at.
const LIMIT_MAX: u64 = 200_000;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_audit)).routes(routes!(get_last_audit))
}

/// What the audit found, and where it goes on.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditBody {
    /// What it found in the part that this call looked at.
    #[serde(flatten)]
    pub report: Report,
    /// Whether this was the last part.
    pub complete: bool,
    /// For the next part.
    pub next_cursor: Option<String>,
}

fn failed(error: &AuditError) -> ApiError {
    tracing::warn!(error = error as &dyn std::error::Error, "the audit could not go on");
    let wait = std::time::Duration::from_secs(1);
    ApiError::unavailable("audit_unavailable", error.to_string(), wait)
}

/// Whether every event has had its effect, once and in order
///
/// Compares every subscription with the journal: the index of events, each row of the read models
/// with the row that its events make, and what must follow from an event by way of a handler.
/// `missing`, `duplicate_effects` and `out_of_order` are 0 in a healthy system. What is not handled
/// yet is `pending`; what has a dead letter, or was given up by an operator, is `excused`. A call
/// looks at `limit` events and rows; go on with `next_cursor` until `complete`. The metric
/// `souk_audit_missing_events` shows what the latest audit of everything found missing, by itself or in
/// one call.
#[utoipa::path(get, path = "/admin/audit", tag = "admin",
    params(
        ("limit" = Option<u64>, Query,
            description = "How many events and rows to look at: 20000 when absent, at most 200000"),
        ("cursor" = Option<String>, Query, description = "Where an earlier call stopped")),
    responses((status = 200, description = "What was found", body = AuditBody)))]
async fn get_audit(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<AuditBody>, ApiError> {
    let limit = params.parsed::<u64>("limit")?.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(wrong("limit", &format!("must be from 1 to {LIMIT_MAX}")));
    }
    let from: Option<Progress> = params.cursor(app.cursors())?;
    let is_first = from.is_none();
    let audited = audit(app.runtime(), app.reads(), from, limit).await;
    let (report, next) = audited.map_err(|error| failed(&error))?;
    // A part that is in order does not say that all is.
    if is_first && next.is_none() {
        measure(&report);
    }
    let next_cursor = next.map(|next| app.cursors().seal(&params.list(), &next));
    Ok(Answer::ok(AuditBody { report, complete: next_cursor.is_none(), next_cursor }))
}

/// How the audits that run by themselves stand.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
pub struct AuditStandingBody(pub Standing);

/// The audit that runs by itself
///
/// Every `AUDIT_INTERVAL` everything is compared, slowly: what the last one found, and when the next
/// begins.
#[utoipa::path(get, path = "/admin/audit/last", tag = "admin",
    responses((status = 200, description = "How the audits stand", body = AuditStandingBody)))]
async fn get_last_audit(State(app): State<App>, _: Staff) -> Answer<AuditStandingBody> {
    Answer::ok(AuditStandingBody(app.audits().standing()))
}
