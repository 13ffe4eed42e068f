//! Traces for OpenTelemetry: what the runtime and the HTTP layer tell of each hop as spans, sent by
//! OTLP (HTTP, protobuf). Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//! All names of spans and attributes stand here: those of OpenTelemetry for messaging are not final
//! yet. Spans hold ids, names and outcomes, never what is in a command or an event.
//!
//! ```text
//!   hop ──▶ queue (bounded; what has no room is dropped and counted) ──▶ batches ──▶ collector
//! ```

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use souk_actors::trace::{self, Here, Hop, Span, Tracer};
use souk_actors::world::Timestamp;
use tokio::sync::{mpsc, oneshot};
use url::Url;

use super::VERSION;
use crate::gateways::collector::CollectorClient;

/// Spans that wait to be sent; more are dropped. Some 4 MB.
const QUEUE_MAX: usize = 8_192;
/// Spans that are sent at once.
const BATCH_MAX: usize = 512;
/// How long a batch that is not full waits for more.
const LINGER: Duration = Duration::from_millis(200);
/// What the end of the process waits for the last spans to be taken.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

enum Message {
    Span(Box<SpanData>),
    Flush(oneshot::Sender<()>),
}

struct Exporter(mpsc::Sender<Message>);

impl Exporter {
    fn send(&self, span: SpanData) {
        if self.0.try_send(Message::Span(Box::new(span))).is_err() {
            count("dropped", 1);
        }
    }
}

fn count(outcome: &'static str, spans: usize) {
    metrics::counter!("souk_trace_spans_total", "outcome" => outcome).increment(spans as u64);
}

/// Begins to send traces to a collector. Only the first call in a process has effect.
pub fn start(endpoint: &Url) -> anyhow::Result<()> {
    if trace::is_on() {
        return Ok(());
    }
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(CollectorClient::new(endpoint.clone()))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(traces_of(endpoint))
        .build()
        .context("cannot send traces to OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let service = Resource::builder().with_service_name("souk");
    let version = KeyValue::new("service.version", VERSION);
    exporter.set_resource(&service.with_attributes([version]).build());
    let (queue, waiting) = mpsc::channel(QUEUE_MAX);
    ["exported", "failed", "dropped"].into_iter().for_each(|outcome| count(outcome, 0));
    if EXPORTER.set(Exporter(queue)).is_ok() && trace::install(Box::new(Hops)) {
        tokio::spawn(export(exporter, waiting));
    }
    Ok(())
}

/// Where a collector takes traces: below the path that it was given with.
fn traces_of(endpoint: &Url) -> String {
    format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'))
}

/// Waits, not for long, until everything so far has been sent.
pub async fn flush() {
    let Some(Exporter(queue)) = EXPORTER.get() else { return };
    let (done, flushed) = oneshot::channel();
    if queue.try_send(Message::Flush(done)).is_ok() {
        // A collector that is away must not hold up the end.
        let _ = tokio::time::timeout(FLUSH_WITHIN, flushed).await;
    }
}

async fn export(exporter: SpanExporter, mut waiting: mpsc::Receiver<Message>) {
    let mut was_well = true;
    while let Some(first) = waiting.recv().await {
        let (mut batch, mut flushed) = (Vec::new(), Vec::new());
        let until = tokio::time::Instant::now() + LINGER;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Span(span) => batch.push(*span),
                Message::Flush(done) => flushed.push(done),
            }
            if batch.len() >= BATCH_MAX || !flushed.is_empty() {
                break;
            }
            next = tokio::time::timeout_at(until, waiting.recv()).await.ok().flatten();
        }
        let spans = batch.len();
        if spans > 0 {
            let sent = exporter.export(batch).await;
            count(if sent.is_ok() { "exported" } else { "failed" }, spans);
            if let Err(error) = &sent
                && was_well
            {
                tracing::warn!(%error, "traces cannot be sent; they are dropped until they can be");
            }
            was_well = sent.is_ok();
        }
        for done in flushed {
            // Whoever asked may not have waited.
            let _ = done.send(());
        }
    }
}

