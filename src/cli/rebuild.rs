//! `souk rebuild`: read models of a running server, made anew beside the ones that serve.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use super::remote::{Remote, part, print_json, print_table};

/// How often progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Rows that one request compares.
const COMPARED_AT_ONCE: &str = "50000";

/// `souk rebuild`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: RebuildCommand,
}

#[derive(Subcommand)]
enum RebuildCommand {
    /// Show all read models and their versions
    List,
    /// Fill a second version beside the one that serves, and wait until it is level
    Start {
        /// The read model
        projection: String,
        /// How many events a second to take at most
        #[arg(long, value_name = "NUMBER", default_value_t = 5_000)]
        rows_per_second: u32,
        /// Why; it is recorded
        #[arg(long)]
        reason: Option<String>,
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Compare the version that serves with the one beside it; exit code 1 if they differ
    Diff {
        /// The read model
        projection: String,
    },
    /// Let the new version serve
    CutOver(Target),
    /// Let the older version serve again
    RollBack(Target),
    /// Stop filling the new version for a while
    Pause(Target),
    /// Go on filling it
    Resume(Target),
    /// Drop the version that does not serve
    Discard(Target),
}

#[derive(Args)]
struct Target {
    /// The read model
    projection: String,
    /// Why; it is recorded
    #[arg(long)]
    reason: Option<String>,
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        RebuildCommand::List => {
            let (rows, _) = remote.list("/admin/projections", &[], 1_000).await?;
            print(&remote, &rows);
        }
        RebuildCommand::Start { projection, rows_per_second, reason, no_wait } => {
            let body = json!({ "rows_per_second": rows_per_second, "reason": reason });
            let path = format!("/admin/projections/{}", part(&projection));
            let mut now = remote.post(&format!("{path}/rebuilds"), &body).await?.body;
            if !no_wait {
                now = wait(&remote, &path, now).await?;
            }
            print(&remote, &[now]);
        }
        RebuildCommand::Diff { projection } => return diff(&remote, &projection).await,
        RebuildCommand::CutOver(target) => steer(&remote, "cut-over", target).await?,
        RebuildCommand::RollBack(target) => steer(&remote, "roll-back", target).await?,
        RebuildCommand::Pause(target) => steer(&remote, "pause", target).await?,
        RebuildCommand::Resume(target) => steer(&remote, "resume", target).await?,
        RebuildCommand::Discard(target) => steer(&remote, "discard", target).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The version beside the one that serves.
fn beside(projection: &Value) -> Option<&Value> {
    projection["versions"].as_array()?.iter().find(|version| version["serves"] == false)
}

/// Shows progress until the version is level.
async fn wait(remote: &Remote, path: &str, mut now: Value) -> anyhow::Result<Value> {
    let bar = ProgressBar::new(0);
    let template = "{bar:40} {human_pos}/{human_len} events  {per_sec}  {eta}";
    bar.set_style(ProgressStyle::with_template(template)?);
    loop {
        let Some(version) = beside(&now) else { bail!("somebody discarded the version") };
        let sum = |name: &str| -> u64 {
            let places = version["partitions"].as_array().into_iter().flatten();
            places.filter_map(|place| place[name].as_u64()).sum()
        };
        bar.set_length(sum("head"));
        bar.set_position(sum("position"));
        match version["state"].as_str() {
            Some("filling") => {}
            Some("level") => break,
            Some("failed") => {
                bail!("the version cannot be filled: {}", version["error"])
            }
            _ => bail!("somebody paused it; go on with: souk rebuild resume"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = remote.get(path, &()).await?.body;
    }
    bar.finish_and_clear();
    Ok(now)
}

/// Does something that rests on how the read model is now.
async fn steer(remote: &Remote, what: &str, target: Target) -> anyhow::Result<()> {
    let path = format!("/admin/projections/{}", part(&target.projection));
    let tag = remote.get(&path, &()).await?.etag.unwrap_or_default();
    let request = remote.request(Method::POST, &format!("{path}/{what}"));
    let request = request.header("if-match", tag).json(&json!({ "reason": target.reason }));
    print(remote, &[remote.send(request).await?.body]);
    Ok(())
}

/// Compares all rows, part by part.
async fn diff(remote: &Remote, projection: &str) -> anyhow::Result<ExitCode> {
    const COUNTS: [&str; 5] =
        ["serving_rows", "beside_rows", "differing", "only_serving", "only_beside"];
    let path = format!("/admin/projections/{}/diff", part(projection));
    let (mut counts, mut sample) = ([0; COUNTS.len()], Vec::new());
    let mut cursor = None::<String>;
    loop {
        let mut query = vec![("limit", COMPARED_AT_ONCE)];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let part = remote.get(&path, &query).await?.body;
        for (sum, name) in counts.iter_mut().zip(COUNTS) {
            *sum += part[name].as_u64().unwrap_or_default();
        }
        if sample.is_empty() {
            sample.extend(part["sample"].as_array().into_iter().flatten().cloned());
        }
        cursor = part["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    let is_same = counts[2..].iter().all(|count| *count == 0);
    if remote.is_json() {
        let mut whole = json!({ "same": is_same, "sample": sample });
        for (sum, name) in counts.iter().zip(COUNTS) {
            whole[name] = json!(sum);
        }
        print_json(&whole);
    } else {
        if !sample.is_empty() {
            let headings =
                [("TABLE", "/table"), ("KEY", "/key"), ("", "/kind"), ("COLUMNS", "/columns")];
            print_table(&headings, &sample);
        }
        let [serving, beside, differing, only_serving, only_beside] = counts;
        println!(
            "{serving} rows serve, {beside} are beside them: {differing} differ, {only_serving} are \
             only in the one, {only_beside} only in the other."
        );
    }
    Ok(if is_same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One row a version.
fn print(remote: &Remote, projections: &[Value]) {
    if remote.is_json() {
        match projections {
            [one] => print_json(one),
            all => print_json(&json!({ "data": all })),
        }
        return;
    }
    let mut rows = Vec::new();
    for projection in projections {
        for version in projection["versions"].as_array().into_iter().flatten() {
            let mut row = version.clone();
            row["name"] = projection["name"].clone();
            rows.push(row);
        }
    }
    let headings = [
        ("READ MODEL", "/name"),
        ("VERSION", "/version"),
        ("STATE", "/state"),
        ("SERVES", "/serves"),
        ("BEHIND", "/lag_events"),
        ("A SECOND", "/rate_per_second"),
    ];
    print_table(&headings, &rows);
}
