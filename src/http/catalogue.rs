//! The catalogue of event types: what filters, schemas and API documents are made from.

use std::sync::LazyLock;

use souk_actors::event::EventDescriptor;

use crate::app::contexts::descriptors;

/// Every declared event type, by context and in the order of declaration.
pub(super) fn all() -> &'static [&'static EventDescriptor] {
    static ALL: LazyLock<Vec<&'static EventDescriptor>> = LazyLock::new(|| descriptors().collect());
    &ALL
}

/// The type with this canonical name.
pub(super) fn find(event_type: &str) -> Option<&'static EventDescriptor> {
    all().iter().find(|descriptor| descriptor.event_type == event_type).copied()
}

/// What a filter means: a canonical type, a name or an alias of it, and perhaps `.v<major>` behind
/// it. A name that nobody declared is taken as it is, and nothing will be found.
pub(super) fn resolve(filter: &str) -> (Vec<String>, Option<u16>) {
    if let Some(types) = types_named(filter) {
        return (types, None);
    }
    if let Some((name, major)) = filter.rsplit_once(".v")
        && let Ok(major) = major.parse()
    {
        return (types_named(name).unwrap_or_else(|| vec![name.to_owned()]), Some(major));
    }
    (vec![filter.to_owned()], None)
}

fn types_named(name: &str) -> Option<Vec<String>> {
    let named = |descriptor: &&&EventDescriptor| {
        descriptor.event_type == name
            || descriptor.name == name
            || descriptor.aliases.contains(&name)
    };
    let types: Vec<_> =
        all().iter().filter(named).map(|descriptor| descriptor.event_type.to_owned()).collect();
    (!types.is_empty()).then_some(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_names_aliases_and_majors() {
        for filter in ["order.placed", "OrderPlaced", "TransactionCreated", "order.created"] {
            assert_eq!(resolve(filter), (vec!["order.placed".to_owned()], None), "{filter}");
        }
        assert_eq!(resolve("order.placed.v2"), (vec!["order.placed".to_owned()], Some(2)));
        assert_eq!(resolve("OrderPlaced.v1"), (vec!["order.placed".to_owned()], Some(1)));
        assert_eq!(resolve("saga.completed"), (vec!["saga.completed".to_owned()], None));
    }

    #[test]
    fn no_name_means_two_things() {
        for descriptor in all() {
            for name in [descriptor.event_type, descriptor.name].iter().chain(descriptor.aliases) {
                let types = types_named(name).unwrap_or_default();
                assert_eq!(types, [descriptor.event_type], "{name}");
            }
        }
    }
}
