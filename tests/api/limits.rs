//! Too much of everything: bodies, heads, paths, connections, patience. Each has a limit that says
//! what it is, nothing is taken in that will be refused anyway, and memory does not grow.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{RawAnswer, RawClient, Server, Start, eventually, http2, wish};

/// How long a test waits for something that must come. Nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a flood presses against a server that reads no more of it.
const FLOODED: Duration = Duration::from_millis(200);
/// How much memory may differ between two moments in which the same is under way.
const SLACK_KB: u64 = 64 * 1024;
/// How many connections a test's own clients may have open beside those that it counts.
const OTHERS_MAX: u64 = 8;

fn resident_kb(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn raw(server: &Server, request: &str) -> RawAnswer {
    let mut client = RawClient::new(&server.url());
    client.send(request.as_bytes(), false).await.unwrap()
}

fn is_problem(answer: &RawAnswer, status: u16, code: &str) {
    let body = answer.json();
    assert_eq!((answer.status, body["code"].as_str()), (status, Some(code)), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
}

/// A connection, as text comes.
async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url().trim_start_matches("http://")).await.unwrap()
}

/// Everything until the server closes.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    // A reset is an end too.
    let _: std::io::Result<usize> = read.expect("the server never closes the connection");
    String::from_utf8_lossy(&all).into_owned()
}

