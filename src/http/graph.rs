//! How things came about: a request, the events it led to, who handled each of them, and what that
//! caused in turn. A tree, made of what is known: the causes are stored with the events; how long a
//! handler took is remembered for a while only, and is left open afterwards.
//!
//! The tree is written as a list of nodes that name their parents: a purchase is some forty levels
//! deep, which is more than many readers of JSON care to nest.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;
use souk_actors::event::StoredEvent;
use souk_actors::subscriber::Delivery;
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use uuid::Uuid;

use super::event_json;
use crate::cloudevents::metadata;

/// Nothing that took less than this is called slow, however quick the rest was.
const SLOW_MIN_MS: u64 = 100;

/// How something came about.
#[derive(Debug, Serialize, ToSchema)]
pub struct GraphBody {
    /// The correlation id that ties it together.
    pub correlation_id: String,
    /// The trace's id, where the request told one.
    pub trace_id: Option<String>,
    /// `error`: something failed and is a dead letter or tried again; `open`: something is still to
    /// be handled; else `done`.
    #[schema(example = "done")]
    pub status: &'static str,
    /// The first event.
    #[schema(format = DateTime)]
    pub started_at: Option<String>,
    /// From the first event to what ended last, in milliseconds.
    pub duration_ms: Option<u64>,
    /// How many events it has.
    pub events: usize,
    /// Whether there is more than is shown here.
    pub truncated: bool,
    /// Parents before what they caused.
    pub nodes: Vec<NodeBody>,
    /// The ids of the nodes, from the request on, that lead to what ended last; or, where something
    /// is still owed, to that.
    pub critical_path: Vec<String>,
}

/// A request, an event, or a handler of one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NodeBody {
    /// The request's id, the event's id, or `<event>/<subscription>`.
    pub id: String,
    /// What it follows from; none: nothing that is shown.
    pub parent: Option<String>,
    /// `request`, `timer`, `cause` (an event that is not shown), `event` or `handler`.
    #[schema(example = "event")]
    pub kind: &'static str,
    /// The event's type, or the subscription.
    pub name: String,
    /// For an event `stored`; for a handler `acked`, `pending`, `retrying`, `dead` or `waiting`; for
    /// what began it all as the whole.
    #[schema(example = "acked")]
    pub status: &'static str,
    /// When it happened, or the handler began.
    #[schema(format = DateTime)]
    pub at: Option<String>,
    /// How long the event waited for its handler, in milliseconds; none: not known any more, or not
    /// a handler.
    pub queued_ms: Option<u64>,
    /// For a handler how long it took, waits between its attempts included; for an event how long
    /// after its cause it happened; in milliseconds. None: not known any more, or not over.
    pub duration_ms: Option<u64>,
    /// How often it was tried, where that is known.
    pub attempts: Option<u32>,
    /// Whether it took longer than nineteen of twenty of its kind, and long enough to matter.
    pub slow: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// When it is tried again, if it is of itself.
    #[schema(format = DateTime)]
    pub next_attempt_at: Option<String>,
    /// Of an event: its number in the log.
    pub event_ref: Option<String>,
    /// Of an event: what kind of thing it happened to.
    pub aggregate_type: Option<String>,
    /// Of an event: what it happened to.
    pub aggregate_id: Option<Uuid>,
}

impl NodeBody {
    fn new(id: String, parent: Option<String>, kind: &'static str, name: String) -> Self {
        Self {
            id,
            parent,
            kind,
            name,
            status: "stored",
            at: None,
            queued_ms: None,
            duration_ms: None,
            attempts: None,
            slow: false,
            error: None,
            next_attempt_at: None,
            event_ref: None,
            aggregate_type: None,
            aggregate_id: None,
        }
    }
}

/// An event and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    /// The event.
    pub event: Arc<StoredEvent>,
    /// At each subscription that wants it.
    pub deliveries: Vec<Delivery>,
}

/// Whether a delivery has failed so far.
pub(super) fn has_failed(state: &str) -> bool {
    matches!(state, "dead" | "retrying")
}

