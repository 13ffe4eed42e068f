//! Categories of listings.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::{Call, Staff};
use super::conditional::IfNoneMatch;
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::category::{Category, CategoryCommand};
use crate::domain::ids::CategoryId;
use crate::domain::text::SLUG_MAX;
use crate::domain::words::folded_words;

/// The projection that lists rest on.
const VIEW: &str = "categories-view";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_categories, create_category))
        .routes(routes!(get_category))
        .routes(routes!(deactivate_category))
        .routes(routes!(activate_category))
}

/// A new category.
#[derive(ToSchema)]
pub struct NewCategory {
    /// Its name.
    #[schema(max_length = 100, example = "Second-hand books")]
    pub name: String,
    /// Its name in links; made from the name when absent.
    #[schema(value_type = Option<String>, max_length = 64, example = "second-hand-books")]
    pub slug: String,
}

impl FromFields for NewCategory {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (name, slug) = (fields.text(&["name"]), fields.optional_text(&["slug"]));
        let name = name?;
        let slug = slug.or_else(|| slug_of(&name));
        if slug.is_none() {
            let detail = "has no words for a link: use letters of a to z or digits, or send a slug";
            fields.error("name", "no_slug", detail);
        }
        Some(Self { slug: slug?, name })
    }
}

/// A name in links, of as many words as fit; none: no letter or digit is left of it.
fn slug_of(name: &str) -> Option<String> {
    let folded = folded_words(name);
    let words = folded.split(|character: char| !character.is_ascii_alphanumeric());
    let mut slug = String::new();
    for word in words.filter(|word| !word.is_empty()) {
        // All of them are of ASCII now.
        let word = &word[..word.len().min(SLUG_MAX)];
        let hyphen = if slug.is_empty() { "" } else { "-" };
        if slug.len() + hyphen.len() + word.len() > SLUG_MAX {
            break;
        }
        slug.extend([hyphen, word]);
    }
    (!slug.is_empty()).then_some(slug)
}

/// A category.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CategoryBody {
    /// The category.
    pub id: Uuid,
    /// The same.
    pub category_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its name in links.
    pub slug: String,
    /// Whether it takes new listings.
    pub active: bool,
}

fn view(category: &Category) -> Option<CategoryBody> {
    let details = category.details.as_ref()?;
    Some(CategoryBody {
        id: details.category_id.uuid(),
        category_id: details.category_id.uuid(),
        name: details.name.clone(),
        slug: details.slug.clone(),
        active: details.active,
    })
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such category")
}

/// All categories
#[utoipa::path(get, path = "/categories", tag = "categories",
    params(("min_position" = Option<String>, Query)),
    responses((status = 200, description = "All categories", body = Page<CategoryBody>)))]
async fn list_categories(
    State(app): State<App>,
    _: Call,
    params: Params,
) -> Result<Answer<Page<CategoryBody>>, ApiError> {
    app.includes(VIEW, &params).await?;
    let rows = app.reads().categories().await?;
    let data = rows.into_iter().map(|row| CategoryBody {
        id: row.category_id,
        category_id: row.category_id,
        name: row.name,
        slug: row.slug,
        active: row.active,
    });
    Ok(params.with_next(Page::whole(data.collect())).projected(&app, VIEW))
}

/// A category
#[utoipa::path(get, path = "/categories/{id}", tag = "categories", params(("id" = String, Path)),
    responses((status = 200, description = "The category", body = CategoryBody)))]
async fn get_category(
    State(app): State<App>,
    _: Call,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let id: CategoryId = path_id(&id)?;
    let done = app.runtime().aggregate::<Category>().read(id.uuid(), view).await?;
    Ok(Answer::ok(done.value.ok_or_else(missing)?).at_version(done.version, &theirs))
}

/// Open a category
#[utoipa::path(post, path = "/categories", tag = "categories", request_body = NewCategory,
    responses((status = 201, description = "The category", body = CategoryBody)))]
async fn create_category(
    State(app): State<App>,
    Staff(call): Staff,
    valid: Valid<NewCategory>,
) -> Result<Answer<CategoryBody>, ApiError> {
    let NewCategory { name, slug } = valid.body;
    let category_id = CategoryId::of_slug(&slug);
    let context = call.context(&app, "categories.create", "", &valid.canonical);
    let create =
        CategoryCommand::Create { caller: call.caller(), category_id, name, slug, now: app.now() };
    let categories = app.runtime().aggregate::<Category>();
    let done = categories.send(category_id.uuid(), create, context, view).await?;
    let (body, done) = split(done);
    let location = format!("/api/v1/categories/{category_id}");
    Ok(Answer::created(&location, body.ok_or_else(missing)?).after(&done))
}

async fn change(
    app: &App,
    call: &Call,
    id: &str,
    operation: &str,
    command: CategoryCommand,
) -> Result<Answer<CategoryBody>, ApiError> {
    let id: CategoryId = path_id(id)?;
    let context = call.change_context(app, operation, &id.to_string(), b"");
    let categories = app.runtime().aggregate::<Category>();
    let (body, done) = split(categories.send(id.uuid(), command, context, view).await?);
    Ok(Answer::ok(body.ok_or_else(missing)?).after(&done))
}

/// Take no new listings
#[utoipa::path(post, path = "/admin/categories/{id}/deactivate", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The category", body = CategoryBody)))]
async fn deactivate_category(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<CategoryBody>, ApiError> {
    let command = CategoryCommand::Deactivate { caller: call.caller(), now: app.now() };
    change(&app, &call, &id, "categories.deactivate", command).await
}

/// Take new listings again
#[utoipa::path(post, path = "/admin/categories/{id}/activate", tag = "admin",
    params(("id" = String, Path)),
    responses((status = 200, description = "The category", body = CategoryBody)))]
async fn activate_category(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Answer<CategoryBody>, ApiError> {
    let command = CategoryCommand::Activate { caller: call.caller(), now: app.now() };
    change(&app, &call, &id, "categories.activate", command).await
}

#[cfg(test)]
mod tests {
    use super::slug_of;

    #[test]
    fn a_slug_is_made_from_the_name() {
        let long = format!("{} {}", "books ".repeat(10), "x".repeat(9));
        let cut = ["books"; 10].join("-");
        for (name, slug) in [
            ("Second-hand  Books & more", Some("second-hand-books-more")),
            ("Đồ cũ", Some("do-cu")),
            ("Điện thoại & Máy tính bảng", Some("dien-thoai-may-tinh-bang")),
            ("Café Größe", Some("cafe-grosse")),
            ("Книги 2", Some("2")),
            ("Книги", None),
            ("?!", None),
            (" ", None),
            (&long, Some(cut.as_str())),
        ] {
            assert_eq!(slug_of(name).as_deref(), slug, "{name}");
        }
    }
}
