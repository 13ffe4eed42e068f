-- The logins, by user.

CREATE TABLE sessions_v1 (
    session_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    refreshed_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX sessions_v1_by_user ON sessions_v1 (user_id, started_ms, session_id);
