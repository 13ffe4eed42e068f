//! Images of listings: where they come in, and where they are looked at.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::TryStreamExt as _;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::Answer;
use super::body::{Fields, FromFields, Unread, Valid};
use super::call::{Call, SignedIn};
use super::conditional::IfNoneMatch;
use super::listings::{ListingBody, change, forbidden, missing, offer};
use super::params::{Params, path_id, wrong};
use super::problem::ApiError;
use crate::domain::ids::ListingId;
use crate::domain::listing::{Listing, ListingCommand};
use crate::images::{ImageError, Images, Prepared, Size, media_type};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(add_images, order_images))
        .routes(routes!(remove_image))
        .routes(routes!(get_image))
}

/// Images, one part each.
#[derive(ToSchema)]
pub struct ImageFiles {
    /// PNG, JPEG or WebP; what it is its content says.
    #[schema(value_type = Vec<String>, format = Binary, min_items = 1, max_items = 10)]
    pub image: Vec<Bytes>,
}

/// The images of a listing, in order.
#[derive(ToSchema)]
pub struct ImageOrder {
    /// Where they are, as the listing says: all of them, each once.
    pub images: Vec<String>,
}

impl FromFields for ImageOrder {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        if fields.value("images").is_none() {
            fields.error("images", "required", "is required");
        }
        Some(Self { images: fields.optional_texts(&["images"]) })
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NotAnImage => {
                Self::unprocessable("not_an_image", "/image", &error.to_string())
            }
            ImageError::TooLarge => {
                Self::unprocessable("image_too_large", "/image", &error.to_string())
            }
            ImageError::Store(cause) => {
                tracing::error!(%cause, "the store of images does not work");
                let detail = "images cannot be kept or shown at the moment";
                Self::unavailable("images_unavailable", detail, Duration::from_secs(5))
            }
        }
    }
}

/// How many images the listing has, if it is the caller's.
async fn their_images(app: &App, call: &Call, id: ListingId) -> Result<usize, ApiError> {
    let theirs = offer(app, id).await?.ok_or_else(missing)?;
    if !call.caller().may_act_for(theirs.seller_id) {
        return Err(forbidden());
    }
    let count = |listing: &Listing| listing.details.as_ref().map_or(0, |of| of.images.len());
    Ok(app.runtime().aggregate::<Listing>().read(id.uuid(), count).await?.value)
}

/// Add images
///
/// Parts of `multipart/form-data`, each a PNG, JPEG or WebP of at most `IMAGE_BYTES_MAX`; the names of
/// the parts do not matter. They are made anew, without what cameras note in them, at most 1600 pixels a
/// side; `?size=320` gives a small one. A listing has at most `IMAGES_MAX`. One that it has already is
/// not added again.
#[utoipa::path(post, path = "/listings/{id}/images", tag = "listings",
    params(("id" = String, Path)),
    request_body(content = ImageFiles, content_type = "multipart/form-data"),
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn add_images(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<ListingBody>, ApiError> {
    let listing: ListingId = path_id(&id)?;
    let there = their_images(&app, &call, listing).await?;
    let images_max = app.settings().images.images_max;
    let _place = app.images().upload().ok_or_else(|| {
        let detail = "too many images are being taken in at the moment";
        ApiError::unavailable("overloaded", detail, Duration::from_secs(2))
    })?;
    let prepared = prepared(&app, unread, images_max.saturating_sub(there)).await?;
    let _naming = app.images().naming().await;
    let mut images = Vec::new();
    for image in &prepared {
        app.images().keep(listing, image).await?;
        images.push(Images::url(listing, &image.name));
    }
    let canonical = images.join("\n");
    let (caller, now) = (call.caller(), app.now());
    let command = ListingCommand::AddImages { caller, images, images_max, now };
    change(&app, &call, &id, "listings.add_images", canonical.as_bytes(), command).await
}

/// What the files of a form are made into, at most so many. Only one of them is in memory as it came.
async fn prepared(app: &App, unread: Unread, room: usize) -> Result<Vec<Prepared>, ApiError> {
    let settings = app.settings();
    let (images_max, bytes_max) = (settings.images.images_max, settings.images.bytes_max);
    let whole_max = bytes_max.saturating_mul(images_max).saturating_add(64 * 1024);
    let (boundary, body) = unread.form()?;
    let limits = multer::SizeLimit::new()
        .whole_stream(u64::try_from(whole_max).unwrap_or(u64::MAX))
        .per_field(u64::try_from(bytes_max).unwrap_or(u64::MAX));
    let limits = multer::Constraints::new().size_limit(limits);
    let stream = body.into_data_stream().map_err(io::Error::other);
    let mut form = multer::Multipart::with_constraints(stream, boundary, limits);
    let mut prepared = Vec::new();
    while let Some(file) = next_file(&mut form, settings.http.body_timeout).await? {
        if prepared.len() == room {
            let detail =
                format!("a listing has at most {images_max} images: there is room for {room} more");
            return Err(ApiError::unprocessable("too_many", "/image", &detail));
        }
        prepared.push(app.images().prepare(file).await?);
    }
    if prepared.is_empty() {
        return Err(ApiError::unprocessable("required", "/image", "there must be an image"));
    }
    Ok(prepared)
}

/// The next file of a form, which has so long to arrive.
async fn next_file(
    form: &mut multer::Multipart<'_>,
    within: Duration,
) -> Result<Option<Bytes>, ApiError> {
    let reading = async {
        match form.next_field().await? {
            Some(part) => Ok(Some(part.bytes().await?)),
            None => Ok(None),
        }
    };
    match tokio::time::timeout(within, reading).await {
        Ok(file) => file.map_err(unreadable),
        Err(_) => {
            let detail = "the body took too long to arrive";
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail))
        }
    }
}

