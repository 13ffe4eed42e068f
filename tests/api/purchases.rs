//! A purchase that goes well (S2-4 to S2-19, S0-63 to S0-83, S1-63 to S1-68, S1-130, S1-131).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    Order, PRICE, Server, Start, address, data_of, order_of, position, types_of, wish,
};

/// The same test with one partition and with three.
macro_rules! with_one_and_three_partitions {
    ($($test:ident),* $(,)?) => { $(
        mod $test {
            #[tokio::test]
            async fn with_one_partition() {
                super::$test(1).await;
            }

            #[tokio::test]
            async fn with_three_partitions() {
                super::$test(3).await;
            }
        }
    )* };
}
pub(crate) use with_one_and_three_partitions;

with_one_and_three_partitions!(every_step_happens_once_and_in_order, the_last_unit_is_sold);

async fn every_step_happens_once_and_in_order(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let sale = server.sale(5, 2, "sandbox").await;
    let Order { id, correlation_id, answer } = &sale.order;
    // S2-5, S0-63: recorded before anything follows.
    assert_eq!(answer["status"], "PENDING");
    assert_eq!(answer.header("location"), format!("/api/v1/orders/{id}"));
    assert!(!answer["payment"]["reference"].as_str().unwrap().is_empty());
    assert_eq!(answer["payment"]["provider"], "sandbox");
    let number = answer.text("order_number");
    assert!(number.starts_with("ORD-") && number.len() == "ORD-20261120-7ZQ4K2M9XW1B".len());

    server.await_event("SagaCompleted", correlation_id).await;
    server.at_rest().await;
    assert_eq!(server.history(id).await, ["PENDING", "CONFIRMED", "PAID", "SHIPPED"]);
    let events = server.events_of(correlation_id).await;

    // S2-65: the chain, each event once. In one partition positions are the order of things.
    let chain = [
        "order.placed",
        "inventory.reserved",
        "order.confirmed",
        "payment.captured",
        "order.paid",
        "shipment.created",
        "order.shipped",
        "saga.completed",
    ];
    let times: Vec<_> =
        chain.map(|name| single(&events, name)["timestamp"].as_str().unwrap().to_owned()).into();
    assert!(times.is_sorted(), "{times:?}");
    if partitions == 1 {
        let positions = chain.map(|name| position(single(&events, name)));
        assert!(positions.is_sorted(), "{positions:?}");
    }
    for (named, canonical) in [
        ("OrderPlaced", "order.placed"),
        ("TransactionCreated", "order.placed"),
        ("order.created", "order.placed"),
        ("InventoryReserved", "inventory.reserved"),
        ("OrderConfirmed", "order.confirmed"),
        ("PaymentProcessed", "payment.captured"),
        ("PaymentCompleted", "payment.captured"),
        ("OrderPaid", "order.paid"),
        ("ShipmentCreated", "shipment.created"),
        ("OrderShipped", "order.shipped"),
        ("SagaCompleted", "saga.completed"),
    ] {
        assert_eq!(
            server.event(named, correlation_id).await,
            *single(&events, canonical),
            "{named}"
        );
    }
    check_fields(&server, &sale.order, &sale.listing_id, &events).await;
    check_money(&server, id, 2 * PRICE).await;
    check_saga(&server, id).await;

    // S2-8, S2-15, S2-75.
    let order = server.order_now(id).await;
    assert_eq!(order["reservations"].as_array().unwrap().len(), 1);
    assert_eq!(order["reservations"][0]["quantity"], 2);
    let shipments = sale.buyer.client.get(&format!("/api/v1/shipments?orderId={id}")).await;
    let shipments = shipments.expect(200);
    assert_eq!(shipments.items().len(), 1);
    assert_eq!(shipments.items()[0]["shipment_id"], order["shipment_id"]);
    assert_eq!(server.stock(&sale.listing_id).await, (3, 0, 2));

    // S0-75, S0-82, S1-67.
    let seller = templates(&server.notifications(&sale.seller.user_id).await);
    assert!(seller.contains("new_order") && seller.contains("order_paid"), "{seller:?}");
    let buyer = templates(&server.notifications(&sale.buyer.user_id).await);
    assert!(buyer.contains("payment_received"), "{buyer:?}");
    let mails = server.mails(&sale.buyer.email).await;
    let confirmations = mails.iter().filter(|mail| mail["template"] == "order_confirmation");
    assert_eq!(confirmations.count(), 1);
    server.finish().await;
}

