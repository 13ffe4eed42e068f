//! Backups of a PostgreSQL journal: each table as `COPY` writes it, all from one transaction that
//! sees one instant. The server goes on meanwhile.
//!
//! Leases and settings are not copied: a restored journal is made anew, with as many partitions,
//! and its epochs go on where those of the journal in its place ended, so that whoever still
//! appends to that one appends nothing to this one.

use std::fs::File;
use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::sync::mpsc;

use super::lease::{self, Holder};
use super::{
    HEAD, PostgresOptions, PostgresStore, SCHEMA, connect, set_up, set_up_lock, stored_format,
    stored_partitions,
};
use crate::journal::backup::{
    self, Contents, End, Kind, Part, in_background, part_path, text, unreadable,
};
use crate::journal::copy::{self, COPYING, Dump};
use crate::journal::rows::{self, POSITION_MASK, seq};
use crate::journal::{Error, FORMAT, Head, Store as _};

/// Tables that are made and not restored.
const OWN: &str = "'leases', 'settings', '_sqlx_migrations'";
/// What the name of a table's file ends in.
const EXTENSION: &str = ".copy";
/// How much is sent at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// A table and its columns, in order.
struct Table {
    name: String,
    columns: Vec<String>,
}

impl PostgresStore {
    pub(super) async fn copy_into(&self, folder: &Path) -> Result<Contents, Error> {
        let mut connection = connect(&unlimited(&self.options)).await?;
        execute(&mut connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut heads = Vec::new();
        for partition in 0..self.partitions {
            let head = sqlx::query(HEAD)
                .bind(seq(partition, 0))
                .bind(seq(partition, POSITION_MASK))
                .fetch_optional(&mut connection)
                .await
                .map_err(Error::database)?;
            let head = head.map_or_else(|| Ok(Head::default()), |row| rows::head_of(&row))?;
            heads.push(End { partition, position: head.position, hash: text(&head.hash) });
        }
        let mut parts = Vec::new();
        for table in tables(&mut connection).await? {
            let file = format!("{}{EXTENSION}", table.name);
            write_out(&mut connection, &table, part_path(folder, &file)?).await?;
            parts.push(backup::part(folder, &file, table.columns).await?);
        }
        execute(&mut connection, "COMMIT").await?;
        connection.close().await.map_err(Error::database)?;
        Ok(Contents { store: Kind::Postgres, format: FORMAT, heads, parts })
    }

    /// Makes a journal from a backup. A journal that is there already is in the way, or, with
    /// `aside`, keeps its tables in a schema whose name ends in it.
    ///
    /// # Errors
    /// [`Error::Locked`] while a process serves the journal, [`Error::Mismatch`] where one is in the
    /// way or the backup is of another store or format. Nothing has been changed then. Where a later
    /// step fails the database has no journal, or an empty one that this may replace.
    pub async fn restore(
        folder: &Path,
        contents: &Contents,
        options: PostgresOptions,
        aside: Option<&str>,
    ) -> Result<(), Error> {
        contents.fits(Kind::Postgres)?;
        let partitions = u16::try_from(contents.heads.len())
            .map_err(|_| Error::Damaged("the number of partitions".into()))?;
        let mut connection = connect(&unlimited(&options)).await?;
        set_up_lock(&mut connection, "SELECT pg_advisory_lock($1)").await?;
        let epoch = make_room(&mut connection, &options, aside).await?;
        set_up(&mut connection, partitions).await?;
        execute(&mut connection, "BEGIN").await?;
        let known = tables(&mut connection).await?;
        for part in &contents.parts {
            read_in(&mut connection, &known, folder, part).await?;
        }
        sqlx::query("UPDATE leases SET epoch = $1")
            .bind(epoch)
            .execute(&mut connection)
            .await
            .map_err(Error::database)?;
        execute(&mut connection, "COMMIT").await?;
        // Plans are made for tables as they are, not as they were when they were empty.
        execute(&mut connection, "ANALYZE").await?;
        connection.close().await.map_err(Error::database)
    }
}

impl PostgresStore {
    /// Opens a journal to be copied into, and serves it to nobody else: it is no journal before
    /// [`PostgresStore::finish_copy`]. What an earlier copy has left there is thrown away.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is a journal already, [`Error::Locked`] while another process
    /// has it.
    pub async fn open_for_copy(options: PostgresOptions, partitions: u16) -> Result<Self, Error> {
        let mut connection = connect(&unlimited(&options)).await?;
        set_up_lock(&mut connection, "SELECT pg_advisory_lock($1)").await?;
        make_room(&mut connection, &options, None).await?;
        set_up(&mut connection, partitions).await?;
        set_format(&mut connection, COPYING).await?;
        set_up_lock(&mut connection, "SELECT pg_advisory_unlock($1)").await?;
        connection.close().await.map_err(Error::database)?;
        Self::open_as(options, Some(partitions), COPYING).await
    }

    /// Makes the journal one that can be served, once everything is in it and verified.
    pub async fn finish_copy(self) -> Result<(), Error> {
        let mut connection = connect(&unlimited(&self.options)).await?;
        // Plans are made for tables as they are, not as they were when they were empty.
        execute(&mut connection, "ANALYZE").await?;
        set_format(&mut connection, &FORMAT.to_string()).await?;
        connection.close().await.map_err(Error::database)?;
        self.close().await;
        Ok(())
    }

