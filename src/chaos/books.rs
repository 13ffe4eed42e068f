//! What the journal says of orders, money, stock and messages, and what the payment provider says.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use souk_actors::event::StoredEvent;
use uuid::Uuid;

use super::ledger::Ledger;
use crate::domain::ids::{OrderId, PaymentId, RefundId};

/// One order as its events tell it.
#[derive(Debug, Default)]
struct Told {
    placed: usize,
    amount: i64,
    quantity: i64,
    status: String,
    cancelled: bool,
    delivered: bool,
    captured: i64,
    captures: usize,
    refunded: i64,
    funded: i64,
    released: i64,
    given_back: i64,
    held: i64,
    confirmations: usize,
    saga_ends: usize,
}

/// The stock of a listing.
#[derive(Debug, Default)]
struct Stock {
    quantity: i64,
    available: i64,
    reserved: i64,
    sold: i64,
}

/// A message.
#[derive(Debug, Default)]
struct Message {
    template: String,
    user: Option<Uuid>,
    requested: usize,
    attempted: usize,
    sent: usize,
    failed: usize,
    by_mail: bool,
}

/// Everything that is counted.
#[derive(Default)]
pub(super) struct Books {
    orders: HashMap<Uuid, Told>,
    stocks: HashMap<Uuid, Stock>,
    messages: HashMap<Uuid, Message>,
    welcomes: HashMap<Uuid, usize>,
    accounts: HashMap<String, i64>,
}

/// What has come to an end of itself.
const ENDS: [&str; 7] = [
    "order.shipped",
    "order.delivered",
    "order.completed",
    "order.rejected",
    "order.payment_failed",
    "order.cancelled",
    "order.failed",
];
/// What happens to an order that stands as it did.
const SILENT: [&str; 4] =
    ["order.disputed", "order.settlement_due", "order.settlement_postponed", "order.reviewed"];
/// What has led to goods on their way.
const GOOD_ENDS: [&str; 3] = ["order.shipped", "order.delivered", "order.completed"];

impl Books {
    /// Takes an event in.
    pub fn take(&mut self, event: &StoredEvent, data: &Value, ledger: &Ledger) {
        if let Some((kind, _)) = event.event_type.split_once('.') {
            match kind {
                "listing" | "inventory" => self.take_stock(event, data, ledger),
                "notification" => self.take_message(event, data),
                "escrow" => self.book(event, data, ledger),
                _ => {}
            }
        }
        let order = if event.event_type.starts_with("saga.") { "key" } else { "order_id" };
        if let Some(order) = id(data, order) {
            self.orders.entry(order).or_default().take(event, data);
        }
    }

    fn take_stock(&mut self, event: &StoredEvent, data: &Value, ledger: &Ledger) {
        let stock = self.stocks.entry(event.aggregate_id).or_default();
        let quantity = number(data, "quantity");
        match &*event.event_type {
            "listing.created" => {
                (stock.quantity, stock.available) = (quantity, quantity);
            }
            "inventory.reserved" => {
                stock.available -= quantity;
                stock.reserved += quantity;
            }
            "inventory.allocated" => {
                stock.reserved -= quantity;
                stock.sold += quantity;
            }
            "inventory.released" => {
                let from = match data["allocated"].as_bool() {
                    Some(true) => &mut stock.sold,
                    _ => &mut stock.reserved,
                };
                *from -= quantity;
                stock.available += quantity;
            }
            "inventory.restocked" => {
                stock.quantity += quantity;
                stock.available += quantity;
            }
            "inventory.returned" => {
                stock.sold -= quantity;
                stock.available += quantity;
            }
            _ => return,
        }
        let parts = [stock.available, stock.reserved, stock.sold];
        if parts.iter().any(|part| *part < 0) || parts.iter().sum::<i64>() != stock.quantity {
            let detail = format!("{} at {}: {stock:?}", event.aggregate_id, event.position);
            ledger.broken("stock is never oversold", detail);
        }
    }

