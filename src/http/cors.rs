//! The pages of other sites (CORS): those of the origins that are listed may ask and read, no others.
//! Nothing here rests on cookies, so none are allowed.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::info::{CORRELATION_ID, REQUEST_ID, TRACEPARENT};
use super::{IDEMPOTENT_REPLAYED, POSITION, PROJECTION_POSITION, idempotency, rate_limit};

/// For how long a browser need not ask again.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// The layer, if any site is allowed.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<_> = origins.iter().filter_map(|of| HeaderValue::from_str(of).ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let prefer = HeaderName::from_static("prefer");
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            HeaderName::from_static(idempotency::HEADER),
            HeaderName::from_static("last-event-id"),
            CORRELATION_ID,
            TRACEPARENT,
            prefer,
        ])
        .expose_headers([
            header::ETAG,
            header::LINK,
            header::LOCATION,
            header::RETRY_AFTER,
            IDEMPOTENT_REPLAYED,
            POSITION,
            PROJECTION_POSITION,
            CORRELATION_ID,
            REQUEST_ID,
            rate_limit::POLICY,
            rate_limit::LEFT,
        ])
        .max_age(MAX_AGE);
    Some(layer)
}
