//! The HTTP API: one file per resource, and around them what every request meets.
//!
//! A request passes the accept loop ([`server`]), one layer (`middleware`), its extractors and its
//! handler, and leaves as an [`answer::Answer`] or a [`problem::ApiError`]. Only this module knows
//! status codes. Every route is declared with its documentation, and the OpenAPI document is made
//! from that.

pub mod address_book;
pub mod after_sales;
pub mod aggregates;
pub mod analytics;
pub mod answer;
pub mod api_keys;
mod attempts;
pub mod audit;
mod auth;
pub mod body;
pub mod buffers;
pub mod call;
mod catalogue;
pub mod categories;
pub mod checkouts;
pub mod circuits;
pub mod conditional;
mod configuration;
mod connection;
mod cors;
pub mod cursor;
#[cfg(test)]
mod decoders;
pub mod dev;
pub mod dlq;
pub mod dlq_bulk;
pub mod erasure;
mod event_json;
pub mod event_sources;
pub mod event_types;
pub mod events;
mod events_await;
mod events_stream;
pub mod explain;
mod graph;
pub mod hotkeys;
pub mod idempotency;
pub mod images;
mod incoming;
pub mod info;
pub mod interests;
mod invoices;
pub mod ledger;
pub mod listings;
pub mod loyalty;
pub mod mail_webhook;
mod middleware;
pub mod money;
pub mod notifications;
pub mod openapi;
pub mod orders;
mod pages;
pub mod params;
pub mod passwords;
pub mod payments;
mod peer;
pub mod prefer;
pub mod preferences;
pub mod probes;
pub mod problem;
pub mod projections;
pub mod promotions;
pub mod publishing;
pub mod quarantine;
mod rate_limit;
mod registered;
pub mod replays;
pub mod reviews;
pub mod sagas;
mod sagas_known;
mod sagas_stream;
pub mod schemas;
mod scopes;
pub mod search;
pub mod server;
pub mod service_tokens;
pub mod sessions;
pub mod shipments;
pub mod standing;
pub mod subscriptions;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod traces;
pub mod users;
pub mod webhooks;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderName;
use metrics_exporter_prometheus::PrometheusHandle;
use souk_actors::event::Position;
use souk_actors::runtime::Runtime;
use souk_actors::world::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::app::App as Market;
use crate::audit::watch::Watch;
use crate::config::Config;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::service_token::Quota;
use crate::gateways::sandbox::SandboxCall;
use crate::identity::access::Access;
use crate::identity::password::Passwords;
use crate::identity::token::Tokens;
use crate::images::Images;
use crate::projections::ReadModels;
use crate::projections::rebuild::Rebuilder;
use crate::subscribers::messages::Composer;
use crate::subscribers::outbox::Outbox;
use crate::subscribers::webhooks::Webhooks;
use crate::telemetry::flows::Flows;

/// Marks the answer to a repeat.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Where the events of a command stand.
pub const POSITION: HeaderName = HeaderName::from_static("souk-position");
/// How far the projection had come that a read rests on.
pub const PROJECTION_POSITION: HeaderName = HeaderName::from_static("souk-projection-position");

/// How long a read waits for `min_position` when the caller does not say.
const PROJECTION_WAIT: Duration = Duration::from_secs(5);

/// How much may go on behind answers that do not wait for it.
const UNHURRIED_MAX: usize = 64;

/// What the HTTP layer is built from.
pub struct Parts {
    /// The actors, the read models and the stand-ins of the outside world.
    pub market: Market,
    /// The configuration.
    pub config: Arc<Config>,
    /// The recorder of metrics.
    pub metrics: PrometheusHandle,
    /// The audits that run by themselves.
    pub audits: Watch,
}

/// The application, as handlers see it. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    parts: Parts,
    tokens: Tokens,
    passwords: Passwords,
    cursors: cursor::Cursors,
    document: OnceLock<Bytes>,
    started: AtomicBool,
    stopping: watch::Sender<bool>,
    streams: Arc<Semaphore>,
    publishing_limits: rate_limit::RateLimits<Uuid>,
    request_limits: Option<(Quota, rate_limit::RateLimits<rate_limit::Caller>)>,
    attempts: attempts::Attempts,
    unhurried: Arc<Semaphore>,
    checks: registered::Checks,
    began: Instant,
}

impl App {
    /// From its parts.
    pub fn new(parts: Parts) -> Self {
        let keys = &parts.config.keys;
        if parts.config.momo.is_some() {
            payments::count_from_zero();
        }
        Self(Arc::new(Shared {
            tokens: Tokens::new(keys.token.bytes()),
            passwords: Passwords::new(parts.market.runtime.world().clone()),
            cursors: cursor::Cursors::new(*keys.token.bytes()),
            document: OnceLock::new(),
            started: AtomicBool::new(false),
            stopping: watch::Sender::new(false),
            streams: Arc::new(Semaphore::new(parts.config.http.streams_max)),
            publishing_limits: rate_limit::RateLimits::new(rate_limit::EVENTS),
            request_limits: rate_limit::of_requests(&parts.config.http),
            attempts: attempts::Attempts::default(),
            unhurried: Arc::new(Semaphore::new(UNHURRIED_MAX)),
            checks: registered::Checks::default(),
            began: Instant::now(),
            parts,
        }))
    }

