//! What the server itself says in `/metrics`: how long each subscription took from an event's
//! commit until it was handled, and how many events of each type were published.

use std::collections::BTreeMap;

use super::report::Subscriber;

/// From the commit of an event until a subscription has handled it.
const HANDLED: &str = "souk_event_end_to_end_seconds_bucket";
/// How many events of each type have been passed on.
const PUBLISHED: &str = "souk_events_published_total";

/// The figures at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrape {
    /// By subscription: upper bounds in seconds and how many were below each.
    handled: BTreeMap<String, Vec<(f64, f64)>>,
    published: BTreeMap<String, u64>,
}

impl Scrape {
    pub(super) fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if series.starts_with(HANDLED) {
                let le = label(series, "le").map(|le| le.parse().unwrap_or(f64::INFINITY));
                let Some((name, le)) = label(series, "subscription").zip(le) else { continue };
                let buckets = scrape.handled.entry(name.to_owned()).or_default();
                match buckets.iter_mut().find(|(bound, _)| *bound == le) {
                    // Of several series of one subscription, all count.
                    Some((_, count)) => *count += value,
                    None => buckets.push((le, value)),
                }
            } else if series.starts_with(PUBLISHED)
                && let Some(event_type) = label(series, "event_type")
            {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count"
                )]
                let count = value as u64;
                *scrape.published.entry(event_type.to_owned()).or_default() += count;
            }
        }
        scrape
    }

    /// How many events of a type were published since `before`.
    pub(super) fn published_since(&self, before: &Self, event_type: &str) -> u64 {
        let count = |scrape: &Self| scrape.published.get(event_type).copied().unwrap_or(0);
        count(self).saturating_sub(count(before))
    }

    /// How each subscription did since `before`; those that handled nothing are left out.
    pub(super) fn subscribers_since(&self, before: &Self) -> Vec<Subscriber> {
        let mut subscribers: Vec<_> = self
            .handled
            .iter()
            .filter_map(|(name, buckets)| {
                let earlier = before.handled.get(name);
                let less = |bound: f64| {
                    let found = earlier?.iter().find(|(at, _)| *at == bound)?;
                    Some(found.1)
                };
                let mut counts: Vec<_> = buckets
                    .iter()
                    .map(|(bound, count)| (*bound, count - less(*bound).unwrap_or(0.0)))
                    .collect();
                counts.sort_by(|one, other| one.0.total_cmp(&other.0));
                let events = counts.last()?.1;
                let [p50_ms, p95_ms, p99_ms] =
                    [0.5, 0.95, 0.99].map(|share| quantile(&counts, share * events) * 1e3);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count"
                )]
                let events = events as u64;
                Some(Subscriber { name: name.clone(), events, p50_ms, p95_ms, p99_ms })
            })
            .filter(|subscriber| subscriber.events > 0)
            .collect();
        subscribers.sort_by_key(|subscriber| std::cmp::Reverse(subscriber.events));
        subscribers
    }
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
";
    const AFTER: &str = "\
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"0.01\"} 60
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"0.02\"} 110
souk_event_end_to_end_seconds_bucket{subscription=\"index\",priority=\"standard\",le=\"+Inf\"} 110
souk_event_end_to_end_seconds_bucket{subscription=\"idle\",priority=\"standard\",le=\"+Inf\"} 0
souk_events_published_total{context=\"orders\",event_type=\"order.placed\"} 10
";

    #[test]
    fn what_happened_in_between_is_told() {
        let (before, after) = (Scrape::read(BEFORE), Scrape::read(AFTER));
        assert_eq!(after.published_since(&before, "order.placed"), 7);
        assert_eq!(after.published_since(&before, "order.paid"), 0);
        let subscribers = after.subscribers_since(&before);
        assert_eq!(subscribers.len(), 1, "who handled nothing is left out");
        assert_eq!((subscribers[0].name.as_str(), subscribers[0].events), ("index", 100));
        assert!((subscribers[0].p50_ms - 10.0).abs() < 1e-6, "{}", subscribers[0].p50_ms);
        assert!((subscribers[0].p95_ms - 19.0).abs() < 1e-6, "{}", subscribers[0].p95_ms);
    }
}
