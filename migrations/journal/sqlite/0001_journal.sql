-- The journal, and the control tables that change in its transactions.
-- Times are milliseconds since 1970-01-01T00:00:00Z. Ids are 16-byte blobs. row_check is made of the
-- other values of its row.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Who may append to a partition: every append checks the epoch.
CREATE TABLE leases (
    partition INTEGER PRIMARY KEY,
    epoch     INTEGER NOT NULL
);

-- An integer number for each aggregate: it keeps the index of versions small and local.
CREATE TABLE streams (
    stream         INTEGER PRIMARY KEY,
    partition      INTEGER NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id   BLOB NOT NULL
);
CREATE UNIQUE INDEX streams_aggregate ON streams (aggregate_id, aggregate_type);

-- seq = partition * 2^48 + position: one key for the order of each partition's log.
CREATE TABLE events (
    seq               INTEGER PRIMARY KEY,
    event_id          BLOB NOT NULL,
    stream            INTEGER NOT NULL,
    aggregate_version INTEGER NOT NULL,
    aggregate_type    TEXT NOT NULL,
    aggregate_id      BLOB NOT NULL,
    event_type        TEXT NOT NULL,
    major             INTEGER NOT NULL,
    minor             INTEGER NOT NULL,
    timestamp         INTEGER NOT NULL,
    correlation_id    TEXT NOT NULL,
    causation_id      TEXT NOT NULL,
    data              TEXT NOT NULL,
    metadata          TEXT NOT NULL,
    hash              BLOB NOT NULL
);
CREATE UNIQUE INDEX events_version ON events (stream, aggregate_version);
CREATE UNIQUE INDEX events_id ON events (event_id);
CREATE INDEX events_correlation ON events (correlation_id);

CREATE TRIGGER events_are_final BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;
CREATE TRIGGER events_are_kept BEFORE DELETE ON events
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;

CREATE TABLE outcomes (
    command_id   BLOB PRIMARY KEY,
    request_hash BLOB NOT NULL,
    stream       INTEGER NOT NULL,
    version      INTEGER NOT NULL,
    events       INTEGER NOT NULL,
    rejection    TEXT,
    at           INTEGER NOT NULL,
    row_check    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX outcomes_at ON outcomes (at);

-- A person's data key under the master key; NULL once destroyed.
CREATE TABLE person_keys (
    subject BLOB PRIMARY KEY,
    wrapped BLOB
) WITHOUT ROWID;

CREATE TABLE timers (
    aggregate_id   BLOB NOT NULL,
    aggregate_type TEXT NOT NULL,
    name           TEXT NOT NULL,
    partition      INTEGER NOT NULL,
    due            INTEGER NOT NULL,
    row_check      INTEGER NOT NULL,
    PRIMARY KEY (aggregate_id, aggregate_type, name)
) WITHOUT ROWID;
CREATE INDEX timers_due ON timers (partition, due);

CREATE TABLE checkpoints (
    subscription TEXT NOT NULL,
    partition    INTEGER NOT NULL,
    lane         INTEGER NOT NULL,
    lanes        INTEGER NOT NULL,
    position     INTEGER NOT NULL,
    row_check    INTEGER NOT NULL,
    PRIMARY KEY (subscription, partition, lane)
) WITHOUT ROWID;

CREATE TABLE letters (
    partition       INTEGER NOT NULL,
    subscription    TEXT NOT NULL,
    position        INTEGER NOT NULL,
    key             BLOB NOT NULL,
    event_id        BLOB NOT NULL,
    event_type      TEXT NOT NULL,
    aggregate_id    BLOB NOT NULL,
    state           TEXT NOT NULL,
    class           TEXT NOT NULL,
    error           TEXT NOT NULL,
    attempts        INTEGER NOT NULL,
    first_failed_at INTEGER NOT NULL,
    last_failed_at  INTEGER NOT NULL,
    row_check       INTEGER NOT NULL,
    PRIMARY KEY (partition, subscription, position)
) WITHOUT ROWID;

CREATE TABLE snapshots (
    stream  INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    shape   INTEGER NOT NULL,
    state   TEXT NOT NULL
);

-- Rows that the application keeps beside the journal.
CREATE TABLE control (
    space      TEXT NOT NULL,
    key        BLOB NOT NULL,
    value      BLOB NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (space, key)
) WITHOUT ROWID;
CREATE INDEX control_expiry ON control (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE quarantined (
    aggregate_type TEXT NOT NULL,
    aggregate_id   BLOB NOT NULL,
    partition      INTEGER NOT NULL,
    command_id     BLOB NOT NULL,
    command        TEXT NOT NULL,
    error_id       BLOB NOT NULL,
    since          INTEGER NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id)
) WITHOUT ROWID;

-- The journal is the outbox: this is how a relay sees it. In the order of the log.
CREATE VIEW outbox_events AS
SELECT
    lower(substr(hex(e.event_id), 1, 8) || '-' || substr(hex(e.event_id), 9, 4) || '-' ||
          substr(hex(e.event_id), 13, 4) || '-' || substr(hex(e.event_id), 17, 4) || '-' ||
          substr(hex(e.event_id), 21, 12)) AS id,
    e.aggregate_type AS aggregate_type,
    lower(substr(hex(e.aggregate_id), 1, 8) || '-' || substr(hex(e.aggregate_id), 9, 4) || '-' ||
          substr(hex(e.aggregate_id), 13, 4) || '-' || substr(hex(e.aggregate_id), 17, 4) || '-' ||
          substr(hex(e.aggregate_id), 21, 12)) AS aggregate_id,
    e.event_type AS event_type,
    e.data AS payload,
    strftime('%Y-%m-%dT%H:%M:%fZ', e.timestamp / 1000.0, 'unixepoch') AS created_at,
    CASE WHEN (e.seq & 281474976710655) <= coalesce(
        (SELECT min(c.position) FROM checkpoints c WHERE c.partition = e.seq >> 48), 0)
         THEN strftime('%Y-%m-%dT%H:%M:%fZ', e.timestamp / 1000.0, 'unixepoch') END AS published_at,
    coalesce((SELECT max(l.attempts) FROM letters l
              WHERE l.partition = e.seq >> 48 AND l.position = (e.seq & 281474976710655)), 0)
        AS retry_count,
    (SELECT l.error FROM letters l
     WHERE l.partition = e.seq >> 48 AND l.position = (e.seq & 281474976710655) AND l.error <> ''
     LIMIT 1) AS last_error
FROM events e
ORDER BY e.seq;
