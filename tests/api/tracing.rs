//! Traces for OpenTelemetry (S1-180): from a request through commands, commits, events and handlers out
//! to a webhook, as a collector gets them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Server, Start, eventually};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// A collector of traces, and a receiver of webhooks, in this process.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    services: Arc<Mutex<BTreeSet<String>>>,
    hooks: Arc<Mutex<Vec<String>>>,
}

async fn take(
    State(collector): State<Collector>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if uri.path() == "/hooks" {
        let traceparent = headers.get("traceparent").map(|value| value.to_str().unwrap());
        collector.hooks.lock().unwrap().push(traceparent.unwrap_or_default().to_owned());
        return StatusCode::NO_CONTENT;
    }
    assert_eq!(uri.path(), "/otel/v1/traces");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        for attribute in &resource.resource.unwrap().attributes {
            if attribute.key == "service.name" {
                let name = format!("{:?}", attribute.value);
                collector.services.lock().unwrap().insert(name);
            }
        }
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        collector.spans.lock().unwrap().extend(spans);
    }
    StatusCode::OK
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Collector {
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let router = Router::new().fallback(take).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    /// The spans of a trace, by their ids.
    fn of(&self, trace: &str) -> BTreeMap<String, Span> {
        let spans = self.spans.lock().unwrap();
        let of = spans.iter().filter(|span| hex(&span.trace_id) == trace);
        of.map(|span| (hex(&span.span_id), span.clone())).collect()
    }

    async fn named(&self, trace: &str, name: &str) -> Span {
        eventually(&format!("a span {name}"), || async {
            self.of(trace).into_values().find(|span| span.name == name)
        })
        .await
    }
}

/// An attribute, as text.
fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = &found.unwrap_or_else(|| panic!("no {key} in {span:?}")).value;
    format!("{:?}", value.as_ref().unwrap().value)
}

