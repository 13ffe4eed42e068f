//! The load run keeps true books. How fast anything is, no test says.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Command, Server, Start, on_postgres};

/// Longer than any of these runs takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn read(json: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

fn store() -> &'static str {
    if on_postgres() { "postgres" } else { "sqlite" }
}

#[tokio::test]
async fn a_load_run_counts_what_the_journal_has() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, report) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let run = ["bench", "http", "--seconds", "0.3", "--connections", "3", "--listings", "20"];
    let run = [&run[..], &["--folder", into, "--json", report]].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report = read(&json);
    let rows = report["rows"].as_array().unwrap();
    let phases = [
        ("echo", 0),
        ("hot", 1),
        ("spread", 1),
        ("hot, two events", 2),
        ("spread, two events", 2),
        ("raw inserts", 1),
    ];
    assert_eq!(rows.len(), phases.len(), "{report}");
    for (row, (phase, events)) in rows.iter().zip(phases) {
        let accepted = row["accepted"].as_u64().unwrap();
        assert_eq!(row["phase"], phase);
        assert!(accepted >= 3, "{row}");
        assert_eq!(row["journalled"], accepted * events, "{row}");
        assert_eq!(row["refused"], 0, "{row}");
    }
    // A phase lasts longer than it is timed: its last answers are waited for.
    let types = rows[1]["journal"].as_array().unwrap();
    let listing = types.iter().find(|of| of["aggregate_type"] == "listing").unwrap();
    let most = listing["per_aggregate"]["max_per_second"].as_f64().unwrap();
    assert!(most * 0.36 < listing["events"].as_f64().unwrap() * 0.999_999, "{listing}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(left.len(), 1, "only the report is left behind: {left:?}");
}

#[tokio::test]
async fn a_rebuild_under_load_is_measured_over_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, report) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let run = [
        "bench",
        "rebuild",
        "--store",
        store(),
        "--events",
        "12000",
        "--listings",
        "20",
        "--rate",
        "50",
    ];
    let more = ["--rows-per-second", "800", "--seconds", "1", "--kill"];
    let run = [&run[..], &more, &["--folder", into, "--json", report]].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report = read(&json);
    assert!(report["events"].as_u64().unwrap() >= 12_000, "{report}");
    assert_eq!(report["differing"], 0, "{report}");
    assert_eq!(report["mails"][0], report["mails"][1], "{report}");
    let (killed, resumed) = (&report["resumed"][0], &report["resumed"][1]);
    assert!(killed.as_u64().unwrap() > 4_000 && resumed.as_u64() >= killed.as_u64(), "{report}");
    let phases = report["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    let expected = ["at rest", "while it is filled", "after the cut-over", "after the roll-back"];
    assert_eq!(names, expected);
    assert!(phases.iter().all(|phase| phase["failed"] == 0), "{report}");
}

/// What an overload comes to, at a store so slow that two busy processors can ask for more.
#[tokio::test]
async fn an_overload_is_measured_and_what_was_accepted_is_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, report) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let run = ["bench", "overload", "--append-ms", "1000", "--seconds", "10", "--times", "3"];
    let more = ["--connections", "1500", "--listings", "20"];
    let run = [&run[..], &more, &["--folder", into, "--json", report]].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report = read(&json);
    let phases = report["phases"].as_array().unwrap();
    assert!(phases.len() >= 3, "the first rate is less than what fits: {report}");
    let overload = phases.last().unwrap();
    let peak = report["peak_per_second"].as_f64().unwrap();
    assert!((overload["asked_per_second"].as_f64().unwrap() / peak - 3.0).abs() < 0.01, "{report}");
    assert!(overload["refused"].as_u64().unwrap() > 0, "{report}");
    assert!(overload["refusals"]["p50_ms"].as_f64().unwrap() > 0.0, "{report}");
    assert!(overload["memory_kib"].as_f64().unwrap() > 0.0, "{report}");
}

/// A change waits for the append under way and for its own: a phase as long as a few of those would
/// count too few of the first.
#[test]
fn an_overload_is_not_measured_in_phases_that_are_too_short() {
    let run = ["bench", "overload", "--append-ms", "2000", "--seconds", "5"];
    let run = Command::new(&run).run();
    assert_eq!(run.code, 1);
    assert!(run.errors.contains("--seconds must be at least 20.0"), "{}", run.errors);
}

fn is_checked(row: &Value, name: &str) -> bool {
    row["checks"].as_array().unwrap().iter().any(|check| check["name"] == name)
}

const VERSIONS_RISE: &str = "versions rise in the order of the answers";

