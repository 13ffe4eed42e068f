//! Watching the service from outside: metrics, dashboards, rules and alerts, with a real Prometheus
//! (S0-101, S0-113 to S0-117, S1-84, S1-85, S1-180, S1-181, S4-53 to S4-62, K2).

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use souk::telemetry::catalogue::METRICS;
use souk::tls::http_client;

use crate::support::certificates::Authority;
use crate::support::{PRICE, Server, Start, eventually, on_postgres, parallel};
use crate::tls::{secured, trusting};

/// What is there only with a provider of payments or a collector of traces outside, or after an
/// audit that ran by itself.
const NOT_ALWAYS: [&str; 4] = [
    "souk_trace_spans_total",
    "souk_payment_provider_calls_total",
    "souk_payment_notices_total",
    "souk_audit_completed_timestamp_seconds",
];
/// What is there only where the journal is in files.
const ON_FILES: &str = "souk_disk_free_bytes";

fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana")
}

/// Runs one of Prometheus' tools; it must be content.
#[track_caller]
fn content(package: &str, words: &[&str], input: &str) -> String {
    let (said, is_content) = run(package, words, input);
    assert!(is_content, "{words:?}: {said}");
    said
}

#[track_caller]
fn run(package: &str, words: &[&str], input: &str) -> (String, bool) {
    use std::io::Write as _;
    let child = Command::new(words[0])
        .args(&words[1..])
        .current_dir(grafana())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| {
        panic!(
            "{} cannot be run ({error}): apt-get install --no-install-recommends {package}",
            words[0]
        )
    });
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), ended.status.success())
}

/// A Prometheus that watches one server, started the way the manual says.
struct Prometheus {
    script: Child,
    address: String,
    http: reqwest::Client,
}

/// The script that brings up Prometheus, and where that will listen.
fn up(souk: &str) -> (Command, String) {
    // It says at once what is missing.
    content("prometheus", &["prometheus", "--version"], "");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut script = Command::new("bash");
    script
        .arg(grafana().join("up.sh"))
        .env("SOUK", souk)
        .env("PROMETHEUS_ADDR", &address)
        .env("GRAFANA_ADDR", "127.0.0.1:0")
        .env("SCRAPE_INTERVAL", "500ms")
        .stdin(Stdio::null());
    (script, address)
}

impl Prometheus {
    async fn of(server: &Server) -> Self {
        Self::started(up(&server.url())).await
    }

    async fn started((mut script, address): (Command, String)) -> Self {
        let script = script.stdout(Stdio::null()).spawn().unwrap();
        let prometheus = Self { script, address, http: http_client().build().unwrap() };
        prometheus.shows("up{job=\"souk\"} == 1").await;
        prometheus
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let answer = self.http.get(url).query(query).send().await.ok()?;
        serde_json::from_str(&answer.text().await.ok()?).ok()
    }

    /// Waits until a query has a value that is a number.
    async fn shows(&self, query: &str) {
        eventually(&format!("Prometheus to show {query}"), || async {
            let answer = self.get("query", &[("query", query)]).await?;
            assert_ne!(answer["status"], "error", "{query}: {answer}");
            let series = answer["data"]["result"].as_array()?;
            let numbers = series.iter().filter(|of| of["value"][1] != "NaN");
            (numbers.count() > 0).then_some(())
        })
        .await;
    }

    /// The rules, each evaluated at least once.
    async fn rules(&self) -> Vec<Value> {
        eventually("every rule to be evaluated", || async {
            let answer = self.get("rules", &[]).await?;
            let groups = answer["data"]["groups"].as_array()?;
            let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
            let rules: Vec<_> = rules.cloned().collect();
            let is_known = |rule: &Value| rule["health"] != "unknown";
            (!rules.is_empty() && rules.iter().all(is_known)).then_some(rules)
        })
        .await
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let kill = format!("kill -TERM {}", self.script.id());
        // It may have ended by itself.
        let _: std::io::Result<_> = Command::new("sh").args(["-c", &kill]).status();
        let _: std::io::Result<_> = self.script.wait();
    }
}

/// A dashboard's file and what is in it.
fn dashboards() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(grafana().join("dashboards")).unwrap();
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let dashboard =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, dashboard)
    };
    files.map(read).collect()
}

