//! Ids that follow from something.
//!
//! Most ids are time-ordered ([`crate::world::World::new_id`]). Some must come out the same
//! wherever and however often they are made, so that duplicates meet in one actor: those are
//! UUIDv8 (RFC 9562 §5.8) from a BLAKE3 hash of a purpose and its parts.

use uuid::Uuid;

/// The id that follows from `parts` for `purpose`, the same in every process and for ever. Anyone
/// can compute it: use [`keyed`] where the parts are guessable and must not be confirmed.
/// `purpose` is stored in effect; never change it.
pub fn derived(purpose: &str, parts: &[&[u8]]) -> Uuid {
    to_uuid(blake3::Hasher::new_derive_key(&context(purpose)), parts)
}

/// As [`derived`], but only a holder of `key` can compute it.
pub fn keyed(key: &[u8; 32], purpose: &str, parts: &[&[u8]]) -> Uuid {
    let mut hasher = blake3::Hasher::new_keyed(key);
    absorb(&mut hasher, purpose.as_bytes());
    to_uuid(hasher, parts)
}

/// A 32-byte keyed hash of `parts` for `purpose`: for look-ups of secrets and for request hashes.
pub fn keyed_hash(key: &[u8; 32], purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    absorb(&mut hasher, purpose.as_bytes());
    for part in parts {
        absorb(&mut hasher, part);
    }
    *hasher.finalize().as_bytes()
}

fn context(purpose: &str) -> String {
    format!("souk 2026-11 id: {purpose}")
}

/// Length first, so that ("ab", "c") and ("a", "bc") differ.
fn absorb(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

fn to_uuid(mut hasher: blake3::Hasher, parts: &[&[u8]]) -> Uuid {
    for part in parts {
        absorb(&mut hasher, part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Uuid::new_v8(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_id_is_a_version_8_uuid_and_depends_on_every_part() {
        let id = derived("saga", &[b"order", b"1"]);
        assert_eq!(id.get_version_num(), 8);
        assert_eq!(id, derived("saga", &[b"order", b"1"]));
        assert_ne!(id, derived("saga", &[b"orde", b"r1"]));
        assert_ne!(id, derived("payment", &[b"order", b"1"]));
        assert_ne!(keyed(&[1; 32], "a", &[b"x"]), keyed(&[2; 32], "a", &[b"x"]));
    }

    /// Stored ids rest on these exact values.
    #[test]
    fn derivation_never_changes() {
        assert_eq!(
            derived("payment", &[b"order"]).to_string(),
            "a8e6e730-4c04-8c91-9f9f-0a1b9eddde10"
        );
    }
}
