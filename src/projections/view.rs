//! How a projection commits: its rows and its checkpoint in one transaction, so that every event
//! has effect exactly once however often it is delivered.
//!
//! A [`Table`] writes rows; [`Projected`] puts the transaction and the checkpoint around it. Most
//! tables are [`View`]s: one row per aggregate, folded by a pure function from the row as it was
//! and the next event. A batch reads each row once and writes it once, so that a thousand events
//! of one hot listing cost two statements.
//!
//! A projection may have two versions (see [`super::versions`]). A batch goes into each that is
//! level, in one transaction: the one that serves decides how it ends, and a version beside it that
//! cannot take it drops out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use souk_actors::event::{DecodeError, EventPayload, StoredEvent};
use souk_actors::faults::points;
use souk_actors::retry::{Failure, FailureKind};
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Projection;
use uuid::Uuid;

use super::db::{Insert, Param, ReadDb, ReadError, ReadTx, Row, table_of};
use super::together::{Page, Together};
use super::versions::{self, Level};

/// Rows that follow from events.
#[async_trait]
pub trait Table: Send + Sync + 'static {
    /// Names the projection and its checkpoints. Stored; never rename.
    const NAME: &'static str;
    /// The bounded context that it belongs to.
    const CONTEXT: &'static str;
    /// The topics that concern it.
    const TOPICS: &'static [&'static str];

    /// The tables, as migrations make them.
    const SHAPES: &'static [Shape];

    /// The tables of a version.
    fn of_version(version: u32) -> Self;

    /// Writes what these events change. They are in the order of each partition, those of one before
    /// those of another. They are new, but for a crash in the middle of a redelivery: then one may
    /// come twice in a row, and the rows must not change the second time.
    async fn write(&self, tx: &mut ReadTx, events: &[Arc<StoredEvent>]) -> Result<(), Failure>;
}

/// What a table is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Its name in version 1.
    pub table: &'static str,
    /// Its columns, those of the primary key first.
    pub columns: &'static [&'static str],
    /// How many of them are the primary key.
    pub key: usize,
    /// Whether the key is made of numbers rather than of one id.
    pub is_numbered: bool,
}

/// A table with its checkpoints, in all versions: what the runtime runs as a projection.
pub struct Projected<T> {
    db: ReadDb,
    versions: Mutex<BTreeMap<u32, Arc<T>>>,
    together: Together,
}

/// What a version is to take in a partition.
pub(super) struct Part<'a> {
    pub at: &'a Level,
    pub events: &'a [Arc<StoredEvent>],
    pub to: u64,
}

impl<'a> Part<'a> {
    /// What it does not have yet.
    fn fresh(&self) -> &'a [Arc<StoredEvent>] {
        let old = self.events.partition_point(|event| event.position <= self.at.position);
        &self.events[old..]
    }

    /// Where it is afterwards.
    fn end(&self) -> u64 {
        let last = self.events.last().map_or(0, |event| event.position);
        self.at.position.max(self.to).max(last)
    }
}

impl<T: Table> Projected<T> {
    /// Projects into this database.
    pub fn new(db: ReadDb) -> Self {
        Self { db, versions: Mutex::default(), together: Together::default() }
    }

    /// The database.
    pub(super) fn db(&self) -> &ReadDb {
        &self.db
    }

    fn table(&self, version: u32) -> Arc<T> {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.entry(version).or_insert_with(|| Arc::new(T::of_version(version))).clone()
    }

    /// Everything of the partition up to here has had its effect, in every version that is level.
    pub async fn position(&self, partition: u16) -> Result<u64, ReadError> {
        versions::level_from(&self.db, T::NAME, partition).await
    }

