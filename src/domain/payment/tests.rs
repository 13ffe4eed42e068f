use proptest::prelude::*;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{BUYER, assert_folds, at, dong, order, run, user};

fn id() -> PaymentId {
    PaymentId::of(order(1))
}

fn initiate() -> PaymentCommand {
    PaymentCommand::Initiate {
        payment_id: id(),
        order_id: order(1),
        payer_id: user(BUYER),
        money: dong(1_500),
        method: PaymentMethod::new(PaymentMethod::MOMO),
        reference: "PAY-1".into(),
        holds_first: Some(true),
        now: at(0),
    }
}

fn capture_of(reference: &str, money: Money) -> PaymentCommand {
    let provider_reference = reference.to_owned();
    PaymentCommand::Settle { outcome: Outcome::Captured { provider_reference, money }, now: at(1) }
}

fn capture() -> PaymentCommand {
    capture_of("momo-1", dong(1_500))
}

fn decline() -> PaymentCommand {
    decline_of(None)
}

fn decline_of(reference: Option<&str>) -> PaymentCommand {
    let (reason, provider_reference) = ("no_funds".to_owned(), reference.map(str::to_owned));
    PaymentCommand::Settle { outcome: Outcome::Declined { reason, provider_reference }, now: at(1) }
}

fn unknown() -> PaymentCommand {
    PaymentCommand::Settle { outcome: Outcome::Unknown, now: at(1) }
}

fn cancel() -> PaymentCommand {
    let reason = "order_cancelled".to_owned();
    PaymentCommand::Cancel { payment_id: id(), order_id: order(1), reason, now: at(2) }
}

fn voided() -> PaymentCommand {
    PaymentCommand::RecordVoided { still_open: false, now: at(3) }
}

fn still_open() -> PaymentCommand {
    PaymentCommand::RecordVoided { still_open: true, now: at(3) }
}

fn inquire(seconds: u64) -> PaymentCommand {
    PaymentCommand::Inquire { now: at(seconds) }
}

fn refund_failed(next_attempt_at: Option<u64>) -> PaymentCommand {
    PaymentCommand::RecordRefundFailed {
        refund_id: RefundId::of(id()),
        reason: "refund_failed".into(),
        next_attempt_at: next_attempt_at.map(at),
        now: at(3),
    }
}

fn refunded() -> PaymentCommand {
    refunded_as(RefundId::of(id()))
}

fn refunded_as(refund_id: RefundId) -> PaymentCommand {
    PaymentCommand::RecordRefunded { refund_id, provider_reference: "momo-r1".into(), now: at(3) }
}

fn part(number: u128) -> RefundId {
    RefundId(Uuid::from_u128(1_000 + number))
}

fn refund_part(number: u128, amount: i64) -> PaymentCommand {
    let reason = "returned".to_owned();
    PaymentCommand::Refund { refund_id: part(number), amount, reason, now: at(4) }
}

fn instruct(text: &str) -> PaymentCommand {
    let instructions = Instructions { url: None, text: Some(text.into()) };
    PaymentCommand::RecordInstructions { instructions, now: at(1) }
}

fn after(commands: &[PaymentCommand]) -> Scenario<Payment> {
    Scenario::given(run::<Payment>(commands).1)
}

fn status(payment: &Payment) -> PaymentStatus {
    payment.details.as_ref().unwrap().status
}

#[test]
fn a_payment_is_captured_once() {
    Scenario::<Payment>::new()
        .when(initiate())
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Initiated))
        .then_types(&["payment.initiated"])
        .when(initiate())
        .then([])
        .when(capture())
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Captured))
        .then_types(&["payment.captured"])
        .when(capture())
        .then([])
        .when(decline())
        .then([])
        .when(unknown())
        .then([])
        .when(initiate())
        .then([])
        .when(voided())
        .then([])
        .when(refunded())
        .then_rejected("invalid_transition");
    assert_eq!(capture().name(), "ProcessPayment");
}

fn authorize_of(money: Money) -> PaymentCommand {
    let provider_reference = "hold-1".to_owned();
    PaymentCommand::Settle {
        outcome: Outcome::Authorized { provider_reference, money },
        now: at(1),
    }
}

fn authorize() -> PaymentCommand {
    authorize_of(dong(1_500))
}

