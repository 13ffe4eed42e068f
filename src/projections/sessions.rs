//! `sessions-view`: who is logged in, for the people themselves.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::session::SessionEvent;

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The session.
    pub session_id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// The user's epoch that it belongs to.
    pub epoch: u32,
    /// Since when.
    pub started_at: Timestamp,
    /// When its token was last replaced.
    pub refreshed_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it ended before its time.
    pub revoked_at: Option<Timestamp>,
}

/// The logins.
pub struct SessionsView;

#[derive(Deserialize)]
struct Started {
    user_id: Uuid,
    #[serde(default)]
    epoch: u32,
    expires_at: Timestamp,
}

impl View for SessionsView {
    const NAME: &'static str = super::SESSIONS_VIEW;
    const CONTEXT: &'static str = "users";
    const TOPICS: &'static [&'static str] = &["session.*"];
    const TABLE: &'static str = "sessions_v1";
    const COLUMNS: &'static [&'static str] = &[
        "session_id",
        "user_id",
        "epoch",
        "started_ms",
        "refreshed_ms",
        "expires_ms",
        "revoked_ms",
    ];
    const FIXED: &'static [&'static str] = &["user_id", "epoch", "started_ms", "expires_ms"];
    type Row = SessionRow;

    fn fold(row: Option<SessionRow>, event: &StoredEvent) -> Result<Option<SessionRow>, Failure> {
        if &*event.event_type == "session.started" {
            let started: Started = read_data::<SessionEvent, _>(event)?;
            return Ok(Some(SessionRow {
                session_id: event.aggregate_id,
                user_id: started.user_id,
                epoch: started.epoch,
                started_at: event.timestamp,
                refreshed_at: event.timestamp,
                expires_at: started.expires_at,
                revoked_at: None,
            }));
        }
        let Some(mut row) = row else { return Ok(None) };
        match &*event.event_type {
            "session.refreshed" => row.refreshed_at = event.timestamp,
            "session.revoked" => row.revoked_at = Some(event.timestamp),
            _ => {}
        }
        Ok(Some(row))
    }

    fn values(row: &SessionRow) -> Vec<Param> {
        vec![
            row.session_id.into(),
            row.user_id.into(),
            i64::from(row.epoch).into(),
            row.started_at.into(),
            row.refreshed_at.into(),
            row.expires_at.into(),
            Param::time(row.revoked_at),
        ]
    }

    fn read(row: &Row) -> Result<SessionRow, ReadError> {
        Ok(SessionRow {
            session_id: row.id(0)?,
            user_id: row.id(1)?,
            epoch: u32::try_from(row.int(2)?).unwrap_or(u32::MAX),
            started_at: row.time(3)?,
            refreshed_at: row.time(4)?,
            expires_at: row.time(5)?,
            revoked_at: row.time_or_null(6)?,
        })
    }
}

/// A user's logins, the newest first; `open_at`: only those that are open at this time.
pub async fn of_user(
    db: &ReadDb,
    user_id: Uuid,
    open_at: Option<Timestamp>,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<SessionRow>, ReadError> {
    let table = db.table(SessionsView::NAME, SessionsView::TABLE);
    let query = Query::select(SessionsView::COLUMNS, &table).then(" AND user_id = ").value(user_id);
    let query = match open_at {
        Some(now) => query.then(" AND revoked_ms IS NULL AND expires_ms > ").value(now),
        None => query,
    };
    let query = query
        .before("started_ms, session_id", before)
        .then(" ORDER BY started_ms DESC, session_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, SessionsView::read).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{SessionId, UserId};
    use crate::domain::session::SessionStarted;
    use crate::projections::testing::{self, event, numbered, stored};
    use crate::projections::view::{Projected, ViewTable};

    fn started(id: u128, user: u128) -> StoredEvent {
        let at = Timestamp::from_millis(i64::try_from(id).unwrap());
        let payload = SessionEvent::Started(SessionStarted {
            session_id: SessionId(Uuid::from_u128(id)),
            user_id: UserId(Uuid::from_u128(user)),
            epoch: 2,
            started_at: at,
            expires_at: Timestamp::from_millis(1_000),
        });
        StoredEvent { timestamp: at, ..stored(&payload, "session", Uuid::from_u128(id)) }
    }

    #[tokio::test]
    async fn the_open_ones_of_a_user_are_found_from_the_newest() {
        let test = testing::open().await;
        let projected = Projected::<ViewTable<SessionsView>>::new(test.db.clone());
        let events = numbered([
            started(1, 7),
            started(2, 8),
            started(3, 7),
            started(4, 7),
            event("session.revoked", "session", 3),
            event("session.refreshed", "session", 4),
        ]);
        projected.advance(0, &events, 6).await.unwrap();
        let user = Uuid::from_u128(7);
        let found = async |open_at: Option<i64>, before, limit| {
            let open_at = open_at.map(Timestamp::from_millis);
            let rows = of_user(&test.db, user, open_at, before, limit).await.unwrap();
            rows.into_iter().map(|row| row.session_id.as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(found(Some(10), None, 9).await, [4, 1]);
        assert_eq!(found(Some(1_000), None, 9).await, [0_u128; 0]);
        assert_eq!(found(None, None, 2).await, [4, 3]);
        assert_eq!(found(None, Some((3, Uuid::from_u128(3))), 9).await, [1]);
    }
}
