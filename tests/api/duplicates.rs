//! Every handler bears a repeat (S1-139): the whole history is delivered again to everybody who
//! listens, and nothing changes: no event, no row, no mail, no payment.

use std::collections::{BTreeMap, BTreeSet};

use image::ImageFormat;
use serde_json::{Value, json};
use sqlx::{Column as _, Row as _, SqlitePool};

use crate::images::{picture, upload};
use crate::support::{Person, Server, Start, on_postgres, wish};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delivery_with_one_and_three_partitions() {
    a_second_delivery_of_everything_changes_nothing(1).await;
    a_second_delivery_of_everything_changes_nothing(3).await;
}

/// Catalogue events that this story need not lead to: what no request leads to yet (a person who
/// leaves, is suspended, reads), and what takes a crash, a race, or a provider that lies. A letter that
/// was discarded is handled after all when its event comes again: that is no repeat.
const UNTOLD: &[&str] = &[
    "aggregate.quarantined",
    "aggregate.released",
    "analytics.alert.resolved",
    "analytics.alert.triggered",
    "analytics.report.generated",
    "analytics.report.requested",
    "announcement.advanced",
    "email_claim.lapsed",
    "email_claim.released",
    "escrow.barred",
    "inventory.reservation_barred",
    "notification.acknowledged",
    "notification.email.bounced",
    "notification.email.deferred",
    "notification.email.failed",
    "notification.email.outcome_unknown",
    "notification.read",
    "notification.sms.deferred",
    "notification.sms.failed",
    "notification.sms.outcome_unknown",
    "order.failed",
    "order.settlement_due",
    "order.settlement_postponed",
    "payment.closed",
    "payment.inquiry_requested",
    "payment.refund_failed",
    "payment.rejected",
    "projection.cut_over",
    "projection.rebuild_paused",
    "projection.rebuild_requested",
    "projection.rebuild_resumed",
    "projection.rolled_back",
    "projection.version_discarded",
    "promotion.redemption_barred",
    "promotion.redemption_refused",
    "publication.discarded",
    "publication.expired",
    "saga.compensation_requested",
    "saga.retry_requested",
    "service.error",
    "subscription.discard_requested",
    "subscription.dlq_filled",
    "subscription.dlq_relieved",
    "subscription.replay_cancelled",
    "subscription.replay_completed",
    "subscription.replay_failed",
    "subscription.replay_requested",
    "subscription.skip_requested",
    "user.address_added",
    "user.address_changed",
    "user.address_removed",
    "user.email_reachable",
    "user.email_unreachable",
    "user.erased",
    "user.password_changed",
    "user.password_reset",
    "user.password_reset_requested",
    "user.registration_abandoned",
    "user.reinstated",
    "user.role_granted",
    "user.sessions_ended",
    "user.suspended",
    "user.verification_requested",
    "webhook.delivery.deferred",
    "webhook.delivery.exhausted",
    "webhook.delivery.failed",
    "webhook.delivery.queued",
    "webhook.delivery.skipped",
    "webhook.delivery.started",
    "webhook.delivery.succeeded",
    "webhook.endpoint_created",
    "webhook.endpoint_deleted",
    "webhook.endpoint_disabled",
    "webhook.endpoint_enabled",
    "webhook.endpoint_failed",
    "webhook.endpoint_pinged",
    "webhook.endpoint_recovered",
    "webhook.endpoint_updated",
    "webhook.redelivery.requested",
    "webhook.secret_rotated",
];

/// Subscriptions to what the story does not lead to. Webhooks call somebody again when it is time, so
/// that what they store is not the same a moment later; their own tests kill the server under them.
const UNASKED: &[&str] = &[
    "erasures",
    "mail-bounces",
    "order_saga-retries",
    "report-mails",
    "reports",
    "sequence-gaps",
    "sequence-gaps-settled",
    "webhook-deliveries-view",
    "webhook-fanout",
    "webhook-sender",
];

