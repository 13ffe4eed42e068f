use proptest::prelude::*;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{
    BUYER, SELLER, admin, assert_folds, at, buyer, dong, order, run, seller, stranger, user,
};

fn open() -> EscrowCommand {
    opened_with(0)
}

fn opened_with(subsidy: i64) -> EscrowCommand {
    EscrowCommand::Open {
        escrow_id: EscrowId::of(order(1)),
        order_id: order(1),
        buyer_id: user(BUYER),
        seller_id: user(SELLER),
        money: dong(1_500),
        subsidy,
        method: PaymentMethod::new("momo"),
        now: at(0),
    }
}

fn fund() -> EscrowCommand {
    EscrowCommand::Fund { now: at(1) }
}

fn release(caller: Caller) -> EscrowCommand {
    EscrowCommand::Release { caller, now: at(2) }
}

fn refund() -> EscrowCommand {
    let (escrow_id, order_id) = (EscrowId::of(order(1)), order(1));
    EscrowCommand::Refund { escrow_id, order_id, reason: "order_cancelled".into(), now: at(3) }
}

fn after(commands: &[EscrowCommand]) -> Scenario<Escrow> {
    Scenario::given(run::<Escrow>(commands).1)
}

fn stands(status: EscrowStatus, balance: i64) -> impl FnOnce(&Escrow) {
    move |escrow| {
        let details = escrow.details.as_ref().unwrap();
        assert_eq!((details.status, details.balance), (status, balance));
    }
}

fn entries(event: &EscrowEvent) -> &[Entry] {
    match event {
        EscrowEvent::Created(_) | EscrowEvent::Barred(_) => &[],
        EscrowEvent::Funded(event) => &event.entries,
        EscrowEvent::Released(event) => &event.entries,
        EscrowEvent::Refunded(event) => &event.entries,
    }
}

#[test]
fn money_goes_from_the_buyer_to_the_seller() {
    let decided = Scenario::<Escrow>::new()
        .when(open())
        .and_state(stands(EscrowStatus::Open, 0))
        .then_types(&["escrow.created"])
        .when(open())
        .then([])
        .when(release(buyer()))
        .then_rejected("escrow_not_funded")
        .when(fund());
    let accounts: Vec<_> = entries(&decided.outcome.as_ref().unwrap()[0])
        .iter()
        .map(|entry| (entry.account.clone(), entry.amount))
        .collect();
    let own = format!("escrow:{}", order(1));
    assert_eq!(accounts, [("gateway:momo".to_owned(), -1_500), (own, 1_500)]);
    decided
        .and_state(stands(EscrowStatus::Funded, 1_500))
        .then_types(&["escrow.funded"])
        .when(fund())
        .then([])
        .when(open())
        .then([])
        .when(release(buyer()))
        .and_state(stands(EscrowStatus::Released, 0))
        .then_types(&["escrow.released"])
        .when(release(buyer()))
        .then([])
        .when(fund())
        .then([])
        .when(refund())
        .then_rejected("escrow_closed");
}

#[test]
fn only_the_buyers_side_releases() {
    for caller in [seller(), stranger(), Caller::Anonymous] {
        after(&[open(), fund()]).when(release(caller)).then_rejected("forbidden");
    }
    for caller in [admin(), Caller::System] {
        after(&[open(), fund()]).when(release(caller)).then_types(&["escrow.released"]);
    }
}

#[test]
fn a_refund_gives_back_what_there_is() {
    after(&[open(), fund()])
        .when(refund())
        .and_state(stands(EscrowStatus::Refunded, 0))
        .then_types(&["escrow.refunded"])
        .when(refund())
        .then([])
        .when(release(buyer()))
        .then_rejected("escrow_closed");
    let decided = after(&[open()]).when(refund());
    let events = decided.outcome.as_ref().unwrap();
    let [EscrowEvent::Refunded(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.amount, event.entries.len()), (0, 0));
    decided.then_types(&["escrow.refunded"]).when(fund()).then_rejected("escrow_closed");
}