fn single<'a>(events: &'a [Value], event_type: &str) -> &'a Value {
    let found: Vec<_> = events.iter().filter(|event| event["event_type"] == event_type).collect();
    assert_eq!(found.len(), 1, "{event_type} in {:?}", types_of(events));
    found[0]
}

fn templates(notifications: &[Value]) -> BTreeSet<String> {
    let names = notifications.iter().map(|of| of["template"].as_str().unwrap().to_owned());
    names.collect()
}

/// What each event tells, by every name that readers know.
async fn check_fields(server: &Server, order: &Order, listing_id: &str, events: &[Value]) {
    let (id, now) = (json!(order.id), server.order_now(&order.id).await);
    // S1-130, S2-6, S2-46, S0-70.
    let placed = data_of(events, "order.placed");
    for name in ["order_id", "transaction_id"] {
        assert_eq!(placed[name], id);
    }
    for name in ["buyer_id", "customer_id", "seller_id", "currency", "amount", "total_amount"] {
        assert_eq!(placed[name], now[name], "{name}");
        assert!(!placed[name].is_null(), "{name}");
    }
    assert_eq!(placed["listing_id"], listing_id);
    assert_eq!(placed["total_amount"], 2 * PRICE);
    for (name, value) in address().as_object().unwrap() {
        assert_eq!(placed["delivery_address"][name], *value);
        assert_eq!(placed["address"][name], *value);
    }
    let item = &placed["items"][0];
    assert_eq!((&item["product_id"], &item["unit_price"]), (&json!(listing_id), &json!(PRICE)));
    assert_eq!((&item["quantity"], &item["sku"]), (&json!(2), &now["items"][0]["sku"]));

    // S1-131, S2-8, S0-73.
    let reserved = data_of(events, "inventory.reserved");
    assert_eq!((&reserved["order_id"], &reserved["quantity_reserved"]), (&id, &json!(2)));
    assert_eq!(reserved["product_id"], listing_id);
    assert_eq!(reserved["customer_id"], now["buyer_id"]);
    for name in ["warehouse_id", "reservation_id", "expires_at", "sku"] {
        assert!(reserved[name].is_string(), "{name}");
    }
    assert_eq!(reserved["reservations"][0]["reservation_id"], reserved["reservation_id"]);

    // S2-10, S2-12, S2-14, S2-16, S2-18, S0-80.
    let (confirmed, captured) =
        (data_of(events, "order.confirmed"), data_of(events, "payment.captured"));
    assert_eq!((&confirmed["order_id"], &confirmed["amount"]), (&id, &json!(2 * PRICE)));
    let payment = &now["payment"]["payment_id"];
    for of in [captured, data_of(events, "order.paid")] {
        assert_eq!((&of["order_id"], &of["payment_id"]), (&id, payment));
        assert_eq!(of["amount"], 2 * PRICE);
    }
    assert_eq!(captured["transaction_id"], id);
    let (shipment, shipped) =
        (data_of(events, "shipment.created"), data_of(events, "order.shipped"));
    for of in [shipment, shipped] {
        assert_eq!((&of["order_id"], &of["shipment_id"]), (&id, &now["shipment_id"]));
    }
    assert!(shipment["tracking_number"].is_string());
    assert_eq!(data_of(events, "saga.completed")["result"], "COMPLETED");
    check_allocation(server, order, events).await;
}

