//! Whoever is at work for one endpoint: a bounded number of aggregates at a time, the rest in a
//! bounded queue, and what does not fit put off by its own durable timer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use souk_actors::event::StoredEvent;
use souk_actors::journal::codec::Reveal;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::trace::Here;
use souk_actors::world::Timestamp;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{Endpoint, Webhooks, inside, message, payload};
use crate::cloudevents::metadata;
use crate::domain::ids::WebhookEndpointId;
use crate::domain::webhook_delivery::{
    Attempted, Lane, WebhookDelivery, WebhookDeliveryCommand, wait_after,
};
use crate::domain::webhook_endpoint::{FAILING_MAX, PING, WebhookEndpoint, WebhookEndpointCommand};
use crate::gateways::retry_after::RetryAfter;
use crate::gateways::webhook::{ATTEMPT_TIMEOUT, Outgoing, Sent};
use crate::subscribers::command_failed;
use crate::telemetry::traces;

/// How many messages are under way at once to one endpoint.
const PLACES: usize = 8;
/// How many aggregates wait for such a place in memory.
const QUEUE_MAX: usize = 256;
/// How long what does not fit is put off, at least and at most.
const BUSY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 60 * 60));
/// How often a delivery to a disabled endpoint looks whether it is enabled again. It is told when
/// that happens; this is for when that was missed.
const DISABLED: Duration = Duration::from_secs(60 * 60);
/// How long an endpoint that says it is overloaded is left alone, when it does not say how long.
const SLOW_DOWN: Duration = Duration::from_secs(30);
/// The longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How many events of an aggregate are looked through at once.
const PAGE: usize = 100;
/// Waits are moved by up to this part of themselves.
const JITTER: f64 = 0.1;

/// One endpoint's.
pub(super) struct Line {
    /// The deliveries that somebody is at work on, and whether there was news of them meanwhile.
    active: Mutex<HashMap<Uuid, bool>>,
    places: Semaphore,
    /// Nothing is sent before this, in milliseconds.
    not_before: AtomicI64,
    /// How many were put off for want of room and have not come back.
    put_off: AtomicU64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            active: Mutex::default(),
            places: Semaphore::new(PLACES),
            not_before: AtomicI64::new(i64::MIN),
            put_off: AtomicU64::new(0),
        }
    }
}

/// How somebody came to be at work, or not.
enum Entry {
    Taken,
    AtWork,
    Full,
}

impl Line {
    fn enter(&self, lane: Uuid) -> Entry {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(news) = active.get_mut(&lane) {
            *news = true;
            return Entry::AtWork;
        }
        if active.len() >= QUEUE_MAX {
            return Entry::Full;
        }
        active.insert(lane, false);
        Entry::Taken
    }

    /// Leaves, unless there was news.
    fn leave(&self, lane: Uuid) -> bool {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let had_news = active.get_mut(&lane).is_some_and(std::mem::take);
        if !had_news {
            active.remove(&lane);
        }
        !had_news
    }

    /// How long what does not fit is put off: about as long as those before it may take.
    fn busy_for(&self) -> Duration {
        let waiting = self.put_off.fetch_add(1, Ordering::AcqRel);
        let each = u64::try_from(PLACES).map_or(1, |places| ATTEMPT_TIMEOUT.as_secs() / places);
        Duration::from_secs(waiting.saturating_mul(each)).clamp(BUSY.0, BUSY.1)
    }

    fn came_back(&self) {
        let fewer = |number: u64| number.checked_sub(1);
        let _ = self.put_off.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer);
    }
}

/// Leaves for whoever ends before their time.
struct AtWork {
    line: Arc<Line>,
    lane: Uuid,
    left: bool,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if !self.left {
            let mut active = self.line.active.lock().unwrap_or_else(PoisonError::into_inner);
            active.remove(&self.lane);
        }
    }
}

/// What is next of a delivery.
enum Next {
    Send(Arc<StoredEvent>),
    /// Nothing up to here is wanted.
    Nothing(u64),
}

