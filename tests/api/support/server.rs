//! The program: started, watched, stopped and killed.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use souk::tls::http_client;
use souk_actors::testing::postgres;
use tempfile::TempDir;

use super::{Client, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_souk");

/// The program under test: the one that was built for the tests, or `SOUK_TEST_PROGRAM`, a release
/// build for long runs.
fn program() -> String {
    std::env::var("SOUK_TEST_PROGRAM").unwrap_or_else(|_| PROGRAM.to_owned())
}
/// How long the program may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many lines of its log are shown when a test fails.
const LOG_LINES_SHOWN: usize = 60;

const DATABASE_URL: &str = "DATABASE_URL";

/// Whether the tests are for PostgreSQL: `SOUK_TEST_STORE=postgres`.
pub fn on_postgres() -> bool {
    std::env::var("SOUK_TEST_STORE").is_ok_and(|store| store == "postgres")
}

/// How to start a server.
#[derive(Clone, Default)]
pub struct Start {
    variables: BTreeMap<String, String>,
    under: Vec<String>,
    place: Option<PathBuf>,
    on_files: bool,
    http: Option<reqwest::Client>,
}

impl Start {
    /// With a variable of its environment.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// With so many partitions.
    pub fn partitions(self, number: u16) -> Self {
        self.with("PARTITIONS", number)
    }

    /// On files, whatever the tests are for: what is tested is what SQLite does with them.
    pub fn on_files() -> Self {
        Self { on_files: true, ..Self::default() }
    }

    /// As a child of another program, which must put the server itself in its place.
    pub fn under(mut self, program: Vec<String>) -> Self {
        self.under = program;
        self
    }

    /// With requests made by this client.
    pub fn asked_by(mut self, http: reqwest::Client) -> Self {
        self.http = Some(http);
        self
    }

    /// With its folder in this one.
    pub fn within(mut self, place: &Path) -> Self {
        self.place = Some(place.to_owned());
        self
    }

    /// On a database of this PostgreSQL, whatever the tests are for.
    pub async fn on(self, postgres: &postgres::Server) -> Self {
        self.with(DATABASE_URL, postgres.create_database().await)
    }

    /// With enough partitions for what differs with several. The eight that there are by default
    /// cost each test a fifth more time and show nothing else.
    fn in_several_partitions(mut self) -> Self {
        self.variables.entry("PARTITIONS".to_owned()).or_insert_with(|| "3".to_owned());
        self
    }

    /// Starts it in a folder that is deleted afterwards, and where the tests are for PostgreSQL on
    /// a database of its own.
    pub async fn start(self) -> Server {
        let mut server = self.prepare().await;
        server.launch().await;
        server
    }

    /// The same, but it is not ready before [`Server::ready`].
    pub async fn spawn(self) -> Server {
        let mut server = self.prepare().await;
        server.spawn();
        server
    }

    async fn prepare(self) -> Server {
        let place = self.place.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("souk-test-").tempdir_in(place).unwrap();
        let own = self.on_files || self.variables.contains_key(DATABASE_URL);
        let start = match own || !on_postgres() {
            true => self,
            false => self.in_several_partitions().on(postgres::Server::shared()).await,
        };
        Server {
            start,
            folder: Arc::new(folder),
            process: None,
            url: Arc::default(),
            admin: String::new(),
            log: Arc::default(),
            closed: false,
        }
    }
}

/// A server of one test. It is killed when the test is over.
pub struct Server {
    start: Start,
    folder: Arc<TempDir>,
    process: Option<Process>,
    /// Where it listens; another address after each start, and clients follow.
    url: Arc<RwLock<String>>,
    admin: String,
    log: Arc<Mutex<Vec<String>>>,
    closed: bool,
}

struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    /// What it says that is not its log, line by line.
    says: Receiver<String>,
}

impl Server {
    /// A server in development mode, of one partition on SQLite and of three on PostgreSQL.
    pub async fn start() -> Self {
        Start::default().start().await
    }

    /// Starts another one with the same folder, keys and database.
    pub async fn start_beside(&self) -> Self {
        let mut server = Self {
            start: self.start.clone(),
            folder: self.folder.clone(),
            process: None,
            url: Arc::default(),
            admin: String::new(),
            log: Arc::default(),
            closed: false,
        };
        server.launch().await;
        server
    }

    /// Sends it a signal by its name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid());
        let sent = std::process::Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Opens one of its SQLite files.
    pub async fn open_sqlite(&self, file: &str) -> sqlx::SqlitePool {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.folder().join(file));
        sqlx::SqlitePool::connect_with(options).await.unwrap()
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The journal's file, where it is in one.
    pub fn journal(&self) -> PathBuf {
        self.folder().join("journal.db")
    }

    /// The PostgreSQL database that it works on, if it does.
    pub fn database(&self) -> Option<&str> {
        self.start.variables.get(DATABASE_URL).map(String::as_str)
    }

