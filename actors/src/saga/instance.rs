//! One saga under way: an aggregate like any other, on a stream of its own.
//!
//! Each input (a fact observed, a time limit passed, a command refused, an undo answered) becomes
//! at most one event with the input and the transitions that it led to; the last transition is
//! followed by `saga.completed` or `saga.failed`. So the saga's state is a pure function of its
//! stream, and what it commands follows from its events.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::intervention::{Asked, Intervention, SagaRejection, SteppedIn};
use super::{Progress, Saga, Step};
use crate::aggregate::{Aggregate, Command, TimerChange};
use crate::world::Timestamp;

/// However long an undo has been tried, it is tried again after this.
const UNDO_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// The timer of an instance that limits its current step, or its undo. Stored; never rename.
pub const STEP_TIMER: &str = "step";

/// Where a saga stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SagaStatus {
    /// Facts have come, but not the one that starts it.
    #[default]
    Collecting,
    /// Going forward.
    Running,
    /// Going back.
    Compensating,
    /// Every step is done.
    Completed,
    /// Everything is undone.
    Compensated,
}

/// Why a saga turned back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaFailure {
    /// The step that failed.
    pub step: String,
    /// Why: a stable code.
    pub reason: String,
}

/// Something that happened to a saga, for people to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When.
    pub at: Timestamp,
    /// The transition.
    pub transition: Transition,
}

/// What came to the saga. Stored; never rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Input {
    /// A fact, from this event.
    Fact {
        /// The event.
        event_id: Uuid,
        /// What the saga understood of it.
        fact: Value,
    },
    /// The time limit of the current step passed.
    TimeLimit,
    /// A command of this step was rejected.
    Refused {
        /// The step.
        step: String,
        /// The rejection's code.
        code: String,
    },
    /// The undo commands of this step were accepted.
    UndoAnswered {
        /// The step.
        step: String,
        /// Whether there was nothing to undo.
        nothing: bool,
    },
}

/// A change of the saga's state. Stored; never rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Transition {
    /// The step's commands are to be sent.
    StepStarted {
        /// The step.
        step: String,
        /// Which try, from 1.
        attempt: u32,
    },
    /// The step is done.
    StepCompleted {
        /// The step.
        step: String,
        /// The saga's state from here on (`INVENTORY_RESERVED`).
        state: String,
    },
    /// The step failed.
    StepFailed {
        /// The step.
        step: String,
        /// Why.
        reason: String,
    },
    /// What was done is undone from here on; the announcements are to be sent.
    CompensationStarted {
        /// The step that failed.
        step: String,
        /// Why.
        reason: String,
    },
    /// The step's undo commands are to be sent.
    UndoStarted {
        /// The step.
        step: String,
        /// Which try, from 1.
        attempt: u32,
    },
    /// Nothing is left of the step.
    StepUndone {
        /// The step.
        step: String,
    },
    /// Every step is done.
    Completed,
    /// Everything is undone; the conclusions are to be sent.
    Compensated,
}

/// An input and what followed from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Advance {
    /// The saga's definition.
    pub saga: String,
    /// The business key: for an order saga, the order's id.
    pub key: Uuid,
    /// What came.
    pub input: Input,
    /// What followed, in order.
    pub transitions: Vec<Transition>,
    /// When.
    pub at: Timestamp,
}

/// The end of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SagaEnd {
    /// The saga's definition.
    pub saga: String,
    /// The business key.
    pub key: Uuid,
    /// `COMPLETED` or `COMPENSATED`.
    pub result: String,
    /// The step that failed, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

crate::events! {
    /// What happens to sagas, whatever their definition.
    pub enum SagaEvent in "sagas" as "saga-service" {
        /// The first input.
        Started(Advance) = "saga.started", "SagaStarted", 1.0, [];
        /// A later input.
        Advanced(Advance) = "saga.advanced", "SagaAdvanced", 1.0, [];
        /// Every step is done.
        Completed(SagaEnd) = "saga.completed", "SagaCompleted", 1.0, [];
        /// Everything is undone.
        Failed(SagaEnd) = "saga.failed", "SagaFailed", 1.0, [];
        /// Somebody had the current step tried again.
        RetryRequested(Intervention) = "saga.retry_requested", "SagaRetryRequested", 1.0, [];
        /// Somebody made it turn back.
        CompensationRequested(Intervention) = "saga.compensation_requested", "SagaCompensationRequested", 1.0, [];
    }
}

