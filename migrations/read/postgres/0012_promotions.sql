-- Which promotion codes a seller has.

CREATE TABLE promotions_v1 (
    promotion_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seller_id TEXT COLLATE "C" NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX promotions_v1_by_seller ON promotions_v1 (seller_id, created_ms, promotion_id);
