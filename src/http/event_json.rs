//! Events on the wire: the native form, S2's seven names, and CloudEvents 1.0.

use serde_json::{Map, Value, json};
use souk_actors::event::{Metadata, Position, StoredEvent};
use souk_actors::journal::codec::Reveal;
use uuid::Uuid;

use super::App;
use super::catalogue;
use super::problem::ApiError;
use crate::cloudevents::{cloud, metadata};

/// Room for partitions in the number of an event reference.
const PARTITIONS_MAX: u64 = 1024;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The envelope of the design, in snake case.
    Native,
    /// `eventId, eventType, aggregateId, aggregateType, occurredAt, payload, version`.
    Camel,
    /// CloudEvents 1.0, structured.
    Cloud,
}

/// Writes an event; personal fields in clear for those who may read them.
pub(super) async fn write(
    app: &App,
    event: &StoredEvent,
    form: Form,
    reveal: Reveal,
) -> Result<Value, ApiError> {
    let mut data = app.runtime().journal().reveal(event, reveal).await?;
    if &*event.event_type == "order.placed"
        && let Some(address) = data.get("delivery_address").cloned()
    {
        data["address"] = address;
    }
    Ok(match form {
        Form::Native => native(event, data),
        Form::Camel => camel(event, &data),
        Form::Cloud => cloud(event, data, &app.settings().runtime.event_type_prefix),
    })
}

/// The number in an event's reference.
pub(super) fn reference(event: &StoredEvent) -> String {
    reference_at(&event.aggregate_type, event.at())
}

/// The reference of the event of an aggregate that stands at a place.
pub(super) fn reference_at(aggregate_type: &str, at: Position) -> String {
    let number = at.position * PARTITIONS_MAX + u64::from(at.partition);
    let context: String = aggregate_type.chars().filter(char::is_ascii_lowercase).take(3).collect();
    format!("evt_{context}_{number}")
}

/// `saga.completed` reads `SagaCompleted`.
pub(super) fn pascal(event_type: &str) -> String {
    let words = event_type.split(['.', '_']);
    words
        .map(|word| {
            let mut word = word.to_owned();
            if let Some(first) = word.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            word
        })
        .collect()
}

fn name(event: &StoredEvent) -> String {
    let declared = catalogue::find(&event.event_type).map(|descriptor| descriptor.name.to_owned());
    declared.unwrap_or_else(|| pascal(&event.event_type))
}

fn native(event: &StoredEvent, data: Value) -> Value {
    let metadata = metadata(event);
    let of = |pick: fn(&Metadata) -> &str| metadata.as_ref().map(pick).unwrap_or_default();
    let mut about = json!({
        "correlation_id": &*event.correlation_id,
        "service": of(|metadata| &metadata.service),
        "version": of(|metadata| &metadata.version),
        "service_version": of(|metadata| &metadata.version),
        "actor_id": of(|metadata| &metadata.actor_id),
        "tenant_id": of(|metadata| &metadata.tenant_id),
    });
    if let Some(credential) = metadata.as_ref().and_then(|of| of.credential.as_deref()) {
        about["credential"] = Value::from(credential);
    }
    if let Some(traceparent) = metadata.as_ref().and_then(|of| of.traceparent.as_deref()) {
        about["traceparent"] = Value::from(traceparent);
    }
    if let Some(tracestate) = metadata.as_ref().and_then(|of| of.tracestate.as_deref()) {
        about["tracestate"] = Value::from(tracestate);
    }
    if let Some(subscription) = metadata.as_ref().and_then(|of| of.subscription.as_deref()) {
        about["subscription"] = Value::from(subscription);
    }
    if let Some(metadata) = metadata.as_ref().filter(|of| !of.attributes.is_empty()) {
        about["publisher"] = json!(metadata.attributes);
    }
    json!({
        "event_id": event.event_id,
        "event_ref": reference(event),
        "event_type": &*event.event_type,
        "name": name(event),
        "version": event.major,
        "schema_version": format!("{}.{}", event.major, event.minor),
        "aggregate_type": &*event.aggregate_type,
        "aggregate_id": event.aggregate_id,
        "aggregate_version": event.aggregate_version,
        "partition": event.partition,
        "position": event.position,
        "timestamp": event.timestamp,
        "correlation_id": &*event.correlation_id,
        "causation_id": &*event.causation_id,
        "data": data,
        "metadata": about,
    })
}

