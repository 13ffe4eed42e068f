//! What is asked in each scenario, and which events have to come of it.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use serde_json::Value;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::load::{Answer, Asked, Judged, Outcome, Script};
use super::market::{EVENT_TYPE, Market};
use super::wire::Asker;

/// Where a number goes: JSON knows no leading zeros, so the first digit is never a 0.
const DIGITS: &str = "0000000000";
/// The first number of ten digits, and how many follow it.
const NUMBER_MIN: u64 = 1_000_000_000;
/// How many orders are remembered, to ask after them later.
const ORDERS_MAX: usize = 2_000;
/// How many things of a kind wait for what is done with them next.
const POOL_MAX: usize = 10_000;
/// How many registrations are under way at a time: each hashes a password.
const REGISTRATIONS_MAX: usize = 2;

/// A kind of request, and the events that each unit of it leads to: type and how many.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// The events.
    pub events: &'static [(&'static str, u64)],
}

/// A scenario's script, ready to run.
pub(super) struct Work {
    pub(super) script: Arc<dyn Script>,
    pub(super) kinds: &'static [Kind],
    /// What requests are called.
    pub(super) asked: &'static str,
    /// What a unit is called.
    pub(super) unit: &'static str,
    /// What the aggregates that are asked by number are called.
    pub(super) names: Vec<String>,
    /// The same changes for whoever makes them without HTTP.
    pub(super) changes: Option<Arc<Changes>>,
    /// What has to be known of the figures.
    pub(super) notes: Vec<String>,
    /// The options that it goes by, by their names.
    pub(super) settings: BTreeMap<String, Value>,
    /// Orders, to ask after them.
    pub(super) orders: Arc<Orders>,
    /// Whether answers carry marks for the journal.
    pub(super) is_marked: bool,
}

impl Work {
    fn new(script: Arc<dyn Script>, kinds: &'static [Kind]) -> Self {
        Self {
            script,
            kinds,
            asked: "requests",
            unit: "requests",
            names: Vec::new(),
            changes: None,
            notes: Vec::new(),
            settings: BTreeMap::new(),
            orders: Arc::default(),
            is_marked: false,
        }
    }

    /// How many events of each type the journal has to have more after this.
    pub(super) fn expected(&self, outcome: &Outcome) -> BTreeMap<&'static str, u64> {
        let mut expected = BTreeMap::new();
        for (kind, done) in self.kinds.iter().zip(&outcome.kinds) {
            for (event_type, count) in kind.events {
                *expected.entry(*event_type).or_default() += count * done.units;
            }
        }
        expected
    }
}

/// Some of the orders that were placed, of the last ones as many as of the first: when there are more than are
/// kept, each has the same chance (algorithm R).
#[derive(Default)]
pub(super) struct Orders(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    orders: Vec<(String, Asker)>,
    offered: u64,
}

impl Orders {
    fn offer(&self, order: &str, buyer: &Asker) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = scattered(kept.offered) % (kept.offered + 1);
        kept.offered += 1;
        let order = (order.to_owned(), buyer.clone());
        if kept.orders.len() < ORDERS_MAX {
            kept.orders.push(order);
        } else if let Some(kept) =
            usize::try_from(place).ok().and_then(|place| kept.orders.get_mut(place))
        {
            *kept = order;
        }
    }

    /// The orders, with who placed each.
    pub(super) fn kept(&self) -> Vec<(String, Asker)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).orders.clone()
    }
}

fn names(kinds: &[Kind]) -> Vec<&'static str> {
    kinds.iter().map(|kind| kind.name).collect()
}

