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
    /// The checkout that it was made by, if it was.
    pub checkout_id: Option<Uuid>,
    /// `OPEN` or `RESOLVED`, if there is or was a dispute.
    pub dispute: Option<String>,
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
    /// Of this checkout.
    pub checkout_id: Option<Uuid>,
    /// Whose dispute stands so.
    pub dispute: Option<String>,
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
    #[serde(default)]
    checkout_id: Option<Uuid>,
    placed_at: Timestamp,
}

/// The events that say themselves how the order stands.
const TELLING: [&str; 3] = ["order.return_refused", "order.returned", "order.dispute_resolved"];
/// The events that leave the status as it is.
#[cfg(test)]
const SILENT: [&str; 4] =
    ["order.disputed", "order.settlement_due", "order.settlement_postponed", "order.reviewed"];

/// What the view reads of the events that say themselves how the order stands.
#[derive(Deserialize)]
struct Stands {
    status: String,
}

/// The status after an event of this type, if the type alone says it.
fn status(event_type: &str) -> Option<&'static str> {
    Some(match event_type {
        "order.return_requested" => "RETURN_REQUESTED",
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
    const CONTEXT: &'static str = "orders";
    const TOPICS: &'static [&'static str] = &["order.*"];
    const TABLE: &'static str = "orders_v2";
    const COLUMNS: &'static [&'static str] = &[
        "order_id",
        "order_number",
        "buyer_id",
        "seller_id",
        "status",
        "amount",
        "currency",
        "item_count",
        "checkout_id",
        "dispute",
        "version",
        "placed_ms",
        "updated_ms",
    ];
    const FIXED: &'static [&'static str] =
        &["order_number", "buyer_id", "seller_id", "checkout_id", "placed_ms"];
    type Row = OrderRow;

    fn fold(row: Option<OrderRow>, event: &StoredEvent) -> Result<Option<OrderRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
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
                checkout_id: placed.checkout_id,
                dispute: None,
                version,
                placed_at: placed.placed_at,
                updated_at: event.timestamp,
            }));
        }
        let Some(mut row) = row else { return Ok(None) };
        match &*event.event_type {
            "order.disputed" => row.dispute = Some("OPEN".to_owned()),
            "order.dispute_resolved" => row.dispute = Some("RESOLVED".to_owned()),
            _ => {}
        }
        if TELLING.contains(&&*event.event_type) {
            let stands: Stands = read_data::<OrderEvent, _>(event)?;
            row.status = stands.status;
        } else if let Some(status) = status(&event.event_type) {
            status.clone_into(&mut row.status);
        }
        row.version = version;
        row.updated_at = event.timestamp;
        Ok(Some(row))
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
            Param::id(row.checkout_id),
            Param::text(row.dispute.as_deref()),
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
            checkout_id: row.id_or_null(8)?,
            dispute: row.text_or_null(9)?,
            version: row.int(10)?,
            placed_at: row.time(11)?,
            updated_at: row.time(12)?,
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
    let query = Query::select(OrdersView::COLUMNS, &db.table(OrdersView::NAME, OrdersView::TABLE))
        .when(" AND buyer_id = ", filter.buyer_id)
        .when(" AND seller_id = ", filter.seller_id)
        .when(" AND status = ", filter.status.as_ref())
        .when(" AND checkout_id = ", filter.checkout_id)
        .when(" AND dispute = ", filter.dispute.as_ref())
        .before("placed_ms, order_id", before)
        .then(" ORDER BY placed_ms DESC, order_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, OrdersView::read).await
}

/// The order of a number. The number has 60 bits of the id, so there is one.
pub async fn by_number(db: &ReadDb, number: &str) -> Result<Option<Uuid>, ReadError> {
    let query = Query::select(&["order_id"], &db.table(OrdersView::NAME, OrdersView::TABLE))
        .then(" AND order_number = ")
        .value(number)
        .then(" LIMIT 1");
    Ok(db.fetch_as(query, |row| row.id(0)).await?.pop())
}

#[cfg(test)]
mod tests {
    use souk_actors::event::EventPayload;
    use souk_actors::personal::Personal;

