//! `categories-view`: all categories, for the page that lists them.

use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::category::{CategoryCreated, CategoryEvent};

/// More categories than this no page shows at once.
const CATEGORIES_MAX: u32 = 1_000;

/// A category.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CategoryRow {
    /// The category.
    pub category_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its name in links.
    pub slug: String,
    /// Whether it takes new listings.
    pub active: bool,
}

/// The categories.
pub struct CategoriesView;

impl View for CategoriesView {
    const NAME: &'static str = super::CATEGORIES_VIEW;
    const CONTEXT: &'static str = "listings";
    const TOPICS: &'static [&'static str] = &["category.*"];
    const TABLE: &'static str = "categories_v1";
    const COLUMNS: &'static [&'static str] = &["category_id", "name", "slug", "active"];
    const FIXED: &'static [&'static str] = &[];
    type Row = CategoryRow;

    fn fold(row: Option<CategoryRow>, event: &StoredEvent) -> Result<Option<CategoryRow>, Failure> {
        if &*event.event_type == "category.created" {
            let created: CategoryCreated = read_data::<CategoryEvent, _>(event)?;
            let (name, slug) = (created.name, created.slug);
            return Ok(Some(CategoryRow {
                category_id: event.aggregate_id,
                name,
                slug,
                active: true,
            }));
        }
        Ok(row.map(|mut row| {
            match &*event.event_type {
                "category.deactivated" => row.active = false,
                "category.activated" => row.active = true,
                _ => {}
            }
            row
        }))
    }

    fn values(row: &CategoryRow) -> Vec<Param> {
        vec![row.category_id.into(), (&row.name).into(), (&row.slug).into(), row.active.into()]
    }

    fn read(row: &Row) -> Result<CategoryRow, ReadError> {
        Ok(CategoryRow {
            category_id: row.id(0)?,
            name: row.text(1)?,
            slug: row.text(2)?,
            active: row.flag(3)?,
        })
    }
}

/// All categories, by their slugs.
pub async fn all(db: &ReadDb) -> Result<Vec<CategoryRow>, ReadError> {
    let query = Query::select(
        CategoriesView::COLUMNS,
        &db.table(CategoriesView::NAME, CategoriesView::TABLE),
    )
    .then(" ORDER BY slug LIMIT ")
    .value(CATEGORIES_MAX);
    db.fetch_as(query, CategoriesView::read).await
}
