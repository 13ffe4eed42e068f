//! The hourly reports: when one is due, and the last of them.
//!
//! There is one for each hour of the clock, once: an hour is asked for when it is over, and the next one
//! not before it has its report. After a stop the hours that were missed are made up for, at most a day of
//! them; what is older is left out, for the figures can be asked for at any time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use souk_actors::aggregate::{Aggregate, Command, NoRejection, TimerChange};
use souk_actors::world::Timestamp;

use super::ids::ReportId;

/// How long the time of a report is.
pub const HOUR: Duration = Duration::from_secs(60 * 60);
/// How many missed hours are made up for.
const MISSED_MAX: u32 = 24;
/// How many reports are kept to be read: two weeks.
pub const KEPT_MAX: usize = 14 * 24;

/// The timer of the end of an hour. Stored; never rename.
const TIMER: &str = "hour";

/// A figure of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportFigure {
    /// The figure.
    pub value: Number,
    /// The currency, where it is money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

/// The figures of a report, by name.
pub type Figures = BTreeMap<String, Vec<ReportFigure>>;

/// What to do about reports.
#[derive(Debug, Clone, PartialEq)]
pub enum ReportingCommand {
    /// Begin with the hour that is now, unless that has been done.
    Start {
        /// When.
        now: Timestamp,
    },
    /// An hour is over.
    Request {
        /// When.
        now: Timestamp,
    },
    /// The report of an hour is there.
    Record {
        /// From this time on.
        from: Timestamp,
        /// What it says.
        figures: Figures,
        /// When.
        now: Timestamp,
    },
}

impl Command for ReportingCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "StartReporting",
            Self::Request { .. } => "RequestReport",
            Self::Record { .. } => "RecordReport",
        }
    }
}

souk_actors::events! {
    /// What happens to reports.
    pub enum ReportingEvent in "analytics" as "analytics-service" {
        /// There will be a report for every hour.
        Started(ReportingStarted) = "analytics.reporting.started", "ReportingStarted", 1.0, [];
        /// An hour is over: its report is to be made.
        Requested(ReportRequested) = "analytics.report.requested", "ReportRequested", 1.0, [];
        /// It is there.
        Generated(ReportGenerated) = "analytics.report.generated", "ReportGenerated", 1.0, [];
    }
}

/// There will be a report for every hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportingStarted {
    /// When the first of them begins.
    pub from: Timestamp,
    /// When.
    pub started_at: Timestamp,
}

/// The report of an hour is to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportRequested {
    /// The report.
    pub report_id: ReportId,
    /// From this time on.
    pub from: Timestamp,
    /// Before this time.
    pub to: Timestamp,
    /// When.
    pub requested_at: Timestamp,
}

/// The report of an hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportGenerated {
    /// The report.
    pub report_id: ReportId,
    /// From this time on.
    pub from: Timestamp,
    /// Before this time.
    pub to: Timestamp,
    /// What it says.
    pub figures: Figures,
    /// When.
    pub generated_at: Timestamp,
}

/// The reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reporting {
    /// The hour whose report comes next.
    next: Option<Timestamp>,
    /// The hour whose report is being made.
    open: Option<Timestamp>,
    /// The last reports, the latest first.
    pub reports: VecDeque<ReportGenerated>,
}

