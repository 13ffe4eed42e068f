//! `events-index`: where the events of a type, an aggregate, a correlation, a cause or a time are.
//!
//! It holds positions and envelope fields, never data: a reader takes the positions and loads the
//! events from the journal. It sees every event there is, so it is the projection whose cost
//! counts: rows go in by the hundred, and there is no index on time.
//!
//! A filter is answered by ranges of one index, each already in order and cut off at the limit, then
//! merged: one per partition, and one per event type where the types are all that is asked for.
//! Which index fits best the database knows from statistics; on SQLite the migration writes them,
//! because nobody runs `ANALYZE` on a file that fills up from empty. PostgreSQL does by itself.
//!
//! A trace of the W3C's is known by its correlation ids: one row for each pair, and not an index row
//! per event. Only what a request led to at once says which trace it belongs to; what follows has its
//! correlation id. A request that came without either names both by one id ([`request_of_trace`]) and
//! needs no row: rows of ids that nobody chose would be the dearest thing here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::event::{Metadata, Position, StoredEvent};
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Insert, Param, Query, ReadDb, ReadError, ReadTx, Row, table_of};
use super::view::{Shape, Table};

const MINUTE_MS: i64 = 60_000;

const EVENTS: &str = "events_v2";
const MINUTES: &str = "event_minutes_v1";
const MINUTES_COLUMNS: &[&str] = &["partition", "minute", "position_min", "position_max"];

/// What the ids of requests begin with; a trace id follows.
const REQUEST_PREFIX: &str = "req_";

const TRACES: &str = "traces_v1";
const TRACES_COLUMNS: &[&str] = &["trace_id", "correlation_id"];

const COLUMNS: &[&str] = &[
    "partition",
    "position",
    "event_id",
    "event_type",
    "major",
    "aggregate_type",
    "aggregate_id",
    "aggregate_key",
    "correlation_id",
    "causation_id",
    "timestamp_ms",
];

/// Which events. Conditions are joined by *and*; an empty filter means all events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Any of these canonical types; empty: any type.
    pub event_types: Vec<String>,
    /// Of these major versions alone, where the type is named here.
    pub majors: BTreeMap<String, BTreeSet<u16>>,
    /// Of this aggregate.
    pub aggregate_id: Option<Uuid>,
    /// Of this type of aggregate.
    pub aggregate_type: Option<String>,
    /// With this correlation id.
    pub correlation_id: Option<String>,
    /// Caused by this event or request.
    pub causation_id: Option<String>,
    /// Not before this time.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
}

impl EventFilter {
    /// Lets events of another type through: of this major version, or of any.
    pub fn include(&mut self, event_type: String, major: Option<u16>) {
        let is_named = self.event_types.contains(&event_type);
        match major {
            None => drop(self.majors.remove(&event_type)),
            // Of one that is named without a version any will do already.
            Some(major) if is_named => {
                if let Some(majors) = self.majors.get_mut(&event_type) {
                    majors.insert(major);
                }
            }
            Some(major) => drop(self.majors.insert(event_type.clone(), BTreeSet::from([major]))),
        }
        if !is_named {
            self.event_types.push(event_type);
        }
    }

    /// Whether events of this type and major version are let through.
    pub fn includes(&self, event_type: &str, major: u16) -> bool {
        self.event_types.is_empty()
            || self.event_types.iter().any(|named| named == event_type)
                && self.majors.get(event_type).is_none_or(|majors| majors.contains(&major))
    }
}

/// The table behind the filters of events.
pub struct EventsIndex {
    rows: Insert,
    minutes: Insert,
    traces: Insert,
}

