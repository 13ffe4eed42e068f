-- Reviews, and the listings that each is about.

CREATE TABLE reviews_v1 (
    review_id TEXT NOT NULL PRIMARY KEY,
    reviewer_id TEXT NOT NULL,
    seller_id TEXT NOT NULL,
    rating INTEGER NOT NULL,
    hidden INTEGER NOT NULL,
    version INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX reviews_v1_newest ON reviews_v1 (created_ms, review_id);
CREATE INDEX reviews_v1_by_seller ON reviews_v1 (seller_id, created_ms, review_id);

CREATE TABLE review_listings_v1 (
    listing_id TEXT NOT NULL,
    review_id TEXT NOT NULL,
    PRIMARY KEY (listing_id, review_id)
) WITHOUT ROWID;
