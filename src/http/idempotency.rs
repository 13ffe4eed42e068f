//! `Idempotency-Key`: the same key and body have effect once and get the first answer again.
//!
//! The command's id follows from the key, the caller and the operation, and the runtime stores the
//! outcome under it in the transaction of the events; nothing is kept here. Ids of what is created
//! follow from the key too, so that repeats meet in one aggregate wherever they arrive.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use souk_actors::command::Once;
use souk_actors::id::{keyed, keyed_hash};
use uuid::Uuid;

use super::problem::ApiError;

/// The request header.
pub const HEADER: &str = "idempotency-key";
/// The longest key.
const LENGTH_MAX: usize = 255;

/// The key of a request, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub Option<String>);

impl IdempotencyKey {
    fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let refuse = |detail: &str| ApiError::bad_request("invalid_idempotency_key", detail);
        if values.next().is_some() {
            return Err(refuse("send one Idempotency-Key"));
        }
        let text = value.to_str().map_err(|_| refuse("must be visible ASCII"))?.trim();
        let key = if text.starts_with('"') {
            structured_string(text).ok_or_else(|| refuse("must be a string in double quotes"))?
        } else {
            text.to_owned()
        };
        if key.is_empty() || key.len() > LENGTH_MAX {
            return Err(refuse("must have 1 to 255 characters"));
        }
        Ok(Self(Some(key)))
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::read(&parts.headers)
    }
}

/// A Structured Field string (RFC 8941 §3.3.3): the parameters behind it are ignored.
fn structured_string(text: &str) -> Option<String> {
    let mut key = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    loop {
        match characters.next()? {
            '"' => break,
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\') => key.push(escaped),
                _ => return None,
            },
            character @ ' '..='~' => key.push(character),
            _ => return None,
        }
    }
    let rest = characters.as_str().trim_start();
    (rest.is_empty() || rest.starts_with(';')).then_some(key)
}

/// Whose key it is and for what: the same key means another thing to another caller or operation.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The server's secret: nobody else can compute the ids.
    pub secret: &'a [u8; 32],
    /// The tenant.
    pub tenant: &'a str,
    /// The caller's id, or `anonymous`.
    pub caller: &'a str,
    /// The operation, not the path.
    pub operation: &'a str,
}

impl Scope<'_> {
    /// The id that `key` gives to something of this `purpose`.
    pub fn id(&self, purpose: &str, key: &str) -> Uuid {
        let parts = [self.tenant, self.caller, self.operation, key];
        keyed(self.secret, purpose, &parts.map(str::as_bytes))
    }

    /// What makes a repeat the same request.
    pub fn once(&self, target: &str, canonical_body: &[u8]) -> Once {
        let parts = [self.operation.as_bytes(), target.as_bytes(), canonical_body];
        Once { request_hash: keyed_hash(self.secret, "request", &parts) }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(value: &[u8]) -> Result<Option<String>, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(value).unwrap());
        IdempotencyKey::read(&headers).map(|key| key.0)
    }

    #[test]
    fn keys_are_structured_strings_or_bare() {
        let key = Some("8e03978e-40d5-43dd".to_owned());
        assert_eq!(read(b"\"8e03978e-40d5-43dd\"").unwrap(), key);
        assert_eq!(read(b"8e03978e-40d5-43dd").unwrap(), key);
        assert_eq!(read(b"\"a\\\"b\\\\\"; v=1").unwrap(), Some("a\"b\\".to_owned()));
        assert_eq!(IdempotencyKey::read(&HeaderMap::new()).unwrap().0, None);
    }

    #[test]
    fn other_keys_are_refused() {
        let long = "k".repeat(256);
        for bad in [&b"\"\""[..], b"\"open", b"\"a\" b", b"\"a\\x\"", b"\xff", long.as_bytes()] {
            assert_eq!(read(bad).unwrap_err().code(), "invalid_idempotency_key");
        }
        assert!(read(&long.as_bytes()[..255]).is_ok());
    }

    #[test]
    fn ids_follow_from_everything_in_the_scope() {
        let scope =
            Scope { secret: &[1; 32], tenant: "default", caller: "a", operation: "orders.place" };
        let id = scope.id("command", "k");
        assert_eq!(id, scope.id("command", "k"));
        assert_ne!(id, scope.id("create", "k"));
        assert_ne!(id, scope.id("command", "l"));
        assert_ne!(id, Scope { caller: "b", ..scope }.id("command", "k"));
        assert_ne!(id, Scope { operation: "orders.cancel", ..scope }.id("command", "k"));
        assert_ne!(scope.once("", b"{}"), scope.once("", b"[]"));
    }
}
