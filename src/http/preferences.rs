//! What people want to be told, and by which way.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, split};
use super::body::{Fields, FromFields, Valid};
use super::call::SignedIn;
use super::conditional::IfNoneMatch;
use super::problem::ApiError;
use super::users::missing;
use crate::domain::caller::Role;
use crate::domain::notification::Channel;
use crate::domain::preferences::{Muted, NotificationKind, ReportMails};
use crate::domain::user::{User, UserCommand, UserDetails};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_preferences, set_preferences))
}

const KINDS: [NotificationKind; 4] = [
    NotificationKind::Account,
    NotificationKind::Orders,
    NotificationKind::Reviews,
    NotificationKind::News,
];

/// What is told by which way.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PreferencesBody {
    /// By mail.
    pub email: KindsBody,
    /// By text message, to whoever agreed to them.
    pub sms: KindsBody,
    /// Inside the marketplace.
    pub in_app: KindsBody,
    /// Which reports are mailed: `off`, `hourly` or `daily`. Of administrators alone.
    #[schema(example = "daily")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reports: Option<&'static str>,
}

/// What is told by a way.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KindsBody {
    /// The account and its security, and what one has in hand of a purchase; always true.
    pub account: bool,
    /// Orders, and the money for them.
    pub orders: bool,
    /// Reviews.
    pub reviews: bool,
    /// News of sellers who are followed, and of favourites.
    pub news: bool,
}

impl PreferencesBody {
    fn new(details: &UserDetails) -> Self {
        let muted = &details.muted;
        let is_staff = details.roles.contains(&Role::Admin);
        let kinds = |channel| {
            let wants = |kind| !muted.contains(&Muted { channel, kind });
            KindsBody {
                account: wants(NotificationKind::Account),
                orders: wants(NotificationKind::Orders),
                reviews: wants(NotificationKind::Reviews),
                news: wants(NotificationKind::News),
            }
        };
        Self {
            email: kinds(Channel::Email),
            sms: kinds(Channel::Sms),
            in_app: kinds(Channel::InApp),
            reports: is_staff.then(|| details.report_mails().as_str()),
        }
    }
}

/// What is to be told by which way; what is absent is.
#[derive(ToSchema)]
pub struct NewPreferences {
    /// By mail.
    #[schema(value_type = Option<NewKinds>)]
    pub email: BTreeSet<Muted>,
    /// By text message.
    #[schema(value_type = Option<NewKinds>)]
    pub sms: BTreeSet<Muted>,
    /// Inside the marketplace.
    #[schema(value_type = Option<NewKinds>)]
    pub in_app: BTreeSet<Muted>,
    /// Which reports are to be mailed, for administrators: `off` (also when absent), `hourly` or `daily`.
    #[schema(value_type = Option<String>, example = "off")]
    pub reports: ReportMails,
}

/// What is to be told by a way; what is absent is.
#[derive(ToSchema)]
pub struct NewKinds {
    /// Cannot be false.
    pub account: Option<bool>,
    /// Orders, and the money for them.
    pub orders: Option<bool>,
    /// Reviews.
    pub reviews: Option<bool>,
    /// News of sellers who are followed, and of favourites.
    pub news: Option<bool>,
}

impl FromFields for NewPreferences {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let mut muted = |names: &[&'static str], channel| {
            let read = |fields: &mut Fields<'_>| {
                let unwanted = |kind: &NotificationKind| {
                    fields.optional_bool(&[kind.as_str()]).is_some_and(|wanted| !wanted)
                };
                let kinds: Vec<_> = KINDS.into_iter().filter(unwanted).collect();
                if kinds.contains(&NotificationKind::Account) {
                    let detail = "what is about the account and its security is always told";
                    fields.error("account", "always_on", detail);
                }
                Some(kinds.into_iter().map(|kind| Muted { channel, kind }).collect())
            };
            fields.optional_object(names, read).unwrap_or_default()
        };
        Some(Self {
            email: muted(&["email"], Channel::Email),
            sms: muted(&["sms"], Channel::Sms),
            in_app: muted(&["in_app", "inApp"], Channel::InApp),
            reports: fields.optional_parsed(&["reports"]).unwrap_or_default(),
        })
    }
}

pub(super) fn view(user: &User) -> Option<PreferencesBody> {
    user.details.as_ref().map(PreferencesBody::new)
}

/// What I am told, and by which way
#[utoipa::path(get, path = "/users/me/notification-preferences", tag = "notifications",
    responses((status = 200, description = "The preferences", body = PreferencesBody),
        (status = 404, description = "The caller is no user")))]
async fn get_preferences(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let read = app.runtime().aggregate::<User>().read(user.uuid(), view).await?;
    Ok(Answer::ok(read.value.ok_or_else(missing)?).at_version(read.version, &theirs))
}

/// Choose what I am told, and by which way
///
/// All of it: what is absent is told, but for reports, which administrators get only if they say so. What
/// is about the account and its security cannot be switched off.
#[utoipa::path(put, path = "/users/me/notification-preferences", tag = "notifications",
    request_body = NewPreferences,
    responses((status = 200, description = "The preferences as they are now", body = PreferencesBody)))]
async fn set_preferences(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewPreferences>,
) -> Result<Answer<PreferencesBody>, ApiError> {
    let user = call.someone()?;
    let NewPreferences { email, sms, in_app, reports } = valid.body;
    let muted = [email, sms, in_app].into_iter().flatten().collect();
    let (caller, now) = (call.caller(), app.now());
    let command = UserCommand::SetPreferences { caller, muted, reports, now };
    let operation = "users.set_preferences";
    let context = call.change_context(&app, operation, &user.to_string(), &valid.canonical);
    let users = app.runtime().aggregate::<User>();
    let (body, done) = split(users.send(user.uuid(), command, context, view).await?);
    Ok(Answer::ok(body.ok_or_else(missing)?).after(&done))
}