/// A span as it is told: everything but what all have in common.
struct Told {
    here: Here,
    /// None: the trace begins here.
    parent: Option<[u8; 8]>,
    is_from_outside: bool,
    kind: SpanKind,
    name: String,
    began: Timestamp,
    took: Duration,
    attributes: Vec<KeyValue>,
    error: Option<Cow<'static, str>>,
}

impl Told {
    fn into_span(self) -> SpanData {
        let began = u64::try_from(self.began.millis()).unwrap_or(0);
        let start_time = UNIX_EPOCH + Duration::from_millis(began);
        let mut attributes = self.attributes;
        let status = match &self.error {
            Some(error) => {
                attributes.push(KeyValue::new("error.type", error.to_string()));
                Status::error(error.to_string())
            }
            None => Status::Unset,
        };
        let (trace_id, span_id) = (self.here.trace_id, self.here.span_id);
        SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(trace_id),
                SpanId::from_bytes(span_id),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: self.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: self.is_from_outside,
            span_kind: self.kind,
            name: self.name.into(),
            start_time,
            end_time: start_time + self.took,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("souk")
                .with_version(VERSION)
                .build(),
        }
    }
}

/// A request that was answered.
pub struct Request<'a> {
    /// Its span, as a W3C trace context.
    pub traceparent: &'a str,
    /// The client's span, if it told.
    pub parent: Option<[u8; 8]>,
    /// The method.
    pub method: &'static str,
    /// The route's template.
    pub route: &'a str,
    /// The answer's status.
    pub status: u16,
    /// Ties together what the request leads to.
    pub correlation_id: &'a str,
    /// When it came.
    pub began: Timestamp,
    /// How long it took.
    pub took: Duration,
}

/// Tells of a request. Probes and metrics are not told of.
pub fn request(request: &Request<'_>) {
    let Some(exporter) = EXPORTER.get() else { return };
    let here = Here::parse(request.traceparent).filter(|here| here.sampled);
    let Some(here) = here.filter(|_| request.route.starts_with("/api/")) else { return };
    let error = (request.status >= 500).then(|| request.status.to_string().into());
    let told = Told {
        here,
        parent: request.parent,
        is_from_outside: true,
        kind: SpanKind::Server,
        name: format!("{} {}", request.method, request.route),
        began: request.began,
        took: request.took,
        attributes: vec![
            KeyValue::new("http.request.method", request.method),
            KeyValue::new("http.route", request.route.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(request.status)),
            KeyValue::new("messaging.message.conversation_id", request.correlation_id.to_owned()),
        ],
        error,
    };
    exporter.send(told.into_span());
}

/// A message to a webhook that was sent, or could not be.
pub struct Delivery<'a> {
    /// Its span.
    pub here: Here,
    /// The span that it goes on from.
    pub parent: Here,
    /// The event's type.
    pub event_type: &'a str,
    /// The message's id.
    pub message_id: &'a str,
    /// The answer's status, if there was one.
    pub status: Option<u16>,
    /// What went wrong.
    pub error: Option<&'a str>,
    /// When it began.
    pub began: Timestamp,
    /// How long it took.
    pub took: Duration,
}

/// Tells of a message to a webhook.
pub fn delivery(delivery: &Delivery<'_>) {
    let Some(exporter) = EXPORTER.get().filter(|_| delivery.here.sampled) else { return };
    let mut attributes = messaging("send", "send", delivery.event_type.to_owned());
    attributes.push(KeyValue::new("messaging.message.id", delivery.message_id.to_owned()));
    attributes.extend(
        delivery.status.map(|of| KeyValue::new("http.response.status_code", i64::from(of))),
    );
    let told = Told {
        here: delivery.here,
        parent: Some(delivery.parent.span_id),
        is_from_outside: false,
        kind: SpanKind::Client,
        name: format!("send {}", delivery.event_type),
        began: delivery.began,
        took: delivery.took,
        attributes,
        error: delivery.error.map(|error| error.to_owned().into()),
    };
    exporter.send(told.into_span());
}

fn messaging(name: &str, kind: &'static str, destination: String) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "souk"),
        KeyValue::new("messaging.operation.name", name.to_owned()),
        KeyValue::new("messaging.operation.type", kind),
        KeyValue::new("messaging.destination.name", destination),
    ]
}

