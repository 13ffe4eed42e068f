//! Read models: what the journal says, arranged for the questions that are asked.
//!
//! ```text
//!   journal ──broker──▶ Projected<Table> ──rows and checkpoint, one transaction──▶ ReadDb
//!                                                                                    │
//!   HTTP ◀──────────────────────────── ReadModels ◀──────── a pool that only reads ──┘
//! ```
//!
//! Nothing here is the truth: the tables can be dropped and are rebuilt from the journal. No row holds
//! personal data, so an erasure needs no work here. Aggregates answer for themselves; these tables
//! answer what no aggregate can: lists, searches, look-ups by something other than the id.

pub mod analytics;
pub mod audit;
pub mod categories;
pub mod db;
pub mod diff;
pub mod events_index;
pub mod interests;
pub mod ledger;
pub mod listings;
pub mod notifications;
pub mod orders;
pub mod promotions;
pub mod publishing;
pub mod rebuild;
pub mod reviews;
pub mod sagas;
pub mod search;
pub mod sessions;
pub mod shipments;
#[cfg(test)]
pub(crate) mod testing;
mod together;
mod told;
pub mod users;
pub mod versions;
pub mod view;
pub mod webhooks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use souk_actors::event::Position;
use souk_actors::subscriber::Subscription;
use souk_actors::world::Timestamp;
use uuid::Uuid;

pub use categories::CategoryRow;
pub use db::{Place, ReadError};
pub use events_index::{EventFilter, Match as EventMatch, TraceRow, request_of_trace};
pub use interests::InterestRow;
pub use ledger::{Balance, Check as LedgerCheck, PayoutRow};
pub use listings::{ListingFilter, ListingRow, SkuMatch};
pub use notifications::NotificationRow;
pub use orders::{OrderFilter, OrderRow};
pub use promotions::PromotionRow;
pub use publishing::{BufferRow, EventTypeRow, ServiceTokenRow};
pub use reviews::{ReviewFilter, ReviewRow};
pub use sagas::{SagaFilter, SagaRow};
pub use search::{Hit, SearchFilter, SearchOrder, Terms};
pub use sessions::SessionRow;
pub use shipments::ShipmentRow;
pub use users::{UserFilter, UserRow};
pub use webhooks::DeliveryRow;

use crate::domain::interest::InterestKind;

use db::ReadDb;
use rebuild::Versioned;
use view::{Projected, Table, View, ViewTable};

/// All events by what is asked of them. Stored; never rename, like the others.
pub const EVENTS_INDEX: &str = "events-index";
/// The listings.
pub const LISTINGS_VIEW: &str = "listings-view";
/// The orders.
pub const ORDERS_VIEW: &str = "orders-view";
/// The shipments.
pub const SHIPMENTS_VIEW: &str = "shipments-view";
/// The notifications.
pub const NOTIFICATIONS_VIEW: &str = "notifications-view";
/// The categories.
pub const CATEGORIES_VIEW: &str = "categories-view";
/// The users.
pub const USERS_VIEW: &str = "users-view";
/// The logins.
pub const SESSIONS_VIEW: &str = "sessions-view";
/// The sagas.
pub const SAGAS_VIEW: &str = "sagas-view";
/// The projection of the tokens of services.
pub const SERVICE_TOKENS_VIEW: &str = "service-tokens-view";
/// The projection of the registered event types.
pub const EVENT_TYPES_VIEW: &str = "event-types-view";
/// The projection of what is held back of outside events.
pub const BUFFERS_VIEW: &str = "buffers-view";
/// Whom people follow, and their favourites.
pub const INTERESTS_VIEW: &str = "interests-view";
/// The promotion codes.
pub const PROMOTIONS_VIEW: &str = "promotions-view";
/// The reviews.
pub const REVIEWS_VIEW: &str = "reviews-view";
/// What the search finds listings by.
pub const SEARCH_VIEW: &str = "search-view";
/// Figures of the business.
pub const ANALYTICS_VIEW: &str = "analytics-view";
/// What was sent to webhook endpoints.
pub const WEBHOOK_DELIVERIES_VIEW: &str = "webhook-deliveries-view";
/// The accounts of the ledger, and the payouts.
pub const LEDGER: &str = "ledger";