#[test]
fn money_may_be_held_before_it_is_taken() {
    let held = || after(&[initiate(), authorize()]);
    held()
        .when(authorize())
        .and_state(|payment| {
            let details = payment.details.as_ref().unwrap();
            assert_eq!(details.status, PaymentStatus::Authorized);
            assert!(details.is_to_be_captured() && details.provider_reference.is_none());
        })
        .then([])
        .when(unknown())
        .then([])
        .when(instruct("*1#"))
        .then([])
        .when(capture())
        .then_types(&["payment.captured"])
        .when(authorize())
        .then([]);
    held().when(decline()).then_types(&["payment.failed"]);
    after(&[initiate(), unknown()]).when(authorize()).then_types(&["payment.authorized"]);
    for money in [dong(1_499), Money::new(1_500, Currency::Usd)] {
        after(&[initiate()])
            .when(authorize_of(money))
            .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Initiated))
            .then_types(&["payment.rejected"]);
    }
}

#[test]
fn what_is_held_for_an_order_that_is_off_is_let_go() {
    after(&[initiate(), authorize()])
        .when(cancel())
        .and_state(|payment| assert!(!payment.details.as_ref().unwrap().is_to_be_captured()))
        .then_types(&["payment.void_requested"])
        .when(voided())
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Voided))
        .then_types(&["payment.voided"]);
    // It was too late: what was taken goes back.
    after(&[initiate(), authorize(), cancel()])
        .when(capture())
        .then_types(&["payment.captured", "payment.refund_requested"]);
    // The buyer agrees while it is given up, and after.
    after(&[initiate(), cancel()])
        .when(authorize())
        .then([])
        .when(still_open())
        .then_types(&["payment.voided"])
        .when(authorize())
        .then_types(&["payment.inquiry_requested"])
        .when(decline())
        .then_types(&["payment.closed"]);
}

/// The buyer agreed when nobody wanted it any more, and it takes more than one question to let it go.
#[test]
fn what_is_held_for_a_payment_that_is_over_is_asked_after_until_it_is_gone() {
    let closed = [initiate(), cancel(), still_open(), decline()];
    for over in [&[initiate(), decline()][..], &closed, &[initiate(), cancel(), voided()]] {
        let held = [over, &[authorize()]].concat();
        assert_eq!(asked_at(over), None);
        // One minute, or four, after it was begun or given up: it was never asked after before.
        assert_eq!(asked_at(&held), Some(at(241)));
        let (payment, _) = run::<Payment>(&held);
        assert!(payment.on_timer(INQUIRY_TIMER, at(241)).is_some());
        after(&held)
            .when(inquire(241))
            .then_types(&["payment.inquiry_requested"])
            .when(decline())
            .then_types(&["payment.closed"])
            .when(decline())
            .then([])
            .when(inquire(900))
            .then([]);
        assert_eq!(asked_at(&[&held[..], &[inquire(241), decline()]].concat()), None);
        // It was taken before it could be let go: it goes back.
        after(&held)
            .when(capture())
            .then_types(&["payment.captured", "payment.refund_requested"])
            .when(refunded())
            .then_types(&["payment.refunded"])
            .when(inquire(900))
            .then([]);
    }
}

#[test]
fn a_failure_of_money_that_has_come_is_somebodys_to_see_and_changes_nothing() {
    after(&[initiate(), capture()])
        .when(decline_of(Some("momo-0")))
        .then([])
        .when(decline_of(Some("momo-1")))
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Captured))
        .then_types(&["payment.rejected"])
        .when(decline_of(Some("momo-1")))
        .then([]);
    let (payment, _) = run::<Payment>(&[initiate(), capture()]);
    let decided = payment.decide(&decline_of(Some("momo-1"))).unwrap();
    let [PaymentEvent::Rejected(event)] = &decided[..] else { panic!("{decided:?}") };
    assert_eq!(event.reason, Misfit::FailedAfterCapture);
    after(&[initiate(), capture(), cancel(), refunded()])
        .when(decline_of(Some("momo-1")))
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Refunded))
        .then_types(&["payment.rejected"]);
}

/// What was stored before there was a word of it is as the gateway is set up.
#[test]
fn how_the_money_is_taken_is_stored_when_the_payment_begins() {
    let (payment, history) = run::<Payment>(&[initiate()]);
    assert_eq!(payment.details.unwrap().holds_first, Some(true));
    let [PaymentEvent::Initiated(event)] = &history[..] else { panic!("{history:?}") };
    let mut stored = serde_json::to_value(event).unwrap();
    assert_eq!(stored["holds_first"], true);
    stored.as_object_mut().unwrap().remove("holds_first");
    let old: PaymentInitiated = serde_json::from_value(stored.clone()).unwrap();
    assert_eq!(old.holds_first, None);
    assert_eq!(serde_json::to_value(&old).unwrap(), stored);
}

