//! Figures: of the business, of a seller's shop, of the events themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::answer::{Answer, Page, composed};
use super::body::{Fields, FromFields, Valid};
use super::call::{SignedIn, Staff};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id, wrong};
use super::problem::ApiError;
use super::{App, PROJECTION_POSITION};
use crate::domain::activity::{ActionRecorded, Activity, ActivityCommand, ActivityEvent};
use crate::domain::ids::{ReportId, ReportingId, UserId};
use crate::domain::registry;
use crate::domain::reporting::{ReportFigure, ReportGenerated, Reporting};
use crate::projections::analytics::{Metric, Point, Span, Value};
use crate::projections::{ANALYTICS_VIEW, EVENTS_INDEX, REVIEWS_VIEW};

/// The most steps of one answer, and how many there are when nobody says from when.
const STEPS_MAX: i64 = 1_500;
/// Actions of somebody that are read at a time.
const ACTIONS_PAGE: usize = 200;
/// The context and the service of a type that publishers outside registered.
const OUTSIDE: &str = "outside";

const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(business_metrics))
        .routes(routes!(event_counts, record_action))
        .routes(routes!(my_analytics))
        .routes(routes!(list_reports))
        .routes(routes!(get_report))
}

/// A figure over a time.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricBody {
    /// Its name.
    #[schema(example = "gmv")]
    pub name: String,
    /// `count`, `amount` (of money, in minor units), `ratio` or `average`.
    #[schema(example = "amount")]
    pub unit: &'static str,
    /// How long a step is.
    #[schema(example = "1h")]
    pub bucket: &'static str,
    /// From this time on.
    #[schema(format = DateTime)]
    pub from: String,
    /// Before this time.
    #[schema(format = DateTime)]
    pub to: String,
    /// All of it together; money by currency.
    pub total: Vec<FigureBody>,
    /// Step by step, those without anything left out.
    pub data: Vec<PointBody>,
}

/// A figure.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FigureBody {
    /// The figure.
    #[schema(value_type = f64, example = 1_500_000)]
    pub value: serde_json::Number,
    /// The currency, where it is money.
    pub currency: Option<String>,
}

/// The figure of a step.
#[derive(Debug, Serialize, ToSchema)]
pub struct PointBody {
    /// When the step begins.
    #[schema(format = DateTime)]
    pub at: String,
    /// The figure.
    #[schema(value_type = f64, example = 1_500_000)]
    pub value: serde_json::Number,
    /// The currency, where it is money.
    pub currency: Option<String>,
}

fn number(value: Value) -> serde_json::Number {
    match value {
        Value::Whole(value) => value.into(),
        // A share is a number; it could not be written otherwise.
        Value::Share(value) => serde_json::Number::from_f64(value).unwrap_or_else(|| 0.into()),
    }
}

impl From<Point> for FigureBody {
    fn from(point: Point) -> Self {
        Self { value: number(point.value), currency: point.currency }
    }
}

impl From<Point> for PointBody {
    fn from(point: Point) -> Self {
        let at = point.at.unwrap_or(Timestamp::from_millis(0)).to_string();
        Self { at, value: number(point.value), currency: point.currency }
    }
}

/// How long a step is: its name and its milliseconds.
fn bucket(params: &Params) -> Result<(&'static str, i64), ApiError> {
    let of = |name, seconds: u64| {
        let millis = Duration::from_secs(seconds).as_millis();
        Ok((name, i64::try_from(millis).unwrap_or(i64::MAX)))
    };
    match params.text("bucket").unwrap_or("1h") {
        "1m" => of("1m", 60),
        "1h" => of("1h", 60 * 60),
        "1d" => of("1d", 24 * 60 * 60),
        _ => Err(wrong("bucket", "must be 1m, 1h or 1d")),
    }
}

