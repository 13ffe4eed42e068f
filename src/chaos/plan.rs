//! What is done in each cycle: it follows from the seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::Options;

/// What can be done to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `kill -9` at a random moment.
    Random,
    /// It ends at a named place in the code.
    Points,
    /// Its database is killed, or stopped, and started again (PostgreSQL only).
    Database,
    /// It is stopped for a while and goes on.
    Stop,
    /// It is asked to end, and ends well.
    Terminate,
}

/// What makes a server pass a fault point that it does not pass by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prompt {
    Nothing,
    /// The clock goes on by more than a saga waits.
    Clock,
    /// A handler fails for good, once.
    Letter,
    /// It is asked to end.
    Terminate,
}

/// How often it is prompted.
pub(super) const PROMPT_EVERY: Duration = Duration::from_millis(300);

/// What is done in a cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// After so many answers, and then at any moment.
    Random {
        answers: u64,
        then: Duration,
    },
    Stop {
        answers: u64,
        pause: Duration,
    },
    Terminate {
        answers: u64,
    },
    /// After so many answers; `order` is the text that arms the point.
    Point {
        answers: u64,
        name: &'static str,
        order: String,
        prompt: Prompt,
    },
    Database {
        answers: u64,
        pause: Duration,
        crash: bool,
    },
}

impl Plan {
    pub fn mode(&self) -> Mode {
        match self {
            Self::Random { .. } => Mode::Random,
            Self::Stop { .. } => Mode::Stop,
            Self::Terminate { .. } => Mode::Terminate,
            Self::Point { .. } => Mode::Points,
            Self::Database { .. } => Mode::Database,
        }
    }
}

/// Points that every server passes while it starts.
const STARTING: [&str; 4] =
    ["migration.journal", "lease.acquired", "migration.read", "startup.before_ready"];
/// How often a point that was not passed in time is tried again.
const TRIES_MAX: usize = 3;

pub(super) struct Planner {
    random: StdRng,
    modes: Vec<Mode>,
    points: Vec<&'static str>,
    waiting: VecDeque<&'static str>,
    misses: BTreeMap<&'static str, usize>,
    partitions: u64,
    hits: usize,
    answers: u64,
}

impl Planner {
    pub fn new(options: &Options) -> Self {
        let mut random = StdRng::seed_from_u64(options.seed);
        let asked = options.modes.contains(&Mode::Points);
        let points = if asked { options.points.clone() } else { Vec::new() };
        let mut waiting: Vec<_> = points
            .iter()
            .flat_map(|point| std::iter::repeat_n(*point, options.hits_per_point))
            .collect();
        waiting.shuffle(&mut random);
        Self {
            random,
            modes: options.modes.clone(),
            points,
            waiting: waiting.into(),
            misses: BTreeMap::new(),
            partitions: options.partitions.into(),
            hits: options.hits_per_point,
            answers: options.answers,
        }
    }

    /// The points to be passed by a start on a new journal.
    pub fn starting_points(&self) -> Vec<&'static str> {
        STARTING.into_iter().filter(|point| self.points.contains(point)).collect()
    }

    /// What to do next.
    pub fn next(&mut self) -> Plan {
        let least = self.answers / 5;
        let answers = self.random.random_range(least..=2 * self.answers - least);
        let mode = self.modes[self.random.random_range(0..self.modes.len())];
        let millis = |range, random: &mut StdRng| Duration::from_millis(random.random_range(range));
        match mode {
            Mode::Points => match self.waiting.pop_front() {
                Some(name) => self.point(answers, name),
                None => self.kill(answers),
            },
            Mode::Random => self.kill(answers),
            Mode::Stop => Plan::Stop { answers, pause: millis(200..2_000, &mut self.random) },
            Mode::Terminate => Plan::Terminate { answers },
            Mode::Database => Plan::Database {
                answers,
                pause: millis(0..1_500, &mut self.random),
                crash: self.random.random_bool(0.7),
            },
        }
    }

    fn kill(&mut self, answers: u64) -> Plan {
        let then = Duration::from_micros(self.random.random_range(0..50_000));
        Plan::Random { answers, then }
    }

    fn point(&mut self, answers: u64, name: &'static str) -> Plan {
        // How often a server passes it within a moment.
        let often = match name {
            "lease.acquired" => self.partitions,
            "migration.journal" | "migration.read" | "startup.before_ready" => 1,
            "shutdown.during_drain" | "dead_letter.before_store" => 1,
            "snapshot.during" | "gateway.after_refund" | "timer.before_fire" => 3,
            "timer.after_fire" => 2,
            "gateway.after_charge" | "mail.after_send" | "saga.compensation" => 8,
            "subscriber.before_checkpoint" | "subscriber.after_checkpoint" => 20,
            "registry.activation" | "aggregate.during_load" | "projection.after_commit" => 50,
            _ => 100,
        };
        let after = self.random.random_range(1..=often);
        let prompt = match name {
            "timer.before_fire" | "timer.after_fire" | "saga.compensation" => Prompt::Clock,
            "dead_letter.before_store" => Prompt::Letter,
            "shutdown.during_drain" => Prompt::Terminate,
            _ => Prompt::Nothing,
        };
        Plan::Point { answers, name, order: format!("{name}:abort:after={after}"), prompt }
    }

    /// A server did not pass the point in time.
    pub fn missed(&mut self, name: &'static str) {
        let misses = self.misses.entry(name).or_default();
        *misses += 1;
        if *misses <= TRIES_MAX {
            self.waiting.push_back(name);
        }
    }

    /// The points at which no server has ended as often as was asked for, though all cycles that
    /// this takes were there.
    pub fn never_hit(&self, hits: &BTreeMap<String, usize>) -> Vec<&'static str> {
        if !self.waiting.is_empty() {
            return Vec::new();
        }
        let enough = |point: &&str| hits.get(*point).is_some_and(|count| *count >= self.hits);
        self.points.iter().copied().filter(|point| !enough(point)).collect()
    }
}
