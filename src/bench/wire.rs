//! As much of HTTP/1.1 as a load needs: whole requests as text, and of an answer its status, its
//! length and the end of its body.

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The largest answer that is understood.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;

/// An answer as it came.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// Status line and header fields.
    pub head: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// A header field's value, by its name in lower case.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        field(self.head, name)
    }

    /// The version that the `ETag` names.
    pub fn version(&self) -> Option<u64> {
        self.field("etag")?.trim_matches('"').parse().ok()
    }

    /// The text between `"<name>":"` and the next quotation mark, for texts without escapes.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        let body = std::str::from_utf8(self.body).ok()?;
        let after = body.split_once(&format!("\"{name}\":\""))?.1;
        after.split('"').next()
    }
}

/// Who asks whom.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The server, as `Host` names it.
    pub host: String,
    /// The token.
    pub token: String,
}

impl Asker {
    /// A request's text; `more` are whole header lines.
    pub fn request(&self, method: &str, path: &str, more: &str, body: &str) -> Vec<u8> {
        let mut text = Vec::with_capacity(512 + body.len());
        self.write(method, path, more, body.as_bytes(), &mut text);
        text
    }

    /// The same into `out`.
    pub fn write(&self, method: &str, path: &str, more: &str, body: &[u8], out: &mut Vec<u8>) {
        let (host, token, length) = (&self.host, &self.token, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n"
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body);
    }
}

/// What has come in on a connection and is not used up.
#[derive(Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    used: usize,
}

impl Incoming {
    pub(super) async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> anyhow::Result<Answer<'_>> {
        self.bytes.drain(..self.used);
        self.used = 0;
        loop {
            if let Some((head, length)) = whole(&self.bytes)? {
                self.used = head + length;
                return Ok(Answer {
                    status: status(&self.bytes)?,
                    head: &self.bytes[..head],
                    body: &self.bytes[head..head + length],
                });
            }
            if self.bytes.len() > ANSWER_BYTES_MAX {
                bail!("an answer is larger than {ANSWER_BYTES_MAX} bytes");
            }
            self.bytes.reserve(READ_BYTES);
            if stream.read_buf(&mut self.bytes).await.context("an answer broke off")? == 0 {
                bail!("the server closed a connection in the middle of the run");
            }
        }
    }
}

/// The lengths of head and body, once all of the answer is there.
fn whole(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = end + 4;
    let length = field(&bytes[..head], "content-length").context("an answer without a length")?;
    let length: usize = length.parse().context("an answer's length is a number")?;
    Ok((bytes.len() >= head + length).then_some((head, length)))
}

/// `HTTP/1.1 200 OK`: the three digits.
fn status(bytes: &[u8]) -> anyhow::Result<u16> {
    let digits = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).context("an answer without a status")
}

fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let line = head.split(|byte| *byte == b'\n').find(|line| {
        line.get(name.len()) == Some(&b':')
            && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
    })?;
    std::str::from_utf8(&line[name.len() + 1..]).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once_it_is_whole() {
        let text = b"HTTP/1.1 201 Created\r\nEtag: \"7\"\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1";
        let head = text.len() - "{}HTTP/1.1".len();
        assert_eq!(whole(&text[..head]).unwrap(), None);
        assert_eq!(whole(&text[..head + 1]).unwrap(), None);
        assert_eq!(whole(text).unwrap(), Some((head, 2)));
        assert_eq!(status(text).unwrap(), 201);
        assert_eq!(field(&text[..head], "etag"), Some("\"7\""));
        assert_eq!(field(&text[..head], "content"), None);
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "without a length it never ends");
    }

    #[test]
    fn what_a_load_looks_at_in_an_answer_is_found() {
        let answer = Answer {
            status: 201,
            head: b"HTTP/1.1 201 Created\r\nETag: \"12\"\r\n\r\n",
            body: br#"{"status":"SHIPPED","shipment_id":"a-b","n":1}"#,
        };
        assert_eq!(answer.version(), Some(12));
        assert_eq!(
            (answer.text("status"), answer.text("shipment_id")),
            (Some("SHIPPED"), Some("a-b"))
        );
        assert_eq!(answer.text("n"), None);
    }
}
