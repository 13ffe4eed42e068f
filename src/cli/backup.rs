//! `souk backup` and `souk restore`: everything that is true, as of one instant, in a folder.
//!
//! In the folder are the files of the journal (see `souk_actors::journal::backup`), the images of
//! listings, a list of it all with digests, and in development the keys that were made up. The list is
//! written last: a folder without it is no backup. Read models are not in it, they follow from the
//! journal.

mod images;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::json;
use souk_actors::id::keyed_hash;
use souk_actors::journal::Store;
use souk_actors::journal::backup::{self, Contents, Kind};
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::world::{SystemWorld, World as _};

use crate::app::{erase_read_models, open_journal_read_only};
use crate::config::{Config, Database, Secret, key_file};
use crate::domain::text::hex;
use crate::files::{private_folder, write_owner_only};
use crate::telemetry;

/// The list of what is in the folder.
const LIST: &str = "backup.json";
/// The layout of the list. Raise it when an older program would misread it.
const LAYOUT: u32 = 1;
/// What a key's check is made for; it tells nothing of the key.
const CHECK: &str = "backup";

/// `souk backup`.
#[derive(Args)]
pub(super) struct BackUp {
    /// The folder to make; it must not be there, or be empty
    folder: PathBuf,
    /// Tell what was done as JSON
    #[arg(long)]
    json: bool,
}

