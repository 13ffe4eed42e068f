//! Filters on what is in an event: `data.amount >= 1000 and data.currency = "VND"`.
//!
//! ```text
//!   any        = all { "or" all }
//!   all        = one { "and" one }
//!   one        = "not" one | "(" any ")" | comparison
//!   comparison = field "exists"
//!              | field ("=" | "!=") value
//!              | field ("<" | "<=" | ">" | ">=") number
//!              | field "in" "(" value { "," value } ")"
//!   value      = number | "text in double quotes" | true | false | null
//! ```
//!
//! A field is `event_type`, `aggregate_type`, `aggregate_id`, `aggregate_version`, `version` (the
//! major one), `correlation_id`, `causation_id`, or a place in `data` or `metadata`: names and
//! numbers of elements with points between (`data.items.0.quantity`). A comparison with a field
//! that is not there, or whose value is of another kind, is false; so is `!=`. Data are looked at as
//! they are stored: in the version that they were written in, personal fields sealed.

mod parse;

use std::cmp::Ordering;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::event::StoredEvent;

/// The longest filter, in bytes.
pub const FILTER_BYTES_MAX: usize = 1_024;
/// How deep parentheses and `not` may be nested.
pub const FILTER_DEPTH_MAX: usize = 16;

/// A filter, read and ready. Deciding takes a time in proportion to its length and the event's.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    text: String,
    expression: Expression,
}

/// A filter that cannot be understood: what is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a filter: {problem}, at character {at}")]
pub struct BadFilter {
    /// What is wrong, in words for whoever wrote it.
    pub problem: String,
    /// Where: the number of the character, from 1.
    pub at: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Any(Vec<Self>),
    All(Vec<Self>),
    Not(Box<Self>),
    Exists(Field),
    Is(Field, Vec<Literal>),
    Differs(Field, Literal),
    Order(Field, Order, Number),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Below,
    AtMost,
    AtLeast,
    Above,
}

impl Order {
    fn fits(self, ordering: Ordering) -> bool {
        match self {
            Self::Below => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::AtLeast => ordering.is_ge(),
            Self::Above => ordering.is_gt(),
        }
    }
}

/// What a comparison looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    EventType,
    AggregateType,
    AggregateId,
    AggregateVersion,
    Version,
    CorrelationId,
    CausationId,
    Data(Vec<String>),
    Metadata(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Literal {
    Number(Number),
    Text(String),
    Bool(bool),
    Null,
}

/// Whole numbers are compared exactly, whatever their size; others as floats.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        let Value::Number(number) = value else { return None };
        let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        whole.map(Self::Whole).or_else(|| number.as_f64().map(Self::Float))
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        #[expect(clippy::cast_precision_loss, reason = "one of them is a float already")]
        let float = |number| match number {
            Self::Whole(whole) => whole as f64,
            Self::Float(float) => float,
        };
        match (self, other) {
            (Self::Whole(one), Self::Whole(two)) => Some(one.cmp(&two)),
            (one, two) => float(one).partial_cmp(&float(two)),
        }
    }
}

impl Literal {
    /// Whether a value is this one; none: it is of another kind.
    fn equals(&self, value: &Value) -> Option<bool> {
        match (self, value) {
            (Self::Number(number), value @ Value::Number(_)) => {
                Some(Number::of(value)?.compare(*number) == Some(Ordering::Equal))
            }
            (Self::Text(text), Value::String(value)) => Some(text == value),
            (Self::Bool(wanted), Value::Bool(value)) => Some(wanted == value),
            (Self::Null, value) => Some(value.is_null()),
            _ => None,
        }
    }
}

impl Filter {
    /// Reads a filter.
    pub fn parse(text: &str) -> Result<Self, BadFilter> {
        let expression = parse::parse(text)?;
        Ok(Self { text: text.to_owned(), expression })
    }

