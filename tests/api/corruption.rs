//! Stored data that is not what was written: noticed, named, kept to itself, and mended without a
//! restart.

use std::path::Path;

use serde_json::json;
use souk_actors::testing::EVENT_COLUMNS;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Row as _, SqlitePool};

use crate::support::{Answer, Client, Fault, Server, Start, eventually, parallel, wish};

/// More events than are verified at the start.
const MANY: usize = 110;

async fn make(client: &Client, name: &str) -> Answer {
    let body = json!({ "name": name, "slug": name });
    client.post("/api/v1/categories", &body).await.expect(201)
}

/// Where the one event of an answer stands.
fn position(answer: &Answer) -> i64 {
    let position = answer.header("souk-position");
    position.split_once(':').and_then(|(_, number)| number.parse().ok()).unwrap()
}

async fn open(file: &Path) -> SqlitePool {
    SqlitePool::connect_with(SqliteConnectOptions::new().filename(file)).await.unwrap()
}

/// The journal's file, with nothing in the way of those who change it.
async fn unguarded(journal: &Path) -> SqlitePool {
    let pool = open(journal).await;
    for trigger in ["events_are_final", "events_are_kept"] {
        execute(&pool, &format!("DROP TRIGGER IF EXISTS {trigger}")).await;
    }
    pool
}

async fn execute(pool: &SqlitePool, sql: &str) -> u64 {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(pool).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
}

/// One event, found by a column that nobody changes meanwhile.
struct Victim {
    seq: i64,
    event_id: String,
}

impl Victim {
    async fn at(pool: &SqlitePool, seq: i64) -> Self {
        let sql = "SELECT hex(event_id) FROM events WHERE seq = $1";
        let event_id = sqlx::query_scalar(sql).bind(seq).fetch_one(pool).await.unwrap();
        Self { seq, event_id }
    }

    /// Flips one bit of a column; the second time flips it back.
    async fn flip(&self, pool: &SqlitePool, column: &str) {
        let find = match column {
            "event_id" => format!("seq = {}", self.seq),
            _ => format!("event_id = x'{}'", self.event_id),
        };
        let read =
            format!("SELECT typeof({column}), CAST({column} AS BLOB) FROM events WHERE {find}");
        let row = sqlx::query(AssertSqlSafe(read)).fetch_one(pool).await.unwrap();
        let kind: String = row.get(0);
        let set = if kind == "integer" {
            format!("({column} | 1048576) - ({column} & 1048576)")
        } else {
            let mut bytes: Vec<u8> = row.get(1);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("CAST(x'{hex}' AS {kind})")
        };
        let update = format!("UPDATE events SET {column} = {set} WHERE {find}");
        assert_eq!(execute(pool, &update).await, 1, "{column}");
    }
}

