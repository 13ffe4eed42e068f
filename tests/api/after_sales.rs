//! What happens to an order after it was shipped: delivery, returns, disputes, the seller's money
//! (S0-81, S0-83, S1-10, S1-12, S1-71, S1-72, S1-100, S1-107, S2-37, S2-38), checkouts across sellers
//! and invoices.

use serde_json::{Value, json};

use crate::support::momo::{MoMo, signed};
use crate::support::{
    Answer, PRICE, Person, Sale, Server, Start, address, eventually, order_of, types_of, wish,
};

const DAY: u64 = 24 * 60 * 60;

/// The order is shipped and its shipment is on its way and there, as the seller says.
async fn delivered(server: &Server, sale: &Sale) {
    sent(server, sale).await;
    let path = format!("/api/v1/shipments/{}/deliver", shipment(server, sale).await);
    sale.seller.client.post(&path, &json!({})).await.expect(200);
    server.order_eventually(&sale.order.id, "DELIVERED").await;
}

async fn sent(server: &Server, sale: &Sale) {
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let path = format!("/api/v1/shipments/{}/dispatch", shipment(server, sale).await);
    sale.seller.client.post(&path, &json!({})).await.expect(200);
}

/// A sale of so many units at this price that MoMo was paid for and that has arrived; and its payment.
async fn delivered_by_momo(momo: &MoMo, quantity: u32, price: i64) -> (Server, Sale, String) {
    let server = momo.shop().start().await;
    let (seller, buyer) = (server.seller("Sam").await, server.buyer("Bea").await);
    let mut offer = server.offer(quantity).await;
    offer["price"]["amount"] = json!(price);
    let made = seller.client.post("/api/v1/listings", &offer).await.expect(201);
    let listing_id = made.text("listing_id");
    let order = server.place_order(&buyer.client, &listing_id, quantity, "momo").await;
    let payment = order.answer["payment"]["payment_id"].as_str().unwrap().to_owned();
    eventually("MoMo to be asked", || async { momo.session(&payment) }).await;
    assert!(momo.pay(&payment));
    server.tell(&signed(momo.notice(&payment))).await.expect(204);
    let sale = Sale { seller, buyer, listing_id, order };
    delivered(&server, &sale).await;
    (server, sale, payment)
}

/// So many units are sent back, and the seller takes them; the return.
async fn taken_back(sale: &Sale, quantity: u32) -> String {
    let return_id = send_back(sale, quantity).await.expect(201).text("return_id");
    let accept = format!("{}/{return_id}/accept", returns(sale));
    sale.seller.client.post(&accept, &json!({})).await.expect(200);
    return_id
}

async fn shipment(server: &Server, sale: &Sale) -> String {
    server.order_now(&sale.order.id).await.text("shipment_id")
}

fn returns(sale: &Sale) -> String {
    format!("/api/v1/orders/{}/returns", sale.order.id)
}

async fn send_back(sale: &Sale, quantity: u32) -> Answer {
    let body = json!({
        "items": [{ "listing_id": sale.listing_id, "quantity": quantity }],
        "reason": "damaged",
        "comment": "It is in two pieces.",
    });
    sale.buyer.client.post(&returns(sale), &body).await
}

/// Waits until the provider has given the money back.
async fn refunded(sale: &Sale, return_id: &str) -> Answer {
    let path = format!("{}/{return_id}", returns(sale));
    eventually("the refund to be done", || async {
        let answer = sale.buyer.client.get(&path).await.expect(200);
        Some(answer).filter(|answer| answer["refund"]["status"] == "DONE")
    })
    .await
}

async fn books(server: &Server) -> Value {
    server.at_rest().await;
    let check = server.admin().get("/api/v1/admin/ledger/check").await.expect(200);
    assert_eq!(check["balanced"], true, "{check:?}");
    assert_eq!(check["difference"], 0, "{check:?}");
    check.json().clone()
}

async fn balance(server: &Server, seller: &Person) -> (i64, i64, i64) {
    server.caught_up("ledger").await;
    let page = seller.client.get("/api/v1/me/balance").await.expect(200);
    let Some(of) = page.items().first() else { return (0, 0, 0) };
    let number = |name: &str| of[name].as_i64().unwrap();
    (number("available"), number("on_its_way"), number("earned"))
}

async fn told(server: &Server, user_id: &str, template: &str) {
    eventually(&format!("{user_id} to be told {template}"), || async {
        let all = server.notifications(user_id).await;
        all.iter().any(|of| of["template"] == template).then_some(())
    })
    .await;
}

