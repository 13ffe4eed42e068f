//! What events look like: JSON Schemas and the AsyncAPI document.

use axum::extract::{Path, State};
use axum::http::header;
use serde::Serialize;
use serde_json::{Map, Value, json};
use souk_actors::event::EventDescriptor;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Page};
use super::problem::ApiError;
use super::{App, catalogue};
use crate::telemetry;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_schemas))
        .routes(routes!(get_schema))
        .routes(routes!(asyncapi))
}

/// An event type.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventTypeBody {
    /// The canonical type.
    #[schema(example = "order.placed")]
    pub event_type: &'static str,
    /// The same in Pascal case.
    pub name: &'static str,
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

/// Event types
#[utoipa::path(get, path = "/schemas", tag = "documents",
    responses((status = 200, description = "All of them", body = Page<EventTypeBody>)))]
async fn list_schemas() -> Answer<Page<EventTypeBody>> {
    let data = catalogue::all().iter().map(|descriptor| EventTypeBody {
        event_type: descriptor.event_type,
        name: descriptor.name,
        aliases: descriptor.aliases.to_vec(),
        schema_version: format!("{}.{}", descriptor.major, descriptor.minor),
        context: descriptor.context,
        schema: location(descriptor),
    });
    Answer::ok(Page::whole(data.collect())).with(header::CACHE_CONTROL, "no-cache")
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

/// The JSON Schema of an event type's data
#[utoipa::path(get, path = "/schemas/{event_type}/{major}", tag = "documents",
    params(("event_type" = String, Path), ("major" = String, Path, description = "`1` or `1.0`")),
    responses((status = 200, description = "JSON Schema, draft 2020-12", body = Object,
        content_type = "application/schema+json")))]
async fn get_schema(
    Path((event_type, version)): Path<(String, String)>,
) -> Result<Answer<Value>, ApiError> {
    let (types, _) = catalogue::resolve(&event_type);
    let major = version.trim_start_matches('v').split('.').next().and_then(|of| of.parse().ok());
    let descriptor = types.first().and_then(|of| catalogue::find(of));
    let descriptor = descriptor.filter(|descriptor| Some(descriptor.major) == major);
    let descriptor =
        descriptor.ok_or_else(|| ApiError::not_found("there is no such event type or version"))?;
    Ok(Answer::ok(schema(descriptor))
        .with(header::CONTENT_TYPE, "application/schema+json")
        .with(header::CACHE_CONTROL, "public, max-age=3600"))
}

/// What events there are, as AsyncAPI
#[utoipa::path(get, path = "/asyncapi.json", tag = "documents",
    responses((status = 200, description = "AsyncAPI 3.0", body = Object)))]
async fn asyncapi(State(_): State<App>) -> Answer<Value> {
    Answer::ok(asyncapi_document()).with(header::CACHE_CONTROL, "no-cache")
}

fn asyncapi_document() -> Value {
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for descriptor in catalogue::all() {
        let name = descriptor.name.to_owned();
        channels.insert(
            name.clone(),
            json!({
                "address": descriptor.event_type,
                "title": descriptor.name,
                "tags": [{ "name": descriptor.context }],
                "messages": {
                    &name: { "$ref": format!("#/components/messages/{name}") },
                },
            }),
        );
        operations.insert(
            format!("receive{name}"),
            json!({
                "action": "receive",
                "channel": { "$ref": format!("#/channels/{name}") },
                "tags": [{ "name": descriptor.context }],
            }),
        );
        let mut payload = schema(descriptor);
        // References stay inside the document: what a schema defines beside itself goes with it.
        if let Some(members) = payload.as_object_mut() {
            members.remove("$schema");
        }
        messages.insert(
            name,
            json!({
                "name": descriptor.event_type,
                "title": descriptor.name,
                "contentType": "application/json",
                "correlationId": { "location": "$message.header#/correlationid" },
                "tags": [{ "name": descriptor.context }],
                "payload": {
                    "schemaFormat": "application/schema+json;version=draft-2020-12",
                    "schema": payload,
                },
            }),
        );
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Souk events",
            "version": telemetry::VERSION,
            "description": "Everything that happens in the marketplace.",
        },
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
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
