//! `souk dlq`: the dead letters of a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::remote::{Remote, part, print_json, print_table, shown};

/// How many letters are listed when nobody says otherwise.
const ROWS_DEFAULT: usize = 1_000;

/// `souk dlq`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Subcommand)]
enum DlqCommand {
    /// List letters, by partition, subscription and position
    List {
        #[command(flatten)]
        filter: Filter,
        /// dead, waiting or skipped
        #[arg(long)]
        state: Option<String>,
        /// How many rows at most
        #[arg(long, default_value_t = ROWS_DEFAULT)]
        limit: usize,
    },
    /// Letters by kind of failure, the most frequent first
    Groups {
        #[command(flatten)]
        filter: Filter,
    },
    /// A key's letters: the first with its cause and its event, and what waits behind it
    Show {
        #[command(flatten)]
        queue: Queue,
    },
    /// Try again, in order
    Retry(Work),
    /// Set the first letter of a key aside; what waits behind it goes on
    Skip(Work),
    /// Give the first letter of a key up; what waits behind it goes on
    Discard(Work),
}

/// Which letters.
#[derive(Args)]
struct Filter {
    /// Of one subscription
    #[arg(long)]
    subscription: Option<String>,
    /// transient or permanent
    #[arg(long)]
    class: Option<String>,
    /// Of one type of event
    #[arg(long)]
    event_type: Option<String>,
    /// That failed in one way, as `groups` names it
    #[arg(long)]
    fingerprint: Option<String>,
}

