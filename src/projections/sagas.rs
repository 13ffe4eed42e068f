//! `sagas-view`: which processes run, how far they are, and how they ended.

use serde::Deserialize;
use serde_json::Value;
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
    /// The saga's name.
    pub saga: String,
    /// Which of its definitions it follows, once it knows.
    pub definition: Option<String>,
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
    /// Of this saga.
    pub saga: Option<String>,
    /// Of this definition.
    pub definition: Option<String>,
    /// That stand so.
    pub state: Option<String>,
    /// That are under way and have not changed since.
    pub unchanged_since: Option<Timestamp>,
}

/// How sagas may stand.
pub const STATES: [&str; 5] = ["COLLECTING", "RUNNING", "COMPENSATING", "COMPLETED", "COMPENSATED"];

/// Those of them in which a saga is not over.
pub const UNDER_WAY: [&str; 3] = ["COLLECTING", "RUNNING", "COMPENSATING"];

/// How a saga stands that made this transition last. A failed step is followed by another transition.
pub fn state_after(transition: &Transition) -> &'static str {
    match transition {
        Transition::StepStarted { .. }
        | Transition::StepCompleted { .. }
        | Transition::StepFailed { .. } => "RUNNING",
        Transition::CompensationStarted { .. }
        | Transition::UndoStarted { .. }
        | Transition::StepUndone { .. } => "COMPENSATING",
        Transition::Completed => "COMPLETED",
        Transition::Compensated => "COMPENSATED",
    }
}

/// Where the fact that an order was placed says in which order to go about it.
const DEFINITION: &str = "/fact/placed/definition";

/// The sagas.
pub struct SagasView;

/// What the view reads of any event of a saga: what followed, and of what came to it only which
/// definition was asked for.
#[derive(Deserialize)]
struct Change {
    saga: String,
    key: Uuid,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    transitions: Vec<Transition>,
    /// How it ended, if it did.
    result: Option<String>,
}

impl View for SagasView {
    const NAME: &'static str = super::SAGAS_VIEW;
    const CONTEXT: &'static str = "sagas";
    const TOPICS: &'static [&'static str] = &["saga.*"];
    const TABLE: &'static str = "sagas_v2";
    const COLUMNS: &'static [&'static str] = &[
        "saga_id",
        "saga",
        "definition",
        "saga_key",
        "status",
        "step",
        "started_ms",
        "updated_ms",
    ];
    const FIXED: &'static [&'static str] = &["saga", "saga_key", "started_ms"];
    type Row = SagaRow;

    fn fold(row: Option<SagaRow>, event: &StoredEvent) -> Result<Option<SagaRow>, Failure> {
        let change: Change = read_data::<SagaEvent, _>(event)?;
        let mut row = row.unwrap_or_else(|| SagaRow {
            saga_id: event.aggregate_id,
            saga: change.saga,
            definition: None,
            key: change.key,
            status: "COLLECTING".to_owned(),
            step: String::new(),
            started_at: event.timestamp,
            updated_at: event.timestamp,
        });
        if let Some(definition) = change.input.pointer(DEFINITION).and_then(Value::as_str) {
            row.definition = Some(definition.to_owned());
        }
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
            Param::text(row.definition.as_deref()),
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
            definition: row.text_or_null(2)?,
            key: row.id(3)?,
            status: row.text(4)?,
            step: row.text(5)?,
            started_at: row.time(6)?,
            updated_at: row.time(7)?,
        })
    }
}

impl SagaRow {
    fn transit(&mut self, transition: Transition) {
        state_after(&transition).clone_into(&mut self.status);
        if let Transition::StepStarted { step, .. } | Transition::UndoStarted { step, .. } =
            transition
        {
            self.step = step;
        }
    }
}

/// The sagas that match, the newest first, before a time and id.
pub async fn find(
    db: &ReadDb,
    filter: &SagaFilter,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<SagaRow>, ReadError> {
    let query = Query::select(SagasView::COLUMNS, &db.table(SagasView::NAME, SagasView::TABLE))
        .when(" AND saga_key = ", filter.key)
        .when(" AND saga = ", filter.saga.as_ref())
        .when(" AND definition = ", filter.definition.as_ref())
        .when(" AND status = ", filter.state.as_ref())
        .when(
            " AND status IN ('COLLECTING', 'RUNNING', 'COMPENSATING') AND updated_ms <= ",
            filter.unchanged_since,
        )
        .before("started_ms, saga_id", before)
        .then(" ORDER BY started_ms DESC, saga_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, SagasView::read).await
}

/// How many sagas are under way, by name and state; those of which there are none are left out.
pub async fn under_way(db: &ReadDb) -> Result<Vec<(String, String, u64)>, ReadError> {
    let query = Query::new(
        "SELECT saga, status, COUNT(*) FROM sagas_v2 \
         WHERE status IN ('COLLECTING', 'RUNNING', 'COMPENSATING') GROUP BY saga, status",
    );
    db.fetch_as(query, |row| Ok((row.text(0)?, row.text(1)?, row.count(2)?))).await
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
        assert_eq!(row.definition, None);
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

    #[tokio::test]
    async fn a_saga_keeps_the_definition_that_its_order_asked_for() {
        let fact = serde_json::json!({ "placed": { "definition": "payment_first" } });
        let input = Input::Fact { event_id: Uuid::from_u128(3), fact };
        let (saga, key) = ("order".to_owned(), Uuid::from_u128(2));
        let event =
            SagaEvent::Advanced(Advance { saga, key, input, transitions: Vec::new(), at: AT });
        let first = stored(&event, "order", Uuid::from_u128(1));
        let row = row_of::<SagasView>([first, advanced(vec![step("capture")])]).await.unwrap();
        assert_eq!(row.definition.as_deref(), Some("payment_first"));
    }
}
