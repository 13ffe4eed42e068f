//! What every request and every answer has in common.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::event_store::is_timestamp;
use crate::support::{Server, Start, somebody, wish};

#[tokio::test]
async fn what_is_wrong_is_said_in_one_form() {
    let server = Start::default().with("HTTP_BODY_BYTES_MAX", 4096).start().await;
    let (visitor, register) = (server.visitor(), "/api/v1/users/register");
    // S0-1.
    visitor.get("/no/such/path").await.problem(404, "not_found");
    visitor.get("/api/v1/nothing").await.problem(404, "not_found");
    visitor.get("/api/v1/users/not-a-uuid").await.problem(404, "not_found");
    let other = visitor.delete(register).await.problem(405, "method_not_allowed");
    assert!(other.header("allow").contains("POST"), "{other:?}");
    let post = async |kind: &str, body: &[u8]| {
        visitor.with("content-type", kind).send(Method::POST, register, Some(body.to_vec())).await
    };
    for body in [&b"{"[..], b"{\"email\":}", b"not json", b"\xff\xfe", b"{} {}"] {
        post("application/json", body).await.problem(400, "malformed_json");
    }
    for kind in ["text/plain", "application/xml", "application/x-www-form-urlencoded"] {
        post(kind, b"{}").await.problem(415, "unsupported_media_type");
    }
    assert_eq!(post("application/json", b"[]").await.pointers(), [""]);
    let large = json!({ "email": "x".repeat(5000) }).to_string();
    post("application/json", large.as_bytes()).await.problem(413, "payload_too_large");
    // After all that it still serves.
    server.register("Ann").await.expect(201);
    server.finish().await;
}

#[tokio::test]
async fn every_kind_of_problem_is_described() {
    let server = Server::start().await;
    let (visitor, ann) = (server.visitor(), server.buyer("Ann").await);
    let problems = [
        visitor.get("/nothing").await,
        visitor.get("/api/v1/users/me").await,
        visitor.post("/api/v1/users/register", &json!({})).await,
        server.register("Ann").await,
        server.login("ann@example.com", "something else").await,
        visitor.post("/api/v1/users/verify-email", &json!({ "verification_token": "x" })).await,
        ann.client.get("/api/v1/events").await,
        ann.client.post("/api/v1/listings", &server.offer(1).await).await,
        ann.client.keyed("").get("/api/v1/users/me").await,
    ];
    for problem in problems {
        let (status, kind) = (problem.status(), problem.text("type"));
        let problem = problem.clone().problem(status, problem["code"].as_str().unwrap());
        let described = visitor.get(&kind).await.expect(200);
        assert_eq!(
            (&described["code"], &described["title"]),
            (&problem["code"], &problem["title"])
        );
        assert_eq!(described["status"], problem["status"], "{kind}");
        assert!(!described.text("description").is_empty());
    }
    visitor.get("/problems/No-Such").await.problem(404, "not_found");
    server.finish().await;
}

#[tokio::test]
async fn a_request_is_named_and_traced() {
    let server = Server::start().await;
    let visitor = server.visitor();
    let plain = || visitor.get("/api/v1/categories");
    let (first, second) = (plain().await.expect(200), plain().await.expect(200));
    // S1-24.
    for header in ["x-request-id", "x-correlation-id", "traceparent"] {
        assert!(!first.header(header).is_empty(), "{header}");
        assert_ne!(first.header(header), second.header(header), "{header}");
    }
    let named = visitor.named("my-purchase-7").get("/nothing").await.problem(404, "not_found");
    assert_eq!(named.header("x-correlation-id"), "my-purchase-7");
    assert_eq!(named["correlation_id"], "my-purchase-7");
    assert_eq!(named["instance"], "/nothing");
    assert_ne!(named.header("x-request-id"), "my-purchase-7");
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let sent = format!("00-{trace}-b7ad6b7169203331-01");
    let traced = visitor.with("traceparent", &sent).with("tracestate", "congo=t61rcWkgMzE");
    let answer = traced.get("/nothing").await.problem(404, "not_found");
    assert!(answer.header("traceparent").starts_with(&format!("00-{trace}-")));
    assert_ne!(answer.header("traceparent"), sent);
    assert_eq!(answer["trace_id"], trace);
    // And the trace is in the events.
    let made = traced.post("/api/v1/users/register", &somebody("Ann")).await.expect(201);
    let event = server.event("user.registered", made.header("x-correlation-id")).await;
    assert!(event["metadata"]["traceparent"].as_str().unwrap().contains(trace));
    assert_eq!(event["metadata"]["tracestate"], "congo=t61rcWkgMzE");
    // What is no good is replaced, not refused.
    let long = "x".repeat(200);
    let odd = visitor.named(&long).with("traceparent", "00-abc").get("/livez").await.expect(200);
    assert_ne!(odd.header("x-correlation-id"), long);
    assert_eq!(odd.header("traceparent").len(), 55);
    server.finish().await;
}