/// The queries of a dashboard, with where each stands.
fn queries(name: &str, dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array();
        assert!(panel["type"] == "row" || targets.is_some_and(|all| !all.is_empty()), "{title}");
        for target in targets.into_iter().flatten() {
            let query = target["expr"].as_str().unwrap().to_owned();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {title}");
            found.push((format!("{name}: {title}"), query));
        }
    }
    found
}

/// The metrics and recorded series that a query names.
fn named(query: &str) -> BTreeSet<String> {
    let outside_quotes: String = query.split('"').step_by(2).collect();
    let part = |character: char| !(character.is_ascii_alphanumeric() || "_:".contains(character));
    let words = outside_quotes.split(part);
    let is_ours =
        |word: &&str| ["souk_", "souk:", "process_"].iter().any(|of| word.starts_with(of));
    words.filter(is_ours).map(str::to_owned).collect()
}

/// Goes through what people do, so that there is something to show.
async fn smoke(server: &Server) {
    let seller = server.seller("Sam").await;
    let listing = server.listing(&seller, 50).await;
    let buyer = server.buyer("Bea").await;
    for method in ["sandbox", "test_decline", "sandbox"] {
        let order = server.place_order(&buyer.client, &listing, 1, method).await;
        let end = if method == "sandbox" { "SagaCompleted" } else { "SagaFailed" };
        server.await_event(end, &order.correlation_id).await;
    }
    server.delivered(&buyer.client, &listing).await;
    assert_eq!(server.visitor().get("/nothing-is-here").await.status(), 404);
    server.admin().get("/api/v1/admin/audit").await.expect(200);
}

async fn metrics(server: &Server) -> String {
    server.visitor().get("/metrics").await.expect(200).raw().to_owned()
}

