//! What people did with a subscription: an aggregate with a stream of its own, so that every pause
//! and every letter that was worked is in the journal, with who asked for it and why.
//!
//! Whether a subscription is paused, what was set for it and what is being replayed are control rows, written in the transaction
//! of the event. A request to work letters is recorded before it is carried out.

pub mod letters;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::aggregate::{Aggregate, Command, NoRejection};
use crate::retry::RetryPolicy;
use crate::world::Timestamp;

/// A subscription was paused or went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Switched {
    /// The subscription.
    pub subscription: String,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// A retry policy as people set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetrySettings {
    /// How many times after the first try.
    pub max_retries: u32,
    /// The first wait, in milliseconds.
    pub delay_ms: u64,
    /// Whether each wait is twice the one before.
    pub exponential_backoff: bool,
    /// No wait is longer, in milliseconds.
    pub max_delay_ms: u64,
}

impl RetrySettings {
    /// The policy that this makes of the declared one, whose jitter it keeps.
    pub fn over(&self, declared: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_retries: self.max_retries,
            retry_delay: std::time::Duration::from_millis(self.delay_ms),
            exponential_backoff: self.exponential_backoff,
            max_retry_delay: std::time::Duration::from_millis(self.max_delay_ms),
            jitter: declared.jitter,
        }
    }
}

impl From<&RetryPolicy> for RetrySettings {
    fn from(policy: &RetryPolicy) -> Self {
        let millis = |delay: std::time::Duration| u64::try_from(delay.as_millis());
        Self {
            max_retries: policy.max_retries,
            delay_ms: millis(policy.retry_delay).unwrap_or(u64::MAX),
            exponential_backoff: policy.exponential_backoff,
            max_delay_ms: millis(policy.max_retry_delay).unwrap_or(u64::MAX),
        }
    }
}

/// A subscription's retry policy was set, or is the declared one again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryPolicyChanged {
    /// The subscription.
    pub subscription: String,
    /// What was set before; none: nothing.
    pub old: Option<RetrySettings>,
    /// What is set now; none: what the subscription was declared with.
    pub new: Option<RetrySettings>,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// The time limit for an attempt was set, or is the declared one again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerTimeoutChanged {
    /// The subscription.
    pub subscription: String,
    /// What was set before, in milliseconds; none: nothing.
    pub old_ms: Option<u64>,
    /// What is set now, in milliseconds; none: what the subscription was declared with.
    pub new_ms: Option<u64>,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Somebody asked for a key's letters to be worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LettersWorked {
    /// The subscription.
    pub subscription: String,
    /// The partition of the letters.
    pub partition: u16,
    /// Their key.
    pub key: Uuid,
    /// The position of the letter that was meant; none: the first of the key.
    #[serde(default)]
    pub position: Option<u64>,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// A subscription's letters have used their room up in a partition, or there is room again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LettersBound {
    /// The subscription.
    pub subscription: String,
    /// The partition.
    pub partition: u16,
    /// How many letters there are.
    pub letters: u64,
    /// How many there may be.
    pub letters_max: u64,
    /// When.
    pub at: Timestamp,
}

/// A stretch of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayRange {
    /// The partition.
    pub partition: u16,
    /// Behind this position.
    pub after: u64,
    /// Up to this one. Nothing, if it is not behind `after`.
    pub last: u64,
}

impl ReplayRange {
    /// How many positions it has.
    pub fn positions(&self) -> u64 {
        self.last.saturating_sub(self.after)
    }
}

/// Somebody asked for events to be delivered once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayRequested {
    /// The subscription.
    pub subscription: String,
    /// The replay.
    pub replay_id: Uuid,
    /// Who: a user's id.
    pub by: String,
    /// Of which positions: of each partition, at most what was handled when it was asked for.
    pub ranges: Vec<ReplayRange>,
    /// Of events from this time on.
    pub from: Option<Timestamp>,
    /// Of events before this time.
    pub to: Option<Timestamp>,
    /// What an event must be like, beyond what the subscription asks of it.
    pub filter: Option<String>,
    /// How many events a second at most.
    pub events_per_second: u32,
    /// Why, in the words of who did it.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What a replay has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayCounts {
    /// Positions looked at.
    pub read: u64,
    /// Events that their handler took once more.
    pub redelivered: u64,
    /// How many of those led to nothing new: all of it was done before.
    pub duplicates: u64,
    /// Events that their handler could not take: dead letters.
    pub failed: u64,
    /// Events that were left to the dead letters: they are letters, or wait behind one of their key.
    pub held: u64,
}

impl std::ops::AddAssign for ReplayCounts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.redelivered += other.redelivered;
        self.duplicates += other.duplicates;
        self.failed += other.failed;
        self.held += other.held;
    }
}

/// A replay is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayEnded {
    /// The subscription.
    pub subscription: String,
    /// The replay.
    pub replay_id: Uuid,
    /// Who ended it: a user's id, or `system`.
    pub by: String,
    /// What it came to.
    pub counts: ReplayCounts,
    /// Why, in the words of who ended it, or of what failed.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// How a replay stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// It goes on, also after a restart.
    Running,
    /// Everything was delivered once more.
    Completed,
    /// Somebody ended it.
    Cancelled,
    /// It cannot go on.
    Failed,
}

