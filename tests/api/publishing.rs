//! Publishers outside: their tokens, their event types, their events and the order of those.

use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, Start, data_of, eventually, parallel};

const TYPE: &str = "partner.stock.counted";

fn counted() -> Value {
    json!({
        "type": "object",
        "properties": {
            "count": { "type": "integer", "minimum": 0 },
            "note": { "type": "string", "maxLength": 200_000 },
            "lines": { "type": "array", "items": { "type": "object", "required": ["sku"] } },
        },
        "required": ["count"],
    })
}

fn event(id: &str, key: &str) -> Value {
    json!({ "event_type": TYPE, "source": "/erp", "id": id, "key": key, "data": { "count": 1 } })
}

fn numbered(sequence: u64, key: &str) -> Value {
    let mut event = event(&format!("{key}-{sequence}"), key);
    event["sequence"] = json!(sequence);
    event["data"]["count"] = json!(sequence);
    event
}

impl Server {
    async fn register_type(&self, name: &str, version: &str, schema: Value) -> Answer {
        let path = format!("/api/v1/admin/event-types/{name}");
        let body = json!({ "version": version, "schema": schema }).to_string();
        self.admin().send(reqwest::Method::PUT, &path, Some(body.into_bytes())).await
    }

    async fn source(&self, name: &str, policy: Value) -> Answer {
        let path = format!("/api/v1/admin/event-sources/{name}");
        let body = policy.to_string().into_bytes();
        self.admin().send(reqwest::Method::PUT, &path, Some(body)).await
    }

    async fn service_token(&self, body: Value) -> Answer {
        self.admin().post("/api/v1/admin/service-tokens", &body).await
    }

    /// A publisher of everything, and the type of the tests.
    async fn publisher(&self) -> Client {
        self.register_type(TYPE, "1.0", counted()).await.expect(201);
        let body = json!({ "name": "the warehouse", "scopes": ["publisher"] });
        let token = self.service_token(body).await.expect(201).text("token");
        self.visitor().with_token(&token)
    }

    /// What came to pass of a source and key, in the order of the log: the publisher's ids.
    async fn told(&self, key: &str) -> Vec<String> {
        let events = self.events(&format!("eventType={TYPE}")).await;
        let of_key = events.iter().filter(|of| of["metadata"]["publisher"]["key"] == key);
        of_key.map(|of| of["metadata"]["publisher"]["id"].as_str().unwrap().to_owned()).collect()
    }

    async fn buffers(&self) -> Vec<Value> {
        self.caught_up("buffers-view").await;
        self.admin().get("/api/v1/admin/buffers").await.expect(200).items().to_vec()
    }

    async fn gaps(&self) -> Vec<Value> {
        let letters = self.admin().get("/api/v1/dlq?subscription=sequence-gaps").await;
        letters.expect(200).items().to_vec()
    }
}

const EVENTS: &str = "/api/v1/events";
const BATCH: &str = "/api/v1/events/batch";

/// S1-7, S1-17, S1-18, S1-20, S1-22: 202 with what is needed to find it, and it is there at once.
#[tokio::test]
async fn what_is_published_is_stored_and_found_at_once() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    let mut body = event("1", "shelf-1");
    body["time"] = json!("2020-01-01T00:00:00Z");
    body["timestamp"] = json!("2020-01-01T00:00:00Z");
    let answer = publisher.named("count-1").post(EVENTS, &body).await.expect(202);
    assert_eq!(answer["state"], "stored");
    assert_eq!(answer.header("souk-position"), answer.text("position"));
    let id = answer.text("event_id");
    assert_eq!(answer.header("location"), format!("/api/v1/events/{id}"));
    assert!(answer.text("event_ref").starts_with("evt_pub_"));
    for name in [&id, &answer.text("event_ref")] {
        let found = server.admin().get(&format!("{EVENTS}/{name}")).await.expect(200);
        assert_eq!((&found["event_id"], &found["event_type"]), (&json!(id), &json!(TYPE)));
        assert_eq!(found["data"], json!({ "count": 1 }), "the data is what was sent");
        assert_eq!((&found["correlation_id"], &found["version"]), (&json!("count-1"), &json!(1)));
        assert!(!found["timestamp"].as_str().unwrap().starts_with("2020"), "ours, not theirs");
        let metadata = &found["metadata"];
        assert_eq!(metadata["service"], "gateway-service");
        assert!(metadata["actor_id"].as_str().unwrap().starts_with("service_token-"));
        let said = json!({ "source": "/erp", "id": "1", "key": "shelf-1",
            "time": "2020-01-01T00:00:00.000Z" });
        assert_eq!(metadata["publisher"], said);
    }
    // It is routed as every event: by the index, and to whoever wants its type.
    let listed = server.events(&format!("eventType={TYPE}&correlationId=count-1")).await;
    assert_eq!(listed.len(), 1);
    let takes = server.admin().get(&format!("/api/v1/admin/subscriptions?event_type={TYPE}")).await;
    assert!(takes.expect(200).items().iter().any(|of| of["name"] == "events-index"));
    let cloud = server.admin().with("accept", "application/cloudevents+json");
    let cloud = cloud.get(&format!("{EVENTS}/{id}")).await.expect(200);
    assert_eq!(cloud["type"], format!("souk.{TYPE}.v1"));
    assert!(cloud.text("source").starts_with("/publishing/publication/"));
    assert_eq!(cloud["recordedtime"], cloud["time"]);
    server.finish().await;
}

