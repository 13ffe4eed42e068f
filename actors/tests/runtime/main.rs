//! The runtime's promises, on a small aggregate: an account.
#![allow(clippy::unwrap_used, reason = "tests")]

mod account;
mod aggregates;
mod copies;
mod corruption;
mod decoders;
mod delivery;
mod journal;
mod overload;
mod postgres;
mod proxy;
mod replays;
mod sagas;
mod states;
mod steering;
mod structure;
mod upcasting;
