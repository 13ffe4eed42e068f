//! An alert from inside: a figure of one part of the service is past its limit. An aggregate with a
//! stream of its own for each figure and part, so that an alert begins and ends once, however often
//! somebody looks and over restarts too.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;
use uuid::Uuid;

/// A figure, as somebody saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertObserved {
    /// The figure, by the name of its metric.
    pub metric: String,
    /// The part of the service, as a rule a subscription.
    pub subject: String,
    /// What it was.
    pub value: u64,
    /// What it may be at most.
    pub threshold: u64,
    /// When.
    pub at: Timestamp,
}

souk_actors::events! {
    /// What happens to alerts.
    pub enum AlertEvent in "analytics" as "analytics-service" {
        /// A figure is past its limit.
        Triggered(AlertObserved) = "analytics.alert.triggered", "AlertTriggered", 1.0, [];
        /// It is within its limit again.
        Resolved(AlertObserved) = "analytics.alert.resolved", "AlertResolved", 1.0, [];
    }
}

/// What somebody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlertCommand {
    /// Take note of a figure.
    Observe(AlertObserved),
}

impl Command for AlertCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Observe(_) => "ObserveFigure",
        }
    }
}

/// An alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Whether the figure was past its limit when somebody looked last.
    pub is_firing: bool,
}

impl Alert {
    /// The id of the stream of a figure and a part.
    pub fn id_of(metric: &str, subject: &str) -> Uuid {
        souk_actors::id::derived("alert", &[metric.as_bytes(), subject.as_bytes()])
    }
}

impl Aggregate for Alert {
    const TYPE: &'static str = "alert";

    type Command = AlertCommand;
    type Event = AlertEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &AlertCommand) -> Result<Vec<AlertEvent>, NoRejection> {
        let AlertCommand::Observe(observed) = command;
        Ok(match (self.is_firing, observed.value > observed.threshold) {
            (false, true) => vec![AlertEvent::Triggered(observed.clone())],
            (true, false) => vec![AlertEvent::Resolved(observed.clone())],
            _ => Vec::new(),
        })
    }

    fn apply(&mut self, event: &AlertEvent) {
        self.is_firing = matches!(event, AlertEvent::Triggered(_));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(value: u64) -> AlertCommand {
        AlertCommand::Observe(AlertObserved {
            metric: "souk_dlq_dead_letters".to_owned(),
            subject: "notifications".to_owned(),
            value,
            threshold: 100,
            at: Timestamp::from_millis(0),
        })
    }

    #[test]
    fn an_alert_begins_and_ends_once() {
        let mut alert = Alert::default();
        let mut types = Vec::new();
        for value in [0, 100, 101, 500, 101, 100, 0, 200] {
            for event in alert.decide(&observed(value)).unwrap() {
                alert.apply(&event);
                types.push(matches!(event, AlertEvent::Triggered(_)));
            }
        }
        assert_eq!(types, [true, false, true]);
    }

    #[test]
    fn figures_and_parts_have_alerts_of_their_own() {
        assert_ne!(Alert::id_of("a", "b"), Alert::id_of("a", "c"));
        assert_ne!(Alert::id_of("a", "b"), Alert::id_of("b", "b"));
    }
}