/// The beginning of the hour that a time is in.
fn hour_of(at: Timestamp) -> Timestamp {
    let hour = i64::try_from(HOUR.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(at.millis().div_euclid(hour) * hour)
}

impl Aggregate for Reporting {
    const TYPE: &'static str = "reporting";
    type Command = ReportingCommand;
    type Event = ReportingEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &ReportingCommand) -> Result<Vec<ReportingEvent>, NoRejection> {
        let event = match command {
            ReportingCommand::Start { now } => self.next.is_none().then(|| {
                let event = ReportingStarted { from: hour_of(*now), started_at: *now };
                ReportingEvent::Started(event)
            }),
            ReportingCommand::Request { now } => self.request(*now),
            ReportingCommand::Record { from, figures, now } => {
                (self.open == Some(*from)).then(|| {
                    ReportingEvent::Generated(ReportGenerated {
                        report_id: ReportId::of(*from),
                        from: *from,
                        to: from.plus(HOUR),
                        figures: figures.clone(),
                        generated_at: *now,
                    })
                })
            }
        };
        Ok(event.into_iter().collect())
    }

    fn apply(&mut self, event: &ReportingEvent) {
        match event {
            ReportingEvent::Started(event) => self.next = Some(event.from),
            ReportingEvent::Requested(event) => self.open = Some(event.from),
            ReportingEvent::Generated(event) => {
                self.open = None;
                self.next = Some(event.to);
                self.reports.push_front(event.clone());
                self.reports.truncate(KEPT_MAX);
            }
        }
    }

    fn timers(&self, event: &ReportingEvent) -> Vec<TimerChange> {
        let name = TIMER.to_owned();
        match (event, self.next) {
            (ReportingEvent::Started(_) | ReportingEvent::Generated(_), Some(next)) => {
                vec![TimerChange::Set { name, at: next.plus(HOUR) }]
            }
            _ => Vec::new(),
        }
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<ReportingCommand> {
        (name == TIMER).then_some(ReportingCommand::Request { now })
    }
}

impl Reporting {
    fn request(&self, now: Timestamp) -> Option<ReportingEvent> {
        let next = self.next.filter(|_| self.open.is_none())?;
        let missed = i64::try_from((HOUR * MISSED_MAX).as_millis()).unwrap_or(i64::MAX);
        let earliest = Timestamp::from_millis(hour_of(now).millis().saturating_sub(missed));
        let from = next.max(earliest);
        let to = from.plus(HOUR);
        (to <= now).then(|| {
            let report_id = ReportId::of(from);
            ReportingEvent::Requested(ReportRequested { report_id, from, to, requested_at: now })
        })
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::testing::Scenario;

    use super::*;
    use crate::domain::testing::{assert_folds, run};

    const HOUR_MS: i64 = 3_600_000;

    fn at(hours: i64, seconds: i64) -> Timestamp {
        Timestamp::from_millis(500_000 * HOUR_MS + hours * HOUR_MS + seconds * 1_000)
    }

    fn request(now: Timestamp) -> ReportingCommand {
        ReportingCommand::Request { now }
    }

    fn record(hour: i64, now: Timestamp) -> ReportingCommand {
        ReportingCommand::Record { from: at(hour, 0), figures: Figures::new(), now }
    }

    #[test]
    fn every_hour_has_one_report() {
        Scenario::<Reporting>::new()
            .when(ReportingCommand::Start { now: at(0, 600) })
            .then_types(&["analytics.reporting.started"])
            .when(ReportingCommand::Start { now: at(5, 0) })
            .then([])
            .when(request(at(0, 3_599)))
            .then([])
            .when(request(at(1, 0)))
            .then_types(&["analytics.report.requested"])
            .when(request(at(1, 1)))
            .then([])
            .when(record(1, at(1, 2)))
            .then([])
            .when(record(0, at(1, 2)))
            .then_types(&["analytics.report.generated"])
            .when(record(0, at(1, 3)))
            .then([])
            .when(request(at(1, 4)))
            .then([])
            .when(request(at(2, 0)))
            .then_types(&["analytics.report.requested"]);
    }

    /// After a long stop the hours of one day are made up for, one after the other.
    #[test]
    fn missed_hours_are_made_up_for_but_not_all_of_them() {
        let now = at(100, 60);
        let mut commands = vec![ReportingCommand::Start { now: at(0, 0) }];
        for hour in 0..120 {
            commands.push(request(now));
            commands.push(record(hour, now));
        }
        let (state, history) = run::<Reporting>(&commands);
        let hours: Vec<_> = state.reports.iter().map(|of| of.from).collect();
        let expected: Vec<_> = (76..100).rev().map(|hour| at(hour, 0)).collect();
        assert_eq!(hours, expected);
        assert_folds(&state, &history);
        assert_eq!(state.decide(&request(now)).unwrap(), []);
        let last = history.last().unwrap();
        let next = TimerChange::Set { name: TIMER.to_owned(), at: at(101, 0) };
        assert_eq!(state.timers(last), [next]);
    }
}