/// A small, fast generator: the same numbers for the same seed, everywhere.
pub(super) fn scattered(seed: u64) -> u64 {
    let mut number = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What an accepted change is to leave in the journal: a number of an aggregate, a version and what
/// was written there.
pub(super) fn mark(id: Uuid, version: u64, number: u64) -> u64 {
    let (high, low) = id.as_u64_pair();
    scattered(scattered(scattered(high ^ low.rotate_left(32)) ^ version) ^ number)
}

/// The number of ten digits in a text.
pub(super) fn number_in(text: &str) -> Option<u64> {
    text.rsplit(|letter: char| !letter.is_ascii_digit()).find(|word| word.len() == 10)?.parse().ok()
}

/// The same request again and again: the echo.
struct Same(Vec<u8>);

const ECHO: &[Kind] = &[Kind { name: "echo", events: &[] }];

impl Script for Same {
    fn request(&self, _number: u64, out: &mut Vec<u8>) -> Asked {
        out.extend_from_slice(&self.0);
        Asked::default()
    }
}

pub(super) fn echo(market: &Market) -> Work {
    let body = r#"{"price":{"amount":1000000,"currency":"VND"}}"#;
    let request = market.seller.asker().request("POST", "/api/v1/dev/echo", "", body);
    Work::new(Arc::new(Same(request)), ECHO)
}

/// Which aggregate is asked next.
#[derive(Debug)]
pub(super) enum Pick {
    /// One after the other.
    InTurn(u64),
    /// The first most, the others less and less.
    Zipf(Vec<f64>),
}

impl Pick {
    /// The share of the one at rank `r` (from 1) is proportional to `1 / r^exponent`.
    #[expect(clippy::cast_precision_loss, reason = "ranks")]
    pub(super) fn zipf(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let below: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        Self::Zipf(below.iter().map(|part| part / sum).collect())
    }

    fn at(&self, number: u64) -> usize {
        match self {
            Self::InTurn(count) => usize::try_from(number % count.max(&1)).unwrap_or(0),
            Self::Zipf(below) => {
                #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
                let point = (scattered(number) >> 11) as f64 / (1_u64 << 53) as f64;
                below.partition_point(|part| *part <= point).min(below.len().saturating_sub(1))
            }
        }
    }
}

/// What a command changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Title,
    Price,
}

const TITLE: Kind = Kind { name: "change the title", events: &[("listing.updated", 1)] };
const PRICE: Kind = Kind {
    name: "change the price",
    events: &[("listing.updated", 1), ("catalog.price.changed", 1)],
};

impl Change {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Title => &[TITLE],
            Self::Price => &[PRICE],
        }
    }

    /// How many events it is.
    pub(super) fn events(self) -> u64 {
        self.kinds()[0].events.iter().map(|(_, count)| count).sum()
    }

    /// A body with room for ten digits.
    fn body(self) -> String {
        match self {
            Self::Title => format!(r#"{{"title":"A bicycle of {DIGITS}"}}"#),
            Self::Price => format!(r#"{{"price":{{"amount":{DIGITS},"currency":"VND"}}}}"#),
        }
    }
}

/// Changes listings, never to what they were.
pub(super) struct Changes {
    change: Change,
    requests: Vec<Vec<u8>>,
    /// Where the digits stand in each.
    at: Vec<usize>,
    ids: Vec<Uuid>,
    pick: Pick,
    next: AtomicU64,
}

impl Changes {
    /// Of these listings. `first` is the first number: one that was not used before.
    pub(super) fn new(asker: &Asker, ids: &[Uuid], change: Change, pick: Pick, first: u64) -> Self {
        let requests: Vec<_> = ids
            .iter()
            .map(|id| {
                let path = format!("/api/v1/listings/{id}");
                asker.request("PATCH", &path, "If-Match: *\r\n", &change.body())
            })
            .collect();
        let find = |text: &Vec<u8>| {
            text.windows(DIGITS.len()).rposition(|window| window == DIGITS.as_bytes())
        };
        let at = requests.iter().filter_map(find).collect();
        Self { change, requests, at, ids: ids.to_vec(), pick, next: AtomicU64::new(first) }
    }

    /// What is asked under this number, with the number to be written as its note.
    pub(super) fn next(&self, number: u64) -> Asked {
        let note = NUMBER_MIN + self.next.fetch_add(1, Ordering::Relaxed) % NUMBER_MIN;
        let aggregate = u32::try_from(self.pick.at(number)).ok();
        Asked { kind: 0, aggregate, changes: true, note }
    }

    /// Which listing that is.
    pub(super) fn listing(&self, asked: &Asked) -> Option<Uuid> {
        self.ids.get(usize::try_from(asked.aggregate?).ok()?).copied()
    }

    /// What it is worth to have led to this version of it.
    pub(super) fn done(&self, asked: &Asked, version: u64) -> Judged {
        let mark = self.listing(asked).map_or(0, |id| mark(id, version, asked.note));
        Judged { version: Some(version), mark, ..Judged::GOOD }
    }
}

impl Script for Changes {
    fn kinds(&self) -> Vec<&'static str> {
        names(self.change.kinds())
    }

    fn aggregates(&self) -> usize {
        self.ids.len()
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        let asked = self.next(number);
        let index = asked.aggregate.and_then(|at| usize::try_from(at).ok()).unwrap_or(0);
        let start = out.len();
        out.extend_from_slice(&self.requests[index]);
        let mut number = asked.note;
        for place in out[start + self.at[index]..][..DIGITS.len()].iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
        }
        asked
    }

    fn answer(&self, asked: &Asked, answer: &Answer<'_>) -> Judged {
        match answer.version() {
            Some(version) if answer.status == 200 => self.done(asked, version),
            _ => Judged::BAD,
        }
    }
}

