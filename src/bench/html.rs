//! A report as one page that needs nothing else: tables, and plots drawn as SVG.

use std::fmt::Write as _;

use super::report::{Deliveries, Estimates, Moment, Percentiles, Report, Row, number};

/// The size of a plot, and the room for its axes.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 12.0;
/// How many lines a plot's grid has.
const STEPS: u32 = 4;
/// The height of a bar.
const BAR: f64 = 18.0;
const COLOURS: [&str; 4] = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700"];

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;\
color:#1f2328;background:#fff}table{border-collapse:collapse;margin:.5rem 0 1rem}\
th,td{border:1px solid #d0d7de;padding:.2rem .6rem;text-align:right}\
th:first-child,td:first-child{text-align:left}th{background:#f6f8fa}\
.good{color:#1a7f37}.bad{color:#d1242f;font-weight:bold}figure{display:inline-block;margin:.5rem 1rem .5rem 0}\
figcaption{font-weight:600}svg text{font:11px system-ui,sans-serif;fill:#57606a}";

/// Text in which nothing is markup.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = String::with_capacity(64 * 1024);
    let title = format!("{} on {}", report.version, report.store);
    let title = plain(&title);
    let told = format!(
        "{}, {} processors, {} s a phase, {} listings",
        plain(&report.measured_at),
        report.processors,
        report.seconds,
        report.listings
    );
    let verdict = match report.is_good {
        true => "<p class=\"good\">All checks passed.</p>",
        false => "<p class=\"bad\">Checks failed: these figures mean nothing.</p>",
    };
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{told}</p>\n{verdict}\n"
    );
    page.push_str(&summary(report));
    report.rows.iter().for_each(|row| phase(row, &mut page));
    page.push_str("</body>\n</html>\n");
    page
}

fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::from("<table>\n<thead><tr>");
    headings.iter().for_each(|heading| text.push_str(&format!("<th>{}</th>", plain(heading))));
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        row.iter().for_each(|cell| text.push_str(&format!("<td>{}</td>", plain(cell))));
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table>\n");
    text
}

fn times(of: &Percentiles) -> [String; 5] {
    [of.p50_ms, of.p95_ms, of.p99_ms, of.p999_ms, of.max_ms].map(|value| format!("{value:.2}"))
}

const TIMES: [&str; 5] = ["p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms"];

fn with_times<'a>(first: &[&'a str]) -> Vec<&'a str> {
    [first, &TIMES[..]].concat()
}

/// A table of names, how many there were of each and how long they took; none of nothing.
fn estimated<'a>(
    title: &str,
    first: &[&str],
    rows: impl Iterator<Item = (&'a str, u64, &'a Estimates)>,
    page: &mut String,
) {
    let rows: Vec<_> = rows
        .map(|(name, count, times)| {
            let times = times.all().map(|value| format!("{value:.2}"));
            [name.to_owned(), count.to_string()].into_iter().chain(times).collect()
        })
        .collect();
    if !rows.is_empty() {
        page.push_str(&format!("<h3>{title}</h3>\n"));
        page.push_str(&table(&[first, &TIMES[..4]].concat(), &rows));
    }
}

fn summary(report: &Report) -> String {
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            let mut cells = vec![row.title(), format!("{:.0} {}", row.per_second, row.unit)];
            cells.extend(times(&row.times));
            cells.extend([number(row.of_echo, 2), number(row.of_raw, 2), number(row.cpu_us, 0)]);
            cells
        })
        .collect();
    let mut headings = with_times(&["phase", "per second"]);
    headings.extend(["of echo", "of raw", "cpu µs"]);
    table(&headings, &rows)
}

fn phase(row: &Row, page: &mut String) {
    page.push_str(&format!("<h2>{}</h2>\n", plain(&row.title())));
    let deliveries = row.deliveries.as_ref().and_then(Deliveries::told);
    for told in row.notes.iter().chain(&deliveries) {
        page.push_str(&format!("<p>{}</p>\n", plain(told)));
    }
    if !row.moments.is_empty() {
        plots(row, page);
    }
    if row.kinds.len() > 1 {
        let rows = row.kinds.iter().map(|kind| {
            let counts =
                [kind.kind.clone(), format!("{:.1}", kind.per_second), kind.refused.to_string()];
            counts.into_iter().chain(times(&kind.times)).collect()
        });
        page.push_str("<h3>By kind of request</h3>\n");
        page.push_str(&table(
            &with_times(&["kind", "per second", "refused"]),
            &rows.collect::<Vec<_>>(),
        ));
    }
    if let Some(shipped) = &row.shipped {
        let cells = ["PENDING to SHIPPED".to_owned()].into_iter().chain(times(shipped)).collect();
        page.push_str(&table(&with_times(&["orders"]), &[cells]));
    }
    aggregates(row, page);
    journal(row, page);
    let types = row.types.iter().map(|of| (of.aggregate_type.as_str(), of.commands, &of.times));
    estimated("Commands by type of aggregate", &["type", "commands"], types, page);
    let subscribers = row.subscribers.iter().map(|of| (of.name.as_str(), of.events, &of.times));
    estimated("From decision to handled", &["subscription", "events"], subscribers, page);
    checks(row, page);
}

