//! What buyers think of orders, and what it does to their sellers' ratings (S0-46, S0-84 to S0-97).

use serde_json::{Value, json};

use crate::support::{Answer, Client, Person, Server, Start, eventually, parallel};

fn review(order_id: &str, rating: u8) -> Value {
    json!({ "transaction_id": order_id, "rating": rating, "comment": "It rides well." })
}

async fn write(client: &Client, order_id: &str, rating: u8) -> Answer {
    client.post("/api/v1/reviews", &review(order_id, rating)).await
}

async fn summary(server: &Server, seller: &str) -> Answer {
    let path = format!("/api/v1/users/{seller}/reviews/summary");
    server.visitor().get(&path).await.expect(200)
}

/// Waits until so many reviews count.
async fn counted(server: &Server, seller: &str, count: u64) -> Answer {
    eventually(&format!("{count} reviews to count"), || async {
        Some(summary(server, seller).await).filter(|rating| rating["count"] == count)
    })
    .await
}

struct Market {
    server: Server,
    sam: Person,
    bea: Person,
    listing: String,
}

/// A seller, a buyer, and something to buy.
async fn market(start: Start) -> Market {
    let server = start.start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1_000).await;
    Market { server, sam, bea, listing }
}

impl Market {
    async fn delivered(&self) -> String {
        self.server.delivered(&self.bea.client, &self.listing).await
    }
}

#[tokio::test]
async fn a_buyer_reviews_a_delivered_order_once() {
    let market = market(Start::default()).await;
    let Market { server, sam, bea, listing } = &market;
    let new = summary(server, &sam.user_id).await;
    assert_eq!((&new["count"], &new["average"]), (&json!(0), &Value::Null));
    let order = market.delivered().await;
    let wrote = bea.client.keyed("once").post("/api/v1/reviews", &review(&order, 4)).await;
    let wrote = wrote.expect(201);
    let id = wrote.text("review_id");
    // S0-84, S0-90, S0-92.
    assert_eq!(wrote.header("location"), format!("/api/v1/reviews/{id}"));
    let path = format!("/api/v1/reviews/{id}");
    let read = server.visitor().get(&path).await.expect(200);
    assert_eq!((read.json(), read.header("etag")), (wrote.json(), wrote.header("etag")));
    server.visitor().with("if-none-match", read.header("etag")).get(&path).await.expect(304);
    assert_eq!((&wrote["rating"], &wrote["comment"]), (&json!(4), &json!("It rides well.")));
    assert_eq!(wrote["listing_ids"], json!([listing]));
    // S0-87.
    write(&bea.client, &order, 5).await.problem(409, "already_reviewed");
    let again = bea.client.keyed("once").post("/api/v1/reviews", &review(&order, 4)).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.expect(201).json(), wrote.json());
    // S0-91.
    let correlation = wrote.header("x-correlation-id");
    let created = server.event("ReviewCreated", correlation).await;
    for (name, value) in [
        ("review_id", &id),
        ("transaction_id", &order),
        ("reviewer_id", &bea.user_id),
        ("reviewee_id", &sam.user_id),
    ] {
        assert_eq!(created["data"][name], json!(value), "{name}");
    }
    assert_eq!(created["data"]["rating"], 4);
    // S0-94.
    let updated = server.event("SellerRatingUpdated", correlation).await;
    let data = &updated["data"];
    assert_eq!((&data["seller_id"], &data["count"]), (&json!(sam.user_id), &json!(1)));
    assert_eq!((&data["average"], &data["stars"]["4"]), (&json!(4.0), &json!(1)));
    // S0-97.
    server.event("order.reviewed", correlation).await;
    for name in ["orders", "transactions"] {
        let path = format!("/api/v1/{name}/{order}");
        let order = bea.client.get(&path).await.expect(200);
        assert_eq!((&order["reviewed"], &order["review_id"]), (&json!(true), &json!(id)));
        assert_eq!(order["status"], "COMPLETED");
    }
    told_the_seller(server, sam, &id).await;
    let profile = format!("/api/v1/users/{}", sam.user_id);
    let profile = server.visitor().get(&profile).await.expect(200);
    assert_eq!(profile["seller_profile"]["rating"]["average"], json!(4.0));
    market.server.finish().await;
}

