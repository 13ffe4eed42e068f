//! `notifications-view`: a user's messages, and those for administrators. What they say stays
//! sealed in the journal; who may read it asks the aggregate.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::notification::NotificationEvent;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationRow {
    /// The message.
    pub notification_id: Uuid,
    /// To whom, or about whom when it is for administrators.
    pub user_id: Option<Uuid>,
    /// For whom: `user` or `admin`.
    pub audience: String,
    /// By which way: `email` or `in_app`.
    pub channel: String,
    /// Which text.
    pub template: String,
    /// How it stands: `requested`, `attempted`, `sent` or `failed`.
    pub status: String,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// The provider's name for it.
    pub provider_message_id: Option<String>,
    /// Since when.
    pub created_at: Timestamp,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// When it was read.
    pub read_at: Option<Timestamp>,
}

/// The messages.
pub struct NotificationsView;

#[derive(Deserialize)]
struct Requested {
    user_id: Uuid,
    audience: String,
    channel: String,
    template: String,
    cause_event_id: Uuid,
}

#[derive(Deserialize)]
struct Sent {
    provider_message_id: String,
}

impl View for NotificationsView {
    const NAME: &'static str = super::NOTIFICATIONS_VIEW;
    const TOPICS: &'static [&'static str] = &["notification.#"];
    const TABLE: &'static str = "notifications_v1";
    const COLUMNS: &'static [&'static str] = &[
        "notification_id",
        "user_id",
        "audience",
        "channel",
        "template",
        "status",
        "cause_event_id",
        "provider_message_id",
        "created_ms",
        "sent_ms",
        "read_ms",
    ];
    type Row = NotificationRow;

    fn fold(
        row: Option<NotificationRow>,
        event: &StoredEvent,
    ) -> Result<Option<NotificationRow>, Failure> {
        if &*event.event_type == "notification.requested" {
            let requested: Requested = read_data::<NotificationEvent, _>(event)?;
            return Ok(Some(NotificationRow {
                notification_id: event.aggregate_id,
                user_id: Some(requested.user_id),
                audience: requested.audience,
                channel: requested.channel,
                template: requested.template,
                status: "requested".to_owned(),
                cause_event_id: requested.cause_event_id,
                provider_message_id: None,
                created_at: event.timestamp,
                sent_at: None,
                read_at: None,
            }));
        }
        let Some(mut row) = row else { return Ok(None) };
        match &*event.event_type {
            "notification.email.attempted" => "attempted".clone_into(&mut row.status),
            "notification.email.failed" => "failed".clone_into(&mut row.status),
            "notification.email.sent" => {
                let Sent { provider_message_id } = read_data::<NotificationEvent, _>(event)?;
                row.provider_message_id = Some(provider_message_id);
                row.sent(event.timestamp);
            }
            "notification.user.sent" | "notification.admin.sent" => row.sent(event.timestamp),
            "notification.read" => row.read_at = Some(event.timestamp),
            _ => {}
        }
        Ok(Some(row))
    }

    fn values(row: &NotificationRow) -> Vec<Param> {
        vec![
            row.notification_id.into(),
            Param::id(row.user_id),
            (&row.audience).into(),
            (&row.channel).into(),
            (&row.template).into(),
            (&row.status).into(),
            row.cause_event_id.into(),
            Param::text(row.provider_message_id.as_deref()),
            row.created_at.into(),
            Param::time(row.sent_at),
            Param::time(row.read_at),
        ]
    }

    fn read(row: &Row) -> Result<NotificationRow, ReadError> {
        Ok(NotificationRow {
            notification_id: row.id(0)?,
            user_id: row.id_or_null(1)?,
            audience: row.text(2)?,
            channel: row.text(3)?,
            template: row.text(4)?,
            status: row.text(5)?,
            cause_event_id: row.id(6)?,
            provider_message_id: row.text_or_null(7)?,
            created_at: row.time(8)?,
            sent_at: row.time_or_null(9)?,
            read_at: row.time_or_null(10)?,
        })
    }
}

impl NotificationRow {
    fn sent(&mut self, at: Timestamp) {
        "sent".clone_into(&mut self.status);
        self.sent_at = Some(at);
    }
}

/// The messages, the newest first: those to a user, or, with `audience_admin`, those for
/// administrators (about the user, if one is given). Neither: all that go to users.
pub async fn find(
    db: &ReadDb,
    user_id: Option<Uuid>,
    audience_admin: bool,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<NotificationRow>, ReadError> {
    let audience = if audience_admin { "admin" } else { "user" };
    let query = Query::select(NotificationsView::COLUMNS, NotificationsView::TABLE)
        .then(" AND audience = ")
        .value(audience)
        .when(" AND user_id = ", user_id);
    page(db, query, before, limit).await
}

/// The messages that went by a channel, the newest first.
pub async fn sent_by(
    db: &ReadDb,
    channel: &str,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<NotificationRow>, ReadError> {
    let query = Query::select(NotificationsView::COLUMNS, NotificationsView::TABLE)
        .then(" AND channel = ")
        .value(channel)
        .then(" AND status = 'sent'");
    page(db, query, before, limit).await
}

async fn page(
    db: &ReadDb,
    query: Query,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<NotificationRow>, ReadError> {
    let query = query
        .before("created_ms, notification_id", before)
        .then(" ORDER BY created_ms DESC, notification_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, NotificationsView::read).await
}