    /// Takes the events of the partition up to `to` that concern the table. What several partitions
    /// have at the same time goes into one transaction: on PostgreSQL most of what a small one costs
    /// is there whatever it writes.
    pub async fn advance(
        &self,
        partition: u16,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<(), Failure> {
        let page = Page { partition, events: events.into(), to };
        self.together.hand_in(page, |pages| async move { self.write(&pages).await }).await
    }

    /// Writes pages of several partitions in one transaction. They are in the order of their
    /// partitions, of each there is one at most.
    async fn write(&self, pages: &[Page]) -> Result<(), Failure> {
        let mut tx = self.db.begin().await?;
        let partitions: Vec<_> = pages.iter().map(|page| page.partition).collect();
        versions::lock(&mut tx, T::NAME, &partitions).await?;
        let all = versions::level(&mut tx, T::NAME, &partitions).await?;
        let numbers = all.iter().filter_map(|places| Some(places.first()?.version));
        self.db.told().are_level(T::NAME, numbers);
        for places in &all {
            let parts: Vec<_> = places
                .iter()
                .zip(pages)
                .map(|(at, page)| Part { at, events: &page.events, to: page.to })
                .collect();
            let Some(Part { at, .. }) = parts.first() else { continue };
            if at.serves {
                self.take(&mut tx, &parts).await?;
                continue;
            }
            let savepoint = Savepoint::begin(&mut tx).await?;
            let taken = self.take(&mut tx, &parts).await.map(drop);
            savepoint.end(&mut tx, T::NAME, at.version, taken).await?;
        }
        let failed = points::try_reach("projection.before_commit").await;
        failed.map_err(|failed| Failure::transient(failed.to_string()))?;
        tx.commit().await?;
        points::reach("projection.after_commit").await;
        Ok(())
    }

    /// See [`Projected::take`]; for one partition.
    pub(super) async fn take_one(&self, tx: &mut ReadTx, part: Part<'_>) -> Result<u64, Failure> {
        let at = part.at.position;
        Ok(self.take(tx, &[part]).await?.first().copied().unwrap_or(at))
    }

    /// Takes what a version does not have yet of these events, and moves its checkpoints. Says where
    /// it is then in each partition.
    async fn take(&self, tx: &mut ReadTx, parts: &[Part<'_>]) -> Result<Vec<u64>, Failure> {
        let Some(Part { at, .. }) = parts.first() else { return Ok(Vec::new()) };
        let mut fresh: Vec<_> = parts.iter().map(Part::fresh).filter(|of| !of.is_empty()).collect();
        let table = self.table(at.version);
        match fresh.pop() {
            None => {}
            Some(events) if fresh.is_empty() => table.write(tx, events).await?,
            Some(last) => {
                fresh.push(last);
                table.write(tx, &fresh.concat()).await?;
            }
        }
        let moved: Vec<_> = parts
            .iter()
            .map(|part| (&*part.at.checkpoint, part.at.partition, part.end()))
            .collect();
        let further = parts.iter().zip(&moved).filter(|(part, to)| to.2 > part.at.position);
        let further: Vec<_> = further.map(|(_, to)| *to).collect();
        versions::store_positions(tx, &further).await?;
        Ok(moved.into_iter().map(|(.., to)| to).collect())
    }

    /// Takes one event that was set aside; the checkpoint is past it and stays. Events of the same
    /// aggregate behind it were set aside too and come after it, and a table bears a repeat. A
    /// version that was filled over the event has it already.
    pub async fn take_late(&self, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let mut tx = self.db.begin().await?;
        let partitions = [event.partition];
        versions::lock(&mut tx, T::NAME, &partitions).await?;
        let one = std::slice::from_ref(event);
        for level in versions::level(&mut tx, T::NAME, &partitions).await?.into_iter().flatten() {
            if event.position <= level.joined_at {
                continue;
            }
            let table = self.table(level.version);
            if level.serves {
                table.write(&mut tx, one).await?;
                continue;
            }
            let savepoint = Savepoint::begin(&mut tx).await?;
            let taken = table.write(&mut tx, one).await;
            savepoint.end(&mut tx, T::NAME, level.version, taken).await?;
        }
        Ok(tx.commit().await?)
    }
}

/// What a version beside the one that serves does in a transaction: it is undone alone.
struct Savepoint;

impl Savepoint {
    async fn begin(tx: &mut ReadTx) -> Result<Self, ReadError> {
        tx.execute("SAVEPOINT beside", Vec::new()).await?;
        Ok(Self)
    }

    /// A version that cannot take what the one that serves has taken is no longer level. What may
    /// pass is tried again with the whole transaction, as is what the database cannot undo.
    async fn end(
        self,
        tx: &mut ReadTx,
        projection: &'static str,
        version: u32,
        taken: Result<(), Failure>,
    ) -> Result<(), Failure> {
        if let Err(failure) = taken {
            if failure.kind == FailureKind::Transient {
                return Err(failure);
            }
            let undone = tx.execute("ROLLBACK TO SAVEPOINT beside", Vec::new()).await;
            if undone.is_err() {
                return Err(failure);
            }
            versions::set_failed(tx, projection, version, &failure.message).await?;
            tracing::error!(
                projection,
                version,
                error = failure.message,
                "a version beside the one that serves cannot be kept level"
            );
        }
        tx.execute("RELEASE SAVEPOINT beside", Vec::new()).await?;
        Ok(())
    }
}

#[async_trait]
impl<T: Table> Projection for Projected<T> {
    async fn checkpoint(&self, partition: u16) -> Result<u64, Failure> {
        Ok(self.position(partition).await?)
    }

    async fn project(
        &self,
        _runtime: &Runtime,
        partition: u16,
        _from: u64,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<(), Failure> {
        self.advance(partition, events, to).await
    }

    fn came_to(&self, name: &'static str, partition: u16, position: u64) {
        self.db.told().level_at(name, partition, position);
    }

    async fn redeliver(&self, _runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        self.take_late(event).await
    }
}

/// One row per aggregate, folded from its events.
pub trait View: Send + Sync + 'static {
    /// Names the projection and its checkpoints. Stored; never rename.
    const NAME: &'static str;
    /// The bounded context that it belongs to.
    const CONTEXT: &'static str;
    /// The topics that concern it.
    const TOPICS: &'static [&'static str];
    /// The table; its version is in its name.
    const TABLE: &'static str;
    /// The columns, the aggregate's id first.
    const COLUMNS: &'static [&'static str];
    /// Those of them that [`View::fold`] never changes once there is a row: they are written once.
    const FIXED: &'static [&'static str];
    /// A row.
    type Row: Send + Sync;

    /// The row after the event; `None`: there is still none.
    fn fold(row: Option<Self::Row>, event: &StoredEvent) -> Result<Option<Self::Row>, Failure>;

    /// The values of [`View::COLUMNS`].
    fn values(row: &Self::Row) -> Vec<Param>;

    /// Reads the values of [`View::COLUMNS`].
    fn read(row: &Row) -> Result<Self::Row, ReadError>;
}