/// The time that is asked for: at most so many steps, the latest of them, up to now when nobody says.
fn span(app: &App, params: &Params, step_ms: i64) -> Result<Span, ApiError> {
    let after_now = || Timestamp::from_millis(app.now().millis() + 1);
    let to = params.time("to")?.unwrap_or_else(after_now);
    let earliest = to.millis().saturating_sub(step_ms * STEPS_MAX).div_euclid(step_ms) * step_ms;
    let from = params.time("from")?.map_or(earliest, |from| from.millis().max(earliest));
    Ok(Span { from: Timestamp::from_millis(from), to, step_ms })
}

/// In which form rows are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
    Ndjson,
}

/// `format`, or else what the caller would rather have.
fn form(params: &Params, headers: &HeaderMap) -> Result<Form, ApiError> {
    let wanted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    match params.text("format") {
        Some("json") => Ok(Form::Json),
        Some("csv") => Ok(Form::Csv),
        Some("ndjson") => Ok(Form::Ndjson),
        Some(_) => Err(wrong("format", "must be json, csv or ndjson")),
        None if wanted.contains("json") && !wanted.contains("ndjson") => Ok(Form::Json),
        None if wanted.contains(CSV) => Ok(Form::Csv),
        None if wanted.contains(NDJSON) => Ok(Form::Ndjson),
        None => Ok(Form::Json),
    }
}

/// What a spreadsheet would take for a formula it is given as a text.
fn cell(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}

/// Rows with these columns, as a file.
fn csv(columns: &[&str], rows: &[Vec<String>]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let rows = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect::<Vec<_>>());
    let all = std::iter::once(columns.iter().map(|name| (*name).to_owned()).collect()).chain(rows);
    for row in all {
        writer.write_record(row).expect("memory takes everything, and rows have as many columns");
    }
    writer.into_inner().expect("memory takes everything")
}

/// The answer in the form that was asked for.
fn rendered<T: Serialize, R: Serialize>(
    app: &App,
    projection: &str,
    form: Form,
    name: &str,
    whole: &T,
    (columns, rows): (&[&str], &[R]),
) -> Response {
    let (kind, body) = match form {
        Form::Json => return Answer::ok(whole).projected(app, projection).into_response(),
        Form::Csv => ("text/csv; charset=utf-8", csv(columns, &texts(columns, rows))),
        Form::Ndjson => {
            let line = |row: &R| serde_json::to_string(row).unwrap_or_default() + "\n";
            (NDJSON, rows.iter().map(line).collect::<String>().into_bytes())
        }
    };
    let mut response = Response::new(Body::from(body));
    let end = if form == Form::Csv { "csv" } else { "ndjson" };
    let file = format!("attachment; filename=\"{name}.{end}\"");
    let position = app.projection_position(projection);
    for (header, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_DISPOSITION, &file),
        (PROJECTION_POSITION, &position),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(header, value);
        }
    }
    response
}

/// The members of each row by the names of the columns, as texts.
fn texts<R: Serialize>(columns: &[&str], rows: &[R]) -> Vec<Vec<String>> {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let row = |row: &R| {
        let members = serde_json::to_value(row).unwrap_or_default();
        columns.iter().map(|name| text(&members[*name])).collect()
    };
    rows.iter().map(row).collect()
}

async fn figure(
    app: &App,
    metric: &'static Metric,
    (bucket, span): (&'static str, Span),
    seller: Option<Uuid>,
) -> Result<MetricBody, ApiError> {
    let (steps, whole) = app.reads().figure(metric, span, seller).await?;
    Ok(MetricBody {
        name: metric.name.to_owned(),
        unit: metric.unit.as_str(),
        bucket,
        from: span.from.to_string(),
        to: span.to.to_string(),
        total: whole.into_iter().map(FigureBody::from).collect(),
        data: steps.into_iter().map(PointBody::from).collect(),
    })
}

/// A figure of the business
///
/// For administrators. `name` is `users_registered`, `users_verified`, `sellers_verified`,
/// `listings_created`, `listings_sold_out`, `reviews_created`, `orders_placed`, `orders_paid`,
/// `orders_completed`, `orders_lost` (rejected, unpaid, cancelled, failed), `gmv` (the sum of paid
/// orders), `revenue` (of completed ones), `conversion` (which share of the orders placed was paid) or
/// `review_average` (of the reviews that are shown).
/// At most 1,500 steps are given, the latest of them. As CSV or NDJSON by `format` or `Accept`.
#[utoipa::path(get, path = "/analytics/metrics", tag = "analytics",
    params(("name" = String, Query), ("bucket" = Option<String>, Query),
        ("from" = Option<String>, Query), ("to" = Option<String>, Query),
        ("seller_id" = Option<String>, Query, description = "Of this seller's orders or reviews only"),
        ("format" = Option<String>, Query), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "The figure",
        content((MetricBody = "application/json"), (String = "text/csv"),
            (String = "application/x-ndjson")))))]
