//! Reads the journal past the service, from where it was read last, and checks what must hold of
//! every event, every aggregate and everything that was acknowledged.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::Value;
use souk_actors::event::StoredEvent;
use souk_actors::journal::{Head, LetterFilter, Store, chain, partition_of};
use souk_actors::saga::Saga;
use uuid::Uuid;

use super::books::Books;
use super::ledger::{Ack, Ledger};
use super::receiver::{TOPICS, Versions};
use super::views::Views;
use crate::app::contexts::contexts;
use crate::domain::order_saga::OrderSaga;

/// Events read at a time.
const PAGE: usize = 2_000;

/// What may happen again to an aggregate because of the same event: every try to send a mail or a
/// message counts, and a saga may learn of several things.
const REPEATABLE: [&str; 13] = [
    "notification.email.attempted",
    "notification.email.deferred",
    "notification.email.outcome_unknown",
    "saga.advanced",
    "saga.completed",
    "saga.failed",
    "webhook.delivery.deferred",
    "webhook.delivery.failed",
    "webhook.delivery.skipped",
    "webhook.delivery.started",
    "webhook.delivery.succeeded",
    "webhook.endpoint_failed",
    "webhook.endpoint_recovered",
];

/// What is known of the journal so far.
pub(super) struct Audit {
    heads: Vec<Head>,
    versions: HashMap<(Arc<str>, Uuid), (i64, u64)>,
    events: HashSet<Uuid>,
    effects: HashSet<u64>,
    /// Of listings: the price since a version.
    prices: HashMap<(Uuid, u64), i64>,
    /// Every price that a listing was given: each is given once.
    given: HashSet<i64>,
    registered: HashSet<Uuid>,
    /// What the receiver of webhooks is owed.
    hooked: Versions,
    pub books: Books,
    pub views: Views,
}

impl Audit {
    /// Of a journal that has not been read.
    pub fn new(partitions: u16) -> Self {
        Self {
            heads: vec![Head::default(); usize::from(partitions)],
            versions: HashMap::new(),
            events: HashSet::new(),
            effects: HashSet::new(),
            prices: HashMap::new(),
            given: HashSet::new(),
            registered: HashSet::new(),
            hooked: Versions::new(),
            books: Books::default(),
            views: Views::default(),
        }
    }

    /// How many events there are.
    pub fn count(&self) -> u64 {
        self.heads.iter().map(|head| head.position).sum()
    }

    /// What the receiver of webhooks must get.
    pub fn hooked(&self) -> &Versions {
        &self.hooked
    }

