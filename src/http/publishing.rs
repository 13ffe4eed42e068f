//! The way in for publishers outside. Their events are decided by an aggregate and stored like all
//! others: what is answered with 202 is durable.
//!
//! ```text
//!   request ─▶ token, quota ─▶ read ─▶ type, scope, schema ─▶ told before? ─▶ a command per key
//! ```
//!
//! A request is taken or refused as a whole before anything is stored. Then the keys of a batch are
//! in flight together and share the journal's commits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use souk_actors::command::{CommandError, Done, Unavailable};
use souk_actors::event::Position;
use souk_actors::journal;
use tokio::task::JoinSet;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::answer::Answer;
use super::body::Unread;
use super::call::{Publisher, TENANT};
use super::event_json::reference_at;
use super::incoming::{self, Incoming, NewEvent};
use super::problem::{ApiError, FieldProblem};
use super::registered::{self, Registered};
use super::{App, POSITION};
use crate::domain::event_source::{EventSources, SequencePolicy};
use crate::domain::ids::{PublicationId, outside_event_id};
use crate::domain::publication::{Publication, PublicationCommand, Standing, Told};

/// How many keys of a batch are in flight at once: far fewer than what a partition admits.
const KEYS_AT_ONCE: usize = 256;
/// How often a key's events are tried when another append came first.
const TRIES_MAX: usize = 3;
/// The aggregate type of what is published, as an event's reference begins with it.
const AGGREGATE: &str = "publication";
/// Why an event is refused whose source and id are those of an event of another type.
const EVENT_ID_TAKEN: &str = "event_id_taken";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(publish_event)).routes(routes!(publish_batch))
}

/// What became of an event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PublishedBody {
    /// Its id here.
    pub event_id: Uuid,
    /// Its number in the log, once it is stored.
    #[schema(example = "evt_pub_831488")]
    pub event_ref: Option<String>,
    /// Its registered type.
    #[schema(value_type = String, example = "partner.stock.counted")]
    pub event_type: Arc<str>,
    /// `stored`; `duplicate` (it was stored before); `buffered` (it waits for those before it); in a
    /// batch also `refused` (its number is another event's or ahead of its turn, too many wait, or an
    /// event of another type has its source and id).
    #[schema(example = "stored")]
    pub state: &'static str,
    /// Where it stands, once it is stored.
    #[schema(example = "0:812")]
    pub position: Option<String>,
    /// The number that comes next for its source and key, where it is ahead of its turn.
    pub missing: Option<u64>,
    /// Why it was refused.
    pub code: Option<&'static str>,
}

/// What became of each event of a batch, in its order.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchBody {
    /// One result an event.
    pub data: Vec<PublishedBody>,
}

/// The events of a batch: also as a list without anything around it, or as a list of CloudEvents.
#[derive(Debug, ToSchema)]
pub struct NewEvents {
    /// The events.
    pub events: Vec<NewEvent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Stored(Position),
    Duplicate(Position),
    Buffered { missing: u64 },
    Gap { missing: u64 },
    Refused(&'static str),
}

impl Outcome {
    /// Why it was refused, if it was.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Refused(code) => Some(code),
            Self::Gap { .. } => Some("sequence_gap"),
            Self::Stored(_) | Self::Duplicate(_) | Self::Buffered { .. } => None,
        }
    }

    fn detail(self) -> String {
        let text = match self.refusal() {
            Some(EVENT_ID_TAKEN) => {
                "an event of another type has this source and id: give this one an id of its own"
            }
            Some("sequence_taken") => "another event of this source and key has this number",
            Some("sequence_passed") => {
                "this number has had its turn, with another event or without one"
            }
            Some("sequence_buffer_full") => {
                "too many events of this source and key wait for an earlier one: send that first"
            }
            _ => "the event was not stored: send it again",
        };
        match self {
            Self::Gap { missing } => format!(
                "this source takes its events in their order only, and number {missing} comes next: send that first"
            ),
            _ => text.to_owned(),
        }
    }
}

