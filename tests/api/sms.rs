//! Text messages to those who agreed to them (S3-39, S3-41, S3-49, S3-50, S3-52).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Person, Server, Start, eventually};

const NUMBER: &str = "+84901234567";
const ACCOUNT: &str = "AC00000000000000000000000000000000";

async fn agrees(person: &Person) {
    let contact = json!({ "phone": "+84 90 123 45 67", "sms_opt_in": true });
    let me = person.client.patch("/api/v1/users/me", &contact).await.expect(200);
    assert_eq!((&me["phone"], &me["sms_opt_in"]), (&json!(NUMBER), &json!(true)));
}

fn templates(texts: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = texts.iter().map(|text| text["template"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn who_agreed_hears_of_an_order_by_text_message() {
    let mut server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 9).await;
    let buy = async || {
        let order = server.place_order(&bea.client, &listing, 1, "sandbox").await.id;
        server.order_eventually(&order, "SHIPPED").await;
        server.at_rest().await;
        order
    };
    buy().await;
    assert!(server.texts(NUMBER).await.is_empty(), "nobody has agreed yet");
    agrees(&bea).await;
    let order = buy().await;
    let texts = server.texts(NUMBER).await;
    assert_eq!(templates(&texts), ["order_placed", "order_shipped", "payment_received"]);
    let number = server.order_now(&order).await.text("order_number");
    for text in &texts {
        let words = text["body"].as_str().unwrap();
        assert!(words.contains(&number) && words.chars().count() <= 160, "{words}");
        assert_eq!((&text["channel"], &text["text"]), (&json!("sms"), &json!(words)));
    }
    // What is told by mail and inside is told there too, and nobody is told again.
    let told = server.notifications(&bea.user_id).await;
    let by = |channel: &str| told.iter().filter(|one| one["channel"] == channel).count();
    assert_eq!(by("sms"), 3);
    assert!(by("email") > 3 && by("in_app") > 1);
    // Each was attempted before it was sent.
    let id = texts[0]["notification_id"].as_str().unwrap();
    let events = server.events(&format!("aggregateId={id}")).await;
    let types: Vec<_> = events.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    let expected =
        ["notification.requested", "notification.sms.attempted", "notification.sms.sent"];
    assert_eq!(types, expected);
    for event in &events {
        assert!(
            !event.to_string().contains(&NUMBER[1..]),
            "the number itself is in no event: {event}"
        );
    }
    // Consent is withdrawn.
    let no = json!({ "sms_opt_in": false });
    let me = bea.client.patch("/api/v1/users/me", &no).await.expect(200);
    assert_eq!((&me["phone"], &me["sms_opt_in"]), (&json!(NUMBER), &json!(false)));
    buy().await;
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    let told = server.notifications(&bea.user_id).await;
    assert_eq!(told.iter().filter(|one| one["channel"] == "sms").count(), 3);
    server.finish().await;
}

#[tokio::test]
async fn a_number_is_checked_kept_secret_and_taken_away() {
    let server = Server::start().await;
    let (bea, otto) = (server.buyer("Bea").await, server.buyer("Otto").await);
    let patch = async |body: Value| bea.client.patch("/api/v1/users/me", &body).await;
    assert_eq!(patch(json!({ "phone": "0901234567" })).await.pointers(), ["/phone"]);
    assert_eq!(patch(json!({ "phone": 7 })).await.pointers(), ["/phone"]);
    assert_eq!(patch(json!({ "sms_opt_in": "yes" })).await.pointers(), ["/sms_opt_in"]);
    assert_eq!(patch(json!({ "sms_opt_in": true })).await.pointers(), ["/sms_opt_in"]);
    agrees(&bea).await;
    let path = format!("/api/v1/users/{}", bea.user_id);
    for client in [&server.visitor(), &otto.client] {
        let seen = client.get(&path).await.expect(200);
        assert_eq!((&seen["phone"], &seen["sms_opt_in"]), (&json!("[redacted]"), &json!(false)));
    }
    server.at_rest().await;
    server.visitor().patch("/api/v1/users/me", &json!({})).await.problem(401, "unauthenticated");
    let none = patch(json!({ "phone": "" })).await.expect(200);
    assert_eq!((&none["phone"], &none["sms_opt_in"]), (&Value::Null, &json!(false)));
    server.finish().await;
}

/// No answer at all.
const SILENCE: u16 = 0;

/// A Twilio in this process: what it has taken it lists.
#[derive(Clone, Default)]
struct Twilio {
    answers: Arc<Mutex<VecDeque<u16>>>,
    forms: Arc<Mutex<Vec<String>>>,
    has: Arc<Mutex<Vec<Value>>>,
}

async fn take(
    State(twilio): State<Twilio>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // S3-52.
    assert_eq!(uri.path(), format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json"));
    assert!(headers["authorization"].to_str().unwrap().starts_with("Basic "));
    if method == Method::GET {
        let has = twilio.has.lock().unwrap().clone();
        return axum::Json(json!({ "messages": has })).into_response();
    }
    let form = String::from_utf8(body.to_vec()).unwrap();
    let fields: std::collections::BTreeMap<String, String> =
        url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
    assert_eq!((fields["To"].as_str(), fields["From"].as_str()), (NUMBER, "+15005550006"));
    twilio.forms.lock().unwrap().push(fields["Body"].clone());
    let answer = twilio.answers.lock().unwrap().pop_front().unwrap_or(201);
    let taken = json!({ "sid": "SM1", "status": "queued", "body": fields["Body"] });
    if matches!(answer, SILENCE | 201) {
        twilio.has.lock().unwrap().push(taken.clone());
    }
    match answer {
        SILENCE => std::future::pending().await,
        201 => (StatusCode::CREATED, axum::Json(taken)).into_response(),
        status => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, axum::Json(json!({ "code": 21211, "message": "no" }))).into_response()
        }
    }
}

impl Twilio {
    async fn start(&self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(take).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Start::default()
            .with("RETRY_DELAY_MS", 20)
            .with("SMS_ADAPTER", "twilio")
            .with("TWILIO_ACCOUNT_SID", ACCOUNT)
            .with("TWILIO_AUTH_TOKEN", "hunter2")
            .with("TWILIO_FROM", "+15005550006")
            .with("TWILIO_URL", url)
            .start()
            .await
    }

    fn sent(&self) -> Vec<String> {
        self.forms.lock().unwrap().clone()
    }
}

/// One order that waits for its buyer: one text message.
async fn placed(server: &Server) -> Person {
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    agrees(&bea).await;
    let order = server.place_order(&bea.client, &listing, 1, "test_pending").await;
    server.order_eventually(&order.id, "CONFIRMED").await;
    bea
}

async fn told(server: &Server, bea: &Person) -> Value {
    server.at_rest().await;
    let mut told = server.notifications(&bea.user_id).await;
    told.retain(|one| one["channel"] == "sms");
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0)
}

