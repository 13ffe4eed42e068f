//! The circuit breakers: what is down, since how many failures, and when it is tried.

use axum::extract::State;
use serde::Serialize;
use souk_actors::circuit::{Circuit, CircuitState};
use souk_actors::world::Timestamp;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page};
use super::call::Staff;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list_circuits))
}

/// A circuit breaker.
#[derive(Debug, Serialize, ToSchema)]
pub struct CircuitBody {
    /// What is behind it: a provider outside (`momo`), or a subscription.
    #[schema(example = "momo")]
    pub target: &'static str,
    /// `provider` or `subscription`.
    #[schema(example = "provider")]
    pub kind: &'static str,
    /// The partition of a subscription.
    pub partition: Option<u16>,
    /// `closed`: all is well. `open`: it is not asked. `half_open`: one probe finds out.
    #[schema(example = "closed")]
    pub state: &'static str,
    /// Failures in a row.
    pub failures: u32,
    /// What failed last, unless all has been well since.
    pub last_error: Option<String>,
    /// When an open one is tried again.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_probe_at: Option<Timestamp>,
}

fn provider(app: &App, circuit: &Circuit) -> CircuitBody {
    let CircuitState { name, failures, probe, error } = circuit.state();
    let left = |at: Instant| at.saturating_duration_since(Instant::now());
    CircuitBody {
        target: circuit.target(),
        kind: "provider",
        partition: None,
        state: name,
        failures,
        last_error: error,
        next_probe_at: probe.map(|at| app.now().plus(left(at))),
    }
}

/// Circuits
///
/// Of the providers outside that are set up, then of the subscriptions in each partition. One opens
/// when what is behind it is down, and closes by itself.
#[utoipa::path(get, path = "/admin/circuits", tag = "admin",
    responses((status = 200, description = "All of them", body = Page<CircuitBody>)))]
async fn list_circuits(State(app): State<App>, _: Staff) -> Answer<Page<CircuitBody>> {
    let circuits = &app.0.parts.market.circuits;
    let mut data: Vec<_> = circuits.iter().map(|circuit| provider(&app, circuit)).collect();
    for subscription in app.runtime().subscriptions().list() {
        for partition in subscription.partitions {
            data.push(CircuitBody {
                target: subscription.name,
                kind: "subscription",
                partition: Some(partition.partition),
                state: partition.circuit,
                failures: partition.circuit_failures,
                last_error: partition.circuit_error,
                next_probe_at: partition.next_probe_at,
            });
        }
    }
    Answer::ok(Page::whole(data))
}
