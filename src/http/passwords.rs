//! Passwords: forgotten, reset, changed; and another mail to prove an address.
//!
//! Whoever asks for a mail hears 202 at once, whether the address is somebody's or not: what follows
//! goes on behind the answer, so that the time it takes tells nothing either.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use souk_actors::command::{CommandContext, CommandError};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::nothing_after;
use super::auth::{email_claim_id, is_password_of};
use super::body::{Fields, FromFields, Valid};
use super::call::{Call, SignedIn};
use super::peer::Peer;
use super::problem::ApiError;
use super::users::{checked, missing, new_password};
use crate::domain::email_claim::EmailClaim;
use crate::domain::ids::{EmailClaimId, UserId};
use crate::domain::user::{OneTimeToken, User, UserCommand, UserRejection};
use crate::identity::{password, verification};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(forgot_password))
        .routes(routes!(reset_password))
        .routes(routes!(change_password))
        .routes(routes!(resend_verification))
}

/// An address.
#[derive(ToSchema)]
pub struct Addressee {
    /// The address that was registered.
    #[schema(format = Email, example = "ann@example.com")]
    pub email: String,
}

impl FromFields for Addressee {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let email = checked(fields, &["email"], |check, text| check.email("", text))?;
        Some(Self { email })
    }
}

/// A new password, and the token that allows it.
#[derive(ToSchema)]
pub struct ResetPassword {
    /// The token that was mailed.
    pub token: String,
    /// The new password.
    #[schema(format = Password, min_length = 8, max_length = 256)]
    pub password: String,
}

impl FromFields for ResetPassword {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let token = fields.text(&["token", "reset_token", "resetToken"]);
        let password = new_password(fields, &["password", "new_password", "newPassword"]);
        Some(Self { token: token?, password: password? })
    }
}

/// A new password in place of the old one.
#[derive(ToSchema)]
pub struct ChangePassword {
    /// The password so far.
    #[schema(format = Password)]
    pub current: String,
    /// The one from now on.
    #[schema(format = Password, min_length = 8, max_length = 256)]
    pub new: String,
}

impl FromFields for ChangePassword {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let current = fields.text(&["current", "current_password", "currentPassword"]);
        let new = new_password(fields, &["new", "new_password", "newPassword"]);
        Some(Self { current: current?, new: new? })
    }
}

/// What is to be mailed.
#[derive(Debug, Clone, Copy)]
enum Mailed {
    Verification,
    PasswordReset,
}

/// Sees to it, behind the answer, that the owner of an address gets a mail, if there is one.
async fn mail_later(
    app: &App,
    call: &Call,
    email: &str,
    mailed: Mailed,
) -> Result<Response, ApiError> {
    let Some(place) = app.unhurried_place() else {
        let detail = "too many mails are being asked for";
        return Err(ApiError::unavailable("overloaded", detail, Duration::from_secs(1)));
    };
    let (app, context) = (app.clone(), call.plain_context(app));
    let claim = email_claim_id(&app, email);
    tokio::spawn(async move {
        if let Err(error) = mail(&app, claim, mailed, context).await {
            let code = error.code().to_owned();
            tracing::warn!(code, ?mailed, "a mail that was asked for could not be ordered");
        }
        drop(place);
    });
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn mail(
    app: &App,
    claim: EmailClaimId,
    mailed: Mailed,
    mut context: CommandContext,
) -> Result<(), ApiError> {
    let claims = app.runtime().aggregate::<EmailClaim>();
    let holder = claims.read(claim.uuid(), |claim| claim.holder.as_ref().map(|of| of.user_id));
    let Some(user) = holder.await?.value else { return Ok(()) };
    let (world, now) = (app.runtime().world(), app.now());
    let (nonce, lifetime) = match mailed {
        Mailed::Verification => (verification::new_nonce(&**world), verification::LIFETIME),
        Mailed::PasswordReset => {
            (verification::new_reset_nonce(&**world), verification::RESET_LIFETIME)
        }
    };
    let key = &app.settings().keys.token;
    let token = verification::verification_token(key, user.uuid(), &nonce);
    let hash = verification::token_hash(&token);
    let token = OneTimeToken { hash, nonce, expires_at: now.plus(lifetime) };
    let command = match mailed {
        Mailed::Verification => UserCommand::RequestVerification { token, now },
        Mailed::PasswordReset => UserCommand::RequestPasswordReset { token, now },
    };
    context.actor_id = user.to_string().into();
    match app.runtime().aggregate::<User>().send(user.uuid(), command, context, |_| ()).await {
        // Verified, suspended, gone: there is nothing to be mailed.
        Ok(_) | Err(CommandError::Rejected { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ask for a new password
///
/// A token for it is mailed to the address, if it is somebody's: it works once, for an hour. Within a
/// minute no second mail goes out. The answer is always the same.
#[utoipa::path(post, path = "/auth/password/forgot", tag = "auth", request_body = Addressee,
    responses((status = 202, description = "If the address is somebody's, a mail is on its way")))]
async fn forgot_password(
    State(app): State<App>,
    call: Call,
    valid: Valid<Addressee>,
) -> Result<Response, ApiError> {
    mail_later(&app, &call, &valid.body.email, Mailed::PasswordReset).await
}

/// Ask for the mail that proves an address once more
///
/// The token in it takes the place of the earlier one. The answer is always the same.
#[utoipa::path(post, path = "/users/verify-email/resend", tag = "users", request_body = Addressee,
    responses((status = 202, description = "If the address waits for its proof, a mail is on its way")))]
async fn resend_verification(
    State(app): State<App>,
    call: Call,
    valid: Valid<Addressee>,
) -> Result<Response, ApiError> {
    mail_later(&app, &call, &valid.body.email, Mailed::Verification).await
}

fn unknown() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "token_unknown", UserRejection::TokenUnknown.to_string())
}

