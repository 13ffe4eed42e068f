//! Who may come in: how people and their logins stand, remembered so that a request need not ask
//! their aggregates.
//!
//! What is not remembered is read from the aggregate. Whoever changes how somebody stands has it read
//! again: the request that did it, and the subscriber that hears of it, should the request not live to
//! see the answer. A later version is never replaced by an earlier one, so a slow reader does no harm.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use souk_actors::command::CommandError;
use souk_actors::runtime::Runtime;
use uuid::Uuid;

use crate::domain::caller::Role;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::session::{Session, SessionDetails, SessionRejection};
use crate::domain::user::{User, UserDetails, UserRejection, UserStatus};

/// How many people, and how many logins, are remembered: some 10 MB. With more, all are forgotten and
/// asked for anew.
const REMEMBERED_MAX: usize = 100_000;

/// How somebody stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    /// How the user stands.
    pub status: UserStatus,
    /// What the user is. There are as many roles as places.
    roles: [Option<Role>; 3],
    epoch: u32,
    kept_session: Option<SessionId>,
}

impl From<&UserDetails> for Person {
    fn from(details: &UserDetails) -> Self {
        let UserDetails { status, epoch, kept_session, .. } = *details;
        let mut roles = [None; 3];
        for (place, role) in roles.iter_mut().zip(&details.roles) {
            *place = Some(*role);
        }
        Self { status, roles, epoch, kept_session }
    }
}

/// How a login stands for its own part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    user: UserId,
    epoch: u32,
    is_revoked: bool,
}

impl From<&SessionDetails> for Login {
    fn from(details: &SessionDetails) -> Self {
        Self { user: details.user_id, epoch: details.epoch, is_revoked: details.revoked.is_some() }
    }
}

impl Person {
    /// What the user is.
    pub fn roles(&self) -> BTreeSet<Role> {
        self.roles.iter().copied().flatten().collect()
    }

    /// Whether a key of this user that belongs to this epoch goes on.
    pub fn lets_key(&self, epoch: u32) -> bool {
        self.epoch == epoch
    }

    /// Whether a login of this user goes on.
    pub fn lets(&self, user: UserId, session: SessionId, login: &Login) -> bool {
        let of_now = login.epoch == self.epoch || self.kept_session == Some(session);
        login.user == user && of_now && !login.is_revoked
    }
}

/// The latest that is known of each.
struct Remembered<T> {
    known: DashMap<Uuid, (u64, T)>,
    /// How often one or all were forgotten. Whoever began to read before must not remember what was
    /// read: what was newer may have been forgotten meanwhile.
    forgotten: AtomicU64,
    max: usize,
}

impl<T: Copy> Remembered<T> {
    fn new(max: usize) -> Self {
        Self { known: DashMap::new(), forgotten: AtomicU64::new(0), max }
    }

    fn get(&self, id: Uuid) -> Option<T> {
        self.known.get(&id).map(|known| known.1)
    }

    fn times_forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Forgets one, so that it is asked for anew.
    fn forget(&self, id: Uuid) {
        // Before it goes: whoever began to read earlier must not bring it back.
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.known.remove(&id);
    }

    /// Notes what was read after something had been forgotten `times` times.
    fn note(&self, id: Uuid, version: u64, value: T, times: u64) {
        if self.known.len() >= self.max {
            self.forgotten.fetch_add(1, Ordering::AcqRel);
            self.known.clear();
        }
        match self.known.entry(id) {
            Entry::Occupied(mut known) if known.get().0 <= version => {
                known.insert((version, value));
            }
            Entry::Occupied(_) => {}
            // Under the entry's lock, which who forgets needs too.
            Entry::Vacant(vacant) if self.times_forgotten() == times => {
                vacant.insert((version, value));
            }
            Entry::Vacant(_) => {}
        }
    }
}

/// What is remembered. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    people: Remembered<Person>,
    logins: Remembered<Login>,
}

impl Default for Access {
    fn default() -> Self {
        let (people, logins) = (Remembered::new(REMEMBERED_MAX), Remembered::new(REMEMBERED_MAX));
        Self(Arc::new(Inner { people, logins }))
    }
}

impl Access {
    /// How somebody stands; none: there is no such user.
    pub async fn person(
        &self,
        runtime: &Runtime,
        user: UserId,
    ) -> Result<Option<Person>, CommandError<UserRejection>> {
        if let Some(known) = self.0.people.get(user.uuid()) {
            return Ok(Some(known));
        }
        let times = self.0.people.times_forgotten();
        let view = |user: &User| user.details.as_ref().map(Person::from);
        let read = runtime.aggregate::<User>().read(user.uuid(), view).await?;
        if let Some(person) = read.value {
            self.0.people.note(user.uuid(), read.version, person, times);
        }
        Ok(read.value)
    }

