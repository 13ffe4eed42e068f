//! Read models: what the journal says, arranged for the questions that are asked.
//!
//! ```text
//!   journal ──broker──▶ Projected<Table> ──rows and checkpoint, one transaction──▶ read.db
//!                                                                                     │
//!   HTTP ◀──────────────────────────── ReadModels ◀───────── a pool that only reads ──┘
//! ```
//!
//! Nothing here is the truth: the file can be deleted and is rebuilt from the journal. No row holds
//! personal data, so an erasure needs no work here. Aggregates answer for themselves; these tables
//! answer what no aggregate can: lists, searches, look-ups by something other than the id.

pub mod categories;
pub mod db;
pub mod events_index;
mod positions;
#[cfg(test)]
mod testing;
pub mod users;
pub mod view;

use std::collections::BTreeMap;
use std::path::Path;

use souk_actors::event::Position;
use souk_actors::runtime::Subscription;
use uuid::Uuid;

pub use categories::CategoryRow;
pub use db::ReadError;
pub use events_index::EventFilter;
pub use users::{UserFilter, UserRow};

use db::ReadDb;
use positions::Positions;
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
/// The sagas.
pub const SAGAS_VIEW: &str = "sagas-view";

/// Every projection.
pub const PROJECTIONS: [&str; 8] = [
    EVENTS_INDEX,
    LISTINGS_VIEW,
    ORDERS_VIEW,
    SHIPMENTS_VIEW,
    NOTIFICATIONS_VIEW,
    CATEGORIES_VIEW,
    USERS_VIEW,
    SAGAS_VIEW,
];

/// The read models; cheap to clone.
#[derive(Clone)]
pub struct ReadModels {
    db: ReadDb,
    positions: Positions,
}

impl ReadModels {
    /// Opens the read models in this folder.
    pub async fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let db = ReadDb::open(&data_dir.join(db::FILE_NAME)).await?;
        Ok(Self { db, positions: Positions::default() })
    }

    /// As [`ReadModels::open`], but a file that has seen more of the journal than there is (the
    /// journal was restored from a backup, or begun anew) is deleted first, to be rebuilt.
    pub async fn open_for(data_dir: &Path, heads: &[Position]) -> anyhow::Result<Self> {
        let models = Self::open(data_dir).await?;
        if !models.is_ahead(heads).await? {
            return Ok(models);
        }
        tracing::warn!("the read models are ahead of the journal: rebuilding them from it");
        models.db.close().await;
        for suffix in ["", "-wal", "-shm"] {
            let path = data_dir.join(format!("{}{suffix}", db::FILE_NAME));
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Self::open(data_dir).await
    }

    async fn is_ahead(&self, heads: &[Position]) -> Result<bool, ReadError> {
        let query = db::Query::new(
            "SELECT partition, MAX(position) FROM projection_checkpoints GROUP BY partition",
        );
        let seen = self.db.fetch_as(query, |row| Ok((row.int(0)?, row.count(1)?))).await?;
        Ok(seen.into_iter().any(|(partition, position)| {
            let head = heads.iter().find(|head| i64::from(head.partition) == partition);
            head.is_none_or(|head| position > head.position)
        }))
    }

    /// The subscriptions that keep the read models up to date.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        vec![
            self.subscription("platform", events_index::EventsIndex::default()),
            self.view::<categories::CategoriesView>("listings"),
            self.view::<users::UsersView>("users"),
        ]
    }

    fn view<V: View>(&self, context: &str) -> Subscription {
        self.subscription(context, ViewTable::<V>::default())
    }

    fn subscription<T: Table>(&self, context: &str, table: T) -> Subscription {
        let projected = Projected::new(table, self.db.clone(), self.positions.clone());
        Subscription::projection(T::NAME, context, T::TOPICS, projected)
    }

    /// Where the events are that match, in order, behind a position per partition.
    pub async fn events(
        &self,
        filter: &EventFilter,
        after: &BTreeMap<u16, u64>,
        limit: u32,
    ) -> Result<Vec<Position>, ReadError> {
        events_index::find(&self.db, filter, after, limit).await
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

    /// Everything of the partition up to here has had its effect on this projection. An unknown
    /// projection stands at 0.
    pub async fn position(&self, projection: &str, partition: u16) -> Result<u64, ReadError> {
        match PROJECTIONS.into_iter().find(|name| *name == projection) {
            Some(name) => self.positions.get(&self.db, name, partition).await,
            None => Ok(0),
        }
    }

    /// Closes the database; what is not projected by now is projected after the next start.
    pub async fn close(&self) {
        self.db.close().await;
    }
}