/// S1-102: what was held for the order is the order's own once it is paid.
async fn check_allocation(server: &Server, order: &Order, events: &[Value]) {
    let allocated = server.event("inventory.allocated", &order.correlation_id).await;
    let held = data_of(events, "inventory.reserved");
    for name in ["order_id", "listing_id", "sku", "quantity", "reservation_id"] {
        assert_eq!(allocated["data"][name], held[name], "{name}");
    }
    assert_eq!((&held["quantity"], &held["order_id"]), (&json!(2), &json!(order.id)));
    assert!(allocated["data"]["allocated_at"].is_string(), "{allocated}");
}

/// S2-11, S0-76, S0-81: charged once, and every entry has its counterpart.
async fn check_money(server: &Server, order_id: &str, amount: i64) {
    let payment = server.admin().get(&format!("/api/v1/orders/{order_id}/payment")).await;
    let payment = payment.expect(200);
    assert_eq!(
        (&payment["status"], &payment["amount"]["amount"]),
        (&json!("CAPTURED"), &json!(amount))
    );
    assert_eq!(server.gateway_calls().await, ["charge"]);
    let escrow = server.escrow(order_id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("FUNDED"), &json!(amount)));
    let entries = escrow["entries"].as_array().unwrap();
    let sum: i64 = entries.iter().map(|entry| entry["amount"].as_i64().unwrap()).sum();
    assert_eq!((sum, entries.len()), (0, 2));
}

/// S1-63 to S1-67.
async fn check_saga(server: &Server, order_id: &str) {
    let saga = server.saga(order_id).await;
    assert_eq!(
        (&saga["definition"], &saga["status"]),
        (&json!("reserve_first"), &json!("COMPLETED"))
    );
    let history = saga["history"].as_array().unwrap();
    let states: Vec<_> =
        history.iter().filter_map(|of| of["transition"]["state"].as_str()).collect();
    let expected = [
        "INVENTORY_RESERVED",
        "ORDER_CONFIRMED",
        "PAYMENT_COMPLETED",
        "ORDER_PAID",
        "FULFILLMENT_CREATED",
        "ORDER_SHIPPED",
        "COMPLETED",
    ];
    assert_eq!(states, expected);
    let times: Vec<_> = history.iter().map(|of| of["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted());
}

/// S0-74, S0-83: a listing whose last unit is held is RESERVED, and SOLD once it is paid for.
async fn the_last_unit_is_sold(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!(server.listing_now(&sale.listing_id).await["status"], "SOLD");
    assert_eq!(server.stock(&sale.listing_id).await, (0, 0, 1));
    let reserved = server.event("ListingReserved", &sale.order.correlation_id).await;
    assert_eq!(reserved["data"]["listing_id"], sale.listing_id.as_str());
    assert_eq!(reserved["data"]["transaction_id"], sale.order.id.as_str());
    assert!(reserved["data"]["expires_at"].is_string());
    server.event("listing.sold", &sale.order.correlation_id).await;
    let again = wish(&sale.listing_id, 1, "sandbox");
    let late = sale.buyer.client.post("/api/v1/orders", &again).await;
    late.problem(409, "listing_unavailable");
    server.finish().await;
}

#[tokio::test]
async fn an_order_of_several_listings_is_one_order() {
    let server = Start::default().partitions(3).start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let mut listings = Vec::new();
    for _ in 0..4 {
        listings.push(server.listing(&sam, 3).await);
    }
    // S2-46: an item may go by its own stock-keeping unit.
    let mut items = Vec::new();
    for listing in &listings {
        let sku = server.listing_now(listing).await.text("sku");
        items.push(json!({ "sku": sku, "quantity": 2 }));
    }
    server.at_rest().await;
    let mut wish = wish(&listings[0], 1, "sandbox");
    wish["items"] = json!([{ "sku": "SKU-OF-NOBODY", "quantity": 1 }]);
    let unknown = bea.client.post("/api/v1/orders", &wish).await;
    unknown.problem(422, "sku_unknown");
    wish["items"] = items.into();
    let order = order_of(bea.client.post("/api/v1/orders", &wish).await);
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let events = server.events_of(&order.correlation_id).await;
    // X23: one event a listing.
    let reserved: BTreeSet<_> = events
        .iter()
        .filter(|event| event["event_type"] == "inventory.reserved")
        .map(|event| event["data"]["listing_id"].as_str().unwrap())
        .collect();
    assert_eq!(reserved, listings.iter().map(String::as_str).collect());
    let now = server.order_now(&order.id).await;
    assert_eq!(now["reservations"].as_array().unwrap().len(), 4);
    assert_eq!(now["amount"], 8 * PRICE);
    for listing in &listings {
        assert_eq!(server.stock(listing).await, (1, 0, 2));
    }
    server.finish().await;
}

#[tokio::test]
async fn a_client_can_wait_for_the_outcome() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    // S0-105.
    let order = server.place_order(&bea.client.waiting(), &listing, 1, "sandbox").await;
    assert_eq!(order.answer["status"], "SHIPPED");
    assert_eq!(order.answer.header("preference-applied"), "wait=10");
    let declined = server.place_order(&bea.client.waiting(), &listing, 1, "test_decline").await;
    assert_eq!(declined.answer["status"], "PAYMENT_FAILED");
    // S0-71, S0-72: a payment that waits for the buyer says how to pay.
    let pending = server.place_order(&bea.client.waiting(), &listing, 1, "test_pending").await;
    assert_eq!(pending.answer["status"], "CONFIRMED");
    let told = pending.answer["payment"]["instructions"]["text"].as_str().unwrap();
    assert!(told.contains(pending.answer["payment"]["reference"].as_str().unwrap()));
    let patient = bea.client.with("prefer", "respond-async");
    let accepted = patient.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await.expect(202);
    assert_eq!(accepted.header("preference-applied"), "respond-async");
    assert_eq!(
        accepted.header("location"),
        format!("/api/v1/orders/{}", accepted.text("order_id"))
    );
    server.finish().await;
}

#[tokio::test]
async fn the_slow_and_the_silent_gateway_still_charge_once() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let late = server.place_order(&bea.client, &listing, 1, "test_late").await;
    server.order_eventually(&late.id, "SHIPPED").await;
    server.at_rest().await;
    check_money(&server, &late.id, PRICE).await;
    server.finish().await;
}

