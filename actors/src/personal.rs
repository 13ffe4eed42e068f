//! Personal data that can be forgotten.
//!
//! A field of a person is a [`Personal`] value in events and state. The journal's codec seals it
//! on the way in, under a key that belongs to that person alone, and opens it on the way out.
//! Once the key is destroyed the field reads as [`Personal::Erased`]; the stored row never changes.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The member that marks an unsealed personal value in the codec's working form. Stored rows never
/// contain it.
pub(crate) const CLEAR_MARK: &str = "$personal";
/// The member that marks a sealed personal value in stored rows. Stored; never rename.
pub(crate) const SEALED_MARK: &str = "$sealed";

/// A value about a person, or the fact that it has been erased.
///
/// `subject` names the person whose key seals it. `apply` must accept both forms: an event that
/// is read after an erasure has only [`Personal::Erased`] in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Personal<T> {
    /// The value, readable.
    Clear {
        /// Whose data it is.
        subject: Uuid,
        /// The data.
        value: T,
    },
    /// The person's key has been destroyed: nobody can read the value any more.
    Erased {
        /// Whose data it was.
        subject: Uuid,
    },
}

impl<T> Personal<T> {
    /// A readable value that belongs to `subject`.
    pub fn new(subject: Uuid, value: T) -> Self {
        Self::Clear { subject, value }
    }

    /// The value, unless it has been erased.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Clear { value, .. } => Some(value),
            Self::Erased { .. } => None,
        }
    }

    /// The value, unless it has been erased.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Clear { value, .. } => Some(value),
            Self::Erased { .. } => None,
        }
    }

    /// Whose data this is.
    pub fn subject(&self) -> Uuid {
        match self {
            Self::Clear { subject, .. } | Self::Erased { subject } => *subject,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Working<T> {
    #[serde(rename = "$personal")]
    personal: Marked<T>,
}

#[derive(Serialize, Deserialize)]
struct Marked<T> {
    subject: Uuid,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    value: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T: Serialize> Serialize for Personal<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let personal = Marked { subject: self.subject(), value: self.get() };
        Working { personal }.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Personal<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Working { personal: Marked { subject, value } } =
            Working::<T>::deserialize(deserializer)?;
        Ok(match value {
            Some(value) => Self::Clear { subject, value },
            None => Self::Erased { subject },
        })
    }
}

/// Outside the journal a personal value is written plainly, or as a word that says why it is not:
/// so its schema is that of the value, or a string.
impl<T: JsonSchema> JsonSchema for Personal<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Personal_{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let value = generator.subschema_for::<T>();
        schemars::json_schema!({
            "description": "Personal data: the value, \"[redacted]\" without the right to read it, \"[erased]\" after an erasure",
            "anyOf": [value, { "enum": ["[redacted]", "[erased]"] }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_the_working_form() {
        let subject = Uuid::from_u128(7);
        for personal in
            [Personal::new(subject, "a@b.example".to_owned()), Personal::Erased { subject }]
        {
            let json = serde_json::to_string(&personal).unwrap();
            assert!(json.contains(CLEAR_MARK));
            assert_eq!(serde_json::from_str::<Personal<String>>(&json).unwrap(), personal);
        }
    }
}
