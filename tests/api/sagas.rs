//! The order saga when a step fails or takes too long (S1-63 to S1-77).

use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Client, Sale, Server, Start, data_of, order_of, position, wish};

with_one_and_three_partitions!(a_step_that_takes_too_long_is_undone);

/// A history as `kind step`, in order.
fn transitions(saga: &Value) -> Vec<String> {
    let history = saga["history"].as_array().unwrap();
    let each = history.iter().map(|entry| {
        let transition = &entry["transition"];
        let step = transition["step"].as_str().unwrap_or_default();
        format!("{} {step}", transition["kind"].as_str().unwrap()).trim_end().to_owned()
    });
    each.collect()
}

fn place_in(history: &[String], entry: &str) -> usize {
    history
        .iter()
        .position(|found| found == entry)
        .unwrap_or_else(|| panic!("no {entry:?} in {history:#?}"))
}

/// The shipment is made but the saga does not hear of it: its outcome is unknown when the time of
/// the step is over (X20, S1-69 to S1-77).
async fn a_step_that_takes_too_long_is_undone(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let deaf = json!({ "key": "shipment.created" });
    let fault = server.fault("order_saga-facts", "fail", deaf).await;
    let sale = server.sale(1, 1, "sandbox").await;
    let (id, correlation) = (&sale.order.id, &sale.order.correlation_id);
    server.await_event("shipment.created", correlation).await;
    server.advance_clock(29).await;
    assert_eq!(server.order_now(id).await["status"], "PAID");
    server.advance_clock(2).await;
    let saga_id = server.saga(id).await["saga_id"].as_str().unwrap().to_owned();
    server.mend(fault).await;
    let failed = format!("eventType=saga.failed&aggregateId={saga_id}&timeout=20");
    server.awaited(&failed).await.expect(200);
    let order = server.order_eventually(id, "FAILED").await;
    assert_eq!(order["failure"]["step"], "ship");
    assert!(!order["failure"]["reason"].as_str().unwrap().is_empty());
    server.at_rest().await;
    assert_eq!(server.history(id).await, ["PENDING", "CONFIRMED", "PAID", "FAILED"]);

    // In the reverse order of what was done.
    let saga = server.saga(id).await;
    assert_eq!(saga["status"], "COMPENSATED");
    let history = transitions(&saga);
    let undone = ["ship", "pay", "capture", "reserve"].map(|step| {
        assert!(
            place_in(&history, &format!("undo_started {step}"))
                < place_in(&history, &format!("step_undone {step}"))
        );
        place_in(&history, &format!("step_undone {step}"))
    });
    assert!(undone.is_sorted(), "{history:#?}");
    assert_eq!(place_in(&history, "compensated"), history.len() - 1);

    let all = server.events("").await;
    let of_order: Vec<_> =
        all.into_iter().filter(|event| event["data"]["order_id"] == id.as_str()).collect();
    for event_type in
        ["shipment.cancelled", "payment.refunded", "inventory.released", "order.failed"]
    {
        data_of(&of_order, event_type);
    }
    assert_eq!(server.gateway_calls().await, ["charge", "refund"]);
    let escrow = server.escrow(id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("REFUNDED"), &json!(0)));
    assert_eq!(server.stock(&sale.listing_id).await, (1, 0, 0));
    let told = server.notifications(&sale.buyer.user_id).await;
    assert!(told.iter().any(|of| of["template"] == "order_failed"), "{told:?}");
    server.finish().await;
}

#[tokio::test]
async fn a_passing_failure_of_a_step_is_tried_again() {
    let server = Server::start().await;
    // Once a charge, once a command of the saga, once a fact: none of it is to be seen afterwards.
    for target in ["sandbox", "order_saga-commands", "order_saga-facts"] {
        server.fault(target, "fail", json!({ "times": 1 })).await;
    }
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!(server.gateway_calls().await, ["charge"]);
    assert_eq!(server.saga(&sale.order.id).await["status"], "COMPLETED");
    server.finish().await;
}

#[tokio::test]
async fn a_panic_in_a_handler_is_contained() {
    let server = Server::start().await;
    for target in ["payment-gateway", "order_saga-commands", "notifications"] {
        server.fault(target, "panic", json!({ "times": 1 })).await;
    }
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!(server.gateway_calls().await, ["charge"]);
    server.finish().await;
}

