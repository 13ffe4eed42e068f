-- The versions of each projection, and which of them serves. Version 1 has the tables that migrations
-- make; a later one has tables of the same shape with _r<version> behind their names, and checkpoints
-- of its own. Which versions there are is as derived as their rows: without this table version 1 is
-- filled from the journal and serves.

CREATE TABLE projection_versions (
    projection TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    state TEXT COLLATE "C" NOT NULL,
    serves BIGINT NOT NULL,
    checkpoint TEXT COLLATE "C" NOT NULL,
    shape TEXT COLLATE "C" NOT NULL,
    joined TEXT COLLATE "C" NOT NULL,
    rows_per_second BIGINT NOT NULL,
    error TEXT COLLATE "C",
    started_ms BIGINT NOT NULL,
    level_ms BIGINT,
    PRIMARY KEY (projection, version)
);
