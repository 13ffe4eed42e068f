//! `reports`: makes the report of an hour that is over.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Number;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;

use super::{command_failed, decode_failed};
use crate::domain::reporting::{
    Figures, ReportFigure, Reporting, ReportingCommand, ReportingEvent,
};
use crate::projections::ReadModels;
use crate::projections::analytics::{METRICS, Point, Span, Value};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "reports";
/// What it listens to.
pub const TOPICS: &[&str] = &["analytics.report.requested"];

/// How long the read models may take to have all of the hour.
const VIEW_WITHIN: Duration = Duration::from_secs(10);

/// The handler.
pub struct Reports(pub ReadModels);

fn number(value: Value) -> Number {
    match value {
        Value::Whole(value) => value.into(),
        Value::Share(value) => Number::from_f64(value).unwrap_or_else(|| 0.into()),
    }
}

fn figure(point: Point) -> ReportFigure {
    ReportFigure { value: number(point.value), currency: point.currency }
}

/// Every figure of a time that is over, from read models that have seen all of it.
pub(super) async fn figures(
    runtime: &Runtime,
    reads: &ReadModels,
    (from, to): (Timestamp, Timestamp),
) -> Result<Figures, Failure> {
    let span = Span { from, to, step_ms: to.millis() - from.millis() };
    for head in runtime.journal().heads() {
        for view in METRICS.iter().map(|metric| metric.projection()) {
            if !runtime.subscriptions().wait_for(view, head, VIEW_WITHIN).await {
                return Err(Failure::system(format!("{view} has not reached {head} yet")));
            }
        }
    }
    let mut figures = Figures::new();
    for metric in &METRICS {
        let (_, total) = reads.figure(metric, span, None).await?;
        figures.insert(metric.name.to_owned(), total.into_iter().map(figure).collect());
    }
    Ok(figures)
}

#[async_trait]
impl Handler for Reports {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let ReportingEvent::Requested(requested) = change else { return Ok(()) };
        let from = requested.from;
        let figures = figures(runtime, &self.0, (from, requested.to)).await?;
        let record = ReportingCommand::Record { from, figures, now: runtime.world().now() };
        let id = event.aggregate_id;
        let context = CommandContext::because_of(event, "record-report", id);
        let sent = runtime.aggregate::<Reporting>().send(id, record, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}