    /// The filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether an event passes. One whose data cannot be read passes: whoever gets it finds the
    /// trouble, and nothing is left out in silence.
    pub fn matches(&self, event: &StoredEvent) -> bool {
        let looked_at = |in_data: bool| {
            self.expression.any_field(&|field| match field {
                Field::Data(_) => in_data,
                Field::Metadata(_) => !in_data,
                _ => false,
            })
        };
        let read = |text: &str, needed: bool| {
            if needed { serde_json::from_str(text) } else { Ok(Value::Null) }
        };
        let (data, metadata) =
            (read(&event.data, looked_at(true)), read(&event.metadata, looked_at(false)));
        match (data, metadata) {
            (Ok(data), Ok(metadata)) => self.expression.holds(&Seen { event, data, metadata }),
            _ => true,
        }
    }
}

impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Filter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        Self::parse(text)
    }
}

/// As it was written.
impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Filter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// An event with its JSON read.
struct Seen<'a> {
    event: &'a StoredEvent,
    data: Value,
    metadata: Value,
}

/// The value at a place; none: there is nothing.
fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| match value {
        Value::Object(members) => members.get(name),
        Value::Array(elements) => elements.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

impl Seen<'_> {
    /// Whether the field is there and what is asked of it holds.
    fn asked(&self, field: &Field, holds: impl FnOnce(&Value) -> bool) -> bool {
        let event = self.event;
        let own: Value = match field {
            Field::Data(path) => return at(&self.data, path).is_some_and(holds),
            Field::Metadata(path) => return at(&self.metadata, path).is_some_and(holds),
            Field::EventType => (*event.event_type).into(),
            Field::AggregateType => (*event.aggregate_type).into(),
            Field::AggregateId => event.aggregate_id.to_string().into(),
            Field::AggregateVersion => event.aggregate_version.into(),
            Field::Version => event.major.into(),
            Field::CorrelationId => (*event.correlation_id).into(),
            Field::CausationId => (*event.causation_id).into(),
        };
        holds(&own)
    }
}

impl Expression {
    fn holds(&self, seen: &Seen<'_>) -> bool {
        match self {
            Self::Any(parts) => parts.iter().any(|part| part.holds(seen)),
            Self::All(parts) => parts.iter().all(|part| part.holds(seen)),
            Self::Not(part) => !part.holds(seen),
            Self::Exists(field) => seen.asked(field, |_| true),
            Self::Is(field, values) => seen.asked(field, |value| {
                values.iter().any(|wanted| wanted.equals(value) == Some(true))
            }),
            Self::Differs(field, other) => seen.asked(field, |value| match other {
                Literal::Null => !value.is_null(),
                other => other.equals(value) == Some(false),
            }),
            Self::Order(field, order, number) => seen.asked(field, |value| {
                let ordering = Number::of(value).and_then(|value| value.compare(*number));
                ordering.is_some_and(|ordering| order.fits(ordering))
            }),
        }
    }

