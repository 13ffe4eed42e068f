//! Wrong passwords: who has sent many of late has to wait.
//!
//! What is counted: one account from one address (ten in a quarter of an hour), one account from
//! anywhere (a hundred), and one address at any account (a hundred; not of this machine itself, where
//! a proxy may stand for everybody). So whoever guesses at somebody's password from elsewhere does not
//! keep the owner out before it is a hundred, and a password that was reset by mail begins anew.
//! An attempt counts from its beginning, and is given back when the password was right or was not looked
//! at: many at once get no further than one after the other. Counts go down evenly as time passes. A
//! count is dropped when nothing is left of it; when there are too many, so is every count of a single
//! failure, and else all of them.

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

/// The failures of late and the attempts under way: of each count the time at which nothing is left of it.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Counted, Timestamp>>);

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Counted, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt, or refuses whoever has failed too often of late.
    pub(super) fn may_try(
        &self,
        account: EmailClaimId,
        peer: Peer,
        now: Timestamp,
    ) -> Result<Attempt<'_>, ApiError> {
        let mut all = self.lock();
        let mut longest = Duration::ZERO;
        for counted in Counted::of(account, peer) {
            let Some(over) = all.get_mut(&counted) else { continue };
            // A clock that was set back locks nobody out for longer than the window.
            *over = (*over).min(now.plus(WINDOW));
            let wait = (over.since(now) + counted.each()).saturating_sub(WINDOW);
            longest = longest.max(wait);
        }
        if !longest.is_zero() {
            return Err(too_many(longest));
        }
        make_room(&mut all, now);
        for counted in Counted::of(account, peer) {
            let over = all.get(&counted).copied().unwrap_or(now).max(now);
            all.insert(counted, over.plus(counted.each()));
        }
        Ok(Attempt { attempts: self, account, peer, begun: now })
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

/// Drops counts when there are too many.
fn make_room(all: &mut HashMap<Counted, Timestamp>, now: Timestamp) {
    if all.len() >= REMEMBERED_MAX {
        all.retain(|_, over| *over > now);
    }
    if all.len() >= REMEMBERED_MAX {
        all.retain(|counted, over| over.since(now) > counted.each());
    }
    if all.len() >= REMEMBERED_MAX {
        all.clear();
    }
}

/// An attempt under way. It counts as a failure unless it is said that it is none.
#[derive(Debug)]
#[must_use]
pub(super) struct Attempt<'a> {
    attempts: &'a Attempts,
    account: EmailClaimId,
    peer: Peer,
    begun: Timestamp,
}

