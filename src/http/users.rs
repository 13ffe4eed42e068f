//! Users: registration, verification, profiles and sellers.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use souk_actors::command::{CommandError, Done, Origin};
use souk_actors::id::keyed_hash;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, composed, shown, split};
use super::auth::email_claim_id;
use super::body::{Fields, FromFields, Nothing, Reason, Unread, Valid};
use super::call::{Call, SignedIn, Staff};
use super::conditional::{IfNoneMatch, version_tag, versions_tag};
use super::params::path_id;
use super::problem::{ApiError, FieldProblem};
use crate::domain::email_claim::{CLAIM_FOR, EmailClaim, EmailClaimCommand};
use crate::domain::engagement::Engagement;
use crate::domain::ids::{EmailClaimId, EngagementId, UserId};
use crate::domain::text;
use crate::domain::user::rating::{Rating, Stars};
use crate::domain::user::{
    Registration, SellerProfile, User, UserCommand, UserDetails, UserRejection, UserStatus,
    VerificationStatus,
};
use crate::identity::password;
use crate::identity::verification;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(register))
        .routes(routes!(verify_email))
        .routes(routes!(me, update_me))
        .routes(routes!(get_user, update_user))
        .routes(routes!(upgrade_to_seller))
        .routes(routes!(get_seller_profile))
        .routes(routes!(verify_seller))
        .routes(routes!(reject_seller))
        .routes(routes!(clear_bounce))
}

/// Somebody new.
#[derive(ToSchema)]
pub struct Register {
    /// The address.
    #[schema(format = Email, example = "ann@example.com")]
    pub email: String,
    /// The password.
    #[schema(format = Password, min_length = 8, max_length = 256)]
    pub password: String,
    /// The first name.
    #[schema(max_length = 100, example = "Ann")]
    pub first_name: String,
    /// The last name.
    #[schema(max_length = 100, example = "Lee")]
    pub last_name: String,
}

impl FromFields for Register {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let email = checked(fields, &["email"], |check, text| check.email("", text));
        let password = new_password(fields, &["password"]);
        let name = |check: &mut text::Fields, text: &str| check.line("", text, text::NAME_MAX);
        let first_name = checked(fields, &["first_name", "firstName"], name);
        let last_name = checked(fields, &["last_name", "lastName"], name);
        Some(Self {
            email: email?,
            password: password?,
            first_name: first_name?,
            last_name: last_name?,
        })
    }
}

/// Reads a password that is to be somebody's from now on.
pub(super) fn new_password(fields: &mut Fields<'_>, names: &[&'static str]) -> Option<String> {
    let password = fields.text(names)?;
    let length = password.chars().count();
    if !(password::LENGTH_MIN..=password::LENGTH_MAX).contains(&length) {
        fields.error(names[0], "password_length", "must have 8 to 256 characters");
    }
    Some(password)
}

/// Reads a text and lets the domain check it, so that one answer names missing and wrong fields.
pub(super) fn checked(
    fields: &mut Fields<'_>,
    names: &[&'static str],
    check: impl FnOnce(&mut text::Fields, &str) -> String,
) -> Option<String> {
    let text = fields.text(names)?;
    let mut checks = text::Fields::default();
    let cleaned = check(&mut checks, &text);
    for error in checks.finish().err().unwrap_or_default() {
        fields.error(names[0], &error.code, error.detail);
    }
    Some(cleaned)
}

/// The token that was mailed.
#[derive(ToSchema)]
pub struct VerifyEmail {
    /// The token.
    pub verification_token: String,
}

impl FromFields for VerifyEmail {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let verification_token =
            fields.text(&["verification_token", "verificationToken", "token"])?;
        Some(Self { verification_token })
    }
}

/// A business that wants to sell.
#[derive(ToSchema)]
pub struct UpgradeToSeller {
    /// Its name; public.
    #[schema(max_length = 100)]
    pub business_name: String,
    /// Where it is.
    #[schema(max_length = 300)]
    pub business_address: String,
    /// How to reach it.
    pub business_phone: String,
}

