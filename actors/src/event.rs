//! What the journal holds: events, their types and their envelope.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::world::Timestamp;

/// Where an event stands in the committed log: its partition, and its place there, from 1, without
/// gaps, in commit order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The partition.
    pub partition: u16,
    /// The place in the partition, from 1.
    pub position: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.partition, self.position)
    }
}

impl std::str::FromStr for Position {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Digits only: `parse` would take a sign, and then one place had two names.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let parse = || {
            let (partition, position) = text.split_once(':')?;
            let plain = plain(partition) && plain(position);
            let position = position.parse().ok().filter(|_| plain)?;
            Some(Self { partition: partition.parse().ok()?, position })
        };
        parse().ok_or("a position is <partition>:<number>, for example 0:812")
    }
}

/// One committed event as it stands in the journal. Immutable; shared, never copied per reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// The partition whose log this is in.
    pub partition: u16,
    /// The place in that log, from 1, gapless.
    pub position: u64,
    /// The event's own id (UUIDv7).
    pub event_id: Uuid,
    /// The journal's integer number for the aggregate; meaningless outside it.
    pub stream: i64,
    /// The type of the aggregate, as [`crate::aggregate::Aggregate::TYPE`] names it.
    pub aggregate_type: Arc<str>,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// The place in the aggregate's history, from 1, gapless.
    pub aggregate_version: u64,
    /// The canonical dotted type (`order.placed`).
    pub event_type: Arc<str>,
    /// The major schema version of `data` as it was written.
    pub major: u16,
    /// The minor schema version of `data` as it was written.
    pub minor: u16,
    /// When it was decided. Informative: positions are the order.
    pub timestamp: Timestamp,
    /// Everything that one request led to has the same correlation id.
    pub correlation_id: Arc<str>,
    /// The id of the event, command or request that caused this one.
    pub causation_id: Arc<str>,
    /// The payload as JSON, personal fields sealed.
    pub data: Arc<str>,
    /// Who and what ([`Metadata`]) as JSON.
    pub metadata: Arc<str>,
    /// The partition's hash chain up to and with this event.
    pub hash: [u8; 32],
}

impl StoredEvent {
    /// Where the event stands.
    pub fn at(&self) -> Position {
        Position { partition: self.partition, position: self.position }
    }
}

/// What is recorded beside an event's data. Holds no personal data: `actor_id` is an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Metadata {
    /// The service of the event's context (`order-service`).
    pub service: String,
    /// The version of the program that decided the event.
    pub version: String,
    /// Who asked for it: a user's id, or `system`.
    pub actor_id: String,
    /// The id of the credential that it was asked with, where that says more than who asked: which of
    /// somebody's keys it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The tenant; `default` where there is only one.
    pub tenant_id: String,
    /// The W3C trace context of the request that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What the systems that the trace went through before noted of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// The subscription whose handler sent the command; none: no handler did, or the event is from
    /// before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<String>,
    /// What whoever told of the event from outside said of it ([`Given::attributes`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

impl Metadata {
    /// The id of the W3C trace of the request that started it.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.as_deref()?.get(3..35)
    }
}

/// Under which type and version an event is stored, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The canonical type.
    pub event_type: Arc<str>,
    /// The major version of its data.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
    /// The service name in its metadata.
    pub service: &'static str,
}

impl From<&EventDescriptor> for Label {
    fn from(descriptor: &EventDescriptor) -> Self {
        Self {
            event_type: descriptor.event_type.into(),
            major: descriptor.major,
            minor: descriptor.minor,
            service: descriptor.service,
        }
    }
}

/// What an event brings along that otherwise comes from its command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// Its id, where it follows from something: the journal refuses a second event with it.
    pub event_id: Option<Uuid>,
    /// Its correlation id.
    pub correlation_id: Option<Arc<str>>,
    /// Its causation id.
    pub causation_id: Option<Arc<str>>,
    /// Who told of it, where that is not who gave the command.
    pub actor_id: Option<String>,
    /// What is recorded in its metadata, by name. Not personal, and not long.
    pub attributes: BTreeMap<String, String>,
}

