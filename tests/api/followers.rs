//! Followers and favourites, and who hears of what is new (S0-60).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{PRICE, Person, Server, eventually};

/// How often somebody was told what about a listing, by the listing that the words name.
async fn told(server: &Server, person: &Person, template: &str) -> Vec<String> {
    server.caught_up("notifications-view").await;
    let all = server.notifications(&person.user_id).await;
    let mut texts = Vec::new();
    for one in all.iter().filter(|one| one["template"] == template) {
        assert_eq!((&one["type"], &one["status"]), (&json!("in_app"), &json!("sent")), "{one}");
        let path = format!("/api/v1/notifications/{}", one["notification_id"].as_str().unwrap());
        texts.push(server.admin().get(&path).await.expect(200).text("text"));
    }
    texts
}

fn follow_path(seller: &Person) -> String {
    format!("/api/v1/users/{}/follow", seller.user_id)
}

async fn count(server: &Server, seller: &Person, min_position: &str) -> Value {
    let path = format!("/api/v1/users/{}/followers/count", seller.user_id);
    let path = format!("{path}?min_position={min_position}");
    server.visitor().get(&path).await.expect(200)["count"].clone()
}

#[tokio::test]
async fn a_new_listing_is_told_to_every_follower_once() {
    let mut server = Server::start().await;
    let (sam, rita) = (server.seller("Sam").await, server.seller("Rita").await);
    let mut followers = Vec::new();
    for name in ["Ann", "Bea", "Cat", "Dan"] {
        followers.push(server.newcomer(name).await);
    }
    for follower in &followers {
        let followed = follower.client.post(&follow_path(&sam), &json!({})).await.expect(200);
        assert_eq!(followed["seller_id"], json!(sam.user_id));
        // Twice is once.
        let again = follower.client.post(&follow_path(&sam), &json!({})).await.expect(200);
        assert_eq!(again["since"], followed["since"]);
    }
    let [ann, .., dan] = followers.as_slice() else { panic!("four") };
    let followed = ann.client.post(&follow_path(&rita), &json!({})).await.expect(200);
    let event = server.event("UserFollowed", followed.header("x-correlation-id")).await;
    assert_eq!(event["data"]["follower_id"], json!(ann.user_id));
    let position = followed.header("souk-position");
    let mine = format!("/api/v1/users/me/following?min_position={position}");
    let mine = ann.client.get(&mine).await.expect(200);
    let whom: Vec<_> = mine.items().iter().map(|of| of["seller_id"].clone()).collect();
    assert_eq!(whom, [json!(rita.user_id), json!(sam.user_id)]);
    assert_eq!(count(&server, &sam, position).await, 4);
    let left = dan.client.delete(&follow_path(&sam)).await.expect(204);
    dan.client.delete(&follow_path(&sam)).await.expect(204);
    assert_eq!(count(&server, &sam, left.header("souk-position")).await, 3);

    let listing = server.listing(&sam, 1).await;
    server.at_rest().await;
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    for follower in &followers {
        let expected = usize::from(follower.user_id != dan.user_id);
        let texts = told(&server, follower, "new_listing").await;
        assert_eq!(texts.len(), expected, "{texts:?}");
        assert!(texts.iter().all(|text| text.contains(&listing)), "{texts:?}");
    }
    server.finish().await;
}

#[tokio::test]
async fn who_can_be_followed() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    bea.client.post(&follow_path(&bea), &json!({})).await.problem(404, "not_found");
    sam.client.post(&follow_path(&bea), &json!({})).await.problem(404, "not_found");
    sam.client.post(&follow_path(&sam), &json!({})).await.problem(409, "self_follow");
    bea.client.post("/api/v1/users/x/follow", &json!({})).await.problem(404, "not_found");
    server.visitor().post(&follow_path(&sam), &json!({})).await.problem(401, "unauthenticated");
    let nothing = "/api/v1/users/me/favourites/0192f0c1-2345-7000-8000-0123456789ab";
    let put = bea.client.send(reqwest::Method::PUT, nothing, None).await;
    put.problem(404, "not_found");
    bea.client.delete(nothing).await.expect(204);
    server.finish().await;
}

