//! The HTTP load run: echo, one hot listing, many listings, each at several numbers of connections.
//!
//! The command is `PATCH /listings/{id}` with `If-Match: *`, durable before the answer and projected
//! meanwhile: a new title is one event, a new price two. The echo passes everything that these pass,
//! and no actor.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use souk_actors::event::StoredEvent;
use souk_actors::journal::Store;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::testing::postgres;
use souk_actors::testing::raw::RawInserts;

use super::load::{self, Answer, Load, Outcome, Script, Until};
use super::report::{Report, Row};
use super::server::Server;
use super::{in_folder, percentiles};
use crate::config::JOURNAL_FILE;
use crate::telemetry::{REVISION, VERSION};
use crate::tls::http_client;

/// How many events the raw inserts take as samples: the listings of a spread load many times over.
const SAMPLES: usize = 20_000;
/// How often to look whether the server is at rest, and how many times.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOKS_MAX: usize = 300;
/// The password of the one seller.
const PASSWORD: &str = "a seller of many things";

/// Which store the journal and the read models are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Files in the folder.
    Sqlite,
    /// A PostgreSQL of its own, set up as it comes, in the system's folder of temporary files.
    Postgres,
}

impl StoreKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// Where the journal is.
pub(super) struct Place {
    folder: PathBuf,
    postgres: Option<(postgres::Server, String)>,
}

impl Place {
    pub(super) async fn new(store: StoreKind, folder: &Path) -> Self {
        let postgres = match store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres => {
                let server = postgres::Server::start(postgres::Options::default());
                let url = server.create_database().await;
                Some((server, url))
            }
        };
        Self { folder: folder.to_owned(), postgres }
    }

    pub(super) fn url(&self) -> Option<&str> {
        self.postgres.as_ref().map(|(_, url)| url.as_str())
    }

    /// The journal, to look at beside the server.
    pub(super) async fn journal(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(match self.url() {
            None => Arc::new(SqliteStore::open_read_only(&self.folder.join(JOURNAL_FILE)).await?),
            Some(url) => Arc::new(PostgresStore::open_read_only(PostgresOptions::new(url)?).await?),
        })
    }

    /// A new journal of the same kind.
    async fn fresh(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(match &self.postgres {
            None => Arc::new(SqliteStore::open(&self.folder.join("raw.db"), 1).await?),
            Some((server, _)) => {
                let options = PostgresOptions::new(&server.create_database().await)?;
                Arc::new(PostgresStore::open(options, Some(1)).await?)
            }
        })
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long each phase is timed.
    pub time: Duration,
    /// Connections at the same time, a row each.
    pub connections: Vec<usize>,
    /// Threads of the load.
    pub threads: usize,
    /// How many listings the spread load is spread over.
    pub listings: usize,
    /// Which store.
    pub store: StoreKind,
    /// Where the files of the measurement go; a folder of its own is made in it and deleted.
    pub folder: PathBuf,
    /// Only phases whose name begins so.
    pub only: Option<String>,
}

/// Runs the whole plan.
pub async fn measure(plan: &Plan) -> anyhow::Result<Report> {
    in_folder(&plan.folder, |folder| async move { measure_in(plan, &folder).await }).await
}

