//! The OpenAPI document: made from the routes, completed with what all of them have in common.

use std::str::FromStr;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::response::{Redirect, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::params::words_of;
use super::problem::{FieldProblem, Problem};
use super::{App, after_sales, ledger, listings, notifications, replays, scopes, traces, webhooks};
use crate::domain::caller::Role;
use crate::domain::money::{AMOUNT_MAX, Currency};
use crate::domain::order::OrderStatus;
use crate::domain::user::{UserStatus, VerificationStatus};
use crate::projections::analytics::Metric;
use crate::projections::sagas;
use crate::telemetry;

const ABOUT: &str = "An actor-model marketplace. Every user, listing and order is one actor; what \
it decides is an event, durable before anyone is told.\n\n\
**Idempotency.** Every POST takes an `Idempotency-Key`, except login, refresh, and asking for or \
changing a password: the same key and body get the first answer again (`Idempotent-Replayed: \
true`), also after a crash. Another body with the same key is 422. Keys are remembered for 24 hours and belong to the caller and the operation.\n\n\
**Concurrency.** `ETag` is the version. `If-Match` makes a change rest on a version (412 otherwise), \
`If-None-Match` answers 304.\n\n\
**Reading your own writes.** Resources are never stale. Lists are projections: send the command's \
`Souk-Position` as `min_position` (also one that names several partitions), and the answer waits until \
all of it is included.\n\n\
**Keys.** A program of one's own sends a key from `/users/me/api-keys` and acts as its owner within \
the key's scopes; `x-key-scope` of an operation is the one that it needs there, and none means that \
no key may do it as its owner.\n\n\
**Aliases.** `/orders...` and `/api/events...` are the same as below `/api/v1`.";

/// What the page with the document may do: show itself, and ask this service.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' \
'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; \
form-action 'none'; frame-ancestors 'none'";

/// The lists of images, as long as the settings let them be.
const IMAGE_LISTS: [&str; 2] = ["ImageFiles/properties/image", "NewListing/properties/images"];

/// What is not made from routes.
#[derive(OpenApi)]
#[openapi(components(schemas(Problem, FieldProblem)))]
struct Base;

/// The document to begin with.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    let mut base = Base::openapi();
    base.info = utoipa::openapi::Info::new("Souk", telemetry::VERSION);
    base.info.description = Some(ABOUT.to_owned());
    base
}

/// The router with the finished document and its page.
pub(super) fn with_document(
    router: Router<App>,
    document: utoipa::openapi::OpenApi,
    app: &App,
) -> Router<App> {
    let mut document = finished(&document);
    for list in IMAGE_LISTS {
        let pointer = format!("/components/schemas/{list}/maxItems");
        let max = document.pointer_mut(&pointer);
        max.into_iter().for_each(|max| *max = Value::from(app.settings().images.images_max));
    }
    app.set_document(document.to_string());
    let config = utoipa_swagger_ui::Config::from("/openapi.json");
    let page = utoipa_swagger_ui::SwaggerUi::new("/docs").config(config);
    let page: Router<App> = page.into();
    let policy = |mut response: Response| async move {
        let policy = HeaderValue::from_static(PAGE_POLICY);
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        response
    };
    let page = page.layer(axum::middleware::map_response(policy));
    router.merge(page).route("/", get(|| async { Redirect::temporary("/docs") }))
}

