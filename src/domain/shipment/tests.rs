use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{
    BUYER, SELLER, admin, assert_folds, at, buyer, order, run, seller, stranger, user,
};

fn create() -> ShipmentCommand {
    let shipment_id = ShipmentId::of(order(1));
    ShipmentCommand::Create {
        shipment_id,
        order_id: order(1),
        seller_id: user(SELLER),
        buyer_id: user(BUYER),
        tracking_number: shipment_id.tracking_number(),
        now: at(0),
    }
}

fn dispatch(caller: Caller) -> ShipmentCommand {
    ShipmentCommand::Dispatch { caller, now: at(1) }
}

fn deliver(caller: Caller) -> ShipmentCommand {
    ShipmentCommand::Deliver { caller, now: at(2) }
}

fn cancel() -> ShipmentCommand {
    let (shipment_id, order_id) = (ShipmentId::of(order(1)), order(1));
    ShipmentCommand::Cancel { shipment_id, order_id, reason: "order_cancelled".into(), now: at(3) }
}

fn after(commands: &[ShipmentCommand]) -> Scenario<Shipment> {
    Scenario::given(run::<Shipment>(commands).1)
}

#[test]
fn a_shipment_goes_its_way() {
    Scenario::<Shipment>::new()
        .when(create())
        .then_types(&["shipment.created"])
        .when(create())
        .then([])
        .when(deliver(seller()))
        .then_rejected("invalid_transition")
        .when(dispatch(buyer()))
        .then_rejected("forbidden")
        .when(dispatch(seller()))
        .then_types(&["shipment.dispatched"])
        .when(dispatch(admin()))
        .then([])
        .when(cancel())
        .then_rejected("invalid_transition")
        .when(deliver(stranger()))
        .then_rejected("forbidden")
        .when(deliver(buyer()))
        .and_state(|shipment| {
            let details = shipment.details.as_ref().unwrap();
            assert_eq!(details.status, ShipmentStatus::Delivered);
            assert_eq!((details.dispatched_at, details.delivered_at), (Some(at(1)), Some(at(2))));
        })
        .then_types(&["shipment.delivered"])
        .when(deliver(seller()))
        .then([])
        .when(dispatch(seller()))
        .then([])
        .when(cancel())
        .then_rejected("invalid_transition");
}

#[test]
fn nothing_happens_to_a_shipment_that_never_was() {
    Scenario::<Shipment>::new().when(dispatch(seller())).then_rejected("not_found");
    Scenario::<Shipment>::new().when(deliver(seller())).then_rejected("not_found");
}

#[test]
fn a_cancelled_shipment_stays_cancelled_whether_it_was_created_or_not() {
    for before in [vec![], vec![create()]] {
        after(&before)
            .when(cancel())
            .then_types(&["shipment.cancelled"])
            .when(cancel())
            .then([])
            .when(create())
            .then_rejected("shipment_cancelled")
            .when(dispatch(seller()))
            .then_rejected("shipment_cancelled")
            .when(deliver(seller()))
            .then_rejected("shipment_cancelled");
    }
}

#[test]
fn histories_fold_in_parts() {
    for commands in [
        vec![create(), dispatch(seller()), deliver(buyer())],
        vec![create(), cancel()],
        vec![cancel()],
    ] {
        let (state, history) = run::<Shipment>(&commands);
        assert_eq!(history.len(), commands.len());
        assert_folds(&state, &history);
    }
}
