//! Promotion codes (S1-11): what they take off, how often, and that all of the money agrees.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Client, PRICE, Server, address, eventually, wish};

async fn offer(client: &Client, code: &str, more: Value) -> Answer {
    let mut body = json!({ "code": code });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/api/v1/promotions", &body).await
}

async fn buy(client: &Client, listing: &str, quantity: u32, code: &str) -> Answer {
    let mut body = wish(listing, quantity, "sandbox");
    body["promotion_code"] = json!(code);
    client.post("/api/v1/orders", &body).await
}

async fn uses(seller: &Client, id: &str) -> Value {
    seller.get(&format!("/api/v1/promotions/{id}")).await.expect(200)["uses"].clone()
}

async fn balanced(server: &Server) {
    server.at_rest().await;
    let check = server.admin().get("/api/v1/admin/ledger/check").await.expect(200);
    assert_eq!((&check["balanced"], &check["difference"]), (&json!(true), &json!(0)), "{check:?}");
}

#[tokio::test]
async fn an_order_costs_less_and_everybody_agrees_how_much() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 10).await;
    let made = offer(&sam.client, "spring-33", json!({ "percentage": 33 })).await.expect(201);
    assert_eq!(made["code"], "SPRING-33");
    server.event("promotion.created", made.header("x-correlation-id")).await;

    let order = buy(&bea.client, &listing, 3, " Spring-33").await.expect(201);
    let off = 3 * PRICE * 33 / 100;
    let total = 3 * PRICE - off;
    assert_eq!(order["amount"], total);
    assert_eq!(
        (&order["subtotal_amount"], &order["discount_amount"]),
        (&json!(3 * PRICE), &json!(off))
    );
    assert_eq!(order["promotion_code"], "SPRING-33");
    let id = order.text("order_id");
    let correlation_id = order.header("x-correlation-id");
    let redeemed = server.event("promotion.redeemed", correlation_id).await;
    assert_eq!(
        (&redeemed["data"]["discount"], &redeemed["data"]["order_id"]),
        (&json!(off), &json!(id))
    );
    server.order_eventually(&id, "SHIPPED").await;
    let payment = bea.client.get(&format!("/api/v1/orders/{id}/payment")).await.expect(200);
    assert_eq!(payment["amount"]["amount"], total);
    assert_eq!(server.escrow(&id).await["balance"], total);
    let invoice = bea.client.get(&format!("/api/v1/orders/{id}/invoice")).await.expect(200);
    for text in ["SPRING-33", &format!("-{off} VND"), &format!("{total} VND")] {
        assert!(invoice.raw().contains(text), "{text} in {}", invoice.raw());
    }
    assert_eq!(uses(&sam.client, &made.text("promotion_id")).await, 1);
    balanced(&server).await;

    // One of three comes back, then the rest: what was paid for it goes back, and no more.
    let path = format!("/api/v1/shipments/{}", server.order_now(&id).await.text("shipment_id"));
    sam.client.post(&format!("{path}/dispatch"), &json!({})).await.expect(200);
    sam.client.post(&format!("{path}/deliver"), &json!({})).await.expect(200);
    server.order_eventually(&id, "DELIVERED").await;
    let returns = format!("/api/v1/orders/{id}/returns");
    let mut back = 0;
    for quantity in [1, 2] {
        let body = json!({
            "items": [{ "listing_id": listing, "quantity": quantity }], "reason": "damaged",
        });
        let asked = bea.client.post(&returns, &body).await.expect(201);
        back += asked["refund"]["amount"]["amount"].as_i64().unwrap();
        let accept = format!("{returns}/{}/accept", asked.text("return_id"));
        sam.client.post(&accept, &json!({})).await.expect(200);
        server.at_rest().await;
    }
    assert_eq!(back, total);
    let returned = server.order_eventually(&id, "RETURNED").await;
    assert_eq!(returned["refunded_amount"], total);
    balanced(&server).await;
    server.finish().await;
}

