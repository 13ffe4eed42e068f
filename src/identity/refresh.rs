//! Refresh tokens: each works once and names its session and its generation in it.
//!
//! A token is `session id (16) || generation (4) || random (32)` in base64url. Its hash is a control
//! row, written in the transaction of the session's event. Rows of used generations stay until the
//! session would end, so that a used token that comes again is known for one, and not for a guess.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use souk_actors::command::ControlWrite;
use souk_actors::id::keyed_hash;
use souk_actors::world::{Timestamp, World};
use uuid::Uuid;

/// The control rows of refresh tokens: session id and generation to hash. Stored; never rename.
pub const SPACE: &str = "refresh_token";
/// How long a session lasts, however often it is refreshed.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken {
    /// The session.
    pub session: Uuid,
    /// Which token of the session this is, from 1.
    pub generation: u32,
    random: [u8; 32],
}

impl RefreshToken {
    /// A new token.
    pub fn new(session: Uuid, generation: u32, world: &dyn World) -> Self {
        let mut random = [0; 32];
        world.fill(&mut random);
        Self { session, generation, random }
    }

    /// Reads a token.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 52] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (session, rest) = bytes.split_first_chunk::<16>()?;
        let (generation, random) = rest.split_first_chunk::<4>()?;
        Some(Self {
            session: Uuid::from_bytes(*session),
            generation: u32::from_be_bytes(*generation),
            random: random.try_into().ok()?,
        })
    }

    /// The token as its holder keeps it.
    pub fn text(&self) -> String {
        let mut bytes = self.key();
        bytes.extend_from_slice(&self.random);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The key of its row.
    pub fn key(&self) -> Vec<u8> {
        [self.session.as_bytes().as_slice(), &self.generation.to_be_bytes()].concat()
    }

    /// The content of its row.
    pub fn hash(&self, key: &[u8; 32]) -> [u8; 32] {
        keyed_hash(key, "refresh_token", &[&self.key(), &self.random])
    }

    /// Its row.
    pub fn row(&self, key: &[u8; 32], expires_at: Timestamp) -> ControlWrite {
        let value = Some(self.hash(key).to_vec());
        ControlWrite { space: SPACE, key: self.key(), value, expires_at: Some(expires_at) }
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::world::SystemWorld;

    use super::*;

    #[test]
    fn a_token_is_read_back_and_hashed_with_all_its_parts() {
        let token = RefreshToken::new(Uuid::from_u128(5), 2, &SystemWorld::new());
        let back = RefreshToken::parse(&token.text()).unwrap();
        assert!(back == token);
        assert_eq!(back.hash(&[1; 32]), token.hash(&[1; 32]));
        assert_ne!(RefreshToken { generation: 3, ..back }.hash(&[1; 32]), token.hash(&[1; 32]));
        assert!(RefreshToken::parse("abc").is_none());
        assert!(RefreshToken::parse(&token.text()[1..]).is_none());
    }
}
