//! A client of the API and what it hears.

use std::ops::Index;
use std::sync::{Arc, PoisonError, RwLock};

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// A client. Its copies with other headers share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Arc<RwLock<String>>,
    headers: Vec<(String, String)>,
}

impl Client {
    /// A client of whatever listens at `url` at the time of a request.
    pub fn new(http: reqwest::Client, url: Arc<RwLock<String>>) -> Self {
        Self { http, url, headers: Vec::new() }
    }

    /// The same with a header, in place of an earlier one of the name.
    pub fn with(&self, name: &str, value: impl ToString) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(known, _)| known != name);
        client.headers.push((name.to_owned(), value.to_string()));
        client
    }

    /// The same without a header.
    pub fn without(&self, name: &str) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(known, _)| known != name);
        client
    }

    /// The same as somebody with this token.
    pub fn with_token(&self, token: &str) -> Self {
        self.with("authorization", format!("Bearer {token}"))
    }

    /// The same under a correlation id.
    pub fn named(&self, correlation_id: &str) -> Self {
        self.with("x-correlation-id", correlation_id)
    }

    /// The same with an idempotency key.
    pub fn keyed(&self, key: &str) -> Self {
        self.with("idempotency-key", format!("\"{key}\""))
    }

    /// The same, waiting for what an order leads to.
    pub fn waiting(&self) -> Self {
        self.with("prefer", "wait=10")
    }

    /// The same, on a version.
    pub fn if_match(&self, etag: &str) -> Self {
        self.with("if-match", etag)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some(body.to_string().into())).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, Some(body.to_string().into())).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    /// Any request; a body is JSON unless a header of the client says otherwise.
    pub async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Answer {
        let asked = format!("{method} {path}");
        match self.try_send(method, path, body).await {
            Ok(answer) => answer,
            Err(error) => panic!("{asked} got no answer: {error:?}"),
        }
    }

    /// Asks, and leaves the answer's body to be read.
    pub async fn open(&self, path: &str) -> reqwest::Response {
        let sent = self.request(Method::GET, path).send().await;
        sent.unwrap_or_else(|error| panic!("GET {path} got no answer: {error:?}"))
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = self.url.read().unwrap_or_else(PoisonError::into_inner).clone();
        let request = self.http.request(method, format!("{url}{path}"));
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }

    /// The same where the server may be gone.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, reqwest::Error> {
        let asked = format!("{method} {path}");
        let mut request = self.request(method, path);
        if body.is_some() && !self.headers.iter().any(|(name, _)| name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { asked, status, headers, text, body })
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    asked: String,
    status: u16,
    headers: HeaderMap,
    text: String,
    body: Value,
}

impl Answer {
    /// An answer that nobody gave, without a body.
    pub fn for_testing(status: u16) -> Self {
        let (asked, text) = (String::new(), String::new());
        Self { asked, status, headers: HeaderMap::new(), text, body: Value::Null }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> &Value {
        &self.body
    }

    /// The body as it came.
    pub fn raw(&self) -> &str {
        &self.text
    }

    /// A header; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A member that is a text.
    #[track_caller]
    pub fn text(&self, name: &str) -> String {
        let text = self.body[name].as_str();
        text.unwrap_or_else(|| panic!("no text {name:?} in {self:?}")).to_owned()
    }

    /// The items of a list.
    #[track_caller]
    pub fn items(&self) -> &[Value] {
        self.body["data"].as_array().unwrap_or_else(|| panic!("no list: {self:?}"))
    }

    /// This answer, which must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.asked, self.text);
        self
    }

    /// This answer, which must be a problem document (RFC 9457) with this status and code.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self["code"].as_str()), (status, Some(code)), "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self["type"], format!("/problems/{code}"), "{self:?}");
        assert_eq!(self["status"], status, "{self:?}");
        for member in ["title", "detail", "instance", "correlation_id", "trace_id"] {
            assert!(
                self[member].as_str().is_some_and(|text| !text.is_empty()),
                "{member}: {self:?}"
            );
        }
        self
    }

    /// The pointers of the fields that a 422 names.
    #[track_caller]
    pub fn pointers(self) -> Vec<String> {
        let answer = self.problem(422, "invalid");
        let errors = answer["errors"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
        let pointers = errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned());
        pointers.collect()
    }
}

impl Index<&str> for Answer {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        &self.body[name]
    }
}
