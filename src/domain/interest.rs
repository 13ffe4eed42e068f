//! What a person wants to hear of: a seller's new listings (following), or a listing's price
//! (a favourite). Each pair of a person and what they want to hear of is an aggregate of its own, so
//! that nobody's state grows with the number of followers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::caller::Caller;
use super::ids::{InterestId, ListingId, UserId};
use super::rejection::rejections;

/// In what kind of thing somebody takes an interest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum InterestKind {
    /// In a seller.
    Seller,
    /// In a listing.
    Listing,
}

impl InterestKind {
    /// Its name, as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seller => "seller",
            Self::Listing => "listing",
        }
    }
}

/// In what somebody takes an interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterestOf {
    /// A seller whom they follow.
    Seller(UserId),
    /// A listing that is a favourite of theirs.
    Listing(ListingId),
}

impl InterestOf {
    /// In what kind of thing.
    pub const fn kind(self) -> InterestKind {
        match self {
            Self::Seller(_) => InterestKind::Seller,
            Self::Listing(_) => InterestKind::Listing,
        }
    }

    /// In which.
    pub const fn target(self) -> Uuid {
        match self {
            Self::Seller(seller) => seller.uuid(),
            Self::Listing(listing) => listing.uuid(),
        }
    }
}

/// What to do with an interest.
#[derive(Debug, Clone, PartialEq)]
pub enum InterestCommand {
    /// Take it.
    Take {
        /// Who asks.
        caller: Caller,
        /// Whose it is.
        user_id: UserId,
        /// In what; that there is such a thing the door has looked up.
        of: InterestOf,
        /// When.
        now: Timestamp,
    },
    /// Lose it.
    Lose {
        /// Who asks.
        caller: Caller,
        /// Whose it is.
        user_id: UserId,
        /// In what.
        of: InterestOf,
        /// When.
        now: Timestamp,
    },
}

impl Command for InterestCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Take { of: InterestOf::Seller(_), .. } => "FollowUser",
            Self::Take { of: InterestOf::Listing(_), .. } => "AddFavourite",
            Self::Lose { of: InterestOf::Seller(_), .. } => "UnfollowUser",
            Self::Lose { of: InterestOf::Listing(_), .. } => "RemoveFavourite",
        }
    }
}

souk_actors::events! {
    /// What happens to interests.
    pub enum InterestEvent in "users" as "user-service" {
        /// Somebody follows a seller.
        Followed(UserFollowed) = "user.followed", "UserFollowed", 1.0, [];
        /// Somebody follows a seller no more.
        Unfollowed(UserUnfollowed) = "user.unfollowed", "UserUnfollowed", 1.0, [];
        /// A listing is a favourite of somebody's.
        FavouriteAdded(FavouriteAdded) = "favourite.added", "FavouriteAdded", 1.0, [];
        /// It is no more.
        FavouriteRemoved(FavouriteRemoved) = "favourite.removed", "FavouriteRemoved", 1.0, [];
    }
}

/// Somebody follows a seller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserFollowed {
    /// The seller.
    pub seller_id: UserId,
    /// Who follows.
    pub follower_id: UserId,
    /// When.
    pub followed_at: Timestamp,
}

/// Somebody follows a seller no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserUnfollowed {
    /// The seller.
    pub seller_id: UserId,
    /// Who followed.
    pub follower_id: UserId,
    /// When.
    pub unfollowed_at: Timestamp,
}

/// A listing is a favourite of somebody's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FavouriteAdded {
    /// The listing.
    pub listing_id: ListingId,
    /// Whose.
    pub user_id: UserId,
    /// When.
    pub added_at: Timestamp,
}

/// A listing is no favourite of somebody's any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FavouriteRemoved {
    /// The listing.
    pub listing_id: ListingId,
    /// Whose.
    pub user_id: UserId,
    /// When.
    pub removed_at: Timestamp,
}

rejections! {
    /// Why an interest refuses a command.
    pub enum InterestRejection {
        /// Not theirs to ask.
        Forbidden = "forbidden", "everybody follows and remembers for themselves";
        /// Oneself.
        SelfFollow = "self_follow", "nobody can follow themselves";
    }
}

/// An interest, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interest {
    /// Since when it lasts; none: it does not.
    pub since: Option<Timestamp>,
}

impl InterestId {
    /// The interest of somebody in something.
    pub fn of(user: UserId, of: InterestOf) -> Self {
        let parts: [&[u8]; 3] =
            [of.kind().as_str().as_bytes(), user.0.as_bytes(), &of.target().into_bytes()];
        Self(souk_actors::id::derived("interest", &parts))
    }
}

