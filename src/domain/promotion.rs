//! Promotion codes: what a seller takes off an order for whoever knows the word.
//!
//! The id follows from the code, so a code has one promotion. A use is held for an order as stock is,
//! by the order saga, and given back when the order comes to nothing: so however many buyers come at
//! once, there are never more uses than there may be. The seller gives the discount: the order costs
//! less, and all that follows (payment, escrow, ledger, refund) goes by what it costs. Or the market
//! gives it, with a code that counts for every seller: then it pays the difference into the escrow.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::caller::{Caller, Role};
use super::ids::{OrderId, PromotionId, UserId};
use super::money::Money;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{FieldError, Fields};
use super::user::VerificationStatus;

/// The most uses of one code: each is remembered, so that none counts twice.
pub const USES_MAX: u32 = 100_000;
/// How long a code may be.
pub const CODE_MIN: usize = 3;
/// The same.
pub const CODE_MAX: usize = 32;

/// What is taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Discount {
    /// So many percent, rounded down to a minor unit.
    Percentage {
        /// From 1 to 99.
        percentage: u32,
    },
    /// So much money.
    Amount {
        /// How much.
        money: Money,
    },
}

impl Discount {
    /// What is taken off a sum, in minor units; none: the sum is of another currency, or nothing would
    /// be left to pay.
    pub fn of(self, sum: Money) -> Option<i64> {
        let off = match self {
            Self::Percentage { percentage } => {
                let off = i128::from(sum.amount) * i128::from(percentage) / 100;
                i64::try_from(off).ok()?
            }
            Self::Amount { money } if money.currency == sum.currency => money.amount,
            Self::Amount { .. } => return None,
        };
        (off < sum.amount).then_some(off)
    }
}

/// A new code.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPromotion {
    /// Who asks.
    pub caller: Caller,
    /// The new promotion: [`PromotionId::of_code`].
    pub promotion_id: PromotionId,
    /// The word, as it was given.
    pub code: String,
    /// Whose listings become cheaper; [`UserId::ADMINISTRATORS`]: everybody's, and the market pays.
    pub seller_id: UserId,
    /// How the seller stands, looked up by the caller; none: not a seller.
    pub seller_standing: Option<VerificationStatus>,
    /// What is taken off.
    pub discount: Discount,
    /// What the order must cost without it, at least.
    pub minimum: Option<Money>,
    /// From when it counts; none: from now.
    pub valid_from: Option<Timestamp>,
    /// Until when; none: until it is ended.
    pub valid_until: Option<Timestamp>,
    /// How many orders it is for.
    pub uses_max: u32,
    /// How many orders of one buyer.
    pub uses_per_buyer_max: u32,
    /// When.
    pub now: Timestamp,
}

/// What to do with a promotion.
#[derive(Debug, Clone, PartialEq)]
pub enum PromotionCommand {
    /// Offer it.
    Create(Box<NewPromotion>),
    /// Take it back. Orders that have it keep it.
    End {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Hold a use for an order. Accepted with `promotion.redemption_refused` when there is none.
    Redeem {
        /// The promotion.
        promotion_id: PromotionId,
        /// The order.
        order_id: OrderId,
        /// Who buys.
        buyer_id: UserId,
        /// Who sells.
        seller_id: UserId,
        /// What the order costs without it.
        subtotal: Money,
        /// What it takes off, as the buyer saw it.
        discount: i64,
        /// When.
        now: Timestamp,
    },
    /// Give the use back. When none was ever held, none will be.
    Release {
        /// The promotion.
        promotion_id: PromotionId,
        /// The order.
        order_id: OrderId,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
}

impl Command for PromotionCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "CreatePromotion",
            Self::End { .. } => "EndPromotion",
            Self::Redeem { .. } => "RedeemPromotion",
            Self::Release { .. } => "ReleasePromotion",
        }
    }
}

