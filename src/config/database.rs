//! Where the journal is kept: `DATABASE_URL`.

use std::path::PathBuf;
use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;

/// Where the journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// In this file; the read models are in another, in the data folder.
    Sqlite(PathBuf),
    /// In a PostgreSQL database, with the read models.
    Postgres(Postgres),
}

/// A PostgreSQL database and how to get into it. Whoever prints this sees no password.
#[derive(Clone)]
pub struct Postgres {
    url: String,
    options: Box<PgConnectOptions>,
}

impl Database {
    /// Reads a `DATABASE_URL`; an error says what it must be and repeats nothing of it.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must be postgres://<user>:<password>@<host>:<port>/<database>, or \
            sqlite:<path of a file>, or be left out";
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let options = Box::new(PgConnectOptions::from_str(url).map_err(|_| EXPECTED)?);
            return Ok(Self::Postgres(Postgres { url: url.to_owned(), options }));
        }
        let path = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        match path {
            Some(path) if !path.is_empty() && !path.contains([':', '?']) => {
                Ok(Self::Sqlite(PathBuf::from(path)))
            }
            _ => Err(EXPECTED),
        }
    }
}

impl Postgres {
    /// How to connect.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// The whole address, with the password: not to be shown.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Who connects.
    pub fn user(&self) -> &str {
        self.options.get_username()
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        self.options.get_database().unwrap_or(self.user())
    }
}

impl PartialEq for Postgres {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Postgres {}

impl std::fmt::Display for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (user, name) = (self.user(), self.name());
        match self.options.get_socket() {
            Some(socket) => write!(f, "postgres://{user}@{}/{name}", socket.display()),
            None => {
                let (host, port) = (self.options.get_host(), self.options.get_port());
                write!(f, "postgres://{user}@{host}:{port}/{name}")
            }
        }
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_stores_are_named_by_their_addresses() {
        let file = PathBuf::from("/var/lib/souk/j.db");
        assert_eq!(Database::parse("sqlite:///var/lib/souk/j.db"), Ok(Database::Sqlite(file)));
        let url = "postgresql://souk:hunter2@db.internal:6432/market?sslmode=require";
        let database = Database::parse(url).unwrap();
        let shown = format!("{database:?}");
        assert_eq!(shown, "Postgres(postgres://souk@db.internal:6432/market)");
        for wrong in ["sqlite:", "sqlite::memory:", "mysql://x", "postgres://h:none/x", "x.db"] {
            assert!(Database::parse(wrong).is_err(), "{wrong}");
        }
    }
}
