//! Events as they happen: server-sent events, read from the journal at the reader's own pace.
//!
//! ```text
//!   journal ──page──▶ pump (a task) ──one chunk at most──▶ Feed (the answer's body) ──▶ reader
//! ```
//!
//! Nothing is kept for a reader but where it is. One that does not take a chunk in time is
//! disconnected and goes on later from the last `id:` it has seen.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::body::Frame;
use souk_actors::event::StoredEvent;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Instrument as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::call::{Call, EventReader, LogReader, Staff};
use super::catalogue;
use super::connection::OpenRequest;
use super::event_json::{Form, write};
use super::events;
use super::events_await::matches;
use super::params::{Params, wrong};
use super::problem::ApiError;
use crate::domain::topics::Topics;
use crate::projections::EventFilter;

/// What cursors of streams are signed for. A stream may go on with another filter.
const CURSORS: &str = "events/stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells proxies to pass on what comes as it comes.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long readers wait before they connect again, in milliseconds.
const RETRY_MS: u32 = 3_000;
/// How long nothing is said at most, so that nobody in between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often it is asked again whether the reader may still come in.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How many events are read from the journal at once.
const PAGE: usize = 64;
/// What has grown to so many bytes is handed over before more is written.
const CHUNK_BYTES: usize = 64 * 1024;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(stream_events))
}

/// Events as they happen
///
/// Server-sent events: `id` is where the event stands, `event` its type, `data` the event as one line
/// of JSON. Begins with what happens next, or behind `Last-Event-ID` (sooner than `after`, which
/// takes an `id` or positions: `0:0` is the beginning). `eventType` takes names, `order.*`, `order.#`
/// with commas between, or `~` and a regular expression. In order per partition. A reader that does
/// not keep up is disconnected and can go on where it was. When the token is over or taken back, the
/// login ends or the account is suspended, the stream ends within about a second.
#[utoipa::path(get, path = "/events/stream", tag = "events",
    params(("eventType" = Option<String>, Query), ("aggregateId" = Option<String>, Query),
        ("aggregateType" = Option<String>, Query), ("correlationId" = Option<String>, Query),
        ("causationId" = Option<String>, Query), ("after" = Option<String>, Query),
        ("case" = Option<String>, Query),
        ("seconds" = Option<u64>, Query, description = "End after so many seconds, and after what \
            there is now with 0; absent: go on until somebody hangs up"),
        ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, description = "Events", body = String,
        content_type = "text/event-stream")))]
async fn stream_events(request: EventStreamRequest) -> Result<Response, ApiError> {
    let EventStreamRequest { reader, request } = request;
    let wanted = WantedEvents::read(reader, &request.params, &request.headers)?;
    open_stream(request, wanted).await
}

/// A request for a stream of events, by whoever may read some.
struct EventStreamRequest {
    reader: EventReader,
    request: StreamRequest,
}

impl FromRequestParts<App> for EventStreamRequest {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let LogReader(reader) = LogReader::from_request_parts(parts, app).await?;
        let request = StreamRequest::of(reader.call().clone(), parts, app).await?;
        Ok(Self { reader, request })
    }
}

/// An administrator's request for a stream.
pub(super) struct StreamRequest {
    app: App,
    call: Call,
    /// What is asked for.
    pub(super) params: Params,
    headers: HeaderMap,
    open: Option<Arc<OpenRequest>>,
}

impl FromRequestParts<App> for StreamRequest {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Staff(call) = Staff::from_request_parts(parts, app).await?;
        Self::of(call, parts, app).await
    }
}

impl StreamRequest {
    async fn of(call: Call, parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let params = Params::from_request_parts(parts, app).await?;
        let open = parts.extensions.get().cloned();
        Ok(Self { app: app.clone(), call, params, headers: parts.headers.clone(), open })
    }
}

/// A stream of what is wanted of the journal, from where the request says on.
pub(super) async fn open_stream<W: Wanted>(
    request: StreamRequest,
    wanted: W,
) -> Result<Response, ApiError> {
    let StreamRequest { app, call, params, headers, open } = request;
    let seconds = params.parsed::<u64>("seconds")?;
    let at = start(&app, &params, &headers).await?;
    let place = app.stream_place().ok_or_else(|| {
        let detail = "as many streams of events are open as there may be (HTTP_STREAMS_MAX)";
        ApiError::unavailable("too_many_streams", detail, Duration::from_secs(5))
    })?;
    let (send, chunks) = mpsc::channel(1);
    let is_broken = Arc::new(AtomicBool::new(false));
    let pump = Pump {
        patience: app.settings().http.write_timeout,
        call,
        look_again: Instant::now() + LOOK_AGAIN,
        until: seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds))),
        beat: Instant::now() + HEARTBEAT,
        told: BTreeMap::new(),
        app,
        wanted,
        at,
        send,
    };
    let held = (place, open);
    tokio::spawn(pump.run(held, is_broken.clone()).in_current_span());
    let mut response = Response::new(Body::new(Feed { chunks, is_broken }));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (ACCEL_BUFFERING, "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// What somebody wants to hear of.
pub(super) trait Wanted: Send + 'static {
    /// What is said of an event: its type and its data, in one line. `None`: nothing.
    fn line(
        &self,
        app: &App,
        event: &StoredEvent,
    ) -> impl Future<Output = Result<Option<(String, String)>, ApiError>> + Send;
}

