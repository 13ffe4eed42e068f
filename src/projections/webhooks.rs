//! `webhook-deliveries-view`: what was sent to webhook endpoints, and what waits. What is over is
//! kept for thirty days.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::db::{Insert, Param, Query, ReadDb, ReadError, ReadTx, Row, table_of};
use super::view::{Shape, Table, read_data};
use crate::domain::webhook_delivery::{Message, WebhookDeliveryEvent};

/// How long a delivery that is over is shown.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const TABLE: &str = "webhook_deliveries_v1";
const COLUMNS: &[&str] = &[
    "delivery_id",
    "endpoint_id",
    "lane_id",
    "event_id",
    "event_type",
    "aggregate_id",
    "aggregate_version",
    "partition",
    "position",
    "status",
    "attempts",
    "status_code",
    "latency_ms",
    "error",
    "next_attempt_ms",
    "created_ms",
    "updated_ms",
];

/// A message to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// The message.
    pub message: Message,
    /// The aggregate that keeps its order.
    pub lane_id: Uuid,
    /// How it stands: `pending`, `retrying`, `delivered`, `dead` or `skipped`.
    pub status: String,
    /// How often it was tried since it was last asked for.
    pub attempts: u64,
    /// The status of the last answer.
    pub status_code: Option<i64>,
    /// How long the last attempt took, in milliseconds.
    pub latency_ms: Option<i64>,
    /// What was wrong with it.
    pub error: Option<String>,
    /// When it is tried again.
    pub next_attempt_at: Option<Timestamp>,
    /// When the event was queued.
    pub created_at: Timestamp,
    /// When something happened to it last.
    pub updated_at: Timestamp,
}

/// The deliveries.
pub struct WebhookDeliveries {
    table: String,
    rows: Insert,
}

/// What the events have that concerns a message.
#[derive(Deserialize)]
struct About {
    message: Message,
    #[serde(default)]
    attempt: u64,
    #[serde(default)]
    status_code: Option<i64>,
    #[serde(default)]
    latency_ms: Option<i64>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    next_attempt_at: Option<String>,
}

#[derive(Deserialize)]
struct Skipped {
    through: u64,
}

#[async_trait]
impl Table for WebhookDeliveries {
    const NAME: &'static str = super::WEBHOOK_DELIVERIES_VIEW;
    const CONTEXT: &'static str = "webhooks";
    const TOPICS: &'static [&'static str] = &[
        "webhook.delivery.queued",
        "webhook.delivery.succeeded",
        "webhook.delivery.failed",
        "webhook.delivery.exhausted",
        "webhook.delivery.skipped",
        "webhook.redelivery.requested",
    ];

    const SHAPES: &'static [Shape] =
        &[Shape { table: TABLE, columns: COLUMNS, key: 1, is_numbered: false }];

    fn of_version(version: u32) -> Self {
        let again = " ON CONFLICT (delivery_id) DO UPDATE SET status = excluded.status, \
            attempts = excluded.attempts, status_code = excluded.status_code, \
            latency_ms = excluded.latency_ms, error = excluded.error, \
            next_attempt_ms = excluded.next_attempt_ms, updated_ms = excluded.updated_ms";
        let table = table_of(TABLE, version);
        Self { rows: Insert::new(&table, COLUMNS, again), table }
    }

    async fn write(&self, tx: &mut ReadTx, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        for event in events {
            let status = match &*event.event_type {
                "webhook.delivery.skipped" => {
                    self.skip(tx, event).await?;
                    continue;
                }
                "webhook.delivery.succeeded" => "delivered",
                "webhook.delivery.failed" => "retrying",
                "webhook.delivery.exhausted" => "dead",
                _ => "pending",
            };
            self.rows.run(tx, values(event, status)?).await?;
        }
        if let Some(last) = events.last() {
            self.forget(tx, last.timestamp).await?;
        }
        Ok(())
    }
}

