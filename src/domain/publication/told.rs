//! An event as a publisher outside tells of it, and how it is stored: its data as it came, under its
//! registered type; what else was said of it as attributes in the metadata.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::event::{
    DecodeError, EventDescriptor, EventPayload, Given, Label, Metadata, StoredEvent,
};
use uuid::Uuid;

use super::PublicationFact;

/// The family of the stream's own facts.
const FAMILY: &str = "publication.";
/// Who stores the events.
const SERVICE: &str = "gateway-service";

/// An event as a publisher tells of it, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// Its id here: it follows from source and id.
    pub event_id: Uuid,
    /// Its registered type.
    pub event_type: Arc<str>,
    /// The major version of the type.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
    /// Who publishes it.
    pub source: String,
    /// The publisher's own id for it.
    pub id: String,
    /// What it is about: events of one source and key keep their order.
    pub key: String,
    /// When it happened, as the publisher says.
    pub time: Option<String>,
    /// Its number among the events of source and key, from 1.
    pub sequence: Option<u64>,
    /// The correlation id that the publisher gave it.
    pub correlation_id: Option<String>,
    /// What the publisher says caused it.
    pub causation_id: Option<String>,
    /// Who told of it.
    #[serde(default)]
    pub actor_id: Option<String>,
    /// Its data as JSON text.
    pub data: String,
}

impl Told {
    fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::from([
            ("source".to_owned(), self.source.clone()),
            ("id".to_owned(), self.id.clone()),
            ("key".to_owned(), self.key.clone()),
        ]);
        attributes.extend(self.time.clone().map(|time| ("time".to_owned(), time)));
        let sequence = self.sequence.map(|sequence| ("sequence".to_owned(), sequence.to_string()));
        attributes.extend(sequence);
        attributes
    }

    fn stored(event: &StoredEvent, data: &str) -> Result<Self, DecodeError> {
        let malformed = |(line, column)| DecodeError::Malformed {
            event_type: event.event_type.to_string(),
            line,
            column,
        };
        let metadata: Metadata = serde_json::from_str(&event.metadata)
            .map_err(|error| malformed((error.line(), error.column())))?;
        let mut attributes = metadata.attributes;
        let mut required = |name: &str| attributes.remove(name).ok_or_else(|| malformed((0, 0)));
        let (source, id, key) = (required("source")?, required("id")?, required("key")?);
        let sequence = attributes.remove("sequence");
        let sequence = sequence.map(|text| text.parse().map_err(|_| malformed((0, 0))));
        Ok(Self {
            event_id: event.event_id,
            event_type: event.event_type.clone(),
            major: event.major,
            minor: event.minor,
            source,
            id,
            key,
            time: attributes.remove("time"),
            sequence: sequence.transpose()?,
            correlation_id: Some(event.correlation_id.to_string()),
            causation_id: Some(event.causation_id.to_string()),
            actor_id: Some(metadata.actor_id),
            data: data.to_owned(),
        })
    }
}

/// What a stream of outside events holds: those events, and its own facts.
#[derive(Debug, Clone, PartialEq)]
pub enum PublicationEvent {
    /// A publisher's event, which came to pass.
    Published(Arc<Told>),
    /// What became of the stream.
    Fact(PublicationFact),
}

impl PublicationEvent {
    /// The publisher's event, if it is one.
    pub fn told(&self) -> Option<&Told> {
        match self {
            Self::Published(told) => Some(told.as_ref()),
            Self::Fact(_) => None,
        }
    }
}

/// Stands for every registered type where the program needs a declared one.
static PUBLISHED: EventDescriptor = EventDescriptor {
    event_type: "publication.published",
    name: "PublicationPublished",
    aliases: &[],
    major: 1,
    minor: 0,
    context: "publishing",
    service: SERVICE,
    schema: || serde_json::json!({ "type": "object" }),
};

impl EventPayload for PublicationEvent {
    fn descriptors() -> &'static [EventDescriptor] {
        PublicationFact::descriptors()
    }

    fn descriptor(&self) -> &'static EventDescriptor {
        match self {
            Self::Published(_) => &PUBLISHED,
            Self::Fact(fact) => fact.descriptor(),
        }
    }

    fn label(&self) -> Label {
        match self {
            Self::Published(told) => Label {
                event_type: told.event_type.clone(),
                major: told.major,
                minor: told.minor,
                service: SERVICE,
            },
            Self::Fact(fact) => fact.label(),
        }
    }

    fn given(&self) -> Given {
        let Self::Published(told) = self else { return Given::default() };
        Given {
            event_id: Some(told.event_id),
            correlation_id: told.correlation_id.as_deref().map(Into::into),
            causation_id: told.causation_id.as_deref().map(Into::into),
            actor_id: told.actor_id.clone(),
            attributes: told.attributes(),
        }
    }

    fn encode(&self) -> String {
        match self {
            Self::Published(told) => told.data.clone(),
            Self::Fact(fact) => fact.encode(),
        }
    }

    fn decode_current(event_type: &str, data: &str) -> Result<Self, DecodeError> {
        PublicationFact::decode_current(event_type, data).map(Self::Fact)
    }

    fn decode_stored(event: &StoredEvent, data: &str) -> Result<Self, DecodeError> {
        if event.event_type.starts_with(FAMILY) {
            return Self::decode(&event.event_type, event.major, data);
        }
        Told::stored(event, data).map(|told| Self::Published(Arc::new(told)))
    }
}
