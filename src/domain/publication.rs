//! What publishers outside tell, one stream per source and key: their events, in their order.
//!
//! An event with a sequence number comes to pass when all before it have. What is ahead of its turn
//! is held back, durably, as a fact of the stream (`publication.buffered`); when the gap closes it
//! follows in order. When it does not close in time, what is held back becomes a dead letter
//! (`publication.expired`, one each), and an administrator lets it go on or gives it up. A source
//! may want it otherwise ([`OnViolation`]): what is ahead of its turn is refused, or comes to pass and
//! the numbers before it have had their turn.
//!
//! Whether an event was told before is asked of the journal, which keeps event ids unique for good:
//! the id follows from source and id. The state remembers only what it decided lately, so that a
//! repeat that overtakes the look-up costs no failed append.

mod told;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, TimerChange};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::caller::Caller;
use super::event_source::OnViolation;
use super::rejection::rejections;

pub use told::{PublicationEvent, Told};

/// How many events of one source and key are held back at most.
pub const HELD_MAX: usize = 1_000;
/// How many bytes of data they may have together: they are part of each snapshot.
pub const HELD_BYTES_MAX: usize = 1024 * 1024;
/// How many decided events a stream remembers: more than one command may have.
const LATELY_MAX: usize = 2_048;
/// The timer of what is held back. Stored; never rename.
const GAP: &str = "gap";

/// What to do with a stream of outside events.
#[derive(Debug, Clone, PartialEq)]
pub enum PublicationCommand {
    /// Take these events of one source and key, in this order. Never refused as a whole:
    /// [`Publication::standing`] says what became of each.
    Publish {
        /// The events.
        events: Vec<Arc<Told>>,
        /// What becomes of one that is ahead of its turn.
        on_violation: OnViolation,
        /// When.
        now: Timestamp,
        /// When the patience with a gap is over that begins now.
        release_by: Timestamp,
    },
    /// The time for a gap to close is over.
    Expire {
        /// When.
        now: Timestamp,
    },
    /// Let everything that is held back come to pass, over all gaps.
    Release {
        /// Who asks.
        caller: Caller,
        /// Why.
        reason: Option<String>,
        /// When.
        now: Timestamp,
    },
    /// Forget what is held back of these events: they came to pass elsewhere, under another key.
    Forget {
        /// The events.
        event_ids: Vec<Uuid>,
        /// When.
        now: Timestamp,
    },
    /// Give everything up that is held back.
    Discard {
        /// Who asks.
        caller: Caller,
        /// Why.
        reason: Option<String>,
        /// When.
        now: Timestamp,
    },
}

impl Command for PublicationCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "PublishEvents",
            Self::Expire { .. } => "ExpireBuffer",
            Self::Release { .. } => "ReleaseBuffer",
            Self::Forget { .. } => "ForgetBuffered",
            Self::Discard { .. } => "DiscardBuffer",
        }
    }
}

souk_actors::events! {
    /// What happens to a stream beside its events.
    pub enum PublicationFact in "publishing" as "gateway-service" {
        /// An event is ahead of its turn.
        Buffered(Buffered) = "publication.buffered", "PublicationBuffered", 1.1, [];
        /// An event waited in vain for those before it.
        Expired(Expired) = "publication.expired", "PublicationExpired", 1.0, [];
        /// Some of what was held back has come to pass.
        Resumed(Resumed) = "publication.resumed", "PublicationResumed", 1.0, [];
        /// What was held back was given up.
        Discarded(Discarded) = "publication.discarded", "PublicationDiscarded", 1.0, [];
    }
}

/// An event is ahead of its turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Buffered {
    /// The event.
    pub told: Arc<Told>,
    /// The number that is missed.
    pub missing: u64,
    /// When.
    pub buffered_at: Timestamp,
    /// When the patience is over.
    pub release_by: Timestamp,
}

/// An event waited in vain for those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Expired {
    /// Whose.
    pub source: String,
    /// Of which key.
    pub key: String,
    /// The event that waited.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Its number.
    pub sequence: u64,
    /// The number that is missed.
    pub missing: u64,
    /// When.
    pub expired_at: Timestamp,
}

/// Some of what was held back has come to pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resumed {
    /// Whose.
    pub source: String,
    /// Of which key.
    pub key: String,
    /// How many came to pass now.
    pub released: u64,
    /// How many are held back still.
    pub left: u64,
    /// The number that comes next.
    pub next: u64,
    /// Whether gaps were passed over, because an administrator said so or the source takes the
    /// latest.
    pub forced: bool,
    /// Why, if somebody said so.
    pub reason: Option<String>,
    /// When.
    pub resumed_at: Timestamp,
}

