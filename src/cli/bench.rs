//! `souk bench`: measures this build on this machine. Only in builds with the feature `bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::bench::http::{self, StoreKind};
use crate::bench::rebuild;

/// What to measure.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Commands over HTTP: an echo, one hot listing, many listings; and the store's raw inserts
    Http(Options),
    /// Reads and changes while a read model of a long journal is rebuilt
    Rebuild(RebuildOptions),
}

/// Where to measure, and where the report goes.
#[derive(Args)]
struct Common {
    /// Where journal and read models are kept
    #[arg(long, value_enum, default_value_t = Store::Sqlite)]
    store: Store,
    /// Where the files of the measurement go, on the disk to be measured; deleted afterwards
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How to measure.
#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    common: Common,
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
}

/// How to measure a rebuild.
#[derive(Args)]
pub(super) struct RebuildOptions {
    #[command(flatten)]
    common: Common,
    /// How many events the journal is to have
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// How many listings they are about
    #[arg(long, default_value_t = 10_000)]
    listings: usize,
    /// How many requests a second are made meanwhile; 0: a closed loop
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// How many events a second the new version is filled with at most
    #[arg(long, default_value_t = 5_000)]
    rows_per_second: u32,
    /// How long each other phase is timed
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Kill the server while the version is filled, and start it again
    #[arg(long)]
    kill: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    /// Files of its own
    Sqlite,
    /// A PostgreSQL of its own; its programs must be installed
    Postgres,
}

impl From<Store> for StoreKind {
    fn from(store: Store) -> Self {
        match store {
            Store::Sqlite => Self::Sqlite,
            Store::Postgres => Self::Postgres,
        }
    }
}

pub(super) async fn bench(command: BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Http(options) => commands(options).await,
        BenchCommand::Rebuild(options) => rebuilds(options).await,
    }
}

fn seconds(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds).context("--seconds")
}

async fn commands(options: Options) -> anyhow::Result<ExitCode> {
    let Common { store, folder, json } = options.common;
    let plan = http::Plan {
        time: seconds(options.seconds)?,
        connections: options.connections,
        threads: options.threads,
        listings: options.listings,
        store: store.into(),
        folder,
        only: options.only,
    };
    let report = http::measure(&plan).await?;
    told(&report.table(), &report, json.as_deref())
}

async fn rebuilds(options: RebuildOptions) -> anyhow::Result<ExitCode> {
    let Common { store, folder, json } = options.common;
    let plan = rebuild::Plan {
        events: options.events,
        listings: options.listings,
        rate: options.rate,
        rows_per_second: options.rows_per_second,
        time: seconds(options.seconds)?,
        kill: options.kill,
        store: store.into(),
        folder,
    };
    let report = rebuild::measure(&plan).await?;
    told(&report.table(), &report, json.as_deref())
}

fn told(table: &str, report: &impl Serialize, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    print!("{table}");
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
