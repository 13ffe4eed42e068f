//! Mail by SMTP. It knows no idempotency keys; the message's `Message-ID` is the same at every try,
//! which mailboxes may go by.

use std::io::ErrorKind;
use std::time::Duration;

use async_trait::async_trait;
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::Error;
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use super::mail::{Accepted, Mail, Mailer, SendError};
use crate::config::Credential;

/// How long each step of a session may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// The mail server wants other credentials, or any (RFC 4954).
const LOCKED: [u16; 4] = [530, 534, 535, 538];

/// A mail server.
pub struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Smtp {
    /// The server of an address: `smtps://user:password@host`, `smtp://host:587?tls=required`,
    /// `smtp://host` (without TLS). What is wrong with it is not said in the server's words: they
    /// could repeat a password.
    pub fn new(url: &Credential, from: Mailbox) -> Result<Self, &'static str> {
        let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose());
        let builder = builder.map_err(
            |_| "must be smtps://user:password@host or smtp://user:password@host:587?tls=required",
        )?;
        let hello = ClientId::Domain(from.email.domain().to_owned());
        let transport = builder.timeout(Some(STEP_TIMEOUT)).hello_name(hello).build();
        Ok(Self { transport, from })
    }

    fn message(&self, mail: &Mail) -> Result<Message, SendError> {
        let to = mail.to.parse::<Address>();
        let to = to.map_err(|_| SendError::Refused("bad_address".to_owned()))?;
        let builder = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(mail.subject.clone())
            .message_id(Some(self.message_id(mail)));
        let text = mail.text.clone();
        let message = if mail.html.is_empty() {
            builder.singlepart(SinglePart::plain(text))
        } else {
            builder.multipart(MultiPart::alternative_plain_html(text, mail.html.clone()))
        };
        message.map_err(|_| SendError::Refused("invalid_message".to_owned()))
    }

    fn message_id(&self, mail: &Mail) -> String {
        format!("<{}@{}>", mail.idempotency_key, self.from.email.domain())
    }
}

/// What a failed session means. Once a connection stands, nobody knows what became of a message
/// that has no answer.
fn failed(error: &Error) -> SendError {
    if let Some(code) = error.status().map(u16::from) {
        let reason = format!("smtp_{code}");
        return match code {
            _ if LOCKED.contains(&code) => SendError::Locked(reason),
            500.. => SendError::Refused(reason),
            _ => SendError::Transient(reason),
        };
    }
    let source = std::error::Error::source(error);
    let kind =
        source.and_then(|source| source.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match kind {
        Some(
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::AddrNotAvailable,
        ) => SendError::Transient("not_reached".to_owned()),
        _ if error.is_tls() => SendError::Locked("tls_failed".to_owned()),
        _ if error.is_client() => SendError::Locked("not_understood".to_owned()),
        _ if error.is_timeout() => SendError::Unknown("timeout".to_owned()),
        _ => SendError::Unknown("connection_broken".to_owned()),
    }
}

#[async_trait]
impl Mailer for Smtp {
    fn name(&self) -> &'static str {
        "smtp"
    }

    fn knows_keys(&self) -> bool {
        false
    }

    async fn send(&self, mail: &Mail) -> Result<Accepted, SendError> {
        let message = self.message(mail)?;
        self.transport.send(message).await.map_err(|error| failed(&error))?;
        Ok(Accepted { provider_message_id: self.message_id(mail) })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn smtp(url: &str) -> Result<Smtp, &'static str> {
        Smtp::new(&Credential::new(url), "Souk <no-reply@souk.example>".parse().unwrap())
    }

    fn mail() -> Mail {
        Mail {
            idempotency_key: Uuid::from_u128(1),
            to: "ann@example.com".to_owned(),
            subject: "Welcome!".to_owned(),
            text: "words".to_owned(),
            html: "<p>words</p>".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_server_is_named_by_an_address_that_nobody_repeats() {
        assert!(smtp("smtps://souk:hunter2@mail.example").is_ok());
        assert!(smtp("smtp://mail.example:587?tls=required").is_ok());
        for wrong in ["http://souk:hunter2@mail.example", "mail.example", "smtp://"] {
            let error = smtp(wrong).err();
            assert!(error.is_some_and(|error| !error.contains("hunter2")), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_message_keeps_its_id() {
        let smtp = smtp("smtp://mail.example").unwrap();
        let text = String::from_utf8(smtp.message(&mail()).unwrap().formatted()).unwrap();
        assert!(text.contains("Message-ID: <00000000-0000-0000-0000-000000000001@souk.example>"));
        assert!(text.contains("From: Souk <no-reply@souk.example>"), "{text}");
        assert!(text.contains("multipart/alternative"), "{text}");
        let bad = Mail { to: "a@b\r\nBcc: all@example.com".to_owned(), ..mail() };
        assert_eq!(smtp.message(&bad).err(), Some(SendError::Refused("bad_address".to_owned())));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_was_sent_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let smtp = smtp(&format!("smtp://127.0.0.1:{port}")).unwrap();
        let answer = smtp.send(&mail()).await;
        assert_eq!(answer, Err(SendError::Transient("not_reached".to_owned())));
    }
}