/// A number that no earlier script of this process has written.
pub(super) fn fresh_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // No run makes so many changes.
    NEXT.fetch_add(20_000_000, Ordering::Relaxed)
}

pub(super) fn changes(market: &Market, change: Change, count: usize, pick: Pick) -> Work {
    let ids = &market.listings[..count.min(market.listings.len())];
    let asker = market.seller.asker();
    let script = Arc::new(Changes::new(&asker, ids, change, pick, fresh_number()));
    Work {
        names: market.names(),
        changes: Some(script.clone()),
        is_marked: true,
        ..Work::new(script, change.kinds())
    }
}

/// Of ten reads six are of a listing, three of the list and one is a search.
struct Reads {
    shown: Vec<Vec<u8>>,
    list: Vec<u8>,
    search: Vec<u8>,
}

const READS: &[Kind] = &[
    Kind { name: "read a listing", events: &[] },
    Kind { name: "read the list", events: &[] },
    Kind { name: "search", events: &[] },
];

impl Script for Reads {
    fn kinds(&self) -> Vec<&'static str> {
        names(READS)
    }

    fn aggregates(&self) -> usize {
        self.shown.len()
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        match number % 10 {
            0 => out.extend_from_slice(&self.search),
            1..4 => out.extend_from_slice(&self.list),
            _ => {
                let index = (scattered(number) % self.shown.len().max(1) as u64) as usize;
                out.extend_from_slice(&self.shown[index]);
                return Asked { aggregate: u32::try_from(index).ok(), ..Asked::default() };
            }
        }
        let kind = if number.is_multiple_of(10) { 2 } else { 1 };
        Asked { kind, ..Asked::default() }
    }

    fn answer(&self, asked: &Asked, answer: &Answer<'_>) -> Judged {
        match answer.status {
            200 if asked.kind > 0 => Judged::GOOD,
            200 if answer.version().is_some() => {
                Judged { version: answer.version(), ..Judged::GOOD }
            }
            _ => Judged::BAD,
        }
    }
}

/// A look at each listing.
pub(super) fn shown(market: &Market) -> Vec<Vec<u8>> {
    let asker = market.seller.asker();
    let paths = market.listings.iter().map(|id| format!("/api/v1/listings/{id}"));
    paths.map(|path| asker.request("GET", &path, "", "")).collect()
}

/// The list, as people read it.
pub(super) const LIST: &str = "/api/v1/listings?limit=20";
const SEARCH: &str = "/api/v1/search?q=bicycle&limit=20";

pub(super) fn reads(market: &Market) -> Work {
    let asker = market.seller.asker();
    let script = Reads {
        shown: shown(market),
        list: asker.request("GET", LIST, "", ""),
        search: asker.request("GET", SEARCH, "", ""),
    };
    Work { names: market.names(), ..Work::new(Arc::new(script), READS) }
}

/// Every event of a purchase that goes well, as far as it matters here.
const BOUGHT: &[(&str, u64)] = &[
    ("order.placed", 1),
    ("inventory.reserved", 1),
    ("order.confirmed", 1),
    ("payment.captured", 1),
    ("order.paid", 1),
    ("order.shipped", 1),
];
const PURCHASES: &[Kind] = &[
    Kind { name: "buy and wait until SHIPPED", events: BOUGHT },
    Kind { name: "buy, answered as PENDING", events: BOUGHT },
];
/// One of so many purchases is not waited for.
const NOT_WAITED_FOR: u64 = 8;

/// Every order is of one unit of one listing, by the buyers in turn.
struct Purchases {
    buyers: Vec<Asker>,
    listings: Arc<Vec<Uuid>>,
    orders: Arc<Orders>,
}

fn wish(listing: Uuid, method: &str) -> String {
    format!(
        r#"{{"items":[{{"listing_id":"{listing}","quantity":1}}],"delivery_address":{{"line1":"3 Bench Street","district":"Bench","city":"Bench"}},"payment_method":"{method}"}}"#
    )
}

const WAITING: &str = "Prefer: wait=10\r\n";

fn buy(buyer: &Asker, listing: Uuid, method: &str, waits: bool, out: &mut Vec<u8>) {
    let more = if waits { WAITING } else { "" };
    buyer.write("POST", "/api/v1/orders", more, wish(listing, method).as_bytes(), out);
}

impl Purchases {
    fn buyer(&self, number: u64) -> &Asker {
        &self.buyers[(number % self.buyers.len() as u64) as usize]
    }
}

