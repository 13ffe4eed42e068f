//! Tokens of services outside: `souk_st_` and, in base64url, the token's id and its signature. The
//! text is never stored, so nothing that is stored gives it away; whether it is still good is asked of
//! the token's aggregate each time, so taking one back works at once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use souk_actors::id::keyed_hash;
use uuid::Uuid;

use super::same;
use crate::domain::ids::ServiceTokenId;

/// How such a token begins, so that it is known for one where it was left lying about.
pub const PREFIX: &str = "souk_st_";

/// The token's text, under the key that signs tokens.
pub fn text(key: &[u8; 32], token: ServiceTokenId) -> String {
    let bytes = [token.uuid().as_bytes().as_slice(), &signature(key, token)].concat();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Which token this is, if we signed it.
pub fn read(key: &[u8; 32], text: &str) -> Option<ServiceTokenId> {
    let bytes: [u8; 48] =
        URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?.try_into().ok()?;
    let (id, signed) = bytes.split_first_chunk::<16>()?;
    let token = ServiceTokenId(Uuid::from_bytes(*id));
    same(signed, &signature(key, token)).then_some(token)
}

fn signature(key: &[u8; 32], token: ServiceTokenId) -> [u8; 32] {
    keyed_hash(key, "service_token", &[token.uuid().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_cannot_be_made_up() {
        let token = ServiceTokenId(Uuid::from_u128(7));
        let text = text(&[1; 32], token);
        assert_eq!(read(&[1; 32], &text), Some(token));
        assert_eq!(read(&[2; 32], &text), None);
        for bad in [&text[1..], &text[..text.len() - 1], PREFIX, "", &format!("{text}A")] {
            assert_eq!(read(&[1; 32], bad), None, "{bad}");
        }
    }
}
