//! Address books.

use serde_json::{Value, json};

use crate::support::{Person, Server, address, wish};

const BOOK: &str = "/api/v1/users/me/addresses";

async fn keep(person: &Person, body: Value) -> String {
    let kept = person.client.post(BOOK, &body).await.expect(201);
    assert_eq!(kept.header("location"), format!("{BOOK}/{}", kept.text("address_id")));
    kept.text("address_id")
}

/// Which addresses there are, by label, and which is offered first.
async fn book(person: &Person) -> Vec<(String, bool)> {
    let all = person.client.get(BOOK).await.expect(200);
    let of = |entry: &Value| {
        (entry["label"].as_str().unwrap_or("").to_owned(), entry["is_default"] == true)
    };
    all.items().iter().map(of).collect()
}

#[tokio::test]
async fn people_keep_addresses_and_order_to_them() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    assert!(book(&bea).await.is_empty());
    let home = keep(&bea, json!({ "label": "Home", "address": address() })).await;
    let work = keep(&bea, json!({ "label": "Work", "address": address() })).await;
    assert_eq!(book(&bea).await, [("Home".to_owned(), true), ("Work".to_owned(), false)]);
    let path = format!("{BOOK}/{work}");
    let change = json!({ "is_default": true, "address": { "line1": "9 Loom Lane", "phone": "" } });
    let changed = bea.client.patch(&path, &change).await.expect(200);
    assert_eq!(changed["address"]["line1"], "9 Loom Lane");
    assert_eq!(changed["address"]["city"], address()["city"]);
    assert!(changed["address"]["phone"].is_null());
    assert_eq!(book(&bea).await, [("Home".to_owned(), false), ("Work".to_owned(), true)]);
    let seen = bea.client.get(&path).await.expect(200);
    assert_eq!(seen.json(), changed.json());
    bea.client.with("if-none-match", seen.header("etag")).get(&path).await.expect(304);

    let mut body = wish(&listing, 1, "sandbox");
    let members = body.as_object_mut().unwrap();
    members.remove("delivery_address");
    members.insert("address_id".to_owned(), json!(work));
    let keyed = bea.client.keyed("to-work");
    let order = keyed.post("/api/v1/orders", &body).await.expect(201);
    assert_eq!(order["delivery_address"]["line1"], "9 Loom Lane");
    // What is removed is removed from the book, and not from orders.
    bea.client.delete(&path).await.expect(204);
    assert_eq!(book(&bea).await, [("Home".to_owned(), true)]);
    bea.client.get(&path).await.problem(404, "address_not_found");
    bea.client.delete(&path).await.problem(404, "address_not_found");
    let again = keyed.post("/api/v1/orders", &body).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let now = bea.client.get(&format!("/api/v1/orders/{}", order.text("order_id"))).await;
    assert_eq!(now.expect(200)["delivery_address"]["line1"], "9 Loom Lane");
    let gone = bea.client.post("/api/v1/orders", &body).await.problem(422, "address_unknown");
    assert_eq!(gone["errors"][0]["pointer"], "/address_id");
    body["delivery_address"] = address();
    assert_eq!(bea.client.post("/api/v1/orders", &body).await.pointers(), ["/address_id"]);
    // Nobody orders to somebody else's.
    let mut theirs = wish(&listing, 1, "sandbox");
    theirs.as_object_mut().unwrap().remove("delivery_address");
    let missing = bea.client.post("/api/v1/orders", &theirs).await;
    assert_eq!(missing.pointers(), ["/delivery_address"]);
    theirs["address_id"] = json!(home);
    let otto = server.buyer("Otto").await;
    otto.client.post("/api/v1/orders", &theirs).await.problem(422, "address_unknown");
    otto.client.get(&format!("{BOOK}/{home}")).await.problem(404, "address_not_found");
    server.at_rest().await;
    for event in server.events("eventType=user.address_added").await {
        assert_eq!(event["data"]["user_id"], bea.user_id.as_str());
    }
    server.finish().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_address_is_named_and_a_book_has_an_end() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let refused = async |body: Value| ann.client.post(BOOK, &body).await.pointers();
    assert_eq!(refused(json!({})).await, ["/address"]);
    let bad = json!({ "label": 7, "is_default": "yes", "address": { "line1": "x" } });
    let expected = ["/label", "/is_default", "/address/district", "/address/city"];
    assert_eq!(refused(bad).await, expected);
    let mut abroad = address();
    abroad["country"] = json!("Vietnam");
    assert_eq!(refused(json!({ "address": abroad })).await, ["/address/country"]);
    let keyed = ann.client.keyed("home");
    let body = json!({ "label": "Home", "address": address() });
    let first = keyed.post(BOOK, &body).await.expect(201);
    let again = keyed.post(BOOK, &body).await.expect(201);
    assert_eq!(again.text("address_id"), first.text("address_id"));
    for _ in 1..50 {
        ann.client.post(BOOK, &body).await.expect(201);
    }
    ann.client.post(BOOK, &body).await.problem(409, "too_many_addresses");
    let mine = ann.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(mine["addresses"].as_array().unwrap().len(), 50);
    server.finish().await;
}
