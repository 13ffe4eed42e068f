//! Where the images of listings are kept: `IMAGES_URL`, and `AWS_*` where that names a bucket.

use std::path::PathBuf;

use url::Url;

use super::reader::Reader;
use super::{Credential, keeps_secrets};
use crate::images::{Bucket, Location};

const NAME: &str = "IMAGES_URL";
const ENDPOINT: &str = "AWS_ENDPOINT_URL";
/// What the keys are needed for.
const BUCKET: &str = "IMAGES_URL=s3://…";
/// The region of what is no S3 of Amazon's, where nobody says another.
const REGION_ELSEWHERE: &str = "us-east-1";

/// What `IMAGES_URL` names; else this folder.
pub(super) fn location(reader: &mut Reader<'_>, default: PathBuf) -> Location {
    let url = reader.text(NAME).map(|text| Url::parse(&text).ok());
    let found = match &url {
        None => None,
        Some(Some(url)) if url.scheme() == "s3" => {
            bucket(reader, url).map(|bucket| Location::S3(Box::new(bucket)))
        }
        Some(url) => {
            let url = url.as_ref().filter(|url| url.scheme() == "file");
            let folder = url.and_then(|url| url.to_file_path().ok());
            if folder.is_none() {
                let problem = "must be the URL of a folder (file:///srv/souk/images) or of a \
                    bucket of S3 (s3://souk-images/market)";
                reader.error(NAME, problem);
            }
            folder.map(Location::Folder)
        }
    };
    found.unwrap_or(Location::Folder(default))
}

/// Everything is read before anything is decided, so that all that is wrong is reported.
fn bucket(reader: &mut Reader<'_>, url: &Url) -> Option<Bucket> {
    let place = name_and_prefix(url);
    if place.is_none() {
        let problem = "must name a bucket as S3 does (3 to 63 small letters, digits, hyphens and \
            dots), and may have a path of letters, digits, -, _ and . (s3://souk-images/market)";
        reader.error(NAME, problem);
    }
    let endpoint = endpoint(reader);
    let region = region(reader);
    let access_key = key(reader, "AWS_ACCESS_KEY_ID");
    let secret_key = key(reader, "AWS_SECRET_ACCESS_KEY");
    let session_token = reader.optional_credential("AWS_SESSION_TOKEN", BUCKET);
    session_token.iter().for_each(|token| check(reader, "AWS_SESSION_TOKEN", token));
    let (name, prefix) = place?;
    Some(Bucket { name, prefix, region, endpoint, access_key, secret_key, session_token })
}

fn name_and_prefix(url: &Url) -> Option<(String, String)> {
    let name = url.host_str().filter(|name| is_bucket_name(name))?;
    let prefix = url.path().trim_matches('/');
    let is_plain = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !matches!(part, "" | "." | "..") && part.bytes().all(plain)
    };
    let is_prefix = prefix.is_empty() || prefix.split('/').all(is_plain);
    let is_bare = is_bare(url) && url.port().is_none();
    (is_prefix && is_bare).then(|| (name.to_owned(), prefix.to_owned()))
}

/// Without a login, a query and a fragment.
fn is_bare(url: &Url) -> bool {
    let is_named = url.username().is_empty() && url.password().is_none();
    is_named && url.query().is_none() && url.fragment().is_none()
}

fn is_bucket_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut ends = [name.bytes().next(), name.bytes().next_back()].into_iter();
    (3..=63).contains(&name.len())
        && !name.starts_with("xn--")
        && name.bytes().all(|byte| plain(byte) || matches!(byte, b'-' | b'.'))
        && ends.all(|end| end.is_some_and(plain))
        && !name.contains("..")
}

fn endpoint(reader: &mut Reader<'_>) -> Option<Url> {
    let url = Url::parse(&reader.text(ENDPOINT)?).ok();
    let url = url.filter(|url| keeps_secrets(url) && is_bare(url) && url.path() == "/");
    if url.is_none() {
        let problem = "must be the address of S3 without a path, beginning with https:// \
            (https://minio.example:9000), or with http:// on this machine (http://127.0.0.1:9000)";
        reader.error(ENDPOINT, problem);
    }
    url
}

fn region(reader: &mut Reader<'_>) -> String {
    const NAME: &str = "AWS_REGION";
    let is_elsewhere = reader.text(ENDPOINT).is_some();
    match reader.text(NAME) {
        None if is_elsewhere => return REGION_ELSEWHERE.to_owned(),
        None => reader.error(NAME, format!("is required for {BUCKET} (eu-west-1)")),
        Some(region) => {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            if !region.starts_with("xn--") && region.bytes().all(|byte| plain(byte) || byte == b'-')
            {
                return region;
            }
            reader.error(NAME, "must be the name of a region (eu-west-1)");
        }
    }
    String::new()
}

fn key(reader: &mut Reader<'_>, name: &'static str) -> Credential {
    let key = reader.credential(name, BUCKET);
    check(reader, name, &key);
    key
}

