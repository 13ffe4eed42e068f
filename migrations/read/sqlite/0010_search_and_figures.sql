-- What the search knows of each listing. The words are folded by the program, the same for every
-- store; `doc` is what the full-text index calls a row. A version of the table beside this one gets an
-- index, a list of words and triggers of its own.

CREATE TABLE search_v1 (
    doc INTEGER PRIMARY KEY,
    listing_id TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    title_words TEXT NOT NULL,
    name_words TEXT NOT NULL,
    body_words TEXT NOT NULL,
    is_draft INTEGER NOT NULL,
    version INTEGER NOT NULL
);

CREATE VIRTUAL TABLE search_v1_text USING fts5(
    title_words, name_words, body_words,
    content='search_v1', content_rowid='doc', tokenize='unicode61 remove_diacritics 2', prefix='2 3'
);
CREATE VIRTUAL TABLE search_v1_text_words USING fts5vocab('search_v1_text', 'row');

CREATE TRIGGER search_v1_added AFTER INSERT ON search_v1 BEGIN
    INSERT INTO search_v1_text (rowid, title_words, name_words, body_words)
        VALUES (new.doc, new.title_words, new.name_words, new.body_words);
END;
CREATE TRIGGER search_v1_removed AFTER DELETE ON search_v1 BEGIN
    INSERT INTO search_v1_text (search_v1_text, rowid, title_words, name_words, body_words)
        VALUES ('delete', old.doc, old.title_words, old.name_words, old.body_words);
END;
CREATE TRIGGER search_v1_changed AFTER UPDATE ON search_v1
WHEN old.title_words <> new.title_words OR old.name_words <> new.name_words
    OR old.body_words <> new.body_words
BEGIN
    INSERT INTO search_v1_text (search_v1_text, rowid, title_words, name_words, body_words)
        VALUES ('delete', old.doc, old.title_words, old.name_words, old.body_words);
    INSERT INTO search_v1_text (rowid, title_words, name_words, body_words)
        VALUES (new.doc, new.title_words, new.name_words, new.body_words);
END;

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
