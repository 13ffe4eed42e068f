//! Who somebody is: passwords, tokens and sessions.
#![warn(missing_docs)]

pub mod access;
#[cfg(test)]
mod decoders;
pub mod password;
pub mod refresh;
pub mod service_token;
pub mod token;
pub mod verification;

/// Compares in a time that does not depend on where the two differ.
pub(crate) fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |differences, (l, r)| differences | (l ^ r)) == 0
}
