//! System calls of the server: seen, and made to fail, by `strace`.
//!
//! ```text
//!   Trace: strace -D starts the server and writes every call to a file ──▶ Vec<Call>
//!   Fault: strace -p holds on to the running server and lets calls fail until it is dropped
//! ```

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use super::{Server, Start, eventually};

/// A page of a database and the head of an answer are shorter than this.
const STRING_BYTES: &str = "8192";

/// A trace of a server from its start.
pub struct Trace {
    file: tempfile::NamedTempFile,
}

impl Trace {
    /// Starts a server whose calls of these names are written down.
    pub async fn start(start: Start, calls: &str) -> (Server, Self) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = file.path().to_str().unwrap();
        let trace = format!("trace={calls}");
        // As a grandchild (-D), so that the server is the test's own child.
        let words = ["strace", "-D", "-f", "-qq", "-y", "-s", STRING_BYTES, "-e", "signal=none"];
        let under = words.into_iter().chain(["-e", &trace, "-o", output]).map(str::to_owned);
        let server = start.under(under.collect()).start().await;
        let trace = Self { file };
        assert!(!trace.text().is_empty(), "strace sees nothing: may processes be traced here?");
        (server, trace)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.file.path()).unwrap()).into_owned()
    }

    /// Every call, once the server has ended and all of them are written.
    pub async fn calls(self, ended: Server) -> Vec<Call> {
        let pid = ended.pid();
        ended.finish().await;
        eventually("the end of the trace", || async {
            let gone = !Path::new(&format!("/proc/{pid}")).exists();
            let text = if gone { self.text() } else { String::new() };
            text.ends_with('\n').then(|| parse(&text))
        })
        .await
    }
}

/// One system call. Its moments are lines of the trace: a call is entered before it does anything,
/// and left after it has done it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub arguments: String,
    pub entered: usize,
    /// None: the process ended first.
    pub left: Option<usize>,
    /// What it returned; -1 is a failure.
    pub result: Option<i64>,
}

impl Call {
    /// Whether it is about this file.
    pub fn on(&self, file: &Path) -> bool {
        self.arguments.contains(&format!("<{}>", file.display()))
    }

    /// Whether it is one that makes a file durable, and did.
    pub fn synced(&self) -> bool {
        ["fdatasync", "fsync"].contains(&self.name.as_str()) && self.result == Some(0)
    }

    /// Whether it sends something to somebody.
    pub fn sends(&self) -> bool {
        let sends = ["write", "writev", "sendto", "sendmsg"].contains(&self.name.as_str());
        sends && (self.arguments.contains("<socket:[") || self.arguments.contains("<TCP"))
    }
}

/// Reads `strace -f -o`: a line a call, or two where another thread came in between.
fn parse(text: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open = std::collections::HashMap::new();
    for (line, text) in text.lines().enumerate() {
        let Some((thread, rest)) = text.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(index) = open.remove(thread) else { continue };
            let call: &mut Call = &mut calls[index];
            assert!(resumed.starts_with(&format!("{} resumed>", call.name)), "{text}");
            call.left = Some(line);
            call.result = result_of(resumed);
            continue;
        }
        // Neither signals nor ends of threads.
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        if !name.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'_') {
            continue;
        }
        let unfinished = arguments.strip_suffix("<unfinished ...>");
        if unfinished.is_some() {
            open.insert(thread.to_owned(), calls.len());
        }
        let result = if unfinished.is_some() { None } else { result_of(arguments) };
        calls.push(Call {
            name: name.to_owned(),
            arguments: unfinished.unwrap_or(arguments).to_owned(),
            entered: line,
            left: unfinished.is_none().then_some(line),
            result,
        });
    }
    calls
}

/// The number behind the last ` = `.
fn result_of(text: &str) -> Option<i64> {
    text.rsplit_once(" = ")?.1.split_whitespace().next()?.parse().ok()
}

/// Calls of a running server that fail, until this is dropped.
pub struct Fault {
    strace: Child,
}

impl Fault {
    /// Lets these calls on this file fail: `fdatasync,fsync` with `EIO`.
    pub fn on(server: &Server, calls: &str, error: &str, file: &Path) -> Self {
        let (pid, file) = (server.pid().to_string(), file.to_str().unwrap());
        let inject = format!("inject={calls}:error={error}");
        let mut strace = std::process::Command::new("strace")
            .args(["-f", "-p", &pid, "-P", file, "-e", &format!("trace={calls}")])
            .args(["-e", &inject, "-e", "signal=none", "-o", "/dev/null"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut said = String::new();
        let mut lines = BufReader::new(strace.stderr.take().unwrap());
        lines.read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace may not hold on to the server: {said}");
        std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(drop));
        Self { strace }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // Not killed: it has to let go of the server first.
        let pid = self.strace.id().to_string();
        let _ = std::process::Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.strace.wait();
    }
}

#[test]
fn calls_are_read_from_a_trace() {
    let trace = r#"17 write(1</dev/null>, "a = b (c) <unfinished", 3) = 3
17 pwrite64(9</d/journal.db-wal>, "corr-1\0\1", 8, 32 <unfinished ...>
18 fdatasync(9</d/journal.db-wal> <unfinished ...>
17 <... pwrite64 resumed>)                = 8
19 writev(12<socket:[77]>, [{iov_base="HTTP/1.1 201 Created\r\n", iov_len=22}], 1) = 22
18 <... fdatasync resumed>)               = -1 EIO (Input/output error) (INJECTED)
18 --- SIGTERM {si_signo=SIGTERM} ---
18 fdatasync(9</d/journal.db-wal>) = 0
19 +++ exited with 0 +++
20 fsync(9</d/journal.db-wal> <unfinished ...>
"#;
    let calls = parse(trace);
    let seen: Vec<_> = calls.iter().map(|c| (&*c.name, c.entered, c.left, c.result)).collect();
    let expected = [
        ("write", 0, Some(0), Some(3)),
        ("pwrite64", 1, Some(3), Some(8)),
        ("fdatasync", 2, Some(5), Some(-1)),
        ("writev", 4, Some(4), Some(22)),
        ("fdatasync", 7, Some(7), Some(0)),
        ("fsync", 9, None, None),
    ];
    assert_eq!(seen, expected);
    assert!(
        calls[1].on(Path::new("/d/journal.db-wal")) && !calls[1].on(Path::new("/d/journal.db"))
    );
    assert_eq!(
        calls.iter().map(Call::synced).collect::<Vec<_>>(),
        [false, false, false, false, true, false]
    );
    assert_eq!(
        calls.iter().map(Call::sends).collect::<Vec<_>>(),
        [false, false, false, true, false, false]
    );
}
