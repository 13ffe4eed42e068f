//! A run: a market is made, and scenario after scenario is asked of it, each beside an echo with as
//! many connections and, at the end, the raw inserts of the same store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use souk_actors::event::StoredEvent;
use souk_actors::journal::Store;
use souk_actors::testing::raw::RawInserts;
use souk_actors::world::{SystemWorld, Timestamp, World as _};

use super::check::{Check, Journalled, of_answers, of_deliveries};
use super::client::Client;
use super::load::{self, Load, Until};
use super::market::Market;
use super::place::{Place, StoreKind, at_rest, heads};
use super::progress::say;
use super::report::{Percentiles, Report, Row};
use super::scrape::Scrape;
use super::scripts::{self, Change, Pick, Work, requests_an_hour};
use super::server::{self, Server};
use super::tally::{Outcome, histogram, per_second};
use super::{in_folder, inside};
use crate::serve::Running;
use crate::telemetry::{REVISION, VERSION};

/// How many events the raw inserts take as samples: the listings of a spread load many times over.
const SAMPLES: u64 = 20_000;
/// How old a login may be that a phase begins with.
const LOGIN_MAX: Duration = Duration::from_secs(120);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// New titles of one listing.
    Hot,
    /// New titles of all listings in turn.
    Spread,
    /// New prices of one listing: two events each.
    HotPrices,
    /// New prices of all listings in turn.
    SpreadPrices,
    /// New titles, of some listings much more often than of others.
    Zipf,
    /// Whole purchases.
    Purchase,
    /// Batches of events from outside.
    Publish,
    /// Reads of listings, the list and the search.
    Read,
    /// A bit of everything, in the proportions of a marketplace's hour.
    Mixed,
    /// As [`Scenario::Hot`], without HTTP: of a plan's scenarios all or none are.
    HotInside,
    /// As [`Scenario::Spread`], without HTTP.
    SpreadInside,
}

impl Scenario {
    /// What it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Spread => "spread",
            Self::HotPrices => "hot, two events",
            Self::SpreadPrices => "spread, two events",
            Self::Zipf => "zipf",
            Self::Purchase => "purchase",
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Mixed => "mixed",
            Self::HotInside => "hot, in process",
            Self::SpreadInside => "spread, in process",
        }
    }

    fn is_inside(self) -> bool {
        matches!(self, Self::HotInside | Self::SpreadInside)
    }
}

/// A server that is there already.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// Where: `http://host:port`.
    pub url: String,
    /// An administrator's token.
    pub token: String,
    /// Whether it may be on another machine.
    pub allow_remote: bool,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The scenarios, in this order, for each number of connections.
    pub scenarios: Vec<Scenario>,
    /// How long each phase is timed.
    pub time: Duration,
    /// Connections at the same time, a row each.
    pub connections: Vec<usize>,
    /// Threads of the load.
    pub threads: usize,
    /// Requests that are due a second; none: a closed loop.
    pub rate: Option<f64>,
    /// The mixed scenario's rate as so many times the catalogue's hour.
    pub scale: Option<f64>,
    /// How many listings there are.
    pub listings: usize,
    /// The exponent of the Zipf distribution.
    pub exponent: f64,
    /// How many people buy.
    pub buyers: usize,
    /// How many events a batch has.
    pub batch: u64,
    /// How many keys events are published under.
    pub keys: u64,
    /// Which store.
    pub store: StoreKind,
    /// Where the files of the measurement go; a folder of its own is made in it and deleted.
    pub folder: PathBuf,
    /// Only phases whose name begins so.
    pub only: Option<String>,
    /// A server that is there already; none: one of its own.
    pub elsewhere: Option<Elsewhere>,
}

/// The server that is measured.
struct Target {
    admin: Client,
    address: SocketAddr,
    name: String,
    own: Option<Own>,
}

impl Target {
    /// The service in this process, if it is.
    fn inside(&self) -> Option<&Running> {
        match &self.own.as_ref()?.service {
            Service::Inside(running) => Some(running),
            Service::Apart(_) => None,
        }
    }
}

