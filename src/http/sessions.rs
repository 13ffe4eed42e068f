//! Sessions: where somebody is logged in.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, nothing_after};
use super::body::{Nothing, Valid};
use super::call::{Call, SignedIn};
use super::pages::{self, PAGE};
use super::params::{Params, path_id};
use super::problem::ApiError;
use super::users::missing as no_user;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::session::{Session, SessionCommand};
use crate::domain::user::{User, UserCommand};
use crate::projections::{SESSIONS_VIEW, SessionRow};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(my_sessions))
        .routes(routes!(end_session))
        .routes(routes!(logout_all))
}

/// A login.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionBody {
    /// The session.
    pub session_id: Uuid,
    /// Whether it is the one that asks.
    pub current: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When its tokens were last replaced.
    #[schema(format = DateTime)]
    pub refreshed_at: String,
    /// When it ends.
    #[schema(format = DateTime)]
    pub expires_at: String,
}

impl SessionBody {
    pub(super) fn new(row: &SessionRow, current: Option<SessionId>) -> Self {
        Self {
            session_id: row.session_id,
            current: current.map(SessionId::uuid) == Some(row.session_id),
            created_at: row.started_at.to_string(),
            refreshed_at: row.refreshed_at.to_string(),
            expires_at: row.expires_at.to_string(),
        }
    }
}

/// Where I am logged in
///
/// The sessions that are open, the newest first. No token is shown.
#[utoipa::path(get, path = "/users/me/sessions", tag = "users",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of sessions", body = Page<SessionBody>)))]
async fn my_sessions(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<SessionBody>>, ApiError> {
    let user = call.someone()?;
    app.includes(SESSIONS_VIEW, &params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let mut rows = app.reads().sessions(user.uuid(), Some(app.now()), before, limit + 1).await?;
    let has_more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let last = rows.last().filter(|_| has_more);
    let next_cursor = last
        .map(|row| app.cursors().seal(&params.list(), &(row.started_at.millis(), row.session_id)));
    // Those that are over, but have not said so themselves yet.
    let view = |user: &User| user.details.clone();
    let details = app.runtime().aggregate::<User>().read(user.uuid(), view).await?.value;
    rows.retain(|row| {
        let session = SessionId(row.session_id);
        details.as_ref().is_some_and(|details| details.goes_on(session, row.epoch))
    });
    let data = rows.iter().map(|row| SessionBody::new(row, call.session())).collect();
    let page = Page { data, next_cursor, has_more };
    Ok(params.with_next(page).projected(&app, SESSIONS_VIEW))
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such session, or not of this caller")
}

/// End a session
///
/// One's own. Its tokens do not work from then on.
#[utoipa::path(delete, path = "/users/me/sessions/{id}", tag = "users",
    params(("id" = String, Path)),
    responses((status = 204, description = "The session has ended")))]
async fn end_session(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let id: SessionId = path_id(&id)?;
    let sessions = app.runtime().aggregate::<Session>();
    let owner = sessions.read(id.uuid(), |session| session.details.as_ref().map(|of| of.user_id));
    if owner.await?.value != Some(user) {
        return Err(missing());
    }
    let (caller, now) = (call.caller(), app.now());
    let revoke = SessionCommand::Revoke { caller, reason: "revoked".to_owned(), now };
    let done = sessions.send(id.uuid(), revoke, call.plain_context(&app), |_| ()).await?;
    app.login_changed(id).await;
    Ok(nothing_after(&done))
}

/// Log out everywhere
///
/// Every session of the caller ends, this one too. No token works from then on.
#[utoipa::path(post, path = "/auth/logout-all", tag = "auth",
    responses((status = 204, description = "No session is left")))]
async fn logout_all(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<Nothing>,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let target = user.to_string();
    let context = call.context(&app, "auth.logout_all", &target, &valid.canonical);
    let command = UserCommand::EndSessions { caller: call.caller(), now: app.now() };
    let users = app.runtime().aggregate::<User>();
    let done = users.send(user.uuid(), command, context, |_| ()).await?;
    app.person_changed(user).await;
    Ok(nothing_after(&done))
}

/// All sessions of a user that are open.
pub(super) async fn all_of(
    app: &App,
    call: &Call,
    user: UserId,
) -> Result<Vec<SessionBody>, ApiError> {
    let view = |user: &User| user.details.clone();
    let details = app.runtime().aggregate::<User>().read(user.uuid(), view).await?.value;
    let details = details.ok_or_else(no_user)?;
    let now = Some(app.now());
    let page = |before| app.reads().sessions(user.uuid(), now, before, PAGE);
    let rows = pages::all(page, |row| (row.started_at.millis(), row.session_id)).await?;
    let open = rows.iter().filter(|row| details.goes_on(SessionId(row.session_id), row.epoch));
    Ok(open.map(|row| SessionBody::new(row, call.session())).collect())
}
