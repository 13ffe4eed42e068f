//! Sagas as they go: every transition, read from the journal like all streams.

use axum::response::Response;
use serde::Serialize;
use souk_actors::event::{DecodeError, EventPayload as _, StoredEvent};
use souk_actors::saga::{SagaEvent, SagaInstance, Transition};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::events_stream::{StreamRequest, Wanted, open_stream};
use super::params::Params;
use super::problem::ApiError;
use crate::domain::ids::OrderId;
use crate::domain::order_saga::OrderSaga;
use crate::projections::sagas::{STATES, state_after};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(stream_sagas))
}

/// Sagas as they go
///
/// Server-sent events, as `GET /events/stream` has them: the same `id`, `Last-Event-ID`, `after` and
/// end. Each is one step of a saga's log with the transitions that it led to, in order, and the state
/// that the saga has then; who stepped in and why, where somebody did.
#[utoipa::path(get, path = "/admin/sagas/stream", tag = "admin",
    params(("saga" = Option<String>, Query), ("saga_id" = Option<String>, Query),
        ("order_id" = Option<String>, Query), ("state" = Option<String>, Query),
        ("after" = Option<String>, Query), ("seconds" = Option<u64>, Query,
            description = "End after so many seconds, and after what there is now with 0"),
        ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, description = "Transitions", body = String,
        content_type = "text/event-stream")))]
async fn stream_sagas(request: StreamRequest) -> Result<Response, ApiError> {
    let wanted = WantedSagas::read(&request.params)?;
    open_stream(request, wanted).await
}

/// The transitions of these sagas.
struct WantedSagas {
    saga: Option<String>,
    /// Each of these, where it is named.
    ids: [Option<Uuid>; 2],
    state: Option<String>,
}

impl WantedSagas {
    fn read(params: &Params) -> Result<Self, ApiError> {
        let order = params.parsed::<OrderId>("order_id")?;
        let of_order = order.map(|order| SagaInstance::<OrderSaga>::id_of(order.uuid()));
        let state = params.one_of("state", &STATES)?.map(str::to_owned);
        Ok(Self {
            saga: params.text("saga").map(str::to_owned),
            ids: [params.parsed::<Uuid>("saga_id")?, of_order],
            state,
        })
    }

    fn concerns(&self, event: &StoredEvent) -> bool {
        event.event_type.starts_with("saga.")
            && self.saga.as_ref().is_none_or(|saga| **saga == *event.aggregate_type)
            && self.ids.iter().flatten().all(|id| *id == event.aggregate_id)
    }
}

/// What a saga's event led to.
#[derive(Serialize)]
struct SagaStepBody<'a> {
    event_id: Uuid,
    saga_id: Uuid,
    saga: &'a str,
    order_id: Uuid,
    saga_version: u64,
    state: &'static str,
    transitions: &'a [Transition],
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    at: String,
}

impl Wanted for WantedSagas {
    async fn line(
        &self,
        _: &App,
        event: &StoredEvent,
    ) -> Result<Option<(String, String)>, ApiError> {
        if !self.concerns(event) {
            return Ok(None);
        }
        let decoded = match SagaEvent::decode(&event.event_type, event.major, &event.data) {
            // Somebody else's, under a name of this kind.
            Err(DecodeError::UnknownType(_)) => return Ok(None),
            decoded => decoded?,
        };
        // What only came to a saga is no transition, and its end is one already.
        let Some((order_id, transitions, at)) = decoded.followed() else { return Ok(None) };
        let Some(state) = transitions.last().map(state_after) else { return Ok(None) };
        if self.state.as_ref().is_some_and(|wanted| wanted != state) {
            return Ok(None);
        }
        let (by, reason) = match &decoded {
            SagaEvent::RetryRequested(asked) | SagaEvent::CompensationRequested(asked) => {
                (Some(asked.by.as_str()), asked.reason.as_deref())
            }
            _ => (None, None),
        };
        let body = SagaStepBody {
            event_id: event.event_id,
            saga_id: event.aggregate_id,
            saga: &event.aggregate_type,
            order_id,
            saga_version: event.aggregate_version,
            state,
            transitions,
            by,
            reason,
            at: at.to_string(),
        };
        let data = serde_json::to_string(&body).unwrap_or_default();
        Ok(Some((event.event_type.to_string(), data)))
    }
}