fn exposed(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// The upper bounds of each histogram in some text, be it metrics or input of tests, as they stand there.
fn bounds(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for line in text.lines() {
        let Some((name, labels)) = line.split_once("_bucket{") else { continue };
        let name = name.rsplit(|of: char| !(of.is_ascii_alphanumeric() || of == '_')).next();
        let bound = labels.split_once("le=\"").unwrap().1.split('"').next();
        found.entry(name.unwrap().to_owned()).or_default().insert(bound.unwrap().to_owned());
    }
    found
}

/// The numbers that a rule says a recorded series must be above.
fn thresholds(rule: &str, recorded: &str) -> Vec<f64> {
    let after = rule.split(recorded).skip(1).filter_map(|rest| {
        let rest = match rest.strip_prefix('{') {
            Some(labels) => labels.split_once('}')?.1,
            None => rest,
        };
        rest.trim().strip_prefix('>')?.split_whitespace().next()?.parse().ok()
    });
    after.collect()
}

/// A quantile is never above its histogram's last bound: a rule that waits for that waits for ever.
fn quantiles_can_pass_their_thresholds(rules: &[Value], text: &str) {
    let known = bounds(text);
    let last = |histogram: &str| {
        let bounds = known[histogram].iter().map(|bound| bound.parse::<f64>().unwrap());
        bounds.filter(|bound| bound.is_finite()).fold(0.0, f64::max)
    };
    let mut checked = 0;
    for quantile in rules.iter().filter(|rule| rule["type"] == "recording") {
        let query = quantile["query"].as_str().unwrap();
        if !query.contains("histogram_quantile(") {
            continue;
        }
        let all = named(query);
        let histogram = all.iter().find_map(|name| name.strip_suffix("_bucket")).unwrap();
        for alert in rules.iter().filter(|rule| rule["type"] == "alerting") {
            let query = alert["query"].as_str().unwrap();
            for threshold in thresholds(query, quantile["name"].as_str().unwrap()) {
                let last = last(histogram);
                assert!(threshold < last, "{}: {threshold} of {histogram}, {last}", alert["name"]);
                checked += 1;
            }
        }
    }
    assert!(checked >= 5, "only {checked} thresholds were found");
    let tested = bounds(include_str!("../../grafana/alerts/alerts.test.yml"));
    for (histogram, bounds) in tested {
        assert!(bounds.is_subset(&known[&histogram]), "{histogram} is tested with {bounds:?}");
    }
}

#[tokio::test]
async fn every_panel_and_every_rule_shows_what_there_is() {
    let server = Server::start().await;
    let prometheus = Prometheus::of(&server).await;
    smoke(&server).await;
    // What has just appeared shows no increase yet.
    prometheus.shows("sum(souk_commands_total{aggregate_type=\"order\"}) > 0").await;
    smoke_again(&server).await;

    let text = metrics(&server).await;
    let exposed = exposed(&text);
    let exists = |name: &str| exposed.contains(name) || exposed.contains(&format!("{name}_bucket"));
    for (name, _) in METRICS {
        let may_be_missing = NOT_ALWAYS.contains(name) || on_postgres() && *name == ON_FILES;
        assert!(exists(name) || may_be_missing, "{name} is not in /metrics");
    }
    let rules = prometheus.rules().await;
    quantiles_can_pass_their_thresholds(&rules, &text);
    let recorded: BTreeSet<_> = rules
        .iter()
        .filter(|rule| rule["type"] == "recording")
        .map(|rule| rule["name"].as_str().unwrap())
        .collect();
    let is_there = |query: &str| {
        let missing = named(query).into_iter().filter(|name| {
            !(exposed.contains(name) || recorded.contains(&**name) || name == ON_FILES)
        });
        missing.collect::<Vec<_>>()
    };
    for rule in &rules {
        let query = rule["query"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_eq!(is_there(query), [""; 0], "{}", rule["name"]);
    }
    for (file, dashboard) in &dashboards() {
        for (place, query) in queries(file, dashboard) {
            assert_eq!(is_there(&query), [""; 0], "{place}");
            if on_postgres() && query.contains(ON_FILES) {
                continue;
            }
            let asked = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
            assert!(!asked.contains('$'), "{place}: {asked}");
            prometheus.shows(&asked).await;
        }
    }
    server.finish().await;
}

/// Somebody who comes later.
async fn smoke_again(server: &Server) {
    let seller = server.seller("Sue").await;
    let listing = server.listing(&seller, 5).await;
    let buyer = server.buyer("Ben").await;
    for method in ["sandbox", "test_decline"] {
        let order = server.place_order(&buyer.client, &listing, 1, method).await;
        let end = if method == "sandbox" { "SagaCompleted" } else { "SagaFailed" };
        server.await_event(end, &order.correlation_id).await;
    }
    server.at_rest().await;
}

/// What a panel's first query shows of some series after ten minutes.
#[track_caller]
fn panel_shows((file, title): (&str, &str), series: &[(&str, &str)], expected: &[(&str, f64)]) {
    let all = dashboards();
    let (place, query) = queries(file, &all[file])
        .into_iter()
        .find(|(place, _)| place.ends_with(&format!(": {title}")))
        .unwrap_or_else(|| panic!("{file} has no panel {title}"));
    let query = query.replace("$__rate_interval", "10m").replace("$instance", ".*");
    let series =
        series.iter().map(|(series, values)| json!({ "series": series, "values": values }));
    let samples =
        expected.iter().map(|(labels, value)| json!({ "labels": labels, "value": value }));
    let asked = json!({
        "expr": query, "eval_time": "10m", "exp_samples": samples.collect::<Vec<_>>(),
    });
    let test = json!({
        "name": place, "interval": "1m",
        "input_series": series.collect::<Vec<_>>(), "promql_expr_test": [asked],
    });
    // What is JSON is YAML too.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "tests": [test] }).to_string()).unwrap();
    content("prometheus", &["promtool", "test", "rules", file.path().to_str().unwrap()], "");
}

#[test]
fn failures_of_actors_are_drawn_by_what_failed_and_nothing_else_is() {
    let panel = ("actors.json", "Failures");
    let panics = r#"souk_aggregate_restarts_total{aggregate_type="order",reason="panic"}"#;
    let losses = r#"souk_aggregate_restarts_total{aggregate_type="order",reason="append_lost"}"#;
    let failed = [(r#"{aggregate_type="order",reason="panic"}"#, 3.0)];
    panel_shows(panel, &[(panics, "0x4 3x10"), (losses, "0x15")], &failed);
    let nothing = [(r#"{reason="none"}"#, 0.0)];
    panel_shows(panel, &[(panics, "0x15"), (losses, "0x15")], &nothing);
}

#[tokio::test]
async fn a_service_that_speaks_tls_is_watched_too() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server = secured(&authority, trusting(&authority, None), folder.path()).start().await;
    let (mut script, address) = up(&server.url());
    script.env("SOUK_CA_FILE", authority.write(folder.path(), "authority.pem"));
    let prometheus = Prometheus::started((script, address)).await;
    prometheus.shows("sum(souk_build_info)").await;
    server.finish().await;
}

/// A Grafana that does not start says why, and what it said is not lost with its folder.
#[cfg(unix)]
#[test]
fn what_grafana_said_before_it_ended_is_shown() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let grafana = folder.path().join("grafana-server");
    std::fs::write(&grafana, "#!/bin/sh\necho \"there is no $2\"\nexit 1\n").unwrap();
    std::fs::set_permissions(&grafana, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (mut script, _) = up("http://127.0.0.1:1");
    let path = std::env::var("PATH").unwrap();
    script.env("PATH", format!("{}:{path}", folder.path().display()));
    let ended = script.env("GRAFANA_HOME", "/home/of/grafana").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{said}");
    assert!(said.contains("Grafana ended"), "{said}");
    assert!(said.contains("there is no /home/of/grafana"), "{said}");
}

/// A counter that appears with its first count shows no increase.
#[tokio::test]
async fn what_can_be_counted_stands_at_0_from_the_start() {
    let server = Server::start().await;
    let text = metrics(&server).await;
    let refused = [
        "overloaded",
        "draining",
        "journal_unavailable",
        "restarting",
        "quarantined",
        "deadline_passed",
        "disk_low",
    ];
    let rejected = ["schema", "rate_limited", "sequence_gap", "not_stored"];
    let published = ["order.placed", "payment.refunded", "saga.failed"];
    for (name, label, values) in [
        ("souk_commands_refused_total", "aggregate_type=\"order\",reason", &refused[..]),
        ("souk_events_rejected_total", "reason", &rejected),
        ("souk_events_published_total", "event_type", &published),
    ] {
        for value in values {
            let wanted = format!("{label}=\"{value}\"");
            let mut lines = text.lines().filter(|line| line.starts_with(name));
            let line = lines.find(|line| line.contains(&wanted));
            assert!(line.is_some_and(|line| line.ends_with(" 0")), "{name} {wanted}: {line:?}");
        }
    }
    let up: Vec<_> =
        text.lines().filter(|line| line.starts_with("souk_subscription_up{")).collect();
    assert!(up.len() > 20 && up.iter().all(|line| line.ends_with(" 1")), "{up:#?}");
    server.finish().await;
}

/// S0-101: from the event that could not be handled to the alert.
#[tokio::test]
async fn a_dead_letter_raises_an_alert() {
    let server = Server::start().await;
    let prometheus = Prometheus::of(&server).await;
    prometheus.shows("sum(souk_dlq_letters) == 0").await;
    let fault = json!({ "kind": "permanent", "times": 1 });
    server.fault("notification-email", "fail", fault).await;
    server.register("Ann").await.expect(201);
    let firing = "ALERTS{alertname=\"SoukDeadLetter\",alertstate=\"firing\",severity=\"info\"";
    prometheus.shows(&format!("{firing},subscription=\"notification-email\"}}")).await;
    prometheus.shows("sum by (subscription) (souk_dlq_letters_total) == 1").await;
}

#[tokio::test]
async fn alerts_say_what_to_do_and_configurations_are_valid() {
    content("prometheus", &["promtool", "check", "config", "prometheus.yml"], "");
    let rules = ["alerts/alerts.rules.yml", "alerts/recording.rules.yml"];
    content("prometheus", &["promtool", "check", "rules", rules[0], rules[1]], "");
    content("prometheus", &["promtool", "test", "rules", "alerts/alerts.test.yml"], "");
    let manager = ["amtool", "check-config", "alertmanager.example.yml"];
    let said = content("prometheus-alertmanager", &manager, "");
    assert!(said.contains("2 receivers"), "{said}");
    for (severity, receivers) in
        [("critical", "pagerduty,slack"), ("warning", "slack"), ("info", "slack")]
    {
        let severity = format!("severity={severity}");
        let routes = ["amtool", "config", "routes", "test"];
        let of = ["--config.file=alertmanager.example.yml", severity.as_str()];
        let told = content("prometheus-alertmanager", &[&routes[..], &of[..]].concat(), "");
        assert!(told.lines().any(|line| line.trim() == receivers), "{severity}: {told}");
    }

    let manual = include_str!("../../docs/operations.md");
    let sections: BTreeSet<String> = manual
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| anchor(line.trim_start_matches(['#', ' '])))
        .collect();
    let tests = include_str!("../../grafana/alerts/alerts.test.yml");
    let server = Server::start().await;
    let prometheus = Prometheus::of(&server).await;
    let rules = prometheus.rules().await;
    let alerts: Vec<_> = rules.iter().filter(|rule| rule["type"] == "alerting").collect();
    assert!(alerts.len() > 15, "{}", alerts.len());
    for alert in alerts {
        let name = &alert["name"];
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}");
        assert!(!alert["annotations"]["summary"].as_str().unwrap().is_empty(), "{name}");
        let runbook = alert["annotations"]["runbook_url"].as_str().unwrap();
        let manual = "{{ $externalLabels.runbooks }}docs/operations.md#";
        let section = runbook.strip_prefix(manual).unwrap();
        assert!(sections.contains(section), "{name}: there is no section {section}");
        let fires = format!("alertname: {}\n        exp_alerts:", name.as_str().unwrap());
        assert!(tests.contains(&fires), "no test has {name} fire");
    }
    server.finish().await;
}

/// A heading as a link names it.
fn anchor(heading: &str) -> String {
    let kept = |character: &char| character.is_alphanumeric() || " -_".contains(*character);
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn dashboards_have_names_of_their_own() {
    let dashboards = dashboards();
    assert!(dashboards.len() >= 6);
    let uids: BTreeSet<_> = dashboards.values().map(|of| of["uid"].as_str().unwrap()).collect();
    assert_eq!(uids.len(), dashboards.len());
    let readme = std::fs::read_to_string(grafana().join("README.md")).unwrap();
    for (file, dashboard) in &dashboards {
        assert!(readme.contains(&format!("dashboards/{file}")), "{file} is not in the README");
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{file}");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert!(variables.iter().any(|of| of["type"] == "datasource"), "{file}");
        assert!(!queries(file, dashboard).is_empty(), "{file}");
    }
}

/// What Prometheus' own linter says of the names, but for one: the depth of mailboxes is three
/// gauges by quantile, since the single mailboxes are not told.
#[tokio::test]
async fn metrics_are_named_as_prometheus_wants_them() {
    let server = Server::start().await;
    smoke(&server).await;
    let text = metrics(&server).await;
    let (said, _) = run("prometheus", &["promtool", "check", "metrics"], &text);
    let objections: Vec<_> = said
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("souk_mailbox_depth "))
        .collect();
    assert_eq!(objections, [""; 0]);
}

/// The sum of all series of a metric.
async fn sum_of(server: &Server, name: &str) -> f64 {
    let text = metrics(server).await;
    let values = text.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().unwrap())
    });
    values.sum()
}