/// S1-7: who may publish, and what.
#[tokio::test]
async fn only_who_may_publish_publishes_and_a_token_that_is_taken_back_is_so_at_once() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    let nobody = server.visitor().post(EVENTS, &event("1", "a")).await;
    let nobody = nobody.problem(401, "unauthenticated");
    assert_eq!(nobody.header("www-authenticate"), "Bearer");
    let made_up = server.visitor().with_token("souk_st_bm90aGluZw");
    made_up.post(EVENTS, &event("1", "a")).await.problem(401, "invalid_token");
    let buyer = server.buyer("Bea").await;
    buyer.client.post(EVENTS, &event("1", "a")).await.problem(403, "insufficient_scope");
    server.admin().post(EVENTS, &event("admin", "a")).await.expect(202);

    let body = json!({ "name": "other", "scopes": ["publisher:other.#"], "expires_in": 3600 });
    let issued = server.service_token(body).await.expect(201);
    let other = server.visitor().with_token(&issued.text("token"));
    other.post(EVENTS, &event("2", "a")).await.problem(403, "insufficient_scope");
    // It is for publishing and for nothing else.
    for path in ["/api/v1/events", "/api/v1/users/me", "/api/v1/admin/service-tokens"] {
        other.get(path).await.problem(403, "insufficient_scope");
    }
    server.register_type("other.thing_made", "1.0", json!({ "type": "object" })).await.expect(201);
    let mut allowed = event("3", "a");
    allowed["event_type"] = json!("other.thing_made");
    other.post(EVENTS, &allowed).await.expect(202);

    server.caught_up("service-tokens-view").await;
    let listed = server.admin().get("/api/v1/admin/service-tokens").await.expect(200);
    assert_eq!(listed.items().len(), 2);
    assert!(!listed.raw().contains("souk_st_"), "its text is shown once");
    let path = format!("/api/v1/admin/service-tokens/{}", issued.text("token_id"));
    server.admin().delete(&path).await.expect(204);
    other.post(EVENTS, &allowed).await.problem(401, "invalid_token");
    server.admin().delete(&path).await.expect(204);
    server.admin().delete("/api/v1/admin/service-tokens/x").await.problem(404, "not_found");
    let listed = server.admin().get("/api/v1/admin/service-tokens").await.expect(200);
    let states: Vec<_> = listed.items().iter().map(|of| of["state"].clone()).collect();
    assert_eq!(states, ["revoked", "active"]);
    // And so is one whose time is over.
    let body = json!({ "name": "short", "scopes": ["publisher"], "expires_in": 60 });
    let short = server.service_token(body).await.expect(201).text("token");
    server.advance_clock(61).await;
    let late = server.visitor().with_token(&short).post(EVENTS, &event("4", "a")).await;
    late.problem(401, "invalid_token");
    publisher.post(EVENTS, &event("5", "a")).await.expect(202);
    let bad =
        json!({ "name": "", "scopes": ["admin"], "rate_limit": { "events": 0, "seconds": 1 } });
    server.service_token(bad).await.expect(422);
    for scope in ["publisher:~[", "publisher:~^partner", "publisher:a..b", "publisher:"] {
        let bad = json!({ "name": "bad", "scopes": ["publisher:partner.#", scope] });
        let refused = server.service_token(bad).await.problem(422, "invalid");
        assert_eq!(refused.pointers(), ["/scopes/1"], "{scope}");
    }
    assert!(server.log().iter().all(|line| !line.contains("souk_st_")), "a token in the log");
    server.finish().await;
}

