use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{assert_folds, at, run, user};

fn claim(number: u128) -> EmailClaimCommand {
    EmailClaimCommand::Claim { user_id: user(number), now: at(0), expires_at: at(60) }
}

fn confirm(number: u128) -> EmailClaimCommand {
    EmailClaimCommand::Confirm { user_id: user(number), now: at(1) }
}

fn release(number: u128) -> EmailClaimCommand {
    EmailClaimCommand::Release { user_id: user(number), now: at(2) }
}

fn set(seconds: u64) -> TimerChange {
    TimerChange::Set { name: "lapse".into(), at: at(seconds) }
}

#[test]
fn an_address_has_one_user() {
    Scenario::<EmailClaim>::new()
        .when(claim(1))
        .then_types(&["email_claim.claimed"])
        .when(claim(1))
        .then([])
        .when(claim(2))
        .then_rejected("email_taken")
        .when(confirm(2))
        .then_rejected("not_the_holder")
        .when(confirm(1))
        .then_types(&["email_claim.confirmed"])
        .when(confirm(1))
        .then([])
        .when(claim(2))
        .then_rejected("email_taken");
}

#[test]
fn a_released_address_can_be_claimed_again() {
    Scenario::<EmailClaim>::new()
        .when(release(1))
        .then([])
        .when(claim(1))
        .then_types(&["email_claim.claimed"])
        .when(release(2))
        .then([])
        .when(release(1))
        .then_types(&["email_claim.released"])
        .when(confirm(1))
        .then_rejected("not_the_holder")
        .when(claim(2))
        .then_types(&["email_claim.claimed"]);
}

#[test]
fn an_unconfirmed_claim_lapses_again_and_again() {
    let lapse = |seconds| EmailClaimCommand::Lapse { now: at(seconds) };
    let claimed = Scenario::<EmailClaim>::new().when(claim(1));
    assert_eq!(claimed.timers, [set(60)]);
    assert_eq!(claimed.state.on_timer("lapse", at(60)), Some(lapse(60)));
    assert_eq!(claimed.state.on_timer("other", at(60)), None);
    let lapsed = claimed.then_types(&["email_claim.claimed"]).when(lapse(60));
    assert_eq!(lapsed.timers, [set(360)]);
    let confirmed = lapsed.then_types(&["email_claim.lapsed"]).when(confirm(1));
    assert_eq!(confirmed.timers, [TimerChange::Clear { name: "lapse".into() }]);
    assert_eq!(confirmed.state.on_timer("lapse", at(360)), None);
    confirmed.then_types(&["email_claim.confirmed"]).when(lapse(360)).then([]);
    Scenario::<EmailClaim>::new().when(lapse(1)).then([]);
}

#[test]
fn histories_fold_in_parts() {
    let lapse = EmailClaimCommand::Lapse { now: at(60) };
    let (state, history) = run::<EmailClaim>(&[claim(1), lapse, release(1), claim(2), confirm(2)]);
    assert_eq!(history.len(), 5);
    assert_folds(&state, &history);
}