#[tokio::test]
async fn a_code_that_does_not_count_says_why() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let tom = server.seller("Tom").await;
    let (listing, other) = (server.listing(&sam, 10).await, server.listing(&tom, 10).await);
    let refused = async |listing: &str, code: &str, why: &str| {
        let answer = buy(&bea.client, listing, 1, code).await.problem(422, why);
        assert_eq!(answer["errors"][0]["pointer"], "/promotion_code");
    };
    refused(&listing, "NONE-SUCH", "promotion_unknown").await;
    offer(&sam.client, "SAMS", json!({ "percentage": 10 })).await.expect(201);
    refused(&other, "SAMS", "promotion_unknown").await;
    let big = json!({ "percentage": 10, "minimum": 2 * PRICE });
    offer(&sam.client, "BIG", big).await.expect(201);
    refused(&listing, "BIG", "promotion_minimum_not_reached").await;
    offer(&sam.client, "ALL", json!({ "amount": PRICE })).await.expect(201);
    refused(&listing, "ALL", "promotion_not_applicable").await;
    let later = json!({ "percentage": 10, "valid_from": "2099-01-01T00:00:00Z" });
    offer(&sam.client, "LATER", later).await.expect(201);
    refused(&listing, "LATER", "promotion_not_yet_valid").await;
    buy(&bea.client, &listing, 1, "SAMS").await.expect(201);
    server.at_rest().await;
    refused(&listing, "SAMS", "promotion_used_by_buyer").await;

    // Whoever offers one wrongly hears of everything at once.
    let wrong = json!({ "percentage": 100, "valid_until": "2001-01-01T00:00:00Z", "uses_max": 0 });
    let answer = offer(&sam.client, "x", wrong).await;
    assert_eq!(answer.pointers(), ["/uses_max"]);
    let wrong = json!({ "percentage": 100, "valid_until": "2001-01-01T00:00:00Z" });
    let answer = offer(&sam.client, "x", wrong).await;
    assert_eq!(answer.pointers(), ["/code", "/valid_until", "/percentage"]);
    let both = offer(&sam.client, "BOTH", json!({ "percentage": 5, "amount": 5 })).await;
    assert_eq!(both.pointers(), ["/percentage"]);
    offer(&tom.client, "sams", json!({ "percentage": 5 }))
        .await
        .problem(409, "promotion_code_taken");
    offer(&bea.client, "BEAS", json!({ "percentage": 5 })).await.problem(403, "forbidden");

    // An administrator may, in the name of a seller, and nobody else sees it.
    let toms = json!({ "percentage": 5, "seller_id": tom.user_id });
    offer(&sam.client, "TOMS", toms.clone()).await.problem(403, "forbidden");
    let toms = offer(&server.admin(), "TOMS", toms).await.expect(201).text("promotion_id");
    let path = format!("/api/v1/promotions/{toms}");
    sam.client.get(&path).await.problem(404, "not_found");
    let end = format!("{path}/end");
    sam.client.post(&end, &json!({})).await.problem(404, "not_found");
    buy(&bea.client, &other, 1, "TOMS").await.expect(201);
    let ended = tom.client.post(&end, &json!({})).await.expect(200);
    assert!(ended["ended_at"].is_string());
    refused(&other, "TOMS", "promotion_ended").await;
    server.caught_up("promotions-view").await;
    let mine = sam.client.get("/api/v1/me/promotions").await.expect(200);
    let codes: Vec<_> = mine.items().iter().map(|of| of["code"].as_str().unwrap()).collect();
    assert_eq!(codes.len(), 4);
    assert!(codes.contains(&"SAMS") && !codes.contains(&"TOMS"), "{codes:?}");
    server.at_rest().await;
    server.finish().await;
}

/// Six buyers at once, three uses: three orders have it, and the others come to nothing and take
/// nothing along.
#[tokio::test]
async fn there_are_never_more_uses_than_there_may_be() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 20).await;
    let terms = json!({ "amount": 1_000, "uses_max": 3 });
    let promotion = offer(&sam.client, "FIRST-3", terms).await.expect(201).text("promotion_id");
    let mut buyers = Vec::new();
    for number in 0..6 {
        buyers.push(server.buyer(&format!("Buyer{number}")).await);
    }
    let orders = buyers.iter().map(|buyer| {
        let (client, listing) = (buyer.client.clone(), listing.clone());
        tokio::spawn(async move { buy(&client, &listing, 1, "FIRST-3").await })
    });
    let orders: Vec<_> = orders.collect();
    let (mut shipped, mut kept_out) = (0, 0);
    for order in orders {
        let order = order.await.unwrap();
        if order.status() == 422 {
            order.problem(422, "promotion_used_up");
            kept_out += 1;
            continue;
        }
        let id = order.expect(201).text("order_id");
        let ended = eventually("the order to come to rest", || async {
            let order = server.order_now(&id).await;
            ["SHIPPED", "REJECTED"].iter().any(|end| order["status"] == *end).then_some(order)
        })
        .await;
        match ended["status"].as_str() {
            Some("SHIPPED") => shipped += 1,
            _ => {
                assert_eq!(ended["failure"]["reason"], "promotion_used_up");
                kept_out += 1;
            }
        }
    }
    assert_eq!((shipped, kept_out), (3, 3));
    server.at_rest().await;
    assert_eq!(uses(&sam.client, &promotion).await, 3);
    assert_eq!(server.stock(&listing).await, (17, 0, 3));
    balanced(&server).await;
    server.finish().await;
}

