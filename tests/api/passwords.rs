//! Passwords and the logins that rest on them.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Answer, Person, Server, Start, eventually};

const NEW: &str = "a new and longer password";

async fn forgot(server: &Server, email: &str) -> Answer {
    server.visitor().post("/api/v1/auth/password/forgot", &json!({ "email": email })).await
}

async fn reset(server: &Server, token: &str, password: &str) -> Answer {
    let body = json!({ "token": token, "password": password });
    server.visitor().post("/api/v1/auth/password/reset", &body).await
}

/// The token in the newest mail of a template, once there are so many.
async fn mailed(server: &Server, email: &str, template: &str, count: usize) -> String {
    eventually(&format!("{count} {template} to {email}"), || async {
        let mails = server.mails(email).await;
        let of: Vec<_> = mails.iter().filter(|mail| mail["template"] == template).collect();
        let text = of.first().filter(|_| of.len() == count)?["text"].as_str()?;
        let part = |letter: char| !(letter.is_ascii_alphanumeric() || "-_".contains(letter));
        text.split(part).find(|word| word.len() == 64).map(str::to_owned)
    })
    .await
}

async fn refresh(server: &Server, token: &str) -> Answer {
    server.visitor().post("/api/v1/auth/refresh", &json!({ "refresh_token": token })).await
}

/// Logs somebody in once more.
async fn elsewhere(person: &Person) -> Person {
    let mut other = person.clone();
    other.log_in_again().await;
    other
}

