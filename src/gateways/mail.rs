//! Mail: the port, and the adapter that only logs.

use async_trait::async_trait;
use uuid::Uuid;

use super::Recent;
use super::retry_after::RetryAfter;

/// A message ready to go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Under this key a provider that can do so sends one message, however often it is asked.
    pub idempotency_key: Uuid,
    /// To whom.
    pub to: String,
    /// The subject line.
    pub subject: String,
    /// For those who read text.
    pub text: String,
    /// For those who read pages.
    pub html: String,
}

/// The provider took the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The provider's name for it.
    pub provider_message_id: String,
}

/// The message did not (surely) go out. None of these names a recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Network, 5xx, too many requests without a word of when: the same call again may work.
    #[error("the message provider did not answer: {0}")]
    Transient(String),
    /// Too many requests: the same call works from then on.
    #[error("the message provider takes no more for now: {reason}")]
    Limited {
        /// The provider's name for it.
        reason: String,
        /// From when on it takes more.
        again: RetryAfter,
    },
    /// The provider said no, for this reason (a stable code): a repeat would not help.
    #[error("the message provider refused the message: {0}")]
    Refused(String),
    /// Our credentials are wrong: nothing will work until somebody acts.
    #[error("the message provider does not let us in: {0}")]
    Locked(String),
    /// The answer was lost, and the provider knows no keys: it may have gone out.
    #[error("whether the message went out is unknown: {0}")]
    Unknown(String),
}

/// A mail provider.
#[async_trait]
pub trait Mailer: Send + Sync + 'static {
    /// The adapter's name.
    fn name(&self) -> &'static str;

    /// Whether it sends one message under one key, however often it is asked.
    fn knows_keys(&self) -> bool;

    /// Sends a message.
    async fn send(&self, mail: &Mail) -> Result<Accepted, SendError>;
}

/// An address as it may be logged: its first letter and its domain.
pub fn masked(address: &str) -> String {
    let (mailbox, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    let first = mailbox.chars().next().map(String::from).unwrap_or_default();
    format!("{first}***@{domain}")
}

/// The adapter of development: it writes a line to the log and remembers the message.
#[derive(Default)]
pub struct LogMailer {
    mails: Recent<Mail>,
}

impl LogMailer {
    /// The latest messages since the start, the newest first.
    pub fn mails(&self) -> Vec<Mail> {
        self.mails.all()
    }
}

#[async_trait]
impl Mailer for LogMailer {
    fn name(&self) -> &'static str {
        "log"
    }

    fn knows_keys(&self) -> bool {
        true
    }

    async fn send(&self, mail: &Mail) -> Result<Accepted, SendError> {
        let key = mail.idempotency_key;
        if self.mails.add(mail.clone(), |old| old.idempotency_key == key) {
            tracing::info!(
                to = masked(&mail.to),
                subject = %mail.subject,
                notification_id = %key,
                "Email sent (logged)"
            );
        }
        Ok(Accepted { provider_message_id: format!("log-{}", key.simple()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_goes_out_once_per_key() {
        let mailer = LogMailer::default();
        let mail = Mail {
            idempotency_key: Uuid::from_u128(1),
            to: "ada@example.com".to_owned(),
            subject: "Welcome!".to_owned(),
            text: String::new(),
            html: String::new(),
        };
        let first = mailer.send(&mail).await.unwrap();
        assert_eq!(mailer.send(&mail).await.unwrap(), first);
        assert_eq!(mailer.mails(), [mail]);
    }
}