#[tokio::test]
async fn what_comes_to_nothing_gives_its_use_back() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let terms = json!({ "percentage": 50, "uses_max": 1 });
    let promotion = offer(&sam.client, "ONCE", terms).await.expect(201).text("promotion_id");
    for (method, flow) in [("test_decline", "reserve_first"), ("test_decline", "payment_first")] {
        let mut body = wish(&listing, 1, method);
        body["promotion_code"] = json!("ONCE");
        body["payment_flow"] = json!(flow);
        let id = bea.client.post("/api/v1/orders", &body).await.expect(201).text("order_id");
        server.order_eventually(&id, "PAYMENT_FAILED").await;
        server.at_rest().await;
        assert_eq!(uses(&sam.client, &promotion).await, 0, "{method} {flow}");
    }
    let order = buy(&bea.client, &listing, 1, "ONCE").await.expect(201).text("order_id");
    server.order_eventually(&order, "SHIPPED").await;
    assert_eq!(uses(&sam.client, &promotion).await, 1);
    server.at_rest().await;
    server.finish().await;
}

#[tokio::test]
async fn a_checkout_uses_the_code_for_its_seller() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let tom = server.seller("Tom").await;
    let (first, second) = (server.listing(&sam, 5).await, server.listing(&tom, 5).await);
    offer(&tom.client, "TOMS", json!({ "percentage": 10 })).await.expect(201);
    let basket = |code: &str| {
        json!({
            "items": [{ "listing_id": first, "quantity": 1 }, { "listing_id": second, "quantity": 1 }],
            "delivery_address": address(), "payment_method": "sandbox", "promotion_code": code,
        })
    };
    let none = bea.client.keyed("a").post("/api/v1/checkouts", &basket("NONE-SUCH")).await;
    none.problem(422, "promotion_unknown");
    let made = bea.client.keyed("b").post("/api/v1/checkouts", &basket("TOMS")).await.expect(201);
    let again = bea.client.keyed("b").post("/api/v1/checkouts", &basket("TOMS")).await.expect(201);
    assert_eq!(made["checkout_id"], again["checkout_id"]);
    for order in made["orders"].as_array().unwrap() {
        let is_toms = order["seller_id"] == json!(tom.user_id);
        let off = if is_toms { PRICE / 10 } else { 0 };
        assert_eq!(order["discount_amount"], off, "{order}");
        server.order_eventually(order["order_id"].as_str().unwrap(), "SHIPPED").await;
    }
    balanced(&server).await;
    let path = "/api/v1/transactions";
    let body = json!({
        "listing_id": second, "delivery_address": address(), "payment_method": "sandbox",
        "promotion_code": "TOMS",
    });
    let answer = bea.client.send(Method::POST, path, Some(body.to_string().into_bytes())).await;
    answer.problem(422, "promotion_used_by_buyer");
    server.finish().await;
}

/// What the market's promotions have cost it, and that the books are right.
async fn given(server: &Server) -> i64 {
    balanced(server).await;
    let check = server.admin().get("/api/v1/admin/ledger/check").await.expect(200);
    check["market"].as_array().unwrap().iter().map(|of| -of["amount"].as_i64().unwrap()).sum()
}

async fn earned(seller: &Client) -> i64 {
    let balance = seller.get("/api/v1/me/balance").await.expect(200);
    balance.items().first().map_or(0, |of| of["earned"].as_i64().unwrap())
}