fn values(event: &StoredEvent, status: &str) -> Result<Vec<Param>, Failure> {
    let about: About = read_data::<WebhookDeliveryEvent, _>(event)?;
    let message = about.message;
    let next = about.next_attempt_at.as_deref().and_then(Timestamp::parse);
    Ok(vec![
        message.delivery_id.into(),
        message.endpoint_id.uuid().into(),
        event.aggregate_id.into(),
        message.event_id.into(),
        (&message.event_type).into(),
        message.aggregate_id.into(),
        message.aggregate_version.into(),
        message.partition.into(),
        message.position.into(),
        status.into(),
        about.attempt.into(),
        Param::Int(about.status_code),
        Param::Int(about.latency_ms),
        Param::text(about.error.as_deref()),
        Param::time(next),
        event.timestamp.into(),
        event.timestamp.into(),
    ])
}

impl WebhookDeliveries {
    async fn skip(&self, tx: &mut ReadTx, event: &StoredEvent) -> Result<(), Failure> {
        let sql = format!(
            "UPDATE {} SET status = 'skipped', next_attempt_ms = NULL, updated_ms = $1 \
             WHERE lane_id = $2 AND aggregate_version <= $3 AND status IN ('pending', 'retrying')",
            self.table
        );
        let Skipped { through } = read_data::<WebhookDeliveryEvent, _>(event)?;
        let params = vec![event.timestamp.into(), event.aggregate_id.into(), through.into()];
        tx.execute(AssertSqlSafe(sql), params).await?;
        Ok(())
    }

    async fn forget(&self, tx: &mut ReadTx, now: Timestamp) -> Result<(), Failure> {
        let sql = format!(
            "DELETE FROM {} WHERE status IN ('delivered', 'dead', 'skipped') AND updated_ms < $1",
            self.table
        );
        let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
        tx.execute(AssertSqlSafe(sql), vec![(now.millis() - kept).into()]).await?;
        Ok(())
    }
}

/// The table of the version that serves.
fn table(db: &ReadDb) -> String {
    db.table(super::WEBHOOK_DELIVERIES_VIEW, TABLE)
}

fn read(row: &Row) -> Result<DeliveryRow, ReadError> {
    let message = Message {
        delivery_id: row.id(0)?,
        endpoint_id: row.id(1)?.into(),
        event_id: row.id(3)?,
        event_type: row.text(4)?,
        aggregate_id: row.id(5)?,
        aggregate_version: row.count(6)?,
        partition: u16::try_from(row.int(7)?).map_err(|_| ReadError::Unreadable(7))?,
        position: row.count(8)?,
    };
    Ok(DeliveryRow {
        message,
        lane_id: row.id(2)?,
        status: row.text(9)?,
        attempts: row.count(10)?,
        status_code: row.int_or_null(11)?,
        latency_ms: row.int_or_null(12)?,
        error: row.text_or_null(13)?,
        next_attempt_at: row.time_or_null(14)?,
        created_at: row.time(15)?,
        updated_at: row.time(16)?,
    })
}

