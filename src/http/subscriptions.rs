//! Who gets which events, and how far they have come.

use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use souk_actors::broker::Pattern;
use souk_actors::command::{CommandContext, Done};
use souk_actors::oversight::{Oversight, RetrySettings};
use souk_actors::subscriber::SubscriptionStatus;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Page};
use super::body::{Fields, FromFields, Reason, Valid};
use super::call::{Call, Staff};
use super::params::{Params, wrong};
use super::problem::ApiError;
use super::{App, catalogue};
use crate::app::contexts::contexts;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_subscriptions))
        .routes(routes!(get_subscription))
        .routes(routes!(pause_subscription))
        .routes(routes!(resume_subscription))
        .routes(routes!(get_retry_policy, set_retry_policy, reset_retry_policy))
        .routes(routes!(get_handler_timeout, set_handler_timeout, reset_handler_timeout))
        .routes(routes!(list_contexts))
}

/// A subscription and how far it has come in each partition.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct SubscriptionBody(pub Value);

/// What a subscription gets.
fn patterns(status: &Value) -> Vec<Pattern> {
    let patterns = status["patterns"].as_array().into_iter().flatten().filter_map(Value::as_str);
    patterns.filter_map(|pattern| Pattern::parse(pattern).ok()).collect()
}

async fn all(app: &App) -> Vec<Value> {
    let all = app.runtime().subscriptions().inspect().await;
    all.iter()
        .filter_map(|status| serde_json::to_value(status).ok())
        .map(with_event_types)
        .collect()
}

/// Adds the declared types that its patterns select.
fn with_event_types(mut status: Value) -> Value {
    let patterns = patterns(&status);
    let takes = |event_type: &&str| patterns.iter().any(|pattern| pattern.matches(event_type));
    let types = catalogue::all().iter().map(|descriptor| descriptor.event_type);
    let types: Vec<_> = types.filter(takes).collect();
    status["event_types"] = Value::from(types);
    status
}

async fn one(app: &App, name: &str) -> Result<SubscriptionBody, ApiError> {
    let found = all(app).await.into_iter().find(|status| status["name"] == name);
    found.map(SubscriptionBody).ok_or_else(missing)
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such subscription")
}

/// Subscriptions
///
/// With `event_type`, those that get events of that type.
#[utoipa::path(get, path = "/admin/subscriptions", tag = "admin",
    params(("event_type" = Option<String>, Query)),
    responses((status = 200, description = "All of them", body = Page<SubscriptionBody>)))]
async fn list_subscriptions(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<SubscriptionBody>>, ApiError> {
    let types = params.text("event_type").map(|name| catalogue::resolve(name).0);
    let fits = |status: &Value| {
        let gets = |of: &str| patterns(status).iter().any(|pattern| pattern.matches(of));
        types.as_ref().is_none_or(|types| types.iter().any(|of| gets(of)))
    };
    let data = all(&app).await.into_iter().filter(fits).map(SubscriptionBody).collect();
    Ok(Answer::ok(Page::whole(data)))
}

/// A subscription
///
/// How far it is and how far behind, how fast, what fails and what is tried again, by partition; and
/// the policies in force.
#[utoipa::path(get, path = "/admin/subscriptions/{name}", tag = "admin",
    params(("name" = String, Path)),
    responses((status = 200, description = "The subscription", body = SubscriptionBody)))]
async fn get_subscription(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    Ok(Answer::ok(one(&app, &name).await?))
}

