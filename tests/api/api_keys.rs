//! Keys that people make for their own programs.

use serde_json::{Value, json};

use crate::support::{Answer, Client, Person, Server, Start, eventually, wish};

const KEYS: &str = "/api/v1/users/me/api-keys";

async fn make(person: &Person, scopes: &[&str]) -> Answer {
    let body = json!({ "name": "the till of Bea Larkspur", "scopes": scopes });
    person.client.post(KEYS, &body).await
}

async fn listed(server: &Server, person: &Person) -> Vec<Value> {
    server.caught_up("service-tokens-view").await;
    person.client.get(KEYS).await.expect(200).items().to_vec()
}

#[tokio::test]
async fn a_program_acts_as_its_owner_within_its_scopes_until_its_key_is_taken_back() {
    let mut server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let made = make(&bea, &["orders:write"]).await.expect(201);
    let (id, text) = (made.text("token_id"), made.text("token"));
    assert_eq!((&made["state"], &made["last_used_at"]), (&json!("active"), &Value::Null));
    assert_eq!(made["user_id"], json!(bea.user_id));
    let program = server.visitor().with_token(&text);
    let bought = program.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await.expect(201);
    let order = bought.text("order_id");
    server.order_eventually(&order, "SHIPPED").await;
    assert_eq!(bea.client.get(&format!("/api/v1/orders/{order}")).await.expect(200)["id"], order);
    // To write is not to read, nor anything else.
    let path = format!("/api/v1/orders/{order}");
    let refused = program.get(&path).await.problem(403, "insufficient_scope");
    assert!(refused.text("detail").contains("orders:read"), "{refused:?}");
    program.get("/api/v1/users/me").await.problem(403, "insufficient_scope");
    // What anybody sees, it sees as anybody.
    let seen = program.get(&format!("/api/v1/users/{}", bea.user_id)).await.expect(200);
    assert!(!seen.raw().contains("bea@example.com"));
    program.get(&format!("/api/v1/listings/{listing}")).await.expect(200);
    // Who did it, and with what.
    server.at_rest().await;
    let placed = server.events(&format!("eventType=order.placed&aggregateId={order}")).await;
    let metadata = &placed[0]["metadata"];
    assert_eq!((&metadata["actor_id"], &metadata["credential"]), (&json!(bea.user_id), &json!(id)));
    let by_hand = server.events("eventType=listing.created").await;
    assert_eq!(by_hand[0]["metadata"]["credential"], Value::Null);

    let [key] = &listed(&server, &bea).await[..] else { panic!("one key") };
    assert_eq!((&key["name"], &key["token"]), (&json!("the till of Bea Larkspur"), &Value::Null));
    assert!(key["last_used_at"].is_string(), "{key}");
    assert!(listed(&server, &sam).await.is_empty());
    let all = server.admin().get("/api/v1/admin/service-tokens").await.expect(200);
    assert_eq!(
        (&all.items()[0]["name"], &all.items()[0]["token_id"]),
        (&json!("[redacted]"), &json!(id))
    );
    let export = bea.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(export["api_keys"][0]["token_id"], json!(id));
    for secret in [text.as_str(), &text[20..]] {
        assert!(!all.raw().contains(secret) && !export.raw().contains(secret));
        assert!(server.log().iter().all(|line| !line.contains(secret)), "in the log");
    }
    // An hour of use is one event.
    assert_eq!(server.events("eventType=service_token.used").await.len(), 1);

    let path = format!("{KEYS}/{id}");
    sam.client.delete(&path).await.problem(404, "not_found");
    server.kill_9_and_start_again().await;
    bea.client.delete(&path).await.expect(204);
    program
        .post("/api/v1/orders", &wish(&listing, 1, "sandbox"))
        .await
        .problem(401, "invalid_token");
    server.kill_9_and_start_again().await;
    program.get(&format!("/api/v1/listings/{listing}")).await.problem(401, "invalid_token");
    assert_eq!(listed(&server, &bea).await[0]["state"], "revoked");
    server.at_rest().await;
    server.finish().await;
}

