//! The flows of the documents from end to end, each as a client and an administrator see it: the six
//! of the marketplace in one life of a few people, and the four of the order modules. Events are read
//! under the documents' own names, with the documents' own fields.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Answer, Person, Server, address, business, eventually, somebody, wish};

/// What an event says has these members.
#[track_caller]
fn says(event: &Value, members: &[(&str, Value)]) {
    for (name, value) in members {
        assert_eq!(&event["data"][*name], value, "{name} of {event:#}");
    }
}

/// The templates of a person's messages, and by which ways they came.
async fn told(server: &Server, user_id: &str) -> BTreeMap<String, Vec<String>> {
    let mut told = BTreeMap::<_, Vec<_>>::new();
    for one in server.notifications(user_id).await {
        let text = |name: &str| one[name].as_str().unwrap().to_owned();
        assert_eq!(one["status"], "sent", "{one}");
        told.entry(text("template")).or_default().push(text("type"));
    }
    told
}

async fn figure(server: &Server, name: &str) -> Value {
    server.caught_up("analytics-view").await;
    let path = format!("/api/v1/analytics/metrics?name={name}");
    server.admin().get(&path).await.expect(200)["total"][0]["value"].clone()
}

impl Server {
    /// The event of a name that an answer led to.
    async fn follows(&self, answer: &Answer, name: &str) -> Value {
        self.event(name, answer.header("x-correlation-id")).await
    }
}

/// S0, flows 1 and 2: registration and the proof of the address.
async fn registers(server: &Server, name: &str) -> Person {
    let body = somebody(name);
    let email = body["email"].as_str().unwrap().to_owned();
    let made = server.visitor().post("/api/v1/users/register", &body).await.expect(201);
    let user_id = made.text("user_id");
    let event = server.follows(&made, "UserRegistered").await;
    says(
        &event,
        &[
            ("user_id", json!(user_id)),
            ("email", body["email"].clone()),
            ("first_name", body["first_name"].clone()),
        ],
    );
    let token = server.mailed_token(&email).await;
    let sent = server.follows(&made, "EmailSent").await;
    says(&sent, &[("template", json!("welcome_verification"))]);
    let verified = json!({ "verification_token": token });
    let before = figure(server, "users_verified").await;
    let verified = server.visitor().post("/api/v1/users/verify-email", &verified).await.expect(200);
    assert_eq!(
        (&verified["email_verified"], &verified["status"]),
        (&json!(true), &json!("ACTIVE"))
    );
    let event = server.follows(&verified, "UserEmailVerified").await;
    says(&event, &[("user_id", json!(user_id)), ("email", json!(email))]);
    assert!(event["data"]["verified_at"].as_str().unwrap().ends_with('Z'), "{event}");
    server.at_rest().await;
    let rise = server.follows(&verified, "UserEngagementUpdated").await;
    says(&rise, &[("user_id", json!(user_id)), ("engagement_score", json!(10))]);
    let mails: Vec<_> = server.mails(&email).await;
    let templates: Vec<_> = mails.iter().map(|mail| mail["template"].as_str().unwrap()).collect();
    assert_eq!(templates, ["email_verified", "welcome_verification"]);
    assert!(mails.iter().all(|mail| mail["text"].as_str().unwrap().contains(name)), "{mails:#?}");
    let after = figure(server, "users_verified").await;
    assert_eq!(after.as_i64().unwrap(), before.as_i64().unwrap_or(0) + 1);
    server.comes(user_id, &body).await
}

/// S0, flow 3: from a buyer to a seller.
async fn becomes_a_seller(server: &Server, sam: &Person) {
    let asked = server.become_seller(sam).await.expect(200);
    let event = server.follows(&asked, "UserUpgradedToSeller").await;
    says(
        &event,
        &[
            ("user_id", json!(sam.user_id)),
            ("business_name", business()["business_name"].clone()),
            ("verification_status", json!("PENDING")),
        ],
    );
    let reviews = format!("/api/v1/users/{}/reviews/summary", sam.user_id);
    let reviews = server.visitor().get(&reviews).await.expect(200);
    assert_eq!((&reviews["count"], &reviews["average"]), (&json!(0), &Value::Null));
    let listings = format!("/api/v1/users/{}/listing-preferences", sam.user_id);
    sam.client.get(&listings).await.expect(200);
    server.at_rest().await;
    let told = told(server, &sam.user_id).await;
    assert_eq!(told["seller_welcome"], ["email"]);
    assert_eq!(told["seller_onboarding"], ["in_app"]);
    let admins = server.admin().get("/api/v1/notifications?audience=admin").await.expect(200);
    assert!(admins.items().iter().any(|one| one["template"] == "seller_pending"));
    let verified = server.admin_verifies(sam).await.expect(200);
    assert_eq!(verified["verification_status"], "VERIFIED");
    server.follows(&verified, "SellerVerified").await;
}

