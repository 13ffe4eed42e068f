//! Commands that talk to a running server over its HTTP API: where it is, who asks, and how what it
//! answers is shown.
//!
//! They need no configuration of their own, so that they work from another machine too. A token is
//! never an argument: arguments are seen by everybody on the machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use comfy_table::{Cell, CellAlignment, Table};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde_json::Value;

use crate::serve::ADMIN_TOKEN_FILE;
use crate::tls::{http_client, http_client_showing};

/// Where everything but probes and documents is.
const API: &str = "/api/v1";
/// How many rows of a list one request asks for.
const ROWS_AT_ONCE: &str = "200";
/// Holds the token itself.
const TOKEN: &str = "SOUK_TOKEN";
/// What stands for a value that is not there.
const NOTHING: &str = "–";

/// Which server, and how to show its answers.
#[derive(Args)]
struct Connection {
    /// Where the server is
    #[arg(long, global = true, env = "SOUK_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A file with an administrator's token; SOUK_TOKEN holds the token itself [admin-token in the data folder]
    #[arg(long, global = true, env = "SOUK_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificate to show, where the server asks for one (PEM)
    #[arg(long, global = true, env = "SOUK_CLIENT_CERT_FILE", value_name = "FILE")]
    #[arg(requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, global = true, env = "SOUK_CLIENT_KEY_FILE", value_name = "FILE")]
    #[arg(requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// Print what the server answered as JSON
    #[arg(long, global = true)]
    json: bool,
}

/// A command against a running server: which one, and what to do there.
#[derive(Args)]
pub(super) struct Against<O: Args> {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    options: O,
}

impl<O: Args> Against<O> {
    /// Opens the connection. Nothing is sent yet.
    pub(super) fn open(self, data_dir: &Path) -> anyhow::Result<(Remote, O)> {
        Ok((self.connection.open(data_dir)?, self.options))
    }
}

impl Connection {
    /// Opens it. Nothing is sent yet.
    fn open(&self, data_dir: &Path) -> anyhow::Result<Remote> {
        let token = token(self.token_file.as_deref(), data_dir)?;
        let url = self.url.trim_end_matches('/').to_owned();
        let http = match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => http_client_showing(certificate, key)?,
            _ => http_client(),
        };
        let http = http.build().context("cannot make requests")?;
        Ok(Remote { http, url, token, json: self.json })
    }
}

/// The token in this file; without one in `SOUK_TOKEN`, or in the data folder.
pub(super) fn token(file: Option<&Path>, data_dir: &Path) -> anyhow::Result<String> {
    match (file, std::env::var(TOKEN)) {
        (None, Ok(token)) => Ok(token.trim().to_owned()),
        (Some(file), _) => read_token(file),
        (None, Err(_)) => read_token(&data_dir.join(ADMIN_TOKEN_FILE)),
    }
}

/// The token in a file.
pub(super) fn read_token(file: &Path) -> anyhow::Result<String> {
    let token = std::fs::read_to_string(file).with_context(|| {
        format!(
            "cannot read an administrator's token from {}: name another file with --token-file, or \
             put the token into {TOKEN}",
            file.display()
        )
    })?;
    Ok(token.trim().to_owned())
}

/// A server, as an administrator sees it.
pub(super) struct Remote {
    http: reqwest::Client,
    url: String,
    token: String,
    json: bool,
}

/// A server's answer that is no success.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub(super) struct Refusal {
    /// Its status.
    pub(super) status: u16,
    /// What it said, for a person.
    pub(super) said: String,
}

/// What a server answered.
pub(super) struct Told {
    /// The body; null when there is none.
    pub(super) body: Value,
    /// The entity tag, as it was sent.
    pub(super) etag: Option<String>,
}