#[tokio::test]
async fn commands_without_http_are_counted_and_held_against_the_journal_too() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, file) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let run = |more: &[&str]| {
        let run = ["bench", "in-process", "--store", store(), "--listings", "20"];
        let run = [&run[..], more, &["--folder", into, "--json", file]].concat();
        Command::new(&run).patient_for(PATIENCE).run()
    };
    let closed = run(&["--seconds", "0.5", "--connections", "3"]);
    assert_eq!(closed.code, 0, "{}", closed.errors);
    let report = read(&json);
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["phase"].as_str().unwrap()).collect();
    assert_eq!(names, ["hot, in process", "spread, in process", "raw inserts"]);
    for row in &rows[..2] {
        assert!(row["accepted"].as_u64().unwrap() >= 3, "{row}");
        assert_eq!((&row["journalled"], &row["refused"]), (&row["accepted"], &json!(0)), "{row}");
        assert!(row["of_raw"].as_f64().unwrap() > 0.0 && row["of_echo"].is_null(), "{row}");
        let checks = row["checks"].as_array().unwrap();
        assert!(checks.len() >= 7, "{row}");
        assert!(checks.iter().all(|check| check["is_good"] == true), "{row}");
        assert!(is_checked(row, VERSIONS_RISE), "{row}");
        // What runs beside commands is the whole service's.
        let handled = row["subscribers"].as_array().unwrap();
        let index = handled.iter().find(|of| of["name"] == "events-index").unwrap();
        assert!(index["events"].as_u64() >= row["journalled"].as_u64(), "{index}");
    }
    assert_eq!(rows[0]["aggregates"]["spread"]["aggregates"], 1);

    let open = run(&["--seconds", "1", "--connections", "8", "--rate", "50", "--only", "hot"]);
    assert_eq!(open.code, 0, "{}", open.errors);
    let row = &read(&json)["rows"][0];
    assert_eq!(row["rate"], 50.0);
    assert_eq!(row["accepted"].as_u64().unwrap() + row["unsent"].as_u64().unwrap(), 60, "{row}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(left.len(), 1, "only the report is left behind: {left:?}");
    let elsewhere = Command::new(&["bench", "in-process", "--url", "http://127.0.0.1:1"]).run();
    assert_eq!(elsewhere.code, 1);
    assert!(elsewhere.errors.contains("leave --url out"), "{}", elsewhere.errors);
}

#[tokio::test]
async fn every_scenario_yields_a_report_whose_checks_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("report.json"), folder.path().join("report.html"));
    let files = ["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()];
    let run = ["bench", "all", "--seconds", "1.5", "--connections", "4", "--listings", "20"];
    let shape = ["--buyers", "2", "--batch", "20", "--keys", "7", "--store", store()];
    let into = ["--folder", folder.path().to_str().unwrap()];
    let run = [&run[..], &shape, &into, &files].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report = read(&json);
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["phase"].as_str().unwrap()).collect();
    let phases = [
        "echo",
        "hot",
        "spread",
        "hot, two events",
        "spread, two events",
        "zipf",
        "purchase",
        "publish",
        "read",
        "mixed",
        "raw inserts",
    ];
    assert_eq!(names, phases);
    assert_eq!(report["is_good"], true);
    for row in &rows[..phases.len() - 1] {
        let checks = row["checks"].as_array().unwrap();
        // What is read leaves nothing to hold against the journal.
        let least = if ["echo", "read"].contains(&row["phase"].as_str().unwrap()) { 3 } else { 6 };
        assert!(checks.len() >= least, "{row}");
        assert!(checks.iter().all(|check| check["is_good"] == true), "{row}");
        assert!(row["accepted"].as_u64().unwrap() > 0 && row["refused"] == 0, "{row}");
        assert!(!row["moments"].as_array().unwrap().is_empty(), "{row}");
    }
    let row = |phase: &str| rows.iter().find(|row| row["phase"] == phase).unwrap();
    let aggregates =
        |phase: &str| row(phase)["aggregates"]["spread"]["aggregates"].as_u64().unwrap();
    assert_eq!(aggregates("hot"), 1);
    assert!((2..=20).contains(&aggregates("zipf")));
    let top = row("zipf")["aggregates"]["top"].as_array().unwrap();
    let rates: Vec<_> = top.iter().map(|one| one["per_second"].as_f64().unwrap()).collect();
    assert!(rates.is_sorted_by(|one, other| one >= other), "{rates:?}");
    assert!(row("purchase")["shipped"]["p95_ms"].as_f64().unwrap() > 0.0);
    let journal = row("purchase")["journal"].as_array().unwrap();
    let orders = journal.iter().find(|of| of["aggregate_type"] == "order").unwrap();
    assert_eq!(orders["per_aggregate"]["aggregates"], row("purchase")["accepted"]);
    let published = row("publish");
    assert_eq!(published["journalled"], published["accepted"].as_u64().unwrap() * 20);
    let handled = published["subscribers"].as_array().unwrap();
    let index = handled.iter().find(|of| of["name"] == "events-index").unwrap();
    assert!(index["events"].as_u64() >= published["journalled"].as_u64(), "{index}");
    assert!(index["p999_ms"].as_f64() >= index["p99_ms"].as_f64(), "{index}");
    assert!(is_checked(row("hot"), VERSIONS_RISE) && !is_checked(published, VERSIONS_RISE));
    let note = published["notes"][0].as_str().unwrap();
    assert!(published["aggregates"].is_null() && note.contains("no single aggregate"), "{note}");
    assert!(!row("mixed")["aggregates"].is_null(), "listings are asked by number there too");
    let bought = row("purchase");
    let types = bought["types"].as_array().unwrap();
    let orders = types.iter().find(|of| of["aggregate_type"] == "order").unwrap();
    assert!(orders["commands"].as_u64() >= bought["accepted"].as_u64(), "{orders}");
    assert!(orders["p50_ms"].as_f64().unwrap() > 0.0, "{orders}");
    assert!(orders["p999_ms"].as_f64() >= orders["p50_ms"].as_f64(), "{orders}");
    let deliveries = &bought["deliveries"];
    assert!(deliveries["handled"].as_u64() > bought["journalled"].as_u64(), "{deliveries}");
    assert_eq!((&deliveries["letters"], &deliveries["succeeded"]), (&json!(0), &json!(1.0)));
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.matches("<svg").count() >= 3 * (phases.len() - 1));
}

