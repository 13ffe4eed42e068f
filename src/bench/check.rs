//! Whether what was measured is what happened: the journal beside the server is read, and compared
//! with the answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk_actors::event::StoredEvent;
use souk_actors::journal::Store;
use uuid::Uuid;

use super::place::each_behind;
use super::report::{Deliveries, JournalType, Spread};
use super::scripts::{mark, number_in};
use super::tally::Outcome;

/// How many of what is wrong are named.
const NAMED_MAX: usize = 5;

/// Something that has to be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is so.
    pub is_good: bool,
    /// What was found.
    pub found: String,
}

impl Check {
    pub(super) fn new(name: &str, is_good: bool, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), is_good, found: found.into() }
    }
}

/// What the journal has got since a moment.
#[derive(Debug, Default)]
pub(super) struct Journalled {
    pub(super) events: u64,
    pub(super) by_type: BTreeMap<Arc<str>, u64>,
    pub(super) marks: u64,
    aggregates: HashMap<(Arc<str>, Uuid), Stream>,
    positions: HashMap<u16, u64>,
    wrong: Vec<String>,
    wrong_count: u64,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    version: u64,
    events: u64,
    /// A listing's new title that may yet turn out to be part of a new price.
    retitled: Option<(u64, u64)>,
}

impl Journalled {
    pub(super) async fn since(journal: &dyn Store, before: &[u64]) -> anyhow::Result<Self> {
        let mut found =
            Self { positions: (0..).zip(before.iter().copied()).collect(), ..Self::default() };
        each_behind(journal, before, |event| found.take(event)).await?;
        let left = found.aggregates.iter().filter_map(|((_, id), of)| Some((*id, of.retitled?)));
        let marks = left.map(|(id, (version, number))| mark(id, version, number));
        found.marks = marks.fold(found.marks, u64::wrapping_add);
        Ok(found)
    }

    fn is_wrong(&mut self, what: String) {
        self.wrong_count += 1;
        if self.wrong.len() < NAMED_MAX {
            self.wrong.push(what);
        }
    }

    fn take(&mut self, event: &StoredEvent) {
        self.events += 1;
        *self.by_type.entry(event.event_type.clone()).or_default() += 1;
        let last = self.positions.insert(event.partition, event.position).unwrap_or(0);
        if event.position != last + 1 {
            self.is_wrong(format!("position {} follows {last}", event.at()));
        }
        let (id, version) = (event.aggregate_id, event.aggregate_version);
        let new = Stream { version: version - 1, events: 0, retitled: None };
        let stream = self.aggregates.entry((event.aggregate_type.clone(), id)).or_insert(new);
        let before = std::mem::replace(&mut stream.version, version);
        stream.events += 1;
        let retitled = stream.retitled.take();
        let number = |name: &str| {
            let data: Option<Value> = serde_json::from_str(&event.data).ok();
            let value = data?.get(name)?.clone();
            value.as_u64().or_else(|| number_in(value.as_str()?))
        };
        let marked = match &*event.event_type {
            "listing.updated" => {
                stream.retitled = number("title").map(|number| (version, number));
                None
            }
            "catalog.price.changed" => number("new_price").map(|number| (version, number)),
            _ => None,
        };
        // A price changes in two events, the first of which says the title again.
        let priced = marked.is_some();
        for (version, number) in marked.into_iter().chain(retitled.filter(|_| !priced)) {
            self.marks = self.marks.wrapping_add(mark(id, version, number));
        }
        if version != before + 1 {
            let of = &event.aggregate_type;
            self.is_wrong(format!("{of} {id}: version {version} follows {before}"));
        }
    }