impl FromFields for UpgradeToSeller {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let business_name = fields.text(&["business_name", "businessName"]);
        let business_address = fields.text(&["business_address", "businessAddress"]);
        let business_phone = fields.text(&["business_phone", "businessPhone"]);
        Some(Self {
            business_name: business_name?,
            business_address: business_address?,
            business_phone: business_phone?,
        })
    }
}

/// What changes; what is absent stays.
#[derive(ToSchema)]
pub struct UpdateUser {
    /// The first name.
    pub first_name: Option<String>,
    /// The last name.
    pub last_name: Option<String>,
    /// The number for text messages, with its country; an empty one takes it away.
    #[schema(example = "+84901234567")]
    pub phone: Option<String>,
    /// Whether text messages are wanted.
    pub sms_opt_in: Option<bool>,
}

impl FromFields for UpdateUser {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            first_name: fields.optional_text(&["first_name", "firstName"]),
            last_name: fields.optional_text(&["last_name", "lastName"]),
            phone: fields.optional_text(&["phone"]),
            sms_opt_in: fields.optional_bool(&["sms_opt_in", "smsOptIn"]),
        })
    }
}

/// A user. Personal fields read `[redacted]` for everybody but the user and administrators, and
/// `[erased]` after an erasure.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UserBody {
    /// The user.
    pub id: Uuid,
    /// The same.
    pub user_id: Uuid,
    /// The address.
    pub email: String,
    /// The first name.
    pub first_name: String,
    /// The last name.
    pub last_name: String,
    /// The number for text messages, if there is one.
    pub phone: Option<String>,
    /// Whether text messages are wanted.
    pub sms_opt_in: bool,
    /// `PENDING`, `ACTIVE`, `SUSPENDED` or `ERASED`.
    #[schema(value_type = String, example = "ACTIVE")]
    pub status: UserStatus,
    /// `BUYER`, `SELLER`, `ADMIN`.
    pub roles: Vec<String>,
    /// Whether the address is proved.
    pub email_verified: bool,
    /// Whether mails to the address came back for good, so that none are sent.
    pub email_unreachable: bool,
    /// When it was.
    #[schema(format = DateTime)]
    pub email_verified_at: Option<String>,
    /// How much the user takes part: a number that rises with what they do. None: it is somebody else's
    /// business, the user is erased, or this answers a change.
    pub engagement_score: Option<u32>,
    /// When the user registered.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The business, of a seller.
    pub seller_profile: Option<SellerProfileBody>,
    /// The version; also the `ETag`.
    pub version: u64,
    /// The token that is mailed. Only with `REVEAL_VERIFICATION_TOKEN` in development mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification_token: Option<String>,
}

/// A seller's business.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SellerProfileBody {
    /// The seller.
    pub user_id: Uuid,
    /// Its name; public.
    pub business_name: String,
    /// Where it is.
    pub business_address: String,
    /// How to reach it.
    pub business_phone: String,
    /// `PENDING`, `VERIFIED` or `REJECTED`.
    #[schema(value_type = String, example = "PENDING")]
    pub verification_status: VerificationStatus,
    /// What buyers think of the seller.
    pub rating: RatingBody,
    /// When the user applied.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// A seller's rating.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RatingBody {
    /// How many reviews count.
    pub count: u64,
    /// The average of their stars to two decimals; none: there are no reviews.
    #[schema(value_type = Option<f64>, example = 4.67)]
    pub average: Option<serde_json::Number>,
    /// How many gave how many stars.
    pub stars: StarsBody,
}

/// How many reviews gave how many stars.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StarsBody {
    /// One star.
    #[serde(rename = "1")]
    pub one: u64,
    /// Two.
    #[serde(rename = "2")]
    pub two: u64,
    /// Three.
    #[serde(rename = "3")]
    pub three: u64,
    /// Four.
    #[serde(rename = "4")]
    pub four: u64,
    /// Five.
    #[serde(rename = "5")]
    pub five: u64,
}

