//! A PostgreSQL of one's own, for tests: on a free port of the loopback interface, in a temporary
//! folder, gone with the test process however that ends.
//!
//! A small shell process watches over it. It holds the reading end of a pipe; when the test process
//! ends, also by a signal that cannot be caught, the pipe ends, and the shell ends every process of
//! the server and removes the folder.

#![allow(clippy::unwrap_used, reason = "a kit for tests")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

/// Names the folder with `initdb` and `postgres`, where the newest installed one is not wanted.
pub const BINARIES_VARIABLE: &str = "SOUK_TEST_POSTGRES_BIN";

/// The role that owns everything.
const ROLE: &str = "postgres";
/// Below the ports that the system gives to outgoing connections, so that none of those takes the
/// port while the server is stopped.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const STARTS_MAX: u32 = 20;
/// How much of its log is shown when something fails.
const LAST_LINES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads until the test process is gone, then ends what works in the data folder (every process of
/// PostgreSQL does) and removes it all. `$1`: the folder.
const WATCHDOG: &str = r#"
read -r _
processes() {
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/cwd")" = "$1/data" ] && echo "${process#/proc/}"
    done
}
signal() { for id in $(processes "$2"); do kill "-$1" "$id"; done; }
postmaster=$(head -n 1 "$1/data/postmaster.pid")
segment=$(sed -n 7p "$1/data/postmaster.pid" | awk '{ print $2 }')
signal CONT "$1"
processes "$1" | grep -qx "$postmaster" && kill -QUIT "$postmaster"
tries=50
while [ -n "$(processes "$1")" ] && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
signal KILL "$1"
[ -n "$segment" ] && ipcrm -m "$segment"
rm -rf "$1"
"#;

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether commits are synced to disk, as they are by default. Without it tests of behaviour
    /// are faster; tests of durability need it.
    pub fsync: bool,
    /// Further settings, by name.
    pub settings: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: true, settings: BTreeMap::new() }
    }
}

impl Options {
    /// Commits that are not synced: for tests in which nothing but processes crashes.
    pub fn fast() -> Self {
        Self { fsync: false, ..Self::default() }
    }

    /// With one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A running (or stopped) PostgreSQL server.
#[derive(Debug)]
pub struct Server {
    binaries: PathBuf,
    folder: PathBuf,
    options: Options,
    owner: Option<Owner>,
    port: u16,
    postmaster: Mutex<Option<Child>>,
    databases: AtomicU32,
    watchdog: Child,
}

/// Who runs the server when the tests run as root, which it refuses to do.
#[derive(Debug, Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    fn needed() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        if ids.split_whitespace().nth(1) != Some("0") {
            return None;
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let find = |name: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut ids = line.split(':').skip(2);
            let (user, group) = (ids.next()?.parse().ok()?, ids.next()?.parse().ok()?);
            Some(Self { user, group })
        };
        Some(find(ROLE).or_else(|| find("nobody")).expect("a user to run PostgreSQL as"))
    }
}

impl Server {
    /// Sets a server up and starts it. It is ready when this returns.
    ///
    /// # Panics
    /// When PostgreSQL is not installed (the message says what to install) or does not start.
    pub fn start(options: Options) -> Self {
        let binaries = find_binaries();
        let folder =
            std::env::temp_dir().join(format!("souk-postgres-{:x}", rand::random::<u128>()));
        std::fs::create_dir(&folder).unwrap();
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "souk-postgres-watchdog"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell to watch over PostgreSQL");
        let owner = Owner::needed();
        if let Some(Owner { user, group }) = owner {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
        }
        let mut server = Self {
            binaries,
            folder,
            options,
            owner,
            port: 0,
            postmaster: Mutex::new(None),
            databases: AtomicU32::new(0),
            watchdog,
        };
        server.initialise();
        for _ in 0..STARTS_MAX {
            server.port = free_port();
            if server.spawn() {
                return server;
            }
        }
        panic!("PostgreSQL did not start:\n{}", server.log());
    }

