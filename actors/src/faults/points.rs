//! Fault points: named places in the code at which a process can be made to end, stall or fail.
//!
//! Every place is passed by name ([`reach`], [`reach_now`], [`try_reach`]) and declared once, in
//! [`POINTS`] or in the list of the program that is built on this crate; a test compares the lists
//! with the code. Without the feature `fault-points` the calls compile to nothing; with it, and
//! nothing armed, passing one costs an atomic load.
//!
//! A point is armed for the n-th time that it is passed: `writer.before_reply:abort:after=17`.
//! `abort` ends the process on the spot, as a power cut would: nothing is flushed, no destructor
//! runs. `stall=500` waits so many milliseconds; `fail` lets what stands there fail, where that
//! makes sense.

use std::fmt;

/// A place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: &'static str,
    /// The source files it stands in, below the crate's `src`; in each of them once.
    pub files: &'static [&'static str],
    /// Whether it can fail.
    pub fails: bool,
    /// Where that is, in a sentence.
    pub what: &'static str,
}

impl Point {
    /// Whether only one kind of store passes it, whose sources have this in their paths.
    pub fn only_in(&self, store: &str) -> bool {
        self.files.iter().all(|file| file.contains(store))
    }

    /// A point that stands in these files.
    pub const fn at(
        name: &'static str,
        files: &'static [&'static str],
        what: &'static str,
    ) -> Self {
        Self { name, files, fails: false, what }
    }

    /// The same, which can fail.
    #[must_use]
    pub const fn failing(self) -> Self {
        Self { fails: true, ..self }
    }
}

/// The points of the runtime.
pub const POINTS: &[Point] = &[
    Point::at(
        "journal.before_insert",
        &["journal/writer.rs"],
        "A batch is put together; nothing of it is in the database.",
    )
    .failing(),
    Point::at(
        "journal.after_insert",
        &["journal/sqlite/append.rs"],
        "Inside a transaction of SQLite: the events are written, what belongs to them is not.",
    ),
    Point::at(
        "journal.before_commit",
        &["journal/sqlite/append.rs"],
        "Inside a transaction of SQLite: everything is written, nothing is committed.",
    ),
    Point::at(
        "journal.after_commit",
        &["journal/writer.rs"],
        "The database has committed; the writer has not noted it.",
    ),
    Point::at(
        "writer.before_reply",
        &["journal/writer.rs"],
        "A batch is durable; nobody has been answered.",
    ),
    Point::at(
        "writer.before_broker",
        &["journal/writer.rs"],
        "Everybody has been answered; no subscriber has heard of the batch.",
    ),
    Point::at(
        "aggregate.after_decide",
        &["aggregate/actor.rs"],
        "A command is decided and applied; nothing of it is queued.",
    ),
    Point::at(
        "aggregate.during_load",
        &["aggregate/load.rs"],
        "An aggregate is being made from its events.",
    ),
    Point::at(
        "snapshot.during",
        &["aggregate/actor.rs"],
        "A snapshot is made and sealed; it is not queued.",
    ),
    Point::at("registry.activation", &["aggregate/registry.rs"], "An aggregate gets its actor."),
    Point::at(
        "subscriber.after_effect",
        &["subscriber/lane.rs"],
        "A handler has done its work; the lane has not noted it.",
    )
    .failing(),
    Point::at(
        "subscriber.before_checkpoint",
        &["subscriber/pull.rs"],
        "A subscription is about to store how far it is.",
    ),
    Point::at(
        "subscriber.after_checkpoint",
        &["subscriber/pull.rs"],
        "A subscription has stored how far it is.",
    ),
    Point::at(
        "dead_letter.before_store",
        &["dead_letter.rs"],
        "An event has become a dead letter that is not stored.",
    ),
    Point::at("timer.before_fire", &["timer.rs"], "A timer is due and about to fire."),
    Point::at(
        "timer.after_fire",
        &["timer.rs"],
        "Timers have fired; the next ones are not looked for.",
    ),
    Point::at("saga.before_command", &["saga/run.rs"], "A saga is about to send a command.")
        .failing(),
    Point::at(
        "saga.after_command",
        &["saga/run.rs"],
        "A saga's command is answered; the saga does not know.",
    )
    .failing(),
    Point::at("saga.compensation", &["saga/run.rs"], "A saga is about to undo a step.").failing(),
    Point::at(
        "lease.acquired",
        &["journal/writer.rs"],
        "A partition has been taken over; its head has not been read.",
    ),
    Point::at(
        "migration.journal",
        &["journal/postgres.rs", "journal/sqlite.rs"],
        "The journal's tables are there; their settings are not checked.",
    ),
];

/// What an armed point does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ends the process on the spot.
    Abort,
    /// Waits.
    Stall(std::time::Duration),
    /// Fails.
    Fail,
}

/// An order to do something at the n-th passing of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Armed {
    /// The point.
    pub point: Point,
    /// What to do there.
    pub action: Action,
    /// At which passing, from 1.
    pub after: u64,
}

/// What is wrong with the text that arms points.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

/// A point was told to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed(&'static str);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected failure at {}", self.0)
    }
}

