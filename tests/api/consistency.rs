//! What readers can rely on (S0-122, S2-49, S0-104, X9).

use std::collections::BTreeMap;

use serde_json::json;

use crate::documents::mixed_run;
use crate::purchases::with_one_and_three_partitions;
use crate::support::{Server, Start, address, parallel};

/// S0-122.
#[tokio::test]
async fn a_thousand_writes_are_read_at_once() {
    let server = Start::default().partitions(3).start().await;
    let sam = server.seller("Sam").await;
    let mut listings = Vec::new();
    for _ in 0..10 {
        listings.push(server.listing(&sam, 1).await);
    }
    let (sam, server) = (&sam, &server);
    // Ten writers, each its own listing: what one has written it reads, and nothing older.
    parallel(10, |writer| {
        let path = format!("/api/v1/listings/{}", listings[writer]);
        async move {
            let mut state = u64::try_from(writer).unwrap() + 1;
            for round in 1..=100 {
                // xorshift: no two writers write the same.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let change = json!({ "title": format!("{round}: {state}") });
                let wrote = sam.client.if_match("*").patch(&path, &change).await.expect(200);
                let read = server.visitor().get(&path).await.expect(200);
                assert_eq!(read.json(), wrote.json());
                assert_eq!(read["title"], change["title"]);
                assert_eq!(read["version"], round + 1);
            }
        }
    })
    .await;
    // And the list, once it is asked to include the last of them.
    server.at_rest().await;
    let page = sam.client.get("/api/v1/me/listings").await.expect(200);
    assert!(page.items().iter().all(|of| of["version"] == 101), "{page:?}");
}

/// How many pairs of a write and a read the next test makes, when not some hundreds.
const PAIRS_VARIABLE: &str = "SOUK_TEST_PAIRS";

with_one_and_three_partitions!(a_list_includes_what_its_reader_has_written);

/// S0-104, X9: a write, then lists that are asked to include it. None is stale, also while everything
/// is busy, and each says how far its view had come.
async fn a_list_includes_what_its_reader_has_written(partitions: u16) {
    const WRITERS: usize = 8;
    let pairs = std::env::var(PAIRS_VARIABLE).ok().and_then(|pairs| pairs.parse().ok());
    let rounds = pairs.unwrap_or(400_usize).div_ceil(WRITERS);
    let server = Start::default().partitions(partitions).start().await;
    let mut sellers = Vec::new();
    for writer in 0..WRITERS {
        let sam = server.seller(&format!("Sam{writer}")).await;
        let listing = server.listing(&sam, 1).await;
        sellers.push((sam, listing));
    }
    let (sellers, server) = (&sellers, &server);
    parallel(WRITERS, |writer| async move {
        let (sam, listing) = &sellers[writer];
        let client = sam.client.if_match("*");
        for round in 1..=rounds {
            let change = json!({ "title": format!("{writer}: {round}") });
            let wrote = client.patch(&format!("/api/v1/listings/{listing}"), &change).await;
            let wrote = wrote.expect(200);
            let position = wrote.header("souk-position");
            let seller = &sam.user_id;
            for list in [
                format!("/api/v1/me/listings?min_position={position}"),
                format!("/api/v1/listings?seller_id={seller}&min_position={position}"),
            ] {
                let read = sam.client.with("prefer", "wait=10").get(&list).await.expect(200);
                assert_eq!(read.items()[0]["title"], change["title"], "{list}");
                assert_eq!(read.items()[0]["version"], wrote["version"], "{list}");
                assert_eq!(read.header("preference-applied"), "wait=10");
                assert!(includes(read.header("souk-projection-position"), position), "{read:?}");
            }
            let correlation = wrote.header("x-correlation-id");
            let events = format!("/api/v1/events?correlationId={correlation}");
            let events = format!("{events}&eventType=listing.updated&min_position={position}");
            let events = server.admin().get(&events).await.expect(200);
            assert_eq!(events.items().len(), 1, "{events:?}");
        }
    })
    .await;
}

