//! The versions of each projection: which there are, how they stand, which of them serves.
//!
//! ```text
//!   filling ──▶ level ──▶ serves ◀──▶ level       level: it is written in the transactions of the
//!      │ ▲        │                               one that serves, so both are always as far
//!      ▼ │        ▼
//!    paused     failed ──▶ (dropped)
//! ```
//!
//! Version 1 has the tables that migrations make, a later one tables of the same shape with a name of
//! their own. Readers are given the version that serves. Whoever changes rows of a partition, or what
//! there is of versions, locks the checkpoint of version 1 first (`lock`): so nobody misses a
//! version that has just become level.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use souk_actors::world::Timestamp;
use sqlx::AssertSqlSafe;

use super::db::{Param, Query, ReadDb, ReadError, ReadTx, Row};

/// How a version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// It is filled from the journal.
    Filling,
    /// Somebody stopped that for a while.
    Paused,
    /// It is as far as the one that serves, or serves itself.
    Level,
    /// It could not go on, and is behind.
    Failed,
}

/// A version of a projection.
#[derive(Debug, Clone)]
pub struct Version {
    /// The projection.
    pub projection: String,
    /// Its number; numbers grow.
    pub number: u32,
    /// How it stands.
    pub state: VersionState,
    /// Whether readers are given it.
    pub serves: bool,
    /// How many events a second it is filled with at most.
    pub rows_per_second: u32,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it became level.
    pub level_at: Option<Timestamp>,
    /// The tables that it was made like.
    pub(super) shape: String,
    pub(super) checkpoint: String,
}

const COLUMNS: &[&str] = &[
    "projection",
    "version",
    "state",
    "serves",
    "rows_per_second",
    "error",
    "started_ms",
    "level_ms",
    "shape",
    "checkpoint",
];

const TABLE: &str = "projection_versions";

fn read(row: &Row) -> Result<Version, ReadError> {
    Ok(Version {
        projection: row.text(0)?,
        number: number(row, 1)?,
        state: row.word(2)?,
        serves: row.flag(3)?,
        rows_per_second: number(row, 4)?,
        error: row.text_or_null(5)?,
        started_at: row.time(6)?,
        level_at: row.time_or_null(7)?,
        shape: row.text(8)?,
        checkpoint: row.text(9)?,
    })
}

fn number(row: &Row, column: usize) -> Result<u32, ReadError> {
    u32::try_from(row.int(column)?).map_err(|_| ReadError::Unreadable(column))
}

/// The versions of one projection or of all, the oldest first.
pub async fn list(db: &ReadDb, projection: Option<&str>) -> Result<Vec<Version>, ReadError> {
    let query = Query::select(COLUMNS, TABLE)
        .when(" AND projection = ", projection)
        .then(" ORDER BY projection, version");
    db.fetch_as(query, read).await
}

/// The same as a transaction sees them.
pub(super) async fn list_in(tx: &mut ReadTx, projection: &str) -> Result<Vec<Version>, ReadError> {
    const SQL: &str = "SELECT projection, version, state, serves, rows_per_second, error, \
        started_ms, level_ms, shape, checkpoint FROM projection_versions \
        WHERE projection = $1 ORDER BY version";
    tx.fetch(SQL, vec![projection.into()]).await?.iter().map(read).collect()
}

/// How far a version has come in each partition that it has seen.
pub async fn positions(db: &ReadDb, version: &Version) -> Result<BTreeMap<u16, u64>, ReadError> {
    let query = Query::select(&["partition", "position"], "projection_checkpoints")
        .then(" AND projection = ")
        .value(&version.checkpoint);
    let read = |row: &Row| {
        let partition = u16::try_from(row.int(0)?).map_err(|_| ReadError::Unreadable(0))?;
        Ok((partition, row.count(1)?))
    };
    Ok(db.fetch_as(query, read).await?.into_iter().collect())
}

/// Where the versions of a projection that are level have all come to: the position to go on from.
pub(super) async fn level_from(
    db: &ReadDb,
    projection: &str,
    partition: u16,
) -> Result<u64, ReadError> {
    let query = Query::new(
        "SELECT MIN(COALESCE(c.position, 0)) FROM projection_versions v \
         LEFT JOIN projection_checkpoints c \
         ON c.projection = v.checkpoint AND c.partition = ",
    )
    .value(partition)
    .then(" WHERE v.state = 'level' AND v.projection = ")
    .value(projection);
    let found = db.fetch_as(query, |row| row.int_or_null(0)).await?;
    Ok(found.first().copied().flatten().unwrap_or(0).unsigned_abs())
}