fn unreadable(error: multer::Error) -> ApiError {
    match error {
        multer::Error::FieldSizeExceeded { limit, .. } => {
            let detail = format!("an image must have at most {limit} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
        }
        multer::Error::StreamSizeExceeded { limit } => {
            let detail = format!("the body is larger than {limit} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
        }
        _ => ApiError::bad_request("bad_request", "the body is not a form of parts"),
    }
}

/// Put images in order
///
/// All that the listing has, each once.
#[utoipa::path(put, path = "/listings/{id}/images", tag = "listings",
    params(("id" = String, Path)), request_body = ImageOrder,
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn order_images(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<ListingBody>, ApiError> {
    their_images(&app, &call, path_id(&id)?).await?;
    let Valid { body, canonical } = unread.read::<ImageOrder>(&app).await?;
    let (caller, images, now) = (call.caller(), body.images, app.now());
    let command = ListingCommand::OrderImages { caller, images, now };
    change(&app, &call, &id, "listings.order_images", &canonical, command).await
}

/// Take an image away
#[utoipa::path(delete, path = "/listings/{id}/images/{name}", tag = "listings",
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "The listing as it is now", body = ListingBody)))]
async fn remove_image(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path((id, name)): Path<(String, String)>,
) -> Result<Answer<ListingBody>, ApiError> {
    let listing: ListingId = path_id(&id)?;
    their_images(&app, &call, listing).await?;
    let (caller, image, now) = (call.caller(), Images::url(listing, &name), app.now());
    let command = ListingCommand::RemoveImage { caller, image, now };
    change(&app, &call, &id, "listings.remove_image", name.as_bytes(), command).await
}

/// An image
///
/// It never changes: what is under this name may be kept for ever. It is for everybody, whatever token is
/// sent, and does not count as a request.
#[utoipa::path(get, path = "/images/{id}/{name}", tag = "listings",
    params(("id" = String, Path), ("name" = String, Path),
        ("size" = Option<String>, Query, description = "`320`: a small one; else at most 1600 pixels")),
    responses((status = 200, description = "The image",
        content((Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png")))))]
async fn get_image(
    State(app): State<App>,
    Path((id, name)): Path<(String, String)>,
    theirs: IfNoneMatch,
    params: Params,
) -> Result<Response, ApiError> {
    let size = match params.text("size") {
        None | Some("1600") => Size::Large,
        Some("320") => Size::Small,
        Some(_) => return Err(wrong("size", "must be 320 or 1600")),
    };
    let found = app.images().read(path_id(&id)?, &name, size).await?;
    let bytes = found.ok_or_else(|| ApiError::not_found("there is no such image"))?;
    let mut response = Body::from(bytes).into_response();
    for (header, value) in [
        (header::CONTENT_TYPE, media_type(&name)),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (header::CONTENT_DISPOSITION, "inline"),
    ] {
        response.headers_mut().insert(header, HeaderValue::from_static(value));
    }
    let small = if size == Size::Small { "-320" } else { "" };
    Ok(theirs.answer(&format!("\"{name}{small}\""), response))
}
