//! `souk chaos`: see [`crate::chaos`].

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;

use crate::chaos::{self, Mode, StoreKind};
use crate::points;

/// The exit code of a run that says little: fewer than half of the requests were answered.
const VOID: u8 = 3;

/// How to do a run.
#[derive(Args)]
pub(super) struct Options {
    /// How often something is done to the server
    #[arg(long, default_value_t = 25)]
    cycles: usize,
    /// What everything that is drawn by lot follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Clients at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    clients: u16,
    /// Where the journal is kept
    #[arg(long, value_enum, default_value_t = StoreKind::Sqlite)]
    store: StoreKind,
    /// What is done, with commas between
    #[arg(long, value_enum, value_delimiter = ',', default_value = "random")]
    modes: Vec<Mode>,
    /// The fault points for the mode `points`, with commas between; or all
    #[arg(long, value_delimiter = ',', default_value = "all")]
    points: Vec<String>,
    /// After how many answers something is done, on average
    #[arg(long, value_name = "NUMBER", default_value_t = 275,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    answers: u64,
    /// How often a server is to end at each fault point
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    hits_per_point: usize,
    /// After how many cycles everything is checked from the beginning
    #[arg(long, value_name = "CYCLES", default_value_t = 200,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    full_every: usize,
    /// Keep the run's files also when nothing is wrong
    #[arg(long)]
    keep: bool,
    /// Say what is done in each cycle
    #[arg(long)]
    verbose: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
    /// List the fault points, and end
    #[arg(long)]
    list_points: bool,
}

fn known_points() -> impl Iterator<Item = &'static souk_actors::faults::points::Point> {
    points::ALL.into_iter().flatten()
}

impl Options {
    fn chosen_points(&self) -> anyhow::Result<Vec<&'static str>> {
        if self.points.iter().any(|name| name == "all") {
            let other = match self.store {
                StoreKind::Sqlite => "postgres",
                StoreKind::Postgres => "sqlite",
            };
            let passed = known_points().filter(|point| !point.only_in(other));
            return Ok(passed.map(|point| point.name).collect());
        }
        let known = |name: &String| {
            let found = known_points().find(|point| point.name == name);
            found.map(|point| point.name).ok_or_else(|| {
                anyhow::anyhow!("there is no fault point {name}; --list-points lists them")
            })
        };
        self.points.iter().map(known).collect()
    }
}

fn list_points() {
    for point in known_points() {
        let fails = if point.fails { " It can fail." } else { "" };
        println!("{:<30} {}{fails}", point.name, point.what);
    }
}

/// Does a run, and says how it went.
pub(super) async fn chaos(
    options: Options,
    partitions: Option<&str>,
    database_url: Option<String>,
) -> anyhow::Result<ExitCode> {
    if options.list_points {
        list_points();
        return Ok(ExitCode::SUCCESS);
    }
    let report = chaos::run(chaos::Options {
        points: options.chosen_points()?,
        partitions: partitions.unwrap_or("1").parse()?,
        cycles: options.cycles,
        seed: options.seed,
        clients: options.clients.into(),
        store: options.store,
        database_url,
        modes: options.modes,
        answers: options.answers,
        hits_per_point: options.hits_per_point,
        full_every: options.full_every,
        keep: options.keep,
        progress: std::io::stderr().is_terminal() && !options.verbose,
        verbose: options.verbose,
    })
    .await?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(match (report.violations.is_empty(), report.void) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(VOID),
        (true, false) => ExitCode::SUCCESS,
    })
}
