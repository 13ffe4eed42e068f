use proptest::prelude::*;
use souk_actors::aggregate::Aggregate;
use souk_actors::event::EventPayload as _;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::ids::{PaymentId, PromotionId, ShipmentId};
use crate::domain::listing::ListingStatus;
use crate::domain::order::{OrderPromotion, PaymentMethod, Placement, SagaDefinition, Wanted};
use crate::domain::testing::{
    SELLER, address, admin, assert_folds, at, buyer, dong, listing, order, run, seller, stranger,
    user,
};

const DAYS: u64 = 24 * 60 * 60;

/// Two units of one listing and one of another, at 500 each.
fn shipped() -> Vec<OrderCommand> {
    shipped_of(&[(2, 500), (1, 500)], 0)
}

/// So many units of the listings 1, 2 and so on at these prices, for `off` less than they cost.
fn shipped_of(lines: &[(u32, i64)], off: i64) -> Vec<OrderCommand> {
    let wanted = |(number, (quantity, price)): (u128, &(u32, i64))| Wanted {
        listing_id: listing(number),
        seller_id: user(SELLER),
        status: ListingStatus::Active,
        sku: format!("SKU-{number}"),
        unit_price: dong(*price),
        quantity: *quantity,
    };
    let promotion = OrderPromotion {
        promotion_id: PromotionId::of_code("SPRING"),
        code: "SPRING".to_owned(),
        discount: off,
        borne_by_market: false,
    };
    let placement = Placement {
        caller: buyer(),
        order_id: order(1),
        items: (1u128..).zip(lines).map(wanted).collect(),
        delivery_address: address(),
        payment_method: PaymentMethod::new(PaymentMethod::SANDBOX),
        saga_definition: SagaDefinition::default(),
        checkout_id: None,
        promotion: (off > 0).then_some(promotion),
        as_transaction: false,
        now: at(0),
    };
    let payment_id = PaymentId::of(order(1));
    let money = dong(price_of(lines) - off);
    vec![
        OrderCommand::Place(Box::new(placement)),
        OrderCommand::Confirm { now: at(1) },
        OrderCommand::MarkPaid { payment_id, money, now: at(2) },
        OrderCommand::MarkShipped { shipment_id: ShipmentId::of(order(1)), now: at(3) },
    ]
}

fn price_of(lines: &[(u32, i64)]) -> i64 {
    lines.iter().map(|(quantity, price)| i64::from(*quantity) * price).sum()
}

fn delivered() -> Vec<OrderCommand> {
    [shipped(), vec![OrderCommand::RecordDelivered { now: at(4) }]].concat()
}

/// As [`shipped_of`], delivered, and then a dispute gave back so much.
fn partly_refunded(lines: &[(u32, i64)], off: i64, refund: i64) -> Order {
    let then = vec![OrderCommand::RecordDelivered { now: at(4) }, dispute(30), resolve(refund)];
    run::<Order>(&[shipped_of(lines, off), then].concat()).0
}