#[tokio::test]
async fn versions_save_bodies_and_protect_changes() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let path = format!("/api/v1/users/{}", ann.user_id);
    server.at_rest().await;
    // To others the body is the user's alone; to the user it has the score too, and the tag its version.
    let user = server.visitor().get(&path).await.expect(200);
    assert_eq!(user.header("etag"), format!("\"{}\"", user["version"]));
    let user = ann.client.get(&path).await.expect(200);
    let tag = user.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}.1\"", user["version"]));
    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let same = ann.client.with("if-none-match", &known).get(&path).await.expect(304);
        assert_eq!((same.raw(), same.header("etag")), ("", tag.as_str()));
    }
    ann.client.with("if-none-match", "\"77\"").get(&path).await.expect(200);
    let rename = json!({ "first_name": "Anna" });
    let stale = ann.client.if_match("\"1\"").patch(&path, &rename).await;
    assert_eq!(stale.problem(412, "version_mismatch")["current_version"], user["version"]);
    ann.client.if_match("W/\"2\"").patch(&path, &rename).await.problem(412, "version_mismatch");
    ann.client.if_match("2").patch(&path, &rename).await.problem(400, "invalid_parameter");
    let changed = ann.client.if_match(&tag).patch(&path, &rename).await.expect(200);
    assert_eq!(changed["first_name"], "Anna");
    ann.client.with("if-none-match", &tag).get(&path).await.expect(200);
    // S2-67: polling an order costs a body only when something changed.
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let order = server.place_order(&ann.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let path = format!("/api/v1/orders/{}", order.id);
    let seen = ann.client.get(&path).await.expect(200);
    assert!(seen.header("etag").starts_with("W/\""));
    ann.client.with("if-none-match", seen.header("etag")).get(&path).await.expect(304);
    // Nothing is new until something happens; then it is told once, under a tag of its own.
    let polling = ann.client.with("if-none-match", seen.header("etag"));
    for _ in 0..3 {
        assert_eq!(polling.get(&path).await.expect(304).raw(), "");
    }
    let shipments = format!("/api/v1/shipments?order_id={}", order.id);
    let shipments = server.admin().get(&shipments).await.expect(200);
    let shipment = shipments.items()[0]["shipment_id"].as_str().unwrap();
    for (verb, status) in [("dispatch", None), ("deliver", Some("DELIVERED"))] {
        let done =
            sam.client.post(&format!("/api/v1/shipments/{shipment}/{verb}"), &json!({})).await;
        assert!((200..300).contains(&done.status()), "{done:?}");
        if let Some(status) = status {
            server.order_eventually(&order.id, status).await;
        }
    }
    server.at_rest().await;
    let news = polling.get(&path).await.expect(200);
    assert_ne!(news.header("etag"), seen.header("etag"));
    assert!(news["version"].as_u64() > seen["version"].as_u64());
    ann.client.with("if-none-match", news.header("etag")).get(&path).await.expect(304);
    server.finish().await;
}

