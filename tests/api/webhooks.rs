//! Webhooks by the Standard Webhooks specification (S1-40, S2-67, S3-8, S0-98): signed, in order per
//! aggregate, tried again on the schedule, sent once more by hand. What arrives is verified with a
//! public library of the specification, not with code of this project.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use rcgen::{CertifiedKey, KeyPair};
use serde_json::{Value, json};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::journal::{Batch, Store as _};
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

use crate::support::certificates::Authority;
use crate::support::{Server, Start, eventually, on_postgres};

/// What arrived, whatever became of it.
#[derive(Debug, Clone)]
struct Hook {
    headers: HeaderMap,
    body: Bytes,
    status: u16,
}

impl Hook {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn event_type(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    /// Whether one of the signatures is what the library makes of it, however far the clock was
    /// moved.
    fn holds(&self, secret: &str) -> bool {
        let timestamp = self.header("webhook-timestamp").parse().unwrap();
        let webhook = Webhook::new(secret).unwrap();
        let signed = webhook.sign(self.header("webhook-id"), timestamp, &self.body).unwrap();
        self.header("webhook-signature").split(' ').any(|entry| entry == signed)
    }
}

/// How a receiver answers, and what it has got.
#[derive(Default)]
struct Desk {
    hooks: Vec<Hook>,
    /// The answer to events of an aggregate, by its id.
    answers: BTreeMap<String, u16>,
    retry_after: Option<String>,
}

/// Somebody who takes webhooks, in this process.
#[derive(Clone)]
struct Receiver {
    url: String,
    desk: Arc<Mutex<Desk>>,
}

async fn take(State(desk): State<Arc<Mutex<Desk>>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut desk = desk.lock().unwrap();
    let value: Value = serde_json::from_slice(&body).unwrap();
    let id = value["aggregate_id"].as_str().or(value["subject"].as_str()).unwrap_or_default();
    let status = desk.answers.get(id).or(desk.answers.get("*")).copied().unwrap_or(204);
    desk.hooks.push(Hook { headers, body, status });
    let status = StatusCode::from_u16(status).unwrap();
    match &desk.retry_after {
        Some(wait) => (status, [("retry-after", wait.clone())]).into_response(),
        None if status.is_redirection() => {
            (status, [("location", "http://127.0.0.1:1/elsewhere")]).into_response()
        }
        None => status.into_response(),
    }
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, Arc::default())
    }

    fn on(listener: TcpListener, desk: Arc<Mutex<Desk>>) -> Self {
        let url = format!("http://{}/hooks?from=souk", listener.local_addr().unwrap());
        let router = Router::new().fallback(take).with_state(desk.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, desk }
    }

    /// One that is reached by https, with this certificate.
    async fn with_certificate(certificate: &CertifiedKey<KeyPair>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let desk = Arc::default();
        let url = format!("https://{}/hooks?from=souk", listener.local_addr().unwrap());
        let router = Router::new().fallback(take).with_state(Arc::clone(&desk));
        let key = PrivateKeyDer::Pkcs8(certificate.signing_key.serialize_der().into());
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move { axum::serve(TlsListener { listener, acceptor }, router).await });
        Self { url, desk }
    }

    fn answer(&self, aggregate: &str, status: u16) {
        self.desk.lock().unwrap().answers.insert(aggregate.to_owned(), status);
    }

    fn hooks(&self) -> Vec<Hook> {
        self.desk.lock().unwrap().hooks.clone()
    }

    /// What arrived of an aggregate.
    fn of(&self, aggregate: &str) -> Vec<Hook> {
        let hooks = self.hooks().into_iter();
        hooks.filter(|hook| hook.json()["aggregate_id"] == aggregate).collect()
    }

    /// The types that were taken of an aggregate, in the order in which they came.
    fn taken(&self, aggregate: &str) -> Vec<String> {
        let all = self.of(aggregate).into_iter().filter(|hook| hook.status < 300);
        all.map(|hook| hook.event_type()).collect()
    }

    async fn has(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        eventually(what, || async { holds(self).then_some(()) }).await;
    }
}

