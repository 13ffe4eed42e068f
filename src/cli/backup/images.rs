//! The images of listings in a backup: `images/…` holds each file where its store has it, `images.list` has a
//! line for each: digest, bytes, place. The digest of that list stands in the list of the backup.
//!
//! They are copied before the journal and what is new after it again: so whatever the copy of the journal
//! names is among them, also where a listing loses an image meanwhile. What it does not name is swept away
//! once it has been restored, as anywhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bar;
use crate::files::write_owner_only;
use crate::images::{Images, Location, digest, is_place, named_digest};

/// The folder of the files.
const FOLDER: &str = "images";
/// The list of them.
const LIST: &str = "images.list";
const PROGRESS: &str = "{binary_bytes}/{binary_total_bytes} of images";

/// What the list of the backup says of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// How many files: two for each image.
    pub files: u64,
    /// How much they are.
    pub bytes: u64,
    /// Of [`LIST`].
    digest: String,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied {
    digest: String,
    bytes: u64,
}

/// Files by their place.
pub(super) type Files = BTreeMap<String, Copied>;

/// Copies the files that are not among `taken` yet.
pub(super) async fn take(store: &Location, folder: &Path, taken: &mut Files) -> anyhow::Result<()> {
    let describe = || format!("the images in {store} cannot be copied");
    if !store.exists() {
        return Ok(());
    }
    let images = Images::open(store)?;
    let mut fresh = images.files().await.with_context(describe)?;
    fresh.retain(|(place, _)| !taken.contains_key(place));
    let bar = bar(fresh.iter().map(|(_, bytes)| bytes).sum(), PROGRESS)?;
    for (place, bytes) in fresh {
        // It may have been swept away since it was listed.
        if let Some(content) = images.file(&place).await.with_context(describe)? {
            let copied = copy(folder, &place, &content)?;
            taken.insert(place, copied);
        }
        bar.inc(bytes);
    }
    bar.finish_and_clear();
    Ok(())
}

fn copy(folder: &Path, place: &str, content: &[u8]) -> anyhow::Result<Copied> {
    let file = file_of(folder, place);
    write_owner_only(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Copied { digest: digest(content), bytes: u64::try_from(content.len())? })
}

fn file_of(folder: &Path, place: &str) -> PathBuf {
    folder.join(FOLDER).join(place)
}

/// Those whose name is the digest of another content: they were damaged where they are kept.
pub(super) fn damaged(taken: &Files) -> Vec<&str> {
    let differs = |(place, copied): &(&String, &Copied)| {
        named_digest(place).is_some_and(|named| named != copied.digest)
    };
    taken.iter().filter(differs).map(|(place, _)| place.as_str()).collect()
}

/// Writes the list of what was taken.
pub(super) fn write_list(folder: &Path, taken: &Files) -> anyhow::Result<Note> {
    let line = |(place, of): (&String, &Copied)| format!("{} {} {place}\n", of.digest, of.bytes);
    let list: String = taken.iter().map(line).collect();
    write_owner_only(&folder.join(LIST), list.as_bytes())
        .with_context(|| format!("cannot write {LIST}"))?;
    Ok(Note {
        files: u64::try_from(taken.len())?,
        bytes: taken.values().map(|of| of.bytes).sum(),
        digest: digest(list.as_bytes()),
    })
}

/// What is in the backup, every file of it read and found to be what was written.
pub(super) fn check(folder: &Path, note: &Note) -> anyhow::Result<Files> {
    let list = std::fs::read(folder.join(LIST)).with_context(|| format!("cannot read {LIST}"))?;
    ensure!(digest(&list) == note.digest, "{LIST} is damaged: it is not what was written");
    let files = read_list(&String::from_utf8_lossy(&list))?;
    let bar = bar(note.bytes, PROGRESS)?;
    for (place, copied) in &files {
        read_file(folder, place, copied)?;
        bar.inc(copied.bytes);
    }
    bar.finish_and_clear();
    Ok(files)
}

fn read_list(list: &str) -> anyhow::Result<Files> {
    let line = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let (digest, bytes) = (parts.next()?, parts.next()?.parse().ok()?);
        // What is no place of an image is none of ours to write.
        let place = parts.next().filter(|place| is_place(place))?;
        Some((place.to_owned(), Copied { digest: digest.to_owned(), bytes }))
    };
    let read = |text: &str| line(text).with_context(|| format!("{LIST} has the line {text:?}"));
    list.lines().map(read).collect()
}

