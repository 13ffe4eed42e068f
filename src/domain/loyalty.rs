//! Loyalty: the points that a buyer has for what arrived and was kept.
//!
//! One account a person. An order stands with as many points as the money that is kept for it is worth;
//! goods that go back take their points along. The account is told how an order stands, with the version
//! that the order had then, so it may be told twice, and late: each change counts once.

use std::collections::{BTreeMap, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;

use super::ids::{OrderId, UserId};
use super::money::{Currency, Money};

/// How many of the last entries an account shows; all of them are in its events.
pub const HISTORY_MAX: usize = 200;

/// What to do with an account.
#[derive(Debug, Clone, PartialEq)]
pub enum LoyaltyCommand {
    /// An order of theirs stands like this.
    Learn {
        /// Whose account.
        user_id: UserId,
        /// The order.
        order_id: OrderId,
        /// The version that the order had.
        order_version: u64,
        /// The money that is kept for what arrived; nothing, when nothing has.
        kept: Money,
        /// For how many minor units there is a point. An order keeps to what it began with.
        minor_units_per_point: i64,
        /// When.
        now: Timestamp,
    },
}

impl Command for LoyaltyCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Learn { .. } => "LearnLoyaltyOrder",
        }
    }
}

souk_actors::events! {
    /// What happens to accounts of points.
    pub enum LoyaltyEvent in "loyalty" as "loyalty-service" {
        /// There are more points.
        Accrued(LoyaltyPointsAccrued) = "loyalty.points_accrued", "LoyaltyPointsAccrued", 1.0, [];
        /// There are fewer.
        Reversed(LoyaltyPointsReversed) = "loyalty.points_reversed", "LoyaltyPointsReversed", 1.0, [];
    }
}

/// There are more points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoyaltyPointsAccrued {
    /// Whose.
    pub user_id: UserId,
    /// For which order.
    pub order_id: OrderId,
    /// The version that the order had.
    pub order_version: u64,
    /// How many more.
    pub points: i64,
    /// How many there are now.
    pub balance: i64,
    /// For how many minor units there is a point.
    pub minor_units_per_point: i64,
    /// When.
    pub accrued_at: Timestamp,
}

/// There are fewer points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoyaltyPointsReversed {
    /// Whose.
    pub user_id: UserId,
    /// For which order.
    pub order_id: OrderId,
    /// The version that the order had.
    pub order_version: u64,
    /// How many fewer.
    pub points: i64,
    /// How many there are now.
    pub balance: i64,
    /// When.
    pub reversed_at: Timestamp,
}

/// For how many minor units of each currency there is a point; for the others there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates(pub BTreeMap<Currency, i64>);

impl Default for Rates {
    fn default() -> Self {
        Self(BTreeMap::from([(Currency::Vnd, 10_000)]))
    }
}

impl Rates {
    /// For how many minor units there is a point.
    pub fn of(&self, currency: Currency) -> Option<i64> {
        self.0.get(&currency).copied()
    }
}

impl std::str::FromStr for Rates {
    type Err = String;

    /// `VND=10000,USD=100`, or `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(BTreeMap::new()));
        }
        let mut rates = BTreeMap::new();
        for part in text.split(',') {
            let (currency, units) = part.split_once('=').ok_or_else(|| part.to_owned())?;
            let currency = currency.trim().parse::<Currency>().map_err(|_| part.to_owned())?;
            let units = units.trim().parse().ok().filter(|units| *units > 0);
            rates.insert(currency, units.ok_or_else(|| part.to_owned())?);
        }
        Ok(Self(rates))
    }
}

/// An account of points.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoyaltyAccount {
    /// How many there are.
    pub balance: i64,
    /// How many there ever were, whatever went back.
    pub earned: i64,
    /// How each order stands.
    orders: BTreeMap<OrderId, Standing>,
    /// The last entries, the latest first.
    pub history: VecDeque<Entry>,
}

/// How an order stands in the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    points: i64,
    minor_units_per_point: i64,
    version: u64,
}

/// A change of the balance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// For which order.
    pub order_id: OrderId,
    /// How many points more, or fewer.
    pub points: i64,
    /// How many there were then.
    pub balance: i64,
    /// When.
    pub at: Timestamp,
}

