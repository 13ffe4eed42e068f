//! Why an order is where it is: what happened, what is still owed, by whom, and when that is tried
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use serde::Serialize;
use souk_actors::event::StoredEvent;
use souk_actors::saga::{STEP_TIMER, Saga as _, SagaInstance, SteppedIn};
use souk_actors::subscriber::Delivery;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::Answer;
use super::call::SignedIn;
use super::event_json;
use super::graph::{self, Observed, has_failed};
use super::orders::{self, OrderBody};
use super::problem::ApiError;
use super::traces;
use crate::domain::ids::{EscrowId, ListingId, OrderId, ShipmentId};
use crate::domain::listing::hold_timer;
use crate::domain::order::OrderStatus;
use crate::domain::order_saga::OrderSaga;
use crate::domain::payment::{INQUIRY_TIMER, PaymentStatus};

/// How many events of each aggregate are read, and how many correlation ids are followed.
const STREAM_MAX: usize = 200;
const CORRELATIONS_MAX: usize = 8;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(explain_order))
}

/// Why an order is where it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExplanationBody {
    /// The order.
    pub order_id: Uuid,
    /// The number that people read out.
    #[schema(example = "ORD-20261120-7ZQ4K2M9XW1B")]
    pub order_number: String,
    /// How it stands.
    #[schema(value_type = String, example = "PAID")]
    pub status: OrderStatus,
    /// The whole in a few sentences.
    pub summary: String,
    /// How its payment stands; none before it has begun.
    #[schema(value_type = Option<String>, example = "CAPTURED")]
    pub payment_status: Option<PaymentStatus>,
    /// What stands behind it, for administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internals: Option<InternalsBody>,
}

/// What stands behind an order.
#[derive(Debug, Serialize, ToSchema)]
pub struct InternalsBody {
    /// Its saga; none before that has begun.
    pub saga: Option<ExplainedSagaBody>,
    /// What happens of itself, and when.
    pub timers: Vec<TimerBody>,
    /// What is still owed, what most needs somebody first: dead letters, what is tried again, what
    /// waits behind a dead letter, what is to be handled.
    pub owed: Vec<OwedBody>,
    /// What happened, in order, and who handled it.
    pub events: Vec<ExplainedEventBody>,
    /// Whether there is more than is shown here.
    pub truncated: bool,
}

/// An order's saga.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExplainedSagaBody {
    /// The instance.
    pub saga_id: Uuid,
    /// Which of its definitions it follows, once it knows.
    #[schema(example = "reserve_first")]
    pub definition: Option<String>,
    /// The last step that is done, or how it stands.
    #[schema(example = "ORDER_PAID")]
    pub state: String,
    /// The step it is at, forwards or backwards; none: it is over.
    #[schema(example = "ship")]
    pub step: Option<String>,
    /// Which try of the step.
    pub attempt: u32,
    /// The step that failed, if one did.
    pub failed_step: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
    /// Who stepped in, in order.
    pub interventions: Vec<InterventionBody>,
}

/// What somebody did to a saga.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InterventionBody {
    /// `retry` or `compensate`.
    #[schema(example = "retry")]
    pub verb: String,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When.
    #[schema(format = DateTime)]
    pub at: String,
}

impl From<&SteppedIn> for InterventionBody {
    fn from(of: &SteppedIn) -> Self {
        let (verb, by, reason) = (of.verb.clone(), of.by.clone(), of.reason.clone());
        Self { verb, by, reason, at: of.at.to_string() }
    }
}

/// Something that happens of itself.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TimerBody {
    /// To which kind of thing.
    #[schema(example = "listing")]
    pub aggregate_type: String,
    /// To which one.
    pub aggregate_id: Uuid,
    /// When.
    #[schema(format = DateTime)]
    pub due_at: String,
    /// What.
    pub what: String,
}