/// What the runtime tells.
struct Hops;

impl Tracer for Hops {
    fn ended(&self, span: Span) {
        let Some(exporter) = EXPORTER.get() else { return };
        let (kind, name, attributes) = described(&span.hop);
        let told = Told {
            here: span.here,
            parent: Some(span.parent),
            is_from_outside: false,
            kind,
            name,
            began: span.began,
            took: span.took,
            attributes,
            error: span.error.map(Cow::Borrowed),
        };
        exporter.send(told.into_span());
    }
}

fn described(hop: &Hop) -> (SpanKind, String, Vec<KeyValue>) {
    let partition = |of: u16| KeyValue::new("messaging.destination.partition.id", of.to_string());
    let message = |id: &uuid::Uuid| KeyValue::new("messaging.message.id", id.to_string());
    let count = |of: usize| {
        KeyValue::new("messaging.batch.message_count", i64::try_from(of).unwrap_or(i64::MAX))
    };
    let conversation = |id: &str| KeyValue::new("messaging.message.conversation_id", id.to_owned());
    match hop {
        Hop::Command { aggregate_type, aggregate_id, command, outcome, correlation_id } => {
            let mut attributes = messaging(command, "send", (*aggregate_type).to_owned());
            attributes.extend([
                KeyValue::new("souk.aggregate.id", aggregate_id.to_string()),
                KeyValue::new("souk.command.outcome", *outcome),
                conversation(correlation_id),
            ]);
            (SpanKind::Client, format!("{command} {aggregate_type}"), attributes)
        }
        Hop::Commit { aggregate_type, partition: of, events } => {
            let mut attributes = messaging("commit", "settle", "journal".to_owned());
            let of_type = KeyValue::new("souk.aggregate.type", *aggregate_type);
            attributes.extend([of_type, partition(*of), count(*events)]);
            (SpanKind::Client, "commit journal".to_owned(), attributes)
        }
        Hop::Event { event_type, event_id, partition: of } => {
            let mut attributes = messaging("create", "create", event_type.to_string());
            attributes.extend([message(event_id), partition(*of)]);
            (SpanKind::Producer, format!("create {event_type}"), attributes)
        }
        Hop::Handling {
            subscription,
            event_type,
            event_id,
            partition: of,
            events,
            attempt,
            correlation_id,
        } => {
            let mut attributes = messaging("process", "process", event_type.to_string());
            attributes.extend([
                KeyValue::new("messaging.consumer.group.name", *subscription),
                message(event_id),
                partition(*of),
                count(*events),
                KeyValue::new("souk.attempt", i64::from(*attempt)),
                conversation(correlation_id),
            ]);
            (SpanKind::Consumer, format!("process {event_type}"), attributes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_path_is_kept() {
        let of = |text: &str| traces_of(&Url::parse(text).unwrap());
        assert_eq!(of("http://otel.example:4318"), "http://otel.example:4318/v1/traces");
        assert_eq!(of("https://otel.example/souk/"), "https://otel.example/souk/v1/traces");
    }

    #[test]
    fn spans_are_named_as_opentelemetry_names_them() {
        let hop = Hop::Handling {
            subscription: "notifications",
            event_type: "order.placed".into(),
            event_id: uuid::Uuid::from_u128(7),
            partition: 3,
            events: 1,
            attempt: 2,
            correlation_id: "req_456".into(),
        };
        let (kind, name, attributes) = described(&hop);
        assert_eq!((kind, &*name), (SpanKind::Consumer, "process order.placed"));
        let of = |key: &str| {
            attributes.iter().find(|of| of.key.as_str() == key).map(|of| of.value.to_string())
        };
        for (key, value) in [
            ("messaging.system", "souk"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", "order.placed"),
            ("messaging.destination.partition.id", "3"),
            ("messaging.consumer.group.name", "notifications"),
            ("messaging.message.conversation_id", "req_456"),
        ] {
            assert_eq!(of(key).as_deref(), Some(value), "{key}");
        }
    }
}
