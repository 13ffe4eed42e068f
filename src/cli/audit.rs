//! `souk audit`: whether every event has had its effect, once and in order, asked of a running
//! server.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::remote::{Remote, print_json, print_table, shown};

/// Events and rows that one request looks at.
const LOOKED_AT_ONCE: &str = "50000";
/// What is counted of each subscription.
const COUNTS: [&str; 6] =
    ["checked", "missing", "duplicate_effects", "out_of_order", "pending", "excused"];
/// What is wrong in any number.
const WRONG: [&str; 3] = ["missing", "duplicate_effects", "out_of_order"];

/// `souk audit`.
#[derive(Args)]
pub(super) struct Options {
    /// Show what the last audit found that the server made by itself, and look at nothing anew
    #[arg(long)]
    last: bool,
}

/// Looks at the whole journal, part by part. The exit code is 1 if something is wrong.
pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    if options.last {
        return last(&remote).await;
    }
    let progress = ProgressBar::new_spinner();
    progress.set_style(ProgressStyle::with_template("{spinner} {human_pos} events  {elapsed}")?);
    let mut whole = Whole::default();
    let mut cursor = None::<String>;
    loop {
        let mut query = vec![("limit", LOOKED_AT_ONCE)];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let part = remote.get("/admin/audit", &query).await?.body;
        whole.add(&part);
        progress.set_position(whole.events);
        cursor = part["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    progress.finish_and_clear();
    whole.print(remote.is_json());
    Ok(if whole.is_wrong() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What the server found by itself. The exit code is 1 also when it has found nothing yet.
async fn last(remote: &Remote) -> anyhow::Result<ExitCode> {
    let standing = remote.get("/admin/audit/last", &()).await?.body;
    let found = &standing["last"];
    if found.is_null() {
        if remote.is_json() {
            print_json(&standing);
        } else if standing["interval_seconds"] == 0 {
            println!("This server makes no audits by itself: AUDIT_INTERVAL is 0s.");
        } else {
            println!(
                "No audit is over since the start; the next begins at {}.",
                shown(&standing["next_at"])
            );
        }
        return Ok(ExitCode::FAILURE);
    }
    let mut whole = Whole::default();
    whole.add(&found["report"]);
    if remote.is_json() {
        print_json(&standing);
    } else {
        whole.print(false);
        println!("Audited from {} to {}.", shown(&found["started_at"]), shown(&found["ended_at"]));
    }
    Ok(if whole.is_wrong() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What all parts found together.
#[derive(Default)]
struct Whole {
    events: u64,
    subscriptions: BTreeMap<String, BTreeMap<&'static str, u64>>,
    findings: Vec<Value>,
}

impl Whole {
    fn add(&mut self, part: &Value) {
        let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_default();
        self.events += number(part, "events");
        for of in part["subscriptions"].as_array().into_iter().flatten() {
            let name = of["subscription"].as_str().unwrap_or_default().to_owned();
            let counts = self.subscriptions.entry(name).or_default();
            for name in COUNTS {
                *counts.entry(name).or_default() += number(of, name);
            }
        }
        self.findings.extend(part["findings"].as_array().into_iter().flatten().cloned());
    }

    fn is_wrong(&self) -> bool {
        let counts = self.subscriptions.values();
        counts
            .flat_map(|counts| WRONG.map(|name| counts.get(name)))
            .flatten()
            .any(|count| *count > 0)
    }

    fn print(&self, as_json: bool) {
        let rows = self.subscriptions.iter().map(|(name, counts)| {
            let mut row = json!(counts);
            row["subscription"] = json!(name);
            row
        });
        let rows: Vec<Value> = rows.collect();
        if as_json {
            print_json(&json!({
                "events": self.events,
                "healthy": !self.is_wrong(),
                "subscriptions": rows,
                "findings": self.findings,
            }));
            return;
        }
        let headings = [
            ("SUBSCRIPTION", "/subscription"),
            ("CHECKED", "/checked"),
            ("MISSING", "/missing"),
            ("DOUBLED", "/duplicate_effects"),
            ("OUT OF ORDER", "/out_of_order"),
            ("PENDING", "/pending"),
            ("EXCUSED", "/excused"),
        ];
        print_table(&headings, &rows);
        if self.findings.is_empty() {
            println!("\n{} events: every one had its effect, once and in order.", self.events);
            return;
        }
        println!();
        let headings = [
            ("SUBSCRIPTION", "/subscription"),
            ("PROBLEM", "/problem"),
            ("AGGREGATE", "/aggregate_id"),
            ("EVENT", "/event_id"),
            ("DETAIL", "/detail"),
        ];
        print_table(&headings, &self.findings);
    }
}