/// A stopped server, the position of one of its events, and a place for copies of its journal.
async fn stopped() -> (Server, i64) {
    let mut server = Start::on_files().start().await;
    let admin = server.admin();
    make(&admin, "first").await;
    let position = position(&make(&admin, "needle-in-the-journal").await);
    for name in ["third", "fourth", "fifth"] {
        make(&admin, name).await;
    }
    assert!(server.terminate().await.success());
    let pool = open(&server.journal()).await;
    execute(&pool, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    pool.close().await;
    (server, position)
}

/// What `journal verify` says of a file: its exit code and the lines that name a damage.
fn verify(server: &Server, journal: &Path) -> (i32, Vec<String>, String) {
    let url = format!("sqlite:{}", journal.display());
    let ended = server.command(&["journal", "verify"]).with("DATABASE_URL", url).run();
    let lines = ended.output.lines().filter(|line| line.contains("damaged at"));
    (ended.code, lines.map(str::to_owned).collect(), ended.output + &ended.errors)
}

fn names(lines: &[String], position: i64) -> bool {
    lines.iter().any(|line| line.starts_with(&format!("partition 0: damaged at {position}:")))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_is_named() {
    let (server, position) = stopped().await;
    let copy = server.folder().join("copy.db");
    for column in EVENT_COLUMNS {
        std::fs::copy(server.journal(), &copy).unwrap();
        let pool = unguarded(&copy).await;
        Victim::at(&pool, position).await.flip(&pool, column).await;
        pool.close().await;
        let (code, lines, output) = verify(&server, &copy);
        assert_eq!(code, 1, "{column}: {output}");
        assert!(names(&lines, position), "{column}: {output}");
        // The damage itself and nothing else; but what went elsewhere is missing there too.
        assert!(lines.len() == 1 || column == "seq", "{column}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_swapped_events_are_named() {
    let (server, position) = stopped().await;
    let copy = server.folder().join("copy.db");
    let next = position + 1;
    let swap = [
        format!("UPDATE events SET seq = -1 WHERE seq = {position}"),
        format!("UPDATE events SET seq = {position} WHERE seq = {next}"),
        format!("UPDATE events SET seq = {next} WHERE seq = -1"),
    ];
    let delete = [format!("DELETE FROM events WHERE seq = {position}")];
    for (change, damaged) in [(&delete[..], vec![position]), (&swap[..], vec![position, next])] {
        std::fs::copy(server.journal(), &copy).unwrap();
        let pool = unguarded(&copy).await;
        for statement in change {
            assert_eq!(execute(&pool, statement).await, 1);
        }
        pool.close().await;
        let (code, lines, output) = verify(&server, &copy);
        assert_eq!((code, lines.len()), (1, damaged.len()), "{output}");
        assert!(damaged.iter().all(|position| names(&lines, *position)), "{output}");
    }
}

/// Bits of the file itself, past the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_found_and_not_served() {
    let (server, position) = stopped().await;
    let copy = server.folder().join("copy.db");
    let bytes = std::fs::read(server.journal()).unwrap();
    let needle = b"needle-in-the-journal";
    let places = (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle));
    let mut damaged = 0;
    for place in places {
        let mut flipped = bytes.clone();
        flipped[place + 3] ^= 4;
        std::fs::write(&copy, flipped).unwrap();
        let (code, lines, output) = verify(&server, &copy);
        if code == 0 {
            // What an earlier state of a page left in its free space is nobody's data.
            continue;
        }
        damaged += 1;
        assert!(lines.len() == 1 && names(&lines, position), "{output}");
        // It is among the last events, on which everything new would rest.
        refused(&server, &copy, &format!("0:{position} is not what was written"));
    }
    assert!(damaged > 0, "the event is in the file");
    std::fs::write(&copy, &bytes[..bytes.len() / 2]).unwrap();
    let (code, _, output) = verify(&server, &copy);
    assert_eq!(code, 1, "{output}");
    refused(&server, &copy, "malformed");
    std::fs::write(&copy, vec![7; 20_000]).unwrap();
    assert_eq!(verify(&server, &copy).0, 1);
    refused(&server, &copy, "not a database");
}

/// A server on this journal does not start, and says which file it is and what is wrong with it.
fn refused(server: &Server, journal: &Path, why: &str) {
    let url = format!("sqlite:{}", journal.display());
    let serve = server.command(&["serve"]).with("DATABASE_URL", url);
    let ended = serve.with("HTTP_ADDR", "127.0.0.1:0").run();
    assert_eq!(ended.code, 1, "{}", ended.errors);
    assert!(ended.errors.contains(why), "{why}: {}", ended.errors);
}

/// Releases categories as an operator would.
fn release_by_command(server: &Server, ids: &[String]) {
    let quarantine = |arguments: &[&str]| {
        let command = server.command(&[&["quarantine"], arguments].concat());
        command.with("SOUK_URL", server.url()).run()
    };
    let listed = quarantine(&["list"]).output;
    for id in ids {
        assert!(listed.contains(id), "{listed}");
        let why = quarantine(&["show", "category", id]);
        assert_eq!(why.code, 0, "{}", why.errors);
        assert!(why.output.contains("souk journal verify"), "{}", why.output);
        assert!(why.output.contains("err_"), "{}", why.output);
        let released = quarantine(&["release", "category", id, "--reason", "mended"]);
        assert_eq!(released.code, 0, "{}", released.errors);
        assert_eq!(quarantine(&["show", "category", id]).code, 1);
    }
    assert!(quarantine(&["list"]).output.starts_with("No aggregate is quarantined."));
}

/// What is quarantined says why, is released by hand, and both are events.
async fn are_released_and_told_of(server: &Server, ids: &[String]) {
    let admin = server.admin();
    for id in ids {
        let path = format!("/api/v1/admin/quarantine/category/{id}");
        let why = admin.get(&path).await.expect(200);
        assert_eq!((&why["times"], &why["crashes"][0]["command"]), (&json!(1), &json!("load")));
        let told = admin.get(why["events"].as_str().unwrap()).await.expect(200);
        assert_eq!(told.items()[0]["event_type"], "aggregate.quarantined", "{}", told.raw());
        admin.with("if-none-match", why.header("etag")).get(&path).await.expect(304);
    }
    release_by_command(server, ids);
    server.caught_up("events-index").await;
    let released = server.events("eventType=aggregate.released").await;
    assert_eq!(released.len(), ids.len());
    for event in &released {
        assert_eq!(event["data"]["reason"], "mended");
        assert_ne!(event["metadata"]["actor_id"], "system", "{event}");
    }
}

/// Whoever waits for what an order leads to is not told that nothing happened when that cannot be looked
/// at: they would buy a second time.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_also_when_its_payment_cannot_be_looked_at() {
    let mut server = Start::on_files().partitions(1).start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let wish = wish(&server.listing(&sam, 2).await, 1, "sandbox");
    let placed = bea.client.keyed("once").post("/api/v1/orders", &wish).await.expect(201);
    let order = placed.text("order_id");
    server.order_eventually(&order, "SHIPPED").await;
    server.at_rest().await;
    let payment = placed["payment"]["payment_id"].as_str().unwrap();
    let query = format!("eventType=payment.initiated&aggregateId={payment}");
    let initiated = server.events(&query).await.swap_remove(0)["position"].as_i64().unwrap();
    assert!(server.terminate().await.success());
    server.start_again().await;

    let pool = unguarded(&server.journal()).await;
    Victim::at(&pool, initiated).await.flip(&pool, "data").await;
    pool.close().await;
    let payment = format!("/api/v1/orders/{order}/payment");
    server.admin().get(&payment).await.problem(503, "quarantined");
    let keyed = bea.client.keyed("once");
    let repeated = keyed.waiting().post("/api/v1/orders", &wish).await.expect(201);
    assert_eq!(repeated.header("idempotent-replayed"), "true");
    assert_eq!(repeated["order_id"], placed["order_id"]);
}

/// A running server on a journal with damaged events that are not in memory.
#[tokio::test(flavor = "multi_thread")]
async fn damage_stays_with_its_aggregate_and_is_mended_without_a_restart() {
    let mut server = Start::on_files().start().await;
    server.pause("categories-view").await;
    let admin = server.admin();
    let mut victims = Vec::new();
    for column in EVENT_COLUMNS {
        let made = make(&admin, &format!("victim-of-{}", column.replace('_', "-"))).await;
        victims.push((column, made.text("category_id"), position(&made)));
    }
    let other = make(&admin, "somebody-else").await.text("category_id");
    parallel(MANY, |n| {
        let admin = admin.clone();
        async move { make(&admin, &format!("later-{n}")).await }
    })
    .await;
    server.caught_up("events-index").await;
    assert!(server.terminate().await.success());
    server.start_again().await;

    let pool = unguarded(&server.journal()).await;
    let mut flipped = Vec::new();
    for (column, _, position) in &victims {
        let victim = Victim::at(&pool, *position).await;
        victim.flip(&pool, column).await;
        flipped.push((victim, column));
    }
    let (visitor, admin) = (server.visitor(), server.admin());
    for (column, id, position) in &victims {
        let path = format!("/api/v1/categories/{id}");
        let refused = visitor.get(&path).await.problem(503, "quarantined");
        assert!(!refused.header("retry-after").is_empty(), "{column}");
        let error_id = refused.text("error_id");
        server.logged(&[&error_id]).await;
        // So is a command.
        let deactivate = format!("/api/v1/admin/categories/{id}/deactivate");
        admin.post(&deactivate, &json!({})).await.problem(503, "quarantined");
        if ["seq", "stream"].contains(column) {
            continue; // The row is not found where it belongs: it is missing.
        }
        server.logged(&[&format!("the event at 0:{position}")]).await;
    }
    let listed = admin.get("/api/v1/admin/quarantine").await.expect(200);
    assert_eq!(listed.items().len(), victims.len());
    visitor.get(&format!("/api/v1/categories/{other}")).await.expect(200);
    make(&admin, "after-the-damage").await;
    visitor.get("/readyz").await.expect(200);

    // A subscription that has to read them waits in front of the first.
    server.resume("categories-view").await;
    eventually("the view to wait", || async {
        (server.subscription("categories-view").await["state"] == "damaged").then_some(())
    })
    .await;
    let reached = server.subscription("categories-view").await;
    let reached = reached["partitions"][0]["position"].as_i64().unwrap();
    assert!(reached < victims[0].2, "{reached}");
    assert!(server.letters(None).await.is_empty());

    for (victim, column) in flipped {
        victim.flip(&pool, column).await;
    }
    pool.close().await;
    server.caught_up("categories-view").await;
    let ids: Vec<_> = victims.iter().map(|(_, id, _)| id.to_string()).collect();
    server.caught_up("events-index").await;
    are_released_and_told_of(&server, &ids).await;
    for id in ids {
        visitor.get(&format!("/api/v1/categories/{id}")).await.expect(200);
    }
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}", verified.output);
    server.finish().await;
}