/// The events themselves.
struct WantedEvents {
    reader: EventReader,
    topics: Topics,
    filter: EventFilter,
    form: Form,
}

impl WantedEvents {
    fn read(reader: EventReader, params: &Params, headers: &HeaderMap) -> Result<Self, ApiError> {
        let topics = params.text("event_type").map(Topics::parse_list).transpose();
        let topics = topics.map_err(|error| {
            ApiError::invalid_field("eventType", "invalid_pattern", &error.to_string())
        })?;
        let topics = topics.unwrap_or_default();
        let known = catalogue::all().iter().map(|descriptor| descriptor.event_type);
        if reader.topics().is_some_and(|allowed| !topics.are_among(allowed, known)) {
            return Err(reader.out_of_scope(params.text("event_type").unwrap_or_default()));
        }
        let (filter, form) = (events::about(params)?, events::form(params, headers));
        Ok(Self { reader, topics, filter, form })
    }

    fn includes(&self, event: &StoredEvent) -> bool {
        self.reader.may_read_type(&event.event_type)
            && self.topics.include(&event.event_type, event.major)
            && matches(&self.filter, event)
    }
}

impl Wanted for WantedEvents {
    async fn line(
        &self,
        app: &App,
        event: &StoredEvent,
    ) -> Result<Option<(String, String)>, ApiError> {
        if !self.includes(event) {
            return Ok(None);
        }
        let data = write(app, event, self.form, self.reader.reveal()).await?;
        Ok(Some((event.event_type.to_string(), data.to_string())))
    }
}

/// Where a stream begins: a position in each partition.
async fn start(
    app: &App,
    params: &Params,
    headers: &HeaderMap,
) -> Result<BTreeMap<u16, u64>, ApiError> {
    let last_seen = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty());
    let after = match last_seen {
        Some(value) => app.cursors().open(CURSORS, value.to_str().unwrap_or_default())?,
        None => match behind(app, params)? {
            Some(after) => after,
            None => return Ok(heads(app)),
        },
    };
    let at = everywhere(app, "after", &after)?;
    is_within_reach(app, &at).await?;
    Ok(at)
}

/// How far each partition is.
fn heads(app: &App) -> BTreeMap<u16, u64> {
    let heads = app.runtime().journal().heads();
    heads.iter().map(|head| (head.partition, head.position)).collect()
}

/// Where `after` says that somebody was: the `id` of a stream's event, or positions.
pub(super) fn behind(app: &App, params: &Params) -> Result<Option<BTreeMap<u16, u64>>, ApiError> {
    let read = |text| app.cursors().open(CURSORS, text).or_else(|_| events::positions(text));
    params.text("after").map(read).transpose()
}

/// The same in every partition, from the beginning where it does not say. The journal must have come
/// there.
pub(super) fn everywhere(
    app: &App,
    name: &str,
    after: &BTreeMap<u16, u64>,
) -> Result<BTreeMap<u16, u64>, ApiError> {
    let heads = heads(app);
    let ahead = |(partition, position): (&u16, &u64)| {
        heads.get(partition).is_none_or(|head| position > head)
    };
    if after.iter().any(ahead) {
        return Err(wrong(name, "the journal has not come to this position"));
    }
    Ok(heads.keys().map(|of| (*of, after.get(of).copied().unwrap_or(0))).collect())
}

/// Refuses to go on where the next event is older than what is streamed.
async fn is_within_reach(app: &App, at: &BTreeMap<u16, u64>) -> Result<(), ApiError> {
    let kept = app.settings().http.stream_retention;
    for (&partition, &position) in at {
        let next = app.runtime().journal().read_from(partition, position, 1).await?;
        if next.first().is_some_and(|event| event.timestamp.plus(kept) < app.now()) {
            let detail = format!(
                "the next event of partition {partition} is older than what is streamed \
                 (STREAM_RETENTION); read on with GET /api/v1/events?after={partition}:{position}"
            );
            return Err(ApiError::new(StatusCode::GONE, "position_archived", detail));
        }
    }
    Ok(())
}

/// Why a stream ends.
enum End {
    /// It was to end now, or there is nobody any more who may read it.
    Orderly,
    /// The reader does not keep up, or something cannot be read.
    Broken,
}

/// Reads the journal and writes it out, for one reader.
struct Pump<W> {
    app: App,
    wanted: W,
    /// How far the journal has been read.
    at: BTreeMap<u16, u64>,
    /// How far the reader knows that it has.
    told: BTreeMap<u16, u64>,
    send: mpsc::Sender<Bytes>,
    patience: Duration,
    /// The call that the stream answers.
    call: Call,
    /// When to ask again whether who called may still come in.
    look_again: Instant,
    until: Option<Instant>,
    beat: Instant,
}

