//! A whole journal moved into another store: events byte for byte at their places, with their
//! numbers and hashes, and every control row beside them.
//!
//! Nobody serves either journal meanwhile: both are held by the leases that serving needs. What the
//! target gets goes through its own [`Store::append`], so that it keeps what that store keeps with a
//! row. Its partitions are as many as the source's, for an aggregate's partition follows from their
//! number. Afterwards the target's chain is verified from its first event to the ends that the
//! source has; only then may it be served (see `open_for_copy` and `finish_copy` of the stores).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::backup::{Contents, Kind, check_chain, ends};
use super::rows::{self, Columns};
use super::{
    AppendError, Batch, ControlWrite, Error, FORMAT, Lease, LetterWrite, PersonKey, Store,
    StreamNumber, TimerWrite,
};

/// How many rows are stored at a time.
const ROWS_MAX: usize = 500;
/// The stored format of a journal that is being copied into: no version of the program opens it.
pub(super) const COPYING: &str = "copying";
/// The tables beside the events, in the order in which they are copied.
pub(super) const TABLES: [(&str, &str); 8] = [
    ("person_keys", "SELECT * FROM person_keys"),
    ("outcomes", "SELECT * FROM outcomes"),
    ("timers", "SELECT * FROM timers"),
    ("checkpoints", "SELECT * FROM checkpoints ORDER BY subscription, partition, lane"),
    ("letters", "SELECT * FROM letters"),
    ("snapshots", "SELECT * FROM snapshots ORDER BY stream, version"),
    ("control", "SELECT * FROM control"),
    ("quarantined", "SELECT * FROM quarantined"),
];

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Events.
    pub events: u64,
    /// Rows of control tables.
    pub rows: u64,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many events are copied.
    Copied(u64),
    /// So many of them are verified.
    Verified(u64),
}

/// Rows of the control tables on their way: a batch for a partition.
pub type Rows = (u16, Batch);

/// Copies everything. The target is empty; nobody else has either of them.
///
/// # Errors
/// [`Error::Mismatch`] where the two do not fit, [`Error::Damaged`] where the source is damaged or
/// the copy is not what the source is.
pub async fn copy(
    source: &dyn Store,
    target: &dyn Store,
    mut progress: impl FnMut(Progress),
) -> Result<Copied, Error> {
    if source.partitions() != target.partitions() {
        let (of, into) = (source.partitions(), target.partitions());
        let what = format!("the journal has {of} partitions, and the one to copy into has {into}");
        return Err(Error::Mismatch(what));
    }
    let faults = source.check_storage().await?;
    if let Some(first) = faults.first() {
        return Err(Error::Damaged(first.clone()));
    }
    let mut leases = Vec::new();
    for partition in 0..target.partitions() {
        if target.head(partition).await?.position > 0 {
            return Err(Error::Mismatch("the journal to copy into has events already".into()));
        }
        leases.push(target.acquire(partition).await?);
    }
    let mut events = 0;
    for lease in &leases {
        events += copy_events(source, target, *lease, |done| {
            progress(Progress::Copied(events + done));
        })
        .await?;
    }
    let rows = copy_rows(source, target, &leases).await?;
    let contents = Contents {
        store: Kind::Sqlite,
        format: FORMAT,
        heads: ends(source).await?,
        parts: Vec::new(),
    };
    check_chain(target, &contents, |done| progress(Progress::Verified(done))).await?;
    Ok(Copied { events, rows })
}

async fn copy_events(
    source: &dyn Store,
    target: &dyn Store,
    lease: Lease,
    mut progress: impl FnMut(u64),
) -> Result<u64, Error> {
    let mut after = 0;
    loop {
        let events = source.read_from(lease.partition, after, ROWS_MAX).await?;
        let Some(last) = events.last() else { return Ok(after) };
        after = last.position;
        let first_ones = events.iter().filter(|event| event.aggregate_version == 1);
        let streams = first_ones.map(|event| StreamNumber {
            stream: event.stream,
            aggregate_type: event.aggregate_type.clone(),
            aggregate_id: event.aggregate_id,
        });
        let batch = Batch { streams: streams.collect(), events, ..Batch::default() };
        store(target, lease, &batch).await?;
        progress(after);
    }
}

