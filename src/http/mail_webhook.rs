//! What mail providers tell by themselves: mails that came back.
//!
//! SendGrid's event webhook is understood as it is. It is believed from an administrator, and from
//! whoever has `MAIL_WEBHOOK_TOKEN`, as a bearer token or as the password of Basic authentication.
//! What concerns no mail of ours, or says nothing of interest, is counted and passed over: sending it
//! again would not help.

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use souk_actors::command::{CommandContext, CommandError, Once, Origin};
use souk_actors::event::Position;
use souk_actors::id::{derived, keyed_hash};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::Answer;
use super::body::{self, Unread, essence};
use super::call::Call;
use super::problem::ApiError;
use crate::domain::ids::NotificationId;
use crate::domain::notification::{Notification, NotificationCommand, NotificationRejection};

/// The most events of one request. SendGrid sends some at a time.
const EVENTS_MAX: usize = 1_000;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(mail_events))
}

/// Whoever may tell of mails.
pub(super) struct Teller;

impl FromRequestParts<App> for Teller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        if knows_token(app, &parts.headers) {
            return Ok(Self);
        }
        Call::from_request_parts(parts, app).await?.staff()?;
        Ok(Self)
    }
}

fn knows_token(app: &App, headers: &HeaderMap) -> bool {
    let Some(token) = &app.settings().messaging.webhook_token else { return false };
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, sent)) = sent.and_then(|sent| sent.split_once(' ')) else { return false };
    let sent = if scheme.eq_ignore_ascii_case("basic") {
        let login =
            STANDARD.decode(sent.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let password = login.as_ref().and_then(|login| login.split_once(':'));
        password.map(|(_, password)| password.to_owned())
    } else {
        scheme.eq_ignore_ascii_case("bearer").then(|| sent.trim().to_owned())
    };
    // Of hashes under a key that nobody outside has, how long a comparison takes says nothing.
    let hash = |text: &str| {
        keyed_hash(app.settings().keys.lookup.bytes(), "mail webhook token", &[text.as_bytes()])
    };
    sent.is_some_and(|sent| hash(&sent) == hash(token.expose()))
}

/// What became of them.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct MailEventsBody {
    /// How many were news of a mail that came back.
    pub recorded: usize,
    /// How many were not.
    pub ignored: usize,
}

/// A mail that came back.
struct Bounce {
    notification_id: NotificationId,
    for_good: bool,
    reason: &'static str,
}

fn bounce(event: &Value) -> Option<Bounce> {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let (for_good, reason) = match (text("event"), text("type")) {
        ("bounce", "blocked") => (false, "blocked"),
        ("bounce", _) => (true, "bounced"),
        // SendGrid does not even try an address that it knows to be bad.
        ("dropped", _) if text("reason").to_ascii_lowercase().contains("bounced") => {
            (true, "dropped")
        }
        _ => return None,
    };
    let notification_id = text("notification_id").parse().ok()?;
    Some(Bounce { notification_id, for_good, reason })
}

/// A mail provider tells of mails that came back
///
/// SendGrid's event webhook: a list of events, of which those about mails that bounced are recorded
/// (`notification.email.bounced`). An address that bounced for good is written to no more
/// (`user.email_unreachable`). What is read of an event: `event` (`bounce` or `dropped`; others are passed over), `type`
/// (`blocked` for now, else for good), `reason`, and `notification_id`, which was sent along with the mail.
#[utoipa::path(post, path = "/notifications/webhook/bounce", tag = "notifications",
    request_body = Vec<Value>,
    responses((status = 200, description = "What became of them", body = MailEventsBody)))]
async fn mail_events(
    State(app): State<App>,
    _: Teller,
    unread: Unread,
) -> Result<Response, ApiError> {
    let is_json = |headers: &HeaderMap| body::is_json_type(&essence(headers));
    let (_, bytes) = unread.bytes(&app, is_json).await?;
    let events = match body::parse(&bytes)? {
        Value::Array(events) => events,
        _ => {
            let detail = "the body must be a list of events";
            return Err(ApiError::invalid_field("", "wrong_type", detail));
        }
    };
    if events.len() > EVENTS_MAX {
        let detail = "must be at most 1000 events";
        return Err(ApiError::invalid_field("", "too_many", detail));
    }
    let (mut told, mut positions) = (MailEventsBody::default(), Vec::new());
    for event in &events {
        match record(&app, event).await? {
            Some(position) => {
                told.recorded += 1;
                positions.push(position);
            }
            None => told.ignored += 1,
        }
    }
    Ok(Answer::ok(told).after_all(positions).into_response())
}

/// Where the event stands that it led to; none: it is nothing new.
async fn record(app: &App, event: &Value) -> Result<Option<Position>, ApiError> {
    let Some(Bounce { notification_id, for_good, reason }) = bounce(event) else {
        return Ok(None);
    };
    let id = notification_id.uuid();
    let first = app.runtime().journal().read_aggregate(id, 0, 1).await?;
    let Some(first) = first.first().filter(|of| &*of.aggregate_type == "notification") else {
        return Ok(None);
    };
    let said = [id.as_bytes().as_slice(), reason.as_bytes()];
    let context = CommandContext {
        command_id: derived("mail bounce", &said),
        once: Some(Once { request_hash: [0; 32] }),
        actor_id: "mail-provider".into(),
        origin: Origin::Inside,
        ..CommandContext::outside(&**app.runtime().world(), &first.correlation_id, "mail-webhook")
    };
    let (reason, now) = (reason.to_owned(), app.now());
    let command = NotificationCommand::RecordBounced { for_good, reason, now };
    match app.runtime().aggregate::<Notification>().send(id, command, context, |_| ()).await {
        Ok(done) => Ok(done.position.filter(|_| done.events > 0 && !done.replayed)),
        Err(CommandError::Rejected { rejection: NotificationRejection::NotFound, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_comes_back_for_good_is_told_from_what_does_for_now() {
        let id = "0192f0c1-2345-7000-8000-0123456789ab";
        let read = |mut event: Value| {
            event["notification_id"] = json!(id);
            bounce(&event).map(|bounce| (bounce.for_good, bounce.reason))
        };
        assert_eq!(read(json!({ "event": "bounce", "type": "bounce" })), Some((true, "bounced")));
        assert_eq!(read(json!({ "event": "bounce" })), Some((true, "bounced")));
        assert_eq!(read(json!({ "event": "bounce", "type": "blocked" })), Some((false, "blocked")));
        let dropped = json!({ "event": "dropped", "reason": "Bounced Address" });
        assert_eq!(read(dropped), Some((true, "dropped")));
        assert_eq!(read(json!({ "event": "dropped", "reason": "Unsubscribed Address" })), None);
        for other in ["delivered", "open", "deferred", ""] {
            assert_eq!(read(json!({ "event": other })), None, "{other}");
        }
        assert!(bounce(&json!({ "event": "bounce", "notification_id": 7 })).is_none());
        assert!(bounce(&json!("bounce")).is_none());
    }
}
