//! Disks that are full or that fail: nothing acknowledged is lost, nobody hears of anything worse
//! than "come back later", and the service is back by itself.
//!
//! Full is a small `tmpfs` that is filled up; failing is `strace`, which lets system calls of the
//! running server return errors. Both need rights that a test says it has not got, if so.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Answer, Client, Fault, Server, SmallDisk, Start, eventually};

/// Makes a category of this name: one command, one event.
async fn make(client: &Client, name: &str) -> Answer {
    let client = client.keyed(name);
    client.post("/api/v1/categories", &json!({ "name": name, "slug": name })).await
}

/// Clients that go on writing until they are told to stop, and what they heard.
struct Writers {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<(String, Answer)>>>,
    clients: JoinSet<()>,
}

impl Writers {
    fn start(server: &Server) -> Self {
        let (stop, heard) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default());
        let mut clients = JoinSet::new();
        for client in 0..3 {
            let (admin, stop, heard) = (server.admin(), stop.clone(), heard.clone());
            clients.spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let name = format!("written-{client}-{n}");
                    let answer = make(&admin, &name).await;
                    heard.lock().unwrap().push((name, answer));
                    // Clients are not the load here: the disk's trouble is.
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            });
        }
        Self { stop, heard, clients }
    }

    /// Waits until somebody hears this status again.
    async fn hear(&self, status: u16) {
        let so_far = self.heard.lock().unwrap().len();
        eventually(&format!("{status}"), || async {
            let heard = self.heard.lock().unwrap();
            heard[so_far..].iter().any(|(_, answer)| answer.status() == status).then_some(())
        })
        .await;
    }

    /// Stops them. Nobody heard anything but 201, 503 and 504, and whatever was acknowledged is
    /// there, once; what was not is done once when it is repeated.
    async fn check(self, server: &Server) {
        self.stop.store(true, Ordering::Release);
        self.clients.join_all().await;
        let heard = self.heard.lock().unwrap().clone();
        check(server, &heard).await;
    }
}

async fn check(server: &Server, heard: &[(String, Answer)]) {
    let admin = server.admin();
    for (name, answer) in heard {
        match answer.status() {
            201 => {}
            503 => {
                let wait: u64 = answer.header("retry-after").parse().unwrap();
                assert!(wait > 0);
                answer.clone().problem(503, "journal_unavailable");
            }
            504 => drop(answer.clone().problem(504, "outcome_unknown")),
            other => panic!("{name} got {other}: {answer:?}"),
        }
        let again = make(&admin, name).await.expect(201);
        if answer.status() == 201 {
            assert_eq!(again["category_id"], answer["category_id"], "{name}");
            assert_eq!(again.header("idempotent-replayed"), "true", "{name} was lost");
        }
    }
    let created = server.events("eventType=category.created").await;
    let created: Vec<_> = created.iter().map(|event| event["data"]["slug"].as_str()).collect();
    for (name, _) in heard {
        let times = created.iter().filter(|slug| **slug == Some(name)).count();
        assert_eq!(times, 1, "{name} has effect once");
    }
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}{}", verified.output, verified.errors);
}

async fn is_ready(server: &Server, status: u16) {
    eventually(&format!("/readyz to be {status}"), || async {
        (server.visitor().get("/readyz").await.status() == status).then_some(())
    })
    .await;
}

/// Waits until a metric without labels has this value, whoever asks the service for anything.
async fn shows(server: &Server, metric: &str, value: f64) {
    eventually(&format!("{metric} to be {value}"), || async {
        (server.metric_of(metric).await == Some(value)).then_some(())
    })
    .await;
}

/// On files, and not minding how full the disk is.
fn unguarded() -> Start {
    Start::on_files().with("DISK_FREE_MIN", 0)
}

