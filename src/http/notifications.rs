//! What people were told.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, composed, split};
use super::body::{Nothing, Valid};
use super::call::{Call, SignedIn};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::ids::{NotificationId, UserId};
use crate::domain::notification::{
    Audience, Channel, Notification, NotificationCommand, NotificationDetails,
};
use crate::domain::user::User;
use crate::projections::NotificationRow;

/// The projection that lists rest on.
const VIEW: &str = "notifications-view";
/// For whom notifications may be.
pub(super) const AUDIENCES: [&str; 2] = [Audience::User.as_str(), Audience::Admin.as_str()];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_notifications))
        .routes(routes!(get_notification))
        .routes(routes!(read_notification))
        .routes(routes!(acknowledge_notification))
}

/// A message to one person by one channel.
#[derive(Debug, Serialize, ToSchema)]
pub struct NotificationBody {
    /// The message.
    pub notification_id: Uuid,
    /// To whom; none: to all administrators.
    pub user_id: Option<Uuid>,
    /// `user` or `admin`.
    pub audience: String,
    /// `email`, `sms`, `in_app`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same.
    pub channel: String,
    /// What it is about.
    #[schema(example = "new_order")]
    pub template: String,
    /// How it stands.
    #[schema(example = "sent")]
    pub status: String,
    /// The event that caused it.
    pub event_id: Uuid,
    /// The provider's name for it.
    pub provider_message_id: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When the provider took it.
    #[schema(format = DateTime)]
    pub sent_at: Option<String>,
    /// When it was read; only what is read inside the marketplace can be.
    #[schema(format = DateTime)]
    pub read_at: Option<String>,
    /// When somebody acknowledged it; not in lists.
    #[schema(format = DateTime)]
    pub acknowledged_at: Option<String>,
    /// When another administrator was told, because nobody had; not in lists.
    #[schema(format = DateTime)]
    pub escalated_at: Option<String>,
    /// Its title; not in lists, and only of what is read inside the marketplace.
    pub title: Option<String>,
    /// Its words, likewise.
    pub text: Option<String>,
}

impl From<NotificationRow> for NotificationBody {
    fn from(row: NotificationRow) -> Self {
        Self {
            notification_id: row.notification_id,
            user_id: row.user_id,
            audience: row.audience,
            kind: row.channel.clone(),
            channel: row.channel,
            template: row.template,
            status: row.status,
            event_id: row.cause_event_id,
            provider_message_id: row.provider_message_id,
            created_at: row.created_at.to_string(),
            sent_at: row.sent_at.map(|at| at.to_string()),
            read_at: row.read_at.map(|at| at.to_string()),
            acknowledged_at: None,
            escalated_at: None,
            title: None,
            text: None,
        }
    }
}

impl From<&NotificationDetails> for NotificationBody {
    fn from(details: &NotificationDetails) -> Self {
        let recipient = Some(details.recipient).filter(|of| *of != UserId::ADMINISTRATORS);
        let channel = details.channel.as_str().to_owned();
        Self {
            notification_id: details.notification_id.uuid(),
            user_id: recipient.map(UserId::uuid),
            audience: details.audience.as_str().to_owned(),
            kind: channel.clone(),
            channel,
            template: details.template.clone(),
            status: details.status.as_str().to_owned(),
            event_id: details.cause_event_id,
            provider_message_id: details.provider_message_id.clone(),
            created_at: details.requested_at.to_string(),
            sent_at: details.sent_at.map(|at| at.to_string()),
            read_at: details.read_at.map(|at| at.to_string()),
            acknowledged_at: details.acknowledged_at.map(|at| at.to_string()),
            escalated_at: details.escalated_at.map(|at| at.to_string()),
            title: None,
            text: None,
        }
    }
}