/// How many connections the server has.
async fn open_connections(client: &mut RawClient) -> u64 {
    let metrics = client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", false).await.unwrap();
    let text = String::from_utf8(metrics.body).unwrap();
    let line = text.lines().find(|line| line.starts_with("souk_http_connections "));
    let number = line.and_then(|line| line.split(' ').nth(1)).map_or(0.0, |of| of.parse().unwrap());
    format!("{number:.0}").parse().unwrap()
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_read() {
    let server = Start::default().with("HTTP_BODY_BYTES_MAX", 10_000).start().await;
    let post =
        "POST /api/v1/users/register HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    // A length is enough; of the body not one byte is sent.
    let announced = raw(&server, &format!("{post}content-length: 99999999999\r\n\r\n")).await;
    is_problem(&announced, 413, "payload_too_large");
    assert!(announced.json()["detail"].as_str().unwrap().contains("10000 bytes"));
    // Without one it is noticed as it comes.
    let chunk = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
    let chunked = format!("{post}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(2));
    is_problem(&raw(&server, &chunked).await, 413, "payload_too_large");
    // And whoever waits to be told to go on is told at once.
    let expecting = format!("{post}content-length: 20000\r\nexpect: 100-continue\r\n\r\n");
    is_problem(&raw(&server, &expecting).await, 413, "payload_too_large");
    let fits = format!("{post}content-length: 10000\r\n\r\n{}", " ".repeat(10_000));
    is_problem(&raw(&server, &fits).await, 422, "invalid");
    server.finish().await;
}

#[tokio::test]
async fn heads_and_paths_have_limits() {
    let server = Server::start().await;
    let with = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n{more}\r\n");
    let many: String = (0..150).map(|index| format!("x-{index}: y\r\n")).collect();
    assert_eq!(raw(&server, &with("/livez", &many)).await.status, 431);
    let long = format!("x-long: {}\r\n", "y".repeat(40_000));
    assert_eq!(raw(&server, &with("/livez", &long)).await.status, 431);
    let long = format!("/api/v1/listings?q={}", "y".repeat(8_300));
    is_problem(&raw(&server, &with(&long, "")).await, 414, "uri_too_long");
    let longer = format!("/{}", "y".repeat(70_000));
    assert!(matches!(raw(&server, &with(&longer, "")).await.status, 414 | 431));
    let queries: String = (0..1_500).map(|index| format!("a{index}&")).collect();
    assert_eq!(raw(&server, &with(&format!("/api/v1/listings?{queries}"), "")).await.status, 200);
    for target in ["/api/v1/users/%00", "/api/v1/listings?status=%00", "/%00"] {
        is_problem(&raw(&server, &with(target, "")).await, 400, "bad_request");
    }
    server.finish().await;
}

#[tokio::test]
async fn bodies_are_plain_json_of_bounded_depth() {
    let server = Server::start().await;
    let visitor = server.visitor();
    let path = "/api/v1/dev/echo";
    for encoding in ["gzip", "br", "deflate", "zstd", "identity, gzip", "anything"] {
        let client = visitor.with("content-encoding", encoding);
        let answer = client.send(Method::POST, path, Some(b"{}".to_vec())).await;
        assert_eq!(
            answer.problem(415, "unsupported_media_type").header("accept-encoding"),
            "identity"
        );
    }
    visitor.with("content-encoding", "identity").post(path, &json!({})).await.expect(200);
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [40, 1_000, 100_000] {
            let bomb = format!("{{\"x\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            let answer = visitor.send(Method::POST, path, Some(bomb.into_bytes())).await;
            answer.problem(400, "malformed_json");
        }
    }
    let nul = json!({ "email": "a\u{0}@example.com", "password": "p" });
    let refused = visitor.post("/api/v1/auth/login", &nul).await;
    assert_eq!(refused.pointers(), ["/email"]);
    server.finish().await;
}

#[tokio::test]
async fn lists_and_pages_have_limits() {
    let server = Start::default().partitions(1).start().await;
    let bea = server.buyer("Bea").await;
    let mut order = wish("0192f0c1-2345-7000-8000-0123456789ab", 1, "sandbox");
    order["items"] = Value::Array(vec![order["items"][0].clone(); 101]);
    assert_eq!(bea.client.post("/api/v1/orders", &order).await.pointers(), ["/items"]);
    for query in [
        "limit=201",
        "limit=0",
        "limit=-1",
        "limit=99999999999999999999",
        "min_position=0:18446744073709551615",
        "min_position=97:1",
        "min_position=0:+1",
    ] {
        let answer = server.visitor().get(&format!("/api/v1/listings?{query}")).await;
        answer.problem(400, "invalid_parameter");
    }
    let cursor = "QUFB".repeat(1_500);
    let answer = server.visitor().get(&format!("/api/v1/listings?cursor={cursor}")).await;
    answer.problem(400, "invalid_cursor");
    let beyond = server.admin().get("/api/v1/events?after=0:18446744073709551615").await;
    assert!(beyond.expect(200).items().is_empty());
    // A clock that left the range of times could never be read again.
    for by in [json!({ "seconds": i64::MAX }), json!({ "by": "9999999999y" })] {
        let refused = server.visitor().post("/api/v1/dev/clock/advance", &by).await;
        assert!(matches!(refused.status(), 409 | 422), "{refused:?}");
    }
    server.newcomer("Ann").await;
    server.finish().await;
}

/// Bodies of every costly shape, again and again: what they took is given back.
#[tokio::test]
async fn memory_does_not_grow_with_what_is_refused() {
    let server = Server::start().await;
    let wide: String = (0..60_000).map(|index| format!("\"k{index}\":{{}},")).collect();
    let bombs = [
        format!("{{{wide}\"x\":1}}"),
        format!("{{\"items\":[{}1]}}", "{},".repeat(300_000)),
        format!("{{\"password\":\"{}\"}}", "\\u0041".repeat(150_000)),
        format!("{{\"x\":{}}}", "[".repeat(900_000)),
    ];
    let wave = async || {
        for bomb in &bombs {
            for _ in 0..5 {
                let body = Some(bomb.clone().into_bytes());
                let visitor = server.visitor();
                let answer = visitor.send(Method::POST, "/api/v1/users/register", body).await;
                let status = answer.status();
                assert!((400..500).contains(&status), "{status}");
            }
        }
        resident_kb(&server)
    };
    // The first ones fill what the allocator keeps.
    let (first, mut last) = (wave().await, 0);
    for _ in 0..4 {
        last = wave().await;
    }
    assert!(last < first + SLACK_KB, "{first} kB after one wave, {last} kB after five");
    server.finish().await;
}

#[tokio::test]
async fn whoever_is_slow_to_send_is_cut_off() {
    let server = Start::default()
        .with("HTTP_HEADER_TIMEOUT", "300ms")
        .with("HTTP_BODY_TIMEOUT", "300ms")
        .start()
        .await;
    // Silence, a letter, half a preface, half a head, and a head that trickles.
    for start in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = connect(&server).await;
        stream.write_all(start.as_bytes()).await.unwrap();
        let answer = to_the_end(&mut stream).await;
        assert!(!answer.contains(" 200 ") && !answer.contains(" 500 "), "{answer}");
    }
    let mut stream = connect(&server).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let trickled = async {
        while stream.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trickled).await.expect("a head may trickle for ever");
    // A body that trickles is told why.
    let mut stream = connect(&server).await;
    let head =
        "POST /api/v1/dev/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let trickling = tokio::spawn(async move {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut start = [0; 12];
    let read = tokio::time::timeout(PATIENCE, reading.read_exact(&mut start)).await;
    read.expect("a body may trickle for ever").unwrap();
    assert_eq!(&start, b"HTTP/1.1 408");
    drop(reading);
    trickling.abort();
    server.finish().await;
}

#[tokio::test]
async fn whoever_does_not_read_is_cut_off() {
    let server = Start::default().with("HTTP_WRITE_TIMEOUT", "300ms").start().await;
    let mut watcher = RawClient::new(&server.url());
    let before = open_connections(&mut watcher).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut stream = connect(&server).await;
        // Far more than the buffers of both sides take.
        let asked = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(300);
        stream.write_all(asked.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let client = std::sync::Arc::new(tokio::sync::Mutex::new(watcher));
    eventually("connections that nobody reads to be closed", || async {
        (open_connections(&mut *client.lock().await).await <= before).then_some(())
    })
    .await;
    drop(held);
    server.finish().await;
}

#[tokio::test]
async fn http2_is_bounded_too() {
    let server = Start::default().with("HTTP_HEADER_TIMEOUT", "400ms").start().await;
    let url = server.url();
    let address = url.trim_start_matches("http://");
    // It works.
    let mut polite = http2::connect(address).await;
    polite.write_all(&http2::get(1, "/livez")).await.unwrap();
    // Without a request open it is told to go, though it answers every ping.
    let read = tokio::time::timeout(PATIENCE, http2::read_politely(&mut polite)).await;
    let kinds = read.expect("a silent connection may stay for good");
    assert!(kinds.contains(&http2::DATA), "no answer in {kinds:?}");
    assert!(kinds.contains(&http2::GOAWAY), "cut off without a word: {kinds:?}");

    // Requests that are given up at once ("rapid reset", CVE-2023-44487).
    let mut resetting = http2::connect(address).await;
    let mut burst = Vec::new();
    for stream in (1..4_000).step_by(2) {
        burst.extend(http2::get(stream, "/livez"));
        burst.extend(http2::frame(http2::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    // It may be cut off while it writes.
    let _: std::io::Result<()> = resetting.write_all(&burst).await;
    let read = tokio::time::timeout(PATIENCE, http2::read_politely(&mut resetting)).await;
    read.expect("rapid resets are served for ever");

    // More streams than are allowed: some are refused, none is forgotten, none fails.
    let mut many = http2::connect(address).await;
    let streams: Vec<u32> = (1..2_000).step_by(2).collect();
    let burst: Vec<u8> = streams.iter().flat_map(|&of| http2::get(of, "/livez")).collect();
    many.write_all(&burst).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, http2::read_politely(&mut many)).await;
    read.expect("a connection with many streams is never ended");

    // Floods of what wants an answer, from somebody who reads none.
    for flood in [
        http2::frame(http2::PING, 0, 0, b"12345678"),
        http2::frame(http2::SETTINGS, 0, 0, b""),
        http2::frame(http2::RST_STREAM, 0, 1, &8_u32.to_be_bytes()),
        http2::frame(http2::DATA, 0, 1, b""),
    ] {
        let mut flooding = http2::connect(address).await;
        let flood = flood.repeat(1_000);
        for _ in 0..200 {
            let written = flooding.write_all(&flood);
            // Cut off, or no longer read from: both end the flood.
            if !matches!(tokio::time::timeout(FLOODED, written).await, Ok(Ok(()))) {
                break;
            }
        }
    }
    server.visitor().get("/readyz").await.expect(200);
    server.finish().await;
}

/// At the limit clients wait in the kernel's queue, and whoever leaves makes room.
#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let server = Start::default()
        .with("HTTP_CONNECTIONS_MAX", 20)
        .with("HTTP_HEADER_TIMEOUT", "5m")
        .start()
        .await;
    let ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::new(&server.url());
        assert_eq!(client.send(ask, false).await.unwrap().status, 200);
        held.push(client);
    }
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let mut client = RawClient::new(&server.url());
        waiting.spawn(async move { client.send(ask, false).await.unwrap().status });
    }
    assert_eq!(open_connections(&mut held[0]).await, 20, "the limit holds");
    assert!(waiting.try_join_next().is_none(), "nobody is served beyond the limit");
    held.truncate(5);
    let all = tokio::time::timeout(PATIENCE, waiting.join_all()).await;
    assert_eq!(all.expect("those who waited are never served"), vec![200; 10]);
    server.finish().await;
}

/// Whoever takes every place and says nothing loses it again.
#[tokio::test]
async fn silent_connections_do_not_keep_others_out() {
    let server = Start::default()
        .with("HTTP_CONNECTIONS_MAX", 20)
        .with("HTTP_HEADER_TIMEOUT", "500ms")
        .start()
        .await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(connect(&server).await);
    }
    let visitor = server.visitor();
    let answer = tokio::time::timeout(PATIENCE, visitor.get("/readyz")).await;
    answer.expect("silent connections keep everybody out").expect(200);
    drop(silent);
    server.finish().await;
}

