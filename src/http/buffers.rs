//! Outside events that wait for those before them, and what administrators do about it.

use axum::extract::{Path, State};
use serde::Serialize;
use souk_actors::world::Timestamp;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Reason, Valid};
use super::call::{Call, Staff};
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::caller::Caller;
use crate::domain::ids::PublicationId;
use crate::domain::publication::{Publication, PublicationCommand};
use crate::projections::BUFFERS_VIEW;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_buffers))
        .routes(routes!(release_buffer))
        .routes(routes!(discard_buffer))
}

/// What waits of one source and key.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BufferBody {
    /// Names it.
    pub buffer_id: Uuid,
    /// Whose events.
    #[schema(example = "/erp/berlin")]
    pub source: String,
    /// Of which key.
    #[schema(example = "shelf-7")]
    pub key: String,
    /// How many wait.
    pub size: usize,
    /// How many of them have waited for too long, and are dead letters.
    pub expired: usize,
    /// The number that is missing.
    pub missing: u64,
    /// The lowest number that waits.
    pub first: Option<u64>,
    /// The highest number that waits.
    pub last: Option<u64>,
    /// Since when the oldest waits.
    #[schema(format = DateTime)]
    pub oldest_at: Option<String>,
    /// When they become dead letters, if they have not.
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
}

fn view(id: PublicationId) -> impl FnOnce(&Publication) -> BufferBody + Send + 'static {
    move |of| {
        let waiting = of.held.values().filter(|held| !held.expired);
        BufferBody {
            buffer_id: id.uuid(),
            source: of.source.clone(),
            key: of.key.clone(),
            size: of.held.len(),
            expired: of.held.values().filter(|held| held.expired).count(),
            missing: of.last.saturating_add(1),
            first: of.held.keys().next().copied(),
            last: of.held.keys().next_back().copied(),
            oldest_at: of.held.values().map(|held| held.since).min().map(|at| at.to_string()),
            expires_at: waiting.map(|held| held.release_by).min().map(|at| at.to_string()),
        }
    }
}

/// Outside events that wait for those before them
#[utoipa::path(get, path = "/admin/buffers", tag = "admin",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "By source and key, the latest changed first",
        body = Page<BufferBody>)))]
async fn list_buffers(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<BufferBody>>, ApiError> {
    app.includes(BUFFERS_VIEW, &params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let mut rows = app.reads().buffers(before, limit + 1).await?;
    let has_more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let place = |row: &crate::projections::BufferRow| (row.changed_at.millis(), row.publication_id);
    let last = rows.last().filter(|_| has_more);
    let next_cursor = last.map(|row| app.cursors().seal(&params.list(), &place(row)));
    let mut data = Vec::with_capacity(rows.len());
    for row in rows {
        let id = PublicationId(row.publication_id);
        let read = app.runtime().aggregate::<Publication>().read(id.uuid(), view(id)).await?;
        // It may be empty by now.
        data.extend(Some(read.value).filter(|buffer| buffer.size > 0));
    }
    let page = Page { data, next_cursor, has_more };
    Ok(params.with_next(page).projected(&app, BUFFERS_VIEW))
}

async fn decide(
    app: &App,
    call: &Call,
    id: &str,
    operation: &str,
    valid: Valid<Reason>,
    command: impl FnOnce(Caller, Option<String>, Timestamp) -> PublicationCommand,
) -> Result<Answer<BufferBody>, ApiError> {
    let id: PublicationId = path_id(id)?;
    let context = call.change_context(app, operation, &id.to_string(), &valid.canonical);
    let command = command(call.caller(), valid.body.reason, app.now());
    let publications = app.runtime().aggregate::<Publication>();
    let (body, done) = split(publications.send(id.uuid(), command, context, view(id)).await?);
    Ok(Answer::ok(body).after(&done))
}

/// Let what waits come to pass
///
/// In the order of the numbers, over all gaps; the numbers that are missing have had their turn then.
#[utoipa::path(post, path = "/admin/buffers/{id}/release", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The buffer, which is empty", body = BufferBody)))]
async fn release_buffer(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<BufferBody>, ApiError> {
    let release = |caller, reason, now| PublicationCommand::Release { caller, reason, now };
    decide(&app, &call, &id, "buffers.release", valid, release).await
}

/// Give up what waits
///
/// Its numbers have had their turn then, and so have those that are missing before them.
#[utoipa::path(post, path = "/admin/buffers/{id}/discard", tag = "admin",
    params(("id" = String, Path)), request_body = Reason,
    responses((status = 200, description = "The buffer, which is empty", body = BufferBody)))]
async fn discard_buffer(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    valid: Valid<Reason>,
) -> Result<Answer<BufferBody>, ApiError> {
    let discard = |caller, reason, now| PublicationCommand::Discard { caller, reason, now };
    decide(&app, &call, &id, "buffers.discard", valid, discard).await
}