#[tokio::test]
async fn a_forgotten_password_is_replaced_with_a_mailed_token() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let other = elsewhere(&ann).await;
    // Whether there is such an address is told to nobody.
    let nobody = forgot(&server, "nobody@example.com").await.expect(202);
    let somebody = forgot(&server, "ANN@example.com").await.expect(202);
    assert_eq!((nobody.raw(), somebody.raw()), ("", ""));
    assert_eq!(forgot(&server, "ann").await.pointers(), ["/email"]);
    let token = mailed(&server, &ann.email, "password_reset", 1).await;
    // One a minute.
    forgot(&server, &ann.email).await.expect(202);
    server.at_rest().await;
    assert_eq!(mailed(&server, &ann.email, "password_reset", 1).await, token);

    assert_eq!(reset(&server, &token, "short").await.pointers(), ["/password"]);
    let verify = json!({ "verification_token": token });
    let verified = server.visitor().post("/api/v1/users/verify-email", &verify).await;
    verified.problem(404, "token_unknown");
    for unknown in ["", "x", &"A".repeat(64), &token[..63]] {
        reset(&server, unknown, NEW).await.problem(404, "token_unknown");
    }
    reset(&server, &token, NEW).await.expect(204);
    reset(&server, &token, NEW).await.problem(404, "token_unknown");
    for person in [&ann, &other] {
        person.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
        assert_eq!(refresh(&server, &person.refresh_token).await.status(), 401);
    }
    server.login(&ann.email, &ann.password).await.problem(401, "invalid_credentials");
    server.login(&ann.email, NEW).await.expect(200);
    server.at_rest().await;
    assert_eq!(server.events("eventType=session.revoked").await.len(), 2);
    assert_eq!(server.mails(&ann.email).await[0]["template"], "password_changed");
    for event in server.events("").await {
        assert!(!event.to_string().contains(&token), "the token is in {event}");
    }
    for line in server.log() {
        assert!(!line.contains(&token) && !line.contains(NEW), "{line}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_reset_token_is_over_after_an_hour_and_a_keyed_reset_can_be_repeated() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    forgot(&server, &ann.email).await.expect(202);
    let late = mailed(&server, &ann.email, "password_reset", 1).await;
    server.advance_clock(60 * 60).await;
    reset(&server, &late, NEW).await.problem(410, "token_expired");
    forgot(&server, &ann.email).await.expect(202);
    let token = mailed(&server, &ann.email, "password_reset", 2).await;
    reset(&server, &late, NEW).await.problem(404, "token_unknown");
    let body = json!({ "token": token, "password": NEW });
    let client = server.visitor().keyed("reset-1");
    client.post("/api/v1/auth/password/reset", &body).await.expect(204);
    let again = client.post("/api/v1/auth/password/reset", &body).await.expect(204);
    assert_eq!(again.header("idempotent-replayed"), "true");
    server.login(&ann.email, NEW).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_changed_password_ends_the_other_sessions() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let other = elsewhere(&ann).await;
    let change = async |current: &str, new: &str| {
        let body = json!({ "current": current, "new": new });
        ann.client.post("/api/v1/users/me/password", &body).await
    };
    change("not hers", NEW).await.problem(403, "wrong_password");
    assert_eq!(change(&ann.password, "short").await.pointers(), ["/new"]);
    change(&ann.password, NEW).await.expect(204);
    ann.client.get("/api/v1/users/me").await.expect(200);
    other.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
    assert_eq!(refresh(&server, &other.refresh_token).await.status(), 401);
    // The session that asked goes on, and so does what it is refreshed to.
    let tokens = refresh(&server, &ann.refresh_token).await.expect(200);
    let mine = server.visitor().with_token(&tokens.text("access_token"));
    mine.get("/api/v1/users/me").await.expect(200);
    server.login(&ann.email, &ann.password).await.problem(401, "invalid_credentials");
    server.login(&ann.email, NEW).await.expect(200);
    server.at_rest().await;
    let revoked = server.events("eventType=session.revoked").await;
    assert_eq!((revoked.len(), &revoked[0]["data"]["reason"]), (1, &json!("password_changed")));
    server.finish().await;
}

#[tokio::test]
async fn people_see_where_they_are_logged_in_and_end_it() {
    let mut server = Server::start().await;
    let (ann, bob) = (server.newcomer("Ann").await, server.newcomer("Bob").await);
    let other = elsewhere(&ann).await;
    server.caught_up("sessions-view").await;
    let list = async |person: &Person| -> Vec<Value> {
        person.client.get("/api/v1/users/me/sessions").await.expect(200).items().to_vec()
    };
    let sessions = list(&ann).await;
    assert_eq!(sessions.len(), 2);
    assert_eq!((&sessions[0]["current"], &sessions[1]["current"]), (&json!(false), &json!(true)));
    let told = serde_json::to_string(&sessions).unwrap();
    assert!(![&ann.refresh_token, &ann.access_token].iter().any(|token| told.contains(*token)));
    let path = format!("/api/v1/users/me/sessions/{}", sessions[0]["session_id"].as_str().unwrap());
    bob.client.delete(&path).await.problem(404, "not_found");
    let ended = ann.client.delete(&path).await.expect(204);
    other.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
    assert_eq!(refresh(&server, &other.refresh_token).await.status(), 401);
    ann.client.delete(&path).await.expect(204);
    let path = format!("/api/v1/users/me/sessions?min_position={}", ended.header("souk-position"));
    assert_eq!(ann.client.get(&path).await.expect(200).items().len(), 1);

    let third = elsewhere(&ann).await;
    // It is known after a crash too.
    server.kill_9_and_start_again().await;
    other.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
    third.client.get("/api/v1/users/me").await.expect(200);
    third.client.post("/api/v1/auth/logout-all", &json!({})).await.expect(204);
    for person in [&ann, &third] {
        person.client.get("/api/v1/users/me").await.problem(401, "session_revoked");
        assert_eq!(refresh(&server, &person.refresh_token).await.status(), 401);
    }
    bob.client.get("/api/v1/users/me").await.expect(200);
    let last = elsewhere(&ann).await;
    server.caught_up("sessions-view").await;
    assert_eq!(list(&last).await.len(), 1);
    server.at_rest().await;
    // Bob's, and the last of Ann's.
    let open = server.events("eventType=session.started").await.len()
        - server.events("eventType=session.revoked").await.len();
    assert_eq!(open, 2);
    server.finish().await;
}

#[tokio::test]
async fn wrong_passwords_make_a_pause_that_ends() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    for _ in 0..10 {
        server.login(&ann.email, "not hers").await.problem(401, "invalid_credentials");
    }
    let refused = server.login(&ann.email, &ann.password).await.problem(429, "too_many_attempts");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=91).contains(&wait), "{refused:?}");
    // Nobody else is kept waiting, and whoever is in stays in.
    server.newcomer("Bob").await;
    ann.client.get("/api/v1/users/me").await.expect(200);
    let body = json!({ "password": ann.password }).to_string().into_bytes();
    let erase = ann.client.send(Method::DELETE, "/api/v1/users/me", Some(body)).await;
    erase.problem(429, "too_many_attempts");
    server.advance_clock(wait).await;
    server.login(&ann.email, &ann.password).await.expect(200);
    // The right one begins anew.
    for _ in 0..9 {
        server.login(&ann.email, "not hers").await.problem(401, "invalid_credentials");
    }
    server.login(&ann.email, &ann.password).await.expect(200);
    // An address that nobody has is refused in the same way, and so tells nothing.
    for _ in 0..10 {
        server.login("nobody@example.com", "x").await.problem(401, "invalid_credentials");
    }
    server.login("nobody@example.com", "x").await.problem(429, "too_many_attempts");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wrong_passwords_at_once_get_no_further_than_one_after_the_other() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let body = json!({ "email": ann.email, "password": "not hers" });
    let mut logins = JoinSet::new();
    for _ in 0..40 {
        let (client, body) = (server.visitor(), body.clone());
        logins.spawn(async move { client.post("/api/v1/auth/login", &body).await });
    }
    let mut wrong = 0;
    for answer in logins.join_all().await {
        match answer.status() {
            401 => {
                answer.problem(401, "invalid_credentials");
                wrong += 1;
            }
            429 => drop(answer.problem(429, "too_many_attempts")),
            _ => drop(answer.problem(503, "too_many_logins")),
        }
    }
    assert!((1..=10).contains(&wrong), "{wrong} were looked at");
    server.finish().await;
}

