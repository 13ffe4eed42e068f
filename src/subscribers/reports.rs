//! `reports`: makes the report of an hour that is over.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Number;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;

use super::caught_up::FirstHeads;
use super::{command_failed, decode_failed};
use crate::domain::reporting::{
    Figures, ReportFigure, Reporting, ReportingCommand, ReportingEvent,
};
use crate::projections::ReadModels;
use crate::projections::analytics::{METRICS, Metric, Point, Span, Value};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "reports";
/// What it listens to.
pub const TOPICS: &[&str] = &["analytics.report.requested"];

/// The handler.
pub struct Reports(Maker);

impl Reports {
    /// Makes reports from these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self(Maker::new(reads))
    }
}

/// Makes figures of a time that is over.
pub(super) struct Maker {
    reads: ReadModels,
    first_heads: FirstHeads,
}

fn number(value: Value) -> Number {
    match value {
        Value::Whole(value) => value.into(),
        Value::Share(value) => Number::from_f64(value).unwrap_or_else(|| 0.into()),
    }
}

fn figure(point: Point) -> ReportFigure {
    ReportFigure { value: number(point.value), currency: point.currency }
}

impl Maker {
    pub(super) fn new(reads: ReadModels) -> Self {
        Self { reads, first_heads: FirstHeads::default() }
    }

    /// The read models that it makes them from.
    pub(super) fn reads(&self) -> &ReadModels {
        &self.reads
    }

    /// Waits until each of these views has everything that had happened when the event was first looked at.
    pub(super) async fn caught_up(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        views: &[&'static str],
    ) -> Result<(), Failure> {
        Ok(self.first_heads.caught_up(runtime, event, views).await?)
    }

    /// Every figure of a time that was over when this event was first looked at, from read models that are
    /// past all of it.
    pub(super) async fn figures(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        (from, to): (Timestamp, Timestamp),
    ) -> Result<Figures, Failure> {
        let span = Span { from, to, step_ms: to.millis() - from.millis() };
        self.caught_up(runtime, event, &METRICS.each_ref().map(Metric::projection)).await?;
        let mut figures = Figures::new();
        for metric in &METRICS {
            let (_, total) = self.reads.figure(metric, span, None).await?;
            figures.insert(metric.name.to_owned(), total.into_iter().map(figure).collect());
        }
        Ok(figures)
    }
}

#[async_trait]
impl Handler for Reports {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let ReportingEvent::Requested(requested) = change else { return Ok(()) };
        let from = requested.from;
        let figures = self.0.figures(runtime, event, (from, requested.to)).await?;
        let record = ReportingCommand::Record { from, figures, now: runtime.world().now() };
        let id = event.aggregate_id;
        let context = CommandContext::because_of(event, "record-report", id);
        let sent = runtime.aggregate::<Reporting>().send(id, record, context, |_| ()).await;
        sent.map(drop).map_err(|error| command_failed(&error))
    }
}
