//! The service on PostgreSQL: reaching it, losing it and finding it again, and having it alone.
//! These tests start servers of PostgreSQL of their own, whatever store the others are for.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use souk_actors::testing::postgres::{Options, Server as Postgres};

use crate::support::{Answer, Client, Command, Server, Start, eventually};

/// Offers something once for each number, again and again until there is an answer to it.
struct Offers<'a> {
    client: &'a Client,
    offer: Value,
    round: usize,
    stop: AtomicBool,
    asked: AtomicUsize,
    /// What was answered: number and listing.
    made: Mutex<BTreeMap<usize, String>>,
}

impl Offers<'_> {
    async fn offer(&self, number: usize) -> Answer {
        let client = self.client.keyed(&format!("offer-{}-{number}", self.round));
        client.post("/api/v1/listings", &self.offer).await
    }

    /// Many numbers, each asked for once.
    async fn keep_offering(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = self.offer(number).await;
            if answer.status() == 201 {
                self.made.lock().unwrap().insert(number, answer.text("listing_id"));
            } else {
                // Before the answer is out the database may go: then nobody knows.
                assert!([503, 504].contains(&answer.status()), "{answer:?}");
                // As somebody would who is told to come back later, only sooner.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// How many were answered.
    fn made(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    /// Every number has one listing: the one that was answered before, if any.
    async fn settle(&self) -> usize {
        let asked = self.asked.load(Ordering::Relaxed);
        for number in 0..asked {
            let again = self.offer(number).await.expect(201).text("listing_id");
            let before = self.made.lock().unwrap().insert(number, again.clone());
            assert!(before.is_none_or(|before| before == again), "offer {number} was made twice");
        }
        asked
    }
}

/// What the service does while its database is away.
async fn refuses_and_reads(server: &Server, sam: &Client, listing: &str, offer: &Value) {
    let visitor = server.visitor();
    eventually("/readyz to say that the journal is away", || async {
        (visitor.get("/readyz").await.status() == 503).then_some(())
    })
    .await;
    visitor.get("/livez").await.expect(200);
    let refused = sam.post("/api/v1/listings", offer).await.problem(503, "journal_unavailable");
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    // Whoever lives answers; what rests on the database says that it cannot.
    visitor.get(&format!("/api/v1/listings/{listing}")).await.expect(200);
    for path in ["/api/v1/listings", "/api/v1/categories"] {
        let refused = visitor.get(path).await.problem(503, "read_model_unavailable");
        assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    }
    for path in ["/api/v1/events", "/api/v1/dlq", "/api/v1/admin/sagas"] {
        let refused = server.admin().get(path).await;
        assert_eq!(refused.status(), 503, "{path}: {refused:?}");
    }
    // Which listings there are is known without it, as long as nobody else can make any.
    let unknown = "/api/v1/listings/01a1f9d4-c097-7fe7-abc7-70fad08fc399";
    assert_eq!(visitor.get(unknown).await.status(), 404);
    let login = json!({ "email": "sam@example.com", "password": "Sam has a long password" });
    assert_eq!(visitor.post("/api/v1/auth/login", &login).await.status(), 503);
}

/// S1-167, S1-172: nothing acknowledged is lost or doubled, and nobody restarts the service.
#[tokio::test]
async fn a_database_that_goes_and_comes_back_is_borne() {
    let postgres = Postgres::start(Options::default());
    let server = Start::default().on(&postgres).await.start().await;
    let sale = server.sale(10, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let (sam, listing) = (sale.seller, sale.listing_id);
    let pid = server.pid();
    let mut all = 1;
    for (round, stop) in [Postgres::stop, Postgres::kill].into_iter().enumerate() {
        let offer = server.offer(1).await;
        let offers = Offers {
            client: &sam.client,
            offer: offer.clone(),
            round,
            stop: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            made: Mutex::default(),
        };
        let disturb = async {
            eventually("some offers", || async { (offers.made() > 20).then_some(()) }).await;
            stop(&postgres);
            refuses_and_reads(&server, &sam.client, &listing, &offer).await;
            postgres.start_again();
            eventually("the service to be ready again", || async {
                (server.visitor().get("/readyz").await.status() == 200).then_some(())
            })
            .await;
            let before = offers.made();
            eventually("offers to go on", || async { (offers.made() > before + 20).then_some(()) })
                .await;
            offers.stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(disturb, offers.keep_offering(), offers.keep_offering());
        all += offers.settle().await;
        server.at_rest().await;
        assert_eq!(server.pid(), pid, "nobody started it anew");
    }
    assert_eq!(server.events("eventType=listing.created").await.len(), all);
    let order = server.place_order(&sale.buyer.client, &listing, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    assert_eq!(server.stock(&listing).await, (8, 0, 2));
    server.at_rest().await;
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}{}", verified.output, verified.errors);
    assert_eq!(verified.output.matches("all whole").count(), 8, "{}", verified.output);
    server.finish().await;
}

#[tokio::test]
async fn one_process_has_a_database_at_a_time() {
    let postgres = Postgres::start(Options::fast());
    let mut server = Start::default().on(&postgres).await.with("LEASE_TTL", "2s").start().await;
    for command in [&["serve"][..], &["migrate"], &["admin", "create", "--email", "a@b.co"]] {
        let second = server.command(command).with("HTTP_ADDR", "127.0.0.1:0");
        let second = second.reading("a long enough password\n").run();
        assert_eq!(second.code, 1, "{command:?}: {}", second.errors);
        let says = "another process uses this journal";
        assert!(second.errors.contains(says), "{command:?}: {}", second.errors);
    }
    assert_eq!(server.command(&["journal", "verify"]).run().code, 0, "to look at it is allowed");
    server.register("Ann").await.expect(201);
    assert!(server.terminate().await.success());

    // A lease of an hour would be waited for in vain: the database knows that its holder is gone.
    let mut server = Start::default().on(&postgres).await.with("LEASE_TTL", "10m").start().await;
    server.register("Ann").await.expect(201);
    server.kill_9_and_start_again().await;
    assert_eq!(server.register("Ann").await.status(), 409);
    server.at_rest().await;
    server.finish().await;
}

#[tokio::test]
async fn who_slept_past_the_lease_gives_up() {
    let postgres = Postgres::start(Options::fast());
    let mut first = Start::default().on(&postgres).await.with("LEASE_TTL", "1s").start().await;
    let sam = first.seller("Sam").await;
    let listing = first.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}");
    first.at_rest().await;
    first.signal("STOP");
    let second = first.start_beside().await;
    let price = |amount: u64| json!({ "price": { "amount": amount, "currency": "VND" } });
    let as_sam = |client: Client| client.with_token(&sam.access_token).if_match("*");
    as_sam(second.visitor()).patch(&path, &price(200_000)).await.expect(200);

    // They reach the sleeper's socket while it sleeps, and are the first that it finds.
    let (reader, writer) = (first.visitor(), as_sam(first.visitor()));
    let written = price(300_000).to_string().into_bytes();
    let asked = async {
        tokio::join!(
            reader.try_send(Method::GET, &path, None),
            writer.try_send(Method::PATCH, &path, Some(written)),
        )
    };
    let wake = async {
        first.signal("CONT");
    };
    let ((read, wrote), ()) = tokio::join!(asked, wake);
    for answer in [read, wrote].into_iter().flatten() {
        assert_eq!(answer.status(), 503, "it knows nothing any more: {answer:?}");
    }
    let status = first.exited().await;
    assert_eq!(status.code(), Some(1));
    let said = first.log().join("\n");
    assert!(said.contains("the lease on the journal is lost"), "{said}");

    assert_eq!(second.listing_now(&listing).await["price"]["amount"], 200_000);
    second.at_rest().await;
    assert_eq!(second.events("eventType=catalog.price.changed").await.len(), 1);
    assert_eq!(second.command(&["journal", "verify"]).run().code, 0);
    second.finish().await;
}

#[tokio::test]
async fn the_start_waits_for_the_database() {
    let postgres = Postgres::start(Options::fast());
    let start = Start::default().on(&postgres).await;
    postgres.stop();
    let mut server = start.spawn().await;
    eventually("the server to say that it waits", || async {
        server.log().iter().any(|line| line.contains("cannot be reached yet")).then_some(())
    })
    .await;
    postgres.start_again();
    server.ready().await;
    server.register("Ann").await.expect(201);
    server.at_rest().await;
    server.finish().await;
}

/// A way to a server that is closed for some of those who come: the second to the fourth.
async fn moody_way(port: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for number in 1.. {
            let (mut near, _) = listener.accept().await.unwrap();
            if (2..=4).contains(&number) {
                continue;
            }
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                // Whoever leaves first ends it.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    way
}

/// A database that lets the first connection in and not the next is waited for, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_waits_for_every_connection() {
    let postgres = Postgres::start(Options::fast());
    let url = postgres.create_database().await;
    let way = moody_way(postgres.port()).await;
    let through = url.replace(&format!(":{}/", postgres.port()), &format!(":{way}/"));
    assert_ne!(through, url);
    // Who asks for TLS first takes a closed connection for another server's answer.
    let through = format!("{through}?sslmode=disable");
    let folder = tempfile::tempdir().unwrap();
    let migrate = Command::new(&["migrate"])
        .with("DATA_DIR", folder.path().display())
        .with("DATABASE_URL", through)
        .run();
    assert_eq!(migrate.code, 0, "{}{}", migrate.output, migrate.errors);
    assert!(migrate.errors.contains("cannot be reached any more"), "{}", migrate.errors);
    assert!(migrate.output.contains("read models: up to date"), "{}", migrate.output);
}

/// What is wrong is said in one line that says what to do, and never with the password.
#[tokio::test]
async fn a_database_that_cannot_be_used_is_said_clearly() {
    let postgres = Postgres::start(Options::fast());
    postgres.execute("postgres", "CREATE DATABASE market").await;
    postgres.execute("postgres", "CREATE ROLE guest LOGIN").await;
    let (host, key) = (format!("127.0.0.1:{}", postgres.port()), |byte: &str| byte.repeat(32));
    let serve = |url: String| {
        let folder = tempfile::tempdir().unwrap();
        Command::new(&["serve"])
            .with("DATA_DIR", folder.path().display())
            .with("HTTP_ADDR", "127.0.0.1:0")
            .with("APP_ENV", "production")
            .with("MASTER_KEY", key("0a"))
            .with("TOKEN_KEY", key("0b"))
            .with("LOOKUP_KEY", key("0c"))
            .with("DATABASE_WAIT", "1s")
            .with("DATABASE_URL", url)
            .run()
    };
    for (url, code, says) in [
        (format!("postgres://postgres:hunter2@{host}/nowhere"), 1, "CREATE DATABASE nowhere"),
        (format!("postgres://nobody:hunter2@{host}/market"), 1, "it does not let nobody in"),
        (format!("postgres://guest:hunter2@{host}/market"), 1, "GRANT CONNECT, CREATE ON DATABASE"),
        (format!("postgres://guest:hunter2@{host}/market?sslmode=require"), 1, "sslmode"),
        ("postgres://guest:hunter2@127.0.0.1:1/market".to_owned(), 1, "within 1s"),
        (format!("postgres://guest:hunter2@{host}/market?port=none"), 78, "DATABASE_URL: must be"),
    ] {
        let ended = serve(url);
        assert_eq!(ended.code, code, "{says}: {}", ended.errors);
        let last = ended.errors.lines().last().unwrap();
        assert!(last.contains(says), "{says} in {}", ended.errors);
        assert!(!ended.errors.contains("hunter2"), "{}", ended.errors);
        assert_eq!(ended.output, "");
    }
}

#[tokio::test]
async fn the_demonstration_runs_on_an_empty_database_only() {
    let postgres = Postgres::start(Options::fast());
    let url = postgres.create_database().await;
    let demo = || Command::new(&["demo", "--database-url", &url]).run();
    let shown = demo();
    assert_eq!(shown.code, 0, "{}{}", shown.output, shown.errors);
    for said in ["order.placed", "order.shipped", "saga.completed", "\"SHIPPED\""] {
        assert!(shown.output.contains(said), "{said} in {}", shown.output);
    }
    let again = demo();
    assert_eq!(again.code, 1, "{}", again.output);
    assert!(again.errors.contains("an empty one"), "{}", again.errors);
}
