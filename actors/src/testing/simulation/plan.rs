//! What a run consists of: a list of steps made from a seed, which can be shortened and printed.

use std::fmt::Write as _;

/// A small, fast generator (splitmix64): the same numbers for the same seed, everywhere.
#[derive(Debug, Clone)]
pub(super) struct Rng(pub u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True so many times in a hundred.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }

    fn small(&mut self, bound: u64) -> u32 {
        u32::try_from(self.below(bound)).unwrap_or(0)
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Put money on an account.
    Deposit {
        /// Which.
        account: u32,
        /// How much.
        amount: i64,
    },
    /// Take money from an account, if it has it.
    Withdraw {
        /// Which.
        account: u32,
        /// How much.
        amount: i64,
    },
    /// Move money by the saga.
    Transfer {
        /// From which account.
        from: u32,
        /// To which.
        to: u32,
        /// How much.
        amount: i64,
    },
    /// Count.
    Count {
        /// Which counter.
        counter: u32,
        /// By how much.
        by: i64,
        /// How often that panics first.
        panics: u32,
    },
    /// Set an alarm, or set it anew.
    Alarm {
        /// Which.
        alarm: u32,
        /// When it is due, in milliseconds from now.
        after: u64,
    },
    /// Read a counter.
    Read {
        /// Which.
        counter: u32,
    },
}

/// What the store does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// An append surely fails.
    NotCommitted,
    /// An append is stored, and its answer lost.
    UnknownStored,
    /// An append is not stored, and nobody knows.
    UnknownNotStored,
    /// Nobody knows whether an append is stored, and it is so later, unless it is fenced by then.
    UnknownLate,
    /// An append is refused as a conflict, for no reason.
    Conflict,
    /// The process dies before an append is stored.
    CrashBefore,
    /// The process dies after an append is stored.
    CrashAfter,
}

/// What goes wrong in a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It fails in a way that may pass.
    Transient,
    /// It fails after its work is done.
    AfterWork,
    /// It fails for good.
    Permanent,
    /// Something that everybody needs is down.
    System,
    /// It panics.
    Panic,
    /// It takes so many milliseconds.
    Slow(u32),
}

/// One of the subscribers that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The handler that records what it saw.
    Audit,
    /// The projection.
    View,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A client sends a command (or a read), and again until it knows what became of it.
    Send {
        /// Names the command.
        op: u32,
        /// Whether it carries an id under which it has effect once. Without, it is sent once.
        keyed: bool,
        /// How many clients send it at the same time.
        copies: u32,
        /// What it is.
        ask: Ask,
    },
    /// The next so many appends go wrong.
    Store {
        /// How.
        trouble: Trouble,
        /// How many.
        times: u32,
    },
    /// Reads of the journal fail for so many milliseconds.
    Unreadable {
        /// How long.
        millis: u64,
    },
    /// The store is slow for so many milliseconds.
    Sluggish {
        /// How long.
        millis: u64,
    },
    /// A handler fails at the event of a command.
    Handler {
        /// Whose.
        target: Target,
        /// The command's number.
        op: u32,
        /// How.
        mishap: Mishap,
        /// How often.
        times: u32,
    },
    /// Somebody has all letters tried again.
    Redrive,
    /// Somebody drops the first letter of the handler that records.
    Discard,
    /// The process dies and is started again after so many milliseconds.
    Crash {
        /// How long it is down.
        down: u64,
        /// How much more is done in the instant of its death.
        polls: u32,
    },
    /// The process is drained, and started again.
    Restart,
    /// A second process takes the partitions over from the first.
    Takeover,
}