/// S1-23: types are registered with a schema, which only grows.
#[tokio::test]
async fn event_types_are_registered_served_and_only_grow() {
    let server = Server::start().await;
    server.publisher().await;
    let schema = server.visitor().get(&format!("/schemas/{TYPE}/1")).await.expect(200);
    assert_eq!(schema.header("content-type"), "application/schema+json");
    assert_eq!(schema["properties"]["count"]["type"], "integer");
    let newest = server.visitor().get(&format!("/schemas/{TYPE}")).await.expect(200);
    assert_eq!(newest.json(), schema.json());
    server.visitor().get("/schemas/order.placed").await.expect(200);
    server.visitor().get("/schemas/partner.unknown").await.problem(404, "not_found");
    server.caught_up("event-types-view").await;
    let all = server.visitor().get("/schemas").await.expect(200);
    assert!(all.items().iter().any(|of| of["event_type"] == TYPE && of["context"] == "publishing"));
    let asyncapi = server.visitor().get("/asyncapi.json").await.expect(200);
    let channels = asyncapi["channels"].as_object().unwrap();
    assert!(channels.values().any(|channel| channel["address"] == TYPE));

    server.register_type(TYPE, "1.0", counted()).await.expect(200);
    let mut grown = counted();
    grown["properties"]["shelf"] = json!({ "type": "string" });
    server.register_type(TYPE, "1.0", grown.clone()).await.problem(409, "incompatible_schema");
    server.register_type(TYPE, "1.1", grown).await.expect(200);
    let narrow = json!({ "type": "object", "properties": { "shelf": { "type": "string" } } });
    let refused = server.register_type(TYPE, "1.2", narrow.clone()).await;
    let refused = refused.problem(409, "incompatible_schema");
    assert!(refused.raw().contains("/schema/count"), "{refused:?}");
    server.register_type(TYPE, "3.0", narrow.clone()).await.problem(409, "version_order");
    let second = server.register_type(TYPE, "2.0", narrow).await.expect(200);
    assert_eq!(second["version"], "2.0");
    server.visitor().get(&format!("/schemas/{TYPE}/1.1")).await.expect(200);
    let stale = server.admin().if_match("\"1\"");
    let body = json!({ "version": "2.0", "schema": counted() }).to_string().into_bytes();
    let path = format!("/api/v1/admin/event-types/{TYPE}");
    let stale = stale.send(reqwest::Method::PUT, &path, Some(body)).await;
    stale.problem(412, "version_mismatch");
    let one = server.admin().get(&path).await.expect(200);
    assert_eq!(one["versions"].as_array().unwrap().len(), 2);

    for name in ["order.placed", "order.mine", "saga.mine", "system.mine"] {
        let refused = server.register_type(name, "1.0", counted()).await;
        refused.problem(409, "event_type_reserved");
    }
    for name in ["Partner.counted", "one", "a.b.c.d"] {
        server.register_type(name, "1.0", counted()).await.problem(422, "invalid");
    }
    let remote =
        json!({ "type": "object", "properties": { "a": { "$ref": "http://127.0.0.1/x" } } });
    let refused = server.register_type("partner.remote", "1.0", remote).await;
    assert_eq!(refused.pointers(), ["/schema/properties/a/$ref"]);
    server.finish().await;
}

/// S1-19, S4-4, S4-75, S4-83: what is not right is refused with pointers, and nothing is stored.
#[tokio::test]
async fn what_does_not_fit_its_schema_is_refused_and_nothing_is_stored() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    let mut bad = event("1", "a");
    bad["data"] = json!({ "count": -1, "lines": [{ "sku": 1 }, {}] });
    let before = server.metric("souk_events_rejected_total", "reason=\"schema\"").await;
    let pointers = publisher.post(EVENTS, &bad).await.pointers();
    assert_eq!(pointers, ["/data/count", "/data/lines/1"]);
    let after = server.metric("souk_events_rejected_total", "reason=\"schema\"").await;
    assert_eq!(after - before, 1.0);
    let mut unknown = event("1", "a");
    unknown["event_type"] = json!("partner.unknown");
    assert_eq!(publisher.post(EVENTS, &unknown).await.pointers(), ["/event_type"]);
    for own in ["order.placed", "publication.buffered", "OrderPlaced"] {
        unknown["event_type"] = json!(own);
        assert_eq!(publisher.post(EVENTS, &unknown).await.pointers(), ["/event_type"], "{own}");
    }
    let hostile = [
        json!({ "count": 1, "note": "a\u{0}b" }),
        json!({ "count": 1, "note": "\u{1b}[31m" }),
        json!({ "count": 1, "x": { "$sealed": { "subject": "a", "box": "b" } } }),
        json!({ "count": 1, "x": [{ "$personal": { "subject": "a" } }] }),
    ];
    for data in hostile {
        let mut event = event("1", "a");
        event["data"] = data;
        publisher.post(EVENTS, &event).await.problem(422, "invalid");
    }
    let mut large = event("1", "a");
    large["data"]["note"] = json!("x".repeat(64 * 1024));
    publisher.post(EVENTS, &large).await.problem(413, "payload_too_large");
    publisher.post(BATCH, &json!([large])).await.problem(413, "payload_too_large");
    let text = publisher.with("content-type", "text/plain");
    text.post(EVENTS, &event("1", "a")).await.problem(415, "unsupported_media_type");
    // A batch is refused as a whole, and says which of them.
    let batch = json!([event("1", "a"), bad, event("2", "b")]);
    let pointers = publisher.post(BATCH, &batch).await.pointers();
    assert_eq!(pointers, ["/1/data/count", "/1/data/lines/1"]);
    server.at_rest().await;
    assert!(server.events("aggregateType=publication").await.is_empty());
    // What is text is stored as it was sent.
    for (index, text) in
        ["<script>", "'; DROP TABLE events; --", "{{7*7}}", "né👩‍👧\n"].iter().enumerate()
    {
        let mut event = event(&format!("text-{index}"), "a");
        event["data"]["note"] = json!(text);
        let id = publisher.post(EVENTS, &event).await.expect(202).text("event_id");
        let found = server.admin().get(&format!("{EVENTS}/{id}")).await.expect(200);
        assert_eq!(found["data"]["note"], *text);
    }
    server.finish().await;
}