    fn any_field(&self, asked: &dyn Fn(&Field) -> bool) -> bool {
        match self {
            Self::Any(parts) | Self::All(parts) => parts.iter().any(|part| part.any_field(asked)),
            Self::Not(part) => part.any_field(asked),
            Self::Exists(field)
            | Self::Is(field, _)
            | Self::Differs(field, _)
            | Self::Order(field, ..) => asked(field),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::testing::stored_event;

    fn event() -> StoredEvent {
        let data = json!({
            "amount": 1_500, "currency": "VND", "rate": 0.5, "big": u64::MAX, "express": true,
            "note": null, "items": [{ "sku": "BLUE-1", "quantity": 3 }], "in": 1,
            "name": "say \"hi\"",
        });
        let metadata = json!({ "actor_id": "ann" }).to_string().into();
        let id = Uuid::from_u128(7);
        StoredEvent { metadata, ..stored_event("order.placed", "order", id, &data) }
    }

    #[test]
    fn filters_choose_by_what_is_in_an_event() {
        let event = event();
        let table = [
            ("data.amount >= 1000", true),
            ("data.amount >= 1500", true),
            ("data.amount > 1500", false),
            ("data.amount < 1500.5", true),
            ("data.amount<=1499", false),
            ("data.amount = 1500", true),
            ("data.amount == 1500.0", true),
            ("data.amount != 1500", false),
            ("data.amount != 7", true),
            ("data.amount = \"1500\"", false),
            ("data.amount != \"1500\"", false),
            ("data.big > 18446744073709551614", true),
            ("data.big > 18446744073709551615", false),
            ("data.rate >= 0.5 and data.rate < 1e0", true),
            ("data.currency = \"VND\"", true),
            ("data.currency in (\"USD\", \"VND\")", true),
            ("data.currency in (\"USD\", 7)", false),
            ("data.currency > 7", false),
            ("data.express = true and not data.express = false", true),
            ("data.note exists", true),
            ("data.note = null", true),
            ("data.note != null", false),
            ("data.missing exists", false),
            ("data.missing = null", false),
            ("data.missing != 7", false),
            ("not data.missing exists", true),
            ("data.items.0.sku = \"BLUE-1\"", true),
            ("data.items.1.sku exists", false),
            ("data.items.0.quantity >= 4", false),
            ("data.in = 1", true),
            ("data.name = \"say \\\"hi\\\"\"", true),
            ("event_type = \"order.placed\" and version = 1", true),
            ("aggregate_type in (\"user\")", false),
            ("aggregate_id = \"00000000-0000-0000-0000-000000000007\"", true),
            ("aggregate_version >= 2", false),
            ("metadata.actor_id = \"ann\"", true),
            ("correlation_id = \"test\" and causation_id exists", true),
            // `and` binds more than `or`.
            ("data.amount = 1500 or data.amount = 7 and data.missing exists", true),
            ("(data.amount = 1500 or data.amount = 7) and data.missing exists", false),
            ("data.amount = -1 || data.rate = 5e-1 && data.express = true", true),
            ("NOT (data.amount < 7 OR data.missing EXISTS)", true),
        ];
        for (text, expected) in table {
            let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.matches(&event), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_left_out() {
        let broken = StoredEvent { data: "{".into(), ..event() };
        assert!(Filter::parse("data.amount > 7").unwrap().matches(&broken));
        assert!(!Filter::parse("version = 2").unwrap().matches(&broken), "it looks elsewhere");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let table = [
            ("", 1, "a field"),
            ("amount > 1", 1, "begin with data."),
            ("data > 1", 1, "data."),
            ("data..a exists", 6, "a name"),
            ("data.a", 7, "expected"),
            ("data.a >", 9, "a number"),
            ("data.a > \"x\"", 10, "a number"),
            ("data.a = x", 10, "a value"),
            ("data.a = 'x'", 10, "quotes"),
            ("data.a = \"x", 10, "not closed"),
            ("data.a = 1 data.b = 2", 12, "and"),
            ("(data.a = 1", 12, ")"),
            ("data.a = 1)", 11, "and"),
            ("data.a in 1", 11, "("),
            ("data.a in ()", 12, "a value"),
            ("data.a = 1e999", 10, "a number"),
            ("data.a ~ 1", 8, "~"),
            ("data.ä = 1 and x", 6, "ä"),
        ];
        for (text, at, problem) in table {
            let error = Filter::parse(text).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error}");
            assert!(error.problem.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let long = format!("data.{} exists", "a".repeat(FILTER_BYTES_MAX));
        assert!(Filter::parse(&long).unwrap_err().problem.contains("longer"));
        let nested = |depth: usize| {
            Filter::parse(&format!("{}data.a = 1{}", "(".repeat(depth), ")".repeat(depth)))
        };
        assert!(nested(FILTER_DEPTH_MAX).is_ok());
        assert!(nested(FILTER_DEPTH_MAX + 1).unwrap_err().problem.contains("nested"));
        let many = format!("{}data.a = 1", "not ".repeat(200));
        assert!(Filter::parse(&many).unwrap_err().problem.contains("nested"));
    }

    #[test]
    fn a_filter_is_stored_as_it_was_written() {
        let filter = Filter::parse("data.a  =  1").unwrap();
        let json = serde_json::to_string(&filter).unwrap();
        assert_eq!(json, "\"data.a  =  1\"");
        assert_eq!(serde_json::from_str::<Filter>(&json).unwrap(), filter);
        assert!(serde_json::from_str::<Filter>("\"data.a =\"").is_err());
    }

    proptest::proptest! {
        /// Whatever somebody sends: an answer, and what is taken is decided without a panic.
        #[test]
        fn nothing_makes_it_panic(text in "[ a-z0-9.\"\\\\()=<>!&|,ä-]{0,60}") {
            if let Ok(filter) = Filter::parse(&text) {
                filter.matches(&event());
            }
        }
    }
}
