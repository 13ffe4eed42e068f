//! The read models as their auditor sees them: what is stored, beside what the journal's events make
//! anew.

use std::marker::PhantomData;

use async_trait::async_trait;
use souk_actors::broker::Pattern;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError};
use super::view::View;

/// One view.
#[async_trait]
pub trait Evidence: Send + Sync {
    /// The projection's name.
    fn name(&self) -> &'static str;

    /// A row of one aggregate to be made anew from its events.
    fn refold(&self) -> Box<dyn Refold>;

    /// The row that is stored for an aggregate, as the values of its columns.
    async fn stored(&self, id: Uuid) -> Result<Option<Vec<Param>>, ReadError>;

    /// The aggregates that have rows, behind `after`, in the order of their ids.
    async fn ids(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<Uuid>, ReadError>;
}

/// A row in the making.
pub trait Refold: Send {
    /// Takes the aggregate's next event, if the view wants it.
    fn take(&mut self, event: &StoredEvent) -> Result<(), Failure>;

    /// The values of the row's columns; none: no event made one.
    fn row(&self) -> Option<Vec<Param>>;
}

/// The evidence of the view `V`.
pub(super) struct OfView<V> {
    db: ReadDb,
    view: PhantomData<fn() -> V>,
}

impl<V: View> OfView<V> {
    pub(super) fn new(db: ReadDb) -> Self {
        Self { db, view: PhantomData }
    }
}

struct Refolding<V: View> {
    patterns: Vec<Pattern>,
    row: Option<V::Row>,
}

impl<V: View> Refold for Refolding<V> {
    fn take(&mut self, event: &StoredEvent) -> Result<(), Failure> {
        if self.patterns.iter().any(|pattern| pattern.matches(&event.event_type)) {
            self.row = V::fold(self.row.take(), event)?;
        }
        Ok(())
    }

    fn row(&self) -> Option<Vec<Param>> {
        self.row.as_ref().map(V::values)
    }
}

#[async_trait]
impl<V: View> Evidence for OfView<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn refold(&self) -> Box<dyn Refold> {
        let patterns = V::TOPICS.iter().filter_map(|topic| Pattern::parse(topic).ok()).collect();
        Box::new(Refolding::<V> { patterns, row: None })
    }

    async fn stored(&self, id: Uuid) -> Result<Option<Vec<Param>>, ReadError> {
        let query = Query::select(V::COLUMNS, &self.db.table(V::NAME, V::TABLE))
            .then(" AND ")
            .then(V::COLUMNS[0])
            .then(" = ");
        let rows = self.db.fetch_as(query.value(id), V::read).await?;
        Ok(rows.first().map(V::values))
    }

    async fn ids(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<Uuid>, ReadError> {
        let mut query = Query::select(&V::COLUMNS[..1], &self.db.table(V::NAME, V::TABLE));
        if let Some(after) = after {
            query = query.then(" AND ").then(V::COLUMNS[0]).then(" > ").value(after);
        }
        let query = query.then(" ORDER BY ").then(V::COLUMNS[0]).then(" LIMIT ").value(limit);
        self.db.fetch_as(query, |row| row.id(0)).await
    }
}
