//! The dead-letter actor: it keeps what could not be handled, in order, until somebody decides.
//!
//! A letter points at its event. Later events of the same key wait behind it, as letters of their
//! own, so that a retry goes on exactly where the trouble began. Aggregates that are quarantined
//! are recorded here too.

pub mod fingerprint;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::faults::points;
use crate::journal::writer::WriterHandle;
use crate::journal::{Batch, Letter, LetterState, LetterWrite, Quarantine};
use crate::retry::Backoff;

/// Letters and records that may wait for the actor; a lane waits for its letter, so this is a
/// matter of how many lanes there are.
const MAILBOX_MAX: usize = 1_024;

enum Message {
    /// A letter, the correlation id of its event, and who hears that it is durable.
    Park(Letter, Arc<str>, oneshot::Sender<()>),
    Quarantined(Quarantine),
}

/// The way to a partition's dead-letter actor.
#[derive(Debug, Clone)]
pub struct DeadLetterHandle(mpsc::Sender<Message>);

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl DeadLetterHandle {
    /// Stores a letter and returns once it is durable, however long that takes. Returns whether it
    /// was: not when the partition is stopping. The log has the correlation id of its event.
    pub async fn park(&self, letter: Letter, correlation_id: Arc<str>) -> bool {
        let (done, parked) = oneshot::channel();
        let message = Message::Park(letter, correlation_id, done);
        self.0.send(message).await.is_ok() && parked.await.is_ok()
    }

    /// Records a quarantined aggregate.
    pub fn quarantined(&self, record: Quarantine) {
        let sender = self.0.clone();
        tokio::spawn(async move { sender.send(Message::Quarantined(record)).await });
    }
}

/// The dead-letter actor of one partition; its mailbox survives a crash of it.
#[derive(Debug)]
pub struct DeadLetterActor {
    mailbox: tokio::sync::Mutex<mpsc::Receiver<Message>>,
}

impl DeadLetterActor {
    /// An actor and the way to it.
    pub fn new() -> (Arc<Self>, DeadLetterHandle) {
        let (send, receive) = mpsc::channel(MAILBOX_MAX);
        (Arc::new(Self { mailbox: tokio::sync::Mutex::new(receive) }), DeadLetterHandle(send))
    }

    /// Stores what comes until every handle is gone.
    pub async fn run(&self, writer: &WriterHandle) {
        let mut mailbox = self.mailbox.lock().await;
        while let Some(message) = mailbox.recv().await {
            match message {
                Message::Park(letter, correlation_id, done) => {
                    announce(&letter, &correlation_id);
                    points::reach("dead_letter.before_store").await;
                    let letters = vec![LetterWrite::Put(letter)];
                    // Who hears nothing takes it for not stored.
                    if store(writer, Batch { letters, ..Batch::default() }).await {
                        let _ = done.send(());
                    }
                }
                Message::Quarantined(record) => {
                    let quarantines = vec![record];
                    store(writer, Batch { quarantines, ..Batch::default() }).await;
                }
            }
        }
    }
}

/// Stores it, however long it takes: a letter that is not stored would be an event lost. Whether it is
/// stored: not when the partition is stopping.
async fn store(writer: &WriterHandle, batch: Batch) -> bool {
    let mut backoff =
        Backoff::new(std::time::Duration::from_millis(100), std::time::Duration::from_secs(5));
    while let Err(error) = writer.store(batch.clone()).await {
        if error == crate::command::Unavailable::Draining {
            return false;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    true
}

fn announce(letter: &Letter, correlation_id: &str) {
    let subscription = letter.subscription.clone();
    if letter.state == LetterState::Dead {
        tracing::error!(subscription = %letter.subscription, event_id = %letter.event_id, correlation_id, event_type = %letter.event_type, aggregate_id = %letter.aggregate_id, attempts = letter.attempts, class = letter.class, error = letter.error, "a dead letter");
        metrics::counter!("souk_dlq_letters_total", "subscription" => subscription, "class" => letter.class.clone())
            .increment(1);
    }
}