/// S1-105: the sandbox holds the money first where it is asked to.
#[tokio::test]
async fn money_can_be_held_before_it_is_taken() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let paid = server.place_order(&bea.client, &listing, 1, "test_authorize").await;
    server.order_eventually(&paid.id, "SHIPPED").await;
    let events = server.events_of(&paid.correlation_id).await;
    let steps = ["payment.initiated", "payment.authorized", "payment.captured", "order.paid"];
    let times = steps.map(|step| single(&events, step)["timestamp"].as_str().unwrap());
    assert!(times.is_sorted(), "{times:?}");
    let lost = server.place_order(&bea.client, &listing, 1, "test_hold_lost").await;
    server.order_eventually(&lost.id, "PAYMENT_FAILED").await;
    let failed = server.admin().get(&format!("/api/v1/orders/{}/payment", lost.id)).await;
    assert_eq!(failed.expect(200)["failure"], "hold_expired");
    server.at_rest().await;
    let made = server.gateway_calls().await;
    let mut made: Vec<_> = made.iter().map(String::as_str).collect();
    made.sort_unstable();
    assert_eq!(made, ["capture", "capture", "charge", "charge"]);
    let escrow = server.escrow(&paid.id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("FUNDED"), &json!(PRICE)));
    assert_eq!(server.stock(&listing).await, (1, 0, 1));
    server.finish().await;
}

