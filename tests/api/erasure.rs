//! Being forgotten, and taking one's data along (S1-164).

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Client, Person, Server, Start, eventually, wish};

/// Asks to be forgotten.
async fn erase(client: &Client, who: &str, body: Value) -> Answer {
    let path = format!("/api/v1/users/{who}");
    client.send(Method::DELETE, &path, Some(body.to_string().into_bytes())).await
}

async fn erase_me(person: &Person) -> Answer {
    erase(&person.client, "me", json!({ "password": person.password })).await
}

/// Every file of the data folder that has one of these texts in it.
fn found(folder: &Path, secrets: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        for secret in secrets {
            if bytes.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                found.push(format!("{secret} in {}", path.display()));
            }
        }
    }
    found
}

/// Brings an order to its end.
async fn finish_order(server: &Server, seller: &Person, buyer: &Person, order: &str) {
    let shipments = buyer.client.get(&format!("/api/v1/shipments?orderId={order}")).await;
    let shipment = shipments.expect(200).items()[0]["shipment_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/shipments/{shipment}/dispatch");
    let body = json!({ "carrier": "ghn", "tracking_number": "X1" });
    seller.client.post(&path, &body).await.expect(200);
    let path = format!("/api/v1/shipments/{shipment}/deliver");
    buyer.client.post(&path, &json!({})).await.expect(200);
    server.order_eventually(order, "COMPLETED").await;
}

/// Something that a seller has yet to publish.
async fn draft_of(server: &Server, seller: &Person) -> String {
    let mut offer = server.offer(1).await;
    offer["draft"] = json!(true);
    seller.client.post("/api/v1/listings", &offer).await.expect(201).text("listing_id")
}

const SECRETS: [&str; 5] =
    ["bea@example.com", "Larkspur", "Aunt Agatha", "+84901234567", "Bea has a long password"];

with_one_and_three_partitions!(whoever_is_forgotten_leaves_nothing_personal);

async fn whoever_is_forgotten_leaves_nothing_personal(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;

    // Somebody waits for her.
    let open = erase_me(&bea).await.problem(409, "open_orders");
    let named = &open["errors"][0];
    assert_eq!(named["pointer"], format!("/orders/{}", order.id));
    assert!(
        named["detail"].as_str().unwrap().contains("SHIPPED: confirm its delivery"),
        "{open:?}"
    );
    let open = erase_me(&sam).await.problem(409, "open_orders");
    assert!(open.raw().contains("wait for its delivery"), "{open:?}");
    finish_order(&server, &sam, &bea, &order.id).await;
    server.at_rest().await;

    let everything = server.admin().get(&format!("/api/v1/orders/{}", order.id)).await.expect(200);
    assert!(everything.raw().contains("Larkspur"));
    let wrong = erase(&bea.client, "me", json!({ "password": "not hers" })).await;
    wrong.problem(403, "wrong_password");
    assert_eq!(erase(&bea.client, "me", json!({})).await.pointers(), ["/password"]);
    let gone = erase_me(&bea).await.expect(204);
    assert!(!gone.header("souk-position").is_empty());

    // At once: nobody reads it any more, also not from what is in memory.
    for client in [&server.admin(), &sam.client] {
        let seen = client.get(&format!("/api/v1/orders/{}", order.id)).await.expect(200);
        assert_eq!(seen["delivery_address"], "[erased]");
        for name in ["status", "amount", "items", "buyer_id", "seller_id", "order_number"] {
            assert_eq!(seen[name], everything[name], "the order of others is as it was: {name}");
        }
    }
    let user = server.admin().get(&format!("/api/v1/users/{}", bea.user_id)).await.expect(200);
    for name in ["email", "first_name", "last_name"] {
        assert_eq!(user[name], "[erased]");
    }
    assert_eq!(user["status"], "ERASED");
    bea.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
    let refresh = json!({ "refresh_token": bea.refresh_token });
    let refreshed = server.visitor().post("/api/v1/auth/refresh", &refresh).await;
    assert_eq!(refreshed.status(), 401, "{refreshed:?}");
    server.login(&bea.email, &bea.password).await.problem(401, "invalid_credentials");
    server.at_rest().await;
    for event in server.events("").await {
        for secret in SECRETS {
            assert!(!event.to_string().contains(secret), "{secret} in {event}");
        }
    }
    let ended = server.events("eventType=session.revoked").await;
    assert!(ended.iter().all(|event| event["data"]["reason"] == "erased"), "{ended:#?}");
    assert!(!ended.is_empty());
    assert_eq!(found(server.folder(), &SECRETS), [""; 0]);
    for line in server.log() {
        assert!(!SECRETS.iter().any(|secret| line.contains(secret)), "{line}");
    }
    // Again is once; and the address is free, for somebody who is somebody else.
    let again = json!({ "reason": "asked for it by letter" });
    erase(&server.admin(), &bea.user_id, again).await.expect(204);
    let new = server.newcomer("Bea").await;
    assert_ne!(new.user_id, bea.user_id);
    let theirs = new.client.get(&format!("/api/v1/orders/{}", order.id)).await;
    theirs.problem(404, "not_found");
    server.finish().await;
}