    fn take_message(&mut self, event: &StoredEvent, data: &Value) {
        let message = self.messages.entry(event.aggregate_id).or_default();
        match &*event.event_type {
            "notification.requested" => {
                message.requested += 1;
                data["template"].as_str().unwrap_or_default().clone_into(&mut message.template);
                message.user = id(data, "user_id");
                message.by_mail = data["channel"] == "email";
                if message.template == "welcome_verification"
                    && let Some(user) = message.user
                {
                    *self.welcomes.entry(user).or_default() += 1;
                }
            }
            "notification.email.attempted" => message.attempted += 1,
            "notification.email.sent" => message.sent += 1,
            "notification.email.failed" => message.failed += 1,
            _ => {}
        }
    }

    /// Every booking takes from one account what it gives to another.
    fn book(&mut self, event: &StoredEvent, data: &Value, ledger: &Ledger) {
        let Some(entries) = data["entries"].as_array() else { return };
        let sum: i64 = entries.iter().map(|entry| number(entry, "amount")).sum();
        if sum != 0 {
            let detail = format!("{} at {}: {sum}", event.event_type, event.position);
            ledger.broken("double entry balances", detail);
        }
        for entry in entries {
            let account = entry["account"].as_str().unwrap_or_default().to_owned();
            *self.accounts.entry(account).or_default() += number(entry, "amount");
        }
    }

    pub fn placed(&self, order: Uuid, quantity: i64) -> bool {
        let told = self.orders.get(&order);
        told.is_some_and(|told| told.placed == 1 && told.quantity == quantity)
    }

    pub fn cancelled(&self, order: Uuid) -> bool {
        self.orders.get(&order).is_some_and(|told| told.cancelled)
    }

    pub fn delivered(&self, order: Uuid) -> bool {
        self.orders.get(&order).is_some_and(|told| told.delivered)
    }

    pub fn welcomed(&self, user: Uuid, ledger: &Ledger) {
        if self.welcomes.get(&user) != Some(&1) {
            let detail = format!("{user} was welcomed {:?} times", self.welcomes.get(&user));
            ledger.broken("a message goes out once", detail);
        }
    }

    /// Orders that have not come to their end, of how many.
    pub fn under_way(&self) -> (usize, usize) {
        let open = self.orders.values().filter(|told| {
            told.placed > 0 && (told.saga_ends == 0 || !ENDS.contains(&told.status.as_str()))
        });
        (open.count(), self.orders.len())
    }

    /// Some of them, for people.
    pub fn some_under_way(&self) -> Vec<String> {
        let open = self.orders.iter().filter(|(_, told)| {
            told.placed > 0 && (told.saga_ends == 0 || !ENDS.contains(&told.status.as_str()))
        });
        open.take(5).map(|(order, told)| format!("{order}: {told:?}")).collect()
    }

    /// What must hold once nothing is under way any more.
    pub fn at_rest(&self, ledger: &Ledger) {
        for (order, told) in &self.orders {
            told.at_rest(*order, ledger);
        }
        for (listing, stock) in &self.stocks {
            if stock.reserved != 0 {
                ledger.broken("stock is given back", format!("{listing}: {stock:?}"));
            }
        }
        for (id, message) in &self.messages {
            let answered = message.sent + message.failed;
            if message.requested != 1 || (message.by_mail && answered != 1) || message.sent > 1 {
                ledger.broken("a message goes out once", format!("{id}: {message:?}"));
            }
        }
        let sum: i64 = self.accounts.values().sum();
        if sum != 0 {
            ledger.broken("double entry balances", format!("all accounts together: {sum}"));
        }
    }

