//! The account of a seller: what is paid out of the ledger, and where to.
//!
//! What a seller has earned follows from the escrows and stands in the ledger; the account knows how
//! much of that has been taken out, so that nothing is paid twice however many ask at once. Money
//! leaves the marketplace by the hands of an administrator, who says that it was sent, or why not.
//!
//! ```text
//! payout.requested   seller:<user> ──▶ payout:<id>
//! payout.completed                     payout:<id> ──▶ bank
//! payout.failed      seller:<user> ◀── payout:<id>
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;

use super::caller::{Caller, Role};
use super::escrow::{Entry, account_of, transfer};
use super::ids::{PayoutId, UserId};
use super::money::{Currency, Money};
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};

/// How many payouts of a seller may be on their way at once.
pub const OPEN_MAX: usize = 10;
/// The account that money leaves the marketplace by.
pub const BANK: &str = "bank";
/// The longest number of an account at a bank (an IBAN has 34 characters).
const NUMBER_MAX: usize = 34;

/// Where money is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Destination {
    /// The bank.
    pub bank: String,
    /// Whose account it is.
    pub holder: String,
    /// Its number.
    pub number: String,
}

impl Destination {
    fn checked(&self, fields: &mut Fields) -> Self {
        let number: String = self.number.chars().filter(|it| *it != ' ').collect();
        let is_number = number.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && (4..=NUMBER_MAX).contains(&number.len());
        let detail = "must be 4 to 34 letters and digits";
        fields.require(is_number, "/destination/number", "invalid_account", detail);
        Self {
            bank: fields.line("/destination/bank", &self.bank, text::NAME_MAX),
            holder: fields.line("/destination/holder", &self.holder, text::NAME_MAX),
            number,
        }
    }
}

/// A wish to be paid.
#[derive(Debug, Clone, PartialEq)]
pub struct PayoutRequest {
    /// Who asks.
    pub caller: Caller,
    /// The new payout.
    pub payout_id: PayoutId,
    /// Whose account.
    pub seller_id: UserId,
    /// How much; none: everything.
    pub amount: Option<i64>,
    /// Of what.
    pub currency: Currency,
    /// What the ledger says that the seller has earned by now, in minor units, whatever was paid out.
    pub earned: i64,
    /// Where to.
    pub destination: Destination,
    /// When.
    pub now: Timestamp,
}

/// What to do with an account.
#[derive(Debug, Clone, PartialEq)]
pub enum SellerAccountCommand {
    /// Pay.
    Request(Box<PayoutRequest>),
    /// It was sent.
    Complete {
        /// Who says so.
        caller: Caller,
        /// The payout.
        payout_id: PayoutId,
        /// The bank's name for the transfer.
        reference: String,
        /// When.
        now: Timestamp,
    },
    /// It could not be.
    Fail {
        /// Who says so.
        caller: Caller,
        /// The payout.
        payout_id: PayoutId,
        /// Why.
        reason: String,
        /// When.
        now: Timestamp,
    },
}

impl Command for SellerAccountCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "RequestPayout",
            Self::Complete { .. } => "CompletePayout",
            Self::Fail { .. } => "FailPayout",
        }
    }
}

souk_actors::events! {
    /// What happens to the accounts of sellers.
    pub enum SellerAccountEvent in "payments" as "payment-service" {
        /// Money is to be sent.
        Requested(PayoutRequested) = "payout.requested", "PayoutRequested", 1.0, [];
        /// It was.
        Completed(PayoutCompleted) = "payout.completed", "PayoutCompleted", 1.0, [];
        /// It could not be.
        Failed(PayoutFailed) = "payout.failed", "PayoutFailed", 1.0, [];
    }
}

/// Money is to be sent to a seller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PayoutRequested {
    /// The payout.
    pub payout_id: PayoutId,
    /// Whose money.
    pub seller_id: UserId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// Where to.
    pub destination: Personal<Destination>,
    /// From the seller to the payout.
    pub entries: Vec<Entry>,
    /// When.
    pub requested_at: Timestamp,
}

