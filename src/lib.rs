//! Souk, an actor-model marketplace service.
#![warn(missing_docs)]

pub mod cli;
pub mod config;
pub mod domain;
pub mod http;
pub mod identity;
pub mod projections;
pub mod telemetry;
