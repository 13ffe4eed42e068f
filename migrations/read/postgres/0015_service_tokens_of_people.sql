-- Tokens of services, now also by the person whose key one is: filled anew from the journal.

DROP TABLE service_tokens_v1;
CREATE TABLE service_tokens_v2 (
    token_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    user_id TEXT COLLATE "C",
    issued_ms BIGINT NOT NULL
);
CREATE INDEX service_tokens_v2_newest ON service_tokens_v2 (issued_ms, token_id);
CREATE INDEX service_tokens_v2_by_user ON service_tokens_v2 (user_id, issued_ms, token_id);

DELETE FROM projection_checkpoints WHERE projection = 'service-tokens-view';