souk_actors::events! {
    /// What happens to promotions.
    pub enum PromotionEvent in "promotions" as "promotion-service" {
        /// There is a code.
        Created(PromotionCreated) = "promotion.created", "PromotionCreated", 1.0, [];
        /// It counts no more.
        Ended(PromotionEnded) = "promotion.ended", "PromotionEnded", 1.0, [];
        /// An order has a use of it.
        Redeemed(PromotionRedeemed) = "promotion.redeemed", "PromotionRedeemed", 1.0, [];
        /// An order cannot have one.
        Refused(PromotionRedemptionRefused) = "promotion.redemption_refused",
            "PromotionRedemptionRefused", 1.0, [];
        /// The order was given up before it asked: it will get none.
        Barred(PromotionRedemptionBarred) = "promotion.redemption_barred",
            "PromotionRedemptionBarred", 1.0, [];
        /// The order came to nothing: somebody else can have the use.
        Released(PromotionRedemptionReleased) = "promotion.redemption_released",
            "PromotionRedemptionReleased", 1.0, [];
    }
}

/// There is a code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromotionCreated {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// The word, in upper case.
    pub code: String,
    /// Whose listings become cheaper; the nil UUID: everybody's, and the market pays.
    pub seller_id: UserId,
    /// What is taken off.
    pub discount: Discount,
    /// What the order must cost without it, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Money>,
    /// From when it counts.
    pub valid_from: Timestamp,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
    /// How many orders it is for.
    pub uses_max: u32,
    /// How many orders of one buyer.
    pub uses_per_buyer_max: u32,
    /// When.
    pub created_at: Timestamp,
}

/// A code counts no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromotionEnded {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// When.
    pub ended_at: Timestamp,
}

/// An order has a use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromotionRedeemed {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// The order.
    pub order_id: OrderId,
    /// Who buys.
    pub buyer_id: UserId,
    /// What it takes off, in minor units of the order's currency.
    pub discount: i64,
    /// When.
    pub redeemed_at: Timestamp,
}

/// An order cannot have a use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromotionRedemptionRefused {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// The order.
    pub order_id: OrderId,
    /// Why.
    pub reason: RedemptionFailure,
    /// When.
    pub refused_at: Timestamp,
}

/// An order will have no use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromotionRedemptionBarred {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// The order.
    pub order_id: OrderId,
    /// When.
    pub barred_at: Timestamp,
}

/// An order's use can be had again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromotionRedemptionReleased {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// The order.
    pub order_id: OrderId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub released_at: Timestamp,
}

/// Why a code does not count for an order. The names are stored and public.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RedemptionFailure {
    /// There is no such code, or it is another seller's.
    PromotionUnknown,
    /// It has been ended.
    PromotionEnded,
    /// It does not count yet.
    PromotionNotYetValid,
    /// It counts no more.
    PromotionExpired,
    /// All its uses are taken.
    PromotionUsedUp,
    /// All uses of this buyer are taken.
    PromotionUsedByBuyer,
    /// The order is too small.
    PromotionMinimumNotReached,
    /// It is of another currency, or nothing would be left to pay.
    PromotionNotApplicable,
    /// It takes off something else than the buyer saw.
    PromotionChanged,
}

impl RedemptionFailure {
    /// The stable code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PromotionUnknown => "promotion_unknown",
            Self::PromotionEnded => "promotion_ended",
            Self::PromotionNotYetValid => "promotion_not_yet_valid",
            Self::PromotionExpired => "promotion_expired",
            Self::PromotionUsedUp => "promotion_used_up",
            Self::PromotionUsedByBuyer => "promotion_used_by_buyer",
            Self::PromotionMinimumNotReached => "promotion_minimum_not_reached",
            Self::PromotionNotApplicable => "promotion_not_applicable",
            Self::PromotionChanged => "promotion_changed",
        }
    }

    /// What is wrong, for people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::PromotionUnknown => "there is no such code for what is bought",
            Self::PromotionEnded => "this code has been ended",
            Self::PromotionNotYetValid => "this code does not count yet",
            Self::PromotionExpired => "this code counts no more",
            Self::PromotionUsedUp => "this code has been used up",
            Self::PromotionUsedByBuyer => "this buyer has used this code as often as it counts",
            Self::PromotionMinimumNotReached => "the order costs less than this code asks for",
            Self::PromotionNotApplicable => {
                "this code is of another currency, or takes off all that the order costs"
            }
            Self::PromotionChanged => "this code takes off something else now",
        }
    }
}

