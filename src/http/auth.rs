//! Login, refresh and logout.
//!
//! A login says the same and takes as long whether the address exists or not. Login and refresh
//! take no idempotency key: to repeat a login is to log in twice.
//!
//! A login belongs to the epoch that its user was in before the password was looked up. A password that
//! is replaced meanwhile begins another epoch in the same transaction, so that no login with an old
//! password outlives it.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, nothing_after};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::{Call, SignedIn, suspended};
use super::peer::Peer;
use super::problem::ApiError;
use crate::domain::caller::Role;
use crate::domain::email_claim::EmailClaim;
use crate::domain::ids::{EmailClaimId, SessionId, UserId};
use crate::domain::session::{Session, SessionCommand};
use crate::domain::user::{User, UserStatus};
use crate::identity::password::{self, Busy};
use crate::identity::refresh::{self, RefreshToken};
use crate::identity::{same, token};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(login))
        .routes(routes!(refresh_session))
        .routes(routes!(logout))
}

/// The claim on an address.
pub(super) fn email_claim_id(app: &App, email: &str) -> EmailClaimId {
    EmailClaimId::of_address(app.settings().keys.lookup.bytes(), email)
}

impl From<Busy> for ApiError {
    fn from(busy: Busy) -> Self {
        let retry_after = std::time::Duration::from_secs(1);
        Self::unavailable("too_many_logins", busy.to_string(), retry_after)
    }
}

/// Who wants in.
#[derive(Debug, ToSchema)]
pub struct Login {
    /// The address that was registered.
    #[schema(format = Email)]
    pub email: String,
    /// The password.
    #[schema(format = Password)]
    pub password: String,
}

impl FromFields for Login {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (email, password) = (fields.text(&["email"]), fields.text(&["password"]));
        Some(Self { email: email?, password: password? })
    }
}

/// A refresh token.
#[derive(Debug, ToSchema)]
pub struct Refresh {
    /// The token of the last answer; it works once.
    pub refresh_token: String,
}

impl FromFields for Refresh {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let refresh_token = fields.text(&["refresh_token", "refreshToken"])?;
        Some(Self { refresh_token })
    }
}

/// The way in.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokensBody {
    /// For `Authorization: Bearer`.
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: &'static str,
    /// How many seconds the access token is good for.
    pub expires_in: u64,
    /// For the next refresh; it works once.
    pub refresh_token: String,
    /// Who this is.
    pub user_id: Uuid,
    /// The session.
    pub session_id: Uuid,
}

/// What a token needs to know of a user.
struct Standing {
    status: UserStatus,
    roles: BTreeSet<Role>,
    epoch: u32,
    kept_session: Option<SessionId>,
}

async fn standing(app: &App, user: Uuid) -> Result<Option<Standing>, ApiError> {
    let view = |user: &User| {
        let details = user.details.as_ref()?;
        Some(Standing {
            status: details.status,
            roles: details.roles.clone(),
            epoch: details.epoch,
            kept_session: details.kept_session,
        })
    };
    Ok(app.runtime().aggregate::<User>().read(user, view).await?.value)
}

/// The standing of somebody who may be let in.
fn admitted(standing: Option<Standing>) -> Result<Standing, ApiError> {
    match standing {
        Some(standing) if standing.status == UserStatus::Suspended => Err(suspended()),
        Some(standing) if standing.status != UserStatus::Erased => Ok(standing),
        _ => Err(wrong_credentials()),
    }
}

fn wrong_credentials() -> ApiError {
    ApiError::unauthorized("invalid_credentials", "the address or the password is wrong")
}

/// Who has an address and this password, with how they stand.
async fn holder(
    app: &App,
    claim: EmailClaimId,
    password: String,
) -> Result<Option<(UserId, Option<Standing>)>, ApiError> {
    let claims = app.runtime().aggregate::<EmailClaim>();
    let holder = claims.read(claim.uuid(), |claim| claim.holder.as_ref().map(|of| of.user_id));
    let holder = holder.await?.value;
    // Whoever is not there is looked up all the same.
    let row = holder.map_or(Uuid::nil(), UserId::uuid);
    let standing = standing(app, row).await?;
    let fits = is_password_of(app, row, password).await?;
    Ok(holder.filter(|_| fits).map(|user| (user, standing)))
}

/// Whether a password is a user's; where there is no such user it is not, just as slowly.
pub(super) async fn is_password_of(
    app: &App,
    user: Uuid,
    password: String,
) -> Result<bool, ApiError> {
    let phc = app.runtime().control().get(password::SPACE, user.as_bytes()).await?;
    let phc = phc.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(app.passwords().matches(password, phc).await?)
}

/// Log in
///
/// After ten wrong passwords for an address from one place there is a pause: 429 with `Retry-After`.
#[utoipa::path(post, path = "/auth/login", tag = "auth", request_body = Login,
    responses((status = 200, description = "Tokens", body = TokensBody)))]
