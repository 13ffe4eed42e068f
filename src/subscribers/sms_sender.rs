//! `notification-sms`: writes the text messages that notifications ask for and hands them over.
//!
//! As with mails ([`super::mail_sender`]) the attempt is an event before the call. A provider that
//! knows no keys is asked for what it has before a second try. Who has withdrawn the consent, or has no
//! number any more, gets nothing.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;

use super::mail_sender::{AddressHash, Way, deliver, unwritable};
use super::messages::{Composer, look_up};
use crate::domain::notification::Channel;
use crate::gateways::mail::{Accepted, SendError};
use crate::gateways::sms::{Sms, SmsSender};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "notification-sms";
/// What it listens to.
pub const TOPICS: &[&str] = &["notification.requested"];

/// The handler.
pub struct SmsHandler {
    sender: Arc<dyn SmsSender>,
    composer: Composer,
    number_hash: AddressHash,
}

impl SmsHandler {
    /// Sends through this provider.
    pub fn new(sender: Arc<dyn SmsSender>, composer: Composer, number_hash: AddressHash) -> Self {
        Self { sender, composer, number_hash }
    }
}

/// A text message on its way.
struct BySms<'a> {
    sender: &'a dyn SmsSender,
    sms: Sms,
    to_hash: String,
}

#[async_trait]
impl Way for BySms<'_> {
    fn adapter(&self) -> &'static str {
        self.sender.name()
    }

    fn fault_target(&self) -> &'static str {
        "sms"
    }

    fn knows_keys(&self) -> bool {
        self.sender.knows_keys()
    }

    fn to_hash(&self) -> String {
        self.to_hash.clone()
    }

    async fn find(&self) -> Result<Option<Accepted>, SendError> {
        self.sender.find(&self.sms).await
    }

    async fn hand_over(&self) -> Result<Accepted, SendError> {
        self.sender.send(&self.sms).await
    }
}

#[async_trait]
impl Handler for SmsHandler {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let id = event.aggregate_id;
        let Some((details, user)) = look_up(runtime, id).await? else { return Ok(()) };
        if details.channel != Channel::Sms || details.is_over() {
            return Ok(());
        }
        match self.composer.sms(&details, user.as_ref()) {
            Ok((to, text)) => {
                let to_hash = (self.number_hash)(&to);
                let sms = Sms { idempotency_key: id, to, text };
                let way = BySms { sender: &*self.sender, sms, to_hash };
                deliver(runtime, event, &details, &way).await
            }
            Err(error) => unwritable(runtime, event, error).await,
        }
    }
}
