//! The secrets of webhook endpoints: control rows, sealed under a key that follows from the master
//! key, written in the transaction of the event that says there is a new one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use souk_actors::command::ControlWrite;
use souk_actors::id::keyed_hash;
use souk_actors::world::{Timestamp, World};

use crate::domain::ids::WebhookEndpointId;
use crate::gateways::webhook::{SECRET_BYTES, SECRET_PREFIX, sign};

/// Where the rows stand. Stored; never rename.
pub const SPACE: &str = "webhook_secret";
/// In the associated data of every row. Stored; never change.
const FORMAT: &str = "souk.webhook.v1";
const NONCE_BYTES: usize = 24;

/// The secrets of one endpoint. Never logged: it has no `Debug`.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Secrets {
    /// Which one the current is, from 1.
    pub number: u32,
    current: String,
    previous: Option<Previous>,
}

#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Previous {
    secret: String,
    until: Timestamp,
}

impl Secrets {
    /// The secret of a new endpoint.
    pub fn new(world: &dyn World) -> Self {
        Self { number: 1, current: random(world), previous: None }
    }

    /// The same with a new secret; the one of before signs too until then.
    #[must_use]
    pub fn rotated(&self, world: &dyn World, until: Timestamp) -> Self {
        Self {
            number: self.number.saturating_add(1),
            current: random(world),
            previous: Some(Previous { secret: self.current.clone(), until }),
        }
    }

    /// The current secret as its owner gets it, once.
    pub fn shown(&self) -> String {
        format!("{SECRET_PREFIX}{}", self.current)
    }

    /// `webhook-signature`: one signature for each secret that holds, with spaces between.
    pub fn signature(&self, id: &str, at: Timestamp, seconds: i64, body: &[u8]) -> String {
        let previous = self.previous.as_ref().filter(|previous| at < previous.until);
        let secrets = std::iter::once(&self.current).chain(previous.map(|of| &of.secret));
        let signatures = secrets.filter_map(|secret| STANDARD.decode(secret).ok());
        let signatures = signatures.map(|secret| sign(&secret, id, seconds, body));
        signatures.collect::<Vec<_>>().join(" ")
    }
}

fn random(world: &dyn World) -> String {
    let mut bytes = [0; SECRET_BYTES];
    world.fill(&mut bytes);
    STANDARD.encode(bytes)
}

/// Seals secrets and opens them.
pub struct SecretBox(XChaCha20Poly1305);

impl SecretBox {
    /// A box whose key follows from the master key.
    pub fn new(master_key: &[u8; 32]) -> Self {
        let key = keyed_hash(master_key, "webhook secrets", &[]);
        Self(XChaCha20Poly1305::new((&key).into()))
    }

    /// The row of an endpoint's secrets.
    pub fn row(
        &self,
        world: &dyn World,
        endpoint: WebhookEndpointId,
        secrets: &Secrets,
    ) -> ControlWrite {
        let mut nonce = [0; NONCE_BYTES];
        world.fill(&mut nonce);
        let clear = serde_json::to_vec(secrets).expect("secrets are plain data");
        let about = about(endpoint);
        let payload = Payload { msg: &clear, aad: about.as_bytes() };
        let sealed = self.0.encrypt(XNonce::from_slice(&nonce), payload);
        let sealed = sealed.expect("so few bytes can be sealed");
        let value = [nonce.as_slice(), &sealed].concat();
        ControlWrite { value: Some(value), ..no_row(endpoint) }
    }

    /// What a row holds; none: it is not what was written, or under another master key.
    pub fn open(&self, endpoint: WebhookEndpointId, row: &[u8]) -> Option<Secrets> {
        let (nonce, sealed) = row.split_at_checked(NONCE_BYTES)?;
        let about = about(endpoint);
        let payload = Payload { msg: sealed, aad: about.as_bytes() };
        let clear = self.0.decrypt(XNonce::from_slice(nonce), payload).ok()?;
        serde_json::from_slice(&clear).ok()
    }
}

/// The end of an endpoint's row.
pub fn no_row(endpoint: WebhookEndpointId) -> ControlWrite {
    let key = endpoint.uuid().as_bytes().to_vec();
    ControlWrite { space: SPACE, key, value: None, expires_at: None }
}

fn about(endpoint: WebhookEndpointId) -> String {
    format!("{FORMAT}|{endpoint}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use souk_actors::world::SeededWorld;
    use uuid::Uuid;

    use super::*;

    fn endpoint(number: u128) -> WebhookEndpointId {
        WebhookEndpointId(Uuid::from_u128(number))
    }

    #[test]
    fn a_row_opens_for_its_own_endpoint_under_its_own_key_alone() {
        let world = SeededWorld::new(1);
        let (own, other) = (SecretBox::new(&[1; 32]), SecretBox::new(&[2; 32]));
        let secrets = Secrets::new(&world);
        let row = own.row(&world, endpoint(1), &secrets).value.unwrap();
        assert!(own.open(endpoint(1), &row).unwrap() == secrets);
        assert!(own.open(endpoint(2), &row).is_none());
        assert!(other.open(endpoint(1), &row).is_none());
        assert!(own.open(endpoint(1), &row[..20]).is_none());
        let text = secrets.shown();
        let clear = text.trim_start_matches(SECRET_PREFIX).as_bytes();
        assert!(!row.windows(clear.len()).any(|window| window == clear));
    }

    #[test]
    fn both_secrets_sign_until_the_old_one_is_over() {
        let world = SeededWorld::new(1);
        let at = |seconds| Timestamp::from_millis(0).plus(Duration::from_secs(seconds));
        let old = Secrets::new(&world);
        let new = old.rotated(&world, at(60));
        assert_ne!(old.shown(), new.shown());
        let signature = new.signature("1", at(59), 59, b"{}");
        let both: Vec<_> = signature.split(' ').collect();
        assert_eq!(both.len(), 2);
        assert_eq!(both[1], old.signature("1", at(59), 59, b"{}"));
        assert_eq!(new.signature("1", at(60), 60, b"{}").split(' ').count(), 1);
    }
}
