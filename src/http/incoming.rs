//! Events as publishers send them: in the native form, as CloudEvents 1.0 (structured, in batches, or
//! with attributes in header fields), read into one shape with every problem under its pointer.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};
use souk_actors::world::Timestamp;
use utoipa::ToSchema;

use super::body::{self, Fields, essence};
use super::problem::{ApiError, FieldProblem};
use crate::cloudevents::{CLOUDEVENT, CLOUDEVENTS};
use crate::schemas::registered::MARKS;

/// The longest source, id and key, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// The longest correlation or causation id.
const CORRELATION_BYTES_MAX: usize = 128;

/// An event to publish, in its native form. As a CloudEvent its attributes are `type`, `source`,
/// `id`, `partitionkey` (or `subject`), `time`, `sequence`, `correlationid` and `causationid`.
#[derive(Debug, ToSchema)]
pub struct NewEvent {
    /// A registered event type; `.v<major>` behind it names a major version.
    #[schema(example = "partner.stock.counted")]
    pub event_type: String,
    /// Who publishes it. With `id` it makes the event what it is: a second one is a duplicate.
    #[schema(max_length = 255, example = "/erp/berlin")]
    pub source: String,
    /// The publisher's own id for it.
    #[schema(max_length = 255, example = "8817-1")]
    pub id: String,
    /// What it is about: events of one source and key keep their order.
    #[schema(max_length = 255, example = "shelf-7")]
    pub key: Option<String>,
    /// When it happened; kept as it is, and nothing rests on it.
    #[schema(format = DateTime)]
    pub time: Option<String>,
    /// Its number among the events of its source and key, from 1, without gaps.
    #[schema(minimum = 1, example = json!(null))]
    pub sequence: Option<u64>,
    /// The correlation id; the request's own where there is none.
    #[schema(max_length = 128, example = json!(null))]
    pub correlation_id: Option<String>,
    /// What caused it; the request's id where there is none.
    #[schema(max_length = 128, example = json!(null))]
    pub causation_id: Option<String>,
    /// What happened, as the type's schema says.
    #[schema(value_type = Object, example = json!({}))]
    pub data: Value,
}

/// An event as it came, read and not yet held against its schema.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) event_type: String,
    pub(super) source: String,
    pub(super) id: String,
    pub(super) key: String,
    pub(super) time: Option<String>,
    pub(super) sequence: Option<u64>,
    pub(super) correlation_id: Option<String>,
    pub(super) causation_id: Option<String>,
    pub(super) data: Value,
    /// Where its type stands in the request.
    pub(super) type_at: String,
    /// Where its data stands in the request.
    pub(super) data_at: String,
}

/// The names that a form has for the same things.
struct Names {
    event_type: &'static [&'static str],
    key: &'static [&'static str],
    correlation_id: &'static [&'static str],
    causation_id: &'static [&'static str],
}

const NATIVE: Names = Names {
    event_type: &["event_type", "eventType"],
    key: &["key", "partition_key", "partitionKey"],
    correlation_id: &["correlation_id", "correlationId"],
    causation_id: &["causation_id", "causationId"],
};
const CLOUD: Names = Names {
    event_type: &["type"],
    key: &["partitionkey", "subject"],
    correlation_id: &["correlationid"],
    causation_id: &["causationid"],
};

/// Reads the one event of a request.
pub(super) fn one(headers: &HeaderMap, bytes: &Bytes) -> Result<Incoming, ApiError> {
    let value = body::parse(bytes)?;
    if headers.contains_key("ce-id") || headers.contains_key("ce-specversion") {
        return binary(headers, value);
    }
    let names = if essence(headers) == CLOUDEVENT { &CLOUD } else { &NATIVE };
    let mut errors = Vec::new();
    let read = item(value, String::new(), names, &mut errors);
    read.filter(|_| errors.is_empty()).ok_or_else(|| ApiError::invalid(errors))
}

/// Reads the events of a request: a list, or in the native form `{"events": […]}` too.
pub(super) fn several(
    headers: &HeaderMap,
    bytes: &Bytes,
    events_max: usize,
) -> Result<Vec<Incoming>, ApiError> {
    let value = body::parse(bytes)?;
    let is_cloud = essence(headers) == CLOUDEVENTS;
    let (items, at, names) = match value {
        Value::Array(items) => (items, "", if is_cloud { &CLOUD } else { &NATIVE }),
        Value::Object(mut members) if !is_cloud => match members.remove("events") {
            Some(Value::Array(items)) => (items, "/events", &NATIVE),
            _ => return Err(ApiError::invalid_field("/events", "required", "must be a list")),
        },
        _ => return Err(ApiError::invalid_field("", "wrong_type", "must be a list of events")),
    };
    if items.is_empty() || items.len() > events_max {
        let detail = format!("must have 1 to {events_max} events");
        return Err(ApiError::invalid_field(at, "out_of_range", &detail));
    }
    let mut errors = Vec::new();
    let read: Vec<_> = items
        .into_iter()
        .enumerate()
        .filter_map(|(index, value)| item(value, format!("{at}/{index}"), names, &mut errors))
        .collect();
    if errors.is_empty() { Ok(read) } else { Err(ApiError::invalid(errors)) }
}

