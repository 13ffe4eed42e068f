//! Categories of listings, kept by administrators. The id follows from the slug, so a slug has one
//! category.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::CategoryId;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};

/// What to do with a category.
#[derive(Debug, Clone, PartialEq)]
pub enum CategoryCommand {
    /// Open a new one.
    Create {
        /// Who asks.
        caller: Caller,
        /// The new category: [`CategoryId::of_slug`].
        category_id: CategoryId,
        /// Its name.
        name: String,
        /// Its name in links.
        slug: String,
        /// When.
        now: Timestamp,
    },
    /// Take no new listings.
    Deactivate {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Take new listings again.
    Activate {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
}

impl CategoryCommand {
    fn caller(&self) -> &Caller {
        match self {
            Self::Create { caller, .. }
            | Self::Deactivate { caller, .. }
            | Self::Activate { caller, .. } => caller,
        }
    }
}

impl Command for CategoryCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CreateCategory",
            Self::Deactivate { .. } => "DeactivateCategory",
            Self::Activate { .. } => "ActivateCategory",
        }
    }
}

souk_actors::events! {
    /// What happens to categories.
    pub enum CategoryEvent in "listings" as "listing-service" {
        /// There is a new one.
        Created(CategoryCreated) = "category.created", "CategoryCreated", 1.0, [];
        /// It takes no new listings.
        Deactivated(CategoryDeactivated) = "category.deactivated", "CategoryDeactivated", 1.0, [];
        /// It takes new listings again.
        Activated(CategoryActivated) = "category.activated", "CategoryActivated", 1.0, [];
    }
}

/// There is a new category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CategoryCreated {
    /// The category.
    pub category_id: CategoryId,
    /// Its name.
    pub name: String,
    /// Its name in links.
    pub slug: String,
    /// When.
    pub created_at: Timestamp,
}

/// The category takes no new listings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CategoryDeactivated {
    /// The category.
    pub category_id: CategoryId,
    /// When.
    pub deactivated_at: Timestamp,
}

/// The category takes new listings again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CategoryActivated {
    /// The category.
    pub category_id: CategoryId,
    /// When.
    pub activated_at: Timestamp,
}

rejections! {
    /// Why a category refuses a command.
    pub enum CategoryRejection {
        /// Administrators only.
        Forbidden = "forbidden", "only administrators keep categories";
        /// The slug is taken.
        AlreadyExists = "category_exists", "there is already a category with this slug";
        /// Never created.
        NotFound = "not_found", "there is no such category";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(CategoryRejection);

/// A category, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Category {
    /// Everything about it, once created.
    pub details: Option<CategoryDetails>,
}

/// What is known of a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CategoryDetails {
    /// The category.
    pub category_id: CategoryId,
    /// Its name.
    pub name: String,
    /// Its name in links.
    pub slug: String,
    /// Whether it takes new listings.
    pub active: bool,
}

impl Aggregate for Category {
    const TYPE: &'static str = "category";
    type Command = CategoryCommand;
    type Event = CategoryEvent;
    type Rejection = CategoryRejection;

    fn decide(&self, command: &CategoryCommand) -> Result<Vec<CategoryEvent>, CategoryRejection> {
        if !command.caller().is_staff() {
            return Err(CategoryRejection::Forbidden);
        }
        match (command, &self.details) {
            (CategoryCommand::Create { .. }, Some(_)) => Err(CategoryRejection::AlreadyExists),
            (CategoryCommand::Create { category_id, name, slug, now, .. }, None) => {
                let mut fields = Fields::default();
                let name = fields.line("/name", name, text::NAME_MAX);
                let slug = fields.slug("/slug", slug);
                fields.finish()?;
                Ok(vec![CategoryEvent::Created(CategoryCreated {
                    category_id: *category_id,
                    name,
                    slug,
                    created_at: *now,
                })])
            }
            (_, None) => Err(CategoryRejection::NotFound),
            (CategoryCommand::Deactivate { now, .. }, Some(details)) if details.active => {
                let category_id = details.category_id;
                let event = CategoryDeactivated { category_id, deactivated_at: *now };
                Ok(vec![CategoryEvent::Deactivated(event)])
            }
            (CategoryCommand::Activate { now, .. }, Some(details)) if !details.active => {
                let event =
                    CategoryActivated { category_id: details.category_id, activated_at: *now };
                Ok(vec![CategoryEvent::Activated(event)])
            }
            (CategoryCommand::Deactivate { .. } | CategoryCommand::Activate { .. }, Some(_)) => {
                Ok(Vec::new())
            }
        }
    }

    fn apply(&mut self, event: &CategoryEvent) {
        match (event, &mut self.details) {
            (CategoryEvent::Created(event), details) => {
                *details = Some(CategoryDetails {
                    category_id: event.category_id,
                    name: event.name.clone(),
                    slug: event.slug.clone(),
                    active: true,
                });
            }
            (CategoryEvent::Deactivated(_), Some(details)) => details.active = false,
            (CategoryEvent::Activated(_), Some(details)) => details.active = true,
            (CategoryEvent::Deactivated(_) | CategoryEvent::Activated(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests;
