//! `service-tokens-view`, `event-types-view` and `buffers-view`: which tokens, registered types and
//! held-back events there are. The rows only say where to look: what is shown of each is asked of its
//! aggregate, so that it is never stale.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::event_type::EventTypeEvent;
use crate::domain::publication::PublicationEvent;
use crate::domain::service_token::ServiceTokenEvent;

/// A token of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTokenRow {
    /// The token.
    pub token_id: Uuid,
    /// Whose key it is; none: it is a service's.
    pub user_id: Option<Uuid>,
    /// When it was issued.
    pub issued_at: Timestamp,
}

/// The tokens.
pub struct ServiceTokensView;

#[derive(Deserialize)]
struct Issued {
    user_id: Option<Uuid>,
}

impl View for ServiceTokensView {
    const NAME: &'static str = super::SERVICE_TOKENS_VIEW;
    const CONTEXT: &'static str = "publishing";
    const TOPICS: &'static [&'static str] = &["service_token.issued"];
    const TABLE: &'static str = "service_tokens_v2";
    const COLUMNS: &'static [&'static str] = &["token_id", "user_id", "issued_ms"];
    const FIXED: &'static [&'static str] = &["user_id", "issued_ms"];
    type Row = ServiceTokenRow;

    fn fold(
        row: Option<ServiceTokenRow>,
        event: &StoredEvent,
    ) -> Result<Option<ServiceTokenRow>, Failure> {
        if row.is_some() {
            return Ok(row);
        }
        let Issued { user_id } = read_data::<ServiceTokenEvent, _>(event)?;
        let (token_id, issued_at) = (event.aggregate_id, event.timestamp);
        Ok(Some(ServiceTokenRow { token_id, user_id, issued_at }))
    }

    fn values(row: &ServiceTokenRow) -> Vec<Param> {
        vec![row.token_id.into(), Param::id(row.user_id), row.issued_at.into()]
    }

    fn read(row: &Row) -> Result<ServiceTokenRow, ReadError> {
        let (user_id, issued_at) = (row.id_or_null(1)?, row.time(2)?);
        Ok(ServiceTokenRow { token_id: row.id(0)?, user_id, issued_at })
    }
}

/// The tokens, the newest first, before a time and id; of one person, if they are given.
pub async fn service_tokens(
    db: &ReadDb,
    user_id: Option<Uuid>,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<ServiceTokenRow>, ReadError> {
    let query = Query::select(
        ServiceTokensView::COLUMNS,
        &db.table(ServiceTokensView::NAME, ServiceTokensView::TABLE),
    )
    .when(" AND user_id = ", user_id)
    .before("issued_ms, token_id", before)
    .then(" ORDER BY issued_ms DESC, token_id DESC LIMIT ")
    .value(limit);
    db.fetch_as(query, ServiceTokensView::read).await
}

/// A registered event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTypeRow {
    /// The type.
    pub event_type_id: Uuid,
    /// Its name.
    pub name: String,
}

/// The registered types.
pub struct EventTypesView;

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl View for EventTypesView {
    const NAME: &'static str = super::EVENT_TYPES_VIEW;
    const CONTEXT: &'static str = "publishing";
    const TOPICS: &'static [&'static str] = &["event_type.registered"];
    const TABLE: &'static str = "event_types_v1";
    const COLUMNS: &'static [&'static str] = &["event_type_id", "name"];
    const FIXED: &'static [&'static str] = &["name"];
    type Row = EventTypeRow;

    fn fold(
        row: Option<EventTypeRow>,
        event: &StoredEvent,
    ) -> Result<Option<EventTypeRow>, Failure> {
        if row.is_some() {
            return Ok(row);
        }
        let Named { name } = read_data::<EventTypeEvent, _>(event)?;
        Ok(Some(EventTypeRow { event_type_id: event.aggregate_id, name }))
    }

    fn values(row: &EventTypeRow) -> Vec<Param> {
        vec![row.event_type_id.into(), (&row.name).into()]
    }

    fn read(row: &Row) -> Result<EventTypeRow, ReadError> {
        Ok(EventTypeRow { event_type_id: row.id(0)?, name: row.text(1)? })
    }
}

/// The registered types behind a name, by name.
pub async fn event_types(
    db: &ReadDb,
    after: &str,
    limit: u32,
) -> Result<Vec<EventTypeRow>, ReadError> {
    let query = Query::select(
        EventTypesView::COLUMNS,
        &db.table(EventTypesView::NAME, EventTypesView::TABLE),
    )
    .then(" AND name > ")
    .value(after)
    .then(" ORDER BY name LIMIT ")
    .value(limit);
    db.fetch_as(query, EventTypesView::read).await
}

/// A source and key of which something is or was held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferRow {
    /// The stream.
    pub publication_id: Uuid,
    /// How many events are held back.
    pub held: u64,
    /// Since when it is so.
    pub changed_at: Timestamp,
}

/// What is held back.
pub struct BuffersView;

/// What a fact says about how many are held back.
#[derive(Deserialize)]
struct Change {
    left: Option<u64>,
    sequences: Option<Vec<u64>>,
}

impl View for BuffersView {
    const NAME: &'static str = super::BUFFERS_VIEW;
    const CONTEXT: &'static str = "publishing";
    const TOPICS: &'static [&'static str] = &["publication.*"];
    const TABLE: &'static str = "buffers_v1";
    const COLUMNS: &'static [&'static str] = &["publication_id", "held", "changed_ms"];
    const FIXED: &'static [&'static str] = &[];
    type Row = BufferRow;

    fn fold(row: Option<BufferRow>, event: &StoredEvent) -> Result<Option<BufferRow>, Failure> {
        let change: Change = read_data::<PublicationEvent, _>(event)?;
        let new =
            BufferRow { publication_id: event.aggregate_id, held: 0, changed_at: event.timestamp };
        let mut row = row.unwrap_or(new);
        row.changed_at = event.timestamp;
        row.held = match (&*event.event_type, change.left, change.sequences) {
            ("publication.buffered", ..) => row.held + 1,
            (_, Some(left), _) => left,
            (_, _, Some(gone)) => row.held.saturating_sub(gone.len() as u64),
            _ => row.held,
        };
        Ok(Some(row))
    }

    fn values(row: &BufferRow) -> Vec<Param> {
        vec![row.publication_id.into(), row.held.into(), row.changed_at.into()]
    }

    fn read(row: &Row) -> Result<BufferRow, ReadError> {
        Ok(BufferRow { publication_id: row.id(0)?, held: row.count(1)?, changed_at: row.time(2)? })
    }
}

/// Where something is held back, the latest first, before a time and id.
pub async fn buffers(
    db: &ReadDb,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<BufferRow>, ReadError> {
    let query =
        Query::select(BuffersView::COLUMNS, &db.table(BuffersView::NAME, BuffersView::TABLE))
            .then(" AND held > ")
            .value(0_u64)
            .before("changed_ms, publication_id", before)
            .then(" ORDER BY changed_ms DESC, publication_id DESC LIMIT ")
            .value(limit);
    db.fetch_as(query, BuffersView::read).await
}
