//! HTTP/1.1 connections, each of which sends a request and waits for the answer. In a closed loop it
//! then goes on at once; with a rate the requests are due at fixed times, and a time counts from when
//! its request was due: a server that stands still is not spared the requests that it kept back.
//!
//! It is as light as can be, because it shares the machine with what it measures: requests are
//! patched into a prepared text, an answer is read only as far as its status, its length and the
//! end of its body, and one thread serves all connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The largest answer that is understood.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// The longest time that is told apart, in microseconds.
const MICROS_MAX: u64 = 60_000_000;

/// What is sent, and what is made of the answers.
pub trait Script: Send + Sync + 'static {
    /// Writes the whole request with this number, head and body, into `out`, which is empty.
    fn request(&self, number: u64, out: &mut Vec<u8>);

    /// Looks at an answer, if it matters beyond its status.
    fn answer(&self, _number: u64, _answer: &Answer<'_>) {}
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// Status line and header fields.
    pub head: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// A header field's value, by its name in lower case.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        field(self.head, name)
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
}

/// When a run ends. Requests under way are finished and counted, but not timed.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After so long; a fifth of it more goes before and is not timed.
    Elapsed(Duration),
    /// When so many requests are answered.
    Answered(u64),
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Answers below 300, timed or not.
    pub accepted: u64,
    /// Other answers.
    pub refused: u64,
    /// The status of the last answer that was refused.
    pub refused_with: Option<u16>,
    /// How many of the refused ones were the server's own failures: 500 and above.
    pub failed: u64,
    /// Accepted answers within the time that counts.
    pub timed: u64,
    /// The time that counts.
    pub over: Duration,
    /// How long those answers took, in microseconds.
    pub latencies: Histogram<u64>,
}

impl Outcome {
    /// Counts another one's answers and times too; the time that counts is that of all together.
    pub fn add(&mut self, part: &Self) -> anyhow::Result<()> {
        self.accepted += part.accepted;
        self.refused += part.refused;
        self.refused_with = self.refused_with.or(part.refused_with);
        self.failed += part.failed;
        self.timed += part.timed;
        self.over += part.over;
        self.latencies.add(&part.latencies).context("the same range")?;
        Ok(())
    }

    /// Accepted answers a second.
    pub fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let timed = self.timed as f64;
        timed / self.over.as_secs_f64()
    }
}

struct Run {
    script: Arc<dyn Script>,
    next: AtomicU64,
    last: u64,
    began: Instant,
    rate: Option<f64>,
    counts_from: Instant,
    ends: Instant,
}

impl Run {
    /// When a request is due; none: at once.
    fn due(&self, number: u64) -> Option<Instant> {
        #[expect(clippy::cast_precision_loss, reason = "some millions at most")]
        self.rate.map(|rate| self.began + Duration::from_secs_f64(number as f64 / rate))
    }
}

/// Runs the script against `address`, on threads of its own.
pub async fn run(
    address: SocketAddr,
    load: Load,
    script: Arc<dyn Script>,
) -> anyhow::Result<Outcome> {
    let Load { connections, threads, until, rate } = load;
    let began = Instant::now();
    let (last, counts_from, ends) = match until {
        Until::Elapsed(time) => (u64::MAX, began + time / 5, began + time / 5 + time),
        Until::Answered(count) => (count, began, began + Duration::from_secs(3_600)),
    };
    let next = AtomicU64::new(0);
    let run = Arc::new(Run { script, next, last, began, rate, counts_from, ends });
    let threads = threads.clamp(1, connections);
    let mut joins = Vec::new();
    for thread in 0..threads {
        let share = connections / threads + usize::from(thread < connections % threads);
        let run = run.clone();
        let body = move || thread_of(address, share, &run);
        joins.push(tokio::task::spawn_blocking(body));
    }
    let mut whole = nothing()?;
    for join in joins {
        let part = join.await.context("a thread of the load ended")??;
        whole.add(&part)?;
    }
    whole.over = match until {
        Until::Elapsed(time) => time,
        Until::Answered(_) => began.elapsed(),
    };
    Ok(whole)
}

