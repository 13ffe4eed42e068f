use souk_actors::testing::Scenario;
use uuid::Uuid;

use super::*;
use crate::domain::testing::{BUYER, admin, assert_folds, at, buyer, run, stranger, user};

fn start() -> SessionCommand {
    let session_id = SessionId(Uuid::from_u128(4));
    let (user_id, now, expires_at) = (user(BUYER), at(0), at(100));
    SessionCommand::Start { session_id, user_id, epoch: 2, now, expires_at }
}

fn rotate(generation: u32, seconds: u64) -> SessionCommand {
    SessionCommand::Rotate { generation, now: at(seconds) }
}

fn revoke(caller: Caller) -> SessionCommand {
    SessionCommand::Revoke { caller, reason: "logout".into(), now: at(5) }
}

fn started() -> Scenario<Session> {
    Scenario::given(run::<Session>(&[start()]).1)
}

#[test]
fn each_generation_works_once() {
    started()
        .when(start())
        .then_rejected("already_started")
        .when(rotate(1, 1))
        .then_types(&["session.refreshed"])
        .when(rotate(2, 2))
        .and_state(|session| {
            let details = session.details.as_ref().unwrap();
            assert_eq!(details.generation, 3);
            assert!(details.is_open(at(99)) && !details.is_open(at(100)));
        })
        .then_types(&["session.refreshed"]);
}

#[test]
fn a_used_token_ends_the_session() {
    for wrong in [1, 3] {
        started()
            .when(rotate(1, 1))
            .then_types(&["session.refreshed"])
            .when(rotate(wrong, 2))
            .and_state(|session| {
                let details = session.details.as_ref().unwrap();
                assert_eq!(details.revoked.as_deref(), Some(REUSED));
                assert!(!details.is_open(at(3)));
            })
            .then_types(&["session.revoked"])
            .when(rotate(2, 3))
            .then_rejected("session_revoked");
    }
}

#[test]
fn a_session_ends_in_time() {
    Scenario::<Session>::new().when(rotate(1, 1)).then_rejected("not_found");
    started().when(rotate(1, 100)).then_rejected("session_expired");
}

#[test]
fn users_end_their_own_sessions() {
    Scenario::<Session>::new().when(revoke(buyer())).then_rejected("not_found");
    started().when(revoke(stranger())).then_rejected("forbidden");
    started().when(revoke(admin())).then_types(&["session.revoked"]);
    started()
        .when(revoke(buyer()))
        .then_types(&["session.revoked"])
        .when(revoke(buyer()))
        .then([])
        .when(rotate(1, 6))
        .then_rejected("session_revoked");
}

#[test]
fn histories_fold_in_parts() {
    let (state, history) = run::<Session>(&[start(), rotate(1, 1), rotate(2, 2), rotate(1, 3)]);
    assert_eq!(history.len(), 4);
    assert_folds(&state, &history);
}
