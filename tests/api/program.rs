//! The program itself: how it starts, stops, checks its journal, and what it leaves on the disk.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use souk_actors::testing::postgres;

use crate::support::{Command, Server, Start, address, business, on_postgres, wish};

#[tokio::test]
async fn everything_that_is_configured_wrongly_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = Command::new(&["serve"])
        .with("DATA_DIR", folder.path().display())
        .with("APP_ENV", "production")
        .with("HTTP_ADDR", "nowhere")
        .with("PARTITIONS", "0")
        .with("LOG_LEVEL", "=loud=")
        .with("LOG_TO", "nowhere")
        .with("MASTER_KEY", "c2hvcnQ=")
        .run();
    assert_eq!(wrong.code, 78, "{}", wrong.errors);
    let wrongly =
        ["HTTP_ADDR", "PARTITIONS", "LOG_LEVEL", "LOG_TO", "MASTER_KEY", "TOKEN_KEY", "LOOKUP_KEY"];
    for name in wrongly {
        let of_it = wrong.errors.lines().filter(|line| line.starts_with(&format!("{name}: ")));
        assert_eq!(of_it.count(), 1, "{name} in {}", wrong.errors);
    }
    assert_eq!(wrong.errors.lines().count(), wrongly.len(), "{}", wrong.errors);
    assert!(!wrong.errors.contains("c2hvcnQ="));
    assert_eq!(wrong.output, "");
    let open_to_all = Command::new(&["serve"])
        .with("DATA_DIR", folder.path().display())
        .with("HTTP_ADDR", "0.0.0.0:0")
        .run();
    assert_eq!(open_to_all.code, 78);
    assert!(open_to_all.errors.starts_with("HTTP_ADDR: "), "{}", open_to_all.errors);
}

/// S1-182: whoever collects standard output gets the log and nothing else, as the collectors name it.
#[tokio::test]
async fn the_log_is_alone_on_standard_output_where_that_is_wanted() {
    let mut server = Start::default().with("LOG_TO", "stdout").start().await;
    server.visitor().get("/api/v1/me/orders").await.problem(401, "unauthenticated");
    assert!(server.terminate().await.success());
    let lines: Vec<Value> =
        server.log().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for key in ["@timestamp", "log.level", "message"] {
            assert!(line[key].is_string(), "{key} in {line}");
        }
    }
    let refused = lines.iter().find(|line| line["message"] == "request refused");
    let trace = refused.and_then(|line| line["trace.id"].as_str());
    assert!(trace.is_some_and(|id| id.len() == 32), "{lines:?}");
}

#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let mut server = Start::default().partitions(3).start().await;
    assert!(server.terminate().await.success());
    let refused = server.command(&["migrate"]).with("PARTITIONS", 2).run();
    assert_ne!(refused.code, 0);
    assert!(refused.errors.contains("partition"), "{}", refused.errors);
    let same = server.command(&["migrate"]).run();
    assert_eq!(same.code, 0, "{}", same.errors);
}

#[tokio::test]
async fn a_stop_finishes_what_was_begun_and_loses_nothing() {
    let mut server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 20).await;
    let mut orders = Vec::new();
    for _ in 0..20 {
        orders.push(server.place_order(&bea.client, &listing, 1, "sandbox").await);
    }
    let status = server.terminate().await;
    assert!(status.success(), "{status}");
    server.start_again().await;
    for order in &orders {
        server.order_eventually(&order.id, "SHIPPED").await;
    }
    server.at_rest().await;
    assert_eq!(server.stock(&listing).await, (0, 0, 20));
    assert_eq!(server.events("eventType=payment.captured").await.len(), 20);
    server.finish().await;
}

#[tokio::test]
async fn who_is_waiting_is_answered_before_the_end() {
    let mut server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    let client = bea.client.waiting();
    let waiting = tokio::spawn({
        let body = wish(&listing, 1, "test_late");
        async move { client.post("/api/v1/orders", &body).await }
    });
    crate::support::eventually("the order to be placed", || async {
        (server.events("eventType=order.placed").await.len() == 1).then_some(())
    })
    .await;
    assert!(server.terminate().await.success());
    waiting.await.unwrap().expect(201);
}

