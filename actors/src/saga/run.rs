//! How sagas are driven: three subscriptions for each definition.
//!
//! The first turns events into facts for the instance that they concern. The second listens to the
//! sagas' own events and sends the commands that follow from their transitions, with ids derived
//! from saga, step and purpose: whatever is repeated after a crash has no second effect, and since
//! an instance's events come in order, a step's commands are always sent before its undo. The third
//! works the letters that hold a saga up, when somebody wants it tried again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::intervention::Retries;
use super::{Input, Progress, Saga, SagaCommand, SagaEnd, SagaEvent, SagaInstance, Transition};
use crate::command::{CommandContext, CommandError, DeliveryMetadata, Once, Origin, Refused};
use crate::event::{EventPayload, StoredEvent};
use crate::faults::points::{self, Failed};
use crate::planted::Bug;
use crate::retry::{Failure, RetryPolicy};
use crate::runtime::Runtime;
use crate::subscriber::{Handler, Priority, Subscription};

/// A saga must not be stuck behind a passing trouble: it is patient for minutes, and its time
/// limits are what ends it.
const RETRIES_MAX: u32 = 10;
/// Instances worked on at the same time, per partition.
const LANES: u16 = 64;

/// What became of a command that a saga sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// How many events it led to; none: there was nothing to do.
    pub events: usize,
}

/// Sends a saga's commands to their aggregates: the one place that knows them all.
#[async_trait]
pub trait SagaRouter<S: Saga>: Send + Sync + 'static {
    /// Sends a command and waits until its outcome is durable.
    async fn route(
        &self,
        runtime: &Runtime,
        command: S::Command,
        context: CommandContext,
    ) -> Result<Routed, CommandError<Refused>>;
}

pub(crate) fn subscriptions<S: Saga>(router: Arc<dyn SagaRouter<S>>) -> [Subscription; 3] {
    // Once per definition and process: as static as the program.
    let name = |part| -> &'static str { Box::leak(format!("{}-{part}", S::NAME).into_boxed_str()) };
    let (facts_name, commands_name) = (name("facts"), name("commands"));
    let patient = RetryPolicy { max_retries: RETRIES_MAX, ..RetryPolicy::default() };
    let facts = Subscription::handler(
        facts_name,
        "sagas",
        S::TOPICS,
        Arc::new(Facts::<S>(std::marker::PhantomData)),
    );
    let facts = facts.keyed_by(key_of::<S>);
    let commands =
        Subscription::handler(commands_name, "sagas", &["saga.*"], Arc::new(Commands { router }));
    let retries =
        Retries::<S> { names: [facts_name, commands_name], saga: std::marker::PhantomData };
    let retries = Subscription::handler(
        name("retries"),
        "sagas",
        &["saga.retry_requested"],
        Arc::new(retries),
    );
    let [commands, retries] = [commands, retries].map(|subscription| {
        subscription
            .keyed_by(|event| (&*event.aggregate_type == S::NAME).then_some(event.aggregate_id))
    });
    [facts, commands, retries].map(|subscription| {
        // Whoever began a saga waits for it.
        subscription
            .at_priority(Priority::Critical)
            .in_lanes(LANES)
            .retrying(patient.clone())
            .within(Duration::from_secs(60))
    })
}

/// The instance that an event concerns; of one that cannot be read, whatever it is about.
fn key_of<S: Saga>(event: &StoredEvent) -> Option<Uuid> {
    match S::fact(event) {
        Ok(fact) => fact.map(|(key, _)| key),
        Err(_) => Some(event.aggregate_id),
    }
}

struct Facts<S>(std::marker::PhantomData<fn() -> S>);

#[async_trait]
impl<S: Saga> Handler for Facts<S> {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let fact = S::fact(event).map_err(|error| Failure::permanent(error.to_string()))?;
        let Some((key, fact)) = fact else { return Ok(()) };
        let fact = serde_json::to_value(&fact)
            .map_err(|_| Failure::permanent("a fact cannot be written as JSON"))?;
        let input = Input::Fact { event_id: event.event_id, fact };
        tell::<S>(runtime, event, key, input).await
    }
}

