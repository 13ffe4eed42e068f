//! What a load run counts: all answers together, by kind of request, by time and by aggregate.
//!
//! Memory is bounded by the run's shape and never by its length: histograms, a bounded number of
//! slices of time, a few numbers for each aggregate that is asked, and histograms for the
//! [`TOP_MAX`] that are asked most.

use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::{Counter, Histogram};

/// How many aggregates have a histogram of their own.
pub const TOP_MAX: usize = 64;
/// The longest time that is told apart, in microseconds.
pub const MICROS_MAX: u64 = 60_000_000;
/// No slot: the aggregate has no histogram.
const NO_SLOT: u8 = u8::MAX;
/// How much more often an aggregate has to be asked than the one whose histogram it takes.
const LEAD_MIN: u32 = 16;

/// A histogram of microseconds with so many significant digits.
pub fn histogram<C: Counter>(digits: u8) -> anyhow::Result<Histogram<C>> {
    Histogram::new_with_bounds(1, MICROS_MAX, digits).context("bounds of times")
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// The kind of request, as a place in [`super::load::Script::kinds`].
    pub kind: usize,
    /// The aggregate asked, below [`super::load::Script::aggregates`]; none: no single one.
    pub aggregate: Option<u32>,
    /// Whether the aggregate's version is to rise.
    pub changes: bool,
    /// Whatever the script wants to know again when the answer is there.
    pub note: u64,
}

/// What an answer is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// Whether it is what was asked for.
    pub accepted: bool,
    /// How much was done: one command, or so many events.
    pub units: u64,
    /// The aggregate's version that it tells.
    pub version: Option<u64>,
    /// A number for what the journal has to have; the sum over all answers is compared.
    pub mark: u64,
}

impl Judged {
    /// Accepted, one unit.
    pub const GOOD: Self = Self { accepted: true, units: 1, version: None, mark: 0 };
    /// Not what was asked for.
    pub const BAD: Self = Self { accepted: false, units: 0, version: None, mark: 0 };
}

/// An answer, as it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub asked: Asked,
    pub judged: Judged,
    pub status: u16,
    pub micros: u64,
    /// The highest version that was known of the aggregate when this was asked.
    pub floor: u64,
    /// The slice of time in which the answer came; none: outside the time that counts.
    pub slice: Option<usize>,
    /// Whether its time is among those that count.
    pub is_timed: bool,
}

/// Answers of one kind, or all.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Accepted answers, timed or not.
    pub accepted: u64,
    /// What was done with them.
    pub units: u64,
    /// Other answers.
    pub refused: u64,
    /// Accepted answers within the time that counts.
    pub timed: u64,
    /// What was done with those.
    pub timed_units: u64,
    /// How long they took, in microseconds.
    pub latencies: Histogram<u64>,
}

impl Kind {
    fn new() -> anyhow::Result<Self> {
        let latencies = histogram(3)?;
        Ok(Self { accepted: 0, units: 0, refused: 0, timed: 0, timed_units: 0, latencies })
    }

    fn count(&mut self, answer: &Counted) {
        if !answer.judged.accepted {
            self.refused += 1;
            return;
        }
        self.accepted += 1;
        self.units += answer.judged.units;
        if answer.slice.is_some() {
            self.timed += 1;
            self.timed_units += answer.judged.units;
        }
        if answer.is_timed {
            self.latencies.saturating_record(answer.micros);
        }
    }

    fn add(&mut self, part: &Self) -> anyhow::Result<()> {
        self.accepted += part.accepted;
        self.units += part.units;
        self.refused += part.refused;
        self.timed += part.timed;
        self.timed_units += part.timed_units;
        self.latencies.add(&part.latencies).context("the same range")
    }
}

/// A stretch of the time that counts.
#[derive(Debug, Clone)]
pub struct Slice {
    /// What was done.
    pub units: u64,
    /// Answers that were not what was asked for.
    pub refused: u64,
    /// How long the others took, in microseconds.
    pub latencies: Histogram<u32>,
}

/// One aggregate.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// Accepted answers within the time that counts.
    pub answers: u32,
    /// Accepted answers whose times count: with a rate, of what was due within that time.
    timed: u32,
    /// The longest of those, in microseconds.
    pub micros_max: u32,
    /// All together, in microseconds.
    pub micros: u64,
    /// The highest version that was told.
    version: u64,
    slot: u8,
}

