//! The broker: it keeps the newest part of the committed log in memory, shared and bounded, and
//! tells each subscription when an event of its topics has come.
//!
//! ```text
//!   writer ──batches, in commit order──▶ broker ──tail──▶ subscriptions pull at their own pace
//!                                          └──── wakes those whose topics match
//! ```
//!
//! A subscription that falls behind the tail reads from the journal until it has caught up; the
//! broker never waits for anyone. If the broker itself falls behind, or crashes, it skips to the
//! head: the journal has what it skipped.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use regex::Regex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::event::StoredEvent;

/// Events kept in memory per partition: some seconds under load, some megabytes.
pub const TAIL_EVENTS_MAX: usize = 16_384;
/// How soon a subscription hears that there was nothing for it: its position moves, no more.
const SWEEP_EVERY: Duration = Duration::from_millis(25);
/// Batches that may wait for the broker before it skips to the head.
const BATCHES_MAX: usize = 1_024;

/// Which event types a subscription wants: `order.placed`, `order.*` (`*` is one word),
/// `order.#` (`#` is any number of words), or `~` and a regular expression.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Words(Vec<String>),
    Regex(Regex),
}

/// The longest pattern, in bytes: event types are far shorter.
const PATTERN_BYTES_MAX: usize = 512;
/// What a regular expression may cost in memory, compiled and while it runs. It never takes more
/// than a time in proportion to its size and the text's.
const REGEX_BYTES_MAX: usize = 64 * 1024;

/// A pattern that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a topic pattern: {0}")]
pub struct BadPattern(String);

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(BadPattern(format!("longer than {PATTERN_BYTES_MAX} bytes")));
        }
        let form = match text.strip_prefix('~') {
            Some(regex) => Form::Regex(
                regex::RegexBuilder::new(regex)
                    .size_limit(REGEX_BYTES_MAX)
                    .dfa_size_limit(REGEX_BYTES_MAX)
                    .nest_limit(32)
                    .build()
                    .map_err(|error| BadPattern(error.to_string()))?,
            ),
            None => {
                let words: Vec<_> = text.split('.').map(str::to_owned).collect();
                let plain = |word: &String| {
                    word == "*"
                        || word == "#"
                        || !word.is_empty()
                            && word.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
                };
                if !words.iter().all(plain) {
                    return Err(BadPattern(format!(
                        "{text}: words of letters, digits and _, or * or #, between points"
                    )));
                }
                Form::Words(words)
            }
        };
        Ok(Self { text: text.to_owned(), form })
    }

    /// Whether an event type fits.
    pub fn matches(&self, event_type: &str) -> bool {
        match &self.form {
            Form::Regex(regex) => regex.is_match(event_type),
            Form::Words(words) => {
                let topic: Vec<_> = event_type.split('.').collect();
                words_match(words, &topic)
            }
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Word by word, with every place in the topic that the pattern so far can reach: as many steps as
/// pattern and topic have words, multiplied, however many `#` there are.
fn words_match(pattern: &[String], topic: &[&str]) -> bool {
    let mut reached = vec![false; topic.len() + 1];
    reached[0] = true;
    for word in pattern {
        if word == "#" {
            let first = reached.iter().position(|reached| *reached).unwrap_or(reached.len());
            reached[first..].fill(true);
            continue;
        }
        for at in (0..topic.len()).rev() {
            reached[at + 1] = reached[at] && (word == "*" || word == topic[at]);
        }
        reached[0] = false;
    }
    reached[topic.len()]
}

/// The newest part of a partition's committed log, in memory.
#[derive(Debug, Default)]
pub struct Tail {
    ring: Mutex<VecDeque<Arc<StoredEvent>>>,
}

impl Tail {
    /// Events after a position, at most `limit`; none if the tail does not reach back that far, and
    /// they have to be read from the journal.
    pub fn read(&self, after: u64, limit: usize) -> Option<Vec<Arc<StoredEvent>>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.front()?.position;
        let skip = usize::try_from(after.checked_add(1)?.checked_sub(first)?).ok()?;
        Some(ring.iter().skip(skip).take(limit).cloned().collect())
    }

    /// Events that come right before what it has, or up to now where it has none: the newest of them
    /// are kept, as many as there is room for.
    pub(crate) fn reach_back(&self, events: &[Arc<StoredEvent>]) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events.iter().rev() {
            let fits = ring.front().is_none_or(|first| event.position + 1 == first.position);
            if !fits || ring.len() == TAIL_EVENTS_MAX {
                return;
            }
            ring.push_front(event.clone());
        }
    }

    /// The first position that it has.
    pub(crate) fn first(&self) -> Option<u64> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ring.front()?.position)
    }

    fn extend(&self, events: Vec<Arc<StoredEvent>>) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if ring.back().is_some_and(|last| last.position + 1 != event.position) {
                ring.clear();
            }
            if ring.len() == TAIL_EVENTS_MAX {
                ring.pop_front();
            }
            ring.push_back(event);
        }
    }
}

