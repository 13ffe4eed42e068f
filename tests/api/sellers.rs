//! Becoming a seller (S0-36 to S0-47).

use serde_json::json;

use crate::support::{Server, business, parallel};

#[tokio::test]
async fn a_user_becomes_a_seller_and_is_let_in() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let profile = server.become_seller(&ann).await.expect(200);
    assert_eq!(profile["verification_status"], "PENDING");
    let correlation = profile.header("x-correlation-id");
    let event = server.event("UserUpgradedToSeller", correlation).await;
    assert_eq!(event["data"]["user_id"], ann.user_id.as_str());
    assert_eq!(event["data"]["business_name"], "Looms and more");
    assert_eq!(event["data"]["verification_status"], "PENDING");
    let me = ann.client.get("/api/v1/users/me").await.expect(200);
    assert_eq!(me["roles"], json!(["BUYER", "SELLER"]));

    let path = format!("/api/v1/users/{}/seller-profile", ann.user_id);
    let own = ann.client.get(&path).await.expect(200);
    for (name, value) in business().as_object().unwrap() {
        assert_eq!(own[name.as_str()], *value);
    }
    let public = server.visitor().get(&path).await.expect(200);
    assert_eq!(public["business_name"], "Looms and more");
    assert_eq!(public["business_address"], "[redacted]");
    assert_eq!(public["business_phone"], "[redacted]");

    // S0-44, S0-47.
    server.at_rest().await;
    assert_eq!(server.mails(&ann.email).await[0]["template"], "seller_welcome");
    let told = server.notifications(&ann.user_id).await;
    assert!(told.iter().any(|of| of["template"] == "seller_onboarding"), "{told:?}");
    let admins = server.admin().get("/api/v1/notifications?audience=admin").await.expect(200);
    assert_eq!(admins.items().len(), 1);
    assert_eq!(admins.items()[0]["template"], "seller_pending");

    let verified = server.admin_verifies(&ann).await.expect(200);
    assert_eq!(verified["verification_status"], "VERIFIED");
    server.event("SellerVerified", verified.header("x-correlation-id")).await;
    server.admin_verifies(&ann).await.problem(409, "seller_already_verified");
    server.finish().await;
}

#[tokio::test]
async fn the_rules_of_becoming_a_seller() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    server.become_seller(&ann).await.problem(409, "email_not_verified");
    server.verify(&ann.email).await.expect(200);
    for field in ["business_name", "business_address", "business_phone"] {
        let mut body = business();
        body.as_object_mut().unwrap().remove(field);
        let answer = ann.client.post("/api/v1/users/upgrade-to-seller", &body).await;
        assert_eq!(answer.pointers(), [format!("/{field}")]);
    }
    let anonymous = server.visitor().post("/api/v1/users/upgrade-to-seller", &business()).await;
    anonymous.problem(401, "unauthenticated");
    server.become_seller(&ann).await.expect(200);
    server.become_seller(&ann).await.problem(409, "already_seller");
    server.finish().await;
}

/// S0-29: what was answered is so after a crash.
#[tokio::test]
async fn a_seller_is_one_after_kill_9_at_any_step() {
    let mut server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    server.verify(&ann.email).await.expect(200);
    server.kill_9_and_start_again().await;
    let me = ann.client.get("/api/v1/users/me").await.expect(200);
    assert_eq!((&me["email_verified"], &me["status"]), (&json!(true), &json!("ACTIVE")));
    assert_eq!(me["roles"], json!(["BUYER"]));

    server.become_seller(&ann).await.expect(200);
    server.kill_9_and_start_again().await;
    let me = ann.client.get("/api/v1/users/me").await.expect(200);
    assert_eq!((&me["status"], &me["roles"]), (&json!("ACTIVE"), &json!(["BUYER", "SELLER"])));
    let path = format!("/api/v1/users/{}/seller-profile", ann.user_id);
    let profile = ann.client.get(&path).await.expect(200);
    assert_eq!(profile["verification_status"], "PENDING");
    for (name, value) in business().as_object().unwrap() {
        assert_eq!(profile[name.as_str()], *value);
    }

    server.admin_verifies(&ann).await.expect(200);
    server.kill_9_and_start_again().await;
    let profile = ann.client.get(&path).await.expect(200);
    assert_eq!(profile["verification_status"], "VERIFIED");
    server.finish().await;
}

#[tokio::test]
async fn of_fifty_upgrades_at_once_one_counts() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    // S0-39.
    let answers = parallel(50, |_| server.become_seller(&ann)).await;
    assert_eq!(answers.iter().filter(|answer| answer.status() == 200).count(), 1);
    for answer in answers.into_iter().filter(|answer| answer.status() != 200) {
        answer.problem(409, "already_seller");
    }
    assert_eq!(server.events("eventType=user.upgraded_to_seller").await.len(), 1);
    server.finish().await;
}

#[tokio::test]
async fn only_administrators_let_sellers_in() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let path = format!("/api/v1/admin/sellers/{}/verify", ann.user_id);
    server.visitor().post(&path, &json!({})).await.problem(401, "unauthenticated");
    ann.client.post(&path, &json!({})).await.problem(403, "insufficient_scope");
    server.admin_verifies(&ann).await.problem(403, "not_a_seller");
    let reject = format!("/api/v1/admin/sellers/{}/reject", ann.user_id);
    server.become_seller(&ann).await.expect(200);
    assert_eq!(server.admin().post(&reject, &json!({})).await.pointers(), ["/reason"]);
    let rejected = server.admin().post(&reject, &json!({ "reason": "no such street" })).await;
    assert_eq!(rejected.expect(200)["verification_status"], "REJECTED");
    let nobody = "/api/v1/admin/sellers/00000000-0000-7000-8000-000000000000/verify";
    server.admin().post(nobody, &json!({})).await.problem(404, "not_found");
    server.finish().await;
}

#[tokio::test]
async fn an_admin_may_rest_on_a_version() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let applied = server.become_seller(&ann).await.expect(200);
    let path = format!("/api/v1/admin/sellers/{}/verify", ann.user_id);
    let stale = server.admin().if_match("\"1\"").post(&path, &json!({})).await;
    let stale = stale.problem(412, "version_mismatch");
    assert_eq!(format!("\"{}\"", stale["current_version"]), applied.header("etag"));
    server.admin().if_match(applied.header("etag")).post(&path, &json!({})).await.expect(200);
    server.finish().await;
}
