//! Dead letters are told of, as events, before they are stored.

use std::sync::Arc;
use std::time::Duration;

use super::Cell;
use super::lane::Stopping;
use crate::command::{CommandContext, CommandError, Unavailable};
use crate::event::StoredEvent;
use crate::journal::Letter;
use crate::oversight::letters::{DeadLetterCommand, DeadLetterLog, is_told_of};
use crate::retry::Backoff;
use crate::runtime::WeakRuntime;

/// Records that an event becomes a dead letter, however long the journal takes. Where it cannot be
/// recorded for another reason the letter goes without: it matters more.
pub(super) async fn tell(
    cell: &Arc<Cell>,
    event: &StoredEvent,
    letter: &Letter,
) -> Result<(), Stopping> {
    if !is_told_of(&event.event_type) {
        return Ok(());
    }
    let log = DeadLetterLog::id_of(cell.subscription.name);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let Some(runtime) = cell.runtime.get().and_then(WeakRuntime::upgrade) else {
            return Err(Stopping);
        };
        let context = CommandContext {
            subscription: Some(cell.subscription.name),
            ..CommandContext::because_of(event, "dead letter", log)
        };
        let command = DeadLetterCommand::Tell(letter.into());
        let logs = runtime.aggregate::<DeadLetterLog>();
        let sent = tokio::select! {
            biased;
            () = cell.stopping.wait(true) => return Err(Stopping),
            sent = logs.send(log, command, context, |_| ()) => sent,
        };
        drop(runtime);
        match sent {
            Ok(_) => return Ok(()),
            Err(
                CommandError::Unavailable(
                    Unavailable::Journal
                    | Unavailable::Overloaded
                    | Unavailable::Restarting
                    | Unavailable::DeadlinePassed
                    | Unavailable::Draining,
                )
                | CommandError::OutcomeUnknown,
            ) => tokio::select! {
                biased;
                () = cell.stopping.wait(true) => return Err(Stopping),
                () = tokio::time::sleep(backoff.next_delay()) => {}
            },
            Err(error) => {
                let (subscription, event_id) = (cell.subscription.name, event.event_id);
                tracing::error!(subscription, %event_id, %error, "nobody is told of a dead letter");
                return Ok(());
            }
        }
    }
}
