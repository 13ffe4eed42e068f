//! `sagas-view`: which processes run, how far they are, and how they ended.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::View;

/// A saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SagaRow {
    /// The instance.
    pub saga_id: Uuid,
    /// Its definition's name.
    pub saga: String,
    /// What it is about: an order's id.
    pub key: Uuid,
    /// How it stands, as the saga's events name it.
    pub status: String,
    /// The step it is at; empty before the first.
    pub step: String,
    /// Since when.
    pub started_at: Timestamp,
    /// The latest change.
    pub updated_at: Timestamp,
}

/// Which sagas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SagaFilter {
    /// About this.
    pub key: Option<Uuid>,
    /// Of this definition.
    pub saga: Option<String>,
    /// That stand so.
    pub state: Option<String>,
}

/// The sagas.
pub struct SagasView;

/// What the view reads of any event of a saga; each has some of it.
#[derive(Deserialize)]
struct Change {
    saga: Option<String>,
    key: Option<Uuid>,
    status: Option<String>,
    step: Option<String>,
}

/// The status after an event that does not name one.
fn status(event_type: &str) -> Option<&'static str> {
    Some(match event_type {
        "saga.started" => "RUNNING",
        "saga.compensating" | "saga.step_failed" => "COMPENSATING",
        "saga.completed" => "COMPLETED",
        "saga.failed" | "saga.compensated" => "COMPENSATED",
        _ => return None,
    })
}

impl View for SagasView {
    const NAME: &'static str = super::SAGAS_VIEW;
    const CONTEXT: &'static str = "sagas";
    const TOPICS: &'static [&'static str] = &["saga.*"];
    const TABLE: &'static str = "sagas_v1";
    const COLUMNS: &'static [&'static str] =
        &["saga_id", "saga", "saga_key", "status", "step", "started_ms", "updated_ms"];
    type Row = SagaRow;

    fn fold(row: Option<SagaRow>, event: &StoredEvent) -> Result<Option<SagaRow>, Failure> {
        let change: Change = serde_json::from_str(&event.data).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Failure::permanent(format!(
                "the data of {} does not fit its schema at line {line}, column {column}",
                event.event_type
            ))
        })?;
        let mut row = match (row, change.key) {
            (Some(row), _) => row,
            // A fact may come before the start; the instance is listed once it is known what of.
            (None, None) => return Ok(None),
            (None, Some(key)) => SagaRow {
                saga_id: event.aggregate_id,
                saga: event.aggregate_type.to_string(),
                key,
                status: "RUNNING".to_owned(),
                step: String::new(),
                started_at: event.timestamp,
                updated_at: event.timestamp,
            },
        };
        if let Some(saga) = change.saga {
            row.saga = saga;
        }
        if let Some(step) = change.step {
            row.step = step;
        }
        if let Some(status) = change.status.or_else(|| status(&event.event_type).map(Into::into)) {
            row.status = status;
        }
        row.updated_at = event.timestamp;
        Ok(Some(row))
    }

    fn values(row: &SagaRow) -> Vec<Param> {
        vec![
            row.saga_id.into(),
            (&row.saga).into(),
            row.key.into(),
            (&row.status).into(),
            (&row.step).into(),
            row.started_at.into(),
            row.updated_at.into(),
        ]
    }

    fn read(row: &Row) -> Result<SagaRow, ReadError> {
        Ok(SagaRow {
            saga_id: row.id(0)?,
            saga: row.text(1)?,
            key: row.id(2)?,
            status: row.text(3)?,
            step: row.text(4)?,
            started_at: row.time(5)?,
            updated_at: row.time(6)?,
        })
    }
}

/// The sagas that match, the newest first.
pub async fn find(db: &ReadDb, filter: &SagaFilter, limit: u32) -> Result<Vec<SagaRow>, ReadError> {
    let query = Query::select(SagasView::COLUMNS, SagasView::TABLE)
        .when(" AND saga_key = ", filter.key)
        .when(" AND saga = ", filter.saga.as_ref())
        .when(" AND status = ", filter.state.as_ref())
        .then(" ORDER BY started_ms DESC, saga_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, SagasView::read).await
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;

    use super::*;
    use crate::projections::testing::row_of;

    #[tokio::test]
    async fn a_saga_is_listed_from_its_start_to_its_end() {
        let (id, key) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let event = |event_type, data| stored_event(event_type, "saga", id, &data);
        let row = row_of::<SagasView>([
            event("saga.fact_observed", serde_json::json!({})),
            event("saga.started", serde_json::json!({ "saga": "order", "key": key })),
            event("saga.step_completed", serde_json::json!({ "step": "reserve" })),
            event("saga.completed", serde_json::json!({})),
        ])
        .await
        .unwrap();
        assert_eq!((row.saga.as_str(), row.key), ("order", key));
        assert_eq!((row.status.as_str(), row.step.as_str()), ("COMPLETED", "reserve"));
    }
}