impl Script for Purchases {
    fn kinds(&self) -> Vec<&'static str> {
        names(PURCHASES)
    }

    fn aggregates(&self) -> usize {
        self.listings.len()
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        let index = (scattered(number) % self.listings.len() as u64) as usize;
        let waits = !number.is_multiple_of(NOT_WAITED_FOR);
        buy(self.buyer(number), self.listings[index], "sandbox", waits, out);
        let aggregate = u32::try_from(index).ok();
        Asked { kind: usize::from(!waits), aggregate, changes: false, note: number }
    }

    fn answer(&self, asked: &Asked, answer: &Answer<'_>) -> Judged {
        let wanted = if asked.kind == 0 { "SHIPPED" } else { "PENDING" };
        if answer.status != 201 || answer.text("status") != Some(wanted) {
            return Judged::BAD;
        }
        if let Some(order) = answer.text("order_id") {
            self.orders.offer(order, self.buyer(asked.note));
        }
        Judged::GOOD
    }
}

pub(super) async fn purchases(market: &Market, buyers: usize) -> anyhow::Result<Work> {
    let orders = Arc::<Orders>::default();
    let (buyers, listings) = (market.buyers(buyers.max(1)).await?, market.listings.clone());
    let script = Purchases { buyers, listings, orders: orders.clone() };
    let work = Work::new(Arc::new(script), PURCHASES);
    Ok(Work { unit: "purchases", names: market.names(), orders, ..work })
}

/// Batches of events: each of some keys, each key with some events in their order.
struct Publishes {
    publisher: Asker,
    run: String,
    batch: u64,
    keys: u64,
    keys_per_batch: u64,
}

impl Publishes {
    /// The key of an event of a batch.
    fn key(&self, batch: u64, event: u64) -> u64 {
        (batch * self.keys_per_batch + event % self.keys_per_batch) % self.keys
    }

    /// What has to be known of the figures.
    fn notes(&self, rate: Option<f64>) -> Vec<String> {
        let several = (self.keys_per_batch > 1).then(|| {
            let (batch, keys) = (self.batch, self.keys_per_batch);
            format!(
                "a request is a batch of {batch} events under {keys} keys, so that no single \
                 aggregate is asked"
            )
        });
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let due = rate.map(|rate| {
            let events = rate * self.batch as f64;
            format!("the rate counts batches: {events:.1} events a second are due")
        });
        several.into_iter().chain(due).collect()
    }
}

/// How many keys are told apart at most.
const KEYS_TOLD_MAX: u64 = 1_000_000;
const PUBLISHED: &[Kind] = &[Kind { name: "publish a batch", events: &[(EVENT_TYPE, 1)] }];

impl Script for Publishes {
    fn kinds(&self) -> Vec<&'static str> {
        names(PUBLISHED)
    }

    fn aggregates(&self) -> usize {
        // More of them would take more memory than what they tell is worth.
        let single = (self.keys_per_batch == 1 && self.keys <= KEYS_TOLD_MAX).then_some(self.keys);
        single.and_then(|keys| usize::try_from(keys).ok()).unwrap_or(0)
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        let mut body = Vec::with_capacity(usize::try_from(self.batch).unwrap_or(0) * 160);
        body.extend_from_slice(b"[");
        for index in 0..self.batch {
            let (id, comma) = (number * self.batch + index, if index > 0 { "," } else { "" });
            let key = self.key(number, index);
            let run = &self.run;
            // Writing to memory does not fail.
            let _ = write!(
                body,
                r#"{comma}{{"event_type":"{EVENT_TYPE}","source":"/bench/{run}","id":"{id}","key":"thing-{key}","data":{{"n":{id}}}}}"#
            );
        }
        body.push(b']');
        self.publisher.write("POST", "/api/v1/events/batch", "", &body, out);
        let single = (self.keys_per_batch == 1).then(|| self.key(number, 0));
        Asked { aggregate: single.and_then(|key| u32::try_from(key).ok()), ..Asked::default() }
    }

    fn answer(&self, _asked: &Asked, answer: &Answer<'_>) -> Judged {
        if answer.status == 202 {
            Judged { units: self.batch, ..Judged::GOOD }
        } else {
            Judged::BAD
        }
    }
}

pub(super) async fn publishes(
    market: &Market,
    batch: u64,
    keys: u64,
    rate: Option<f64>,
) -> anyhow::Result<Work> {
    let publisher = market.publisher().await?;
    let run = format!("{}-{}", market.run, fresh_number());
    let keys_per_batch = 10.min(batch).min(keys).max(1);
    let script = Publishes { publisher, run, batch, keys: keys.max(1), keys_per_batch };
    let names = (0..script.aggregates()).map(|key| format!("thing-{key}")).collect();
    let notes = script.notes(rate);
    let work = Work::new(Arc::new(script), PUBLISHED);
    Ok(Work { asked: "batches", unit: "events", names, notes, ..work })
}