#[tokio::test]
async fn keys_make_requests_repeatable() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let offer = server.offer(1).await;
    let create = async |key: &str, body| {
        let client = sam.client.with("idempotency-key", key);
        client.post("/api/v1/listings", &body).await
    };
    let first = create("\"k-1\"", offer.clone()).await.expect(201);
    for key in ["\"k-1\"", "k-1"] {
        let again = create(key, offer.clone()).await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!((again.json(), again.header("etag")), (first.json(), first.header("etag")));
    }
    // The same request in another spelling is the same request; another body is not.
    let spelled = serde_json::to_string_pretty(&offer).unwrap().into_bytes();
    let client = sam.client.keyed("k-1");
    let again = client.send(Method::POST, "/api/v1/listings", Some(spelled)).await.expect(201);
    assert_eq!(again.text("listing_id"), first.text("listing_id"));
    let mut other = offer.clone();
    other["title"] = json!("A red bicycle");
    create("\"k-1\"", other).await.problem(422, "idempotency_key_reused");
    // Another operation under the same key is another request.
    let path = format!("/api/v1/listings/{}/archive", first.text("listing_id"));
    client.post(&path, &json!({})).await.expect(200);
    client.post(&path, &json!({})).await.expect(200);
    for bad in ["\"\"", "\"open", &"k".repeat(256)] {
        create(bad, offer.clone()).await.problem(400, "invalid_idempotency_key");
    }
    // A refusal is an outcome too.
    let bea = server.buyer("Bea").await;
    let refused = async || {
        let client = bea.client.keyed("too-early");
        client.post("/api/v1/listings", &offer).await
    };
    let (once, twice) = (refused().await, refused().await);
    assert_eq!((once.status(), once["code"].clone()), (twice.status(), twice["code"].clone()));
    assert_eq!(server.events("eventType=listing.created").await.len(), 1);
    server.finish().await;
}

#[tokio::test]
async fn a_key_is_remembered_across_a_crash() {
    let mut server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let client = bea.client.keyed("order-1");
    let body = wish(&listing, 1, "sandbox");
    let first = client.post("/api/v1/orders", &body).await.expect(201);
    server.kill_9_and_start_again().await;
    // S1-170.
    let again = client.post("/api/v1/orders", &body).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.text("order_id"), first.text("order_id"));
    server.order_eventually(&first.text("order_id"), "SHIPPED").await;
    server.at_rest().await;
    assert_eq!(server.events("eventType=order.placed").await.len(), 1);
    server.finish().await;
}

#[tokio::test]
async fn other_paths_lead_to_the_same_and_say_so() {
    let server = Server::start().await;
    let sale = server.sale(2, 1, "sandbox").await;
    let id = &sale.order.id;
    server.order_eventually(id, "SHIPPED").await;
    server.at_rest().await;
    // X16, S2-4, S2-55.
    for (alias, canonical) in [
        (format!("/orders/{id}"), format!("/api/v1/orders/{id}")),
        (format!("/orders/{id}/history"), format!("/api/v1/orders/{id}/history")),
        ("/api/events?limit=200".to_owned(), "/api/v1/events".to_owned()),
    ] {
        let other = server.admin().get(&alias).await.expect(200);
        assert_eq!(other.header("link"), format!("<{canonical}>; rel=\"canonical\""));
        let query = alias.split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
        let same = server.admin().get(&format!("{canonical}{query}")).await.expect(200);
        assert_eq!((other.json(), same.header("link")), (same.json(), ""));
    }
    let ordered = sale.buyer.client.post("/orders", &wish(&sale.listing_id, 1, "sandbox")).await;
    let ordered = ordered.expect(201);
    assert_eq!(ordered.header("location"), format!("/api/v1/orders/{}", ordered.text("order_id")));
    let cancel = format!("/orders/{id}/cancel");
    let refused = sale.buyer.client.post(&cancel, &json!({})).await;
    assert_eq!(refused.problem(409, "invalid_transition")["instance"], cancel);
    server.order_eventually(&ordered.text("order_id"), "SHIPPED").await;
    server.finish().await;
}

#[tokio::test]
async fn names_are_taken_in_either_case() {
    let server = Server::start().await;
    let body = json!({
        "email": "ann@example.com", "password": "a long password", "firstName": "Ann", "lastName": "Lee",
    });
    let made = server.visitor().post("/api/v1/users/register", &body).await.expect(201);
    assert_eq!(made["first_name"], "Ann");
    assert!(is_timestamp(&made.text("created_at")));
    let token = server.mailed_token("ann@example.com").await;
    let body = json!({ "verificationToken": token });
    server.visitor().post("/api/v1/users/verify-email", &body).await.expect(200);
    server.finish().await;
}