    /// Compares what happened with what the payment provider has on its own record, one call a
    /// line.
    pub fn reconcile(&self, record: &Path, ledger: &Ledger) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(record)?;
        let (mut charged, mut returned) = (HashMap::new(), HashMap::new());
        for line in text.lines() {
            let call: Value = serde_json::from_str(line)?;
            let key: Uuid = call["idempotency_key"].as_str().unwrap_or_default().parse()?;
            let amount = call["amount"]["amount"].as_i64();
            let amount = amount.ok_or_else(|| anyhow::anyhow!("no amount in {line}"))?;
            let charge = call["operation"] == "charge";
            // Nothing is taken where the answer is no.
            let taken = if charge && call["method"] == "test_decline" { 0 } else { amount };
            let calls = if charge { &mut charged } else { &mut returned };
            if *calls.entry(key).or_insert(taken) != taken {
                ledger.broken("one key asks the provider for one thing", line.to_owned());
            }
        }
        for (order, told) in &self.orders {
            let payment = PaymentId::of(OrderId(*order));
            let taken = charged.remove(&payment.0).unwrap_or_default();
            let back = returned.remove(&RefundId::of(payment).0).unwrap_or_default();
            told.reconcile(*order, taken, back, ledger);
        }
        for (key, amount) in charged.into_iter().chain(returned) {
            let detail = format!("the provider was asked for {amount} under {key}");
            ledger.broken("no money moves without an order", detail);
        }
        Ok(())
    }
}

impl Told {
    fn take(&mut self, event: &StoredEvent, data: &Value) {
        match &*event.event_type {
            "order.placed" => {
                self.placed += 1;
                self.amount = number(data, "amount");
                let items = data["items"].as_array().into_iter().flatten();
                self.quantity = items.map(|item| number(item, "quantity")).sum();
            }
            "order.cancelled" => self.cancelled = true,
            "payment.captured" => {
                self.captures += 1;
                self.captured += number(data, "amount");
            }
            "payment.refunded" => self.refunded += number(data, "amount"),
            "escrow.funded" => self.funded += number(data, "amount"),
            "escrow.released" => self.released += number(data, "amount"),
            "escrow.refunded" => self.given_back += number(data, "amount"),
            "inventory.reserved" => self.held += number(data, "quantity"),
            "inventory.released" => self.held -= number(data, "quantity"),
            "shipment.delivered" => self.delivered = true,
            "notification.requested" if data["template"] == "order_confirmation" => {
                self.confirmations += 1;
            }
            "saga.completed" | "saga.failed" => self.saga_ends += 1,
            _ => {}
        }
        if event.event_type.starts_with("order.") && !SILENT.contains(&&*event.event_type) {
            (*event.event_type).clone_into(&mut self.status);
        }
    }

    fn is_good(&self) -> bool {
        GOOD_ENDS.contains(&self.status.as_str())
    }

    fn at_rest(&self, order: Uuid, ledger: &Ledger) {
        let broken = |what| ledger.broken(what, format!("{order}: {self:?}"));
        if self.placed != 1 {
            broken("an order is placed once");
        }
        if self.captures > 1 {
            broken("nobody is charged twice");
        }
        if self.saga_ends != 1 || !ENDS.contains(&self.status.as_str()) {
            broken("every saga ends, once");
        }
        if self.is_good() {
            let money = (self.captured, self.refunded, self.funded, self.given_back);
            if money != (self.amount, 0, self.amount, 0) || self.released > self.funded {
                broken("what is shipped is paid, once");
            }
            if self.held != self.quantity {
                broken("what is shipped has left the stock");
            }
            if self.confirmations != 1 {
                broken("a message goes out once");
            }
        } else {
            if self.captured != self.refunded || self.funded != self.given_back {
                broken("no money is kept for nothing");
            }
            if self.held != 0 {
                broken("stock is given back");
            }
        }
    }

    /// Against the provider: it was asked for so much, and to give so much back.
    fn reconcile(&self, order: Uuid, taken: i64, back: i64, ledger: &Ledger) {
        let kept = if self.is_good() { self.amount } else { 0 };
        // A decline is no charge; a charge that the service does not know of is one all the same.
        if taken - back != kept || (self.captured > 0 && taken != self.captured) {
            let detail = format!("{order}: the provider took {taken}, gave {back} back; {self:?}");
            ledger.broken("the provider's record fits", detail);
        }
    }
}

fn number(data: &Value, name: &str) -> i64 {
    data[name].as_i64().unwrap_or_default()
}

fn id(data: &Value, name: &str) -> Option<Uuid> {
    data[name].as_str()?.parse().ok()
}