/// S0, flow 4: a listing, found and announced.
async fn offers(server: &Server, sam: &Person, follower: &Person) -> String {
    let follow = format!("/api/v1/users/{}/follow", sam.user_id);
    follower.client.post(&follow, &json!({})).await.expect(200);
    let offer = server.offer(1).await;
    let made = sam.client.post("/api/v1/listings", &offer).await.expect(201);
    let listing = made.text("listing_id");
    assert_eq!(server.visitor().get(made.header("location")).await.expect(200).json(), made.json());
    let created = server.follows(&made, "ListingCreated").await;
    says(
        &created,
        &[
            ("listing_id", json!(listing)),
            ("seller_id", json!(sam.user_id)),
            ("title", offer["title"].clone()),
            ("category_id", offer["category_id"].clone()),
            ("price", offer["price"]["amount"].clone()),
        ],
    );
    let indexed = server.follows(&made, "ListingIndexed").await;
    says(&indexed, &[("listing_id", json!(listing))]);
    assert_eq!(indexed["causation_id"], created["event_id"]);
    let found = server.visitor().get("/api/v1/search?q=bicycle").await.expect(200);
    assert_eq!(found.items()[0]["listing_id"], listing.as_str());
    server.at_rest().await;
    assert_eq!(told(server, &follower.user_id).await["new_listing"], ["in_app"]);
    let profile = format!("/api/v1/users/{}/seller-profile", sam.user_id);
    assert_eq!(server.visitor().get(&profile).await.expect(200)["listing_count"], 1);
    listing
}

/// S0, flow 5: a purchase, from the transaction to the money in escrow.
async fn buys(server: &Server, bea: &Person, sam: &Person, listing: &str) -> String {
    let body = json!({
        "listing_id": listing, "delivery_address": address(), "payment_method": "sandbox",
    });
    let made = bea.client.post("/api/v1/transactions", &body).await.expect(201);
    let id = made.text("transaction_id");
    assert!(!made["payment"]["reference"].as_str().unwrap().is_empty());
    let created = server.follows(&made, "TransactionCreated").await;
    let amount = server.listing_now(listing).await["price"]["amount"].clone();
    says(
        &created,
        &[
            ("transaction_id", json!(id)),
            ("listing_id", json!(listing)),
            ("buyer_id", json!(bea.user_id)),
            ("seller_id", json!(sam.user_id)),
            ("amount", amount.clone()),
        ],
    );
    let reserved = server.follows(&made, "ListingReserved").await;
    says(&reserved, &[("listing_id", json!(listing)), ("transaction_id", json!(id))]);
    assert!(reserved["data"]["expires_at"].is_string());
    let completed = server.follows(&made, "PaymentCompleted").await;
    says(&completed, &[("transaction_id", json!(id)), ("amount", amount.clone())]);
    assert_eq!(completed["data"]["payment_id"], made["payment"]["payment_id"]);
    server.order_eventually(&id, "SHIPPED").await;
    server.at_rest().await;
    let escrow = server.escrow(&id).await;
    assert_eq!((&escrow["status"], &escrow["balance"]), (&json!("FUNDED"), &amount));
    assert_eq!(server.listing_now(listing).await["status"], "SOLD");
    assert!(told(server, &sam.user_id).await.contains_key("new_order"));
    assert!(told(server, &sam.user_id).await.contains_key("order_paid"));
    assert!(told(server, &bea.user_id).await.contains_key("payment_received"));
    id
}

/// S0, flow 6: a review, once the goods are there.
async fn reviews(server: &Server, bea: &Person, sam: &Person, transaction: &str) {
    server.arrives(transaction, &sam.client, &bea.client).await;
    let body = json!({ "transaction_id": transaction, "rating": 5, "comment": "It flies." });
    let made = bea.client.post("/api/v1/reviews", &body).await.expect(201);
    assert_eq!(server.visitor().get(made.header("location")).await.expect(200).json(), made.json());
    let created = server.follows(&made, "ReviewCreated").await;
    says(
        &created,
        &[
            ("review_id", made["review_id"].clone()),
            ("transaction_id", json!(transaction)),
            ("reviewer_id", json!(bea.user_id)),
            ("reviewee_id", json!(sam.user_id)),
            ("rating", json!(5)),
        ],
    );
    let rating = server.follows(&made, "SellerRatingUpdated").await;
    says(
        &rating,
        &[("seller_id", json!(sam.user_id)), ("average", json!(5.0)), ("count", json!(1))],
    );
    let reviewed = format!("/api/v1/transactions/{transaction}");
    eventually("the transaction to be reviewed", || async {
        let now = bea.client.get(&reviewed).await.expect(200);
        (now["reviewed"] == true).then_some(())
    })
    .await;
    server.at_rest().await;
    assert!(told(server, &sam.user_id).await.contains_key("new_review"));
    assert_eq!(figure(server, "reviews_created").await, 1);
}

