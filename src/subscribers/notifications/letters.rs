//! `dead-letter-notices`: administrators hear of dead letters, at most once per subscription and five
//! minutes.
//!
//! A subscription of its own, so that they also hear of letters of `notifications`. The notice's id
//! follows from subscription and window: every later letter of the window finds it there already. A
//! letter that stands because such a notice could not be handled makes no further one.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::event::StoredEvent;
use souk_actors::oversight::letters::{DeadLetterEvent, EventDeadLettered};
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use uuid::Uuid;

use super::{Message, request};
use crate::domain::ids::UserId;
use crate::domain::notification::Notification;
use crate::subscribers::{command_failed, decode_failed};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "dead-letter-notices";
/// What it listens to.
pub const TOPICS: &[&str] = &["system.event_dead_lettered"];
/// The template of a notice.
pub const TEMPLATE: &str = "dead_letter";
/// Letters of one subscription within this make one notice.
const WINDOW_MS: i64 = 5 * 60 * 1_000;

/// The handler.
pub struct DeadLetterNotices;

fn notice(letter: &EventDeadLettered) -> Message {
    let window = letter.dead_lettered_at.millis().div_euclid(WINDOW_MS);
    let parts: [&[u8]; 2] = [letter.subscription.as_bytes(), &window.to_be_bytes()];
    let occasion = souk_actors::id::derived("dead letter notice", &parts);
    Message { occasion: Some(occasion), ..Message::admin(UserId::ADMINISTRATORS, TEMPLATE) }
        .with("subscription", &letter.subscription)
        .with("event_type", &letter.event_type)
        .with("event_id", letter.event_id.to_string())
        .with("class", &letter.class)
        .with("attempts", letter.attempts.to_string())
}

async fn is_of_a_notice(runtime: &Runtime, aggregate_id: Uuid) -> Result<bool, Failure> {
    let notifications = runtime.aggregate::<Notification>();
    let read = notifications.read_inside(aggregate_id, |notification| {
        notification.details.as_ref().is_some_and(|details| details.template == TEMPLATE)
    });
    Ok(read.await.map_err(|error| command_failed(&error))?.value)
}

#[async_trait]
impl Handler for DeadLetterNotices {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let told = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let DeadLetterEvent::Lettered(letter) = told;
        if letter.event_type.starts_with("notification.")
            && is_of_a_notice(runtime, letter.aggregate_id).await?
        {
            return Ok(());
        }
        request(runtime, event, notice(&letter)).await
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::stored_event;
    use souk_actors::world::Timestamp;

    use super::*;

    fn letter(subscription: &str, at_ms: i64) -> EventDeadLettered {
        EventDeadLettered {
            event_id: Uuid::from_u128(1),
            event_type: "order.placed".to_owned(),
            aggregate_id: Uuid::from_u128(2),
            partition: 0,
            position: 3,
            subscription: subscription.to_owned(),
            key: Uuid::from_u128(2),
            class: "permanent".to_owned(),
            fingerprint: None,
            attempts: 1,
            dead_lettered_at: Timestamp::from_millis(at_ms),
        }
    }

    #[test]
    fn a_subscription_makes_one_notice_in_five_minutes() {
        let id = |letter: &EventDeadLettered| {
            let cause = Uuid::from_u128(9);
            let told = stored_event("e", "dead_letter_log", cause, &serde_json::json!({}));
            notice(letter).request(&told, Timestamp::from_millis(0)).notification_id
        };
        let first = id(&letter("notification-email", 0));
        assert_eq!(id(&letter("notification-email", WINDOW_MS - 1)), first);
        assert_ne!(id(&letter("notification-email", WINDOW_MS)), first);
        assert_ne!(id(&letter("notifications", 0)), first);
    }
}
