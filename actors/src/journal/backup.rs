//! Copies of a whole journal with its control rows, as of one instant, and how they are put back.
//!
//! A backup is a folder of files: of a SQLite journal the database itself, of a PostgreSQL journal
//! each table as `COPY` writes it. [`Contents`] says what is in it, with a digest of each file, so
//! that a damaged backup is found before anything rests on it. Restoring stores events without the
//! writer; it is the one place that does, and only where there is no journal.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, FORMAT, Store, chain, rows};
use crate::event::Position;

/// How much of a file is read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Which store a backup is of: it can only be put back into one of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A SQLite file.
    Sqlite,
    /// Tables of a PostgreSQL database.
    Postgres,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The store.
    pub store: Kind,
    /// The format of its rows.
    pub format: u32,
    /// Where each partition's log ends, in order.
    pub heads: Vec<End>,
    /// The files.
    pub parts: Vec<Part>,
}

/// Where a partition's log ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The partition.
    pub partition: u16,
    /// The position of its last event; 0: it has none.
    pub position: u64,
    /// The hash of its last event, in hexadecimal.
    pub hash: String,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the folder.
    pub file: String,
    /// The columns of the table that is in it, in order; none: it is a database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3 hash, in hexadecimal.
    pub blake3: String,
}

impl Contents {
    /// Whether it can be put into a store of this kind by this version of the program.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with what to do about it.
    pub fn fits(&self, store: Kind) -> Result<(), Error> {
        let what = match self.store {
            of if of == store => {
                return rows::check_setting(
                    "format",
                    &self.format.to_string(),
                    &FORMAT.to_string(),
                );
            }
            Kind::Sqlite => {
                "the backup is of a SQLite journal: leave DATABASE_URL out, or give it a sqlite: \
                 address"
            }
            Kind::Postgres => {
                "the backup is of a PostgreSQL journal: give DATABASE_URL a PostgreSQL database"
            }
        };
        Err(Error::Mismatch(what.into()))
    }

    /// How many events it holds.
    pub fn events(&self) -> u64 {
        self.heads.iter().map(|end| end.position).sum()
    }

