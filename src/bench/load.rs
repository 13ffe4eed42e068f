//! HTTP/1.1 connections, each of which sends a request and waits for the answer. In a closed loop it
//! then goes on at once; with a rate the requests are due at fixed times, and a time counts from when
//! its request was due: a server that stands still is not spared the requests that it kept back.
//! What is late is sent all the same, for as long again as the run takes; what is still not sent then
//! counts with the time that it has waited.
//!
//! It is as light as can be, because it shares the machine with what it measures: requests are
//! patched into a prepared text, an answer is read only as far as its status, its length and the
//! end of its body, and one thread serves all connections.
//!
//! What asks in another way than HTTP is a [`Line`] of its own, and the rest is the same.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::progress::{self, Seen};
pub use super::tally::{Asked, Judged, Outcome};
use super::tally::{Counted, MICROS_MAX};
pub use super::wire::Answer;
use super::wire::Incoming;

/// How many slices the time that counts is cut into, at most.
const SLICES_MAX: u32 = 240;
/// The shortest slice.
const SLICE_MIN: Duration = Duration::from_millis(100);
/// Nobody runs for longer.
const FOREVER: Duration = Duration::from_secs(24 * 3_600);

/// What is sent, and what is made of the answers.
pub trait Script: Send + Sync + 'static {
    /// The kinds of request there are.
    fn kinds(&self) -> Vec<&'static str> {
        vec!["request"]
    }

    /// How many aggregates are asked by number.
    fn aggregates(&self) -> usize {
        0
    }

    /// Writes the whole request with this number, head and body, into `out`, which is empty.
    fn request(&self, number: u64, out: &mut Vec<u8>) -> Asked;

    /// What an answer is worth.
    fn answer(&self, _asked: &Asked, answer: &Answer<'_>) -> Judged {
        if answer.status < 300 { Judged::GOOD } else { Judged::BAD }
    }
}

/// A way to whoever answers: one request at a time.
pub(super) trait Line: Send + 'static {
    /// What the request with this number asks.
    fn prepare(&mut self, number: u64) -> Asked;

    /// Asks it. Returns the status of the answer and what that is worth.
    fn answer(
        &mut self,
        asked: Asked,
    ) -> impl Future<Output = anyhow::Result<(u16, Judged)>> + Send;
}

/// How many kinds of request there are, and how many aggregates are asked by number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) kinds: usize,
    pub(super) aggregates: usize,
}

impl Shape {
    pub(super) fn of(script: &dyn Script) -> Self {
        Self { kinds: script.kinds().len(), aggregates: script.aggregates() }
    }
}

/// How much is asked at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Connections at the same time.
    pub connections: usize,
    /// Threads that serve them.
    pub threads: usize,
    /// When it ends.
    pub until: Until,
    /// How many requests are due a second, on all connections together; none: a closed loop.
    pub rate: Option<f64>,
    /// What it is called for whoever watches; none: nobody is told.
    pub name: Option<&'static str>,
}

/// When a run ends. Requests under way are finished and counted, but not timed.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After so long; a fifth of it more goes before and is not timed.
    Elapsed(Duration),
    /// When so many requests are answered.
    Answered(u64),
}

struct Run {
    shape: Shape,
    next: AtomicU64,
    last: u64,
    began: Instant,
    rate: Option<f64>,
    counts_from: Instant,
    ends: Instant,
    slice: Duration,
    seen: Seen,
}

impl Run {
    fn new(load: &Load, shape: Shape) -> Self {
        let began = Instant::now();
        let (last, counts_from, time) = match load.until {
            Until::Elapsed(time) => (u64::MAX, began + time / 5, time),
            Until::Answered(count) => (count, began, FOREVER),
        };
        let slice = match load.until {
            Until::Elapsed(time) => (time / SLICES_MAX).max(SLICE_MIN),
            Until::Answered(_) => FOREVER / SLICES_MAX,
        };
        Self {
            shape,
            next: AtomicU64::new(0),
            last,
            began,
            rate: load.rate,
            counts_from,
            ends: counts_from + time,
            slice,
            seen: Seen::default(),
        }
    }

    fn outcome(&self) -> anyhow::Result<Outcome> {
        Outcome::new(self.shape.kinds, self.shape.aggregates)
    }

    /// When a request is due; none: at once.
    fn due(&self, number: u64) -> Option<Instant> {
        #[expect(clippy::cast_precision_loss, reason = "some millions at most")]
        self.rate.map(|rate| self.began + Duration::from_secs_f64(number as f64 / rate))
    }

    fn counts(&self, at: Instant) -> bool {
        at >= self.counts_from && at < self.ends
    }

    /// The slice of time that an instant is in.
    fn slice_of(&self, at: Instant) -> Option<usize> {
        let within = self.counts(at).then(|| at - self.counts_from)?;
        usize::try_from(within.as_micros() / self.slice.as_micros().max(1)).ok()
    }

    /// Until when late requests are sent.
    fn gives_up(&self) -> Instant {
        self.ends + (self.ends - self.began)
    }
}

