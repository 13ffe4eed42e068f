//! A server of its own for a measurement: this same program as a child process, so that the load
//! does not share its threads and its allocator.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use super::client::Client;
use crate::serve::ADMIN_TOKEN_FILE;

/// Kernel ticks a second in `/proc/<pid>/stat`: fixed for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What it logs, in its folder.
const LOG_FILE: &str = "server.log";

/// What a service on this folder is told.
pub(super) fn variables(folder: &Path, database_url: Option<&str>) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("APP_ENV", "development".to_owned()),
        ("DATA_DIR", folder.to_string_lossy().into_owned()),
        ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
        ("SHUTDOWN_DELAY", "0s".to_owned()),
        // People prove their addresses without a detour through the mail.
        ("REVEAL_VERIFICATION_TOKEN", "true".to_owned()),
    ];
    variables.extend(database_url.map(|url| ("DATABASE_URL", url.to_owned())));
    variables
}

/// The development administrator of a service on this folder.
pub(super) fn admin(folder: &Path, address: SocketAddr) -> anyhow::Result<Client> {
    let path = folder.join(ADMIN_TOKEN_FILE);
    let token = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Client::new(&format!("http://{address}"), &token))
}

/// A server that is running; it is killed when this is dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Server {
    /// Starts one on this folder and, if there is one, this journal. Waits until it listens.
    pub fn start(folder: &Path, database_url: Option<&str>) -> anyhow::Result<Self> {
        Self::start_with(folder, database_url, &[])
    }

    /// The same with these settings too.
    pub fn start_with(
        folder: &Path,
        database_url: Option<&str>,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own file")?;
        let mut command = Command::new(program);
        command.arg("serve").env_clear().envs(variables(folder, database_url));
        command.envs(settings.iter().copied());
        // What it logs is not to stand between the progress and the report.
        let log = folder.join(LOG_FILE);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let child = command.spawn().context("the server could not be started")?;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, address, folder: folder.to_owned() };
        let output = server.child.stdout.take().context("its output is piped")?;
        let mut lines = BufReader::new(output).lines();
        for line in &mut lines {
            let line = line?;
            let Some(rest) = line.split("http://").nth(1) else { continue };
            let address = rest.split(' ').next().unwrap_or_default();
            server.address = address.parse().context("where the server listens")?;
            // What it says later must not fill the pipe and stop it. Ends with the server.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(server);
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or_default();
        bail!("the server ended before it listened: {}: {last}", server.child.wait()?)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its development administrator.
    pub(super) fn admin(&self) -> anyhow::Result<Client> {
        admin(&self.folder, self.address)
    }

    /// Processor time it has used so far, in seconds; none where the system does not say.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // The name in parentheses may hold anything; user and system time are 12 and 13 behind it.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
        Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }

    /// Memory of its own that it has in use, in KiB; none where the system does not say.
    pub fn memory_kib(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// It ends at once: what it has acknowledged must be in the journal all the same.
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