/// Everything that all operations have in common, once.
fn finished(document: &utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("a document is plain data");
    document["openapi"] = Value::from("3.1.0");
    document["jsonSchemaDialect"] = Value::from("https://json-schema.org/draft/2020-12/schema");
    document["webhooks"] = webhooks();
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
    });
    document["components"]["responses"] = json!({
        "Problem": {
            "description": "What is wrong (RFC 9457)",
            "content": { "application/problem+json": {
                "schema": { "$ref": "#/components/schemas/Problem" },
            } },
        },
    });
    document["components"]["headers"] = headers();
    document["components"]["parameters"] = parameters();
    let schemas = document["components"]["schemas"].as_object_mut();
    schemas.into_iter().for_each(|schemas| {
        schemas.extend(other_forms());
        schemas.insert("WebhookMessage".to_owned(), webhook_message());
    });
    let bodies = document["components"]["schemas"].clone();
    let paths = document["paths"].as_object_mut();
    for (path, item) in paths.into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            if let Some(operation) = operation.as_object_mut() {
                complete(path, method, operation);
                relax_body(operation, &bodies);
                if path.starts_with("/api/v1/events") {
                    offer_other_forms(operation);
                    take_other_forms(path, operation);
                }
            }
        }
    }
    document
}

/// An empty body counts as an object without members: where none is required it may be left out.
fn relax_body(operation: &mut Map<String, Value>, schemas: &Value) {
    let Some(body) = operation.get_mut("requestBody") else { return };
    let schema = &body["content"]["application/json"]["schema"];
    let named = schema["$ref"].as_str().and_then(|target| target.rsplit('/').next());
    let schema = named.map_or(schema, |name| &schemas[name]);
    if schema["required"].as_array().is_none_or(Vec::is_empty) {
        body["required"] = Value::from(false);
    }
}

/// The two other forms in which events can be asked for.
fn other_forms() -> Map<String, Value> {
    let object = |names: &[&str]| {
        let properties = names.iter().map(|name| ((*name).to_owned(), json!({})));
        json!({
            "type": "object",
            "required": names,
            "properties": properties.collect::<Map<_, _>>(),
        })
    };
    let camel = ["eventId", "eventType", "aggregateId", "aggregateType", "occurredAt", "payload"];
    let mut camel = object(&[&camel[..], &["version"]].concat());
    camel["description"] = Value::from("An event in the form that `case=camel` asks for");
    let mut cloud = object(&["specversion", "id", "source", "type", "time", "subject", "data"]);
    cloud["description"] = Value::from("An event as a CloudEvent 1.0, with its extensions");
    let mut new_cloud = object(&["specversion", "id", "source", "type", "data"]);
    new_cloud["description"] = Value::from("An event to publish, as a CloudEvent 1.0");
    let page = |items: &str| {
        let items = json!({ "$ref": format!("#/components/schemas/{items}") });
        json!({
            "type": "object",
            "required": ["data", "has_more"],
            "properties": {
                "data": { "type": "array", "items": items },
                "next_cursor": { "type": ["string", "null"] },
                "has_more": { "type": "boolean" },
            },
        })
    };
    Map::from_iter([
        ("CamelEventPage".to_owned(), page("CamelEvent")),
        ("CamelEvent".to_owned(), camel),
        ("CloudEvent".to_owned(), cloud),
        ("NewCloudEvent".to_owned(), new_cloud),
    ])
}

