//! MoMo's calls: what is sent, signed, and what can be read from the answer.
//!
//! Answers carry no signature, so trust rests on TLS and on an answer that names what was asked for.
//! Nothing of a body is ever logged, nor MoMo's `message`, which anybody may have written.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use url::Url;

use super::Settings;
use super::signature::{raw, sign};
use crate::gateways::payment::GatewayError;

/// How much of an answer is read. Those that are documented have less than two kilobytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A payment to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create<'a> {
    /// The order's id at MoMo, unique for the partner.
    pub order_id: &'a str,
    /// The key of this call.
    pub request_id: &'a str,
    /// How many dong.
    pub amount: i64,
    /// What the buyer reads.
    pub order_info: &'a str,
    /// Whether the money is taken as soon as the buyer agrees.
    pub auto_capture: bool,
}

/// A refund to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundOrder<'a> {
    /// The refund's own id at MoMo.
    pub order_id: &'a str,
    /// The key of this call.
    pub request_id: &'a str,
    /// How many dong.
    pub amount: i64,
    /// MoMo's number of the payment.
    pub trans_id: i64,
}

/// The second step of a payment in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// Take the money that is held.
    Capture,
    /// Let it go.
    Cancel,
}

impl Second {
    /// As MoMo writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Cancel => "cancel",
        }
    }
}

/// An answer, as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply(Map<String, Value>);

impl Reply {
    /// What was answered; none: it is not a JSON object with a result code.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let Ok(Value::Object(members)) = serde_json::from_slice(bytes) else { return None };
        let reply = Self(members);
        reply.integer("resultCode").is_some().then_some(reply)
    }

    /// The result code; one that cannot be is as good as an unknown one.
    pub fn code(&self) -> i64 {
        self.integer("resultCode").unwrap_or(i64::MIN)
    }

    /// A member that is a text; empty when it is missing.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A member that is a whole number, as one or in decimal digits.
    pub fn integer(&self, name: &str) -> Option<i64> {
        self.0.get(name).and_then(integer)
    }

    /// The items of a list.
    pub fn items(&self, name: &str) -> impl Iterator<Item = Self> {
        let items = self.0.get(name).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_object).cloned().map(Self)
    }
}

/// A whole number, written as one or in decimal digits.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            if plain { text.parse().ok() } else { None }
        }
        _ => None,
    }
}

/// Makes the calls, each over a connection of its own. No redirect is followed and no proxy used.
pub struct Client {
    settings: Settings,
    endpoint: Url,
    tls: TlsConnector,
}

