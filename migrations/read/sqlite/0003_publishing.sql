-- Tokens of services outside, the event types registered for them, and where their events wait for
-- others.

CREATE TABLE service_tokens_v1 (
    token_id TEXT NOT NULL PRIMARY KEY,
    issued_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX service_tokens_v1_newest ON service_tokens_v1 (issued_ms, token_id);

CREATE TABLE event_types_v1 (
    event_type_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX event_types_v1_by_name ON event_types_v1 (name);

CREATE TABLE buffers_v1 (
    publication_id TEXT NOT NULL PRIMARY KEY,
    held INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX buffers_v1_latest ON buffers_v1 (changed_ms, publication_id) WHERE held > 0;
