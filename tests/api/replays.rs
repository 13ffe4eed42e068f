//! Replays: what a subscription has handled is delivered to it once more, and has its effect once
//! (S0-103, S1-41, S1-46, S1-178).

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Person, Sale, Server, Start, eventually};

const PATH: &str = "/api/v1/admin/replays";
/// Everything that there is.
const ALL: &str = "1970-01-01T00:00:00Z";

impl Server {
    /// Has everything that a subscription has handled delivered to it once more.
    async fn replay(&self, subscription: &str) -> Answer {
        let wish =
            json!({ "subscription": subscription, "from": ALL, "events_per_second": 10_000 });
        let begun = self.admin().post(PATH, &wish).await.expect(202);
        self.replayed(&begun.text("replay_id")).await
    }

    /// Waits for the end of a replay.
    async fn replayed(&self, id: &str) -> Answer {
        eventually(&format!("the end of replay {id}"), || async {
            Some(self.replay_now(id).await).filter(|replay| replay["state"] != "running")
        })
        .await
    }

    async fn replay_now(&self, id: &str) -> Answer {
        self.admin().get(&format!("{PATH}/{id}")).await.expect(200)
    }

    /// How many events of its subscriptions the log has.
    async fn happened(&self) -> BTreeSet<String> {
        let events = self.events("").await;
        let others = events.iter().filter(|event| event["aggregate_type"] != "subscription");
        others.map(|event| event["event_id"].to_string()).collect()
    }

    async fn outbox(&self) -> Vec<Value> {
        let path = "/api/v1/dev/outbox?limit=200";
        self.visitor().get(path).await.expect(200).items().to_vec()
    }
}

fn number(answer: &Answer, name: &str) -> u64 {
    answer[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {answer:?}"))
}

/// Orders that end in several ways; one is delivered.
async fn story(server: &Server) -> Sale {
    let sale = server.sale(20, 1, "sandbox").await;
    let mut orders = vec![(sale.order.id.clone(), "SHIPPED")];
    for (quantity, method, status) in [
        (2, "sandbox", "SHIPPED"),
        (1, "test_decline", "PAYMENT_FAILED"),
        (99, "sandbox", "REJECTED"),
    ] {
        let client = &sale.buyer.client;
        let order = server.place_order(client, &sale.listing_id, quantity, method).await;
        orders.push((order.id, status));
    }
    for (order, status) in &orders {
        server.order_eventually(order, status).await;
    }
    let pending = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "test_pending").await;
    server.order_eventually(&pending.id, "CONFIRMED").await;
    let path = format!("/api/v1/orders/{}/cancel", pending.id);
    sale.buyer.client.post(&path, &json!({})).await.expect(200);
    let path = format!("/api/v1/shipments?orderId={}", orders[0].0);
    let shipments = sale.buyer.client.get(&path).await.expect(200);
    let shipment = shipments.items()[0]["shipment_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/shipments/{shipment}/dispatch");
    let sent = json!({ "carrier": "ghn", "tracking_number": "X1" });
    sale.seller.client.post(&path, &sent).await.expect(200);
    let path = format!("/api/v1/shipments/{shipment}/deliver");
    sale.buyer.client.post(&path, &json!({})).await.expect(200);
    server.order_eventually(&orders[0].0, "COMPLETED").await;
    server.at_rest().await;
    sale
}

