//! Cursors: where a list goes on, opaque and signed, so that only what this service gave out comes
//! back, and only for the list it was given out for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use souk_actors::id::keyed_hash;

use super::problem::ApiError;
use crate::identity::same;

/// How many bytes of the signature a cursor carries: 128 bits cannot be guessed.
const SIGNATURE_BYTES: usize = 16;

/// Signs and reads cursors.
#[derive(Clone)]
pub struct Cursors {
    key: [u8; 32],
}

impl Cursors {
    /// Cursors under a key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// A cursor of the list `list` (its name and filter) that goes on at `at`.
    pub fn seal<T: Serialize>(&self, list: &str, at: &T) -> String {
        let mut bytes = serde_json::to_vec(at).expect("cursors are plain data with string keys");
        let signature = self.sign(list, &bytes);
        bytes.extend_from_slice(&signature);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor of the list `list`.
    pub fn open<T: DeserializeOwned>(&self, list: &str, cursor: &str) -> Result<T, ApiError> {
        let read = || {
            let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
            let (content, signature) =
                bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE_BYTES)?)?;
            same(&self.sign(list, content), signature)
                .then(|| serde_json::from_slice(content).ok())?
        };
        read().ok_or_else(|| {
            ApiError::bad_request("invalid_cursor", "this cursor was not given out for this list")
        })
    }

    fn sign(&self, list: &str, content: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let hash = keyed_hash(&self.key, "cursor", &[list.as_bytes(), content]);
        std::array::from_fn(|index| hash[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let cursors = Cursors::new([7; 32]);
        let cursor = cursors.seal("orders", &(5_i64, "x".to_owned()));
        assert_eq!(cursors.open::<(i64, String)>("orders", &cursor).unwrap(), (5, "x".into()));
    }

    #[test]
    fn a_cursor_cannot_be_changed_moved_or_made_up() {
        let cursors = Cursors::new([7; 32]);
        let cursor = cursors.seal("orders", &1_u64);
        assert_eq!(cursors.open::<u64>("sales", &cursor).unwrap_err().code(), "invalid_cursor");
        assert!(Cursors::new([8; 32]).open::<u64>("orders", &cursor).is_err());
        let mut bytes = URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        bytes[0] ^= 1;
        assert!(cursors.open::<u64>("orders", &URL_SAFE_NO_PAD.encode(bytes)).is_err());
        for made_up in ["", "AA", "!!!", "MQ"] {
            assert!(cursors.open::<u64>("orders", made_up).is_err(), "{made_up}");
        }
    }
}