/// A replay, as its subscription remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// What was asked for.
    pub requested: ReplayRequested,
    /// How it stands.
    pub state: ReplayState,
    /// How it ended, if it has.
    pub ended: Option<ReplayEnded>,
}

/// How many replays a subscription remembers.
const REPLAYS_MAX: usize = 20;

crate::events! {
    /// What people did with subscriptions. Who is in the metadata.
    pub enum SubscriptionEvent in "system" as "system-service" {
        /// It stands still from here on.
        Paused(Switched) = "subscription.paused", "SubscriptionPaused", 1.0, [];
        /// It goes on.
        Resumed(Switched) = "subscription.resumed", "SubscriptionResumed", 1.0, [];
        /// A key's letters are to be tried again.
        RetryRequested(LettersWorked) = "subscription.retry_requested", "SubscriptionRetryRequested", 1.1, [];
        /// A key's first letter is to be dropped.
        DiscardRequested(LettersWorked) = "subscription.discard_requested", "SubscriptionDiscardRequested", 1.1, [];
        /// Its retry policy is another one.
        RetryPolicyChanged(RetryPolicyChanged) = "subscription.retry_policy_changed", "SubscriptionRetryPolicyChanged", 1.0, [];
        /// Its time limit for an attempt is another one.
        HandlerTimeoutChanged(HandlerTimeoutChanged) = "subscription.handler_timeout_changed", "SubscriptionHandlerTimeoutChanged", 1.0, [];
        /// A letter is to be set aside, and what waits behind it goes on.
        SkipRequested(LettersWorked) = "subscription.skip_requested", "SubscriptionSkipRequested", 1.0, [];
        /// It stands still in a partition: there is no room for another letter.
        DlqFilled(LettersBound) = "subscription.dlq_filled", "SubscriptionDlqFilled", 1.0, [];
        /// There is room again, and it goes on by itself.
        DlqRelieved(LettersBound) = "subscription.dlq_relieved", "SubscriptionDlqRelieved", 1.0, [];
        /// Events are to be delivered once more.
        ReplayRequested(ReplayRequested) = "subscription.replay_requested", "SubscriptionReplayRequested", 1.0, [];
        /// All of them were.
        ReplayCompleted(ReplayEnded) = "subscription.replay_completed", "SubscriptionReplayCompleted", 1.0, [];
        /// No more of them will be: somebody ended it.
        ReplayCancelled(ReplayEnded) = "subscription.replay_cancelled", "SubscriptionReplayCancelled", 1.0, [];
        /// No more of them can be.
        ReplayFailed(ReplayEnded) = "subscription.replay_failed", "SubscriptionReplayFailed", 1.0, [];
    }
}

/// What somebody does.
#[derive(Debug, Clone)]
pub enum OversightCommand {
    /// Pause it.
    Pause(Switched),
    /// Let it go on.
    Resume(Switched),
    /// Try letters again.
    Retry(LettersWorked),
    /// Drop a letter.
    Discard(LettersWorked),
    /// Have this retry policy; what was before is filled in.
    SetRetryPolicy(RetryPolicyChanged),
    /// Have this time limit; what was before is filled in.
    SetHandlerTimeout(HandlerTimeoutChanged),
    /// Set a letter aside.
    Skip(LettersWorked),
    /// Its letters have used their room up.
    Fill(LettersBound),
    /// There is room again.
    Relieve(LettersBound),
    /// Deliver events once more, unless a replay is running already.
    Replay(ReplayRequested),
    /// The running replay has ended so.
    EndReplay(ReplayState, ReplayEnded),
}

impl Command for OversightCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Pause(_) => "PauseSubscription",
            Self::Resume(_) => "ResumeSubscription",
            Self::Retry(_) => "RetryLetters",
            Self::Discard(_) => "DiscardLetter",
            Self::SetRetryPolicy(_) => "SetRetryPolicy",
            Self::SetHandlerTimeout(_) => "SetHandlerTimeout",
            Self::Skip(_) => "SkipLetter",
            Self::Fill(_) => "FillDlq",
            Self::Relieve(_) => "RelieveDlq",
            Self::Replay(_) => "RequestReplay",
            Self::EndReplay(..) => "EndReplay",
        }
    }
}

/// A subscription, as far as people steer it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Oversight {
    /// Whether it is paused.
    pub paused: bool,
    /// The retry policy that was set, if one was.
    #[serde(default)]
    pub retry: Option<RetrySettings>,
    /// The time limit that was set, in milliseconds, if one was.
    #[serde(default)]
    pub handler_timeout_ms: Option<u64>,
    /// Its replays, the newest last. Only that one may be running.
    #[serde(default)]
    pub replays: Vec<Replay>,
}

impl Oversight {
    /// A replay, as long as it is remembered.
    pub fn replay(&self, id: Uuid) -> Option<&Replay> {
        self.replays.iter().find(|replay| replay.requested.replay_id == id)
    }