/// Every projection.
pub const PROJECTIONS: [&str; 19] = [
    EVENTS_INDEX,
    LISTINGS_VIEW,
    ORDERS_VIEW,
    SHIPMENTS_VIEW,
    NOTIFICATIONS_VIEW,
    CATEGORIES_VIEW,
    USERS_VIEW,
    SESSIONS_VIEW,
    SAGAS_VIEW,
    SERVICE_TOKENS_VIEW,
    EVENT_TYPES_VIEW,
    BUFFERS_VIEW,
    PROMOTIONS_VIEW,
    REVIEWS_VIEW,
    INTERESTS_VIEW,
    SEARCH_VIEW,
    ANALYTICS_VIEW,
    WEBHOOK_DELIVERIES_VIEW,
    LEDGER,
];

/// What each projection listens to: its context, its name, its topics.
pub fn topics() -> Vec<(&'static str, &'static str, &'static [&'static str])> {
    fn of<T: Table>() -> (&'static str, &'static str, &'static [&'static str]) {
        (T::CONTEXT, T::NAME, T::TOPICS)
    }
    vec![
        of::<events_index::EventsIndex>(),
        of::<ViewTable<listings::ListingsView>>(),
        of::<ViewTable<orders::OrdersView>>(),
        of::<ViewTable<shipments::ShipmentsView>>(),
        of::<ViewTable<notifications::NotificationsView>>(),
        of::<ViewTable<categories::CategoriesView>>(),
        of::<ViewTable<users::UsersView>>(),
        of::<ViewTable<sessions::SessionsView>>(),
        of::<ViewTable<sagas::SagasView>>(),
        of::<ViewTable<publishing::ServiceTokensView>>(),
        of::<ViewTable<publishing::EventTypesView>>(),
        of::<ViewTable<publishing::BuffersView>>(),
        of::<ViewTable<promotions::PromotionsView>>(),
        of::<reviews::Reviews>(),
        of::<ViewTable<interests::InterestsView>>(),
        of::<ViewTable<search::SearchView>>(),
        of::<ViewTable<analytics::AnalyticsView>>(),
        of::<webhooks::WebhookDeliveries>(),
        of::<ledger::LedgerTable>(),
    ]
}

/// Every projection on a database, as whoever fills a version of it sees it.
fn versioned(db: &ReadDb) -> Vec<Arc<dyn Versioned>> {
    fn of<T: Table>(db: &ReadDb) -> Arc<dyn Versioned> {
        Arc::new(Projected::<T>::new(db.clone()))
    }
    vec![
        of::<events_index::EventsIndex>(db),
        of::<ViewTable<listings::ListingsView>>(db),
        of::<ViewTable<orders::OrdersView>>(db),
        of::<ViewTable<shipments::ShipmentsView>>(db),
        of::<ViewTable<notifications::NotificationsView>>(db),
        of::<ViewTable<categories::CategoriesView>>(db),
        of::<ViewTable<users::UsersView>>(db),
        of::<ViewTable<sessions::SessionsView>>(db),
        of::<ViewTable<sagas::SagasView>>(db),
        of::<ViewTable<publishing::ServiceTokensView>>(db),
        of::<ViewTable<publishing::EventTypesView>>(db),
        of::<ViewTable<publishing::BuffersView>>(db),
        of::<ViewTable<promotions::PromotionsView>>(db),
        of::<reviews::Reviews>(db),
        of::<ViewTable<interests::InterestsView>>(db),
        of::<ViewTable<search::SearchView>>(db),
        of::<ViewTable<analytics::AnalyticsView>>(db),
        of::<webhooks::WebhookDeliveries>(db),
        of::<ledger::LedgerTable>(db),
    ]
}