/// What all deliveries together come to.
pub(super) fn status_of<'a>(deliveries: impl Iterator<Item = &'a Delivery>) -> &'static str {
    let mut status = "done";
    for delivery in deliveries {
        match delivery.state {
            state if has_failed(state) => return "error",
            "acked" => {}
            // Rows are a moment behind; that is nothing to wait for.
            _ if delivery.is_projection && delivery.held.is_none() => {}
            _ => status = "open",
        }
    }
    status
}

/// The events that a focus came about through, itself, and what it led to.
pub(super) fn around(events: &[Arc<StoredEvent>], focus: Uuid) -> BTreeSet<Uuid> {
    let ids: HashMap<String, &Arc<StoredEvent>> =
        events.iter().map(|event| (event.event_id.to_string(), event)).collect();
    let mut kept = BTreeSet::from([focus]);
    let mut at = ids.get(&focus.to_string());
    while let Some(cause) = at.and_then(|event| ids.get(&*event.causation_id)) {
        // A cause that was seen before would be a circle: nothing causes itself.
        at = kept.insert(cause.event_id).then_some(cause);
    }
    let mut led_to = BTreeSet::from([focus]);
    grow(events, &mut led_to);
    kept.extend(led_to);
    kept
}

/// Adds everything that these events led to.
pub(super) fn grow(events: &[Arc<StoredEvent>], kept: &mut BTreeSet<Uuid>) {
    let mut caused: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for event in events {
        caused.entry(&*event.causation_id).or_default().push(event.event_id);
    }
    let mut next: VecDeque<Uuid> = kept.iter().copied().collect();
    while let Some(cause) = next.pop_front() {
        for effect in caused.get(cause.to_string().as_str()).into_iter().flatten() {
            if kept.insert(*effect) {
                next.push_back(*effect);
            }
        }
    }
}

/// What is to be drawn, and how much of it.
pub(super) struct Wanted {
    /// Whether subscriptions that keep rows are shown though they are up to date.
    pub projections: bool,
    /// How many nodes at most.
    pub nodes_max: usize,
    /// Whether there are more events than were read.
    pub truncated: bool,
    /// The time.
    pub now: Timestamp,
}

struct Drawing<'a> {
    observed: &'a [Observed],
    by_id: HashMap<String, usize>,
    caused: BTreeMap<&'a str, Vec<usize>>,
    wanted: &'a Wanted,
    nodes: Vec<NodeBody>,
    /// When each node ended, and whether something is still owed there since then.
    ends: Vec<(Timestamp, bool)>,
    truncated: bool,
}

/// The graph of these events, which have one correlation id.
pub(super) fn draw(correlation_id: &str, observed: &[Observed], wanted: &Wanted) -> GraphBody {
    let mut order: Vec<usize> = (0..observed.len()).collect();
    order.sort_by_key(|index| (observed[*index].event.timestamp, observed[*index].event.at()));
    let mut drawing = Drawing {
        observed,
        by_id: HashMap::new(),
        caused: BTreeMap::new(),
        wanted,
        nodes: Vec::new(),
        ends: Vec::new(),
        truncated: wanted.truncated,
    };
    for (index, of) in observed.iter().enumerate() {
        drawing.by_id.insert(of.event.event_id.to_string(), index);
    }
    for index in &order {
        let cause = &*observed[*index].event.causation_id;
        drawing.caused.entry(cause).or_default().push(*index);
    }
    let status = status_of(observed.iter().flat_map(|of| &of.deliveries));
    let mut begun = BTreeSet::new();
    for index in &order {
        let cause = &*observed[*index].event.causation_id;
        if !drawing.by_id.contains_key(cause) && begun.insert(cause) {
            drawing.root(cause, &observed[*index].event, status);
        }
    }
    let first = order.first().map(|index| &observed[*index].event);
    let started_at = first.map(|event| event.timestamp);
    let ended_at = drawing.ends.iter().map(|(at, _)| *at).max();
    let duration = started_at.zip(ended_at).map(|(from, to)| millis(from, to));
    let trace_id =
        observed.iter().find_map(|of| metadata(&of.event)?.trace_id().map(str::to_owned));
    let critical_path = drawing.critical_path();
    let mut nodes = drawing.nodes;
    mark_slow_events(&mut nodes);
    for node in &mut nodes {
        if matches!(node.kind, "request" | "timer" | "cause") {
            node.duration_ms = duration;
        }
    }
    GraphBody {
        correlation_id: correlation_id.to_owned(),
        trace_id,
        status,
        started_at: started_at.map(|at| at.to_string()),
        duration_ms: duration,
        events: observed.len(),
        truncated: drawing.truncated,
        nodes,
        critical_path,
    }
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

/// What began it: a request, a timer, or an event that is not among these.
fn beginning(event: &StoredEvent) -> &'static str {
    let metadata = metadata(event);
    if metadata.as_ref().is_some_and(|of| of.subscription.is_some()) {
        return "cause";
    }
    let by_itself = metadata.is_some_and(|of| of.actor_id == "system");
    if by_itself && Uuid::try_parse(&event.causation_id).is_ok() { "timer" } else { "request" }
}

