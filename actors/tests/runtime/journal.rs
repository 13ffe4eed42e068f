//! The contract of the stores, and what SQLite adds to it.

use std::sync::Arc;

use souk_actors::journal::Store;
use souk_actors::journal::chain;
use souk_actors::journal::memory::MemoryStore;
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::testing::contract;
use souk_actors::testing::postgres::Server;
use sqlx::{Connection, SqliteConnection};

use crate::account::{Rig, postgres};

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    contract::run(|| async { Arc::new(MemoryStore::new(2)) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sqlite_store_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicU32::new(0);
    contract::run(|| async {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = folder.path().join(format!("{n}.db"));
        Arc::new(SqliteStore::open(&path, 2).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_keeps_the_contract() {
    contract::run(|| async {
        let url = Server::shared().create_database().await;
        Arc::new(postgres(&url, Some(2)).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

async fn raw(rig: &Rig) -> SqliteConnection {
    let path = rig.folder.as_ref().unwrap().path().join("journal.db");
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_refuses_to_change_or_delete_events() {
    let rig = Rig::on_sqlite().await;
    rig.change(1, 5).await.unwrap();
    let mut raw = raw(&rig).await;
    for statement in ["UPDATE events SET data = '{}'", "DELETE FROM events"] {
        let refused = sqlx::query(statement).execute(&mut raw).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_shows_where_it_was_done() {
    let rig = Rig::on_sqlite().await;
    for _ in 0..5 {
        rig.change(1, 5).await.unwrap();
    }
    assert_eq!(chain::verify(&*rig.store, 0, |_| {}).await.unwrap().damage, None);
    let mut raw = raw(&rig).await;
    for statement in [
        "DROP TRIGGER events_are_final",
        "UPDATE events SET data = '{\"amount\":6}' WHERE aggregate_version = 3",
    ] {
        sqlx::query(statement).execute(&mut raw).await.unwrap();
    }
    let verified = chain::verify(&*rig.store, 0, |_| {}).await.unwrap();
    assert_eq!(verified.damage.unwrap().position, 3);
    sqlx::query("UPDATE events SET data = '{\"amount\":5}' WHERE aggregate_version = 3")
        .execute(&mut raw)
        .await
        .unwrap();
    assert_eq!(chain::verify(&*rig.store, 0, |_| {}).await.unwrap().damage, None);
    for statement in
        ["DROP TRIGGER events_are_kept", "DELETE FROM events WHERE aggregate_version = 4"]
    {
        sqlx::query(statement).execute(&mut raw).await.unwrap();
    }
    let verified = chain::verify(&*rig.store, 0, |_| {}).await.unwrap();
    assert_eq!(verified.damage.unwrap().position, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_in_use_can_be_looked_at_and_not_written() {
    let rig = Rig::on_sqlite().await;
    rig.change(1, 5).await.unwrap();
    let path = rig.folder.as_ref().unwrap().path().join("journal.db");
    let reader = SqliteStore::open_read_only(&path).await.unwrap();
    assert_eq!(chain::verify(&reader, 0, |_| {}).await.unwrap().events, 1);
    assert!(reader.acquire(0).await.is_err());
    rig.change(1, 5).await.unwrap();
    assert_eq!(chain::verify(&reader, 0, |_| {}).await.unwrap().events, 2);
    let nowhere = rig.folder.as_ref().unwrap().path().join("nowhere.db");
    assert!(SqliteStore::open_read_only(&nowhere).await.is_err());
    assert!(!nowhere.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_view_has_the_columns_of_an_outbox() {
    let rig = Rig::on_sqlite().await;
    rig.change(1, 5).await.unwrap();
    let mut raw = raw(&rig).await;
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('outbox_events')")
            .fetch_all(&mut raw)
            .await
            .unwrap();
    let expected = "id,aggregate_type,aggregate_id,event_type,payload,created_at,published_at,retry_count,last_error";
    assert_eq!(columns.join(","), expected);
    let (event_id, created): (String, String) =
        sqlx::query_as("SELECT id, created_at FROM outbox_events")
            .fetch_one(&mut raw)
            .await
            .unwrap();
    assert!(uuid::Uuid::parse_str(&event_id).is_ok(), "{event_id}");
    assert!(souk_actors::world::Timestamp::parse(&created).is_some(), "{created}");
}
