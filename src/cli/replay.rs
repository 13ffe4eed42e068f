//! `souk replay`: events delivered once more to a subscription of a running server.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use uuid::Uuid;

use super::remote::{Remote, print_json, print_table, shown};

const PATH: &str = "/admin/replays";
/// How often progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many replays are shown.
const ROWS_MAX: usize = 1_000;

/// `souk replay`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: ReplayCommand,
}

#[derive(Subcommand)]
enum ReplayCommand {
    /// Deliver what a subscription has handled to it once more
    Start(Start),
    /// Show the replays, the newest first
    List {
        /// Only those of this subscription
        #[arg(long)]
        subscription: Option<String>,
        /// Only running, completed, cancelled or failed ones
        #[arg(long)]
        state: Option<String>,
    },
    /// Show one
    Show {
        /// Its id
        id: Uuid,
    },
    /// Deliver no more of one
    Cancel {
        /// Its id
        id: Uuid,
        /// Why; it is recorded
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Args)]
struct Start {
    /// The subscription
    subscription: String,
    /// From this time on, or from this position (<partition>:<position>)
    #[arg(long, value_name = "TIME|POSITION")]
    from: Option<String>,
    /// Before this time, or up to this position
    #[arg(long, value_name = "TIME|POSITION")]
    to: Option<String>,
    /// What an event must be like: event_type = "order.placed" and data.total >= 1000
    #[arg(long)]
    filter: Option<String>,
    /// How many events a second at most
    #[arg(long, value_name = "NUMBER")]
    events_per_second: Option<u32>,
    /// Why; it is recorded
    #[arg(long)]
    reason: Option<String>,
    /// Only say what would be delivered
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is over; exit code 1 if not everything was delivered
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        ReplayCommand::Start(options) => return start(&remote, options).await,
        ReplayCommand::List { subscription, state } => {
            let asked = [("subscription", subscription), ("state", state)];
            let query: Vec<_> =
                asked.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            let (rows, more) = remote.list(PATH, &query, ROWS_MAX).await?;
            if remote.is_json() {
                print_json(&json!({ "data": rows, "has_more": more }));
            } else {
                print(&remote, &rows);
            }
        }
        ReplayCommand::Show { id } => {
            print(&remote, &[remote.get(&format!("{PATH}/{id}"), &()).await?.body]);
        }
        ReplayCommand::Cancel { id, reason } => {
            let body = json!({ "reason": reason });
            print(&remote, &[remote.post(&format!("{PATH}/{id}/cancel"), &body).await?.body]);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(remote: &Remote, options: Start) -> anyhow::Result<ExitCode> {
    let Start { subscription, from, to, filter, events_per_second, reason, dry_run, wait } =
        options;
    let body = json!({
        "subscription": subscription, "from": from, "to": to, "filter": filter,
        "events_per_second": events_per_second, "reason": reason, "dry_run": dry_run,
    });
    let mut now = remote.post(PATH, &body).await?.body;
    if dry_run {
        print_preview(remote, &now);
        return Ok(ExitCode::SUCCESS);
    }
    if wait {
        now = wait_for(remote, now).await?;
    }
    let left = ["failed", "held"].iter().any(|name| now[*name] != 0);
    let is_whole = now["state"] == "completed" && !left;
    print(remote, &[now]);
    Ok(if wait && !is_whole { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Shows progress until the replay is over.
async fn wait_for(remote: &Remote, mut now: Value) -> anyhow::Result<Value> {
    let path = format!("{PATH}/{}", now["replay_id"].as_str().unwrap_or_default());
    let bar = ProgressBar::new(now["total"].as_u64().unwrap_or_default());
    let template = "{bar:40} {human_pos}/{human_len} positions  {eta}  {msg}";
    bar.set_style(ProgressStyle::with_template(template)?);
    while now["state"] == "running" {
        tokio::time::sleep(LOOK_EVERY).await;
        now = remote.get(&path, &()).await?.body;
        bar.set_position(now["read"].as_u64().unwrap_or_default());
        let held_by = now["held_by"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
        bar.set_message(format!("{} delivered{held_by}", shown(&now["redelivered"])));
    }
    bar.finish_and_clear();
    Ok(now)
}

fn print_preview(remote: &Remote, preview: &Value) {
    if remote.is_json() {
        print_json(preview);
        return;
    }
    let types = preview["by_type"].as_object().into_iter().flatten();
    let types: Vec<_> =
        types.map(|(name, count)| json!({ "event_type": name, "count": count })).collect();
    print_table(&[("EVENT TYPE", "/event_type"), ("EVENTS", "/count")], &types);
    let at = |end: &str| shown(&preview[end]["position"]);
    println!("\n{} events, from {} to {}.", shown(&preview["count"]), at("first"), at("last"));
    if preview["complete"] == false {
        println!("There may be more: there was no time to look at everything.");
    }
    println!("Nothing was done: leave --dry-run away to do it.");
}

fn print(remote: &Remote, replays: &[Value]) {
    if remote.is_json() {
        replays.iter().for_each(print_json);
        return;
    }
    let headings = [
        ("REPLAY", "/replay_id"),
        ("SUBSCRIPTION", "/subscription"),
        ("STATE", "/state"),
        ("READ", "/read"),
        ("OF", "/total"),
        ("DELIVERED", "/redelivered"),
        ("DUPLICATES", "/duplicates"),
        ("FAILED", "/failed"),
        ("HELD", "/held"),
        ("STARTED", "/started_at"),
    ];
    print_table(&headings, replays);
}