/// A version in a partition, as whoever writes it sees it.
#[derive(Debug, Clone)]
pub(super) struct Level {
    pub version: u32,
    pub partition: u16,
    pub serves: bool,
    pub state: VersionState,
    pub checkpoint: String,
    pub position: u64,
    /// It was filled over everything up to here, what others had set aside included.
    pub joined_at: u64,
}

/// The versions of a projection that are level, the one that serves first, each with its place in
/// every one of these partitions, in their order.
pub(super) async fn level(
    tx: &mut ReadTx,
    projection: &str,
    partitions: &[u16],
) -> Result<Vec<Vec<Level>>, ReadError> {
    let mut all = in_partitions(tx, projection, partitions).await?;
    all.retain(|places| places.iter().all(|of| of.state == VersionState::Level));
    Ok(all)
}

/// All versions of a projection in a partition, the one that serves first.
pub(super) async fn in_partition(
    tx: &mut ReadTx,
    projection: &str,
    partition: u16,
) -> Result<Vec<Level>, ReadError> {
    Ok(in_partitions(tx, projection, &[partition]).await?.into_iter().flatten().collect())
}

async fn in_partitions(
    tx: &mut ReadTx,
    projection: &str,
    partitions: &[u16],
) -> Result<Vec<Vec<Level>>, ReadError> {
    let sql = format!(
        "SELECT v.version, v.serves, v.state, v.checkpoint, v.joined, c.partition, c.position \
         FROM projection_versions v LEFT JOIN projection_checkpoints c \
         ON c.projection = v.checkpoint AND c.partition IN ({}) \
         WHERE v.projection = $1 ORDER BY v.serves DESC, v.version",
        places(2, partitions.len())
    );
    let mut all: Vec<Vec<Level>> = Vec::new();
    for row in tx.fetch(AssertSqlSafe(sql), named(projection, partitions)).await? {
        let version = number(&row, 0)?;
        if all.last().is_none_or(|places| places.iter().any(|of| of.version != version)) {
            let joined: BTreeMap<u16, u64> =
                serde_json::from_str(&row.text(4)?).map_err(|_| ReadError::Unreadable(4))?;
            let (serves, state, checkpoint) = (row.flag(1)?, row.word(2)?, row.text(3)?);
            let place = |partition: &u16| Level {
                version,
                partition: *partition,
                serves,
                state,
                checkpoint: checkpoint.clone(),
                position: 0,
                joined_at: joined.get(partition).copied().unwrap_or(0),
            };
            all.push(partitions.iter().map(place).collect());
        }
        // None: it has not come anywhere in any of them.
        let Some(partition) = row.int_or_null(5)? else { continue };
        let partition = u16::try_from(partition).map_err(|_| ReadError::Unreadable(5))?;
        let places = all.last_mut().into_iter().flatten();
        for place in places.filter(|place| place.partition == partition) {
            place.position = row.count(6)?;
        }
    }
    Ok(all)
}

/// `$from, …`: so many places for values.
fn places(from: usize, count: usize) -> String {
    let places: Vec<_> = (from..from + count).map(|place| format!("${place}")).collect();
    places.join(", ")
}

fn named(projection: &str, partitions: &[u16]) -> Vec<Param> {
    let partitions = partitions.iter().map(|partition| (*partition).into());
    std::iter::once(projection.into()).chain(partitions).collect()
}

/// Keeps everybody else from the rows of a projection in these partitions, in all its versions, and
/// from what there is of them, as long as the transaction lasts: the same projection in another
/// process, a letter that is taken late, whoever fills a version. Partitions are locked in their
/// order, and are to be given in it.
pub(super) async fn lock(
    tx: &mut ReadTx,
    projection: &str,
    partitions: &[u16],
) -> Result<(), ReadError> {
    const FIRST: &str = "INSERT INTO projection_checkpoints (projection, partition, position) \
         VALUES ($1, $2, 0) ON CONFLICT (projection, partition) DO NOTHING";
    debug_assert!(partitions.is_sorted(), "{partitions:?}");
    let sql = format!(
        "SELECT partition FROM projection_checkpoints \
         WHERE projection = $1 AND partition IN ({}) ORDER BY partition",
        places(2, partitions.len())
    );
    let found = tx.fetch_locked(&sql, named(projection, partitions)).await?;
    if found.len() == partitions.len() {
        return Ok(());
    }
    // What is not there cannot be locked.
    for partition in partitions {
        tx.execute(FIRST, named(projection, &[*partition])).await?;
    }
    tx.fetch_locked(&sql, named(projection, partitions)).await.map(drop)
}