    pub(super) async fn dump_into(&self, into: &mpsc::Sender<copy::Rows>) -> Result<(), Error> {
        let mut connection = connect(&unlimited(&self.options)).await?;
        let mut dump = Dump::new(into);
        for (table, sql) in copy::TABLES {
            let mut rows = sqlx::query(sql).fetch(&mut connection);
            while let Some(row) = poll_fn(|context| rows.as_mut().poll_next(context)).await {
                let full = dump.take(table, &row.map_err(Error::database)?)?;
                if let Some(full) = full {
                    dump.send(full).await?;
                }
            }
            drop(rows);
            dump.flush().await?;
        }
        connection.close().await.map_err(Error::database)
    }
}

async fn set_format(connection: &mut PgConnection, format: &str) -> Result<(), Error> {
    let set = sqlx::query("UPDATE settings SET value = $1 WHERE name = 'format'").bind(format);
    set.execute(connection).await.map(|_| ()).map_err(Error::database)
}

/// Connections for work that takes as long as it takes. Whole tables are read.
fn unlimited(options: &PostgresOptions) -> PgConnectOptions {
    options.connect.clone().options([("enable_seqscan", "on")])
}

async fn execute(connection: &mut PgConnection, sql: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(|_| ()).map_err(Error::database)
}

async fn tables(connection: &mut PgConnection) -> Result<Vec<Table>, Error> {
    let sql = format!(
        "SELECT c.table_name::text AS name, array_agg(c.column_name::text ORDER BY c.ordinal_position) AS columns
         FROM information_schema.columns c
         JOIN information_schema.tables t USING (table_schema, table_name)
         WHERE c.table_schema = '{SCHEMA}' AND t.table_type = 'BASE TABLE'
         AND c.table_name NOT IN ({OWN})
         GROUP BY 1 ORDER BY 1"
    );
    let rows =
        sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await.map_err(Error::database)?;
    rows.iter()
        .map(|row| {
            let name = row.try_get("name").map_err(Error::database)?;
            Ok(Table { name, columns: row.try_get("columns").map_err(Error::database)? })
        })
        .collect()
}

/// The columns by name: a later version may have added others.
fn statement(table: &str, columns: &[String], direction: &str) -> String {
    let columns: Vec<_> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    format!("COPY {SCHEMA}.{table} ({}) {direction} (FORMAT binary)", columns.join(", "))
}

async fn write_out(
    connection: &mut PgConnection,
    table: &Table,
    path: PathBuf,
) -> Result<(), Error> {
    let create = path.clone();
    let mut file = in_background(move || {
        let file = File::options().write(true).create_new(true).open(&create);
        file.map_err(|error| unreadable(&create, &error))
    })
    .await?;
    let sql = statement(&table.name, &table.columns, "TO STDOUT");
    let mut rows = connection.copy_out_raw(&sql).await.map_err(Error::database)?;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        let next = poll_fn(|context| rows.as_mut().poll_next(context)).await;
        let ended = next.is_none();
        if let Some(bytes) = next {
            chunk.extend_from_slice(&bytes.map_err(Error::database)?);
        }
        if !ended && chunk.len() < CHUNK_BYTES {
            continue;
        }
        let (content, named) = (std::mem::take(&mut chunk), path.clone());
        file = in_background(move || {
            file.write_all(&content).map_err(|error| unreadable(&named, &error))?;
            Ok(file)
        })
        .await?;
        if ended {
            return Ok(());
        }
    }
}

/// Sees to it that there is no journal, and says from which epoch on a new one is safe.
async fn make_room(
    connection: &mut PgConnection,
    options: &PostgresOptions,
    aside: Option<&str>,
) -> Result<i64, Error> {
    if stored_partitions(connection).await?.is_none() {
        return Ok(1);
    }
    let events: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM events)")
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::database)?;
    // What a copy has left half done is nobody's journal.
    let events = events && stored_format(connection).await?.as_deref() != Some(COPYING);
    if events && aside.is_none() {
        return Err(Error::Mismatch(format!(
            "there is a journal in this database already (schema {SCHEMA}): name another, or \
             restore with --replace, which keeps it under another name"
        )));
    }
    // Refused while somebody serves it, and fences off whoever did.
    let taken = lease::take(connection, &Holder::new(), options.lease_ttl).await?;
    let epoch = taken.epochs.iter().max().copied().unwrap_or(0) + 1;
    let aside = aside.filter(|_| events).map(|aside| format!("{SCHEMA}_{aside}"));
    let sql = match aside {
        Some(name) => format!("ALTER SCHEMA {SCHEMA} RENAME TO \"{name}\""),
        None => format!("DROP SCHEMA {SCHEMA} CASCADE"),
    };
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map_err(Error::database)?;
    Ok(rows::to_i64(epoch))
}

/// Reads a table's file in, if it is of a table and of columns that there are.
async fn read_in(
    connection: &mut PgConnection,
    known: &[Table],
    folder: &Path,
    part: &Part,
) -> Result<(), Error> {
    let unknown = || Error::Damaged(format!("{} is of no table that there is", part.file));
    let name = part.file.strip_suffix(EXTENSION).ok_or_else(unknown)?;
    let table = known.iter().find(|table| table.name == name).ok_or_else(unknown)?;
    if !part.columns.iter().all(|column| table.columns.contains(column)) {
        return Err(unknown());
    }
    let path = part_path(folder, &part.file)?;
    let sql = statement(&table.name, &part.columns, "FROM STDIN");
    let mut copy = connection.copy_in_raw(&sql).await.map_err(Error::database)?;
    let mut file = File::open(&path).map_err(|error| unreadable(&path, &error))?;
    loop {
        let named = path.clone();
        let (back, chunk) = in_background(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = file.read(&mut chunk).map_err(|error| unreadable(&named, &error))?;
            chunk.truncate(read);
            Ok((file, chunk))
        })
        .await?;
        file = back;
        if chunk.is_empty() {
            break;
        }
        copy.send(chunk).await.map_err(Error::database)?;
    }
    copy.finish().await.map(|_| ()).map_err(Error::database)
}
