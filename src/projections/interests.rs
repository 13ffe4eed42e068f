//! `interests-view`: whom people follow and what their favourites are, from either side.

use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::interest::{FavouriteAdded, InterestEvent, InterestKind, UserFollowed};

/// An interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterestRow {
    /// The interest.
    pub interest_id: Uuid,
    /// Whose it is.
    pub user_id: Uuid,
    /// In what kind of thing: `seller` or `listing`.
    pub kind: String,
    /// In which.
    pub target_id: Uuid,
    /// Whether it lasts.
    pub active: bool,
    /// The aggregate's version that this row is at.
    pub version: i64,
    /// Since when.
    pub since: Timestamp,
}

/// The interests.
pub struct InterestsView;

impl View for InterestsView {
    const NAME: &'static str = super::INTERESTS_VIEW;
    const CONTEXT: &'static str = "users";
    const TOPICS: &'static [&'static str] = &["user.followed", "user.unfollowed", "favourite.*"];
    const TABLE: &'static str = "interests_v1";
    const COLUMNS: &'static [&'static str] =
        &["interest_id", "user_id", "kind", "target_id", "active", "version", "since_ms"];
    const FIXED: &'static [&'static str] = &["user_id", "kind", "target_id"];
    type Row = InterestRow;

    fn fold(row: Option<InterestRow>, event: &StoredEvent) -> Result<Option<InterestRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
        let (kind, user, target) = match &*event.event_type {
            "user.followed" => {
                let UserFollowed { seller_id, follower_id, .. } =
                    read_data::<InterestEvent, _>(event)?;
                (InterestKind::Seller, follower_id.uuid(), seller_id.uuid())
            }
            "favourite.added" => {
                let FavouriteAdded { listing_id, user_id, .. } =
                    read_data::<InterestEvent, _>(event)?;
                (InterestKind::Listing, user_id.uuid(), listing_id.uuid())
            }
            _ => return Ok(row.map(|row| InterestRow { active: false, version, ..row })),
        };
        Ok(Some(InterestRow {
            interest_id: event.aggregate_id,
            user_id: user,
            kind: kind.as_str().to_owned(),
            target_id: target,
            active: true,
            version,
            since: event.timestamp,
        }))
    }

    fn values(row: &InterestRow) -> Vec<Param> {
        vec![
            row.interest_id.into(),
            row.user_id.into(),
            (&row.kind).into(),
            row.target_id.into(),
            row.active.into(),
            row.version.into(),
            row.since.into(),
        ]
    }

    fn read(row: &Row) -> Result<InterestRow, ReadError> {
        Ok(InterestRow {
            interest_id: row.id(0)?,
            user_id: row.id(1)?,
            kind: row.text(2)?,
            target_id: row.id(3)?,
            active: row.flag(4)?,
            version: row.int(5)?,
            since: row.time(6)?,
        })
    }
}

fn table(db: &ReadDb) -> String {
    db.table(InterestsView::NAME, InterestsView::TABLE)
}