#[tokio::test]
async fn a_transaction_is_an_order_of_one_listing() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let body = json!({
        "listing_id": listing, "delivery_address": address(), "payment_method": "sandbox",
    });
    // S0-64.
    for field in ["listing_id", "delivery_address", "payment_method"] {
        let mut body = body.clone();
        body.as_object_mut().unwrap().remove(field);
        let answer = bea.client.post("/api/v1/transactions", &body).await;
        assert_eq!(answer.pointers(), [format!("/{field}")]);
    }
    let made = bea.client.post("/api/v1/transactions", &body).await.expect(201);
    let id = made.text("transaction_id");
    assert_eq!(made["order_id"], id.as_str());
    assert_eq!(
        (&made["status"], made["items"][0]["quantity"].as_i64()),
        (&json!("PENDING"), Some(1))
    );
    assert_eq!(made.header("location"), format!("/api/v1/orders/{id}"));
    server.order_eventually(&id, "SHIPPED").await;
    let (order, transaction) = (
        bea.client.get(&format!("/api/v1/orders/{id}")).await.expect(200),
        bea.client.get(&format!("/api/v1/transactions/{id}")).await.expect(200),
    );
    assert_eq!(order.json(), transaction.json());
    // S0-70.
    let created = server.event("TransactionCreated", made.header("x-correlation-id")).await;
    for name in ["transaction_id", "listing_id", "buyer_id", "seller_id", "amount"] {
        assert!(!created["data"][name].is_null(), "{name}");
    }
    server.finish().await;
}

#[tokio::test]
async fn what_is_known_at_the_door_is_refused_there() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let (tom, listing) = (server.seller("Tom").await, server.listing(&sam, 2).await);
    let order = async |body: Value| bea.client.post("/api/v1/orders", &body).await;
    // S0-67, S0-66, S0-65.
    let own = sam.client.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await;
    own.problem(409, "self_purchase");
    server
        .visitor()
        .post("/api/v1/orders", &wish(&listing, 1, "sandbox"))
        .await
        .problem(401, "unauthenticated");
    let unknown = wish("01a1f9d4-c097-7fe7-abc7-70fad08fc399", 1, "sandbox");
    order(unknown).await.problem(404, "listing_not_found");
    assert_eq!(order(wish(&listing, 0, "sandbox")).await.pointers(), ["/items/0/quantity"]);
    assert_eq!(order(wish(&listing, 1, "shells")).await.pointers(), ["/payment_method"]);
    for field in ["items", "delivery_address", "payment_method"] {
        let mut body = wish(&listing, 1, "sandbox");
        body.as_object_mut().unwrap().remove(field);
        assert_eq!(order(body).await.pointers(), [format!("/{field}")]);
    }
    let mut body = wish(&listing, 1, "sandbox");
    body["delivery_address"].as_object_mut().unwrap().remove("city");
    assert_eq!(order(body).await.pointers(), ["/delivery_address/city"]);
    let mut body = wish(&listing, 1, "sandbox");
    body["items"][0]["unit_price"] = json!({ "amount": 1, "currency": "VND" });
    order(body).await.problem(409, "price_changed");
    // So many of another currency is another price, wherever it is bought.
    let mut body = wish(&listing, 1, "sandbox");
    body["items"][0]["unit_price"] = json!({ "amount": PRICE, "currency": "USD" });
    order(body.clone()).await.problem(409, "price_changed");
    let keyed = bea.client.keyed("another-currency");
    keyed.post("/api/v1/checkouts", &body).await.problem(409, "price_changed");
    body["items"][0]["unit_price"] = json!({ "amount": PRICE, "currency": "VND" });
    order(body).await.expect(201);
    let mut body = wish(&listing, 1, "sandbox");
    let other = server.listing(&tom, 1).await;
    body["items"] = json!([
        { "listing_id": listing, "quantity": 1 }, { "listing_id": other, "quantity": 1 },
    ]);
    order(body).await.problem(409, "mixed_sellers");
    sam.client.post(&format!("/api/v1/listings/{listing}/archive"), &json!({})).await.expect(200);
    order(wish(&listing, 1, "sandbox")).await.problem(409, "listing_unavailable");
    server.finish().await;
}

