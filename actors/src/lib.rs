//! The runtime under Souk.
#![warn(missing_docs)]

pub mod aggregate;
pub mod event;
pub mod command;
pub mod faults;
pub mod id;
pub mod journal;
pub mod personal;
pub mod retry;
pub mod saga;
#[cfg(feature = "testing")]
pub mod testing;
pub mod world;
