//! What an answer promises is on disk: seen from outside, in the server's own system calls.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Answer, Call, Client, Start, Trace, parallel};

/// Everything by which a server writes, syncs and answers.
const CALLS: &str = "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,fdatasync,fsync";

/// How many clients write at once, and how often each.
const CLIENTS: usize = 4;
const EACH: usize = 12;

/// Makes a category of this name: one command, one event.
async fn make(client: &Client, name: &str) -> Answer {
    let client = client.named(name).keyed(name);
    client.post("/api/v1/categories", &json!({ "name": name, "slug": name })).await
}

fn log_of(database: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", database.display()))
}

/// Starts a server under strace, has it answer commands of several clients, and returns those that
/// were answered before what they changed was on disk.
async fn answered_too_early(start: Start) -> (usize, Vec<String>) {
    let (server, trace) = Trace::start(start, CALLS).await;
    let admin = server.admin();
    let names = parallel(CLIENTS, |client| {
        let admin = admin.clone();
        async move {
            let mut names = Vec::new();
            for n in 0..EACH {
                let name = format!("durable-{client}-{n}");
                make(&admin, &name).await.expect(201);
                names.push(name);
            }
            names
        }
    });
    let names = names.await.concat();
    let log = log_of(&std::fs::canonicalize(server.journal()).unwrap());
    let calls = trace.calls(server).await;
    let early = names.iter().filter(|name| !was_synced_first(&calls, &log, name));
    (names.len(), early.cloned().collect())
}

/// Whether between the write of what a command changed and its answer lies a whole sync.
fn was_synced_first(calls: &[Call], log: &Path, name: &str) -> bool {
    let named = |call: &&Call| call.arguments.contains(name);
    let written = calls.iter().filter(|call| call.name.starts_with("pwrite") && call.on(log));
    let written = written.filter(named).find_map(|call| call.left);
    let written = written.unwrap_or_else(|| panic!("{name} was never written to {log:?}"));
    let mut answers = calls.iter().filter(|call| call.sends()).filter(named);
    let answered = answers.find(|call| call.arguments.contains("HTTP/1.1 201"));
    let answered = answered.unwrap_or_else(|| panic!("{name} was never answered")).entered;
    let mut syncs = calls.iter().filter(|call| call.synced() && call.on(log));
    syncs.any(|sync| sync.entered > written && sync.left.is_some_and(|left| left < answered))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_is_answered_before_it_is_synced() {
    let (answered, early) = answered_too_early(Start::on_files()).await;
    assert_eq!((answered, early), (CLIENTS * EACH, Vec::new()));
}

/// The same look at a server that syncs less: it must see it, or it sees nothing.
#[tokio::test(flavor = "multi_thread")]
async fn and_one_that_syncs_less_is_found_out() {
    let lazy = Start::on_files().with("JOURNAL_DURABILITY", "normal");
    let (answered, early) = answered_too_early(lazy).await;
    assert!(
        early.len() > answered / 2,
        "only {} of {answered} were answered too early",
        early.len()
    );
}
