//! Souk, an actor-model marketplace service.

pub mod domain;
