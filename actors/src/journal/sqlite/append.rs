//! How a batch is written.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Sqlite};
use uuid::Uuid;

use super::check;
use crate::event::StoredEvent;
use crate::faults::points;
use crate::journal::rows::{event_columns, seq, state_of, timer_changes, to_i64};
use crate::journal::{
    AppendError, Batch, Lease, Letter, LetterWrite, TimerKey, TimerWrite, snapshot_stride,
};

/// SQLite's limit on bound values is 32,766; an event has 15.
const EVENTS_PER_STATEMENT_MAX: usize = 500;

/// SQLite's limit on bound values in rows of the widest control table.
const ROWS_PER_STATEMENT_MAX: usize = 500;

macro_rules! events_into {
    () => {
        concat!(" INTO events (", event_columns!(), ") SELECT * FROM (VALUES")
    };
}

/// The text of multi-row statements, one for each number of rows, so that each is prepared once.
#[derive(Debug, Default)]
pub(super) struct Statements {
    texts: HashMap<(&'static str, usize), Arc<str>>,
}

impl Statements {
    /// `before (?,…),(?,…) after`, with exactly `rows` rows of `columns` values.
    fn rows(
        &mut self,
        before: &'static str,
        columns: usize,
        rows: usize,
        after: &'static str,
    ) -> Arc<str> {
        self.texts
            .entry((before, rows))
            .or_insert_with(|| {
                let row = format!("({})", vec!["?"; columns].join(","));
                format!("{before} {} {after}", vec![row; rows].join(",")).into()
            })
            .clone()
    }

    /// One statement that inserts exactly `rows` events, and none at all unless the lease holds. Alone
    /// it is undone as a whole when it fails.
    fn events(&mut self, rows: usize, among: Among) -> Arc<str> {
        let before = match among {
            Among::Nothing => concat!("INSERT", events_into!()),
            Among::Others => concat!("INSERT OR FAIL", events_into!()),
        };
        self.rows(
            before,
            15,
            rows,
            ") WHERE EXISTS (SELECT 1 FROM leases WHERE partition = ? AND epoch = ?)",
        )
    }
}

/// What else a statement's transaction has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Among {
    /// It is alone.
    Nothing,
    /// Whatever fails undoes all of them. To be able to undo one statement alone, SQLite would copy each
    /// page before the statement changes it: `OR FAIL` says that nobody wants that.
    Others,
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

pub(super) async fn append(
    connection: &mut SqliteConnection,
    statements: &mut Statements,
    lease: Lease,
    batch: &Batch,
) -> Result<(), AppendError> {
    if batch.only_events() && batch.events.len() <= EVENTS_PER_STATEMENT_MAX {
        return match insert_events(connection, statements, lease, &batch.events, Among::Nothing)
            .await
        {
            Ok(()) => Ok(()),
            Err(Refused::Sql(error)) => Err(classify(&error)),
            Err(Refused::Other(error)) => Err(error),
        };
    }
    execute(connection, sqlx::query("BEGIN IMMEDIATE")).await.map_err(|error| match error {
        Refused::Sql(error) => AppendError::NotCommitted(error.to_string()),
        Refused::Other(error) => error,
    })?;
    let stored = store(connection, statements, lease, batch).await;
    let committing = stored.is_ok();
    points::reach("journal.before_commit").await;
    let ended = match stored {
        Ok(()) => execute(connection, sqlx::query("COMMIT")).await.map(drop),
        Err(error) => Err(error),
    };
    let Err(refused) = ended else { return Ok(()) };
    // SQLite may have undone it by itself (a full disk): then there is nothing left to undo. Whatever
    // is wrong with the connection ends with it; the caller keeps it after a conflict only.
    let rolled_back = execute(connection, sqlx::query("ROLLBACK")).await.is_ok();
    match (refused, committing) {
        (Refused::Other(error), _) => Err(error),
        (Refused::Sql(error), true) => Err(classify(&error)),
        (Refused::Sql(error), false) => Err(match classify(&error) {
            AppendError::Conflict(what) if !rolled_back => AppendError::NotCommitted(what),
            // Before the commit nothing was written that could commit it.
            AppendError::Unknown(what) | AppendError::Unsettled(what) => {
                AppendError::NotCommitted(what)
            }
            other => other,
        }),
    }
}

enum Refused {
    Sql(sqlx::Error),
    Other(AppendError),
}

async fn execute(connection: &mut SqliteConnection, query: Query<'_>) -> Result<u64, Refused> {
    query.execute(connection).await.map(|done| done.rows_affected()).map_err(Refused::Sql)
}

/// By the database's code, never by the words of its message.
fn classify(error: &sqlx::Error) -> AppendError {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok());
    match code.map(|code| code & 0xff) {
        // SQLITE_CONSTRAINT
        Some(19) => AppendError::Conflict(error.to_string()),
        // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_CANTOPEN: the statement did not commit.
        Some(5 | 6 | 8 | 14) => AppendError::NotCommitted(error.to_string()),
        // SQLITE_FULL: the frame that would have committed it is the last to be written.
        Some(13) => AppendError::NotCommitted(format!(
            "{error}. Free space on that disk; appends go on by themselves"
        )),
        // SQLITE_CORRUPT, SQLITE_NOTADB.
        Some(11 | 26) => AppendError::NotCommitted(format!(
            "{error}. Stop the service, run `souk journal verify`, and restore a backup"
        )),
        // SQLITE_IOERR: written in part, perhaps up to the frame that commits it.
        Some(10) => AppendError::Unsettled(format!(
            "{error}. The disk refuses to write or to sync: the system's log says why; appends go on by themselves once it does"
        )),
        _ => AppendError::Unknown(error.to_string()),
    }
}

