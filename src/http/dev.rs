//! What exists in development mode only: the outbox, the clock, faults, and an echo.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page};
use super::body::{Fields, FromFields, Valid};
use super::call::Call;
use super::params::{Params, wrong};
use super::problem::ApiError;

/// These routes ask for no token. What protects them is that development mode listens on loopback
/// only, and so they must not be reached through a browser that shows somebody else's page.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(outbox))
        .routes(routes!(payments))
        .routes(routes!(advance_clock))
        .routes(routes!(list_faults, add_fault))
        .routes(routes!(remove_fault))
        .routes(routes!(echo))
        .layer(axum::middleware::from_fn(local_only))
}

/// Refuses what a foreign page makes a browser send: under a foreign name that was made to lead here
/// (DNS rebinding), or from a foreign origin.
async fn local_only(request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.host()),
        None => headers.get(header::HOST).map(|host| host_of(host.to_str().unwrap_or("?"))),
    };
    if host.is_some_and(|host| !is_local(host)) {
        let detail = "/dev is reached as localhost, 127.0.0.1 or [::1] only";
        return Err(ApiError::forbidden("foreign_host", detail));
    }
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or("?"));
    let is_local_origin = |origin: &str| {
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        host.is_some_and(|host| is_local(host_of(host)))
    };
    let crosses = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    if crosses || origin.is_some_and(|origin| !is_local_origin(origin)) {
        let detail = "/dev is not for the pages of other sites";
        return Err(ApiError::forbidden("foreign_origin", detail));
    }
    Ok(next.run(request).await)
}

/// `host[:port]` without the port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether a name or an address can only mean this machine.
fn is_local(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let local = |name: &str| name.eq_ignore_ascii_case("localhost");
    bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || local(host)
        || host.rsplit_once('.').is_some_and(|(_, top)| local(top))
}

/// A message that was "sent".
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct SentBody(pub Value);

/// What the log adapters have sent, the newest first
#[utoipa::path(get, path = "/dev/outbox", tag = "dev",
    params(("channel" = Option<String>, Query, description = "`email` (when absent) or `sms`")),
    responses((status = 200, description = "Messages", body = Page<SentBody>)))]
async fn outbox(
    State(app): State<App>,
    params: Params,
) -> Result<Answer<Page<SentBody>>, ApiError> {
    let channel = params.text("channel").unwrap_or("email");
    let sent: Vec<Value> = match channel {
        "email" | "sms" | "in_app" => {
            let sent = app.outbox().list(channel, params.limit()?).await.map_err(|error| {
                let detail = error.to_string();
                ApiError::unavailable("read_model_unavailable", detail, Duration::from_secs(1))
            })?;
            sent.iter().filter_map(|message| serde_json::to_value(message).ok()).collect()
        }
        _ => return Err(wrong("channel", "must be email, sms or in_app")),
    };
    Ok(Answer::ok(Page::whole(sent.into_iter().map(SentBody).collect())))
}

/// A call that the built-in payment provider got: the operation, its key, how much.
#[derive(Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct GatewayCallBody(pub Value);

/// What the built-in payment provider was asked for since the start, the newest first
///
/// A repeat under the same key is not listed again.
#[utoipa::path(get, path = "/dev/payments", tag = "dev",
    responses((status = 200, description = "Charges and refunds", body = Page<GatewayCallBody>)))]
async fn payments(State(app): State<App>) -> Answer<Page<GatewayCallBody>> {
    let calls = app.gateway_calls().into_iter();
    let shown = calls.filter_map(|call| serde_json::to_value(call).ok()).map(GatewayCallBody);
    Answer::ok(Page::whole(shown.collect()))
}

/// How far to move the clock.
#[derive(ToSchema)]
pub struct Advance {
    /// By how many seconds; or as `by`, with a unit (`25h`, `31days`).
    pub seconds: u64,
}

impl FromFields for Advance {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        if !fields.has(&["by"]) {
            let seconds = fields.integer(&["seconds"])?;
            let seconds = u64::try_from(seconds).ok();
            if seconds.is_none() {
                fields.error("seconds", "out_of_range", "time does not go back");
            }
            return Some(Self { seconds: seconds? });
        }
        let text = fields.optional_text(&["by"])?;
        match humantime::parse_duration(text.trim_start_matches('+')) {
            Ok(by) => Some(Self { seconds: by.as_secs() }),
            Err(_) => {
                fields.error("by", "invalid", "must be a duration with a unit (25h)");
                None
            }
        }
    }
}

/// The time after the clock was moved.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClockBody {
    /// Now.
    #[schema(format = DateTime)]
    pub now: String,
}

/// Move the clock forward; due timers fire
#[utoipa::path(post, path = "/dev/clock/advance", tag = "dev", request_body = Advance,
    responses((status = 200, description = "The time now", body = ClockBody)))]
async fn advance_clock(
    State(app): State<App>,
    valid: Valid<Advance>,
) -> Result<Answer<ClockBody>, ApiError> {
    if !app.runtime().advance_clock(Duration::from_secs(valid.body.seconds)) {
        return Err(ApiError::conflict("clock_fixed", "this clock cannot be moved so far"));
    }
    Ok(Answer::ok(ClockBody { now: app.now().to_string() }))
}

