//! `souk bench`: measures this build on this machine. Only in builds with the feature `bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};

use crate::bench::http::{Plan, StoreKind, measure};

/// What to measure.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Commands over HTTP: an echo, one hot listing, many listings; and the store's raw inserts
    Http(Options),
}

/// How to measure.
#[derive(Args)]
pub(super) struct Options {
    /// Where journal and read models are kept
    #[arg(long, value_enum, default_value_t = Store::Sqlite)]
    store: Store,
    /// How long each phase is timed
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many connections at the same time, a row each
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    connections: Vec<usize>,
    /// How many threads make the load
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How many listings the spread load is spread over
    #[arg(long, default_value_t = 10_000)]
    listings: usize,
    /// Only phases whose name begins so
    #[arg(long)]
    only: Option<String>,
    /// Where the files of the measurement go, on the disk to be measured; deleted afterwards
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    /// Files of its own
    Sqlite,
    /// A PostgreSQL of its own; its programs must be installed
    Postgres,
}

pub(super) async fn bench(command: BenchCommand) -> anyhow::Result<ExitCode> {
    let BenchCommand::Http(options) = command;
    let plan = Plan {
        time: Duration::try_from_secs_f64(options.seconds).context("--seconds")?,
        connections: options.connections,
        threads: options.threads,
        listings: options.listings,
        store: match options.store {
            Store::Sqlite => StoreKind::Sqlite,
            Store::Postgres => StoreKind::Postgres,
        },
        folder: options.folder,
        only: options.only,
    };
    let report = measure(&plan).await?;
    print!("{}", report.table());
    if let Some(path) = options.json {
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
