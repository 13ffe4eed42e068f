//! Probes, metrics, version and the descriptions of problems: what stands at the root.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::MissedTickBehavior;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::Answer;
use super::params::Params;
use super::problem::{self, ApiError, ProblemKind};
use crate::{disk, telemetry};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(livez))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(startupz))
        .routes(routes!(metrics))
        .routes(routes!(version))
        .routes(routes!(get_problem))
        .routes(routes!(openapi))
}

/// What a probe says.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProbeBody {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// Each check by itself, with `verbose`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckBody>,
}

/// One check.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckBody {
    /// What is checked.
    pub name: &'static str,
    /// Whether it is well.
    pub ok: bool,
}

fn probe(checks: Vec<CheckBody>, verbose: bool) -> Response {
    let well = checks.iter().all(|check| check.ok);
    let body = ProbeBody {
        status: if well { "ok" } else { "unavailable" },
        checks: if verbose { checks } else { Vec::new() },
    };
    let answer = Answer::ok(body).with(header::CACHE_CONTROL, "no-store");
    let mut response = answer.into_response();
    if !well {
        // A probe's answer is read by machines that know no problem documents.
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.extensions_mut().insert(Plain);
    }
    response
}

/// Marks an answer that is no problem document in spite of its status.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

fn alive(app: &App, verbose: bool) -> Response {
    let health = app.runtime().health();
    probe(vec![CheckBody { name: "supervisors_alive", ok: health.supervisors_alive }], verbose)
}

/// Whether the process works at all
#[utoipa::path(get, path = "/livez", tag = "probes",
    params(("verbose" = Option<bool>, Query)),
    responses((status = 200, description = "It does", body = ProbeBody)))]
async fn livez(State(app): State<App>, params: Params) -> Response {
    alive(&app, params.flag("verbose"))
}

/// The same as `/livez`
#[utoipa::path(get, path = "/healthz", tag = "probes",
    responses((status = 200, description = "It does", body = ProbeBody)))]
async fn healthz(State(app): State<App>, params: Params) -> Response {
    alive(&app, params.flag("verbose"))
}

/// Whether requests should be sent here
#[utoipa::path(get, path = "/readyz", tag = "probes",
    params(("verbose" = Option<bool>, Query)),
    responses((status = 200, description = "They should", body = ProbeBody),
        (status = 503, description = "They should not", body = ProbeBody)))]
async fn readyz(State(app): State<App>, params: Params) -> Response {
    probe(readiness(&app), params.flag("verbose"))
}

fn readiness(app: &App) -> Vec<CheckBody> {
    let health = app.runtime().health();
    vec![
        CheckBody { name: "started", ok: app.is_started() },
        CheckBody { name: "journal_writable", ok: health.journal_writable },
        CheckBody { name: "subscriptions_started", ok: health.subscriptions_started },
        CheckBody { name: "supervisors_alive", ok: health.supervisors_alive },
        CheckBody { name: "disk_space", ok: !app.runtime().refuses_outside(disk::LOW) },
        CheckBody { name: "not_draining", ok: !(health.draining || app.is_stopping()) },
    ]
}

/// Asks itself what `/readyz` answers, so often, and counts it; never, when that is nothing.
pub(crate) async fn keep_checking(app: App, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    let mut every = tokio::time::interval(interval);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let result = if readiness(&app).iter().all(|check| check.ok) { "ok" } else { "failed" };
        metrics::counter!("souk_health_checks_total", "result" => result).increment(1);
    }
}

/// Whether migrations and recovery are done
#[utoipa::path(get, path = "/startupz", tag = "probes",
    responses((status = 200, description = "They are", body = ProbeBody),
        (status = 503, description = "They are not", body = ProbeBody)))]
async fn startupz(State(app): State<App>, params: Params) -> Response {
    let checks = vec![CheckBody { name: "started", ok: app.is_started() }];
    probe(checks, params.flag("verbose"))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "Prometheus text 0.0.4", content_type = "text/plain",
        body = String)))]
async fn metrics(State(app): State<App>) -> Response {
    app.runtime().measure().await;
    super::sagas::measure(&app).await;
    let text = telemetry::render_metrics(app.metrics());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// What this is.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionBody {
    /// The program.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The revision it was built from.
    pub revision: &'static str,
    /// `development` or `production`.
    pub mode: &'static str,
}

/// What this is
#[utoipa::path(get, path = "/version", tag = "probes",
    responses((status = 200, description = "Name and version", body = VersionBody)))]
async fn version(State(app): State<App>) -> Answer<VersionBody> {
    Answer::ok(VersionBody {
        name: "souk",
        version: telemetry::VERSION,
        revision: telemetry::REVISION,
        mode: app.settings().mode.as_str(),
    })
}

/// What a kind of problem means
#[utoipa::path(get, path = "/problems/{code}", tag = "documents", params(("code" = String, Path)),
    responses((status = 200, description = "The kind of problem", body = ProblemKind)))]
async fn get_problem(Path(code): Path<String>) -> Result<Answer<ProblemKind>, ApiError> {
    let kind = problem::describe(&code)
        .ok_or_else(|| ApiError::not_found("there is no such kind of problem"))?;
    Ok(Answer::ok(kind).with(header::CACHE_CONTROL, "public, max-age=3600"))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "documents",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
async fn openapi(State(app): State<App>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    let cache = HeaderValue::from_static("no-cache");
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)];
    (headers, app.document()).into_response()
}