/// Moves checkpoints: their names, partitions and positions.
pub(super) async fn store_positions(
    tx: &mut ReadTx,
    positions: &[(&str, u16, u64)],
) -> Result<(), ReadError> {
    if positions.is_empty() {
        return Ok(());
    }
    let rows = (0..positions.len()).map(|row| format!("({})", places(3 * row + 1, 3)));
    let sql = format!(
        "INSERT INTO projection_checkpoints (projection, partition, position) VALUES {} \
         ON CONFLICT (projection, partition) DO UPDATE SET position = excluded.position",
        rows.collect::<Vec<_>>().join(", ")
    );
    let params = positions
        .iter()
        .flat_map(|(name, partition, position)| {
            [Param::from(*name), (*partition).into(), (*position).into()]
        })
        .collect();
    tx.execute(AssertSqlSafe(sql), params).await.map(drop)
}

/// Adds a version. `number` 1 serves, every other one is filled first.
pub(super) async fn add(
    tx: &mut ReadTx,
    (projection, number, shape): (&str, u32, &str),
    rows_per_second: u32,
    now: Timestamp,
) -> Result<(), ReadError> {
    const SQL: &str = "INSERT INTO projection_versions (projection, version, state, serves, \
        checkpoint, shape, joined, rows_per_second, started_ms) \
        VALUES ($1, $2, $3, $4, $5, $6, '{}', $7, $8) ON CONFLICT (projection, version) DO NOTHING";
    let is_first = number == 1;
    let state = if is_first { VersionState::Level } else { VersionState::Filling };
    let checkpoint =
        if is_first { projection.to_owned() } else { format!("{projection}@{number}") };
    let params = vec![
        projection.into(),
        number.into(),
        Param::word(&state),
        is_first.into(),
        (&checkpoint).into(),
        shape.into(),
        rows_per_second.into(),
        now.into(),
    ];
    tx.execute(SQL, params).await.map(drop)
}

/// Takes a version and its checkpoints away. The checkpoint of version 1 stays to be locked, at 0.
pub(super) async fn remove(tx: &mut ReadTx, version: &Version) -> Result<(), ReadError> {
    const ROW: &str = "DELETE FROM projection_versions WHERE projection = $1 AND version = $2";
    const CHECKPOINTS: &str = "DELETE FROM projection_checkpoints WHERE projection = $1";
    const BEGINNING: &str = "UPDATE projection_checkpoints SET position = 0 WHERE projection = $1";
    tx.execute(ROW, vec![(&version.projection).into(), version.number.into()]).await?;
    let checkpoints = if version.number == 1 { BEGINNING } else { CHECKPOINTS };
    tx.execute(checkpoints, vec![(&version.checkpoint).into()]).await.map(drop)
}

/// Sets how a version stands.
pub(super) async fn set_state(
    tx: &mut ReadTx,
    (projection, number): (&str, u32),
    state: VersionState,
) -> Result<(), ReadError> {
    const SQL: &str = "UPDATE projection_versions SET state = $3, error = NULL \
        WHERE projection = $1 AND version = $2";
    tx.execute(SQL, vec![projection.into(), number.into(), Param::word(&state)]).await.map(drop)
}

/// Says that a version could not go on.
pub(super) async fn set_failed(
    tx: &mut ReadTx,
    projection: &str,
    number: u32,
    error: &str,
) -> Result<(), ReadError> {
    const SQL: &str = "UPDATE projection_versions SET state = 'failed', error = $3 \
        WHERE projection = $1 AND version = $2";
    tx.execute(SQL, vec![projection.into(), number.into(), error.into()]).await.map(drop)
}

/// Says that a version is level from now on, having been filled up to these positions.
pub(super) async fn set_level(
    tx: &mut ReadTx,
    (projection, number): (&str, u32),
    joined: &BTreeMap<u16, u64>,
    now: Timestamp,
) -> Result<(), ReadError> {
    const SQL: &str = "UPDATE projection_versions SET state = 'level', joined = $3, level_ms = $4 \
        WHERE projection = $1 AND version = $2";
    let joined = serde_json::to_string(joined).unwrap_or_default();
    let params = vec![projection.into(), number.into(), (&joined).into(), now.into()];
    tx.execute(SQL, params).await.map(drop)
}

/// Lets one version serve, and no other.
pub(super) async fn set_serving(
    tx: &mut ReadTx,
    projection: &str,
    number: u32,
) -> Result<(), ReadError> {
    const SQL: &str = "UPDATE projection_versions \
        SET serves = CASE WHEN version = $2 THEN 1 ELSE 0 END WHERE projection = $1";
    tx.execute(SQL, vec![projection.into(), number.into()]).await.map(drop)
}
