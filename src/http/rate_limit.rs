//! How much one caller may ask for: a quota of events for each publisher, and one of requests for
//! everybody. Both are of a window and refilled evenly.
//!
//! For each there is one number: how much of the quota is used, which shrinks as time passes. Whoever
//! has nothing used is forgotten; when so many have used something that memory would grow, everybody
//! begins anew.
//!
//! Requests are counted by whose token they have, and without a good one by the address that they come
//! from. Services are not: their tokens have quotas of events. Probes, images and what providers tell ask
//! for no token, and are not counted either.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::http::StatusCode;
use axum::http::header::{self, HeaderName, HeaderValue};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::problem::ApiError;
use crate::config;
use crate::domain::service_token::Quota;

/// What the quota is.
pub(super) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of it.
pub(super) const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// What is counted, and under which name clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    name: &'static str,
    unit: &'static str,
}

/// Events of a publisher.
pub(super) const EVENTS: Policy = Policy { name: "default", unit: "events" };
/// Requests of anybody.
pub(super) const REQUESTS: Policy = Policy { name: "requests", unit: "requests" };

/// Whose requests are counted as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// Whoever has a token.
    Person(Uuid),
    /// Everybody else at an address.
    Network(IpAddr),
}

/// Where a request's count is written for the layer around its handler, which says it in the answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Counted(Arc<OnceLock<Told>>);

impl Counted {
    /// Writes it down. Who reads the token twice counts once.
    pub(super) fn say(&self, told: Told) {
        self.0.get_or_init(|| told);
    }

    /// Whether it was counted, and what that came to.
    pub(super) fn told(&self) -> Option<Told> {
        self.0.get().copied()
    }
}

/// The limits of requests, where there are any.
pub(super) fn of_requests(settings: &config::Http) -> Option<(Quota, RateLimits<Caller>)> {
    let (events, window) = (settings.rate_requests as u64, settings.rate_window);
    let quota = Quota { events, seconds: window.as_secs().max(1) };
    (events > 0).then(|| (quota, RateLimits::new(REQUESTS)))
}

/// The registered kind of problem.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
/// From so many on, those who have nothing used are looked for and forgotten.
const REMEMBERED_MAX: usize = 100_000;

/// What everybody has used.
#[derive(Debug)]
pub(super) struct RateLimits<K> {
    policy: Policy,
    used: Mutex<HashMap<K, Used>>,
}

/// What somebody has used: units times the milliseconds of the window, as of a time.
#[derive(Debug, Clone, Copy)]
struct Used {
    amount: u128,
    at: Timestamp,
}

/// What a quota says after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    policy: Policy,
    quota: Quota,
    left: u64,
    /// In how many seconds all of it is there again.
    seconds: u64,
}

fn window_ms(quota: Quota) -> u128 {
    u128::from(quota.seconds.max(1)) * 1_000
}

fn small(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Used {
    /// What is left of it at `now`. A clock that was set back gives nothing back and takes nothing.
    fn shrunk(self, quota: Quota, now: Timestamp) -> u128 {
        let passed = now.since(self.at).as_millis();
        let whole = u128::from(quota.events) * window_ms(quota);
        self.amount.saturating_sub(passed * u128::from(quota.events)).min(whole)
    }
}

impl<K: Copy + Eq + Hash> RateLimits<K> {
    /// Nobody has used anything.
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, used: Mutex::default() }
    }

    /// Takes so much from somebody's quota, or refuses all of it.
    pub(super) fn take(
        &self,
        who: K,
        quota: Quota,
        units: usize,
        now: Timestamp,
    ) -> Result<Told, ApiError> {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED_MAX && !all.contains_key(&who) {
            all.retain(|_, used| used.shrunk(quota, now) > 0);
            if all.len() >= REMEMBERED_MAX {
                all.clear();
            }
        }
        let used = all.get(&who).map_or(0, |used| used.shrunk(quota, now));
        let whole = u128::from(quota.events) * window_ms(quota);
        let wanted = units as u128 * window_ms(quota);
        if used + wanted > whole {
            let told = self.told(quota, used);
            let wait = (used + wanted).saturating_sub(whole).div_ceil(u128::from(quota.events));
            return Err(exceeded(told, units, small(wait.div_ceil(1_000))));
        }
        all.insert(who, Used { amount: used + wanted, at: now });
        Ok(self.told(quota, used + wanted))
    }

    fn told(&self, quota: Quota, used: u128) -> Told {
        let whole = u128::from(quota.events) * window_ms(quota);
        Told {
            policy: self.policy,
            quota,
            left: small((whole - used.min(whole)) / window_ms(quota)),
            seconds: small(used.div_ceil(u128::from(quota.events.max(1))).div_ceil(1_000)),
        }
    }
}