/// Reads an event whose attributes are header fields and whose data is the body.
fn binary(headers: &HeaderMap, data: Value) -> Result<Incoming, ApiError> {
    let mut attributes = Map::new();
    for (name, value) in headers {
        if let Some(name) = name.as_str().strip_prefix("ce-") {
            let text = value.to_str().ok().and_then(decoded);
            let text = text.ok_or_else(|| {
                let pointer = format!("/{name}");
                let detail = "must be visible ASCII, everything else as % and two digits";
                ApiError::invalid_field(&pointer, "invalid", detail)
            })?;
            attributes.insert(name.to_owned(), Value::from(text));
        }
    }
    attributes.insert("data".to_owned(), data);
    let mut errors = Vec::new();
    let read = item(Value::Object(attributes), String::new(), &CLOUD, &mut errors);
    let mut read = read.filter(|_| errors.is_empty()).ok_or_else(|| ApiError::invalid(errors))?;
    // The body is the data.
    read.data_at = String::new();
    Ok(read)
}

/// `%` and two hexadecimal digits stand for a byte (the HTTP binding of CloudEvents).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

fn item(
    value: Value,
    at: String,
    names: &Names,
    errors: &mut Vec<FieldProblem>,
) -> Option<Incoming> {
    let Value::Object(mut object) = value else {
        errors.push(FieldProblem::new(at, "wrong_type", "must be an object"));
        return None;
    };
    let data = object.remove("data");
    let is_cloud = names.event_type[0] == "type";
    let mut fields = Fields::within_list(&object, at.clone());
    if is_cloud {
        cloud_only(&mut fields);
    }
    let event_type = fields.text(names.event_type);
    let source = named(&mut fields, &["source"], true);
    let id = named(&mut fields, &["id"], true);
    let key = named(&mut fields, names.key, false);
    let time = time(&mut fields);
    let sequence = sequence(&mut fields);
    let correlation_id = correlation(&mut fields, names.correlation_id);
    let causation_id = correlation(&mut fields, names.causation_id);
    if data.is_none() {
        fields.error("data", "required", "is required");
    }
    let data_at = format!("{at}/data");
    let mut found = fields.into_errors();
    if let Some(data) = &data {
        hazards(data, &mut data_at.clone(), &mut found);
    }
    errors.append(&mut found);
    Some(Incoming {
        event_type: event_type?,
        source: source?,
        id: id?,
        key: key.unwrap_or_default(),
        time,
        sequence,
        correlation_id,
        causation_id,
        data: data?,
        type_at: format!("{at}/{}", names.event_type[0]),
        data_at,
    })
}

fn cloud_only(fields: &mut Fields<'_>) {
    if fields.text(&["specversion"]).is_some_and(|version| version != "1.0") {
        fields.error("specversion", "invalid", "must be 1.0");
    }
    if fields.has(&["data_base64"]) {
        fields.error("data_base64", "unsupported", "send JSON in data");
    }
    let content_type = fields.optional_text(&["datacontenttype"]);
    if content_type.is_some_and(|of| !body::is_json_type(&of)) {
        fields.error("datacontenttype", "unsupported", "must be application/json");
    }
}

/// One line that names something.
fn named(fields: &mut Fields<'_>, names: &[&'static str], required: bool) -> Option<String> {
    let text = if required { fields.text(names) } else { fields.optional_text(names) }?;
    if text.is_empty() && required {
        fields.error(names[0], "required", "must not be empty");
    }
    if text.len() > NAME_BYTES_MAX {
        fields.error(names[0], "too_long", format!("must be at most {NAME_BYTES_MAX} bytes long"));
    }
    if text.chars().any(char::is_control) {
        fields.error(names[0], "control_character", "must not contain control characters");
    }
    Some(text)
}

fn time(fields: &mut Fields<'_>) -> Option<String> {
    let text = fields.optional_text(&["time"])?;
    let at = Timestamp::parse(&text);
    if at.is_none() {
        fields.error("time", "invalid", "must be an RFC 3339 time");
    }
    at.map(|at| at.to_string())
}

/// A number, or in CloudEvents a text of digits.
fn sequence(fields: &mut Fields<'_>) -> Option<u64> {
    let number = match fields.value("sequence")? {
        Value::String(text) => {
            let digits = text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        }
        number => number.as_u64(),
    };
    // So that the next one is a number too.
    let number = number.filter(|number| (1..u64::MAX).contains(number));
    if number.is_none() {
        fields.error("sequence", "out_of_range", "must be a whole number from 1");
    }
    number
}