    use super::*;
    use crate::domain::ids::{ListingId, OrderId, PaymentId, UserId};
    use crate::domain::money::Currency;
    use crate::domain::order::{Address, OrderItem, OrderPlaced, PaymentMethod, SagaDefinition};
    use crate::projections::testing::{self, event, numbered, row_of, stored};
    use crate::projections::view::{Projected, ViewTable};

    fn placed(id: u128, buyer: u128) -> StoredEvent {
        let placed_at = Timestamp::from_millis(i64::try_from(id).unwrap());
        let (order_id, listing_id) = (OrderId(Uuid::from_u128(id)), ListingId(Uuid::from_u128(5)));
        let buyer_id = UserId(Uuid::from_u128(buyer));
        let address = Address {
            recipient: None,
            line1: "1 Secret Street".to_owned(),
            line2: None,
            ward: None,
            district: "1".to_owned(),
            city: "Hue".to_owned(),
            postal_code: None,
            country: "VN".to_owned(),
            phone: None,
        };
        let item = OrderItem {
            listing_id,
            product_id: listing_id,
            sku: "SKU".to_owned(),
            quantity: 2,
            unit_price: 50,
        };
        let payload = OrderEvent::Placed(OrderPlaced {
            order_id,
            order_number: format!("ORD-{id}"),
            transaction_id: order_id,
            listing_id,
            customer_id: buyer_id,
            buyer_id,
            seller_id: UserId(Uuid::from_u128(9)),
            items: vec![item],
            amount: 100,
            total_amount: 100,
            currency: Currency::Vnd,
            delivery_address: Personal::new(buyer_id.uuid(), address),
            payment_method: PaymentMethod::new("sandbox"),
            payment_id: PaymentId::of(order_id),
            payment_reference: "PAY".to_owned(),
            saga_definition: SagaDefinition::ReserveFirst,
            checkout_id: None,
            promotion: None,
            placed_at,
        });
        StoredEvent { timestamp: placed_at, ..stored(&payload, "order", order_id.uuid()) }
    }

    fn later(event_type: &str, id: u128, aggregate_version: u64) -> StoredEvent {
        StoredEvent { aggregate_version, ..event(event_type, "order", id) }
    }

    #[tokio::test]
    async fn an_order_is_where_its_last_event_put_it() {
        let row = row_of::<OrdersView>([
            placed(1, 2),
            later("order.confirmed", 1, 2),
            later("order.paid", 1, 3),
        ])
        .await
        .unwrap();
        assert_eq!((row.status.as_str(), row.version, row.item_count), ("PAID", 3, 1));
        assert_eq!((row.amount, row.currency.as_str()), (100, "VND"));
    }

    #[test]
    fn every_type_of_event_has_its_status() {
        for descriptor in OrderEvent::descriptors() {
            let event_type = descriptor.event_type;
            let known = event_type == "order.placed"
                || TELLING.contains(&event_type)
                || SILENT.contains(&event_type);
            assert!(known || status(event_type).is_some(), "{event_type}");
        }
    }

    #[tokio::test]
    async fn lists_are_paged_from_the_newest_and_numbers_found() {
        let test = testing::open().await;
        let projected = Projected::<ViewTable<OrdersView>>::new(test.db.clone());
        let events = numbered([placed(1, 7), placed(2, 8), placed(3, 7), placed(4, 7)]);
        projected.advance(0, &events, 4).await.unwrap();

        let filter = OrderFilter { buyer_id: Some(Uuid::from_u128(7)), ..Default::default() };
        let page = async |before| {
            let rows = find(&test.db, &filter, before, 2).await.unwrap();
            rows.into_iter().map(|row| row.order_number).collect::<Vec<_>>()
        };
        assert_eq!(page(None).await, ["ORD-4", "ORD-3"]);
        assert_eq!(page(Some((3, Uuid::from_u128(3)))).await, ["ORD-1"]);
        let found = by_number(&test.db, "ORD-2").await.unwrap();
        assert_eq!(found, Some(Uuid::from_u128(2)));
        assert_eq!(by_number(&test.db, "ORD-9").await.unwrap(), None);
    }
}