const NEVER: Cell =
    Cell { answers: 0, timed: 0, micros_max: 0, micros: 0, version: 0, slot: NO_SLOT };

/// An aggregate that is among those that are asked most.
#[derive(Debug, Clone)]
pub struct Top {
    /// Which.
    pub aggregate: u32,
    /// How long its answers took since it has been among them, in microseconds.
    pub latencies: Histogram<u32>,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Accepted answers, timed or not.
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
    /// How long it took until others were refused, in microseconds.
    pub refusals: Histogram<u64>,
    /// Those answers by kind of request.
    pub kinds: Vec<Kind>,
    /// The same by time.
    pub slices: Vec<Slice>,
    /// How long a slice is.
    pub slice: Duration,
    /// The aggregates.
    pub cells: Vec<Cell>,
    /// Those that are asked most.
    pub tops: Vec<Top>,
    /// Answers that told of a version that cannot be: a change that did not raise it, or a read of
    /// what had already been changed.
    pub out_of_order: u64,
    /// Answers that told of a version at all.
    pub versions: u64,
    /// The sum of all marks.
    pub marks: u64,
    /// Requests that were due and not sent within as long again as the run took.
    pub unsent: u64,
    /// How late the latest request was sent.
    pub late_max: Duration,
}

impl Outcome {
    pub(super) fn new(kinds: usize, aggregates: usize) -> anyhow::Result<Self> {
        Ok(Self {
            accepted: 0,
            refused: 0,
            refused_with: None,
            failed: 0,
            timed: 0,
            over: Duration::ZERO,
            latencies: histogram(3)?,
            refusals: histogram(3)?,
            kinds: (0..kinds).map(|_| Kind::new()).collect::<anyhow::Result<_>>()?,
            slices: Vec::new(),
            slice: Duration::ZERO,
            cells: vec![NEVER; aggregates],
            tops: Vec::new(),
            out_of_order: 0,
            versions: 0,
            marks: 0,
            unsent: 0,
            late_max: Duration::ZERO,
        })
    }

    /// The highest version that was told of an aggregate so far.
    pub(super) fn version(&self, aggregate: Option<u32>) -> u64 {
        self.cell(aggregate).map_or(0, |cell| cell.version)
    }

    fn cell(&self, aggregate: Option<u32>) -> Option<&Cell> {
        self.cells.get(usize::try_from(aggregate?).ok()?)
    }

    pub(super) fn count(&mut self, answer: &Counted) -> anyhow::Result<()> {
        if let Some(kind) = self.kinds.get_mut(answer.asked.kind) {
            kind.count(answer);
        }
        let slice = match answer.slice {
            Some(slice) => Some(self.slice_at(slice)?),
            None => None,
        };
        if !answer.judged.accepted {
            if let Some(slice) = slice {
                slice.refused += 1;
            }
            self.refused += 1;
            self.refused_with = Some(answer.status);
            self.failed += u64::from(answer.status >= 500);
            if answer.is_timed {
                self.refusals.saturating_record(answer.micros);
            }
            return Ok(());
        }
        if let Some(slice) = slice {
            slice.units += answer.judged.units;
            slice.latencies.saturating_record(answer.micros);
            self.timed += 1;
        }
        self.accepted += 1;
        self.marks = self.marks.wrapping_add(answer.judged.mark);
        if answer.is_timed {
            self.latencies.saturating_record(answer.micros);
        }
        self.count_aggregate(answer)
    }

    fn slice_at(&mut self, at: usize) -> anyhow::Result<&mut Slice> {
        while self.slices.len() <= at {
            self.slices.push(Slice { units: 0, refused: 0, latencies: histogram(2)? });
        }
        Ok(&mut self.slices[at])
    }

    fn count_aggregate(&mut self, answer: &Counted) -> anyhow::Result<()> {
        let Some(aggregate) = answer.asked.aggregate else { return Ok(()) };
        let place = usize::try_from(aggregate).unwrap_or(usize::MAX);
        let Some(cell) = self.cells.get_mut(place) else { return Ok(()) };
        if let Some(version) = answer.judged.version {
            let least = answer.floor + u64::from(answer.asked.changes);
            self.out_of_order += u64::from(version < least);
            self.versions += 1;
            cell.version = cell.version.max(version);
        }
        cell.answers = cell.answers.saturating_add(u32::from(answer.slice.is_some()));
        if !answer.is_timed {
            return Ok(());
        }
        let micros = u32::try_from(answer.micros).unwrap_or(u32::MAX);
        cell.timed = cell.timed.saturating_add(1);
        cell.micros += answer.micros;
        cell.micros_max = cell.micros_max.max(micros);
        let (timed, slot) = (cell.timed, cell.slot);
        if slot == NO_SLOT {
            self.let_in(aggregate, timed)?;
        }
        if let Some(top) = self.tops.get_mut(usize::from(self.cells[place].slot)) {
            top.latencies.saturating_record(answer.micros);
        }
        Ok(())
    }

