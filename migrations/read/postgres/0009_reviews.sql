-- Reviews, and the listings that each is about; whom people follow, and their favourites.

CREATE TABLE reviews_v1 (
    review_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    reviewer_id TEXT COLLATE "C" NOT NULL,
    seller_id TEXT COLLATE "C" NOT NULL,
    rating BIGINT NOT NULL,
    hidden BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX reviews_v1_newest ON reviews_v1 (created_ms, review_id);
CREATE INDEX reviews_v1_by_seller ON reviews_v1 (seller_id, created_ms, review_id);

CREATE TABLE review_listings_v1 (
    listing_id TEXT COLLATE "C" NOT NULL,
    review_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (listing_id, review_id)
);

CREATE TABLE interests_v1 (
    interest_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    user_id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    target_id TEXT COLLATE "C" NOT NULL,
    active BIGINT NOT NULL,
    version BIGINT NOT NULL,
    since_ms BIGINT NOT NULL
);
CREATE INDEX interests_v1_by_target ON interests_v1 (kind, target_id, interest_id);
CREATE INDEX interests_v1_by_user ON interests_v1 (user_id, kind, since_ms, interest_id);
