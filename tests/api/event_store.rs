//! The event store from outside (S2-39 to S2-59, S1-60, S1-61, S1-123 to S1-129, S0-118).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{Sale, Server, Start, eventually, position, types_of};

async fn shipped(server: &Server) -> Sale {
    let sale = server.sale(5, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    sale
}

#[tokio::test]
async fn every_event_has_the_whole_envelope() {
    let server = Server::start().await;
    shipped(&server).await;
    let version = server.visitor().get("/version").await.expect(200).text("version");
    let events = server.events("").await;
    assert!(events.len() > 40);
    for event in &events {
        let text = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("{name}: {event}"));
        uuid::Uuid::parse_str(text("event_id")).unwrap();
        uuid::Uuid::parse_str(text("aggregate_id")).unwrap();
        for name in ["event_type", "name", "aggregate_type", "correlation_id", "causation_id"] {
            assert!(!text(name).is_empty(), "{name}");
        }
        // S1-124, S1-125, S1-127, S0-109, S0-120.
        let reference: Vec<_> = text("event_ref").split('_').collect();
        assert_eq!((reference.len(), reference[0]), (3, "evt"));
        assert!(reference[1].bytes().all(|byte| byte.is_ascii_lowercase()));
        assert!(reference[2].bytes().all(|byte| byte.is_ascii_digit()));
        let parts: Vec<_> = text("event_type").split('.').collect();
        assert!((2..=3).contains(&parts.len()), "{parts:?}");
        assert!(event["version"].as_u64().unwrap() >= 1);
        let (major, minor) = text("schema_version").split_once('.').unwrap();
        assert_eq!(major, event["version"].to_string());
        assert!(minor.parse::<u16>().is_ok(), "{event}");
        assert!(is_timestamp(text("timestamp")), "{event}");
        assert!(event["data"].is_object());
        let metadata = &event["metadata"];
        assert_eq!(metadata["correlation_id"], event["correlation_id"]);
        assert_eq!(metadata["version"], version.as_str());
        assert!(metadata["service"].as_str().unwrap().ends_with("-service"), "{event}");
        assert_eq!(metadata["tenant_id"], "default");
        assert!(metadata["actor_id"].is_string());
    }
    let ids: BTreeSet<_> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len());
    server.finish().await;
}

/// `2026-11-20T10:30:00.123Z`.
pub fn is_timestamp(text: &str) -> bool {
    let form = "0000-00-00T00:00:00.000Z";
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(is, should)| match should {
            b'0' => is.is_ascii_digit(),
            _ => is == should,
        })
}

