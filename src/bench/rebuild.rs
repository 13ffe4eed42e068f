//! What a rebuild of a read model costs those who read meanwhile.
//!
//! A market with many listings and a long journal is read and changed at a steady rate, first at
//! rest and then while the model of listings is filled anew beside the one that serves; in the
//! middle the server is killed and goes on. Then the new version takes over, and the old one again.
//! Nothing may fail, and no mail may go out twice.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use super::client::Client;
use super::in_folder;
use super::load::{self, Answer, Asked, Judged, Load, Outcome, Script, Until};
use super::market::Market;
use super::place::{Place, StoreKind, at_rest, heads};
use super::progress::say;
use super::report::Percentiles;
use super::scripts::{self, Change, LIST, Pick, shown};
use super::server::Server;

/// The read model that is rebuilt: the one that is read.
const PROJECTION: &str = "listings-view";
/// How long one stretch of the load is while the version is filled; between two its progress is
/// looked at.
const STRETCH: Duration = Duration::from_secs(5);
/// How many connections the steady load has.
const CONNECTIONS: usize = 32;
/// How many connections write the journal's events beforehand.
const WRITERS: usize = 256;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many events the journal is to have.
    pub events: u64,
    /// How many listings they are about.
    pub listings: usize,
    /// How many requests a second are made meanwhile; 0: as many as 32 connections can.
    pub rate: f64,
    /// How many events a second the version is filled with at most.
    pub rows_per_second: u32,
    /// How long each other phase is timed.
    pub time: Duration,
    /// Whether the server is killed half way.
    pub kill: bool,
    /// Which store.
    pub store: StoreKind,
    /// Where the files of the measurement go; a folder of its own is made in it and deleted.
    pub folder: std::path::PathBuf,
}

/// The kinds of request of the steady load, as their places in an outcome.
const KINDS: [&str; 2] = ["read", "change"];
const READ: usize = 0;
const CHANGE: usize = 1;

/// How a phase went.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// What happened meanwhile.
    pub name: &'static str,
    /// Answers a second.
    pub per_second: f64,
    /// How long reads took.
    pub reads: Percentiles,
    /// How long changes took, which wait for the disk.
    pub changes: Percentiles,
    /// Answers below 300.
    pub accepted: u64,
    /// Answers of 500 and above.
    pub failed: u64,
}

/// A whole measurement.
#[derive(Debug, Clone, Serialize)]
pub struct RebuildReport {
    /// `sqlite` or `postgres`.
    pub store: &'static str,
    /// How many events the journal had when the rebuild began.
    pub events: u64,
    /// How many listings they were about.
    pub listings: usize,
    /// How long the version was filled, in seconds, the kill included.
    pub filled_in_seconds: f64,
    /// How far the version was before the kill and when it was first seen after it, in events.
    pub resumed: Option<(u64, u64)>,
    /// How many rows differed between the two versions.
    pub differing: u64,
    /// Mails before and after.
    pub mails: (usize, usize),
    /// The phases.
    pub phases: Vec<Phase>,
}

impl RebuildReport {
    /// As a table in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} on {}: {} events about {} listings, filled in {:.0} s, {} rows differ\n",
            PROJECTION,
            self.store,
            self.events,
            self.listings,
            self.filled_in_seconds,
            self.differing
        );
        if let Some((before, after)) = self.resumed {
            text.push_str(&format!("killed at {before} events, went on from {after}\n"));
        }
        text.push_str(
            "\n| phase | per second | reads: p50 ms | p95 ms | p99 ms | p95 of at rest \
             | changes: p50 ms | p95 ms | p95 of at rest | failed |\n",
        );
        text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
        let of_rest = |phase: &Phase, p95: fn(&Phase) -> f64| {
            self.phases.first().map_or(1.0, |rest| p95(phase) / p95(rest))
        };
        for phase in &self.phases {
            text.push_str(&format!(
                "| {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} |\n",
                phase.name,
                phase.per_second,
                phase.reads.p50_ms,
                phase.reads.p95_ms,
                phase.reads.p99_ms,
                of_rest(phase, |phase| phase.reads.p95_ms),
                phase.changes.p50_ms,
                phase.changes.p95_ms,
                of_rest(phase, |phase| phase.changes.p95_ms),
                phase.failed,
            ));
        }
        text
    }
}

