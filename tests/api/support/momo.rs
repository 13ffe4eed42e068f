//! MoMo, as its documentation describes it, in this process: it checks every signature, keeps books of
//! what was paid and given back, signs what it tells, and misbehaves when it is told to.
//!
//! What it says comes from its books alone, with code of its own, so that nothing of the program under
//! test vouches for itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use hmac::{Hmac, Mac as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::net::TcpListener;

use super::{Answer, Server, Start};

/// Who the shop is.
const PARTNER: &str = "MOMOTEST2026";
const ACCESS_KEY: &str = "access-key-of-tests";
/// What it signs with.
pub const SECRET_KEY: &str = "a-secret-that-no-log-may-show";
/// The least that it takes and gives back.
const AMOUNT_MIN: i64 = 1_000;
/// How long the server under test waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(400);
/// Where MoMo is told to tell; the tests send it to wherever the server is.
const NOTICES: &str = "/api/v1/payments/webhook/momo";

/// What an operation signs, after the access key.
fn signed_fields(operation: &str) -> &'static [&'static str] {
    match operation {
        "create" => &[
            "amount",
            "extraData",
            "ipnUrl",
            "orderId",
            "orderInfo",
            "partnerCode",
            "redirectUrl",
            "requestId",
            "requestType",
        ],
        "query" => &["orderId", "partnerCode", "requestId"],
        "confirm" => {
            &["amount", "description", "orderId", "partnerCode", "requestId", "requestType"]
        }
        "refund" => &["amount", "description", "orderId", "partnerCode", "requestId", "transId"],
        "notice" => &[
            "amount",
            "extraData",
            "message",
            "orderId",
            "orderInfo",
            "orderType",
            "partnerCode",
            "payType",
            "requestId",
            "responseTime",
            "resultCode",
            "transId",
        ],
        other => panic!("nobody signs {other}"),
    }
}

