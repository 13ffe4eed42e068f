//! `analytics-view`: what becomes of orders and when, for figures of the business; and the figures.
//!
//! Each order has one row, folded from its events, so that an order counts once however often its
//! events come. What is merely counted by type is asked of `events-index`, which has every event once.

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::events_index::{self, EventFilter};
use super::reviews::ReviewsView;
use super::view::{View, read_data};
use crate::domain::order::OrderEvent;
use crate::domain::registry;

/// Sums are made in two parts, so that none of them overflows.
const PART: i128 = 1_000_000;

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderFigures {
    order_id: Uuid,
    seller_id: Uuid,
    amount: i64,
    currency: String,
    placed_at: Timestamp,
    paid_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    lost_at: Option<Timestamp>,
    version: i64,
}

/// The figures of orders.
pub struct AnalyticsView;

#[derive(Deserialize)]
struct Placed {
    seller_id: Uuid,
    amount: i64,
    currency: String,
}

impl View for AnalyticsView {
    const NAME: &'static str = super::ANALYTICS_VIEW;
    const CONTEXT: &'static str = "analytics";
    const TOPICS: &'static [&'static str] = &[
        "order.placed",
        "order.paid",
        "order.completed",
        "order.rejected",
        "order.payment_failed",
        "order.cancelled",
        "order.failed",
    ];
    const TABLE: &'static str = "order_figures_v1";
    const COLUMNS: &'static [&'static str] = &[
        "order_id",
        "seller_id",
        "amount",
        "currency",
        "placed_ms",
        "paid_ms",
        "completed_ms",
        "lost_ms",
        "version",
    ];
    const FIXED: &'static [&'static str] = &["seller_id", "amount", "currency", "placed_ms"];
    type Row = OrderFigures;

    fn fold(
        row: Option<OrderFigures>,
        event: &StoredEvent,
    ) -> Result<Option<OrderFigures>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
        let at = event.timestamp;
        if &*event.event_type == "order.placed" {
            let Placed { seller_id, amount, currency } = read_data::<OrderEvent, _>(event)?;
            return Ok(Some(OrderFigures {
                order_id: event.aggregate_id,
                seller_id,
                amount,
                currency,
                placed_at: at,
                paid_at: None,
                completed_at: None,
                lost_at: None,
                version,
            }));
        }
        Ok(row.map(|mut row| {
            match &*event.event_type {
                "order.paid" => row.paid_at = row.paid_at.or(Some(at)),
                "order.completed" => row.completed_at = row.completed_at.or(Some(at)),
                _ => row.lost_at = row.lost_at.or(Some(at)),
            }
            row.version = version;
            row
        }))
    }

    fn values(row: &OrderFigures) -> Vec<Param> {
        vec![
            row.order_id.into(),
            row.seller_id.into(),
            row.amount.into(),
            (&row.currency).into(),
            row.placed_at.into(),
            Param::time(row.paid_at),
            Param::time(row.completed_at),
            Param::time(row.lost_at),
            row.version.into(),
        ]
    }

    fn read(row: &Row) -> Result<OrderFigures, ReadError> {
        Ok(OrderFigures {
            order_id: row.id(0)?,
            seller_id: row.id(1)?,
            amount: row.int(2)?,
            currency: row.text(3)?,
            placed_at: row.time(4)?,
            paid_at: row.time_or_null(5)?,
            completed_at: row.time_or_null(6)?,
            lost_at: row.time_or_null(7)?,
            version: row.int(8)?,
        })
    }
}

/// What a figure is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// How many.
    Count,
    /// Money, in minor units of each currency.
    Amount,
    /// A share from 0 to 1.
    Ratio,
    /// What numbers come to on average.
    Average,
}