/// S1-38, S3-54: a second event of a source and id is the first one, however long ago, across
/// restarts and in parallel.
#[tokio::test]
async fn an_event_is_published_once_however_often_it_is_told() {
    let mut server = Server::start().await;
    let publisher = server.publisher().await;
    let first = publisher.post(EVENTS, &event("1", "a")).await.expect(202);
    let same = |again: &Answer| {
        assert_eq!(again["state"], "duplicate");
        for name in ["event_id", "position", "event_ref"] {
            assert_eq!(again[name], first[name], "{name}");
        }
        assert_eq!(again.header("souk-position"), first.header("souk-position"));
    };
    same(&publisher.post(EVENTS, &event("1", "a")).await.expect(200));
    // Source and id are what it is, whatever else was said the second time.
    let mut other = event("1", "another key");
    other["data"]["count"] = json!(99);
    same(&publisher.post(EVENTS, &other).await.expect(200));
    server.kill_9_and_start_again().await;
    server.advance_clock(40 * 24 * 3600).await;
    let again = server.admin().post(EVENTS, &event("1", "a")).await.expect(200);
    same(&again);
    let all = parallel(16, |index| {
        let client = server.admin();
        // Some of them under another key: they meet in the journal only.
        let key = if index % 4 == 3 { "c" } else { "b" };
        async move { client.post(EVENTS, &event("racing", key)).await }
    })
    .await;
    let mut ids: Vec<_> = all.iter().map(|answer| answer.text("event_id")).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let stored = all.iter().filter(|answer| answer.status() == 202).count();
    assert_eq!(stored, 1, "{all:?}");
    assert!(all.iter().all(|answer| answer["position"] == all[0]["position"]));
    assert_eq!(server.events(&format!("eventType={TYPE}")).await.len(), 2);
    server.finish().await;
}

/// Another publisher's event is not taken for one's own: its type is another one.
#[tokio::test]
async fn an_id_that_is_an_event_of_another_type_is_taken() {
    let mut server = Server::start().await;
    let publisher = server.publisher().await;
    let thing = "other.thing_made";
    server.register_type(thing, "1.0", json!({ "type": "object" })).await.expect(201);
    let body = json!({ "name": "other", "scopes": ["publisher:other.#"] });
    let token = server.service_token(body).await.expect(201).text("token");
    let other = server.visitor().with_token(&token);
    let of_thing = |id: &str| {
        let mut event = event(id, "a");
        event["event_type"] = json!(thing);
        event
    };
    let taken = "reason=\"event_id_taken\"";
    let before = server.metric("souk_events_rejected_total", taken).await;
    other.post(EVENTS, &of_thing("1")).await.expect(202);
    publisher.post(EVENTS, &event("1", "a")).await.problem(409, "event_id_taken");
    publisher.post(EVENTS, &event("1", "b")).await.problem(409, "event_id_taken");
    other.post(EVENTS, &of_thing("1")).await.expect(200);
    // In a batch it is said of the one event; the others are stored.
    let batch = json!([event("1", "a"), event("2", "a"), of_thing("2"), event("2", "a")]);
    let answer = publisher.post(BATCH, &batch).await.expect(202);
    let states: Vec<_> = answer.items().iter().map(|of| of["state"].clone()).collect();
    assert_eq!(states, ["refused", "stored", "refused", "stored"]);
    assert_eq!(answer.items()[0]["code"], "event_id_taken");
    assert_eq!(answer.items()[2]["code"], "event_id_taken");
    let after = server.metric("souk_events_rejected_total", taken).await;
    assert_eq!(after - before, 4.0);
    // It is known of what was stored long ago as well.
    server.kill_9_and_start_again().await;
    publisher.post(EVENTS, &event("1", "a")).await.problem(409, "event_id_taken");
    other.post(EVENTS, &of_thing("2")).await.problem(409, "event_id_taken");
    assert_eq!(server.told("a").await, ["2"]);
    server.finish().await;
}

