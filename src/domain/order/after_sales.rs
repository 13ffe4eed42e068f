//! What may still happen to an order that has been shipped: goods come back, somebody disagrees, or
//! nobody says anything and the time is over.
//!
//! ```text
//! SHIPPED ──▶ DELIVERED ──▶ COMPLETED
//!    │          │  ▲            │  ▲
//!    │          ▼  │ refused    ▼  │      or taken back in part
//!    │        RETURN_REQUESTED ─────────▶ RETURNED   everything came back
//!    └──────▶ (a dispute) ──────────────▶ REFUNDED   all of the money went back without the goods
//! ```
//!
//! The order decides what goes back and how much of the money; the escrow, the payment and the
//! listings follow its events. So a unit is taken back once, and never more money than was paid.
//!
//! | timer | after | what happens |
//! | --- | --- | --- |
//! | [`SETTLEMENT_TIMER`] | [`SETTLED_AFTER_SHIPPING`], [`SETTLED_AFTER_DELIVERY`] | the seller gets the money; of what was never sent, an administrator hears |
//! | [`RETURN_TIMER`] | [`RETURN_ANSWERED_WITHIN`] | what the seller did not answer is taken back |

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::TimerChange;
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;

use super::{Order, OrderCommand, OrderDetails, OrderEvent, OrderRejection, OrderStatus};
use crate::domain::caller::{Caller, Role};
use crate::domain::ids::{ListingId, OrderId, RefundId, ReturnId, UserId};
use crate::domain::money::Currency;
use crate::domain::text::{self, FieldError, Fields};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after the delivery goods may be sent back.
pub const RETURN_WINDOW: Duration = Duration::from_secs(14 * DAY.as_secs());
/// How long after the delivery the buyer may disagree.
pub const DISPUTE_WINDOW: Duration = Duration::from_secs(30 * DAY.as_secs());
/// How long a seller has to answer a return. What is not answered is accepted.
pub const RETURN_ANSWERED_WITHIN: Duration = Duration::from_secs(7 * DAY.as_secs());
/// How long after the delivery, or the last word about a return or dispute, the seller gets the money.
pub const SETTLED_AFTER_DELIVERY: Duration = Duration::from_secs(7 * DAY.as_secs());
/// How long after the shipment, when nobody says that it arrived.
pub const SETTLED_AFTER_SHIPPING: Duration = Duration::from_secs(30 * DAY.as_secs());
/// How many returns an order may have.
pub const RETURNS_MAX: usize = 20;

/// The reason of a refusal of a return. Stored; never rename.
pub const REFUSED: &str = "refused";

/// The timer that lets the seller have the money. Stored; never rename.
pub const SETTLEMENT_TIMER: &str = "settlement";
/// The timer of a return that the seller has not answered. Stored; never rename.
pub const RETURN_TIMER: &str = "return";

macro_rules! reasons {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$each:meta])* $variant:ident,)+ }) => {
        $(#[$about])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$each])* $variant,)+ }

        impl $name {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
        }
    };
}

reasons! {
    /// Why goods come back. The names are stored and public.
    pub enum ReturnReason {
        /// They arrived broken.
        Damaged,
        /// They are not what the listing says.
        NotAsDescribed,
        /// They are something else.
        WrongItem,
        /// The buyer does not want them any more.
        NoLongerWanted,
        /// Anything else: the comment says what.
        Other,
    }
}

reasons! {
    /// Why a buyer disagrees. The names are stored and public.
    pub enum DisputeReason {
        /// Nothing arrived.
        NotReceived,
        /// It arrived broken.
        Damaged,
        /// It is not what the listing says.
        NotAsDescribed,
        /// The seller does not take it back.
        ReturnRefused,
        /// Anything else: the comment says what.
        Other,
    }
}

/// Who decided about a return. The names are stored and public.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The seller.
    Seller,
    /// An administrator.
    Admin,
    /// The marketplace, when the seller's time was over.
    System,
}

