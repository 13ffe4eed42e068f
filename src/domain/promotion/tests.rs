use proptest::prelude::*;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::money::Currency;
use crate::domain::testing::{
    BUYER, SELLER, STRANGER, admin, assert_folds, at, buyer, dong, order, run, seller, stranger,
    user,
};

const UNTIL: u64 = 1_000;

fn promotion_id() -> PromotionId {
    PromotionId::of_code("SPRING-10")
}

fn create_with(change: impl FnOnce(&mut NewPromotion)) -> PromotionCommand {
    let mut new = NewPromotion {
        caller: seller(),
        promotion_id: promotion_id(),
        code: " spring-10 ".into(),
        seller_id: user(SELLER),
        seller_standing: Some(VerificationStatus::Verified),
        discount: Discount::Percentage { percentage: 10 },
        minimum: Some(dong(500)),
        valid_from: Some(at(10)),
        valid_until: Some(at(UNTIL)),
        uses_max: 2,
        uses_per_buyer_max: 1,
        now: at(0),
    };
    change(&mut new);
    PromotionCommand::Create(Box::new(new))
}

fn redeem(number: u128, buyer: u128, seconds: u64) -> PromotionCommand {
    PromotionCommand::Redeem {
        promotion_id: promotion_id(),
        order_id: order(number),
        buyer_id: user(buyer),
        seller_id: user(SELLER),
        subtotal: dong(1_005),
        discount: 100,
        now: at(seconds),
    }
}

fn release(number: u128) -> PromotionCommand {
    let reason = "order_cancelled".to_owned();
    PromotionCommand::Release {
        promotion_id: promotion_id(),
        order_id: order(number),
        reason,
        now: at(30),
    }
}

fn after(commands: &[PromotionCommand]) -> Scenario<Promotion> {
    let mut all = vec![create_with(|_| {})];
    all.extend_from_slice(commands);
    Scenario::given(run::<Promotion>(&all).1)
}

fn quote(promotion: &Promotion, buyer: u128, amount: i64) -> Result<i64, RedemptionFailure> {
    promotion.quote((user(SELLER), user(buyer)), dong(amount), at(20))
}

#[test]
fn a_code_has_one_spelling_and_one_promotion() {
    let decided = Scenario::<Promotion>::new().when(create_with(|_| {}));
    let events = decided.outcome.as_ref().unwrap();
    let [PromotionEvent::Created(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.code.as_str(), event.promotion_id), ("SPRING-10", promotion_id()));
    decided
        .then_types(&["promotion.created"])
        .when(create_with(|_| {}))
        .then_rejected("promotion_code_taken");
}

#[test]
fn who_may_not_offer_a_code_hears_why() {
    let refused = |code: &str, change: fn(&mut NewPromotion)| {
        Scenario::<Promotion>::new().when(create_with(change)).then_rejected(code);
    };
    refused("forbidden", |new| new.caller = stranger());
    refused("forbidden", |new| new.seller_standing = None);
    refused("seller_not_verified", |new| {
        new.seller_standing = Some(VerificationStatus::Pending);
    });
    refused("invalid", |new| {
        new.caller = admin();
        new.seller_standing = None;
    });
    for code in ["", "ab", "with space", "naïve", &"x".repeat(33)] {
        let create = create_with(|new| new.code = code.to_owned());
        Scenario::<Promotion>::new().when(create).then_rejected("invalid");
    }
    refused("invalid", |new| new.discount = Discount::Percentage { percentage: 0 });
    refused("invalid", |new| new.discount = Discount::Percentage { percentage: 100 });
    refused("invalid", |new| new.discount = Discount::Amount { money: dong(0) });
    refused("invalid", |new| {
        new.discount = Discount::Amount { money: Money::new(5, Currency::Usd) };
    });
    refused("invalid", |new| new.minimum = Some(dong(-1)));
    refused("invalid", |new| new.valid_until = new.valid_from);
    refused("invalid", |new| new.uses_max = 0);
    refused("invalid", |new| new.uses_per_buyer_max = 3);
    Scenario::<Promotion>::new()
        .when(create_with(|new| new.caller = admin()))
        .then_types(&["promotion.created"]);
}

#[test]
fn uses_are_held_and_given_back_and_never_too_many() {
    after(&[])
        .when(redeem(1, BUYER, 20))
        .then_types(&["promotion.redeemed"])
        .when(redeem(1, BUYER, 21))
        .then([])
        .when(redeem(2, BUYER, 22))
        .then_types(&["promotion.redemption_refused"])
        .when(redeem(3, STRANGER, 23))
        .then_types(&["promotion.redeemed"])
        .when(redeem(4, 7, 24))
        .then_types(&["promotion.redemption_refused"])
        .when(release(1))
        .and_state(|promotion| assert_eq!(promotion.details.as_ref().unwrap().uses, 1))
        .then_types(&["promotion.redemption_released"])
        .when(release(1))
        .then([])
        // What was given back, or refused, is not had again by the same order.
        .when(redeem(1, BUYER, 31))
        .then([])
        .when(release(2))
        .then([])
        .when(redeem(5, BUYER, 32))
        .then_types(&["promotion.redeemed"]);
    after(&[])
        .when(release(1))
        .then_types(&["promotion.redemption_barred"])
        .when(redeem(1, BUYER, 31))
        .and_state(|promotion| assert_eq!(promotion.details.as_ref().unwrap().uses, 0))
        .then([]);
}

