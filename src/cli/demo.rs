//! `souk demo`: a whole purchase, step by step, over plain HTTP.
//!
//! Without `--url` it starts a server of its own on a free port with a folder that is deleted
//! afterwards, so that one command shows everything. With `--database-url` that server works in an
//! empty PostgreSQL database, and what it did stays there to be looked at.
//!
//! With `--seed-market` it fills a market that is running ([`market`]), and prints no steps.

mod market;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};
use souk_actors::world::{SystemWorld, World as _};

use super::remote::{read_token, token};
use crate::app::open_journal_read_only;
use crate::config::{Config, Database, Storage};
use crate::serve::{ADMIN_TOKEN_FILE, Running};
use crate::tls::http_client;

/// How often to look for what comes by itself, and how many times.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS_MAX: u32 = 100;

/// What to demonstrate on.
#[derive(Args)]
pub(super) struct Options {
    /// A server in development mode that is running; one of its own when absent
    #[arg(long)]
    url: Option<String>,
    /// A file with an administrator's token of that server; SOUK_TOKEN holds the token itself [admin-token in the data folder]
    #[arg(long, alias = "admin-token-file", env = "SOUK_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Fill the running market with listings, sellers, orders and reviews; twice makes nothing double
    #[arg(long)]
    seed_market: bool,
    /// How many listings that market is to have
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    #[arg(requires = "seed_market")]
    listings: u32,
}

/// Where a market is when nobody says.
const URL_DEFAULT: &str = "http://127.0.0.1:8080";

/// A folder for one demonstration.
pub(super) fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("souk-demo-{}", SystemWorld::new().new_id().simple()))
}

/// `data_dir` is where a server that is running has its files.
pub(super) async fn demo(
    config: Config,
    options: Options,
    data_dir: &Path,
) -> anyhow::Result<ExitCode> {
    if options.seed_market {
        let done = seed_market(&options, data_dir).await;
        remove(&config.storage.data_dir);
        return done;
    }
    let folder = config.storage.data_dir.clone();
    let (running, url, token) = match options.url {
        Some(url) => {
            let token = token(options.token_file.as_deref(), data_dir);
            (None, url, token.inspect_err(|_| remove(&folder))?)
        }
        None => {
            refuse_if_used(&config.storage).await?;
            let running = Running::start(config).await?;
            let url = running.url();
            println!("A server of its own listens on {url}.");
            (Some(running), url, read_token(&folder.join(ADMIN_TOKEN_FILE))?)
        }
    };
    let done = purchase(&url, &token).await;
    if let Some(running) = running {
        running.stop().await;
    }
    remove(&folder);
    done.map(|()| ExitCode::SUCCESS)
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("souk: {} is left behind: {error}", folder.display());
    }
}

async fn seed_market(options: &Options, data_dir: &Path) -> anyhow::Result<ExitCode> {
    let url = options.url.as_deref().unwrap_or(URL_DEFAULT);
    let token = token(options.token_file.as_deref(), data_dir)?;
    let made = market::seed(url, &token, options.listings).await?;
    println!(
        "{} listings, {} orders and {} reviews are new in the market at {url}.",
        made.listings, made.orders, made.reviews
    );
    println!("Log in as seller0@market.example or buyer0@market.example: {}", market::PASSWORD);
    Ok(ExitCode::SUCCESS)
}

/// The keys of a demonstration are gone with its folder: in a journal that is in use it would leave
/// what nobody can read.
async fn refuse_if_used(storage: &Storage) -> anyhow::Result<()> {
    if matches!(storage.database, Database::Postgres(_))
        && open_journal_read_only(storage).await.is_ok()
    {
        bail!("there is a journal in this database already: give the demonstration an empty one");
    }
    Ok(())
}