impl RatingBody {
    pub(super) fn new(rating: &Rating) -> Self {
        let stars @ Stars { one, two, three, four, five } = rating.stars;
        Self {
            count: stars.count(),
            average: stars.average(),
            stars: StarsBody { one, two, three, four, five },
        }
    }
}

impl SellerProfileBody {
    fn new(details: &UserDetails, profile: &SellerProfile, may_see: bool) -> Self {
        Self {
            user_id: details.user_id.uuid(),
            business_name: profile.business_name.clone(),
            business_address: shown(&profile.business_address, may_see),
            business_phone: shown(&profile.business_phone, may_see),
            verification_status: profile.verification_status,
            rating: RatingBody::new(&details.rating),
            created_at: profile.since.to_string(),
        }
    }
}

/// A seller's business, with what they offer.
#[derive(Debug, Serialize, ToSchema)]
pub struct SellerBody {
    /// The business.
    #[serde(flatten)]
    pub profile: SellerProfileBody,
    /// How many listings of theirs can be bought now.
    pub listing_count: u64,
}

impl UserBody {
    pub(super) fn new(details: &UserDetails, may_see: bool) -> Self {
        let seller = details.seller.as_ref();
        Self {
            id: details.user_id.uuid(),
            user_id: details.user_id.uuid(),
            email: shown(&details.email, may_see),
            first_name: shown(&details.first_name, may_see),
            last_name: shown(&details.last_name, may_see),
            phone: details.phone.as_ref().map(|phone| shown(phone, may_see)),
            sms_opt_in: details.sms_opt_in() && may_see,
            status: details.status,
            roles: details.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            email_verified: details.email_verified(),
            email_unreachable: details.email_unreachable_since.is_some() && may_see,
            email_verified_at: details.email_verified_at.map(|at| at.to_string()),
            engagement_score: None,
            created_at: details.registered_at.to_string(),
            seller_profile: seller.map(|profile| SellerProfileBody::new(details, profile, may_see)),
            version: 0,
            verification_token: None,
        }
    }
}

pub(super) fn view(may_see: bool) -> impl FnOnce(&User) -> Option<UserBody> + Send + 'static {
    move |user| user.details.as_ref().map(|details| UserBody::new(details, may_see))
}

pub(super) fn missing() -> ApiError {
    ApiError::not_found("there is no such user")
}

/// Register
///
/// Claims the address, then makes the user. The address is proved by the token that is mailed.
#[utoipa::path(post, path = "/users/register", tag = "users", request_body = Register,
    responses((status = 201, description = "Registered", body = UserBody)))]
