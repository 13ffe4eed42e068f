//! Every metric there is, with what it says: the `HELP` lines of `/metrics`. The table in
//! `docs/operations.md` has their labels too, and a test holds both against the sources.

/// Each metric's name and what it says.
pub const METRICS: &[(&str, &str)] = &[
    ("souk_build_info", "always 1; its labels say what runs"),
    ("souk_http_requests_total", "requests answered"),
    ("souk_http_request_duration_seconds", "how long they took"),
    ("souk_http_connections", "open connections"),
    ("souk_streams_open", "open streams of events"),
    ("souk_streams_cut_total", "streams that ended because their reader did not keep up"),
    ("souk_search_queries_total", "searches of listings that found something, or nothing"),
    (
        "souk_health_checks_total",
        "looks at what `/readyz` says, every HEALTH_CHECK_INTERVAL: ok, failed",
    ),
    ("souk_commands_total", "commands answered"),
    (
        "souk_command_duration_seconds",
        "how long commands took until they were durable and answered",
    ),
    (
        "souk_commands_refused_total",
        "commands that were not taken (503): overloaded, draining, journal_unavailable, restarting, quarantined, deadline_passed, disk_low",
    ),
    (
        "souk_mailbox_wait_seconds",
        "how long commands and reads waited in a mailbox before they were run",
    ),
    ("souk_aggregates_active", "live actors"),
    ("souk_aggregate_activations_total", "actors started"),
    (
        "souk_aggregate_restarts_total",
        "actors that ended in a failure: panic, append_lost, damaged",
    ),
    (
        "souk_mailbox_lost_total",
        "commands that were queued and given back, with 503, because the actor could not be started or was quarantined",
    ),
    ("souk_journal_appends_total", "commits"),
    ("souk_journal_append_duration_seconds", "how long a commit took"),
    ("souk_journal_append_retries_total", "appends tried again"),
    (
        "souk_hottest_aggregate_share",
        "what part of all commands and reads one aggregate takes lately, 0 to 1; GET /admin/hotkeys says which",
    ),
    ("souk_journal_writable", "1: every partition's journal takes appends; 0: one does not"),
    ("souk_journal_batch_events", "events per commit"),
    ("souk_sagas_active", "sagas that are not over"),
    ("souk_saga_duration_seconds", "how long sagas took from their first fact to their end"),
    (
        "souk_commands_in_flight",
        "commands that are not answered yet, from outside and from inside (sagas, timers, subscribers)",
    ),
    (
        "souk_mailbox_depth",
        "commands queued or waiting for durability at single live aggregates: median, 99th percentile, the most",
    ),
    (
        "souk_payment_provider_calls_total",
        "calls of payment providers outside: answered, refused, no_answer",
    ),
    ("souk_payment_notices_total", "what they told by themselves"),
    ("souk_trace_spans_total", "spans of traces, where they are sent: exported, failed, dropped"),
    (
        "souk_audit_missing_events",
        "what the latest audit of everything found missing; 0, or something is wrong",
    ),
    ("souk_audit_completed_timestamp_seconds", "when the latest audit that ran by itself was over"),
    (
        "souk_disk_free_bytes",
        "what is left for the files of SQLite: journal, read; see DISK_FREE_MIN",
    ),
    ("souk_disk_low", "1: nothing new is taken from outside for want of disk space"),
    ("souk_memory_limit_bytes", "how much memory the process may use; see MEMORY_LIMIT_BYTES"),
    ("souk_memory_high", "1: nothing new is taken from outside for want of memory"),
    (
        "souk_webhook_deliveries_total",
        "messages to webhooks: delivered, failed (tried again), exhausted (given up), deferred",
    ),
    ("souk_events_rejected_total", "events from outside that were refused"),
    ("souk_journal_position", "the newest committed position"),
    (
        "souk_events_published_total",
        "events that passed the broker; context is the type's first word",
    ),
    (
        "souk_events_consumed_total",
        "events handled; duplicate: all that they lead to was done before (a replay, or a repeat after a crash), else handled",
    ),
    ("souk_event_handler_duration_seconds", "how long one attempt of a handler took"),
    ("souk_event_handler_failures_total", "failed attempts: transient, permanent, system"),
    ("souk_event_end_to_end_seconds", "from an event's decision until it was handled"),
    ("souk_flow_duration_seconds", "from a request until the last event that it led to"),
    ("souk_deliveries_retried_total", "attempts after a transient failure"),
    ("souk_subscription_lag_events", "positions behind the head"),
    (
        "souk_subscription_lag_seconds",
        "age of the oldest event that is not handled; 0: there is none",
    ),
    (
        "souk_subscription_oldest_unacked_seconds",
        "how long an event has been in a handler's hand, at most",
    ),
    (
        "souk_subscription_up",
        "1: its actor runs, and does not stand still at a damaged event or for want of room for letters",
    ),
    ("souk_subscription_damaged", "1: it waits at a damaged event"),
    ("souk_projection_position", "how far a read model is; NaN: the version was discarded"),
    ("souk_circuit_state", "0 closed, 1 half open, 2 open"),
    ("souk_dlq_letters", "letters now: dead, waiting and skipped"),
    (
        "souk_dlq_dead_letters",
        "dead letters now, without those that wait behind them; one a key where order is kept",
    ),
    ("souk_dlq_blocked_keys", "keys that wait behind a dead letter"),
    ("souk_dlq_full", "1: it stands still, there is no room for another letter"),
    ("souk_dlq_letters_total", "letters that died"),
    ("souk_dlq_resolved_total", "letters that are gone or set aside: retry, skip, discard"),
];
