//! `souk chaos`: starts real servers, lets clients work on them, and stops them where it hurts,
//! again and again. What was acknowledged may not be lost, doubled or changed by any of it.
//!
//! ```text
//!   clients ──HTTP──▶ souk serve ◀── kill -9, SIGSTOP, SIGTERM, a fault point that ends it
//!      │                 │  ▲
//!      ▼                 ▼  └─────── the database, killed and started again
//!   Ledger            journal, read models, the payment provider's own record, a webhook receiver
//!      │                 │
//!      └────▶ Audit ◀────┘   after each restart what is new, now and then and in the end everything
//! ```
//!
//! For development builds with the feature `chaos` only; it is in no delivered program.

mod audit;
mod books;
mod client;
mod clients;
mod ledger;
pub mod linearizability;
mod plan;
mod receiver;
pub mod report;
mod server;
mod store;
mod views;

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use audit::Audit;
use client::{Door, Request, Who};
use clients::{Client, World, open_market};
pub use ledger::Violation;
use ledger::{Ack, Ledger};
use linearizability::{Held, Register, Verdict};
pub use plan::Mode;
use plan::{Plan, Planner};
use receiver::Receiver;
use report::Report;
use server::{Launch, Server, Started, Watchdog};
use store::Database;
pub use store::StoreKind;

/// How a run is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often something is done to the server or its database.
    pub cycles: usize,
    /// What is done when, and what the clients ask, follows from it.
    pub seed: u64,
    /// Clients at the same time.
    pub clients: usize,
    /// Where the journal is kept.
    pub store: StoreKind,
    /// The database, for PostgreSQL; one of its own when absent.
    pub database_url: Option<String>,
    /// How many partitions the journal gets.
    pub partitions: u16,
    /// What is done.
    pub modes: Vec<Mode>,
    /// The fault points for [`Mode::Points`].
    pub points: Vec<&'static str>,
    /// After how many answers something is done, on average.
    pub answers: u64,
    /// How often the server is to end at each of them.
    pub hits_per_point: usize,
    /// After how many cycles everything is checked from the beginning.
    pub full_every: usize,
    /// Whether the folder of a run that succeeded is kept too.
    pub keep: bool,
    /// Whether progress is shown.
    pub progress: bool,
    /// Whether every cycle is written to the standard error.
    pub verbose: bool,
}

/// How often everything is looked at in the end, at most.
const LOOKS_MAX: u32 = 5;
/// Without any progress for so long the service does not work.
const STUCK_AFTER: Duration = Duration::from_secs(45);
/// How long a server with an armed fault point may take to pass it.
const POINT_WITHIN: Duration = Duration::from_secs(10);
/// How long nothing may happen in the end while something is under way, and after which time sagas
/// that wait for something are helped by the clock. What still moves is left to move: the clients may
/// have ordered more than was done meanwhile, and the clock would end what only waits for its turn.
const STILL_WITHIN: Duration = Duration::from_secs(180);
const CLOCK_HELPS_AFTER: Duration = Duration::from_secs(60);
/// How often the clock helps where only webhooks are awaited.
const LEASES_HELPED_EVERY: Duration = Duration::from_secs(1);
/// From so long after a restart of the database on the service works again.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// For how long that is measured, and how much of it must succeed.
const MEASURED_FOR: Duration = Duration::from_secs(5);
const BACK_SHARE: f64 = 0.95;
/// What ends a process at a fault point (SIGABRT).
const ABORTED: i32 = 6;
/// The service's audit of itself, so many events and rows in a request that one is answered in time.
const OWN_AUDIT: &str = "/api/v1/admin/audit?limit=2000";
/// How often conditions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Does a run.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut run = Run::prepare(options).await?;
    let done = run.go().await;
    run.finish(done).await
}

struct Run {
    options: Options,
    folder: PathBuf,
    launch: Launch,
    watchdog: Watchdog,
    database: Database,
    world: Arc<World>,
    clients: JoinSet<()>,
    planner: Planner,
    server: Option<Server>,
    receiver: Receiver,
    audit: Audit,
    acknowledged: Vec<Ack>,
    report: Report,
    starts: Histogram<u64>,
    began: Instant,
    progress: ProgressBar,
}

fn bar(options: &Options) -> anyhow::Result<ProgressBar> {
    if !options.progress {
        return Ok(ProgressBar::hidden());
    }
    let bar = ProgressBar::new(options.cycles as u64);
    let style = "{elapsed_precise} {wide_bar} {pos}/{len} cycles, {eta} left, {msg}";
    bar.set_style(ProgressStyle::with_template(style)?);
    Ok(bar)
}

