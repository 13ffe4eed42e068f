//! `souk migrate` and `souk journal verify`.

use std::process::ExitCode;

use souk_actors::journal::chain;

use crate::app::{open_journal, open_journal_read_only, open_read_models};
use crate::config::Config;

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
