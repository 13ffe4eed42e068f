//! Properties of everything that reads a request: whatever comes, nothing panics, what was given
//! out is read back the same, and nothing else is taken for it.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use souk_actors::event::Position;
use souk_actors::testing::stored_event;
use souk_actors::world::SystemWorld;
use tokio_test::block_on;
use uuid::Uuid;

use super::auth::{Login, Refresh};
use super::body::{FromFields, Nothing, Reason, read};
use super::categories::NewCategory;
use super::conditional::{IfMatch, IfNoneMatch, version_tag};
use super::cursor::Cursors;
use super::dev::{Advance, Echo, NewFault};
use super::event_json::{EventName, event_name, reference};
use super::idempotency::IdempotencyKey;
use super::info::RequestInfo;
use super::listings::{NewListing, UpdateListing};
use super::params::Params;
use super::prefer::Prefer;
use super::preferences::NewPreferences;
use super::problem::ApiError;
use super::reviews::{NewReply, NewReview};
use super::users::{Register, UpdateUser, UpgradeToSeller, VerifyEmail};

fn parts(uri: &str, headers: &[(&'static str, &[u8])]) -> Option<Parts> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        let name = HeaderName::from_static(name);
        request = request.header(name, HeaderValue::from_bytes(value).ok()?);
    }
    request.body(()).ok().map(|request| request.into_parts().0)
}

fn extracted<T: FromRequestParts<()>>(mut parts: Parts) -> Result<T, T::Rejection> {
    block_on(T::from_request_parts(&mut parts, &()))
}

/// A request with one header, or none where this can be no header's value.
fn with(name: &'static str, value: &[u8]) -> Option<Parts> {
    parts("/x", &[(name, value)])
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,30}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("email"),
        Just("password"),
        Just("first_name"),
        Just("lastName"),
        Just("title"),
        Just("description"),
        Just("price"),
        Just("amount"),
        Just("currency"),
        Just("category_id"),
        Just("quantity"),
        Just("images"),
        Just("sku"),
        Just("seconds"),
        Just("by"),
        Just("target"),
        Just("mode"),
        Just("times"),
        Just("reason"),
        Just("name"),
        Just("slug"),
        Just("transaction_id"),
        Just("rating"),
        Just("comment"),
        Just("reply"),
        Just("x"),
    ];
    leaf.prop_recursive(4, 40, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..8).prop_map(|members| {
                let named = members.into_iter().map(|(name, value)| (name.to_owned(), value));
                Value::Object(named.collect::<Map<_, _>>())
            }),
        ]
    })
}

/// Reads a body as everything that there is; each says what is wrong or nothing.
fn read_as_everything(bytes: &[u8]) -> Result<(), TestCaseError> {
    fn check<T: FromFields>(bytes: &[u8]) -> Result<(), TestCaseError> {
        match read::<T>(bytes) {
            Ok(_) => Ok(()),
            Err(error) => {
                prop_assert!(error.status().is_client_error());
                let named = error.errors().iter().all(|of| {
                    (of.pointer.is_empty() || of.pointer.starts_with('/'))
                        && !of.code.is_empty()
                        && !of.detail.is_empty()
                });
                prop_assert!(named, "{error:?}");
                Ok(())
            }
        }
    }
    check::<Register>(bytes)?;
    check::<Login>(bytes)?;
    check::<Refresh>(bytes)?;
    check::<VerifyEmail>(bytes)?;
    check::<UpdateUser>(bytes)?;
    check::<UpgradeToSeller>(bytes)?;
    check::<NewCategory>(bytes)?;
    check::<NewReview>(bytes)?;
    check::<NewReply>(bytes)?;
    check::<NewPreferences>(bytes)?;
    check::<NewListing>(bytes)?;
    check::<UpdateListing>(bytes)?;
    check::<super::orders::OrderWish>(bytes)?;
    check::<super::orders::TransactionWish>(bytes)?;
    check::<Advance>(bytes)?;
    check::<NewFault>(bytes)?;
    check::<Echo>(bytes)?;
    check::<Reason>(bytes)?;
    check::<Nothing>(bytes)
}

