//! Where a measurement takes place: a store, and the journal in it as it is beside the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use souk_actors::event::StoredEvent;
use souk_actors::journal::Store;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::testing::postgres;

use super::client::Client;
use crate::config::JOURNAL_FILE;

/// How often to look whether the server is at rest, and how many times in a row without its having
/// come nearer to it.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 2_400;
/// How many events are read at once.
const PAGE: usize = 1_000;

/// Which store the journal and the read models are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Files in the folder.
    Sqlite,
    /// A PostgreSQL of its own, set up as it comes, in the system's folder of temporary files.
    Postgres,
}

impl StoreKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// Where the journal is.
pub(super) struct Place {
    folder: PathBuf,
    postgres: Option<(postgres::Server, String)>,
}

impl Place {
    pub(super) async fn new(store: StoreKind, folder: &Path) -> Self {
        let postgres = match store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres => {
                let server = postgres::Server::start(postgres::Options::default());
                let url = server.create_database().await;
                Some((server, url))
            }
        };
        Self { folder: folder.to_owned(), postgres }
    }

    pub(super) fn url(&self) -> Option<&str> {
        self.postgres.as_ref().map(|(_, url)| url.as_str())
    }

    /// The journal, to look at beside the server.
    pub(super) async fn journal(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(match self.url() {
            None => Arc::new(SqliteStore::open_read_only(&self.folder.join(JOURNAL_FILE)).await?),
            Some(url) => Arc::new(PostgresStore::open_read_only(PostgresOptions::new(url)?).await?),
        })
    }

    /// A new journal of the same kind.
    pub(super) async fn fresh(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(match &self.postgres {
            None => Arc::new(SqliteStore::open(&self.folder.join("raw.db"), 1).await?),
            Some((server, _)) => {
                let options = PostgresOptions::new(&server.create_database().await)?;
                Arc::new(PostgresStore::open(options, Some(1)).await?)
            }
        })
    }
}

/// How many events there are in each partition, as the journal itself says it.
pub(super) async fn heads(journal: &dyn Store) -> anyhow::Result<Vec<u64>> {
    let mut heads = Vec::new();
    for partition in 0..journal.partitions() {
        heads.push(journal.head(partition).await?.position);
    }
    Ok(heads)
}

/// Calls `each` for every event behind these positions, partition by partition, in order.
pub(super) async fn each_behind(
    journal: &dyn Store,
    before: &[u64],
    mut each: impl FnMut(&Arc<StoredEvent>),
) -> anyhow::Result<()> {
    let heads = heads(journal).await?;
    for (partition, (after, head)) in (0..).zip(before.iter().zip(heads)) {
        let mut after = *after;
        while after < head {
            let page = journal.read_from(partition, after, PAGE).await?;
            after = page.last().map_or(head, |event| event.position);
            page.iter().for_each(&mut each);
        }
    }
    Ok(())
}

/// Waits until all that was asked for has had its effects: every subscription has seen every event,
/// and nothing new comes. However far behind a subscription is, it is waited for while it gets nearer.
/// Without a journal to look at, what the server says of its heads counts.
pub(super) async fn at_rest(admin: &Client, journal: Option<&dyn Store>) -> anyhow::Result<()> {
    let mut before = Vec::new();
    let (mut least_left, mut in_vain) = (u64::MAX, 0);
    while in_vain < LOOKS_MAX {
        let subscriptions = admin.get("/api/v1/admin/subscriptions").await?;
        let all = subscriptions["data"].as_array().into_iter().flatten();
        let partitions = all.flat_map(|one| one["partitions"].as_array().into_iter().flatten());
        let partitions: Vec<_> = partitions.collect();
        let heads = match journal {
            Some(journal) => heads(journal).await?,
            None => partitions.iter().filter_map(|one| one["head"].as_u64()).collect(),
        };
        let head_of = |one: &serde_json::Value| match journal {
            None => one["head"].as_u64(),
            Some(_) => {
                let of = one["partition"].as_u64().and_then(|of| usize::try_from(of).ok());
                of.and_then(|of| heads.get(of)).copied()
            }
        };
        let left = left(partitions.iter().map(|one| (head_of(one), one["position"].as_u64())));
        if left == 0 && heads == before {
            return Ok(());
        }
        before = heads;
        in_vain = if left < least_left { 0 } else { in_vain + 1 };
        least_left = least_left.min(left);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!(
        "the server does not come to rest: {least_left} deliveries stay to be made, or events keep coming"
    )
}

/// How many events have not been seen, of heads and positions. Where one of them is not known, that
/// many can never have been seen.
fn left(places: impl Iterator<Item = (Option<u64>, Option<u64>)>) -> u64 {
    places.fold(0, |sum: u64, (head, position)| match (head, position) {
        (Some(head), Some(position)) => sum.saturating_add(head.abs_diff(position)),
        _ => u64::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_over_all_subscriptions() {
        let places = [(Some(10), Some(4)), (Some(3), Some(3)), (Some(7), Some(5))];
        assert_eq!(left(places.into_iter()), 8);
    }

    #[test]
    fn an_unknown_place_is_never_at_rest() {
        assert_eq!(left([(Some(1), Some(1)), (None, Some(4))].into_iter()), u64::MAX);
        assert_eq!(left([(Some(1), None), (Some(9), Some(4))].into_iter()), u64::MAX);
    }
}
