//! What the tests of the projections share.

use std::sync::Arc;

use souk_actors::event::{EventPayload, StoredEvent};
use souk_actors::testing::stored_event;
use uuid::Uuid;

use super::db::{FILE_NAME, ReadDb};
use super::view::{Table, View};

/// A database of its own in a folder that goes with it.
pub struct TestDb {
    /// The database.
    pub db: ReadDb,
    dir: tempfile::TempDir,
}

/// Opens an empty database.
pub async fn open() -> TestDb {
    let dir = tempfile::tempdir().unwrap();
    TestDb { db: ReadDb::open(&dir.path().join(FILE_NAME)).await.unwrap(), dir }
}

impl TestDb {
    /// The same file in a new process, so to speak.
    pub async fn reopen(self) -> Self {
        self.db.close().await;
        Self { db: ReadDb::open(&self.dir.path().join(FILE_NAME)).await.unwrap(), dir: self.dir }
    }
}

/// An event without data.
pub fn event(event_type: &str, aggregate_type: &str, id: u128) -> StoredEvent {
    stored_event(event_type, aggregate_type, Uuid::from_u128(id), &serde_json::json!({}))
}

/// An event as its aggregate writes it.
pub fn stored<E: EventPayload>(payload: &E, aggregate_type: &str, id: Uuid) -> StoredEvent {
    let descriptor = payload.descriptor();
    StoredEvent {
        data: payload.encode().into(),
        major: descriptor.major,
        ..stored_event(descriptor.event_type, aggregate_type, id, &serde_json::Value::Null)
    }
}

/// The same events with the positions 1, 2, 3 ….
pub fn numbered(events: impl IntoIterator<Item = StoredEvent>) -> Vec<Arc<StoredEvent>> {
    (1..).zip(events).map(|(position, event)| Arc::new(StoredEvent { position, ..event })).collect()
}

/// A database that a view has taken these events into.
pub async fn filled<V: View>(events: impl IntoIterator<Item = StoredEvent>) -> TestDb {
    let test = open().await;
    let mut tx = test.db.begin().await.unwrap();
    let table = super::view::ViewTable::<V>::default();
    for event in numbered(events) {
        table.write(&mut tx, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
    test
}

/// The row after a history, through the database and back.
pub async fn row_of<V: View>(events: impl IntoIterator<Item = StoredEvent>) -> Option<V::Row> {
    let test = filled::<V>(events).await;
    let query = super::db::Query::select(V::COLUMNS, V::TABLE);
    test.db.fetch_as(query, V::read).await.unwrap().pop()
}
