//! Traces: what each hop of a request did and how long it took, told to whoever was installed to
//! hear of it.
//!
//! ```text
//!   request ─▶ command ─▶ commit ─▶ event ─▶ handling ─▶ command ─▶ …
//! ```
//!
//! Off until [`install`] is called: a hop costs one look at a static then. A trace begins with the W3C
//! trace context of a request, and what is not marked as sampled is not traced. Events keep that
//! context in their metadata; while traces are on, so do those that handlers lead to, so that a trace
//! goes on behind them, over a restart too.
//!
//! An event's span has an id that follows from the event's, so that whoever handles it knows which span
//! it goes on from. Read models take events by the page and are left out.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use crate::event::StoredEvent;
use crate::world::{Timestamp, World};

static TRACER: OnceLock<Box<dyn Tracer>> = OnceLock::new();

tokio::task_local! {
    /// What the handler at work in this task goes on from.
    static CAUSE: Cause;
}

/// Hears of every hop once it is over. Called where the work is done: it must not wait.
pub trait Tracer: Send + Sync {
    /// A hop is over.
    fn ended(&self, span: Span);
}

/// Installs the process's tracer. Whether it is the first one; others are not heard.
pub fn install(tracer: Box<dyn Tracer>) -> bool {
    TRACER.set(tracer).is_ok()
}

/// Whether anybody listens.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// A span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl Here {
    /// From a W3C trace context that was found to be well formed.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-').skip(1);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|_| trace.len() == 32)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|_| span.len() == 16)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let (trace_id, span_id) = (trace_id.to_be_bytes(), span_id.to_be_bytes());
        Some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// As a W3C trace context.
    pub fn traceparent(self) -> String {
        let (trace, span) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.span_id));
        format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }

    /// The span of an event, if the event knows its trace.
    pub fn of_event(event: &StoredEvent) -> Option<Self> {
        let here = Self::parse(&recorded(event)?)?;
        Some(Self { span_id: span_of(event.event_id), ..here })
    }

    /// Another span of the same trace.
    pub fn next(self, world: &dyn World) -> Self {
        let mut span_id = [0; 8];
        world.fill(&mut span_id);
        // An id of only zeros would be no id.
        span_id[0] |= 1;
        Self { span_id, ..self }
    }
}

/// The id of an event's span: the part of its id that is random or a hash.
fn span_of(event_id: Uuid) -> [u8; 8] {
    (event_id.as_u64_pair().1).to_be_bytes()
}

/// The trace context in an event's metadata.
fn recorded(event: &StoredEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct Recorded<'a> {
        #[serde(borrow, default)]
        traceparent: Option<Cow<'a, str>>,
    }
    let recorded: Recorded<'_> = serde_json::from_str(&event.metadata).ok()?;
    recorded.traceparent.map(Cow::into_owned)
}

/// A hop that is over.
#[derive(Debug, Clone)]
pub struct Span {
    /// Which span it is.
    pub here: Here,
    /// The span that it goes on from.
    pub parent: [u8; 8],
    /// When it began.
    pub began: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// What was done.
    pub hop: Hop,
    /// A stable name of what went wrong.
    pub error: Option<&'static str>,
}

/// What a hop did.
#[derive(Debug, Clone)]
pub enum Hop {
    /// A command was sent to an aggregate and answered.
    Command {
        /// The aggregate's type.
        aggregate_type: &'static str,
        /// Which one.
        aggregate_id: Uuid,
        /// The command's name.
        command: &'static str,
        /// What came of it, as in metrics.
        outcome: &'static str,
        /// Ties together what one request leads to.
        correlation_id: Arc<str>,
    },
    /// What a command decided became durable.
    Commit {
        /// The aggregate's type.
        aggregate_type: &'static str,
        /// Where.
        partition: u16,
        /// How many events it was.
        events: usize,
    },
    /// An event came to be.
    Event {
        /// Its type.
        event_type: Arc<str>,
        /// Its id.
        event_id: Uuid,
        /// Where it is.
        partition: u16,
    },
    /// A subscription's handler had an event, once.
    Handling {
        /// The subscription.
        subscription: &'static str,
        /// The event's type.
        event_type: Arc<str>,
        /// The event's id.
        event_id: Uuid,
        /// Where it is.
        partition: u16,
        /// How many events it had at once.
        events: usize,
        /// Which attempt it was, from 1.
        attempt: u32,
        /// Ties together what one request leads to.
        correlation_id: Arc<str>,
    },
}

/// A hop that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    here: Here,
    parent: [u8; 8],
    began: Timestamp,
    at: Instant,
}

impl Begun {
    fn below(parent: Here, world: &dyn World) -> Self {
        let here = parent.next(world);
        Self { here, parent: parent.span_id, began: world.now(), at: Instant::now() }
    }

    /// The hop's own span.
    pub(crate) fn here(&self) -> Here {
        self.here
    }

