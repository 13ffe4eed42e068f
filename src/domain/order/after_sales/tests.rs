use proptest::prelude::*;
use souk_actors::aggregate::Aggregate;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::ids::{PaymentId, ShipmentId};
use crate::domain::listing::ListingStatus;
use crate::domain::order::{PaymentMethod, Placement, SagaDefinition, Wanted};
use crate::domain::testing::{
    SELLER, address, admin, assert_folds, at, buyer, dong, listing, order, run, seller, stranger,
    user,
};

const DAYS: u64 = 24 * 60 * 60;

/// Two units of one listing and one of another, at 500 each.
fn shipped() -> Vec<OrderCommand> {
    let wanted = |number, quantity| Wanted {
        listing_id: listing(number),
        seller_id: user(SELLER),
        status: ListingStatus::Active,
        sku: format!("SKU-{number}"),
        unit_price: dong(500),
        quantity,
    };
    let placement = Placement {
        caller: buyer(),
        order_id: order(1),
        items: vec![wanted(1, 2), wanted(2, 1)],
        delivery_address: address(),
        payment_method: PaymentMethod::new(PaymentMethod::SANDBOX),
        saga_definition: SagaDefinition::default(),
        checkout_id: None,
        promotion: None,
        as_transaction: false,
        now: at(0),
    };
    let payment_id = PaymentId::of(order(1));
    vec![
        OrderCommand::Place(Box::new(placement)),
        OrderCommand::Confirm { now: at(1) },
        OrderCommand::MarkPaid { payment_id, money: dong(1_500), now: at(2) },
        OrderCommand::MarkShipped { shipment_id: ShipmentId::of(order(1)), now: at(3) },
    ]
}

fn delivered() -> Vec<OrderCommand> {
    [shipped(), vec![OrderCommand::RecordDelivered { now: at(4) }]].concat()
}

fn complete() -> OrderCommand {
    OrderCommand::Complete { now: at(5) }
}

fn id(number: u128) -> ReturnId {
    ReturnId(uuid::Uuid::from_u128(0x4000 + number))
}

fn send_back_with(
    number: u128,
    items: &[(u128, u32)],
    change: impl FnOnce(&mut ReturnRequest),
) -> OrderCommand {
    let mut request = ReturnRequest {
        caller: buyer(),
        return_id: id(number),
        items: items.iter().map(|(number, quantity)| (listing(*number), *quantity)).collect(),
        reason: ReturnReason::Damaged,
        comment: Some("It is in two pieces.".to_owned()),
        now: at(10),
    };
    change(&mut request);
    OrderCommand::RequestReturn(Box::new(request))
}

fn send_back(number: u128, items: &[(u128, u32)]) -> OrderCommand {
    send_back_with(number, items, |_| {})
}

fn decide(caller: Caller, number: u128, accepted: bool) -> OrderCommand {
    OrderCommand::DecideReturn(Box::new(ReturnDecision {
        caller,
        return_id: id(number),
        accepted,
        restock: true,
        note: (!accepted).then(|| "It was whole when it left.".to_owned()),
        now: at(20),
    }))
}

fn dispute(seconds: u64) -> OrderCommand {
    OrderCommand::Dispute {
        caller: buyer(),
        reason: DisputeReason::NotReceived,
        comment: None,
        now: at(seconds),
    }
}

fn resolve(refund: i64) -> OrderCommand {
    let reason = "The carrier lost it.".to_owned();
    OrderCommand::ResolveDispute { caller: admin(), refund, reason, now: at(40) }
}

fn after(commands: &[OrderCommand]) -> Scenario<Order> {
    let (order, history) = run::<Order>(commands);
    assert_eq!(history.len(), commands.len(), "{:?}", order.details.map(|it| it.status));
    Scenario::given(history)
}

fn with(more: &[OrderCommand]) -> Scenario<Order> {
    after(&[delivered(), more.to_vec()].concat())
}

fn stands(status: OrderStatus, refunded: i64) -> impl FnOnce(&Order) {
    move |order| {
        let details = order.details.as_ref().unwrap();
        assert_eq!((details.status, details.after_sales.refunded), (status, refunded));
    }
}

#[test]
fn everything_comes_back_and_all_of_the_money() {
    let decided = with(&[]).when(send_back(1, &[]));
    let events = decided.outcome.as_ref().unwrap();
    let [OrderEvent::ReturnRequested(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.amount, event.items.len()), (1_500, 2));
    assert_eq!(event.answer_by, at(10).plus(RETURN_ANSWERED_WITHIN));
    assert_eq!(event.comment.as_ref().map(Personal::subject), Some(buyer_id()));
    decided
        .and_state(stands(OrderStatus::ReturnRequested, 0))
        .then_types(&["order.return_requested"])
        .when(send_back(1, &[]))
        .then([])
        .when(send_back(2, &[]))
        .then_rejected("return_open")
        .when(decide(seller(), 1, true))
        .and_state(stands(OrderStatus::Returned, 1_500))
        .then_types(&["order.returned"])
        .when(decide(seller(), 1, true))
        .then([])
        .when(decide(seller(), 1, false))
        .then_rejected("return_decided")
        .when(send_back(2, &[]))
        .then_rejected("invalid_transition");
}