    /// The actors.
    pub fn runtime(&self) -> &Runtime {
        &self.0.parts.market.runtime
    }

    /// The read models.
    pub fn reads(&self) -> &ReadModels {
        &self.0.parts.market.read_models
    }

    /// Where events are sent to.
    pub fn webhooks(&self) -> &Webhooks {
        &self.0.parts.market.webhooks
    }

    /// How people and their logins stand.
    pub fn access(&self) -> &Access {
        &self.0.parts.market.access
    }

    /// The flows that are under way.
    pub fn flows(&self) -> &Flows {
        &self.0.parts.market.flows
    }

    /// The images of listings.
    pub fn images(&self) -> &Images {
        &self.0.parts.market.images
    }

    /// Rebuilds of the read models.
    pub fn rebuilds(&self) -> &Rebuilder {
        &self.0.parts.market.rebuilds
    }

    /// The configuration.
    pub fn settings(&self) -> &Config {
        &self.0.parts.config
    }

    /// Access tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// Password hashing.
    pub fn passwords(&self) -> &Passwords {
        &self.0.passwords
    }

    /// Cursors of lists.
    pub fn cursors(&self) -> &cursor::Cursors {
        &self.0.cursors
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.runtime().world().now()
    }

    /// Says that migrations and recovery are done.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// Says that the service is about to stop: `/readyz` turns 503, and streams of events end.
    pub fn set_stopping(&self) {
        self.0.stopping.send_replace(true);
    }

    fn is_started(&self) -> bool {
        self.0.started.load(Ordering::Acquire)
    }

    fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Resolves when the service is about to stop.
    async fn stopping(&self) {
        let mut stopping = self.0.stopping.subscribe();
        // Whoever waits here holds the other end too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// A place for one stream of events, if one is free.
    fn stream_place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.streams.clone().try_acquire_owned().ok()
    }

    /// The OpenAPI document; empty until the router has been made.
    fn document(&self) -> Bytes {
        self.0.document.get().cloned().unwrap_or_default()
    }

    fn set_document(&self, document: String) {
        // Every router of one application has the same document.
        self.0.document.get_or_init(|| Bytes::from(document));
    }

    /// What publishers have used of their quotas.
    fn publishing_limits(&self) -> &rate_limit::RateLimits<Uuid> {
        &self.0.publishing_limits
    }

    /// Whether requests are counted.
    fn counts_requests(&self) -> bool {
        self.0.request_limits.is_some()
    }

    /// Counts a request of somebody, or refuses it; nothing where requests are not counted.
    fn count_request(
        &self,
        caller: rate_limit::Caller,
    ) -> Result<Option<rate_limit::Told>, problem::ApiError> {
        let Some((quota, limits)) = &self.0.request_limits else { return Ok(None) };
        limits.take(caller, *quota, 1, self.now()).map(Some)
    }

    /// Wrong passwords of late.
    fn attempts(&self) -> &attempts::Attempts {
        &self.0.attempts
    }