/// Something that is in memory, and the way to it.
async fn live(server: &Server) -> String {
    let id = make(&server.admin(), "live").await.expect(201).text("category_id");
    let path = format!("/api/v1/categories/{id}");
    server.visitor().get(&path).await.expect(200);
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_the_service_is_back_once_there_is_space() {
    let disk = SmallDisk::mount(16);
    let server = unguarded().within(disk.path()).start().await;
    let path = live(&server).await;
    let writers = Writers::start(&server);
    writers.hear(201).await;
    disk.fill();
    writers.hear(503).await;
    is_ready(&server, 503).await;
    shows(&server, "souk_journal_writable", 0.0).await;
    server.visitor().get("/livez").await.expect(200);
    server.visitor().get(&path).await.expect(200);
    server.logged(&["journal.db", "full", "Free space"]).await;
    disk.free();
    is_ready(&server, 200).await;
    shows(&server, "souk_journal_writable", 1.0).await;
    writers.hear(201).await;
    writers.check(&server).await;
    server.finish().await;
}

/// Whether `/readyz` finds that there is space.
async fn has_space(server: &Server) -> bool {
    let ready = server.visitor().get("/readyz?verbose").await;
    let checks = ready["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "disk_space").unwrap();
    let has_space = check["ok"].as_bool().unwrap();
    assert_eq!(ready.status(), if has_space { 200 } else { 503 });
    has_space
}

#[tokio::test(flavor = "multi_thread")]
async fn an_almost_full_disk_takes_nothing_new_and_what_was_begun_is_finished() {
    const MINIMUM: u64 = 12 << 20;
    let disk = SmallDisk::mount(48);
    let start = Start::on_files().within(disk.path()).with("DISK_FREE_MIN", MINIMUM);
    let server = start.start().await;
    assert!(has_space(&server).await);
    shows(&server, "souk_disk_low", 0.0).await;
    let path = live(&server).await;
    // Held back on its way, so that the rest of it happens while there is little space.
    let deaf = json!({ "key": "payment.captured" });
    let hold = server.fault("order_saga-facts", "fail", deaf).await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.await_event("payment.captured", &sale.order.correlation_id).await;
    let before = make(&server.admin(), "before").await.expect(201);

    disk.leave(MINIMUM - (1 << 20));
    eventually("the disk to be low", || async { (!has_space(&server).await).then_some(()) }).await;
    shows(&server, "souk_disk_low", 1.0).await;
    let refused = make(&server.admin(), "during").await.problem(503, "disk_low");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert!(refused.text("detail").contains("freed some space"), "{refused:?}");
    server.visitor().get("/problems/disk_low").await.expect(200);
    server.logged(&["ERROR", "almost full", "DISK_FREE_MIN"]).await;
    server.visitor().get("/livez").await.expect(200);
    server.visitor().get(&path).await.expect(200);
    // What happened before is still told.
    let again = make(&server.admin(), "before").await.expect(201);
    assert_eq!(again["category_id"], before["category_id"]);
    server.mend(hold).await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    for volume in ["journal", "read"] {
        let label = format!("volume=\"{volume}\"");
        let free = server.metric("souk_disk_free_bytes", &label).await;
        assert!(free > 0.0 && free < (12 << 20) as f64, "{volume}: {free}");
    }
    assert!(!has_space(&server).await);

    disk.free();
    eventually("there to be space", || async { has_space(&server).await.then_some(()) }).await;
    shows(&server, "souk_disk_low", 0.0).await;
    make(&server.admin(), "during").await.expect(201);
    server.logged(&["INFO", "enough space again"]).await;
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_read_models_stops_them_only() {
    let (disk, elsewhere) = (SmallDisk::mount(8), tempfile::tempdir().unwrap());
    let journal = format!("sqlite:{}", elsewhere.path().join("journal.db").display());
    let start = unguarded().within(disk.path()).with("DATABASE_URL", journal);
    let server = start.start().await;
    let writers = Writers::start(&server);
    writers.hear(201).await;
    disk.fill();
    eventually("a read model to stop", || async {
        (server.subscription("events-index").await["state"] == "circuit_open").then_some(())
    })
    .await;
    server.logged(&["events-index", "circuit is open", "full"]).await;
    writers.hear(201).await;
    server.visitor().get("/readyz").await.expect(200);
    disk.free();
    server.caught_up("events-index").await;
    server.caught_up("categories-view").await;
    let heard = writers.heard.clone();
    writers.check(&server).await;
    assert!(heard.lock().unwrap().iter().all(|(_, answer)| answer.status() == 201));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_the_start_is_told_plainly() {
    let disk = SmallDisk::mount(16);
    let mut server = unguarded().within(disk.path()).start().await;
    let made = make(&server.admin(), "before").await.expect(201);
    assert!(server.terminate().await.success());
    disk.fill();
    let refused = server.command(&["serve"]).with("HTTP_ADDR", "127.0.0.1:0").run();
    assert_ne!(refused.code, 0);
    let place = disk.path().display().to_string();
    assert!(refused.errors.contains(&place), "{}", refused.errors);
    assert!(refused.errors.contains("full"), "{}", refused.errors);
    disk.free();
    server.start_again().await;
    check(&server, &[("before".to_owned(), made)]).await;
    server.finish().await;
}

fn log_of(server: &Server) -> PathBuf {
    let journal = std::fs::canonicalize(server.journal()).unwrap();
    PathBuf::from(format!("{}-wal", journal.display()))
}

/// While the log cannot be written or synced nobody gets a 2xx, and nobody a 500; afterwards all is
/// as it was told, also after a crash.
async fn fails(calls: &str) {
    let mut server = Start::on_files().start().await;
    let path = live(&server).await;
    let fault = Fault::on(&server, calls, "EIO", &log_of(&server));
    let mut heard = Vec::new();
    let admin = server.admin();
    for n in 0..20 {
        let name = format!("unlucky-{n}");
        let answer = make(&admin, &name).await;
        assert_ne!(answer.status(), 201, "{name} cannot be on disk");
        heard.push((name, answer));
    }
    is_ready(&server, 503).await;
    server.visitor().get("/livez").await.expect(200);
    server.visitor().get(&path).await.expect(200);
    server.logged(&["journal.db", "disk", "refuses"]).await;
    drop(fault);
    is_ready(&server, 200).await;
    let after = make(&admin, "after").await.expect(201);
    heard.push(("after".to_owned(), after));
    check(&server, &heard).await;
    server.kill_9_and_start_again().await;
    check(&server, &heard).await;
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_is_nobody_s_success() {
    fails("fdatasync,fsync").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_is_a_write_that_fails() {
    fails("pwrite64").await;
}

/// The process dies while nobody knows what is on disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_come_back_after_a_crash_comes_back_once_or_not_at_all() {
    let mut server = Start::on_files().start().await;
    let mut heard = Vec::new();
    loop {
        let fault = Fault::on(&server, "fdatasync,fsync", "EIO", &log_of(&server));
        let name = format!("unlucky-{}", heard.len());
        let unlucky = make(&server.admin(), &name).await;
        heard.push((name, unlucky.clone()));
        if unlucky.status() == 504 {
            // Before strace lets go: it must not come to a sync that succeeds.
            server.kill_9();
            break;
        }
        // A checkpoint of a subscription came first and found out.
        unlucky.problem(503, "journal_unavailable");
        assert!(heard.len() < 20, "nobody's outcome is unknown");
        drop(fault);
        is_ready(&server, 200).await;
    }
    server.start_again().await;
    check(&server, &heard).await;
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_that_fails_leaves_everything_in_the_log() {
    let mut server = Start::on_files().start().await;
    let journal = std::fs::canonicalize(server.journal()).unwrap();
    let fault = Fault::on(&server, "pwrite64,fdatasync,fsync", "EIO", &journal);
    let writers = Writers::start(&server);
    server.logged(&["cannot be checkpointed"]).await;
    writers.hear(201).await;
    drop(fault);
    server.logged(&["is checkpointed again"]).await;
    let heard = writers.heard.clone();
    writers.check(&server).await;
    assert!(heard.lock().unwrap().iter().all(|(_, answer)| answer.status() == 201));
    server.kill_9_and_start_again().await;
    server.finish().await;
}
