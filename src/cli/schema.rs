//! `souk schema check` and `souk schema record`: whether this program reads and writes events as
//! they were recorded.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::domain::registry::{all_descriptors, all_upcasters};
use crate::schemas::{Baseline, Compared, Finding};

#[derive(Subcommand)]
pub(super) enum SchemaCommand {
    /// Compare the program's events with the record; fails on a field that is gone, renamed or
    /// retyped, and on what is not recorded
    Check(Options),
    /// Write the record anew, unless that would hide something that breaks
    Record(Options),
}

#[derive(Args)]
pub(super) struct Options {
    /// The record
    #[arg(long, value_name = "FILE", default_value = "schemas/events.json")]
    baseline: PathBuf,
    /// Tell what was found as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &SchemaCommand) -> ExitCode {
    let done = match command {
        SchemaCommand::Check(options) => check(options),
        SchemaCommand::Record(options) => record(options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("souk: {error:#}");
        ExitCode::FAILURE
    })
}

fn now() -> Baseline {
    Baseline::of(all_descriptors())
}

fn upcasts(event_type: &str, from: u16) -> bool {
    all_upcasters().any(|upcaster| upcaster.event_type == event_type && upcaster.from == from)
}

fn read(path: &Path) -> anyhow::Result<Baseline> {
    let text = std::fs::read(path).with_context(|| {
        format!("cannot read the record {}: --baseline names it", path.display())
    })?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no record", path.display()))
}

fn check(options: &Options) -> anyhow::Result<ExitCode> {
    let now = now();
    let Compared { broken, unrecorded } = read(&options.baseline)?.compare(&now, upcasts);
    if options.json {
        let shown = |findings: &[Finding]| -> Vec<_> {
            let shown = |finding: &Finding| json!({ "event_type": finding.event_type, "field": finding.field, "what": finding.what });
            findings.iter().map(shown).collect()
        };
        let told = json!({ "event_types": now.0.len(), "broken": shown(&broken), "unrecorded": shown(&unrecorded) });
        println!("{told}");
    } else {
        for finding in broken.iter().chain(&unrecorded) {
            println!("{finding}");
        }
        if broken.is_empty() && unrecorded.is_empty() {
            println!("{} event types, all as recorded", now.0.len());
        } else if broken.is_empty() {
            println!("Nothing is broken; `souk schema record` records what is new");
        }
    }
    Ok(if broken.is_empty() && unrecorded.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn record(options: &Options) -> anyhow::Result<ExitCode> {
    let path = &options.baseline;
    let now = now();
    if path.exists() {
        let broken = read(path)?.compare(&now, upcasts).broken;
        if !broken.is_empty() {
            for finding in &broken {
                println!("{finding}");
            }
            bail!(
                "nothing was recorded: what breaks the readers of stored events must be mended first"
            );
        }
    }
    let mut text = serde_json::to_string_pretty(&now)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} event types recorded in {}", now.0.len(), path.display());
    Ok(ExitCode::SUCCESS)
}
