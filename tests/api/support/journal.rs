//! What is stored, past the service: whichever database it is in.

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::Server;

/// The journal and its control tables, opened beside the server or after it. Both stores have the
/// same tables; what is asked of them is cast to `TEXT`.
pub enum Stored {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Server {
    /// Opens what it stored.
    pub async fn stored(&self) -> Stored {
        match self.database() {
            None => {
                let path = self.folder().join("journal.db");
                let options = SqliteConnectOptions::new().filename(path);
                Stored::Sqlite(SqlitePool::connect_with(options).await.unwrap())
            }
            Some(url) => {
                let options: PgConnectOptions = url.parse().unwrap();
                let options = options.options([("search_path", "souk_journal")]);
                Stored::Postgres(PgPool::connect_with(options).await.unwrap())
            }
        }
    }

    /// Opens its read models.
    pub async fn read_models(&self) -> Stored {
        match self.database() {
            None => Stored::Sqlite(self.open_sqlite("read.db").await),
            Some(url) => {
                let options: PgConnectOptions = url.parse().unwrap();
                let options = options.options([("search_path", "souk_read")]);
                Stored::Postgres(PgPool::connect_with(options).await.unwrap())
            }
        }
    }

    /// Throws its read models away. It must not be running.
    pub async fn forget_read_models(&self) {
        if self.database().is_some() {
            let stored = self.stored().await;
            stored.change("DROP SCHEMA souk_read CASCADE").await.unwrap();
            return stored.close().await;
        }
        for suffix in ["", "-wal", "-shm"] {
            let path = self.folder().join(format!("read.db{suffix}"));
            if let Err(error) = std::fs::remove_file(path) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
            }
        }
    }
}

impl Stored {
    /// Runs a statement and says how many rows it changed.
    pub async fn change(&self, sql: &str) -> Result<u64, sqlx::Error> {
        let query = AssertSqlSafe(sql.to_owned());
        Ok(match self {
            Self::Sqlite(pool) => sqlx::query(query).execute(pool).await?.rows_affected(),
            Self::Postgres(pool) => sqlx::query(query).execute(pool).await?.rows_affected(),
        })
    }

    /// All rows of a query, whose columns are all `TEXT`.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let query = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Sqlite(pool) => {
                let rows = sqlx::query(query).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect()
            }
            Self::Postgres(pool) => {
                let rows = sqlx::query(query).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect()
            }
        }
    }

    /// The one value that a query finds.
    pub async fn value(&self, sql: &str) -> String {
        let mut rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}");
        rows.remove(0).remove(0).unwrap_or_else(|| panic!("{sql} is null"))
    }

    /// The columns of a table or view, in their order.
    pub async fn columns(&self, table: &str) -> Vec<String> {
        let sql = match self {
            Self::Sqlite(_) => {
                format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid")
            }
            Self::Postgres(_) => format!(
                "SELECT CAST(column_name AS TEXT) FROM information_schema.columns \
                 WHERE table_schema = 'souk_journal' AND table_name = '{table}' \
                 ORDER BY ordinal_position"
            ),
        };
        self.rows(&sql).await.into_iter().flatten().flatten().collect()
    }

    /// An id as it is written in a statement.
    pub fn id(&self, id: Uuid) -> String {
        match self {
            Self::Sqlite(_) => format!("X'{}'", id.simple()),
            Self::Postgres(_) => format!("'{id}'"),
        }
    }

    /// Lets events be changed, as somebody could who owns the database.
    pub async fn allow_changes(&self) {
        let sql = match self {
            Self::Sqlite(_) => "DROP TRIGGER IF EXISTS events_are_final",
            Self::Postgres(_) => "DROP TRIGGER IF EXISTS events_are_final ON events",
        };
        self.change(sql).await.unwrap();
    }

    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}
