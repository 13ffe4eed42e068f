-- The versions of each projection, and which of them serves. Version 1 has the tables that migrations
-- make; a later one has tables of the same shape with _r<version> behind their names, and checkpoints
-- of its own. Which versions there are is as derived as their rows: without this table version 1 is
-- filled from the journal and serves.

CREATE TABLE projection_versions (
    projection TEXT NOT NULL,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    serves INTEGER NOT NULL,
    checkpoint TEXT NOT NULL,
    shape TEXT NOT NULL,
    joined TEXT NOT NULL,
    rows_per_second INTEGER NOT NULL,
    error TEXT,
    started_ms INTEGER NOT NULL,
    level_ms INTEGER,
    PRIMARY KEY (projection, version)
) WITHOUT ROWID;
