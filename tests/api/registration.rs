//! Registering, and proving the address (S0-9 to S0-33, S3-14 to S3-21).

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::support::{Server, eventually, parallel, somebody};

#[tokio::test]
async fn whoever_registers_is_there_at_once_and_is_told_by_mail() {
    let server = Server::start().await;
    let answer = server.register("Ann").await.expect(201);
    let user_id = answer.text("user_id");
    assert_eq!(answer.header("location"), format!("/api/v1/users/{user_id}"));
    assert_eq!(answer["status"], "PENDING");
    assert_eq!(answer["email_verified"], false);
    // S0-17: the token goes by mail only.
    assert!(answer["verification_token"].is_null() && !answer.raw().contains("Ann has a long"));

    let user = server.admin().get(&format!("/api/v1/users/{user_id}")).await.expect(200);
    assert_eq!((user.header("etag"), &user["version"]), ("\"1\"", &json!(1)));
    for (name, value) in [("email", "ann@example.com"), ("first_name", "Ann")] {
        assert_eq!(user[name], value);
    }
    uuid::Uuid::parse_str(&user_id).unwrap();

    // S0-16, S0-19, S0-20, S0-22, S3-20.
    let correlation = answer.header("x-correlation-id");
    let registered = server.event("UserRegistered", correlation).await;
    assert_eq!(registered["data"]["user_id"], user_id.as_str());
    assert_eq!(registered["data"]["email"], "ann@example.com");
    assert_eq!(registered["data"]["first_name"], "Ann");
    assert_eq!(registered["causation_id"], answer.header("x-request-id"));
    assert_eq!(server.event("user.created", correlation).await, registered);
    assert_eq!(server.event("customer.registered", correlation).await, registered);
    let token = server.mailed_token("ann@example.com").await;
    assert!(!registered.to_string().contains(&token), "the token is in the event");
    let sent = server.event("EmailSent", correlation).await;
    assert_eq!(sent["data"]["template"], "welcome_verification");
    // The mail is because of the wish for it, and that because of the registration, which it names.
    let wished = server.event("notification.requested", correlation).await;
    assert_eq!(sent["causation_id"], wished["event_id"]);
    assert_eq!(wished["causation_id"], registered["event_id"]);
    assert_eq!(sent["data"]["cause_event_id"], registered["event_id"]);
    assert!(sent["data"]["notification_id"].is_string() && sent["data"]["to_hash"].is_string());
    assert!(!sent.to_string().contains("ann@example.com"));
    server.at_rest().await;
    let told = server.notifications(&user_id).await;
    assert_eq!(
        (told.len(), &told[0]["type"], &told[0]["status"]),
        (1, &json!("email"), &json!("sent"))
    );
    assert_eq!(told[0]["event_id"], registered["event_id"]);
    assert_eq!(server.mails("ann@example.com").await.len(), 1);
    server.finish().await;
}

#[tokio::test]
async fn every_missing_or_wrong_field_is_named() {
    let server = Server::start().await;
    let register =
        async |body| server.visitor().post("/api/v1/users/register", &body).await.pointers();
    for field in ["email", "password", "first_name", "last_name"] {
        let mut body = somebody("Ann");
        body.as_object_mut().unwrap().remove(field);
        assert_eq!(register(body).await, [format!("/{field}")]);
    }
    assert_eq!(register(json!({})).await.len(), 4);
    let mut body = somebody("Ann");
    body["password"] = json!("short");
    body["first_name"] = json!(7);
    assert_eq!(register(body).await, ["/password", "/first_name"]);
    server.finish().await;
}