#[tokio::test]
async fn what_a_key_may_be_is_said_where_it_is_made() {
    let server = Server::start().await;
    let bea = server.buyer("Bea").await;
    for (scopes, pointer) in [
        (json!([]), "/scopes"),
        (json!(["orders:read", "orders"]), "/scopes/1"),
        (json!(["publisher"]), "/scopes/0"),
        (json!(["events:read:order.*"]), "/scopes/0"),
        (json!(["admin:read"]), "/scopes/0"),
    ] {
        let refused = bea.client.post(KEYS, &json!({ "name": "x", "scopes": scopes })).await;
        assert_eq!(refused.problem(422, "invalid").pointers(), [pointer], "{scopes}");
    }
    let long = json!({ "name": "x", "scopes": ["orders:read"], "expires_in": 31_536_001 });
    assert_eq!(bea.client.post(KEYS, &long).await.pointers(), ["/expires_in"]);
    let program = bea.program(&["orders:read", "profile:read", "profile:write"]).await;
    for (path, body) in [
        (KEYS, json!({ "name": "x", "scopes": ["orders:read"] })),
        (
            "/api/v1/users/me/password",
            json!({ "current": bea.password, "new": "another one, long" }),
        ),
        ("/api/v1/auth/logout-all", json!({})),
    ] {
        program.post(path, &body).await.problem(403, "insufficient_scope");
    }
    // The same key again is the same key.
    let wish = json!({ "name": "x", "scopes": ["orders:read"] });
    let once = bea.client.keyed("a-key").post(KEYS, &wish).await.expect(201);
    let again = bea.client.keyed("a-key").post(KEYS, &wish).await.expect(201);
    assert_eq!(once.text("token"), again.text("token"));
    assert_eq!(listed(&server, &bea).await.len(), 2);
    server.finish().await;
}

/// S1-161: to see what is personal in events a program needs a scope of its own.
#[tokio::test]
async fn an_administrators_program_sees_what_is_personal_only_if_its_key_says_so() {
    let mut server = Server::start().await;
    let boss = server.administrator("ada").await;
    let ann = server.newcomer("Ann").await;
    server.caught_up("events-index").await;
    let without = boss.program(&["admin:read"]).await;
    let with = boss.program(&["admin:read", "pii:read"]).await;
    let events = format!("/api/v1/events?eventType=user.registered&aggregateId={}", ann.user_id);
    let state = format!("/api/v1/admin/aggregates/user/{}", ann.user_id);
    for (client, email) in [
        (&without, "[redacted]"),
        (&with, ann.email.as_str()),
        (&boss.client, ann.email.as_str()),
        (&server.admin(), ann.email.as_str()),
    ] {
        let page = client.get(&events).await.expect(200);
        let [event] = page.items() else { panic!("{page:?}") };
        assert_eq!(event["data"]["email"], email);
        let one = format!("/api/v1/events/{}", event["event_id"].as_str().unwrap());
        assert_eq!(client.get(&one).await.expect(200)["data"]["email"], email);
        for path in [&state, &format!("{state}/history")] {
            let shown = client.get(path).await.expect(200);
            let (clear, hidden) =
                (shown.raw().contains(&ann.email), shown.raw().contains("[redacted]"));
            assert_eq!((clear, hidden), (email == ann.email, email != ann.email), "{path}");
        }
    }
    let alone = boss.program(&["pii:read"]).await;
    alone.get(&events).await.problem(403, "insufficient_scope");
    assert_eq!(make(&ann, &["profile:read", "pii:read"]).await.pointers(), ["/scopes/1"]);
    server.finish().await;
}

/// Asserts that a program is out.
async fn out(program: &Client) {
    program.get("/api/v1/me/orders").await.problem(401, "invalid_token");
}