#[tokio::test]
async fn twilio_is_given_a_message_and_its_name_is_kept() {
    let twilio = Twilio::default();
    let server = twilio.start().await;
    let bea = placed(&server).await;
    let told = told(&server, &bea).await;
    assert_eq!((&told["status"], &told["provider_message_id"]), (&json!("sent"), &json!("SM1")));
    assert_eq!(twilio.sent().len(), 1);
    server.logged(&["SmsSent", "order_placed"]).await;
    server.finish().await;
}

#[tokio::test]
async fn a_number_that_twilio_refuses_is_a_letter() {
    let twilio = Twilio::default();
    twilio.answers.lock().unwrap().push_back(400);
    let server = twilio.start().await;
    let bea = placed(&server).await;
    assert_eq!(told(&server, &bea).await["status"], "failed");
    let letter = server.letters(Some("notification-sms")).await.swap_remove(0);
    assert_eq!(letter["class"], "permanent");
    assert!(!letter.to_string().contains(&NUMBER[1..]), "{letter}");
    let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
    let path = format!("/api/v1/dlq/notification-sms/{partition}/{key}/retry");
    server.admin().post(&path, &json!({})).await.expect(200);
    assert_eq!(told(&server, &bea).await["status"], "sent");
    server.finish().await;
}

/// An answer that is lost in a crash: the provider is asked for what it has, and nothing goes twice.
#[tokio::test]
async fn a_message_that_twilio_took_before_a_crash_is_not_sent_again() {
    let twilio = Twilio::default();
    twilio.answers.lock().unwrap().push_back(SILENCE);
    let mut server = twilio.start().await;
    let bea = placed(&server).await;
    eventually("the call", || async { (twilio.sent().len() == 1).then_some(()) }).await;
    server.kill_9_and_start_again().await;
    let told = told(&server, &bea).await;
    assert_eq!((&told["status"], &told["provider_message_id"]), (&json!("sent"), &json!("SM1")));
    assert_eq!(twilio.sent().len(), 1);
    server.finish().await;
}