/// A filter that there is no such value of is no empty list: whoever misspells it is told.
#[tokio::test]
async fn filters_take_known_values_alone() {
    let server = Server::start().await;
    let admin = server.admin();
    let hook = json!({ "url": "http://127.0.0.1:9/hooks", "events": ["order.*"] });
    let hook = admin.post("/api/v1/webhooks", &hook).await.expect(201).text("id");
    let deliveries = format!("/webhooks/{hook}/deliveries");
    let filters: [(&str, &str, &[&str], &str); 16] = [
        ("/me/orders", "status", &["PAID", "return_requested"], "RETURN_REQUESTED"),
        ("/me/sales", "status", &["SHIPPED", "payment_failed"], "PAYMENT_FAILED"),
        ("/listings", "status", &["ALL", "all", "draft", "SOLD"], "ALL, DRAFT, ACTIVE"),
        ("/me/listings", "status", &["ALL", "archived", "ACTIVE"], "RESERVED"),
        ("/me/payouts", "status", &["REQUESTED", "failed"], "REQUESTED, COMPLETED, FAILED"),
        ("/admin/payouts", "status", &["COMPLETED", "requested"], "REQUESTED"),
        ("/admin/disputes", "status", &["OPEN", "resolved"], "OPEN, RESOLVED"),
        ("/admin/users", "status", &["ACTIVE", "suspended"], "SUSPENDED"),
        ("/admin/users", "role", &["BUYER", "seller"], "SELLER"),
        ("/admin/users", "seller_status", &["VERIFIED", "pending"], "REJECTED"),
        ("/admin/sagas", "state", &["RUNNING", "compensated"], "COLLECTING"),
        ("/admin/replays", "state", &["running", "FAILED"], "cancelled"),
        ("/traces", "status", &["error", "ok"], "error, ok"),
        ("/notifications", "audience", &["user", "admin"], "user, admin"),
        ("/notifications", "unread", &["true", "false", ""], "true or false"),
        (deliveries.as_str(), "status", &["dead", "delivered"], "retrying"),
    ];
    for (list, filter, known, told) in filters {
        for value in known {
            admin.get(&format!("/api/v1{list}?{filter}={value}")).await.expect(200);
        }
        let refused = admin.get(&format!("/api/v1{list}?{filter}=gone")).await;
        let refused = refused.problem(400, "invalid_parameter");
        let detail = refused.text("detail");
        assert!(detail.starts_with(filter) && detail.contains(told), "{list}: {detail}");
    }
    let stream = admin.get("/api/v1/admin/sagas/stream?state=gone").await;
    stream.problem(400, "invalid_parameter");
    server.finish().await;
}

#[tokio::test]
async fn answers_are_not_cached_nor_sniffed() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let me = ann.client.get("/api/v1/users/me").await.expect(200);
    assert_eq!(me.header("cache-control"), "no-store");
    assert_eq!(me.header("content-type"), "application/json");
    assert_eq!(me.header("x-content-type-options"), "nosniff");
    server.finish().await;
}

/// The pages of other sites get nothing, but those of the sites that are listed.
#[tokio::test]
async fn pages_of_listed_sites_may_read_answers() {
    let shop = "https://shop.example.com";
    let server = Start::default()
        .with("CORS_ALLOWED_ORIGINS", format!("{shop}, http://localhost:3000"))
        .start()
        .await;
    let path = "/api/v1/categories";
    let from = |origin: &str| server.visitor().with("origin", origin);
    for origin in [shop, "http://localhost:3000"] {
        let read = from(origin).get(path).await.expect(200);
        assert_eq!(read.header("access-control-allow-origin"), origin);
        assert!(read.header("access-control-expose-headers").contains("souk-position"));
        assert!(read.header("vary").contains("origin"));
        assert_eq!(read.header("access-control-allow-credentials"), "");
    }
    // Also where the answer is a refusal, which the page has to understand.
    let refused = from(shop).get("/api/v1/users/me").await.problem(401, "unauthenticated");
    assert_eq!(refused.header("access-control-allow-origin"), shop);
    let ask = |origin: &str| {
        from(origin)
            .with("access-control-request-method", "PATCH")
            .with("access-control-request-headers", "authorization,if-match,idempotency-key")
    };
    let options = Method::OPTIONS;
    let asked = ask(shop).send(options.clone(), path, None).await.expect(200);
    assert!(asked.header("access-control-allow-methods").contains("PATCH"));
    for name in ["authorization", "if-match", "idempotency-key", "prefer"] {
        assert!(asked.header("access-control-allow-headers").contains(name), "{name}");
    }
    for origin in ["https://shop.example.com.evil.example", "http://shop.example.com", "null"] {
        let read = from(origin).get(path).await.expect(200);
        assert_eq!(read.header("access-control-allow-origin"), "", "{origin}");
        let asked = ask(origin).send(options.clone(), path, None).await;
        assert_eq!(asked.header("access-control-allow-origin"), "", "{origin}");
    }
    server.finish().await;
    let closed = Server::start().await;
    let read = closed.visitor().with("origin", shop).get(path).await.expect(200);
    assert_eq!(read.header("access-control-allow-origin"), "");
    closed.finish().await;
}

