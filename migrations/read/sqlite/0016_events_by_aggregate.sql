-- The index of events by aggregate holds a number in place of the aggregate's id: a third as long, so that
-- fewer of its pages change with each batch. The table is filled anew from the journal: without its
-- checkpoint a projection begins at the beginning.

DROP TABLE events_v1;
CREATE TABLE events_v2 (
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    major INTEGER NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    aggregate_key INTEGER NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (partition, position)
) WITHOUT ROWID;
CREATE INDEX events_v2_by_type ON events_v2 (event_type, partition, position);
CREATE INDEX events_v2_by_aggregate_type ON events_v2 (aggregate_type, partition, position);
CREATE INDEX events_v2_by_aggregate ON events_v2 (aggregate_key, partition, position);
CREATE INDEX events_v2_by_correlation ON events_v2 (correlation_id, partition, position);
CREATE INDEX events_v2_by_causation ON events_v2 (causation_id, partition, position);

-- As for the table before it: what a marketplace looks like, for the planner.
DELETE FROM sqlite_stat1 WHERE tbl = 'events_v1';
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('events_v2', 'events_v2', '1000000 1000000 1'),
    ('events_v2', 'events_v2_by_type', '1000000 40000 40000 1'),
    ('events_v2', 'events_v2_by_aggregate_type', '1000000 100000 100000 1'),
    ('events_v2', 'events_v2_by_aggregate', '1000000 20 20 1'),
    ('events_v2', 'events_v2_by_correlation', '1000000 30 30 1'),
    ('events_v2', 'events_v2_by_causation', '1000000 2 2 1');

DELETE FROM projection_checkpoints WHERE projection = 'events-index';