/// A wish to send goods back.
#[derive(Debug, Clone, PartialEq)]
pub struct ReturnRequest {
    /// Who asks.
    pub caller: Caller,
    /// The new return.
    pub return_id: ReturnId,
    /// What comes back, by listing; empty: everything that has not come back yet.
    pub items: Vec<(ListingId, u32)>,
    /// Why.
    pub reason: ReturnReason,
    /// Why, in the buyer's words.
    pub comment: Option<String>,
    /// When.
    pub now: Timestamp,
}

/// A word on a return.
#[derive(Debug, Clone, PartialEq)]
pub struct ReturnDecision {
    /// Who decides.
    pub caller: Caller,
    /// The return.
    pub return_id: ReturnId,
    /// Whether the goods are taken back.
    pub accepted: bool,
    /// Whether they can be sold again.
    pub restock: bool,
    /// Why not, in the words of who refuses.
    pub note: Option<String>,
    /// When.
    pub now: Timestamp,
}

/// One line of a return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReturnLine {
    /// The listing.
    pub listing_id: ListingId,
    /// How many units.
    pub quantity: u32,
    /// The price of one, in minor units, before what a promotion took off the order.
    pub unit_price: i64,
}

/// The buyer wants to send goods back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderReturnRequested {
    /// The order.
    pub order_id: OrderId,
    /// The return.
    pub return_id: ReturnId,
    /// Who bought.
    pub buyer_id: UserId,
    /// Who sold.
    pub seller_id: UserId,
    /// What is to come back.
    pub items: Vec<ReturnLine>,
    /// How much money would go back, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// Why.
    pub reason: ReturnReason,
    /// Why, in the buyer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Personal<String>>,
    /// Until when the seller can answer.
    pub answer_by: Timestamp,
    /// When.
    pub requested_at: Timestamp,
}

/// The goods are not taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderReturnRefused {
    /// The order.
    pub order_id: OrderId,
    /// The return.
    pub return_id: ReturnId,
    /// Who says so.
    pub refused_by: DecidedBy,
    /// Why, as a stable code. In events of version 1.0 it is the words of who refused.
    pub reason: String,
    /// Why, in the words of who refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Personal<String>>,
    /// How the order stands now.
    pub status: OrderStatus,
    /// When.
    pub refused_at: Timestamp,
}

/// Goods are taken back, and the money for them goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderReturned {
    /// The order.
    pub order_id: OrderId,
    /// The return.
    pub return_id: ReturnId,
    /// The refund.
    pub refund_id: RefundId,
    /// What came back.
    pub items: Vec<ReturnLine>,
    /// How much money goes back, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// Whether it can be sold again.
    pub restock: bool,
    /// Who took it back.
    pub accepted_by: DecidedBy,
    /// How the order stands now: `RETURNED` when nothing is left of it.
    pub status: OrderStatus,
    /// When.
    pub returned_at: Timestamp,
}

/// The buyer disagrees: an administrator decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderDisputed {
    /// The order.
    pub order_id: OrderId,
    /// Who bought.
    pub buyer_id: UserId,
    /// Who sold.
    pub seller_id: UserId,
    /// Why.
    pub reason: DisputeReason,
    /// Why, in the buyer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Personal<String>>,
    /// When.
    pub disputed_at: Timestamp,
}

/// An administrator has decided a dispute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderDisputeResolved {
    /// The order.
    pub order_id: OrderId,
    /// The refund, if money goes back.
    pub refund_id: Option<RefundId>,
    /// How much money goes back, in minor units; the rest is the seller's.
    pub amount: i64,
    /// Of what.
    pub currency: Currency,
    /// Why.
    pub reason: String,
    /// Who decided.
    pub resolved_by: Option<UserId>,
    /// How the order stands now: `REFUNDED` when all of the money has gone back.
    pub status: OrderStatus,
    /// When.
    pub resolved_at: Timestamp,
}

/// Nobody has objected in time: the seller gets the money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderSettlementDue {
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub due_at: Timestamp,
}