async fn business_metrics(
    State(app): State<App>,
    Staff(_): Staff,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let form = form(&params, &headers)?;
    let name = params.text("name").ok_or_else(|| wrong("name", "is required"))?;
    let metric = Metric::named(name).ok_or_else(|| {
        let known: Vec<_> = Metric::all().map(|metric| metric.name).collect();
        wrong("name", &format!("must be one of {}", known.join(", ")))
    })?;
    let seller = params.parsed::<UserId>("seller_id")?;
    if seller.is_some() && !metric.is_of_sellers() {
        return Err(wrong("seller_id", "this figure is not one of orders or reviews"));
    }
    let (bucket, step_ms) = bucket(&params)?;
    let span = span(&app, &params, step_ms)?;
    app.includes(metric.projection(), &params).await?;
    let seller = seller.map(UserId::uuid);
    let body = figure(&app, metric, (bucket, span), seller).await?;
    let rows = (&["at", "value", "currency"][..], &body.data[..]);
    Ok(rendered(&app, metric.projection(), form, metric.name, &body, rows))
}

/// The figures of one hour.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReportBody {
    /// The report.
    pub report_id: Uuid,
    /// From this time on.
    #[schema(format = DateTime)]
    pub from: String,
    /// Before this time.
    #[schema(format = DateTime)]
    pub to: String,
    /// Every figure of `GET /analytics/metrics` by its name; money by currency.
    pub figures: BTreeMap<String, Vec<FigureBody>>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub generated_at: String,
}

impl From<&ReportGenerated> for ReportBody {
    fn from(report: &ReportGenerated) -> Self {
        let figure = |of: &ReportFigure| FigureBody {
            value: of.value.clone(),
            currency: of.currency.clone(),
        };
        let figures = report.figures.iter();
        Self {
            report_id: report.report_id.uuid(),
            from: report.from.to_string(),
            to: report.to.to_string(),
            figures: figures
                .map(|(name, of)| (name.clone(), of.iter().map(figure).collect()))
                .collect(),
            generated_at: report.generated_at.to_string(),
        }
    }
}

/// The hourly reports
///
/// For administrators: those of the last two weeks, the latest first. Each is told as
/// `analytics.report.generated` too. After a stop the hours of a day are made up for.
#[utoipa::path(get, path = "/analytics/reports", tag = "analytics",
    responses((status = 200, description = "The reports", body = Page<ReportBody>)))]
async fn list_reports(
    State(app): State<App>,
    Staff(_): Staff,
) -> Result<Answer<Page<ReportBody>>, ApiError> {
    let all =
        |reporting: &Reporting| reporting.reports.iter().map(ReportBody::from).collect::<Vec<_>>();
    let reporting = app.runtime().aggregate::<Reporting>();
    let read = reporting.read(ReportingId::only().uuid(), all).await?;
    Ok(Answer::ok(Page::whole(read.value)))
}

/// The report of an hour
#[utoipa::path(get, path = "/analytics/reports/{id}", tag = "analytics",
    params(("id" = String, Path)),
    responses((status = 200, description = "The report", body = ReportBody)))]
async fn get_report(
    State(app): State<App>,
    Staff(_): Staff,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let id: ReportId = path_id(&id)?;
    let one = move |reporting: &Reporting| {
        let mut reports = reporting.reports.iter();
        reports.find(|report| report.report_id == id).map(ReportBody::from)
    };
    let reporting = app.runtime().aggregate::<Reporting>();
    let read = reporting.read(ReportingId::only().uuid(), one).await?;
    let missing = || ApiError::not_found("there is no such report, or not any more");
    Ok(composed(&read.value.ok_or_else(missing)?, &theirs))
}