/// What was held back was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Discarded {
    /// Whose.
    pub source: String,
    /// Of which key.
    pub key: String,
    /// The numbers.
    pub sequences: Vec<u64>,
    /// The number that comes next.
    pub next: u64,
    /// Why, if somebody said so.
    pub reason: Option<String>,
    /// When.
    pub discarded_at: Timestamp,
}

rejections! {
    /// Why a stream refuses a command.
    pub enum PublicationRejection {
        /// Administrators only.
        Forbidden = "forbidden", "only administrators decide what is held back";
        /// There is nothing to decide.
        NothingHeld = "nothing_held", "no event of this source and key is held back";
    }
}

/// What became of an event that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It came to pass, at this version of the stream.
    Stored(u64),
    /// It is held back until all before it have come.
    Buffered {
        /// The number that is missed.
        missing: u64,
    },
    /// It is ahead of its turn, and the source wants that refused.
    SequenceGap {
        /// The number whose turn it is.
        missing: u64,
    },
    /// Another event has its number.
    SequenceTaken,
    /// Its number has had its turn.
    SequencePassed,
    /// No more can be held back.
    BufferFull,
}

/// A stream of outside events.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Publication {
    /// Whose events.
    pub source: String,
    /// Of which key.
    pub key: String,
    /// The last number that had its turn; 0: none.
    pub last: u64,
    /// What is held back, by number.
    pub held: BTreeMap<u64, Held>,
    held_bytes: usize,
    version: u64,
    #[serde(skip)]
    lately: Lately,
}

/// An event that is held back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The event.
    pub told: Arc<Told>,
    /// Since when.
    pub since: Timestamp,
    /// When the patience is over.
    pub release_by: Timestamp,
    /// Whether it is.
    pub expired: bool,
}

/// What was decided lately: event id to version.
#[derive(Debug, Clone, Default)]
struct Lately {
    versions: HashMap<Uuid, u64>,
    in_order: VecDeque<Uuid>,
}

impl Lately {
    fn note(&mut self, event_id: Uuid, version: u64) {
        if self.versions.insert(event_id, version).is_none() {
            self.in_order.push_back(event_id);
        }
        while self.in_order.len() > LATELY_MAX {
            if let Some(oldest) = self.in_order.pop_front() {
                self.versions.remove(&oldest);
            }
        }
    }
}

/// What a command has led to so far.
struct Draft<'a> {
    state: &'a Publication,
    events: Vec<PublicationEvent>,
    last: u64,
    /// Held back by this command.
    new: BTreeMap<u64, &'a Arc<Told>>,
    bytes: usize,
    left: usize,
    released: u64,
    /// Whether a gap was passed over that something was held back for.
    jumped: bool,
}

impl<'a> Draft<'a> {
    fn of(state: &'a Publication) -> Self {
        Self {
            state,
            events: Vec::new(),
            last: state.last,
            new: BTreeMap::new(),
            bytes: state.held_bytes,
            left: state.held.len(),
            released: 0,
            jumped: false,
        }
    }

    fn held(&self, sequence: u64) -> Option<&'a Arc<Told>> {
        let stored = self.state.held.get(&sequence).map(|held| &held.told);
        stored.or_else(|| self.new.get(&sequence).copied())
    }

    /// Everything that has its turn now.
    fn follow(&mut self) {
        while let Some(told) = self.held(self.last.saturating_add(1)) {
            self.let_go(told);
        }
    }

    fn let_go(&mut self, told: &Arc<Told>) {
        self.last = told.sequence.unwrap_or(self.last);
        self.left = self.left.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(told.data.len());
        self.released += 1;
        self.events.push(PublicationEvent::Published(told.clone()));
    }

    /// Lets an event come to pass over the gap before it. What is held back in the gap goes first.
    fn pass_over(&mut self, told: &Arc<Told>, sequence: u64) {
        if self.held(sequence).is_some() {
            return;
        }
        let state = self.state;
        for (_, held) in state.held.range(self.last.saturating_add(1)..sequence) {
            self.jumped = true;
            self.let_go(&held.told);
        }
        self.last = sequence;
        self.events.push(PublicationEvent::Published(told.clone()));
        self.follow();
    }

    fn hold(&mut self, told: &'a Arc<Told>, sequence: u64, now: Timestamp, release_by: Timestamp) {
        let full = self.left >= HELD_MAX || self.bytes + told.data.len() > HELD_BYTES_MAX;
        if full || self.held(sequence).is_some() {
            return;
        }
        self.left += 1;
        self.bytes += told.data.len();
        self.new.insert(sequence, told);
        let missing = self.last.saturating_add(1);
        let buffered = Buffered { told: told.clone(), missing, buffered_at: now, release_by };
        self.events.push(PublicationEvent::Fact(PublicationFact::Buffered(buffered)));
    }

    fn finish(mut self, reason: Option<&String>, now: Timestamp) -> Vec<PublicationEvent> {
        if self.released > 0 {
            let of = self.events.iter().find_map(PublicationEvent::told);
            let resumed = Resumed {
                source: of.map(|told| told.source.clone()).unwrap_or_default(),
                key: of.map(|told| told.key.clone()).unwrap_or_default(),
                released: self.released,
                left: self.left as u64,
                next: self.last.saturating_add(1),
                forced: self.jumped,
                reason: reason.cloned(),
                resumed_at: now,
            };
            self.events.push(PublicationEvent::Fact(PublicationFact::Resumed(resumed)));
        }
        self.events
    }
}

