//! Opening what is stored, and saying in one line what is in the way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use souk_actors::event::Position;
use souk_actors::journal::copy::{self, Copied, Progress};
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::{SqliteCopy, SqliteStore};
use souk_actors::journal::{Error, Store};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::config::{Database, Postgres, Storage};
use crate::files::{private_file, private_folder};
use crate::projections::{Place, ReadModels, db};

/// The oldest PostgreSQL that the statements are tried on.
const POSTGRES_OLDEST: i32 = 13;

/// How long one attempt to reach the database may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// The first and the longest wait between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// The partitions of a new journal in SQLite, which has one writer however many there are.
const PARTITIONS_SQLITE: u16 = 1;

/// Opens the journal, or begins one. `partitions` is how many a new one gets; none means the
/// store's default.
pub async fn open_journal(
    storage: &Storage,
    partitions: Option<u16>,
) -> anyhow::Result<Arc<dyn Store>> {
    private_folder(&storage.data_dir)?;
    match &storage.database {
        Database::Sqlite(path) => {
            private_file(path)?;
            let partitions = partitions.unwrap_or(PARTITIONS_SQLITE);
            let store = SqliteStore::open_with(path, partitions, storage.durability).await;
            let describe = || {
                let path = path.display();
                format!(
                    "cannot open the journal {path} (is its disk full, or its folder read-only?)"
                )
            };
            Ok(Arc::new(store.with_context(describe)?))
        }
        Database::Postgres(database) => {
            let until = reach(database, storage.database_wait).await?;
            let open = || async {
                let mut options = PostgresOptions::new(database.url())?;
                options.lease_ttl = storage.lease_ttl;
                let store = PostgresStore::open(options, partitions).await;
                store.map_err(|error| no_journal(database, error))
            };
            Ok(Arc::new(patiently(database, until, open).await?))
        }
    }
}

/// Copies a whole journal into a place where there is none. Nobody may serve either meanwhile.
pub async fn copy_journal(
    from: &Storage,
    to: &Storage,
    progress: impl FnMut(Progress),
) -> anyhow::Result<Copied> {
    let partitions = {
        let looked_at = open_journal_read_only(from).await?;
        let partitions = looked_at.partitions();
        looked_at.close().await;
        partitions
    };
    let source = open_journal(from, Some(partitions)).await?;
    let copied = copy_from(&*source, to, progress).await;
    source.close().await;
    copied
}

async fn copy_from(
    source: &dyn Store,
    to: &Storage,
    progress: impl FnMut(Progress),
) -> anyhow::Result<Copied> {
    let partitions = source.partitions();
    match &to.database {
        Database::Sqlite(path) => {
            let target = SqliteCopy::begin(path, partitions).await?;
            let copied = copy::copy(source, target.store(), progress).await?;
            target.finish().await?;
            Ok(copied)
        }
        Database::Postgres(database) => {
            let until = reach(database, to.database_wait).await?;
            let open = || async {
                let options = PostgresOptions::new(database.url())?;
                let target = PostgresStore::open_for_copy(options, partitions).await;
                target.map_err(|error| no_journal(database, error))
            };
            let target = patiently(database, until, open).await?;
            let copied = copy::copy(source, &target, progress).await?;
            target.finish_copy().await?;
            Ok(copied)
        }
    }
}

/// Opens a journal that is there to look at it; a server may be running on it.
pub async fn open_journal_read_only(storage: &Storage) -> anyhow::Result<Arc<dyn Store>> {
    match &storage.database {
        Database::Sqlite(path) => {
            let describe = || format!("there is no journal to read at {}", path.display());
            Ok(Arc::new(SqliteStore::open_read_only(path).await.with_context(describe)?))
        }
        Database::Postgres(database) => {
            let until = reach(database, storage.database_wait).await?;
            let open = || async {
                let options = PostgresOptions::new(database.url())?;
                let store = PostgresStore::open_read_only(options).await;
                store.map_err(|error| no_journal(database, error))
            };
            Ok(Arc::new(patiently(database, until, open).await?))
        }
    }
}

/// Opens the read models, or begins them.
pub async fn open_read_models(storage: &Storage) -> anyhow::Result<ReadModels> {
    let place = place(storage)?;
    read_models(storage, || ReadModels::open(&place)).await
}

/// The journal in the same database has been opened before, so it can be reached.
async fn read_models<F>(storage: &Storage, open: impl Fn() -> F) -> anyhow::Result<ReadModels>
where
    F: Future<Output = anyhow::Result<ReadModels>>,
{
    match &storage.database {
        Database::Sqlite(_) => open().await,
        Database::Postgres(database) => {
            patiently(database, Instant::now() + storage.database_wait, open).await
        }
    }
}