/// The goods left later than the order knew: there is more time to object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderSettlementPostponed {
    /// The order.
    pub order_id: OrderId,
    /// Until when.
    pub until: Timestamp,
    /// When.
    pub postponed_at: Timestamp,
}

/// How a return stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReturnStatus {
    /// The seller is to answer.
    Requested,
    /// The goods are taken back.
    Accepted,
    /// They are not.
    Refused,
}

/// What is known of a return.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReturnDetails {
    /// The return.
    pub return_id: ReturnId,
    /// How it stands.
    pub status: ReturnStatus,
    /// What comes back.
    pub items: Vec<ReturnLine>,
    /// How much money goes back, in minor units.
    pub amount: i64,
    /// Why.
    pub reason: ReturnReason,
    /// Why, in the buyer's words.
    pub comment: Option<Personal<String>>,
    /// Why it was refused, as a stable code; of old events it is the words of who refused.
    pub note: Option<String>,
    /// Why it was refused, in the words of who refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Personal<String>>,
    /// Who decided.
    pub decided_by: Option<DecidedBy>,
    /// Until when the seller can answer.
    pub answer_by: Timestamp,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
}

/// What is known of a dispute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DisputeDetails {
    /// Why.
    pub reason: DisputeReason,
    /// Why, in the buyer's words.
    pub comment: Option<Personal<String>>,
    /// When it was opened.
    pub disputed_at: Timestamp,
    /// What was decided, once it is.
    pub resolution: Option<Resolution>,
}

/// What was decided about a dispute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolution {
    /// How much money goes back, in minor units.
    pub amount: i64,
    /// Why.
    pub reason: String,
    /// When.
    pub resolved_at: Timestamp,
}

/// What has happened to an order since it was shipped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AfterSales {
    /// The returns, the first one first.
    pub returns: Vec<ReturnDetails>,
    /// The dispute, if there is or was one.
    pub dispute: Option<DisputeDetails>,
    /// How much money goes back or did, in minor units.
    pub refunded: i64,
    /// How the order stood before a return was asked for.
    stood: Option<OrderStatus>,
}

impl AfterSales {
    /// The return that waits for an answer.
    pub fn open_return(&self) -> Option<&ReturnDetails> {
        self.returns.iter().find(|it| it.status == ReturnStatus::Requested)
    }

    /// Whether something waits for a decision that the money may go by.
    pub fn is_contested(&self) -> bool {
        self.is_disputed() || self.open_return().is_some()
    }

    /// Whether a dispute waits for a decision.
    pub fn is_disputed(&self) -> bool {
        self.dispute.as_ref().is_some_and(|dispute| dispute.resolution.is_none())
    }

    /// How many units of a listing have come back.
    fn returned(&self, listing_id: ListingId) -> u32 {
        let accepted = self.returns.iter().filter(|it| it.status == ReturnStatus::Accepted);
        let lines = accepted.flat_map(|it| &it.items);
        lines.filter(|line| line.listing_id == listing_id).map(|line| line.quantity).sum()
    }
}

type Change = Result<Option<OrderEvent>, OrderRejection>;

/// The sum of the prices of these lines, in minor units.
fn worth(lines: &[ReturnLine]) -> i64 {
    let price = |line: &ReturnLine| line.unit_price.saturating_mul(i64::from(line.quantity));
    lines.iter().map(price).fold(0, i64::saturating_add)
}

impl OrderDetails {
    /// How much of the money is not to go back, in minor units: nothing of an order that is off.
    pub fn kept(&self) -> i64 {
        if self.status.is_off() {
            return 0;
        }
        self.total.amount.saturating_sub(self.after_sales.refunded)
    }

    /// What has not come back yet.
    fn not_returned(&self) -> impl Iterator<Item = ReturnLine> {
        self.items.iter().filter_map(|item| {
            let quantity = item.quantity.saturating_sub(self.after_sales.returned(item.listing_id));
            (quantity > 0).then_some(ReturnLine {
                listing_id: item.listing_id,
                quantity,
                unit_price: item.unit_price,
            })
        })
    }