/// How often a subscription's events were counted as duplicates since the start.
async fn duplicates(server: &Server, name: &str) -> f64 {
    let label = format!("subscription=\"{name}\"");
    let text = server.visitor().get("/metrics").await.expect(200).raw().to_owned();
    let counted = text.lines().filter(|line| {
        line.starts_with("souk_events_consumed_total{")
            && line.contains(&label)
            && line.contains("outcome=\"duplicate\"")
    });
    counted.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

with_one_and_three_partitions!(nothing_that_comes_once_more_has_a_second_effect);

/// Every subscription with effects gets its whole history once more, twice: as long as the outcomes of
/// its commands are stored, and when they are forgotten.
async fn nothing_that_comes_once_more_has_a_second_effect(partitions: u16) {
    let mut server =
        Start::default().partitions(partitions).with("RETRY_DELAY_MS", 20).start().await;
    let sale = story(&server).await;
    let stock = server.stock(&sale.listing_id).await;
    let (outbox, calls) = (server.outbox().await, server.gateway_calls().await);
    let happened = server.happened().await;
    let all = server.admin().get("/api/v1/admin/subscriptions").await.expect(200);
    let handlers = all.items().iter().filter(|of| of["kind"] != "projection");
    let handlers: Vec<_> = handlers.map(|of| of["name"].as_str().unwrap().to_owned()).collect();
    let mut redelivered = 0;
    for round in 0..2 {
        for name in &handlers {
            let replay = server.replay(name).await;
            assert_eq!(replay["state"], "completed", "{name}: {replay:?}");
            assert_eq!((&replay["failed"], &replay["held"]), (&json!(0), &json!(0)), "{replay:?}");
            // S1-46.
            assert_eq!(replay["duplicates"], replay["redelivered"], "round {round}: {replay:?}");
            let counted = duplicates(&server, name).await;
            assert!(counted >= replay["duplicates"].as_f64().unwrap(), "{name}: {counted}");
            redelivered += number(&replay, "redelivered");
        }
        server.at_rest().await;
        assert_eq!(server.happened().await, happened, "round {round}");
        assert_eq!(server.outbox().await, outbox, "round {round}");
        assert_eq!(server.stock(&sale.listing_id).await, stock);
        if round == 0 {
            assert_eq!(server.gateway_calls().await, calls);
            // A day later nobody knows any more which commands there were.
            assert!(server.terminate().await.success());
            let stored = server.stored().await;
            assert!(stored.change("DELETE FROM outcomes").await.unwrap() > 0);
            stored.close().await;
            server.start_again().await;
            server.at_rest().await;
        } else {
            assert_eq!(server.gateway_calls().await, [""; 0]);
        }
    }
    assert!(redelivered > 100, "only {redelivered} events");
    let audit = server.admin().get("/api/v1/admin/audit?limit=200000").await.expect(200);
    assert_eq!(
        (&audit["missing"], &audit["duplicate_effects"]),
        (&json!(0), &json!(0)),
        "{audit:?}"
    );
    server.finish().await;
}

#[tokio::test]
async fn a_replay_is_asked_for_followed_and_recorded() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let bob = server.newcomer("Bob").await;
    server.at_rest().await;
    let admin = server.admin();
    let wish = json!({
        "subscription": "notifications",
        "from": "0:1",
        "filter": format!("aggregate_id = \"{}\"", ann.user_id),
        "dry_run": true,
        "reason": "the mails may be lost",
    });
    let (wish, partitioned) = match server.subscription("notifications").await["partitions"] {
        Value::Array(ref partitions) if partitions.len() > 1 => {
            let mut wish = wish;
            wish["from"] = json!(ALL);
            (wish, true)
        }
        _ => (wish, false),
    };
    // Only a look.
    let look = admin.post(PATH, &wish).await.expect(200);
    assert_eq!(
        (&look["count"], &look["dry_run"], &look["complete"]),
        (&json!(2), &json!(true), &json!(true))
    );
    assert_eq!(look["by_type"], json!({ "user.registered": 1, "user.email_verified": 1 }));
    assert_eq!(look["first"]["event_type"], "user.registered");
    assert_eq!(look["last"]["event_type"], "user.email_verified");
    assert_eq!(admin.get(PATH).await.expect(200).items().len(), 0);

    let mut wish = wish;
    wish["dry_run"] = json!(false);
    let keyed = admin.keyed("once");
    let begun = keyed.with("prefer", "wait=10").post(PATH, &wish).await.expect(202);
    let id = begun.text("replay_id");
    assert_eq!(begun.header("location"), format!("{PATH}/{id}"));
    assert_eq!(begun.header("preference-applied"), "wait=10");
    assert!(!begun.header("souk-position").is_empty());
    assert_eq!(begun["state"], "completed", "{begun:?}");
    let again = keyed.post(PATH, &wish).await.expect(202);
    assert_eq!(
        (again.text("replay_id"), again.header("idempotent-replayed")),
        (id.clone(), "true")
    );
    let over = server.replay_now(&id).await;
    for (name, value) in [("redelivered", 2), ("duplicates", 2), ("failed", 0), ("held", 0)] {
        assert_eq!(over[name], value, "{name}: {over:?}");
    }
    assert_eq!((&over["reason"], &over["progress"]), (&wish["reason"], &json!(1.0)));
    assert!(!over.text("started_by").is_empty() && !over.text("ended_at").is_empty());
    let listed = admin.get(&format!("{PATH}?subscription=notifications&state=completed")).await;
    assert_eq!(listed.expect(200).items(), [over.json().clone()]);
    assert_eq!(admin.get(&format!("{PATH}?state=running")).await.expect(200).items().len(), 0);
    admin.get(&format!("{PATH}?state=lost")).await.problem(400, "invalid_parameter");
    assert_eq!(server.mails(&ann.email).await.len(), 2);

    is_shown(&server, (&ann, &bob), &over).await;
    what_cannot_be_replayed_says_why(&server, &wish, &id).await;
    if !partitioned {
        // By positions, both ends included.
        let range = json!({
            "subscription": "notifications", "dry_run": true,
            "from": look["first"]["position"], "to": look["last"]["position"],
        });
        let range = admin.post(PATH, &range).await.expect(200);
        assert_eq!((&range["first"], &range["last"]), (&look["first"], &look["last"]));
    }
    server.finish().await;
}

