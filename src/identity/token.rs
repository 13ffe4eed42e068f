//! Access tokens: JWTs signed with HS256, short-lived, checked without a look-up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use crate::domain::caller::{Caller, Role};
use crate::domain::ids::{SessionId, UserId};

/// How long an access token is good for: about as long as a withdrawn role may still work.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How long the development administrator's token is good for: tests move the clock by months.
pub const ADMIN_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

const ISSUER: &str = "souk";
const AUDIENCE: &str = "souk-api";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: Uuid,
    /// The session it was issued in; none for the development administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<Uuid>,
    /// What the user is.
    pub roles: BTreeSet<Role>,
    /// Who issued it.
    pub iss: String,
    /// For whom.
    pub aud: String,
    /// When, in seconds since 1970.
    pub iat: i64,
    /// Until when, in seconds since 1970.
    pub exp: i64,
    /// The token's own id.
    pub jti: Uuid,
}

impl Claims {
    /// What a person's key says, until this time. It is of no session.
    pub fn of_key(user: UserId, roles: BTreeSet<Role>, until: Timestamp, key: Uuid) -> Self {
        Self {
            sub: user.uuid(),
            sid: None,
            roles,
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: 0,
            exp: until.millis() / 1_000,
            jti: key,
        }
    }

    /// Who this is.
    pub fn caller(&self) -> Caller {
        Caller::user(UserId(self.sub), self.roles.iter().copied())
    }

    /// The session.
    pub fn session(&self) -> Option<SessionId> {
        self.sid.map(SessionId)
    }

    /// The first moment at which this is not good any more.
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_millis(self.exp.saturating_mul(1_000))
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not one of ours, or changed.
    #[error("the access token is not valid")]
    Invalid,
    /// Too old.
    #[error("the access token has expired")]
    Expired,
}

/// How many tokens are remembered that were found to be genuine: some ten megabytes.
const GENUINE_MAX: usize = 16_384;

/// Issues and reads access tokens.
#[derive(Clone)]
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    /// What genuine tokens say. A client sends the same one with every request, and to check its
    /// signature and read it costs more than all else that is done to find out who asks.
    genuine: Arc<DashMap<Box<str>, Arc<Claims>>>,
}

impl Tokens {
    /// Tokens under a key.
    pub fn new(key: &[u8; 32]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // The library would ask the system's clock; ours can be moved in development.
        validation.validate_exp = false;
        Self {
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
            validation,
            genuine: Arc::default(),
        }
    }

    /// A token for a user.
    pub fn issue(
        &self,
        user: Uuid,
        session: Option<Uuid>,
        roles: BTreeSet<Role>,
        now: Timestamp,
        lifetime: Duration,
        id: Uuid,
    ) -> String {
        let iat = now.millis() / 1_000;
        let claims = Claims {
            sub: user,
            sid: session,
            roles,
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat,
            exp: iat.saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX)),
            jti: id,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .expect("claims are plain data and the key is one for HS256")
    }

    /// What a token says, if it is good at `now`.
    pub fn read(&self, token: &str, now: Timestamp) -> Result<Arc<Claims>, TokenError> {
        let known = self.genuine.get(token).map(|claims| claims.clone());
        let claims = match known {
            Some(claims) => claims,
            None => self.verified(token)?,
        };
        if claims.expires_at() <= now {
            self.genuine.remove(token);
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    fn verified(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let read = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation);
        let claims = Arc::new(read.map_err(|_| TokenError::Invalid)?.claims);
        if self.genuine.len() >= GENUINE_MAX {
            self.genuine.clear();
        }
        self.genuine.insert(token.into(), claims.clone());
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_170_600_000);

    fn issue(key: u8) -> String {
        let roles = BTreeSet::from([Role::Buyer]);
        let (user, session, id) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        Tokens::new(&[key; 32]).issue(user, Some(session), roles, NOW, LIFETIME, id)
    }

    #[test]
    fn a_token_says_who_somebody_is_until_it_expires() {
        let (tokens, token) = (Tokens::new(&[7; 32]), issue(7));
        let claims = tokens.read(&token, NOW).unwrap();
        assert_eq!(claims.caller(), Caller::user(UserId(Uuid::from_u128(1)), [Role::Buyer]));
        assert_eq!(claims.session(), Some(SessionId(Uuid::from_u128(2))));
        let just = NOW.plus(LIFETIME - Duration::from_secs(1));
        assert!(tokens.read(&token, just).is_ok());
        assert_eq!(tokens.read(&token, NOW), Ok(claims), "the same, remembered");
        assert_eq!(tokens.read(&token, NOW.plus(LIFETIME)), Err(TokenError::Expired));
        assert!(tokens.genuine.is_empty(), "what is over is not kept");
        assert!(tokens.read(&token, NOW).is_ok(), "the clock was set back");
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let tokens = Tokens::new(&[7; 32]);
        for n in 0..=GENUINE_MAX {
            let id = Uuid::from_u128(n as u128);
            let token = tokens.issue(id, None, BTreeSet::new(), NOW, LIFETIME, id);
            tokens.read(&token, NOW).unwrap();
        }
        assert_eq!(tokens.genuine.len(), 1);
    }

    #[test]
    fn a_token_cannot_be_changed_or_made_up() {
        let tokens = Tokens::new(&[7; 32]);
        assert_eq!(tokens.read(&issue(8), NOW), Err(TokenError::Invalid));
        let token = issue(7);
        let parts: Vec<&str> = token.split('.').collect();
        let body = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let body = URL_SAFE_NO_PAD.encode(body.replace("BUYER", "ADMIN"));
        let changed = format!("{}.{body}.{}", parts[0], parts[2]);
        assert_eq!(tokens.read(&changed, NOW), Err(TokenError::Invalid));
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let unsigned = format!("{none}.{}.", parts[1]);
        assert_eq!(tokens.read(&unsigned, NOW), Err(TokenError::Invalid));
        assert_eq!(tokens.read("", NOW), Err(TokenError::Invalid));
        assert!(tokens.genuine.is_empty(), "only what is genuine is remembered");
    }
}
