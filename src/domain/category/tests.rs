use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{admin, assert_folds, at, run, seller};

fn create(caller: Caller, slug: &str) -> CategoryCommand {
    let category_id = CategoryId::of_slug(slug);
    CategoryCommand::Create {
        caller,
        category_id,
        name: "Books".into(),
        slug: slug.into(),
        now: at(0),
    }
}

fn activate(on: bool) -> CategoryCommand {
    if on {
        CategoryCommand::Activate { caller: admin(), now: at(1) }
    } else {
        CategoryCommand::Deactivate { caller: Caller::System, now: at(1) }
    }
}

#[test]
fn administrators_keep_categories() {
    Scenario::<Category>::new().when(create(seller(), "books")).then_rejected("forbidden");
    Scenario::<Category>::new().when(create(admin(), "Books!")).then_rejected("invalid");
    Scenario::<Category>::new().when(activate(true)).then_rejected("not_found");
    Scenario::<Category>::new()
        .when(create(admin(), "books"))
        .then_types(&["category.created"])
        .when(create(admin(), "books"))
        .then_rejected("category_exists")
        .when(activate(true))
        .then([])
        .when(activate(false))
        .and_state(|category| assert!(!category.details.as_ref().unwrap().active))
        .then_types(&["category.deactivated"])
        .when(activate(false))
        .then([])
        .when(activate(true))
        .and_state(|category| assert!(category.details.as_ref().unwrap().active))
        .then_types(&["category.activated"]);
}

#[test]
fn histories_fold_in_parts() {
    let commands = [create(admin(), "books"), activate(false), activate(true), activate(false)];
    let (state, history) = run::<Category>(&commands);
    assert_eq!(history.len(), 4);
    assert_folds(&state, &history);
}