fn signature(operation: &str, body: &Value) -> String {
    let mut raw = format!("accessKey={ACCESS_KEY}");
    for name in signed_fields(operation) {
        let value = match &body[*name] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        raw.push_str(&format!("&{name}={value}"));
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET_KEY.as_bytes()).unwrap();
    mac.update(raw.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How an order stands at MoMo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The buyer can pay.
    Open,
    /// The money is held and not taken.
    Held,
    /// The buyer has paid.
    Paid,
    /// It came to nothing, with this code.
    Failed(i64),
}

/// An order at MoMo.
#[derive(Debug, Clone)]
pub struct Session {
    pub request_id: String,
    pub amount: i64,
    pub order_info: String,
    pub standing: Standing,
    pub trans_id: i64,
    /// What was given back: the refund's id, how much, and the result.
    pub refunds: Vec<(String, i64, i64)>,
}

impl Session {
    /// How much of the buyer's money the shop has.
    pub fn kept(&self) -> i64 {
        let back = self.refunds.iter().filter(|(_, _, code)| *code == 0);
        let back: i64 = back.map(|(_, amount, _)| *amount).sum();
        if self.standing == Standing::Paid { self.amount - back } else { -back }
    }

    /// How often money was given back.
    pub fn given_back(&self) -> usize {
        self.refunds.iter().filter(|(_, _, code)| *code == 0).count()
    }
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// It is not done, and a server in between says so with a status.
    Refused(u16),
    /// It is not done, and nobody says anything.
    Unheard,
    /// It is done, and nobody says anything.
    Unsaid,
    /// It is done, and what is said is garbage.
    Garbled,
    /// It is done, and a server in between gives this status instead of the answer.
    Masked(u16),
    /// It is done when nobody waits any more.
    Late,
    /// It is not done, and this code is given.
    Code(i64),
    /// It is done, and the answer is about something else.
    Mixed,
    /// It is done, and the answer is about another sum.
    Miscounted,
}

#[derive(Default)]
struct Desk {
    sessions: BTreeMap<String, Session>,
    /// What was answered under a request's id, which is answered again.
    answered: BTreeMap<String, Value>,
    /// What goes wrong with the next calls of an operation.
    troubles: BTreeMap<String, VecDeque<Trouble>>,
    /// Where troubles come from when nobody says which.
    random: Option<StdRng>,
    /// Every call whose signature held: the operation and its body.
    calls: Vec<(String, Value)>,
    unsigned: usize,
    last_number: i64,
}

/// The whole of it.
#[derive(Clone)]
pub struct MoMo {
    url: String,
    desk: Arc<Mutex<Desk>>,
}

impl MoMo {
    /// Opens.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let momo = Self { url, desk: Arc::default() };
        let path = "/v2/gateway/api/{operation}";
        let router = Router::new().route(path, post(take)).with_state(momo.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        momo
    }

    /// How to start a server that takes payments by it.
    pub fn shop(&self) -> Start {
        Start::default()
            .with("MOMO_ENDPOINT", &self.url)
            .with("MOMO_PARTNER_CODE", PARTNER)
            .with("MOMO_ACCESS_KEY", ACCESS_KEY)
            .with("MOMO_SECRET_KEY", SECRET_KEY)
            .with("MOMO_IPN_URL", format!("https://shop.example{NOTICES}"))
            .with("MOMO_REDIRECT_URL", "https://shop.example/paid")
            .with("MOMO_LANGUAGE", "en")
            .with("MOMO_TIMEOUT", format!("{}ms", TIMEOUT.as_millis()))
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong with the next calls of an operation, one after the other.
    pub fn trouble(&self, operation: &str, troubles: &[Trouble]) {
        let mut desk = self.desk();
        desk.troubles.entry(operation.to_owned()).or_default().extend(troubles);
    }

    /// From now on about every other call goes wrong, somehow.
    pub fn storm(&self, seed: u64) {
        self.desk().random = Some(StdRng::seed_from_u64(seed));
    }

    /// From now on nothing goes wrong.
    pub fn calm(&self) {
        let mut desk = self.desk();
        desk.random = None;
        desk.troubles.clear();
    }

    /// An order, if there is one.
    pub fn session(&self, order_id: &str) -> Option<Session> {
        self.desk().sessions.get(order_id).cloned()
    }

    /// How often an operation was asked for, properly signed.
    pub fn called(&self, operation: &str) -> usize {
        self.desk().calls.iter().filter(|(name, _)| name == operation).count()
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.desk().calls.len()
    }

    /// The body of the last call of an operation.
    pub fn last(&self, operation: &str) -> Value {
        let desk = self.desk();
        let found = desk.calls.iter().rev().find(|(name, _)| name == operation);
        found.map(|(_, body)| body.clone()).unwrap_or_default()
    }

    /// Money goes back, or does not, by other means: so its books say from now on.
    pub fn lists(&self, order_id: &str, refund_id: &str, amount: i64, code: i64) {
        let mut desk = self.desk();
        let session = desk.sessions.get_mut(order_id).expect("there is such an order");
        session.refunds.push((refund_id.to_owned(), amount, code));
    }

    /// How many calls were not signed as they must be.
    pub fn unsigned(&self) -> usize {
        self.desk().unsigned
    }

    fn becomes(&self, order_id: &str, standing: Standing) -> bool {
        let mut desk = self.desk();
        desk.last_number += 1;
        let number = 4_000_000_000 + desk.last_number;
        match desk.sessions.get_mut(order_id) {
            Some(session) if matches!(session.standing, Standing::Open | Standing::Held) => {
                session.standing = standing;
                session.trans_id = number;
                true
            }
            _ => false,
        }
    }

    /// The buyer pays, if there is something to be paid.
    pub fn pay(&self, order_id: &str) -> bool {
        self.becomes(order_id, Standing::Paid)
    }

    /// The buyer's money is held and not taken.
    pub fn hold(&self, order_id: &str) -> bool {
        self.becomes(order_id, Standing::Held)
    }

    /// It comes to nothing.
    pub fn fail(&self, order_id: &str, code: i64) -> bool {
        self.becomes(order_id, Standing::Failed(code))
    }

    /// Everything that is open comes to nothing: the pages are good for some time only.
    pub fn expire(&self) {
        for session in self.desk().sessions.values_mut() {
            if session.standing == Standing::Open {
                session.standing = Standing::Failed(1005);
            }
        }
    }

    /// What MoMo tells of an order, not signed yet.
    pub fn notice(&self, order_id: &str) -> Value {
        let session = self.session(order_id).expect("there is such an order");
        let code = code_of(session.standing);
        json!({
            "partnerCode": PARTNER,
            "orderId": order_id,
            "requestId": session.request_id,
            "amount": session.amount,
            "orderInfo": session.order_info,
            "orderType": "momo_wallet",
            "transId": session.trans_id,
            "resultCode": code,
            "message": "Thành công.",
            "payType": "qr",
            "responseTime": 1_721_720_663_942_i64,
            "extraData": "",
            "paymentOption": "momo",
        })
    }
}

/// The same, signed.
pub fn signed(mut notice: Value) -> Value {
    notice["signature"] = json!(signature("notice", &notice));
    notice
}

impl Server {
    /// MoMo tells the server something.
    pub async fn tell(&self, notice: &Value) -> Answer {
        self.visitor().post(NOTICES, notice).await
    }
}

fn code_of(standing: Standing) -> i64 {
    match standing {
        Standing::Open => 1000,
        Standing::Held => 9000,
        Standing::Paid => 0,
        Standing::Failed(code) => code,
    }
}

/// A storm's next trouble; none: all goes well.
fn drawn(random: &mut StdRng, operation: &str) -> Option<Trouble> {
    if random.random_bool(0.5) {
        return None;
    }
    let codes = [10, 43, 99, 7000, 777];
    Some(match random.random_range(0..9) {
        0 => Trouble::Refused(503),
        1 => Trouble::Unheard,
        2 => Trouble::Unsaid,
        3 => Trouble::Garbled,
        4 => Trouble::Masked(502),
        5 => Trouble::Late,
        6 => Trouble::Mixed,
        7 if operation == "refund" => Trouble::Code(1080),
        _ => Trouble::Code(codes[random.random_range(0..codes.len())]),
    })
}

async fn take(State(momo): State<MoMo>, Path(operation): Path<String>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    if body["signature"] != signature(&operation, &body) || body["partnerCode"] != PARTNER {
        momo.desk().unsigned += 1;
        return reply(json!({ "resultCode": 13, "message": "bad signature" }));
    }
    let trouble = {
        let mut desk = momo.desk();
        desk.calls.push((operation.clone(), body.clone()));
        let planned = desk.troubles.get_mut(&operation).and_then(VecDeque::pop_front);
        planned.or_else(|| desk.random.as_mut().and_then(|random| drawn(random, &operation)))
    };
    let done = || momo.desk().done(&operation, &body);
    let silence = || tokio::time::sleep(TIMEOUT * 2);
    match trouble {
        None => reply(done()),
        Some(Trouble::Refused(status)) => bare(status),
        Some(Trouble::Unheard) => {
            silence().await;
            bare(504)
        }
        Some(Trouble::Unsaid) => {
            done();
            silence().await;
            bare(504)
        }
        Some(Trouble::Garbled) => {
            done();
            "<html>We are sorry</html>".into_response()
        }
        Some(Trouble::Masked(status)) => {
            done();
            bare(status)
        }
        Some(Trouble::Late) => {
            // Also when the connection is given up meanwhile.
            let late = tokio::spawn(async move {
                silence().await;
                momo.desk().done(&operation, &body);
            });
            let _ = late.await;
            bare(504)
        }
        Some(Trouble::Code(code)) => reply(momo.desk().coded(&operation, &body, code)),
        Some(Trouble::Mixed) => {
            let mut said = done();
            said["orderId"] = json!("somebody-elses");
            reply(said)
        }
        Some(Trouble::Miscounted) => {
            let mut said = done();
            said["amount"] = json!(said["amount"].as_i64().unwrap() - 1);
            reply(said)
        }
    }
}

fn reply(body: Value) -> Response {
    axum::Json(body).into_response()
}

fn bare(status: u16) -> Response {
    StatusCode::from_u16(status).unwrap().into_response()
}

fn text(body: &Value, name: &str) -> String {
    body[name].as_str().unwrap().to_owned()
}

impl Desk {
    /// Does what is asked for and gives the answer. A request's id has effect once.
    fn done(&mut self, operation: &str, body: &Value) -> Value {
        let request_id = text(body, "requestId");
        if let Some(known) = self.answered.get(&request_id) {
            return known.clone();
        }
        let said = match operation {
            "create" => self.create(body),
            "query" => self.query(body),
            "confirm" => self.confirm(body),
            "refund" => self.refund(body),
            other => panic!("nobody does {other}"),
        };
        let final_codes = [0, 1080, 1081, 1088];
        if operation != "query" && final_codes.contains(&said["resultCode"].as_i64().unwrap()) {
            self.answered.insert(request_id, said.clone());
        }
        said
    }

    /// Gives a code. Of a refund that failed a record is kept: it fails for good.
    fn coded(&mut self, operation: &str, body: &Value, code: i64) -> Value {
        if operation == "refund" && code == 1080 {
            let request_id = text(body, "requestId");
            if let Some(known) = self.answered.get(&request_id) {
                return known.clone();
            }
            let trans_id = body["transId"].as_i64().unwrap();
            let paid = self.sessions.values_mut().find(|session| session.trans_id == trans_id);
            let refund = (text(body, "orderId"), body["amount"].as_i64().unwrap(), code);
            paid.unwrap().refunds.push(refund);
            let said = about(body, code);
            self.answered.insert(request_id, said.clone());
            return said;
        }
        about(body, code)
    }

    fn create(&mut self, body: &Value) -> Value {
        let (order_id, amount) = (text(body, "orderId"), body["amount"].as_i64().unwrap());
        if self.sessions.contains_key(&order_id) {
            return about(body, 41);
        }
        if amount < AMOUNT_MIN {
            return about(body, 22);
        }
        assert!(!body["ipnUrl"].as_str().unwrap().contains(['?', ' ']), "{body}");
        let session = Session {
            request_id: text(body, "requestId"),
            amount,
            order_info: text(body, "orderInfo"),
            standing: Standing::Open,
            trans_id: 0,
            refunds: Vec::new(),
        };
        self.sessions.insert(order_id.clone(), session);
        let mut said = about(body, 0);
        said["amount"] = json!(amount);
        said["payUrl"] = json!(format!("https://pay.momo.example/v2/{order_id}"));
        said["qrCodeUrl"] = json!("momo://app");
        said
    }

    fn query(&mut self, body: &Value) -> Value {
        let Some(session) = self.sessions.get(&text(body, "orderId")) else {
            return about(body, 42);
        };
        let mut said = about(body, code_of(session.standing));
        said["amount"] = json!(session.amount);
        said["transId"] = json!(session.trans_id);
        let listed = session.refunds.iter().map(|(order_id, amount, code)| {
            json!({ "orderId": order_id, "amount": amount, "resultCode": code, "transId": 77 })
        });
        said["refundTrans"] = listed.collect();
        said
    }

    fn confirm(&mut self, body: &Value) -> Value {
        let session = self.sessions.get_mut(&text(body, "orderId"));
        match session.filter(|session| session.standing == Standing::Held) {
            Some(session) => {
                let cancels = body["requestType"] == "cancel";
                session.standing = if cancels { Standing::Failed(1003) } else { Standing::Paid };
                about(body, 0)
            }
            None => about(body, 47),
        }
    }

    fn refund(&mut self, body: &Value) -> Value {
        let (order_id, amount) = (text(body, "orderId"), body["amount"].as_i64().unwrap());
        let trans_id = body["transId"].as_i64().unwrap();
        let twice = self
            .sessions
            .values()
            .any(|session| session.refunds.iter().any(|(id, _, _)| *id == order_id));
        if self.sessions.contains_key(&order_id) || twice {
            return about(body, 41);
        }
        if amount < AMOUNT_MIN {
            return about(body, 22);
        }
        let paid = self.sessions.values_mut().find(|session| session.trans_id == trans_id);
        match paid.filter(|session| session.standing == Standing::Paid) {
            None => about(body, 1088),
            Some(session) if session.kept() < amount => about(body, 1081),
            Some(session) => {
                session.refunds.push((order_id, amount, 0));
                let mut said = about(body, 0);
                said["amount"] = json!(amount);
                said["transId"] = json!(77);
                said
            }
        }
    }
}

fn about(body: &Value, code: i64) -> Value {
    json!({
        "partnerCode": PARTNER,
        "orderId": body["orderId"],
        "requestId": body["requestId"],
        "resultCode": code,
        "message": "as the code says",
        "responseTime": 1_721_720_663_942_i64,
    })
}
