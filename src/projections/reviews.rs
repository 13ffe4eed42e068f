//! `reviews-view`: the reviews of a seller and of a listing. What they say stays sealed in the
//! journal; whoever shows it asks the aggregate.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Insert, Param, Query, ReadDb, ReadError, ReadTx, Row, table_of};
use super::view::{Shape, Table, View, ViewTable, read_data};
use crate::domain::review::ReviewEvent;

/// A review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewRow {
    /// The review.
    pub review_id: Uuid,
    /// Who wrote it.
    pub reviewer_id: Uuid,
    /// Whom it is about.
    pub seller_id: Uuid,
    /// From 1 to 5.
    pub rating: i64,
    /// Whether an administrator has hidden it.
    pub hidden: bool,
    /// The aggregate's version that this row is at.
    pub version: i64,
    /// When it was written.
    pub created_at: Timestamp,
}

/// Which reviews.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReviewFilter {
    /// About this seller.
    pub seller_id: Option<Uuid>,
    /// Of orders with this listing.
    pub listing_id: Option<Uuid>,
}

/// A review's row.
pub struct ReviewsView;

/// What the view reads of `review.created`: not the comment.
#[derive(Deserialize)]
struct Created {
    reviewer_id: Uuid,
    reviewee_id: Uuid,
    rating: i64,
    created_at: Timestamp,
}

#[derive(Deserialize)]
struct Bought {
    listing_ids: Vec<Uuid>,
}

impl View for ReviewsView {
    const NAME: &'static str = super::REVIEWS_VIEW;
    const CONTEXT: &'static str = "reviews";
    const TOPICS: &'static [&'static str] = &["review.*"];
    const TABLE: &'static str = "reviews_v1";
    const COLUMNS: &'static [&'static str] =
        &["review_id", "reviewer_id", "seller_id", "rating", "hidden", "version", "created_ms"];
    const FIXED: &'static [&'static str] = &["reviewer_id", "seller_id", "rating", "created_ms"];
    type Row = ReviewRow;

    fn fold(row: Option<ReviewRow>, event: &StoredEvent) -> Result<Option<ReviewRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
        if &*event.event_type == "review.created" {
            let created: Created = read_data::<ReviewEvent, _>(event)?;
            return Ok(Some(ReviewRow {
                review_id: event.aggregate_id,
                reviewer_id: created.reviewer_id,
                seller_id: created.reviewee_id,
                rating: created.rating,
                hidden: false,
                version,
                created_at: created.created_at,
            }));
        }
        Ok(row.map(|mut row| {
            match &*event.event_type {
                "review.hidden" => row.hidden = true,
                "review.restored" => row.hidden = false,
                _ => {}
            }
            row.version = version;
            row
        }))
    }

    fn values(row: &ReviewRow) -> Vec<Param> {
        vec![
            row.review_id.into(),
            row.reviewer_id.into(),
            row.seller_id.into(),
            row.rating.into(),
            row.hidden.into(),
            row.version.into(),
            row.created_at.into(),
        ]
    }

    fn read(row: &Row) -> Result<ReviewRow, ReadError> {
        Ok(ReviewRow {
            review_id: row.id(0)?,
            reviewer_id: row.id(1)?,
            seller_id: row.id(2)?,
            rating: row.int(3)?,
            hidden: row.flag(4)?,
            version: row.int(5)?,
            created_at: row.time(6)?,
        })
    }
}

const LISTINGS: &str = "review_listings_v1";
const LISTINGS_COLUMNS: &[&str] = &["listing_id", "review_id"];

/// The reviews, and which listings each is about: an order may have several.
pub struct Reviews {
    rows: ViewTable<ReviewsView>,
    listings: Insert,
}

#[async_trait]
impl Table for Reviews {
    const NAME: &'static str = ReviewsView::NAME;
    const CONTEXT: &'static str = ReviewsView::CONTEXT;
    const TOPICS: &'static [&'static str] = ReviewsView::TOPICS;
    const SHAPES: &'static [Shape] = &[
        Shape {
            table: ReviewsView::TABLE,
            columns: ReviewsView::COLUMNS,
            key: 1,
            is_numbered: false,
        },
        Shape { table: LISTINGS, columns: LISTINGS_COLUMNS, key: 2, is_numbered: false },
    ];

    fn of_version(version: u32) -> Self {
        let once = " ON CONFLICT (listing_id, review_id) DO NOTHING";
        let listings = Insert::new(&table_of(LISTINGS, version), LISTINGS_COLUMNS, once);
        Self { rows: ViewTable::of_version(version), listings }
    }

    async fn write(&self, tx: &mut ReadTx, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        self.rows.write(tx, events).await?;
        let mut pairs = std::collections::BTreeSet::new();
        for event in events.iter().filter(|event| &*event.event_type == "review.created") {
            let Bought { listing_ids } = read_data::<ReviewEvent, _>(event)?;
            pairs.extend(listing_ids.into_iter().map(|listing| (listing, event.aggregate_id)));
        }
        let values =
            pairs.into_iter().flat_map(|(listing, review)| [listing.into(), review.into()]);
        Ok(self.listings.run(tx, values.collect()).await?)
    }
}

