//! Where the server under test keeps its journal and read models, and how the run looks at them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use souk_actors::journal::Store;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::testing::postgres::{Options as ServerOptions, Server};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::Options;
use crate::projections::Place;
use crate::projections::db::{self, ReadDb};

/// Where the journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    /// In a file of its own.
    Sqlite,
    /// In a PostgreSQL database.
    Postgres,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

/// The databases of a run.
pub(super) enum Database {
    Files,
    Postgres {
        /// The server, where it is the run's own.
        server: Option<Arc<Server>>,
        url: String,
        made: AtomicU32,
    },
}

/// How long a database may take until it answers again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

impl Database {
    /// Starts a server where one is needed, and makes an empty database there.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        match (options.store, &options.database_url) {
            (StoreKind::Sqlite, None) => Ok(Self::Files),
            (StoreKind::Sqlite, Some(_)) => {
                anyhow::bail!("--database-url is for --store postgres: files are the run's own")
            }
            (StoreKind::Postgres, Some(url)) => {
                Ok(Self::Postgres { server: None, url: url.clone(), made: AtomicU32::new(0) })
            }
            (StoreKind::Postgres, None) => {
                let start = || Server::start(ServerOptions::default());
                let server = Arc::new(tokio::task::spawn_blocking(start).await?);
                let url = server.create_database().await;
                Ok(Self::Postgres { server: Some(server), url, made: AtomicU32::new(0) })
            }
        }
    }

    /// What a server needs to know.
    pub fn variables(&self) -> Vec<(String, String)> {
        match self {
            Self::Files => Vec::new(),
            Self::Postgres { url, .. } => vec![
                ("DATABASE_URL".to_owned(), url.clone()),
                // The next server waits until the killed one's lease is over.
                ("LEASE_TTL".to_owned(), "2s".to_owned()),
            ],
        }
    }

    /// What a server on an empty database beside the run's needs to know.
    pub async fn another(&self) -> anyhow::Result<Vec<(String, String)>> {
        let Self::Postgres { url, made, .. } = self else { return Ok(Vec::new()) };
        let number = made.fetch_add(1, Ordering::Relaxed);
        let name = format!("souk_chaos_{}_{number}", std::process::id());
        let mut connection = PgConnection::connect(url).await?;
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await?;
        connection.close().await?;
        let (server, _) = url.rsplit_once('/').context("the database's address has a name")?;
        Ok(vec![("DATABASE_URL".to_owned(), format!("{server}/{name}"))])
    }

    /// Ends the database server, by a crash or in order, and starts it again after a while.
    pub async fn restart(&self, crash: bool, pause: Duration) -> anyhow::Result<()> {
        let Self::Postgres { server: Some(server), .. } = self else {
            anyhow::bail!("only a PostgreSQL server of the run's own can be restarted")
        };
        let server = server.clone();
        let restart = move || {
            if crash {
                server.kill();
            } else {
                server.stop();
            }
            std::thread::sleep(pause);
            server.start_again();
        };
        Ok(tokio::task::spawn_blocking(restart).await?)
    }

    /// Opens the journal beside the server.
    pub async fn open_journal(&self, folder: &Path) -> anyhow::Result<Box<dyn Store>> {
        match self {
            Self::Files => {
                let path = folder.join(crate::config::JOURNAL_FILE);
                Ok(Box::new(SqliteStore::open_read_only(&path).await?))
            }
            Self::Postgres { url, .. } => {
                let open = PostgresStore::open_read_only(PostgresOptions::new(url)?);
                Ok(Box::new(tokio::time::timeout(ANSWERS_WITHIN, open).await??))
            }
        }
    }

    /// Opens the read models, once the server has ended.
    pub async fn open_read_models(&self, folder: &Path) -> anyhow::Result<ReadDb> {
        let place = match self {
            Self::Files => Place::File(folder.join(db::FILE_NAME)),
            Self::Postgres { url, .. } => {
                let options: PgConnectOptions = url.parse()?;
                Place::Postgres(Box::new(options))
            }
        };
        crate::projections::open_versions(ReadDb::open(&place).await?).await
    }
}