fn correlation(fields: &mut Fields<'_>, names: &[&'static str]) -> Option<String> {
    let text = fields.optional_text(names)?;
    let fits = (1..=CORRELATION_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        fields.error(names[0], "invalid", "must be 1 to 128 visible characters without spaces");
    }
    fits.then_some(text)
}

/// Notes what no event may hold, whatever its schema says: control characters, and names that mean
/// something else in what is stored.
fn hazards(value: &Value, pointer: &mut String, errors: &mut Vec<FieldProblem>) {
    let is_bad =
        |text: &str| text.chars().any(|of| of.is_control() && !matches!(of, '\n' | '\r' | '\t'));
    let mut note = |pointer: &str, code: &str, detail: &str| {
        if errors.len() < 100 {
            errors.push(FieldProblem::new(pointer, code, detail));
        }
    };
    match value {
        Value::String(text) if is_bad(text) => {
            note(pointer, "control_character", "must not contain control characters");
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let length = pointer.len();
                pointer.push_str(&format!("/{index}"));
                hazards(item, pointer, errors);
                pointer.truncate(length);
            }
        }
        Value::Object(members) => {
            for name in members.keys() {
                if is_bad(name) {
                    note(
                        pointer,
                        "control_character",
                        "a name must not contain control characters",
                    );
                    return;
                }
                if MARKS.contains(&name.as_str()) {
                    note(
                        pointer,
                        "reserved_name",
                        "$personal and $sealed have a meaning of their own",
                    );
                    return;
                }
            }
            for (name, member) in members {
                let length = pointer.len();
                pointer.push('/');
                pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                hazards(member, pointer, errors);
                pointer.truncate(length);
            }
        }
        _ => {}
    }
}

/// Whether a request's media type is one of those that events come in.
pub(super) fn is_event_type(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some() && body::is_json_type(&essence(headers))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v))).collect()
    }

    fn bytes(value: &Value) -> Bytes {
        value.to_string().into()
    }

    fn native() -> Value {
        json!({ "event_type": "partner.stock.counted", "source": "/erp", "id": "1", "key": "a",
            "sequence": 3, "time": "2026-11-20T12:30:00+02:00", "data": { "count": 1 } })
    }

    #[test]
    fn one_event_is_the_same_in_every_form() {
        let json = headers(&[("content-type", "application/json")]);
        let native = one(&json, &bytes(&native())).unwrap();
        let cloud = json!({ "specversion": "1.0", "type": "partner.stock.counted", "source": "/erp",
            "id": "1", "partitionkey": "a", "subject": "b", "time": "2026-11-20T12:30:00+02:00",
            "sequence": "00000000000000000003", "data": { "count": 1 } });
        let structured =
            headers(&[("content-type", "application/cloudevents+json; charset=UTF-8")]);
        let structured = one(&structured, &bytes(&cloud)).unwrap();
        let binary = headers(&[
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-type", "partner.stock.counted"),
            ("ce-source", "%2Ferp"),
            ("ce-id", "1"),
            ("ce-subject", "a"),
            ("ce-time", "2026-11-20T10:30:00Z"),
            ("ce-sequence", "3"),
        ]);
        let binary = one(&binary, &bytes(&json!({ "count": 1 }))).unwrap();
        let shown = |of: &Incoming| {
            (
                of.event_type.clone(),
                of.source.clone(),
                of.id.clone(),
                of.key.clone(),
                of.time.clone(),
                of.sequence,
                of.data.clone(),
            )
        };
        assert_eq!(shown(&native), shown(&structured));
        assert_eq!(shown(&native), shown(&binary));
        assert_eq!((&*native.data_at, &*binary.data_at), ("/data", ""));
    }

    #[test]
    fn every_problem_of_every_event_has_its_pointer() {
        let json = headers(&[("content-type", "application/json")]);
        let mut bad = native();
        bad["source"] = json!("");
        bad["sequence"] = json!(0);
        bad["data"] = json!({ "a": ["\u{1}"], "b": { "$sealed": {} } });
        let list = json!([native(), bad, 7, { "time": "yesterday" }]);
        let error = several(&json, &bytes(&list), 10).unwrap_err();
        let pointers: Vec<_> = error.errors().iter().map(|of| of.pointer.as_str()).collect();
        let expected = [
            "/1/source",
            "/1/sequence",
            "/1/data/a/0",
            "/1/data/b",
            "/2",
            "/3/event_type",
            "/3/source",
            "/3/id",
            "/3/time",
            "/3/data",
        ];
        assert_eq!(pointers, expected);
        let within = json!({ "events": [native()] });
        assert_eq!(several(&json, &bytes(&within), 1).unwrap().len(), 1);
        for (list, max) in [(json!([]), 1), (json!([native(), native()]), 1), (json!({}), 1)] {
            assert!(several(&json, &bytes(&list), max).is_err());
        }
    }
}