    /// Gives an aggregate a histogram if there is one to be had, or if it is asked more often than
    /// one that has one.
    fn let_in(&mut self, aggregate: u32, timed: u32) -> anyhow::Result<()> {
        let index = |aggregate: u32| usize::try_from(aggregate).unwrap_or(usize::MAX);
        if self.tops.len() < TOP_MAX {
            self.cells[index(aggregate)].slot = u8::try_from(self.tops.len()).unwrap_or(NO_SLOT);
            self.tops.push(Top { aggregate, latencies: histogram(2)? });
            return Ok(());
        }
        // Looked at now and then only: on an even load nobody ever has such a lead.
        if !timed.is_multiple_of(LEAD_MIN) {
            return Ok(());
        }
        let asked = |top: &Top| self.cells[index(top.aggregate)].timed;
        let least = (0..self.tops.len()).min_by_key(|&at| asked(&self.tops[at]));
        let Some(at) = least.filter(|&at| asked(&self.tops[at]) + LEAD_MIN <= timed) else {
            return Ok(());
        };
        let top = &mut self.tops[at];
        self.cells[index(top.aggregate)].slot = NO_SLOT;
        top.aggregate = aggregate;
        top.latencies.reset();
        self.cells[index(aggregate)].slot = u8::try_from(at).unwrap_or(NO_SLOT);
        Ok(())
    }

    /// Counts another one's answers and times too; the time that counts is that of all together.
    pub fn add(&mut self, part: &Self) -> anyhow::Result<()> {
        self.accepted += part.accepted;
        self.refused += part.refused;
        self.refused_with = self.refused_with.or(part.refused_with);
        self.failed += part.failed;
        self.timed += part.timed;
        self.over += part.over;
        self.latencies.add(&part.latencies).context("the same range")?;
        self.refusals.add(&part.refusals).context("the same range")?;
        self.out_of_order += part.out_of_order;
        self.versions += part.versions;
        self.marks = self.marks.wrapping_add(part.marks);
        self.unsent += part.unsent;
        self.late_max = self.late_max.max(part.late_max);
        for (at, kind) in part.kinds.iter().enumerate() {
            match self.kinds.get_mut(at) {
                Some(mine) => mine.add(kind)?,
                None => self.kinds.push(kind.clone()),
            }
        }
        for (at, slice) in part.slices.iter().enumerate() {
            let mine = self.slice_at(at)?;
            mine.units += slice.units;
            mine.refused += slice.refused;
            mine.latencies.add(&slice.latencies).context("the same range")?;
        }
        self.add_aggregates(part)
    }

    fn add_aggregates(&mut self, part: &Self) -> anyhow::Result<()> {
        if self.cells.len() < part.cells.len() {
            self.cells.resize(part.cells.len(), NEVER);
        }
        for (mine, cell) in self.cells.iter_mut().zip(&part.cells) {
            mine.answers = mine.answers.saturating_add(cell.answers);
            mine.timed = mine.timed.saturating_add(cell.timed);
            mine.micros += cell.micros;
            mine.micros_max = mine.micros_max.max(cell.micros_max);
            mine.version = mine.version.max(cell.version);
        }
        for top in &part.tops {
            match self.tops.iter_mut().find(|mine| mine.aggregate == top.aggregate) {
                Some(mine) => mine.latencies.add(&top.latencies).context("the same range")?,
                None => self.tops.push(top.clone()),
            }
        }
        let asked = |top: &Top| self.cells.get(top.aggregate as usize).map_or(0, |of| of.timed);
        self.tops.sort_by_key(|top| std::cmp::Reverse(asked(top)));
        self.tops.truncate(TOP_MAX);
        Ok(())
    }

    /// Accepted answers a second.
    pub fn per_second(&self) -> f64 {
        per_second(self.timed, self.over)
    }

    /// How many of the answers and of what had to be given up were over `micros`.
    pub fn over_micros(&self, micros: u64) -> u64 {
        self.latencies.count_between(micros, MICROS_MAX)
    }
}