/// Work that a subscription still owes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OwedBody {
    /// Who owes it.
    pub subscription: String,
    /// Whether it keeps rows rather than having effects.
    pub is_projection: bool,
    /// `dead`, `retrying`, `waiting` or `pending`.
    #[schema(example = "retrying")]
    pub state: &'static str,
    /// The event that is to be handled.
    pub event_id: Uuid,
    /// Its type.
    #[schema(example = "shipment.created")]
    pub event_type: String,
    /// How often it was tried.
    pub attempt: u32,
    /// After how many tries it becomes a dead letter, when each failure is one that may pass.
    pub attempts_max: u32,
    /// Why it failed.
    pub error: Option<String>,
    /// `transient`, `permanent` or `system`.
    pub class: Option<String>,
    /// The latest failure.
    #[schema(format = DateTime)]
    pub last_failed_at: Option<String>,
    /// When it is tried again, if it is of itself.
    #[schema(format = DateTime)]
    pub next_attempt_at: Option<String>,
    /// Why the subscription does not go on at all: `paused`, `circuit_open` or `damaged`.
    pub held: Option<&'static str>,
    /// The dead letter, or the place among those that wait behind one.
    pub letter: Option<LetterPathsBody>,
}

/// Where a letter is worked.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LetterPathsBody {
    /// The partition.
    pub partition: u16,
    /// The key whose order is kept.
    pub key: Uuid,
    /// POST here to try it again.
    pub retry: String,
    /// POST here to give it up.
    pub discard: String,
}

/// An event and who handled it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExplainedEventBody {
    /// The event.
    pub event_id: Uuid,
    /// Its number in the log.
    pub event_ref: String,
    /// Its type.
    #[schema(example = "order.placed")]
    pub event_type: String,
    /// What kind of thing it happened to.
    pub aggregate_type: String,
    /// What it happened to.
    pub aggregate_id: Uuid,
    /// When.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// What caused it.
    pub causation_id: String,
    /// Who gets it, and how far they are with it. Those that keep rows are left out while they owe
    /// nothing.
    pub handlers: Vec<HandlerBody>,
}

/// How far a subscription is with an event.
#[derive(Debug, Serialize, ToSchema)]
pub struct HandlerBody {
    /// The subscription.
    pub subscription: String,
    /// `acked`, `pending`, `retrying`, `dead` or `waiting`.
    #[schema(example = "acked")]
    pub state: &'static str,
    /// How often it was tried, where that is known.
    pub attempts: Option<u32>,
}

/// Why an order is where it is
///
/// What happened, what is still owed, by which subscription, and when that is tried again. Buyer and
/// seller see how it stands; administrators also see the saga, the timers and every delivery.
#[utoipa::path(get, path = "/orders/{id}/explain", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "The explanation", body = ExplanationBody)))]
async fn explain_order(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
) -> Result<Answer<ExplanationBody>, ApiError> {
    let order = orders::named(&app, &call, &id).await?;
    // First what is owed: whatever is said of the order is then at least as new as that.
    let (events, truncated) = events(&app, &order).await?;
    let observed = traces::observed(&app, events).await?;
    let order = orders::named(&app, &call, &id).await?;
    let saga = saga(&app, order.order_id).await?;
    let internals = InternalsBody {
        timers: timers(&app, &order, saga.as_ref()).await?,
        saga,
        owed: owed(&observed),
        events: observed.iter().map(explained).collect(),
        truncated,
    };
    let summary = if call.is_staff() {
        format!("{} {}", standing(&order), owing(&order, &internals))
    } else {
        format!("{} {}", standing(&order), for_parties(&order, &internals))
    };
    Ok(Answer::ok(ExplanationBody {
        order_id: order.order_id,
        order_number: order.order_number.clone(),
        status: order.status,
        summary,
        payment_status: order.payment.status,
        internals: call.is_staff().then_some(internals),
    }))
}

async fn saga(app: &App, order: Uuid) -> Result<Option<ExplainedSagaBody>, ApiError> {
    let saga_id = SagaInstance::<OrderSaga>::id_of(order);
    let view = move |saga: &SagaInstance<OrderSaga>| {
        let definition = saga.state.placed.as_ref().map(|placed| placed.definition.as_str());
        ExplainedSagaBody {
            saga_id,
            definition: definition.map(str::to_owned),
            state: saga.state_name(),
            step: saga.current().map(|step| step.name.to_owned()),
            attempt: saga.attempt,
            failed_step: saga.failure.as_ref().map(|failure| failure.step.clone()),
            failure: saga.failure.as_ref().map(|failure| failure.reason.clone()),
            interventions: saga.interventions.iter().map(InterventionBody::from).collect(),
        }
    };
    let done = app.runtime().saga::<OrderSaga>().read(saga_id, view).await?;
    Ok((done.version > 0).then_some(done.value))
}

