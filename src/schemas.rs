//! What events looked like when they were recorded, and whether the program still reads and writes
//! them so.
//!
//! Events are kept for good, and other services read them. Within a major version a schema may only
//! grow: a field that is gone, has another type, allows less, or must now be there would break who
//! reads the events of then or of now. Whoever needs that raises the major version and writes an
//! upcaster from the old one.

pub mod registered;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk_actors::event::EventDescriptor;

/// How deep schemas may be nested in each other.
const DEPTH_MAX: usize = 32;

/// Every event type with its schema, by type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Baseline(pub BTreeMap<String, Recorded>);

/// One event type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The major version.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
    /// The JSON Schema of its data.
    pub schema: Value,
}

/// Something that must not be, or that ought to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The event type.
    pub event_type: String,
    /// The field, as a path from the data; empty: the type as a whole.
    pub field: String,
    /// What is the matter, and what to do about it.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field.is_empty() {
            true => write!(f, "{}: {}", self.event_type, self.what),
            false => write!(f, "{} {}: {}", self.event_type, self.field, self.what),
        }
    }
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// What breaks somebody.
    pub broken: Vec<Finding>,
    /// What is new and not recorded.
    pub unrecorded: Vec<Finding>,
}

impl Baseline {
    /// These types as the program has them. Words that only explain are left out.
    pub fn of(descriptors: impl Iterator<Item = &'static EventDescriptor>) -> Self {
        Self(
            descriptors
                .map(|descriptor| {
                    let mut schema = (descriptor.schema)();
                    strip(&mut schema);
                    let (major, minor) = (descriptor.major, descriptor.minor);
                    (descriptor.event_type.to_owned(), Recorded { major, minor, schema })
                })
                .collect(),
        )
    }

    /// Compares what was recorded with what is now. `upcasts` says whether stored data of a type and
    /// major version can be made into the next one.
    pub fn compare(&self, now: &Self, upcasts: impl Fn(&str, u16) -> bool) -> Compared {
        let mut compared = Compared::default();
        for (event_type, then) in &self.0 {
            match now.0.get(event_type) {
                Some(now) => compare_type(event_type, then, now, &upcasts, &mut compared),
                None => compared.broken.push(Finding {
                    event_type: event_type.clone(),
                    field: String::new(),
                    what: "is gone, or has another name: stored events of it could not be read"
                        .to_owned(),
                }),
            }
        }
        let new = now.0.keys().filter(|event_type| !self.0.contains_key(*event_type));
        compared.unrecorded.extend(new.map(|event_type| Finding {
            event_type: event_type.clone(),
            field: String::new(),
            what: "is new: record it".to_owned(),
        }));
        compared
    }
}

/// What breaks whoever reads events of `then` or of `now`, of one major version of a type.
pub fn broken(event_type: &str, mut then: Recorded, mut now: Recorded) -> Vec<Finding> {
    strip(&mut then.schema);
    strip(&mut now.schema);
    let mut compared = Compared::default();
    compare_type(event_type, &then, &now, &|_, _| false, &mut compared);
    compared.broken
}

fn compare_type(
    event_type: &str,
    then: &Recorded,
    now: &Recorded,
    upcasts: &impl Fn(&str, u16) -> bool,
    compared: &mut Compared,
) {
    let finding = |field: &str, what: String| Finding {
        event_type: event_type.to_owned(),
        field: field.to_owned(),
        what,
    };
    if now.major != then.major {
        let missing = (then.major..now.major).find(|from| !upcasts(event_type, *from));
        if now.major < then.major {
            let what = format!("major version {} was {} before", now.major, then.major);
            compared.broken.push(finding("", what));
        } else if let Some(from) = missing {
            let what = format!("there is no upcaster from version {from} to {}", from + 1);
            compared.broken.push(finding("", what));
        } else {
            let what = format!("version {} is new: record it", now.major);
            compared.unrecorded.push(finding("", what));
        }
        return;
    }
    let mut fields = Fields { then: &then.schema, now: &now.schema, broken: Vec::new() };
    fields.compare("", &then.schema, &now.schema, 0);
    let broken = fields.broken.into_iter().map(|(field, what)| finding(&field, what));
    compared.broken.extend(broken);
    let grown = then.schema != now.schema;
    if grown && now.minor <= then.minor && compared.broken.is_empty() {
        let what = format!(
            "has changed, and its version is still {}.{}: raise the minor version",
            now.major, now.minor
        );
        compared.broken.push(finding("", what));
    } else if grown || now.minor != then.minor {
        let what = format!("version {}.{} is not recorded: record it", now.major, now.minor);
        compared.unrecorded.push(finding("", what));
    }
}