/// Why somebody called an order off, or does not take goods back, is in their own words.
#[tokio::test]
async fn what_people_wrote_about_their_orders_is_forgotten_with_them() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let (regret, refusal) = ("Aunt Agatha gave me hers", "I saw her throw it at the wall");
    let order = server.place_order(&bea.client, &listing, 1, "test_pending").await.id;
    server.order_eventually(&order, "CONFIRMED").await;
    let regretted = format!("/api/v1/orders/{order}");
    let cancel = format!("{regretted}/cancel");
    let gone = bea.client.post(&cancel, &json!({ "reason": regret })).await.expect(200);
    assert_eq!(gone["failure"]["reason"], regret);
    let order = server.delivered(&bea.client, &listing).await;
    let returns = format!("/api/v1/orders/{order}/returns");
    let asked = bea.client.post(&returns, &json!({ "reason": "damaged" })).await.expect(201);
    let refused = format!("{returns}/{}", asked.text("return_id"));
    let refuse = format!("{refused}/refuse");
    sam.client.post(&refuse, &json!({ "reason": refusal })).await.expect(200);
    // Those who may see the orders read it, and the files have it sealed.
    for client in [&bea.client, &sam.client, &server.admin()] {
        let seen = client.get(&regretted).await.expect(200);
        assert_eq!(seen["failure"]["reason"], regret);
        let seen = client.get(&refused).await.expect(200);
        assert_eq!(seen["refused_because"], refusal);
    }
    server.at_rest().await;
    assert_eq!(found(server.folder(), &[regret, refusal]), [""; 0]);

    erase_me(&bea).await.expect(204);
    for client in [&sam.client, &server.admin()] {
        let seen = client.get(&regretted).await.expect(200);
        let failure = &seen["failure"];
        assert_eq!(
            (&failure["reason"], &failure["cancelled_by"]),
            (&json!("[erased]"), &json!("buyer"))
        );
        let seen = client.get(&refused).await.expect(200);
        assert_eq!(seen["refused_because"], refusal, "these are the seller's words");
    }
    server.at_rest().await;
    let events = server.events("").await;
    assert!(!events.iter().any(|event| event.to_string().contains(regret)));
    let cancelled = server.events("eventType=order.cancelled").await;
    let data = &cancelled[0]["data"];
    assert_eq!((&data["reason"], &data["comment"]), (&json!("cancelled"), &json!("[erased]")));
    assert_eq!(found(server.folder(), &[regret, refusal]), [""; 0]);
    assert!(!server.log().iter().any(|line| line.contains(regret)));
    server.finish().await;
}