fn camel(event: &StoredEvent, data: &Value) -> Value {
    json!({
        "eventId": event.event_id,
        "eventType": name(event),
        "aggregateId": event.aggregate_id,
        "aggregateType": &*event.aggregate_type,
        "occurredAt": event.timestamp,
        "payload": camel_keys(data),
        "version": event.major,
    })
}

fn camel_keys(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| (camel_case(name), camel_keys(value)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(camel_keys).collect()),
        other => other.clone(),
    }
}

fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for character in name.chars() {
        match (character, upper) {
            ('_', _) => upper = true,
            (letter, true) => {
                camel.push(letter.to_ascii_uppercase());
                upper = false;
            }
            (letter, false) => camel.push(letter),
        }
    }
    camel
}

/// How a path may name an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventName {
    /// By its id.
    Id(Uuid),
    /// By where it stands.
    At(Position),
}

/// Reads `<uuid>`, `evt_<context>_<number>`, `evt_<number>` and `evt-<number>`.
pub(super) fn event_name(text: &str) -> Option<EventName> {
    if let Ok(id) = Uuid::try_parse(text) {
        return Some(EventName::Id(id));
    }
    let rest = text.strip_prefix("evt_").or_else(|| text.strip_prefix("evt-"))?;
    let number = match rest.split_once('_') {
        Some((context, number)) => {
            let named =
                !context.is_empty() && context.bytes().all(|byte| byte.is_ascii_lowercase());
            named.then_some(number)?
        }
        None => rest,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    let partition = u16::try_from(number % PARTITIONS_MAX).ok()?;
    Some(EventName::At(Position { partition, position: number / PARTITIONS_MAX }))
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;

    use super::*;

    fn event() -> StoredEvent {
        let data = json!({ "order_id": 1, "items": [{ "unit_price": 2 }] });
        let mut event = stored_event("order.placed", "order", Uuid::from_u128(9), &data);
        event.partition = 3;
        event.position = 812;
        event
    }

    #[test]
    fn an_event_is_found_by_every_form_of_its_name() {
        let at = EventName::At(Position { partition: 3, position: 812 });
        assert_eq!(reference(&event()), "evt_ord_831491");
        for name in ["evt_ord_831491", "evt_831491", "evt-831491"] {
            assert_eq!(event_name(name), Some(at), "{name}");
        }
        let id = Uuid::from_u128(5);
        assert_eq!(event_name(&id.to_string()), Some(EventName::Id(id)));
        for bad in ["evt_", "evt_ord_", "evt_Ord_1", "evt_1_2", "evt-+1", "ord_1", ""] {
            assert_eq!(event_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_camel_form_has_exactly_seven_names() {
        let event = event();
        let data = serde_json::from_str(&event.data).unwrap();
        let json = camel(&event, &data);
        let mut names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let expected = [
            "aggregateId",
            "aggregateType",
            "eventId",
            "eventType",
            "occurredAt",
            "payload",
            "version",
        ];
        assert_eq!(names, expected);
        assert_eq!(json["eventType"], "OrderPlaced");
        assert_eq!(json["payload"]["items"][0]["unitPrice"], 2);
    }

    #[test]
    fn the_native_form_is_the_envelope() {
        let json = native(&event(), json!({}));
        for name in [
            "event_id",
            "event_ref",
            "event_type",
            "name",
            "version",
            "schema_version",
            "aggregate_type",
            "aggregate_id",
            "aggregate_version",
            "partition",
            "position",
            "timestamp",
            "correlation_id",
            "causation_id",
            "data",
            "metadata",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!(json["schema_version"], "1.0");
        assert_eq!(pascal("user.email_verified"), "UserEmailVerified");
    }
}
