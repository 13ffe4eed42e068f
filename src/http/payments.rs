//! What payment providers tell by themselves.
//!
//! Anybody can call this, and only what is signed with the provider's key is believed. MoMo's notice
//! may come never, once or a hundred times, and late; it is answered 204 once what it says is durable
//! or is nothing new. Where it cannot be made durable it is 503: the provider tells again, and if it
//! does not, the payment is asked after.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use souk_actors::command::{CommandContext, Once, Origin};
use souk_actors::event::Position;
use souk_actors::id::derived;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::body::{self, Unread, essence};
use super::problem::ApiError;
use super::{App, POSITION};
use crate::domain::ids::PaymentId;
use crate::domain::money::{Currency, Money};
use crate::domain::order::PaymentMethod;
use crate::domain::payment::{Misfit, Outcome, Payment, PaymentCommand, PaymentDetails};
use crate::gateways::momo::codes::Meaning;
use crate::gateways::momo::notice::{self, NotANotice, Notice};

/// The largest notice. Those that are documented have less than two kilobytes.
const NOTICE_BYTES_MAX: usize = 64 * 1024;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(momo_notice))
}

/// What MoMo says became of a payment. Other members are ignored: they are not signed.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct MoMoNotice {
    /// Who we are at MoMo.
    #[schema(example = "MOMO")]
    pub partner_code: String,
    /// The payment's id.
    #[schema(example = "b6f78f10-a9a5-8153-9247-c13a4f6722a8")]
    pub order_id: String,
    /// The same.
    #[schema(example = "b6f78f10-a9a5-8153-9247-c13a4f6722a8")]
    pub request_id: String,
    /// How many dong.
    #[schema(example = 50_000)]
    pub amount: i64,
    /// What the buyer read.
    pub order_info: String,
    /// `momo_wallet`.
    pub order_type: String,
    /// MoMo's number of the payment.
    #[schema(example = 4_088_878_653_i64)]
    pub trans_id: i64,
    /// What became of it; 0: it is paid.
    #[schema(example = 0)]
    pub result_code: i64,
    /// The same in words.
    pub message: String,
    /// How it was paid.
    #[schema(example = "qr")]
    pub pay_type: String,
    /// When, in milliseconds since 1970.
    #[schema(example = 1_721_720_663_942_i64)]
    pub response_time: i64,
    /// What was sent along; nothing.
    pub extra_data: String,
    /// HMAC-SHA256 of the fields above, in hexadecimal.
    pub signature: String,
}

/// MoMo tells what became of a payment
///
/// The address that MoMo is given as `ipnUrl`. It is believed when it is signed with our secret key.
/// Money that does not fit its payment changes nothing but for `payment.rejected`, which
/// administrators hear of.
#[utoipa::path(post, path = "/payments/webhook/momo", tag = "payments", request_body = MoMoNotice,
    responses((status = 204, description = "It is recorded, or was before")))]
async fn momo_notice(State(app): State<App>, unread: Unread) -> Result<Response, ApiError> {
    let answer = receive(&app, unread).await;
    let outcome = match &answer {
        Ok((outcome, _)) => *outcome,
        Err(error) if error.status() == StatusCode::UNAUTHORIZED => "unsigned",
        Err(error) if error.status().is_client_error() => "malformed",
        Err(_) => "not_recorded",
    };
    count(outcome, 1);
    let (_, position) = answer?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(Ok(position)) = position.map(|at| HeaderValue::from_str(&at.to_string())) {
        response.headers_mut().insert(POSITION, position);
    }
    Ok(response)
}

fn count(outcome: &'static str, notices: u64) {
    metrics::counter!("souk_payment_notices_total", "provider" => "momo", "outcome" => outcome)
        .increment(notices);
}

/// Has notices counted from 0 on.
pub(super) fn count_from_zero() {
    let refused = ["unsigned", "malformed", "not_recorded"];
    let taken = ["recorded", "nothing_new", "unknown_payment"];
    refused.into_iter().chain(taken).for_each(|outcome| count(outcome, 0));
}