#[async_trait]
impl Table for EventsIndex {
    const NAME: &'static str = super::EVENTS_INDEX;
    const CONTEXT: &'static str = "system";
    const TOPICS: &'static [&'static str] = &["#"];
    const SHAPES: &'static [Shape] = &[
        Shape { table: EVENTS, columns: COLUMNS, key: 2, is_numbered: true },
        Shape { table: MINUTES, columns: MINUTES_COLUMNS, key: 2, is_numbered: true },
        Shape { table: TRACES, columns: TRACES_COLUMNS, key: 2, is_numbered: false },
    ];

    fn of_version(version: u32) -> Self {
        let (events, minutes) = (table_of(EVENTS, version), table_of(MINUTES, version));
        // Plain CASE: least() and greatest() have other names on SQLite.
        let widen = format!(
            " ON CONFLICT (partition, minute) DO UPDATE SET \
            position_min = CASE WHEN excluded.position_min < {minutes}.position_min \
                THEN excluded.position_min ELSE {minutes}.position_min END, \
            position_max = CASE WHEN excluded.position_max > {minutes}.position_max \
                THEN excluded.position_max ELSE {minutes}.position_max END"
        );
        let once = " ON CONFLICT (partition, position) DO NOTHING";
        let traces = table_of(TRACES, version);
        let each_once = " ON CONFLICT (trace_id, correlation_id) DO NOTHING";
        Self {
            rows: Insert::new(&events, COLUMNS, once),
            minutes: Insert::new(&minutes, MINUTES_COLUMNS, &widen),
            traces: Insert::new(&traces, TRACES_COLUMNS, each_once),
        }
    }

    async fn write(&self, tx: &mut ReadTx, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        let mut rows = Vec::with_capacity(events.len() * COLUMNS.len());
        let mut minutes = BTreeMap::new();
        let mut traces = BTreeSet::new();
        for event in events {
            push_row(&mut rows, event);
            traces.extend(trace_of(event).map(|trace| (trace, event.correlation_id.clone())));
            let minute = event.timestamp.millis().div_euclid(MINUTE_MS);
            let (_, last) = minutes
                .entry((event.partition, minute))
                .or_insert((event.position, event.position));
            *last = event.position;
        }
        self.rows.run(tx, rows).await?;
        let traces =
            traces.iter().flat_map(|(trace, correlation)| [trace.into(), correlation.into()]);
        self.traces.run(tx, traces.collect()).await?;
        let minutes = minutes
            .into_iter()
            .flat_map(|((partition, minute), (first, last))| {
                [partition.into(), minute.into(), first.into(), Param::from(last)]
            })
            .collect();
        Ok(self.minutes.run(tx, minutes).await?)
    }
}

/// The id of the request that began a trace, when it did.
pub fn request_of_trace(trace_id: &str) -> String {
    [REQUEST_PREFIX, trace_id].concat()
}

/// The trace that an event says it belongs to, unless its correlation id says so already. Most say
/// nothing, and are not read for it.
fn trace_of(event: &StoredEvent) -> Option<String> {
    let (_, traceparent) = event.metadata.split_once("\"traceparent\":\"00-")?;
    let request = event.correlation_id.strip_prefix(REQUEST_PREFIX);
    if request.is_some_and(|trace_id| is_trace_id(trace_id) && traceparent.starts_with(trace_id)) {
        return None;
    }
    let metadata: Metadata = serde_json::from_str(&event.metadata).ok()?;
    metadata.trace_id().map(str::to_owned)
}

/// What an aggregate's events are looked up by: the first half of its id as a number, which in most ids
/// begins with the time. Few aggregates share it, and it takes a third of the room in the index.
fn aggregate_key(id: Uuid) -> i64 {
    id.as_u64_pair().0.cast_signed()
}

fn push_row(rows: &mut Vec<Param>, event: &StoredEvent) {
    rows.extend([
        event.partition.into(),
        event.position.into(),
        event.event_id.into(),
        (&event.event_type).into(),
        event.major.into(),
        (&event.aggregate_type).into(),
        event.aggregate_id.into(),
        aggregate_key(event.aggregate_id).into(),
        (&event.correlation_id).into(),
        (&event.causation_id).into(),
        event.timestamp.into(),
    ]);
}