/// One declared event type: its names, its version, its schema. The registry of all of them is
/// what filters, schemas and API documents are made from.
pub struct EventDescriptor {
    /// The canonical type. Stored; never rename.
    pub event_type: &'static str,
    /// The name in Pascal case (`OrderPlaced`).
    pub name: &'static str,
    /// Other names under which filters accept it.
    pub aliases: &'static [&'static str],
    /// The current major version: only a breaking change raises it.
    pub major: u16,
    /// The current minor version.
    pub minor: u16,
    /// The bounded context that owns it (`orders`).
    pub context: &'static str,
    /// The service name in its metadata (`order-service`).
    pub service: &'static str,
    /// The JSON Schema (draft 2020-12) of its data.
    pub schema: fn() -> Value,
}

impl std::fmt::Debug for EventDescriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventDescriptor").field("event_type", &self.event_type).finish()
    }
}

/// Turns data of one major version of a type into the next one, when it is read. Stored rows never
/// change.
#[derive(Debug, Clone, Copy)]
pub struct Upcaster {
    /// The type it reads.
    pub event_type: &'static str,
    /// The major version it reads; it gives `from + 1`.
    pub from: u16,
    /// The change. It gets sealed personal fields already opened.
    pub upcast: fn(Value) -> Value,
}

/// Why stored data could not be read as an event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer program, or by one whose upcaster is gone.
    #[error("unsupported event version: {major} of {event_type}")]
    UnsupportedVersion {
        /// The type.
        event_type: String,
        /// The stored major version.
        major: u16,
    },
    /// Not a type of this aggregate.
    #[error("unknown event type {0}")]
    UnknownType(String),
    /// The data does not fit the type's shape. The message names no values.
    #[error("the data of {event_type} does not fit its schema at line {line}, column {column}")]
    Malformed {
        /// The type.
        event_type: String,
        /// Where in the JSON text.
        line: usize,
        /// Where in the JSON text.
        column: usize,
    },
    /// The data lacks a member that is needed, or has it in another shape.
    #[error("the data of {event_type} has no {name} that can be read")]
    Member {
        /// The type.
        event_type: String,
        /// The member.
        name: &'static str,
    },
    /// A personal field could not be opened: wrong master key, or damaged.
    #[error("a personal field of {0} cannot be opened")]
    Unsealable(String),
}

/// The events of one aggregate: a sum of payload types, each with a stored name and a version.
/// Written with [`events!`](crate::events).
pub trait EventPayload: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Every type, in the order of declaration.
    fn descriptors() -> &'static [EventDescriptor];

    /// The type of this event.
    fn descriptor(&self) -> &'static EventDescriptor;

    /// Under which type it is stored: another than its descriptor's only where types are declared
    /// while the program runs.
    fn label(&self) -> Label {
        self.descriptor().into()
    }

    /// What it brings along; most events nothing.
    fn given(&self) -> Given {
        Given::default()
    }

    /// The payload as JSON text, personal fields in working form.
    fn encode(&self) -> String;

    /// Reads current-version data of `event_type`.
    fn decode_current(event_type: &str, data: &str) -> Result<Self, DecodeError>;

    /// Reads a stored event, whose personal fields were opened in `data`. For those that are more
    /// than their data.
    fn decode_stored(event: &StoredEvent, data: &str) -> Result<Self, DecodeError> {
        Self::decode(&event.event_type, event.major, data)
    }

    /// The upcasters of these types, if any.
    fn upcasters() -> &'static [Upcaster] {
        &[]
    }

    /// Reads data of any version that is still supported, through the chain of upcasters.
    fn decode(event_type: &str, major: u16, data: &str) -> Result<Self, DecodeError> {
        match Self::upcast(event_type, major, data)? {
            None => Self::decode_current(event_type, data),
            Some(newest) => Self::decode_current(event_type, &newest.to_string()),
        }
    }

    /// Reads some of an event's data, as its newest version says it: `T` names what it wants of it,
    /// never a personal field. Those stay sealed here.
    fn read<T: DeserializeOwned>(event: &StoredEvent) -> Result<T, DecodeError> {
        let read = match Self::upcast(&event.event_type, event.major, &event.data)? {
            None => serde_json::from_str(&event.data),
            Some(newest) => serde_json::from_value(newest),
        };
        read.map_err(|error| malformed(&event.event_type, &error))
    }

    /// Data of an older version as the newest says it; none: it is of the newest.
    fn upcast(event_type: &str, major: u16, data: &str) -> Result<Option<Value>, DecodeError> {
        let descriptor = Self::descriptors()
            .iter()
            .find(|descriptor| descriptor.event_type == event_type)
            .ok_or_else(|| DecodeError::UnknownType(event_type.to_owned()))?;
        if major == descriptor.major {
            return Ok(None);
        }
        let unsupported =
            || DecodeError::UnsupportedVersion { event_type: event_type.to_owned(), major };
        if major > descriptor.major {
            return Err(unsupported());
        }
        let mut value: Value =
            serde_json::from_str(data).map_err(|error| malformed(event_type, &error))?;
        for from in major..descriptor.major {
            let upcaster = Self::upcasters()
                .iter()
                .find(|upcaster| upcaster.event_type == event_type && upcaster.from == from)
                .ok_or_else(unsupported)?;
            value = (upcaster.upcast)(value);
        }
        Ok(Some(value))
    }
}

