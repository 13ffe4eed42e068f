//! Looks at how much space is left for the files of SQLite, and has the runtime take nothing new
//! from outside before a disk is full.
//!
//! A full disk is survived too, but then nothing at all can be written. What is kept free here is
//! for what was begun: sagas, timers and subscribers go on, and so does the journal's own upkeep.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use souk_actors::command::Refusal;
use souk_actors::runtime::Runtime;
use tokio::time::MissedTickBehavior;

use crate::config::{Database, Storage};
use crate::gate::{Change, Gate};

/// What is said while there is too little space.
pub const LOW: Refusal = Refusal {
    code: "disk_low",
    message: "the service's disk is almost full, so nothing new is taken and nothing happened; \
              reads go on. Once an operator has freed some space, repeat this",
    retry_after: Duration::from_secs(10),
};

/// How often the disks are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// One file system, by a folder on it.
#[derive(Debug)]
struct Volume {
    name: &'static str,
    folder: PathBuf,
    /// Whether the latest look failed; it is logged once.
    is_unknown: bool,
}

/// The look-out of one service.
#[derive(Debug)]
pub struct Watch {
    volumes: [Volume; 2],
    gate: Gate,
    runtime: Runtime,
}

impl Watch {
    /// One for the files of journal and read models; none where there are none, or nobody wants to
    /// know.
    pub fn new(storage: &Storage, runtime: Runtime) -> Option<Self> {
        let Database::Sqlite(journal) = &storage.database else { return None };
        if storage.disk_free_min == 0 {
            return None;
        }
        let folder = journal.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let volume = |name, folder| Volume { name, folder, is_unknown: false };
        Some(Self {
            volumes: [volume("journal", folder), volume("read", storage.data_dir.clone())],
            gate: Gate::new(storage.disk_free_min),
            runtime,
        })
    }

    /// Looks again and again, for ever.
    pub async fn run(mut self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.look().await;
        }
    }

    /// Looks once. What cannot be looked at leaves things as they are.
    pub async fn look(&mut self) {
        let mut known = Vec::with_capacity(self.volumes.len());
        for volume in &mut self.volumes {
            known.push((volume.free().await, volume.folder.display()));
        }
        if known.iter().any(|(free, _)| free.is_none()) {
            return;
        }
        let least = known.iter().filter_map(|(free, folder)| Some(((*free)?, folder)));
        let Some((free, folder)) = least.min_by_key(|(free, _)| *free) else { return };
        let minimum = self.gate.minimum();
        match self.gate.look(free) {
            Some(Change::Short) => {
                self.runtime.refuse_outside(LOW);
                metrics::gauge!("souk_disk_low").set(1.0);
                tracing::error!(
                    free,
                    minimum,
                    "the disk of {folder} is almost full: nothing new is taken from outside \
                     (DISK_FREE_MIN). Free space on it; commands are taken again by themselves"
                );
            }
            Some(Change::Enough) => {
                self.runtime.accept_outside(LOW);
                metrics::gauge!("souk_disk_low").set(0.0);
                tracing::info!(free, minimum, "there is enough space again: commands are taken");
            }
            None => {}
        }
    }
}

impl Volume {
    /// How many bytes are left for this process.
    async fn free(&mut self) -> Option<u64> {
        let folder = self.folder.clone();
        // A network's file system may take its time.
        let looked = tokio::task::spawn_blocking(move || free_bytes(&folder));
        let free = looked.await.context("the look was broken off").and_then(|free| {
            free.with_context(|| format!("cannot ask for the space of {}", self.folder.display()))
        });
        match free {
            Ok(free) => {
                self.is_unknown = false;
                #[expect(clippy::cast_precision_loss, reason = "a gauge")]
                metrics::gauge!("souk_disk_free_bytes", "volume" => self.name).set(free as f64);
                Some(free)
            }
            Err(error) => {
                if !self.is_unknown {
                    tracing::warn!("{error:#}: nobody knows whether it is almost full");
                }
                self.is_unknown = true;
                None
            }
        }
    }
}

/// What is left on the file system of a folder, for whoever has no special rights.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let known = rustix::fs::statvfs(folder)?;
    Ok(known.f_bavail.saturating_mul(known.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}
