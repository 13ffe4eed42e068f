-- What was sent to webhook endpoints, and what waits.

CREATE TABLE webhook_deliveries_v1 (
    delivery_id TEXT NOT NULL PRIMARY KEY,
    endpoint_id TEXT NOT NULL,
    lane_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    aggregate_version INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    status_code INTEGER,
    latency_ms INTEGER,
    error TEXT,
    next_attempt_ms INTEGER,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhook_deliveries_v1_newest ON webhook_deliveries_v1 (endpoint_id, created_ms, delivery_id);
CREATE INDEX webhook_deliveries_v1_waiting ON webhook_deliveries_v1 (endpoint_id, status, lane_id);
CREATE INDEX webhook_deliveries_v1_by_lane ON webhook_deliveries_v1 (lane_id, aggregate_version);
CREATE INDEX webhook_deliveries_v1_oldest ON webhook_deliveries_v1 (updated_ms);
CREATE INDEX webhook_deliveries_v1_by_event ON webhook_deliveries_v1 (event_id);
