//! Who serves the journal: one process at a time, by a lease that it renews.
//!
//! Each partition has a row with its epoch, its holder, the holder's database session and when the
//! lease expires by the database's clock. A process takes all rows or none. It takes them when they
//! are free, expired, or when the holder's session is gone (so a start after a crash does not wait);
//! it gives up when the holder renews meanwhile. Taking over raises the epochs, which every append
//! checks: whatever the former holder believes, it stores nothing more.
//!
//! Between renewals the holder knows only what its own clock says. See [`Standing`] for what may be
//! answered when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::PostgresOptions;
use super::columns::Id;
use crate::journal::rows::to_u64;
use crate::journal::{Error, Standing};

/// How often a lease that somebody holds is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How soon a renewal that failed is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// Renewals in the life of a lease: a few may fail or be late.
const RENEWALS_PER_LEASE: u32 = 4;

/// The holder's session, by the id of its process and its start: the id alone comes again.
const SESSION: &str = "backend_pid = pg_backend_pid(), backend_start =
    (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid())";

/// Leases are locked in the order of their partitions, as appends of several partitions do: in any
/// other order each could wait for the other.
const IN_ORDER: &str = "ORDER BY partition FOR UPDATE";

/// Changes the leases that `$1` holds.
fn of_holder(set: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!(
        "WITH mine AS (SELECT partition FROM leases WHERE holder = $1 {IN_ORDER})
         UPDATE leases l SET {set} FROM mine WHERE l.partition = mine.partition"
    ))
}

/// Who a process is to others.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    id: Uuid,
    name: String,
}

impl Holder {
    pub(super) fn new() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
        let host = host.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
        let host = if host.trim().is_empty() { "an unnamed host" } else { host.trim() };
        let name = format!("process {} on {host}", std::process::id());
        Self { id: Uuid::from_u128(rand::random()), name }
    }

    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

/// The leases of all partitions.
pub(super) struct Taken {
    /// When they were asked for: they hold from then on.
    pub asked: Instant,
    /// The epoch of each partition.
    pub epochs: Vec<u64>,
}

/// Takes the leases of all partitions, once nobody else holds one.
pub(super) async fn take(
    connection: &mut PgConnection,
    holder: &Holder,
    ttl: Duration,
) -> Result<Taken, Error> {
    let mut seen = None;
    loop {
        let asked = Instant::now();
        if let Some(epochs) = try_take(connection, holder, ttl).await.map_err(Error::database)? {
            return Ok(Taken { asked, epochs });
        }
        let Some(other) = other_holder(connection, holder).await.map_err(Error::database)? else {
            continue;
        };
        match &seen {
            None => {
                tracing::warn!(
                    holder = other.name,
                    "the journal is leased; waiting until the lease is renewed or expires"
                );
                seen = Some(other.expires);
            }
            Some(expires) if *expires != other.expires => {
                return Err(Error::Locked(format!(
                    "{} serves this database and renews its lease; stop it first",
                    other.name
                )));
            }
            Some(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn try_take(
    connection: &mut PgConnection,
    holder: &Holder,
    ttl: Duration,
) -> Result<Option<Vec<u64>>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let all: i64 =
        sqlx::query_scalar("SELECT count(*) FROM leases").fetch_one(&mut *transaction).await?;
    let take = format!(
        "WITH free AS (
             SELECT partition FROM leases l
             WHERE holder IS NULL OR holder = $1 OR expires_at <= clock_timestamp()
             OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.backend_pid
                            AND coalesce(a.backend_start = l.backend_start, true))
             {IN_ORDER}
         )
         UPDATE leases l SET epoch = l.epoch + 1, holder = $1, holder_name = $2, {SESSION},
         expires_at = clock_timestamp() + $3 * interval '1 millisecond'
         FROM free WHERE l.partition = free.partition RETURNING l.partition, l.epoch"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(take))
        .bind(Id(holder.id))
        .bind(&holder.name)
        .bind(millis(ttl))
        .fetch_all(&mut *transaction)
        .await?;
    if i64::try_from(rows.len()) != Ok(all) {
        transaction.rollback().await?;
        return Ok(None);
    }
    transaction.commit().await?;
    let lease = |row: &PgRow| -> Result<(i64, i64), sqlx::Error> {
        Ok((row.try_get("partition")?, row.try_get("epoch")?))
    };
    let mut leases = rows.iter().map(lease).collect::<Result<Vec<_>, _>>()?;
    leases.sort_unstable();
    Ok(Some(leases.into_iter().map(|(_, epoch)| to_u64(epoch)).collect()))
}

struct Other {
    name: String,
    expires: String,
}

async fn other_holder(
    connection: &mut PgConnection,
    holder: &Holder,
) -> Result<Option<Other>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT holder_name, expires_at::text AS expires FROM leases
         WHERE holder IS NOT NULL AND holder <> $1 ORDER BY expires_at DESC LIMIT 1",
    )
    .bind(Id(holder.id))
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(Other { name: row.try_get("holder_name")?, expires: row.try_get("expires")? }))
        .transpose()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What this process knows of its leases. Cheap to ask on every command.
