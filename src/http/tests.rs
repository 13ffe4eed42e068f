//! What every request meets, against a whole service on a port of its own.

use std::time::Duration;

use axum::http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::domain::caller::Role;
use crate::identity::token::{LIFETIME, Tokens};
use crate::serve::Running;

/// Operations that anybody may ask for and that read a body.
const FOR_ANYBODY: [&str; 7] = [
    "/api/v1/auth/login",
    "/api/v1/auth/refresh",
    "/api/v1/users/register",
    "/api/v1/users/verify-email",
    "/api/v1/dev/clock/advance",
    "/api/v1/dev/echo",
    "/api/v1/dev/faults",
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
    let client = reqwest::Client::new();
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
            let asked = service.url(&path.replace('{', "x").replace('}', "x"));
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
