//! The dead-letter queue. Events of one key wait behind a dead one until it is retried or
//! discarded; other keys go on.

use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::Call;
use super::params::Params;
use super::problem::ApiError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_letters))
        .routes(routes!(retry_letter))
        .routes(routes!(discard_letter))
}

/// A dead letter: a pointer to an event, why it could not be handled, how often and since when.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct LetterBody(pub Value);

/// What became of a letter.
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
}

/// Which letter is given up.
#[derive(ToSchema)]
pub struct Discard {
    /// The position of the letter's event; the key's first letter when absent.
    pub position: Option<u64>,
}

impl FromFields for Discard {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let position = fields.optional_integer(&["position"]);
        Some(Self { position: position.and_then(|at| u64::try_from(at).ok()) })
    }
}

/// Dead letters
#[utoipa::path(get, path = "/dlq", tag = "dlq",
    params(("subscription" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, description = "Letters, the oldest first", body = Page<LetterBody>)))]
async fn list_letters(
    State(app): State<App>,
    call: Call,
    params: Params,
) -> Result<Answer<Page<LetterBody>>, ApiError> {
    call.staff()?;
    let limit = usize::try_from(params.limit()?).unwrap_or(usize::MAX);
    let letters = app.runtime().dead_letters().list(params.text("subscription"), limit + 1).await?;
    let has_more = letters.len() > limit;
    let shown = letters.iter().take(limit).filter_map(|letter| serde_json::to_value(letter).ok());
    let data = shown.map(LetterBody).collect();
    Ok(Answer::ok(Page { data, next_cursor: None, has_more }))
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such letter")
}

/// Try a key's letters again, in order
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/retry", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    responses((status = 200, description = "They are being tried", body = ResolvedBody)))]
async fn retry_letter(
    State(app): State<App>,
    call: Call,
    Path((subscription, partition, key)): Path<(String, u16, Uuid)>,
    _: Valid<Nothing>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    call.staff()?;
    if !app.runtime().dead_letters().retry(&subscription, partition, key).await? {
        return Err(missing());
    }
    Ok(Answer::ok(ResolvedBody { subscription, partition, key, verb: "retry" }))
}

/// Give a letter up
///
/// Its event is skipped for this subscription, and the key's later events go on.
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/discard", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    request_body = Discard,
    responses((status = 200, description = "It is given up", body = ResolvedBody)))]
async fn discard_letter(
    State(app): State<App>,
    call: Call,
    Path((subscription, partition, key)): Path<(String, u16, Uuid)>,
    valid: Valid<Discard>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    call.staff()?;
    let letters = app.runtime().dead_letters();
    let position = match valid.body.position {
        Some(position) => position,
        None => {
            let all = letters.list(Some(&subscription), usize::MAX >> 1).await?;
            let mut of_key = all.iter().filter(|of| of.partition == partition && of.key == key);
            of_key.next().ok_or_else(missing)?.position
        }
    };
    if !letters.discard(&subscription, partition, key, position).await? {
        return Err(missing());
    }
    Ok(Answer::ok(ResolvedBody { subscription, partition, key, verb: "discard" }))
}