/// What came of a notice, as metrics name it, and where the event stands that it led to.
type Received = (&'static str, Option<Position>);

async fn receive(app: &App, unread: Unread) -> Result<Received, ApiError> {
    let Some(settings) = &app.settings().momo else {
        return Err(ApiError::not_found("MoMo is not set up here: see MOMO_PARTNER_CODE"));
    };
    let is_json = |headers: &HeaderMap| body::is_json_type(&essence(headers));
    let (_, bytes) = unread.bytes(app, is_json).await?;
    if bytes.len() > NOTICE_BYTES_MAX {
        let detail = format!("the body is larger than {NOTICE_BYTES_MAX} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail));
    }
    let Value::Object(body) = body::parse(&bytes)? else {
        return Err(ApiError::invalid_field("", "wrong_type", "the body must be a JSON object"));
    };
    let notice = notice::read(settings, &body).map_err(|error| refused(&error))?;
    record(app, &notice).await
}

fn refused(error: &NotANotice) -> ApiError {
    match error {
        NotANotice::Malformed(name) => {
            ApiError::invalid_field(&format!("/{name}"), "invalid", &error.to_string())
        }
        NotANotice::NotSigned => {
            tracing::warn!("a payment notice came that MoMo did not sign");
            ApiError::new(StatusCode::UNAUTHORIZED, "invalid_signature", error.to_string())
                .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("MoMo-Signature"))
        }
    }
}

/// Tells the payment; what is about no payment of ours is only counted, since a repeat would not
/// help.
async fn record(app: &App, notice: &Notice) -> Result<Received, ApiError> {
    let payments = app.runtime().aggregate::<Payment>();
    let strange = || {
        tracing::error!("MoMo told of a payment that it was not asked for");
        Ok(("unknown_payment", None))
    };
    let Ok(id) = Uuid::try_parse(&notice.order_id) else { return strange() };
    let details = payments.read_inside(id, |payment| payment.details.clone()).await?.value;
    let is_momo = |details: &PaymentDetails| details.method.0 == PaymentMethod::MOMO;
    let Some(details) = details.filter(is_momo) else { return strange() };
    let Some(command) = command(app, notice, &details) else { return Ok(("nothing_new", None)) };
    let context = context(app, notice, details.payment_id).await?;
    let done = payments.send(id, command, context, |_| ()).await?;
    let is_new = done.events > 0 && !done.replayed;
    Ok((if is_new { "recorded" } else { "nothing_new" }, done.position))
}

/// What a notice makes the payment do; none: nothing.
fn command(app: &App, notice: &Notice, details: &PaymentDetails) -> Option<PaymentCommand> {
    let now = app.now();
    let money = Money::new(notice.amount, Currency::Vnd);
    let provider_reference = notice.trans_id.to_string();
    let as_set_up = || app.settings().momo.as_ref().is_some_and(|momo| !momo.auto_capture);
    let holds_first = details.holds_first.unwrap_or_else(as_set_up);
    let is_begun_by_us = notice.request_id == details.payment_id.to_string();
    let outcome = match notice.meaning() {
        Meaning::Authorised if is_begun_by_us && holds_first => {
            Outcome::Authorized { provider_reference, money }
        }
        Meaning::Success | Meaning::Authorised if is_begun_by_us => {
            Outcome::Captured { provider_reference, money }
        }
        Meaning::Success | Meaning::Authorised => {
            let reason = Misfit::RequestMismatch;
            Outcome::Misfit { reason, provider_reference, money }
        }
        Meaning::Failed(reason) if is_begun_by_us && money == details.money => {
            let reason = reason.to_owned();
            Outcome::Declined { reason, provider_reference: Some(provider_reference) }
        }
        Meaning::Waiting => return None,
        // Whatever else it says is asked after before it is believed.
        _ => return Some(PaymentCommand::Inquire { now }),
    };
    Some(PaymentCommand::Settle { outcome, now })
}

/// A notice is part of a purchase under way: it has its room, its correlation id, and effect once.
async fn context(
    app: &App,
    notice: &Notice,
    payment: PaymentId,
) -> Result<CommandContext, ApiError> {
    let Notice { order_id, request_id, amount, trans_id, result_code } = notice;
    let said = format!("{order_id}\n{request_id}\n{amount}\n{trans_id}\n{result_code}");
    let command_id = derived("momo notice", &[said.as_bytes()]);
    let first = app.runtime().journal().read_aggregate(payment.uuid(), 0, 1).await?;
    let correlation_id = first.first().map_or("momo", |event| &*event.correlation_id);
    let world = app.runtime().world();
    let causation_id = format!("momo-{trans_id}");
    Ok(CommandContext {
        command_id,
        once: Some(Once { request_hash: [0; 32] }),
        actor_id: PaymentMethod::MOMO.into(),
        origin: Origin::Inside,
        ..CommandContext::outside(&**world, correlation_id, &causation_id)
    })
}