impl Remote {
    /// Whether answers are printed as JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// A request to a path below `/api/v1`, to be completed and given to [`Remote::send`].
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{API}{path}", self.url)).bearer_auth(&self.token)
    }

    /// Sends a request. Whatever is not a success is an error that says what the server said.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Told> {
        let response = self.open(request).await?;
        let etag = response.headers().get("etag").and_then(|tag| tag.to_str().ok());
        let etag = etag.map(str::to_owned);
        let text = response.text().await.context("the answer broke off")?;
        if text.is_empty() {
            return Ok(Told { body: Value::Null, etag });
        }
        let body = serde_json::from_str(&text).context("the server did not answer with JSON")?;
        Ok(Told { body, etag })
    }

    /// As [`Remote::send`], but the body is still to be read: for streams.
    pub(super) async fn open(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let sent = request.send().await;
        let response = sent.with_context(|| format!("no server answers at {}", self.url))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let status = status.as_u16();
        let said = refusal(status, &serde_json::from_str(&text).unwrap_or_default());
        Err(Refusal { status, said }.into())
    }

    /// What is at a path.
    pub(super) async fn get(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Told> {
        self.send(self.request(Method::GET, path).query(query)).await
    }

    /// Posts a body to a path.
    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Told> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// The first `rows_max` rows of a list, page by page, and whether there are more.
    pub(super) async fn list(
        &self,
        path: &str,
        query: &[(&str, String)],
        rows_max: usize,
    ) -> anyhow::Result<(Vec<Value>, bool)> {
        let mut rows = Vec::new();
        let mut cursor = None::<String>;
        loop {
            let mut asked: Vec<(&str, &str)> = vec![("limit", ROWS_AT_ONCE)];
            asked.extend(query.iter().map(|(name, value)| (*name, value.as_str())));
            asked.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page = self.get(path, &asked).await?.body;
            rows.extend(page["data"].as_array().into_iter().flatten().cloned());
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if rows.len() >= rows_max || cursor.is_none() {
                let more = cursor.is_some() || rows.len() > rows_max;
                rows.truncate(rows_max);
                return Ok((rows, more));
            }
        }
    }
}

/// One part of a path: whatever stands in it, it stays one part.
pub(super) fn part(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

/// What a problem document says, for a person at a terminal.
fn refusal(status: u16, problem: &Value) -> String {
    let text = |name: &str| problem[name].as_str().map(plain);
    let Some(title) = text("title") else {
        return format!("the server answered {status} without saying why");
    };
    let mut said = format!("{title} ({status}");
    if let Some(code) = text("code") {
        said.push_str(&format!(", {code}"));
    }
    said.push(')');
    if let Some(detail) = text("detail") {
        said.push_str(&format!(": {detail}"));
    }
    for error in problem["errors"].as_array().into_iter().flatten() {
        let part = |name: &str| error[name].as_str().map(plain).unwrap_or_default();
        said.push_str(&format!("\n  {}: {}", part("pointer"), part("detail")));
    }
    if status == 401 {
        said.push_str(
            "\n  The token may have ended: log in again, or name another with --token-file.",
        );
    }
    said
}

/// Text from elsewhere, without what would steer a terminal.
pub(super) fn plain(text: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A value in a cell: text as it is, what is missing as a dash, anything else as JSON.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

/// Prints rows under their headings; numbers stand on the right.
pub(super) fn print_table<'a>(
    headings: &[(&str, &str)],
    rows: impl IntoIterator<Item = &'a Value>,
) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(headings.iter().map(|(heading, _)| *heading));
    for row in rows {
        table.add_row(headings.iter().map(|(_, pointer)| {
            let value = row.pointer(pointer).unwrap_or(&Value::Null);
            let cell = Cell::new(shown(value));
            if value.is_number() { cell.set_alignment(CellAlignment::Right) } else { cell }
        }));
    }
    println!("{table}");
}

/// Prints an answer as it came.
pub(super) fn print_json(value: &Value) {
    println!("{value:#}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_says_what_the_server_said() {
        let problem = json!({
            "title": "Validation failed",
            "code": "validation_failed",
            "detail": "the body is wrong",
            "errors": [{ "pointer": "/price", "detail": "must be at least 1" }],
        });
        assert_eq!(
            refusal(422, &problem),
            "Validation failed (422, validation_failed): the body is wrong\n  /price: must be at least 1"
        );
        assert_eq!(refusal(502, &Value::Null), "the server answered 502 without saying why");
    }

    #[test]
    fn whatever_stands_in_a_part_of_a_path_stays_there() {
        assert_eq!(part("order_saga-facts"), "order_saga-facts");
        assert_eq!(part("a/../b?c=d#e %"), "a%2F..%2Fb%3Fc%3Dd%23e%20%25");
        assert_eq!(part("né"), "n%C3%A9");
    }

    #[test]
    fn what_comes_from_elsewhere_steers_no_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown(&json!("a\tb")), "a\\tb");
        assert_eq!(shown(&Value::Null), NOTHING);
        assert_eq!(shown(&json!(3)), "3");
    }
}
