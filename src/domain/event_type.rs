//! Event types of publishers outside: an administrator registers each with a JSON Schema. Within a
//! major version a schema may only grow, as with the marketplace's own types: whoever reads events
//! of a version can read all of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::registry;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{FieldError, Fields};
use crate::schemas::{self, Recorded, registered};

/// The longest name.
pub const NAME_BYTES_MAX: usize = 100;
/// How many major versions a type may have.
pub const MAJORS_MAX: u16 = 16;

/// What to do with an event type.
#[derive(Debug, Clone, PartialEq)]
pub enum EventTypeCommand {
    /// Register it, or a newer version of it.
    Register {
        /// Who asks.
        caller: Caller,
        /// Its name.
        name: String,
        /// The major version.
        major: u16,
        /// The minor version.
        minor: u16,
        /// The JSON Schema of its data.
        schema: Value,
        /// When.
        now: Timestamp,
    },
}

impl Command for EventTypeCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Register { .. } => "RegisterEventType",
        }
    }
}

souk_actors::events! {
    /// What happens to event types.
    pub enum EventTypeEvent in "publishing" as "gateway-service" {
        /// There is a version of it.
        Registered(EventTypeRegistered) = "event_type.registered", "EventTypeRegistered", 1.0, [];
    }
}

/// There is a new event type, or a new version of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventTypeRegistered {
    /// Its name.
    pub name: String,
    /// The major version.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
    /// The JSON Schema of its data.
    pub schema: Value,
    /// When.
    pub registered_at: Timestamp,
}

rejections! {
    /// Why an event type refuses a command.
    pub enum EventTypeRejection {
        /// Administrators only.
        Forbidden = "forbidden", "only administrators register event types";
        /// The name is the marketplace's own.
        Reserved = "event_type_reserved", "this name belongs to the marketplace's own event types: take another first word";
        /// Not a step from what there is.
        VersionOrder {
            /// The newest version.
            newest: String,
        } = "version_order", "versions only rise: the newest is {newest}, and majors rise by one";
        /// Readers of the version would break.
        Incompatible {
            /// What breaks them.
            errors: Vec<FieldError>,
        } = "incompatible_schema", "within a major version a schema may only grow: raise the major version";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(EventTypeRejection);

/// An event type, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EventType {
    /// Its name, once registered.
    pub name: Option<String>,
    /// The newest of each major version.
    pub versions: BTreeMap<u16, Version>,
}

/// A version of an event type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// The minor version.
    pub minor: u16,
    /// The schema.
    pub schema: Value,
    /// When.
    pub registered_at: Timestamp,
}

impl EventType {
    /// A major version, or the newest.
    pub fn version(&self, major: Option<u16>) -> Option<(u16, &Version)> {
        let newest = self.versions.last_key_value().map(|(major, _)| *major);
        let major = major.or(newest)?;
        self.versions.get(&major).map(|version| (major, version))
    }

    fn register(
        &self,
        name: &str,
        (major, minor): (u16, u16),
        schema: &Value,
        now: Timestamp,
    ) -> Result<Vec<EventTypeEvent>, EventTypeRejection> {
        if registry::is_own(name) {
            return Err(EventTypeRejection::Reserved);
        }
        let mut fields = Fields::default();
        let detail = "must be two or three words of lower-case letters, digits and _, with points between (partner.stock.counted), at most 100 long";
        fields.require(is_name(name), "/event_type", "invalid_event_type", detail);
        for (pointer, problem) in registered::problems(schema) {
            fields.error(format!("/schema{pointer}"), "invalid_schema", problem);
        }
        fields.finish()?;
        if let Some(version) = self.versions.get(&major)
            && (version.minor, &version.schema) == (minor, schema)
        {
            return Ok(Vec::new());
        }
        self.follows(name, major, minor, schema)?;
        Ok(vec![EventTypeEvent::Registered(EventTypeRegistered {
            name: name.to_owned(),
            major,
            minor,
            schema: schema.clone(),
            registered_at: now,
        })])
    }

    /// Whether this is a version that may come next.
    fn follows(
        &self,
        name: &str,
        major: u16,
        minor: u16,
        schema: &Value,
    ) -> Result<(), EventTypeRejection> {
        let newest = self.versions.last_key_value();
        let order = || EventTypeRejection::VersionOrder {
            newest: newest.map_or_else(
                || "none, so begin with 1.0".to_owned(),
                |(major, version)| format!("{major}.{}", version.minor),
            ),
        };
        let Some(then) = self.versions.get(&major) else {
            let next = newest.map_or(1, |(major, _)| major.saturating_add(1));
            return if major == next && major <= MAJORS_MAX && minor == 0 {
                Ok(())
            } else {
                Err(order())
            };
        };
        if minor < then.minor {
            return Err(order());
        }
        let recorded = |minor, schema: &Value| Recorded { major, minor, schema: schema.clone() };
        let broken =
            schemas::broken(name, recorded(then.minor, &then.schema), recorded(minor, schema));
        if broken.is_empty() {
            return Ok(());
        }
        let errors = broken.into_iter().map(|finding| {
            FieldError::new(format!("/schema{}", finding.field), "incompatible", finding.what)
        });
        Err(EventTypeRejection::Incompatible { errors: errors.collect() })
    }
}

