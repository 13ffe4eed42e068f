//! The whole service in one process: the market behind its HTTP API, from start to stop.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use souk_actors::command::CommandContext;
use souk_actors::faults::points;
use souk_actors::id::derived;
use souk_actors::runtime::{Options, Runtime};
use souk_actors::world::{SystemWorld, World};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::app::{App as Market, Settings};
use crate::config::Config;
use crate::domain::caller::Role;
use crate::domain::service::{Service, ServiceCommand, ServiceDeployed};
use crate::files::write_owner_only;
use crate::http::server::Server;
use crate::http::{self, Parts};
use crate::identity::token::{ADMIN_LIFETIME, Tokens};
use crate::identity::verification::verification_token;
use crate::tls::ServerTls;
use crate::{alerts, audit, disk, memory, telemetry};

/// The file with the development administrator's token, in the data folder.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";

/// How long open requests, and then the actors, may take to finish after a failure.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(2);

/// A service that is running.
pub struct Running {
    address: SocketAddr,
    admin_token_path: Option<PathBuf>,
    config: Arc<Config>,
    market: Market,
    app: http::App,
    server: Server,
    upkeep: JoinHandle<()>,
    renewals: Option<JoinHandle<()>>,
    watches: Vec<JoinHandle<()>>,
    audits: JoinHandle<()>,
    health_checks: JoinHandle<()>,
    alerts: JoinHandle<()>,
    images: JoinHandle<()>,
}

/// The market's settings, from the configuration.
pub fn settings(config: &Config) -> Settings {
    let development = config.mode.is_development();
    let world: Arc<dyn World> =
        if development { Arc::new(SystemWorld::movable()) } else { Arc::new(SystemWorld::new()) };
    let mut options = Options::default();
    options.aggregates.version = telemetry::VERSION.to_owned();
    options.letters_max = config.runtime.letters_max;
    if let Some(cap) = config.runtime.mailbox_cap {
        options.aggregates.mailbox_max = cap;
    }
    if let Some(timeout) = config.runtime.aggregate_idle_timeout {
        options.aggregates.idle_timeout = timeout;
    }
    options.poll_interval = config.outbox.poll_interval;
    let token_key = config.keys.token.clone();
    Settings {
        storage: config.storage.clone(),
        partitions: config.runtime.partitions,
        development,
        master_key: *config.keys.master.bytes(),
        lookup_key: *config.keys.lookup.bytes(),
        token_of: Arc::new(move |user, nonce| verification_token(&token_key, user, nonce)),
        messaging: config.messaging.clone(),
        world,
        retry: config.retry.clone(),
        webhook_reach: config.webhooks.clone(),
        momo: config.momo.clone(),
        loyalty: config.loyalty.clone(),
        hourly_reports: config.hourly_reports,
        event_type_prefix: config.runtime.event_type_prefix.clone(),
        options,
    }
}

