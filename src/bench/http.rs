//! The HTTP load run: echo, one hot listing, many listings, each at several numbers of connections.
//!
//! The command is `PATCH /listings/{id}` with a new price and `If-Match: *`: two events, durable
//! before the answer, projected meanwhile. The echo passes everything that this passes, and no
//! actor.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use souk_actors::event::StoredEvent;
use souk_actors::journal::Store;
use souk_actors::journal::sqlite::SqliteStore;

use super::load::{self, Answer, Outcome, Script, Until};
use super::raw;
use super::report::{Report, Row};
use super::server::Server;
use crate::config::JOURNAL_FILE;
use crate::telemetry::{REVISION, VERSION};

/// Events of one command.
const EVENTS_PER_COMMAND: u64 = 2;
/// How many events the raw inserts take as samples: the listings of a spread load many times over.
const SAMPLES: usize = 20_000;
/// The password of the one seller.
const PASSWORD: &str = "a seller of many things";

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
    /// Where the files of the measurement go; a folder of its own is made in it and deleted.
    pub folder: PathBuf,
    /// Only phases whose name begins so.
    pub only: Option<String>,
}

/// Runs the whole plan.
pub async fn measure(plan: &Plan) -> anyhow::Result<Report> {
    let folder = tempfile_in(&plan.folder)?;
    let measured = measure_in(plan, &folder).await;
    std::fs::remove_dir_all(&folder)
        .with_context(|| format!("{} is left behind", folder.display()))?;
    measured
}

