//! What people were told.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::call::SignedIn;
use super::params::Params;
use super::problem::ApiError;
use crate::domain::ids::UserId;
use crate::projections::NotificationRow;

/// The projection that lists rest on.
const VIEW: &str = "notifications-view";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list_notifications))
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
        }
    }
}

/// Notifications
///
/// One's own. Administrators see anybody's, and their own shared ones with `audience=admin`.
#[utoipa::path(get, path = "/notifications", tag = "notifications",
    params(("user_id" = Option<String>, Query), ("audience" = Option<String>, Query),
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
    let for_admins = params.text("audience") == Some("admin");
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
    let user = user.map(UserId::uuid);
    let rows = app.reads().notifications(user, for_admins, before, limit + 1).await?;
    let cursor = |row: &NotificationRow| (row.created_at.millis(), row.notification_id);
    Ok(params.rows(&app, rows, limit, cursor).projected(&app, VIEW))
}
