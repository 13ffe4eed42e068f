use souk_actors::event::EventPayload as _;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{assert_folds, at, run};

fn endpoint() -> WebhookEndpointId {
    WebhookEndpointId(Uuid::from_u128(1))
}

fn message_of(version: u64, event_type: &str) -> Message {
    let event_id = Uuid::from_u128(100 + u128::from(version));
    Message {
        delivery_id: delivery_id(endpoint(), event_id),
        endpoint_id: endpoint(),
        event_id,
        event_type: event_type.to_owned(),
        aggregate_id: Uuid::from_u128(7),
        aggregate_version: version,
        partition: 0,
        position: version,
    }
}

fn message(version: u64) -> Message {
    message_of(version, "order.placed")
}

fn offer(version: u64) -> WebhookDeliveryCommand {
    WebhookDeliveryCommand::Offer { message: message(version), now: at(0) }
}

fn record(message: Message, error: Option<&str>) -> WebhookDeliveryCommand {
    let attempted = Attempted {
        status_code: Some(if error.is_some() { 503 } else { 200 }),
        latency_ms: 1,
        error: error.map(str::to_owned),
        next_attempt_at: at(50),
    };
    WebhookDeliveryCommand::Record { message, attempted, now: at(1) }
}

fn start(seconds: u64) -> WebhookDeliveryCommand {
    WebhookDeliveryCommand::Start { now: at(seconds) }
}

fn again(version: u64) -> WebhookDeliveryCommand {
    WebhookDeliveryCommand::Redeliver { message: message(version), now: at(2) }
}

#[track_caller]
fn lane(delivery: &WebhookDelivery) -> &Lane {
    delivery.lane.as_ref().unwrap()
}

#[test]
fn a_message_waits_for_those_before_it() {
    Scenario::<WebhookDelivery>::new()
        .when(offer(3))
        .and_state(|delivery| {
            assert!(lane(delivery).running);
            assert_eq!((lane(delivery).done, lane(delivery).until), (2, 3));
        })
        .then_types(&["webhook.delivery.queued"])
        .when(offer(3))
        .then([])
        .when(offer(5))
        .then_types(&["webhook.delivery.queued"])
        .when(record(message(3), Some("status_503")))
        .and_state(|delivery| {
            assert!(!lane(delivery).running);
            assert_eq!((lane(delivery).done, lane(delivery).due), (2, Some(at(50))));
        })
        .then_types(&["webhook.delivery.failed"])
        .when(offer(6))
        .and_state(|delivery| assert_eq!(lane(delivery).due, Some(at(50)), "not before its time"))
        .then_types(&["webhook.delivery.queued"])
        .when(start(49))
        .then([])
        .when(start(50))
        .then_types(&["webhook.delivery.started"])
        .when(record(message(3), None))
        .and_state(|delivery| {
            assert!(lane(delivery).running, "there is more");
            assert_eq!((lane(delivery).done, lane(delivery).failed), (3, 0));
        })
        .then_types(&["webhook.delivery.succeeded"])
        .when(record(message(5), None))
        .then_types(&["webhook.delivery.succeeded"])
        .when(record(message(6), None))
        .and_state(|delivery| assert_eq!((lane(delivery).done, lane(delivery).due), (6, None)))
        .then_types(&["webhook.delivery.succeeded"]);
}

#[test]
fn after_the_last_attempt_a_message_is_given_up_and_the_next_follows() {
    let mut commands = vec![offer(1), offer(2)];
    for _ in 1..SCHEDULE.len() {
        commands.extend([record(message(1), Some("timeout")), start(50)]);
    }
    commands.push(record(message(1), Some("timeout")));
    let (state, history) = run::<WebhookDelivery>(&commands);
    let types: Vec<_> = history.iter().map(|event| event.descriptor().event_type).collect();
    let failed = types.iter().filter(|name| **name == "webhook.delivery.failed").count();
    assert_eq!((failed, types.last()), (9, Some(&"webhook.delivery.exhausted")));
    assert_eq!((lane(&state).done, lane(&state).running, lane(&state).failed), (1, true, 0));
    assert_folds(&state, &history);
}

