//! What happened, what is still owed, by whom, and when it is tried again (S1-86 to S1-90, S1-92,
//! S2-60).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Client, Person, Server, Start, eventually};

with_one_and_three_partitions!(
    a_purchase_is_a_tree_from_the_request_on,
    an_order_that_does_not_go_on_says_who_owes_what,
);

fn nodes(graph: &Value) -> &[Value] {
    graph["nodes"].as_array().unwrap()
}

/// The nodes that fit, as one text each.
fn where_(graph: &Value, fits: impl Fn(&Value) -> bool) -> Vec<&Value> {
    nodes(graph).iter().filter(|node| fits(node)).collect()
}

/// A node of this kind and name.
#[track_caller]
fn node<'a>(graph: &'a Value, kind: &str, name: &str) -> &'a Value {
    let found = where_(graph, |node| node["kind"] == kind && node["name"] == name);
    found.first().unwrap_or_else(|| panic!("no {kind} {name} in {graph:#}"))
}

/// Every parent is a node that stands before its children, and only the beginnings have none.
fn assert_tree(graph: &Value) {
    let mut seen = BTreeSet::new();
    for node in nodes(graph) {
        match node["parent"].as_str() {
            Some(parent) => assert!(seen.contains(parent), "{node} in {graph:#}"),
            None => assert!(["request", "timer"].contains(&node["kind"].as_str().unwrap())),
        }
        assert!(seen.insert(node["id"].as_str().unwrap()), "twice: {node}");
    }
    let path = graph["critical_path"].as_array().unwrap();
    let parents: BTreeMap<_, _> =
        nodes(graph).iter().map(|node| (node["id"].clone().to_string(), &node["parent"])).collect();
    for pair in path.windows(2) {
        assert_eq!(parents[&pair[1].to_string()], &pair[0], "{graph:#}");
    }
    assert!(parents[&path[0].to_string()].is_null());
}

async fn get(server: &Server, path: &str) -> Value {
    server.admin().get(path).await.expect(200).json().clone()
}

async fn a_purchase_is_a_tree_from_the_request_on(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let sale = server.sale(2, 1, "sandbox").await;
    let correlation = &sale.order.correlation_id;
    server.await_event("SagaCompleted", correlation).await;
    server.at_rest().await;
    let trace = get(&server, &format!("/api/v1/traces/{correlation}")).await;
    assert_tree(&trace);
    assert_eq!((&trace["status"], &trace["truncated"]), (&json!("done"), &json!(false)));
    assert_eq!(trace["correlation_id"], correlation.as_str());
    let beginnings = where_(&trace, |node| node["parent"].is_null());
    assert_eq!(beginnings.len(), 1, "{trace:#}");
    assert_eq!(beginnings[0]["kind"], "request");
    assert_eq!(beginnings[0]["id"], sale.order.answer.header("x-request-id"));

    // Every event is there once, below the handler that led to it.
    let events = server.events_of(correlation).await;
    assert_eq!(trace["events"], events.len());
    for event in &events {
        let shown = nodes(&trace).iter().find(|node| node["id"] == event["event_id"]).unwrap();
        assert_eq!(shown["name"], event["event_type"]);
        let cause = event["causation_id"].as_str().unwrap();
        let parent = shown["parent"].as_str().unwrap();
        match event["metadata"]["subscription"].as_str() {
            Some(by) => assert_eq!(parent, format!("{cause}/{by}"), "{event}"),
            None => assert_eq!(parent, cause, "{event}"),
        }
        let after = shown["duration_ms"].as_u64();
        assert_eq!(after.is_some(), cause != sale.order.answer.header("x-request-id"));
    }
    let by = |event_type: &str| {
        let event = events.iter().find(|event| event["event_type"] == event_type).unwrap();
        event["metadata"]["subscription"].as_str().unwrap_or("nobody").to_owned()
    };
    assert_eq!(by("order.placed"), "nobody");
    assert_eq!(by("saga.started"), "order_saga-facts");
    assert_eq!(by("inventory.reserved"), "order_saga-commands");
    assert_eq!(by("payment.captured"), "payment-gateway");
    // S1-87: it is known of each handler how long its event waited, and how long it took.
    let handlers = where_(&trace, |node| node["kind"] == "handler");
    assert!(!handlers.is_empty());
    for handler in handlers {
        assert_eq!(handler["status"], "acked", "{handler}");
        assert_eq!(handler["attempts"], 1, "{handler}");
        assert!(handler["queued_ms"].is_u64() && handler["duration_ms"].is_u64(), "{handler}");
    }
    let with_rows = get(&server, &format!("/api/v1/traces/{correlation}?projections=true")).await;
    assert_tree(&with_rows);
    assert_eq!(node(&with_rows, "handler", "orders-view")["status"], "acked");
    assert!(where_(&trace, |node| node["name"] == "orders-view").is_empty());
    one_of_its_events(&server, &trace, &events).await;
    server.finish().await;
}

