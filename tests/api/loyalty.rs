//! Points for what was bought and kept (S1-14).

use serde_json::json;

use crate::support::{Answer, PRICE, Person, Server, Start};

async fn points(server: &Server, person: &Person) -> Answer {
    let path = format!("/api/v1/users/{}/loyalty", person.user_id);
    server.at_rest().await;
    person.client.get(&path).await.expect(200)
}

fn history(points: &Answer) -> Vec<i64> {
    let entries = points["history"].as_array().unwrap();
    entries.iter().map(|entry| entry["points"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn points_come_with_a_delivery_and_go_with_a_return() {
    let mut server = Start::default().with("LOYALTY_RATES", "VND=100000").start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let none = points(&server, &bea).await;
    assert_eq!((&none["points"], &none["history"]), (&json!(0), &json!([])));
    let order = server.place_order(&bea.client, &listing, 3, "sandbox").await.id;
    server.order_eventually(&order, "SHIPPED").await;
    assert_eq!(points(&server, &bea).await["points"], 0, "nothing has arrived");
    let shipment = server.order_now(&order).await.text("shipment_id");
    let path = format!("/api/v1/shipments/{shipment}");
    sam.client.post(&format!("{path}/dispatch"), &json!({})).await.expect(200);
    sam.client.post(&format!("{path}/deliver"), &json!({})).await.expect(200);
    let earned = 3 * PRICE / 100_000;
    let after = points(&server, &bea).await;
    assert_eq!((&after["points"], &after["points_earned"]), (&json!(earned), &json!(earned)));
    assert_eq!(after["history"][0]["order_id"], order.as_str());
    let event = &server.events("eventType=loyalty.points_accrued").await[0];
    assert_eq!((&event["data"]["points"], &event["data"]["balance"]), (&json!(4), &json!(4)));

    // One of three goes back, then the rest.
    let returns = format!("/api/v1/orders/{order}/returns");
    let send_back = async |quantity: u32| {
        let body = json!({
            "items": [{ "listing_id": listing, "quantity": quantity }], "reason": "damaged",
        });
        let asked = bea.client.post(&returns, &body).await.expect(201);
        let accept = format!("{returns}/{}/accept", asked.text("return_id"));
        sam.client.post(&accept, &json!({})).await.expect(200);
    };
    send_back(1).await;
    let after = points(&server, &bea).await;
    assert_eq!((&after["points"], &after["points_earned"]), (&json!(3), &json!(4)));
    assert_eq!(history(&after), [-1, 4]);
    server.kill_9_and_start_again().await;
    assert_eq!(points(&server, &bea).await.json(), after.json());
    send_back(2).await;
    let after = points(&server, &bea).await;
    assert_eq!(after["points"], 0);
    assert_eq!(history(&after), [-3, -1, 4]);
    server.finish().await;
}

#[tokio::test]
async fn points_are_their_owners_business() {
    let server = Start::default().with("LOYALTY_RATES", "USD=100").start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    server.delivered(&bea.client, &listing).await;
    let now = points(&server, &bea).await;
    assert_eq!(now["points"], 0, "there are none for dong here");
    let path = format!("/api/v1/users/{}/loyalty", bea.user_id);
    sam.client.get(&path).await.problem(403, "forbidden");
    assert_eq!(server.admin().get(&path).await.expect(200).json(), now.json());
    let nobody = "/api/v1/users/00000000-0000-7000-8000-000000000000/loyalty";
    server.admin().get(nobody).await.problem(404, "not_found");
    let again = bea.client.with("if-none-match", now.header("etag")).get(&path).await;
    assert_eq!(again.status(), 304);
    server.finish().await;
}
