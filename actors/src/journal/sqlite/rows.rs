//! How rows are read.

use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::event::StoredEvent;
use crate::journal::{Error, Letter, LetterState, Outcome, Quarantine};
use crate::world::Timestamp;

/// The columns that [`event_of`] reads, in the order in which they are written.
macro_rules! event_columns {
    () => {
        "seq, event_id, stream, aggregate_version, aggregate_type, aggregate_id, event_type, major, minor, timestamp, correlation_id, causation_id, data, metadata, hash"
    };
}
pub(super) use event_columns;

/// The part of `seq` (and of a stream number) that counts within the partition.
pub(super) const POSITION_MASK: u64 = (1 << 48) - 1;

/// The key of a place in a partition's log.
pub(super) fn seq(partition: u16, position: u64) -> i64 {
    (i64::from(partition) << 48) | i64::try_from(position & POSITION_MASK).unwrap_or(i64::MAX)
}

pub(super) fn to_u64(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn to_u16(value: i64) -> u16 {
    u16::try_from(value).unwrap_or(0)
}

type Anyhow = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn blob_uuid(row: &SqliteRow, column: &str) -> Result<Uuid, Anyhow> {
    Ok(Uuid::from_slice(row.try_get::<&[u8], _>(column)?)?)
}

fn text(row: &SqliteRow, column: &str) -> Result<Arc<str>, Anyhow> {
    Ok(row.try_get::<&str, _>(column)?.into())
}

fn time(row: &SqliteRow, column: &str) -> Result<Timestamp, Anyhow> {
    Ok(Timestamp::from_millis(row.try_get(column)?))
}

pub(super) fn event_of(row: &SqliteRow) -> Result<StoredEvent, Error> {
    let read = || -> Result<StoredEvent, Anyhow> {
        let seq: i64 = row.try_get("seq")?;
        Ok(StoredEvent {
            partition: to_u16(seq >> 48),
            position: to_u64(seq) & POSITION_MASK,
            event_id: blob_uuid(row, "event_id")?,
            stream: row.try_get("stream")?,
            aggregate_type: text(row, "aggregate_type")?,
            aggregate_id: blob_uuid(row, "aggregate_id")?,
            aggregate_version: to_u64(row.try_get("aggregate_version")?),
            event_type: text(row, "event_type")?,
            major: to_u16(row.try_get("major")?),
            minor: to_u16(row.try_get("minor")?),
            timestamp: time(row, "timestamp")?,
            correlation_id: text(row, "correlation_id")?,
            causation_id: text(row, "causation_id")?,
            data: text(row, "data")?,
            metadata: text(row, "metadata")?,
            hash: row.try_get::<&[u8], _>("hash")?.try_into()?,
        })
    };
    read().map_err(|error| Error::Damaged(format!("a stored event cannot be read: {error}")))
}

pub(super) fn outcome_of(command_id: Uuid, row: &SqliteRow) -> Result<Outcome, Error> {
    let read = || -> Result<Outcome, Anyhow> {
        Ok(Outcome {
            command_id,
            request_hash: row.try_get::<&[u8], _>("request_hash")?.try_into()?,
            stream: row.try_get("stream")?,
            version: to_u64(row.try_get("version")?),
            events: u32::try_from(row.try_get::<i64, _>("events")?)?,
            rejection: row.try_get::<Option<&str>, _>("rejection")?.map(Into::into),
            at: time(row, "at")?,
        })
    };
    read().map_err(|error| Error::Damaged(format!("a stored outcome cannot be read: {error}")))
}

pub(super) fn letter_of(row: &SqliteRow) -> Result<Letter, Error> {
    let read = || -> Result<Letter, Anyhow> {
        let dead = row.try_get::<&str, _>("state")? == "dead";
        Ok(Letter {
            subscription: text(row, "subscription")?,
            partition: to_u16(row.try_get("partition")?),
            key: blob_uuid(row, "key")?,
            position: to_u64(row.try_get("position")?),
            event_id: blob_uuid(row, "event_id")?,
            event_type: text(row, "event_type")?,
            aggregate_id: blob_uuid(row, "aggregate_id")?,
            state: if dead { LetterState::Dead } else { LetterState::Waiting },
            class: row.try_get("class")?,
            error: row.try_get("error")?,
            attempts: u32::try_from(row.try_get::<i64, _>("attempts")?)?,
            first_failed_at: time(row, "first_failed_at")?,
            last_failed_at: time(row, "last_failed_at")?,
        })
    };
    read().map_err(|error| Error::Damaged(format!("a stored letter cannot be read: {error}")))
}

pub(super) fn quarantine_of(row: &SqliteRow) -> Result<Quarantine, Error> {
    let read = || -> Result<Quarantine, Anyhow> {
        Ok(Quarantine {
            aggregate_type: text(row, "aggregate_type")?,
            aggregate_id: blob_uuid(row, "aggregate_id")?,
            command_id: blob_uuid(row, "command_id")?,
            command: row.try_get("command")?,
            error_id: blob_uuid(row, "error_id")?,
            since: time(row, "since")?,
        })
    };
    read().map_err(|error| Error::Damaged(format!("a quarantine record cannot be read: {error}")))
}