impl Aggregate for LoyaltyAccount {
    const TYPE: &'static str = "loyalty_account";
    type Command = LoyaltyCommand;
    type Event = LoyaltyEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &LoyaltyCommand) -> Result<Vec<LoyaltyEvent>, NoRejection> {
        let LoyaltyCommand::Learn { user_id, order_id, order_version, kept, .. } = *command;
        let LoyaltyCommand::Learn { minor_units_per_point, now, .. } = *command;
        let known = self.orders.get(&order_id).copied();
        if known.is_some_and(|known| known.version >= order_version) {
            return Ok(Vec::new());
        }
        let unit = known.map_or(minor_units_per_point, |known| known.minor_units_per_point);
        let worth = kept.amount.max(0).checked_div(unit).unwrap_or(0);
        let change = worth - known.map_or(0, |known| known.points);
        let balance = self.balance.saturating_add(change);
        Ok(match change {
            0 => Vec::new(),
            1.. => vec![LoyaltyEvent::Accrued(LoyaltyPointsAccrued {
                user_id,
                order_id,
                order_version,
                points: change,
                balance,
                minor_units_per_point: unit,
                accrued_at: now,
            })],
            _ => vec![LoyaltyEvent::Reversed(LoyaltyPointsReversed {
                user_id,
                order_id,
                order_version,
                points: -change,
                balance,
                reversed_at: now,
            })],
        })
    }

    fn apply(&mut self, event: &LoyaltyEvent) {
        match event {
            LoyaltyEvent::Accrued(event) => {
                let unit = event.minor_units_per_point;
                self.earned = self.earned.saturating_add(event.points);
                self.note(event.order_id, (event.points, event.balance), event.accrued_at);
                let before = self.orders.get(&event.order_id).map_or(0, |of| of.points);
                let standing = Standing {
                    points: before.saturating_add(event.points),
                    minor_units_per_point: unit,
                    version: event.order_version,
                };
                self.orders.insert(event.order_id, standing);
            }
            LoyaltyEvent::Reversed(event) => {
                self.note(event.order_id, (-event.points, event.balance), event.reversed_at);
                if let Some(standing) = self.orders.get_mut(&event.order_id) {
                    standing.points = standing.points.saturating_sub(event.points);
                    standing.version = event.order_version;
                }
            }
        }
    }
}

impl LoyaltyAccount {
    fn note(&mut self, order_id: OrderId, (points, balance): (i64, i64), at: Timestamp) {
        self.balance = balance;
        self.history.push_front(Entry { order_id, points, balance, at });
        self.history.truncate(HISTORY_MAX);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{BUYER, assert_folds, at, dong, order, run, user};

    fn learn(number: u128, order_version: u64, kept: i64) -> LoyaltyCommand {
        LoyaltyCommand::Learn {
            user_id: user(BUYER),
            order_id: order(number),
            order_version,
            kept: dong(kept),
            minor_units_per_point: 1_000,
            now: at(order_version),
        }
    }

    #[test]
    fn points_come_with_what_arrives_and_go_with_what_goes_back() {
        Scenario::<LoyaltyAccount>::new()
            .when(learn(1, 5, 2_999))
            .then_types(&["loyalty.points_accrued"])
            .when(learn(1, 5, 2_999))
            .then([])
            .when(learn(2, 5, 999))
            .then([])
            .when(learn(1, 7, 1_000))
            .and_state(|account| {
                assert_eq!((account.balance, account.earned), (1, 2));
                let points: Vec<_> = account.history.iter().map(|entry| entry.points).collect();
                assert_eq!(points, [-1, 2]);
            })
            .then_types(&["loyalty.points_reversed"])
            // An older word comes late.
            .when(learn(1, 6, 2_999))
            .then([])
            .when(learn(1, 9, 0))
            .and_state(|account| assert_eq!(account.balance, 0))
            .then_types(&["loyalty.points_reversed"]);
    }

    #[test]
    fn an_order_keeps_to_the_rate_that_it_began_with() {
        let LoyaltyCommand::Learn { user_id, order_id, kept, now, .. } = learn(1, 8, 4_000);
        let dearer = LoyaltyCommand::Learn {
            user_id,
            order_id,
            order_version: 8,
            kept,
            minor_units_per_point: 4_000,
            now,
        };
        Scenario::<LoyaltyAccount>::new()
            .when(learn(1, 5, 5_000))
            .then_types(&["loyalty.points_accrued"])
            .when(dearer)
            .and_state(|account| assert_eq!(account.balance, 4))
            .then_types(&["loyalty.points_reversed"]);
    }

    #[test]
    fn rates_are_read_or_refused() {
        let rates: Rates = "VND=10000, USD=100".parse().unwrap();
        assert_eq!((rates.of(Currency::Vnd), rates.of(Currency::Usd)), (Some(10_000), Some(100)));
        assert_eq!(rates.of(Currency::Eur), None);
        assert_eq!("none".parse::<Rates>().unwrap().of(Currency::Vnd), None);
        for text in ["", "VND", "VND=0", "VND=-1", "VND=x", "XXX=1", "VND=1,,"] {
            assert!(text.parse::<Rates>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever is told how often and in whatever order: what the latest word of each order is worth.
        #[test]
        fn the_latest_word_of_each_order_counts(
            told in prop::collection::vec((1u128..4, 1u64..8), 0..40),
        ) {
            // What is kept of an order follows from its version.
            let kept = |version: u64| i64::try_from(9 - version).unwrap() * 1_500;
            let commands: Vec<_> = told
                .iter()
                .map(|(number, version)| learn(*number, *version, kept(*version)))
                .collect();
            let (account, history) = run::<LoyaltyAccount>(&commands);
            let latest = |number: u128| {
                let of = told.iter().filter(|(told, _)| *told == number);
                of.map(|(_, version)| *version).max().map_or(0, |version| kept(version) / 1_000)
            };
            prop_assert_eq!(account.balance, (1..4).map(latest).sum::<i64>());
            assert_folds(&account, &history);
        }
    }
}