fn malformed(event_type: &str, error: &serde_json::Error) -> DecodeError {
    DecodeError::Malformed {
        event_type: event_type.to_owned(),
        line: error.line(),
        column: error.column(),
    }
}

/// Used by [`events!`](crate::events).
#[doc(hidden)]
pub fn encode_payload<T: Serialize>(payload: &T) -> String {
    serde_json::to_string(payload).expect("payloads are plain data with string keys")
}

/// Used by [`events!`](crate::events).
#[doc(hidden)]
pub fn decode_payload<T: DeserializeOwned>(event_type: &str, data: &str) -> Result<T, DecodeError> {
    serde_json::from_str(data).map_err(|error| malformed(event_type, &error))
}

/// Used by [`events!`](crate::events).
#[doc(hidden)]
pub fn payload_schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Declares the events of one aggregate.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use schemars::JsonSchema;
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
/// pub struct LampLit { pub brightness: u8 }
///
/// souk_actors::events! {
///     /// What happens to lamps.
///     pub enum LampEvent in "lamps" as "lamp-service" {
///         /// It was lit.
///         Lit(LampLit) = "lamp.lit", "LampLit", 1.0, ["LampSwitchedOn"];
///     }
/// }
/// ```
///
/// A variant of another context says so behind its aliases: `[] in "inventory" as
/// "warehouse-service";`. Where there are older versions, `upcast by UPCASTERS` behind the
/// service names a `&'static [Upcaster]`.
#[macro_export]
macro_rules! events {
    (
        $(#[$outer:meta])*
        $vis:vis enum $name:ident in $context:literal as $service:literal $(upcast by $upcasters:ident)? {
            $(
                $(#[$inner:meta])*
                $variant:ident($payload:ty) = $event_type:literal, $pascal:literal, $version:literal, [$($alias:literal),* $(,)?]
                    $(in $own_context:literal as $own_service:literal)?;
            )+
        }
    ) => {
        $(#[$outer])*
        #[derive(Debug, Clone, PartialEq)]
        $vis enum $name {
            $($(#[$inner])* $variant($payload),)+
        }

        impl $crate::event::EventPayload for $name {
            fn descriptors() -> &'static [$crate::event::EventDescriptor] {
                static ALL: &[$crate::event::EventDescriptor] = &[
                    $($crate::event::EventDescriptor {
                        event_type: $event_type,
                        name: $pascal,
                        aliases: &[$($alias),*],
                        major: $crate::event::major_of(stringify!($version)),
                        minor: $crate::event::minor_of(stringify!($version)),
                        context: $crate::event::own_or(&[$($own_context)?], $context),
                        service: $crate::event::own_or(&[$($own_service)?], $service),
                        schema: $crate::event::payload_schema::<$payload>,
                    }),+
                ];
                ALL
            }

            fn descriptor(&self) -> &'static $crate::event::EventDescriptor {
                let event_type = match self {
                    $(Self::$variant(_) => $event_type,)+
                };
                Self::descriptors()
                    .iter()
                    .find(|descriptor| descriptor.event_type == event_type)
                    .expect("every variant is declared with its descriptor")
            }

            fn encode(&self) -> String {
                match self {
                    $(Self::$variant(payload) => $crate::event::encode_payload(payload),)+
                }
            }

            fn decode_current(
                event_type: &str,
                data: &str,
            ) -> Result<Self, $crate::event::DecodeError> {
                match event_type {
                    $($event_type => {
                        $crate::event::decode_payload(event_type, data).map(Self::$variant)
                    })+
                    other => Err($crate::event::DecodeError::UnknownType(other.to_owned())),
                }
            }

            $(fn upcasters() -> &'static [$crate::event::Upcaster] {
                $upcasters
            })?
        }
    };
}

/// A variant's own word, or the one for all. Used by [`events!`](crate::events).
#[doc(hidden)]
pub const fn own_or(own: &[&'static str], common: &'static str) -> &'static str {
    if own.is_empty() { common } else { own[0] }
}

/// The number before the point of a version literal. Used by [`events!`](crate::events).
#[doc(hidden)]
pub const fn major_of(version: &str) -> u16 {
    number(version.as_bytes(), 0)
}

/// The number behind the point of a version literal. Used by [`events!`](crate::events).
#[doc(hidden)]
pub const fn minor_of(version: &str) -> u16 {
    let bytes = version.as_bytes();
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'.' {
        at += 1;
    }
    number(bytes, at + 1)
}

const fn number(bytes: &[u8], mut at: usize) -> u16 {
    let mut value = 0;
    while at < bytes.len() && bytes[at].is_ascii_digit() {
        value = value * 10 + (bytes[at] - b'0') as u16;
        at += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Measured {
        millimetres: u32,
    }

    /// Version 1 measured in centimetres, version 2 in millimetres but under another name.
    static UPCASTERS: &[Upcaster] = &[
        Upcaster {
            event_type: "plank.measured",
            from: 1,
            upcast: |data| serde_json::json!({ "length_mm": data["centimetres"].as_u64().unwrap_or(0) * 10 }),
        },
        Upcaster {
            event_type: "plank.measured",
            from: 2,
            upcast: |data| serde_json::json!({ "millimetres": data["length_mm"] }),
        },
    ];

    crate::events! {
        enum PlankEvent in "planks" as "plank-service" upcast by UPCASTERS {
            Measured(Measured) = "plank.measured", "PlankMeasured", 3.1, ["PlankSized"];
            Painted(Measured) = "plank.painted", "PlankPainted", 1.0, [] in "paint" as "paint-service";
        }
    }

    fn decode(major: u16, data: &str) -> Result<PlankEvent, DecodeError> {
        PlankEvent::decode("plank.measured", major, data)
    }

    #[test]
    fn old_versions_are_upcast_step_by_step_when_they_are_read() {
        let expected = PlankEvent::Measured(Measured { millimetres: 120 });
        assert_eq!(decode(1, r#"{"centimetres":12}"#).unwrap(), expected);
        assert_eq!(decode(2, r#"{"length_mm":120}"#).unwrap(), expected);
        assert_eq!(decode(3, &expected.encode()).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_read_says_why_and_names_no_values() {
        let newer = decode(4, "{}").unwrap_err().to_string();
        assert_eq!(newer, "unsupported event version: 4 of plank.measured");
        let older = decode(0, "{}").unwrap_err().to_string();
        assert_eq!(older, "unsupported event version: 0 of plank.measured");
        let odd = decode(3, r#"{"millimetres":"secret"}"#).unwrap_err().to_string();
        assert!(odd.contains("does not fit") && !odd.contains("secret"), "{odd}");
        let unknown = PlankEvent::decode("plank.sawn", 1, "{}").unwrap_err();
        assert!(matches!(unknown, DecodeError::UnknownType(_)));
    }

    #[test]
    fn a_variant_may_belong_to_another_context() {
        let [measured, painted] = PlankEvent::descriptors() else { panic!("two types") };
        assert_eq!((measured.context, measured.major, measured.minor), ("planks", 3, 1));
        assert_eq!((painted.context, painted.service), ("paint", "paint-service"));
    }
}
