//! Souk, an actor-model marketplace service.
#![warn(missing_docs)]

pub mod alerts;
pub mod app;
pub mod audit;
#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "chaos")]
pub mod chaos;
pub mod cli;
pub mod cloudevents;
pub mod config;
pub mod disk;
pub mod domain;
mod files;
mod gate;
pub mod gateways;
pub mod http;
pub mod identity;
pub mod images;
pub mod memory;
#[cfg(feature = "chaos")]
pub mod points;
pub mod projections;
pub mod schemas;
pub mod serve;
pub mod subscribers;
pub mod telemetry;
pub mod tls;