/// Goods are sent back and taken, if they can be; how much money goes back for them.
fn goes_back(order: &mut Order, number: u128, items: &[(u128, u32)]) -> i64 {
    let mut amount = 0;
    for command in [send_back(number, items), decide(seller(), number, true)] {
        for event in order.decide(&command).unwrap_or_default() {
            if let OrderEvent::Returned(event) = &event {
                amount = event.amount;
            }
            order.apply(&event);
        }
    }
    amount
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
fn why_a_return_is_refused_is_in_the_words_of_who_refuses() {
    for (caller, who) in [(seller(), SELLER), (admin(), 9)] {
        let decided = with(&[send_back(1, &[])]).when(decide(caller, 1, false));
        let events = decided.outcome.as_ref().unwrap();
        let [OrderEvent::ReturnRefused(event)] = events.as_slice() else { panic!("{events:?}") };
        let words = Personal::new(user(who).uuid(), "It was whole when it left.".to_owned());
        assert_eq!((event.reason.as_str(), event.comment.as_ref()), (REFUSED, Some(&words)));
        let it = &decided.state.details.as_ref().unwrap().after_sales.returns[0];
        assert_eq!((it.note.as_deref(), it.refusal.as_ref()), (Some(REFUSED), Some(&words)));
    }
    // Old events have the words in the reason.
    let old = serde_json::json!({
        "order_id": order(1), "return_id": id(1), "refused_by": "seller", "reason": "It was whole.",
        "status": "DELIVERED", "refused_at": at(20),
    });
    let (mut state, _) = run::<Order>(&[delivered(), vec![send_back(1, &[])]].concat());
    state.apply(&OrderEvent::decode("order.return_refused", 1, &old.to_string()).unwrap());
    let it = &state.details.as_ref().unwrap().after_sales.returns[0];
    assert_eq!((it.note.as_deref(), it.refusal.as_ref()), (Some("It was whole."), None));
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

#[test]
fn what_a_dispute_gave_back_does_not_go_back_again_with_the_goods() {
    // Of 100 the dispute gave 90 back: a tenth of each price is kept.
    let mut order = partly_refunded(&[(1, 90), (1, 10)], 0, 90);
    assert_eq!(goes_back(&mut order, 1, &[(1, 1)]), 9);
    assert_eq!(goes_back(&mut order, 2, &[(2, 1)]), 1);
    stands(OrderStatus::Returned, 100)(&order);
    // 75 were paid for 100, and 37 of them went back: 38 hundredths of each price are kept.
    let mut order = partly_refunded(&[(2, 40), (1, 20)], 25, 37);
    assert_eq!(goes_back(&mut order, 1, &[(1, 1)]), 15);
    assert_eq!(goes_back(&mut order, 2, &[(2, 1)]), 7);
    assert_eq!(goes_back(&mut order, 3, &[]), 16);
    stands(OrderStatus::Returned, 75)(&order);
}

#[test]
fn of_an_order_that_is_off_nothing_is_kept() {
    let kept = |order: &Order| order.details.as_ref().unwrap().kept();
    let paid = &shipped()[..3];
    assert_eq!(kept(&run::<Order>(paid).0), 1_500);
    let cancel = OrderCommand::Cancel { caller: buyer(), reason: None, now: at(3) };
    let fail = OrderCommand::Fail { reason: "timeout".into(), step: "ship".into(), now: at(3) };
    for (end, event) in [(cancel, "order.cancelled"), (fail, "order.failed")] {
        after(paid).when(end).and_state(|order| assert_eq!(kept(order), 0)).then_types(&[event]);
    }
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
fn what_left_late_is_waited_for() {
    let until = at(4).plus(SETTLED_AFTER_SHIPPING);
    let postpone = |now| OrderCommand::PostponeSettlement { until, now };
    let waits = [shipped(), vec![postpone(at(30 * DAYS))]].concat();
    assert_eq!(timers(&waits), vec![(SETTLEMENT_TIMER.to_owned(), until)]);
    let nothing = |before: &[OrderCommand], now| after(before).when(postpone(now)).then([]);
    nothing(&shipped(), until);
    nothing(&delivered(), at(5));
    nothing(&[shipped(), vec![dispute(5)]].concat(), at(6));
    nothing(&shipped()[..3], at(6));
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

    /// Whatever a promotion took off and a dispute gave back: no return gives back more than its
    /// part of what is kept, and all of them together give back exactly that.
    #[test]
    fn every_return_gives_back_its_part_of_what_is_kept(
        lines in prop::collection::vec((1u32..4, 1i64..1_000), 1..4),
        (off, refund) in (0i64..90, 0i64..100),
    ) {
        let off = price_of(&lines) * off / 100;
        let paid = price_of(&lines) - off;
        let mut order = partly_refunded(&lines, off, paid * refund / 100);
        let kept = |order: &Order| order.details.as_ref().unwrap().kept();
        let at_first = kept(&order);
        prop_assert_eq!(at_first, paid - paid * refund / 100);
        let units = (1u128..).zip(&lines);
        let units = units.flat_map(|(listing, (quantity, price))| {
            (0..*quantity).map(move |_| (listing, *price))
        });
        let mut back = 0;
        for (number, (listing, price)) in (1u128..).zip(units) {
            let left: Vec<_> = order.details.as_ref().unwrap().not_returned().collect();
            let (kept, left) = (kept(&order), worth(&left));
            let amount = goes_back(&mut order, number, &[(listing, 1)]);
            prop_assert!(amount * left <= price * kept, "{} of {} for {}", amount, kept, price);
            back += amount;
        }
        back += goes_back(&mut order, 100, &[]);
        prop_assert_eq!((back, kept(&order)), (at_first, 0));
        prop_assert_eq!(order.details.map(|it| it.status), Some(OrderStatus::Returned));
    }
}