/// Publish an event
///
/// For service tokens with the scope `publisher`, and for administrators. In the native form, as a
/// CloudEvent (`application/cloudevents+json`), or as a CloudEvent with `ce-` header fields. A second
/// event of the same `source` and `id` is answered with 200 and the first one's place, for ever; with
/// 409 `event_id_taken` if it is of another type. With a `sequence` ahead of its turn it is kept
/// (`buffered`) until those before it have come, unless its source is configured otherwise
/// (`/admin/event-sources`). Whoever published it may read it at its `Location`.
#[utoipa::path(post, path = "/events", tag = "events", request_body = NewEvent,
    responses((status = 202, description = "It is stored, or kept until its turn", body = PublishedBody),
        (status = 200, description = "It was stored before", body = PublishedBody)))]
async fn publish_event(
    State(app): State<App>,
    publisher: Publisher,
    unread: Unread,
) -> Result<Response, ApiError> {
    let left = charge(&app, &publisher, 1)?;
    let done = async {
        let (headers, bytes) = unread.bytes(&app, incoming::is_event_type).await?;
        let event = incoming::one(&headers, &bytes).map_err(rejected)?;
        let told = checked(&app, &publisher, vec![event]).await?;
        Ok(publish(&app, &publisher, told).await?.swap_remove(0))
    };
    let (told, outcome) = done.await.map_err(|error| with_headers(error, &left))?;
    if let Some(code) = outcome.refusal() {
        rejections(code, 1);
        return Err(with_headers(ApiError::conflict(code, outcome.detail()), &left));
    }
    let body = body(&told, outcome);
    let location = format!("/api/v1/events/{}", told.event_id);
    let mut answer = match outcome {
        Outcome::Duplicate(_) => Answer::ok(body).with(header::LOCATION, &location),
        _ => Answer::accepted(&location, body),
    };
    if let Outcome::Stored(at) | Outcome::Duplicate(at) = outcome {
        answer = answer.with(POSITION, &at.to_string());
    }
    Ok(added(answer.into_response(), left))
}

/// Publish many events
///
/// As a list of native events or of CloudEvents (`application/cloudevents-batch+json`). Nothing is
/// stored if one of them is not right. Events of one source and key are stored together and in
/// their order. When some could not be stored for the moment (503), send all of them again: those
/// that were stored are duplicates then.
#[utoipa::path(post, path = "/events/batch", tag = "events", request_body = NewEvents,
    responses((status = 202, description = "What became of each", body = BatchBody),
        (status = 200, description = "All of them were stored before", body = BatchBody)))]