/// Something of everything: people, sellers accepted and refused, listings, orders that end in every
/// way, notifications, subscriptions at work.
async fn story(server: &Server) {
    let admin = server.admin();
    let (mut sam, mut bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let rob = server.buyer("Rob").await;
    server.become_seller(&rob).await.expect(200);
    let path = format!("/api/v1/admin/sellers/{}/reject", rob.user_id);
    admin.post(&path, &json!({ "reason": "no such street" })).await.expect(200);
    let path = format!("/api/v1/users/{}", bea.user_id);
    let change = json!({ "first_name": "Beatrice", "phone": "+84901234567", "sms_opt_in": true });
    bea.client.patch(&path, &change).await.expect(200);
    let preferences = json!({ "email": { "orders": false } }).to_string().into_bytes();
    let path = "/api/v1/users/me/notification-preferences";
    bea.client.send(reqwest::Method::PUT, path, Some(preferences)).await.expect(200);
    let category = server.category().await;
    for verb in ["deactivate", "activate"] {
        server.switch(&category, verb).await;
    }
    from_outside(server).await;
    settings(server).await;
    server.fault("notification-email", "fail", json!({ "times": 1 })).await;
    let listing = server.listing(&sam, 6).await;
    let path = format!("/api/v1/listings/{listing}");
    let dearer = json!({ "price": { "amount": 200_000, "currency": "VND" } });
    sam.client.if_match("*").patch(&path, &dearer).await.expect(200);
    market_stand(server, &sam, &bea, &listing).await;
    let buy = async |quantity, method: &str, status: &str| {
        let order = server.place_order(&bea.client, &listing, quantity, method).await;
        server.order_eventually(&order.id, status).await;
        order.id
    };
    let delivered = buy(1, "sandbox", "SHIPPED").await;
    buy(1, "test_decline", "PAYMENT_FAILED").await;
    buy(1, "test_hold_lost", "PAYMENT_FAILED").await;
    buy(99, "sandbox", "REJECTED").await;
    let cancelled = buy(1, "test_pending", "CONFIRMED").await;
    let path = format!("/api/v1/orders/{cancelled}/cancel");
    bea.client.post(&path, &json!({ "reason": "too big" })).await.expect(200);
    buy(1, "test_timeout", "CONFIRMED").await;
    let hold = server.fault("order_saga-facts", "fail", json!({ "key": "shipment.created" })).await;
    let refunded = buy(1, "sandbox", "PAID").await;
    let path = format!("/api/v1/orders/{refunded}/cancel");
    bea.client.post(&path, &json!({ "reason": "changed my mind" })).await.expect(200);
    server.mend(hold).await;
    server.at_rest().await;
    server.arrives(&delivered, &sam.client, &bea.client).await;
    followers(server, &sam, &bea, &listing).await;
    reviews(server, &sam, &bea, &delivered).await;
    after_sales(server, &sam, &bea).await;
    last_unit(server, &sam, &bea).await;
    letters(server).await;
    let gone = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{gone}/archive");
    sam.client.post(&path, &json!({})).await.expect(200);
    more_of_the_shop(server, &sam, &gone).await;
    server.pause("order-progress").await;
    server.resume("order-progress").await;
    server.at_rest().await;
    // What waits for a time, and tokens are over by then.
    buy(1, "test_pending", "CONFIRMED").await;
    server.advance_clock(36 * 60).await;
    server.at_rest().await;
    server.advance_clock(60 * 60).await;
    server.at_rest().await;
    sam.log_in_again().await;
    bea.log_in_again().await;
    let body = json!({ "refresh_token": bea.refresh_token });
    let fresh = bea.client.post("/api/v1/auth/refresh", &body).await.expect(200);
    let body = json!({ "refresh_token": fresh.text("refresh_token") });
    bea.client.post("/api/v1/auth/logout", &body).await;
    server.at_rest().await;
}

/// Something is sent back, refused, disputed, sent back again and taken; the seller is paid out once and
/// once not.
async fn after_sales(server: &Server, sam: &Person, bea: &Person) {
    let listing = server.listing(sam, 3).await;
    let order = server.place_order(&bea.client, &listing, 2, "sandbox").await.id;
    server.arrives(&order, &sam.client, &bea.client).await;
    let path = format!("/api/v1/orders/{order}");
    let back = async |verdict: &str| {
        let wish = json!({ "reason": "damaged", "comment": "Look at it." });
        let asked = bea.client.post(&format!("{path}/returns"), &wish).await.expect(201);
        let decide = format!("{path}/returns/{}/{verdict}", asked.text("return_id"));
        sam.client.post(&decide, &json!({ "reason": "it is whole" })).await.expect(200);
    };
    back("refuse").await;
    let wish = json!({ "reason": "return_refused", "comment": "It is not." });
    bea.client.post(&format!("{path}/dispute"), &wish).await.expect(201);
    let decision = json!({ "refund_amount": 1_000, "reason": "A scratch." });
    let decide = format!("/api/v1/admin/orders/{order}/dispute/resolve");
    server.admin().post(&decide, &decision).await.expect(200);
    server.at_rest().await;
    back("accept").await;
    server.at_rest().await;
    let to = json!({ "bank": "B", "holder": "Sam", "number": "0011 0012" });
    for (verb, word) in [("complete", "reference"), ("fail", "reason")] {
        let wish = json!({ "amount": 1_000, "destination": to });
        let payout = sam.client.post("/api/v1/me/payouts", &wish).await.expect(201);
        let path = format!("/api/v1/admin/payouts/{}/{verb}", payout.text("payout_id"));
        server.admin().post(&path, &json!({ word: "FT-1" })).await.expect(200);
    }
}

/// A listing comes back, another is restocked, a draft is published.
async fn more_of_the_shop(server: &Server, sam: &Person, withdrawn: &str) {
    let path = format!("/api/v1/listings/{withdrawn}");
    sam.client.post(&format!("{path}/reactivate"), &json!({})).await.expect(200);
    sam.client.post(&format!("{path}/restock"), &json!({ "quantity": 4 })).await.expect(200);
    let mut draft = server.offer(1).await;
    draft["draft"] = json!(true);
    let draft = sam.client.post("/api/v1/listings", &draft).await.expect(201).text("listing_id");
    let path = format!("/api/v1/listings/{draft}/publish");
    sam.client.post(&path, &json!({})).await.expect(200);
    let action = json!({ "action": "page_viewed", "subject": draft });
    sam.client.post("/api/v1/analytics/events", &action).await.expect(202);
}

/// A publisher outside comes and goes, and tells two events the wrong way round.
async fn from_outside(server: &Server) {
    let admin = server.admin();
    let schema = json!({ "version": "1.0", "schema": { "type": "object" } }).to_string();
    let path = "/api/v1/admin/event-types/partner.stock.counted";
    admin.send(reqwest::Method::PUT, path, Some(schema.into_bytes())).await.expect(201);
    let wish = json!({ "name": "the warehouse", "scopes": ["publisher"] });
    let token =
        admin.post("/api/v1/admin/service-tokens", &wish).await.expect(201).text("token_id");
    admin.delete(&format!("/api/v1/admin/service-tokens/{token}")).await.expect(204);
    let wish = json!({ "name": "the till", "scopes": ["publisher"] });
    let till = admin.post("/api/v1/admin/service-tokens", &wish).await.expect(201);
    let till = server.visitor().with_token(&till.text("token"));
    let (path, policy) = ("/api/v1/admin/event-sources/%2Fpos", b"{}".to_vec());
    admin.send(reqwest::Method::PUT, path, Some(policy)).await.expect(200);
    admin.delete(path).await.expect(204);
    for sequence in [2, 1] {
        let event = json!({
            "event_type": "partner.stock.counted", "source": "/erp", "key": "shelf-1",
            "id": sequence.to_string(), "sequence": sequence, "data": {},
        });
        till.post("/api/v1/events", &event).await.expect(202);
    }
}

/// How a subscription is run is changed.
async fn settings(server: &Server) {
    let path = "/api/v1/admin/subscriptions/order-progress";
    let policy = json!({
        "max_retries": 4, "delay_ms": 20, "exponential_backoff": true, "max_delay_ms": 30_000,
    });
    for (setting, body) in
        [("retry-policy", policy), ("handler-timeout", json!({ "handler_timeout_ms": 20_000 }))]
    {
        let (path, body) = (format!("{path}/{setting}"), body.to_string().into_bytes());
        server
            .admin()
            .if_match("*")
            .send(reqwest::Method::PUT, &path, Some(body))
            .await
            .expect(200);
    }
}

/// A seller is followed and a listing remembered, there is news of both, and then no more.
async fn followers(server: &Server, sam: &Person, bea: &Person, listing: &str) {
    let follow = format!("/api/v1/users/{}/follow", sam.user_id);
    let favourite = format!("/api/v1/users/me/favourites/{listing}");
    bea.client.post(&follow, &json!({})).await.expect(200);
    bea.client.send(reqwest::Method::PUT, &favourite, None).await.expect(200);
    server.listing(sam, 1).await;
    let cheaper = json!({ "price": { "amount": 180_000, "currency": "VND" } });
    let path = format!("/api/v1/listings/{listing}");
    sam.client.if_match("*").patch(&path, &cheaper).await.expect(200);
    server.at_rest().await;
    bea.client.delete(&follow).await.expect(204);
    bea.client.delete(&favourite).await.expect(204);
}

/// A review is written, answered, hidden and shown again.
async fn reviews(server: &Server, sam: &Person, bea: &Person, order: &str) {
    let review = json!({ "transaction_id": order, "rating": 4, "comment": "As good as new." });
    let review = bea.client.post("/api/v1/reviews", &review).await.expect(201).text("review_id");
    let path = format!("/api/v1/reviews/{review}/reply");
    sam.client.post(&path, &json!({ "reply": "Thanks" })).await.expect(200);
    let edited = json!({ "reply": "Thank you" }).to_string().into_bytes();
    sam.client.send(reqwest::Method::PUT, &path, Some(edited)).await.expect(200);
    let path = format!("/api/v1/admin/reviews/{review}");
    let admin = server.admin();
    admin.post(&format!("{path}/hide"), &json!({ "reason": "an insult" })).await.expect(200);
    admin.post(&format!("{path}/restore"), &json!({})).await.expect(200);
}

/// The last unit is held, given back, and sold.
async fn last_unit(server: &Server, sam: &Person, bea: &Person) {
    let listing = server.listing(sam, 1).await;
    let order = server.place_order(&bea.client, &listing, 1, "test_pending").await;
    server.order_eventually(&order.id, "CONFIRMED").await;
    let path = format!("/api/v1/orders/{}/cancel", order.id);
    bea.client.post(&path, &json!({})).await.expect(200);
    server.at_rest().await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    let hold = server.fault("order_saga-facts", "fail", json!({ "key": "shipment.created" })).await;
    let one_more = server.listing(sam, 1).await;
    let order = server.place_order(&bea.client, &one_more, 1, "sandbox").await;
    server.order_eventually(&order.id, "PAID").await;
    let path = format!("/api/v1/orders/{}/cancel", order.id);
    bea.client.post(&path, &json!({})).await.expect(200);
    server.mend(hold).await;
    server.at_rest().await;
}

/// A letter is tried again.
async fn letters(server: &Server) {
    server.fault("notifications", "fail", json!({ "kind": "permanent", "times": 1 })).await;
    let person = server.newcomer("Lea").await;
    server.at_rest().await;
    let key = server.letters(Some("notifications")).await[0].clone();
    assert_eq!(key["key"], person.user_id.as_str());
    let path = format!("/api/v1/dlq/notifications/{}/{}/retry", key["partition"], person.user_id);
    server.admin().post(&path, &json!({})).await.expect(200);
    server.at_rest().await;
}

/// Everything in a database's tables, row by row, but for what says how far somebody has come and
/// when housekeeping looked in.
async fn tables(pool: &SqlitePool) -> BTreeMap<String, BTreeSet<String>> {
    let names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(pool).await.unwrap();
    let skipped =
        ["checkpoints", "projection_checkpoints", "leases", "control", "outcomes", "snapshots"];
    let mut tables = BTreeMap::new();
    for name in names {
        let full_text = name.contains("_fts") || name.contains("_text");
        if skipped.contains(&name.as_str()) || full_text || name.starts_with('_') {
            continue;
        }
        let sql = format!("SELECT * FROM {name}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await.unwrap();
        let row = |row: &sqlx::sqlite::SqliteRow| {
            let columns = row.columns().iter().map(|column| {
                let index = column.ordinal();
                let text = row.try_get_unchecked::<Option<Vec<u8>>, _>(index).unwrap();
                format!(
                    "{}={:?}",
                    column.name(),
                    text.map(|text| String::from_utf8_lossy(&text).into_owned())
                )
            });
            columns.collect::<Vec<_>>().join(" ")
        };
        tables.insert(name, rows.iter().map(row).collect());
    }
    tables
}

/// All that a server has stored.
async fn stored(server: &Server) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for file in ["journal.db", "read.db"] {
        let pool = server.open_sqlite(file).await;
        all.extend(tables(&pool).await);
        pool.close().await;
    }
    all
}

async fn begin_again(server: &Server) {
    for (file, sql) in [
        ("journal.db", "DELETE FROM checkpoints"),
        ("read.db", "UPDATE projection_checkpoints SET position = 0"),
    ] {
        let pool = server.open_sqlite(file).await;
        assert!(sqlx::query(sql).execute(&pool).await.unwrap().rows_affected() > 0);
        pool.close().await;
    }
}

fn same(before: &BTreeMap<String, BTreeSet<String>>, after: &BTreeMap<String, BTreeSet<String>>) {
    for (table, rows) in before {
        let now = &after[table];
        let lost: Vec<_> = rows.difference(now).take(3).collect();
        let new: Vec<_> = now.difference(rows).take(3).collect();
        assert!(lost.is_empty() && new.is_empty(), "{table}\nbefore: {lost:#?}\nafter: {new:#?}");
    }
    assert_eq!(before.len(), after.len());
}

async fn a_second_delivery_of_everything_changes_nothing(partitions: u16) {
    if on_postgres() {
        // It changes SQLite's files by hand.
        return;
    }
    let mut server = Start::default()
        .partitions(partitions)
        .with("RETRY_DELAY_MS", 20)
        .with("HOURLY_REPORTS", "true")
        .start()
        .await;
    story(&server).await;
    let outbox = server.visitor().get("/api/v1/dev/outbox?limit=200").await.expect(200);
    let told: BTreeSet<String> = server
        .events("")
        .await
        .iter()
        .map(|event| event["event_type"].as_str().unwrap().to_owned())
        .collect();
    let catalogue = catalogue(&server).await;
    let untold: Vec<_> =
        catalogue.difference(&told).filter(|name| !UNTOLD.contains(&name.as_str())).collect();
    assert!(untold.is_empty(), "the story does not lead to {untold:?}");
    assert!(UNTOLD.iter().all(|name| catalogue.contains(*name)), "{UNTOLD:?}");
    let handled = |status: &Value| -> u64 {
        let partitions = status["partitions"].as_array().unwrap();
        partitions.iter().map(|of| of["handled"].as_u64().unwrap()).sum()
    };
    let subscriptions = server.admin().get("/api/v1/admin/subscriptions").await.expect(200);
    let names: Vec<String> =
        subscriptions.items().iter().map(|of| of["name"].as_str().unwrap().to_owned()).collect();
    assert!(server.terminate().await.success());
    let before = stored(&server).await;
    begin_again(&server).await;
    server.start_again().await;
    server.at_rest().await;
    for name in names.iter().filter(|name| !UNASKED.contains(&name.as_str())) {
        assert!(handled(&server.subscription(name).await) > 0, "{name} was given nothing again");
    }
    // The provider of this life was asked for nothing, and nobody got a second mail.
    assert_eq!(server.gateway_calls().await, [""; 0]);
    let again = server.visitor().get("/api/v1/dev/outbox?limit=200").await.expect(200);
    assert_eq!(again.items(), outbox.items());
    let audit = server.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
    assert_eq!(
        (&audit["missing"], &audit["duplicate_effects"]),
        (&json!(0), &json!(0)),
        "{audit:?}"
    );
    assert!(server.terminate().await.success());
    same(&before, &stored(&server).await);
}

/// A listing gets images, and a promotion is used and given back.
async fn market_stand(server: &Server, sam: &Person, bea: &Person, listing: &str) {
    let path = format!("/api/v1/listings/{listing}/images");
    let pictures = [picture(ImageFormat::Png, 8), picture(ImageFormat::Png, 9)];
    let pictures: Vec<_> = pictures.iter().map(Vec::as_slice).collect();
    let shown = upload(&sam.client, &path, &pictures).await.expect(200);
    let turned = json!({ "images": [shown["images"][1], shown["images"][0]] });
    let turned = turned.to_string().into_bytes();
    sam.client.send(reqwest::Method::PUT, &path, Some(turned)).await.expect(200);
    let name = shown["images"][0].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    sam.client.delete(&format!("{path}/{name}")).await.expect(200);
    let code = json!({ "code": "STORY", "percentage": 10, "uses_per_buyer_max": 9 });
    let promotion = sam.client.post("/api/v1/promotions", &code).await.expect(201);
    let mut body = wish(listing, 1, "test_decline");
    body["promotion_code"] = json!("STORY");
    let order = bea.client.post("/api/v1/orders", &body).await.expect(201).text("order_id");
    server.order_eventually(&order, "PAYMENT_FAILED").await;
    let path = format!("/api/v1/promotions/{}/end", promotion.text("promotion_id"));
    sam.client.post(&path, &json!({})).await.expect(200);
}

/// Every event type that there is.
async fn catalogue(server: &Server) -> BTreeSet<String> {
    let schemas = server.visitor().get("/schemas").await.expect(200);
    schemas.items().iter().map(|of| of["event_type"].as_str().unwrap().to_owned()).collect()
}