#[test]
fn the_time_of_an_attempt_counts_from_when_it_is_asked_for() {
    let since = |commands: &[PaymentCommand]| {
        let (payment, _) = run::<Payment>(commands);
        payment.details.unwrap().refunds[0].since
    };
    let wanted = [initiate(), capture(), cancel()];
    assert_eq!(since(&wanted), at(2));
    assert_eq!(since(&[&wanted[..], &[refund_failed(Some(3_600))]].concat()), at(3_600));
    assert_eq!(since(&[&wanted[..], &[refund_failed(None)]].concat()), at(3));
}

#[test]
fn nothing_happens_to_a_payment_that_never_was() {
    for command in
        [capture(), authorize(), decline(), unknown(), voided(), refunded(), instruct("*1#")]
    {
        Scenario::<Payment>::new().when(command).then_rejected("not_found");
    }
}

#[test]
fn a_declined_payment_fails() {
    after(&[initiate()])
        .when(decline())
        .and_state(|payment| {
            let details = payment.details.as_ref().unwrap();
            assert_eq!(details.status, PaymentStatus::Failed);
            assert_eq!(details.failure.as_deref(), Some("no_funds"));
        })
        .then_types(&["payment.failed"])
        .when(decline())
        .then([])
        .when(cancel())
        .then([])
        .when(voided())
        .then([]);
}

#[test]
fn an_unknown_outcome_is_recorded_and_settled_later() {
    after(&[initiate()])
        .when(unknown())
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Unknown))
        .then_types(&["payment.timed_out"])
        .when(unknown())
        .then([])
        .when(capture())
        .then_types(&["payment.captured"]);
    after(&[initiate(), unknown()]).when(decline()).then_types(&["payment.failed"]);
}

#[test]
fn money_that_does_not_fit_is_not_taken() {
    let cases = [
        (dong(1_499), Misfit::AmountMismatch),
        (Money::new(1_500, Currency::Usd), Misfit::CurrencyMismatch),
    ];
    for (money, expected) in cases {
        let decided = after(&[initiate()]).when(capture_of("momo-1", money));
        let events = decided.outcome.as_ref().unwrap();
        let [PaymentEvent::Rejected(event)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(event.reason, expected);
        assert_eq!((event.expected_amount, event.amount), (1_500, money.amount));
        decided
            .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Initiated))
            .then_types(&["payment.rejected"])
            .when(capture_of("momo-1", money))
            .then([])
            .when(capture_of("momo-2", dong(1_500)))
            .then_types(&["payment.captured"])
            .when(capture_of("momo-3", dong(1_500)))
            .then_types(&["payment.rejected"])
            .when(capture_of("momo-3", dong(1_500)))
            .then([]);
    }
}

#[test]
fn a_payment_that_is_given_up_first_never_begins() {
    Scenario::<Payment>::new()
        .when(cancel())
        .and_state(|payment| assert!(payment.barred && payment.details.is_none()))
        .then_types(&["payment.voided"])
        .when(cancel())
        .then([])
        .when(initiate())
        .then_rejected("payment_voided")
        .when(capture())
        .then_rejected("not_found");
}

#[test]
fn a_payment_in_flight_is_voided_or_comes_back() {
    for before in [vec![initiate()], vec![initiate(), unknown()]] {
        let asked = || after(&before).when(cancel()).then_types(&["payment.void_requested"]);
        asked().when(cancel()).then([]);
        asked()
            .when(voided())
            .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Voided))
            .then_types(&["payment.voided"])
            .when(voided())
            .then([])
            .when(cancel())
            .then([])
            .when(capture())
            .then_types(&["payment.captured", "payment.refund_requested"]);
        asked().when(decline()).then_types(&["payment.failed"]);
        asked()
            .when(capture())
            .then_types(&["payment.captured", "payment.refund_requested"])
            .when(cancel())
            .then([])
            .when(refunded())
            .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Refunded))
            .then_types(&["payment.refunded"])
            .when(refunded())
            .then([])
            .when(cancel())
            .then([]);
    }
}