/// It was for the one of them, and left the other out.
async fn is_shown(server: &Server, (ann, bob): (&Person, &Person), over: &Answer) {
    let admin = server.admin();
    // S1-41: who looks at the event sees it, and not at Bob's, which was left out.
    for (user, duplicate) in [(ann, true), (bob, false)] {
        let query = format!("eventType=user.registered&aggregateId={}", user.user_id);
        let event = server.events(&query).await[0]["event_id"].as_str().unwrap().to_owned();
        let path = format!("/api/v1/events/{event}/deliveries");
        let deliveries = admin.get(&path).await.expect(200);
        let mut of = deliveries.items().iter();
        let of = of.find(|of| of["subscription"] == "notifications").unwrap();
        assert_eq!((&of["state"], &of["duplicate"]), (&json!("acked"), &json!(duplicate)));
    }
    // Who did it and why is on the subscription's stream.
    for event_type in ["subscription.replay_requested", "subscription.replay_completed"] {
        let events = server.events(&format!("eventType={event_type}")).await;
        assert_eq!(events.len(), 1, "{event_type}");
        assert_eq!(events[0]["data"]["replay_id"], over["replay_id"]);
    }
    let asked = &server.events("eventType=subscription.replay_requested").await[0];
    assert_eq!(asked["data"]["reason"], over["reason"]);
    assert_eq!(asked["data"]["by"], asked["metadata"]["actor_id"]);
}

async fn what_cannot_be_replayed_says_why(server: &Server, wish: &Value, over: &str) {
    let admin = server.admin();
    let mut rows = wish.clone();
    rows["subscription"] = json!("orders-view");
    let refused = admin.post(PATH, &rows).await.problem(422, "replay_of_projection");
    assert!(refused.text("detail").contains("/admin/projections/orders-view/rebuilds"));
    rows["subscription"] = json!("nobody");
    admin.post(PATH, &rows).await.problem(422, "subscription_unknown");
    for (body, pointers) in [
        (json!({}), vec!["/subscription", "/from"]),
        (json!({ "subscription": "notifications" }), vec!["/from"]),
        (json!({ "subscription": "notifications", "from": "soon" }), vec!["/from"]),
        (json!({ "subscription": "notifications", "filter": "amount >" }), vec!["/filter"]),
        (json!({ "subscription": "notifications", "from": "0:1", "to": "1:9" }), vec!["/to"]),
        (json!({ "subscription": "notifications", "from": "0:999999" }), vec!["/from"]),
        (
            json!({ "subscription": "notifications", "from": ALL, "events_per_second": 10_001 }),
            vec!["/events_per_second"],
        ),
        (
            json!({ "subscription": "notifications", "from": ALL, "dry_run": "no" }),
            vec!["/dry_run"],
        ),
    ] {
        assert_eq!(admin.post(PATH, &body).await.pointers(), pointers, "{body}");
    }
    let nowhere = format!("{PATH}/{}", Uuid::nil());
    admin.get(&nowhere).await.problem(404, "not_found");
    admin.post(&format!("{nowhere}/cancel"), &json!({})).await.problem(404, "not_found");
    let cancel = format!("{PATH}/{over}/cancel");
    admin.post(&cancel, &json!({})).await.problem(409, "replay_over");
}