async fn store(
    connection: &mut SqliteConnection,
    statements: &mut Statements,
    lease: Lease,
    batch: &Batch,
) -> Result<(), Refused> {
    if batch.events.is_empty() {
        check_lease(connection, lease).await?;
    }
    for streams in batch.streams.chunks(ROWS_PER_STATEMENT_MAX) {
        let insert =
            "INSERT OR FAIL INTO streams (stream, partition, aggregate_type, aggregate_id) VALUES";
        let mut query = sqlx::query(AssertSqlSafe(statements.rows(insert, 4, streams.len(), "")));
        for new in streams {
            query = query
                .bind(new.stream)
                .bind(i64::from(lease.partition))
                .bind(new.aggregate_type.clone())
                .bind(blob(new.aggregate_id));
        }
        execute(connection, query).await?;
    }
    for events in batch.events.chunks(EVENTS_PER_STATEMENT_MAX) {
        insert_events(connection, statements, lease, events, Among::Others).await?;
    }
    points::reach("journal.after_insert").await;
    store_commands(connection, statements, batch).await?;
    store_timers(connection, statements, lease.partition, &batch.timers).await?;
    store_deliveries(connection, statements, lease.partition, batch).await?;
    store_rest(connection, lease.partition, batch).await
}

async fn check_lease(connection: &mut SqliteConnection, lease: Lease) -> Result<(), Refused> {
    let epoch: Option<i64> = sqlx::query_scalar("SELECT epoch FROM leases WHERE partition = $1")
        .bind(i64::from(lease.partition))
        .fetch_optional(connection)
        .await
        .map_err(Refused::Sql)?;
    if epoch == Some(to_i64(lease.epoch)) {
        Ok(())
    } else {
        Err(Refused::Other(AppendError::Fenced))
    }
}

async fn insert_events(
    connection: &mut SqliteConnection,
    statements: &mut Statements,
    lease: Lease,
    events: &[Arc<StoredEvent>],
    among: Among,
) -> Result<(), Refused> {
    let mut query = sqlx::query(AssertSqlSafe(statements.events(events.len(), among)));
    for event in events {
        query = query
            .bind(seq(event.partition, event.position))
            .bind(blob(event.event_id))
            .bind(event.stream)
            .bind(to_i64(event.aggregate_version))
            .bind(event.aggregate_type.clone())
            .bind(blob(event.aggregate_id))
            .bind(event.event_type.clone())
            .bind(i64::from(event.major))
            .bind(i64::from(event.minor))
            .bind(event.timestamp.millis())
            .bind(event.correlation_id.clone())
            .bind(event.causation_id.clone())
            .bind(event.data.clone())
            .bind(event.metadata.clone())
            .bind(event.hash.to_vec());
    }
    query = query.bind(i64::from(lease.partition)).bind(to_i64(lease.epoch));
    let stored = execute(connection, query).await?;
    if stored == events.len() as u64 { Ok(()) } else { Err(Refused::Other(AppendError::Fenced)) }
}