async fn copy_rows(source: &dyn Store, target: &dyn Store, leases: &[Lease]) -> Result<u64, Error> {
    let (into, mut coming) = mpsc::channel(2);
    let reading = async move {
        // Closes the channel when it has read everything.
        source.dump(&into).await
    };
    let writing = async {
        let mut rows = 0;
        while let Some((partition, batch)) = coming.recv().await {
            let lease = leases.get(usize::from(partition)).ok_or_else(|| {
                Error::Damaged(format!("a row belongs to partition {partition}, which is not"))
            })?;
            rows += batch.control_rows() as u64;
            store(target, *lease, &batch).await?;
        }
        Ok(rows)
    };
    // Whichever fails ends the other too.
    let ((), rows) = tokio::try_join!(reading, writing)?;
    Ok(rows)
}

async fn store(target: &dyn Store, lease: Lease, batch: &Batch) -> Result<(), Error> {
    let stored = target.append(lease, batch).await;
    target.maintain().await;
    stored.map_err(|error: AppendError| Error::Database(error.to_string().into()))
}

/// Gathers rows into batches, by partition.
pub(super) struct Dump<'a> {
    into: &'a mpsc::Sender<Rows>,
    batches: BTreeMap<u16, Batch>,
    spaces: HashMap<String, &'static str>,
}

impl<'a> Dump<'a> {
    pub(super) fn new(into: &'a mpsc::Sender<Rows>) -> Self {
        Self { into, batches: BTreeMap::new(), spaces: HashMap::new() }
    }

    /// Takes a row of a table. What belongs to no partition goes with the first. Returns a batch
    /// that is full, to be sent.
    pub(super) fn take(&mut self, table: &str, row: &impl Columns) -> Result<Option<Rows>, Error> {
        let partitioned = ["timers", "checkpoints", "letters", "quarantined"].contains(&table);
        let partition = if partitioned { rows::partition_of_row(row)? } else { 0 };
        let space = if table == "control" { Some(self.space(row)?) } else { None };
        let batch = self.batches.entry(partition).or_default();
        add(batch, table, row, space)?;
        let is_full = batch.control_rows() >= ROWS_MAX;
        Ok(is_full.then(|| (partition, std::mem::take(batch))))
    }

    /// Everything of a table has been taken.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        for rows in std::mem::take(&mut self.batches) {
            self.send(rows).await?;
        }
        Ok(())
    }

    /// Sends a batch on its way.
    pub(super) async fn send(&self, rows: Rows) -> Result<(), Error> {
        let gone = |_| Error::Database("nobody takes the rows any more".into());
        self.into.send(rows).await.map_err(gone)
    }

    /// Spaces are named in the program, of which there are a handful: each is kept for good, once.
    fn space(&mut self, row: &impl Columns) -> Result<&'static str, Error> {
        let name = rows::space_of(row)?;
        if let Some(space) = self.spaces.get(&name) {
            return Ok(space);
        }
        let space: &'static str = Box::leak(name.clone().into_boxed_str());
        self.spaces.insert(name, space);
        Ok(space)
    }
}

fn add(
    batch: &mut Batch,
    table: &str,
    row: &impl Columns,
    space: Option<&'static str>,
) -> Result<(), Error> {
    match table {
        "person_keys" => {
            let PersonKey { subject, wrapped } = rows::person_key_of(row)?;
            match wrapped.is_empty() {
                true => batch.destroyed_keys.push(subject),
                false => batch.keys.push(PersonKey { subject, wrapped }),
            }
        }
        "outcomes" => batch.outcomes.push(rows::outcome_of(rows::id_of(row, "command_id")?, row)?),
        "timers" => batch.timers.push(TimerWrite::Set(rows::timer_of(row)?)),
        "checkpoints" => {
            let subscription: Arc<str> = rows::subscription_of(row)?;
            batch.checkpoints.push(rows::checkpoint_of(&subscription, row)?);
        }
        "letters" => batch.letters.push(LetterWrite::Put(rows::letter_of(row)?)),
        "snapshots" => {
            let stream = rows::stream_of(row)?;
            batch.snapshots.push(rows::snapshot_of(stream, row)?);
        }
        "quarantined" => batch.quarantines.push(rows::quarantine_of(row)?),
        _ => {
            let (key, value, expires_at) = rows::control_of(row)?;
            let space = space.unwrap_or_default();
            batch.control.push(ControlWrite { space, key, value: Some(value), expires_at });
        }
    }
    Ok(())
}
