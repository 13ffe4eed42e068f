//! Passwords: argon2id off the runtime, a few at a time.
//!
//! One hash takes about 18 ms of a core and 19 MiB. Without a bound, logins would be a way to stop
//! the service; so only `AT_ONCE` run, a caller waits `WAIT_MAX` for a place, and then hears 503.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use souk_actors::command::ControlWrite;
use souk_actors::world::World;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// The control rows of credentials: user id to PHC string. Stored; never rename.
pub const SPACE: &str = "credential";
/// How many hashes run at once.
const AT_ONCE: usize = 2;
/// How long a caller waits for a place: about fifty hashes on one core.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The shortest password (NIST SP 800-63B).
pub const LENGTH_MIN: usize = 8;
/// The longest: hashing takes time by length too.
pub const LENGTH_MAX: usize = 256;

/// Too many passwords are being hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being checked")]
pub struct Busy;

/// Hashes and checks passwords.
#[derive(Clone)]
pub struct Passwords {
    places: Arc<Semaphore>,
    world: Arc<dyn World>,
    /// What is checked when there is no such user, so that this takes as long.
    decoy: Arc<str>,
}

impl Passwords {
    /// With salts from `world`.
    pub fn new(world: Arc<dyn World>) -> Self {
        let decoy = hash("nobody has this password", &salt(&*world));
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), world, decoy: decoy.into() }
    }

    /// The PHC string of a password.
    pub async fn hash(&self, password: String) -> Result<String, Busy> {
        let salt = salt(&*self.world);
        self.in_place(move || hash(&password, &salt)).await
    }

    /// Whether `password` is the one of `phc`; where there is none it is not, just as slowly.
    pub async fn matches(&self, password: String, phc: Option<String>) -> Result<bool, Busy> {
        let known = phc.is_some();
        let phc = phc.unwrap_or_else(|| self.decoy.to_string());
        let fits = self.in_place(move || verify(&password, &phc)).await?;
        Ok(known && fits)
    }

    async fn in_place<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let place = tokio::time::timeout(WAIT_MAX, self.places.clone().acquire_owned());
        let Ok(Ok(place)) = place.await else { return Err(Busy) };
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        // The work does not panic; the task is gone only when the whole program ends.
        done.await.map_err(|_| Busy)
    }
}

/// The row that keeps a user's credential.
pub fn row(user_id: Uuid, phc: String) -> ControlWrite {
    ControlWrite {
        space: SPACE,
        key: user_id.as_bytes().to_vec(),
        value: Some(phc.into_bytes()),
        expires_at: None,
    }
}

/// The same without one: there is no way in by a password any more.
pub fn no_row(user_id: Uuid) -> ControlWrite {
    ControlWrite { space: SPACE, key: user_id.as_bytes().to_vec(), value: None, expires_at: None }
}

fn argon2() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::DEFAULT)
}

fn salt(world: &dyn World) -> SaltString {
    let mut bytes = [0; 16];
    world.fill(&mut bytes);
    SaltString::encode_b64(&bytes).expect("16 bytes are a salt")
}

fn hash(password: &str, salt: &SaltString) -> String {
    let hash = argon2().hash_password(password.as_bytes(), salt);
    hash.expect("the parameters and the salt are valid").to_string()
}

fn verify(password: &str, phc: &str) -> bool {
    PasswordHash::new(phc)
        .is_ok_and(|hash| argon2().verify_password(password.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use souk_actors::world::SystemWorld;

    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new(Arc::new(SystemWorld::new()));
        let phc = passwords.hash("correct horse".into()).await.unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(passwords.matches("correct horse".into(), Some(phc.clone())).await.unwrap());
        assert!(!passwords.matches("battery staple".into(), Some(phc)).await.unwrap());
        assert!(!passwords.matches("nobody has this password".into(), None).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_finds_no_place_in_time_is_told() {
        let passwords = Passwords::new(Arc::new(SystemWorld::new()));
        let _all = passwords.places.clone().acquire_many_owned(2).await.unwrap();
        assert_eq!(passwords.hash("correct horse".into()).await, Err(Busy));
    }
}
