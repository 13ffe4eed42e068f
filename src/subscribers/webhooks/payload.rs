//! What is sent: the event in the form that the endpoint wants, without personal data, and below
//! 20 KiB; what is larger is sent without its data, to be fetched.

use serde_json::{Value, json};
use souk_actors::event::StoredEvent;

use crate::cloudevents::{CLOUDEVENT, cloud};
use crate::domain::webhook_endpoint::PayloadFormat;

/// The largest body.
pub const BODY_BYTES_MAX: usize = 20 * 1024;

/// The media type of a form.
pub fn content_type(format: PayloadFormat) -> &'static str {
    match format {
        PayloadFormat::Standard => "application/json",
        PayloadFormat::Cloudevents => CLOUDEVENT,
    }
}

/// The bytes to sign and send.
pub fn body(event: &StoredEvent, data: Value, format: PayloadFormat, prefix: &str) -> Vec<u8> {
    let written = write(event, data, format, prefix);
    if written.len() < BODY_BYTES_MAX {
        return written;
    }
    let event_url = format!("/api/v1/events/{}", event.event_id);
    write(event, json!({ "truncated": true, "event_url": event_url }), format, prefix)
}

fn write(event: &StoredEvent, data: Value, format: PayloadFormat, prefix: &str) -> Vec<u8> {
    let value = match format {
        PayloadFormat::Standard => standard(event, data),
        PayloadFormat::Cloudevents => cloud(event, data, prefix),
    };
    value.to_string().into_bytes()
}

fn standard(event: &StoredEvent, data: Value) -> Value {
    json!({
        "type": &*event.event_type,
        "timestamp": event.timestamp,
        "data": data,
        "event_id": event.event_id,
        "event_type": &*event.event_type,
        "version": event.major,
        "schema_version": format!("{}.{}", event.major, event.minor),
        "aggregate_type": &*event.aggregate_type,
        "aggregate_id": event.aggregate_id,
        "aggregate_version": event.aggregate_version,
        "partition": event.partition,
        "position": event.position,
        "correlation_id": &*event.correlation_id,
        "causation_id": &*event.causation_id,
    })
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_too_large_is_sent_without_its_data() {
        let event = stored_event("order.placed", "order", Uuid::from_u128(9), &json!({}));
        for format in [PayloadFormat::Standard, PayloadFormat::Cloudevents] {
            let small = body(&event, json!({ "a": 1 }), format, "souk");
            let small: Value = serde_json::from_slice(&small).unwrap();
            assert_eq!(small["data"]["a"], 1);
            let large = body(&event, json!({ "a": "x".repeat(BODY_BYTES_MAX) }), format, "souk");
            assert!(large.len() < BODY_BYTES_MAX);
            let large: Value = serde_json::from_slice(&large).unwrap();
            assert_eq!(large["data"]["truncated"], true);
            assert_eq!(large["data"]["event_url"], format!("/api/v1/events/{}", event.event_id));
        }
    }

    #[test]
    fn the_standard_form_has_the_three_members_of_the_specification() {
        let event = stored_event("order.placed", "order", Uuid::from_u128(9), &json!({}));
        let written = standard(&event, json!({ "a": 1 }));
        assert_eq!((&written["type"], &written["data"]["a"]), (&json!("order.placed"), &json!(1)));
        assert!(written["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