#[tokio::test]
async fn a_purchase_is_one_trace() {
    let (collector, url) = Collector::start().await;
    let server = Start::default()
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{url}/otel/"))
        .with("WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8")
        .start()
        .await;
    let hook = json!({ "url": format!("{url}/hooks"), "events": ["order.shipped"] });
    server.admin().post("/api/v1/webhooks", &hook).await.expect(201);
    let (seller, buyer) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&seller, 5).await;
    let client = buyer.client.with("traceparent", format!("00-{TRACE}-{CLIENT}-01"));
    let order = server.place_order(&client, &listing, 1, "sandbox").await;
    server.await_event("SagaCompleted", &order.correlation_id).await;

    let request = collector.named(TRACE, "POST /api/v1/orders").await;
    assert_eq!(hex(&request.parent_span_id), CLIENT);
    assert_eq!(request.kind(), SpanKind::Server);
    assert!(
        attribute(&request, "messaging.message.conversation_id").contains(&order.correlation_id)
    );
    let answered = order.answer.header("traceparent").to_owned();
    assert_eq!(answered, format!("00-{TRACE}-{}-01", hex(&request.span_id)));
    let command = collector.named(TRACE, "PlaceOrder order").await;
    assert_eq!(command.parent_span_id, request.span_id);
    let placed = collector.named(TRACE, "create order.placed").await;
    assert_eq!(placed.kind(), SpanKind::Producer);
    let commit = collector.of(TRACE)[&hex(&placed.parent_span_id)].clone();
    assert_eq!((&*commit.name, &commit.parent_span_id), ("commit journal", &command.span_id));
    let handled = collector.named(TRACE, "process order.placed").await;
    assert_eq!((&handled.parent_span_id, handled.kind()), (&placed.span_id, SpanKind::Consumer));
    // What the saga leads to is in the trace of the request, up to the webhook.
    let sent = collector.named(TRACE, "send order.shipped").await;
    let shipped = collector.named(TRACE, "create order.shipped").await;
    assert_eq!((&sent.parent_span_id, sent.kind()), (&shipped.span_id, SpanKind::Client));
    let hooks = collector.hooks.lock().unwrap().clone();
    assert_eq!(hooks, [format!("00-{TRACE}-{}-01", hex(&sent.span_id))]);

    // It is one tree, once everything has been told.
    eventually("every span's parent", || async {
        let spans = collector.of(TRACE);
        let has_parent = |span: &Span| {
            let parent = hex(&span.parent_span_id);
            parent == CLIENT || spans.contains_key(&parent)
        };
        spans.values().all(has_parent).then_some(())
    })
    .await;
    let spans = collector.of(TRACE);
    let consumers = spans.values().filter(|span| span.kind() == SpanKind::Consumer);
    let groups: BTreeSet<_> =
        consumers.map(|span| attribute(span, "messaging.consumer.group.name")).collect();
    for name in ["order_saga-facts", "order_saga-commands", "payment-gateway", "notifications"] {
        assert!(groups.iter().any(|group| group.contains(name)), "{name} in {groups:?}");
    }
    assert!(spans.values().all(|span| span.end_time_unix_nano >= span.start_time_unix_nano));
    let told = format!("{:?}", collector.spans.lock().unwrap());
    for secret in ["@", "Larkspur", "Agatha", "Bearer", "correct horse"] {
        assert!(!told.contains(secret), "{secret}");
    }
    assert!(collector.services.lock().unwrap().iter().any(|name| name.contains("souk")));

    // Events go on with the trace of the request; the client's word is taken for what is not sampled.
    let events = server.events_of(&order.correlation_id).await;
    // What becomes of messages to webhooks is recorded behind the handlers.
    let of_handlers =
        |event: &&Value| !event["event_type"].as_str().unwrap().starts_with("webhook.");
    for event in events.iter().filter(of_handlers) {
        let traceparent = event["metadata"]["traceparent"].as_str().unwrap();
        assert_eq!(traceparent, answered, "{event}");
    }
    let other = TRACE.replace('0', "1");
    let client = buyer.client.with("traceparent", format!("00-{other}-{CLIENT}-00"));
    let order = server.place_order(&client, &listing, 1, "sandbox").await;
    server.await_event("SagaCompleted", &order.correlation_id).await;
    server.finish().await;
    // The end of the server has sent all that there was.
    assert!(collector.of(&other).is_empty());
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_but_the_traces() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let server = Start::default()
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .start()
        .await;
    let sale = server.sale(5, 1, "sandbox").await;
    server.await_event("SagaCompleted", &sale.order.correlation_id).await;
    eventually("failed exports", || async {
        (server.metric("souk_trace_spans_total", "outcome=\"failed\"").await > 0.0).then_some(())
    })
    .await;
    server.logged(&["traces cannot be sent"]).await;
    server.finish().await;
}

/// Off, nothing is told and nothing more is stored.
#[tokio::test]
async fn without_a_collector_nothing_is_traced() {
    let server = Server::start().await;
    let sale = server.sale(5, 1, "sandbox").await;
    server.await_event("SagaCompleted", &sale.order.correlation_id).await;
    let metrics = server.visitor().get("/metrics").await.expect(200);
    assert!(!metrics.raw().contains("souk_trace_spans_total"));
    let events = server.events_of(&sale.order.correlation_id).await;
    let of = |name: &str| events.iter().find(|event| event["event_type"] == name).unwrap();
    assert!(of("order.placed")["metadata"]["traceparent"].is_string());
    assert!(of("order.confirmed")["metadata"]["traceparent"].is_null());
    server.finish().await;
    let wrong = Server::start().await;
    let ended = wrong.command(&["serve"]).with("OTEL_EXPORTER_OTLP_ENDPOINT", "collector").run();
    assert_eq!(ended.code, 78, "{}", ended.errors);
    assert!(ended.errors.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{}", ended.errors);
}