async fn timers(
    app: &App,
    order: &OrderBody,
    saga: Option<&ExplainedSagaBody>,
) -> Result<Vec<TimerBody>, ApiError> {
    let mut known = Vec::new();
    if let Some((saga, step)) = saga.and_then(|saga| Some((saga, saga.step.as_deref()?))) {
        let what = format!("the saga gives its step {step} no more time");
        known.push((OrderSaga::NAME, saga.saga_id, STEP_TIMER.to_owned(), what));
    }
    let listings: BTreeSet<_> = order.items.iter().map(|item| ListingId(item.listing_id)).collect();
    for listing in listings {
        let what = "the listing takes back the stock that it holds".to_owned();
        known.push(("listing", listing.uuid(), hold_timer(OrderId(order.order_id)), what));
    }
    let what = "the payment's provider is asked how it stands".to_owned();
    known.push(("payment", order.payment.payment_id, INQUIRY_TIMER.to_owned(), what));
    let mut timers = Vec::new();
    for (aggregate_type, aggregate_id, name, what) in known {
        let due = app.runtime().journal().timer(aggregate_type, aggregate_id, &name).await?;
        timers.extend(due.map(|due| TimerBody {
            aggregate_type: aggregate_type.to_owned(),
            aggregate_id,
            due_at: due.to_string(),
            what,
        }));
    }
    timers.sort_by(|a, b| a.due_at.cmp(&b.due_at));
    Ok(timers)
}

/// What happened to the order and to all that is only there for it, and everything that this led to,
/// in order; and whether there is more. A client may use a correlation id for other things too:
/// those are left out.
async fn events(app: &App, order: &OrderBody) -> Result<(Vec<Arc<StoredEvent>>, bool), ApiError> {
    let id = OrderId(order.order_id);
    let own = [
        order.order_id,
        SagaInstance::<OrderSaga>::id_of(order.order_id),
        order.payment.payment_id,
        EscrowId::of(id).uuid(),
        ShipmentId::of(id).uuid(),
    ];
    let (mut all, mut truncated) = (BTreeMap::new(), false);
    for stream in own {
        let events = app.runtime().journal().read_aggregate(stream, 0, STREAM_MAX + 1).await?;
        truncated |= events.len() > STREAM_MAX;
        all.extend(events.into_iter().take(STREAM_MAX).map(|event| (event.event_id, event)));
    }
    let mut kept: BTreeSet<Uuid> = all.keys().copied().collect();
    let correlations: BTreeSet<_> =
        all.values().map(|event| event.correlation_id.clone()).collect();
    truncated |= correlations.len() > CORRELATIONS_MAX;
    for correlation in correlations.iter().take(CORRELATIONS_MAX) {
        let (events, more) = traces::correlated(app, correlation).await?;
        truncated |= more;
        all.extend(events.into_iter().map(|event| (event.event_id, event)));
    }
    let mut events: Vec<_> = all.into_values().collect();
    graph::grow(&events, &mut kept);
    events.retain(|event| kept.contains(&event.event_id));
    events.sort_by_key(|event| (event.timestamp, event.at()));
    Ok((events, truncated))
}

/// Who is to be mentioned: every handler, and what keeps rows while it owes something.
fn mentioned(delivery: &&Delivery) -> bool {
    !delivery.is_projection || delivery.state != "acked"
}

fn explained(of: &Observed) -> ExplainedEventBody {
    let event = &of.event;
    let handlers = of.deliveries.iter().filter(mentioned).map(|delivery| HandlerBody {
        subscription: delivery.subscription.to_owned(),
        state: delivery.state,
        attempts: (delivery.attempts > 0).then_some(delivery.attempts),
    });
    ExplainedEventBody {
        event_id: event.event_id,
        event_ref: event_json::reference(event),
        event_type: event.event_type.to_string(),
        aggregate_type: event.aggregate_type.to_string(),
        aggregate_id: event.aggregate_id,
        timestamp: event.timestamp.to_string(),
        causation_id: event.causation_id.to_string(),
        handlers: handlers.collect(),
    }
}

