//! What the service says about itself: schemas, API descriptions, metrics (S1-23, S1-122, S0-2,
//! S0-3, S0-113 to S0-117).

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Server, address};

/// A bit of everything: sellers, sales of every outcome, changes, logins.
pub async fn mixed_run(server: &Server) {
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let path = format!("/api/v1/listings/{listing}");
    let change = json!({ "title": "A red one", "price": { "amount": 99_000, "currency": "VND" } });
    sam.client.if_match("\"1\"").patch(&path, &change).await.expect(200);
    for (quantity, method, status) in [
        (1, "sandbox", "SHIPPED"),
        (1, "test_decline", "PAYMENT_FAILED"),
        (9, "sandbox", "REJECTED"),
    ] {
        let order = server.place_order(&bea.client, &listing, quantity, method).await;
        server.order_eventually(&order.id, status).await;
    }
    let pending = server.place_order(&bea.client, &listing, 1, "test_pending").await;
    server.order_eventually(&pending.id, "CONFIRMED").await;
    let cancel = format!("/api/v1/orders/{}/cancel", pending.id);
    bea.client.post(&cancel, &json!({ "reason": "no longer" })).await.expect(200);
    let rename = json!({ "last_name": "Newname" });
    bea.client.patch(&format!("/api/v1/users/{}", bea.user_id), &rename).await.expect(200);
    let refresh = json!({ "refresh_token": bea.refresh_token });
    server.visitor().post("/api/v1/auth/refresh", &refresh).await.expect(200);
    sam.client.post("/api/v1/auth/logout", &json!({})).await.expect(204);
    server.at_rest().await;
}

#[tokio::test]
async fn every_event_is_as_its_schema_says() {
    let server = Server::start().await;
    mixed_run(&server).await;
    let mut schemas: BTreeMap<String, jsonschema::Validator> = BTreeMap::new();
    let events = server.events("").await;
    for event in &events {
        let kind = format!("{}/{}", event["event_type"].as_str().unwrap(), event["version"]);
        if !schemas.contains_key(&kind) {
            let answer = server.visitor().get(&format!("/schemas/{kind}")).await.expect(200);
            assert_eq!(answer.header("content-type"), "application/schema+json");
            assert_eq!(answer["$schema"], "https://json-schema.org/draft/2020-12/schema");
            let schema = jsonschema::draft202012::new(answer.json()).unwrap();
            schemas.insert(kind.clone(), schema);
        }
        let errors: Vec<_> =
            schemas[&kind].iter_errors(&event["data"]).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{kind}: {errors:?}\n{event:#}");
        // A schema that takes anything says nothing.
        assert!(!schemas[&kind].is_valid(&json!({})), "{kind} takes an empty object");
    }
    assert!(schemas.len() > 30, "only {} types in this run", schemas.len());
    server.finish().await;
}

#[tokio::test]
async fn every_declared_type_has_a_schema() {
    let server = Server::start().await;
    let visitor = server.visitor();
    let page = visitor.get("/schemas").await.expect(200);
    let asyncapi = visitor.get("/asyncapi.json").await.expect(200);
    assert_eq!(asyncapi["asyncapi"], "3.0.0");
    let addresses: BTreeSet<_> = asyncapi["channels"]
        .as_object()
        .unwrap()
        .values()
        .map(|channel| channel["address"].as_str().unwrap())
        .collect();
    assert!(page.items().len() > 60);
    for of in page.items() {
        let event_type = of["event_type"].as_str().unwrap();
        let schema = visitor.get(of["schema"].as_str().unwrap()).await.expect(200);
        jsonschema::draft202012::meta::validate(schema.json()).unwrap();
        let minor = format!("/schemas/{event_type}/{}", of["schema_version"].as_str().unwrap());
        assert_eq!(visitor.get(&minor).await.expect(200).json(), schema.json());
        assert!(addresses.contains(event_type), "{event_type} is no channel");
    }
    visitor.get("/schemas/order.placed/99").await.problem(404, "not_found");
    visitor.get("/schemas/no.such/1").await.problem(404, "not_found");
    server.finish().await;
}

/// S0-3: every context has its channels, and they are the same wherever they are told.
#[tokio::test]
async fn every_context_has_its_channels() {
    let server = Server::start().await;
    let asyncapi = server.visitor().get("/asyncapi.json").await.expect(200);
    let mut channels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, channel) in asyncapi["channels"].as_object().unwrap() {
        let operation = &asyncapi["operations"][format!("receive{name}")];
        let message = &asyncapi["components"]["messages"][name];
        let context = channel["tags"][0]["name"].as_str().unwrap();
        for of in [operation, message] {
            assert_eq!(of["tags"][0]["name"], context, "{name}");
        }
        let address = channel["address"].as_str().unwrap();
        channels.entry(context.to_owned()).or_default().insert(address.to_owned());
    }
    for (context, event_type) in [
        ("users", "user.registered"),
        ("listings", "listing.created"),
        ("orders", "order.placed"),
        ("reviews", "review.created"),
        ("notifications", "notification.email.sent"),
        ("analytics", "analytics.event.recorded"),
        ("escrow", "escrow.funded"),
    ] {
        assert!(channels[context].contains(event_type), "{context}: {:?}", channels[context]);
    }
    let contexts = server.admin().get("/api/v1/admin/contexts").await.expect(200);
    let publishes = |of: &Value| -> BTreeSet<String> {
        let all = of["publishes"].as_array().unwrap().iter();
        all.map(|event_type| event_type.as_str().unwrap().to_owned()).collect()
    };
    let contexts = contexts.items().iter();
    let contexts = contexts.map(|of| (of["name"].as_str().unwrap().to_owned(), publishes(of)));
    let publishing: BTreeMap<_, _> =
        contexts.filter(|(_, event_types)| !event_types.is_empty()).collect();
    assert_eq!(channels, publishing);
    let listed = server.visitor().get("/schemas").await.expect(200);
    for of in listed.items() {
        let (context, event_type) = (of["context"].as_str(), of["event_type"].as_str());
        assert!(channels[context.unwrap()].contains(event_type.unwrap()), "{of}");
    }
    server.finish().await;
}

