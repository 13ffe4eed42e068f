-- Which correlation ids belong to a trace of the W3C's. The index of events is read through once more
-- to fill it: without its checkpoint a projection begins at the beginning, and what is there stays.

CREATE TABLE traces_v1 (
    trace_id TEXT COLLATE "C" NOT NULL,
    correlation_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (trace_id, correlation_id)
);

DELETE FROM projection_checkpoints WHERE projection = 'events-index';
