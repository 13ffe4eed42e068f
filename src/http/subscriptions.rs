//! Who gets which events, and how far they have come.

use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use souk_actors::broker::Pattern;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Page};
use super::body::{Reason, Valid};
use super::call::Staff;
use super::params::Params;
use super::problem::ApiError;
use super::{App, catalogue};
use crate::app::contexts::contexts;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_subscriptions))
        .routes(routes!(get_subscription))
        .routes(routes!(pause_subscription))
        .routes(routes!(resume_subscription))
        .routes(routes!(list_contexts))
}

/// A subscription and how far it has come in each partition.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct SubscriptionBody(pub Value);

/// Whether a subscription gets events of a type.
fn takes(status: &Value, event_type: &str) -> bool {
    let patterns = status["patterns"].as_array().into_iter().flatten().filter_map(Value::as_str);
    patterns
        .filter_map(|pattern| Pattern::parse(pattern).ok())
        .any(|pattern| pattern.matches(event_type))
}

fn all(app: &App) -> Vec<Value> {
    let all = app.runtime().subscriptions().list();
    all.iter()
        .filter_map(|status| serde_json::to_value(status).ok())
        .map(with_event_types)
        .collect()
}

/// Adds the declared types that its patterns select.
fn with_event_types(mut status: Value) -> Value {
    let types = catalogue::all().iter().map(|descriptor| descriptor.event_type);
    let types: Vec<_> = types.filter(|event_type| takes(&status, event_type)).collect();
    status["event_types"] = Value::from(types);
    status
}

fn one(app: &App, name: &str) -> Result<SubscriptionBody, ApiError> {
    let found = all(app).into_iter().find(|status| status["name"] == name);
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
        types.as_ref().is_none_or(|types| types.iter().any(|of| takes(status, of)))
    };
    let data = all(&app).into_iter().filter(fits).map(SubscriptionBody).collect();
    Ok(Answer::ok(Page::whole(data)))
}

/// A subscription
#[utoipa::path(get, path = "/admin/subscriptions/{name}", tag = "admin",
    params(("name" = String, Path)),
    responses((status = 200, description = "The subscription", body = SubscriptionBody)))]
async fn get_subscription(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    Ok(Answer::ok(one(&app, &name)?))
}

/// Pause a subscription
///
/// Reason is lost: it goes on where it stopped.
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
    if !app.runtime().subscriptions().pause(&name, context, reason).await? {
        return Err(missing());
    }
    Ok(Answer::ok(one(&app, &name)?))
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
    if !app.runtime().subscriptions().resume(&name, context, reason).await? {
        return Err(missing());
    }
    Ok(Answer::ok(one(&app, &name)?))
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