/// The money was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PayoutCompleted {
    /// The payout.
    pub payout_id: PayoutId,
    /// Whose money.
    pub seller_id: UserId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// The bank's name for the transfer.
    pub reference: String,
    /// From the payout to the bank.
    pub entries: Vec<Entry>,
    /// When.
    pub completed_at: Timestamp,
}

/// The money could not be sent: it is the seller's again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PayoutFailed {
    /// The payout.
    pub payout_id: PayoutId,
    /// Whose money.
    pub seller_id: UserId,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// Why.
    pub reason: String,
    /// From the payout back to the seller.
    pub entries: Vec<Entry>,
    /// When.
    pub failed_at: Timestamp,
}

rejections! {
    /// Why an account refuses a command.
    pub enum SellerAccountRejection {
        /// No such payout, or it has ended long ago.
        NotFound = "not_found", "there is no such payout on its way";
        /// The other word has been said.
        Over = "payout_over", "this payout has ended the other way";
        /// Not theirs to ask.
        Forbidden = "forbidden", "the caller may not do this to this account";
        /// More than there is.
        BalanceTooLow {
            /// What there is, in minor units.
            available: i64,
        } = "balance_too_low", "there is not so much on this account: {available} minor units";
        /// Enough on their way.
        TooManyOpen = "too_many_payouts", "at most 10 payouts can be on their way at once";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(SellerAccountRejection);

/// The account of a seller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SellerAccount {
    /// What is on its way.
    pub open: BTreeMap<PayoutId, Open>,
    /// How much was taken out or is on its way, by currency, in minor units.
    pub taken: BTreeMap<String, i64>,
    /// How the last payouts ended, the oldest first, so that the same word may come twice.
    ended: Vec<(PayoutId, Ending)>,
}

/// How a payout ended, in the words that were said then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It was sent.
    Sent {
        /// The bank's name for the transfer.
        reference: String,
        /// When.
        at: Timestamp,
    },
    /// It could not be.
    Failed {
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
    },
}

impl Ending {
    fn is_sent(&self) -> bool {
        matches!(self, Self::Sent { .. })
    }
}

/// A payout on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// Whose money.
    pub seller_id: UserId,
    /// How much.
    pub money: Money,
    /// Where to.
    pub destination: Personal<Destination>,
    /// When it was asked for.
    pub requested_at: Timestamp,
}

type Decision = Result<Vec<SellerAccountEvent>, SellerAccountRejection>;

impl Aggregate for SellerAccount {
    const TYPE: &'static str = "seller_account";
    const SNAPSHOT_VERSION: u32 = 2;
    type Command = SellerAccountCommand;
    type Event = SellerAccountEvent;
    type Rejection = SellerAccountRejection;

    fn decide(&self, command: &SellerAccountCommand) -> Decision {
        match command {
            SellerAccountCommand::Request(request) => self.request(request),
            SellerAccountCommand::Complete { caller, payout_id, reference, now } => {
                let Some(open) = self.to_end(caller, *payout_id, true)? else {
                    return Ok(Vec::new());
                };
                let mut fields = Fields::default();
                let reference = fields.line("/reference", reference, text::NAME_MAX);
                fields.finish()?;
                Ok(vec![SellerAccountEvent::Completed(PayoutCompleted {
                    payout_id: *payout_id,
                    seller_id: open.seller_id,
                    amount: open.money.amount,
                    currency: open.money.currency,
                    reference,
                    entries: transfer(clearing(*payout_id), BANK.to_owned(), open.money.amount),
                    completed_at: *now,
                })])
            }
            SellerAccountCommand::Fail { caller, payout_id, reason, now } => {
                let Some(open) = self.to_end(caller, *payout_id, false)? else {
                    return Ok(Vec::new());
                };
                let mut fields = Fields::default();
                let reason = fields.line("/reason", reason, text::REASON_MAX);
                fields.finish()?;
                let back = account_of(open.seller_id);
                Ok(vec![SellerAccountEvent::Failed(PayoutFailed {
                    payout_id: *payout_id,
                    seller_id: open.seller_id,
                    amount: open.money.amount,
                    currency: open.money.currency,
                    reason,
                    entries: transfer(clearing(*payout_id), back, open.money.amount),
                    failed_at: *now,
                })])
            }
        }
    }

