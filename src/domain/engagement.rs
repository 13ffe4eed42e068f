//! Engagement: how much somebody takes part in the market, as a number that only rises.
//!
//! One score a person. Each thing that they do counts once, however often it is told, and each kind of thing
//! counts so many times at most: nobody rises for ever by one kind alone, and what a score remembers has
//! a bound. What is the same for everybody who does it has the same points, so the order in which things
//! are told makes no difference.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::ids::UserId;

/// What counts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// Proved the e-mail address.
    EmailVerified,
    /// Gave a number for text messages.
    PhoneAdded,
    /// Was accepted as a seller.
    SellerVerified,
    /// Offered something for sale.
    ListingPublished,
    /// Bought something, and it arrived.
    OrderReceived,
    /// Reviewed an order.
    ReviewWritten,
}

impl Doing {
    /// How many points it is worth each time.
    pub fn points(self) -> u32 {
        match self {
            Self::EmailVerified | Self::SellerVerified => 10,
            Self::PhoneAdded | Self::OrderReceived => 5,
            Self::ReviewWritten => 3,
            Self::ListingPublished => 2,
        }
    }

    /// How often it counts at most.
    pub fn times_max(self) -> usize {
        match self {
            Self::EmailVerified | Self::PhoneAdded | Self::SellerVerified => 1,
            Self::ListingPublished | Self::OrderReceived | Self::ReviewWritten => 20,
        }
    }
}

/// What to do with a score.
#[derive(Debug, Clone, PartialEq)]
pub enum EngagementCommand {
    /// They did something.
    Record {
        /// Who.
        user_id: UserId,
        /// What.
        doing: Doing,
        /// Which one: the listing, the order, the review, or the person themselves.
        subject_id: Uuid,
        /// When.
        now: Timestamp,
    },
}

impl Command for EngagementCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Record { .. } => "RecordEngagement",
        }
    }
}

souk_actors::events! {
    /// What happens to scores.
    pub enum EngagementEvent in "users" as "user-service" {
        /// The score rose.
        Updated(UserEngagementUpdated) = "user.engagement_updated", "UserEngagementUpdated", 1.0,
            [];
    }
}

/// The score rose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserEngagementUpdated {
    /// Whose.
    pub user_id: UserId,
    /// For what.
    pub doing: Doing,
    /// Which one: the listing, the order, the review, or the person themselves.
    pub subject_id: Uuid,
    /// By how much.
    pub points: u32,
    /// What it is now.
    pub engagement_score: u32,
    /// When.
    pub updated_at: Timestamp,
}

/// A person's score.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Engagement {
    /// What it is.
    pub score: u32,
    /// What has counted.
    counted: BTreeMap<Doing, BTreeSet<Uuid>>,
}

impl Aggregate for Engagement {
    const TYPE: &'static str = "engagement";
    type Command = EngagementCommand;
    type Event = EngagementEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &EngagementCommand) -> Result<Vec<EngagementEvent>, NoRejection> {
        let EngagementCommand::Record { user_id, doing, subject_id, now } = *command;
        let counted = self.counted.get(&doing);
        let is_told = counted.is_some_and(|subjects| subjects.contains(&subject_id));
        if is_told || counted.map_or(0, BTreeSet::len) >= doing.times_max() {
            return Ok(Vec::new());
        }
        let points = doing.points();
        Ok(vec![EngagementEvent::Updated(UserEngagementUpdated {
            user_id,
            doing,
            subject_id,
            points,
            engagement_score: self.score.saturating_add(points),
            updated_at: now,
        })])
    }

    fn apply(&mut self, event: &EngagementEvent) {
        let EngagementEvent::Updated(event) = event;
        self.score = event.engagement_score;
        self.counted.entry(event.doing).or_default().insert(event.subject_id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{BUYER, assert_folds, at, run, user};

    fn record(doing: Doing, subject: u128) -> EngagementCommand {
        let (user_id, subject_id) = (user(BUYER), Uuid::from_u128(subject));
        EngagementCommand::Record { user_id, doing, subject_id, now: at(1) }
    }

    #[test]
    fn the_score_rises_with_what_is_done_and_not_with_what_is_told_again() {
        Scenario::<Engagement>::new()
            .when(record(Doing::EmailVerified, BUYER))
            .then_types(&["user.engagement_updated"])
            .when(record(Doing::EmailVerified, BUYER))
            .then([])
            .when(record(Doing::OrderReceived, 7))
            .then_types(&["user.engagement_updated"])
            .when(record(Doing::OrderReceived, 7))
            .then([])
            .when(record(Doing::ReviewWritten, 7))
            .and_state(|engagement| assert_eq!(engagement.score, 10 + 5 + 3))
            .then_types(&["user.engagement_updated"]);
    }

    proptest! {
        /// Whatever is told how often and in whatever order: as many different things of each kind as count.
        #[test]
        fn each_thing_counts_once_and_each_kind_so_often_at_most(
            told in prop::collection::vec((0usize..3, 0u128..30), 0..120),
        ) {
            const KINDS: [Doing; 3] =
                [Doing::ListingPublished, Doing::ReviewWritten, Doing::PhoneAdded];
            let commands: Vec<_> =
                told.iter().map(|(kind, subject)| record(KINDS[*kind], *subject)).collect();
            let (engagement, history) = run::<Engagement>(&commands);
            let different: BTreeSet<_> = told.iter().copied().collect();
            let expected: u32 = (0..3)
                .map(|kind| {
                    let of = different.iter().filter(|(which, _)| *which == kind).count();
                    let times = of.min(if kind == 2 { 1 } else { 20 });
                    KINDS[kind].points() * u32::try_from(times).unwrap()
                })
                .sum();
            prop_assert_eq!(engagement.score, expected);
            assert_folds(&engagement, &history);
        }
    }
}
