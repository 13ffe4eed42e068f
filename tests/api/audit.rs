//! The audit of deliveries (S1-135): it finds nothing where nothing is wrong, and what was taken away
//! or put in by hand.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::journal::{Batch, Store as _};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Ended, Server, Start, eventually, on_postgres};

with_one_and_three_partitions!(a_healthy_system_lacks_nothing_and_has_nothing_twice);

impl Server {
    /// The whole audit in one call.
    async fn audit(&self) -> Answer {
        let report = self.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
        assert_eq!((&report["complete"], &report["next_cursor"]), (&json!(true), &Value::Null));
        report
    }

    /// What `souk audit` says of it.
    fn audit_by_command(&self, arguments: &[&str]) -> Ended {
        self.command(&[&["audit"], arguments].concat()).with("SOUK_URL", self.url()).run()
    }
}

/// What an audit found wrong.
fn wrong(report: &Answer) -> (u64, u64, u64) {
    let number = |name: &str| report[name].as_u64().unwrap();
    (number("missing"), number("duplicate_effects"), number("out_of_order"))
}

/// A number of one subscription.
fn of(report: &Answer, subscription: &str, name: &str) -> u64 {
    let all = report["subscriptions"].as_array().unwrap();
    let found = all.iter().find(|of| of["subscription"] == subscription);
    found.unwrap_or_else(|| panic!("{subscription}: {report:?}"))[name].as_u64().unwrap()
}

/// Purchases that go well and such that do not.
async fn business(server: &Server) {
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    for (quantity, method, status) in [
        (1, "sandbox", "SHIPPED"),
        (1, "test_decline", "PAYMENT_FAILED"),
        (9, "sandbox", "REJECTED"),
        (1, "test_pending", "CONFIRMED"),
    ] {
        let order = server.place_order(&bea.client, &listing, quantity, method).await;
        server.order_eventually(&order.id, status).await;
    }
    let path = format!("/api/v1/listings/{listing}");
    let dearer = json!({ "price": { "amount": 200_000, "currency": "VND" } });
    sam.client.if_match("*").patch(&path, &dearer).await.expect(200);
    server.at_rest().await;
}