fn tempfile_in(parent: &Path) -> anyhow::Result<PathBuf> {
    use souk_actors::world::{SystemWorld, World as _};
    let folder = parent.join(format!("souk-bench-{}", SystemWorld::new().new_id().simple()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

async fn measure_in(plan: &Plan, folder: &Path) -> anyhow::Result<Report> {
    let server = Server::start(folder, None)?;
    let journal = SqliteStore::open_read_only(&folder.join(JOURNAL_FILE)).await?;
    say("a seller and listings");
    let market = Market::open(&server, plan).await?;
    let mut bench = Bench { plan, server, journal, rows: Vec::new() };
    for connections in plan.connections.iter().copied() {
        let echo = market.echo();
        let rate = bench.phase("echo", connections, echo, 0, None).await?;
        let hot = market.changes(1);
        bench.phase("hot", connections, hot, EVENTS_PER_COMMAND, rate).await?;
        let spread = market.changes(plan.listings);
        bench.phase("spread", connections, spread, EVENTS_PER_COMMAND, rate).await?;
    }
    let samples = bench.samples().await?;
    let Bench { server, journal, mut rows, .. } = bench;
    drop((server, journal));
    say("raw inserts");
    let fresh = SqliteStore::open(&folder.join("raw.db"), 1).await?;
    let raw = raw::inserts(&fresh, &samples, plan.time).await?;
    for row in &mut rows {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let events = EVENTS_PER_COMMAND as f64;
        row.of_raw = (row.journalled > 0).then_some(row.per_second * events / raw.per_second);
    }
    rows.push(raw_row(&raw));
    Ok(Report {
        version: format!("souk {VERSION} ({REVISION})"),
        store: "sqlite",
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        seconds: plan.time.as_secs_f64(),
        listings: plan.listings,
        rows,
    })
}

fn say(what: &str) {
    // Progress is for whoever watches; nobody may be there.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}

fn raw_row(raw: &raw::Raw) -> Row {
    let [p50_ms, p95_ms, p99_ms] = percentiles(&raw.latencies);
    Row {
        phase: "raw inserts",
        connections: None,
        per_second: raw.per_second,
        p50_ms,
        p95_ms,
        p99_ms,
        of_echo: None,
        of_raw: None,
        cpu_us: None,
        accepted: raw.events,
        refused: 0,
        journalled: raw.events,
    }
}

fn percentiles(of: &Histogram<u64>) -> [f64; 3] {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of at most a minute")]
    [0.5, 0.95, 0.99].map(|share| of.value_at_quantile(share) as f64 / 1_000.0)
}

struct Bench<'a> {
    plan: &'a Plan,
    server: Server,
    journal: SqliteStore,
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
        let (head, cpu) = (self.head().await?, self.server.cpu_seconds());
        let until = Until::Elapsed(self.plan.time);
        let address = self.server.address();
        let outcome = load::run(address, connections, self.plan.threads, until, script).await?;
        let cpu = self.server.cpu_seconds().zip(cpu).map(|(after, before)| after - before);
        let journalled = self.head().await? - head;
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
            of_echo: echo.map(|echo| rate / echo),
            of_raw: None,
            cpu_us: cpu.map(|seconds| seconds * 1e6 / all),
            accepted: outcome.accepted,
            refused: outcome.refused,
            journalled,
        });
        Ok(Some(rate))
    }

    /// How many events there are, as the journal itself says it.
    async fn head(&self) -> anyhow::Result<u64> {
        let mut events = 0;
        for partition in 0..self.journal.partitions() {
            events += self.journal.head(partition).await?.position;
        }
        Ok(events)
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

/// Whether what was measured is what happened.
fn check(phase: &str, outcome: &Outcome, journalled: u64, per_answer: u64) -> anyhow::Result<()> {
    if let Some(status) = outcome.refused_with {
        bail!("{phase}: {} requests were refused, the last with {status}", outcome.refused);
    }
    ensure!(outcome.timed > 0, "{phase}: nothing was answered in time");
    let expected = outcome.accepted * per_answer;
    ensure!(
        journalled == expected,
        "{phase}: {} commands were accepted, so the journal should have {expected} events more; it has {journalled}",
        outcome.accepted
    );
    Ok(())
}

/// A marketplace with one seller and many listings.
struct Market {
    token: String,
    listings: Arc<Vec<String>>,
    price: Arc<AtomicU64>,
}

impl Market {
    async fn open(server: &Server, plan: &Plan) -> anyhow::Result<Self> {
        let url = format!("http://{}", server.address());
        let admin = Client { http: reqwest::Client::new(), url, token: server.admin_token()? };
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
        let count = plan.listings as u64;
        let until = Until::Answered(count);
        let outcome = load::run(server.address(), 32, 1, until, offer.clone()).await?;
        ensure!(
            outcome.accepted == count,
            "{count} listings were offered and {} accepted",
            outcome.accepted
        );
        let ids = std::mem::take(&mut *offer.ids.lock().unwrap_or_else(PoisonError::into_inner));
        let price = Arc::new(AtomicU64::new(1_000_000));
        Ok(Self { token: seller.token, listings: Arc::new(ids), price })
    }

    fn echo(&self) -> Arc<dyn Script> {
        let body = r#"{"price":{"amount":1000000,"currency":"VND"}}"#;
        let request = request("POST", "/api/v1/dev/echo", &self.token, "", body);
        Arc::new(Same(request))
    }

    /// New prices for the first `count` listings, in turn.
    fn changes(&self, count: usize) -> Arc<dyn Script> {
        let body = r#"{"price":{"amount":0000000000,"currency":"VND"}}"#;
        let digits = "0000000000";
        let requests = self.listings.iter().take(count).map(|id| {
            let path = format!("/api/v1/listings/{id}");
            request("PATCH", &path, &self.token, "If-Match: *\r\n", body)
        });
        let requests: Vec<_> = requests.collect();
        let find = |text: &Vec<u8>| {
            text.windows(digits.len()).rposition(|window| window == digits.as_bytes())
        };
        let at = requests.iter().filter_map(find).collect();
        Arc::new(Changes { requests, at, price: self.price.clone() })
    }
}

/// A request's text.
fn request(method: &str, path: &str, token: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\
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

/// Changes prices of listings, one after the other, never to the price it had.
struct Changes {
    requests: Vec<Vec<u8>>,
    /// Where the price's digits stand in each.
    at: Vec<usize>,
    price: Arc<AtomicU64>,
}

impl Script for Changes {
    fn request(&self, number: u64, out: &mut Vec<u8>) {
        let count = self.requests.len() as u64;
        let index = usize::try_from(number % count).unwrap_or(0);
        out.extend_from_slice(&self.requests[index]);
        // JSON knows no leading zeros: ten digits, the first of them a 1.
        let mut price = 1_000_000_000 + self.price.fetch_add(1, Ordering::Relaxed) % 1_000_000_000;
        for place in out[self.at[index]..][..10].iter_mut().rev() {
            *place = b'0' + u8::try_from(price % 10).unwrap_or(0);
            price /= 10;
        }
    }
}

/// Plain requests, one at a time, for what comes before the measuring.
struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let answer = request.bearer_auth(&self.token).send().await?.error_for_status()?;
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
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
