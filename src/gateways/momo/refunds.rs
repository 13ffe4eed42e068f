//! What MoMo says of a refund: in the answer to it, and in its list of what went back of a payment.

use super::client::Reply;
use super::codes::{Meaning, meaning};
use crate::gateways::payment::{OtherRefund, Refund, RefundAnswer};

/// An error that MoMo itself does not know. In an answer it says nothing; once MoMo lists it, it is
/// final.
const UNKNOWN_ERROR: i64 = 99;

/// What became of a refund, from what MoMo lists of its payment; none: it is to be asked for. What
/// another refund of ours is at decides nothing here.
pub(super) fn listed(refund: &Refund, payment: &Reply) -> Option<RefundAnswer> {
    let listed: Vec<Reply> = payment.items("refundTrans").collect();
    own(refund, &listed).or_else(|| elsewhere(refund, &listed))
}

/// The answer to a refund that is said to be made: of the right sum, or it must be looked into.
pub(super) fn made(refund: &Refund, said: &Reply) -> RefundAnswer {
    if said.integer("amount") == Some(refund.amount.amount) {
        return RefundAnswer::Refunded { provider_reference: number_of(said) };
    }
    tracing::error!("MoMo says that it gave back another sum than was asked for");
    RefundAnswer::Unclear
}

/// What the refund's own attempts are at. Those before the latest have come to nothing, unless it
/// turns out otherwise.
fn own(refund: &Refund, listed: &[Reply]) -> Option<RefundAnswer> {
    let attempts = || listed.iter().filter(|item| is_attempt(item, refund));
    if let Some(item) = attempts().find(|item| is_made(item)) {
        return Some(made(refund, item));
    }
    if attempts().any(|item| meaning(item.code()) == Meaning::Waiting) {
        return Some(RefundAnswer::Pending);
    }
    let latest = attempts().find(|item| item.text("orderId") == refund.idempotency_key)?;
    match (latest.code(), meaning(latest.code())) {
        (UNKNOWN_ERROR, _) => Some(RefundAnswer::Refused("unknown_error".to_owned())),
        (_, Meaning::RefundFailed) => Some(RefundAnswer::Failed("refund_failed".to_owned())),
        (_, Meaning::Unclear) => Some(RefundAnswer::Unclear),
        _ => None,
    }
}

/// Whether somebody gave it back by other means: more has gone back than our other refunds account
/// for. What may yet turn out to be this very money must be looked into.
fn elsewhere(refund: &Refund, listed: &[Reply]) -> Option<RefundAnswer> {
    let wanted = refund.amount.amount;
    let is_theirs = |other: &&OtherRefund| {
        other.done || listed.iter().any(|item| is_made(item) && is_key(item, &other.keys))
    };
    let theirs = sum(refund.others.iter().filter(is_theirs).map(|other| other.amount));
    let back = sum(listed.iter().filter(|item| is_made(item)).map(amount));
    let left_over = back.saturating_sub(theirs);
    let is_unknown = |item: &&Reply| {
        let is_others = refund.others.iter().any(|other| is_key(item, &other.keys));
        !is_others && !is_attempt(item, refund)
    };
    let unknown = || listed.iter().filter(is_unknown);
    if left_over >= wanted {
        let provider_reference = unknown().rfind(|item| is_made(item)).map(number_of)?;
        return Some(RefundAnswer::Refunded { provider_reference });
    }
    let is_open = |item: &&Reply| {
        let meaning = meaning(item.code());
        meaning == Meaning::Waiting || (meaning == Meaning::Unclear && item.code() != UNKNOWN_ERROR)
    };
    let open = sum(unknown().filter(is_open).map(amount));
    (open > 0 && left_over.saturating_add(open) >= wanted).then_some(RefundAnswer::Unclear)
}

fn is_key(item: &Reply, keys: &[String]) -> bool {
    keys.iter().any(|key| key == item.text("orderId"))
}

fn is_attempt(item: &Reply, refund: &Refund) -> bool {
    item.text("orderId") == refund.idempotency_key || is_key(item, &refund.earlier_keys)
}

fn is_made(item: &Reply) -> bool {
    meaning(item.code()) == Meaning::Success
}

fn amount(item: &Reply) -> i64 {
    item.integer("amount").unwrap_or(0)
}

fn sum(amounts: impl Iterator<Item = i64>) -> i64 {
    amounts.fold(0, i64::saturating_add)
}