#[tokio::test]
async fn a_seller_who_is_forgotten_sells_nothing_any_more() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listings = [server.listing(&sam, 3).await, server.listing(&sam, 1).await];
    let draft = draft_of(&server, &sam).await;
    // Nobody forgets others but an administrator, who says why.
    let reason = json!({ "reason": "fraud, as the court has found" });
    erase(&bea.client, &sam.user_id, reason.clone()).await.problem(403, "forbidden");
    assert_eq!(erase(&server.admin(), &sam.user_id, json!({})).await.pointers(), ["/reason"]);
    let nobody = "00000000-0000-7000-8000-000000000000";
    erase(&server.admin(), nobody, reason.clone()).await.problem(404, "not_found");
    let gone = erase(&server.admin(), &sam.user_id, reason.clone()).await.expect(204);
    let event = server.event("user.erased", gone.header("x-correlation-id")).await;
    assert_eq!(event["data"]["reason"], reason["reason"]);
    for listing in listings {
        let wish = wish(&listing, 1, "sandbox");
        let refused = bea.client.post("/api/v1/orders", &wish).await;
        assert_eq!(refused.problem(409, "listing_unavailable")["status"], 409);
        eventually("the listing to be archived", || async {
            (server.listing_now(&listing).await["status"] == "ARCHIVED").then_some(())
        })
        .await;
    }
    // What nobody has seen yet is not left over either.
    let draft = format!("/api/v1/listings/{draft}");
    eventually("the draft to be archived", || async {
        let draft = server.admin().get(&draft).await.expect(200);
        (draft["status"] == "ARCHIVED").then_some(())
    })
    .await;
    let profile = format!("/api/v1/users/{}/seller-profile", sam.user_id);
    let profile = server.admin().get(&profile).await.expect(200);
    for name in ["business_address", "business_phone"] {
        assert_eq!(profile[name], "[erased]");
    }
    server.at_rest().await;
    assert_eq!(found(server.folder(), &["7 Weavers Lane", "sam@example.com"]), [""; 0]);
    server.finish().await;
}