#[tokio::test]
async fn who_may_not_ask_is_not_told_what_is_wrong() {
    let server = Server::start().await;
    for path in ["/api/v1/orders", "/api/v1/transactions", "/api/v1/listings", "/api/v1/categories"]
    {
        server.visitor().post(path, &json!({})).await.problem(401, "unauthenticated");
    }
    let ann = server.newcomer("Ann").await;
    ann.client.post("/api/v1/categories", &json!({})).await.problem(403, "insufficient_scope");
    server.finish().await;
}

#[tokio::test]
async fn the_probes_answer() {
    let server = Server::start().await;
    let visitor = server.visitor();
    for path in ["/livez", "/healthz", "/readyz", "/startupz"] {
        assert_eq!(visitor.get(path).await.expect(200)["status"], "ok", "{path}");
    }
    let verbose = visitor.get("/readyz?verbose").await.expect(200);
    let checks = verbose["checks"].as_array().unwrap();
    let names: BTreeSet<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert!(names.contains("journal_writable") && names.contains("subscriptions_started"));
    assert_eq!(visitor.get("/version").await.expect(200)["mode"], "development");
    server.finish().await;
}

/// S1-167: without its journal the service refuses to write, and still reads.
#[tokio::test]
async fn a_journal_that_fails_is_a_503() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    server.at_rest().await;
    let fault = server.fault("journal", "fail", json!({})).await;
    let path = format!("/api/v1/users/{}", ann.user_id);
    let refused = ann.client.patch(&path, &json!({ "first_name": "Anna" })).await;
    assert_eq!(refused.status(), 503, "{refused:?}");
    assert!(!refused.header("retry-after").is_empty());
    server.visitor().get("/livez").await.expect(200);
    server.visitor().get("/api/v1/categories").await.expect(200);
    server.mend(fault).await;
    // S3-23: nothing was half done.
    let changed = crate::support::eventually("the journal to take writes", || async {
        let answer = ann.client.patch(&path, &json!({ "first_name": "Anna" })).await;
        (answer.status() == 200).then_some(answer)
    })
    .await;
    assert_eq!(changed["first_name"], "Anna");
    let renamed = server.events("eventType=user.profile_updated").await;
    assert_eq!(renamed.len(), 1);
    let correlation = changed.header("x-correlation-id");
    assert_eq!(server.event("customer.profile.updated", correlation).await, renamed[0]);
    server.finish().await;
}

/// S1-26: what a second try mends nobody hears of.
#[tokio::test]
async fn an_append_that_fails_is_tried_again() {
    let server = Server::start().await;
    let retries = async || {
        let text = server.visitor().get("/metrics").await.expect(200);
        let value = text.raw().lines().find_map(|line| {
            line.strip_prefix("souk_journal_append_retries_total ")?.parse::<u64>().ok()
        });
        value.unwrap_or(0)
    };
    server.at_rest().await;
    let before = retries().await;
    server.fault("journal", "fail", json!({ "times": 2 })).await;
    server.register("Ann").await.expect(201);
    assert_eq!(retries().await, before + 2);
    server.at_rest().await;
    assert_eq!(server.events("eventType=user.registered").await.len(), 1);
    server.finish().await;
}
