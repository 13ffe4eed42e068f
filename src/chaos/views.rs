//! Folds the journal the way the read models do, in memory, and compares.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use souk_actors::broker::Pattern;
use souk_actors::event::StoredEvent;
use uuid::Uuid;

use super::ledger::Ledger;
use crate::projections::db::{Param, Query, ReadDb, Row};
use crate::projections::view::View;
use crate::projections::{
    analytics, categories, events_index, interests, listings, notifications, orders, promotions,
    publishing, reviews, sagas, search, sessions, shipments, users,
};

/// One view.
struct Folded<V: View> {
    rows: BTreeMap<Uuid, V::Row>,
    patterns: Vec<Pattern>,
}

impl<V: View> Default for Folded<V> {
    fn default() -> Self {
        let patterns = V::TOPICS.iter().filter_map(|topic| Pattern::parse(topic).ok()).collect();
        Self { rows: BTreeMap::new(), patterns }
    }
}

impl<V: View> Folded<V> {
    fn take(&mut self, event: &StoredEvent, ledger: &Ledger) {
        if !self.patterns.iter().any(|pattern| pattern.matches(&event.event_type)) {
            return;
        }
        match V::fold(self.rows.remove(&event.aggregate_id), event) {
            Ok(Some(row)) => drop(self.rows.insert(event.aggregate_id, row)),
            Ok(None) => {}
            Err(failure) => ledger.broken("views can be folded", failure.message),
        }
    }

    async fn compare(&self, db: &ReadDb, ledger: &Ledger) -> anyhow::Result<()> {
        let broken = |detail| ledger.broken("a read model is the fold of the journal", detail);
        let query = Query::select(V::COLUMNS, &db.table(V::NAME, V::TABLE));
        let stored = db.fetch_as(query, |row: &Row| V::read(row)).await?;
        let mut expected: HashMap<String, Vec<Param>> = HashMap::new();
        for row in self.rows.values() {
            let values = V::values(row);
            expected.insert(key(&values), values);
        }
        for row in &stored {
            let values = V::values(row);
            match expected.remove(&key(&values)) {
                Some(folded) if folded == values => {}
                folded => broken(format!("{}: {values:?}, and not {folded:?}", V::TABLE)),
            }
        }
        for missing in expected.values() {
            broken(format!("{} has no {missing:?}", V::TABLE));
        }
        Ok(())
    }
}

/// The first column of a row.
fn key(values: &[Param]) -> String {
    format!("{:?}", values.first())
}

/// All views.
#[derive(Default)]
pub(super) struct Views {
    listings: Folded<listings::ListingsView>,
    orders: Folded<orders::OrdersView>,
    shipments: Folded<shipments::ShipmentsView>,
    notifications: Folded<notifications::NotificationsView>,
    categories: Folded<categories::CategoriesView>,
    users: Folded<users::UsersView>,
    sessions: Folded<sessions::SessionsView>,
    sagas: Folded<sagas::SagasView>,
    service_tokens: Folded<publishing::ServiceTokensView>,
    event_types: Folded<publishing::EventTypesView>,
    buffers: Folded<publishing::BuffersView>,
    promotions: Folded<promotions::PromotionsView>,
    reviews: Folded<reviews::ReviewsView>,
    interests: Folded<interests::InterestsView>,
    search: Folded<search::SearchView>,
    analytics: Folded<analytics::AnalyticsView>,
}

impl Views {
    /// Takes an event in.
    pub fn take(&mut self, event: &Arc<StoredEvent>, ledger: &Ledger) {
        self.listings.take(event, ledger);
        self.orders.take(event, ledger);
        self.shipments.take(event, ledger);
        self.notifications.take(event, ledger);
        self.categories.take(event, ledger);
        self.users.take(event, ledger);
        self.sessions.take(event, ledger);
        self.sagas.take(event, ledger);
        self.service_tokens.take(event, ledger);
        self.event_types.take(event, ledger);
        self.buffers.take(event, ledger);
        self.promotions.take(event, ledger);
        self.reviews.take(event, ledger);
        self.interests.take(event, ledger);
        self.search.take(event, ledger);
        self.analytics.take(event, ledger);
    }

    /// Compares with the read database, in which `events` events should be indexed.
    pub async fn compare(&self, db: &ReadDb, events: u64, ledger: &Ledger) -> anyhow::Result<()> {
        self.listings.compare(db, ledger).await?;
        self.orders.compare(db, ledger).await?;
        self.shipments.compare(db, ledger).await?;
        self.notifications.compare(db, ledger).await?;
        self.categories.compare(db, ledger).await?;
        self.users.compare(db, ledger).await?;
        self.sessions.compare(db, ledger).await?;
        self.sagas.compare(db, ledger).await?;
        self.service_tokens.compare(db, ledger).await?;
        self.event_types.compare(db, ledger).await?;
        self.buffers.compare(db, ledger).await?;
        self.promotions.compare(db, ledger).await?;
        self.reviews.compare(db, ledger).await?;
        self.interests.compare(db, ledger).await?;
        self.search.compare(db, ledger).await?;
        self.analytics.compare(db, ledger).await?;
        let count = Query::select(&["COUNT(*)"], &events_index::table(db));
        let indexed = db.fetch_as(count, |row| row.count(0)).await?;
        if indexed.first() != Some(&events) {
            let detail = format!("{indexed:?} events are indexed of {events}");
            ledger.broken("a read model is the fold of the journal", detail);
        }
        Ok(())
    }
}