    /// How long its files are together.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// Reads every file of a backup and compares it with what it should be. `progress` is told of bytes
/// as they are read.
///
/// # Errors
/// [`Error::Damaged`] with the file's name, [`Error::Database`] where it cannot be read.
pub fn check_files(
    folder: &Path,
    contents: &Contents,
    mut progress: impl FnMut(u64),
) -> Result<(), Error> {
    for part in &contents.parts {
        let path = part_path(folder, &part.file)?;
        let found = measure(&path, &mut progress).map_err(|error| unreadable(&path, &error))?;
        if found != (part.bytes, part.blake3.clone()) {
            let what = format!("{} is not the file that was backed up", path.display());
            return Err(Error::Damaged(what));
        }
    }
    Ok(())
}

/// Verifies the chain of each partition of a journal up to where the contents say that it ends, and
/// that it ends there with that hash; the journal may go on behind it. `progress` is told how many
/// events are done, over all partitions.
pub async fn check_chain(
    store: &dyn Store,
    contents: &Contents,
    mut progress: impl FnMut(u64),
) -> Result<(), Error> {
    if contents.heads.len() != usize::from(store.partitions()) {
        return Err(Error::Damaged("the number of partitions".into()));
    }
    let mut before = 0;
    for end in &contents.heads {
        let verified = chain::verify(store, end.partition, |done| progress(before + done)).await?;
        let at = Position { partition: end.partition, position: end.position };
        if let Some(damage) = verified.damage.filter(|damage| damage.position <= end.position) {
            let place = Position { position: damage.position, ..at };
            return Err(Error::Damaged(format!("at {place}: {}", damage.what)));
        }
        if end.position > 0 {
            let last = store.read_from(end.partition, end.position - 1, 1).await?;
            if last.first().is_none_or(|event| text(&event.hash) != end.hash) {
                return Err(Error::Damaged(format!("the log does not have its end at {at}")));
            }
        }
        before += end.position;
    }
    Ok(())
}

/// Where each partition of a journal that nobody appends to ends.
pub(super) async fn ends(store: &dyn Store) -> Result<Vec<End>, Error> {
    let mut ends = Vec::new();
    for partition in 0..store.partitions() {
        let head = store.head(partition).await?;
        ends.push(End { partition, position: head.position, hash: text(&head.hash) });
    }
    Ok(ends)
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A part's path; its name comes from a file that anybody may have written.
pub(super) fn part_path(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.starts_with('.') || name.is_empty() || !name.chars().all(plain) {
        return Err(Error::Damaged("the list of its files".into()));
    }
    Ok(folder.join(name))
}

/// A file of a backup, once it is written and synced.
pub(super) async fn part(folder: &Path, file: &str, columns: Vec<String>) -> Result<Part, Error> {
    let path = part_path(folder, file)?;
    let file = file.to_owned();
    in_background(move || {
        let sync = File::open(&path).and_then(|file| file.sync_all());
        sync.map_err(|error| unreadable(&path, &error))?;
        let (bytes, blake3) =
            measure(&path, &mut |_| ()).map_err(|error| unreadable(&path, &error))?;
        Ok(Part { file, columns, bytes, blake3 })
    })
    .await
}

/// Copies a file, synced, and says whether the copy is what the part should be.
pub(super) async fn put(from: PathBuf, to: PathBuf, part: Part) -> Result<(), Error> {
    in_background(move || {
        let copied = copy(&from, &to).map_err(|error| unreadable(&to, &error))?;
        match copied == (part.bytes, part.blake3) {
            true => Ok(()),
            false => Err(Error::Damaged(format!("{} changed while it was read", from.display()))),
        }
    })
    .await
}

/// Runs what blocks off the runtime.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::database)?
}

pub(super) fn unreadable(path: &Path, error: &IoError) -> Error {
    Error::database(IoError::new(error.kind(), format!("{}: {error}", path.display())))
}

/// What a backup of a journal that cannot be backed up says.
pub(super) fn not_here() -> Error {
    Error::Mismatch("a journal that is kept in memory has no backup".into())
}

fn measure(path: &Path, progress: &mut impl FnMut(u64)) -> Result<(u64, String), IoError> {
    through(&mut File::open(path)?, |chunk| {
        progress(chunk.len() as u64);
        Ok(())
    })
}

fn copy(from: &Path, to: &Path) -> Result<(u64, String), IoError> {
    let mut copy = File::options().write(true).create_new(true).open(to)?;
    let done = through(&mut File::open(from)?, |chunk| copy.write_all(chunk))?;
    copy.sync_all()?;
    Ok(done)
}

/// Reads a file to its end: its length and its hash.
fn through(
    file: &mut File,
    mut each: impl FnMut(&[u8]) -> Result<(), IoError>,
) -> Result<(u64, String), IoError> {
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((bytes, text(hasher.finalize().as_bytes()))),
            Ok(read) => {
                hasher.update(&chunk[..read]);
                bytes += read as u64;
                each(&chunk[..read])?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_stay_in_their_folder() {
        let folder = Path::new("backup");
        assert_eq!(part_path(folder, "events.copy").unwrap(), folder.join("events.copy"));
        for name in ["", ".", "..", ".hidden", "../journal.db", "/etc/passwd", "a/b", "a\\b"] {
            assert!(part_path(folder, name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_that_changed_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.copy");
        std::fs::write(&path, vec![7; 3 * CHUNK_BYTES / 2]).unwrap();
        let (bytes, blake3) = measure(&path, &mut |_| ()).unwrap();
        let part = Part { file: "events.copy".into(), columns: Vec::new(), bytes, blake3 };
        let contents =
            Contents { store: Kind::Postgres, format: 1, heads: Vec::new(), parts: vec![part] };
        let mut read = 0;
        check_files(folder.path(), &contents, |bytes| read += bytes).unwrap();
        assert_eq!(read, contents.bytes());
        let mut content = vec![7; 3 * CHUNK_BYTES / 2];
        content[CHUNK_BYTES + 5] ^= 1;
        std::fs::write(&path, content).unwrap();
        let changed = check_files(folder.path(), &contents, |_| ()).unwrap_err();
        assert!(changed.to_string().contains("events.copy"), "{changed}");
        std::fs::remove_file(&path).unwrap();
        assert!(check_files(folder.path(), &contents, |_| ()).is_err());
    }
}
