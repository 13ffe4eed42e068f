//! The registered event types as publishing needs them: found by any spelling of their name, with a
//! check of their schema that is made once and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::Value;

use super::App;
use super::problem::{ApiError, FieldProblem};
use crate::domain::event_type::{EventType, is_name};
use crate::domain::ids::EventTypeId;
use crate::schemas::registered::compile;

/// How many checks are kept.
const CHECKS_MAX: usize = 1_024;
/// How many problems of one event are named.
const PROBLEMS_MAX: usize = 20;

/// A version of a registered type.
pub(super) struct Registered {
    pub(super) name: Arc<str>,
    pub(super) major: u16,
    pub(super) minor: u16,
    check: Arc<Validator>,
}

type Key = (String, u16, u16);

/// The checks that were made, by type and version.
#[derive(Default)]
pub(super) struct Checks(Mutex<HashMap<Key, Arc<Validator>>>);

impl Checks {
    fn get(&self, key: &Key) -> Option<Arc<Validator>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn keep(&self, key: Key, check: Arc<Validator>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= CHECKS_MAX {
            all.clear();
        }
        all.insert(key, check);
    }
}

/// What a name may mean, the likeliest first: as it is, with a major version behind it, and either
/// with the prefix of CloudEvents before it.
fn spellings(name: &str, prefix: &str) -> Vec<(String, Option<u16>)> {
    let bare = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
    let mut all = Vec::new();
    for name in [Some(name), bare].into_iter().flatten() {
        all.push((name.to_owned(), None));
        if let Some((name, major)) = name.rsplit_once(".v")
            && let Ok(major) = major.parse()
        {
            all.push((name.to_owned(), Some(major)));
        }
    }
    all.retain(|(name, _)| is_name(name));
    all
}

/// The type that a publisher means.
pub(super) async fn find(app: &App, name: &str) -> Result<Option<Registered>, ApiError> {
    let prefix = app.settings().runtime.event_type_prefix.clone();
    for (name, major) in spellings(name, &prefix) {
        if let Some(found) = version(app, name, major).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn version(
    app: &App,
    name: String,
    major: Option<u16>,
) -> Result<Option<Registered>, ApiError> {
    let types = app.runtime().aggregate::<EventType>();
    let id = EventTypeId::of_name(&name).uuid();
    let newest = move |of: &EventType| of.version(major).map(|(major, of)| (major, of.minor));
    let Some((major, minor)) = types.read(id, newest).await?.value else { return Ok(None) };
    let key = (name.clone(), major, minor);
    if let Some(check) = app.checks().get(&key) {
        return Ok(Some(Registered { name: name.into(), major, minor, check }));
    }
    let schema = move |of: &EventType| {
        of.version(Some(major)).map(|(_, version)| (version.minor, version.schema.clone()))
    };
    let Some((minor, schema)) = types.read(id, schema).await?.value else { return Ok(None) };
    let check = compile(&schema).map_err(|problem| {
        // It was checked when it was registered.
        let error_id = super::problem::uuid_of_failure();
        tracing::error!(error_id, name, problem, "a registered schema cannot be used");
        ApiError::internal(error_id)
    })?;
    let check = Arc::new(check);
    app.checks().keep((name.clone(), major, minor), check.clone());
    Ok(Some(Registered { name: name.into(), major, minor, check }))
}

impl Registered {
    /// Where `data`, which stands at `at`, does not fit the schema.
    pub(super) fn problems(&self, data: &Value, at: &str) -> Vec<FieldProblem> {
        if self.check.is_valid(data) {
            return Vec::new();
        }
        let problem = |error: jsonschema::ValidationError<'_>| {
            let pointer = format!("{at}{}", error.instance_path());
            FieldProblem::new(pointer, "schema", error.masked().to_string())
        };
        self.check.iter_errors(data).take(PROBLEMS_MAX).map(problem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_known_by_every_spelling_of_its_name() {
        let spelled = |name: &str| -> Vec<_> {
            let all = spellings(name, "souk").into_iter();
            all.map(|(name, major)| format!("{name}@{}", major.unwrap_or(0))).collect()
        };
        assert_eq!(spelled("partner.stock.counted"), ["partner.stock.counted@0"]);
        assert_eq!(spelled("souk.partner.stock.counted.v2"), ["partner.stock.counted@2"]);
        assert_eq!(spelled("partner.counted.v2"), ["partner.counted.v2@0", "partner.counted@2"]);
        assert_eq!(spelled("souk.counted"), ["souk.counted@0"]);
        assert!(spelled("../etc").is_empty() && spelled("").is_empty());
    }
}
