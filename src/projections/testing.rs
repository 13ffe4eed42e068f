//! What the tests of the projections share.

use std::sync::Arc;

use souk_actors::event::{EventPayload, StoredEvent};
use souk_actors::testing::stored_event;
use uuid::Uuid;

use super::db::{FILE_NAME, Place, ReadDb};
use super::view::{Table, View};

/// Which store the tests are for: `sqlite`, or `postgres` with a server of the tests' own.
const STORE_VARIABLE: &str = "SOUK_TEST_STORE";

/// A place for read models of one test: a folder that goes with it, or a database of a server that
/// goes with the tests.
pub struct TestPlace {
    /// The place.
    pub place: Place,
    _dir: Option<tempfile::TempDir>,
}

impl TestPlace {
    /// An empty one.
    pub async fn new() -> Self {
        if std::env::var(STORE_VARIABLE).is_ok_and(|store| store == "postgres") {
            let server = souk_actors::testing::postgres::Server::shared();
            let options = server.create_database().await.parse().unwrap();
            return Self { place: Place::Postgres(Box::new(options)), _dir: None };
        }
        let dir = tempfile::tempdir().unwrap();
        Self { place: Place::File(dir.path().join(FILE_NAME)), _dir: Some(dir) }
    }
}

/// A database of its own.
pub struct TestDb {
    /// The database.
    pub db: ReadDb,
    place: TestPlace,
}

async fn opened(place: &TestPlace) -> ReadDb {
    super::open_versions(ReadDb::open(&place.place).await.unwrap()).await.unwrap()
}

/// Opens an empty database.
pub async fn open() -> TestDb {
    let place = TestPlace::new().await;
    TestDb { db: opened(&place).await, place }
}

impl TestDb {
    /// The same in a new process, so to speak.
    pub async fn reopen(self) -> Self {
        self.db.close().await;
        Self { db: opened(&self.place).await, place: self.place }
    }

    /// Another handle on the same, as another process would have it.
    pub async fn again(&self) -> ReadDb {
        opened(&self.place).await
    }

    /// Whether it is on PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.place.place, Place::Postgres(_))
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
    let table = super::view::ViewTable::<V>::of_version(1);
    for event in numbered(events) {
        table.write(&mut tx, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
    test
}

/// The row after a history, through the database and back.
pub async fn row_of<V: View>(events: impl IntoIterator<Item = StoredEvent>) -> Option<V::Row> {
    let test = filled::<V>(events).await;
    let query = super::db::Query::select(V::COLUMNS, &test.db.table(V::NAME, V::TABLE));
    test.db.fetch_as(query, V::read).await.unwrap().pop()
}
