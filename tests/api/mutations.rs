//! Requests that are wrong in every way there is, many of them: none is answered by a failure of the
//! service, every refusal is a problem document that leads somewhere, and nothing of the inside is
//! told.
//!
//! It starts from a valid request for every operation of the served OpenAPI document, as a visitor,
//! a buyer, a seller and an administrator, and makes some of it wrong: by structure, byte by byte, or
//! as a message. `SOUK_MUTATIONS` says how many requests (some thousands when absent), `SOUK_SEED`
//! repeats a run, and a failure prints both and the request.

mod broken;
mod mutate;
mod request;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Operation, RawAnswer, RawClient, Server, Start, Things};
use request::{Body, Request};

/// How many requests when nobody says.
const MUTATIONS: u64 = 12_000;
/// How many requests before everybody logs in again: tokens are good for fifteen minutes.
const ROUND: u64 = 100_000;
/// How many connections send at once.
const CONNECTIONS: u64 = 16;
/// How much of a request is shown when it fails.
const SHOWN_MAX: usize = 3_000;
/// One in so many is broken as a message.
const BROKEN_ONE_IN: u32 = 40;

/// Operations that are left out, each with its reason.
const LEFT_OUT: &[(&str, &str)] = &[
    // It does what it is asked: a clock far ahead ends every token, and the rest would be 401.
    ("POST", "/api/v1/dev/clock/advance"),
    // They do what they are asked, too: everybody's tokens would be over, or a login refused after
    // wrong passwords.
    ("POST", "/api/v1/auth/logout"),
    ("POST", "/api/v1/auth/logout-all"),
    ("POST", "/api/v1/users/me/password"),
    ("DELETE", "/api/v1/users/me"),
    ("DELETE", "/api/v1/users/{id}"),
    // Its answer has no end.
    ("GET", "/api/v1/events/stream"),
    ("GET", "/api/v1/admin/sagas/stream"),
];

/// Operations that are asked less often: they hash a password, wait for an event, or answer with
/// hundreds of kilobytes, and would take the time of all others.
const DEAR: &[&str] = &[
    "/api/v1/auth/login",
    "/api/v1/users/register",
    "/api/v1/events/await",
    "/api/v1/dev/faults",
    "/openapi.json",
    "/asyncapi.json",
    "/metrics",
];

