-- Derived data: delete the file and it is rebuilt from the journal. Tables have a version in their
-- names, so that a new shape is filled beside the one that serves. Times are milliseconds since
-- 1970, ids are text, truth is 0 or 1. No column holds personal data.

CREATE TABLE projection_checkpoints (
    projection TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (projection, partition)
) WITHOUT ROWID;

-- Clustered by position, so that every other index ends in it and a page is read in order.
CREATE TABLE events_v1 (
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    major INTEGER NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (partition, position)
) WITHOUT ROWID;
CREATE INDEX events_v1_by_type ON events_v1 (event_type, partition, position);
CREATE INDEX events_v1_by_aggregate_type ON events_v1 (aggregate_type, partition, position);
CREATE INDEX events_v1_by_aggregate ON events_v1 (aggregate_id, partition, position);
CREATE INDEX events_v1_by_correlation ON events_v1 (correlation_id, partition, position);
CREATE INDEX events_v1_by_causation ON events_v1 (causation_id, partition, position);

-- Rows in all, then rows per prefix of the index: what a marketplace looks like, so that the planner
-- takes the index of the most selective condition from the first row on.
ANALYZE sqlite_schema;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('events_v1', 'events_v1', '1000000 1000000 1'),
    ('events_v1', 'events_v1_by_type', '1000000 40000 40000 1'),
    ('events_v1', 'events_v1_by_aggregate_type', '1000000 100000 100000 1'),
    ('events_v1', 'events_v1_by_aggregate', '1000000 20 20 1'),
    ('events_v1', 'events_v1_by_correlation', '1000000 30 30 1'),
    ('events_v1', 'events_v1_by_causation', '1000000 2 2 1');

-- Which positions each minute holds. Commit order is nearly, but not quite, time order; with this
-- a range of time becomes a range of positions without an index row per event.
CREATE TABLE event_minutes_v1 (
    partition INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    position_min INTEGER NOT NULL,
    position_max INTEGER NOT NULL,
    PRIMARY KEY (partition, minute)
) WITHOUT ROWID;

CREATE TABLE listings_v1 (
    listing_id TEXT NOT NULL PRIMARY KEY,
    seller_id TEXT NOT NULL,
    title TEXT NOT NULL,
    category_id TEXT NOT NULL,
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
CREATE INDEX listings_v1_newest ON listings_v1 (created_ms, listing_id);
CREATE INDEX listings_v1_by_seller ON listings_v1 (seller_id, created_ms, listing_id);
CREATE INDEX listings_v1_by_category ON listings_v1 (category_id, created_ms, listing_id);

CREATE TABLE orders_v1 (
    order_id TEXT NOT NULL PRIMARY KEY,
    order_number TEXT NOT NULL,
    buyer_id TEXT NOT NULL,
    seller_id TEXT NOT NULL,
    status TEXT NOT NULL,
    amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    item_count INTEGER NOT NULL,
    version INTEGER NOT NULL,
    placed_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX orders_v1_by_number ON orders_v1 (order_number);
CREATE INDEX orders_v1_newest ON orders_v1 (placed_ms, order_id);
CREATE INDEX orders_v1_by_buyer ON orders_v1 (buyer_id, placed_ms, order_id);
CREATE INDEX orders_v1_by_seller ON orders_v1 (seller_id, placed_ms, order_id);

CREATE TABLE shipments_v1 (
    shipment_id TEXT NOT NULL PRIMARY KEY,
    order_id TEXT NOT NULL,
    status TEXT NOT NULL,
    tracking_number TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX shipments_v1_by_order ON shipments_v1 (order_id, created_ms, shipment_id);

CREATE TABLE notifications_v1 (
    notification_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT,
    audience TEXT NOT NULL,
    channel TEXT NOT NULL,
    template TEXT NOT NULL,
    status TEXT NOT NULL,
    cause_event_id TEXT NOT NULL,
    provider_message_id TEXT,
    created_ms INTEGER NOT NULL,
    sent_ms INTEGER,
    read_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX notifications_v1_newest ON notifications_v1 (created_ms, notification_id);
CREATE INDEX notifications_v1_by_user ON notifications_v1 (user_id, created_ms, notification_id);
CREATE INDEX notifications_v1_by_audience
    ON notifications_v1 (audience, created_ms, notification_id);
CREATE INDEX notifications_v1_by_channel ON notifications_v1 (channel, created_ms, notification_id);

CREATE TABLE categories_v1 (
    category_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    slug TEXT NOT NULL,
    active INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE users_v1 (
    user_id TEXT NOT NULL PRIMARY KEY,
    status TEXT NOT NULL,
    roles TEXT NOT NULL,
    seller_status TEXT,
    registered_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    email_verified INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX users_v1_newest ON users_v1 (registered_ms, user_id);
CREATE INDEX users_v1_by_seller_status ON users_v1 (seller_status, registered_ms, user_id);

CREATE TABLE sagas_v1 (
    saga_id TEXT NOT NULL PRIMARY KEY,
    saga TEXT NOT NULL,
    saga_key TEXT NOT NULL,
    status TEXT NOT NULL,
    step TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sagas_v1_newest ON sagas_v1 (started_ms, saga_id);
CREATE INDEX sagas_v1_by_key ON sagas_v1 (saga_key);
CREATE INDEX sagas_v1_by_status ON sagas_v1 (status, started_ms, saga_id);
