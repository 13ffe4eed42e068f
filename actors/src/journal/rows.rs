//! What the two databases say the same: how numbers and ids are stored, and how rows are read.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::copy::COPYING;
use super::{
    Checkpoint, Error, FORMAT, Head, Letter, LetterState, Outcome, PersonKey, Quarantine, Snapshot,
    StreamNumber, Timer, TimerKey, TimerWrite,
};
use crate::event::{Position, StoredEvent};
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

/// The place that a key stands for, with the event that is there.
pub(super) fn place_of(id: Uuid, seq: i64) -> (Uuid, Position) {
    let place = Position { partition: to_u16(seq >> 48), position: to_u64(seq) & POSITION_MASK };
    (id, place)
}

pub(super) fn to_u64(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn to_u16(value: i64) -> u16 {
    u16::try_from(value).unwrap_or(0)
}

pub(super) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// What a new journal is made with and an old one must agree with, by name.
pub(super) fn settings(partitions: u16) -> [(&'static str, String); 2] {
    [("format", FORMAT.to_string()), ("partitions", partitions.to_string())]
}

/// Refuses a journal that was made otherwise.
pub(super) fn check_setting(name: &str, stored: &str, wanted: &str) -> Result<(), Error> {
    if stored == wanted {
        return Ok(());
    }
    Err(Error::Mismatch(match name {
        "format" if stored == COPYING => {
            "a copy into this journal was not finished: run souk journal copy again".to_owned()
        }
        "format" => format!(
            "the journal has format {stored}; this version of the program reads and writes format {wanted} only"
        ),
        "partitions" => format!(
            "the journal was created with {name} {stored}, not {wanted}: it cannot be changed later"
        ),
        _ => format!("the journal's {name} is {stored} and not {wanted}"),
    }))
}

pub(super) fn state_of(state: LetterState) -> &'static str {
    state.as_str()
}

/// What a batch does to timers, each of them once.
#[derive(Debug, Default)]
pub(super) struct TimerChanges<'a> {
    /// To be set, and when they are due.
    pub set: Vec<(&'a TimerKey, i64)>,
    /// To be forgotten.
    pub cleared: Vec<&'a TimerKey>,
    /// To be forgotten if they are still due then.
    pub fired: Vec<(&'a TimerKey, i64)>,
}

/// Of several writes to one timer the last counts; one that fired and was set again since then has
/// nothing to do with the one that fired.
pub(super) fn timer_changes(writes: &[TimerWrite]) -> TimerChanges<'_> {
    let mut last: HashMap<&TimerKey, Option<i64>> = HashMap::new();
    let mut changes = TimerChanges::default();
    for write in writes {
        match write {
            TimerWrite::Set(timer) => {
                last.insert(&timer.key, Some(timer.due.millis()));
            }
            TimerWrite::Clear(key) => {
                last.insert(key, None);
            }
            TimerWrite::Fired(timer) => match last.get_mut(&timer.key) {
                Some(due) if *due == Some(timer.due.millis()) => *due = None,
                Some(_) => {}
                None => changes.fired.push((&timer.key, timer.due.millis())),
            },
        }
    }
    changes.fired.retain(|(key, _)| !last.contains_key(key));
    for (key, due) in last {
        match due {
            Some(due) => changes.set.push((key, due)),
            None => changes.cleared.push(key),
        }
    }
    changes
}

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A row of either database, by the names of its columns.
pub(super) trait Columns {
    fn id(&self, column: &str) -> Result<Uuid, BoxError>;
    fn number(&self, column: &str) -> Result<i64, BoxError>;
    fn text(&self, column: &str) -> Result<&str, BoxError>;
    fn text_or_none(&self, column: &str) -> Result<Option<&str>, BoxError>;
    fn bytes(&self, column: &str) -> Result<&[u8], BoxError>;
    fn bytes_or_none(&self, column: &str) -> Result<Option<&[u8]>, BoxError>;
    fn number_or_none(&self, column: &str) -> Result<Option<i64>, BoxError>;

    fn time(&self, column: &str) -> Result<Timestamp, BoxError> {
        Ok(Timestamp::from_millis(self.number(column)?))
    }
}

/// Damage to `what`, unless the row can be read.
fn read<T>(what: &str, row: impl FnOnce() -> Result<T, BoxError>) -> Result<T, Error> {
    row().map_err(|error| Error::Damaged(format!("a stored {what} cannot be read: {error}")))
}

/// A number that does not fit is damaged, and not another number.
pub(super) fn event_of(row: &impl Columns) -> Result<StoredEvent, Error> {
    let seq = row.number("seq").unwrap_or_default();
    let event = || {
        Ok(StoredEvent {
            partition: u16::try_from(row.number("seq")? >> 48)?,
            position: to_u64(seq) & POSITION_MASK,
            event_id: row.id("event_id")?,
            stream: row.number("stream")?,
            aggregate_type: row.text("aggregate_type")?.into(),
            aggregate_id: row.id("aggregate_id")?,
            aggregate_version: row.number("aggregate_version")?.try_into()?,
            event_type: row.text("event_type")?.into(),
            major: row.number("major")?.try_into()?,
            minor: row.number("minor")?.try_into()?,
            timestamp: row.time("timestamp")?,
            correlation_id: row.text("correlation_id")?.into(),
            causation_id: row.text("causation_id")?.into(),
            data: row.text("data")?.into(),
            metadata: row.text("metadata")?.into(),
            hash: row.bytes("hash")?.try_into()?,
        })
    };
    event().map_err(|error: BoxError| {
        let (partition, position) = (seq >> 48, to_u64(seq) & POSITION_MASK);
        Error::Damaged(format!("the event at {partition}:{position} cannot be read: {error}"))
    })
}

pub(super) fn head_of(row: &impl Columns) -> Result<Head, Error> {
    read("hash", || {
        let position = to_u64(row.number("seq")?) & POSITION_MASK;
        Ok(Head { position, hash: row.bytes("hash")?.try_into()? })
    })
}

pub(super) fn outcome_of(command_id: Uuid, row: &impl Columns) -> Result<Outcome, Error> {
    read("outcome", || {
        Ok(Outcome {
            command_id,
            request_hash: row.bytes("request_hash")?.try_into()?,
            stream: row.number("stream")?,
            version: to_u64(row.number("version")?),
            events: u32::try_from(row.number("events")?)?,
            rejection: row.text_or_none("rejection")?.map(Into::into),
            at: row.time("at")?,
        })
    })
}

pub(super) fn snapshot_of(stream: i64, row: &impl Columns) -> Result<Snapshot, Error> {
    read("snapshot", || {
        Ok(Snapshot {
            stream,
            version: to_u64(row.number("version")?),
            shape: u32::try_from(row.number("shape")?)?,
            state: row.text("state")?.to_owned(),
        })
    })
}

pub(super) fn timer_of(row: &impl Columns) -> Result<Timer, Error> {
    read("timer", || {
        let key = TimerKey {
            aggregate_type: row.text("aggregate_type")?.into(),
            aggregate_id: row.id("aggregate_id")?,
            name: row.text("name")?.to_owned(),
        };
        Ok(Timer { key, due: row.time("due")? })
    })
}

pub(super) fn checkpoint_of(
    subscription: &Arc<str>,
    row: &impl Columns,
) -> Result<Checkpoint, Error> {
    read("checkpoint", || {
        Ok(Checkpoint {
            subscription: subscription.clone(),
            lane: to_u16(row.number("lane")?),
            lanes: to_u16(row.number("lanes")?),
            position: to_u64(row.number("position")?),
        })
    })
}

pub(super) fn letter_of(row: &impl Columns) -> Result<Letter, Error> {
    read("letter", || {
        Ok(Letter {
            subscription: row.text("subscription")?.into(),
            partition: to_u16(row.number("partition")?),
            key: row.id("key")?,
            position: to_u64(row.number("position")?),
            event_id: row.id("event_id")?,
            event_type: row.text("event_type")?.into(),
            aggregate_id: row.id("aggregate_id")?,
            state: row.text("state")?.parse()?,
            class: row.text("class")?.to_owned(),
            error: row.text("error")?.to_owned(),
            attempts: u32::try_from(row.number("attempts")?)?,
            first_failed_at: row.time("first_failed_at")?,
            last_failed_at: row.time("last_failed_at")?,
        })
    })
}

pub(super) fn quarantine_of(row: &impl Columns) -> Result<Quarantine, Error> {
    read("quarantine record", || {
        Ok(Quarantine {
            aggregate_type: row.text("aggregate_type")?.into(),
            aggregate_id: row.id("aggregate_id")?,
            command_id: row.id("command_id")?,
            command: row.text("command")?.to_owned(),
            error_id: row.id("error_id")?,
            since: row.time("since")?,
        })
    })
}

pub(super) fn person_key_of(row: &impl Columns) -> Result<PersonKey, Error> {
    read("person's key", || {
        let wrapped = row.bytes_or_none("wrapped")?.unwrap_or_default().to_vec();
        Ok(PersonKey { subject: row.id("subject")?, wrapped })
    })
}

/// A row of the application: its key, its value and when it may be dropped.
pub(super) type ControlRow = (Vec<u8>, Vec<u8>, Option<Timestamp>);

pub(super) fn control_of(row: &impl Columns) -> Result<ControlRow, Error> {
    read("control row", || {
        let expires_at = row.number_or_none("expires_at")?.map(Timestamp::from_millis);
        Ok((row.bytes("key")?.to_vec(), row.bytes("value")?.to_vec(), expires_at))
    })
}

pub(super) fn space_of(row: &impl Columns) -> Result<String, Error> {
    read("control row", || Ok(row.text("space")?.to_owned()))
}

pub(super) fn id_of(row: &impl Columns, column: &str) -> Result<Uuid, Error> {
    read("id", || row.id(column))
}

/// A stream and whose it is.
pub(super) fn whole_stream_of(row: &impl Columns) -> Result<StreamNumber, Error> {
    read("stream", || {
        Ok(StreamNumber {
            stream: row.number("stream")?,
            aggregate_type: row.text("aggregate_type")?.into(),
            aggregate_id: row.id("aggregate_id")?,
        })
    })
}

pub(super) fn stream_of(row: &impl Columns) -> Result<i64, Error> {
    read("snapshot", || row.number("stream"))
}

pub(super) fn subscription_of(row: &impl Columns) -> Result<Arc<str>, Error> {
    read("checkpoint", || Ok(row.text("subscription")?.into()))
}

pub(super) fn partition_of_row(row: &impl Columns) -> Result<u16, Error> {
    read("partition", || Ok(u16::try_from(row.number("partition")?)?))
}
