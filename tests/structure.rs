//! What each part of the marketplace may know of the others, read from its sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source file: its path below `src/`, and its code without comments and tests.
struct Source {
    path: String,
    code: String,
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The sources whose path begins with one of these; a rule that looks at fewer than `at_least` of
/// them looks in the wrong place.
fn sources(below: &[&str], at_least: usize) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    let relative = |path: &PathBuf| {
        path.strip_prefix(&root).expect("it was found there").display().to_string()
    };
    let sources: Vec<_> = found
        .iter()
        .map(|path| (relative(path), path))
        .filter(|(name, _)| below.iter().any(|start| name.starts_with(start)))
        .filter(|(name, _)| !is_test(name))
        .map(|(path, file)| Source {
            code: code(&std::fs::read_to_string(file).expect("it can be read")),
            path,
        })
        .collect();
    assert!(sources.len() >= at_least, "only {} files below {below:?}", sources.len());
    sources
}

/// Files that only tests are made of.
fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.ends_with("testing.rs")
}

/// Without comments, and without what follows `#[cfg(test)] mod`, which stands last.
fn code(text: &str) -> String {
    let before = |text: &str, end: &str| text.split(end).next().unwrap_or_default().to_owned();
    let text = before(text, "#[cfg(test)]\nmod tests {");
    let lines = text.lines().map(|line| before(line, "//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether `word` stands in the code as a word of its own.
fn mentions(code: &str, word: &str) -> bool {
    let part = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

/// Every file of `sources` that mentions one of `words`, with the word.
fn offences(sources: &[Source], words: &[&str]) -> Vec<String> {
    let offends = |source: &Source| {
        let words = words.iter().filter(|word| mentions(&source.code, word));
        words.map(|word| format!("src/{} mentions {word}", source.path)).collect::<Vec<_>>()
    };
    sources.iter().flat_map(offends).collect()
}

fn none(offences: &[String]) {
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_domain_is_pure() {
    let domain = sources(&["domain"], 18);
    let world = ["async", "await", "sqlx", "axum", "tokio", "reqwest", "SystemTime", "Instant"];
    none(&offences(&domain, &world));
    let above = [
        "crate::app",
        "crate::cli",
        "crate::config",
        "crate::gateways",
        "crate::http",
        "crate::projections",
        "crate::serve",
        "crate::subscribers",
    ];
    none(&offences(&domain, &above));
}

#[test]
fn only_http_knows_status_codes() {
    let mut others = sources(&[""], 60);
    let all = others.len();
    others.retain(|source| !source.path.starts_with("http"));
    assert!((20..all).contains(&others.len()));
    none(&offences(&others, &["StatusCode", "axum::http"]));
}

#[test]
fn nothing_below_http_knows_of_it() {
    let below = ["projections", "gateways", "subscribers", "identity", "app"];
    none(&offences(&sources(&below, 25), &["crate::http"]));
}

#[test]
fn only_the_wiring_builds_the_runtime() {
    let mut others = sources(&[""], 60);
    let all = others.len();
    others.retain(|source| !source.path.starts_with("app"));
    assert!(others.len() < all);
    none(&offences(&others, &["Runtime::builder"]));
}

#[test]
fn only_configuration_and_the_command_line_read_the_environment() {
    let mut others = sources(&[""], 60);
    others.retain(|source| !source.path.starts_with("c"));
    none(&offences(&others, &["env::var", "env::vars"]));
}

type Metrics = BTreeMap<String, BTreeSet<String>>;

/// The metrics that a text measures, each with its labels.
fn measured(code: &str, found: &mut Metrics) {
    for call in ["counter!(", "gauge!(", "histogram!("] {
        for rest in code.split(call).skip(1) {
            let mut depth = 1;
            let end = rest.find(|character| {
                depth += i32::from(character == '(') - i32::from(character == ')');
                depth == 0
            });
            let call = &rest[..end.expect("every call ends")];
            let mut words = call.split('"').skip(1).step_by(2);
            let name = words.next().expect("a metric has a name").to_owned();
            let quoted: Vec<_> = call.split('"').collect();
            let labels = quoted.windows(2).skip(2).filter(|pair| pair[1].starts_with(" =>"));
            found.entry(name).or_default().extend(labels.map(|pair| pair[0].to_owned()));
        }
    }
}

/// The metrics of the table in the operations manual, each with its labels.
fn documented() -> Metrics {
    let manual = include_str!("../docs/operations.md");
    let (_, table) = manual.split_once("\n## Metrics\n").expect("there is a section");
    let table = table.split("\n## ").next().unwrap_or_default();
    let ticked = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let rows = table.lines().filter(|line| line.starts_with("| `souk_"));
    rows.map(|line| {
        let cells: Vec<_> = line.split('|').collect();
        (cells[1].trim().trim_matches('`').to_owned(), ticked(cells[2]))
    })
    .collect()
}

#[test]
fn every_metric_is_described_and_in_the_manual() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&manifest.join("src"), &mut found);
    files(&manifest.join("actors/src"), &mut found);
    let mut all = Metrics::new();
    for path in found {
        measured(&code(&std::fs::read_to_string(path).expect("it can be read")), &mut all);
    }
    assert_eq!(all, documented());
    let described: BTreeSet<_> =
        souk::telemetry::catalogue::METRICS.iter().map(|of| of.0).collect();
    assert_eq!(described, all.keys().map(String::as_str).collect());
}

/// Every name that a fault point is passed by in a text.
#[cfg(feature = "chaos")]
fn points_passed(code: &str) -> Vec<&str> {
    let calls = ["points::reach(\"", "points::reach_now(\"", "points::try_reach(\""];
    let after = calls.iter().flat_map(|call| code.split(call).skip(1));
    after.filter_map(|rest| rest.split('"').next()).collect()
}

#[cfg(feature = "chaos")]
#[test]
fn fault_points_stand_where_the_list_says() {
    let mut declared: Vec<_> = souk::points::POINTS
        .iter()
        .flat_map(|point| point.files.iter().map(|file| (*file, point.name)))
        .collect();
    let sources = sources(&[""], 60);
    let mut passed: Vec<_> = sources
        .iter()
        .flat_map(|source| {
            points_passed(&source.code).into_iter().map(|name| (source.path.as_str(), name))
        })
        .collect();
    declared.sort_unstable();
    passed.sort_unstable();
    assert_eq!(passed, declared);
}

#[test]
fn an_offence_would_be_found() {
    let source = |text: &str| [Source { path: "domain/x.rs".to_owned(), code: code(text) }];
    assert_eq!(offences(&source("pub async fn f() {}"), &["async"]).len(), 1);
    assert_eq!(offences(&source("use crate::http::App;"), &["crate::http"]).len(), 1);
    none(&offences(&source("// an async word\nfn asynchronous() {}"), &["async"]));
    let tested = "fn f() {}\n#[cfg(test)]\nmod tests {\n use tokio::time;\n}";
    none(&offences(&source(tested), &["tokio"]));
    let mut metrics = Metrics::new();
    measured("gauge!(\"a\", \"b\" => f(\"c\"), \"d\" => e).set(g(\"h\"))", &mut metrics);
    let labels = BTreeSet::from(["b".to_owned(), "d".to_owned()]);
    assert_eq!(metrics, Metrics::from([("a".to_owned(), labels)]));
}