/// A server that is there already, and the arguments that lead there.
async fn elsewhere(start: Start) -> (Server, tempfile::TempDir, String) {
    let server = start.start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, server.admin_token()).unwrap();
    (server, folder, token.display().to_string())
}

#[tokio::test]
async fn a_running_server_is_measured_at_a_steady_rate_and_reports_are_compared() {
    let (server, folder, token) = elsewhere(Start::default()).await;
    let json = folder.path().join("report.json");
    let url = server.url();
    let run = ["bench", "zipf", "--url", &url, "--token-file", &token, "--rate", "40"];
    let more = ["--seconds", "1", "--connections", "8", "--listings", "10"];
    let run = [&run[..], &more, &["--json", json.to_str().unwrap()]].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let mut report = read(&json);
    let row = report["rows"].as_array().unwrap().iter().find(|row| row["phase"] == "zipf").unwrap();
    assert_eq!(row["rate"], 40.0);
    assert_eq!((&row["settings"], &report["threads"]), (&json!({ "exponent": 1.0 }), &json!(1)));
    // A second and a fifth of it before: one for each due time.
    assert_eq!(row["accepted"].as_u64().unwrap() + row["unsent"].as_u64().unwrap(), 48);
    server.finish().await;

    let before = json.to_str().unwrap();
    let elsewhere = folder.path().join("elsewhere.json");
    report["store"] = "another".into();
    std::fs::write(&elsewhere, report.to_string()).unwrap();
    let compare = ["bench", "compare", before, elsewhere.to_str().unwrap()];
    let refused = Command::new(&compare).run();
    assert_eq!(refused.code, 1);
    assert!(refused.errors.contains("--any-store"), "{}", refused.errors);
    let all_the_same = Command::new(&[&compare[..], &["--any-store"]].concat()).run();
    assert_eq!(all_the_same.code, 0, "{}", all_the_same.errors);
    assert!(all_the_same.output.contains("not alike: store: "), "{}", all_the_same.output);
    report["store"] = read(&json)["store"].clone();

    let same = Command::new(&["bench", "compare", before, before, "--fail-above", "0%"]).run();
    assert_eq!(same.code, 0, "{}", same.errors);
    assert!(same.output.contains("the same"), "{}", same.output);
    for row in report["rows"].as_array_mut().unwrap() {
        let slower = row["p95_ms"].as_f64().unwrap() * 2.0;
        row["p95_ms"] = slower.into();
    }
    let after = folder.path().join("after.json");
    std::fs::write(&after, report.to_string()).unwrap();
    let worse = ["bench", "compare", before, after.to_str().unwrap(), "--fail-above", "10%"];
    let worse = Command::new(&worse).run();
    assert_eq!(worse.code, 1);
    assert!(worse.errors.contains("p95 ms: 100 % worse"), "{}", worse.errors);
}