/// What the broker and one subscription share: how far the broker has looked, and where it last
/// saw something for the subscription.
#[derive(Debug)]
pub struct Route {
    patterns: Vec<Pattern>,
    known: Mutex<HashMap<Arc<str>, bool>>,
    matched: AtomicU64,
    scanned: AtomicU64,
    news: Notify,
}

impl Route {
    /// A route for these patterns, of which nothing is known yet.
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self {
            patterns,
            known: Mutex::default(),
            matched: AtomicU64::new(0),
            scanned: AtomicU64::new(0),
            news: Notify::new(),
        }
    }

    /// Whether the subscription wants events of this type.
    pub fn wants(&self, event_type: &Arc<str>) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wanted) = known.get(event_type) {
            return *wanted;
        }
        let wanted = self.patterns.iter().any(|pattern| pattern.matches(event_type));
        // Types come from the declared events: there are some hundreds at the most.
        known.insert(event_type.clone(), wanted);
        wanted
    }

    /// How far the broker has looked, and the newest position up to there that the subscription
    /// may want.
    pub fn news(&self) -> (u64, u64) {
        let scanned = self.scanned.load(Ordering::Acquire);
        (scanned, self.matched.load(Ordering::Acquire))
    }

    /// Waits for the broker to have looked further. Poll as well: a wake-up may be lost with a
    /// broker that crashes.
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    /// Wakes the subscription.
    pub fn wake(&self) {
        self.news.notify_one();
    }

    /// Takes note of a batch: the types in it, each with its last position. Wakes the subscription
    /// if there is something for it, and says whether.
    fn scan(&self, types: &[(Arc<str>, u64, u64)], last: u64) -> bool {
        let wanted = types.iter().filter(|(event_type, ..)| self.wants(event_type));
        let wanted = wanted.map(|(_, last, _)| *last).max();
        if let Some(position) = wanted {
            self.matched.fetch_max(position, Ordering::AcqRel);
        }
        self.scanned.fetch_max(last, Ordering::AcqRel);
        if wanted.is_some() {
            self.wake();
        }
        wanted.is_some()
    }

    fn skip_to(&self, head: u64) {
        self.matched.fetch_max(head, Ordering::AcqRel);
        self.scanned.fetch_max(head, Ordering::AcqRel);
        self.wake();
    }
}

/// How the writer reaches the broker, and subscriptions their routes.
#[derive(Debug, Clone)]
pub struct BrokerHandle {
    batches: mpsc::Sender<Vec<Arc<StoredEvent>>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tail: Tail,
    /// Held by who reads from the journal what the tail lacks.
    reaching_back: tokio::sync::Mutex<()>,
    /// Where that met a damaged event.
    damaged_at: AtomicU64,
    routes: Mutex<Vec<Arc<Route>>>,
    head: AtomicU64,
    skipped: AtomicBool,
}

impl BrokerHandle {
    /// A batch has been committed. Never waits: what does not fit is skipped.
    pub fn committed(&self, events: Vec<Arc<StoredEvent>>) {
        if let Some(last) = events.last() {
            self.shared.head.fetch_max(last.position, Ordering::AcqRel);
        }
        if self.batches.try_send(events).is_err() {
            self.shared.skipped.store(true, Ordering::Release);
        }
    }

