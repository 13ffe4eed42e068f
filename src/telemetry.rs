//! What the program says about itself: JSON log lines and Prometheus metrics.
//!
//! Log lines are one JSON object each, with the names of the Elastic Common Schema where it has one
//! (`@timestamp`, `log.level`, `message`, `trace.id`). Fields come from the event and from the spans
//! around it, so that a line from deep inside still carries its request's correlation id.

pub mod catalogue;
pub mod flows;
pub mod traces;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::Value;
use souk_actors::world::{SystemWorld, World as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogTo;
use crate::domain::registry::all_descriptors;

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision it was built from, where the build says so.
pub const REVISION: &str = match option_env!("SOUK_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Upper bounds of durations, in seconds: from a command in memory to a client's patience.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];
/// Upper bounds of how long events take until they are handled, in seconds: from a handler that has
/// nothing else to do to a batch that is late.
const DELIVERIES: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];
/// Upper bounds of durations of what may wait for people, in seconds.
const LONG: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0,
    86_400.0,
];
/// Upper bounds of durations of flows, in seconds: from a few handlers to a payer who takes their time.
const FLOWS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3_600.0,
];
/// Upper bounds of sizes of batches.
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0];

/// Why events from outside are refused.
const REJECTIONS: [&str; 12] = [
    "schema",
    "unknown_type",
    "forbidden_type",
    "invalid",
    "too_large",
    "rate_limited",
    "event_id_taken",
    "sequence_taken",
    "sequence_passed",
    "sequence_gap",
    "sequence_buffer_full",
    "not_stored",
];

/// Starts logging. A second call changes nothing (tests start many servers).
pub fn start_logging(filter: &str, to: LogTo) {
    let writer = match to {
        LogTo::StandardError => BoxMakeWriter::new(std::io::stderr),
        LogTo::StandardOutput => BoxMakeWriter::new(std::io::stdout),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter_of(filter))
        .with_writer(writer)
        .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
        .event_format(JsonLine)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("logging has already been started");
    }
}

/// Each actor lives in a span of ractor's, which nobody reads and every wake-up enters. Whoever names ractor gets it.
fn filter_of(text: &str) -> EnvFilter {
    let filter = EnvFilter::try_new(text).unwrap_or_else(|_| EnvFilter::new("info"));
    match "ractor=warn".parse() {
        Ok(quiet) if !text.contains("ractor") => filter.add_directive(quiet),
        _ => filter,
    }
}

/// The process's recorder of metrics, installed on first use.
pub fn metrics_handle() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handle = recorder()
                .install_recorder()
                .expect("no other recorder is installed in this process");
            metrics_process::Collector::default().describe();
            describe();
            metrics::gauge!("souk_build_info", "version" => VERSION, "revision" => REVISION)
                .set(1.0);
            at_zero();
            handle
        })
        .clone()
}

/// Says what each metric is.
fn describe() {
    metrics::with_recorder(|recorder| {
        for (name, help) in catalogue::METRICS {
            // The exporter knows the kind from the first value; only the words are kept.
            recorder.describe_gauge((*name).into(), None, (*help).into());
        }
    });
}

/// What the service counts stands at 0 from the start: a counter that appears with its first count
/// shows no increase. The runtime does the same with what it counts.
fn at_zero() {
    metrics::counter!("souk_streams_cut_total").increment(0);
    for found in ["something", "nothing"] {
        metrics::counter!("souk_search_queries_total", "found" => found).increment(0);
    }
    for result in ["ok", "failed"] {
        metrics::counter!("souk_health_checks_total", "result" => result).increment(0);
    }
    metrics::gauge!("souk_streams_open").set(0.0);
    metrics::gauge!("souk_http_connections").set(0.0);
    // Where nobody looks, nobody has found too little either.
    metrics::gauge!("souk_disk_low").set(0.0);
    metrics::gauge!("souk_memory_high").set(0.0);
    for descriptor in all_descriptors() {
        let event_type = descriptor.event_type;
        let context = event_type.split('.').next().unwrap_or_default();
        metrics::counter!("souk_events_published_total", "context" => context, "event_type" => event_type)
            .increment(0);
    }
    for outcome in ["delivered", "failed", "exhausted", "deferred"] {
        metrics::counter!("souk_webhook_deliveries_total", "outcome" => outcome).increment(0);
    }
    for flow in &flows::FLOWS {
        for end in flow.ends {
            let _ = metrics::histogram!(
                "souk_flow_duration_seconds",
                "flow" => flow.name, "event_type" => *end
            );
        }
    }
    for reason in REJECTIONS {
        metrics::counter!("souk_events_rejected_total", "reason" => reason).increment(0);
    }
}

