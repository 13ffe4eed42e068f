use proptest::prelude::*;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{SELLER, admin, assert_folds, at, dong, run, seller, stranger, user};

fn id(number: u128) -> PayoutId {
    PayoutId(uuid::Uuid::from_u128(0x5000 + number))
}

fn request_with(number: u128, change: impl FnOnce(&mut PayoutRequest)) -> SellerAccountCommand {
    let mut request = PayoutRequest {
        caller: seller(),
        payout_id: id(number),
        seller_id: user(SELLER),
        amount: Some(400),
        currency: Currency::Vnd,
        earned: 1_000,
        destination: Destination {
            bank: "Vietcombank".to_owned(),
            holder: "Sam".to_owned(),
            number: "0011 0012 3456".to_owned(),
        },
        now: at(1),
    };
    change(&mut request);
    SellerAccountCommand::Request(Box::new(request))
}

fn request(number: u128, amount: Option<i64>) -> SellerAccountCommand {
    request_with(number, |request| request.amount = amount)
}

fn complete(number: u128) -> SellerAccountCommand {
    let reference = "FT-1".to_owned();
    SellerAccountCommand::Complete { caller: admin(), payout_id: id(number), reference, now: at(2) }
}

fn fail(number: u128) -> SellerAccountCommand {
    let reason = "no such account".to_owned();
    SellerAccountCommand::Fail { caller: admin(), payout_id: id(number), reason, now: at(2) }
}

fn after(commands: &[SellerAccountCommand]) -> Scenario<SellerAccount> {
    Scenario::given(run::<SellerAccount>(commands).1)
}

fn entries(event: &SellerAccountEvent) -> &[Entry] {
    match event {
        SellerAccountEvent::Requested(event) => &event.entries,
        SellerAccountEvent::Completed(event) => &event.entries,
        SellerAccountEvent::Failed(event) => &event.entries,
    }
}

#[test]
fn money_leaves_through_the_hands_of_an_administrator() {
    let decided = after(&[]).when(request(1, Some(400)));
    let events = decided.outcome.as_ref().unwrap();
    let [SellerAccountEvent::Requested(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(event.destination.get().unwrap().number, "001100123456");
    decided
        .then_types(&["payout.requested"])
        .when(request(1, Some(400)))
        .then([])
        .when(request(2, Some(601)))
        .then_rejected("balance_too_low")
        .when(request(2, None))
        .and_state(|account| assert_eq!(account.taken(Currency::Vnd), 1_000))
        .then_types(&["payout.requested"])
        .when(complete(1))
        .then_types(&["payout.completed"])
        .when(complete(1))
        .then([])
        .when(fail(1))
        .then_rejected("payout_over")
        .when(fail(9))
        .then_rejected("not_found")
        .when(fail(2))
        .and_state(|account| assert_eq!(account.taken(Currency::Vnd), 400))
        .then_types(&["payout.failed"])
        .when(fail(2))
        .then([])
        .when(request(2, None))
        .then([])
        .when(request(3, None))
        .then_types(&["payout.requested"]);
}

#[test]
fn nobody_else_takes_it_and_not_to_nowhere() {
    for caller in [admin(), stranger(), Caller::Anonymous] {
        after(&[])
            .when(request_with(1, |request| request.caller = caller.clone()))
            .then_rejected("forbidden");
    }
    let done = SellerAccountCommand::Complete {
        caller: seller(),
        payout_id: id(1),
        reference: "FT".into(),
        now: at(2),
    };
    after(&[request(1, None)]).when(done).then_rejected("forbidden");
    for number in ["", "12", "DE12;DROP", &"1".repeat(35)] {
        after(&[])
            .when(request_with(1, |request| request.destination.number = number.to_owned()))
            .then_rejected("invalid");
    }
    after(&[]).when(request(1, Some(0))).then_rejected("invalid");
    after(&[])
        .when(request_with(1, |request| (request.amount, request.earned) = (None, -5)))
        .then_rejected("balance_too_low");
    let all: Vec<_> = (0..10).map(|number| request(number, Some(1))).collect();
    after(&all).when(request(11, Some(1))).then_rejected("too_many_payouts");
}

proptest! {
    /// However many ask for however much: never more than was earned, and the books balance.
    #[test]
    fn no_more_is_paid_than_was_earned(
        choices in prop::collection::vec((0u8..3, 0u128..8, prop::option::of(1i64..700)), 0..40),
    ) {
        let commands: Vec<_> = choices
            .into_iter()
            .map(|(choice, number, amount)| match choice {
                0 => request(number, amount),
                1 => complete(number),
                _ => fail(number),
            })
            .collect();
        let (state, history) = run::<SellerAccount>(&commands);
        let own = account_of(user(SELLER));
        let mut balance = 1_000;
        for event in &history {
            prop_assert_eq!(entries(event).iter().map(|entry| entry.amount).sum::<i64>(), 0);
            for entry in entries(event).iter().filter(|entry| entry.account == own) {
                balance += entry.amount;
            }
            prop_assert!(balance >= 0);
        }
        prop_assert_eq!(state.taken(Currency::Vnd), 1_000 - balance);
        prop_assert_eq!(dong(balance).amount, balance);
        assert_folds(&state, &history);
    }
}
