//! When a provider or a receiver says that it may be asked again.

use std::time::Duration;

use souk_actors::world::Timestamp;

/// From when on it may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// After this long.
    For(Duration),
    /// From this time on.
    Until(Timestamp),
}

impl RetryAfter {
    /// `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Self::For(Duration::from_secs(seconds)));
        }
        let format = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        let date = time::PrimitiveDateTime::parse(text, &format).ok()?.assume_utc();
        Some(Self::until(date.unix_timestamp()))
    }

    /// `X-RateLimit-Reset`: a time, in seconds since 1970.
    pub fn read_reset(text: &str) -> Option<Self> {
        text.trim().parse().ok().map(Self::until)
    }

    fn until(seconds: i64) -> Self {
        Self::Until(Timestamp::from_millis(seconds.saturating_mul(1_000)))
    }

    /// How long that is from now, and no longer than `max`: what a provider says is not a promise.
    pub fn wait(self, now: Timestamp, max: Duration) -> Duration {
        let wait = match self {
            Self::For(wait) => wait,
            Self::Until(at) => at.since(now),
        };
        wait.min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_asked_may_say_when_to_ask_again() {
        let now = Timestamp::parse("2026-11-20T10:30:00Z").unwrap();
        let max = Duration::from_secs(3_600);
        let wait = |said: Option<RetryAfter>| said.map(|said| said.wait(now, max).as_secs());
        let after = |text| wait(RetryAfter::read(text));
        assert_eq!(after("120"), Some(120));
        assert_eq!(after(" 120 "), Some(120));
        assert_eq!(after("Fri, 20 Nov 2026 10:31:00 GMT"), Some(60));
        assert_eq!(after("Fri, 20 Nov 2026 10:29:00 GMT"), Some(0));
        assert_eq!(after("99999999"), Some(3_600));
        for text in ["", "-1", "soon", "Fri, 20 Nov 2026"] {
            assert_eq!(after(text), None, "{text}");
        }
        let reset = |text: &str| wait(RetryAfter::read_reset(text));
        let seconds = now.millis() / 1_000;
        assert_eq!(reset(&(seconds + 90).to_string()), Some(90));
        assert_eq!(reset(&(seconds - 90).to_string()), Some(0));
        assert_eq!(reset(&i64::MAX.to_string()), Some(3_600));
        assert_eq!(reset(&i64::MIN.to_string()), Some(0));
        assert_eq!(reset("later"), None);
    }
}
