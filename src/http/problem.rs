//! Problem documents (RFC 9457): the one place where errors become statuses.
//!
//! A handler returns an [`ApiError`]. It travels in the response's extensions to the outermost
//! layer, which alone knows the request's path and ids, and is written there.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use souk_actors::aggregate::Rejection;
use souk_actors::command::{CommandError, Unavailable};
use souk_actors::event::DecodeError;
use souk_actors::journal;
use utoipa::ToSchema;

use crate::projections::ReadError;

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
pub struct FieldProblem {
    /// Where: a JSON pointer into the request's body, or the name of a parameter.
    pub pointer: String,
    /// What is wrong, as a stable code.
    pub code: String,
    /// What is wrong, for people.
    pub detail: String,
}

impl FieldProblem {
    /// A problem of the field at `pointer`.
    pub fn new(pointer: impl Into<String>, code: &str, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), code: code.to_owned(), detail: detail.into() }
    }
}

/// A problem document.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem and leads to its description.
    #[serde(rename = "type")]
    #[schema(example = "/problems/email_taken")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The path that was asked for.
    pub instance: String,
    /// Names the kind of problem, for programs.
    #[schema(example = "email_taken")]
    pub code: String,
    /// Every wrong field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldProblem>,
    /// Finds the request in logs and events.
    pub correlation_id: String,
    /// Finds the request in traces.
    pub trace_id: String,
    /// The aggregate's version, where the request named another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<u64>,
    /// Finds the failure in the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_id: Option<String>,
    /// The quotas that are used up, by the names that `RateLimit-Policy` gives them.
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    pub violated_policies: Vec<String>,
}

/// Why a request was refused or failed.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    status: StatusCode,
    code: String,
    detail: String,
    errors: Vec<FieldProblem>,
    headers: Vec<(HeaderName, HeaderValue)>,
    current_version: Option<u64>,
    error_id: Option<String>,
    /// The registered kind and its title, where the problem is one of those.
    kind: Option<(&'static str, &'static str)>,
    violated_policies: Vec<String>,
}

/// What the outermost layer knows of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) instance: &'a str,
    pub(super) correlation_id: &'a str,
    pub(super) trace_id: &'a str,
}