/// S1-21: 202 means durable.
#[tokio::test]
async fn what_was_answered_is_there_after_a_kill() {
    let mut server = Server::start().await;
    let publisher = server.publisher().await;
    let stored = publisher.post(EVENTS, &event("1", "a")).await.expect(202);
    let waiting = publisher.post(EVENTS, &numbered(2, "b")).await.expect(202);
    assert_eq!(waiting["state"], "buffered");
    server.kill_9_and_start_again().await;
    let path = format!("{EVENTS}/{}", stored.text("event_id"));
    server.admin().get(&path).await.expect(200);
    let again = publisher.post(EVENTS, &numbered(2, "b")).await.expect(202);
    assert_eq!(again["state"], "buffered", "it is one that waits already");
    assert_eq!(server.buffers().await[0]["size"], 1);
    publisher.post(EVENTS, &numbered(1, "b")).await.expect(202);
    assert_eq!(server.told("b").await, ["b-1", "b-2"]);
    server.finish().await;
}

/// S4-79: a batch is taken as a whole, each key in its order, with a result an event.
#[tokio::test]
async fn a_batch_is_stored_key_by_key_in_order() {
    let server = Start::default().partitions(4).start().await;
    let publisher = server.publisher().await;
    let events: Vec<_> = (0..200)
        .map(|number| event(&format!("{number:03}"), &format!("key-{}", number % 7)))
        .collect();
    let answer = publisher.post(BATCH, &json!(events)).await.expect(202);
    assert_eq!(answer.items().len(), 200);
    assert!(answer.items().iter().all(|of| of["state"] == "stored"));
    for key in 0..7 {
        let told = server.told(&format!("key-{key}")).await;
        let mut sorted = told.clone();
        sorted.sort();
        assert_eq!((told.len(), &told), (if key < 4 { 29 } else { 28 }, &sorted));
    }
    for (sent, of) in events.iter().zip(answer.items()).step_by(17) {
        let path = format!("{EVENTS}/{}", of["event_ref"].as_str().unwrap());
        let found = server.admin().get(&path).await.expect(200);
        assert_eq!(found["event_id"], of["event_id"], "each result is its own event's");
        assert_eq!(found["metadata"]["publisher"]["id"], sent["id"]);
    }
    // The same again, with one that is new, and one twice.
    let more = json!({ "events": [events[3], event("new", "key-1"), event("new", "key-1")] });
    let again = publisher.post(BATCH, &more).await.expect(202);
    let states: Vec<_> = again.items().iter().map(|of| of["state"].clone()).collect();
    assert_eq!(states, ["duplicate", "stored", "stored"]);
    assert_eq!(again.items()[1]["position"], again.items()[2]["position"]);
    publisher.post(BATCH, &json!(events)).await.expect(200);
    // As CloudEvents.
    let cloud = |id: &str| {
        json!({ "specversion": "1.0", "type": format!("souk.{TYPE}.v1"), "source": "/erp",
            "id": id, "subject": "cloud", "data": { "count": 5 } })
    };
    let batch = publisher.with("content-type", "application/cloudevents-batch+json");
    batch.post(BATCH, &json!([cloud("c1"), cloud("c2")])).await.expect(202);
    let structured = publisher.with("content-type", "application/cloudevents+json; charset=utf-8");
    structured.post(EVENTS, &cloud("c3")).await.expect(202);
    let binary = publisher
        .with("ce-specversion", "1.0")
        .with("ce-type", TYPE)
        .with("ce-source", "/erp")
        .with("ce-id", "c4")
        .with("ce-subject", "cloud");
    binary.post(EVENTS, &json!({ "count": 6 })).await.expect(202);
    assert_eq!(binary.post(EVENTS, &json!({ "count": "6" })).await.pointers(), ["/count"]);
    assert_eq!(server.told("cloud").await, ["c1", "c2", "c3", "c4"]);
    let too_many: Vec<_> = (0..1_001).map(|number| event(&number.to_string(), "x")).collect();
    publisher.post(BATCH, &json!(too_many)).await.problem(422, "invalid");
    publisher.post(BATCH, &json!([])).await.problem(422, "invalid");
    server.finish().await;
}

/// S1-7: a quota for each token, told in header fields, and its end as the registered problem.
#[tokio::test]
async fn a_token_has_a_quota_and_is_told_of_it() {
    let server = Server::start().await;
    server.publisher().await;
    let limited = json!({ "name": "limited", "scopes": ["publisher"],
        "rate_limit": { "events": 5, "seconds": 60 } });
    let token = server.service_token(limited).await.expect(201).text("token");
    let publisher = server.visitor().with_token(&token);
    let first = publisher.post(EVENTS, &event("1", "a")).await.expect(202);
    assert_eq!(first.header("ratelimit-policy"), "\"default\";q=5;qu=\"events\";w=60");
    assert_eq!(first.header("ratelimit"), "\"default\";r=4;t=12");
    publisher.post(BATCH, &json!([event("2", "a"), event("3", "a")])).await.expect(202);
    let mut bad = event("4", "a");
    bad["data"] = json!({});
    let refused = publisher.post(EVENTS, &bad).await.expect(422);
    assert!(refused.header("ratelimit").contains("r=1"), "what is wrong costs too");
    let batch = json!([event("5", "a"), event("6", "a")]);
    let over = publisher.post(BATCH, &batch).await.expect(429);
    let kind = "https://iana.org/assignments/http-problem-types#quota-exceeded";
    assert_eq!((&over["type"], &over["code"]), (&json!(kind), &json!("quota_exceeded")));
    assert_eq!(over["violated-policies"], json!(["default"]));
    assert!(over.header("retry-after").parse::<u64>().unwrap() >= 1);
    publisher.post(EVENTS, &event("7", "a")).await.expect(429);
    assert_eq!(server.told("a").await, ["1", "2", "3"], "nothing of what was over it is stored");
    // Others have their own, and it fills up again.
    server.admin().post(EVENTS, &event("8", "a")).await.expect(202);
    server.advance_clock(60).await;
    let batch: Vec<_> = (10..15).map(|number| event(&number.to_string(), "a")).collect();
    publisher.post(BATCH, &json!(batch)).await.expect(202);
    server.finish().await;
}