impl SagaEvent {
    /// What it is about, what followed, and when; none: it is an end.
    pub fn followed(&self) -> Option<(Uuid, &[Transition], Timestamp)> {
        match self {
            Self::Started(Advance { key, transitions, at, .. })
            | Self::Advanced(Advance { key, transitions, at, .. })
            | Self::RetryRequested(Intervention { key, transitions, at, .. })
            | Self::CompensationRequested(Intervention { key, transitions, at, .. }) => {
                Some((*key, transitions, *at))
            }
            Self::Completed(_) | Self::Failed(_) => None,
        }
    }
}

/// What an instance is told.
#[derive(Debug, Clone)]
pub enum SagaCommand {
    /// Something came.
    Take {
        /// The business key.
        key: Uuid,
        /// What came.
        input: Input,
        /// When.
        now: Timestamp,
    },
    /// Somebody wants the current step tried again.
    Retry(Asked),
    /// Somebody wants it to turn back.
    Compensate(Asked),
}

impl Command for SagaCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Take { input: Input::Fact { .. }, .. } => "ObserveFact",
            Self::Take { input: Input::TimeLimit, .. } => "PassTimeLimit",
            Self::Take { input: Input::Refused { .. }, .. } => "RefuseStep",
            Self::Take { input: Input::UndoAnswered { .. }, .. } => "AnswerUndo",
            Self::Retry(_) => "RetrySaga",
            Self::Compensate(_) => "CompensateSaga",
        }
    }
}

/// One saga under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SagaInstance<S: Saga> {
    /// The business key, once known.
    pub key: Option<Uuid>,
    /// Where it stands.
    pub status: SagaStatus,
    /// The current step, or the one being undone.
    pub step: usize,
    /// Which try of it.
    pub attempt: u32,
    /// Why it turned back, if it did.
    pub failure: Option<SagaFailure>,
    /// Every transition, in order.
    pub history: Vec<HistoryEntry>,
    /// What people did to it, in order.
    #[serde(default)]
    pub interventions: Vec<SteppedIn>,
    /// The folded facts.
    pub state: S,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
    undo_answered: bool,
    undo_found_nothing: bool,
    seen: Vec<Uuid>,
}

impl<S: Saga> Default for SagaInstance<S> {
    fn default() -> Self {
        Self {
            key: None,
            status: SagaStatus::default(),
            step: 0,
            attempt: 0,
            failure: None,
            history: Vec::new(),
            interventions: Vec::new(),
            state: S::default(),
            started_at: None,
            updated_at: None,
            undo_answered: false,
            undo_found_nothing: false,
            seen: Vec::new(),
        }
    }
}

impl<S: Saga> SagaInstance<S> {
    /// The id of the instance for a business key.
    pub fn id_of(key: Uuid) -> Uuid {
        crate::id::derived("saga", &[S::NAME.as_bytes(), key.as_bytes()])
    }