    fn apply(&mut self, event: &SellerAccountEvent) {
        match event {
            SellerAccountEvent::Requested(event) => {
                self.take(event.currency, event.amount);
                self.open.insert(
                    event.payout_id,
                    Open {
                        seller_id: event.seller_id,
                        money: Money::new(event.amount, event.currency),
                        destination: event.destination.clone(),
                        requested_at: event.requested_at,
                    },
                );
            }
            SellerAccountEvent::Completed(event) => {
                let (reference, at) = (event.reference.clone(), event.completed_at);
                self.end(event.payout_id, Ending::Sent { reference, at });
            }
            SellerAccountEvent::Failed(event) => {
                self.take(event.currency, -event.amount);
                let (reason, at) = (event.reason.clone(), event.failed_at);
                self.end(event.payout_id, Ending::Failed { reason, at });
            }
        }
    }
}

fn clearing(payout: PayoutId) -> String {
    format!("payout:{payout}")
}

impl SellerAccount {
    fn take(&mut self, currency: Currency, amount: i64) {
        let taken = self.taken.entry(currency.code().to_owned()).or_default();
        *taken = taken.saturating_add(amount);
    }

    /// How much of this currency was taken out or is on its way, in minor units.
    pub fn taken(&self, currency: Currency) -> i64 {
        self.taken.get(currency.code()).copied().unwrap_or(0)
    }

    /// How a payout ended, of those that ended last.
    pub fn ending(&self, payout_id: PayoutId) -> Option<&Ending> {
        self.ended.iter().find(|(id, _)| *id == payout_id).map(|(_, ending)| ending)
    }

    fn end(&mut self, payout_id: PayoutId, ending: Ending) {
        self.open.remove(&payout_id);
        self.ended.push((payout_id, ending));
        if self.ended.len() > OPEN_MAX {
            self.ended.remove(0);
        }
    }

    fn request(&self, request: &PayoutRequest) -> Decision {
        let has_ended = self.ending(request.payout_id).is_some();
        if self.open.contains_key(&request.payout_id) || has_ended {
            return Ok(Vec::new());
        }
        if !request.caller.is(request.seller_id) {
            return Err(SellerAccountRejection::Forbidden);
        }
        let mut fields = Fields::default();
        let destination = request.destination.checked(&mut fields);
        let positive = request.amount.is_none_or(|amount| amount > 0);
        fields.require(positive, "/amount", "out_of_range", "must be more than 0");
        fields.finish()?;
        let available = request.earned.saturating_sub(self.taken(request.currency));
        let amount = request.amount.unwrap_or(available);
        if amount <= 0 || amount > available {
            return Err(SellerAccountRejection::BalanceTooLow { available });
        }
        if self.open.len() >= OPEN_MAX {
            return Err(SellerAccountRejection::TooManyOpen);
        }
        let seller = request.seller_id;
        Ok(vec![SellerAccountEvent::Requested(PayoutRequested {
            payout_id: request.payout_id,
            seller_id: seller,
            amount,
            currency: request.currency,
            destination: Personal::new(seller.uuid(), destination),
            entries: transfer(account_of(seller), clearing(request.payout_id), amount),
            requested_at: request.now,
        })])
    }

    /// The payout that an administrator says the end of; none: it has been said.
    fn to_end(
        &self,
        caller: &Caller,
        payout_id: PayoutId,
        sent: bool,
    ) -> Result<Option<&Open>, SellerAccountRejection> {
        if !caller.has(Role::Admin) {
            return Err(SellerAccountRejection::Forbidden);
        }
        match (self.open.get(&payout_id), self.ending(payout_id)) {
            (Some(open), _) => Ok(Some(open)),
            (None, Some(ending)) if ending.is_sent() == sent => Ok(None),
            (None, Some(_)) => Err(SellerAccountRejection::Over),
            (None, None) => Err(SellerAccountRejection::NotFound),
        }
    }
}

#[cfg(test)]
mod tests;
