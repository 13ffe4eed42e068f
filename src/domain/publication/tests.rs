use super::*;
use crate::domain::ids::PublicationId;

const NOW: Timestamp = Timestamp::from_millis(1_795_170_600_000);
const SOON: Timestamp = Timestamp::from_millis(1_795_170_900_000);

fn told(id: u128, sequence: Option<u64>) -> Told {
    Told {
        event_id: Uuid::from_u128(id),
        event_type: "partner.stock.counted".into(),
        major: 1,
        minor: 0,
        source: "/erp".to_owned(),
        id: id.to_string(),
        key: "shelf-1".to_owned(),
        time: None,
        sequence,
        correlation_id: None,
        causation_id: None,
        actor_id: None,
        data: format!("{{\"number\":{id}}}"),
    }
}

fn publish(state: &mut Publication, events: &[Told]) -> Vec<PublicationEvent> {
    publish_as(state, OnViolation::Buffer, events)
}

fn publish_as(
    state: &mut Publication,
    on_violation: OnViolation,
    events: &[Told],
) -> Vec<PublicationEvent> {
    let events = events.iter().cloned().map(Arc::new).collect();
    let command = PublicationCommand::Publish { events, on_violation, now: NOW, release_by: SOON };
    take(state, &command)
}

fn standing(state: &Publication, id: u128, sequence: Option<u64>) -> Standing {
    state.standing(Uuid::from_u128(id), sequence, OnViolation::Buffer)
}

fn take(state: &mut Publication, command: &PublicationCommand) -> Vec<PublicationEvent> {
    let events = state.decide(command).unwrap();
    events.iter().for_each(|event| state.apply(event));
    events
}

/// The numbers that came to pass, in their order.
fn passed(events: &[PublicationEvent]) -> Vec<u64> {
    events.iter().filter_map(PublicationEvent::told).filter_map(|told| told.sequence).collect()
}

fn staff() -> Caller {
    Caller::System
}

#[test]
fn what_has_no_number_comes_to_pass_at_once_and_once() {
    let mut state = Publication::default();
    let events = publish(&mut state, &[told(1, None), told(2, None), told(1, None)]);
    assert_eq!(events.len(), 2);
    assert!(publish(&mut state, &[told(2, None)]).is_empty());
    assert_eq!(standing(&state, 2, None), Standing::Stored(2));
}

#[test]
fn three_two_one_comes_to_pass_as_one_two_three() {
    let mut state = Publication::default();
    assert!(passed(&publish(&mut state, &[told(3, Some(3))])).is_empty());
    assert_eq!(standing(&state, 3, Some(3)), Standing::Buffered { missing: 1 });
    assert!(passed(&publish(&mut state, &[told(2, Some(2))])).is_empty());
    let events = publish(&mut state, &[told(1, Some(1))]);
    assert_eq!(passed(&events), [1, 2, 3]);
    let Some(PublicationEvent::Fact(PublicationFact::Resumed(resumed))) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!((resumed.released, resumed.left, resumed.next), (2, 0, 4));
    assert!(state.held.is_empty() && state.held_bytes == 0);
    // One command with all of them does the same.
    let mut state = Publication::default();
    let all = [told(3, Some(3)), told(2, Some(2)), told(1, Some(1))];
    assert_eq!(passed(&publish(&mut state, &all)), [1, 2, 3]);
}

#[test]
fn only_what_has_its_turn_is_let_go() {
    let mut state = Publication::default();
    publish(&mut state, &[told(2, Some(2)), told(4, Some(4))]);
    assert_eq!(passed(&publish(&mut state, &[told(1, Some(1))])), [1, 2]);
    assert_eq!((state.last, state.held.len()), (2, 1));
    assert_eq!(passed(&publish(&mut state, &[told(3, Some(3))])), [3, 4]);
}

#[test]
fn a_number_is_one_events() {
    let mut state = Publication::default();
    publish(&mut state, &[told(1, Some(1)), told(3, Some(3))]);
    assert!(publish(&mut state, &[told(9, Some(3)), told(8, Some(1))]).is_empty());
    assert_eq!(standing(&state, 9, Some(3)), Standing::SequenceTaken);
    assert_eq!(standing(&state, 8, Some(1)), Standing::SequencePassed);
}