    /// The current step (or the one being undone), unless it is over.
    pub fn current(&self) -> Option<&'static Step<S>> {
        match self.status {
            SagaStatus::Running | SagaStatus::Compensating => self.state.steps().get(self.step),
            _ => None,
        }
    }

    /// The name of the state that people see: that of the last completed step, or the status.
    pub fn state_name(&self) -> String {
        let completed = self.history.iter().rev().find_map(|entry| match &entry.transition {
            Transition::StepCompleted { state, .. } => Some(state.clone()),
            _ => None,
        });
        match self.status {
            SagaStatus::Running => completed.unwrap_or_else(|| "STARTED".to_owned()),
            SagaStatus::Collecting => "COLLECTING".to_owned(),
            SagaStatus::Compensating => "COMPENSATING".to_owned(),
            SagaStatus::Completed => "COMPLETED".to_owned(),
            SagaStatus::Compensated => "COMPENSATED".to_owned(),
        }
    }

    fn over(&self) -> bool {
        matches!(self.status, SagaStatus::Completed | SagaStatus::Compensated)
    }

    /// Bookkeeping for an input, before its transitions.
    fn take(&mut self, key: Uuid, input: &Input, at: Timestamp) {
        self.key = Some(key);
        self.started_at.get_or_insert(at);
        self.updated_at = Some(at);
        match input {
            Input::Fact { event_id, fact } => {
                self.seen.push(*event_id);
                if let Ok(fact) = serde_json::from_value::<S::Fact>(fact.clone()) {
                    self.state.observe(&fact);
                    if self.status == SagaStatus::Collecting && S::starts(&fact) {
                        self.status = SagaStatus::Running;
                    }
                }
            }
            Input::UndoAnswered { step, nothing } => {
                let current = self.current().is_some_and(|current| current.name == step);
                if self.status == SagaStatus::Compensating && current {
                    self.undo_answered = true;
                    self.undo_found_nothing = *nothing;
                }
            }
            Input::TimeLimit | Input::Refused { .. } => {}
        }
    }

    /// Bookkeeping for a transition.
    pub(super) fn transit(&mut self, transition: &Transition, at: Timestamp) {
        match transition {
            Transition::StepStarted { attempt, .. } => self.attempt = *attempt,
            Transition::StepCompleted { .. } => {
                self.step += 1;
                self.attempt = 0;
            }
            Transition::StepFailed { .. } => {}
            Transition::CompensationStarted { step, reason } => {
                self.status = SagaStatus::Compensating;
                self.failure = Some(SagaFailure { step: step.clone(), reason: reason.clone() });
                self.attempt = 0;
            }
            Transition::UndoStarted { attempt, .. } => {
                self.attempt = *attempt;
                self.undo_answered = false;
            }
            Transition::StepUndone { .. } => {
                self.step = self.step.saturating_sub(1);
                self.attempt = 0;
                self.undo_answered = false;
            }
            Transition::Completed => self.status = SagaStatus::Completed,
            Transition::Compensated => self.status = SagaStatus::Compensated,
        }
        self.history.push(HistoryEntry { at, transition: transition.clone() });
    }

    /// Goes as far as the facts allow.
    fn advance(&mut self, input: &Input, at: Timestamp) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let failed = self.forced_failure(input);
        if matches!(input, Input::TimeLimit)
            && failed.is_none()
            && let Some(again) = self.another_try()
        {
            self.transit(&again, at);
            transitions.push(again);
        }
        self.go_on(at, failed, &mut transitions);
        transitions
    }

    /// Goes as far as the facts allow, from a step that has `failed` or has not.
    pub(super) fn go_on(
        &mut self,
        at: Timestamp,
        mut failed: Option<String>,
        transitions: &mut Vec<Transition>,
    ) {
        loop {
            let next = match self.status {
                SagaStatus::Running => self.next_forward(failed.take()),
                SagaStatus::Compensating => self.next_back(at),
                _ => Vec::new(),
            };
            if next.is_empty() {
                return;
            }
            for transition in next {
                self.transit(&transition, at);
                transitions.push(transition);
            }
        }
    }

    /// A failure that the facts do not show: a refusal, or a time limit without tries left.
    fn forced_failure(&self, input: &Input) -> Option<String> {
        let step = self.current().filter(|_| self.status == SagaStatus::Running)?;
        match input {
            Input::Refused { step: refused, code } if refused == step.name => Some(code.clone()),
            Input::TimeLimit if self.attempt > step.retries_max => Some("timeout".to_owned()),
            _ => None,
        }
    }

    /// The same again, after a time limit or because somebody wants it. An undo is never given up.
    pub(super) fn another_try(&self) -> Option<Transition> {
        let step = self.current()?.name.to_owned();
        let attempt = self.attempt + 1;
        Some(match self.status {
            SagaStatus::Running => Transition::StepStarted { step, attempt },
            _ => Transition::UndoStarted { step, attempt },
        })
    }

    fn next_forward(&self, forced: Option<String>) -> Vec<Transition> {
        let Some(step) = self.state.steps().get(self.step) else {
            return vec![Transition::Completed];
        };
        let name = step.name.to_owned();
        if let Some(reason) = self.state.aborted() {
            return vec![Transition::CompensationStarted { step: name, reason }];
        }
        let completed =
            Transition::StepCompleted { step: name.clone(), state: step.done_as.to_owned() };
        let progress = match forced {
            Some(reason) => Progress::Failed(reason),
            None => (step.progress)(&self.state),
        };
        match progress {
            // A step that the facts show done before it was started (they may have come in any
            // order) needs no commands.
            Progress::Done => vec![completed],
            Progress::Failed(reason) if step.optional => {
                vec![Transition::StepFailed { step: name, reason }, completed]
            }
            Progress::Failed(reason) => vec![
                Transition::StepFailed { step: name.clone(), reason: reason.clone() },
                Transition::CompensationStarted { step: name, reason },
            ],
            Progress::Pending if self.attempt == 0 => {
                vec![Transition::StepStarted { step: name, attempt: 1 }]
            }
            Progress::Pending => Vec::new(),
        }
    }

    fn next_back(&self, at: Timestamp) -> Vec<Transition> {
        let Some(step) = self.state.steps().get(self.step) else { return Vec::new() };
        let name = step.name.to_owned();
        let nothing_to_send = self.attempt == 0 && (step.undo)(&self.state, at).is_empty();
        let undone = self.undo_answered && (self.undo_found_nothing || (step.undone)(&self.state));
        if nothing_to_send || undone {
            let last = self.step == 0;
            let mut next = vec![Transition::StepUndone { step: name }];
            if last {
                next.push(Transition::Compensated);
            }
            return next;
        }
        if self.attempt == 0 {
            return vec![Transition::UndoStarted { step: name, attempt: 1 }];
        }
        Vec::new()
    }

    /// What was told of an input.
    fn taken(&self, key: Uuid, input: &Input, now: Timestamp) -> Vec<SagaEvent> {
        let repeated =
            matches!(input, Input::Fact { event_id, .. } if self.seen.contains(event_id));
        if repeated || self.over() {
            return Vec::new();
        }
        let mut next = self.clone();
        next.take(key, input, now);
        let transitions = next.advance(input, now);
        if transitions.is_empty()
            && !matches!(input, Input::Fact { .. } | Input::UndoAnswered { .. })
        {
            return Vec::new();
        }
        let first = self.started_at.is_none();
        let advance =
            Advance { saga: S::NAME.to_owned(), key, input: input.clone(), transitions, at: now };
        let event = if first { SagaEvent::Started(advance) } else { SagaEvent::Advanced(advance) };
        std::iter::once(event).chain(next.end(now)).collect()
    }

    /// Remembers who stepped in.
    fn step_in(&mut self, verb: &str, intervention: &Intervention) {
        let Intervention { by, reason, at, .. } = intervention;
        let (verb, by, reason) = (verb.to_owned(), by.clone(), reason.clone());
        self.updated_at = Some(*at);
        self.interventions.push(SteppedIn { verb, by, reason, at: *at });
    }

    pub(super) fn end(&self, now: Timestamp) -> Option<SagaEvent> {
        let (step, reason) = match &self.failure {
            Some(failure) => (Some(failure.step.clone()), Some(failure.reason.clone())),
            None => (None, None),
        };
        let end = |result: &str| SagaEnd {
            saga: S::NAME.to_owned(),
            key: self.key.unwrap_or_default(),
            result: result.to_owned(),
            step,
            reason,
            at: now,
        };
        match self.status {
            SagaStatus::Completed => Some(SagaEvent::Completed(end("COMPLETED"))),
            SagaStatus::Compensated => Some(SagaEvent::Failed(end("COMPENSATED"))),
            _ => None,
        }
    }
}