/// An event that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Where it is.
    pub at: Position,
    /// What it belongs to.
    pub correlation_id: String,
}

/// What the index knows of everything with one correlation id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRow {
    /// How many events it has.
    pub events: u64,
    /// When the first one happened.
    pub first: Timestamp,
    /// When the last one did.
    pub last: Timestamp,
    /// The type of the first.
    pub event_type: String,
}

/// The table of events in the version that serves.
pub fn table(db: &ReadDb) -> String {
    db.table(super::EVENTS_INDEX, EVENTS)
}

/// Position and id of the newest event of a partition that is known.
pub async fn newest(db: &ReadDb, partition: u16) -> Result<Option<(u64, Uuid)>, ReadError> {
    let query = Query::select(&["position", "event_id"], &table(db))
        .then(" AND partition = ")
        .value(partition)
        .then(" ORDER BY position DESC LIMIT 1");
    let found = db.fetch_as(query, |row| Ok((row.count(0)?, row.id(1)?))).await?;
    Ok(found.first().copied())
}

/// The events that match, behind `after` in each partition, at most `limit`: in order within a
/// partition, and merged by position across them. A page's last position per partition is where the
/// next one begins, so that nothing is missed or seen twice however fast the partitions grow.
pub async fn find(
    db: &ReadDb,
    filter: &EventFilter,
    after: &BTreeMap<u16, u64>,
    limit: u32,
) -> Result<Vec<Match>, ReadError> {
    let partitions = partitions(db).await?;
    // One version for the whole of the answer.
    let version = db.serving(super::EVENTS_INDEX);
    let (events, minutes) = (table_of(EVENTS, version), table_of(MINUTES, version));
    let mut found = Vec::new();
    for partition in partitions {
        let after = after.get(&partition).copied().unwrap_or(0);
        let Some((first, last)) = bounds(db, &minutes, filter, partition, after).await? else {
            continue;
        };
        for query in queries(&events, filter, partition, (first, last), limit) {
            let matches = db.fetch_as(query, |row| {
                let at = Position { partition, position: row.count(0)? };
                Ok(Match { at, correlation_id: row.text(1)? })
            });
            found.extend(matches.await?);
        }
    }
    found.sort_unstable_by_key(|found| (found.at.position, found.at.partition));
    found.truncate(limit as usize);
    Ok(found)
}

/// What there is with a correlation id; none: nothing.
pub async fn trace(db: &ReadDb, correlation_id: &str) -> Result<Option<TraceRow>, ReadError> {
    let table = table(db);
    let whole = Query::select(&["COUNT(*)", "MAX(timestamp_ms)"], &table)
        .then(" AND correlation_id = ")
        .value(correlation_id);
    let whole = db.fetch_as(whole, |row| Ok((row.count(0)?, row.int_or_null(1)?))).await?;
    let first = Query::select(&["timestamp_ms", "event_type"], &table)
        .then(" AND correlation_id = ")
        .value(correlation_id)
        .then(" ORDER BY timestamp_ms, position LIMIT 1");
    let first = db.fetch_as(first, |row| Ok((row.time(0)?, row.text(1)?))).await?;
    let (Some((events, Some(last))), Some((at, event_type))) = (whole.first(), first.first())
    else {
        return Ok(None);
    };
    Ok(Some(TraceRow {
        events: *events,
        first: *at,
        last: Timestamp::from_millis(*last),
        event_type: event_type.clone(),
    }))
}

/// The correlation ids of the events of a partition from `first` to `last`, each once.
pub async fn correlations(
    db: &ReadDb,
    partition: u16,
    first: u64,
    last: u64,
) -> Result<Vec<String>, ReadError> {
    let query = Query::select(&["DISTINCT correlation_id"], &table(db))
        .then(" AND partition = ")
        .value(partition)
        .then(" AND position >= ")
        .value(first)
        .then(" AND position <= ")
        .value(last);
    db.fetch_as(query, |row| row.text(0)).await
}