/// So many in so long, a second.
pub fn per_second(count: u64, over: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let count = count as f64;
    if over.is_zero() { 0.0 } else { count / over.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(aggregate: u32, micros: u64) -> Counted {
        let asked = Asked { aggregate: Some(aggregate), changes: true, ..Asked::default() };
        let judged = Judged::GOOD;
        Counted { asked, judged, status: 200, micros, floor: 0, slice: Some(0), is_timed: true }
    }

    #[test]
    fn who_is_asked_most_has_a_histogram_whoever_came_first() {
        let mut outcome = Outcome::new(1, 1_000).unwrap();
        for aggregate in 0..1_000 {
            outcome.count(&answer(aggregate, 10)).unwrap();
        }
        assert_eq!(outcome.tops.len(), TOP_MAX);
        for _ in 0..100 {
            outcome.count(&answer(999, 500)).unwrap();
        }
        let mut whole = Outcome::new(1, 1_000).unwrap();
        whole.add(&outcome).unwrap();
        assert_eq!(whole.tops.len(), TOP_MAX);
        assert_eq!(whole.tops[0].aggregate, 999);
        assert!(whole.tops[0].latencies.len() >= 60);
        assert_eq!(whole.cells[999].answers, 101);
        assert_eq!(whole.cells[998].answers, 1);
        let slots = outcome.cells.iter().filter(|cell| cell.slot != NO_SLOT).count();
        assert_eq!(slots, TOP_MAX, "who lost its histogram knows it");
    }

    /// In an open loop that is overloaded many answers come when the time that counts is over.
    #[test]
    fn an_aggregate_has_no_more_answers_than_all_together() {
        let mut outcome = Outcome::new(1, 1).unwrap();
        let late = Counted { slice: None, ..answer(0, 900) };
        let due_before = Counted { is_timed: false, ..answer(0, 20) };
        for one in [answer(0, 10), late, late, due_before] {
            outcome.count(&one).unwrap();
        }
        let mut whole = Outcome::new(1, 1).unwrap();
        whole.add(&outcome).unwrap();
        for of in [outcome, whole] {
            assert_eq!((of.timed, of.kinds[0].timed, of.cells[0].answers), (2, 2, 2));
            assert_eq!((of.latencies.len(), of.tops[0].latencies.len()), (3, 3));
            assert_eq!(of.cells[0].micros, 1_810);
        }
    }

    #[test]
    fn versions_that_do_not_rise_are_noticed() {
        let mut outcome = Outcome::new(1, 1).unwrap();
        let told = |version: u64, floor: u64, changes: bool| {
            let mut of = answer(0, 10);
            of.judged.version = Some(version);
            (of.floor, of.asked.changes) = (floor, changes);
            of
        };
        outcome.count(&told(5, 4, true)).unwrap();
        outcome.count(&told(5, 5, false)).unwrap();
        assert_eq!((outcome.version(Some(0)), outcome.out_of_order), (5, 0));
        outcome.count(&told(5, 5, true)).unwrap();
        outcome.count(&told(4, 5, false)).unwrap();
        assert_eq!((outcome.version(Some(0)), outcome.out_of_order), (5, 2));
        outcome.count(&answer(0, 10)).unwrap();
        let mut whole = Outcome::new(1, 1).unwrap();
        whole.add(&outcome).unwrap();
        assert_eq!((whole.versions, whole.out_of_order), (4, 2));
    }

    #[test]
    fn what_is_refused_is_counted_apart() {
        let mut outcome = Outcome::new(1, 1).unwrap();
        let refused = Counted { judged: Judged::BAD, status: 503, ..answer(0, 10) };
        outcome.count(&refused).unwrap();
        outcome.count(&answer(0, 20)).unwrap();
        assert_eq!((outcome.accepted, outcome.refused, outcome.failed), (1, 1, 1));
        assert_eq!((outcome.kinds[0].accepted, outcome.kinds[0].refused), (1, 1));
        assert_eq!((outcome.slices[0].units, outcome.slices[0].refused), (1, 1));
        assert_eq!((outcome.latencies.len(), outcome.refusals.len()), (1, 1));
        let mut whole = Outcome::new(1, 1).unwrap();
        whole.add(&outcome).unwrap();
        assert_eq!((whole.latencies.len(), whole.refusals.len()), (1, 1));
    }
}
