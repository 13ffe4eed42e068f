//! Who somebody is: passwords, tokens and sessions.
#![warn(missing_docs)]

#[cfg(test)]
mod decoders;
pub mod password;
pub mod refresh;
pub mod token;
pub mod verification;