async fn register(
    State(app): State<App>,
    call: Call,
    valid: Valid<Register>,
) -> Result<Answer<UserBody>, ApiError> {
    let body = valid.body;
    let user_id = UserId(call.new_id(&app, "users.register"));
    let phc = app.passwords().hash(body.password).await?;
    let (now, claim_id) = (app.now(), email_claim_id(&app, &body.email));
    let users = app.runtime().aggregate::<User>();
    // Who is there already gets the first answer, or hears that the key was another request's:
    // neither takes an address.
    let is_there = call.is_repeatable()
        && users.read(user_id.uuid(), |user| user.details.is_some()).await?.value;
    if !is_there {
        let claim = EmailClaimCommand::Claim { user_id, now, expires_at: now.plus(CLAIM_FOR) };
        settle_claim(&app, &call, claim_id, user_id, claim).await?;
    }

    let keys = &app.settings().keys;
    // Following from the user's id, the nonce is the same when the request is repeated.
    let nonce = keyed_hash(keys.lookup.bytes(), "verification_nonce", &[user_id.uuid().as_bytes()]);
    let nonce: String = text::hex(&nonce[..16]);
    let token = verification::verification_token(&keys.token, user_id.uuid(), &nonce);
    let registration = Registration {
        user_id,
        email: body.email,
        first_name: body.first_name,
        last_name: body.last_name,
        email_claim_id: claim_id,
        verification_token_hash: verification::token_hash(&token),
        verification_token_nonce: nonce,
        verification_expires_at: now.plus(verification::LIFETIME),
        now,
    };
    let mut context = call.context(&app, "users.register", "", &valid.canonical);
    context.actor_id = user_id.to_string().into();
    context.attach = vec![password::row(user_id.uuid(), phc)];
    let register = UserCommand::Register(Box::new(registration));
    let sent = users.send(user_id.uuid(), register, context, view(true)).await;
    let is_undone =
        sent.as_ref().is_err_and(|error| !matches!(error, CommandError::OutcomeUnknown));
    // Without a key nobody comes again as this user. With one a repeat may be under way; the claim
    // then lapses by itself.
    if is_undone && !call.is_repeatable() {
        let release = EmailClaimCommand::Release { user_id, now };
        // If it cannot be released now, it lapses too.
        let _ = settle_claim(&app, &call, claim_id, user_id, release).await;
    }
    let (body, done) = split(sent?);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    body.verification_token = app.settings().http.reveal_verification_token.then_some(token);
    Ok(Answer::created(&format!("/api/v1/users/{user_id}"), body).after(&done))
}

/// Takes an address for somebody who is about to register, or gives it up.
async fn settle_claim(
    app: &App,
    call: &Call,
    claim_id: EmailClaimId,
    user_id: UserId,
    command: EmailClaimCommand,
) -> Result<(), ApiError> {
    let mut context = call.plain_context(app);
    context.actor_id = user_id.to_string().into();
    if matches!(command, EmailClaimCommand::Release { .. }) {
        // Where nothing new is taken in, an address can be given up all the same.
        context.origin = Origin::Inside;
    }
    let claims = app.runtime().aggregate::<EmailClaim>();
    claims.send(claim_id.uuid(), command, context, |_| ()).await?;
    Ok(())
}

/// A proved address.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerifiedBody {
    /// The user.
    pub user_id: Uuid,
    /// Always true.
    pub email_verified: bool,
    /// How the user stands now.
    #[schema(value_type = String, example = "ACTIVE")]
    pub status: UserStatus,
    /// When.
    #[schema(format = DateTime)]
    pub verified_at: Option<String>,
}

/// Prove an e-mail address
///
/// With the token that was mailed. A second use answers 409 `already_verified`; an unknown token
/// 404; one older than 24 hours 410.
#[utoipa::path(post, path = "/users/verify-email", tag = "users", request_body = VerifyEmail,
    responses((status = 200, description = "Proved", body = VerifiedBody)))]
async fn verify_email(
    State(app): State<App>,
    call: Call,
    valid: Valid<VerifyEmail>,
) -> Result<Answer<VerifiedBody>, ApiError> {
    let token = valid.body.verification_token;
    let unknown = || {
        let status = axum::http::StatusCode::NOT_FOUND;
        ApiError::new(status, "token_unknown", "this verification token is not known")
    };
    let user_id = verification::user_of(&token).ok_or_else(unknown)?;
    let verify =
        UserCommand::VerifyEmail { token_hash: verification::token_hash(&token), now: app.now() };
    let target = user_id.to_string();
    let mut context = call.context(&app, "users.verify_email", &target, &valid.canonical);
    context.actor_id = target.into();
    let view = move |user: &User| {
        let details = user.details.as_ref()?;
        Some(VerifiedBody {
            user_id,
            email_verified: details.email_verified(),
            status: details.status,
            verified_at: details.email_verified_at.map(|at| at.to_string()),
        })
    };
    let users = app.runtime().aggregate::<User>();
    let done = users.send(user_id, verify, context, view).await.map_err(|error| match error {
        // A token names its user: one of nobody is as unknown as any other.
        CommandError::Rejected { rejection: UserRejection::NotFound, .. } => unknown(),
        other => other.into(),
    })?;
    let (body, done) = split(done);
    Ok(Answer::ok(body.ok_or_else(unknown)?).after(&done))
}

