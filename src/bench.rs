//! `souk bench`: how fast this build is on this machine, measured by the program itself.
//!
//! ```text
//!   Server (a child process) ◀── HTTP/1.1, keep-alive ── load (threads of this process)
//!      └── journal ◀── heads, before and after each phase ── truth
//!   raw: the same kind of journal, batches of ready events, nothing else
//! ```
//!
//! Every figure is a ratio's half: the echo, the commands and the raw inserts run one after the
//! other on the same machine, and each phase is checked against the journal, so that a fast answer
//! that stored nothing is an error and not a record. Behind the feature `bench`: no delivered
//! program carries it.

pub mod http;
pub mod load;
pub mod report;
pub mod server;