/// Reads `name:action:after=n` with commas between, the last part optional, and the points by
/// their names from these lists.
pub fn parse(text: &str, known: &[&[Point]]) -> Result<Vec<Armed>, Unreadable> {
    text.split(',').map(|order| parse_one(order.trim(), known)).collect()
}

fn parse_one(order: &str, known: &[&[Point]]) -> Result<Armed, Unreadable> {
    let wrong = |what: &str| Unreadable(format!("{order:?}: {what}"));
    let mut parts = order.split(':');
    let name = parts.next().unwrap_or_default();
    let point = known.iter().copied().flatten().find(|point| point.name == name);
    let point = *point.ok_or_else(|| wrong("there is no such fault point"))?;
    let action = match parts.next().unwrap_or("abort") {
        "abort" => Action::Abort,
        "fail" if point.fails => Action::Fail,
        "fail" => return Err(wrong("nothing can fail there")),
        other => {
            let millis = other.strip_prefix("stall=").and_then(|millis| millis.parse().ok());
            let millis = millis.ok_or_else(|| wrong("the action is abort, fail or stall=<ms>"))?;
            Action::Stall(std::time::Duration::from_millis(millis))
        }
    };
    let after = match parts.next() {
        None => 1,
        Some(after) => after
            .strip_prefix("after=")
            .and_then(|number| number.parse().ok())
            .filter(|number| *number > 0)
            .ok_or_else(|| wrong("the last part is after=<number from 1>"))?,
    };
    match parts.next() {
        None => Ok(Armed { point, action, after }),
        Some(_) => Err(wrong("a fault point has three parts at most")),
    }
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{PoisonError, RwLock};

    use super::{Action, Armed, Failed};

    static ANY: AtomicBool = AtomicBool::new(false);
    static ARMED: RwLock<Vec<(Armed, AtomicU64)>> = RwLock::new(Vec::new());

    /// Arms points, in place of those that were armed before.
    pub fn arm(orders: Vec<Armed>) {
        let any = !orders.is_empty();
        let counted = orders.into_iter().map(|order| (order, AtomicU64::new(0))).collect();
        *ARMED.write().unwrap_or_else(PoisonError::into_inner) = counted;
        ANY.store(any, Ordering::Release);
    }

    /// What is to be done at this passing.
    fn pass(name: &str) -> Option<Action> {
        if !ANY.load(Ordering::Relaxed) {
            return None;
        }
        let armed = ARMED.read().unwrap_or_else(PoisonError::into_inner);
        let mut due = armed.iter().filter(|(order, passed)| {
            order.point.name == name && passed.fetch_add(1, Ordering::AcqRel) + 1 == order.after
        });
        let action = due.next().map(|(order, _)| order.action);
        if action == Some(Action::Abort) {
            std::process::abort();
        }
        action
    }

    /// Passes a point.
    pub async fn reach(name: &'static str) {
        if let Some(Action::Stall(time)) = pass(name) {
            tokio::time::sleep(time).await;
        }
    }

    /// Passes a point where nothing can wait: a stall keeps the thread.
    pub fn reach_now(name: &'static str) {
        if let Some(Action::Stall(time)) = pass(name) {
            std::thread::sleep(time);
        }
    }

    /// Passes a point that can fail.
    pub async fn try_reach(name: &'static str) -> Result<(), Failed> {
        match pass(name) {
            Some(Action::Fail) => return Err(Failed(name)),
            Some(Action::Stall(time)) => tokio::time::sleep(time).await,
            Some(Action::Abort) | None => {}
        }
        Ok(())
    }
}

#[cfg(feature = "fault-points")]
pub use armed::{arm, reach, reach_now, try_reach};

#[cfg(not(feature = "fault-points"))]
mod nothing {
    use super::Failed;

    /// Passes a point: nothing, in this build.
    #[inline(always)]
    pub async fn reach(_name: &'static str) {}

    /// Passes a point: nothing, in this build.
    #[inline(always)]
    pub fn reach_now(_name: &'static str) {}

    /// Passes a point: nothing, in this build.
    #[inline(always)]
    pub async fn try_reach(_name: &'static str) -> Result<(), Failed> {
        Ok(())
    }
}

#[cfg(not(feature = "fault-points"))]
pub use nothing::{reach, reach_now, try_reach};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn orders_are_read_or_refused_with_a_reason() {
        let known = &[POINTS];
        let read = parse("writer.before_reply:abort:after=17, timer.after_fire:stall=250", known);
        let read = read.unwrap();
        assert_eq!((read[0].point.name, read[0].after), ("writer.before_reply", 17));
        assert_eq!(read[0].action, Action::Abort);
        assert_eq!(read[1].action, Action::Stall(Duration::from_millis(250)));
        assert_eq!(parse("journal.before_insert:fail", known).unwrap()[0].action, Action::Fail);
        for wrong in [
            "no.such_point:abort",
            "writer.before_reply:explode",
            "writer.before_reply:abort:after=0",
            "writer.before_reply:abort:after=1:more",
            "writer.before_reply:fail",
            "writer.before_reply:stall=long",
        ] {
            assert!(parse(wrong, known).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_declared_once() {
        let mut names: Vec<_> = POINTS.iter().map(|point| point.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }
}