/// A [`View`] as a [`Table`].
pub struct ViewTable<V> {
    table: String,
    upsert: Insert,
    view: std::marker::PhantomData<fn() -> V>,
}

#[async_trait]
impl<V: View> Table for ViewTable<V> {
    const NAME: &'static str = V::NAME;
    const CONTEXT: &'static str = V::CONTEXT;
    const TOPICS: &'static [&'static str] = V::TOPICS;
    const SHAPES: &'static [Shape] =
        &[Shape { table: V::TABLE, columns: V::COLUMNS, key: 1, is_numbered: false }];

    fn of_version(version: u32) -> Self {
        let table = table_of(V::TABLE, version);
        let upsert = Insert::upsert(&table, V::COLUMNS, V::FIXED);
        Self { table, upsert, view: std::marker::PhantomData }
    }

    async fn write(&self, tx: &mut ReadTx, events: &[Arc<StoredEvent>]) -> Result<(), Failure> {
        let mut rows: BTreeMap<Uuid, Option<V::Row>> =
            events.iter().map(|event| (event.aggregate_id, None)).collect();
        load::<V>(tx, &self.table, &mut rows).await?;
        let before = cfg!(debug_assertions).then(|| fixed::<V>(&rows));
        for event in events {
            if let Some(row) = rows.get_mut(&event.aggregate_id) {
                *row = V::fold(row.take(), event)?;
            }
        }
        debug_assert!(
            before.is_none_or(|before| fixed::<V>(&rows)
                .iter()
                .all(|(id, values)| { before.get(id).is_none_or(|before| before == values) })),
            "{} changes what it calls fixed",
            V::NAME
        );
        let values = rows.values().flatten().flat_map(V::values).collect();
        Ok(self.upsert.run(tx, values).await?)
    }
}

/// The values of [`View::FIXED`] by aggregate, where there is a row.
fn fixed<V: View>(rows: &BTreeMap<Uuid, Option<V::Row>>) -> BTreeMap<Uuid, Vec<Param>> {
    let of = |row: &V::Row| {
        let columns = V::COLUMNS.iter().zip(V::values(row));
        columns.filter(|(name, _)| V::FIXED.contains(name)).map(|(_, value)| value).collect()
    };
    rows.iter().filter_map(|(id, row)| Some((*id, of(row.as_ref()?)))).collect()
}

async fn load<V: View>(
    tx: &mut ReadTx,
    table: &str,
    rows: &mut BTreeMap<Uuid, Option<V::Row>>,
) -> Result<(), ReadError> {
    let keys: Vec<Uuid> = rows.keys().copied().collect();
    let (columns, key) = (V::COLUMNS.join(", "), V::COLUMNS[0]);
    let sql = format!("SELECT {columns} FROM {table} WHERE {key}");
    for row in tx.fetch_of(&sql, &keys).await? {
        rows.insert(row.id(0)?, Some(V::read(&row)?));
    }
    Ok(())
}

