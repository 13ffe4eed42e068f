//! What events look like: JSON Schemas and the AsyncAPI document.

use axum::extract::{Path, State};
use axum::http::header;
use serde::Serialize;
use serde_json::{Value, json};
use souk_actors::event::EventDescriptor;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Page};
use super::event_json::pascal;
use super::problem::ApiError;
use super::{App, catalogue, event_types};
use crate::domain::event_type::{EventType, Version, is_name};
use crate::domain::ids::EventTypeId;
use crate::telemetry;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_schemas))
        .routes(routes!(get_newest_schema))
        .routes(routes!(get_schema))
        .routes(routes!(asyncapi))
}

/// An event type.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventTypeBody {
    /// The canonical type.
    #[schema(example = "order.placed")]
    pub event_type: String,
    /// The same in Pascal case.
    pub name: String,
    /// Other names that filters take.
    pub aliases: Vec<&'static str>,
    /// The current schema version.
    #[schema(example = "1.0")]
    pub schema_version: String,
    /// The bounded context that publishes it.
    pub context: &'static str,
    /// Where its schema is.
    pub schema: String,
}

/// How many registered types are listed and described at most.
const REGISTERED_MAX: u32 = 1_000;
/// The context of registered types.
const OUTSIDE: &str = "publishing";

/// Event types
///
/// The marketplace's own, and behind them those that were registered for publishers outside.
#[utoipa::path(get, path = "/schemas", tag = "documents",
    responses((status = 200, description = "All of them", body = Page<EventTypeBody>),
        (status = 503, description = "The registered types cannot be read at the moment")))]
async fn list_schemas(State(app): State<App>) -> Result<Answer<Page<EventTypeBody>>, ApiError> {
    let own = catalogue::all().iter().map(|descriptor| EventTypeBody {
        event_type: descriptor.event_type.to_owned(),
        name: descriptor.name.to_owned(),
        aliases: descriptor.aliases.to_vec(),
        schema_version: format!("{}.{}", descriptor.major, descriptor.minor),
        context: descriptor.context,
        schema: location(descriptor),
    });
    let mut data: Vec<_> = own.collect();
    for of in event_types::all(&app, REGISTERED_MAX).await? {
        if let (Some(name), Some((major, version))) = (&of.name, of.version(None)) {
            data.push(EventTypeBody {
                event_type: name.clone(),
                name: pascal(name),
                aliases: Vec::new(),
                schema_version: format!("{major}.{}", version.minor),
                context: OUTSIDE,
                schema: format!("/schemas/{name}/{major}"),
            });
        }
    }
    Ok(Answer::ok(Page::whole(data)).with(header::CACHE_CONTROL, "no-cache"))
}

fn location(descriptor: &EventDescriptor) -> String {
    format!("/schemas/{}/{}", descriptor.event_type, descriptor.major)
}

fn schema(descriptor: &EventDescriptor) -> Value {
    let mut schema = (descriptor.schema)();
    if let Some(members) = schema.as_object_mut() {
        members.insert("$schema".to_owned(), Value::from(DIALECT));
        members.insert("$id".to_owned(), Value::from(location(descriptor)));
        members.insert("title".to_owned(), Value::from(descriptor.name));
    }
    schema
}

/// The schema of a registered type, as that of the marketplace's own.
fn registered_schema(name: &str, major: u16, version: &Version) -> Value {
    let mut schema = version.schema.clone();
    if let Some(members) = schema.as_object_mut() {
        members.insert("$schema".to_owned(), Value::from(DIALECT));
        members.insert("$id".to_owned(), Value::from(format!("/schemas/{name}/{major}")));
        members.entry("title").or_insert_with(|| Value::from(pascal(name)));
    }
    schema
}

/// A version of a type, or the newest; and whether it is one that may still grow.
async fn find(app: &App, event_type: &str, major: Option<u16>) -> Result<(Value, bool), ApiError> {
    let (types, _) = catalogue::resolve(event_type);
    if let Some(descriptor) = types.first().and_then(|of| catalogue::find(of)) {
        let fits = major.is_none_or(|major| major == descriptor.major);
        return fits.then(|| (schema(descriptor), false)).ok_or_else(missing);
    }
    if !is_name(event_type) {
        return Err(missing());
    }
    let id = EventTypeId::of_name(event_type).uuid();
    let name = event_type.to_owned();
    let view = move |of: &EventType| {
        of.version(major).map(|(major, version)| registered_schema(&name, major, version))
    };
    let read = app.runtime().aggregate::<EventType>().read(id, view).await?;
    read.value.map(|schema| (schema, true)).ok_or_else(missing)
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such event type or version")
}

