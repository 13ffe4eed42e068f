//! Escrow: the buyer's money between the payment and the seller.
//!
//! A ledger with double entry. Every event that moves money lists its entries, whose sum is 0; the
//! accounts are `gateway:<method>`, `escrow:<order>`, `seller:<user>` and `market`. The balance of the
//! escrow is never below 0. Where the market takes something off an order, its account adds as much to
//! what the buyer pays, and of every part that goes back to the buyer it gets its share back. What goes back after the seller has got the money comes from the seller's
//! account, which may then be below 0: the next sales fill it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::{EscrowId, OrderId, RefundId, UserId};
use super::money::{Currency, Money};
use super::order::PaymentMethod;
use super::rejection::rejections;

/// How an escrow stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EscrowStatus {
    /// Waits for the money.
    Open,
    /// Has the money.
    Funded,
    /// The seller has the money.
    Released,
    /// The buyer has the money, or never parted with it.
    Refunded,
}

/// What to do with an escrow.
#[derive(Debug, Clone, PartialEq)]
pub enum EscrowCommand {
    /// Be ready for an order's money.
    Open {
        /// The escrow.
        escrow_id: EscrowId,
        /// The order.
        order_id: OrderId,
        /// Who buys.
        buyer_id: UserId,
        /// Who sells.
        seller_id: UserId,
        /// How much it will be.
        money: Money,
        /// How much the market adds to that, in minor units.
        subsidy: i64,
        /// By which means it comes.
        method: PaymentMethod,
        /// When.
        now: Timestamp,
    },
    /// The money came.
    Fund {
        /// When.
        now: Timestamp,
    },
    /// The seller gets the money.
    Release {
        /// Who asks: the buyer, an administrator or the marketplace.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// A part of the money goes back, once per refund: goods came back, or a dispute was decided so.
    RefundPart {
        /// The refund.
        refund_id: RefundId,
        /// How much, in minor units.
        amount: i64,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// The order is off: the money goes back, or never comes, even if the escrow is not open yet.
    Refund {
        /// The escrow.
        escrow_id: EscrowId,
        /// The order.
        order_id: OrderId,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
}

impl Command for EscrowCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "OpenEscrow",
            Self::Fund { .. } => "FundEscrow",
            Self::Release { .. } => "ReleaseEscrow",
            Self::RefundPart { .. } => "RefundEscrowPart",
            Self::Refund { .. } => "RefundEscrow",
        }
    }
}

souk_actors::events! {
    /// What happens to escrows.
    pub enum EscrowEvent in "escrow" as "payment-service" {
        /// It waits for an order's money.
        Created(EscrowCreated) = "escrow.created", "EscrowCreated", 1.1, [];
        /// The money came.
        Funded(EscrowFunded) = "escrow.funded", "EscrowFunded", 1.0, [];
        /// The seller got the money.
        Released(EscrowReleased) = "escrow.released", "EscrowReleased", 1.0, [];
        /// The money went back, or will never come.
        Refunded(EscrowRefunded) = "escrow.refunded", "EscrowRefunded", 1.1, [];
        /// The order was given up before the escrow was opened: it never will be.
        Barred(EscrowBarred) = "escrow.barred", "EscrowBarred", 1.0, [];
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// The account.
    pub account: String,
    /// What it gains (or loses, below 0), in minor units.
    pub amount: i64,
}

/// It waits for an order's money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EscrowCreated {
    /// The escrow.
    pub escrow_id: EscrowId,
    /// The order.
    pub order_id: OrderId,
    /// Who buys.
    pub buyer_id: UserId,
    /// Who sells.
    pub seller_id: UserId,
    /// How much it will be, in minor units.
    pub amount: i64,
    /// How much the market adds to that, in minor units, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsidy: Option<i64>,
    /// Of what.
    pub currency: Currency,
    /// By which means it comes.
    pub method: PaymentMethod,
    /// When.
    pub created_at: Timestamp,
}

/// The money came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EscrowFunded {
    /// The escrow.
    pub escrow_id: EscrowId,
    /// The order.
    pub order_id: OrderId,
    /// How much the buyer paid, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// From the gateway, and from the market if it adds something, to the escrow.
    pub entries: Vec<Entry>,
    /// When.
    pub funded_at: Timestamp,
}