/// Whether a view that has come so far has seen a position.
fn includes(view: &str, position: &str) -> bool {
    let read = |text: &str| {
        let (partition, position) = text.split_once(':').unwrap();
        (partition.to_owned(), position.parse::<u64>().unwrap())
    };
    let (partition, at) = read(position);
    view.split(',').map(read).any(|(of, reached)| of == partition && reached >= at)
}

/// A list waits for as long as its reader would, and then says that it has not got there.
#[tokio::test]
async fn a_list_that_does_not_get_there_says_so() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    server.at_rest().await;
    for (view, list) in [
        ("listings-view", "/api/v1/me/listings"),
        ("orders-view", "/api/v1/me/orders"),
        ("notifications-view", "/api/v1/notifications"),
        ("categories-view", "/api/v1/categories"),
        ("sagas-view", "/api/v1/admin/sagas"),
        ("search-view", "/api/v1/search"),
        ("events-index", "/api/v1/events"),
        ("events-index", "/api/v1/traces"),
    ] {
        server.pause(view).await;
        let listing = sam.client.post("/api/v1/listings", &server.offer(1).await).await;
        let position = listing.expect(201).header("souk-position").to_owned();
        let asked = format!("{list}?min_position={position}");
        let client = if list.contains("/me/") { sam.client.clone() } else { server.admin() };
        let stale = client.with("prefer", "wait=0").get(&asked).await;
        let stale = stale.problem(503, "projection_behind");
        assert!(!stale.header("retry-after").is_empty());
        client.get(list).await.expect(200);
        server.resume(view).await;
        client.with("prefer", "wait=10").get(&asked).await.expect(200);
    }
    server.finish().await;
}

/// What several commands have left behind names several partitions, and is asked for as it was told.
#[tokio::test]
async fn a_list_includes_what_stands_in_several_partitions() {
    let server = Start::default().partitions(3).start().await;
    let (sam, sue) = (server.seller("Sam").await, server.seller("Sue").await);
    let bea = server.buyer("Bea").await;
    let (loom, lamp) = (server.listing(&sam, 50).await, server.listing(&sue, 50).await);
    let body = json!({
        "items": [
            { "listing_id": loom, "quantity": 1 },
            { "listing_id": lamp, "quantity": 1 },
        ],
        "delivery_address": address(),
        "payment_method": "sandbox",
    });
    // Which partition an order is in is chance.
    let mut number = 0;
    let checkout = loop {
        number += 1;
        let keyed = bea.client.keyed(&format!("basket-{number}"));
        let checkout = keyed.post("/api/v1/checkouts", &body).await.expect(201);
        if checkout.header("souk-position").contains(',') {
            break checkout;
        }
    };
    let positions = checkout.header("souk-position");
    let list = format!("/api/v1/me/orders?limit=200&min_position={positions}");
    let read = bea.client.with("prefer", "wait=10").get(&list).await.expect(200);
    let reached = read.header("souk-projection-position");
    assert!(positions.split(',').all(|at| includes(reached, at)), "{positions}: {reached}");
    for order in checkout["orders"].as_array().unwrap() {
        let id = order["order_id"].as_str().unwrap();
        assert!(read.items().iter().any(|row| row["order_id"] == id), "{id}: {read:?}");
        server.awaited(&format!("aggregateId={id}&min_position={positions}")).await.expect(200);
    }
    server.at_rest().await;
    server.finish().await;
}

/// Lists that rest on no read model: on the journal's own tables, on memory, or made for the caller.
const NOT_PROJECTED: &[&str] = &[
    "/api/v1/admin/aggregates/{aggregate_type}/{id}/history",
    "/api/v1/admin/audit",
    "/api/v1/admin/projections/{projection}/diff",
    "/api/v1/dlq",
];

