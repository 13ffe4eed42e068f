//! The runtime under Souk: durable aggregates as supervised actors.
//!
//! ```text
//!            commands                                    events
//!   Runtime ───────────▶ Partition                          ▲
//!                          │ registry ▶ aggregate actor     │
//!                          │              │ entries         │
//!                          │              ▼                 │
//!                          │            writer ▶ Store      │
//!                          │              │ batches         │
//!                          │              ▼                 │
//!                          │            broker ▶ subscriptions ▶ handlers, projections, sagas
//!                          └ timers, dead letters
//! ```
//!
//! The floors, from the ground: `event`, `world`, `id`, `retry`, `circuit`, `personal`, `command`,
//! `filter`, `together`; `journal` (stores, codec, writer); `admission`, `aggregate`, `broker`,
//! `timer`, `dead_letter`; `saga`, `subscriber`; `partition`; `runtime`. Nothing here knows a
//! marketplace.
#![warn(missing_docs)]

pub mod admission;
pub mod aggregate;
pub mod broker;
pub mod circuit;
pub mod command;
pub mod connections;
pub mod crashes;
pub mod custody;
pub mod dead_letter;
pub mod event;
pub mod faults;
pub mod filter;
mod flag;
pub mod hot;
pub mod id;
pub mod journal;
pub mod oversight;
mod partition;
pub mod personal;
pub mod planted;
pub mod retry;
pub mod runtime;
pub mod saga;
pub mod subscriber;
pub mod supervisor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timer;
pub mod together;
pub mod trace;
pub mod world;

pub use partition::OUTCOME_KEPT;