rejections! {
    /// Why a promotion refuses a command.
    pub enum PromotionRejection {
        /// Never created.
        NotFound = "not_found", "there is no such promotion";
        /// The word is taken.
        CodeTaken = "promotion_code_taken", "there is already a promotion with this code";
        /// Not theirs.
        Forbidden = "forbidden", "only its seller and administrators keep a promotion";
        /// Not yet.
        SellerNotVerified = "seller_not_verified", "the seller is not verified";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(PromotionRejection);

/// A promotion, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    /// Everything about it, once created.
    pub details: Option<PromotionDetails>,
    /// What became of each order that asked for a use or gave one back.
    pub redemptions: BTreeMap<OrderId, Redemption>,
}

/// What is known of a promotion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromotionDetails {
    /// The promotion.
    pub promotion_id: PromotionId,
    /// The word, in upper case.
    pub code: String,
    /// Whose listings become cheaper.
    pub seller_id: UserId,
    /// What is taken off.
    pub discount: Discount,
    /// What the order must cost without it, at least.
    pub minimum: Option<Money>,
    /// From when it counts.
    pub valid_from: Timestamp,
    /// Until when.
    pub valid_until: Option<Timestamp>,
    /// How many orders it is for.
    pub uses_max: u32,
    /// How many orders of one buyer.
    pub uses_per_buyer_max: u32,
    /// How many orders have a use now.
    pub uses: u32,
    /// When it was ended, if it was.
    pub ended_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
}

impl PromotionDetails {
    /// Whether it counts for every seller, and the market gives what it takes off.
    pub fn is_the_markets(&self) -> bool {
        self.seller_id == UserId::ADMINISTRATORS
    }
}

/// What became of an order that asked for a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redemption {
    /// It has one.
    Held {
        /// Who buys.
        buyer_id: UserId,
    },
    /// It has given it back, or will have none.
    Over,
}

type Decision = Result<Vec<PromotionEvent>, PromotionRejection>;

impl Aggregate for Promotion {
    const TYPE: &'static str = "promotion";
    type Command = PromotionCommand;
    type Event = PromotionEvent;
    type Rejection = PromotionRejection;

    fn decide(&self, command: &PromotionCommand) -> Decision {
        match command {
            PromotionCommand::Create(new) => self.create(new),
            PromotionCommand::End { caller, now } => self.end(caller, *now),
            PromotionCommand::Redeem { .. } => Ok(self.redeem(command).into_iter().collect()),
            PromotionCommand::Release { promotion_id, order_id, reason, now } => {
                let (promotion_id, order_id) = (*promotion_id, *order_id);
                Ok(match self.redemptions.get(&order_id) {
                    Some(Redemption::Over) => Vec::new(),
                    Some(Redemption::Held { .. }) => {
                        vec![PromotionEvent::Released(PromotionRedemptionReleased {
                            promotion_id,
                            order_id,
                            reason: reason.clone(),
                            released_at: *now,
                        })]
                    }
                    None => vec![PromotionEvent::Barred(PromotionRedemptionBarred {
                        promotion_id,
                        order_id,
                        barred_at: *now,
                    })],
                })
            }
        }
    }