    fn is_within(&self, window: Duration, now: Timestamp) -> bool {
        self.arrived_at().is_none_or(|at| now.since(at) <= window)
    }

    /// The buyer, or an administrator in the buyer's place.
    fn buyers_side(&self, caller: &Caller) -> Result<(), OrderRejection> {
        let may = caller.is(self.buyer_id) || caller.has(Role::Admin);
        may.then_some(()).ok_or(OrderRejection::Forbidden)
    }

    pub(super) fn care(&self, command: &OrderCommand) -> Change {
        match command {
            OrderCommand::RequestReturn(request) => self.request_return(request),
            OrderCommand::DecideReturn(decision) => self.decide_return(decision),
            OrderCommand::Dispute { caller, reason, comment, now } => {
                self.disputed(caller, *reason, comment.as_deref(), *now)
            }
            OrderCommand::ResolveDispute { caller, refund, reason, now } => {
                self.resolve(caller, *refund, reason, *now)
            }
            OrderCommand::SettleDue { now } => Ok(self.settle(*now)),
            OrderCommand::PostponeSettlement { until, now } => Ok(self.postpone(*until, *now)),
            _ => Ok(None),
        }
    }

    fn request_return(&self, request: &ReturnRequest) -> Change {
        self.buyers_side(&request.caller)?;
        let care = &self.after_sales;
        if care.returns.iter().any(|it| it.return_id == request.return_id) {
            return Ok(None);
        }
        match self.status {
            OrderStatus::Delivered | OrderStatus::Completed => {}
            OrderStatus::ReturnRequested => return Err(OrderRejection::ReturnOpen),
            from => return Err(OrderRejection::InvalidTransition { from }),
        }
        if care.is_disputed() {
            return Err(OrderRejection::DisputeOpen);
        }
        if !self.is_within(RETURN_WINDOW, request.now) {
            return Err(OrderRejection::ReturnWindowClosed);
        }
        if care.returns.len() >= RETURNS_MAX {
            return Err(OrderRejection::TooManyReturns);
        }
        let mut fields = Fields::default();
        let comment =
            fields.optional_line("/comment", request.comment.as_deref(), text::REASON_MAX);
        let items = self.coming_back(&request.items, &mut fields);
        fields.finish()?;
        let amount = self.paid_for(&items);
        if amount <= 0 {
            return Err(OrderRejection::NothingToReturn);
        }
        Ok(Some(OrderEvent::ReturnRequested(OrderReturnRequested {
            order_id: self.order_id,
            return_id: request.return_id,
            buyer_id: self.buyer_id,
            seller_id: self.seller_id,
            items,
            amount,
            currency: self.total.currency,
            reason: request.reason,
            comment: comment.map(|comment| Personal::new(self.buyer_id.uuid(), comment)),
            answer_by: request.now.plus(RETURN_ANSWERED_WITHIN),
            requested_at: request.now,
        })))
    }

    /// The part of these lines in what is kept, in minor units, rounded down: what a promotion took
    /// off and what a dispute gave back made all that is left cheaper by the same part. With the
    /// last goods the last of the money goes back.
    fn paid_for(&self, items: &[ReturnLine]) -> i64 {
        let kept = self.kept();
        if self.is_all_that_is_left(items) {
            return kept;
        }
        let left: Vec<ReturnLine> = self.not_returned().collect();
        let part = i128::from(worth(items)) * i128::from(kept) / i128::from(worth(&left).max(1));
        i64::try_from(part).unwrap_or(kept).min(kept)
    }

    fn is_all_that_is_left(&self, items: &[ReturnLine]) -> bool {
        let coming = |id| items.iter().find(|line| line.listing_id == id);
        self.not_returned()
            .all(|left| coming(left.listing_id).is_some_and(|line| line.quantity == left.quantity))
    }

