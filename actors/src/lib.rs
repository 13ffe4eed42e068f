//! The runtime under Souk.
#![warn(missing_docs)]

pub mod aggregate;
pub mod command;
pub mod event;
pub mod id;
pub mod journal;
pub mod personal;
pub mod runtime;
pub mod saga;
#[cfg(feature = "testing")]
pub mod testing;
pub mod world;