fn plots(row: &Row, page: &mut String) {
    let line = |of: fn(&Moment) -> f64| {
        row.moments.iter().map(|moment| (moment.second, of(moment))).collect::<Vec<_>>()
    };
    let unit = format!("{} a second", row.unit);
    let rate = [(unit.as_str(), line(|moment| moment.per_second))];
    page.push_str(&chart("Throughput over time (s)", &rate));
    let latency =
        [("p50 ms", line(|moment| moment.p50_ms)), ("p99 ms", line(|moment| moment.p99_ms))];
    page.push_str(&chart("Latency over time (s)", &latency));
    // Each step to the right is ten times rarer.
    let rarity = |share: f64| if share < 1.0 { -(1.0 - share).log10() } else { 5.0 };
    let curve: Vec<_> = row.curve.iter().map(|(share, ms)| (rarity(*share), *ms)).collect();
    page.push_str(&chart(
        "Latency by share of answers (1 is 90 %, 2 is 99 %, 3 is 99.9 %, 5 the longest)",
        &[("ms", curve)],
    ));
}

fn aggregates(row: &Row, page: &mut String) {
    let Some(aggregates) = &row.aggregates else { return };
    let spread = &aggregates.spread;
    page.push_str("<h3>By aggregate</h3>\n");
    page.push_str(&format!(
        "<p>{} aggregates, each {:.1} to {:.1} answers a second, the median {:.1}; fairness {:.3}.</p>\n",
        spread.aggregates,
        spread.min_per_second,
        spread.max_per_second,
        spread.median_per_second,
        spread.fairness
    ));
    let of_rates: Vec<_> =
        aggregates.top.iter().map(|top| (top.aggregate.as_str(), top.per_second)).collect();
    page.push_str(&bars("Answers a second of those that were asked most", &of_rates));
    let of_times: Vec<_> =
        aggregates.top.iter().map(|top| (top.aggregate.as_str(), top.times.p99_ms)).collect();
    page.push_str(&bars("Their 99th percentile in ms", &of_times));
    let rows = aggregates.top.iter().map(|top| {
        let counts = [top.aggregate.clone(), format!("{:.1}", top.per_second)];
        counts.into_iter().chain(times(&top.times)).collect()
    });
    page.push_str(&table(&with_times(&["aggregate", "per second"]), &rows.collect::<Vec<_>>()));
}

fn journal(row: &Row, page: &mut String) {
    if row.journal.is_empty() {
        return;
    }
    let rows = row.journal.iter().map(|of| {
        let each = &of.per_aggregate;
        let numbers = [each.min_per_second, each.median_per_second, each.max_per_second];
        let counts =
            [of.aggregate_type.clone(), of.events.to_string(), each.aggregates.to_string()];
        counts.into_iter().chain(numbers.map(|rate| format!("{rate:.2}"))).collect()
    });
    page.push_str("<h3>What the journal got</h3>\n");
    let headings =
        ["type", "events", "aggregates", "least a second", "median a second", "most a second"];
    page.push_str(&table(&headings, &rows.collect::<Vec<_>>()));
}

fn checks(row: &Row, page: &mut String) {
    if row.checks.is_empty() {
        return;
    }
    page.push_str("<h3>Checks</h3>\n<ul>\n");
    for check in &row.checks {
        let (class, word) = if check.is_good { ("good", "yes") } else { ("bad", "NO") };
        let (name, found) = (plain(&check.name), plain(&check.found));
        page.push_str(&format!("<li class=\"{class}\">{name}: {word} ({found})</li>\n"));
    }
    page.push_str("</ul>\n");
}

