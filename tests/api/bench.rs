//! The load run keeps true books. How fast anything is, no test says.

use serde_json::Value;

use crate::support::Command;

#[tokio::test]
async fn a_load_run_counts_what_the_journal_has() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, report) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let run = ["bench", "http", "--seconds", "0.3", "--connections", "3", "--listings", "20"];
    let run = [&run[..], &["--folder", into, "--json", report]].concat();
    let run = Command::new(&run).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let phases = [
        ("echo", 0),
        ("hot", 1),
        ("spread", 1),
        ("hot, two events", 2),
        ("spread, two events", 2),
        ("raw inserts", 1),
    ];
    assert_eq!(rows.len(), phases.len(), "{report}");
    for (row, (phase, events)) in rows.iter().zip(phases) {
        let accepted = row["accepted"].as_u64().unwrap();
        assert_eq!(row["phase"], phase);
        assert!(accepted >= 3, "{row}");
        assert_eq!(row["journalled"], accepted * events, "{row}");
        assert_eq!(row["refused"], 0, "{row}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(left.len(), 1, "only the report is left behind: {left:?}");
}

#[tokio::test]
async fn a_rebuild_under_load_is_measured_over_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let (into, report) = (folder.path().to_str().unwrap(), json.to_str().unwrap());
    let run = ["bench", "rebuild", "--events", "12000", "--listings", "20", "--rate", "50"];
    let more = ["--rows-per-second", "800", "--seconds", "1", "--kill"];
    let run = [&run[..], &more, &["--folder", into, "--json", report]].concat();
    let run = Command::new(&run).run();
    assert_eq!(run.code, 0, "{}", run.errors);
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(report["events"].as_u64().unwrap() >= 12_000, "{report}");
    assert_eq!(report["differing"], 0, "{report}");
    assert_eq!(report["mails"][0], report["mails"][1], "{report}");
    let (killed, resumed) = (&report["resumed"][0], &report["resumed"][1]);
    assert!(killed.as_u64().unwrap() > 4_000 && resumed.as_u64() >= killed.as_u64(), "{report}");
    let phases = report["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    let expected = ["at rest", "while it is filled", "after the cut-over", "after the roll-back"];
    assert_eq!(names, expected);
    assert!(phases.iter().all(|phase| phase["failed"] == 0), "{report}");
}
