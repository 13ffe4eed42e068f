//! Events as CloudEvents 1.0: one form for the API, its streams and webhooks.

use serde_json::{Value, json};
use souk_actors::event::{Metadata, StoredEvent};

use crate::domain::registry;

/// The media type of one CloudEvent.
pub const CLOUDEVENT: &str = "application/cloudevents+json";
/// The media type of several.
pub const CLOUDEVENTS: &str = "application/cloudevents-batch+json";

/// What stands beside an event's data, if that can be read.
pub fn metadata(event: &StoredEvent) -> Option<Metadata> {
    serde_json::from_str(&event.metadata).ok()
}

/// An event as a CloudEvent, with its extensions. `prefix` stands before its type.
pub fn cloud(event: &StoredEvent, data: Value, prefix: &str) -> Value {
    let major = event.major;
    let (event_type, aggregate_type) = (&event.event_type, &event.aggregate_type);
    let declared = registry::find(event_type);
    let context = match (declared, &**aggregate_type) {
        (Some(named), _) => named.descriptor.context,
        // Of a type that the program does not declare: a publisher's.
        (None, "publication") => "publishing",
        (None, other) => other,
    };
    let mut cloud = json!({
        "specversion": "1.0",
        "id": event.event_id,
        "source": format!("/{context}/{aggregate_type}/{}", event.aggregate_id),
        "type": format!("{prefix}.{event_type}.v{major}"),
        "subject": event.aggregate_id,
        "time": event.timestamp,
        "recordedtime": event.timestamp,
        "datacontenttype": "application/json",
        "dataschema": format!("/schemas/{event_type}/{major}"),
        "correlationid": &*event.correlation_id,
        "causationid": &*event.causation_id,
        "partitionkey": event.aggregate_id,
        "sequence": format!("{:020}", event.aggregate_version),
        "partition": event.partition.to_string(),
        "position": format!("{:020}", event.position),
        "schemaversion": format!("{major}.{}", event.minor),
        "data": data,
    });
    if let Some(metadata) = metadata(event) {
        cloud["tenantid"] = Value::from(metadata.tenant_id);
        cloud["authid"] = Value::from(metadata.actor_id);
        if let Some(traceparent) = metadata.traceparent {
            cloud["traceparent"] = Value::from(traceparent);
        }
        if let Some(tracestate) = metadata.tracestate {
            cloud["tracestate"] = Value::from(tracestate);
        }
    }
    cloud
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_cloud_event_has_lower_case_attributes_and_a_sortable_sequence() {
        let id = Uuid::from_u128(9);
        let event = stored_event("order.placed", "order", id, &json!({}));
        let json = cloud(&event, json!({}), "souk");
        for name in json.as_object().unwrap().keys() {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            assert!(name.bytes().all(allowed), "{name}");
        }
        assert_eq!(json["type"], "souk.order.placed.v1");
        assert_eq!(json["source"], format!("/orders/order/{id}"));
        assert_eq!(json["sequence"], "00000000000000000001");
    }
}