/// X9: every list of a read model can be asked to include what its reader has written. One that is
/// added without fails here.
#[tokio::test]
async fn every_list_of_a_read_model_waits_when_asked_to() {
    let server = Server::start().await;
    let things = server.things().await;
    let mut waiting = 0;
    for operation in server.operations(&things).await {
        let takes = |name: &str| operation.query.iter().any(|known| known == name);
        let is_list = operation.method == reqwest::Method::GET
            && takes("cursor")
            && operation.path.starts_with("/api/v1/")
            && !operation.path.starts_with("/api/v1/dev/");
        if !is_list || NOT_PROJECTED.contains(&operation.path.as_str()) {
            continue;
        }
        assert!(takes("min_position"), "{} does not take min_position", operation.name());
        let ask = |query: &str| format!("{}?min_position={query}", operation.target);
        let admin = server.admin();
        admin.get(&ask("0:999999999")).await.problem(400, "invalid_parameter");
        admin.get(&ask("0:1,0:999999999")).await.problem(400, "invalid_parameter");
        admin.with("prefer", "wait=7").get(&ask("0:1,0:2")).await.expect(200);
        let read = admin.with("prefer", "wait=7").get(&ask("0:1")).await.expect(200);
        assert_eq!(read.header("preference-applied"), "wait=7", "{}", operation.name());
        let place = read.header("souk-projection-position");
        assert!(includes(place, "0:1"), "{}: {place}", operation.name());
        waiting += 1;
    }
    assert!(waiting >= 8, "only {waiting} lists");
    server.finish().await;
}

/// Operations that answer a success and write nothing that has a position: into memory, or into rows
/// beside the journal. The routes of development are not commands.
const WITHOUT_POSITION: &[&str] = &["POST /api/v1/admin/quarantine/{aggregate_type}/{id}/release"];

/// X9: whoever changes something is told where that stands, so that whatever is read can be asked to
/// include it. A command that is added without fails here.
#[tokio::test]
async fn every_command_that_writes_says_where() {
    let server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let things = server.things().await;
    letters(&server, 8).await;
    let (mut wrote, mut asked) = (BTreeMap::new(), 0);
    for operation in server.operations(&things).await {
        let name = operation.name();
        let is_command = operation.method != reqwest::Method::GET
            && operation.path.starts_with("/api/v1/")
            && !operation.path.starts_with("/api/v1/dev/")
            && !WITHOUT_POSITION.contains(&name.as_str());
        if !is_command {
            continue;
        }
        let (mut target, mut body) = (operation.target.clone(), operation.body.clone());
        match operation.path.as_str() {
            path if path.starts_with("/api/v1/dlq/{") => {
                let verb = path.rsplit('/').next().unwrap();
                let letters = server.letters(Some("notifications")).await;
                let letter = letters.iter().find(|letter| letter["state"] == "dead").unwrap();
                let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
                target = format!("/api/v1/dlq/notifications/{partition}/{key}/{verb}");
                body = Some(json!({}));
            }
            path if path.starts_with("/api/v1/dlq/") => {
                body =
                    Some(json!({ "subscription": "notifications", "limit": 1, "dry_run": false }));
            }
            "/api/v1/webhooks/{id}/redeliver" => {
                body = Some(json!({ "from": "1970-01-01T00:00:00Z" }));
            }
            _ => {}
        }
        let body = body.map(|body| body.to_string().into_bytes());
        // Whoever may do it.
        let people = [&server.admin(), &things.seller.client, &things.buyer.client];
        for (who, client) in people.into_iter().enumerate() {
            asked += 1;
            let correlation = format!("command-{asked}");
            let client = client.named(&correlation).if_match("*");
            let answer = client.send(operation.method.clone(), &target, body.clone()).await;
            if answer.status() >= 300 {
                continue;
            }
            let events = server.events_of(&correlation).await;
            let place =
                |event: &serde_json::Value| format!("{}:{}", event["partition"], event["position"]);
            let said = answer.header("souk-position");
            let places: Vec<_> = events.iter().map(place).collect();
            let is_said = said.split(',').all(|said| places.iter().any(|of| of == said));
            // What is published names its own correlation.
            let is_own = operation.path.starts_with("/api/v1/events") && !said.is_empty();
            assert!(
                is_said || is_own || (said.is_empty() && events.is_empty()),
                "{name} as {who}: {said:?} is none of {places:?}: {answer:?}"
            );
            *wrote.entry(name.clone()).or_insert(0) += usize::from(!said.is_empty());
        }
    }
    let silent: Vec<_> = wrote.iter().filter(|(_, times)| **times == 0).collect();
    let wrote = wrote.len() - silent.len();
    assert!(wrote >= 25, "only {wrote} operations wrote something; {silent:?} did not");
}

