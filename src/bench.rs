//! `souk bench`: how fast this build is on this machine, measured by the program itself.
//!
//! ```text
//!   Server (a child process) ◀── HTTP/1.1, keep-alive ── load (threads of this process)
//!      └── journal ◀── before and after each phase ── check
//!   raw: the same kind of journal, batches of ready events, nothing else
//! ```
//!
//! [`inside`] leaves HTTP out: the service runs in this process and is given its commands directly.
//!
//! Every figure is a ratio's half: the echo, the commands and the raw inserts run one after the
//! other on the same machine, and each phase is checked against the journal, so that a fast answer
//! that stored nothing is an error and not a record. Behind the feature `bench`: no delivered
//! program carries it.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use souk_actors::world::{SystemWorld, World as _};

mod check;
mod client;
pub mod compare;
pub mod html;
mod inside;
pub mod load;
mod market;
pub mod measure;
pub mod overload;
pub mod place;
mod progress;
pub mod rebuild;
pub mod report;
pub mod restart;
mod scrape;
mod scripts;
mod server;
pub mod tally;
mod wire;

/// Gives work a folder of its own in `parent` and removes it afterwards.
async fn in_folder<T, F>(parent: &Path, work: impl FnOnce(PathBuf) -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let folder = parent.join(format!("souk-bench-{}", SystemWorld::new().new_id().simple()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let done = work(folder.clone()).await;
    let removed = std::fs::remove_dir_all(&folder)
        .with_context(|| format!("{} is left behind", folder.display()));
    // What went wrong with the work says more than that its files are still there.
    done.and_then(|done| removed.map(|()| done))
}