/// Set a new password
///
/// With the token that was mailed. Every session of the user ends. A token that is not known (any
/// more) is 404, one that is older than an hour 410.
#[utoipa::path(post, path = "/auth/password/reset", tag = "auth", request_body = ResetPassword,
    responses((status = 204, description = "The password is another one now")))]
async fn reset_password(
    State(app): State<App>,
    call: Call,
    valid: Valid<ResetPassword>,
) -> Result<Response, ApiError> {
    let ResetPassword { token, password } = valid.body;
    let user = UserId(verification::user_of(&token).ok_or_else(unknown)?);
    let token_hash = verification::token_hash(&token);
    let users = app.runtime().aggregate::<User>();
    let hash = token_hash.clone();
    let looked = users.read(user.uuid(), move |user: &User| {
        let details = user.details.as_ref()?;
        let pending = details.password_reset.as_ref().is_some_and(|token| token.hash == hash);
        Some((details.email_claim_id, pending))
    });
    let (claim, pending) = looked.await?.value.ok_or_else(unknown)?;
    // Nobody makes us hash a password for a token that is none.
    if !pending && !call.is_repeatable() {
        return Err(unknown());
    }
    let phc = app.passwords().hash(password).await?;
    let target = user.to_string();
    let mut context = call.context(&app, "auth.password_reset", &target, &valid.canonical);
    context.actor_id = target.into();
    context.attach = vec![password::row(user.uuid(), phc)];
    let command = UserCommand::ResetPassword { token_hash, now: app.now() };
    let done = users.send(user.uuid(), command, context, |_| ()).await?;
    app.attempts().forget(claim);
    app.person_changed(user).await;
    Ok(nothing_after(&done))
}

/// Checks the caller's own password, as carefully as at a login.
pub(super) async fn confirmed(
    app: &App,
    user: UserId,
    peer: Peer,
    password: String,
) -> Result<EmailClaimId, ApiError> {
    let users = app.runtime().aggregate::<User>();
    let claim = users.read(user.uuid(), |user| user.details.as_ref().map(|of| of.email_claim_id));
    let claim = claim.await?.value.ok_or_else(missing)?;
    let attempt = app.attempts().may_try(claim, peer, app.now())?;
    let fits = is_password_of(app, user.uuid(), password).await;
    if fits.inspect_err(|_| attempt.give_back())? {
        attempt.give_back();
        return Ok(claim);
    }
    Err(ApiError::forbidden("wrong_password", "the password is wrong"))
}

/// Change one's password
///
/// Every other session ends; the one that asks goes on. It takes no idempotency key: the old password
/// is wrong the second time.
#[utoipa::path(post, path = "/users/me/password", tag = "users", request_body = ChangePassword,
    responses((status = 204, description = "The password is another one now")))]
async fn change_password(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    peer: Peer,
    valid: Valid<ChangePassword>,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let ChangePassword { current, new } = valid.body;
    let claim = confirmed(&app, user, peer, current).await?;
    let phc = app.passwords().hash(new).await?;
    let mut context = call.plain_context(&app);
    context.attach = vec![password::row(user.uuid(), phc)];
    let command =
        UserCommand::ChangePassword { caller: call.caller(), kept: call.session(), now: app.now() };
    let users = app.runtime().aggregate::<User>();
    let done = users.send(user.uuid(), command, context, |_| ()).await?;
    app.attempts().forget(claim);
    app.person_changed(user).await;
    Ok(nothing_after(&done))
}