#[test]
fn what_is_held_back_comes_to_pass_once_whatever_is_told_meanwhile() {
    let mut state = Publication::default();
    publish(&mut state, &[told(3, Some(3)), told(4, Some(4))]);
    assert!(publish(&mut state, &[told(3, None), told(3, Some(5))]).is_empty());
    assert_eq!(standing(&state, 3, None), Standing::Buffered { missing: 1 });
    let forget = PublicationCommand::Forget { event_ids: vec![Uuid::from_u128(4)], now: NOW };
    assert_eq!(take(&mut state, &forget).len(), 1);
    assert_eq!((state.held.len(), state.last), (1, 0));
    assert_eq!(passed(&publish(&mut state, &[told(1, Some(1)), told(2, Some(2))])), [1, 2, 3]);
}

#[test]
fn what_is_held_back_is_bounded_in_number_and_in_bytes() {
    let mut state = Publication::default();
    let many: Vec<_> = (2..2 + HELD_MAX as u64 + 5).map(|n| told(n.into(), Some(n))).collect();
    publish(&mut state, &many);
    assert_eq!(state.held.len(), HELD_MAX);
    let last = many.last().unwrap();
    assert_eq!(
        state.standing(last.event_id, last.sequence, OnViolation::Buffer),
        Standing::BufferFull
    );
    assert_eq!(passed(&publish(&mut state, &[told(1, Some(1))])).len(), HELD_MAX + 1);

    let mut state = Publication::default();
    let large = Told { data: "x".repeat(HELD_BYTES_MAX / 2), ..told(2, Some(2)) };
    let larger = Told { data: "x".repeat(HELD_BYTES_MAX / 2 + 1), ..told(3, Some(3)) };
    publish(&mut state, &[large, larger]);
    assert_eq!(state.held.len(), 1);
}

#[test]
fn after_its_time_all_of_a_key_expires_and_an_administrator_decides() {
    let mut state = Publication::default();
    let events = publish(&mut state, &[told(3, Some(3)), told(5, Some(5))]);
    let set = TimerChange::Set { name: GAP.to_owned(), at: SOON };
    assert_eq!(state.timers(&events[0]), [set]);
    assert!(take(&mut state, &PublicationCommand::Expire { now: NOW }).is_empty(), "too early");
    let due = state.on_timer(GAP, SOON).unwrap();
    let expired = take(&mut state, &due);
    assert_eq!(expired.len(), 2);
    assert_eq!(state.timers(&expired[1]), [TimerChange::Clear { name: GAP.to_owned() }]);
    assert!(take(&mut state, &PublicationCommand::Expire { now: SOON }).is_empty(), "once");
    let nobody = PublicationCommand::Release { caller: Caller::Anonymous, reason: None, now: SOON };
    assert_eq!(state.decide(&nobody), Err(PublicationRejection::Forbidden));

    let mut given_up = state.clone();
    let discard = PublicationCommand::Discard { caller: staff(), reason: None, now: SOON };
    assert_eq!(take(&mut given_up, &discard).len(), 1);
    assert_eq!((given_up.last, given_up.held.len()), (5, 0));
    assert_eq!(given_up.decide(&discard), Err(PublicationRejection::NothingHeld));

    let release = PublicationCommand::Release { caller: staff(), reason: None, now: SOON };
    assert_eq!(passed(&take(&mut state, &release)), [3, 5]);
    assert_eq!(passed(&publish(&mut state, &[told(6, Some(6))])), [6]);
}

#[test]
fn what_was_missing_still_closes_the_gap_after_the_time() {
    let mut state = Publication::default();
    publish(&mut state, &[told(2, Some(2))]);
    take(&mut state, &PublicationCommand::Expire { now: SOON });
    assert_eq!(passed(&publish(&mut state, &[told(1, Some(1))])), [1, 2]);
    assert!(state.held.is_empty());
}

