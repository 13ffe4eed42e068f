//! What surrounds every handler, in one layer: ids in and out, a span, a panic's end, the problem
//! document, metrics and a log line.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use souk_actors::trace;
use tracing::Instrument as _;

use super::info::{CORRELATION_ID, REQUEST_ID, RequestInfo, TRACEPARENT};
use super::probes::Plain;
use super::problem::{self, About, ApiError};
use super::rate_limit::{Counted, Told};
use super::server::HEAD_BYTES_MAX;
use super::{App, IDEMPOTENT_REPLAYED};
use crate::telemetry::{flows, traces};

/// The longest path and query together. A cursor and every filter fit several times over.
const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Marks a request that came in under another path than its canonical one.
#[derive(Debug, Clone)]
pub(super) struct CameAs(pub(super) String);

/// The layer.
pub(super) async fn around(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let came_at = trace::is_on().then(|| app.runtime().world().now());
    let info = RequestInfo::new(request.headers(), &**app.runtime().world());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let came_as = request.extensions_mut().remove::<CameAs>().map(|CameAs(path)| path);
    request.extensions_mut().insert(info.clone());
    let counted = app.counts_requests().then(Counted::default);
    if let Some(counted) = &counted {
        request.extensions_mut().insert(counted.clone());
    }

    let span = tracing::info_span!(
        "request",
        correlation_id = %info.correlation_id,
        trace_id = info.trace_id(),
        request_id = %info.request_id,
    );
    let flow = route.as_ref().and_then(|route| flows::begun_by(method.as_str(), route.as_str()));
    let flow = flow.filter(|flow| app.flows().begun(flow, &info.correlation_id, app.now()));
    let mut response = match acceptable(request.uri(), request.headers()) {
        Ok(()) => match unwinding(next.run(request)).instrument(span.clone()).await {
            Ok(response) => response,
            Err(panic) => span.in_scope(|| after_panic(&*panic)).into_response(),
        },
        Err(refusal) => refusal.into_response(),
    };
    if let Some(flow) = flow.filter(|_| leads_to_nothing(&response)) {
        app.flows().came_to_nothing(flow, &info.correlation_id);
    }
    let asked_for = came_as.as_deref().unwrap_or(&path);
    render_problem(&mut response, asked_for, &info);
    for (name, value) in counted.and_then(|counted| counted.told()).iter().flat_map(Told::headers) {
        response.headers_mut().append(name, value);
    }
    add_headers(response.headers_mut(), &info, came_as.is_some().then_some(&*path));
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    span.in_scope(|| record(&method, route, response.status(), began));
    if let Some(came_at) = came_at {
        traces::request(&traces::Request {
            traceparent: &info.traceparent,
            parent: info.parent,
            method: method_label(&method),
            route,
            status: response.status().as_u16(),
            correlation_id: &info.correlation_id,
            began: came_at,
            took: began.elapsed(),
        });
    }
    response
}

/// Whether no event follows from a request: it was refused, for want of room too, or is a repeat. What may have
/// happened all the same (504) is none of those.
fn leads_to_nothing(response: &Response) -> bool {
    let status = response.status();
    status.is_client_error()
        || status == StatusCode::SERVICE_UNAVAILABLE
        || response.headers().contains_key(IDEMPOTENT_REPLAYED)
}

/// Refuses what no route could mean, and heads that are larger than they may be: the connection
/// notices that only while a head is incomplete.
fn acceptable(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    if headers.iter().map(bytes).sum::<usize>() > HEAD_BYTES_MAX {
        let detail = format!("the header fields are longer than {HEAD_BYTES_MAX} bytes");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(ApiError::new(status, "head_too_large", detail));
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if target.len() > TARGET_BYTES_MAX {
        let detail = format!("the path and query are longer than {TARGET_BYTES_MAX} bytes");
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail));
    }
    // Not every store can look for one, and nothing is named so.
    if target.contains("%00") {
        let detail = "the path and query must not contain the character U+0000";
        return Err(ApiError::bad_request("bad_request", detail));
    }
    Ok(())
}

/// The answer, or what the handler panicked with.
async fn unwinding<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

