//! How MoMo signs: HMAC-SHA256 over a fixed list of fields for each operation, written as
//! `key=value&key=value` in the order of the keys, with values as they are (nothing is encoded).
//!
//! What is not in the list is not signed, and nothing may rest on it.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::config::Credential;
use crate::domain::text::hex;

/// How many bytes a signature has.
const SIGNATURE_BYTES: usize = 32;

/// The text that is signed: these fields, which must be in the order of their keys.
pub fn raw(fields: &[(&str, &str)]) -> String {
    debug_assert!(fields.is_sorted_by_key(|(key, _)| *key), "{fields:?} is out of order");
    let pairs: Vec<_> = fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join("&")
}

fn mac(secret: &Credential, raw: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("an HMAC takes a key of any length");
    mac.update(raw.as_bytes());
    mac
}

/// The signature of a text, in lower-case hexadecimal.
pub fn sign(secret: &Credential, raw: &str) -> String {
    hex(&mac(secret, raw).finalize().into_bytes())
}

/// Whether a signature, in hexadecimal of either case, is that of a text. Takes as long whatever is
/// wrong with it.
pub fn holds(secret: &Credential, raw: &str, signature: &str) -> bool {
    bytes(signature).is_some_and(|bytes| mac(secret, raw).verify_slice(&bytes).is_ok())
}

fn bytes(signature: &str) -> Option<[u8; SIGNATURE_BYTES]> {
    let digits = signature.as_bytes();
    if digits.len() != 2 * SIGNATURE_BYTES {
        return None;
    }
    let mut bytes = [0; SIGNATURE_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod vectors {
    use serde::Deserialize;

    /// What somebody signed.
    #[derive(Debug, Deserialize)]
    pub struct Vector {
        pub name: String,
        /// Whether MoMo itself signed it.
        pub genuine: bool,
        pub secret_key: String,
        pub raw: String,
        pub signature: String,
    }

    /// All of them, the genuine ones first.
    pub fn all() -> Vec<Vector> {
        serde_json::from_str(include_str!("vectors.json")).unwrap()
    }

    /// The one of this name.
    pub fn named(name: &str) -> Vector {
        all().into_iter().find(|vector| vector.name == name).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_momo_signed_holds_and_nothing_else_does() {
        let all = vectors::all();
        assert_eq!(all.iter().filter(|vector| vector.genuine).count(), 3);
        for vector in all {
            let secret = Credential::new(&vector.secret_key);
            assert_eq!(sign(&secret, &vector.raw), vector.signature, "{}", vector.name);
            assert!(holds(&secret, &vector.raw, &vector.signature), "{}", vector.name);
            assert!(holds(&secret, &vector.raw, &vector.signature.to_uppercase()));
            let other = Credential::new(format!("{}x", vector.secret_key));
            assert!(!holds(&other, &vector.raw, &vector.signature), "{}", vector.name);
            let dearer = vector.raw.replace("amount=", "amount=1");
            if dearer != vector.raw {
                assert!(!holds(&secret, &dearer, &vector.signature), "{}", vector.name);
            }
            let encoded = vector.raw.replace(' ', "%20");
            if encoded != vector.raw {
                assert!(!holds(&secret, &encoded, &vector.signature), "{}", vector.name);
            }
        }
    }

    #[test]
    fn what_is_no_signature_holds_nowhere() {
        let vector = vectors::named("A");
        let secret = Credential::new(&vector.secret_key);
        let short = &vector.signature[2..];
        let not_hex = format!("+1{short}");
        for text in ["", "a5", short, &format!("{}00", vector.signature), &not_hex, &"é".repeat(32)]
        {
            assert!(!holds(&secret, &vector.raw, text), "{text}");
        }
    }

    #[test]
    fn fields_are_written_as_they_are() {
        assert_eq!(raw(&[("a", ""), ("b", "x y&z"), ("c", "đ")]), "a=&b=x y&z&c=đ");
    }
}