/// The correlation ids of a trace, at most `limit`.
pub async fn correlations_of_trace(
    db: &ReadDb,
    trace_id: &str,
    limit: u32,
) -> Result<Vec<String>, ReadError> {
    let version = db.serving(super::EVENTS_INDEX);
    let (events, traces) = (table_of(EVENTS, version), table_of(TRACES, version));
    let mut found = db.fetch_as(of_trace(&traces, trace_id, limit), |row| row.text(0)).await?;
    // The one that needs no row; there was one all the same before it was left out.
    let request = request_of_trace(trace_id);
    if !found.contains(&request) && found.len() < usize::try_from(limit).unwrap_or(usize::MAX) {
        let any = Query::select(&["correlation_id"], &events)
            .then(" AND correlation_id = ")
            .value(&request)
            .then(" LIMIT 1");
        found.extend(db.fetch_as(any, |row| row.text(0)).await?);
    }
    Ok(found)
}

fn is_trace_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn of_trace(table: &str, trace_id: &str, limit: u32) -> Query {
    Query::select(&["correlation_id"], table)
        .then(" AND trace_id = ")
        .value(trace_id)
        .then(" ORDER BY correlation_id LIMIT ")
        .value(limit)
}

/// The events of a partition from `first` to `last`, in order: positions and ids.
pub async fn between(
    db: &ReadDb,
    partition: u16,
    first: u64,
    last: u64,
) -> Result<Vec<(u64, Uuid)>, ReadError> {
    let query = Query::select(&["position", "event_id"], &table(db))
        .then(" AND partition = ")
        .value(partition)
        .then(" AND position >= ")
        .value(first)
        .then(" AND position <= ")
        .value(last)
        .then(" ORDER BY position");
    db.fetch_as(query, |row| Ok((row.count(0)?, row.id(1)?))).await
}

/// How many events there are of each type (of the filter's types and times only) in each step of time:
/// by the step's beginning and the type.
pub async fn counts(
    db: &ReadDb,
    filter: &EventFilter,
    step_ms: i64,
) -> Result<BTreeMap<(i64, String), u64>, ReadError> {
    let partitions = partitions(db).await?;
    let version = db.serving(super::EVENTS_INDEX);
    let (events, minutes) = (table_of(EVENTS, version), table_of(MINUTES, version));
    let mut all = BTreeMap::new();
    for partition in partitions {
        let Some((first, last)) = bounds(db, &minutes, filter, partition, 0).await? else {
            continue;
        };
        let query = Query::new("SELECT timestamp_ms / ")
            .value(step_ms)
            .then(" * ")
            .value(step_ms)
            .then(" AS start, event_type, COUNT(*) FROM ")
            .table(&events)
            .then(" WHERE partition = ")
            .value(partition)
            .then(" AND position >= ")
            .value(first)
            .then(" AND position <= ")
            .value(last)
            .when(" AND timestamp_ms >= ", filter.from)
            .when(" AND timestamp_ms < ", filter.to);
        let query = types(query, &filter.event_types).then(" GROUP BY start, event_type");
        let read = |row: &Row| Ok(((row.int(0)?, row.text(1)?), row.count(2)?));
        for (key, count) in db.fetch_as(query, read).await? {
            *all.entry(key).or_default() += count;
        }
    }
    Ok(all)
}

/// ` AND event_type IN (…)`, unless any will do.
fn types(mut query: Query, event_types: &[String]) -> Query {
    for (at, event_type) in event_types.iter().enumerate() {
        query = query.then(if at == 0 { " AND event_type IN (" } else { ", " }).value(event_type);
    }
    if event_types.is_empty() { query } else { query.then(")") }
}

/// The partitions that the index has something of.
async fn partitions(db: &ReadDb) -> Result<Vec<u16>, ReadError> {
    let query = Query::new("SELECT partition FROM projection_checkpoints WHERE projection = ")
        .value(super::EVENTS_INDEX);
    let numbers = db.fetch_as(query, |row| row.int(0)).await?;
    Ok(numbers.into_iter().filter_map(|number| u16::try_from(number).ok()).collect())
}