/// Tells an instance something, because of an event. An instance remembers what it has seen, so
/// that no outcome needs to be stored.
async fn tell<S: Saga>(
    runtime: &Runtime,
    event: &StoredEvent,
    key: Uuid,
    input: Input,
) -> Result<(), Failure> {
    let id = SagaInstance::<S>::id_of(key);
    let mut context = CommandContext::because_of(event, "saga", id);
    context.once = None;
    let command = SagaCommand::Take { key, input, now: runtime.world().now() };
    let told = runtime.saga::<S>().send(id, command, context, |_| ()).await;
    told.map(|_| ()).map_err(|error| error.to_failure())
}

struct Commands<S: Saga> {
    router: Arc<dyn SagaRouter<S>>,
}

#[async_trait]
impl<S: Saga> Handler for Commands<S> {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let decoded = SagaEvent::decode(&event.event_type, event.major, &event.data)
            .map_err(|error| Failure::permanent(error.to_string()))?;
        if let SagaEvent::Completed(end) | SagaEvent::Failed(end) = decoded {
            return measure::<S>(runtime, event, &end).await;
        }
        let Some((key, transitions, _)) = decoded.followed() else { return Ok(()) };
        for transition in transitions {
            self.follow(runtime, event, key, transition).await?;
        }
        Ok(())
    }
}

impl<S: Saga> Commands<S> {
    async fn follow(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        key: Uuid,
        transition: &Transition,
    ) -> Result<(), Failure> {
        let sends = matches!(
            transition,
            Transition::StepStarted { .. }
                | Transition::CompensationStarted { .. }
                | Transition::UndoStarted { .. }
                | Transition::Compensated
        );
        if !sends {
            return Ok(());
        }
        let id = event.aggregate_id;
        let sagas = runtime.saga::<S>();
        let view = |saga: &SagaInstance<S>| {
            (saga.state.clone(), saga.failure.clone(), saga.current().is_none())
        };
        let read = sagas.read_inside(id, view).await;
        let (state, failure, is_over) = read.map_err(|error| error.to_failure())?.value;
        // Who is told years later does not know any more that it was done, and undone.
        if is_over && is_replay() {
            return Ok(());
        }
        let now = runtime.world().now();
        let step_of = |name: &str| state.steps().iter().find(|step| step.name == name);
        match transition {
            Transition::StepStarted { step, .. } => {
                let commands = step_of(step).map(|step| (step.act)(&state, now));
                let sent = self.act(runtime, event, step, commands.unwrap_or_default());
                if let Some(code) = sent.await? {
                    let input = Input::Refused { step: step.clone(), code: code.to_owned() };
                    tell::<S>(runtime, event, key, input).await?;
                }
            }
            Transition::CompensationStarted { step, reason } => {
                let commands = state.announce(step, reason, now);
                self.say(runtime, event, (step, "announce"), commands).await?;
            }
            Transition::UndoStarted { step, .. } => {
                let unknown = |step: &&super::Step<S>| (step.progress)(&state) != Progress::Done;
                let skipped = runtime.faults().planted(Bug::UnknownNotUndone);
                let undone = step_of(step).filter(|step| !(skipped && unknown(step)));
                let commands = undone.map(|step| (step.undo)(&state, now));
                let commands = commands.unwrap_or_default();
                let nothing = self.undo(runtime, event, step, commands).await?;
                let input = Input::UndoAnswered { step: step.clone(), nothing };
                tell::<S>(runtime, event, key, input).await?;
            }
            _ => {
                if let Some(failure) = failure {
                    let commands = state.conclude(&failure.step, &failure.reason, now);
                    self.say(runtime, event, (&failure.step, "conclude"), commands).await?;
                }
            }
        }
        Ok(())
    }