/// The deliveries to an endpoint, the newest first; of one status, if it is given.
pub async fn find(
    db: &ReadDb,
    endpoint: Uuid,
    status: Option<&str>,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, ReadError> {
    let query = Query::select(COLUMNS, &table(db))
        .then(" AND endpoint_id = ")
        .value(endpoint)
        .when(" AND status = ", status)
        .before("created_ms, delivery_id", before)
        .then(" ORDER BY created_ms DESC, delivery_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, read).await
}

/// The deliveries of an event to all endpoints.
pub async fn of_event(db: &ReadDb, event: Uuid) -> Result<Vec<DeliveryRow>, ReadError> {
    let query = Query::select(COLUMNS, &table(db))
        .then(" AND event_id = ")
        .value(event)
        .then(" ORDER BY endpoint_id LIMIT 100");
    db.fetch_as(query, read).await
}

/// A delivery.
pub async fn one(db: &ReadDb, delivery: Uuid) -> Result<Option<DeliveryRow>, ReadError> {
    let query = Query::select(COLUMNS, &table(db)).then(" AND delivery_id = ").value(delivery);
    Ok(db.fetch_as(query, read).await?.pop())
}

/// The aggregates whose deliveries to an endpoint wait, behind `after`, some at a time.
pub async fn lanes_waiting(
    db: &ReadDb,
    endpoint: Uuid,
    after: Option<Uuid>,
) -> Result<Vec<Uuid>, ReadError> {
    let query = Query::select(&["DISTINCT lane_id"], &table(db))
        .then(" AND status IN ('pending', 'retrying') AND endpoint_id = ")
        .value(endpoint)
        .when(" AND lane_id > ", after)
        .then(" ORDER BY lane_id LIMIT 100");
    db.fetch_as(query, |row| row.id(0)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::WebhookEndpointId;
    use crate::domain::webhook_delivery::{
        DeliveryFailed, DeliveryQueued, DeliverySkipped, DeliverySucceeded, WebhookDelivery,
        delivery_id, lane_of,
    };
    use crate::projections::testing::{self, numbered, stored};
    use crate::projections::view::Projected;
    use souk_actors::aggregate::Aggregate as _;

    const AT: Timestamp = Timestamp::from_millis(5);

    fn endpoint() -> WebhookEndpointId {
        WebhookEndpointId(Uuid::from_u128(1))
    }

    fn message(version: u64) -> Message {
        let event_id = Uuid::from_u128(100 + u128::from(version));
        Message {
            delivery_id: delivery_id(endpoint(), event_id),
            endpoint_id: endpoint(),
            event_id,
            event_type: "order.placed".to_owned(),
            aggregate_id: Uuid::from_u128(7),
            aggregate_version: version,
            partition: 0,
            position: version,
        }
    }

    fn of(event: &WebhookDeliveryEvent, timestamp: Timestamp) -> StoredEvent {
        let lane = lane_of(endpoint(), Uuid::from_u128(7));
        StoredEvent { timestamp, ..stored(event, WebhookDelivery::TYPE, lane) }
    }

    fn queued(version: u64) -> WebhookDeliveryEvent {
        let message = message(version);
        WebhookDeliveryEvent::Queued(DeliveryQueued { message, lease_until: None, queued_at: AT })
    }

    #[tokio::test]
    async fn deliveries_are_followed_and_forgotten_once_they_are_old() {
        let test = testing::open().await;
        let projected = Projected::<WebhookDeliveries>::new(test.db.clone());
        let failed = WebhookDeliveryEvent::Failed(DeliveryFailed {
            message: message(1),
            attempt: 1,
            status_code: Some(503),
            latency_ms: 12,
            error: "status_503".to_owned(),
            next_attempt_at: Timestamp::from_millis(5_005),
            failed_at: AT,
        });
        let events = [of(&queued(1), AT), of(&queued(2), AT), of(&failed, AT)];
        projected.advance(0, &numbered(events.clone()), 3).await.unwrap();
        let all = async || find(&test.db, endpoint().uuid(), None, None, 9).await.unwrap();
        let row = one(&test.db, message(1).delivery_id).await.unwrap().unwrap();
        assert_eq!(
            (row.status.as_str(), row.attempts, row.status_code),
            ("retrying", 1, Some(503))
        );
        assert_eq!(row.next_attempt_at, Some(Timestamp::from_millis(5_005)));
        assert_eq!(row.message, message(1));
        assert_eq!(lanes_waiting(&test.db, endpoint().uuid(), None).await.unwrap().len(), 1);
        let old = find(&test.db, endpoint().uuid(), Some("pending"), None, 9).await.unwrap();
        assert_eq!(old.len(), 1);

        let succeeded = WebhookDeliveryEvent::Succeeded(DeliverySucceeded {
            message: message(1),
            attempt: 2,
            status_code: 204,
            latency_ms: 3,
            lease_until: None,
            succeeded_at: AT,
        });
        let skipped = WebhookDeliveryEvent::Skipped(DeliverySkipped {
            endpoint_id: endpoint(),
            aggregate_id: Uuid::from_u128(7),
            through: 2,
            lease_until: None,
            skipped_at: AT,
        });
        let events = numbered(events.into_iter().chain([of(&succeeded, AT), of(&skipped, AT)]));
        projected.advance(0, &events, 5).await.unwrap();
        let mut statuses: Vec<_> = all().await.into_iter().map(|row| row.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, ["delivered", "skipped"]);
        assert!(lanes_waiting(&test.db, endpoint().uuid(), None).await.unwrap().is_empty());

        let later = AT.plus(KEPT).plus(Duration::from_millis(1));
        let events = numbered(
            events.iter().map(|event| StoredEvent::clone(event)).chain([of(&queued(3), later)]),
        );
        projected.advance(0, &events, 6).await.unwrap();
        let left: Vec<_> = all().await.into_iter().map(|row| row.message).collect();
        assert_eq!(left, [message(3)]);
    }
}