/// A service of our own, so that its journal and its process can be looked at.
struct Own {
    place: Place,
    service: Service,
    journal: Arc<dyn Store>,
}

enum Service {
    /// A process of its own.
    Apart(Server),
    /// This process.
    Inside(Box<Running>),
}

/// Runs the whole plan.
pub async fn measure(plan: &Plan) -> anyhow::Result<Report> {
    match &plan.elsewhere {
        Some(elsewhere) => measure_at(plan, target_at(elsewhere).await?).await,
        None => {
            let work = |folder: PathBuf| async move {
                measure_at(plan, target_in(plan, &folder).await?).await
            };
            in_folder(&plan.folder, work).await
        }
    }
}

async fn target_in(plan: &Plan, folder: &Path) -> anyhow::Result<Target> {
    let place = Place::new(plan.store, folder).await;
    let (service, address) = if plan.scenarios.iter().copied().any(Scenario::is_inside) {
        let running = inside::start(folder, place.url()).await?;
        let address = running.address();
        (Service::Inside(Box::new(running)), address)
    } else {
        let server = Server::start(folder, place.url())?;
        let address = server.address();
        (Service::Apart(server), address)
    };
    let (admin, journal) = (server::admin(folder, address)?, place.journal().await?);
    let name = plan.store.as_str().to_owned();
    Ok(Target { admin, address, name, own: Some(Own { place, service, journal }) })
}

async fn target_at(elsewhere: &Elsewhere) -> anyhow::Result<Target> {
    let url = url::Url::parse(&elsewhere.url).context("--url, as http://127.0.0.1:8080")?;
    ensure!(
        url.scheme() == "http",
        "the load speaks plain HTTP: name the service itself, not the proxy before it"
    );
    let host = url.host_str().context("--url names no host")?;
    let port = url.port_or_known_default().unwrap_or(80);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut found = tokio::net::lookup_host((bare, port)).await.context("--url cannot be found")?;
    let address = found.next().with_context(|| format!("{host} has no address"))?;
    ensure!(
        address.ip().is_loopback() || elsewhere.allow_remote,
        "{host} is another machine: a load can take a service down, so say --allow-remote if it is \
         yours to load"
    );
    let admin = Client::new(url.as_str(), &elsewhere.token);
    Ok(Target { admin, address, name: format!("{host}:{port}"), own: None })
}

async fn measure_at(plan: &Plan, target: Target) -> anyhow::Result<Report> {
    let market = Market::open(target.admin.clone(), target.address, plan.listings).await?;
    let mut bench = Bench { plan, target, market, since: Instant::now(), rows: Vec::new() };
    bench.rest().await?;
    let has_echo = bench.has_echo().await;
    for connections in plan.connections.iter().copied() {
        let echo = match has_echo && bench.is_wanted("echo") {
            true => {
                Some(bench.phase("echo", connections, scripts::echo(&bench.market), None).await?)
            }
            false => None,
        };
        for scenario in plan.scenarios.iter().copied() {
            if bench.is_wanted(scenario.name()) {
                bench.log_in_anew().await?;
                let work = bench.work(scenario).await?;
                bench.phase(scenario.name(), connections, work, echo).await?;
            }
        }
    }
    bench.report().await
}

struct Bench<'a> {
    plan: &'a Plan,
    target: Target,
    market: Market,
    /// When the market's people logged in.
    since: Instant,
    rows: Vec<Row>,
}

