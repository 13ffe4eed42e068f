-- Listings are also found by their stock-keeping unit, sagas say which definition they follow. Both
-- tables are filled anew from the journal: without its checkpoint a projection begins at the
-- beginning.

DROP TABLE listings_v1;
CREATE TABLE listings_v2 (
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
    updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX listings_v2_newest ON listings_v2 (created_ms, listing_id);
CREATE INDEX listings_v2_by_seller ON listings_v2 (seller_id, created_ms, listing_id);
CREATE INDEX listings_v2_by_category ON listings_v2 (category_id, created_ms, listing_id);
CREATE INDEX listings_v2_by_sku ON listings_v2 (sku, created_ms, listing_id);

DROP TABLE sagas_v1;
CREATE TABLE sagas_v2 (
    saga_id TEXT NOT NULL PRIMARY KEY,
    saga TEXT NOT NULL,
    definition TEXT,
    saga_key TEXT NOT NULL,
    status TEXT NOT NULL,
    step TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sagas_v2_newest ON sagas_v2 (started_ms, saga_id);
CREATE INDEX sagas_v2_by_key ON sagas_v2 (saga_key);
CREATE INDEX sagas_v2_by_status ON sagas_v2 (status, started_ms, saga_id);

DELETE FROM projection_checkpoints WHERE projection IN ('listings-view', 'sagas-view');