/// The seller got the money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EscrowReleased {
    /// The escrow.
    pub escrow_id: EscrowId,
    /// The order.
    pub order_id: OrderId,
    /// Who got it.
    pub seller_id: UserId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// From the escrow to the seller.
    pub entries: Vec<Entry>,
    /// When.
    pub released_at: Timestamp,
}

/// The money went back, or will never come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EscrowRefunded {
    /// The escrow.
    pub escrow_id: EscrowId,
    /// The order.
    pub order_id: OrderId,
    /// How much the buyer gets, in minor units; 0 when none had come.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// From the escrow, or from the seller who has the money already, to the gateway, and to the market
    /// what it had added to this; none when no money had come.
    pub entries: Vec<Entry>,
    /// Which part of the money it is; none: all that was in it, and the escrow is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_id: Option<RefundId>,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub refunded_at: Timestamp,
}

/// The order was given up before the escrow was opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EscrowBarred {
    /// The escrow.
    pub escrow_id: EscrowId,
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub barred_at: Timestamp,
}

rejections! {
    /// Why an escrow refuses a command.
    pub enum EscrowRejection {
        /// Never opened.
        NotFound = "not_found", "there is no such escrow";
        /// The money has gone to one side or the other.
        Closed = "escrow_closed", "this escrow is closed";
        /// There is nothing to release yet.
        NotFunded = "escrow_not_funded", "the money has not come yet";
        /// Not theirs to ask.
        Forbidden = "forbidden", "only the buyer can release the money";
        /// More than there is.
        RefundTooLarge {
            /// What is left, in minor units.
            left: i64,
        } = "refund_too_large", "no more can go back than is left";
    }
}

/// An escrow, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Escrow {
    /// Everything about it, once opened.
    pub details: Option<EscrowDetails>,
    /// Whether it never may be opened.
    pub barred: bool,
}

/// What is known of an escrow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EscrowDetails {
    /// The escrow.
    pub escrow_id: EscrowId,
    /// The order.
    pub order_id: OrderId,
    /// Who buys.
    pub buyer_id: UserId,
    /// Who sells.
    pub seller_id: UserId,
    /// How it stands.
    pub status: EscrowStatus,
    /// How much the buyer pays or would have paid.
    pub money: Money,
    /// How much the market adds to that, in minor units.
    #[serde(default)]
    pub subsidy: i64,
    /// How much is in it now, in minor units.
    pub balance: i64,
    /// By which means it comes.
    pub method: PaymentMethod,
    /// Everything that was booked, in order.
    pub entries: Vec<Entry>,
    /// The parts that went back.
    pub parts: Vec<RefundPart>,
}

/// A part of the money that went back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefundPart {
    /// The refund.
    pub refund_id: RefundId,
    /// How much, in minor units.
    pub amount: i64,
}

type Decision = Result<Vec<EscrowEvent>, EscrowRejection>;

impl Aggregate for Escrow {
    const TYPE: &'static str = "escrow";
    const SNAPSHOT_VERSION: u32 = 2;
    type Command = EscrowCommand;
    type Event = EscrowEvent;
    type Rejection = EscrowRejection;

    fn decide(&self, command: &EscrowCommand) -> Decision {
        match command {
            EscrowCommand::Open { .. } => self.open(command),
            EscrowCommand::Fund { now } => self.details()?.fund(*now),
            EscrowCommand::Release { caller, now } => self.details()?.release(caller, *now),
            EscrowCommand::RefundPart { refund_id, amount, reason, now } => {
                self.details()?.refund_part(*refund_id, *amount, reason, *now)
            }
            EscrowCommand::Refund { escrow_id, order_id, reason, now } => match &self.details {
                Some(details) => details.refund(reason, *now),
                None if self.barred => Ok(Vec::new()),
                None => Ok(vec![EscrowEvent::Barred(EscrowBarred {
                    escrow_id: *escrow_id,
                    order_id: *order_id,
                    reason: reason.clone(),
                    barred_at: *now,
                })]),
            },
        }
    }