fn answer((schema, grows): (Value, bool)) -> Answer<Value> {
    let caching = if grows { "no-cache" } else { "public, max-age=3600" };
    Answer::ok(schema)
        .with(header::CONTENT_TYPE, "application/schema+json")
        .with(header::CACHE_CONTROL, caching)
}

/// The newest JSON Schema of an event type's data
#[utoipa::path(get, path = "/schemas/{event_type}", tag = "documents",
    params(("event_type" = String, Path)),
    responses((status = 200, description = "JSON Schema, draft 2020-12", body = Object,
        content_type = "application/schema+json"),
        (status = 503, description = "The registered types cannot be read at the moment")))]
async fn get_newest_schema(
    State(app): State<App>,
    Path(event_type): Path<String>,
) -> Result<Answer<Value>, ApiError> {
    find(&app, &event_type, None).await.map(answer)
}

/// The JSON Schema of an event type's data
#[utoipa::path(get, path = "/schemas/{event_type}/{major}", tag = "documents",
    params(("event_type" = String, Path), ("major" = String, Path, description = "`1` or `1.0`")),
    responses((status = 200, description = "JSON Schema, draft 2020-12", body = Object,
        content_type = "application/schema+json"),
        (status = 503, description = "The registered types cannot be read at the moment")))]
async fn get_schema(
    State(app): State<App>,
    Path((event_type, version)): Path<(String, String)>,
) -> Result<Answer<Value>, ApiError> {
    let major = version.trim_start_matches('v').split('.').next().and_then(|of| of.parse().ok());
    let major = major.ok_or_else(missing)?;
    find(&app, &event_type, Some(major)).await.map(answer)
}

/// What events there are, as AsyncAPI
#[utoipa::path(get, path = "/asyncapi.json", tag = "documents",
    responses((status = 200, description = "AsyncAPI 3.0", body = Object),
        (status = 503, description = "The registered types cannot be read at the moment")))]
async fn asyncapi(State(app): State<App>) -> Result<Answer<Value>, ApiError> {
    let registered = event_types::all(&app, REGISTERED_MAX).await?;
    let mut document = asyncapi_document();
    for of in &registered {
        if let (Some(name), Some((major, version))) = (&of.name, of.version(None)) {
            let described = Described {
                event_type: name,
                name: &format!("Outside{}", pascal(name)),
                context: OUTSIDE,
            };
            describe(&mut document, described, registered_schema(name, major, version));
        }
    }
    Ok(Answer::ok(document).with(header::CACHE_CONTROL, "no-cache"))
}

/// An event type as the AsyncAPI document names it.
struct Described<'a> {
    event_type: &'a str,
    name: &'a str,
    context: &'a str,
}

/// Adds a type: its channel, its operation, its message.
fn describe(document: &mut Value, of: Described<'_>, mut payload: Value) {
    let Described { event_type, name, context } = of;
    document["channels"][name] = json!({
        "address": event_type,
        "title": name,
        "tags": [{ "name": context }],
        "messages": { name: { "$ref": format!("#/components/messages/{name}") } },
    });
    document["operations"][format!("receive{name}")] = json!({
        "action": "receive",
        "channel": { "$ref": format!("#/channels/{name}") },
        "tags": [{ "name": context }],
    });
    // References stay inside the document: what a schema defines beside itself goes with it.
    if let Some(members) = payload.as_object_mut() {
        members.remove("$schema");
    }
    document["components"]["messages"][name] = json!({
        "name": event_type,
        "title": name,
        "contentType": "application/json",
        "correlationId": { "location": "$message.header#/correlationid" },
        "tags": [{ "name": context }],
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": payload,
        },
    });
}

fn asyncapi_document() -> Value {
    let mut document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Souk events",
            "version": telemetry::VERSION,
            "description": "Everything that happens in the marketplace.",
        },
        "channels": {},
        "operations": {},
        "components": { "messages": {} },
    });
    for descriptor in catalogue::all() {
        let EventDescriptor { event_type, name, context, .. } = descriptor;
        describe(&mut document, Described { event_type, name, context }, schema(descriptor));
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_is_one_of_its_dialect() {
        for descriptor in catalogue::all() {
            let schema = schema(descriptor);
            assert_eq!(schema["$schema"], DIALECT);
            let valid = jsonschema::meta::is_valid(&schema);
            assert!(valid, "{}", descriptor.event_type);
        }
    }

    #[test]
    fn the_document_lists_every_type_once() {
        let document = asyncapi_document();
        let channels = document["channels"].as_object().unwrap();
        assert_eq!(channels.len(), catalogue::all().len());
        assert_eq!(channels["OrderPlaced"]["address"], "order.placed");
        assert_eq!(document["operations"]["receiveOrderPlaced"]["action"], "receive");
    }
}
