//! Souk: an actor-model marketplace service.
#![warn(missing_docs)]

pub mod config;
pub mod projections;
pub mod telemetry;