#[test]
fn captured_money_goes_back_once_and_in_full() {
    let decided = after(&[initiate(), capture()]).when(cancel());
    let events = decided.outcome.as_ref().unwrap();
    let [PaymentEvent::RefundRequested(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.amount, event.provider_reference.as_str()), (1_500, "momo-1"));
    assert_eq!(event.refund_id, RefundId::of(id()));
    decided.then_types(&["payment.refund_requested"]).when(cancel()).then([]);
}

#[test]
fn money_that_comes_after_a_failure_goes_back_at_once() {
    after(&[initiate(), decline()])
        .when(capture())
        .then_types(&["payment.captured", "payment.refund_requested"]);
}

#[test]
fn instructions_are_told_once_and_while_they_matter() {
    after(&[initiate()])
        .when(instruct("*1#"))
        .then_types(&["payment.instructed"])
        .when(instruct("*1#"))
        .then([])
        .when(instruct("*2#"))
        .then_types(&["payment.instructed"]);
    after(&[initiate(), capture()]).when(instruct("*1#")).then([]);
}

/// When a payment is asked after next, once these commands are through; none: never.
fn asked_at(commands: &[PaymentCommand]) -> Option<Timestamp> {
    let (mut state, mut due) = (Payment::default(), None);
    for command in commands {
        for event in state.decide(command).unwrap_or_default() {
            state.apply(&event);
            for change in state.timers(&event) {
                due = match change {
                    TimerChange::Set { name, at } if name == INQUIRY_TIMER => Some(at),
                    TimerChange::Clear { name } if name == INQUIRY_TIMER => None,
                    other => panic!("{other:?}"),
                };
            }
        }
    }
    due
}

#[test]
fn what_is_open_is_asked_after_and_nothing_else_is() {
    let minutes = |minutes: u64| Some(at(minutes * 60));
    let mut commands = vec![initiate()];
    for (asked, expected) in [(1, 5), (5, 15), (15, 30), (30, 90), (90, 150), (150, 210)] {
        commands.push(inquire(asked * 60));
        assert_eq!(asked_at(&commands), minutes(expected), "asked {asked} minutes after");
    }
    assert_eq!(asked_at(&[initiate()]), minutes(1));
    assert_eq!(asked_at(&[initiate(), unknown()]), minutes(1));
    for over in [capture(), decline()] {
        assert_eq!(asked_at(&[initiate(), over]), None);
    }
    assert_eq!(asked_at(&[initiate(), cancel(), voided()]), None);
    let watched = [initiate(), cancel(), still_open()];
    assert_eq!(asked_at(&watched), Some(at(62)));
    assert_eq!(asked_at(&[&watched[..], &[decline()]].concat()), None);
    // Money that is wanted back is asked after from then on.
    let back = [&watched[..], &[capture()]].concat();
    assert_eq!(asked_at(&back), Some(at(61)));
    assert_eq!(asked_at(&[&back[..], &[refunded()]].concat()), None);
    assert_eq!(asked_at(&[&back[..], &[refund_failed(Some(3_600))]].concat()), minutes(60));
    assert_eq!(asked_at(&[&back[..], &[refund_failed(None)]].concat()), None);
    assert_eq!(asked_at(&[initiate(), decline(), capture()]), Some(at(61)));
}

/// The built-in provider answers within the call.
#[test]
fn a_payment_of_the_built_in_provider_is_not_asked_after() {
    let PaymentCommand::Initiate { payment_id, order_id, payer_id, money, reference, now, .. } =
        initiate()
    else {
        unreachable!("it is one")
    };
    let method = PaymentMethod::new(PaymentMethod::TEST_PENDING);
    let initiate = PaymentCommand::Initiate {
        payment_id,
        order_id,
        payer_id,
        money,
        method,
        reference,
        holds_first: None,
        now,
    };
    assert_eq!(asked_at(&[initiate, cancel(), voided()]), None);
}