/// Reads what a projection needs of an event's data ([`EventPayload::read`]).
pub fn read_data<E: EventPayload, T: DeserializeOwned>(event: &StoredEvent) -> Result<T, Failure> {
    E::read(event).map_err(|error| undecodable(&error))
}

/// What cannot be decoded today cannot be decoded on a retry either.
pub fn undecodable(error: &DecodeError) -> Failure {
    Failure::permanent(error.to_string())
}

#[cfg(test)]
mod tests {
    use souk_actors::retry::FailureKind;
    use souk_actors::world::Timestamp;

    use super::*;
    use crate::domain::category::{CategoryCreated, CategoryEvent};
    use crate::domain::ids::CategoryId;
    use crate::projections::categories::{self, CategoriesView, CategoryRow};
    use crate::projections::testing::{self, numbered, stored};

    type Categories = Projected<ViewTable<CategoriesView>>;

    fn categories(db: &ReadDb) -> Categories {
        Projected::new(db.clone())
    }

    fn created(slug: &str) -> StoredEvent {
        let id = CategoryId::of_slug(slug);
        let payload = CategoryEvent::Created(CategoryCreated {
            category_id: id,
            name: slug.to_uppercase(),
            slug: slug.to_owned(),
            created_at: Timestamp::from_millis(0),
        });
        stored(&payload, "category", id.uuid())
    }

    fn changed(slug: &str, event_type: &str) -> StoredEvent {
        testing::event(event_type, "category", CategoryId::of_slug(slug).uuid().as_u128())
    }

    async fn slugs(db: &ReadDb) -> Vec<(String, bool)> {
        let rows: Vec<CategoryRow> = categories::all(db).await.unwrap();
        rows.into_iter().map(|row| (row.slug, row.active)).collect()
    }

    #[tokio::test]
    async fn a_redelivery_has_no_second_effect_also_after_a_restart() {
        let test = testing::open().await;
        let events = numbered([
            created("books"),
            changed("books", "category.deactivated"),
            changed("books", "category.activated"),
        ]);
        let projected = categories(&test.db);
        projected.advance(0, &events, 3).await.unwrap();
        projected.advance(0, &events[1..2], 2).await.unwrap();
        assert_eq!(slugs(&test.db).await, [("books".to_owned(), true)]);
        drop(projected);

        let test = test.reopen().await;
        let projected = categories(&test.db);
        assert_eq!(projected.position(0).await.unwrap(), 3);
        projected.advance(0, &events[..2], 2).await.unwrap();
        assert_eq!(slugs(&test.db).await, [("books".to_owned(), true)]);
        assert_eq!(projected.position(0).await.unwrap(), 3);
    }

