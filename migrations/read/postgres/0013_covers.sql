-- Listings have their images, so that lists show the first of them. The table is filled anew from the
-- journal: without its checkpoint a projection begins at the beginning.

DROP TABLE listings_v2;
CREATE TABLE listings_v3 (
    listing_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seller_id TEXT COLLATE "C" NOT NULL,
    title TEXT COLLATE "C" NOT NULL,
    category_id TEXT COLLATE "C" NOT NULL,
    sku TEXT COLLATE "C" NOT NULL,
    price_amount BIGINT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    available BIGINT NOT NULL,
    reserved BIGINT NOT NULL,
    sold BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    images TEXT COLLATE "C" NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX listings_v3_newest ON listings_v3 (created_ms, listing_id);
CREATE INDEX listings_v3_by_seller ON listings_v3 (seller_id, created_ms, listing_id);
CREATE INDEX listings_v3_by_category ON listings_v3 (category_id, created_ms, listing_id);
CREATE INDEX listings_v3_by_sku ON listings_v3 (sku, created_ms, listing_id);

DELETE FROM projection_checkpoints WHERE projection = 'listings-view';