    fn apply(&mut self, event: &EscrowEvent) {
        match (event, &mut self.details) {
            (EscrowEvent::Created(event), details) => *details = Some(EscrowDetails::new(event)),
            (EscrowEvent::Barred(_), _) => self.barred = true,
            (EscrowEvent::Funded(event), Some(details)) => {
                details.book(EscrowStatus::Funded, &event.entries);
            }
            (EscrowEvent::Released(event), Some(details)) => {
                details.book(EscrowStatus::Released, &event.entries);
            }
            (EscrowEvent::Refunded(event), Some(details)) => {
                let status = match event.refund_id {
                    None => EscrowStatus::Refunded,
                    Some(refund_id) => details.without(refund_id, event.amount),
                };
                details.book(status, &event.entries);
            }
            (_, None) => {}
        }
    }
}

impl Escrow {
    fn details(&self) -> Result<&EscrowDetails, EscrowRejection> {
        match &self.details {
            Some(details) => Ok(details),
            None if self.barred => Err(EscrowRejection::Closed),
            None => Err(EscrowRejection::NotFound),
        }
    }

    fn open(&self, command: &EscrowCommand) -> Decision {
        let EscrowCommand::Open {
            escrow_id,
            order_id,
            buyer_id,
            seller_id,
            money,
            subsidy,
            method,
            now,
        } = command
        else {
            return Ok(Vec::new());
        };
        if self.barred {
            return Err(EscrowRejection::Closed);
        }
        if self.details.is_some() {
            return Ok(Vec::new());
        }
        Ok(vec![EscrowEvent::Created(EscrowCreated {
            escrow_id: *escrow_id,
            order_id: *order_id,
            buyer_id: *buyer_id,
            seller_id: *seller_id,
            amount: money.amount,
            subsidy: (*subsidy > 0).then_some(*subsidy),
            currency: money.currency,
            method: method.clone(),
            created_at: *now,
        })])
    }
}

impl EscrowDetails {
    fn new(event: &EscrowCreated) -> Self {
        Self {
            escrow_id: event.escrow_id,
            order_id: event.order_id,
            buyer_id: event.buyer_id,
            seller_id: event.seller_id,
            status: EscrowStatus::Open,
            money: Money::new(event.amount, event.currency),
            subsidy: event.subsidy.unwrap_or(0),
            balance: 0,
            method: event.method.clone(),
            entries: Vec::new(),
            parts: Vec::new(),
        }
    }

    fn fund(&self, now: Timestamp) -> Decision {
        match self.status {
            EscrowStatus::Open => Ok(vec![EscrowEvent::Funded(EscrowFunded {
                escrow_id: self.escrow_id,
                order_id: self.order_id,
                amount: self.money.amount,
                currency: self.money.currency,
                entries: booked(&[
                    (self.gateway(), -self.money.amount),
                    (MARKET.to_owned(), -self.subsidy),
                    (self.own(), self.money.amount.saturating_add(self.subsidy)),
                ]),
                funded_at: now,
            })]),
            EscrowStatus::Funded | EscrowStatus::Released => Ok(Vec::new()),
            EscrowStatus::Refunded => Err(EscrowRejection::Closed),
        }
    }

    fn release(&self, caller: &Caller, now: Timestamp) -> Decision {
        if !caller.may_act_for(self.buyer_id) {
            return Err(EscrowRejection::Forbidden);
        }
        match self.status {
            EscrowStatus::Open => Err(EscrowRejection::NotFunded),
            EscrowStatus::Funded => Ok(vec![EscrowEvent::Released(EscrowReleased {
                escrow_id: self.escrow_id,
                order_id: self.order_id,
                seller_id: self.seller_id,
                amount: self.balance,
                currency: self.money.currency,
                entries: transfer(self.own(), account_of(self.seller_id), self.balance),
                released_at: now,
            })]),
            EscrowStatus::Released => Ok(Vec::new()),
            EscrowStatus::Refunded => Err(EscrowRejection::Closed),
        }
    }

