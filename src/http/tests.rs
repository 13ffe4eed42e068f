//! What every request meets, against a whole service on a port of its own.

use std::time::Duration;

use axum::http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::{Config, Mode};
use crate::domain::caller::Role;
use crate::identity::token::{LIFETIME, Tokens};
use crate::serve::Running;
use crate::tls::http_client;

/// Operations that anybody may ask for and that read a body.
const FOR_ANYBODY: [&str; 11] = [
    "/api/v1/auth/login",
    "/api/v1/auth/refresh",
    "/api/v1/auth/password/forgot",
    "/api/v1/auth/password/reset",
    "/api/v1/users/register",
    "/api/v1/users/verify-email",
    "/api/v1/users/verify-email/resend",
    "/api/v1/dev/clock/advance",
    "/api/v1/dev/echo",
    "/api/v1/dev/faults",
    "/api/v1/payments/webhook/momo",
];

struct Service {
    running: Running,
    tokens: Tokens,
    _folder: tempfile::TempDir,
}

impl Service {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::for_testing(folder.path());
        change(&mut config);
        let tokens = Tokens::new(config.keys.token.bytes());
        Self { running: Running::start(config).await.unwrap(), tokens, _folder: folder }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.running.url())
    }

    /// A token of somebody with these roles.
    fn token(&self, roles: impl IntoIterator<Item = Role>) -> String {
        let world = self.running.market().runtime.world();
        let (user, id) = (world.new_id(), world.new_id());
        self.tokens.issue(user, None, roles.into_iter().collect(), world.now(), LIFETIME, id)
    }

    /// Everything that comes back when this is all that is ever sent. The service must end the
    /// connection of itself.
    async fn raw(&self, sent: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.running.address()).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // A reset is an end too.
        let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("kept open");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn nobody_hears_of_the_body_before_being_let_in() {
    let service = Service::start(|_| ()).await;
    let client = http_client().build().unwrap();
    let document: Value =
        client.get(service.url("/openapi.json")).send().await.unwrap().json().await.unwrap();
    let buyer = service.token([Role::Buyer]);
    let (mut tried, mut refused) = (0, 0);
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            if !["post", "patch", "put"].contains(&method.as_str()) {
                continue;
            }
            if FOR_ANYBODY.contains(&path.as_str()) {
                continue;
            }
            let method: Method = method.to_uppercase().parse().unwrap();
            let asked = service.url(&path.replace(['{', '}'], "x"));
            let ask = || client.request(Method::clone(&method), &asked).body("no JSON at all");
            assert_eq!(ask().send().await.unwrap().status(), 401, "{path}");
            tried += 1;
            if path.starts_with("/api/v1/admin/") || path.starts_with("/api/v1/dlq/") {
                let answer = ask().bearer_auth(&buyer).send().await.unwrap();
                assert_eq!(answer.status(), 403, "{path}");
                refused += 1;
            }
        }
    }
    assert!(tried > 20 && refused > 5, "only {tried} and {refused} operations were tried");
}

#[tokio::test]
async fn what_comes_too_slowly_is_cut_off() {
    let service = Service::start(|config| {
        config.http.header_timeout = Duration::from_millis(200);
        config.http.body_timeout = Duration::from_millis(200);
    })
    .await;
    // Nothing at all, what may become either version of HTTP, half a head, and an idle connection
    // after an answer.
    for sent in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n"] {
        assert_eq!(service.raw(sent).await, "", "{sent:?}");
    }
    let half = service.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n").await;
    assert!(!half.contains("200 OK"), "{half}");
    let idle = service.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(idle.starts_with("HTTP/1.1 200 OK"), "{idle}");

    let head = "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let slow = service.raw(format!("{head}Content-Length: 100\r\n\r\n{{").as_bytes()).await;
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert!(slow.contains("\"code\":\"request_timeout\""), "{slow}");
}

#[tokio::test]
async fn what_is_too_large_or_too_deep_is_refused() {
    let service = Service::start(|config| config.http.body_bytes_max = 10_000).await;
    let client = http_client().build().unwrap();
    let login = |body: String| {
        let request = client.post(service.url("/api/v1/auth/login"));
        request.header("content-type", "application/json").body(body).send()
    };
    assert_eq!(login("x".repeat(10_001)).await.unwrap().status(), 413);
    let bomb = format!("{{\"email\":{}{}}}", "[".repeat(4_000), "]".repeat(4_000));
    let answer = login(bomb).await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "malformed_json");

    let long = format!("/api/v1/listings/{}", "x".repeat(10_000));
    assert_eq!(client.get(service.url(&long)).send().await.unwrap().status(), 414);
    // Neither a path nor a header of any length does more than end the connection.
    let path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(70_000));
    let header =
        format!("GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(70_000));
    for answer in [service.raw(path.as_bytes()).await, service.raw(header.as_bytes()).await] {
        let refused = ["HTTP/1.1 414", "HTTP/1.1 431", "HTTP/1.1 400"];
        let refused = refused.iter().any(|status| answer.starts_with(status));
        assert!(refused || answer.is_empty(), "{answer}");
    }
    assert_eq!(client.get(service.url("/livez")).send().await.unwrap().status(), 200);
}

/// An order of something that nobody offers, paid so, as its problem.
async fn refused_order(service: &Service, payment_method: &str) -> Value {
    let order = serde_json::json!({
        "items": [{ "sku": "NONE", "quantity": 1 }],
        "delivery_address": { "line1": "1 Hang Bac", "district": "Hoan Kiem", "city": "Ha Noi" },
        "payment_method": payment_method,
    });
    let request = http_client().build().unwrap().post(service.url("/api/v1/orders"));
    let answer = request.bearer_auth(service.token([Role::Buyer])).json(&order).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 422);
    answer.json().await.unwrap()
}

#[tokio::test]
async fn an_order_line_is_named_by_its_sku() {
    let service = Service::start(|_| ()).await;
    let problem = refused_order(&service, "test_pending").await;
    assert_eq!(problem["code"], "sku_unknown");
    assert_eq!(problem["errors"][0]["pointer"], "/items/0/sku");
}

#[tokio::test]
async fn whoever_has_said_nothing_does_not_hold_up_the_end() {
    let service = Service::start(|_| ()).await;
    let _silent = TcpStream::connect(service.running.address()).await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(10), service.running.stop()).await;
    assert!(stopped.unwrap(), "not everything had finished");
}

#[tokio::test]
async fn methods_that_hold_stock_for_nothing_are_for_development() {
    let service = Service::start(|config| config.mode = Mode::Production).await;
    let problem = refused_order(&service, "test_pending").await;
    assert_eq!(problem["errors"][0]["code"], "unknown_payment_method");
}

#[tokio::test]
async fn the_sandbox_sells_only_where_it_is_wanted() {
    for (wanted, code) in [(true, "sku_unknown"), (false, "invalid")] {
        let service = Service::start(|config| config.sandbox_payments = wanted).await;
        assert_eq!(refused_order(&service, "sandbox").await["code"], code);
    }
}
