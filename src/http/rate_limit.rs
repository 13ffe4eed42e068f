//! How much a publisher may send: a quota of events in a window for each token, refilled evenly.
//!
//! For each there is one number: how much of the quota is used, which shrinks as time passes. Whoever
//! has nothing used is forgotten, so the memory is bounded by those who published lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::problem::ApiError;
use crate::domain::service_token::Quota;

/// What the quota is.
pub(super) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of it.
pub(super) const LEFT: HeaderName = HeaderName::from_static("ratelimit");
/// The name of the one policy there is.
const NAME: &str = "default";
/// The registered kind of problem.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
/// From so many on, those who have nothing used are looked for and forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// What everybody has used.
#[derive(Debug, Default)]
pub(super) struct RateLimits(Mutex<HashMap<Uuid, Used>>);

/// What somebody has used: events times the milliseconds of the window, as of a time.
#[derive(Debug, Clone, Copy)]
struct Used {
    amount: u128,
    at: Timestamp,
}

/// What a quota says after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
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

impl RateLimits {
    /// Takes so many events from somebody's quota, or refuses them all.
    pub(super) fn take(
        &self,
        who: Uuid,
        quota: Quota,
        events: usize,
        now: Timestamp,
    ) -> Result<Told, ApiError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED_MAX && !all.contains_key(&who) {
            all.retain(|_, used| used.shrunk(quota, now) > 0);
        }
        let used = all.get(&who).map_or(0, |used| used.shrunk(quota, now));
        let whole = u128::from(quota.events) * window_ms(quota);
        let wanted = events as u128 * window_ms(quota);
        if used + wanted > whole {
            let told = told(quota, used);
            let wait = (used + wanted).saturating_sub(whole).div_ceil(u128::from(quota.events));
            return Err(exceeded(told, events, small(wait.div_ceil(1_000))));
        }
        all.insert(who, Used { amount: used + wanted, at: now });
        Ok(told(quota, used + wanted))
    }
}

fn told(quota: Quota, used: u128) -> Told {
    let whole = u128::from(quota.events) * window_ms(quota);
    Told {
        quota,
        left: small((whole - used.min(whole)) / window_ms(quota)),
        seconds: small(used.div_ceil(u128::from(quota.events.max(1))).div_ceil(1_000)),
    }
}

fn exceeded(told: Told, events: usize, wait: u64) -> ApiError {
    let detail = if events as u64 > told.quota.events {
        format!(
            "these are {events} events, and the quota is {}: send fewer at once",
            told.quota.events
        )
    } else {
        format!("the quota has room for {} more events now", told.left)
    };
    let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail)
        .of_kind(QUOTA_EXCEEDED, "Quota exceeded")
        .violating(NAME)
        .with_header(header::RETRY_AFTER, HeaderValue::from(wait.max(1)));
    for (name, value) in &told.headers() {
        error = error.with_header(name.clone(), value.clone());
    }
    error
}

impl Told {
    /// The two header fields.
    pub(super) fn headers(self) -> HeaderMap {
        let Quota { events, seconds } = self.quota;
        let policy = format!("\"{NAME}\";q={events};qu=\"events\";w={seconds}");
        let left = format!("\"{NAME}\";r={};t={}", self.left, self.seconds);
        let value = |text: &str| HeaderValue::from_str(text).ok();
        let both = [(POLICY, value(&policy)), (LEFT, value(&left))];
        both.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
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
        let (limits, who) = (RateLimits::default(), Uuid::from_u128(1));
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
        let (limits, who) = (RateLimits::default(), Uuid::from_u128(1));
        let later = NOW.plus(Duration::from_secs(1_000_000));
        limits.take(who, QUOTA, 4, later).unwrap();
        assert_eq!(limits.take(who, QUOTA, 1, NOW).unwrap().left, 5);
        assert_eq!(limits.take(who, QUOTA, 5, NOW.plus(Duration::from_secs(60))).unwrap().left, 5);
    }

    #[test]
    fn who_has_nothing_used_is_forgotten() {
        let limits = RateLimits::default();
        for who in 0..REMEMBERED_MAX as u128 {
            limits.take(Uuid::from_u128(who), QUOTA, 1, NOW).unwrap();
        }
        let later = NOW.plus(Duration::from_secs(60));
        limits.take(Uuid::from_u128(u128::MAX), QUOTA, 1, later).unwrap();
        assert_eq!(limits.0.lock().unwrap().len(), 1);
    }
}
