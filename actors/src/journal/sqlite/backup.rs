//! Backups of a SQLite journal: the database itself, as `VACUUM INTO` writes it from one read
//! transaction. The server goes on meanwhile; only its log grows, since nothing that the reader
//! may still need is moved.

use std::fs::File;
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions as _, Connection as _};

use super::{Durability, SqliteStore, beside, lock, options};
use crate::journal::backup::{self, Contents, Kind, in_background, part_path, unreadable};
use crate::journal::{Error, FORMAT};

/// The database in the folder of a backup.
const FILE: &str = "journal.db";

/// What stands beside a database.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

impl SqliteStore {
    pub(super) async fn copy_into(&self, folder: &Path) -> Result<Contents, Error> {
        let path = part_path(folder, FILE)?;
        let Some(name) = path.to_str() else {
            return Err(Error::Mismatch(format!("{} is not UTF-8", path.display())));
        };
        sqlx::query("VACUUM INTO $1")
            .bind(name)
            .execute(&self.readers)
            .await
            .map_err(Error::database)?;
        let copy = Self::open_read_only(&path).await?;
        let heads = backup::ends(&copy).await?;
        copy.readers.close().await;
        let parts = vec![backup::part(folder, FILE, Vec::new()).await?];
        Ok(Contents { store: Kind::Sqlite, format: FORMAT, heads, parts })
    }

    /// Opens the journal in the folder of a backup, to look at it.
    pub async fn open_backup(folder: &Path) -> Result<Self, Error> {
        Self::open_read_only(&folder.join(FILE)).await
    }

    /// Puts a backup where a journal belongs. A journal that is there already is in the way, or,
    /// with `aside`, keeps its files under names that end in it.
    ///
    /// # Errors
    /// [`Error::Locked`] while a process has the journal open, [`Error::Mismatch`] where one is in
    /// the way or the backup is of another store or format. Nothing has been changed then.
    pub async fn restore(
        folder: &Path,
        contents: &Contents,
        path: &Path,
        aside: Option<&str>,
    ) -> Result<(), Error> {
        contents.fits(Kind::Sqlite)?;
        let [part] = contents.parts.as_slice() else {
            return Err(Error::Damaged("the list of its files".into()));
        };
        let part = part.clone();
        let held = lock(path)?;
        // An empty file is what opening leaves before there is a journal in it.
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
        let there = SUFFIXES.iter().any(|suffix| length(&beside(path, suffix)) > 0);
        if there && aside.is_none() {
            return Err(Error::Mismatch(format!(
                "there is a journal at {} already: --replace keeps it under another name",
                path.display()
            )));
        }
        if there {
            // So that the old database is whole without its log.
            let whole = whole(path).await;
            if let Err(error) = whole {
                tracing::warn!(%error, "the journal that is replaced cannot be read: its files are kept as they are");
            }
        }
        let coming = beside(path, ".restoring");
        let _ = std::fs::remove_file(&coming);
        backup::put(part_path(folder, &part.file)?, coming.clone(), part).await?;
        let (path, aside) = (path.to_owned(), aside.map(str::to_owned));
        in_background(move || {
            let moved = move_in(&coming, &path, aside.as_deref());
            drop(held);
            moved.map_err(|error| unreadable(&path, &error))
        })
        .await
    }
}

/// What stands in the place of a journal that is being copied into.
const COMING: &str = ".copying";

/// A journal that is being copied into, beside the place where it belongs: it comes there whole, or
/// not at all.
#[derive(Debug)]
pub struct SqliteCopy {
    store: SqliteStore,
    path: PathBuf,
    held: File,
}

impl SqliteCopy {
    /// Begins one for this place. What an earlier copy has left is thrown away.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is a journal already, [`Error::Locked`] while another process
    /// has it.
    pub async fn begin(path: &Path, partitions: u16) -> Result<Self, Error> {
        let held = lock(path)?;
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
        if SUFFIXES.iter().any(|suffix| length(&beside(path, suffix)) > 0) {
            return Err(Error::Mismatch(format!(
                "there is a journal at {} already: name another place",
                path.display()
            )));
        }
        let coming = beside(path, COMING);
        for suffix in SUFFIXES {
            let _ = std::fs::remove_file(beside(&coming, suffix));
        }
        owner_only(&coming).map_err(|error| unreadable(&coming, &error))?;
        let store = SqliteStore::open(&coming, partitions).await?;
        Ok(Self { store, path: path.to_owned(), held })
    }

    /// The journal to copy into.
    pub fn store(&self) -> &SqliteStore {
        &self.store
    }

    /// Puts it where it belongs, once everything is in it and verified.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { mut store, path, held } = self;
        let coming = store.path.clone();
        store.readers.close().await;
        if let Some(anchor) = store.anchor.take() {
            anchor.into_inner().close().await.map_err(Error::database)?;
        }
        if let Some(connection) = store.writer.lock().await.connection.take() {
            connection.close().await.map_err(Error::database)?;
        }
        drop(store);
        whole(&coming).await.map_err(Error::database)?;
        in_background(move || {
            let moved = move_in(&coming, &path, None);
            for beside_it in ["-wal", "-shm", ".lock"] {
                let _ = std::fs::remove_file(beside(&coming, beside_it));
            }
            drop(held);
            moved.map_err(|error| unreadable(&path, &error))
        })
        .await
    }
}

/// Makes a file that its owner alone may read.
fn owner_only(path: &Path) -> std::io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

async fn whole(path: &Path) -> Result<(), sqlx::Error> {
    let mut connection = options(path, Durability::Full).connect().await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await?;
    connection.close().await
}

/// The log first: the new database must never be seen beside it.
fn move_in(coming: &Path, path: &Path, aside: Option<&str>) -> Result<(), std::io::Error> {
    for suffix in SUFFIXES.iter().rev() {
        let old = beside(path, suffix);
        if !old.exists() {
            continue;
        }
        match aside {
            Some(aside) => {
                let name = beside(path, &format!(".{aside}"));
                std::fs::rename(&old, beside(&name, suffix))?;
            }
            None => std::fs::remove_file(&old)?,
        }
    }
    std::fs::rename(coming, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}
