//! A disk of a few megabytes that can be filled up.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A `tmpfs` of its own. It says `ENOSPC` as every file system does.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Panics
    /// Where nobody may mount: the test would show nothing.
    pub fn mount(megabytes: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("souk-disk-").tempdir().unwrap();
        let options = format!("size={megabytes}m,mode=0755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        assert!(mounted, "a full disk can only be tested where a tmpfs can be mounted (as root)");
        Self { folder }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut ballast = std::fs::File::create(self.folder.path().join("ballast")).unwrap();
        for size in [1 << 20, 1 << 12] {
            let chunk = vec![7; size];
            while ballast.write_all(&chunk).is_ok() {}
        }
    }

    /// Takes space until about so many bytes are left.
    pub fn leave(&self, bytes: u64) {
        let known = rustix::fs::statvfs(self.path()).unwrap();
        let taken = (known.f_bavail * known.f_frsize).checked_sub(bytes).unwrap();
        let mut ballast = std::fs::File::create(self.folder.path().join("ballast")).unwrap();
        // Written, and not only made longer: a hole takes no space.
        std::io::copy(&mut std::io::repeat(7).take(taken), &mut ballast).unwrap();
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.folder.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}