#[tokio::test]
async fn a_rate_of_batches_says_what_it_counts_and_their_single_key_is_told_of() {
    let (server, folder, token) = elsewhere(Start::default()).await;
    let json = folder.path().join("report.json");
    let url = server.url();
    let run = ["bench", "publish", "--url", &url, "--token-file", &token, "--rate", "20"];
    let shape = ["--batch", "5", "--keys", "1", "--connections", "8", "--seconds", "1"];
    let more = ["--listings", "1", "--json", json.to_str().unwrap()];
    let run = Command::new(&[&run[..], &shape, &more].concat()).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    assert!(run.output.contains("publish at 20.0 batches/s"), "{}", run.output);
    assert!(run.output.contains("100.0 events a second are due"), "{}", run.output);
    let report = read(&json);
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["phase"] == "publish").unwrap();
    let accepted = row["accepted"].as_u64().unwrap();
    assert_eq!(accepted + row["unsent"].as_u64().unwrap(), 24, "{row}");
    assert_eq!(row["journalled"], accepted * 5);
    assert_eq!(row["aggregates"]["top"][0]["aggregate"], "thing-0");
    let types = row["types"].as_array().unwrap();
    let published = types.iter().find(|of| of["aggregate_type"] == "publication").unwrap();
    assert_eq!(published["commands"], accepted);
    server.finish().await;
}

#[tokio::test]
async fn a_run_that_leaves_dead_letters_fails_and_says_so() {
    // The load itself needs no mails.
    let start = Start::default().with("REVEAL_VERIFICATION_TOKEN", "true");
    let (server, folder, token) = elsewhere(start).await;
    server.fault("notification-email", "fail", json!({ "kind": "permanent" })).await;
    let json = folder.path().join("report.json");
    let url = server.url();
    let run = ["bench", "purchase", "--url", &url, "--token-file", &token, "--listings", "4"];
    let shape = ["--buyers", "1", "--connections", "2", "--seconds", "1.5"];
    let run = [&run[..], &shape, &["--json", json.to_str().unwrap()]].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 1, "{}", run.output);
    assert!(run.errors.contains("not so: no delivery ends as a dead letter"), "{}", run.errors);
    assert!(run.errors.contains("of notification-email"), "{}", run.errors);
    assert!(run.output.contains("dead letters: "), "{}", run.output);
    let report = read(&json);
    assert_eq!(report["is_good"], false);
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["phase"] == "purchase").unwrap();
    let deliveries = &row["deliveries"];
    assert!(deliveries["letters_of"]["notification-email"].as_u64() > Some(0), "{row}");
    let succeeded = deliveries["succeeded"].as_f64().unwrap();
    assert!(succeeded > 0.0 && succeeded < 1.0, "{row}");
    // What is set aside has been seen: nothing else tells of it.
    let effects = row["checks"].as_array().unwrap();
    let effects = effects.iter().find(|of| of["name"] == "everything has its effects in the end");
    assert_eq!(effects.unwrap()["is_good"], true, "{row}");
}

#[tokio::test]
async fn a_run_that_is_refused_fails_and_says_so() {
    // Enough for what a market is made of, which the service works on too, and not for the load.
    let (server, folder, token) = elsewhere(Start::default().with("MAILBOX_CAP", 4)).await;
    let json = folder.path().join("report.json");
    let url = server.url();
    let run = ["bench", "hot", "--url", &url, "--token-file", &token, "--listings", "1"];
    let more = ["--seconds", "0.5", "--connections", "64", "--json", json.to_str().unwrap()];
    let run = Command::new(&[&run[..], &more].concat()).patient_for(PATIENCE).run();
    assert_eq!(run.code, 1, "{}", run.output);
    assert!(run.errors.contains("every request is answered as asked for"), "{}", run.errors);
    assert!(run.errors.contains("the last with 503"), "{}", run.errors);
    assert_eq!(read(&json)["is_good"], false);
    server.finish().await;
}

/// Passes everything on, except that of every twenty changes it answers one itself.
async fn liar(upstream: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let changes = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(lie(client, upstream, changes.clone()));
        }
    });
    address
}

