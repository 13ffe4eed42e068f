//! HTTP/1 by hand: requests that no client library would send, and answers read byte by byte.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long any answer may take: the longest wait that a request can ask for, and then some.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer as it came over the wire.
#[derive(Debug, Clone)]
pub struct RawAnswer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether the application gave it, rather than the HTTP library before there was a request.
    pub fn is_ours(&self) -> bool {
        self.header("x-request-id").is_some()
    }

    fn closes(&self) -> bool {
        self.header("connection").is_some_and(|of| of.eq_ignore_ascii_case("close"))
    }
}

/// A connection that is kept for as long as the server keeps it.
pub struct RawClient {
    address: String,
    stream: Option<TcpStream>,
    buffer: VecDeque<u8>,
}

impl RawClient {
    /// A client of the server at `url`.
    pub fn new(url: &str) -> Self {
        let address = url.trim_start_matches("http://").to_owned();
        Self { address, stream: None, buffer: VecDeque::new() }
    }

    /// Where it connects to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends these bytes and reads one answer. A connection that the server closed since the last
    /// answer is opened again.
    pub async fn send(&mut self, request: &[u8], is_head: bool) -> io::Result<RawAnswer> {
        let reused = self.stream.is_some();
        match self.try_send(request, is_head).await {
            Err(_) if reused => {
                self.close();
                self.try_send(request, is_head).await
            }
            done => done,
        }
    }

    /// Forgets the connection: what was sent on it may not have been one whole request.
    pub fn close(&mut self) {
        self.stream = None;
        self.buffer.clear();
    }

    async fn try_send(&mut self, request: &[u8], is_head: bool) -> io::Result<RawAnswer> {
        if self.stream.is_none() {
            self.buffer.clear();
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut().expect("it was just opened");
        // A server that has refused already may have closed; what it said can still be read.
        let sent = stream.write_all(request).await;
        let read = tokio::time::timeout(PATIENCE, self.answer(is_head)).await;
        let answer = match read {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.close();
                return Err(sent.err().unwrap_or(error));
            }
            Err(_) => {
                self.close();
                return Err(io::ErrorKind::TimedOut.into());
            }
        };
        if answer.closes() || sent.is_err() {
            self.close();
        }
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        let stream = self.stream.as_mut().expect("the connection is open");
        let mut chunk = [0; 16 * 1024];
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend(&chunk[..length]);
        Ok(())
    }

    async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            let bytes = self.buffer.make_contiguous();
            if let Some(at) = bytes.windows(end.len()).position(|window| window == end) {
                let taken: Vec<u8> = self.buffer.drain(..at + end.len()).collect();
                return Ok(taken[..at].to_vec());
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn answer(&mut self, is_head: bool) -> io::Result<RawAnswer> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).map_err(|_| broken())?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let status = status.ok_or_else(broken)?;
        let mut answer = RawAnswer { status, headers, body: Vec::new() };
        if (100..200).contains(&status) {
            return Box::pin(self.answer(is_head)).await;
        }
        if is_head || matches!(status, 204 | 304) {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            loop {
                let line = self.until(b"\r\n").await?;
                let size = String::from_utf8(line).map_err(|_| broken())?;
                let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken())?;
                let chunk = self.exactly(size).await?;
                self.until(b"\r\n").await?;
                if size == 0 {
                    return Ok(answer);
                }
                answer.body.extend(chunk);
            }
        }
        let length = answer.header("content-length").map(str::parse).transpose();
        let length = length.map_err(|_| broken())?.unwrap_or(0);
        answer.body = self.exactly(length).await?;
        Ok(answer)
    }
}
