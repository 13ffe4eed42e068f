//! How events reach their handlers: retries, dead letters, pauses (S0-18, S0-99 to S0-101, S0-106,
//! S1-142, S2-3, S2-68 to S2-70, X6, X8, X28).

use serde_json::{Value, json};
use souk_actors::event::StoredEvent;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::journal::{Store, chain};
use uuid::Uuid;

use crate::support::{Server, Start, Stored, eventually};

/// Retries that do not take seconds.
fn impatient() -> Start {
    Start::default().with("RETRY_DELAY_MS", 20)
}

/// A number of all partitions of a subscription together.
fn sum(subscription: &Value, name: &str) -> u64 {
    let partitions = subscription["partitions"].as_array().unwrap();
    partitions.iter().map(|of| of[name].as_u64().unwrap()).sum()
}

/// Where a letter is worked.
fn path_of(letter: &Value) -> String {
    let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
    format!("/api/v1/dlq/{}/{partition}/{key}", letter["subscription"].as_str().unwrap())
}

#[tokio::test]
async fn a_failure_that_passes_is_not_seen() {
    let server = impatient().start().await;
    server.fault("notifications", "fail", json!({ "times": 2 })).await;
    let ann = server.newcomer("Ann").await;
    server.verify(&ann.email).await.expect(200);
    server.at_rest().await;
    assert_eq!(server.mails(&ann.email).await.len(), 2);
    let status = server.subscription("notifications").await;
    assert_eq!((sum(&status, "failed"), sum(&status, "retried")), (2, 2));
    let label = "subscription=\"notifications\"";
    assert_eq!(server.metric("souk_deliveries_retried_total", label).await, 2.0);
    server.finish().await;
}

