//! What MoMo's result codes mean here. A code that is not known is neither paid nor failed.

/// What a code says of a payment or of a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It is done: the session exists, the money is there, the money is back.
    Success,
    /// The buyer agreed, and the money is held but not taken.
    Authorised,
    /// It is under way: the buyer or somebody behind MoMo has yet to act.
    Waiting,
    /// MoMo cannot say now: ask later.
    Unclear,
    /// The request's id or the order's was used before: what came of it is known by asking.
    Used,
    /// MoMo knows nothing of it.
    Absent,
    /// MoMo does not let us in: somebody must look at the settings.
    Locked,
    /// MoMo will never take this request: it is wrong. The reason is a stable code.
    Invalid(&'static str),
    /// It came to nothing, for good. The reason is a stable code.
    Failed(&'static str),
    /// The refund came to nothing, and another one may be tried in a while.
    RefundFailed,
    /// MoMo will not give it back: it has gone back already, or more than is left was asked for.
    RefundRejected,
    /// MoMo cannot give it back: somebody must.
    NotRefundable,
}

/// What a code means.
pub fn meaning(code: i64) -> Meaning {
    match code {
        0 => Meaning::Success,
        9000 => Meaning::Authorised,
        1000 | 7000 | 7002 => Meaning::Waiting,
        40 | 41 => Meaning::Used,
        42 => Meaning::Absent,
        11..=13 => Meaning::Locked,
        20 => Meaning::Invalid("request_malformed"),
        21 => Meaning::Invalid("amount_invalid"),
        22 => Meaning::Invalid("amount_out_of_range"),
        45 => Meaning::Invalid("duplicate_item"),
        47 => Meaning::Invalid("request_inapplicable"),
        2019 => Meaning::Invalid("order_group_invalid"),
        98 => Meaning::Failed("qr_not_generated"),
        1001 => Meaning::Failed("insufficient_funds"),
        1002 => Meaning::Failed("issuer_declined"),
        1003 => Meaning::Failed("authorisation_cancelled"),
        1004 => Meaning::Failed("limit_exceeded"),
        1005 => Meaning::Failed("payment_expired"),
        1006 => Meaning::Failed("buyer_declined"),
        1007 => Meaning::Failed("account_inactive"),
        1017 => Meaning::Failed("cancelled_by_merchant"),
        1026 => Meaning::Failed("promotion_refused"),
        4001 => Meaning::Failed("buyer_restricted"),
        4002 => Meaning::Failed("buyer_not_verified"),
        4100 => Meaning::Failed("buyer_login_failed"),
        1080 => Meaning::RefundFailed,
        1081 => Meaning::RefundRejected,
        1088 => Meaning::NotRefundable,
        // Maintenance (10), a similar transaction under way (43), an error that MoMo itself does not
        // know (99), and whatever MoMo adds.
        _ => Meaning::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_handling_and_unknown_ones_decide_nothing() {
        let failed = [98, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1017, 1026, 4001, 4002, 4100];
        for code in failed {
            assert!(matches!(meaning(code), Meaning::Failed(_)), "{code}");
        }
        for code in [20, 21, 22, 45, 47, 2019] {
            assert!(matches!(meaning(code), Meaning::Invalid(_)), "{code}");
        }
        for (codes, expected) in [
            (&[0][..], Meaning::Success),
            (&[9000], Meaning::Authorised),
            (&[1000, 7000, 7002], Meaning::Waiting),
            (&[40, 41], Meaning::Used),
            (&[42], Meaning::Absent),
            (&[11, 12, 13], Meaning::Locked),
            (&[10, 43, 99, 1, -1, 5000, i64::MAX], Meaning::Unclear),
            (&[1080], Meaning::RefundFailed),
            (&[1081], Meaning::RefundRejected),
            (&[1088], Meaning::NotRefundable),
        ] {
            for code in codes {
                assert_eq!(meaning(*code), expected, "{code}");
            }
        }
    }
}
