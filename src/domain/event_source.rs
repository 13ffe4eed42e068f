//! Sources outside, as publishers name them, and what becomes of an event of theirs that is ahead of
//! its turn. One register for all of them, since each numbered event that is published asks it; who
//! is not in it is treated as the configuration says.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::id::derived;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::caller::Caller;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{FieldError, Fields};

/// The longest source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 255;
/// How many sources may have a policy of their own: the register is read as a whole.
pub const SOURCES_MAX: usize = 1_000;
/// The longest patience with a gap.
pub const GAP_TIMEOUT_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1_000;

/// What becomes of an event whose number is ahead of its turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnViolation {
    /// It waits until all before it have come.
    #[default]
    Buffer,
    /// It is refused: the publisher sends it again when it is its turn.
    Reject,
    /// It comes to pass at once; the numbers before it have had their turn then.
    AcceptLatest,
}

impl OnViolation {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Buffer => "buffer",
            Self::Reject => "reject",
            Self::AcceptLatest => "accept_latest",
        }
    }
}

impl std::str::FromStr for OnViolation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "buffer" => Ok(Self::Buffer),
            "reject" => Ok(Self::Reject),
            "accept_latest" => Ok(Self::AcceptLatest),
            _ => Err("must be buffer, reject or accept_latest"),
        }
    }
}

/// How the numbers of a source are dealt with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequencePolicy {
    /// What becomes of an event that is ahead of its turn.
    pub on_violation: OnViolation,
    /// How long it waits for those before it, in milliseconds; none: as the configuration says.
    pub gap_timeout_ms: Option<u64>,
}

impl SequencePolicy {
    /// How long an event waits, where the configuration says `default`.
    pub fn gap_timeout(&self, default: Duration) -> Duration {
        self.gap_timeout_ms.map_or(default, Duration::from_millis)
    }
}

/// What to do with the register of sources.
#[derive(Debug, Clone, PartialEq)]
pub enum EventSourceCommand {
    /// Give a source a policy.
    Configure {
        /// Who asks.
        caller: Caller,
        /// The source.
        source: String,
        /// Its policy.
        policy: SequencePolicy,
        /// When.
        now: Timestamp,
    },
    /// Treat a source as the configuration says.
    Reset {
        /// Who asks.
        caller: Caller,
        /// The source.
        source: String,
        /// When.
        now: Timestamp,
    },
}

impl Command for EventSourceCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Configure { .. } => "ConfigureEventSource",
            Self::Reset { .. } => "ResetEventSource",
        }
    }
}

souk_actors::events! {
    /// What happens to sources.
    pub enum EventSourceEvent in "publishing" as "gateway-service" {
        /// A source has a policy.
        Configured(EventSourceConfigured) = "event_source.configured", "EventSourceConfigured", 1.0, [];
        /// A source has none of its own any more.
        Reset(EventSourceReset) = "event_source.reset", "EventSourceReset", 1.0, [];
    }
}

/// A source has a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventSourceConfigured {
    /// The source.
    pub source: String,
    /// What becomes of its events that are ahead of their turn.
    pub on_violation: OnViolation,
    /// How long they wait, in milliseconds; none: as the configuration says.
    pub gap_timeout_ms: Option<u64>,
    /// When.
    pub configured_at: Timestamp,
}

/// A source has no policy of its own any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventSourceReset {
    /// The source.
    pub source: String,
    /// When.
    pub reset_at: Timestamp,
}

rejections! {
    /// Why the register refuses a command.
    pub enum EventSourceRejection {
        /// Administrators only.
        Forbidden = "forbidden", "only administrators configure sources";
        /// There is no room.
        TooMany = "too_many_sources", "1000 sources have a policy of their own: reset one first";
        /// It has no policy of its own.
        NotFound = "not_found", "this source has no policy of its own";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(EventSourceRejection);

/// The sources that have a policy of their own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EventSources {
    /// Each with its policy.
    pub sources: BTreeMap<String, ConfiguredSource>,
}

/// A source with a policy of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfiguredSource {
    /// The policy.
    pub policy: SequencePolicy,
    /// When it was given.
    pub configured_at: Timestamp,
}

impl EventSources {
    /// The id of the one register.
    pub fn id() -> Uuid {
        derived("event_sources", &[])
    }

    /// How the numbers of a source are dealt with.
    pub fn policy(&self, source: &str) -> SequencePolicy {
        self.sources.get(source).map_or_else(SequencePolicy::default, |of| of.policy)
    }