    /// The lines of a return; what is wrong with them is noted.
    fn coming_back(&self, wanted: &[(ListingId, u32)], fields: &mut Fields) -> Vec<ReturnLine> {
        if wanted.is_empty() {
            return self.not_returned().collect();
        }
        let mut lines: Vec<ReturnLine> = Vec::new();
        for (index, (listing_id, quantity)) in wanted.iter().enumerate() {
            let pointer = |member: &str| format!("/items/{index}/{member}");
            if lines.iter().any(|line| line.listing_id == *listing_id) {
                fields.error(pointer("listing_id"), "duplicate", "is named twice");
                continue;
            }
            let Some(left) = self.not_returned().find(|line| line.listing_id == *listing_id) else {
                let detail = "is not in this order, or has come back already";
                fields.error(pointer("listing_id"), "not_returnable", detail);
                continue;
            };
            if (1..=left.quantity).contains(quantity) {
                lines.push(ReturnLine { quantity: *quantity, ..left });
            } else {
                let detail = format!("must be from 1 to {}", left.quantity);
                fields.error(pointer("quantity"), "out_of_range", &detail);
            }
        }
        lines
    }

    fn decide_return(&self, decision: &ReturnDecision) -> Change {
        let decided_by = if decision.caller.is_system() {
            DecidedBy::System
        } else if decision.caller.is(self.seller_id) {
            DecidedBy::Seller
        } else if decision.caller.has(Role::Admin) {
            DecidedBy::Admin
        } else {
            return Err(OrderRejection::Forbidden);
        };
        let of_id = |it: &&ReturnDetails| it.return_id == decision.return_id;
        let it = self.after_sales.returns.iter().find(of_id);
        let it = it.ok_or(OrderRejection::ReturnNotFound)?;
        match (it.status, decision.accepted) {
            (ReturnStatus::Requested, true) => Ok(Some(self.take_back(it, decided_by, decision))),
            (ReturnStatus::Requested, false) => self.refuse(it, decided_by, decision).map(Some),
            (ReturnStatus::Accepted, true) | (ReturnStatus::Refused, false) => Ok(None),
            (status, _) => Err(OrderRejection::ReturnDecided { status }),
        }
    }

    fn stood(&self) -> OrderStatus {
        self.after_sales.stood.unwrap_or(OrderStatus::Delivered)
    }

    fn take_back(
        &self,
        it: &ReturnDetails,
        accepted_by: DecidedBy,
        decision: &ReturnDecision,
    ) -> OrderEvent {
        let is_whole = self.is_all_that_is_left(&it.items);
        OrderEvent::Returned(OrderReturned {
            order_id: self.order_id,
            return_id: it.return_id,
            refund_id: RefundId::of_return(it.return_id),
            items: it.items.clone(),
            amount: it.amount,
            currency: self.total.currency,
            restock: decision.restock,
            accepted_by,
            status: if is_whole { OrderStatus::Returned } else { self.stood() },
            returned_at: decision.now,
        })
    }

    fn refuse(
        &self,
        it: &ReturnDetails,
        refused_by: DecidedBy,
        decision: &ReturnDecision,
    ) -> Result<OrderEvent, OrderRejection> {
        let mut fields = Fields::default();
        let note = decision.note.as_deref().unwrap_or_default();
        let words = fields.line("/reason", note, text::REASON_MAX);
        fields.finish()?;
        let who = decision.caller.user_id().unwrap_or(self.seller_id);
        Ok(OrderEvent::ReturnRefused(OrderReturnRefused {
            order_id: self.order_id,
            return_id: it.return_id,
            refused_by,
            reason: REFUSED.to_owned(),
            comment: Some(Personal::new(who.uuid(), words)),
            status: self.stood(),
            refused_at: decision.now,
        }))
    }

