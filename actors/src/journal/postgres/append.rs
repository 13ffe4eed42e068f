//! How a batch is written: in one statement, whatever it holds, with those of other partitions or
//! by itself.
//!
//! The statement locks the partitions' leases in share mode and checks their epochs; every part of it
//! inserts, changes or deletes rows of one table, and none at all unless all leases hold. Sent
//! alone, it is its own transaction: one round trip for a batch. Which parts it has follows from
//! the batch, so that there are few texts and each is prepared once.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use sqlx::postgres::{PgArguments, PgConnection, PgDatabaseError, PgSeverity, Postgres};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::columns::Id;
use crate::command::ControlWrite;
use crate::event::StoredEvent;
use crate::journal::rows::{event_columns, seq, state_of, timer_changes, to_i64};
use crate::journal::{
    AppendError, Batch, Checkpoint, Lease, Letter, LetterWrite, Outcome, PersonKey, Quarantine,
    Snapshot, StreamNumber, TimerKey, snapshot_stride,
};
use crate::world::Timestamp;

type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// Rows with the partition that each belongs to.
type Of<'a, T> = Vec<(i64, &'a T)>;

/// Batches with each row once: one statement cannot change a row twice.
#[derive(Default)]
struct Rows<'a> {
    streams: Of<'a, StreamNumber>,
    events: Vec<&'a StoredEvent>,
    outcomes: Vec<&'a Outcome>,
    keys: Vec<&'a PersonKey>,
    destroyed_keys: Vec<Uuid>,
    fired: Vec<(&'a TimerKey, i64)>,
    cleared: Vec<&'a TimerKey>,
    set: Vec<(i64, &'a TimerKey, i64)>,
    checkpoints: Of<'a, Checkpoint>,
    letters: Of<'a, Letter>,
    letters_gone: Vec<(i64, &'a str, u64)>,
    snapshots: Vec<&'a Snapshot>,
    control: Vec<&'a ControlWrite>,
    control_gone: Vec<&'a ControlWrite>,
    released: Vec<&'a (Arc<str>, Uuid)>,
    quarantines: Of<'a, Quarantine>,
}

/// The last of those with the same key, for every key.
fn last<'a, T, K: Hash + Eq>(items: &'a [T], key: impl Fn(&'a T) -> K) -> Vec<&'a T> {
    let mut seen = HashSet::new();
    let mut kept: Vec<_> = items.iter().rev().filter(|item| seen.insert(key(item))).collect();
    kept.reverse();
    kept
}

impl<'a> Rows<'a> {
    fn of(batches: &[(Lease, &'a Batch)]) -> Self {
        let mut rows = Self::default();
        for (lease, batch) in batches {
            rows.add(i64::from(lease.partition), batch);
        }
        rows
    }

    fn add(&mut self, partition: i64, batch: &'a Batch) {
        self.streams.extend(batch.streams.iter().map(|new| (partition, new)));
        self.events.extend(batch.events.iter().map(|event| &**event));
        self.outcomes.extend(&batch.outcomes);
        self.keys.extend(&batch.keys);
        self.destroyed_keys.extend(&batch.destroyed_keys);
        let timers = timer_changes(&batch.timers);
        self.fired.extend(timers.fired);
        self.cleared.extend(timers.cleared);
        self.set.extend(timers.set.into_iter().map(|(key, due)| (partition, key, due)));
        let checkpoints = last(&batch.checkpoints, |point| (&*point.subscription, point.lane));
        self.checkpoints.extend(checkpoints.into_iter().map(|point| (partition, point)));
        self.add_letters(partition, batch);
        self.snapshots.extend(last(&batch.snapshots, |snapshot| snapshot.stream));
        for write in last(&batch.control, |write| (write.space, &*write.key)) {
            let rows =
                if write.value.is_some() { &mut self.control } else { &mut self.control_gone };
            rows.push(write);
        }
        self.released.extend(&batch.released);
        let released = |record: &&Quarantine| {
            batch.released.iter().any(|(aggregate_type, id)| {
                *aggregate_type == record.aggregate_type && *id == record.aggregate_id
            })
        };
        let quarantines =
            last(&batch.quarantines, |record| (&*record.aggregate_type, record.aggregate_id));
        let kept = quarantines.into_iter().filter(|record| !released(record));
        self.quarantines.extend(kept.map(|record| (partition, record)));
    }

    fn add_letters(&mut self, partition: i64, batch: &'a Batch) {
        let place = |write: &'a LetterWrite| match write {
            LetterWrite::Put(letter) => (&*letter.subscription, letter.position),
            LetterWrite::Remove { subscription, position } => (&**subscription, *position),
        };
        for write in last(&batch.letters, place) {
            match write {
                LetterWrite::Put(letter) => self.letters.push((partition, letter)),
                LetterWrite::Remove { .. } => {
                    let (subscription, position) = place(write);
                    self.letters_gone.push((partition, subscription, position));
                }
            }
        }
    }
}

/// Rows of one table: how many there are, what is done with them, and their columns. Each `?` is the
/// next array.
struct Part {
    count: fn(&Rows<'_>) -> usize,
    sql: &'static str,
    bind: fn(Query, &Rows<'_>) -> Query,
}

/// One column of all rows.
fn column<T, V>(rows: &[T], value: impl Fn(&T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

const PARTS: &[Part] = &[
    Part {
        count: |rows| rows.streams.len(),
        sql: "INSERT INTO streams (stream, partition, aggregate_type, aggregate_id)
              SELECT r.* FROM unnest(?::bigint[], ?::bigint[], ?::text[], ?::uuid[]) AS r, lease",
        bind: |query, rows| {
            let new = &rows.streams;
            query
                .bind(column(new, |(_, new)| new.stream))
                .bind(column(new, |(partition, _)| *partition))
                .bind(column(new, |(_, new)| new.aggregate_type.to_string()))
                .bind(column(new, |(_, new)| Id(new.aggregate_id)))
        },
    },
    Part {
        count: |rows| rows.events.len(),
        sql: concat!(
            "INSERT INTO events (",
            event_columns!(),
            ") SELECT r.* FROM unnest(?::bigint[], ?::uuid[], ?::bigint[], ?::bigint[], ?::text[],
             ?::uuid[], ?::text[], ?::bigint[], ?::bigint[], ?::bigint[], ?::text[], ?::text[],
             ?::text[], ?::text[], ?::bytea[]) AS r, lease"
        ),
        bind: |query, rows| bind_events(query, &rows.events),
    },
    Part {
        count: |rows| rows.outcomes.len(),
        sql: "INSERT INTO outcomes (command_id, request_hash, stream, version, events, rejection, at)
              SELECT r.* FROM unnest(?::uuid[], ?::bytea[], ?::bigint[], ?::bigint[], ?::bigint[],
              ?::text[], ?::bigint[]) AS r, lease",
        bind: |query, rows| {
            let outcomes = &rows.outcomes;
            query
                .bind(column(outcomes, |outcome| Id(outcome.command_id)))
                .bind(column(outcomes, |outcome| outcome.request_hash))
                .bind(column(outcomes, |outcome| outcome.stream))
                .bind(column(outcomes, |outcome| to_i64(outcome.version)))
                .bind(column(outcomes, |outcome| i64::from(outcome.events)))
                .bind(column(outcomes, |outcome| outcome.rejection.as_deref().map(str::to_owned)))
                .bind(column(outcomes, |outcome| outcome.at.millis()))
        },
    },
    // The same row again is none; another one violates the primary key.
    Part {
        count: |rows| rows.keys.len(),
        sql: "INSERT INTO person_keys (subject, wrapped)
              SELECT r.a, r.b FROM unnest(?::uuid[], ?::bytea[]) AS r (a, b), lease
              WHERE NOT EXISTS (SELECT FROM person_keys k WHERE k.subject = r.a AND k.wrapped = r.b)",
        bind: |query, rows| {
            let keys = &rows.keys;
            query
                .bind(column(keys, |key| Id(key.subject)))
                .bind(column(keys, |key| key.wrapped.clone()))
        },
    },
    Part {
        count: |rows| rows.destroyed_keys.len(),
        sql: "INSERT INTO person_keys (subject, wrapped)
              SELECT DISTINCT r.a, NULL::bytea FROM unnest(?::uuid[]) AS r (a), lease
              ON CONFLICT (subject) DO UPDATE SET wrapped = NULL",
        bind: |query, rows| query.bind(column(&rows.destroyed_keys, |subject| Id(*subject))),
    },
    Part {
        count: |rows| rows.fired.len(),
        sql: "DELETE FROM timers t
              USING unnest(?::uuid[], ?::text[], ?::text[], ?::bigint[]) AS r (a, b, c, d), lease
              WHERE t.aggregate_id = r.a AND t.aggregate_type = r.b AND t.name = r.c AND t.due = r.d",
        bind: |query, rows| {
            let fired = &rows.fired;
            bind_timers(query, column(fired, |(key, _)| *key)).bind(column(fired, |(_, due)| *due))
        },
    },
    Part {
        count: |rows| rows.cleared.len(),
        sql: "DELETE FROM timers t
              USING unnest(?::uuid[], ?::text[], ?::text[]) AS r (a, b, c), lease
              WHERE t.aggregate_id = r.a AND t.aggregate_type = r.b AND t.name = r.c",
        bind: |query, rows| bind_timers(query, rows.cleared.clone()),
    },
    Part {
        count: |rows| rows.set.len(),
        sql: "INSERT INTO timers (aggregate_id, aggregate_type, name, partition, due)
              SELECT r.* FROM unnest(?::uuid[], ?::text[], ?::text[], ?::bigint[], ?::bigint[])
              AS r, lease ON CONFLICT (aggregate_id, aggregate_type, name) DO UPDATE SET due = excluded.due",
        bind: |query, rows| {
            let set = &rows.set;
            bind_timers(query, column(set, |(_, key, _)| *key))
                .bind(column(set, |(partition, ..)| *partition))
                .bind(column(set, |(.., due)| *due))
        },
    },
    // Lanes that a subscription no longer has: those of another number of lanes that are not written
    // now. There are hardly ever any, so the subscriptions are looked up first, each once.
    Part {
        count: |rows| rows.checkpoints.len(),
        sql: "DELETE FROM checkpoints c
              USING unnest(?::bigint[], ?::text[], ?::bigint[]) AS r (a, b, c), lease
              WHERE c.partition = r.a AND c.subscription = r.b AND c.lanes <> r.c AND NOT EXISTS (
                  SELECT FROM unnest(?::bigint[], ?::text[], ?::bigint[]) AS n (a, b, c)
                  WHERE n.a = c.partition AND n.b = c.subscription AND n.c = c.lane)",
        bind: |query, rows| {
            let points = &rows.checkpoints;
            let mut seen = HashSet::new();
            let once: Vec<_> = points
                .iter()
                .filter(|(partition, point)| seen.insert((*partition, &*point.subscription)))
                .collect();
            query
                .bind(column(&once, |(partition, _)| *partition))
                .bind(column(&once, |(_, point)| point.subscription.to_string()))
                .bind(column(&once, |(_, point)| i64::from(point.lanes)))
                .bind(column(points, |(partition, _)| *partition))
                .bind(column(points, |(_, point)| point.subscription.to_string()))
                .bind(column(points, |(_, point)| i64::from(point.lane)))
        },
    },
    Part {
        count: |rows| rows.checkpoints.len(),
        sql: "INSERT INTO checkpoints (subscription, partition, lane, lanes, position)
              SELECT r.* FROM unnest(?::text[], ?::bigint[], ?::bigint[], ?::bigint[], ?::bigint[])
              AS r, lease ON CONFLICT (subscription, partition, lane)
              DO UPDATE SET position = excluded.position, lanes = excluded.lanes",
        bind: |query, rows| {
            let points = &rows.checkpoints;
            query
                .bind(column(points, |(_, point)| point.subscription.to_string()))
                .bind(column(points, |(partition, _)| *partition))
                .bind(column(points, |(_, point)| i64::from(point.lane)))
                .bind(column(points, |(_, point)| i64::from(point.lanes)))
                .bind(column(points, |(_, point)| to_i64(point.position)))
        },
    },
    Part {
        count: |rows| rows.letters_gone.len(),
        sql: "DELETE FROM letters l
              USING unnest(?::bigint[], ?::text[], ?::bigint[]) AS r (a, b, c), lease
              WHERE l.partition = r.a AND l.subscription = r.b AND l.position = r.c",
        bind: |query, rows| {
            let gone = &rows.letters_gone;
            query
                .bind(column(gone, |(partition, ..)| *partition))
                .bind(column(gone, |(_, subscription, _)| (*subscription).to_owned()))
                .bind(column(gone, |(.., position)| to_i64(*position)))
        },
    },
    Part {
        count: |rows| rows.letters.len(),
        sql: "INSERT INTO letters (partition, subscription, position, key, event_id, event_type,
              aggregate_id, state, class, error, attempts, first_failed_at, last_failed_at)
              SELECT r.* FROM unnest(?::bigint[], ?::text[], ?::bigint[], ?::uuid[], ?::uuid[],
              ?::text[], ?::uuid[], ?::text[], ?::text[], ?::text[], ?::bigint[], ?::bigint[],
              ?::bigint[]) AS r, lease
              ON CONFLICT (partition, subscription, position) DO UPDATE SET key = excluded.key,
              event_id = excluded.event_id, event_type = excluded.event_type,
              aggregate_id = excluded.aggregate_id, state = excluded.state, class = excluded.class,
              error = excluded.error, attempts = excluded.attempts,
              first_failed_at = excluded.first_failed_at, last_failed_at = excluded.last_failed_at",
        bind: |query, rows| bind_letters(query, &rows.letters),
    },
    Part {
        count: |rows| rows.snapshots.len(),
        sql: "INSERT INTO snapshots (stream, version, shape, state)
              SELECT r.* FROM unnest(?::bigint[], ?::bigint[], ?::bigint[], ?::text[]) AS r, lease
              ON CONFLICT (stream, version)
              DO UPDATE SET shape = excluded.shape, state = excluded.state",
        bind: |query, rows| {
            let snapshots = &rows.snapshots;
            query
                .bind(column(snapshots, |snapshot| snapshot.stream))
                .bind(column(snapshots, |snapshot| to_i64(snapshot.version)))
                .bind(column(snapshots, |snapshot| i64::from(snapshot.shape)))
                .bind(column(snapshots, |snapshot| snapshot.state.clone()))
        },
    },
    Part {
        count: |rows| rows.snapshots.len(),
        sql: "DELETE FROM snapshots s
              USING unnest(?::bigint[], ?::bigint[], ?::bigint[]) AS r (a, b, c), lease
              WHERE s.stream = r.a AND s.version < r.b AND EXISTS (
                  SELECT FROM snapshots e WHERE e.stream = r.a AND e.version < s.version
                  AND e.version / r.c = s.version / r.c)",
        bind: |query, rows| {
            let snapshots = &rows.snapshots;
            query
                .bind(column(snapshots, |snapshot| snapshot.stream))
                .bind(column(snapshots, |snapshot| to_i64(snapshot.version)))
                .bind(column(snapshots, |snapshot| to_i64(snapshot_stride(snapshot.version))))
        },
    },
    Part {
        count: |rows| rows.control_gone.len(),
        sql: "DELETE FROM control c USING unnest(?::text[], ?::bytea[]) AS r (a, b), lease
              WHERE c.space = r.a AND c.key = r.b",
        bind: |query, rows| {
            query
                .bind(column(&rows.control_gone, |write| write.space))
                .bind(column(&rows.control_gone, |write| write.key.clone()))
        },
    },
    Part {
        count: |rows| rows.control.len(),
        sql: "INSERT INTO control (space, key, value, expires_at)
              SELECT r.* FROM unnest(?::text[], ?::bytea[], ?::bytea[], ?::bigint[]) AS r, lease
              ON CONFLICT (space, key)
              DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at",
        bind: |query, rows| {
            query
                .bind(column(&rows.control, |write| write.space))
                .bind(column(&rows.control, |write| write.key.clone()))
                .bind(column(&rows.control, |write| write.value.clone()))
                .bind(column(&rows.control, |write| write.expires_at.map(Timestamp::millis)))
        },
    },
    Part {
        count: |rows| rows.released.len(),
        sql: "DELETE FROM quarantined q USING unnest(?::text[], ?::uuid[]) AS r (a, b), lease
              WHERE q.aggregate_type = r.a AND q.aggregate_id = r.b",
        bind: |query, rows| {
            let released = &rows.released;
            query
                .bind(column(released, |(aggregate_type, _)| aggregate_type.to_string()))
                .bind(column(released, |(_, id)| Id(*id)))
        },
    },
    Part {
        count: |rows| rows.quarantines.len(),
        sql: "INSERT INTO quarantined
              (aggregate_type, aggregate_id, partition, command_id, command, error_id, since)
              SELECT r.* FROM unnest(?::text[], ?::uuid[], ?::bigint[], ?::uuid[], ?::text[],
              ?::uuid[], ?::bigint[]) AS r, lease
              ON CONFLICT (aggregate_type, aggregate_id) DO UPDATE
              SET partition = excluded.partition, command_id = excluded.command_id,
              command = excluded.command, error_id = excluded.error_id, since = excluded.since",
        bind: |query, rows| {
            let records = &rows.quarantines;
            query
                .bind(column(records, |(_, record)| record.aggregate_type.to_string()))
                .bind(column(records, |(_, record)| Id(record.aggregate_id)))
                .bind(column(records, |(partition, _)| *partition))
                .bind(column(records, |(_, record)| Id(record.command_id)))
                .bind(column(records, |(_, record)| record.command.clone()))
                .bind(column(records, |(_, record)| Id(record.error_id)))
                .bind(column(records, |(_, record)| record.since.millis()))
        },
    },
];

fn bind_events(query: Query, events: &[&StoredEvent]) -> Query {
    query
        .bind(column(events, |event| seq(event.partition, event.position)))
        .bind(column(events, |event| Id(event.event_id)))
        .bind(column(events, |event| event.stream))
        .bind(column(events, |event| to_i64(event.aggregate_version)))
        .bind(events.iter().map(|event| &*event.aggregate_type).collect::<Vec<_>>())
        .bind(column(events, |event| Id(event.aggregate_id)))
        .bind(events.iter().map(|event| &*event.event_type).collect::<Vec<_>>())
        .bind(column(events, |event| i64::from(event.major)))
        .bind(column(events, |event| i64::from(event.minor)))
        .bind(column(events, |event| event.timestamp.millis()))
        .bind(events.iter().map(|event| &*event.correlation_id).collect::<Vec<_>>())
        .bind(events.iter().map(|event| &*event.causation_id).collect::<Vec<_>>())
        .bind(events.iter().map(|event| &*event.data).collect::<Vec<_>>())
        .bind(events.iter().map(|event| &*event.metadata).collect::<Vec<_>>())
        .bind(events.iter().map(|event| &event.hash[..]).collect::<Vec<_>>())
}

fn bind_timers(query: Query, keys: Vec<&TimerKey>) -> Query {
    query
        .bind(column(&keys, |key| Id(key.aggregate_id)))
        .bind(column(&keys, |key| key.aggregate_type.to_string()))
        .bind(column(&keys, |key| key.name.clone()))
}

fn bind_letters(query: Query, letters: &Of<'_, Letter>) -> Query {
    query
        .bind(column(letters, |(partition, _)| *partition))
        .bind(column(letters, |(_, letter)| letter.subscription.to_string()))
        .bind(column(letters, |(_, letter)| to_i64(letter.position)))
        .bind(column(letters, |(_, letter)| Id(letter.key)))
        .bind(column(letters, |(_, letter)| Id(letter.event_id)))
        .bind(column(letters, |(_, letter)| letter.event_type.to_string()))
        .bind(column(letters, |(_, letter)| Id(letter.aggregate_id)))
        .bind(column(letters, |(_, letter)| state_of(letter.state)))
        .bind(column(letters, |(_, letter)| letter.class.clone()))
        // The text of a failure is anything; PostgreSQL's text holds no zero bytes.
        .bind(column(letters, |(_, letter)| letter.error.replace('\0', "\u{FFFD}")))
        .bind(column(letters, |(_, letter)| i64::from(letter.attempts)))
        .bind(column(letters, |(_, letter)| letter.first_failed_at.millis()))
        .bind(column(letters, |(_, letter)| letter.last_failed_at.millis()))
}

/// The texts of the statements, by the parts that they have.
#[derive(Debug, Default)]
pub(super) struct Statements(HashMap<u32, Arc<str>>);

impl Statements {
    fn of(&mut self, parts: u32) -> Arc<str> {
        self.0.entry(parts).or_insert_with(|| text(parts).into()).clone()
    }
}

/// A bit beside those of the parts: the statement is for several partitions.
const SEVERAL: u32 = 1 << 31;

/// The lease: one row if it holds, or if all of them do.
const ONE_LEASE: &str = "SELECT 1 FROM leases WHERE partition = $1 AND epoch = $2 FOR SHARE";
const ALL_LEASES: &str = "SELECT 1 FROM (
        SELECT 1 FROM leases l, unnest($1::bigint[], $2::bigint[]) AS w (partition, epoch)
        WHERE l.partition = w.partition AND l.epoch = w.epoch
        ORDER BY l.partition FOR SHARE OF l
    ) AS held HAVING count(*) = cardinality($1::bigint[])";

fn is_in(parts: u32, index: usize) -> bool {
    parts & (1 << index) != 0
}

fn text(parts: u32) -> String {
    let lease = if parts & SEVERAL == 0 { ONE_LEASE } else { ALL_LEASES };
    let mut text = format!("WITH lease AS ({lease})");
    let mut arrays = 2;
    for (index, part) in PARTS.iter().enumerate().filter(|(index, _)| is_in(parts, *index)) {
        text.push_str(&format!(", part_{index} AS ("));
        let mut pieces = part.sql.split('?');
        text.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            arrays += 1;
            text.push_str(&format!("${arrays}{piece}"));
        }
        text.push(')');
    }
    text.push_str(" SELECT count(*) FROM lease");
    text
}

/// Stores batches, of each partition one at most, in one statement: all of them, or none when one is
/// refused or one of the leases does not hold. Also says whether the connection can be used again.
pub(super) async fn append(
    connection: &mut PgConnection,
    statements: &mut Statements,
    batches: &[(Lease, &Batch)],
) -> (Result<(), AppendError>, bool) {
    let rows = Rows::of(batches);
    let present = PARTS.iter().enumerate().filter(|(_, part)| (part.count)(&rows) > 0);
    let mut parts = present.fold(0, |parts, (index, _)| parts | (1 << index));
    if batches.len() > 1 {
        parts |= SEVERAL;
    }
    let mut query = sqlx::query(AssertSqlSafe(statements.of(parts)));
    query = match batches {
        [(lease, _)] => query.bind(i64::from(lease.partition)).bind(to_i64(lease.epoch)),
        _ => query
            .bind(column(batches, |(lease, _)| i64::from(lease.partition)))
            .bind(column(batches, |(lease, _)| to_i64(lease.epoch))),
    };
    for (_, part) in PARTS.iter().enumerate().filter(|(index, _)| is_in(parts, *index)) {
        query = (part.bind)(query, &rows);
    }
    let held = query.fetch_one(connection).await.and_then(|row| row.try_get::<i64, _>(0));
    match held {
        Ok(1) => (Ok(()), true),
        Ok(_) => (Err(AppendError::Fenced), true),
        Err(error) => {
            let refused = classify(&error);
            let sound = matches!(refused, AppendError::Conflict(_));
            (Err(refused), sound)
        }
    }
}

/// By the database's code and how grave it is, never by the words of its message.
///
/// An error (and not worse) means that the transaction is undone. What ends the session says so
/// before it has committed, but for a crash of another session, which can end this one anywhere.
/// Without any answer nothing is known.
pub(super) fn classify(error: &sqlx::Error) -> AppendError {
    let text = error.to_string();
    let database = match error {
        sqlx::Error::Database(database) => database.try_downcast_ref::<PgDatabaseError>(),
        // Nothing was sent.
        sqlx::Error::Encode(_) => return AppendError::Conflict(text),
        _ => None,
    };
    let Some(database) = database else { return AppendError::Unknown(text) };
    let code = database.code();
    match (code.get(..2).unwrap_or_default(), code) {
        // A constraint; a row twice; a value or a key that cannot be stored.
        ("23" | "22" | "54", _) | (_, "21000") => AppendError::Conflict(text),
        // It may have been completed; another session crashed.
        (_, "40003" | "57P02") => AppendError::Unknown(text),
        // The session was ended before the statement, or never began.
        (_, "57P01" | "57P03" | "57P05") => AppendError::NotCommitted(text),
        _ if database.severity() == PgSeverity::Error => AppendError::NotCommitted(text),
        _ => AppendError::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_numbered_through_all_parts_of_a_statement() {
        assert!(PARTS.len() < 32, "the parts of a statement are bits of a number");
        let text = text(0b10_0001);
        let streams = "unnest($3::bigint[], $4::bigint[], $5::text[], $6::uuid[])";
        assert!(text.contains(streams), "{text}");
        assert!(
            text.contains("unnest($7::uuid[], $8::text[], $9::text[], $10::bigint[])"),
            "{text}"
        );
        assert!(!text.contains('?'), "{text}");
    }

    /// `$1` is one partition or all of them.
    #[test]
    fn rows_say_themselves_which_partition_they_belong_to() {
        for part in PARTS {
            assert!(!part.sql.contains('$'), "{}", part.sql);
        }
        let lease = |partition| Lease { partition, epoch: 1 };
        let point = |lane| Checkpoint { subscription: "all".into(), lane, lanes: 2, position: 7 };
        let batch = Batch { checkpoints: vec![point(0), point(0), point(1)], ..Batch::default() };
        let rows = Rows::of(&[(lease(3), &batch), (lease(5), &batch)]);
        let all: Vec<_> = rows.checkpoints.iter().map(|(of, point)| (*of, point.lane)).collect();
        assert_eq!(all, [(3, 0), (3, 1), (5, 0), (5, 1)], "each row once in each partition");
    }
}