/// Something, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds from the start.
    pub at: u64,
    /// What.
    pub what: What,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the plan comes from, and the store's delays.
    pub seed: u64,
    /// How many partitions the journal has.
    pub partitions: u16,
    /// What happens, by time.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed);
        let partitions = if rng.chance(70) { 1 } else { 2 };
        let length = rng.pick(&[500, 3_000, 20_000, 60_000]);
        let mut steps = Vec::new();
        // Number 0 stands for what no client asked for.
        let mut ops = 1;
        for account in 0..3 {
            let ask = Ask::Deposit { account, amount: 150 };
            steps.push(Step { at: 0, what: What::Send { op: ops, keyed: true, copies: 1, ask } });
            ops += 1;
        }
        for _ in 0..20 + rng.below(40) {
            let at = burst(&mut rng, length);
            for _ in 0..1 + rng.below(3) {
                steps.push(Step { at, what: send(&mut rng, ops) });
                ops += 1;
            }
        }
        // Some runs are calm, so that the checks of the calm are tested too.
        let troubles = rng.pick(&[0, 2, 6, 12]);
        for _ in 0..rng.below(troubles + 1) {
            steps.push(Step { at: rng.below(length), what: trouble(&mut rng, ops) });
        }
        for _ in 0..rng.pick(&[0, 0, 1, 1, 2, 3]) {
            steps.push(Step { at: rng.below(length), what: upheaval(&mut rng) });
        }
        steps.sort_by_key(|step| step.at);
        Self { seed, partitions, steps }
    }

    /// The plan as Rust, to be pasted into a test.
    pub fn literal(&self) -> String {
        let Self { seed, partitions, steps } = self;
        let mut text = format!(
            "Plan {{\n    seed: {seed},\n    partitions: {partitions},\n    steps: vec![\n"
        );
        for Step { at, what } in steps {
            let what = format!("{what:?}")
                .replace("ask: ", "ask: Ask::")
                .replace("trouble: ", "trouble: Trouble::")
                .replace("target: ", "target: Target::")
                .replace("mishap: ", "mishap: Mishap::");
            let _ = writeln!(text, "        Step {{ at: {at}, what: What::{what} }},");
        }
        text.push_str("    ],\n}");
        text
    }
}

/// Times come in bunches: what happens in one instant is what races.
fn burst(rng: &mut Rng, length: u64) -> u64 {
    let at = rng.below(length);
    if rng.chance(60) { at - at % (length / 10) } else { at }
}

fn send(rng: &mut Rng, op: u32) -> What {
    let (account, other) = (rng.small(3), 1 + rng.small(2));
    let amount = 1 + i64::from(rng.small(120));
    let ask = match rng.below(100) {
        0..10 => Ask::Deposit { account, amount },
        10..20 => Ask::Withdraw { account, amount },
        20..40 => Ask::Transfer { from: account, to: (account + other) % 3, amount },
        40..75 => {
            let panics = if rng.chance(8) { 1 + rng.small(4) } else { 0 };
            Ask::Count { counter: rng.small(2), by: i64::from(rng.small(9)) - 2, panics }
        }
        75..85 => Ask::Alarm { alarm: rng.small(2), after: rng.pick(&[0, 5, 100, 2_000, 20_000]) },
        _ => Ask::Read { counter: rng.small(2) },
    };
    let keyed = rng.chance(75) && !matches!(ask, Ask::Read { .. });
    let copies = if keyed && rng.chance(20) { 2 } else { 1 };
    What::Send { op, keyed, copies, ask }
}

fn trouble(rng: &mut Rng, ops: u32) -> What {
    match rng.below(100) {
        0..45 => {
            let trouble = rng.pick(&[
                Trouble::NotCommitted,
                Trouble::UnknownStored,
                Trouble::UnknownNotStored,
                Trouble::UnknownLate,
                Trouble::Conflict,
            ]);
            What::Store { trouble, times: 1 + rng.small(6) }
        }
        45..52 => What::Unreadable { millis: rng.pick(&[20, 300, 900, 4_000]) },
        52..60 => What::Sluggish { millis: rng.pick(&[200, 2_000, 15_000]) },
        60..90 => {
            let mishap = rng.pick(&[
                Mishap::Transient,
                Mishap::AfterWork,
                Mishap::Permanent,
                Mishap::System,
                Mishap::Panic,
                Mishap::Slow(50),
                Mishap::Slow(700),
                Mishap::Slow(12_000),
            ]);
            let target = if rng.chance(65) { Target::Audit } else { Target::View };
            What::Handler { target, op: rng.small(u64::from(ops)), mishap, times: 1 + rng.small(5) }
        }
        90..96 => What::Redrive,
        _ => What::Discard,
    }
}

fn upheaval(rng: &mut Rng) -> What {
    match rng.below(100) {
        0..35 => What::Crash { down: rng.pick(&[0, 5, 1_000, 30_000]), polls: rng.small(60) },
        35..65 => {
            let trouble = rng.pick(&[Trouble::CrashBefore, Trouble::CrashAfter]);
            What::Store { trouble, times: 1 }
        }
        65..82 => What::Restart,
        _ => What::Takeover,
    }
}

/// The shortest plan that the search finds which still `fails`, trying at most `tries` plans.
pub fn shrink(plan: &Plan, tries: usize, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut left = tries;
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < best.steps.len() {
            if left == 0 {
                return best;
            }
            left -= 1;
            let mut shorter = best.clone();
            shorter.steps.drain(at..(at + size).min(best.steps.len()));
            if fails(&shorter) {
                best = shorter;
            } else {
                at += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    best
}