fn read_file(folder: &Path, place: &str, copied: &Copied) -> anyhow::Result<Bytes> {
    let file = file_of(folder, place);
    let content =
        std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    if digest(&content) != copied.digest {
        bail!("{} is damaged: it is not what was written", file.display());
    }
    Ok(content.into())
}

/// Puts every file where the market keeps its images. One that is there already is the same: its name
/// says what is in it.
pub(super) async fn put_back(folder: &Path, files: &Files, store: &Location) -> anyhow::Result<()> {
    let images = Images::open(store)?;
    let bar = bar(files.values().map(|of| of.bytes).sum(), PROGRESS)?;
    for (place, copied) in files {
        let content = read_file(folder, place, copied)?;
        let put = images.put_back(place, content).await;
        put.with_context(|| format!("cannot write {place} in {store}"))?;
        bar.inc(copied.bytes);
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "0199c0de-0000-7000-8000-000000000001";

    fn place(size: &str, hash: &str) -> String {
        format!("{LISTING}/{size}/{hash}.jpg")
    }

    fn put(store: &Path, place: &str, content: &[u8]) {
        let file = store.join(place);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    #[tokio::test]
    async fn what_comes_while_the_journal_is_copied_is_in_it_and_what_goes_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (store, folder, there) =
            (dir.path().join("store"), dir.path().join("backup"), dir.path().join("there"));
        let (mut taken, images) = (Files::new(), Location::Folder(store.clone()));
        take(&images, &folder, &mut taken).await.unwrap();
        assert!(taken.is_empty() && !store.exists(), "a backup makes nothing but itself");

        let (early, late) = (digest(b"early"), digest(b"late"));
        put(&store, &place("1600", &early), b"early");
        put(&store, &place("320", &early), b"small");
        put(&store, "a note", b"of somebody's");
        take(&images, &folder, &mut taken).await.unwrap();
        std::fs::remove_dir_all(store.join(LISTING)).unwrap();
        put(&store, &place("1600", &late), b"late");
        take(&images, &folder, &mut taken).await.unwrap();
        let note = write_list(&folder, &taken).unwrap();
        assert_eq!((note.files, note.bytes), (3, 14));
        assert!(damaged(&taken).is_empty());

        let files = check(&folder, &note).unwrap();
        assert_eq!(files, taken);
        let elsewhere = Location::Folder(there.clone());
        put_back(&folder, &files, &elsewhere).await.unwrap();
        put_back(&folder, &files, &elsewhere).await.unwrap();
        for (place, content) in [
            (place("1600", &early), "early"),
            (place("320", &early), "small"),
            (place("1600", &late), "late"),
        ] {
            assert_eq!(std::fs::read_to_string(there.join(place)).unwrap(), content);
        }
    }

    #[tokio::test]
    async fn damage_is_found_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (store, folder) = (dir.path().join("store"), dir.path().join("backup"));
        let place = place("1600", &digest(b"sound"));
        put(&store, &place, b"other");
        let mut taken = Files::new();
        take(&Location::Folder(store), &folder, &mut taken).await.unwrap();
        assert_eq!(damaged(&taken), [place.as_str()]);
        let note = write_list(&folder, &taken).unwrap();

        std::fs::write(file_of(&folder, &place), b"third").unwrap();
        let error = format!("{:#}", check(&folder, &note).unwrap_err());
        assert!(error.contains(&place) && error.contains("damaged"), "{error}");
        std::fs::remove_file(file_of(&folder, &place)).unwrap();
        assert!(format!("{:#}", check(&folder, &note).unwrap_err()).contains(&place));
        std::fs::write(folder.join(LIST), b"").unwrap();
        assert!(format!("{:#}", check(&folder, &note).unwrap_err()).contains(LIST));
    }

    #[test]
    fn a_list_names_places_of_images_only() {
        let hash = digest(b"x");
        assert_eq!(read_list(&format!("{hash} 1 {}\n", place("320", &hash))).unwrap().len(), 1);
        for wrong in ["../../etc/passwd", "/etc/passwd", "x", "", "a/b/c"] {
            assert!(read_list(&format!("{hash} 1 {wrong}\n")).is_err(), "{wrong}");
        }
        assert!(read_list(&format!("{hash} many {}\n", place("320", &hash))).is_err());
    }
}
