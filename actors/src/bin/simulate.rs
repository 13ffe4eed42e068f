//! Runs the simulation over many seeds, or one seed in detail.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use souk_actors::planted::Bug;
use souk_actors::testing::simulation::{self, Plan, Report};

const HELP: &str = "\
Runs the whole runtime under seeds: simulated time, a store that fails, processes that die, and a
plain model that checks every promise. The same seed gives the same run.

Usage: simulate [OPTIONS]

Options:
      --seeds <N>       How many seeds to run [default: 1000]
      --from <N>        The first of them [default: 0]
      --seed <N>        Run this one seed, say what it breaks, and shorten its plan
      --log             With --seed: print everything that happens in the run
      --planted <NAME>  With a bug planted in the runtime; \"list\" names them
      --threads <N>     Threads [default: as many as there are processors]
      --stop-after <N>  Stop after so many failing seeds [default: 10]
  -h, --help            Print this

Exit code: 0 when every promise was kept, 1 when one was broken, 2 for a mistake on this line.";

struct Arguments {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    log: bool,
    planted: Option<Bug>,
    threads: usize,
    stop_after: usize,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(mistake) => {
            eprintln!("error: {mistake}\n\nFor more information, try '--help'.");
            return ExitCode::from(2);
        }
    };
    let kept = match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    };
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The arguments; none: there is nothing left to do.
fn parse(mut given: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments = Arguments {
        seeds: 1_000,
        from: 0,
        seed: None,
        log: false,
        planted: None,
        threads: processors,
        stop_after: 10,
    };
    while let Some(option) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{option} needs a value"));
        match option.as_str() {
            "-h" | "--help" => {
                println!("{HELP}");
                return Ok(None);
            }
            "--log" => arguments.log = true,
            "--seeds" => arguments.seeds = number(&option, &value()?)?,
            "--from" => arguments.from = number(&option, &value()?)?,
            "--seed" => arguments.seed = Some(number(&option, &value()?)?),
            "--threads" => arguments.threads = number(&option, &value()?)?,
            "--stop-after" => arguments.stop_after = number(&option, &value()?)?,
            "--planted" => match value()?.as_str() {
                "list" => {
                    Bug::ALL.iter().for_each(|bug| println!("{}", bug.name()));
                    return Ok(None);
                }
                name => {
                    let unknown = || format!("no bug is called {name}; see '--planted list'");
                    arguments.planted = Some(Bug::named(name).ok_or_else(unknown)?);
                }
            },
            other => return Err(format!("{other} is not an option")),
        }
    }
    Ok(Some(arguments))
}

fn number<N: std::str::FromStr>(option: &str, text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{option} takes a number, not {text}"))
}

/// One seed in detail. Whether it kept every promise.
fn one(seed: u64, arguments: &Arguments) -> bool {
    let plan = Plan::new(seed);
    let report = simulation::run_verbosely(&plan, arguments.planted);
    if arguments.log {
        report.log.iter().for_each(|line| print!("{line}"));
    }
    let Report { violations, digest, events, runtimes, virtual_ms, .. } = report;
    let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    println!(
        "seed {seed}: {} steps, {events} events, {runtimes} runtimes, {virtual_ms} ms, digest {digest}",
        plan.steps.len()
    );
    if violations.is_empty() {
        println!("every promise was kept");
        return true;
    }
    violations.iter().for_each(|violation| println!("  {violation}"));
    println!("shortening the plan ...");
    let (shorter, violations) = simulation::explain(seed, arguments.planted, 2_000);
    println!("{}\nbreaks:", shorter.literal());
    violations.iter().for_each(|violation| println!("  {violation}"));
    false
}

/// Many seeds. Whether all of them kept every promise.
fn many(arguments: &Arguments) -> bool {
    let bar = ProgressBar::new(arguments.seeds);
    let style = "{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left{msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is one"));
    let (events, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    let seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
    simulation::run_seeds(seeds, arguments.planted, arguments.threads, |seed, report| {
        bar.inc(1);
        events.fetch_add(report.events, Ordering::Relaxed);
        let Some(first) = report.violations.first() else { return ControlFlow::Continue(()) };
        bar.suspend(|| println!("seed {seed}: {first}"));
        let mut failed = failed.lock().expect("no holder panics");
        failed.push(seed);
        bar.set_message(format!(", {} failed", failed.len()));
        if failed.len() >= arguments.stop_after {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    let ran = bar.position();
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let failed = failed.into_inner().expect("no holder panics");
    #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
    let rate = ran as f64 / seconds;
    println!(
        "{ran} seeds in {seconds:.1} s ({rate:.0} a second on {} threads), {} events, {} failed",
        arguments.threads,
        events.into_inner(),
        failed.len()
    );
    if let Some(seed) = failed.first() {
        println!("to repeat one: {}", simulation::repeat_command(*seed, arguments.planted));
    }
    failed.is_empty()
}
