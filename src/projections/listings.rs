//! `listings-view`: what is for sale, by seller and category, the newest first.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::listing::ListingEvent;

/// A listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListingRow {
    /// The listing.
    pub listing_id: Uuid,
    /// Who sells.
    pub seller_id: Uuid,
    /// What it is.
    pub title: String,
    /// Where it belongs.
    pub category_id: Uuid,
    /// The price of one, in minor units.
    pub price_amount: i64,
    /// Of what.
    pub currency: String,
    /// How it stands, as the API writes it.
    pub status: String,
    /// How many units can be bought.
    pub available: i64,
    /// How many are held for orders that are not paid.
    pub reserved: i64,
    /// How many are paid for.
    pub sold: i64,
    /// The aggregate's version that this row is at.
    pub version: i64,
    /// Since when.
    pub created_at: Timestamp,
    /// The latest change.
    pub updated_at: Timestamp,
}

/// Which listings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListingFilter {
    /// Of this seller.
    pub seller_id: Option<Uuid>,
    /// That stand so.
    pub status: Option<String>,
    /// In this category.
    pub category_id: Option<Uuid>,
}

/// The listings.
pub struct ListingsView;

/// What the view reads of `listing.created`.
#[derive(Deserialize)]
struct Created {
    seller_id: Uuid,
    title: String,
    category_id: Uuid,
    price: i64,
    currency: String,
    quantity: i64,
}

#[derive(Deserialize)]
struct Updated {
    title: String,
    price: i64,
    currency: String,
}

#[derive(Deserialize)]
struct Moved {
    quantity: i64,
}

#[derive(Deserialize)]
struct Released {
    quantity: i64,
    /// Whether the units had been paid for.
    #[serde(default)]
    allocated: bool,
}

fn data<T: DeserializeOwned>(event: &StoredEvent) -> Result<T, Failure> {
    read_data::<ListingEvent, T>(event)
}

impl View for ListingsView {
    const NAME: &'static str = super::LISTINGS_VIEW;
    const TOPICS: &'static [&'static str] = &["listing.*", "catalog.price.changed", "inventory.*"];
    const TABLE: &'static str = "listings_v1";
    const COLUMNS: &'static [&'static str] = &[
        "listing_id",
        "seller_id",
        "title",
        "category_id",
        "price_amount",
        "currency",
        "status",
        "available",
        "reserved",
        "sold",
        "version",
        "created_ms",
        "updated_ms",
    ];
    type Row = ListingRow;

    fn fold(row: Option<ListingRow>, event: &StoredEvent) -> Result<Option<ListingRow>, Failure> {
        if &*event.event_type == "listing.created" {
            return Ok(Some(ListingRow::new(event, data(event)?)));
        }
        let Some(mut row) = row else { return Ok(None) };
        match &*event.event_type {
            "listing.updated" => {
                let Updated { title, price, currency } = data(event)?;
                (row.title, row.price_amount, row.currency) = (title, price, currency);
            }
            "listing.archived" => "ARCHIVED".clone_into(&mut row.status),
            "listing.reserved" => "RESERVED".clone_into(&mut row.status),
            "listing.sold" => "SOLD".clone_into(&mut row.status),
            "listing.relisted" => "ACTIVE".clone_into(&mut row.status),
            "inventory.reserved" => {
                let Moved { quantity } = data(event)?;
                row.available -= quantity;
                row.reserved += quantity;
            }
            "inventory.allocated" => {
                let Moved { quantity } = data(event)?;
                row.reserved -= quantity;
                row.sold += quantity;
            }
            "inventory.released" => row.give_back(&data(event)?),
            _ => {}
        }
        row.version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        row.updated_at = event.timestamp;
        Ok(Some(row))
    }

    fn values(row: &ListingRow) -> Vec<Param> {
        vec![
            row.listing_id.into(),
            row.seller_id.into(),
            (&row.title).into(),
            row.category_id.into(),
            row.price_amount.into(),
            (&row.currency).into(),
            (&row.status).into(),
            row.available.into(),
            row.reserved.into(),
            row.sold.into(),
            row.version.into(),
            row.created_at.into(),
            row.updated_at.into(),
        ]
    }

    fn read(row: &Row) -> Result<ListingRow, ReadError> {
        Ok(ListingRow {
            listing_id: row.id(0)?,
            seller_id: row.id(1)?,
            title: row.text(2)?,
            category_id: row.id(3)?,
            price_amount: row.int(4)?,
            currency: row.text(5)?,
            status: row.text(6)?,
            available: row.int(7)?,
            reserved: row.int(8)?,
            sold: row.int(9)?,
            version: row.int(10)?,
            created_at: row.time(11)?,
            updated_at: row.time(12)?,
        })
    }
}

impl ListingRow {
    fn new(event: &StoredEvent, created: Created) -> Self {
        Self {
            listing_id: event.aggregate_id,
            seller_id: created.seller_id,
            title: created.title,
            category_id: created.category_id,
            price_amount: created.price,
            currency: created.currency,
            status: "ACTIVE".to_owned(),
            available: created.quantity,
            reserved: 0,
            sold: 0,
            version: i64::try_from(event.aggregate_version).unwrap_or(i64::MAX),
            created_at: event.timestamp,
            updated_at: event.timestamp,
        }
    }

    fn give_back(&mut self, released: &Released) {
        self.available += released.quantity;
        if released.allocated {
            self.sold -= released.quantity;
        } else {
            self.reserved -= released.quantity;
        }
    }
}

/// The listings that match, the newest first.
pub async fn find(
    db: &ReadDb,
    filter: &ListingFilter,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<ListingRow>, ReadError> {
    let query = Query::select(ListingsView::COLUMNS, ListingsView::TABLE)
        .when(" AND seller_id = ", filter.seller_id)
        .when(" AND status = ", filter.status.as_ref())
        .when(" AND category_id = ", filter.category_id)
        .before("created_ms, listing_id", before)
        .then(" ORDER BY created_ms DESC, listing_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, ListingsView::read).await
}

/// How many listings of a seller can be bought.
pub async fn count_active(db: &ReadDb, seller_id: Uuid) -> Result<u64, ReadError> {
    let query = Query::new("SELECT COUNT(*) FROM listings_v1 WHERE status = 'ACTIVE'")
        .then(" AND seller_id = ")
        .value(seller_id);
    Ok(db.fetch_as(query, |row| row.count(0)).await?.first().copied().unwrap_or(0))
}