fn owed(observed: &[Observed]) -> Vec<OwedBody> {
    let urgency = |owed: &OwedBody| {
        ["dead", "retrying", "waiting", "pending"].iter().position(|state| *state == owed.state)
    };
    let all = observed.iter().flat_map(|of| of.deliveries.iter().map(move |to| (&of.event, to)));
    let mut owed: Vec<_> = all
        .filter(|(_, delivery)| delivery.state != "acked")
        .map(|(event, delivery)| owed_by(event, delivery))
        .collect();
    // Stable: within a state in the order of the events.
    owed.sort_by_key(urgency);
    owed
}

fn owed_by(event: &StoredEvent, delivery: &Delivery) -> OwedBody {
    let letter = || {
        let (name, partition, key) = (delivery.subscription, delivery.partition, delivery.key);
        let path = format!("/api/v1/dlq/{name}/{partition}/{key}");
        let (retry, discard) = (format!("{path}/retry"), format!("{path}/discard"));
        LetterPathsBody { partition, key, retry, discard }
    };
    OwedBody {
        subscription: delivery.subscription.to_owned(),
        is_projection: delivery.is_projection,
        state: delivery.state,
        event_id: event.event_id,
        event_type: event.event_type.to_string(),
        attempt: delivery.attempts,
        attempts_max: delivery.attempts_max,
        error: delivery.last_error.clone(),
        class: delivery.class.clone(),
        last_failed_at: delivery.last_failed_at.map(|at| at.to_string()),
        next_attempt_at: delivery.next_attempt_at.map(|at| at.to_string()),
        held: delivery.held,
        letter: matches!(delivery.state, "dead" | "waiting").then(letter),
    }
}

/// How the order stands, in words.
fn standing(order: &OrderBody) -> String {
    let words = match order.status {
        OrderStatus::Pending => "it was placed, and its stock is not all reserved yet",
        OrderStatus::Confirmed => "its stock is reserved, and the money has not come yet",
        OrderStatus::Paid => "the money is in escrow, and it is to be shipped",
        OrderStatus::Shipped => "a shipment was made, and it has not arrived yet",
        OrderStatus::Delivered => "it arrived, and the seller does not have the money yet",
        OrderStatus::Completed => "it arrived, and the seller has the money",
        OrderStatus::ReturnRequested => "the buyer wants to send something back",
        OrderStatus::Returned => "everything came back, and so did the money",
        OrderStatus::Refunded => "all of the money went back without the goods",
        OrderStatus::Rejected => "something in it could not be reserved",
        OrderStatus::PaymentFailed => "the money did not come",
        OrderStatus::Cancelled => "it was called off",
        OrderStatus::Failed => "something went wrong, and what was done is undone",
    };
    let status = serde_json::to_value(order.status).unwrap_or_default();
    let status = status.as_str().unwrap_or_default();
    let why = order.failure.as_ref().map(|failure| format!(" ({})", failure.reason));
    format!("Order {} is {status}: {words}{}.", order.order_number, why.unwrap_or_default())
}

/// What is owed, by whom, and when it is tried again.
fn owing(order: &OrderBody, internals: &InternalsBody) -> String {
    let mut said = Vec::new();
    // A row that is about to be written is nothing to talk of.
    let worth =
        |owed: &&OwedBody| owed.state != "pending" || owed.held.is_some() || !owed.is_projection;
    let mut all = internals.owed.iter().filter(worth);
    if let Some(first) = all.next() {
        said.push(owes(first));
        match all.count() {
            0 => {}
            1 => said.push("One more delivery is owed.".to_owned()),
            more => said.push(format!("{more} more deliveries are owed.")),
        }
    }
    if let Some(saga) = &internals.saga {
        match (&saga.step, &saga.failed_step) {
            (Some(step), None) => said.push(format!("Its saga is at the step {step}.")),
            (Some(step), Some(failed)) => {
                said.push(format!("Its saga undoes the step {step}, because {failed} failed."));
            }
            (None, _) => {}
        }
    }
    said.extend(to_be_paid(order));
    if let Some(next) = internals.timers.first() {
        said.push(format!("At {} {}.", next.due_at, next.what));
    }
    if said.is_empty() {
        said.push("Nothing is owed.".to_owned());
    }
    said.join(" ")
}

