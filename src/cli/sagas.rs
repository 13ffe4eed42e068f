//! `souk sagas`: how far the sagas of a running server are, and stepping in where one does not go on.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::remote::{Remote, print_json, print_table, shown};

const PATH: &str = "/admin/sagas";

/// `souk sagas`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: SagasCommand,
}

#[derive(Subcommand)]
enum SagasCommand {
    /// Show sagas, the newest first
    List(List),
    /// Show one with its history
    Show {
        /// Its id, or its order's
        id: Uuid,
    },
    /// Try the current step of one again
    Retry(StepIn),
    /// Make one turn back: what it has done is undone
    Compensate(StepIn),
}

#[derive(Args)]
struct List {
    /// Only those in this state
    #[arg(long)]
    state: Option<String>,
    /// Only those of this definition
    #[arg(long)]
    definition: Option<String>,
    /// Only that of this order
    #[arg(long, value_name = "ID")]
    order: Option<Uuid>,
    /// Only those under way that have not changed since this time
    #[arg(long, value_name = "TIME")]
    stuck_since: Option<String>,
    /// How many at most
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,
}

#[derive(Args)]
struct StepIn {
    /// Its id, or its order's
    id: Uuid,
    /// Why; it is recorded
    #[arg(long)]
    reason: String,
    /// The version that this rests on; without it the saga is looked at first
    #[arg(long, value_name = "VERSION")]
    if_match: Option<u64>,
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        SagasCommand::List(options) => list(&remote, options).await?,
        SagasCommand::Show { id } => {
            let told = remote.get(&format!("{PATH}/{id}"), &()).await?;
            show(&remote, &told.body);
        }
        SagasCommand::Retry(step_in) => step(&remote, "retry", step_in).await?,
        SagasCommand::Compensate(step_in) => step(&remote, "compensate", step_in).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(remote: &Remote, options: List) -> anyhow::Result<()> {
    let asked = [
        ("state", options.state),
        ("definition", options.definition),
        ("order_id", options.order.map(|id| id.to_string())),
        ("stuck_since", options.stuck_since),
    ];
    let query: Vec<_> =
        asked.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let (rows, more) = remote.list(PATH, &query, options.limit).await?;
    if remote.is_json() {
        print_json(&json!({ "data": rows, "has_more": more }));
        return Ok(());
    }
    let headings = [
        ("SAGA", "/saga_id"),
        ("ORDER", "/order_id"),
        ("DEFINITION", "/definition"),
        ("STATUS", "/status"),
        ("STEP", "/step"),
        ("STARTED", "/started_at"),
        ("UPDATED", "/updated_at"),
    ];
    print_table(&headings, &rows);
    if more {
        println!("There are more: --limit.");
    }
    Ok(())
}

fn show(remote: &Remote, saga: &Value) {
    if remote.is_json() {
        print_json(saga);
        return;
    }
    println!("{}: {}", shown(&saga["saga_id"]), shown(&saga["state_name"]));
    for (heading, pointer) in [
        ("Order", "/order_id"),
        ("Definition", "/definition"),
        ("Step", "/step_name"),
        ("Attempt", "/attempt"),
        ("Failed at", "/failure/step"),
        ("Because", "/failure/reason"),
        ("Started", "/started_at"),
        ("Updated", "/updated_at"),
    ] {
        if let Some(value) = saga.pointer(pointer).filter(|value| !value.is_null()) {
            println!("{heading}: {}", shown(value));
        }
    }
    for intervention in saga["interventions"].as_array().into_iter().flatten() {
        let part = |name: &str| shown(&intervention[name]);
        println!("{} at {} by {}: {}", part("verb"), part("at"), part("by"), part("reason"));
    }
    println!();
    let headings =
        [("AT", "/at"), ("TRANSITION", "/transition/kind"), ("STEP", "/transition/step")];
    print_table(&headings, saga["history"].as_array().into_iter().flatten());
}

/// What is asked for rests on the version that somebody saw, or on the one that there is now.
async fn step(remote: &Remote, verb: &str, step_in: StepIn) -> anyhow::Result<()> {
    let path = format!("{PATH}/{}", step_in.id);
    let tag = match step_in.if_match {
        Some(version) => format!("\"{version}\""),
        None => {
            let known = remote.get(&path, &()).await?;
            known.etag.context("the server did not say which version of the saga it is")?
        }
    };
    let request = remote.request(Method::POST, &format!("{path}/{verb}")).header("If-Match", tag);
    let told = remote.send(request.json(&json!({ "reason": step_in.reason }))).await?;
    show(remote, &told.body);
    Ok(())
}