#[tokio::test]
async fn an_event_goes_by_all_its_names() {
    let server = Server::start().await;
    let Sale { order, .. } = shipped(&server).await;
    let admin = server.admin();
    // S2-55 to S2-58.
    let of = async |path: &str| admin.get(path).await.expect(200).items().to_vec();
    let placed = of("/api/v1/events?eventType=order.placed").await;
    assert_eq!(placed.len(), 1);
    for same in [
        "/api/v1/events?eventType=OrderPlaced",
        "/api/v1/events?event_type=order.created",
        "/api/v1/events?eventType=order.placed.v1",
        "/api/v1/events?eventType=TransactionCreated&aggregateType=order",
        "/api/events?eventType=OrderPlaced",
    ] {
        assert_eq!(of(same).await, placed, "{same}");
    }
    let two = of("/api/v1/events?eventType=order.placed,order.shipped").await;
    assert_eq!(types_of(&two), ["order.placed", "order.shipped"]);
    assert_eq!(of("/api/v1/events?eventType=order.placed.v9").await.len(), 0);
    // A major is that of the type it stands behind, and of no other in the list.
    let one = of("/api/v1/events?eventType=order.placed.v9,order.shipped").await;
    assert_eq!(types_of(&one), ["order.shipped"]);
    let one = of("/api/v1/events?eventType=order.placed.v1,order.shipped.v9").await;
    assert_eq!(types_of(&one), ["order.placed"]);
    let awaited = format!("eventType=order.placed.v9,order.shipped&aggregateId={}", order.id);
    let awaited = server.awaited(&awaited).await.expect(200);
    assert_eq!(awaited["event_type"], "order.shipped");
    assert_eq!(of("/api/v1/events?eventType=no.such").await.len(), 0);

    let history = ["order.placed", "order.confirmed", "order.paid", "order.shipped"];
    for id in [order.id.clone(), format!("order-{}", order.id), format!("order_{}", order.id)] {
        let events = of(&format!("/api/events?aggregateId={id}")).await;
        assert_eq!(types_of(&events), history, "{id}");
    }
    admin.get("/api/v1/events?aggregateId=order-123").await.problem(400, "invalid_parameter");

    let (id, reference) =
        (placed[0]["event_id"].as_str().unwrap(), placed[0]["event_ref"].as_str().unwrap());
    let number = reference.rsplit('_').next().unwrap();
    for name in [id, reference, &format!("evt_{number}"), &format!("evt-{number}")] {
        for path in [format!("/api/v1/events/{name}"), format!("/api/events/{name}")] {
            assert_eq!(*admin.get(&path).await.expect(200).json(), placed[0], "{path}");
        }
    }
    for unknown in ["evt-999999999", "evt_1", "x", "01a1f9d4-c097-7fe7-abc7-70fad08fc399"] {
        admin.get(&format!("/api/v1/events/{unknown}")).await.problem(404, "not_found");
    }
    server.finish().await;
}

#[tokio::test]
async fn filters_select_and_combine() {
    let server = Server::start().await;
    let Sale { order, buyer, .. } = shipped(&server).await;
    let of_order = server.events(&format!("aggregateId={}", order.id)).await;
    let by_type = server.events("aggregateType=order").await;
    assert_eq!(of_order, by_type);
    let placed = &of_order[0];
    let caused =
        server.events(&format!("causationId={}", placed["event_id"].as_str().unwrap())).await;
    let mut types = types_of(&caused);
    types.sort_unstable();
    assert_eq!(types, ["notification.requested", "saga.started"]);
    // S2-59: who did it.
    assert_eq!(placed["metadata"]["actor_id"], buyer.user_id.as_str());
    let both = format!("correlationId={}&aggregateType=payment", order.correlation_id);
    assert_eq!(types_of(&server.events(&both).await), ["payment.initiated", "payment.captured"]);

    // Half open: from, not to.
    server.advance_clock(3600).await;
    server.buyer("Eve").await;
    server.at_rest().await;
    let all = server.events("").await;
    let time = all.iter().find(|event| event["data"]["email"] == "eve@example.com").unwrap();
    let time = time["timestamp"].as_str().unwrap();
    let (before, after) =
        (server.events(&format!("to={time}")).await, server.events(&format!("from={time}")).await);
    assert_eq!(before.len() + after.len(), all.len());
    assert!(before.iter().all(|event| event["timestamp"].as_str().unwrap() < time));
    assert!(after.iter().any(|event| event["timestamp"] == time));
    let bad = server.admin().get("/api/v1/events?from=yesterday").await;
    bad.problem(400, "invalid_parameter");
    server.finish().await;
}