    fn refund(&self, reason: &str, now: Timestamp) -> Decision {
        match self.status {
            EscrowStatus::Open | EscrowStatus::Funded => {
                let left = if self.status == EscrowStatus::Open { 0 } else { self.left() };
                let added = self.balance.saturating_sub(left);
                Ok(vec![EscrowEvent::Refunded(EscrowRefunded {
                    escrow_id: self.escrow_id,
                    order_id: self.order_id,
                    amount: left,
                    currency: self.money.currency,
                    entries: self.given_back(self.own(), left, added),
                    refund_id: None,
                    reason: reason.to_owned(),
                    refunded_at: now,
                })])
            }
            EscrowStatus::Refunded => Ok(Vec::new()),
            EscrowStatus::Released => Err(EscrowRejection::Closed),
        }
    }

    /// How much has gone back to the buyer in parts, in minor units.
    fn gone(&self) -> i64 {
        self.parts.iter().map(|part| part.amount).sum()
    }

    /// How much has not gone back, in minor units.
    fn left(&self) -> i64 {
        self.money.amount.saturating_sub(self.gone())
    }

    fn refund_part(
        &self,
        refund_id: RefundId,
        amount: i64,
        reason: &str,
        now: Timestamp,
    ) -> Decision {
        if self.parts.iter().any(|part| part.refund_id == refund_id) {
            return Ok(Vec::new());
        }
        let from = match self.status {
            EscrowStatus::Open => return Err(EscrowRejection::NotFunded),
            EscrowStatus::Refunded => return Err(EscrowRejection::Closed),
            EscrowStatus::Funded => self.own(),
            EscrowStatus::Released => account_of(self.seller_id),
        };
        let (left, gone) = (self.left(), self.gone());
        if amount <= 0 || amount > left {
            return Err(EscrowRejection::RefundTooLarge { left });
        }
        let share = |gone| share(self.subsidy, gone, self.money.amount);
        let added = share(gone.saturating_add(amount)).saturating_sub(share(gone));
        Ok(vec![EscrowEvent::Refunded(EscrowRefunded {
            escrow_id: self.escrow_id,
            order_id: self.order_id,
            amount,
            currency: self.money.currency,
            entries: self.given_back(from, amount, added),
            refund_id: Some(refund_id),
            reason: reason.to_owned(),
            refunded_at: now,
        })])
    }

    /// Notes a part that went back; gives how the escrow stands without it.
    fn without(&mut self, refund_id: RefundId, amount: i64) -> EscrowStatus {
        self.parts.push(RefundPart { refund_id, amount });
        if self.left() <= 0 { EscrowStatus::Refunded } else { self.status }
    }

    /// Back to the buyer so much, and so much to the market.
    fn given_back(&self, from: String, amount: i64, added: i64) -> Vec<Entry> {
        booked(&[
            (from, -amount.saturating_add(added)),
            (self.gateway(), amount),
            (MARKET.to_owned(), added),
        ])
    }

    fn own(&self) -> String {
        format!("escrow:{}", self.order_id)
    }

    fn gateway(&self) -> String {
        format!("gateway:{}", self.method)
    }

    fn book(&mut self, status: EscrowStatus, entries: &[Entry]) {
        let own = self.own();
        let gained = entries.iter().filter(|entry| entry.account == own).map(|entry| entry.amount);
        self.balance = self.balance.saturating_add(gained.sum());
        self.status = status;
        self.entries.extend_from_slice(entries);
    }
}

/// The market's own account in the ledger: below 0 by what it has given.
pub const MARKET: &str = "market";

/// What of the market's addition belongs to so much of what was paid, rounded down; to all of it, all.
pub fn share(subsidy: i64, part: i64, paid: i64) -> i64 {
    let share = i128::from(subsidy) * i128::from(part) / i128::from(paid.max(1));
    i64::try_from(share).unwrap_or(subsidy)
}

/// The entries of a movement; an account that nothing happens to has none.
fn booked(lines: &[(String, i64)]) -> Vec<Entry> {
    let some = lines.iter().filter(|(_, amount)| *amount != 0);
    some.map(|(account, amount)| Entry { account: account.clone(), amount: *amount }).collect()
}

/// A seller's account in the ledger.
pub fn account_of(seller: UserId) -> String {
    format!("seller:{seller}")
}

/// The entries of so much money that goes from one account to another.
pub fn transfer(from: String, to: String, amount: i64) -> Vec<Entry> {
    vec![Entry { account: from, amount: -amount }, Entry { account: to, amount }]
}

#[cfg(test)]
mod tests;
