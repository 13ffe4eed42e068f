-- The journal, and the control tables that change in its transactions, in a schema of their own.
-- Numbers are bigint, times milliseconds since 1970-01-01T00:00:00Z, JSON is text.

CREATE TABLE settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);

-- Who may append to a partition: every append locks its row in share mode and checks the epoch.
-- The holder's database session tells whether its process is still there.
CREATE TABLE leases (
    partition     bigint PRIMARY KEY,
    epoch         bigint NOT NULL,
    holder        uuid,
    holder_name   text NOT NULL DEFAULT '',
    backend_pid   integer,
    backend_start timestamptz,
    expires_at    timestamptz NOT NULL DEFAULT '-infinity'
);

-- An integer number for each aggregate: it keeps the index of versions small and local.
CREATE TABLE streams (
    stream         bigint PRIMARY KEY,
    partition      bigint NOT NULL,
    aggregate_type text NOT NULL,
    aggregate_id   uuid NOT NULL
);
CREATE UNIQUE INDEX streams_aggregate ON streams (aggregate_id, aggregate_type);

-- seq = partition * 2^48 + position: one key for the order of each partition's log.
CREATE TABLE events (
    seq               bigint PRIMARY KEY,
    event_id          uuid NOT NULL,
    stream            bigint NOT NULL,
    aggregate_version bigint NOT NULL,
    aggregate_type    text NOT NULL,
    aggregate_id      uuid NOT NULL,
    event_type        text NOT NULL,
    major             bigint NOT NULL,
    minor             bigint NOT NULL,
    timestamp         bigint NOT NULL,
    correlation_id    text NOT NULL,
    causation_id      text NOT NULL,
    data              text NOT NULL,
    metadata          text NOT NULL,
    hash              bytea NOT NULL
);
CREATE UNIQUE INDEX events_version ON events (stream, aggregate_version);
CREATE UNIQUE INDEX events_id ON events (event_id);
CREATE INDEX events_correlation ON events (correlation_id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only';
END
$$;
CREATE TRIGGER events_are_final BEFORE UPDATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_are_kept BEFORE DELETE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_are_not_truncated BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE outcomes (
    command_id   uuid PRIMARY KEY,
    request_hash bytea NOT NULL,
    stream       bigint NOT NULL,
    version      bigint NOT NULL,
    events       bigint NOT NULL,
    rejection    text,
    at           bigint NOT NULL
);
CREATE INDEX outcomes_at ON outcomes (at);

-- A person's data key under the master key; NULL once destroyed.
CREATE TABLE person_keys (
    subject uuid PRIMARY KEY,
    wrapped bytea
);

CREATE TABLE timers (
    aggregate_id   uuid NOT NULL,
    aggregate_type text NOT NULL,
    name           text NOT NULL,
    partition      bigint NOT NULL,
    due            bigint NOT NULL,
    PRIMARY KEY (aggregate_id, aggregate_type, name)
);
CREATE INDEX timers_due ON timers (partition, due);

CREATE TABLE checkpoints (
    subscription text NOT NULL,
    partition    bigint NOT NULL,
    lane         bigint NOT NULL,
    lanes        bigint NOT NULL,
    position     bigint NOT NULL,
    PRIMARY KEY (subscription, partition, lane)
);

CREATE TABLE letters (
    partition       bigint NOT NULL,
    subscription    text NOT NULL,
    position        bigint NOT NULL,
    key             uuid NOT NULL,
    event_id        uuid NOT NULL,
    event_type      text NOT NULL,
    aggregate_id    uuid NOT NULL,
    state           text NOT NULL,
    class           text NOT NULL,
    error           text NOT NULL,
    attempts        bigint NOT NULL,
    first_failed_at bigint NOT NULL,
    last_failed_at  bigint NOT NULL,
    PRIMARY KEY (partition, subscription, position)
);

CREATE TABLE snapshots (
    stream  bigint PRIMARY KEY,
    version bigint NOT NULL,
    shape   bigint NOT NULL,
    state   text NOT NULL
);

-- Rows that the application keeps beside the journal.
CREATE TABLE control (
    space      text NOT NULL,
    key        bytea NOT NULL,
    value      bytea NOT NULL,
    expires_at bigint,
    PRIMARY KEY (space, key)
);
CREATE INDEX control_expiry ON control (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE quarantined (
    aggregate_type text NOT NULL,
    aggregate_id   uuid NOT NULL,
    partition      bigint NOT NULL,
    command_id     uuid NOT NULL,
    command        text NOT NULL,
    error_id       uuid NOT NULL,
    since          bigint NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id)
);

-- The journal is the outbox: this is how a relay sees it. In the order of the log.
CREATE VIEW outbox_events AS
SELECT
    e.event_id::text AS id,
    e.aggregate_type AS aggregate_type,
    e.aggregate_id::text AS aggregate_id,
    e.event_type AS event_type,
    e.data AS payload,
    to_char(to_timestamp(e.timestamp / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        AS created_at,
    CASE WHEN (e.seq & 281474976710655) <= coalesce(
        (SELECT min(c.position) FROM checkpoints c WHERE c.partition = e.seq >> 48), 0)
         THEN to_char(to_timestamp(e.timestamp / 1000.0) AT TIME ZONE 'UTC',
                      'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') END AS published_at,
    coalesce((SELECT max(l.attempts) FROM letters l
              WHERE l.partition = e.seq >> 48 AND l.position = (e.seq & 281474976710655)), 0)
        AS retry_count,
    (SELECT l.error FROM letters l
     WHERE l.partition = e.seq >> 48 AND l.position = (e.seq & 281474976710655) AND l.error <> ''
     LIMIT 1) AS last_error
FROM events e
ORDER BY e.seq;