fn buyer_id() -> uuid::Uuid {
    user(crate::domain::testing::BUYER).uuid()
}

#[test]
fn parts_come_back_until_nothing_is_left() {
    with(&[])
        .when(send_back(1, &[(1, 1)]))
        .then_types(&["order.return_requested"])
        .when(decide(seller(), 1, true))
        .and_state(stands(OrderStatus::Delivered, 500))
        .then_types(&["order.returned"])
        .when(send_back(2, &[(1, 2)]))
        .then_rejected("invalid")
        .when(send_back(2, &[(1, 1), (2, 1)]))
        .then_types(&["order.return_requested"])
        .when(decide(admin(), 2, true))
        .and_state(stands(OrderStatus::Returned, 1_500))
        .then_types(&["order.returned"]);
    for items in [&[(9, 1)][..], &[(1, 0)], &[(1, 3)], &[(1, 1), (1, 1)]] {
        with(&[]).when(send_back(1, items)).then_rejected("invalid");
    }
}

#[test]
fn a_refused_return_leaves_the_order_as_it_was_and_can_be_disputed() {
    for (before, status) in
        [(vec![], OrderStatus::Delivered), (vec![complete()], OrderStatus::Completed)]
    {
        let asked = [before, vec![send_back(1, &[])]].concat();
        with(&asked)
            .when(decide(seller(), 1, false))
            .and_state(stands(status, 0))
            .then_types(&["order.return_refused"])
            .when(decide(seller(), 1, false))
            .then([])
            .when(dispute(30))
            .then_types(&["order.disputed"])
            .when(send_back(2, &[]))
            .then_rejected("dispute_open");
    }
    let silent = OrderCommand::DecideReturn(Box::new(ReturnDecision {
        caller: seller(),
        return_id: id(1),
        accepted: false,
        restock: false,
        note: None,
        now: at(20),
    }));
    with(&[send_back(1, &[])]).when(silent).then_rejected("invalid");
}

#[test]
fn only_those_concerned_may_and_only_in_time() {
    let by = |caller| send_back_with(1, &[], |request| request.caller = caller);
    for caller in [seller(), stranger(), Caller::Anonymous] {
        with(&[]).when(by(caller)).then_rejected("forbidden");
    }
    with(&[]).when(by(admin())).then_types(&["order.return_requested"]);
    for caller in [buyer(), stranger()] {
        with(&[send_back(1, &[])]).when(decide(caller, 1, true)).then_rejected("forbidden");
    }
    with(&[send_back(1, &[])]).when(decide(seller(), 2, true)).then_rejected("return_not_found");
    after(&shipped()).when(send_back(1, &[])).then_rejected("invalid_transition");
    let late = |days| send_back_with(1, &[], |request| request.now = at(4 + days * DAYS));
    with(&[]).when(late(14)).then_types(&["order.return_requested"]);
    with(&[])
        .when(send_back_with(1, &[], |request| request.now = at(5 + 14 * DAYS)))
        .then_rejected("return_window_closed");
    with(&[]).when(dispute(4 + 30 * DAYS)).then_types(&["order.disputed"]);
    with(&[]).when(dispute(5 + 30 * DAYS)).then_rejected("dispute_window_closed");
    let not_admin = OrderCommand::ResolveDispute {
        caller: seller(),
        refund: 0,
        reason: "no".into(),
        now: at(40),
    };
    with(&[dispute(30)]).when(not_admin).then_rejected("forbidden");
}

#[test]
fn an_administrator_decides_once_and_over_what_is_left() {
    with(&[]).when(resolve(0)).then_rejected("order_undisputed");
    after(&shipped()).when(dispute(30)).then_types(&["order.disputed"]);
    with(&[dispute(30)]).when(dispute(31)).then([]);
    with(&[dispute(30)]).when(resolve(1_501)).then_rejected("invalid");
    with(&[dispute(30)]).when(resolve(-1)).then_rejected("invalid");
    let decided = with(&[dispute(30)]).when(resolve(0));
    let events = decided.outcome.as_ref().unwrap();
    let [OrderEvent::DisputeResolved(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.refund_id, event.amount), (None, 0));
    decided
        .and_state(stands(OrderStatus::Delivered, 0))
        .then_types(&["order.dispute_resolved"])
        .when(resolve(0))
        .then([])
        .when(resolve(5))
        .then_rejected("dispute_decided")
        .when(dispute(50))
        .then_rejected("dispute_decided");
    with(&[send_back(1, &[(1, 1)]), decide(seller(), 1, true), dispute(30)])
        .when(resolve(1_001))
        .then_rejected("invalid")
        .when(resolve(1_000))
        .and_state(stands(OrderStatus::Refunded, 1_500))
        .then_types(&["order.dispute_resolved"])
        .when(complete())
        .then([]);
}

