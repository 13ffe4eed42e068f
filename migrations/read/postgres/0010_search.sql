-- What the search knows of each listing. The words are folded by the program, the same for every
-- store; the vector follows from them.

CREATE TABLE search_v1 (
    listing_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    description TEXT COLLATE "C" NOT NULL,
    title_words TEXT COLLATE "C" NOT NULL,
    name_words TEXT COLLATE "C" NOT NULL,
    body_words TEXT COLLATE "C" NOT NULL,
    is_draft BIGINT NOT NULL,
    version BIGINT NOT NULL,
    vector TSVECTOR NOT NULL GENERATED ALWAYS AS (
        setweight(to_tsvector('simple'::regconfig, title_words), 'A')
        || setweight(to_tsvector('simple'::regconfig, name_words), 'B')
        || setweight(to_tsvector('simple'::regconfig, body_words), 'D')
    ) STORED
);
CREATE INDEX search_v1_vector ON search_v1 USING GIN (vector);