    fn apply(&mut self, event: &PromotionEvent) {
        match event {
            PromotionEvent::Created(event) => {
                self.details = Some(PromotionDetails {
                    promotion_id: event.promotion_id,
                    code: event.code.clone(),
                    seller_id: event.seller_id,
                    discount: event.discount,
                    minimum: event.minimum,
                    valid_from: event.valid_from,
                    valid_until: event.valid_until,
                    uses_max: event.uses_max,
                    uses_per_buyer_max: event.uses_per_buyer_max,
                    uses: 0,
                    ended_at: None,
                    created_at: event.created_at,
                });
            }
            PromotionEvent::Ended(event) => {
                if let Some(details) = &mut self.details {
                    details.ended_at = Some(event.ended_at);
                }
            }
            PromotionEvent::Redeemed(event) => {
                let held = Redemption::Held { buyer_id: event.buyer_id };
                self.redemptions.insert(event.order_id, held);
                self.count(1);
            }
            PromotionEvent::Refused(event) => {
                self.redemptions.insert(event.order_id, Redemption::Over);
            }
            PromotionEvent::Barred(event) => {
                self.redemptions.insert(event.order_id, Redemption::Over);
            }
            PromotionEvent::Released(event) => {
                self.redemptions.insert(event.order_id, Redemption::Over);
                self.count(-1);
            }
        }
    }
}

/// A code as it is compared and shown: without space around it, in upper case.
pub fn normal_code(code: &str) -> String {
    code.trim().to_ascii_uppercase()
}

fn is_code(code: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-';
    (CODE_MIN..=CODE_MAX).contains(&code.len()) && code.bytes().all(fits)
}

impl Promotion {
    fn count(&mut self, change: i32) {
        if let Some(details) = &mut self.details {
            details.uses = details.uses.saturating_add_signed(change);
        }
    }

    fn create(&self, new: &NewPromotion) -> Decision {
        if !new.caller.may_act_for(new.seller_id) {
            return Err(PromotionRejection::Forbidden);
        }
        match new.seller_standing {
            None if new.seller_id == UserId::ADMINISTRATORS => {}
            Some(VerificationStatus::Verified) => {}
            Some(_) => return Err(PromotionRejection::SellerNotVerified),
            // An administrator named somebody who sells nothing.
            None if new.caller.has(Role::Admin) && !new.caller.is(new.seller_id) => {
                let detail = "must be a seller";
                return Err(vec![FieldError::new("/seller_id", "not_a_seller", detail)].into());
            }
            None => return Err(PromotionRejection::Forbidden),
        }
        let code = normal_code(&new.code);
        let mut fields = Fields::default();
        let detail = "must be 3 to 32 letters, digits and hyphens";
        fields.require(is_code(&code), "/code", "invalid_code", detail);
        let valid_from = new.valid_from.unwrap_or(new.now);
        let begins_first =
            new.valid_until.is_none_or(|until| until > valid_from && until > new.now);
        let detail = "must be later than valid_from and than now";
        fields.require(begins_first, "/valid_until", "out_of_range", detail);
        check_discount(&mut fields, new.discount, new.minimum);
        let some = (1..=USES_MAX).contains(&new.uses_max);
        fields.require(some, "/uses_max", "out_of_range", "must be from 1 to 100000");
        let some = (1..=new.uses_max).contains(&new.uses_per_buyer_max);
        let detail = "must be from 1 to uses_max";
        fields.require(some, "/uses_per_buyer_max", "out_of_range", detail);
        fields.finish()?;
        if self.details.is_some() {
            return Err(PromotionRejection::CodeTaken);
        }
        Ok(vec![PromotionEvent::Created(PromotionCreated {
            promotion_id: new.promotion_id,
            code,
            seller_id: new.seller_id,
            discount: new.discount,
            minimum: new.minimum,
            valid_from,
            valid_until: new.valid_until,
            uses_max: new.uses_max,
            uses_per_buyer_max: new.uses_per_buyer_max,
            created_at: new.now,
        })])
    }

