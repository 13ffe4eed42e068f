//! The dead-letter queue. Events of one key wait behind a dead one until it is retried, skipped or
//! discarded; other keys go on.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use souk_actors::journal::{Letter, LetterState};
use souk_actors::oversight::Oversight;
use souk_actors::runtime::{LetterGroup, LetterPlace, LetterQuery};
use souk_actors::subscriber::{Redrive, RedriveError, Redriven, Work};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Fields, FromFields, Reason, Valid};
use super::call::{Call, Staff};
use super::conditional::IfNoneMatch;
use super::event_json::{Form, write};
use super::params::Params;
use super::problem::ApiError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_letters))
        .routes(routes!(list_groups))
        .routes(routes!(get_queue))
        .routes(routes!(retry_letter))
        .routes(routes!(skip_letter))
        .routes(routes!(discard_letter))
}

/// A dead letter: a pointer to an event, why it could not be handled, how often and since when, and
/// the fingerprint of its kind of failure.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct LetterBody(pub Value);

impl From<Letter> for LetterBody {
    fn from(letter: Letter) -> Self {
        let fingerprint = letter.fingerprint();
        let mut body = serde_json::to_value(letter).unwrap_or_default();
        body["fingerprint"] = Value::from(fingerprint);
        Self(body)
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
    /// `retry`, `skip` or `discard`.
    pub verb: &'static str,
    /// How many letters were handled now.
    pub handled: usize,
    /// How many were given up.
    pub discarded: usize,
    /// How many were set aside.
    pub skipped: usize,
    /// How many still hold the key up: none unless one failed again.
    pub left: usize,
}

/// A key's letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueBody {
    /// The subscription.
    pub subscription: String,
    /// The partition.
    pub partition: u16,
    /// The key.
    pub key: Uuid,
    /// The first letter, which holds the key up, with its cause; none: only skipped ones are left.
    pub head: Option<LetterBody>,
    /// The first letter's event, as it is read now: upcast, and without what was erased.
    #[schema(value_type = Option<Object>)]
    pub event: Option<Value>,
    /// How many wait behind it.
    pub waiting: usize,
    /// Those that were set aside, by position.
    pub skipped: Vec<LetterBody>,
    /// Where it is recorded what people did with letters of this subscription, with who and why.
    pub history: String,
}

/// Letters that failed in the same way.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct GroupBody(pub Value);

impl From<LetterGroup> for GroupBody {
    fn from(group: LetterGroup) -> Self {
        let example = LetterBody::from(group.example.clone()).0;
        let mut body = serde_json::to_value(group).unwrap_or_default();
        body["example"] = example;
        Self(body)
    }
}

/// What to do with which letter of a key, and why.
#[derive(ToSchema)]
pub struct LetterWork {
    /// The reason, for those it concerns. It is recorded.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
    /// The position of a skipped letter, which is then worked alone; none: the key's first.
    #[schema(minimum = 1)]
    pub position: Option<u64>,
}

impl FromFields for LetterWork {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let reason = Reason::from_fields(fields)?.reason;
        let position = fields.optional_integer(&["position"]);
        match position.map(u64::try_from) {
            None => Some(Self { reason, position: None }),
            Some(Ok(position)) if position > 0 => Some(Self { reason, position: Some(position) }),
            Some(_) => {
                fields.error("position", "too_small", "must be at least 1");
                None
            }
        }
    }
}

/// The letters that a query means.
fn query(params: &Params) -> Result<LetterQuery, ApiError> {
    let text = |name: &str| params.text(name).map(str::to_owned);
    let wrong = |name: &str, detail: String| ApiError::invalid_field(name, "invalid", &detail);
    let state = params.text("state").map(str::parse::<LetterState>).transpose();
    let key = params.text("key").map(str::parse::<Uuid>).transpose();
    Ok(LetterQuery {
        subscription: text("subscription"),
        partition: params.parsed("partition")?,
        key: key.map_err(|_| wrong("key", "must be a UUID".to_owned()))?,
        state: state.map_err(|problem| wrong("state", problem.to_string()))?,
        class: text("class"),
        event_type: text("event_type"),
        fingerprint: text("fingerprint"),
    })
}

/// Dead letters
///
/// With `fingerprint`, those that failed in the same way, as the groups name it.
#[utoipa::path(get, path = "/dlq", tag = "dlq",
    params(("subscription" = Option<String>, Query), ("partition" = Option<u16>, Query),
        ("key" = Option<String>, Query), ("state" = Option<String>, Query),
        ("class" = Option<String>, Query), ("event_type" = Option<String>, Query),
        ("fingerprint" = Option<String>, Query), ("limit" = Option<u32>, Query),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "Letters, by partition, subscription and position",
        body = Page<LetterBody>)))]
async fn list_letters(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<LetterBody>>, ApiError> {
    let (limit, behind) = (params.limit()?, params.cursor::<LetterPlace>(app.cursors())?);
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1);
    let letters = app.runtime().dead_letters();
    let letters = letters.page(&query(&params)?, behind.as_ref(), wanted).await?;
    Ok(params.rows(&app, letters, limit, place))
}

pub(super) fn place(letter: &Letter) -> LetterPlace {
    (letter.partition, letter.subscription.to_string(), letter.position)
}

