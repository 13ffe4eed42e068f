//! A request in pieces, so that each can be made wrong by itself, and the bytes it comes to.

use serde_json::Value;

/// A request that may be wrong in any way.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Body,
}

/// Its body.
#[derive(Debug, Clone)]
pub enum Body {
    None,
    Json(Value),
    /// Anything, JSON that is none included.
    Bytes(Vec<u8>),
}

/// Stands in JSON for raw text that no value could be: `NaN`, a lone surrogate, a second member of
/// the same name.
pub const RAW: &str = "@@raw@@";

impl Request {
    /// The body's bytes.
    pub fn body_bytes(&self, raw: &str) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Json(value) => value.to_string().replace(&format!("\"{RAW}\""), raw).into_bytes(),
            Body::Bytes(bytes) => bytes.clone(),
        }
    }

    /// The head and the body with this length announced.
    pub fn bytes(&self, raw: &str) -> Vec<u8> {
        let body = self.body_bytes(raw);
        let mut bytes = self.head();
        if !body.is_empty() || !matches!(self.method.as_str(), "GET" | "HEAD" | "DELETE") {
            bytes.extend(format!("content-length: {}\r\n", body.len()).into_bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(body);
        bytes
    }

    /// The head without its end and without a length.
    pub fn head(&self) -> Vec<u8> {
        let query: Vec<_> =
            self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let target = format!("{}{mark}{}", self.path, query.join("&"));
        let mut head = format!("{} {target} HTTP/1.1\r\n", self.method).into_bytes();
        for (name, value) in &self.headers {
            head.extend(name.as_bytes());
            head.extend(b": ");
            head.extend(value);
            head.extend(b"\r\n");
        }
        head
    }

    /// The one value of a header.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let first = values.next().map(|(_, value)| value.as_slice());
        if values.next().is_some() { None } else { first }
    }

    /// Sets a header in place of what there is.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
    }
}
