//! What aggregates are and were, and what made them so.

use serde_json::{Value, json};

use crate::purchases::with_one_and_three_partitions;
use crate::support::{Answer, Sale, Server, Start};

with_one_and_three_partitions!(every_version_of_an_order_can_be_seen);

impl Server {
    async fn aggregate(&self, kind: &str, id: &str, query: &str) -> Answer {
        self.admin().get(&format!("/api/v1/admin/aggregates/{kind}/{id}{query}")).await
    }

    /// The whole history of an aggregate.
    async fn changes(&self, kind: &str, id: &str) -> Vec<Value> {
        self.aggregate(kind, id, "/history?limit=200").await.expect(200).items().to_vec()
    }
}

/// Whether an order was shipped, and what it led to has come to rest.
async fn shipped(server: &Server) -> Sale {
    let sale = server.sale(2, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    sale
}

/// A JSON Patch applied, by the rules of RFC 6902 that are used here.
fn patched(state: &mut Value, changes: &Value) {
    for change in changes.as_array().unwrap() {
        let path = change["path"].as_str().unwrap();
        let Some((parent, name)) = path.rsplit_once('/') else {
            *state = change["value"].clone();
            continue;
        };
        let parent = state.pointer_mut(parent).unwrap_or_else(|| panic!("no {path}"));
        let value = change["value"].clone();
        match (parent, change["op"].as_str().unwrap()) {
            (Value::Object(members), "remove") => drop(members.remove(name).unwrap()),
            (Value::Object(members), _) => drop(members.insert(name.to_owned(), value)),
            (Value::Array(items), "add") => items.insert(name.parse().unwrap(), value),
            (Value::Array(items), "remove") => drop(items.remove(name.parse().unwrap())),
            (Value::Array(items), _) => items[name.parse::<usize>().unwrap()] = value,
            (other, op) => panic!("{op} {path} of {other}"),
        }
    }
}

async fn every_version_of_an_order_can_be_seen(partitions: u16) {
    let server = Start::default().partitions(partitions).start().await;
    let sale = shipped(&server).await;
    let id = &sale.order.id;
    let now = server.aggregate("order", id, "").await.expect(200);
    let head = now["version"].as_u64().unwrap();
    assert_eq!(now.header("etag"), format!("\"{head}\""));
    assert_eq!(now["event_type"], "order.shipped");
    assert_eq!(now["quarantined"], false);
    assert_eq!(now["state"]["details"]["status"], "SHIPPED");

    // Each version is the one before it with the changes of its event.
    let history = server.changes("order", id).await;
    assert_eq!(history.len() as u64, head);
    let mut state = Value::Null;
    for (expected, change) in (1..).zip(&history) {
        assert_eq!((&change["version"], &change["unreadable"]), (&json!(expected), &Value::Null));
        assert_eq!(change["event"]["aggregate_version"], expected);
        let then = server.aggregate("order", id, &format!("?version={expected}")).await.expect(200);
        if state.is_null() {
            assert_eq!(change["event"]["event_type"], "order.placed");
            assert!(change["changes"].as_array().is_some_and(|changes| !changes.is_empty()));
        } else {
            patched(&mut state, &change["changes"]);
            assert_eq!(state, then["state"], "{}", then.raw());
        }
        state = then["state"].clone();
        assert_eq!(then["event_id"], change["event"]["event_id"]);
        // And as of the time of its event, unless the next one came in the same millisecond.
        let at = change["event"]["timestamp"].as_str().unwrap();
        let then = server.aggregate("order", id, &format!("?at={at}")).await.expect(200);
        let same = |of: &&Value| of["event"]["timestamp"] == at;
        let last = history.iter().rfind(same).unwrap();
        assert_eq!(then["version"], last["version"]);
    }
    assert_eq!(state, now["state"]);

    // In pages it comes to the same.
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = format!("/history?limit=2{cursor}");
        let page = server.aggregate("order", id, &query).await.expect(200);
        assert!(page.items().len() <= 2);
        paged.extend(page.items().to_vec());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, history);
    let behind = server.aggregate("order", id, "/history?after=2").await.expect(200);
    assert_eq!(behind.items(), &history[2..]);
    server.finish().await;
}