impl Webhooks {
    /// Sets somebody to work on a delivery, or puts it off.
    pub(super) async fn take_up(
        &self,
        runtime: &Runtime,
        endpoint: WebhookEndpointId,
        lane: Uuid,
    ) -> Result<(), Failure> {
        let line = self.line(endpoint);
        match line.enter(lane) {
            Entry::AtWork => {}
            Entry::Taken => {
                line.came_back();
                let at_work = AtWork { line, lane, left: false };
                let (webhooks, runtime) = (self.clone(), runtime.clone());
                tokio::spawn(async move { webhooks.work(&runtime, endpoint, at_work).await });
            }
            Entry::Full => {
                let until = later(runtime, line.busy_for());
                self.defer(runtime, lane, "busy", until).await?;
            }
        }
        Ok(())
    }

    async fn work(&self, runtime: &Runtime, endpoint: WebhookEndpointId, mut at_work: AtWork) {
        let (line, lane) = (at_work.line.clone(), at_work.lane);
        loop {
            // A place for each message, so that one aggregate with many does not keep others out.
            let (_place, _of_all) =
                match (line.places.acquire().await, self.0.places.acquire().await) {
                    (Ok(place), Ok(of_all)) => (place, of_all),
                    _ => return,
                };
            match self.step(runtime, endpoint, &line, lane).await {
                Ok(true) => continue,
                Ok(false) => {}
                // Its lease is over in a while.
                Err(failure) => {
                    tracing::warn!(endpoint_id = %endpoint, error = failure.message, "a webhook delivery stopped; it is taken up again");
                }
            }
            if line.leave(lane) {
                at_work.left = true;
                return;
            }
        }
    }

    /// Does one thing; whether there is more to do at once.
    async fn step(
        &self,
        runtime: &Runtime,
        endpoint_id: WebhookEndpointId,
        line: &Line,
        lane_id: Uuid,
    ) -> Result<bool, Failure> {
        let deliveries = runtime.aggregate::<WebhookDelivery>();
        let read = deliveries.read_inside(lane_id, |delivery| delivery.lane.clone()).await;
        let read = read.map_err(|error| command_failed(&error))?;
        let Some(lane) = read.value.filter(|lane| lane.running) else { return Ok(false) };
        let now = runtime.world().now();
        let Some(endpoint) = self.directory().get(endpoint_id) else {
            return self.without_endpoint(runtime, endpoint_id, lane_id).await;
        };
        if endpoint.details.disabled.is_some() {
            self.defer(runtime, lane_id, "disabled", later(runtime, DISABLED)).await?;
            return Ok(false);
        }
        let not_before = Timestamp::from_millis(line.not_before.load(Ordering::Acquire));
        if not_before > now {
            let spread = Duration::from_secs(10).mul_f64(runtime.world().unit());
            self.defer(runtime, lane_id, "slowed_down", not_before.plus(spread)).await?;
            return Ok(false);
        }
        match next(runtime, &endpoint, &lane).await? {
            Next::Nothing(through) => {
                let skip = WebhookDeliveryCommand::Skip { through, now };
                self.tell(runtime, lane_id, skip, "webhook", "webhook").await?;
                Ok(true)
            }
            Next::Send(event) => self.send(runtime, line, &endpoint, &lane, lane_id, &event).await,
        }
    }

    /// An endpoint that was deleted is owed nothing; one that cannot be read may be well tomorrow.
    async fn without_endpoint(
        &self,
        runtime: &Runtime,
        endpoint: WebhookEndpointId,
        lane: Uuid,
    ) -> Result<bool, Failure> {
        let endpoints = runtime.aggregate::<WebhookEndpoint>();
        let read = endpoints.read_inside(endpoint.uuid(), |endpoint| endpoint.deleted).await;
        if !read.map_err(|error| command_failed(&error))?.value {
            self.directory().refresh(runtime, endpoint).await?;
            self.defer(runtime, lane, "disabled", later(runtime, DISABLED)).await?;
            return Ok(false);
        }
        let abandon = WebhookDeliveryCommand::Abandon { now: runtime.world().now() };
        self.tell(runtime, lane, abandon, "webhook", "webhook").await?;
        self.0.lines.remove(&endpoint);
        Ok(false)
    }