/// A user as they are now with their score, and the version that it has; nobody else's score is looked up.
pub(super) async fn with_score(
    app: &App,
    body: UserBody,
    may_see: bool,
) -> Result<(UserBody, u64), ApiError> {
    if !may_see || body.status == UserStatus::Erased {
        return Ok((body, 0));
    }
    let id = EngagementId::of(UserId(body.user_id)).uuid();
    let score = |engagement: &Engagement| engagement.score;
    let done = app.runtime().aggregate::<Engagement>().read(id, score).await?;
    Ok((UserBody { engagement_score: Some(done.value), ..body }, done.version))
}

async fn read_user(
    app: &App,
    call: &Call,
    user: UserId,
    theirs: &IfNoneMatch,
) -> Result<Response, ApiError> {
    let may_see = call.caller().may_act_for(user);
    let done = app.runtime().aggregate::<User>().read(user.uuid(), view(may_see)).await?;
    let mut body = done.value.ok_or_else(missing)?;
    body.version = done.version;
    let (body, score_version) = with_score(app, body, may_see).await?;
    let tag = match score_version {
        0 => version_tag(done.version),
        score => versions_tag(done.version, score),
    };
    Ok(Answer::ok(body).tagged(&tag, theirs))
}

/// Who I am
#[utoipa::path(get, path = "/users/me", tag = "users",
    responses((status = 200, description = "The caller", body = UserBody)))]
async fn me(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    read_user(&app, &call, user, &theirs).await
}

/// A user
#[utoipa::path(get, path = "/users/{id}", tag = "users", params(("id" = String, Path)),
    responses((status = 200, description = "The user", body = UserBody)))]
async fn get_user(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    read_user(&app, &call, path_id(&id)?, &theirs).await
}

/// Sends a command to a user and shows the user as it is then.
pub(super) async fn change_user(
    app: &App,
    call: &Call,
    user: UserId,
    operation: &str,
    canonical: &[u8],
    command: UserCommand,
) -> Result<(UserBody, Done<()>), ApiError> {
    let context = call.change_context(app, operation, &user.to_string(), canonical);
    let may_see = call.caller().may_act_for(user);
    let users = app.runtime().aggregate::<User>();
    let (body, done) = split(users.send(user.uuid(), command, context, view(may_see)).await?);
    let mut body = body.ok_or_else(missing)?;
    body.version = done.version;
    Ok((body, done))
}

/// Change a profile
#[utoipa::path(patch, path = "/users/{id}", tag = "users", params(("id" = String, Path)),
    request_body = UpdateUser,
    responses((status = 200, description = "The user as it is now", body = UserBody)))]
async fn update_user(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<UserBody>, ApiError> {
    update(&app, &call, path_id(&id)?, unread).await
}

/// Change my profile
#[utoipa::path(patch, path = "/users/me", tag = "users", request_body = UpdateUser,
    responses((status = 200, description = "The user as it is now", body = UserBody)))]
async fn update_me(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    unread: Unread,
) -> Result<Answer<UserBody>, ApiError> {
    let user = call.someone()?;
    update(&app, &call, user, unread).await
}

async fn update(
    app: &App,
    call: &Call,
    user: UserId,
    unread: Unread,
) -> Result<Answer<UserBody>, ApiError> {
    if !call.caller().may_act_for(user) {
        return Err(ApiError::forbidden("forbidden", UserRejection::Forbidden.to_string()));
    }
    let valid = unread.read::<UpdateUser>(app).await?;
    let UpdateUser { first_name, last_name, phone, sms_opt_in } = valid.body;
    let (caller, now) = (call.caller(), app.now());
    let command =
        UserCommand::UpdateProfile { caller, first_name, last_name, phone, sms_opt_in, now };
    let (body, done) =
        change_user(app, call, user, "users.update", &valid.canonical, command).await?;
    Ok(Answer::ok(body).after(&done))
}