impl<W: Wanted> Pump<W> {
    /// Runs until the stream ends, and lets go of `held` then: of its place, and of the connection,
    /// which is not idle as long.
    async fn run<T>(mut self, held: T, is_broken: Arc<AtomicBool>) {
        let open = metrics::gauge!("souk_streams_open");
        open.increment(1.0);
        let (app, gone) = (self.app.clone(), self.send.clone());
        let end = tokio::select! {
            biased;
            () = gone.closed() => End::Orderly,
            () = app.stopping() => End::Orderly,
            Err(end) = self.pump() => end,
        };
        is_broken.store(matches!(end, End::Broken), Ordering::Release);
        open.decrement(1.0);
        drop(held);
    }

    async fn pump(&mut self) -> Result<Infallible, End> {
        // Whoever is cut off before the first event goes on from here.
        let id = self.id();
        self.send(format!("retry: {RETRY_MS}\n{id}\n")).await?;
        loop {
            let mut has_moved = false;
            for partition in 0..self.app.runtime().partitions() {
                has_moved |= self.page_of(partition).await?;
            }
            if Instant::now() >= self.beat {
                let id = if self.told == self.at { String::new() } else { self.id() };
                self.send(format!(": still here\n{id}\n")).await?;
            }
            if has_moved {
                // The tail is read without waiting; others want to run too.
                tokio::task::yield_now().await;
                continue;
            }
            let now = Instant::now();
            if self.until.is_some_and(|until| until <= now) {
                return Err(End::Orderly);
            }
            self.wait(self.until.map_or(self.beat, |until| until.min(self.beat))).await?;
        }
    }

    /// Waits until there is more to read, or until `next`.
    async fn wait(&mut self, next: Instant) -> Result<(), End> {
        loop {
            let left = next.min(self.look_again).saturating_duration_since(Instant::now());
            let has_more = self.app.runtime().journal().wait_past_any(&self.at, left).await;
            if has_more || Instant::now() < self.look_again {
                return Ok(());
            }
            self.may_still_read().await?;
        }
    }

    /// Ends the stream of whoever would not be let in any more.
    async fn may_still_read(&mut self) -> Result<(), End> {
        if self.app.now() >= self.call.expires_at() {
            return Err(End::Orderly);
        }
        if Instant::now() < self.look_again {
            return Ok(());
        }
        self.look_again = Instant::now() + LOOK_AGAIN;
        match self.call.is_still_let_in(&self.app).await {
            Ok(()) => Ok(()),
            Err(error) if error.status().is_client_error() => Err(End::Orderly),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Passes on a page of one partition; whether there was one.
    async fn page_of(&mut self, partition: u16) -> Result<bool, End> {
        let after = self.at.get(&partition).copied().unwrap_or(0);
        let read = self.app.runtime().journal().read_from(partition, after, PAGE).await;
        let page = read.map_err(|error| broken(&error.into()))?;
        let mut chunk = String::new();
        for event in &page {
            self.at.insert(partition, event.position);
            let line = self.wanted.line(&self.app, event).await;
            let Some((name, data)) = line.map_err(|error| broken(&error))? else { continue };
            let id = self.id();
            // Writing to a text cannot fail.
            let _ = write!(chunk, "{id}event: {name}\ndata: {data}\n\n");
            if chunk.len() >= CHUNK_BYTES {
                self.send(std::mem::take(&mut chunk)).await?;
            }
        }
        if !chunk.is_empty() {
            self.send(chunk).await?;
        }
        Ok(!page.is_empty())
    }

    /// The line that says how far this is.
    fn id(&mut self) -> String {
        self.told.clone_from(&self.at);
        format!("id: {}\n", self.app.cursors().seal(CURSORS, &self.at))
    }

    /// Hands a chunk over, if the reader takes it in time and may still have it.
    async fn send(&mut self, chunk: String) -> Result<(), End> {
        self.may_still_read().await?;
        self.beat = Instant::now() + HEARTBEAT;
        match tokio::time::timeout(self.patience, self.send.send(chunk.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Orderly),
            Err(_) => {
                tracing::info!("a reader of a stream does not keep up and is disconnected");
                metrics::counter!("souk_streams_cut_total").increment(1);
                Err(End::Broken)
            }
        }
    }
}

fn broken(error: &ApiError) -> End {
    tracing::warn!(code = error.code(), "a stream of events breaks off");
    End::Broken
}

/// The body of a stream: one chunk after the other, as the connection takes them.
struct Feed {
    chunks: mpsc::Receiver<Bytes>,
    is_broken: Arc<AtomicBool>,
}

/// The stream broke off.
#[derive(Debug, thiserror::Error)]
#[error("the stream broke off")]
struct BrokeOff;

impl hyper::body::Body for Feed {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        Poll::Ready(match ready!(self.chunks.poll_recv(context)) {
            Some(chunk) => Some(Ok(Frame::data(chunk))),
            None if self.is_broken.load(Ordering::Acquire) => Some(Err(BrokeOff)),
            None => None,
        })
    }
}
