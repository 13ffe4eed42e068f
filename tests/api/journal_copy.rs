//! A journal that is moved into the other kind of store, and served from there.

use serde_json::{Value, json};
use souk_actors::testing::postgres;

use crate::support::{Ended, Sale, Server, Start, eventually, wish};

fn copy(server: &Server, from: &str, to: &str) -> Ended {
    server.command(&["journal", "copy", "--from", from, "--to", to, "--json"]).run()
}

fn moved(server: &Server, from: &str, to: &str) {
    let done = copy(server, from, to);
    assert_eq!(done.code, 0, "{}", done.errors);
    let done: Value = serde_json::from_str(&done.output).unwrap();
    assert!(done["events"].as_u64().unwrap() > 20, "{done}");
    assert!(done["rows"].as_u64().unwrap() > 10, "{done}");
}

/// What people see of a market.
async fn seen(server: &Server, sale: &Sale) -> Vec<Value> {
    server.at_rest().await;
    let (order, correlation) = (&sale.order.id, &sale.order.correlation_id);
    let paths = [
        format!("/api/v1/orders/{order}"),
        format!("/api/v1/orders/{order}/history"),
        format!("/api/v1/orders/{order}/escrow"),
        format!("/api/v1/listings/{}", sale.listing_id),
        format!("/api/v1/users/{}", sale.buyer.user_id),
        format!("/api/v1/admin/aggregates/order/{order}/history"),
        format!("/api/v1/events?correlationId={correlation}&limit=200"),
    ];
    let mut seen = Vec::new();
    for path in paths {
        let answer = server.admin().get(&path).await.expect(200);
        seen.push(answer.json().clone());
    }
    seen
}

/// Sessions, logins and keys work, commands are taken, repeats are known, and everything adds up.
async fn goes_on(server: &Server, sale: &Sale) {
    let me = sale.buyer.client.get("/api/v1/users/me").await.expect(200);
    assert_eq!(me["email"], sale.buyer.email, "{me:?}");
    server.login(&sale.buyer.email, &sale.buyer.password).await.expect(200);
    let again = keyed(sale).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let audit = server.admin().get("/api/v1/admin/audit").await.expect(200);
    let found = (&audit["missing"], &audit["duplicate_effects"]);
    assert_eq!(found, (&json!(0), &json!(0)), "{audit:?}");
}

/// An order under a key.
async fn keyed(sale: &Sale) -> crate::support::Answer {
    let client = sale.buyer.client.keyed("moved");
    client.post("/api/v1/orders", &wish(&sale.listing_id, 1, "sandbox")).await.expect(201)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_moves_to_postgresql_and_back() {
    let mut server = Start::on_files().partitions(3).start().await;
    let sale = server.sale(20, 2, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let second = keyed(&sale).await.text("order_id");
    server.order_eventually(&second, "SHIPPED").await;
    let before = seen(&server, &sale).await;

    let files = format!("sqlite:{}", server.journal().display());
    let database = postgres::Server::shared().create_database().await;
    let running = copy(&server, &files, &database);
    assert_eq!(running.code, 1, "{}", running.output);
    assert!(running.errors.contains("journal.db.lock"), "{}", running.errors);
    assert!(server.terminate().await.success());
    moved(&server, &files, &database);
    server.move_to(&database);
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}", verified.output);
    server.start_again().await;
    assert_eq!(seen(&server, &sale).await, before);
    goes_on(&server, &sale).await;
    let after = seen(&server, &sale).await;
    assert!(server.terminate().await.success());
    let taken = copy(&server, &files, &database);
    assert_eq!(taken.code, 1, "nothing is copied over a journal");
    assert!(taken.errors.contains("there is a journal"), "{}", taken.errors);
    let taken = copy(&server, &database, &files);
    assert_eq!(taken.code, 1, "nor over a file");
    assert!(taken.errors.contains("there is a journal"), "{}", taken.errors);

    // Back into a file of another name, since the first one is still there.
    let back = format!("sqlite:{}", server.folder().join("back.db").display());
    moved(&server, &database, &back);
    server.move_to(&back);
    server.start_again().await;
    assert_eq!(seen(&server, &sale).await, after);
    goes_on(&server, &sale).await;
    server.finish().await;
}

/// A journal in the place of a shorter one: what that one showed is not shown for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_models_of_another_market_are_not_served() {
    let start = || {
        let key = |start: Start, name| start.with(name, "5a".repeat(32));
        ["MASTER_KEY", "TOKEN_KEY", "LOOKUP_KEY"].into_iter().fold(Start::on_files(), key)
    };
    let (mut here, mut there) = (start().start().await, start().start().await);
    let sam = here.seller("Sam").await;
    here.listing(&sam, 3).await;
    here.at_rest().await;
    let sale = there.sale(20, 2, "sandbox").await;
    there.order_eventually(&sale.order.id, "SHIPPED").await;
    there.at_rest().await;
    let shown = |server: &Server| {
        let visitor = server.visitor();
        async move { visitor.get("/api/v1/listings").await.expect(200).items().to_vec() }
    };
    let (old, new) = (shown(&here).await, shown(&there).await);
    assert_eq!((old.len(), new.len()), (1, 1));
    assert!(here.terminate().await.success() && there.terminate().await.success());

    let source = format!("sqlite:{}", there.journal().display());
    let target = format!("sqlite:{}", here.folder().join("other.db").display());
    moved(&here, &source, &target);
    here.move_to(&target);
    here.start_again().await;
    eventually("the other market", || async { (shown(&here).await == new).then_some(()) }).await;
}