#[tokio::test]
async fn goods_come_back_in_part_and_then_all_of_them() {
    let server = Server::start().await;
    let sale = server.sale(5, 3, "sandbox").await;
    let early = send_back(&sale, 1).await;
    assert_eq!(early.status(), 409, "{early:?}");
    delivered(&server, &sale).await;
    let order = &sale.order.id;

    let asked = send_back(&sale, 1).await.expect(201);
    let return_id = asked.text("return_id");
    assert_eq!(asked.header("location"), format!("{}/{return_id}", returns(&sale)));
    assert_eq!(
        (&asked["status"], &asked["refund"]["status"]),
        (&json!("REQUESTED"), &json!("NONE"))
    );
    assert_eq!(asked["refund"]["amount"]["amount"], PRICE);
    assert_eq!(asked["comment"], "It is in two pieces.");
    assert_eq!(server.order_now(order).await["status"], "RETURN_REQUESTED");
    send_back(&sale, 1).await.problem(409, "return_open");
    told(&server, &sale.seller.user_id, "return_requested").await;

    // Only the seller decides, and once.
    let accept = format!("{}/{return_id}/accept", returns(&sale));
    sale.buyer.client.post(&accept, &json!({})).await.problem(403, "forbidden");
    let accepted = sale.seller.client.post(&accept, &json!({})).await.expect(200);
    assert_eq!(
        (&accepted["status"], &accepted["decided_by"]),
        (&json!("ACCEPTED"), &json!("seller"))
    );
    sale.seller.client.post(&accept, &json!({})).await.expect(200);
    let refuse = format!("{}/{return_id}/refuse", returns(&sale));
    let late = json!({ "reason": "I have changed my mind." });
    sale.seller.client.post(&refuse, &late).await.problem(409, "return_decided");
    refunded(&sale, &return_id).await;
    server.at_rest().await;
    let now = server.order_now(order).await;
    assert_eq!((&now["status"], &now["refunded_amount"]), (&json!("DELIVERED"), &json!(PRICE)));
    assert_eq!(server.stock(&sale.listing_id).await, (3, 0, 2));
    let escrow = server.escrow(order).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("FUNDED"), &json!(2 * PRICE)));

    // The rest of it.
    let body = json!({ "reason": "no_longer_wanted" });
    let rest = sale.buyer.client.post(&returns(&sale), &body).await.expect(201);
    assert_eq!(rest["items"][0]["quantity"], 2);
    let path = format!("{}/{}/accept", returns(&sale), rest.text("return_id"));
    sale.seller.client.post(&path, &json!({ "restock": false })).await.expect(200);
    refunded(&sale, &rest.text("return_id")).await;
    server.at_rest().await;
    let now = server.order_now(order).await;
    assert_eq!((&now["status"], &now["refunded_amount"]), (&json!("RETURNED"), &json!(3 * PRICE)));
    // What cannot be sold again stays sold.
    assert_eq!(server.stock(&sale.listing_id).await, (3, 0, 2));
    assert_eq!(server.escrow(order).await["status"], "REFUNDED");
    let payment = server.admin().get(&format!("/api/v1/orders/{order}/payment")).await.expect(200);
    assert_eq!(
        (&payment["status"], &payment["refunded_amount"]),
        (&json!("REFUNDED"), &json!(3 * PRICE))
    );
    assert_eq!(server.gateway_calls().await, ["charge", "refund", "refund"]);
    let all = sale.buyer.client.get(&returns(&sale)).await.expect(200);
    assert_eq!(all.items().len(), 2);
    assert!(all.items().iter().all(|of| of["refund"]["status"] == "DONE"), "{all:?}");
    assert_eq!(balance(&server, &sale.seller).await, (0, 0, 0));
    told(&server, &sale.buyer.user_id, "return_accepted").await;
    books(&server).await;
    server.finish().await;
}