/// S0-95: in the marketplace and by mail, and without the words that are sealed for the buyer.
async fn told_the_seller(server: &Server, sam: &Person, review: &str) {
    server.at_rest().await;
    let all = sam.client.get("/api/v1/notifications").await.expect(200);
    let about = all.items().iter().filter(|one| one["template"] == "new_review");
    let about: Vec<_> = about.collect();
    assert_eq!(about.len(), 2, "{about:#?}");
    let inside = about.iter().find(|one| one["type"] == "in_app").unwrap();
    let path = format!("/api/v1/notifications/{}", inside["notification_id"].as_str().unwrap());
    let shown = sam.client.get(&path).await.expect(200);
    assert!(shown.text("title").contains("4 of 5"), "{shown:?}");
    let mails = server.mails(&sam.email).await;
    let mails: Vec<_> = mails.iter().filter(|mail| mail["template"] == "new_review").collect();
    assert_eq!(mails.len(), 1);
    for form in ["text", "html"] {
        let words = mails[0][form].as_str().unwrap();
        assert!(words.contains(review) && !words.contains("rides well"), "{words}");
    }
}

#[tokio::test]
async fn who_may_not_review_hears_why() {
    let market = market(Start::default()).await;
    let Market { server, sam, bea, listing } = &market;
    let order = server.place_order(&bea.client, listing, 1, "sandbox").await.id;
    server.order_eventually(&order, "SHIPPED").await;
    // S0-85, S0-88.
    let asked = async |body: Value| bea.client.post("/api/v1/reviews", &body).await;
    let whole = review(&order, 5);
    for (name, pointer) in
        [("transaction_id", "/transaction_id"), ("rating", "/rating"), ("comment", "/comment")]
    {
        let mut body = whole.clone();
        body.as_object_mut().unwrap().remove(name);
        assert_eq!(asked(body).await.pointers(), [pointer]);
    }
    for rating in [json!(0), json!(6), json!(3.5), json!("5"), json!(-1), json!(1e99)] {
        let mut body = whole.clone();
        body["rating"] = rating;
        assert_eq!(asked(body).await.pointers(), ["/rating"]);
    }
    for comment in [json!(""), json!("x".repeat(4_001)), json!("a\u{1}b"), json!(7)] {
        let mut body = whole.clone();
        body["comment"] = comment;
        assert_eq!(asked(body).await.pointers(), ["/comment"]);
    }
    // S0-86.
    let nothing = "0192f0c1-2345-7000-8000-0123456789ab";
    write(&bea.client, nothing, 5).await.problem(404, "not_found");
    write(&bea.client, &order, 5).await.problem(409, "order_not_completed");
    for client in [&sam.client, &server.admin(), &server.buyer("Otto").await.client] {
        write(client, &order, 5).await.problem(403, "forbidden");
    }
    write(&server.visitor(), &order, 5).await.problem(401, "unauthenticated");
    let path = format!("/api/v1/reviews/{nothing}");
    server.visitor().get(&path).await.problem(404, "not_found");
    let path = format!("/api/v1/users/{nothing}/reviews/summary");
    server.visitor().get(&path).await.problem(404, "not_found");
    // By its other name.
    let delivered = market.delivered().await;
    let body = json!({ "order_id": delivered, "rating": 5, "comment": "Good." });
    bea.client.post("/api/v1/reviews", &body).await.expect(201);
    market.server.finish().await;
}

/// S0-87.
#[tokio::test]
async fn of_fifty_reviews_of_one_order_one_counts() {
    let market = market(Start::default()).await;
    let Market { server, sam, bea, .. } = &market;
    let order = market.delivered().await;
    let answers = parallel(50, |index| {
        let rating = u8::try_from(index % 5).unwrap() + 1;
        let (client, order) = (&bea.client, &order);
        async move { (rating, write(client, order, rating).await) }
    })
    .await;
    let (won, lost): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| answer.status() == 201);
    assert_eq!((won.len(), lost.len()), (1, 49));
    for (_, answer) in lost {
        answer.problem(409, "already_reviewed");
    }
    server.at_rest().await;
    let rating = summary(server, &sam.user_id).await;
    assert_eq!(rating["count"], 1);
    assert_eq!(rating["stars"][won[0].0.to_string()], 1);
    assert_eq!(server.events_counted("review.created").await, 1);
    market.server.finish().await;
}

