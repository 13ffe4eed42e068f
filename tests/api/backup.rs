//! A backup that is made while the market is in use, and put back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::ImageFormat;
use serde_json::{Value, json};
use souk_actors::testing::postgres;
use tokio::task::JoinSet;

use crate::images::{picture, upload};
use crate::support::s3::S3;
use crate::support::{Command, Ended, Person, Server, on_postgres};

/// Sellers who change prices meanwhile.
const WRITERS: usize = 4;

/// A folder for backups, beside which nothing else is.
struct Shelf(tempfile::TempDir);

impl Shelf {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn backup(server: &Server, folder: &Path) -> Ended {
    server.command(&["backup", folder.to_str().unwrap(), "--json"]).run()
}

fn made(server: &Server, folder: &Path) -> Value {
    let done = backup(server, folder);
    assert_eq!(done.code, 0, "{}", done.errors);
    serde_json::from_str(&done.output).unwrap()
}

fn restore(server: &Server, folder: &Path, more: &[&str]) -> Ended {
    let words: Vec<_> = ["restore", folder.to_str().unwrap()].iter().chain(more).copied().collect();
    server.command(&words).run()
}

async fn reprice(person: &Person, listing: &str, amount: u64) -> u64 {
    let body = json!({ "price": { "amount": amount, "currency": "VND" } });
    let path = format!("/api/v1/listings/{listing}");
    person.client.if_match("*").patch(&path, &body).await.expect(200);
    amount
}

async fn price(server: &Server, listing: &str) -> u64 {
    server.listing_now(listing).await["price"]["amount"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_before_a_backup_under_load_is_in_it() {
    let (mut server, shelf) = (Server::start().await, Shelf::new());
    let sale = server.sale(5, 2, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let seller = Arc::new(sale.seller);
    let mut listings = Vec::new();
    for _ in 0..WRITERS {
        listings.push(server.listing(&seller, 1).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (answered, mut writers) = (tokio::sync::Barrier::new(WRITERS + 1), JoinSet::new());
    let answered = Arc::new(answered);
    for listing in listings.clone() {
        let (seller, stop, answered) = (seller.clone(), stop.clone(), answered.clone());
        writers.spawn(async move {
            let mut amount = reprice(&seller, &listing, 2_000).await;
            answered.wait().await;
            while !stop.load(Ordering::SeqCst) {
                amount = reprice(&seller, &listing, amount + 1).await;
            }
            amount
        });
    }
    answered.wait().await;
    let folder = shelf.folder("under-load");
    let done = tokio::task::block_in_place(|| made(&server, &folder));
    stop.store(true, Ordering::SeqCst);
    let last = writers.join_all().await;
    assert!(last.iter().all(|amount| *amount > 2_000), "nobody wrote meanwhile: {last:?}");
    assert!(done["events"].as_u64().unwrap() > 20, "{done}");
    let after = server.register("Late").await.expect(201).text("user_id");

    // Not while it runs, and not over what is there.
    let running = restore(&server, &folder, &["--replace"]);
    assert_eq!(running.code, 1);
    assert!(running.errors.contains("another process uses this journal"), "{}", running.errors);
    assert!(server.terminate().await.success());
    let in_the_way = restore(&server, &folder, &[]);
    assert_eq!(in_the_way.code, 1);
    assert!(in_the_way.errors.contains("--replace"), "{}", in_the_way.errors);

    let restored = restore(&server, &folder, &["--replace"]);
    assert_eq!(restored.code, 0, "{}", restored.errors);
    let verified = server.command(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}", verified.output);
    server.start_again().await;
    for (listing, last) in listings.iter().zip(last) {
        let now = price(&server, listing).await;
        assert!((2_000..=last).contains(&now), "{now} of {last}");
    }
    assert_eq!(server.order_now(&sale.order.id).await["status"], "SHIPPED");
    let gone = server.admin().get(&format!("/api/v1/users/{after}")).await;
    assert_eq!(gone.status(), 404, "{gone:?}");
    // The keys of persons are those of then, sessions go on, and life does too.
    let me = sale.buyer.client.get("/api/v1/users/me").await.expect(200);
    assert!(me["email"].as_str().unwrap().contains('@'), "{me:?}");
    reprice(&seller, &listings[0], 9_000_000).await;
    server.at_rest().await;
    let audit = server.admin().get("/api/v1/admin/audit").await.expect(200);
    assert_eq!(
        (&audit["missing"], &audit["duplicate_effects"]),
        (&json!(0), &json!(0)),
        "{audit:?}"
    );
    server.finish().await;
}

/// What the other journal was is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_replaced_can_be_looked_at_afterwards() {
    let (mut server, shelf) = (Server::start().await, Shelf::new());
    let folder = shelf.folder("early");
    made(&server, &folder);
    server.register("Ann").await.expect(201);
    assert!(server.terminate().await.success());
    assert_eq!(restore(&server, &folder, &["--replace"]).code, 0);
    if on_postgres() {
        let stored = server.stored().await;
        let kept =
            "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'souk_journal_before_%'";
        assert_eq!(stored.value(kept).await, "1");
        stored.close().await;
    } else {
        let names = std::fs::read_dir(server.folder()).unwrap().map(|entry| entry.unwrap().path());
        let mut kept: Vec<_> = names
            .filter(|name| name.to_str().is_some_and(|name| name.contains(".before_")))
            .collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        let url = format!("sqlite:{}", kept.remove(0).display());
        let verified = server.command(&["journal", "verify"]).with("DATABASE_URL", url).run();
        assert_eq!(verified.code, 0, "{}{}", verified.output, verified.errors);
    }
    server.start_again().await;
    server.register("Ann").await.expect(201);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_put_where_nothing_is_with_its_keys() {
    let (server, shelf) = (Server::start().await, Shelf::new());
    server.register("Ann").await.expect(201);
    let folder = shelf.folder("whole");
    made(&server, &folder);
    let elsewhere = tempfile::tempdir().unwrap();
    let database = match on_postgres() {
        true => Some(postgres::Server::shared().create_database().await),
        false => None,
    };
    let there = |arguments: &[&str]| {
        let command = Command::new(arguments).with("DATA_DIR", elsewhere.path().display());
        match &database {
            Some(url) => command.with("DATABASE_URL", url),
            None => command,
        }
    };
    let words = ["restore", folder.to_str().unwrap()];
    let restored = there(&words).run();
    assert_eq!(restored.code, 0, "{}", restored.errors);
    for key in ["master_key", "token_key", "lookup_key"] {
        let read = |folder: &Path| std::fs::read(folder.join("keys").join(key)).unwrap();
        assert_eq!(read(elsewhere.path()), read(server.folder()), "{key}");
    }
    let verified = there(&["journal", "verify"]).run();
    assert_eq!(verified.code, 0, "{}", verified.output);
    let again = there(&words).run();
    assert!(again.code == 1 && again.errors.contains("--replace"), "{}", again.errors);
    // A key that was given is never put aside.
    let other =
        there(&[&words[..], &["--check"]].concat()).with("MASTER_KEY", "ab".repeat(32)).run();
    assert!(other.code == 1 && other.errors.contains("MASTER_KEY"), "{}", other.errors);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_not_whole_is_not_put_back() {
    let (server, shelf) = (Server::start().await, Shelf::new());
    let folder = shelf.folder("damaged");
    made(&server, &folder);
    let twice = backup(&server, &folder);
    assert!(twice.code == 1 && twice.errors.contains("not empty"), "{}", twice.errors);
    assert_eq!(restore(&server, &folder, &["--check"]).code, 0);
    let list = folder.join("backup.json");
    let listed: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    for part in listed["contents"]["parts"].as_array().unwrap() {
        let file = folder.join(part["file"].as_str().unwrap());
        let sound = std::fs::read(&file).unwrap();
        let mut damaged = sound.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        let refused = restore(&server, &folder, &["--check"]);
        assert_eq!(refused.code, 1, "{part}");
        assert!(refused.errors.contains(part["file"].as_str().unwrap()), "{}", refused.errors);
        std::fs::write(&file, sound).unwrap();
    }
    assert_eq!(restore(&server, &folder, &["--check"]).code, 0);
    std::fs::remove_file(&list).unwrap();
    let unfinished = restore(&server, &folder, &["--check"]);
    assert!(unfinished.code == 1 && unfinished.errors.contains("backup.json"));
    // A folder that it made and could not finish is taken away again.
    let nowhere = shelf.folder("nowhere");
    let unread = Command::new(&["backup", nowhere.to_str().unwrap()])
        .with("DATA_DIR", shelf.folder("no-data").display())
        .run();
    assert_eq!(unread.code, 1, "{}", unread.output);
    assert!(!nowhere.exists());
    server.finish().await;
}

/// Every file below a folder, by its path there.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_go_along_and_come_back() {
    let (mut server, shelf) = (Server::start().await, Shelf::new());
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    let files = [picture(ImageFormat::Png, 640), picture(ImageFormat::WebP, 64)];
    let made_of = [files[0].as_slice(), files[1].as_slice()];
    let urls = upload(&sam.client, &path, &made_of).await.expect(200)["images"].clone();
    let folder = shelf.folder("with-images");
    let done = made(&server, &folder);
    assert_eq!(done["images"]["files"], 4, "{done}");
    let store = server.folder().join("images");
    let kept = files_below(&store);
    assert_eq!(files_below(&folder.join("images")), kept);

    // A damaged one is found before anything is put back.
    let one = folder.join("images").join(kept.keys().next().unwrap());
    let sound = std::fs::read(&one).unwrap();
    std::fs::write(&one, b"something else").unwrap();
    let refused = restore(&server, &folder, &["--check"]);
    assert_eq!(refused.code, 1);
    assert!(refused.errors.contains(one.to_str().unwrap()), "{}", refused.errors);
    std::fs::write(&one, sound).unwrap();
    assert_eq!(restore(&server, &folder, &["--check"]).code, 0);

    assert!(server.terminate().await.success());
    std::fs::remove_dir_all(&store).unwrap();
    let restored = restore(&server, &folder, &["--replace"]);
    assert_eq!(restored.code, 0, "{}", restored.errors);
    assert!(restored.output.contains("4 files of images"), "{}", restored.output);
    assert_eq!(files_below(&store), kept);
    server.start_again().await;
    for url in urls.as_array().unwrap() {
        assert_eq!(server.visitor().open(url.as_str().unwrap()).await.status(), 200, "{url}");
    }
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_in_a_bucket_go_along_and_come_back() {
    let (s3, shelf) = (S3::start().await, Shelf::new());
    s3.page(3);
    let mut server = s3.market().start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    let files = [picture(ImageFormat::Png, 640), picture(ImageFormat::WebP, 64)];
    let made_of = [files[0].as_slice(), files[1].as_slice()];
    let urls = upload(&sam.client, &path, &made_of).await.expect(200)["images"].clone();
    let objects = s3.objects();
    let folder = shelf.folder("with-a-bucket");
    let done = made(&server, &folder);
    assert_eq!(done["images"]["files"], 4, "{done}");
    assert_eq!(files_below(&folder.join("images")).len(), 4);

    // Without its images there is no backup.
    s3.fail(true);
    let failed = backup(&server, &shelf.folder("while-it-fails"));
    assert_eq!(failed.code, 1, "{}", failed.output);
    assert!(failed.errors.contains("s3://souk-images/market"), "{}", failed.errors);
    assert!(!shelf.folder("while-it-fails").exists());
    s3.fail(false);

    assert!(server.terminate().await.success());
    s3.clear();
    let restored = restore(&server, &folder, &["--replace"]);
    assert_eq!(restored.code, 0, "{}", restored.errors);
    assert!(restored.output.contains("4 files of images"), "{}", restored.output);
    assert_eq!(s3.objects(), objects);
    server.start_again().await;
    for url in urls.as_array().unwrap() {
        assert_eq!(server.visitor().open(url.as_str().unwrap()).await.status(), 200, "{url}");
    }
    server.finish().await;
}

/// What is wrong with an image where it is kept is said, and keeps nothing from being backed up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_image_is_named_and_an_older_backup_has_none() {
    let (server, shelf) = (Server::start().await, Shelf::new());
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    upload(&sam.client, &path, &[&picture(ImageFormat::Png, 64)]).await.expect(200);
    let store = server.folder().join("images");
    let large = files_below(&store.join(&listing).join("1600"));
    let name = large.keys().next().unwrap();
    std::fs::write(store.join(&listing).join("1600").join(name), b"damaged").unwrap();
    let folder = shelf.folder("damaged-image");
    let done = backup(&server, &folder);
    assert_eq!(done.code, 0, "{}", done.errors);
    assert!(done.errors.contains(name.to_str().unwrap()), "{}", done.errors);
    assert_eq!(restore(&server, &folder, &["--check"]).code, 0);

    let list = folder.join("backup.json");
    let mut listed: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    listed.as_object_mut().unwrap().remove("images").unwrap();
    std::fs::write(&list, listed.to_string()).unwrap();
    let older = restore(&server, &folder, &["--check"]);
    assert_eq!(older.code, 0, "{}", older.errors);
    assert!(older.output.contains("no images"), "{}", older.output);
    server.finish().await;
}
