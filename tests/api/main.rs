//! Black-box tests: the real program, through its HTTP API and its command line.
//!
//! One module a capability; `support` is what all of them start from. Comments name the rows of the
//! requirements that a test stands for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

mod address_book;
mod after_sales;
mod aggregates;
mod analytics;
mod api_keys;
mod audit;
mod backup;
#[cfg(feature = "bench")]
mod bench;
mod commands;
mod connections;
mod consistency;
mod conventions;
mod corruption;
mod crash;
mod database;
mod dead_letters;
mod delivery;
mod disk;
mod documents;
mod duplicates;
mod durability;
mod engagement;
mod erasure;
mod escalations;
mod event_store;
mod explain;
mod failures;
mod followers;
mod images;
mod journal_copy;
mod limits;
#[cfg(feature = "chaos")]
mod linearizability;
mod listings;
mod loyalty;
mod mail_providers;
mod momo;
mod momo_storm;
mod monitoring;
mod mutations;
mod notifications;
mod overload;
mod passwords;
mod permissions;
mod preferences;
mod program;
mod projections;
mod promotions;
mod publishing;
mod purchases;
mod registration;
mod replays;
mod reports;
mod reviews;
mod sagas;
mod scopes;
mod search;
mod sellers;
mod sessions;
mod sms;
mod standing;
mod stream;
mod tls;
mod tracing;
mod walks;
mod webhooks;
