//! Full text: the one thing that the two databases do each in its own way.
//!
//! A table with full text has three columns of folded words, the most telling first. On SQLite an
//! FTS5 index `<table>_text` follows it by triggers, and `<table>_text_words` lists its words; on
//! PostgreSQL the column `vector` follows from the words.

use sqlx::AssertSqlSafe;

use super::{Backend, Query, ReadDb, ReadError};

/// How many of the newest rows PostgreSQL looks through for words: it keeps no list of them.
const WORDS_OF_ROWS: &str = "5000";

/// A word that a text must have, or something in its place. Words are letters and digits only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The word, folded.
    pub word: String,
    /// Whether a longer word that begins so does too.
    pub is_prefix: bool,
    /// What does as well.
    pub or: Vec<String>,
}

impl ReadDb {
    /// A query that begins with `hit (id, score)`: the rows of a table with full text that have all
    /// these words, by the column that names them, and how well they fit. Go on with ` SELECT …`.
    pub fn matching(&self, table: &str, id: &'static str, wanted: &[Wanted]) -> Query {
        let hit = Query::new("WITH hit AS MATERIALIZED (SELECT ").then(id);
        match &self.backend {
            Backend::Sqlite(_) => hit
                .then(" AS id, CAST(bm25(")
                .table(table)
                .then("_text, 10.0, 5.0, 1.0) * -1000000000 AS INTEGER) AS score FROM ")
                .table(table)
                .then("_text JOIN ")
                .table(table)
                .then(" AS r ON r.doc = ")
                .table(table)
                .then("_text.rowid WHERE ")
                .table(table)
                .then("_text MATCH ")
                .value(&expression(wanted, (" AND ", " OR "), ("\"", "\"", "\"*")))
                .then(")"),
            Backend::Postgres(_) => hit
                .then(" AS id, CAST(ts_rank('{0.1, 0.1, 0.5, 1.0}'::real[], vector, wanted)")
                .then(" * 1000000000 AS BIGINT) AS score FROM ")
                .table(table)
                .then(", to_tsquery('simple', ")
                .value(&expression(wanted, (" & ", " | "), ("'", "'", "':*")))
                .then(") AS wanted WHERE vector @@ wanted)"),
        }
    }

    /// Words that texts of a table have and that begin with this character, with the number of
    /// texts, the most frequent first.
    pub async fn words(
        &self,
        table: &str,
        first: char,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, ReadError> {
        let (from, to) = (first.to_string(), format!("{first}\u{10ffff}"));
        let query = match &self.backend {
            Backend::Sqlite(_) => Query::new("SELECT term, doc AS texts FROM ")
                .table(table)
                .then("_text_words WHERE term >= ")
                .value(&from)
                .then(" AND term <= ")
                .value(&to),
            Backend::Postgres(_) => {
                Query::new("SELECT word AS term, CAST(ndoc AS BIGINT) AS texts FROM ")
                    .then("ts_stat('SELECT vector FROM ")
                    .table(table)
                    .then(" ORDER BY listing_id DESC LIMIT ")
                    .then(WORDS_OF_ROWS)
                    .then("') WHERE word COLLATE \"C\" >= ")
                    .value(&from)
                    .then(" AND word COLLATE \"C\" <= ")
                    .value(&to)
            }
        };
        let query = query.then(" ORDER BY texts DESC, term LIMIT ").value(limit);
        self.fetch_as(query, |row| Ok((row.text(0)?, row.count(1)?))).await
    }
}

impl super::ReadTx {
    /// Drops what follows a table with full text.
    pub(super) async fn drop_text(&mut self, table: &str) -> Result<(), ReadError> {
        if let super::TxOf::Sqlite(_) = &self.0 {
            for text in ["text_words", "text"] {
                let sql = AssertSqlSafe(format!("DROP TABLE IF EXISTS {table}_{text}"));
                self.execute(sql, Vec::new()).await?;
            }
        }
        Ok(())
    }
}

/// The words as an expression of the index: between all, between what does as well; before a word,
/// behind it, behind a prefix. No word can end its quotes: it has letters and digits only.
fn expression(
    wanted: &[Wanted],
    (and, or): (&str, &str),
    (before, behind, behind_prefix): (&str, &str, &str),
) -> String {
    let one = |wanted: &Wanted| {
        debug_assert!(wanted.word.chars().all(char::is_alphanumeric), "{wanted:?}");
        let end = if wanted.is_prefix { behind_prefix } else { behind };
        let others = wanted.or.iter().map(|word| format!("{before}{word}{behind}"));
        let all: Vec<_> =
            std::iter::once(format!("{before}{}{end}", wanted.word)).chain(others).collect();
        format!("({})", all.join(or))
    };
    wanted.iter().map(one).collect::<Vec<_>>().join(and)
}
