//! Rebuilding read models beside the ones that serve (S2-61, S4-95).

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Client, Server, Start, eventually, parallel};

const ALL: [&str; 11] = [
    "events-index",
    "listings-view",
    "orders-view",
    "shipments-view",
    "notifications-view",
    "categories-view",
    "users-view",
    "sessions-view",
    "sagas-view",
    "search-view",
    "analytics-view",
];

fn path(name: &str, what: &str) -> String {
    format!("/api/v1/admin/projections/{name}{what}")
}

/// The version of a read model that does not serve.
fn beside(projection: &Answer) -> &Value {
    let versions = projection["versions"].as_array().unwrap();
    versions.iter().find(|version| version["serves"] == false).expect("there are two versions")
}

impl Server {
    async fn projection(&self, name: &str) -> Answer {
        self.admin().get(&path(name, "")).await.expect(200)
    }

    /// Begins to rebuild a read model, at this many events a second.
    async fn rebuild(&self, name: &str, rows_per_second: u32) -> Answer {
        let body = json!({ "reason": "to see", "rows_per_second": rows_per_second });
        let begun = self.admin().post(&path(name, "/rebuilds"), &body).await.expect(202);
        assert_eq!(begun.header("location"), path(name, ""));
        begun
    }

    /// Waits until the version beside the one that serves is level.
    async fn level(&self, name: &str) -> Answer {
        eventually(&format!("the new {name} to be level"), || async {
            let now = self.projection(name).await;
            (beside(&now)["state"] == "level").then_some(now)
        })
        .await
    }

    /// Does something that rests on how the read model is now.
    async fn steer_version(&self, name: &str, what: &str) -> Answer {
        let tag = self.projection(name).await.header("etag").to_owned();
        let done = self.admin().if_match(&tag).post(&path(name, what), &json!({})).await;
        let done = done.expect(200);
        assert_ne!(done.header("etag"), tag);
        assert!(!done.header("souk-position").is_empty());
        done
    }