/// What is sent to webhook endpoints: one kind of request, whatever the event.
fn webhooks() -> Value {
    let header = |name: &str, description: &str, example: &str| {
        json!({
            "name": name, "in": "header", "required": true, "description": description,
            "schema": { "type": "string" }, "example": example,
        })
    };
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let signed = "`v1,` and, in base64, the HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>` \
        under the endpoint's secret; several with spaces between while the secret is changed";
    json!({ "event": { "post": {
        "operationId": "receive_event",
        "tags": ["webhooks"],
        "summary": "An event",
        "description": "Sent to the endpoints that want it (`/api/v1/webhooks`), as Standard Webhooks \
            1.0 has it: at least once, and in order for each aggregate. The type of its data is at \
            `/schemas/{type}/{version}`; personal fields are `[redacted]`. When the body would be \
            20 KiB or more, `data` is `{\"truncated\": true, \"event_url\": \"...\"}` instead.",
        "security": [],
        "parameters": [
            header("webhook-id", "The event's id: the same however often it is sent",
                "01934b2e-7c11-7a50-8a5e-3f1d7b0c9a42"),
            header("webhook-timestamp", "When it was sent, in seconds since 1970", "1795170600"),
            header("webhook-signature", signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ],
        "requestBody": { "required": true, "content": {
            "application/json": { "schema": reference("WebhookMessage") },
            "application/cloudevents+json": { "schema": reference("CloudEvent") },
        } },
        "responses": {
            "2XX": { "description": "It was taken" },
            "410": { "description": "Nothing more is wanted: the endpoint is disabled" },
            "429": { "description": "Too much: the endpoint is left alone for as long as \
                `Retry-After` says, as with 502 and 504" },
            "default": { "description": "It was not taken, and is sent again: ten times over three \
                days. A redirect is not followed" },
        },
    } } })
}

/// The body of what is sent to webhook endpoints, in its standard form.
fn webhook_message() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let count = |description: &str| json!({ "type": "integer", "description": description });
    let id = |description: &str| json!({ "type": "string", "format": "uuid", "description": description });
    let properties = json!({
        "type": text("The canonical type of the event"),
        "timestamp": { "type": "string", "format": "date-time", "description": "When it was decided" },
        "data": { "type": "object", "description": "What happened" },
        "event_id": id("The event's id"),
        "event_type": text("The same as `type`"),
        "version": count("The major version of the schema of `data`"),
        "schema_version": text("The same with its minor version"),
        "aggregate_type": text("What kind of thing it happened to"),
        "aggregate_id": id("What it happened to"),
        "aggregate_version": count("Its place in that thing's history"),
        "partition": count("The partition of the log"),
        "position": count("The place in it"),
        "correlation_id": text("What one request led to has the same one"),
        "causation_id": text("What caused it"),
    });
    let required: Vec<_> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({
        "type": "object",
        "description": "An event as it is sent to webhook endpoints",
        "required": required,
        "properties": properties,
    })
}

/// Where events are answered they come in three forms.
fn offer_other_forms(operation: &mut Map<String, Value>) {
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let answer = operation.get_mut("responses").and_then(|all| all.get_mut("200"));
    let Some(content) = answer.and_then(|answer| answer.get_mut("content")) else { return };
    let native = content["application/json"]["schema"].clone();
    let target = native["$ref"].as_str().unwrap_or_default();
    if target.ends_with("/EventBody") {
        let forms = json!([native, reference("CamelEvent")]);
        content["application/json"]["schema"] = json!({ "anyOf": forms });
        content["application/cloudevents+json"] = json!({ "schema": reference("CloudEvent") });
    } else if target.contains("EventBody") {
        let forms = json!([native, reference("CamelEventPage")]);
        content["application/json"]["schema"] = json!({ "anyOf": forms });
        let batch = json!({ "type": "array", "items": reference("CloudEvent") });
        content["application/cloudevents-batch+json"] = json!({ "schema": batch });
    }
}

/// Where events are published they come in three forms too; the third is the data of a CloudEvent
/// alone, with its attributes in header fields.
fn take_other_forms(path: &str, operation: &mut Map<String, Value>) {
    let Some(content) = operation.get_mut("requestBody").and_then(|of| of.get_mut("content"))
    else {
        return;
    };
    let cloud = json!({ "$ref": "#/components/schemas/NewCloudEvent" });
    if path.ends_with("/batch") {
        let batch = json!({ "type": "array", "items": cloud });
        content["application/cloudevents-batch+json"] = json!({ "schema": batch });
    } else {
        content["application/cloudevents+json"] = json!({ "schema": cloud });
    }
}