#[derive(Debug)]
pub(super) struct Tenure {
    pub holder: Holder,
    ttl: Duration,
    begun: Instant,
    /// Nobody can have taken over by expiry before then, in milliseconds since `begun`.
    until: AtomicU64,
    /// The latest renewal failed: the database is not to be reached.
    unreachable: AtomicBool,
    gone: AtomicBool,
    lost: watch::Sender<Option<String>>,
    doubted: Notify,
}

impl Tenure {
    pub(super) fn new(holder: Holder, ttl: Duration, taken: Instant) -> Arc<Self> {
        let tenure = Self {
            holder,
            ttl,
            begun: taken,
            until: AtomicU64::new(0),
            unreachable: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            lost: watch::channel(None).0,
            doubted: Notify::new(),
        };
        tenure.confirmed(taken);
        Arc::new(tenure)
    }

    fn since_begun(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    fn lapsed(&self, now: Instant) -> bool {
        self.since_begun(now) >= self.until.load(Ordering::Acquire)
    }

    fn extend(&self, from: Instant) {
        self.until.store(self.since_begun(from + self.ttl), Ordering::Release);
    }

    /// A renewal that was sent at `asked` succeeded.
    fn confirmed(&self, asked: Instant) {
        self.extend(asked);
        if self.unreachable.swap(false, Ordering::AcqRel) {
            tracing::info!("the journal's database answers again");
        }
    }

    /// A renewal failed. Seen before the lease lapsed, it says that the database cannot be reached;
    /// seen later, this process may have slept while another took over, and it says nothing.
    fn failed(&self, now: Instant, why: &str) {
        if self.lapsed(now) {
            tracing::warn!(why, "the lease has lapsed and could not be confirmed");
            return;
        }
        self.extend(now);
        if !self.unreachable.swap(true, Ordering::AcqRel) {
            tracing::error!(
                why,
                "the journal's database cannot be reached: no writes until it is back"
            );
        }
    }

    fn lose(&self, why: String) {
        tracing::error!(why, "the lease on the journal is lost");
        self.gone.store(true, Ordering::Release);
        self.lost.send_replace(Some(why));
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing_at(Instant::now())
    }

    fn standing_at(&self, now: Instant) -> Standing {
        if self.gone.load(Ordering::Acquire) {
            Standing::Lost
        } else if self.lapsed(now) {
            Standing::Unconfirmed
        } else if self.unreachable.load(Ordering::Acquire) {
            Standing::Unreachable
        } else {
            Standing::Held
        }
    }

    /// Somebody was refused for want of the lease: it is looked at now.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Resolves, with the reason, once the lease is lost.
    pub(super) async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let why = lost.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }
}

