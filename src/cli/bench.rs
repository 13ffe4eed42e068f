//! `souk bench`: measures this build on this machine. Only in builds with the feature `bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::remote;
use crate::bench::compare::{Comparison, Tolerance};
use crate::bench::measure::{Elsewhere, Plan, Scenario, measure};
use crate::bench::place::StoreKind;
use crate::bench::report::Report;
use crate::bench::{html, overload, rebuild, restart};

/// What to measure.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// The bars: echo, one hot listing and many, new titles and new prices; and the raw inserts
    Http(Options),
    /// New titles of one listing
    Hot(Options),
    /// New titles of all listings in turn
    Spread(Options),
    /// New titles, of some listings much more often than of others
    Zipf(Options),
    /// Whole purchases: an order, and everything until it is SHIPPED
    Purchase(Options),
    /// Batches of events from a publisher outside, until they are durable
    Publish(Options),
    /// Reads of listings, of the list and of the search
    Read(Options),
    /// A bit of everything, in the proportions of a marketplace's hour
    Mixed(Options),
    /// Every scenario, one after the other
    All(Options),
    /// New titles of one listing and of all, given to the service in this process without HTTP; and the raw inserts
    InProcess(Options),
    /// Reads and changes while a read model of a long journal is rebuilt
    Rebuild(RebuildOptions),
    /// Starts on journals of growing size: how soon a server is ready, what a command costs then
    Restart(RestartOptions),
    /// Several times as many changes as a slowed store takes: how much is done, how soon the rest is refused
    Overload(OverloadOptions),
    /// Two reports beside each other
    Compare(CompareOptions),
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
    /// Also write the report to this file, as a page with plots that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How long each phase is timed
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many connections (in process: commands) at the same time, a row each
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    connections: Vec<usize>,
    /// Requests (publish: batches) are due at this rate a second, and times count from then; a closed loop when absent
    #[arg(long)]
    rate: Option<f64>,
    /// How many threads make the load
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How many listings there are
    #[arg(long, default_value_t = 10_000)]
    listings: usize,
    /// Only phases whose name begins so
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    elsewhere: ElsewhereOptions,
}

/// What single scenarios want to know.
#[derive(Args)]
struct Shape {
    /// zipf: the share of the listing at rank r is proportional to 1 / r^exponent
    #[arg(long, default_value_t = 1.0)]
    exponent: f64,
    /// purchase, mixed: how many people buy
    #[arg(long, default_value_t = 16)]
    buyers: usize,
    /// publish: how many events a batch has
    #[arg(long, default_value_t = 500)]
    batch: u64,
    /// publish: under how many keys
    #[arg(long, default_value_t = 1_000)]
    keys: u64,
    /// mixed: at so many times the rates of the catalogue's hour (1, 10, 100)
    #[arg(long, conflicts_with = "rate")]
    scale: Option<f64>,
}