    /// What has to be so of this and of what was answered. What there is nothing of is left out.
    pub(super) fn checks(
        &self,
        outcome: &Outcome,
        expected: &BTreeMap<&'static str, u64>,
        is_marked: bool,
    ) -> Vec<Check> {
        let mut checks = Vec::new();
        if self.events > 0 {
            let told = match self.wrong_count {
                0 => format!("{} events, {} aggregates", self.events, self.aggregates.len()),
                count => format!("{count} times not: {}", self.wrong.join("; ")),
            };
            let name = "positions and versions follow each other without gaps";
            checks.push(Check::new(name, self.wrong_count == 0, told));
        }
        if !expected.is_empty() {
            let count = |event_type: &str| self.by_type.get(event_type).copied().unwrap_or(0);
            let differing: Vec<_> = expected
                .iter()
                .filter(|(event_type, count_of)| count(event_type) != **count_of)
                .map(|(of, wanted)| {
                    format!("{wanted} {of} were accepted, {} journalled", count(of))
                })
                .collect();
            let told = match differing.is_empty() {
                true => format!("{} events", expected.values().sum::<u64>()),
                false => differing.join("; "),
            };
            let name = "what was accepted is journalled, and nothing else";
            checks.push(Check::new(name, differing.is_empty(), told));
        }
        if is_marked && (self.marks, outcome.marks) != (0, 0) {
            let is_good = self.marks == outcome.marks;
            let told = if is_good { "all of it" } else { "something else is" };
            let name = "each change is journalled with its content, at the version that was told";
            checks.push(Check::new(name, is_good, told));
        }
        checks
    }

    /// By type of aggregate: how many events each aggregate has got.
    pub(super) fn types(&self, seconds: f64) -> Vec<JournalType> {
        let mut of: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for ((aggregate_type, _), stream) in &self.aggregates {
            of.entry(aggregate_type).or_default().push(stream.events);
        }
        let types = of.into_iter().map(|(aggregate_type, counts)| JournalType {
            aggregate_type: aggregate_type.to_owned(),
            events: counts.iter().sum(),
            per_aggregate: Spread::of(counts, seconds),
        });
        types.collect()
    }
}

/// What has to be so of the answers by themselves.
pub(super) fn of_answers(outcome: &Outcome, kinds: &[&str]) -> Vec<Check> {
    let refused: Vec<_> = kinds
        .iter()
        .zip(&outcome.kinds)
        .filter(|(_, kind)| kind.refused > 0)
        .map(|(name, kind)| format!("{} times {name}", kind.refused))
        .collect();
    let told = match outcome.refused_with {
        None => format!("{} answers", outcome.accepted),
        Some(status) => format!("refused: {}, the last with {status}", refused.join(", ")),
    };
    let mut checks = vec![
        Check::new("every request is answered as asked for", outcome.refused == 0, told),
        Check::new(
            "something is answered in the time that counts",
            outcome.timed > 0,
            format!("{}", outcome.timed),
        ),
    ];
    if outcome.versions > 0 {
        let told = format!("{} of {} not", outcome.out_of_order, outcome.versions);
        let name = "versions rise in the order of the answers";
        checks.push(Check::new(name, outcome.out_of_order == 0, told));
    }
    checks
}

/// An event that is set aside counts as seen: whether that came to pass has to be asked. None:
/// nothing was delivered.
pub(super) fn of_deliveries(deliveries: &Deliveries) -> Option<Check> {
    let Deliveries { handled, letters, letters_of, .. } = deliveries;
    let all = handled + letters;
    let told = match letters {
        0 => format!("{handled} deliveries"),
        _ => {
            let of: Vec<_> =
                letters_of.iter().map(|(name, count)| format!("{count} of {name}")).collect();
            format!("{letters} of {all} deliveries: {}", of.join(", "))
        }
    };
    (all > 0).then(|| Check::new("no delivery ends as a dead letter", *letters == 0, told))
}

#[cfg(test)]
mod tests {
    use super::super::tally::Outcome;
    use super::*;

    fn event(event_type: &str, id: u128, version: u64, position: u64, data: &str) -> StoredEvent {
        use souk_actors::world::Timestamp;
        StoredEvent {
            partition: 0,
            position,
            event_id: Uuid::from_u128(u128::from(position)),
            stream: 1,
            aggregate_type: "listing".into(),
            aggregate_id: Uuid::from_u128(id),
            aggregate_version: version,
            event_type: event_type.into(),
            major: 1,
            minor: 0,
            timestamp: Timestamp::from_millis(0),
            correlation_id: "c".into(),
            causation_id: "c".into(),
            data: data.into(),
            metadata: "{}".into(),
            hash: [0; 32],
        }
    }

    fn taken(events: &[StoredEvent]) -> Journalled {
        let mut found = Journalled::default();
        events.iter().for_each(|event| found.take(event));
        for ((_, id), stream) in &found.aggregates {
            if let Some((version, number)) = stream.retitled {
                found.marks = found.marks.wrapping_add(mark(*id, version, number));
            }
        }
        found
    }

