//! Whether what several clients saw of one aggregate can have happened one after the other.
//!
//! A history is linearizable when every operation can be given one instant between its start and
//! its answer so that, in the order of these instants, each answer is the right one (Herlihy and
//! Wing). The search is that of Wing and Gong with Lowe's improvements: the events of the history
//! are taken in order, an operation is given its instant only when an answer calls for it, and
//! worlds that have become the same are kept once.
//!
//! ```text
//!   client 1   ├── write 7 ──┤
//!   client 2         ├── read: 7 ──┤        fine: the write's instant is before the read's
//!   client 3                          ├ read: 3 ┤   not linearizable: 3 was over
//! ```
//!
//! An operation without an answer (the connection broke, the server was killed, 504) may have
//! happened at any instant since it began, or never. How many such operations stay open decides what
//! the search costs: say when one is over ([`Operation::over`], [`Recorder::settled`]).
//!
//! [`Register`] is the model of what the API shows of an aggregate: a value and its version. A
//! history of several aggregates is checked aggregate by aggregate.

use std::collections::HashSet;
use std::fmt::{self, Debug, Display};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// How many worlds are followed at the same time before the search gives up.
const WORLDS_MAX: usize = 200_000;

/// What an object does when it is asked one thing after the other.
pub trait Model {
    /// The object's state.
    type State: Clone + Eq + Hash + Debug;
    /// What it is asked to do.
    type Call: Clone + Debug;
    /// What it answers.
    type Answer: Clone + Debug;

    /// The state before the first operation.
    fn start(&self) -> Self::State;

    /// The state after a call that was answered so; none: it cannot have been answered so. Without
    /// an answer: the state after the call has happened, whatever it would have been answered.
    fn step(
        &self,
        state: &Self::State,
        call: &Self::Call,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;

    /// Whether this answer may still come true, now or once other operations have happened too. False
    /// saves work and must be right: a version never goes back, for one.
    fn in_reach(&self, _state: &Self::State, _call: &Self::Call, _answer: &Self::Answer) -> bool {
        true
    }

    /// Whether a call changes nothing, so that it is of no interest without an answer.
    fn only_looks(&self, _call: &Self::Call) -> bool {
        false
    }
}

/// One operation of a history. Times are counted by one clock, in any unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<C, A> {
    /// Who asked.
    pub client: u64,
    /// What was asked.
    pub call: C,
    /// When it was sent.
    pub invoked: u64,
    /// When the answer was there, and what it was; none: nobody knows whether it happened.
    pub answered: Option<(u64, A)>,
    /// Without an answer: since when it is sure that it will not happen any more, if it is (the
    /// process that it was sent to is dead). Saves the search much work.
    #[serde(default)]
    pub over: Option<u64>,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<S> {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violated(Violation<S>),
    /// More worlds had to be followed than there is room for; up to this operation's answer all is
    /// well.
    Undecided {
        /// The operation, by its index in the history.
        operation: usize,
    },
}

/// The first answer that cannot be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation<S> {
    /// The operation, by its index in the history.
    pub operation: usize,
    /// The beginning of the history that cannot be explained: what had begun when the search came to
    /// an end, by index, in the order of their start. With their answers these alone are not
    /// linearizable.
    pub prefix: Vec<usize>,
    /// The operations under way while that one was, itself included: from the states in `before`
    /// no order of these explains the answers.
    pub window: Vec<usize>,
    /// Every state in which the object can have been when the operation began.
    pub before: Vec<S>,
}

impl<S> Verdict<S> {
    /// Whether all is well.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }
}