impl Drawing<'_> {
    /// Adds a node, unless there are enough.
    fn add(&mut self, node: NodeBody, end: (Timestamp, bool)) -> bool {
        if self.nodes.len() >= self.wanted.nodes_max {
            self.truncated = true;
            return false;
        }
        self.nodes.push(node);
        self.ends.push(end);
        true
    }

    /// What began something, and everything that followed.
    fn root(&mut self, cause: &str, first: &StoredEvent, status: &'static str) {
        let kind = beginning(first);
        let mut node = NodeBody::new(cause.to_owned(), None, kind, kind.to_owned());
        node.status = status;
        node.at = (kind != "cause").then(|| first.timestamp.to_string());
        if !self.add(node, (first.timestamp, false)) {
            return;
        }
        let mut next: VecDeque<(usize, String)> =
            self.effects(cause).into_iter().map(|index| (index, cause.to_owned())).collect();
        while let Some((index, parent)) = next.pop_front() {
            let Some(handlers) = self.event(index, parent) else { return };
            let id = self.observed[index].event.event_id.to_string();
            for effect in self.effects(&id) {
                let metadata = metadata(&self.observed[effect].event);
                let by = metadata.and_then(|of| of.subscription);
                let handler = by.map(|by| format!("{id}/{by}")).filter(|of| handlers.contains(of));
                next.push_back((effect, handler.unwrap_or_else(|| id.clone())));
            }
        }
    }

    fn effects(&self, cause: &str) -> Vec<usize> {
        self.caused.get(cause).cloned().unwrap_or_default()
    }

    /// An event and its handlers, which are named; none: there is no more room.
    fn event(&mut self, index: usize, parent: String) -> Option<BTreeSet<String>> {
        let Observed { event, deliveries } = &self.observed[index];
        let id = event.event_id.to_string();
        let mut node =
            NodeBody::new(id.clone(), Some(parent), "event", event.event_type.to_string());
        let cause = self.by_id.get(&*event.causation_id).map(|at| &self.observed[*at].event);
        node.at = Some(event.timestamp.to_string());
        node.duration_ms = cause.map(|cause| millis(cause.timestamp, event.timestamp));
        node.event_ref = Some(event_json::reference(event));
        node.aggregate_type = Some(event.aggregate_type.to_string());
        node.aggregate_id = Some(event.aggregate_id);
        if !self.add(node, (event.timestamp, false)) {
            return None;
        }
        let mut handlers = BTreeSet::new();
        for delivery in deliveries {
            let quiet = delivery.is_projection && delivery.state == "acked";
            if quiet && !self.wanted.projections {
                continue;
            }
            let handler = handler_of(event, delivery);
            let end = self.end_of(event, delivery);
            handlers.insert(handler.id.clone());
            if !self.add(handler, end) {
                return None;
            }
        }
        Some(handlers)
    }

    /// When a delivery ended; what is still owed has not ended yet.
    fn end_of(&self, event: &StoredEvent, delivery: &Delivery) -> (Timestamp, bool) {
        let counts = !delivery.is_projection || has_failed(delivery.state);
        match (delivery.state, delivery.handled) {
            ("acked", Some(handled)) if counts => (handled.ended_at, false),
            ("acked", _) => (event.timestamp, false),
            _ if counts => (self.wanted.now.max(event.timestamp), true),
            _ => (event.timestamp, false),
        }
    }

    /// From the beginning to what is owed the longest or, with nothing owed, to what ended last.
    fn critical_path(&self) -> Vec<String> {
        let all = || self.ends.iter().enumerate();
        let owed = all().find(|(_, (_, owed))| *owed).map(|(index, _)| index);
        let last = || all().max_by_key(|(index, (at, _))| (*at, *index)).map(|(index, _)| index);
        let place: HashMap<&str, usize> =
            self.nodes.iter().enumerate().map(|(at, node)| (&*node.id, at)).collect();
        let mut path = Vec::new();
        let mut at = owed.or_else(last);
        while let Some(index) = at {
            let node = &self.nodes[index];
            path.push(node.id.clone());
            at = node.parent.as_deref().and_then(|parent| place.get(parent).copied());
        }
        path.reverse();
        path
    }
}