#[test]
fn a_code_counts_when_it_should_and_not_otherwise() {
    use RedemptionFailure as F;
    let (promotion, _) = run::<Promotion>(&[create_with(|_| {})]);
    assert_eq!(quote(&promotion, BUYER, 1_009), Ok(100), "rounded down");
    assert_eq!(quote(&promotion, BUYER, 499), Err(F::PromotionMinimumNotReached));
    let asked = |seller: u128, money: Money, seconds: u64| {
        promotion.quote((user(seller), user(BUYER)), money, at(seconds))
    };
    assert_eq!(asked(STRANGER, dong(900), 20), Err(F::PromotionUnknown));
    assert_eq!(asked(SELLER, dong(900), 9), Err(F::PromotionNotYetValid));
    assert_eq!(asked(SELLER, dong(900), 10), Ok(90));
    assert_eq!(asked(SELLER, dong(900), UNTIL), Err(F::PromotionExpired));
    let dollars = Money::new(900, Currency::Usd);
    assert_eq!(asked(SELLER, dollars, 20), Err(F::PromotionNotApplicable));
    assert_eq!(quote(&Promotion::default(), BUYER, 900), Err(F::PromotionUnknown));

    let ended = PromotionCommand::End { caller: seller(), now: at(15) };
    let (promotion, _) = run::<Promotion>(&[create_with(|_| {}), ended.clone()]);
    assert_eq!(quote(&promotion, BUYER, 900), Err(F::PromotionEnded));
    after(std::slice::from_ref(&ended)).when(ended).then([]);
    let by_buyer = PromotionCommand::End { caller: buyer(), now: at(15) };
    after(&[]).when(by_buyer).then_rejected("forbidden");

    let amount = create_with(|new| new.discount = Discount::Amount { money: dong(600) });
    let (promotion, _) = run::<Promotion>(&[amount]);
    assert_eq!(quote(&promotion, BUYER, 601), Ok(600));
    assert_eq!(quote(&promotion, BUYER, 600), Err(F::PromotionNotApplicable), "nothing is left");
    // What the buyer saw counts, or nothing does.
    let decided = after(&[]).when(PromotionCommand::Redeem {
        promotion_id: promotion_id(),
        order_id: order(1),
        buyer_id: user(BUYER),
        seller_id: user(SELLER),
        subtotal: dong(1_005),
        discount: 99,
        now: at(20),
    });
    let events = decided.outcome.as_ref().unwrap();
    let [PromotionEvent::Refused(refused)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(refused.reason, F::PromotionChanged);
}

#[test]
fn reasons_have_one_name() {
    use RedemptionFailure as F;
    for reason in [
        F::PromotionUnknown,
        F::PromotionEnded,
        F::PromotionNotYetValid,
        F::PromotionExpired,
        F::PromotionUsedUp,
        F::PromotionUsedByBuyer,
        F::PromotionMinimumNotReached,
        F::PromotionNotApplicable,
        F::PromotionChanged,
    ] {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        assert!(!reason.in_words().is_empty());
    }
}

/// A code of the market counts for every seller; only administrators keep it.
#[test]
fn the_market_offers_codes_for_everybody() {
    let of_market = |caller: Caller| {
        create_with(|new| {
            new.caller = caller;
            new.seller_id = UserId::ADMINISTRATORS;
            new.seller_standing = None;
        })
    };
    for caller in [seller(), buyer()] {
        Scenario::<Promotion>::new().when(of_market(caller)).then_rejected("forbidden");
    }
    let (promotion, _) = run::<Promotion>(&[of_market(admin())]);
    assert!(promotion.details.as_ref().unwrap().is_the_markets());
    for seller in [SELLER, STRANGER] {
        let off = promotion.quote((user(seller), user(BUYER)), dong(1_000), at(20));
        assert_eq!(off, Ok(100));
    }
    let end = |caller| PromotionCommand::End { caller, now: at(30) };
    Scenario::<Promotion>::given(run::<Promotion>(&[of_market(admin())]).1)
        .when(end(seller()))
        .then_rejected("forbidden")
        .when(end(admin()))
        .then_types(&["promotion.ended"]);
}

proptest! {
    /// Whatever comes in whatever order, the uses are those of the orders that hold one, and never
    /// more than there may be.
    #[test]
    fn the_count_is_right_whatever_comes(
        steps in prop::collection::vec((any::<bool>(), 1u128..6, 1u128..4), 0..30),
    ) {
        let mut commands = vec![create_with(|new| new.uses_max = 3)];
        commands.extend(steps.into_iter().map(|(takes, number, buyer)| {
            if takes { redeem(number, buyer, 20) } else { release(number) }
        }));
        let (state, history) = run::<Promotion>(&commands);
        let held = |redemption: &&Redemption| matches!(redemption, Redemption::Held { .. });
        let uses = state.redemptions.values().filter(held).count();
        prop_assert_eq!(state.details.as_ref().unwrap().uses as usize, uses);
        prop_assert!(uses <= 3);
        assert_folds(&state, &history);
    }
}