fn headers() -> Value {
    json!({
        "ETag": { "description": "The version", "schema": { "type": "string" } },
        "Souk-Position": {
            "description": "Where the command's last event stands; of several commands, in each \
                partition, with commas between",
            "schema": { "type": "string", "examples": ["0:812", "0:812,1:77"] },
        },
        "Souk-Projection-Position": {
            "description": "How far the view behind the answer had come in each partition",
            "schema": { "type": "string", "examples": ["0:812"] },
        },
        "Idempotent-Replayed": {
            "description": "Whether this is the answer to an earlier request with this key",
            "schema": { "type": "string", "enum": ["true"] },
        },
        "X-Correlation-Id": {
            "description": "Names everything that the request leads to",
            "schema": { "type": "string" },
        },
    })
}

fn parameters() -> Value {
    json!({
        "IdempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Makes the request have effect once, for 24 hours. A string in double \
                quotes (RFC 8941) or bare, of 1 to 255 visible characters.",
            "schema": { "type": "string", "pattern": KEY },
            "example": "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
            "x-lifetime": "PT24H",
        },
        "IfMatch": {
            "name": "If-Match",
            "in": "header",
            "description": "The version that the change rests on: its `ETag`, or `*` for whichever",
            "schema": { "type": "string", "pattern": format!("^(\\*|{TAG})$") },
            "example": "\"3\"",
        },
        "IfNoneMatch": {
            "name": "If-None-Match",
            "in": "header",
            "description": "What the caller has: 304 when it still is so",
            "schema": { "type": "string", "pattern": format!("^(\\*|{TAG}(, {TAG}){{0,9}})$") },
        },
        "PreferWait": {
            "name": "Prefer",
            "in": "header",
            "description": "`wait=<seconds>`, at most ten: how long to wait until the answer \
                includes `min_position`; five when absent. 503 `projection_behind` when it does not \
                by then.",
            "schema": { "type": "string" },
            "example": "wait=2",
        },
        "CorrelationId": {
            "name": "X-Correlation-Id",
            "in": "header",
            "description": "Names everything that the request leads to. Made up when it is absent, \
                or is not 1 to 128 visible characters without spaces.",
            "schema": { "type": "string" },
        },
    })
}

/// An idempotency key, quoted or bare.
const KEY: &str = "^([!#-~]([ -~]{0,253}[!-~])?|\"([ !#-\\[\\]-~]|\\\\[\"\\\\]){1,255}\")$";
/// An entity tag.
const TAG: &str = "(W/)?\"[!#-~]*\"";
/// A position of the log.
const PLACE: &str = "[0-9]{1,3}:[0-9]{1,18}";
/// A UUID, with or without its kind before it.
const ID: &str = "[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}";

/// The words that a filter of a list knows.
fn words_at(path: &str, name: &str) -> Option<&'static [&'static str]> {
    Some(match (path, name) {
        ("/api/v1/admin/sagas" | "/api/v1/admin/sagas/stream", "state") => &sagas::STATES,
        ("/api/v1/admin/replays", "state") => &replays::STATES,
        ("/api/v1/admin/users", "status") => words_of::<UserStatus>(),
        ("/api/v1/admin/users", "role") => words_of::<Role>(),
        ("/api/v1/admin/users", "seller_status") => words_of::<VerificationStatus>(),
        ("/api/v1/admin/disputes", "status") => &after_sales::DISPUTES,
        ("/api/v1/admin/payouts" | "/api/v1/me/payouts", "status") => &ledger::STATUSES,
        ("/api/v1/listings" | "/api/v1/me/listings", "status") => &listings::STATUSES,
        ("/api/v1/me/orders" | "/api/v1/me/sales", "status") => words_of::<OrderStatus>(),
        ("/api/v1/notifications", "audience") => &notifications::AUDIENCES,
        ("/api/v1/webhooks/{id}/deliveries", "status") => &webhooks::STATUSES,
        ("/api/v1/traces", "status") => &traces::STATUSES,
        _ => return None,
    })
}