    /// A place for work that goes on behind an answer, if one is free.
    fn unhurried_place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.unhurried.clone().try_acquire_owned().ok()
    }

    /// The checks of registered schemas.
    fn checks(&self) -> &registered::Checks {
        &self.0.checks
    }

    /// How long this process has served.
    fn uptime(&self) -> Duration {
        self.0.began.elapsed()
    }

    fn metrics(&self) -> &PrometheusHandle {
        &self.0.parts.metrics
    }

    fn composer(&self) -> &Composer {
        &self.0.parts.market.composer
    }

    fn audits(&self) -> &Watch {
        &self.0.parts.audits
    }

    fn outbox(&self) -> &Outbox {
        &self.0.parts.market.outbox
    }

    fn gateway_calls(&self) -> Vec<SandboxCall> {
        self.0.parts.market.sandbox.calls()
    }

    /// Looks at somebody who has changed, before the answer says so. The change is done: when they cannot
    /// be looked at now, whoever asks next does it, and the answer is that of the change.
    async fn person_changed(&self, user: UserId) {
        if let Err(error) = self.access().person_changed(self.runtime(), user).await {
            tracing::warn!(%error, "a user who has changed could not be looked at again");
        }
    }

    /// The same of a login.
    async fn login_changed(&self, session: SessionId) {
        if let Err(error) = self.access().login_changed(self.runtime(), session).await {
            tracing::warn!(%error, "a login that has changed could not be looked at again");
        }
    }

    /// Waits until a projection includes what a list is asked to include (`min_position`), for as
    /// long as the caller would (`Prefer: wait`).
    async fn includes(
        &self,
        projection: &str,
        params: &params::Params,
    ) -> Result<(), problem::ApiError> {
        let least = params.min_position()?;
        if least.is_empty() {
            return Ok(());
        }
        let heads = self.runtime().journal().heads();
        let is_there = |(partition, position): (&u16, &u64)| {
            heads.iter().any(|head| head.partition == *partition && head.position >= *position)
        };
        if !least.iter().all(is_there) {
            return Err(params::wrong("min_position", "the journal has not come to this position"));
        }
        let until = Instant::now() + params.wait().unwrap_or(PROJECTION_WAIT);
        for (partition, position) in least {
            let left = until.saturating_duration_since(Instant::now());
            self.projected(projection, Position { partition, position }, left).await?;
        }
        Ok(())
    }

    /// Waits until a projection has handled everything up to `at`.
    async fn projected(
        &self,
        projection: &str,
        at: Position,
        wait: Duration,
    ) -> Result<(), problem::ApiError> {
        if self.runtime().subscriptions().wait_for(projection, at, wait).await {
            return Ok(());
        }
        Err(problem::ApiError::unavailable(
            "projection_behind",
            format!("this view has not reached {at} yet"),
            Duration::from_secs(1),
        ))
    }

    /// Waits until a projection has handled everything that is in the journal now.
    async fn projected_all(&self, projection: &str) -> Result<(), problem::ApiError> {
        for head in self.runtime().journal().heads() {
            self.projected(projection, head, PROJECTION_WAIT).await?;
        }
        Ok(())
    }

    /// How far a projection has come in each partition, as the header says it.
    fn projection_position(&self, projection: &str) -> String {
        let subscriptions = self.runtime().subscriptions();
        let places: Vec<_> = (0..self.runtime().partitions())
            .filter_map(|partition| {
                let position = subscriptions.position(projection, partition)?;
                Some(Position { partition, position }.to_string())
            })
            .collect();
        places.join(",")
    }
}

/// Every route with its documentation.
fn routes(development: bool) -> OpenApiRouter<App> {
    let api = OpenApiRouter::default()
        .merge(auth::routes())
        .merge(sessions::routes())
        .merge(passwords::routes())
        .merge(users::routes())
        .merge(address_book::routes())
        .merge(erasure::routes())
        .merge(standing::routes())
        .merge(categories::routes())
        .merge(listings::routes())
        .merge(images::routes())
        .merge(promotions::routes())
        .merge(loyalty::routes())
        .merge(search::routes())
        .merge(analytics::routes())
        .merge(orders::routes())
        .merge(after_sales::routes())
        .merge(checkouts::routes())
        .merge(circuits::routes())
        .merge(invoices::routes())
        .merge(ledger::routes())
        .merge(payments::routes())
        .merge(explain::routes())
        .merge(shipments::routes())
        .merge(reviews::routes())
        .merge(interests::routes())
        .merge(notifications::routes())
        .merge(mail_webhook::routes())
        .merge(preferences::routes())
        .merge(publishing::routes())
        .merge(event_types::routes())
        .merge(event_sources::routes())
        .merge(service_tokens::routes())
        .merge(api_keys::routes())
        .merge(buffers::routes())
        .merge(webhooks::routes())
        .merge(events::routes())
        .merge(traces::routes())
        .merge(subscriptions::routes())
        .merge(dlq::routes())
        .merge(quarantine::routes())
        .merge(aggregates::routes())
        .merge(projections::routes())
        .merge(replays::routes())
        .merge(dlq_bulk::routes())
        .merge(audit::routes())
        .merge(hotkeys::routes())
        .merge(configuration::routes())
        .merge(summary::routes())
        .merge(sagas::routes())
        .merge(sagas_stream::routes());
    let api = if development { api.merge(dev::routes()) } else { api };
    OpenApiRouter::with_openapi(openapi::base())
        .nest("/api/v1", api)
        .merge(probes::routes())
        .merge(schemas::routes())
}

/// The router of the whole API.
pub fn router(app: &App) -> Router {
    let (router, document) = routes(app.settings().mode.is_development()).split_for_parts();
    let router = openapi::with_document(router, document, app)
        .fallback(nowhere)
        .layer(axum::middleware::from_fn_with_state(app.clone(), middleware::around));
    match cors::layer(&app.settings().http.cors_allowed_origins) {
        Some(layer) => router.layer(layer).with_state(app.clone()),
        None => router.with_state(app.clone()),
    }
}

async fn nowhere() -> problem::ApiError {
    problem::ApiError::not_found("there is nothing at this path")
}
