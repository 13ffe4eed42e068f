//! What every test starts from: the real program in a folder of its own, and clients that do what
//! clients do.
//!
//! ```text
//!   test ──▶ Server ──starts──▶ souk (port 0, temporary folder or database)
//!    │         └── admin(), visitor() ──▶ Client ──HTTP──▶ souk
//!    └──▶ people and the market: register, buyer, seller, listing, order, events …
//! ```
//!
//! With `SOUK_TEST_STORE=postgres` all servers work on databases of one PostgreSQL that the tests
//! start; otherwise on files.
//!
//! Nothing sleeps for a fixed time: [`eventually`] waits for a condition, up to a deadline that a
//! slow machine does not meet by accident. Orderly tests end with [`Server::finish`], which fails
//! when a dead letter is left behind.

pub mod certificates;
mod client;
mod disk;
mod events;
pub mod http2;
mod journal;
mod load;
mod market;
pub mod momo;
mod operations;
mod people;
mod raw;
pub mod s3;
mod server;
mod strace;
mod stream;

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

pub use client::{Answer, Client};
pub use disk::SmallDisk;
pub use events::{data_of, position, types_of};
pub use journal::Stored;
pub use load::{Load, Outcome, percentile};
pub use market::{Order, PRICE, Sale, address, order_of, wish};
pub use operations::{Operation, Things};
pub use people::{Person, business, somebody};
pub use raw::{RawAnswer, RawClient};
pub use server::{Command, Ended, Server, Start, on_postgres};
pub use strace::{Call, Fault, Trace};
pub use stream::{Stream, Told};

/// How long a condition may take to come true. Far longer than it does, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in time: `what` says what was waited for.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Does the same `times` times at once.
pub async fn parallel<T, F>(times: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T>,
{
    let mut all: Vec<_> = (0..times).map(|index| Box::pin(work(index))).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (work, done) in all.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