/// Opens the read models that belong to this journal.
pub async fn open_read_models_for(
    storage: &Storage,
    store: &dyn Store,
) -> anyhow::Result<ReadModels> {
    let heads = async || {
        let mut heads = Vec::new();
        for partition in 0..store.partitions() {
            let head = store.head(partition).await.context("cannot read the journal")?;
            heads.push(Position { partition, position: head.position });
        }
        Ok(heads)
    };
    // What cannot be read is no sign of another journal.
    let is_there = async |at: Position, event_id: Uuid| {
        let read = store.read_from(at.partition, at.position.saturating_sub(1), 1).await;
        read.map_or(true, |page| {
            page.first()
                .is_none_or(|event| event.position != at.position || event.event_id == event_id)
        })
    };
    let place = place(storage)?;
    read_models(storage, || ReadModels::open_for(&place, &heads, &is_there)).await
}

/// Forgets the read models: they are made anew from the journal at the next start.
pub async fn erase_read_models(storage: &Storage) -> anyhow::Result<()> {
    ReadModels::erase(&place(storage)?).await
}

fn place(storage: &Storage) -> anyhow::Result<Place> {
    match &storage.database {
        Database::Sqlite(_) => {
            let path = storage.data_dir.join(db::FILE_NAME);
            private_file(&path)?;
            Ok(Place::File(path))
        }
        Database::Postgres(database) => Ok(Place::Postgres(Box::new(database.options().clone()))),
    }
}

/// Opens something in a database that was reached. Where it cannot be reached again it is tried again,
/// `until` then: a database that has just started may take its time with the next connection too.
async fn patiently<T, F>(
    database: &Postgres,
    until: Instant,
    open: impl Fn() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let (mut pause, longest) = PAUSES;
    loop {
        let error = match open().await {
            Err(error) if may_pass(database, &error) && Instant::now() + pause <= until => error,
            done => return done,
        };
        let why = format!("{error:#}");
        tracing::warn!(%database, why, "the database cannot be reached any more; trying again");
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

/// Whether a failure is one of reaching the database, which may pass by itself.
fn may_pass(database: &Postgres, error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<sqlx::Error>());
    cause.is_some_and(|cause| advice(database, cause).is_none())
}

/// Waits until the database can be reached, and returns until when it would have waited; says at once
/// what waiting would not change.
async fn reach(database: &Postgres, wait: Duration) -> anyhow::Result<Instant> {
    let until = Instant::now() + wait;
    let (mut pause, longest) = PAUSES;
    loop {
        let why = match timeout(ATTEMPT_MAX, look(database)).await {
            Ok(Ok(version)) if version >= POSTGRES_OLDEST => return Ok(until),
            Ok(Ok(version)) => {
                bail!("{database} is PostgreSQL {version}: at least {POSTGRES_OLDEST} is needed")
            }
            Ok(Err(error)) => match advice(database, &error) {
                Some(advice) => return Err(anyhow!(advice)),
                None => error.to_string(),
            },
            Err(_) => "it does not answer".to_owned(),
        };
        if Instant::now() + pause > until {
            bail!(
                "{database} could not be reached within {}: {why}. Is it up, and is DATABASE_URL \
                 right? (DATABASE_WAIT sets how long to wait)",
                humantime::format_duration(wait)
            );
        }
        tracing::warn!(%database, why, "the database cannot be reached yet; trying again");
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

/// The server's version.
async fn look(database: &Postgres) -> Result<i32, sqlx::Error> {
    let mut connection = database.options().connect().await?;
    let version = "SELECT current_setting('server_version_num')::INT / 10000";
    let version = sqlx::query_scalar(version).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(version)
}

/// What to do about a failure that does not pass by itself; none for one that may.
fn advice(database: &Postgres, error: &sqlx::Error) -> Option<String> {
    let (user, name) = (database.user(), database.name());
    let advice = match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => return None,
        sqlx::Error::Tls(_) => {
            "the connection could not be secured: check sslmode and sslrootcert in DATABASE_URL"
                .to_owned()
        }
        sqlx::Error::Database(refusal) => match refusal.code().as_deref() {
            // Starting, stopping, or full.
            Some(code) if code.starts_with("57P") || code.starts_with("53") => return None,
            Some("28P01" | "28000") => {
                format!("it does not let {user} in: check the user and password of DATABASE_URL")
            }
            Some("3D000") => format!("there is no such database: CREATE DATABASE {name} first"),
            Some("42501") => format!(
                "{user} may not do this: GRANT CONNECT, CREATE ON DATABASE {name} TO {user}"
            ),
            _ => "it refuses".to_owned(),
        },
        _ => "it cannot be used".to_owned(),
    };
    Some(format!("{database}: {advice} ({error})"))
}

fn no_journal(database: &Postgres, error: Error) -> anyhow::Error {
    let advice = match &error {
        Error::Database(cause) => cause.downcast_ref().and_then(|cause| advice(database, cause)),
        _ => None,
    };
    match advice {
        Some(advice) => anyhow!(advice),
        None => anyhow::Error::new(error).context(format!("cannot open the journal in {database}")),
    }
}