#[test]
fn what_was_given_up_and_can_be_paid_still_is_watched_for_a_day() {
    let watched = || after(&[initiate(), cancel(), still_open()]);
    watched()
        .when(inquire(600))
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Voided))
        .then_types(&["payment.inquiry_requested"])
        .when(decline())
        .then_types(&["payment.closed"])
        .when(decline())
        .then([])
        .when(inquire(700))
        .then([]);
    watched().when(capture()).then_types(&["payment.captured", "payment.refund_requested"]);
    let (payment, _) = run::<Payment>(&[initiate(), cancel(), still_open()]);
    let day = 24 * 60 * 60;
    assert!(payment.on_timer(INQUIRY_TIMER, at(day - 1)).is_some());
    // Until its provider says once more that nothing has come.
    assert!(payment.on_timer(INQUIRY_TIMER, at(9 * day)).is_some());
    let details = payment.details.unwrap();
    assert!(!details.is_past(at(day)) && details.is_past(at(day + 3)));
    let (payment, _) = run::<Payment>(&[initiate(), cancel(), still_open(), decline()]);
    assert!(payment.on_timer(INQUIRY_TIMER, at(day)).is_none());
    // What nobody knows the outcome of is asked after for as long as it takes.
    let (payment, _) = run::<Payment>(&[initiate(), unknown()]);
    assert!(payment.on_timer(INQUIRY_TIMER, at(30 * day)).is_some());
    // Late money after that goes back all the same.
    after(&[initiate(), cancel(), voided()])
        .when(capture())
        .then_types(&["payment.captured", "payment.refund_requested"]);
}

#[test]
fn a_refund_that_came_to_nothing_is_made_under_another_key() {
    let wanted = [initiate(), capture(), cancel()];
    after(&wanted)
        .when(refund_failed(Some(3_600)))
        .and_state(|payment| {
            let details = payment.details.as_ref().unwrap();
            let failed: Vec<_> = details.wanted_back().map(|refund| refund.failed).collect();
            assert_eq!(failed, [1]);
        })
        .then_types(&["payment.refund_failed"])
        .when(inquire(3_600))
        .then_types(&["payment.inquiry_requested"])
        .when(refunded())
        .then_types(&["payment.refunded"])
        .when(refund_failed(None))
        .then([])
        .when(inquire(3_700))
        .then([]);
    after(&[initiate(), capture()]).when(refund_failed(None)).then_rejected("invalid_transition");
    let refund = RefundId::of(id());
    assert_eq!(refund.key(0), refund.uuid());
    assert_ne!(refund.key(1), refund.uuid());
    assert_ne!(refund.key(1), refund.key(2));
}

/// An attempt of which nobody knows may have been made: it is made again under its own key, or by
/// nobody.
#[test]
fn a_refund_that_nobody_knows_of_keeps_its_key() {
    let given_up = PaymentCommand::RecordRefundFailed {
        refund_id: RefundId::of(id()),
        reason: REFUND_UNCLEAR.to_owned(),
        next_attempt_at: None,
        now: at(9),
    };
    after(&[initiate(), capture(), cancel()])
        .when(given_up)
        .and_state(|payment| {
            let details = payment.details.as_ref().unwrap();
            let known: Vec<_> =
                details.wanted_back().map(|refund| (refund.failed, refund.refused)).collect();
            assert_eq!(known, [(0, true)]);
        })
        .then_types(&["payment.refund_failed"]);
}

/// What the gateway has refused waits for somebody, and is not asked for beside the others.
#[test]
fn an_inquiry_names_the_refund_that_it_is_about() {
    let refused = PaymentCommand::RecordRefundFailed {
        refund_id: part(1),
        reason: "not_refundable".to_owned(),
        next_attempt_at: None,
        now: at(9),
    };
    let parts = [refund_part(1, 100), refund_part(2, 100), refund_part(3, 100)];
    let mut commands = vec![initiate(), capture()];
    commands.extend(parts);
    commands.push(refused);
    let (mut payment, _) = run::<Payment>(&commands);
    let mut named = Vec::new();
    for seconds in [600, 700, 800, 900] {
        for event in payment.decide(&inquire(seconds)).unwrap() {
            payment.apply(&event);
            let PaymentEvent::InquiryRequested(inquiry) = event else { panic!("{event:?}") };
            named.push(inquiry.refund_id.unwrap());
        }
    }
    assert_eq!(named, [part(3), part(2), part(3), part(2)]);
}

