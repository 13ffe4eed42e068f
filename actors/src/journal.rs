//! Placeholder for the journal until the real one lands.

/// Why the journal could not answer.
#[derive(Debug, thiserror::Error)]
#[error("journal: {0}")]
pub struct Error(pub String);