async fn store_commands(
    connection: &mut SqliteConnection,
    statements: &mut Statements,
    batch: &Batch,
) -> Result<(), Refused> {
    for outcomes in batch.outcomes.chunks(ROWS_PER_STATEMENT_MAX) {
        let insert = "INSERT OR FAIL INTO outcomes (command_id, request_hash, stream, version, events, rejection, at, row_check) VALUES";
        let mut query = sqlx::query(AssertSqlSafe(statements.rows(insert, 8, outcomes.len(), "")));
        for outcome in outcomes {
            query = query
                .bind(blob(outcome.command_id))
                .bind(outcome.request_hash.to_vec())
                .bind(outcome.stream)
                .bind(to_i64(outcome.version))
                .bind(i64::from(outcome.events))
                .bind(outcome.rejection.as_deref().map(str::to_owned))
                .bind(outcome.at.millis())
                .bind(check::of_outcome(outcome));
        }
        execute(connection, query).await?;
    }
    for key in &batch.keys {
        let insert = sqlx::query(
            "INSERT INTO person_keys (subject, wrapped) VALUES ($1, $2)
             ON CONFLICT (subject) DO UPDATE SET wrapped = wrapped WHERE wrapped = $2",
        );
        let insert = insert.bind(blob(key.subject)).bind(key.wrapped.clone());
        if execute(connection, insert).await? == 0 {
            let other = AppendError::Conflict("the person has another key".into());
            return Err(Refused::Other(other));
        }
    }
    for subject in &batch.destroyed_keys {
        let destroy = sqlx::query(
            "INSERT INTO person_keys (subject, wrapped) VALUES ($1, NULL)
             ON CONFLICT (subject) DO UPDATE SET wrapped = NULL",
        );
        execute(connection, destroy.bind(blob(*subject))).await?;
    }
    Ok(())
}

async fn store_timers(
    connection: &mut SqliteConnection,
    statements: &mut Statements,
    partition: u16,
    timers: &[TimerWrite],
) -> Result<(), Refused> {
    let changes = timer_changes(timers);
    for (key, due) in changes.fired {
        let delete = sqlx::query(
            "DELETE FROM timers WHERE aggregate_id = $1 AND aggregate_type = $2 AND name = $3 AND due = $4",
        );
        execute(connection, keyed(delete, key).bind(due)).await?;
    }
    for timers in changes.set.chunks(ROWS_PER_STATEMENT_MAX) {
        let upsert = "INSERT OR FAIL INTO timers (aggregate_id, aggregate_type, name, partition, due, row_check) VALUES";
        let conflict = "ON CONFLICT (aggregate_id, aggregate_type, name) DO UPDATE SET due = excluded.due, row_check = excluded.row_check";
        let text = statements.rows(upsert, 6, timers.len(), conflict);
        let mut query = sqlx::query(AssertSqlSafe(text));
        for (key, due) in timers {
            let row_check = check::of_timer(partition, key, *due);
            query = keyed(query, key).bind(i64::from(partition)).bind(*due).bind(row_check);
        }
        execute(connection, query).await?;
    }
    for timers in changes.cleared.chunks(ROWS_PER_STATEMENT_MAX) {
        let delete = "DELETE FROM timers WHERE (aggregate_id, aggregate_type, name) IN (VALUES";
        let mut query = sqlx::query(AssertSqlSafe(statements.rows(delete, 3, timers.len(), ")")));
        for key in timers {
            query = keyed(query, key);
        }
        execute(connection, query).await?;
    }
    Ok(())
}

fn keyed<'q>(query: Query<'q>, key: &TimerKey) -> Query<'q> {
    query.bind(blob(key.aggregate_id)).bind(key.aggregate_type.clone()).bind(key.name.clone())
}

