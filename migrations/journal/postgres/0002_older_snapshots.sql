-- Several snapshots of a stream: an answer of long ago is rendered from a state of long ago. Those
-- there are not taken over; events are the truth, and the next snapshot comes soon.

DROP TABLE snapshots;
CREATE TABLE snapshots (
    stream  bigint NOT NULL,
    version bigint NOT NULL,
    shape   bigint NOT NULL,
    state   text NOT NULL,
    PRIMARY KEY (stream, version)
);
