//! Purchases that come to nothing: no stock, no money, changed minds, lost time (S2-20 to S2-36,
//! S2-71, S2-72, S1-132).

use reqwest::Method;
use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{PRICE, Sale, Server, Start, data_of, position, types_of};

with_one_and_three_partitions!(
    without_stock_an_order_is_rejected,
    a_declined_payment_gives_the_stock_back,
    a_paid_order_is_cancelled_and_refunded,
    an_unpaid_reservation_ends,
);

/// The one event of a type.
fn single<'a>(events: &'a [Value], event_type: &str) -> &'a Value {
    let mut found = events.iter().filter(|event| event["event_type"] == event_type);
    let event = found.next().unwrap_or_else(|| panic!("{event_type} in {:?}", types_of(events)));
    assert!(found.next().is_none(), "several {event_type}");
    event
}

/// In one partition positions say what came first; times cannot, and partitions have none in common.
fn assert_order(partitions: u16, events: &[Value], first: &str, second: &str) {
    let (first, second) = (single(events, first), single(events, second));
    if partitions == 1 {
        assert!(position(first) < position(second), "{first}\n{second}");
    } else {
        assert!(first["timestamp"].as_str() <= second["timestamp"].as_str(), "{first}\n{second}");
    }
}

fn has(events: &[Value], event_type: &str) -> bool {
    events.iter().any(|event| event["event_type"] == event_type)
}

/// Nothing is in the escrow, and what was booked adds up to nothing.
async fn no_money_is_kept(server: &Server, order_id: &str) {
    let escrow = server.escrow(order_id).await;
    assert_eq!(escrow["balance"], 0, "{escrow:?}");
    let entries = escrow["entries"].as_array().unwrap();
    let mut accounts = std::collections::BTreeMap::new();
    for entry in entries {
        let account = entry["account"].as_str().unwrap().to_owned();
        *accounts.entry(account).or_insert(0) += entry["amount"].as_i64().unwrap();
    }
    assert!(accounts.values().all(|sum| *sum == 0), "{accounts:?}");
}

async fn without_stock_an_order_is_rejected(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let Sale { order, listing_id, .. } = server.sale(2, 3, "sandbox").await;
    server.order_eventually(&order.id, "REJECTED").await;
    server.at_rest().await;
    assert_eq!(server.history(&order.id).await, ["PENDING", "REJECTED"]);
    let events = server.events_of(&order.correlation_id).await;
    let failed = server.event("InventoryReservationFailed", &order.correlation_id).await;
    assert_eq!(failed["data"]["order_id"], order.id.as_str());
    assert_eq!(failed["data"]["reason"], "insufficient_stock");
    let rejected = server.event("OrderRejected", &order.correlation_id).await;
    assert_eq!(rejected["data"]["reason"], "insufficient_stock");
    assert!(!has(&events, "payment.initiated"), "{:?}", types_of(&events));
    assert_eq!(server.gateway_calls().await, [""; 0]);
    assert_eq!(server.stock(&listing_id).await, (2, 0, 0));
    server.finish().await;
}

async fn a_declined_payment_gives_the_stock_back(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let Sale { order, listing_id, .. } = server.sale(3, 2, "test_decline").await;
    server.order_eventually(&order.id, "PAYMENT_FAILED").await;
    server.at_rest().await;
    assert_eq!(server.history(&order.id).await, ["PENDING", "CONFIRMED", "PAYMENT_FAILED"]);
    let events = server.events_of(&order.correlation_id).await;
    let failed = server.event("PaymentFailed", &order.correlation_id).await;
    assert_eq!(failed["data"]["reason"], "insufficient_funds");
    server.event("OrderPaymentFailed", &order.correlation_id).await;
    let released = server.event("InventoryReleased", &order.correlation_id).await;
    assert_eq!(released["data"]["order_id"], order.id.as_str());
    assert_eq!(released["data"]["quantity"], 2);
    assert!(released["data"]["sku"].is_string());
    // S2-71.
    assert_order(partitions, &events, "payment.failed", "order.payment_failed");
    assert_order(partitions, &events, "order.payment_failed", "inventory.released");
    assert_eq!(server.stock(&listing_id).await, (3, 0, 0));
    assert_eq!(server.gateway_calls().await, ["charge"]);
    no_money_is_kept(&server, &order.id).await;
    assert_eq!(server.order_now(&order.id).await["failure"]["reason"], "insufficient_funds");
    server.finish().await;
}

