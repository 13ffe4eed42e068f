//! Keys that people make for their own programs: tokens of services that act as their owner, within
//! scopes narrower than what the owner may do.

use axum::extract::{Path, State};
use axum::response::Response;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page, nothing_after};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::SignedIn;
use super::pages::{self, PAGE};
use super::params::{Params, path_id};
use super::problem::ApiError;
use super::service_tokens::{self, NewToken, ServiceTokenBody};
use super::users::missing as no_user;
use crate::domain::ids::{ServiceTokenId, UserId};
use crate::domain::service_token::{NewOwner, ServiceToken, ServiceTokenCommand};
use crate::domain::user::User;

/// How long a key is good for at most.
const LIFETIME_SECONDS_MAX: u32 = 365 * 24 * 60 * 60;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(my_api_keys, make_api_key))
        .routes(routes!(revoke_api_key))
}

/// A new key.
#[derive(Debug, ToSchema)]
pub struct NewApiKey {
    /// What you call it.
    #[schema(max_length = 100, example = "stock at the warehouse")]
    pub name: String,
    /// What it may do as you: `profile`, `listings`, `orders`, `promotions`, `payouts`, `reviews`,
    /// `interests` and `notifications`, each with `:read` or `:write`; for administrators also
    /// `admin:read` and `admin:write`, and `pii:read` to see what is personal in events. To write is
    /// not to read.
    #[schema(example = json!(["listings:write", "orders:read"]))]
    pub scopes: Vec<String>,
    /// For how many seconds it is good; 90 days when absent.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub expires_in: Option<u32>,
}

impl FromFields for NewApiKey {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let name = fields.text(&["name"]);
        let scopes = fields.optional_texts(&["scopes"]);
        let expires_in = fields.optional_count(&["expires_in", "expiresIn"]);
        if expires_in.is_some_and(|seconds| seconds > LIFETIME_SECONDS_MAX) {
            fields.error("expires_in", "out_of_range", "must be at most 31536000 (a year)");
        }
        Some(Self { name: name?, scopes, expires_in })
    }
}

/// My API keys
///
/// The newest first, with those that are over. What a key itself is stands in the answer that made it,
/// and nowhere else.
#[utoipa::path(get, path = "/users/me/api-keys", tag = "users",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of keys", body = Page<ServiceTokenBody>)))]
async fn my_api_keys(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<ServiceTokenBody>>, ApiError> {
    service_tokens::list(&app, &params, Some(call.someone()?)).await
}

/// Make an API key
///
/// For a program of your own, which then acts as you within the key's scopes: it is 403
/// `insufficient_scope` wherever it lacks the one that is needed. Send it as `Authorization: Bearer`. Its
/// text is in this answer and nowhere else; a repeat with the same `Idempotency-Key` gets the same key.
/// It is over when it expires, when it is taken back, and with everything that ends your logins: a new
/// password, a log-out everywhere, a suspension. No key makes keys.
#[utoipa::path(post, path = "/users/me/api-keys", tag = "users", request_body = NewApiKey,
    responses((status = 201, description = "The key", body = ServiceTokenBody)))]
async fn make_api_key(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewApiKey>,
) -> Result<Answer<ServiceTokenBody>, ApiError> {
    let user = call.someone()?;
    let NewApiKey { name, scopes, expires_in } = valid.body;
    let view = |user: &User| user.details.as_ref().map(|details| details.epoch);
    let epoch = app.runtime().aggregate::<User>().read(user.uuid(), view).await?.value;
    let owner = NewOwner { user_id: user, epoch: epoch.ok_or_else(no_user)? };
    let new = NewToken { name, scopes, expires_in, quota: None, owner: Some(owner) };
    service_tokens::issue(&app, &call, &valid.canonical, new).await
}

/// Take an API key back
///
/// One's own. From this answer on it lets nobody in.
#[utoipa::path(delete, path = "/users/me/api-keys/{id}", tag = "users",
    params(("id" = String, Path)),
    responses((status = 204, description = "It is not good any more")))]
async fn revoke_api_key(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let id: ServiceTokenId = path_id(&id)?;
    let tokens = app.runtime().aggregate::<ServiceToken>();
    let owner = tokens.read(id.uuid(), |token| token.details.as_ref().and_then(|of| of.owner_id()));
    if owner.await?.value != Some(user) {
        return Err(ApiError::not_found("there is no such key, or not of this caller"));
    }
    let command = ServiceTokenCommand::Revoke { caller: call.caller(), now: app.now() };
    let done = tokens.send(id.uuid(), command, call.plain_context(&app), |_| ()).await?;
    Ok(nothing_after(&done))
}

/// All keys of a person.
pub(super) async fn all_of(app: &App, user: UserId) -> Result<Vec<ServiceTokenBody>, ApiError> {
    let page = |before| app.reads().service_tokens(Some(user.uuid()), before, PAGE);
    let mut all = Vec::new();
    for row in pages::all(page, |row| (row.issued_at.millis(), row.token_id)).await? {
        let view = |token: &ServiceToken| token.details.clone();
        let read = app.runtime().aggregate::<ServiceToken>().read(row.token_id, view).await?;
        if let Some(details) = read.value {
            all.push(service_tokens::current(app, &details, Some(user)).await?);
        }
    }
    Ok(all)
}