impl Client {
    /// A client with these settings. It trusts the certificates that the system trusts.
    pub fn new(settings: Settings) -> Result<Self, url::ParseError> {
        let endpoint = Url::parse(&settings.endpoint)?;
        for operation in ["create", "query", "confirm", "refund"] {
            for outcome in ["answered", "no_answer", "refused"] {
                count(operation, outcome, 0);
            }
        }
        Ok(Self { settings, endpoint, tls: TlsConnector::from(Arc::new(tls())) })
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens a payment.
    pub async fn create(&self, create: &Create<'_>) -> Result<Reply, GatewayError> {
        self.post("create", "/v2/gateway/api/create", self.create_body(create)).await
    }

    /// Asks what became of a payment. The request's id must be a new one.
    pub async fn query(&self, order_id: &str, request_id: &str) -> Result<Reply, GatewayError> {
        self.post("query", "/v2/gateway/api/query", self.query_body(order_id, request_id)).await
    }

    /// Takes the money that is held for a payment, or lets it go. The request's id is the step's own.
    pub async fn confirm(
        &self,
        second: Second,
        order_id: &str,
        request_id: &str,
        amount: i64,
    ) -> Result<Reply, GatewayError> {
        let body = self.confirm_body(second, order_id, request_id, amount);
        self.post("confirm", "/v2/gateway/api/confirm", body).await
    }

    /// Gives money back.
    pub async fn refund(&self, refund: &RefundOrder<'_>) -> Result<Reply, GatewayError> {
        self.post("refund", "/v2/gateway/api/refund", self.refund_body(refund)).await
    }

    fn create_body(&self, create: &Create<'_>) -> Value {
        const REQUEST_TYPE: &str = "captureWallet";
        let settings = &self.settings;
        let signature = self.signed(&[
            ("amount", &create.amount.to_string()),
            ("extraData", ""),
            ("ipnUrl", &settings.ipn_url),
            ("orderId", create.order_id),
            ("orderInfo", create.order_info),
            ("partnerCode", &settings.partner_code),
            ("redirectUrl", &settings.redirect_url),
            ("requestId", create.request_id),
            ("requestType", REQUEST_TYPE),
        ]);
        json!({
            "partnerCode": settings.partner_code,
            "requestType": REQUEST_TYPE,
            "orderId": create.order_id,
            "requestId": create.request_id,
            "amount": create.amount,
            "orderInfo": create.order_info,
            "redirectUrl": settings.redirect_url,
            "ipnUrl": settings.ipn_url,
            "extraData": "",
            "lang": settings.language.as_str(),
            "autoCapture": create.auto_capture,
            "signature": signature,
        })
    }

    fn query_body(&self, order_id: &str, request_id: &str) -> Value {
        let settings = &self.settings;
        let signature = self.signed(&[
            ("orderId", order_id),
            ("partnerCode", &settings.partner_code),
            ("requestId", request_id),
        ]);
        json!({
            "partnerCode": settings.partner_code,
            "requestId": request_id,
            "orderId": order_id,
            "lang": settings.language.as_str(),
            "signature": signature,
        })
    }

    fn confirm_body(&self, second: Second, order_id: &str, request_id: &str, amount: i64) -> Value {
        let settings = &self.settings;
        let signature = self.signed(&[
            ("amount", &amount.to_string()),
            ("description", ""),
            ("orderId", order_id),
            ("partnerCode", &settings.partner_code),
            ("requestId", request_id),
            ("requestType", second.as_str()),
        ]);
        json!({
            "partnerCode": settings.partner_code,
            "requestId": request_id,
            "orderId": order_id,
            "requestType": second.as_str(),
            "amount": amount,
            "lang": settings.language.as_str(),
            "description": "",
            "signature": signature,
        })
    }

    fn refund_body(&self, refund: &RefundOrder<'_>) -> Value {
        let settings = &self.settings;
        let signature = self.signed(&[
            ("amount", &refund.amount.to_string()),
            ("description", ""),
            ("orderId", refund.order_id),
            ("partnerCode", &settings.partner_code),
            ("requestId", refund.request_id),
            ("transId", &refund.trans_id.to_string()),
        ]);
        json!({
            "partnerCode": settings.partner_code,
            "orderId": refund.order_id,
            "requestId": refund.request_id,
            "amount": refund.amount,
            "transId": refund.trans_id,
            "lang": settings.language.as_str(),
            "description": "",
            "signature": signature,
        })
    }

    /// The signature of these fields with the access key before them.
    fn signed(&self, fields: &[(&str, &str)]) -> String {
        let access_key = ("accessKey", self.settings.access_key.expose());
        let fields: Vec<_> = std::iter::once(access_key).chain(fields.iter().copied()).collect();
        sign(&self.settings.secret_key, &raw(&fields))
    }

    async fn post(
        &self,
        operation: &'static str,
        path: &str,
        body: Value,
    ) -> Result<Reply, GatewayError> {
        let answer = self.exchange(path, body).await;
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(GatewayError::Transient(_)) => "no_answer",
            Err(_) => "refused",
        };
        count(operation, outcome, 1);
        match &answer {
            Ok(reply) => tracing::debug!(operation, result_code = reply.code(), "MoMo answered"),
            Err(error) => tracing::warn!(operation, %error, "a call of MoMo has no outcome"),
        }
        answer
    }

    async fn exchange(&self, path: &str, body: Value) -> Result<Reply, GatewayError> {
        let answer = tokio::time::timeout(self.settings.timeout, self.send(path, body)).await;
        let (status, bytes) = answer.unwrap_or_else(|_| Err(lost("it took too long")))?;
        understood(status, &bytes)
    }

    async fn send(&self, path: &str, body: Value) -> Result<(u16, Bytes), GatewayError> {
        let host = self.endpoint.host_str().unwrap_or_default();
        let port = self.endpoint.port_or_known_default().unwrap_or_default();
        let named = match self.endpoint.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let request = Request::post(path)
            .header(header::HOST, named)
            .header(header::USER_AGENT, concat!("souk/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "application/json; charset=UTF-8")
            .header(header::CONNECTION, "close")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|_| GatewayError::Invalid("MOMO_ENDPOINT is no address".to_owned()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(|_| lost("it cannot be reached"))?;
        if self.endpoint.scheme() == "http" {
            return talk(stream, request).await;
        }
        let name = ServerName::try_from(host).map_err(|_| lost("its name is none"))?;
        let stream = self.tls.connect(name, stream).await;
        talk(stream.map_err(|_| lost("its certificate is not trusted"))?, request).await
    }
}

fn count(operation: &'static str, outcome: &'static str, calls: u64) {
    metrics::counter!("souk_payment_provider_calls_total", "provider" => super::MOMO,
        "operation" => operation, "outcome" => outcome)
    .increment(calls);
}

/// Nobody knows what became of the call.
fn lost(why: &str) -> GatewayError {
    GatewayError::Transient(why.to_owned())
}

async fn talk<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), GatewayError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broke = |_: hyper::Error| lost("the connection broke");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    // It ends when the answer is read, or when nobody waits for it any more.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broke)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|_| lost("its answer broke off or is too long"))?;
    Ok((status, body.to_bytes()))
}

/// The status of an answer is coarse: where the body has a result code, that counts, but for a
/// server's own failure, after which nobody knows.
fn understood(status: u16, bytes: &[u8]) -> Result<Reply, GatewayError> {
    let said = || format!("status {status}");
    match (status, Reply::read(bytes)) {
        (200..=299 | 400..=499, Some(reply)) => Ok(reply),
        (401 | 403, None) => Err(GatewayError::Locked(said())),
        (400..=499, None) if !matches!(status, 408 | 425 | 429) => {
            Err(GatewayError::Invalid(said()))
        }
        _ => Err(GatewayError::Transient(said())),
    }
}

fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the versions of TLS that it was built with")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[cfg(test)]
mod tests {
    use super::super::signature::vectors;
    use super::super::tests::settings;
    use super::*;

