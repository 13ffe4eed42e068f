//! Rules about what is absent, read from the sources.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

fn runtime() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20, "the sources are where this test looks");
    found
}

/// The part of a file before its tests, without comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = before_tests.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_runtime_knows_no_marketplace_type() {
    for (path, text) in runtime() {
        let code = code(&text).to_lowercase();
        for word in ["listing", "escrow", "shipment", "seller", "buyer", "marketplace", "axum"] {
            assert!(!code.contains(word), "{} speaks of {word}", path.display());
        }
    }
}

#[test]
fn only_the_journal_writer_and_a_copy_append() {
    for (path, text) in runtime() {
        let name = path.display().to_string();
        let may = ["journal/writer.rs", "journal/copy.rs"];
        if may.iter().any(|end| name.ends_with(end)) || name.contains("testing") {
            continue;
        }
        assert!(!code(&text).contains(".append("), "{name} appends");
    }
}

/// Every name that a fault point is passed by in a text, in order.
fn points_passed(code: &str) -> Vec<String> {
    let calls = ["points::reach(\"", "points::reach_now(\"", "points::try_reach(\""];
    let after = calls.iter().flat_map(|call| code.split(call).skip(1));
    let mut names: Vec<_> =
        after.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn fault_points_stand_where_the_list_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut declared: Vec<_> = souk_actors::faults::points::POINTS
        .iter()
        .flat_map(|point| {
            point.files.iter().map(|file| ((*file).to_owned(), point.name.to_owned()))
        })
        .collect();
    let mut passed = Vec::new();
    for (path, text) in runtime() {
        let file = path.strip_prefix(&root).unwrap().display().to_string();
        passed.extend(points_passed(&code(&text)).into_iter().map(|name| (file.clone(), name)));
    }
    declared.sort();
    passed.sort();
    assert_eq!(passed, declared);
}

/// Floors, from the ground up: a module uses its own floor and those below.
const FLOORS: &[&[&str]] = &[
    &[
        "event", "world", "id", "retry", "personal", "command", "faults", "filter", "flag",
        "planted", "hot", "trace", "together",
    ],
    &["journal"],
    &["admission", "aggregate", "broker", "timer", "dead_letter", "supervisor"],
    &["saga", "subscriber", "runtime", "partition"],
];

#[test]
fn imports_run_down_only() {
    let floor_of = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, text) in runtime() {
        let module = path.strip_prefix(&root).unwrap().components().next().unwrap();
        let module = module.as_os_str().to_string_lossy().replace(".rs", "");
        let Some(own) = floor_of(&module) else { continue };
        for line in code(&text).lines().filter(|line| line.trim_start().starts_with("use crate::"))
        {
            let used = line.trim_start().trim_start_matches("use crate::");
            let used: String =
                used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // What a journal entry says about a command's fate and what it may inject is shared.
            let below = floor_of(&used).is_none_or(|floor| floor <= own);
            let known =
                matches!((&*module, &*used), ("faults", "journal") | ("command", "aggregate"));
            assert!(below || known, "{} uses {used}, which is above it", path.display());
        }
    }
}
