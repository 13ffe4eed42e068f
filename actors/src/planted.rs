//! Bugs planted on purpose, to see that the simulation catches them.
//!
//! Each is a small deviation at the true place in the runtime, asked for by one runtime at its
//! start. Without the feature `planted-bugs` the question is a constant `false` and nothing of it
//! is compiled.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// Replies are released before the batch is appended.
    AcknowledgeBeforeCommit = 1,
    /// A lane's checkpoint covers the event that is being handled.
    CheckpointBeforeEffect,
    /// The last entry of a batch of several is settled and not stored.
    ForgetLastOfBatch,
    /// An outcome is stored after its events, not with them.
    DeduplicateAfterCommit,
    /// The replies of a batch are released from the last to the first.
    ReplyOutOfOrder,
    /// A slot that is live starts another actor all the same.
    TwoActors,
    /// A new life starts from the snapshot, without the events after it.
    RestartWithoutReplay,
    /// A new life does not wait for the entries of the one before.
    RestartWithoutWaiting,
    /// A letter is kept, and what follows it passes.
    FollowersPass,
    /// What was due before the start is not fired.
    TimerLostOnRestart,
    /// A step of unknown outcome is not undone.
    UnknownNotUndone,
    /// An append of unknown outcome counts as failed.
    UnknownIsFailed,
    /// An append is stored though its lease is gone.
    EpochUnchecked,
    /// All lanes resume where the foremost was.
    LanesResumeAhead,
    /// A snapshot says that it is one version further than its state.
    SnapshotVersionOff,
    /// A read does not wait for what it shows.
    ReadBeforeDurable,
    /// A projection's page that fails is passed over.
    PageSkipped,
    /// Letters do not hold their key up after a restart.
    LettersForgotten,
    /// All streams count as known, and those from before the start were not read.
    StreamsForgotten,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::AcknowledgeBeforeCommit,
        Self::CheckpointBeforeEffect,
        Self::ForgetLastOfBatch,
        Self::DeduplicateAfterCommit,
        Self::ReplyOutOfOrder,
        Self::TwoActors,
        Self::RestartWithoutReplay,
        Self::RestartWithoutWaiting,
        Self::FollowersPass,
        Self::TimerLostOnRestart,
        Self::UnknownNotUndone,
        Self::UnknownIsFailed,
        Self::EpochUnchecked,
        Self::LanesResumeAhead,
        Self::SnapshotVersionOff,
        Self::ReadBeforeDurable,
        Self::PageSkipped,
        Self::LettersForgotten,
        Self::StreamsForgotten,
    ];

    /// Its name on a command line (`acknowledge-before-commit`).
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.extend(letter.to_lowercase());
        }
        name
    }

    /// The bug of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

/// Which bug is planted, if any.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: std::sync::atomic::AtomicU8,
}

impl Planted {
    /// Plants a bug, instead of any other.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn plant(&self, bug: Bug) {
        self.bug.store(bug as u8, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether it is this one.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn is(&self, bug: Bug) -> bool {
        self.bug.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
    }

    /// Never.
    #[cfg(not(feature = "planted-bugs"))]
    #[inline]
    #[expect(clippy::unused_self, reason = "with the feature it is used")]
    pub(crate) const fn is(&self, _bug: Bug) -> bool {
        false
    }
}
