//! How much people take part (S0-35).

use serde_json::{Value, json};

use crate::support::{Answer, Client, Person, Server};

/// A person as somebody sees them, once everything has been counted.
async fn seen_by(client: &Client, server: &Server, person: &Person) -> Answer {
    server.at_rest().await;
    client.get(&format!("/api/v1/users/{}", person.user_id)).await.expect(200)
}

async fn score(server: &Server, person: &Person) -> Value {
    seen_by(&person.client, server, person).await["engagement_score"].clone()
}

/// For what each rise of somebody's score was, the first one first.
async fn rises(server: &Server, person: &Person) -> Vec<Value> {
    server.caught_up("events-index").await;
    let mut rises = server.events("eventType=user.engagement_updated").await;
    rises.retain(|event| event["data"]["user_id"] == person.user_id.as_str());
    rises.sort_by_key(|event| event["aggregate_version"].as_u64());
    rises.into_iter().map(|event| event["data"].clone()).collect()
}

#[tokio::test]
async fn the_score_rises_with_what_people_do_and_never_twice() {
    let mut server = Server::start().await;
    let sam = server.newcomer("Sam").await;
    assert_eq!(score(&server, &sam).await, 0);
    server.verify(&sam.email).await.expect(200);
    assert_eq!(score(&server, &sam).await, 10);
    let told = &rises(&server, &sam).await[0];
    assert_eq!(
        (&told["doing"], &told["subject_id"]),
        (&json!("email_verified"), &json!(sam.user_id))
    );
    assert_eq!((&told["points"], &told["engagement_score"]), (&json!(10), &json!(10)));

    // A number counts, another one does not, and none does not either.
    for phone in ["+84901234567", "", "+84901234568"] {
        sam.client.patch("/api/v1/users/me", &json!({ "phone": phone })).await.expect(200);
    }
    assert_eq!(score(&server, &sam).await, 15);
    server.become_seller(&sam).await.expect(200);
    assert_eq!(score(&server, &sam).await, 15);
    server.admin_verifies(&sam).await.expect(200);
    assert_eq!(score(&server, &sam).await, 25);
    let mut draft = server.offer(1).await;
    draft["draft"] = json!(true);
    let draft = sam.client.post("/api/v1/listings", &draft).await.expect(201).text("listing_id");
    assert_eq!(score(&server, &sam).await, 25, "nobody sees a draft");
    let publish = format!("/api/v1/listings/{draft}/publish");
    sam.client.post(&publish, &json!({})).await.expect(200);
    let listing = server.listing(&sam, 5).await;
    assert_eq!(score(&server, &sam).await, 29);

    let bea = server.buyer("Bea").await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await.id;
    server.order_eventually(&order, "SHIPPED").await;
    assert_eq!(score(&server, &bea).await, 10, "nothing has arrived");
    server.arrives(&order, &sam.client, &bea.client).await;
    assert_eq!(score(&server, &bea).await, 15);
    let review = json!({ "transaction_id": order, "rating": 5, "comment": "It rides well." });
    bea.client.post("/api/v1/reviews", &review).await.expect(201);
    assert_eq!(score(&server, &bea).await, 18);
    let of: Vec<_> = rises(&server, &bea).await.iter().map(|rise| rise["doing"].clone()).collect();
    assert_eq!(of, ["email_verified", "order_received", "review_written"]);

    server.kill_9_and_start_again().await;
    assert_eq!((score(&server, &sam).await, score(&server, &bea).await), (json!(29), json!(18)));
    server.finish().await;
}

/// What is told of a score changes its tag, and a change still rests on the user alone.
#[tokio::test]
async fn the_score_is_its_owners_business_and_is_seen_when_it_rises() {
    let server = Server::start().await;
    let (bea, rob) = (server.newcomer("Bea").await, server.buyer("Rob").await);
    let before = seen_by(&bea.client, &server, &bea).await;
    server.verify(&bea.email).await.expect(200);
    let path = format!("/api/v1/users/{}", bea.user_id);
    let polling = bea.client.with("if-none-match", before.header("etag"));
    server.at_rest().await;
    let after = polling.get(&path).await.expect(200);
    assert_eq!((&before["engagement_score"], &after["engagement_score"]), (&json!(0), &json!(10)));
    bea.client.with("if-none-match", after.header("etag")).get(&path).await.expect(304);

    let others = seen_by(&rob.client, &server, &bea).await;
    assert_eq!(others["engagement_score"], Value::Null);
    let admin = seen_by(&server.admin(), &server, &bea).await;
    assert_eq!(admin["engagement_score"], 10);
    let users = server.admin().get(&format!("/api/v1/admin/users?q={}", bea.user_id)).await;
    assert_eq!(users.expect(200).items()[0]["engagement_score"], 10);
    let export = bea.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(export["profile"]["engagement_score"], 10);

    let rename = json!({ "first_name": "Beatrice" });
    let renamed = bea.client.if_match(after.header("etag")).patch(&path, &rename).await;
    renamed.expect(200);
    let stale = bea.client.if_match(after.header("etag")).patch(&path, &rename).await;
    stale.problem(412, "version_mismatch");
    server.finish().await;
}

/// Somebody who is forgotten before what they did is counted has no score.
#[tokio::test]
async fn nothing_is_counted_for_whoever_is_forgotten() {
    let server = Server::start().await;
    server.pause("engagement").await;
    let (bea, rob) = (server.buyer("Bea").await, server.buyer("Rob").await);
    let path = format!("/api/v1/users/{}", bea.user_id);
    let body = json!({ "password": bea.password }).to_string().into_bytes();
    bea.client.send(reqwest::Method::DELETE, &path, Some(body)).await.expect(204);
    server.resume("engagement").await;
    assert_eq!(score(&server, &rob).await, 10);
    assert_eq!(rises(&server, &bea).await, Vec::<Value>::new());
    let gone = seen_by(&server.admin(), &server, &bea).await;
    assert_eq!((&gone["status"], &gone["engagement_score"]), (&json!("ERASED"), &Value::Null));
    server.finish().await;
}
