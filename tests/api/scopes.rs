//! Who may read which events (S1-158, S1-161, S1-166).

use serde_json::{Value, json};

use crate::support::{Client, Server, eventually};

async fn token(server: &Server, scopes: &[&str]) -> Client {
    let wish = json!({ "name": "the ledger", "scopes": scopes });
    let path = "/api/v1/admin/service-tokens";
    let made = server.admin().post(path, &wish).await.expect(201);
    server.visitor().with_token(&made.text("token"))
}

fn types(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<_> = events.iter().map(|of| of["event_type"].as_str().unwrap()).collect();
    types.sort_unstable();
    types.dedup();
    types
}

#[tokio::test]
async fn a_service_reads_the_events_of_its_scopes_and_no_others() {
    let server = Server::start().await;
    let sale = server.sale(5, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let client = token(&server, &["events:read:order.*", "events:read:user.registered"]).await;
    let all = client.get("/api/v1/events?limit=200").await.expect(200);
    let expected =
        ["order.confirmed", "order.paid", "order.placed", "order.shipped", "user.registered"];
    assert_eq!(types(all.items()), expected);
    for personal in ["Larkspur", "bea@example.com", "Tester"] {
        assert!(!all.raw().contains(personal), "{personal}");
    }
    let placed = client.get("/api/v1/events?eventType=OrderPlaced").await.expect(200);
    let placed = &placed.items()[0];
    assert_eq!(placed["data"]["delivery_address"], "[redacted]");
    let other = |query: &str| format!("/api/v1/events?eventType={query}");
    for not in ["payment.captured", "PaymentCompleted", "order.placed,payment.captured", "x.y"] {
        client.get(&other(not)).await.problem(403, "insufficient_scope");
    }
    // One event, by its name.
    let path = format!("/api/v1/events/{}", placed["event_id"].as_str().unwrap());
    let one = client.get(&path).await.expect(200);
    assert_eq!(one["data"]["address"], "[redacted]");
    let captured = server.events("eventType=payment.captured").await;
    let captured = format!("/api/v1/events/{}", captured[0]["event_id"].as_str().unwrap());
    client.get(&captured).await.problem(403, "insufficient_scope");
    let beside = format!("{captured}/deliveries");
    client.get(&beside).await.problem(403, "insufficient_scope");
    // Waiting for one, and as they come.
    let of = format!("correlationId={}&timeout=0", sale.order.correlation_id);
    let wait = async |of: String| client.get(&format!("/api/v1/events/await?{of}")).await;
    assert_eq!(wait(of.clone()).await.expect(200)["event_type"], "order.placed");
    wait(format!("{of}&eventType=payment.captured")).await.problem(403, "insufficient_scope");
    let stream = async |query: &str| {
        client.get(&format!("/api/v1/events/stream?after=0:0&seconds=0{query}")).await
    };
    let told = stream("").await.expect(200);
    assert!(told.raw().contains("order.placed") && !told.raw().contains("payment.captured"));
    assert!(!told.raw().contains("Larkspur"));
    let told = stream("&eventType=%23").await.expect(200);
    assert!(!told.raw().contains("payment.captured"), "all is all that may be read");
    for not in ["payment.*", "payment.captured", "order.placed,payment.%23", "~^payment"] {
        let refused = stream(&format!("&eventType={not}")).await;
        refused.problem(403, "insufficient_scope");
    }
    // Nothing else is for it.
    for path in ["/api/v1/users/me", "/api/v1/me/orders", "/api/v1/dlq", "/api/v1/webhooks"] {
        client.get(path).await.problem(403, "insufficient_scope");
    }
    server.finish().await;
}

#[tokio::test]
async fn what_is_personal_needs_a_scope_of_its_own() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let path = "/api/v1/events?eventType=user.registered";
    let redacted = token(&server, &["events:read"]).await;
    let clear = token(&server, &["events:read", "pii:read"]).await;
    let seen = async |client: &Client| {
        eventually("the registration", || async {
            let page = client.get(path).await.expect(200);
            page.items().first().map(|event| event["data"]["email"].clone())
        })
        .await
    };
    assert_eq!(seen(&redacted).await, "[redacted]");
    assert_eq!(seen(&clear).await, ann.email.as_str());
    assert!(redacted.get("/api/v1/events").await.expect(200).items().len() > 2);
    // To publish is not to read.
    let publisher = token(&server, &["publisher"]).await;
    for path in ["/api/v1/events", "/api/v1/events/stream?seconds=0", path] {
        publisher.get(path).await.problem(403, "insufficient_scope");
    }
    let only = token(&server, &["pii:read"]).await;
    only.get("/api/v1/events").await.problem(403, "insufficient_scope");
    let bad = json!({ "name": "x", "scopes": ["events:write", "events:read:", "pii:read:x"] });
    let refused = server.admin().post("/api/v1/admin/service-tokens", &bad).await.pointers();
    assert_eq!(refused, ["/scopes/0", "/scopes/1", "/scopes/2"]);
    server.finish().await;
}
