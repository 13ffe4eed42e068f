//! The write-ahead log as a file.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::beside;
use crate::journal::Error;

/// How much is written at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What the name of a database's log ends in.
const LOG: &str = "-wal";

/// Writes the log over itself and syncs it, so that everything that is read from it is surely on
/// disk: a sync that failed in an earlier process may have left it in the page cache alone, and a
/// later sync would not write it again.
pub(super) async fn write_again(database: &Path) -> Result<(), Error> {
    let path = beside(database, LOG);
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || {
        match File::options().read(true).write(true).open(path) {
            Ok(file) => rewrite(file),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    });
    let written = written.await.map_err(Error::database)?;
    written.map_err(|error| {
        Error::database(IoError::new(
            error.kind(),
            format!("{shown} cannot be made durable: {error}"),
        ))
    })
}

fn rewrite(mut file: File) -> Result<(), IoError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return file.sync_data();
        }
        file.seek(SeekFrom::Current(-i64::try_from(read).unwrap_or_default()))?;
        file.write_all(&chunk[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_is_written_again_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("journal.db");
        write_again(&database).await.unwrap();
        assert!(!beside(&database, LOG).exists(), "none is made where there is none");
        let content: Vec<u8> = (0..3 * CHUNK_BYTES + 17).map(|n| (n % 251) as u8).collect();
        std::fs::write(beside(&database, LOG), &content).unwrap();
        write_again(&database).await.unwrap();
        assert!(std::fs::read(beside(&database, LOG)).unwrap() == content);
    }
}
