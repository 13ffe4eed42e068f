//! Announcements: one event told to everybody who takes an interest in it, some at a time. How far it
//! has come is recorded after each part, so that it goes on there whatever happens, and no part
//! holds up anybody for long.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::ids::AnnouncementId;
use super::interest::InterestKind;
use super::notification::Params;

/// A new announcement.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAnnouncement {
    /// The announcement: [`AnnouncementId::of`] the event.
    pub announcement_id: AnnouncementId,
    /// To those who take an interest in this kind of thing.
    pub kind: InterestKind,
    /// In this one.
    pub target_id: Uuid,
    /// Which text.
    pub template: String,
    /// What fills the text's gaps; nothing personal.
    pub params: Params,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// When.
    pub now: Timestamp,
}

/// What to do with an announcement.
#[derive(Debug, Clone, PartialEq)]
pub enum AnnouncementCommand {
    /// Begin to tell.
    Start(Box<NewAnnouncement>),
    /// Some were told.
    RecordTold {
        /// Behind which interest they began; none: at the first.
        after: Option<Uuid>,
        /// How many there were.
        told: u64,
        /// The last of them, where others may be behind it; none: these were all.
        last: Option<Uuid>,
        /// When.
        now: Timestamp,
    },
}

impl Command for AnnouncementCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "StartAnnouncement",
            Self::RecordTold { .. } => "RecordAnnouncementTold",
        }
    }
}

souk_actors::events! {
    /// What happens to announcements.
    pub enum AnnouncementEvent in "notifications" as "notification-service" {
        /// It begins.
        Started(AnnouncementStarted) = "announcement.started", "AnnouncementStarted", 1.0, [];
        /// Some have been told.
        Advanced(AnnouncementAdvanced) = "announcement.advanced", "AnnouncementAdvanced", 1.0, [];
        /// All have been told.
        Completed(AnnouncementCompleted) = "announcement.completed", "AnnouncementCompleted",
            1.0, [];
    }
}

/// An announcement begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncementStarted {
    /// The announcement.
    pub announcement_id: AnnouncementId,
    /// To those who take an interest in this kind of thing.
    pub kind: InterestKind,
    /// In this one.
    pub target_id: Uuid,
    /// Which text.
    pub template: String,
    /// What fills the text's gaps.
    pub params: Params,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// When.
    pub started_at: Timestamp,
}

/// Some have been told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncementAdvanced {
    /// The announcement.
    pub announcement_id: AnnouncementId,
    /// The last interest that was reached.
    pub last: Uuid,
    /// How many have been told so far.
    pub told: u64,
    /// When.
    pub advanced_at: Timestamp,
}

/// All have been told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncementCompleted {
    /// The announcement.
    pub announcement_id: AnnouncementId,
    /// How many have been told.
    pub told: u64,
    /// When.
    pub completed_at: Timestamp,
}

/// An announcement, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// Everything about it, once it has begun.
    pub details: Option<AnnouncementDetails>,
}

/// What is known of an announcement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnouncementDetails {
    /// The announcement.
    pub announcement_id: AnnouncementId,
    /// To those who take an interest in this kind of thing.
    pub kind: InterestKind,
    /// In this one.
    pub target_id: Uuid,
    /// Which text.
    pub template: String,
    /// What fills the text's gaps.
    pub params: Params,
    /// The event that it is because of.
    pub cause_event_id: Uuid,
    /// The last interest that was reached.
    pub last: Option<Uuid>,
    /// How many have been told.
    pub told: u64,
    /// Whether all have been.
    pub is_completed: bool,
}

impl Aggregate for Announcement {
    const TYPE: &'static str = "announcement";
    type Command = AnnouncementCommand;
    type Event = AnnouncementEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &AnnouncementCommand) -> Result<Vec<AnnouncementEvent>, NoRejection> {
        Ok(match (command, &self.details) {
            (AnnouncementCommand::Start(new), None) => {
                vec![AnnouncementEvent::Started(AnnouncementStarted {
                    announcement_id: new.announcement_id,
                    kind: new.kind,
                    target_id: new.target_id,
                    template: new.template.clone(),
                    params: new.params.clone(),
                    cause_event_id: new.cause_event_id,
                    started_at: new.now,
                })]
            }
            (AnnouncementCommand::RecordTold { after, told, last, now }, Some(details))
                if !details.is_completed && details.last == *after =>
            {
                let announcement_id = details.announcement_id;
                let told = details.told.saturating_add(*told);
                vec![match *last {
                    Some(last) => AnnouncementEvent::Advanced(AnnouncementAdvanced {
                        announcement_id,
                        last,
                        told,
                        advanced_at: *now,
                    }),
                    None => AnnouncementEvent::Completed(AnnouncementCompleted {
                        announcement_id,
                        told,
                        completed_at: *now,
                    }),
                }]
            }
            // Begun before, or a part that was recorded before.
            _ => Vec::new(),
        })
    }

    fn apply(&mut self, event: &AnnouncementEvent) {
        match (event, &mut self.details) {
            (AnnouncementEvent::Started(event), details) => {
                *details = Some(AnnouncementDetails {
                    announcement_id: event.announcement_id,
                    kind: event.kind,
                    target_id: event.target_id,
                    template: event.template.clone(),
                    params: event.params.clone(),
                    cause_event_id: event.cause_event_id,
                    last: None,
                    told: 0,
                    is_completed: false,
                });
            }
            (AnnouncementEvent::Advanced(event), Some(details)) => {
                details.last = Some(event.last);
                details.told = event.told;
            }
            (AnnouncementEvent::Completed(event), Some(details)) => {
                details.told = event.told;
                details.is_completed = true;
            }
            (AnnouncementEvent::Advanced(_) | AnnouncementEvent::Completed(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{SELLER, assert_folds, at, run, user};

    fn start() -> AnnouncementCommand {
        let cause_event_id = Uuid::from_u128(7);
        AnnouncementCommand::Start(Box::new(NewAnnouncement {
            announcement_id: AnnouncementId::of(cause_event_id),
            kind: InterestKind::Seller,
            target_id: user(SELLER).uuid(),
            template: "new_listing".into(),
            params: Params::new(),
            cause_event_id,
            now: at(0),
        }))
    }

    fn told(after: Option<u128>, last: Option<u128>) -> AnnouncementCommand {
        let (after, last) = (after.map(Uuid::from_u128), last.map(Uuid::from_u128));
        AnnouncementCommand::RecordTold { after, told: 2, last, now: at(1) }
    }

    #[test]
    fn it_goes_on_where_it_was_and_ends_once() {
        Scenario::<Announcement>::new()
            .when(told(None, None))
            .then([])
            .when(start())
            .then_types(&["announcement.started"])
            .when(start())
            .then([])
            .when(told(None, Some(5)))
            .then_types(&["announcement.advanced"])
            .when(told(None, Some(5)))
            .then([])
            .when(told(Some(5), Some(9)))
            .then_types(&["announcement.advanced"])
            .when(told(Some(5), None))
            .then([])
            .when(told(Some(9), None))
            .and_state(|of| assert_eq!(of.details.as_ref().unwrap().told, 6))
            .then_types(&["announcement.completed"])
            .when(told(Some(9), None))
            .then([])
            .when(start())
            .then([]);
    }

    #[test]
    fn histories_fold_in_parts() {
        let commands = [start(), told(None, Some(5)), told(Some(5), None)];
        let (state, history) = run::<Announcement>(&commands);
        assert_eq!(history.len(), 3);
        assert_folds(&state, &history);
    }
}
