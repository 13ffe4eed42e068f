//! The order saga when a step fails or takes too long (S1-63 to S1-77).

use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Server, Start, data_of, order_of, position, wish};

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
