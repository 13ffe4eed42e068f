//! Open-loop load: requests start when they are due, whatever became of those before them, and time
//! is counted from when they were due. A server that stalls cannot make its own measurement look
//! better by holding the clients up (coordinated omission).

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Answer;

/// How often due requests are looked for; several start at once where the rate is higher.
const TICK: Duration = Duration::from_millis(2);

/// A constant rate for a time.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// For so long.
    pub lasts: Duration,
}

/// What became of one request. Times are counted from the start of the load.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was due.
    pub due: Duration,
    /// When its answer was there.
    pub answered: Duration,
    /// The answer's status; 0: there was none.
    pub status: u16,
    /// Whether the answer says when to come again.
    pub retry_after: bool,
}

impl Sample {
    /// From when it was due to its answer.
    pub fn took(&self) -> Duration {
        self.answered.saturating_sub(self.due)
    }
}

/// What became of a load.
#[derive(Debug)]
pub struct Outcome {
    pub load: Load,
    pub samples: Vec<Sample>,
    /// Why there was no answer, where there was none.
    pub errors: Vec<String>,
}

impl Load {
    /// Runs the load: the request with number `n` is `ask(n)`.
    pub async fn run<F>(self, ask: impl Fn(u64) -> F) -> Outcome
    where
        F: Future<Output = Result<Answer, reqwest::Error>> + Send + 'static,
    {
        let start = Instant::now();
        let mut running = JoinSet::new();
        let (mut samples, mut errors) = (Vec::new(), Vec::new());
        let mut note = |(sample, error): (Sample, Option<String>)| {
            samples.push(sample);
            errors.extend(error);
        };
        let mut tick = tokio::time::interval(TICK);
        let mut next = 0_u64;
        loop {
            let due = Duration::from_secs_f64(next as f64 / self.rate);
            if due >= self.lasts {
                break;
            }
            if start.elapsed() < due {
                tick.tick().await;
                while let Some(done) = running.try_join_next() {
                    note(done.unwrap());
                }
                continue;
            }
            let work = ask(next);
            running.spawn(async move {
                let answer = work.await;
                let answered = start.elapsed();
                let status = answer.as_ref().map_or(0, Answer::status);
                let error = answer.as_ref().err().map(|error| format!("{error:?}"));
                let retry_after =
                    answer.is_ok_and(|answer| !answer.header("retry-after").is_empty());
                (Sample { due, answered, status, retry_after }, error)
            });
            next += 1;
        }
        while let Some(done) = running.join_next().await {
            note(done.unwrap());
        }
        Outcome { load: self, samples, errors }
    }
}

impl Outcome {
    /// Those with a status for which `is` holds.
    pub fn with(&self, is: impl Fn(u16) -> bool) -> Vec<Sample> {
        self.samples.iter().copied().filter(|sample| is(sample.status)).collect()
    }

    /// Successes a second, from the start of the load to its end or to the last of them.
    pub fn goodput(&self) -> f64 {
        let good = self.with(|status| (200..300).contains(&status));
        let last = good.iter().map(|sample| sample.answered).max().unwrap_or_default();
        good.len() as f64 / self.load.lasts.max(last).as_secs_f64()
    }

    /// Successes a second of a store that takes its time for each batch and then answers all of it, once it
    /// has enough to do: neither the first batch counts, which holds what had come by then, nor the last, which
    /// holds what was left. Less than `apart` lies between the answers of a batch.
    pub fn goodput_by_batches(&self, apart: Duration) -> f64 {
        let good = self.with(|status| (200..300).contains(&status));
        let mut answered: Vec<Duration> = good.iter().map(|sample| sample.answered).collect();
        answered.sort_unstable();
        let is_first = |&at: &usize| at == 0 || answered[at] - answered[at - 1] > apart;
        let batches: Vec<usize> = (0..answered.len()).filter(is_first).collect();
        let [first, second, .., before, last] = batches[..] else {
            panic!("too few batches: {batches:?} of {}", self.summary());
        };
        (last - second) as f64 / (answered[before] - answered[first]).as_secs_f64()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let good = self.with(|status| (200..300).contains(&status));
        let refused = self.with(|status| status == 503);
        format!(
            "{:.0}/s asked: {:.0}/s done (p50 {:?} p99 {:?}), {} of {} refused (p50 {:?} p95 {:?} p99 {:?})",
            self.load.rate,
            self.goodput(),
            percentile(&good, 50),
            percentile(&good, 99),
            refused.len(),
            self.samples.len(),
            percentile(&refused, 50),
            percentile(&refused, 95),
            percentile(&refused, 99),
        )
    }
}

/// How long this share of the samples took at most; nothing when there are none.
pub fn percentile(samples: &[Sample], percent: usize) -> Duration {
    let mut took: Vec<_> = samples.iter().map(Sample::took).collect();
    took.sort_unstable();
    let place = (took.len() * percent).div_ceil(100).saturating_sub(1);
    took.get(place).copied().unwrap_or_default()
}