    /// How far each partition has been read.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Reads everything that is new.
    pub async fn read(&mut self, store: &dyn Store, ledger: &Ledger) -> anyhow::Result<()> {
        for partition in 0..store.partitions() {
            self.still_there(store, partition, ledger).await?;
            loop {
                let after = self.heads[usize::from(partition)].position;
                let page = store.read_from(partition, after, PAGE).await?;
                let full = page.len() == PAGE;
                for event in page {
                    self.take(&event, store.partitions(), ledger);
                }
                if !full {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What was read last time is there as it was.
    async fn still_there(
        &self,
        store: &dyn Store,
        partition: u16,
        ledger: &Ledger,
    ) -> anyhow::Result<()> {
        let known = self.heads[usize::from(partition)];
        if known.position == 0 {
            return Ok(());
        }
        let last = store.read_from(partition, known.position - 1, 1).await?;
        let hash = last.first().map(|event| event.hash);
        if hash != Some(known.hash) {
            let detail = format!("{partition}:{} is not what it was", known.position);
            ledger.broken("what was committed stays", detail);
        }
        Ok(())
    }

    fn take(&mut self, event: &Arc<StoredEvent>, partitions: u16, ledger: &Ledger) {
        let at = format!("{}:{} {}", event.partition, event.position, event.event_type);
        let broken = |what, detail: String| ledger.broken(what, format!("{at}: {detail}"));
        let head = &mut self.heads[usize::from(event.partition)];
        if event.position != head.position + 1 {
            broken("positions are gapless", format!("follows {}", head.position));
        }
        if chain::link(&head.hash, event) != event.hash {
            broken("the chain is whole", "the hash does not fit".to_owned());
        }
        *head = Head { position: event.position, hash: event.hash };
        if partition_of(event.aggregate_id, partitions) != event.partition {
            broken("an aggregate has one partition", event.aggregate_id.to_string());
        }
        if !self.events.insert(event.event_id) {
            broken("an event is stored once", event.event_id.to_string());
        }
        let key = (event.aggregate_type.clone(), event.aggregate_id);
        let known = self.versions.entry(key).or_insert((event.stream, 0));
        if event.aggregate_version != known.1 + 1 {
            let detail = format!("version {} follows {}", event.aggregate_version, known.1);
            broken("versions are gapless", detail);
        }
        if event.stream != known.0 {
            broken("an aggregate has one stream", format!("{} and {}", known.0, event.stream));
        }
        *known = (event.stream, event.aggregate_version);
        self.once(event, ledger);
        if TOPICS.contains(&&*event.event_type) {
            let versions = self.hooked.entry(event.aggregate_id).or_default();
            versions.insert(event.aggregate_version);
        }
        match serde_json::from_str(&event.data) {
            Ok(data) => {
                self.content(event, &data, ledger);
                self.books.take(event, &data, ledger);
                self.views.take(event, ledger);
            }
            Err(error) => broken("data is JSON", error.to_string()),
        }
    }

    /// One cause has one effect of a kind on one aggregate.
    fn once(&mut self, event: &StoredEvent, ledger: &Ledger) {
        if REPEATABLE.contains(&&*event.event_type) {
            return;
        }
        let mut hasher = DefaultHasher::new();
        (&*event.causation_id, event.aggregate_id, &*event.event_type).hash(&mut hasher);
        if !self.effects.insert(hasher.finish()) {
            let detail = format!(
                "{} of {} {} twice because of {}",
                event.event_type, event.aggregate_type, event.aggregate_id, event.causation_id
            );
            ledger.broken("a command has effect once", detail);
        }
    }

    fn content(&mut self, event: &StoredEvent, data: &Value, ledger: &Ledger) {
        let mut price = |name: &str, given: &mut HashSet<i64>| {
            let price = data[name].as_i64().unwrap_or_default();
            self.prices.insert((event.aggregate_id, event.aggregate_version), price);
            given.insert(price)
        };
        match &*event.event_type {
            "listing.created" => {
                price("price", &mut self.given);
            }
            "catalog.price.changed" if !price("new_price", &mut self.given) => {
                let detail = format!("{} got the price {} twice", event.aggregate_id, data);
                ledger.broken("a command has effect once", detail);
            }
            "user.registered" => {
                self.registered.insert(event.aggregate_id);
            }
            _ => {}
        }
    }

    /// Whether the journal has what was acknowledged.
    pub fn confirm(&self, acknowledged: &[Ack], ledger: &Ledger) {
        let lost = |ack: &Ack| ledger.broken("nothing acknowledged is lost", format!("{ack:?}"));
        for ack in acknowledged {
            let is_there = match *ack {
                Ack::Listed { listing, price } => self.prices.get(&(listing, 1)) == Some(&price),
                Ack::Priced { listing, version, price } => {
                    self.prices.get(&(listing, version)) == Some(&price)
                }
                Ack::Seen { aggregate, version } => self.has(aggregate, version),
                Ack::Placed { order, quantity } => self.books.placed(order, quantity),
                Ack::Cancelled { order } => self.books.cancelled(order),
                Ack::Delivered { order } => self.books.delivered(order),
                Ack::Registered { user } => self.registered.contains(&user),
            };
            if !is_there {
                lost(ack);
            }
        }
    }

    fn has(&self, aggregate: Uuid, version: u64) -> bool {
        ["listing", "order"].into_iter().any(|kind| {
            let known = self.versions.get(&(Arc::from(kind), aggregate));
            known.is_some_and(|(_, newest)| *newest >= version)
        })
    }

    /// Whether there is nothing in the journal that was not read.
    pub async fn has_all(&self, store: &dyn Store) -> anyhow::Result<bool> {
        for (partition, known) in (0..store.partitions()).zip(&self.heads) {
            if store.head(partition).await? != *known {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What must hold once nothing is under way any more.
    pub async fn at_rest(&self, store: &dyn Store, ledger: &Ledger) -> anyhow::Result<()> {
        self.books.at_rest(ledger);
        for user in &self.registered {
            self.books.welcomed(*user, ledger);
        }
        for partition in 0..store.partitions() {
            let head = store.head(partition).await?;
            if head != self.heads[usize::from(partition)] {
                let detail = format!("{partition}: events came after the end");
                ledger.broken("positions are gapless", detail);
            }
            let filter = LetterFilter::default();
            for letter in store.letters(partition, &filter, PAGE).await? {
                let detail =
                    format!("{} {}: {}", letter.subscription, letter.event_id, letter.error);
                ledger.broken("nothing is left as a dead letter", detail);
            }
            for quarantine in store.quarantined(partition).await? {
                let detail = format!("{} {}", quarantine.aggregate_type, quarantine.aggregate_id);
                ledger.broken("no aggregate is quarantined", detail);
            }
            for subscription in subscriptions() {
                for checkpoint in store.checkpoints(&subscription, partition).await? {
                    if checkpoint.position > head.position {
                        let detail = format!("{subscription}: {}", checkpoint.position);
                        ledger.broken("no checkpoint is ahead of the journal", detail);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The names of all subscriptions.
fn subscriptions() -> Vec<String> {
    let saga = <OrderSaga as Saga>::NAME;
    let listed = contexts().into_iter().flat_map(|context| context.subscribes);
    let names = listed.map(|subscription| subscription.name).filter(|name| *name != saga);
    let driven = ["facts", "commands", "retries"].map(|part| format!("{saga}-{part}"));
    names.map(str::to_owned).chain(driven).collect()
}
