//! Mail by SendGrid's Mail Send (v3). It knows no idempotency keys: the notification's id goes along
//! as a custom argument, so that a message can be found again in SendGrid's own log.

use async_trait::async_trait;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, header};
use lettre::message::Mailbox;
use serde_json::{Value, json};
use url::Url;

use super::client::{Client, refused};
use super::mail::{Accepted, Mail, Mailer, SendError};
use crate::config::Credential;

/// SendGrid.
pub struct SendGrid {
    client: Client,
    key: Credential,
    from: Mailbox,
}

impl SendGrid {
    /// At this address (without a path), by this key, from this sender.
    pub fn new(url: Url, key: Credential, from: Mailbox) -> Self {
        Self { client: Client::new(url), key, from }
    }
}

fn address(mailbox: &Mailbox) -> Value {
    let email = mailbox.email.to_string();
    match &mailbox.name {
        Some(name) => json!({ "email": email, "name": name }),
        None => json!({ "email": email }),
    }
}

fn body(mail: &Mail, from: &Mailbox) -> Value {
    let mut content = vec![json!({ "type": "text/plain", "value": mail.text })];
    if !mail.html.is_empty() {
        content.push(json!({ "type": "text/html", "value": mail.html }));
    }
    json!({
        "personalizations": [{
            "to": [{ "email": mail.to }],
            "custom_args": { "notification_id": mail.idempotency_key },
        }],
        "from": address(from),
        "subject": mail.subject,
        "content": content,
        // One-time links must not pass through somebody else's redirect.
        "tracking_settings": {
            "click_tracking": { "enable": false, "enable_text": false },
            "open_tracking": { "enable": false },
        },
    })
}

#[async_trait]
impl Mailer for SendGrid {
    fn name(&self) -> &'static str {
        "sendgrid"
    }

    fn knows_keys(&self) -> bool {
        false
    }

    async fn send(&self, mail: &Mail) -> Result<Accepted, SendError> {
        let body = Bytes::from(body(mail, &self.from).to_string());
        let request = Request::post("/v3/mail/send")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key.expose()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        let request = request.map_err(|_| SendError::Locked("invalid_key".to_owned()))?;
        let answer = self.client.send(request).await?;
        if answer.is_success() {
            let id = answer.header("x-message-id").map(str::to_owned);
            let provider_message_id = id.unwrap_or_else(|| mail.idempotency_key.to_string());
            return Ok(Accepted { provider_message_id });
        }
        Err(refused(&answer, None))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_mail_without_a_page_has_one_form() {
        let mail = Mail {
            idempotency_key: Uuid::from_u128(1),
            to: "ann@example.com".to_owned(),
            subject: "Welcome!".to_owned(),
            text: "words".to_owned(),
            html: String::new(),
        };
        let from: Mailbox = "Souk <no-reply@souk.example>".parse().unwrap();
        let sent = body(&mail, &from);
        assert_eq!(sent["from"], json!({ "email": "no-reply@souk.example", "name": "Souk" }));
        assert_eq!(sent["content"], json!([{ "type": "text/plain", "value": "words" }]));
        let sent = body(&Mail { html: "<p>".to_owned(), ..mail }, &from);
        assert_eq!(sent["content"][1], json!({ "type": "text/html", "value": "<p>" }));
    }
}
