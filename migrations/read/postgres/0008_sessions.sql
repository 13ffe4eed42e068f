-- The logins, by user.

CREATE TABLE sessions_v1 (
    session_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    user_id TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL,
    started_ms BIGINT NOT NULL,
    refreshed_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    revoked_ms BIGINT
);
CREATE INDEX sessions_v1_by_user ON sessions_v1 (user_id, started_ms, session_id);
