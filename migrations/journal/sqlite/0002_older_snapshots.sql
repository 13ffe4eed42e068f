-- Several snapshots of a stream: an answer of long ago is rendered from a state of long ago. Those
-- there are not taken over; events are the truth, and the next snapshot comes soon.

DROP TABLE snapshots;
CREATE TABLE snapshots (
    stream  INTEGER NOT NULL,
    version INTEGER NOT NULL,
    shape   INTEGER NOT NULL,
    state   TEXT NOT NULL,
    PRIMARY KEY (stream, version)
) WITHOUT ROWID;