    /// It is over.
    pub(crate) fn ended(&self, hop: Hop, error: Option<&'static str>) {
        let Self { here, parent, began, at } = *self;
        tell(Span { here, parent, began, took: at.elapsed(), hop, error });
    }
}

fn tell(span: Span) {
    if let Some(tracer) = TRACER.get() {
        tracer.ended(span);
    }
}

/// What a handler's commands go on from.
#[derive(Debug, Clone)]
struct Cause {
    /// The handling.
    here: Here,
    /// What is recorded with the events that follow: where the trace began.
    recorded: Arc<str>,
}

/// Begins a command. `recorded` is the trace context that it brings along, and what is to be recorded
/// with its events; a handler's commands get that of the event in the handler's hand.
pub(crate) fn command(recorded: &mut Option<Arc<str>>, world: &dyn World) -> Option<Begun> {
    if !is_on() {
        return None;
    }
    let parent = match recorded {
        Some(traceparent) => Here::parse(traceparent)?,
        None => {
            let cause = CAUSE.try_with(Cause::clone).ok()?;
            *recorded = Some(cause.recorded);
            cause.here
        }
    };
    parent.sampled.then(|| Begun::below(parent, world))
}

/// What a command decided, on its way to the journal.
pub(crate) struct Committing {
    begun: Begun,
    aggregate_type: &'static str,
    partition: u16,
    events: Vec<(Uuid, Arc<str>)>,
}

impl Committing {
    /// Below the command's span.
    pub(crate) fn below(
        command: Here,
        world: &dyn World,
        (aggregate_type, partition): (&'static str, u16),
        events: Vec<(Uuid, Arc<str>)>,
    ) -> Self {
        Self { begun: Begun::below(command, world), aggregate_type, partition, events }
    }

    /// It is durable, or lost for a reason.
    pub(crate) fn ended(self, error: Option<&'static str>) {
        let Self { begun, aggregate_type, partition, events } = self;
        let commit = Hop::Commit { aggregate_type, partition, events: events.len() };
        begun.ended(commit, error);
        if error.is_some() {
            return;
        }
        let Begun { here, began, at, .. } = begun;
        for (event_id, event_type) in events {
            let own = Here { span_id: span_of(event_id), ..here };
            let event = Begun { here: own, parent: here.span_id, began, at };
            event.ended(Hop::Event { event_type, event_id, partition }, None);
        }
    }
}

/// A handler with an event in its hand.
pub(crate) struct Handling {
    begun: Begun,
    hop: Hop,
    cause: Cause,
}

impl Handling {
    /// Begins an attempt, if the first of the events knows a trace that is recorded.
    pub(crate) fn begin(
        subscription: &'static str,
        attempt: u32,
        events: &[Arc<StoredEvent>],
        world: &dyn World,
    ) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let event = events.first()?;
        let recorded = recorded(event)?;
        let parent = Here { span_id: span_of(event.event_id), ..Here::parse(&recorded)? };
        if !parent.sampled {
            return None;
        }
        let begun = Begun::below(parent, world);
        let hop = Hop::Handling {
            subscription,
            event_type: event.event_type.clone(),
            event_id: event.event_id,
            partition: event.partition,
            events: events.len(),
            attempt,
            correlation_id: event.correlation_id.clone(),
        };
        let cause = Cause { here: begun.here, recorded: recorded.into() };
        Some(Self { begun, hop, cause })
    }

    /// It is over.
    pub(crate) fn ended(self, error: Option<&'static str>) {
        self.begun.ended(self.hop, error);
    }
}

/// The span of the handling in this task, if it is traced: for what a handler does outside.
pub fn handling() -> Option<Here> {
    CAUSE.try_with(|cause| cause.here).ok()
}

/// Does a handler's work: its commands go on from the handling.
pub(crate) async fn within<F: Future>(handling: Option<&Handling>, work: F) -> F::Output {
    match handling {
        Some(handling) => CAUSE.scope(handling.cause.clone(), work).await,
        None => work.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_read_and_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let here = Here::parse(text).unwrap();
        assert!(here.sampled);
        assert_eq!((here.trace_id[0], here.span_id[7]), (0x0a, 0x31));
        assert_eq!(here.traceparent(), text);
        let unsampled = Here::parse(&text.replace("-01", "-00")).unwrap();
        assert!(!unsampled.sampled);
        for wrong in ["", "00", "00-0af7-b7ad6b7169203331-01", &text.replace('b', "x")] {
            assert_eq!(Here::parse(wrong), None, "{wrong}");
        }
        let next = here.next(&crate::world::SystemWorld::new());
        assert_eq!(next.trace_id, here.trace_id);
        assert_ne!(next.span_id, here.span_id);
    }

    #[test]
    fn nothing_is_traced_while_nobody_listens() {
        assert!(!is_on());
        let mut recorded = None;
        assert!(command(&mut recorded, &crate::world::SystemWorld::new()).is_none());
        assert!(recorded.is_none());
    }
}
