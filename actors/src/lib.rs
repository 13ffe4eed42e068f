//! The runtime under Souk.
#![warn(missing_docs)]

pub mod aggregate;
pub mod event;
pub mod id;
pub mod personal;
pub mod saga;
#[cfg(feature = "testing")]
pub mod testing;
pub mod world;
