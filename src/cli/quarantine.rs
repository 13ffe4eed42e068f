//! `souk quarantine`: the aggregates that crashed again and again, of a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::remote::{Remote, part, print_json, print_table, shown};

/// How many rows are shown.
const ROWS_MAX: usize = 1_000;

/// `souk quarantine`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Subcommand)]
enum QuarantineCommand {
    /// Show which aggregates are quarantined, since when, and at which command they crashed
    List,
    /// Show why one is quarantined, and what to do
    Show {
        /// Its type, as the list names it
        aggregate_type: String,
        /// Its id
        id: Uuid,
    },
    /// Let one run again
    Release {
        /// Its type, as the list names it
        aggregate_type: String,
        /// Its id
        id: Uuid,
        /// Why; it is recorded
        #[arg(long)]
        reason: Option<String>,
    },
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        QuarantineCommand::List => list(&remote).await?,
        QuarantineCommand::Show { aggregate_type, id } => {
            let path = format!("/admin/quarantine/{}/{id}", part(&aggregate_type));
            show(&remote, &remote.get(&path, &()).await?.body);
        }
        QuarantineCommand::Release { aggregate_type, id, reason } => {
            let path = format!("/admin/quarantine/{}/{id}/release", part(&aggregate_type));
            let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
            remote.post(&path, &body).await?;
            if remote.is_json() {
                print_json(
                    &json!({ "aggregate_type": aggregate_type, "id": id, "released": true }),
                );
            } else {
                println!("{aggregate_type} {id} runs again.");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(remote: &Remote, quarantine: &Value) {
    if remote.is_json() {
        print_json(quarantine);
        return;
    }
    let of = |name: &str| shown(&quarantine[name]);
    println!("{} {}: quarantined since {}", of("aggregate_type"), of("aggregate_id"), of("since"));
    println!("Times: {}", of("times"));
    println!("{}", of("advice"));
    println!();
    let headings = [
        ("AT", "/at"),
        ("COMMAND", "/command"),
        ("COMMAND ID", "/command_id"),
        ("ERROR", "/error_id"),
    ];
    print_table(&headings, quarantine["crashes"].as_array().into_iter().flatten());
}

async fn list(remote: &Remote) -> anyhow::Result<()> {
    let (rows, more) = remote.list("/admin/quarantine", &[], ROWS_MAX).await?;
    if remote.is_json() {
        print_json(&json!({ "data": rows, "has_more": more }));
        return Ok(());
    }
    if rows.is_empty() {
        println!("No aggregate is quarantined.");
        return Ok(());
    }
    let headings = [
        ("AGGREGATE", "/aggregate_type"),
        ("ID", "/aggregate_id"),
        ("SINCE", "/since"),
        ("COMMAND", "/command"),
        ("ERROR", "/error_id"),
    ];
    print_table(&headings, &rows);
    if more {
        println!("There are more; release some of these first.");
    }
    Ok(())
}