#[tokio::test]
async fn a_journal_that_is_not_there_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let server = Start::on_files().start().await;
    let none = folder.path().join("none.db");
    let target = format!("sqlite:{}", folder.path().join("new.db").display());
    let run = copy(&server, &format!("sqlite:{}", none.display()), &target);
    assert_eq!(run.code, 1);
    assert!(run.errors.contains("there is no journal to read"), "{}", run.errors);
    assert!(!none.exists());
    let run = copy(&server, "mysql://market", &target);
    assert_eq!(run.code, 1);
    assert!(run.errors.contains("--from must be postgres://"), "{}", run.errors);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    server.finish().await;
}

/// Copies, killed (-9) with a certain call of the system. Whether it got so far.
fn killed(server: &Server, from: &str, to: &str, call: &str, nth: usize) -> bool {
    let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
    let souk = env!("CARGO_BIN_EXE_souk");
    let trace = format!("trace={call}");
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, souk];
    let words = words.into_iter().chain(["journal", "copy", "--from", from, "--to", to]);
    let words: Vec<_> = words.collect();
    let ended = std::process::Command::new(words[0])
        .args(&words[1..])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("DATA_DIR", server.folder())
        .output()
        .expect("strace is installed");
    // strace ends as its child did.
    match ended.status.code() {
        Some(0) => false,
        None => true,
        Some(code) => panic!("{code}: {}", String::from_utf8_lossy(&ended.stderr)),
    }
}

fn verified(server: &Server, url: &str) -> Ended {
    server.command(&["journal", "verify"]).with("DATABASE_URL", url).run()
}

/// However far a copy was when it was killed, it is no journal, the source is whole, and the next copy
/// begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_killed_is_no_journal() {
    let mut server = Start::on_files().partitions(2).start().await;
    let sale = server.sale(20, 2, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let before = seen(&server, &sale).await;
    assert!(server.terminate().await.success());
    let files = format!("sqlite:{}", server.journal().display());
    let new_file = format!("sqlite:{}", server.folder().join("new.db").display());
    let database = postgres::Server::shared().create_database().await;
    // What is durable is synced; what the database is asked is sent.
    for (target, call) in [(&new_file, "fdatasync,fsync"), (&database, "sendto")] {
        let mut kills = 0;
        for nth in [1, 2, 3, 4, 6, 9, 14, 20, 30] {
            if !killed(&server, &files, target, call, nth) {
                break;
            }
            kills += 1;
            // With its last call it may have come to its end: then it is whole, as is seen below.
            if verified(&server, target).code == 0 {
                break;
            }
        }
        assert!(kills >= 3, "{call} was reached {kills} times");
        assert_eq!(verified(&server, &files).code, 0, "the source is as it was");
    }
    for target in [new_file, database] {
        if verified(&server, &target).code != 0 {
            moved(&server, &files, &target);
        }
        let whole = verified(&server, &target);
        assert_eq!(whole.code, 0, "{}{}", whole.output, whole.errors);
        server.move_to(&target);
        server.start_again().await;
        assert_eq!(seen(&server, &sale).await, before);
        assert!(server.terminate().await.success());
    }
}