impl Filter {
    fn members(&self) -> Vec<(&'static str, String)> {
        let members = [
            ("subscription", &self.subscription),
            ("class", &self.class),
            ("event_type", &self.event_type),
            ("fingerprint", &self.fingerprint),
        ];
        let given = |(name, value): (&'static str, &Option<String>)| Some((name, value.clone()?));
        members.into_iter().filter_map(given).collect()
    }
}

/// A key of a subscription.
#[derive(Args)]
struct Queue {
    /// The subscription
    subscription: String,
    /// The partition
    partition: u16,
    /// The key
    key: Uuid,
}

impl Queue {
    fn path(&self) -> String {
        format!("/dlq/{}/{}/{}", part(&self.subscription), self.partition, self.key)
    }
}

/// One key's letters, or with --all those that a filter means.
#[derive(Args)]
struct Work {
    /// The subscription of one key's letters
    #[arg(requires = "key", required_unless_present = "all")]
    name: Option<String>,
    /// The partition
    #[arg(requires = "key")]
    partition: Option<u16>,
    /// The key
    key: Option<Uuid>,
    /// The position of a skipped letter, to work it alone
    #[arg(long, requires = "key")]
    position: Option<u64>,
    /// All letters that the filter means, instead of one key's
    #[arg(long, conflicts_with = "key")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// With --all: how many letters at most
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// With --all: do it, rather than say what would be done
    #[arg(long)]
    yes: bool,
    /// Why; it is recorded
    #[arg(long)]
    reason: Option<String>,
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    match options.command {
        DlqCommand::List { filter, state, limit } => list(&remote, &filter, state, limit).await,
        DlqCommand::Groups { filter } => groups(&remote, &filter).await,
        DlqCommand::Show { queue } => show(&remote, &queue).await,
        DlqCommand::Retry(work) => do_work(&remote, "retry", work).await,
        DlqCommand::Skip(work) => do_work(&remote, "skip", work).await,
        DlqCommand::Discard(work) => do_work(&remote, "discard", work).await,
    }
}

async fn list(
    remote: &Remote,
    filter: &Filter,
    state: Option<String>,
    limit: usize,
) -> anyhow::Result<ExitCode> {
    let mut query = filter.members();
    query.extend(state.map(|state| ("state", state)));
    let (rows, more) = remote.list("/dlq", &query, limit).await?;
    if remote.is_json() {
        print_json(&json!({ "data": rows, "has_more": more }));
    } else if rows.is_empty() {
        println!("There are no such letters.");
    } else {
        print_letters(&rows);
        if more {
            println!("There are more: name a filter, or a greater --limit.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_letters(rows: &[Value]) {
    let headings = [
        ("SUBSCRIPTION", "/subscription"),
        ("PARTITION", "/partition"),
        ("KEY", "/key"),
        ("POSITION", "/position"),
        ("EVENT", "/event_type"),
        ("STATE", "/state"),
        ("CLASS", "/class"),
        ("ATTEMPTS", "/attempts"),
        ("LAST FAILED", "/last_failed_at"),
        ("ERROR", "/error"),
    ];
    print_table(&headings, rows);
}

async fn groups(remote: &Remote, filter: &Filter) -> anyhow::Result<ExitCode> {
    let (rows, more) = remote.list("/dlq/groups", &filter.members(), usize::MAX).await?;
    if remote.is_json() {
        print_json(&json!({ "data": rows, "has_more": more }));
    } else if rows.is_empty() {
        println!("There are no such letters.");
    } else {
        let headings = [
            ("FINGERPRINT", "/fingerprint"),
            ("COUNT", "/count"),
            ("SUBSCRIPTION", "/subscription"),
            ("CLASS", "/class"),
            ("FIRST SEEN", "/first_seen"),
            ("LAST SEEN", "/last_seen"),
            ("MESSAGE", "/message"),
        ];
        print_table(&headings, &rows);
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(remote: &Remote, queue: &Queue) -> anyhow::Result<ExitCode> {
    let body = remote.get(&queue.path(), &()).await?.body;
    if remote.is_json() {
        print_json(&body);
        return Ok(ExitCode::SUCCESS);
    }
    if body["head"].is_null() {
        println!("The key is not held up.");
    } else {
        print_letters(std::slice::from_ref(&body["head"]));
        println!("\n{} wait behind it. Its event:", shown(&body["waiting"]));
        print_json(&body["event"]);
    }
    let skipped = body["skipped"].as_array().map_or(&[][..], Vec::as_slice);
    if !skipped.is_empty() {
        println!("\nSet aside:");
        print_letters(skipped);
    }
    Ok(ExitCode::SUCCESS)
}

async fn do_work(remote: &Remote, verb: &str, work: Work) -> anyhow::Result<ExitCode> {
    let (Some(subscription), Some(partition), Some(key)) = (&work.name, work.partition, work.key)
    else {
        return do_all(remote, verb, &work).await;
    };
    let queue = Queue { subscription: subscription.clone(), partition, key };
    let mut body = json!({ "reason": work.reason });
    // What is worked is the letter that is there now; somebody else may be at it too.
    let tag = match work.position {
        Some(position) => {
            body["position"] = json!(position);
            Some("*".to_owned())
        }
        None => remote.get(&queue.path(), &()).await?.etag,
    };
    let mut request = remote.request(Method::POST, &format!("{}/{verb}", queue.path()));
    if let Some(tag) = tag {
        request = request.header("if-match", tag);
    }
    let done = remote.send(request.json(&body)).await?.body;
    if remote.is_json() {
        print_json(&done);
    } else {
        let [handled, discarded, skipped, left] =
            ["handled", "discarded", "skipped", "left"].map(|name| shown(&done[name]));
        println!("{handled} handled, {discarded} discarded, {skipped} skipped; {left} left.");
    }
    Ok(if done["left"] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn do_all(remote: &Remote, verb: &str, work: &Work) -> anyhow::Result<ExitCode> {
    let mut body = json!({ "limit": work.limit, "dry_run": !work.yes, "reason": work.reason });
    for (name, value) in work.filter.members() {
        body[name] = json!(value);
    }
    let done = remote.post(&format!("/dlq/{verb}"), &body).await?.body;
    if remote.is_json() {
        print_json(&done);
        return Ok(ExitCode::SUCCESS);
    }
    let headings = [
        ("SUBSCRIPTION", "/subscription"),
        ("PARTITION", "/partition"),
        ("KEY", "/key"),
        ("POSITION", "/position"),
        ("OUTCOME", "/outcome"),
        ("HANDLED", "/handled"),
        ("LEFT", "/left"),
        ("DETAIL", "/detail"),
    ];
    print_table(&headings, done["letters"].as_array().into_iter().flatten());
    println!("\n{} letters matched; {} left.", shown(&done["matched"]), shown(&done["left"]));
    if !work.yes {
        println!("Nothing was done: add --yes to do it.");
    }
    Ok(ExitCode::SUCCESS)
}