impl Aggregate for Interest {
    const TYPE: &'static str = "interest";
    type Command = InterestCommand;
    type Event = InterestEvent;
    type Rejection = InterestRejection;

    fn decide(&self, command: &InterestCommand) -> Result<Vec<InterestEvent>, InterestRejection> {
        let (InterestCommand::Take { caller, user_id, of, now }
        | InterestCommand::Lose { caller, user_id, of, now }) = command;
        if !caller.is(*user_id) {
            return Err(InterestRejection::Forbidden);
        }
        if *of == InterestOf::Seller(*user_id) {
            return Err(InterestRejection::SelfFollow);
        }
        let takes = matches!(command, InterestCommand::Take { .. });
        if takes == self.since.is_some() {
            return Ok(Vec::new());
        }
        let (user_id, follower_id, now) = (*user_id, *user_id, *now);
        Ok(vec![match (*of, takes) {
            (InterestOf::Seller(seller_id), true) => {
                InterestEvent::Followed(UserFollowed { seller_id, follower_id, followed_at: now })
            }
            (InterestOf::Seller(seller_id), false) => InterestEvent::Unfollowed(UserUnfollowed {
                seller_id,
                follower_id,
                unfollowed_at: now,
            }),
            (InterestOf::Listing(listing_id), true) => {
                InterestEvent::FavouriteAdded(FavouriteAdded { listing_id, user_id, added_at: now })
            }
            (InterestOf::Listing(listing_id), false) => {
                let removed = FavouriteRemoved { listing_id, user_id, removed_at: now };
                InterestEvent::FavouriteRemoved(removed)
            }
        }])
    }

    fn apply(&mut self, event: &InterestEvent) {
        self.since = match event {
            InterestEvent::Followed(event) => Some(event.followed_at),
            InterestEvent::FavouriteAdded(event) => Some(event.added_at),
            InterestEvent::Unfollowed(_) | InterestEvent::FavouriteRemoved(_) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{
        BUYER, SELLER, admin, assert_folds, at, buyer, listing, run, seller, user,
    };

    fn take(caller: Caller, of: InterestOf) -> InterestCommand {
        InterestCommand::Take { caller, user_id: user(BUYER), of, now: at(1) }
    }

    fn lose(of: InterestOf) -> InterestCommand {
        InterestCommand::Lose { caller: buyer(), user_id: user(BUYER), of, now: at(2) }
    }

    #[test]
    fn people_follow_sellers_and_remember_listings() {
        let sam = InterestOf::Seller(user(SELLER));
        let loom = InterestOf::Listing(listing(1));
        for (of, taken, lost) in [
            (sam, "user.followed", "user.unfollowed"),
            (loom, "favourite.added", "favourite.removed"),
        ] {
            Scenario::<Interest>::new()
                .when(lose(of))
                .then([])
                .when(take(buyer(), of))
                .and_state(|interest| assert_eq!(interest.since, Some(at(1))))
                .then_types(&[taken])
                .when(take(buyer(), of))
                .then([])
                .when(lose(of))
                .then_types(&[lost])
                .when(take(buyer(), of))
                .then_types(&[taken]);
        }
    }

    #[test]
    fn nobody_follows_for_somebody_else_or_themselves() {
        let sam = InterestOf::Seller(user(SELLER));
        for caller in [seller(), admin(), Caller::System, Caller::Anonymous] {
            Scenario::<Interest>::new().when(take(caller, sam)).then_rejected("forbidden");
        }
        let oneself = InterestOf::Seller(user(BUYER));
        Scenario::<Interest>::new().when(take(buyer(), oneself)).then_rejected("self_follow");
    }

    #[test]
    fn every_pair_is_one_of_its_own() {
        let of = |person, of| InterestId::of(user(person), of).uuid();
        let (same, other) = (user(SELLER), listing(1));
        let by_kind = [InterestOf::Seller(same), InterestOf::Listing(ListingId(same.uuid()))];
        assert_ne!(of(BUYER, by_kind[0]), of(BUYER, by_kind[1]));
        assert_ne!(of(BUYER, InterestOf::Listing(other)), of(SELLER, InterestOf::Listing(other)));
    }

    #[test]
    fn histories_fold_in_parts() {
        let sam = InterestOf::Seller(user(SELLER));
        let commands = [take(buyer(), sam), lose(sam), take(buyer(), sam)];
        let (state, history) = run::<Interest>(&commands);
        assert_eq!(history.len(), 3);
        assert_folds(&state, &history);
    }
}