impl<S: Debug> Violation<S> {
    /// The violation for people: the states before it and the operations around it, with times
    /// counted from the start of the operation.
    pub fn explain<C: Debug, A: Debug>(&self, history: &[Operation<C, A>]) -> String {
        let from = history[self.operation].invoked;
        let mut text = format!("not linearizable: before it {:?}", self.before);
        for index in &self.window {
            let operation = &history[*index];
            let mark = if *index == self.operation { "»" } else { " " };
            let start = i128::from(operation.invoked) - i128::from(from);
            text +=
                &format!("\n{mark} client {} at {start}: {:?}", operation.client, operation.call);
            text += &match &operation.answered {
                Some((at, answer)) => {
                    format!(", at {}: {answer:?}", i128::from(*at) - i128::from(from))
                }
                None => ", no answer".to_owned(),
            };
        }
        text
    }
}

impl<S: Debug> Display for Violation<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the answer of operation {} cannot be explained from {:?} by the operations {:?}",
            self.operation, self.before, self.window
        )
    }
}

/// Checks a history, given in any order.
pub fn check<M: Model>(model: &M, history: &[Operation<M::Call, M::Answer>]) -> Verdict<M::State> {
    let search = Search { model, history };
    let events = search.events();
    match search.run(&events) {
        Ok(_) => Verdict::Linearizable,
        Err(Stop::TooMany(operation)) => Verdict::Undecided { operation },
        Err(Stop::At(event)) => Verdict::Violated(search.violation(&events, event)),
    }
}

/// A start or an end. At the same time a start comes first: the two overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: u64,
    ended: bool,
    operation: usize,
}

/// One way in which the history so far may have gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World<S> {
    state: S,
    /// Operations that have happened and whose end is still to come, in order.
    happened: Vec<usize>,
}

impl<S> World<S> {
    fn without(mut self, operation: usize) -> Self {
        if let Ok(place) = self.happened.binary_search(&operation) {
            self.happened.remove(place);
        }
        self
    }
}

enum Stop {
    /// No world is left after this event.
    At(usize),
    /// Too many are at the end of this operation.
    TooMany(usize),
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Call, M::Answer>],
}

impl<M: Model> Search<'_, M> {
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::with_capacity(self.history.len() * 2);
        for (operation, of) in self.history.iter().enumerate() {
            if of.answered.is_none() && self.model.only_looks(&of.call) {
                continue;
            }
            events.push(Event { at: of.invoked, ended: false, operation });
            let ended = of.answered.as_ref().map(|(at, _)| *at).or(of.over);
            events.extend(ended.map(|at| Event { at, ended: true, operation }));
        }
        events.sort_unstable();
        events
    }

    /// Every world that is left after these events.
    fn run(&self, events: &[Event]) -> Result<HashSet<World<M::State>>, Stop> {
        let first = World { state: self.model.start(), happened: Vec::new() };
        let mut worlds = HashSet::from([first]);
        let mut open = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let operation = event.operation;
            if event.ended {
                worlds = self.end(worlds, &open, operation)?;
            } else {
                open.push(operation);
                worlds.retain(|world| self.in_reach(world, operation));
            }
            if worlds.is_empty() {
                return Err(Stop::At(number));
            }
            if event.ended {
                open.retain(|of| *of != operation);
            }
        }
        Ok(worlds)
    }

    /// The worlds in which `operation` has happened, with what has to happen before it; without an
    /// answer also those in which it never will.
    fn end(
        &self,
        worlds: HashSet<World<M::State>>,
        open: &[usize],
        operation: usize,
    ) -> Result<HashSet<World<M::State>>, Stop> {
        let mut after = HashSet::new();
        let mut seen = HashSet::new();
        let mut left: Vec<_> = worlds.into_iter().collect();
        while let Some(world) = left.pop() {
            let happened = world.happened.binary_search(&operation);
            if happened.is_ok() || self.history[operation].answered.is_none() {
                after.insert(world.clone().without(operation));
            }
            if happened.is_ok() {
                continue;
            }
            if !seen.insert(world.clone()) {
                continue;
            }
            left.extend(open.iter().filter_map(|next| self.after(&world, *next, open)));
            if seen.len() + after.len() > WORLDS_MAX {
                return Err(Stop::TooMany(operation));
            }
        }
        Ok(after)
    }

    /// The world after an open operation has happened in it too, unless another open one's answer
    /// can then not come true any more.
    fn after(
        &self,
        world: &World<M::State>,
        operation: usize,
        open: &[usize],
    ) -> Option<World<M::State>> {
        let place = world.happened.binary_search(&operation).err()?;
        let Operation { call, answered, .. } = &self.history[operation];
        let answer = answered.as_ref().map(|(_, answer)| answer);
        let state = self.model.step(&world.state, call, answer)?;
        let mut happened = world.happened.clone();
        happened.insert(place, operation);
        let after = World { state, happened };
        open.iter().all(|other| self.in_reach(&after, *other)).then_some(after)
    }

    fn in_reach(&self, world: &World<M::State>, operation: usize) -> bool {
        let Operation { call, answered, .. } = &self.history[operation];
        answered.as_ref().is_none_or(|(_, answer)| {
            world.happened.binary_search(&operation).is_ok()
                || self.model.in_reach(&world.state, call, answer)
        })
    }

    fn violation(&self, events: &[Event], last: usize) -> Violation<M::State> {
        let operation = events[last].operation;
        let began = Event { at: self.history[operation].invoked, ended: false, operation };
        let earlier = events.partition_point(|event| *event < began);
        let over: HashSet<usize> =
            events[..earlier].iter().filter(|of| of.ended).map(|of| of.operation).collect();
        let started = events[..=last].iter().filter(|event| !event.ended);
        let prefix: Vec<_> = started.map(|event| event.operation).collect();
        let window = prefix.iter().copied().filter(|of| !over.contains(of)).collect();
        let mut before = Vec::new();
        for world in self.run(&events[..earlier]).unwrap_or_default() {
            if !before.contains(&world.state) {
                before.push(world.state);
            }
        }
        Violation { operation, prefix, window, before }
    }
}

