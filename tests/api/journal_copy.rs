//! A journal that is moved into the other kind of store, and served from there.

use serde_json::{Value, json};
use souk_actors::testing::postgres;

use crate::support::{Ended, Sale, Server, Start, wish};

fn copy(server: &Server, from: &str, to: &str) -> Ended {
    server.command(&["journal", "copy", "--from", from, "--to", to, "--json"]).run()
}

fn moved(server: &Server, from: &str, to: &str) {
    let done = copy(server, from, to);
    assert_eq!(done.code, 0, "{}", done.errors);
    let done: Value = serde_json::from_str(&done.output).unwrap();
    assert!(done["events"].as_u64().unwrap() > 20, "{done}");
    assert!(done["rows"].as_u64().unwrap() > 10, "{done}");
}

/// What people see of a market.
async fn seen(server: &Server, sale: &Sale) -> Vec<Value> {
    server.at_rest().await;
    let (order, correlation) = (&sale.order.id, &sale.order.correlation_id);
    let paths = [
        format!("/api/v1/orders/{order}"),
        format!("/api/v1/orders/{order}/history"),
        format!("/api/v1/orders/{order}/escrow"),
        format!("/api/v1/listings/{}", sale.listing_id),
        format!("/api/v1/users/{}", sale.buyer.user_id),
        format!("/api/v1/admin/aggregates/order/{order}/history"),
        format!("/api/v1/events?correlationId={correlation}&limit=200"),
    ];
    let mut seen = Vec::new();
    for path in paths {
        let answer = server.admin().get(&path).await.expect(200);
        seen.push(answer.json().clone());
    }
    seen
}

/// Sessions, logins and keys work, commands are taken, repeats are known, and everything adds up.
async fn goes_on(server: &Server, sale: &Sale) {
    let me = sale.buyer.client.get("/api/v1/users/me").await.expect(200);
    assert_eq!(me["email"], sale.buyer.email, "{me:?}");
    server.login(&sale.buyer.email, &sale.buyer.password).await.expect(200);
    let again = keyed(sale).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let audit = server.admin().get("/api/v1/admin/audit").await.expect(200);
    let found = (&audit["missing"], &audit["duplicate_effects"]);
    assert_eq!(found, (&json!(0), &json!(0)), "{audit:?}");
}

/// An order under a key.
async fn keyed(sale: &Sale) -> crate::support::Answer {
    let client = sale.buyer.client.keyed("moved");
    client.post("/api/v1/orders", &wish(&sale.listing_id, 1, "sandbox")).await.expect(201)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_moves_to_postgresql_and_back() {
    let mut server = Start::on_files().partitions(3).start().await;
    let sale = server.sale(20, 2, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let second = keyed(&sale).await.text("order_id");
    server.order_eventually(&second, "SHIPPED").await;
    let before = seen(&server, &sale).await;

    let files = format!("sqlite:{}", server.journal().display());
    let database = postgres::Server::shared().create_database().await;
    let running = copy(&server, &files, &database);
    assert_eq!(running.code, 1, "{}", running.output);
    assert!(running.errors.contains("journal.db.lock"), "{}", running.errors);
    assert!(server.terminate().await.success());
    moved(&server, &files, &database);
    server.move_to(&database);
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}", verified.output);
    server.start_again().await;
    assert_eq!(seen(&server, &sale).await, before);
    goes_on(&server, &sale).await;
    let after = seen(&server, &sale).await;
    assert!(server.terminate().await.success());
    let taken = copy(&server, &files, &database);
    assert_eq!(taken.code, 1, "nothing is copied over a journal");
    assert!(taken.errors.contains("there is a journal"), "{}", taken.errors);
    let taken = copy(&server, &database, &files);
    assert_eq!(taken.code, 1, "nor over a file");
    assert!(taken.errors.contains("there is a journal"), "{}", taken.errors);

    // Back into a file of another name, since the first one is still there.
    let back = format!("sqlite:{}", server.folder().join("back.db").display());
    moved(&server, &database, &back);
    server.move_to(&back);
    server.start_again().await;
    assert_eq!(seen(&server, &sale).await, after);
    goes_on(&server, &sale).await;
    server.finish().await;
}

#[tokio::test]
async fn a_journal_that_is_not_there_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let server = Start::on_files().start().await;
    let none = folder.path().join("none.db");
    let target = format!("sqlite:{}", folder.path().join("new.db").display());
    let run = copy(&server, &format!("sqlite:{}", none.display()), &target);
    assert_eq!(run.code, 1);
    assert!(run.errors.contains("there is no journal to read"), "{}", run.errors);
    assert!(!none.exists());
    let run = copy(&server, "mysql://market", &target);
    assert_eq!(run.code, 1);
    assert!(run.errors.contains("--from must be postgres://"), "{}", run.errors);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    server.finish().await;
}
