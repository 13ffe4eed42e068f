//! The marketplace that a load is made in: a seller with many listings, buyers, a publisher.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use souk_actors::world::{SystemWorld, World as _};
use uuid::Uuid;

use super::client::Client;
use super::load::{self, Answer, Asked, Judged, Load, Script, Until};
use super::wire::Asker;
use crate::domain::ids::UserId;

/// The password of everybody here.
const PASSWORD: &str = "a seller of many things";
/// How many connections offer listings.
const OFFERERS: usize = 32;
/// How often to look for a mail, and how many times.
const MAIL_EVERY: Duration = Duration::from_millis(50);
const MAIL_LOOKS_MAX: usize = 200;
/// How many units of each listing there are: more than any run sells, and room for more.
const QUANTITY: u32 = 500_000;
/// The event type that is published.
pub(super) const EVENT_TYPE: &str = "bench.thing.counted";

/// A marketplace with one seller and many listings.
#[derive(Clone)]
pub(super) struct Market {
    pub(super) admin: Client,
    pub(super) seller: Client,
    pub(super) seller_id: UserId,
    /// Tells the names of one run from those of another.
    pub(super) run: String,
    pub(super) category: String,
    pub(super) listings: Arc<Vec<Uuid>>,
    /// How many people there are besides the seller.
    people: Arc<AtomicU64>,
}

impl Market {
    pub(super) async fn open(
        admin: Client,
        address: SocketAddr,
        listings: usize,
    ) -> anyhow::Result<Self> {
        let run = SystemWorld::new().new_id().simple().to_string();
        let (seller, user_id) = member(&admin, &seller_address(&run)).await?;
        let seller_id = UserId(user_id.parse().context("a user's id is a UUID")?);
        let business = json!({
            "business_name": "Bench", "business_address": "1 Bench Street",
            "business_phone": "+84 24 3926 0000",
        });
        seller.post("/api/v1/users/upgrade-to-seller", &business).await?;
        admin.post(&format!("/api/v1/admin/sellers/{user_id}/verify"), &json!({})).await?;
        let category = category(&admin, &run).await?;
        let offer = seller.asker().request("POST", "/api/v1/listings", "", &offer(&category));
        let offers = Arc::new(Offers { request: offer, ids: Mutex::default() });
        let count = listings as u64;
        let until = Until::Answered(count);
        let name = Some("offering listings");
        let load = Load { connections: OFFERERS, threads: 1, until, rate: None, name };
        let outcome = load::run(address, load, offers.clone()).await?;
        ensure!(
            outcome.accepted == count,
            "{count} listings were offered and {} accepted, the last refusal was {:?}",
            outcome.accepted,
            outcome.refused_with
        );
        let ids = std::mem::take(&mut *offers.ids.lock().unwrap_or_else(PoisonError::into_inner));
        let (listings, people) = (Arc::new(ids), Arc::default());
        Ok(Self { admin, seller, seller_id, run, category, listings, people })
    }

    /// The same with a new login, also on a server that was started anew: logins end after a while.
    pub(super) async fn at(&self, admin: Client) -> anyhow::Result<Self> {
        let seller = login(&admin, &seller_address(&self.run)).await?;
        Ok(Self { admin, seller, ..self.clone() })
    }

    /// People who buy.
    pub(super) async fn buyers(&self, count: usize) -> anyhow::Result<Vec<Asker>> {
        let mut buyers = Vec::with_capacity(count);
        for _ in 0..count {
            let number = self.people.fetch_add(1, Ordering::Relaxed);
            let email = format!("buyer{number}.{}@bench.example", self.run);
            buyers.push(member(&self.admin, &email).await?.0.asker());
        }
        Ok(buyers)
    }

    /// Somebody who publishes events of [`EVENT_TYPE`], as many as can be.
    pub(super) async fn publisher(&self) -> anyhow::Result<Asker> {
        let schema = json!({
            "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } },
        });
        let path = format!("/api/v1/admin/event-types/{EVENT_TYPE}");
        self.admin.put(&path, &json!({ "version": "1.0", "schema": schema })).await?;
        let wish = json!({
            "name": format!("bench {}", self.run),
            "scopes": ["publisher"],
            "expires_in": 86_400,
            "rate_limit": { "events": 100_000_000, "seconds": 1 },
        });
        let token = self.admin.post("/api/v1/admin/service-tokens", &wish).await?;
        let token = token["token"].as_str().context("a token where it is issued")?;
        Ok(self.admin.with_token(token).asker())
    }