/// The saga stands between PAID and SHIPPED while it does not hear of the shipment.
async fn paid_and_stuck(server: &Server, stock: u32) -> (Sale, u64) {
    let hold = json!({ "key": "shipment.created" });
    let fault = server.fault("order_saga-facts", "fail", hold).await;
    let sale = server.sale(stock, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "PAID").await;
    (sale, fault)
}

async fn a_paid_order_is_cancelled_and_refunded(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let (sale, fault) = paid_and_stuck(&server, 1).await;
    let (id, listing_id) = (&sale.order.id, &sale.listing_id);
    assert_eq!(server.listing_now(listing_id).await["status"], "SOLD");
    let path = format!("/api/v1/orders/{id}/cancel");
    let cancelled =
        sale.buyer.client.post(&path, &json!({ "reason": "too big" })).await.expect(200);
    assert_eq!(
        (&cancelled["status"], &cancelled["failure"]["reason"]),
        (&json!("CANCELLED"), &json!("too big"))
    );
    server.mend(fault).await;
    let event = server.event("OrderCancelled", cancelled.header("x-correlation-id")).await;
    assert_eq!(event["data"]["order_id"], id.as_str());
    assert_eq!(
        (&event["data"]["reason"], &event["data"]["comment"]),
        (&json!("cancelled"), &json!("too big"))
    );
    assert_eq!(event["data"]["cancelled_by"], "buyer");
    server
        .awaited(&format!(
            "eventType=saga.failed&aggregateId={}&timeout=20",
            saga_id(&server, id).await
        ))
        .await
        .expect(200);
    server.at_rest().await;
    assert_eq!(server.history(id).await, ["PENDING", "CONFIRMED", "PAID", "CANCELLED"]);
    // X25: what was sold is for sale again.
    assert_eq!(server.listing_now(listing_id).await["status"], "ACTIVE");
    assert_eq!(server.stock(listing_id).await, (1, 0, 0));
    assert_eq!(server.gateway_calls().await, ["charge", "refund"]);
    no_money_is_kept(&server, id).await;
    assert_eq!(server.escrow(id).await["status"], "REFUNDED");
    // The invoice says that all of it went back.
    let invoice = sale.buyer.client.get(&format!("/api/v1/orders/{id}/invoice")).await.expect(200);
    for text in ["Remaining</td><td class=\"n\">0 VND", &format!("-{PRICE} VND")] {
        assert!(invoice.raw().contains(text), "{text} in {}", invoice.raw());
    }
    let all = server.events("").await;
    let of_order: Vec<_> =
        all.iter().filter(|event| event["data"]["order_id"] == id.as_str()).cloned().collect();
    // S2-72.
    assert_order(partitions, &of_order, "order.cancelled", "inventory.released");
    assert_eq!(data_of(&of_order, "payment.refunded")["amount"], PRICE);
    single(&of_order, "shipment.cancelled");
    single(&all, "listing.relisted");
    server.finish().await;
}

async fn saga_id(server: &Server, order_id: &str) -> String {
    server.saga(order_id).await["saga_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_order_that_waits_for_payment_is_cancelled() {
    let server = Server::start().await;
    let Sale { order, buyer, seller, listing_id } = server.sale(2, 1, "test_pending").await;
    server.order_eventually(&order.id, "CONFIRMED").await;
    assert_eq!(server.stock(&listing_id).await, (1, 1, 0));
    // S0-76.
    let escrow = server.escrow(&order.id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("OPEN"), &json!(0)));
    let path = format!("/api/v1/orders/{}/cancel", order.id);
    let eve = server.buyer("Eve").await;
    eve.client.post(&path, &json!({})).await.problem(404, "not_found");
    server.visitor().post(&path, &json!({})).await.problem(401, "unauthenticated");
    seller.client.post(&path, &json!({})).await.problem(403, "forbidden");
    let too_late = buyer.client.if_match("\"1\"").post(&path, &json!({})).await;
    too_late.problem(412, "version_mismatch");
    // S2-32: without a body too.
    buyer.client.send(Method::POST, &path, None).await.expect(200);
    server.at_rest().await;
    assert_eq!(server.history(&order.id).await, ["PENDING", "CONFIRMED", "CANCELLED"]);
    assert_eq!(server.stock(&listing_id).await, (2, 0, 0));
    no_money_is_kept(&server, &order.id).await;
    // S2-36.
    buyer.client.post(&path, &json!({})).await.problem(409, "invalid_transition");
    server.finish().await;
}