/// S4-62, S0-116, S4-56: six figures that say what the metrics say.
#[tokio::test]
async fn the_summary_has_the_main_figures() {
    let server = Server::start().await;
    let fault = json!({ "kind": "transient", "times": 2 });
    server.fault("notification-email", "fail", fault).await;
    server.sale(5, 1, "sandbox").await;
    eventually("the second try", || async {
        let status = server.subscription("notification-email").await;
        let partitions = status["partitions"].as_array().unwrap();
        let retrying = partitions.iter().any(|of| !of["retrying"].as_array().unwrap().is_empty());
        let failed: u64 = partitions.iter().map(|of| of["failed"].as_u64().unwrap()).sum();
        (failed == 2 && !retrying).then_some(())
    })
    .await;
    server.at_rest().await;
    let admin = server.admin();
    let summary = admin.get("/api/v1/admin/metrics/summary").await.expect(200).json().clone();
    let names: BTreeSet<_> = summary.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = BTreeSet::from([
        "eventsPublished",
        "eventsProcessed",
        "eventsFailed",
        "averageProcessingTime",
        "queueSize",
        "subscriptionsActive",
    ]);
    assert_eq!(names, expected);
    let published = sum_of(&server, "souk_events_published_total").await;
    assert_eq!(summary["eventsPublished"].as_f64(), Some(published));
    let consumed = sum_of(&server, "souk_events_consumed_total").await;
    assert_eq!(summary["eventsProcessed"].as_f64(), Some(consumed));
    assert_eq!(summary["eventsFailed"], 2);
    assert_eq!(sum_of(&server, "souk_event_handler_failures_total").await, 2.0);
    assert_eq!(summary["queueSize"], 0);
    assert!(summary["averageProcessingTime"].as_f64().unwrap() > 0.0, "{summary}");
    let all = admin.get("/api/v1/admin/subscriptions").await.expect(200);
    assert_eq!(summary["subscriptionsActive"].as_u64(), Some(all.items().len() as u64));

    server.pause("notifications").await;
    server.register("Cleo").await.expect(201);
    server.caught_up("events-index").await;
    let path = "/api/v1/admin/metrics/summary?details=true";
    let summary = admin.get(path).await.expect(200).json().clone();
    assert_eq!(summary["subscriptionsActive"].as_u64(), Some(all.items().len() as u64 - 1));
    let details = &summary["details"];
    let of = |name: &str| {
        let all = details["subscriptions"].as_array().unwrap();
        all.iter().find(|of| of["subscription"] == name).unwrap().clone()
    };
    let paused = of("notifications");
    assert_eq!(paused["state"], "paused");
    assert!(paused["lag_events"].as_u64().unwrap() > 0 && paused["lag_seconds"].is_number());
    assert!(details["uptime_seconds"].is_u64() && details["dead_letters"] == 0, "{details}");
    assert!(details["commands_per_second"].as_f64().unwrap() > 0.0);
    server.resume("notifications").await;
    server.at_rest().await;
    server.finish().await;
}