#[tokio::test]
async fn what_is_no_address_is_refused() {
    let server = Server::start().await;
    // S3-15.
    let bad = [
        "",
        " ",
        "ann",
        "ann@",
        "@example.com",
        "ann@example",
        "ann example.com",
        "ann@@example.com",
        "a nn@example.com",
        "ann@exa mple.com",
        "ann@.com",
        "ann@example.",
        "ann@-example.com",
        "ann@example-.com",
        ".ann@example.com",
        "ann.@example.com",
        "a..nn@example.com",
        "ann@example..com",
        "ann@example.c",
        "ann@example.123",
        "ann@exam_ple.com",
        "ann,@example.com",
    ];
    for email in bad {
        let mut body = somebody("Ann");
        body["email"] = json!(email);
        let answer = server.visitor().post("/api/v1/users/register", &body).await;
        let code = answer["errors"][0]["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.pointers(), ["/email"], "{email:?}");
        assert!(["invalid_email", "required"].contains(&code.as_str()), "{email:?}: {code}");
    }
    server.finish().await;
}

#[tokio::test]
async fn an_address_belongs_to_one_user() {
    let server = Server::start().await;
    server.register("Ann").await.expect(201);
    let mut again = somebody("Bob");
    again["email"] = json!(" ANN@Example.COM ");
    server.visitor().post("/api/v1/users/register", &again).await.problem(409, "email_taken");
    server.finish().await;
}

#[tokio::test]
async fn of_a_hundred_at_once_one_gets_the_address() {
    let server = Server::start().await;
    // S0-11.
    let answers = parallel(100, |_| server.register("Ann")).await;
    let made = answers.iter().filter(|answer| answer.status() == 201).count();
    assert_eq!(made, 1);
    for answer in answers {
        match answer.status() {
            201 => {}
            // More passwords at once than the service checks: nothing happened, and one can retry.
            503 => assert!(!answer.header("retry-after").is_empty()),
            _ => {
                answer.problem(409, "email_taken");
            }
        }
    }
    server.at_rest().await;
    assert_eq!(server.events("eventType=user.registered").await.len(), 1);
    server.finish().await;
}

#[tokio::test]
async fn a_repeated_registration_gets_its_first_answer() {
    let server = Server::start().await;
    let client = server.visitor().keyed("register-1");
    let first = client.post("/api/v1/users/register", &somebody("Ann")).await.expect(201);
    assert_eq!(first.header("idempotent-replayed"), "");
    let again = client.post("/api/v1/users/register", &somebody("Ann")).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json(), first.json());
    assert_eq!(again.header("location"), first.header("location"));
    let other = client.post("/api/v1/users/register", &somebody("Bob")).await;
    other.problem(422, "idempotency_key_reused");
    server.at_rest().await;
    assert_eq!(server.events("eventType=user.registered").await.len(), 1);
    assert_eq!(server.events("eventType=email_claim.claimed").await.len(), 1);
    // Whoever was refused has taken no address: Bob can still come, without the key.
    server.register("Bob").await.expect(201);
    assert_eq!(server.mails("ann@example.com").await.len(), 1);
    server.finish().await;
}

/// Two requests with one key that come at the same time: one is a user, the other has no address.
#[tokio::test]
async fn a_key_that_two_requests_race_with_takes_one_address() {
    let server = Server::start().await;
    for round in 0..8 {
        let names = [format!("Ann{round}"), format!("Bob{round}")];
        let client = server.visitor().keyed(&format!("race-{round}"));
        let bodies = names.each_ref().map(|name| somebody(name));
        let ask = |body| client.post("/api/v1/users/register", body);
        let (one, two) = tokio::join!(ask(&bodies[0]), ask(&bodies[1]));
        let lost = match (one.status(), two.status()) {
            (201, 422) => &names[1],
            (422, 201) => &names[0],
            statuses => panic!("{statuses:?}"),
        };
        // At the latest when the claim that was made for nobody has lapsed.
        server.advance_clock(61).await;
        eventually("the address to be free", || async {
            (server.register(lost).await.status() == 201).then_some(())
        })
        .await;
    }
    server.finish().await;
}

