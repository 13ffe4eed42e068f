//! The busiest aggregates, one by one, which metrics do not tell.

use axum::extract::State;
use serde::Serialize;
use souk_actors::hot::{HotKey, Measure};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::call::Staff;
use super::params::{Params, wrong};
use super::problem::ApiError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list_hotkeys))
}

/// A busy aggregate. A figure is null where the aggregate has too little of it to be counted.
#[derive(Debug, Serialize, ToSchema)]
pub struct HotKeyBody {
    /// Its type.
    pub aggregate_type: &'static str,
    /// Which one.
    pub aggregate_id: Uuid,
    /// Commands and reads a second.
    pub commands_per_second: Option<f64>,
    /// How many of them wait in its mailbox, on average.
    pub waiting: Option<f64>,
    /// The part of the time that it works: 1 is always.
    pub busy: Option<f64>,
    /// How much less the figure may be that the list goes by.
    pub overestimate: f64,
}

impl From<HotKey> for HotKeyBody {
    fn from(key: HotKey) -> Self {
        let HotKey { aggregate_type, aggregate_id, commands_per_second, .. } = key;
        let HotKey { waiting, busy, overestimate, .. } = key;
        Self { aggregate_type, aggregate_id, commands_per_second, waiting, busy, overestimate }
    }
}

/// The busiest aggregates
///
/// `by`: `rate` (commands and reads a second, the default), `wait` (how many of them wait in the
/// mailbox) or `handler_time` (the part of the time that the aggregate works). What was half a minute
/// ago counts half. Fixed memory: 256 aggregates of each partition are counted by each figure, and
/// whatever stands for more than that part of the whole is among them.
#[utoipa::path(get, path = "/admin/hotkeys", tag = "admin",
    params(
        ("by" = Option<String>, Query, description = "`rate`, `wait` or `handler_time`"),
        ("limit" = Option<u32>, Query)),
    responses((status = 200, description = "The busiest first", body = Page<HotKeyBody>)))]
async fn list_hotkeys(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<HotKeyBody>>, ApiError> {
    let measure = match params.text("by") {
        None | Some("rate") => Measure::Commands,
        Some("wait") => Measure::Waiting,
        Some("handler_time") => Measure::Busy,
        Some(_) => return Err(wrong("by", "must be rate, wait or handler_time")),
    };
    let busiest = app.runtime().busiest(measure, params.limit()? as usize);
    Ok(Answer::ok(Page::whole(busiest.into_iter().map(HotKeyBody::from).collect())))
}