/// Everything measured so far as Prometheus text (format 0.0.4).
pub fn render_metrics(handle: &PrometheusHandle) -> String {
    metrics_process::Collector::default().collect();
    handle.render()
}

/// Keeps the recorder small: histograms are folded only here and when somebody scrapes.
pub async fn keep_metrics_tidy(handle: PrometheusHandle) {
    let mut every = tokio::time::interval(std::time::Duration::from_secs(5));
    loop {
        every.tick().await;
        handle.run_upkeep();
    }
}

/// Buckets, not the exporter's default of summaries: those cannot be added up over processes.
fn recorder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets(SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_batch_events".to_owned()), COUNTS)
        })
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_depth".to_owned()), COUNTS)
        })
        .and_then(|builder| {
            let deliveries = Matcher::Full("souk_event_end_to_end_seconds".to_owned());
            builder.set_buckets_for_metric(deliveries, DELIVERIES)
        })
        .and_then(|builder| {
            let attempts = Matcher::Full("souk_event_handler_duration_seconds".to_owned());
            builder.set_buckets_for_metric(attempts, DELIVERIES)
        })
        .and_then(|builder| {
            let sagas = Matcher::Full("souk_saga_duration_seconds".to_owned());
            builder.set_buckets_for_metric(sagas, LONG)
        })
        .and_then(|builder| {
            let flows = Matcher::Full("souk_flow_duration_seconds".to_owned());
            builder.set_buckets_for_metric(flows, FLOWS)
        })
        .expect("no list of buckets is empty")
}

/// Writes an event as one line of JSON.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            if let Some(text) = extensions.get::<FormattedFields<N>>()
                && let Ok(Value::Object(of_span)) = serde_json::from_str(text)
            {
                fields.0.extend(of_span.into_iter().map(|(name, value)| (renamed(&name), value)));
            }
        }
        event.record(&mut fields);
        let meta = event.metadata();
        let message = fields.0.remove("message").unwrap_or_default();
        let mut line = String::with_capacity(256);
        line.push_str("{\"@timestamp\":");
        push(&mut line, &Value::from(SystemWorld::new().now().to_string()));
        line.push_str(",\"log.level\":");
        push(&mut line, &Value::from(meta.level().as_str()));
        line.push_str(",\"message\":");
        push(&mut line, &message);
        line.push_str(",\"log.logger\":");
        push(&mut line, &Value::from(meta.target()));
        for (name, value) in &fields.0 {
            line.push(',');
            push(&mut line, &Value::from(name.as_str()));
            line.push(':');
            push(&mut line, value);
        }
        writeln!(writer, "{line}}}")
    }
}

fn push(line: &mut String, value: &Value) {
    if write!(line, "{value}").is_err() {
        line.push_str("null");
    }
}

/// Field names of `tracing` cannot always be those of the log: dots need quotes there, and few
/// people write them.
fn renamed(name: &str) -> String {
    match name {
        "trace_id" => "trace.id".to_owned(),
        "span_id" => "span.id".to_owned(),
        other => other.to_owned(),
    }
}

#[derive(Default)]
struct Fields(BTreeMap<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(renamed(field.name()), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::from(value));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut chain = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            chain = format!("{chain}: {error}");
            cause = error.source();
        }
        self.put(field, Value::from(chain));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, Value::from(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object_with_the_fields_of_its_spans() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
            .event_format(JsonLine)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span =
                tracing::info_span!("request", correlation_id = "req_456", trace_id = "0af7");
            span.in_scope(|| tracing::info!(attempt = 2, "sent \"it\""));
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["log.level"], "INFO");
        assert_eq!(line["message"], "sent \"it\"");
        assert_eq!(line["correlation_id"], "req_456");
        assert_eq!(line["trace.id"], "0af7");
        assert_eq!(line["attempt"], 2);
        assert!(line["@timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn histograms_have_buckets() {
        let recorder = recorder().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("souk_command_duration_seconds").record(0.003);
        });
        assert!(recorder.handle().render().contains("souk_command_duration_seconds_bucket"));
    }
}
