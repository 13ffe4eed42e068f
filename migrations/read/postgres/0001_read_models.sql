-- Derived data: drop the schema and it is rebuilt from the journal. Tables have a version in their
-- names, so that a new shape is filled beside the one that serves. Times are milliseconds since
-- 1970, ids are text, truth is 0 or 1. No column holds personal data. Texts are compared by their
-- bytes, as on SQLite and in every locale.

CREATE TABLE projection_checkpoints (
    projection TEXT COLLATE "C" NOT NULL,
    partition BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (projection, partition)
) WITH (fillfactor = 80);

-- Every other index ends in the position, so that a page is read in order.
CREATE TABLE events_v1 (
    partition BIGINT NOT NULL,
    position BIGINT NOT NULL,
    event_id TEXT COLLATE "C" NOT NULL,
    event_type TEXT COLLATE "C" NOT NULL,
    major BIGINT NOT NULL,
    aggregate_type TEXT COLLATE "C" NOT NULL,
    aggregate_id TEXT COLLATE "C" NOT NULL,
    correlation_id TEXT COLLATE "C" NOT NULL,
    causation_id TEXT COLLATE "C" NOT NULL,
    timestamp_ms BIGINT NOT NULL,
    PRIMARY KEY (partition, position)
);
CREATE INDEX events_v1_by_type ON events_v1 (event_type, partition, position);
CREATE INDEX events_v1_by_aggregate_type ON events_v1 (aggregate_type, partition, position);
CREATE INDEX events_v1_by_aggregate ON events_v1 (aggregate_id, partition, position);
CREATE INDEX events_v1_by_correlation ON events_v1 (correlation_id, partition, position);
CREATE INDEX events_v1_by_causation ON events_v1 (causation_id, partition, position);

-- Which positions each minute holds. Commit order is nearly, but not quite, time order; with this
-- a range of time becomes a range of positions without an index row per event.
CREATE TABLE event_minutes_v1 (
    partition BIGINT NOT NULL,
    minute BIGINT NOT NULL,
    position_min BIGINT NOT NULL,
    position_max BIGINT NOT NULL,
    PRIMARY KEY (partition, minute)
);

-- Rows that change again and again leave room on their page for their next version.
CREATE TABLE listings_v2 (
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
    updated_ms BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX listings_v2_newest ON listings_v2 (created_ms, listing_id);
CREATE INDEX listings_v2_by_seller ON listings_v2 (seller_id, created_ms, listing_id);
CREATE INDEX listings_v2_by_category ON listings_v2 (category_id, created_ms, listing_id);
CREATE INDEX listings_v2_by_sku ON listings_v2 (sku, created_ms, listing_id);

CREATE TABLE orders_v1 (
    order_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    order_number TEXT COLLATE "C" NOT NULL,
    buyer_id TEXT COLLATE "C" NOT NULL,
    seller_id TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    item_count BIGINT NOT NULL,
    version BIGINT NOT NULL,
    placed_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX orders_v1_by_number ON orders_v1 (order_number);
CREATE INDEX orders_v1_newest ON orders_v1 (placed_ms, order_id);
CREATE INDEX orders_v1_by_buyer ON orders_v1 (buyer_id, placed_ms, order_id);
CREATE INDEX orders_v1_by_seller ON orders_v1 (seller_id, placed_ms, order_id);

CREATE TABLE shipments_v1 (
    shipment_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    order_id TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    tracking_number TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX shipments_v1_by_order ON shipments_v1 (order_id, created_ms, shipment_id);

CREATE TABLE notifications_v1 (
    notification_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    user_id TEXT COLLATE "C",
    audience TEXT COLLATE "C" NOT NULL,
    channel TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    cause_event_id TEXT COLLATE "C" NOT NULL,
    provider_message_id TEXT COLLATE "C",
    created_ms BIGINT NOT NULL,
    sent_ms BIGINT,
    read_ms BIGINT
) WITH (fillfactor = 80);
CREATE INDEX notifications_v1_newest ON notifications_v1 (created_ms, notification_id);
CREATE INDEX notifications_v1_by_user ON notifications_v1 (user_id, created_ms, notification_id);
CREATE INDEX notifications_v1_by_audience
    ON notifications_v1 (audience, created_ms, notification_id);
CREATE INDEX notifications_v1_by_channel ON notifications_v1 (channel, created_ms, notification_id);

CREATE TABLE categories_v1 (
    category_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    slug TEXT COLLATE "C" NOT NULL,
    active BIGINT NOT NULL
);

CREATE TABLE users_v1 (
    user_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    status TEXT COLLATE "C" NOT NULL,
    roles TEXT COLLATE "C" NOT NULL,
    seller_status TEXT COLLATE "C",
    registered_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    email_verified BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX users_v1_newest ON users_v1 (registered_ms, user_id);
CREATE INDEX users_v1_by_seller_status ON users_v1 (seller_status, registered_ms, user_id);

CREATE TABLE sagas_v2 (
    saga_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    saga TEXT COLLATE "C" NOT NULL,
    definition TEXT COLLATE "C",
    saga_key TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    started_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX sagas_v2_newest ON sagas_v2 (started_ms, saga_id);
CREATE INDEX sagas_v2_by_key ON sagas_v2 (saga_key);
CREATE INDEX sagas_v2_by_status ON sagas_v2 (status, started_ms, saga_id);