/// Finds out which versions there are and which of them serve. A version of tables that migrations
/// have replaced is dropped; where none is left, version 1 serves.
pub(crate) async fn open_versions(db: ReadDb) -> anyhow::Result<ReadDb> {
    let unknown = Timestamp::from_millis(0);
    let mut tx = db.begin().await?;
    for projection in versioned(&db) {
        let (name, shapes) = (projection.name(), projection.shapes());
        let shape = rebuild::shape_of(shapes);
        let mut all = versions::list_in(&mut tx, name).await?;
        for version in all.extract_if(.., |version| version.shape != shape) {
            let of_old = version.shape.split(',').filter(|_| version.number > 1);
            for table in of_old {
                tx.drop_table(&db::table_of(table, version.number)).await?;
            }
            versions::remove(&mut tx, &version).await?;
        }
        let serving = match all.iter().find(|version| version.serves).or(all.first()) {
            Some(version) => version.number,
            None => {
                versions::add(&mut tx, (name, 1, &shape), 0, unknown).await?;
                1
            }
        };
        versions::set_serving(&mut tx, name, serving).await?;
        db.serve(name, serving);
        let level = all.iter().filter(|of| of.state == versions::VersionState::Level);
        let level: BTreeSet<_> = level.map(|of| of.number).chain([serving]).collect();
        db.told().are_level(name, level.into_iter());
    }
    tx.commit().await?;
    Ok(db)
}

/// The read models; cheap to clone.
#[derive(Clone)]
pub struct ReadModels {
    db: ReadDb,
    projections: Arc<Vec<Arc<dyn Versioned>>>,
}

impl ReadModels {
    /// Opens the read models in this place.
    pub async fn open(place: &Place) -> anyhow::Result<Self> {
        let db = open_versions(ReadDb::open(place).await?).await?;
        Ok(Self { projections: Arc::new(versioned(&db)), db })
    }

    /// As [`ReadModels::open`], but read models of another journal are erased first, to be rebuilt:
    /// those that have seen more than there is (the journal was restored from a backup, or begun
    /// anew), and those whose newest event is not where they saw it.
    ///
    /// `heads` tells how far the journal is. It is asked after the read models, so that a journal
    /// that grows meanwhile does not make them look ahead of it. `is_there` tells whether an event
    /// stands at a position, or cannot be read there.
    pub async fn open_for(
        place: &Place,
        heads: impl AsyncFnOnce() -> anyhow::Result<Vec<Position>>,
        is_there: impl AsyncFn(Position, Uuid) -> bool,
    ) -> anyhow::Result<Self> {
        let models = Self::open(place).await?;
        let seen = models.seen().await?;
        let why = if is_ahead(&seen, &heads().await?) {
            "the read models are ahead of the journal: rebuilding them from it"
        } else if !models.have_seen(&seen, is_there).await? {
            "the read models are of another journal: rebuilding them from this one"
        } else {
            return Ok(models);
        };
        tracing::warn!("{why}");
        models.db.erase(place).await?;
        Self::open(place).await
    }

    /// Whether the newest event that is known of each partition stands where it was seen.
    async fn have_seen(
        &self,
        seen: &[(i64, u64)],
        is_there: impl AsyncFn(Position, Uuid) -> bool,
    ) -> anyhow::Result<bool> {
        for (partition, _) in seen {
            let partition = u16::try_from(*partition).context("a partition's number")?;
            let newest = events_index::newest(&self.db, partition).await?;
            if let Some((position, event_id)) = newest
                && !is_there(Position { partition, position }, event_id).await
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets everything that is kept there, also where it cannot be read any more.
    pub async fn erase(place: &Place) -> anyhow::Result<()> {
        ReadDb::forget(place).await
    }

    /// The furthest checkpoint of each partition.
    async fn seen(&self) -> Result<Vec<(i64, u64)>, ReadError> {
        let query = db::Query::new(
            "SELECT partition, MAX(position) FROM projection_checkpoints GROUP BY partition",
        );
        self.db.fetch_as(query, |row| Ok((row.int(0)?, row.count(1)?))).await
    }

    /// The subscriptions that keep the read models up to date.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        vec![
            self.subscription::<events_index::EventsIndex>(),
            self.view::<listings::ListingsView>(),
            self.view::<orders::OrdersView>(),
            self.view::<shipments::ShipmentsView>(),
            self.view::<notifications::NotificationsView>(),
            self.view::<categories::CategoriesView>(),
            self.view::<users::UsersView>(),
            self.view::<sessions::SessionsView>(),
            self.view::<sagas::SagasView>(),
            self.view::<publishing::ServiceTokensView>(),
            self.view::<publishing::EventTypesView>(),
            self.view::<publishing::BuffersView>(),
            self.view::<promotions::PromotionsView>(),
            self.subscription::<reviews::Reviews>(),
            self.view::<interests::InterestsView>(),
            self.view::<search::SearchView>(),
            self.view::<analytics::AnalyticsView>(),
            self.subscription::<webhooks::WebhookDeliveries>(),
            self.subscription::<ledger::LedgerTable>(),
        ]
    }