/// K2: single aggregates are told without a label for each.
#[tokio::test]
async fn the_busiest_aggregate_is_found() {
    let server = Server::start().await;
    let seller = server.seller("Sam").await;
    let (hot, cool) = (server.listing(&seller, 5).await, server.listing(&seller, 5).await);
    for (listing, times) in [(&cool, 3), (&hot, 200)] {
        let path = format!("/api/v1/listings/{listing}");
        let client = seller.client.if_match("*");
        parallel(times, |number| {
            let (client, path) = (client.clone(), path.clone());
            async move {
                let body =
                    json!({ "price": { "amount": PRICE + number as i64, "currency": "VND" } });
                client.patch(&path, &body).await.expect(200);
            }
        })
        .await;
    }
    let admin = server.admin();
    for by in ["rate", "wait", "handler_time"] {
        let path = format!("/api/v1/admin/hotkeys?by={by}&limit=200");
        let busiest = admin.get(&path).await.expect(200);
        let found = busiest.items().iter().find(|of| of["aggregate_id"] == *hot).unwrap();
        assert_eq!(found["aggregate_type"], "listing");
        assert!(found["busy"].as_f64().unwrap() > 0.0 && found["waiting"].is_number(), "{found}");
    }
    let busiest = admin.get("/api/v1/admin/hotkeys?limit=1").await.expect(200);
    assert_eq!(busiest.items().len(), 1);
    assert_eq!(busiest.items()[0]["aggregate_id"], *hot, "{busiest:?}");
    let rate = |of: &Value| of["commands_per_second"].as_f64().unwrap();
    let all = admin.get("/api/v1/admin/hotkeys").await.expect(200);
    let of_cool = all.items().iter().find(|of| of["aggregate_id"] == *cool).unwrap();
    assert!(rate(&busiest.items()[0]) > 10.0 * rate(of_cool), "{busiest:?}, {of_cool}");

    for wrong in ["by=colour", "limit=0", "limit=201"] {
        let answer = admin.get(&format!("/api/v1/admin/hotkeys?{wrong}")).await;
        assert_eq!(answer.status(), 400, "{wrong}: {answer:?}");
    }
    let top = |arguments: &[&str]| {
        let command = server.command(&[&["top"], arguments].concat());
        command.with("SOUK_URL", server.url()).run()
    };
    let told = top(&["--limit", "3"]);
    assert_eq!(told.code, 0, "{}", told.errors);
    assert!(told.output.contains(&hot) && told.output.contains("COMMANDS/S"), "{}", told.output);
    assert!(!told.output.contains('\u{1b}'), "{}", told.output);
    let told = top(&["--by", "handler-time", "--json"]);
    let told: Value = serde_json::from_str(&told.output).unwrap();
    assert!(told["summary"]["eventsPublished"].is_u64() && told["busiest"].is_array(), "{told}");
    server.finish().await;
}