#[tokio::test]
async fn every_type_of_aggregate_has_a_state_and_a_history() {
    let server = Server::start().await;
    shipped(&server).await;
    server.pause("notification-email").await;
    server.resume("notification-email").await;
    server.caught_up("events-index").await;
    let mut types = std::collections::BTreeMap::new();
    for event in server.events("").await {
        let of = |name: &str| event[name].as_str().unwrap().to_owned();
        types.insert(of("aggregate_type"), of("aggregate_id"));
    }
    assert!(types.len() > 10, "{types:?}");
    for (kind, id) in types {
        let state = server.aggregate(&kind, &id, "").await.expect(200);
        let history = server.changes(&kind, &id).await;
        assert_eq!(state["version"], history.len(), "{kind}");
        assert!(history.iter().all(|change| change["changes"].is_array()), "{kind}: {history:?}");
    }
    // Under the name that people give it too.
    let category = server.category().await;
    let named = server.aggregate("Category", &format!("category-{category}"), "").await.expect(200);
    assert_eq!(named["aggregate_id"], category.as_str());
    server.finish().await;
}

#[tokio::test]
async fn what_is_not_there_is_said_clearly() {
    let server = Server::start().await;
    let category = server.category().await;
    let of = async |query: &str| server.aggregate("category", &category, query).await;
    let unknown = "00000000-0000-7000-8000-000000000000";
    server.aggregate("category", unknown, "").await.problem(404, "not_found");
    server.aggregate("category", unknown, "/history").await.problem(404, "not_found");
    server.aggregate("category", "nothing", "").await.problem(404, "not_found");
    let known = server.aggregate("categories", &category, "").await.problem(404, "not_found");
    assert!(known["detail"].as_str().unwrap().contains("category, "), "{known:?}");
    // It is of another type.
    server.aggregate("order", &category, "").await.problem(404, "not_found");

    let beyond = of("?version=2").await.problem(404, "not_found");
    assert_eq!(beyond["current_version"], 1);
    of("?version=99999999999999999999").await.problem(404, "not_found");
    let before = of("?at=2020-01-01T00:00:00Z").await.problem(404, "not_found");
    assert!(before["detail"].as_str().unwrap().contains("began at"), "{before:?}");
    for (query, pointer) in [
        ("?version=0", "version"),
        ("?version=-1", "version"),
        ("?at=2999-01-01T00:00:00Z", "at"),
        ("?version=1&at=2020-01-01T00:00:00Z", "at"),
    ] {
        assert_eq!(of(query).await.problem(422, "invalid").pointers(), [pointer], "{query}");
    }
    for query in
        ["?version=one", "?version=1.5", "?at=yesterday", "/history?limit=0", "/history?after=-1"]
    {
        of(query).await.problem(400, "invalid_parameter");
    }
    let latest = of("").await.expect(200);
    let tag = latest.header("etag").to_owned();
    let path = format!("/api/v1/admin/aggregates/category/{category}");
    let asked = server.admin().with("if-none-match", &tag);
    asked.get(&path).await.expect(304);
    let deactivate = format!("/api/v1/admin/categories/{category}/deactivate");
    server.admin().post(&deactivate, &json!({})).await.expect(200);
    let changed = asked.get(&path).await.expect(200);
    assert_ne!(changed.header("etag"), tag);
    asked.get(&format!("{path}?version=1")).await.expect(304);
    server.finish().await;
}

#[tokio::test]
async fn the_command_line_shows_states_and_histories() {
    let server = Server::start().await;
    let sale = shipped(&server).await;
    let ask = |arguments: &[&str]| {
        let command = server.command(&[&["aggregate"], arguments].concat());
        command.with("SOUK_URL", server.url()).run()
    };
    let id = sale.order.id.as_str();
    let told = ask(&["show", "order", id]);
    assert_eq!(told.code, 0, "{}", told.errors);
    assert!(told.output.contains("\"status\": \"SHIPPED\""), "{}", told.output);
    let told = ask(&["show", "order", id, "--version", "1", "--json"]);
    let first: Value = serde_json::from_str(&told.output).unwrap();
    assert_eq!((&first["version"], &first["event_type"]), (&json!(1), &json!("order.placed")));
    let at = first["changed_at"].as_str().unwrap();
    let told = ask(&["show", "order", id, "--at", at, "--json"]);
    let then: Value = serde_json::from_str(&told.output).unwrap();
    assert!(then["version"].as_u64().unwrap() >= 1, "{then}");
    let told = ask(&["history", "order", id]);
    assert_eq!(told.code, 0, "{}", told.errors);
    assert!(told.output.contains("order.shipped"), "{}", told.output);
    assert!(told.output.contains("/details/status"), "{}", told.output);
    let told = ask(&["history", "order", id, "--limit", "1"]);
    assert!(told.output.contains("There are more"), "{}", told.output);
    let told = ask(&["show", "order", id, "--version", "999"]);
    assert_eq!(told.code, 1);
    assert!(told.errors.contains("there is no later one yet"), "{}", told.errors);
    assert_ne!(ask(&["show", "order", id, "--version", "1", "--at", at]).code, 0);
    server.finish().await;
}