/// Pause a subscription
///
/// Nothing is lost: it goes on where it stopped.
#[utoipa::path(post, path = "/admin/subscriptions/{name}/pause", tag = "admin",
    params(("name" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The subscription", body = SubscriptionBody)))]
async fn pause_subscription(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    let context = call.plain_context(&app);
    let reason = valid.body.reason;
    let done = app.runtime().subscriptions().pause(&name, context, reason).await?;
    let done = done.ok_or_else(missing)?;
    Ok(Answer::ok(one(&app, &name).await?).after(&done))
}

/// Resume a subscription
#[utoipa::path(post, path = "/admin/subscriptions/{name}/resume", tag = "admin",
    params(("name" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The subscription", body = SubscriptionBody)))]
async fn resume_subscription(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    let context = call.plain_context(&app);
    let reason = valid.body.reason;
    let done = app.runtime().subscriptions().resume(&name, context, reason).await?;
    let done = done.ok_or_else(missing)?;
    Ok(Answer::ok(one(&app, &name).await?).after(&done))
}

/// The longest wait that can be set: a day.
const WAIT_MS_MAX: i64 = 86_400_000;
/// The most retries that can be set.
const RETRIES_MAX: i64 = 1_000;
/// The time limits that can be set: from a hundredth of a second to an hour.
const TIMEOUT_MS: std::ops::RangeInclusive<i64> = 10..=3_600_000;

/// A retry policy.
#[derive(ToSchema)]
pub struct RetryPolicyRequest {
    /// How many times after the first try.
    #[schema(minimum = 0, maximum = 1000, example = 3)]
    pub max_retries: u32,
    /// The first wait, in milliseconds.
    #[schema(minimum = 1, maximum = 86_400_000, example = 1000)]
    pub delay_ms: u64,
    /// Whether each wait is twice the one before.
    #[schema(example = true)]
    pub exponential_backoff: bool,
    /// No wait is longer, in milliseconds; not below `delay_ms`.
    #[schema(minimum = 1, maximum = 86_400_000, example = 30_000)]
    pub max_delay_ms: u64,
    /// Why. It is recorded.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

/// A whole number within bounds; noted if it is none.
fn within(
    fields: &mut Fields<'_>,
    name: &'static str,
    range: &std::ops::RangeInclusive<i64>,
) -> Option<u64> {
    let number = fields.integer(&[name])?;
    if !range.contains(&number) {
        let detail = format!("must be from {} to {}", range.start(), range.end());
        fields.error(name, "out_of_range", detail);
        return None;
    }
    u64::try_from(number).ok()
}

impl FromFields for RetryPolicyRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let max_retries = within(fields, "max_retries", &(0..=RETRIES_MAX));
        let delay_ms = within(fields, "delay_ms", &(1..=WAIT_MS_MAX));
        let max_delay_ms = within(fields, "max_delay_ms", &(1..=WAIT_MS_MAX));
        let exponential_backoff = fields.value("exponential_backoff").and_then(Value::as_bool);
        if exponential_backoff.is_none() {
            fields.error("exponential_backoff", "wrong_type", "must be true or false");
        }
        if delay_ms.zip(max_delay_ms).is_some_and(|(first, longest)| first > longest) {
            fields.error("max_delay_ms", "out_of_range", "must not be below delay_ms");
        }
        let Reason { reason } = Reason::from_fields(fields)?;
        Some(Self {
            max_retries: u32::try_from(max_retries?).ok()?,
            delay_ms: delay_ms?,
            exponential_backoff: exponential_backoff?,
            max_delay_ms: max_delay_ms?,
            reason,
        })
    }
}

/// A subscription's retry policy.
#[derive(Debug, Serialize, ToSchema)]
pub struct RetryPolicyBody {
    /// The subscription.
    pub subscription: String,
    /// How many times after the first try.
    pub max_retries: u32,
    /// The first wait, in milliseconds.
    pub delay_ms: u64,
    /// Whether each wait is twice the one before.
    pub exponential_backoff: bool,
    /// No wait is longer, in milliseconds.
    pub max_delay_ms: u64,
    /// Whether it is the one that the subscription was declared with.
    pub is_default: bool,
}

/// A subscription's time limit.
#[derive(Debug, Serialize, ToSchema)]
pub struct HandlerTimeoutBody {
    /// The subscription.
    pub subscription: String,
    /// How long one attempt may take, in milliseconds.
    pub handler_timeout_ms: u64,
    /// Whether it is the one that the subscription was declared with.
    pub is_default: bool,
}

/// The status in force.
fn status(app: &App, name: &str) -> Result<SubscriptionStatus, ApiError> {
    let all = app.runtime().subscriptions().list();
    all.into_iter().find(|status| status.name == name).ok_or_else(missing)
}

fn retry_policy(
    app: &App,
    name: &str,
    done: Option<Done<Oversight>>,
) -> Result<Answer<RetryPolicyBody>, ApiError> {
    let done = done.ok_or_else(missing)?;
    let in_force = RetrySettings::from(&status(app, name)?.retry);
    let RetrySettings { max_retries, delay_ms, exponential_backoff, max_delay_ms } = in_force;
    let body = RetryPolicyBody {
        subscription: name.to_owned(),
        max_retries,
        delay_ms,
        exponential_backoff,
        max_delay_ms,
        is_default: done.value.retry.is_none(),
    };
    Ok(Answer::ok(body).after(&done))
}

fn handler_timeout(
    app: &App,
    name: &str,
    done: Option<Done<Oversight>>,
) -> Result<Answer<HandlerTimeoutBody>, ApiError> {
    let done = done.ok_or_else(missing)?;
    let body = HandlerTimeoutBody {
        subscription: name.to_owned(),
        handler_timeout_ms: status(app, name)?.handler_timeout_ms,
        is_default: done.value.handler_timeout_ms.is_none(),
    };
    Ok(Answer::ok(body).after(&done))
}

/// The context of a change that may rest on a version of what people have done so far.
fn steering(app: &App, call: &Call) -> CommandContext {
    let expected_version = call.if_match.version();
    CommandContext { expected_version, ..call.plain_context(app) }
}

/// The reason for a change without a body.
fn reason_of(params: &Params) -> Result<Option<String>, ApiError> {
    let reason = params.text("reason");
    if reason.is_some_and(|reason| reason.chars().count() > 500 || reason.contains('\0')) {
        return Err(wrong("reason", "at most 500 characters, and no U+0000"));
    }
    Ok(reason.map(str::to_owned))
}

/// A subscription's retry policy
///
/// Its `ETag` is for the next change.
#[utoipa::path(get, path = "/admin/subscriptions/{name}/retry-policy", tag = "admin",
    params(("name" = String, Path)),
    responses((status = 200, description = "The policy in force", body = RetryPolicyBody)))]
async fn get_retry_policy(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
) -> Result<Answer<RetryPolicyBody>, ApiError> {
    let known = app.runtime().subscriptions().oversight(&name).await?;
    retry_policy(&app, &name, known)
}

/// Set a subscription's retry policy
///
/// In force at once, also for what waits to be tried again, and kept across restarts.
#[utoipa::path(put, path = "/admin/subscriptions/{name}/retry-policy", tag = "admin",
    params(("name" = String, Path)), request_body = RetryPolicyRequest,
    responses((status = 200, description = "The policy in force", body = RetryPolicyBody)))]