fn handler_of(event: &StoredEvent, delivery: &Delivery) -> NodeBody {
    let (id, name) = (event.event_id.to_string(), delivery.subscription.to_owned());
    let mut node = NodeBody::new(format!("{id}/{name}"), Some(id), "handler", name);
    node.status = delivery.state;
    node.attempts = (delivery.attempts > 0).then_some(delivery.attempts);
    node.error.clone_from(&delivery.last_error);
    node.next_attempt_at = delivery.next_attempt_at.map(|at| at.to_string());
    if let Some(handled) = delivery.handled {
        node.at = Some(handled.started_at.to_string());
        node.queued_ms = Some(millis(event.timestamp, handled.started_at));
        node.duration_ms = Some(handled.took_ms());
        let usual = delivery.usual_ms.unwrap_or(0).max(SLOW_MIN_MS);
        node.slow = handled.took_ms() >= usual;
    }
    node
}

/// Events that came long after their causes, compared with the others.
fn mark_slow_events(nodes: &mut [NodeBody]) {
    let after = |node: &NodeBody| node.duration_ms.filter(|_| node.kind == "event");
    let mut all: Vec<u64> = nodes.iter().filter_map(after).collect();
    all.sort_unstable();
    let place = (all.len() * 95).div_ceil(100).saturating_sub(1);
    let usual = all.get(place).copied().unwrap_or(0).max(SLOW_MIN_MS);
    for node in nodes {
        node.slow |= after(node).is_some_and(|took| took >= usual);
    }
}

/// The graph as a Mermaid flow chart.
pub(super) fn mermaid(graph: &GraphBody) -> String {
    let mut text = "flowchart TD\n".to_owned();
    let place: HashMap<&str, usize> =
        graph.nodes.iter().enumerate().map(|(at, node)| (&*node.id, at)).collect();
    // Writing to a String cannot fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(arguments);
    };
    for (at, node) in graph.nodes.iter().enumerate() {
        let name =
            escaped(&if node.parent.is_none() { node.id.clone() } else { node.name.clone() });
        let took = node.duration_ms.map(|took| format!("<br/>{took} ms")).unwrap_or_default();
        let class = match node.status {
            "dead" | "retrying" => ":::error",
            "waiting" | "pending" => ":::waiting",
            _ if node.slow => ":::slow",
            _ => "",
        };
        match node.kind {
            "handler" => {
                let tried = node.attempts.filter(|tried| *tried > 1);
                let tried = tried.map(|tried| format!("<br/>{tried} attempts")).unwrap_or_default();
                let status = if node.status == "acked" { "" } else { node.status };
                let gap = if status.is_empty() { "" } else { "<br/>" };
                line(format_args!("  n{at}([\"{name}{gap}{status}{tried}{took}\"]){class}\n"));
            }
            "event" => line(format_args!("  n{at}[\"{name}{took}\"]{class}\n")),
            kind => line(format_args!("  n{at}{{{{\"{kind} {name}\"}}}}{class}\n")),
        }
        let parent = node.parent.as_deref().and_then(|parent| place.get(parent));
        if let Some(parent) = parent {
            line(format_args!("  n{parent} --> n{at}\n"));
        }
    }
    if graph.truncated {
        line(format_args!("  more[\"there is more than is shown\"]\n"));
    }
    line(format_args!("  classDef error fill:#fdd,stroke:#c00,color:#900\n"));
    line(format_args!("  classDef slow fill:#fe9,stroke:#b80,color:#630\n"));
    line(format_args!("  classDef waiting fill:#eee,stroke:#888,stroke-dasharray:4\n"));
    text
}