/// The mail of somebody who is forgotten before its letter is retried goes to nobody.
#[tokio::test]
async fn a_letter_that_is_retried_after_an_erasure_has_no_effect() {
    let server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let parked = json!({ "kind": "permanent" });
    let fault = server.fault("notification-email", "fail", parked).await;
    let (ann, bob) = (server.newcomer("Ann").await, server.newcomer("Bob").await);
    // Whoever runs the marketplace is told of letters, which is a letter too.
    let waits = async |person: &Person| {
        eventually("the letter", || async {
            let told = server.notifications(&person.user_id).await;
            let id = told.first()?["notification_id"].clone();
            let letters = server.letters(Some("notification-email")).await;
            letters.iter().any(|letter| letter["key"] == id).then_some(())
        })
        .await;
    };
    waits(&ann).await;
    waits(&bob).await;
    server.mend(fault).await;
    erase_me(&ann).await.expect(204);
    server.at_rest().await;
    for letter in server.letters(Some("notification-email")).await {
        let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
        let path = format!("/api/v1/dlq/notification-email/{partition}/{key}/retry");
        let retried = server.admin().post(&path, &json!({})).await.expect(200);
        assert_eq!(retried["handled"], 1, "{retried:?}");
    }
    server.at_rest().await;
    assert!(server.mails(&ann.email).await.is_empty());
    assert_eq!(server.mails(&bob.email).await.len(), 1);
    let told = server.notifications(&ann.user_id).await;
    assert_eq!((told.len(), &told[0]["status"]), (1, &json!("failed")));
    assert!(server.letters(None).await.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn an_erasure_is_finished_after_a_crash() {
    let mut server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    server.at_rest().await;
    server.fault("erasures", "fail", json!({ "kind": "system" })).await;
    erase_me(&sam).await.expect(204);
    assert_eq!(server.listing_now(&listing).await["status"], "ACTIVE");
    server.kill_9_and_start_again().await;
    eventually("the listing to be archived", || async {
        (server.listing_now(&listing).await["status"] == "ARCHIVED").then_some(())
    })
    .await;
    sam.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
    server.at_rest().await;
    assert_eq!(found(server.folder(), &["sam@example.com", "7 Weavers Lane"]), [""; 0]);
    server.finish().await;
}

/// What a seller has earned is not forgotten along with the seller.
#[tokio::test]
async fn nobody_is_forgotten_who_is_owed_money() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    server.delivered(&bea.client, &listing).await;
    server.at_rest().await;
    let owed = erase_me(&sam).await.problem(409, "open_orders");
    assert_eq!(owed["errors"][0]["pointer"], "/balance", "{owed:?}");
    sam.client.get("/api/v1/users/me").await.expect(200);
    let payout = json!({
        "destination": { "bank": "Vietcombank", "holder": "Sam Tester", "number": "0011 0012" },
    });
    let payout = sam.client.post("/api/v1/me/payouts", &payout).await.expect(201);
    server.at_rest().await;
    erase_me(&sam).await.problem(409, "open_orders");
    let path = format!("/api/v1/admin/payouts/{}/complete", payout.text("payout_id"));
    let sent = server.admin().post(&path, &json!({ "reference": "FT-1" })).await.expect(200);
    assert_eq!((&sent["status"], &sent["reference"]), (&json!("COMPLETED"), &json!("FT-1")));
    // What was said first is what a repeat hears, with other words too.
    let again = server.admin().post(&path, &json!({ "reference": "FT-2" })).await.expect(200);
    assert_eq!(again["reference"], "FT-1");
    assert_eq!(again["updated_at"], sent["updated_at"]);
    server.at_rest().await;
    erase_me(&sam).await.expect(204);
    server.at_rest().await;
    server.finish().await;
}

/// A dispute about an order that is over keeps both of its people until it is decided.
#[tokio::test]
async fn nobody_is_forgotten_while_a_dispute_is_open() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 2).await;
    let order = server.delivered(&bea.client, &listing).await;
    let dispute = json!({ "reason": "damaged", "comment": "It squeaks." });
    let path = format!("/api/v1/orders/{order}/dispute");
    bea.client.post(&path, &dispute).await.expect(201);
    assert_eq!(server.order_now(&order).await["status"], "COMPLETED");
    for person in [&bea, &sam] {
        let open = erase_me(person).await.problem(409, "open_orders");
        let named = &open["errors"][0];
        assert_eq!(named["pointer"], format!("/orders/{order}"), "{open:?}");
        assert!(named["detail"].as_str().unwrap().contains("has a dispute: wait"), "{open:?}");
    }
    // Of a dispute about an order that is not over either it is said once.
    let sent = server.place_order(&bea.client, &listing, 1, "sandbox").await.id;
    server.order_eventually(&sent, "SHIPPED").await;
    let path = format!("/api/v1/orders/{sent}/dispute");
    bea.client.post(&path, &json!({ "reason": "not_received" })).await.expect(201);
    let open = erase_me(&bea).await.problem(409, "open_orders");
    assert_eq!(open["errors"].as_array().unwrap().len(), 2, "{open:?}");
    for order in [&order, &sent] {
        let decision = json!({ "refund_amount": 0, "reason": "It does not." });
        let path = format!("/api/v1/admin/orders/{order}/dispute/resolve");
        server.admin().post(&path, &decision).await.expect(200);
    }
    server.order_eventually(&sent, "COMPLETED").await;
    server.at_rest().await;
    erase_me(&bea).await.expect(204);
    server.finish().await;
}