/// Dead letters by kind of failure
///
/// Letters of one subscription whose failures have the same class and the same message, apart from
/// numbers, ids and quoted values in it. The most frequent kind comes first; letters that only wait
/// are not counted.
#[utoipa::path(get, path = "/dlq/groups", tag = "dlq",
    params(("subscription" = Option<String>, Query), ("partition" = Option<u16>, Query),
        ("key" = Option<String>, Query), ("state" = Option<String>, Query),
        ("class" = Option<String>, Query), ("event_type" = Option<String>, Query),
        ("fingerprint" = Option<String>, Query)),
    responses((status = 200, description = "All of them", body = Page<GroupBody>)))]
async fn list_groups(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<GroupBody>>, ApiError> {
    let groups = app.runtime().dead_letters().groups(&query(&params)?).await?;
    Ok(Answer::ok(Page::whole(groups.into_iter().map(GroupBody::from).collect())))
}

/// A key's dead letters
///
/// The first of them with its cause and its event, how many wait behind it, and those that were set
/// aside. The `ETag` is the first letter's: send it as `If-Match` to work just that one.
#[utoipa::path(get, path = "/dlq/{subscription}/{partition}/{key}", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    responses((status = 200, description = "The key's letters", body = QueueBody)))]
async fn get_queue(
    State(app): State<App>,
    Staff(call): Staff,
    Path((subscription, partition, key)): Path<(String, u16, Uuid)>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let queue = app.runtime().dead_letters().queue(&subscription, partition, key).await?;
    let queue = queue.ok_or_else(missing)?;
    let event = match &queue.head {
        None => None,
        Some(head) => app.runtime().journal().event(head.event_id).await?,
    };
    let event = match event {
        None => None,
        Some(event) => Some(write(&app, &event, Form::Native, call.reveal()).await?),
    };
    // No letter has this revision: what is only skipped is named by its position.
    let revision = queue.head.as_ref().map_or(0, Letter::revision);
    let stream = Oversight::id_of(&subscription);
    let body = QueueBody {
        history: format!("/api/v1/events?aggregateType=subscription&aggregateId={stream}"),
        subscription,
        partition,
        key,
        head: queue.head.map(LetterBody::from),
        event,
        waiting: queue.waiting,
        skipped: queue.skipped.into_iter().map(LetterBody::from).collect(),
    };
    Ok(Answer::ok(body).at_version(revision, &theirs))
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such letter")
}

fn refusal(error: RedriveError) -> ApiError {
    match error {
        RedriveError::Gone => missing(),
        RedriveError::Changed { current } => ApiError::new(
            StatusCode::PRECONDITION_FAILED,
            "version_mismatch",
            "the letter is another one, or it failed again since: look at it first",
        )
        .with_version(current),
        waits @ RedriveError::Waits { .. } => {
            ApiError::conflict("invalid_state", format!("{waits}; work that one first"))
        }
        RedriveError::Failed(failure) => {
            let retry_after = std::time::Duration::from_secs(1);
            ApiError::unavailable("redrive_failed", failure.message, retry_after)
        }
    }
}

async fn redrive(
    app: &App,
    call: &Call,
    (subscription, partition, key): (String, u16, Uuid),
    (what, verb): (Redrive, &'static str),
    body: LetterWork,
) -> Result<Answer<ResolvedBody>, ApiError> {
    let work = Work { what, position: body.position, expected: call.if_match.version() };
    let letters = app.runtime().dead_letters();
    let context = call.plain_context(app);
    let done = letters.redrive(&subscription, partition, key, work, context, body.reason).await;
    let done = done.map_err(refusal)?.ok_or_else(missing)?;
    let Redriven { handled, discarded, skipped, left, recorded } = done;
    let body =
        ResolvedBody { subscription, partition, key, verb, handled, discarded, skipped, left };
    Ok(Answer::ok(body).after_all(recorded))
}

/// Try a key's letters again, in order
///
/// With `position`, a skipped letter alone.
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/retry", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    request_body = LetterWork,
    responses((status = 200, description = "How far that came", body = ResolvedBody)))]
async fn retry_letter(
    State(app): State<App>,
    Staff(call): Staff,
    Path(letter): Path<(String, u16, Uuid)>,
    valid: Valid<LetterWork>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    redrive(&app, &call, letter, (Redrive::Retry, "retry"), valid.body).await
}

/// Set a key's first letter aside
///
/// The key's later events go on; the letter stays visible as `skipped` and can be retried or
/// discarded by its position later. Needs `If-Match` with the `ETag` of the key's letters.
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/skip", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    request_body = LetterWork,
    responses((status = 200, description = "How far that came", body = ResolvedBody)))]
async fn skip_letter(
    State(app): State<App>,
    Staff(call): Staff,
    Path(letter): Path<(String, u16, Uuid)>,
    valid: Valid<LetterWork>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    call.if_match.required()?;
    redrive(&app, &call, letter, (Redrive::Skip, "skip"), valid.body).await
}

/// Give a key's first letter up
///
/// Its event is dropped for this subscription, and the key's later events go on. With `position`, a
/// skipped letter is given up. Needs `If-Match` with the `ETag` of the key's letters, or `*`.
#[utoipa::path(post, path = "/dlq/{subscription}/{partition}/{key}/discard", tag = "dlq",
    params(("subscription" = String, Path), ("partition" = u16, Path), ("key" = Uuid, Path)),
    request_body = LetterWork,
    responses((status = 200, description = "How far that came", body = ResolvedBody)))]
async fn discard_letter(
    State(app): State<App>,
    Staff(call): Staff,
    Path(letter): Path<(String, u16, Uuid)>,
    valid: Valid<LetterWork>,
) -> Result<Answer<ResolvedBody>, ApiError> {
    call.if_match.required()?;
    redrive(&app, &call, letter, (Redrive::Discard, "discard"), valid.body).await
}