/// A log that lost its end is a shorter log: what is in it is whole, and what derived data knows
/// beyond it is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_is_noticed_by_the_read_models() {
    let mut server = Start::on_files().start().await;
    let journal = std::fs::canonicalize(server.journal()).unwrap();
    // Nothing is moved from the log to the database.
    let fault = Fault::on(&server, "pwrite64", "EIO", &journal);
    let admin = server.admin();
    for n in 0..20 {
        make(&admin, &format!("gone-{n}")).await;
    }
    server.caught_up("events-index").await;
    server.kill_9();
    drop(fault);
    let log = std::fs::File::options().write(true).open(server.folder().join("journal.db-wal"));
    let log = log.unwrap();
    log.set_len(log.metadata().unwrap().len() / 2).unwrap();
    server.start_again().await;
    server.logged(&["ahead of the journal"]).await;
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}", verified.output);
    make(&server.admin(), "new").await;
    server.caught_up("categories-view").await;
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_read_models_are_rebuilt_at_the_start() {
    let mut server = Start::on_files().start().await;
    make(&server.admin(), "kept").await;
    server.caught_up("categories-view").await;
    for damage in ["garbage", "half"] {
        assert!(server.terminate().await.success());
        let file = server.folder().join("read.db");
        let bytes = std::fs::read(&file).unwrap();
        let damaged =
            if damage == "half" { bytes[..bytes.len() / 2].to_vec() } else { vec![7; 9_000] };
        std::fs::write(&file, damaged).unwrap();
        // What it is not in the file must not be in the log either.
        for suffix in ["-wal", "-shm"] {
            let beside = server.folder().join(format!("read.db{suffix}"));
            let _: std::io::Result<()> = std::fs::remove_file(beside);
        }
        server.start_again().await;
        server.logged(&["read models are damaged"]).await;
        server.caught_up("categories-view").await;
        let listed = server.visitor().get("/api/v1/categories").await.expect(200);
        assert!(listed.raw().contains("kept"), "{damage}: {listed:?}");
    }
    server.finish().await;
}