    async fn send(
        &self,
        runtime: &Runtime,
        line: &Line,
        endpoint: &Endpoint,
        lane: &Lane,
        lane_id: Uuid,
        event: &StoredEvent,
    ) -> Result<bool, Failure> {
        let mut outgoing = self.outgoing(runtime, endpoint, event).await?;
        let parent = Here::of_event(event);
        let here = parent.map(|parent| parent.next(&**runtime.world()));
        outgoing.traceparent = here.map(Here::traceparent);
        outgoing.tracestate = here.and_then(|_| metadata(event)?.tracestate);
        let began = runtime.world().now();
        let sent = self.0.sender.send(&outgoing).await;
        if let Some((here, parent)) = here.zip(parent) {
            traces::delivery(&traces::Delivery {
                here,
                parent,
                event_type: &event.event_type,
                message_id: &outgoing.id,
                status: sent.status,
                error: sent.error.as_deref(),
                began,
                took: sent.latency,
            });
        }
        let now = runtime.world().now();
        let retry_after = sent.retry_after.as_deref().and_then(RetryAfter::read);
        let retry_after = retry_after.map(|after| after.wait(now, RETRY_AFTER_MAX));
        if matches!(sent.status, Some(429 | 502 | 504))
            || (retry_after.is_some() && sent.error.is_some())
        {
            let until = now.plus(retry_after.unwrap_or(SLOW_DOWN));
            line.not_before.fetch_max(until.millis(), Ordering::AcqRel);
        }
        let attempted = attempted(runtime, lane, &sent, retry_after, now);
        let is_taken = attempted.error.is_none();
        let is_ping = &*event.event_type == PING;
        let last = is_ping || wait_after(lane.failed.saturating_add(1)).is_none();
        let outcome = if is_taken {
            "delivered"
        } else if last {
            "exhausted"
        } else {
            "failed"
        };
        metrics::counter!("souk_webhook_deliveries_total", "outcome" => outcome).increment(1);
        let message = message(endpoint.details.endpoint_id, event);
        let record = WebhookDeliveryCommand::Record { message, attempted, now };
        let cause = event.event_id.to_string();
        self.tell(runtime, lane_id, record, &event.correlation_id, &cause).await?;
        if !is_ping {
            self.note(runtime, endpoint, &sent, now).await?;
        }
        Ok(is_taken || last)
    }

    async fn outgoing(
        &self,
        runtime: &Runtime,
        endpoint: &Endpoint,
        event: &StoredEvent,
    ) -> Result<Outgoing, Failure> {
        let details = &endpoint.details;
        let data = runtime.journal().reveal(event, Reveal::Redacted).await;
        let data = data.map_err(|error| Failure::transient(error.to_string()))?;
        let body = payload::body(event, data, details.format, &self.0.event_type_prefix);
        let now = runtime.world().now();
        let (id, timestamp) = (event.event_id.to_string(), now.millis().div_euclid(1_000));
        Ok(Outgoing {
            url: details.url.clone(),
            signature: endpoint.secrets.signature(&id, now, timestamp, &body),
            id,
            timestamp,
            traceparent: None,
            tracestate: None,
            content_type: payload::content_type(details.format),
            body,
        })
    }

    /// Tells the endpoint how it does, where that is news.
    async fn note(
        &self,
        runtime: &Runtime,
        endpoint: &Endpoint,
        sent: &Sent,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let since = endpoint.details.failing_since;
        let command = match (sent.status, &sent.error, since) {
            (Some(410), ..) => WebhookEndpointCommand::RecordGone { now },
            (_, Some(_), None) => WebhookEndpointCommand::RecordFailure { now },
            (_, Some(_), Some(since)) if now.since(since) >= FAILING_MAX => {
                WebhookEndpointCommand::RecordFailure { now }
            }
            (_, None, Some(_)) => WebhookEndpointCommand::RecordSuccess { now },
            _ => return Ok(()),
        };
        let id = endpoint.details.endpoint_id;
        let context = inside(runtime, "webhook", "webhook");
        let endpoints = runtime.aggregate::<WebhookEndpoint>();
        match endpoints.send(id.uuid(), command, context, |_| ()).await {
            // It may have been deleted meanwhile.
            Ok(_) | Err(souk_actors::command::CommandError::Rejected { .. }) => {}
            Err(error) => return Err(command_failed(&error)),
        }
        self.directory().refresh(runtime, id).await
    }

