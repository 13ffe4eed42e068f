//! Login, refresh and logout.

use serde_json::json;

use crate::support::Server;

#[tokio::test]
async fn a_login_opens_a_session() {
    let server = Server::start().await;
    let user_id = server.register("Ann").await.expect(201).text("user_id");
    let tokens = server.login("ANN@example.com", "Ann has a long password").await.expect(200);
    assert_eq!(
        (&tokens["token_type"], tokens["expires_in"].as_u64()),
        (&json!("Bearer"), Some(900))
    );
    assert_eq!(tokens["user_id"], user_id.as_str());
    assert_eq!(tokens.header("cache-control"), "no-store");
    let client = server.visitor().with_token(&tokens.text("access_token"));
    assert_eq!(client.get("/api/v1/users/me").await.expect(200)["user_id"], user_id.as_str());
    server.finish().await;
}

#[tokio::test]
async fn a_failed_login_does_not_say_what_was_wrong() {
    let server = Server::start().await;
    server.register("Ann").await.expect(201);
    let wrong = server.login("ann@example.com", "something else").await;
    let nobody = server.login("nobody@example.com", "Ann has a long password").await;
    let (wrong, nobody) =
        (wrong.problem(401, "invalid_credentials"), nobody.problem(401, "invalid_credentials"));
    assert_eq!(wrong["detail"], nobody["detail"]);
    assert!(wrong.header("www-authenticate").starts_with("Bearer"));
    let answer = server.visitor().post("/api/v1/auth/login", &json!({})).await;
    assert_eq!(answer.pointers(), ["/email", "/password"]);
    server.finish().await;
}

#[tokio::test]
async fn an_access_token_ends_after_its_time() {
    let server = Server::start().await;
    let mut ann = server.newcomer("Ann").await;
    server.advance_clock(14 * 60).await;
    ann.client.get("/api/v1/users/me").await.expect(200);
    server.advance_clock(2 * 60).await;
    let late = ann.client.get("/api/v1/users/me").await.problem(401, "invalid_token");
    assert!(late.header("www-authenticate").contains("error=\"invalid_token\""));
    ann.log_in_again().await;
    ann.client.get("/api/v1/users/me").await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn made_up_tokens_are_refused_everywhere() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let mut changed = ann.access_token.clone();
    let last = changed.pop().unwrap();
    changed.push(if last == 'A' { 'B' } else { 'A' });
    let alg_none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIiwiZXhwIjo5OTk5OTk5OTk5fQ.";
    for token in [changed.as_str(), "x", "", alg_none, &ann.refresh_token] {
        let client = server.visitor().with_token(token);
        client.get("/api/v1/users/me").await.problem(401, "invalid_token");
        // Also where none is needed.
        for path in ["/api/v1/events", "/api/v1/listings", "/api/v1/search?q=a"] {
            client.get(path).await.problem(401, "invalid_token");
        }
    }
    server.visitor().get("/api/v1/users/me").await.problem(401, "unauthenticated");
    let basic = server.visitor().with("authorization", "Basic YW5uOmFubg==");
    basic.get("/api/v1/users/me").await.problem(401, "invalid_token");
    server.finish().await;
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_reuse_ends_the_session() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let refresh = async |token: &str| {
        server.visitor().post("/api/v1/auth/refresh", &json!({ "refresh_token": token })).await
    };
    let second = refresh(&ann.refresh_token).await.expect(200);
    let client = server.visitor().with_token(&second.text("access_token"));
    client.get("/api/v1/users/me").await.expect(200);
    let third = refresh(&second.text("refresh_token")).await.expect(200);
    // Somebody has a token that was used: neither of the two may go on.
    refresh(&ann.refresh_token).await.problem(401, "session_revoked");
    refresh(&third.text("refresh_token")).await.problem(401, "session_revoked");
    let revoked = server.events("eventType=session.revoked").await;
    assert_eq!(revoked.len(), 1);
    for made_up in ["", "x", "AAAA.BBBB", &ann.access_token] {
        refresh(made_up).await.problem(401, "invalid_token");
    }
    // Another session of the same user is another matter.
    let tokens = server.login(&ann.email, &ann.password).await.expect(200);
    refresh(&tokens.text("refresh_token")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_refresh_token_ends_after_its_time() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    server.advance_clock(31 * 24 * 60 * 60).await;
    let body = json!({ "refresh_token": ann.refresh_token });
    let late = server.visitor().post("/api/v1/auth/refresh", &body).await;
    assert_eq!(late.status(), 401, "{late:?}");
    server.finish().await;
}

#[tokio::test]
async fn a_logout_ends_the_session() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    ann.client.post("/api/v1/auth/logout", &json!({})).await.expect(204);
    let body = json!({ "refresh_token": ann.refresh_token });
    let answer = server.visitor().post("/api/v1/auth/refresh", &body).await;
    let answer = answer.problem(401, "session_revoked");
    assert_eq!(answer.header("www-authenticate"), "Bearer error=\"invalid_token\"");
    server.visitor().post("/api/v1/auth/logout", &json!({})).await.problem(401, "unauthenticated");
    server.finish().await;
}
