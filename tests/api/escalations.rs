//! Notices that nobody acknowledges, and mails that come back (S4-41, S4-42).

use serde_json::{Value, json};

use crate::support::{Client, Person, Server, Start, eventually};

const QUARTER: u64 = 15 * 60;

/// The notice that a seller waits, as administrators find it.
async fn pending(server: &Server) -> String {
    server.at_rest().await;
    let all = server.admin().get("/api/v1/notifications?audience=admin").await.expect(200);
    let one = all.items().iter().find(|one| one["template"] == "seller_pending").unwrap();
    format!("/api/v1/notifications/{}", one["notification_id"].as_str().unwrap())
}

async fn told(server: &Server, person: &Person) -> Vec<Value> {
    server.at_rest().await;
    let mut told = server.notifications(&person.user_id).await;
    told.retain(|one| one["template"] == "notice_escalated");
    told
}

#[tokio::test]
async fn a_notice_that_nobody_acknowledges_goes_to_a_second_administrator() {
    let mut server = Server::start().await;
    let first = server.administrator("root").await;
    let second = server.administrator("deputy").await;
    let sam = server.buyer("Sam").await;
    server.become_seller(&sam).await.expect(200);
    let notice = pending(&server).await;
    // S4-41.
    let sent = server.events("eventType=notification.admin.sent").await;
    assert!(sent.iter().any(|event| event["data"]["template"] == "seller_pending"));
    server.advance_clock(QUARTER - 60).await;
    assert!(told(&server, &second).await.is_empty());
    server.advance_clock(61).await;
    eventually("the notice to be escalated", || async {
        let of = server.events("eventType=notification.admin.escalated").await;
        (!of.is_empty()).then_some(())
    })
    .await;
    server.kill_9_and_start_again().await;
    let escalated = told(&server, &second).await;
    let mut ways: Vec<_> = escalated.iter().map(|one| one["channel"].as_str().unwrap()).collect();
    ways.sort_unstable();
    assert_eq!(ways, ["email", "in_app"]);
    assert!(told(&server, &first).await.is_empty());
    let mails = server.mails(&second.email).await;
    assert!(mails[0]["text"].as_str().unwrap().contains(&notice), "{mails:?}");
    let shown = server.admin().get(&notice).await.expect(200);
    assert!(shown["escalated_at"].is_string() && shown["acknowledged_at"].is_null());
    server.finish().await;
}

#[tokio::test]
async fn a_notice_that_somebody_acknowledges_goes_nowhere() {
    let mut server = Server::start().await;
    let deputy = server.administrator("deputy").await;
    let sam = server.buyer("Sam").await;
    server.become_seller(&sam).await.expect(200);
    let acknowledge = format!("{}/acknowledge", pending(&server).await);
    sam.client.post(&acknowledge, &json!({})).await.problem(404, "not_found");
    let seen = deputy.client.post(&acknowledge, &json!({})).await.expect(200);
    assert!(seen["acknowledged_at"].is_string() && seen["read_at"].is_string());
    let again = deputy.client.post(&acknowledge, &json!({})).await.expect(200);
    assert_eq!(again["acknowledged_at"], seen["acknowledged_at"]);
    server.advance_clock(2 * QUARTER).await;
    assert!(told(&server, &deputy).await.is_empty());
    assert_eq!(server.events_counted("notification.admin.escalated").await, 0);
    server.finish().await;
}

const BOUNCE: &str = "/api/v1/notifications/webhook/bounce";
const TOKEN: &str = "a token of the mail provider";

async fn welcome(server: &Server, person: &Person) -> Value {
    server.at_rest().await;
    let mut told = server.notifications(&person.user_id).await;
    told.retain(|one| one["template"] == "welcome_verification");
    told.remove(0)
}

fn event(kind: &str, notification: &Value) -> Value {
    json!([{
        "event": "bounce", "type": kind, "email": "somebody@example.com",
        "notification_id": notification["notification_id"], "reason": "550 no such user",
        "timestamp": 1_795_170_600, "sg_event_id": "e1",
    }])
}

