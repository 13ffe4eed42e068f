//! A seller's rating: how many reviews gave how many stars.
//!
//! It learns of each change to a review once, however often it is told and however long ago that was,
//! without keeping the reviews: the events of one partition are told in their order, so the position
//! of the last one of each partition says which are known.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use souk_actors::event::Position;
use souk_actors::world::Timestamp;

use crate::domain::ids::{ReviewId, UserId};

/// How many reviews gave how many stars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Stars {
    /// One star.
    #[serde(rename = "1")]
    pub one: u64,
    /// Two.
    #[serde(rename = "2")]
    pub two: u64,
    /// Three.
    #[serde(rename = "3")]
    pub three: u64,
    /// Four.
    #[serde(rename = "4")]
    pub four: u64,
    /// Five.
    #[serde(rename = "5")]
    pub five: u64,
}

impl Stars {
    fn all(self) -> [u64; 5] {
        [self.one, self.two, self.three, self.four, self.five]
    }

    /// The number for so many stars; more than five are five, none is one.
    fn of(&mut self, rating: u8) -> &mut u64 {
        match rating {
            0 | 1 => &mut self.one,
            2 => &mut self.two,
            3 => &mut self.three,
            4 => &mut self.four,
            _ => &mut self.five,
        }
    }

    /// How many reviews there are.
    pub fn count(self) -> u64 {
        self.all().iter().sum()
    }

    /// Their average to two decimals, halves up; none: there are no reviews.
    pub fn average(self) -> Option<Number> {
        let count = self.count();
        let sum: u64 = self.all().iter().zip(1..).map(|(number, stars)| number * stars).sum();
        let hundredths = (200 * sum + count).checked_div(2 * count)?;
        format!("{}.{:02}", hundredths / 100, hundredths % 100).parse().ok()
    }
}

/// What became of a review, as far as its stars go.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RatingChange {
    /// It counts.
    Added,
    /// It does not count any more.
    Removed,
}

/// A change to a review that a seller's rating is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearntReview {
    /// The review.
    pub review_id: ReviewId,
    /// What became of it.
    pub change: RatingChange,
    /// Its stars.
    pub rating: u8,
    /// Where the event stands that says so.
    pub at: Position,
}

/// A seller's rating changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SellerRatingUpdated {
    /// The seller.
    pub seller_id: UserId,
    /// The average of all stars to two decimals; none: no review counts.
    pub average: Option<Number>,
    /// How many reviews count.
    pub count: u64,
    /// How many of them gave how many stars.
    pub stars: Stars,
    /// The review that it changed by.
    pub review_id: ReviewId,
    /// What became of that.
    pub change: RatingChange,
    /// The partition of the event that said so.
    pub partition: u16,
    /// The position of that event.
    pub position: u64,
    /// When.
    pub updated_at: Timestamp,
}

/// The rating of a seller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rating {
    /// How many reviews gave how many stars.
    pub stars: Stars,
    /// The last position of each partition that is in it.
    learnt: BTreeMap<u16, u64>,
}

impl Rating {
    /// Whether the event at this position is in it.
    pub fn has_learnt(&self, at: Position) -> bool {
        self.learnt.get(&at.partition).is_some_and(|last| *last >= at.position)
    }

    /// What follows from a change to a review; nothing, when it is known.
    pub fn learn(
        &self,
        seller_id: UserId,
        news: LearntReview,
        now: Timestamp,
    ) -> Option<SellerRatingUpdated> {
        if self.has_learnt(news.at) {
            return None;
        }
        let mut stars = self.stars;
        let number = stars.of(news.rating);
        *number = match news.change {
            RatingChange::Added => number.saturating_add(1),
            RatingChange::Removed => number.saturating_sub(1),
        };
        Some(SellerRatingUpdated {
            seller_id,
            average: stars.average(),
            count: stars.count(),
            stars,
            review_id: news.review_id,
            change: news.change,
            partition: news.at.partition,
            position: news.at.position,
            updated_at: now,
        })
    }

