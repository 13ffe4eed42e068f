//! Commands that ask a running server: `souk events`, `souk sagas`.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use souk_actors::testing::postgres::free_port;

use crate::support::{Ended, Server, Start, eventually};

impl Server {
    /// What a command says that asks this server.
    fn asked(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).with("SOUK_URL", self.url()).run()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_printed_one_a_line_from_where_it_is_said() {
    let server = Server::start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let of_order = ["events", "tail", "--after", "0:0", "--aggregate", &sale.order.id];
    let told = server.asked(&[&of_order[..], &["--count", "4"]].concat());
    assert_eq!(told.code, 0, "{}", told.errors);
    let lines: Vec<_> = told.output.lines().collect();
    let types: Vec<_> = lines.iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(types, ["order.placed", "order.confirmed", "order.paid", "order.shipped"]);
    assert!(lines.iter().all(|line| line.contains(&sale.order.id)), "{lines:?}");

    let some = ["--type", "order.paid", "--type", "shipment.*", "--count", "2", "--json"];
    let correlation = ["--correlation", &sale.order.correlation_id];
    let told =
        server.asked(&[&["events", "tail", "--after", "0:0"], &some[..], &correlation].concat());
    assert_eq!(told.code, 0, "{}", told.errors);
    let events: Vec<Value> =
        told.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stored = server.event("order.paid", &sale.order.correlation_id).await;
    assert_eq!(events.len(), 2);
    assert!(events.contains(&stored), "{events:?}");

    let stranger = server.command(&["events", "tail"]).with("SOUK_URL", server.url());
    let refused = stranger.with("SOUK_TOKEN", "made-up").run();
    assert_eq!(refused.code, 1);
    assert!(refused.errors.contains("401, invalid_token"), "{}", refused.errors);
    let two = server.asked(&["events", "tail", "--type", "~a", "--type", "b"]);
    assert!(two.errors.contains("the one --type"), "{}", two.errors);
    server.finish().await;
}

/// The address stays the same, as behind a name: the command goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_followed_goes_on_over_a_crash_of_the_server() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut server = Start::default().with("HTTP_ADDR", address).start().await;
    let category = async |server: &Server, name: &str| {
        let body = json!({ "name": name, "slug": name });
        server.admin().post("/api/v1/categories", &body).await.expect(201);
    };
    category(&server, "first").await;
    // There are categories from the start.
    let before = server.events("eventType=category.created").await.len();
    let count = (before + 1).to_string();
    let tail =
        ["events", "tail", "--after", "0:0", "--type", "category.*", "--count", &count, "--json"];
    let command = server.command(&tail).with("SOUK_URL", server.url());
    let token = server.admin_token().to_owned();
    let told = tokio::task::spawn_blocking(move || command.with("SOUK_TOKEN", token).run());
    eventually("it to listen", || async {
        (server.metric_of("souk_streams_open").await == Some(1.0)).then_some(())
    })
    .await;
    server.kill_9_and_start_again().await;
    category(&server, "second").await;
    let told = told.await.unwrap();
    assert_eq!(told.code, 0, "{}", told.errors);
    let mut slugs: Vec<_> = told
        .output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["slug"].clone())
        .collect();
    // What was there before comes in the order of its partition only.
    assert_eq!(slugs.pop().unwrap(), "second");
    let distinct: BTreeSet<_> = slugs.iter().map(Value::to_string).collect();
    assert!(distinct.contains("\"first\""), "{distinct:?}");
    assert_eq!((slugs.len(), distinct.len()), (before, before), "each once");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_are_shown_and_turned_back() {
    let server = Server::start().await;
    let sale = server.sale(1, 1, "test_pending").await;
    let id = &sale.order.id;
    server.order_eventually(id, "CONFIRMED").await;
    server.at_rest().await;
    let listed = server.asked(&["sagas", "list", "--order", id]);
    assert_eq!(listed.code, 0, "{}", listed.errors);
    assert!(listed.output.contains(&**id), "{}", listed.output);
    let shown = server.asked(&["sagas", "show", id]);
    assert!(shown.output.contains("TRANSITION"), "{}{}", shown.output, shown.errors);

    let because = ["--reason", "nobody pays"];
    let stale = server.asked(&[&["sagas", "retry", id, "--if-match", "1"], &because[..]].concat());
    assert_eq!(stale.code, 1);
    assert!(stale.errors.contains("412, version_mismatch"), "{}", stale.errors);
    let again = server.asked(&[&["sagas", "retry", id], &because[..]].concat());
    assert_eq!(again.code, 0, "{}", again.errors);
    assert!(again.output.contains("nobody pays"), "{}", again.output);
    let back = server.asked(&[&["sagas", "compensate", id], &because[..]].concat());
    assert_eq!(back.code, 0, "{}", back.errors);
    eventually("the saga to turn back", || async {
        (server.saga(id).await["status"] == "COMPENSATED").then_some(())
    })
    .await;
    let over = server.asked(&[&["sagas", "compensate", id], &because[..]].concat());
    assert!(over.errors.contains("saga_over"), "{}", over.errors);
    server.finish().await;
}