// -------------------------------------------------------------------------------- the register

/// What the API shows of an aggregate: a value and the version that `ETag` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// The value and version before the first operation.
    pub start: Held,
    /// By how much a write that changes the value raises the version: one for each event that it
    /// leads to (a new price of a listing leads to two).
    pub events_per_write: u64,
    /// Whether somebody whose operations are not in the history changes other parts of the
    /// aggregate (stock is reserved while its price is changed): then versions may also rise by
    /// themselves. The value may not change.
    pub others_write: bool,
}

/// A value at a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Held {
    /// The value. Best written once only, so that a read tells which write it saw.
    pub value: i64,
    /// The version; with [`Register::others_write`] the lowest that it can be.
    pub version: u64,
}

/// What the register is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `GET`.
    Read,
    /// `PATCH`; with `expected`, if the version is still that one (`If-Match`).
    Write {
        /// The new value.
        value: i64,
        /// The version that the writer has seen.
        expected: Option<u64>,
    },
}

/// What the register answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// 200 to a read.
    Found(Held),
    /// 200 to a write: the version after it.
    Written {
        /// The version after it.
        version: u64,
    },
    /// 412: the version is another one.
    Mismatch {
        /// Which, if the answer said so.
        current: Option<u64>,
    },
    /// Surely not done, and nothing was said about the state (429, 503).
    NotDone,
}

impl Register {
    /// The state once the version is known to be `version`, if it can be.
    fn at(&self, state: Held, version: u64) -> Option<Held> {
        let fits = version == state.version || self.others_write && version > state.version;
        fits.then_some(Held { version, ..state })
    }

