//! What the clients of a run do: change prices, buy, cancel, take delivery, register, look, and ask
//! old questions again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Answer, Door, Request, Who};
use super::ledger::{Ack, Ledger, Recorded};
use super::linearizability::{self, Call, Held, Operation};
use crate::domain::ids::{OrderId, ShipmentId};

/// What things cost at first.
pub(super) const PRICE: i64 = 150_000;
/// Listings that everybody changes and nobody buys.
const HOT: usize = 4;
/// Listings that are bought, and how many units each has.
const STOCKED: usize = 6;
const STOCK: u32 = 1_000_000;
/// Listings that are sold out soon.
const SCARCE: usize = 2;
const SCARCE_STOCK: u32 = 25;
/// Listings of each client that only it changes.
const OWN: usize = 8;
/// Old answers that a client remembers.
const REMEMBERED: usize = 200;
/// A client orders with a method that never answers once in so many orders, late once in so many.
const NEVER_EVERY: u64 = 400;
const LATE_EVERY: u64 = 40;

/// What there is to buy and to change.
#[derive(Debug, Default)]
pub(super) struct Market {
    category: String,
    pub hot: Vec<Uuid>,
    stocked: Vec<Uuid>,
    own: Vec<Vec<Uuid>>,
}

/// What every client knows.
pub(super) struct World {
    pub door: Door,
    pub ledger: Ledger,
    pub market: Market,
}

const PASSWORD: &str = "correct horse battery staple";

fn somebody(email: &str) -> Value {
    json!({ "email": email, "password": PASSWORD, "first_name": "Kim", "last_name": "Chaos" })
}

fn id(answer: &Answer, name: &str) -> anyhow::Result<Uuid> {
    Ok(answer.text(name)?.parse()?)
}

/// Registers somebody who is let in at once.
async fn member(door: &Door, who: Who, email: &str) -> anyhow::Result<Uuid> {
    let register = Request::post(Who::Nobody, "/api/v1/users/register", somebody(email));
    let user = door.ask(&register.keyed(email)).await?.expect(201)?;
    let token = json!({ "verification_token": user.text("verification_token")? });
    let verify = Request::post(Who::Nobody, "/api/v1/users/verify-email", token);
    door.ask(&verify).await?.expect(200)?;
    door.log_in(who, email, PASSWORD).await?;
    id(&user, "user_id")
}

fn offer(category: &str, price: i64, quantity: u32) -> Value {
    json!({
        "title": "A blue bicycle",
        "description": "Ridden only on Sundays.",
        "price": { "amount": price, "currency": "VND" },
        "category_id": category,
        "quantity": quantity,
    })
}

/// Makes a seller, a buyer, and what there is to buy.
pub(super) async fn open_market(
    door: &Door,
    ledger: &Ledger,
    clients: usize,
) -> anyhow::Result<Market> {
    let seller = member(door, Who::Seller, "seller@chaos.example").await?;
    member(door, Who::Buyer, "buyer@chaos.example").await?;
    let business = json!({
        "business_name": "Looms and more",
        "business_address": "7 Weavers Lane, Springfield",
        "business_phone": "+84 24 3926 0000",
    });
    let upgrade = Request::post(Who::Seller, "/api/v1/users/upgrade-to-seller", business);
    door.ask(&upgrade).await?.expect(200)?;
    let verify = format!("/api/v1/admin/sellers/{seller}/verify");
    door.ask(&Request::post(Who::Admin, verify, json!({}))).await?.expect(200)?;
    door.log_in(Who::Seller, "seller@chaos.example", PASSWORD).await?;
    let categories = door.ask(&Request::get(Who::Nobody, "/api/v1/categories")).await?;
    let category = categories.body["data"][0]["category_id"].as_str().unwrap_or_default();
    let mut market = Market { category: category.to_owned(), ..Market::default() };
    let list = async |quantity: u32| -> anyhow::Result<Uuid> {
        let body = offer(category, PRICE, quantity);
        let answer = door.ask(&Request::post(Who::Seller, "/api/v1/listings", body)).await?;
        let listing = id(&answer.expect(201)?, "listing_id")?;
        ledger.note(Ack::Listed { listing, price: PRICE });
        Ok(listing)
    };
    for _ in 0..HOT {
        market.hot.push(list(1).await?);
    }
    for _ in 0..STOCKED {
        market.stocked.push(list(STOCK).await?);
    }
    for _ in 0..SCARCE {
        market.stocked.push(list(SCARCE_STOCK).await?);
    }
    for _ in 0..clients {
        let mut own = Vec::new();
        for _ in 0..OWN {
            own.push(list(1_000).await?);
        }
        market.own.push(own);
    }
    Ok(market)
}