impl Attempt<'_> {
    /// It was no failure: the password was right, or nobody looked at it. To be said once.
    pub(super) fn give_back(&self) {
        let mut all = self.attempts.lock();
        for counted in Counted::of(self.account, self.peer) {
            let Some(over) = all.get_mut(&counted) else { continue };
            let left = over.since(self.begun).saturating_sub(counted.each());
            *over = self.begun.plus(left);
            if left.is_zero() {
                all.remove(&counted);
            }
        }
    }

    /// The right password after all: earlier failures from here do not count either.
    pub(super) fn succeeded(self) {
        self.give_back();
        let here = Counted::Here(self.account.uuid(), self.peer.network());
        self.attempts.lock().remove(&here);
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
        }
    }

    /// Whether an attempt would be let through, without one.
    fn lets(attempts: &Attempts, account: EmailClaimId, peer: Peer, now: Timestamp) -> bool {
        attempts.may_try(account, peer, now).map(|attempt| attempt.give_back()).is_ok()
    }

    #[test]
    fn attempts_under_way_count_until_they_are_given_back() {
        let attempts = Attempts::default();
        let mut under_way: Vec<_> =
            (0..10).map(|_| attempts.may_try(account(1), peer(1), NOW).unwrap()).collect();
        assert!(!lets(&attempts, account(1), peer(1), NOW), "the eleventh at once");
        // Nobody looked at the password of one.
        under_way.swap_remove(0).give_back();
        fail(&attempts, account(1), peer(1), 1);
        assert!(!lets(&attempts, account(1), peer(1), NOW));
        under_way.swap_remove(0).succeeded();
        fail(&attempts, account(1), peer(1), 10);
        assert!(!lets(&attempts, account(1), peer(1), NOW));
    }

    #[test]
    fn what_is_given_back_leaves_nothing() {
        let attempts = Attempts::default();
        for n in 0..200 {
            assert!(lets(&attempts, account(1), peer(1), NOW), "{n}");
            attempts.may_try(account(1), peer(2), NOW).unwrap().succeeded();
        }
        assert!(attempts.lock().is_empty());
        // A failure before and one after, of which the time goes on.
        fail(&attempts, account(1), peer(1), 1);
        let under_way = attempts.may_try(account(1), peer(1), NOW).unwrap();
        fail(&attempts, account(1), peer(1), 1);
        under_way.give_back();
        fail(&attempts, account(1), peer(1), 8);
        assert!(!lets(&attempts, account(1), peer(1), NOW));
    }

    #[test]
    fn ten_failures_make_a_pause_that_ends() {
        let attempts = Attempts::default();
        fail(&attempts, account(1), peer(1), 10);
        let refused = attempts.may_try(account(1), peer(1), NOW).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let soon = NOW.plus(Duration::from_secs(89));
        assert!(!lets(&attempts, account(1), peer(1), soon));
        let later = NOW.plus(Duration::from_secs(90));
        assert!(attempts.may_try(account(1), peer(1), later).is_ok());
        assert!(!lets(&attempts, account(1), peer(1), later));
    }

    #[test]
    fn others_failures_keep_an_owner_out_late_and_a_reset_lets_them_in() {
        let attempts = Attempts::default();
        for stranger in 1..=10 {
            assert!(lets(&attempts, account(1), peer(99), NOW), "{stranger}");
            fail(&attempts, account(1), peer(stranger), 10);
        }
        assert!(!lets(&attempts, account(1), peer(99), NOW), "a hundred are too many");
        attempts.forget(account(1));
        assert!(lets(&attempts, account(1), peer(99), NOW));
    }

    #[test]
    fn an_address_that_tries_everybody_has_to_wait_unless_it_is_this_machine() {
        let attempts = Attempts::default();
        let here = Peer(Some(IpAddr::from([127, 0, 0, 1])));
        for n in 0..100 {
            fail(&attempts, account(n), peer(1), 1);
            fail(&attempts, account(n), here, 1);
        }
        assert!(!lets(&attempts, account(500), peer(1), NOW));
        assert!(lets(&attempts, account(500), here, NOW));
        assert!(lets(&attempts, account(500), peer(2), NOW));
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_a_success_forgets() {
        let of = |text: &str| Peer(Some(text.parse().unwrap()));
        let attempts = Attempts::default();
        fail(&attempts, account(1), of("2001:db8:1:2::1"), 9);
        let last = attempts.may_try(account(1), of("2001:db8:1:2::1"), NOW).unwrap();
        assert!(!lets(&attempts, account(1), of("2001:db8:1:2:ffff::9"), NOW));
        assert!(lets(&attempts, account(1), of("2001:db8:1:3::1"), NOW));
        last.succeeded();
        fail(&attempts, account(1), of("2001:db8:1:2::1"), 10);
    }

    #[test]
    fn memory_is_bounded_and_a_clock_that_is_set_back_locks_nobody_out_for_good() {
        let attempts = Attempts::default();
        for n in 0..REMEMBERED_MAX as u128 {
            assert!(attempts.may_try(account(n), Peer(None), NOW).is_ok());
        }
        assert!(attempts.lock().len() <= REMEMBERED_MAX + 1);
        let ahead = NOW.plus(Duration::from_secs(1_000_000));
        for _ in 0..10 {
            assert!(attempts.may_try(account(1), peer(1), ahead).is_ok());
        }
        assert!(!lets(&attempts, account(1), peer(1), NOW));
        assert!(lets(&attempts, account(1), peer(1), NOW.plus(Duration::from_secs(90))));
    }
}