    /// How a login stands; none: there is no such.
    pub async fn login(
        &self,
        runtime: &Runtime,
        session: SessionId,
    ) -> Result<Option<Login>, CommandError<SessionRejection>> {
        if let Some(known) = self.0.logins.get(session.uuid()) {
            return Ok(Some(known));
        }
        let times = self.0.logins.times_forgotten();
        let view = |session: &Session| session.details.as_ref().map(Login::from);
        let read = runtime.aggregate::<Session>().read(session.uuid(), view).await?;
        if let Some(login) = read.value {
            self.0.logins.note(session.uuid(), read.version, login, times);
        }
        Ok(read.value)
    }

    /// Looks at somebody who has changed. When that fails, nothing is remembered of them: whoever asks
    /// next looks.
    pub async fn person_changed(
        &self,
        runtime: &Runtime,
        user: UserId,
    ) -> Result<Option<Person>, CommandError<UserRejection>> {
        let times = self.0.people.times_forgotten();
        let view = |user: &User| user.details.as_ref().map(Person::from);
        let read = runtime.aggregate::<User>().read_inside(user.uuid(), view).await;
        let read = read.inspect_err(|_| self.0.people.forget(user.uuid()))?;
        if let Some(person) = read.value {
            self.0.people.note(user.uuid(), read.version, person, times);
        }
        Ok(read.value)
    }

    /// Looks at a login that has changed. When that fails, nothing is remembered of it: whoever asks next
    /// looks.
    pub async fn login_changed(
        &self,
        runtime: &Runtime,
        session: SessionId,
    ) -> Result<(), CommandError<SessionRejection>> {
        let times = self.0.logins.times_forgotten();
        let view = |session: &Session| session.details.as_ref().map(Login::from);
        let read = runtime.aggregate::<Session>().read_inside(session.uuid(), view).await;
        let read = read.inspect_err(|_| self.0.logins.forget(session.uuid()))?;
        if let Some(login) = read.value {
            self.0.logins.note(session.uuid(), read.version, login, times);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn an_earlier_version_replaces_nothing() {
        let known = Remembered::new(10);
        known.note(id(1), 5, 'b', 0);
        known.note(id(1), 4, 'a', 0);
        assert_eq!(known.get(id(1)), Some('b'));
        known.note(id(1), 6, 'c', 0);
        assert_eq!(known.get(id(1)), Some('c'));
    }

    #[test]
    fn what_is_forgotten_is_not_brought_back_by_whoever_read_it_before() {
        let known = Remembered::new(10);
        let times = known.times_forgotten();
        known.note(id(1), 1, 'a', times);
        known.forget(id(1));
        assert_eq!(known.get(id(1)), None);
        known.note(id(1), 1, 'a', times);
        assert_eq!(known.get(id(1)), None);
        known.note(id(1), 2, 'b', known.times_forgotten());
        assert_eq!(known.get(id(1)), Some('b'));
    }

    #[test]
    fn what_was_read_before_everything_was_forgotten_is_not_remembered() {
        let known = Remembered::new(2);
        let times = known.times_forgotten();
        for n in 1..=3 {
            known.note(id(n), 1, n, known.times_forgotten());
        }
        assert_eq!((known.known.len(), known.times_forgotten()), (0, 1), "the bound holds");
        known.note(id(4), 1, 4, times);
        assert_eq!(known.get(id(4)), None);
        known.note(id(4), 1, 4, known.times_forgotten());
        assert_eq!(known.get(id(4)), Some(4));
    }

    #[test]
    fn a_login_goes_on_in_its_epoch_or_when_it_is_kept() {
        let (user, session) = (UserId(id(1)), SessionId(id(2)));
        let person = |epoch, kept_session| Person {
            status: UserStatus::Active,
            roles: [None; 3],
            epoch,
            kept_session,
        };
        let login = Login { user, epoch: 1, is_revoked: false };
        assert!(person(1, None).lets(user, session, &login));
        assert!(!person(2, None).lets(user, session, &login));
        assert!(person(2, Some(session)).lets(user, session, &login));
        assert!(!person(2, Some(SessionId(id(3)))).lets(user, session, &login));
        assert!(!person(1, None).lets(UserId(id(9)), session, &login));
        let revoked = Login { is_revoked: true, ..login };
        assert!(!person(1, Some(session)).lets(user, session, &revoked));
    }
}
