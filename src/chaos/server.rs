//! The server under test: a process of its own that is started, watched, stopped and killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::oneshot;

/// How long a server may take to listen, and to end when asked to.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Reads the ids of servers, one a line, and kills the last of them when the run is gone, however it
/// ended: no server outlives the run.
const WATCHDOG: &str = "while read -r id; do last=$id; done; [ -n \"$last\" ] && kill -9 \"$last\"";

/// Sees to it that no server outlives the run.
#[derive(Debug)]
pub(super) struct Watchdog(Child);

impl Watchdog {
    pub fn start() -> anyhow::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG]).stdin(Stdio::piped());
        // What is typed at the run's terminal does not reach it.
        let started = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        Ok(Self(started.context("a shell to watch over the servers")?))
    }

    /// From now on this is the server; none: there is none.
    pub fn watch(&mut self, server: Option<u32>) -> anyhow::Result<()> {
        let line = server.map(|id| id.to_string()).unwrap_or_default();
        let input = self.0.stdin.as_mut().context("it listens")?;
        Ok(input.write_all(format!("{line}\n").as_bytes())?)
    }
}

/// The end of its input ends it.
impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _: std::io::Result<ExitStatus> = self.0.wait();
    }
}

/// How a server is started.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// The folder of its files.
    pub folder: PathBuf,
    /// Where its log goes, life after life.
    pub log: PathBuf,
    /// Variables of its environment.
    pub variables: Vec<(String, String)>,
}

/// A server that runs.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// How it is reached.
    pub url: String,
}

/// How an attempt to start a server ended.
pub(super) enum Started {
    /// It runs.
    Running(Server),
    /// It ended before it listened.
    Ended(ExitStatus),
}

impl Launch {
    /// Starts a server, with these fault points armed, and waits until it says where it listens.
    pub async fn start(&self, points: Option<&str>) -> anyhow::Result<Started> {
        let program = std::env::current_exe().context("where is this program?")?;
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .env_clear()
            .env("DATA_DIR", &self.folder)
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("LOG_LEVEL", "warn")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        if let Some(points) = points {
            command.env("SOUK_FAULT_POINTS", points);
        }
        let mut child = command.spawn().context("cannot start a server")?;
        let output = child.stdout.take().context("the server's output")?;
        let (say, said) = oneshot::channel();
        std::thread::spawn(move || {
            let mut say = Some(say);
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let url = line.split_whitespace().find(|word| word.starts_with("http://"));
                if let Some((url, say)) = url.and_then(|url| Some((url, say.take()?))) {
                    // Nobody listens any more if the server took too long.
                    let _: Result<(), String> = say.send(url.to_owned());
                }
            }
        });
        match tokio::time::timeout(PATIENCE, said).await {
            Ok(Ok(url)) => Ok(Started::Running(Server { child, url })),
            // Its output ended, and so did it.
            Ok(Err(_)) => Ok(Started::Ended(child.wait()?)),
            Err(_) => {
                child.kill()?;
                child.wait()?;
                bail!("the server did not say where it listens within {PATIENCE:?}")
            }
        }
    }

    /// What the development administrator is known by.
    pub fn admin_token(&self) -> anyhow::Result<String> {
        let path = self.folder.join(crate::serve::ADMIN_TOKEN_FILE);
        Ok(std::fs::read_to_string(path)?.trim().to_owned())
    }
}

impl Server {
    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it has ended, at most so long.
    pub async fn end_within(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let until = Instant::now() + limit;
        loop {
            let ended = self.ended()?;
            if ended.is_some() || Instant::now() >= until {
                return Ok(ended);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Kills it at once, as a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let script = format!("kill -{name} {}", self.id());
        let sent = Command::new("sh").args(["-c", &script]).status()?;
        anyhow::ensure!(sent.success(), "SIG{name} could not be sent");
        Ok(())
    }

    /// Asks it to stop and waits until it has.
    pub async fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        match self.end_within(PATIENCE).await? {
            Some(status) => Ok(status),
            None => {
                self.kill()?;
                bail!("the server does not end within {PATIENCE:?} when it is asked to")
            }
        }
    }
}

/// No server outlives the run.
impl Drop for Server {
    fn drop(&mut self) {
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<ExitStatus> = self.child.wait();
    }
}

/// Lines of a log that tell of a panic.
pub(super) fn panics_in(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let panics = text.lines().filter(|line| line.contains("panicked"));
    panics.map(|line| line.chars().take(400).collect()).collect()
}