/// `souk restore`.
#[derive(Args)]
pub(super) struct Restore {
    /// The folder that `souk backup` made
    folder: PathBuf,
    /// Where there is a journal already, keep it under another name and put the backup in its place
    #[arg(long)]
    replace: bool,
    /// Only see whether the backup is whole and its keys are the ones in use; change nothing
    #[arg(long)]
    check: bool,
    /// Tell what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What stands in the list.
#[derive(Serialize, Deserialize)]
struct List {
    layout: u32,
    made_at: String,
    version: String,
    contents: Contents,
    /// Older versions of the program took none along.
    #[serde(default)]
    images: Option<images::Note>,
    keys: Vec<KeyNote>,
}

/// How a key is recognised, and whether it is in the folder.
#[derive(Serialize, Deserialize)]
struct KeyNote {
    name: String,
    check: String,
    included: bool,
}

pub(super) async fn back_up(config: &Config, options: BackUp) -> anyhow::Result<ExitCode> {
    let folder = &options.folder;
    let made = make_folder(folder)?;
    let done = write_backup(config, folder).await;
    if done.is_err() && made {
        // Half a backup is none. What is left behind in a folder of somebody else's is theirs to see.
        let _: std::io::Result<()> = std::fs::remove_dir_all(folder);
    }
    let (list, damaged) = done?;
    for place in &damaged {
        let kept = &config.storage.images;
        eprintln!("warning: the image {place} is damaged in {kept}: the backup has it as it is");
    }
    tell(&list, folder, options.json, "backed up to");
    Ok(ExitCode::SUCCESS)
}

/// Whether it had to be made.
fn make_folder(folder: &Path) -> anyhow::Result<bool> {
    let Ok(mut entries) = std::fs::read_dir(folder) else {
        return private_folder(folder).map(|()| true);
    };
    if entries.next().is_some() {
        bail!(
            "{} is not empty: name a new folder, so that no earlier backup is lost",
            folder.display()
        );
    }
    Ok(false)
}

/// The list of what is in the backup, and which images were found to be damaged.
async fn write_backup(config: &Config, folder: &Path) -> anyhow::Result<(List, Vec<String>)> {
    let store = open_journal_read_only(&config.storage).await?;
    let mut taken = images::Files::new();
    images::take(&config.storage.images, folder, &mut taken).await?;
    let made_at = SystemWorld::new().now().to_string();
    let spinner = ProgressBar::new_spinner().with_message("copying the journal");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let contents = store.back_up(folder).await.context("the journal cannot be copied");
    spinner.finish_and_clear();
    let contents = contents?;
    match contents.store {
        Kind::Sqlite => check_chain(&SqliteStore::open_backup(folder).await?, &contents).await?,
        // Its rows never change: those that were copied are there.
        Kind::Postgres => check_chain(&*store, &contents).await?,
    }
    images::take(&config.storage.images, folder, &mut taken).await?;
    let damaged = images::damaged(&taken).into_iter().map(str::to_owned).collect();
    let images = Some(images::write_list(folder, &taken)?);
    let mut keys = Vec::new();
    for (name, key) in named(config) {
        let included = is_made_up(config, name, key);
        if included {
            let file = key_file(folder, name);
            write_owner_only(&file, key.to_hex().as_bytes())
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        keys.push(KeyNote { name: name.to_owned(), check: check_of(key, name), included });
    }
    let version = telemetry::VERSION.to_owned();
    let list = List { layout: LAYOUT, made_at, version, contents, images, keys };
    write_owner_only(&folder.join(LIST), &serde_json::to_vec_pretty(&list)?)
        .with_context(|| format!("cannot write {LIST}"))?;
    Ok((list, damaged))
}

pub(super) async fn restore(config: &Config, options: Restore) -> anyhow::Result<ExitCode> {
    let folder = &options.folder;
    let list = read_list(folder)?;
    let kind = match config.storage.database {
        Database::Sqlite(_) => Kind::Sqlite,
        Database::Postgres(_) => Kind::Postgres,
    };
    if !options.check {
        list.contents.fits(kind)?;
    }
    let keys = keys_to_put_back(config, folder, &list)?;
    let bar = bar(list.contents.bytes(), "{binary_bytes}/{binary_total_bytes} of files read")?;
    let checked = backup::check_files(folder, &list.contents, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    checked?;
    if list.contents.store == Kind::Sqlite {
        let copy = SqliteStore::open_backup(folder).await.context("the backup cannot be read")?;
        check_chain(&copy, &list.contents).await?;
    }
    let images = list.images.as_ref().map(|note| images::check(folder, note)).transpose()?;
    if options.check {
        tell(&list, folder, options.json, "whole:");
        return Ok(ExitCode::SUCCESS);
    }
    put_back(config, folder, &list, &keys, options.replace).await?;
    if let Some(files) = images {
        images::put_back(folder, &files, &config.storage.images).await.context(
            "the journal is restored, but not all images are: when that is mended, run the same \
             again with --replace",
        )?;
    }
    tell(&list, folder, options.json, "restored from");
    Ok(ExitCode::SUCCESS)
}

async fn put_back(
    config: &Config,
    folder: &Path,
    list: &List,
    keys: &[(PathBuf, Secret)],
    replace: bool,
) -> anyhow::Result<()> {
    let digits = |c: &char| c.is_ascii_digit();
    let now: String = SystemWorld::new().now().to_string().chars().filter(digits).collect();
    let before = format!("before_{now}");
    let aside = replace.then_some(before.as_str());
    match &config.storage.database {
        Database::Sqlite(path) => {
            if let Some(parent) = path.parent() {
                private_folder(parent)?;
            }
            SqliteStore::restore(folder, &list.contents, path, aside).await?;
        }
        Database::Postgres(database) => {
            let mut options = PostgresOptions::new(database.url())?;
            options.lease_ttl = config.storage.lease_ttl;
            PostgresStore::restore(folder, &list.contents, options, aside).await?;
        }
    }
    for (file, key) in keys {
        if file.exists() {
            let mut kept = file.as_os_str().to_owned();
            kept.push(format!(".{before}"));
            std::fs::rename(file, &kept)
                .with_context(|| format!("cannot rename {}", file.display()))?;
        }
        write_owner_only(file, key.to_hex().as_bytes())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    // They may be of another history, and are made anew at the start.
    erase_read_models(&config.storage).await?;
    let store = open_journal_read_only(&config.storage).await?;
    check_chain(&*store, &list.contents).await
}

fn read_list(folder: &Path) -> anyhow::Result<List> {
    let path = folder.join(LIST);
    let text = std::fs::read(&path).with_context(|| {
        format!("{} cannot be read: is this a finished backup?", path.display())
    })?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if value["layout"] != LAYOUT {
        bail!(
            "the backup has layout {}, this version of the program reads {LAYOUT}: use the version \
             that made it ({})",
            value["layout"],
            value["version"].as_str().unwrap_or("unknown")
        );
    }
    serde_json::from_value(value).with_context(|| format!("{} is damaged", path.display()))
}

async fn check_chain(store: &dyn Store, contents: &Contents) -> anyhow::Result<()> {
    let bar = bar(contents.events(), "{pos}/{len} events verified, {eta} left")?;
    let checked = backup::check_chain(store, contents, |done| bar.set_position(done)).await;
    bar.finish_and_clear();
    checked.context("what was copied is not whole")
}

fn bar(length: u64, template: &str) -> anyhow::Result<ProgressBar> {
    let style =
        ProgressStyle::with_template(&format!("{{elapsed_precise}} {{wide_bar}} {template}"))?;
    Ok(ProgressBar::new(length).with_style(style))
}

fn named(config: &Config) -> [(&'static str, &Secret); 3] {
    let keys = &config.keys;
    [("MASTER_KEY", &keys.master), ("LOOKUP_KEY", &keys.lookup), ("TOKEN_KEY", &keys.token)]
}

/// Whether a key is the one that development keeps in the data folder.
fn is_made_up(config: &Config, name: &str, key: &Secret) -> bool {
    config.mode.is_development()
        && read_key(&key_file(&config.storage.data_dir, name)).as_ref() == Some(key)
}

fn read_key(file: &Path) -> Option<Secret> {
    std::fs::read_to_string(file).ok().and_then(|text| Secret::parse(&text))
}

fn check_of(key: &Secret, name: &str) -> String {
    hex(&keyed_hash(key.bytes(), CHECK, &[name.as_bytes()])[..16])
}

/// The made-up keys that have to be put in the place of others. A key that was given and is not the
/// one of then is refused: what is sealed could not be read, and nobody could log in.
fn keys_to_put_back(
    config: &Config,
    folder: &Path,
    list: &List,
) -> anyhow::Result<Vec<(PathBuf, Secret)>> {
    let mut keys = Vec::new();
    for (name, key) in named(config) {
        let note = list.keys.iter().find(|note| note.name == name);
        let note = note.with_context(|| format!("{LIST} is damaged: it does not name {name}"))?;
        if note.check == check_of(key, name) {
            continue;
        }
        let kept = read_key(&key_file(folder, name));
        match kept.filter(|kept| check_of(kept, name) == note.check) {
            Some(kept) if is_made_up(config, name, key) => {
                keys.push((key_file(&config.storage.data_dir, name), kept));
            }
            _ => bail!(
                "{name} is not the one that the backup was made with: set it to the one of then, \
                 or what it protects cannot be read"
            ),
        }
    }
    Ok(keys)
}

fn tell(list: &List, folder: &Path, as_json: bool, what: &str) {
    let contents = &list.contents;
    let heads = contents.heads.iter().map(|end| format!("{}:{}", end.partition, end.position));
    let heads: Vec<_> = heads.collect();
    if as_json {
        let told = json!({
            "folder": folder, "made_at": list.made_at, "store": contents.store, "heads": heads,
            "events": contents.events(), "bytes": contents.bytes(),
            "images": list.images.as_ref().map(|note| {
                json!({ "files": note.files, "bytes": note.bytes })
            }),
        });
        println!("{told}");
        return;
    }
    let (events, bytes) = (contents.events(), indicatif::BinaryBytes(contents.bytes()));
    println!("{what} {}", folder.display());
    println!("{events} events up to {}, {bytes}, made {}", heads.join(" "), list.made_at);
    match &list.images {
        Some(note) => {
            let bytes = indicatif::BinaryBytes(note.bytes);
            println!("{} files of images, {bytes}", note.files);
        }
        None => println!("no images: an older version made it, which did not take them along"),
    }
    let missing: Vec<_> =
        list.keys.iter().filter(|key| !key.included).map(|key| key.name.as_str()).collect();
    if what.starts_with("backed") && !missing.is_empty() {
        println!("{} are not in it: keep them in another safe place", missing.join(", "));
    }
}