fn number_of(reply: &Reply) -> String {
    reply.integer("transId").unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{refund, reply};
    use super::*;

    fn item(order: &str, code: i64, amount: i64) -> Value {
        json!({ "orderId": order, "resultCode": code, "amount": amount, "transId": 9 })
    }

    fn of(refund: &Refund, items: &Value) -> Option<RefundAnswer> {
        listed(refund, &reply(&json!({ "resultCode": 0, "refundTrans": items })))
    }

    fn other(key: &str, amount: i64, done: bool) -> OtherRefund {
        OtherRefund { keys: vec![key.to_owned()], amount, done }
    }

    fn refunded() -> Option<RefundAnswer> {
        Some(RefundAnswer::Refunded { provider_reference: "9".to_owned() })
    }

    #[test]
    fn money_that_went_back_is_not_given_back_again() {
        let listed = |items: Value| of(&refund(), &items);
        assert_eq!(listed(json!(null)), None);
        assert_eq!(listed(json!([])), None);
        assert_eq!(listed(json!([item("refund-1", 0, 50_000)])), refunded());
        assert_eq!(listed(json!([item("by-hand", 0, 50_000)])), refunded());
        let twice = json!([item("by-hand", 0, 20_000), item("by-hand-2", 0, 30_000)]);
        assert_eq!(listed(twice), refunded());
        assert_eq!(listed(json!([item("by-hand", 0, 10_000)])), None);
        assert_eq!(listed(json!([item("by-hand", 1080, 50_000)])), None);
        assert_eq!(listed(json!([item("refund-1", 7000, 50_000)])), Some(RefundAnswer::Pending));
        let failed = Some(RefundAnswer::Failed("refund_failed".to_owned()));
        assert_eq!(listed(json!([item("refund-1", 1080, 50_000)])), failed);
    }

    #[test]
    fn what_our_other_refunds_gave_back_is_theirs() {
        let of_two = |done| Refund { others: vec![other("other", 50_000, done)], ..refund() };
        let items = json!([item("other", 0, 50_000)]);
        assert_eq!(of(&of_two(true), &items), None);
        // Nor when nobody has heard yet that it was made.
        assert_eq!(of(&of_two(false), &items), None);
        let both = json!([item("other", 0, 50_000), item("by-hand", 0, 50_000)]);
        assert_eq!(of(&of_two(true), &both), refunded());
        // By hand, and once: the other refund went by that already.
        let by_hand = json!([item("by-hand", 0, 50_000)]);
        assert_eq!(of(&of_two(true), &by_hand), None);
        assert_eq!(of(&of_two(false), &by_hand), refunded());
        assert_eq!(of(&of_two(true), &json!([item("by-hand", 0, 100_000)])), refunded());
    }

    #[test]
    fn an_attempt_that_was_given_up_may_have_been_made_after_all() {
        let again = Refund {
            idempotency_key: "refund-1b".to_owned(),
            earlier_keys: vec!["refund-1".to_owned()],
            ..refund()
        };
        assert_eq!(of(&again, &json!([item("refund-1", 0, 50_000)])), refunded());
        let under_way = json!([item("refund-1", 7002, 50_000)]);
        assert_eq!(of(&again, &under_way), Some(RefundAnswer::Pending));
        for code in [99, 1080, 10, 123_456] {
            assert_eq!(of(&again, &json!([item("refund-1", code, 50_000)])), None, "{code}");
        }
    }

    #[test]
    fn only_what_concerns_the_refund_holds_it_up() {
        let refund = Refund { others: vec![other("other", 50_000, false)], ..refund() };
        let unclear = Some(RefundAnswer::Unclear);
        for code in [10, 43, 99, 123_456, 7000] {
            assert_eq!(of(&refund, &json!([item("other", code, 50_000)])), None, "{code}");
            assert_eq!(of(&refund, &json!([item("by-hand", code, 49_999)])), None, "{code}");
        }
        for code in [10, 43, 123_456] {
            assert_eq!(of(&refund, &json!([item("refund-1", code, 50_000)])), unclear, "{code}");
        }
        // It may be this very money that goes back so.
        for code in [10, 43, 123_456, 7000] {
            assert_eq!(of(&refund, &json!([item("by-hand", code, 50_000)])), unclear, "{code}");
        }
        assert_eq!(of(&refund, &json!([item("by-hand", 99, 50_000)])), None);
        let refused = Some(RefundAnswer::Refused("unknown_error".to_owned()));
        assert_eq!(of(&refund, &json!([item("refund-1", 99, 50_000)])), refused);
    }

    #[test]
    fn a_refund_of_another_sum_is_not_the_one_that_was_asked_for() {
        let said = |amount: Value| {
            made(&refund(), &reply(&json!({ "resultCode": 0, "transId": 9, "amount": amount })))
        };
        assert_eq!(Some(said(json!(50_000))), refunded());
        for wrong in [json!(49_999), json!(500_000), json!(null)] {
            assert_eq!(said(wrong.clone()), RefundAnswer::Unclear, "{wrong}");
        }
        let less = json!([item("refund-1", 0, 5_000)]);
        assert_eq!(of(&refund(), &less), Some(RefundAnswer::Unclear));
    }
}