/// Text that Mermaid takes for text, whoever made it up.
fn escaped(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || " ._:/-".contains(letter);
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if plain(letter) {
            escaped.push(letter);
        } else {
            let _ = write!(escaped, "#{};", u32::from(letter));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use souk_actors::subscriber::Handled;
    use souk_actors::testing::stored_event;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// Event number `id`, caused by something, by way of a subscription.
    fn event(id: u128, cause: &str, by: Option<&str>, millis: i64) -> Arc<StoredEvent> {
        let metadata = json!({
            "service": "order-service", "version": "0", "tenant_id": "default",
            "actor_id": if by.is_some() || cause.len() == 36 { "system" } else { "somebody" },
            "subscription": by,
            "traceparent": by.is_none().then_some("00-0af7651916cd43dd8448eb211c80319c-b7ad-01"),
        });
        Arc::new(StoredEvent {
            event_id: Uuid::from_u128(id),
            position: u64::try_from(id).unwrap(),
            causation_id: cause.into(),
            timestamp: at(millis),
            metadata: metadata.to_string().into(),
            ..stored_event("order.placed", "order", Uuid::from_u128(9), &json!({}))
        })
    }

    fn delivery(subscription: &'static str, state: &'static str) -> Delivery {
        Delivery {
            subscription,
            is_projection: subscription.ends_with("-view"),
            partition: 0,
            key: Uuid::nil(),
            state,
            attempts: 0,
            attempts_max: 4,
            last_error: None,
            class: None,
            first_failed_at: None,
            last_failed_at: None,
            next_attempt_at: None,
            held: None,
            handled: None,
            usual_ms: None,
        }
    }

    fn handled(subscription: &'static str, from: i64, to: i64) -> Delivery {
        let handled =
            Handled { started_at: at(from), ended_at: at(to), attempts: 1, duplicate: false };
        Delivery {
            handled: Some(handled),
            attempts: 1,
            usual_ms: Some(10),
            ..delivery(subscription, "acked")
        }
    }

    fn of(event: Arc<StoredEvent>, deliveries: Vec<Delivery>) -> Observed {
        Observed { event, deliveries }
    }

    fn id(number: u128) -> String {
        Uuid::from_u128(number).to_string()
    }

    fn wanted() -> Wanted {
        Wanted { projections: false, nodes_max: 100, truncated: false, now: at(9_000) }
    }

    /// A request, what it led to by way of two handlers, one of them slow, and a timer later.
    fn story() -> Vec<Observed> {
        vec![
            of(
                event(1, "req_1", None, 1_000),
                vec![handled("saga", 1_010, 1_020), handled("mail", 1_005, 1_905)],
            ),
            of(event(2, &id(1), Some("saga"), 1_015), vec![handled("orders-view", 1_020, 1_021)]),
            of(event(3, &id(1), Some("mail"), 1_900), vec![]),
            of(event(4, &id(777), None, 5_000), vec![]),
        ]
    }

    #[test]
    fn what_followed_hangs_from_what_it_followed_from() {
        let graph = draw("req_1", &story(), &wanted());
        let seen: Vec<_> = graph
            .nodes
            .iter()
            .map(|node| (node.kind, node.id.clone(), node.parent.clone()))
            .collect();
        let (saga, mail) = (format!("{}/saga", id(1)), format!("{}/mail", id(1)));
        assert_eq!(
            seen,
            [
                ("request", "req_1".to_owned(), None),
                ("event", id(1), Some("req_1".to_owned())),
                ("handler", saga.clone(), Some(id(1))),
                ("handler", mail.clone(), Some(id(1))),
                ("event", id(2), Some(saga)),
                ("event", id(3), Some(mail.clone())),
                ("timer", id(777), None),
                ("event", id(4), Some(id(777))),
            ]
        );
        assert_eq!(
            (graph.status, graph.duration_ms, graph.truncated),
            ("done", Some(4_000), false)
        );
        assert_eq!(graph.trace_id.as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        let slow: Vec<_> =
            graph.nodes.iter().filter(|node| node.slow).map(|node| node.id.clone()).collect();
        assert_eq!(slow, [mail.clone(), id(3)]);
        let mail = graph.nodes.iter().find(|node| node.id == mail).unwrap();
        assert_eq!((mail.queued_ms, mail.duration_ms), (Some(5), Some(900)));
        assert_eq!(graph.critical_path, [id(777), id(4)]);
        let shown = draw("req_1", &story(), &Wanted { projections: true, ..wanted() });
        assert_eq!(shown.nodes.len(), graph.nodes.len() + 1);
    }

    #[test]
    fn what_is_owed_is_where_the_path_ends() {
        let mut story = story();
        let mut failing = delivery("saga", "retrying");
        failing.last_error = Some("away".to_owned());
        story[1].deliveries.push(failing);
        let graph = draw("req_1", &story, &wanted());
        assert_eq!(graph.status, "error");
        let end = format!("{}/saga", id(2));
        assert_eq!(graph.critical_path.last(), Some(&end));
        assert_eq!(graph.critical_path.first().unwrap(), "req_1");
        assert_eq!(graph.critical_path.len(), 5);
        story[1].deliveries[1].state = "waiting";
        assert_eq!(draw("req_1", &story, &wanted()).status, "open");
    }

    #[test]
    fn a_row_that_is_a_moment_behind_is_nothing_to_wait_for() {
        let behind = delivery("orders-view", "pending");
        assert_eq!(status_of([&behind].into_iter()), "done");
        let paused = Delivery { held: Some("paused"), ..behind };
        assert_eq!(status_of([&paused].into_iter()), "open");
        assert_eq!(status_of([&delivery("mail", "pending")].into_iter()), "open");
    }

    #[test]
    fn a_graph_is_cut_and_says_so() {
        for nodes_max in 1..8 {
            let graph = draw("req_1", &story(), &Wanted { nodes_max, ..wanted() });
            assert_eq!((graph.nodes.len(), graph.truncated), (nodes_max, true));
            assert!(mermaid(&graph).contains("there is more"));
        }
    }

    #[test]
    fn one_event_is_shown_with_its_causes_and_its_effects_only() {
        let story: Vec<_> = story().into_iter().map(|of| of.event).collect();
        let kept = |focus: u128| around(&story, Uuid::from_u128(focus));
        let ids = |ids: &[u128]| ids.iter().map(|id| Uuid::from_u128(*id)).collect();
        assert_eq!(kept(1), ids(&[1, 2, 3]));
        assert_eq!(kept(3), ids(&[1, 3]));
        assert_eq!(kept(4), ids(&[4]));
        // Nothing causes itself, whatever a changed journal says.
        let circle = [event(5, &id(6), Some("saga"), 1), event(6, &id(5), Some("saga"), 2)];
        assert_eq!(around(&circle, Uuid::from_u128(5)), ids(&[5, 6]));
        assert!(draw("c", &circle.map(|event| of(event, vec![])), &wanted()).nodes.is_empty());
    }

    #[test]
    fn a_diagram_shows_failures_and_delays_and_cannot_be_broken_out_of() {
        let mut story = story();
        story[1].deliveries.push(delivery("saga", "dead"));
        story[2].deliveries.push(delivery("saga", "waiting"));
        story[0].event = event(1, "\"]; click n0 href \"x", None, 1_000);
        let text = mermaid(&draw("c", &story, &wanted()));
        assert!(text.starts_with("flowchart TD\n"), "{text}");
        for class in [":::error", ":::slow", ":::waiting"] {
            assert!(text.contains(class), "{class}: {text}");
        }
        assert!(!text.contains("\"];"), "{text}");
        assert!(text.contains("#34;#93;#59; click n0 href #34;x"), "{text}");
    }
}