/// Become a seller
///
/// The address must be proved. An administrator then verifies the business.
#[utoipa::path(post, path = "/users/upgrade-to-seller", tag = "sellers",
    request_body = UpgradeToSeller,
    responses((status = 200, description = "The seller profile", body = SellerProfileBody)))]
async fn upgrade_to_seller(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<UpgradeToSeller>,
) -> Result<Answer<SellerProfileBody>, ApiError> {
    let user = call.someone()?;
    let command = UserCommand::UpgradeToSeller {
        caller: call.caller(),
        business_name: valid.body.business_name,
        business_address: valid.body.business_address,
        business_phone: valid.body.business_phone,
        now: app.now(),
    };
    let operation = "users.upgrade_to_seller";
    let (body, done) = change_user(&app, &call, user, operation, &valid.canonical, command).await?;
    app.person_changed(user).await;
    Ok(Answer::ok(body.seller_profile.ok_or_else(missing)?).after(&done))
}

/// A seller's business
#[utoipa::path(get, path = "/users/{id}/seller-profile", tag = "sellers",
    params(("id" = String, Path)),
    responses((status = 200, description = "The seller profile", body = SellerBody)))]
async fn get_seller_profile(
    State(app): State<App>,
    call: Call,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user: UserId = path_id(&id)?;
    let may_see = call.caller().may_act_for(user);
    let done = app.runtime().aggregate::<User>().read(user.uuid(), view(may_see)).await?;
    let profile = done.value.and_then(|user| user.seller_profile);
    let profile = profile.ok_or_else(|| ApiError::not_found("this user is not a seller"))?;
    let listing_count = app.reads().active_listings(user.uuid()).await?;
    Ok(composed(&SellerBody { profile, listing_count }, &theirs))
}

/// Verify a seller
#[utoipa::path(post, path = "/admin/sellers/{id}/verify", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The seller profile", body = SellerProfileBody)))]
async fn verify_seller(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<SellerProfileBody>, ApiError> {
    let user: UserId = path_id(&id)?;
    let command = UserCommand::VerifySeller { caller: call.caller(), now: app.now() };
    let (body, done) =
        change_user(&app, &call, user, "sellers.verify", &valid.canonical, command).await?;
    Ok(Answer::ok(body.seller_profile.ok_or_else(missing)?).after(&done))
}

/// Turn a seller down
#[utoipa::path(post, path = "/admin/sellers/{id}/reject", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The seller profile", body = SellerProfileBody)))]
async fn reject_seller(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<SellerProfileBody>, ApiError> {
    let user: UserId = path_id(&id)?;
    let reason = valid.body.reason.ok_or_else(|| {
        ApiError::invalid(vec![FieldProblem::new("/reason", "required", "is required")])
    })?;
    let command = UserCommand::RejectSeller { caller: call.caller(), reason, now: app.now() };
    let (body, done) =
        change_user(&app, &call, user, "sellers.reject", &valid.canonical, command).await?;
    Ok(Answer::ok(body.seller_profile.ok_or_else(missing)?).after(&done))
}

/// Write to an address again
///
/// After a mail to it came back for good and what was wrong has been mended.
#[utoipa::path(post, path = "/admin/users/{id}/clear-bounce", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The user as it is now", body = UserBody)))]
async fn clear_bounce(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Nothing>,
) -> Result<Answer<UserBody>, ApiError> {
    let command = UserCommand::ClearBounce { caller: call.caller(), now: app.now() };
    let operation = "users.clear_bounce";
    let (body, done) =
        change_user(&app, &call, path_id(&id)?, operation, &valid.canonical, command).await?;
    Ok(Answer::ok(body).after(&done))
}