/// S2-60: an event with what it came about through and what it led to, and nothing else.
async fn one_of_its_events(server: &Server, trace: &Value, events: &[Value]) {
    let captured = events.iter().find(|event| event["event_type"] == "payment.captured").unwrap();
    let (id, number) = (captured["event_id"].as_str().unwrap(), &captured["event_ref"]);
    let graph = get(server, &format!("/api/v1/events/{id}/graph")).await;
    assert_tree(&graph);
    assert_eq!(node(&graph, "event", "order.placed")["kind"], "event");
    assert_eq!(node(&graph, "event", "order.shipped")["kind"], "event");
    assert!(nodes(&graph).len() < nodes(trace).len());
    let known: BTreeSet<_> = nodes(trace).iter().map(|node| node["id"].to_string()).collect();
    assert!(nodes(&graph).iter().all(|node| known.contains(&node["id"].to_string())));
    let same = get(server, &format!("/api/v1/events/{}/graph", number.as_str().unwrap())).await;
    assert_eq!(nodes(&same).len(), nodes(&graph).len());
}

#[tokio::test]
async fn delays_and_failures_are_seen_in_a_diagram() {
    let mut server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let slow = json!({ "delay_ms": 300, "times": 1, "key": "user.registered" });
    server.fault("email-claims", "delay", slow).await;
    let broken = json!({ "kind": "permanent", "key": "user.registered" });
    server.fault("notifications", "fail", broken).await;
    let ann = server.register("Ann").await.expect(201);
    let correlation = ann.header("x-correlation-id").to_owned();
    server.at_rest().await;
    let path = format!("/api/v1/traces/{correlation}");
    let trace = get(&server, &path).await;
    assert_eq!(trace["status"], "error");
    let slow = node(&trace, "handler", "email-claims");
    assert_eq!(slow["slow"], true, "{slow}");
    assert!(slow["duration_ms"].as_u64().unwrap() >= 300, "{slow}");
    let dead = node(&trace, "handler", "notifications");
    assert_eq!((&dead["status"], &dead["attempts"]), (&json!("dead"), &json!(1)));
    assert!(dead["error"].as_str().unwrap().contains("injected"), "{dead}");
    assert_eq!(trace["critical_path"].as_array().unwrap().last(), Some(&dead["id"]));

    // S1-89.
    let diagram = server.admin().get(&format!("{path}?format=mermaid")).await.expect(200);
    assert!(diagram.header("content-type").starts_with("text/vnd.mermaid"));
    let text = diagram.raw();
    assert!(text.starts_with("flowchart TD\n"), "{text}");
    let line_of = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(line_of("notifications").ends_with(":::error"), "{text}");
    assert!(line_of("email-claims").ends_with(":::slow"), "{text}");
    // What a diagram points to is in it.
    for arrow in text.lines().filter_map(|line| line.trim().split_once(" --> ")) {
        for end in [arrow.0, arrow.1] {
            let is_it = |line: &str| {
                line.trim().strip_prefix(end).is_some_and(|rest| rest.starts_with(['[', '(', '{']))
            };
            assert!(text.lines().any(is_it), "{end} in {text}");
        }
    }
    let wrong = server.admin().get(&format!("{path}?format=svg")).await;
    wrong.problem(400, "invalid_parameter");

    // After a restart it is not known any more how long handlers took, and nothing is made up.
    assert!(server.terminate().await.success());
    server.start_again().await;
    server.at_rest().await;
    let later = get(&server, &path).await;
    let slow = node(&later, "handler", "email-claims");
    assert_eq!((&slow["status"], &slow["slow"]), (&json!("acked"), &json!(false)));
    assert!(slow["queued_ms"].is_null() && slow["duration_ms"].is_null(), "{slow}");
    assert_eq!(node(&later, "handler", "notifications")["attempts"], 1);
}

