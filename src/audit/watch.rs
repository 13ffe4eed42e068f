//! The audit that runs by itself: again and again over the whole journal, slowly, so that nobody has to
//! think of it for something that is missing to be noticed.
//!
//! It looks at a page at a time, at most so many events a second, and waits while commands do: it is
//! in no hurry. What it found last is kept in memory; after a restart it begins anew soon.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use souk_actors::runtime::Runtime;
use souk_actors::world::Timestamp;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{Progress, Report, audit};
use crate::projections::rebuild::sleep_until_quiet;
use crate::projections::{EVENTS_INDEX, ReadModels};

/// Events and rows in a page: small, so that a page is done quickly.
const PAGE: u64 = 500;
/// At most so many events and rows a second.
const PACE: u32 = 2_000;
/// The first one begins no later than this after the start.
const FIRST_WITHIN: Duration = Duration::from_secs(60);
/// After a page that could not be read.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// An audit that is over.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Audited {
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it was over.
    #[schema(value_type = String, format = DateTime)]
    pub ended_at: Timestamp,
    /// Whether nothing was missing, doubled or out of order.
    pub healthy: bool,
    /// What it found.
    pub report: Report,
}

/// How the audits stand.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Standing {
    /// The time between two of them, in seconds; 0: there are none.
    pub interval_seconds: u64,
    /// When the one that is under way began.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub running_since: Option<Timestamp>,
    /// Events that it has looked at so far.
    pub events: u64,
    /// When the next one begins, while none is under way.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_at: Option<Timestamp>,
    /// Why it cannot go on at the moment; it will be tried again.
    pub stuck: Option<String>,
    /// The last one since the start of the service.
    pub last: Option<Audited>,
}

/// The audits of one service. Cheap to clone.
#[derive(Clone)]
pub struct Watch(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    reads: ReadModels,
    interval: Duration,
    standing: Mutex<Standing>,
}

impl Watch {
    /// Audits so long after one another; never, when that is nothing.
    pub fn new(runtime: Runtime, reads: ReadModels, interval: Duration) -> Self {
        let standing = Standing { interval_seconds: interval.as_secs(), ..Standing::default() };
        Self(Arc::new(Inner { runtime, reads, interval, standing: Mutex::new(standing) }))
    }

    /// How they stand.
    pub fn standing(&self) -> Standing {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Audits until it is dropped.
    pub async fn run(self) {
        if self.0.interval.is_zero() {
            return;
        }
        let mut wait = self.0.interval.min(FIRST_WITHIN);
        loop {
            self.lock().next_at = Some(self.0.runtime.world().now().plus(wait));
            tokio::time::sleep(wait).await;
            self.once().await;
            wait = self.0.interval;
        }
    }

    /// Audits everything that has happened by now.
    async fn once(&self) {
        let started_at = self.0.runtime.world().now();
        {
            let mut standing = self.lock();
            standing.running_since = Some(started_at);
            standing.next_at = None;
        }
        let (mut whole, mut progress) = (Report::default(), None);
        let mut next = Instant::now();
        loop {
            sleep_until_quiet(&self.0.runtime, EVENTS_INDEX, next).await;
            let (part, rest) = self.page(progress).await;
            let work = part.events + part.rows;
            next = Instant::now()
                + Duration::from_secs(1) * u32::try_from(work).unwrap_or(PACE) / PACE;
            whole.add(part);
            self.lock().events = whole.events;
            match rest {
                Some(rest) => progress = Some(rest),
                None => break,
            }
        }
        self.done(started_at, whole);
    }

    /// A page, however often that has to be tried.
    async fn page(&self, from: Option<Progress>) -> (Report, Option<Progress>) {
        loop {
            match audit(&self.0.runtime, &self.0.reads, from.clone(), PAGE).await {
                Ok(page) => {
                    self.lock().stuck = None;
                    return page;
                }
                Err(error) => {
                    let known = self.lock().stuck.replace(error.to_string());
                    if known.is_none() {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "the audit cannot go on; it is tried again"
                        );
                    }
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    fn done(&self, started_at: Timestamp, report: Report) {
        let ended_at = self.0.runtime.world().now();
        let healthy = report.is_healthy();
        measure(&report);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("souk_audit_completed_timestamp_seconds")
            .set(ended_at.millis() as f64 / 1_000.0);
        let Report { missing, duplicate_effects, out_of_order, events, .. } = report;
        if healthy {
            tracing::info!(events, "audited: every event had its effect, once and in order");
        } else {
            let first = report.findings.first().map(|finding| finding.detail.clone());
            let subscription = report.findings.first().map(|finding| finding.subscription.clone());
            tracing::error!(
                missing,
                duplicate_effects,
                out_of_order,
                subscription,
                first,
                "the audit found that events have not had their effect; GET /api/v1/admin/audit/last has the findings"
            );
        }
        let mut standing = self.lock();
        standing.running_since = None;
        standing.events = 0;
        standing.last = Some(Audited { started_at, ended_at, healthy, report });
    }
}

/// Shows what an audit of everything found missing.
pub fn measure(report: &Report) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    metrics::gauge!("souk_audit_missing_events").set(report.missing as f64);
}