#[tokio::test]
async fn a_draft_is_news_once_it_is_published() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    bea.client.post(&follow_path(&sam), &json!({})).await.expect(200);
    let mut offer = server.offer(1).await;
    offer["draft"] = json!(true);
    let draft = sam.client.post("/api/v1/listings", &offer).await.expect(201).text("listing_id");
    let favourite = format!("/api/v1/users/me/favourites/{draft}");
    let put = bea.client.send(reqwest::Method::PUT, &favourite, None).await;
    put.problem(404, "not_found");
    server.at_rest().await;
    assert!(told(&server, &bea, "new_listing").await.is_empty());
    let publish = format!("/api/v1/listings/{draft}/publish");
    sam.client.post(&publish, &json!({})).await.expect(200);
    server.at_rest().await;
    assert_eq!(told(&server, &bea, "new_listing").await.len(), 1);
    server.finish().await;
}

/// More followers than are told at once, and the server dies among them.
#[tokio::test]
async fn many_followers_are_told_once_each_across_a_crash() {
    const FOLLOWERS: usize = 150;
    let mut server = Server::start().await;
    let sam = server.seller("Sam").await;
    let mut followers = Vec::new();
    for index in 0..FOLLOWERS {
        let follower = server.newcomer(&format!("Fan{index}")).await;
        follower.client.post(&follow_path(&sam), &json!({})).await.expect(200);
        followers.push(follower.user_id);
    }
    let mut listings = Vec::new();
    for _ in 0..3 {
        listings.push(server.listing(&sam, 1).await);
    }
    eventually("some to be told", || async {
        let told = server.admin().get("/api/v1/events?eventType=announcement.advanced").await;
        (!told.expect(200).items().is_empty()).then_some(())
    })
    .await;
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    let mut told = BTreeMap::<String, usize>::new();
    for event in server.events("eventType=notification.requested").await {
        if event["data"]["template"] == "new_listing" {
            let user = event["data"]["user_id"].as_str().unwrap().to_owned();
            *told.entry(user).or_default() += 1;
        }
    }
    assert_eq!(told.len(), FOLLOWERS);
    assert!(followers.iter().all(|user| told[user] == listings.len()), "{told:?}");
    for event in server.events("eventType=announcement.completed").await {
        assert_eq!(event["data"]["told"], FOLLOWERS);
    }
    assert_eq!(server.events_counted("announcement.completed").await, listings.len());
    server.finish().await;
}

#[tokio::test]
async fn a_favourite_that_becomes_cheaper_is_told_of() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let (loom, wheel) = (server.listing(&sam, 1).await, server.listing(&sam, 1).await);
    let favourite = |listing: &str| format!("/api/v1/users/me/favourites/{listing}");
    let mut which = Vec::new();
    for listing in [&loom, &wheel] {
        let put = bea.client.send(reqwest::Method::PUT, &favourite(listing), None).await;
        let put = put.expect(200);
        assert_eq!(put["listing_id"], json!(listing));
        // Each may be in a partition of its own.
        let position = put.header("souk-position");
        let mine = format!("/api/v1/users/me/favourites?min_position={position}");
        let mine = bea.client.get(&mine).await.expect(200);
        which = mine.items().iter().map(|of| of["listing_id"].clone()).collect();
    }
    assert_eq!(which, [json!(wheel), json!(loom)]);
    bea.client.delete(&favourite(&wheel)).await.expect(204);
    let reprice = async |listing: &str, amount: i64| {
        let path = format!("/api/v1/listings/{listing}");
        let change = json!({ "price": { "amount": amount, "currency": "VND" } });
        sam.client.if_match("*").patch(&path, &change).await.expect(200);
    };
    reprice(&loom, PRICE + 1_000).await;
    reprice(&loom, PRICE - 1_000).await;
    reprice(&wheel, PRICE - 1_000).await;
    let title = json!({ "title": "The same for the same" });
    sam.client.if_match("*").patch(&format!("/api/v1/listings/{loom}"), &title).await.expect(200);
    server.at_rest().await;
    let texts = told(&server, &bea, "price_drop").await;
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].contains(&loom), "{texts:?}");
    assert!(told(&server, &sam, "price_drop").await.is_empty());
    server.finish().await;
}