async fn login(
    State(app): State<App>,
    call: Call,
    peer: Peer,
    valid: Valid<Login>,
) -> Result<Answer<TokensBody>, ApiError> {
    let Login { email, password } = valid.body;
    let claim = email_claim_id(&app, &email);
    let attempt = app.attempts().may_try(claim, peer, app.now())?;
    let found = holder(&app, claim, password).await.inspect_err(|_| attempt.give_back())?;
    let (user, standing) = found.ok_or_else(wrong_credentials)?;
    attempt.succeeded();
    let standing = admitted(standing)?;

    let now = app.now();
    let session = SessionId(app.runtime().world().new_id());
    let expires_at = now.plus(refresh::LIFETIME);
    let refresh = RefreshToken::new(session.uuid(), 1, &**app.runtime().world());
    let mut context = call.plain_context(&app);
    context.actor_id = user.to_string().into();
    context.attach = vec![refresh.row(app.settings().keys.token.bytes(), expires_at)];
    let epoch = standing.epoch;
    let start =
        SessionCommand::Start { session_id: session, user_id: user, epoch, now, expires_at };
    let sessions = app.runtime().aggregate::<Session>();
    let done = sessions.send(session.uuid(), start, context, |_| ()).await?;
    Ok(Answer::ok(tokens(&app, user, session, standing.roles, &refresh)).after(&done))
}

fn tokens(
    app: &App,
    user: UserId,
    session: SessionId,
    roles: BTreeSet<Role>,
    refresh: &RefreshToken,
) -> TokensBody {
    let id = app.runtime().world().new_id();
    let access_token = app.tokens().issue(
        user.uuid(),
        Some(session.uuid()),
        roles,
        app.now(),
        token::LIFETIME,
        id,
    );
    TokensBody {
        access_token,
        token_type: "Bearer",
        expires_in: token::LIFETIME.as_secs(),
        refresh_token: refresh.text(),
        user_id: user.uuid(),
        session_id: session.uuid(),
    }
}

/// Replace tokens
///
/// A refresh token works once. One that comes again ends the whole session.
#[utoipa::path(post, path = "/auth/refresh", tag = "auth", request_body = Refresh,
    responses((status = 200, description = "Tokens", body = TokensBody)))]
async fn refresh_session(
    State(app): State<App>,
    call: Call,
    valid: Valid<Refresh>,
) -> Result<Answer<TokensBody>, ApiError> {
    let not_valid = || ApiError::unauthorized("invalid_token", "the refresh token is not valid");
    let shown = RefreshToken::parse(&valid.body.refresh_token).ok_or_else(not_valid)?;
    let key = app.settings().keys.token.bytes();
    let kept = app.runtime().control().get(refresh::SPACE, &shown.key()).await?;
    if !kept.is_some_and(|kept| same(&kept, &shown.hash(key))) {
        return Err(not_valid());
    }
    let sessions = app.runtime().aggregate::<Session>();
    let found = sessions.read(shown.session, |session| {
        let details = session.details.as_ref()?;
        Some((details.user_id, details.expires_at, details.epoch))
    });
    let (user, expires_at, epoch) = found.await?.value.ok_or_else(not_valid)?;
    let standing = admitted(standing(&app, user.uuid()).await?)?;
    let session = SessionId(shown.session);
    if !(epoch == standing.epoch || standing.kept_session == Some(session)) {
        let detail = "this session has ended; log in again";
        return Err(ApiError::unauthorized("session_revoked", detail));
    }

    let world = app.runtime().world();
    let next = RefreshToken::new(shown.session, shown.generation.saturating_add(1), &**world);
    let mut context = call.plain_context(&app);
    context.actor_id = user.to_string().into();
    context.attach = vec![next.row(key, expires_at)];
    let rotate = SessionCommand::Rotate { generation: shown.generation, now: app.now() };
    let is_open = |session: &Session| {
        session.details.as_ref().is_some_and(|details| details.revoked.is_none())
    };
    let done = sessions.send(shown.session, rotate, context, is_open).await?;
    if !done.value {
        app.login_changed(session).await;
        return Err(ApiError::unauthorized(
            "session_revoked",
            "this refresh token was used before, so its session has ended",
        ));
    }
    let body = tokens(&app, user, session, standing.roles, &next);
    Ok(Answer::ok(body).after(&done))
}

/// Log out
///
/// Ends the session of the access token. Neither that nor the refresh token works from then on.
#[utoipa::path(post, path = "/auth/logout", tag = "auth",
    responses((status = 204, description = "The session has ended")))]
async fn logout(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    _: Valid<Nothing>,
) -> Result<Response, ApiError> {
    if let Some(session) = call.session() {
        let revoke = SessionCommand::Revoke {
            caller: call.caller(),
            reason: "logout".to_owned(),
            now: app.now(),
        };
        let sessions = app.runtime().aggregate::<Session>();
        let context = call.plain_context(&app);
        let done = sessions.send(session.uuid(), revoke, context, |_| ()).await?;
        app.login_changed(session).await;
        return Ok(nothing_after(&done));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
