//! Images of listings. What comes in is taken apart and made anew, so that what is kept is an image
//! and nothing else: no place and camera that a telephone noted in it, no script behind its last pixel.
//! Each is kept in two sizes, under a name that follows from its content.
//!
//! The files are in a folder or in a bucket of S3, behind [`object_store`]. No event holds an image, only
//! where it is. A file is written before the event that names it; one that no listing names (its event
//! was refused, its image was taken away) is deleted by a sweep.

mod s3;

pub use s3::Bucket;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use souk_actors::runtime::Runtime;
use souk_actors::world::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, RwLock, RwLockReadGuard, Semaphore};

use crate::domain::ids::ListingId;
use crate::domain::listing::Listing;

/// Where images are found on the API.
pub const PREFIX: &str = "/api/v1/images/";

/// The longer side of what is kept, in pixels, and of the small one.
const LARGE: u32 = 1_600;
const SMALL: u32 = 320;
/// The longest side that is taken in, and the most pixels: some telephones make fifty million.
const SIDE_MAX: u32 = 16_384;
const PIXELS_MAX: u64 = 50_000_000;
/// The most memory that taking an image apart may need.
const MEMORY_MAX: u64 = 256 << 20;
/// How well a JPEG keeps what it is of.
const QUALITY: u8 = 85;
/// Images that are worked on at once: each has a processor and much memory for itself.
const AT_ONCE: usize = 2;
/// Uploads that are taken in at once: each has a file and what was made of those before it in memory.
const UPLOADS_MAX: usize = 16;

/// How long after it was written nobody takes a file for one that nobody wants: a request may be about
/// to say so.
const SETTLED: Duration = Duration::from_secs(60 * 60);
/// Between two looks for files that nobody wants.
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// Which formats are taken in. What a file is its content says, not its name.
const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

/// Why an image is not kept, or not given.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is none, or one that cannot be read.
    #[error("this is not a PNG, JPEG or WebP image that can be read")]
    NotAnImage,
    /// It has too many pixels.
    #[error("the image must have at most {PIXELS_MAX} pixels and {SIDE_MAX} in a row or column")]
    TooLarge,
    /// The store does not work.
    #[error("the images cannot be reached")]
    Store(#[source] object_store::Error),
}

impl From<object_store::Error> for ImageError {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

/// An image as it will be kept.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The name of its file: what it contains, and its format.
    pub name: String,
    large: Bytes,
    small: Bytes,
}

/// In which size an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// At most 1600 pixels a side.
    Large,
    /// At most 320 pixels a side.
    Small,
}

impl Size {
    const ALL: [Self; 2] = [Self::Large, Self::Small];

    fn folder(self) -> &'static str {
        match self {
            Self::Large => "1600",
            Self::Small => "320",
        }
    }
}

/// Where the images are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In this folder.
    Folder(PathBuf),
    /// In this bucket of S3.
    S3(Box<Bucket>),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::S3(bucket) => write!(f, "{bucket}"),
        }
    }
}

impl Location {
    /// Whether anything can be there: nothing is in a folder that was not made yet.
    pub fn exists(&self) -> bool {
        match self {
            Self::Folder(folder) => folder.exists(),
            Self::S3(_) => true,
        }
    }

    fn open(&self) -> anyhow::Result<Arc<dyn ObjectStore>> {
        let folder = match self {
            Self::Folder(folder) => folder,
            Self::S3(bucket) => return Ok(Arc::new(bucket.open()?)),
        };
        let describe = || format!("cannot make the folder of images {}", folder.display());
        std::fs::create_dir_all(folder).with_context(describe)?;
        Ok(Arc::new(LocalFileSystem::new_with_prefix(folder).with_context(describe)?))
    }
}

/// The images. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Arc<dyn ObjectStore>,
    work: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    /// Held for reading from before files are written until their event is decided, and for writing
    /// while files that nobody names are deleted: so none is deleted that is about to be named.
    naming: Arc<RwLock<()>>,
}

impl Images {
    /// Those in this place. A folder is made where there is none; of a bucket nothing is asked yet.
    pub fn open(location: &Location) -> anyhow::Result<Self> {
        Ok(Self {
            store: location.open()?,
            work: Arc::new(Semaphore::new(AT_ONCE)),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            naming: Arc::default(),
        })
    }

    /// A place for an upload; none: there are as many under way as there may be.
    pub fn upload(&self) -> Option<OwnedSemaphorePermit> {
        self.uploads.clone().try_acquire_owned().ok()
    }