/// The reviews that match and are not hidden, the newest first.
pub async fn find(
    db: &ReadDb,
    filter: &ReviewFilter,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<ReviewRow>, ReadError> {
    let (name, rows) = (ReviewsView::NAME, db.table(ReviewsView::NAME, ReviewsView::TABLE));
    let mut query = Query::select(ReviewsView::COLUMNS, &rows)
        .then(" AND hidden = 0")
        .when(" AND seller_id = ", filter.seller_id);
    if let Some(listing) = filter.listing_id {
        query = query
            .then(" AND review_id IN (SELECT review_id FROM ")
            .table(&db.table(name, LISTINGS))
            .then(" WHERE listing_id = ")
            .value(listing)
            .then(")");
    }
    let query = query
        .before("created_ms, review_id", before)
        .then(" ORDER BY created_ms DESC, review_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, ReviewsView::read).await
}

#[cfg(test)]
mod tests {
    use souk_actors::personal::Personal;

    use super::*;
    use crate::domain::ids::{ListingId, OrderId, ReviewId, UserId};
    use crate::domain::review::{ReviewCreated, ReviewHidden, ReviewRestored};
    use crate::projections::testing::{self, numbered, row_of, stored};
    use crate::projections::view::Projected;

    fn order(number: u128) -> OrderId {
        OrderId(Uuid::from_u128(number))
    }

    fn seller(number: u128) -> UserId {
        UserId(Uuid::from_u128(0x100 + number))
    }

    fn created(number: u128, of: u128, listings: &[u128]) -> StoredEvent {
        let review_id = ReviewId::of(order(number));
        let reviewer_id = UserId(Uuid::from_u128(9));
        let created_at = Timestamp::from_millis(i64::try_from(number).unwrap());
        let payload = ReviewEvent::Created(ReviewCreated {
            review_id,
            transaction_id: order(number),
            order_id: order(number),
            reviewer_id,
            reviewee_id: seller(of),
            listing_ids: listings.iter().map(|id| ListingId(Uuid::from_u128(*id))).collect(),
            rating: 4,
            comment: Personal::new(reviewer_id.uuid(), "Secret".to_owned()),
            created_at,
        });
        stored(&payload, "review", review_id.uuid())
    }

    fn hidden(number: u128, aggregate_version: u64) -> StoredEvent {
        let review_id = ReviewId::of(order(number));
        let at = Timestamp::from_millis(99);
        let payload = match aggregate_version % 2 {
            0 => ReviewEvent::Hidden(ReviewHidden {
                review_id,
                reviewee_id: seller(1),
                rating: 4,
                reason: "an insult".to_owned(),
                hidden_at: at,
            }),
            _ => ReviewEvent::Restored(ReviewRestored {
                review_id,
                reviewee_id: seller(1),
                rating: 4,
                restored_at: at,
            }),
        };
        StoredEvent { aggregate_version, ..stored(&payload, "review", review_id.uuid()) }
    }

    #[tokio::test]
    async fn a_review_is_hidden_and_shown_again() {
        let row = row_of::<ReviewsView>([created(1, 1, &[5]), hidden(1, 2)]).await.unwrap();
        assert_eq!((row.hidden, row.version, row.rating), (true, 2, 4));
        let row = row_of::<ReviewsView>([created(1, 1, &[5]), hidden(1, 2), hidden(1, 3)]);
        assert!(!row.await.unwrap().hidden);
    }

    #[tokio::test]
    async fn reviews_are_found_by_seller_and_by_every_listing_of_the_order() {
        let test = testing::open().await;
        let projected = Projected::<Reviews>::new(test.db.clone());
        let events = numbered([
            created(1, 1, &[5, 6]),
            created(2, 2, &[7]),
            created(3, 1, &[6]),
            created(4, 1, &[6]),
            hidden(4, 2),
        ]);
        projected.advance(0, &events, 5).await.unwrap();
        projected.take_late(&events[0]).await.unwrap();
        let found = async |filter: ReviewFilter, before| {
            let rows = find(&test.db, &filter, before, 9).await.unwrap();
            rows.into_iter().map(|row| row.created_at.millis()).collect::<Vec<_>>()
        };
        let of_seller = |number| ReviewFilter {
            seller_id: Some(seller(number).uuid()),
            ..ReviewFilter::default()
        };
        let of_listing = |number| ReviewFilter {
            listing_id: Some(Uuid::from_u128(number)),
            ..ReviewFilter::default()
        };
        assert_eq!(found(ReviewFilter::default(), None).await, [3, 2, 1]);
        assert_eq!(found(of_seller(1), None).await, [3, 1]);
        assert_eq!(found(of_seller(2), None).await, [2]);
        assert_eq!(found(of_listing(5), None).await, [1]);
        assert_eq!(found(of_listing(6), None).await, [3, 1]);
        assert_eq!(found(of_listing(8), None).await, [0_i64; 0]);
        let third = ReviewId::of(order(3)).uuid();
        assert_eq!(found(of_listing(6), Some((3, third))).await, [1]);
    }
}