/// S0-89.
#[tokio::test]
async fn an_order_can_be_reviewed_for_thirty_days() {
    let market = market(Start::default()).await;
    let (first, second) = (market.delivered().await, market.delivered().await);
    let Market { server, mut bea, .. } = market;
    const DAY: u64 = 24 * 60 * 60;
    server.advance_clock(29 * DAY).await;
    server.at_rest().await;
    bea.log_in_again().await;
    write(&bea.client, &first, 5).await.expect(201);
    server.advance_clock(2 * DAY).await;
    server.at_rest().await;
    bea.log_in_again().await;
    write(&bea.client, &second, 5).await.problem(409, "review_window_closed");
    server.finish().await;
}

/// S0-93: the average is exact, also when the server dies while it is counted, and follows what an
/// administrator hides.
#[tokio::test]
async fn the_rating_is_that_of_the_reviews_that_count() {
    let market = market(Start::default().partitions(3)).await;
    let mut orders = Vec::new();
    for _ in 0..24 {
        orders.push(market.delivered().await);
    }
    let Market { mut server, sam, bea, .. } = market;
    for (order, rating) in orders.iter().zip([5, 4, 3]) {
        write(&bea.client, order, rating).await.expect(201);
    }
    let rating = counted(&server, &sam.user_id, 3).await;
    assert_eq!(rating["average"], json!(4.0));
    // The others while nobody counts, and then the server is killed as it begins to.
    server.pause("seller-ratings").await;
    let answers = parallel(21, |index| {
        let (client, order) = (&bea.client, &orders[index + 3]);
        async move { write(client, order, u8::try_from(index % 2).unwrap() * 4 + 1).await }
    })
    .await;
    for answer in answers {
        answer.expect(201);
    }
    server.resume("seller-ratings").await;
    server.kill_9_and_start_again().await;
    let rating = counted(&server, &sam.user_id, 24).await;
    // 12 + 11 * 1 + 10 * 5 = 73, of 24.
    assert_eq!(rating["average"], json!(3.04));
    assert_eq!(rating["stars"], json!({ "1": 11, "2": 0, "3": 1, "4": 1, "5": 11 }));
    let path = format!("/api/v1/orders/{}", orders[3]);
    let hidden = server.admin().get(&path).await.expect(200).text("review_id");
    let path = format!("/api/v1/admin/reviews/{hidden}");
    let reason = json!({ "reason": "an insult" });
    for _ in 0..2 {
        server.admin().post(&format!("{path}/hide"), &reason).await.expect(200);
    }
    let rating = counted(&server, &sam.user_id, 23).await;
    assert_eq!((&rating["stars"]["1"], &rating["average"]), (&json!(10), &json!(3.13)));
    server.admin().post(&format!("{path}/restore"), &json!({})).await.expect(200);
    counted(&server, &sam.user_id, 24).await;
    server.at_rest().await;
    let audit = server.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
    assert_eq!((&audit["missing"], &audit["duplicate_effects"]), (&json!(0), &json!(0)));
    let of_ratings = audit["subscriptions"].as_array().unwrap().iter();
    let of_ratings = of_ratings.filter(|of| of["subscription"] == "seller-ratings");
    assert_eq!(of_ratings.map(|of| of["checked"].as_u64().unwrap()).sum::<u64>(), 26);
    server.finish().await;
}