    fn configure(
        &self,
        source: &str,
        policy: SequencePolicy,
        now: Timestamp,
    ) -> Result<Vec<EventSourceEvent>, EventSourceRejection> {
        let mut fields = Fields::default();
        let named =
            (1..=SOURCE_BYTES_MAX).contains(&source.len()) && !source.chars().any(char::is_control);
        let detail = "must be 1 to 255 bytes long, without control characters";
        fields.require(named, "/source", "invalid_source", detail);
        let fits = policy.gap_timeout_ms.is_none_or(|of| (1..=GAP_TIMEOUT_MS_MAX).contains(&of));
        let detail = "must be 1 to 604800000 (seven days)";
        fields.require(fits, "/gap_timeout_ms", "out_of_range", detail);
        fields.finish()?;
        match self.sources.get(source) {
            Some(known) if known.policy == policy => return Ok(Vec::new()),
            None if self.sources.len() >= SOURCES_MAX => return Err(EventSourceRejection::TooMany),
            _ => {}
        }
        Ok(vec![EventSourceEvent::Configured(EventSourceConfigured {
            source: source.to_owned(),
            on_violation: policy.on_violation,
            gap_timeout_ms: policy.gap_timeout_ms,
            configured_at: now,
        })])
    }
}

impl Aggregate for EventSources {
    const TYPE: &'static str = "event_sources";
    type Command = EventSourceCommand;
    type Event = EventSourceEvent;
    type Rejection = EventSourceRejection;

    fn decide(
        &self,
        command: &EventSourceCommand,
    ) -> Result<Vec<EventSourceEvent>, EventSourceRejection> {
        let (EventSourceCommand::Configure { caller, .. }
        | EventSourceCommand::Reset { caller, .. }) = command;
        if !caller.is_staff() {
            return Err(EventSourceRejection::Forbidden);
        }
        match command {
            EventSourceCommand::Configure { source, policy, now, .. } => {
                self.configure(source, *policy, *now)
            }
            EventSourceCommand::Reset { source, .. } if !self.sources.contains_key(source) => {
                Err(EventSourceRejection::NotFound)
            }
            EventSourceCommand::Reset { source, now, .. } => {
                let reset = EventSourceReset { source: source.clone(), reset_at: *now };
                Ok(vec![EventSourceEvent::Reset(reset)])
            }
        }
    }

    fn apply(&mut self, event: &EventSourceEvent) {
        match event {
            EventSourceEvent::Configured(event) => {
                let policy = SequencePolicy {
                    on_violation: event.on_violation,
                    gap_timeout_ms: event.gap_timeout_ms,
                };
                let configured = ConfiguredSource { policy, configured_at: event.configured_at };
                self.sources.insert(event.source.clone(), configured);
            }
            EventSourceEvent::Reset(event) => drop(self.sources.remove(&event.source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::{assert_folds, run};

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn configure(source: &str, gap_timeout_ms: Option<u64>) -> EventSourceCommand {
        let policy = SequencePolicy { on_violation: OnViolation::Reject, gap_timeout_ms };
        let (caller, source) = (Caller::System, source.to_owned());
        EventSourceCommand::Configure { caller, source, policy, now: NOW }
    }

    fn reset(source: &str) -> EventSourceCommand {
        EventSourceCommand::Reset { caller: Caller::System, source: source.to_owned(), now: NOW }
    }

    #[test]
    fn a_source_has_its_policy_until_it_is_reset() {
        let commands =
            [configure("/erp", Some(7)), configure("/erp", Some(7)), configure("/pos", None)];
        let (state, history) = run::<EventSources>(&commands);
        assert_eq!(history.len(), 2, "the same again changes nothing");
        assert_folds(&state, &history);
        let default = Duration::from_secs(9);
        let policy = |source: &str| {
            let policy = state.policy(source);
            (policy.on_violation, policy.gap_timeout(default))
        };
        assert_eq!(policy("/erp"), (OnViolation::Reject, Duration::from_millis(7)));
        assert_eq!(policy("/pos"), (OnViolation::Reject, default));
        assert_eq!(policy("/other"), (OnViolation::Buffer, default));

        let (state, _) = run::<EventSources>(&[configure("/erp", None), reset("/erp")]);
        assert_eq!(state, EventSources::default());
        assert_eq!(state.decide(&reset("/erp")), Err(EventSourceRejection::NotFound));
    }

    #[test]
    fn sources_are_named_bounded_and_kept_by_administrators() {
        let state = EventSources::default();
        for (source, gap) in
            [("", None), ("a\nb", None), ("/erp", Some(0)), ("/erp", Some(u64::MAX))]
        {
            let refused = state.decide(&configure(source, gap)).unwrap_err();
            assert!(matches!(refused, EventSourceRejection::Invalid { .. }), "{source:?} {gap:?}");
        }
        assert!(state.decide(&configure(&"x".repeat(SOURCE_BYTES_MAX + 1), None)).is_err());
        let nobody = EventSourceCommand::Reset {
            caller: Caller::Anonymous,
            source: "/erp".to_owned(),
            now: NOW,
        };
        assert_eq!(state.decide(&nobody), Err(EventSourceRejection::Forbidden));
        let all: Vec<_> = (0..SOURCES_MAX).map(|n| configure(&n.to_string(), None)).collect();
        let (full, _) = run::<EventSources>(&all);
        assert_eq!(full.decide(&configure("x", None)), Err(EventSourceRejection::TooMany));
        assert!(full.decide(&configure("7", Some(1))).is_ok(), "it is known");
    }
}
