//! `sequence-gaps`: makes a dead letter of each outside event that waited in vain for those before it.
//!
//! | event | what becomes of it |
//! | --- | --- |
//! | `publication.expired` | a dead letter, as long as the event is held back |
//!
//! `sequence-gaps-settled`: takes the letters away of what is not held back any more.
//!
//! | event | what becomes of it |
//! | --- | --- |
//! | `publication.resumed`, `publication.discarded` | the letters of what came to pass, or was given up, are worked off |
//!
//! Each event has a letter of its own; in which order they come to pass is the stream's business.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{Handler, Redrive, Subscription};
use uuid::Uuid;

use super::{command_failed, decode_failed};
use crate::domain::publication::{Publication, PublicationEvent, PublicationFact};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "sequence-gaps";
/// What it listens to.
pub const TOPICS: &[&str] = &["publication.expired"];
/// The subscription that takes letters away. Stored; never rename.
pub const SETTLED_NAME: &str = "sequence-gaps-settled";
/// What that listens to.
pub const SETTLED_TOPICS: &[&str] = &["publication.resumed", "publication.discarded"];
/// How many letters are looked at. More than that wait for an operator, as letters do.
const LETTERS_MAX: usize = 100_000;
/// How the reason of its letters begins.
pub const REASON: &str = "sequence_gap";

/// The handler.
pub struct SequenceGaps;

/// The handler of the other.
pub struct SettledGaps;

/// The subscriptions.
pub fn subscriptions() -> [Subscription; 2] {
    let settled = Arc::new(SettledGaps);
    [
        Subscription::handler(NAME, "publishing", TOPICS, Arc::new(SequenceGaps)).keyed_by(key),
        Subscription::handler(SETTLED_NAME, "publishing", SETTLED_TOPICS, settled),
    ]
}

/// The event that waited.
fn key(event: &StoredEvent) -> Option<Uuid> {
    #[derive(serde::Deserialize)]
    struct Waited {
        event_id: Uuid,
    }
    let waited: Result<Waited, _> = serde_json::from_str(&event.data);
    Some(waited.map_or(event.aggregate_id, |waited| waited.event_id))
}

#[async_trait]
impl Handler for SequenceGaps {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let decoded = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let PublicationEvent::Fact(PublicationFact::Expired(expired)) = decoded else {
            return Ok(());
        };
        let event_id = expired.event_id;
        let holds = move |publication: &Publication| publication.holds(event_id);
        let publications = runtime.aggregate::<Publication>();
        let held = publications.read_inside(event.aggregate_id, holds).await;
        match held.map_err(|error| command_failed(&error))?.value {
            false => Ok(()),
            true => Err(Failure::permanent(format!(
                "{REASON}: number {} waited in vain for number {}",
                expired.sequence, expired.missing
            ))),
        }
    }
}

#[async_trait]
impl Handler for SettledGaps {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let letters = runtime.dead_letters();
        let all = letters.list(Some(NAME), LETTERS_MAX).await;
        let all = all.map_err(|error| Failure::system(error.to_string()))?;
        for letter in all.iter().filter(|letter| letter.aggregate_id == event.aggregate_id) {
            let (partition, key) = (letter.partition, letter.key);
            let holds = move |publication: &Publication| publication.holds(key);
            let publications = runtime.aggregate::<Publication>();
            let held = publications.read_inside(event.aggregate_id, holds).await;
            if held.map_err(|error| command_failed(&error))?.value {
                continue;
            }
            let context = CommandContext::because_of(event, "settle-gap", key);
            let reason = Some("it is not held back any more".to_owned());
            letters.redrive(NAME, partition, key, Redrive::Retry, context, reason).await?;
        }
        Ok(())
    }
}
