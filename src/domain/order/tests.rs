use proptest::prelude::*;
use souk_actors::event::EventPayload as _;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::money::AMOUNT_MAX;
use crate::domain::testing::{
    BUYER, SELLER, address, admin, assert_folds, at, buyer, dong, listing, order, run, seller,
    stranger, user,
};

fn wanted(number: u128, quantity: u32) -> Wanted {
    Wanted {
        listing_id: listing(number),
        seller_id: user(SELLER),
        status: ListingStatus::Active,
        sku: format!("SKU-{number}"),
        unit_price: dong(500),
        quantity,
    }
}

fn place_with(change: impl FnOnce(&mut Placement)) -> OrderCommand {
    let mut placement = Placement {
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
    change(&mut placement);
    OrderCommand::Place(Box::new(placement))
}

fn place() -> OrderCommand {
    place_with(|_| {})
}

fn confirm() -> OrderCommand {
    OrderCommand::Confirm { now: at(1) }
}

fn pay() -> OrderCommand {
    let payment_id = PaymentId::of(order(1));
    OrderCommand::MarkPaid { payment_id, money: dong(1_500), now: at(2) }
}

fn ship() -> OrderCommand {
    OrderCommand::MarkShipped { shipment_id: ShipmentId::of(order(1)), now: at(3) }
}

fn deliver() -> OrderCommand {
    OrderCommand::RecordDelivered { now: at(4) }
}

fn complete() -> OrderCommand {
    OrderCommand::Complete { now: at(5) }
}

fn reject() -> OrderCommand {
    OrderCommand::Reject { reason: "insufficient_stock".into(), now: at(6) }
}

fn payment_failed() -> OrderCommand {
    OrderCommand::MarkPaymentFailed { reason: "declined".into(), now: at(6) }
}

fn fail() -> OrderCommand {
    OrderCommand::Fail { reason: "timeout".into(), step: "ship".into(), now: at(6) }
}

fn cancel(caller: Caller) -> OrderCommand {
    OrderCommand::Cancel { caller, reason: None, now: at(6) }
}

fn review() -> OrderCommand {
    OrderCommand::RecordReviewed { review_id: ReviewId::of(order(1)), now: at(8) }
}

#[test]
fn an_order_knows_that_it_was_reviewed_and_since_when_it_is_there() {
    let details = |order: &Order| order.details.clone().unwrap();
    after(&[place(), confirm(), pay(), ship()])
        .when(deliver())
        .and_state(|order| {
            assert_eq!(details(order).arrived_at(), Some(at(4)));
            assert_eq!(details(order).review_id, None);
        })
        .then_types(&["order.delivered"])
        .when(review())
        .and_state(|order| {
            assert_eq!(details(order).review_id, Some(ReviewId::of(details(order).order_id)));
            assert_eq!(details(order).status, OrderStatus::Delivered);
        })
        .then_types(&["order.reviewed"])
        .when(review())
        .then([])
        .when(complete())
        .and_state(|order| assert_eq!(details(order).arrived_at(), Some(at(4))))
        .then_types(&["order.completed"]);
    after(&[place(), confirm(), pay(), ship()])
        .when(complete())
        .and_state(|order| assert_eq!(details(order).arrived_at(), Some(at(5))))
        .then_types(&["order.completed"]);
    Scenario::<Order>::new().when(review()).then_rejected("not_found");
}

fn after(commands: &[OrderCommand]) -> Scenario<Order> {
    let (order, history) = run::<Order>(commands);
    assert_eq!(history.len(), commands.len(), "{:?}", order.details.map(|it| it.status));
    Scenario::given(history)
}

fn statuses(order: &Order) -> Vec<OrderStatus> {
    order.details.as_ref().unwrap().history.iter().map(|change| change.status).collect()
}

#[test]
fn placing_records_everything_that_follows_from_it() {
    let decided = Scenario::<Order>::new().when(place());
    let events = decided.outcome.as_ref().unwrap();
    let [OrderEvent::Placed(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.amount, event.total_amount, event.currency), (1_500, 1_500, Currency::Vnd));
    assert_eq!(event.items.len(), 2);
    assert_eq!((event.buyer_id, event.seller_id), (user(BUYER), user(SELLER)));
    assert_eq!(event.customer_id, event.buyer_id);
    assert_eq!(event.transaction_id, event.order_id);
    assert_eq!(event.listing_id, listing(1));
    assert_eq!(event.payment_id, PaymentId::of(order(1)));
    assert!(event.order_number.starts_with("ORD-20261120-"));
    assert!(event.payment_reference.starts_with("PAY-"));
    assert_eq!(event.delivery_address.subject(), user(BUYER).uuid());
    decided.then_types(&["order.placed"]).when(place()).then_rejected("already_placed");
}

#[test]
fn two_lines_of_one_listing_are_one() {
    let decided = Scenario::<Order>::new()
        .when(place_with(|new| new.items = vec![wanted(1, 2), wanted(2, 1), wanted(1, 3)]));
    let items = decided.state.details.unwrap().items;
    let quantities: Vec<_> = items.iter().map(|item| (item.listing_id, item.quantity)).collect();
    assert_eq!(quantities, [(listing(1), 5), (listing(2), 1)]);
}

#[test]
fn what_is_wrong_with_an_order_is_named() {
    let refused = |code: &str, change: fn(&mut Placement)| {
        Scenario::<Order>::new().when(place_with(change)).then_rejected(code);
    };
    refused("forbidden", |new| new.caller = Caller::Anonymous);
    refused("self_purchase", |new| new.caller = seller());
    refused("mixed_sellers", |new| new.items[1].seller_id = user(8));
    refused("mixed_currencies", |new| new.items[1].unit_price.currency = Currency::Usd);
    refused("listing_unavailable", |new| new.items[1].status = ListingStatus::Sold);
    refused("listing_unavailable", |new| new.items[0].status = ListingStatus::Reserved);
    refused("listing_unavailable", |new| new.items[0].status = ListingStatus::Archived);
    refused("amount_overflow", |new| new.items[0].unit_price = dong(AMOUNT_MAX));
    refused("amount_overflow", |new| {
        new.items[0] = wanted(1, 1);
        new.items[0].unit_price = dong(AMOUNT_MAX);
    });
    refused("invalid", |new| new.items.clear());
    refused("invalid", |new| new.items[0].quantity = 0);
    refused("invalid", |new| new.items[0].quantity = QUANTITY_MAX + 1);
    refused("invalid", |new| new.items = (0..101).map(|number| wanted(number, 1)).collect());
    refused("invalid", |new| new.payment_method = PaymentMethod::new("Cash!"));
    refused("invalid", |new| new.delivery_address.city = String::new());
    refused("invalid", |new| new.delivery_address.country = "vn".into());
    refused("invalid", |new| new.delivery_address.phone = Some("call me".into()));
}

#[test]
fn bad_items_are_pointed_at() {
    let command = place_with(|new| new.items[1].quantity = 0);
    let rejection = Order::default().decide(&command).unwrap_err();
    let OrderRejection::Invalid { errors } = rejection else { panic!("{rejection:?}") };
    assert_eq!(errors[0].pointer, "/items/1/quantity");
}

#[test]
fn a_good_order_goes_all_the_way() {
    use OrderStatus as S;
    after(&[place(), confirm(), pay(), ship(), deliver()])
        .when(complete())
        .and_state(|order| {
            let expected =
                [S::Pending, S::Confirmed, S::Paid, S::Shipped, S::Delivered, S::Completed];
            assert_eq!(statuses(order), expected);
            let details = order.details.as_ref().unwrap();
            let times: Vec<_> = details.history.iter().map(|change| change.at).collect();
            assert_eq!(times, [at(0), at(1), at(2), at(3), at(4), at(5)]);
            assert_eq!(details.shipment_id, Some(ShipmentId::of(order_id())));
        })
        .then_types(&["order.completed"]);
    after(&[place(), confirm(), pay(), ship()]).when(complete()).then_types(&["order.completed"]);
}

fn order_id() -> OrderId {
    order(1)
}

/// For each command: the statuses (by the commands that lead there) from which it is taken, and
/// those where it is already so. Everywhere else it is an invalid transition.
#[test]
fn every_command_in_every_status() {
    let ways: Vec<(OrderStatus, Vec<OrderCommand>)> = vec![
        (OrderStatus::Pending, vec![]),
        (OrderStatus::Confirmed, vec![confirm()]),
        (OrderStatus::Paid, vec![confirm(), pay()]),
        (OrderStatus::Shipped, vec![confirm(), pay(), ship()]),
        (OrderStatus::Delivered, vec![confirm(), pay(), ship(), deliver()]),
        (OrderStatus::Completed, vec![confirm(), pay(), ship(), complete()]),
        (OrderStatus::Rejected, vec![reject()]),
        (OrderStatus::PaymentFailed, vec![payment_failed()]),
        (OrderStatus::Cancelled, vec![cancel(buyer())]),
        (OrderStatus::Failed, vec![fail()]),
    ];
    // t: taken; s: already so; x: refused. In the order of the ways above.
    let table = [
        (confirm(), "tsssssxxxx"),
        (pay(), "etssssxxxx"),
        (ship(), "eetsssxxxx"),
        (deliver(), "eeetssxxxx"),
        (complete(), "eeettsxxxx"),
        (reject(), "txxxxxssss"),
        (payment_failed(), "ttxxxxssss"),
        (fail(), "tttxxxssss"),
        (cancel(buyer()), "tttxxxxxxx"),
        (cancel(admin()), "tttxxxxxxx"),
        (cancel(Caller::System), "tttxxxssss"),
    ];
    for (command, row) in table {
        for ((status, way), expected) in ways.iter().zip(row.chars()) {
            let mut commands = vec![place()];
            commands.extend(way.iter().cloned());
            let (order, _) = run::<Order>(&commands);
            assert_eq!(order.details.as_ref().unwrap().status, *status);
            let found = match order.decide(&command) {
                Ok(events) if events.is_empty() => 's',
                Ok(_) => 't',
                Err(OrderRejection::InvalidTransition { from }) if from == *status => 'x',
                Err(OrderRejection::TooEarly { from }) if from == *status => 'e',
                Err(other) => panic!("{other}"),
            };
            assert_eq!(found, expected, "{} from {status:?}", command.name());
        }
    }
}

#[test]
fn only_the_buyer_an_admin_or_the_system_cancels() {
    for (caller, by) in [
        (buyer(), CancelledBy::Buyer),
        (admin(), CancelledBy::Admin),
        (Caller::System, CancelledBy::System),
    ] {
        after(&[place()])
            .when(cancel(caller))
            .and_state(|order| {
                let failure = order.details.as_ref().unwrap().failure.clone().unwrap();
                assert_eq!(failure.cancelled_by, Some(by));
            })
            .then_types(&["order.cancelled"]);
    }
    for caller in [seller(), stranger(), Caller::Anonymous] {
        after(&[place()]).when(cancel(caller)).then_rejected("forbidden");
    }
    let long = Some("x".repeat(text::REASON_MAX + 1));
    let command = OrderCommand::Cancel { caller: buyer(), reason: long, now: at(6) };
    after(&[place()]).when(command).then_rejected("invalid");
}

#[test]
fn what_people_write_about_a_cancellation_is_theirs() {
    let called_off = |caller, reason: &str| {
        let cancel = OrderCommand::Cancel { caller, reason: Some(reason.to_owned()), now: at(6) };
        let details = after(&[place()]).when(cancel).state.details.unwrap();
        let Failure { reason, comment, .. } = details.failure.unwrap();
        (reason, comment)
    };
    for (caller, who) in [(buyer(), BUYER), (admin(), 9)] {
        let words = Personal::new(user(who).uuid(), "My aunt gave me hers.".to_owned());
        let found = called_off(caller, "My aunt gave me hers.");
        assert_eq!(found, (CANCELLED.to_owned(), Some(words)));
    }
    let found = called_off(Caller::System, "reservation_expired");
    assert_eq!(found, ("reservation_expired".to_owned(), None));
}

#[test]
fn the_words_of_old_cancellations_are_read() {
    let old = serde_json::json!({
        "order_id": order(1), "reason": "too big", "cancelled_by": "buyer", "cancelled_at": at(6),
    });
    let (mut state, _) = run::<Order>(&[place()]);
    state.apply(&OrderEvent::decode("order.cancelled", 1, &old.to_string()).unwrap());
    let failure = state.details.unwrap().failure.unwrap();
    assert_eq!((failure.reason.as_str(), failure.comment), ("too big", None));
    assert_eq!(failure.cancelled_by, Some(CancelledBy::Buyer));
}

#[test]
fn a_failed_order_says_why() {
    after(&[place(), confirm(), pay()])
        .when(fail())
        .and_state(|order| {
            let failure = order.details.as_ref().unwrap().failure.clone().unwrap();
            assert_eq!(
                (failure.reason.as_str(), failure.step.as_deref()),
                ("timeout", Some("ship"))
            );
        })
        .then_types(&["order.failed"]);
    for command in [confirm(), pay(), ship(), deliver(), complete(), reject(), fail()] {
        Scenario::<Order>::new().when(command).then_rejected("not_found");
    }
}

#[test]
fn a_transaction_is_an_order_by_another_name() {
    assert_eq!(place().name(), "PlaceOrder");
    assert_eq!(place_with(|new| new.as_transaction = true).name(), "CreateTransaction");
}

#[test]
fn history_can_be_read_after_the_key_is_gone() {
    let (_, mut history) = run::<Order>(&[place()]);
    let OrderEvent::Placed(event) = &mut history[0] else { unreachable!() };
    event.delivery_address = Personal::Erased { subject: user(BUYER).uuid() };
    Scenario::<Order>::given(history).when(confirm()).then_types(&["order.confirmed"]);
}

proptest! {
    #[test]
    fn histories_fold_in_parts(choices in prop::collection::vec(0usize..9, 0..12)) {
        let commands = [
            confirm(), pay(), ship(), deliver(), complete(), reject(), payment_failed(), fail(),
            cancel(buyer()),
        ];
        let mut all = vec![place()];
        all.extend(choices.into_iter().map(|choice| commands[choice].clone()));
        let (state, history) = run::<Order>(&all);
        assert_folds(&state, &history);
        let details = state.details.unwrap();
        prop_assert_eq!(details.history.last().unwrap().status, details.status);
        let off = details.history.iter().filter(|change| change.status.is_off()).count();
        prop_assert!(off <= 1);
    }
}
