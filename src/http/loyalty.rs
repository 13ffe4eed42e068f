//! A person's points.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::Answer;
use super::call::SignedIn;
use super::conditional::IfNoneMatch;
use super::params::path_id;
use super::problem::ApiError;
use super::users::missing as no_user;
use crate::domain::ids::{LoyaltyAccountId, UserId};
use crate::domain::loyalty::{Entry, LoyaltyAccount};
use crate::domain::user::User;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_loyalty))
}

/// A person's points.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LoyaltyBody {
    /// Whose.
    pub user_id: Uuid,
    /// How many there are.
    pub points: i64,
    /// How many there ever were, whatever went back.
    pub points_earned: i64,
    /// The last 200 changes, the latest first.
    pub history: Vec<LoyaltyEntryBody>,
    /// The version; also the `ETag`.
    pub version: u64,
}

/// A change of a person's points.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LoyaltyEntryBody {
    /// For which order.
    pub order_id: Uuid,
    /// How many more, or fewer.
    pub points: i64,
    /// How many there were then.
    pub balance: i64,
    /// When.
    #[schema(format = DateTime)]
    pub at: String,
}

impl From<&Entry> for LoyaltyEntryBody {
    fn from(entry: &Entry) -> Self {
        Self {
            order_id: entry.order_id.uuid(),
            points: entry.points,
            balance: entry.balance,
            at: entry.at.to_string(),
        }
    }
}

/// The points of somebody, who may have none.
pub(super) async fn points(app: &App, user: UserId) -> Result<LoyaltyBody, ApiError> {
    let view = move |account: &LoyaltyAccount| LoyaltyBody {
        user_id: user.uuid(),
        points: account.balance,
        points_earned: account.earned,
        history: account.history.iter().map(LoyaltyEntryBody::from).collect(),
        version: 0,
    };
    let id = LoyaltyAccountId::of(user).uuid();
    let done = app.runtime().aggregate::<LoyaltyAccount>().read(id, view).await?;
    Ok(LoyaltyBody { version: done.version, ..done.value })
}

/// A person's points
///
/// For the person and for administrators. Points come for an order once it has arrived, as many as
/// `LOYALTY_RATES` says; when goods or money for it go back, their points go too.
#[utoipa::path(get, path = "/users/{id}/loyalty", tag = "users", params(("id" = String, Path)),
    responses((status = 200, description = "The points", body = LoyaltyBody)))]
async fn get_loyalty(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user: UserId = path_id(&id)?;
    if !call.caller().may_act_for(user) {
        return Err(ApiError::forbidden("forbidden", "these are somebody else's points"));
    }
    let is_there = |user: &User| user.details.is_some();
    if !app.runtime().aggregate::<User>().read(user.uuid(), is_there).await?.value {
        return Err(no_user());
    }
    let body = points(&app, user).await?;
    let version = body.version;
    Ok(Answer::ok(body).at_version(version, &theirs))
}