/// As [`schema_of`], where the name says something else at one path.
fn schema_at(path: &str, name: &str) -> Option<Value> {
    if let Some(words) = words_at(path, name) {
        let words: Vec<_> = std::iter::once("").chain(words.iter().copied()).collect();
        return Some(json!({ "type": "string", "enum": words }));
    }
    match (path, name) {
        ("/api/v1/admin/users", "q") => {
            Some(json!({ "type": "string", "pattern": "^[^\\u0000]*$" }))
        }
        ("/api/v1/analytics/metrics", "name") => Some(
            json!({ "type": "string", "enum": Metric::all().map(|of| of.name).collect::<Vec<_>>() }),
        ),
        (path, "format") if path.starts_with("/api/v1/analytics/") => {
            Some(json!({ "type": "string", "enum": ["", "json", "csv", "ndjson"] }))
        }
        (path, "version") if path.starts_with(AGGREGATES) => {
            Some(json!({ "type": "integer", "minimum": 1 }))
        }
        (path, "after") if path.starts_with(AGGREGATES) => {
            Some(json!({ "type": "integer", "minimum": 0, "maximum": i64::MAX }))
        }
        _ => schema_of(name),
    }
}

/// Where the states of aggregates are.
const AGGREGATES: &str = "/api/v1/admin/aggregates/";

/// What a query parameter may be, where its name says more than its type. An empty one counts as
/// absent.
fn schema_of(name: &str) -> Option<Value> {
    let kind =
        |kind: &str| json!({ "type": "string", "pattern": format!("^(({kind}[-_])?{ID})?$") });
    Some(match name {
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 200, "default": 50 }),
        "timeout" => json!({ "type": "integer", "minimum": 0, "default": 5 }),
        "verbose" | "projections" => json!({ "type": "string" }),
        "q" => json!({ "type": "string", "maxLength": 500, "pattern": "^[^\\u0000]*$" }),
        "bucket" => json!({ "type": "string", "enum": ["", "1m", "1h", "1d"] }),
        "group_by" => json!({
            "type": "string",
            "pattern": "^((context|service|event_type)(,(context|service|event_type)){0,2})?$",
        }),
        "size" => json!({ "type": "string", "enum": ["", "320", "1600"] }),
        "sort" => json!({
            "type": "string",
            "enum": ["", "relevance", "newest", "price_asc", "price_desc"],
        }),
        "min_price" | "max_price" => json!({
            "type": "integer", "minimum": 0, "maximum": AMOUNT_MAX,
        }),
        "currency" => json!({
            "type": "string",
            "enum": Currency::ALL.iter().map(|of| of.code()).collect::<Vec<_>>(),
        }),
        "channel" => json!({ "type": "string", "enum": ["email", "sms", "in_app"] }),
        "format" => json!({ "type": "string", "enum": ["", "json", "mermaid"] }),
        "case" => json!({ "type": "string", "examples": ["camel"] }),
        "from" | "to" | "stuck_since" | "at" => json!({ "type": "string", "format": "date-time" }),
        "min_position" => json!({
            "type": "string",
            "pattern": format!("^({PLACE}(,{PLACE}){{0,255}})?$"),
        }),
        "reason" => json!({ "type": "string", "maxLength": 500, "pattern": "^[^\\u0000]*$" }),
        "trace_id" => json!({ "type": "string", "pattern": "^([0-9a-fA-F]{32})?$" }),
        "saga_id" => json!({ "type": "string", "pattern": format!("^({ID})?$") }),
        "order_id" => kind("order"),
        "user_id" | "seller_id" => kind("user"),
        "category_id" => kind("category"),
        "listing_id" => kind("listing"),
        "partition" => json!({ "type": "integer", "minimum": 0, "maximum": 65_535 }),
        "aggregateId" | "aggregate_id" => kind("[a-z_]+"),
        _ => return None,
    })
}