/// S2-54.
#[tokio::test]
async fn a_changed_journal_is_found_out() {
    let mut server = Start::default().partitions(3).start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let placed = server.event("order.placed", &sale.order.correlation_id).await;
    assert!(server.terminate().await.success());
    let whole = server.command(&["journal", "verify"]).run();
    assert_eq!(whole.code, 0, "{}{}", whole.output, whole.errors);
    assert_eq!(whole.output.matches("all whole").count(), 3, "{}", whole.output);

    let stored = server.stored().await;
    stored.allow_changes().await;
    let id = stored.id(placed["event_id"].as_str().unwrap().parse().unwrap());
    for (name, change) in [
        ("data", "replace(data, '\"quantity\":1', '\"quantity\":9')"),
        ("timestamp", "timestamp + 1"),
        ("correlation_id", "'another'"),
    ] {
        let old = format!("SELECT CAST({name} AS TEXT) FROM events WHERE event_id = {id}");
        let old = stored.value(&old).await.replace('\'', "''");
        let set = async |value: &str| {
            let set = format!("UPDATE events SET {name} = {value} WHERE event_id = {id}");
            assert_eq!(stored.change(&set).await.unwrap(), 1);
        };
        set(change).await;
        let damaged = server.command(&["journal", "verify"]).run();
        assert_ne!(damaged.code, 0, "{name}: {}", damaged.output);
        let line = format!("partition {}: damaged at", placed["partition"]);
        assert!(damaged.output.contains(&line), "{name}: {}", damaged.output);
        set(&format!("'{old}'")).await;
    }
    stored.close().await;
    assert_eq!(server.command(&["journal", "verify"]).run().code, 0);
}

#[tokio::test]
async fn what_is_not_there_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = folder.path().join("nothing");
    let verified = Command::new(&["journal", "verify"]).with("DATA_DIR", nothing.display()).run();
    assert_ne!(verified.code, 0, "{}", verified.output);
    assert!(!nothing.join("journal.db").exists(), "a check makes no journal");
}

#[tokio::test]
async fn the_demonstration_runs_to_its_end() {
    let shown = Command::new(&["demo"]).run();
    assert_eq!(shown.code, 0, "{}{}", shown.output, shown.errors);
    for said in ["order.placed", "order.shipped", "saga.completed", "\"SHIPPED\""] {
        assert!(shown.output.contains(said), "{said} in {}", shown.output);
    }
    assert!(!shown.output.contains("correct horse"));
}

#[tokio::test]
async fn a_market_is_filled_and_not_twice() {
    let server = Server::start().await;
    let url = server.url();
    let token = server.folder().join("admin-token").display().to_string();
    let fill = ["demo", "--seed-market", "--listings", "6", "--url", &url];
    // Nothing is known of a server elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let lost = Command::new(&fill).with("DATA_DIR", elsewhere.path().display()).run();
    assert_eq!(lost.code, 1, "{}", lost.output);
    assert!(lost.errors.contains("--token-file"), "{}", lost.errors);
    let filled = Command::new(&[&fill[..], &["--admin-token-file", &token]].concat()).run();
    assert_eq!(filled.code, 0, "{}{}", filled.output, filled.errors);
    assert!(filled.output.contains("6 listings, 3 orders and 3 reviews"), "{}", filled.output);
    server.at_rest().await;
    let count = async |path: &str| server.admin().get(path).await.expect(200).items().len();
    let counted = async || {
        (
            count("/api/v1/listings?limit=200").await,
            count("/api/v1/reviews?limit=200").await,
            server.events("eventType=order.placed").await.len(),
            server.events("eventType=user.registered").await.len(),
        )
    };
    let there = counted().await;
    assert_eq!((there.0, there.1, there.2), (6, 3, 3));
    let again = Command::new(&fill).with("DATA_DIR", server.folder().display()).run();
    assert_eq!(again.code, 0, "{}{}", again.output, again.errors);
    assert!(again.output.contains("0 listings, 0 orders and 0 reviews"), "{}", again.output);
    server.at_rest().await;
    assert_eq!(counted().await, there);
    server.finish().await;
}

#[tokio::test]
async fn two_servers_do_not_share_a_folder() {
    let server = Server::start().await;
    let second = server.command(&["serve"]).with("HTTP_ADDR", "127.0.0.1:0").run();
    assert_ne!(second.code, 0);
    assert!(!second.errors.is_empty());
    server.register("Ann").await.expect(201);
    server.finish().await;
}