/// A round number at or above a value: the end of an axis.
fn round_up(value: f64) -> f64 {
    if value.is_nan() || value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|end| *end >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1_000_000.0 => format!("{:.1} M", value / 1_000_000.0),
        value if value >= 10_000.0 => format!("{:.0} k", value / 1_000.0),
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

/// Lines over a common axis.
fn chart(title: &str, series: &[(&str, Vec<(f64, f64)>)]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let x_max = round_up(points().map(|point| point.0).fold(0.0, f64::max));
    let y_max = round_up(points().map(|point| point.1).fold(0.0, f64::max));
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - TOP);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        plain(title)
    );
    for step in 0..=STEPS {
        let share = f64::from(step) / f64::from(STEPS);
        let (at_x, at_y) = (x(share * x_max), y(share * y_max));
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at_y:.1}\" x2=\"{:.1}\" y2=\"{at_y:.1}\" stroke=\"#d0d7de\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <text x=\"{at_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            WIDTH - TOP,
            LEFT - 6.0,
            at_y + 4.0,
            short(share * y_max),
            HEIGHT - BOTTOM + 16.0,
            short(share * x_max)
        );
    }
    let mut name_at = LEFT;
    for ((name, points), colour) in series.iter().zip(COLOURS) {
        let line: Vec<_> =
            points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\n\
             <text x=\"{name_at}\" y=\"{:.1}\" style=\"fill:{colour}\">{}</text>\n",
            line.join(" "),
            HEIGHT - 4.0,
            plain(name)
        );
        name_at += 160.0;
    }
    svg.push_str("</svg></figure>\n");
    svg
}

/// Bars with their names.
fn bars(title: &str, values: &[(&str, f64)]) -> String {
    let most = round_up(values.iter().map(|(_, value)| *value).fold(0.0, f64::max));
    #[expect(clippy::cast_precision_loss, reason = "some twenty")]
    let height = values.len() as f64 * BAR + 4.0;
    let names = 260.0;
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        plain(title)
    );
    let mut at = 2.0;
    for (name, value) in values {
        let width = value / most * (WIDTH - names - 60.0);
        let middle = at + BAR - 6.0;
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{names}\" y=\"{at:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{middle:.1}\">{}</text>\n",
            names - 6.0,
            plain(name),
            BAR - 4.0,
            COLOURS[0],
            names + width + 4.0,
            short(*value)
        );
        at += BAR;
    }
    svg.push_str("</svg></figure>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::super::check::Check;
    use super::super::compare::tests::report;
    use super::super::report::{Aggregates, Spread, Subscriber, TopAggregate, TypeRow};
    use super::*;

    /// Every element that is opened is closed, in order, and no text is taken for markup.
    fn assert_well_formed(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        let body = page.strip_prefix("<!DOCTYPE html>\n").expect("a document type");
        for part in body.split('<').skip(1) {
            let (tag, text) = part.split_once('>').expect("every tag ends");
            assert!(!text.contains('>'), "{part}");
            let name = tag.split([' ', '/']).next().unwrap();
            let quotes = tag.matches('"').count();
            assert!(quotes.is_multiple_of(2), "{tag}");
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(closed), "{part}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            for after in text.split('&').skip(1) {
                let entity = after.split(';').next().unwrap();
                assert!(["amp", "lt", "gt", "quot"].contains(&entity), "{text}");
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let mut report = report(1_000.0, 4.0);
        let row = &mut report.rows[0];
        row.phase = "hot <b> & \"cold\"".into();
        row.moments = (0..5)
            .map(|second| Moment {
                second: f64::from(second),
                per_second: 1_000.0,
                refused: 0,
                p50_ms: 1.0,
                p99_ms: f64::from(second),
            })
            .collect();
        row.curve = vec![(0.5, 1.0), (0.99, 3.0), (1.0, 10.0)];
        row.shipped = Some(Percentiles::default());
        row.kinds.push(row.kinds[0].clone());
        let top = TopAggregate {
            aggregate: "a<b".into(),
            per_second: 3.0,
            times: Percentiles::default(),
        };
        row.aggregates =
            Some(Aggregates { spread: Spread::of(vec![1, 2], 1.0), top: vec![top; 3] });
        let times = Estimates { p999_ms: 7.25, ..Estimates::default() };
        row.subscribers.push(Subscriber { name: "index".into(), events: 3, times });
        row.types.push(TypeRow { aggregate_type: "order".into(), commands: 3, times });
        row.deliveries = Some(Deliveries::new(3, [("mails".to_owned(), 1)].into()));
        row.notes.push("a < b".into());
        row.checks.push(Check::new("a & b", false, "1 < 2"));
        let page = page(&report);
        assert_well_formed(&page);
        for part in [
            "polyline",
            "<rect",
            "hot &lt;b&gt;",
            "a &amp; b: NO (1 &lt; 2)",
            "From decision to handled",
            "<td>index</td><td>3</td><td>0.00</td><td>0.00</td><td>0.00</td><td>7.25</td>",
            "<td>order</td>",
            "3 deliveries handled, 1 dead letters: 75.000 % succeeded",
            "<p>a &lt; b</p>",
        ] {
            assert!(page.contains(part), "{part}");
        }
        let links = ["src=", "href=", "@import", "url("];
        assert!(links.iter().all(|link| !page.contains(link)), "nothing comes from elsewhere");
    }

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(
            [0.0, 0.7, 3.0, 21.0, 100.0, 48_000.0].map(round_up),
            [1.0, 1.0, 5.0, 25.0, 100.0, 50_000.0]
        );
    }
}