    /// The log's head is there; the batches up to it may not have been handed on.
    pub fn moved_to(&self, head: u64) {
        self.shared.head.fetch_max(head, Ordering::AcqRel);
        self.shared.skipped.store(true, Ordering::Release);
        let _ = self.batches.try_send(Vec::new());
    }

    /// The tail.
    pub fn tail(&self) -> &Tail {
        &self.shared.tail
    }

    /// One at a time reads from the journal what the tail lacks; the others find it there then.
    pub(crate) async fn reaching_back(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.reaching_back.lock().await
    }

    /// Whether the tail may be made to reach back to what comes after a position.
    pub(crate) fn may_reach_back_to(&self, after: u64) -> bool {
        after >= self.shared.damaged_at.load(Ordering::Acquire)
            && after.saturating_add(TAIL_EVENTS_MAX as u64) >= self.head()
    }

    /// A damaged event is met behind a position: not past that again.
    pub(crate) fn damaged_behind(&self, position: u64) {
        self.shared.damaged_at.fetch_max(position.saturating_add(1), Ordering::AcqRel);
    }

    /// The newest committed position that the broker has been told of.
    pub fn head(&self) -> u64 {
        self.shared.head.load(Ordering::Acquire)
    }

    /// Adds a route; it starts at the head as far as the broker knows it.
    pub fn add(&self, route: Arc<Route>) {
        let mut routes = self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner);
        route.skip_to(self.head());
        routes.push(route);
    }
}

/// The broker of one partition; its mailbox survives a crash of it.
#[derive(Debug)]
pub struct Broker {
    batches: tokio::sync::Mutex<mpsc::Receiver<Vec<Arc<StoredEvent>>>>,
    shared: Arc<Shared>,
}

impl Broker {
    /// A broker and the way to it.
    pub fn new() -> (Arc<Self>, BrokerHandle) {
        let (send, receive) = mpsc::channel(BATCHES_MAX);
        let shared = Arc::new(Shared {
            tail: Tail::default(),
            reaching_back: tokio::sync::Mutex::default(),
            damaged_at: AtomicU64::new(0),
            routes: Mutex::default(),
            head: AtomicU64::new(0),
            skipped: AtomicBool::new(true),
        });
        let handle = BrokerHandle { batches: send, shared: shared.clone() };
        (Arc::new(Self { batches: tokio::sync::Mutex::new(receive), shared }), handle)
    }

    /// Routes batches until every handle is gone.
    pub async fn run(&self) {
        let mut batches = self.batches.lock().await;
        // Whatever an earlier life may have dropped is in the journal.
        self.shared.skipped.store(true, Ordering::Release);
        self.skip();
        // When those are told that there was nothing for them.
        let mut sweep = None;
        loop {
            let batch = match sweep {
                None => batches.recv().await,
                Some(at) => match tokio::time::timeout_at(at, batches.recv()).await {
                    Ok(batch) => batch,
                    Err(_) => Some(Vec::new()),
                },
            };
            let Some(batch) = batch else { return };
            if let Some(last) = batch.last().map(|event| event.position) {
                let types = types_of(&batch);
                count(&types);
                self.shared.tail.extend(batch);
                let woken = self.routes().iter().filter(|route| route.scan(&types, last)).count();
                if woken < self.routes().len() && sweep.is_none() {
                    sweep = Some(Instant::now() + SWEEP_EVERY);
                }
            }
            if sweep.is_some_and(|at| Instant::now() >= at) {
                sweep = None;
                self.routes().iter().for_each(|route| route.wake());
            }
            self.skip();
        }
    }

    fn routes(&self) -> MutexGuard<'_, Vec<Arc<Route>>> {
        self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn skip(&self) {
        if self.shared.skipped.swap(false, Ordering::AcqRel) {
            let head = self.shared.head.load(Ordering::Acquire);
            self.routes().iter().for_each(|route| route.skip_to(head));
        }
    }
}

