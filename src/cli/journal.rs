//! `souk migrate`, `souk journal verify` and `souk journal copy`.

use std::process::ExitCode;

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use souk_actors::journal::chain;
use souk_actors::journal::copy::{Copied, Progress};

use crate::app::{
    copy_journal, erase_read_models, open_journal, open_journal_read_only, open_read_models,
};
use crate::config::{Config, Database, Storage};

/// `souk journal copy`.
#[derive(Args)]
pub(super) struct Copy {
    /// The journal to copy: postgres://… or sqlite:<path> [the one that is configured]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Where there is none yet: postgres://… or sqlite:<path>
    #[arg(long, value_name = "URL")]
    to: String,
    /// Tell what was done as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    let store = open_journal(&config.storage, config.runtime.partitions).await?;
    println!("journal: up to date, {} partition(s)", store.partitions());
    open_read_models(&config.storage).await?.close().await;
    println!("read models: up to date");
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn verify(config: &Config) -> anyhow::Result<ExitCode> {
    // To look at it is enough: the server may be running.
    let store = open_journal_read_only(&config.storage).await?;
    let faults = store.check_storage().await?;
    let mut whole = faults.is_empty();
    for fault in faults {
        println!("{fault}");
    }
    for partition in 0..store.partitions() {
        let verified = chain::verify(&*store, partition, |_| ()).await?;
        match verified.damage {
            None => println!("partition {partition}: {} events, all whole", verified.events),
            Some(first) => {
                whole = false;
                for damage in std::iter::once(first).chain(verified.further) {
                    println!(
                        "partition {partition}: damaged at {}: {}",
                        damage.position, damage.what
                    );
                }
                println!("partition {partition}: {} events are whole", verified.events);
            }
        }
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) async fn copy(config: &Config, options: Copy) -> anyhow::Result<ExitCode> {
    let at = |flag: &str, url: &str| -> anyhow::Result<Storage> {
        let database = Database::parse(url).map_err(|what| anyhow!("{flag} {what}"))?;
        Ok(Storage { database, ..config.storage.clone() })
    };
    let from = match &options.from {
        Some(url) => at("--from", url)?,
        None => config.storage.clone(),
    };
    let to = at("--to", &options.to)?;
    ensure!(from.database != to.database, "--from and --to are the same journal");
    let bar = ProgressBar::new(events_of(&from).await?);
    let template = "{msg} {bar:40} {human_pos}/{human_len} events  {per_sec}  {eta}";
    bar.set_style(ProgressStyle::with_template(template)?);
    let copied = copy_journal(&from, &to, |progress| match progress {
        Progress::Copied(done) => {
            bar.set_message("copied");
            bar.set_position(done);
        }
        Progress::Verified(done) => {
            bar.set_message("verified");
            bar.set_position(done);
        }
    })
    .await;
    bar.finish_and_clear();
    let Copied { events, rows } = copied?;
    if matches!(to.database, Database::Postgres(_)) {
        // Read models of another journal may be there; they follow from this one at the start.
        erase_read_models(&to).await.context("the journal is copied, old read models are left")?;
    }
    match options.json {
        true => println!("{}", json!({ "events": events, "rows": rows })),
        false => println!(
            "copied {events} events and {rows} rows beside them, and verified the chain; serve it \
             with the same keys and DATABASE_URL set to it"
        ),
    }
    Ok(ExitCode::SUCCESS)
}

async fn events_of(storage: &Storage) -> anyhow::Result<u64> {
    let store = open_journal_read_only(storage).await?;
    let mut events = 0;
    for partition in 0..store.partitions() {
        events += store.head(partition).await?.position;
    }
    store.close().await;
    Ok(events)
}
