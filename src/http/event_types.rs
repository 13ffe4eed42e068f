//! The event types that publishers outside may use, kept by administrators.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Fields, FromFields, Valid};
use super::call::Staff;
use super::conditional::IfNoneMatch;
use super::params::Params;
use super::problem::ApiError;
use crate::domain::event_type::{EventType, EventTypeCommand};
use crate::domain::ids::EventTypeId;
use crate::projections::{EVENT_TYPES_VIEW, EventTypeRow};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_event_types))
        .routes(routes!(get_event_type, register_event_type))
}

/// A version of an event type.
#[derive(Debug, ToSchema)]
pub struct NewEventType {
    /// `<major>.<minor>`: a schema that only grows raises the minor version, every other one the
    /// major version. `1.0` when absent.
    #[schema(example = "1.0")]
    pub version: Option<String>,
    /// The JSON Schema (draft 2020-12) of the data. References stay within it.
    #[schema(value_type = Object, example = json!({ "type": "object" }))]
    pub schema: Value,
}

/// A version as its two numbers.
#[derive(Debug, Clone, Copy)]
struct SchemaVersion(u16, u16);

impl std::str::FromStr for SchemaVersion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| plain)
        };
        let numbers = match text.split_once('.') {
            Some((major, minor)) => number(major).zip(number(minor)),
            None => number(text).zip(Some(0)),
        };
        numbers.map(|(major, minor)| Self(major, minor)).ok_or("must be <major>.<minor>, as 1.0")
    }
}

/// What [`NewEventType`] says.
#[derive(Debug)]
pub struct Registration {
    version: SchemaVersion,
    schema: Value,
}

impl FromFields for Registration {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let version = fields.optional_parsed(&["version", "schema_version", "schemaVersion"]);
        let schema = fields.value("schema").cloned();
        if !schema.as_ref().is_some_and(Value::is_object) {
            fields.error("schema", "required", "must be a JSON Schema: an object");
        }
        Some(Self { version: version.unwrap_or(SchemaVersion(1, 0)), schema: schema? })
    }
}

/// A registered event type.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RegisteredBody {
    /// Its name.
    #[schema(example = "partner.stock.counted")]
    pub event_type: String,
    /// The newest version.
    #[schema(example = "1.0")]
    pub version: String,
    /// The newest of each major version, with where its schema is.
    pub versions: Vec<RegisteredVersionBody>,
}

/// A version of a registered event type.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RegisteredVersionBody {
    /// The version.
    pub version: String,
    /// Where its schema is.
    pub schema: String,
    /// When it was registered.
    #[schema(format = DateTime)]
    pub registered_at: String,
}

fn view(of: &EventType) -> Option<RegisteredBody> {
    let name = of.name.as_ref()?;
    let versions: Vec<_> = of
        .versions
        .iter()
        .map(|(major, version)| RegisteredVersionBody {
            version: format!("{major}.{}", version.minor),
            schema: format!("/schemas/{name}/{major}"),
            registered_at: version.registered_at.to_string(),
        })
        .collect();
    let version = versions.last()?.version.clone();
    Some(RegisteredBody { event_type: name.clone(), version, versions })
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such event type")
}

/// Registered event types
#[utoipa::path(get, path = "/admin/event-types", tag = "admin",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "By name", body = Page<RegisteredBody>)))]
async fn list_event_types(
    State(app): State<App>,
    _: Staff,
    params: Params,
) -> Result<Answer<Page<RegisteredBody>>, ApiError> {
    app.includes(EVENT_TYPES_VIEW, &params).await?;
    let (limit, after) = (params.limit()?, params.cursor::<String>(app.cursors())?);
    let mut rows = app.reads().event_types(&after.unwrap_or_default(), limit + 1).await?;
    let has_more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next_cursor = rows.last().filter(|_| has_more);
    let next_cursor = next_cursor.map(|row| app.cursors().seal(&params.list(), &row.name));
    let mut data = Vec::with_capacity(rows.len());
    for EventTypeRow { event_type_id, .. } in rows {
        let read = app.runtime().aggregate::<EventType>().read(event_type_id, view).await?;
        data.extend(read.value);
    }
    let page = Page { data, next_cursor, has_more };
    Ok(params.with_next(page).projected(&app, EVENT_TYPES_VIEW))
}

/// A registered event type
#[utoipa::path(get, path = "/admin/event-types/{event_type}", tag = "admin",
    params(("event_type" = String, Path)),
    responses((status = 200, description = "The event type", body = RegisteredBody)))]
async fn get_event_type(
    State(app): State<App>,
    _: Staff,
    Path(name): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let types = app.runtime().aggregate::<EventType>();
    let done = types.read(EventTypeId::of_name(&name).uuid(), view).await?;
    Ok(Answer::ok(done.value.ok_or_else(missing)?).at_version(done.version, &theirs))
}

/// Register an event type, or a version of one
///
/// Within a major version a schema may only grow. The name is two or three words; its first word must
/// not be one that the marketplace's own event types begin with.
#[utoipa::path(put, path = "/admin/event-types/{event_type}", tag = "admin",
    params(("event_type" = String, Path)), request_body = NewEventType,
    responses((status = 200, description = "The event type", body = RegisteredBody),
        (status = 201, description = "The event type, which is new", body = RegisteredBody)))]
async fn register_event_type(
    State(app): State<App>,
    Staff(call): Staff,
    Path(name): Path<String>,
    valid: Valid<Registration>,
) -> Result<Response, ApiError> {
    let Registration { version: SchemaVersion(major, minor), schema } = valid.body;
    let id = EventTypeId::of_name(&name);
    let context = call.change_context(&app, "event_types.register", &name, &valid.canonical);
    let location = format!("/api/v1/admin/event-types/{name}");
    let command = EventTypeCommand::Register {
        caller: call.caller(),
        name,
        major,
        minor,
        schema,
        now: app.now(),
    };
    let types = app.runtime().aggregate::<EventType>();
    let (body, done) = split(types.send(id.uuid(), command, context, view).await?);
    let body = body.ok_or_else(missing)?;
    let is_new = done.version == 1 && done.events == 1;
    let answer = if is_new { Answer::created(&location, body) } else { Answer::ok(body) };
    Ok(answer.after(&done).into_response())
}

/// Every registered type, by name, up to so many.
pub(super) async fn all(app: &App, types_max: u32) -> Result<Vec<EventType>, ApiError> {
    let rows = app.reads().event_types("", types_max).await?;
    let mut types = Vec::with_capacity(rows.len());
    let handle = app.runtime().aggregate::<EventType>();
    for row in rows {
        types.push(handle.read(row.event_type_id, EventType::clone).await?.value);
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_or_two_numbers() {
        let read = |text: &str| text.parse::<SchemaVersion>().map(|of| (of.0, of.1)).ok();
        assert_eq!(read("2.13"), Some((2, 13)));
        assert_eq!(read("3"), Some((3, 0)));
        for bad in ["", ".", "1.", ".1", "+1.0", "1.0.0", "v1", "70000.0"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