/// Runs the script against `address`, on threads of its own.
pub async fn run(
    address: SocketAddr,
    load: Load,
    script: Arc<dyn Script>,
) -> anyhow::Result<Outcome> {
    let run = Arc::new(Run::new(&load, Shape::of(&*script)));
    let threads = load.threads.clamp(1, load.connections);
    let parts = (0..threads).map(|thread| {
        let more = usize::from(thread < load.connections % threads);
        let (share, run, script) = (load.connections / threads + more, run.clone(), script.clone());
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let lines = (0..share).map(|_| Wire::open(address, script.clone()));
            runtime.block_on(lines_of(lines, &run))
        })
    });
    whole(&load, &run, parts.collect()).await
}

/// The same on these lines, by tasks beside those that answer.
pub(super) async fn run_on(
    load: Load,
    lines: Vec<impl Line>,
    shape: Shape,
) -> anyhow::Result<Outcome> {
    let run = Arc::new(Run::new(&load, shape));
    let part = run.clone();
    let lines = lines.into_iter().map(|line| std::future::ready(Ok(line)));
    let part = tokio::spawn(async move { lines_of(lines, &part).await });
    whole(&load, &run, vec![part]).await
}

/// Waits for all parts, and shows meanwhile how they go.
async fn whole(
    load: &Load,
    run: &Arc<Run>,
    parts: Vec<JoinHandle<anyhow::Result<Outcome>>>,
) -> anyhow::Result<Outcome> {
    let mut whole = run.outcome()?;
    let watched = run.clone();
    let total = match load.until {
        Until::Elapsed(_) => Some(run.ends - run.began),
        Until::Answered(_) => None,
    };
    let shown = load
        .name
        .map(|name| tokio::spawn(async move { progress::show(name, total, &watched.seen).await }));
    let mut done = Ok(());
    for part in parts {
        let part = part.await.context("a thread of the load ended")?;
        // The others are waited for all the same: nothing is to go on behind an error.
        done = done.and_then(|()| whole.add(&part?));
    }
    if let Some(shown) = shown {
        run.seen.end();
        shown.await.context("the progress line ended")?;
    }
    done?;
    whole.slice = run.slice;
    whole.over = match load.until {
        Until::Elapsed(time) => time,
        Until::Answered(_) => run.began.elapsed(),
    };
    Ok(whole)
}

