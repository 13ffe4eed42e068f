//! Secrets that nobody prints by accident.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

use crate::domain::text::hex;

/// A key of 32 bytes. It has no `Display`, and its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 32 bytes written in base64 (either alphabet, padded or not) or in hexadecimal.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            from_hex(text)?
        } else {
            [&STANDARD, &URL_SAFE, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD]
                .into_iter()
                .find_map(|engine| engine.decode(text).ok())?
        };
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key in hexadecimal, for the file that keeps it.
    pub(crate) fn to_hex(&self) -> String {
        hex(&self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A password or key of somebody else's, as text. It has no `Display`, and its `Debug` shows nothing
/// of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(String);

impl Credential {
    /// This text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whom it is meant.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(***)")
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_every_usual_spelling_and_never_shown() {
        let bytes = std::array::from_fn(|index| u8::try_from(index * 8).unwrap() | 3);
        let key = Secret::new(bytes);
        for text in [STANDARD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes), key.to_hex()] {
            assert_eq!(Secret::parse(&format!("{text}\n")), Some(key.clone()), "{text}");
        }
        assert_eq!(Secret::parse("c2hvcnQ="), None);
        assert_eq!(format!("{key:?}"), "Secret(***)");
        assert_eq!(format!("{:?}", Credential::new("hunter2")), "Credential(***)");
    }
}