#[tokio::test]
async fn a_replay_goes_on_after_a_kill_and_can_be_cancelled() {
    let mut server = Server::start().await;
    let sale = server.sale(20, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    for _ in 0..5 {
        let client = &sale.buyer.client;
        let order = server.place_order(client, &sale.listing_id, 1, "sandbox").await;
        server.order_eventually(&order.id, "SHIPPED").await;
    }
    server.at_rest().await;
    let (outbox, happened) = (server.outbox().await, server.happened().await);
    let mut wish = json!({
        "subscription": "order_saga-commands", "from": ALL, "events_per_second": 20,
    });
    let begun = server.admin().post(PATH, &wish).await.expect(202);
    let id = begun.text("replay_id");
    server.admin().post(PATH, &wish).await.problem(409, "replay_exists");
    wish["dry_run"] = json!(true);
    let count = number(&server.admin().post(PATH, &wish).await.expect(200), "count");
    assert!(count > 40, "{count}");
    let at = &server;
    let come_to = |least: u64| {
        let id = id.clone();
        async move {
            eventually("something to be delivered once more", || async {
                let done = number(&at.replay_now(&id).await, "redelivered");
                Some(done).filter(|done| *done >= least)
            })
            .await
        }
    };
    let stored = come_to(5).await;
    // What was done by then is stored long since.
    come_to(stored + 20).await;
    server.kill_9_and_start_again().await;
    let now = server.replay_now(&id).await;
    assert_eq!(now["state"], "running");
    assert!(number(&now, "redelivered") >= stored, "it began anew: {now:?}");
    let over = server.replayed(&id).await;
    assert_eq!((&over["state"], number(&over, "redelivered")), (&json!("completed"), count));
    server.at_rest().await;
    assert_eq!(server.happened().await, happened);
    assert_eq!(server.outbox().await, outbox);

    // It is over for the next start too; another one is cancelled, and stays so.
    wish["dry_run"] = json!(false);
    wish["events_per_second"] = json!(1);
    let id = server.admin().post(PATH, &wish).await.expect(202).text("replay_id");
    let cancel = format!("{PATH}/{id}/cancel");
    let reason = json!({ "reason": "it was a mistake" });
    let cancelled = server.admin().post(&cancel, &reason).await.expect(200);
    assert_eq!(
        (&cancelled["state"], &cancelled["end_reason"]),
        (&json!("cancelled"), &reason["reason"])
    );
    assert!(number(&cancelled, "redelivered") < count);
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    assert_eq!(server.replay_now(&id).await["state"], "cancelled");
    let all = server.admin().get(PATH).await.expect(200);
    let states: Vec<_> = all.items().iter().map(|of| of["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["cancelled", "completed"]);
    assert_eq!(server.events_counted("subscription.replay_cancelled").await, 1);
    server.finish().await;
}

/// The same from the command line.
#[tokio::test]
async fn a_replay_is_steered_from_the_command_line() {
    let server = Server::start().await;
    server.newcomer("Ann").await;
    server.at_rest().await;
    let url = server.url();
    let run = |arguments: &[&str]| {
        let all = [&["replay", "--url", &url, "--json"], arguments].concat();
        let ended = server.command(&all).run();
        let answer: Value = serde_json::from_str(&ended.output).unwrap_or_default();
        (ended.code, answer, ended.errors)
    };
    let (code, look, errors) = run(&["start", "notifications", "--from", ALL, "--dry-run"]);
    assert_eq!((code, &look["count"]), (0, &json!(1)), "{errors}");
    let (code, over, errors) =
        run(&["start", "notifications", "--from", ALL, "--wait", "--reason", "a check"]);
    assert_eq!(
        (code, &over["state"], &over["duplicates"]),
        (0, &json!("completed"), &json!(1)),
        "{errors}"
    );
    let id = over["replay_id"].as_str().unwrap();
    assert_eq!(run(&["show", id]).1["reason"], "a check");
    let (code, _, errors) = run(&["cancel", id]);
    assert!(code == 1 && errors.contains("replay_over"), "{code}: {errors}");
    let (code, _, errors) = run(&["start", "users-view", "--from", ALL]);
    assert!(code == 1 && errors.contains("souk rebuild start users-view"), "{code}: {errors}");
    let list = server.command(&["replay", "--url", &url, "list"]).run();
    assert!(list.code == 0 && list.output.contains("completed"), "{}", list.output);
    server.finish().await;
}