#[tokio::test]
async fn the_first_administrator_is_made_at_the_console() {
    let mut server = Server::start().await;
    assert!(server.terminate().await.success());
    let create = ["admin", "create", "--email", "root@example.com"];
    let short = server.command(&create).reading("short\n").run();
    assert_ne!(short.code, 0);
    let made = server.command(&create).reading("a long enough password\n").run();
    assert_eq!(made.code, 0, "{}", made.errors);
    let again = server.command(&create).reading("a long enough password\n").run();
    assert_ne!(again.code, 0);
    server.start_again().await;
    let tokens = server.login("root@example.com", "a long enough password").await.expect(200);
    let root = server.visitor().with_token(&tokens.text("access_token"));
    root.get("/api/v1/events").await.expect(200);
    let me = root.get("/api/v1/users/me").await.expect(200);
    assert!(me["roles"].as_array().unwrap().contains(&json!("ADMIN")));
    server.at_rest().await;
    assert!(server.mails("root@example.com").await.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn production_has_no_development_tools() {
    let key = |byte: &str| byte.repeat(32);
    let mut server = Start::default()
        .with("APP_ENV", "production")
        .with("MASTER_KEY", key("0a"))
        .with("TOKEN_KEY", key("0b"))
        .with("LOOKUP_KEY", key("0c"))
        .with("SHUTDOWN_DELAY", "0s")
        .start()
        .await;
    for path in ["/api/v1/dev/outbox", "/api/v1/dev/faults", "/api/v1/dev/payments"] {
        server.visitor().get(path).await.problem(404, "not_found");
    }
    let advance = json!({ "seconds": 60 });
    server.visitor().post("/api/v1/dev/clock/advance", &advance).await.problem(404, "not_found");
    assert!(!server.folder().join("admin-token").exists());
    assert!(!server.folder().join("keys").exists());
    let document = server.visitor().get("/openapi.json").await.expect(200);
    assert!(!document.raw().contains("/dev/"));
    assert_eq!(server.visitor().get("/version").await.expect(200)["mode"], "production");

    // Nobody holds stock with a payment that is a test.
    assert!(server.terminate().await.success());
    let create = ["admin", "create", "--email", "root@example.com"];
    assert_eq!(server.command(&create).reading("a long enough password\n").run().code, 0);
    server.start_again().await;
    let tokens = server.login("root@example.com", "a long enough password").await.expect(200);
    let root = server.visitor().with_token(&tokens.text("access_token"));
    for method in ["test_pending", "test_decline", "sandbox"] {
        let body = wish("01a1f9d4-c097-7fe7-abc7-70fad08fc399", 1, method);
        let refused = root.post("/api/v1/orders", &body).await;
        assert_eq!(refused.pointers(), ["/payment_method"]);
    }
    assert!(server.terminate().await.success());
}

/// S3-63: administrators see what is in force, and no secret.
#[tokio::test]
async fn the_settings_in_force_can_be_looked_at() {
    let start = Start::default().with("MAIL_WEBHOOK_TOKEN", "hunter2-hunter2-hunter2-hunter2");
    let server = start.with("RATE_LIMIT_WINDOW", "2m").start().await;
    let answer = server.admin().get("/api/v1/admin/config").await.expect(200);
    assert!(!answer.raw().contains("hunter2"), "{}", answer.raw());
    let setting = |name: &str| {
        let found = answer.items().iter().find(|setting| setting["name"] == name).cloned();
        let found = found.unwrap_or_else(|| panic!("{name} is not told of"));
        (found["value"].clone(), found["source"].clone())
    };
    assert_eq!(setting("RATE_LIMIT_WINDOW"), (json!("2m"), json!("environment")));
    assert_eq!(setting("MAIL_WEBHOOK_TOKEN"), (json!("[hidden]"), json!("environment")));
    assert_eq!(setting("IMAGES_MAX"), (json!("10"), json!("default")));
    assert_eq!(setting("SMS_ADAPTER").1, json!("default"));
    let ann = server.newcomer("Ann").await;
    ann.client.get("/api/v1/admin/config").await.problem(403, "insufficient_scope");
    server.finish().await;
}

#[tokio::test]
async fn a_token_in_the_answer_is_only_for_those_who_ask() {
    let server = Start::default().with("REVEAL_VERIFICATION_TOKEN", "true").start().await;
    let made = server.register("Ann").await.expect(201);
    let body = json!({ "verification_token": made.text("verification_token") });
    server.visitor().post("/api/v1/users/verify-email", &body).await.expect(200);
    server.finish().await;
    let folder = tempfile::tempdir().unwrap();
    let refused = Command::new(&["serve"])
        .with("DATA_DIR", folder.path().display())
        .with("APP_ENV", "production")
        .with("REVEAL_VERIFICATION_TOKEN", "true")
        .run();
    assert_eq!(refused.code, 78);
    assert!(refused.errors.contains("REVEAL_VERIFICATION_TOKEN: "), "{}", refused.errors);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// The files in a folder, as text: what is none is searched quickly all the same.
fn contents_of(folder: &Path) -> Vec<(PathBuf, String)> {
    let read = |path: PathBuf| {
        let content = std::fs::read(&path).ok()?;
        Some((path, String::from_utf8_lossy(&content).into_owned()))
    };
    files(folder).into_iter().filter_map(read).collect()
}

/// S0-13, S0-16, S0-26, S1-159: who reads the files learns nothing about anybody.
#[tokio::test]
async fn nothing_personal_is_on_the_disk_in_clear() {
    // A PostgreSQL of its own, so that there is nothing in its files but what happens here.
    let postgres = on_postgres().then(|| postgres::Server::start(postgres::Options::fast()));
    let start = Start::default().with("LOG_LEVEL", "debug");
    let start = match &postgres {
        Some(postgres) => start.on(postgres).await,
        None => start,
    };
    let mut server = start.start().await;
    // A name that does not occur by chance.
    let sam = server.seller("Samuelson").await;
    let bea = server.buyer("Beatrixe").await;
    let listing = server.listing(&sam, 2).await;
    let order = server.place_order(&bea.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    let rename = json!({ "first_name": "Clementina" });
    bea.client.patch(&format!("/api/v1/users/{}", bea.user_id), &rename).await.expect(200);
    server.at_rest().await;
    let token = server.mailed_token(&bea.email).await;
    // Before the journal is folded together, and after.
    let mut contents = contents_of(server.folder());
    assert!(server.terminate().await.success());
    contents.extend(contents_of(server.folder()));
    if let Some(postgres) = &postgres {
        postgres.stop();
        contents.extend(contents_of(&postgres.data()));
    }
    contents.push(("the log".into(), server.log().join("\n")));
    let (home, shop) = (address(), business());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let secrets = [
        sam.email.clone(),
        bea.email.clone(),
        sam.password.clone(),
        bea.password.clone(),
        "Samuelson".to_owned(),
        "Beatrixe".to_owned(),
        "Clementina".to_owned(),
        token,
        bea.access_token.clone(),
        bea.refresh_token.clone(),
        text(&home["recipient"]),
        text(&home["line1"]),
        text(&home["phone"]),
        text(&shop["business_address"]),
        text(&shop["business_phone"]),
    ];
    assert!(contents.iter().any(|(_, content)| content.contains("order.placed")));
    for (path, content) in &contents {
        for secret in &secrets {
            assert!(!content.contains(secret), "{secret:?} is in {}", path.display());
        }
    }
    assert!(contents.iter().any(|(_, content)| content.contains("$argon2id$")));
}

/// The folder is the owner's alone where it holds what lets people in.
#[cfg(unix)]
#[tokio::test]
async fn secrets_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Server::start().await;
    let mut secret = files(&server.folder().join("keys"));
    secret.push(server.folder().join("admin-token"));
    assert_eq!(secret.len(), 4);
    secret.extend(files(server.folder()).into_iter().filter(|path| {
        path.extension().is_some_and(|extension| extension.to_string_lossy().starts_with("db"))
    }));
    for path in secret {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    server.finish().await;
}

/// What is said, and of which change to the record.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Value));

/// S1-136: what stored events and other services rest on only ever grows.
#[test]
fn schemas_are_as_they_were_recorded_and_what_breaks_them_is_named() {
    let record = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/events.json");
    let check = |baseline: &str| Command::new(&["schema", "check", "--baseline", baseline]).run();
    let same = check(record);
    assert_eq!(same.code, 0, "{}{}\nsouk schema record?", same.output, same.errors);

    // The record of a program that knew more, or other things, than this one does.
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.json");
    let recorded: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let fields = "/order.placed/schema/properties";
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut changed = recorded.clone();
        change(&mut changed);
        std::fs::write(&other, changed.to_string()).unwrap();
        check(other.to_str().unwrap())
    };
    let cases: [Case<'_>; 4] = [
        ("order.placed /gift: is gone", &|all| {
            all.pointer_mut(fields).unwrap()["gift"] = json!({ "type": "boolean" });
        }),
        ("order.placed /buyer_id: was integer", &|all| {
            all.pointer_mut(fields).unwrap()["buyer_id"] = json!({ "type": "integer" });
        }),
        ("order.gifted: is gone", &|all| all["order.gifted"] = all["order.placed"].clone()),
        ("order.placed: is new: record it", &|all| {
            all.as_object_mut().unwrap().remove("order.placed");
        }),
    ];
    for (said, change) in cases {
        let broken = changed(change);
        assert_eq!(broken.code, 1, "{said}");
        assert!(broken.output.contains(said), "{said} in {}", broken.output);
    }
    // What breaks cannot be recorded away; what is new can.
    let kept = std::fs::read(&other).unwrap();
    let record_over =
        || Command::new(&["schema", "record", "--baseline", other.to_str().unwrap()]).run();
    assert_eq!(record_over().code, 0);
    assert_eq!(check(other.to_str().unwrap()).code, 0);
    assert_ne!(std::fs::read(&other).unwrap(), kept);
    changed(cases[0].1);
    assert_eq!(record_over().code, 1);
    assert_eq!(check("nowhere.json").code, 1);
}
