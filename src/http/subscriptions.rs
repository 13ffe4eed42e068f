//! Who gets which events, and how far they have come.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Page};
use super::body::{Nothing, Valid};
use super::call::Call;
use super::params::Params;
use super::problem::ApiError;
use super::{App, catalogue};

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
pub(super) fn takes(status: &Value, event_type: &str) -> bool {
    status["event_types"].as_array().is_some_and(|types| types.iter().any(|of| of == event_type))
        || status["patterns"].as_array().into_iter().flatten().any(|pattern| pattern == "#")
}

fn all(app: &App) -> Vec<Value> {
    let all = app.runtime().subscriptions().list();
    all.iter().filter_map(|status| serde_json::to_value(status).ok()).collect()
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
    call: Call,
    params: Params,
) -> Result<Answer<Page<SubscriptionBody>>, ApiError> {
    call.staff()?;
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
    call: Call,
    Path(name): Path<String>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    call.staff()?;
    Ok(Answer::ok(one(&app, &name)?))
}

/// Pause a subscription
///
/// Nothing is lost: it goes on where it stopped.
#[utoipa::path(post, path = "/admin/subscriptions/{name}/pause", tag = "admin",
    params(("name" = String, Path)),
    responses((status = 200, description = "The subscription", body = SubscriptionBody)))]
async fn pause_subscription(
    State(app): State<App>,
    call: Call,
    Path(name): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    call.staff()?;
    if !app.runtime().subscriptions().pause(&name) {
        return Err(missing());
    }
    Ok(Answer::ok(one(&app, &name)?))
}

/// Resume a subscription
#[utoipa::path(post, path = "/admin/subscriptions/{name}/resume", tag = "admin",
    params(("name" = String, Path)),
    responses((status = 200, description = "The subscription", body = SubscriptionBody)))]
async fn resume_subscription(
    State(app): State<App>,
    call: Call,
    Path(name): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<SubscriptionBody>, ApiError> {
    call.staff()?;
    if !app.runtime().subscriptions().resume(&name) {
        return Err(missing());
    }
    Ok(Answer::ok(one(&app, &name)?))
}

/// A bounded context.
#[derive(Debug, Serialize, ToSchema)]
pub struct ContextBody {
    /// Its name.
    #[schema(example = "orders")]
    pub name: String,
    /// `publisher`, `consumer`, or both.
    pub roles: Vec<&'static str>,
    /// The event types it publishes.
    pub publishes: Vec<String>,
    /// The subscriptions it has.
    pub subscriptions: Vec<String>,
}

/// Bounded contexts
#[utoipa::path(get, path = "/admin/contexts", tag = "admin",
    responses((status = 200, description = "All of them", body = Page<ContextBody>)))]
async fn list_contexts(
    State(app): State<App>,
    call: Call,
) -> Result<Answer<Page<ContextBody>>, ApiError> {
    call.staff()?;
    let mut publishes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for descriptor in catalogue::all() {
        let types = publishes.entry(descriptor.context.to_owned()).or_default();
        types.insert(descriptor.event_type.to_owned());
    }
    let mut subscriptions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for status in all(&app) {
        let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
        subscriptions.entry(text("context")).or_default().push(text("name"));
    }
    let names: BTreeSet<_> = publishes.keys().chain(subscriptions.keys()).cloned().collect();
    let data = names.into_iter().map(|name| {
        let published = publishes.remove(&name);
        let consumed = subscriptions.remove(&name);
        let roles = [
            published.is_some().then_some("publisher"),
            consumed.is_some().then_some("consumer"),
        ];
        ContextBody {
            roles: roles.into_iter().flatten().collect(),
            publishes: published.unwrap_or_default().into_iter().collect(),
            subscriptions: consumed.unwrap_or_default(),
            name,
        }
    });
    Ok(Answer::ok(Page::whole(data.collect())))
}