/// Nothing yet, to add to.
pub(super) fn nothing() -> anyhow::Result<Outcome> {
    Ok(Outcome {
        accepted: 0,
        refused: 0,
        refused_with: None,
        failed: 0,
        timed: 0,
        over: Duration::ZERO,
        latencies: Histogram::new_with_bounds(1, MICROS_MAX, 3).context("bounds of times")?,
    })
}

fn thread_of(address: SocketAddr, connections: usize, run: &Arc<Run>) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut loops = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let run = run.clone();
            loops.spawn(async move { connection(address, &run).await });
        }
        let mut whole = nothing()?;
        while let Some(ended) = loops.join_next().await {
            let part = ended.context("a connection's loop ended")??;
            whole.add(&part)?;
        }
        Ok(whole)
    })
}

async fn connection(address: SocketAddr, run: &Run) -> anyhow::Result<Outcome> {
    let mut stream = TcpStream::connect(address).await.context("the server does not listen")?;
    stream.set_nodelay(true)?;
    let mut outcome = nothing()?;
    let (mut request, mut answer) = (Vec::with_capacity(1_024), Incoming::default());
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
        }
        request.clear();
        run.script.request(number, &mut request);
        stream.write_all(&request).await.context("a request could not be sent")?;
        let answer = answer.next(&mut stream).await?;
        let now = Instant::now();
        run.script.answer(number, &answer);
        if answer.status < 300 {
            outcome.accepted += 1;
            if now >= run.counts_from && now < run.ends {
                outcome.timed += 1;
                let micros = u64::try_from((now - sent).as_micros()).unwrap_or(MICROS_MAX);
                outcome.latencies.saturating_record(micros);
            }
        } else {
            outcome.refused += 1;
            outcome.refused_with = Some(answer.status);
            outcome.failed += u64::from(answer.status >= 500);
        }
        sent = now;
        if sent >= run.ends {
            break;
        }
    }
    Ok(outcome)
}

/// What has come in on a connection and is not used up.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    used: usize,
}

impl Incoming {
    async fn next(&mut self, stream: &mut TcpStream) -> anyhow::Result<Answer<'_>> {
        self.bytes.drain(..self.used);
        self.used = 0;
        loop {
            if let Some((head, length)) = whole(&self.bytes)? {
                self.used = head + length;
                return Ok(Answer {
                    status: status(&self.bytes)?,
                    head: &self.bytes[..head],
                    body: &self.bytes[head..head + length],
                });
            }
            if self.bytes.len() > ANSWER_BYTES_MAX {
                bail!("an answer is larger than {ANSWER_BYTES_MAX} bytes");
            }
            self.bytes.reserve(4_096);
            if stream.read_buf(&mut self.bytes).await.context("an answer broke off")? == 0 {
                bail!("the server closed a connection in the middle of the run");
            }
        }
    }
}

/// The lengths of head and body, once all of the answer is there.
fn whole(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = end + 4;
    let length = field(&bytes[..head], "content-length").context("an answer without a length")?;
    let length: usize = length.parse().context("an answer's length is a number")?;
    Ok((bytes.len() >= head + length).then_some((head, length)))
}

/// `HTTP/1.1 200 OK`: the three digits.
fn status(bytes: &[u8]) -> anyhow::Result<u16> {
    let digits = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).context("an answer without a status")
}

fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let line = head.split(|byte| *byte == b'\n').find(|line| {
        line.get(name.len()) == Some(&b':')
            && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
    })?;
    std::str::from_utf8(&line[name.len() + 1..]).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once_it_is_whole() {
        let text = b"HTTP/1.1 201 Created\r\nEtag: \"7\"\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1";
        let head = text.len() - "{}HTTP/1.1".len();
        assert_eq!(whole(&text[..head]).unwrap(), None);
        assert_eq!(whole(&text[..head + 1]).unwrap(), None);
        assert_eq!(whole(text).unwrap(), Some((head, 2)));
        assert_eq!(status(text).unwrap(), 201);
        assert_eq!(field(&text[..head], "etag"), Some("\"7\""));
        assert_eq!(field(&text[..head], "content"), None);
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "without a length it never ends");
    }
}