struct Run {
    url: String,
    operations: Vec<Operation>,
    tokens: Vec<Option<String>>,
    /// Every kind of problem that was answered.
    kinds: Mutex<BTreeSet<String>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_sent_makes_the_service_fail() {
    let number = |name: &str, default| {
        std::env::var(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}")))
    };
    let (mut left, seed) =
        (number("SOUK_MUTATIONS", MUTATIONS), number("SOUK_SEED", rand::random()));
    eprintln!("SOUK_MUTATIONS={left} SOUK_SEED={seed}");
    // Every refusal is a line at INFO, and all lines are kept.
    let level = if left > 10 * MUTATIONS { "warn" } else { "info" };
    let mut server = Start::default().with("LOG_LEVEL", level).start().await;
    let mut things = server.things().await;
    let operations = server.operations(&things).await;
    let mut kinds = BTreeSet::new();
    let mut round = 0;
    while left > 0 {
        let count = left.min(ROUND);
        let run = Arc::new(Run {
            url: server.url(),
            operations: operations.clone(),
            tokens: tokens(&server, &mut things).await,
            kinds: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for index in 0..CONNECTIONS {
            let seed = seed ^ (round << 32) ^ (index << 48);
            let share = count / CONNECTIONS + u64::from(index < count % CONNECTIONS);
            tasks.spawn(send_all(run.clone(), seed, share));
        }
        while let Some(ended) = tasks.join_next().await {
            assert!(ended.is_ok(), "see above; SOUK_SEED={seed}, round {round}");
        }
        kinds.append(&mut run.kinds.lock().unwrap());
        left -= count;
        round += 1;
    }
    every_kind_is_described(&server, &kinds).await;
    nothing_broke(&mut server, &things).await;
}

async fn tokens(server: &Server, things: &mut Things) -> Vec<Option<String>> {
    things.buyer.log_in_again().await;
    things.seller.log_in_again().await;
    vec![
        None,
        Some(things.buyer.access_token.clone()),
        Some(things.seller.access_token.clone()),
        Some(server.admin_token().to_owned()),
    ]
}

async fn send_all(run: Arc<Run>, seed: u64, count: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = RawClient::new(&run.url);
    for index in 0..count {
        let mut request = valid(&run, &mut random);
        if random.random_ratio(1, BROKEN_ONE_IN) {
            let bytes = broken::broken(&request, &mut random);
            send_broken(client.address(), &bytes).await;
            continue;
        }
        let raw = mutate::mutate(&mut request, &mut random);
        let bytes = request.bytes(&raw);
        let shown = || {
            let text = String::from_utf8_lossy(&bytes);
            let text: String = text.chars().take(SHOWN_MAX).collect();
            format!("request {index} of seed {seed}:\n{}", text.escape_debug())
        };
        let answer = client.send(&bytes, request.method == "HEAD").await;
        let answer = answer.unwrap_or_else(|error| panic!("no answer: {error}\n{}", shown()));
        if let Err(problem) = check(&run, &request, &answer) {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            panic!("{problem}\n{}\nanswer: {} {body}", shown(), answer.status);
        }
    }
}

/// A request of somebody for something, with nothing wrong.
fn valid(run: &Run, random: &mut StdRng) -> Request {
    let operation = loop {
        let some = run.operations.choose(random).expect("there are operations");
        let left_out =
            LEFT_OUT.iter().any(|(method, path)| some.method == *method && some.path == *path);
        let dear = DEAR.contains(&some.path.as_str()) && !random.random_ratio(1, 15);
        if !left_out && !dear {
            break some;
        }
    };
    let mut request = Request {
        method: operation.method.to_string(),
        path: operation.target.clone(),
        query: Vec::new(),
        headers: vec![
            ("host".to_owned(), b"127.0.0.1".to_vec()),
            ("x-correlation-id".to_owned(), format!("m-{}", random.random::<u32>()).into_bytes()),
        ],
        body: operation.body.clone().map_or(Body::None, Body::Json),
    };
    if operation.body.is_some() {
        request.set("content-type", "application/json");
    }
    if operation.method == "PATCH" {
        request.set("if-match", "*");
    }
    if operation.method == "POST" && random.random_bool(0.5) {
        request.set("idempotency-key", format!("\"{}\"", random.random::<u32>()));
    }
    for name in &operation.query {
        // A wait would only be that.
        if name == "timeout" {
            request.query.push((name.clone(), "0".to_owned()));
        } else if random.random_bool(0.3) {
            request.query.push((name.clone(), "1".to_owned()));
        }
    }
    if let Some(Some(token)) = run.tokens.choose(random) {
        request.set("authorization", format!("Bearer {token}"));
    }
    request
}

/// Sends what is no request, and reads whatever comes back.
async fn send_broken(address: &str, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(address).await else {
        panic!("the server accepts no connections any more");
    };
    let mut answer = Vec::new();
    // The server may hang up at any time.
    if stream.write_all(bytes).await.is_ok() && stream.shutdown().await.is_ok() {
        let read = stream.read_to_end(&mut answer);
        let _: Result<_, _> = tokio::time::timeout(Duration::from_secs(60), read).await;
    }
    let text = String::from_utf8_lossy(&answer);
    let statuses = text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3));
    for status in statuses {
        let shown = String::from_utf8_lossy(bytes);
        assert!(!status.starts_with('5'), "{text}\nto {}", shown.escape_debug());
    }
}

/// What is wrong with an answer, if anything is.
fn check(run: &Run, request: &Request, answer: &RawAnswer) -> Result<(), String> {
    if answer.status >= 500 {
        return Err("the service failed".to_owned());
    }
    if !answer.is_ours() {
        // The HTTP library refuses heads that it cannot take, without a word.
        let known = matches!(answer.status, 400 | 414 | 431) && answer.body.is_empty();
        return if known { Ok(()) } else { Err("nobody knows whose answer this is".to_owned()) };
    }
    let correlation_id = answer.header("x-correlation-id").ok_or("no correlation id")?;
    let sent = request
        .header("x-correlation-id")
        .filter(|sent| (1..=128).contains(&sent.len()) && sent.iter().all(u8::is_ascii_graphic));
    if sent.is_some_and(|sent| sent != correlation_id.as_bytes()) {
        return Err("another correlation id than the one that was sent".to_owned());
    }
    if answer.header("x-content-type-options") != Some("nosniff") {
        return Err("a security header is missing".to_owned());
    }
    if answer.status < 400 || request.method == "HEAD" {
        return Ok(());
    }
    if answer.header("content-type") != Some("application/problem+json") {
        return Err("a refusal that is no problem document".to_owned());
    }
    let problem = answer.json();
    let of = |name: &str| problem[name].as_str().filter(|text| !text.is_empty());
    let code = of("code").ok_or("no code")?;
    let whole = of("type") == Some(format!("/problems/{code}").as_str())
        && problem["status"] == answer.status
        && of("correlation_id") == Some(correlation_id)
        && ["title", "detail", "instance", "trace_id"].iter().all(|name| of(name).is_some());
    if !whole {
        return Err("a problem document that is not whole".to_owned());
    }
    run.kinds.lock().unwrap().insert(code.to_owned());
    let told = format!("{} {} {}", problem["title"], problem["detail"], problem["errors"]);
    told_nothing(&told)
}

/// Words of the inside: of libraries, of the language, of the machine.
fn told_nothing(text: &str) -> Result<(), String> {
    const INSIDE: &[&str] = &[
        "sqlx",
        "sqlite",
        "postgres",
        "serde",
        "tokio",
        "hyper",
        "axum",
        "souk_",
        "panicked",
        "unwrap",
        "thread '",
        ".rs:",
        "::",
        "invalid type:",
        "expected struct",
        "/root",
        "/home",
        "/tmp",
        "/var",
        "select ",
        "insert into",
        "constraint",
        "os error",
        "stack",
    ];
    let lower = text.to_lowercase();
    match INSIDE.iter().find(|word| lower.contains(**word)) {
        Some(word) => Err(format!("the answer tells of the inside: {word:?} in {text}")),
        None => Ok(()),
    }
}

async fn every_kind_is_described(server: &Server, kinds: &BTreeSet<String>) {
    assert!(kinds.len() > 10, "hardly anything was refused: {kinds:?}");
    for kind in kinds {
        let described = server.visitor().get(&format!("/problems/{kind}")).await.expect(200);
        assert_eq!(described.text("code"), *kind);
    }
}

/// The server lives, did nothing that it had not meant to, and kept its secrets and its journal.
async fn nothing_broke(server: &mut Server, things: &Things) {
    server.visitor().get("/livez").await.expect(200);
    let order = server.admin().get(&format!("/api/v1/orders/{}", things.order_id)).await;
    order.expect(200);
    let status = server.terminate().await;
    assert!(status.success(), "the server ended with {status}");
    let log = server.log();
    for line in &log {
        assert!(!line.contains("panicked"), "{line}");
        for secret in [&things.buyer.access_token, &things.seller.password] {
            assert!(!line.contains(secret.as_str()), "a secret in the log: {line}");
        }
        assert!(!line.contains(server.admin_token()), "a secret in the log: {line}");
    }
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}{}", verified.output, verified.errors);
}
