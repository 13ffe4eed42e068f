//! `ledger`: every entry of every account, and the payouts of sellers.
//!
//! An account's balance is the sum of its entries. The entries come from the events that moved the
//! money, each of which sums to nothing; what does not is found by [`check`].

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::db::{Insert, Param, Query, ReadDb, ReadError, ReadTx, Row, table_of};
use super::view::{Shape, Table, read_data};
use crate::domain::escrow::{Entry, EscrowEvent};
use crate::domain::seller_account::SellerAccountEvent;

const ENTRIES: &str = "ledger_entries_v1";
const ENTRY_COLUMNS: &[&str] =
    &["entry_id", "event_id", "account", "amount", "currency", "order_id", "booked_ms"];
const PAYOUTS: &str = "payouts_v1";
const PAYOUT_COLUMNS: &[&str] = &[
    "payout_id",
    "seller_id",
    "amount",
    "currency",
    "status",
    "reference",
    "reason",
    "requested_ms",
    "updated_ms",
];

/// The ledger.
pub struct LedgerTable {
    entries: Insert,
    payouts: Insert,
    payouts_table: String,
}

/// What the events have that moves money.
#[derive(Deserialize)]
struct Booked {
    entries: Vec<Entry>,
    currency: String,
    #[serde(default)]
    order_id: Option<Uuid>,
}

#[derive(Deserialize)]
struct About {
    payout_id: Uuid,
    seller_id: Uuid,
    amount: i64,
    currency: String,
    #[serde(default)]
    reference: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

#[async_trait]
impl Table for LedgerTable {
    const NAME: &'static str = super::LEDGER;
    const CONTEXT: &'static str = "escrow";
    const TOPICS: &'static [&'static str] =
        &["escrow.funded", "escrow.released", "escrow.refunded", "payout.*"];

    const SHAPES: &'static [Shape] = &[
        Shape { table: ENTRIES, columns: ENTRY_COLUMNS, key: 1, is_numbered: false },
        Shape { table: PAYOUTS, columns: PAYOUT_COLUMNS, key: 1, is_numbered: false },
    ];

    fn of_version(version: u32) -> Self {
        let payouts_table = table_of(PAYOUTS, version);
        let once = " ON CONFLICT (entry_id) DO NOTHING";
        Self {
            entries: Insert::new(&table_of(ENTRIES, version), ENTRY_COLUMNS, once),
            payouts: Insert::new(
                &payouts_table,
                PAYOUT_COLUMNS,
                " ON CONFLICT (payout_id) DO NOTHING",
            ),
            payouts_table,
        }
    }

    async fn write(&self, tx: &mut ReadTx, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        let mut values = Vec::new();
        for event in events {
            values.extend(entries(event)?);
        }
        if !values.is_empty() {
            self.entries.run(tx, values).await?;
        }
        for event in events.iter().filter(|event| event.event_type.starts_with("payout.")) {
            self.payout(tx, event).await?;
        }
        Ok(())
    }
}

fn entries(event: &StoredEvent) -> Result<Vec<Param>, Failure> {
    let booked: Booked = match &*event.aggregate_type {
        "escrow" => read_data::<EscrowEvent, _>(event)?,
        _ => read_data::<SellerAccountEvent, _>(event)?,
    };
    let entry = |(line, entry): (u32, &Entry)| {
        let id = souk_actors::id::derived(
            "ledger entry",
            &[event.event_id.as_bytes(), &line.to_be_bytes()],
        );
        [
            id.into(),
            event.event_id.into(),
            (&entry.account).into(),
            entry.amount.into(),
            (&booked.currency).into(),
            Param::id(booked.order_id),
            event.timestamp.into(),
        ]
    };
    Ok((0..).zip(&booked.entries).flat_map(entry).collect())
}