/// S1-64: payment first, as an order may ask for (X11).
#[tokio::test]
async fn payment_can_come_first() {
    // In one partition positions say what came first.
    let server = Start::default().partitions(1).start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let mut wish = wish(&listing, 1, "sandbox");
    wish["payment_flow"] = json!("payment_first");
    let order = order_of(bea.client.post("/api/v1/orders", &wish).await);
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let events = server.events_of(&order.correlation_id).await;
    let at = |of: &str| position(events.iter().find(|event| event["event_type"] == of).unwrap());
    assert!(at("payment.captured") < at("inventory.reserved"));
    assert_eq!(server.saga(&order.id).await["definition"], "payment_first");

    // No stock: the money comes back.
    wish["items"][0]["quantity"] = json!(2);
    let order = order_of(bea.client.post("/api/v1/orders", &wish).await);
    server.order_eventually(&order.id, "REJECTED").await;
    server.at_rest().await;
    assert_eq!(server.gateway_calls().await, ["charge", "charge", "refund"]);
    assert_eq!(server.stock(&listing).await, (1, 0, 1));
    wish["payment_flow"] = json!("none");
    let answer = bea.client.post("/api/v1/orders", &wish).await;
    assert_eq!(answer.pointers(), ["/payment_flow"]);
    server.finish().await;
}

/// A gateway that answers nobody: the payment is asked after, and settled once.
#[tokio::test]
async fn a_silent_gateway_is_asked_again() {
    let server = Server::start().await;
    let sale = server.sale(1, 1, "test_timeout").await;
    server.await_event("payment.timed_out", &sale.order.correlation_id).await;
    let order = crate::support::eventually("the order to end", || async {
        let order = server.order_now(&sale.order.id).await;
        ["SHIPPED", "PAYMENT_FAILED", "FAILED"]
            .iter()
            .any(|status| order["status"] == *status)
            .then_some(order)
    })
    .await;
    server.at_rest().await;
    let calls = server.gateway_calls().await;
    let balance = server.escrow(&sale.order.id).await["balance"].as_i64().unwrap();
    match order["status"].as_str().unwrap() {
        "SHIPPED" => assert_eq!((calls.len(), balance), (1, crate::support::PRICE)),
        _ => assert_eq!(balance, 0),
    }
    server.finish().await;
}

