//! The way to aggregates.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use crate::aggregate::registry::{Registry, Work};
use crate::aggregate::{Aggregate, Command};
use crate::command::{CommandContext, CommandError, Done, Effects, Origin};
use crate::journal::{self, partition_of};
use crate::trace::{self, Begun, Hop};

/// Sends commands to the aggregates of one type, and reads them. Cheap to clone.
pub struct Handle<A: Aggregate>(Arc<[Registry<A>]>);

impl<A: Aggregate> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Aggregate> std::fmt::Debug for Handle<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("aggregate_type", &A::TYPE).finish()
    }
}

impl<A: Aggregate> Handle<A> {
    pub(super) fn new(registries: Vec<Registry<A>>) -> Self {
        Self(registries.into())
    }

    fn registry(&self, id: Uuid) -> &Registry<A> {
        let partitions = u16::try_from(self.0.len()).expect("partitions are counted in 16 bits");
        &self.0[usize::from(partition_of(id, partitions))]
    }

    /// Sends a command and waits until its outcome is durable. `view` is computed by the actor
    /// right after the command; for a repeat of a command with the same id it is computed from the
    /// state as it was then.
    pub async fn send<R: Send + 'static>(
        &self,
        id: Uuid,
        command: A::Command,
        mut context: CommandContext,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        let name = command.name();
        let started = Instant::now();
        let registry = self.registry(id);
        let begun = trace::command(&mut context.traceparent, &*registry.shared().world);
        context.here = begun.as_ref().map(Begun::here);
        let correlation_id = begun.is_some().then(|| context.correlation_id.clone());
        let done = registry.ask(id, Work::Command(command), context, view).await;
        Effects::note(&done);
        let outcome = outcome_label(&done);
        metrics::counter!("souk_commands_total", "aggregate_type" => A::TYPE, "command" => name, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("souk_command_duration_seconds", "aggregate_type" => A::TYPE, "command" => name, "outcome" => outcome)
            .record(started.elapsed());
        if let Some((begun, correlation_id)) = begun.zip(correlation_id) {
            let (aggregate_type, aggregate_id, command) = (A::TYPE, id, name);
            let hop =
                Hop::Command { aggregate_type, aggregate_id, command, outcome, correlation_id };
            begun.ended(hop, is_failure(outcome).then_some(outcome));
        }
        if let Err(CommandError::Unavailable(why)) = &done {
            metrics::counter!("souk_commands_refused_total", "aggregate_type" => A::TYPE, "reason" => why.code())
                .increment(1);
        }
        done
    }

    /// Reads state that is durable. Version 0: the aggregate does not exist, and the state is its
    /// default.
    pub async fn read<R: Send + 'static>(
        &self,
        id: Uuid,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        self.read_for(Origin::Outside, id, view).await
    }

    /// As [`Handle::read`], on the budget of sagas, timers and subscribers: load from outside must
    /// not keep them from looking.
    pub async fn read_inside<R: Send + 'static>(
        &self,
        id: Uuid,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        self.read_for(Origin::Inside, id, view).await
    }

    async fn read_for<R: Send + 'static>(
        &self,
        origin: Origin,
        id: Uuid,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        let registry = self.registry(id);
        let world = &*registry.shared().world;
        let context = CommandContext { origin, ..CommandContext::outside(world, "", "") };
        registry.ask(id, Work::Read, context, view).await
    }

    /// The state as of a version, folded from the journal; none if there is no such version.
    pub async fn at_version<R>(
        &self,
        id: Uuid,
        version: u64,
        view: impl FnOnce(&A) -> R,
    ) -> Result<Option<R>, journal::Error> {
        let state = self.registry(id).at_version(id, version).await?;
        Ok(state.as_ref().map(view))
    }
}

/// Whether an outcome is a failure of ours, and no answer.
fn is_failure(outcome: &str) -> bool {
    matches!(outcome, "unavailable" | "unknown" | "internal")
}

fn outcome_label<R, J: std::error::Error>(done: &Result<Done<R>, CommandError<J>>) -> &'static str {
    match done {
        Ok(Done { replayed: true, .. }) | Err(CommandError::Rejected { replayed: true, .. }) => {
            "replayed"
        }
        Ok(_) => "accepted",
        Err(CommandError::Rejected { .. } | CommandError::VersionMismatch { .. }) => "rejected",
        Err(CommandError::KeyReused) => "key_reused",
        Err(CommandError::Unavailable(_)) => "unavailable",
        Err(CommandError::OutcomeUnknown) => "unknown",
        Err(CommandError::Internal(_)) => "internal",
    }
}
