//! `Prefer` (RFC 7240): whether to wait for what an order leads to, or for a list to include it.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use super::problem::ApiError;

/// The request header.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// What was honoured of it.
pub const APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The longest wait.
const WAIT_MAX_SECONDS: u64 = 10;

/// What the client would like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefer {
    /// `wait=<seconds>`, at most ten.
    pub wait: Option<Duration>,
    /// `respond-async`.
    pub respond_async: bool,
}

impl Prefer {
    /// What these headers say.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split([',', ';'])).map(str::trim) {
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            if name.eq_ignore_ascii_case("respond-async") {
                prefer.respond_async = true;
            }
            let seconds = value.trim().trim_matches('"').parse::<u64>().ok();
            // A preference that cannot be read is ignored (§2), and the first one counts.
            if name.trim().eq_ignore_ascii_case("wait") && prefer.wait.is_none() {
                prefer.wait = seconds.map(|of| Duration::from_secs(of.min(WAIT_MAX_SECONDS)));
            }
        }
        prefer
    }

    /// What `Preference-Applied` says.
    pub fn applied(self) -> Option<String> {
        match (self.respond_async, self.wait) {
            (true, _) => Some("respond-async".to_owned()),
            (false, Some(wait)) => Some(format!("wait={}", wait.as_secs())),
            (false, None) => None,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Prefer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::read(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn preferences_are_read_and_bounded() {
        let read = |value: &'static str| {
            Prefer::read(&HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]))
        };
        assert_eq!(read("wait=5").wait, Some(Duration::from_secs(5)));
        assert_eq!(read("respond-async, wait=60").wait, Some(Duration::from_secs(10)));
        assert!(read("respond-async, wait=60").respond_async);
        assert_eq!(read("wait=soon"), Prefer::default());
        assert_eq!(read("wait=5").applied(), Some("wait=5".into()));
        assert_eq!(read("handling=lenient").applied(), None);
    }
}