/// S4-60: from each request to the last event that it leads to.
#[tokio::test]
async fn flows_are_timed_from_the_request_to_their_last_event() {
    let server = Server::start().await;
    let sale = server.sale(9, 2, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let buyer = &sale.buyer.client;
    server.arrives(&sale.order.id, &sale.seller.client, buyer).await;
    let review = json!({ "transaction_id": sale.order.id, "rating": 4, "comment": "Good." });
    buyer.post("/api/v1/reviews", &review).await.expect(201);
    let back = json!({
        "items": [{ "listing_id": sale.listing_id, "quantity": 1 }], "reason": "damaged",
    });
    let path = format!("/api/v1/orders/{}/returns", sale.order.id);
    let asked = buyer.post(&path, &back).await.expect(201).text("return_id");
    let path = format!("{path}/{asked}/accept");
    sale.seller.client.post(&path, &json!({})).await.expect(200);
    let declined = server.place_order(buyer, &sale.listing_id, 1, "test_decline").await;
    server.await_event("SagaFailed", &declined.correlation_id).await;
    let open = server.place_order(buyer, &sale.listing_id, 1, "test_pending").await;
    server.order_eventually(&open.id, "CONFIRMED").await;
    let path = format!("/api/v1/orders/{}/cancel", open.id);
    buyer.post(&path, &json!({})).await.expect(200);
    // What is refused, or said again, leads to nothing.
    let wish = crate::support::wish(&sale.listing_id, 0, "sandbox");
    buyer.post("/api/v1/orders", &wish).await.expect(422);
    let wish = crate::support::wish(&sale.listing_id, 1, "sandbox");
    for _ in 0..2 {
        let order = buyer.keyed("once").post("/api/v1/orders", &wish).await.expect(201);
        server.order_eventually(&order.text("order_id"), "SHIPPED").await;
    }
    server.at_rest().await;
    for (flow, event_type, times) in [
        ("registration", "notification.email.sent", 2.0),
        ("registration", "notification.email.failed", 0.0),
        ("verification", "notification.email.sent", 2.0),
        ("listing", "listing.indexed", 1.0),
        ("purchase", "saga.completed", 2.0),
        ("purchase", "saga.failed", 1.0),
        ("cancellation", "saga.failed", 1.0),
        ("delivery", "order.completed", 1.0),
        ("return", "payment.refunded", 1.0),
        ("review", "seller.rating_updated", 1.0),
    ] {
        let counted = server.flows(flow, event_type).await;
        assert_eq!(counted, times, "{flow} until {event_type}");
    }
    server.finish().await;
}

impl Server {
    async fn flows(&self, flow: &str, event_type: &str) -> f64 {
        let text = metrics(self).await;
        let wanted = [format!("flow=\"{flow}\""), format!("event_type=\"{event_type}\"")];
        let line = text.lines().find(|line| {
            line.starts_with("souk_flow_duration_seconds_count{")
                && wanted.iter().all(|of| line.contains(of))
        });
        let line = line.unwrap_or_else(|| panic!("no flow {flow} until {event_type}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

/// S1-85: what is past its limit is an event, once, and so is its end; over a restart too.
#[tokio::test]
async fn the_service_raises_alerts_by_itself() {
    let mut server = Start::default().with("ALERT_INTERVAL", "100ms").start().await;
    server.at_rest().await;
    server.pause("notifications").await;
    server.register("Ann").await.expect(201);
    server.advance_clock(300).await;
    let of = async |server: &Server, name: &str| {
        let events = server.events(&format!("eventType={name}")).await.into_iter();
        let events = events.filter(|event| event["data"]["subject"] == "notifications");
        events.map(|event| event["data"].clone()).collect::<Vec<_>>()
    };
    let triggered = eventually("an alert", || async {
        let found = of(&server, "analytics.alert.triggered").await;
        (!found.is_empty()).then_some(found)
    })
    .await;
    assert_eq!(triggered.len(), 1, "{triggered:#?}");
    assert_eq!(triggered[0]["metric"], "souk_subscription_lag_seconds");
    assert_eq!(triggered[0]["threshold"], 10);
    assert!(triggered[0]["value"].as_u64().unwrap() >= 300, "{triggered:#?}");
    server.logged(&["\"an alert\"", "notifications"]).await;

    // It is the process that comes next that finds it over.
    server.kill_9_and_start_again().await;
    server.resume("notifications").await;
    eventually("its end", || async {
        (of(&server, "analytics.alert.resolved").await.len() == 1).then_some(())
    })
    .await;
    server.at_rest().await;
    assert_eq!(of(&server, "analytics.alert.triggered").await.len(), 1);

    // It may begin anew, and that is no repeat: it has a cause of its own.
    server.pause("notifications").await;
    server.register("Ben").await.expect(201);
    server.advance_clock(300).await;
    eventually("another cause", || async {
        let events = server.events("eventType=analytics.alert.triggered").await.into_iter();
        let events = events.filter(|event| event["data"]["subject"] == "notifications");
        let causes: BTreeSet<_> = events.map(|event| event["causation_id"].to_string()).collect();
        (causes.len() == 2).then_some(())
    })
    .await;
    server.finish().await;
}

/// S1-117 to S1-119: a start of a new version, what goes wrong, and that it is looked after itself.
#[tokio::test]
async fn the_service_tells_of_its_start_and_of_what_goes_wrong() {
    let start = Start::default().with("ALERT_INTERVAL", "100ms");
    let mut server = start.with("HEALTH_CHECK_INTERVAL", "50ms").start().await;
    server.kill_9_and_start_again().await;
    let started = server.events("eventType=service.deployment").await;
    assert_eq!(started.len(), 1, "the same version: {started:#?}");
    assert_eq!(started[0]["data"]["version"], env!("CARGO_PKG_VERSION"));
    eventually("a look at its own health", || async {
        (server.metric("souk_health_checks_total", "result=\"ok\"").await > 0.0).then_some(())
    })
    .await;

    assert!(server.events("eventType=service.error").await.is_empty());
    let down = server.fault("notification-email", "fail", json!({ "kind": "system" })).await;
    server.register("Ann").await.expect(201);
    let told = eventually("an error", || async {
        server.events("eventType=service.error").await.first().cloned()
    })
    .await;
    assert_eq!(told["data"]["kind"], "circuit_open", "{told:#?}");
    assert_eq!(told["data"]["subject"], "notification-email", "{told:#?}");

    // While a probe takes its time it is not over, and does not begin anew afterwards.
    server.fault("notification-email", "delay", json!({ "delay_ms": 15_000 })).await;
    server.mend(down).await;
    eventually("a probe", || async {
        server.advance_clock(30).await;
        is_probed(&server).await.then_some(())
    })
    .await;
    let looks = async || server.metric("souk_health_checks_total", "result=\"ok\"").await;
    let enough = looks().await + 20.0;
    eventually("ten looks at alerts", || async { (looks().await > enough).then_some(()) }).await;
    let over = server.events("eventType=analytics.alert.resolved").await;
    assert!(over.iter().all(|of| of["data"]["metric"] != "souk_circuit_state"), "{over:#?}");
    assert_eq!(server.events("eventType=service.error").await.len(), 1);
    assert!(is_probed(&server).await, "the probe was over before it was looked at");
    server.finish().await;
}

/// Whether a probe of the mails' circuit is under way in some partition.
async fn is_probed(server: &Server) -> bool {
    let all = server.admin().get("/api/v1/admin/circuits").await.expect(200);
    let is_probed = |of: &Value| of["target"] == "notification-email" && of["state"] == "half_open";
    all.items().iter().any(is_probed)
}

/// S1-116.
#[tokio::test]
async fn searches_are_counted() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    server.listing(&sam, 3).await;
    server.at_rest().await;
    let counted = async |found: &str| {
        server.metric("souk_search_queries_total", &format!("found=\"{found}\"")).await
    };
    assert_eq!((counted("something").await, counted("nothing").await), (0.0, 0.0));
    for query in ["", "?q=xyzzyxyzzy"] {
        server.visitor().get(&format!("/api/v1/search{query}")).await.expect(200);
    }
    assert_eq!((counted("something").await, counted("nothing").await), (1.0, 1.0));
    server.finish().await;
}