    /// What an auditor compares with the journal: every view but the index of events, which has
    /// [`ReadModels::indexed`], and the log of webhook deliveries, which forgets.
    pub fn evidence(&self) -> Vec<Box<dyn audit::Evidence>> {
        fn of<V: View>(models: &ReadModels) -> Box<dyn audit::Evidence> {
            Box::new(audit::OfView::<V>::new(models.db.clone()))
        }
        vec![
            of::<listings::ListingsView>(self),
            of::<orders::OrdersView>(self),
            of::<shipments::ShipmentsView>(self),
            of::<notifications::NotificationsView>(self),
            of::<categories::CategoriesView>(self),
            of::<users::UsersView>(self),
            of::<sessions::SessionsView>(self),
            of::<sagas::SagasView>(self),
            of::<publishing::ServiceTokensView>(self),
            of::<publishing::EventTypesView>(self),
            of::<publishing::BuffersView>(self),
            of::<promotions::PromotionsView>(self),
            of::<reviews::ReviewsView>(self),
            of::<interests::InterestsView>(self),
            of::<search::SearchView>(self),
            of::<analytics::AnalyticsView>(self),
        ]
    }

    /// The events that the index has of a partition from `first` to `last`: positions and ids.
    pub async fn indexed(
        &self,
        partition: u16,
        first: u64,
        last: u64,
    ) -> Result<Vec<(u64, Uuid)>, ReadError> {
        events_index::between(&self.db, partition, first, last).await
    }

    fn view<V: View>(&self) -> Subscription {
        self.subscription::<ViewTable<V>>()
    }

    fn subscription<T: Table>(&self) -> Subscription {
        let projected = Projected::<T>::new(self.db.clone());
        Subscription::projection(T::NAME, T::CONTEXT, T::TOPICS, Arc::new(projected))
    }

    /// The events that match, in order, behind a position per partition.
    pub async fn events(
        &self,
        filter: &EventFilter,
        after: &BTreeMap<u16, u64>,
        limit: u32,
    ) -> Result<Vec<EventMatch>, ReadError> {
        events_index::find(&self.db, filter, after, limit).await
    }

    /// What there is with a correlation id; none: nothing.
    pub async fn trace(&self, correlation_id: &str) -> Result<Option<TraceRow>, ReadError> {
        events_index::trace(&self.db, correlation_id).await
    }