    /// Keeps files from being deleted as long as it lives: for whoever writes some and will say which
    /// listing they belong to.
    pub async fn naming(&self) -> RwLockReadGuard<'_, ()> {
        self.naming.read().await
    }

    /// Where an image of a listing is found.
    pub fn url(listing: ListingId, name: &str) -> String {
        format!("{PREFIX}{listing}/{name}")
    }

    /// Where the small one of an image is found: the same where it was not uploaded here.
    pub fn thumbnail(image: &str) -> String {
        let query = if image.starts_with(PREFIX) { "?size=320" } else { "" };
        format!("{image}{query}")
    }

    /// Takes a file apart and makes an image of it.
    pub async fn prepare(&self, file: Bytes) -> Result<Prepared, ImageError> {
        let place = self.work.clone().acquire_owned().await.expect("nobody closes it");
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            prepared(&file)
        });
        // What panics over an image is no image.
        work.await.unwrap_or(Err(ImageError::NotAnImage))
    }

    /// Keeps an image of a listing. The same one twice is there once.
    pub async fn keep(&self, listing: ListingId, image: &Prepared) -> Result<(), ImageError> {
        for (size, bytes) in [(Size::Small, &image.small), (Size::Large, &image.large)] {
            self.store.put(&path(listing, &image.name, size), bytes.clone().into()).await?;
        }
        Ok(())
    }

    /// An image of a listing; none: there is none of this name.
    pub async fn read(
        &self,
        listing: ListingId,
        name: &str,
        size: Size,
    ) -> Result<Option<Bytes>, ImageError> {
        if !is_name(name) {
            return Ok(None);
        }
        self.file(path(listing, name, size).as_ref()).await
    }

    /// Every file: its place, and how many bytes it has. What is no place of an image is left out.
    pub async fn files(&self) -> Result<Vec<(String, u64)>, ImageError> {
        let files: Vec<_> = self.store.list(None).try_collect().await?;
        let place = |file: ObjectMeta| (file.location.to_string(), file.size);
        Ok(files.into_iter().map(place).filter(|(place, _)| is_place(place)).collect())
    }

    /// The file in a place; none: there is none.
    pub async fn file(&self, place: &str) -> Result<Option<Bytes>, ImageError> {
        match self.store.get(&Path::from(place)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the store says what it has.
    pub async fn check(&self) -> Result<(), ImageError> {
        self.store.list(None).try_next().await?;
        Ok(())
    }

    /// Puts a file back where it was.
    pub async fn put_back(&self, place: &str, content: Bytes) -> Result<(), ImageError> {
        self.store.put(&Path::from(place), content.into()).await?;
        Ok(())
    }

    /// Deletes the files that were settled before `now` and that their listing does not name; says how
    /// many. `named` are the images of a listing.
    pub async fn sweep<Named>(
        &self,
        now: Timestamp,
        named: impl Fn(ListingId) -> Named,
    ) -> anyhow::Result<usize>
    where
        Named: Future<Output = anyhow::Result<Vec<String>>>,
    {
        let mut files = self.store.list(None);
        let mut old: BTreeMap<ListingId, Vec<_>> = BTreeMap::new();
        while let Some(file) = files.try_next().await? {
            let settled = i64::try_from(SETTLED.as_millis()).unwrap_or(i64::MAX);
            let written = file.last_modified.timestamp_millis();
            let listing = file.location.parts().next().and_then(|part| part.as_ref().parse().ok());
            if let Some(listing) =
                listing.filter(|_| written.saturating_add(settled) < now.millis())
            {
                old.entry(listing).or_default().push((file.location, file.last_modified));
            }
        }
        let mut gone = 0;
        for (listing, files) in old {
            let _nobody_writes = self.naming.write().await;
            let named = named(listing).await?;
            for (file, written) in files {
                let name = file.filename().unwrap_or_default();
                // Somebody may have written the same one again since. Not every store is exact to less
                // than a second whenever it is asked.
                let there = self.store.head(&file).await;
                let is_same =
                    there.is_ok_and(|of| of.last_modified.timestamp() == written.timestamp());
                if is_same && !named.contains(&Self::url(listing, name)) {
                    self.store.delete(&file).await?;
                    gone += 1;
                }
            }
        }
        Ok(gone)
    }

    /// Says so where the store cannot be reached, and looks for files that nobody wants, again and
    /// again.
    pub async fn keep_tidy(self, runtime: Runtime) {
        if let Err(error) = self.check().await {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "images are 503 until their store can be reached");
        }
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let named = |listing: ListingId| {
                let runtime = runtime.clone();
                async move {
                    let images = |listing: &Listing| {
                        listing.details.as_ref().map(|details| details.images.clone())
                    };
                    let listings = runtime.aggregate::<Listing>();
                    let read = listings.read_inside(listing.uuid(), images).await?;
                    Ok(read.value.unwrap_or_default())
                }
            };
            match self.sweep(runtime.world().now(), named).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(files, "images that no listing names were deleted"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "images that no listing names were not looked for");
                }
            }
        }
    }
}