/// One client.
pub(super) struct Client {
    number: usize,
    world: Arc<World>,
    random: StdRng,
    count: u64,
    orders_placed: u64,
    orders: VecDeque<Uuid>,
    remembered: VecDeque<(Request, Answer)>,
    /// The version of each hot listing that was seen last.
    versions: Vec<u64>,
}

impl Client {
    pub fn new(world: Arc<World>, number: usize, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9));
        let versions = vec![1; world.market.hot.len()];
        Self {
            number,
            world,
            random,
            count: 0,
            orders_placed: 0,
            orders: VecDeque::new(),
            remembered: VecDeque::new(),
            versions,
        }
    }

    /// Does one thing after the other until the run is over.
    pub async fn run(mut self) {
        while !self.world.ledger.stop.load(Ordering::Relaxed) {
            self.count += 1;
            // None: the run is over. Errors: an answer that makes no sense.
            if let Err(error) = self.act().await {
                let detail = format!("client {}: {error:#}", self.number);
                self.world.ledger.broken("answers make sense", detail);
            }
        }
    }

    async fn act(&mut self) -> anyhow::Result<()> {
        match self.random.random_range(0..1_000) {
            0..330 => self.reprice_own().await,
            330..600 => self.reprice_hot().await,
            600..740 => self.look_at_hot().await,
            740..790 => self.look_at_order().await,
            790..900 => self.order().await,
            900..925 => self.cancel().await,
            925..950 => self.take_delivery().await,
            950..994 => self.ask_again().await,
            994..998 => self.list().await,
            _ => self.register().await,
        }
    }

    fn key(&self) -> String {
        format!("chaos-{}-{}", self.number, self.count)
    }

    /// Sends a change with a key of its own until it is answered, and remembers the answer.
    async fn change(&mut self, request: Request) -> Option<Answer> {
        let request = request.keyed(self.key());
        let answer = self.world.door.insist(&request).await?;
        if answer.status >= 300 {
            self.world.ledger.refused.fetch_add(1, Ordering::Relaxed);
        } else if self.random.random_bool(0.3) {
            self.remembered.push_back((request, answer.clone()));
            if self.remembered.len() > REMEMBERED {
                self.remembered.pop_front();
            }
        }
        Some(answer)
    }

    async fn reprice_own(&mut self) -> anyhow::Result<()> {
        let own = &self.world.market.own[self.number];
        let listing = own[self.random.random_range(0..own.len())];
        let price = self.world.ledger.new_price();
        let Some(answer) = self.change(reprice(listing, price).if_match(None)).await else {
            return Ok(());
        };
        let (version, said) = state_of(&answer.expect(200)?)?;
        anyhow::ensure!(said == price, "{listing} was given the price {price} and has {said}");
        self.world.ledger.note(Ack::Priced { listing, version, price });
        Ok(())
    }

    async fn reprice_hot(&mut self) -> anyhow::Result<()> {
        let index = self.random.random_range(0..self.world.market.hot.len());
        let object = self.world.market.hot[index];
        let price = self.world.ledger.new_price();
        let if_match = self.random.random_bool(0.5).then_some(self.versions[index]);
        let request = reprice(object, price).if_match(if_match);
        let invoked = self.world.door.now();
        let answer = if self.random.random_bool(0.5) {
            self.change(request).await
        } else {
            self.world.door.send(&request).await
        };
        let heard = match &answer {
            Some(answer) if answer.status == 200 => {
                let (version, said) = state_of(answer)?;
                anyhow::ensure!(said == price, "{object} was given {price} and has {said}");
                self.versions[index] = version;
                self.world.ledger.note(Ack::Priced { listing: object, version, price });
                Some(linearizability::Answer::Written { version })
            }
            Some(answer) if answer.status == 412 => {
                self.versions[index] = answer.version.unwrap_or(self.versions[index]);
                Some(linearizability::Answer::Mismatch { current: answer.version })
            }
            Some(answer) if matches!(answer.status, 401 | 429) => return Ok(()),
            Some(answer) if answer.status < 500 => {
                anyhow::bail!("a new price: {} {}", answer.status, answer.body)
            }
            // It may have been done, also by an attempt whose answer was lost.
            Some(_) | None => {
                self.world.ledger.unknown.fetch_add(1, Ordering::Relaxed);
                None
            }
        };
        let call = Call::Write { value: price, expected: if_match };
        self.record(object, call, invoked, heard);
        Ok(())
    }

    fn record(
        &self,
        object: Uuid,
        call: Call,
        invoked: u64,
        heard: Option<linearizability::Answer>,
    ) {
        let door = &self.world.door;
        let answered = heard.map(|answer| (door.now(), answer));
        let client = self.number as u64;
        let operation = Operation { client, call, invoked, answered, over: None };
        self.world.ledger.record(Recorded { object, life: door.life(), operation });
    }

    async fn look_at_hot(&mut self) -> anyhow::Result<()> {
        let index = self.random.random_range(0..self.world.market.hot.len());
        let object = self.world.market.hot[index];
        let invoked = self.world.door.now();
        let request = Request::get(Who::Nobody, format!("/api/v1/listings/{object}"));
        let Some(answer) = self.world.door.send(&request).await else { return Ok(()) };
        if answer.status >= 500 {
            return Ok(());
        }
        let (version, value) = state_of(&answer.expect(200)?)?;
        self.versions[index] = version;
        self.world.ledger.note(Ack::Seen { aggregate: object, version });
        let found = linearizability::Answer::Found(Held { value, version });
        self.record(object, Call::Read, invoked, Some(found));
        Ok(())
    }

    fn some_order(&mut self) -> Option<Uuid> {
        let count = self.orders.len();
        (count > 0).then(|| self.orders[self.random.random_range(0..count)])
    }

    async fn look_at_order(&mut self) -> anyhow::Result<()> {
        let Some(order) = self.some_order() else { return Ok(()) };
        let request = Request::get(Who::Buyer, format!("/api/v1/orders/{order}"));
        let Some(answer) = self.world.door.insist(&request).await else { return Ok(()) };
        let version = answer.expect(200)?.body["version"].as_u64();
        let version = version.ok_or_else(|| anyhow::anyhow!("an order without a version"))?;
        self.world.ledger.note(Ack::Seen { aggregate: order, version });
        Ok(())
    }

    /// How the next order is paid.
    fn method(&mut self) -> &'static str {
        self.orders_placed += 1;
        if self.orders_placed.is_multiple_of(NEVER_EVERY) {
            "test_timeout"
        } else if self.orders_placed.is_multiple_of(LATE_EVERY) {
            "test_late"
        } else if self.random.random_bool(0.15) {
            "test_decline"
        } else {
            "sandbox"
        }
    }

    async fn order(&mut self) -> anyhow::Result<()> {
        let market = &self.world.market;
        // Now and then of a listing whose price changes under the buyer's eyes.
        let from =
            if self.random.random_bool(0.1) { &market.own[self.number] } else { &market.stocked };
        let listing = from[self.random.random_range(0..from.len())];
        let quantity = self.random.random_range(1..=3_i64);
        let flow = if self.random.random_bool(0.1) { "payment_first" } else { "reserve_first" };
        let body = json!({
            "items": [{ "listing_id": listing, "quantity": quantity }],
            "delivery_address": {
                "line1": "3 Larkspur Crescent", "district": "Hoàn Kiếm", "city": "Hà Nội",
            },
            "payment_method": self.method(),
            "payment_flow": flow,
        });
        let request = Request::post(Who::Buyer, "/api/v1/orders", body);
        let Some(answer) = self.change(request).await else { return Ok(()) };
        if answer.status == 409 {
            return Ok(());
        }
        let order = id(&answer.expect(201)?, "order_id")?;
        self.world.ledger.note(Ack::Placed { order, quantity });
        self.orders.push_back(order);
        if self.orders.len() > REMEMBERED {
            self.orders.pop_front();
        }
        // Many a buyer thinks better of it at once.
        if self.random.random_bool(0.15) { self.cancel_order(order).await } else { Ok(()) }
    }

    async fn cancel(&mut self) -> anyhow::Result<()> {
        let Some(order) = self.some_order() else { return Ok(()) };
        self.cancel_order(order).await
    }

    async fn cancel_order(&mut self, order: Uuid) -> anyhow::Result<()> {
        let path = format!("/api/v1/orders/{order}/cancel");
        let request = Request::post(Who::Buyer, path, json!({ "reason": "changed my mind" }));
        let Some(answer) = self.change(request).await else { return Ok(()) };
        match answer.status {
            200 => self.world.ledger.note(Ack::Cancelled { order }),
            409 => {}
            _ => anyhow::bail!("cancelling {order}: {} {}", answer.status, answer.body),
        }
        Ok(())
    }

    async fn take_delivery(&mut self) -> anyhow::Result<()> {
        let Some(order) = self.some_order() else { return Ok(()) };
        let shipment = ShipmentId::of(OrderId(order));
        let path = format!("/api/v1/shipments/{shipment}/deliver");
        let request = Request::post(Who::Buyer, path, json!({}));
        let Some(answer) = self.change(request).await else { return Ok(()) };
        match answer.status {
            200 => self.world.ledger.note(Ack::Delivered { order }),
            404 | 409 => {}
            _ => anyhow::bail!("delivery of {order}: {} {}", answer.status, answer.body),
        }
        Ok(())
    }

    /// The same key and body: the same answer.
    async fn ask_again(&mut self) -> anyhow::Result<()> {
        let count = self.remembered.len();
        if count == 0 {
            return Ok(());
        }
        let (request, first) = self.remembered[self.random.random_range(0..count)].clone();
        let Some(again) = self.world.door.insist(&request).await else { return Ok(()) };
        let same = again.status == first.status
            && again.body == first.body
            && again.version == first.version;
        if same && again.replayed {
            self.world.ledger.repeats.fetch_add(1, Ordering::Relaxed);
        } else {
            let (path, key) = (&request.path, request.key.as_deref().unwrap_or_default());
            let detail = format!("{path} under {key}: first {first:?}, then {again:?}");
            self.world.ledger.broken("the same key gets the same answer", detail);
        }
        Ok(())
    }

    async fn list(&mut self) -> anyhow::Result<()> {
        let price = self.world.ledger.new_price();
        let body = offer(&self.world.market.category, price, 10);
        let request = Request::post(Who::Seller, "/api/v1/listings", body);
        let Some(answer) = self.change(request).await else { return Ok(()) };
        let listing = id(&answer.expect(201)?, "listing_id")?;
        self.world.ledger.note(Ack::Listed { listing, price });
        Ok(())
    }

    async fn register(&mut self) -> anyhow::Result<()> {
        let email = format!("{}@chaos.example", self.key());
        let request = Request::post(Who::Nobody, "/api/v1/users/register", somebody(&email));
        let Some(answer) = self.change(request).await else { return Ok(()) };
        let user = id(&answer.expect(201)?, "user_id")?;
        self.world.ledger.note(Ack::Registered { user });
        Ok(())
    }
}

fn reprice(listing: Uuid, price: i64) -> Request {
    let body = json!({ "price": { "amount": price, "currency": "VND" } });
    Request::patch(Who::Seller, format!("/api/v1/listings/{listing}"), body)
}

/// The version and the price that an answer tells of.
fn state_of(answer: &Answer) -> anyhow::Result<(u64, i64)> {
    let price = answer.body["price"]["amount"].as_i64();
    let state = answer.version.zip(price);
    state.ok_or_else(|| anyhow::anyhow!("no version or price in {}", answer.body))
}