#[tokio::test]
async fn nobody_writes_again_to_an_address_that_does_not_exist() {
    let server = Start::default().with("MAIL_WEBHOOK_TOKEN", TOKEN).start().await;
    let (ann, bob) = (server.newcomer("Ann").await, server.newcomer("Bob").await);
    let (to_ann, to_bob) = (welcome(&server, &ann).await, welcome(&server, &bob).await);
    let mut tokens = Vec::new();
    for person in [&ann, &bob] {
        tokens.push(server.mailed_token(&person.email).await);
    }
    let provider = server.visitor().with_token(TOKEN);
    // Who does not have the token is not believed.
    let gone = event("bounce", &to_ann);
    server.visitor().post(BOUNCE, &gone).await.problem(401, "unauthenticated");
    ann.client.post(BOUNCE, &gone).await.problem(403, "insufficient_scope");
    server
        .visitor()
        .with_token("another token")
        .post(BOUNCE, &gone)
        .await
        .problem(401, "invalid_token");
    let wrong = server.visitor().with("authorization", "Basic c2VuZGdyaWQ6bm8=");
    wrong.post(BOUNCE, &gone).await.problem(401, "invalid_token");

    let told = provider.post(BOUNCE, &gone).await.expect(200);
    assert_eq!((&told["recorded"], &told["ignored"]), (&json!(1), &json!(0)));
    assert!(!told.header("souk-position").is_empty());
    let again = provider.post(BOUNCE, &gone).await.expect(200);
    assert_eq!((&again["recorded"], &again["ignored"]), (&json!(0), &json!(1)));
    assert_eq!(welcome(&server, &ann).await["status"], "bounced");
    assert_eq!(ann.client.get("/api/v1/users/me").await.expect(200)["email_unreachable"], true);
    // By the password of Basic authentication (`sendgrid:a token of the mail provider`), for now only.
    let basic = server
        .visitor()
        .with("authorization", "Basic c2VuZGdyaWQ6YSB0b2tlbiBvZiB0aGUgbWFpbCBwcm92aWRlcg==");
    basic.post(BOUNCE, &event("blocked", &to_bob)).await.expect(200);
    assert_eq!(welcome(&server, &bob).await["status"], "bounced");
    assert_eq!(bob.client.get("/api/v1/users/me").await.expect(200)["email_unreachable"], false);
    // The next mail goes to Bob, and not to Ann until an administrator says so.
    for token in tokens {
        let proof = json!({ "verification_token": token });
        server.visitor().post("/api/v1/users/verify-email", &proof).await.expect(200);
    }
    let next = async |person: &Person| {
        server.at_rest().await;
        let told = server.notifications(&person.user_id).await;
        told.iter().find(|one| one["template"] == "email_verified").unwrap()["status"].clone()
    };
    assert_eq!((next(&ann).await, next(&bob).await), (json!("failed"), json!("sent")));
    let path = format!("/api/v1/admin/users/{}/clear-bounce", ann.user_id);
    ann.client.post(&path, &json!({})).await.problem(403, "insufficient_scope");
    let cleared = server.admin().post(&path, &json!({})).await.expect(200);
    assert_eq!(cleared["email_unreachable"], false);
    server.become_seller(&ann).await.expect(200);
    server.at_rest().await;
    let mails = server.mails(&ann.email).await;
    assert!(mails.iter().any(|mail| mail["template"] == "seller_welcome"), "{mails:?}");
    server.finish().await;
}

#[tokio::test]
async fn what_a_provider_tells_otherwise_is_passed_over() {
    let server = Start::default().with("MAIL_WEBHOOK_TOKEN", TOKEN).start().await;
    let provider: Client = server.visitor().with_token(TOKEN);
    let nothing = "0192f0c1-2345-7000-8000-0123456789ab";
    let many = json!([
        { "event": "delivered", "notification_id": nothing },
        { "event": "bounce", "notification_id": nothing },
        { "event": "bounce" },
        { "event": "bounce", "notification_id": "\u{0}" },
        7,
    ]);
    let told = provider.post(BOUNCE, &many).await.expect(200);
    assert_eq!((&told["recorded"], &told["ignored"]), (&json!(0), &json!(5)));
    assert_eq!(provider.post(BOUNCE, &json!("bounce")).await.pointers(), [""]);
    let flood = json!(vec![json!({}); 1_001]);
    assert_eq!(provider.post(BOUNCE, &flood).await.pointers(), [""]);
    server.finish().await;
}