    /// What the listings are called, by their numbers.
    pub(super) fn names(&self) -> Vec<String> {
        self.listings.iter().map(Uuid::to_string).collect()
    }

    /// A body that offers something.
    pub(super) fn offer(&self) -> String {
        offer(&self.category)
    }
}

fn offer(category: &str) -> String {
    json!({
        "title": "A blue bicycle",
        "description": "Ridden only on Sundays.",
        "price": { "amount": 1_500_000, "currency": "VND" },
        "category_id": category,
        "quantity": QUANTITY,
    })
    .to_string()
}

/// The first category there is, or a new one.
async fn category(admin: &Client, run: &str) -> anyhow::Result<String> {
    let there = admin.get("/api/v1/categories").await?;
    let found = match &there["data"][0]["category_id"] {
        Value::Null => {
            let wish = json!({ "name": "Bench", "slug": format!("bench-{run}") });
            admin.post("/api/v1/categories", &wish).await?["category_id"].clone()
        }
        found => found.clone(),
    };
    Ok(found.as_str().context("a category has an id")?.to_owned())
}

/// Registers somebody, proves the address and logs in. Returns the user's id too.
async fn member(admin: &Client, email: &str) -> anyhow::Result<(Client, String)> {
    let who = json!({
        "email": email, "password": PASSWORD, "first_name": "Bench", "last_name": "Member",
    });
    let user = admin.post("/api/v1/users/register", &who).await?;
    let token = match user["verification_token"].as_str() {
        Some(token) => token.to_owned(),
        None => mailed(admin, email).await?,
    };
    admin.post("/api/v1/users/verify-email", &json!({ "verification_token": token })).await?;
    let user_id = user["user_id"].as_str().context("a user has an id")?;
    Ok((login(admin, email).await?, user_id.to_owned()))
}

fn seller_address(run: &str) -> String {
    format!("seller.{run}@bench.example")
}

async fn login(admin: &Client, email: &str) -> anyhow::Result<Client> {
    let login = json!({ "email": email, "password": PASSWORD });
    let tokens = admin.post("/api/v1/auth/login", &login).await?;
    let token = tokens["access_token"].as_str().context("a login has a token")?;
    Ok(admin.with_token(token))
}

/// The token in the mail to somebody: its longest word.
async fn mailed(admin: &Client, email: &str) -> anyhow::Result<String> {
    for _ in 0..MAIL_LOOKS_MAX {
        let sent = admin.get("/api/v1/dev/outbox?channel=email").await.context(
            "people prove their addresses with what is mailed to them, and only a server in \
             development mode shows its mails",
        )?;
        let mails = sent["data"].as_array().into_iter().flatten();
        let part = |letter: char| !(letter.is_ascii_alphanumeric() || "-_".contains(letter));
        let token = mails
            .filter(|mail| mail["to"] == email)
            .filter_map(|mail| mail["text"].as_str())
            .find_map(|text| text.split(part).find(|word| word.len() == 64));
        if let Some(token) = token {
            return Ok(token.to_owned());
        }
        tokio::time::sleep(MAIL_EVERY).await;
    }
    bail!("no mail with a token came for {email}")
}

/// Offers something again and again, and notes what it is called.
struct Offers {
    request: Vec<u8>,
    ids: Mutex<Vec<Uuid>>,
}

impl Script for Offers {
    fn request(&self, _number: u64, out: &mut Vec<u8>) -> Asked {
        out.extend_from_slice(&self.request);
        Asked::default()
    }

    fn answer(&self, _asked: &Asked, answer: &Answer<'_>) -> Judged {
        let id = answer.field("location").and_then(|path| path.rsplit('/').next()?.parse().ok());
        let Some(id) = id.filter(|_| answer.status == 201) else { return Judged::BAD };
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        Judged::GOOD
    }
}