fn path(listing: ListingId, name: &str, size: Size) -> Path {
    Path::from_iter([listing.to_string().as_str(), size.folder(), name])
}

/// A hash in hexadecimal, and one of two endings.
fn is_name(name: &str) -> bool {
    let hash = name.strip_suffix(".jpg").or_else(|| name.strip_suffix(".png"));
    let is_hash = |hash: &str| {
        hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    hash.is_some_and(is_hash)
}

/// Whether a file of an image can be there: its listing, its size, its name.
pub fn is_place(place: &str) -> bool {
    let Ok([listing, size, name]) = <[&str; 3]>::try_from(place.split('/').collect::<Vec<_>>())
    else {
        return false;
    };
    let is_id = listing.parse::<ListingId>().is_ok_and(|id| id.to_string() == listing);
    is_id && Size::ALL.iter().any(|of| of.folder() == size) && is_name(name)
}

/// A digest of content, in hexadecimal: the name of an image is that of its large file.
pub fn digest(content: &[u8]) -> String {
    crate::domain::text::hex(&souk_actors::id::keyed_hash(&[0; 32], "image", &[content]))
}

/// The digest of the content that should be in a place, where its name says so.
pub fn named_digest(place: &str) -> Option<&str> {
    let (of, name) = place.rsplit_once('/')?;
    let is_large = of.rsplit_once('/')?.1 == Size::Large.folder();
    name.split_once('.').filter(|_| is_large).map(|(hash, _)| hash)
}

/// The media type of an image of this name.
pub fn media_type(name: &str) -> &'static str {
    if name.ends_with(".png") { "image/png" } else { "image/jpeg" }
}

fn prepared(file: &[u8]) -> Result<Prepared, ImageError> {
    let unreadable = |_| ImageError::NotAnImage;
    let mut reader = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|_| ImageError::NotAnImage)?;
    if !reader.format().is_some_and(|format| FORMATS.contains(&format)) {
        return Err(ImageError::NotAnImage);
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(MEMORY_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| match error {
        image::ImageError::Limits(_) => ImageError::TooLarge,
        _ => ImageError::NotAnImage,
    })?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > PIXELS_MAX || decoder.total_bytes() > MEMORY_MAX {
        return Err(ImageError::TooLarge);
    }
    let orientation = decoder.orientation().map_err(unreadable)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    let large = fitted(image, LARGE);
    let small = fitted(large.clone(), SMALL);
    let is_clear = large.color().has_alpha() && has_gaps(&large);
    let (large, small) = (written(&large, is_clear)?, written(&small, is_clear)?);
    let end = if is_clear { "png" } else { "jpg" };
    Ok(Prepared { name: format!("{}.{end}", digest(&large)), large, small })
}

/// Whether anything that is behind it would be seen.
fn has_gaps(image: &DynamicImage) -> bool {
    image.to_rgba8().pixels().any(|pixel| pixel.0[3] < u8::MAX)
}

fn fitted(image: DynamicImage, side: u32) -> DynamicImage {
    if image.width() <= side && image.height() <= side {
        return image;
    }
    image.resize(side, side, FilterType::CatmullRom)
}