/// The address of somebody who was erased is not taken again by a repeat of the registration.
#[tokio::test]
async fn a_repeat_after_an_erasure_takes_no_address() {
    let server = Server::start().await;
    let client = server.visitor().keyed("register-1");
    let user_id =
        client.post("/api/v1/users/register", &somebody("Ann")).await.expect(201).text("user_id");
    let reason = json!({ "reason": "asked for it by letter" }).to_string();
    let path = format!("/api/v1/users/{user_id}");
    server.admin().send(Method::DELETE, &path, Some(reason.into())).await.expect(204);
    server.at_rest().await;
    client.post("/api/v1/users/register", &somebody("Ann")).await;
    server.at_rest().await;
    server.register("Ann").await.expect(201);
    server.finish().await;
}

#[tokio::test]
async fn the_mailed_token_proves_the_address_once() {
    let server = Server::start().await;
    let user_id = server.register("Ann").await.expect(201).text("user_id");
    let answer = server.verify("ann@example.com").await.expect(200);
    assert_eq!((&answer["email_verified"], &answer["status"]), (&json!(true), &json!("ACTIVE")));
    // S0-31, S0-33.
    let event = server.event("UserEmailVerified", answer.header("x-correlation-id")).await;
    assert_eq!(event["data"]["user_id"], user_id.as_str());
    assert_eq!(event["data"]["email"], "ann@example.com");
    assert_eq!(event["data"]["verified_at"], answer["verified_at"]);
    let correlation = answer.header("x-correlation-id");
    assert_eq!(server.event("customer.verified", correlation).await, event);
    let user = server.admin().get(&format!("/api/v1/users/{user_id}")).await.expect(200);
    assert_eq!((&user["email_verified"], &user["status"]), (&json!(true), &json!("ACTIVE")));
    server.at_rest().await;
    let mails = server.mails("ann@example.com").await;
    assert_eq!((mails.len(), &mails[0]["template"]), (2, &json!("email_verified")));
    server.verify("ann@example.com").await.problem(409, "already_verified");
    server.finish().await;
}

#[tokio::test]
async fn other_tokens_prove_nothing() {
    let server = Server::start().await;
    server.register("Ann").await.expect(201);
    let verify = async |body| server.visitor().post("/api/v1/users/verify-email", &body).await;
    assert_eq!(verify(json!({})).await.pointers(), ["/verification_token"]);
    let token = server.mailed_token("ann@example.com").await;
    // S0-14: far more than 128 bits, and no other user's (S0-27).
    assert_eq!(token.len(), 64);
    let (first, rest) = token.split_at(63);
    let other = if rest == "A" { "B" } else { "A" };
    for unknown in ["", "x", &"A".repeat(64), &format!("{first}{other}")] {
        let answer = verify(json!({ "verification_token": unknown })).await;
        answer.problem(404, "token_unknown");
    }
    server.register("Bob").await.expect(201);
    server.verify("bob@example.com").await.expect(200);
    let login = server.login("ann@example.com", "Ann has a long password").await.expect(200);
    let ann = server.visitor().with_token(&login.text("access_token"));
    assert_eq!(ann.get("/api/v1/users/me").await.expect(200)["email_verified"], false);

    // S0-14: and not for ever.
    server.advance_clock(25 * 60 * 60).await;
    verify(json!({ "verification_token": token })).await.problem(410, "token_expired");
    server.finish().await;
}

#[tokio::test]
async fn tokens_differ_from_user_to_user() {
    let server = Server::start().await;
    let mut tokens = BTreeSet::new();
    for name in ["Ann", "Bob", "Cat", "Dan"] {
        server.register(name).await.expect(201);
        tokens.insert(server.mailed_token(&format!("{}@example.com", name.to_lowercase())).await);
    }
    assert_eq!(tokens.len(), 4);
    server.finish().await;
}

#[tokio::test]
async fn strangers_see_no_personal_fields() {
    let server = Server::start().await;
    let (ann, bob) = (server.newcomer("Ann").await, server.newcomer("Bob").await);
    let path = format!("/api/v1/users/{}", ann.user_id);
    assert_eq!(ann.client.get(&path).await.expect(200)["email"], "ann@example.com");
    let seen = bob.client.get(&path).await.expect(200);
    for field in ["email", "first_name", "last_name"] {
        assert_eq!(seen[field], "[redacted]");
    }
    server.finish().await;
}
