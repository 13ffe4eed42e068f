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

-- What becomes of orders and when, for figures of the business.

CREATE TABLE order_figures_v1 (
    order_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seller_id TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    placed_ms BIGINT NOT NULL,
    paid_ms BIGINT,
    completed_ms BIGINT,
    lost_ms BIGINT,
    version BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX order_figures_v1_placed ON order_figures_v1 (placed_ms);
CREATE INDEX order_figures_v1_paid ON order_figures_v1 (paid_ms);
CREATE INDEX order_figures_v1_completed ON order_figures_v1 (completed_ms);
CREATE INDEX order_figures_v1_lost ON order_figures_v1 (lost_ms);
CREATE INDEX order_figures_v1_by_seller ON order_figures_v1 (seller_id, placed_ms);