/// S1-54, S1-56, S1-58: out of order in, in order out, key by key.
#[tokio::test]
async fn what_comes_out_of_order_comes_to_pass_in_order() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    for sequence in [3, 2] {
        let publisher = publisher.named(&format!("told-{sequence}"));
        let answer = publisher.post(EVENTS, &numbered(sequence, "a")).await.expect(202);
        assert_eq!(answer["state"], "buffered");
    }
    let buffers = server.buffers().await;
    assert_eq!(buffers.len(), 1);
    let waiting = &buffers[0];
    assert_eq!((&waiting["size"], &waiting["missing"]), (&json!(2), &json!(1)));
    assert_eq!((&waiting["source"], &waiting["key"]), (&json!("/erp"), &json!("a")));
    assert!(waiting["oldest_at"].is_string() && waiting["expires_at"].is_string());
    // Another key does not wait for this one.
    publisher.post(EVENTS, &numbered(1, "b")).await.expect(202);
    assert_eq!(server.told("a").await, Vec::<String>::new());
    let first = publisher.post(EVENTS, &numbered(1, "a")).await.expect(202);
    assert_eq!(first["state"], "stored");
    assert_eq!(server.told("a").await, ["a-1", "a-2", "a-3"]);
    assert_eq!(server.events(&format!("eventType={TYPE}&correlationId=told-3")).await.len(), 1);
    assert!(server.buffers().await.is_empty());
    // Told again, each is known; and a number is one event's.
    for sequence in 1..=3 {
        let again = publisher.post(EVENTS, &numbered(sequence, "a")).await.expect(200);
        assert_eq!(again["state"], "duplicate");
    }
    let mut other = numbered(2, "a");
    other["id"] = json!("something else");
    publisher.post(EVENTS, &other).await.problem(409, "sequence_passed");
    let gap = publisher.post(EVENTS, &numbered(9, "a")).await.expect(202);
    assert_eq!(gap["state"], "buffered");
    other["sequence"] = json!(9);
    publisher.post(EVENTS, &other).await.problem(409, "sequence_taken");
    let batch: Vec<_> = (4..=8).rev().map(|sequence| numbered(sequence, "a")).collect();
    publisher.post(BATCH, &json!(batch)).await.expect(202);
    assert_eq!(server.told("a").await.len(), 9);
    server.finish().await;
}

/// S1-57, S1-59: after its time everything that waits of the key is a dead letter; others go on; an
/// administrator lets it go or gives it up, or what was missing comes after all.
#[tokio::test]
async fn a_gap_that_does_not_close_ends_in_dead_letters_that_are_resolved() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    for key in ["late", "released", "given-up"] {
        publisher.post(BATCH, &json!([numbered(2, key), numbered(3, key)])).await.expect(202);
    }
    server.advance_clock(4 * 60).await;
    publisher.post(EVENTS, &numbered(2, "young")).await.expect(202);
    assert!(server.gaps().await.is_empty(), "not before five minutes");
    server.advance_clock(61).await;
    let letters = eventually("the letters of what waited", || async {
        let letters = server.gaps().await;
        (letters.len() == 6).then_some(letters)
    })
    .await;
    for letter in &letters {
        assert_eq!(letter["state"], "dead");
        assert!(letter["error"].as_str().unwrap().starts_with("sequence_gap: "), "{letter}");
    }
    // Other keys are not concerned.
    publisher.post(EVENTS, &numbered(1, "young")).await.expect(202);
    assert_eq!(server.told("young").await, ["young-1", "young-2"]);

    publisher.post(EVENTS, &numbered(1, "late")).await.expect(202);
    assert_eq!(server.told("late").await, ["late-1", "late-2", "late-3"]);
    let of = |key: &str, buffers: &[Value]| -> String {
        let found = buffers.iter().find(|buffer| buffer["key"] == key).unwrap();
        assert_eq!((&found["expired"], &found["size"]), (&json!(2), &json!(2)));
        found["buffer_id"].as_str().unwrap().to_owned()
    };
    let buffers = server.buffers().await;
    assert_eq!(buffers.len(), 2);
    let path = format!("/api/v1/admin/buffers/{}/release", of("released", &buffers));
    let reason = json!({ "reason": "number 1 was never written" });
    let released = server.admin().named("let-go").post(&path, &reason).await.expect(200);
    assert_eq!((&released["size"], &released["missing"]), (&json!(0), &json!(4)));
    assert_eq!(server.told("released").await, ["released-2", "released-3"]);
    let resumed = server.events_of("let-go").await;
    let resumed = data_of(&resumed, "publication.resumed");
    assert_eq!(resumed["reason"], reason["reason"]);
    server.admin().post(&path, &reason).await.problem(409, "nothing_held");
    let path = format!("/api/v1/admin/buffers/{}/discard", of("given-up", &buffers));
    server.admin().post(&path, &json!({})).await.expect(200);
    publisher.post(EVENTS, &numbered(4, "given-up")).await.expect(202);
    assert_eq!(server.told("given-up").await, ["given-up-4"]);
    eventually("the letters to be gone", || async { server.gaps().await.is_empty().then_some(()) })
        .await;
    assert!(server.buffers().await.is_empty());
    server.finish().await;
}