#[test]
fn parts_go_back_one_by_one_and_never_more_than_came() {
    let captured = [initiate(), capture()];
    let parts = [captured.as_slice(), &[refund_part(1, 500), refunded_as(part(1))]].concat();
    after(&parts)
        .when(refund_part(1, 500))
        .then([])
        .when(refund_part(2, 1_001))
        .then_rejected("refund_too_large")
        .when(refund_part(2, 0))
        .then_rejected("refund_too_large")
        .when(refund_part(2, 1_000))
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Captured))
        .then_types(&["payment.refund_requested"])
        .when(refund_part(3, 1))
        .then_rejected("refund_too_large")
        .when(cancel())
        .then([])
        .when(refunded_as(part(2)))
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Refunded))
        .then_types(&["payment.refunded"])
        .when(refund_part(3, 1))
        .then_rejected("invalid_transition");
    // What is left goes back when all of it is wanted.
    let decided = after(&parts).when(cancel());
    let [PaymentEvent::RefundRequested(rest)] = decided.outcome.as_ref().unwrap().as_slice() else {
        panic!("a refund")
    };
    assert_eq!((rest.amount, rest.refund_id), (1_000, RefundId::of(id())));
    after(&[initiate()]).when(refund_part(1, 1)).then_rejected("invalid_transition");
}

#[test]
fn a_payment_is_asked_after_until_the_last_refund_is_made() {
    let (payment, events) = run::<Payment>(&[
        initiate(),
        capture(),
        refund_part(1, 500),
        refund_part(2, 500),
        refunded_as(part(2)),
    ]);
    assert!(payment.on_timer(INQUIRY_TIMER, at(60)).is_some());
    assert_eq!(payment.timers(events.last().unwrap()), []);
    let (payment, events) =
        run::<Payment>(&[initiate(), capture(), refund_part(1, 500), refunded_as(part(1))]);
    assert!(payment.on_timer(INQUIRY_TIMER, at(60)).is_none());
    assert!(matches!(payment.timers(events.last().unwrap())[..], [TimerChange::Clear { .. }]));
}

#[test]
fn money_under_the_name_of_this_payment_that_it_did_not_ask_for_is_not_taken() {
    let misfit = PaymentCommand::Settle {
        outcome: Outcome::Misfit {
            reason: Misfit::RequestMismatch,
            provider_reference: "momo-9".into(),
            money: dong(1_500),
        },
        now: at(1),
    };
    after(&[initiate()])
        .when(misfit.clone())
        .and_state(|payment| assert_eq!(status(payment), PaymentStatus::Initiated))
        .then_types(&["payment.rejected"])
        .when(misfit)
        .then([]);
}

fn any_command() -> impl Strategy<Value = PaymentCommand> {
    prop_oneof![
        3 => Just(initiate()),
        3 => Just(capture()),
        2 => Just(authorize()),
        1 => Just(capture_of("momo-2", dong(1_500))),
        1 => Just(capture_of("momo-3", dong(7))),
        2 => Just(decline()),
        2 => Just(unknown()),
        3 => Just(cancel()),
        2 => Just(voided()),
        2 => Just(still_open()),
        2 => Just(refunded()),
        1 => Just(refund_failed(Some(9))),
        1 => Just(inquire(7)),
        1 => Just(instruct("*1#")),
        2 => (1u128..4, 1i64..1_000).prop_map(|(number, amount)| refund_part(number, amount)),
        2 => (1u128..4).prop_map(|number| refunded_as(part(number))),
    ]
}

/// How much was wanted back and how much went back.
fn given_back(history: &[PaymentEvent]) -> (i64, i64) {
    history.iter().fold((0, 0), |(wanted, gone), event| match event {
        PaymentEvent::RefundRequested(event) => (wanted + event.amount, gone),
        PaymentEvent::Refunded(event) => (wanted, gone + event.amount),
        _ => (wanted, gone),
    })
}

proptest! {
    /// Whatever comes: at most one capture, never more given back than was captured and no refund
    /// made twice, and once somebody wants no money, none is kept.
    #[test]
    fn nobody_is_charged_or_refunded_twice(
        commands in prop::collection::vec(any_command(), 0..25),
    ) {
        let (state, history) = run::<Payment>(&commands);
        let types: Vec<_> = history
            .iter()
            .map(|event| souk_actors::event::EventPayload::descriptor(event).event_type)
            .collect();
        let count = |wanted: &str| types.iter().filter(|&&found| found == wanted).count();
        prop_assert!(count("payment.captured") <= 1);
        let captured = if count("payment.captured") == 1 { 1_500 } else { 0 };
        let (wanted, gone) = given_back(&history);
        prop_assert!(gone <= wanted && wanted <= captured);
        prop_assert!(count("payment.refunded") <= count("payment.refund_requested"));
        let cancelled = state.details.as_ref().is_some_and(|details| {
            details.cancelled.is_some() || details.failure.is_some()
        });
        if cancelled || state.barred {
            prop_assert_eq!(wanted, captured);
        }
        assert_folds(&state, &history);
    }
}