fn exceeded(told: Told, units: usize, wait: u64) -> ApiError {
    let Policy { name, unit } = told.policy;
    let quota = told.quota.events;
    let detail = if units as u64 > quota {
        format!("these are {units} {unit}, and the quota is {quota}: send fewer at once")
    } else {
        format!("the quota has room for {} more {unit} now", told.left)
    };
    let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail)
        .of_kind(QUOTA_EXCEEDED, "Quota exceeded")
        .violating(name)
        .with_header(header::RETRY_AFTER, HeaderValue::from(wait.max(1)));
    for (name, value) in told.headers() {
        error = error.with_header(name, value);
    }
    error
}

impl Told {
    /// The two header fields.
    pub(super) fn headers(&self) -> [(HeaderName, HeaderValue); 2] {
        let Quota { events, seconds } = self.quota;
        let Policy { name, unit } = self.policy;
        let policy = format!("\"{name}\";q={events};qu=\"{unit}\";w={seconds}");
        let left = format!("\"{name}\";r={};t={}", self.left, self.seconds);
        let value = |text| HeaderValue::try_from(text).expect("names and numbers are plain");
        [(POLICY, value(policy)), (LEFT, value(left))]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUOTA: Quota = Quota { events: 10, seconds: 60 };
    const NOW: Timestamp = Timestamp::from_millis(1_795_170_600_000);

    #[test]
    fn a_quota_is_used_up_and_refills_evenly() {
        let (limits, who) = (RateLimits::new(EVENTS), Uuid::from_u128(1));
        let told = limits.take(who, QUOTA, 4, NOW).unwrap();
        assert_eq!((told.left, told.seconds), (6, 24));
        assert_eq!(limits.take(who, QUOTA, 6, NOW).unwrap().left, 0);
        let refused = limits.take(who, QUOTA, 1, NOW).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        // A refusal costs nothing: the sixth part of the window is room for one.
        assert!(limits.take(who, QUOTA, 1, NOW.plus(Duration::from_millis(5_999))).is_err());
        assert!(limits.take(who, QUOTA, 1, NOW.plus(Duration::from_secs(6))).is_ok());
        assert!(limits.take(Uuid::from_u128(2), QUOTA, 10, NOW).is_ok(), "each has its own");
        assert!(limits.take(Uuid::from_u128(3), QUOTA, 11, NOW).is_err());
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out_for_longer_than_the_window() {
        let (limits, who) = (RateLimits::new(EVENTS), Uuid::from_u128(1));
        let later = NOW.plus(Duration::from_secs(1_000_000));
        limits.take(who, QUOTA, 4, later).unwrap();
        assert_eq!(limits.take(who, QUOTA, 1, NOW).unwrap().left, 5);
        assert_eq!(limits.take(who, QUOTA, 5, NOW.plus(Duration::from_secs(60))).unwrap().left, 5);
    }

    #[test]
    fn who_has_nothing_used_is_forgotten() {
        let limits = RateLimits::new(EVENTS);
        for who in 0..REMEMBERED_MAX as u128 {
            limits.take(Uuid::from_u128(who), QUOTA, 1, NOW).unwrap();
        }
        let kept = || limits.used.lock().unwrap().len();
        assert_eq!(kept(), REMEMBERED_MAX);
        let later = NOW.plus(Duration::from_secs(60));
        limits.take(Uuid::from_u128(u128::MAX), QUOTA, 1, later).unwrap();
        assert_eq!(kept(), 1);
        for who in 0..REMEMBERED_MAX as u128 {
            limits.take(Uuid::from_u128(who), QUOTA, 1, later).unwrap();
        }
        assert!(kept() <= REMEMBERED_MAX, "however many there are");
    }
}
