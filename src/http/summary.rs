//! The main figures in one answer, for people without Prometheus.

use axum::extract::State;
use serde::Serialize;
use souk_actors::subscriber::{PartitionStatus, SubscriptionStatus};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::Answer;
use super::call::Staff;
use super::params::Params;
use super::problem::ApiError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_metrics_summary))
}

/// The main figures. Counts are since the start of the process.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SummaryBody {
    /// Events that were published.
    pub events_published: u64,
    /// Events that subscriptions have handled; each counts for every subscription that it went to.
    pub events_processed: u64,
    /// Attempts that failed.
    pub events_failed: u64,
    /// How long an attempt takes on average, in milliseconds.
    pub average_processing_time: f64,
    /// Events that subscriptions have not handled yet.
    pub queue_size: u64,
    /// Subscriptions that run.
    pub subscriptions_active: usize,
    /// More of it, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<DetailsBody>,
}

/// What stands behind the main figures.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetailsBody {
    /// How long this process has served.
    pub uptime_seconds: u64,
    /// Its version.
    pub version: &'static str,
    /// Commands and reads that aggregates take in a second; half of what was half a minute ago.
    pub commands_per_second: f64,
    /// How many of them wait in mailboxes, on average.
    pub commands_waiting: f64,
    /// Commands of clients that are not answered yet.
    pub in_flight_outside: usize,
    /// The same of sagas, timers and subscribers.
    pub in_flight_inside: usize,
    /// The newest position of each partition.
    pub journal: Vec<u64>,
    /// Dead letters there are now: dead, waiting and skipped.
    pub dead_letters: usize,
    /// Sagas that are not over, by state.
    pub sagas: Vec<SagasBody>,
    /// Every subscription.
    pub subscriptions: Vec<BacklogBody>,
}

/// How many sagas have a state.
#[derive(Debug, Serialize, ToSchema)]
pub struct SagasBody {
    /// The saga's name.
    pub saga: String,
    /// The state.
    pub state: String,
    /// How many have it.
    pub count: u64,
}

/// How far a subscription is behind, over all partitions.
#[derive(Debug, Serialize, ToSchema)]
pub struct BacklogBody {
    /// The subscription.
    pub subscription: &'static str,
    /// `running`, `paused`, `dlq_full`, `circuit_open` or `damaged`.
    pub state: &'static str,
    /// Events that it has not handled.
    pub lag_events: u64,
    /// How old the oldest of them is; null: there is none.
    pub lag_seconds: Option<f64>,
    /// Events it handles a second.
    pub rate: f64,
    /// Its dead letters.
    pub dead_letters: usize,
}

/// The main figures
///
/// Exactly the six figures of a dashboard; with `details=true` also what stands behind them.
#[utoipa::path(get, path = "/admin/metrics/summary", tag = "admin",
    params(("details" = Option<bool>, Query)),
    responses((status = 200, description = "The figures", body = SummaryBody)))]
async fn get_metrics_summary(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<SummaryBody>, ApiError> {
    if !params.truth("details")?.unwrap_or(false) {
        return Ok(Answer::ok(summary(&app, &app.runtime().subscriptions().list())));
    }
    let all = app.runtime().subscriptions().inspect().await;
    let details = Some(details(&app, &all).await?);
    Ok(Answer::ok(SummaryBody { details, ..summary(&app, &all) }))
}

fn summary(app: &App, all: &[SubscriptionStatus]) -> SummaryBody {
    let sum = |of: fn(&PartitionStatus) -> u64| {
        all.iter().flat_map(|status| &status.partitions).map(of).sum()
    };
    let attempts: u64 = sum(|of| of.attempts);
    let seconds: f64 =
        all.iter().flat_map(|status| &status.partitions).map(|of| of.attempts_seconds).sum();
    #[expect(clippy::cast_precision_loss, reason = "an average")]
    let average_processing_time = seconds * 1_000.0 / attempts.max(1) as f64;
    SummaryBody {
        events_published: app.runtime().published(),
        events_processed: sum(|of| of.handled),
        events_failed: sum(|of| of.failed),
        average_processing_time,
        queue_size: sum(|of| of.lag_events),
        subscriptions_active: all.iter().filter(|status| status.state == "running").count(),
        details: None,
    }
}

async fn details(app: &App, all: &[SubscriptionStatus]) -> Result<DetailsBody, ApiError> {
    let runtime = app.runtime();
    let heat = runtime.heat();
    let (in_flight_outside, in_flight_inside) = runtime.in_flight();
    let sagas = app.reads().sagas_under_way().await?;
    let subscriptions: Vec<_> = all.iter().map(backlog).collect();
    Ok(DetailsBody {
        uptime_seconds: app.uptime().as_secs(),
        version: crate::telemetry::VERSION,
        commands_per_second: heat.commands_per_second,
        commands_waiting: heat.waiting,
        in_flight_outside,
        in_flight_inside,
        journal: runtime.journal().heads().iter().map(|head| head.position).collect(),
        dead_letters: subscriptions.iter().map(|of| of.dead_letters).sum(),
        sagas: sagas
            .into_iter()
            .map(|(saga, state, count)| SagasBody { saga, state, count })
            .collect(),
        subscriptions,
    })
}

fn backlog(status: &SubscriptionStatus) -> BacklogBody {
    let partitions = &status.partitions;
    BacklogBody {
        subscription: status.name,
        state: status.state,
        lag_events: partitions.iter().map(|of| of.lag_events).sum(),
        lag_seconds: partitions.iter().filter_map(|of| of.lag_seconds).reduce(f64::max),
        rate: partitions.iter().map(|of| of.rate).sum(),
        dead_letters: partitions.iter().map(|of| of.dlq_letters).sum(),
    }
}