    fn client(ipn_url: &str, redirect_url: &str) -> Client {
        let settings = Settings {
            ipn_url: ipn_url.to_owned(),
            redirect_url: redirect_url.to_owned(),
            ..settings()
        };
        Client::new(settings).unwrap()
    }

    fn signature(body: &Value) -> &str {
        body["signature"].as_str().unwrap()
    }

    #[test]
    fn every_request_is_signed_as_the_vectors_are() {
        let client = client("https://shop.example.com/webhooks/momo", "https://shop.example.com/r");
        let body = client.query_body("ord-0001", "b7a1d0c2-1111-4222-8333-444455556666");
        assert_eq!(signature(&body), vectors::named("E").signature);
        let refund = RefundOrder {
            order_id: "rf-0002",
            request_id: "0d9f7a52-7777-4888-9999-aaaabbbbcccd",
            amount: 50_000,
            trans_id: 4_088_878_653,
        };
        assert_eq!(signature(&client.refund_body(&refund)), vectors::named("G").signature);
        let id = "c0ffee00-1111-4222-8333-444455556666";
        let body = client.confirm_body(Second::Capture, "ord-0001", id, 50_000);
        assert_eq!(signature(&body), vectors::named("H").signature);
        assert_ne!(
            signature(&client.confirm_body(Second::Cancel, "ord-0001", id, 50_000)),
            vectors::named("H").signature
        );
    }

    /// The vector has an `extraData`, which this client leaves empty, so it is put in here.
    #[test]
    fn a_payment_is_signed_over_the_documented_fields() {
        let client =
            client("https://shop.example.com/webhooks/momo", "https://shop.example.com/pay/return");
        let create = Create {
            order_id: "ord-0001",
            request_id: "6f1c2f5e-3d0b-4a57-9c55-0f4c5f0d9d01",
            amount: 50_000,
            order_info: "Thanh toán đơn hàng ord-0001",
            auto_capture: true,
        };
        let later = client.create_body(&Create { auto_capture: false, ..create.clone() });
        assert_eq!(later["autoCapture"], json!(false));
        let body = client.create_body(&create);
        assert_eq!(body["autoCapture"], json!(true));
        let raw =
            vectors::named("D").raw.replace("extraData=eyJvcmRlcl9pZCI6IjQyIn0=", "extraData=");
        assert_eq!(signature(&body), sign(&client.settings.secret_key, &raw));
        assert_eq!((&body["amount"], &body["extraData"]), (&json!(50_000), &json!("")));
        let text = body.to_string();
        assert!(!text.contains("K951B6PE1waDMi640xX08PD3vg6EkVlz"), "{text}");
        assert!(!text.contains("F8BBA842ECF85"), "{text}");
    }

    #[test]
    fn an_answer_counts_where_it_has_a_result_code() {
        let reply = |status, text: &str| understood(status, text.as_bytes());
        assert_eq!(reply(200, r#"{"resultCode": 0}"#).unwrap().code(), 0);
        assert_eq!(reply(422, r#"{"resultCode": "7000"}"#).unwrap().code(), 7_000);
        for (status, text) in [
            (500, r#"{"resultCode": 0}"#),
            (502, "<html>"),
            (200, "<html>"),
            (200, "{}"),
            (200, ""),
            (301, ""),
            (429, ""),
        ] {
            assert!(matches!(reply(status, text), Err(GatewayError::Transient(_))), "{status}");
        }
        assert!(matches!(reply(403, ""), Err(GatewayError::Locked(_))));
        assert!(matches!(reply(400, "no"), Err(GatewayError::Invalid(_))));
    }

    #[test]
    fn whole_numbers_are_read_as_such_and_nothing_else_is() {
        for (value, expected) in [
            (json!(5), Some(5)),
            (json!("5"), Some(5)),
            (json!("-5"), Some(-5)),
            (json!("+5"), None),
            (json!("5.0"), None),
            (json!(5.0), None),
            (json!(" 5"), None),
            (json!("99999999999999999999"), None),
            (json!(""), None),
            (json!(null), None),
        ] {
            assert_eq!(integer(&value), expected, "{value}");
        }
    }
}