    /// Sends a step's commands in order. The code of the first refusal, if there is one: the rest is
    /// not sent.
    async fn act(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        step: &str,
        commands: Vec<S::Command>,
    ) -> Result<Option<&'static str>, Failure> {
        for (index, command) in commands.into_iter().enumerate() {
            let context = context(event, step, "act", index);
            if let Sent::Refused(code) = self.send(runtime, command, context).await? {
                tracing::info!(saga = S::NAME, saga_id = %event.aggregate_id, step, code, "a step's command was refused");
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    /// Sends a step's undo. Whether there was nothing to undo. A refusal is a matter for people:
    /// going on as if the step were undone could give money away, so it becomes a dead letter, and
    /// the saga goes on once that is retried with success.
    async fn undo(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        step: &str,
        commands: Vec<S::Command>,
    ) -> Result<bool, Failure> {
        points::try_reach("saga.compensation").await.map_err(injected)?;
        let mut nothing = true;
        for (index, command) in commands.into_iter().enumerate() {
            match self.send(runtime, command, context(event, step, "undo", index)).await? {
                Sent::Accepted(routed) => nothing &= routed.events == 0,
                Sent::Refused(code) => {
                    let message = format!("the undo of {step} was refused: {code}");
                    return Err(Failure::permanent(message));
                }
            }
        }
        Ok(nothing)
    }

    /// Sends words that need no answer: a refusal means that they are not news.
    async fn say(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        (step, purpose): (&str, &str),
        commands: Vec<S::Command>,
    ) -> Result<(), Failure> {
        for (index, command) in commands.into_iter().enumerate() {
            let context = context(event, step, purpose, index);
            if let Sent::Refused(code) = self.send(runtime, command, context).await? {
                tracing::warn!(saga = S::NAME, saga_id = %event.aggregate_id, step, purpose, code, "a saga's word was refused");
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        runtime: &Runtime,
        command: S::Command,
        context: CommandContext,
    ) -> Result<Sent, Failure> {
        points::try_reach("saga.before_command").await.map_err(injected)?;
        let routed = self.router.route(runtime, command, context).await;
        points::try_reach("saga.after_command").await.map_err(injected)?;
        match routed {
            Ok(routed) => Ok(Sent::Accepted(routed)),
            Err(CommandError::Rejected { rejection, .. }) => Ok(Sent::Refused(rejection.code)),
            Err(error) => Err(error.to_failure()),
        }
    }
}

/// Whether the event in hand is delivered once more.
fn is_replay() -> bool {
    DeliveryMetadata::current().is_some_and(|metadata| metadata.replay.is_some())
}

/// How long the saga took, from its first fact to its end. Counted where its end is handled, once for
/// each saga, unless the service stops just then; a replay is not counted.
async fn measure<S: Saga>(
    runtime: &Runtime,
    event: &StoredEvent,
    end: &SagaEnd,
) -> Result<(), Failure> {
    if is_replay() {
        return Ok(());
    }
    let read = runtime.saga::<S>().read_inside(event.aggregate_id, |saga| saga.started_at).await;
    let started = read.map_err(|error| error.to_failure())?.value;
    let took = end.at.millis().saturating_sub(started.unwrap_or(end.at).millis());
    let took = Duration::from_millis(u64::try_from(took).unwrap_or(0));
    let outcome = end.result.clone();
    metrics::histogram!("souk_saga_duration_seconds", "saga" => S::NAME, "outcome" => outcome)
        .record(took);
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "what an error is mapped with")]
fn injected(failed: Failed) -> Failure {
    Failure::transient(failed.to_string())
}

enum Sent {
    Accepted(Routed),
    /// By an aggregate, with this code.
    Refused(&'static str),
}

fn context(event: &StoredEvent, step: &str, purpose: &str, index: usize) -> CommandContext {
    let id = crate::id::derived(
        "saga.command",
        &[
            event.aggregate_id.as_bytes(),
            step.as_bytes(),
            purpose.as_bytes(),
            &(index as u64).to_le_bytes(),
        ],
    );
    CommandContext {
        command_id: id,
        once: Some(Once { request_hash: [0; 32] }),
        origin: Origin::Inside,
        ..CommandContext::because_of(event, purpose, id)
    }
}