/// Whether a read answers 304 to who has what it would give.
fn is_conditional(path: &str) -> bool {
    const WITHOUT_TAG: [&str; 9] = [
        "/deliveries",
        "/explain",
        "/export",
        "/followers/count",
        "/invoice",
        "/listing-preferences",
        "/payouts/{id}",
        "/returns",
        "/reviews/summary",
    ];
    let never = [
        "/api/v1/events/",
        "/api/v1/traces/",
        "/api/v1/admin/subscriptions/",
        "/api/v1/admin/projections/",
        "/api/v1/admin/replays/",
        "/problems/",
        "/schemas/",
    ];
    ["/api/v1/users/me", "/api/v1/users/me/notification-preferences"].contains(&path)
        || (path.contains("/{")
            && !WITHOUT_TAG.iter().any(|end| path.ends_with(end))
            && !never.iter().any(|start| path.starts_with(start)))
}

/// Whether a change looks at `If-Match`: those of quarantine, pauses and replays rest
/// on no version.
fn rests_on_a_version(path: &str, method: &str) -> bool {
    let never =
        ["/api/v1/admin/subscriptions/", "/api/v1/admin/quarantine/", "/api/v1/admin/replays/"];
    let is_setting = path.starts_with("/api/v1/admin/subscriptions/");
    matches!(method, "patch" | "put")
        || (method == "delete" && is_setting)
        || (method == "post"
            && path.contains("/{")
            && !path.ends_with("/redeliver")
            && !never.iter().any(|start| path.starts_with(start)))
        || (method == "delete"
            && ["/api/v1/webhooks/", "/api/v1/admin/event-sources/"]
                .iter()
                .any(|start| path.starts_with(start)))
}

/// Whether a change must say what it rests on.
fn needs_a_version(path: &str, method: &str) -> bool {
    let switches = ["/cut-over", "/roll-back", "/discard"];
    let of_projection = path.starts_with("/api/v1/admin/projections/");
    let versioned = ["/api/v1/listings/", "/api/v1/webhooks/"];
    (method == "patch" && versioned.iter().any(|start| path.starts_with(start)))
        || (method == "post" && path.starts_with("/api/v1/admin/sagas/"))
        || (of_projection && switches.iter().any(|switch| path.ends_with(switch)))
        || (path.starts_with("/api/v1/dlq/{")
            && ["/skip", "/discard"].iter().any(|verb| path.ends_with(verb)))
}

/// What an operation may be answered besides what it says itself.
fn refusals(path: &str, method: &str) -> Vec<&'static str> {
    let changes = matches!(method, "post" | "patch" | "put" | "delete");
    let mut statuses = vec!["400", "414", "431", "500"];
    if !is_open(path, method) {
        statuses.extend(["401", "403"]);
    }
    if path.starts_with("/api/v1/auth/") || path.starts_with("/api/v1/dev/") {
        statuses.extend(["401", "403"]);
    }
    if path.starts_with("/api/v1/") {
        statuses.push("503");
    }
    // A token that is none, or of somebody who is suspended, is refused where none is needed too, and so
    // is whoever asks too much. Nobody looks at the token for an image: caches give those out as well.
    if path.starts_with("/api/v1/") && !path.starts_with("/api/v1/images/") {
        statuses.extend(["401", "403", "429"]);
    }
    if changes || path.contains("/{") || path.starts_with("/api/v1/users/me") {
        statuses.push("404");
    }
    if method == "get" && is_conditional(path) {
        statuses.push("304");
    }
    if changes {
        statuses.extend(["408", "409", "412", "413", "415", "422", "504"]);
    }
    if ["/api/v1/users/verify-email", "/api/v1/auth/password/reset"].contains(&path)
        || path.starts_with("/api/v1/users/me")
        || path.contains("/users/{id}/")
        || path.starts_with("/api/v1/admin/sellers/")
        || (path == "/api/v1/users/{id}" && changes)
    {
        statuses.push("410");
    }
    if path.ends_with("/stream") {
        statuses.extend(["410", "422"]);
    }
    if path.starts_with(AGGREGATES) && !path.ends_with("/history") {
        statuses.extend(["409", "422"]);
    }
    if method == "get" && ["/api/v1/dlq", "/api/v1/dlq/groups"].contains(&path) {
        statuses.push("422");
    }
    if needs_a_version(path, method) {
        statuses.push("428");
    }
    if path == "/api/v1/admin/projections/{projection}/diff" {
        statuses.push("409");
    }
    statuses
}