#[test]
fn a_source_may_want_what_is_ahead_refused() {
    let mut state = Publication::default();
    let batch = [told(3, Some(3)), told(1, Some(1)), told(4, Some(4))];
    assert_eq!(passed(&publish_as(&mut state, OnViolation::Reject, &batch)), [1]);
    assert!(state.held.is_empty());
    let standing = state.standing(Uuid::from_u128(3), Some(3), OnViolation::Reject);
    assert_eq!(standing, Standing::SequenceGap { missing: 2 });
    let next = [told(2, Some(2)), told(3, Some(3))];
    assert_eq!(passed(&publish_as(&mut state, OnViolation::Reject, &next)), [2, 3]);
}

#[test]
fn a_source_may_want_the_latest_accepted() {
    let mut state = Publication::default();
    let batch = [told(3, Some(3)), told(1, Some(1)), told(4, Some(4)), told(9, Some(9))];
    assert_eq!(passed(&publish_as(&mut state, OnViolation::AcceptLatest, &batch)), [3, 4, 9]);
    assert_eq!((state.last, state.held.len()), (9, 0));
    let late = state.standing(Uuid::from_u128(1), Some(1), OnViolation::AcceptLatest);
    assert_eq!(late, Standing::SequencePassed);
}

#[test]
fn what_was_held_back_goes_before_the_latest_and_what_follows_it_after() {
    let mut state = Publication::default();
    let held = [told(3, Some(3)), told(5, Some(5)), told(8, Some(8))];
    assert!(passed(&publish(&mut state, &held)).is_empty());
    let same = publish_as(&mut state, OnViolation::AcceptLatest, &[told(55, Some(5))]);
    assert!(same.is_empty(), "its number is another event's");
    let events = publish_as(&mut state, OnViolation::AcceptLatest, &[told(7, Some(7))]);
    assert_eq!(passed(&events), [3, 5, 7, 8]);
    let Some(PublicationEvent::Fact(PublicationFact::Resumed(resumed))) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!((resumed.released, resumed.left, resumed.next, resumed.forced), (3, 0, 9, true));
    assert!(state.held.is_empty() && state.held_bytes == 0);
}

#[test]
fn a_snapshot_holds_everything_but_what_was_decided_lately() {
    let mut state = Publication::default();
    publish(&mut state, &[told(1, Some(1)), told(3, Some(3))]);
    let mut back: Publication = crate::domain::testing::snapshot(&state);
    assert_eq!((back.last, &back.held, back.version), (1, &state.held, 2));
    assert_eq!(passed(&publish(&mut back, &[told(2, Some(2))])), [2, 3]);
}

#[test]
fn a_stored_event_is_read_back_with_what_was_said_of_it() {
    use souk_actors::event::{EventPayload, Metadata};
    let mut told = told(7, Some(7));
    told.time = Some("2026-11-20T10:30:00Z".to_owned());
    let event = PublicationEvent::Published(Arc::new(told.clone()));
    let given = event.given();
    let mut stored = souk_actors::testing::stored_event(
        "partner.stock.counted",
        "publication",
        PublicationId::of("/erp", "shelf-1").uuid(),
        &serde_json::json!({ "number": 7 }),
    );
    stored.event_id = given.event_id.unwrap();
    let metadata = Metadata {
        service: "gateway-service".to_owned(),
        version: "1".to_owned(),
        actor_id: "service_token-1".to_owned(),
        credential: None,
        tenant_id: "default".to_owned(),
        traceparent: None,
        tracestate: None,
        subscription: None,
        attributes: given.attributes.clone(),
    };
    stored.metadata = serde_json::to_string(&metadata).unwrap().into();
    let read = PublicationEvent::decode_stored(&stored, &event.encode()).unwrap();
    told.correlation_id = Some(stored.correlation_id.to_string());
    told.causation_id = Some(stored.causation_id.to_string());
    told.actor_id = Some("service_token-1".to_owned());
    assert_eq!(read.told(), Some(&told));
    stored.metadata = "{}".into();
    assert!(PublicationEvent::decode_stored(&stored, "{}").is_err());
}
