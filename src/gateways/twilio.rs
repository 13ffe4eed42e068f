//! Text messages by Twilio. It knows no idempotency keys: after an answer that was lost it is asked
//! for what it has, before anything is sent again.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, header};
use serde::Deserialize;
use url::Url;

use super::client::{Answer, Client, refused};
use super::mail::{Accepted, SendError};
use super::sms::{Sms, SmsSender};
use crate::config::Credential;

/// The longest text that is taken.
const TEXT_CHARS_MAX: usize = 1_600;
/// Credentials, account or sender that do not fit: nothing works until somebody acts.
const LOCKED: [u32; 5] = [20003, 20404, 21212, 21606, 21608];
/// How many messages to a number are looked at.
const LOOKED_AT: &str = "20";

/// Twilio.
pub struct Twilio {
    client: Client,
    account: String,
    token: Credential,
    from: String,
}

#[derive(Deserialize)]
struct Taken {
    sid: String,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    status: Option<String>,
}

#[derive(Deserialize)]
struct List {
    messages: Vec<Taken>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u32,
}

impl Twilio {
    /// At this address (without a path), for this account, from this number.
    pub fn new(url: Url, account: String, token: Credential, from: String) -> Self {
        Self { client: Client::new(url), account, token, from }
    }

    fn request(&self, query: &str) -> hyper::http::request::Builder {
        let login = format!("{}:{}", self.account, self.token.expose());
        Request::builder()
            .uri(format!("/2010-04-01/Accounts/{}/Messages.json{query}", self.account))
            .header(header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(login)))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
    }

    /// The answer, if it is a good one.
    async fn call(
        &self,
        builder: hyper::http::request::Builder,
        body: String,
    ) -> Result<Answer, SendError> {
        let request = builder.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|_| SendError::Locked("invalid_account".to_owned()))?;
        let answer = self.client.send(request).await?;
        if answer.is_success() { Ok(answer) } else { Err(refusal(&answer)) }
    }
}

fn form(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

fn refusal(answer: &Answer) -> SendError {
    let code = serde_json::from_slice::<Refusal>(&answer.body).ok().map(|refusal| refusal.code);
    let name = code.map(|code| format!("twilio_{code}"));
    match code {
        Some(code) if LOCKED.contains(&code) => SendError::Locked(name.unwrap_or_default()),
        _ => refused(answer, name.as_deref()),
    }
}

#[async_trait]
impl SmsSender for Twilio {
    fn name(&self) -> &'static str {
        "twilio"
    }

    fn knows_keys(&self) -> bool {
        false
    }

    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        if sms.text.chars().count() > TEXT_CHARS_MAX {
            return Err(SendError::Refused("too_long".to_owned()));
        }
        let fields = [("To", &*sms.to), ("From", &*self.from), ("Body", &*sms.text)];
        let answer = self.call(self.request("").method("POST"), form(&fields)).await?;
        let taken = serde_json::from_slice::<Taken>(&answer.body);
        let taken = taken.map_err(|_| SendError::Unknown("answer_unreadable".to_owned()))?;
        Ok(Accepted { provider_message_id: taken.sid })
    }

    async fn find(&self, sms: &Sms) -> Result<Option<Accepted>, SendError> {
        let query = form(&[("To", &sms.to), ("PageSize", LOOKED_AT)]);
        let answer = self.call(self.request(&format!("?{query}")), String::new()).await?;
        let list = serde_json::from_slice::<List>(&answer.body);
        let list = list.map_err(|_| SendError::Unknown("answer_unreadable".to_owned()))?;
        let is_it = |taken: &Taken| {
            let given_up = matches!(taken.status.as_deref(), Some("failed" | "canceled"));
            taken.body.as_deref() == Some(&*sms.text) && !given_up
        };
        let found = list.messages.into_iter().find(is_it);
        Ok(found.map(|taken| Accepted { provider_message_id: taken.sid }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::*;

    const ACCOUNT: &str = "AC00000000000000000000000000000000";

    fn sms() -> Sms {
        let to = "+84901234567".to_owned();
        Sms { idempotency_key: Uuid::from_u128(1), to, text: "Your order & more".to_owned() }
    }

    /// A Twilio that takes one request and answers so; with what it was asked.
    async fn answering(listener: TcpListener, status: &str, body: &str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = String::new();
        let mut bytes = [0; 4096];
        while !request.contains("\r\n\r\n")
            || (request.starts_with("POST") && !request.contains("Body="))
        {
            let read = stream.read(&mut bytes).await.unwrap();
            request.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        request
    }

    async fn twilio() -> (Twilio, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let token = Credential::new("hunter2");
        (Twilio::new(url, ACCOUNT.to_owned(), token, "+15005550006".to_owned()), listener)
    }

    #[tokio::test]
    async fn a_message_is_posted_as_a_form_and_its_name_is_kept() {
        let (twilio, listener) = twilio().await;
        let message = sms();
        let taken = r#"{"sid":"SM1","status":"queued"}"#;
        let (answer, request) =
            tokio::join!(twilio.send(&message), answering(listener, "201 Created", taken));
        assert_eq!(answer, Ok(Accepted { provider_message_id: "SM1".to_owned() }));
        let target = format!("POST /2010-04-01/Accounts/{ACCOUNT}/Messages.json HTTP/1.1\r\n");
        assert!(request.starts_with(&target), "{request}");
        let login = STANDARD.encode(format!("{ACCOUNT}:hunter2"));
        assert!(request.contains(&format!("authorization: Basic {login}")), "{request}");
        let form = "To=%2B84901234567&From=%2B15005550006&Body=Your+order+%26+more";
        assert!(request.ends_with(form), "{request}");
    }

    #[tokio::test]
    async fn a_refusal_says_whose_fault_it_is() {
        for (status, code, expected) in [
            ("400 Bad Request", 21211, SendError::Refused("twilio_21211".to_owned())),
            ("400 Bad Request", 21606, SendError::Locked("twilio_21606".to_owned())),
            ("401 Unauthorized", 20003, SendError::Locked("twilio_20003".to_owned())),
            ("429 Too Many Requests", 20429, SendError::Transient("twilio_20429".to_owned())),
        ] {
            let (twilio, listener) = twilio().await;
            let (message, body) = (sms(), format!(r#"{{"code":{code},"message":"no"}}"#));
            let (answer, _) =
                tokio::join!(twilio.send(&message), answering(listener, status, &body));
            assert_eq!(answer, Err(expected));
        }
    }

    #[tokio::test]
    async fn a_message_that_was_taken_after_all_is_found() {
        let list = |text: &str| format!(r#"{{"messages":[{{"sid":"SM1","body":"{text}"}}]}}"#);
        for (text, expected) in [
            ("Your order & more", Some(Accepted { provider_message_id: "SM1".to_owned() })),
            ("something else", None),
        ] {
            let (twilio, listener) = twilio().await;
            let (message, body) = (sms(), list(text));
            let (found, request) =
                tokio::join!(twilio.find(&message), answering(listener, "200 OK", &body));
            assert_eq!(found, Ok(expected));
            assert!(request.contains("Messages.json?To=%2B84901234567&PageSize=20 "), "{request}");
        }
    }
}
