//! `souk quarantine`: the aggregates that crashed again and again, of a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::remote::{Remote, part, print_json, print_table};

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
    /// Let one run again
    Release {
        /// Its type, as the list names it
        aggregate_type: String,
        /// Its id
        id: Uuid,
    },
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        QuarantineCommand::List => list(&remote).await?,
        QuarantineCommand::Release { aggregate_type, id } => {
            let path = format!("/admin/quarantine/{}/{id}/release", part(&aggregate_type));
            remote.post(&path, &json!({})).await?;
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