/// Two documents of schemas, and what the later one breaks.
struct Fields<'a> {
    then: &'a Value,
    now: &'a Value,
    broken: Vec<(String, String)>,
}

impl Fields<'_> {
    fn broke(&mut self, field: &str, what: impl Into<String>) {
        self.broken.push((field.to_owned(), what.into()));
    }

    fn compare(&mut self, field: &str, then: &Value, now: &Value, depth: usize) {
        let (then, now) = (resolved(self.then, then), resolved(self.now, now));
        if depth > DEPTH_MAX || then == now {
            return;
        }
        let (types_then, types_now) = (types(then), types(now));
        if !types_then.is_subset(&types_now) {
            let shown =
                |types: &BTreeSet<&str>| types.iter().copied().collect::<Vec<_>>().join(" or ");
            let what = format!(
                "was {} and is {}: raise the major version, with an upcaster",
                shown(&types_then),
                shown(&types_now)
            );
            return self.broke(field, what);
        }
        if then["format"] != now["format"] {
            self.broke(field, "has another format: raise the major version, with an upcaster");
        }
        for value in list(&then["enum"]).iter().chain(then.get("const")) {
            let allowed = now.get("enum").is_none() && now.get("const").is_none()
                || list(&now["enum"]).contains(value)
                || now.get("const") == Some(value);
            if !allowed {
                self.broke(field, format!("does not take {value} any more"));
            }
        }
        self.members(field, then, now, depth);
        if let (Some(then), Some(now)) = (then.get("items"), now.get("items")) {
            self.compare(&format!("{field}/*"), then, now, depth + 1);
        }
        for keyword in ["oneOf", "anyOf"] {
            self.variants(field, list(&then[keyword]), list(&now[keyword]), depth);
        }
    }

    fn members(&mut self, field: &str, then: &Value, now: &Value, depth: usize) {
        let none = serde_json::Map::new();
        let of = |schema: &'_ Value| schema["properties"].as_object().cloned().unwrap_or_default();
        let (members_then, members_now) = (of(then), of(now));
        for (name, member) in then["properties"].as_object().unwrap_or(&none) {
            let path = format!("{field}/{name}");
            match members_now.get(name) {
                Some(now) => self.compare(&path, member, now, depth + 1),
                None => self.broke(
                    &path,
                    "is gone, or has another name: raise the major version, with an upcaster",
                ),
            }
        }
        let required = |schema: &Value| -> BTreeSet<String> {
            list(&schema["required"]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (required_then, required_now) = (required(then), required(now));
        for name in required_now.difference(&required_then) {
            let what = match members_then.contains_key(name) {
                true => "must be there now: stored events may lack it",
                false => "is new and must be there: stored events lack it; give it a default",
            };
            self.broke(&format!("{field}/{name}"), what);
        }
        for name in required_then.difference(&required_now) {
            if members_now.contains_key(name) {
                self.broke(&format!("{field}/{name}"), "may be missing now: readers count on it");
            }
        }
    }

    /// Each variant of then must still be one: the variant that breaks least stands for it.
    fn variants(&mut self, field: &str, then: &[Value], now: &[Value], depth: usize) {
        if now.is_empty() {
            return;
        }
        for variant in then {
            let tries = now.iter().map(|candidate| {
                let mut fields = Fields { then: self.then, now: self.now, broken: Vec::new() };
                fields.compare(field, variant, candidate, depth + 1);
                fields.broken
            });
            let least = tries.min_by_key(Vec::len).unwrap_or_default();
            self.broken.extend(least);
        }
    }
}

/// The schema that a reference within the same document means.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..DEPTH_MAX {
        let target = schema["$ref"].as_str().and_then(|to| to.strip_prefix('#'));
        match target.and_then(|to| document.pointer(to)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The types that a schema allows. One that names none is told by its shape.
fn types(schema: &Value) -> BTreeSet<&str> {
    match &schema["type"] {
        Value::String(one) => BTreeSet::from([one.as_str()]),
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    }
}

/// Drops what explains and does not constrain.
fn strip(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            // A field may bear such a name too: then it is a schema and not a word.
            for word in ["description", "title", "examples", "$schema", "$comment"] {
                if members.get(word).is_some_and(|value| value.is_string() || value.is_array()) {
                    members.remove(word);
                }
            }
            members.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recorded(minor: u16, schema: Value) -> Baseline {
        Baseline([("plank.sawn".to_owned(), Recorded { major: 1, minor, schema })].into())
    }

    fn plank() -> Value {
        json!({
            "type": "object",
            "properties": {
                "length": { "$ref": "#/$defs/Length" },
                "wood": { "type": "string", "enum": ["oak", "ash"] },
                "cuts": { "type": "array", "items": { "type": "object",
                    "properties": { "at": { "type": "integer", "format": "uint64" } },
                    "required": ["at"] } },
                "note": { "type": ["string", "null"] },
            },
            "required": ["length", "wood"],
            "$defs": { "Length": { "oneOf": [
                { "type": "object", "properties": { "mm": { "type": "integer" } }, "required": ["mm"] },
                { "type": "object", "properties": { "cm": { "type": "integer" } }, "required": ["cm"] },
            ] } },
        })
    }

    fn changed(minor: u16, pointer: &str, value: Value) -> Compared {
        let mut schema = plank();
        match schema.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                schema.pointer_mut(parent).unwrap()[name] = value;
            }
        }
        recorded(0, plank()).compare(&recorded(minor, schema), |_, _| false)
    }

    fn broken(pointer: &str, value: Value) -> Vec<String> {
        changed(1, pointer, value).broken.into_iter().map(|finding| finding.field).collect()
    }

    #[test]
    fn what_is_the_same_breaks_nothing() {
        let same = recorded(0, plank()).compare(&recorded(0, plank()), |_, _| false);
        assert_eq!(same, Compared::default());
    }

    #[test]
    fn what_is_gone_renamed_retyped_narrower_or_newly_required_is_named() {
        assert_eq!(broken("/properties/note", json!({ "type": "string" })), ["/note"]);
        assert_eq!(broken("/properties/wood/enum", json!(["oak"])), ["/wood"]);
        assert_eq!(
            broken("/properties/cuts/items/properties/at/format", json!("int8")),
            ["/cuts/*/at"]
        );
        assert_eq!(broken("/properties/cuts/items/properties", json!({})), ["/cuts/*/at"]);
        assert_eq!(
            broken("/$defs/Length/oneOf/1/properties/cm/type", json!("string")),
            ["/length/cm"]
        );
        assert_eq!(
            broken("/$defs/Length/oneOf/1", plank()["$defs"]["Length"]["oneOf"][0].clone()).len(),
            2
        );
        assert_eq!(broken("/required", json!(["length", "wood", "note"])), ["/note"]);
        assert_eq!(broken("/required", json!(["length"])), ["/wood"]);
        let mut renamed = plank()["properties"].clone();
        renamed["remark"] = renamed["note"].take();
        renamed.as_object_mut().unwrap().remove("note");
        assert_eq!(broken("/properties", renamed), ["/note"]);
    }

    #[test]
    fn what_grows_asks_for_a_minor_version_and_to_be_recorded() {
        let colour = json!({ "type": ["string", "null"] });
        let grown = changed(1, "/properties/colour", colour.clone());
        assert_eq!((grown.broken.len(), grown.unrecorded.len()), (0, 1));
        let silent = changed(0, "/properties/colour", colour);
        assert!(silent.broken[0].what.contains("minor"), "{silent:?}");
        assert!(broken("/properties/wood/enum", json!(["oak", "ash", "elm"])).is_empty());
        assert_eq!(broken("/required", json!(["length", "wood", "colour"])), ["/colour"]);
    }

    #[test]
    fn a_major_version_needs_its_upcasters_and_a_type_stays() {
        let (then, mut now) = (recorded(0, plank()), recorded(0, json!({ "type": "string" })));
        now.0.get_mut("plank.sawn").unwrap().major = 3;
        let lacking = then.compare(&now, |_, from| from == 1);
        assert!(lacking.broken[0].what.contains("from version 2 to 3"), "{lacking:?}");
        let whole = then.compare(&now, |_, _| true);
        assert_eq!((whole.broken.len(), whole.unrecorded.len()), (0, 1));
        assert_eq!(now.compare(&then, |_, _| true).broken.len(), 1, "versions only rise");
        assert_eq!(then.compare(&Baseline([].into()), |_, _| true).broken.len(), 1);
        assert_eq!(Baseline([].into()).compare(&then, |_, _| true).unrecorded.len(), 1);
    }

    #[test]
    fn words_that_explain_are_not_compared() {
        let mut schema = json!({ "title": "X", "properties": { "title": { "type": "string", "description": "y" } } });
        strip(&mut schema);
        assert_eq!(schema, json!({ "properties": { "title": { "type": "string" } } }));
    }
}
