//! Events as they happen, by server-sent events (S2-67, X33).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Server, Start, Stream, Told, eventually, http2, position};

fn data_of(told: &[Told]) -> Vec<Value> {
    told.iter().map(|of| of.data.clone()).collect()
}

#[tokio::test]
async fn events_arrive_as_they_happen_and_a_reader_goes_on_where_it_was() {
    let server = Start::default().partitions(3).start().await;
    let admin = server.admin();
    let mut stream = admin.listen("eventType=order.*").await;
    assert_eq!(stream.retry, Some(3_000));
    let begun = stream.last_id.clone();
    let sale = server.sale(5, 1, "sandbox").await;
    let all = stream.take(4).await;
    let types: Vec<_> = all.iter().map(|told| told.event.as_str()).collect();
    assert_eq!(types, ["order.placed", "order.confirmed", "order.paid", "order.shipped"]);
    let stored = server.events(&format!("aggregateId={}", sale.order.id)).await;
    assert_eq!(data_of(&all), stored, "the event is the one that the event store has");

    // Behind each of them, and behind the place at which the first stream began.
    for (index, id) in [&begun].into_iter().chain(all.iter().map(|told| &told.id)).enumerate() {
        let mut resumed = admin.listen_behind("eventType=order.*&seconds=0", id).await;
        assert_eq!(data_of(&resumed.rest().await), data_of(&all[index..]));
        // As `after`; the header counts for more, as a browser's URL stays the same.
        let query = format!("eventType=order.*&seconds=0&after={id}");
        assert_eq!(admin.listen(&query).await.rest().await.len(), all.len() - index);
        let last = &all[3].id;
        assert_eq!(admin.listen_behind(&query, last).await.rest().await, []);
    }
    let camel = admin.listen_behind("eventType=order.*&seconds=0&case=camel", &begun).await;
    let camel = { camel }.rest().await;
    assert_eq!(camel[0].data["eventType"], "OrderPlaced");
    server.finish().await;
}

