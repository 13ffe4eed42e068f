//! Somebody outside who takes webhooks, and now and then does not. What arrives must be signed, and
//! in order for each aggregate; in the end it must be all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::client::{self, Door, Who};
use crate::gateways::webhook::sign;

/// What it wants to hear of: several things of each order.
pub(super) const TOPICS: [&str; 4] =
    ["order.placed", "order.confirmed", "order.paid", "order.shipped"];
/// Each time it was asked so often it does not take a message.
const REFUSES_EVERY: u64 = 41;
/// How many findings it keeps.
const WRONG_MAX: usize = 20;

/// Which versions of which aggregates.
pub(super) type Versions = BTreeMap<Uuid, BTreeSet<u64>>;

/// What it knows.
#[derive(Default)]
struct Desk {
    secret: Vec<u8>,
    asked: u64,
    taken: Versions,
    wrong: Vec<String>,
}

impl Desk {
    fn note(&mut self, wrong: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(wrong);
        }
    }

    /// Looks at a message; whether it is taken.
    fn take(&mut self, headers: [&str; 3], body: &[u8]) -> bool {
        let [id, timestamp, signature] = headers;
        let signed = timestamp.parse().map(|timestamp| sign(&self.secret, id, timestamp, body));
        if !signed.is_ok_and(|signed| signature.split(' ').any(|entry| entry == signed)) {
            self.note(format!("{id} is not signed"));
        }
        self.asked += 1;
        if self.asked.is_multiple_of(REFUSES_EVERY) {
            return false;
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let aggregate = body["aggregate_id"].as_str().and_then(|text| text.parse().ok());
        let (Some(aggregate), Some(version)) = (aggregate, body["aggregate_version"].as_u64())
        else {
            self.note(format!("{id} does not say what it is about"));
            return true;
        };
        let taken: &mut BTreeSet<u64> = self.taken.entry(aggregate).or_default();
        let newest = taken.last().copied().unwrap_or(0);
        // It comes at least once.
        if taken.insert(version) && version < newest {
            self.note(format!("version {version} of {aggregate} came after {newest}"));
        }
        true
    }
}

/// Somebody who takes webhooks.
pub(super) struct Receiver {
    url: String,
    desk: Arc<Mutex<Desk>>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    desk: Arc<Mutex<Desk>>,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    // Whoever breaks off is not answered anyway.
    let Ok(body) = body.collect().await else { return Ok(Response::new(Empty::new())) };
    let header = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(header);
    let status = if lock(&desk).take(headers, &body.to_bytes()) { 204 } else { 503 };
    let response = Response::builder().status(status).body(Empty::new());
    Ok(response.expect("it has a status and nothing else"))
}

impl Receiver {
    /// Begins to listen.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let desk = Arc::<Mutex<Desk>>::default();
        let all = desk.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let desk = all.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(desk.clone(), request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A server that is killed breaks off in the middle.
                    let _: Result<(), hyper::Error> =
                        connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { url, desk, task })
    }

    /// Has the server send it what it wants.
    pub async fn subscribe(&self, door: &Door) -> anyhow::Result<()> {
        let wish = json!({ "url": self.url, "events": TOPICS });
        let request = client::Request::post(Who::Admin, "/api/v1/webhooks", wish);
        let made = door.ask(&request.keyed("receiver")).await?.expect(201)?;
        let secret = made.text("secret")?;
        let secret = secret.strip_prefix("whsec_").context("a secret that is none")?;
        lock(&self.desk).secret = STANDARD.decode(secret)?;
        Ok(())
    }

    /// What was wrong with what has arrived since this was asked last.
    pub fn wrong(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.desk).wrong)
    }

    /// How many messages were taken, each once.
    pub fn taken(&self) -> usize {
        lock(&self.desk).taken.values().map(BTreeSet::len).sum()
    }

    /// What of this has not arrived.
    pub fn lacks(&self, expected: &Versions) -> Vec<(Uuid, u64)> {
        let desk = lock(&self.desk);
        let lacks = |(aggregate, versions): (&Uuid, &BTreeSet<u64>)| {
            let (aggregate, taken) = (*aggregate, desk.taken.get(aggregate));
            let lacks = |version: &&u64| taken.is_none_or(|taken| !taken.contains(version));
            versions.iter().filter(lacks).map(|version| (aggregate, *version)).collect::<Vec<_>>()
        };
        expected.iter().flat_map(lacks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(desk: &mut Desk, aggregate: u128, version: u64) -> bool {
        let aggregate = Uuid::from_u128(aggregate);
        let body = json!({ "aggregate_id": aggregate, "aggregate_version": version }).to_string();
        let signature = sign(&desk.secret, "id", 7, body.as_bytes());
        desk.take(["id", "7", &signature], body.as_bytes())
    }

    #[test]
    fn what_is_out_of_order_or_not_signed_is_noticed_and_a_repeat_is_fine() {
        let mut desk = Desk { secret: vec![1; 24], ..Desk::default() };
        for version in [1, 3, 1, 3] {
            assert!(message(&mut desk, 1, version));
        }
        assert!(desk.wrong.is_empty(), "{:?}", desk.wrong);
        message(&mut desk, 2, 1);
        message(&mut desk, 1, 2);
        assert_eq!(desk.wrong.len(), 1, "{:?}", desk.wrong);
        assert!(desk.wrong[0].contains("came after 3"), "{:?}", desk.wrong);
        desk.take(["id", "8", "v1,abc"], b"{}");
        assert_eq!(desk.wrong.len(), 3, "{:?}", desk.wrong);
    }
}