/// How many events there were.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventCountsBody {
    /// How long a step is.
    #[schema(example = "1m")]
    pub bucket: &'static str,
    /// From this time on.
    #[schema(format = DateTime)]
    pub from: String,
    /// Before this time.
    #[schema(format = DateTime)]
    pub to: String,
    /// All of them together.
    pub total: u64,
    /// Step by step and group by group, those without any left out.
    pub data: Vec<EventCountBody>,
}

/// How many events of a group there were in a step.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventCountBody {
    /// When the step begins.
    #[schema(format = DateTime)]
    pub at: String,
    /// The context; `outside` for the types of publishers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The event type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// How many.
    pub count: u64,
}

/// By what events are told apart.
#[derive(Debug, Clone, Copy, Default)]
struct Groups {
    context: bool,
    service: bool,
    event_type: bool,
}

impl Groups {
    fn read(params: &Params) -> Result<Self, ApiError> {
        let mut groups = Self::default();
        for name in params.text("group_by").unwrap_or("event_type").split(',') {
            match name.trim() {
                "context" => groups.context = true,
                "service" => groups.service = true,
                "event_type" => groups.event_type = true,
                _ => {
                    let detail = "must be of context, service and event_type, with commas between";
                    return Err(wrong("group_by", detail));
                }
            }
        }
        Ok(groups)
    }

    fn of(self, event_type: &str) -> [Option<String>; 3] {
        let known = registry::find(event_type).map(|named| named.descriptor);
        let context = known.map_or(OUTSIDE, |descriptor| descriptor.context).to_owned();
        let service = known.map_or(OUTSIDE, |descriptor| descriptor.service).to_owned();
        [
            self.context.then_some(context),
            self.service.then_some(service),
            self.event_type.then(|| event_type.to_owned()),
        ]
    }
}

/// How many events there were
///
/// For administrators. By `context`, `service` and `event_type`, as `group_by` says, in steps of time:
/// at most 1,500 of them, the latest. The sums are those of the journal. As CSV or NDJSON by `format`
/// or `Accept`.
#[utoipa::path(get, path = "/analytics/events", tag = "analytics",
    params(("group_by" = Option<String>, Query), ("bucket" = Option<String>, Query),
        ("from" = Option<String>, Query), ("to" = Option<String>, Query),
        ("format" = Option<String>, Query), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "The numbers of events",
        content((EventCountsBody = "application/json"), (String = "text/csv"),
            (String = "application/x-ndjson")))))]
async fn event_counts(
    State(app): State<App>,
    Staff(_): Staff,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let (form, groups) = (form(&params, &headers)?, Groups::read(&params)?);
    let (bucket, step_ms) = bucket(&params)?;
    let span = span(&app, &params, step_ms)?;
    app.includes(EVENTS_INDEX, &params).await?;
    let mut counts: BTreeMap<(i64, [Option<String>; 3]), u64> = BTreeMap::new();
    for ((start, event_type), count) in app.reads().event_counts(span).await? {
        *counts.entry((start, groups.of(&event_type))).or_default() += count;
    }
    let data: Vec<_> = counts
        .into_iter()
        .map(|((start, [context, service, event_type]), count)| EventCountBody {
            at: Timestamp::from_millis(start).to_string(),
            context,
            service,
            event_type,
            count,
        })
        .collect();
    let body = EventCountsBody {
        bucket,
        from: span.from.to_string(),
        to: span.to.to_string(),
        total: data.iter().map(|of| of.count).sum(),
        data,
    };
    let rows = (&["at", "context", "service", "event_type", "count"][..], &body.data[..]);
    Ok(rendered(&app, EVENTS_INDEX, form, "events", &body, rows))
}

/// Something that somebody did.
#[derive(ToSchema)]
pub struct NewAction {
    /// What: letters, digits and `. _ : -`.
    #[schema(max_length = 100, example = "page_viewed")]
    pub action: String,
    /// To what.
    #[schema(max_length = 100, example = "listing")]
    pub subject: Option<String>,
}

