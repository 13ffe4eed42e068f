//! `reports`: makes the report of an hour that is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Number;
use souk_actors::command::CommandContext;
use souk_actors::event::{Position, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;
use uuid::Uuid;

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

/// Events for which it is kept where the journal was: far more hours than are ever made at once.
const WAITING_MAX: usize = 256;

/// The handler.
pub struct Reports(Maker);

impl Reports {
    /// Makes reports from these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self(Maker::new(reads))
    }
}

/// Where the journal was when an event was looked at first. Whoever is tried again waits for that and no more,
/// and gets there however much is written meanwhile.
#[derive(Debug, Default)]
struct FirstHeads(Mutex<HashMap<Uuid, Vec<Position>>>);

impl FirstHeads {
    fn of(&self, event_id: Uuid, now: impl FnOnce() -> Vec<Position>) -> Vec<Position> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those are asked for once more where it is so long ago.
        if known.len() == WAITING_MAX && !known.contains_key(&event_id) {
            known.clear();
        }
        known.entry(event_id).or_insert_with(now).clone()
    }

    fn forget(&self, event_id: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&event_id);
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

    /// Every figure of a time that was over when this event was first looked at, from read models that have
    /// seen all of it.
    pub(super) async fn figures(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        (from, to): (Timestamp, Timestamp),
    ) -> Result<Figures, Failure> {
        let span = Span { from, to, step_ms: to.millis() - from.millis() };
        for head in self.first_heads.of(event.event_id, || runtime.journal().heads()) {
            for view in METRICS.iter().map(|metric| metric.projection()) {
                if !runtime.subscriptions().wait_for(view, head, VIEW_WITHIN).await {
                    return Err(Failure::system(format!("{view} has not reached {head} yet")));
                }
            }
        }
        let mut figures = Figures::new();
        for metric in &METRICS {
            let (_, total) = self.reads.figure(metric, span, None).await?;
            figures.insert(metric.name.to_owned(), total.into_iter().map(figure).collect());
        }
        self.first_heads.forget(event.event_id);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_tried_again_waits_for_what_there_was_at_first() {
        let heads = FirstHeads::default();
        let at = |position| move || vec![Position { partition: 0, position }];
        let event = Uuid::from_u128(1);
        assert_eq!(heads.of(event, at(7)), at(7)());
        assert_eq!(heads.of(event, at(9)), at(7)(), "what came since is not waited for");
        assert_eq!(heads.of(Uuid::from_u128(2), at(9)), at(9)());
        heads.forget(event);
        assert_eq!(heads.of(event, at(11)), at(11)());
        (0..10_000).for_each(|id| drop(heads.of(Uuid::from_u128(id), at(1))));
        assert!(heads.0.lock().unwrap().len() <= WAITING_MAX);
    }
}