#[tokio::test]
async fn a_failure_that_stays_makes_a_letter_and_keeps_the_order() {
    let server = impatient().start().await;
    let fault = server.fault("notifications", "fail", json!({})).await;
    let ann = server.newcomer("Ann").await;
    let letters = eventually("a letter", || async {
        let letters = server.letters(Some("notifications")).await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    // S2-68, S2-70: four attempts in all.
    let letter = &letters[0];
    assert_eq!((letters.len(), &letter["attempts"]), (1, &json!(4)));
    assert_eq!(letter["event_type"], "user.registered");
    assert_eq!(letter["key"], ann.user_id.as_str());
    assert_eq!(letter["class"], "transient");
    assert!(letter["error"].as_str().unwrap().contains("injected"));
    assert!(letter["first_failed_at"].as_str() < letter["last_failed_at"].as_str());
    let deliveries = format!("/api/v1/events/{}/deliveries", letter["event_id"].as_str().unwrap());
    let dead = server.admin().get(&deliveries).await.expect(200);
    let dead =
        dead.items().iter().find(|of| of["subscription"] == "notifications").unwrap().clone();
    assert_eq!((&dead["state"], &dead["attempts"]), (&json!("dead"), &json!(4)));
    let label = "subscription=\"notifications\"";
    eventually("the letter to be counted", || async {
        (server.metric("souk_dlq_letters", label).await == 1.0).then_some(())
    })
    .await;

    // X8: a later event of the same key waits, other keys go on.
    server.mend(fault).await;
    let tokens = server.events("eventType=user.registered").await;
    assert_eq!(tokens.len(), 1);
    let bob = server.buyer("Bob").await;
    server.at_rest().await;
    assert_eq!(server.mails(&bob.email).await.len(), 2);
    assert_eq!(server.mails(&ann.email).await.len(), 0);
    let path = format!("/api/v1/users/{}", ann.user_id);
    ann.client.patch(&path, &json!({ "first_name": "Anna" })).await.expect(200);

    let key = path_of(letter);
    let retried = server.admin().post(&format!("{key}/retry"), &json!({})).await.expect(200);
    assert_eq!((&retried["handled"], &retried["left"]), (&json!(1), &json!(0)));
    server.verify(&ann.email).await.expect(200);
    server.at_rest().await;
    let templates: Vec<_> =
        server.mails(&ann.email).await.iter().map(|mail| mail["template"].clone()).collect();
    assert_eq!(templates, [json!("email_verified"), json!("welcome_verification")]);
    server.admin().post(&format!("{key}/retry"), &json!({})).await.problem(404, "not_found");
    server.finish().await;
}

#[tokio::test]
async fn what_waits_behind_a_letter_is_retried_in_order() {
    let server = impatient().start().await;
    let sam = server.buyer("Sam").await;
    server.at_rest().await;
    let permanent = json!({ "kind": "permanent", "key": sam.user_id, "times": 1 });
    server.fault("notifications", "fail", permanent).await;
    server.become_seller(&sam).await.expect(200);
    server.at_rest().await;
    server.admin_verifies(&sam).await.expect(200);
    server.at_rest().await;
    let letters = server.letters(Some("notifications")).await;
    let seen: Vec<_> = letters.iter().map(|of| (&of["event_type"], &of["attempts"])).collect();
    // X28: a permanent failure is not tried again.
    let (first, second) = (json!("user.upgraded_to_seller"), json!("seller.verified"));
    assert_eq!(seen, [(&first, &json!(1)), (&second, &json!(0))]);
    assert_eq!(letters[0]["class"], "permanent");
    assert_ne!(letters[0]["state"], letters[1]["state"]);
    let path = format!("{}/retry", path_of(&letters[0]));
    let retried = server.admin().post(&path, &json!({})).await.expect(200);
    assert_eq!((&retried["handled"], &retried["left"]), (&json!(2), &json!(0)));
    server.at_rest().await;
    let told = server.notifications(&sam.user_id).await;
    let at = |template: &str| told.iter().position(|of| of["template"] == template).unwrap();
    // The newest first.
    assert!(at("seller_verified") < at("seller_onboarding"), "{told:#?}");
    server.finish().await;
}

#[tokio::test]
async fn a_letter_can_be_given_up() {
    let server = impatient().start().await;
    server.fault("notifications", "fail", json!({ "kind": "permanent", "times": 1 })).await;
    let ann = server.newcomer("Ann").await;
    server.at_rest().await;
    let path = path_of(&server.letters(Some("notifications")).await[0]);
    ann.client
        .post(&format!("{path}/discard"), &json!({}))
        .await
        .problem(403, "insufficient_scope");
    let given_up =
        server.admin().if_match("*").post(&format!("{path}/discard"), &json!({})).await.expect(200);
    assert_eq!((&given_up["discarded"], &given_up["left"]), (&json!(1), &json!(0)));
    server.at_rest().await;
    // Who gave it up is on record.
    assert_eq!(server.events("eventType=subscription.discard_requested").await.len(), 1);
    assert_eq!(server.mails(&ann.email).await.len(), 0);
    server.finish().await;
}

#[tokio::test]
async fn a_panicking_handler_is_a_letter_and_not_the_end() {
    let server = impatient().start().await;
    let ann = server.newcomer("Ann").await;
    server.at_rest().await;
    server.fault("notifications", "panic", json!({ "key": "user.email_verified" })).await;
    server.verify(&ann.email).await.expect(200);
    let letters = eventually("a letter", || async {
        let letters = server.letters(None).await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert!(letters[0]["error"].as_str().unwrap().contains("panic"), "{letters:?}");
    server.visitor().get("/readyz").await.expect(200);
    server.register("Bob").await.expect(201);
    server.mailed_token("bob@example.com").await;
    let path = format!("{}/discard", path_of(&letters[0]));
    server.admin().if_match("*").post(&path, &json!({})).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn one_subscription_pauses_and_the_others_go_on() {
    let mut server = Server::start().await;
    // S2-3.
    server.pause("notifications").await;
    assert_eq!(server.subscription("notifications").await["state"], "paused");
    let ann = server.newcomer("Ann").await;
    server.caught_up("events-index").await;
    server.caught_up("email-claims").await;
    assert_eq!(server.events("eventType=user.registered").await.len(), 1);
    assert_eq!(server.mails(&ann.email).await.len(), 0);
    assert!(sum(&server.subscription("notifications").await, "lag_events") > 0);
    // A pause outlives a crash, and nothing is lost.
    server.kill_9_and_start_again().await;
    assert_eq!(server.subscription("notifications").await["state"], "paused");
    assert_eq!(server.mails(&ann.email).await.len(), 0);
    server.resume("notifications").await;
    server.mailed_token(&ann.email).await;
    server.at_rest().await;
    for event_type in ["subscription.paused", "subscription.resumed"] {
        let events = server.events(&format!("eventType={event_type}")).await;
        assert_eq!(events.len(), 1, "{event_type}: {events:?}");
        assert!(events[0].to_string().contains("\"notifications\""), "{events:?}");
        assert!(!events[0]["metadata"]["actor_id"].as_str().unwrap().is_empty());
    }
    let missing = "/api/v1/admin/subscriptions/nobody/pause";
    server.admin().post(missing, &json!({})).await.problem(404, "not_found");
    server.finish().await;
}

#[tokio::test]
async fn a_slow_handler_delays_nobody() {
    let server = Server::start().await;
    // S0-18, S0-106: three seconds for the handler, none for the answer.
    let slow = json!({ "delay_ms": 3000, "times": 1 });
    server.fault("notifications", "delay", slow).await;
    let ann = server.newcomer("Ann").await;
    assert_eq!(server.mails(&ann.email).await.len(), 0, "answered before the handler was done");
    // And somebody else's events are handled meanwhile, as long as they go another lane.
    server.mailed_token(&ann.email).await;
    server.finish().await;
}

#[tokio::test]
async fn while_a_provider_is_away_nothing_is_lost() {
    let server = impatient().start().await;
    let fault = server.fault("notification-email", "fail", json!({ "kind": "system" })).await;
    let ann = server.newcomer("Ann").await;
    eventually("the circuit to open", || async {
        let status = server.subscription("notification-email").await;
        let open = |of: &Value| of["circuit"] == "open";
        status["partitions"].as_array().unwrap().iter().any(open).then_some(())
    })
    .await;
    assert!(server.letters(None).await.is_empty());
    server.mend(fault).await;
    server.mailed_token(&ann.email).await;
    server.finish().await;
}

#[tokio::test]
async fn the_retry_policy_is_configured() {
    let server = impatient().with("RETRY_MAX_RETRIES", 1).start().await;
    let policy = server.subscription("notifications").await["retry"].clone();
    assert_eq!((&policy["max_retries"], &policy["retry_delay_ms"]), (&json!(1), &json!(20)));
    server.fault("notifications", "fail", json!({ "times": 2 })).await;
    let ann = server.newcomer("Ann").await;
    let letter = eventually("a letter", || async {
        server.letters(Some("notifications")).await.first().cloned()
    })
    .await;
    assert_eq!(letter["attempts"], 2);
    assert_eq!(letter["key"], ann.user_id.as_str());
    let path = format!("{}/retry", path_of(&letter));
    server.admin().post(&path, &json!({})).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn contexts_and_subscriptions_are_shown() {
    let server = Server::start().await;
    let takers = server.admin().get("/api/v1/admin/subscriptions?event_type=OrderPlaced").await;
    let takers = takers.expect(200);
    let names: Vec<_> = takers.items().iter().map(|of| of["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"order_saga-facts") && !names.contains(&"users-view"), "{names:?}");
    let contexts = server.admin().get("/api/v1/admin/contexts").await.expect(200);
    let names: Vec<_> = contexts.items().iter().map(|of| of["name"].as_str().unwrap()).collect();
    for name in ["users", "listings", "orders", "payments", "shipments", "notifications"] {
        assert!(names.contains(&name), "{names:?}");
    }
    server.finish().await;
}

/// The hash of the event that the next test adds behind a user's registration.
async fn hash_of_a_newer_version(server: &Server, user: Uuid, event_id: Uuid) -> [u8; 32] {
    let journal: Box<dyn Store> = match server.database() {
        None => {
            let path = server.folder().join("journal.db");
            Box::new(SqliteStore::open_read_only(&path).await.unwrap())
        }
        Some(url) => {
            let options = PostgresOptions::new(url).unwrap();
            Box::new(PostgresStore::open_read_only(options).await.unwrap())
        }
    };
    let events = journal.read_aggregate(user, 0, 1).await.unwrap();
    let head = journal.head(events[0].partition).await.unwrap();
    let event = StoredEvent {
        position: head.position + 1,
        event_id,
        aggregate_version: events[0].aggregate_version + 1,
        event_type: "user.email_verified".into(),
        major: 99,
        minor: 0,
        correlation_id: "seeded".into(),
        causation_id: "seeded".into(),
        data: "{}".into(),
        ..(*events[0]).clone()
    };
    chain::link(&head.hash, &event)
}

/// S0-111: an event from a newer version of the program, such as an operator meets after going back
/// to an older one.
#[tokio::test]
async fn an_event_of_an_unknown_version_is_set_aside() {
    let mut server = impatient().start().await;
    let ann = server.newcomer("Ann").await;
    server.at_rest().await;
    assert!(server.terminate().await.success());
    let stored = server.stored().await;
    let event_id = Uuid::from_u128(99);
    let new = stored.id(event_id);
    let hash = hash_of_a_newer_version(&server, ann.user_id.parse().unwrap(), event_id).await;
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let hash = match stored {
        Stored::Sqlite(_) => format!("x'{hash}'"),
        Stored::Postgres(_) => format!("'\\x{hash}'"),
    };
    let of_ann = format!(
        "event_type = 'user.registered' AND aggregate_id = {}",
        stored.id(ann.user_id.parse().unwrap())
    );
    // In the partition of the aggregate, behind its newest event.
    let seed = format!(
        "INSERT INTO events (seq, event_id, stream, aggregate_version, aggregate_type, \
         aggregate_id, event_type, major, minor, timestamp, correlation_id, causation_id, data, \
         metadata, hash) \
         SELECT (SELECT max(seq) + 1 FROM events AS other WHERE other.seq >> 48 = events.seq >> 48), \
         {new}, stream, aggregate_version + 1, aggregate_type, aggregate_id, \
         'user.email_verified', 99, 0, timestamp, 'seeded', 'seeded', '{{}}', metadata, {hash} \
         FROM events WHERE {of_ann}"
    );
    assert_eq!(stored.change(&seed).await.unwrap(), 1);
    stored.close().await;
    server.start_again().await;
    let letter = eventually("a letter", || async {
        server.letters(Some("notifications")).await.first().cloned()
    })
    .await;
    assert_eq!((&letter["class"], &letter["attempts"]), (&json!("permanent"), &json!(1)));
    assert_eq!(letter["aggregate_id"], ann.user_id.as_str());
    let error = letter["error"].as_str().unwrap();
    assert!(error.contains("unsupported event version: 99"), "{error}");
    // Others notice nothing.
    let bob = server.register("Bob").await.expect(201);
    server.event("EmailSent", bob.header("x-correlation-id")).await;
    server.visitor().get("/readyz").await.expect(200);
}

const POLICY: &str = "/api/v1/admin/subscriptions/notifications/retry-policy";

fn policy(max_retries: u32, delay_ms: u64) -> Value {
    json!({
        "max_retries": max_retries, "delay_ms": delay_ms, "exponential_backoff": false,
        "max_delay_ms": delay_ms, "reason": "the provider is slow",
    })
}

/// S3-81, S4-46: what waits for an hour is tried as soon as the policy says so.
#[tokio::test]
async fn a_retry_policy_is_set_without_a_restart_and_outlives_one() {
    let hour = 3_600_000;
    let slow = Start::default().with("RETRY_DELAY_MS", hour).with("RETRY_MAX_DELAY_MS", hour);
    let mut server = slow.start().await;
    let admin = server.admin();
    let known = admin.get(POLICY).await.expect(200);
    assert_eq!((&known["delay_ms"], &known["is_default"]), (&json!(hour), &json!(true)));
    server.fault("notifications", "fail", json!({ "times": 1 })).await;
    let ann = server.newcomer("Ann").await;
    let waits = eventually("the failure to be shown", || async {
        let status = server.subscription("notifications").await;
        let partitions = status["partitions"].as_array().unwrap();
        let mut retrying = partitions.iter().flat_map(|of| of["retrying"].as_array().unwrap());
        retrying.next().cloned()
    })
    .await;
    assert_eq!((&waits["attempts"], &waits["class"]), (&json!(1), &json!("transient")));
    assert!(waits["next_attempt_at"].is_string() && waits["event_id"].is_string(), "{waits}");
    let stale = admin.if_match("\"999\"");
    let put = async |client: &crate::support::Client, body: Value| {
        client.send(reqwest::Method::PUT, POLICY, Some(body.to_string().into_bytes())).await
    };
    put(&stale, policy(5, 10)).await.problem(412, "version_mismatch");
    let changed = put(&admin.if_match(known.header("etag")), policy(5, 10)).await.expect(200);
    assert_eq!((&changed["max_retries"], &changed["is_default"]), (&json!(5), &json!(false)));
    // What was to wait for an hour has been tried again.
    server.mailed_token(&ann.email).await;
    server.at_rest().await;
    let events = server.events("eventType=subscription.retry_policy_changed").await;
    assert_eq!(events[0]["data"]["new"]["max_retries"], 5, "{events:?}");
    assert_eq!(events[0]["data"]["reason"], "the provider is slow");
    assert!(!events[0]["metadata"]["actor_id"].as_str().unwrap().is_empty());

    server.kill_9_and_start_again().await;
    let admin = server.admin();
    let kept = admin.get(POLICY).await.expect(200);
    assert_eq!((&kept["max_retries"], &kept["delay_ms"]), (&json!(5), &json!(10)));
    assert_eq!(server.subscription("notifications").await["retry"]["max_retries"], 5);
    let reset = admin.delete(&format!("{POLICY}?reason=over")).await.expect(200);
    assert_eq!((&reset["delay_ms"], &reset["is_default"]), (&json!(hour), &json!(true)));
    let wrong = json!({ "max_retries": -1, "delay_ms": 10, "max_delay_ms": 5 });
    let wrong = put(&admin, wrong).await;
    assert_eq!(wrong.pointers(), ["/max_retries", "/exponential_backoff", "/max_delay_ms"]);
    let nobody = POLICY.replace("notifications", "nobody");
    admin.get(&nobody).await.problem(404, "not_found");
    admin.delete(&nobody).await.problem(404, "not_found");
    server.finish().await;
}

/// S1-142.
#[tokio::test]
async fn a_time_limit_is_set_without_a_restart() {
    let server = impatient().start().await;
    let path = "/api/v1/admin/subscriptions/notifications/handler-timeout";
    let limit = json!({ "handler_timeout_ms": 50 }).to_string().into_bytes();
    let set = server.admin().send(reqwest::Method::PUT, path, Some(limit)).await.expect(200);
    assert_eq!((&set["handler_timeout_ms"], &set["is_default"]), (&json!(50), &json!(false)));
    let fault = server.fault("notifications", "delay", json!({ "delay_ms": 600_000 })).await;
    server.newcomer("Ann").await;
    let letter = eventually("a letter", || async {
        server.letters(Some("notifications")).await.first().cloned()
    })
    .await;
    assert!(letter["error"].as_str().unwrap().starts_with("timeout"), "{letter}");
    let reset = server.admin().delete(path).await.expect(200);
    assert_eq!(reset["is_default"], true);
    server.mend(fault).await;
    let retry = format!("{}/retry", path_of(&letter));
    assert_eq!(server.admin().post(&retry, &json!({})).await.expect(200)["left"], 0);
    server.finish().await;
}

/// S1-52, S1-91, S0-113 to S0-117.
#[tokio::test]
async fn a_subscription_shows_how_it_is() {
    let server = Server::start().await;
    let before = sum(&server.subscription("notifications").await, "handled");
    let ann = server.newcomer("Ann").await;
    server.mailed_token(&ann.email).await;
    server.at_rest().await;
    let status = server.subscription("notifications").await;
    assert!(sum(&status, "handled") > before);
    assert_eq!((&status["state"], &status["ordering"]), (&json!("running"), &json!("key")));
    assert_eq!(status["priority"], "standard");
    for (name, priority) in [
        ("payment-gateway", "critical"),
        ("order_saga-facts", "critical"),
        ("analytics-view", "batch"),
    ] {
        assert_eq!(server.subscription(name).await["priority"], priority, "{name}");
    }
    for of in status["partitions"].as_array().unwrap() {
        assert_eq!((&of["state"], &of["circuit"]), (&json!("running"), &json!("closed")));
        assert!(of["lag_seconds"].is_null() && of["rate"].is_number(), "{of}");
    }
    let p95 = |of: &Value| of["p95_ms"].is_number();
    assert!(status["partitions"].as_array().unwrap().iter().any(p95), "{status}");

    server.pause("notifications").await;
    server.newcomer("Bob").await;
    server.caught_up("events-index").await;
    let paused = server.subscription("notifications").await;
    assert!(paused["paused"]["by"].is_string(), "{paused}");
    let lags = |of: &Value| of["lag_seconds"].is_number();
    assert!(paused["partitions"].as_array().unwrap().iter().any(lags), "{paused}");
    let metrics = server.visitor().get("/metrics").await.expect(200);
    for name in [
        "souk_subscription_lag_seconds",
        "souk_subscription_oldest_unacked_seconds",
        "souk_subscription_lag_events",
        "souk_events_published_total",
        "souk_events_consumed_total",
        "souk_event_end_to_end_seconds",
        "souk_event_handler_duration_seconds",
    ] {
        assert!(metrics.raw().contains(name), "{name}");
    }
    let handled =
        "souk_event_end_to_end_seconds_count{subscription=\"notifications\",priority=\"standard\"}";
    assert!(metrics.raw().contains(handled), "{handled}");
    server.resume("notifications").await;
    server.finish().await;
}

#[tokio::test]
async fn subscriptions_are_steered_from_the_command_line() {
    let server = Server::start().await;
    let souk = |arguments: &[&str]| {
        let command = server.command(&[&["subscriptions"], arguments].concat());
        command.with("SOUK_URL", server.url()).run()
    };
    let listed = souk(&["list"]);
    assert_eq!(listed.code, 0, "{}", listed.errors);
    assert!(listed.output.contains("notification-email") && listed.output.contains("LAG"));
    let few = souk(&["list", "--event-type", "OrderPlaced"]).output;
    assert!(few.contains("order_saga-facts") && !few.contains("users-view"), "{few}");
    let paused = souk(&["pause", "notification-email", "--reason", "a look"]);
    assert_eq!(paused.output.trim(), "notification-email: paused", "{}", paused.errors);
    let shown = souk(&["show", "notification-email"]).output;
    assert!(shown.contains("Paused: a look") && shown.contains("PARTITION"), "{shown}");
    assert_eq!(
        souk(&["resume", "notification-email"]).output.trim(),
        "notification-email: running"
    );
    let set = souk(&["retry-policy", "notification-email", "--max-retries", "7", "--json"]);
    let set: Value = serde_json::from_str(&set.output).unwrap();
    assert_eq!((&set["max_retries"], &set["is_default"]), (&json!(7), &json!(false)));
    let reset = souk(&["retry-policy", "notification-email", "--reset", "--json"]);
    let reset: Value = serde_json::from_str(&reset.output).unwrap();
    assert_eq!(reset["is_default"], true);
    let missing = souk(&["show", "nobody"]);
    assert_eq!(missing.code, 1);
    assert!(missing.errors.contains("not_found"), "{}", missing.errors);
    server.finish().await;
}

/// What became of an event at each subscription that wants it.
async fn deliveries(server: &Server, event: &Value) -> Vec<Value> {
    let path = format!("/api/v1/events/{}/deliveries", event["event_id"].as_str().unwrap());
    server.admin().get(&path).await.expect(200).items().to_vec()
}

/// S1-33: what fails at one subscription is tried again there, and nowhere else.
#[tokio::test]
async fn only_the_one_that_failed_is_tried_again() {
    let server = impatient().start().await;
    let twice = json!({ "key": "user.registered", "times": 2 });
    server.fault("notifications", "fail", twice).await;
    server.register("Ann").await.expect(201);
    server.at_rest().await;
    let registered = &server.events("eventType=user.registered").await[0];
    let deliveries = deliveries(&server, registered).await;
    assert!(deliveries.len() > 3, "{deliveries:?}");
    for delivery in deliveries {
        let expected = if delivery["subscription"] == "notifications" { 3 } else { 1 };
        assert_eq!(delivery["state"], "acked", "{delivery}");
        assert_eq!(delivery["attempts"], expected, "{delivery}");
    }
    for status in server.admin().get("/api/v1/admin/subscriptions").await.expect(200).items() {
        let expected = if status["name"] == "notifications" { 2 } else { 0 };
        assert_eq!(
            (sum(status, "failed"), sum(status, "retried")),
            (expected, expected),
            "{status}"
        );
    }
    // S0-115: the part that failed, of what was handled.
    let label = "subscription=\"notifications\"";
    assert_eq!(server.metric("souk_event_handler_failures_total", label).await, 2.0);
    let handled = sum(&server.subscription("notifications").await, "handled");
    assert_eq!(server.metric("souk_events_consumed_total", label).await as u64, handled);
    server.finish().await;
}

/// S1-31: a subscription that takes its time keeps no other waiting.
#[tokio::test]
async fn one_that_is_slow_keeps_no_other_waiting() {
    let server = impatient().start().await;
    // Longer than the test takes, however busy the machine is.
    server.fault("notifications", "delay", json!({ "delay_ms": 600_000 })).await;
    for number in 0..20 {
        server.register(&format!("Ann{number}")).await.expect(201);
    }
    let registered = server.events("eventType=user.registered").await;
    assert_eq!(registered.len(), 20);
    eventually("all others to be done", || async {
        for event in &registered {
            for delivery in deliveries(&server, event).await {
                let is_slow = delivery["subscription"] == "notifications";
                assert!(!is_slow || delivery["state"] == "pending", "{delivery}");
                if !is_slow && delivery["state"] != "acked" {
                    return None;
                }
            }
        }
        Some(())
    })
    .await;
    let slow = server.subscription("notifications").await;
    assert_eq!(sum(&slow, "handled"), 0);
    let others = server.subscription("email-claims").await;
    assert!(sum(&others, "handled") >= 20, "{others}");
}

/// S1-55: the events of one entity are handled one after another, each when the one before is done.
#[tokio::test]
async fn the_events_of_one_entity_are_handled_one_by_one() {
    let server = impatient().start().await;
    let sam = server.buyer("Sam").await;
    server.at_rest().await;
    server.fault("notifications", "delay", json!({ "delay_ms": 50 })).await;
    // All of them are there before the first is handled.
    server.pause("notifications").await;
    server.become_seller(&sam).await.expect(200);
    let reject = format!("/api/v1/admin/sellers/{}/reject", sam.user_id);
    server.admin().post(&reject, &json!({ "reason": "no such street" })).await.expect(200);
    server.become_seller(&sam).await.expect(200);
    server.admin_verifies(&sam).await.expect(200);
    server.resume("notifications").await;
    server.at_rest().await;
    let of_sam = server.events(&format!("aggregateId={}", sam.user_id)).await;
    let mut ended = None;
    let mut handled = Vec::new();
    for event in &of_sam[of_sam.len() - 4..] {
        let id = event["event_id"].as_str().unwrap();
        let path = format!("/api/v1/events/{id}/graph");
        let graph = server.admin().get(&path).await.expect(200);
        let node = format!("{id}/notifications");
        let nodes = graph["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|of| of["id"] == node.as_str()).unwrap();
        let began = souk_actors::world::Timestamp::parse(node["at"].as_str().unwrap()).unwrap();
        assert!(ended.is_none_or(|ended| began >= ended), "{graph:?}");
        let took = std::time::Duration::from_millis(node["duration_ms"].as_u64().unwrap());
        ended = Some(began.plus(took));
        handled.push(event["event_type"].as_str().unwrap());
    }
    let expected = [
        "user.upgraded_to_seller",
        "seller.rejected",
        "user.upgraded_to_seller",
        "seller.verified",
    ];
    assert_eq!(handled, expected);
    server.finish().await;
}
