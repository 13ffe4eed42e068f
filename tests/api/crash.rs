//! Servers are killed, stopped and ended at every fault point, under load, again and again, while
//! their clients repeat their requests with the same keys: `souk chaos` does it and checks every
//! promise. These are its small runs; docs/reliability.md has the long ones.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Command, Server, Start, eventually, wish};

/// How long a run may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(540);

/// Does a run in which nothing may be wrong; its report.
async fn chaos(arguments: &str) -> Value {
    let all = format!("chaos --json {arguments}");
    let run = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = all.split(' ').collect();
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new(&arguments).with("PATH", path).patient_for(PATIENCE).run()
    });
    let run = run.await.unwrap();
    let report: Value = serde_json::from_str(&run.output)
        .unwrap_or_else(|error| panic!("{error}: {}{}", run.output, run.errors));
    assert_eq!(report["violations"], serde_json::json!([]), "{report:#}");
    assert_eq!(report["void"], false, "half of the attempts failed: {report:#}");
    assert_eq!(run.code, 0, "{report:#}");
    println!("souk chaos {arguments}: {report:#}");
    report
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_doubled_by_kill_9() {
    let report = chaos("--cycles 25 --seed 1").await;
    assert_eq!(report["modes"]["random"], 25);
    assert!(number(&report, "acknowledged") > 1_000 && number(&report, "repeats") > 10);
    assert!(number(&report, "orders") > 100, "too little happened: {report:#}");
    assert!(number(&report, "webhooks") > 100, "too little happened: {report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_with_several_partitions() {
    let report = chaos("--cycles 12 --seed 3 --partitions 3 --modes random,stop,terminate").await;
    assert!(number(&report, "acknowledged") > 500, "too little happened: {report:#}");
}

/// However a server ends there: the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn nor_by_an_end_at_any_fault_point() {
    let list = Command::new(&["chaos", "--list-points"]).run();
    let points: Vec<_> =
        list.output.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(points.len() >= 20, "{}", list.output);
    let cycles = points.len() + 5;
    let report = chaos(&format!("--cycles {cycles} --seed 7 --modes points --answers 150")).await;
    for point in points {
        assert!(report["hits"][point].as_u64() >= Some(1), "{point}: {report:#}");
    }
}

/// The server is killed, and so is PostgreSQL under it.
#[tokio::test(flavor = "multi_thread")]
async fn nor_by_the_end_of_a_postgresql() {
    let store = "--store postgres --partitions 2 --modes random,database";
    let report = chaos(&format!("--cycles 4 --seed 8 --clients 6 {store}")).await;
    let recoveries = report["recoveries"].as_array().unwrap();
    assert_eq!(Some(recoveries.len() as u64), report["modes"]["database"].as_u64());
    assert!(!recoveries.is_empty() && report["modes"]["random"].as_u64() >= Some(1));
}

/// Fault points are for development.
#[test]
fn production_takes_no_fault_points() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Command::new(&["serve"])
        .with("APP_ENV", "production")
        .with("DATA_DIR", folder.path().display())
        .with("SOUK_FAULT_POINTS", "writer.before_reply:abort")
        .run();
    assert_eq!(ended.code, 78);
    assert!(ended.errors.contains("SOUK_FAULT_POINTS: is for development mode only"));
}

const FINAL: [&str; 5] = ["SHIPPED", "REJECTED", "PAYMENT_FAILED", "CANCELLED", "FAILED"];

/// Waits until an order has come to its end, and says which.
async fn ended(server: &Server, id: &str) -> String {
    eventually(&format!("the end of order {id}"), || async {
        let status = server.order_now(id).await.text("status");
        FINAL.contains(&status.as_str()).then_some(status)
    })
    .await
}

/// A hundred buyers of the last unit at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_buyers_of_the_last_unit_one_gets_it() {
    for partitions in [1, 3] {
        let server = Start::default().partitions(partitions).start().await;
        let (seller, buyer) = (server.seller("Sam").await, server.buyer("Bea").await);
        let listing = server.listing(&seller, 1).await;
        let mut buyers = JoinSet::new();
        for _ in 0..100 {
            let (client, body) = (buyer.client.clone(), wish(&listing, 1, "sandbox"));
            buyers.spawn(async move { client.post("/api/v1/orders", &body).await });
        }
        let mut ends = BTreeMap::<String, usize>::new();
        for answer in buyers.join_all().await {
            match answer.status() {
                201 => {
                    *ends.entry(ended(&server, &answer.text("order_id")).await).or_default() += 1
                }
                _ => drop(answer.problem(409, "listing_unavailable")),
            }
        }
        assert_eq!(ends.remove("SHIPPED"), Some(1), "{ends:?}");
        assert!(ends.keys().all(|end| end == "REJECTED"), "{ends:?}");
        assert_eq!(server.stock(&listing).await, (0, 0, 1));
        server.finish().await;
    }
}