impl LedgerTable {
    async fn payout(&self, tx: &mut ReadTx, event: &StoredEvent) -> Result<(), Failure> {
        let about: About = read_data::<SellerAccountEvent, _>(event)?;
        let status = match &*event.event_type {
            "payout.completed" => "COMPLETED",
            "payout.failed" => "FAILED",
            _ => {
                let values = vec![
                    about.payout_id.into(),
                    about.seller_id.into(),
                    about.amount.into(),
                    (&about.currency).into(),
                    "REQUESTED".into(),
                    Param::text(None),
                    Param::text(None),
                    event.timestamp.into(),
                    event.timestamp.into(),
                ];
                return Ok(self.payouts.run(tx, values).await?);
            }
        };
        let sql = format!(
            "UPDATE {} SET status = $1, reference = $2, reason = $3, updated_ms = $4 \
             WHERE payout_id = $5",
            self.payouts_table
        );
        let params = vec![
            status.into(),
            Param::text(about.reference.as_deref()),
            Param::text(about.reason.as_deref()),
            event.timestamp.into(),
            about.payout_id.into(),
        ];
        tx.execute(AssertSqlSafe(sql), params).await?;
        Ok(())
    }
}

/// What an account has of one currency, in minor units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// The currency's code.
    pub currency: String,
    /// All that was booked.
    pub balance: i64,
    /// What of it comes from orders: without what was paid out.
    pub earned: i64,
}

/// The balances of an account, by currency.
pub async fn balances(db: &ReadDb, account: &str) -> Result<Vec<Balance>, ReadError> {
    const SUMS: &[&str] = &[
        "currency",
        "CAST(SUM(amount) AS BIGINT)",
        "CAST(SUM(CASE WHEN order_id IS NULL THEN 0 ELSE amount END) AS BIGINT)",
    ];
    let query = Query::select(SUMS, &db.table(super::LEDGER, ENTRIES))
        .then(" AND account = ")
        .value(account)
        .then(" GROUP BY currency ORDER BY currency");
    let read = |row: &Row| {
        Ok(Balance { currency: row.text(0)?, balance: row.int(1)?, earned: row.int(2)? })
    };
    db.fetch_as(query, read).await
}

/// Whether the books are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The sum of all accounts by currency, in minor units: 0, if all is right.
    pub sums: Vec<(String, i64)>,
    /// How many entries there are.
    pub entries: u64,
    /// How many events moved money from or to nowhere.
    pub unbalanced: u64,
    /// How many escrows owe money.
    pub overdrawn: u64,
}

/// Looks at all entries.
pub async fn check(db: &ReadDb) -> Result<Check, ReadError> {
    let table = db.table(super::LEDGER, ENTRIES);
    let count = |row: &Row| row.count(0);
    let of_currencies = Query::select(&["currency", "CAST(SUM(amount) AS BIGINT)"], &table)
        .then(" GROUP BY currency ORDER BY currency");
    let unbalanced = Query::new("SELECT COUNT(*) FROM (SELECT event_id FROM ")
        .table(&table)
        .then(" GROUP BY event_id, currency HAVING SUM(amount) <> 0) AS unbalanced");
    let overdrawn = Query::new("SELECT COUNT(*) FROM (SELECT account FROM ")
        .table(&table)
        .then(" WHERE account LIKE 'escrow:%' OR account LIKE 'payout:%'")
        .then(" GROUP BY account HAVING SUM(amount) < 0) AS overdrawn");
    let first = |found: Vec<u64>| found.first().copied().unwrap_or(0);
    Ok(Check {
        sums: db.fetch_as(of_currencies, |row| Ok((row.text(0)?, row.int(1)?))).await?,
        entries: first(db.fetch_as(Query::select(&["COUNT(*)"], &table), count).await?),
        unbalanced: first(db.fetch_as(unbalanced, count).await?),
        overdrawn: first(db.fetch_as(overdrawn, count).await?),
    })
}

/// A payout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayoutRow {
    /// The payout.
    pub payout_id: Uuid,
    /// Whose money.
    pub seller_id: Uuid,
    /// How much, in minor units.
    pub amount: i64,
    /// Of what.
    pub currency: String,
    /// `REQUESTED`, `COMPLETED` or `FAILED`.
    pub status: String,
    /// The bank's name for the transfer, once it was sent.
    pub reference: Option<String>,
    /// Why it could not be.
    pub reason: Option<String>,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// The latest change.
    pub updated_at: Timestamp,
}