async fn a_healthy_system_lacks_nothing_and_has_nothing_twice(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    business(&server).await;
    let report = server.audit().await;
    assert_eq!(wrong(&report), (0, 0, 0), "{}", report.raw());
    let events = server.events("").await.len() as u64;
    assert_eq!(report["events"], events);
    assert_eq!(of(&report, "events-index", "checked"), events);
    for subscription in [
        "listings-view",
        "orders-view",
        "shipments-view",
        "notifications-view",
        "categories-view",
        "users-view",
        "sessions-view",
        "sagas-view",
        "search-view",
        "analytics-view",
        "notifications",
        "notification-email",
        "email-claims",
        "payment-gateway",
        "order_saga-facts",
    ] {
        assert!(of(&report, subscription, "checked") > 0, "{subscription}: {}", report.raw());
        assert_eq!(of(&report, subscription, "pending"), 0, "{subscription}: {}", report.raw());
    }
    assert_eq!(server.metric_of("souk_audit_missing_events").await, Some(0.0));
    let told = server.audit_by_command(&[]);
    assert_eq!(told.code, 0, "{}", told.errors);
    assert!(told.output.contains("every one had its effect, once and in order"), "{}", told.output);

    // In pages it comes to the same.
    let (mut sums, mut cursor, mut calls) = (BTreeMap::new(), String::new(), 0);
    loop {
        let path = format!("/api/v1/admin/audit?limit=40{cursor}");
        let part = server.admin().get(&path).await.expect(200);
        calls += 1;
        for name in ["missing", "duplicate_effects", "out_of_order", "events", "aggregates", "rows"]
        {
            *sums.entry(name).or_insert(0) += part[name].as_u64().unwrap();
        }
        match part["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(calls > 1);
    for (name, sum) in sums {
        assert_eq!(report[name], sum, "{name}");
    }
    server.finish().await;
}

#[tokio::test]
async fn the_audit_is_for_administrators_and_within_bounds() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    server.visitor().get("/api/v1/admin/audit").await.problem(401, "unauthenticated");
    ann.client.get("/api/v1/admin/audit").await.problem(403, "insufficient_scope");
    for query in ["limit=0", "limit=200001", "limit=many"] {
        let path = format!("/api/v1/admin/audit?{query}");
        server.admin().get(&path).await.problem(400, "invalid_parameter");
    }
    let made_up = server.admin().get("/api/v1/admin/audit?cursor=abc").await;
    made_up.problem(400, "invalid_cursor");

    let stranger = server.command(&["audit"]).with("SOUK_URL", server.url());
    let told = stranger.with("SOUK_TOKEN", "made-up").run();
    assert_eq!(told.code, 1);
    assert!(told.errors.contains("401, invalid_token"), "{}", told.errors);
    let missing = server.command(&["audit", "--token-file", "no-such-file"]).run();
    assert!(missing.errors.contains("SOUK_TOKEN"), "{}", missing.errors);
    let nobody = server.command(&["audit", "--url", "http://127.0.0.1:1"]).run();
    assert!(nobody.errors.contains("no server answers at http://127.0.0.1:1"), "{}", nobody.errors);
    server.finish().await;
}

#[tokio::test]
async fn what_is_taken_away_or_put_in_by_hand_is_found() {
    if on_postgres() {
        // It changes SQLite's files by hand.
        return;
    }
    let mut server = Server::start().await;
    business(&server).await;
    assert_eq!(wrong(&server.audit().await), (0, 0, 0));
    assert!(server.terminate().await.success());
    let pool = server.open_sqlite("read.db").await;
    for (sql, rows) in [
        ("DELETE FROM listings_v3", 1),
        ("DELETE FROM events_v2 WHERE position = 7", 1),
        ("UPDATE orders_v2 SET status = 'PAID' WHERE status = 'SHIPPED'", 1),
        (
            "INSERT INTO users_v1 SELECT '01990000-0000-7000-8000-000000000000', status, roles, \
             seller_status, registered_ms, updated_ms, email_verified FROM users_v1 LIMIT 1",
            1,
        ),
        (
            "INSERT INTO events_v2 SELECT partition, 1000000, event_id, event_type, major, \
             aggregate_type, aggregate_id, aggregate_key, correlation_id, causation_id, \
             timestamp_ms \
             FROM events_v2 WHERE position = 8",
            1,
        ),
    ] {
        let done = sqlx::query(sql).execute(&pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(done.rows_affected(), rows, "{sql}");
    }
    pool.close().await;
    server.start_again().await;
    let report = server.audit().await;
    let found = |subscription: &str| {
        (of(&report, subscription, "missing"), of(&report, subscription, "duplicate_effects"))
    };
    assert_eq!(found("listings-view"), (1, 0), "{}", report.raw());
    assert_eq!(found("orders-view"), (1, 0), "{}", report.raw());
    assert_eq!(found("users-view"), (0, 1), "{}", report.raw());
    assert_eq!(found("events-index"), (1, 1), "{}", report.raw());
    assert_eq!(wrong(&report), (3, 2, 0), "{}", report.raw());
    assert_eq!(report["findings"].as_array().unwrap().len(), 5);
    assert_eq!(server.metric_of("souk_audit_missing_events").await, Some(3.0));

    let told = server.audit_by_command(&["--json"]);
    assert_eq!(told.code, 1, "{}", told.errors);
    let told: Value = serde_json::from_str(&told.output).unwrap();
    assert_eq!((&told["healthy"], &told["findings"]), (&json!(false), &report["findings"]));
}

/// S1-135: without anybody asking.
#[tokio::test]
async fn the_audit_runs_by_itself() {
    let mut server = Start::default().with("AUDIT_INTERVAL", "200ms").start().await;
    business(&server).await;
    let events = server.events("").await.len() as u64;
    let standing = eventually("an audit of everything", || async {
        let standing = server.admin().get("/api/v1/admin/audit/last").await.expect(200);
        (standing["last"]["report"]["events"].as_u64()? >= events).then_some(standing)
    })
    .await;
    let report = &standing["last"]["report"];
    assert_eq!(standing["last"]["healthy"], true, "{}", standing.raw());
    assert_eq!((&report["missing"], &report["findings"]), (&json!(0), &json!([])));
    assert_eq!(server.metric_of("souk_audit_missing_events").await, Some(0.0));
    assert!(server.metric_of("souk_audit_completed_timestamp_seconds").await.unwrap() > 0.0);
    let told = server.audit_by_command(&["--last"]);
    assert_eq!(told.code, 0, "{}", told.errors);
    assert!(told.output.contains("Audited from"), "{}", told.output);
    if on_postgres() {
        // What follows changes SQLite's files by hand.
        server.finish().await;
        return;
    }
    assert!(server.terminate().await.success());
    let pool = server.open_sqlite("read.db").await;
    sqlx::query("DELETE FROM listings_v3").execute(&pool).await.unwrap();
    pool.close().await;
    server.start_again().await;
    let found = eventually("an audit that finds it", || async {
        let standing = server.admin().get("/api/v1/admin/audit/last").await.expect(200);
        (standing["last"]["healthy"] == false).then_some(standing)
    })
    .await;
    let finding = &found["last"]["report"]["findings"][0];
    assert_eq!(
        (&finding["subscription"], &finding["problem"]),
        (&json!("listings-view"), &json!("missing"))
    );
    assert_eq!(server.metric_of("souk_audit_missing_events").await, Some(1.0));
    server.logged(&["the audit found that events have not had their effect"]).await;
    assert_eq!(server.audit_by_command(&["--last"]).code, 1);
}

#[tokio::test]
async fn a_server_that_is_told_so_makes_no_audits() {
    let server = Start::default().with("AUDIT_INTERVAL", "0s").start().await;
    let standing = server.admin().get("/api/v1/admin/audit/last").await.expect(200);
    assert_eq!((&standing["interval_seconds"], &standing["last"]), (&json!(0), &Value::Null));
    let told = server.audit_by_command(&["--last"]);
    assert_eq!(told.code, 1);
    assert!(told.output.contains("AUDIT_INTERVAL"), "{}", told.output);
    server.finish().await;
}

#[tokio::test]
async fn an_event_that_no_handler_ever_saw_is_found() {
    if on_postgres() {
        // It changes SQLite's files by hand.
        return;
    }
    let mut server = Server::start().await;
    server.pause("notifications").await;
    let ann = server.newcomer("Ann").await;
    server.caught_up("events-index").await;
    let report = server.audit().await;
    assert_eq!(of(&report, "notifications", "pending"), 1, "not handled yet is not missing");
    assert_eq!(wrong(&report), (0, 0, 0), "{}", report.raw());
    assert!(server.terminate().await.success());
    // Somebody moves it on by hand.
    let store = SqliteStore::open(&server.journal(), 1).await.unwrap();
    let lease = store.acquire(0).await.unwrap();
    let position = store.head(0).await.unwrap().position;
    let mut checkpoints = store.checkpoints("notifications", 0).await.unwrap();
    assert!(checkpoints.iter().any(|checkpoint| checkpoint.position < position));
    checkpoints.iter_mut().for_each(|checkpoint| checkpoint.position = position);
    store.append(lease, &Batch { checkpoints, ..Batch::default() }).await.unwrap();
    drop(store);
    server.start_again().await;
    server.resume("notifications").await;
    server.at_rest().await;
    assert_eq!(server.mails(&ann.email).await.len(), 0);
    let report = server.audit().await;
    assert_eq!(wrong(&report), (1, 0, 0), "{}", report.raw());
    assert_eq!(report["findings"][0]["subscription"], "notifications");
    assert_eq!(report["findings"][0]["aggregate_id"], ann.user_id.as_str());
}

#[tokio::test]
async fn what_has_a_letter_or_was_given_up_is_excused() {
    let server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    server.fault("notifications", "fail", json!({ "kind": "permanent", "times": 1 })).await;
    let ann = server.newcomer("Ann").await;
    server.at_rest().await;
    let letters = server.letters(Some("notifications")).await;
    assert_eq!(letters.len(), 1);
    let report = server.audit().await;
    assert_eq!((wrong(&report), of(&report, "notifications", "excused")), ((0, 0, 0), 1));
    let path =
        format!("/api/v1/dlq/notifications/{}/{}/discard", letters[0]["partition"], ann.user_id);
    server.admin().if_match("*").post(&path, &json!({})).await.expect(200);
    server.at_rest().await;
    let report = server.audit().await;
    assert_eq!((wrong(&report), of(&report, "notifications", "excused")), ((0, 0, 0), 1));
    server.finish().await;
}