/// The patience is configurable, and how much waits is bounded.
#[tokio::test]
async fn what_waits_is_bounded() {
    let server = Start::default().with("SEQUENCE_GAP_TIMEOUT", "1h").start().await;
    let publisher = server.publisher().await;
    let batch: Vec<_> = (2..=1_001).map(|sequence| numbered(sequence, "a")).collect();
    publisher.post(BATCH, &json!(batch)).await.expect(202);
    let full = publisher.post(EVENTS, &numbered(1_002, "a")).await;
    full.problem(409, "sequence_buffer_full");
    let mixed = json!([numbered(1_003, "a"), numbered(1, "b")]);
    let mixed = publisher.post(BATCH, &mixed).await.expect(202);
    assert_eq!(mixed.items()[0]["code"], "sequence_buffer_full");
    assert_eq!(mixed.items()[1]["state"], "stored");
    server.advance_clock(600).await;
    assert!(server.gaps().await.is_empty());
    publisher.post(EVENTS, &numbered(1, "a")).await.expect(202);
    assert_eq!(server.told("a").await.len(), 1_001);
    server.finish().await;
}

fn of_source(source: &str, sequence: u64, key: &str) -> Value {
    let mut event = numbered(sequence, key);
    event["source"] = json!(source);
    event["id"] = json!(format!("{source}{key}-{sequence}"));
    event
}