/// Accepts connections of those who trust its certificate.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn reaching_loopback() -> Start {
    Start::default().with("WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8")
}

impl Server {
    async fn webhook(&self, url: &str, events: &[&str]) -> (String, String) {
        let body = json!({ "url": url, "events": events });
        let made = self.admin().post("/api/v1/webhooks", &body).await.expect(201);
        (made.text("id"), made.text("secret"))
    }

    async fn new_category(&self, slug: &str) -> String {
        let body = json!({ "name": slug, "slug": slug });
        self.admin().post("/api/v1/categories", &body).await.expect(201).text("category_id")
    }

    /// The deliveries to an endpoint, the newest first.
    async fn webhook_log(&self, id: &str) -> Vec<Value> {
        self.caught_up("webhook-deliveries-view").await;
        let path = format!("/api/v1/webhooks/{id}/deliveries?limit=200");
        self.admin().get(&path).await.expect(200).items().to_vec()
    }

    async fn webhook_log_has(&self, id: &str, what: &str, holds: impl Fn(&[Value]) -> bool) {
        eventually(what, || async { holds(&self.webhook_log(id).await).then_some(()) }).await;
    }
}

const IN_ORDER: [&str; 3] = ["category.created", "category.deactivated", "category.activated"];

/// S1-48.
#[tokio::test]
async fn whoever_asks_hears_of_dead_letters() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let (_, secret) = server.webhook(&receiver.url, &["system.event_dead_lettered"]).await;
    server.fault("notifications", "fail", json!({ "kind": "permanent", "times": 1 })).await;
    server.newcomer("Ann").await;
    receiver.has("the letter", |of| !of.hooks().is_empty()).await;
    let hook = receiver.hooks().swap_remove(0);
    assert!(hook.holds(&secret));
    let letter = server.letters(Some("notifications")).await.swap_remove(0);
    let data = &hook.json()["data"];
    for member in ["event_id", "subscription", "key", "class"] {
        assert_eq!(data[member], letter[member], "{member}: {data}");
    }
}

#[tokio::test]
async fn what_is_sent_is_signed_and_whole_and_without_personal_data() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let (id, secret) = server.webhook(&receiver.url, &["user.registered", "category.*"]).await;
    let category = server.new_category("maps").await;
    let ann = server.newcomer("Ann").await;
    receiver.has("both events", |of| of.hooks().len() >= 2).await;
    let other = Webhook::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    for hook in receiver.hooks() {
        assert!(Webhook::new(&secret).unwrap().verify(&hook.body, &hook.headers).is_ok());
        assert!(other.verify(&hook.body, &hook.headers).is_err());
        assert!(!String::from_utf8_lossy(&hook.body).contains(&ann.email), "{hook:?}");
    }
    let hook = &receiver.of(&category)[0];
    let event = &server.events("eventType=category.created").await;
    let event = event.iter().find(|event| event["aggregate_id"] == category.as_str()).unwrap();
    assert_eq!(hook.header("webhook-id"), event["event_id"]);
    let body = hook.json();
    for name in ["data", "timestamp", "event_id", "aggregate_version", "position"] {
        assert_eq!(body[name], event[name], "{name}");
    }
    // The secret is nowhere else.
    let shown = server.admin().get(&format!("/api/v1/webhooks/{id}")).await.expect(200);
    assert!(shown["secret"].is_null());
    let bare = secret.trim_start_matches("whsec_");
    let told = server.events(&format!("aggregateId={id}")).await;
    assert!(!told.is_empty() && !json!(told).to_string().contains(bare));
    assert!(server.log().iter().all(|line| !line.contains(bare)));
    // S1-32, S1-34: it is among the event's deliveries.
    let path = format!("/api/v1/events/{}/deliveries", event["event_id"].as_str().unwrap());
    let name = format!("webhook:{id}");
    eventually("the delivery to be acked", || async {
        let all = server.admin().get(&path).await.expect(200);
        let found = all.items().iter().find(|of| of["subscription"] == name.as_str()).cloned();
        found.filter(|of| of["state"] == "acked")
    })
    .await;
    let label = "outcome=\"delivered\"";
    eventually("both to be counted", || async {
        (server.metric("souk_webhook_deliveries_total", label).await == 2.0).then_some(())
    })
    .await;
    server.finish().await;
}

