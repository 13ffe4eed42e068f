//! What a JSON Schema must be to be registered from outside: one that can be checked against, in
//! bounded time, without asking anybody.
//!
//! References stay within the document and never lead back to where they came from, so a check ends
//! however it is written; what they lead to is counted as often as it is referred to, so a small text
//! cannot stand for an endless one. Regular expressions run on an engine without backtracking.

use serde_json::Value;

/// The longest schema, as JSON text.
pub const BYTES_MAX: usize = 32 * 1024;
/// How deep it may nest.
const DEPTH_MAX: usize = 24;
/// How many values it may have once every reference is written out.
const SIZE_MAX: usize = 10_000;
/// What a regular expression may cost in memory, compiled and while it runs.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// Members that would change what a reference means.
const REFUSED: [&str; 8] = [
    "$id",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
    "id",
];
/// Names that have a meaning of their own in stored events.
pub const MARKS: [&str; 2] = ["$personal", "$sealed"];

/// What is wrong with a schema, by JSON pointer; nothing: it can be registered.
pub fn problems(schema: &Value) -> Vec<(String, String)> {
    let one = |pointer: &str, problem: &str| vec![(pointer.to_owned(), problem.to_owned())];
    if schema["type"] != "object" {
        return one("/type", "must be object: an event's data is a JSON object");
    }
    if schema.to_string().len() > BYTES_MAX {
        return one("", "must not be longer than 32768 bytes");
    }
    let dialect = schema.get("$schema").and_then(Value::as_str);
    let is_ours =
        |uri: &str| uri.trim_end_matches('#') == "https://json-schema.org/draft/2020-12/schema";
    if schema.get("$schema").is_some() && !dialect.is_some_and(is_ours) {
        return one("/$schema", "must be https://json-schema.org/draft/2020-12/schema, or absent");
    }
    let mut walk = Walk { document: schema, size: 0, path: Vec::new(), problems: Vec::new() };
    walk.visit(schema, &mut String::new(), 0);
    if !walk.problems.is_empty() {
        return walk.problems;
    }
    match compile(schema) {
        Ok(_) => Vec::new(),
        Err(problem) => vec![(String::new(), problem)],
    }
}

/// The check that a schema stands for.
pub fn compile(schema: &Value) -> Result<jsonschema::Validator, String> {
    jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .offline()
        .with_pattern_options(
            jsonschema::PatternOptions::regex()
                .size_limit(REGEX_BYTES_MAX)
                .dfa_size_limit(REGEX_BYTES_MAX),
        )
        .build(schema)
        .map_err(|error| format!("is not a JSON Schema of draft 2020-12: {}", error.masked()))
}

struct Walk<'a> {
    document: &'a Value,
    size: usize,
    /// The references that led here.
    path: Vec<&'a str>,
    problems: Vec<(String, String)>,
}

impl<'a> Walk<'a> {
    fn refuse(&mut self, pointer: &str, problem: &str) {
        // The first few say it all.
        if self.problems.len() < 20 {
            self.problems.push((pointer.to_owned(), problem.to_owned()));
        }
    }

    fn visit(&mut self, value: &'a Value, pointer: &mut String, depth: usize) {
        self.size += 1;
        if self.size == SIZE_MAX {
            self.refuse(pointer, "it is too large once every reference is written out");
        }
        if depth > DEPTH_MAX {
            return self.refuse(pointer, "it nests deeper than 24, references written out");
        }
        if self.size >= SIZE_MAX {
            return;
        }
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let length = pointer.len();
                    pointer.push('/');
                    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                    self.member(name, member, pointer, depth);
                    pointer.truncate(length);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let length = pointer.len();
                    pointer.push_str(&format!("/{index}"));
                    self.visit(item, pointer, depth + 1);
                    pointer.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn member(&mut self, name: &str, member: &'a Value, pointer: &mut String, depth: usize) {
        if MARKS.contains(&name) || name.contains('\0') {
            return self.refuse(pointer, "this name has another meaning here");
        }
        // A property of such a name has a schema and not a text.
        if REFUSED.contains(&name) && (member.is_string() || member.is_boolean()) {
            return self.refuse(pointer, "is not supported: leave it out");
        }
        match (name, member.as_str()) {
            ("$ref", Some(target)) => self.follow(target, pointer, depth),
            _ => self.visit(member, pointer, depth + 1),
        }
    }

    fn follow(&mut self, target: &'a str, pointer: &mut String, depth: usize) {
        let found = target.strip_prefix('#').and_then(|to| self.document.pointer(to));
        let Some(found) = found else {
            return self.refuse(pointer, "must lead to a place in this schema (#/$defs/...)");
        };
        if self.path.contains(&target) || target == "#" {
            return self
                .refuse(pointer, "leads back to itself: recursive schemas are not supported");
        }
        self.path.push(target);
        self.visit(found, pointer, depth + 1);
        self.path.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(properties: Value) -> Value {
        json!({ "type": "object", "properties": properties })
    }

    #[test]
    fn a_schema_of_the_usual_kind_is_fine() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "id": { "type": "string", "pattern": "^[A-Z]{3}$" },
                "lines": { "type": "array", "items": { "$ref": "#/$defs/line" } },
            },
            "required": ["id"],
            "$defs": { "line": { "type": "object", "properties": { "n": { "type": "integer" } } } },
        });
        assert_eq!(problems(&schema), []);
        assert!(compile(&schema).unwrap().is_valid(&json!({ "id": "ABC", "lines": [{ "n": 1 }] })));
    }

    #[test]
    fn whatever_could_not_be_checked_in_bounded_time_or_alone_is_refused() {
        let doubling: serde_json::Map<String, Value> = (0..40)
            .map(|n| {
                let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
                (format!("d{n}"), json!({ "allOf": [next, next] }))
            })
            .chain([("d40".to_owned(), json!({}))])
            .collect();
        let mut deep = json!({});
        for _ in 0..30 {
            deep = json!({ "not": deep });
        }
        let bad = [
            json!({}),
            json!({ "type": "string" }),
            json!({ "type": "object", "$schema": "http://json-schema.org/draft-07/schema#" }),
            json!({ "type": "object", "$id": "https://example.com/x" }),
            with(json!({ "a": { "$ref": "https://example.com/x.json" } })),
            with(json!({ "a": { "$ref": "file:///etc/passwd" } })),
            with(json!({ "a": { "$ref": "#/$defs/nowhere" } })),
            with(json!({ "a": { "$ref": "#" } })),
            with(json!({ "a": { "$ref": "#/properties/a" } })),
            with(json!({ "a": { "$dynamicRef": "#a" } })),
            with(json!({ "a": { "type": "strong" } })),
            with(json!({ "a": { "pattern": "(" } })),
            with(json!({ "a": { "pattern": "(a{1000}){1000}" } })),
            with(json!({ "$sealed": { "type": "string" } })),
            with(json!({ "a": { "description": "x".repeat(BYTES_MAX) } })),
            with(json!({ "a": deep })),
            json!({ "type": "object", "allOf": [{ "$ref": "#/$defs/d0" }], "$defs": doubling }),
        ];
        for schema in bad {
            assert_ne!(problems(&schema), [], "{schema}");
        }
    }
}
