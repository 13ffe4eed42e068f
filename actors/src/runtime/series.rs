//! What stands at 0 from the start. A counter that appears with its first count shows no increase,
//! and a rule about what has never happened yet finds nothing.

use crate::retry::FailureKind;

/// Why commands are not taken, as far as the runtime refuses them by itself.
const REFUSALS: [&str; 6] = [
    "overloaded",
    "draining",
    "journal_unavailable",
    "restarting",
    "quarantined",
    "deadline_passed",
];

/// What the journal's writers count and measure.
pub(super) fn of_journal() {
    metrics::counter!("souk_journal_appends_total").increment(0);
    metrics::counter!("souk_journal_append_retries_total").increment(0);
    let _ = metrics::histogram!("souk_journal_append_duration_seconds");
    let _ = metrics::histogram!("souk_journal_batch_events");
}

/// What is counted of the aggregates of a type.
pub(super) fn of_aggregate(name: &'static str) {
    metrics::counter!("souk_aggregate_activations_total", "aggregate_type" => name).increment(0);
    metrics::gauge!("souk_aggregates_active", "aggregate_type" => name).increment(0.0);
    metrics::counter!("souk_mailbox_lost_total", "aggregate_type" => name).increment(0);
    let _ = metrics::histogram!("souk_mailbox_wait_seconds", "aggregate_type" => name);
    for reason in ["panic", "append_lost", "damaged"] {
        metrics::counter!("souk_aggregate_restarts_total", "aggregate_type" => name, "reason" => reason)
            .increment(0);
    }
    for reason in REFUSALS {
        of_refusal(name, reason);
    }
}

/// What is counted of the commands to aggregates of a type that are not taken for a reason.
pub(super) fn of_refusal(name: &'static str, reason: &'static str) {
    metrics::counter!("souk_commands_refused_total", "aggregate_type" => name, "reason" => reason)
        .increment(0);
}

/// What is counted of a subscription.
pub(super) fn of_subscription(name: &'static str) {
    for outcome in ["handled", "duplicate"] {
        metrics::counter!("souk_events_consumed_total", "subscription" => name, "outcome" => outcome)
            .increment(0);
    }
    metrics::counter!("souk_deliveries_retried_total", "subscription" => name).increment(0);
    for kind in [FailureKind::Transient, FailureKind::Permanent, FailureKind::System] {
        metrics::counter!("souk_event_handler_failures_total", "subscription" => name, "class" => kind.as_str())
            .increment(0);
    }
    // What fails because of the world waits, and never becomes a letter.
    for kind in [FailureKind::Transient, FailureKind::Permanent] {
        metrics::counter!("souk_dlq_letters_total", "subscription" => name, "class" => kind.as_str())
            .increment(0);
    }
    for verb in ["retry", "skip", "discard"] {
        metrics::counter!("souk_dlq_resolved_total", "subscription" => name, "verb" => verb)
            .increment(0);
    }
}

/// What is measured of a saga.
pub(super) fn of_saga(name: &'static str) {
    for outcome in ["COMPLETED", "COMPENSATED"] {
        let _ =
            metrics::histogram!("souk_saga_duration_seconds", "saga" => name, "outcome" => outcome);
    }
}
