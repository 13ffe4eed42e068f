//! Files that hold what is nobody else's business: keys, tokens, people's data.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// Makes a folder, and those above it, that only its owner may enter. One that is there already is
/// left as it is: whoever made it has decided.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    make_folder(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Makes a file, unless it is there, that only its owner may read, and closes one that is there to
/// strangers. What SQLite puts beside a database has the rights of the database itself.
pub(crate) fn private_file(path: &Path) -> anyhow::Result<()> {
    let make = || {
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        close_to_strangers(&open(path, OpenOptions::new().append(true))?)
    };
    make().with_context(|| format!("cannot make the file {} private", path.display()))
}

/// Writes a file that only its owner may read, with the folders above it.
pub(crate) fn write_owner_only(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let mut file = open(path, OpenOptions::new().write(true).truncate(true))?;
    set_mode(&file, OWNER_ONLY)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Read and write for the owner.
const OWNER_ONLY: u32 = 0o600;

fn make_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

fn open(path: &Path, options: &mut OpenOptions) -> std::io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, OWNER_ONLY);
    options.create(true).open(path)
}

#[cfg(unix)]
fn set_mode(file: &File, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(Permissions::from_mode(mode))
}

/// A group stays as the operator set it: a backup may run as another user.
#[cfg(unix)]
fn close_to_strangers(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o007 == 0 { Ok(()) } else { set_mode(file, mode & 0o770) }
}

#[cfg(not(unix))]
fn set_mode(_: &File, _: u32) -> std::io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn close_to_strangers(_: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        private_folder(&folder).unwrap();
        private_file(&folder.join("x.db")).unwrap();
        write_owner_only(&folder.join("keys/token"), b"1").unwrap();
        assert_eq!((mode(&dir.path().join("a")), mode(&folder)), (0o700, 0o700));
        assert_eq!(mode(&folder.join("keys")), 0o700);
        assert_eq!(mode(&folder.join("x.db")), 0o600);
        assert_eq!(mode(&folder.join("keys/token")), 0o600);
    }

    #[test]
    fn what_was_open_is_closed_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        for (before, after) in [(0o644, 0o640), (0o666, 0o660), (0o600, 0o600)] {
            std::fs::write(&path, b"kept").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            private_file(&path).unwrap();
            assert_eq!(mode(&path), after);
            assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        }
        write_owner_only(&path, b"new").unwrap();
        assert_eq!((mode(&path), std::fs::read(&path).unwrap()), (0o600, b"new".to_vec()));
    }
}