/// What went back for the first is not taken for the second's money.
#[tokio::test]
async fn every_return_of_an_order_that_momo_was_paid_for_gives_its_money_back() {
    let momo = MoMo::start().await;
    let (server, sale, payment) = delivered_by_momo(&momo, 3, PRICE).await;
    for (refunds, kept) in [(1, 2 * PRICE), (2, PRICE)] {
        let return_id = taken_back(&sale, 1).await;
        refunded(&sale, &return_id).await;
        server.at_rest().await;
        let session = momo.session(&payment).unwrap();
        assert_eq!((momo.called("refund"), session.given_back()), (refunds, refunds));
        assert_eq!(session.kept(), kept);
    }
    // Somebody has given the last one back by hand already, which is found.
    momo.lists(&payment, "by-hand", PRICE, 0);
    let return_id = taken_back(&sale, 1).await;
    refunded(&sale, &return_id).await;
    server.at_rest().await;
    assert_eq!((momo.called("refund"), momo.session(&payment).unwrap().kept()), (2, 0));
    assert_eq!(server.order_now(&sale.order.id).await["status"], "RETURNED");
    books(&server).await;
    server.finish().await;
}

/// MoMo gives no less than 1,000 dong back: somebody is told to do it by hand.
#[tokio::test]
async fn what_is_too_little_for_momo_to_give_back_is_somebodys_to_give() {
    let momo = MoMo::start().await;
    let (server, sale, payment) = delivered_by_momo(&momo, 4, 500).await;
    taken_back(&sale, 1).await;
    let letter = eventually("a dead letter", || async {
        server.letters(Some("payment-gateway")).await.first().cloned()
    })
    .await;
    assert!(letter["error"].to_string().contains("amount_below_minimum"), "{letter}");
    eventually("administrators to be told", || async {
        let path = "/api/v1/notifications?audience=admin&limit=200";
        let page = server.admin().get(path).await.expect(200);
        page.items().iter().any(|of| of["template"] == "refund_refused").then_some(())
    })
    .await;
    assert_eq!((momo.called("refund"), momo.session(&payment).unwrap().kept()), (0, 2_000));
    let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
    let path = format!("/api/v1/dlq/payment-gateway/{partition}/{key}/discard");
    server.admin().if_match("*").post(&path, &json!({})).await.expect(200);
    // What is enough goes back as ever.
    let return_id = taken_back(&sale, 3).await;
    refunded(&sale, &return_id).await;
    server.at_rest().await;
    assert_eq!((momo.called("refund"), momo.session(&payment).unwrap().kept()), (1, 500));
    server.finish().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_return_is_said_by_pointer() {
    let server = Server::start().await;
    let sale = server.sale(5, 2, "sandbox").await;
    delivered(&server, &sale).await;
    let ask = async |body: Value| sale.buyer.client.post(&returns(&sale), &body).await;
    let of = |quantity: i64| json!({ "items": [{ "listing_id": sale.listing_id, "quantity": quantity }], "reason": "other" });
    ask(json!({})).await.problem(422, "invalid");
    assert_eq!(ask(json!({ "reason": "because" })).await.pointers(), ["/reason"]);
    assert_eq!(ask(of(3)).await.pointers(), ["/items/0/quantity"]);
    assert_eq!(ask(of(0)).await.pointers(), ["/items/0/quantity"]);
    let other = json!({
        "items": [{ "listing_id": sale.order.id, "quantity": 1 }], "reason": "other",
    });
    assert_eq!(ask(other).await.pointers(), ["/items/0/listing_id"]);
    let long = json!({ "reason": "other", "comment": "x".repeat(501) });
    assert_eq!(ask(long).await.pointers(), ["/comment"]);
    let outsider = server.buyer("Otto").await;
    let body = json!({ "reason": "other" });
    outsider.client.post(&returns(&sale), &body).await.problem(404, "not_found");
    sale.seller.client.post(&returns(&sale), &body).await.problem(403, "forbidden");
    server.finish().await;
}

/// A repeat with its key finds the return that it made, also after a kill -9.
#[tokio::test]
async fn a_return_is_asked_for_once_also_across_a_kill() {
    let mut server = Server::start().await;
    let sale = server.sale(5, 2, "sandbox").await;
    delivered(&server, &sale).await;
    let body = json!({ "reason": "damaged" });
    let keyed = sale.buyer.client.keyed("once");
    let first = keyed.post(&returns(&sale), &body).await.expect(201);
    // The refund cannot go out before the end.
    let fault = json!({ "times": null, "kind": "system" });
    server.fault("order-progress", "fail", fault).await;
    let accept = format!("{}/{}/accept", returns(&sale), first.text("return_id"));
    sale.seller.client.post(&accept, &json!({})).await.expect(200);
    server.kill_9_and_start_again().await;
    let again = keyed.post(&returns(&sale), &body).await.expect(201);
    assert_eq!(again["return_id"], first["return_id"]);
    assert_eq!(again.header("idempotent-replayed"), "true");
    refunded(&sale, &first.text("return_id")).await;
    server.at_rest().await;
    assert_eq!(server.order_now(&sale.order.id).await["status"], "RETURNED");
    assert_eq!(server.stock(&sale.listing_id).await, (5, 0, 0));
    let events = server.events(&format!("aggregateId={}", sale.order.id)).await;
    let types = types_of(&events);
    assert_eq!(types.iter().filter(|of| **of == "order.returned").count(), 1, "{types:?}");
    books(&server).await;
    server.finish().await;
}

#[tokio::test]
async fn a_return_that_nobody_answers_is_accepted() {
    let server = Server::start().await;
    let mut sale = server.sale(5, 1, "sandbox").await;
    delivered(&server, &sale).await;
    let asked = send_back(&sale, 1).await.expect(201);
    server.advance_clock(7 * DAY + 1).await;
    sale.buyer.log_in_again().await;
    let decided = refunded(&sale, &asked.text("return_id")).await;
    assert_eq!(
        (&decided["status"], &decided["decided_by"]),
        (&json!("ACCEPTED"), &json!("system"))
    );
    server.at_rest().await;
    assert_eq!(server.order_now(&sale.order.id).await["status"], "RETURNED");
    books(&server).await;
    server.finish().await;
}

#[tokio::test]
async fn a_refused_return_can_be_disputed_and_an_administrator_decides() {
    let server = Server::start().await;
    let sale = server.sale(5, 2, "sandbox").await;
    delivered(&server, &sale).await;
    let order = &sale.order.id;
    let asked = send_back(&sale, 2).await.expect(201);
    let refuse = format!("{}/{}/refuse", returns(&sale), asked.text("return_id"));
    assert_eq!(sale.seller.client.post(&refuse, &json!({})).await.pointers(), ["/reason"]);
    let reason = json!({ "reason": "It was whole when it left." });
    let refused = sale.seller.client.post(&refuse, &reason).await.expect(200);
    assert_eq!(
        (&refused["status"], &refused["refused_because"]),
        (&json!("REFUSED"), &reason["reason"])
    );
    assert_eq!(server.order_now(order).await["status"], "DELIVERED");
    told(&server, &sale.buyer.user_id, "return_refused").await;

    let dispute = format!("/api/v1/orders/{order}/dispute");
    sale.buyer.client.get(&dispute).await.problem(404, "no_dispute");
    let body = json!({ "reason": "return_refused", "comment": "It was not." });
    sale.seller.client.post(&dispute, &body).await.problem(403, "forbidden");
    let keyed = sale.buyer.client.keyed("once");
    let opened = keyed.post(&dispute, &body).await.expect(201);
    assert_eq!((&opened["status"], &opened["comment"]), (&json!("OPEN"), &json!("It was not.")));
    let repeated = keyed.post(&dispute, &body).await.expect(201);
    assert_eq!(repeated.header("idempotent-replayed"), "true");
    assert_eq!(repeated.json(), opened.json());
    let other = json!({ "reason": "other", "comment": "It squeaks." });
    keyed.post(&dispute, &other).await.problem(422, "idempotency_key_reused");
    let found = sale.buyer.client.post(&dispute, &other).await.expect(200);
    assert_eq!(found.json(), opened.json());
    send_back(&sale, 1).await.problem(409, "dispute_open");
    told(&server, &sale.seller.user_id, "order_disputed").await;
    // The money waits, however long it takes.
    server.caught_up("orders-view").await;
    let page = server.admin().get("/api/v1/admin/disputes").await.expect(200);
    assert_eq!(page.items()[0]["order_id"], json!(order));

    let resolve = format!("/api/v1/admin/orders/{order}/dispute/resolve");
    let decide =
        |amount: i64| json!({ "refund_amount": amount, "reason": "Half of it was broken." });
    sale.seller.client.post(&resolve, &decide(0)).await.problem(403, "insufficient_scope");
    let too_much = server.admin().post(&resolve, &decide(2 * PRICE + 1)).await;
    assert_eq!(too_much.pointers(), ["/refund_amount"]);
    let resolved = server.admin().post(&resolve, &decide(PRICE)).await.expect(200);
    assert_eq!(
        (&resolved["status"], &resolved["refund"]["amount"]["amount"]),
        (&json!("RESOLVED"), &json!(PRICE))
    );
    server.admin().post(&resolve, &decide(0)).await.problem(409, "dispute_decided");
    // The rest is the seller's at once.
    server.order_eventually(order, "COMPLETED").await;
    server.at_rest().await;
    let known = sale.buyer.client.get(&dispute).await.expect(200);
    assert_eq!(known["refund"]["status"], "DONE");
    assert_eq!(balance(&server, &sale.seller).await, (PRICE, 0, PRICE));
    assert_eq!(server.stock(&sale.listing_id).await, (3, 0, 2));
    for person in [&sale.buyer, &sale.seller] {
        told(&server, &person.user_id, "dispute_resolved").await;
    }
    let page = server.admin().get("/api/v1/admin/disputes?status=resolved").await.expect(200);
    assert_eq!(page.items().len(), 1);
    books(&server).await;
    server.finish().await;
}

/// What a dispute gave back does not go back again with some of the goods.
#[tokio::test]
async fn a_return_after_a_dispute_gives_back_its_part_of_what_is_left() {
    let server = Server::start().await;
    let sale = server.sale(5, 2, "sandbox").await;
    delivered(&server, &sale).await;
    let order = &sale.order.id;
    let dispute = json!({ "reason": "damaged" });
    let path = format!("/api/v1/orders/{order}/dispute");
    sale.buyer.client.post(&path, &dispute).await.expect(201);
    let resolve = json!({ "refund_amount": PRICE, "reason": "Both of them are scratched." });
    let path = format!("/api/v1/admin/orders/{order}/dispute/resolve");
    server.admin().post(&path, &resolve).await.expect(200);
    server.order_eventually(order, "COMPLETED").await;
    for (status, back) in [("COMPLETED", PRICE * 3 / 2), ("RETURNED", 2 * PRICE)] {
        let return_id = taken_back(&sale, 1).await;
        let done = refunded(&sale, &return_id).await;
        assert_eq!(done["refund"]["amount"]["amount"], PRICE / 2);
        let now = server.order_now(order).await;
        assert_eq!((&now["status"], &now["refunded_amount"]), (&json!(status), &json!(back)));
    }
    books(&server).await;
    server.finish().await;
}

/// S0-83: what never left can be bought again when all of the money goes back; what left cannot.
#[tokio::test]
async fn what_was_never_sent_is_offered_again_when_the_money_goes_back() {
    let server = Server::start().await;
    let mut sale = server.sale(1, 1, "sandbox").await;
    let refund_all = async |sale: &Sale| {
        let order = &sale.order.id;
        server.order_eventually(order, "SHIPPED").await;
        let body = json!({ "reason": "not_received" });
        sale.buyer.client.post(&format!("/api/v1/orders/{order}/dispute"), &body).await.expect(201);
        let body = json!({ "refund_amount": PRICE, "reason": "Nothing has arrived." });
        let path = format!("/api/v1/admin/orders/{order}/dispute/resolve");
        server.admin().post(&path, &body).await.expect(200);
        server.order_eventually(order, "REFUNDED").await;
        books(&server).await;
    };
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    assert_eq!(server.listing_now(&sale.listing_id).await["status"], "SOLD");
    let called_off = shipment(&server, &sale).await;
    refund_all(&sale).await;
    assert_eq!(server.stock(&sale.listing_id).await, (1, 0, 0));
    assert_eq!(server.listing_now(&sale.listing_id).await["status"], "ACTIVE");
    let events = server.events(&format!("aggregateId={}", sale.listing_id)).await;
    for event_type in ["inventory.released", "listing.relisted"] {
        assert!(types_of(&events).contains(&event_type), "{event_type}: {:?}", types_of(&events));
    }
    // It cannot be sent any more.
    let dispatch = format!("/api/v1/shipments/{called_off}/dispatch");
    let late = sale.seller.client.post(&dispatch, &json!({})).await;
    late.problem(409, "shipment_cancelled");

    sale.order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
    sent(&server, &sale).await;
    refund_all(&sale).await;
    assert_eq!(server.stock(&sale.listing_id).await, (0, 0, 1));
    server.finish().await;
}

/// That the goods are there settles nothing while the buyer disputes what they are.
#[tokio::test]
async fn goods_that_are_disputed_are_not_paid_for_when_they_arrive() {
    let server = Server::start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    sent(&server, &sale).await;
    let path = format!("/api/v1/orders/{}/dispute", sale.order.id);
    sale.buyer.client.post(&path, &json!({ "reason": "not_received" })).await.expect(201);
    let arrived = format!("/api/v1/shipments/{}/deliver", shipment(&server, &sale).await);
    sale.buyer.client.post(&arrived, &json!({})).await.expect(200);
    server.order_eventually(&sale.order.id, "DELIVERED").await;
    server.at_rest().await;
    assert_eq!(server.escrow(&sale.order.id).await["status"], "FUNDED");
    let nothing_back = json!({ "refund_amount": 0, "reason": "It came after all." });
    let path = format!("/api/v1/admin/orders/{}/dispute/resolve", sale.order.id);
    server.admin().post(&path, &nothing_back).await.expect(200);
    server.order_eventually(&sale.order.id, "COMPLETED").await;
    assert_eq!(server.escrow(&sale.order.id).await["status"], "RELEASED");
    books(&server).await;
    server.finish().await;
}

/// The escrow does not wait for ever: thirty days after the shipment, seven after the delivery. A
/// dispute stops the clock.
#[tokio::test]
async fn the_seller_gets_the_money_when_nobody_says_anything() {
    let server = Server::start().await;
    let mut sale = server.sale(9, 1, "sandbox").await;
    sent(&server, &sale).await;
    let buy = async || {
        let order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
        server.order_eventually(&order.id, "SHIPPED").await;
        order
    };
    let (second, disputed, forgotten) = (buy().await, buy().await, buy().await);
    let late = buy().await;
    let shipment = server.order_now(&second.id).await.text("shipment_id");
    for verb in ["dispatch", "deliver"] {
        let path = format!("/api/v1/shipments/{shipment}/{verb}");
        sale.seller.client.post(&path, &json!({})).await.expect(200);
    }
    server.order_eventually(&second.id, "DELIVERED").await;
    let path = format!("/api/v1/orders/{}/dispute", disputed.id);
    sale.buyer.client.post(&path, &json!({ "reason": "not_received" })).await.expect(201);

    server.advance_clock(7 * DAY + 1).await;
    server.order_eventually(&second.id, "COMPLETED").await;
    // What leaves late has as long a way.
    let shipment = server.order_now(&late.id).await.text("shipment_id");
    let path = format!("/api/v1/shipments/{shipment}/dispatch");
    server.admin().post(&path, &json!({})).await.expect(200);
    assert_eq!(server.order_now(&sale.order.id).await["status"], "SHIPPED");
    server.advance_clock(23 * DAY).await;
    server.order_eventually(&sale.order.id, "COMPLETED").await;
    let history = server.history(&sale.order.id).await;
    assert_eq!(history, ["PENDING", "CONFIRMED", "PAID", "SHIPPED", "COMPLETED"]);
    server.at_rest().await;
    // Nobody is paid for what was never sent: an administrator hears of it.
    assert_eq!(server.order_now(&forgotten.id).await["status"], "SHIPPED");
    let path = format!("/api/v1/orders/{}/dispute", forgotten.id);
    let raised = server.admin().get(&path).await.expect(200);
    assert_eq!((&raised["status"], &raised["reason"]), (&json!("OPEN"), &json!("not_received")));
    assert_eq!(server.order_now(&disputed.id).await["status"], "SHIPPED");
    assert_eq!(server.escrow(&disputed.id).await["status"], "FUNDED");
    assert_eq!(server.order_now(&late.id).await["status"], "SHIPPED");
    assert_eq!(server.escrow(&late.id).await["status"], "FUNDED");
    sale.seller.log_in_again().await;
    assert_eq!(balance(&server, &sale.seller).await, (2 * PRICE, 0, 2 * PRICE));
    let events = server.events(&format!("aggregateId={}", sale.order.id)).await;
    assert!(types_of(&events).contains(&"order.settlement_due"), "{:?}", types_of(&events));
    server.advance_clock(7 * DAY).await;
    server.order_eventually(&late.id, "COMPLETED").await;
    let events = server.events(&format!("aggregateId={}", late.id)).await;
    let settlement = types_of(&events).into_iter().filter(|it| it.contains("settlement"));
    let expected = ["order.settlement_due", "order.settlement_postponed", "order.settlement_due"];
    assert_eq!(settlement.collect::<Vec<_>>(), expected);
    books(&server).await;
    server.finish().await;
}

/// What comes back after the seller was paid comes from the seller.
#[tokio::test]
async fn a_return_after_the_end_is_the_sellers_debt() {
    let server = Server::start().await;
    let sale = server.sale(5, 1, "sandbox").await;
    server.arrives(&sale.order.id, &sale.seller.client, &sale.buyer.client).await;
    assert_eq!(balance(&server, &sale.seller).await, (PRICE, 0, PRICE));

    let to =
        json!({ "destination": { "bank": "Vietcombank", "holder": "Sam", "number": "0011 0012" } });
    let payout = sale.seller.client.post("/api/v1/me/payouts", &to).await.expect(201);
    assert_eq!(payout["amount"]["amount"], PRICE);
    assert_eq!(balance(&server, &sale.seller).await, (0, PRICE, PRICE));
    let asked = send_back(&sale, 1).await.expect(201);
    let accept = format!("{}/{}/accept", returns(&sale), asked.text("return_id"));
    sale.seller.client.post(&accept, &json!({})).await.expect(200);
    refunded(&sale, &asked.text("return_id")).await;
    server.at_rest().await;
    assert_eq!(server.order_now(&sale.order.id).await["status"], "RETURNED");
    assert_eq!(balance(&server, &sale.seller).await, (-PRICE, PRICE, 0));
    books(&server).await;
    server.finish().await;
}

#[tokio::test]
async fn money_is_paid_out_once_and_never_more_than_was_earned() {
    let server = Server::start().await;
    let sale = server.sale(5, 2, "sandbox").await;
    server.arrives(&sale.order.id, &sale.seller.client, &sale.buyer.client).await;
    server.caught_up("ledger").await;
    let to = json!({ "bank": "Vietcombank", "holder": "Sam Tester", "number": "0011 0012 3456" });
    let ask = |amount: i64| json!({ "amount": amount, "destination": to });
    let seller = &sale.seller.client;
    seller.post("/api/v1/me/payouts", &ask(2 * PRICE + 1)).await.problem(409, "balance_too_low");
    assert_eq!(seller.post("/api/v1/me/payouts", &ask(0)).await.pointers(), ["/amount"]);
    let bad = json!({ "destination": { "bank": "B", "holder": "H", "number": "; DROP" } });
    assert_eq!(seller.post("/api/v1/me/payouts", &bad).await.pointers(), ["/destination/number"]);
    // However many ask at once.
    let asked = crate::support::parallel(8, |_| async {
        seller.post("/api/v1/me/payouts", &ask(PRICE)).await
    })
    .await;
    let granted: Vec<_> = asked.iter().filter(|answer| answer.status() == 201).collect();
    assert_eq!(granted.len(), 2, "{asked:?}");
    let ids: Vec<_> = granted.iter().map(|answer| answer.text("payout_id")).collect();

    let one = format!("/api/v1/admin/payouts/{}", ids[0]);
    let shown = server.admin().get(&one).await.expect(200);
    assert_eq!(shown["destination"]["number"], "001100123456");
    sale.buyer.client.get(&one).await.problem(403, "insufficient_scope");
    let theirs = format!("/api/v1/me/payouts/{}", ids[0]);
    sale.buyer.client.get(&theirs).await.problem(404, "not_found");
    seller.get(&theirs).await.expect(200);
    let sent = json!({ "reference": "FT-2026-1" });
    let done = server.admin().post(&format!("{one}/complete"), &sent).await.expect(200);
    assert_eq!((&done["status"], &done["reference"]), (&json!("COMPLETED"), &json!("FT-2026-1")));
    server.admin().post(&format!("{one}/complete"), &sent).await.expect(200);
    let other = format!("/api/v1/admin/payouts/{}/fail", ids[1]);
    server.admin().post(&other, &json!({ "reason": "no such account" })).await.expect(200);
    let failed = server.admin().post(&format!("{one}/fail"), &json!({ "reason": "late" })).await;
    failed.problem(409, "payout_over");
    assert_eq!(balance(&server, &sale.seller).await, (PRICE, 0, 2 * PRICE));
    let mine = seller.get("/api/v1/me/payouts").await.expect(200);
    let statuses: Vec<_> = mine.items().iter().map(|of| of["status"].as_str().unwrap()).collect();
    assert!(statuses.contains(&"COMPLETED") && statuses.contains(&"FAILED"), "{statuses:?}");
    let all = server.admin().get("/api/v1/admin/payouts?status=completed").await.expect(200);
    assert_eq!(all.items().len(), 1);
    books(&server).await;
    server.finish().await;
}

#[tokio::test]
async fn one_checkout_is_one_order_of_each_seller() {
    let mut server = Server::start().await;
    let (sam, sue) = (server.seller("Sam").await, server.seller("Sue").await);
    let bea = server.buyer("Bea").await;
    let (loom, lamp) = (server.listing(&sam, 5).await, server.listing(&sue, 5).await);
    let spool = server.listing(&sam, 5).await;
    let body = json!({
        "items": [
            { "listing_id": loom, "quantity": 1 },
            { "listing_id": lamp, "quantity": 2 },
            { "listing_id": spool, "quantity": 1 },
        ],
        "delivery_address": address(),
        "payment_method": "sandbox",
    });
    let unkeyed = bea.client.post("/api/v1/checkouts", &body).await;
    unkeyed.problem(400, "idempotency_key_required");
    let keyed = bea.client.keyed("basket");
    let checkout = keyed.post("/api/v1/checkouts", &body).await.expect(201);
    let path = checkout.header("location").to_owned();
    assert_eq!(path, format!("/api/v1/checkouts/{}", checkout.text("checkout_id")));
    let orders = checkout["orders"].as_array().unwrap().clone();
    assert_eq!(orders.len(), 2);
    for order in &orders {
        let (seller, amount) = match order["seller_id"] == json!(sam.user_id) {
            true => (&sam, 2 * PRICE),
            false => (&sue, 2 * PRICE),
        };
        assert_eq!(order["seller_id"], json!(seller.user_id));
        assert_eq!(
            (&order["amount"], &order["checkout_id"]),
            (&json!(amount), &checkout["checkout_id"])
        );
        server.order_eventually(order["order_id"].as_str().unwrap(), "SHIPPED").await;
    }
    // Whoever got no answer asks again, and nothing is bought a second time.
    server.kill_9_and_start_again().await;
    let again = keyed.post("/api/v1/checkouts", &body).await.expect(201);
    assert_eq!(again["checkout_id"], checkout["checkout_id"]);
    server.at_rest().await;
    assert_eq!(server.stock(&lamp).await, (3, 0, 2));
    let seen = bea.client.get(&path).await.expect(200);
    assert_eq!(seen["orders"].as_array().unwrap().len(), 2);
    // A seller sees their own part, and others nothing.
    let part = sue.client.get(&path).await.expect(200);
    assert_eq!(part["orders"].as_array().unwrap().len(), 1);
    server.buyer("Otto").await.client.get(&path).await.problem(404, "not_found");
    let placed = server.events("eventType=order.placed").await;
    assert_eq!(placed.len(), 2);
    assert!(placed.iter().all(|of| of["data"]["checkout_id"] == checkout["checkout_id"]));

    // When the door knows that one part cannot be bought, none is.
    sue.client.post(&format!("/api/v1/listings/{lamp}/archive"), &json!({})).await.expect(200);
    let refused = bea.client.keyed("another").post("/api/v1/checkouts", &body).await;
    refused.problem(409, "listing_unavailable");
    assert_eq!(server.events("eventType=order.placed").await.len(), 2);
    server.finish().await;
}

#[tokio::test]
async fn an_invoice_is_a_page_that_runs_nothing() {
    let server = Start::default().start().await;
    let (seller, buyer) = (server.seller("Sam").await, server.buyer("Bea").await);
    let mut offer = server.offer(5).await;
    offer["title"] = json!("<script>alert(1)</script> & more");
    let listing = seller.client.post("/api/v1/listings", &offer).await.expect(201);
    let listing = listing.text("listing_id");
    let waits =
        order_of(buyer.client.post("/api/v1/orders", &wish(&listing, 1, "test_pending")).await);
    let unpaid = buyer.client.get(&format!("/api/v1/orders/{}/invoice", waits.id)).await;
    unpaid.problem(409, "order_not_paid");
    let order = server.place_order(&buyer.client, &listing, 2, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    let path = format!("/api/v1/orders/{}/invoice", order.id);
    let page = buyer.client.get(&path).await.expect(200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    let html = page.raw();
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script>"), "{html}");
    for words in [&order.answer.text("order_number"), "Bea Tester", "Larkspur", "300000 VND"] {
        assert!(html.contains(words), "{words} in {html}");
    }
    seller.client.get(&path).await.expect(200);
    server.buyer("Otto").await.client.get(&path).await.problem(404, "not_found");
    server.finish().await;
}