/// What shows what is behind it is a PNG, all else a JPEG.
fn written(image: &DynamicImage, is_clear: bool) -> Result<Bytes, ImageError> {
    let mut bytes = Cursor::new(Vec::new());
    let done = match is_clear {
        true => DynamicImage::ImageRgba8(image.to_rgba8()).write_to(&mut bytes, ImageFormat::Png),
        false => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
            image.to_rgb8().write_with_encoder(encoder)
        }
    };
    done.map_err(|_| ImageError::NotAnImage)?;
    Ok(bytes.into_inner().into())
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage, Rgba, RgbaImage};
    use uuid::Uuid;

    use super::*;

    fn in_folder(dir: &tempfile::TempDir) -> Images {
        Images::open(&Location::Folder(dir.path().to_owned())).unwrap()
    }

    fn listing(number: u128) -> ListingId {
        ListingId(Uuid::from_u128(number))
    }

    fn file(image: &DynamicImage, format: ImageFormat) -> Bytes {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner().into()
    }

    fn photograph(width: u32, height: u32) -> DynamicImage {
        let pixel = |x: u32, y: u32| Rgb([(x % 256) as u8, (y % 256) as u8, 90]);
        DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, pixel))
    }

    /// A JPEG with a place in it, as telephones write it.
    fn with_exif(jpeg: &[u8]) -> Vec<u8> {
        let note = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0 GPS 21.0278 N 105.8342 E";
        let length = u16::try_from(note.len() + 2).unwrap().to_be_bytes();
        let mut file = jpeg[..2].to_vec();
        file.extend([0xff, 0xe1]);
        file.extend(length);
        file.extend(note);
        file.extend(&jpeg[2..]);
        file
    }

    #[tokio::test]
    async fn an_image_is_made_anew_in_two_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let images = in_folder(&dir);
        let noted = with_exif(&file(&photograph(2_000, 500), ImageFormat::Jpeg));
        let mut followed = noted.clone();
        followed.extend(b"<script>alert(1)</script>");
        let image = images.prepare(followed.into()).await.unwrap();
        assert!(is_name(&image.name) && media_type(&image.name) == "image/jpeg");
        assert_eq!(images.prepare(noted.into()).await.unwrap().name, image.name);
        images.keep(listing(1), &image).await.unwrap();
        images.keep(listing(1), &image).await.unwrap();
        for (size, width, height) in [(Size::Large, 1_600, 400), (Size::Small, 320, 80)] {
            let bytes = images.read(listing(1), &image.name, size).await.unwrap().unwrap();
            let again = image::load_from_memory(&bytes).unwrap();
            assert_eq!((again.width(), again.height()), (width, height));
            for secret in [&b"GPS"[..], b"Exif", b"script"] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret));
            }
        }
        assert!(images.read(listing(2), &image.name, Size::Large).await.unwrap().is_none());
        for name in ["", "x.jpg", "../../journal.db", &image.name.to_uppercase()] {
            assert!(images.read(listing(1), name, Size::Large).await.unwrap().is_none(), "{name}");
        }
    }

    #[tokio::test]
    async fn every_format_is_known_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let images = in_folder(&dir);
        let clear = DynamicImage::ImageRgba8(RgbaImage::from_pixel(9, 9, Rgba([1, 2, 3, 4])));
        let image = images.prepare(file(&clear, ImageFormat::Png)).await.unwrap();
        assert_eq!(media_type(&image.name), "image/png");
        let opaque = DynamicImage::ImageRgba8(RgbaImage::from_pixel(9, 9, Rgba([1, 2, 3, 255])));
        let image = images.prepare(file(&opaque, ImageFormat::WebP)).await.unwrap();
        assert_eq!(media_type(&image.name), "image/jpeg");
        let plain = file(&photograph(9, 9), ImageFormat::Png);
        assert_eq!(media_type(&images.prepare(plain).await.unwrap().name), "image/jpeg");
        for file in
            [&b""[..], b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"BM123456"]
        {
            let refused = images.prepare(Bytes::copy_from_slice(file)).await;
            assert!(matches!(refused, Err(ImageError::NotAnImage)), "{file:?}");
        }
    }

    /// A small file that says it is enormous.
    #[tokio::test]
    async fn an_image_of_too_many_pixels_is_not_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let images = in_folder(&dir);
        let mut bomb = file(&photograph(9, 9), ImageFormat::Png).to_vec();
        for (width, height) in [(100_000_u32, 100_000_u32), (16_000, 16_000)] {
            bomb[16..20].copy_from_slice(&width.to_be_bytes());
            bomb[20..24].copy_from_slice(&height.to_be_bytes());
            let crc = crc_of(&bomb[12..29]);
            bomb[29..33].copy_from_slice(&crc.to_be_bytes());
            let refused = images.prepare(bomb.clone().into()).await;
            assert!(matches!(refused, Err(ImageError::TooLarge)), "{width}: {refused:?}");
        }
    }

    /// The checksum of a PNG's chunk.
    fn crc_of(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
            })
        })
    }

    #[tokio::test]
    async fn what_no_listing_names_is_deleted_once_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let images = in_folder(&dir);
        let image = images.prepare(file(&photograph(9, 9), ImageFormat::Png)).await.unwrap();
        for number in [1, 2] {
            images.keep(listing(number), &image).await.unwrap();
        }
        let name = image.name.clone();
        let named = |of: ListingId| {
            let is_named = of == listing(1);
            std::future::ready(Ok(match is_named {
                true => vec![Images::url(of, &name)],
                false => Vec::new(),
            }))
        };
        let now = souk_actors::world::SystemWorld::new();
        let now = souk_actors::world::World::now(&now);
        assert_eq!(images.sweep(now, &named).await.unwrap(), 0, "they are new");
        let later = now.plus(2 * SETTLED);
        assert_eq!(images.sweep(later, &named).await.unwrap(), 2);
        assert!(images.read(listing(1), &image.name, Size::Small).await.unwrap().is_some());
        assert!(images.read(listing(2), &image.name, Size::Small).await.unwrap().is_none());
    }
}