#[tokio::test]
async fn a_long_trace_is_cut_and_says_so() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let client = sam.client.named("one-for-all").if_match("*");
    for round in 0..510 {
        let change = json!({ "title": format!("Round {round}") });
        client.patch(&format!("/api/v1/listings/{listing}"), &change).await.expect(200);
    }
    let trace = get(&server, "/api/v1/traces/one-for-all").await;
    assert_eq!((&trace["events"], &trace["truncated"]), (&json!(500), &json!(true)));
    assert!(nodes(&trace).len() <= 2_000);
    server.finish().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_none_of_it_is_for_everybody() {
    let server = Server::start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let correlation = &sale.order.correlation_id;
    let admin = server.admin();
    for path in ["/api/v1/traces/nobody", "/api/v1/events/evt_1/graph"] {
        admin.get(path).await.problem(404, "not_found");
    }
    for path in [format!("/api/v1/traces/{correlation}"), "/api/v1/traces".to_owned()] {
        sale.buyer.client.get(&path).await.problem(403, "insufficient_scope");
        server.visitor().get(&path).await.problem(401, "unauthenticated");
    }
    let path = format!("/api/v1/orders/{}/explain", sale.order.id);
    let bob = server.buyer("Bob").await;
    bob.client.get(&path).await.problem(404, "not_found");
    server.visitor().get(&path).await.problem(401, "unauthenticated");
    server.finish().await;
}

/// The explanation of an order once one thing only is owed, by nobody who merely keeps rows, and that
/// stands like this; and the thing.
async fn owing(server: &Server, path: &str, state: &str) -> (Value, Value) {
    eventually(&format!("{state} to be all that is owed"), || async {
        let explained = get(server, path).await;
        let [owed] = &explained["internals"]["owed"].as_array().unwrap()[..] else { return None };
        let owed = owed.clone();
        let is_it = owed["is_projection"] == false && owed["state"] == state;
        is_it.then_some((explained, owed))
    })
    .await
}

/// The step that makes the shipment does not hear that it was made: first because of something that
/// may pass, then for good.
async fn an_order_that_does_not_go_on_says_who_owes_what(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let deaf = json!({ "key": "shipment.created" });
    let fault = server.fault("order_saga-facts", "fail", deaf).await;
    let sale = server.sale(1, 1, "sandbox").await;
    let path = format!("/api/v1/orders/{}/explain", sale.order.id);
    let (explained, owed) = owing(&server, &path, "retrying").await;
    assert_eq!(owed["subscription"], "order_saga-facts");
    assert_eq!(owed["event_type"], "shipment.created");
    assert_eq!(owed["class"], "transient");
    let (attempt, max) = (&owed["attempt"], &owed["attempts_max"]);
    assert!(attempt.as_u64() >= Some(1) && max.as_u64() > attempt.as_u64(), "{owed}");
    let attempt = format!("attempt {attempt} of {max}");
    assert!(owed["error"].as_str().unwrap().contains("injected transient failure"));
    let next = owed["next_attempt_at"].as_str().unwrap();
    assert!(next > owed["last_failed_at"].as_str().unwrap(), "{owed}");
    assert!(owed["letter"].is_null());
    let summary = explained["summary"].as_str().unwrap();
    for said in ["is PAID", "order_saga-facts", "shipment.created", &attempt, next, "step ship"] {
        assert!(summary.contains(said), "{said}: {summary}");
    }
    assert_eq!(explained["payment_status"], "CAPTURED");
    let saga = &explained["internals"]["saga"];
    assert_eq!((&saga["step"], &saga["state"]), (&json!("ship"), &json!("ORDER_PAID")));
    let timers = explained["internals"]["timers"].as_array().unwrap();
    assert!(timers[0]["what"].as_str().unwrap().contains("step ship"), "{timers:?}");
    // The same on the event itself.
    let event = owed["event_id"].as_str().unwrap();
    let deliveries = get(&server, &format!("/api/v1/events/{event}/deliveries")).await;
    let of_saga = |of: &&Value| of["subscription"] == "order_saga-facts";
    let delivery = deliveries["data"].as_array().unwrap().iter().find(of_saga).unwrap();
    assert_eq!(delivery["state"], "retrying");
    assert!(delivery["next_attempt_at"].is_string(), "{delivery}");
    // Buyer and seller hear how it stands, and nothing of how it works.
    for party in [&sale.buyer.client, &sale.seller.client] {
        let told = party.get(&path).await.expect(200);
        assert!(told["internals"].is_null() && !told.raw().contains("order_saga"), "{told:?}");
        assert!(told["summary"].as_str().unwrap().contains("is being taken care of"));
    }
    server.mend(fault).await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.finish().await;
}