#[tokio::test]
async fn pages_meet_without_gap_or_overlap() {
    let server = Start::default().partitions(3).start().await;
    shipped(&server).await;
    let admin = server.admin();
    let all = server.events("").await;
    for limit in [1, 7, 200] {
        let (mut seen, mut path) = (Vec::new(), format!("/api/v1/events?limit={limit}"));
        loop {
            let page = admin.get(&path).await.expect(200);
            assert!(page.items().len() <= limit);
            seen.extend_from_slice(page.items());
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            assert_eq!(page["has_more"], true);
            path = format!("/api/v1/events?limit={limit}&cursor={cursor}");
        }
        assert_eq!(seen, all, "in pages of {limit}");
    }
    let page = admin.get("/api/v1/events?limit=2").await.expect(200);
    let cursor = page.text("next_cursor");
    let (first, rest) = cursor.split_at(1);
    let tampered = format!("{}{rest}", if first == "A" { "B" } else { "A" });
    for bad in [tampered.as_str(), "x", "AAAA", &cursor[..cursor.len() - 1]] {
        let answer = admin.get(&format!("/api/v1/events?limit=2&cursor={bad}")).await;
        answer.problem(400, "invalid_cursor");
    }
    let other = format!("/api/v1/events?eventType=order.placed&cursor={cursor}");
    admin.get(&other).await.problem(400, "invalid_cursor");
    server.finish().await;
}

#[tokio::test]
async fn versions_and_positions_have_no_gaps() {
    for partitions in [1, 3] {
        let server = Start::default().partitions(partitions).start().await;
        shipped(&server).await;
        let all = server.events("").await;
        let mut versions = BTreeMap::new();
        let mut positions = BTreeMap::new();
        for event in &all {
            // S1-61, S0-104, S2-48.
            let aggregate =
                (event["aggregate_type"].to_string(), event["aggregate_id"].to_string());
            let version = versions.entry(aggregate).or_insert(0);
            *version += 1;
            assert_eq!(event["aggregate_version"], *version, "{event}");
            let at = positions.entry(event["partition"].as_u64().unwrap()).or_insert(0);
            *at += 1;
            assert_eq!(position(event), *at, "{event}");
        }
        assert_eq!(positions.len(), usize::from(partitions), "every partition is used");
        server.finish().await;
    }
}

#[tokio::test]
async fn events_come_in_three_forms() {
    let server = Server::start().await;
    let Sale { order, .. } = shipped(&server).await;
    let native = server.event("order.placed", &order.correlation_id).await;
    let path = format!("/api/v1/events/{}", native["event_id"].as_str().unwrap());
    let camel = server.admin().get(&format!("{path}?case=camel")).await.expect(200);
    let names: BTreeSet<_> = camel.json().as_object().unwrap().keys().map(String::as_str).collect();
    let seven = [
        "eventId",
        "eventType",
        "aggregateId",
        "aggregateType",
        "occurredAt",
        "payload",
        "version",
    ];
    assert_eq!(names, seven.into());
    assert_eq!(camel["eventType"], "OrderPlaced");
    assert_eq!(camel["payload"]["customerId"], native["data"]["customer_id"]);
    assert_eq!(camel["payload"]["items"][0]["unitPrice"], native["data"]["items"][0]["unit_price"]);

    let client = server.admin().with("accept", "application/cloudevents+json");
    let cloud = client.get(&path).await.expect(200);
    assert_eq!(cloud.header("content-type"), "application/cloudevents+json");
    for (name, value) in [
        ("specversion", json!("1.0")),
        ("id", native["event_id"].clone()),
        ("type", json!("souk.order.placed.v1")),
        ("subject", json!(order.id)),
        ("partitionkey", json!(order.id)),
        ("time", native["timestamp"].clone()),
        ("dataschema", json!("/schemas/order.placed/1")),
        ("correlationid", json!(order.correlation_id)),
        ("sequence", json!("00000000000000000001")),
        ("data", native["data"].clone()),
    ] {
        assert_eq!(cloud[name], value, "{name}");
    }
    let source = cloud["source"].as_str().unwrap();
    assert!(
        source.starts_with('/') && source.ends_with(&format!("/order/{}", order.id)),
        "{source}"
    );
    for name in cloud.json().as_object().unwrap().keys() {
        assert!(
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{name}"
        );
    }
    let client = server.admin().with("accept", "application/cloudevents-batch+json");
    let batch = client.get("/api/v1/events?aggregateType=order").await.expect(200);
    assert_eq!(batch.header("content-type"), "application/cloudevents-batch+json");
    assert_eq!(batch.json().as_array().unwrap().len(), 4);
    assert_eq!(batch.json()[0], *cloud.json());
    server.finish().await;
}