/// What somebody takes an interest in, the newest first.
pub async fn of_user(
    db: &ReadDb,
    user_id: Uuid,
    kind: InterestKind,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<InterestRow>, ReadError> {
    let query = Query::select(InterestsView::COLUMNS, &table(db))
        .then(" AND active = 1 AND user_id = ")
        .value(user_id)
        .then(" AND kind = ")
        .value(kind.as_str())
        .before("since_ms, interest_id", before)
        .then(" ORDER BY since_ms DESC, interest_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, InterestsView::read).await
}

/// Who takes an interest in something, behind an interest, in the order of their ids.
pub async fn in_target(
    db: &ReadDb,
    (kind, target_id): (InterestKind, Uuid),
    after: Option<Uuid>,
    limit: u32,
) -> Result<Vec<InterestRow>, ReadError> {
    let query = Query::select(InterestsView::COLUMNS, &table(db))
        .then(" AND active = 1 AND kind = ")
        .value(kind.as_str())
        .then(" AND target_id = ")
        .value(target_id)
        .when(" AND interest_id > ", after)
        .then(" ORDER BY interest_id LIMIT ")
        .value(limit);
    db.fetch_as(query, InterestsView::read).await
}

/// How many take an interest in something.
pub async fn count(db: &ReadDb, kind: InterestKind, target_id: Uuid) -> Result<u64, ReadError> {
    let query = Query::select(&["COUNT(*)"], &table(db))
        .then(" AND active = 1 AND kind = ")
        .value(kind.as_str())
        .then(" AND target_id = ")
        .value(target_id);
    Ok(db.fetch_as(query, |row| row.count(0)).await?.first().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{InterestId, ListingId, UserId};
    use crate::domain::interest::{FavouriteRemoved, InterestOf, UserUnfollowed};
    use crate::projections::testing::{self, numbered, row_of, stored};
    use crate::projections::view::{Projected, ViewTable};

    fn user(number: u128) -> UserId {
        UserId(Uuid::from_u128(number))
    }

    fn followed(follower: u128, version: u64) -> StoredEvent {
        let (seller_id, follower_id) = (user(1), user(follower));
        let at = Timestamp::from_millis(i64::try_from(version).unwrap());
        let payload = match version % 2 {
            1 => InterestEvent::Followed(UserFollowed { seller_id, follower_id, followed_at: at }),
            _ => InterestEvent::Unfollowed(UserUnfollowed {
                seller_id,
                follower_id,
                unfollowed_at: at,
            }),
        };
        let id = InterestId::of(follower_id, InterestOf::Seller(seller_id)).uuid();
        let event = stored(&payload, "interest", id);
        StoredEvent { aggregate_version: version, timestamp: at, ..event }
    }

    fn favourite(of: u128, removed: bool) -> StoredEvent {
        let (listing_id, user_id) = (ListingId(Uuid::from_u128(1)), user(of));
        let at = Timestamp::from_millis(1);
        let payload = if removed {
            InterestEvent::FavouriteRemoved(FavouriteRemoved {
                listing_id,
                user_id,
                removed_at: at,
            })
        } else {
            InterestEvent::FavouriteAdded(FavouriteAdded { listing_id, user_id, added_at: at })
        };
        let id = InterestId::of(user_id, InterestOf::Listing(listing_id)).uuid();
        let aggregate_version = 1 + u64::from(removed);
        StoredEvent { aggregate_version, ..stored(&payload, "interest", id) }
    }

    #[tokio::test]
    async fn an_interest_is_lost_and_taken_again() {
        let row = row_of::<InterestsView>([followed(2, 1), followed(2, 2)]).await.unwrap();
        assert!(!row.active);
        let again = [followed(2, 1), followed(2, 2), followed(2, 3)];
        let row = row_of::<InterestsView>(again).await.unwrap();
        assert_eq!((row.active, row.since.millis(), row.version), (true, 3, 3));
    }

    #[tokio::test]
    async fn interests_are_found_from_either_side() {
        let test = testing::open().await;
        let projected = Projected::<ViewTable<InterestsView>>::new(test.db.clone());
        let events = numbered([
            followed(2, 1),
            followed(3, 1),
            followed(4, 1),
            followed(4, 2),
            favourite(2, false),
            favourite(3, false),
            favourite(3, true),
        ]);
        projected.advance(0, &events, 7).await.unwrap();
        // The seller and the listing have the same number, and are not the same.
        let one = Uuid::from_u128(1);
        assert_eq!(count(&test.db, InterestKind::Seller, one).await.unwrap(), 2);
        assert_eq!(count(&test.db, InterestKind::Listing, one).await.unwrap(), 1);
        let mut followers = Vec::new();
        let mut after = None;
        loop {
            let page = in_target(&test.db, (InterestKind::Seller, one), after, 1).await.unwrap();
            let Some(row) = page.into_iter().next() else { break };
            assert!(after.is_none_or(|after| after < row.interest_id));
            after = Some(row.interest_id);
            followers.push(row.user_id);
        }
        followers.sort_unstable();
        assert_eq!(followers, [user(2).uuid(), user(3).uuid()]);
        let mine = async |kind| {
            let rows = of_user(&test.db, user(2).uuid(), kind, None, 9).await.unwrap();
            rows.into_iter().map(|row| row.target_id).collect::<Vec<_>>()
        };
        assert_eq!(mine(InterestKind::Seller).await, [one]);
        assert_eq!(mine(InterestKind::Listing).await, [one]);
        let left = of_user(&test.db, user(4).uuid(), InterestKind::Seller, None, 9).await.unwrap();
        assert!(left.is_empty());
    }
}