impl Run {
    async fn prepare(options: Options) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!(
            "souk-chaos-{}-{}",
            options.seed,
            std::process::id()
        ));
        std::fs::create_dir_all(&folder)?;
        let database = Database::start(&options).await?;
        let mut launch = Launch {
            folder: folder.join("data"),
            log: folder.join("server.log"),
            variables: database.variables(),
        };
        for (name, value) in [
            ("PARTITIONS", options.partitions.to_string()),
            ("REVEAL_VERIFICATION_TOKEN", "true".to_owned()),
            ("WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8".to_owned()),
            // Aggregates come and go, so that they are made from the journal all the time.
            ("AGGREGATE_IDLE_TIMEOUT", "1s".to_owned()),
            ("SOUK_SANDBOX_RECORD", folder.join("sandbox.log").display().to_string()),
        ] {
            launch.variables.push((name.to_owned(), value));
        }
        let world = World {
            door: Door::new()?,
            ledger: Ledger::new(options.seed),
            market: clients::Market::default(),
        };
        Ok(Self {
            planner: Planner::new(&options),
            watchdog: Watchdog::start()?,
            receiver: Receiver::start().await?,
            audit: Audit::new(options.partitions),
            report: Report::new(&options),
            starts: Histogram::new(3)?,
            progress: bar(&options)?,
            world: Arc::new(world),
            clients: JoinSet::new(),
            server: None,
            acknowledged: Vec::new(),
            began: Instant::now(),
            folder,
            launch,
            database,
            options,
        })
    }

    fn ledger(&self) -> &Ledger {
        &self.world.ledger
    }

    async fn go(&mut self) -> anyhow::Result<()> {
        self.start_afresh().await?;
        self.start(None).await?;
        self.receiver.subscribe(&self.world.door).await?;
        let market =
            open_market(&self.world.door, &self.world.ledger, self.options.clients).await?;
        Arc::get_mut(&mut self.world).context("no client runs yet")?.market = market;
        for number in 0..self.options.clients {
            let client = Client::new(self.world.clone(), number, self.options.seed);
            self.clients.spawn(client.run());
        }
        for cycle in 1..=self.options.cycles {
            self.world.ledger.cycle.store(cycle as u64, Ordering::Relaxed);
            let plan = self.planner.next();
            if self.options.verbose {
                let (at, answered) = (self.began.elapsed().as_secs_f64(), self.answered());
                eprintln!("{at:8.2} s  {answered:>8} answers  cycle {cycle}: {plan:?}");
            }
            self.cycle(plan).await.with_context(|| format!("in cycle {cycle}"))?;
            let everything = cycle.is_multiple_of(self.options.full_every);
            self.check(everything).await.with_context(|| format!("after cycle {cycle}"))?;
            self.report.cycles = cycle;
            self.progress.set_position(cycle as u64);
            let commands = self.ledger().commands.load(Ordering::Relaxed);
            self.progress.set_message(format!("{commands} acknowledged"));
            // What follows would only say so again.
            if self.ledger().any_violation() {
                return Ok(());
            }
        }
        self.come_to_rest().await?;
        if self.ledger().any_violation() {
            return Ok(());
        }
        self.check_everything().await
    }

    /// A new journal, and the server ends at each point that it passes while it starts: the next
    /// start must make good what is half made.
    async fn start_afresh(&mut self) -> anyhow::Result<()> {
        for point in self.planner.starting_points() {
            let folder = self.folder.join("fresh");
            let mut launch = self.launch.clone();
            launch.folder.clone_from(&folder);
            launch.variables.extend(self.database.another().await?);
            match launch.start(Some(&format!("{point}:abort"))).await? {
                Started::Ended(status) if status.signal() == Some(ABORTED) => {
                    self.report.hit(point);
                }
                Started::Ended(status) => self.ended_by_itself(status),
                Started::Running(_) => bail!("a fresh start does not pass {point}"),
            }
            match launch.start(None).await? {
                Started::Running(server) => {
                    let status = server.terminate().await?;
                    anyhow::ensure!(status.success(), "a fresh server ended with {status}");
                }
                Started::Ended(status) => {
                    let detail = format!("after {point} on a new journal: {status}");
                    self.ledger().broken("a server starts again after any end", detail);
                }
            }
            std::fs::remove_dir_all(&folder)?;
        }
        Ok(())
    }

    /// Starts the server, with a fault point armed or not. If it ends at that point while it
    /// starts, it is started once more. Whether it did.
    async fn start(&mut self, points: Option<&str>) -> anyhow::Result<bool> {
        let mut at_start = false;
        let mut points = points;
        loop {
            let began = Instant::now();
            self.world.door.died();
            let ended = match self.launch.start(points).await? {
                Started::Running(server) => {
                    self.watchdog.watch(Some(server.id()))?;
                    self.world.door.known_by(Who::Admin, self.launch.admin_token()?);
                    self.world.door.moved(&server.url);
                    self.server = Some(server);
                    match self.first_answer(began).await? {
                        None => return Ok(at_start),
                        Some(ended) => ended,
                    }
                }
                Started::Ended(status) => status,
            };
            if points.is_none() || ended.signal() != Some(ABORTED) {
                bail!("the server does not start: {ended}; see {}", self.launch.log.display());
            }
            at_start = true;
            points = None;
        }
    }

    /// Waits until the server is ready; how it ended if it did before that.
    async fn first_answer(&mut self, began: Instant) -> anyhow::Result<Option<ExitStatus>> {
        while !self.world.door.is_ready().await {
            let server = self.server.as_mut().context("a server was started")?;
            if let Some(ended) = server.ended()? {
                self.server = None;
                return Ok(Some(ended));
            }
            anyhow::ensure!(began.elapsed() < STUCK_AFTER, "the server does not become ready");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.starts.record(micros)?;
        Ok(None)
    }

    fn ended_by_itself(&self, status: ExitStatus) {
        self.ledger().broken("a server does not end by itself", status.to_string());
    }

    /// One life of the server, or of the database under it.
    async fn cycle(&mut self, plan: Plan) -> anyhow::Result<()> {
        if let Plan::Point { answers, order, name, .. } = &plan {
            // The point is armed when the server starts. What it ended at last time must not be all
            // that a server ever gets to do.
            self.progress(*answers).await?;
            self.kill()?;
            if self.start(Some(order)).await? {
                self.report.hit(name);
                return Ok(());
            }
        } else if self.server.is_none() {
            self.start(None).await?;
        }
        self.report.count(plan.mode());
        match plan {
            Plan::Random { answers, then } => {
                self.progress(answers).await?;
                tokio::time::sleep(then).await;
                self.kill()?;
                self.start(None).await?;
            }
            Plan::Stop { answers, pause } => {
                self.progress(answers).await?;
                if let Some(server) = &self.server {
                    server.signal("STOP")?;
                    tokio::time::sleep(pause).await;
                    server.signal("CONT")?;
                }
                self.progress(answers).await?;
            }
            Plan::Terminate { answers } => {
                self.progress(answers).await?;
                if let Some(server) = self.server.take() {
                    let status = server.terminate().await?;
                    if !status.success() {
                        self.ended_by_itself(status);
                    }
                }
                self.start(None).await?;
            }
            Plan::Point { name, prompt, .. } => {
                self.until_it_ends(name, prompt).await?;
                self.start(None).await?;
            }
            Plan::Database { answers, pause, crash } => {
                self.progress(answers).await?;
                self.database.restart(crash, pause).await?;
                self.measure_recovery().await?;
            }
        }
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            if let Some(status) = server.ended()? {
                self.ended_by_itself(status);
            }
            server.kill()?;
        }
        Ok(())
    }

    fn answered(&self) -> u64 {
        let ledger = self.ledger();
        ledger.commands.load(Ordering::Relaxed) + ledger.reads.load(Ordering::Relaxed)
    }

    /// Waits until so much more has been acknowledged.
    async fn progress(&mut self, answers: u64) -> anyhow::Result<()> {
        let enough = self.answered() + answers;
        let until = Instant::now() + STUCK_AFTER;
        while self.answered() < enough {
            if let Some(server) = &mut self.server
                && let Some(status) = server.ended()?
            {
                self.ended_by_itself(status);
                self.server = None;
                self.start(None).await?;
            }
            if Instant::now() >= until {
                self.ledger().broken("the service answers", format!("nothing for {STUCK_AFTER:?}"));
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until the server ends at its fault point, and sees to it that it passes it.
    async fn until_it_ends(
        &mut self,
        name: &'static str,
        prompt: plan::Prompt,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + POINT_WITHIN;
        let mut prompted = Instant::now();
        let Some(mut server) = self.server.take() else { return Ok(()) };
        loop {
            if let Some(status) = server.ended()? {
                if status.signal() == Some(ABORTED) {
                    self.report.hit(name);
                } else {
                    self.ended_by_itself(status);
                }
                return Ok(());
            }
            if Instant::now() >= until {
                self.planner.missed(name);
                self.report.missed += 1;
                return server.kill();
            }
            if prompted.elapsed() >= plan::PROMPT_EVERY {
                prompted = Instant::now();
                self.prompt(&server, prompt).await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn prompt(&self, server: &Server, prompt: plan::Prompt) -> anyhow::Result<()> {
        let request = match prompt {
            plan::Prompt::Nothing => return Ok(()),
            // It may be gone already, which is what is wanted.
            plan::Prompt::Terminate => return server.signal("TERM").or(Ok(())),
            plan::Prompt::Clock => {
                let body = json!({ "seconds": 31 });
                Request::post(Who::Admin, "/api/v1/dev/clock/advance", body)
            }
            plan::Prompt::Letter => {
                let body = json!({
                    "target": crate::subscribers::notifications::NAME,
                    "mode": "fail", "kind": "permanent", "times": 1,
                });
                Request::post(Who::Admin, "/api/v1/dev/faults", body)
            }
        };
        self.world.door.send(&request).await;
        Ok(())
    }

    /// How much of what is sent succeeds, from the time on at which the service must be back.
    async fn measure_recovery(&mut self) -> anyhow::Result<()> {
        tokio::time::sleep(BACK_WITHIN).await;
        let door = &self.world.door;
        let counts =
            || (door.attempts.load(Ordering::Relaxed), door.successes.load(Ordering::Relaxed));
        let before = counts();
        tokio::time::sleep(MEASURED_FOR).await;
        let after = counts();
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let share = (after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64;
        self.report.recoveries.push(share);
        if share < BACK_SHARE {
            let detail = format!("{share:.3} of {} requests succeed", after.0 - before.0);
            self.ledger().broken("the service is back 10 s after its database", detail);
        }
        Ok(())
    }

    /// Checks what is new, or everything from the beginning.
    async fn check(&mut self, everything: bool) -> anyhow::Result<()> {
        let fresh = self.world.ledger.take_acknowledged();
        let store = self.database.open_journal(&self.launch.folder).await?;
        if everything {
            self.audit = Audit::new(self.options.partitions);
        }
        self.audit.read(&*store, &self.world.ledger).await?;
        self.audit.confirm(&fresh, &self.world.ledger);
        if everything {
            self.audit.confirm(&self.acknowledged, &self.world.ledger);
        }
        self.acknowledged.extend(fresh);
        for wrong in self.receiver.wrong() {
            self.ledger().broken("webhooks are signed and in order", wrong);
        }
        let panics = server::panics_in(&self.launch.log);
        for panic in panics {
            self.ledger().broken("nothing panics", panic);
        }
        Ok(())
    }

    /// The clients go home, and what is under way comes to its end.
    async fn come_to_rest(&mut self) -> anyhow::Result<()> {
        self.progress.set_message("coming to rest");
        self.world.ledger.stop.store(true, Ordering::Relaxed);
        if self.server.is_none() {
            self.start(None).await?;
        }
        let gone = async { while self.clients.join_next().await.is_some() {} };
        if tokio::time::timeout(STUCK_AFTER, gone).await.is_err() {
            self.ledger().broken("the service answers", "a client still waits in the end");
            self.world.door.given_up.store(true, Ordering::Relaxed);
            self.clients.abort_all();
        }
        let mut moved = Instant::now();
        let mut helped = Instant::now();
        let mut before = 0;
        loop {
            self.check(false).await?;
            let (open, _) = self.audit.books.under_way();
            let still = self.audit.count() == before;
            let is_quiet = still && open == 0 && self.caught_up().await?;
            let unsent = self.receiver.lacks(self.audit.hooked());
            if is_quiet && unsent.is_empty() {
                return Ok(());
            }
            // What was under way when a server died is sent again when its lease is over.
            if is_quiet && helped.elapsed() > LEASES_HELPED_EVERY {
                helped = Instant::now();
                self.help_by_clock().await?;
            }
            if !still {
                moved = Instant::now();
            }
            before = self.audit.count();
            if moved.elapsed() > STILL_WITHIN || self.ledger().any_violation() {
                let some = self.audit.books.some_under_way();
                let detail = format!(
                    "{open} orders are still under way: {some:#?}; {} webhooks have not come: {:?}",
                    unsent.len(),
                    unsent.first()
                );
                self.ledger().broken("everything comes to an end", detail);
                return Ok(());
            }
            if moved.elapsed().min(helped.elapsed()) > CLOCK_HELPS_AFTER {
                helped = Instant::now();
                self.help_by_clock().await?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn help_by_clock(&mut self) -> anyhow::Result<()> {
        if let Some(server) = &self.server {
            self.prompt(server, plan::Prompt::Clock).await?;
            self.report.clock_helped += 1;
        }
        Ok(())
    }

    /// Whether every subscription has handled everything that there is.
    async fn caught_up(&self) -> anyhow::Result<bool> {
        let request = Request::get(Who::Admin, "/api/v1/admin/subscriptions");
        let all = self.world.door.ask(&request).await?.expect(200)?;
        let partitions = all.body["data"].as_array().into_iter().flatten();
        let mut partitions =
            partitions.flat_map(|one| one["partitions"].as_array().into_iter().flatten());
        Ok(partitions.all(|partition: &Value| {
            let number = usize::try_from(partition["partition"].as_u64().unwrap_or_default());
            let head = number.ok().and_then(|number| self.audit.heads().get(number));
            partition["position"].as_u64() >= head.map(|head| head.position)
        }))
    }

    /// Whether what was seen of each hot listing can have happened one after the other.
    fn check_order(&self) {
        let (door, history) = (&self.world.door, self.ledger().history());
        for object in &self.world.market.hot {
            let of_this = history.iter().filter(|recorded| recorded.object == *object);
            let operations: Vec<_> = of_this
                .map(|recorded| {
                    let over = door.death(recorded.life);
                    linearizability::Operation { over, ..recorded.operation.clone() }
                })
                .collect();
            let start = Held { value: clients::PRICE, version: 1 };
            let register = Register { start, events_per_write: 2, others_write: false };
            let detail = match linearizability::check(&register, &operations) {
                Verdict::Linearizable => continue,
                Verdict::Violated(violation) => violation.explain(&operations),
                Verdict::Undecided { operation } => format!("undecided at {operation}"),
            };
            self.ledger()
                .broken("what is seen happened in some order", format!("{object}: {detail}"));
        }
    }

    /// What the service finds when it compares its subscriptions with its journal.
    async fn check_own_audit(&self) -> anyhow::Result<()> {
        let mut path = OWN_AUDIT.to_owned();
        loop {
            let request = Request::get(Who::Admin, path);
            let part = self.world.door.ask(&request).await?.expect(200)?.body;
            let wrong = ["missing", "duplicate_effects", "out_of_order"];
            if wrong.iter().any(|name| part[name] != json!(0)) {
                self.ledger().broken("the service's own audit finds nothing", part.to_string());
                return Ok(());
            }
            if part["complete"] == json!(true) {
                return Ok(());
            }
            let cursor = part["next_cursor"].as_str().context("an audit without an end")?;
            path = format!("{OWN_AUDIT}&cursor={cursor}");
        }
    }

    /// Everything, once nothing moves any more. What a clock of the service's own leads to (an alert, a
    /// report) may come behind the last look: then all of it is looked at again.
    async fn check_everything(&mut self) -> anyhow::Result<()> {
        self.progress.set_message("checking everything");
        let mut looks = 0;
        let store = loop {
            self.check(true).await?;
            self.check_order();
            self.check_own_audit().await?;
            if let Some(server) = self.server.take() {
                let status = server.terminate().await?;
                if !status.success() {
                    self.ended_by_itself(status);
                }
            }
            let store = self.database.open_journal(&self.launch.folder).await?;
            looks += 1;
            if looks == LOOKS_MAX || self.audit.has_all(&*store).await? {
                break store;
            }
            drop(store);
            self.come_to_rest().await?;
        };
        self.audit.at_rest(&*store, &self.world.ledger).await?;
        self.audit.books.reconcile(&self.folder.join("sandbox.log"), &self.world.ledger)?;
        let reads = self.database.open_read_models(&self.launch.folder).await?;
        let events = self.audit.count();
        self.audit.views.compare(&reads, events, &self.world.ledger).await?;
        reads.close().await;
        Ok(())
    }

    async fn finish(mut self, done: anyhow::Result<()>) -> anyhow::Result<Report> {
        self.clients.abort_all();
        drop(self.server.take());
        self.watchdog.watch(None)?;
        self.progress.finish_and_clear();
        if let Err(error) = done {
            self.ledger().broken("the run can go on", format!("{error:#}"));
        }
        for name in self.planner.never_hit(&self.report.hits) {
            self.ledger().broken("every fault point is passed", name.to_owned());
        }
        let events = self.audit.count();
        let mut report = std::mem::take(&mut self.report);
        report.events = events;
        report.orders = self.audit.books.under_way().1;
        report.webhooks = self.receiver.taken();
        report.conclude(&self.world, &self.starts, self.began.elapsed());
        if self.options.keep || !report.violations.is_empty() {
            report.folder = Some(self.folder.clone());
        } else {
            std::fs::remove_dir_all(&self.folder)?;
        }
        Ok(report)
    }
}
