//! `souk migrate` and `souk journal verify`.

use std::process::ExitCode;

use anyhow::Context as _;
use souk_actors::journal::Store as _;
use souk_actors::journal::chain;
use souk_actors::journal::sqlite::SqliteStore;

use crate::app::open_journal;
use crate::config::Config;
use crate::files::private_folder;
use crate::projections::{Place, ReadModels, db};

async fn open(config: &Config) -> anyhow::Result<SqliteStore> {
    private_folder(&config.storage.data_dir)?;
    open_journal(&config.storage.journal, config.runtime.partitions.unwrap_or(1)).await
}

pub(super) async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    let store = open(config).await?;
    println!("journal: up to date, {} partition(s)", store.partitions());
    let models =
        ReadModels::open(&Place::File(config.storage.data_dir.join(db::FILE_NAME))).await?;
    models.close().await;
    println!("read models: up to date");
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn verify(config: &Config) -> anyhow::Result<ExitCode> {
    // To look at it is enough: the server may be running.
    let path = &config.storage.journal;
    let store = SqliteStore::open_read_only(path)
        .await
        .with_context(|| format!("there is no journal to read at {}", path.display()))?;
    let mut whole = true;
    for partition in 0..store.partitions() {
        let verified = chain::verify(&store, partition, |_| ()).await?;
        match verified.damage {
            None => println!("partition {partition}: {} events, all whole", verified.events),
            Some(damage) => {
                whole = false;
                println!("partition {partition}: damaged at {}: {}", damage.position, damage.what);
            }
        }
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