    fn retitled(id: u128, version: u64, position: u64, number: u64) -> StoredEvent {
        let data = format!(r#"{{"title":"A bicycle of {number}"}}"#);
        event("listing.updated", id, version, position, &data)
    }

    fn good(found: &Journalled, outcome: &Outcome, updates: u64) -> Vec<bool> {
        let expected = BTreeMap::from([("listing.updated", updates)]);
        found.checks(outcome, &expected, true).iter().map(|check| check.is_good).collect()
    }

    #[test]
    fn what_is_as_it_was_told_passes() {
        let price = r#"{"new_price":1000000003}"#;
        let found = taken(&[
            retitled(1, 2, 1, 1_000_000_001),
            retitled(1, 3, 2, 1_000_000_002),
            retitled(1, 4, 3, 1_000_000_002),
            event("catalog.price.changed", 1, 5, 4, price),
            retitled(2, 2, 5, 1_000_000_004),
        ]);
        let mut outcome = Outcome::new(1, 0).unwrap();
        let told = [(1, 2, 1), (1, 3, 2), (1, 5, 3), (2, 2, 4)];
        for (id, version, number) in told {
            let mark = mark(Uuid::from_u128(id), version, 1_000_000_000 + number);
            outcome.marks = outcome.marks.wrapping_add(mark);
        }
        assert_eq!(good(&found, &outcome, 4), [true, true, true]);
        assert_eq!(found.types(1.0)[0].per_aggregate.aggregates, 2);
    }

    #[test]
    fn what_is_lost_doubled_or_changed_is_noticed() {
        let mut outcome = Outcome::new(1, 0).unwrap();
        outcome.marks = mark(Uuid::from_u128(1), 2, 1_000_000_001);
        let lost = taken(&[]);
        assert_eq!(good(&lost, &outcome, 1), [false, false]);
        let doubled = taken(&[retitled(1, 2, 1, 1_000_000_001), retitled(1, 3, 2, 1_000_000_001)]);
        assert_eq!(good(&doubled, &outcome, 1), [true, false, false]);
        let changed = taken(&[retitled(1, 2, 1, 1_000_000_009)]);
        assert_eq!(good(&changed, &outcome, 1), [true, true, false]);
        let gap = taken(&[retitled(1, 2, 1, 1_000_000_001), retitled(2, 7, 3, 1_000_000_001)]);
        assert!(!good(&gap, &outcome, 2)[0], "position 2 is missing");
        let versions = taken(&[retitled(1, 2, 1, 1_000_000_001), retitled(1, 4, 2, 1_000_000_001)]);
        assert!(!good(&versions, &outcome, 2)[0], "version 3 is missing");
    }

    #[test]
    fn what_there_is_nothing_of_is_no_check() {
        let mut outcome = Outcome::new(1, 1).unwrap();
        assert!(taken(&[]).checks(&outcome, &BTreeMap::new(), true).is_empty());
        assert_eq!(of_deliveries(&Deliveries::default()), None);
        let named = |outcome: &Outcome| {
            let checks = of_answers(outcome, &["search"]);
            checks.iter().any(|check| check.name.starts_with("versions rise"))
        };
        assert!(!named(&outcome), "nobody told of a version");
        outcome.versions = 1;
        assert!(named(&outcome));
    }

    #[test]
    fn a_dead_letter_is_a_finding_and_says_whose_it_is() {
        let handled = of_deliveries(&Deliveries::new(7, BTreeMap::new())).unwrap();
        assert!(handled.is_good && handled.found == "7 deliveries", "{handled:?}");
        let letters = BTreeMap::from([("mails".to_owned(), 2), ("texts".to_owned(), 1)]);
        let dead = of_deliveries(&Deliveries::new(7, letters)).unwrap();
        assert!(!dead.is_good);
        assert_eq!(dead.found, "3 of 10 deliveries: 2 of mails, 1 of texts");
    }

    #[test]
    fn a_refusal_is_named() {
        let mut outcome = Outcome::new(1, 0).unwrap();
        (outcome.refused, outcome.refused_with, outcome.kinds[0].refused) = (2, Some(503), 2);
        let checks = of_answers(&outcome, &["change the title"]);
        assert!(!checks[0].is_good);
        assert_eq!(checks[0].found, "refused: 2 times change the title, the last with 503");
        assert!(!checks[1].is_good);
    }
}