impl Unit {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Amount => "amount",
            Self::Ratio => "ratio",
            Self::Average => "average",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// How many events of a type.
    Events(&'static str),
    /// How many orders, by the time at which this happened to them.
    Orders(&'static str),
    /// The sum of orders, by the time at which this happened to them.
    Amounts(&'static str),
    /// Which share of the orders placed was paid.
    Conversion,
    /// The ratings of the reviews that are shown.
    Ratings,
}

/// A figure of the business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is of.
    pub unit: Unit,
    source: Source,
}

const fn metric(name: &'static str, unit: Unit, source: Source) -> Metric {
    Metric { name, unit, source }
}

/// Every figure. Those of orders and ratings are there for each seller too.
pub static METRICS: [Metric; 14] = [
    metric("users_registered", Unit::Count, Source::Events("user.registered")),
    metric("users_verified", Unit::Count, Source::Events("user.email_verified")),
    metric("sellers_verified", Unit::Count, Source::Events("seller.verified")),
    metric("listings_created", Unit::Count, Source::Events("listing.created")),
    metric("listings_sold_out", Unit::Count, Source::Events("listing.sold")),
    metric("reviews_created", Unit::Count, Source::Events("review.created")),
    metric("review_average", Unit::Average, Source::Ratings),
    metric("orders_placed", Unit::Count, Source::Orders("placed_ms")),
    metric("orders_paid", Unit::Count, Source::Orders("paid_ms")),
    metric("orders_completed", Unit::Count, Source::Orders("completed_ms")),
    metric("orders_lost", Unit::Count, Source::Orders("lost_ms")),
    metric("gmv", Unit::Amount, Source::Amounts("paid_ms")),
    metric("revenue", Unit::Amount, Source::Amounts("completed_ms")),
    metric("conversion", Unit::Ratio, Source::Conversion),
];

impl Metric {
    /// The figure of this name; one of events that are not told here is none.
    pub fn named(name: &str) -> Option<&'static Self> {
        let metric = METRICS.iter().find(|metric| metric.name == name)?;
        let is_known = match metric.source {
            Source::Events(event_type) => registry::find(event_type).is_some(),
            _ => true,
        };
        is_known.then_some(metric)
    }

    /// Every figure that there is.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        METRICS.iter().filter_map(|metric| Self::named(metric.name))
    }

    /// Whether there is one for each seller.
    pub fn is_of_sellers(&self) -> bool {
        !matches!(self.source, Source::Events(_))
    }

    /// The projection that it rests on.
    pub fn projection(&self) -> &'static str {
        match self.source {
            Source::Events(_) => super::EVENTS_INDEX,
            Source::Ratings => super::REVIEWS_VIEW,
            Source::Orders(_) | Source::Amounts(_) | Source::Conversion => super::ANALYTICS_VIEW,
        }
    }
}

/// Which stretch of time, and in which steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From this time on.
    pub from: Timestamp,
    /// Before this time.
    pub to: Timestamp,
    /// How long a step is, in milliseconds.
    pub step_ms: i64,
}

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A count or an amount.
    Whole(i64),
    /// A ratio or an average.
    Share(f64),
}

/// A figure of one step, and where it is money of one currency.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// When the step begins; none: of all steps together.
    pub at: Option<Timestamp>,
    /// The currency.
    pub currency: Option<String>,
    /// The figure.
    pub value: Value,
}

/// What was summed up of a step or of all.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    all: u64,
    paid: u64,
    amount: i128,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.all += other.all;
        self.paid += other.paid;
        self.amount += other.amount;
    }

    fn value(&self, unit: Unit) -> Value {
        match unit {
            Unit::Count => Value::Whole(i64::try_from(self.all).unwrap_or(i64::MAX)),
            Unit::Amount => Value::Whole(i64::try_from(self.amount).unwrap_or(i64::MAX)),
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            Unit::Ratio => Value::Share(self.paid as f64 / self.all.max(1) as f64),
            #[expect(clippy::cast_precision_loss, reason = "an average")]
            Unit::Average => Value::Share(self.amount as f64 / self.all.max(1) as f64),
        }
    }
}