#[tokio::test]
async fn every_documented_operation_is_there() {
    let server = Server::start().await;
    let document = server.visitor().get("/openapi.json").await.expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let mut operations = 0;
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            assert!(operation["responses"].as_object().is_some_and(|all| !all.is_empty()));
            assert!(operation["operationId"].is_string(), "{method} {path}");
            let declared = path.matches('{').count();
            let parameters = operation["parameters"]
                .as_array()
                .map_or(0, |all| all.iter().filter(|parameter| parameter["in"] == "path").count());
            assert_eq!(declared, parameters, "{method} {path}");
            try_operation(&server, method, path).await;
        }
    }
    assert!(operations > 40, "{operations}");
    check_references(&document.json().clone(), document.json());
    server.visitor().get("/docs/").await.expect(200);
    server.finish().await;
}

/// Without a token and with ids of nothing: whatever it answers, the path and the method exist.
async fn try_operation(server: &Server, method: &str, path: &str) {
    // It would change what time it is, or wait.
    if path.contains("/dev/clock") || path.contains("/await") {
        return;
    }
    let nothing = "01a1f9d4-c097-7fe7-abc7-70fad08fc399";
    let mut real = String::new();
    for part in path.split_inclusive('/') {
        let name = part.trim_end_matches('/');
        let value = match name {
            "{partition}" => "0",
            "{event_type}" => "order.placed",
            "{major}" => "1",
            "{code}" => "not_found",
            _ if name.starts_with('{') => nothing,
            _ => name,
        };
        real.push_str(value);
        real.push_str(&part[name.len()..]);
    }
    let method: Method = method.to_uppercase().parse().unwrap();
    let body = (method != Method::GET && method != Method::DELETE).then(|| b"{}".to_vec());
    let answer = server.visitor().send(method.clone(), &real, body).await;
    assert_ne!(answer.status(), 405, "{method} {path}");
    assert!(answer.status() < 500, "{method} {path}: {answer:?}");
    if answer.status() == 404 {
        let detail = answer["detail"].as_str().unwrap_or_default();
        assert_ne!(detail, "there is nothing at this path", "{method} {path}");
    }
}

fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            members.values().for_each(|member| check_references(document, member));
        }
        Value::Array(items) => items.iter().for_each(|item| check_references(document, item)),
        _ => {}
    }
}

/// Every series as its name and its labels.
fn series(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let each = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap();
        let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        (name.to_owned(), labels.collect())
    });
    each.collect()
}

/// Somebody buys of somebody, and says how it was.
async fn reviewed_transaction(server: &Server) {
    let (tom, eve) = (server.seller("Tom").await, server.buyer("Eve").await);
    let listing = server.listing(&tom, 2).await;
    let body = json!({
        "listing_id": listing, "delivery_address": address(), "payment_method": "sandbox",
    });
    eve.client.post("/api/v1/transactions", &body).await.expect(201);
    let order = server.delivered(&eve.client, &listing).await;
    let review = json!({ "transaction_id": order, "rating": 4, "comment": "Rides well." });
    eve.client.post("/api/v1/reviews", &review).await.expect(201);
    server.at_rest().await;
}

#[tokio::test]
async fn metrics_tell_what_happened_and_name_nobody() {
    let server = Server::start().await;
    mixed_run(&server).await;
    reviewed_transaction(&server).await;
    let answer = server.visitor().get("/metrics").await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let series = series(answer.raw());
    let names: BTreeSet<_> = series.iter().map(|(name, _)| name.as_str()).collect();
    for name in [
        "souk_commands_total",
        "souk_command_duration_seconds_bucket",
        "souk_aggregates_active",
        "souk_aggregate_activations_total",
        "souk_journal_appends_total",
        "souk_journal_append_duration_seconds_bucket",
        "souk_journal_batch_events_bucket",
        "souk_journal_position",
        "souk_events_published_total",
        "souk_events_consumed_total",
        "souk_event_handler_duration_seconds_bucket",
        "souk_event_end_to_end_seconds_bucket",
        "souk_subscription_lag_events",
        "souk_dlq_letters",
        "souk_projection_position",
        "souk_http_requests_total",
        "souk_build_info",
        "process_resident_memory_bytes",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
    // S0-2.
    let commands: BTreeSet<_> = series
        .iter()
        .filter(|(name, _)| name == "souk_commands_total")
        .map(|(_, labels)| labels["command"].as_str())
        .collect();
    for name in [
        "RegisterUser",
        "VerifyEmail",
        "UpgradeToSeller",
        "CreateListing",
        "CreateTransaction",
        "ProcessPayment",
        "CreateReview",
    ] {
        assert!(commands.contains(name), "{name} in {commands:?}");
    }
    // S0-113.
    let placed = "event_type=\"order.placed\"";
    assert!(server.metric("souk_events_published_total", placed).await > 0.0);
    let mut published = series.iter().filter(|(name, _)| name == "souk_events_published_total");
    assert!(published.all(|(_, labels)| labels["event_type"].starts_with(&labels["context"])));
    for (name, labels) in &series {
        for value in labels.values() {
            let long = value.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '-');
            assert!(!long.into_iter().any(|word| word.len() >= 32), "{name} {labels:?}");
            assert!(!value.contains('@') && !value.contains("ORD-"), "{name} {labels:?}");
        }
    }
    server.finish().await;
}
