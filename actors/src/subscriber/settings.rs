//! What people change of a subscription while it runs: its retry policy and its time limit.
//!
//! What they set is an event on the subscription's stream, and a control row in the same
//! transaction, from which the next start takes it.

use std::time::Duration;

use crate::oversight::{Oversight, RetrySettings};
use crate::retry::RetryPolicy;

use super::Subscription;

/// Control rows with retry policies: the name of the subscription, and [`RetrySettings`] as JSON.
pub(crate) const RETRY_SPACE: &str = "subscription.retry_policy";
/// Control rows with time limits: the name of the subscription, and milliseconds as JSON.
pub(crate) const TIMEOUT_SPACE: &str = "subscription.handler_timeout";

/// What was set by people; none: what the subscription was declared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub retry: Option<RetrySettings>,
    pub handler_timeout_ms: Option<u64>,
}

impl Set {
    /// From control rows, where there are any. One that cannot be read is as good as none: a
    /// subscription with its declared policy is better than a service that does not start.
    pub(crate) fn from_rows(
        name: &'static str,
        retry: Option<&[u8]>,
        handler_timeout: Option<&[u8]>,
    ) -> Self {
        fn read<T: serde::de::DeserializeOwned>(name: &str, row: Option<&[u8]>) -> Option<T> {
            let read = serde_json::from_slice(row?);
            if let Err(error) = &read {
                tracing::error!(subscription = name, %error, "what was set for a subscription cannot be read; it runs as it was declared");
            }
            read.ok()
        }
        Self { retry: read(name, retry), handler_timeout_ms: read(name, handler_timeout) }
    }
}

impl From<&Oversight> for Set {
    fn from(oversight: &Oversight) -> Self {
        let Oversight { retry, handler_timeout_ms, .. } = oversight.clone();
        Self { retry, handler_timeout_ms }
    }
}

/// What is in force, and since which version of the subscription's stream (0: since the start).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub version: u64,
    pub retry: RetryPolicy,
    pub handler_timeout: Duration,
}

impl Settings {
    pub(crate) fn new(subscription: &Subscription, set: &Set, version: u64) -> Self {
        let declared = &subscription.retry;
        let millis = set.handler_timeout_ms.map(Duration::from_millis);
        Self {
            version,
            retry: set.retry.as_ref().map_or_else(|| declared.clone(), |set| set.over(declared)),
            handler_timeout: millis.unwrap_or(subscription.handler_timeout),
        }
    }
}
