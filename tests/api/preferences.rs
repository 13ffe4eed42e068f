//! What people want to be told, and by which way.

use serde_json::{Value, json};

use crate::support::{Answer, Person, Server};

const PATH: &str = "/api/v1/users/me/notification-preferences";

async fn set(person: &Person, wanted: &Value) -> Answer {
    let body = wanted.to_string().into_bytes();
    person.client.send(reqwest::Method::PUT, PATH, Some(body)).await
}

/// How somebody was told something, by way: `sent`, `muted`.
async fn told(server: &Server, person: &Person, template: &str) -> Vec<(String, String)> {
    server.at_rest().await;
    let events = server.events("eventType=notification.requested").await;
    let mut told = Vec::new();
    for event in events.iter().filter(|event| {
        event["data"]["template"] == template && event["data"]["user_id"] == json!(person.user_id)
    }) {
        let id = event["aggregate_id"].as_str().unwrap();
        let one = server.admin().get(&format!("/api/v1/notifications/{id}")).await.expect(200);
        told.push((one.text("channel"), one.text("status")));
    }
    told.sort();
    told
}

fn by(channel: &str, status: &str) -> (String, String) {
    (channel.to_owned(), status.to_owned())
}

#[tokio::test]
async fn what_somebody_does_not_want_is_not_told() {
    let mut server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let all = json!({ "account": true, "orders": true, "reviews": true, "news": true });
    let everything = json!({ "email": all, "sms": all, "in_app": all });
    assert_eq!(bea.client.get(PATH).await.expect(200).json(), &everything);
    bea.client.post(&format!("/api/v1/users/{}/follow", sam.user_id), &json!({})).await.expect(200);
    let wanted = json!({ "email": { "orders": false }, "in_app": { "news": false } });
    let now = set(&bea, &wanted).await.expect(200);
    assert_eq!(now["email"]["orders"], false);
    assert_eq!((&now["email"]["news"], &now["in_app"]["news"]), (&json!(true), &json!(false)));
    assert_eq!(bea.client.get(PATH).await.expect(200).json(), now.json());
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await.id;
    server.order_eventually(&order, "SHIPPED").await;
    server.listing(&sam, 1).await;
    assert_eq!(told(&server, &bea, "order_placed").await, [by("email", "muted")]);
    assert_eq!(told(&server, &bea, "order_shipped").await, [by("in_app", "sent")]);
    // What she has in hand of the purchase comes in any case.
    for template in ["receipt", "order_confirmation"] {
        assert_eq!(told(&server, &bea, template).await, [by("email", "sent")], "{template}");
    }
    assert!(told(&server, &bea, "new_listing").await.is_empty());
    let mine = bea.client.get("/api/v1/notifications?limit=200").await.expect(200);
    assert!(mine.items().iter().all(|one| one["status"] == "sent"), "{mine:?}");
    // All of it is replaced, and what was muted stays so.
    set(&bea, &json!({})).await.expect(200);
    assert_eq!(bea.client.get(PATH).await.expect(200).json(), &everything);
    server.kill_9_and_start_again().await;
    assert_eq!(told(&server, &bea, "order_placed").await, [by("email", "muted")]);
    server.finish().await;
}

/// Who changes them rests on the version that they were read at, and who has them gets no body.
#[tokio::test]
async fn preferences_are_read_at_a_version() {
    let server = Server::start().await;
    let bea = server.buyer("Bea").await;
    server.at_rest().await;
    let read = bea.client.get(PATH).await.expect(200);
    let tag = read.header("etag").to_owned();
    let same = bea.client.with("if-none-match", &tag).get(PATH).await.expect(304);
    assert_eq!((same.raw(), same.header("etag")), ("", tag.as_str()));
    let body = json!({ "email": { "news": false } }).to_string().into_bytes();
    let on_it = bea.client.if_match(&tag);
    let set = on_it.send(reqwest::Method::PUT, PATH, Some(body.clone())).await.expect(200);
    let stale = on_it.send(reqwest::Method::PUT, PATH, Some(body)).await;
    stale.problem(412, "version_mismatch");
    let changed = bea.client.with("if-none-match", &tag).get(PATH).await.expect(200);
    assert_eq!((changed.header("etag"), changed.json()), (set.header("etag"), set.json()));
    server.finish().await;
}

#[tokio::test]
async fn what_is_about_the_account_cannot_be_switched_off() {
    let server = Server::start().await;
    let bea = server.newcomer("Bea").await;
    let account = json!({ "email": { "account": false }, "sms": { "orders": 7 } });
    assert_eq!(set(&bea, &account).await.pointers(), ["/email/account", "/sms/orders"]);
    assert_eq!(set(&bea, &json!({ "email": [] })).await.pointers(), ["/email"]);
    server.visitor().get(PATH).await.problem(401, "unauthenticated");
    server.verify(&bea.email).await.expect(200);
    assert_eq!(told(&server, &bea, "email_verified").await, [by("email", "sent")]);
    server.finish().await;
}