#[tokio::test]
async fn the_whole_log_is_streamed_in_order_and_goes_on_after_a_crash() {
    let mut server = Start::default().partitions(3).start().await;
    let sale = server.sale(100, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let mut first = server.admin().listen("after=0:0").await;
    let mut told = first.take(20).await;
    server.kill_9_and_start_again().await;
    // What was under way when the process was killed still comes, or comes after the start.
    told.extend(first.rest().await);
    let last = told.last().unwrap().id.clone();
    let order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let mut resumed = server.admin().listen_behind("seconds=0", &last).await;
    told.extend(resumed.rest().await);

    let mut by_partition: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for of in &told {
        assert_eq!(of.event, of.data["event_type"]);
        let partition = of.data["partition"].as_u64().unwrap();
        by_partition.entry(partition).or_default().push(position(&of.data));
    }
    assert_eq!(by_partition.len(), 3);
    for positions in by_partition.values() {
        let gapless: Vec<_> = (1..=positions.len() as u64).collect();
        assert_eq!(*positions, gapless, "none is missing, double or out of order");
    }
    assert_eq!(told.len(), server.events("").await.len());
    server.finish().await;
}

#[tokio::test]
async fn a_stream_is_of_what_was_asked_for() {
    let server = Server::start().await;
    let sale = server.sale(5, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let admin = server.admin();
    let told = async |query: &str| {
        data_of(&admin.listen(&format!("after=0:0&seconds=0&{query}")).await.rest().await)
    };
    let orders = server.events("aggregateType=order").await;
    assert_eq!(orders.len(), 4);
    for same in [
        "aggregateType=order".to_owned(),
        "eventType=order.%23".to_owned(),
        "event_type=%23&aggregateType=order".to_owned(),
        r"eventType=~%5Eorder%5C.%5Ba-z%5D%7B2,10%7D$".to_owned(),
        "eventType=order.placed,OrderConfirmed,order.paid.v1,*.shipped".to_owned(),
        format!("aggregateId=order-{}", sale.order.id),
        format!("aggregateType=order&correlationId={}", sale.order.correlation_id),
    ] {
        assert_eq!(told(&same).await, orders, "{same}");
    }
    assert!(told("eventType=no.such").await.is_empty());

    // S1-36: words, any number of words, and regular expressions. Order is of partitions.
    let by_partition = |mut events: Vec<Value>| {
        events.sort_by_key(|event| event["partition"].as_u64());
        events
    };
    let all = server.events("").await;
    let of = |wanted: &dyn Fn(&str) -> bool| {
        let fits = |event: &&Value| wanted(event["event_type"].as_str().unwrap());
        all.iter().filter(fits).cloned().collect::<Vec<_>>()
    };
    let words = |name: &str| name.split('.').count();
    let begins = |name: &str, first: &str| name.split('.').next() == Some(first);
    for (pattern, expected) in [
        ("order.%2A", of(&|name| begins(name, "order") && words(name) == 2)),
        ("notification.%2A", of(&|name| begins(name, "notification") && words(name) == 2)),
        ("notification.%23", of(&|name| begins(name, "notification"))),
        ("%2A.sent", of(&|name| name.ends_with(".sent") && words(name) == 2)),
        ("%23.sent", of(&|name| name.ends_with(".sent"))),
        ("~%5E(order%7Cpayment)%5C.", of(&|name| begins(name, "order") || begins(name, "payment"))),
    ] {
        let told = told(&format!("eventType={pattern}")).await;
        assert_eq!(by_partition(told), by_partition(expected), "{pattern}");
    }
    assert_ne!(
        of(&|name| begins(name, "notification")),
        of(&|name| begins(name, "notification") && words(name) == 2)
    );

    let refused = async |query: &str| admin.get(&format!("/api/v1/events/stream?{query}")).await;
    for bad in ["~%5B", "order..placed", "order.placed,"] {
        let pointers = refused(&format!("seconds=0&eventType={bad}")).await.pointers();
        assert_eq!(pointers, ["eventType"], "{bad}");
    }
    for (bad, code) in [
        ("after=nonsense", "invalid_parameter"),
        ("after=0:999999", "invalid_parameter"),
        ("after=77:0", "invalid_parameter"),
        ("seconds=soon", "invalid_parameter"),
        ("aggregateId=7", "invalid_parameter"),
    ] {
        refused(bad).await.problem(400, code);
    }
    let made_up = admin.with("last-event-id", "AAAA").get("/api/v1/events/stream").await;
    made_up.problem(400, "invalid_cursor");
    server.finish().await;
}

#[tokio::test]
async fn a_silent_stream_says_that_it_is_there_and_how_far_it_is() {
    let server = Server::start().await;
    let admin = server.admin();
    let mut stream = admin.listen("eventType=user.suspended").await;
    let begun = stream.last_id.clone();
    server.buyer("Ann").await;
    while stream.comments.is_empty() {
        assert_eq!(stream.block().await, Some(None));
    }
    assert_eq!(stream.comments, ["still here"]);
    // Somebody for whom nothing ever happens does not fall out of the window.
    assert_ne!(stream.last_id, begun);
    let whole = admin.listen_behind("seconds=0", &begun).await.rest().await.len();
    let rest = admin.listen_behind("seconds=0", &stream.last_id).await.rest().await.len();
    assert!(rest < whole, "{rest} of {whole}");
    server.finish().await;
}

#[tokio::test]
async fn streams_have_places_and_end_with_the_service() {
    let mut server = Start::default().with("HTTP_STREAMS_MAX", 2).start().await;
    let admin = server.admin();
    let first = admin.listen("").await;
    let mut second = admin.listen("").await;
    let full = admin.get("/api/v1/events/stream").await.problem(503, "too_many_streams");
    assert!(full.header("retry-after").parse::<u64>().unwrap() > 0);
    drop(first);
    let mut third = eventually("a place to become free", || async {
        let answer = admin.open("/api/v1/events/stream").await;
        (answer.status() == 200).then_some(answer)
    })
    .await;
    assert_eq!(server.metric_of("souk_streams_open").await, Some(2.0));
    assert!(server.terminate().await.success(), "a stream does not keep the service from ending");
    assert_eq!(second.rest().await, []);
    while let Some(chunk) = third.chunk().await.expect("it ends in order") {
        assert!(!chunk.is_empty());
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_token() {
    let mut server = Server::start().await;
    server.terminate().await;
    let create = ["admin", "create", "--email", "root@example.com"];
    assert_eq!(server.command(&create).reading("a long enough password\n").run().code, 0);
    server.start_again().await;
    let tokens = server.login("root@example.com", "a long enough password").await.expect(200);
    let root = server.visitor().with_token(&tokens.text("access_token"));
    let mut stream = root.listen("eventType=user.registered").await;
    server.register("Ann").await.expect(201);
    assert_eq!(stream.next().await.unwrap().event, "user.registered");
    server.advance_clock(20 * 60).await;
    server.register("Bea").await.expect(201);
    assert_eq!(stream.next().await, None);
    let last = root.with("last-event-id", &stream.last_id);
    last.get("/api/v1/events/stream").await.problem(401, "invalid_token");
    server.finish().await;
}

/// Asserts that a stream ends by itself: one that goes on says again and again that it is there.
async fn ends(mut stream: Stream) {
    while stream.block().await.is_some() {
        assert!(stream.comments.len() < 3, "it goes on");
    }
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_taken_back() {
    let server = Server::start().await;
    let path = "/api/v1/admin/service-tokens";
    let issue = async || {
        let wish = json!({ "name": "the ledger", "scopes": ["events:read"] });
        let made = server.admin().post(path, &wish).await.expect(201);
        (made.text("token_id"), server.visitor().with_token(&made.text("token")))
    };
    let ((id, client), (_, other)) = (issue().await, issue().await);
    let mut stream = client.listen("eventType=user.registered").await;
    let mut others = other.listen("eventType=user.registered").await;
    server.register("Ann").await.expect(201);
    assert_eq!(stream.next().await.unwrap().event, "user.registered");
    server.admin().delete(&format!("{path}/{id}")).await.expect(204);
    ends(stream).await;
    server.register("Bea").await.expect(201);
    assert_eq!(others.take(2).await.len(), 2, "another token's stream goes on");
    assert_eq!(server.metric_of("souk_streams_cut_total").await.unwrap_or_default(), 0.0);
    drop(others);
    server.finish().await;
}

#[tokio::test]
async fn streams_end_with_the_login_and_the_account_that_they_rest_on() {
    let mut server = Server::start().await;
    let mut boss = server.administrator("ada").await;
    let quiet = "eventType=user.suspended&aggregateId=00000000-0000-7000-8000-000000000000";
    let program = boss.program(&["admin:read"]).await;
    let of_login = boss.client.listen(quiet).await;
    let of_key = program.listen(quiet).await;
    boss.client.post("/api/v1/auth/logout", &json!({})).await.expect(204);
    ends(of_login).await;
    boss.log_in_again().await;
    let again = boss.client.listen(quiet).await;
    let sagas = boss.client.listen_at("/api/v1/admin/sagas/stream", "saga=none").await;
    let path = format!("/api/v1/admin/users/{}/suspend", boss.user_id);
    server.admin().post(&path, &json!({ "reason": "complaints" })).await.expect(200);
    for stream in [of_key, again, sagas] {
        ends(stream).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn a_stream_goes_back_so_far_and_no_further() {
    let server = Start::default().with("STREAM_RETENTION", "24h").start().await;
    let admin = server.admin();
    let begun = admin.listen("").await.last_id;
    server.register("Ann").await.expect(201);
    server.at_rest().await;
    let seen = admin.listen("").await.last_id;
    server.advance_clock(25 * 60 * 60).await;
    // Whoever has seen everything can go on however late it is.
    assert_eq!(admin.listen_behind("seconds=0", &seen).await.rest().await, []);
    server.register("Bea").await.expect(201);
    let late = admin.with("last-event-id", &begun).get("/api/v1/events/stream?seconds=0").await;
    late.problem(410, "position_archived");
    let start = admin.get("/api/v1/events/stream?seconds=0&after=0:0").await;
    start.problem(410, "position_archived");
    let told = admin.listen_behind("eventType=UserRegistered&seconds=0", &seen).await.rest().await;
    assert_eq!(told[0].data["data"]["email"], json!("bea@example.com"));
    server.finish().await;
}

#[tokio::test]
async fn a_reader_that_does_not_keep_up_is_disconnected() {
    let server = Start::default()
        .with("HTTP_WRITE_TIMEOUT", "1s")
        .with("HTTP_HEADER_TIMEOUT", "1s")
        .start()
        .await;
    let sale = server.sale(100, 1, "sandbox").await;
    let path = "/api/v1/events/stream?after=0:0";
    let url = server.url();
    let mut reader = http2::connect(url.trim_start_matches("http://")).await;
    // It takes what fits its window and never widens that, but answers pings.
    reader.write_all(&http2::get_as(1, path, server.admin_token())).await.unwrap();
    for _ in 0..4 {
        server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
    }
    let kinds = ended(&mut reader).await;
    assert!(kinds.contains(&http2::DATA) && kinds.contains(&http2::GOAWAY), "{kinds:?}");
    assert_eq!(server.metric_of("souk_streams_cut_total").await, Some(1.0));
    assert_eq!(server.metric_of("souk_streams_open").await, Some(0.0));
    server.at_rest().await;

    // One that reads is left alone, however long nothing happens.
    let mut polite = server.admin().listen("eventType=user.registered").await;
    assert_eq!(polite.block().await, Some(None));
    server.register("Ann").await.expect(201);
    assert!(polite.next().await.is_some());
    drop(polite);
    server.finish().await;
}

async fn ended(reader: &mut TcpStream) -> Vec<u8> {
    let patience = std::time::Duration::from_secs(60);
    let read = tokio::time::timeout(patience, http2::read_politely(reader)).await;
    read.expect("the server hangs up in time")
}