/// A failure to inject.
#[derive(ToSchema)]
#[schema(title = "Fault")]
pub struct NewFault {
    /// The subscription, gateway or `journal`.
    pub target: String,
    /// `fail`, `panic`, `delay`, `timeout` (or, for the journal, `lose_answer`).
    pub mode: String,
    /// For `fail`: `transient`, `permanent` or `system`.
    pub kind: Option<String>,
    /// How often; until it is taken away when absent.
    pub times: Option<u64>,
    /// Only for this aggregate or key.
    pub key: Option<String>,
    /// For `delay`, in milliseconds.
    pub delay_ms: Option<u64>,
    #[schema(ignore)]
    raw: Value,
}

impl FromFields for NewFault {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let number = |fields: &mut Fields<'_>, names: &[&'static str]| {
            let number = fields.optional_integer(names)?;
            let positive = u64::try_from(number).ok();
            if positive.is_none() {
                fields.error(names[0], "out_of_range", "must not be negative");
            }
            positive
        };
        let (target, mode) = (fields.text(&["target"]), fields.text(&["mode"]));
        let kind = fields.optional_text(&["kind"]);
        let times = number(fields, &["times"]);
        let key = fields.optional_text(&["key"]);
        let delay_ms = number(fields, &["delay_ms", "delayMs"]);
        let (target, mode) = (target?, mode?);
        let raw = json!({
            "target": target,
            "mode": mode,
            "kind": kind.clone().unwrap_or_else(|| "transient".to_owned()),
            "times": times,
            "key": key,
            "delay_ms": delay_ms.unwrap_or(0),
        });
        Some(Self { target, mode, kind, times, key, delay_ms, raw })
    }
}

/// A fault in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct FaultBody {
    /// Takes it away again.
    pub id: u64,
    /// What it is.
    #[schema(value_type = Object)]
    pub fault: Value,
}

/// Faults in force
#[utoipa::path(get, path = "/dev/faults", tag = "dev",
    responses((status = 200, description = "All of them", body = Page<FaultBody>)))]
async fn list_faults(State(app): State<App>) -> Result<Answer<Page<FaultBody>>, ApiError> {
    let all = app.runtime().faults().list().into_iter();
    let shown =
        |(id, fault)| FaultBody { id, fault: serde_json::to_value(fault).unwrap_or_default() };
    Ok(Answer::ok(Page::whole(all.map(shown).collect())))
}

/// Inject failures
#[utoipa::path(post, path = "/dev/faults", tag = "dev", request_body = NewFault,
    responses((status = 201, description = "The fault", body = FaultBody)))]
async fn add_fault(
    State(app): State<App>,
    valid: Valid<NewFault>,
) -> Result<Answer<FaultBody>, ApiError> {
    let raw = valid.body.raw;
    let fault = serde_json::from_value(raw.clone())
        .map_err(|_| ApiError::invalid_field("/mode", "invalid", "mode or kind is not known"))?;
    let id = app.runtime().faults().add(fault);
    Ok(Answer::created(&format!("/api/v1/dev/faults/{id}"), FaultBody { id, fault: raw }))
}

/// Take a fault away
#[utoipa::path(delete, path = "/dev/faults/{id}", tag = "dev", params(("id" = u64, Path)),
    responses((status = 204, description = "It is gone")))]
async fn remove_fault(State(app): State<App>, Path(id): Path<u64>) -> Result<StatusCode, ApiError> {
    if app.runtime().faults().remove(id) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found("there is no such fault"))
}

/// Any JSON object.
#[derive(ToSchema)]
#[schema(value_type = Object)]
pub struct Echo(Value);

impl FromFields for Echo {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self(fields.whole()))
    }
}

/// What an echo says.
#[derive(Debug, Serialize, ToSchema)]
pub struct EchoBody {
    /// What was sent.
    #[schema(value_type = Object)]
    pub echo: Value,
    /// Who sent it.
    pub caller: String,
}

/// Everything that a command passes through on its way to an actor, and no actor
///
/// The measure that throughput is compared with.
#[utoipa::path(post, path = "/dev/echo", tag = "dev", request_body = Echo,
    responses((status = 200, description = "The same", body = EchoBody)))]
async fn echo(
    State(app): State<App>,
    call: Call,
    valid: Valid<Echo>,
) -> Result<Answer<EchoBody>, ApiError> {
    let context = call.context(&app, "dev.echo", "", &valid.canonical);
    let caller = context.actor_id.to_string();
    Ok(Answer::ok(EchoBody { echo: valid.body.0, caller }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "127.1.2.3", "[::1]:8080"] {
            assert!(is_local(host_of(host)), "{host}");
        }
        assert!(is_local(host_of("souk.localhost:80")));
        for host in ["example.com", "localhost.example.com", "10.0.0.1:8080", "", "?", "0.0.0.0"] {
            assert!(!is_local(host_of(host)), "{host}");
        }
        assert!(!is_local(host_of("127.0.0.1.example.com:8080")));
    }
}
