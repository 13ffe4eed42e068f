//! Figures (S0-96, S1-9, S1-82, S1-83, S1-95, S4-37).

use serde_json::{Value, json};

use crate::support::{Person, Server, Start, on_postgres};

impl Server {
    /// A figure, of everything until now.
    async fn figure(&self, name: &str) -> Value {
        let path = format!("/api/v1/analytics/metrics?name={name}&bucket=1m");
        self.admin().get(&path).await.expect(200)["total"].clone()
    }

    /// What `/analytics/events` counts.
    async fn counted(&self, query: &str) -> (u64, Vec<Value>) {
        let path = format!("/api/v1/analytics/events?{query}");
        let body = self.admin().get(&path).await.expect(200);
        (body["total"].as_u64().unwrap(), body.items().to_vec())
    }
}

fn one(value: i64) -> Value {
    json!([{ "value": value, "currency": null }])
}

/// A bought, a declined and a completed purchase.
async fn business(server: &Server) -> Person {
    let sale = server.sale(9, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let declined =
        server.place_order(&sale.buyer.client, &sale.listing_id, 1, "test_decline").await;
    server.order_eventually(&declined.id, "PAYMENT_FAILED").await;
    let done = server.place_order(&sale.buyer.client, &sale.listing_id, 2, "sandbox").await;
    server.arrives(&done.id, &sale.seller.client, &sale.buyer.client).await;
    let review = json!({ "transaction_id": done.id, "rating": 4, "comment": "It rides well." });
    sale.buyer.client.post("/api/v1/reviews", &review).await.expect(201);
    server.at_rest().await;
    sale.seller
}

/// What is wrong is said, and to nobody else.
async fn refused(server: &Server, sam: &Person) {
    let path = "/api/v1/analytics/metrics?name=gmv";
    sam.client.get(path).await.problem(403, "insufficient_scope");
    for wrong in ["name=nothing", "bucket=1h", "name=gmv&bucket=2h", "name=gmv&seller_id=x"] {
        let path = format!("/api/v1/analytics/metrics?{wrong}");
        server.admin().get(&path).await.problem(400, "invalid_parameter");
    }
}

#[tokio::test]
async fn the_business_in_figures() {
    let mut server = Start::default().partitions(if on_postgres() { 3 } else { 1 }).start().await;
    let mut sam = business(&server).await;
    let figures = async |server: &Server| {
        let mut all = Vec::new();
        for name in [
            "users_registered",
            "users_verified",
            "listings_created",
            "orders_placed",
            "orders_paid",
            "orders_completed",
            "orders_lost",
            "gmv",
            "revenue",
            "conversion",
            "reviews_created",
            "review_average",
        ] {
            all.push((name, server.figure(name).await));
        }
        all
    };
    let dong = |amount: i64| json!([{ "value": amount, "currency": "VND" }]);
    let before = figures(&server).await;
    assert_eq!(
        before[..9],
        [
            ("users_registered", one(2)),
            ("users_verified", one(2)),
            ("listings_created", one(1)),
            ("orders_placed", one(3)),
            ("orders_paid", one(2)),
            ("orders_completed", one(1)),
            ("orders_lost", one(1)),
            ("gmv", dong(450_000)),
            ("revenue", dong(300_000)),
        ]
    );
    let conversion = before[9].1[0]["value"].as_f64().unwrap();
    assert!((conversion - 2.0 / 3.0).abs() < 1e-9, "{conversion}");
    // S0-96.
    assert_eq!(before[10].1, one(1));
    assert_eq!(before[11].1[0]["value"], 4.0);
    // A seller sees their own, and nothing else.
    let shop = sam.client.get("/api/v1/users/me/analytics").await.expect(200);
    let gmv = |shop: &crate::support::Answer| {
        let metrics = shop["metrics"].as_array().unwrap();
        metrics.iter().find(|of| of["name"] == "gmv").unwrap()["total"].clone()
    };
    assert_eq!((gmv(&shop), &shop["listing_count"]), (dong(450_000), &json!(1)));
    let tom = server.seller("Tom").await;
    let other = tom.client.get("/api/v1/users/me/analytics").await.expect(200);
    assert_eq!(gmv(&other), json!([]));
    let metrics = other["metrics"].as_array().unwrap();
    let average = metrics.iter().find(|of| of["name"] == "review_average").unwrap();
    assert_eq!(average["total"], json!([]), "nothing has no average");
    refused(&server, &sam).await;
    // They are what they were after a restart, and when the views are made anew.
    server.at_rest().await;
    let before = figures(&server).await;
    assert!(server.terminate().await.success());
    server.start_again().await;
    assert_eq!(figures(&server).await, before);
    assert!(server.terminate().await.success());
    server.forget_read_models().await;
    server.start_again().await;
    server.at_rest().await;
    assert_eq!(figures(&server).await, before);
    sam.log_in_again().await;
    assert_eq!(gmv(&sam.client.get("/api/v1/users/me/analytics").await.expect(200)), dong(450_000));
    server.finish().await;
}

/// S1-83: what is told of the business and of the events, a killed server tells again.
#[tokio::test]
async fn figures_survive_a_kill() {
    let mut server = Start::default().partitions(if on_postgres() { 3 } else { 1 }).start().await;
    let sam = business(&server).await;
    let counts = async |server: &Server| {
        let (_, rows) = server.counted("group_by=event_type&bucket=1d").await;
        let of_the_market = |row: &Value| {
            let name = row["event_type"].as_str().unwrap();
            ["order.", "user.", "listing.", "payment."].iter().any(|of| name.starts_with(of))
        };
        rows.into_iter().filter(of_the_market).collect::<Vec<_>>()
    };
    let told = async |server: &Server| {
        let mut all = Vec::new();
        for name in ["users_verified", "orders_paid", "gmv", "revenue", "conversion"] {
            all.push(server.figure(name).await);
        }
        let own = sam.client.get("/api/v1/users/me/analytics").await.expect(200);
        let own = own["metrics"].as_array().unwrap().iter();
        all.extend(own.map(|of| json!([of["name"], of["total"]])));
        all.push(json!(counts(server).await));
        all
    };
    let before = told(&server).await;
    assert_eq!(before[1], one(2));
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    assert_eq!(told(&server).await, before);
    // Killed before it has counted, it counts all of it afterwards, once.
    let (tom, buyer) = (server.seller("Tom").await, server.buyer("Ben").await);
    let listing = server.listing(&tom, 9).await;
    server.at_rest().await;
    server.pause("analytics-view").await;
    let order = server.place_order(&buyer.client, &listing, 2, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.kill_9_and_start_again().await;
    assert_eq!(server.figure("orders_paid").await, one(2), "it stands still");
    server.resume("analytics-view").await;
    server.at_rest().await;
    assert_eq!(server.figure("orders_paid").await, one(3));
    server.kill_9_and_start_again().await;
    assert_eq!(server.figure("orders_paid").await, one(3));
    let paid = counts(&server).await;
    let paid = paid.iter().filter(|row| row["event_type"] == "order.paid");
    assert_eq!(paid.map(|row| row["count"].as_u64().unwrap()).sum::<u64>(), 3);
    // What gauges say is what is stored.
    assert!(server.metric("souk_journal_position", "partition=\"0\"").await > 0.0);
    server.finish().await;
}

#[tokio::test]
async fn events_are_counted_as_the_journal_has_them() {
    let server = Start::default().partitions(3).start().await;
    business(&server).await;
    let events = server.events("").await;
    let all = events.len() as u64;
    for group_by in ["event_type", "context", "service", "context,event_type"] {
        for bucket in ["1m", "1h", "1d"] {
            let (total, rows) =
                server.counted(&format!("group_by={group_by}&bucket={bucket}")).await;
            let sum: u64 = rows.iter().map(|row| row["count"].as_u64().unwrap()).sum();
            assert_eq!((total, sum), (all, all), "{group_by} {bucket}");
        }
    }
    let (_, rows) = server.counted("group_by=context,event_type&bucket=1d").await;
    for row in &rows {
        let name = &row["event_type"];
        let count = events.iter().filter(|event| event["event_type"] == *name).count() as u64;
        // A day may have ended meanwhile.
        let of_it = rows.iter().filter(|row| row["event_type"] == *name);
        let counted: u64 = of_it.map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(counted, count, "{row}");
        assert!(row["context"].is_string() && row["service"].is_null(), "{row}");
    }
    let none = "from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z";
    assert_eq!(server.counted(none).await.0, 0);
    let admin = server.admin();
    admin.get("/api/v1/analytics/events?group_by=colour").await.problem(400, "invalid_parameter");
    // As files.
    let path = "/api/v1/analytics/events?group_by=context,event_type&bucket=1d";
    let csv = admin.with("accept", "text/csv").get(path).await.expect(200);
    assert_eq!(csv.header("content-type"), "text/csv; charset=utf-8");
    let lines: Vec<_> = csv.raw().lines().collect();
    assert_eq!(lines[0], "at,context,service,event_type,count");
    assert_eq!(lines.len(), rows.len() + 1);
    let lines = admin.get(&format!("{path}&format=ndjson")).await.expect(200);
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> =
        lines.raw().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, rows);
    server.finish().await;
}

/// S4-37.
#[tokio::test]
async fn what_people_do_is_noted() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let path = "/api/v1/analytics/events";
    let action = json!({ "action": "page_viewed", "subject": "listing" });
    let noted = ann.client.post(path, &action).await.expect(202);
    let event = server.event("analytics.event.recorded", noted.header("x-correlation-id")).await;
    assert_eq!(event["data"]["action"], "page_viewed");
    assert_eq!(event["data"]["user_id"], ann.user_id.as_str());
    for action in ["", "a b", "=1+1", &"x".repeat(101)] {
        let body = json!({ "action": action });
        assert_eq!(ann.client.post(path, &body).await.pointers(), ["/action"], "{action}");
    }
    server.visitor().post(path, &action).await.problem(401, "unauthenticated");
    server.finish().await;
}