#[tokio::test]
async fn an_order_is_cancelled_before_anything_is_reserved() {
    let server = Server::start().await;
    server.pause("order_saga-facts").await;
    let Sale { order, buyer, listing_id, .. } = server.sale(2, 1, "sandbox").await;
    let path = format!("/api/v1/orders/{}/cancel", order.id);
    buyer.client.post(&path, &json!({ "reason": "a mistake" })).await.expect(200);
    server.resume("order_saga-facts").await;
    server.at_rest().await;
    assert_eq!(server.history(&order.id).await, ["PENDING", "CANCELLED"]);
    assert_eq!(server.stock(&listing_id).await, (2, 0, 0));
    let charged = server.gateway_calls().await;
    let refunded = charged.iter().filter(|call| *call == "refund").count();
    assert_eq!(charged.len(), 2 * refunded, "charged and not refunded: {charged:?}");
    server.finish().await;
}

#[tokio::test]
async fn what_is_over_is_not_cancelled() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    for (quantity, method, status) in [
        (1, "sandbox", "SHIPPED"),
        (1, "test_decline", "PAYMENT_FAILED"),
        (3, "sandbox", "REJECTED"),
    ] {
        let order = server.place_order(&bea.client, &listing, quantity, method).await;
        server.order_eventually(&order.id, status).await;
        let path = format!("/api/v1/orders/{}/cancel", order.id);
        bea.client.post(&path, &json!({})).await.problem(409, "invalid_transition");
        server.admin().post(&path, &json!({})).await.problem(409, "invalid_transition");
        server.at_rest().await;
    }
    server.finish().await;
}

async fn an_unpaid_reservation_ends(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let Sale { order, listing_id, .. } = server.sale(1, 1, "test_pending").await;
    server.order_eventually(&order.id, "CONFIRMED").await;
    server.at_rest().await;
    assert_eq!(server.listing_now(&listing_id).await["status"], "RESERVED");
    server.advance_clock(34 * 60).await;
    server.at_rest().await;
    assert_eq!(server.order_now(&order.id).await["status"], "CONFIRMED");
    server.advance_clock(2 * 60).await;
    server.order_eventually(&order.id, "CANCELLED").await;
    server.at_rest().await;
    let released = server.events("eventType=InventoryReleased").await;
    assert_eq!((released.len(), &released[0]["data"]["reason"]), (1, &json!("expired")));
    assert_eq!(server.history(&order.id).await, ["PENDING", "CONFIRMED", "CANCELLED"]);
    assert_eq!(server.order_now(&order.id).await["failure"]["cancelled_by"], "system");
    assert_eq!(server.stock(&listing_id).await, (1, 0, 0));
    assert_eq!(server.listing_now(&listing_id).await["status"], "ACTIVE");
    no_money_is_kept(&server, &order.id).await;
    server.finish().await;
}

#[tokio::test]
async fn a_cancellation_that_races_the_payment_keeps_no_money() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 100).await;
    let mut orders = Vec::new();
    // S2-36: the cancellation meets the purchase at every point of its way.
    for round in 0..30 {
        let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
        // Not to wait for something, but to come at another moment each time.
        tokio::time::sleep(std::time::Duration::from_millis(round * 2)).await;
        let path = format!("/api/v1/orders/{}/cancel", order.id);
        let answer = bea.client.post(&path, &json!({})).await;
        assert!([200, 409].contains(&answer.status()), "{answer:?}");
        orders.push((order, answer.status() == 200));
    }
    server.at_rest().await;
    let mut kept = 0;
    for (order, cancelled) in &orders {
        let status = server.order_now(&order.id).await.text("status");
        if *cancelled {
            assert_eq!(status, "CANCELLED");
            no_money_is_kept(&server, &order.id).await;
        } else {
            assert_eq!(status, "SHIPPED");
            assert_eq!(server.escrow(&order.id).await["balance"], PRICE);
            kept += 1;
        }
    }
    assert_eq!(server.stock(&listing).await, (100 - kept, 0, kept));
    let calls = server.gateway_calls().await;
    let of = |operation: &str| calls.iter().filter(|call| *call == operation).count();
    assert_eq!(of("charge") - of("refund"), usize::try_from(kept).unwrap());
    server.finish().await;
}