async fn store_deliveries(
    connection: &mut SqliteConnection,
    statements: &mut Statements,
    partition: u16,
    batch: &Batch,
) -> Result<(), Refused> {
    for checkpoint in &batch.checkpoints {
        if checkpoint.lane == 0 {
            let drop_old = sqlx::query(
                "DELETE FROM checkpoints WHERE subscription = $1 AND partition = $2 AND lanes <> $3",
            );
            let drop_old = drop_old
                .bind(checkpoint.subscription.clone())
                .bind(i64::from(partition))
                .bind(i64::from(checkpoint.lanes));
            execute(connection, drop_old).await?;
        }
    }
    for checkpoints in batch.checkpoints.chunks(ROWS_PER_STATEMENT_MAX) {
        let upsert = "INSERT OR FAIL INTO checkpoints (subscription, partition, lane, lanes, position, row_check) VALUES";
        let conflict = "ON CONFLICT (subscription, partition, lane) DO UPDATE SET position = excluded.position, lanes = excluded.lanes, row_check = excluded.row_check";
        let text = statements.rows(upsert, 6, checkpoints.len(), conflict);
        let mut query = sqlx::query(AssertSqlSafe(text));
        for checkpoint in checkpoints {
            query = query
                .bind(checkpoint.subscription.clone())
                .bind(i64::from(partition))
                .bind(i64::from(checkpoint.lane))
                .bind(i64::from(checkpoint.lanes))
                .bind(to_i64(checkpoint.position))
                .bind(check::of_checkpoint(partition, checkpoint));
        }
        execute(connection, query).await?;
    }
    for write in &batch.letters {
        match write {
            LetterWrite::Put(letter) => {
                execute(connection, put_letter(partition, letter)).await?;
            }
            LetterWrite::Remove { subscription, position } => {
                let remove = sqlx::query(
                    "DELETE FROM letters WHERE partition = $1 AND subscription = $2 AND position = $3",
                );
                let remove = remove
                    .bind(i64::from(partition))
                    .bind(subscription.to_string())
                    .bind(to_i64(*position));
                execute(connection, remove).await?;
            }
        }
    }
    Ok(())
}

fn put_letter(partition: u16, letter: &Letter) -> Query<'static> {
    sqlx::query(
        "INSERT OR REPLACE INTO letters (partition, subscription, position, key, event_id, event_type,
         aggregate_id, state, class, error, attempts, first_failed_at, last_failed_at,
         row_check)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(i64::from(partition))
    .bind(letter.subscription.to_string())
    .bind(to_i64(letter.position))
    .bind(blob(letter.key))
    .bind(blob(letter.event_id))
    .bind(letter.event_type.to_string())
    .bind(blob(letter.aggregate_id))
    .bind(state_of(letter.state))
    .bind(letter.class.clone())
    .bind(letter.error.clone())
    .bind(i64::from(letter.attempts))
    .bind(letter.first_failed_at.millis())
    .bind(letter.last_failed_at.millis())
    .bind(check::of_letter(letter))
}

async fn store_rest(
    connection: &mut SqliteConnection,
    partition: u16,
    batch: &Batch,
) -> Result<(), Refused> {
    for snapshot in &batch.snapshots {
        let put = sqlx::query(
            "INSERT OR REPLACE INTO snapshots (stream, version, shape, state) VALUES ($1, $2, $3, $4)",
        );
        let put = put
            .bind(snapshot.stream)
            .bind(to_i64(snapshot.version))
            .bind(i64::from(snapshot.shape))
            .bind(snapshot.state.clone());
        execute(connection, put).await?;
        let thin = sqlx::query(
            "DELETE FROM snapshots WHERE stream = $1 AND version < $2 AND EXISTS (
                 SELECT 1 FROM snapshots e WHERE e.stream = $1 AND e.version < snapshots.version
                 AND e.version / $3 = snapshots.version / $3)",
        );
        let thin = thin
            .bind(snapshot.stream)
            .bind(to_i64(snapshot.version))
            .bind(to_i64(snapshot_stride(snapshot.version)));
        execute(connection, thin).await?;
    }
    for write in &batch.control {
        let query = match &write.value {
            Some(value) => sqlx::query(
                "INSERT OR REPLACE INTO control (space, key, value, expires_at) VALUES ($1, $2, $3, $4)",
            )
            .bind(write.space)
            .bind(write.key.clone())
            .bind(value.clone())
            .bind(write.expires_at.map(crate::world::Timestamp::millis)),
            None => sqlx::query("DELETE FROM control WHERE space = $1 AND key = $2")
                .bind(write.space)
                .bind(write.key.clone()),
        };
        execute(connection, query).await?;
    }
    for record in &batch.quarantines {
        let put = sqlx::query(
            "INSERT OR REPLACE INTO quarantined
             (aggregate_type, aggregate_id, partition, command_id, command, error_id, since)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        );
        let put = put
            .bind(record.aggregate_type.to_string())
            .bind(blob(record.aggregate_id))
            .bind(i64::from(partition))
            .bind(blob(record.command_id))
            .bind(record.command.clone())
            .bind(blob(record.error_id))
            .bind(record.since.millis());
        execute(connection, put).await?;
    }
    for (aggregate_type, id) in &batch.released {
        let lift =
            sqlx::query("DELETE FROM quarantined WHERE aggregate_type = $1 AND aggregate_id = $2");
        execute(connection, lift.bind(aggregate_type.to_string()).bind(blob(*id))).await?;
    }
    Ok(())
}

fn blob(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}