impl ApiError {
    /// A problem with a status of its own choice.
    pub fn new(status: StatusCode, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            status,
            code: code.into(),
            detail: detail.into(),
            errors: Vec::new(),
            headers: Vec::new(),
            current_version: None,
            error_id: None,
            kind: None,
            violated_policies: Vec::new(),
        }))
    }

    /// 400: the request cannot be read.
    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401: nobody, or nobody any more.
    pub fn unauthorized(code: &str, detail: impl Into<String>) -> Self {
        let challenge = match code {
            "unauthenticated" => "Bearer",
            _ => "Bearer error=\"invalid_token\"",
        };
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 403: known, but not allowed.
    pub fn forbidden(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 404: no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 409: it is not so.
    pub fn conflict(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422: these fields are wrong.
    pub fn invalid(errors: Vec<FieldProblem>) -> Self {
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "some fields are not valid");
        problem.0.errors = errors;
        problem
    }

    /// 422: the request is well formed and this in it cannot be done.
    pub fn unprocessable(code: &str, pointer: &str, detail: &str) -> Self {
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
        problem.0.errors = vec![FieldProblem::new(pointer, code, detail)];
        problem
    }

    /// 422: this field is wrong.
    pub fn invalid_field(pointer: &str, code: &str, detail: &str) -> Self {
        Self::invalid(vec![FieldProblem::new(pointer, code, detail)])
    }

    /// 503: come back after `retry_after`.
    pub fn unavailable(code: &str, detail: impl Into<String>, retry_after: Duration) -> Self {
        let seconds = retry_after.as_secs().max(1);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// 500: a bug. The caller gets the id, the log has the cause.
    pub fn internal(error_id: impl Into<String>) -> Self {
        let mut problem = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something failed inside; the logs know it by error_id and correlation_id",
        );
        problem.0.error_id = Some(error_id.into());
        problem
    }

    /// The same with a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// The same as a problem of a registered kind.
    #[must_use]
    pub fn of_kind(mut self, kind: &'static str, title: &'static str) -> Self {
        self.0.kind = Some((kind, title));
        self
    }

    /// The same with a quota that is used up.
    #[must_use]
    pub fn violating(mut self, policy: &str) -> Self {
        self.0.violated_policies.push(policy.to_owned());
        self
    }

    /// The same with what it names.
    #[must_use]
    pub fn naming(mut self, errors: Vec<FieldProblem>) -> Self {
        self.0.errors = errors;
        self
    }

    /// The same with the aggregate's version.
    #[must_use]
    pub fn with_version(mut self, version: u64) -> Self {
        self.0.current_version = Some(version);
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The code.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The wrong fields.
    pub fn errors(&self) -> &[FieldProblem] {
        &self.0.errors
    }

    /// What an answer of the framework's own (405, a bad path) says as a problem.
    pub(super) fn from_status(status: StatusCode) -> Self {
        let detail = match status {
            StatusCode::BAD_REQUEST => "the path does not have the right form",
            StatusCode::NOT_FOUND => "there is nothing at this path",
            StatusCode::METHOD_NOT_ALLOWED => "this path does not take this method; see Allow",
            _ => status.canonical_reason().unwrap_or("the request failed"),
        };
        Self::new(status, code_of(status), detail)
    }

    /// The finished document.
    pub(super) fn render(&self, about: About<'_>) -> Problem {
        let inner = &self.0;
        Problem {
            kind: inner
                .kind
                .map_or_else(|| format!("/problems/{}", inner.code), |(kind, _)| kind.to_owned()),
            title: inner.kind.map_or_else(|| title_of(&inner.code), |(_, title)| title.to_owned()),
            status: inner.status.as_u16(),
            detail: inner.detail.clone(),
            instance: about.instance.to_owned(),
            code: inner.code.clone(),
            errors: inner.errors.clone(),
            correlation_id: about.correlation_id.to_owned(),
            trace_id: about.trace_id.to_owned(),
            current_version: inner.current_version,
            error_id: inner.error_id.clone(),
            violated_policies: inner.violated_policies.clone(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.0.status;
        for (name, value) in &self.0.headers {
            response.headers_mut().append(name, value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// A rejection's code decides its status; most say that things are not as the caller thought.
fn status_of(code: &str) -> StatusCode {
    match code {
        "invalid" | "category_unknown" => StatusCode::UNPROCESSABLE_ENTITY,
        "not_found" | "token_unknown" | "listing_not_found" | "category_not_found"
        | "return_not_found" | "address_not_found" => StatusCode::NOT_FOUND,
        "forbidden" | "not_owner" | "not_the_owner" | "suspended" | "not_a_seller" => {
            StatusCode::FORBIDDEN
        }
        "token_expired" | "erased" => StatusCode::GONE,
        "session_revoked" | "session_expired" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::CONFLICT,
    }
}

fn code_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "bad_request",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::REQUEST_TIMEOUT => "request_timeout",
        StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
        StatusCode::URI_TOO_LONG => "uri_too_long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "head_too_large",
        status if status.is_server_error() => "internal",
        _ => "request_failed",
    }
}

/// `email_taken` reads "Email taken".
fn title_of(code: &str) -> String {
    let mut title = code.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

/// A rejection that names wrong fields holds them under `errors`, whatever aggregate it is of.
fn fields_of(rejection: &impl Rejection) -> Vec<FieldProblem> {
    #[derive(serde::Deserialize)]
    struct WithErrors {
        #[serde(default)]
        errors: Vec<FieldProblem>,
    }
    let fields = serde_json::to_value(rejection).and_then(serde_json::from_value::<WithErrors>);
    fields.map(|fields| fields.errors).unwrap_or_default()
}

impl<R: Rejection> From<CommandError<R>> for ApiError {
    fn from(error: CommandError<R>) -> Self {
        match error {
            CommandError::Rejected { rejection, version: _, replayed } => {
                let (code, detail) = (rejection.code(), rejection.to_string());
                let mut problem = match status_of(code) {
                    StatusCode::UNAUTHORIZED => Self::unauthorized(code, detail),
                    status => Self::new(status, code, detail),
                };
                problem.0.errors = fields_of(&rejection);
                if replayed {
                    problem = problem
                        .with_header(super::IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
                }
                problem
            }
            CommandError::VersionMismatch { current } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "version_mismatch",
                format!("the current version is {current}"),
            )
            .with_version(current),
            CommandError::KeyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "this Idempotency-Key was used for another request",
            ),
            CommandError::Unavailable(reason) => reason.into(),
            CommandError::OutcomeUnknown => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome_unknown",
                "the journal did not say whether it stored this; repeat with the same Idempotency-Key",
            ),
            CommandError::Internal(id) => Self::internal(id.to_string()),
        }
    }
}

impl From<Unavailable> for ApiError {
    fn from(reason: Unavailable) -> Self {
        let mut problem =
            Self::unavailable(reason.code(), reason.to_string(), reason.retry_after());
        if let Unavailable::Quarantined(error_id) = reason {
            problem.0.error_id = Some(error_id.to_string());
        }
        problem
    }
}

impl From<journal::Error> for ApiError {
    fn from(error: journal::Error) -> Self {
        if let journal::Error::Damaged(_) = error {
            let id = uuid_of_failure();
            tracing::error!(error = &error as &dyn std::error::Error, error_id = %id, "a stored row is damaged");
            let mut problem = Self::unavailable(
                "journal_damaged",
                "what is stored here is damaged and is not shown; the logs know more by error_id",
                Duration::from_secs(60),
            );
            problem.0.error_id = Some(id);
            return problem;
        }
        tracing::warn!(error = &error as &dyn std::error::Error, "the journal could not be read");
        Self::unavailable(
            "journal_unavailable",
            "the journal cannot be read at the moment",
            Duration::from_secs(2),
        )
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "a read model could not be read");
        Self::unavailable(
            "read_model_unavailable",
            "this view cannot be read at the moment",
            Duration::from_secs(2),
        )
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        let id = uuid_of_failure();
        tracing::error!(error = &error as &dyn std::error::Error, error_id = %id, "undecodable event");
        Self::internal(id)
    }
}

/// An id for a failure that has none yet.
pub(super) fn uuid_of_failure() -> String {
    use souk_actors::world::{SystemWorld, World as _};
    souk_actors::command::ErrorId(SystemWorld::new().new_id()).to_string()
}

/// The kinds of problem that HTTP itself brings, with what they mean. The domain's rejections are
/// described in the event and API documents.
const CATALOGUE: &[(&str, u16, &str)] = &[
    ("malformed_json", 400, "The body is not JSON. The detail says where reading stopped."),
    ("bad_request", 400, "The request cannot be read."),
    ("invalid_parameter", 400, "A query or path parameter does not have the right form."),
    ("invalid_cursor", 400, "The cursor was not given out by this service, or for another list."),
    ("idempotency_key_required", 400, "Send an Idempotency-Key, so that a repeat can be told."),
    ("invalid_idempotency_key", 400, "Idempotency-Key is empty, too long or not visible ASCII."),
    ("unauthenticated", 401, "Send Authorization: Bearer with an access token."),
    ("invalid_token", 401, "The token is not valid (any more). Log in or refresh it."),
    ("invalid_credentials", 401, "The address or the password is wrong."),
    ("session_revoked", 401, "The session has ended. Log in again."),
    ("account_suspended", 403, "An administrator has suspended this account."),
    ("wrong_password", 403, "The password is wrong; nothing happened."),
    ("open_orders", 409, "Orders are not finished; errors names each with what is to be done."),
    (
        "too_many_attempts",
        429,
        "Too many wrong passwords of late. Retry after Retry-After, or have the password reset.",
    ),
    ("insufficient_scope", 403, "The token is valid but does not allow this."),
    ("forbidden", 403, "The caller may not do this."),
    ("foreign_host", 403, "The routes of development mode are reached as localhost only."),
    ("foreign_origin", 403, "The routes of development mode are not for other sites' pages."),
    ("not_found", 404, "There is no such thing, or not for this caller."),
    ("method_not_allowed", 405, "The path exists but not with this method; see Allow."),
    ("request_timeout", 408, "The body took too long to arrive."),
    ("email_taken", 409, "Another user has this e-mail address."),
    ("listing_unavailable", 409, "The listing is not active or has too few left."),
    ("self_purchase", 409, "Sellers cannot buy their own listings."),
    ("invalid_transition", 409, "The order's state does not allow this."),
    ("too_early", 409, "The order has not come so far yet; wait for its status and repeat."),
    ("self_follow", 409, "Nobody can follow themselves."),
    ("already_reviewed", 409, "An order is reviewed once."),
    ("order_not_completed", 409, "The order has not been delivered (yet)."),
    ("review_window_closed", 409, "An order can be reviewed for 30 days after its delivery."),
    ("already_replied", 409, "A review has one reply; PUT changes it for 24 hours."),
    ("not_replied", 409, "There is no reply to change; POST writes one."),
    ("reply_window_closed", 409, "A reply can be changed for 24 hours."),
    ("review_hidden", 409, "An administrator has hidden the review."),
    (
        "position_archived",
        410,
        "What comes next is older than what is streamed (STREAM_RETENTION).",
    ),
    (
        "version_mismatch",
        412,
        "If-Match names another version; current_version is the current one.",
    ),
    ("payload_too_large", 413, "The body is larger than the service takes."),
    ("uri_too_long", 414, "The path and query are longer than the service takes."),
    ("head_too_large", 431, "The header fields are larger than the service takes."),
    ("unsupported_media_type", 415, "Send application/json, not compressed."),
    ("invalid", 422, "Some fields are missing or wrong; errors names every one by JSON pointer."),
    ("idempotency_key_reused", 422, "The key was used before with another body."),
    ("address_unknown", 422, "There is no such address in the buyer's address book."),
    ("sku_unknown", 422, "Nothing is offered under this sku."),
    ("sku_ambiguous", 422, "Several sellers offer this sku; name the listing instead."),
    (
        "state_unreadable",
        409,
        "No state can be made of the aggregate's events; an earlier version can be seen.",
    ),
    ("event_type_reserved", 409, "The name begins with a word of the marketplace's own types."),
    ("incompatible_schema", 409, "Within a major version a schema may only grow."),
    ("version_order", 409, "Versions of an event type only rise, majors by one."),
    ("event_id_taken", 409, "An event of another type has this source and id."),
    ("sequence_taken", 409, "Another event of this source and key has this number."),
    ("sequence_passed", 409, "This number has had its turn, with another event."),
    ("sequence_buffer_full", 409, "Too many events wait for an earlier one: send that first."),
    ("nothing_held", 409, "No event of this source and key is held back."),
    ("quota_exceeded", 429, "The quota of RateLimit-Policy is used up. Retry after Retry-After."),
    ("precondition_required", 428, "Send If-Match with the version this change rests on."),
    ("internal", 500, "A failure inside, known to the logs by error_id."),
    ("overloaded", 503, "Too much is in flight; nothing happened. Retry after Retry-After."),
    (
        "too_many_streams",
        503,
        "Every place for a stream of events is taken. Retry after Retry-After.",
    ),
    ("too_many_logins", 503, "Too many passwords are being checked. Retry after Retry-After."),
    ("draining", 503, "The service is stopping; nothing happened."),
    ("journal_unavailable", 503, "The journal cannot be reached; nothing happened."),
    (
        "disk_low",
        503,
        "The disk is almost full; nothing happened. Reads go on; an operator has to free space.",
    ),
    ("audit_unavailable", 503, "The audit could not read everything that it compares."),
    ("read_model_unavailable", 503, "The view cannot be read at the moment."),
    ("projection_behind", 503, "The view has not reached min_position in time."),
    ("restarting", 503, "The aggregate is starting again; nothing happened."),
    (
        "journal_damaged",
        503,
        "What is stored is not what was written, so it is not shown. An operator has to mend it.",
    ),
    (
        "quarantined",
        503,
        "The aggregate failed repeatedly, or its stored events are damaged, and it waits for an operator.",
    ),
    ("rebuild_exists", 409, "There is a version beside the one that serves: discard it first."),
    ("no_rebuild", 409, "There is no version of this read model beside the one that serves."),
    (
        "rebuild_not_ready",
        409,
        "The version does not stand so that this can be done; detail says why.",
    ),
    ("replay_exists", 409, "A replay of this subscription is running: wait for it or cancel it."),
    ("replay_over", 409, "The replay has ended."),
    ("replay_of_projection", 422, "A read model skips what it has: rebuild it instead."),
    ("subscription_unknown", 422, "There is no such subscription."),
    ("deadline_passed", 503, "The command could not run in time; nothing happened."),
    ("outcome_unknown", 504, "It is not known whether this happened. Repeat with the same key."),
];

/// What `/problems/{code}` says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProblemKind {
    /// Names the kind of problem.
    pub code: String,
    /// The same for people.
    pub title: String,
    /// The status it comes with.
    pub status: u16,
    /// What it means.
    pub description: String,
}

/// The description of a kind of problem. Codes of the domain are described by what is common to
/// them; a code that could not be one has no description.
pub(super) fn describe(code: &str) -> Option<ProblemKind> {
    let known = CATALOGUE.iter().find(|(known, ..)| *known == code);
    let status = known.map_or_else(|| status_of(code).as_u16(), |(_, status, _)| *status);
    let plausible = (1..=64).contains(&code.len())
        && code
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    plausible.then(|| ProblemKind {
        code: code.to_owned(),
        title: title_of(code),
        status,
        description: known.map_or_else(
            || "A rule of the marketplace refused the request; detail says which.".to_owned(),
            |(_, _, description)| (*description).to_owned(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
    #[serde(tag = "code", rename_all = "snake_case")]
    enum No {
        #[error("taken")]
        EmailTaken,
        #[error("wrong")]
        Invalid { errors: Vec<FieldProblem> },
        #[error("over")]
        SessionRevoked,
        #[error("too late")]
        SessionExpired,
    }

    impl Rejection for No {
        fn code(&self) -> &'static str {
            match self {
                Self::EmailTaken => "email_taken",
                Self::Invalid { .. } => "invalid",
                Self::SessionRevoked => "session_revoked",
                Self::SessionExpired => "session_expired",
            }
        }
    }

    fn rejected(rejection: No) -> ApiError {
        CommandError::Rejected { rejection, version: 3, replayed: false }.into()
    }

    #[test]
    fn a_rejection_becomes_a_conflict_with_its_code() {
        let error = rejected(No::EmailTaken);
        assert_eq!((error.status(), error.code()), (StatusCode::CONFLICT, "email_taken"));
        let about = About { instance: "/x", correlation_id: "c", trace_id: "t" };
        let json = serde_json::to_value(error.render(about)).unwrap();
        assert_eq!(json["type"], "/problems/email_taken");
        assert_eq!(json["title"], "Email taken");
        assert_eq!(json["correlation_id"], "c");
        assert!(json.get("errors").is_none());
    }

    #[test]
    fn a_rejection_that_is_unauthorized_says_how_to_come_in() {
        for rejection in [No::SessionRevoked, No::SessionExpired] {
            let response = rejected(rejection).into_response();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            let challenge = &response.headers()[header::WWW_AUTHENTICATE];
            assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        }
    }

    #[test]
    fn wrong_fields_keep_their_pointers() {
        let errors = vec![FieldProblem::new("/email", "invalid_email", "no")];
        let error = rejected(No::Invalid { errors: errors.clone() });
        assert_eq!(error.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(error.errors(), errors);
    }

    #[test]
    fn refusals_say_when_to_come_back() {
        let response = ApiError::from(Unavailable::Journal).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn every_kind_resolves_and_nonsense_does_not() {
        for (code, status, _) in CATALOGUE {
            assert_eq!(describe(code).unwrap().status, *status, "{code}");
        }
        assert_eq!(describe("already_seller").unwrap().status, 409);
        assert!(describe("No%20such").is_none());
    }
}