    async fn defer(
        &self,
        runtime: &Runtime,
        lane: Uuid,
        reason: &str,
        until: Timestamp,
    ) -> Result<(), Failure> {
        metrics::counter!("souk_webhook_deliveries_total", "outcome" => "deferred").increment(1);
        let (reason, now) = (reason.to_owned(), runtime.world().now());
        let defer = WebhookDeliveryCommand::Defer { reason, until, now };
        self.tell(runtime, lane, defer, "webhook", "webhook").await
    }

    async fn tell(
        &self,
        runtime: &Runtime,
        lane: Uuid,
        command: WebhookDeliveryCommand,
        correlation_id: &str,
        cause: &str,
    ) -> Result<(), Failure> {
        let context = inside(runtime, correlation_id, cause);
        let deliveries = runtime.aggregate::<WebhookDelivery>();
        let sent = deliveries.send(lane, command, context, |_| ());
        sent.await.map(drop).map_err(|error| command_failed(&error))
    }
}

/// In so long, more or less.
fn later(runtime: &Runtime, wait: Duration) -> Timestamp {
    let world = runtime.world();
    world.now().plus(wait.mul_f64(1.0 + JITTER * world.unit()))
}

fn attempted(
    runtime: &Runtime,
    lane: &Lane,
    sent: &Sent,
    retry_after: Option<Duration>,
    now: Timestamp,
) -> Attempted {
    let wait = wait_after(lane.failed.saturating_add(1)).unwrap_or_default();
    let scheduled = later(runtime, wait);
    let asked = retry_after.map_or(now, |wait| now.plus(wait));
    Attempted {
        status_code: sent.status,
        latency_ms: u64::try_from(sent.latency.as_millis()).unwrap_or(u64::MAX),
        error: sent.error.clone(),
        next_attempt_at: scheduled.max(asked),
    }
}

/// The next event to send: one that is wanted once more, or the first that the endpoint wants of
/// those it is still to get.
async fn next(runtime: &Runtime, endpoint: &Endpoint, lane: &Lane) -> Result<Next, Failure> {
    let journal = runtime.journal();
    let read = async |after| {
        let read = journal.read_aggregate(lane.aggregate_id, after, PAGE).await;
        read.map_err(|error| Failure::transient(error.to_string()))
    };
    if let Some(version) = lane.again.first() {
        let found = read(version.saturating_sub(1)).await?.into_iter().next();
        let gone = || Failure::permanent("an event to be sent again is not in the journal");
        return found.map(Next::Send).ok_or_else(gone);
    }
    let page = read(lane.done).await?;
    let whole = page.len() == PAGE;
    let mut looked_at = lane.done;
    for event in page.into_iter().take_while(|event| event.aggregate_version <= lane.until) {
        looked_at = event.aggregate_version;
        if endpoint.wants(&event) {
            return Ok(Next::Send(event));
        }
    }
    Ok(Next::Nothing(if whole && looked_at > lane.done { looked_at } else { lane.until }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_bounded_and_nobody_is_at_work_twice() {
        let line = Line::default();
        let lane = |number: usize| Uuid::from_u128(number as u128);
        for number in 0..QUEUE_MAX {
            assert!(matches!(line.enter(lane(number)), Entry::Taken));
        }
        assert!(matches!(line.enter(lane(QUEUE_MAX)), Entry::Full));
        assert!(matches!(line.enter(lane(0)), Entry::AtWork));
        assert!(!line.leave(lane(0)), "there was news");
        assert!(line.leave(lane(0)));
        assert!(matches!(line.enter(lane(QUEUE_MAX)), Entry::Taken));
        let waits: Vec<_> = (0..100_000).map(|_| line.busy_for()).collect();
        assert_eq!((waits[0], *waits.last().unwrap()), BUSY);
        assert!(waits.is_sorted());
    }
}
