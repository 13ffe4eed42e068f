//! Tokens of services outside, kept by administrators. A token's text is answered once, where it is
//! issued, and is not stored. Keys of people ([`api_keys`](super::api_keys)) are such tokens too.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, nothing_after, shown, split};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::{Call, Staff};
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::ids::{ServiceTokenId, UserId};
use crate::domain::service_token::{
    NewOwner, Quota, ServiceToken, ServiceTokenCommand, ServiceTokenDetails,
};
use crate::identity::service_token;
use crate::projections::{SERVICE_TOKENS_VIEW, ServiceTokenRow};

/// How long a token is good for when nobody says otherwise, and at most.
const LIFETIME_SECONDS: u32 = 90 * 24 * 60 * 60;
const LIFETIME_SECONDS_MAX: u32 = 10 * 365 * 24 * 60 * 60;
const ACTIVE: &str = "active";
const REVOKED: &str = "revoked";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_service_tokens, issue_service_token))
        .routes(routes!(revoke_service_token))
}

/// How much a token may publish.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct QuotaBody {
    /// So many events.
    #[schema(minimum = 1, maximum = 100_000_000)]
    pub events: u64,
    /// In so many seconds.
    #[schema(minimum = 1, maximum = 86_400)]
    pub seconds: u64,
}

/// A new token.
#[derive(Debug, ToSchema)]
pub struct NewServiceToken {
    /// What people call it.
    #[schema(max_length = 100, example = "the warehouse")]
    pub name: String,
    /// `publisher` and `events:read`, each also with `:<topic pattern>` for some event types only;
    /// `pii:read`, to read personal fields too.
    #[schema(example = json!(["publisher"]))]
    pub scopes: Vec<String>,
    /// For how many seconds it is good; 90 days when absent.
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub expires_in: Option<u32>,
    /// Its own quota, instead of the common one.
    pub rate_limit: Option<QuotaBody>,
}

impl FromFields for NewServiceToken {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let name = fields.text(&["name"]);
        let scopes = fields.optional_texts(&["scopes"]);
        let expires_in = fields.optional_count(&["expires_in", "expiresIn"]);
        if expires_in.is_some_and(|seconds| seconds > LIFETIME_SECONDS_MAX) {
            fields.error("expires_in", "out_of_range", "must be at most 315360000 (ten years)");
        }
        let rate_limit = fields.optional_object(&["rate_limit", "rateLimit"], |quota| {
            let (events, seconds) = (quota.count(&["events"]), quota.count(&["seconds"]));
            Some(QuotaBody { events: events?.into(), seconds: seconds?.into() })
        });
        Some(Self { name: name?, scopes, expires_in, rate_limit })
    }
}

/// A token of a service.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ServiceTokenBody {
    /// The token.
    pub token_id: Uuid,
    /// What people call it; of a person's key, for that person alone.
    pub name: String,
    /// Whose key it is; none: it is a service's.
    pub user_id: Option<Uuid>,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Its own quota.
    pub rate_limit: Option<QuotaBody>,
    /// When it was issued.
    #[schema(format = DateTime)]
    pub issued_at: String,
    /// Until when it is good.
    #[schema(format = DateTime)]
    pub expires_at: String,
    /// When it was taken back, if it was.
    #[schema(format = DateTime)]
    pub revoked_at: Option<String>,
    /// When it was last used. A use within the hour after another is not noted.
    #[schema(format = DateTime)]
    pub last_used_at: Option<String>,
    /// `active`, `expired` or `revoked`.
    #[schema(example = "active")]
    pub state: &'static str,
    /// The token itself, for `Authorization: Bearer`; only where it is issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A token as `user` sees it; none: as administrators do.
fn body(details: &ServiceTokenDetails, user: Option<UserId>, now: Timestamp) -> ServiceTokenBody {
    let name = match &details.owner {
        Some(owner) => shown(&owner.label, user == Some(owner.user_id)),
        None => details.name.clone(),
    };
    let quota = |quota: Quota| QuotaBody { events: quota.events, seconds: quota.seconds };
    ServiceTokenBody {
        token_id: details.token_id.uuid(),
        name,
        user_id: details.owner_id().map(UserId::uuid),
        scopes: details.scopes.clone(),
        rate_limit: details.quota.map(quota),
        issued_at: details.issued_at.to_string(),
        expires_at: details.expires_at.to_string(),
        revoked_at: details.revoked_at.map(|at| at.to_string()),
        last_used_at: details.last_used_at.map(|at| at.to_string()),
        state: match details.revoked_at {
            Some(_) => REVOKED,
            None if details.is_good(now) => ACTIVE,
            None => "expired",
        },
        token: None,
    }
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such service token")
}