#[tokio::test]
async fn the_event_store_is_for_administrators() {
    let server = Server::start().await;
    let ann = server.seller("Ann").await;
    let event = server.events("eventType=user.registered").await[0]["event_id"].clone();
    let event = event.as_str().unwrap();
    for path in [
        "/api/v1/events".to_owned(),
        "/api/events".to_owned(),
        format!("/api/v1/events/{event}"),
        format!("/api/v1/events/{event}/deliveries"),
        format!("/api/v1/events/await?causedBy={event}&timeout=0"),
        "/api/v1/admin/subscriptions".to_owned(),
        "/api/v1/admin/contexts".to_owned(),
        "/api/v1/dlq".to_owned(),
        "/api/v1/admin/quarantine".to_owned(),
    ] {
        server.visitor().get(&path).await.problem(401, "unauthenticated");
        ann.client.get(&path).await.problem(403, "insufficient_scope");
    }
    server.finish().await;
}

#[tokio::test]
async fn an_event_can_be_waited_for() {
    let server = Server::start().await;
    let sale = server.sale(2, 1, "test_pending").await;
    let correlation = &sale.order.correlation_id;
    // Already stored.
    let placed = server.await_event("order.placed", correlation).await;
    assert_eq!(placed["aggregate_id"], sale.order.id.as_str());
    let request = placed["causation_id"].as_str().unwrap();
    let caused = server.awaited(&format!("causedBy={request}")).await.expect(200);
    assert_eq!(*caused.json(), placed);
    // Never.
    server
        .awaited(&format!("eventType=order.paid&correlationId={correlation}&timeout=0"))
        .await
        .expect(204);
    server
        .awaited(&format!("eventType=order.paid&correlationId={correlation}&timeout=1"))
        .await
        .expect(204);
    server.awaited("eventType=order.paid").await.problem(400, "invalid_parameter");
    // Later.
    let query = format!("eventType=OrderCancelled&aggregateId={}&timeout=20", sale.order.id);
    let path = format!("/api/v1/orders/{}/cancel", sale.order.id);
    let cancel = json!({});
    let (waited, cancelled) =
        tokio::join!(server.awaited(&query), sale.buyer.client.post(&path, &cancel));
    let cancelled = cancelled.expect(200);
    let waited = waited.expect(200);
    assert_eq!(waited["event_type"], "order.cancelled");
    assert_eq!(waited["correlation_id"], cancelled.header("x-correlation-id"));
    server.finish().await;
}

/// S4-43: nobody who waits from a command's position on misses an event, or gets an older one.
#[tokio::test]
async fn an_event_is_waited_for_from_a_position_on() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}");
    let change = async |title: &str| {
        let body = json!({ "title": title });
        let changed = sam.client.if_match("*").patch(&path, &body).await.expect(200);
        changed.header("souk-position").to_owned()
    };
    let (first, second) = (change("One").await, change("Two").await);
    let of = format!("eventType=listing.updated&aggregateId={listing}");
    let title = |answer: &crate::support::Answer| answer["data"]["title"].clone();
    // Once from memory or the log, once from the index.
    for _ in 0..2 {
        let any = server.awaited(&of).await.expect(200);
        assert_eq!(title(&any), "One");
        let behind = server.awaited(&format!("{of}&after={first}")).await.expect(200);
        assert_eq!(title(&behind), "Two");
        let from = server.awaited(&format!("{of}&min_position={first}")).await.expect(200);
        assert_eq!(title(&from), "One");
        server.awaited(&format!("{of}&after={second}&timeout=0")).await.expect(204);
        server.caught_up("events-index").await;
    }
    // Yet to come, with the wait as a preference.
    let query = format!("/api/v1/events/await?{of}&after={second}");
    let waiting = server.admin().with("prefer", "wait=10");
    let (waited, _) = tokio::join!(waiting.get(&query), change("Three"));
    let waited = waited.expect(200);
    assert_eq!((title(&waited), waited.header("preference-applied")), (json!("Three"), "wait=10"));
    // Where the journal has not come to there is nothing to wait behind.
    for start in
        ["after=0:999999", "min_position=0:999999", "after=0:1&min_position=0:1", "after=x"]
    {
        let refused = server.awaited(&format!("{of}&{start}")).await;
        assert_eq!(refused.status(), 400, "{start}: {refused:?}");
    }
    server.finish().await;
}