/// Renews the leases until they are lost or this is aborted. `connection` is the session that the
/// leases name.
pub(super) async fn keep(
    tenure: Arc<Tenure>,
    options: PostgresOptions,
    connection: PgConnection,
    partitions: usize,
) {
    let patience = tenure.ttl / RENEWALS_PER_LEASE;
    let mut connection = Some(connection);
    loop {
        let wait = match tenure.standing() {
            Standing::Held => patience,
            _ => RETRY_EVERY.min(patience),
        };
        let _ = tokio::time::timeout(wait, tenure.doubted.notified()).await;
        // A session that has ended says nothing of the database: once more on a new one.
        let had_one = connection.is_some();
        let mut renewed = renew(&tenure, &options, &mut connection, patience).await;
        if renewed.is_err() && had_one {
            renewed = renew(&tenure, &options, &mut connection, patience).await;
        }
        match renewed {
            Ok((asked, kept)) if kept == partitions => tenure.confirmed(asked),
            Ok(_) => {
                let by = match &mut connection {
                    Some(open) => other_holder(open, &tenure.holder).await.ok().flatten(),
                    None => None,
                };
                let by = by.map_or_else(|| "another process".to_owned(), |other| other.name);
                tenure.lose(format!("{by} has taken over the journal"));
                return;
            }
            Err(error) => tenure.failed(Instant::now(), &error),
        }
    }
}

/// When the renewal was sent, and how many leases are still held.
async fn renew(
    tenure: &Tenure,
    options: &PostgresOptions,
    connection: &mut Option<PgConnection>,
    patience: Duration,
) -> Result<(Instant, usize), String> {
    let asked = Instant::now();
    let renew =
        format!("{SESSION}, expires_at = clock_timestamp() + $2 * interval '1 millisecond'");
    let ask = async {
        let mut open = match connection.take() {
            Some(open) => open,
            None => options.connect_for_lease().await.map_err(|error| error.to_string())?,
        };
        let done = sqlx::query(of_holder(&renew))
            .bind(Id(tenure.holder.id))
            .bind(millis(tenure.ttl))
            .execute(&mut open)
            .await
            .map_err(|error| error.to_string())?;
        *connection = Some(open);
        Ok(usize::try_from(done.rows_affected()).unwrap_or(0))
    };
    match tokio::time::timeout(patience, ask).await {
        Ok(kept) => kept.map(|kept| (asked, kept)),
        Err(_) => Err(format!("no answer within {patience:?}")),
    }
}

/// Gives the leases back: the next process need not wait.
pub(super) async fn release(
    connection: &mut PgConnection,
    holder: &Holder,
) -> Result<(), sqlx::Error> {
    let give_up = "holder = NULL, holder_name = '', expires_at = clock_timestamp()";
    sqlx::query(of_holder(give_up)).bind(Id(holder.id)).execute(connection).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn tenure() -> (Arc<Tenure>, impl Fn(u64) -> Instant) {
        let begun = Instant::now();
        (Tenure::new(Holder::new(), TTL, begun), move |seconds| {
            begun + Duration::from_secs(seconds)
        })
    }

    #[test]
    fn a_lease_that_nobody_confirms_lapses() {
        let (tenure, at) = tenure();
        assert_eq!(tenure.standing_at(at(9)), Standing::Held);
        assert_eq!(tenure.standing_at(at(10)), Standing::Unconfirmed);
        tenure.confirmed(at(8));
        assert_eq!(tenure.standing_at(at(17)), Standing::Held);
        assert_eq!(tenure.standing_at(at(18)), Standing::Unconfirmed);
    }

    #[test]
    fn an_outage_is_told_from_a_sleep() {
        let (tenure, at) = tenure();
        // The database is gone, for long.
        for seconds in (5..60).step_by(5) {
            tenure.failed(at(seconds), "refused");
            assert_eq!(tenure.standing_at(at(seconds + 4)), Standing::Unreachable);
        }
        tenure.confirmed(at(60));
        assert_eq!(tenure.standing_at(at(61)), Standing::Held);
        // This process was stopped in the middle of a renewal, which fails when it goes on.
        tenure.failed(at(200), "no answer");
        assert_eq!(tenure.standing_at(at(200)), Standing::Unconfirmed);
        tenure.confirmed(at(201));
        assert_eq!(tenure.standing_at(at(201)), Standing::Held);
        // Stopped while the database was gone.
        tenure.failed(at(205), "refused");
        tenure.failed(at(300), "refused");
        assert_eq!(tenure.standing_at(at(300)), Standing::Unconfirmed);
    }

    #[test]
    fn what_is_lost_stays_lost() {
        let (tenure, at) = tenure();
        tenure.lose("somebody".to_owned());
        tenure.confirmed(at(1));
        assert_eq!(tenure.standing_at(at(1)), Standing::Lost);
    }
}