async fn measure_in(plan: &Plan, folder: &Path) -> anyhow::Result<Report> {
    let place = Place::new(plan.store, folder).await;
    let server = Server::start(folder, place.url())?;
    let journal = place.journal().await?;
    say("a seller and listings");
    let market = Market::open(&server, plan.listings).await?;
    at_rest(&market.admin, &*journal).await?;
    let mut bench = Bench { plan, server, journal, rows: Vec::new() };
    for connections in plan.connections.iter().copied() {
        let echo = bench.phase("echo", connections, market.echo(), 0, None).await?;
        for (phase, change, listings) in [
            ("hot", Change::Title, 1),
            ("spread", Change::Title, plan.listings),
            ("hot, two events", Change::Price, 1),
            ("spread, two events", Change::Price, plan.listings),
        ] {
            let script = market.changes(change, listings);
            bench.phase(phase, connections, script, change.events(), echo).await?;
        }
    }
    let samples = bench.samples().await?;
    let Bench { server, journal, mut rows, .. } = bench;
    drop((server, journal));
    say("raw inserts");
    let raw = raw(place.fresh().await?, samples, plan.time).await;
    for row in &mut rows {
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let events = row.journalled as f64 / row.accepted as f64;
        row.of_raw = (row.journalled > 0).then_some(row.per_second * events / raw.per_second);
    }
    rows.push(raw);
    Ok(Report {
        version: format!("souk {VERSION} ({REVISION})"),
        store: plan.store.as_str(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        seconds: plan.time.as_secs_f64(),
        listings: plan.listings,
        rows,
    })
}

pub(super) fn say(what: &str) {
    // Progress is for whoever watches; nobody may be there.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}

/// Ready batches into an empty store, for so long.
async fn raw(store: Arc<dyn Store>, samples: Vec<Arc<StoredEvent>>, time: Duration) -> Row {
    let mut raw = RawInserts::new(store, samples).await;
    let (mut used, mut appends) = (Duration::ZERO, Vec::new());
    while used < time {
        let (_, append) = raw.append(usize::MAX).await;
        used += append;
        appends.push(append);
    }
    appends.sort_unstable();
    let at = |percent: usize| appends[(appends.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let per_second = raw.events() as f64 / used.as_secs_f64();
    Row {
        phase: "raw inserts",
        connections: None,
        per_second,
        p50_ms: at(50),
        p95_ms: at(95),
        p99_ms: at(99),
        of_echo: None,
        of_raw: None,
        cpu_us: None,
        accepted: raw.events(),
        refused: 0,
        journalled: raw.events(),
    }
}

struct Bench<'a> {
    plan: &'a Plan,
    server: Server,
    journal: Arc<dyn Store>,
    rows: Vec<Row>,
}

impl Bench<'_> {
    /// Runs a phase and checks it against the journal. Returns its rate.
    async fn phase(
        &mut self,
        phase: &'static str,
        connections: usize,
        script: Arc<dyn Script>,
        events_per_answer: u64,
        echo: Option<f64>,
    ) -> anyhow::Result<Option<f64>> {
        if self.plan.only.as_ref().is_some_and(|only| !phase.starts_with(only.as_str())) {
            return Ok(None);
        }
        say(&format!("{phase}, {connections} connections"));
        let (before, cpu) = (heads(&*self.journal).await?, self.server.cpu_seconds());
        let until = Until::Elapsed(self.plan.time);
        let load = Load { connections, threads: self.plan.threads, until, rate: None };
        let outcome = load::run(self.server.address(), load, script).await?;
        let cpu = self.server.cpu_seconds().zip(cpu).map(|(after, before)| after - before);
        let journalled = self.journalled(&before).await?;
        check(phase, &outcome, journalled, events_per_answer)?;
        let [p50_ms, p95_ms, p99_ms] = percentiles(&outcome.latencies);
        let rate = outcome.per_second();
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let all = outcome.accepted as f64;
        self.rows.push(Row {
            phase,
            connections: Some(connections),
            per_second: rate,
            p50_ms,
            p95_ms,
            p99_ms,
            of_echo: echo.filter(|echo| *echo > 0.0).map(|echo| rate / echo),
            of_raw: None,
            cpu_us: cpu.map(|seconds| seconds * 1e6 / all),
            accepted: outcome.accepted,
            refused: outcome.refused,
            journalled,
        });
        Ok(Some(rate))
    }

    /// How many events of listings there are behind these positions. What follows from them, such
    /// as the word that the search finds them, is not what was asked for.
    async fn journalled(&self, before: &[u64]) -> anyhow::Result<u64> {
        let now = heads(&*self.journal).await?;
        let mut count = 0;
        for (partition, (after, head)) in (0..).zip(before.iter().zip(now)) {
            let mut after = *after;
            while after < head {
                let page = self.journal.read_from(partition, after, 1_000).await?;
                after = page.last().map_or(head, |event| event.position);
                let of_listings = page.iter().filter(|event| &*event.aggregate_type == "listing");
                count += of_listings.count() as u64;
            }
        }
        Ok(count)
    }

    /// The newest events.
    async fn samples(&self) -> anyhow::Result<Vec<Arc<StoredEvent>>> {
        let head = self.journal.head(0).await?.position;
        let mut samples = Vec::new();
        let mut after = head.saturating_sub(SAMPLES as u64);
        while after < head {
            let page = self.journal.read_from(0, after, 1_000).await?;
            after = page.last().map_or(head, |event| event.position);
            samples.extend(page);
        }
        Ok(samples)
    }
}

/// How many events there are in each partition, as the journal itself says it.
pub(super) async fn heads(journal: &dyn Store) -> anyhow::Result<Vec<u64>> {
    let mut heads = Vec::new();
    for partition in 0..journal.partitions() {
        heads.push(journal.head(partition).await?.position);
    }
    Ok(heads)
}

/// Waits until all that the listings and their seller led to has happened: it is not to be counted
/// among what is measured.
pub(super) async fn at_rest(admin: &Client, journal: &dyn Store) -> anyhow::Result<()> {
    let mut before = Vec::new();
    for _ in 0..LOOKS_MAX {
        let heads = heads(journal).await?;
        let subscriptions = admin.get("/api/v1/admin/subscriptions").await?;
        let all = subscriptions["data"].as_array().into_iter().flatten();
        let mut partitions = all.flat_map(|one| one["partitions"].as_array().into_iter().flatten());
        let caught_up = partitions.all(|one| {
            let partition = one["partition"].as_u64().and_then(|of| usize::try_from(of).ok());
            partition.and_then(|of| heads.get(of)).is_some_and(|head| one["position"] == *head)
        });
        if caught_up && heads == before {
            return Ok(());
        }
        before = heads;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("the server does not come to rest before it is measured")
}

/// Whether what was measured is what happened.
fn check(phase: &str, outcome: &Outcome, journalled: u64, per_answer: u64) -> anyhow::Result<()> {
    if let Some(status) = outcome.refused_with {
        bail!("{phase}: {} requests were refused, the last with {status}", outcome.refused);
    }
    let expected = outcome.accepted * per_answer;
    ensure!(
        journalled == expected,
        "{phase}: {} commands were accepted, so the journal should have {expected} events more; it has {journalled}",
        outcome.accepted
    );
    Ok(())
}

/// A marketplace with one seller and many listings.
pub(super) struct Market {
    pub(super) admin: Client,
    pub(super) token: String,
    listings: Arc<Vec<String>>,
    next: Arc<AtomicU64>,
}

/// What a command changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Title,
    Price,
}

impl Change {
    /// How many events it is.
    pub(super) fn events(self) -> u64 {
        match self {
            Self::Title => 1,
            Self::Price => 2,
        }
    }

    /// A body with room for ten digits: JSON knows no leading zeros, so the first is never a 0.
    fn body(self) -> String {
        match self {
            Self::Title => format!(r#"{{"title":"A bicycle of {DIGITS}"}}"#),
            Self::Price => format!(r#"{{"price":{{"amount":{DIGITS},"currency":"VND"}}}}"#),
        }
    }
}

/// Where a number goes.
const DIGITS: &str = "0000000000";

impl Market {
    pub(super) async fn open(server: &Server, listings: usize) -> anyhow::Result<Self> {
        let url = format!("http://{}", server.address());
        let admin = Client { http: http_client().build()?, url, token: server.admin_token()? };
        let seller = seller(&admin).await?;
        let category = admin.get("/api/v1/categories").await?["data"][0]["category_id"].clone();
        let body = json!({
            "title": "A blue bicycle",
            "description": "Ridden only on Sundays.",
            "price": { "amount": 1_500_000, "currency": "VND" },
            "category_id": category,
            "quantity": 2,
        });
        let offer = Arc::new(Offers {
            request: request("POST", "/api/v1/listings", &seller.token, "", &body.to_string()),
            ids: Mutex::default(),
        });
        let count = listings as u64;
        let until = Until::Answered(count);
        let load = Load { connections: 32, threads: 1, until, rate: None };
        let outcome = load::run(server.address(), load, offer.clone()).await?;
        ensure!(
            outcome.accepted == count,
            "{count} listings were offered and {} accepted",
            outcome.accepted
        );
        let ids = std::mem::take(&mut *offer.ids.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Self { admin, token: seller.token, listings: Arc::new(ids), next: Arc::default() })
    }

    /// The same on a server that was started anew.
    pub(super) fn at(&self, server: &Server) -> anyhow::Result<Self> {
        let url = format!("http://{}", server.address());
        let admin = Client { http: http_client().build()?, url, token: server.admin_token()? };
        let (token, listings) = (self.token.clone(), self.listings.clone());
        Ok(Self { admin, token, listings, next: self.next.clone() })
    }

    /// A look at each listing.
    pub(super) fn shown(&self) -> Vec<Vec<u8>> {
        let paths = self.listings.iter().map(|id| format!("/api/v1/listings/{id}"));
        paths.map(|path| request("GET", &path, &self.token, "", "")).collect()
    }

    fn echo(&self) -> Arc<dyn Script> {
        let body = r#"{"price":{"amount":1000000,"currency":"VND"}}"#;
        let request = request("POST", "/api/v1/dev/echo", &self.token, "", body);
        Arc::new(Same(request))
    }

    /// Changes of the first `count` listings, in turn.
    pub(super) fn changes(&self, change: Change, count: usize) -> Arc<dyn Script> {
        let requests = self.listings.iter().take(count).map(|id| {
            let path = format!("/api/v1/listings/{id}");
            request("PATCH", &path, &self.token, "If-Match: *\r\n", &change.body())
        });
        let requests: Vec<_> = requests.collect();
        let find = |text: &Vec<u8>| {
            text.windows(DIGITS.len()).rposition(|window| window == DIGITS.as_bytes())
        };
        let at = requests.iter().filter_map(find).collect();
        Arc::new(Changes { requests, at, next: self.next.clone() })
    }
}

/// A request's text.
pub(super) fn request(method: &str, path: &str, token: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The same request again and again.
struct Same(Vec<u8>);

impl Script for Same {
    fn request(&self, _number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

/// Offers something again and again, and notes what it is called.
struct Offers {
    request: Vec<u8>,
    ids: Mutex<Vec<String>>,
}

impl Script for Offers {
    fn request(&self, _number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn answer(&self, _number: u64, answer: &Answer<'_>) {
        let id = answer.field("location").and_then(|path| path.rsplit('/').next());
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.extend(id.map(str::to_owned));
    }
}

/// Changes listings, one after the other, never to what they were.
struct Changes {
    requests: Vec<Vec<u8>>,
    /// Where the digits stand in each.
    at: Vec<usize>,
    next: Arc<AtomicU64>,
}

impl Script for Changes {
    fn request(&self, number: u64, out: &mut Vec<u8>) {
        let count = self.requests.len() as u64;
        let index = usize::try_from(number % count).unwrap_or(0);
        out.extend_from_slice(&self.requests[index]);
        let next = self.next.fetch_add(1, Ordering::Relaxed) % 1_000_000_000;
        let mut number = 1_000_000_000 + next;
        for place in out[self.at[index]..][..DIGITS.len()].iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
        }
    }
}

/// Plain requests, one at a time, for what comes before the measuring.
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let answer = request.bearer_auth(&self.token).send().await?.error_for_status()?;
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }

    /// Asks for something that rests on how `path` is now.
    pub(super) async fn steer(&self, path: &str, what: &str) -> anyhow::Result<()> {
        let now = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        let now = now.send().await?.error_for_status()?;
        let tag = now.headers().get("etag").context("a version to rest on")?.clone();
        let ask = self.http.post(format!("{}{path}/{what}", self.url)).json(&json!({}));
        self.send(ask.header("if-match", tag)).await.map(drop)
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }
}

/// Somebody who may sell. The address need not be proved for that.
async fn seller(admin: &Client) -> anyhow::Result<Client> {
    let email = "bench@example.com";
    let who = json!({
        "email": email, "password": PASSWORD, "first_name": "Bench", "last_name": "Seller",
    });
    let user = admin.post("/api/v1/users/register", &who).await?;
    let user_id = user["user_id"].as_str().context("a user has an id")?.to_owned();
    admin
        .post("/api/v1/users/verify-email", &json!({ "verification_token": mailed(admin).await? }))
        .await?;
    let login = json!({ "email": email, "password": PASSWORD });
    let tokens = admin.post("/api/v1/auth/login", &login).await?;
    let token = tokens["access_token"].as_str().context("a login has a token")?.to_owned();
    let seller = Client { http: admin.http.clone(), url: admin.url.clone(), token };
    let business = json!({
        "business_name": "Bench", "business_address": "1 Bench Street",
        "business_phone": "+84 24 3926 0000",
    });
    seller.post("/api/v1/users/upgrade-to-seller", &business).await?;
    admin.post(&format!("/api/v1/admin/sellers/{user_id}/verify"), &json!({})).await?;
    Ok(seller)
}

/// The token in the first mail: its longest word.
async fn mailed(admin: &Client) -> anyhow::Result<String> {
    for _ in 0..100 {
        let sent = admin.get("/api/v1/dev/outbox?channel=email").await?;
        let texts = sent["data"].as_array().into_iter().flatten();
        let part = |letter: char| !(letter.is_ascii_alphanumeric() || "-_".contains(letter));
        let token = texts
            .filter_map(|mail| mail["text"].as_str())
            .find_map(|text| text.split(part).find(|word| word.len() == 64));
        if let Some(token) = token {
            return Ok(token.to_owned());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no mail with a token came")
}
