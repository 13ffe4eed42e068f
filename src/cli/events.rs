//! `souk events tail`: the events of a running server as they happen.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use reqwest::{Method, Response};
use serde_json::Value;
use uuid::Uuid;

use super::remote::{Refusal, Remote, shown};
use super::sse::{Reader, Told};

const PATH: &str = "/events/stream";
/// The first and the longest wait before connecting again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Whoever says nothing for so long, not even that it is still there, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// `souk events`.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: EventsCommand,
}

#[derive(Subcommand)]
enum EventsCommand {
    /// Print events as they happen, one line each, until somebody says stop
    Tail(Tail),
}

#[derive(Args)]
struct Tail {
    /// Only of this type: a name, order.*, order.#, or ~ and a regular expression; can be repeated
    #[arg(long = "type", value_name = "PATTERN")]
    types: Vec<String>,
    /// Only of this aggregate
    #[arg(long, value_name = "ID")]
    aggregate: Option<Uuid>,
    /// Only of this request and what followed from it
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Begin behind this id of a stream or these positions; 0:0 is the beginning [what happens next]
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) async fn run(remote: Remote, options: Options) -> anyhow::Result<ExitCode> {
    let EventsCommand::Tail(tail) = options.command;
    let mut following = Following {
        query: tail.query()?,
        left: tail.count,
        is_json: remote.is_json(),
        last_id: None,
    };
    match following.run(&remote).await {
        // Whoever reads what is printed has seen enough.
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl Tail {
    fn query(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let is_expression = self.types.iter().any(|text| text.starts_with('~'));
        ensure!(
            !is_expression || self.types.len() == 1,
            "a regular expression goes to its end: it can only be the one --type"
        );
        let types = (!self.types.is_empty()).then(|| self.types.join(","));
        let all = [
            ("eventType", types),
            ("aggregateId", self.aggregate.map(|id| id.to_string())),
            ("correlationId", self.correlation.clone()),
            ("after", self.after.clone()),
        ];
        Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }
}

/// A stream that is followed over as many connections as it takes.
struct Following {
    query: Vec<(&'static str, String)>,
    /// How many events are still wanted.
    left: Option<u64>,
    is_json: bool,
    /// How far it is: where the next connection goes on.
    last_id: Option<String>,
}

impl Following {
    /// Until there is nothing more to follow, or to connect to.
    async fn run(&mut self, remote: &Remote) -> anyhow::Result<()> {
        let (mut pause, longest) = PAUSES;
        loop {
            match self.connect(remote).await {
                Ok(response) => {
                    pause = PAUSES.0;
                    if self.read(response).await? {
                        return Ok(());
                    }
                }
                Err(error) if self.last_id.is_none() || !may_pass(&error) => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn connect(&self, remote: &Remote) -> anyhow::Result<Response> {
        let request = remote.request(Method::GET, PATH).query(&self.query);
        let request = match &self.last_id {
            Some(id) => request.header("Last-Event-ID", id),
            None => request,
        };
        remote.open(request).await
    }

    /// Prints what comes over one connection. Whether that was all.
    async fn read(&mut self, mut response: Response) -> anyhow::Result<bool> {
        let mut reader = Reader::default();
        // A connection that breaks is no error: the next one goes on where this one was.
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
            for told in reader.read(&chunk)? {
                if self.tell(told)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether that was the last one.
    fn tell(&mut self, told: Told) -> anyhow::Result<bool> {
        if let Some(data) = &told.data {
            let event: Value =
                serde_json::from_str(data).context("the server told an event that is no JSON")?;
            let text = if self.is_json { event.to_string() } else { line(&event) };
            // Whoever reads this may have gone: that is an error, not a panic.
            writeln!(io::stdout(), "{text}")?;
            self.left = self.left.map(|left| left.saturating_sub(1));
        }
        self.last_id = told.id.or(self.last_id.take());
        Ok(self.left == Some(0))
    }
}

/// Whether a later connection may do better.
fn may_pass(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refusal>();
    refused.is_none_or(|refused| refused.status == 429 || refused.status >= 500)
}

/// An event in one line: when, where, what, of which aggregate, because of which request.
fn line(event: &Value) -> String {
    let field = |name: &str| shown(&event[name]);
    format!(
        "{} {}:{} {} {} {}",
        field("timestamp"),
        field("partition"),
        field("position"),
        field("event_type"),
        field("aggregate_id"),
        field("correlation_id"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let event = json!({
            "timestamp": "2026-11-20T10:00:00.000Z", "partition": 2, "position": 17,
            "event_type": "order.placed", "aggregate_id": "a", "correlation_id": "x\ny",
        });
        let said = "2026-11-20T10:00:00.000Z 2:17 order.placed a x\\ny";
        assert_eq!(line(&event), said);
    }

    #[test]
    fn what_is_refused_for_good_is_not_asked_for_again() {
        let refused = |status| anyhow::Error::new(Refusal { status, said: String::new() });
        for status in [400, 401, 403, 404, 410] {
            assert!(!may_pass(&refused(status)), "{status}");
        }
        for status in [429, 500, 503] {
            assert!(may_pass(&refused(status)), "{status}");
        }
        assert!(may_pass(&anyhow::anyhow!("no server answers")));
    }
}
