//! What people do on pages and in apps, as those tell it: an aggregate per person, so that one
//! person's actions keep their order. It decides nothing and knows only how many there were.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::ids::UserId;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{FieldError, Fields};

/// The longest name of an action, and of what it was done to.
pub const ACTION_MAX: usize = 100;

/// What to do with a person's activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActivityCommand {
    /// Note an action.
    Record {
        /// Who did it.
        user_id: UserId,
        /// What: a name such as `page_viewed`.
        action: String,
        /// To what.
        subject: Option<String>,
        /// When.
        now: Timestamp,
    },
}

impl Command for ActivityCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Record { .. } => "RecordAction",
        }
    }
}

souk_actors::events! {
    /// What people do.
    pub enum ActivityEvent in "analytics" as "analytics-service" {
        /// Somebody did something.
        Recorded(ActionRecorded) = "analytics.event.recorded", "AnalyticsEventRecorded", 1.0, [];
    }
}

/// Somebody did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActionRecorded {
    /// Who.
    pub user_id: UserId,
    /// What.
    pub action: String,
    /// To what.
    pub subject: Option<String>,
    /// When.
    pub recorded_at: Timestamp,
}

rejections! {
    /// Why an action is not noted.
    pub enum ActivityRejection {
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(ActivityRejection);

/// What one person did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// How many actions were noted.
    pub recorded: u64,
}

impl Activity {
    /// The id of a person's activity.
    pub fn id_of(user: UserId) -> uuid::Uuid {
        souk_actors::id::derived("activity", &[user.uuid().as_bytes()])
    }
}

impl Aggregate for Activity {
    const TYPE: &'static str = "activity";
    type Command = ActivityCommand;
    type Event = ActivityEvent;
    type Rejection = ActivityRejection;

    fn decide(&self, command: &ActivityCommand) -> Result<Vec<ActivityEvent>, ActivityRejection> {
        let ActivityCommand::Record { user_id, action, subject, now } = command;
        let mut fields = Fields::default();
        let action = fields.line("/action", action, ACTION_MAX);
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        let detail = "must have letters, digits and . _ : - only";
        fields.require(action.bytes().all(usual), "/action", "invalid_action", detail);
        let subject = fields.optional_line("/subject", subject.as_deref(), ACTION_MAX);
        fields.finish()?;
        Ok(vec![ActivityEvent::Recorded(ActionRecorded {
            user_id: *user_id,
            action,
            subject,
            recorded_at: *now,
        })])
    }

    fn apply(&mut self, _: &ActivityEvent) {
        self.recorded = self.recorded.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{at, user};

    fn record(action: &str) -> ActivityCommand {
        let (user_id, action) = (user(1), action.to_owned());
        ActivityCommand::Record { user_id, action, subject: None, now: at(0) }
    }

    #[test]
    fn actions_have_names() {
        Scenario::<Activity>::new()
            .when(record("page_viewed"))
            .then_types(&["analytics.event.recorded"])
            .when(record("page_viewed"))
            .and_state(|activity| assert_eq!(activity.recorded, 2))
            .then_types(&["analytics.event.recorded"])
            .when(record(""))
            .then_rejected("invalid")
            .when(record("=HYPERLINK(1)"))
            .then_rejected("invalid")
            .when(record(&"x".repeat(ACTION_MAX + 1)))
            .then_rejected("invalid");
    }
}