impl Bench<'_> {
    fn is_wanted(&self, phase: &str) -> bool {
        self.plan.only.as_ref().is_none_or(|only| phase.starts_with(only.as_str()))
    }

    fn journal(&self) -> Option<&dyn Store> {
        self.target.own.as_ref().map(|own| &*own.journal)
    }

    /// Logins end after a quarter of an hour, and a run of many phases takes longer.
    async fn log_in_anew(&mut self) -> anyhow::Result<()> {
        if self.since.elapsed() >= LOGIN_MAX {
            self.market = self.market.at(self.target.admin.clone()).await?;
            self.since = Instant::now();
        }
        Ok(())
    }

    async fn rest(&self) -> anyhow::Result<()> {
        at_rest(&self.target.admin, self.journal()).await
    }

    /// Only a server in development mode has one, and it says nothing about what is done without
    /// HTTP.
    async fn has_echo(&self) -> bool {
        self.target.inside().is_none()
            && self.market.seller.post("/api/v1/dev/echo", &json!({})).await.is_ok()
    }

    async fn work(&self, scenario: Scenario) -> anyhow::Result<Work> {
        let (plan, market) = (self.plan, &self.market);
        let all = market.listings.len();
        let in_turn = |count: usize| Pick::InTurn(count as u64);
        let work = match scenario {
            Scenario::Hot | Scenario::HotInside => {
                scripts::changes(market, Change::Title, 1, in_turn(1))
            }
            Scenario::Spread | Scenario::SpreadInside => {
                scripts::changes(market, Change::Title, all, in_turn(all))
            }
            Scenario::HotPrices => scripts::changes(market, Change::Price, 1, in_turn(1)),
            Scenario::SpreadPrices => scripts::changes(market, Change::Price, all, in_turn(all)),
            Scenario::Zipf => {
                scripts::changes(market, Change::Title, all, Pick::zipf(all, plan.exponent))
            }
            Scenario::Purchase => scripts::purchases(market, plan.buyers).await?,
            Scenario::Publish => {
                let rate = self.rate(scenario.name());
                scripts::publishes(market, plan.batch, plan.keys, rate).await?
            }
            Scenario::Read => scripts::reads(market),
            Scenario::Mixed => scripts::mixed(market, plan.buyers).await?,
        };
        Ok(Work { settings: settings(plan, scenario), ..work })
    }

    /// The rate at which requests are due, if there is one. The echo says what the machine can do.
    fn rate(&self, phase: &str) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let an_hour = requests_an_hour() as f64;
        match phase {
            "echo" => None,
            "mixed" => self.plan.rate.or(self.plan.scale.map(|scale| scale * an_hour / 3_600.0)),
            _ => self.plan.rate,
        }
    }

    async fn load(&self, load: Load, work: &Work) -> anyhow::Result<Outcome> {
        let Some(running) = self.target.inside() else {
            return load::run(self.target.address, load, work.script.clone()).await;
        };
        let changes = work.changes.as_ref().context("without HTTP listings are changed")?;
        let runtime = &running.market().runtime;
        inside::retitle(runtime, load, changes, self.market.seller_id).await
    }

    /// Runs a phase and checks it against the journal. Returns its rate of requests.
    async fn phase(
        &mut self,
        phase: &'static str,
        connections: usize,
        work: Work,
        echo: Option<f64>,
    ) -> anyhow::Result<f64> {
        say(&format!("{phase}, {connections} connections"));
        self.rest().await?;
        let before = self.look().await?;
        let (until, rate) = (Until::Elapsed(self.plan.time), self.rate(phase));
        let threads = self.plan.threads;
        let load = Load { connections, threads, until, rate, name: Some(phase) };
        let (began, began_at) = (SystemWorld::new().now(), Instant::now());
        let outcome = self.load(load, &work).await?;
        let ended = Instant::now();
        // What never comes to rest is a finding and not the end of the run.
        let rested = self.rest().await;
        let settled = ended.elapsed().as_secs_f64();
        // What is done for the requests after their answers is theirs too.
        let cpu = self.cpu_seconds().zip(before.cpu).map(|(after, before)| after - before);
        let kinds: Vec<_> = work.kinds.iter().map(|kind| kind.name).collect();
        let mut row = Row::of(phase, &outcome, &kinds, &work.names);
        row.checks = of_answers(&outcome, &kinds);
        let told = rested.as_ref().map_or_else(ToString::to_string, |()| format!("{settled:.1} s"));
        row.checks.push(Check::new("everything has its effects in the end", rested.is_ok(), told));
        row.settled_seconds = rested.is_ok().then_some(settled);
        (row.connections, row.rate) = (Some(connections), rate);
        (row.asked, row.unit) = (work.asked.to_owned(), work.unit.to_owned());
        row.notes.clone_from(&work.notes);
        row.settings.clone_from(&work.settings);
        let requests = outcome.per_second();
        row.of_echo = echo.filter(|echo| *echo > 0.0).map(|echo| requests / echo);
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let answers = (outcome.accepted + outcome.refused).max(1) as f64;
        row.cpu_us = cpu.map(|seconds| seconds * 1e6 / answers);
        let lasted = ended - began_at;
        self.compare(&mut row, (&outcome, lasted), &work, &before).await?;
        let times = self.shipped(&work, began.plus(self.plan.time / 5)).await?;
        row.shipped_orders = times.len();
        row.shipped = (!times.is_empty()).then(|| Percentiles::of(&times));
        self.rows.push(row);
        Ok(requests)
    }

    fn cpu_seconds(&self) -> Option<f64> {
        match &self.target.own.as_ref()?.service {
            Service::Apart(server) => server.cpu_seconds(),
            // The load's is in it.
            Service::Inside(_) => None,
        }
    }

    async fn look(&self) -> anyhow::Result<Look> {
        let heads = match self.journal() {
            Some(journal) => heads(journal).await?,
            None => Vec::new(),
        };
        let scrape = Scrape::read(&self.target.admin.plain("/metrics").await?);
        Ok(Look { heads, scrape, cpu: self.cpu_seconds() })
    }

    /// Holds what was answered, in so long, against what happened.
    async fn compare(
        &self,
        row: &mut Row,
        (outcome, lasted): (&Outcome, Duration),
        work: &Work,
        before: &Look,
    ) -> anyhow::Result<()> {
        let scrape = Scrape::read(&self.target.admin.plain("/metrics").await?);
        row.subscribers = scrape.subscribers_since(&before.scrape);
        row.types = scrape.types_since(&before.scrape);
        let deliveries = scrape.deliveries_since(&before.scrape);
        row.checks.extend(of_deliveries(&deliveries));
        row.deliveries = Some(deliveries);
        let expected = work.expected(outcome);
        if let Some(journal) = self.journal() {
            let found = Journalled::since(journal, &before.heads).await?;
            row.checks.extend(found.checks(outcome, &expected, work.is_marked));
            let count = |event_type: &&str| found.by_type.get(*event_type).copied().unwrap_or(0);
            row.journalled = expected.keys().map(count).sum();
            row.journal = found.types(lasted.as_secs_f64());
            return Ok(());
        }
        if expected.is_empty() {
            return Ok(());
        }
        // Others may be at work there too: there must be as many at least.
        let mut missing = Vec::new();
        for (event_type, wanted) in &expected {
            let found = scrape.published_since(&before.scrape, event_type);
            row.journalled += found;
            if found < *wanted {
                missing.push(format!("{wanted} {event_type} were accepted, {found} published"));
            }
        }
        let name = "what was accepted is published";
        let told = if missing.is_empty() { "all of it".to_owned() } else { missing.join("; ") };
        row.checks.push(Check::new(name, missing.is_empty(), told));
        Ok(())
    }

    /// How long some of the orders took from PENDING to SHIPPED, of those placed since.
    async fn shipped(&self, work: &Work, since: Timestamp) -> anyhow::Result<Histogram<u64>> {
        let mut times: Histogram<u64> = histogram(3)?;
        for (order, buyer) in work.orders.kept() {
            let path = format!("/api/v1/orders/{order}/history");
            let history = self.target.admin.with_token(&buyer.token).get(&path).await?;
            let (placed, millis) =
                scripts::until_shipped(&history).with_context(|| order.clone())?;
            if placed >= since {
                times.saturating_record(u64::try_from(millis).unwrap_or(0) * 1_000);
            }
        }
        Ok(times)
    }

    /// Ends the server, measures its store by itself and puts all together.
    async fn report(self) -> anyhow::Result<Report> {
        let Self { plan, target, mut rows, .. } = self;
        let threads = target.inside().is_none().then_some(plan.threads);
        let Target { name, own, .. } = target;
        if let Some(Own { place, service, journal }) = own {
            let samples = samples(&*journal).await?;
            drop(journal);
            match service {
                Service::Apart(server) => drop(server),
                Service::Inside(running) => {
                    if !running.stop().await {
                        say("the service was stopped before it had finished");
                    }
                }
            }
            if plan.only.as_ref().is_none_or(|only| "raw inserts".starts_with(only.as_str()))
                || rows.iter().any(|row| row.journalled > 0)
            {
                say("raw inserts");
                let raw = raw(place.fresh().await?, samples, plan.time).await?;
                rows.iter_mut().for_each(|row| row.of_raw = of_raw(row, raw.per_second));
                rows.push(raw);
            }
        }
        let is_good = rows.iter().all(|row| row.checks.iter().all(|check| check.is_good));
        Ok(Report {
            version: format!("souk {VERSION} ({REVISION})"),
            store: name,
            measured_at: SystemWorld::new().now().to_string(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            seconds: plan.time.as_secs_f64(),
            listings: plan.listings,
            threads,
            is_good,
            rows,
        })
    }
}