#[tokio::test]
async fn a_message_is_tried_again_when_it_is_time_and_others_of_its_aggregate_wait() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let (id, secret) = server.webhook(&receiver.url, &["category.*"]).await;
    receiver.answer("*", 500);
    let slow = server.new_category("maps").await;
    receiver.has("the first attempt", |of| of.of(&slow).len() == 1).await;
    receiver.answer("*", 204);
    receiver.answer(&slow, 500);
    server.switch(&slow, "deactivate").await;
    server.switch(&slow, "activate").await;
    // Others go on.
    let quick = server.new_category("globes").await;
    receiver.has("the other aggregate", |of| of.taken(&quick).len() == 1).await;
    for (wait, attempts) in [(6, 2), (331, 3)] {
        let log = server.webhook_log(&id).await;
        let waiting = log.iter().find(|of| of["status"] == "retrying").unwrap();
        assert_eq!(waiting["error"], "status_500");
        // Five seconds may pass by themselves.
        let early = attempts > 2 && receiver.of(&slow).len() >= attempts;
        assert!(!early, "not before it is time");
        server.advance_clock(wait).await;
        receiver.has("the next attempt", |of| of.of(&slow).len() == attempts).await;
        server
            .webhook_log_has(&id, "the attempt's record", |log| {
                log.iter().any(|of| of["attempts"] == attempts && of["status"] == "retrying")
            })
            .await;
    }
    receiver.answer(&slow, 204);
    server.advance_clock(1_981).await;
    receiver.has("all of them", |of| of.taken(&slow).len() == 3).await;
    assert_eq!(receiver.taken(&slow), IN_ORDER);
    let attempts: Vec<_> = receiver.of(&slow).into_iter().take(4).collect();
    // S1-40: one id over all attempts, a time of its own for each.
    for pair in attempts.windows(2) {
        assert_eq!(pair[0].header("webhook-id"), pair[1].header("webhook-id"));
        let times: Vec<i64> =
            pair.iter().map(|hook| hook.header("webhook-timestamp").parse().unwrap()).collect();
        assert!(times[0] + 5 <= times[1], "{times:?}");
        assert!(pair[1].holds(&secret));
    }
    server.finish().await;
}

/// S3-8, S0-98: the receiver is away, the server is killed, and nothing is lost or out of order.
#[tokio::test]
async fn nothing_is_lost_while_the_receiver_is_away_and_the_server_is_killed() {
    let mut server = reaching_loopback().start().await;
    let receiver = Receiver::start().await;
    let (id, _) = server.webhook(&receiver.url, &["category.*"]).await;
    receiver.answer("*", 503);
    let mut categories = Vec::new();
    for slug in ["maps", "globes", "charts"] {
        let category = server.new_category(slug).await;
        server.switch(&category, "deactivate").await;
        categories.push(category);
    }
    server.kill_9_and_start_again().await;
    for category in &categories {
        server.switch(category, "activate").await;
    }
    server.kill_9_and_start_again().await;
    receiver.answer("*", 204);
    for category in &categories {
        eventually("all of them in order", || async {
            server.advance_clock(61).await;
            (receiver.taken(category).len() >= 3).then_some(())
        })
        .await;
        let mut taken = receiver.taken(category);
        taken.dedup();
        assert_eq!(taken, IN_ORDER);
    }
    server
        .webhook_log_has(&id, "the log to say so", |log| {
            log.len() == 9 && log.iter().all(|of| of["status"] == "delivered")
        })
        .await;
    server.finish().await;
}