fn read_payout(row: &Row) -> Result<PayoutRow, ReadError> {
    Ok(PayoutRow {
        payout_id: row.id(0)?,
        seller_id: row.id(1)?,
        amount: row.int(2)?,
        currency: row.text(3)?,
        status: row.text(4)?,
        reference: row.text_or_null(5)?,
        reason: row.text_or_null(6)?,
        requested_at: row.time(7)?,
        updated_at: row.time(8)?,
    })
}

/// The payouts of a seller or of all, the newest first.
pub async fn payouts(
    db: &ReadDb,
    seller_id: Option<Uuid>,
    status: Option<&str>,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<PayoutRow>, ReadError> {
    let query = Query::select(PAYOUT_COLUMNS, &db.table(super::LEDGER, PAYOUTS))
        .when(" AND seller_id = ", seller_id)
        .when(" AND status = ", status)
        .before("requested_ms, payout_id", before)
        .then(" ORDER BY requested_ms DESC, payout_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, read_payout).await
}

/// One payout.
pub async fn payout(db: &ReadDb, payout_id: Uuid) -> Result<Option<PayoutRow>, ReadError> {
    let query = Query::select(PAYOUT_COLUMNS, &db.table(super::LEDGER, PAYOUTS))
        .then(" AND payout_id = ")
        .value(payout_id);
    Ok(db.fetch_as(query, read_payout).await?.pop())
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;

    use super::*;
    use crate::projections::testing::{self, numbered};
    use crate::projections::view::Projected;

    fn booked(number: u128, entries: &[(&str, i64)], order: Option<u128>) -> StoredEvent {
        let lines: Vec<_> = entries
            .iter()
            .map(|(account, amount)| serde_json::json!({ "account": account, "amount": amount }))
            .collect();
        let data = serde_json::json!({
            "entries": lines,
            "currency": "VND",
            "order_id": order.map(Uuid::from_u128),
        });
        let event = stored_event("escrow.funded", "escrow", Uuid::from_u128(number), &data);
        StoredEvent { event_id: Uuid::from_u128(1_000 + number), ..event }
    }

    #[tokio::test]
    async fn the_books_are_the_sum_of_their_entries_and_a_wrong_one_is_found() {
        let test = testing::open().await;
        let projected = Projected::<LedgerTable>::new(test.db.clone());
        let right = numbered([
            booked(1, &[("gateway:momo", -500), ("escrow:1", 500)], Some(1)),
            booked(2, &[("escrow:1", -500), ("seller:9", 500)], Some(1)),
        ]);
        projected.advance(0, &right, 2).await.unwrap();
        for event in &right {
            projected.take_late(event).await.unwrap();
        }
        let found = check(&test.db).await.unwrap();
        let zero = vec![("VND".to_owned(), 0)];
        assert_eq!((found.sums, found.entries), (zero, 4));
        assert_eq!((found.unbalanced, found.overdrawn), (0, 0));
        let of_seller = balances(&test.db, "seller:9").await.unwrap();
        let wanted = Balance { currency: "VND".to_owned(), balance: 500, earned: 500 };
        assert_eq!(of_seller, [wanted]);

        let wrong = booked(3, &[("escrow:1", -7), ("seller:9", 5)], None);
        projected
            .advance(
                0,
                &numbered([right[0].as_ref().clone(), right[1].as_ref().clone(), wrong])[2..],
                3,
            )
            .await
            .unwrap();
        let found = check(&test.db).await.unwrap();
        assert_eq!((found.unbalanced, found.overdrawn), (1, 1));
        assert_eq!(found.sums, [("VND".to_owned(), -2)]);
        let of_seller = balances(&test.db, "seller:9").await.unwrap();
        assert_eq!((of_seller[0].balance, of_seller[0].earned), (505, 500));
    }
}