#[tokio::test]
async fn definitions_and_instances_are_shown() {
    let server = Server::start().await;
    let page = server.admin().get("/api/v1/admin/sagas/definitions").await.expect(200);
    let of = |variant: &str| {
        let found = page.items().iter().find(|of| of["variant"] == variant).unwrap();
        let steps = found["steps"].as_array().unwrap().iter();
        steps.map(|step| step["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("reserve_first")[..3], ["reserve", "confirm", "capture"]);
    assert_eq!(of("payment_first")[..3], ["capture", "reserve", "confirm"]);
    let ann = server.newcomer("Ann").await;
    for path in ["/api/v1/admin/sagas", "/api/v1/admin/sagas/definitions"] {
        ann.client.get(path).await.problem(403, "insufficient_scope");
        server.visitor().get(path).await.problem(401, "unauthenticated");
    }
    let nobody = "/api/v1/admin/sagas/01a1f9d4-c097-7fe7-abc7-70fad08fc399";
    server.admin().get(nobody).await.problem(404, "not_found");
    server.finish().await;
}

/// An order whose saga does not hear that its step is done, and so waits; and that fault.
async fn waiting(server: &Server, deaf_to: &str) -> (Sale, u64) {
    let fault = server.fault("order_saga-facts", "fail", json!({ "key": deaf_to })).await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.await_event(deaf_to, &sale.order.correlation_id).await;
    (sale, fault)
}

/// Asks an administrator's client to `retry` or `compensate` an order's saga, as it is now.
async fn step_in(server: &Server, verb: &str, order: &str) -> Answer {
    let path = format!("/api/v1/admin/sagas/{order}");
    crate::support::eventually("the saga to stand still for long enough", || async {
        let version = server.admin().get(&path).await.expect(200).header("etag").to_owned();
        let answer = ask(&server.admin().if_match(&version), verb, order).await;
        (answer.status() != 412).then_some(answer)
    })
    .await
}

async fn ask(client: &Client, verb: &str, order: &str) -> Answer {
    let path = format!("/api/v1/admin/sagas/{order}/{verb}");
    client.post(&path, &json!({ "reason": "the phone rang" })).await
}

/// A fact became a dead letter, and the saga waits for it: retrying the saga works the letter too.
#[tokio::test]
async fn a_stuck_saga_is_retried_by_hand() {
    let server = Server::start().await;
    let deaf = json!({ "key": "shipment.created", "kind": "permanent" });
    let fault = server.fault("order_saga-facts", "fail", deaf).await;
    let sale = server.sale(1, 1, "sandbox").await;
    let id = &sale.order.id;
    crate::support::eventually("a letter", || async {
        (!server.letters(Some("order_saga-facts")).await.is_empty()).then_some(())
    })
    .await;
    server.caught_up("sagas-view").await;
    let stuck = server.saga(id).await;
    assert_eq!((&stuck["status"], &stuck["step_name"]), (&json!("RUNNING"), &json!("ship")));
    server.mend(fault).await;

    let admin = server.admin();
    ask(&admin, "retry", id).await.problem(428, "precondition_required");
    let old = ask(&admin.if_match("\"1\""), "retry", id).await.problem(412, "version_mismatch");
    assert!(old["current_version"].as_u64().unwrap() > 1);
    let bea = sale.buyer.client.if_match("*");
    ask(&bea, "retry", id).await.problem(403, "insufficient_scope");

    let answer = step_in(&server, "retry", id).await.expect(200);
    let said = &answer["interventions"][0];
    assert_eq!((&said["verb"], &said["reason"]), (&json!("retry"), &json!("the phone rang")));
    assert!(!said["by"].as_str().unwrap().is_empty());
    server.order_eventually(id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!(server.gateway_calls().await, ["charge"], "nothing has effect twice");
    let saga = server.saga(id).await;
    assert_eq!(saga["status"], "COMPLETED");
    assert!(transitions(&saga).iter().filter(|of| *of == "step_started ship").count() == 2);
    let saga_id = saga["saga_id"].as_str().unwrap();
    let asked = server.events(&format!("aggregateId={saga_id}")).await;
    data_of(&asked, "saga.retry_requested");
    let explained = format!("/api/v1/orders/{id}/explain");
    let explained = admin.get(&explained).await.expect(200);
    assert_eq!(explained["internals"]["saga"]["interventions"][0]["verb"], "retry");
    for verb in ["retry", "compensate"] {
        step_in(&server, verb, id).await.problem(409, "saga_over");
    }
    let nobody = "01a1f9d4-c097-7fe7-abc7-70fad08fc399";
    ask(&admin.if_match("*"), "retry", nobody).await.problem(404, "not_found");
    // Only what somebody did about it is left of the letter.
    assert!(server.letters(None).await.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn a_saga_is_turned_back_by_hand_also_across_a_crash() {
    let mut server = Start::on_files().start().await;
    let (sale, fault) = waiting(&server, "payment.captured").await;
    let id = sale.order.id.clone();
    let answer = step_in(&server, "compensate", &id).await.expect(200);
    assert_eq!(
        (&answer["status"], &answer["failure"]["step"]),
        (&json!("COMPENSATING"), &json!("capture"))
    );
    assert_eq!(answer["failure"]["reason"], "compensated_by_hand");
    step_in(&server, "compensate", &id).await.problem(409, "saga_compensating");
    server.kill_9_and_start_again().await;
    // The fault went with the process.
    let _ = fault;
    let order = server.order_eventually(&id, "FAILED").await;
    assert_eq!(order["failure"]["reason"], "compensated_by_hand");
    server.at_rest().await;
    let saga = server.saga(&id).await;
    assert_eq!(saga["status"], "COMPENSATED");
    assert_eq!(saga["interventions"][0]["verb"], "compensate");
    assert_eq!(server.stock(&sale.listing_id).await, (1, 0, 0));
    let escrow = server.escrow(&id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("REFUNDED"), &json!(0)));
    server.finish().await;
}

/// Turning back would give the money back for what is shipped.
#[tokio::test]
async fn nobody_turns_a_saga_back_once_there_is_a_shipment() {
    let server = Server::start().await;
    let (sale, fault) = waiting(&server, "order.shipped").await;
    let id = &sale.order.id;
    crate::support::eventually("the saga to know of the shipment", || async {
        let saga = server.admin().get(&format!("/api/v1/admin/sagas/{id}")).await.expect(200);
        (saga["step_name"] == "mark_shipped").then_some(())
    })
    .await;
    step_in(&server, "compensate", id).await.problem(409, "saga_past_return");
    server.mend(fault).await;
    server.order_eventually(id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!(server.gateway_calls().await, ["charge"]);
    server.finish().await;
}

/// S1-79: lists, gauges and histograms of what is under way and what is over.
#[tokio::test]
async fn what_is_stuck_is_found_and_counted() {
    let server = Server::start().await;
    let (sale, fault) = waiting(&server, "shipment.created").await;
    server.caught_up("sagas-view").await;
    let stuck = async |since: &str| {
        let path = format!("/api/v1/admin/sagas?stuck_since={since}&state=RUNNING");
        server.admin().get(&path).await.expect(200).items().len()
    };
    assert_eq!(stuck("2020-01-01T00:00:00Z").await, 0);
    assert_eq!(stuck("2100-01-01T00:00:00Z").await, 1);
    let wrong = server.admin().get("/api/v1/admin/sagas?stuck_since=lately").await;
    wrong.problem(400, "invalid_parameter");
    let running = || server.metric("souk_sagas_active", "state=\"RUNNING\"");
    assert!((running().await - 1.0).abs() < 0.1);
    server.mend(fault).await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    server.caught_up("sagas-view").await;
    assert!(running().await.abs() < 0.1);
    assert_eq!(stuck("2100-01-01T00:00:00Z").await, 0);
    let completed = "outcome=\"COMPLETED\"";
    let counted = server.metric("souk_saga_duration_seconds_count", completed).await;
    assert!((counted - 1.0).abs() < 0.1, "{counted}");
    server.finish().await;
}

/// S1-79: every transition as it happens, and none twice for who comes back.
#[tokio::test]
async fn sagas_are_streamed_as_they_go() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let admin = server.admin();
    let path = "/api/v1/admin/sagas/stream";
    let mut live = admin.listen_at(path, "").await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
    let other = server.place_order(&bea.client, &listing, 1, "test_decline").await;
    let first = live.next().await.unwrap();
    assert_eq!(first.event, "saga.started");
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;

    let told = async |query: &str| {
        let query = format!("after=0:0&seconds=0&{query}");
        admin.listen_at(path, &query).await.rest().await
    };
    let of_order = told(&format!("order_id={}", order.id)).await;
    let saga = server.saga(&order.id).await;
    let streamed: Vec<_> = of_order
        .iter()
        .flat_map(|told| told.data["transitions"].as_array().unwrap().clone())
        .collect();
    let history = saga["history"].as_array().unwrap().iter();
    let history: Vec<_> = history.map(|entry| entry["transition"].clone()).collect();
    assert_eq!(streamed, history, "every transition, once, in order");
    assert!(of_order.iter().all(|told| told.data["order_id"] == order.id.as_str()));
    assert_eq!(of_order.last().unwrap().data["state"], "COMPLETED");

    let all = told("").await;
    let back = told("state=COMPENSATED").await;
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].data["order_id"], other.id.as_str());
    let saga_id = saga["saga_id"].as_str().unwrap();
    assert_eq!(told(&format!("saga_id={saga_id}&saga=order_saga")).await, of_order);
    assert!(told("saga=another").await.is_empty());
    // Whoever comes back goes on behind what they saw.
    let seen = &all[2];
    let behind =
        admin.with("last-event-id", &seen.id).listen_at(path, "seconds=0").await.rest().await;
    assert_eq!(behind.len(), all.len() - 3);
    assert!(behind.iter().all(|told| all[3..].contains(told)));
    admin.get(&format!("{path}?state=LOST")).await.problem(400, "invalid_parameter");
    bea.client.get(path).await.problem(403, "insufficient_scope");
    server.finish().await;
}