/// The same value with the members of every object in the opposite order.
fn reversed(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let written = members.iter().rev();
            let written = written.map(|(name, of)| format!(" {} : {}", json!(name), reversed(of)));
            format!("{{{}}}", written.collect::<Vec<_>>().join(",\n"))
        }
        Value::Array(items) => {
            format!("[ {} ]", items.iter().map(reversed).collect::<Vec<_>>().join(" , "))
        }
        other => other.to_string(),
    }
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_key_is_read_back(key in "[ -~]{1,255}") {
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        let parts = with("idempotency-key", quoted.as_bytes()).unwrap();
        let read: IdempotencyKey = extracted(parts).unwrap();
        prop_assert_eq!(read.0, Some(key));
    }

    #[test]
    fn no_header_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), text in "[\"\\\\,;=W/*a-z0-9 -]{0,40}") {
        for value in [bytes.as_slice(), text.as_bytes()] {
            if let Some(parts) = with("idempotency-key", value) {
                let key = extracted::<IdempotencyKey>(parts).map(|key| key.0);
                prop_assert!(!key.is_ok_and(|key| key.is_none_or(|of| of.is_empty() || of.len() > 255)));
            }
            if let Some(parts) = with("if-match", value) {
                let _: Result<IfMatch, ApiError> = extracted(parts);
            }
            if let Some(parts) = with("if-none-match", value) {
                let _: Result<IfNoneMatch, ApiError> = extracted(parts);
            }
            if let Some(parts) = with("prefer", value) {
                let prefer: Prefer = extracted(parts).unwrap();
                prop_assert!(prefer.wait.is_none_or(|wait| wait.as_secs() <= 10));
            }
        }
    }

    #[test]
    fn every_version_comes_back_in_if_match(version: u64) {
        let tag = version_tag(version);
        let parts = with("if-match", tag.as_bytes()).unwrap();
        prop_assert_eq!(extracted::<IfMatch>(parts).unwrap(), IfMatch::Version(version));
    }

    #[test]
    fn ids_are_well_formed_whatever_was_sent(
        correlation in prop::collection::vec(any::<u8>(), 0..140),
        trace in "(00|ff|01)-[0-9a-fA-F]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{2}|.{0,60}",
    ) {
        let sent: [(&str, &[u8]); 2] =
            [("x-correlation-id", &correlation), ("traceparent", trace.as_bytes())];
        let Some(parts) = parts("/x", &sent) else { return Ok(()) };
        let info = RequestInfo::new(&parts.headers, &SystemWorld::new());
        prop_assert!((1..=128).contains(&info.correlation_id.len()));
        prop_assert!(is_visible(&info.correlation_id));
        prop_assert_eq!(info.traceparent.len(), 55);
        let hex = |text: &str| text.bytes().all(|of| of.is_ascii_digit() || (b'a'..=b'f').contains(&of));
        let traceparent = info.traceparent.to_string();
        let fields: Vec<_> = traceparent.split('-').collect();
        prop_assert!(fields.len() == 4 && fields.iter().all(|field| hex(field)));
        prop_assert_ne!(info.trace_id(), "0".repeat(32));
    }

    #[test]
    fn a_good_trace_goes_on(trace in 1_u128.., span in 1_u64.., flags: u8) {
        let sent = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        let parts = with("traceparent", sent.as_bytes()).unwrap();
        let info = RequestInfo::new(&parts.headers, &SystemWorld::new());
        prop_assert_eq!(info.trace_id(), format!("{trace:032x}"));
        let flags = format!("-{flags:02x}");
        prop_assert!(info.traceparent.ends_with(&flags));
    }

    #[test]
    fn a_cursor_is_read_back_and_no_other(
        at: (i64, u128), list in ".{0,20}", other in ".{0,20}", place: prop::sample::Index, bit in 0..8_u8,
    ) {
        let cursors = Cursors::new([3; 32]);
        let at = (at.0, Uuid::from_u128(at.1));
        let cursor = cursors.seal(&list, &at);
        prop_assert_eq!(cursors.open::<(i64, Uuid)>(&list, &cursor).unwrap(), at);
        if list != other {
            prop_assert!(cursors.open::<(i64, Uuid)>(&other, &cursor).is_err());
        }
        let mut changed = cursor.clone().into_bytes();
        let place = place.index(changed.len());
        changed[place] ^= 1 << bit;
        if let Ok(changed) = String::from_utf8(changed) {
            prop_assert!(cursors.open::<(i64, Uuid)>(&list, &changed).is_err());
        }
        prop_assert!(cursors.open::<(i64, Uuid)>(&list, &cursor[1..]).is_err());
    }

    #[test]
    fn no_text_is_a_cursor(text in ".{0,60}|[A-Za-z0-9_-]{0,120}") {
        let opened = Cursors::new([3; 32]).open::<Value>("/x?", &text);
        let refused = opened.unwrap_err();
        prop_assert_eq!(refused.code(), "invalid_cursor");
    }

    #[test]
    fn an_event_is_found_by_its_reference(partition in 0..256_u16, position in 1..(1_u64 << 48)) {
        let mut event = stored_event("order.placed", "order", Uuid::nil(), &json!({}));
        (event.partition, event.position) = (partition, position);
        let at = EventName::At(Position { partition, position });
        prop_assert_eq!(event_name(&reference(&event)), Some(at));
    }

    #[test]
    fn no_event_name_panics(text in ".{0,40}|evt[-_][a-z0-9_+]{0,30}") {
        let _: Option<EventName> = event_name(&text);
    }

    #[test]
    fn no_query_panics(query in "([a-zA-Z_]{0,12}=?[ -~]{0,20}&){0,6}|[!-~]{0,60}") {
        let Some(parts) = parts(&format!("/x?{query}"), &[]) else { return Ok(()) };
        let Ok(params) = extracted::<Params>(parts) else { return Ok(()) };
        prop_assert!(!params.limit().is_ok_and(|limit| !(1..=200).contains(&limit)));
        let _: (Result<_, _>, Result<_, _>) = (params.min_position(), params.time("from"));
        prop_assert!(params.list().starts_with("/x?"));
    }

    #[test]
    fn no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), json in any_json()) {
        read_as_everything(&bytes)?;
        read_as_everything(json.to_string().as_bytes())?;
        let mut broken = json.to_string().into_bytes();
        broken.truncate(broken.len() / 2);
        read_as_everything(&broken)?;
    }

    #[test]
    fn two_spellings_of_a_body_are_one(json in any_json()) {
        let object = json!({ "a": json, "b": 1 });
        let canonical = |text: &str| read::<Nothing>(text.as_bytes()).map(|valid| valid.canonical).ok();
        prop_assert_eq!(canonical(&object.to_string()), canonical(&reversed(&object)));
    }
}