    /// One server for the whole test process, not synced: for tests that need a database and leave
    /// the server alone.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Options::fast()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir(&self.folder).env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
        if let Some(Owner { user, group }) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }

    fn initialise(&self) {
        let made = self
            .command("initdb")
            .arg("--pgdata")
            .arg(self.data())
            .args(["--no-sync", "--locale=C", "--encoding=UTF8", "--auth=trust"])
            .args(["--username", ROLE])
            .output()
            .expect("initdb can be run");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb failed:\n{said}");
    }

    /// Starts the server and waits until it takes connections. Whether it does.
    fn spawn(&self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let on = if self.options.fsync { "on" } else { "off" };
        let port = self.port.to_string();
        let mut settings = BTreeMap::from([
            ("fsync", on),
            ("full_page_writes", on),
            ("listen_addresses", "127.0.0.1"),
            ("max_connections", "300"),
            ("port", &port),
            ("shared_buffers", "64MB"),
            ("unix_socket_directories", ""),
        ]);
        settings.extend(self.options.settings.iter().map(|(name, value)| (&**name, &**value)));
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).stdout(log.try_clone().unwrap()).stderr(log);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut child = command.spawn().expect("postgres can be run");
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            if self.is_ready(child.id()) {
                *self.lock() = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }

    /// What the server says of itself in its own file: the first line is its id, the eighth says
    /// how it feels.
    fn is_ready(&self, id: u32) -> bool {
        let said = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = said.lines().map(str::trim);
        lines.next() == Some(&id.to_string()) && lines.nth(6) == Some("ready")
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Where its files are.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the postmaster; none while the server is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Child::id)
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database and gives its address.
    ///
    /// # Panics
    /// When the server does not do it.
    pub async fn create_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("test_{number}");
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Runs one statement as the owner of everything.
    ///
    /// # Panics
    /// When the server does not do it.
    pub async fn execute(&self, database: &str, statement: &str) {
        let outcome = self.try_to_execute(database, statement).await;
        if let Err(error) = outcome {
            panic!("PostgreSQL does not do `{statement}`: {error}\n{}", self.last_said());
        }
    }

    async fn try_to_execute(&self, database: &str, statement: &str) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect(&self.url(database)).await?;
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&mut connection).await?;
        connection.close().await
    }

    /// The end of its log, and how much room its disk has: a full one is the usual reason of a
    /// server that is gone.
    fn last_said(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(LAST_LINES).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        let room = Command::new("df").arg("-h").arg(&self.folder).output();
        let room = room.map(|df| String::from_utf8_lossy(&df.stdout).into_owned());
        format!("{}\n{}", lines.join("\n"), room.unwrap_or_default())
    }

    /// Stops it in order, as an operator does: sessions are ended, nothing is lost.
    pub fn stop(&self) {
        self.end("INT");
    }

    /// Ends it and all its sessions at once, as a power cut or a kill does.
    pub fn kill(&self) {
        self.pause();
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                break;
            }
            signal("KILL", &processes);
            // What has ended stays in the list until it is waited for.
            if let Some(mut child) = self.lock().take() {
                let _ = child.wait();
            }
        }
        self.lock().take();
    }

    /// Starts it again, on the same port, after [`Server::stop`] or [`Server::kill`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        assert!(self.pid().is_none(), "it is running");
        assert!(self.spawn(), "PostgreSQL did not start again:\n{}", self.log());
    }

    /// Stops every process of it without ending any: connections stay open and nobody answers.
    pub fn pause(&self) {
        signal("STOP", &self.pid().into_iter().collect::<Vec<_>>());
        signal("STOP", &self.processes());
    }

    /// The end of [`Server::pause`].
    pub fn resume(&self) {
        signal("CONT", &self.processes());
    }

    fn end(&self, how: &str) {
        let Some(mut child) = self.lock().take() else { return };
        self.resume();
        signal(how, &[child.id()]);
        let _ = child.wait();
    }

    /// Every process of it: they all work in the data folder.
    fn processes(&self) -> Vec<u32> {
        let data = self.data();
        let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let works_here = |id: &u32| {
            std::fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|folder| folder == data)
        };
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(works_here)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end("QUIT");
        // The end of its input: it removes the folder.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

fn signal(name: &str, processes: &[u32]) {
    if processes.is_empty() {
        return;
    }
    let ids: Vec<_> = processes.iter().map(u32::to_string).collect();
    let script = format!("kill -{name} {}", ids.join(" "));
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
}

/// A port of the loopback interface that nobody uses, and that the system gives nobody who does not
/// ask for it: whoever listens there can be stopped and started again.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn find_binaries() -> PathBuf {
    let whole = |folder: &Path| ["initdb", "postgres"].iter().all(|n| folder.join(n).is_file());
    if let Some(folder) = std::env::var_os(BINARIES_VARIABLE) {
        let folder = PathBuf::from(folder);
        assert!(whole(&folder), "{BINARIES_VARIABLE}: no initdb and postgres in {folder:?}");
        return folder;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = std::env::split_paths(&path).find(|folder| whole(folder)) {
        return folder;
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = installed
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .map(|(version, folder)| (version, folder.join("bin")))
        .filter(|(_, folder)| whole(folder))
        .max();
    let (_, folder) = newest.unwrap_or_else(|| {
        panic!(
            "these tests need PostgreSQL: install its server (Debian: apt-get install postgresql), \
             or name the folder of initdb and postgres in {BINARIES_VARIABLE}"
        )
    });
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_stops_crashes_and_starts_again_with_what_it_stored() {
        let server = Server::start(Options::default());
        let url = server.create_database().await;
        server.execute("test_1", "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").await;
        server.kill();
        assert!(PgConnection::connect(&url).await.is_err());
        assert_eq!((server.pid(), server.processes()), (None, Vec::new()));
        server.start_again();
        server.execute("test_1", "INSERT INTO kept VALUES (2)").await;
        server.stop();
        server.start_again();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let sum: i64 =
            sqlx::query_scalar("SELECT sum(n) FROM kept").fetch_one(&mut connection).await.unwrap();
        assert_eq!(sum, 3);
        let folder = server.folder.clone();
        drop(server);
        assert!(!folder.exists());
    }
    const HOLDER: &str = "SOUK_TEST_HOLDS_A_POSTGRES";

    /// Runs itself once more in a process of its own, and kills that.
    #[test]
    fn a_server_does_not_outlive_a_killed_test_process() {
        use std::io::BufRead;
        if std::env::var_os(HOLDER).is_some() {
            let server = Server::start(Options::fast());
            println!("\nholding {}", server.folder.display());
            loop {
                std::thread::park();
            }
        }
        let name = "testing::postgres::tests::a_server_does_not_outlive_a_killed_test_process";
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(HOLDER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::io::BufReader::new(holder.stdout.take().unwrap());
        let folder = said
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("holding ").map(PathBuf::from))
            .expect("the other process starts a server");
        assert!(folder.exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        let until = Instant::now() + PATIENCE;
        while folder.exists() {
            assert!(Instant::now() < until, "{} is still there", folder.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