    /// Takes note of a change.
    pub fn apply(&mut self, event: &SellerRatingUpdated) {
        self.stars = event.stars;
        self.learnt.insert(event.partition, event.position);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::testing::{at, order, user};

    fn news(place: (u16, u64), change: RatingChange, rating: u8) -> LearntReview {
        let (partition, position) = place;
        let review_id = ReviewId::of(order(u128::from(position)));
        LearntReview { review_id, change, rating, at: Position { partition, position } }
    }

    fn tell(rating: &mut Rating, news: LearntReview) -> Option<SellerRatingUpdated> {
        let event = rating.learn(user(2), news, at(1))?;
        rating.apply(&event);
        Some(event)
    }

    fn average_of(ratings: &[u8]) -> String {
        let mut rating = Rating::default();
        for (position, stars) in (1..).zip(ratings) {
            tell(&mut rating, news((0, position), RatingChange::Added, *stars));
        }
        serde_json::to_string(&rating.stars.average()).unwrap()
    }

    #[test]
    fn averages_are_exact_to_two_decimals() {
        assert_eq!(average_of(&[]), "null");
        assert_eq!(average_of(&[5, 4, 3]), "4.0");
        assert_eq!(average_of(&[5, 4]), "4.5");
        assert_eq!(average_of(&[5, 4, 4]), "4.33");
        assert_eq!(average_of(&[5, 5, 4]), "4.67");
        assert_eq!(average_of(&[1; 9]), "1.0");
        // An eighth: 4.125 is 4.13.
        assert_eq!(average_of(&[5, 4, 4, 4, 4, 4, 4, 4]), "4.13");
    }

    #[test]
    fn the_last_review_that_is_hidden_leaves_no_average() {
        let mut rating = Rating::default();
        tell(&mut rating, news((0, 1), RatingChange::Added, 5));
        let event = tell(&mut rating, news((0, 2), RatingChange::Removed, 5)).unwrap();
        assert_eq!((event.count, event.average), (0, None));
    }

    /// A review in the model: its partition, its stars, and its events' positions.
    #[derive(Debug, Clone)]
    struct Told {
        partition: u16,
        rating: u8,
        changes: usize,
    }

    fn any_review() -> impl Strategy<Value = Told> {
        (0u16..4, 1u8..=5, 1usize..4).prop_map(|(partition, rating, changes)| Told {
            partition,
            rating,
            changes,
        })
    }

    proptest! {
        /// Reviews of several partitions come, are hidden and shown again. Each partition is told in
        /// order, and goes back to anywhere before: at the end the rating is that of the reviews.
        #[test]
        fn each_change_counts_once_however_often_it_is_told(
            reviews in prop::collection::vec(any_review(), 0..40),
            restarts in prop::collection::vec((0u16..4, any::<prop::sample::Index>()), 0..20),
        ) {
            let mut logs: BTreeMap<u16, Vec<LearntReview>> = BTreeMap::new();
            let mut expected = [0u64; 5];
            for review in &reviews {
                let log = logs.entry(review.partition).or_default();
                for change in 0..review.changes {
                    let place = (review.partition, log.len() as u64 + 1);
                    let change =
                        [RatingChange::Added, RatingChange::Removed][change % 2];
                    log.push(news(place, change, review.rating));
                }
                if review.changes % 2 == 1 {
                    expected[usize::from(review.rating) - 1] += 1;
                }
            }
            let mut rating = Rating::default();
            // Deliveries break off and begin again further back; then everything is told to the end.
            let parts = restarts.iter().filter_map(|(partition, upto)| {
                let log = logs.get(partition)?;
                Some(&log[..=upto.index(log.len())])
            });
            for log in parts.chain(logs.values().map(Vec::as_slice)) {
                for news in log {
                    tell(&mut rating, *news);
                }
            }
            prop_assert_eq!(rating.stars.all(), expected);
            prop_assert!(rating.learnt.len() <= 4, "it remembers partitions, not reviews");
            let again: Rating =
                serde_json::from_str(&serde_json::to_string(&rating).unwrap()).unwrap();
            prop_assert_eq!(again, rating);
        }
    }
}
