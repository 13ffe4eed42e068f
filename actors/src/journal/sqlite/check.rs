//! A check of each control row on which something rests that nothing else would notice: an outcome
//! that answers a repeat, a timer, a checkpoint, a letter. (Wrapped keys are sealed, snapshots check
//! themselves.) It is made of the values and stored with them; a row that it does not fit is
//! damaged.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::journal::rows::state_of;
use crate::journal::{Checkpoint, Error, Letter, Outcome, TimerKey};

/// Of the values of one row, in a fixed order. Stored; never change.
fn of(table: &str, parts: &[&[u8]]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    for part in std::iter::once(&table.as_bytes()).chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    i64::from_le_bytes([a, b, c, d, e, f, g, h])
}

pub(super) fn of_outcome(outcome: &Outcome) -> i64 {
    let rejection = outcome.rejection.as_deref();
    of(
        "outcomes",
        &[
            outcome.command_id.as_bytes(),
            &outcome.request_hash,
            &outcome.stream.to_le_bytes(),
            &outcome.version.to_le_bytes(),
            &outcome.events.to_le_bytes(),
            &[u8::from(rejection.is_some())],
            rejection.unwrap_or_default().as_bytes(),
            &outcome.at.millis().to_le_bytes(),
        ],
    )
}

pub(super) fn of_timer(partition: u16, key: &TimerKey, due: i64) -> i64 {
    of(
        "timers",
        &[
            &partition.to_le_bytes(),
            key.aggregate_type.as_bytes(),
            key.aggregate_id.as_bytes(),
            key.name.as_bytes(),
            &due.to_le_bytes(),
        ],
    )
}

pub(super) fn of_checkpoint(partition: u16, checkpoint: &Checkpoint) -> i64 {
    of(
        "checkpoints",
        &[
            checkpoint.subscription.as_bytes(),
            &partition.to_le_bytes(),
            &checkpoint.lane.to_le_bytes(),
            &checkpoint.lanes.to_le_bytes(),
            &checkpoint.position.to_le_bytes(),
        ],
    )
}

pub(super) fn of_letter(letter: &Letter) -> i64 {
    of(
        "letters",
        &[
            letter.subscription.as_bytes(),
            &letter.partition.to_le_bytes(),
            letter.key.as_bytes(),
            &letter.position.to_le_bytes(),
            letter.event_id.as_bytes(),
            letter.event_type.as_bytes(),
            letter.aggregate_id.as_bytes(),
            state_of(letter.state).as_bytes(),
            letter.class.as_bytes(),
            letter.error.as_bytes(),
            &letter.attempts.to_le_bytes(),
            &letter.first_failed_at.millis().to_le_bytes(),
            &letter.last_failed_at.millis().to_le_bytes(),
        ],
    )
}

/// What was read from a row, if the row's check is this.
pub(super) fn intact<T>(
    row: &SqliteRow,
    read: Result<T, Error>,
    check: impl FnOnce(&T) -> i64,
    what: impl FnOnce(&T) -> String,
) -> Result<T, Error> {
    let value = read?;
    let stored: i64 = row.try_get("row_check").map_err(Error::database)?;
    if stored == check(&value) {
        return Ok(value);
    }
    Err(Error::Damaged(format!("{} is not what was written", what(&value))))
}