#[tokio::test]
async fn people_take_along_what_came_of_their_orders() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let code = json!({ "code": "TAKE-5", "percentage": 5 });
    sam.client.post("/api/v1/promotions", &code).await.expect(201);
    let order = server.delivered(&bea.client, &listing).await;
    let review = json!({ "transaction_id": order, "rating": 4, "comment": "Rides well." });
    bea.client.post("/api/v1/reviews", &review).await.expect(201);
    let path = format!("/api/v1/users/me/favourites/{listing}");
    bea.client.send(Method::PUT, &path, None).await.expect(200);
    let path = format!("/api/v1/users/{}/follow", sam.user_id);
    bea.client.post(&path, &json!({})).await.expect(200);
    let path = format!("/api/v1/orders/{order}/returns");
    bea.client.post(&path, &json!({ "reason": "damaged" })).await.expect(201);
    let second = server.delivered(&bea.client, &listing).await;
    let dispute = json!({ "reason": "other", "comment": "It squeaks." });
    let path = format!("/api/v1/orders/{second}/dispute");
    bea.client.post(&path, &dispute).await.expect(201);
    for action in ["page_viewed", "image_enlarged"] {
        let action = json!({ "action": action, "subject": listing });
        bea.client.post("/api/v1/analytics/events", &action).await.expect(202);
    }
    let draft = draft_of(&server, &sam).await;
    server.at_rest().await;
    let payout = json!({
        "amount": 1,
        "destination": { "bank": "Vietcombank", "holder": "Sam Tester", "number": "0011 0012" },
    });
    sam.client.post("/api/v1/me/payouts", &payout).await.expect(201);
    let bea = bea.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(bea["orders"].as_array().unwrap().len(), 2, "{second}");
    let [disputed] = &bea["disputes"].as_array().unwrap()[..] else { panic!("{bea:?}") };
    assert_eq!(
        (&disputed["order_id"], &disputed["comment"]),
        (&json!(second), &dispute["comment"])
    );
    let [last, first] = &bea["actions"].as_array().unwrap()[..] else { panic!("{bea:?}") };
    assert_eq!((&first["action"], &first["subject"]), (&json!("page_viewed"), &json!(listing)));
    assert_eq!(last["action"], "image_enlarged");
    assert_eq!(bea["returns"][0]["order_id"], order.as_str());
    assert_eq!(bea["reviews_written"][0]["comment"], "Rides well.");
    assert_eq!(bea["favourites"][0]["listing_id"], listing.as_str());
    assert_eq!(bea["following"][0]["seller_id"], sam.user_id.as_str());
    assert_eq!(bea["loyalty"]["points"], 2 * crate::support::PRICE / 10_000);
    assert_eq!(bea["preferences"]["email"]["orders"], true);
    assert_eq!(bea["payouts"], json!([]));
    let sam = sam.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(sam["reviews_received"][0]["rating"], 4);
    assert_eq!((&sam["disputes"], &sam["actions"]), (&json!([]), &json!([])));
    let mut of_sam = sam["listings"].as_array().unwrap().iter();
    let draft = of_sam.find(|of| of["listing_id"] == draft.as_str()).unwrap();
    assert_eq!(draft["status"], "DRAFT");
    assert_eq!(sam["promotions"][0]["code"], "TAKE-5");
    assert_eq!(sam["payouts"][0]["destination"]["holder"], "Sam Tester");
    server.finish().await;
}

#[tokio::test]
async fn people_take_along_all_that_is_stored_of_them() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let mine = bea.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(mine["profile"]["email"], bea.email.as_str());
    assert_eq!(mine["orders"][0]["order_id"], order.id.as_str());
    assert_eq!(mine["orders"][0]["delivery_address"]["line1"], "3 Larkspur Crescent");
    assert_eq!(mine["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(mine["sessions"][0]["current"], true);
    let told = mine["notifications"].as_array().unwrap();
    let of = |template: &str| told.iter().find(|of| of["template"] == template).unwrap();
    assert!(of("payment_received")["text"].is_string(), "the words of what is read here");
    assert!(of("welcome_verification")["text"].is_null(), "a mail has a token in it");
    for secret in [&bea.password, &bea.access_token, &bea.refresh_token] {
        assert!(!mine.raw().contains(secret.as_str()));
    }
    let path = format!("/api/v1/users/{}/export", sam.user_id);
    bea.client.get(&path).await.problem(403, "forbidden");
    server.visitor().get(&path).await.problem(401, "unauthenticated");
    let theirs = server.admin().get(&path).await.expect(200);
    assert_eq!(theirs["listings"][0]["listing_id"], listing.as_str());
    assert_eq!(theirs["sales"][0]["order_id"], order.id.as_str());
    assert!(!theirs.raw().contains("Larkspur"), "where it went is the buyer's");
    assert!(theirs["orders"].as_array().unwrap().is_empty());
    let nobody = "/api/v1/users/00000000-0000-7000-8000-000000000000/export";
    server.admin().get(nobody).await.problem(404, "not_found");
    server.finish().await;
}