#[test]
fn the_schedule_is_that_of_the_specification() {
    let waits: Vec<_> = (1..=10).map(|failed| wait_after(failed).map(|of| of.as_secs())).collect();
    let hours = |number: u64| Some(number * 3_600);
    assert_eq!(waits[..3], [Some(5), Some(300), Some(1_800)]);
    assert_eq!(waits[3..9], [hours(2), hours(5), hours(10), hours(14), hours(20), hours(24)]);
    assert_eq!(waits[9], None);
}

#[test]
fn whoever_is_at_work_and_silent_is_replaced() {
    Scenario::<WebhookDelivery>::new()
        .when(offer(1))
        .then_types(&["webhook.delivery.queued"])
        .when(start(LEASE.as_secs() - 1))
        .then([])
        .when(start(LEASE.as_secs()))
        .then_types(&["webhook.delivery.started"]);
}

#[test]
fn a_ping_is_tried_once() {
    let ping = message_of(1, "webhook.endpoint_pinged");
    Scenario::<WebhookDelivery>::new()
        .when(WebhookDeliveryCommand::Offer { message: ping.clone(), now: at(0) })
        .then_types(&["webhook.delivery.queued"])
        .when(record(ping, Some("timeout")))
        .then_types(&["webhook.delivery.exhausted"]);
}

#[test]
fn what_was_sent_is_sent_again_before_all_others_and_nothing_is_forgotten() {
    Scenario::<WebhookDelivery>::new()
        .when(again(4))
        .and_state(|delivery| assert_eq!(lane(delivery).again.first(), Some(&4)))
        .then_types(&["webhook.redelivery.requested"])
        .when(offer(5))
        .then_types(&["webhook.delivery.queued"])
        .when(record(message(4), None))
        .and_state(|delivery| {
            assert!(lane(delivery).again.is_empty() && lane(delivery).running);
            assert_eq!((lane(delivery).done, lane(delivery).until), (4, 5));
        })
        .then_types(&["webhook.delivery.succeeded"])
        .when(record(message(5), Some("timeout")))
        .then_types(&["webhook.delivery.failed"])
        .when(again(5))
        .and_state(|delivery| {
            assert!(lane(delivery).again.is_empty(), "it is owed anyway");
            assert!(lane(delivery).running && lane(delivery).failed == 0);
        })
        .then_types(&["webhook.redelivery.requested"]);
    let (state, _) = run::<WebhookDelivery>(&[again(1), offer(400)]);
    assert_eq!((lane(&state).done, lane(&state).until), (1, 400));
    let mut commands = vec![offer(400), record(message(400), None)];
    commands.extend((1..=300).map(again));
    let (state, _) = run::<WebhookDelivery>(&commands);
    assert_eq!(lane(&state).again.len(), REDELIVERIES_MAX);
    assert_eq!(state.decide(&again(399)), Err(WebhookDeliveryRejection::TooMany));
}

#[test]
fn what_is_put_off_or_not_wanted_is_not_sent_now() {
    let now = at(1);
    let defer = WebhookDeliveryCommand::Defer { reason: "busy".to_owned(), until: at(90), now };
    Scenario::<WebhookDelivery>::new()
        .when(start(1))
        .then_rejected("not_found")
        .when(offer(1))
        .then_types(&["webhook.delivery.queued"])
        .when(defer)
        .and_state(|delivery| assert_eq!(lane(delivery).due, Some(at(90))))
        .then_types(&["webhook.delivery.deferred"])
        .when(WebhookDeliveryCommand::Wake { now })
        .then_types(&["webhook.delivery.started"])
        .when(WebhookDeliveryCommand::Wake { now })
        .then([])
        .when(offer(2))
        .then_types(&["webhook.delivery.queued"])
        .when(WebhookDeliveryCommand::Skip { through: 1, now })
        .and_state(|delivery| assert!(lane(delivery).running))
        .then_types(&["webhook.delivery.skipped"])
        .when(WebhookDeliveryCommand::Abandon { now })
        .and_state(|delivery| assert_eq!((lane(delivery).done, lane(delivery).due), (2, None)))
        .then_types(&["webhook.delivery.skipped"]);
}
