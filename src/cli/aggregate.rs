//! `souk aggregate`: what aggregates of a running server are and were, and what made them so.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::remote::{Remote, part, print_json, print_table, shown};

/// `souk aggregate`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: AggregateCommand,
}

#[derive(Subcommand)]
enum AggregateCommand {
    /// Show the state of one: the latest, or as of a version or a time
    Show {
        #[command(flatten)]
        which: Which,
        /// As it was when it had had so many events
        #[arg(long, value_name = "NUMBER", conflicts_with = "at")]
        version: Option<u64>,
        /// As it was at this time (RFC 3339)
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
    /// Show what happened to one, and what each event changed in its state
    History {
        #[command(flatten)]
        which: Which,
        /// Begin behind this version
        #[arg(long, value_name = "VERSION")]
        after: Option<u64>,
        /// How many events at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: usize,
    },
}

#[derive(Args)]
struct Which {
    /// Its type, as its events name it: order, user, saga …
    #[arg(value_name = "TYPE")]
    aggregate_type: String,
    /// Its id
    id: String,
}

impl Which {
    /// Its path.
    fn path(&self) -> String {
        format!("/admin/aggregates/{}/{}", part(&self.aggregate_type), part(&self.id))
    }
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        AggregateCommand::Show { which, version, at } => {
            let version = version.map(|version| ("version", version.to_string()));
            let asked: Vec<_> = version.into_iter().chain(at.map(|at| ("at", at))).collect();
            show(&remote, &remote.get(&which.path(), &asked).await?.body);
        }
        AggregateCommand::History { which, after, limit } => {
            history(&remote, &which, after, limit).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(remote: &Remote, aggregate: &Value) {
    if remote.is_json() {
        print_json(aggregate);
        return;
    }
    let of = |name: &str| shown(&aggregate[name]);
    println!("{} {}: version {}", of("aggregate_type"), of("aggregate_id"), of("version"));
    println!("Made by {} ({}) at {}", of("event_type"), of("event_id"), of("changed_at"));
    if aggregate["quarantined"] == true {
        println!("It is quarantined.");
    }
    print_json(&aggregate["state"]);
}

async fn history(
    remote: &Remote,
    which: &Which,
    after: Option<u64>,
    limit: usize,
) -> anyhow::Result<()> {
    let query: Vec<_> = after.map(|after| ("after", after.to_string())).into_iter().collect();
    let path = format!("{}/history", which.path());
    let (mut rows, more) = remote.list(&path, &query, limit).await?;
    if remote.is_json() {
        print_json(&json!({ "data": rows, "has_more": more }));
        return Ok(());
    }
    rows.iter_mut().for_each(|row| row["summary"] = Value::from(summary(row)));
    let headings = [
        ("VERSION", "/version"),
        ("AT", "/event/timestamp"),
        ("EVENT", "/event/event_type"),
        ("BY", "/event/metadata/actor_id"),
        ("CHANGED", "/summary"),
    ];
    print_table(&headings, &rows);
    if more {
        println!("There are more: --limit, or --after with the last version here.");
    }
    Ok(())
}

/// What an event changed, in short: signs and places.
fn summary(change: &Value) -> String {
    let Some(changes) = change["changes"].as_array() else {
        return format!("unreadable: {}", shown(&change["unreadable"]));
    };
    let each = changes.iter().map(|change| {
        let sign = match change["op"].as_str() {
            Some("add") => "+",
            Some("remove") => "-",
            _ => "",
        };
        format!("{sign}{}", change["path"].as_str().unwrap_or_default())
    });
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_short_names_its_places() {
        let changes = json!([
            { "op": "replace", "path": "/status", "value": "PAID" },
            { "op": "add", "path": "/history/2", "value": {} },
            { "op": "remove", "path": "/hold" },
        ]);
        let change = json!({ "changes": changes });
        assert_eq!(summary(&change), "/status +/history/2 -/hold");
        let unreadable = json!({ "changes": null, "unreadable": "apply panicked on version 3" });
        assert_eq!(summary(&unreadable), "unreadable: apply panicked on version 3");
    }
}
