//! What people did with a read model: an aggregate with a stream of its own, so that every rebuild and
//! every cut-over is in the journal, with who asked for it and why. It also hands out the numbers of
//! versions, so that they grow whatever becomes of the read models.
//!
//! A request is recorded before it is carried out; how far that has come the read models know.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;
use uuid::Uuid;

/// Somebody did something with a version of a read model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectionSteered {
    /// The read model.
    pub projection: String,
    /// The version that it was done to.
    pub version: u32,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

souk_actors::events! {
    /// What people did with read models. Who is in the metadata.
    pub enum ProjectionEvent in "system" as "system-service" {
        /// A new version was asked for.
        RebuildRequested(ProjectionSteered) = "projection.rebuild_requested", "ProjectionRebuildRequested", 1.0, [];
        /// Filling it stopped for a while.
        Paused(ProjectionSteered) = "projection.rebuild_paused", "ProjectionRebuildPaused", 1.0, [];
        /// Filling it went on.
        Resumed(ProjectionSteered) = "projection.rebuild_resumed", "ProjectionRebuildResumed", 1.0, [];
        /// A newer version serves.
        CutOver(ProjectionSteered) = "projection.cut_over", "ProjectionCutOver", 1.0, [];
        /// An older version serves again.
        RolledBack(ProjectionSteered) = "projection.rolled_back", "ProjectionRolledBack", 1.0, [];
        /// A version was dropped.
        Discarded(ProjectionSteered) = "projection.version_discarded", "ProjectionVersionDiscarded", 1.0, [];
    }
}

/// What somebody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectionCommand {
    /// Make a new version; its number is the next one, whatever is named.
    Rebuild(ProjectionSteered),
    /// Stop filling it for a while.
    Pause(ProjectionSteered),
    /// Go on filling it.
    Resume(ProjectionSteered),
    /// Let it serve.
    CutOver(ProjectionSteered),
    /// Let it serve again.
    RollBack(ProjectionSteered),
    /// Drop it.
    Discard(ProjectionSteered),
}

impl Command for ProjectionCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Rebuild(_) => "RebuildProjection",
            Self::Pause(_) => "PauseRebuild",
            Self::Resume(_) => "ResumeRebuild",
            Self::CutOver(_) => "CutProjectionOver",
            Self::RollBack(_) => "RollProjectionBack",
            Self::Discard(_) => "DiscardProjectionVersion",
        }
    }
}

/// A read model, as far as people steer it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionCare {
    /// The latest version that was asked for; 0: none was.
    pub version_last: u32,
}

impl ProjectionCare {
    /// The id of a read model's stream.
    pub fn id_of(projection: &str) -> Uuid {
        souk_actors::id::derived("projection", &[projection.as_bytes()])
    }
}

impl Aggregate for ProjectionCare {
    const TYPE: &'static str = "projection";

    type Command = ProjectionCommand;
    type Event = ProjectionEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &ProjectionCommand) -> Result<Vec<ProjectionEvent>, NoRejection> {
        Ok(vec![match command.clone() {
            ProjectionCommand::Rebuild(steered) => {
                // Version 1 is the one that nobody asked for.
                let version = self.version_last.max(1).saturating_add(1);
                ProjectionEvent::RebuildRequested(ProjectionSteered { version, ..steered })
            }
            ProjectionCommand::Pause(steered) => ProjectionEvent::Paused(steered),
            ProjectionCommand::Resume(steered) => ProjectionEvent::Resumed(steered),
            ProjectionCommand::CutOver(steered) => ProjectionEvent::CutOver(steered),
            ProjectionCommand::RollBack(steered) => ProjectionEvent::RolledBack(steered),
            ProjectionCommand::Discard(steered) => ProjectionEvent::Discarded(steered),
        }])
    }

    fn apply(&mut self, event: &ProjectionEvent) {
        if let ProjectionEvent::RebuildRequested(steered) = event {
            self.version_last = steered.version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_numbers_only_grow() {
        let mut care = ProjectionCare::default();
        let steered = ProjectionSteered {
            projection: "orders-view".to_owned(),
            version: 0,
            reason: None,
            at: Timestamp::from_millis(0),
        };
        for expected in 2..5 {
            let rebuild = ProjectionCommand::Rebuild(steered.clone());
            for event in care.decide(&rebuild).unwrap() {
                care.apply(&event);
            }
            assert_eq!(care.version_last, expected);
            let dropped = ProjectionSteered { version: expected, ..steered.clone() };
            for event in care.decide(&ProjectionCommand::Discard(dropped)).unwrap() {
                care.apply(&event);
            }
        }
        assert_eq!(care.version_last, 4);
    }
}