/// What can be done without a token.
fn is_open(path: &str, method: &str) -> bool {
    !path.starts_with("/api/v1/")
        || path.starts_with("/api/v1/dev/")
        || matches!(
            path,
            "/api/v1/auth/login"
                | "/api/v1/auth/refresh"
                | "/api/v1/auth/password/forgot"
                | "/api/v1/auth/password/reset"
                | "/api/v1/users/register"
                | "/api/v1/users/verify-email"
                | "/api/v1/users/verify-email/resend"
                | "/api/v1/payments/webhook/momo"
                | "/api/v1/search"
        )
        || (method == "get"
            && path != "/api/v1/users/{id}/export"
            && !path.ends_with("/listing-preferences")
            && !path.ends_with("/loyalty")
            && ["/api/v1/listings", "/api/v1/categories", "/api/v1/reviews", "/api/v1/users/{id}"]
                .iter()
                .any(|open| path.starts_with(open)))
        || path.starts_with("/api/v1/images/")
}

/// What takes no idempotency key: a repeat is harmless, or is no repeat.
const KEYLESS: [&str; 5] = [
    "/api/v1/auth/login",
    "/api/v1/auth/refresh",
    "/api/v1/auth/password/forgot",
    "/api/v1/users/verify-email/resend",
    "/api/v1/users/me/password",
];

/// The key as a parameter: required where a repeat without one would buy twice.
fn idempotency_key(path: &str) -> Value {
    if path != "/api/v1/checkouts" {
        return json!({ "$ref": "#/components/parameters/IdempotencyKey" });
    }
    let mut required = parameters()["IdempotencyKey"].clone();
    required["required"] = Value::from(true);
    required
}

/// The scope with which somebody's key does this as its owner.
fn key_scope(path: &str, method: &str) -> Option<(String, Value)> {
    let method = Method::from_str(&method.to_uppercase()).ok()?;
    let scope = scopes::needed(&method, path)?;
    Some(("x-key-scope".to_owned(), Value::from(scope.to_string())))
}

