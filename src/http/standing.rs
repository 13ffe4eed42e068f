//! How people stand, for administrators: who there is, who is locked out, who is let in again.

use axum::extract::{Path, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::auth::email_claim_id;
use super::body::{Nothing, Reason, Valid};
use super::call::Staff;
use super::params::{Params, path_id};
use super::problem::{ApiError, FieldProblem};
use super::users::{UserBody, change_user, view, with_score};
use crate::domain::caller::Role;
use crate::domain::email_claim::EmailClaim;
use crate::domain::ids::UserId;
use crate::domain::user::{User, UserCommand, UserStatus, VerificationStatus};
use crate::projections::{USERS_VIEW, UserFilter};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_users))
        .routes(routes!(suspend_user))
        .routes(routes!(reinstate_user))
}

/// Whom a search names: the holder of an address, or the user of an id.
async fn named(app: &App, text: &str) -> Result<Option<UserId>, ApiError> {
    if !text.contains('@') {
        return Ok(text.parse().ok());
    }
    let claim = email_claim_id(app, text);
    let claims = app.runtime().aggregate::<EmailClaim>();
    let holder = claims.read(claim.uuid(), |claim| claim.holder.as_ref().map(|of| of.user_id));
    Ok(holder.await?.value)
}

async fn shown(app: &App, user: Uuid) -> Result<Option<UserBody>, ApiError> {
    let done = app.runtime().aggregate::<User>().read(user, view(true)).await?;
    let Some(body) = done.value else { return Ok(None) };
    let body = UserBody { version: done.version, ..body };
    Ok(Some(with_score(app, body, true).await?.0))
}

/// Users
///
/// The newest first. `q` is a whole e-mail address or the id of a user: what is stored of people cannot
/// be searched otherwise.
#[utoipa::path(get, path = "/admin/users", tag = "admin",
    params(("status" = Option<String>, Query, description = "`PENDING`, `ACTIVE`, `SUSPENDED` or `ERASED`"),
        ("role" = Option<String>, Query, description = "`BUYER`, `SELLER` or `ADMIN`"),
        ("seller_status" = Option<String>, Query, description = "`PENDING`, `VERIFIED` or `REJECTED`"),
        ("q" = Option<String>, Query, description = "An e-mail address, or a user's id"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of users", body = Page<UserBody>)))]
async fn list_users(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<UserBody>>, ApiError> {
    let mut filter = UserFilter {
        status: params.word::<UserStatus>("status")?,
        role: params.word::<Role>("role")?,
        seller_status: params.word::<VerificationStatus>("seller_status")?,
        user_id: None,
    };
    app.includes(USERS_VIEW, &params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    if let Some(text) = params.text("q") {
        // Nobody's id, where the search names nobody.
        filter.user_id = Some(named(&app, text).await?.unwrap_or_default().uuid());
    }
    let mut rows = app.reads().users(&filter, before, limit + 1).await?;
    let has_more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let last = rows.last().filter(|_| has_more);
    let next_cursor = last
        .map(|row| app.cursors().seal(&params.list(), &(row.registered_at.millis(), row.user_id)));
    let mut data = Vec::with_capacity(rows.len());
    for row in rows {
        data.extend(shown(&app, row.user_id).await?);
    }
    let page = Page { data, next_cursor, has_more };
    Ok(params.with_next(page).projected(&app, USERS_VIEW))
}

/// The reason in a body, which must have one.
pub(super) fn required(reason: Reason) -> Result<String, ApiError> {
    reason.reason.ok_or_else(|| {
        ApiError::invalid(vec![FieldProblem::new("/reason", "required", "is required")])
    })
}

/// Suspend a user
///
/// From the next request on the user's tokens are 403 `account_suspended`, every session ends, and what
/// the user sells cannot be bought. Orders that are under way go on.
#[utoipa::path(post, path = "/admin/users/{id}/suspend", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The user as it is now", body = UserBody)))]
async fn suspend_user(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<UserBody>, ApiError> {
    let user: UserId = path_id(&id)?;
    let reason = required(valid.body)?;
    let command = UserCommand::Suspend { caller: call.caller(), reason, now: app.now() };
    let (body, done) =
        change_user(&app, &call, user, "users.suspend", &valid.canonical, command).await?;
    app.person_changed(user).await;
    Ok(Answer::ok(body).after(&done))
}

/// Let a suspended user in again
///
/// The user stands as before and has to log in anew.
#[utoipa::path(post, path = "/admin/users/{id}/reinstate", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The user as it is now", body = UserBody)))]
async fn reinstate_user(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<UserBody>, ApiError> {
    let user: UserId = path_id(&id)?;
    let command = UserCommand::Reinstate { caller: call.caller(), now: app.now() };
    let (body, done) =
        change_user(&app, &call, user, "users.reinstate", &valid.canonical, command).await?;
    app.person_changed(user).await;
    Ok(Answer::ok(body).after(&done))
}
