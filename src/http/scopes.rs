//! Which scope a person's key needs for which operation.
//!
//! A key acts as its owner where it has the scope, and is nobody's everywhere else: what anybody may
//! see it sees too, everything else is 403. An operation that nothing is said of here is for no key.

use axum::http::Method;

use crate::domain::service_token::{Area, KeyScope};

/// The operations for which a method counts, looked at first. No key may do as its owner, whatever it has,
/// what makes or ends ways in, sends secrets elsewhere, or cannot be taken back. `*` stands for every
/// method but `GET`, and for what is below the path too.
const EXCEPTIONS: &[(&str, &str, Option<Area>)] = &[
    ("DELETE", "/users/me", None),
    ("DELETE", "/users/{id}", None),
    ("GET", "/users/{id}/export", None),
    ("*", "/users/me/password", None),
    ("*", "/webhooks", None),
    ("POST", "/analytics/events", Some(Area::Profile)),
];

/// What the operations are about whose path begins so; the first that fits counts.
const AREAS: &[(&str, Option<Area>)] = &[
    ("/users/me/sessions", None),
    ("/users/me/api-keys", None),
    ("/users/me/favourites", Some(Area::Interests)),
    ("/users/me/following", Some(Area::Interests)),
    ("/users/{id}/follow", Some(Area::Interests)),
    ("/users/{id}/followers", Some(Area::Interests)),
    ("/users/me/notification-preferences", Some(Area::Notifications)),
    ("/users/{id}/reviews", Some(Area::Reviews)),
    ("/users/register", None),
    ("/users/verify-email", None),
    ("/users", Some(Area::Profile)),
    ("/me/listings", Some(Area::Listings)),
    ("/me/orders", Some(Area::Orders)),
    ("/me/sales", Some(Area::Orders)),
    ("/me/promotions", Some(Area::Promotions)),
    ("/me/balance", Some(Area::Payouts)),
    ("/me/payouts", Some(Area::Payouts)),
    ("/listings", Some(Area::Listings)),
    ("/images", Some(Area::Listings)),
    ("/search", Some(Area::Listings)),
    ("/orders", Some(Area::Orders)),
    ("/transactions", Some(Area::Orders)),
    ("/checkouts", Some(Area::Orders)),
    ("/shipments", Some(Area::Orders)),
    ("/promotions", Some(Area::Promotions)),
    ("/reviews", Some(Area::Reviews)),
    ("/notifications/webhook", Some(Area::Admin)),
    ("/notifications", Some(Area::Notifications)),
    ("/admin/service-tokens", None),
    ("/admin", Some(Area::Admin)),
    ("/analytics", Some(Area::Admin)),
    ("/categories", Some(Area::Admin)),
    ("/dlq", Some(Area::Admin)),
    ("/events", Some(Area::Admin)),
    ("/traces", Some(Area::Admin)),
    ("/webhooks", Some(Area::Admin)),
];

/// What a key needs for an operation; none: no key may.
pub(super) fn needed(method: &Method, route: &str) -> Option<KeyScope> {
    let path = route.strip_prefix("/api/v1")?;
    let writes = !method.is_safe();
    let below = |of: &str| {
        path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let exception = EXCEPTIONS.iter().find(|(verb, of, _)| match *verb {
        "*" => writes && below(of),
        "GET" => !writes && path == *of,
        verb => method == verb && path == *of,
    });
    let area = match exception {
        Some((_, _, area)) => *area,
        None => AREAS.iter().find(|(of, _)| below(of))?.1,
    };
    area.map(|area| KeyScope { area, writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(method: Method, path: &str) -> Option<String> {
        needed(&method, &format!("/api/v1{path}")).map(|scope| scope.to_string())
    }

    #[test]
    fn the_first_that_fits_counts_and_words_are_whole() {
        let some = |scope: &str| Some(scope.to_owned());
        assert_eq!(scope(Method::GET, "/orders/{id}"), some("orders:read"));
        assert_eq!(scope(Method::HEAD, "/orders/{id}"), some("orders:read"));
        assert_eq!(scope(Method::POST, "/orders"), some("orders:write"));
        assert_eq!(
            scope(Method::PUT, "/users/me/favourites/{listing_id}"),
            some("interests:write")
        );
        assert_eq!(scope(Method::POST, "/users/{id}/follow"), some("interests:write"));
        assert_eq!(scope(Method::PATCH, "/users/{id}"), some("profile:write"));
        assert_eq!(scope(Method::GET, "/ordersome"), None);
        assert_eq!(scope(Method::GET, "/admin/users"), some("admin:read"));
        assert_eq!(scope(Method::GET, "/webhooks"), some("admin:read"));
        assert_eq!(scope(Method::GET, "/analytics/events"), some("admin:read"));
        assert_eq!(scope(Method::POST, "/analytics/events"), some("profile:write"));
    }

    #[test]
    fn what_no_key_may_do() {
        for (method, path) in [
            (Method::POST, "/auth/logout-all"),
            (Method::POST, "/auth/password/reset"),
            (Method::POST, "/users/me/password"),
            (Method::GET, "/users/me/sessions"),
            (Method::DELETE, "/users/me/sessions/{id}"),
            (Method::POST, "/users/me/api-keys"),
            (Method::GET, "/users/me/api-keys"),
            (Method::DELETE, "/users/me"),
            (Method::DELETE, "/users/{id}"),
            (Method::GET, "/users/{id}/export"),
            (Method::HEAD, "/users/{id}/export"),
            (Method::POST, "/admin/service-tokens"),
            (Method::POST, "/webhooks/{id}/secret/rotate"),
            (Method::POST, "/dev/echo"),
            (Method::POST, "/something/new"),
        ] {
            assert_eq!(scope(method.clone(), path), None, "{method} {path}");
        }
    }
}