async fn publish_batch(
    State(app): State<App>,
    publisher: Publisher,
    unread: Unread,
) -> Result<Response, ApiError> {
    let mut left = charge(&app, &publisher, 1)?;
    let (headers, bytes) = unread
        .bytes(&app, incoming::is_event_type)
        .await
        .map_err(|error| with_headers(error, &left))?;
    let events = incoming::several(&headers, &bytes, app.settings().publishing.batch_max)
        .map_err(|error| with_headers(rejected(error), &left))?;
    if events.len() > 1 {
        left = charge(&app, &publisher, events.len() - 1)?;
    }
    let done = async { publish(&app, &publisher, checked(&app, &publisher, events).await?).await };
    let done = done.await.map_err(|error| with_headers(error, &left))?;
    for (_, outcome) in &done {
        if let Some(code) = outcome.refusal() {
            rejections(code, 1);
        }
    }
    let old = done.iter().all(|(_, outcome)| matches!(outcome, Outcome::Duplicate(_)));
    let data = done.iter().map(|(told, outcome)| body(told, *outcome)).collect();
    let answer = Answer::ok(BatchBody { data }).into_response();
    let mut answer = added(answer, left);
    *answer.status_mut() = if old { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(answer)
}

fn charge(app: &App, publisher: &Publisher, events: usize) -> Result<HeaderMap, ApiError> {
    let quota = publisher.quota(app);
    let told = app.publishing_limits().take(publisher.id(), quota, events, app.now());
    told.map(|told| HeaderMap::from_iter(told.headers()))
        .inspect_err(|_| rejections("rate_limited", events))
}

fn with_headers(mut error: ApiError, headers: &HeaderMap) -> ApiError {
    for (name, value) in headers {
        error = error.with_header(name.clone(), value.clone());
    }
    error
}

fn added(mut response: Response, headers: HeaderMap) -> Response {
    response.headers_mut().extend(headers);
    response
}

fn rejections(reason: &'static str, events: usize) {
    metrics::counter!("souk_events_rejected_total", "reason" => reason).increment(events as u64);
}

/// Counts a request that could not be read as an event.
fn rejected(error: ApiError) -> ApiError {
    rejections("invalid", 1);
    error
}

/// Holds the events against their types; all of them, so that one answer names every problem.
async fn checked(
    app: &App,
    publisher: &Publisher,
    events: Vec<Incoming>,
) -> Result<Vec<Arc<Told>>, ApiError> {
    let mut types: HashMap<String, Option<Registered>> = HashMap::new();
    for event in &events {
        if !types.contains_key(&event.event_type) {
            let found = registered::find(app, &event.event_type).await?;
            types.insert(event.event_type.clone(), found);
        }
    }
    let mut errors = Vec::new();
    let mut all = Vec::with_capacity(events.len());
    for event in events {
        let Some(Some(of)) = types.get(&event.event_type) else {
            rejections("unknown_type", 1);
            let detail = "is not a registered event type: PUT /api/v1/admin/event-types/{type}";
            errors.push(FieldProblem::new(event.type_at, "unknown_event_type", detail));
            continue;
        };
        if !publisher.may_publish(&of.name) {
            rejections("forbidden_type", 1);
            let detail = format!("this token may not publish {}", of.name);
            return Err(ApiError::forbidden("insufficient_scope", detail));
        }
        let problems = of.problems(&event.data, &event.data_at);
        if !problems.is_empty() {
            rejections("schema", 1);
            errors.extend(problems);
            continue;
        }
        all.push(Arc::new(told(app, publisher, of, event)?));
    }
    if errors.is_empty() { Ok(all) } else { Err(ApiError::invalid(errors)) }
}

fn told(
    app: &App,
    publisher: &Publisher,
    of: &Registered,
    event: Incoming,
) -> Result<Told, ApiError> {
    let data = event.data.to_string();
    let bytes_max = app.settings().publishing.event_bytes_max;
    if data.len() > bytes_max {
        rejections("too_large", 1);
        let detail = format!("{} is larger than {bytes_max} bytes", at_or_body(&event.data_at));
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail));
    }
    // What has to wait belongs to the request that told of it, not to the one that closes the gap.
    let info = event.sequence.map(|_| &publisher.call.info);
    let correlation_id = info.map(|info| info.correlation_id.to_string());
    let causation_id = info.map(|info| info.request_id.to_string());
    Ok(Told {
        event_id: outside_event_id(TENANT, &event.source, &event.id),
        event_type: of.name.clone(),
        major: of.major,
        minor: of.minor,
        source: event.source,
        id: event.id,
        key: event.key,
        time: event.time,
        sequence: event.sequence,
        correlation_id: event.correlation_id.or(correlation_id),
        causation_id: event.causation_id.or(causation_id),
        actor_id: event.sequence.map(|_| publisher.call.actor_id()),
        data,
    })
}

fn at_or_body(pointer: &str) -> &str {
    if pointer.is_empty() { "the body" } else { pointer }
}