#[tokio::test]
async fn the_market_gives_what_its_own_codes_take_off() {
    let server = Server::start().await;
    let (sam, tom) = (server.seller("Sam").await, server.seller("Tom").await);
    let bea = server.buyer("Bea").await;
    let (listing, other) = (server.listing(&sam, 10).await, server.listing(&tom, 10).await);
    let everywhere =
        json!({ "percentage": 33, "all_sellers": true, "uses_max": 9, "uses_per_buyer_max": 9 });
    offer(&sam.client, "SOUK-33", everywhere.clone()).await.problem(403, "forbidden");
    let made = offer(&server.admin(), "SOUK-33", everywhere.clone()).await.expect(201);
    assert_eq!((&made["seller_id"], &made["all_sellers"]), (&Value::Null, &json!(true)));
    let mut both = everywhere;
    both["seller_id"] = json!(sam.user_id);
    assert_eq!(offer(&server.admin(), "BOTH", both).await.pointers(), ["/all_sellers"]);
    let promotion = format!("/api/v1/promotions/{}", made.text("promotion_id"));
    sam.client.get(&promotion).await.problem(404, "not_found");

    // The buyer pays less, the seller gets all of it.
    let (price, off) = (3 * PRICE, 3 * PRICE * 33 / 100);
    let order = buy(&bea.client, &listing, 3, "souk-33").await.expect(201);
    assert_eq!((&order["amount"], &order["discount_amount"]), (&json!(price - off), &json!(off)));
    let id = order.text("order_id");
    server.order_eventually(&id, "SHIPPED").await;
    let escrow = server.escrow(&id).await;
    assert_eq!((&escrow["balance"], &escrow["subsidy"]), (&json!(price), &json!(off)));
    server.arrives(&id, &sam.client, &bea.client).await;
    assert_eq!((given(&server).await, earned(&sam.client).await), (off, price));

    // One of three comes back after the seller has the money: the market's share comes back too.
    let returns = format!("/api/v1/orders/{id}/returns");
    let mut back = 0;
    for quantity in [1, 2] {
        let body = json!({
            "items": [{ "listing_id": listing, "quantity": quantity }], "reason": "damaged",
        });
        let asked = bea.client.post(&returns, &body).await.expect(201);
        back += asked["refund"]["amount"]["amount"].as_i64().unwrap();
        let accept = format!("{returns}/{}/accept", asked.text("return_id"));
        sam.client.post(&accept, &json!({})).await.expect(200);
        let kept = off - off * back / (price - off);
        assert_eq!(given(&server).await, kept);
        assert_eq!(earned(&sam.client).await, price - off - back + kept);
    }
    assert_eq!((back, earned(&sam.client).await), (price - off, 0));

    // What is called off once it is paid gives the market its money back, and the use.
    let hold = server.fault("order_saga-facts", "fail", json!({ "key": "shipment.created" })).await;
    let order = buy(&bea.client, &other, 1, "SOUK-33").await.expect(201).text("order_id");
    server.order_eventually(&order, "PAID").await;
    assert_eq!(uses(&server.admin(), &made.text("promotion_id")).await, 2);
    assert_eq!(server.escrow(&order).await["balance"], PRICE);
    let cancel = format!("/api/v1/orders/{order}/cancel");
    bea.client.post(&cancel, &json!({ "reason": "changed my mind" })).await.expect(200);
    server.mend(hold).await;
    assert_eq!((given(&server).await, earned(&tom.client).await), (0, 0));
    assert_eq!(server.escrow(&order).await["balance"], 0);
    assert_eq!(uses(&server.admin(), &made.text("promotion_id")).await, 1);
    server.finish().await;
}

#[tokio::test]
async fn a_checkout_uses_a_code_of_the_market_for_what_costs_most() {
    let server = Server::start().await;
    let (sam, tom) = (server.seller("Sam").await, server.seller("Tom").await);
    let bea = server.buyer("Bea").await;
    let (first, second) = (server.listing(&sam, 5).await, server.listing(&tom, 5).await);
    let everywhere = json!({ "percentage": 10, "all_sellers": true });
    offer(&server.admin(), "SOUK-10", everywhere).await.expect(201);
    offer(&sam.client, "SAMS", json!({ "percentage": 10 })).await.expect(201);
    let basket = json!({
        "items": [{ "listing_id": first, "quantity": 1 }, { "listing_id": second, "quantity": 2 }],
        "delivery_address": address(), "payment_method": "sandbox", "promotion_code": "SOUK-10",
    });
    let made = bea.client.keyed("a").post("/api/v1/checkouts", &basket).await.expect(201);
    for order in made["orders"].as_array().unwrap() {
        let off = if order["seller_id"] == json!(tom.user_id) { 2 * PRICE / 10 } else { 0 };
        assert_eq!(order["discount_amount"], off, "{order}");
        let id = order["order_id"].as_str().unwrap();
        server.arrives(id, &server.admin(), &bea.client).await;
    }
    assert_eq!(given(&server).await, 2 * PRICE / 10);
    assert_eq!(earned(&tom.client).await, 2 * PRICE);

    server.caught_up("promotions-view").await;
    let codes = async |query: &str| {
        let all = server.admin().get(&format!("/api/v1/admin/promotions{query}")).await.expect(200);
        let codes = all.items().iter().map(|of| of["code"].as_str().unwrap().to_owned());
        codes.collect::<Vec<_>>()
    };
    assert_eq!(codes("").await, ["SAMS", "SOUK-10"]);
    assert_eq!(codes("?all_sellers=true").await, ["SOUK-10"]);
    server.finish().await;
}