    fn disputed(
        &self,
        caller: &Caller,
        reason: DisputeReason,
        comment: Option<&str>,
        now: Timestamp,
    ) -> Change {
        if !caller.is_system() {
            self.buyers_side(caller)?;
        }
        match &self.after_sales.dispute {
            Some(dispute) if dispute.resolution.is_none() => return Ok(None),
            Some(_) => return Err(OrderRejection::DisputeDecided),
            None => {}
        }
        match self.status {
            OrderStatus::Shipped | OrderStatus::Delivered | OrderStatus::Completed => {}
            OrderStatus::ReturnRequested => return Err(OrderRejection::ReturnOpen),
            from => return Err(OrderRejection::InvalidTransition { from }),
        }
        if !self.is_within(DISPUTE_WINDOW, now) {
            return Err(OrderRejection::DisputeWindowClosed);
        }
        let mut fields = Fields::default();
        let comment = fields.optional_line("/comment", comment, text::REASON_MAX);
        fields.finish()?;
        Ok(Some(OrderEvent::Disputed(OrderDisputed {
            order_id: self.order_id,
            buyer_id: self.buyer_id,
            seller_id: self.seller_id,
            reason,
            comment: comment.map(|comment| Personal::new(self.buyer_id.uuid(), comment)),
            disputed_at: now,
        })))
    }

    fn resolve(&self, caller: &Caller, refund: i64, reason: &str, now: Timestamp) -> Change {
        if !caller.has(Role::Admin) {
            return Err(OrderRejection::Forbidden);
        }
        let dispute = self.after_sales.dispute.as_ref().ok_or(OrderRejection::Undisputed)?;
        match &dispute.resolution {
            Some(known) if known.amount == refund => return Ok(None),
            Some(_) => return Err(OrderRejection::DisputeDecided),
            None => {}
        }
        let mut fields = Fields::default();
        let reason = fields.line("/reason", reason, text::REASON_MAX);
        fields.finish()?;
        let kept = self.kept();
        if !(0..=kept).contains(&refund) {
            let detail = format!("must be from 0 to {kept}");
            return Err(vec![FieldError::new("/refund_amount", "out_of_range", &detail)].into());
        }
        Ok(Some(OrderEvent::DisputeResolved(OrderDisputeResolved {
            order_id: self.order_id,
            refund_id: (refund > 0).then(|| RefundId::of_dispute(self.order_id)),
            amount: refund,
            currency: self.total.currency,
            reason,
            resolved_by: caller.user_id(),
            status: if refund == kept { OrderStatus::Refunded } else { self.status },
            resolved_at: now,
        })))
    }

    fn settle(&self, now: Timestamp) -> Option<OrderEvent> {
        let waits = matches!(self.status, OrderStatus::Shipped | OrderStatus::Delivered);
        let due = waits && !self.after_sales.is_disputed();
        let event = OrderSettlementDue { order_id: self.order_id, due_at: now };
        due.then_some(OrderEvent::SettlementDue(event))
    }

    /// Of what has arrived, the time to object is known; of what is disputed, there is none.
    fn postpone(&self, until: Timestamp, now: Timestamp) -> Option<OrderEvent> {
        let waits = self.status == OrderStatus::Shipped && !self.after_sales.is_disputed();
        let order_id = self.order_id;
        let event = OrderSettlementPostponed { order_id, until, postponed_at: now };
        (waits && until > now).then_some(OrderEvent::SettlementPostponed(event))
    }

