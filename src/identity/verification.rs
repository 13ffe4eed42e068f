//! Verification tokens: what is mailed to prove that an address is its user's own.
//!
//! A token is `user id (16) || HMAC-SHA256(TOKEN_KEY, nonce || user id) (32)` in base64url. Events hold
//! the nonce and the token's SHA-256 only, and whoever mails the token makes it again from those.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use souk_actors::world::World;
use uuid::Uuid;

use crate::config::Secret;
use crate::domain::text::hex;

/// How long a token is accepted.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a token for a new password is accepted.
pub const RESET_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// What the nonces of tokens for a new password begin with: such a token is none of the other kind.
const RESET: &str = "password_reset.";

/// A new nonce, in hexadecimal.
pub fn new_nonce(world: &dyn World) -> String {
    let mut nonce = [0; 16];
    world.fill(&mut nonce);
    hex(&nonce)
}

/// A new nonce of a token for a new password.
pub fn new_reset_nonce(world: &dyn World) -> String {
    format!("{RESET}{}", new_nonce(world))
}

/// The token that `nonce` (in hexadecimal, as events hold it) makes for a user.
pub fn verification_token(key: &Secret, user_id: Uuid, nonce: &str) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.bytes()).expect("HMAC takes keys of any length");
    mac.update(nonce.as_bytes());
    mac.update(user_id.as_bytes());
    let mac = mac.finalize().into_bytes();
    URL_SAFE_NO_PAD.encode([user_id.as_bytes().as_slice(), &mac].concat())
}

/// The SHA-256 of a token, in hexadecimal: all that is ever stored of it.
pub fn token_hash(token: &str) -> String {
    hex(&Sha256::digest(token.as_bytes()))
}

/// The user that a token is for, as the token itself says; whether it is right is the user
/// aggregate's to decide.
pub fn user_of(token: &str) -> Option<Uuid> {
    let bytes: [u8; 48] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
    Some(Uuid::from_bytes(*bytes.first_chunk::<16>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_from_key_nonce_and_user() {
        let (key, user) = (Secret::new([1; 32]), Uuid::from_u128(9));
        let token = verification_token(&key, user, "00ff");
        assert_eq!(token, verification_token(&key, user, "00ff"));
        assert_ne!(token, verification_token(&key, user, "00fe"));
        assert_ne!(token, verification_token(&Secret::new([2; 32]), user, "00ff"));
        assert_eq!(user_of(&token), Some(user));
        assert_eq!(user_of("nonsense"), None);
        assert_eq!(token_hash("abc").len(), 64);
    }
}
