-- Letters are worked key by key: a key's own are found without looking at all others.

CREATE INDEX letters_by_key ON letters (partition, subscription, key, position);
