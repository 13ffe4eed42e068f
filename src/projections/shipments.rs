//! `shipments-view`: the shipments of an order.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::shipment::ShipmentEvent;

/// More shipments than this no order has.
const SHIPMENTS_MAX: u32 = 200;

/// A shipment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShipmentRow {
    /// The shipment.
    pub shipment_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// How it stands, as the API writes it.
    pub status: String,
    /// The number under which people follow it.
    pub tracking_number: String,
    /// The aggregate's version that this row is at.
    pub version: i64,
    /// Since when.
    pub created_at: Timestamp,
    /// The latest change.
    pub updated_at: Timestamp,
}

/// The shipments.
pub struct ShipmentsView;

#[derive(Deserialize)]
struct Created {
    order_id: Uuid,
    tracking_number: String,
    created_at: Timestamp,
}

impl View for ShipmentsView {
    const NAME: &'static str = super::SHIPMENTS_VIEW;
    const CONTEXT: &'static str = "shipments";
    const TOPICS: &'static [&'static str] = &["shipment.*"];
    const TABLE: &'static str = "shipments_v1";
    const COLUMNS: &'static [&'static str] = &[
        "shipment_id",
        "order_id",
        "status",
        "tracking_number",
        "version",
        "created_ms",
        "updated_ms",
    ];
    const FIXED: &'static [&'static str] = &["order_id", "created_ms"];
    type Row = ShipmentRow;

    fn fold(row: Option<ShipmentRow>, event: &StoredEvent) -> Result<Option<ShipmentRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
        if &*event.event_type == "shipment.created" {
            let created: Created = read_data::<ShipmentEvent, _>(event)?;
            return Ok(Some(ShipmentRow {
                shipment_id: event.aggregate_id,
                order_id: created.order_id,
                status: "CREATED".to_owned(),
                tracking_number: created.tracking_number,
                version,
                created_at: created.created_at,
                updated_at: event.timestamp,
            }));
        }
        Ok(row.map(|mut row| {
            match &*event.event_type {
                "shipment.dispatched" => "DISPATCHED".clone_into(&mut row.status),
                "shipment.delivered" => "DELIVERED".clone_into(&mut row.status),
                "shipment.cancelled" => "CANCELLED".clone_into(&mut row.status),
                _ => {}
            }
            row.version = version;
            row.updated_at = event.timestamp;
            row
        }))
    }

    fn values(row: &ShipmentRow) -> Vec<Param> {
        vec![
            row.shipment_id.into(),
            row.order_id.into(),
            (&row.status).into(),
            (&row.tracking_number).into(),
            row.version.into(),
            row.created_at.into(),
            row.updated_at.into(),
        ]
    }

    fn read(row: &Row) -> Result<ShipmentRow, ReadError> {
        Ok(ShipmentRow {
            shipment_id: row.id(0)?,
            order_id: row.id(1)?,
            status: row.text(2)?,
            tracking_number: row.text(3)?,
            version: row.int(4)?,
            created_at: row.time(5)?,
            updated_at: row.time(6)?,
        })
    }
}

/// The shipments of an order, the oldest first.
pub async fn of_order(db: &ReadDb, order_id: Uuid) -> Result<Vec<ShipmentRow>, ReadError> {
    let query =
        Query::select(ShipmentsView::COLUMNS, &db.table(ShipmentsView::NAME, ShipmentsView::TABLE))
            .then(" AND order_id = ")
            .value(order_id)
            .then(" ORDER BY created_ms, shipment_id LIMIT ")
            .value(SHIPMENTS_MAX);
    db.fetch_as(query, ShipmentsView::read).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{OrderId, ShipmentId, UserId};
    use crate::domain::shipment::ShipmentCreated;
    use crate::projections::testing::{event, row_of, stored};

    #[tokio::test]
    async fn a_shipment_is_found_by_its_order() {
        let order_id = OrderId(Uuid::from_u128(1));
        let shipment_id = ShipmentId::of(order_id);
        let created = ShipmentEvent::Created(ShipmentCreated {
            shipment_id,
            fulfillment_id: shipment_id,
            order_id,
            seller_id: UserId(Uuid::from_u128(2)),
            buyer_id: UserId(Uuid::from_u128(3)),
            tracking_number: shipment_id.tracking_number(),
            created_at: Timestamp::from_millis(0),
        });
        let dispatched = event("shipment.dispatched", "shipment", shipment_id.uuid().as_u128());
        let row = row_of::<ShipmentsView>([
            stored(&created, "shipment", shipment_id.uuid()),
            StoredEvent { aggregate_version: 2, ..dispatched },
        ])
        .await
        .unwrap();
        assert_eq!((row.order_id, row.status.as_str()), (order_id.uuid(), "DISPATCHED"));
        assert_eq!(row.tracking_number, shipment_id.tracking_number());
    }
}