impl Publication {
    /// What became of an event, right after the command that told of it.
    pub fn standing(
        &self,
        event_id: Uuid,
        sequence: Option<u64>,
        on_violation: OnViolation,
    ) -> Standing {
        let missing = self.last.saturating_add(1);
        if let Some(version) = self.lately.versions.get(&event_id) {
            return Standing::Stored(*version);
        }
        if self.holds(event_id) {
            return Standing::Buffered { missing };
        }
        match sequence.map(|sequence| (sequence, self.held.get(&sequence))) {
            Some((_, Some(_))) => Standing::SequenceTaken,
            Some((sequence, None)) if sequence <= self.last => Standing::SequencePassed,
            _ if on_violation == OnViolation::Reject => Standing::SequenceGap { missing },
            _ => Standing::BufferFull,
        }
    }

    /// Whether an event is held back: a second one with its id could never be stored.
    pub fn holds(&self, event_id: Uuid) -> bool {
        self.held.values().any(|held| held.told.event_id == event_id)
    }

    fn publish(
        &self,
        events: &[Arc<Told>],
        on_violation: OnViolation,
        now: Timestamp,
        release_by: Timestamp,
    ) -> Vec<PublicationEvent> {
        let mut draft = Draft::of(self);
        draft.events.reserve(events.len());
        let mut seen = HashSet::with_capacity(events.len());
        for told in events {
            let known = self.lately.versions.contains_key(&told.event_id);
            if known || self.holds(told.event_id) || !seen.insert(told.event_id) {
                continue;
            }
            match told.sequence {
                None => draft.events.push(PublicationEvent::Published(told.clone())),
                Some(sequence) if sequence == draft.last.saturating_add(1) => {
                    draft.last = sequence;
                    draft.events.push(PublicationEvent::Published(told.clone()));
                    draft.follow();
                }
                Some(sequence) if sequence > draft.last => match on_violation {
                    OnViolation::Buffer => draft.hold(told, sequence, now, release_by),
                    OnViolation::Reject => {}
                    OnViolation::AcceptLatest => draft.pass_over(told, sequence),
                },
                // It had its turn.
                Some(_) => {}
            }
        }
        let reason = draft.jumped.then(|| "the source takes the latest".to_owned());
        draft.finish(reason.as_ref(), now)
    }

    /// When the patience is over with what is held back and has not expired yet.
    fn due(&self) -> Option<Timestamp> {
        self.held.values().filter(|held| !held.expired).map(|held| held.release_by).min()
    }