/// Whether a text is the name of an event type, as the marketplace's own are:
/// `^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,2}$`.
pub fn is_name(text: &str) -> bool {
    let word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    text.len() <= NAME_BYTES_MAX
        && (2..=3).contains(&text.split('.').count())
        && text.split('.').all(word)
}

impl Aggregate for EventType {
    const TYPE: &'static str = "event_type";
    type Command = EventTypeCommand;
    type Event = EventTypeEvent;
    type Rejection = EventTypeRejection;

    fn decide(
        &self,
        command: &EventTypeCommand,
    ) -> Result<Vec<EventTypeEvent>, EventTypeRejection> {
        let EventTypeCommand::Register { caller, name, major, minor, schema, now } = command;
        if !caller.is_staff() {
            return Err(EventTypeRejection::Forbidden);
        }
        self.register(name, (*major, *minor), schema, *now)
    }

    fn apply(&mut self, event: &EventTypeEvent) {
        let EventTypeEvent::Registered(event) = event;
        self.name = Some(event.name.clone());
        let version = Version {
            minor: event.minor,
            schema: event.schema.clone(),
            registered_at: event.registered_at,
        };
        self.versions.insert(event.major, version);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::testing::{assert_folds, run};

    fn register(name: &str, (major, minor): (u16, u16), schema: Value) -> EventTypeCommand {
        let now = Timestamp::from_millis(1);
        let caller = Caller::System;
        EventTypeCommand::Register { caller, name: name.to_owned(), major, minor, schema, now }
    }

    fn counted() -> Value {
        json!({ "type": "object", "properties": { "count": { "type": "integer" } },
            "required": ["count"] })
    }

    fn grown() -> Value {
        json!({ "type": "object", "properties": { "count": { "type": "integer" },
            "shelf": { "type": "string" } }, "required": ["count"] })
    }

    const NAME: &str = "partner.stock.counted";

    #[test]
    fn a_type_grows_within_a_major_version_and_changes_with_the_next() {
        let narrower = json!({ "type": "object", "properties": { "shelf": { "type": "string" } } });
        let commands = [
            register(NAME, (1, 0), counted()),
            register(NAME, (1, 0), counted()),
            register(NAME, (1, 1), grown()),
            register(NAME, (2, 0), narrower.clone()),
        ];
        let (state, history) = run::<EventType>(&commands);
        assert_eq!(history.len(), 3, "the same again changes nothing");
        assert_folds(&state, &history);
        assert_eq!(state.version(None).unwrap().0, 2);
        assert_eq!(state.version(Some(1)).unwrap().1.minor, 1);

        let (state, _) = run::<EventType>(&commands[..3]);
        let refused = |command| state.decide(&command).unwrap_err();
        let code = |command| souk_actors::aggregate::Rejection::code(&refused(command));
        assert_eq!(code(register(NAME, (1, 2), narrower.clone())), "incompatible_schema");
        assert_eq!(code(register(NAME, (1, 0), counted())), "version_order");
        assert_eq!(code(register(NAME, (3, 0), counted())), "version_order");
        let changed = json!({ "type": "object", "properties": { "count": { "type": "integer" },
            "shelf": { "type": "string" }, "row": { "type": "string" } }, "required": ["count"] });
        assert_eq!(code(register(NAME, (1, 1), changed)), "incompatible_schema", "same version");
    }

    #[test]
    fn names_have_the_common_form_and_are_not_the_marketplaces() {
        let state = EventType::default();
        let code = |name: &str| match state.decide(&register(name, (1, 0), counted())) {
            Ok(_) => "",
            Err(rejection) => souk_actors::aggregate::Rejection::code(&rejection),
        };
        for name in ["order.placed", "order.mine", "saga.mine", "system.mine", "user.created"] {
            assert_eq!(code(name), "event_type_reserved", "{name}");
        }
        for name in ["one", "a.b.c.d", "Partner.counted", "partner..x", "partner.x-y", "9a.b", ""] {
            assert_eq!(code(name), "invalid", "{name}");
        }
        assert_eq!(code(NAME), "");
    }
}