#[test]
fn an_undo_that_comes_first_bars_the_escrow() {
    Scenario::<Escrow>::new()
        .when(refund())
        .then_types(&["escrow.barred"])
        .when(refund())
        .then([])
        .when(open())
        .then_rejected("escrow_closed")
        .when(fund())
        .then_rejected("escrow_closed");
    Scenario::<Escrow>::new().when(fund()).then_rejected("not_found");
    Scenario::<Escrow>::new().when(release(buyer())).then_rejected("not_found");
}

/// What an account has gained by all of it.
fn account(history: &[EscrowEvent], account: &str) -> i64 {
    let of = history.iter().flat_map(entries).filter(|entry| entry.account == account);
    of.map(|entry| entry.amount).sum()
}

#[test]
fn what_the_market_adds_is_the_sellers_and_goes_back_with_what_goes_back() {
    let part = |number: u128, amount| EscrowCommand::RefundPart {
        refund_id: RefundId(uuid::Uuid::from_u128(number)),
        amount,
        reason: "returned".to_owned(),
        now: at(3),
    };
    // 1500 were paid, 200 are added: of a part of 500 a third of them, rounded down, goes back.
    let begin = [opened_with(200), fund(), part(1, 500)];
    let seller = account_of(user(SELLER));
    let (escrow, history) = run::<Escrow>(&begin);
    assert_eq!(escrow.details.as_ref().unwrap().balance, 1_000 + 134);
    assert_eq!((account(&history, "gateway:momo"), account(&history, MARKET)), (-1_000, -134));

    let (_, history) = run::<Escrow>(&[&begin[..], &[release(buyer())]].concat());
    assert_eq!(account(&history, &seller), 1_134);
    // All else goes back afterwards, in two parts that do not come out even: from the seller, with all
    // of it.
    let rest = [release(buyer()), part(2, 333), part(3, 667)];
    let (escrow, history) = run::<Escrow>(&[&begin[..], &rest].concat());
    assert_eq!(escrow.details.unwrap().status, EscrowStatus::Refunded);
    for name in [seller.as_str(), MARKET, "gateway:momo"] {
        assert_eq!(account(&history, name), 0, "{name}");
    }
    // An order that is off gives the buyer what was paid, and the market the rest.
    let (escrow, history) = run::<Escrow>(&[&begin[..], &[refund()]].concat());
    let Some(EscrowEvent::Refunded(last)) = history.last() else { panic!("{history:?}") };
    assert_eq!((last.amount, escrow.details.unwrap().balance), (1_000, 0));
    assert_eq!((account(&history, MARKET), account(&history, "gateway:momo")), (0, 0));
    let (_, history) = run::<Escrow>(&[opened_with(200), refund()]);
    assert_eq!(account(&history, MARKET), 0);
}

proptest! {
    /// Whatever comes: the books balance, the escrow never owes, and the money leaves it once.
    #[test]
    fn the_ledger_sums_to_nothing(
        choices in prop::collection::vec(0usize..4, 0..20),
        subsidy in prop_oneof![Just(0), 1i64..2_000],
    ) {
        let commands = [opened_with(subsidy), fund(), release(buyer()), refund()];
        let mut state = Escrow::default();
        let mut history = Vec::new();
        for choice in choices {
            for event in state.decide(&commands[choice]).unwrap_or_default() {
                prop_assert_eq!(entries(&event).iter().map(|entry| entry.amount).sum::<i64>(), 0);
                state.apply(&event);
                history.push(event);
                let details = state.details.as_ref();
                let balance = details.map_or(0, |details| details.balance);
                prop_assert!((0..=1_500 + subsidy).contains(&balance));
                let funded = details.is_some_and(|it| it.status == EscrowStatus::Funded);
                prop_assert_eq!(balance == 1_500 + subsidy, funded);
            }
        }
        let outside: i64 = history
            .iter()
            .flat_map(entries)
            .filter(|entry| !entry.account.starts_with("escrow:"))
            .map(|entry| entry.amount)
            .sum();
        prop_assert_eq!(-outside, state.details.as_ref().map_or(0, |details| details.balance));
        assert_folds(&state, &history);
    }
}
