//! What the server itself says in `/metrics`: how long each subscription took from the decision that
//! led to an event until it was handled, how long the commands of each type of aggregate took, how
//! many events of each type were published, and how many deliveries ended as dead letters.

use std::collections::BTreeMap;

use super::report::{Deliveries, Estimates, Subscriber, TypeRow};

/// From the decision that led to an event until a subscription has handled it.
const HANDLED: &str = "souk_event_end_to_end_seconds_bucket";
/// How long commands took until they were durable and answered.
const COMMANDS: &str = "souk_command_duration_seconds_bucket";
/// How many events of each type have been passed on.
const PUBLISHED: &str = "souk_events_published_total";
/// How many events each subscription has handled.
const CONSUMED: &str = "souk_events_consumed_total";
/// How many letters have died, and how many there are now, those that wait behind one included.
const DIED: &str = "souk_dlq_letters_total";
const LETTERS: &str = "souk_dlq_letters";

/// Counts by a label. Of several series with the same one, all count.
type Counts = BTreeMap<String, f64>;
/// The same by upper bounds in seconds: how many were below each.
type Buckets = BTreeMap<String, Vec<(f64, f64)>>;

/// The figures at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrape {
    handled: Buckets,
    commands: Buckets,
    published: Counts,
    consumed: Counts,
    died: Counts,
    letters: Counts,
}

impl Scrape {
    pub(super) fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            scrape.take(series, value);
        }
        scrape
    }

    fn take(&mut self, series: &str, value: f64) {
        let metric = series.split('{').next().unwrap_or_default();
        let (counts, name) = match metric {
            HANDLED => return bucket(&mut self.handled, series, "subscription", value),
            COMMANDS if label(series, "outcome") == Some("accepted") => {
                return bucket(&mut self.commands, series, "aggregate_type", value);
            }
            PUBLISHED => (&mut self.published, "event_type"),
            CONSUMED => (&mut self.consumed, "subscription"),
            DIED => (&mut self.died, "subscription"),
            LETTERS => (&mut self.letters, "subscription"),
            _ => return,
        };
        if let Some(name) = label(series, name) {
            *counts.entry(name.to_owned()).or_default() += value;
        }
    }

    /// How many events of a type were published since `before`.
    pub(super) fn published_since(&self, before: &Self, event_type: &str) -> u64 {
        since(&self.published, &before.published, event_type)
    }

    /// What became of deliveries since `before`. A letter that waits behind an older one did not die,
    /// and one that died may have been worked by now: what there is more of counts.
    pub(super) fn deliveries_since(&self, before: &Self) -> Deliveries {
        let names = self.died.keys().chain(self.letters.keys());
        let letters = names.filter_map(|name| {
            let died = since(&self.died, &before.died, name);
            let letters = died.max(since(&self.letters, &before.letters, name));
            (letters > 0).then(|| (name.clone(), letters))
        });
        let handled =
            self.consumed.keys().map(|name| since(&self.consumed, &before.consumed, name));
        Deliveries::new(handled.sum(), letters.collect())
    }

    /// How each subscription did since `before`; those that handled nothing are left out.
    pub(super) fn subscribers_since(&self, before: &Self) -> Vec<Subscriber> {
        let estimates = estimates_since(&self.handled, &before.handled);
        estimates.map(|(name, events, times)| Subscriber { name, events, times }).collect()
    }

    /// How the commands of each type of aggregate did since `before`, whoever gave them.
    pub(super) fn types_since(&self, before: &Self) -> Vec<TypeRow> {
        let estimates = estimates_since(&self.commands, &before.commands);
        let rows = estimates.map(|(aggregate_type, commands, times)| TypeRow {
            aggregate_type,
            commands,
            times,
        });
        rows.collect()
    }
}

fn bucket(buckets: &mut Buckets, series: &str, name: &str, value: f64) {
    let le = label(series, "le").map(|le| le.parse().unwrap_or(f64::INFINITY));
    let Some((name, le)) = label(series, name).zip(le) else { return };
    let buckets = buckets.entry(name.to_owned()).or_default();
    match buckets.iter_mut().find(|(bound, _)| *bound == le) {
        Some((_, count)) => *count += value,
        None => buckets.push((le, value)),
    }
}

fn since(now: &Counts, before: &Counts, name: &str) -> u64 {
    let count = |of: &Counts| of.get(name).copied().unwrap_or(0.0);
    whole(count(now) - count(before))
}

/// A count, as it is written in text; below 0: none.
fn whole(count: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let count = count.max(0.0) as u64;
    count
}

/// How many there were of each since `before` and how long they took, the most first; those of which
/// there was none are left out.
fn estimates_since(
    now: &Buckets,
    before: &Buckets,
) -> impl Iterator<Item = (String, u64, Estimates)> {
    let mut all: Vec<_> = now
        .iter()
        .filter_map(|(name, buckets)| {
            let less = |bound: f64| {
                let earlier = before.get(name)?.iter().find(|(at, _)| *at == bound)?;
                Some(earlier.1)
            };
            let mut counts: Vec<_> = buckets
                .iter()
                .map(|(bound, count)| (*bound, count - less(*bound).unwrap_or(0.0)))
                .collect();
            counts.sort_by(|one, other| one.0.total_cmp(&other.0));
            let all = counts.last()?.1;
            let at = |share: f64| quantile(&counts, share * all) * 1e3;
            let times = Estimates {
                p50_ms: at(0.5),
                p95_ms: at(0.95),
                p99_ms: at(0.99),
                p999_ms: at(0.999),
            };
            Some((name.clone(), whole(all), times))
        })
        .filter(|(_, count, _)| *count > 0)
        .collect();
    all.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    all.into_iter()
}