/// Asks on all lines at the same time.
async fn lines_of<L: Line>(
    lines: impl Iterator<Item = impl Future<Output = anyhow::Result<L>> + Send + 'static>,
    run: &Arc<Run>,
) -> anyhow::Result<Outcome> {
    let tally = Arc::new(Mutex::new(run.outcome()?));
    let mut all = JoinSet::new();
    for line in lines {
        let (run, tally) = (run.clone(), tally.clone());
        all.spawn(async move { ask(line.await?, &run, &tally).await });
    }
    while let Some(ended) = all.join_next().await {
        ended.context("a connection's loop ended")??;
    }
    drop(all);
    let tally = Arc::into_inner(tally).context("all loops have ended")?;
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn locked(tally: &Mutex<Outcome>) -> MutexGuard<'_, Outcome> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection.
struct Wire {
    stream: TcpStream,
    script: Arc<dyn Script>,
    request: Vec<u8>,
    incoming: Incoming,
}

impl Wire {
    async fn open(address: SocketAddr, script: Arc<dyn Script>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("the server does not listen")?;
        stream.set_nodelay(true)?;
        let (request, incoming) = (Vec::with_capacity(1_024), Incoming::default());
        Ok(Self { stream, script, request, incoming })
    }
}

impl Line for Wire {
    fn prepare(&mut self, number: u64) -> Asked {
        self.request.clear();
        self.script.request(number, &mut self.request)
    }

    async fn answer(&mut self, asked: Asked) -> anyhow::Result<(u16, Judged)> {
        self.stream.write_all(&self.request).await.context("a request could not be sent")?;
        let answer = self.incoming.next(&mut self.stream).await?;
        Ok((answer.status, self.script.answer(&asked, &answer)))
    }
}

async fn ask(mut line: impl Line, run: &Run, tally: &Mutex<Outcome>) -> anyhow::Result<()> {
    let mut sent = Instant::now();
    loop {
        let number = run.next.fetch_add(1, Ordering::Relaxed);
        if number >= run.last {
            break;
        }
        if let Some(due) = run.due(number) {
            if due >= run.ends {
                break;
            }
            tokio::time::sleep_until(due.into()).await;
            sent = due;
            if !in_time(run, due, tally) {
                continue;
            }
        }
        let asked = line.prepare(number);
        let floor = locked(tally).version(asked.aggregate);
        let (status, judged) = line.answer(asked).await?;
        let now = Instant::now();
        let micros = micros(now - sent);
        run.seen.note(judged.accepted, judged.units, micros);
        let is_timed = run.counts(if run.rate.is_some() { sent } else { now });
        let slice = run.slice_of(now);
        let counted = Counted { asked, judged, status, micros, floor, slice, is_timed };
        locked(tally).count(&counted)?;
        sent = now;
        if run.rate.is_none() && now >= run.ends {
            break;
        }
    }
    Ok(())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(MICROS_MAX)
}

/// Whether a request is still to be sent. If not, it counts with what it has waited.
fn in_time(run: &Run, due: Instant, tally: &Mutex<Outcome>) -> bool {
    let now = Instant::now();
    let late = now.saturating_duration_since(due);
    let mut tally = locked(tally);
    if run.counts(due) {
        tally.late_max = tally.late_max.max(late);
    }
    if now < run.gives_up() {
        return true;
    }
    tally.unsent += 1;
    if run.counts(due) {
        tally.latencies.saturating_record(micros(late));
    }
    false
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    struct Knock;

    impl Script for Knock {
        fn request(&self, _number: u64, out: &mut Vec<u8>) -> Asked {
            out.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
            Asked::default()
        }
    }

    /// A server that answers at once, except that from its `stall_at`th request on it stands still
    /// for `stall`, once.
    async fn server(stall_at: u64, stall: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (count, until) = (Arc::new(AtomicU64::new(0)), Arc::new(std::sync::OnceLock::new()));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (count, until) = (count.clone(), until.clone());
                tokio::spawn(async move {
                    let mut bytes = [0; 256];
                    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                        if count.fetch_add(1, Ordering::Relaxed) >= stall_at {
                            let now = tokio::time::Instant::now();
                            let until = *until.get_or_init(|| now + stall);
                            tokio::time::sleep_until(until).await;
                        }
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        if stream.write_all(answer).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn load(rate: Option<f64>) -> Load {
        let until = Until::Elapsed(Duration::from_secs(1));
        Load { connections: 4, threads: 1, until, rate, name: None }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_a_rate_a_stall_shows_in_every_request_that_was_due_meanwhile() {
        let stall = Duration::from_millis(200);
        let address = server(200, stall).await;
        let open = run(address, load(Some(500.0)), Arc::new(Knock)).await.unwrap();
        assert_eq!(open.refused, 0);
        assert_eq!(open.accepted + open.unsent, 600, "one for each due time, none left out");
        // A hundred were due in those 200 ms, and half of them waited for more than half of it.
        assert!(open.over_micros(100_000) >= 40, "{}", open.over_micros(100_000));
        assert!(open.latencies.value_at_quantile(0.99) >= 100_000);
        assert!(open.late_max >= Duration::from_millis(100));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_sent_in_time_counts_with_what_it_waited() {
        let address = server(50, Duration::from_secs(4)).await;
        let open = run(address, load(Some(200.0)), Arc::new(Knock)).await.unwrap();
        assert_eq!(open.accepted + open.unsent, 240);
        assert!(open.unsent >= 100, "{}", open.unsent);
        assert!(open.latencies.value_at_quantile(0.5) >= 1_000_000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_number_of_requests_is_kept_to() {
        let address = server(u64::MAX, Duration::ZERO).await;
        let until = Until::Answered(1_000);
        let load = Load { connections: 7, threads: 2, until, rate: None, name: Some("knocking") };
        let outcome = run(address, load, Arc::new(Knock)).await.unwrap();
        assert_eq!((outcome.accepted, outcome.refused), (1_000, 0));
        assert_eq!(outcome.kinds[0].accepted, 1_000);
        assert_eq!(outcome.slices.iter().map(|slice| slice.units).sum::<u64>(), outcome.timed);
    }

    /// Says the next version each time, and asks nobody.
    struct Counting(Arc<AtomicU64>);

    impl Line for Counting {
        fn prepare(&mut self, _number: u64) -> Asked {
            Asked { aggregate: Some(0), changes: true, ..Asked::default() }
        }

        async fn answer(&mut self, _asked: Asked) -> anyhow::Result<(u16, Judged)> {
            let version = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::task::yield_now().await;
            Ok((200, Judged { version: Some(version), ..Judged::GOOD }))
        }
    }

    /// Says the same version each time.
    struct Stuck;

    impl Line for Stuck {
        fn prepare(&mut self, _number: u64) -> Asked {
            Asked { aggregate: Some(0), changes: true, ..Asked::default() }
        }

        async fn answer(&mut self, _asked: Asked) -> anyhow::Result<(u16, Judged)> {
            Ok((200, Judged { version: Some(1), ..Judged::GOOD }))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lines_of_another_kind_are_counted_together_and_held_to_their_versions() {
        let version = Arc::<AtomicU64>::default();
        let lines: Vec<_> = (0..5).map(|_| Counting(version.clone())).collect();
        let (until, shape) = (Until::Answered(1_000), Shape { kinds: 1, aggregates: 1 });
        let load = Load { connections: 5, threads: 1, until, rate: None, name: None };
        let outcome = run_on(load, lines, shape).await.unwrap();
        assert_eq!((outcome.accepted, outcome.versions, outcome.out_of_order), (1_000, 1_000, 0));
        assert_eq!(outcome.version(Some(0)), 1_000);
        let outcome = run_on(load, vec![Stuck], shape).await.unwrap();
        assert_eq!(outcome.out_of_order, 999, "only the first raised the version");
    }
}