    /// What all pages of a comparison come to.
    async fn diff(&self, name: &str, limit: u32) -> (u64, u64, u64, Vec<Value>) {
        let (mut rows, mut differing, mut one_sided) = ((0, 0), 0, 0);
        let (mut sample, mut cursor) = (Vec::new(), String::new());
        loop {
            let query = format!("/diff?limit={limit}{cursor}");
            let part = self.admin().get(&path(name, &query)).await.expect(200);
            let number = |name: &str| part[name].as_u64().unwrap();
            rows = (rows.0 + number("serving_rows"), rows.1 + number("beside_rows"));
            differing += number("differing");
            one_sided += number("only_serving") + number("only_beside");
            sample.extend(part["sample"].as_array().unwrap().clone());
            match part["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(rows.0 + rows.1, rows.0.max(rows.1) * 2 - rows.0.abs_diff(rows.1));
        (rows.0.max(rows.1), differing, one_sided, sample)
    }

    async fn titles(&self, seller: &Client) -> Vec<String> {
        let page = seller.get("/api/v1/me/listings").await.expect(200);
        page.items().iter().map(|of| of["title"].as_str().unwrap().to_owned()).collect()
    }
}

/// A row that somebody changed by hand is found by the comparison and healed by the cut-over; the
/// way back leads to what was there, and what is discarded is gone.
#[tokio::test]
async fn a_damaged_row_is_shown_by_the_diff_and_healed_by_a_rebuild() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    for _ in 0..3 {
        server.listing(&sam, 1).await;
    }
    server.at_rest().await;
    let read_models = server.read_models().await;
    let damage = "UPDATE listings_v3 SET title = 'No such thing' WHERE listing_id = \
        (SELECT MIN(listing_id) FROM listings_v3)";
    assert_eq!(read_models.change(damage).await.unwrap(), 1);
    read_models.close().await;

    server.rebuild("listings-view", 100_000).await;
    server.level("listings-view").await;
    let (rows, differing, one_sided, sample) = server.diff("listings-view", 2).await;
    assert_eq!((rows, differing, one_sided), (3, 1, 0));
    assert_eq!(sample[0]["kind"], "differs");
    assert_eq!(sample[0]["columns"], json!(["title"]));
    assert_eq!(sample[0]["table"], "listings_v3");

    let is_damaged =
        || async { server.titles(&sam.client).await.contains(&"No such thing".to_owned()) };
    assert!(is_damaged().await);
    let cut = server.steer_version("listings-view", "/cut-over").await;
    assert_eq!(cut["serving_version"], 2);
    assert!(!is_damaged().await);
    assert_eq!(server.steer_version("listings-view", "/roll-back").await["serving_version"], 1);
    assert!(is_damaged().await);
    server.steer_version("listings-view", "/cut-over").await;
    // Both go on being written: what happens now is in the old version too.
    let listing = server.listing(&sam, 1).await;
    server.caught_up("listings-view").await;
    assert_eq!(server.titles(&sam.client).await.len(), 4);
    assert_eq!(server.diff("listings-view", 200_000).await.0, 4);
    for version in ["1", "2"] {
        let metric = format!("version=\"{version}\"");
        assert!(server.metric("souk_projection_position", &metric).await > 0.0, "{metric}");
    }

    server.steer_version("listings-view", "/discard").await;
    assert_eq!(server.projection("listings-view").await["versions"].as_array().unwrap().len(), 1);
    server.admin().get(&path("listings-view", "/diff")).await.problem(409, "no_rebuild");
    // Where the old one was is told no more, however far the journal goes on.
    server.register("Ann").await.expect(201);
    server.caught_up("listings-view").await;
    assert!(server.metric("souk_projection_position", "version=\"1\"").await.is_nan());
    assert!(server.metric("souk_projection_position", "version=\"2\"").await > 0.0);
    assert_eq!(server.titles(&sam.client).await.len(), 4);

    // Numbers grow, and the tables of version 1 can be filled no more, but are made like again.
    server.rebuild("listings-view", 100_000).await;
    let level = server.level("listings-view").await;
    assert_eq!(beside(&level)["version"], 3);
    assert_eq!(server.diff("listings-view", 3).await, (4, 0, 0, Vec::new()));
    server.steer_version("listings-view", "/cut-over").await;
    server.steer_version("listings-view", "/discard").await;
    let change = json!({ "title": "Changed in version 3" });
    let resource = format!("/api/v1/listings/{listing}");
    let wrote = sam.client.if_match("*").patch(&resource, &change).await.expect(200);
    let position = wrote.header("souk-position");
    let list = format!("/api/v1/me/listings?min_position={position}");
    let read = sam.client.get(&list).await.expect(200);
    assert!(read.items().iter().any(|of| of["title"] == change["title"]), "{read:?}");

    // All of it is in the journal, with the reason.
    let events = server.events("").await;
    let of = |event_type: &str| events.iter().filter(|of| of["event_type"] == event_type).count();
    assert_eq!(of("projection.rebuild_requested"), 2);
    assert_eq!((of("projection.cut_over"), of("projection.rolled_back")), (3, 1));
    assert_eq!(of("projection.version_discarded"), 2);
    let asked = events.iter().find(|of| of["event_type"] == "projection.rebuild_requested");
    assert_eq!(asked.unwrap()["data"]["reason"], "to see");
    server.finish().await;
}

with_one_and_three_partitions!(every_read_model_is_rebuilt_while_people_write);

/// Every read model, events-index too: nobody who writes or reads meanwhile sees an error or a stale
/// list, both versions have the same rows, and nobody is written to twice.
async fn every_read_model_is_rebuilt_while_people_write(partitions: u16) {
    const WRITERS: usize = 3;
    let server = Start::default().partitions(partitions).start().await;
    let sale = server.sale(5, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let mut sellers = Vec::new();
    for writer in 0..WRITERS {
        let sam = server.seller(&format!("Seller{writer}")).await;
        let listing = server.listing(&sam, 1).await;
        sellers.push((sam, listing));
    }
    server.at_rest().await;
    let outbox = server.visitor().get("/api/v1/dev/outbox?limit=200").await.expect(200);
    let over = AtomicBool::new(false);
    let (sellers, server, over) = (&sellers, &server, &over);
    parallel(WRITERS + 1, |who| async move {
        if who == WRITERS {
            for name in ALL {
                server.rebuild(name, 100_000).await;
                server.level(name).await;
                server.steer_version(name, "/cut-over").await;
                let (rows, differing, one_sided, sample) = server.diff(name, 50).await;
                assert_eq!((differing, one_sided), (0, 0), "{name}: {sample:#?}");
                assert!(rows > 0, "{name}");
            }
            over.store(true, Ordering::Release);
            return;
        }
        let (sam, listing) = &sellers[who];
        let mut round = 0;
        while !over.load(Ordering::Acquire) {
            round += 1;
            let change = json!({ "title": format!("{who}: {round}") });
            let path = format!("/api/v1/listings/{listing}");
            let wrote = sam.client.if_match("*").patch(&path, &change).await.expect(200);
            let position = wrote.header("souk-position");
            let list = format!("/api/v1/me/listings?min_position={position}");
            let read = sam.client.with("prefer", "wait=10").get(&list).await.expect(200);
            assert_eq!(read.items()[0]["title"], change["title"], "after {position}");
            let events = format!(
                "/api/v1/events?eventType=listing.updated&correlationId={}&min_position={position}",
                wrote.header("x-correlation-id")
            );
            let events = server.admin().with("prefer", "wait=10").get(&events).await.expect(200);
            assert_eq!(events.items().len(), 1, "{events:?}");
        }
        assert!(round > 3, "only {round} rounds");
    })
    .await;
    server.at_rest().await;
    let audit = server.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
    for name in ["missing", "duplicate_effects", "out_of_order"] {
        assert_eq!(audit[name], 0, "{}", audit.raw());
    }
    let again = server.visitor().get("/api/v1/dev/outbox?limit=200").await.expect(200);
    assert_eq!(again.items(), outbox.items());
    for name in ALL {
        server.steer_version(name, "/roll-back").await;
    }
    let audit = server.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
    assert_eq!((&audit["missing"], &audit["duplicate_effects"]), (&json!(0), &json!(0)));
}

/// A kill in the middle loses nothing of what was filled, and neither does a pause.
#[tokio::test]
async fn a_rebuild_goes_on_after_a_kill_and_after_a_pause() {
    let mut server = Server::start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    for round in 0..60 {
        let change = json!({ "title": format!("Round {round}") });
        let path = format!("/api/v1/listings/{listing}");
        sam.client.if_match("*").patch(&path, &change).await.expect(200);
    }
    server.at_rest().await;
    let outbox = server.visitor().get("/api/v1/dev/outbox?limit=200").await.expect(200);
    server.rebuild("events-index", 20).await;
    let come_to = async |server: &Server| {
        let now = server.projection("events-index").await;
        let places = beside(&now)["partitions"].as_array().unwrap().clone();
        let sum: u64 = places.iter().map(|place| place["position"].as_u64().unwrap()).sum();
        (sum, beside(&now)["state"].as_str().unwrap().to_owned())
    };
    let at = &server;
    let (before, _) = eventually("something to be filled", || async {
        Some(come_to(at).await).filter(|(sum, _)| *sum > 5)
    })
    .await;
    server.kill_9_and_start_again().await;
    let (after, state) = come_to(&server).await;
    assert!(after >= before, "{after} is less than {before}");
    assert_eq!(state, "filling");

    let paused = server.admin().post(&path("events-index", "/pause"), &json!({})).await.expect(200);
    assert_eq!(beside(&paused)["state"], "paused");
    server
        .admin()
        .post(&path("events-index", "/pause"), &json!({}))
        .await
        .problem(409, "rebuild_not_ready");
    server.kill_9_and_start_again().await;
    let (still, state) = come_to(&server).await;
    assert_eq!(state, "paused");
    let tag = server.projection("events-index").await.header("etag").to_owned();
    let cut_over = path("events-index", "/cut-over");
    let early = server.admin().if_match(&tag).post(&cut_over, &json!({})).await;
    early.problem(409, "rebuild_not_ready");
    server.admin().post(&path("events-index", "/resume"), &json!({})).await.expect(200);
    server.level("events-index").await;
    assert!(come_to(&server).await.0 > still);
    let (rows, differing, one_sided, sample) = server.diff("events-index", 200_000).await;
    assert_eq!((differing, one_sided), (0, 0), "{sample:#?}");
    assert!(rows > 60, "{rows}");
    // The pointer and both versions survive a kill too.
    server.steer_version("events-index", "/cut-over").await;
    server.kill_9_and_start_again().await;
    let now = server.projection("events-index").await;
    assert_eq!((&now["serving_version"], &beside(&now)["state"]), (&json!(2), &json!("level")));
    let change = json!({ "title": "After all" });
    sam.client
        .if_match("*")
        .patch(&format!("/api/v1/listings/{listing}"), &change)
        .await
        .expect(200);
    server.at_rest().await;
    let (_, differing, one_sided, sample) = server.diff("events-index", 200_000).await;
    assert_eq!((differing, one_sided), (0, 0), "{sample:#?}");
    let again = server.visitor().get("/api/v1/dev/outbox?limit=200").await.expect(200);
    assert_eq!(again.items(), outbox.items());
}

/// A wrong click changes nothing.
#[tokio::test]
async fn who_steers_says_what_it_rests_on() {
    let server = Server::start().await;
    let admin = server.admin();
    let all = admin.get("/api/v1/admin/projections").await.expect(200);
    let names: Vec<_> = all.items().iter().map(|of| of["name"].as_str().unwrap()).collect();
    assert!(ALL.iter().all(|name| names.contains(name)), "{names:?}");
    for what in ["/cut-over", "/roll-back", "/discard"] {
        let bare = admin.post(&path("users-view", what), &json!({})).await;
        bare.problem(428, "precondition_required");
        let none = admin.if_match("*").post(&path("users-view", what), &json!({})).await;
        none.problem(409, "no_rebuild");
    }
    admin.get(&path("nobodys-view", "")).await.problem(404, "not_found");
    admin.post(&path("nobodys-view", "/rebuilds"), &json!({})).await.problem(404, "not_found");
    for rate in [json!(0), json!(100_001), json!("fast")] {
        let body = json!({ "rows_per_second": rate });
        admin.post(&path("users-view", "/rebuilds"), &body).await.problem(422, "invalid");
    }
    server.rebuild("users-view", 5_000).await;
    let second = admin.post(&path("users-view", "/rebuilds"), &json!({})).await;
    second.problem(409, "rebuild_exists");
    server.level("users-view").await;
    let stale = admin.if_match("\"0\"").post(&path("users-view", "/cut-over"), &json!({})).await;
    stale.problem(412, "version_mismatch");
    let back = admin.if_match("*").post(&path("users-view", "/roll-back"), &json!({})).await;
    back.problem(409, "rebuild_not_ready");
    assert_eq!(server.projection("users-view").await["serving_version"], 1);
    admin.get(&path("users-view", "/diff?limit=0")).await.problem(400, "invalid_parameter");
    admin.get(&path("users-view", "/diff?cursor=abc")).await.problem(400, "invalid_cursor");
    server.finish().await;
}

/// The same from the command line, which brings the `ETag` along by itself.
#[tokio::test]
async fn a_rebuild_is_steered_from_the_command_line() {
    let server = Server::start().await;
    server.newcomer("Ann").await;
    server.at_rest().await;
    let url = server.url();
    let run = |arguments: &[&str]| {
        let all = [&["rebuild", "--url", &url, "--json"], arguments].concat();
        let ended = server.command(&all).run();
        let answer: Value = serde_json::from_str(&ended.output).unwrap_or_default();
        (ended.code, answer, ended.errors)
    };
    let (code, begun, errors) = run(&["start", "users-view", "--reason", "a check"]);
    assert_eq!((code, &begun["versions"][1]["state"]), (0, &json!("level")), "{errors}");
    let (code, diff, errors) = run(&["diff", "users-view"]);
    assert_eq!(
        (code, &diff["same"], &diff["serving_rows"]),
        (0, &json!(true), &json!(1)),
        "{errors}"
    );
    let (code, cut, errors) = run(&["cut-over", "users-view"]);
    assert_eq!((code, &cut["serving_version"]), (0, &json!(2)), "{errors}");
    assert_eq!(run(&["roll-back", "users-view"]).1["serving_version"], 1);
    assert_eq!(run(&["discard", "users-view"]).0, 0);
    let (code, _, errors) = run(&["discard", "users-view"]);
    assert!(code == 1 && errors.contains("no_rebuild"), "{code}: {errors}");
    let list = server.command(&["rebuild", "--url", &url, "list"]).run();
    assert!(list.code == 0 && list.output.contains("events-index"), "{}", list.output);
    server.finish().await;
}
