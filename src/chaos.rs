//! Hurting the service on purpose, and judging what comes of it. Development builds only (feature
//! `chaos`).

pub mod linearizability;