async fn set_retry_policy(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<RetryPolicyRequest>,
) -> Result<Answer<RetryPolicyBody>, ApiError> {
    let RetryPolicyRequest { max_retries, delay_ms, exponential_backoff, max_delay_ms, reason } =
        valid.body;
    let new = RetrySettings { max_retries, delay_ms, exponential_backoff, max_delay_ms };
    let (all, context) = (app.runtime().subscriptions(), steering(&app, &call));
    let done = all.set_retry_policy(&name, Some(new), context, reason).await?;
    retry_policy(&app, &name, done)
}

/// Give a subscription its declared retry policy again
#[utoipa::path(delete, path = "/admin/subscriptions/{name}/retry-policy", tag = "admin",
    params(("name" = String, Path), ("reason" = Option<String>, Query)),
    responses((status = 200, description = "The policy in force", body = RetryPolicyBody)))]
async fn reset_retry_policy(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    params: Params,
) -> Result<Answer<RetryPolicyBody>, ApiError> {
    let (all, context) = (app.runtime().subscriptions(), steering(&app, &call));
    let done = all.set_retry_policy(&name, None, context, reason_of(&params)?).await?;
    retry_policy(&app, &name, done)
}

/// A time limit.
#[derive(ToSchema)]
pub struct HandlerTimeoutRequest {
    /// How long one attempt may take, in milliseconds.
    #[schema(minimum = 10, maximum = 3_600_000, example = 30_000)]
    pub handler_timeout_ms: u64,
    /// Why. It is recorded.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl FromFields for HandlerTimeoutRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let handler_timeout_ms = within(fields, "handler_timeout_ms", &TIMEOUT_MS);
        let Reason { reason } = Reason::from_fields(fields)?;
        Some(Self { handler_timeout_ms: handler_timeout_ms?, reason })
    }
}