/// So many dead letters of `notifications`, each of its own key.
async fn letters(server: &Server, number: usize) {
    let fault = server.fault("notifications", "fail", json!({ "kind": "permanent" })).await;
    for index in 0..number {
        server.newcomer(&format!("Lea{index}")).await;
    }
    server.at_rest().await;
    server.mend(fault).await;
    assert_eq!(server.letters(Some("notifications")).await.len(), number);
}

/// S2-49: what lists say is what the resources say.
#[tokio::test]
async fn lists_agree_with_what_they_list() {
    let mut server = Server::start().await;
    mixed_run(&server).await;
    compare_lists(&server).await;
    // Read models can be thrown away.
    assert!(server.terminate().await.success());
    server.forget_read_models().await;
    server.start_again().await;
    server.at_rest().await;
    compare_lists(&server).await;
    server.finish().await;
}

async fn compare_lists(server: &Server) {
    let listings = server.visitor().get("/api/v1/listings?status=ALL").await.expect(200);
    assert_eq!(listings.items().len(), 1);
    for row in listings.items() {
        let now = server.listing_now(row["listing_id"].as_str().unwrap()).await;
        for name in [
            "title",
            "price",
            "status",
            "available_quantity",
            "reserved_quantity",
            "sold_quantity",
            "version",
            "created_at",
            "seller_id",
            "category_id",
        ] {
            assert_eq!(row[name], now[name], "{name}");
        }
    }
    let bea = server.login("bea@example.com", "Bea has a long password").await.expect(200);
    let bea = server.visitor().with_token(&bea.text("access_token"));
    let orders = bea.get("/api/v1/me/orders").await.expect(200);
    assert_eq!(orders.items().len(), 4);
    for row in orders.items() {
        let now = server.order_now(row["order_id"].as_str().unwrap()).await;
        for name in ["order_number", "status", "buyer_id", "seller_id", "version", "placed_at"] {
            assert_eq!(row[name], now[name], "{name}");
        }
        assert_eq!(row["total"]["amount"], now["amount"]);
    }
    let sagas = server.admin().get("/api/v1/admin/sagas").await.expect(200);
    assert_eq!(sagas.items().len(), 4);
}

/// Many people at once, in several partitions: each thing's history is in order and whole.
#[tokio::test]
async fn order_holds_for_everything_that_happens_at_once() {
    let server = Start::default().partitions(3).start().await;
    let sam = server.seller("Sam").await;
    let buyers = [server.buyer("Ann").await, server.buyer("Bea").await, server.buyer("Cat").await];
    let mut listings = Vec::new();
    for _ in 0..3 {
        listings.push(server.listing(&sam, 20).await);
    }
    let orders = parallel(45, |index| {
        let (client, listing) = (&buyers[index % 3].client, &listings[index / 3 % 3]);
        let method = if index % 5 == 0 { "test_decline" } else { "sandbox" };
        server.place_order(client, listing, 1, method)
    })
    .await;
    for (index, order) in orders.iter().enumerate() {
        let status = if index % 5 == 0 { "PAYMENT_FAILED" } else { "SHIPPED" };
        server.order_eventually(&order.id, status).await;
    }
    server.at_rest().await;
    let mut last: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for event in server.events("").await {
        let of = (event["aggregate_type"].to_string(), event["aggregate_id"].to_string());
        let (version, position) = last.entry(of).or_default();
        let (next, at) =
            (event["aggregate_version"].as_u64().unwrap(), event["position"].as_u64().unwrap());
        assert_eq!(next, *version + 1, "{event}");
        assert!(at > *position, "{event}");
        (*version, *position) = (next, at);
    }
    let mut sold = 0;
    for listing in &listings {
        let (available, reserved, gone) = server.stock(listing).await;
        assert_eq!((available + gone, reserved), (20, 0));
        sold += gone;
    }
    assert_eq!(sold, 36);
    server.finish().await;
}