    fn write(
        &self,
        state: Held,
        value: i64,
        expected: Option<u64>,
        answer: Option<&Answer>,
    ) -> Option<Held> {
        let accepted = |state: Held| {
            // What is already so leads to no event.
            let changes = if state.value == value { 0 } else { self.events_per_write };
            Held { value, version: state.version + changes }
        };
        match (answer, expected) {
            (None, None) => Some(accepted(state)),
            (None, Some(expected)) => Some(self.at(state, expected).map_or(state, accepted)),
            (Some(Answer::Written { version }), None) => {
                let least = accepted(state);
                self.at(least, *version)
            }
            (Some(Answer::Written { version }), Some(expected)) => {
                let after = accepted(self.at(state, expected)?);
                (after.version == *version).then_some(after)
            }
            (Some(Answer::Mismatch { current }), Some(expected)) => match current {
                Some(current) if *current == expected => None,
                Some(current) => self.at(state, *current),
                None => (state.version != expected || self.others_write).then_some(state),
            },
            (Some(Answer::NotDone), _) => Some(state),
            (Some(Answer::Mismatch { .. } | Answer::Found(_)), _) => None,
        }
    }
}

impl Model for Register {
    type State = Held;
    type Call = Call;
    type Answer = Answer;

    fn start(&self) -> Held {
        self.start
    }

    fn step(&self, state: &Held, call: &Call, answer: Option<&Answer>) -> Option<Held> {
        match (call, answer) {
            (Call::Write { value, expected }, answer) => {
                self.write(*state, *value, *expected, answer)
            }
            (Call::Read, None | Some(Answer::NotDone)) => Some(*state),
            (Call::Read, Some(Answer::Found(found))) => {
                self.at(*state, found.version).filter(|state| state.value == found.value)
            }
            (Call::Read, Some(Answer::Written { .. } | Answer::Mismatch { .. })) => None,
        }
    }

    fn in_reach(&self, state: &Held, call: &Call, answer: &Answer) -> bool {
        let held = |held: &Held| {
            state.version < held.version
                || state.version == held.version && state.value == held.value
        };
        match (answer, call) {
            (Answer::Found(found), _) => held(found),
            (Answer::Written { version }, Call::Write { value, .. }) => {
                held(&Held { value: *value, version: *version })
            }
            (Answer::Mismatch { current: Some(current) }, _) => state.version <= *current,
            (Answer::Written { .. }, Call::Read) => false,
            (Answer::Mismatch { current: None } | Answer::NotDone, _) => true,
        }
    }

    fn only_looks(&self, call: &Call) -> bool {
        matches!(call, Call::Read)
    }
}

// -------------------------------------------------------------------------------- the recorder

/// Records a history while it happens. Shared by all clients; times are microseconds since it was
/// made.
#[derive(Debug)]
pub struct Recorder<C, A> {
    since: Instant,
    operations: Mutex<Vec<Operation<C, A>>>,
}

/// An operation that is under way. Dropped, it stays one of unknown outcome.
#[derive(Debug)]
#[must_use = "an operation that is never answered counts as one of unknown outcome"]
pub struct Started(usize);

impl<C, A> Default for Recorder<C, A> {
    fn default() -> Self {
        Self { since: Instant::now(), operations: Mutex::default() }
    }
}

impl<C: Clone, A: Clone> Recorder<C, A> {
    /// Call this right before the request is sent.
    pub fn invoked(&self, client: u64, call: C) -> Started {
        let invoked = self.now();
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        operations.push(Operation { client, call, invoked, answered: None, over: None });
        Started(operations.len() - 1)
    }

    /// Call this right after the answer came. Where the outcome is unknown do not call it.
    pub fn answered(&self, started: &Started, answer: A) {
        let at = self.now();
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        operations[started.0].answered = Some((at, answer));
    }

    /// Nothing that was sent and not answered until now will happen any more: the process that it
    /// was sent to is dead, or has nothing left to do and nobody is waiting for it.
    pub fn settled(&self) {
        let now = self.now();
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        for operation in operations.iter_mut().filter(|operation| operation.answered.is_none()) {
            operation.over.get_or_insert(now);
        }
    }

    /// What has been recorded so far.
    pub fn history(&self) -> Vec<Operation<C, A>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
