//! Wrong passwords: who has sent many of late has to wait.
//!
//! What is counted: one account from one address (ten in a quarter of an hour), one account from
//! anywhere (a hundred), and one address at any account (a hundred; not of this machine itself, where
//! a proxy may stand for everybody). So whoever guesses at somebody's password from elsewhere does not
//! keep the owner out before it is a hundred, and a password that was reset by mail begins anew.
//! Counts go down evenly as time passes. A count is dropped when nothing is left of it; when there are
//! too many, so is every count of a single failure, and else all of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{self, HeaderValue};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::peer::Peer;
use super::problem::ApiError;
use crate::domain::ids::EmailClaimId;

/// Failures of one account from one address.
const HERE_MAX: u32 = 10;
/// Failures of one account, and of one address.
const ANYWHERE_MAX: u32 = 100;
/// Within so long.
const WINDOW: Duration = Duration::from_secs(15 * 60);
/// So many counts are kept: some 10 MB.
const REMEMBERED_MAX: usize = 100_000;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Counted {
    Here(Uuid, Option<IpAddr>),
    Account(Uuid),
    Address(IpAddr),
}

impl Counted {
    fn max(self) -> u32 {
        match self {
            Self::Here(..) => HERE_MAX,
            Self::Account(_) | Self::Address(_) => ANYWHERE_MAX,
        }
    }

    /// How long it takes until there is room for one more.
    fn each(self) -> Duration {
        WINDOW / self.max()
    }

    fn of(account: EmailClaimId, peer: Peer) -> impl Iterator<Item = Self> {
        let (account, network) = (account.uuid(), peer.network());
        let distant = peer.distant_network().map(Self::Address);
        [Some(Self::Here(account, network)), Some(Self::Account(account)), distant]
            .into_iter()
            .flatten()
    }
}

/// The failures of late: of each count the time at which nothing is left of it.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Counted, Timestamp>>);

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Counted, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses who has failed too often of late.
    pub(super) fn may_try(
        &self,
        account: EmailClaimId,
        peer: Peer,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let all = self.lock();
        let wait = Counted::of(account, peer).filter_map(|counted| {
            let left = all.get(&counted)?.since(now);
            // A clock that was set back locks nobody out for longer than the window.
            (left.min(WINDOW) + counted.each()).checked_sub(WINDOW).filter(|wait| !wait.is_zero())
        });
        match wait.max() {
            None => Ok(()),
            Some(wait) => Err(too_many(wait)),
        }
    }

    /// Counts a wrong password.
    pub(super) fn failed(&self, account: EmailClaimId, peer: Peer, now: Timestamp) {
        let mut all = self.lock();
        if all.len() >= REMEMBERED_MAX {
            all.retain(|_, over| *over > now);
        }
        if all.len() >= REMEMBERED_MAX {
            all.retain(|counted, over| over.since(now) > counted.each());
        }
        if all.len() >= REMEMBERED_MAX {
            all.clear();
        }
        for counted in Counted::of(account, peer) {
            let over = all.get(&counted).copied().unwrap_or(now).max(now);
            all.insert(counted, over.plus(counted.each()).min(now.plus(WINDOW)));
        }
    }

    /// The right password after all: earlier failures from here do not count.
    pub(super) fn succeeded(&self, account: EmailClaimId, peer: Peer) {
        self.lock().remove(&Counted::Here(account.uuid(), peer.network()));
    }

    /// Forgets the failures of an account, whose password is another one now.
    pub(super) fn forget(&self, account: EmailClaimId) {
        let account = account.uuid();
        self.lock().retain(|counted, _| match counted {
            Counted::Here(of, _) | Counted::Account(of) => *of != account,
            Counted::Address(_) => true,
        });
    }
}

fn too_many(wait: Duration) -> ApiError {
    let seconds = wait.as_secs().saturating_add(1);
    let detail = format!(
        "too many wrong passwords; try again in {seconds} seconds, or have the password reset"
    );
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_attempts", detail)
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_170_600_000);

    fn account(n: u128) -> EmailClaimId {
        EmailClaimId(Uuid::from_u128(n))
    }

    fn peer(last: u8) -> Peer {
        Peer(Some(IpAddr::from([192, 0, 2, last])))
    }

    fn fail(attempts: &Attempts, account: EmailClaimId, peer: Peer, times: u32) {
        for _ in 0..times {
            assert!(attempts.may_try(account, peer, NOW).is_ok());
            attempts.failed(account, peer, NOW);
        }
    }

    #[test]
    fn ten_failures_make_a_pause_that_ends() {
        let attempts = Attempts::default();
        fail(&attempts, account(1), peer(1), 10);
        let refused = attempts.may_try(account(1), peer(1), NOW).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let soon = NOW.plus(Duration::from_secs(89));
        assert!(attempts.may_try(account(1), peer(1), soon).is_err());
        let later = NOW.plus(Duration::from_secs(90));
        assert!(attempts.may_try(account(1), peer(1), later).is_ok());
        attempts.failed(account(1), peer(1), later);
        assert!(attempts.may_try(account(1), peer(1), later).is_err());
    }

    #[test]
    fn others_failures_keep_an_owner_out_late_and_a_reset_lets_them_in() {
        let attempts = Attempts::default();
        for stranger in 1..=10 {
            assert!(attempts.may_try(account(1), peer(99), NOW).is_ok(), "{stranger}");
            fail(&attempts, account(1), peer(stranger), 10);
        }
        assert!(attempts.may_try(account(1), peer(99), NOW).is_err(), "a hundred are too many");
        attempts.forget(account(1));
        assert!(attempts.may_try(account(1), peer(99), NOW).is_ok());
    }

    #[test]
    fn an_address_that_tries_everybody_has_to_wait_unless_it_is_this_machine() {
        let attempts = Attempts::default();
        let here = Peer(Some(IpAddr::from([127, 0, 0, 1])));
        for n in 0..100 {
            fail(&attempts, account(n), peer(1), 1);
            fail(&attempts, account(n), here, 1);
        }
        assert!(attempts.may_try(account(500), peer(1), NOW).is_err());
        assert!(attempts.may_try(account(500), here, NOW).is_ok());
        assert!(attempts.may_try(account(500), peer(2), NOW).is_ok());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_a_success_forgets() {
        let of = |text: &str| Peer(Some(text.parse().unwrap()));
        let attempts = Attempts::default();
        fail(&attempts, account(1), of("2001:db8:1:2::1"), 10);
        assert!(attempts.may_try(account(1), of("2001:db8:1:2:ffff::9"), NOW).is_err());
        assert!(attempts.may_try(account(1), of("2001:db8:1:3::1"), NOW).is_ok());
        attempts.succeeded(account(1), of("2001:db8:1:2::1"));
        assert!(attempts.may_try(account(1), of("2001:db8:1:2::1"), NOW).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_a_clock_that_is_set_back_locks_nobody_out_for_good() {
        let attempts = Attempts::default();
        for n in 0..REMEMBERED_MAX as u128 {
            attempts.failed(account(n), Peer(None), NOW);
        }
        assert!(attempts.lock().len() <= REMEMBERED_MAX + 1);
        let ahead = NOW.plus(Duration::from_secs(1_000_000));
        for _ in 0..10 {
            attempts.failed(account(1), peer(1), ahead);
        }
        attempts.failed(account(1), peer(1), NOW);
        let later = NOW.plus(WINDOW).plus(Duration::from_secs(90));
        assert!(attempts.may_try(account(1), peer(1), later).is_ok());
    }
}