    /// The correlation ids of a W3C trace, at most `limit`.
    pub async fn correlations_of_trace(
        &self,
        trace_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, ReadError> {
        events_index::correlations_of_trace(&self.db, trace_id, limit).await
    }

    /// The correlation ids of the events of a partition from `first` to `last`, each once.
    pub async fn correlations(
        &self,
        partition: u16,
        first: u64,
        last: u64,
    ) -> Result<Vec<String>, ReadError> {
        events_index::correlations(&self.db, partition, first, last).await
    }

    /// All categories, by their slugs.
    pub async fn categories(&self) -> Result<Vec<CategoryRow>, ReadError> {
        categories::all(&self.db).await
    }

    /// The users that match, the newest first, before a time and id.
    pub async fn users(
        &self,
        filter: &UserFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<UserRow>, ReadError> {
        users::find(&self.db, filter, before, limit).await
    }

    /// A user's logins, the newest first, before a time and id; with `open_at` only those that are
    /// open then.
    pub async fn sessions(
        &self,
        user_id: Uuid,
        open_at: Option<Timestamp>,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<SessionRow>, ReadError> {
        sessions::of_user(&self.db, user_id, open_at, before, limit).await
    }

    /// The first administrators who can act, in the order in which they registered.
    pub async fn administrators(&self, limit: u32) -> Result<Vec<Uuid>, ReadError> {
        users::administrators(&self.db, limit).await
    }

    /// The listings that match, the newest first, before a time and id.
    pub async fn listings(
        &self,
        filter: &ListingFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<ListingRow>, ReadError> {
        listings::find(&self.db, filter, before, limit).await
    }

    /// The listing of a stock-keeping unit.
    pub async fn listing_by_sku(&self, sku: &str) -> Result<SkuMatch, ReadError> {
        listings::by_sku(&self.db, sku).await
    }

    /// How many listings of a seller can be bought.
    pub async fn active_listings(&self, seller_id: Uuid) -> Result<u64, ReadError> {
        listings::count_active(&self.db, seller_id).await
    }

    /// A figure of the business over a span, of everybody or of one seller: step by step, and of all
    /// together.
    pub async fn figure(
        &self,
        metric: &analytics::Metric,
        span: analytics::Span,
        seller: Option<Uuid>,
    ) -> Result<(Vec<analytics::Point>, Vec<analytics::Point>), ReadError> {
        analytics::figure(&self.db, metric, span, seller).await
    }

    /// How many events of each type there are in each step of a span.
    pub async fn event_counts(
        &self,
        span: analytics::Span,
    ) -> Result<BTreeMap<(i64, String), u64>, ReadError> {
        let (from, to) = (Some(span.from), Some(span.to));
        let filter = EventFilter { from, to, ..EventFilter::default() };
        events_index::counts(&self.db, &filter, span.step_ms).await
    }

    /// What the search finds these listings as; those that it does not know are left out.
    pub async fn in_search(
        &self,
        listings: &[Uuid],
    ) -> Result<BTreeMap<Uuid, search::Indexed>, ReadError> {
        search::indexed(&self.db, listings).await
    }

    /// What a query looks for; none: there is no word in it.
    pub async fn search_terms(&self, text: &str) -> Result<Option<Terms>, ReadError> {
        Terms::read(&self.db, text).await
    }

    /// The listings that a search finds, in an order, behind a key and id.
    pub async fn search(
        &self,
        terms: Option<&Terms>,
        filter: &SearchFilter,
        order: SearchOrder,
        behind: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<Hit>, ReadError> {
        search::find(&self.db, terms, filter, order, behind, limit).await
    }

    /// How what a search finds is spread over categories and prices.
    pub async fn search_facets(
        &self,
        terms: Option<&Terms>,
        filter: &SearchFilter,
    ) -> Result<search::Facets, ReadError> {
        search::facets(&self.db, terms, filter).await
    }

    /// The terms of a search that finds nothing, with the words in place of unknown ones that come
    /// nearest; none: every word is known, or nothing is near.
    pub async fn corrected(&self, terms: &Terms) -> Result<Option<Terms>, ReadError> {
        search::corrected(&self.db, terms).await
    }

    /// The orders that match, the newest first, before a time and id.
    pub async fn orders(
        &self,
        filter: &OrderFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<OrderRow>, ReadError> {
        orders::find(&self.db, filter, before, limit).await
    }

    /// The order of a number.
    pub async fn order_by_number(&self, number: &str) -> Result<Option<Uuid>, ReadError> {
        orders::by_number(&self.db, number).await
    }

    /// The balances of an account of the ledger, by currency.
    pub async fn balances(&self, account: &str) -> Result<Vec<Balance>, ReadError> {
        ledger::balances(&self.db, account).await
    }

    /// Whether the books are right.
    pub async fn ledger_check(&self) -> Result<LedgerCheck, ReadError> {
        ledger::check(&self.db).await
    }

    /// The payouts of a seller or of all, the newest first, before a time and id.
    pub async fn payouts(
        &self,
        seller_id: Option<Uuid>,
        status: Option<&str>,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PayoutRow>, ReadError> {
        ledger::payouts(&self.db, seller_id, status, before, limit).await
    }

    /// One payout.
    pub async fn payout(&self, payout_id: Uuid) -> Result<Option<PayoutRow>, ReadError> {
        ledger::payout(&self.db, payout_id).await
    }

    /// The shipments of an order, the oldest first.
    pub async fn shipments(&self, order_id: Uuid) -> Result<Vec<Uuid>, ReadError> {
        let rows = shipments::of_order(&self.db, order_id).await?;
        Ok(rows.into_iter().map(|row| row.shipment_id).collect())
    }

    /// The messages to a user, or those for administrators, the newest first.
    pub async fn notifications(
        &self,
        user_id: Option<Uuid>,
        audience_admin: bool,
        unread: bool,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<NotificationRow>, ReadError> {
        notifications::find(&self.db, user_id, audience_admin, unread, before, limit).await
    }

    /// The messages that went by a channel, the newest first.
    pub async fn sent_by(
        &self,
        channel: &str,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<NotificationRow>, ReadError> {
        notifications::sent_by(&self.db, channel, before, limit).await
    }

    /// The promotion codes of a seller, or all, the newest first, before a time and id.
    pub async fn promotions(
        &self,
        seller_id: Option<Uuid>,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PromotionRow>, ReadError> {
        promotions::find(&self.db, seller_id, before, limit).await
    }

    /// The reviews that match and are not hidden, the newest first, before a time and id.
    pub async fn reviews(
        &self,
        filter: &ReviewFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<ReviewRow>, ReadError> {
        reviews::find(&self.db, filter, before, limit).await
    }

    /// What somebody takes an interest in, the newest first, before a time and id.
    pub async fn interests_of(
        &self,
        user_id: Uuid,
        kind: InterestKind,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<InterestRow>, ReadError> {
        interests::of_user(&self.db, user_id, kind, before, limit).await
    }

    /// The first image of each of these listings that has one.
    pub async fn covers(&self, listings: &[Uuid]) -> Result<BTreeMap<Uuid, String>, ReadError> {
        listings::covers(&self.db, listings).await
    }

    /// Who takes an interest in something, behind an interest, in the order of their ids.
    pub async fn interests_in(
        &self,
        of: (InterestKind, Uuid),
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<InterestRow>, ReadError> {
        interests::in_target(&self.db, of, after, limit).await
    }

    /// How many take an interest in something.
    pub async fn interests_count(
        &self,
        kind: InterestKind,
        target_id: Uuid,
    ) -> Result<u64, ReadError> {
        interests::count(&self.db, kind, target_id).await
    }

    /// The sagas that match, the newest first, before a time and id.
    pub async fn sagas(
        &self,
        filter: &SagaFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<SagaRow>, ReadError> {
        sagas::find(&self.db, filter, before, limit).await
    }

    /// The tokens of services and keys of people, the newest first, before a time and id; of one
    /// person, if they are given.
    pub async fn service_tokens(
        &self,
        user_id: Option<Uuid>,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<ServiceTokenRow>, ReadError> {
        publishing::service_tokens(&self.db, user_id, before, limit).await
    }

    /// The registered event types behind a name, by name.
    pub async fn event_types(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<EventTypeRow>, ReadError> {
        publishing::event_types(&self.db, after, limit).await
    }

    /// Where outside events are held back, the latest first, before a time and id.
    pub async fn buffers(
        &self,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<BufferRow>, ReadError> {
        publishing::buffers(&self.db, before, limit).await
    }

    /// How many sagas are under way, by name and state.
    pub async fn sagas_under_way(&self) -> Result<Vec<(String, String, u64)>, ReadError> {
        sagas::under_way(&self.db).await
    }

    /// The deliveries to a webhook endpoint, the newest first; of one status, if it is given.
    pub async fn webhook_deliveries(
        &self,
        endpoint: Uuid,
        status: Option<&str>,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<DeliveryRow>, ReadError> {
        webhooks::find(&self.db, endpoint, status, before, limit).await
    }

    /// The deliveries of an event to webhook endpoints.
    pub async fn webhook_deliveries_of(&self, event: Uuid) -> Result<Vec<DeliveryRow>, ReadError> {
        webhooks::of_event(&self.db, event).await
    }

    /// A delivery to a webhook endpoint.
    pub async fn webhook_delivery(&self, delivery: Uuid) -> Result<Option<DeliveryRow>, ReadError> {
        webhooks::one(&self.db, delivery).await
    }

    /// The aggregates whose deliveries to a webhook endpoint wait, behind `after`, some at a time.
    pub async fn webhook_lanes_waiting(
        &self,
        endpoint: Uuid,
        after: Option<Uuid>,
    ) -> Result<Vec<Uuid>, ReadError> {
        webhooks::lanes_waiting(&self.db, endpoint, after).await
    }

    /// The stored checkpoint of a projection: everything of the partition up to here has had its
    /// effect. The runtime does not trouble a projection with stretches of the log that do not
    /// concern it, so a quiet one may stand further than this: its subscription knows. An unknown
    /// projection stands at 0.
    pub async fn position(&self, projection: &str, partition: u16) -> Result<u64, ReadError> {
        versions::level_from(&self.db, projection, partition).await
    }

    /// Closes the database; what is not projected by now is projected after the next start.
    pub async fn close(&self) {
        self.db.close().await;
    }
}

fn is_ahead(seen: &[(i64, u64)], heads: &[Position]) -> bool {
    seen.iter().any(|(partition, position)| {
        let head = heads.iter().find(|head| i64::from(head.partition) == *partition);
        head.is_none_or(|head| *position > head.position)
    })
}

#[cfg(test)]
mod tests {
    use super::testing::{TestPlace, event, numbered};
    use super::*;

    async fn open_at(test: &TestPlace, position: u64) -> ReadModels {
        open_on(test, position, true).await
    }

    async fn open_on(test: &TestPlace, position: u64, same: bool) -> ReadModels {
        let heads = async || Ok(vec![Position { partition: 0, position }]);
        let is_there = async |at: Position, event_id: Uuid| {
            assert_eq!((at.to_string(), event_id.is_nil()), ("0:2".to_owned(), false));
            same
        };
        ReadModels::open_for(&test.place, heads, is_there).await.unwrap()
    }

    async fn filled(test: &TestPlace) -> ReadModels {
        let models = ReadModels::open(&test.place).await.unwrap();
        let projected = Projected::<events_index::EventsIndex>::new(models.db.clone());
        let events = numbered([event("a.b", "a", 1), event("a.b", "a", 1)]);
        projected.advance(0, &events, 2).await.unwrap();
        models
    }

    #[tokio::test]
    async fn what_is_ahead_of_the_journal_is_begun_anew() {
        let test = TestPlace::new().await;
        filled(&test).await.close().await;

        let kept = open_at(&test, 2).await;
        assert_eq!(kept.position(EVENTS_INDEX, 0).await.unwrap(), 2);
        kept.close().await;

        let anew = open_at(&test, 1).await;
        assert_eq!(anew.position(EVENTS_INDEX, 0).await.unwrap(), 0);
        let filter = EventFilter::default();
        assert!(anew.events(&filter, &BTreeMap::new(), 9).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_another_journal_told_is_begun_anew() {
        let test = TestPlace::new().await;
        filled(&test).await.close().await;
        let kept = open_on(&test, 9, true).await;
        assert_eq!(kept.position(EVENTS_INDEX, 0).await.unwrap(), 2);
        kept.close().await;
        let anew = open_on(&test, 9, false).await;
        assert_eq!(anew.position(EVENTS_INDEX, 0).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_projection_nobody_knows_stands_at_the_beginning() {
        let test = TestPlace::new().await;
        let models = filled(&test).await;
        assert_eq!(models.position("no-such-view", 0).await.unwrap(), 0);
        assert_eq!(models.position(EVENTS_INDEX, 0).await.unwrap(), 2);
    }

    #[test]
    fn every_projection_is_declared_once() {
        let names: Vec<_> = topics().into_iter().map(|(_, name, _)| name).collect();
        let mut declared = PROJECTIONS.to_vec();
        declared.sort_unstable();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, declared);
    }

    #[tokio::test]
    async fn every_projection_can_be_rebuilt() {
        let test = TestPlace::new().await;
        let models = ReadModels::open(&test.place).await.unwrap();
        let names: Vec<_> = models.projections.iter().map(|of| of.name()).collect();
        assert_eq!(names, PROJECTIONS);
    }
}
