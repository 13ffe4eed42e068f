//! Which events somebody wants to hear of: types by any of their names, and patterns of types.

use souk_actors::broker::{BadPattern, Pattern};

use super::registry;

/// A choice of event types; an empty one is all of them.
#[derive(Debug, Clone, Default)]
pub struct Topics(Vec<Topic>);

#[derive(Debug, Clone)]
enum Topic {
    /// One type, perhaps in one major version only.
    Type(&'static str, Option<u16>),
    Pattern(Pattern),
}

impl Topics {
    /// Reads names of event types (canonical, Pascal case, aliases, each also with `.v<major>`) and
    /// patterns: `order.*` (one word), `order.#` (any number), `~` and a regular expression.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadPattern> {
        let topic = |text: &str| match registry::find(text) {
            Some(named) => Ok(Topic::Type(named.descriptor.event_type, named.major)),
            None => Pattern::parse(text).map(Topic::Pattern),
        };
        texts.into_iter().map(topic).collect::<Result<_, _>>().map(Self)
    }

    /// Reads a list with commas between; what begins with `~` is one regular expression to its end.
    pub fn parse_list(text: &str) -> Result<Self, BadPattern> {
        if text.starts_with('~') {
            return Self::parse([text]);
        }
        Self::parse(text.split(',').map(str::trim))
    }

    /// Whether each of them is allowed, at least in part: a type is when one of the patterns has it; a
    /// pattern when it is one of them, or one of the `known` types is of both.
    pub fn are_among<'a>(
        &self,
        allowed: &[Pattern],
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> bool {
        let may = |event_type: &str| allowed.iter().any(|pattern| pattern.matches(event_type));
        self.0.iter().all(|topic| match topic {
            Topic::Type(wanted, _) => may(wanted),
            Topic::Pattern(wanted) => {
                let text = wanted.as_str();
                allowed.iter().any(|pattern| pattern.as_str() == text)
                    || !text.contains(['*', '#', '~']) && may(text)
                    || known.clone().any(|name| wanted.matches(name) && may(name))
            }
        })
    }

    /// Whether events of this type and major version are among them.
    pub fn include(&self, event_type: &str, major: u16) -> bool {
        let fits = |topic: &Topic| match topic {
            Topic::Type(wanted, version) => {
                *wanted == event_type && version.is_none_or(|version| version == major)
            }
            Topic::Pattern(pattern) => pattern.matches(event_type),
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_held_against_what_is_allowed() {
        let allowed = [Pattern::parse("order.*").unwrap(), Pattern::parse("partner.#").unwrap()];
        let known = ["order.placed", "payment.captured"];
        let table = [
            ("order.placed", true),
            ("OrderPlaced", true),
            ("order.*", true),
            ("order.#", true),
            ("#", true),
            ("~^order", true),
            ("partner.stock.counted", true),
            ("payment.captured", false),
            ("payment.*", false),
            ("order.placed,payment.captured", false),
            ("~^payment", false),
            ("other.thing", false),
        ];
        for (list, expected) in table {
            let topics = Topics::parse_list(list).unwrap();
            assert_eq!(topics.are_among(&allowed, known.into_iter()), expected, "{list}");
        }
        assert!(Topics::default().are_among(&[], known.into_iter()));
    }

    #[test]
    fn names_and_patterns_select_types() {
        let table = [
            ("order.placed", "order.placed", true),
            ("OrderPlaced", "order.placed", true),
            ("TransactionCreated", "order.placed", true),
            ("order.placed.v1", "order.placed", true),
            ("order.paid, OrderPlaced", "order.placed", true),
            ("order.paid,order.shipped", "order.placed", false),
            ("order.*", "order.placed", true),
            ("payment.#,order.#", "order.placed", true),
            (r"~^order\.(placed|paid){1,2}$", "order.placed", true),
            ("~^payment", "order.placed", false),
            ("nobody.declared_this", "order.placed", false),
        ];
        for (list, event_type, expected) in table {
            let topics = Topics::parse_list(list).unwrap();
            assert_eq!(topics.include(event_type, 1), expected, "{list} on {event_type}");
        }
        assert!(!Topics::parse_list("order.placed.v1").unwrap().include("order.placed", 2));
        assert!(Topics::default().include("anything.at_all", 7));
        for bad in ["~(", "order..placed", "order.placed,", "or der"] {
            assert!(Topics::parse_list(bad).is_err(), "{bad}");
        }
    }
}