/// A server that is there already.
#[derive(Args)]
struct ElsewhereOptions {
    /// Measure this server, in development mode, instead of one of its own: http://127.0.0.1:8080
    #[arg(long, conflicts_with_all = ["store", "folder"])]
    url: Option<String>,
    /// A file with an administrator's token of that server; SOUK_TOKEN holds the token itself [admin-token in the data folder]
    #[arg(long, env = "SOUK_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// That server may be on another machine
    #[arg(long, requires = "url")]
    allow_remote: bool,
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

/// How to measure starts.
#[derive(Args)]
pub(super) struct RestartOptions {
    #[command(flatten)]
    common: Common,
    /// How many events the journal has, one size after the other
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000")]
    sizes: Vec<u64>,
    /// How many listings they are about
    #[arg(long, default_value_t = 1_000)]
    listings: usize,
    /// Let the journal grow by batches of so many published events, which takes a fraction of the time: by
    /// changes of the listings when absent
    #[arg(long)]
    batch: Option<u64>,
    /// How long the changes are timed at each size
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// How to measure an overload.
#[derive(Args)]
pub(super) struct OverloadOptions {
    #[command(flatten)]
    common: Common,
    /// How much longer each append of the journal takes, in milliseconds
    #[arg(long, default_value_t = 500)]
    append_ms: u64,
    /// How many times the capacity is asked for in the end
    #[arg(long, default_value_t = 5.0)]
    times: f64,
    /// How many connections at the same time
    #[arg(long, default_value_t = 2_048)]
    connections: usize,
    /// How many listings are changed in turn
    #[arg(long, default_value_t = 1_000)]
    listings: usize,
    /// How long each phase is timed
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
}

/// What to compare.
#[derive(Args)]
pub(super) struct CompareOptions {
    /// A report that `--json` wrote
    before: PathBuf,
    /// A later one
    after: PathBuf,
    /// Compare them although one was measured on another store
    #[arg(long)]
    any_store: bool,
    /// End with exit code 1 when a figure is worse by more than this: 10%
    #[arg(long, value_name = "PERCENT")]
    fail_above: Option<Tolerance>,
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

pub(super) async fn bench(command: BenchCommand, data_dir: &Path) -> anyhow::Result<ExitCode> {
    use Scenario::{
        Hot, HotInside, HotPrices, Mixed, Publish, Purchase, Read, Spread, SpreadInside,
        SpreadPrices, Zipf,
    };
    let (scenarios, options): (&[Scenario], _) = match command {
        BenchCommand::Http(options) => (&[Hot, Spread, HotPrices, SpreadPrices], options),
        BenchCommand::Hot(options) => (&[Hot], options),
        BenchCommand::Spread(options) => (&[Spread], options),
        BenchCommand::Zipf(options) => (&[Zipf], options),
        BenchCommand::Purchase(options) => (&[Purchase], options),
        BenchCommand::Publish(options) => (&[Publish], options),
        BenchCommand::Read(options) => (&[Read], options),
        BenchCommand::Mixed(options) => (&[Mixed], options),
        BenchCommand::All(options) => {
            (&[Hot, Spread, HotPrices, SpreadPrices, Zipf, Purchase, Publish, Read, Mixed], options)
        }
        BenchCommand::InProcess(options) => {
            ensure!(
                options.elsewhere.url.is_none(),
                "in-process runs a service of its own: leave --url out"
            );
            (&[HotInside, SpreadInside], options)
        }
        BenchCommand::Rebuild(options) => return rebuilds(options).await,
        BenchCommand::Restart(options) => return restarts(options).await,
        BenchCommand::Overload(options) => return overloads(options).await,
        BenchCommand::Compare(options) => return compare(&options),
    };
    scenarios_of(scenarios, options, data_dir).await
}

fn seconds(seconds: f64) -> anyhow::Result<Duration> {
    let time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    ensure!(!time.is_zero(), "--seconds must be more than 0");
    Ok(time)
}

async fn scenarios_of(
    scenarios: &[Scenario],
    options: Options,
    data_dir: &Path,
) -> anyhow::Result<ExitCode> {
    let Options { common, html, shape, elsewhere, .. } = options;
    let Common { store, folder, json } = common;
    ensure!(!options.connections.contains(&0), "--connections must be at least 1");
    ensure!(options.listings > 0, "--listings must be at least 1");
    is_batch(shape.batch)?;
    ensure!(shape.keys > 0, "--keys must be at least 1");
    let rates = [options.rate, shape.scale];
    ensure!(rates.into_iter().flatten().all(|rate| rate > 0.0), "--rate and --scale: more than 0");
    let elsewhere = match elsewhere.url {
        None => None,
        Some(url) => {
            let token = remote::token(elsewhere.token_file.as_deref(), data_dir)?;
            Some(Elsewhere { url, token, allow_remote: elsewhere.allow_remote })
        }
    };
    let plan = Plan {
        scenarios: scenarios.to_vec(),
        time: seconds(options.seconds)?,
        connections: options.connections,
        threads: options.threads,
        rate: options.rate,
        scale: shape.scale,
        listings: options.listings,
        exponent: shape.exponent,
        buyers: shape.buyers,
        batch: shape.batch,
        keys: shape.keys,
        store: store.into(),
        folder,
        only: options.only,
        elsewhere,
    };
    let report = measure(&plan).await?;
    if let Some(path) = html {
        written(&path, html::page(&report).as_bytes())?;
    }
    told(&report.table(), &report, json.as_deref())?;
    let failures = report.failures();
    failures.iter().for_each(|failure| eprintln!("souk: {failure}"));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    told(&report.table(), &report, json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// No request may have more events than this.
fn is_batch(events: u64) -> anyhow::Result<()> {
    ensure!((1..=2_000).contains(&events), "--batch must be from 1 to 2000");
    Ok(())
}

async fn restarts(options: RestartOptions) -> anyhow::Result<ExitCode> {
    let Common { store, folder, json } = options.common;
    ensure!(options.listings > 0, "--listings must be at least 1");
    options.batch.map_or(Ok(()), is_batch)?;
    let plan = restart::Plan {
        sizes: options.sizes,
        listings: options.listings,
        batch: options.batch,
        time: seconds(options.seconds)?,
        store: store.into(),
        folder,
    };
    let report = restart::measure(&plan).await?;
    told(&report.table(), &report, json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

async fn overloads(options: OverloadOptions) -> anyhow::Result<ExitCode> {
    let Common { store, folder, json } = options.common;
    ensure!(options.listings > 0, "--listings must be at least 1");
    ensure!(options.connections > 0, "--connections must be at least 1");
    ensure!(options.append_ms > 0, "--append-ms must be at least 1");
    ensure!(options.times > 1.0, "--times must be more than 1");
    let append = Duration::from_millis(options.append_ms);
    let time = seconds(options.seconds)?;
    ensure!(
        time >= append * overload::APPENDS_MIN,
        "--seconds must be at least {:.1}: a phase has to be {} times as long as an append, so that \
         what it begins with is over before anything is timed",
        (append * overload::APPENDS_MIN).as_secs_f64(),
        overload::APPENDS_MIN
    );
    let plan = overload::Plan {
        append,
        times: options.times,
        connections: options.connections,
        listings: options.listings,
        time,
        store: store.into(),
        folder,
    };
    let report = overload::measure(&plan).await?;
    told(&report.table(), &report, json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn compare(options: &CompareOptions) -> anyhow::Result<ExitCode> {
    let read = |path: &Path| -> anyhow::Result<Report> {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is no report of a scenario", path.display()))
    };
    let comparison =
        Comparison::of(&read(&options.before)?, &read(&options.after)?, options.any_store)?;
    print!("{}", comparison.table());
    let worse = options.fail_above.map(|most| comparison.worse_than(most)).unwrap_or_default();
    for difference in &worse {
        let (phase, figure, told) = (&difference.phase, &difference.figure, difference.told());
        eprintln!("souk: {phase}: {figure}: {told}");
    }
    Ok(if worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn written(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn told(table: &str, report: &impl Serialize, json: Option<&Path>) -> anyhow::Result<()> {
    print!("{table}");
    match json {
        Some(path) => written(path, &serde_json::to_vec_pretty(report)?),
        None => Ok(()),
    }
}
