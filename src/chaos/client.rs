//! How the run's clients reach the server: wherever it listens now, again until it answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::tls::http_client;

/// How long a client waits for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What a client waits at first when the server does not answer, and at most.
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_millis(250);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Nobody,
    Admin,
    Seller,
    Buyer,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub who: Who,
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
    pub key: Option<String>,
    pub if_match: Option<String>,
}

impl Request {
    pub fn get(who: Who, path: impl Into<String>) -> Self {
        let (method, path) = (Method::GET, path.into());
        Self { who, method, path, body: None, key: None, if_match: None }
    }

    pub fn post(who: Who, path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, body: Some(body), ..Self::get(who, path) }
    }

    pub fn patch(who: Who, path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::PATCH, ..Self::post(who, path, body) }
    }

    pub fn keyed(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// On this version; none: on any.
    pub fn if_match(self, version: Option<u64>) -> Self {
        let tag = version.map_or_else(|| "*".to_owned(), |version| format!("\"{version}\""));
        Self { if_match: Some(tag), ..self }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Value,
    /// Of the `ETag`, where there is one.
    pub version: Option<u64>,
    /// `Idempotent-Replayed`.
    pub replayed: bool,
}

impl Answer {
    pub fn text(&self, name: &str) -> anyhow::Result<String> {
        let text = self.body[name].as_str().map(str::to_owned);
        text.ok_or_else(|| anyhow::anyhow!("no {name} in {}: {}", self.status, self.body))
    }

    pub fn expect(self, status: u16) -> anyhow::Result<Self> {
        anyhow::ensure!(self.status == status, "{status} expected: {} {}", self.status, self.body);
        Ok(self)
    }
}

/// The way to the server, shared by everybody.
pub(super) struct Door {
    http: reqwest::Client,
    url: RwLock<String>,
    tokens: RwLock<BTreeMap<Who, String>>,
    logins: RwLock<BTreeMap<Who, Value>>,
    /// Requests sent.
    pub attempts: AtomicU64,
    /// Requests answered by anything but a server error.
    pub successes: AtomicU64,
    /// Nobody waits for the server any more.
    pub given_up: AtomicBool,
    began: Instant,
    /// When each life of the server was surely over.
    deaths: RwLock<Vec<u64>>,
}

fn unpoisoned<T>(lock: Result<T, PoisonError<T>>) -> T {
    lock.unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    pub fn new() -> anyhow::Result<Self> {
        let http = http_client().no_proxy().timeout(ANSWER_WITHIN).build()?;
        Ok(Self {
            http,
            url: RwLock::default(),
            tokens: RwLock::default(),
            logins: RwLock::default(),
            attempts: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            began: Instant::now(),
            deaths: RwLock::default(),
        })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Which life of the server this is, from 0.
    pub fn life(&self) -> usize {
        unpoisoned(self.deaths.read()).len()
    }

    /// The server is surely dead: what was sent to it happens no more.
    pub fn died(&self) {
        let now = self.now();
        unpoisoned(self.deaths.write()).push(now);
    }

    /// When a life was surely over, if it is.
    pub fn death(&self, life: usize) -> Option<u64> {
        unpoisoned(self.deaths.read()).get(life).copied()
    }

    /// From now on the server listens there.
    pub fn moved(&self, url: &str) {
        *unpoisoned(self.url.write()) = url.to_owned();
    }

    /// From now on this is who somebody is.
    pub fn known_by(&self, who: Who, token: String) {
        unpoisoned(self.tokens.write()).insert(who, token);
    }

    /// Logs somebody in, now and whenever the token is over.
    pub async fn log_in(&self, who: Who, email: &str, password: &str) -> anyhow::Result<()> {
        let login = json!({ "email": email, "password": password });
        unpoisoned(self.logins.write()).insert(who, login);
        self.log_in_again(who).await
    }

    async fn log_in_again(&self, who: Who) -> anyhow::Result<()> {
        let login = unpoisoned(self.logins.read()).get(&who).cloned();
        let Some(login) = login else { anyhow::bail!("{who:?} cannot log in again") };
        let request = Request::post(Who::Nobody, "/api/v1/auth/login", login);
        let answer = self.insist_as_is(&request).await;
        let Some(answer) = answer else { return Ok(()) };
        self.known_by(who, answer.expect(200)?.text("access_token")?);
        Ok(())
    }

    /// Whether the server says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let ready = self.try_send(&Request::get(Who::Nobody, "/readyz")).await;
        ready.is_ok_and(|answer| answer.status == 200)
    }

    /// Sends a request once. None: no answer came.
    pub async fn send(&self, request: &Request) -> Option<Answer> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let answer = self.try_send(request).await.ok();
        if answer.as_ref().is_some_and(|answer| answer.status < 500) {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    async fn try_send(&self, request: &Request) -> Result<Answer, reqwest::Error> {
        let url = format!("{}{}", unpoisoned(self.url.read()), request.path);
        let mut sending = self.http.request(request.method.clone(), url);
        if let Some(token) = unpoisoned(self.tokens.read()).get(&request.who) {
            sending = sending.bearer_auth(token);
        }
        if let Some(key) = &request.key {
            sending = sending.header("idempotency-key", format!("\"{key}\""));
        }
        if let Some(tag) = &request.if_match {
            sending = sending.header("if-match", tag);
        }
        if let Some(body) = &request.body {
            sending = sending.json(body);
        }
        let response = sending.send().await?;
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(str::to_owned)
        };
        let version = header("etag").and_then(|tag| tag.trim_matches('"').parse().ok());
        let replayed = header("idempotent-replayed").is_some();
        let status = response.status().as_u16();
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
        Ok(Answer { status, body, version, replayed })
    }

    /// Sends a request until it is answered for good, and logs in again when that is what it
    /// takes. None: the run is over.
    pub async fn insist(&self, request: &Request) -> Option<Answer> {
        loop {
            let answer = self.insist_as_is(request).await?;
            if answer.status != 401 || request.who == Who::Nobody {
                return Some(answer);
            }
            if self.log_in_again(request.who).await.is_err() {
                return Some(answer);
            }
        }
    }

    async fn insist_as_is(&self, request: &Request) -> Option<Answer> {
        let mut wait = WAIT_MIN;
        loop {
            if let Some(answer) = self.send(request).await.filter(|answer| answer.status < 500) {
                return Some(answer);
            }
            if self.given_up.load(Ordering::Relaxed) {
                return None;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// As [`Door::insist`], where no answer is an error.
    pub async fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        let answer = self.insist(request).await;
        answer.ok_or_else(|| anyhow::anyhow!("{} {}: no answer", request.method, request.path))
    }
}