#[tokio::test]
async fn both_secrets_sign_for_a_day() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let (id, old) = server.webhook(&receiver.url, &["category.*"]).await;
    let path = format!("/api/v1/webhooks/{id}/secret/rotate");
    let rotate = server.admin().keyed("rotate");
    let new = rotate.post(&path, &json!({})).await.expect(200).text("secret");
    let replayed = rotate.post(&path, &json!({})).await.expect(200);
    assert_eq!(
        (replayed.header("idempotent-replayed"), replayed.text("secret")),
        ("true", new.clone())
    );
    assert_ne!(old, new);
    let first = server.new_category("maps").await;
    receiver.has("the first", |of| of.of(&first).len() == 1).await;
    let hook = &receiver.of(&first)[0];
    assert!(hook.holds(&old) && hook.holds(&new));
    server.advance_clock(24 * 60 * 60).await;
    let second = server.new_category("globes").await;
    receiver.has("the second", |of| of.of(&second).len() == 1).await;
    let hook = &receiver.of(&second)[0];
    assert!(!hook.holds(&old) && hook.holds(&new));
    server.finish().await;
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_and_goes_on_where_it_stopped() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let (id, _) = server.webhook(&receiver.url, &["category.*"]).await;
    receiver.answer("*", 410);
    let category = server.new_category("maps").await;
    let path = format!("/api/v1/webhooks/{id}");
    let gone = eventually("the endpoint to be disabled", || async {
        let now = server.admin().get(&path).await.expect(200);
        (now["enabled"] == false).then_some(now)
    })
    .await;
    assert_eq!(gone["disabled_reason"], "gone");
    server.switch(&category, "deactivate").await;
    server.switch(&category, "activate").await;
    let ping = format!("{path}/ping");
    server.admin().post(&ping, &json!({})).await.problem(409, "webhook_disabled");
    server.at_rest().await;
    assert_eq!(receiver.hooks().len(), 1);
    receiver.answer("*", 204);
    let enable = json!({ "enabled": true });
    server.admin().patch(&path, &enable).await.problem(428, "precondition_required");
    server.admin().if_match("\"1\"").patch(&path, &enable).await.problem(412, "version_mismatch");
    server.admin().if_match(gone.header("etag")).patch(&path, &enable).await.expect(200);
    receiver.has("what waited", |of| of.taken(&category).len() == 3).await;
    assert_eq!(receiver.taken(&category), IN_ORDER);
    server.finish().await;
}