/// The hour of a marketplace: kinds of request, and how many of each there are in an hour. The
/// other events of the catalogue follow from these.
const HOUR: [(Kind, u64); 15] = [
    (Kind { name: "buy and wait until SHIPPED", events: BOUGHT }, 4_900),
    (
        Kind {
            name: "buy, and the payment is declined",
            events: &[
                ("order.placed", 1),
                ("inventory.reserved", 1),
                ("order.confirmed", 1),
                ("payment.failed", 1),
            ],
        },
        100,
    ),
    (Kind { name: "dispatch", events: &[("shipment.dispatched", 1)] }, 4_200),
    (Kind { name: "deliver", events: &[("shipment.delivered", 1), ("order.delivered", 1)] }, 4_000),
    (Kind { name: "restock", events: &[("inventory.restocked", 1)] }, 1_000),
    (Kind { name: "register", events: &[("user.registered", 1)] }, 500),
    (Kind { name: "prove an address", events: &[("user.email_verified", 1)] }, 450),
    (Kind { name: "change a profile", events: &[("user.profile_updated", 1)] }, 200),
    (Kind { name: "offer a listing", events: &[("listing.created", 1)] }, 50),
    (TITLE, 200),
    (PRICE, 1_000),
    (Kind { name: "search", events: &[] }, 10_000),
    (Kind { name: "ask whether it is alive", events: &[] }, 1_140),
    (Kind { name: "ask for a return", events: &[("order.return_requested", 1)] }, 200),
    (
        Kind {
            name: "take it back and refund",
            events: &[("order.returned", 1), ("payment.refunded", 1)],
        },
        200,
    ),
];
const HOUR_KINDS: &[Kind] = &{
    let mut kinds = [HOUR[0].0; HOUR.len()];
    let mut at = 0;
    while at < HOUR.len() {
        kinds[at] = HOUR[at].0;
        at += 1;
    }
    kinds
};
const BUY: usize = 0;
const DECLINE: usize = 1;
const DISPATCH: usize = 2;
const DELIVER: usize = 3;
const RESTOCK: usize = 4;
const REGISTER: usize = 5;
const PROVE: usize = 6;
const PROFILE: usize = 7;
const OFFER: usize = 8;
const RETITLE: usize = 9;
const REPRICE: usize = 10;
const LOOK_FOR: usize = 11;
const RETURN: usize = 13;
const REFUND: usize = 14;

/// How many requests an hour of the catalogue has.
pub(super) fn requests_an_hour() -> u64 {
    HOUR.iter().map(|(_, count)| count).sum()
}

/// An order on its way, by what names it.
struct Sold {
    order: String,
    shipment: String,
    /// The number of the purchase, which says whose it is.
    number: u64,
}

/// What earlier requests have left to be done.
#[derive(Default)]
struct Pools {
    created: VecDeque<Sold>,
    dispatched: VecDeque<Sold>,
    delivered: VecDeque<Sold>,
    /// Orders with the returns that were asked for.
    returns: VecDeque<(String, String)>,
    tokens: VecDeque<String>,
    /// What requests that are not answered are about, by their number.
    asked: BTreeMap<u64, Sold>,
}

/// An order counts as delivered a moment after its shipment: so many are left alone before one is
/// returned.
const JUST_DELIVERED: usize = 64;

/// A bit of everything, in the proportions of [`HOUR`]. Listings that are bought keep their price,
/// so that no order is refused for it.
struct Mixed {
    seller: Asker,
    admin: Asker,
    purchases: Purchases,
    titles: Changes,
    prices: Changes,
    search: Vec<u8>,
    alive: Vec<u8>,
    offer: Vec<u8>,
    run: String,
    pools: Mutex<Pools>,
    registrations: AtomicUsize,
}

impl Mixed {
    fn pools(&self) -> std::sync::MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kind that a number stands for.
    fn kind(number: u64) -> usize {
        let mut point = scattered(number) % requests_an_hour();
        for (kind, (_, share)) in HOUR.iter().enumerate() {
            if point < *share {
                return kind;
            }
            point -= share;
        }
        LOOK_FOR
    }