/// The options that a scenario goes by, by their names; what is the whole run's is not among them.
fn settings(plan: &Plan, scenario: Scenario) -> BTreeMap<String, Value> {
    let named = match scenario {
        Scenario::Zipf => vec![("exponent", json!(plan.exponent))],
        Scenario::Purchase | Scenario::Mixed => vec![("buyers", json!(plan.buyers))],
        Scenario::Publish => vec![("batch", json!(plan.batch)), ("keys", json!(plan.keys))],
        _ => Vec::new(),
    };
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// How things stood before a phase.
struct Look {
    heads: Vec<u64>,
    scrape: Scrape,
    cpu: Option<f64>,
}

/// The events that a phase led to, of whatever type; those of the types asked for where the journal was not read.
fn events_of(row: &Row) -> u64 {
    let all: u64 = row.journal.iter().map(|of| of.events).sum();
    all.max(row.journalled)
}

/// Events stored a second as a share of the raw inserts.
fn of_raw(row: &Row, raw: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let events = events_of(row) as f64 / row.accepted.max(1) as f64;
    let requests: f64 = row.kinds.iter().map(|kind| kind.per_second).sum();
    (row.journalled > 0 && raw > 0.0).then(|| requests * events / raw)
}

/// The newest events of the first partition.
async fn samples(journal: &dyn Store) -> anyhow::Result<Vec<Arc<StoredEvent>>> {
    let head = journal.head(0).await?.position;
    let mut samples = Vec::new();
    let mut after = head.saturating_sub(SAMPLES);
    while after < head {
        let page = journal.read_from(0, after, 1_000).await?;
        after = page.last().map_or(head, |event| event.position);
        samples.extend(page);
    }
    Ok(samples)
}

/// Ready batches into an empty store, for so long.
async fn raw(
    store: Arc<dyn Store>,
    samples: Vec<Arc<StoredEvent>>,
    time: Duration,
) -> anyhow::Result<Row> {
    let mut raw = RawInserts::new(store, samples).await;
    let mut outcome = Outcome::new(1, 0)?;
    while outcome.over < time {
        let (_, append) = raw.append(usize::MAX).await;
        outcome.over += append;
        outcome.latencies.saturating_record(u64::try_from(append.as_micros()).unwrap_or(u64::MAX));
    }
    outcome.accepted = raw.events();
    let per_second = per_second(raw.events(), outcome.over);
    let row = Row::of("raw inserts", &outcome, &[], &[]);
    let batches = Some(outcome.latencies.len());
    Ok(Row { per_second, unit: "events".to_owned(), journalled: raw.events(), batches, ..row })
}
