//! The marketplace: pure functions over plain data.
//!
//! Every aggregate has a file of its own with its commands, events, rejections and state. Nothing
//! here waits, asks for the time, draws a random number or knows a database: what a decision needs
//! from outside is looked up first and travels in the command, and so does who asks.
//!
//! Three rules hold for every aggregate:
//!
//! - **Twice is once.** A command that asks for what is already so is accepted and changes nothing.
//! - **An undo may overtake what it undoes.** It then leaves a mark, and the late command is
//!   refused.
//! - **State before anything happened is `Default`.** What exists only afterwards is in `details`.
#![warn(missing_docs)]

pub mod activity;
pub mod alert;
pub mod announcement;
pub mod caller;
pub mod category;
pub mod email_claim;
pub mod engagement;
pub mod escrow;
pub mod event_source;
pub mod event_type;
pub mod ids;
pub mod interest;
pub mod listing;
pub mod loyalty;
pub mod money;
pub mod notification;
pub mod order;
pub mod order_progress;
pub mod order_saga;
pub mod payment;
pub mod preferences;
pub mod projection_care;
pub mod promotion;
pub mod publication;
pub mod registry;
mod rejection;
pub mod reporting;
pub mod review;
pub mod search_entry;
pub mod seller_account;
pub mod service;
pub mod service_token;
pub mod session;
pub mod shipment;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;
pub mod topics;
pub mod user;
pub mod webhook_delivery;
pub mod webhook_endpoint;
pub mod words;
