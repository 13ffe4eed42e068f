use super::*;
use crate::domain::testing::{at, order};

const DAYS: u64 = 24 * 60 * 60;

fn funded() -> Parts {
    Parts {
        escrow: EscrowStatus::Funded,
        sent_at: None,
        arrived_at: None,
        is_contested: false,
        listings: BTreeSet::new(),
    }
}

/// What follows when the order's thirty days are over, and an hour has passed since.
fn when_due(parts: &Parts) -> Vec<MarketCommand> {
    let due = OrderSettlementDue { order_id: order(1), due_at: at(30 * DAYS) };
    follow(&OrderEvent::SettlementDue(due), parts, at(30 * DAYS + 3_600))
}

#[test]
fn what_left_in_time_is_paid_for_and_what_left_late_waits() {
    let now = at(30 * DAYS + 3_600);
    let sent = |at| Parts { sent_at: Some(at), ..funded() };
    assert_eq!(when_due(&sent(at(0))), [let_go(order(1), now)]);
    assert_eq!(when_due(&sent(at(3_600))), [let_go(order(1), now)]);
    let until = at(40 * DAYS);
    let later = OrderCommand::PostponeSettlement { until, now };
    assert_eq!(when_due(&sent(at(10 * DAYS))), [MarketCommand::Order(order(1), later)]);
    assert_eq!(when_due(&funded()), [never_sent(order(1), now)]);
}

#[test]
fn what_arrived_meanwhile_has_its_own_time() {
    let now = at(30 * DAYS + 3_600);
    let arrived = |at_| Parts { sent_at: Some(at(DAYS)), arrived_at: Some(at_), ..funded() };
    assert_eq!(when_due(&arrived(at(23 * DAYS))), [let_go(order(1), now)]);
    assert_eq!(when_due(&arrived(at(23 * DAYS + 1))), []);
    assert_eq!(when_due(&arrived(at(30 * DAYS + 60))), []);
}

#[test]
fn nothing_is_paid_for_while_a_decision_is_open() {
    let contested = Parts { sent_at: Some(at(0)), is_contested: true, ..funded() };
    assert_eq!(when_due(&contested), []);
    assert_eq!(received(order(1), true, at(1)), None);
    assert_eq!(received(order(1), false, at(1)), Some(let_go(order(1), at(1))));
}