    /// The process's id, while it runs.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").child.id()
    }

    /// Somebody without a token.
    pub fn visitor(&self) -> Client {
        let http = self.start.http.clone().unwrap_or_else(|| http_client().build().unwrap());
        Client::new(http, self.url.clone())
    }

    /// The development administrator.
    pub fn admin(&self) -> Client {
        self.visitor().with_token(&self.admin)
    }

    /// Where it listens now: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The development administrator's token.
    pub fn admin_token(&self) -> &str {
        &self.admin
    }

    /// How much memory it uses, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Every line of its log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line of its log with all of these words.
    pub async fn logged(&self, words: &[&str]) {
        eventually(&format!("{words:?} in the log"), || async {
            let log = self.log();
            log.iter().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        })
        .await;
    }

    /// A command of the program on the same folder and with the same settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(arguments).with("DATA_DIR", self.folder().display());
        for (name, value) in &self.start.variables {
            command = command.with(name, value);
        }
        command
    }

    /// From its next start on its journal is at this address.
    pub fn move_to(&mut self, url: &str) {
        self.set(DATABASE_URL, url);
    }

    /// From its next start on it has this variable in its environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.start.variables.insert(name.to_owned(), value.to_owned());
    }

    /// From its next start on it has no variable whose name begins so; those that it had.
    pub fn unset(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let variables = std::mem::take(&mut self.start.variables);
        let (gone, left) = variables.into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.start.variables = left;
        gone
    }

    /// Kills it at once, as a power cut would.
    pub fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.child.kill().unwrap();
            process.child.wait().unwrap();
            process.join();
        }
    }

    /// Asks it to stop and waits until it has.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exited().await
    }

    /// Waits until it has ended.
    pub async fn exited(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("the server runs");
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = process.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "the server does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.process.take().expect("it was there").join();
        status
    }

    /// Starts it again on the same folder, after [`Self::kill_9`] or [`Self::terminate`].
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server still runs");
        self.launch().await;
    }

    /// The same after a kill.
    pub async fn kill_9_and_start_again(&mut self) {
        self.kill_9();
        self.launch().await;
    }

    /// The orderly end of a test: no dead letter is left behind, and the server ends well when
    /// asked to.
    pub async fn finish(mut self) {
        let letters = self.letters(None).await;
        assert!(letters.is_empty(), "dead letters are left: {letters:#?}");
        let status = self.terminate().await;
        assert!(status.success(), "the server ended with {status}");
        self.closed = true;
    }

    /// The dead letters, of one subscription or of all.
    pub async fn letters(&self, subscription: Option<&str>) -> Vec<Value> {
        let filter = subscription.map(|name| format!("?subscription={name}")).unwrap_or_default();
        let page = self.admin().get(&format!("/api/v1/dlq{filter}")).await.expect(200);
        page["data"].as_array().unwrap().clone()
    }

    async fn launch(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until it takes requests.
    pub async fn ready(&mut self) {
        let url = self.address();
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = url;
        let token = self.folder().join("admin-token");
        self.admin = std::fs::read_to_string(token).unwrap_or_default().trim().to_owned();
        let visitor = self.visitor();
        eventually("/readyz", || async {
            (visitor.get("/readyz").await.status() == 200).then_some(())
        })
        .await;
    }

    fn spawn(&mut self) {
        let program = program();
        let mut words = self.start.under.iter().map(String::as_str).chain([&*program, "serve"]);
        let mut command = std::process::Command::new(words.next().expect("there is a program"));
        command
            .args(words)
            .env_clear()
            .env("DATA_DIR", self.folder.path())
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("LOG_LEVEL", "info")
            // Tests of them say so: events that nobody asked for are in the way of others.
            .env("ALERT_INTERVAL", "0s")
            .env("HOURLY_REPORTS", "false")
            .envs(&self.start.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (said, says) = channel();
        let (output, errors): (Box<dyn Read + Send>, Box<dyn Read + Send>) =
            (Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap()));
        let to_output = self.start.variables.get("LOG_TO").is_some_and(|to| to == "stdout");
        let (words, lines) = if to_output { (errors, output) } else { (output, errors) };
        let words = listen(words, move |line| {
            // Nobody listens any more once the address is known.
            let _: Result<(), _> = said.send(line);
        });
        let log = self.log.clone();
        let lines = listen(lines, move |line| {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        });
        self.process = Some(Process { child, readers: vec![words, lines], says });
    }

    /// The address in its first line.
    fn address(&self) -> String {
        let process = self.process.as_ref().expect("the server runs");
        let line = process.says.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("the server did not say where it listens:\n{}", self.log().join("\n"))
        });
        let url = line.split_whitespace().find(|word| word.starts_with("http"));
        url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned()
    }
}

impl Process {
    fn join(self) {
        for reader in self.readers {
            reader.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _: std::io::Result<()> = process.child.kill();
            let _: std::io::Result<ExitStatus> = process.child.wait();
            process.join();
        }
        if std::thread::panicking() && !self.closed {
            let log = self.log();
            let from = log.len().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("the server's log ended with:\n{}", log[from..].join("\n"));
        }
    }
}

fn listen(
    from: impl Read + Send + 'static,
    mut each: impl FnMut(String) + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).for_each(&mut each);
    })
}

/// One run of the program that ends by itself.
pub struct Command {
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
    input: String,
    patience: Duration,
}

/// How a run ended.
pub struct Ended {
    pub code: i32,
    pub output: String,
    pub errors: String,
}

impl Command {
    /// With these arguments and an empty environment.
    pub fn new(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { arguments, variables: BTreeMap::new(), input: String::new(), patience: PATIENCE }
    }

    /// With a variable of its environment.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// With something to read.
    pub fn reading(mut self, input: &str) -> Self {
        input.clone_into(&mut self.input);
        self
    }

    /// With as much time as it takes.
    pub fn patient_for(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        let mut child = std::process::Command::new(program())
            .args(&self.arguments)
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that ends without reading closes the pipe.
        let _: std::io::Result<()> = child.stdin.take().unwrap().write_all(self.input.as_bytes());
        let (done, waiting): (Sender<()>, _) = channel();
        let (pid, patience) = (child.id(), self.patience);
        let watchdog = std::thread::spawn(move || {
            if waiting
                .recv_timeout(patience)
                .is_err_and(|error| error.to_string().contains("timed"))
            {
                let kill = format!("kill -KILL {pid}");
                std::process::Command::new("sh").args(["-c", &kill]).status().unwrap();
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(done);
        watchdog.join().unwrap();
        Ended {
            code: output.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