    pub(super) fn apply_care(&mut self, event: &OrderEvent) {
        match event {
            OrderEvent::ReturnRequested(event) => {
                self.after_sales.stood = Some(self.status);
                self.after_sales.returns.push(ReturnDetails {
                    return_id: event.return_id,
                    status: ReturnStatus::Requested,
                    items: event.items.clone(),
                    amount: event.amount,
                    reason: event.reason,
                    comment: event.comment.clone(),
                    note: None,
                    refusal: None,
                    decided_by: None,
                    answer_by: event.answer_by,
                    requested_at: event.requested_at,
                    decided_at: None,
                });
                self.enter(OrderStatus::ReturnRequested, event.requested_at);
            }
            OrderEvent::ReturnRefused(event) => {
                if let Some(it) = self.return_mut(event.return_id) {
                    it.status = ReturnStatus::Refused;
                    it.note = Some(event.reason.clone());
                    it.refusal = event.comment.clone();
                    it.decided_by = Some(event.refused_by);
                    it.decided_at = Some(event.refused_at);
                }
                self.enter(event.status, event.refused_at);
            }
            OrderEvent::Returned(event) => {
                self.after_sales.refunded = self.after_sales.refunded.saturating_add(event.amount);
                if let Some(it) = self.return_mut(event.return_id) {
                    it.status = ReturnStatus::Accepted;
                    it.decided_by = Some(event.accepted_by);
                    it.decided_at = Some(event.returned_at);
                }
                self.enter(event.status, event.returned_at);
            }
            OrderEvent::Disputed(event) => {
                self.after_sales.dispute = Some(DisputeDetails {
                    reason: event.reason,
                    comment: event.comment.clone(),
                    disputed_at: event.disputed_at,
                    resolution: None,
                });
            }
            OrderEvent::DisputeResolved(event) => {
                self.after_sales.refunded = self.after_sales.refunded.saturating_add(event.amount);
                if let Some(dispute) = &mut self.after_sales.dispute {
                    dispute.resolution = Some(Resolution {
                        amount: event.amount,
                        reason: event.reason.clone(),
                        resolved_at: event.resolved_at,
                    });
                }
                if event.status != self.status {
                    self.enter(event.status, event.resolved_at);
                }
            }
            _ => {}
        }
    }

    fn return_mut(&mut self, return_id: ReturnId) -> Option<&mut ReturnDetails> {
        self.after_sales.returns.iter_mut().find(|it| it.return_id == return_id)
    }

    /// What an event that the order has applied does to its timers.
    pub(super) fn timers(&self, event: &OrderEvent) -> Vec<TimerChange> {
        let set = |name: &str, at| TimerChange::Set { name: name.to_owned(), at };
        let clear = |name: &str| TimerChange::Clear { name: name.to_owned() };
        // The seller waits on, if there is something to wait for.
        let settlement = |now: Timestamp, after| match self.status {
            OrderStatus::Shipped | OrderStatus::Delivered => {
                vec![set(SETTLEMENT_TIMER, now.plus(after))]
            }
            _ => Vec::new(),
        };
        match event {
            OrderEvent::Shipped(event) => settlement(event.shipped_at, SETTLED_AFTER_SHIPPING),
            OrderEvent::Delivered(event) if !self.after_sales.is_disputed() => {
                settlement(event.delivered_at, SETTLED_AFTER_DELIVERY)
            }
            OrderEvent::SettlementPostponed(event) => vec![set(SETTLEMENT_TIMER, event.until)],
            OrderEvent::Completed(_) => vec![clear(SETTLEMENT_TIMER)],
            OrderEvent::ReturnRequested(event) => {
                vec![clear(SETTLEMENT_TIMER), set(RETURN_TIMER, event.answer_by)]
            }
            OrderEvent::ReturnRefused(event) => {
                let mut changes = vec![clear(RETURN_TIMER)];
                changes.extend(settlement(event.refused_at, SETTLED_AFTER_DELIVERY));
                changes
            }
            OrderEvent::Returned(event) => {
                let mut changes = vec![clear(RETURN_TIMER)];
                changes.extend(settlement(event.returned_at, SETTLED_AFTER_DELIVERY));
                changes
            }
            // What is left after a decision is the seller's at once.
            OrderEvent::Disputed(_) => vec![clear(SETTLEMENT_TIMER)],
            _ => Vec::new(),
        }
    }
}

impl Order {
    pub(super) fn due(&self, name: &str, now: Timestamp) -> Option<OrderCommand> {
        let details = self.details.as_ref()?;
        match name {
            SETTLEMENT_TIMER => Some(OrderCommand::SettleDue { now }),
            RETURN_TIMER => {
                let return_id = details.after_sales.open_return()?.return_id;
                Some(OrderCommand::DecideReturn(Box::new(ReturnDecision {
                    caller: Caller::System,
                    return_id,
                    accepted: true,
                    restock: false,
                    note: None,
                    now,
                })))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