    /// Writes a request of a kind, if there is something to ask it of. Tells what it asks.
    fn write(&self, kind: usize, number: u64, out: &mut Vec<u8>) -> Option<Asked> {
        let (buyer, seller) = (self.purchases.buyer(number), &self.seller);
        let listings = &self.purchases.listings;
        let index = (scattered(!number) % listings.len() as u64) as usize;
        let listing = listings[index];
        // Listings are numbered as in the market: those that are changed, then those that are bought.
        let numbered = u32::try_from(self.titles.aggregates() + index).ok();
        let aggregate = numbered.filter(|_| [BUY, DECLINE, RESTOCK].contains(&kind));
        match kind {
            BUY => buy(buyer, listing, "sandbox", true, out),
            DECLINE => buy(buyer, listing, "test_decline", true, out),
            DISPATCH => {
                let sold = self.pools().created.pop_front()?;
                let path = format!("/api/v1/shipments/{}/dispatch", sold.shipment);
                seller.write("POST", &path, "", b"", out);
                self.pools().asked.insert(number, sold);
            }
            DELIVER => {
                let sold = self.pools().dispatched.pop_front()?;
                let path = format!("/api/v1/shipments/{}/deliver", sold.shipment);
                seller.write("POST", &path, "", b"", out);
                self.pools().asked.insert(number, sold);
            }
            RETURN => {
                let mut pools = self.pools();
                if pools.delivered.len() <= JUST_DELIVERED {
                    return None;
                }
                let sold = pools.delivered.pop_front()?;
                let path = format!("/api/v1/orders/{}/returns", sold.order);
                let buyer = self.purchases.buyer(sold.number);
                buyer.write("POST", &path, "", br#"{"reason":"damaged"}"#, out);
                pools.asked.insert(number, sold);
            }
            REFUND => {
                let (order, asked) = self.pools().returns.pop_front()?;
                let path = format!("/api/v1/orders/{order}/returns/{asked}/accept");
                seller.write("POST", &path, "", b"", out);
            }
            RESTOCK => {
                let path = format!("/api/v1/listings/{listing}/restock");
                seller.write("POST", &path, "", br#"{"quantity":1}"#, out);
            }
            REGISTER => {
                if self.registrations.fetch_add(1, Ordering::Relaxed) >= REGISTRATIONS_MAX {
                    self.registrations.fetch_sub(1, Ordering::Relaxed);
                    return None;
                }
                let run = &self.run;
                let body = format!(
                    r#"{{"email":"new{number}.{run}@bench.example","password":"a buyer of many things","first_name":"New","last_name":"Buyer"}}"#
                );
                self.admin.write("POST", "/api/v1/users/register", "", body.as_bytes(), out);
            }
            PROVE => {
                let token = self.pools().tokens.pop_front()?;
                let body = format!(r#"{{"verification_token":"{token}"}}"#);
                self.admin.write("POST", "/api/v1/users/verify-email", "", body.as_bytes(), out);
            }
            PROFILE => {
                let body = format!(r#"{{"first_name":"Bench {number}"}}"#);
                buyer.write("PATCH", "/api/v1/users/me", "If-Match: *\r\n", body.as_bytes(), out);
            }
            OFFER => out.extend_from_slice(&self.offer),
            LOOK_FOR => out.extend_from_slice(&self.search),
            _ => out.extend_from_slice(&self.alive),
        }
        Some(Asked { kind, aggregate, changes: kind == RESTOCK, note: number })
    }
}

impl Script for Mixed {
    fn kinds(&self) -> Vec<&'static str> {
        names(HOUR_KINDS)
    }

    fn aggregates(&self) -> usize {
        self.titles.aggregates() + self.purchases.aggregates()
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        let kind = Self::kind(number);
        let changes = match kind {
            RETITLE => Some(&self.titles),
            REPRICE => Some(&self.prices),
            _ => None,
        };
        if let Some(changes) = changes {
            return Asked { kind, ..changes.request(number, out) };
        }
        self.write(kind, number, out).unwrap_or_else(|| {
            out.extend_from_slice(&self.search);
            Asked { kind: LOOK_FOR, note: number, ..Asked::default() }
        })
    }

    fn answer(&self, asked: &Asked, answer: &Answer<'_>) -> Judged {
        match asked.kind {
            BUY => {
                let judged = self.purchases.answer(&Asked { kind: 0, ..*asked }, answer);
                let names = answer.text("order_id").zip(answer.text("shipment_id"));
                if let Some((order, shipment)) = names.filter(|_| judged.accepted) {
                    let (order, shipment) = (order.to_owned(), shipment.to_owned());
                    let sold = Sold { order, shipment, number: asked.note };
                    keep(&mut self.pools().created, sold);
                }
                judged
            }
            DECLINE => {
                let is_declined = answer.text("status") == Some("PAYMENT_FAILED");
                if answer.status == 201 && is_declined { Judged::GOOD } else { Judged::BAD }
            }
            DISPATCH => {
                let mut pools = self.pools();
                let sold = pools.asked.remove(&asked.note).filter(|_| answer.status == 200);
                let Some(sold) = sold else { return Judged::BAD };
                keep(&mut pools.dispatched, sold);
                Judged::GOOD
            }
            DELIVER => {
                let mut pools = self.pools();
                let sold = pools.asked.remove(&asked.note).filter(|_| answer.status == 200);
                let Some(sold) = sold else { return Judged::BAD };
                keep(&mut pools.delivered, sold);
                Judged::GOOD
            }
            RETURN => {
                let mut pools = self.pools();
                let sold = pools.asked.remove(&asked.note).filter(|_| answer.status == 201);
                let Some((sold, id)) = sold.zip(answer.text("return_id")) else {
                    return Judged::BAD;
                };
                keep(&mut pools.returns, (sold.order, id.to_owned()));
                Judged::GOOD
            }
            REGISTER => {
                self.registrations.fetch_sub(1, Ordering::Relaxed);
                if let Some(token) = answer.text("verification_token") {
                    keep(&mut self.pools().tokens, token.to_owned());
                }
                if answer.status == 201 { Judged::GOOD } else { Judged::BAD }
            }
            RESTOCK if answer.status == 200 => Judged { version: answer.version(), ..Judged::GOOD },
            RETITLE => self.titles.answer(asked, answer),
            REPRICE => self.prices.answer(asked, answer),
            _ if answer.status < 300 => Judged::GOOD,
            _ => Judged::BAD,
        }
    }
}

fn keep<T>(pool: &mut VecDeque<T>, what: T) {
    if pool.len() < POOL_MAX {
        pool.push_back(what);
    }
}

pub(super) async fn mixed(market: &Market, buyers: usize) -> anyhow::Result<Work> {
    let all = &market.listings;
    anyhow::ensure!(all.len() >= 2, "mixed needs two listings or more (--listings)");
    let (repriced, bought) = all.split_at(all.len() / 2);
    let seller = market.seller.asker();
    let in_turn = || Pick::InTurn(repriced.len() as u64);
    let change = |change| Changes::new(&seller, repriced, change, in_turn(), fresh_number());
    let orders = Arc::<Orders>::default();
    let buyers = market.buyers(buyers.max(1)).await?;
    let script = Mixed {
        titles: change(Change::Title),
        prices: change(Change::Price),
        purchases: Purchases {
            buyers,
            listings: Arc::new(bought.to_vec()),
            orders: orders.clone(),
        },
        search: seller.request("GET", SEARCH, "", ""),
        alive: seller.request("GET", "/livez", "", ""),
        offer: seller.request("POST", "/api/v1/listings", "", &market.offer()),
        run: format!("{}.{}", market.run, fresh_number()),
        admin: market.admin.asker(),
        pools: Mutex::default(),
        registrations: AtomicUsize::new(0),
        seller,
    };
    let work = Work::new(Arc::new(script), HOUR_KINDS);
    Ok(Work { names: market.names(), orders, is_marked: true, ..work })
}

/// When an order had its first status, and the milliseconds from then to `SHIPPED`, as its history tells them.
pub(super) fn until_shipped(history: &Value) -> anyhow::Result<(Timestamp, i64)> {
    let statuses = history["data"].as_array().context("a history has statuses")?;
    let at = |status: &str| {
        let found = statuses.iter().find(|one| one["status"] == status);
        found.and_then(|one| Timestamp::parse(one["at"].as_str()?))
    };
    let (placed, shipped) = at("PENDING").zip(at("SHIPPED")).context("an order is SHIPPED")?;
    Ok((placed, shipped.millis() - placed.millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_all_of_a_run_are_asked_after() {
        let orders = Orders::default();
        let many = 20_000;
        (0..many).for_each(|number| orders.offer(&number.to_string(), &asker()));
        let kept: Vec<u32> =
            orders.kept().iter().map(|(order, _)| order.parse().unwrap()).collect();
        assert_eq!(kept.len(), ORDERS_MAX);
        for quarter in 0..4 {
            let of = (quarter * many / 4)..((quarter + 1) * many / 4);
            let found = kept.iter().filter(|order| of.contains(*order)).count();
            assert!((400..=600).contains(&found), "{found} of quarter {quarter}");
        }
    }

    #[test]
    fn zipf_prefers_the_first_as_its_exponent_says() {
        let pick = Pick::zipf(100, 1.0);
        let mut counts = [0_u32; 100];
        (0..100_000).for_each(|number| counts[pick.at(number)] += 1);
        // The first of a hundred has 1 / (1 + 1/2 + … + 1/100), which is 19 %, twice the second's.
        assert!((18_500..=20_100).contains(&counts[0]), "{}", counts[0]);
        assert!((9_000..=10_300).contains(&counts[1]), "{}", counts[1]);
        let even = Pick::zipf(4, 0.0);
        assert_eq!((0..1_000).map(|number| even.at(number)).max(), Some(3));
        assert_eq!(Pick::InTurn(3).at(7), 1);
    }

    #[test]
    fn an_hour_is_mixed_in_its_proportions() {
        let mut counts = [0_u64; HOUR.len()];
        let requests = requests_an_hour();
        (0..requests).for_each(|number| counts[Mixed::kind(number)] += 1);
        for ((kind, share), count) in HOUR.iter().zip(counts) {
            let (low, high) = (share * 8 / 10 - 20, share * 12 / 10 + 20);
            assert!((low..=high).contains(&count), "{}: {count} of {share}", kind.name);
        }
    }

    fn asker() -> Asker {
        Asker { host: "here".into(), token: "t".into() }
    }

    fn listings(count: u128) -> Vec<Uuid> {
        (1..=count).map(Uuid::from_u128).collect()
    }

    fn mixture() -> Mixed {
        let all = listings(5);
        let (changed, bought) = all.split_at(2);
        let change =
            |change| Changes::new(&asker(), changed, change, Pick::InTurn(2), fresh_number());
        Mixed {
            seller: asker(),
            admin: asker(),
            purchases: Purchases {
                buyers: vec![asker()],
                listings: Arc::new(bought.to_vec()),
                orders: Arc::default(),
            },
            titles: change(Change::Title),
            prices: change(Change::Price),
            search: b"search".to_vec(),
            alive: b"alive".to_vec(),
            offer: b"offer".to_vec(),
            run: "run".into(),
            pools: Mutex::default(),
            registrations: AtomicUsize::new(0),
        }
    }

    #[test]
    fn a_mixture_numbers_the_listings_that_its_requests_are_about() {
        let (mixed, all) = (mixture(), listings(5));
        assert_eq!(mixed.aggregates(), all.len());
        let mut found = [0_u64; HOUR.len()];
        for number in 0..20_000 {
            let mut text = Vec::new();
            let asked = mixed.request(number, &mut text);
            let text = String::from_utf8(text).unwrap();
            let about = [BUY, DECLINE, RESTOCK, RETITLE, REPRICE].contains(&asked.kind);
            assert_eq!(asked.aggregate.is_some(), about, "{text}");
            if let Some(aggregate) = asked.aggregate {
                assert!(text.contains(&all[aggregate as usize].to_string()), "{aggregate}: {text}");
            }
            assert_eq!(asked.changes, [RESTOCK, RETITLE, REPRICE].contains(&asked.kind));
            found[asked.kind] += 1;
        }
        assert!([BUY, DECLINE, RESTOCK, RETITLE, REPRICE].iter().all(|&kind| found[kind] > 0));
    }

    #[test]
    fn a_mixture_is_told_versions_by_all_that_raises_them() {
        let mixed = mixture();
        let answer =
            Answer { status: 200, head: b"HTTP/1.1 200 OK\r\nETag: \"7\"\r\n\r\n", body: b"" };
        for kind in [RESTOCK, RETITLE, REPRICE] {
            let asked = Asked { kind, aggregate: Some(0), changes: true, note: NUMBER_MIN };
            let judged = mixed.answer(&asked, &answer);
            assert!(judged.accepted && judged.version == Some(7), "{kind}: {judged:?}");
        }
    }

    #[test]
    fn a_batch_of_one_key_asks_one_aggregate_and_one_of_several_none() {
        let publishes = |batch: u64, keys: u64, keys_per_batch: u64| {
            let (publisher, run) = (asker(), "run".to_owned());
            Publishes { publisher, run, batch, keys, keys_per_batch }
        };
        let single = publishes(3, 4, 1);
        let mut text = Vec::new();
        let asked = single.request(6, &mut text);
        assert_eq!((single.aggregates(), asked.aggregate), (4, Some(2)));
        assert_eq!(String::from_utf8(text).unwrap().matches("thing-2").count(), 3);
        assert!(single.notes(None).is_empty());
        let several = publishes(100, 40, 10);
        let asked = several.request(6, &mut Vec::new());
        assert_eq!((several.aggregates(), asked.aggregate), (0, None));
        let notes = several.notes(Some(50.0));
        assert!(notes[0].contains("100 events under 10 keys"), "{notes:?}");
        assert!(notes[1].contains("5000.0 events a second"), "{notes:?}");
    }

    #[test]
    fn marks_tell_apart_what_was_written_where() {
        let id = Uuid::from_u128(7);
        let marks = [mark(id, 1, 5), mark(id, 2, 5), mark(id, 1, 6), mark(Uuid::nil(), 1, 5)];
        let different: std::collections::BTreeSet<_> = marks.into_iter().collect();
        assert_eq!(different.len(), 4);
        assert_eq!(number_in("A bicycle of 1000000007"), Some(1_000_000_007));
        assert_eq!(number_in("A blue bicycle"), None);
    }
}
