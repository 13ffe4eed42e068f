//! `promotions-view`: which promotion codes a seller has. How each stands its aggregate knows.

use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::promotion::{PromotionCreated, PromotionEvent};

/// A promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotionRow {
    /// The promotion.
    pub promotion_id: Uuid,
    /// Whose it is.
    pub seller_id: Uuid,
    /// When it was created.
    pub created_at: Timestamp,
}

/// The promotions.
pub struct PromotionsView;

impl View for PromotionsView {
    const NAME: &'static str = super::PROMOTIONS_VIEW;
    const CONTEXT: &'static str = "promotions";
    const TOPICS: &'static [&'static str] = &["promotion.created"];
    const TABLE: &'static str = "promotions_v1";
    const COLUMNS: &'static [&'static str] = &["promotion_id", "seller_id", "created_ms"];
    const FIXED: &'static [&'static str] = &["seller_id", "created_ms"];
    type Row = PromotionRow;

    fn fold(
        row: Option<PromotionRow>,
        event: &StoredEvent,
    ) -> Result<Option<PromotionRow>, Failure> {
        if row.is_some() {
            return Ok(row);
        }
        let created: PromotionCreated = read_data::<PromotionEvent, _>(event)?;
        Ok(Some(PromotionRow {
            promotion_id: event.aggregate_id,
            seller_id: created.seller_id.uuid(),
            created_at: created.created_at,
        }))
    }

    fn values(row: &PromotionRow) -> Vec<Param> {
        vec![row.promotion_id.into(), row.seller_id.into(), row.created_at.into()]
    }

    fn read(row: &Row) -> Result<PromotionRow, ReadError> {
        Ok(PromotionRow {
            promotion_id: row.id(0)?,
            seller_id: row.id(1)?,
            created_at: row.time(2)?,
        })
    }
}

/// The promotions of a seller, or all, the newest first, before a time and id.
pub async fn find(
    db: &ReadDb,
    seller_id: Option<Uuid>,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<PromotionRow>, ReadError> {
    let table = db.table(PromotionsView::NAME, PromotionsView::TABLE);
    let query = Query::select(PromotionsView::COLUMNS, &table)
        .when(" AND seller_id = ", seller_id)
        .before("created_ms, promotion_id", before)
        .then(" ORDER BY created_ms DESC, promotion_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, PromotionsView::read).await
}
