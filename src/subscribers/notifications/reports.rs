//! `report-mails`: mails reports to the administrators who want them.
//!
//! | report | to | template |
//! | --- | --- | --- |
//! | of an hour | who wants `hourly` | `report_hourly` |
//! | of the last hour of a day, by UTC: the whole day | who wants `daily` | `report_daily` |
//!
//! Who wanted it before the report was there gets it, once: a mail's id follows from the report's event and
//! the person.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use souk_actors::world::Timestamp;

use super::{Message, request};
use crate::domain::ids::UserId;
use crate::domain::money::Money;
use crate::domain::preferences::ReportMails;
use crate::domain::reporting::{Figures, ReportFigure, ReportGenerated, ReportingEvent};
use crate::domain::user::User;
use crate::projections::analytics::{METRICS, Metric, Unit};
use crate::projections::{ReadModels, USERS_VIEW};
use crate::subscribers::reports::Maker;
use crate::subscribers::{command_failed, decode_failed};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "report-mails";
/// What it listens to.
pub const TOPICS: &[&str] = &["analytics.report.generated"];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many administrators are asked.
const ADMINISTRATORS_MAX: u32 = 1_000;

/// The handler.
pub struct ReportMailer(Maker);

/// A report as a mail has it.
struct Told {
    template: &'static str,
    from: Timestamp,
    to: Timestamp,
    figures: Figures,
}

impl ReportMailer {
    /// Mails what is in these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self(Maker::new(reads))
    }

    /// Who wants reports by mail, and wanted them already when this event happened.
    async fn readers(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
    ) -> Result<Vec<(UserId, ReportMails)>, Failure> {
        self.0.caught_up(runtime, event, &[USERS_VIEW]).await?;
        let mut readers = Vec::new();
        for id in self.0.reads().administrators(ADMINISTRATORS_MAX).await? {
            let wanted = |user: &User| user.details.as_ref().and_then(|details| details.reports);
            let read = runtime.aggregate::<User>().read_inside(id, wanted).await;
            let wanted = read.map_err(|error| command_failed(&error))?.value;
            readers.extend(
                wanted
                    .filter(|of| of.since <= event.timestamp)
                    .map(|wanted| (UserId(id), wanted.mails)),
            );
        }
        Ok(readers)
    }

    /// The report of the day that ends with an hour, if one does.
    async fn day(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        hour: &ReportGenerated,
    ) -> Result<Option<Told>, Failure> {
        let (to, day) = (hour.to, i64::try_from(DAY.as_millis()).unwrap_or(i64::MAX));
        if to.millis().rem_euclid(day) != 0 {
            return Ok(None);
        }
        let from = Timestamp::from_millis(to.millis() - day);
        let figures = self.0.figures(runtime, event, (from, to)).await?;
        Ok(Some(Told { template: "report_daily", from, to, figures }))
    }
}

/// A figure as people read it.
fn shown(metric: &Metric, figure: &ReportFigure) -> String {
    let value = &figure.value;
    match (metric.unit, value.as_i64(), value.as_f64()) {
        (Unit::Amount, Some(amount), _) => {
            let currency = figure.currency.as_deref().and_then(|code| code.parse().ok());
            currency.map_or_else(
                || format!("{amount}"),
                |currency| Money::new(amount, currency).to_string(),
            )
        }
        (Unit::Ratio, _, Some(share)) => format!("{:.1} %", share * 100.0),
        (Unit::Average, _, Some(average)) => format!("{average:.2}"),
        _ => value.to_string(),
    }
}

/// All figures, a line each.
fn lines(figures: &Figures) -> String {
    let mut text = String::new();
    for metric in &METRICS {
        let of = figures.get(metric.name).map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<_> = of.iter().map(|figure| shown(metric, figure)).collect();
        let shown = if shown.is_empty() { "-".to_owned() } else { shown.join(", ") };
        let name = metric.name.replace('_', " ");
        // Writing to a text cannot fail.
        let _ = writeln!(text, "    {name:<18}{shown}");
    }
    text.truncate(text.trim_end().len());
    text
}

#[async_trait]
impl Handler for ReportMailer {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let ReportingEvent::Generated(hour) = change else { return Ok(()) };
        let readers = self.readers(runtime, event).await?;
        if readers.is_empty() {
            return Ok(());
        }
        let day = self.day(runtime, event, &hour).await?;
        let hour =
            Told { template: "report_hourly", from: hour.from, to: hour.to, figures: hour.figures };
        for (reader, mails) in readers {
            let told = match mails {
                ReportMails::Hourly => Some(&hour),
                ReportMails::Daily => day.as_ref(),
                ReportMails::Off => None,
            };
            let Some(told) = told else { continue };
            let message = Message::mail(reader, told.template)
                .with("from", told.from.to_string())
                .with("to", told.to.to_string())
                .with("figures", lines(&told.figures));
            request(runtime, event, message).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        let figure = |value: serde_json::Number, currency: Option<&str>| ReportFigure {
            value,
            currency: currency.map(str::to_owned),
        };
        let share = serde_json::Number::from_f64(2.0 / 3.0).unwrap();
        let figures = Figures::from([
            ("orders_paid".to_owned(), vec![figure(2.into(), None)]),
            ("conversion".to_owned(), vec![figure(share, None)]),
            (
                "gmv".to_owned(),
                vec![figure(300_000.into(), Some("VND")), figure(1_250.into(), Some("USD"))],
            ),
        ]);
        let text = lines(&figures);
        let line = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name));
        assert_eq!(line("orders paid").unwrap().trim(), "orders paid       2");
        assert!(line("conversion").unwrap().ends_with("66.7 %"), "{text}");
        assert!(line("gmv").unwrap().ends_with("300000 VND, 12.50 USD"), "{text}");
        assert!(line("revenue").unwrap().ends_with('-'), "{text}");
        assert_eq!(text.lines().count(), METRICS.len());
    }
}