impl Running {
    /// Starts everything. It answers requests when this returns.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        #[cfg(feature = "chaos")]
        arm(&config.chaos)?;
        let config = Arc::new(config);
        let metrics = telemetry::metrics_handle();
        if let Some(collector) = &config.traces {
            telemetry::traces::start(collector)?;
        }
        // First the address: if it is taken, nothing else needs to be tried.
        let listener = TcpListener::bind(config.http.address)
            .await
            .with_context(|| format!("cannot listen on {}", config.http.address))?;
        let market = Market::start(settings(&config)).await?;
        let watches = watches(&config, &market.runtime).await;
        let audits = audit::watch::Watch::new(
            market.runtime.clone(),
            market.read_models.clone(),
            config.audit_interval,
        );
        let parts = Parts {
            market: market.clone(),
            config: config.clone(),
            metrics: metrics.clone(),
            audits: audits.clone(),
        };
        let app = http::App::new(parts);
        let tls = config.http.tls.clone().map(ServerTls::new).transpose()?.map(Arc::new);
        let server = Server::start(listener, http::router(&app), &config.http, tls.clone())?;
        let admin_token_path = match config.mode.is_development() {
            true => Some(write_admin_token(&config, &market)?),
            false => None,
        };
        announce(&market).await;
        points::reach("startup.before_ready").await;
        app.set_started();
        let tidy = market.images.clone().keep_tidy(market.runtime.clone());
        let images = tokio::spawn(tidy);
        let upkeep = tokio::spawn(telemetry::keep_metrics_tidy(metrics));
        let renewals = tls.map(|tls| tokio::spawn(tls.keep_current()));
        let audits = tokio::spawn(audits.run());
        let alerts = alerts::Watch::new(market.runtime.clone(), config.alert_interval);
        let alerts = tokio::spawn(alerts.run());
        let checks = http::probes::keep_checking(app.clone(), config.health_check_interval);
        let health_checks = tokio::spawn(checks);
        let address = server.address();
        Ok(Self {
            address,
            admin_token_path,
            config,
            market,
            app,
            server,
            upkeep,
            renewals,
            watches,
            audits,
            alerts,
            health_checks,
            images,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is reached from here.
    pub fn url(&self) -> String {
        let scheme = if self.config.http.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where the development administrator's token is, in development mode.
    pub fn admin_token_path(&self) -> Option<&PathBuf> {
        self.admin_token_path.as_ref()
    }

    /// The market behind it.
    pub fn market(&self) -> &Market {
        &self.market
    }

    /// Resolves, with the reason, when something failed that cannot be restarted.
    pub async fn fatal(&self) -> String {
        self.market.runtime.fatal().await
    }

    /// Stops in order: say so, take no more connections, finish open requests, drain the actors.
    /// Returns whether all of it was done in time.
    pub async fn stop(self) -> bool {
        let (delay, timeout) = (self.config.http.shutdown_delay, self.config.http.shutdown_timeout);
        self.stop_within(delay, timeout).await
    }

    /// The same after a failure that cannot be mended: whoever comes now is better served by
    /// another process, so nobody waits for what may never be finished.
    pub async fn give_up(self) -> bool {
        let timeout = self.config.http.shutdown_timeout.min(GIVE_UP_WITHIN);
        self.stop_within(Duration::ZERO, timeout).await
    }

    async fn stop_within(self, delay: Duration, timeout: Duration) -> bool {
        self.app.set_stopping();
        self.audits.abort();
        self.alerts.abort();
        self.images.abort();
        tokio::time::sleep(delay).await;
        let answered = self.server.stop(timeout).await;
        points::reach("shutdown.during_drain").await;
        let drained = self.market.drain(timeout).await;
        telemetry::traces::flush().await;
        self.upkeep.abort();
        self.health_checks.abort();
        self.renewals.inspect(JoinHandle::abort);
        self.watches.iter().for_each(JoinHandle::abort);
        if !(answered && drained) {
            tracing::warn!(answered, drained, "stopped before everything was finished");
        }
        answered && drained
    }
}

/// Says which version runs, if another one ran before. Nothing rests on it.
async fn announce(market: &Market) {
    let world = market.runtime.world();
    let command = ServiceCommand::Start(ServiceDeployed {
        version: telemetry::VERSION.to_owned(),
        revision: telemetry::REVISION.to_owned(),
        deployed_at: world.now(),
    });
    let context = CommandContext::inside(&**world, "startup", "startup");
    let services = market.runtime.aggregate::<Service>();
    if let Err(error) = services.send(Service::id(), command, context, |_| ()).await {
        tracing::warn!(%error, "this start could not be recorded");
    }
}

/// Those who look at what may run short. They have looked once: what is almost used up already takes
/// nothing from the first request on.
async fn watches(config: &Config, runtime: &Runtime) -> Vec<JoinHandle<()>> {
    runtime.may_refuse(disk::LOW);
    let mut watches = Vec::new();
    if let Some(mut watch) = disk::Watch::new(&config.storage, runtime.clone()) {
        watch.look().await;
        watches.push(tokio::spawn(watch.run()));
    }
    if let Some(mut watch) = memory::Watch::new(config.runtime.memory_limit, runtime.clone()) {
        watch.look();
        watches.push(tokio::spawn(watch.run()));
    }
    watches
}

/// Does what a chaos run asks for.
#[cfg(feature = "chaos")]
fn arm(chaos: &crate::config::Chaos) -> anyhow::Result<()> {
    points::arm(chaos.fault_points.clone());
    if let Some(path) = &chaos.sandbox_record {
        crate::gateways::sandbox::keep_record(path)
            .with_context(|| format!("cannot keep the sandbox's record in {}", path.display()))?;
    }
    Ok(())
}

/// A token of an administrator who is nobody in particular, for the developer's own use.
fn write_admin_token(config: &Config, market: &Market) -> anyhow::Result<PathBuf> {
    let world = market.runtime.world();
    let token = Tokens::new(config.keys.token.bytes()).issue(
        derived("development administrator", &[]),
        None,
        BTreeSet::from([Role::Admin]),
        world.now(),
        ADMIN_LIFETIME,
        world.new_id(),
    );
    let path = config.storage.data_dir.join(ADMIN_TOKEN_FILE);
    write_owner_only(&path, token.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