/// A figure over a span, of everybody or of one seller: step by step where there is something, and
/// of all together.
pub async fn figure(
    db: &ReadDb,
    metric: &Metric,
    span: Span,
    seller: Option<Uuid>,
) -> Result<(Vec<Point>, Vec<Point>), ReadError> {
    let sums = match metric.source {
        Source::Events(event_type) => events(db, event_type, span).await?,
        Source::Orders(time) | Source::Amounts(time) => orders(db, time, span, seller).await?,
        Source::Conversion => orders(db, "placed_ms", span, seller).await?,
        Source::Ratings => ratings(db, span, seller).await?,
    };
    // Money is told by currency, all else in one number.
    let key = |currency: &Option<String>| match metric.unit {
        Unit::Amount => currency.clone(),
        _ => None,
    };
    let mut steps = std::collections::BTreeMap::<_, Sum>::new();
    let mut whole = std::collections::BTreeMap::<_, Sum>::new();
    for (start, currency, sum) in &sums {
        steps.entry((*start, key(currency))).or_default().add(sum);
        whole.entry(key(currency)).or_default().add(sum);
    }
    // Nothing is no amount of any currency, and has no average.
    if matches!(metric.unit, Unit::Count | Unit::Ratio) && whole.is_empty() {
        whole.insert(None, Sum::default());
    }
    let steps = steps.into_iter().map(|((start, currency), sum)| Point {
        at: Some(Timestamp::from_millis(start)),
        currency,
        value: sum.value(metric.unit),
    });
    let whole = whole.into_iter().map(|(currency, sum)| Point {
        at: None,
        currency,
        value: sum.value(metric.unit),
    });
    Ok((steps.collect(), whole.collect()))
}

async fn events(
    db: &ReadDb,
    event_type: &str,
    span: Span,
) -> Result<Vec<(i64, Option<String>, Sum)>, ReadError> {
    let filter = EventFilter {
        event_types: vec![event_type.to_owned()],
        from: Some(span.from),
        to: Some(span.to),
        ..EventFilter::default()
    };
    let counts = events_index::counts(db, &filter, span.step_ms).await?;
    Ok(counts
        .into_iter()
        .map(|((start, _), all)| (start, None, Sum { all, ..Sum::default() }))
        .collect())
}

async fn orders(
    db: &ReadDb,
    time: &'static str,
    span: Span,
    seller: Option<Uuid>,
) -> Result<Vec<(i64, Option<String>, Sum)>, ReadError> {
    let query = Query::new("SELECT ")
        .then(time)
        .then(" / ")
        .value(span.step_ms)
        .then(" * ")
        .value(span.step_ms)
        .then(
            " AS start, currency, COUNT(*), COUNT(paid_ms), \
             CAST(SUM(amount / 1000000) AS BIGINT), CAST(SUM(amount % 1000000) AS BIGINT) FROM ",
        )
        .table(&db.table(AnalyticsView::NAME, AnalyticsView::TABLE))
        .then(" WHERE ")
        .then(time)
        .then(" >= ")
        .value(span.from.millis())
        .then(" AND ")
        .then(time)
        .then(" < ")
        .value(span.to.millis())
        .when(" AND seller_id = ", seller)
        .then(" GROUP BY start, currency ORDER BY start, currency");
    db.fetch_as(query, |row| {
        let amount = i128::from(row.int(4)?) * PART + i128::from(row.int(5)?);
        let sum = Sum { all: row.count(2)?, paid: row.count(3)?, amount };
        Ok((row.int(0)?, Some(row.text(1)?), sum))
    })
    .await
}