#[test]
fn what_goes_back_is_never_more_than_what_is_left() {
    // 1,200 of 1,500 went back by a dispute: what comes back afterwards is worth 300 at most.
    let decided = with(&[dispute(30), resolve(1_200)]).when(send_back(1, &[]));
    let events = decided.outcome.as_ref().unwrap();
    let [OrderEvent::ReturnRequested(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(event.amount, 300);
}

/// The timers that are set after all of this, and when they fire.
fn timers(commands: &[OrderCommand]) -> Vec<(String, Timestamp)> {
    let mut set = std::collections::BTreeMap::new();
    let mut state = Order::default();
    for command in commands {
        for event in state.decide(command).unwrap() {
            state.apply(&event);
            for change in Aggregate::timers(&state, &event) {
                match change {
                    TimerChange::Set { name, at } => drop(set.insert(name, at)),
                    TimerChange::Clear { name } => drop(set.remove(&name)),
                }
            }
        }
    }
    set.into_iter().collect()
}

#[test]
fn the_seller_gets_the_money_when_nobody_objects() {
    let settlement = |at| vec![(SETTLEMENT_TIMER.to_owned(), at)];
    assert_eq!(timers(&shipped()), settlement(at(3).plus(SETTLED_AFTER_SHIPPING)));
    assert_eq!(timers(&delivered()), settlement(at(4).plus(SETTLED_AFTER_DELIVERY)));
    let then = |more: &[OrderCommand]| timers(&[delivered(), more.to_vec()].concat());
    assert_eq!(then(&[complete()]), []);
    assert_eq!(then(&[dispute(30)]), []);
    let asked = vec![(RETURN_TIMER.to_owned(), at(10).plus(RETURN_ANSWERED_WITHIN))];
    assert_eq!(then(&[send_back(1, &[])]), asked);
    let again = settlement(at(20).plus(SETTLED_AFTER_DELIVERY));
    assert_eq!(then(&[send_back(1, &[]), decide(seller(), 1, false)]), again);
    assert_eq!(then(&[send_back(1, &[(1, 1)]), decide(seller(), 1, true)]), again);
    assert_eq!(then(&[send_back(1, &[]), decide(seller(), 1, true)]), []);
    // Whoever disputes what was never delivered keeps the money waiting when it is delivered.
    let disputed = [shipped(), vec![dispute(30), OrderCommand::RecordDelivered { now: at(31) }]];
    assert_eq!(timers(&disputed.concat()), []);

    let (state, _) = run::<Order>(&delivered());
    let due = state.on_timer(SETTLEMENT_TIMER, at(9 * DAYS)).unwrap();
    with(&[]).when(due.clone()).then_types(&["order.settlement_due"]);
    with(&[complete()]).when(due.clone()).then([]);
    with(&[dispute(30)]).when(due).then([]);
    let (state, _) = run::<Order>(&[delivered(), vec![send_back(1, &[])]].concat());
    let due = state.on_timer(RETURN_TIMER, at(9 * DAYS)).unwrap();
    with(&[send_back(1, &[])])
        .when(due)
        .and_state(stands(OrderStatus::Returned, 1_500))
        .then_types(&["order.returned"]);
    assert_eq!(state.on_timer("no such timer", at(0)), None);
}

fn any_command() -> impl Strategy<Value = OrderCommand> {
    let some = prop::collection::vec((1u128..3, 1u32..3), 0..3);
    prop_oneof![
        3 => (1u128..6, some).prop_map(|(number, items)| send_back(number, &items)),
        3 => (1u128..6, any::<bool>()).prop_map(|(number, yes)| decide(seller(), number, yes)),
        1 => Just(dispute(30)),
        1 => (0i64..1_600).prop_map(resolve),
        1 => Just(complete()),
        1 => Just(OrderCommand::SettleDue { now: at(50) }),
    ]
}

proptest! {
    /// Whatever comes: no unit comes back twice, no more money than was paid, and one who has
    /// everything back has RETURNED or REFUNDED.
    #[test]
    fn nothing_comes_back_twice(commands in prop::collection::vec(any_command(), 0..30)) {
        let (state, history) = run::<Order>(&[delivered(), commands].concat());
        let details = state.details.as_ref().unwrap();
        let mut money = 0;
        let mut units = std::collections::BTreeMap::new();
        for event in &history {
            match event {
                OrderEvent::Returned(event) => {
                    money += event.amount;
                    for line in &event.items {
                        *units.entry(line.listing_id).or_insert(0) += line.quantity;
                    }
                }
                OrderEvent::DisputeResolved(event) => money += event.amount,
                _ => {}
            }
        }
        prop_assert_eq!(money, details.after_sales.refunded);
        prop_assert!(money <= details.total.amount);
        for item in &details.items {
            prop_assert!(units.get(&item.listing_id).is_none_or(|back| *back <= item.quantity));
        }
        let all_back = details.not_returned().next().is_none();
        prop_assert_eq!(all_back, details.status == OrderStatus::Returned);
        prop_assert!(details.status != OrderStatus::Refunded || details.kept() == 0);
        assert_folds(&state, &history);
    }
}
