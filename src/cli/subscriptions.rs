//! `souk subscriptions`: who gets which events, how far they are, and how they are steered, on a
//! running server.

use std::process::ExitCode;

use clap::{ArgAction, Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::remote::{Remote, Told, part, plain, print_json, print_table, shown};

const PATH: &str = "/admin/subscriptions";
/// How many subscriptions are shown.
const ROWS_MAX: usize = 1_000;

/// `souk subscriptions`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: SubscriptionsCommand,
}

#[derive(Subcommand)]
enum SubscriptionsCommand {
    /// Show every subscription and how far it is
    List {
        /// Only those that get events of this type
        #[arg(long)]
        event_type: Option<String>,
    },
    /// Show one, by partition, with what it is trying again
    Show {
        /// Its name
        name: String,
    },
    /// Let one stand still; nothing is lost
    Pause {
        /// Its name
        name: String,
        /// Why; it is recorded
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a paused one go on
    Resume {
        /// Its name
        name: String,
        /// Why; it is recorded
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show one's retry policy, change parts of it, or give it the declared one again
    RetryPolicy(RetryPolicy),
}

#[derive(Args)]
struct RetryPolicy {
    /// Its name
    name: String,
    /// How many times after the first try
    #[arg(long)]
    max_retries: Option<u32>,
    /// The first wait, in milliseconds
    #[arg(long)]
    delay_ms: Option<u64>,
    /// Whether each wait is twice the one before
    #[arg(long, action = ArgAction::Set)]
    exponential_backoff: Option<bool>,
    /// No wait is longer, in milliseconds
    #[arg(long)]
    max_delay_ms: Option<u64>,
    /// Have the declared one again
    #[arg(long, conflicts_with_all = ["max_retries", "delay_ms", "exponential_backoff", "max_delay_ms"])]
    reset: bool,
    /// Why; it is recorded
    #[arg(long)]
    reason: Option<String>,
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        SubscriptionsCommand::List { event_type } => list(&remote, event_type).await?,
        SubscriptionsCommand::Show { name } => {
            let told = remote.get(&format!("{PATH}/{}", part(&name)), &()).await?;
            show(&remote, &told.body);
        }
        SubscriptionsCommand::Pause { name, reason } => {
            switch(&remote, &name, "pause", reason).await?;
        }
        SubscriptionsCommand::Resume { name, reason } => {
            switch(&remote, &name, "resume", reason).await?;
        }
        SubscriptionsCommand::RetryPolicy(policy) => retry_policy(&remote, policy).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A number of all partitions together.
fn sum(status: &Value, name: &str) -> u64 {
    let partitions = status["partitions"].as_array().into_iter().flatten();
    partitions.filter_map(|partition| partition[name].as_u64()).sum()
}

async fn list(remote: &Remote, event_type: Option<String>) -> anyhow::Result<()> {
    let query: Vec<_> = event_type.map(|of| ("event_type", of)).into_iter().collect();
    let (rows, more) = remote.list(PATH, &query, ROWS_MAX).await?;
    if remote.is_json() {
        print_json(&json!({ "data": rows, "has_more": more }));
        return Ok(());
    }
    let rows: Vec<_> = rows
        .iter()
        .map(|status| {
            json!({
                "name": status["name"], "state": status["state"], "kind": status["kind"],
                "lag": sum(status, "lag_events"), "handled": sum(status, "handled"),
                "failed": sum(status, "failed"), "letters": sum(status, "letters"),
            })
        })
        .collect();
    let headings = [
        ("NAME", "/name"),
        ("STATE", "/state"),
        ("KIND", "/kind"),
        ("LAG", "/lag"),
        ("HANDLED", "/handled"),
        ("FAILED", "/failed"),
        ("LETTERS", "/letters"),
    ];
    print_table(&headings, &rows);
    Ok(())
}

fn show(remote: &Remote, status: &Value) {
    if remote.is_json() {
        print_json(status);
        return;
    }
    println!("{}: {}", shown(&status["name"]), shown(&status["state"]));
    if let Some(reason) = status.pointer("/paused/reason").and_then(Value::as_str) {
        println!("Paused: {}", plain(reason));
    }
    for (heading, name) in [
        ("Patterns", "patterns"),
        ("Filter", "filter"),
        ("Ordering", "ordering"),
        ("Priority", "priority"),
        ("Retry policy", "retry"),
        ("Time limit (ms)", "handler_timeout_ms"),
    ] {
        println!("{heading}: {}", shown(&status[name]));
    }
    let headings = [
        ("PARTITION", "/partition"),
        ("STATE", "/state"),
        ("POSITION", "/position"),
        ("LAG", "/lag_events"),
        ("LAG (S)", "/lag_seconds"),
        ("RATE (/S)", "/rate"),
        ("P95 (MS)", "/p95_ms"),
        ("HANDLED", "/handled"),
        ("FAILED", "/failed"),
        ("CIRCUIT", "/circuit"),
        ("PROBE", "/next_probe_at"),
    ];
    let partitions = status["partitions"].as_array().map_or(&[][..], Vec::as_slice);
    print_table(&headings, partitions);
    let retrying = partitions.iter().filter_map(|partition| partition["retrying"].as_array());
    let retrying: Vec<_> = retrying.flatten().collect();
    if !retrying.is_empty() {
        println!("\nTried again:");
        let headings = [
            ("EVENT", "/event_id"),
            ("ATTEMPTS", "/attempts"),
            ("CLASS", "/class"),
            ("NEXT", "/next_attempt_at"),
            ("ERROR", "/error"),
        ];
        print_table(&headings, retrying);
    }
}

async fn switch(
    remote: &Remote,
    name: &str,
    verb: &str,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let body = json!({ "reason": reason });
    let told = remote.post(&format!("{PATH}/{}/{verb}", part(name)), &body).await?;
    if remote.is_json() {
        print_json(&told.body);
    } else {
        println!("{}: {}", shown(&told.body["name"]), shown(&told.body["state"]));
    }
    Ok(())
}

/// What is not named stays as it is: the change rests on the version that was read.
async fn retry_policy(remote: &Remote, policy: RetryPolicy) -> anyhow::Result<()> {
    let path = format!("{PATH}/{}/retry-policy", part(&policy.name));
    let known = remote.get(&path, &()).await?;
    let changes = [
        ("max_retries", policy.max_retries.map(Value::from)),
        ("delay_ms", policy.delay_ms.map(Value::from)),
        ("exponential_backoff", policy.exponential_backoff.map(Value::from)),
        ("max_delay_ms", policy.max_delay_ms.map(Value::from)),
    ];
    let tag = known.etag.clone().unwrap_or_else(|| "*".to_owned());
    let told = if policy.reset {
        let request = remote.request(Method::DELETE, &path).header("If-Match", tag);
        let query: Vec<_> = policy.reason.map(|reason| ("reason", reason)).into_iter().collect();
        remote.send(request.query(&query)).await?
    } else if changes.iter().any(|(_, value)| value.is_some()) {
        let mut body = known.body;
        for (name, value) in changes {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body["reason"] = json!(policy.reason);
        let request = remote.request(Method::PUT, &path).header("If-Match", tag);
        remote.send(request.json(&body)).await?
    } else {
        known
    };
    print_policy(remote, &told);
    Ok(())
}

fn print_policy(remote: &Remote, told: &Told) {
    if remote.is_json() {
        print_json(&told.body);
        return;
    }
    let headings = [
        ("SUBSCRIPTION", "/subscription"),
        ("RETRIES", "/max_retries"),
        ("DELAY (MS)", "/delay_ms"),
        ("DOUBLES", "/exponential_backoff"),
        ("LONGEST (MS)", "/max_delay_ms"),
        ("DECLARED", "/is_default"),
    ];
    print_table(&headings, [&told.body]);
}
