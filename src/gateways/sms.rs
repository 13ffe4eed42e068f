//! Text messages: the port, and the adapter that only logs.

use async_trait::async_trait;
use uuid::Uuid;

use super::Recent;
use super::mail::{Accepted, SendError};

/// A text message ready to go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sms {
    /// Under this key a provider that can do so sends one message, however often it is asked.
    pub idempotency_key: Uuid,
    /// To which number.
    pub to: String,
    /// What it says.
    pub text: String,
}

/// A provider of text messages.
#[async_trait]
pub trait SmsSender: Send + Sync + 'static {
    /// The adapter's name.
    fn name(&self) -> &'static str;

    /// Whether it sends one message under one key, however often it is asked.
    fn knows_keys(&self) -> bool;

    /// The message, if the provider has taken it after all: asked before a second try of one whose
    /// outcome is unknown.
    async fn find(&self, _sms: &Sms) -> Result<Option<Accepted>, SendError> {
        Ok(None)
    }

    /// Sends a message.
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError>;
}

/// The adapter of development: it writes a line to the log and remembers the message.
#[derive(Default)]
pub struct LogSms {
    messages: Recent<Sms>,
}

impl LogSms {
    /// The latest messages since the start, the newest first.
    pub fn messages(&self) -> Vec<Sms> {
        self.messages.all()
    }
}

#[async_trait]
impl SmsSender for LogSms {
    fn name(&self) -> &'static str {
        "log"
    }

    fn knows_keys(&self) -> bool {
        true
    }

    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let key = sms.idempotency_key;
        if self.messages.add(sms.clone(), |old| old.idempotency_key == key) {
            tracing::info!(notification_id = %key, "SMS sent (logged)");
        }
        Ok(Accepted { provider_message_id: format!("log-{}", key.simple()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_goes_out_once_per_key() {
        let sender = LogSms::default();
        let sms = Sms { idempotency_key: Uuid::nil(), to: "+84901234567".into(), text: "1".into() };
        sender.send(&sms).await.unwrap();
        sender.send(&sms).await.unwrap();
        assert_eq!(sender.messages(), [sms]);
    }
}