/// A subscription's time limit for an attempt
///
/// Its `ETag` is for the next change.
#[utoipa::path(get, path = "/admin/subscriptions/{name}/handler-timeout", tag = "admin",
    params(("name" = String, Path)),
    responses((status = 200, description = "The limit in force", body = HandlerTimeoutBody)))]
async fn get_handler_timeout(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
) -> Result<Answer<HandlerTimeoutBody>, ApiError> {
    let known = app.runtime().subscriptions().oversight(&name).await?;
    handler_timeout(&app, &name, known)
}

/// Set a subscription's time limit for an attempt
///
/// In force from the next attempt on, and kept across restarts.
#[utoipa::path(put, path = "/admin/subscriptions/{name}/handler-timeout", tag = "admin",
    params(("name" = String, Path)), request_body = HandlerTimeoutRequest,
    responses((status = 200, description = "The limit in force", body = HandlerTimeoutBody)))]
async fn set_handler_timeout(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<HandlerTimeoutRequest>,
) -> Result<Answer<HandlerTimeoutBody>, ApiError> {
    let HandlerTimeoutRequest { handler_timeout_ms, reason } = valid.body;
    let (all, context) = (app.runtime().subscriptions(), steering(&app, &call));
    let done = all.set_handler_timeout(&name, Some(handler_timeout_ms), context, reason).await?;
    handler_timeout(&app, &name, done)
}

/// Give a subscription its declared time limit again
#[utoipa::path(delete, path = "/admin/subscriptions/{name}/handler-timeout", tag = "admin",
    params(("name" = String, Path), ("reason" = Option<String>, Query)),
    responses((status = 200, description = "The limit in force", body = HandlerTimeoutBody)))]
async fn reset_handler_timeout(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    params: Params,
) -> Result<Answer<HandlerTimeoutBody>, ApiError> {
    let (all, context) = (app.runtime().subscriptions(), steering(&app, &call));
    let done = all.set_handler_timeout(&name, None, context, reason_of(&params)?).await?;
    handler_timeout(&app, &name, done)
}

/// A bounded context.
#[derive(Debug, Serialize, ToSchema)]
pub struct ContextBody {
    /// Its name.
    #[schema(example = "orders")]
    pub name: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// `publisher`, `consumer`, or both.
    pub roles: Vec<&'static str>,
    /// The event types it publishes.
    pub publishes: Vec<&'static str>,
    /// What it listens to.
    pub subscribes: Vec<ContextSubscriptionBody>,
}

/// What a context listens to.
#[derive(Debug, Serialize, ToSchema)]
pub struct ContextSubscriptionBody {
    /// The subscription.
    pub name: &'static str,
    /// Its topics.
    pub topics: Vec<&'static str>,
}

/// Bounded contexts
#[utoipa::path(get, path = "/admin/contexts", tag = "admin",
    responses((status = 200, description = "All of them", body = Page<ContextBody>)))]
async fn list_contexts(_: Staff) -> Result<Answer<Page<ContextBody>>, ApiError> {
    let data = contexts().into_iter().map(|context| {
        let roles = [
            (!context.publishes.is_empty()).then_some("publisher"),
            (!context.subscribes.is_empty()).then_some("consumer"),
        ];
        let subscribes = context
            .subscribes
            .into_iter()
            .map(|of| ContextSubscriptionBody { name: of.name, topics: of.topics.to_vec() });
        ContextBody {
            name: context.name,
            description: context.description,
            roles: roles.into_iter().flatten().collect(),
            publishes: context.publishes,
            subscribes: subscribes.collect(),
        }
    });
    Ok(Answer::ok(Page::whole(data.collect())))
}