    /// A view of which nothing changes once there is a row.
    #[tokio::test]
    async fn a_row_that_is_all_fixed_is_written_once() {
        use crate::domain::event_type::{EventTypeEvent, EventTypeRegistered};
        use crate::domain::ids::EventTypeId;
        use crate::projections::publishing::{self, EventTypesView};

        let others = &EventTypesView::COLUMNS[1..];
        assert!(!others.is_empty());
        assert!(others.iter().all(|column| EventTypesView::FIXED.contains(column)));
        let name = "partner.stock.counted";
        let registered = |minor| {
            let registered = EventTypeRegistered {
                name: name.to_owned(),
                major: 1,
                minor,
                schema: serde_json::json!({}),
                registered_at: Timestamp::from_millis(0),
            };
            let id = EventTypeId::of_name(name).uuid();
            stored(&EventTypeEvent::Registered(registered), "event_type", id)
        };
        let test = testing::open().await;
        let projected = Projected::<ViewTable<EventTypesView>>::new(test.db.clone());
        let events = numbered([registered(0), registered(1)]);
        projected.advance(0, &events[..1], 1).await.unwrap();
        projected.advance(0, &events[1..], 2).await.unwrap();
        let rows = publishing::event_types(&test.db, "", 9).await.unwrap();
        assert_eq!((rows.len(), &*rows[0].name), (1, name));
        assert_eq!(projected.position(0).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_failed_batch_leaves_neither_rows_nor_checkpoint() {
        let test = testing::open().await;
        let projected = categories(&test.db);
        let mut unreadable = created("fashion");
        unreadable.data = r#"{"name": 7}"#.into();
        let events = numbered([created("books"), unreadable, created("toys")]);
        let failure = projected.advance(0, &events, 3).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Permanent);
        assert!(slugs(&test.db).await.is_empty());
        assert_eq!(projected.position(0).await.unwrap(), 0);

        // Without the bad one the others go through: the connection is whole.
        projected.advance(0, &[events[0].clone(), events[2].clone()], 3).await.unwrap();
        assert_eq!(slugs(&test.db).await.len(), 2);
        assert_eq!(projected.position(0).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_failed_checkpoint_takes_the_rows_back() {
        let test = testing::open().await;
        let mut tx = test.db.begin().await.unwrap();
        tx.execute("ALTER TABLE projection_checkpoints RENAME TO elsewhere", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let projected = categories(&test.db);
        let failure = projected.advance(0, &numbered([created("books")]), 1).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::System);
        assert!(slugs(&test.db).await.is_empty());
    }

    #[tokio::test]
    async fn partitions_have_checkpoints_of_their_own() {
        let test = testing::open().await;
        let projected = categories(&test.db);
        projected.advance(0, &numbered([created("books")]), 1).await.unwrap();
        projected.advance(3, &numbered([created("toys")]), 1).await.unwrap();
        assert_eq!(slugs(&test.db).await.len(), 2);
        assert_eq!(projected.position(3).await.unwrap(), 1);
        assert_eq!(projected.position(1).await.unwrap(), 0);
    }

    /// One transaction for all of them, but for the one that cannot be written.
    #[tokio::test]
    async fn partitions_that_come_at_once_have_each_their_own_outcome() {
        let test = testing::open().await;
        let projected = categories(&test.db);
        let pages = |slug: &str| {
            let names = (0..20).map(|number| format!("{slug}{number}"));
            numbered(names.map(|slug| created(&slug)))
        };
        let (books, toys) = (pages("books"), pages("toys"));
        let mut bad = created("bad");
        bad.major = 99;
        let bad = numbered([created("good"), bad]);
        let advance_all = async |partition: u16, events: &[Arc<StoredEvent>]| {
            for event in events {
                projected.advance(partition, std::slice::from_ref(event), event.position).await?;
            }
            Ok::<_, Failure>(())
        };
        let (first, second, third) =
            tokio::join!(advance_all(0, &books), advance_all(2, &bad), advance_all(5, &toys));
        first.unwrap();
        third.unwrap();
        assert_eq!(second.unwrap_err().kind, FailureKind::Permanent);
        assert_eq!(slugs(&test.db).await.len(), 41);
        for (partition, position) in [(0, 20), (1, 0), (2, 1), (5, 20)] {
            assert_eq!(projected.position(partition).await.unwrap(), position, "{partition}");
        }
    }

    /// As when a process that was taken for dead comes back to a database that another one has
    /// taken over.
    #[tokio::test]
    async fn two_that_project_the_same_have_effect_once() {
        let test = testing::open().await;
        let other = test.again().await;
        let changes = (0..40).map(|number| match number % 2 {
            0 => changed("books", "category.deactivated"),
            _ => changed("books", "category.activated"),
        });
        let events = numbered(std::iter::once(created("books")).chain(changes));
        let advance_all = async |db: &ReadDb, page: usize| {
            let projected = categories(db);
            for page in events.chunks(page) {
                projected.advance(0, page, page.last().unwrap().position).await.unwrap();
            }
        };
        tokio::join!(
            advance_all(&test.db, 1),
            advance_all(&other, 3),
            advance_all(&test.db, 7),
            advance_all(&other, 50)
        );
        assert_eq!(slugs(&test.db).await, [("books".to_owned(), true)]);
        assert_eq!(categories(&other).position(0).await.unwrap(), 41);
    }

    #[tokio::test]
    async fn events_of_no_concern_move_the_checkpoint_forward_only() {
        let test = testing::open().await;
        let projected = categories(&test.db);
        projected.advance(0, &[], 900).await.unwrap();
        projected.advance(0, &[], 800).await.unwrap();
        assert_eq!(projected.position(0).await.unwrap(), 900);
    }

    #[tokio::test]
    async fn an_event_that_was_set_aside_is_taken_late_and_leaves_the_checkpoint() {
        let test = testing::open().await;
        let projected = categories(&test.db);
        projected.advance(0, &[], 9).await.unwrap();
        let late = numbered([created("books")]).remove(0);
        projected.take_late(&late).await.unwrap();
        projected.take_late(&late).await.unwrap();
        assert_eq!(slugs(&test.db).await.len(), 1);
        assert_eq!(projected.position(0).await.unwrap(), 9);
    }

    #[test]
    fn a_newer_version_is_not_guessed_at() {
        let mut event = created("books");
        event.major = 99;
        let failure = read_data::<CategoryEvent, CategoryCreated>(&event).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Permanent);
        assert!(failure.message.contains("unsupported event version: 99"), "{failure}");
    }
}
