//! Many letters at once: what a filter means is looked at first, and worked letter by letter, each
//! as it was when it was looked at.

use std::time::Duration;

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use souk_actors::event::Position;
use souk_actors::journal::{Letter, LetterState};
use souk_actors::runtime::{LetterPlace, LetterQuery};
use souk_actors::subscriber::{Redrive, RedriveError, Redriven, Work};
use tokio::task::JoinSet;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::Answer;
use super::body::{Fields, FromFields, Reason, Valid};
use super::call::{Call, Staff};
use super::dlq::place;
use super::problem::ApiError;

/// The most letters that one request works.
const LETTERS_MAX: u32 = 1_000;
/// Letters that are worked at the same time: as many as a subscription has lanes at most.
const AT_ONCE: usize = 16;
/// No letter is begun later: whoever asked is still there to hear the answer.
const BEGIN_WITHIN: Duration = Duration::from_secs(8);
/// Letters counted at a time.
const COUNTED_AT_ONCE: usize = 1_000;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(retry_letters))
        .routes(routes!(skip_letters))
        .routes(routes!(discard_letters))
}

/// Which letters, and whether it is meant.
#[derive(ToSchema)]
pub struct Bulk {
    /// Of one subscription only.
    pub subscription: Option<String>,
    /// Of one partition only.
    #[schema(minimum = 0, maximum = 65_535)]
    pub partition: Option<u16>,
    /// Of one key only.
    pub key: Option<Uuid>,
    /// `dead`: those that hold their keys up (the default), or `skipped`.
    #[schema(example = "dead")]
    pub state: Option<String>,
    /// Of one class of failure only.
    pub class: Option<String>,
    /// Of one type of event only.
    pub event_type: Option<String>,
    /// That failed in one way only, as the groups name it.
    pub fingerprint: Option<String>,
    /// How many letters at most.
    #[schema(minimum = 1, maximum = 1_000)]
    pub limit: u32,
    /// Whether only to say what would be done (the default).
    pub dry_run: Option<bool>,
    /// The reason, for those it concerns. It is recorded with each letter.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl FromFields for Bulk {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let reason = Reason::from_fields(fields).and_then(|of| of.reason);
        let limit = fields.count(&["limit"]);
        if limit.is_some_and(|limit| !(1..=LETTERS_MAX).contains(&limit)) {
            fields.error("limit", "out_of_range", format!("must be from 1 to {LETTERS_MAX}"));
        }
        let dry_run = match fields.value("dry_run") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(dry_run)) => Some(*dry_run),
            Some(_) => {
                fields.error("dry_run", "wrong_type", "must be true or false");
                None
            }
        };
        let state = fields.optional_text(&["state"]);
        if state.as_deref().is_some_and(|state| !matches!(state, "dead" | "skipped")) {
            fields.error("state", "unknown_value", "must be dead or skipped");
        }
        let partition = fields.optional_count(&["partition"]).map(u16::try_from);
        if matches!(partition, Some(Err(_))) {
            fields.error("partition", "out_of_range", "there is no such partition");
        }
        Some(Self {
            subscription: fields.optional_text(&["subscription"]),
            partition: partition.and_then(Result::ok),
            key: fields.optional_parsed(&["key"]),
            state,
            class: fields.optional_text(&["class"]),
            event_type: fields.optional_text(&["event_type", "eventType"]),
            fingerprint: fields.optional_text(&["fingerprint"]),
            limit: limit?,
            dry_run,
            reason,
        })
    }
}

impl Bulk {
    fn query(&self) -> LetterQuery {
        let is_skipped = self.state.as_deref() == Some("skipped");
        LetterQuery {
            subscription: self.subscription.clone(),
            partition: self.partition,
            key: self.key,
            state: Some(if is_skipped { LetterState::Skipped } else { LetterState::Dead }),
            class: self.class.clone(),
            event_type: self.event_type.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }
}

/// What was or would be done with the letters that a filter means.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkBody {
    /// `retry`, `skip` or `discard`.
    pub verb: &'static str,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// How many letters the filter meant when it was looked at.
    pub matched: usize,
    /// Letter by letter; those beyond the limit, or beyond the time that one request gets, are not
    /// named.
    pub letters: Vec<WorkedBody>,
    /// How many letters the filter means now: repeat the request for those.
    pub left: usize,
}

/// What became of one letter, and of those that waited behind it.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkedBody {
    /// The subscription.
    pub subscription: String,
    /// The partition.
    pub partition: u16,
    /// The key.
    pub key: Uuid,
    /// The letter's position.
    pub position: u64,
    /// Its event.
    pub event_id: Uuid,
    /// `would_be_done`, `done`, `failed_again`, `changed` (it was worked meanwhile), or `not_done`.
    #[schema(example = "done")]
    pub outcome: &'static str,
    /// Why it was not done.
    pub detail: Option<String>,
    /// How many letters of the key were handled.
    pub handled: usize,
    /// How many still hold the key up.
    pub left: usize,
}

/// What became of a letter.
struct Became {
    outcome: &'static str,
    detail: Option<String>,
    redriven: Redriven,
}

impl Became {
    fn of(done: Result<Option<Redriven>, RedriveError>, what: Redrive) -> Self {
        let because = |outcome, detail: Option<String>| Self {
            outcome,
            detail,
            redriven: Redriven::default(),
        };
        match done {
            Ok(Some(redriven)) => {
                let nothing = redriven.handled + redriven.discarded + redriven.skipped == 0;
                let again = what == Redrive::Retry && nothing;
                let outcome = if again { "failed_again" } else { "done" };
                Self { outcome, detail: None, redriven }
            }
            Ok(None) | Err(RedriveError::Gone | RedriveError::Changed { .. }) => {
                because("changed", None)
            }
            Err(error) => because("not_done", Some(error.to_string())),
        }
    }