/// Asserts that the program of somebody who is suspended is out: the person is, and the key says so of
/// itself a moment later.
async fn locked_out(program: &Client) {
    let refused = program.get("/api/v1/me/orders").await;
    let code = refused["code"].as_str().unwrap_or_default();
    assert!(["account_suspended", "invalid_token"].contains(&code), "{refused:?}");
}

#[tokio::test]
async fn what_ends_logins_ends_keys() {
    let mut server = Start::default().start().await;
    let (mut ann, bea, cid) =
        (server.buyer("Ann").await, server.buyer("Bea").await, server.buyer("Cid").await);
    let programs = async |person: &Person| person.program(&["orders:read"]).await;
    let (of_ann, of_bea, of_cid) =
        (programs(&ann).await, programs(&bea).await, programs(&cid).await);
    let other = bea.program(&["profile:read"]).await;
    for program in [&of_ann, &of_bea, &of_cid] {
        program.get("/api/v1/me/orders").await.expect(200);
    }
    ann.client.post("/api/v1/auth/logout-all", &json!({})).await.expect(204);
    out(&of_ann).await;
    let changed = json!({ "current": bea.password, "new": "another one, long enough" });
    bea.client.post("/api/v1/users/me/password", &changed).await.expect(204);
    out(&of_bea).await;
    let path = format!("/api/v1/admin/users/{}/suspend", cid.user_id);
    server.admin().post(&path, &json!({ "reason": "complaints" })).await.expect(200);
    locked_out(&of_cid).await;
    server.kill_9_and_start_again().await;
    out(&of_ann).await;
    out(&of_bea).await;
    locked_out(&of_cid).await;
    let path = format!("/api/v1/admin/users/{}/reinstate", cid.user_id);
    server.admin().post(&path, &json!({})).await.expect(200);
    out(&of_cid).await;
    // The keys say so themselves.
    server.at_rest().await;
    assert_eq!(server.events("eventType=service_token.revoked").await.len(), 4);
    ann.log_in_again().await;
    assert_eq!(listed(&server, &ann).await[0]["state"], "revoked");
    // Time ends them too, and so does being forgotten, which takes along what they were called.
    let body = json!({ "name": "short", "scopes": ["orders:read"], "expires_in": 60 });
    let short = ann.client.post(KEYS, &body).await.expect(201).text("token");
    let of_ann = programs(&ann).await;
    server.advance_clock(61).await;
    out(&server.visitor().with_token(&short)).await;
    of_ann.get("/api/v1/me/orders").await.expect(200);
    let erase = json!({ "password": ann.password }).to_string().into_bytes();
    ann.client.send(reqwest::Method::DELETE, "/api/v1/users/me", Some(erase)).await.expect(204);
    out(&of_ann).await;
    out(&other).await;
    server.at_rest().await;
    let issued = server.events("eventType=service_token.issued").await;
    let of = |person: &Person| {
        let of = issued.iter().filter(|of| of["data"]["user_id"] == json!(person.user_id));
        of.map(|of| of["data"]["label"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of(&ann), ["[erased]", "[erased]", "[erased]"]);
    assert_eq!(of(&cid), ["a program"]);
    server.finish().await;
}

/// A key acts with what its owner is now.
#[tokio::test]
async fn an_owner_who_becomes_a_seller_is_one_in_programs_too() {
    let server = Server::start().await;
    let rob = server.buyer("Rob").await;
    let program = rob.program(&["listings:write"]).await;
    let offer = server.offer(1).await;
    program.post("/api/v1/listings", &offer).await.problem(403, "forbidden");
    server.become_seller(&rob).await.expect(200);
    server.admin_verifies(&rob).await.expect(200);
    let listing = program.post("/api/v1/listings", &offer).await.expect(201).text("listing_id");
    let seller = eventually("the listing", || async {
        let answer = server.visitor().get(&format!("/api/v1/listings/{listing}")).await;
        (answer.status() == 200).then(|| answer.text("seller_id"))
    })
    .await;
    assert_eq!(seller, rob.user_id);
    server.finish().await;
}
