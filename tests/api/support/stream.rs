//! Server-sent events as a browser reads them (WHATWG HTML §9.2.6).

use std::time::Duration;

use serde_json::Value;

use super::Client;

/// How long to wait for anything: longer than the longest silence.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    unread: Vec<u8>,
    /// The last `id:`, of an event or not.
    pub last_id: String,
    /// The comments so far.
    pub comments: Vec<String>,
    /// What `retry:` said.
    pub retry: Option<u64>,
}

/// An event that was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub id: String,
    pub event: String,
    pub data: Value,
}

impl Client {
    /// Opens a stream of events.
    pub async fn listen(&self, query: &str) -> Stream {
        self.listen_at("/api/v1/events/stream", query).await
    }

    /// Opens the stream at a path.
    pub async fn listen_at(&self, path: &str, query: &str) -> Stream {
        let response = self.open(&format!("{path}?{query}")).await;
        assert_eq!(response.status(), 200, "{query}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (unread, comments) = (Vec::new(), Vec::new());
        let mut stream = Stream { response, unread, last_id: String::new(), comments, retry: None };
        // The beginning says where it begins.
        assert!(stream.block().await.is_some_and(|told| told.is_none()));
        assert!(!stream.last_id.is_empty());
        stream
    }

    /// Goes on behind an event that was told.
    pub async fn listen_behind(&self, query: &str, id: &str) -> Stream {
        self.with("last-event-id", id).listen(query).await
    }
}

impl Stream {
    /// The next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.block().await? {
                return Some(told);
            }
        }
    }

    /// The next so many events.
    pub async fn take(&mut self, number: usize) -> Vec<Told> {
        let mut all = Vec::new();
        while all.len() < number {
            all.push(self.next().await.expect("the stream goes on"));
        }
        all
    }

    /// Everything up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<Told> {
        let mut all = Vec::new();
        while let Some(told) = self.next().await {
            all.push(told);
        }
        all
    }

    /// Everything up to the next empty line: an event, or something else.
    pub async fn block(&mut self) -> Option<Option<Told>> {
        let (mut event, mut data) = (String::new(), String::new());
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "" => self.comments.push(value),
                "id" => self.last_id = value,
                "event" => event = value,
                "data" => data = value,
                "retry" => self.retry = value.parse().ok(),
                _ => panic!("what is this: {line:?}"),
            }
        }
        if data.is_empty() {
            return Some(None);
        }
        let data = serde_json::from_str(&data).unwrap();
        Some(Some(Told { id: self.last_id.clone(), event, data }))
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = self.unread.drain(..=end).collect::<Vec<_>>();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            match chunk.expect("something is said in time") {
                Ok(Some(chunk)) => self.unread.extend(chunk),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}
