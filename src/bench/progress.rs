//! What a run says while it goes on: one line on standard error, written over and over on a
//! terminal, and now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the line is written on a terminal, and elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(250);
const ELSEWHERE: Duration = Duration::from_secs(5);
/// How often it is looked whether the run has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a run has seen so far; every connection notes its answers here.
#[derive(Debug, Default)]
pub struct Seen {
    answers: AtomicU64,
    units: AtomicU64,
    refused: AtomicU64,
    micros: AtomicU64,
    ended: AtomicBool,
}

impl Seen {
    /// Notes an answer.
    pub(super) fn note(&self, accepted: bool, units: u64, micros: u64) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.units.fetch_add(units, Ordering::Relaxed);
        if !accepted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn now(&self) -> [u64; 4] {
        [&self.answers, &self.units, &self.refused, &self.micros]
            .map(|number| number.load(Ordering::Relaxed))
    }
}

/// Says something between two runs.
pub fn say(what: &str) {
    // Progress is for whoever watches; nobody may be there.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}

/// Shows how a run goes until it has ended.
pub(super) async fn show(name: &str, total: Option<Duration>, seen: &Seen) {
    let terminal = std::io::stderr().is_terminal();
    let every = if terminal { ON_TERMINAL } else { ELSEWHERE };
    let (began, mut last, mut before) = (Instant::now(), Instant::now(), seen.now());
    while !seen.ended.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK_EVERY).await;
        if last.elapsed() < every {
            continue;
        }
        let now = seen.now();
        let text = line(name, total, began.elapsed(), last.elapsed(), before, now);
        let mut out = std::io::stderr();
        let _ = if terminal { write!(out, "\r\x1b[K{text}") } else { writeln!(out, "{text}") };
        let _ = out.flush();
        (last, before) = (Instant::now(), now);
    }
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

/// One line: the last stretch's rate and mean time, and what has been refused so far.
fn line(
    name: &str,
    total: Option<Duration>,
    elapsed: Duration,
    stretch: Duration,
    before: [u64; 4],
    now: [u64; 4],
) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let [answers, units, _, micros] = [0, 1, 2, 3].map(|at| (now[at] - before[at]) as f64);
    let rate = units / stretch.as_secs_f64();
    let mean = if answers > 0.0 { micros / answers / 1_000.0 } else { 0.0 };
    let of = total.map(|total| format!(" of {:.0}", total.as_secs_f64())).unwrap_or_default();
    let mut text = format!(
        "bench: {name}: {:.1}{of} s, {rate:.0}/s, {mean:.2} ms on average, {} answers",
        elapsed.as_secs_f64(),
        now[0]
    );
    if now[2] > 0 {
        text.push_str(&format!(", {} REFUSED", now[2]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_about_the_last_stretch() {
        let seen = Seen::default();
        seen.note(true, 500, 2_000);
        let before = seen.now();
        seen.note(true, 500, 4_000);
        seen.note(false, 0, 2_000);
        let (second, ten) = (Duration::from_secs(1), Duration::from_secs(10));
        let text = line("publish", Some(ten), second * 2, second, before, seen.now());
        let expected =
            "bench: publish: 2.0 of 10 s, 500/s, 3.00 ms on average, 3 answers, 1 REFUSED";
        assert_eq!(text, expected);
    }
}