    fn expire(&self, now: Timestamp) -> Vec<PublicationEvent> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let waiting = self.held.iter().filter(|(_, held)| !held.expired);
        let expired = waiting.map(|(sequence, held)| Expired {
            source: self.source.clone(),
            key: self.key.clone(),
            event_id: held.told.event_id,
            event_type: held.told.event_type.to_string(),
            sequence: *sequence,
            missing: self.last.saturating_add(1),
            expired_at: now,
        });
        expired.map(|of| PublicationEvent::Fact(PublicationFact::Expired(of))).collect()
    }

    fn release(&self, reason: Option<&String>, now: Timestamp) -> Vec<PublicationEvent> {
        let mut draft = Draft { jumped: true, ..Draft::of(self) };
        for held in self.held.values() {
            draft.let_go(&held.told);
        }
        draft.finish(reason, now)
    }

    fn discard(&self, reason: Option<&String>, now: Timestamp) -> Vec<PublicationEvent> {
        let sequences: Vec<u64> = self.held.keys().copied().collect();
        let last = sequences.last().copied().unwrap_or(self.last);
        self.discarded(sequences, last, reason, now)
    }

    fn discarded(
        &self,
        sequences: Vec<u64>,
        last: u64,
        reason: Option<&String>,
        now: Timestamp,
    ) -> Vec<PublicationEvent> {
        vec![PublicationEvent::Fact(PublicationFact::Discarded(Discarded {
            source: self.source.clone(),
            key: self.key.clone(),
            sequences,
            next: last.saturating_add(1),
            reason: reason.cloned(),
            discarded_at: now,
        }))]
    }

    fn forget_told(&self, event_ids: &[Uuid], now: Timestamp) -> Vec<PublicationEvent> {
        let held = self.held.iter().filter(|(_, held)| event_ids.contains(&held.told.event_id));
        let sequences: Vec<u64> = held.map(|(sequence, _)| *sequence).collect();
        if sequences.is_empty() {
            return Vec::new();
        }
        let reason = "they came to pass under another key".to_owned();
        self.discarded(sequences, self.last, Some(&reason), now)
    }

    fn forget(&mut self, sequence: u64) {
        if let Some(held) = self.held.remove(&sequence) {
            self.held_bytes = self.held_bytes.saturating_sub(held.told.data.len());
        }
    }

    fn belongs_to(&mut self, source: &str, key: &str) {
        if self.version == 1 {
            self.source = source.to_owned();
            self.key = key.to_owned();
        }
    }
}

impl Aggregate for Publication {
    const TYPE: &'static str = "publication";
    type Command = PublicationCommand;
    type Event = PublicationEvent;
    type Rejection = PublicationRejection;

    fn decide(
        &self,
        command: &PublicationCommand,
    ) -> Result<Vec<PublicationEvent>, PublicationRejection> {
        match command {
            PublicationCommand::Publish { events, on_violation, now, release_by } => {
                Ok(self.publish(events, *on_violation, *now, *release_by))
            }
            PublicationCommand::Expire { now } => Ok(self.expire(*now)),
            PublicationCommand::Forget { event_ids, now } => Ok(self.forget_told(event_ids, *now)),
            PublicationCommand::Release { caller, .. }
            | PublicationCommand::Discard { caller, .. }
                if !caller.is_staff() =>
            {
                Err(PublicationRejection::Forbidden)
            }
            _ if self.held.is_empty() => Err(PublicationRejection::NothingHeld),
            PublicationCommand::Release { reason, now, .. } => {
                Ok(self.release(reason.as_ref(), *now))
            }
            PublicationCommand::Discard { reason, now, .. } => {
                Ok(self.discard(reason.as_ref(), *now))
            }
        }
    }

    fn apply(&mut self, event: &PublicationEvent) {
        self.version += 1;
        match event {
            PublicationEvent::Published(told) => {
                self.belongs_to(&told.source, &told.key);
                if let Some(sequence) = told.sequence {
                    self.forget(sequence);
                    self.last = self.last.max(sequence);
                }
                self.lately.note(told.event_id, self.version);
            }
            PublicationEvent::Fact(PublicationFact::Buffered(buffered)) => {
                let told = &buffered.told;
                self.belongs_to(&told.source, &told.key);
                self.held_bytes += told.data.len();
                let held = Held {
                    told: told.clone(),
                    since: buffered.buffered_at,
                    release_by: buffered.release_by,
                    expired: false,
                };
                self.held.insert(told.sequence.unwrap_or_default(), held);
            }
            PublicationEvent::Fact(PublicationFact::Expired(expired)) => {
                if let Some(held) = self.held.get_mut(&expired.sequence) {
                    held.expired = true;
                }
            }
            PublicationEvent::Fact(PublicationFact::Resumed(_)) => {}
            PublicationEvent::Fact(PublicationFact::Discarded(discarded)) => {
                discarded.sequences.iter().for_each(|sequence| self.forget(*sequence));
                self.last = self.last.max(discarded.next.saturating_sub(1));
            }
        }
    }

    fn timers(&self, event: &PublicationEvent) -> Vec<TimerChange> {
        let PublicationEvent::Fact(_) = event else { return Vec::new() };
        let name = GAP.to_owned();
        vec![match self.due() {
            Some(at) => TimerChange::Set { name, at },
            None => TimerChange::Clear { name },
        }]
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<PublicationCommand> {
        (name == GAP).then_some(PublicationCommand::Expire { now })
    }
}

#[cfg(test)]
mod tests;
