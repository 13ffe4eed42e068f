//! `orders-view`: a buyer's orders, a seller's orders, and the order of a number.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::order::OrderEvent;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    /// The order.
    pub order_id: Uuid,
    /// The number that people read out.
    pub order_number: String,
    /// Who buys.
    pub buyer_id: Uuid,
    /// Who sells.
    pub seller_id: Uuid,
    /// How it stands, as the API writes it.
    pub status: String,
    /// The sum, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: String,
    /// How many lines it has.
    pub item_count: i64,
    /// The aggregate's version that this row is at.
    pub version: i64,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// The latest change.
    pub updated_at: Timestamp,
}

/// Which orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderFilter {
    /// Of this buyer.
    pub buyer_id: Option<Uuid>,
    /// Of this seller.
    pub seller_id: Option<Uuid>,
    /// That stand so.
    pub status: Option<String>,
}

/// The orders.
pub struct OrdersView;

/// What the view reads of `order.placed`: not the address.
#[derive(Deserialize)]
struct Placed {
    order_number: String,
    buyer_id: Uuid,
    seller_id: Uuid,
    amount: i64,
    currency: String,
    items: Vec<serde::de::IgnoredAny>,
}

/// The status after an event of this type, if it changes it.
fn status(event_type: &str) -> Option<&'static str> {
    Some(match event_type {
        "order.confirmed" => "CONFIRMED",
        "order.paid" => "PAID",
        "order.shipped" => "SHIPPED",
        "order.delivered" => "DELIVERED",
        "order.completed" => "COMPLETED",
        "order.rejected" => "REJECTED",
        "order.payment_failed" => "PAYMENT_FAILED",
        "order.cancelled" => "CANCELLED",
        "order.failed" => "FAILED",
        _ => return None,
    })
}

impl View for OrdersView {
    const NAME: &'static str = super::ORDERS_VIEW;
    const TOPICS: &'static [&'static str] = &["order.*"];
    const TABLE: &'static str = "orders_v1";
    const COLUMNS: &'static [&'static str] = &[
        "order_id",
        "order_number",
        "buyer_id",
        "seller_id",
        "status",
        "amount",
        "currency",
        "item_count",
        "version",
        "placed_ms",
        "updated_ms",
    ];
    type Row = OrderRow;

    fn fold(row: Option<OrderRow>, event: &StoredEvent) -> Result<Option<OrderRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if &*event.event_type == "order.placed" {
            let placed: Placed = read_data::<OrderEvent, _>(event)?;
            return Ok(Some(OrderRow {
                order_id: event.aggregate_id,
                order_number: placed.order_number,
                buyer_id: placed.buyer_id,
                seller_id: placed.seller_id,
                status: "PENDING".to_owned(),
                amount: placed.amount,
                currency: placed.currency,
                item_count: i64::try_from(placed.items.len()).unwrap_or(i64::MAX),
                version,
                placed_at: event.timestamp,
                updated_at: event.timestamp,
            }));
        }
        Ok(row.map(|mut row| {
            if let Some(status) = status(&event.event_type) {
                status.clone_into(&mut row.status);
            }
            row.version = version;
            row.updated_at = event.timestamp;
            row
        }))
    }

    fn values(row: &OrderRow) -> Vec<Param> {
        vec![
            row.order_id.into(),
            (&row.order_number).into(),
            row.buyer_id.into(),
            row.seller_id.into(),
            (&row.status).into(),
            row.amount.into(),
            (&row.currency).into(),
            row.item_count.into(),
            row.version.into(),
            row.placed_at.into(),
            row.updated_at.into(),
        ]
    }

    fn read(row: &Row) -> Result<OrderRow, ReadError> {
        Ok(OrderRow {
            order_id: row.id(0)?,
            order_number: row.text(1)?,
            buyer_id: row.id(2)?,
            seller_id: row.id(3)?,
            status: row.text(4)?,
            amount: row.int(5)?,
            currency: row.text(6)?,
            item_count: row.int(7)?,
            version: row.int(8)?,
            placed_at: row.time(9)?,
            updated_at: row.time(10)?,
        })
    }
}

/// The orders that match, the newest first.
pub async fn find(
    db: &ReadDb,
    filter: &OrderFilter,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<OrderRow>, ReadError> {
    let query = Query::select(OrdersView::COLUMNS, OrdersView::TABLE)
        .when(" AND buyer_id = ", filter.buyer_id)
        .when(" AND seller_id = ", filter.seller_id)
        .when(" AND status = ", filter.status.as_ref())
        .before("placed_ms, order_id", before)
        .then(" ORDER BY placed_ms DESC, order_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, OrdersView::read).await
}

/// The order of a number. The number has 60 bits of the id, so there is one.
pub async fn by_number(db: &ReadDb, number: &str) -> Result<Option<Uuid>, ReadError> {
    let query = Query::new("SELECT order_id FROM orders_v1 WHERE order_number = ")
        .value(number)
        .then(" LIMIT 1");
    Ok(db.fetch_as(query, |row| row.id(0)).await?.pop())
}