/// They travel in heads of requests.
fn check(reader: &mut Reader<'_>, name: &'static str, credential: &Credential) {
    if !credential.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        reader.error(name, "must be one word of ASCII characters");
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Source};
    use crate::images::Location;

    const KEYS: [(&str, &str); 4] = [
        ("IMAGES_URL", "s3://souk-images/market/live/"),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ];

    fn load(vars: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_string_lossy().into_owned();
        let read = |name: &str| {
            // The last one counts.
            let given = vars.iter().rev().find(|(known, _)| *known == name);
            given
                .map(|(_, value)| (*value).to_owned())
                .or((name == "DATA_DIR").then(|| dir.clone()))
        };
        Config::load(&Source::new(&read)).map_err(|errors| errors.to_string())
    }

    fn with(more: &[(&'static str, &'static str)]) -> Result<Config, String> {
        load(&[&KEYS[..], more].concat())
    }

    #[test]
    fn images_are_in_a_folder_unless_a_bucket_is_named() {
        let Location::Folder(folder) = load(&[]).unwrap().storage.images else {
            panic!("it is no folder")
        };
        assert!(folder.ends_with("images"));
        let url = ("IMAGES_URL", "file:///srv/souk/images");
        let config = load(&[url, ("AWS_REGION", "nobody reads it")]).unwrap();
        assert_eq!(config.storage.images, Location::Folder("/srv/souk/images".into()));

        let config = with(&[("AWS_SESSION_TOKEN", "hunter3")]).unwrap();
        let shown = format!("{:?}", config.storage);
        assert!(shown.contains("souk-images") && !shown.contains("hunter"), "{shown}");
        let Location::S3(bucket) = config.storage.images else { panic!("it is no bucket") };
        assert_eq!(bucket.to_string(), "s3://souk-images/market/live");
        assert_eq!((bucket.region.as_str(), bucket.endpoint), ("eu-west-1", None));
        assert_eq!(bucket.secret_key.expose(), "hunter2");
        assert_eq!(bucket.session_token.unwrap().expose(), "hunter3");

        let bare = [("IMAGES_URL", "s3://souk-images"), ("AWS_REGION", "")];
        let local = [bare[0], bare[1], ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")];
        let Location::S3(bucket) = with(&local).unwrap().storage.images else {
            panic!("it is no bucket")
        };
        assert_eq!((bucket.prefix.as_str(), bucket.region.as_str()), ("", "us-east-1"));
        assert_eq!(bucket.session_token, None);
        assert!(with(&bare).unwrap_err().starts_with("AWS_REGION: is required"));
    }

    #[test]
    fn what_is_wrong_with_a_bucket_is_said_by_variable() {
        for &(name, _) in &KEYS[1..] {
            let errors = with(&[(name, "")]).unwrap_err();
            assert!(errors.starts_with(&format!("{name}: is required for IMAGES_URL")), "{errors}");
            assert!(errors.lines().count() == 1 && !errors.contains("hunter2"), "{errors}");
        }
        for (name, value) in [
            ("IMAGES_URL", "gs://souk-images"),
            ("IMAGES_URL", "souk-images"),
            ("IMAGES_URL", "s3:souk-images"),
            ("IMAGES_URL", "s3://"),
            ("IMAGES_URL", "s3://Souk"),
            ("IMAGES_URL", "s3://souk_images"),
            ("IMAGES_URL", "s3://-souk"),
            ("IMAGES_URL", "s3://so"),
            ("IMAGES_URL", "s3://souk..images"),
            ("IMAGES_URL", "s3://souk-images/a//b"),
            ("IMAGES_URL", "s3://souk-images/a%2Fb"),
            ("IMAGES_URL", "s3://souk-images?region=eu-west-1"),
            ("IMAGES_URL", "s3://key:hunter2@souk-images"),
            ("AWS_REGION", "Ireland!"),
            ("AWS_ENDPOINT_URL", "minio.example"),
            ("AWS_ENDPOINT_URL", "http://minio.example"),
            ("AWS_ENDPOINT_URL", "https://minio.example/souk-images"),
            ("AWS_ENDPOINT_URL", "https://key:hunter2@minio.example"),
            ("AWS_ACCESS_KEY_ID", "two words"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2\u{7}"),
            ("AWS_SESSION_TOKEN", "clé-hunter2"),
        ] {
            let errors = with(&[(name, value)]).unwrap_err();
            assert!(errors.starts_with(&format!("{name}: must")), "{name}={value}: {errors}");
            assert!(errors.lines().count() == 1 && !errors.contains("hunter2"), "{errors}");
        }
    }

    #[test]
    fn keys_come_from_files_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "hunter4\n").unwrap();
        let path = file.to_str().unwrap();
        let vars =
            [&KEYS[..], &[("AWS_SECRET_ACCESS_KEY", ""), ("AWS_SECRET_ACCESS_KEY_FILE", path)]];
        let Location::S3(bucket) = load(&vars.concat()).unwrap().storage.images else {
            panic!("it is no bucket")
        };
        assert_eq!(bucket.secret_key.expose(), "hunter4");
        let errors = load(&[&KEYS[..], &[("AWS_SECRET_ACCESS_KEY_FILE", path)]].concat());
        assert!(errors.unwrap_err().contains("leave one out"));
    }
}
