//! `sagas-view`: which processes run, how far they are, and how they ended.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::saga::{SagaEvent, Transition};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};

/// A saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SagaRow {
    /// The instance.
    pub saga_id: Uuid,
    /// Its definition's name.
    pub saga: String,
    /// What it is about: an order's id.
    pub key: Uuid,
    /// How it stands: `COLLECTING`, `RUNNING`, `COMPENSATING`, `COMPLETED` or `COMPENSATED`.
    pub status: String,
    /// The step it is at, or is undoing; empty before the first.
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

/// What the view reads of any event of a saga: not what came to it, only what followed.
#[derive(Deserialize)]
struct Change {
    saga: String,
    key: Uuid,
    #[serde(default)]
    transitions: Vec<Transition>,
    /// How it ended, if it did.
    result: Option<String>,
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
        let change: Change = read_data::<SagaEvent, _>(event)?;
        let mut row = row.unwrap_or_else(|| SagaRow {
            saga_id: event.aggregate_id,
            saga: change.saga,
            key: change.key,
            status: "COLLECTING".to_owned(),
            step: String::new(),
            started_at: event.timestamp,
            updated_at: event.timestamp,
        });
        for transition in change.transitions {
            row.transit(transition);
        }
        if let Some(result) = change.result {
            row.status = result;
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

impl SagaRow {
    fn transit(&mut self, transition: Transition) {
        let status = match &transition {
            Transition::StepStarted { .. } => "RUNNING",
            Transition::CompensationStarted { .. } | Transition::UndoStarted { .. } => {
                "COMPENSATING"
            }
            Transition::Completed => "COMPLETED",
            Transition::Compensated => "COMPENSATED",
            Transition::StepCompleted { .. }
            | Transition::StepFailed { .. }
            | Transition::StepUndone { .. } => &self.status,
        };
        self.status = status.to_owned();
        if let Transition::StepStarted { step, .. } | Transition::UndoStarted { step, .. } =
            transition
        {
            self.step = step;
        }
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
    use souk_actors::saga::{Advance, Input, SagaEnd};

    use super::*;
    use crate::projections::testing::{row_of, stored};

    const AT: Timestamp = Timestamp::from_millis(0);

    fn advanced(transitions: Vec<Transition>) -> StoredEvent {
        let (saga, key, input) = ("buying".to_owned(), Uuid::from_u128(2), Input::TimeLimit);
        let event = SagaEvent::Advanced(Advance { saga, key, input, transitions, at: AT });
        stored(&event, "buying", Uuid::from_u128(1))
    }

    fn step(name: &str) -> Transition {
        Transition::StepStarted { step: name.to_owned(), attempt: 1 }
    }

    #[tokio::test]
    async fn a_saga_is_listed_from_its_first_fact_to_its_end() {
        let row = row_of::<SagasView>([advanced(vec![])]).await.unwrap();
        assert_eq!((row.status.as_str(), row.step.as_str()), ("COLLECTING", ""));
        assert_eq!((row.saga.as_str(), row.key), ("buying", Uuid::from_u128(2)));

        let failed = || Transition::CompensationStarted {
            step: "capture".to_owned(),
            reason: "declined".to_owned(),
        };
        let undo = Transition::UndoStarted { step: "reserve".to_owned(), attempt: 1 };
        let going = [advanced(vec![step("reserve")]), advanced(vec![step("capture")])];
        let row = row_of::<SagasView>(going.clone()).await.unwrap();
        assert_eq!((row.status.as_str(), row.step.as_str()), ("RUNNING", "capture"));

        let end = SagaEvent::Failed(SagaEnd {
            saga: "buying".to_owned(),
            key: Uuid::from_u128(2),
            result: "COMPENSATED".to_owned(),
            step: Some("capture".to_owned()),
            reason: Some("declined".to_owned()),
            at: AT,
        });
        let back = going
            .into_iter()
            .chain([advanced(vec![failed(), undo]), stored(&end, "buying", Uuid::from_u128(1))]);
        let row = row_of::<SagasView>(back).await.unwrap();
        assert_eq!((row.status.as_str(), row.step.as_str()), ("COMPENSATED", "reserve"));
    }
}