/// Notifications
///
/// One's own. Administrators see anybody's, and their own shared ones with `audience=admin`.
#[utoipa::path(get, path = "/notifications", tag = "notifications",
    params(("user_id" = Option<String>, Query),
        ("audience" = Option<String>, Query, description = "`user`, as when absent, or `admin`"),
        ("unread" = Option<bool>, Query, description = "Only those that nobody has read"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first", body = Page<NotificationBody>)))]
async fn list_notifications(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<NotificationBody>>, ApiError> {
    let caller = call.someone()?;
    let asked = params.parsed::<UserId>("user_id")?;
    let for_admins = params.one_of("audience", &AUDIENCES)? == Some(Audience::Admin.as_str());
    if (for_admins || asked.is_some_and(|user| user != caller)) && !call.is_staff() {
        return Err(ApiError::forbidden("forbidden", "these are somebody else's notifications"));
    }
    let user = match (asked, for_admins) {
        (Some(user), _) => Some(user),
        (None, true) => None,
        (None, false) => Some(caller),
    };
    app.includes(VIEW, &params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    // As a flag it needs no value.
    let unread = match params.text("unread") {
        Some(_) => params.truth("unread")?.unwrap_or_default(),
        None => params.flag("unread"),
    };
    let user = user.map(UserId::uuid);
    let rows = app.reads().notifications(user, for_admins, unread, before, limit + 1).await?;
    let cursor = |row: &NotificationRow| (row.created_at.millis(), row.notification_id);
    Ok(params.rows(&app, rows, limit, cursor).projected(&app, VIEW))
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such notification, or not for this caller")
}

/// The notification with its words, if there is one that the caller may see. A mail's words are
/// between us and the mailbox: whoever could read them here would need no mailbox.
pub(super) async fn visible(
    app: &App,
    call: &Call,
    id: NotificationId,
) -> Result<Option<NotificationBody>, ApiError> {
    let user = call.someone()?;
    let notifications = app.runtime().aggregate::<Notification>();
    let found = notifications.read(id.uuid(), |notification| notification.details.clone()).await?;
    let Some(details) = found.value else { return Ok(None) };
    let theirs = details.audience == Audience::User && details.recipient == user;
    if !(theirs || call.is_staff()) {
        return Ok(None);
    }
    let mut body = NotificationBody::from(&details);
    if details.channel == Channel::InApp {
        let users = app.runtime().aggregate::<User>();
        let recipient = users.read(details.recipient.uuid(), |user| user.details.clone()).await?;
        if let Ok(words) = app.composer().words(&details, recipient.value.as_ref()) {
            (body.title, body.text) = (Some(words.subject), Some(words.text));
        }
    }
    Ok(Some(body))
}

/// A notification
#[utoipa::path(get, path = "/notifications/{id}", tag = "notifications",
    params(("id" = String, Path)),
    responses((status = 200, description = "The notification, with its words", body = NotificationBody)))]
async fn get_notification(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let body = visible(&app, &call, path_id(&id)?).await?.ok_or_else(missing)?;
    Ok(composed(&body, &theirs))
}

/// Say that a notification was read
///
/// Once is enough: the first time stays. What is for all administrators is read once one of them has.
#[utoipa::path(post, path = "/notifications/{id}/read", tag = "notifications",
    params(("id" = String, Path)),
    responses((status = 200, description = "The notification as it is now", body = NotificationBody)))]
async fn read_notification(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<NotificationBody>, ApiError> {
    let command = NotificationCommand::MarkRead { caller: call.caller(), now: app.now() };
    change(&app, &call, &id, "notifications.read", command).await
}

/// Acknowledge a notification
///
/// Who does sees to it. A notice for administrators that none of them acknowledges within 15 minutes is
/// told to a second one in person.
#[utoipa::path(post, path = "/notifications/{id}/acknowledge", tag = "notifications",
    params(("id" = String, Path)),
    responses((status = 200, description = "The notification as it is now", body = NotificationBody)))]
async fn acknowledge_notification(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<NotificationBody>, ApiError> {
    let command = NotificationCommand::Acknowledge { caller: call.caller(), now: app.now() };
    change(&app, &call, &id, "notifications.acknowledge", command).await
}

async fn change(
    app: &App,
    call: &Call,
    id: &str,
    operation: &str,
    command: NotificationCommand,
) -> Result<Answer<NotificationBody>, ApiError> {
    let id: NotificationId = path_id(id)?;
    let seen = visible(app, call, id).await?.ok_or_else(missing)?;
    let context = call.change_context(app, operation, &id.to_string(), b"");
    let notifications = app.runtime().aggregate::<Notification>();
    let view = |of: &Notification| of.details.as_ref().map(NotificationBody::from);
    let (body, done) = split(notifications.send(id.uuid(), command, context, view).await?);
    let body = body.ok_or_else(missing)?;
    let (title, text) = (seen.title, seen.text);
    Ok(Answer::ok(NotificationBody { title, text, ..body }).after(&done))
}