#[tokio::test]
async fn an_order_is_seen_by_those_it_concerns() {
    let server = Server::start().await;
    let sale = server.sale(2, 1, "sandbox").await;
    let eve = server.buyer("Eve").await;
    let order = server.order_eventually(&sale.order.id, "SHIPPED").await;
    let number = order.text("order_number");
    server.at_rest().await;
    for name in [&sale.order.id, &format!("order-{}", sale.order.id), &number] {
        let path = format!("/api/v1/orders/{name}");
        for seen_by in [&sale.buyer, &sale.seller] {
            let seen = seen_by.client.get(&path).await.expect(200);
            assert_eq!(seen["order_id"], sale.order.id.as_str());
        }
        eve.client.get(&path).await.problem(404, "not_found");
        server.visitor().get(&path).await.problem(401, "unauthenticated");
    }
    for (person, path) in [(&sale.buyer, "/api/v1/me/orders"), (&sale.seller, "/api/v1/me/sales")] {
        let page = person.client.get(path).await.expect(200);
        assert_eq!(page.items().len(), 1);
        assert_eq!(page.items()[0]["order_number"], number);
        assert_eq!(page.items()[0]["status"], "SHIPPED");
    }
    assert_eq!(eve.client.get("/api/v1/me/orders").await.expect(200).items().len(), 0);
    server.finish().await;
}

#[tokio::test]
async fn a_repeated_order_is_one_order() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    let client = bea.client.keyed("order-1");
    let first = order_of(client.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await);
    server.order_eventually(&first.id, "SHIPPED").await;
    // Also now that the listing is sold out.
    let again = client.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await.expect(201);
    assert_eq!(
        (again.text("order_id"), again.header("idempotent-replayed")),
        (first.id.clone(), "true")
    );
    let other = client.post("/api/v1/orders", &wish(&listing, 2, "sandbox")).await;
    other.problem(422, "idempotency_key_reused");
    // The key belongs to its caller.
    let tom = server.buyer("Tom").await;
    let theirs = tom.client.keyed("order-1");
    let theirs = theirs.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await;
    theirs.problem(409, "listing_unavailable");
    server.at_rest().await;
    assert_eq!(server.events("eventType=order.placed").await.len(), 1);
    server.finish().await;
}

#[tokio::test]
async fn an_order_is_shipped_delivered_and_paid_out() {
    let server = Server::start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    let order = server.order_eventually(&sale.order.id, "SHIPPED").await;
    let shipment = format!("/api/v1/shipments/{}", order.text("shipment_id"));
    let deliver = format!("{shipment}/deliver");
    let dispatch = format!("{shipment}/dispatch");
    let dispatched = sale.seller.client.post(&dispatch, &json!({})).await.expect(200);
    let delivered = sale.buyer.client.post(&deliver, &json!({})).await.expect(200);
    assert_eq!(delivered["status"], "DELIVERED");
    // S2-37, S2-38.
    for (answer, name, when) in [
        (&dispatched, "ShipmentDispatched", "dispatched_at"),
        (&delivered, "ShipmentDelivered", "delivered_at"),
    ] {
        let event = server.event(name, answer.header("x-correlation-id")).await;
        assert_eq!(event["name"], name);
        assert_eq!(event["data"]["shipment_id"], order["shipment_id"]);
        assert!(event["data"][when].is_string(), "{event}");
    }
    server.event("order.delivered", delivered.header("x-correlation-id")).await;
    // The buyer says that the goods are there: the money goes to the seller.
    server.order_eventually(&sale.order.id, "COMPLETED").await;
    server.at_rest().await;
    let escrow = server.escrow(&sale.order.id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("RELEASED"), &json!(0)));
    let entries = escrow["entries"].as_array().unwrap();
    let sum: i64 = entries.iter().map(|entry| entry["amount"].as_i64().unwrap()).sum();
    assert_eq!(sum, 0);
    let paid_out: i64 = entries
        .iter()
        .filter(|entry| entry["account"].as_str().unwrap().contains(&sale.seller.user_id))
        .map(|entry| entry["amount"].as_i64().unwrap())
        .sum();
    assert_eq!(paid_out, PRICE, "{entries:?}");
    let path = format!("/api/v1/orders/{}/cancel", sale.order.id);
    sale.buyer.client.post(&path, &json!({})).await.problem(409, "invalid_transition");
    server.finish().await;
}