/// The most file descriptors that this process and its children may open, after it was raised.
fn raise_open_files() -> usize {
    let pid = std::process::id();
    let raise = format!("prlimit --pid {pid} --nofile=$(ulimit -Hn):$(ulimit -Hn)");
    // Where it cannot be raised the test makes do with what there is.
    let _: std::io::Result<_> = std::process::Command::new("sh").args(["-c", &raise]).output();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_do_no_harm() {
    let count = 10_000.min(raise_open_files().saturating_sub(500));
    eprintln!("{count} idle connections");
    let server = Start::default()
        .with("HTTP_CONNECTIONS_MAX", 20_000)
        .with("HTTP_HEADER_TIMEOUT", "10m")
        .start()
        .await;
    let mut watcher = RawClient::new(&server.url());
    let before_kb = resident_kb(&server);
    let mut peaks = Vec::new();
    for _ in 0..2 {
        let mut idle = Vec::with_capacity(count);
        for index in 0..count {
            let mut stream = connect(&server).await;
            // Some have had an answer, some have begun to ask, some never said anything.
            let begun: &[u8] = match index % 3 {
                0 => b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
                1 => b"GET /livez HTTP/1.1\r\n",
                _ => b"",
            };
            stream.write_all(begun).await.unwrap();
            idle.push(stream);
        }
        let watcher_cell = tokio::sync::Mutex::new(&mut watcher);
        // These and the watcher's own. How many were open before says nothing: some of those, of
        // the start, may be closing.
        let expected = u64::try_from(count).unwrap() + 1;
        let seen = std::cell::Cell::new(0);
        eventually("all connections to be accepted", || async {
            let open = open_connections(&mut **watcher_cell.lock().await).await;
            if seen.replace(open) != open {
                eprintln!("{open} connections are open");
            }
            (open >= expected).then_some(())
        })
        .await;
        // Ordinary requests are answered as ever.
        server.visitor().get("/readyz").await.expect(200);
        server.newcomer(&format!("Ann{}", peaks.len())).await;
        peaks.push(resident_kb(&server));
        drop(idle);
        eventually("all connections to be let go", || async {
            let open = open_connections(&mut **watcher_cell.lock().await).await;
            (open <= OTHERS_MAX).then_some(())
        })
        .await;
    }
    let after = resident_kb(&server);
    eprintln!("resident kB: {before_kb} at first, {peaks:?} with {count}, {after} afterwards");
    let per_connection = (peaks[0] - before_kb) * 1_024 / u64::try_from(count).unwrap();
    assert!(per_connection < 64 * 1_024, "{per_connection} bytes for an idle connection");
    assert!(peaks[1] < peaks[0] + SLACK_KB, "the second ten thousand cost more: {peaks:?}");
    server.finish().await;
}

/// S1-169 for everybody: each caller has so many requests, and is told how many are left.
#[tokio::test]
async fn each_caller_has_a_quota_of_requests() {
    let server = Start::default()
        .with("RATE_LIMIT_REQUESTS", 30)
        .with("RATE_LIMIT_WINDOW", "1h")
        .with("TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    let (ann, bea) = (server.buyer("Ann").await, server.buyer("Bea").await);
    let me = "/api/v1/users/me";
    let quota = |answer: &crate::support::Answer| {
        assert_eq!(answer.header("ratelimit-policy"), r#""requests";q=30;qu="requests";w=3600"#);
        let left = answer.header("ratelimit").to_owned();
        let left = left.strip_prefix(r#""requests";r="#).unwrap().split(';').next().unwrap();
        left.parse::<u32>().unwrap()
    };
    let first = quota(&ann.client.get(me).await.expect(200));
    // What is wrong costs as much as what is not.
    let second = quota(&ann.client.get("/api/v1/orders/none").await.expect(404));
    assert_eq!(second, first - 1);
    for _ in 0..second {
        ann.client.get(me).await.expect(200);
    }
    let over = async |client: &crate::support::Client| {
        let answer = client.get(me).await.expect(429);
        assert_eq!(answer["code"], "quota_exceeded");
        answer
    };
    let refused = over(&ann.client).await;
    assert_eq!(refused["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(refused["violated-policies"], json!(["requests"]));
    assert_eq!(quota(&refused), 0);
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
    // It is hers alone, and refills.
    bea.client.get(me).await.expect(200);
    server.advance_clock(u64::from(wait)).await;
    ann.client.get(me).await.expect(200);
    over(&ann.client).await;
    // Who has no good token is counted by the address, as the proxy says it.
    let from = |address: &str| server.visitor().with("x-forwarded-for", address);
    let (reader, category) = (from("192.0.2.9"), server.category().await);
    let mut left = 30;
    for path in [
        "/api/v1/search?q=a".to_owned(),
        "/api/v1/categories".to_owned(),
        format!("/api/v1/categories/{category}"),
        "/api/v1/reviews".to_owned(),
        format!("/api/v1/users/{}/reviews/summary", ann.user_id),
        format!("/api/v1/users/{}/followers/count", ann.user_id),
    ] {
        left -= 1;
        assert_eq!(quota(&reader.get(&path).await.expect(200)), left, "{path}");
    }
    // Images are for caches too.
    let image = "/api/v1/images/00000000-0000-7000-8000-000000000000/none.png";
    let answer = reader.with_token("nonsense").get(image).await.problem(404, "not_found");
    assert_eq!(answer.header("ratelimit"), "");
    let (here, there) = (from("203.0.113.9, 192.0.2.7"), from("192.0.2.8"));
    for n in 0..30 {
        match n % 2 {
            0 => here.get("/api/v1/listings").await.expect(200),
            _ => here.with_token("guess").get(me).await.expect(401),
        };
    }
    from("198.51.100.1, 192.0.2.7").get("/api/v1/listings").await.expect(429);
    over(&here.with_token("guess")).await;
    there.get("/api/v1/listings").await.expect(200);
    // Her token is not the address's, nor are probes anybody's.
    bea.client.with("x-forwarded-for", "192.0.2.7").get(me).await.expect(200);
    assert_eq!(here.get("/readyz").await.expect(200).header("ratelimit"), "");
    server.finish().await;
}