    fn end(&self, caller: &Caller, now: Timestamp) -> Decision {
        let details = self.details.as_ref().ok_or(PromotionRejection::NotFound)?;
        if !caller.may_act_for(details.seller_id) {
            return Err(PromotionRejection::Forbidden);
        }
        if details.ended_at.is_some() {
            return Ok(Vec::new());
        }
        let event = PromotionEnded { promotion_id: details.promotion_id, ended_at: now };
        Ok(vec![PromotionEvent::Ended(event)])
    }

    /// What the code takes off an order now, in minor units.
    pub fn quote(
        &self,
        (seller_id, buyer_id): (UserId, UserId),
        subtotal: Money,
        now: Timestamp,
    ) -> Result<i64, RedemptionFailure> {
        use RedemptionFailure as F;
        let counts = |of: &&PromotionDetails| of.seller_id == seller_id || of.is_the_markets();
        let details = self.details.as_ref().filter(counts);
        let details = details.ok_or(F::PromotionUnknown)?;
        if details.ended_at.is_some() {
            return Err(F::PromotionEnded);
        }
        if now < details.valid_from {
            return Err(F::PromotionNotYetValid);
        }
        if details.valid_until.is_some_and(|until| now >= until) {
            return Err(F::PromotionExpired);
        }
        if details.uses >= details.uses_max {
            return Err(F::PromotionUsedUp);
        }
        let held = Redemption::Held { buyer_id };
        let theirs = self.redemptions.values().filter(|redemption| **redemption == held).count();
        if theirs >= usize::try_from(details.uses_per_buyer_max).unwrap_or(usize::MAX) {
            return Err(F::PromotionUsedByBuyer);
        }
        match details.minimum {
            Some(minimum) if minimum.currency != subtotal.currency => {
                return Err(F::PromotionNotApplicable);
            }
            Some(minimum) if subtotal.amount < minimum.amount => {
                return Err(F::PromotionMinimumNotReached);
            }
            _ => {}
        }
        details.discount.of(subtotal).ok_or(F::PromotionNotApplicable)
    }

    fn redeem(&self, command: &PromotionCommand) -> Option<PromotionEvent> {
        let PromotionCommand::Redeem {
            promotion_id,
            order_id,
            buyer_id,
            seller_id,
            subtotal,
            discount,
            now,
        } = command
        else {
            return None;
        };
        if self.redemptions.contains_key(order_id) {
            return None;
        }
        let (promotion_id, order_id, buyer_id) = (*promotion_id, *order_id, *buyer_id);
        let refused = match self.quote((*seller_id, buyer_id), *subtotal, *now) {
            Ok(now_off) if now_off == *discount => None,
            Ok(_) => Some(RedemptionFailure::PromotionChanged),
            Err(reason) => Some(reason),
        };
        Some(match refused {
            None => PromotionEvent::Redeemed(PromotionRedeemed {
                promotion_id,
                order_id,
                buyer_id,
                discount: *discount,
                redeemed_at: *now,
            }),
            Some(reason) => PromotionEvent::Refused(PromotionRedemptionRefused {
                promotion_id,
                order_id,
                reason,
                refused_at: *now,
            }),
        })
    }
}

fn check_discount(fields: &mut Fields, discount: Discount, minimum: Option<Money>) {
    let is_price = minimum.is_none_or(Money::is_price);
    fields.require(is_price, "/minimum", "out_of_range", "must be more than nothing");
    match discount {
        Discount::Percentage { percentage } => {
            let fits = (1..=99).contains(&percentage);
            fields.require(fits, "/percentage", "out_of_range", "must be from 1 to 99");
        }
        Discount::Amount { money } => {
            fields.require(
                money.is_price(),
                "/amount",
                "out_of_range",
                "must be more than nothing",
            );
            let same = minimum.is_none_or(|minimum| minimum.currency == money.currency);
            let detail = "must be of the currency of amount";
            fields.require(same, "/minimum", "mixed_currencies", detail);
        }
    }
}

#[cfg(test)]
mod tests;