#[tokio::test]
async fn reviews_are_listed_and_hidden_ones_are_not() {
    let market = market(Start::default()).await;
    let Market { server, sam, bea, listing } = &market;
    let other = server.listing(sam, 3).await;
    let mut ids = Vec::new();
    for listing in [listing, listing, &other] {
        let order = server.delivered(&bea.client, listing).await;
        let wrote = write(&bea.client, &order, 5).await.expect(201);
        ids.push((wrote.text("review_id"), wrote.header("souk-position").to_owned()));
    }
    let last = &ids[2].1;
    let listed = async |query: &str| -> Vec<String> {
        let path = format!("/api/v1/reviews?{query}&min_position={last}");
        let page = server.visitor().get(&path).await.expect(200);
        page.items().iter().map(|of| of["review_id"].as_str().unwrap().to_owned()).collect()
    };
    let id = |index: usize| ids[index].0.clone();
    let seller = format!("seller_id={}", sam.user_id);
    assert_eq!(listed(&seller).await, [id(2), id(1), id(0)]);
    assert_eq!(listed(&format!("listing_id={listing}")).await, [id(1), id(0)]);
    assert_eq!(listed(&format!("listing_id={other}")).await, [id(2)]);
    assert_eq!(listed(&format!("seller_id={}", bea.user_id)).await, [""; 0]);
    server.visitor().get("/api/v1/reviews?seller_id=x").await.problem(400, "invalid_parameter");
    // Page by page, with the words.
    let first = format!("/api/v1/reviews?{seller}&limit=2&min_position={last}");
    let first = server.visitor().get(&first).await.expect(200);
    assert!(first.items().iter().all(|of| of["comment"] == "It rides well." && of["version"] == 1));
    assert_eq!(first["has_more"], true);
    let next = first.header("link").trim_start_matches('<').split('>').next().unwrap().to_owned();
    let next = server.visitor().get(&next).await.expect(200);
    assert_eq!((next.items().len(), &next["has_more"]), (1, &json!(false)));
    assert_eq!(next.items()[0]["review_id"], json!(id(0)));
    // What is hidden is there for those whom it concerns.
    let path = format!("/api/v1/admin/reviews/{}", id(1));
    let nothing = server.admin().post(&format!("{path}/hide"), &json!({})).await;
    assert_eq!(nothing.pointers(), ["/reason"]);
    let reason = json!({ "reason": "an insult" });
    sam.client.post(&format!("{path}/hide"), &reason).await.problem(403, "insufficient_scope");
    let hidden = server.admin().post(&format!("{path}/hide"), &reason).await.expect(200);
    assert_eq!(
        (&hidden["status"], &hidden["hidden_reason"]),
        (&json!("HIDDEN"), &json!("an insult"))
    );
    server.caught_up("reviews-view").await;
    assert_eq!(listed(&seller).await, [id(2), id(0)]);
    let path = format!("/api/v1/reviews/{}", id(1));
    for client in [&server.visitor(), &server.buyer("Otto").await.client] {
        client.get(&path).await.problem(404, "not_found");
    }
    for client in [&sam.client, &bea.client, &server.admin()] {
        assert_eq!(client.get(&path).await.expect(200)["status"], "HIDDEN");
    }
    market.server.finish().await;
}

#[tokio::test]
async fn the_seller_replies_once_and_may_change_it_for_a_day() {
    let market = market(Start::default()).await;
    let order = market.delivered().await;
    let Market { server, mut sam, bea, .. } = market;
    let id = write(&bea.client, &order, 2).await.expect(201).text("review_id");
    let path = format!("/api/v1/reviews/{id}/reply");
    let words = |text: &str| json!({ "reply": text });
    let put = async |client: &Client, text: &str| {
        let body = words(text).to_string().into_bytes();
        client.send(reqwest::Method::PUT, &path, Some(body)).await
    };
    for client in [&bea.client, &server.admin()] {
        client.post(&path, &words("Hm.")).await.problem(403, "forbidden");
    }
    put(&sam.client, "Sorry").await.problem(409, "not_replied");
    assert_eq!(sam.client.post(&path, &json!({})).await.pointers(), ["/reply"]);
    let replied = sam.client.post(&path, &words("Sorry")).await.expect(200);
    assert_eq!(replied["reply"]["text"], "Sorry");
    assert!(replied["reply"]["edited_at"].is_null());
    sam.client.post(&path, &words("Sorry!")).await.problem(409, "already_replied");
    let edited = put(&sam.client, "So sorry").await.expect(200);
    assert_eq!(edited["reply"]["text"], "So sorry");
    assert_eq!(edited["reply"]["replied_at"], replied["reply"]["replied_at"]);
    assert!(edited["reply"]["edited_at"].is_string());
    server.advance_clock(25 * 60 * 60).await;
    sam.log_in_again().await;
    put(&sam.client, "Not sorry").await.problem(409, "reply_window_closed");
    let read = server.visitor().get(&format!("/api/v1/reviews/{id}")).await.expect(200);
    assert_eq!(read["reply"]["text"], "So sorry");
    server.at_rest().await;
    server.finish().await;
}
