-- Every entry of every account, and the payouts of sellers. Orders are also found by their checkout and
-- by their dispute: their table is filled anew from the journal.

CREATE TABLE ledger_entries_v1 (
    entry_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    event_id TEXT COLLATE "C" NOT NULL,
    account TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    order_id TEXT COLLATE "C",
    booked_ms BIGINT NOT NULL
);
CREATE INDEX ledger_entries_v1_by_account ON ledger_entries_v1 (account, currency);

CREATE TABLE payouts_v1 (
    payout_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seller_id TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    reference TEXT COLLATE "C",
    reason TEXT COLLATE "C",
    requested_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
);
CREATE INDEX payouts_v1_newest ON payouts_v1 (requested_ms, payout_id);
CREATE INDEX payouts_v1_by_seller ON payouts_v1 (seller_id, requested_ms, payout_id);

DROP TABLE orders_v1;
CREATE TABLE orders_v2 (
    order_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    order_number TEXT COLLATE "C" NOT NULL,
    buyer_id TEXT COLLATE "C" NOT NULL,
    seller_id TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    item_count BIGINT NOT NULL,
    checkout_id TEXT COLLATE "C",
    dispute TEXT COLLATE "C",
    version BIGINT NOT NULL,
    placed_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX orders_v2_by_number ON orders_v2 (order_number);
CREATE INDEX orders_v2_newest ON orders_v2 (placed_ms, order_id);
CREATE INDEX orders_v2_by_buyer ON orders_v2 (buyer_id, placed_ms, order_id);
CREATE INDEX orders_v2_by_seller ON orders_v2 (seller_id, placed_ms, order_id);
CREATE INDEX orders_v2_by_checkout ON orders_v2 (checkout_id) WHERE checkout_id IS NOT NULL;
CREATE INDEX orders_v2_by_dispute ON orders_v2 (dispute, placed_ms, order_id) WHERE dispute IS NOT NULL;

DELETE FROM projection_checkpoints WHERE projection = 'orders-view';