async fn lie(mut client: TcpStream, upstream: SocketAddr, changes: Arc<AtomicU64>) {
    let mut server = TcpStream::connect(upstream).await.unwrap();
    let (mut asked, mut told) = (Vec::new(), Vec::new());
    let mut version = 1_000_000;
    while let Some(request) = message(&mut client, &mut asked).await {
        let answer = if request.starts_with(b"PATCH")
            && changes.fetch_add(1, Ordering::Relaxed).is_multiple_of(20)
        {
            version += 1;
            format!("HTTP/1.1 200 OK\r\nETag: \"{version}\"\r\nContent-Length: 2\r\n\r\n{{}}")
                .into()
        } else {
            server.write_all(&request).await.unwrap();
            let Some(answer) = message(&mut server, &mut told).await else { break };
            answer
        };
        if client.write_all(&answer).await.is_err() {
            break;
        }
    }
}

/// The next whole message of a connection; none: it has ended.
async fn message(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
            if bytes.len() >= end + length {
                let rest = bytes.split_off(end + length);
                return Some(std::mem::replace(bytes, rest));
            }
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

#[tokio::test]
async fn a_run_whose_changes_are_lost_fails_and_says_so() {
    let (server, folder, token) = elsewhere(Start::default()).await;
    let liar = liar(server.url().strip_prefix("http://").unwrap().parse().unwrap()).await;
    let json = folder.path().join("report.json");
    let url = format!("http://{liar}");
    let run = move || {
        let run = ["bench", "spread", "--url", &url, "--token-file", &token, "--listings", "4"];
        let more = ["--seconds", "0.5", "--connections", "4", "--json", json.to_str().unwrap()];
        Command::new(&[&run[..], &more].concat()).patient_for(PATIENCE).run()
    };
    let run = tokio::task::spawn_blocking(run).await.unwrap();
    assert_eq!(run.code, 1, "{}", run.output);
    assert!(run.errors.contains("what was accepted is published"), "{}", run.errors);
    server.finish().await;
    drop(folder);
}

#[tokio::test]
async fn what_cannot_be_measured_is_said_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a token").unwrap();
    let refused = |arguments: &[&str], words: &str| {
        let token = ["--token-file", token.to_str().unwrap()];
        let run = Command::new(&[&["bench", "hot"], arguments, &token].concat()).run();
        assert_ne!(run.code, 0);
        assert!(run.errors.contains(words), "{}", run.errors);
    };
    refused(&["--url", "http://192.0.2.1:8080"], "--allow-remote");
    refused(&["--url", "https://127.0.0.1:8080"], "plain HTTP");
    refused(&["--url", "http://127.0.0.1:1"], "no server answers");
    refused(&["--url", "http://127.0.0.1:1", "--connections", "0"], "--connections");
    refused(&["--url", "http://127.0.0.1:1", "--rate", "0"], "--rate");
    let none = folder.path().join("none.json");
    let none = none.to_str().unwrap();
    let run = Command::new(&["bench", "compare", none, none]).run();
    assert!(run.code == 1 && run.errors.contains("cannot read"), "{}", run.errors);
}

#[tokio::test]
async fn starts_on_growing_journals_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, report) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let by_changes = ["bench", "restart", "--store", store(), "--listings", "60"];
    let more = ["--seconds", "0.5", "--folder", into, "--json", report];
    let run = [&by_changes[..], &["--sizes", "500,2000"], &more].concat();
    let run = Command::new(&run).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report = read(&json);
    assert_eq!(report["batch"], Value::Null);
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 2);
    for (size, least) in sizes.iter().zip([500, 2_000]) {
        assert!(size["events"].as_u64().unwrap() >= least, "{size}");
        assert!(size["ready_ms"].as_f64().unwrap() > 0.0, "{size}");
        let times = ["cold", "cold_at_once", "change"].map(|of| size[of]["p99_ms"].as_f64());
        assert!(times.iter().all(|time| time.unwrap() > 0.0), "{size}");
        let searches = size["lookups"].as_object().unwrap();
        assert!(
            searches.len() == 5 && searches.values().all(|of| of["max_ms"].as_f64() > Some(0.0)),
            "{size}"
        );
    }
    assert!(run.output.contains("| cost |"), "{}", run.output);

    let by_batches = [&by_changes[..], &["--sizes", "5000", "--batch", "50"], &more].concat();
    let run = Command::new(&by_batches).patient_for(PATIENCE).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report = read(&json);
    assert_eq!(report["batch"], 50);
    let events = report["sizes"][0]["events"].as_u64().unwrap();
    assert!((5_000..6_000).contains(&events), "{report}");
    let refused = [&by_changes[..], &["--batch", "0"]].concat();
    assert!(Command::new(&refused).run().errors.contains("--batch must be from 1 to 2000"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(left.len(), 1, "only the report is left behind: {left:?}");
}