/// The first and last position of a partition that can match; `None`: none can.
async fn bounds(
    db: &ReadDb,
    minutes: &str,
    filter: &EventFilter,
    partition: u16,
    after: u64,
) -> Result<Option<(u64, u64)>, ReadError> {
    let unbounded = (after.saturating_add(1), i64::MAX.unsigned_abs());
    if filter.from.is_none() && filter.to.is_none() {
        return Ok(Some(unbounded));
    }
    let minute = |at: Timestamp| at.millis().div_euclid(MINUTE_MS);
    let query = Query::select(&["MIN(position_min)", "MAX(position_max)"], minutes)
        .then(" AND partition = ")
        .value(partition)
        .when(" AND minute >= ", filter.from.map(minute))
        .when(" AND minute <= ", filter.to.map(minute));
    let ranges = db.fetch_as(query, |row| Ok((row.int_or_null(0)?, row.int_or_null(1)?))).await?;
    let Some(&(Some(first), Some(last))) = ranges.first() else { return Ok(None) };
    let (first, last) = (first.unsigned_abs().max(after.saturating_add(1)), last.unsigned_abs());
    Ok((first <= last).then_some((first, last)))
}

fn queries(
    table: &str,
    filter: &EventFilter,
    partition: u16,
    (first, last): (u64, u64),
    limit: u32,
) -> Vec<Query> {
    let query = Query::select(&["position", "correlation_id"], table)
        .then(" AND partition = ")
        .value(partition)
        .then(" AND position >= ")
        .value(first)
        .then(" AND position <= ")
        .value(last)
        .when(" AND aggregate_key = ", filter.aggregate_id.map(aggregate_key))
        .when(" AND aggregate_id = ", filter.aggregate_id)
        .when(" AND causation_id = ", filter.causation_id.as_ref())
        .when(" AND correlation_id = ", filter.correlation_id.as_ref())
        .when(" AND aggregate_type = ", filter.aggregate_type.as_ref())
        .when(" AND timestamp_ms >= ", filter.from)
        .when(" AND timestamp_ms < ", filter.to);
    let finish = |query: Query| query.then(" ORDER BY position LIMIT ").value(limit);
    if filter.event_types.is_empty() {
        return vec![finish(query)];
    }
    let types: BTreeSet<_> = filter.event_types.iter().collect();
    let mut queries = Vec::new();
    for name in types {
        let of_type = query.clone().then(" AND event_type = ").value(name);
        match filter.majors.get(name) {
            None => queries.push(finish(of_type)),
            Some(majors) => {
                for major in majors {
                    queries.push(finish(of_type.clone().then(" AND major = ").value(*major)));
                }
            }
        }
    }
    queries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projections::testing::{self, event};
    use crate::projections::view::Projected;

    async fn filled() -> (testing::TestDb, Projected<EventsIndex>) {
        let db = testing::open().await;
        let index = Projected::<EventsIndex>::new(db.db.clone());
        let mut events: Vec<_> = (1..=20)
            .map(|position| {
                let mut event = event("order.placed", "order", u128::from(position % 4));
                event.position = position;
                event.timestamp =
                    Timestamp::from_millis(i64::try_from(position).unwrap() * MINUTE_MS / 2);
                if position % 2 == 0 {
                    event.event_type = "order.paid".into();
                    event.correlation_id = "even".into();
                }
                event
            })
            .collect();
        // The clock was set back: commit order is not time order.
        events[19].timestamp = Timestamp::from_millis(0);
        index.advance(0, &events.into_iter().map(Arc::new).collect::<Vec<_>>(), 20).await.unwrap();
        (db, index)
    }

    async fn positions(db: &ReadDb, filter: EventFilter, after: u64, limit: u32) -> Vec<u64> {
        let after = BTreeMap::from([(0, after)]);
        let found = find(db, &filter, &after, limit).await.unwrap();
        found.into_iter().map(|found| found.at.position).collect()
    }

    fn of_majors(named: &[(&str, Option<u16>)]) -> EventFilter {
        let mut filter = EventFilter::default();
        for (event_type, major) in named {
            filter.include((*event_type).to_owned(), *major);
        }
        filter
    }

    #[tokio::test]
    async fn every_filter_finds_its_events_in_order() {
        let (db, _index) = filled().await;
        let even = || EventFilter { event_types: vec!["order.paid".into()], ..Default::default() };
        assert_eq!(positions(&db.db, EventFilter::default(), 0, 3).await, [1, 2, 3]);
        assert_eq!(positions(&db.db, EventFilter::default(), 18, 9).await, [19, 20]);
        assert_eq!(positions(&db.db, even(), 4, 3).await, [6, 8, 10]);
        let both =
            EventFilter { event_types: vec!["order.paid".into(), "order.placed".into()], ..even() };
        assert_eq!(positions(&db.db, both.clone(), 4, 3).await, [5, 6, 7]);
        let aggregate = EventFilter { aggregate_id: Some(Uuid::from_u128(3)), ..both };
        assert_eq!(positions(&db.db, aggregate, 3, 9).await, [7, 11, 15, 19]);
        let correlation = EventFilter {
            correlation_id: Some("even".into()),
            aggregate_type: Some("order".into()),
            ..Default::default()
        };
        assert_eq!(positions(&db.db, correlation.clone(), 16, 9).await, [18, 20]);
        let none = EventFilter { aggregate_type: Some("user".into()), ..correlation };
        assert!(positions(&db.db, none, 0, 9).await.is_empty());
        let other_major = of_majors(&[("order.paid", Some(2))]);
        assert!(positions(&db.db, other_major, 0, 9).await.is_empty());
        // A major is that of the type it stands behind.
        let cases = [
            ([("order.paid", Some(1)), ("order.placed", Some(2))], [2, 4, 6]),
            ([("order.paid", Some(2)), ("order.placed", None)], [1, 3, 5]),
            ([("order.paid", Some(2)), ("order.paid", Some(1))], [2, 4, 6]),
            ([("order.paid", None), ("order.paid", Some(2))], [2, 4, 6]),
            ([("order.paid", Some(2)), ("order.paid", None)], [2, 4, 6]),
        ];
        for (named, found) in cases {
            assert_eq!(positions(&db.db, of_majors(&named), 0, 3).await, found, "{named:?}");
        }
    }

    #[tokio::test]
    async fn aggregates_that_are_looked_up_by_the_same_number_are_told_apart() {
        let db = testing::open().await;
        let index = Projected::<EventsIndex>::new(db.db.clone());
        let ids = [Uuid::from_u64_pair(u64::MAX, 1), Uuid::from_u64_pair(u64::MAX, 2)];
        assert_eq!(aggregate_key(ids[0]), aggregate_key(ids[1]));
        let events = (1..=4).map(|position| {
            let mut event = event("order.placed", "order", 0);
            event.position = position;
            event.aggregate_id = ids[usize::from(position % 2 == 0)];
            Arc::new(event)
        });
        index.advance(0, &events.collect::<Vec<_>>(), 4).await.unwrap();
        let of = |id| EventFilter { aggregate_id: Some(id), ..Default::default() };
        assert_eq!(positions(&db.db, of(ids[0]), 0, 9).await, [1, 3]);
        assert_eq!(positions(&db.db, of(ids[1]), 0, 9).await, [2, 4]);
        assert!(positions(&db.db, of(Uuid::from_u64_pair(u64::MAX, 3)), 0, 9).await.is_empty());
    }

    #[tokio::test]
    async fn a_correlation_is_told_as_a_whole() {
        let (db, _index) = filled().await;
        let even = trace(&db.db, "even").await.unwrap().unwrap();
        // The last one's clock was set back.
        let (first, last) = (Timestamp::from_millis(0), Timestamp::from_millis(9 * MINUTE_MS));
        assert_eq!((even.events, even.first, even.last), (10, first, last));
        assert_eq!(even.event_type, "order.paid");
        assert_eq!(trace(&db.db, "nobody").await.unwrap(), None);
        let mut both = correlations(&db.db, 0, 3, 4).await.unwrap();
        both.sort_unstable();
        assert_eq!(both, ["even", "test"]);
        assert_eq!(correlations(&db.db, 0, 4, 4).await.unwrap(), ["even"]);
        assert!(correlations(&db.db, 1, 1, 99).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_time_range_is_half_open_and_survives_a_clock_set_back() {
        let (db, _index) = filled().await;
        let at = |half_minutes: i64| Some(Timestamp::from_millis(half_minutes * MINUTE_MS / 2));
        let filter = EventFilter { from: at(3), to: at(6), ..Default::default() };
        assert_eq!(positions(&db.db, filter, 0, 9).await, [3, 4, 5]);
        let early = EventFilter { to: at(2), ..Default::default() };
        assert_eq!(positions(&db.db, early, 0, 9).await, [1, 20]);
        let never = EventFilter { from: at(500), ..Default::default() };
        assert!(positions(&db.db, never, 0, 9).await.is_empty());
    }

    /// A trace id of a number.
    fn trace_id(number: u64) -> String {
        format!("{:032x}", u128::from(number) + 1)
    }

    /// The metadata of an event under it.
    fn under(number: u64) -> Arc<str> {
        let metadata = Metadata {
            service: "test".to_owned(),
            version: "1".to_owned(),
            actor_id: "test".to_owned(),
            credential: None,
            tenant_id: "default".to_owned(),
            traceparent: Some(format!("00-{}-00f067aa0ba902b7-01", trace_id(number))),
            tracestate: None,
            subscription: None,
            attributes: BTreeMap::new(),
        };
        serde_json::to_string(&metadata).unwrap().into()
    }

    #[tokio::test]
    async fn a_trace_leads_to_its_correlation_ids_each_once() {
        let db = testing::open().await;
        let index = Projected::<EventsIndex>::new(db.db.clone());
        let of = |position: u64, correlation: &str, trace: Option<u64>| {
            let mut event = event("order.placed", "order", 1);
            event.position = position;
            event.correlation_id = correlation.into();
            if let Some(number) = trace {
                event.metadata = under(number);
            }
            Arc::new(event)
        };
        let first =
            [of(1, "a", Some(7)), of(2, "a", Some(7)), of(3, "a", None), of(4, "b", Some(8))];
        index.advance(0, &first, 4).await.unwrap();
        index.advance(0, &[of(5, "a", Some(7)), of(6, "c", Some(7))], 6).await.unwrap();
        let found =
            async |number| correlations_of_trace(&db.db, &trace_id(number), 9).await.unwrap();
        assert_eq!(found(7).await, ["a", "c"]);
        assert_eq!(found(8).await, ["b"]);
        assert!(found(9).await.is_empty());
        assert_eq!(correlations_of_trace(&db.db, &trace_id(7), 1).await.unwrap(), ["a"]);

        let began = request_of_trace(&trace_id(9));
        let next = [of(7, &began, Some(9)), of(8, "d", Some(9)), of(9, &began, Some(8))];
        index.advance(0, &next, 9).await.unwrap();
        assert_eq!(found(9).await, ["d", &*began]);
        assert_eq!(found(8).await, ["b", &*began]);
        let stored = db.db.fetch(of_trace(TRACES, &trace_id(9), 9)).await.unwrap();
        assert_eq!(stored.len(), 1, "the id that names both needs no row");
    }

    /// Enough rows that no database would read them all, with statistics of them.
    async fn many() -> testing::TestDb {
        const MANY: u64 = 20_000;
        let db = testing::open().await;
        let index = Projected::<EventsIndex>::new(db.db.clone());
        let mut events = Vec::new();
        for position in 1..=MANY {
            let mut event = event(
                if position % 50 == 0 { "order.paid" } else { "order.placed" },
                "order",
                u128::from(position / 10) << 64,
            );
            event.position = position;
            event.event_id = Uuid::from_u128(u128::from(position));
            event.correlation_id = (position / 10).to_string().into();
            event.metadata = under(position / 10);
            events.push(Arc::new(event));
        }
        for chunk in events.chunks(1_000) {
            index.advance(0, chunk, chunk.last().unwrap().position).await.unwrap();
        }
        if db.is_postgres() {
            let mut tx = db.db.begin().await.unwrap();
            for table in ["ANALYZE events_v2", "ANALYZE traces_v1"] {
                tx.execute(table, Vec::new()).await.unwrap();
            }
            tx.commit().await.unwrap();
        }
        db
    }

    /// How a query is answered.
    async fn plan_of(db: &testing::TestDb, mut query: Query) -> String {
        let (explain, column) =
            if db.is_postgres() { ("EXPLAIN ", 0) } else { ("EXPLAIN QUERY PLAN ", 3) };
        query.prefix_for_tests(explain);
        let rows = db.db.fetch_as(query, |row| row.text(column)).await.unwrap();
        rows.join("; ")
    }

    /// S1-88, on both databases: however many events there are, few rows are read.
    #[tokio::test]
    async fn what_traces_are_looked_up_by_has_an_index() {
        let db = many().await;
        let (scan, primary) = match db.is_postgres() {
            true => ("Seq Scan", "traces_v1_pkey"),
            false => ("SCAN", "PRIMARY KEY"),
        };
        let plan = plan_of(&db, of_trace(TRACES, &trace_id(17), 10)).await;
        assert!(plan.contains(primary) && !plan.contains(scan), "{plan}");
        let only = EventFilter::default;
        let looked_up = [
            (EventFilter { correlation_id: Some("17".into()), ..only() }, "by_correlation"),
            (
                EventFilter { aggregate_id: Some(Uuid::from_u64_pair(17, 0)), ..only() },
                "by_aggregate",
            ),
            (EventFilter { event_types: vec!["order.paid".into()], ..only() }, "by_type"),
        ];
        for (filter, index) in looked_up {
            let plan = plan_of(&db, queries(EVENTS, &filter, 0, (1, 99_999), 10).remove(0)).await;
            assert!(plan.contains(index) && !plan.contains(scan), "{index}: {plan}");
        }
    }

    #[tokio::test]
    async fn each_filter_is_answered_by_the_index_that_was_meant() {
        let (db, _index) = filled().await;
        if db.is_postgres() {
            // Its planner counts rows and costs; with this few a scan of all is best.
            return;
        }
        let plan = async |filter: &EventFilter| {
            let mut query = queries(EVENTS, filter, 0, (1, 99), 10).remove(0);
            query.prefix_for_tests("EXPLAIN QUERY PLAN ");
            let rows = db.db.fetch_as(query, |row| row.text(3)).await.unwrap();
            rows.join("; ")
        };
        let types = vec!["order.paid".to_owned()];
        let filter = EventFilter { event_types: types.clone(), ..Default::default() };
        assert!(plan(&filter).await.contains("events_v2_by_type"));
        let filter = EventFilter { correlation_id: Some("a".into()), ..filter };
        let text = plan(&filter).await;
        assert!(text.contains("events_v2_by_correlation"), "{text}");
        let filter =
            EventFilter { aggregate_id: Some(Uuid::nil()), correlation_id: None, ..filter };
        let text = plan(&filter).await;
        assert!(text.contains("events_v2_by_aggregate "), "{text}");
        assert!(!text.contains("TEMP B-TREE"), "already in order: {text}");
        let all = plan(&EventFilter::default()).await;
        assert!(all.contains("PRIMARY KEY") && !all.contains("TEMP B-TREE"), "{all}");
    }
}