async fn purchase(url: &str, token: &str) -> anyhow::Result<()> {
    let run = SystemWorld::new().new_id().simple().to_string();
    let visitor = Client::new(url, None);
    let admin = visitor.with_token(token);

    heading("A seller registers, proves the address and is let in");
    let (seller_id, seller) = member(&visitor, &admin, "Sam", &run).await?;
    let business = json!({
        "business_name": "Sam's Bicycles",
        "business_address": "12 Hàng Bạc, Hà Nội",
        "business_phone": "+84 24 3926 0000",
    });
    seller.post("/api/v1/users/upgrade-to-seller", &business).await?;
    admin.post(&format!("/api/v1/admin/sellers/{seller_id}/verify"), &json!({})).await?;

    heading("The seller offers two bicycles");
    let slug = format!("bicycles-{run}");
    let category =
        admin.post("/api/v1/categories", &json!({ "name": "Bicycles", "slug": slug })).await?;
    let offer = json!({
        "title": "A blue bicycle",
        "description": "Ridden only on Sundays.",
        "price": { "amount": 1_500_000, "currency": "VND" },
        "category_id": category["category_id"],
        "quantity": 2,
    });
    let listing = seller.post("/api/v1/listings", &offer).await?;

    heading("A buyer registers and buys one");
    let (_, buyer) = member(&visitor, &admin, "Bea", &run).await?;
    let wish = json!({
        "items": [{ "listing_id": listing["listing_id"], "quantity": 1 }],
        "delivery_address": { "line1": "3 Tràng Tiền", "district": "Hoàn Kiếm", "city": "Hà Nội" },
        "payment_method": "sandbox",
    });
    let order = buyer.named(&format!("demo-{run}")).waiting().post("/api/v1/orders", &wish).await?;
    let order_id = order["order_id"].as_str().context("an order has an id")?;

    heading("What the order went through");
    buyer.get(&format!("/api/v1/orders/{order_id}/history")).await?;
    buyer.get(&format!("/api/v1/orders/{order_id}/escrow")).await?;
    buyer.get(&format!("/api/v1/shipments?orderId={order_id}")).await?;
    seller.get(&format!("/api/v1/listings/{}", text(&listing, "listing_id"))).await?;
    heading("Every event that this one request led to");
    show_events(&admin, &format!("demo-{run}")).await?;
    heading("What was mailed");
    let sent = admin.quiet_get("/api/v1/dev/outbox?channel=email").await?;
    for mail in sent["data"].as_array().into_iter().flatten() {
        println!("  {:<32} {}", text(mail, "to"), text(mail, "subject"));
    }
    match text(&order, "status") {
        "SHIPPED" => Ok(()),
        other => bail!("the order should have been SHIPPED but is {other}"),
    }
}

/// Registers somebody, proves the address with the token that was mailed, and logs in.
async fn member(
    visitor: &Client,
    admin: &Client,
    name: &str,
    run: &str,
) -> anyhow::Result<(String, Client)> {
    let email = format!("{}.{run}@example.com", name.to_lowercase());
    let password = format!("correct horse {run}");
    let who = json!({
        "email": email, "password": password, "first_name": name, "last_name": "Demo",
    });
    let user = visitor.post("/api/v1/users/register", &who).await?;
    let token = mailed_token(admin, &email).await?;
    visitor.post("/api/v1/users/verify-email", &json!({ "verification_token": token })).await?;
    let login = json!({ "email": email, "password": password });
    let tokens = visitor.post("/api/v1/auth/login", &login).await?;
    Ok((text(&user, "user_id").to_owned(), visitor.with_token(text(&tokens, "access_token"))))
}