/// One thing that is owed, as a sentence.
fn owes(owed: &OwedBody) -> String {
    let OwedBody { subscription, event_type, attempt, attempts_max, .. } = owed;
    let error = owed.error.as_deref().unwrap_or("no error is recorded");
    let held = match owed.held {
        Some("paused") => " It is paused.",
        Some("circuit_open") => " It waits until what it needs is back.",
        Some(_) => " It waits at an event that cannot be read.",
        None => "",
    };
    match owed.state {
        "dead" => {
            let tries = if *attempt == 1 { "attempt" } else { "attempts" };
            format!(
                "{subscription} gave {event_type} up after {attempt} {tries} ({error}): that is a \
                 dead letter, and nothing behind it goes on until somebody retries or discards it."
            )
        }
        "retrying" => {
            let next = owed.next_attempt_at.as_deref();
            let next = next.map_or("when its circuit lets it".to_owned(), |at| format!("at {at}"));
            format!(
                "{subscription} failed attempt {attempt} of {attempts_max} at {event_type} \
                 ({error}) and tries again {next}.{held}"
            )
        }
        "waiting" => {
            format!("{subscription} has {event_type} waiting behind a dead letter of its key.")
        }
        _ => format!("{subscription} has {event_type} still to handle.{held}"),
    }
}

fn to_be_paid(order: &OrderBody) -> Option<String> {
    let waits = order.payment.instructions.is_some()
        && matches!(order.status, OrderStatus::Pending | OrderStatus::Confirmed);
    waits.then(|| "The buyer has been told how to pay, and has still to do so.".to_owned())
}

/// The same for buyer and seller, who cannot do anything about how it works inside.
fn for_parties(order: &OrderBody, internals: &InternalsBody) -> String {
    if internals.owed.iter().any(|owed| has_failed(owed.state)) {
        return "Something about it did not work at once; it is being taken care of.".to_owned();
    }
    to_be_paid(order).unwrap_or_else(|| match order.status {
        OrderStatus::Pending | OrderStatus::Confirmed | OrderStatus::Paid => {
            "It goes on by itself.".to_owned()
        }
        OrderStatus::Shipped => "The seller dispatches it.".to_owned(),
        OrderStatus::Delivered => "The seller will get the money.".to_owned(),
        _ => "There is nothing more to do.".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(state: &'static str) -> OwedBody {
        OwedBody {
            subscription: "order_saga-facts".to_owned(),
            is_projection: false,
            state,
            event_id: Uuid::nil(),
            event_type: "shipment.created".to_owned(),
            attempt: 2,
            attempts_max: 11,
            error: Some("the network is away".to_owned()),
            class: Some("transient".to_owned()),
            last_failed_at: None,
            next_attempt_at: Some("2026-11-20T10:30:00.000Z".to_owned()),
            held: None,
            letter: None,
        }
    }

    #[test]
    fn a_sentence_says_who_owes_what_and_when_it_is_tried_again() {
        assert_eq!(
            owes(&owed("retrying")),
            "order_saga-facts failed attempt 2 of 11 at shipment.created (the network is away) and \
             tries again at 2026-11-20T10:30:00.000Z."
        );
        assert!(owes(&owed("dead")).contains("gave shipment.created up after 2 attempts"));
        assert!(owes(&owed("waiting")).contains("behind a dead letter"));
        let paused = OwedBody { held: Some("paused"), ..owed("pending") };
        assert!(owes(&paused).ends_with("still to handle. It is paused."));
        let probing =
            OwedBody { held: Some("circuit_open"), next_attempt_at: None, ..owed("retrying") };
        assert!(owes(&probing).contains("when its circuit lets it. It waits until"));
    }
}