#[tokio::test]
async fn the_six_flows_of_the_marketplace() {
    let server = Server::start().await;
    let (sam, bea) = (registers(&server, "Sam").await, registers(&server, "Bea").await);
    becomes_a_seller(&server, &sam).await;
    let listing = offers(&server, &sam, &bea).await;
    let transaction = buys(&server, &bea, &sam, &listing).await;
    reviews(&server, &bea, &sam, &transaction).await;
    let ledger = server.admin().get("/api/v1/admin/ledger/check").await.expect(200);
    assert_eq!(ledger["balanced"], true, "{ledger:?}");
    // Nobody is told anything twice.
    for person in [&sam, &bea] {
        let mails = server.mails(&person.email).await;
        let mut ids: Vec<_> = mails.iter().map(|mail| mail["notification_id"].clone()).collect();
        let all = ids.len();
        ids.sort_by_key(ToString::to_string);
        ids.dedup();
        assert_eq!(ids.len(), all, "{mails:#?}");
    }
    server.finish().await;
}

/// The events of an order's request by the old path, in the old form, each under its old name.
async fn old_names(server: &Server, answer: &Answer) -> Vec<(String, String)> {
    server.at_rest().await;
    let events = server.events_of(answer.header("x-correlation-id")).await;
    let mut names = Vec::new();
    for event in &events {
        let path = format!("/api/events/{}?case=camel", event["event_id"].as_str().unwrap());
        let old = server.admin().get(&path).await.expect(200);
        for name in ["eventId", "eventType", "aggregateId", "aggregateType", "occurredAt"] {
            assert!(old[name].is_string(), "{name} of {old:?}");
        }
        assert!(old["payload"].is_object() && old["version"].is_u64(), "{old:?}");
        names.push((old.text("eventType"), old.text("occurredAt")));
    }
    names
}

/// Each of these happened, one not before the other. Positions say so within a partition only.
#[track_caller]
fn in_order(names: &[(String, String)], wanted: &[&str]) {
    let at = |name: &&str| {
        let found = names.iter().find(|(found, _)| found == name);
        &found.unwrap_or_else(|| panic!("no {name} in {names:?}")).1
    };
    let times: Vec<_> = wanted.iter().map(at).collect();
    assert!(times.is_sorted(), "{times:?}");
}

/// S2: the happy path, too little stock, a payment that fails, a cancellation.
#[tokio::test]
async fn the_four_flows_of_orders() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let place = async |quantity, method: &str| {
        let placed = bea.client.post("/orders", &wish(&listing, quantity, method)).await;
        let placed = placed.expect(201);
        assert_eq!(placed["status"], "PENDING");
        placed
    };
    let came_to = async |placed: &Answer, statuses: &[&str]| {
        let id = placed.text("order_id");
        server.order_eventually(&id, statuses.last().unwrap()).await;
        assert_eq!(server.history(&id).await, statuses);
        old_names(&server, placed).await
    };
    let happy = place(1, "sandbox").await;
    let names = came_to(&happy, &["PENDING", "CONFIRMED", "PAID", "SHIPPED"]).await;
    in_order(
        &names,
        &[
            "OrderPlaced",
            "InventoryReserved",
            "OrderConfirmed",
            "PaymentCaptured",
            "OrderPaid",
            "ShipmentCreated",
            "OrderShipped",
        ],
    );
    server.follows(&happy, "PaymentProcessed").await;
    assert_eq!(server.stock(&listing).await, (2, 0, 1));

    let too_many = place(9, "sandbox").await;
    let names = came_to(&too_many, &["PENDING", "REJECTED"]).await;
    in_order(&names, &["OrderPlaced", "InventoryReservationFailed", "OrderRejected"]);
    assert!(!names.iter().any(|(name, _)| name.starts_with("Payment")), "{names:?}");
    let failed = server.follows(&too_many, "InventoryReservationFailed").await;
    let id = json!(too_many.text("order_id"));
    says(&failed, &[("order_id", id), ("reason", json!("insufficient_stock"))]);

    let pending = place(2, "test_pending").await;
    came_to(&pending, &["PENDING", "CONFIRMED"]).await;
    assert_eq!(server.stock(&listing).await, (0, 2, 1));

    let cancel = format!("/orders/{}/cancel", pending.text("order_id"));
    let cancelled = bea.client.post(&cancel, &json!({ "reason": "changed my mind" })).await;
    let cancelled = cancelled.expect(200);
    assert_eq!(cancelled["status"], "CANCELLED");
    came_to(&pending, &["PENDING", "CONFIRMED", "CANCELLED"]).await;
    in_order(&old_names(&server, &cancelled).await, &["OrderCancelled", "InventoryReleased"]);
    assert_eq!(server.stock(&listing).await, (2, 0, 1));

    let declined = place(2, "test_decline").await;
    let names = came_to(&declined, &["PENDING", "CONFIRMED", "PAYMENT_FAILED"]).await;
    in_order(
        &names,
        &[
            "OrderPlaced",
            "InventoryReserved",
            "OrderConfirmed",
            "PaymentFailed",
            "OrderPaymentFailed",
            "InventoryReleased",
        ],
    );
    assert_eq!(server.stock(&listing).await, (2, 0, 1));
    server.finish().await;
}