fn complete(path: &str, method: &str, operation: &mut Map<String, Value>) {
    let parameter = |name: &str| json!({ "$ref": format!("#/components/parameters/{name}") });
    let mut parameters = Vec::new();
    let keyless = KEYLESS.contains(&path)
        || path.starts_with("/api/v1/payments/webhook/")
        || (path.starts_with("/api/v1/dev/") && !path.ends_with("/echo"));
    if method == "post" && !keyless && !path.starts_with("/api/v1/events") {
        parameters.push(idempotency_key(path));
    }
    if rests_on_a_version(path, method) {
        parameters.push(parameter("IfMatch"));
    }
    if method == "get" && is_conditional(path) {
        parameters.push(parameter("IfNoneMatch"));
    }
    if path.starts_with("/api/") {
        parameters.push(parameter("CorrelationId"));
    }
    let waits = |own: &Value| own["name"] == "min_position";
    let rests_on_a_view =
        operation.get("parameters").and_then(Value::as_array).into_iter().flatten().any(waits);
    if rests_on_a_view {
        parameters.push(parameter("PreferWait"));
    }
    for own in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        if (own["in"] == "query" || own["name"] == "partition")
            && let Some(schema) = own["name"].as_str().and_then(|name| schema_at(path, name))
        {
            own["schema"] = schema;
            if own["required"] == true {
                own["schema"]["minLength"] = Value::from(1);
            }
        } else if let Some(kinds) = own["schema"]["type"].as_array() {
            // Whether it may be absent is said by `required`; a query has no null.
            own["schema"]["type"] =
                kinds.iter().find(|kind| **kind != "null").cloned().unwrap_or_default();
        }
    }
    match operation.get_mut("parameters").and_then(Value::as_array_mut) {
        Some(own) => own.extend(parameters),
        None => drop(operation.insert("parameters".to_owned(), Value::from(parameters))),
    }
    let security = if is_open(path, method) { json!([]) } else { json!([{ "bearer": [] }]) };
    operation.insert("security".to_owned(), security);
    operation.extend(key_scope(path, method));
    let problem = json!({ "$ref": "#/components/responses/Problem" });
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else {
        return;
    };
    for status in refusals(path, method) {
        let refusal = match status {
            "304" => json!({ "description": "The caller has it already" }),
            _ => problem.clone(),
        };
        responses.entry(status).or_insert(refusal);
    }
    for (status, response) in responses {
        if rests_on_a_view && status == "200" {
            response["headers"] = json!({
                "Souk-Projection-Position": {
                    "$ref": "#/components/headers/Souk-Projection-Position",
                },
            });
        }
        if matches!(method, "post" | "patch" | "put") && status.starts_with('2') {
            response["headers"] = json!({
                "ETag": { "$ref": "#/components/headers/ETag" },
                "Souk-Position": { "$ref": "#/components/headers/Souk-Position" },
                "Idempotent-Replayed": { "$ref": "#/components/headers/Idempotent-Replayed" },
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn document() -> Value {
        let (_, document) = super::super::routes(true).split_for_parts();
        finished(&document)
    }

    #[test]
    fn the_document_is_openapi_3_1_with_what_all_have_in_common() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        assert!(document["webhooks"].is_object());
        let register = &document["paths"]["/api/v1/users/register"]["post"];
        assert!(register["responses"]["409"]["$ref"].is_string());
        assert!(register["parameters"].to_string().contains("IdempotencyKey"));
        assert_eq!(register["security"], json!([]));
        let place = &document["paths"]["/api/v1/orders"]["post"];
        assert_eq!(place["security"], json!([{ "bearer": [] }]));
        let login = &document["paths"]["/api/v1/auth/login"]["post"];
        assert!(!login["parameters"].to_string().contains("IdempotencyKey"));
        let mine = document["paths"]["/api/v1/me/listings"]["get"]["parameters"].to_string();
        assert!(mine.contains("\"ARCHIVED\""), "{mine}");
        let image = &document["paths"]["/api/v1/images/{id}/{name}"]["get"]["responses"];
        let search = &document["paths"]["/api/v1/search"]["get"]["responses"];
        for status in ["401", "403", "429"] {
            assert!(search[status].is_object(), "{status}");
            assert!(image[status].is_null(), "nobody is asked who wants an image: {status}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(target) = members.get("$ref").and_then(Value::as_str) {
                        let pointer = target.trim_start_matches('#');
                        assert!(document.pointer(pointer).is_some(), "{target}");
                    }
                    members.values().for_each(|value| check(value, document));
                }
                Value::Array(items) => items.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = document();
        check(&document, &document);
    }

    #[test]
    fn every_operation_has_its_own_id() {
        let document = document();
        let mut seen = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
                assert!(seen.insert(id.clone()), "{method} {path}: {id}");
            }
        }
    }

    /// Routes come about through `routes!`, which documents them, and nowhere else but here.
    #[test]
    fn every_route_is_documented() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("openapi.rs") || path.ends_with("server.rs") {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            assert!(!source.contains(".route("), "{}", path.display());
            let handlers = source.matches("#[utoipa::path(").count();
            let routed = source.matches("routes!(").count();
            assert!(handlers == 0 || routed > 0 || path.ends_with("events_await.rs"));
        }
    }
}
