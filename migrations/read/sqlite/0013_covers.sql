-- Listings have their images, so that lists show the first of them. The table is filled anew from the
-- journal: without its checkpoint a projection begins at the beginning.

DROP TABLE listings_v2;
CREATE TABLE listings_v3 (
    listing_id TEXT NOT NULL PRIMARY KEY,
    seller_id TEXT NOT NULL,
    title TEXT NOT NULL,
    category_id TEXT NOT NULL,
    sku TEXT NOT NULL,
    price_amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    status TEXT NOT NULL,
    available INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    sold INTEGER NOT NULL,
    version INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    images TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX listings_v3_newest ON listings_v3 (created_ms, listing_id);
CREATE INDEX listings_v3_by_seller ON listings_v3 (seller_id, created_ms, listing_id);
CREATE INDEX listings_v3_by_category ON listings_v3 (category_id, created_ms, listing_id);
CREATE INDEX listings_v3_by_sku ON listings_v3 (sku, created_ms, listing_id);

DELETE FROM projection_checkpoints WHERE projection = 'listings-view';
