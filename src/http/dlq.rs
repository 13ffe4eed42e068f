//! The dead-letter queue. Events of one key wait behind a dead one until it is retried or
//! discarded; other keys go on.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use souk_actors::journal::Letter;
use souk_actors::subscriber::{Redrive, Redriven};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Nothing, Reason, Valid};
use super::call::{Call, Staff};
use super::params::Params;
use super::problem::ApiError;

/// How many letters are read from the journal first.
const LETTERS_AT_ONCE: usize = 256;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_letters))
        .routes(routes!(retry_letter))
        .routes(routes!(discard_letter))
        .routes(routes!(list_quarantined))
        .routes(routes!(release))
}

/// A dead letter: a pointer to an event, why it could not be handled, how often and since when.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct LetterBody(pub Value);

impl From<Letter> for LetterBody {
    fn from(letter: Letter) -> Self {
        Self(serde_json::to_value(letter).unwrap_or_default())
    }
}

/// What became of a key's letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResolvedBody {
    /// The subscription.
    pub subscription: String,
    /// The partition.
    pub partition: u16,
    /// The key.
    pub key: Uuid,
    /// `retry` or `discard`.
    pub verb: &'static str,
    /// How many letters were handled now.
    pub handled: usize,
    /// How many were given up.
    pub discarded: usize,
    /// How many are left: none unless one failed again.
    pub left: usize,
}

/// Dead letters
#[utoipa::path(get, path = "/dlq", tag = "dlq",
    params(("subscription" = Option<String>, Query), ("limit" = Option<u32>, Query),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "Letters, by partition, subscription and position",
        body = Page<LetterBody>)))]
async fn list_letters(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<LetterBody>>, ApiError> {
    let (limit, after) = (params.limit()?, params.cursor::<Place>(app.cursors())?);
    let letters = letters(&app, params.text("subscription"), after.as_ref(), limit).await?;
    Ok(params.rows(&app, letters, limit, place))
}

/// Where a letter stands in the list.
type Place = (u16, String, u64);

fn place(letter: &Letter) -> Place {
    (letter.partition, letter.subscription.to_string(), letter.position)
}

/// Up to one more than `limit` of the letters behind `after`. The runtime lists from the beginning
/// only, so more and more of the list is taken until there are enough.
async fn letters(
    app: &App,
    subscription: Option<&str>,
    after: Option<&Place>,
    limit: u32,
) -> Result<Vec<Letter>, ApiError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut taken = LETTERS_AT_ONCE;
    loop {
        let mut letters = app.runtime().dead_letters().list(subscription, taken).await?;
        let is_all = letters.len() < taken;
        letters.retain(|letter| after.is_none_or(|after| place(letter) > *after));
        if is_all || letters.len() > limit {
            letters.truncate(limit.saturating_add(1));
            return Ok(letters);
        }
        taken = taken.saturating_mul(2);
    }
}

async fn redrive(
    app: &App,
    call: &Call,
    (subscription, partition, key): (String, u16, Uuid),
    (what, verb): (Redrive, &'static str),
    reason: Option<String>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    let missing = || ApiError::not_found("there is no such letter");
    let letters = app.runtime().dead_letters();
    let context = call.plain_context(app);
    let done = letters.redrive(&subscription, partition, key, what, context, reason).await;
    let done = done.map_err(|failure| {
        let retry_after = std::time::Duration::from_secs(1);
        ApiError::unavailable("redrive_failed", failure.message, retry_after)
    })?;
    let done = done.ok_or_else(missing)?;
    let Redriven { handled, discarded, left } = done;
    let body = ResolvedBody { subscription, partition, key, verb, handled, discarded, left };
    Ok(Answer::ok(body))
}

/// Try a key's letters again, in order
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/retry", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    request_body = Reason,
    responses((status = 200, description = "How far that came", body = ResolvedBody)))]
async fn retry_letter(
    State(app): State<App>,
    Staff(call): Staff,
    Path(letter): Path<(String, u16, Uuid)>,
    valid: Valid<Reason>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    redrive(&app, &call, letter, (Redrive::Retry, "retry"), valid.body.reason).await
}

/// Give a key's first letter up
///
/// Its event is skipped for this subscription, and the key's later events go on.
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/discard", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    request_body = Reason,
    responses((status = 200, description = "How far that came", body = ResolvedBody)))]
async fn discard_letter(
    State(app): State<App>,
    Staff(call): Staff,
    Path(letter): Path<(String, u16, Uuid)>,
    valid: Valid<Reason>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    redrive(&app, &call, letter, (Redrive::Discard, "discard"), valid.body.reason).await
}

/// Quarantined aggregates
///
/// Each failed again and again, and refuses commands until it is released.
#[utoipa::path(get, path = "/admin/quarantine", tag = "dlq",
    responses((status = 200, description = "All of them", body = Page<QuarantineBody>)))]
async fn list_quarantined(
    State(app): State<App>,
    _: Staff,
) -> Result<Answer<Page<QuarantineBody>>, ApiError> {
    let all = app.runtime().quarantined();
    let shown = all.iter().filter_map(|record| serde_json::to_value(record).ok());
    Ok(Answer::ok(Page::whole(shown.map(QuarantineBody).collect())))
}

/// A quarantined aggregate: which, since when, and what it failed at.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct QuarantineBody(pub Value);

/// Let a quarantined aggregate run again
#[utoipa::path(post, path = "/admin/quarantine/{aggregate_type}/{id}/release", tag = "dlq",
    params(("aggregate_type" = String, Path), ("id" = Uuid, Path)),
    responses((status = 204, description = "It runs again")))]
async fn release(
    State(app): State<App>,
    _: Staff,
    Path((aggregate_type, id)): Path<(String, Uuid)>,
    _: Valid<Nothing>,
) -> Result<StatusCode, ApiError> {
    if app.runtime().release(&aggregate_type, id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found("this aggregate is not quarantined"))
}