    fn body(self, letter: &Letter) -> WorkedBody {
        WorkedBody {
            subscription: letter.subscription.to_string(),
            partition: letter.partition,
            key: letter.key,
            position: letter.position,
            event_id: letter.event_id,
            outcome: self.outcome,
            detail: self.detail,
            handled: self.redriven.handled,
            left: self.redriven.left,
        }
    }
}

/// How many letters a query means.
async fn count(app: &App, query: &LetterQuery) -> Result<usize, ApiError> {
    let (mut counted, mut behind) = (0, None::<LetterPlace>);
    loop {
        let letters = app.runtime().dead_letters();
        let page = letters.page(query, behind.as_ref(), COUNTED_AT_ONCE).await?;
        let Some(last) = page.last() else { return Ok(counted) };
        behind = Some(place(last));
        counted += page.len();
    }
}

async fn work(
    app: App,
    call: Call,
    (what, verb): (Redrive, &'static str),
    bulk: Bulk,
) -> Result<Answer<BulkBody>, ApiError> {
    let query = bulk.query();
    let matched = count(&app, &query).await?;
    let limit = usize::try_from(bulk.limit).unwrap_or(usize::MAX);
    let meant = app.runtime().dead_letters().page(&query, None, limit).await?;
    if bulk.dry_run.unwrap_or(true) {
        let would =
            || Became { outcome: "would_be_done", detail: None, redriven: Redriven::default() };
        let letters = meant.iter().map(|letter| would().body(letter)).collect();
        return Ok(Answer::ok(BulkBody { verb, dry_run: true, matched, letters, left: matched }));
    }
    let until = Instant::now() + BEGIN_WITHIN;
    let mut running: JoinSet<(usize, Option<Position>, WorkedBody)> = JoinSet::new();
    let mut worked = Vec::new();
    for (index, letter) in meant.into_iter().enumerate() {
        if running.len() >= AT_ONCE {
            worked.extend(running.join_next().await.and_then(Result::ok));
        }
        if Instant::now() >= until {
            break;
        }
        let (app, call, reason) = (app.clone(), call.clone(), bulk.reason.clone());
        running.spawn(async move {
            let done = work_one(&app, &call, &letter, what, reason).await;
            let became = Became::of(done, what);
            (index, became.redriven.recorded, became.body(&letter))
        });
    }
    while let Some(done) = running.join_next().await {
        worked.extend(done.ok());
    }
    worked.sort_by_key(|(index, ..)| *index);
    let recorded: Vec<_> = worked.iter().filter_map(|(_, recorded, _)| *recorded).collect();
    let letters = worked.into_iter().map(|(.., body)| body).collect();
    // What was done is told in any case: what cannot be counted now is estimated.
    let left = count(&app, &query).await;
    let left = left.unwrap_or_else(|_| matched.saturating_sub(recorded.len()));
    let body = BulkBody { verb, dry_run: false, matched, letters, left };
    Ok(Answer::ok(body).after_all(recorded))
}

/// Works just this letter, as it was.
async fn work_one(
    app: &App,
    call: &Call,
    letter: &Letter,
    what: Redrive,
    reason: Option<String>,
) -> Result<Option<Redriven>, RedriveError> {
    let work = Work { what, position: Some(letter.position), expected: Some(letter.revision()) };
    let letters = app.runtime().dead_letters();
    let (name, partition) = (&letter.subscription, letter.partition);
    let context = call.plain_context(app);
    letters.redrive(name, partition, letter.key, work, context, reason).await
}

/// Try many letters again
///
/// Each key's letters in order, up to 16 keys at once. Without `dry_run: false` it only says what
/// would be done. Safe to repeat: a letter that was worked meanwhile is left alone.
#[utoipa::path(post, path = "/dlq/retry", tag = "dlq", request_body = Bulk,
    responses((status = 200, description = "Letter by letter", body = BulkBody)))]
async fn retry_letters(
    State(app): State<App>,
    Staff(call): Staff,
    valid: Valid<Bulk>,
) -> Result<Answer<BulkBody>, ApiError> {
    work(app, call, (Redrive::Retry, "retry"), valid.body).await
}

/// Set many letters aside
///
/// As one by one: what waits behind them goes on. Without `dry_run: false` it only says what would
/// be done.
#[utoipa::path(post, path = "/dlq/skip", tag = "dlq", request_body = Bulk,
    responses((status = 200, description = "Letter by letter", body = BulkBody)))]
async fn skip_letters(
    State(app): State<App>,
    Staff(call): Staff,
    valid: Valid<Bulk>,
) -> Result<Answer<BulkBody>, ApiError> {
    work(app, call, (Redrive::Skip, "skip"), valid.body).await
}

/// Give many letters up
///
/// As one by one: what waits behind them goes on. Without `dry_run: false` it only says what would
/// be done.
#[utoipa::path(post, path = "/dlq/discard", tag = "dlq", request_body = Bulk,
    responses((status = 200, description = "Letter by letter", body = BulkBody)))]
async fn discard_letters(
    State(app): State<App>,
    Staff(call): Staff,
    valid: Valid<Bulk>,
) -> Result<Answer<BulkBody>, ApiError> {
    work(app, call, (Redrive::Discard, "discard"), valid.body).await
}
