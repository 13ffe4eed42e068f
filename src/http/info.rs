//! Who is who in one request: its ids, its trace, and whoever sent it.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::HeaderName;
use souk_actors::trace::Here;
use souk_actors::world::World;
use uuid::Uuid;

use crate::domain::text::hex;
use crate::projections::request_of_trace;

/// Names everything that one request leads to; the client may choose it.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// Names the request; always ours.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What the systems that a trace went through noted of it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest state of a trace that is carried on: what the W3C asks for at least.
const TRACESTATE_MAX: usize = 512;
/// The longest correlation id that is taken over.
const CORRELATION_ID_MAX: usize = 128;

/// The ids of one request.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// Ties together everything that the request leads to.
    pub correlation_id: Arc<str>,
    /// Names the request, and so causes its commands.
    pub request_id: Arc<str>,
    /// The trace context of this hop.
    pub traceparent: Arc<str>,
    /// What came with that, as it came.
    pub tracestate: Option<Arc<str>>,
    /// The client's own span, if it told.
    pub parent: Option<[u8; 8]>,
}

impl RequestInfo {
    /// Takes over what the client sent, where it is well formed, and makes up the rest.
    pub fn new(headers: &HeaderMap, world: &dyn World) -> Self {
        // A trace that begins here has the request's id, so that either is found by the other.
        let mut own = Uuid::encode_buffer();
        let own = &*world.new_id().simple().encode_lower(&mut own);
        let request_id: Arc<str> = request_of_trace(own).into();
        let sent = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let correlation_id = sent(CORRELATION_ID)
            .filter(|id| (1..=CORRELATION_ID_MAX).contains(&id.len()))
            .filter(|id| id.bytes().all(|byte| byte.is_ascii_graphic()))
            .map_or_else(|| request_id.clone(), Arc::from);
        let sent = sent(TRACEPARENT);
        let trace = sent.and_then(trace_of);
        let parent = trace.and(sent).and_then(Here::parse).map(|here| here.span_id);
        Self {
            correlation_id,
            request_id,
            traceparent: next_hop(trace.unwrap_or((own, "01")), world),
            tracestate: trace.and(state_of(headers)),
            parent,
        }
    }

    /// The trace's id.
    pub fn trace_id(&self) -> &str {
        self.traceparent.get(3..35).unwrap_or_default()
    }
}

/// The trace id and the flags of a trace context, if it is one.
fn trace_of(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    let whole = hex(trace, 32) && !zero(trace) && hex(span, 16) && !zero(span) && hex(flags, 2);
    (known && whole).then_some((trace, flags))
}

/// The state of a trace, if it is one; it may come in several fields.
fn state_of(headers: &HeaderMap) -> Option<Arc<str>> {
    let mut members = Vec::new();
    for field in headers.get_all(TRACESTATE) {
        members.extend(field.to_str().ok()?.split(',').map(str::trim));
    }
    members.retain(|member| !member.is_empty());
    let is_member = |member: &&str| {
        let graphic = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        member.bytes().all(graphic)
            && member
                .split_once('=')
                .is_some_and(|(key, value)| !key.is_empty() && !value.is_empty())
    };
    let state = members.join(",");
    let is_state = (1..=TRACESTATE_MAX).contains(&state.len()) && members.iter().all(is_member);
    is_state.then(|| state.into())
}

fn next_hop((trace, flags): (&str, &str), world: &dyn World) -> Arc<str> {
    let mut span = [0; 8];
    world.fill(&mut span);
    // An id of only zeros would be no id.
    span[0] |= 1;
    format!("00-{trace}-{}-{flags}", hex(&span)).into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use souk_actors::world::SystemWorld;

    use super::*;

    fn info(headers: &[(HeaderName, &str)]) -> RequestInfo {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        RequestInfo::new(&headers, &SystemWorld::new())
    }

    #[test]
    fn a_good_correlation_id_is_kept_and_a_bad_one_replaced() {
        assert_eq!(&*info(&[(CORRELATION_ID, "req_456")]).correlation_id, "req_456");
        let long = "x".repeat(129);
        for bad in ["", "has space", &long] {
            let made = info(&[(CORRELATION_ID, bad)]);
            assert!(made.correlation_id.starts_with("req_"), "{bad}");
        }
        assert_ne!(info(&[]).correlation_id, info(&[]).correlation_id);
    }

    #[test]
    fn a_trace_is_continued_with_a_new_span() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let sent = format!("00-{trace}-b7ad6b7169203331-00");
        let info_of = info(&[(TRACEPARENT, &sent)]);
        assert_eq!(info_of.trace_id(), trace);
        assert!(info_of.traceparent.ends_with("-00"));
        assert_ne!(*info_of.traceparent, *sent);
    }

    #[test]
    fn a_trace_that_begins_here_has_the_requests_id() {
        let info = info(&[]);
        assert_eq!(*info.request_id, format!("req_{}", info.trace_id()));
        assert!(info.traceparent.ends_with("-01"));
    }

    #[test]
    fn a_broken_trace_is_started_anew() {
        let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        for bad in
            ["", "00-abc-def-01", &zeros, "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
        {
            let info = info(&[(TRACEPARENT, bad)]);
            assert_eq!(info.traceparent.len(), 55, "{bad}");
            assert_ne!(info.trace_id(), "0".repeat(32));
        }
    }

    #[test]
    fn the_state_of_a_trace_goes_with_the_trace_and_not_without() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let state = |trace: &str, fields: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, trace.parse().unwrap());
            for field in fields {
                headers.append(TRACESTATE, field.parse().unwrap());
            }
            RequestInfo::new(&headers, &SystemWorld::new())
                .tracestate
                .map(|state| state.to_string())
        };
        let whole = Some("rojo=00f067aa0ba902b7,congo=t61".to_owned());
        assert_eq!(state(trace, &["rojo=00f067aa0ba902b7, congo=t61"]), whole);
        assert_eq!(state(trace, &["rojo=00f067aa0ba902b7,", "congo=t61"]), whole);
        assert_eq!(state("00-abc", &["rojo=00f067aa0ba902b7"]), None);
        let long = format!("a={}", "x".repeat(TRACESTATE_MAX));
        for bad in ["", "rojo", "=1", "rojo=", "a=1,b", &long] {
            assert_eq!(state(trace, &[bad]), None, "{bad}");
        }
    }
}