impl<S: Saga> Aggregate for SagaInstance<S> {
    const TYPE: &'static str = S::NAME;

    type Command = SagaCommand;
    type Event = SagaEvent;
    type Rejection = SagaRejection;

    fn decide(&self, command: &SagaCommand) -> Result<Vec<SagaEvent>, SagaRejection> {
        match command {
            SagaCommand::Take { key, input, now } => Ok(self.taken(*key, input, *now)),
            SagaCommand::Retry(asked) => self.retried(asked),
            SagaCommand::Compensate(asked) => self.turned_back(asked),
        }
    }

    fn apply(&mut self, event: &SagaEvent) {
        match event {
            SagaEvent::Started(advance) | SagaEvent::Advanced(advance) => {
                self.take(advance.key, &advance.input, advance.at);
            }
            SagaEvent::RetryRequested(intervention) => self.step_in("retry", intervention),
            SagaEvent::CompensationRequested(intervention) => {
                self.step_in("compensate", intervention);
            }
            SagaEvent::Completed(_) | SagaEvent::Failed(_) => {}
        }
        if let Some((_, transitions, at)) = event.followed() {
            transitions.iter().for_each(|transition| self.transit(transition, at));
        }
    }

    fn timers(&self, event: &SagaEvent) -> Vec<TimerChange> {
        let name = || STEP_TIMER.to_owned();
        let Some((_, transitions, at)) = event.followed() else {
            return vec![TimerChange::Clear { name: name() }];
        };
        let started = |transition: &Transition| {
            matches!(transition, Transition::StepStarted { .. } | Transition::UndoStarted { .. })
        };
        match self.current() {
            Some(step) if transitions.iter().any(started) => {
                let limit = (step.time_limit)(&self.state);
                // An undo is never given up, but tried less and less often.
                let wait = if self.status == SagaStatus::Compensating {
                    let factor = 1u32.checked_shl(self.attempt.saturating_sub(1));
                    limit.saturating_mul(factor.unwrap_or(u32::MAX)).min(UNDO_WAIT_MAX.max(limit))
                } else {
                    limit
                };
                vec![TimerChange::Set { name: name(), at: at.plus(wait) }]
            }
            _ => Vec::new(),
        }
    }

    fn on_timer(&self, _name: &str, now: Timestamp) -> Option<SagaCommand> {
        let key = self.key?;
        (!self.over()).then_some(SagaCommand::Take { key, input: Input::TimeLimit, now })
    }
}