/// The longest word of the mail is its token: 48 bytes in base64url.
async fn mailed_token(admin: &Client, email: &str) -> anyhow::Result<String> {
    for _ in 0..LOOKS_MAX {
        let sent = admin.quiet_get("/api/v1/dev/outbox?channel=email").await?;
        let mails = sent["data"].as_array().cloned().unwrap_or_default();
        let body =
            mails.iter().find(|mail| text(mail, "to") == email).map(|mail| text(mail, "text"));
        let part =
            |character: char| !(character.is_ascii_alphanumeric() || "-_".contains(character));
        if let Some(token) = body.and_then(|body| body.split(part).find(|word| word.len() == 64)) {
            return Ok(token.to_owned());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("no mail with a token came for {email}")
}

/// The list of events rests on an index that may be a moment behind the log: waits until it has
/// seen what had happened when this was called.
async fn index_caught_up(admin: &Client) -> anyhow::Result<()> {
    let numbers = |index: &Value, name: &str| -> Vec<u64> {
        let partitions = index["partitions"].as_array().into_iter().flatten();
        partitions.map(|of| of[name].as_u64().unwrap_or_default()).collect()
    };
    let mut heads = None;
    for _ in 0..LOOKS_MAX {
        let index = admin.quiet_get("/api/v1/admin/subscriptions/events-index").await?;
        let heads = heads.get_or_insert_with(|| numbers(&index, "head"));
        if numbers(&index, "position").iter().zip(heads).all(|(reached, head)| reached >= head) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("the index of events does not catch up")
}

async fn show_events(admin: &Client, correlation: &str) -> anyhow::Result<()> {
    let wait = format!("/api/v1/events/await?eventType=saga.completed&correlationId={correlation}");
    admin.quiet_get(&wait).await?;
    index_caught_up(admin).await?;
    let list = format!("/api/v1/events?correlationId={correlation}&limit=200");
    let mut events = Vec::new();
    let mut url = list.clone();
    loop {
        let page = admin.quiet_get(&url).await?;
        events.extend_from_slice(page["data"].as_array().map_or(&[], Vec::as_slice));
        match page["next_cursor"].as_str() {
            Some(cursor) => url = format!("{list}&cursor={cursor}"),
            None => break,
        }
    }
    // Positions of several partitions say nothing about each other; times do, nearly.
    if events.iter().any(|event| event["partition"] != events[0]["partition"]) {
        events.sort_by(|one, other| text(one, "timestamp").cmp(text(other, "timestamp")));
    }
    for event in &events {
        let (kind, aggregate) = (text(event, "event_type"), text(event, "aggregate_type"));
        let time = text(event, "timestamp").get(11..23).unwrap_or_default();
        let place = format!("{}:{}", event["partition"], event["position"]);
        let version = &event["aggregate_version"];
        println!("  {place:<8} {time} {kind:<32} {aggregate} v{version}");
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n{text}\n{}", "─".repeat(text.chars().count()));
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// Says what it asks and what it hears.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
    correlation: Option<String>,
    key: Option<String>,
    wait: bool,
}

/// An answer, also one that says no.
struct Heard {
    status: u16,
    body: Value,
    /// Whether it is the answer to an earlier request with the same key.
    replayed: bool,
}

impl Client {
    fn new(url: &str, token: Option<String>) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        Self {
            http: http_client().build().expect("TLS is set up"),
            url,
            token,
            correlation: None,
            key: None,
            wait: false,
        }
    }

    fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    fn named(&self, correlation: &str) -> Self {
        Self { correlation: Some(correlation.to_owned()), ..self.clone() }
    }

    fn keyed(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    fn waiting(&self) -> Self {
        Self { wait: true, ..self.clone() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(u16, Value)> {
        let Heard { status, body, .. } = self.hear(request).await?;
        if status >= 400 {
            bail!("{status}: {body}");
        }
        Ok((status, body))
    }

    /// Asks without a word of it. Refusals with one of these statuses are answers too.
    async fn asked(&self, path: &str, body: &Value, refusals: &[u16]) -> anyhow::Result<Heard> {
        let heard = self.hear(self.http.post(format!("{}{path}", self.url)).json(body)).await?;
        if heard.status >= 400 && !refusals.contains(&heard.status) {
            bail!("POST {path}: {}: {}", heard.status, heard.body);
        }
        Ok(heard)
    }

    async fn hear(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Heard> {
        let mut request = request;
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(correlation) = &self.correlation {
            request = request.header("X-Correlation-Id", correlation);
        }
        if let Some(key) = &self.key {
            request = request.header("Idempotency-Key", format!("\"{key}\""));
        }
        if self.wait {
            request = request.header("Prefer", "wait=10");
        }
        let response = request.send().await.context("the server does not answer")?;
        let status = response.status().as_u16();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let body = response.text().await.context("the answer broke off")?;
        let body = serde_json::from_str(&body).unwrap_or(Value::Null);
        Ok(Heard { status, body, replayed })
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        println!("→ POST {path} {}", without_secrets(body));
        let (status, answer) =
            self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await?;
        println!("← {status} {}", summary(&answer));
        Ok(answer)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        println!("→ GET {path}");
        let answer = self.quiet_get(path).await?;
        println!("← 200 {}", summary(&answer));
        Ok(answer)
    }

    async fn quiet_get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.send(self.http.get(format!("{}{path}", self.url))).await?.1)
    }
}

fn without_secrets(body: &Value) -> Value {
    let mut body = body.clone();
    for secret in ["password", "verification_token"] {
        if let Some(value) = body.get_mut(secret) {
            *value = Value::from("…");
        }
    }
    body
}

/// What of an answer is worth a line.
fn summary(answer: &Value) -> Value {
    const TOLD: &[&str] = &[
        "user_id",
        "status",
        "roles",
        "email_verified",
        "business_name",
        "verification_status",
        "listing_id",
        "title",
        "available_quantity",
        "reserved_quantity",
        "sold_quantity",
        "order_number",
        "amount",
        "balance",
        "currency",
        "statuses",
        "tracking_number",
        "slug",
        "expires_in",
    ];
    if let Some(items) = answer["data"].as_array().filter(|_| answer.get("statuses").is_none()) {
        return Value::Array(items.iter().map(summary).collect());
    }
    let told = TOLD.iter().filter_map(|name| Some(((*name).to_owned(), answer.get(name)?.clone())));
    Value::Object(told.collect())
}