/// The same with a failure that does not pass: a dead letter, which is named, and can be worked.
#[tokio::test]
async fn a_dead_letter_that_holds_an_order_up_is_named() {
    let server = Start::default().start().await;
    let deaf = json!({ "key": "shipment.created", "kind": "permanent", "times": 1 });
    server.fault("order_saga-facts", "fail", deaf).await;
    let sale = server.sale(1, 1, "sandbox").await;
    let path = format!("/api/v1/orders/{}/explain", sale.order.id);
    let (explained, owed) = owing(&server, &path, "dead").await;
    assert_eq!((&owed["state"], &owed["class"]), (&json!("dead"), &json!("permanent")));
    assert_eq!((&owed["attempt"], &owed["next_attempt_at"]), (&json!(1), &Value::Null));
    let letter = &server.letters(Some("order_saga-facts")).await[0];
    assert_eq!(owed["letter"]["key"], letter["key"]);
    assert_eq!(owed["letter"]["partition"], letter["partition"]);
    let summary = explained["summary"].as_str().unwrap();
    for said in ["order_saga-facts", "shipment.created", "dead letter", "injected permanent"] {
        assert!(summary.contains(said), "{said}: {summary}");
    }
    // As it says, so it can be done.
    let retry = owed["letter"]["retry"].as_str().unwrap();
    server.admin().post(retry, &json!({})).await.expect(200);
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let explained = get(&server, &path).await;
    assert_eq!(explained["internals"]["owed"], json!([]));
    assert!(explained["summary"].as_str().unwrap().ends_with("Nothing is owed."), "{explained:#}");
    let events = explained["internals"]["events"].as_array().unwrap();
    let types: BTreeSet<_> =
        events.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    for event_type in ["order.placed", "saga.started", "payment.captured", "order.shipped"] {
        assert!(types.contains(event_type), "{types:?}");
    }
    assert!(events.iter().all(|event| {
        let handlers = event["handlers"].as_array().unwrap();
        handlers.iter().all(|handler| handler["state"] == "acked")
    }));
    server.finish().await;
}

/// A client may use one correlation id for everything: what has nothing to do with the order is left
/// out, and a subscription that is paused is named.
#[tokio::test]
async fn only_what_belongs_to_the_order_is_told() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let client = bea.client.named("always-the-same");
    let first = server.place_order(&client, &listing, 1, "sandbox").await;
    server.order_eventually(&first.id, "SHIPPED").await;
    server.at_rest().await;
    server.pause("order_saga-facts").await;
    let second = server.place_order(&client, &listing, 1, "sandbox").await;
    let of = |id: &str| format!("/api/v1/orders/{id}/explain");
    let explained = get(&server, &of(&first.id)).await;
    assert!(!explained.to_string().contains(&second.id), "{explained:#}");
    assert!(explained["summary"].as_str().unwrap().ends_with("Nothing is owed."));
    let (explained, paused) = owing(&server, &of(&second.id), "pending").await;
    assert_eq!(
        (&paused["subscription"], &paused["held"]),
        (&json!("order_saga-facts"), &json!("paused"))
    );
    assert!(explained["summary"].as_str().unwrap().contains("It is paused."), "{explained:#}");
    assert!(explained["internals"]["saga"].is_null());
    server.resume("order_saga-facts").await;
    server.order_eventually(&second.id, "SHIPPED").await;
    server.at_rest().await;
    let explained = get(&server, &of(&first.id)).await;
    assert!(!explained.to_string().contains(&second.id), "{explained:#}");
    // By its number too, at once.
    let number = second.answer.text("order_number");
    assert_eq!(get(&server, &of(&number)).await["order_id"], second.id.as_str());
    server.finish().await;
}

fn correlations(page: &Answer) -> Vec<String> {
    page.items().iter().map(|of| of["correlation_id"].as_str().unwrap().to_owned()).collect()
}

/// The traces that a search finds, all of them on one page.
async fn found(admin: &Client, query: String) -> Answer {
    let page = admin.get(&format!("/api/v1/traces?limit=200&{query}")).await.expect(200);
    assert!(!page.header("souk-projection-position").is_empty());
    assert_eq!(page["has_more"], false);
    page
}