#[tokio::test]
async fn a_reset_lets_the_owner_in_whatever_others_have_tried() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    for _ in 0..10 {
        server.login(&ann.email, "not hers").await.problem(401, "invalid_credentials");
    }
    server.login(&ann.email, &ann.password).await.problem(429, "too_many_attempts");
    forgot(&server, &ann.email).await.expect(202);
    let token = mailed(&server, &ann.email, "password_reset", 1).await;
    reset(&server, &token, NEW).await.expect(204);
    server.login(&ann.email, NEW).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn the_mail_that_proves_an_address_can_be_sent_again() {
    let server = Server::start().await;
    let ann = server.newcomer("Ann").await;
    let resend = async |email: &str| {
        let body = json!({ "email": email });
        server.visitor().post("/api/v1/users/verify-email/resend", &body).await.expect(202)
    };
    let first = server.mailed_token(&ann.email).await;
    resend(&ann.email).await;
    server.at_rest().await;
    assert_eq!(mailed(&server, &ann.email, "welcome_verification", 1).await, first);
    server.advance_clock(61).await;
    resend(&ann.email).await;
    resend("nobody@example.com").await;
    let second = mailed(&server, &ann.email, "welcome_verification", 2).await;
    let verify = async |token: &str| {
        let body = json!({ "verification_token": token });
        server.visitor().post("/api/v1/users/verify-email", &body).await
    };
    verify(&first).await.problem(404, "token_unknown");
    verify(&second).await.expect(200);
    server.advance_clock(61).await;
    resend(&ann.email).await;
    server.at_rest().await;
    assert_eq!(mailed(&server, &ann.email, "welcome_verification", 2).await, second);
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_cannot_store_says_nothing_of_who_there_is() {
    let server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let ann = server.newcomer("Ann").await;
    server.fault("journal", "fail", json!({})).await;
    forgot(&server, "nobody@example.com").await.expect(202);
    forgot(&server, &ann.email).await.expect(202);
}