/// Service tokens
///
/// Those of services, and the keys of people.
#[utoipa::path(get, path = "/admin/service-tokens", tag = "admin",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "The newest first", body = Page<ServiceTokenBody>)))]
async fn list_service_tokens(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<ServiceTokenBody>>, ApiError> {
    list(&app, &params, None).await
}

/// The tokens, or the keys of one person.
pub(super) async fn list(
    app: &App,
    params: &Params,
    user: Option<UserId>,
) -> Result<Answer<Page<ServiceTokenBody>>, ApiError> {
    app.includes(SERVICE_TOKENS_VIEW, params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let mut rows = app.reads().service_tokens(user.map(UserId::uuid), before, limit + 1).await?;
    let behind = |row: &ServiceTokenRow| (row.issued_at.millis(), row.token_id);
    let next_cursor = params.cut(app, &mut rows, limit, behind);
    let mut data = Vec::with_capacity(rows.len());
    for row in rows {
        let view = |token: &ServiceToken| token.details.clone();
        let read = app.runtime().aggregate::<ServiceToken>().read(row.token_id, view).await?;
        if let Some(details) = read.value {
            data.push(current(app, &details, user).await?);
        }
    }
    let page = Page { has_more: next_cursor.is_some(), data, next_cursor };
    Ok(params.with_next(page).projected(app, SERVICE_TOKENS_VIEW))
}

/// A token as `user` sees it. A key can be over without having said so yet.
pub(super) async fn current(
    app: &App,
    details: &ServiceTokenDetails,
    user: Option<UserId>,
) -> Result<ServiceTokenBody, ApiError> {
    let mut body = body(details, user, app.now());
    if let Some(owner) = details.owner.as_ref().filter(|_| body.state == ACTIVE) {
        let person = app.access().person(app.runtime(), owner.user_id).await?;
        if !person.is_some_and(|person| person.lets_key(owner.epoch)) {
            body.state = REVOKED;
        }
    }
    Ok(body)
}

/// Issue a service token
///
/// Its text is in this answer and nowhere else. A repeat with the same `Idempotency-Key` gets the
/// same token.
#[utoipa::path(post, path = "/admin/service-tokens", tag = "admin",
    request_body = NewServiceToken,
    responses((status = 201, description = "The token", body = ServiceTokenBody)))]
async fn issue_service_token(
    State(app): State<App>,
    Staff(call): Staff,
    valid: Valid<NewServiceToken>,
) -> Result<Answer<ServiceTokenBody>, ApiError> {
    let NewServiceToken { name, scopes, expires_in, rate_limit } = valid.body;
    let quota = rate_limit.map(|of| Quota { events: of.events, seconds: of.seconds });
    let new = NewToken { name, scopes, expires_in, quota, owner: None };
    issue(&app, &call, &valid.canonical, new).await
}

/// What a new token is to be.
pub(super) struct NewToken {
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// For how many seconds it is good; none: the default.
    pub expires_in: Option<u32>,
    /// How much it may publish; none: as much as any.
    pub quota: Option<Quota>,
    /// Whose key it is; none: a service's.
    pub owner: Option<NewOwner>,
}

/// Issues a token, and answers with its text.
pub(super) async fn issue(
    app: &App,
    call: &Call,
    canonical: &[u8],
    new: NewToken,
) -> Result<Answer<ServiceTokenBody>, ApiError> {
    let user = new.owner.as_ref().map(|owner| owner.user_id);
    let (operation, place) = match user {
        Some(_) => ("api_keys.make", "/api/v1/users/me/api-keys"),
        None => ("service_tokens.issue", "/api/v1/admin/service-tokens"),
    };
    let token_id = ServiceTokenId(call.new_id(app, operation));
    let context = call.context(app, operation, "", canonical);
    let now = app.now();
    let lifetime = Duration::from_secs(new.expires_in.unwrap_or(LIFETIME_SECONDS).into());
    let command = ServiceTokenCommand::Issue {
        caller: call.caller(),
        token_id,
        name: new.name,
        scopes: new.scopes,
        quota: new.quota,
        owner: new.owner,
        now,
        expires_at: now.plus(lifetime),
    };
    let view = move |token: &ServiceToken| token.details.as_ref().map(|of| body(of, user, now));
    let tokens = app.runtime().aggregate::<ServiceToken>();
    let (body, done) = split(tokens.send(token_id.uuid(), command, context, view).await?);
    let mut body = body.ok_or_else(missing)?;
    body.token = Some(service_token::text(app.settings().keys.token.bytes(), token_id));
    Ok(Answer::created(&format!("{place}/{token_id}"), body).after(&done))
}

/// Take a service token back
///
/// From this answer on it lets nobody in.
#[utoipa::path(delete, path = "/admin/service-tokens/{id}", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 204, description = "It is not good any more")))]
async fn revoke_service_token(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Response, ApiError> {
    let id: ServiceTokenId = path_id(&id)?;
    let command = ServiceTokenCommand::Revoke { caller: call.caller(), now: app.now() };
    let tokens = app.runtime().aggregate::<ServiceToken>();
    let done = tokens.send(id.uuid(), command, call.plain_context(&app), |_| ()).await?;
    Ok(nothing_after(&done))
}
