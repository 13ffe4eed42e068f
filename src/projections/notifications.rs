//! `notifications-view`: a user's messages, and those for administrators. What they say stays
//! sealed in the journal; who may read it asks the aggregate.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::ids::UserId;
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
    /// By which way: `email`, `sms` or `in_app`.
    pub channel: String,
    /// Which text.
    pub template: String,
    /// How it stands: `requested`, `attempted`, `sent`, `failed`, `unknown`, `bounced` or `muted`.
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

/// Whom the messages name that are for all administrators and about nobody.
const ADMINISTRATORS: Uuid = UserId::ADMINISTRATORS.uuid();

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
    const CONTEXT: &'static str = "notifications";
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
    const FIXED: &'static [&'static str] =
        &["user_id", "audience", "channel", "template", "cause_event_id", "created_ms"];
    type Row = NotificationRow;

    fn fold(
        row: Option<NotificationRow>,
        event: &StoredEvent,
    ) -> Result<Option<NotificationRow>, Failure> {
        if &*event.event_type == "notification.requested" {
            let requested: Requested = read_data::<NotificationEvent, _>(event)?;
            return Ok(Some(NotificationRow {
                notification_id: event.aggregate_id,
                user_id: Some(requested.user_id).filter(|user| *user != ADMINISTRATORS),
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
            "notification.email.attempted" | "notification.sms.attempted" => {
                "attempted".clone_into(&mut row.status);
            }
            "notification.email.failed" | "notification.sms.failed" => {
                "failed".clone_into(&mut row.status);
            }
            "notification.email.deferred" | "notification.sms.deferred" => {
                "requested".clone_into(&mut row.status);
            }
            "notification.email.outcome_unknown" | "notification.sms.outcome_unknown" => {
                "unknown".clone_into(&mut row.status);
            }
            "notification.email.sent" | "notification.sms.sent" => {
                let Sent { provider_message_id } = read_data::<NotificationEvent, _>(event)?;
                row.provider_message_id = Some(provider_message_id);
                row.sent(event.timestamp);
            }
            "notification.muted" => "muted".clone_into(&mut row.status),
            "notification.email.bounced" => "bounced".clone_into(&mut row.status),
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
/// administrators (about the user, if one is given). Neither: all that go to users. With `unread`
/// only those that nobody has read.
pub async fn find(
    db: &ReadDb,
    user_id: Option<Uuid>,
    audience_admin: bool,
    unread: bool,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<NotificationRow>, ReadError> {
    let audience = if audience_admin { "admin" } else { "user" };
    let query = Query::select(
        NotificationsView::COLUMNS,
        &db.table(NotificationsView::NAME, NotificationsView::TABLE),
    )
    .then(" AND status <> 'muted' AND audience = ")
    .value(audience)
    .when(" AND user_id = ", user_id);
    let query = if unread { query.then(" AND read_ms IS NULL") } else { query };
    page(db, query, before, limit).await
}

/// The messages that went by a channel, the newest first.
pub async fn sent_by(
    db: &ReadDb,
    channel: &str,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<NotificationRow>, ReadError> {
    let query = Query::select(
        NotificationsView::COLUMNS,
        &db.table(NotificationsView::NAME, NotificationsView::TABLE),
    )
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

#[cfg(test)]
mod tests {
    use souk_actors::personal::Personal;

    use super::*;
    use crate::domain::ids::NotificationId;
    use crate::domain::notification::{
        Audience, Channel, EmailSent, NotificationDelivered, NotificationRequested, Params,
    };
    use crate::projections::testing::{self, event, numbered, row_of, stored};
    use crate::projections::view::{Projected, ViewTable};

    const AT: Timestamp = Timestamp::from_millis(5);

    fn user() -> UserId {
        UserId(Uuid::from_u128(7))
    }

    fn requested(id: u128, audience: Audience, channel: Channel) -> StoredEvent {
        let notification_id = NotificationId(Uuid::from_u128(id));
        let payload = NotificationEvent::Requested(NotificationRequested {
            notification_id,
            user_id: user(),
            audience,
            channel,
            template: "welcome_verification".to_owned(),
            to: Some(Personal::new(user().uuid(), "ada@example.com".to_owned())),
            params: Personal::new(user().uuid(), Params::new()),
            order_id: None,
            cause_event_id: Uuid::from_u128(3),
            requested_at: AT,
        });
        stored(&payload, "notification", notification_id.uuid())
    }

    #[tokio::test]
    async fn a_mail_is_followed_to_its_end() {
        let notification_id = NotificationId(Uuid::from_u128(1));
        let sent = NotificationEvent::EmailSent(EmailSent {
            notification_id,
            user_id: user(),
            to_hash: "hash".to_owned(),
            template: "welcome_verification".to_owned(),
            order_id: None,
            cause_event_id: Some(Uuid::from_u128(3)),
            provider_message_id: "log-1".to_owned(),
            adapter: "log".to_owned(),
            sent_at: AT,
        });
        let row = row_of::<NotificationsView>([
            requested(1, Audience::User, Channel::Email),
            event("notification.email.attempted", "notification", 1),
            StoredEvent { timestamp: AT, ..stored(&sent, "notification", notification_id.uuid()) },
        ])
        .await
        .unwrap();
        assert_eq!((row.status.as_str(), row.channel.as_str()), ("sent", "email"));
        assert_eq!(row.provider_message_id.as_deref(), Some("log-1"));
        assert_eq!((row.sent_at, row.cause_event_id), (Some(AT), Uuid::from_u128(3)));
    }

    #[tokio::test]
    async fn users_do_not_see_what_administrators_are_told_about_them() {
        let test = testing::open().await;
        let projected = Projected::<ViewTable<NotificationsView>>::new(test.db.clone());
        let told = NotificationEvent::AdminSent(NotificationDelivered {
            notification_id: NotificationId(Uuid::from_u128(2)),
            user_id: user(),
            template: "seller_pending".to_owned(),
            order_id: None,
            sent_at: AT,
        });
        let events = numbered([
            requested(1, Audience::User, Channel::Email),
            requested(2, Audience::Admin, Channel::InApp),
            stored(&told, "notification", Uuid::from_u128(2)),
        ]);
        projected.advance(0, &events, 3).await.unwrap();
        let ids = async |user_id, admin| {
            let rows = find(&test.db, user_id, admin, false, None, 9).await.unwrap();
            rows.into_iter().map(|row| row.notification_id.as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(ids(Some(user().uuid()), false).await, [1]);
        assert_eq!(ids(None, true).await, [2]);
        assert!(sent_by(&test.db, "email", None, 9).await.unwrap().is_empty());
        assert_eq!(sent_by(&test.db, "in_app", None, 9).await.unwrap().len(), 1);
    }
}