/// Changes somebody twice within one trace of the W3C's; gives the correlation ids of both.
async fn traces_are_found_by_the_w3cs_id(server: &Server, who: &Person, ann: &str) -> Vec<String> {
    let admin = server.admin();
    let found = |query: String| found(&admin, query);
    // By the W3C's trace, of which a request with a correlation id of its own is a part.
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traced = who.client.with("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    let mut of_trace = Vec::new();
    for name in ["one", "two"] {
        let path = format!("/api/v1/users/{}", who.user_id);
        let change = json!({ "first_name": name });
        let changed = traced.patch(&path, &change).await.expect(200);
        of_trace.push(changed.header("x-correlation-id").to_owned());
    }
    server.at_rest().await;
    let found_of_trace = correlations(&found(format!("trace_id={trace}")).await);
    assert_eq!(found_of_trace, of_trace);
    let upper = format!("trace_id={}&status=ok", trace.to_uppercase());
    assert_eq!(correlations(&found(upper).await), of_trace);
    let failed = format!("trace_id={trace}&status=error");
    assert!(correlations(&found(failed).await).is_empty());
    let other = format!("trace_id={trace}&correlation_id={ann}");
    assert!(correlations(&found(other).await).is_empty());
    let nobody = format!("trace_id={}", "f".repeat(32));
    assert!(correlations(&found(nobody).await).is_empty());
    for odd in ["4bf92f3577b34da6", "zzf92f3577b34da6a3ce929d0e0e4736"] {
        let path = format!("/api/v1/traces?trace_id={odd}");
        admin.get(&path).await.problem(400, "invalid_parameter");
    }
    of_trace
}

/// S1-90.
#[tokio::test]
async fn traces_are_found_by_what_is_in_them_and_by_how_they_stand() {
    let server = Start::default().partitions(3).with("RETRY_DELAY_MS", 20).start().await;
    let sale = server.sale(5, 1, "sandbox").await;
    let (order, correlation) = (&sale.order.id, &sale.order.correlation_id);
    server.order_eventually(order, "SHIPPED").await;
    server.at_rest().await;
    let broken = json!({ "kind": "permanent", "key": "user.registered", "times": 1 });
    server.fault("notifications", "fail", broken).await;
    let ann = server.register("Ann").await.expect(201).header("x-correlation-id").to_owned();
    server.at_rest().await;
    let registered = server.event("user.registered", &ann).await;
    let middle = registered["timestamp"].as_str().unwrap();
    let bob = server.register("Bob").await.expect(201).header("x-correlation-id").to_owned();
    server.at_rest().await;
    let admin = server.admin();
    let found = |query: String| found(&admin, query);
    // Of each once, however many events it has, with what there is of it.
    let all = found(String::new()).await;
    let mut each = correlations(&all);
    for named in [correlation, &ann, &bob] {
        assert_eq!(each.iter().filter(|of| of == &named).count(), 1, "{all:?}");
    }
    let row = all.items().iter().find(|of| of["correlation_id"] == correlation.as_str()).unwrap();
    assert_eq!((&row["status"], &row["event_type"]), (&json!("ok"), &json!("order.placed")));
    assert_eq!(row["events"], server.events_of(correlation).await.len());
    // What fits, and nothing else.
    assert_eq!(correlations(&found("status=error".to_owned()).await), std::slice::from_ref(&ann));
    assert!(!correlations(&found("status=ok".to_owned()).await).contains(&ann));
    assert_eq!(
        correlations(&found("event_type=OrderPlaced".to_owned()).await),
        std::slice::from_ref(correlation)
    );
    assert_eq!(
        correlations(&found(format!("aggregate_id={order}")).await),
        std::slice::from_ref(correlation)
    );
    let both = format!("status=error&aggregate_id={order}");
    assert!(correlations(&found(both).await).is_empty());
    let late = correlations(&found(format!("event_type=user.registered&from={middle}")).await);
    assert_eq!(late.len(), 2, "{late:?}");
    assert!(late.contains(&ann) && late.contains(&bob));
    let early = correlations(&found(format!("to={middle}")).await);
    assert!(early.contains(correlation) && !early.contains(&bob), "{early:?}");
    each.extend(traces_are_found_by_the_w3cs_id(&server, &sale.buyer, &ann).await);
    // Page by page it is the same.
    let (mut paged, mut next) = (Vec::new(), "/api/v1/traces?limit=2".to_owned());
    loop {
        let page = admin.get(&next).await.expect(200);
        assert!(page.items().len() <= 2);
        paged.extend(correlations(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        next = format!("/api/v1/traces?limit=2&cursor={cursor}");
    }
    each.sort_unstable();
    paged.sort_unstable();
    assert_eq!(paged, each);
    admin.get("/api/v1/traces?status=odd").await.problem(400, "invalid_parameter");
}