#[tokio::test]
async fn what_became_of_an_event_is_shown() {
    let server = Server::start().await;
    let Sale { order, .. } = shipped(&server).await;
    let placed = server.event("order.placed", &order.correlation_id).await;
    let path = format!("/api/v1/events/{}/deliveries", placed["event_id"].as_str().unwrap());
    let deliveries = server.admin().get(&path).await.expect(200);
    assert!(
        is_timestamp(&deliveries.text("stored_at"))
            && is_timestamp(&deliveries.text("published_at"))
    );
    let by: BTreeSet<_> =
        deliveries.items().iter().map(|of| of["subscription"].as_str().unwrap()).collect();
    for name in ["order_saga-facts", "events-index", "orders-view"] {
        assert!(by.contains(name), "{by:?}");
    }
    assert!(deliveries.items().iter().all(|of| of["state"] == "acked"), "{deliveries:?}");
    server.finish().await;
}

#[tokio::test]
async fn correlation_and_causation_make_a_tree() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    // S0-119.
    let order = server.place_order(&bea.client.named("req_456"), &listing, 1, "sandbox").await;
    assert_eq!(order.correlation_id, "req_456");
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let events = server.events_of("req_456").await;
    assert!(events.len() > 20);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let root = order.answer.header("x-request-id").to_owned();
    let causes: BTreeMap<_, _> =
        events.iter().map(|of| (text(&of["event_id"]), text(&of["causation_id"]))).collect();
    for event in causes.keys() {
        let mut at = event;
        let mut seen = BTreeSet::new();
        while *at != root {
            assert!(seen.insert(at), "{event} is caused by itself");
            at = causes.get(at).unwrap_or_else(|| panic!("nothing known of {at}"));
        }
    }
    server.finish().await;
}

/// S2-54: nobody changes what has happened, not even with the file in hand.
#[tokio::test]
async fn the_database_refuses_to_change_events() {
    let server = Server::start().await;
    let Sale { order, .. } = shipped(&server).await;
    let stored = server.stored().await;
    for statement in ["UPDATE events SET data = '{}'", "DELETE FROM events"] {
        let refused = stored.change(statement).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
    // S3-9, S3-10.
    let expected = [
        "id",
        "aggregate_type",
        "aggregate_id",
        "event_type",
        "payload",
        "created_at",
        "published_at",
        "retry_count",
        "last_error",
    ];
    assert_eq!(stored.columns("outbox_events").await, expected);
    let id = format!(
        "SELECT id FROM outbox_events WHERE aggregate_id = '{}' AND event_type = 'order.placed'",
        order.id
    );
    let placed = server.event("order.placed", &order.correlation_id).await;
    assert_eq!(placed["event_id"], stored.value(&id).await);
    eventually("every event to be published", || async {
        let unpublished = "SELECT id FROM outbox_events WHERE published_at IS NULL";
        stored.rows(unpublished).await.is_empty().then_some(())
    })
    .await;
    let all = "SELECT CAST(count(DISTINCT id) AS TEXT) FROM outbox_events";
    let all: usize = stored.value(all).await.parse().unwrap();
    assert_eq!(all, server.events("").await.len());
    stored.close().await;
    server.finish().await;
}