fn label<'a>(series: &'a str, name: &str) -> Option<&'a str> {
    let start = [format!("{{{name}=\""), format!(",{name}=\"")];
    let after = start.iter().find_map(|start| series.split_once(start.as_str()))?.1;
    after.split('"').next()
}

/// Where so many of all are below, in a straight line within a bucket.
fn quantile(counts: &[(f64, f64)], rank: f64) -> f64 {
    let (mut low, mut below) = (0.0, 0.0);
    for &(bound, count) in counts {
        if count >= rank && count > below {
            // Nobody knows how far the last bucket goes: at least this.
            if bound.is_infinite() {
                return low;
            }
            return low + (bound - low) * (rank - below) / (count - below);
        }
        (low, below) = (bound, count);
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
# TYPE souk_event_end_to_end_seconds histogram
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"0.01\"} 10
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"0.02\"} 10
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"+Inf\"} 10
souk_events_published_total{context=\"orders\",event_type=\"order.placed\"} 3
souk_events_consumed_total{subscription=\"index\",outcome=\"handled\"} 10
souk_dlq_letters_total{subscription=\"mails\",class=\"permanent\"} 2
souk_dlq_letters{subscription=\"mails\",partition=\"0\"} 2
souk_dlq_letters{subscription=\"texts\",partition=\"0\"} 5
";
    const AFTER: &str = "\
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"0.01\"} 60
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"0.02\"} 110
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"+Inf\"} 110
souk_event_end_to_end_seconds_bucket{subscription=\"idle\",priority=\"standard\",le=\"+Inf\"} 0
souk_events_published_total{context=\"orders\",event_type=\"order.placed\"} 10
souk_events_consumed_total{subscription=\"index\",outcome=\"handled\"} 100
souk_events_consumed_total{subscription=\"index\",outcome=\"duplicate\"} 6
souk_dlq_letters_total{subscription=\"mails\",class=\"permanent\"} 3
souk_dlq_letters{subscription=\"mails\",partition=\"0\"} 2
souk_dlq_letters{subscription=\"mails\",partition=\"1\"} 3
souk_dlq_letters{subscription=\"texts\",partition=\"0\"} 4
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"A\",outcome=\"accepted\",le=\"0.001\"} 500
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"A\",outcome=\"accepted\",le=\"0.002\"} 990
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"A\",outcome=\"accepted\",le=\"+Inf\"} 990
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"B\",outcome=\"accepted\",le=\"0.001\"} 0
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"B\",outcome=\"accepted\",le=\"0.002\"} 10
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"B\",outcome=\"accepted\",le=\"+Inf\"} 10
souk_command_duration_seconds_bucket{aggregate_type=\"order\",command=\"B\",outcome=\"rejected\",le=\"+Inf\"} 9
";

    #[test]
    fn what_happened_in_between_is_told() {
        let (before, after) = (Scrape::read(BEFORE), Scrape::read(AFTER));
        assert_eq!(after.published_since(&before, "order.placed"), 7);
        assert_eq!(after.published_since(&before, "order.paid"), 0);
        let subscribers = after.subscribers_since(&before);
        assert_eq!(subscribers.len(), 1, "who handled nothing is left out");
        assert_eq!((subscribers[0].name.as_str(), subscribers[0].events), ("index", 100));
        let told = subscribers[0].times.all();
        for (told, wanted) in told.into_iter().zip([10.0, 19.0, 19.8, 19.98]) {
            assert!((told - wanted).abs() < 1e-6, "{told} for {wanted}");
        }
    }

    #[test]
    fn commands_of_a_type_are_told_together_and_only_those_that_were_accepted() {
        let types = Scrape::read(AFTER).types_since(&Scrape::read(BEFORE));
        assert_eq!(types.len(), 1);
        assert_eq!((types[0].aggregate_type.as_str(), types[0].commands), ("order", 1_000));
        for (told, wanted) in types[0].times.all().into_iter().zip([1.0, 1.9, 1.98, 1.998]) {
            assert!((told - wanted).abs() < 1e-6, "{told} for {wanted}");
        }
    }

    #[test]
    fn letters_that_wait_behind_others_count_and_those_that_were_worked_do_not_hide_any() {
        let deliveries = Scrape::read(AFTER).deliveries_since(&Scrape::read(BEFORE));
        assert_eq!((deliveries.handled, deliveries.letters), (96, 3));
        assert_eq!(deliveries.letters_of, BTreeMap::from([("mails".to_owned(), 3)]));
        let share = deliveries.succeeded.unwrap();
        assert!((share - 96.0 / 99.0).abs() < 1e-9, "{share}");
        let worked = Scrape::read(BEFORE).deliveries_since(&Scrape::default());
        assert_eq!(worked.letters, 7);
        let none = Scrape::default().deliveries_since(&Scrape::default());
        assert_eq!((none.letters, none.succeeded), (0, None));
    }
}
