//! Plain requests, one at a time, for what comes before and after the measuring.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::wire::Asker;
use crate::tls::http_client;

/// Who asks, and whom.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    pub(super) fn new(url: &str, token: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let http = http_client().build().expect("TLS is set up");
        Self { http, url, token: token.trim().to_owned() }
    }

    /// Somebody else at the same server.
    pub(super) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// The same for the load.
    pub(super) fn asker(&self) -> Asker {
        let host = self.url.split("//").nth(1).unwrap_or(&self.url);
        Asker { host: host.to_owned(), token: self.token.clone() }
    }

    async fn text(&self, request: reqwest::RequestBuilder) -> anyhow::Result<String> {
        let answer = request.bearer_auth(&self.token).send().await;
        let answer = answer.with_context(|| format!("no server answers at {}", self.url))?;
        let (status, path) = (answer.status(), answer.url().path().to_owned());
        let text = answer.text().await.context("an answer broke off")?;
        anyhow::ensure!(status.is_success(), "{path} was answered with {status}: {text}");
        Ok(text)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.text(request).await?)?)
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.put(format!("{}{path}", self.url)).json(body)).await
    }

    /// Asks for something that rests on how `path` is now.
    pub(super) async fn steer(&self, path: &str, what: &str) -> anyhow::Result<()> {
        let now = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        let now = now.send().await?.error_for_status()?;
        let tag = now.headers().get("etag").context("a version to rest on")?.clone();
        let ask = self.http.post(format!("{}{path}/{what}", self.url)).json(&json!({}));
        self.send(ask.header("if-match", tag)).await.map(drop)
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.text(self.http.delete(format!("{}{path}", self.url))).await.map(drop)
    }

    /// What is at a path, as text.
    pub(super) async fn plain(&self, path: &str) -> anyhow::Result<String> {
        self.text(self.http.get(format!("{}{path}", self.url))).await
    }
}
