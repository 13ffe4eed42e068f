//! `souk top`: the busiest aggregates of a running server, again and again.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::remote::{Remote, print_json, print_table};

/// Clears a terminal and goes to its beginning.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// `souk top`.
#[derive(Args)]
pub(super) struct Options {
    /// What they are compared by
    #[arg(long, value_enum, default_value_t = By::Rate)]
    by: By,
    /// How many are shown
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=200))]
    limit: u8,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    every: u16,
    /// Look once and end, as where the output is no terminal
    #[arg(long)]
    once: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// Commands and reads a second
    Rate,
    /// How many of them wait in the mailbox
    Wait,
    /// The part of the time that the aggregate works
    HandlerTime,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Wait => "wait",
            Self::HandlerTime => "handler_time",
        }
    }
}

/// Shows the busiest aggregates until it is interrupted.
pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    let once = options.once || remote.is_json() || !std::io::stdout().is_terminal();
    loop {
        let query = [("by", options.by.name().to_owned()), ("limit", options.limit.to_string())];
        let busiest = remote.get("/admin/hotkeys", &query).await?.body;
        let summary = remote.get("/admin/metrics/summary", &[("details", "true")]).await?.body;
        if remote.is_json() {
            print_json(&json!({ "summary": summary, "busiest": busiest["data"] }));
        } else {
            if !once {
                print!("{CLEAR}");
            }
            show(&summary, &busiest);
        }
        if once {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_secs(options.every.into())).await;
    }
}

fn show(summary: &Value, busiest: &Value) {
    let details = &summary["details"];
    let number = |of: &Value| of.as_f64().unwrap_or_default();
    println!(
        "up {}  {:.1} commands/s, {:.2} waiting  {} events published, {} to be handled  {} dead letters\n",
        humantime::format_duration(Duration::from_secs(
            details["uptime_seconds"].as_u64().unwrap_or_default()
        )),
        number(&details["commands_per_second"]),
        number(&details["commands_waiting"]),
        summary["eventsPublished"],
        summary["queueSize"],
        details["dead_letters"],
    );
    let rows = busiest["data"].as_array().into_iter().flatten().map(rounded);
    let rows: Vec<_> = rows.collect();
    let headings = [
        ("TYPE", "/aggregate_type"),
        ("AGGREGATE", "/aggregate_id"),
        ("COMMANDS/S", "/commands_per_second"),
        ("WAITING", "/waiting"),
        ("BUSY", "/busy"),
        ("AT MOST TOO MUCH", "/overestimate"),
    ];
    print_table(&headings, &rows);
}

/// With as many digits as people want to see.
fn rounded(row: &Value) -> Value {
    let mut row = row.clone();
    for (name, digits) in
        [("commands_per_second", 10.0), ("waiting", 1e3), ("busy", 1e4), ("overestimate", 1e3)]
    {
        if let Some(value) = row[name].as_f64() {
            row[name] = json!((value * digits).round() / digits);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_and_what_is_not_known_stays_so() {
        let row = rounded(&json!({
            "aggregate_type": "order", "commands_per_second": 12.345, "waiting": null, "busy": 0.01239,
        }));
        assert_eq!(row["commands_per_second"], 12.3);
        assert_eq!(row["busy"], 0.0124);
        assert!(row["waiting"].is_null() && row["aggregate_type"] == "order");
    }
}