/// S1-62: what is ahead of its turn waits, is refused or comes to pass, as its source wants it.
#[tokio::test]
async fn each_source_says_what_becomes_of_what_is_ahead_of_its_turn() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    server.source("%2Fstrict", json!({ "on_violation": "reject" })).await.expect(200);
    server.source("%2Flatest", json!({ "on_violation": "accept_latest" })).await.expect(200);
    let patient = json!({ "on_violation": "buffer", "gap_timeout_ms": 1_200_000 });
    server.source("%2Fpatient", patient).await.expect(200);
    let said = server.admin().get("/api/v1/admin/event-sources").await.expect(200);
    let names: Vec<_> = said.items().iter().map(|of| of["source"].clone()).collect();
    assert_eq!(names, ["/latest", "/patient", "/strict"]);
    assert_eq!(said.items()[0]["gap_timeout_ms"], 300_000, "as the configuration says");

    // Refused, with the number that comes next; a batch goes on with what has its turn.
    let strict = |sequence| of_source("/strict", sequence, "s");
    let ahead = publisher.post(EVENTS, &strict(2)).await.problem(409, "sequence_gap");
    assert!(ahead.raw().contains("number 1 comes next"), "{ahead:?}");
    let batch = json!([strict(3), strict(1), strict(2), strict(9)]);
    let batch = publisher.post(BATCH, &batch).await.expect(202);
    let states: Vec<_> = batch.items().iter().map(|of| of["state"].clone()).collect();
    assert_eq!(states, ["refused", "stored", "stored", "refused"]);
    let refused = &batch.items()[3];
    assert_eq!((&refused["code"], &refused["missing"]), (&json!("sequence_gap"), &json!(3)));
    publisher.post(EVENTS, &strict(3)).await.expect(202);
    assert_eq!(server.told("s").await, ["/stricts-1", "/stricts-2", "/stricts-3"]);
    let label = "reason=\"sequence_gap\"";
    assert_eq!(server.metric("souk_events_rejected_total", label).await, 3.0);

    // The latest counts: what comes after it is too late.
    let latest = |sequence| of_source("/latest", sequence, "l");
    for sequence in [1, 5] {
        let stored = publisher.post(EVENTS, &latest(sequence)).await.expect(202);
        assert_eq!(stored["state"], "stored");
    }
    publisher.post(EVENTS, &latest(3)).await.problem(409, "sequence_passed");
    let again = publisher.post(EVENTS, &latest(5)).await.expect(200);
    assert_eq!(again["state"], "duplicate");
    assert_eq!(server.told("l").await, ["/latestl-1", "/latestl-5"]);

    // It waits, each source for as long as it says.
    let waiting = publisher.post(EVENTS, &of_source("/patient", 2, "p")).await.expect(202);
    assert_eq!((&waiting["state"], &waiting["missing"]), (&json!("buffered"), &json!(1)));
    publisher.post(EVENTS, &of_source("/erp", 2, "e")).await.expect(202);
    server.advance_clock(301).await;
    let letters = eventually("the letter of the other source", || async {
        let letters = server.gaps().await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert_eq!(letters.len(), 1);
    server.advance_clock(900).await;
    eventually("both letters", || async { (server.gaps().await.len() == 2).then_some(()) }).await;

    // A change holds for what comes: what waited goes before the next.
    server.source("%2Fpatient", json!({ "on_violation": "accept_latest" })).await.expect(200);
    publisher.post(EVENTS, &of_source("/patient", 4, "p")).await.expect(202);
    assert_eq!(server.told("p").await, ["/patientp-2", "/patientp-4"]);
    server.admin().delete("/api/v1/admin/event-sources/%2Fstrict").await.expect(204);
    server.admin().get("/api/v1/admin/event-sources/%2Fstrict").await.problem(404, "not_found");
    let waiting = publisher.post(EVENTS, &strict(5)).await.expect(202);
    assert_eq!(waiting["state"], "buffered", "as every other source");
    let stale = json!({}).to_string().into_bytes();
    let path = "/api/v1/admin/event-sources/%2Flatest";
    let stale =
        server.admin().if_match("\"1\"").send(reqwest::Method::PUT, path, Some(stale)).await;
    stale.problem(412, "version_mismatch");
    let bad = json!({ "on_violation": "drop", "gap_timeout_ms": 0 });
    let bad = server.source("x", bad).await.expect(422);
    assert_eq!(bad.pointers(), ["/on_violation", "/gap_timeout_ms"]);
    let long = server.source("x", json!({ "gap_timeout_ms": 604_800_001_u64 })).await.expect(422);
    assert_eq!(long.pointers(), ["/gap_timeout_ms"]);
    server.source(&"x".repeat(256), json!({})).await.expect(422);
    publisher.post(EVENTS, &of_source("/erp", 1, "e")).await.expect(202);
    eventually("the letters to be gone", || async { server.gaps().await.is_empty().then_some(()) })
        .await;
    server.finish().await;
}

/// S1-17: whoever published an event reads it where they were told that it is, and nobody else's.
#[tokio::test]
async fn a_publisher_reads_what_it_published_and_nothing_else() {
    let server = Server::start().await;
    let publisher = server.publisher().await;
    let body = json!({ "name": "another", "scopes": ["publisher"] });
    let other = server.service_token(body).await.expect(201).text("token");
    let other = server.visitor().with_token(&other);
    let mine = publisher.post(EVENTS, &event("1", "a")).await.expect(202);
    let location = mine.header("location").to_owned();
    let read = publisher.get(&location).await.expect(200);
    assert_eq!((&read["event_id"], &read["data"]), (&mine["event_id"], &json!({ "count": 1 })));
    let numbered_event = format!("{EVENTS}/{}", mine.text("event_ref"));
    publisher.get(&numbered_event).await.expect(200);
    other.get(&location).await.problem(404, "not_found");
    server.admin().get(&location).await.expect(200);
    server.visitor().get(&location).await.problem(401, "unauthenticated");
    server.buyer("Bea").await.client.get(&location).await.problem(403, "insufficient_scope");

    // What waits can be read once it has come to pass, whoever closes the gap.
    let waiting = publisher.post(EVENTS, &numbered(2, "b")).await.expect(202);
    let location = waiting.header("location").to_owned();
    publisher.get(&location).await.problem(404, "not_found");
    other.post(EVENTS, &numbered(1, "b")).await.expect(202);
    publisher.get(&location).await.expect(200);
    other.get(&location).await.problem(404, "not_found");

    // Nor what the marketplace's own events say, or what became of the stream.
    for event_type in ["publication.buffered", "service_token.issued"] {
        let events = server.events(&format!("eventType={event_type}")).await;
        let path = format!("{EVENTS}/{}", events[0]["event_id"].as_str().unwrap());
        server.admin().get(&path).await.expect(200);
        publisher.get(&path).await.problem(404, "not_found");
    }
    let deliveries = format!("{location}/deliveries");
    publisher.get(&deliveries).await.problem(403, "insufficient_scope");
    server.finish().await;
}
