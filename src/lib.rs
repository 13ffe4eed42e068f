//! Souk, an actor-model marketplace service.

pub mod app;
pub mod domain;
pub mod gateways;
pub mod projections;
pub mod subscribers;