/// Runs the whole plan.
pub async fn measure(plan: &Plan) -> anyhow::Result<RebuildReport> {
    in_folder(&plan.folder, |folder| async move { measure_in(plan, &folder).await }).await
}

async fn measure_in(plan: &Plan, folder: &std::path::Path) -> anyhow::Result<RebuildReport> {
    let place = Place::new(plan.store, folder).await;
    let mut server = Server::start(folder, place.url())?;
    let journal = place.journal().await?;
    say("a seller and listings");
    let mut market = Market::open(server.admin()?, server.address(), plan.listings).await?;
    let written: u64 = heads(&*journal).await?.iter().sum();
    let per_answer = Change::Price.events();
    let missing = plan.events.saturating_sub(written).div_ceil(per_answer);
    say(&format!("{} events", plan.events));
    let until = Until::Answered(missing);
    let name = Some("writing events");
    let load = Load { connections: WRITERS, threads: 1, until, rate: None, name };
    let wrote = load::run(server.address(), load, changes(&market, Change::Price)).await?;
    ensure!(wrote.accepted == missing, "of {missing} changes {} were accepted", wrote.accepted);
    at_rest(&market.admin, Some(&*journal)).await?;
    let events = heads(&*journal).await?.iter().sum();
    let mails = mails(&market.admin).await?;

    let mut phases = Vec::new();
    // What was written just before is not what is measured.
    say("settling down");
    steady(plan, &server, &market, STRETCH).await?;
    say("at rest");
    phases.push(phase("at rest", &steady(plan, &server, &market, plan.time).await?));

    say("while it is filled");
    let path = format!("/api/v1/admin/projections/{PROJECTION}");
    let ask = json!({ "rows_per_second": plan.rows_per_second, "reason": "souk bench" });
    market.admin.post(&format!("{path}/rebuilds"), &ask).await?;
    let began = std::time::Instant::now();
    let bar = progress(events)?;
    let (mut whole, mut resumed) = (Outcome::new(KINDS.len(), 0)?, None);
    loop {
        whole.add(&steady(plan, &server, &market, STRETCH).await?)?;
        let filled = filled(&market.admin, &path).await?;
        bar.set_position(filled.events);
        if filled.is_level {
            break;
        }
        if plan.kill && resumed.is_none() && filled.events > events / 3 {
            drop(server);
            server = Server::start(folder, place.url())?;
            market = market.at(server.admin()?).await?;
            resumed = Some((filled.events, self::filled(&market.admin, &path).await?.events));
        }
    }
    bar.finish_and_clear();
    let filled_in_seconds = began.elapsed().as_secs_f64();
    phases.push(phase("while it is filled", &whole));

    say("the new version");
    at_rest(&market.admin, Some(&*journal)).await?;
    let differing = differing(&market.admin, &path).await?;
    market.admin.steer(&path, "cut-over").await?;
    phases.push(phase("after the cut-over", &steady(plan, &server, &market, plan.time).await?));
    market.admin.steer(&path, "roll-back").await?;
    phases.push(phase("after the roll-back", &steady(plan, &server, &market, plan.time).await?));
    let after = self::mails(&market.admin).await?;
    let report = RebuildReport {
        store: plan.store.as_str(),
        events,
        listings: plan.listings,
        filled_in_seconds,
        resumed,
        differing,
        mails: (mails, after),
        phases,
    };
    report.check()?;
    Ok(report)
}

impl RebuildReport {
    /// Whether what was measured is worth anything.
    fn check(&self) -> anyhow::Result<()> {
        for phase in &self.phases {
            ensure!(phase.failed == 0, "{}: {} answers of 500 and above", phase.name, phase.failed);
            ensure!(phase.accepted > 0, "{}: nothing was answered", phase.name);
        }
        ensure!(self.differing == 0, "{} rows of the new version differ", self.differing);
        let (before, after) = self.mails;
        ensure!(after == before, "{before} mails before and {after} after");
        if let Some((before, after)) = self.resumed {
            ensure!(after >= before, "at {before} events it was killed, and went on from {after}");
        }
        Ok(())
    }
}