    /// The replay that is running.
    pub fn running_replay(&self) -> Option<&Replay> {
        self.replays.last().filter(|replay| replay.state == ReplayState::Running)
    }

    fn end_replay(&mut self, state: ReplayState, ended: &ReplayEnded) {
        let is_meant = |of: &&mut Replay| of.requested.replay_id == ended.replay_id;
        if let Some(replay) = self.replays.iter_mut().find(is_meant) {
            (replay.state, replay.ended) = (state, Some(ended.clone()));
        }
    }

    /// The id of a subscription's stream.
    pub fn id_of(subscription: &str) -> Uuid {
        crate::id::derived("subscription", &[subscription.as_bytes()])
    }
}

impl Aggregate for Oversight {
    const TYPE: &'static str = "subscription";
    const STEERS: bool = true;

    type Command = OversightCommand;
    type Event = SubscriptionEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &OversightCommand) -> Result<Vec<SubscriptionEvent>, NoRejection> {
        Ok(match command {
            OversightCommand::Pause(_) if self.paused => Vec::new(),
            OversightCommand::Resume(_) if !self.paused => Vec::new(),
            OversightCommand::Pause(switched) => vec![SubscriptionEvent::Paused(switched.clone())],
            OversightCommand::Resume(switched) => {
                vec![SubscriptionEvent::Resumed(switched.clone())]
            }
            OversightCommand::Retry(worked) => {
                vec![SubscriptionEvent::RetryRequested(worked.clone())]
            }
            OversightCommand::Discard(worked) => {
                vec![SubscriptionEvent::DiscardRequested(worked.clone())]
            }
            OversightCommand::SetRetryPolicy(change) if change.new == self.retry => Vec::new(),
            OversightCommand::SetRetryPolicy(change) => {
                let old = self.retry.clone();
                let change = RetryPolicyChanged { old, ..change.clone() };
                vec![SubscriptionEvent::RetryPolicyChanged(change)]
            }
            OversightCommand::SetHandlerTimeout(change)
                if change.new_ms == self.handler_timeout_ms =>
            {
                Vec::new()
            }
            OversightCommand::SetHandlerTimeout(change) => {
                let old_ms = self.handler_timeout_ms;
                let change = HandlerTimeoutChanged { old_ms, ..change.clone() };
                vec![SubscriptionEvent::HandlerTimeoutChanged(change)]
            }
            OversightCommand::Skip(worked) => {
                vec![SubscriptionEvent::SkipRequested(worked.clone())]
            }
            OversightCommand::Fill(bound) => vec![SubscriptionEvent::DlqFilled(bound.clone())],
            OversightCommand::Relieve(bound) => {
                vec![SubscriptionEvent::DlqRelieved(bound.clone())]
            }
            OversightCommand::Replay(requested) => {
                let is_known = self.replay(requested.replay_id).is_some();
                match is_known || self.running_replay().is_some() {
                    true => Vec::new(),
                    false => vec![SubscriptionEvent::ReplayRequested(requested.clone())],
                }
            }
            OversightCommand::EndReplay(state, ended) => {
                let running = self.running_replay();
                if running.is_none_or(|of| of.requested.replay_id != ended.replay_id) {
                    return Ok(Vec::new());
                }
                let ended = ended.clone();
                match state {
                    ReplayState::Running => Vec::new(),
                    ReplayState::Completed => vec![SubscriptionEvent::ReplayCompleted(ended)],
                    ReplayState::Cancelled => vec![SubscriptionEvent::ReplayCancelled(ended)],
                    ReplayState::Failed => vec![SubscriptionEvent::ReplayFailed(ended)],
                }
            }
        })
    }

    fn apply(&mut self, event: &SubscriptionEvent) {
        match event {
            SubscriptionEvent::Paused(_) => self.paused = true,
            SubscriptionEvent::Resumed(_) => self.paused = false,
            SubscriptionEvent::RetryPolicyChanged(change) => self.retry.clone_from(&change.new),
            SubscriptionEvent::HandlerTimeoutChanged(change) => {
                self.handler_timeout_ms = change.new_ms;
            }
            SubscriptionEvent::ReplayRequested(requested) => {
                if self.replays.len() >= REPLAYS_MAX {
                    self.replays.remove(0);
                }
                let (requested, state) = (requested.clone(), ReplayState::Running);
                self.replays.push(Replay { requested, state, ended: None });
            }
            SubscriptionEvent::ReplayCompleted(ended) => {
                self.end_replay(ReplayState::Completed, ended);
            }
            SubscriptionEvent::ReplayCancelled(ended) => {
                self.end_replay(ReplayState::Cancelled, ended);
            }
            SubscriptionEvent::ReplayFailed(ended) => self.end_replay(ReplayState::Failed, ended),
            SubscriptionEvent::RetryRequested(_)
            | SubscriptionEvent::DiscardRequested(_)
            | SubscriptionEvent::SkipRequested(_)
            | SubscriptionEvent::DlqFilled(_)
            | SubscriptionEvent::DlqRelieved(_) => {}
        }
    }
}