#[tokio::test]
async fn messages_are_sent_once_more_by_hand_and_by_range_and_tests_are_sent() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let (id, secret) = server.webhook(&receiver.url, &["category.*"]).await;
    let admin = server.admin();
    let category = server.new_category("maps").await;
    server.switch(&category, "deactivate").await;
    server
        .webhook_log_has(&id, "both", |log| {
            log.len() == 2 && log.iter().all(|of| of["status"] == "delivered")
        })
        .await;
    let log = server.webhook_log(&id).await;
    let first = log.iter().find(|of| of["event_type"] == "category.created").unwrap();
    let delivery = first["id"].as_str().unwrap();
    let again = format!("/api/v1/webhooks/{id}/deliveries/{delivery}/redeliver");
    admin.post(&again, &json!({})).await.expect(202);
    receiver.has("it once more", |of| of.of(&category).len() == 3).await;
    let hook = &receiver.of(&category)[2];
    assert_eq!(hook.header("webhook-id"), first["event_id"]);
    let none = format!("/api/v1/webhooks/{id}/deliveries/{id}/redeliver");
    admin.post(&none, &json!({})).await.problem(404, "not_found");

    let path = format!("/api/v1/webhooks/{id}/redeliver");
    server.caught_up("webhook-fanout").await;
    server.caught_up("events-index").await;
    let dry = json!({ "from": "2020-01-01T00:00:00Z", "dry_run": true });
    let dry = admin.post(&path, &dry).await.expect(200);
    assert_eq!((&dry["matched"], &dry["requested"]), (&json!(2), &json!(0)));
    let wish = json!({ "from": "2020-01-01T00:00:00Z" });
    let keyed = admin.keyed("again");
    let range = keyed.post(&path, &wish).await.expect(200);
    assert_eq!((&range["requested"], &range["complete"]), (&json!(2), &json!(true)));
    receiver.has("both once more", |of| of.of(&category).len() == 5).await;
    // With the same key they are not sent again.
    let repeated = keyed.post(&path, &wish).await.expect(200);
    assert_eq!(repeated.header("idempotent-replayed"), "true");
    assert_eq!(repeated["requested"], range["requested"]);
    let other = json!({ "from": "2020-01-02T00:00:00Z" });
    keyed.post(&path, &other).await.problem(422, "idempotency_key_reused");
    let requested = server.events("eventType=webhook.redelivery.requested").await;
    assert_eq!(requested.len(), 3, "one by its id, and two by their range: {requested:?}");
    for bad in [json!({}), json!({ "from": "x" }), json!({ "to_position": "0:1" })] {
        admin.post(&path, &bad).await.problem(422, "invalid");
    }

    let ping = format!("/api/v1/webhooks/{id}/ping");
    let ping = admin.post(&ping, &json!({})).await.expect(202);
    receiver.has("the test", |of| of.of(&id).len() == 1).await;
    let hook = &receiver.of(&id)[0];
    assert_eq!(hook.event_type(), "webhook.endpoint_pinged");
    assert_eq!(hook.header("webhook-id"), ping.text("event_id"));
    assert!(hook.holds(&secret));
    server.finish().await;
}

#[tokio::test]
async fn nobody_is_led_where_they_may_not_go() {
    let (server, receiver) = (Server::start().await, Receiver::start().await);
    let (id, _) = server.webhook(&receiver.url, &["category.*"]).await;
    server.new_category("maps").await;
    server
        .webhook_log_has(&id, "the refusal", |log| {
            log.iter().any(|of| of["error"] == "address_not_allowed")
        })
        .await;
    assert!(receiver.hooks().is_empty());
    let admin = server.admin();
    let wrong = json!({ "url": "gopher://example.com/", "events": ["or der"], "format": "xml" });
    admin.post("/api/v1/webhooks", &wrong).await.problem(422, "invalid");
    // S1-36: a bad regular expression is named wherever patterns are taken.
    for bad in ["~[", "~^(order", "~(?P<", "order..placed"] {
        let wrong = json!({ "url": "https://hooks.example/", "events": ["order.*", bad] });
        let refused = admin.post("/api/v1/webhooks", &wrong).await.problem(422, "invalid");
        assert_eq!(refused.pointers(), ["/events/1"], "{bad}");
        let change = json!({ "events": [bad] });
        let path = format!("/api/v1/webhooks/{id}");
        let refused = admin.if_match("*").patch(&path, &change).await.problem(422, "invalid");
        assert_eq!(refused.pointers(), ["/events/0"], "{bad}");
    }
    // A redirect is a failure and nobody follows it; 429 is left alone for as long as it says.
    let server = reaching_loopback().start().await;
    let (id, _) = server.webhook(&receiver.url, &["category.*"]).await;
    receiver.answer("*", 302);
    let category = server.new_category("maps").await;
    server
        .webhook_log_has(&id, "the redirect", |log| {
            log.iter().any(|of| of["error"] == "status_302" && of["status"] == "retrying")
        })
        .await;
    receiver.answer("*", 429);
    receiver.desk.lock().unwrap().retry_after = Some("7200".to_owned());
    server.advance_clock(6).await;
    receiver.has("the second attempt", |of| of.of(&category).len() == 2).await;
    server
        .webhook_log_has(&id, "the wish to be left alone", |log| {
            log.iter().any(|of| of["error"] == "status_429")
        })
        .await;
    let other = server.new_category("globes").await;
    server.advance_clock(600).await;
    server.at_rest().await;
    assert_eq!((receiver.of(&category).len(), receiver.of(&other).len()), (2, 0));
    receiver.desk.lock().unwrap().retry_after = None;
    receiver.answer("*", 204);
    server.advance_clock(7_300).await;
    receiver.has("both", |of| of.of(&category).len() == 3 && of.of(&other).len() == 1).await;
    let path = format!("/api/v1/webhooks/{id}");
    server.admin().delete(&path).await.expect(204);
    server.admin().get(&path).await.problem(404, "not_found");
    server.finish().await;
}

