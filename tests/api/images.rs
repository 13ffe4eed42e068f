//! Images of listings (S0-53, S0-54).

use std::io::Cursor;
use std::time::Duration;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use reqwest::Method;
use serde_json::{Value, json};
use souk::domain::ids::ListingId;
use souk::images::Images;
use souk_actors::world::{SystemWorld, World as _};
use uuid::Uuid;

use crate::support::s3::{ACCESS_KEY, BUCKET, PREFIX, S3, SECRET_KEY};
use crate::support::{Answer, Client, Server, Start};

/// A picture of so many pixels a side.
pub fn picture(format: ImageFormat, side: u32) -> Vec<u8> {
    let pixels = RgbImage::from_pixel(side, side, Rgb([20, 90, 160]));
    let mut file = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(pixels).write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// Sends files as a form.
pub async fn upload(client: &Client, path: &str, files: &[&[u8]]) -> Answer {
    let mut body = Vec::new();
    for file in files {
        body.extend_from_slice(
            b"--edge\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n",
        );
        body.extend_from_slice(file);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--edge--\r\n");
    let client = client.with("content-type", "multipart/form-data; boundary=edge");
    client.send(Method::POST, path, Some(body)).await
}

fn images(answer: &Answer) -> Vec<String> {
    let all = answer["images"].as_array().unwrap().iter();
    all.map(|of| of.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn images_come_in_and_are_looked_at() {
    let server = Server::start().await;
    let (sam, tom) = (server.seller("Sam").await, server.seller("Tom").await);
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    let (png, webp) = (picture(ImageFormat::Png, 640), picture(ImageFormat::WebP, 64));
    let made = upload(&sam.client, &path, &[&png, &webp]).await.expect(200);
    let urls = images(&made);
    assert_eq!(urls.len(), 2);
    let added = format!("correlationId={}", made.header("x-correlation-id"));
    let added = server.events(&format!("eventType=listing.image_added&{added}")).await;
    let added: Vec<_> = added.iter().map(|event| event["data"]["image"].clone()).collect();
    assert_eq!(json!(added), made["images"]);
    let small: Vec<_> = urls.iter().map(|url| json!(format!("{url}?size=320"))).collect();
    assert_eq!(made["thumbnails"], json!(small));
    for url in &urls {
        for query in ["", "?size=320"] {
            let image = server.visitor().open(&format!("{url}{query}")).await;
            assert_eq!(image.status(), 200);
            let header = |name: &str| image.headers()[name].to_str().unwrap().to_owned();
            assert!(header("cache-control").contains("immutable"));
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert!(header("content-type").starts_with("image/"));
            let tag = header("etag");
            let shown = image::load_from_memory(&image.bytes().await.unwrap()).unwrap();
            let side = if url == &urls[1] {
                64
            } else if query.is_empty() {
                640
            } else {
                320
            };
            assert_eq!((shown.width(), shown.height()), (side, side));
            let again = server.visitor().with("if-none-match", &tag);
            assert_eq!(again.open(&format!("{url}{query}")).await.status(), 304);
        }
    }
    // The same once more is there once.
    assert_eq!(images(&upload(&sam.client, &path, &[&png]).await.expect(200)), urls);
    // In another order, and one less.
    let turned = json!({ "images": [urls[1], urls[0]] }).to_string().into_bytes();
    let put = sam.client.if_match("*").send(Method::PUT, &path, Some(turned)).await.expect(200);
    assert_eq!(images(&put), [urls[1].clone(), urls[0].clone()]);
    let name = urls[0].rsplit('/').next().unwrap();
    let ordered = server.event("listing.images_reordered", put.header("x-correlation-id")).await;
    assert_eq!(ordered["data"]["images"], put["images"]);
    let half = json!({ "images": [urls[1]] }).to_string().into_bytes();
    let half = sam.client.if_match("*").send(Method::PUT, &path, Some(half)).await;
    assert_eq!(half.pointers(), ["/images"]);
    let left = sam.client.delete(&format!("{path}/{name}")).await.expect(200);
    assert_eq!(images(&left), [urls[1].clone()]);
    let gone = server.event("listing.image_removed", left.header("x-correlation-id")).await;
    assert_eq!(gone["data"]["image"], urls[0].as_str());
    assert_eq!(images(&server.listing_now(&listing).await), [urls[1].clone()]);
    let other = json!({ "images": ["https://images.example.com/1.jpg"] }).to_string().into_bytes();
    let refused = sam.client.if_match("*").send(Method::PUT, &path, Some(other)).await;
    assert_eq!(refused.pointers(), ["/images"]);
    // Nobody else does anything to them.
    upload(&tom.client, &path, &[&png]).await.problem(403, "forbidden");
    upload(&server.visitor(), &path, &[&png]).await.problem(401, "unauthenticated");
    tom.client.delete(&format!("{path}/{name}")).await.problem(403, "forbidden");
    server
        .visitor()
        .get(&format!("/api/v1/images/{listing}/x.jpg"))
        .await
        .problem(404, "not_found");
    server.finish().await;
}

#[tokio::test]
async fn what_is_no_image_or_too_much_is_refused() {
    let server =
        Start::default().with("IMAGES_MAX", 3).with("IMAGE_BYTES_MAX", 4_096).start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    let send = async |files: &[&[u8]]| upload(&sam.client, &path, files).await;
    let (png, jpeg) = (picture(ImageFormat::Png, 1), picture(ImageFormat::Jpeg, 8));
    for file in
        [&b""[..], b"not an image", &png[..20], b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
    {
        send(&[file]).await.problem(422, "not_an_image");
    }
    send(&[]).await.problem(422, "required");
    let document = server.visitor().get("/openapi.json").await.expect(200);
    for (schema, list) in [("ImageFiles", "image"), ("NewListing", "images")] {
        let images = &document["components"]["schemas"][schema]["properties"][list];
        assert_eq!(images["maxItems"], 3, "the document says what holds here: {images}");
    }
    let mut offer = server.offer(1).await;
    offer["images"] = json!(vec!["https://images.example.com/1.jpg"; 4]);
    let many = sam.client.post("/api/v1/listings", &offer).await;
    assert_eq!(many.pointers(), ["/images"]);
    send(&[&[7; 5_000]]).await.problem(413, "payload_too_large");
    send(&[&png, &png, &png, &png]).await.problem(422, "too_many");
    assert_eq!(server.listing_now(&listing).await["images"], json!([]));
    // As many as there may be, and not one more.
    send(&[&png, &jpeg]).await.expect(200);
    let text = sam.client.post(&path, &json!({})).await;
    text.problem(415, "unsupported_media_type");
    let client = sam.client.with("content-type", "multipart/form-data; boundary=edge");
    let torn = client.send(Method::POST, &path, Some(b"--edge\r\nnot a form".to_vec())).await;
    torn.problem(400, "bad_request");
    server.finish().await;
}

/// The first image of a listing, small, wherever listings are listed.
async fn covers(server: &Server, bea: &Client, sam: &Client, position: &str) -> Vec<Value> {
    let at = format!("min_position={position}");
    let browse = server.visitor().get(&format!("/api/v1/listings?{at}")).await;
    let mine = sam.get(&format!("/api/v1/me/listings?{at}")).await;
    let found = server.visitor().get(&format!("/api/v1/search?q=bicycle&{at}")).await;
    let favourites = bea.get(&format!("/api/v1/users/me/favourites?{at}")).await;
    let cover = |list: Answer| {
        let list = list.expect(200);
        assert_eq!(list.items().len(), 1, "{list:?}");
        list.items()[0]["cover"].clone()
    };
    [browse, mine, found, favourites].map(cover).to_vec()
}

#[tokio::test]
async fn lists_show_covers() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    // A favourite's position says nothing of the listing, which may be in another partition.
    server.at_rest().await;
    let favourite = format!("/api/v1/users/me/favourites/{listing}");
    let put = bea.client.send(Method::PUT, &favourite, None).await.expect(200);
    assert_eq!(put["cover"], Value::Null);
    let seen = async |answer: &Answer| {
        covers(&server, &bea.client, &sam.client, answer.header("souk-position")).await
    };
    assert_eq!(seen(&put).await, vec![Value::Null; 4]);

    let path = format!("/api/v1/listings/{listing}/images");
    let (one, two) = (picture(ImageFormat::Png, 640), picture(ImageFormat::Png, 64));
    let made = upload(&sam.client, &path, &[&one, &two]).await.expect(200);
    let urls = images(&made);
    let small: Vec<_> = urls.iter().map(|url| json!(format!("{url}?size=320"))).collect();
    assert_eq!(seen(&made).await, vec![small[0].clone(); 4]);
    let again = bea.client.send(Method::PUT, &favourite, None).await.expect(200);
    assert_eq!(again["cover"], small[0]);
    let export = bea.client.get("/api/v1/users/me/export").await.expect(200);
    assert_eq!(export["favourites"][0]["cover"], small[0]);
    assert_eq!(server.visitor().open(small[0].as_str().unwrap()).await.status(), 200);

    // Another one comes first; then it is gone.
    let turned = json!({ "images": [urls[1], urls[0]] }).to_string().into_bytes();
    let turned = sam.client.if_match("*").send(Method::PUT, &path, Some(turned)).await.expect(200);
    assert_eq!(seen(&turned).await, vec![small[1].clone(); 4]);
    let name = urls[1].rsplit('/').next().unwrap();
    let left = sam.client.delete(&format!("{path}/{name}")).await.expect(200);
    assert_eq!(seen(&left).await, vec![small[0].clone(); 4]);
    server.finish().await;
}

/// What S3 has for an image's address.
fn key_of(url: &str, size: &str) -> String {
    let (listing, name) =
        url.strip_prefix("/api/v1/images/").unwrap().split_once('/').expect("it has a name");
    format!("{PREFIX}/{listing}/{size}/{name}")
}

#[tokio::test]
async fn images_are_kept_in_a_bucket() {
    let s3 = S3::start().await;
    s3.expect_token("a-token-that-no-log-may-show");
    let market = s3.market().with("AWS_SESSION_TOKEN", "a-token-that-no-log-may-show");
    let server = market.start().await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    let files = [picture(ImageFormat::Png, 640), picture(ImageFormat::WebP, 64)];
    let urls = images(&upload(&sam.client, &path, &[&files[0], &files[1]]).await.expect(200));
    let objects = s3.objects();
    assert_eq!(objects.len(), 4, "{:?}", objects.keys());
    for url in &urls {
        for (query, size) in [("", "1600"), ("?size=320", "320")] {
            let image = server.visitor().open(&format!("{url}{query}")).await;
            assert_eq!(image.status(), 200);
            assert_eq!(image.headers()["content-type"], "image/jpeg");
            assert_eq!(image.bytes().await.unwrap(), objects[&key_of(url, size)]);
        }
    }
    assert!(s3.media_types().values().all(|of| of == "image/jpeg"), "{:?}", s3.media_types());
    // The same once more is there once; what is not there is not there.
    assert_eq!(images(&upload(&sam.client, &path, &[&files[0]]).await.expect(200)), urls);
    assert_eq!(s3.objects(), objects);
    let unknown = format!("/api/v1/images/{listing}/{}.jpg", "0".repeat(64));
    server.visitor().get(&unknown).await.problem(404, "not_found");
    // One that is taken away is swept away later.
    let name = urls[0].rsplit('/').next().unwrap();
    let left = sam.client.delete(&format!("{path}/{name}")).await.expect(200);
    assert_eq!(images(&left), [urls[1].clone()]);
    assert_eq!(s3.objects(), objects);
    assert!(s3.refusals().is_empty(), "{:?}", s3.refusals());
    assert!(!server.folder().join("images").exists());
    server.finish().await;
}

/// Whoever is shown that the keys are wrong is not shown the keys.
#[tokio::test]
async fn a_bucket_that_lets_nobody_in_keeps_nothing() {
    let wrong = "a-wrong-key-that-no-log-may-show";
    for (variable, code) in [
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ("AWS_SESSION_TOKEN", "InvalidToken"),
    ] {
        let s3 = S3::start().await;
        let server = s3.market().with(variable, wrong).start().await;
        server.logged(&["images are 503 until their store can be reached", code]).await;
        let sam = server.seller("Sam").await;
        let listing = server.listing(&sam, 1).await;
        let path = format!("/api/v1/listings/{listing}/images");
        let refused = upload(&sam.client, &path, &[&picture(ImageFormat::Png, 64)]).await;
        let refused = refused.problem(503, "images_unavailable");
        assert!(!refused.header("retry-after").is_empty());
        let unknown = format!("/api/v1/images/{listing}/{}.jpg", "0".repeat(64));
        let unseen = server.visitor().get(&unknown).await.problem(503, "images_unavailable");
        for answer in [&refused, &unseen] {
            for inside in [BUCKET, ACCESS_KEY, SECRET_KEY, wrong, code, "127.0.0.1"] {
                assert!(!answer.raw().contains(inside), "{inside} in {}", answer.raw());
            }
        }
        let log = server.log().join("\n");
        assert!(log.contains(code), "{log}");
        assert!(!log.contains(SECRET_KEY) && !log.contains(wrong), "{log}");
        assert!(s3.objects().is_empty());
        assert_eq!(server.listing_now(&listing).await["images"], json!([]));
        assert!(s3.refusals().iter().all(|of| *of == code), "{:?}", s3.refusals());
        server.finish().await;
    }
}

#[tokio::test]
async fn a_bucket_that_comes_back_is_used_again() {
    let s3 = S3::start().await;
    s3.away(true);
    let server = s3.market().start().await;
    server.logged(&["images are 503 until their store can be reached"]).await;
    let sam = server.seller("Sam").await;
    let listing = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{listing}/images");
    let file = picture(ImageFormat::Png, 64);
    let send = async || upload(&sam.client, &path, &[&file]).await;
    send().await.problem(503, "images_unavailable");
    s3.away(false);
    let url = images(&send().await.expect(200)).remove(0);
    assert_eq!(server.visitor().open(&url).await.status(), 200);
    s3.fail(true);
    server.visitor().get(&url).await.problem(503, "images_unavailable");
    send().await.problem(503, "images_unavailable");
    s3.fail(false);
    assert_eq!(server.visitor().open(&url).await.status(), 200);
    // What was said of it stands, whatever the store said meanwhile.
    assert_eq!(images(&server.listing_now(&listing).await), [url]);
    server.finish().await;
}

/// Nobody takes a bucket that is gone for one without this image.
#[tokio::test]
async fn an_image_is_not_missing_because_its_bucket_is() {
    let s3 = S3::start().await;
    let server = s3.market().with("IMAGES_URL", "s3://another-bucket").start().await;
    server.logged(&["there is no such bucket"]).await;
    let unknown = format!("/api/v1/images/{}/{}.jpg", Uuid::from_u128(1), "0".repeat(64));
    server.visitor().get(&unknown).await.problem(503, "images_unavailable");
    server.finish().await;
}

#[tokio::test]
async fn a_bucket_is_swept_page_by_page_and_nothing_but_its_prefix() {
    let s3 = S3::start().await;
    s3.page(2);
    let elsewhere = format!("market-of-others/{}/320/x.jpg", Uuid::from_u128(7));
    s3.put(&elsewhere, b"not ours");
    let images = Images::open(&s3.location()).unwrap();
    images.check().await.unwrap();
    let image = images.prepare(picture(ImageFormat::Png, 64).into()).await.unwrap();
    let listing = |number| ListingId(Uuid::from_u128(number));
    for number in 1..=3 {
        images.keep(listing(number), &image).await.unwrap();
    }
    let before = s3.lists();
    let files = images.files().await.unwrap();
    assert_eq!((files.len(), s3.lists() - before), (6, 3));
    let kept = Images::url(listing(2), &image.name);
    let named = |of: ListingId| {
        let names = if of == listing(2) { vec![kept.clone()] } else { Vec::new() };
        std::future::ready(Ok(names))
    };
    let now = SystemWorld::new().now();
    assert_eq!(images.sweep(now, &named).await.unwrap(), 0, "they are new");
    let later = now.plus(Duration::from_secs(3 * 60 * 60));
    assert_eq!(images.sweep(later, &named).await.unwrap(), 4);
    let left: Vec<_> = s3.objects().into_keys().collect();
    assert_eq!(left, [elsewhere, key_of(&kept, "1600"), key_of(&kept, "320")]);
    assert!(s3.refusals().is_empty(), "{:?}", s3.refusals());
}
