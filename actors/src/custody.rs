//! Quarantines of one aggregate: an aggregate with a stream of its own, so that every quarantine and
//! every release is in the journal, with what led to it, who released it and why.
//!
//! Whether an aggregate is quarantined is a record of its partition, written when it happens. The
//! event follows it; a release is recorded before it is carried out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::aggregate::{Aggregate, Command, NoRejection};
use crate::journal::{Crash, Quarantine};
use crate::world::Timestamp;

/// An aggregate takes no commands any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quarantined {
    /// The type of the aggregate.
    pub aggregate_type: String,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// Since when.
    pub since: Timestamp,
    /// What led to it, as far as it was remembered: the last one is the reason.
    pub crashes: Vec<Crash>,
}

impl Quarantined {
    /// What a record says, with the crashes that are remembered of it.
    pub fn new(record: &Quarantine, mut crashes: Vec<Crash>) -> Self {
        if crashes.last().is_none_or(|last| last.error_id != record.error_id) {
            crashes.push(Crash {
                at: record.since,
                error_id: record.error_id,
                command_id: record.command_id,
                command: record.command.clone(),
            });
        }
        Self {
            aggregate_type: record.aggregate_type.to_string(),
            aggregate_id: record.aggregate_id,
            since: record.since,
            crashes,
        }
    }

    /// Tells it from the others of the same aggregate: since when, and the crash.
    pub fn name(&self) -> (Timestamp, Uuid) {
        (self.since, self.crashes.last().map(|crash| crash.error_id).unwrap_or_default())
    }
}

/// An aggregate takes commands again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    /// The type of the aggregate.
    pub aggregate_type: String,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// Since when it was quarantined.
    pub since: Timestamp,
    /// The crash that it was quarantined for.
    pub error_id: Uuid,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

crate::events! {
    /// What becomes of aggregates that fail. Who released one is in the metadata.
    pub enum CustodyEvent in "system" as "system-service" {
        /// It takes no commands from here on.
        Quarantined(Quarantined) = "aggregate.quarantined", "AggregateQuarantined", 1.0, [];
        /// It takes commands again.
        Released(Released) = "aggregate.released", "AggregateReleased", 1.0, [];
    }
}

/// What there is to be recorded.
#[derive(Debug, Clone)]
pub enum CustodyCommand {
    /// It is quarantined. Once is enough.
    Quarantine(Quarantined),
    /// Somebody releases it. Once is enough for one quarantine.
    Release(Released),
}

impl Command for CustodyCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Quarantine(_) => "RecordQuarantine",
            Self::Release(_) => "ReleaseAggregate",
        }
    }
}

/// An aggregate, as far as it was quarantined.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Custody {
    /// The latest quarantine.
    pub latest: Option<Quarantined>,
    /// The latest one that somebody released it from: since when it was, and the crash.
    pub released: Option<(Timestamp, Uuid)>,
    /// How often it was quarantined.
    pub times: u64,
}

impl Custody {
    /// The id of the stream of an aggregate's quarantines.
    pub fn id_of(aggregate_type: &str, aggregate_id: Uuid) -> Uuid {
        crate::id::derived("quarantine", &[aggregate_type.as_bytes(), aggregate_id.as_bytes()])
    }
}

impl Aggregate for Custody {
    const TYPE: &'static str = "quarantine";
    const STEERS: bool = true;

    type Command = CustodyCommand;
    type Event = CustodyEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &CustodyCommand) -> Result<Vec<CustodyEvent>, NoRejection> {
        let latest = self.latest.as_ref().map(Quarantined::name);
        Ok(match command {
            CustodyCommand::Quarantine(of)
                if [latest, self.released].contains(&Some(of.name())) =>
            {
                Vec::new()
            }
            CustodyCommand::Release(of) if self.released == Some((of.since, of.error_id)) => {
                Vec::new()
            }
            CustodyCommand::Quarantine(of) => vec![CustodyEvent::Quarantined(of.clone())],
            CustodyCommand::Release(of) => vec![CustodyEvent::Released(of.clone())],
        })
    }

    fn apply(&mut self, event: &CustodyEvent) {
        match event {
            CustodyEvent::Quarantined(of) => {
                self.latest = Some(of.clone());
                self.times += 1;
            }
            CustodyEvent::Released(of) => self.released = Some((of.since, of.error_id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scenario;

    fn quarantined(millis: i64) -> Quarantined {
        let record = Quarantine {
            aggregate_type: "thing".into(),
            aggregate_id: Uuid::from_u128(1),
            command_id: Uuid::from_u128(2),
            command: "ChangeThing".to_owned(),
            error_id: Uuid::from_u128(3),
            since: Timestamp::from_millis(millis),
        };
        Quarantined::new(&record, Vec::new())
    }

    fn released(millis: i64) -> Released {
        let Quarantined { aggregate_type, aggregate_id, since, .. } = quarantined(millis);
        let (at, error_id) = (Timestamp::from_millis(millis + 1), Uuid::from_u128(3));
        Released { aggregate_type, aggregate_id, since, error_id, reason: None, at }
    }

    #[test]
    fn a_record_without_crashes_is_the_crash_that_it_names() {
        let of = quarantined(5);
        assert_eq!(of.crashes.len(), 1);
        assert_eq!(of.crashes[0].command, "ChangeThing");
    }

    #[test]
    fn each_quarantine_and_each_release_is_told_once() {
        Scenario::<Custody>::new()
            .when(CustodyCommand::Quarantine(quarantined(5)))
            .then_types(&["aggregate.quarantined"])
            .when(CustodyCommand::Quarantine(quarantined(5)))
            .then_types(&[])
            .when(CustodyCommand::Release(released(5)))
            .then_types(&["aggregate.released"])
            .when(CustodyCommand::Release(released(5)))
            .then_types(&[])
            // The clock was set back.
            .when(CustodyCommand::Quarantine(quarantined(4)))
            .and_state(|custody| assert_eq!(custody.times, 2))
            .then_types(&["aggregate.quarantined"]);
    }

    #[test]
    fn a_release_that_overtakes_its_quarantine_is_told_alone() {
        Scenario::<Custody>::new()
            .when(CustodyCommand::Release(released(5)))
            .then_types(&["aggregate.released"])
            .when(CustodyCommand::Quarantine(quarantined(5)))
            .then_types(&[]);
    }
}