/// Which events are sent is a matter of what is in them too, by the filters of subscriptions.
#[tokio::test]
async fn an_endpoint_gets_what_passes_its_filter() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    let admin = server.admin();
    let wish = json!({
        "url": receiver.url, "events": ["category.*"],
        "filter": "event_type = \"category.created\" and data.slug in (\"maps\", \"globes\")",
    });
    let made = admin.post("/api/v1/webhooks", &wish).await.expect(201);
    assert_eq!(made["filter"], wish["filter"]);
    let path = format!("/api/v1/webhooks/{}", made.text("id"));
    let maps = server.new_category("maps").await;
    let charts = server.new_category("charts").await;
    server.switch(&maps, "deactivate").await;
    let globes = server.new_category("globes").await;
    receiver.has("what passes", |of| of.hooks().len() == 2).await;
    server.at_rest().await;
    let taken: BTreeSet<String> = [&maps, &globes].into_iter().cloned().collect();
    let got: BTreeSet<String> = receiver
        .hooks()
        .iter()
        .map(|hook| hook.json()["aggregate_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(got, taken);
    assert!(receiver.of(&charts).is_empty());
    // A redelivery keeps to it.
    server.caught_up("events-index").await;
    let dry = json!({ "from": "2020-01-01T00:00:00Z", "dry_run": true });
    let dry = admin.post(&format!("{path}/redeliver"), &dry).await.expect(200);
    assert_eq!(dry["matched"], 2);

    let bad = json!({ "filter": "data.slug = " });
    let bad = admin.if_match("*").patch(&path, &bad).await.expect(422);
    assert_eq!(bad.pointers(), ["/filter"]);
    let none = admin.if_match("*").patch(&path, &json!({ "filter": "" })).await.expect(200);
    assert!(none["filter"].is_null());
    server.switch(&charts, "deactivate").await;
    receiver.has("what did not pass before", |of| of.of(&charts).len() == 1).await;
    server.finish().await;
}

/// What is sent is what the OpenAPI document says of it.
#[tokio::test]
async fn the_document_describes_what_is_sent() {
    let (server, receiver) = (reaching_loopback().start().await, Receiver::start().await);
    for format in ["standard", "cloudevents"] {
        let wish = json!({ "url": receiver.url, "events": ["category.created"], "format": format });
        server.admin().post("/api/v1/webhooks", &wish).await.expect(201);
    }
    server.new_category("maps").await;
    receiver.has("both forms", |of| of.hooks().len() == 2).await;
    let document = server.visitor().get("/openapi.json").await.expect(200);
    let sent = &document["webhooks"]["event"]["post"];
    let mut seen = BTreeSet::new();
    for hook in receiver.hooks() {
        let content_type = hook.header("content-type");
        seen.insert(content_type.to_owned());
        let target = &sent["requestBody"]["content"][content_type]["schema"]["$ref"];
        let schema = document.json().pointer(target.as_str().unwrap().trim_start_matches('#'));
        let validator = jsonschema::draft202012::new(schema.unwrap()).unwrap();
        let errors: Vec<_> = validator.iter_errors(&hook.json()).map(|of| of.to_string()).collect();
        assert!(errors.is_empty(), "{content_type}: {errors:?}");
        for parameter in sent["parameters"].as_array().unwrap() {
            assert!(hook.headers.contains_key(parameter["name"].as_str().unwrap()), "{parameter}");
        }
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    server.finish().await;
}

/// A receiver's certificate is checked, and an authority of one's own is trusted by `SSL_CERT_FILE`.
#[tokio::test]
async fn certificates_are_checked_and_a_private_authority_can_be_trusted() {
    let authority = Authority::new();
    let (good, misnamed) = (authority.certify("127.0.0.1"), authority.certify("hooks.example"));
    let strange = Authority::new().certify("127.0.0.1");
    let folder = tempfile::tempdir().unwrap();
    let file = authority.write(folder.path(), "authority.pem");
    let server = reaching_loopback().with("SSL_CERT_FILE", file.display()).start().await;
    let mut endpoints = Vec::new();
    for certificate in [&good, &strange, &misnamed] {
        let receiver = Receiver::with_certificate(certificate).await;
        let (id, secret) = server.webhook(&receiver.url, &["category.created"]).await;
        endpoints.push((receiver, id, secret));
    }
    server.new_category("maps").await;
    let (trusted, _, secret) = &endpoints[0];
    trusted.has("the message", |of| of.hooks().len() == 1).await;
    assert!(trusted.hooks()[0].holds(secret));
    for (receiver, id, _) in &endpoints[1..] {
        server
            .webhook_log_has(id, "the refusal", |log| {
                log.iter().any(|of| of["error"] == "tls_failed")
            })
            .await;
        assert!(receiver.hooks().is_empty());
    }
    server.finish().await;
}

/// S1-135: the audit knows what endpoints are owed.
#[tokio::test]
async fn the_audit_finds_a_message_that_nobody_owes() {
    if on_postgres() {
        // It changes SQLite's files by hand.
        return;
    }
    let mut server = reaching_loopback().start().await;
    let receiver = Receiver::start().await;
    server.webhook(&receiver.url, &["category.*"]).await;
    let audited = async |server: &Server| {
        let report = server.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
        let all = report["subscriptions"].as_array().unwrap();
        let found = all.iter().find(|of| of["subscription"] == "webhook-fanout").unwrap();
        let number = |name: &str| found[name].as_u64().unwrap();
        (number("checked"), number("missing"), number("pending"))
    };
    // What comes right after a change to the endpoint is not looked at.
    server.advance_clock(11).await;
    receiver.answer("*", 500);
    let category = server.new_category("maps").await;
    receiver.has("a first attempt", |of| !of.hooks().is_empty()).await;
    server.caught_up("webhook-fanout").await;
    assert_eq!(audited(&server).await, (1, 0, 0), "it is owed");
    server.pause("webhook-fanout").await;
    server.switch(&category, "deactivate").await;
    assert_eq!(audited(&server).await, (1, 0, 1), "not handled yet is not missing");
    assert!(server.terminate().await.success());
    // Somebody moves it on by hand.
    let store = SqliteStore::open(&server.journal(), 1).await.unwrap();
    let lease = store.acquire(0).await.unwrap();
    let position = store.head(0).await.unwrap().position;
    let mut checkpoints = store.checkpoints("webhook-fanout", 0).await.unwrap();
    checkpoints.iter_mut().for_each(|checkpoint| checkpoint.position = position);
    store.append(lease, &Batch { checkpoints, ..Batch::default() }).await.unwrap();
    drop(store);
    server.start_again().await;
    server.resume("webhook-fanout").await;
    server.caught_up("webhook-fanout").await;
    assert_eq!(audited(&server).await, (2, 1, 0));
}