impl FromFields for NewAction {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (action, subject) = (fields.text(&["action"]), fields.optional_text(&["subject"]));
        Some(Self { action: action?, subject })
    }
}

/// An action that was noted.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecordedAction {
    /// How many of the caller's actions were noted by now.
    pub recorded: u64,
}

/// An action as it was noted.
#[derive(Debug, Serialize, ToSchema)]
pub struct ActionBody {
    /// What was done.
    #[schema(example = "page_viewed")]
    pub action: String,
    /// To what.
    pub subject: Option<String>,
    /// When it was noted.
    #[schema(format = DateTime)]
    pub recorded_at: String,
}

/// All that was noted of what somebody did, the latest first.
pub(super) async fn all_actions_of(app: &App, user: UserId) -> Result<Vec<ActionBody>, ApiError> {
    let (journal, id) = (app.runtime().journal(), Activity::id_of(user));
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let events = journal.read_aggregate(id, after, ACTIONS_PAGE).await?;
        let Some(last) = events.last() else { break };
        after = last.aggregate_version;
        for event in &events {
            let ActivityEvent::Recorded(ActionRecorded { action, subject, recorded_at, .. }) =
                journal.decode(event).await?;
            all.push(ActionBody { action, subject, recorded_at: recorded_at.to_string() });
        }
    }
    all.reverse();
    Ok(all)
}

/// Note what the caller did
///
/// It becomes the event `analytics.event.recorded`.
#[utoipa::path(post, path = "/analytics/events", tag = "analytics", request_body = NewAction,
    responses((status = 202, description = "It is noted", body = RecordedAction)))]
async fn record_action(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewAction>,
) -> Result<Answer<RecordedAction>, ApiError> {
    let user_id = call.someone()?;
    let NewAction { action, subject } = valid.body;
    let command = ActivityCommand::Record { user_id, action, subject, now: app.now() };
    let context = call.context(&app, "analytics.record", "", &valid.canonical);
    let activities = app.runtime().aggregate::<Activity>();
    let view = |activity: &Activity| activity.recorded;
    let done = activities.send(Activity::id_of(user_id), command, context, view).await?;
    let body = RecordedAction { recorded: done.value };
    Ok(Answer::accepted("/api/v1/analytics/events", body).after(&done))
}

/// How a seller's shop does.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShopBody {
    /// The seller.
    pub user_id: Uuid,
    /// How many listings can be bought now.
    pub listing_count: u64,
    /// The figures of the orders and reviews.
    pub metrics: Vec<MetricBody>,
}

/// How my shop does
///
/// The figures of `GET /analytics/metrics` that are of orders and reviews, of the caller's own.
#[utoipa::path(get, path = "/users/me/analytics", tag = "analytics",
    params(("bucket" = Option<String>, Query), ("from" = Option<String>, Query),
        ("to" = Option<String>, Query), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "The figures", body = ShopBody)))]
async fn my_analytics(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<ShopBody>, ApiError> {
    let user_id = call.someone()?.uuid();
    let (bucket, step_ms) = bucket(&params)?;
    let span = span(&app, &params, step_ms)?;
    app.includes(ANALYTICS_VIEW, &params).await?;
    app.includes(REVIEWS_VIEW, &params).await?;
    let mut metrics = Vec::new();
    for metric in Metric::all().filter(|metric| metric.is_of_sellers()) {
        metrics.push(figure(&app, metric, (bucket, span), Some(user_id)).await?);
    }
    let listing_count = app.reads().active_listings(user_id).await?;
    Ok(Answer::ok(ShopBody { user_id, listing_count, metrics }).projected(&app, ANALYTICS_VIEW))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        let rows = [["=1+1", "a,\"b\"\n"], ["+1", "-1"], ["@x", "plain"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let text = String::from_utf8(csv(&["one", "two"], &rows)).unwrap();
        assert_eq!(text, "one,two\n'=1+1,\"a,\"\"b\"\"\n\"\n'+1,'-1\n'@x,plain\n");
    }
}
