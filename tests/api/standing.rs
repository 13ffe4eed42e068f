//! Who is locked out, and let in again.

use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Person, Server, Start, wish};

async fn suspend(server: &Server, person: &Person) -> Answer {
    let path = format!("/api/v1/admin/users/{}/suspend", person.user_id);
    server.admin().post(&path, &json!({ "reason": "too many complaints" })).await
}

async fn reinstate(server: &Server, person: &Person) -> Answer {
    let path = format!("/api/v1/admin/users/{}/reinstate", person.user_id);
    server.admin().post(&path, &json!({})).await
}

/// The words of the one mail of a template that somebody got.
async fn mailed(server: &Server, person: &Person, template: &str) -> String {
    let mails = server.mails(&person.email).await;
    let mut of = mails.iter().filter(|mail| mail["template"] == template);
    let mail = of.next().unwrap_or_else(|| panic!("no {template} in {mails:#?}"));
    assert!(of.next().is_none(), "several {template}");
    mail["text"].as_str().unwrap().to_owned()
}

with_one_and_three_partitions!(whoever_is_suspended_is_out_at_once_and_comes_back_as_before);

async fn whoever_is_suspended_is_out_at_once_and_comes_back_as_before(partitions: u16) {
    let mut server = Start::default().partitions(partitions).start().await;
    let (mut sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    let path = format!("/api/v1/admin/users/{}/suspend", sam.user_id);
    bea.client.post(&path, &json!({ "reason": "x" })).await.problem(403, "insufficient_scope");
    assert_eq!(server.admin().post(&path, &json!({})).await.pointers(), ["/reason"]);
    let nobody = "/api/v1/admin/users/00000000-0000-7000-8000-000000000000/suspend";
    server.admin().post(nobody, &json!({ "reason": "x" })).await.problem(404, "not_found");

    let done = suspend(&server, &sam).await.expect(200);
    assert_eq!(done["status"], "SUSPENDED");
    // From the next request on, wherever it goes.
    for path in ["/api/v1/users/me", "/api/v1/me/sales", "/api/v1/me/listings"] {
        sam.client.get(path).await.problem(403, "account_suspended");
    }
    let offer = server.offer(1).await;
    sam.client.post("/api/v1/listings", &offer).await.problem(403, "account_suspended");
    let refresh = json!({ "refresh_token": sam.refresh_token });
    let refreshed = server.visitor().post("/api/v1/auth/refresh", &refresh).await;
    refreshed.problem(403, "account_suspended");
    server.login(&sam.email, &sam.password).await.problem(403, "account_suspended");
    server.login(&sam.email, "not his").await.problem(401, "invalid_credentials");
    let bought = bea.client.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await;
    bought.problem(409, "listing_unavailable");
    bea.client.get(&format!("/api/v1/orders/{}", order.id)).await.expect(200);
    server.kill_9_and_start_again().await;
    sam.client.get("/api/v1/users/me").await.problem(403, "account_suspended");
    suspend(&server, &sam).await.expect(200);
    server.at_rest().await;
    let ended = server.events("eventType=session.revoked").await;
    assert_eq!((ended.len(), &ended[0]["data"]["reason"]), (1, &json!("suspended")));
    let told = mailed(&server, &sam, "account_suspended").await;
    assert!(told.contains("too many complaints"), "{told}");

    let back = reinstate(&server, &sam).await.expect(200);
    assert_eq!(back["status"], "ACTIVE");
    // The logins of before are over.
    sam.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
    let refreshed = server.visitor().post("/api/v1/auth/refresh", &refresh).await;
    assert_eq!(refreshed.status(), 401, "{refreshed:?}");
    sam.log_in_again().await;
    sam.client.get("/api/v1/users/me").await.expect(200);
    bea.client.post("/api/v1/orders", &wish(&listing, 1, "sandbox")).await.expect(201);
    server.at_rest().await;
    mailed(&server, &sam, "account_reinstated").await;
    server.finish().await;
}

#[tokio::test]
async fn administrators_find_people() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let (ann, rob) = (server.newcomer("Ann").await, server.buyer("Rob").await);
    server.become_seller(&rob).await.expect(200);
    suspend(&server, &ann).await.expect(200);
    server.caught_up("users-view").await;
    let find = async |query: &str| -> Vec<Value> {
        let path = format!("/api/v1/admin/users?{query}");
        server.admin().get(&path).await.expect(200).items().to_vec()
    };
    let ids = |found: &[Value]| -> Vec<String> {
        found.iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect()
    };
    let newest_first = [&rob, &ann, &bea, &sam].map(|person| person.user_id.clone());
    assert_eq!(ids(&find("").await), newest_first);
    assert_eq!(ids(&find("status=suspended").await), std::slice::from_ref(&ann.user_id));
    assert_eq!(ids(&find("role=SELLER").await), [rob.user_id.clone(), sam.user_id.clone()]);
    assert_eq!(
        ids(&find("role=SELLER&sellerStatus=PENDING").await),
        std::slice::from_ref(&rob.user_id)
    );
    let found = find("q=BEA%40example.com").await;
    assert_eq!(ids(&found), std::slice::from_ref(&bea.user_id));
    assert_eq!(
        (&found[0]["email"], &found[0]["status"]),
        (&json!("bea@example.com"), &json!("ACTIVE"))
    );
    assert_eq!(ids(&find(&format!("q={}", sam.user_id)).await), std::slice::from_ref(&sam.user_id));
    for nobody in ["q=nobody@example.com", "q=Bea", "q=bea@example.com&role=SELLER", "role=ADMIN"] {
        assert!(find(nobody).await.is_empty(), "{nobody}");
    }
    let wrong = server.admin().get("/api/v1/admin/users?status=gone").await;
    wrong.problem(400, "invalid_parameter");
    let first = server.admin().get("/api/v1/admin/users?limit=3").await.expect(200);
    let cursor = first.text("next_cursor");
    assert_eq!(ids(&find(&format!("limit=3&cursor={cursor}")).await), newest_first[3..]);
    sam.client.get("/api/v1/admin/users").await.problem(403, "insufficient_scope");
    server.finish().await;
}
