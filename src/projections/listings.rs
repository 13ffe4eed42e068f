//! `listings-view`: what is for sale, by seller and category, the newest first.

use std::collections::BTreeMap;

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
    /// The seller's stock-keeping unit.
    pub sku: String,
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
    /// Where its images are, in order.
    pub images: Vec<String>,
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
    /// Also those that only their sellers see.
    pub drafts: bool,
}

/// The listings.
pub struct ListingsView;

/// What the view reads of `listing.created`.
#[derive(Deserialize)]
struct Created {
    seller_id: Uuid,
    title: String,
    category_id: Uuid,
    sku: String,
    price: i64,
    currency: String,
    quantity: i64,
    images: Vec<String>,
    #[serde(default)]
    draft: bool,
    created_at: Timestamp,
}

#[derive(Deserialize)]
struct Updated {
    title: String,
    price: i64,
    currency: String,
}

#[derive(Deserialize)]
struct Reactivated {
    status: String,
}

#[derive(Deserialize)]
struct OfImage {
    image: String,
}

#[derive(Deserialize)]
struct Reordered {
    images: Vec<String>,
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
    const CONTEXT: &'static str = "listings";
    const TOPICS: &'static [&'static str] = &["listing.*", "catalog.price.changed", "inventory.*"];
    const TABLE: &'static str = "listings_v3";
    const COLUMNS: &'static [&'static str] = &[
        "listing_id",
        "seller_id",
        "title",
        "category_id",
        "sku",
        "price_amount",
        "currency",
        "status",
        "available",
        "reserved",
        "sold",
        "version",
        "created_ms",
        "updated_ms",
        "images",
    ];
    const FIXED: &'static [&'static str] = &["seller_id", "category_id", "sku", "created_ms"];
    type Row = ListingRow;

    fn fold(row: Option<ListingRow>, event: &StoredEvent) -> Result<Option<ListingRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
        if &*event.event_type == "listing.created" {
            return Ok(Some(ListingRow::new(event, data(event)?)));
        }
        let Some(mut row) = row else { return Ok(None) };
        match &*event.event_type {
            "listing.updated" => {
                let Updated { title, price, currency } = data(event)?;
                (row.title, row.price_amount, row.currency) = (title, price, currency);
            }
            "listing.image_added" => row.images.push(data::<OfImage>(event)?.image),
            "listing.image_removed" => {
                let OfImage { image } = data(event)?;
                row.images.retain(|shown| *shown != image);
            }
            "listing.images_reordered" => row.images = data::<Reordered>(event)?.images,
            "listing.published" => "ACTIVE".clone_into(&mut row.status),
            "listing.reactivated" => {
                let Reactivated { status } = data(event)?;
                row.status = status;
            }
            "inventory.restocked" => {
                let Moved { quantity } = data(event)?;
                row.available += quantity;
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
            "inventory.returned" => {
                let Moved { quantity } = data(event)?;
                row.sold -= quantity;
                row.available += quantity;
            }
            _ => {}
        }
        row.version = version;
        row.updated_at = event.timestamp;
        Ok(Some(row))
    }

    fn values(row: &ListingRow) -> Vec<Param> {
        vec![
            row.listing_id.into(),
            row.seller_id.into(),
            (&row.title).into(),
            row.category_id.into(),
            (&row.sku).into(),
            row.price_amount.into(),
            (&row.currency).into(),
            (&row.status).into(),
            row.available.into(),
            row.reserved.into(),
            row.sold.into(),
            row.version.into(),
            row.created_at.into(),
            row.updated_at.into(),
            Param::json(&row.images),
        ]
    }

    fn read(row: &Row) -> Result<ListingRow, ReadError> {
        Ok(ListingRow {
            listing_id: row.id(0)?,
            seller_id: row.id(1)?,
            title: row.text(2)?,
            category_id: row.id(3)?,
            sku: row.text(4)?,
            price_amount: row.int(5)?,
            currency: row.text(6)?,
            status: row.text(7)?,
            available: row.int(8)?,
            reserved: row.int(9)?,
            sold: row.int(10)?,
            version: row.int(11)?,
            created_at: row.time(12)?,
            updated_at: row.time(13)?,
            images: row.json(14)?,
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
            sku: created.sku,
            price_amount: created.price,
            currency: created.currency,
            status: if created.draft { "DRAFT" } else { "ACTIVE" }.to_owned(),
            available: created.quantity,
            reserved: 0,
            sold: 0,
            version: i64::try_from(event.aggregate_version).unwrap_or(i64::MAX),
            created_at: created.created_at,
            updated_at: event.timestamp,
            images: created.images,
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
    let query =
        Query::select(ListingsView::COLUMNS, &db.table(ListingsView::NAME, ListingsView::TABLE))
            .when(" AND seller_id = ", filter.seller_id)
            .when(" AND status = ", filter.status.as_ref())
            .when(" AND category_id = ", filter.category_id)
            .then(if filter.drafts { "" } else { " AND status <> 'DRAFT'" })
            .before("created_ms, listing_id", before)
            .then(" ORDER BY created_ms DESC, listing_id DESC LIMIT ")
            .value(limit);
    db.fetch_as(query, ListingsView::read).await
}

/// The first image of each of these listings that has one.
pub async fn covers(db: &ReadDb, listings: &[Uuid]) -> Result<BTreeMap<Uuid, String>, ReadError> {
    let Some((first, others)) = listings.split_first() else { return Ok(BTreeMap::new()) };
    let table = db.table(ListingsView::NAME, ListingsView::TABLE);
    let query =
        Query::select(&["listing_id", "images"], &table).then(" AND listing_id IN (").value(*first);
    let query = others.iter().fold(query, |query, listing| query.then(", ").value(*listing));
    let read = |row: &Row| Ok((row.id(0)?, row.json::<Vec<String>>(1)?));
    let rows = db.fetch_as(query.then(")"), read).await?;
    let first =
        |(listing, images): (Uuid, Vec<String>)| Some((listing, images.into_iter().next()?));
    Ok(rows.into_iter().filter_map(first).collect())
}

/// What a stock-keeping unit stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkuMatch {
    /// The newest listing that can be bought, or else the newest there was.
    One(Uuid),
    /// Several sellers offer something under it.
    Ambiguous,
    /// Nothing.
    Unknown,
}

/// The listing of a stock-keeping unit. Sellers name their units as they like, so that only one
/// seller's is a name at all.
pub async fn by_sku(db: &ReadDb, sku: &str) -> Result<SkuMatch, ReadError> {
    let table = db.table(ListingsView::NAME, ListingsView::TABLE);
    let of_sku =
        || Query::select(&["listing_id", "seller_id"], &table).then(" AND sku = ").value(sku);
    let newest =
        |query: Query| query.then(" ORDER BY created_ms DESC, listing_id DESC LIMIT ").value(1_u32);
    let ids = |row: &Row| Ok((row.id(0)?, row.id(1)?));
    let of_sku = || of_sku().then(" AND status <> 'DRAFT'");
    let active = || of_sku().then(" AND status = 'ACTIVE'");
    let found = db.fetch_as(newest(active()), ids).await?;
    let Some((listing, seller)) = found.first().copied() else {
        let gone = db.fetch_as(newest(of_sku()), ids).await?;
        return Ok(gone.first().map_or(SkuMatch::Unknown, |(listing, _)| SkuMatch::One(*listing)));
    };
    let others = newest(active().then(" AND seller_id <> ").value(seller));
    let others = db.fetch_as(others, ids).await?;
    Ok(if others.is_empty() { SkuMatch::One(listing) } else { SkuMatch::Ambiguous })
}

/// How many listings of a seller can be bought.
pub async fn count_active(db: &ReadDb, seller_id: Uuid) -> Result<u64, ReadError> {
    let query = Query::select(&["COUNT(*)"], &db.table(ListingsView::NAME, ListingsView::TABLE))
        .then(" AND status = 'ACTIVE' AND seller_id = ")
        .value(seller_id);
    Ok(db.fetch_as(query, |row| row.count(0)).await?.first().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{CategoryId, ListingId, OrderId, ReservationId, UserId};
    use crate::domain::listing::{
        InventoryAllocated, InventoryReleased, InventoryReservationFailed, InventoryReserved,
        ListingArchived, ListingCreated, ListingImageAdded, ListingImageRemoved,
        ListingImagesReordered, ListingSold, ReservationFailure, WAREHOUSE,
    };
    use crate::domain::money::Currency;
    use crate::projections::testing::{filled, row_of, stored};

    const AT: Timestamp = Timestamp::from_millis(0);

    fn listing() -> ListingId {
        ListingId(Uuid::from_u128(1))
    }

    fn order(number: u128) -> OrderId {
        OrderId(Uuid::from_u128(number))
    }

    fn history(events: Vec<ListingEvent>) -> Vec<StoredEvent> {
        (1..)
            .zip(events)
            .map(|(aggregate_version, event)| StoredEvent {
                aggregate_version,
                ..stored(&event, "listing", listing().uuid())
            })
            .collect()
    }

    fn created() -> ListingEvent {
        ListingEvent::Created(ListingCreated {
            listing_id: listing(),
            seller_id: UserId(Uuid::from_u128(2)),
            title: "Loom".to_owned(),
            description: String::new(),
            category_id: CategoryId::of_slug("home"),
            price: 150_000,
            currency: Currency::Vnd,
            sku: "SKU".to_owned(),
            quantity: 3,
            images: Vec::new(),
            draft: false,
            created_at: AT,
        })
    }

    fn reserved(order_id: OrderId, quantity: u32) -> ListingEvent {
        ListingEvent::InventoryReserved(InventoryReserved {
            order_id,
            transaction_id: order_id,
            listing_id: listing(),
            product_id: listing(),
            sku: "SKU".to_owned(),
            warehouse_id: WAREHOUSE.to_owned(),
            quantity,
            quantity_reserved: quantity,
            reservation_id: ReservationId::of(listing(), order_id),
            customer_id: UserId(Uuid::from_u128(3)),
            reserved_at: AT,
            expires_at: AT,
            reservations: Vec::new(),
        })
    }

    fn allocated(order_id: OrderId, quantity: u32) -> ListingEvent {
        ListingEvent::Allocated(InventoryAllocated {
            order_id,
            listing_id: listing(),
            sku: "SKU".to_owned(),
            quantity,
            reservation_id: ReservationId::of(listing(), order_id),
            allocated_at: AT,
        })
    }

    #[tokio::test]
    async fn stock_moves_as_in_the_aggregate() {
        let failed = ListingEvent::ReservationFailed(InventoryReservationFailed {
            order_id: order(9),
            listing_id: listing(),
            quantity: 7,
            available: 0,
            reason: ReservationFailure::InsufficientStock,
            failed_at: AT,
        });
        let released = ListingEvent::Released(InventoryReleased {
            order_id: order(2),
            listing_id: listing(),
            sku: "SKU".to_owned(),
            quantity: 1,
            allocated: false,
            reservation_id: ReservationId::of(listing(), order(2)),
            reason: "expired".to_owned(),
            released_at: AT,
        });
        let sold = ListingEvent::Sold(ListingSold {
            listing_id: listing(),
            transaction_id: order(1),
            sold_at: AT,
        });
        let events = vec![
            created(),
            reserved(order(1), 2),
            reserved(order(2), 1),
            failed,
            allocated(order(1), 2),
            released,
            sold,
        ];
        let row = row_of::<ListingsView>(history(events)).await.unwrap();
        assert_eq!((row.available, row.reserved, row.sold), (1, 0, 2));
        assert_eq!((row.status.as_str(), row.version), ("SOLD", 7));
        assert_eq!(
            (row.title.as_str(), row.price_amount, row.currency.as_str()),
            ("Loom", 150_000, "VND")
        );
    }

    #[tokio::test]
    async fn an_event_that_comes_twice_moves_stock_once() {
        let mut events = history(vec![created(), reserved(order(1), 2)]);
        events.push(events[1].clone());
        events.push(events[0].clone());
        let row = row_of::<ListingsView>(events).await.unwrap();
        assert_eq!((row.available, row.reserved), (1, 2));
    }

    fn with_image(name: &str) -> ListingEvent {
        ListingEvent::ImageAdded(ListingImageAdded {
            listing_id: listing(),
            seller_id: UserId(Uuid::from_u128(2)),
            image: name.to_owned(),
            added_at: AT,
        })
    }

    #[tokio::test]
    async fn images_come_go_and_change_places() {
        let seller_id = UserId(Uuid::from_u128(2));
        let reordered = ListingEvent::ImagesReordered(ListingImagesReordered {
            listing_id: listing(),
            seller_id,
            images: ["c", "a", "b"].map(str::to_owned).to_vec(),
            reordered_at: AT,
        });
        let removed = ListingEvent::ImageRemoved(ListingImageRemoved {
            listing_id: listing(),
            seller_id,
            image: "c".to_owned(),
            removed_at: AT,
        });
        let images = async |events: &[ListingEvent]| {
            let events = history(events.to_vec());
            row_of::<ListingsView>(events).await.unwrap().images
        };
        let mut events = vec![created()];
        assert!(images(&events).await.is_empty());
        events.extend([with_image("a"), with_image("b"), with_image("c")]);
        assert_eq!(images(&events).await, ["a", "b", "c"]);
        events.push(reordered);
        assert_eq!(images(&events).await, ["c", "a", "b"]);
        events.push(removed);
        assert_eq!(images(&events).await, ["a", "b"]);
    }

    #[tokio::test]
    async fn covers_are_found_for_whichever_listings_have_one() {
        let bare = offered(5, 2, "BARE");
        let mut events = history(vec![created(), with_image("a"), with_image("b")]);
        events.push(bare);
        let test = filled::<ListingsView>(events).await;
        let (with, without, unknown) = (listing().uuid(), Uuid::from_u128(5), Uuid::from_u128(9));
        let found = covers(&test.db, &[with, without, unknown]).await.unwrap();
        assert_eq!(found, BTreeMap::from([(with, "a".to_owned())]));
        assert!(covers(&test.db, &[]).await.unwrap().is_empty());
    }

    /// A listing of its own, created at this second.
    fn offered(id: u128, seller: u128, sku: &str) -> StoredEvent {
        let ListingEvent::Created(event) = created() else { unreachable!() };
        let listing_id = ListingId(Uuid::from_u128(id));
        let event = ListingCreated {
            listing_id,
            seller_id: UserId(Uuid::from_u128(seller)),
            sku: sku.to_owned(),
            ..event
        };
        let stored = stored(&ListingEvent::Created(event), "listing", listing_id.uuid());
        let timestamp = Timestamp::from_millis(i64::try_from(id).unwrap());
        StoredEvent { aggregate_version: 1, timestamp, ..stored }
    }

    fn archived(id: u128) -> StoredEvent {
        let listing_id = ListingId(Uuid::from_u128(id));
        let event = ListingEvent::Archived(ListingArchived {
            listing_id,
            seller_id: UserId::default(),
            archived_at: AT,
        });
        let stored = stored(&event, "listing", listing_id.uuid());
        StoredEvent { aggregate_version: 2, ..stored }
    }

    #[tokio::test]
    async fn a_sku_names_one_sellers_newest_listing() {
        let test = filled::<ListingsView>([
            offered(1, 1, "ONE"),
            offered(2, 1, "ONE"),
            offered(3, 1, "BOTH"),
            offered(4, 2, "BOTH"),
            offered(5, 1, "LEFT"),
            offered(6, 2, "LEFT"),
            archived(6),
            offered(7, 1, "GONE"),
            archived(7),
        ]);
        let test = test.await;
        let found = async |sku| by_sku(&test.db, sku).await.unwrap();
        let one = |id| SkuMatch::One(Uuid::from_u128(id));
        assert_eq!(found("ONE").await, one(2));
        assert_eq!(found("BOTH").await, SkuMatch::Ambiguous);
        assert_eq!(found("LEFT").await, one(5));
        assert_eq!(found("GONE").await, one(7));
        assert_eq!(found("one").await, SkuMatch::Unknown);
    }
}
