//! How a command's caller gets its answer: prepared by the actor right after the decision, sent by
//! the journal once everything it rests on is durable.

use tokio::sync::oneshot;

use super::Aggregate;
use crate::admission::Permit;
use crate::command::{CommandError, Done};
use crate::journal::writer::{Release, Settled};

/// What is known when a command is accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepted {
    pub version: u64,
    pub events: usize,
    pub replayed: bool,
}

/// The caller's side of a job, whatever its view returns.
pub(crate) trait Answer<A: Aggregate>: Send {
    /// Computes the caller's view of the state and gives back what sends it. If the view panics,
    /// [`Answer::refuse`] can still be called.
    fn accept(&mut self, state: &A, accepted: Accepted) -> Release;

    /// Gives back what sends this error once the job is durable.
    fn reject(&mut self, error: CommandError<A::Rejection>) -> Release;

    /// Sends this error now.
    fn refuse(&mut self, error: CommandError<A::Rejection>);
}

pub(crate) struct Asker<A: Aggregate, R, F> {
    view: Option<F>,
    reply: Option<Reply<A, R>>,
}

struct Reply<A: Aggregate, R> {
    to: oneshot::Sender<Result<Done<R>, CommandError<A::Rejection>>>,
    _permit: Option<Permit>,
}

impl<A, R, F> Asker<A, R, F>
where
    A: Aggregate,
    R: Send + 'static,
    F: FnOnce(&A) -> R + Send + 'static,
{
    /// The permit is held until the answer is sent.
    pub(crate) fn new(
        view: F,
        to: oneshot::Sender<Result<Done<R>, CommandError<A::Rejection>>>,
        permit: Option<Permit>,
    ) -> Self {
        Self { view: Some(view), reply: Some(Reply { to, _permit: permit }) }
    }
}

impl<A: Aggregate, R> Reply<A, R> {
    fn send(self, answer: Result<Done<R>, CommandError<A::Rejection>>) {
        // Whoever asked may have gone; the command stands all the same.
        let _ = self.to.send(answer);
    }

    fn unsettled(self, how: Settled) {
        match how {
            Settled::Committed(_) => {}
            Settled::Lost(why) => self.send(Err(CommandError::Unavailable(why))),
            Settled::Unknown => self.send(Err(CommandError::OutcomeUnknown)),
        }
    }
}

impl<A, R, F> Answer<A> for Asker<A, R, F>
where
    A: Aggregate,
    R: Send + 'static,
    F: FnOnce(&A) -> R + Send + 'static,
{
    fn accept(&mut self, state: &A, accepted: Accepted) -> Release {
        let view = self.view.take().expect("a job is answered once");
        let value = view(state);
        let reply = self.reply.take().expect("a job is answered once");
        Box::new(move |settled| match settled {
            Settled::Committed(position) => {
                let Accepted { version, events, replayed } = accepted;
                reply.send(Ok(Done { value, version, events, position, replayed }));
            }
            other => reply.unsettled(other),
        })
    }

    fn reject(&mut self, error: CommandError<A::Rejection>) -> Release {
        let Some(reply) = self.reply.take() else { return Box::new(|_| {}) };
        Box::new(move |settled| match settled {
            Settled::Committed(_) => reply.send(Err(error)),
            other => reply.unsettled(other),
        })
    }

    fn refuse(&mut self, error: CommandError<A::Rejection>) {
        if let Some(reply) = self.reply.take() {
            reply.send(Err(error));
        }
    }
}
