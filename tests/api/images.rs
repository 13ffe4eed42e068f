//! Images of listings (S0-53, S0-54).

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use reqwest::Method;
use serde_json::json;

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