fn phase(name: &'static str, outcome: &Outcome) -> Phase {
    let of = |kind: usize| Percentiles::of(&outcome.kinds[kind].latencies);
    Phase {
        name,
        per_second: outcome.per_second(),
        reads: of(READ),
        changes: of(CHANGE),
        accepted: outcome.accepted,
        failed: outcome.failed,
    }
}

async fn steady(
    plan: &Plan,
    server: &Server,
    market: &Market,
    time: Duration,
) -> anyhow::Result<Outcome> {
    let rate = (plan.rate > 0.0).then_some(plan.rate);
    let (connections, until) = (CONNECTIONS, Until::Elapsed(time));
    let load = Load { connections, threads: 1, until, rate, name: None };
    let script = std::sync::Arc::new(Visitors {
        list: market.seller.asker().request("GET", LIST, "", ""),
        changes: changes(market, Change::Title),
        shown: shown(market),
    });
    let outcome = load::run(server.address(), load, script).await?;
    ensure!(outcome.refused == outcome.failed, "refused with {:?}", outcome.refused_with);
    Ok(outcome)
}

/// Of ten requests eight read the list, one reads a listing and one changes one.
struct Visitors {
    list: Vec<u8>,
    shown: Vec<Vec<u8>>,
    changes: std::sync::Arc<dyn Script>,
}

impl Script for Visitors {
    fn kinds(&self) -> Vec<&'static str> {
        KINDS.to_vec()
    }

    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked {
        match number % 10 {
            0 => {
                self.changes.request(number / 10, out);
                return Asked { kind: CHANGE, ..Asked::default() };
            }
            5 => {
                let count = self.shown.len() as u64;
                let index = usize::try_from(number / 10 % count).unwrap_or(0);
                out.extend_from_slice(&self.shown[index]);
            }
            _ => out.extend_from_slice(&self.list),
        }
        Asked { kind: READ, ..Asked::default() }
    }

    fn answer(&self, _asked: &Asked, answer: &Answer<'_>) -> Judged {
        if answer.status < 300 { Judged::GOOD } else { Judged::BAD }
    }
}

/// Changes of all listings, in turn.
fn changes(market: &Market, change: Change) -> std::sync::Arc<dyn Script> {
    let all = market.listings.len();
    scripts::changes(market, change, all, Pick::InTurn(all as u64)).script
}

struct Filled {
    events: u64,
    is_level: bool,
}

/// How far the version beside the one that serves is.
async fn filled(admin: &Client, path: &str) -> anyhow::Result<Filled> {
    let model = admin.get(path).await?;
    let versions = model["versions"].as_array().context("a read model has versions")?;
    let beside = versions.iter().find(|version| version["serves"] == false);
    let version = beside.context("there is no version beside the one that serves")?;
    let is_level = match version["state"].as_str() {
        Some("level") => true,
        Some("filling") => false,
        _ => bail!("the version is not filled: {version}"),
    };
    let places = version["partitions"].as_array().into_iter().flatten();
    let events = places.filter_map(|place| place["position"].as_u64()).sum();
    Ok(Filled { events, is_level })
}

/// How many rows differ between the two versions.
async fn differing(admin: &Client, path: &str) -> anyhow::Result<u64> {
    let (mut sum, mut cursor) = (0, None::<String>);
    loop {
        let more = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let part = admin.get(&format!("{path}/diff?limit=50000{more}")).await?;
        let counts = ["differing", "only_serving", "only_beside"];
        sum += counts.iter().filter_map(|count| part[*count].as_u64()).sum::<u64>();
        if part["complete"] == true {
            return Ok(sum);
        }
        cursor = part["next_cursor"].as_str().map(str::to_owned);
        ensure!(cursor.is_some(), "a comparison that is not complete goes on");
    }
}

async fn mails(admin: &Client) -> anyhow::Result<usize> {
    let sent: Value = admin.get("/api/v1/dev/outbox?channel=email").await?;
    Ok(sent["data"].as_array().map_or(0, Vec::len))
}

fn progress(events: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(events);
    let template = "{bar:40} {human_pos}/{human_len} events  {per_sec}  {eta}";
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}