async fn ratings(
    db: &ReadDb,
    span: Span,
    seller: Option<Uuid>,
) -> Result<Vec<(i64, Option<String>, Sum)>, ReadError> {
    let query = Query::new("SELECT created_ms / ")
        .value(span.step_ms)
        .then(" * ")
        .value(span.step_ms)
        .then(" AS start, COUNT(*), CAST(SUM(rating) AS BIGINT) FROM ")
        .table(&db.table(ReviewsView::NAME, ReviewsView::TABLE))
        .then(" WHERE hidden = 0 AND created_ms >= ")
        .value(span.from.millis())
        .then(" AND created_ms < ")
        .value(span.to.millis())
        .when(" AND seller_id = ", seller)
        .then(" GROUP BY start ORDER BY start");
    db.fetch_as(query, |row| {
        let sum = Sum { all: row.count(1)?, amount: row.int(2)?.into(), ..Sum::default() };
        Ok((row.int(0)?, None, sum))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projections::testing::{TestDb, event, filled, numbered};
    use crate::projections::view::Projected;

    const HOUR: i64 = 3_600_000;

    /// What happens to an order of a seller, at an hour.
    fn of(order: u128, version: u64, event_type: &str, hour: i64, amount: i64) -> StoredEvent {
        let seller = Uuid::from_u128(900 + order % 2);
        let data = serde_json::json!({ "seller_id": seller, "amount": amount, "currency": "VND" });
        StoredEvent {
            aggregate_version: version,
            timestamp: Timestamp::from_millis(hour * HOUR + 1),
            data: data.to_string().into(),
            ..event(event_type, "order", order)
        }
    }

    fn history() -> Vec<StoredEvent> {
        vec![
            of(1, 1, "order.placed", 0, 100),
            of(1, 2, "order.paid", 1, 0),
            of(1, 3, "order.completed", 5, 0),
            of(2, 1, "order.placed", 0, 7),
            of(2, 2, "order.payment_failed", 0, 0),
            of(3, 1, "order.placed", 2, 50),
            of(3, 2, "order.paid", 2, 0),
            of(3, 3, "order.cancelled", 3, 0),
        ]
    }

    async fn value(test: &TestDb, name: &str, seller: Option<u128>) -> Vec<Value> {
        let span = Span {
            from: Timestamp::from_millis(0),
            to: Timestamp::from_millis(10 * HOUR),
            step_ms: HOUR,
        };
        let metric = Metric::named(name).unwrap();
        let seller = seller.map(Uuid::from_u128);
        let (steps, whole) = figure(&test.db, metric, span, seller).await.unwrap();
        let sum: i64 = steps
            .iter()
            .map(|point| if let Value::Whole(value) = point.value { value } else { 0 })
            .sum();
        if let Some(Point { value: Value::Whole(value), .. }) = whole.first() {
            assert_eq!(*value, sum, "{name}");
        }
        whole.into_iter().map(|point| point.value).collect()
    }

    #[tokio::test]
    async fn an_order_counts_once_in_every_figure() {
        let mut events = history();
        events.extend(history());
        let test = filled::<AnalyticsView>(events).await;
        for (name, expected) in [
            ("orders_placed", 3),
            ("orders_paid", 2),
            ("orders_completed", 1),
            ("orders_lost", 2),
            ("gmv", 150),
            ("revenue", 100),
        ] {
            assert_eq!(value(&test, name, None).await, [Value::Whole(expected)], "{name}");
        }
        assert_eq!(value(&test, "conversion", None).await, [Value::Share(2.0 / 3.0)]);
        assert_eq!(value(&test, "gmv", Some(901)).await, [Value::Whole(150)]);
        assert_eq!(value(&test, "gmv", Some(900)).await, []);
        assert_eq!(value(&test, "orders_placed", Some(900)).await, [Value::Whole(1)]);
        assert_eq!(value(&test, "conversion", Some(900)).await, [Value::Share(0.0)]);
    }

    #[tokio::test]
    async fn the_largest_amounts_are_summed_up() {
        let amount = crate::domain::money::AMOUNT_MAX;
        let events = (0..1_100).flat_map(|order| {
            [of(order, 1, "order.placed", 0, amount), of(order, 2, "order.paid", 0, 0)]
        });
        let test = crate::projections::testing::open().await;
        let events = numbered(events);
        let view =
            Projected::<crate::projections::view::ViewTable<AnalyticsView>>::new(test.db.clone());
        view.advance(0, &events, events.len() as u64).await.unwrap();
        assert_eq!(value(&test, "gmv", Some(900)).await, [Value::Whole(550 * amount)]);
        let (_, whole) = figure(
            &test.db,
            Metric::named("gmv").unwrap(),
            Span {
                from: Timestamp::from_millis(0),
                to: Timestamp::from_millis(HOUR),
                step_ms: HOUR,
            },
            None,
        )
        .await
        .unwrap();
        assert_eq!(whole[0].value, Value::Whole(i64::MAX), "and what is more is the most there is");
    }

    #[test]
    fn figures_have_names_of_their_own() {
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        assert!(Metric::named("nothing").is_none());
    }
}