/// Stores what is new, and says of each what became of it.
async fn publish(
    app: &App,
    publisher: &Publisher,
    events: Vec<Arc<Told>>,
) -> Result<Vec<(Arc<Told>, Outcome)>, ApiError> {
    let ids: Vec<Uuid> = events.iter().map(|told| told.event_id).collect();
    let places = app.runtime().journal().places(&ids).await?;
    let mut outcomes: HashMap<Uuid, Outcome> =
        places.into_iter().map(|(id, at)| (id, Outcome::Duplicate(at))).collect();
    let mut groups: Vec<(PublicationId, Vec<Arc<Told>>)> = Vec::new();
    let mut index: HashMap<PublicationId, usize> = HashMap::new();
    let mut seen = HashSet::new();
    for told in &events {
        if outcomes.contains_key(&told.event_id) || !seen.insert(told.event_id) {
            continue;
        }
        let id = PublicationId::of(&told.source, &told.key);
        let at = *index.entry(id).or_insert_with(|| {
            groups.push((id, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(told.clone());
    }
    let policies = policies(app, groups.iter().flat_map(|(_, group)| group)).await?;
    let mut flying = JoinSet::new();
    for (id, group) in groups {
        let source = group.first().map(|told| told.source.as_str()).unwrap_or_default();
        let policy = policies.get(source).copied().unwrap_or_default();
        if flying.len() >= KEYS_AT_ONCE
            && let Some(landed) = flying.join_next().await
        {
            outcomes.extend(landed_well(landed)?);
        }
        flying.spawn(send(app.clone(), publisher.clone(), id, policy, group));
    }
    while let Some(landed) = flying.join_next().await {
        outcomes.extend(landed_well(landed)?);
    }
    let types = types(app, &events, &outcomes).await?;
    let known = |told: Arc<Told>| {
        let outcome = match outcomes.get(&told.event_id) {
            Some(_) if types.get(&told.event_id) != Some(&told.event_type) => {
                Outcome::Refused(EVENT_ID_TAKEN)
            }
            Some(outcome) => *outcome,
            None => Outcome::Refused("not_stored"),
        };
        (told, outcome)
    };
    Ok(events.into_iter().map(known).collect())
}

/// The type of the event that each id stands for: the one that was stored before, or else the first
/// that was told. Of one that cannot be read any more it is believed that it is the same.
async fn types(
    app: &App,
    events: &[Arc<Told>],
    outcomes: &HashMap<Uuid, Outcome>,
) -> Result<HashMap<Uuid, Arc<str>>, ApiError> {
    let mut types = HashMap::with_capacity(events.len());
    for told in events {
        if types.contains_key(&told.event_id) {
            continue;
        }
        let mut event_type = told.event_type.clone();
        if let Some(Outcome::Duplicate(at)) = outcomes.get(&told.event_id) {
            match app.runtime().journal().event_at(*at).await {
                Ok(Some(stored)) => event_type = stored.event_type.clone(),
                Ok(None) | Err(journal::Error::Damaged(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        types.insert(told.event_id, event_type);
    }
    Ok(types)
}

/// How the sources of numbered events want them dealt with; of those that are not in it, as usual.
async fn policies(
    app: &App,
    events: impl Iterator<Item = &Arc<Told>>,
) -> Result<HashMap<String, SequencePolicy>, ApiError> {
    let numbered = events.filter(|told| told.sequence.is_some());
    let sources: HashSet<String> = numbered.map(|told| told.source.clone()).collect();
    if sources.is_empty() {
        return Ok(HashMap::new());
    }
    let view = move |all: &EventSources| {
        let policy = |source: String| {
            let policy = all.policy(&source);
            (source, policy)
        };
        sources.into_iter().map(policy).collect()
    };
    Ok(app.runtime().aggregate::<EventSources>().read(EventSources::id(), view).await?.value)
}

type Landed = Result<Vec<(Uuid, Outcome)>, ApiError>;

fn landed_well(landed: Result<Landed, tokio::task::JoinError>) -> Landed {
    landed.unwrap_or_else(|error| {
        let error_id = super::problem::uuid_of_failure();
        tracing::error!(error_id, %error, "publishing to a stream panicked");
        Err(ApiError::internal(error_id))
    })
}

/// Tells one stream of its events. Another request may have told of the same event meanwhile, even of
/// another key: then the append conflicts, and what is stored by now is looked up anew.
async fn send(
    app: App,
    publisher: Publisher,
    id: PublicationId,
    policy: SequencePolicy,
    mut events: Vec<Arc<Told>>,
) -> Result<Vec<(Uuid, Outcome)>, ApiError> {
    let publications = app.runtime().aggregate::<Publication>();
    let mut outcomes = Vec::with_capacity(events.len());
    let SequencePolicy { on_violation, .. } = policy;
    let patience = policy.gap_timeout(app.settings().publishing.sequence_gap_timeout);
    for attempt in 1.. {
        let now = app.now();
        let command = PublicationCommand::Publish {
            events: events.clone(),
            on_violation,
            now,
            release_by: now.plus(patience),
        };
        let asked: Vec<_> = events.iter().map(|told| (told.event_id, told.sequence)).collect();
        let view = move |state: &Publication| -> Vec<(Uuid, Standing)> {
            let standing = |(id, sequence)| (id, state.standing(id, sequence, on_violation));
            asked.into_iter().map(standing).collect()
        };
        let context = publisher.call.plain_context(&app);
        match publications.send(id.uuid(), command, context, view).await {
            Ok(done) => {
                outcomes.extend(settled(&app, &done).await?);
                break;
            }
            Err(CommandError::Unavailable(Unavailable::Restarting)) if attempt < TRIES_MAX => {
                forget_told(&app, &publisher, id).await?;
                let ids: Vec<Uuid> = events.iter().map(|told| told.event_id).collect();
                let places = app.runtime().journal().places(&ids).await?;
                outcomes.extend(places.iter().map(|(id, at)| (*id, Outcome::Duplicate(*at))));
                events.retain(|told| !places.contains_key(&told.event_id));
                if events.is_empty() {
                    break;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(outcomes)
}

/// Where the events of a command stand. Its own are side by side at the end of the stream.
async fn settled(
    app: &App,
    done: &Done<Vec<(Uuid, Standing)>>,
) -> Result<Vec<(Uuid, Outcome)>, ApiError> {
    let before = done.version - done.events as u64;
    let mut outcomes = Vec::with_capacity(done.value.len());
    let mut earlier = Vec::new();
    for (id, standing) in &done.value {
        let outcome = match (standing, done.position) {
            (Standing::Stored(version), Some(last)) if *version > before => {
                let position = last.position - (done.version - version);
                Outcome::Stored(Position { position, ..last })
            }
            (Standing::Stored(_), _) => {
                earlier.push(*id);
                continue;
            }
            (Standing::Buffered { missing }, _) => Outcome::Buffered { missing: *missing },
            (Standing::SequenceGap { missing }, _) => Outcome::Gap { missing: *missing },
            (Standing::SequenceTaken, _) => Outcome::Refused("sequence_taken"),
            (Standing::SequencePassed, _) => Outcome::Refused("sequence_passed"),
            (Standing::BufferFull, _) => Outcome::Refused("sequence_buffer_full"),
        };
        outcomes.push((*id, outcome));
    }
    if !earlier.is_empty() {
        let places = app.runtime().journal().places(&earlier).await?;
        outcomes.extend(places.into_iter().map(|(id, at)| (id, Outcome::Duplicate(at))));
    }
    Ok(outcomes)
}

/// What is held back may have come to pass under another key: it must not stand in the way for ever.
async fn forget_told(app: &App, publisher: &Publisher, id: PublicationId) -> Result<(), ApiError> {
    let publications = app.runtime().aggregate::<Publication>();
    let held = |state: &Publication| -> Vec<Uuid> {
        state.held.values().map(|held| held.told.event_id).collect()
    };
    let held = publications.read(id.uuid(), held).await?.value;
    let places = app.runtime().journal().places(&held).await?;
    if places.is_empty() {
        return Ok(());
    }
    let forget =
        PublicationCommand::Forget { event_ids: places.into_keys().collect(), now: app.now() };
    let context = publisher.call.plain_context(app);
    publications.send(id.uuid(), forget, context, |_| ()).await?;
    Ok(())
}

fn body(told: &Told, outcome: Outcome) -> PublishedBody {
    let (state, at, missing) = match outcome {
        Outcome::Stored(at) => ("stored", Some(at), None),
        Outcome::Duplicate(at) => ("duplicate", Some(at), None),
        Outcome::Buffered { missing } => ("buffered", None, Some(missing)),
        Outcome::Gap { missing } => ("refused", None, Some(missing)),
        Outcome::Refused(_) => ("refused", None, None),
    };
    PublishedBody {
        event_id: told.event_id,
        event_ref: at.map(|at| reference_at(AGGREGATE, at)),
        event_type: told.event_type.clone(),
        state,
        position: at.map(|at| at.to_string()),
        missing,
        code: outcome.refusal(),
    }
}
