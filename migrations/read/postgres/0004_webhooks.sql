-- What was sent to webhook endpoints, and what waits.

CREATE TABLE webhook_deliveries_v1 (
    delivery_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    endpoint_id TEXT COLLATE "C" NOT NULL,
    lane_id TEXT COLLATE "C" NOT NULL,
    event_id TEXT COLLATE "C" NOT NULL,
    event_type TEXT COLLATE "C" NOT NULL,
    aggregate_id TEXT COLLATE "C" NOT NULL,
    aggregate_version BIGINT NOT NULL,
    partition BIGINT NOT NULL,
    position BIGINT NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    attempts BIGINT NOT NULL,
    status_code BIGINT,
    latency_ms BIGINT,
    error TEXT COLLATE "C",
    next_attempt_ms BIGINT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX webhook_deliveries_v1_newest ON webhook_deliveries_v1 (endpoint_id, created_ms, delivery_id);
CREATE INDEX webhook_deliveries_v1_waiting ON webhook_deliveries_v1 (endpoint_id, status, lane_id);
CREATE INDEX webhook_deliveries_v1_by_lane ON webhook_deliveries_v1 (lane_id, aggregate_version);
CREATE INDEX webhook_deliveries_v1_oldest ON webhook_deliveries_v1 (updated_ms);
CREATE INDEX webhook_deliveries_v1_by_event ON webhook_deliveries_v1 (event_id);
