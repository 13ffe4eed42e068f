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
