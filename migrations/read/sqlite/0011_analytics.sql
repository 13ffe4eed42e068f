-- What becomes of orders and when, for figures of the business.

CREATE TABLE order_figures_v1 (
    order_id TEXT NOT NULL PRIMARY KEY,
    seller_id TEXT NOT NULL,
    amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    placed_ms INTEGER NOT NULL,
    paid_ms INTEGER,
    completed_ms INTEGER,
    lost_ms INTEGER,
    version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX order_figures_v1_placed ON order_figures_v1 (placed_ms);
CREATE INDEX order_figures_v1_paid ON order_figures_v1 (paid_ms);
CREATE INDEX order_figures_v1_completed ON order_figures_v1 (completed_ms);
CREATE INDEX order_figures_v1_lost ON order_figures_v1 (lost_ms);
CREATE INDEX order_figures_v1_by_seller ON order_figures_v1 (seller_id, placed_ms);