fn after_panic(panic: &(dyn Any + Send)) -> ApiError {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let error_id = problem::uuid_of_failure();
    tracing::error!(error_id, panic = message, "a request handler panicked");
    ApiError::internal(error_id)
}

/// Writes the problem document of an error, ours or the framework's.
fn render_problem(response: &mut Response, instance: &str, info: &RequestInfo) {
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if !(status.is_client_error() || status.is_server_error()) => return,
        None if response.extensions().get::<Plain>().is_some() => return,
        None if response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|of| of == problem::MEDIA_TYPE) =>
        {
            return;
        }
        None => ApiError::from_status(status),
    };
    let about = About { instance, correlation_id: &info.correlation_id, trace_id: info.trace_id() };
    let body =
        serde_json::to_vec(&error.render(about)).expect("a problem is plain data with string keys");
    *response.body_mut() = body.into();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.remove(header::CONTENT_LENGTH);
}

fn add_headers(headers: &mut HeaderMap, info: &RequestInfo, canonical: Option<&str>) {
    for (name, value) in [
        (CORRELATION_ID, &info.correlation_id),
        (REQUEST_ID, &info.request_id),
        (TRACEPARENT, &info.traceparent),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Answers are data; the one page there is says itself what it needs.
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    // Nearly everything here is about somebody; what is not says so itself.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(canonical) = canonical
        && let Ok(link) = HeaderValue::from_str(&format!("<{canonical}>; rel=\"canonical\""))
    {
        headers.append(header::LINK, link);
    }
}

/// Successes are logged at DEBUG only: at tens of thousands a second the log would be the load. So
/// are refusals for want of room, which come by the thousand just when there is least to spare; they
/// are counted, and what is behind them (the journal is down) is logged where it is noticed.
fn record(method: &Method, route: &str, status: StatusCode, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let (method, route) = (method_label(method), route.to_owned());
    metrics::counter!(
        "souk_http_requests_total",
        "method" => method, "route" => route.clone(), "status" => status_label(status)
    )
    .increment(1);
    metrics::histogram!(
        "souk_http_request_duration_seconds",
        "method" => method, "route" => route.clone()
    )
    .record(seconds);
    let status = status.as_u16();
    match status {
        429 | 503 => tracing::debug!(method, route, status, seconds, "request not taken"),
        500.. => tracing::warn!(method, route, status, seconds, "request failed"),
        400.. => tracing::info!(method, route, status, seconds, "request refused"),
        _ => tracing::debug!(method, route, status, seconds, "request answered"),
    }
}

/// Clients may make up methods; metrics must not grow by them.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

fn status_label(status: StatusCode) -> String {
    status.as_u16().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flow_begins_with_what_was_not_let_in() {
        let answer = |status: StatusCode| status.into_response();
        for status in [404, 409, 422, 429, 503] {
            assert!(leads_to_nothing(&answer(StatusCode::from_u16(status).unwrap())), "{status}");
        }
        // It is not known of these.
        for status in [200, 201, 500, 504] {
            assert!(!leads_to_nothing(&answer(StatusCode::from_u16(status).unwrap())), "{status}");
        }
        let mut repeat = answer(StatusCode::CREATED);
        repeat.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        assert!(leads_to_nothing(&repeat));
    }

    #[tokio::test]
    async fn a_panic_is_caught_and_its_words_stay_inside() {
        async fn later() {
            tokio::task::yield_now().await;
            panic!("the secret is 42");
        }
        let panic = unwinding(later()).await.unwrap_err();
        let mut response = after_panic(&*panic).into_response();
        let info = RequestInfo::new(&HeaderMap::new(), &souk_actors::world::SystemWorld::new());
        render_problem(&mut response, "/x", &info);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], problem::MEDIA_TYPE);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(!text.contains("secret"), "{text}");
        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["code"], "internal");
        assert!(body["error_id"].as_str().is_some_and(|id| !id.is_empty()));
        assert_eq!(body["correlation_id"], *info.correlation_id);
    }

    #[tokio::test]
    async fn what_does_not_panic_passes() {
        assert_eq!(unwinding(async { 7 }).await.unwrap(), 7);
    }
}