/// The types in a batch, each with the position of its last event and how many there are.
fn types_of(batch: &[Arc<StoredEvent>]) -> Vec<(Arc<str>, u64, u64)> {
    let mut types: Vec<(Arc<str>, u64, u64)> = Vec::new();
    for event in batch {
        match types.iter_mut().find(|(known, ..)| *known == event.event_type) {
            Some((_, last, count)) => (*last, *count) = (event.position, *count + 1),
            None => types.push((event.event_type.clone(), event.position, 1)),
        }
    }
    types
}

fn count(types: &[(Arc<str>, u64, u64)]) {
    for (event_type, _, count) in types {
        let context = event_type.split('.').next().unwrap_or_default().to_owned();
        metrics::counter!("souk_events_published_total", "context" => context, "event_type" => event_type.clone())
            .increment(*count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_documented_sets() {
        let table = [
            ("order.placed", "order.placed", true),
            ("order.placed", "order.paid", false),
            ("order.*", "order.placed", true),
            ("order.*", "order", false),
            ("order.*", "order.item.added", false),
            ("order.#", "order.item.added", true),
            ("order.#", "order", true),
            ("#", "catalog.price.changed", true),
            ("*.price.*", "catalog.price.changed", true),
            ("#.changed", "catalog.price.changed", true),
            (r"~^(order|payment)\.", "payment.captured", true),
            (r"~^(order|payment)\.", "user.registered", false),
        ];
        for (pattern, topic, expected) in table {
            let matches = Pattern::parse(pattern).unwrap().matches(topic);
            assert_eq!(matches, expected, "{pattern} on {topic}");
        }
        for bad in ["", "order..placed", "order.pla ced", "~("] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    fn event(position: u64) -> Arc<StoredEvent> {
        let id = uuid::Uuid::nil();
        let mut event =
            crate::testing::stored_event("order.placed", "order", id, &serde_json::json!({}));
        event.position = position;
        Arc::new(event)
    }

    #[test]
    fn the_tail_is_bounded_and_says_when_it_does_not_reach_back() {
        let tail = Tail::default();
        assert_eq!(tail.read(0, 10), None);
        tail.extend((1..=TAIL_EVENTS_MAX as u64 + 5).map(event).collect());
        assert_eq!(tail.read(0, 10), None);
        let read = tail.read(5, 2).unwrap();
        assert_eq!(read.iter().map(|event| event.position).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(tail.read(TAIL_EVENTS_MAX as u64 + 5, 2), Some(Vec::new()));
        tail.extend(vec![event(1_000_000)]);
        assert_eq!(tail.read(5, 2), None, "after a gap only what is behind it counts");
        // What comes right before it may be read later.
        tail.reach_back(&[event(999_998)]);
        assert_eq!(tail.first(), Some(1_000_000), "there would be a gap");
        tail.reach_back(&[event(999_998), event(999_999)]);
        assert_eq!(tail.first(), Some(999_998));
        assert_eq!(tail.read(999_998, 9).unwrap().len(), 2);
        let before: Vec<_> = (900_000..999_998).map(event).collect();
        tail.reach_back(&before);
        assert_eq!(
            tail.first(),
            Some(1_000_001 - TAIL_EVENTS_MAX as u64),
            "as much as there is room for"
        );
        let empty = Tail::default();
        empty.reach_back(&[event(7), event(8)]);
        empty.extend(vec![event(9)]);
        assert_eq!(empty.read(6, 9).unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_route_hears_of_its_own_topics_and_of_every_skip() {
        let (broker, handle) = Broker::new();
        let mine = Arc::new(Route::new(vec![Pattern::parse("order.*").unwrap()]));
        let other = Arc::new(Route::new(vec![Pattern::parse("user.*").unwrap()]));
        handle.add(mine.clone());
        handle.add(other.clone());
        let running = tokio::spawn(async move { broker.run().await });
        // On this one thread it runs until it waits: nothing is skipped after that.
        tokio::task::yield_now().await;
        handle.committed(vec![event(1), event(2)]);
        mine.changed().await;
        while mine.news().0 < 2 || other.news().0 < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(mine.news(), (2, 2));
        assert_eq!(other.news(), (2, 0));
        handle.moved_to(9);
        while other.news().0 < 9 {
            tokio::task::yield_now().await;
        }
        assert_eq!(other.news(), (9, 9), "what was skipped may have been for it");
        running.abort();
    }
}
